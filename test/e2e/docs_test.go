package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// arrow begins a line of a console block that says what the commands above it print.
const arrow = "# → "

// forbidden is printed by a document's command that must be refused.
const forbidden = "this must not be printed"

// segment is what a document's reader types up to the next place where it says what is printed.
type segment struct {
	line     int // of its first fragment, for messages; of its end without any
	commands string
	want     []string // parts of its output, in order
}

// consoles reads the console blocks of a document.
func consoles(text string) []segment {
	var out []segment
	var now segment
	var commands strings.Builder
	inside := false
	flush := func(line int) {
		if commands.Len() > 0 || len(now.want) > 0 {
			if len(now.want) == 0 {
				now.line = line
			}
			now.commands = commands.String()
			out = append(out, now)
		}
		now = segment{}
		commands.Reset()
	}
	for i, line := range strings.Split(text, "\n") {
		switch {
		case !inside:
			inside = line == "```console"
		case line == "```":
			inside = false
			flush(i + 1)
		case strings.HasPrefix(line, arrow):
			if len(now.want) == 0 {
				now.line = i + 1
			}
			now.want = append(now.want, strings.TrimSpace(strings.TrimPrefix(line, arrow)))
		default:
			if len(now.want) > 0 {
				flush(i + 1)
			}
			commands.WriteString(line + "\n")
		}
	}
	return out
}

// follow types a document's console blocks into one shell, and compares what comes with what the document says.
func follow(t *testing.T, bin, text string) error {
	t.Helper()
	segments := consoles(text)
	if len(segments) == 0 {
		return errors.New("there is no console block")
	}
	const mark = "=== end of segment"
	var script strings.Builder
	script.WriteString("set -euo pipefail\n")
	for i, s := range segments {
		fmt.Fprintf(&script, "%sprintf '\\n%s %d\\n'\n", s.commands, mark, i)
	}

	dir := t.TempDir()
	tmp := filepath.Join(dir, "t")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	// A file, not a pipe: what was started in the background has it open for longer than the shell lives.
	log, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		return err
	}
	defer log.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash")
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, strings.NewReader(script.String()), log, log
	cmd.Env = []string{"PATH=" + filepath.Dir(bin) + ":" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + tmp, "LANG=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	failed := cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what a failed document left; its group may be empty
	}
	output, err := os.ReadFile(log.Name())
	if err != nil {
		return err
	}
	rest := string(output)
	for i, s := range segments {
		end := fmt.Sprintf("\n%s %d\n", mark, i)
		printed, after, ended := strings.Cut(rest, end)
		if !ended {
			if failed == nil {
				failed = errors.New("the shell ended early, with success")
			}
			return fmt.Errorf("line %d: the commands above it failed (%w):\n%s", s.line, failed, printed)
		}
		rest = after
		if strings.Contains(printed, forbidden) {
			return fmt.Errorf("line %d: a command ran that must be refused:\n%s", s.line, printed)
		}
		left := printed
		for _, want := range s.want {
			_, after, ok := strings.Cut(left, want)
			if !ok {
				return fmt.Errorf("line %d: the document promises %q here, and what comes is:\n%s", s.line, want, printed)
			}
			left = after
		}
	}
	return failed
}

// program is the binary under the name that documents call it by.
func program(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "bailment")
	if err := os.Link(builder.Binary(t, ""), bin); err != nil {
		t.Fatal(err)
	}
	return bin
}

func document(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../..", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The tutorial does what it says, command by command.
func TestTutorial(t *testing.T) {
	text := document(t, "docs/tutorial.md")
	const port = "8417"
	if !strings.Contains(text, ":"+port) {
		t.Fatalf("the tutorial's port is not %s", port)
	}
	promises := 0
	for _, s := range consoles(text) {
		promises += len(s.want)
	}
	if want := strings.Count(text, "\n"+arrow); promises != want || promises < 20 {
		t.Fatalf("%d promises were read, and there are %d", promises, want)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := follow(t, program(t), strings.ReplaceAll(text, port, free)); err != nil {
		t.Fatalf("docs/tutorial.md: %v", err)
	}
}

// A document that says what isn't so is found out.
func TestFollowNotices(t *testing.T) {
	bin := program(t)
	block := func(lines ...string) string {
		return "text\n```console\n" + strings.Join(lines, "\n") + "\n```\nmore\n"
	}
	for name, c := range map[string]struct{ text, want string }{
		"right":                 {block("x=1", arrow[:1]+" a comment", "echo a$x b", arrow+"a1", arrow+"b") + block("echo $x >&2", arrow+"1"), ""},
		"the right program":     {block("command -v bailment", arrow+bin), ""},
		"no block":              {"```sh\nfalse\n```\n", "no console block"},
		"never printed":         {block("echo a", arrow+"b"), `line 4: the document promises "b"`},
		"printed before":        {block("echo a", arrow+"a", "echo b", arrow+"a"), "line 6"},
		"printed after":         {block("echo b", arrow+"a", "echo a", arrow+"a"), "line 4"},
		"in another order":      {block("echo b a", arrow+"a", arrow+"b"), `"b"`},
		"a failing command":     {block("false", "echo a", arrow+"a"), "line 5: the commands above it failed"},
		"in a pipe":             {block("false | cat"), "failed"},
		"an unset variable":     {block("echo $nothing"), "failed"},
		"failing at the end":    {block("echo a", arrow+"a", "exit 1"), "failed"},
		"an early success":      {block("echo a", arrow+"a", "exit 0", "echo b"), "ended early"},
		"what must not be":      {block("echo " + forbidden), "must be refused"},
		"a child left behind":   {block("sleep 1000 &", "false"), "failed"},
		"another shell's state": {block("x=1") + "```sh\ny=1\n```\n" + block("echo $x$y"), "failed"},
	} {
		t.Run(name, func(t *testing.T) {
			err := follow(t, bin, c.text)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
		})
	}
}

// quickstart runs the README's first command in a directory of its own.
func quickstart(t *testing.T, bin, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), bin, append([]string{"quickstart", "--dir", dir}, args...)...)
	home := filepath.Dir(dir)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home}
	cmd.Dir = home
	// Files, not pipes: a kept process must not keep the test waiting for its output.
	var read [2]string
	var files [2]*os.File
	for i := range files {
		f, err := os.CreateTemp(home, "output")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	cmd.Stdout, cmd.Stderr = files[0], files[1]
	failed := cmd.Run()
	for i, f := range files {
		text, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		read[i] = string(text)
	}
	if failed != nil || read[1] != "" {
		t.Fatalf("bailment quickstart %q: %v\n%s%s", args, failed, read[0], read[1])
	}
	return read[0]
}

// running lists the processes that a quickstart's directory names and that live, by role.
func running(t *testing.T, dir string) map[string]int {
	t.Helper()
	out := map[string]int{}
	files, err := filepath.Glob(filepath.Join(dir, "*.pid"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil || pid <= 1 {
			t.Fatalf("%s holds %q", path, text)
		}
		if alive(dir, pid) {
			out[strings.TrimSuffix(filepath.Base(path), ".pid")] = pid
		}
	}
	return out
}

// alive says whether a process of that directory runs. One that has ended and that nobody waited for has no
// command line.
func alive(dir string, pid int) bool {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && bytes.Contains(args, []byte(dir))
}

// The README's first command works, again too, and what --keep leaves the next run stops.
func TestQuickstart(t *testing.T) {
	first := regexp.MustCompile("(?s)```sh\n(.*?)\n```").FindStringSubmatch(document(t, "README.md"))
	if first == nil || first[1] != "go run ./cmd/bailment quickstart" {
		t.Fatalf("the README's first command is another one: %q", first)
	}
	bin, dir := program(t), filepath.Join(t.TempDir(), "try")
	t.Cleanup(func() {
		for _, pid := range running(t, dir) {
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone by itself: just as well
		}
	})
	plain := func() {
		t.Helper()
		out := quickstart(t, bin, dir)
		for _, want := range []string{"\n9. ", "Server and agent are stopped; ", "\nThen read docs/tutorial.md.\n"} {
			_, after, ok := strings.Cut(out, want)
			if !ok {
				t.Fatalf("no %q in\n%s", want, out)
			}
			out = after
		}
		if out != "" {
			t.Fatalf("after the end comes %q", out)
		}
		if left := running(t, dir); len(left) > 0 {
			t.Fatalf("still running: %v", left)
		}
	}
	plain()
	plain()

	out := quickstart(t, bin, dir, "--keep")
	if !strings.HasSuffix(out, "\nA second bailment quickstart stops and removes this one.\n") {
		t.Fatalf("it ends otherwise:\n%s", out)
	}
	kept := running(t, dir)
	for _, role := range []string{"server", "agent", "database"} {
		if kept[role] == 0 {
			t.Errorf("--keep left no %s", role)
		}
	}
	plain()
	for role, pid := range kept {
		if alive(dir, pid) {
			t.Errorf("the kept %s still runs", role)
		}
	}
}
