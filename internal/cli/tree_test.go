package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/problem"
)

func newApp() *app {
	return &app{in: strings.NewReader(""), out: io.Discard, err: io.Discard, getenv: func(string) string { return "" }, stop: func() {}, flags: globals{output: formatTable}}
}

func every(c *cobra.Command, fn func(*cobra.Command)) {
	fn(c)
	for _, sub := range c.Commands() {
		every(sub, fn)
	}
}

func TestEveryCommandIsDescribed(t *testing.T) {
	n := 0
	every(newApp().root(), func(c *cobra.Command) {
		n++
		if c.Short == "" || c.Long == "" || c.Example == "" {
			t.Errorf("%s lacks a description or an example", c.CommandPath())
		}
		if strings.HasSuffix(c.Short, ".") || c.Args == nil || c.RunE == nil {
			t.Errorf("%s: short ends in a full stop, or arguments are not checked", c.CommandPath())
		}
		for _, line := range strings.Split(c.Long, "\n") {
			if len(line) > 100 {
				t.Errorf("%s: a line of %d characters", c.CommandPath(), len(line))
			}
		}
		for _, line := range strings.Split(c.Example, "\n") {
			if !strings.Contains(line, "bailment ") {
				t.Errorf("%s: %q is no example", c.CommandPath(), line)
			}
		}
	})
	if n < 60 {
		t.Errorf("only %d commands", n)
	}
}

// The committed reference is that of this binary, byte for byte; `make generate` writes it.
func TestReferenceIsCurrent(t *testing.T) {
	const committed = "../../docs/reference/cli"
	dir := t.TempDir()
	for _, args := range [][]string{{"gen", "docs", dir}, {"gen", "man", filepath.Join(dir, "man")}} {
		if code := Run(context.Background(), args, nil, io.Discard, os.Stderr, func(string) string { return "" }); code != 0 {
			t.Fatalf("%v: exit code %d", args, code)
		}
	}
	pages := func(dir string) map[string]string {
		found, err := filepath.Glob(filepath.Join(dir, "*.md"))
		if err != nil {
			t.Fatal(err)
		}
		out := make(map[string]string)
		for _, path := range found {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			out[filepath.Base(path)] = string(text)
		}
		return out
	}
	want, got := pages(dir), pages(committed)
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s/%s is not what this binary says: run `make generate`", committed, name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s/%s is of no command: run `make generate`", committed, name)
		}
	}
	man, err := filepath.Glob(filepath.Join(dir, "man", "*.1"))
	if err != nil || len(man) != len(want) {
		t.Errorf("%d man pages for %d pages: %v", len(man), len(want), err)
	}
	for page, args := range map[string][]string{"server-config.md": {"config", "reference"}, "bundle.md": {"bundle", "reference"}} {
		var says bytes.Buffer
		if code := Run(context.Background(), args, nil, &says, os.Stderr, func(string) string { return "" }); code != 0 {
			t.Fatalf("%v: exit code %d", args, code)
		}
		page = filepath.Join("../../docs/reference", page)
		if text, err := os.ReadFile(page); err != nil || !bytes.Equal(text, says.Bytes()) {
			t.Errorf("%s is not what this binary says (%v): run `make generate`", page, err)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "man", "bailment-secret-get.1"))
	if err != nil || !bytes.Contains(text, []byte(`.TH "BAILMENT-SECRET-GET" "1" "" "Bailment" "Bailment"`)) {
		t.Errorf("the man page has another head: %v", err)
	}
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{problem.New(problem.ReasonInvalid, "x"), 1},
		{problem.New(problem.ReasonNoGrant, "x"), 2},
		{problem.New(problem.ReasonNoSession, "x"), 2},
		{problem.New(problem.ReasonConflict, "x"), 2},
		{problem.New(problem.ReasonRateLimited, "x"), 3},
		{problem.New(problem.ReasonUnreachable, "x"), 3},
		{problem.New(problem.ReasonUnknownOutcome, "x"), 3},
		{usageError{errors.New("x")}, 1},
		{errors.New(`required flag(s) "reason" not set`), 1},
		{errors.New("x"), 3},
		{&fs.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC}, 1},
		{fmt.Errorf("keeping it: %w", &fs.PathError{Op: "open", Path: "/x", Err: fs.ErrPermission}), 1},
	} {
		if got := asProblem(c.err).Kind.ExitCode(); got != c.want {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.want)
		}
	}
}

// Nobody is sent to a server's log for what happened on this machine.
func TestLocalFailures(t *testing.T) {
	for _, err := range []error{
		errors.New("x"), &fs.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC}, &fs.PathError{Op: "open", Path: "/x", Err: fs.ErrNotExist},
	} {
		if p := asProblem(err); strings.Contains(p.WayOut(), "server") || !strings.Contains(p.Message, "x") && !strings.Contains(p.Message, "no space left") {
			t.Errorf("%v: %s; try: %s", err, p.Message, p.WayOut())
		}
	}
}

func TestVersionOf(t *testing.T) {
	revision := debug.BuildSetting{Key: "vcs.revision", Value: strings.Repeat("ab", 20)}
	for want, info := range map[string]debug.BuildInfo{
		"unknown":            {Main: debug.Module{Version: "(devel)"}},
		"v0.1.0":             {Main: debug.Module{Version: "v0.1.0"}},
		"abababababab":       {Main: debug.Module{Version: "(devel)"}, Settings: []debug.BuildSetting{revision}},
		"abababababab-dirty": {Settings: []debug.BuildSetting{revision, {Key: "vcs.modified", Value: "true"}}},
	} {
		if got := versionOf(&info); got != want {
			t.Errorf("%+v: %s, want %s", info, got, want)
		}
	}
}

// Where a key belongs, the name of an identity is not taken, unless there is such a file.
func TestKeyIsNoIdentity(t *testing.T) {
	for key, ok := range map[string]bool{
		"": true, "alice": true, "/home/alice/.ssh/id_ed25519": true, "SHA256:abc": true,
		"/workload/x": false, "/human/alice": false, "/node/join-token/web-1": false, "spiffe://prod/human/alice": false,
	} {
		a := newApp()
		a.flags.key = key
		if err := a.checkKey(); (err == nil) != ok {
			t.Errorf("%q: %v", key, err)
		}
	}
}

// An agent that listens and has no session is not well.
func TestJudgeAgent(t *testing.T) {
	why := &localapi.Failure{Reason: "cutoff", Message: "cut off by entry 9", Fix: "join again"}
	for _, c := range []struct {
		state   string
		problem *localapi.Failure
		want    string
	}{
		{"ready", nil, "ok"},
		{"renewing", nil, "ok"},
		{"ready", why, "ok"},
		{"starting", nil, "off"},
		{"refused", why, "failed"},
		{"held", why, "failed"},
		{"unreachable", why, "failed"},
		{"not-proved", nil, "failed"},
		{"broken", nil, "failed"},
		{"new", nil, "failed"},
	} {
		f := judgeAgent("/s", &localapi.Status{State: c.state, Problem: c.problem})
		if f.State != c.want || !strings.Contains(f.Detail, c.state) || c.problem != nil && (!strings.Contains(f.Detail, "(cutoff): cut off by entry 9") || f.Try != "join again") {
			t.Errorf("%s: %+v", c.state, f)
		}
	}
}

func TestErrorsAsJSON(t *testing.T) {
	var b bytes.Buffer
	a := newApp()
	a.err, a.flags.output = &b, formatJSON
	a.printProblem(problem.New(problem.ReasonRateLimited, "a <b>").WithRetryAfter(1500e6), 3)
	var p problemJSON
	if err := json.Unmarshal(b.Bytes(), &p); err != nil {
		t.Fatal(err)
	}
	if p != (problemJSON{"a <b>", "limited", "rate-limited", problem.ReasonRateLimited.Fix(), "1.5s", 3}) {
		t.Errorf("%+v", p)
	}
}

func TestShow(t *testing.T) {
	r := &v1.PutResponse{Secret: "db/<x>", Version: 18446744073709551615, Entry: &v1.EntryRef{Index: 7}}
	for form, want := range map[string]string{
		formatJSON:  "{\n  \"secret\": \"db/<x>\",\n  \"version\": 18446744073709551615,\n  \"state\": \"\",\n  \"entry\": {\n    \"epoch\": 0,\n    \"index\": 7\n  }\n}\n",
		formatYAML:  "secret: db/<x>\nversion: 18446744073709551615\nstate: \"\"\nentry:\n  epoch: 0\n  index: 7\n",
		formatTable: "db/<x>  7  -  no\n",
	} {
		var b bytes.Buffer
		a := newApp()
		a.out, a.flags.output = &b, form
		if err := a.show(r, func(t *rows) { t.add(r.Secret, r.Entry, "", false) }); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("%s:\n%s\nwant\n%s", form, b.String(), want)
		}
	}
	v := &v1.ListSecretsResponse{Secrets: []*v1.SecretInfo{{Versions: []*v1.VersionInfo{{Created: &timestamppb.Timestamp{Seconds: 1}}}}}}
	text, err := json.Marshal(objectOf(v.ProtoReflect()))
	if err != nil || !strings.Contains(string(text), `"created":"1970-01-01T00:00:01Z"`) || !strings.Contains(string(text), `"until":null`) {
		t.Errorf("%s %v", text, err)
	}
	claims, err := structpb.NewStruct(map[string]any{"boot": map[string]any{"reference": "known", "findings": []any{"a", "b"}}})
	if err != nil {
		t.Fatal(err)
	}
	text, err = json.Marshal(objectOf((&v1.GetIdentityResponse{Claims: claims}).ProtoReflect()))
	if err != nil || !strings.Contains(string(text), `"claims":{"boot":{"findings":["a","b"],"reference":"known"}}`) {
		t.Errorf("%s %v", text, err)
	}
}

// What a server or a proposer wrote can't move the cursor, hide text or turn it round.
func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[2Kb\rc\u202ed\u0085e\nf\u200bg\u2028h\U000e0041i\tj"); got != "a·[2Kb·c·d·e\nf·g·h·i·j" {
		t.Errorf("%q", got)
	}
}

func TestEnvironmentOf(t *testing.T) {
	home := t.TempDir()
	a := newApp()
	a.flags.home = home
	if _, err := a.environment(); !problem.Is(err, problem.ReasonInvalid) {
		t.Errorf("nothing pinned: %v", err)
	}
	pin := func(name string) {
		if err := os.MkdirAll(filepath.Join(home, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(home, name, trustName), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pin("prod")
	pin("Not-A-Name")
	if env, err := a.environment(); env != "prod" || err != nil {
		t.Errorf("one pinned: %q %v", env, err)
	}
	pin("dev")
	if _, err := a.environment(); err == nil || !strings.Contains(err.Error(), "dev, prod") {
		t.Errorf("two pinned: %v", err)
	}
	a.flags.env = "dev"
	if env, err := a.environment(); env != "dev" || err != nil {
		t.Errorf("one named: %q %v", env, err)
	}
	a.flags.bootstrap = "bailment1:h:1/prod#" + strings.Repeat("ab", 32)
	if _, err := a.environment(); !problem.Is(err, problem.ReasonWrongEnvironment) {
		t.Errorf("a string of another: %v", err)
	}
	a.flags.env = "../x"
	a.flags.bootstrap = ""
	if _, err := a.envFile("../x", trustName); err == nil {
		t.Error("a name that leads out of the directory")
	}
}
