package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// arrow begins a line of a console block that says what the commands above it print.
const arrow = "# → "

// forbidden is printed by a document's command that must be refused.
const forbidden = "this must not be printed"

// block is one fenced block of commands.
type block struct {
	line     int    // of its fence
	first    string // its first line, by which lists call it
	segments []segment
}

// segment is what a document's reader types up to the next place where it says what is printed.
type segment struct {
	line     int // of its first fragment, for messages; of its end without any
	commands string
	want     []string // parts of its output, in order
}

// These kinds of fenced blocks are commands, and these are not. There are no others.
var (
	commandKinds = []string{"console", "sh"}
	textKinds    = []string{"", "json", "yaml"}
	// commandLike is a line that somebody would type, in a block that does not say so.
	commandLike = regexp.MustCompile(`^(\$ |((sudo|export|[A-Z_]+=\S+) )?(bailment|docker|systemctl|curl|ssh-keygen|install|make|go) )`)
)

// consoles reads a document's blocks of commands. A block that nobody would run is an error, so that a
// document can't have commands that are run by nobody: one of an unknown kind, one that is indented, and
// commands that don't say that they are.
func consoles(text string) ([]block, error) {
	var out []block
	open, fence := -1, "" // of the block that is being read: its index in out, or -1 for one of text
	for i, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimLeft(line, " \t")
		isFence := strings.HasPrefix(trimmed, "```") || strings.HasPrefix(trimmed, "~~~")
		switch {
		case fence == "" && isFence:
			kind := strings.TrimLeft(line, "`")
			fence = strings.TrimSuffix(line, kind)
			open = -1
			switch {
			case fence != "```":
				return nil, fmt.Errorf("line %d: a fence other than three backticks at a line's beginning", i+1)
			case slices.Contains(commandKinds, kind):
				open = len(out)
				out = append(out, block{line: i + 1})
			case !slices.Contains(textKinds, kind):
				return nil, fmt.Errorf("line %d: a block of the unknown kind %q", i+1, kind)
			}
		case fence == "":
			if code, ok := strings.CutPrefix(line, "    "); ok && commandLike.MatchString(strings.TrimSpace(code)) {
				return nil, fmt.Errorf("line %d: a command outside of a block", i+1)
			}
		case line == fence:
			fence = ""
			if open >= 0 {
				out[open].end(i + 1)
			}
		case isFence:
			return nil, fmt.Errorf("line %d: a fence in a block", i+1)
		case open >= 0:
			out[open].add(i+1, line)
		case commandLike.MatchString(line):
			return nil, fmt.Errorf("line %d: a command in a block that does not say that it has commands", i+1)
		}
	}
	if fence != "" {
		return nil, errors.New("the last block does not end")
	}
	return out, nil
}

// add takes the next line of a block.
func (b *block) add(number int, line string) {
	if b.first == "" {
		b.first = line
	}
	said := strings.HasPrefix(line, arrow)
	if n := len(b.segments); n == 0 || !said && len(b.segments[n-1].want) > 0 {
		b.segments = append(b.segments, segment{})
	}
	s := &b.segments[len(b.segments)-1]
	if !said {
		s.commands += line + "\n"
		return
	}
	if len(s.want) == 0 {
		s.line = number
	}
	s.want = append(s.want, strings.TrimSpace(strings.TrimPrefix(line, arrow)))
}

// end takes the end of a block.
func (b *block) end(number int) {
	if n := len(b.segments); n > 0 && len(b.segments[n-1].want) == 0 {
		b.segments[n-1].line = number
	}
}

// reader follows a document: he types its commands into one shell, block by block.
type reader struct {
	bin       string            // the binary, under the name that documents call it by
	dir       string            // where the shell is, its home too; default a new one
	env       []string          // of the shell, beside PATH, HOME, TMPDIR and LANG
	prelude   string            // commands before the first block
	replace   *strings.Replacer // what is called otherwise here; nil: nothing
	answers   int               // how often he may be asked on a terminal, and says y; 0: there is no terminal
	after     string            // commands after the last block
	before    map[string]string // what somebody else does before a block, by its first line
	elsewhere map[string]string // blocks that need what is not here, by their first lines, and why: standIns work in them
}

// follow compares what the document's commands print with what the document says.
func follow(t *testing.T, bin, text string) error {
	t.Helper()
	return reader{bin: bin}.follow(t, text)
}

const (
	mark       = "=== end of segment"
	maxPrinted = 8 << 10 // of a segment that failed, in a message
)

// script is what is typed, with a mark after each segment.
func (r reader) script(blocks []block) (string, []segment, error) {
	known := make(map[string]bool)
	var b strings.Builder
	var all []segment
	b.WriteString("set -euo pipefail\nelsewhere=\n" + r.prelude + "\n")
	for _, x := range blocks {
		if known[x.first] && (r.before[x.first] != "" || r.elsewhere[x.first] != "") {
			return "", nil, fmt.Errorf("line %d: a second block begins with %q, which a list names", x.line, x.first)
		}
		known[x.first] = true
		// The list is the shell's to see: standIns work in these blocks only.
		fmt.Fprintf(&b, "%s\nelsewhere=%q\n", r.before[x.first], r.elsewhere[x.first])
		for _, s := range x.segments {
			if r.replace != nil {
				s.commands = r.replace.Replace(s.commands)
				s.want = slices.Clone(s.want)
				for i := range s.want {
					s.want[i] = r.replace.Replace(s.want[i])
				}
			}
			fmt.Fprintf(&b, "%sprintf '\\n%s %d\\n'\n", s.commands, mark, len(all))
			all = append(all, s)
		}
		b.WriteString("elsewhere=\n")
	}
	b.WriteString(r.after)
	for _, list := range []map[string]string{r.before, r.elsewhere} {
		for first := range list {
			if !known[first] {
				return "", nil, fmt.Errorf("no block begins with %q, which a list names", first)
			}
		}
	}
	return b.String(), all, nil
}

func (r reader) follow(t *testing.T, text string) error {
	t.Helper()
	blocks, err := consoles(text)
	if err != nil {
		return err
	}
	if len(blocks) == 0 {
		return errors.New("there is no console block")
	}
	script, segments, err := r.script(blocks)
	if err != nil {
		return err
	}
	output, failed := r.shell(t, script)
	if testing.Verbose() {
		t.Log(output)
	}
	rest := output
	for i, s := range segments {
		end := fmt.Sprintf("\n%s %d\n", mark, i)
		printed, after, ended := strings.Cut(rest, end)
		if !ended {
			if failed == nil {
				failed = errors.New("the shell ended early, with success")
			}
			if n := len(printed); n > maxPrinted {
				printed = "…" + printed[n-maxPrinted:]
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
	if failed != nil {
		return fmt.Errorf("after the last block: the commands failed (%w):\n%s", failed, rest)
	}
	return nil
}

// shell runs a script to its end, or for two minutes, and returns what it and what it started have printed. The
// script finds that in $OUTPUT too, as a person sees on the screen what was printed before.
func (r reader) shell(t *testing.T, script string) (string, error) {
	t.Helper()
	own := t.TempDir()
	dir := r.dir
	if dir == "" {
		dir = own
	}
	tmp := filepath.Join(own, "t")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return "", err
	}
	// Not standard input: what runs in the shell would read it.
	file := filepath.Join(own, "script")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		return "", err
	}
	// A file, not a pipe: what was started in the background has it open for longer than the shell lives.
	log, err := os.OpenFile(filepath.Join(own, "output"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return "", err
	}
	defer log.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", file)
	if r.answers > 0 {
		terminal, err := answering(t, r.answers)
		if err != nil {
			return "", err
		}
		cmd.Stdin = terminal
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	cmd.Env = append([]string{
		"PATH=" + filepath.Dir(r.bin) + ":" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + tmp, "LANG=C", "OUTPUT=" + log.Name(),
		// The race detector holds every process up for a second at its end.
		"GORACE=atexit_sleep_ms=0",
	}, r.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	failed := cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what a failed document left; its group may be empty
	}
	output, err := os.ReadFile(log.Name())
	return string(output), errors.Join(failed, err)
}

// answering is a terminal at which somebody has typed "y" so often.
func answering(t *testing.T, times int) (*os.File, error) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { terminal.Close() })
	_, err = person.WriteString(strings.Repeat("y\n", times))
	return terminal, err
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
func TestTutorial(t *testing.T) { followTutorial(t, "docs/tutorial.md", "8417") }

// The second one goes through a change of policy, to its rollback.
func TestPolicyTutorial(t *testing.T) { followTutorial(t, "docs/tutorial-policy.md", "8418") }

func followTutorial(t *testing.T, name, port string) {
	t.Helper()
	text := document(t, name)
	if !strings.Contains(text, ":"+port) {
		t.Fatalf("the tutorial's port is not %s", port)
	}
	promises := 0
	blocks, err := consoles(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		for _, s := range b.segments {
			promises += len(s.want)
		}
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
		t.Fatalf("%s: %v", name, err)
	}
}

// A document that says what isn't so is found out.
func TestFollowNotices(t *testing.T) {
	bin := program(t)
	block := func(lines ...string) string {
		return "text\n```console\n" + strings.Join(lines, "\n") + "\n```\nmore\n"
	}
	for name, c := range map[string]struct{ text, want string }{
		"right":               {block("x=1", arrow[:1]+" a comment", "echo a$x b", arrow+"a1", arrow+"b") + block("echo $x >&2", arrow+"1"), ""},
		"the right program":   {block("command -v bailment", arrow+bin), ""},
		"no block":            {"```json\nfalse\n```\n", "no console block"},
		"a block of sh":       {"```sh\nfalse\n```\n", "line 3: the commands above it failed"},
		"never printed":       {block("echo a", arrow+"b"), `line 4: the document promises "b"`},
		"printed before":      {block("echo a", arrow+"a", "echo b", arrow+"a"), "line 6"},
		"printed after":       {block("echo b", arrow+"a", "echo a", arrow+"a"), "line 4"},
		"in another order":    {block("echo b a", arrow+"a", arrow+"b"), `"b"`},
		"a failing command":   {block("false", "echo a", arrow+"a"), "line 5: the commands above it failed"},
		"in a pipe":           {block("false | cat"), "failed"},
		"an unset variable":   {block("echo $nothing"), "failed"},
		"failing at the end":  {block("echo a", arrow+"a", "exit 1"), "failed"},
		"an early success":    {block("echo a", arrow+"a", "exit 0", "echo b"), "ended early"},
		"what must not be":    {block("echo " + forbidden), "must be refused"},
		"a child left behind": {block("sleep 1000 &", "false"), "failed"},
		"text is not run":     {block("x=1") + "```json\ny=1\n```\n" + block("echo $x$y"), "failed"},
		"one shell for all":   {block("x=1") + "```sh\ny=2\n```\n" + block("echo $x$y", arrow+"12"), ""},
		"an unknown kind":     {block("true") + "```bash\ntrue\n```\n", `line 6: a block of the unknown kind "bash"`},
		"no kind":             {block("true") + "```\nbailment status\n```\n", "line 7: a command in a block that does not say"},
		"a prompt":            {block("true") + "```\n$ ls\n```\n", "line 7: a command in a block that does not say"},
		"an indented fence":   {block("true") + "1. x\n   ```console\n   true\n   ```\n", "line 7: a fence other than"},
		"another fence":       {block("true") + "~~~console\ntrue\n~~~\n", "line 6: a fence other than"},
		"a longer fence":      {block("true") + "````console\ntrue\n````\n", "line 6: a fence other than"},
		"no fence":            {block("true") + "\n    sudo systemctl stop bailment-server\n", "line 7: a command outside"},
		"an open block":       {block("true") + "```console\ntrue\n", "does not end"},
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
	if !strings.HasSuffix(out, "\nA second bailment quickstart --dir "+dir+" stops and removes this one.\n") {
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

// inline is a command that is named in a sentence, and option a flag of one.
var (
	inline = regexp.MustCompile("`(bailment [a-z][^`]*)`")
	format = regexp.MustCompile(` v[0-9]+$`) // the first line of a text of ours is no command
	option = regexp.MustCompile(`(?:^| )(--?[a-z][a-z-]*)`)
)

// misnamed checks the commands that a document names in its sentences against the reference: they are there, and so are
// their flags. page gives a page of the reference, or an empty text.
func misnamed(text string, page func(name string) string) (found int, bad []string) {
	for _, m := range inline.FindAllStringSubmatch(text, -1) {
		if format.MatchString(m[1]) {
			continue
		}
		found++
		command, _, _ := strings.Cut(m[1], " -- ") // what follows is another program's
		words := strings.Fields(command)
		name, help, depth := words[0], "", 1 // a command's own name may have a hyphen, as allow-again
		for _, w := range words[1:] {
			longer := page(name + "-" + w)
			if longer == "" {
				break
			}
			name, help, depth = name+"-"+w, longer, depth+1
		}
		// A word that is no command is an argument, where the command takes one: its usage says so in capitals.
		rest := words[depth:]
		argument := len(rest) > 0 && !strings.HasPrefix(rest[0], "-")
		_, usage, _ := strings.Cut(help, "\n"+strings.Join(words[:depth], " "))
		usage, _, _ = strings.Cut(usage, "\n")
		if help == "" || argument && strings.ToLower(usage) == usage {
			bad = append(bad, m[1]+": there is no such command")
			continue
		}
		for _, f := range option.FindAllStringSubmatch(command, -1) {
			if !strings.Contains(help, f[1]+" ") && !strings.Contains(help, f[1]+",") {
				bad = append(bad, m[1]+": there is no flag "+f[1])
			}
		}
	}
	return found, bad
}

// Sentences name commands and flags that there are.
func TestNamedCommands(t *testing.T) {
	reference := os.DirFS("../../docs/reference/cli")
	page := func(name string) string {
		text, err := fs.ReadFile(reference, name+".md")
		if err != nil {
			return ""
		}
		return string(text)
	}
	for text, want := range map[string]string{
		"`bailment status`, `bailment run -- x --nonsense`, `bailment ledger show 7`": "",
		"`bailment gone`":                 "no such command",
		"`bailment ledger gone`":          "no such command",
		"`bailment status now`":           "no such command",
		"`bailment status --gone`":        "no flag --gone",
		"`bailment secret put --gone=x`":  "no flag --gone",
		"`bailment status -o json --env`": "",
	} {
		if _, bad := misnamed(text, page); (len(bad) == 0) != (want == "") || want != "" && !strings.Contains(bad[0], want) {
			t.Errorf("%s: %q, want %q", text, bad, want)
		}
	}
	total := 0
	for _, path := range pagesOf(t) {
		n, bad := misnamed(document(t, path), page)
		total += n
		for _, x := range bad {
			t.Errorf("%s names %s", path, x)
		}
	}
	if total < 15 {
		t.Errorf("only %d commands were found", total)
	}
}

// pagesOf are the Markdown files of the working tree, without what .gitignore leaves out of it: the quickstart makes a directory here.
func pagesOf(t *testing.T) []string {
	t.Helper()
	var out []string
	ignored := "\n" + document(t, ".gitignore")
	err := fs.WalkDir(os.DirFS("../.."), ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || strings.Contains(ignored, "\n/"+path+"/\n")):
			return fs.SkipDir
		case !d.IsDir() && filepath.Ext(path) == ".md":
			out = append(out, path)
		}
		return nil
	})
	if err != nil || len(out) < 40 {
		t.Fatalf("%d pages were found: %v", len(out), err)
	}
	return out
}
