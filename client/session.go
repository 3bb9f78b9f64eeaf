package client

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/verify"
)

// RenewalMethod is the method that the binding of a renewal by possession names.
const RenewalMethod = "renewal"

// Session is a short-lived proof of an identity: an X.509-SVID and its key. It is immutable and safe for concurrent use.
type Session struct {
	Identity    string          // SPIFFE ID
	Certificate tls.Certificate // the SVID and its chain up to (without) the genesis CA, and the key
	Expires     time.Time
	RenewAfter  time.Time // half life
	LifetimeEnd time.Time // the enrolment's hard end; zero: it has none
	Assurance   string
	Epoch       uint64 // of the ledger, and the index of the entry that opened the session
	Index       uint64
}

// Path is the identity inside of its environment ("/node/join-token/web-1").
func (s *Session) Path() string {
	id, err := identity.Parse(s.Identity)
	if err != nil {
		return ""
	}
	return id.Path()
}

// Credentials shows this session.
func (s *Session) Credentials() Credentials {
	return func() (*tls.Certificate, error) { return &s.Certificate, nil }
}

// Live reports whether the session's certificate has not expired at that moment. The server may have ended it before.
func (s *Session) Live(at time.Time) bool { return at.Before(s.Expires) }

// HardwareKey is a session key that can't leave the machine's hardware. Blob is what it is made of again there (attest.KeyMaker), and what
// is kept of it; it is not secret. Sign asks the hardware each time, and fails when that is away.
type HardwareKey struct {
	crypto.Signer
	Blob []byte
}

// PEM gives the chain and the PKCS#8 key as PEM, for programs such as curl. The key is secret; a HardwareKey can't be had (unsupported).
func (s *Session) PEM() (chain, key []byte, err error) {
	var b bytes.Buffer
	for _, der := range s.Certificate.Certificate {
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return nil, nil, problem.Wrap(err, problem.ReasonInternal, "encoding the certificate")
		}
	}
	if _, ok := s.Certificate.PrivateKey.(HardwareKey); ok {
		return nil, nil, problem.New(problem.ReasonUnsupported, "the session's key can't leave the machine's hardware")
	}
	der, err := x509.MarshalPKCS8PrivateKey(s.Certificate.PrivateKey)
	if err != nil {
		return nil, nil, problem.Wrap(err, problem.ReasonInternal, "encoding the session's key")
	}
	defer clear(der)
	return b.Bytes(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// sessionFile is a session on disk. Its format says where the key is.
type sessionFile struct {
	Format      string    `json:"format"`
	Identity    string    `json:"identity"`
	Assurance   string    `json:"assurance"`
	Epoch       uint64    `json:"epoch"`
	Index       uint64    `json:"index"`
	Expires     time.Time `json:"expires"`
	RenewAfter  time.Time `json:"renew_after"`
	LifetimeEnd time.Time `json:"lifetime_end"`
	Chain       [][]byte  `json:"chain"`
	Key         []byte    `json:"key"` // PKCS#8; of a hardware session: HardwareKey.Blob
}

const (
	sessionFormat  = "bailment session v1"
	hardwareFormat = "bailment hardware session v1"
	maxSessionFile = 128 << 10
)

// Save writes session and key to a file, durably, readable by its owner only. Of a HardwareKey it writes the blob.
func (s *Session) Save(path string) error {
	f := sessionFile{
		sessionFormat, s.Identity, s.Assurance, s.Epoch, s.Index, s.Expires, s.RenewAfter, s.LifetimeEnd, s.Certificate.Certificate, nil,
	}
	if k, ok := s.Certificate.PrivateKey.(HardwareKey); ok {
		f.Format, f.Key = hardwareFormat, k.Blob
	} else {
		key, err := x509.MarshalPKCS8PrivateKey(s.Certificate.PrivateKey)
		if err != nil {
			return problem.Wrap(err, problem.ReasonInternal, "encoding the session's key")
		}
		defer clear(key)
		f.Key = key
	}
	text, err := json.Marshal(f)
	if err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "encoding the session")
	}
	defer clear(text)
	if err := durable.WriteFile(path, text, 0o600); err != nil {
		return problem.Local(err, "keeping the session")
	}
	return nil
}

// LoadSession reads what Save wrote. A session of another environment is wrong-environment; an expired one is
// returned like any other, since its key may still renew it. An absent file is fs.ErrNotExist, of reason not-found. One whose key is in
// the machine's hardware is unsupported here: see LoadHardwareSession.
func LoadSession(path string, t *Trust) (*Session, error) {
	return LoadHardwareSession(path, t, func([]byte) (crypto.Signer, error) {
		return nil, problem.New(problem.ReasonUnsupported, "the key of the session in %s is in the machine's hardware", path)
	})
}

// LoadHardwareSession is LoadSession on a machine whose hardware may have the session's key: load makes the key of its blob again
// (attest.KeyMaker). It is not called for a session whose key is in the file, and its error is returned as it is.
func LoadHardwareSession(path string, t *Trust, load func(blob []byte) (crypto.Signer, error)) (*Session, error) {
	var f sessionFile
	if err := readJSON(path, maxSessionFile, &f); err != nil {
		return nil, err
	}
	defer clear(f.Key)
	var key crypto.Signer
	switch f.Format {
	case sessionFormat:
		k, err := x509.ParsePKCS8PrivateKey(f.Key)
		var ok bool
		if key, ok = k.(crypto.Signer); err != nil || !ok {
			return nil, problem.New(problem.ReasonInvalid, "%s is damaged: its key can't be read", path)
		}
	case hardwareFormat:
		k, err := load(bytes.Clone(f.Key))
		if err != nil {
			return nil, err
		}
		key = HardwareKey{k, bytes.Clone(f.Key)}
	default:
		return nil, problem.New(problem.ReasonUnknownVersion, "%s has format %q", path, f.Format)
	}
	s := &Session{
		Identity: f.Identity, Assurance: f.Assurance, Epoch: f.Epoch, Index: f.Index,
		Expires: f.Expires, RenewAfter: f.RenewAfter, LifetimeEnd: f.LifetimeEnd,
	}
	if err := s.install(t, f.Chain, key, time.Time{}); err != nil {
		return nil, err
	}
	return s, nil
}

// install checks a chain before it is used as the session's: it is of this identity, for this key, under the pinned
// CA. at is when it must be valid; zero: at its own beginning.
func (s *Session) install(t *Trust, chain [][]byte, key crypto.Signer, at time.Time) error {
	bad := func(why string) error {
		return problem.New(problem.ReasonNotAuthentic, "the session's certificate is not what was asked for: %s", why)
	}
	id, err := identity.Parse(s.Identity)
	if err != nil {
		return bad("its identity is not a SPIFFE ID")
	}
	if id.Env() != t.Environment {
		return problem.New(problem.ReasonWrongEnvironment, "the session is one of %s, not of %s", id.Env(), t.Environment)
	}
	if len(chain) == 0 || len(chain) > 16 {
		return bad("the length of its chain")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return bad("it can't be read")
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != s.Identity || leaf.IsCA {
		return bad("it names another identity")
	}
	if pub, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.Public()) {
		return bad("it is for another key")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(t.CA)
	for _, der := range chain[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return bad("its chain can't be read")
		}
		between.AddCert(c)
	}
	if at.IsZero() {
		at = leaf.NotBefore
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return bad("its chain does not lead to the genesis CA")
	}
	s.Certificate = tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}
	return nil
}

// NewKey makes a session key, ECDSA P-256.
func NewKey() (crypto.Signer, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonEntropy, "making a session key")
	}
	return k, nil
}

// request is what every way to a session needs of its key.
type request struct {
	csr   []byte
	thumb [32]byte
}

func requestOf(key crypto.Signer) (request, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if p := (*problem.Problem)(nil); errors.As(err, &p) {
		return request{}, err // the hardware that has the key says itself why it does not sign
	}
	if err != nil {
		return request{}, problem.Wrap(err, problem.ReasonInternal, "making the certificate request")
	}
	thumb, err := attest.Thumbprint(key.Public())
	return request{csr, thumb}, err
}

// Attester makes evidence that is bound to a challenge and a session key. It is attest.Attester; one whose method goes in two rounds is
// an attest.Greeter too.
type Attester interface {
	Attest(ctx context.Context, b attest.Binding) ([]byte, error)
}

// Attest proves what this machine is by a method, and returns the session for key. When the answer was lost, the same
// call with the same key is safe; another key is not, where the method's evidence is of single use.
func (c *Client) Attest(ctx context.Context, method string, a Attester, key crypto.Signer, version string) (*Session, error) {
	ask, err := c.evidence(ctx, method, a, key)
	if err != nil {
		return nil, err
	}
	ask.AgentVersion, ask.Agent = version, c.agent()
	res, err := c.Attestation.Attest(ctx, ask)
	if err != nil {
		return nil, err
	}
	return c.session(res, key)
}

// Appraise asks what the server would say to this machine's evidence, and why. Nothing is opened or entered.
func (c *Client) Appraise(ctx context.Context, method string, a Attester, key crypto.Signer) (*v1.AppraiseResponse, error) {
	ask, err := c.evidence(ctx, method, a, key)
	if err != nil {
		return nil, err
	}
	ask.Agent = c.agent()
	return c.Attestation.Appraise(ctx, ask)
}

// evidence gets a challenge, and has the attester answer it. A machine that was reset between its hello and its answer (it slept, say) says
// hello again, once.
func (c *Client) evidence(ctx context.Context, method string, a Attester, key crypto.Signer) (*v1.AttestRequest, error) {
	r, err := requestOf(key)
	if err != nil {
		return nil, err
	}
	ask, err := c.answered(ctx, method, a, r)
	if problem.Is(err, problem.ReasonReset) {
		ask, err = c.answered(ctx, method, a, r)
	}
	return ask, err
}

// answered goes through the rounds of a method once.
func (c *Client) answered(ctx context.Context, method string, a Attester, r request) (*v1.AttestRequest, error) {
	ask := &v1.ChallengeRequest{}
	greeter, two := a.(attest.Greeter)
	if two {
		var err error
		ask.Method = method
		if ask.Hello, err = greeter.Hello(ctx); err != nil {
			return nil, err
		}
	}
	challenge, err := c.challenge(ctx, ask)
	if err != nil {
		return nil, err
	}
	b := attest.Binding{Method: method, Genesis: c.trust.Genesis, Nonce: challenge.Challenge, SessionKey: r.thumb}
	var evidence []byte
	if two {
		evidence, err = greeter.Answer(ctx, b, ask.Hello, challenge.Offer)
	} else {
		evidence, err = a.Attest(ctx, b)
	}
	if err != nil {
		return nil, err
	}
	return &v1.AttestRequest{Method: method, Challenge: challenge.Challenge, Evidence: evidence, Csr: r.csr}, nil
}

// Renew renews a session by possession of its key, and returns the next one, for key. The session may have expired.
// When the answer was lost, the call must be repeated with the same session and the same key: with another key the
// server sees two holders of one enrolment, and holds both. So keep the key before calling.
func (c *Client) Renew(ctx context.Context, s *Session, key crypto.Signer, version string) (*Session, error) {
	r, err := requestOf(key)
	if err != nil {
		return nil, err
	}
	old, ok := s.Certificate.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, problem.New(problem.ReasonInternal, "the session's key can't sign")
	}
	asked, err := c.challenge(ctx, &v1.ChallengeRequest{})
	if err != nil {
		return nil, err
	}
	challenge := asked.Challenge
	b := attest.Binding{Method: RenewalMethod, Genesis: c.trust.Genesis, Nonce: challenge, SessionKey: r.thumb}
	signature, err := signMessage(old, b.Message())
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "signing the renewal")
	}
	res, err := c.Attestation.Renew(ctx, &v1.RenewRequest{
		Challenge: challenge, Certificate: s.Certificate.Certificate[0], Signature: signature, Csr: r.csr, AgentVersion: version, Agent: c.agent(),
	})
	if err != nil {
		return nil, err
	}
	next, err := c.session(res, key)
	if err == nil && next.Identity != s.Identity {
		return nil, problem.New(problem.ReasonNotAuthentic, "the renewal gave another identity")
	}
	return next, err
}

func signMessage(key crypto.Signer, message []byte) ([]byte, error) {
	if _, ok := key.Public().(*ecdsa.PublicKey); ok {
		h := sha256.Sum256(message)
		return key.Sign(rand.Reader, h[:], crypto.SHA256)
	}
	return key.Sign(rand.Reader, message, crypto.Hash(0)) // Ed25519
}

// AttestWorkload gets a session for a process on this node, over the node's own session, from claims about it.
// workload is the wanted identity, or empty for the only one that fits.
func (c *Client) AttestWorkload(ctx context.Context, claims map[string]any, workload string, key crypto.Signer) (*Session, error) {
	r, err := requestOf(key)
	if err != nil {
		return nil, err
	}
	s, err := structpb.NewStruct(claims)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "encoding the claims")
	}
	res, err := c.Attestation.AttestWorkload(ctx, &v1.AttestWorkloadRequest{Claims: s, Workload: workload, Csr: r.csr})
	if err != nil {
		return nil, err
	}
	return c.session(res, key)
}

// Login opens an operator's session, with a key made for it. sign makes an armored SSHSIG of the text in the
// namespace; the person sees what is signed: environment, genesis, epoch, name, session key and challenge.
func (c *Client) Login(ctx context.Context, person string, sign func(namespace string, text []byte) (string, error)) (*Session, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	r, err := requestOf(key)
	if err != nil {
		return nil, err
	}
	epoch, err := c.Epoch(ctx)
	if err != nil {
		return nil, err
	}
	asked, err := c.challenge(ctx, &v1.ChallengeRequest{})
	if err != nil {
		return nil, err
	}
	challenge := asked.Challenge
	text := ceremony.Login{
		Scope:  ceremony.Scope{Environment: c.trust.Environment, Genesis: c.trust.Genesis, Epoch: epoch},
		Person: person, SessionKey: r.thumb, Challenge: challenge,
	}.Text()
	signature, err := sign(ceremony.NamespaceLogin, []byte(text))
	if err != nil {
		return nil, err
	}
	res, err := c.Attestation.Login(ctx, &v1.LoginRequest{Challenge: challenge, Person: person, Sshsig: signature, Csr: r.csr})
	if err != nil {
		return nil, err
	}
	return c.session(res, key)
}

// Epoch is the ledger's present epoch, by its signed checkpoint.
func (c *Client) Epoch(ctx context.Context) (uint64, error) {
	r, err := c.Environment.GetEnvironment(ctx, &v1.GetEnvironmentRequest{})
	if err != nil {
		return 0, err
	}
	t, err := c.trust.withKeys(r.CheckpointKeys)
	if err != nil {
		return 0, err
	}
	verifiers := make([]note.Verifier, len(t.CheckpointKeys))
	for i, k := range t.CheckpointKeys {
		if verifiers[i], err = verify.ParseVerifier(k); err != nil {
			return 0, problem.Wrap(err, problem.ReasonNotAuthentic, "a checkpoint key")
		}
	}
	o, err := verify.OpenCheckpoint([]byte(r.Checkpoint), verifiers...)
	if err != nil {
		return 0, problem.Wrap(err, problem.ReasonNotAuthentic, "the newest checkpoint")
	}
	text, ok := strings.CutPrefix(o.Origin, strings.TrimSuffix(origin(t.Environment, t.Genesis, 0), "0"))
	epoch, err := strconv.ParseUint(text, 10, 64)
	if !ok || err != nil {
		return 0, problem.New(problem.ReasonNotAuthentic, "the newest checkpoint is of another log")
	}
	return epoch, nil
}

const (
	maxChallenge = attest.MaxNonce
	minChallenge = attest.MinNonce
)

// challenge asks for a challenge. Its size is checked, because it becomes part of what is signed.
func (c *Client) challenge(ctx context.Context, ask *v1.ChallengeRequest) (*v1.ChallengeResponse, error) {
	r, err := c.Attestation.Challenge(ctx, ask)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(r.Genesis, c.trust.Genesis[:]) {
		return nil, problem.New(problem.ReasonWrongEnvironment, "the challenge is one of another environment")
	}
	if n := len(r.Challenge); n < minChallenge || n > maxChallenge {
		return nil, problem.New(problem.ReasonNotAuthentic, "the challenge has %d bytes", n)
	}
	if len(r.Offer) > attest.LargestEvidence {
		return nil, problem.New(problem.ReasonNotAuthentic, "the offer has %d bytes", len(r.Offer))
	}
	return r, nil
}

// session reads and checks an answer.
func (c *Client) session(r *v1.SessionResponse, key crypto.Signer) (*Session, error) {
	s := &Session{
		Identity: r.Identity, Assurance: r.Assurance, Epoch: r.Entry.GetEpoch(), Index: r.Entry.GetIndex(),
		Expires: timeOf(r.Expires), RenewAfter: timeOf(r.RenewAfter), LifetimeEnd: timeOf(r.LifetimeEnd),
	}
	if err := s.install(c.trust, r.Chain, key, time.Time{}); err != nil {
		return nil, err
	}
	// The certificate's end is what counts; an answer that says more is cut.
	if end := s.Certificate.Leaf.NotAfter; s.Expires.IsZero() || s.Expires.After(end) {
		s.Expires = end
	}
	if begin := s.Certificate.Leaf.NotBefore; s.RenewAfter.Before(begin) || s.RenewAfter.After(s.Expires) {
		s.RenewAfter = begin.Add(s.Expires.Sub(begin) / 2)
	}
	return s, nil
}

func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

// ErrNoSession is what a Credentials may return when there is none yet.
var ErrNoSession error = problem.New(problem.ReasonNoSession, "there is no session")
