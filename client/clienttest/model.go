package clienttest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/attest/k8s"
	attestx509 "github.com/bailment/bailment/internal/attest/x509"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/verify"
)

// model is the state behind the fake. Indices stand for ledger entries.
type model struct {
	federations federations
	index       uint64
	control     uint64
	challenges  map[string]bool // true: used
	tokens      map[string]*token
	used        map[string][32]byte // evidence of pods → the session key that used it
	nodes       map[string]*node
	sessions    map[uint64]*session
	seen        map[[32]byte]string
	values      map[string][]byte
	versions    map[string]uint64
	leases      map[uint64]*Lease
	holds       map[string]bool   // identity paths
	cutoffs     map[string]uint64 // identity path → index
	pushed      map[string]problem.Reason
	claims      []map[string]any
	refuse      func(claims map[string]any, want string) error
}

type token struct {
	record  jointoken.Record
	spentBy [32]byte
	spentAt uint64
}

type node struct {
	root, session, prior, counter uint64
	key                           [32]byte
	lifetime                      time.Time
}

type session struct {
	path, node string
	root       uint64
	key        [32]byte
	expires    time.Time
}

// Lease is a lease of the fake.
type Lease struct {
	ID                              uint64
	Identity, Node, Secret, Purpose string
	Version                         uint64
	Created, Expires                time.Time
	Returned                        bool
}

func (m *model) init() {
	m.index = 1
	m.used = map[string][32]byte{}
	m.challenges, m.tokens, m.nodes = map[string]bool{}, map[string]*token{}, map[string]*node{}
	m.sessions, m.seen, m.values = map[uint64]*session{}, map[[32]byte]string{}, map[string][]byte{}
	m.versions, m.leases, m.holds, m.cutoffs = map[string]uint64{}, map[uint64]*Lease{}, map[string]bool{}, map[string]uint64{}
	m.pushed = map[string]problem.Reason{}
}

func (m *model) next() uint64 { m.index++; return m.index }

// Token admits a machine by name.
func (s *Server) Token(name string) (jointoken.Token, error) {
	t, err := jointoken.New(s.Genesis)
	if err != nil {
		return t, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.tokens[t.ID()] = &token{record: jointoken.Record{
		PublicKey: t.PublicKey(), Name: name, Expires: time.Now().Add(time.Hour), Genesis: s.Genesis,
	}}
	return t, nil
}

// Put sets a secret's current value.
func (s *Server) Put(path string, value []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.values[path] = value
	s.state.versions[path]++
}

// Refuse has f decide about workloads.
func (s *Server) Refuse(f func(claims map[string]any, want string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.refuse = f
}

// Claims are those of all attested workloads.
func (s *Server) Claims() []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]map[string]any(nil), s.state.claims...)
}

// Leases lists all leases ever, by number.
func (s *Server) Leases() []Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Lease
	for i := uint64(0); i <= s.state.index; i++ {
		if l, ok := s.state.leases[i]; ok {
			out = append(out, *l)
		}
	}
	return out
}

// Hold puts a hold on an identity, or lifts it.
func (s *Server) Hold(path string, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.holds[path] = on
	s.news()
}

// Push has an identity refused for a reason, or ("") no more.
func (s *Server) Push(path string, r problem.Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.pushed[path] = r
	s.news()
}

// CutOff revokes all that an identity got up to here.
func (s *Server) CutOff(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.cutoffs[path] = s.state.next()
	s.news()
}

// Counter is how often a node's enrolment was renewed.
func (s *Server) Counter(path string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := s.state.nodes[path]; ok {
		return n.counter
	}
	return 0
}

// Held reports whether there is a hold on the identity.
func (s *Server) Held(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.holds[path]
}

func (s *Server) news() {
	s.state.control = s.state.next()
	close(s.wake)
	s.wake = make(chan struct{})
}

// revoked is the refusal of what a hold or cutoff covers.
func (m *model) revoked(paths []string, root uint64) error {
	for _, p := range paths {
		if p != "" && m.cutoffs[p] > root {
			return problem.New(problem.ReasonCutoff, "cut off by entry %d", m.cutoffs[p])
		}
	}
	for _, p := range paths {
		if m.holds[p] {
			return problem.New(problem.ReasonHeld, "held")
		}
		if r := m.pushed[p]; r != "" {
			return problem.New(r, "pushed")
		}
	}
	return nil
}

// caller is the live session of a connection.
func (s *Server) caller(ctx context.Context, revocations bool) (*session, error) {
	cert, ok := ctx.Value(peerKey{}).(*x509.Certificate)
	if !ok {
		return nil, problem.New(problem.ReasonNoSession, "no session")
	}
	x, ok := s.state.sessions[indexOf(cert)]
	thumb, err := attest.Thumbprint(cert.PublicKey)
	if !ok || err != nil || thumb != x.key || cert.CheckSignatureFrom(s.CA) != nil {
		return nil, problem.New(problem.ReasonSessionUnknown, "unknown session")
	}
	if !time.Now().Before(x.expires) {
		return nil, problem.New(problem.ReasonSessionExpired, "the session expired")
	}
	if revocations {
		if err := s.state.revoked([]string{x.path, x.node}, x.root); err != nil {
			return nil, err
		}
	}
	return x, nil
}

func indexOf(cert *x509.Certificate) uint64 {
	b := cert.SerialNumber.Bytes()
	if len(b) != 19 {
		return 0
	}
	return binary.BigEndian.Uint64(b[3:11])
}

// open enters a session and signs its certificate.
func (s *Server) open(x *session, pub crypto.PublicKey, lifetime time.Time) (*v1.SessionResponse, uint64, error) {
	if by, ok := s.state.seen[x.key]; ok && by != x.path {
		return nil, 0, problem.New(problem.ReasonKeySeen, "key seen")
	}
	s.state.seen[x.key] = x.path
	index := s.state.next()
	if x.root == 0 {
		x.root = index
	}
	now := time.Now()
	x.expires = now.Add(s.SessionTTL)
	if !lifetime.IsZero() && x.expires.After(lifetime) {
		x.expires = lifetime
	}
	s.state.sessions[index] = x
	serial := append([]byte{1, 0, 0}, binary.BigEndian.AppendUint64(nil, index)...)
	serial = append(serial, make([]byte, 8)...)
	if _, err := rand.Read(serial[11:]); err != nil {
		return nil, 0, err
	}
	id := s.id(x.path)
	t := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), NotBefore: now.Add(-30 * time.Second), NotAfter: x.expires, URIs: []*url.URL{id.URL()},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, s.CA, pub, s.CAKey)
	if err != nil {
		return nil, 0, err
	}
	r := &v1.SessionResponse{
		Identity: id.String(), Chain: [][]byte{der}, Expires: timestamppb.New(x.expires), RenewAfter: timestamppb.New(now.Add(x.expires.Sub(now) / 2)),
		Entry: &v1.EntryRef{Index: index}, Assurance: "token",
	}
	if !lifetime.IsZero() {
		r.LifetimeEnd = timestamppb.New(lifetime)
	}
	return r, index, nil
}

func (s *Server) spend(challenge []byte) error {
	used, ok := s.state.challenges[string(challenge)]
	switch {
	case !ok:
		return problem.New(problem.ReasonChallengeForeign, "foreign challenge")
	case used:
		return problem.New(problem.ReasonReplayed, "challenge used")
	}
	s.state.challenges[string(challenge)] = true
	return nil
}

func readCSR(der []byte) (crypto.PublicKey, [32]byte, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || csr.CheckSignature() != nil {
		return nil, [32]byte{}, problem.New(problem.ReasonBadProof, "certificate request")
	}
	thumb, err := attest.Thumbprint(csr.PublicKey)
	return csr.PublicKey, thumb, err
}

type environment struct {
	bailmentv1connect.UnimplementedEnvironmentServiceHandler
	s *Server
}

func (e environment) GetEnvironment(context.Context, *v1.GetEnvironmentRequest) (*v1.GetEnvironmentResponse, error) {
	c := verify.Checkpoint{Origin: e.s.signer.Name(), Size: 1, Root: sha256.Sum256([]byte("root"))}
	signed, err := note.Sign(&note.Note{Text: c.Text()}, e.s.signer)
	if err != nil {
		return nil, err
	}
	return &v1.GetEnvironmentResponse{
		Name: e.s.Name, Class: "development", GenesisDocument: e.s.Document, CaChain: [][]byte{e.s.CA.Raw},
		CheckpointKeys: []string{e.s.VKey}, Checkpoint: string(signed),
	}, nil
}

type attestation struct {
	bailmentv1connect.UnimplementedAttestationServiceHandler
	s *Server
}

func (a attestation) Challenge(context.Context, *v1.ChallengeRequest) (*v1.ChallengeResponse, error) {
	b := make([]byte, 56)
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	a.s.state.challenges[string(b)] = false
	return &v1.ChallengeResponse{Challenge: b, Expires: timestamppb.New(time.Now().Add(2 * time.Minute)), Genesis: a.s.Genesis[:]}, nil
}

func (a attestation) Attest(_ context.Context, r *v1.AttestRequest) (*v1.SessionResponse, error) {
	s := a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	pub, thumb, err := readCSR(r.Csr)
	if err != nil {
		return nil, err
	}
	switch r.Method {
	case jointoken.Name:
	case attestx509.Name:
		return s.byCertificate(r, pub, thumb)
	case k8s.Name:
		return s.byPod(r, pub, thumb)
	default:
		return nil, problem.New(problem.ReasonUnknownMethod, "method")
	}
	res, err := jointoken.Verify(attest.Input{
		Binding: attest.Binding{Method: r.Method, Genesis: s.Genesis, Nonce: r.Challenge, SessionKey: thumb}, Evidence: r.Evidence, Now: time.Now(),
		Params: jointoken.Params{Lookup: func(id string) (jointoken.Record, bool) {
			t, ok := s.state.tokens[id]
			if !ok {
				return jointoken.Record{}, false
			}
			return t.record, true
		}},
	})
	if err != nil {
		return nil, err
	}
	if err := s.spend(r.Challenge); err != nil {
		return nil, err
	}
	t := s.state.tokens[strings.TrimPrefix(res.Once, jointoken.Name+":")]
	path := "/node/join-token/" + t.record.Name
	again := t.spentAt != 0
	if again && t.spentBy != thumb {
		return nil, problem.New(problem.ReasonTokenSpent, "token spent")
	}
	root := t.spentAt
	if !again {
		root = s.state.index + 1
	}
	if err := s.state.revoked([]string{path}, root); err != nil {
		return nil, err
	}
	n := s.state.nodes[path]
	if n == nil || !again {
		n = &node{root: root, lifetime: time.Now().Add(s.Lifetime)}
		s.state.nodes[path] = n
	}
	out, index, err := s.open(&session{path: path, root: root, key: thumb}, pub, n.lifetime)
	if err != nil {
		return nil, err
	}
	t.spentBy, t.spentAt = thumb, root
	n.session, n.key = index, thumb
	return out, nil
}

// byCertificate appraises nothing: any evidence of the method is that of one machine. It is renewed by evidence.
func (s *Server) byCertificate(r *v1.AttestRequest, pub crypto.PublicKey, thumb [32]byte) (*v1.SessionResponse, error) {
	if len(r.Evidence) == 0 {
		return nil, problem.New(problem.ReasonInvalid, "no evidence")
	}
	if err := s.spend(r.Challenge); err != nil {
		return nil, err
	}
	const path = "/node/x509/corp/web-1"
	if err := s.state.revoked([]string{path}, s.state.index+1); err != nil {
		return nil, err
	}
	out, _, err := s.open(&session{path: path, key: thumb}, pub, time.Time{})
	return out, err
}

// byPod appraises nothing either, but that each evidence is used by one session key only.
func (s *Server) byPod(r *v1.AttestRequest, pub crypto.PublicKey, thumb [32]byte) (*v1.SessionResponse, error) {
	if used, ok := s.state.used[string(r.Evidence)]; ok && used != thumb {
		return nil, problem.New(problem.ReasonTokenSpent, "token spent")
	}
	if err := s.spend(r.Challenge); err != nil {
		return nil, err
	}
	s.state.used[string(r.Evidence)] = thumb
	out, _, err := s.open(&session{path: "/node/k8s/corp/web-1", key: thumb}, pub, time.Time{})
	return out, err
}

func (a attestation) Renew(_ context.Context, r *v1.RenewRequest) (*v1.SessionResponse, error) {
	s := a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	pub, thumb, err := readCSR(r.Csr)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(r.Certificate)
	if err != nil || cert.CheckSignatureFrom(s.CA) != nil {
		return nil, problem.New(problem.ReasonSessionForeign, "certificate")
	}
	b := attest.Binding{Method: "renewal", Genesis: s.Genesis, Nonce: r.Challenge, SessionKey: thumb}
	h := sha256.Sum256(b.Message())
	if k, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !ecdsa.VerifyASN1(k, h[:], r.Signature) {
		return nil, problem.New(problem.ReasonBadProof, "signature")
	}
	if err := s.spend(r.Challenge); err != nil {
		return nil, err
	}
	path := cert.URIs[0].Path
	n, ok := s.state.nodes[path]
	if !ok {
		return nil, problem.New(problem.ReasonSessionUnknown, "no enrolment")
	}
	if !time.Now().Before(n.lifetime) {
		return nil, problem.New(problem.ReasonLifetimeOver, "lifetime over")
	}
	index, again := indexOf(cert), false
	switch {
	case index < n.root:
		return nil, problem.New(problem.ReasonLifetimeOver, "enrolled anew")
	case index == n.session:
	case index == n.prior && thumb == n.key:
		again = true
	default:
		s.state.holds[path] = true
		s.news()
		return nil, problem.New(problem.ReasonForked, "forked")
	}
	if err := s.state.revoked([]string{path}, n.root); err != nil {
		return nil, err
	}
	out, opened, err := s.open(&session{path: path, root: n.root, key: thumb}, pub, n.lifetime)
	if err != nil {
		return nil, err
	}
	if !again {
		n.prior = n.session
		n.counter++
	}
	n.session, n.key = opened, thumb
	return out, nil
}

func (a attestation) AttestWorkload(ctx context.Context, r *v1.AttestWorkloadRequest) (*v1.SessionResponse, error) {
	s := a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	x, err := s.caller(ctx, true)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(x.path, "/node/") {
		return nil, problem.New(problem.ReasonForeignNode, "not a node")
	}
	pub, thumb, err := readCSR(r.Csr)
	if err != nil {
		return nil, err
	}
	claims := r.Claims.AsMap()
	if s.state.refuse != nil {
		if err := s.state.refuse(claims, r.Workload); err != nil {
			return nil, err
		}
	}
	s.state.claims = append(s.state.claims, claims)
	path := r.Workload
	if path == "" {
		path = "/workload/app"
	}
	if err := s.state.revoked([]string{path, x.path}, x.root); err != nil {
		return nil, err
	}
	out, _, err := s.open(&session{path: path, node: x.path, root: x.root, key: thumb}, pub, time.Time{})
	return out, err
}

func (a attestation) Login(_ context.Context, r *v1.LoginRequest) (*v1.SessionResponse, error) {
	s := a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	pub, thumb, err := readCSR(r.Csr)
	if err != nil {
		return nil, err
	}
	if err := s.spend(r.Challenge); err != nil {
		return nil, err
	}
	// The fake's operators "sign" by repeating the text.
	want := fmt.Sprintf("bailment login v1\nenvironment %s\ngenesis %x\nepoch 0\nperson %s\nsession-key sha256:%x\nchallenge %x\n", s.Name, s.Genesis, r.Person, thumb, r.Challenge)
	if r.Sshsig != "signed login@bailment\n"+want {
		return nil, problem.New(problem.ReasonSignature, "signature")
	}
	out, _, err := s.open(&session{path: "/human/" + r.Person, key: thumb}, pub, time.Time{})
	return out, err
}

type secrets struct {
	bailmentv1connect.UnimplementedSecretServiceHandler
	s *Server
}

func (h secrets) Get(ctx context.Context, r *v1.GetRequest) (*v1.GetResponse, error) {
	s := h.s
	s.mu.Lock()
	defer s.mu.Unlock()
	x, err := s.caller(ctx, true)
	if err != nil {
		return nil, err
	}
	value, ok := s.state.values[r.Secret]
	if !ok {
		return nil, problem.New(problem.ReasonNoGrant, "no grant for %s", r.Secret)
	}
	now := time.Now()
	var lease *Lease
	for _, l := range s.state.leases {
		if l.Identity == x.path && l.Node == x.node && l.Secret == r.Secret && l.Purpose == r.Purpose && l.Version == s.state.versions[r.Secret] && !l.Returned && now.Before(l.Expires) {
			lease = l
		}
	}
	index := s.state.next()
	if lease == nil {
		lease = &Lease{ID: index, Identity: x.path, Node: x.node, Secret: r.Secret, Purpose: r.Purpose, Version: s.state.versions[r.Secret], Created: now, Expires: s.leaseEnd(x, now)}
		s.state.leases[index] = lease
	}
	out := &v1.GetResponse{
		Value: value, Secret: r.Secret, Version: lease.Version, Lease: lease.ID, Expires: timestamppb.New(lease.Expires), Entry: &v1.EntryRef{Index: index},
	}
	if r.Receipt {
		out.Receipt = []byte("receipt of " + r.Secret)
	}
	return out, nil
}

func (h secrets) ListLeases(ctx context.Context, _ *v1.ListLeasesRequest) (*v1.ListLeasesResponse, error) {
	s := h.s
	s.mu.Lock()
	defer s.mu.Unlock()
	x, err := s.caller(ctx, true)
	if err != nil {
		return nil, err
	}
	out := new(v1.ListLeasesResponse)
	for _, l := range s.state.leases {
		state := "active"
		switch {
		case l.Identity != x.path:
			continue
		case l.Returned:
			state = "returned"
		case !time.Now().Before(l.Expires):
			state = "expired"
		}
		out.Leases = append(out.Leases, &v1.LeaseInfo{
			Lease: l.ID, Identity: l.Identity, Node: l.Node, Secret: l.Secret, Version: l.Version, Purpose: l.Purpose,
			Created: timestamppb.New(l.Created), Expires: timestamppb.New(l.Expires), State: state,
		})
	}
	return out, nil
}

func (h secrets) RenewLease(ctx context.Context, r *v1.RenewLeaseRequest) (*v1.RenewLeaseResponse, error) {
	s := h.s
	s.mu.Lock()
	defer s.mu.Unlock()
	x, err := s.caller(ctx, true)
	if err != nil {
		return nil, err
	}
	l, ok := s.state.leases[r.Lease]
	if !ok || l.Identity != x.path || l.Node != x.node || l.Returned || !time.Now().Before(l.Expires) {
		return nil, problem.New(problem.ReasonNotFound, "no lease")
	}
	l.Expires = s.leaseEnd(x, time.Now())
	if most := l.Created.Add(s.LeaseMax); l.Expires.After(most) {
		l.Expires = most
	}
	return &v1.RenewLeaseResponse{Expires: timestamppb.New(l.Expires), Entry: &v1.EntryRef{Index: s.state.next()}}, nil
}

func (h secrets) ReturnLease(ctx context.Context, r *v1.ReturnLeaseRequest) (*v1.ReturnLeaseResponse, error) {
	s := h.s
	s.mu.Lock()
	defer s.mu.Unlock()
	x, err := s.caller(ctx, false)
	if err != nil {
		return nil, err
	}
	l, ok := s.state.leases[r.Lease]
	if !ok || l.Identity != x.path || l.Node != x.node || l.Returned {
		return nil, problem.New(problem.ReasonNotFound, "no lease")
	}
	l.Returned = true
	return &v1.ReturnLeaseResponse{Entry: &v1.EntryRef{Index: s.state.next()}}, nil
}

type watching struct {
	s *Server
}

func (w watching) Watch(ctx context.Context, r *v1.WatchRequest, out *connect.ServerStream[v1.WatchEvent]) error {
	s := w.s
	since := r.Since
	for {
		s.mu.Lock()
		x, err := s.caller(ctx, false)
		if err != nil {
			s.mu.Unlock()
			return err
		}
		dead := s.state.revoked([]string{x.path, x.node}, x.root)
		ev := &v1.WatchEvent{Control: s.state.control, Generation: 1}
		for p := range s.state.holds {
			if s.state.control > since && s.state.holds[p] && strings.HasPrefix(p, "/workload/") {
				ev.RevokedScopes = append(ev.RevokedScopes, "identity:"+p)
			}
		}
		if dead != nil {
			ev.SessionDead, ev.Reason = true, string(problem.As(dead).Reason)
		}
		since = s.state.control
		wake, left := s.wake, time.Until(x.expires)
		s.mu.Unlock()
		if err := out.Send(ev); err != nil {
			return err
		}
		if problem.Is(dead, problem.ReasonCutoff) {
			return dead // the others may be taken back, which is told on the same stream
		}
		timer := time.NewTimer(left)
		select {
		case <-wake:
			timer.Stop()
		case <-timer.C:
			return problem.New(problem.ReasonSessionExpired, "the session expired")
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// newSigner makes the note signer of a verifier key.
func newSigner(name, vkey string, key ed25519.PrivateKey) (note.Signer, error) {
	hash := strings.Split(vkey, "+")[1]
	return note.NewSigner("PRIVATE+KEY+" + name + "+" + hash + "+" + base64.StdEncoding.EncodeToString(append([]byte{1}, key.Seed()...)))
}
