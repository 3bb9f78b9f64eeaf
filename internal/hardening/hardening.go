// Package hardening keeps secrets of a running process from reaching the disk by way of the
// operating system: no core dumps, and no swapping where the system allows it.
//
// Guaranteed: after Harden, what its Report says is done is done, for the rest of the process.
// Not guaranteed: that memory is locked (an unprivileged process often may not; the report says
// why not), anything against root, a debugger attached before, hibernation, or a hypervisor that
// snapshots its guest. Called once by the composition roots of server and agent, first of all.
package hardening

import (
	"log/slog"
	"runtime/debug"
)

// Report is what Harden achieved.
type Report struct {
	CoreDumpsOff bool
	CoreDumpsWhy string // why not; empty when off
	MemoryLocked bool
	MemoryWhy    string // why not; empty when locked
}

// Harden turns off core dumps and locks the process's memory, all but the program's own code and constants. It never fails: what could not be
// done is in the report, and in one warning each in the log. A child process inherits the core
// limit, not the lock.
func Harden(log *slog.Logger) Report {
	var r Report
	if err := disableCoreDumps(); err != nil {
		r.CoreDumpsWhy = err.Error()
		log.Warn("core dumps are not off: a crash may write secrets to disk", "reason", r.CoreDumpsWhy)
	} else {
		r.CoreDumpsOff = true
	}
	if err := lockMemory(); err != nil {
		r.MemoryWhy = err.Error()
		log.Warn("memory is not locked: secrets may reach the swap device", "reason", r.MemoryWhy,
			"fix", "grant CAP_IPC_LOCK or set LimitMEMLOCK=infinity, or use encrypted swap or none")
	} else {
		r.MemoryLocked = true
	}
	return r
}

// Trim gives back to the system what only the start of a program needed: free pages of its heap, and pages of its code and constants,
// of which a start touches most and what follows a third. It takes some milliseconds, and is for a program that is going to wait.
func Trim() {
	debug.FreeOSMemory()
	forgetCode()
}
