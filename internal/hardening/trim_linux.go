package hardening

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// codeOf lists where the program's own file is mapped without the right to write: its code and constants. maps is what
// proc_pid_maps(5) says: ADDRESS-ADDRESS PERMISSIONS OFFSET DEVICE INODE PATH, of which PATH may have spaces. It may be
// proc_pid_smaps(5), too: what is not only the file's any more is left out then. A program that is loaded anywhere (PIE) has constants
// with addresses, which its loader wrote before it took the right to write away.
func codeOf(maps, program string) [][2]uintptr {
	var out [][2]uintptr
	last := false // the newest of out is what smaps tells of now
	for lines := bufio.NewScanner(strings.NewReader(maps)); lines.Scan(); {
		line := lines.Text()
		fields := strings.Fields(line)
		if len(fields) > 0 && strings.HasSuffix(fields[0], ":") {
			if written := fields[0] == "Anonymous:" || fields[0] == "Swap:"; last && written && (len(fields) < 2 || fields[1] != "0") {
				out, last = out[:len(out)-1], false
			}
			continue
		}
		last = false
		if len(fields) < 6 || !strings.HasSuffix(line, " "+program) || strings.Contains(fields[1], "w") {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		begin, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 == nil && err2 == nil && begin < end {
			out, last = append(out, [2]uintptr{uintptr(begin), uintptr(end)}), true
		}
	}
	return out
}

// code is codeOf this process, by one of the two files; nothing if the kernel does not say.
func code(file string) [][2]uintptr {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil
	}
	maps, err := os.ReadFile("/proc/self/" + file)
	if err != nil {
		return nil
	}
	return codeOf(string(maps), program)
}

// unlockCode takes the lock off the program's code and constants, which are public: locked, they would be memory that the kernel
// can't use for anything else, whether or not they are ever executed again. That it fails costs memory only.
func unlockCode() {
	for _, m := range code("maps") {
		_ = unix.Munlock(mapped(m))
	}
}

// forgetCode takes the pages of code and constants out of this process. What is needed again, the kernel maps again, as it is in the
// file: so pages that are otherwise by now must stay.
func forgetCode() {
	for _, m := range code("smaps") {
		_ = unix.Madvise(mapped(m), unix.MADV_DONTNEED)
	}
}

// mapped is memory that is not Go's, for system calls that want its place and length, and do not read it.
func mapped(m [2]uintptr) []byte {
	return unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&m[0]))), m[1]-m[0])
}
