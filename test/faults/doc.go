// Package faults has no code: its tests run the real binary, break what is below it, and look at
// what is left. It is killed at random moments under load, its system calls fail one by one, its
// disk fills up, and under strace the order of its writes is compared with its answers. Two planted
// builds, one that does not sync and one that answers too early, must fail the same tests.
package faults
