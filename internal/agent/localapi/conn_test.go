package localapi

import (
	"errors"
	"net"
	"os"
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
