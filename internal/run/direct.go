package run

import (
	"context"
	"os"
	"os/signal"
	"time"

	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/problem"
)

// Direct is a run without an agent: its caller gets the values, and gives the leases back. All else is as with an agent: what is
// executed is what was found, values are placed and wiped, signals reach the child once, and the exit codes are the same.
type Direct struct {
	Command []string // name or path, and arguments
	Env     []string // the child's environment to begin with, as os.Environ gives it
	Secrets []Secret
	// The child's standard streams; nil is /dev/null.
	Stdin, Stdout, Stderr *os.File
	// Grace is how long the child may go on after SIGHUP, SIGINT, SIGQUIT or SIGTERM, or the end of the context, before it is killed
	// with its process group; 0: as long as it likes.
	Grace time.Duration
	// Open gets the values of the named secrets, in their order. Its context ends at the first signal that ends programs.
	Open func(ctx context.Context, names []string) ([][]byte, error)
	// Close is called once Open was, whatever it answered, when no child lives any more. Until it returns, this process is not ended by
	// signals that can be caught.
	Close func()
	// Started is told the child's process ID, which is its group's too, before anything else happens. May be nil.
	Started func(pid int)
}

// names lists each secret once, and says where it is in the list.
func (d *Direct) names() ([]string, map[string]int) {
	var names []string
	index := make(map[string]int)
	for _, s := range d.Secrets {
		if _, ok := index[s.Name]; !ok {
			index[s.Name] = len(names)
			names = append(names, s.Name)
		}
	}
	return names, index
}

// Run runs the command, as the function Run does. When ctx ends, the child is asked to end by SIGTERM.
func (d Direct) Run(ctx context.Context) (code int, err error) {
	c := Config{Command: d.Command, Env: d.Env, Secrets: d.Secrets}
	exe, code, err := c.prepare()
	if err != nil {
		return code, err
	}
	defer exe.file.Close()
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, ending()...)
	defer signal.Stop(signals)
	defer d.Close()
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	told := interrupted(signals, asking.Done(), cancel)
	files := new(files)
	defer files.remove()
	env, err := d.open(asking, &c, files)
	cancel()
	if s := <-told; s != 0 {
		return exitSignal + int(s), nil
	}
	if err != nil {
		return ExitOurs, err
	}
	if ctx.Err() != nil {
		return ExitOurs, problem.New(problem.ReasonCanceled, "the program was not started")
	}
	child := &child{exe: exe, args: d.Command, env: env, std: [3]*os.File{d.Stdin, d.Stdout, d.Stderr}, grace: d.Grace, started: d.Started}
	return child.run(ctx, signals)
}

// open gets the values and puts them where they belong.
func (d *Direct) open(ctx context.Context, c *Config, files *files) ([]string, error) {
	names, index := d.names()
	sweep(c.places())
	values, err := d.Open(ctx, names)
	if err != nil {
		return nil, err
	}
	if len(values) != len(names) {
		return nil, problem.New(problem.ReasonInternal, "there are %d values for %d secrets", len(values), len(names))
	}
	given := new(localapi.Run)
	for i, name := range names {
		given.Secrets = append(given.Secrets, localapi.Given{Name: name, Value: values[i]})
	}
	return c.place(given, index, files)
}
