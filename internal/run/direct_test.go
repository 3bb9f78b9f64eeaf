package run_test

import (
	"context"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/run"
)

// A run without an agent: values come from its caller, who is told of the child, and to whom everything goes back, always and once.
func TestDirect(t *testing.T) {
	self := func(s unix.Signal) { _ = unix.Kill(os.Getpid(), s) }
	refused := problem.New(problem.ReasonNoGrant, "no")
	for name, c := range map[string]struct {
		script string
		open   func(context.Context) error
		cancel time.Duration // after the start
		grace  time.Duration
		code   int
		out    string
		reason problem.Reason
		starts bool
	}{
		"value":                  {script: `printf %s "$A-$B-$A2"; exit 3`, code: 3, out: "one-two-one", starts: true},
		"refused":                {open: func(context.Context) error { return refused }, code: run.ExitOurs, reason: problem.ReasonNoGrant},
		"a signal while asking":  {open: func(ctx context.Context) error { self(unix.SIGTERM); <-ctx.Done(); return ctx.Err() }, code: 128 + 15},
		"a signal after asking":  {open: func(ctx context.Context) error { self(unix.SIGINT); <-ctx.Done(); return nil }, code: 128 + 2},
		"ended":                  {script: "while :; do sleep 0.01; done", cancel: time.Millisecond, code: 128 + 15, starts: true},
		"ended, minds it not":    {script: "trap '' TERM; echo x; while :; do sleep 0.01; done", cancel: 200 * time.Millisecond, grace: 50 * time.Millisecond, code: 128 + 9, out: "x\n", starts: true},
		"ended, cleans up":       {script: "trap 'exit 4' TERM; echo x; while :; do sleep 0.01; done", cancel: 200 * time.Millisecond, grace: 10 * time.Second, code: 4, out: "x\n", starts: true},
		"too few values":         {open: func(context.Context) error { return errFew }, code: run.ExitOurs, reason: problem.ReasonInternal},
		"is ended before it was": {open: func(context.Context) error { return errEnd }, code: run.ExitOurs, reason: problem.ReasonCanceled},
	} {
		t.Run(name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			opened, closed, started := 0, 0, 0
			code, err := run.Direct{
				Command: []string{"sh", "-c", c.script}, Env: os.Environ(), Stdout: w, Grace: c.grace,
				Secrets: []run.Secret{{Name: "a", Env: "A"}, {Name: "b", Env: "B"}, {Name: "a", Env: "A2"}},
				Open: func(ctx context.Context, names []string) ([][]byte, error) {
					opened++
					if len(names) != 2 || names[0] != "a" || names[1] != "b" {
						t.Errorf("%q", names)
					}
					values := [][]byte{[]byte("one"), []byte("two")}
					if c.open != nil {
						switch err := c.open(ctx); {
						case err == errFew: //nolint:errorlint // it is that one
							return values[:1], nil
						case err == errEnd: //nolint:errorlint // it is that one
							cancel()
						case err != nil:
							return nil, err
						}
					}
					return values, nil
				},
				Started: func(pid int) {
					started++
					if group, err := unix.Getpgid(pid); err != nil || group != pid {
						t.Errorf("process %d has the group %d, %v", pid, group, err)
					}
					if c.cancel > 0 {
						time.AfterFunc(c.cancel, cancel)
					}
				},
				Close: func() { closed++ },
			}.Run(ctx)
			w.Close()
			out, _ := io.ReadAll(r)
			if code != c.code || string(out) != c.out || (c.reason == "") != (err == nil) || c.reason != "" && !problem.Is(err, c.reason) {
				t.Errorf("code %d, %q, %v", code, out, err)
			}
			if opened != 1 || closed != 1 || started == 1 != c.starts {
				t.Errorf("opened %d, closed %d, started %d times", opened, closed, started)
			}
		})
	}
}

var (
	errFew = problem.New(problem.ReasonInternal, "few")
	errEnd = problem.New(problem.ReasonInternal, "end")
)
