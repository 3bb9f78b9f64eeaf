package localapi

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A byte behind the last request is noticed, whether it came before that one was known to be the last or after.
func TestLast(t *testing.T) {
	for _, early := range []bool{true, false} {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		var ends [2]net.Conn
		for i, fd := range fds {
			f := os.NewFile(uintptr(fd), "")
			if ends[i], err = net.FileConn(f); err != nil {
				t.Fatal(err)
			}
			f.Close()
			defer ends[i].Close()
		}
		c := &Conn{UnixConn: ends[0].(*net.UnixConn)}
		send := func() {
			if _, err := ends[1].Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		read := func() error { _, err := c.Read(make([]byte, 1)); return err }
		if early {
			send()
			if err := read(); err != nil {
				t.Fatal(err)
			}
		}
		if more := c.Last(); more != early {
			t.Errorf("more came: %v, want %v", more, early)
		}
		if send(); !errors.Is(read(), errMore) {
			t.Error("what comes after the last request is taken")
		}
	}
}

// Who is shut out is told once, not for each connection; again after there was plenty of room between.
func TestFullIsToldOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := Listen(path, 8, 4)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan uint32, 100)
	l.Full = func(uid uint32) { told <- uid }
	accepted := make(chan net.Conn, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	overfill := func() {
		var shut []net.Conn
		for range 7 {
			shut = append(shut, dial())
		}
		for _, c := range shut[4:] { // in the order in which they came
			_, _ = c.Read(make([]byte, 1))
		}
	}
	empty := func() {
		for range 4 {
			(<-accepted).Close()
		}
	}
	for round := 1; round <= 2; round++ {
		overfill()
		if n := len(told); n != round {
			t.Errorf("round %d: told %d times", round, n)
		}
		empty()
	}
	if uid := <-told; int(uid) != os.Getuid() {
		t.Errorf("of user %d", uid)
	}
	l.Close()
	for range accepted {
		t.Error("more were let in")
	}
}
