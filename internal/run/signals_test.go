package run

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A signal that came before the secrets did ends the run, however close it was.
func TestSignalComesFirst(t *testing.T) {
	done := make(chan struct{})
	close(done)
	for range 100 {
		signals := make(chan os.Signal, 1)
		signals <- unix.SIGINT
		if s := <-interrupted(signals, done, func() {}); s != unix.SIGINT {
			t.Fatalf("it was told of %v", s)
		}
	}
	if s := <-interrupted(make(chan os.Signal), done, func() {}); s != 0 {
		t.Errorf("it was told of %v", s)
	}
}
