package rpc_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/server/servertest"
)

// Every method's good way, by each protocol that the wire has: the same calls must give the same.
func TestServices(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	for i, p := range []struct {
		name  string
		http2 bool
		opts  []connect.ClientOption
	}{
		{"connect over HTTP/2", true, nil},
		{"connect over HTTP/1.1", false, nil},
		{"connect with JSON", true, []connect.ClientOption{connect.WithProtoJSON()}},
		{"gRPC", true, []connect.ClientOption{connect.WithGRPC()}},
		{"gRPC-Web", false, []connect.ClientOption{connect.WithGRPCWeb()}},
	} {
		t.Run(p.name, func(t *testing.T) {
			as := func(s *servertest.Session) *servertest.Clients {
				return servertest.NewClients(h.Client(s.Cert, p.http2), h.URL(), p.opts...)
			}
			node := fmt.Sprintf("web-%d", i)
			alice, machine := h.Login("alice"), h.Node(node)
			app, err := h.Workload(machine, "", map[string]any{"exe": map[string]any{"path": "/bin/app"}})
			if err != nil {
				t.Fatal(err)
			}
			anybody := servertest.NewClients(h.Client(nil, p.http2), h.URL(), p.opts...)
			publicFacts(t, h, anybody)
			handOver(t, as(alice), as(app), p.name)
			lists(t, as(alice), as(app), node)
			t.Run("ledger", func(t *testing.T) { readLedger(t, as(alice), anybody) })
			t.Run("keys", func(t *testing.T) { rotate(t, as(alice)) })
			t.Run("watch and revoke", func(t *testing.T) { watchAndRevoke(t, as(alice), as(machine), as(app), node) })
			t.Run("change", func(t *testing.T) { change(t, h, as(alice)) })
			if _, err := as(alice).Attestation.Logout(t.Context(), &pb.LogoutRequest{}); err != nil {
				t.Fatal(err)
			}
			_, err = as(alice).Secret.List(t.Context(), &pb.ListSecretsRequest{})
			want(t, err, connect.CodeUnauthenticated, "session-expired")
		})
	}
}

func publicFacts(t *testing.T, h *servertest.House, c *servertest.Clients) {
	t.Helper()
	e, err := c.Environment.GetEnvironment(t.Context(), &pb.GetEnvironmentRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if e.Name != h.Name || sha256.Sum256([]byte(e.GenesisDocument)) != h.Genesis || len(e.GenesisSignatures) != 1 ||
		len(e.CaChain) == 0 || len(e.CheckpointKeys) == 0 || e.Checkpoint == "" || e.ServerVersion != "test" || len(e.AttestationMethods) < 2 {
		t.Fatalf("public facts: %v", e)
	}
}

func handOver(t *testing.T, alice, app *servertest.Clients, name string) {
	t.Helper()
	ctx := t.Context()
	w, err := alice.Secret.Put(ctx, &pb.PutRequest{Secret: "app/password", Value: []byte("value of " + name), IdempotencyKey: strings.ReplaceAll(name, " ", "-")})
	if err != nil {
		t.Fatal(err)
	}
	got, err := app.Secret.Get(ctx, &pb.GetRequest{Secret: "app/password", Receipt: true})
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Value) != "value of "+name || got.Version != w.Version || got.Entry.GetIndex() == 0 || !bytes.HasPrefix(got.Receipt, []byte("c2sp.org/tlog-proof@v1")) {
		t.Fatalf("got %q, version %d, receipt %.40q", got.Value, got.Version, got.Receipt)
	}
	if r, err := app.Secret.RenewLease(ctx, &pb.RenewLeaseRequest{Lease: got.Lease}); err != nil || r.Expires.AsTime().Before(got.Expires.AsTime()) {
		t.Fatal(r, err)
	}
	leases, err := app.Secret.ListLeases(ctx, &pb.ListLeasesRequest{})
	i := slices.IndexFunc(leases.GetLeases(), func(l *pb.LeaseInfo) bool { return l.Lease == got.Lease })
	if err != nil || i < 0 || leases.Leases[i].State != "active" {
		t.Fatal(leases, err)
	}
	if _, err := app.Secret.ReturnLease(ctx, &pb.ReturnLeaseRequest{Lease: got.Lease}); err != nil {
		t.Fatal(err)
	}
	g, err := alice.Secret.Generate(ctx, &pb.GenerateRequest{Secret: "app/other", Recipe: "password", Length: 40})
	if err != nil {
		t.Fatal(err)
	}
	if made, err := app.Secret.Get(ctx, &pb.GetRequest{Secret: "app/other", Version: g.Version}); err != nil || len(made.Value) != 40 {
		t.Fatal(err)
	}
	if _, err := alice.Secret.Move(ctx, &pb.MoveRequest{Secret: "app/other", Version: g.Version, To: "compromised", Reason: "a test"}); err != nil {
		t.Fatal(err)
	}
	_, err = app.Secret.Get(ctx, &pb.GetRequest{Secret: "app/other", Version: g.Version})
	want(t, err, connect.CodeAborted, "lifecycle")
}

func lists(t *testing.T, alice, app *servertest.Clients, node string) {
	t.Helper()
	ctx := t.Context()
	l, err := alice.Secret.List(ctx, &pb.ListSecretsRequest{PageSize: 1})
	if err != nil || len(l.Secrets) != 1 || l.NextPageToken == "" || len(l.Secrets[0].Versions) == 0 {
		t.Fatal(l, err)
	}
	ids, err := alice.Attestation.ListIdentities(ctx, &pb.ListIdentitiesRequest{Prefix: "/node/join-token/" + node})
	if err != nil || len(ids.Identities) != 1 || ids.Identities[0].State != "active" {
		t.Fatal(ids, err)
	}
	x, err := app.Explain.Explain(ctx, &pb.ExplainRequest{Action: "secret.read", Secret: "app/password"})
	if err != nil || !x.Allowed || x.Grant != "app-reads" || len(x.Rules) != 1 || len(x.Checks) < 3 {
		t.Fatal(x, err)
	}
	x, err = app.Explain.Explain(ctx, &pb.ExplainRequest{Action: "secret.write", Secret: "app/password"})
	if err != nil || x.Allowed || x.Reason != "no-grant" || x.Fix == "" {
		t.Fatal(x, err)
	}
}

func readLedger(t *testing.T, alice, anybody *servertest.Clients) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := anybody.Ledger.GetCheckpoint(ctx, &pb.GetCheckpointRequest{})
	if err != nil || !strings.HasPrefix(c.Checkpoint, "bailment/") {
		t.Fatal(c, err)
	}
	k, err := anybody.Ledger.GetConsistency(ctx, &pb.GetConsistencyRequest{From: 1})
	if err != nil || k.To < 2 || len(k.Proof) == 0 {
		t.Fatal(k, err)
	}
	e, err := alice.Ledger.GetEntries(ctx, &pb.GetEntriesRequest{From: 1, Limit: 2})
	if err != nil || len(e.Entries) != 2 || e.Entries[1].Index != 2 || e.Size < 3 {
		t.Fatal(e, err)
	}
	if r, err := alice.Ledger.GetReceipt(ctx, &pb.GetReceiptRequest{Index: 0}); err != nil || len(r.Receipt) == 0 {
		t.Fatal(err)
	}
	_, err = alice.Ledger.GetReceipt(ctx, &pb.GetReceiptRequest{Index: 1 << 40})
	want(t, err, connect.CodeNotFound, "not-found")
	tail, err := alice.Ledger.Tail(ctx, &pb.TailRequest{From: e.Size})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := alice.Secret.Put(ctx, &pb.PutRequest{Secret: "app/other", Value: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	if !tail.Receive() || tail.Msg().Index != e.Size || !bytes.Contains(tail.Msg().Body, []byte("secret.written")) {
		t.Fatal(tail.Msg(), tail.Err())
	}
	cancel()
	_ = tail.Close()
}

func rotate(t *testing.T, alice *servertest.Clients) {
	ctx := t.Context()
	for _, kind := range []string{"kek", "checkpoint", "ca"} {
		r, err := alice.Key.RotateKey(ctx, &pb.RotateKeyRequest{Kind: kind})
		if err != nil || !strings.HasPrefix(r.Name, kind+"/") {
			t.Fatal(r, err)
		}
	}
	s, err := alice.Key.Rewrap(ctx, &pb.RewrapRequest{})
	if err != nil {
		t.Fatal(err)
	}
	finished := false
	for s.Receive() {
		finished = s.Msg().Finished
	}
	if s.Err() != nil || !finished {
		t.Fatal(finished, s.Err())
	}
	_ = s.Close()
	l, err := alice.Key.ListKeys(ctx, &pb.ListKeysRequest{})
	if err != nil || len(l.Keys) < 6 {
		t.Fatal(l, err)
	}
}

func watchAndRevoke(t *testing.T, alice, machine, app *servertest.Clients, node string) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	w, err := machine.Watch.Watch(ctx, &pb.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !w.Receive() || len(w.Msg().CaChain) == 0 || w.Msg().SessionDead {
		t.Fatal(w.Msg(), w.Err())
	}
	r, err := alice.Revocation.Revoke(ctx, &pb.RevokeRequest{Scope: "node:/node/join-token/" + node, Reason: "a test"})
	if err != nil || !r.Cutoff || !r.Hold || r.Covers < 2 || r.Horizon == nil {
		t.Fatal(r, err)
	}
	for w.Receive() && !w.Msg().SessionDead {
	}
	if !w.Msg().SessionDead || w.Msg().Reason != "cutoff" {
		t.Fatal(w.Msg(), w.Err())
	}
	w.Receive()
	want(t, w.Err(), connect.CodePermissionDenied, "cutoff")
	_ = w.Close()
	_, err = app.Secret.Get(ctx, &pb.GetRequest{Secret: "app/password"})
	want(t, err, connect.CodePermissionDenied, "cutoff")
	l, err := alice.Revocation.ListRevocations(ctx, &pb.ListRevocationsRequest{})
	if err != nil || len(l.Revocations) == 0 {
		t.Fatal(l, err)
	}
}

// change proposes a bundle with one more secret, and approves it.
func change(t *testing.T, h *servertest.House, alice *servertest.Clients) {
	ctx := t.Context()
	now, err := alice.Change.GetBundle(ctx, &pb.GetBundleRequest{})
	if err != nil {
		t.Fatal(err)
	}
	base, err := policy.ParseManifest([]byte(now.Manifest))
	if err != nil {
		t.Fatal(err)
	}
	files := make(policy.Files)
	by := make(map[policy.Digest][]byte)
	for _, b := range now.Files {
		by[sha256.Sum256(b)] = b
	}
	for _, f := range base.Files() {
		files[f.Path] = by[f.Digest]
	}
	before := maps.Clone(files)
	files["secrets/app.yaml"] = append(bytes.Clone(files["secrets/app.yaml"]), []byte("# once more\n")...)
	m, err := policy.BuildManifest(files, policy.Header{
		Environment: h.Name, Genesis: h.Genesis, Version: base.Header().Version + 1, Previous: base.Digest(),
	})
	if err != nil {
		t.Fatal(err)
	}
	text := ceremony.Change{
		Scope: ceremony.Scope{Environment: h.Name, Genesis: h.Genesis, Epoch: h.Env().State().Env.Epoch}, Action: "bundle",
		Base: base.Digest().String(), New: m.Digest().String(), Role: ceremony.Proposer, Person: "alice",
		Nonce: nonce(t), Expires: time.Now().Add(time.Hour).UTC().Truncate(time.Second), Reason: "a test",
	}
	if text.Rollback, err = policy.RollbackDigest(m, before, files, nil); err != nil {
		t.Fatal(err)
	}
	ask := &pb.ProposeRequest{
		Action: "bundle", Manifest: string(m.Text()), Text: text.Text(), Expires: timestamppb.New(text.Expires), Reason: text.Reason,
		Signature:         &pb.Signature{Sshsig: h.Sign("alice", ceremony.NamespaceChange, text.Text())},
		ManifestSignature: &pb.Signature{Sshsig: h.Sign("alice", ceremony.NamespaceBundle, string(m.Text()))},
	}
	for _, b := range files {
		ask.Files = append(ask.Files, b)
	}
	ask.Target = "something else"
	_, err = alice.Change.Propose(ctx, ask)
	want(t, err, connect.CodeInvalidArgument, "invalid")
	ask.Target = ""
	ask.Files = append(ask.Files, []byte("not in the manifest"))
	_, err = alice.Change.Propose(ctx, ask)
	want(t, err, connect.CodeInvalidArgument, "bundle-invalid")
	ask.Files = ask.Files[:len(ask.Files)-1]
	p, err := alice.Change.Propose(ctx, ask)
	if err != nil || p.State != "proposed" || p.Required != 1 {
		t.Fatal(p, err)
	}
	d, err := alice.Change.GetChange(ctx, &pb.GetChangeRequest{Change: p.Change})
	if err != nil || d.Manifest != string(m.Text()) || d.ProposalText != text.Text() {
		t.Fatal(d, err)
	}
	if l, err := alice.Change.ListChanges(ctx, &pb.ListChangesRequest{OpenOnly: true}); err != nil || len(l.Changes) != 1 {
		t.Fatal(l, err)
	}
	text.Role, text.Number, text.Nonce = ceremony.Approver, p.Change, nonce(t)
	a, err := alice.Change.Approve(ctx, &pb.ApproveRequest{
		Change: p.Change, Text: text.Text(), Signature: &pb.Signature{Sshsig: h.Sign("alice", ceremony.NamespaceChange, text.Text())},
	})
	if err != nil || a.Generation < 2 {
		t.Fatal(a, err)
	}
	_, err = alice.Change.Reject(ctx, &pb.RejectRequest{Change: p.Change, Reason: "too late"})
	want(t, err, connect.CodeAborted, "conflict")
}

// JSON with nothing but net/http: what curl sends and gets.
func TestJSON(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	put(t, h.Login("alice"), "app/password", "sesame")
	app := h.App("web-1")
	c := h.Client(app.Cert, false)
	code, _, body := post(t, c, h.URL()+"/bailment.v1.SecretService/Get", "application/json", text(`{"secret":"app/password"}`))
	if code != http.StatusOK || !strings.Contains(body, `"value":"c2VzYW1l"`) {
		t.Fatalf("%d %s", code, body)
	}
	code, _, body = post(t, c, h.URL()+"/bailment.v1.EnvironmentService/GetEnvironment", "application/json", text(``))
	if code != http.StatusOK || !strings.Contains(body, `"name":"servertest"`) {
		t.Fatalf("%d %s", code, body)
	}
	code, _, body = post(t, c, h.URL()+"/bailment.v1.SecretService/Get", "application/json", text(`{"secret":"no/such"}`))
	for _, part := range []string{`"code":"permission_denied"`, `"reason":"no-grant"`, `"requestId":`} {
		if code != http.StatusForbidden || !strings.Contains(body, part) {
			t.Fatalf("%d %s", code, body)
		}
	}
}

// What can't be read is refused with a reason, and never quoted: it may hold a value.
func TestMalformedIsNotQuoted(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	c := h.Client(h.Login("alice").Cert, true)
	for _, x := range []struct{ name, kind, body, reason string }{
		{"a value that is not base64", "application/json", `{"secret":"app/password","value":"hunter2 is not base64!"}`, "invalid"},
		{"an unknown field", "application/json", `{"secret":"app/password","hunter2":1}`, "invalid"},
		{"a field twice", "application/json", `{"secret":"hunter2","secret":"hunter2"}`, "invalid"},
		{"not JSON", "application/json", `hunter2`, "invalid"},
		{"with a charset", "application/json; charset=utf-8", `hunter2`, "invalid"},
		{"not protobuf", "application/proto", "\xffhunter2", "invalid"},
		{"an unknown protobuf field", "application/proto", "\xfa\x3f\x07hunter2", "unsupported"},
	} {
		t.Run(x.name, func(t *testing.T) {
			code, _, body := post(t, c, h.URL()+"/bailment.v1.SecretService/Put", x.kind, text(x.body))
			if code != http.StatusBadRequest || strings.Contains(body, "hunter2") || !strings.Contains(body, `"reason":"`+x.reason+`"`) {
				t.Fatalf("%d %s", code, body)
			}
		})
	}
	if got := sums(t, h, "request"); got["invalid"] != 6 || got["unsupported"] != 1 {
		t.Fatalf("accounted: %v", got)
	}
}

func TestRoutes(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	c := h.Client(nil, false)
	for _, x := range []struct {
		method, path string
		code         int
	}{
		{http.MethodGet, "/livez", 200},
		{http.MethodGet, "/readyz", 200},
		{http.MethodPost, "/livez", 404},
		{http.MethodGet, "/metrics", 404},
		{http.MethodGet, "/", 404},
		{http.MethodPost, "/bailment.v1.SecretService/Nothing", 404},
		{http.MethodGet, "/bailment.v1.SecretService/Get", 405},
	} {
		req, err := http.NewRequestWithContext(t.Context(), x.method, h.URL()+x.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != x.code {
			t.Errorf("%s %s: %d, want %d", x.method, x.path, res.StatusCode, x.code)
		}
	}
}
