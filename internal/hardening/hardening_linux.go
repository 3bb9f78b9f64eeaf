package hardening

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// disableCoreDumps sets both switches: the limit stops files, and not being dumpable also stops
// handlers that the kernel pipes dumps to, which ignore a limit of 0 (core(5)). As a side effect
// other processes of the same user can no longer trace this one (ptrace(2)).
func disableCoreDumps() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("set the core size limit to 0: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process not dumpable: %w", err)
	}
	return nil
}

// lockMemory locks present and future pages as they are touched. MCL_ONFAULT matters: without it
// the kernel would fill every reserved page, and an idle process would weigh hundreds of MiB.
//
// It is done only when the lock can have no limit. Under one, mlockall may succeed now and make a
// later growth of the heap fail, which the Go runtime answers by ending the process.
func lockMemory() error {
	if err := unlimitMemlock(); err != nil {
		return err
	}
	err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	if err != nil {
		return fmt.Errorf("mlockall: %w", err)
	}
	unlockCode()
	return nil
}

func unlimitMemlock() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return fmt.Errorf("read the locked memory limit: %w", err)
	}
	if limit.Cur == unix.RLIM_INFINITY || holdsIPCLock() {
		return nil
	}
	if limit.Max != unix.RLIM_INFINITY {
		return fmt.Errorf("the locked memory limit is %d KiB and CAP_IPC_LOCK is missing", limit.Max/1024)
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return fmt.Errorf("lift the locked memory limit: %w", err)
	}
	return nil
}

// holdsIPCLock reports whether the limit doesn't apply. In a user namespace the capability is
// shown but means nothing to mlockall, so it counts only where user IDs are mapped to themselves.
func holdsIPCLock() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil || data[0].Effective&(1<<unix.CAP_IPC_LOCK) == 0 {
		return false
	}
	ids, err := os.ReadFile("/proc/self/uid_map")
	if errors.Is(err, os.ErrNotExist) {
		return true // no user namespaces in this kernel
	}
	return err == nil && strings.Join(strings.Fields(string(ids)), " ") == "0 0 4294967295"
}
