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
// proc_pid_maps(5) says: ADDRESS-ADDRESS PERMISSIONS OFFSET DEVICE INODE PATH, of which PATH may have spaces.
func codeOf(maps, program string) [][2]uintptr {
	var out [][2]uintptr
	for lines := bufio.NewScanner(strings.NewReader(maps)); lines.Scan(); {
		line := lines.Text()
		fields := strings.Fields(line)
		if len(fields) < 6 || !strings.HasSuffix(line, " "+program) || strings.Contains(fields[1], "w") {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		begin, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 == nil && err2 == nil && begin < end {
			out = append(out, [2]uintptr{uintptr(begin), uintptr(end)})
		}
	}
	return out
}

// code is codeOf this process; nothing if the kernel does not say.
func code() [][2]uintptr {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil
	}
	return codeOf(string(maps), program)
}

// unlockCode takes the lock off the program's code and constants, which are public: locked, they would be memory that the kernel
// can't use for anything else, whether or not they are ever executed again. That it fails costs memory only.
func unlockCode() {
	for _, m := range code() {
		_ = unix.Munlock(mapped(m))
	}
}

// forgetCode takes the pages of code and constants out of this process. What is needed again, the kernel maps again.
func forgetCode() {
	for _, m := range code() {
		_ = unix.Madvise(mapped(m), unix.MADV_DONTNEED)
	}
}

// mapped is memory that is not Go's, for system calls that want its place and length, and do not read it.
func mapped(m [2]uintptr) []byte {
	return unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&m[0]))), m[1]-m[0])
}
