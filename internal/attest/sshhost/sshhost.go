// Package sshhost is the attestation method "sshhost": a machine proves that it holds its SSH host key, which an SSH certificate
// authority named in the bundle vouches for, or which the bundle lists.
//
// Guaranteed: the host key signed this challenge for this environment and session key, as an SSHSIG of the namespace "attest@bailment",
// which no SSH connection ever signs (sshd signs exchange hashes, RFC 4253 §8, which don't begin with SSHSIG's magic); and either the key
// is listed, or its certificate is a host's, in force at Input.Now, without critical options, for named hosts, and signed by an authority's
// key with an algorithm that is not weak (PROTOCOL.certkeys). Not guaranteed: that the certificate was not revoked (a key revocation list
// is not asked), that the key never left the machine, and that names mean what they say. README.md says more.
//
// It is one method of package attest, and imports it and the leaves below.
package sshhost

import (
	"bytes"
	"context"
	"encoding/pem"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/sshsig"
)

// Name is the method's name, and the first half of its anchors ("sshhost:AUTHORITY").
const Name = "sshhost"

// Namespace keeps what a host key signs here from being taken for anything else that it signs (PROTOCOL.sshsig).
const Namespace = "attest@bailment"

// Limits on evidence, in bytes.
const (
	maxCertificate = 16 << 10
	maxSignature   = 8 << 10 // an RSA key of 8,192 bits and its signature have 2 KiB together
)

// What an agent needs for this method.
const (
	NeedKey         = "key"
	NeedCertificate = "certificate"
)

// Method is the method's row of the table.
func Method() attest.Method {
	return attest.Method{
		Name:   Name,
		Proves: "possession of an SSH host key that the bundle lists, or that an SSH certificate authority named in the bundle vouches for now",
		DoesNotProve: "that the authority has not revoked the certificate, that the key never left the machine, " +
			"or what runs on it",
		Assurance: identity.Key,
		Renewal:   attest.Renewal{Kind: attest.RenewByEvidence},
		Verify:    Verify,
		Params:    paramsOf,
		Needs: []attest.Need{
			{Name: NeedKey, Doc: "the SSH host's private key, not encrypted (/etc/ssh/ssh_host_ed25519_key)", Secret: true},
			{Name: NeedCertificate, Doc: "the host key's certificate (/etc/ssh/ssh_host_ed25519_key-cert.pub); without it the bundle must list the key", Optional: true},
		},
		NewAttester: func(m attest.Material) (attest.Attester, error) {
			return NewAttester(m[NeedKey], m[NeedCertificate])
		},
	}
}

// evidence is the document that crosses the wire. Its field order is its encoding.
type evidence struct {
	Certificate []byte `json:"certificate,omitempty"` // PROTOCOL.certkeys; none: the key is to be listed
	Signature   []byte `json:"signature"`             // PROTOCOL.sshsig without its armor: it has the key too
}

// Verify is the verifier; its Params are of type Params.
func Verify(in attest.Input) (attest.Result, error) {
	params, err := attest.Begin[Params](in, Name)
	if err != nil {
		return attest.Result{}, err
	}
	var ev evidence
	if err := attest.DecodeEvidence(in.Evidence, &ev); err != nil {
		return attest.Result{}, err
	}
	if len(ev.Signature) > maxSignature || len(ev.Certificate) > maxCertificate {
		return attest.Result{}, problem.New(problem.ReasonTooLarge, "the signature has more than %d bytes, or the certificate more than %d", maxSignature, maxCertificate)
	}
	key, err := checkSignature(ev.Signature, in.Binding.Message())
	if err != nil {
		return attest.Result{}, err
	}
	thumbprint, err := thumbprintOf(key)
	if err != nil {
		return attest.Result{}, err
	}
	res := attest.Result{Assurance: identity.Key, Key: thumbprint}
	var who host
	if len(ev.Certificate) == 0 {
		who, err = params.listed(key)
	} else {
		who, err = params.certified(ev.Certificate, key, in.Now)
	}
	if err != nil {
		return attest.Result{}, err
	}
	res.Claims, res.Anchor, res.NotAfter = who.claims(key), Name+":"+who.authority, who.notAfter
	if err := attest.CheckClaims(res.Claims); err != nil {
		return attest.Result{}, err
	}
	return res, nil
}

// host is what was found out about a key.
type host struct {
	authority  string
	proof      string // how the authority vouches: proofListed or proofCertificate
	principals []string
	keyID      string // of the certificate
	serial     string
	ca         string    // fingerprint of the key that signed the certificate
	notAfter   time.Time // zero: no end of its own
}

// The values of the claim "proof".
const (
	proofListed      = "listed"
	proofCertificate = "certificate"
)

// claims says what the authority says of the host. Every field is always there, so that a rule that reads one never fails for want of it:
//
//	authority    the named authority of the bundle
//	proof        "listed" or "certificate"
//	principals   the host's names: the certificate's, or the one in the bundle
//	fingerprint  of the host key, as ssh-keygen -l shows it
//	key_id       of the certificate; "" without one
//	serial       of the certificate, decimal; "" without one
//	ca           fingerprint of the certificate authority's key; "" without a certificate
func (h host) claims(key ssh.PublicKey) map[string]any {
	principals := make([]any, len(h.principals))
	for i, p := range h.principals {
		principals[i] = p
	}
	return map[string]any{
		"authority": h.authority, "proof": h.proof, "principals": principals, "fingerprint": sshsig.Fingerprint(key),
		"key_id": h.keyID, "serial": h.serial, "ca": h.ca,
	}
}

const armorType = "SSH SIGNATURE"

func armor(wire []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: armorType, Bytes: wire})
}

// checkSignature gives the key that signed message. Whose it is remains to be seen. The causes' own words quote the signature, so they stay
// inside.
func checkSignature(wire, message []byte) (ssh.PublicKey, error) {
	refuse := func(cause error, r problem.Reason, says string) (ssh.PublicKey, error) {
		p := problem.New(r, "%s", says)
		p.Err = cause
		return nil, p
	}
	armored := armor(wire)
	sig, err := sshsig.ParseSignature(armored)
	switch {
	case problem.Is(err, problem.ReasonUnsupported):
		return refuse(err, problem.ReasonWeakAlgorithm, "the host key, or the algorithm that it signed with, is not accepted")
	case problem.Is(err, problem.ReasonSignature) || err == nil && strings.HasPrefix(sig.Key.Type(), "sk-"):
		// A host can't be asked to touch its key, and a key without that proves less than it seems to.
		return refuse(err, problem.ReasonWeakAlgorithm, "the host key is one that a person must touch")
	case err != nil:
		return refuse(err, problem.ReasonInvalid, "the evidence holds no SSH signature in its one form")
	}
	if _, err := sshsig.Verify(armored, []ssh.PublicKey{sig.Key}, Namespace, message); err != nil {
		return refuse(err, problem.ReasonBadProof, "the signature is not the host key's for this challenge, environment and session key, or is of another namespace")
	}
	return sig.Key, nil
}

func thumbprintOf(key ssh.PublicKey) ([32]byte, error) {
	ck, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return [32]byte{}, problem.New(problem.ReasonWeakAlgorithm, "the host key is of a type that is not accepted")
	}
	return attest.Thumbprint(ck.CryptoPublicKey())
}

// attester holds a host key.
type attester struct {
	signer      ssh.Signer
	certificate []byte // nil: none
}

// NewAttester makes the attester from the private key's file and the certificate's, which may be empty. Its errors show nothing of the files.
func NewAttester(key, certificate []byte) (attest.Attester, error) {
	signer, err := ssh.ParsePrivateKey(key)
	if err != nil {
		return nil, problem.New(problem.ReasonInvalid, "the host key's file is not an unencrypted SSH private key")
	}
	if err := sshsig.CheckKey(signer.PublicKey()); err != nil {
		return nil, err
	}
	a := attester{signer: signer}
	if len(certificate) == 0 {
		return a, nil
	}
	public, _, options, rest, err := ssh.ParseAuthorizedKey(certificate)
	if err != nil || len(options) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, problem.New(problem.ReasonInvalid, "the certificate's file is not one SSH certificate")
	}
	cert, ok := public.(*ssh.Certificate)
	if !ok {
		return nil, problem.New(problem.ReasonInvalid, "the certificate's file holds a key without a certificate")
	}
	if cert.CertType != ssh.HostCert || !sshsig.SameKey(cert.Key, signer.PublicKey()) {
		return nil, problem.New(problem.ReasonInvalid, "the certificate is not a host's, or is of another key")
	}
	a.certificate = cert.Marshal()
	return a, nil
}

// Attest signs the binding with the host key.
func (a attester) Attest(ctx context.Context, b attest.Binding) ([]byte, error) {
	if err := attest.BeginAttest(ctx, b, Name); err != nil {
		return nil, err
	}
	armored, err := sshsig.Sign(a.signer, Namespace, b.Message())
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "sign with the SSH host key")
	}
	block, _ := pem.Decode(armored)
	if block == nil || block.Type != armorType {
		return nil, problem.New(problem.ReasonInternal, "the signature just made has no armor")
	}
	return attest.EncodeEvidence(evidence{Certificate: a.certificate, Signature: block.Bytes})
}
