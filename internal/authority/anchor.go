package authority

import (
	"crypto/x509"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/crypto/ssh"
)

// Authority is what a bundle trusts under one name, for one attestation method. Which of its fields a method takes says Methods. It is
// immutable once a bundle is compiled: what it holds is shared.
type Authority struct {
	Name   string
	Method string
	// Source says where its roots are from, for people; Imported when somebody looked.
	Source   string
	Imported time.Time

	// Certificates are trust anchors. For methods that ask an issuer over HTTPS (Issuer) they are the roots of its TLS
	// certificate instead, and none means the system's.
	Certificates []*x509.Certificate
	// SSHKeys are the keys of SSH certificate authorities (sshhost).
	SSHKeys []ssh.PublicKey
	// Hosts are single hosts' keys (sshhost).
	Hosts []Host
	// Issuer is the exact "iss" of the tokens of an OIDC issuer.
	Issuer string
	// KeysURL is where the issuer's keys are, if its discovery document is not asked for that.
	KeysURL string
	// Keys are an issuer's keys, pinned: then nobody is asked for them. Public keys only; nil: not pinned.
	Keys *jose.JSONWebKeySet
	// EndorsementKeys are SHA-256 digests of SubjectPublicKeyInfos of TPM endorsement keys, trusted without a certificate.
	EndorsementKeys [][32]byte
	// PCRs are those that a TPM must quote, ascending, of its SHA-256 bank.
	PCRs []int
	// References are what machines may have booted. None: nothing is compared.
	References []Reference
	// MaxAge is how old evidence without a nonce may be; 0: the method's own bound.
	MaxAge time.Duration
}

// Host is one machine's SSH host key.
type Host struct {
	Name string
	Key  ssh.PublicKey
}

// Reference is one set of reference values (RFC 9334 §8.3): what a version of a machine's software measures as. A machine fits if it fits
// one set whose window is open, so an update is brought by a second set, beside the first, and the first one is given an end.
type Reference struct {
	Name    string
	Version string
	From    time.Time // zero: from ever on
	Until   time.Time // zero: without end
	// PCRs are the values that are good, by PCR: any of them.
	PCRs map[int][][32]byte
	// Events are the SHA-256 digests of measured components (boot loader, kernel, command line …) that are good.
	Events [][32]byte
	// Signers are the SHA-256 digests of certificates in the firmware's Secure Boot variables: a component that is not among Events but
	// was verified by one of them is "signed", neither "known" nor "bad".
	Signers [][32]byte
}

// DefaultPCRs are quoted for an authority that names none: firmware, boot loader, Secure Boot, and what GRUB and shim measure (TCG PC
// Client Platform Firmware Profile §3.3.4). PCR 5 is not among them: its last event is the end of the firmware's services, which some
// kernels lose from the log, and then it replays nowhere.
func DefaultPCRs() []int { return []int{0, 1, 2, 3, 4, 6, 7, 8, 9, 14} }

// Open reports whether the set's window is open.
func (r Reference) Open(now time.Time) bool {
	return (r.From.IsZero() || !now.Before(r.From)) && (r.Until.IsZero() || now.Before(r.Until))
}

// Fields are the parts of an Authority that a bundle gives.
type Fields uint

// The fields, as bits.
const (
	FieldPEM Fields = 1 << iota
	FieldSSH
	FieldIssuer
	FieldKeys
	FieldKeysURL
	FieldEndorsementKeys
	FieldMeasurements // PCRs and References
	FieldMaxAge
)

// Method is what a bundle must know of an attestation method.
type Method struct {
	Name   string
	Prefix string // of the identities that it gives
	// Needs: all of these must be given. OneOf: at least one of these, if it is not 0. Takes: these may be given.
	Needs, OneOf, Takes Fields
	// Once: what it proves is proved for one session key only (attest.Result.Once), so the ledger has a use beside each first session.
	Once bool
}

// Authorities reports whether the method's evidence is judged by an authority of the bundle.
func (m Method) Authorities() bool { return m.Needs|m.OneOf|m.Takes != 0 }

// JoinToken is the one method without an authority: the ledger itself knows its tokens.
const JoinToken = "join-token"

const oidc = FieldKeys | FieldKeysURL | FieldPEM

// Methods is what bundles may name. A test of attest/methods holds it to the table of those that exist.
var Methods = []Method{
	{Name: JoinToken, Prefix: "/node/join-token/", Once: true},
	{Name: "x509", Prefix: "/node/x509/", Needs: FieldPEM, Takes: FieldPEM},
	{Name: "sshhost", Prefix: "/node/sshhost/", OneOf: FieldSSH, Takes: FieldSSH},
	{Name: "k8s", Prefix: "/node/k8s/", Needs: FieldIssuer, Takes: FieldIssuer | oidc, Once: true},
	{Name: "aws", Prefix: "/node/aws/", Needs: FieldPEM, Takes: FieldPEM | FieldMaxAge, Once: true},
	{Name: "gcp", Prefix: "/node/gcp/", Needs: FieldIssuer, Takes: FieldIssuer | oidc},
	{Name: "azure", Prefix: "/node/azure/", OneOf: FieldIssuer | FieldPEM, Takes: FieldIssuer | oidc | FieldMaxAge},
	{Name: "tpm", Prefix: "/node/tpm/", OneOf: FieldPEM | FieldEndorsementKeys, Takes: FieldPEM | FieldEndorsementKeys | FieldMeasurements},
	{Name: "sev-snp", Prefix: "/node/sev-snp/", Needs: FieldPEM, Takes: FieldPEM},
	{Name: "tdx", Prefix: "/node/tdx/", Needs: FieldPEM, Takes: FieldPEM},
	{Name: "github", Prefix: "/ci/github/", Needs: FieldIssuer, Takes: FieldIssuer | oidc, Once: true},
	{Name: "gitlab", Prefix: "/ci/gitlab/", Needs: FieldIssuer, Takes: FieldIssuer | oidc, Once: true},
	{Name: "buildkite", Prefix: "/ci/buildkite/", Needs: FieldIssuer, Takes: FieldIssuer | oidc, Once: true},
	{Name: "circleci", Prefix: "/ci/circleci/", Needs: FieldIssuer, Takes: FieldIssuer | oidc, Once: true},
	{Name: "k8s-job", Prefix: "/ci/k8s-job/", Needs: FieldIssuer, Takes: FieldIssuer | oidc, Once: true},
	{Name: "oidc", Prefix: "/ci/oidc/", Needs: FieldIssuer, Takes: FieldIssuer | oidc, Once: true},
}

// FindMethod finds a method by its name.
func FindMethod(name string) (Method, bool) {
	i := slices.IndexFunc(Methods, func(m Method) bool { return m.Name == name })
	if i < 0 {
		return Method{}, false
	}
	return Methods[i], true
}

// MethodOf is the method that gives identities of that path; "" for none.
func MethodOf(path string) string {
	for _, m := range Methods {
		if strings.HasPrefix(path, m.Prefix) {
			return m.Name
		}
	}
	return ""
}
