package workload

import (
	"bytes"
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Bounds of what is read of /proc, in bytes.
const (
	maxStat   = 4 << 10
	maxStatus = 16 << 10 // the list of groups is the long part, and stands behind what is looked for
	maxCgroup = 32 << 10
)

// errShape is a file of /proc that is not as proc(5) says.
var errShape = errors.New("a file of /proc has another form than the kernel gives it")

// with calls fn with the descriptor of f, which stays open meanwhile, also when somebody closes f.
func with(f *os.File, fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// openAt opens a name below a directory of /proc, again if a signal came in between.
func openAt(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// readAt reads a small file below a directory of /proc.
func readAt(dir int, name string, most int) ([]byte, error) {
	fd, err := openAt(dir, name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return reread(fd, most)
}

// reread reads a file of /proc from its beginning, which has the kernel write it anew. More than most bytes is an error, and never a
// shorter file. The files that are read so are one record, which the kernel never gives in part to a buffer with room
// for it (single_open of linux/seq_file.h): what leaves room is the whole.
func reread(fd, most int) ([]byte, error) {
	for size := 512; ; size *= 4 {
		size = min(size, most+1)
		buf := make([]byte, size)
		n, err := unix.Pread(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			size /= 4
		case err != nil:
			return nil, err
		case n < size:
			return buf[:n], nil
		case size > most:
			return nil, errShape
		}
	}
}

func readlinkAt(dir int, name string) string {
	var buf [256]byte
	n, err := unix.Readlinkat(dir, name, buf[:])
	if err != nil || n == len(buf) {
		return ""
	}
	return string(buf[:n])
}

// stat is what is used of /proc/PID/stat (proc_pid_stat(5)).
type stat struct {
	state byte
	ppid  int32
	start uint64 // clock ticks after the machine's start
	image image
}

// image are the addresses at which the program in execution stands. With address space layout randomization they are others
// after each execve, of the same file too. The kernel shows them (and others than 0 and 1) only to whom it lets read the
// executable, and a change from shown to hidden is a change.
type image struct{ startCode, endCode, startStack uint64 }

// maxComm is more than the kernel's longest name of a process: 15 bytes, or what a kernel thread is called, 63.
const maxComm = 64

// parseStat reads /proc/PID/stat. The name in the second field may hold anything, also ") R 1 2 3": it ends at the last
// parenthesis, since all that follows it are numbers and one letter.
func parseStat(text []byte) (stat, error) {
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 2 || end < open || end-open-1 > maxComm || text[open-1] != ' ' {
		return stat{}, errShape
	}
	if _, ok := number(text[:open-1], 31); !ok {
		return stat{}, errShape
	}
	rest, ok := bytes.CutPrefix(bytes.TrimSuffix(text[end+1:], []byte{'\n'}), []byte{' '})
	if !ok {
		return stat{}, errShape
	}
	const last = 28 // startstack
	var out stat
	for field := 3; field <= last; field++ {
		var word []byte
		if word, rest, ok = bytes.Cut(rest, []byte{' '}); !ok && field < last || len(word) == 0 {
			return stat{}, errShape
		}
		var v uint64
		ok = true
		switch field {
		case 3:
			if out.state, ok = word[0], len(word) == 1 && word[0] >= 'A' && word[0] <= 'z'; !ok {
				return stat{}, errShape
			}
			continue
		case 4:
			v, ok = number(word, 31)
			out.ppid = int32(v)
		case 22:
			out.start, ok = number(word, 64)
		case 26:
			out.image.startCode, ok = number(word, 64)
		case 27:
			out.image.endCode, ok = number(word, 64)
		case 28:
			out.image.startStack, ok = number(word, 64)
		}
		if !ok {
			return stat{}, errShape
		}
	}
	return out, nil
}

func number(word []byte, bits int) (uint64, bool) {
	v, err := strconv.ParseUint(string(word), 10, bits)
	return v, err == nil
}

// over reports whether the process has ended, and only its number is left.
func (s stat) over() bool { return s.state == 'Z' || s.state == 'X' || s.state == 'x' }

// readStat reads the stat of a process by its directory, restat by the open file.
func readStat(dir int) (stat, error) {
	fd, err := openAt(dir, "stat", unix.O_RDONLY)
	if err != nil {
		return stat{}, err
	}
	defer unix.Close(fd)
	return restat(fd)
}

func restat(fd int) (stat, error) {
	text, err := reread(fd, maxStat)
	if err != nil {
		return stat{}, err
	}
	return parseStat(text)
}

// effectiveUID is the second number behind Uid in /proc/PID/status. Nothing before that line can hold a line's end: the kernel
// escapes it in the name.
func effectiveUID(dir int) (uint32, error) {
	text, err := readAt(dir, "status", maxStatus)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		rest, ok := bytes.CutPrefix(line, []byte("Uid:\t"))
		if !ok {
			continue
		}
		words := bytes.Fields(rest)
		if len(words) != 4 {
			break
		}
		if uid, ok := number(words[1], 32); ok {
			return uint32(uid), nil
		}
		break
	}
	return 0, errShape
}
