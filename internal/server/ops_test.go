package server_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
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
	end, open := time.Now().Add(time.Second), 0
	for _, c := range all {
		_ = c.SetReadDeadline(end)
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			open++
		}
	}
	if open == 0 || open > 64 {
		t.Errorf("%d connections are open", open)
	}
}
