package server_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/server/servertest"
)

// Whoever is on the server's machine can't take all of its descriptors by the plain port, nor keep others from it.
func TestOpsPortIsBounded(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	var all []net.Conn
	for range 300 {
		c, err := net.Dial("tcp", h.Server.OpsAddr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all = append(all, c)
		_, _ = c.Write([]byte("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")) // it may have made room already
	}
	if code, _ := get(t, http.DefaultClient, h.OpsURL()+"/livez"); code != http.StatusOK {
		t.Error(code)
	}
	var open atomic.Int64
	var wg sync.WaitGroup
	for _, c := range all { // each by itself: after its deadline, a read does not look whether a connection has ended
		wg.Go(func() {
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				open.Add(1)
			}
		})
	}
	if wg.Wait(); open.Load() == 0 || open.Load() > 64 {
		t.Errorf("%d connections are open", open.Load())
	}
}
