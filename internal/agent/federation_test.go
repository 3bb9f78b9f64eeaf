package agent_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/server/servertest"
)

// realm is a real server and a real agent of one environment, with its operator.
type realm struct {
	t     *testing.T
	house *servertest.House
	alice *servertest.Clients
	addr  string
}

func newRealm(t *testing.T, name string) *realm {
	t.Helper()
	h := servertest.Start(t, servertest.Options{Name: name})
	s := h.Login("alice")
	return &realm{t, h, s.Clients, serveWorkloads(t, h.Bootstrap(), h.Token(s, "web-1").Reveal())}
}

func (r *realm) app() spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://" + r.house.Name + "/workload/app")
}

func (r *realm) source() *spiffe.X509Source {
	r.t.Helper()
	s, err := spiffe.NewX509Source(r.t.Context(), spiffe.WithClientOptions(spiffe.WithAddr(r.addr)))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = s.Close() })
	return s
}

// change proposes and approves a change of the bundle.
func (r *realm) change(edit func(policy.Files)) {
	t, h := r.t, r.house
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	nonce := func() string {
		b := make([]byte, 16)
		_, err := rand.Read(b)
		must(err)
		return hex.EncodeToString(b)
	}
	now, err := r.alice.Change.GetBundle(t.Context(), &pb.GetBundleRequest{})
	must(err)
	base, err := policy.ParseManifest([]byte(now.Manifest))
	must(err)
	by := make(map[policy.Digest][]byte)
	for _, b := range now.Files {
		by[sha256.Sum256(b)] = b
	}
	files := make(policy.Files)
	for _, f := range base.Files() {
		files[f.Path] = by[f.Digest]
	}
	before := maps.Clone(files)
	edit(files)
	m, err := policy.BuildManifest(files, policy.Header{
		Environment: h.Name, Genesis: h.Genesis, Version: base.Header().Version + 1, Previous: base.Digest(),
	})
	must(err)
	text := ceremony.Change{
		Scope: ceremony.Scope{Environment: h.Name, Genesis: h.Genesis, Epoch: h.Env().State().Env.Epoch}, Action: "bundle",
		Base: base.Digest().String(), New: m.Digest().String(), Role: ceremony.Proposer, Person: "alice",
		Nonce: nonce(), Expires: time.Now().Add(time.Hour).UTC().Truncate(time.Second), Reason: "a test",
	}
	text.Rollback, err = policy.RollbackDigest(m, before, files, nil)
	must(err)
	ask := &pb.ProposeRequest{
		Action: "bundle", Manifest: string(m.Text()), Text: text.Text(), Expires: timestamppb.New(text.Expires), Reason: text.Reason,
		Signature:         &pb.Signature{Sshsig: h.Sign("alice", ceremony.NamespaceChange, text.Text())},
		ManifestSignature: &pb.Signature{Sshsig: h.Sign("alice", ceremony.NamespaceBundle, string(m.Text()))},
	}
	for _, b := range files {
		ask.Files = append(ask.Files, b)
	}
	p, err := r.alice.Change.Propose(t.Context(), ask)
	must(err)
	text.Role, text.Number, text.Nonce = ceremony.Approver, p.Change, nonce()
	_, err = r.alice.Change.Approve(t.Context(), &pb.ApproveRequest{
		Change: p.Change, Text: text.Text(), Signature: &pb.Signature{Sshsig: h.Sign("alice", ceremony.NamespaceChange, text.Text())},
	})
	must(err)
}

// federate has the environment's app know another environment.
func (r *realm) federate(other *realm) {
	r.t.Helper()
	bundle, err := other.house.Env().TrustBundle()
	if err != nil {
		r.t.Fatal(err)
	}
	r.change(func(files policy.Files) {
		files["federation/other.yaml"] = fmt.Appendf(nil, `apiVersion: bailment/v1
kind: Federation
metadata:
  name: other
spec:
  trustDomain: %s
  endpoint:
    url: %s/spiffe/bundle
    profile: https_spiffe
    id: spiffe://%[1]s/server/test
  bundle: '%[3]s'
`, other.house.Name, other.house.URL(), bytes.TrimSpace(bundle))
		const nodes = "  nodes: [/node/join-token/*]\n"
		files["identities/machines.yaml"] = bytes.Replace(files["identities/machines.yaml"], []byte(nodes), []byte(nodes+"  federatesWith: [other]\n"), 1)
	})
}

// Two federated environments: their workloads authenticate each other, while both environments rotate their CAs.
func TestFederatedWorkloads(t *testing.T) {
	a, b := newRealm(t, "east"), newRealm(t, "west")
	sa, sb := a.source(), b.source()
	server := tlsconfig.MTLSServerConfig(sb, sb, tlsconfig.AuthorizeID(a.app()))
	client := tlsconfig.MTLSClientConfig(sa, sa, tlsconfig.AuthorizeID(b.app()))
	if err := handshakeOf(server, client); err == nil {
		t.Error("strangers authenticated each other")
	}
	a.federate(b)
	b.federate(a)
	eventually(t, "the two to know each other", func() bool { return handshakeOf(server, client) == nil })
	first, err := sa.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}

	var handshakes atomic.Int64
	failed := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		defer close(failed)
		for ctx.Err() == nil {
			if err := handshakeOf(server, client); err != nil {
				failed <- err
				return
			}
			handshakes.Add(1)
		}
	}()
	for _, r := range []*realm{a, b} {
		if _, err := r.alice.Key.RotateKey(t.Context(), &pb.RotateKeyRequest{Kind: "ca"}); err != nil {
			t.Fatal(err)
		}
	}
	// What is issued from now on is the new CA's: a change of the bundle has everything issued anew.
	a.change(func(files policy.Files) {
		files["secrets/app.yaml"] = append(bytes.Clone(files["secrets/app.yaml"]), "# once more\n"...)
	})
	eventually(t, "an SVID of the new CA", func() bool {
		v, err := sa.GetX509SVID()
		return err == nil && !v.Certificates[0].Equal(first.Certificates[0]) && strings.HasSuffix(v.Certificates[0].Issuer.CommonName, "CA 2")
	})
	n := handshakes.Load()
	eventually(t, "more handshakes", func() bool { return handshakes.Load() > n+50 || len(failed) > 0 })
	cancel()
	if err := <-failed; err != nil {
		t.Errorf("handshake %d: %v", handshakes.Load(), err)
	}
	t.Logf("%d handshakes", handshakes.Load())
}

// JWT-SVIDs of one environment are valid at a workload of the other that federates with it, and at nobody else's.
func TestFederatedTokens(t *testing.T) {
	a, b := newRealm(t, "east"), newRealm(t, "west")
	ca, cb := workloads(t, a.addr), workloads(t, b.addr)
	v, err := ca.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "west", ExtraAudiences: []string{"elsewhere"}})
	if err != nil {
		t.Fatal(err)
	}
	if v.ID != a.app() {
		t.Errorf("%s", v.ID)
	}
	// The key of tokens was made just now: the agent is told of it.
	eventually(t, "the own key", func() bool {
		x, err := ca.ValidateJWTSVID(t.Context(), v.Marshal(), "west")
		return err == nil && x.ID == a.app()
	})
	if _, err := ca.ValidateJWTSVID(t.Context(), v.Marshal(), "north"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("another audience: %v", err)
	}
	if _, err := cb.ValidateJWTSVID(t.Context(), v.Marshal(), "west"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a stranger's: %v", err)
	}
	b.federate(a)
	eventually(t, "the other's key", func() bool {
		x, err := cb.ValidateJWTSVID(t.Context(), v.Marshal(), "west")
		return err == nil && x.ID == a.app()
	})
}

// A change of the bundle reaches a stream at once: a rule that is gone ends it, one that comes gives it back.
func TestRuleIsPushed(t *testing.T) {
	r := newRealm(t, "east")
	w := watchX509(t, workloads(t, r.addr))
	var before []byte
	r.change(func(files policy.Files) {
		before = files["identities/machines.yaml"]
		files["identities/machines.yaml"] = bytes.Replace(before, []byte("[/node/join-token/*]"), []byte("[/node/join-token/none]"), 1)
	})
	began := time.Now()
	eventually(t, "the end of the stream", func() bool { _, n := w.count(); return n > 0 })
	if d := w.at.Sub(began); d > time.Second {
		t.Errorf("after %s", d)
	} else {
		t.Logf("%s after the change", d)
	}
	if status.Code(w.errs[0]) != codes.PermissionDenied {
		t.Error(w.errs[0])
	}
	r.change(func(files policy.Files) { files["identities/machines.yaml"] = before })
	eventually(t, "the SVID", func() bool {
		_, err := workloads(t, r.addr).FetchX509SVID(t.Context())
		return err == nil
	})
}
