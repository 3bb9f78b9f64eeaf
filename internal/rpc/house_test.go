package rpc_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/server/servertest"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// within fails the test if the condition does not come true in time. It looks again at every tick: what is
// waited for happens in another goroutine, and gives no signal.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// want checks an error's code and reason.
func want(t *testing.T, err error, code connect.Code, reason string) *pb.Problem {
	t.Helper()
	if connect.CodeOf(err) != code || servertest.Reason(err) != reason {
		t.Fatalf("got %v (%s), want %s (%s)", err, servertest.Reason(err), code, reason)
	}
	p := servertest.ProblemOf(err)
	if p.Message == "" || p.Fix == "" || len(p.RequestId) != 16 || p.Kind == "" {
		t.Fatalf("the problem says too little: %v", p)
	}
	return p
}

func put(t *testing.T, s *servertest.Session, secret, value string) *pb.PutResponse {
	t.Helper()
	r, err := s.Secret.Put(t.Context(), &pb.PutRequest{Secret: secret, Value: []byte(value)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// blocked stops the ledger's committer until the returned function is called.
func blocked(t *testing.T, h *servertest.House) (release func()) {
	t.Helper()
	in, out := make(chan struct{}), make(chan struct{})
	go func() {
		_, _, _ = ledger.Commit(context.Background(), h.Env().Ledger(), func(*state.State, ledger.At) (ledger.Draft, struct{}, error) {
			close(in)
			<-out
			return ledger.Draft{}, struct{}{}, nil
		})
	}()
	<-in
	done := false
	release = func() {
		if !done {
			done = true
			close(out)
		}
	}
	t.Cleanup(release)
	return release
}

// sums are the counted denials of a method, by reason.
func sums(t *testing.T, h *servertest.House, method string) map[string]uint64 {
	t.Helper()
	if err := h.Env().FlushDenials(t.Context()); err != nil {
		t.Fatal(err)
	}
	out := make(map[string]uint64)
	err := h.Env().Ledger().Entries(t.Context(), 0, 100_000, func(_ uint64, x store.Entry) error {
		e, err := state.Decode(x.Body)
		if err != nil {
			return err
		}
		if d, ok := e.Event.(*state.DenialsSummed); ok && d.Method == method {
			out[d.Reason] += d.Count
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// post sends a body as it is.
func post(t *testing.T, c *http.Client, url, contentType string, body io.Reader) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(b)
}

func text(s string) io.Reader { return strings.NewReader(s) }
