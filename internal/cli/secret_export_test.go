package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// carrier is a server with one change.
type carrier struct {
	bailmentv1connect.ChangeServiceClient
	act, state string
	unseen     error // of GetChange, once it was asked to carry it out
	carry      func() (*v1.CarryOutResponse, error)
	asked      int
}

func (c *carrier) GetChange(ctx context.Context, r *v1.GetChangeRequest) (*v1.GetChangeResponse, error) {
	if c.asked > 0 && c.unseen != nil {
		return nil, c.unseen
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return &v1.GetChangeResponse{Change: &v1.ChangeInfo{Change: r.Change, Action: c.act, State: c.state}}, nil
}

func (c *carrier) CarryOut(context.Context, *v1.CarryOutRequest) (*v1.CarryOutResponse, error) {
	c.asked++
	return c.carry()
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

// The file is there before the server is asked, whole and for its owner only when it answered, and gone when it did not. What left and did not
// arrive is called used up, with the way out.
func TestFetchExport(t *testing.T) {
	file := bytes.Repeat([]byte("sealed"), 1000)
	answer := func() (*v1.CarryOutResponse, error) {
		return &v1.CarryOutResponse{Change: &v1.ChangeInfo{State: "done"}, Entry: &v1.EntryRef{Index: 9}, File: file, Values: 2}, nil
	}
	fails := func(r problem.Reason) func() (*v1.CarryOutResponse, error) {
		return func() (*v1.CarryOutResponse, error) { return nil, problem.New(r, "planted") }
	}
	for name, c := range map[string]struct {
		server *carrier
		out    io.Writer
		gone   bool // who asks is gone by the time of the answer
		want   problem.Reason
		fix    string
		kept   bool
	}{
		"fetched":                  {server: &carrier{carry: answer}, kept: true},
		"refused":                  {server: &carrier{carry: fails(problem.ReasonHeld)}, want: problem.ReasonHeld},
		"another act":              {server: &carrier{act: policy.ActDestroy}, want: problem.ReasonInvalid},
		"without a file":           {server: &carrier{carry: func() (*v1.CarryOutResponse, error) { return &v1.CarryOutResponse{}, nil }}, want: problem.ReasonInvalid},
		"no answer, and it left":   {server: &carrier{carry: fails(problem.ReasonUnknownOutcome), state: "done"}, want: problem.ReasonUnknownOutcome, fix: "propose it again"},
		"cut short":                {server: &carrier{carry: fails(problem.ReasonInternal), state: "done"}, want: problem.ReasonInternal, fix: "propose it again"},
		"no answer, and it waits":  {server: &carrier{carry: fails(problem.ReasonUnknownOutcome), state: "waiting"}, want: problem.ReasonUnknownOutcome, fix: "ask for it again"},
		"no answer, and no server": {server: &carrier{carry: fails(problem.ReasonUnknownOutcome), unseen: errors.New("gone")}, want: problem.ReasonUnknownOutcome, fix: "bailment change show 7"},
		"interrupted":              {server: &carrier{carry: fails(problem.ReasonUnknownOutcome), state: "done"}, gone: true, want: problem.ReasonUnknownOutcome, fix: "propose it again"},
		"nowhere to tell it":       {server: &carrier{carry: answer}, out: full{}, want: problem.ReasonInternal, kept: true},
	} {
		t.Run(name, func(t *testing.T) {
			if c.server.act == "" {
				c.server.act = policy.ActExport
			}
			if c.out == nil {
				c.out = io.Discard
			}
			path := filepath.Join(t.TempDir(), "db.age")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if carry := c.server.carry; carry != nil {
				c.server.carry = func() (*v1.CarryOutResponse, error) {
					if x, err := os.Stat(path); err != nil || x.Size() != 0 || x.Mode().Perm() != 0o600 {
						t.Errorf("before the answer it is %v: %v", x, err)
					}
					if c.gone {
						cancel()
					}
					return carry()
				}
			}
			a := &app{out: c.out, err: io.Discard, flags: globals{output: formatTable}}
			err := a.fetchExport(ctx, &conn{Client: &client.Client{Changes: c.server}}, 7, path)
			if c.want == "" && err != nil || c.want != "" && (err == nil || problem.As(err).Reason != c.want || c.fix != "" && !strings.Contains(problem.As(err).WayOut(), c.fix)) {
				t.Errorf("%v; want %s, %q", err, c.want, c.fix)
			}
			got, err := os.ReadFile(path)
			if c.kept != (err == nil && bytes.Equal(got, file)) || !c.kept && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%d bytes are there: %v", len(got), err)
			}
		})
	}
}

// Where no file can be made the server is not asked; a symbolic link is not followed.
func TestFetchExportIntoNoPlace(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(dir+"/there", []byte("mine"), 0o644), os.Symlink(dir+"/there", dir+"/link"), os.Symlink(dir+"/nowhere", dir+"/dangling")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir + "/there", dir + "/link", dir + "/dangling", dir + "/missing/db.age", dir, ""} {
		server := &carrier{act: policy.ActExport}
		a := &app{out: io.Discard, err: io.Discard, flags: globals{output: formatTable}}
		if err := a.fetchExport(t.Context(), &conn{Client: &client.Client{Changes: server}}, 7, path); !problem.Is(err, problem.ReasonInvalid) || server.asked > 0 {
			t.Errorf("%s: asked %d times: %v", path, server.asked, err)
		}
	}
	if was, err := os.ReadFile(dir + "/there"); err != nil || string(was) != "mine" {
		t.Errorf("it holds %q: %v", was, err)
	}
	if _, err := os.Lstat(dir + "/nowhere"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the link was followed: %v", err)
	}
}

// What left the server and can't be written is lost: it says so, and leaves no half of it behind.
func TestFetchExportThatCannotBeWritten(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
			t.Fatal(err)
		}
	}()
	server := &carrier{act: policy.ActExport, carry: func() (*v1.CarryOutResponse, error) {
		return &v1.CarryOutResponse{File: make([]byte, 4096), Entry: &v1.EntryRef{Index: 9}}, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 100, Max: was.Max})
	}}
	path := filepath.Join(t.TempDir(), "db.age")
	a := &app{out: io.Discard, err: io.Discard, flags: globals{output: formatTable}}
	err := a.fetchExport(t.Context(), &conn{Client: &client.Client{Changes: server}}, 7, path)
	p := problem.As(err)
	if err == nil || !strings.Contains(p.Message, "left the server (entry 9)") || !strings.Contains(p.WayOut(), "propose it again") || strings.Contains(err.Error(), "already closed") {
		t.Errorf("%v, %q", err, p.WayOut())
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a half of it is there: %v", err)
	}
}

// A file that is whole stays, whatever it can't be told of it: it is given once.
func TestFetchExportThatCannotBeSynced(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
	}
	defer restore()
	file := bytes.Repeat([]byte("sealed"), 100)
	server := &carrier{act: policy.ActExport, carry: func() (*v1.CarryOutResponse, error) { // its directory can't be opened any more
		return &v1.CarryOutResponse{File: file, Entry: &v1.EntryRef{Index: 9}}, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: was.Max})
	}}
	path := filepath.Join(t.TempDir(), "db.age")
	a := &app{out: io.Discard, err: io.Discard, flags: globals{output: formatTable}}
	err := a.fetchExport(t.Context(), &conn{Client: &client.Client{Changes: server}}, 7, path)
	restore()
	if p := problem.As(err); err == nil || !strings.Contains(p.Message, "may not survive") || !strings.Contains(p.WayOut(), "sha256:") {
		t.Errorf("%v", err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, file) {
		t.Errorf("%d bytes are there: %v", len(got), err)
	}
}

// What is said of an export fits its state: what approving means, when it can be fetched, and that it is over.
func TestExportMeaning(t *testing.T) {
	now := time.Now()
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(d)) }
	target := state.ExportTarget("db/*", "age1x39257svttrkalynw3jn574zvncf0yf40dds8wlz880rcj66raeqqawjjm")
	for name, c := range map[string]struct {
		info   *v1.ChangeInfo
		says   string
		denies string
	}{
		"proposed":       {&v1.ChangeInfo{State: "proposed"}, "/human/alice fetches the file once, within 24h0m0s after the last of 2 approvals", "wait"},
		"with a delay":   {&v1.ChangeInfo{State: "proposed", DelaySeconds: 3600}, "within 24h0m0s after it has waited for 1h0m0s since the last of 2 approvals", ""},
		"waiting":        {&v1.ChangeInfo{State: "waiting", ApprovedBy: []string{"bob", "carol"}, DelaySeconds: 3600, Due: at(time.Minute), Ends: at(25 * time.Hour)}, "it waits until", "can fetch"},
		"due":            {&v1.ChangeInfo{State: "waiting", ApprovedBy: []string{"bob", "carol"}, Due: at(-time.Minute), Ends: at(time.Hour)}, "/human/alice can fetch it once, until", "gives"},
		"short of one":   {&v1.ChangeInfo{State: "waiting", ApprovedBy: []string{"bob"}, Due: at(-time.Minute), Ends: at(time.Hour)}, "it gives the values of db/*", "can fetch"},
		"expired":        {&v1.ChangeInfo{State: "expired", ApprovedBy: []string{"bob", "carol"}, Due: at(-25 * time.Hour), Ends: at(-time.Hour)}, "nobody fetched it", "can fetch"},
		"never approved": {&v1.ChangeInfo{State: "expired"}, "", "fetches"},
		"fetched":        {&v1.ChangeInfo{State: "done"}, "/human/alice fetched it", "can"},
		"rejected":       {&v1.ChangeInfo{State: "rejected"}, "", "fetches"},
		"superseded":     {&v1.ChangeInfo{State: "superseded"}, "", "fetches"},
		"about nothing":  {&v1.ChangeInfo{State: "proposed", Target: "db/*"}, "", "db"},
	} {
		c.info.Change, c.info.Proposer, c.info.Required = 7, "/human/alice", 2
		if c.info.Target == "" {
			c.info.Target = target
		}
		text := exportMeaning(c.info, now)
		if !strings.Contains(text, c.says) || c.says == "" && text != "" || c.denies != "" && strings.Contains(text, c.denies) {
			t.Errorf("%s: %q, want %q and not %q", name, text, c.says, c.denies)
		}
	}
}
