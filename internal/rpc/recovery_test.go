package rpc_test

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/server/servertest"
)

// A recovery is begun, shown and withdrawn without a session; what is none is refused, counted and limited.
func TestRecoveryWithoutSession(t *testing.T) {
	var founding policy.Files
	h := servertest.Start(t, servertest.Options{
		Files: func(name string, p servertest.People) policy.Files {
			founding = servertest.Bundle(name, p)
			// mallory is a person of the house, and no operator of it.
			founding["environment.yaml"] = fmt.Appendf(founding["environment.yaml"], "  recovery:\n    required: 1\n    delay: 240h\n    keys: [{person: rita, key: %q}]\n",
				ssh.MarshalAuthorizedKey(p["mallory"].PublicKey()))
			return founding
		},
		Configure: func(c *config.Server) { c.Limits.UnprovedAttempts = config.Rate{PerSecond: 0.01, Burst: 3} },
	})
	anybody := h.Clients(nil)
	none, err := anybody.Recovery.GetRecovery(t.Context(), &pb.GetRecoveryRequest{})
	if err != nil || none.Recovery != nil || none.Version != 1 || none.Previous != "" {
		t.Fatalf("%v %v", none, err)
	}
	base, err := policy.BuildManifest(founding, policy.Header{Environment: h.Name, Version: none.Version})
	if err != nil || base.Digest().String() != none.Bundle {
		t.Fatalf("the files are %s, and %s is in force: %v", base.Digest(), none.Bundle, err)
	}
	operators := append([]byte("# recovered\n"), founding[founding.OperatorsFile()]...)
	m, after, err := policy.Recovered(base, policy.Digest(h.Genesis), founding, operators)
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.CompileRecovered(after)
	if err != nil {
		t.Fatal(err)
	}
	text := ceremony.Recovery{
		Scope: ceremony.Scope{Environment: h.Name, Genesis: h.Genesis}, Base: none.Bundle, New: m.Digest().String(), Operators: policy.OperatorsDigest(operators).String(),
		Required: 1, Delay: 240 * time.Hour, Nonce: fmt.Sprintf("%x", sha256.Sum256(nil))[:32], Expires: time.Now().Add(time.Hour).UTC().Truncate(time.Second),
		Reason: "test", Before: p.Persons(), After: p.Persons(),
	}.Text()
	start := func(by string) (*pb.StartRecoveryResponse, error) {
		return anybody.Recovery.StartRecovery(t.Context(), &pb.StartRecoveryRequest{
			Text: text, Operators: operators, Signatures: []*pb.Signature{{Person: "rita", Sshsig: h.Sign(by, ceremony.NamespaceRecovery, text)}},
		})
	}
	for range 2 {
		_, err = start("alice")
		want(t, err, connect.CodeUnauthenticated, "bad-signature")
	}
	began, err := start("mallory")
	if err != nil {
		t.Fatal(err)
	}
	shown, err := anybody.Recovery.GetRecovery(t.Context(), &pb.GetRecoveryRequest{})
	if err != nil || shown.Recovery.GetRecovery() != began.Recovery || shown.Recovery.Text != text || len(shown.Recovery.Signatures) != 1 || !shown.Recovery.Until.AsTime().Equal(began.Until.AsTime()) {
		t.Fatalf("%v %v", shown, err)
	}
	list, err := h.Login("alice").Change.ListChanges(t.Context(), &pb.ListChangesRequest{})
	if err != nil || list.Recovery != began.Recovery || !list.RecoveryUntil.AsTime().Equal(began.Until.AsTime()) {
		t.Fatalf("%v %v", list, err)
	}
	gone := ceremony.Withdrawal{
		Scope: ceremony.Scope{Environment: h.Name, Genesis: h.Genesis}, Recovery: began.Recovery, New: m.Digest().String(), Person: "rita", Reason: "test",
	}.Text()
	withdraw := func(by string) error {
		_, err := anybody.Recovery.WithdrawRecovery(t.Context(), &pb.WithdrawRecoveryRequest{
			Text: gone, Signature: &pb.Signature{Sshsig: h.Sign(by, ceremony.NamespaceRecovery, gone)},
		})
		return err
	}
	want(t, withdraw("bob"), connect.CodeUnauthenticated, "bad-signature")
	want(t, withdraw("bob"), connect.CodeResourceExhausted, "rate-limited")
	if got := sums(t, h, "recovery"); got["bad-signature"] != 3 || got["rate-limited"] != 1 {
		t.Errorf("counted %v", got)
	}
}
