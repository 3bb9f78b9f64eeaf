package job

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/problem"
)

// shortestLine is the least that a line of a value of several lines has, to be masked: a runner that masks "}" everywhere hides the whole log,
// and nothing of the value.
const shortestLine = 4

// maskCommands is what GitHub's runner is told to take the values out of its log (GitHub Docs, "Workflow commands": add-mask; the escapes are package
// @actions/core's). It looks at its log line by line, so every line of a value is named by itself.
func maskCommands(values [][]byte) []byte {
	var out bytes.Buffer
	for _, value := range values {
		lines := bytes.FieldsFunc(value, func(r rune) bool { return r == '\n' || r == '\r' })
		for _, line := range lines {
			line = bytes.TrimSpace(line)
			if len(line) == 0 || len(lines) > 1 && len(line) < shortestLine {
				continue
			}
			out.WriteString("::add-mask::")
			out.Write(bytes.ReplaceAll(line, []byte("%"), []byte("%25")))
			out.WriteByte('\n')
		}
	}
	return out.Bytes()
}

// mask tells the runner the values, if what is written to is the runner's log. Anywhere else (a file, a pipeline) they would stay.
func (j *job) mask(values [][]byte) error {
	commands := maskCommands(values)
	defer clear(commands)
	if len(commands) == 0 {
		return nil
	}
	log := stepsLog(os.Getppid(), j.Stdout, j.Stderr)
	if log == nil {
		j.Warn("the values are not masked in the job's log: neither output of this command is the step's own")
		return nil
	}
	if _, err := log.Write(commands); err != nil {
		return problem.New(problem.ReasonInvalid, "telling the runner which values to mask: the job's log can't be written to")
	}
	return nil
}

// runner is the name of the process that runs a job's steps (proc(5), comm).
const runner = "Runner.Worker"

// stepsLog is the first of the streams that is a pipe to the runner, which reads both outputs of a step and looks for its commands in both. That is so if the parent, a
// step's shell, has the same pipe as one of its outputs: a stream that was redirected is another file than the shell's. If the shell was replaced (exec), the parent
// is the runner, and has the pipe's other end. In a container the runner is outside, so that there is no parent at all.
func stepsLog(parent int, streams ...*os.File) *os.File {
	for _, f := range streams {
		var ours unix.Stat_t
		if f == nil || unix.Fstat(int(f.Fd()), &ours) != nil || ours.Mode&unix.S_IFMT != unix.S_IFIFO && ours.Mode&unix.S_IFMT != unix.S_IFSOCK {
			continue
		}
		if parent == 0 {
			return f
		}
		pattern := fmt.Sprintf("/proc/%d/fd/[12]", parent)
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", parent)); err == nil && string(name) == runner+"\n" {
			pattern = fmt.Sprintf("/proc/%d/fd/*", parent)
		}
		all, _ := filepath.Glob(pattern) // the pattern is not malformed
		for _, path := range all {
			var theirs unix.Stat_t
			if unix.Stat(path, &theirs) == nil && theirs.Dev == ours.Dev && theirs.Ino == ours.Ino {
				return f
			}
		}
	}
	return nil
}
