package server_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/server/servertest"
)

// fallen is a session of a node that was revoked, and one that the same node has proved anew.
func fallen(t *testing.T, h *servertest.House) (stolen, mended *servertest.Session) {
	t.Helper()
	stolen = h.Node("web-1")
	if _, err := h.Login("alice").Revocation.Revoke(t.Context(), &pb.RevokeRequest{
		Scope: "node:/node/join-token/web-1", Reason: "stolen", Hold: pb.RevokeRequest_HOLD_NO,
	}); err != nil {
		t.Fatal(err)
	}
	return stolen, h.Node("web-1")
}

func reasonOfGet(t *testing.T, s *servertest.Session) string {
	t.Helper()
	_, err := s.Secret.Get(t.Context(), &pb.GetRequest{Secret: "app/password"})
	return servertest.Reason(err)
}

// Who has the key of a session that was revoked uses up nothing of its identity's requests. Who proved that identity anew
// works on.
func TestFallenSessionHasItsOwnRate(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) {
		c.Limits.IdentityRequests = config.Rate{PerSecond: 0.01, Burst: 8}
	}})
	stolen, mended := fallen(t, h)
	for i := range 20 {
		if r := reasonOfGet(t, stolen); i < 8 && r != "cutoff" || i >= 8 && r != "rate-limited" { // it has limits, too
			t.Fatalf("request %d of the revoked session: %s", i, r)
		}
	}
	if r := reasonOfGet(t, mended); r == "rate-limited" || r == "cutoff" {
		t.Errorf("who proved that identity anew is refused: %s", r)
	}
}

// The same with the rate of those who proved an identity, at one address.
func TestFallenSessionHasAStrangersRate(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) {
		c.Limits.SourceRequests = config.Rate{PerSecond: 0.01, Burst: 20}
	}})
	stolen, mended := fallen(t, h)
	within(t, "it is slowed down", func() bool { return reasonOfGet(t, stolen) == "rate-limited" })
	if r := reasonOfGet(t, mended); r == "rate-limited" || r == "cutoff" {
		t.Errorf("who proved that identity anew is refused: %s", r)
	}
}

// The same with streams, which whoever reads nothing holds for long.
func TestFallenSessionHasItsOwnStreams(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) { c.Limits.IdentityStreams = 2 }})
	stolen, mended := fallen(t, h)
	for range 4 { // each over a connection of its own, as the server ends one with its first answer
		parkAs(t, h, stolen.Cert, "/bailment.v1.WatchService/Watch", "application/connect+json", "\x00\x00\x00\x00\x02{}", 1)
	}
	within(t, "two of its streams are there", func() bool { return metric(t, h, inFlight) >= 2 })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 2 {
		w, err := mended.Watch.Watch(ctx, &pb.WatchRequest{})
		if err == nil && !w.Receive() {
			err = w.Err()
		}
		if err != nil {
			t.Errorf("a stream beside those of the revoked session: %v", err)
		}
	}
}

// Nor does it keep its place, or its larger part of what is there, among those that proved an identity.
func TestFallenSessionIsAStranger(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) { c.Limits.UnprovedStreams = 2 }})
	stolen, mended := fallen(t, h)
	for s, ends := range map[*servertest.Session]bool{stolen: true, mended: false} {
		for _, ask := range [][2]string{{http.MethodPost, "/bailment.v1.SecretService/Get"}, {http.MethodPost, getEnvironment}, {http.MethodGet, getEnvironment}, {http.MethodGet, "/livez"}, {http.MethodGet, "/"}} {
			req, err := http.NewRequestWithContext(t.Context(), ask[0], h.URL()+ask[1], strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			res, err := h.Client(s.Cert, false).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.Close != ends {
				t.Errorf("%s: the connection ends: %v, want %v (%s)", ask, res.Close, ends, res.Status)
			}
		}
	}
	p := parkAs(t, h, stolen.Cert, "/bailment.v1.WatchService/Watch", "application/connect+json", "\x00\x00\x00\x00\x02{}", 8)
	within(t, "its streams are there", func() bool { return p.headers.Load() > 0 })
	for range 5 {
		if n := metric(t, h, inFlight); n > 2 {
			t.Fatalf("it has %d streams", n)
		}
	}
}

// Nor does it count among the identity's requests, whatever it asks: not even first over connections of before it fell.
func TestFallenSessionFillsNothing(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) {
		c.Limits.OpenRequests, c.Limits.ConnectionStreams, c.Limits.UnprovedRequests = 32, 4, 256
	}})
	stolen := h.Node("web-1")
	var before []*parked
	for range 6 {
		p := park(t, h, stolen.Cert, getEnvironment, 1)
		before = append(before, p)
		within(t, "it is proved", func() bool { return p.headers.Load() == 1 })
		if _, err := p.conn.Write(frame(frameReset, 0, 1, []byte{0, 0, 0, 8})); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Login("alice").Revocation.Revoke(t.Context(), &pb.RevokeRequest{
		Scope: "node:/node/join-token/web-1", Reason: "stolen", Hold: pb.RevokeRequest_HOLD_NO,
	}); err != nil {
		t.Fatal(err)
	}
	mended := h.Node("web-1")
	within(t, "all is quiet", func() bool { return metric(t, h, inFlight) == 0 })
	for _, p := range before {
		if _, err := p.conn.Write(append(headers(h, 3, getEnvironment, "application/json"), frame(frameData, endStream, 3, []byte("{}"))...)); err != nil {
			t.Fatal(err)
		}
		within(t, "it is answered", func() bool { return p.headers.Load()+p.ended.Load() == 2 }) // and not taken
	}
	if r := reasonOfGet(t, mended); r == "overloaded" {
		t.Error("who proved that identity anew is refused")
	}
	if n := metric(t, h, `bailment_requests_refused_total{limit="identity"}`); n != 0 {
		t.Errorf("%d count as the identity's", n)
	}
}

// Its failed proofs are not the identity's, either.
func TestFallenSessionFailsForItself(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) {
		c.Limits.UnprovedAttempts = config.Rate{PerSecond: 0.001, Burst: 3}
	}})
	stolen, mended := fallen(t, h)
	_, csr, err := servertest.Key()
	if err != nil {
		t.Fatal(err)
	}
	fail := func(s *servertest.Session) string {
		c, err := s.Attestation.Challenge(t.Context(), &pb.ChallengeRequest{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Attestation.Login(t.Context(), &pb.LoginRequest{Challenge: c.Challenge, Person: "alice", Csr: csr})
		return servertest.Reason(err)
	}
	for range 3 {
		if r := fail(stolen); r == "rate-limited" {
			t.Fatal(r)
		}
	}
	if r := fail(stolen); r != "rate-limited" {
		t.Errorf("the revoked session's fourth failure: %s", r)
	}
	if r := fail(mended); r == "rate-limited" {
		t.Error("they are counted as those of who proved that identity anew")
	}
}
