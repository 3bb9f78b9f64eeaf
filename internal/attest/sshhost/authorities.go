package sshhost

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/sshsig"
)

// Limits on a certificate's names.
const (
	maxPrincipals = 64
	maxPrincipal  = 255 // bytes; a DNS name has at most 253
)

// Params is what Verify needs of the environment: the authorities of the bundle in force. It is immutable.
type Params struct {
	cas   map[string]string         // public key on the wire → authority
	hosts map[string]authority.Host // public key on the wire → host
	of    map[string]string         // public key on the wire of a host → authority
}

func paramsOf(all []authority.Authority) (any, error) { return NewParams(all) }

// NewParams makes the params from a bundle's authorities. A key that stands there twice is refused, since it could be two authorities' or two
// hosts', and so is a weak one.
func NewParams(all []authority.Authority) (Params, error) {
	p := Params{cas: map[string]string{}, hosts: map[string]authority.Host{}, of: map[string]string{}}
	refuse := func(name, says string) (Params, error) {
		return Params{}, problem.New(problem.ReasonInvalid, "sshhost authority %.80q: %s", name, says)
	}
	seen := map[string]bool{}
	for _, a := range all {
		if err := authority.ValidName(a.Name); err != nil {
			return Params{}, problem.New(problem.ReasonInvalid, "%v", err)
		}
		for _, key := range a.SSHKeys {
			wire := string(key.Marshal())
			if sshsig.CheckKey(key) != nil || seen[wire] {
				return refuse(a.Name, "a certificate authority's key is weak, or stands in the bundle twice")
			}
			seen[wire], p.cas[wire] = true, a.Name
		}
		for _, h := range a.Hosts {
			wire := string(h.Key.Marshal())
			if sshsig.CheckKey(h.Key) != nil || strings.HasPrefix(h.Key.Type(), "sk-") || seen[wire] {
				return refuse(a.Name, "a host's key is weak, one that a person must touch, or stands in the bundle twice")
			}
			if !validPrincipal(h.Name) {
				return refuse(a.Name, "a host's name is none")
			}
			seen[wire], p.hosts[wire], p.of[wire] = true, h, a.Name
		}
	}
	return p, nil
}

// listed finds a key that the bundle lists itself.
func (p Params) listed(key ssh.PublicKey) (host, error) {
	wire := key.Marshal()
	h, ok := p.hosts[string(wire)]
	if !ok {
		return host{}, problem.New(problem.ReasonBadChain, "no authority of the bundle lists this host key, and the evidence has no certificate for it")
	}
	return host{authority: p.of[string(wire)], proof: proofListed, principals: []string{h.Name}}, nil
}

// certified checks a certificate of key. PROTOCOL.certkeys has no chains: an authority's own key must have signed it.
func (p Params) certified(blob []byte, key ssh.PublicKey, now time.Time) (host, error) {
	refuse := func(says string) (host, error) { return host{}, problem.New(problem.ReasonBadChain, "%s", says) }
	parsed, err := ssh.ParsePublicKey(blob)
	if err != nil {
		return host{}, problem.New(problem.ReasonInvalid, "the certificate can't be parsed")
	}
	cert, ok := parsed.(*ssh.Certificate)
	if !ok || !bytes.Equal(cert.Marshal(), blob) {
		return host{}, problem.New(problem.ReasonInvalid, "the certificate is none, or is not in its one form")
	}
	if !sshsig.SameKey(cert.Key, key) {
		return host{}, problem.New(problem.ReasonBadProof, "the signature is by another key than the certificate's")
	}
	if cert.CertType != ssh.HostCert {
		return refuse("the certificate is not a host's")
	}
	name, ok := p.cas[string(cert.SignatureKey.Marshal())]
	if !ok {
		return refuse("no authority of the bundle signed the certificate")
	}
	if !strong(cert) {
		return host{}, problem.New(problem.ReasonWeakAlgorithm, "the authority signed the certificate with an algorithm that is not accepted")
	}
	if len(cert.CriticalOptions) > 0 {
		return refuse("the certificate has critical options, and none is known for hosts")
	}
	if len(cert.ValidPrincipals) == 0 {
		return refuse("the certificate is for no named host, and so for all of them")
	}
	if len(cert.ValidPrincipals) > maxPrincipals {
		return host{}, problem.New(problem.ReasonTooLarge, "the certificate names more than %d hosts", maxPrincipals)
	}
	for _, principal := range cert.ValidPrincipals {
		if !validPrincipal(principal) {
			return refuse("the certificate is for a pattern, or for what is no host's name")
		}
	}
	unix := uint64(max(now.Unix(), 0))
	switch {
	case unix < cert.ValidAfter:
		return refuse("the certificate is not yet valid")
	case unix >= cert.ValidBefore:
		return refuse("the certificate has expired")
	}
	// What is left is the signature. The checker looks at the rest again by its own reading.
	checker := ssh.CertChecker{Clock: func() time.Time { return now }}
	if err := checker.CheckCert(cert.ValidPrincipals[0], cert); err != nil {
		return refuse("the authority's signature on the certificate does not fit")
	}
	return host{
		authority: name, proof: proofCertificate, principals: cert.ValidPrincipals, keyID: cert.KeyId,
		serial: strconv.FormatUint(cert.Serial, 10), ca: sshsig.Fingerprint(cert.SignatureKey), notAfter: end(cert.ValidBefore),
	}, nil
}

// strong reports whether the certificate was signed with its authority's own algorithm. RSA keys have several, of which ssh-rsa is SHA-1.
func strong(cert *ssh.Certificate) bool {
	if cert.SignatureKey.Type() == ssh.KeyAlgoRSA {
		return slices.Contains([]string{ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512}, cert.Signature.Format)
	}
	return cert.Signature.Format == cert.SignatureKey.Type()
}

// validPrincipal: OpenSSH takes a host certificate's principals for patterns. A machine has names, not patterns.
func validPrincipal(s string) bool {
	return s != "" && len(s) <= maxPrincipal && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`*?,!"\`, r)
	})
}

// end is the certificate's last moment; zero: it has none, or none that a calendar has.
func end(validBefore uint64) time.Time {
	const year10000 = 253402300800
	if validBefore >= year10000 {
		return time.Time{}
	}
	return time.Unix(int64(validBefore), 0).UTC()
}
