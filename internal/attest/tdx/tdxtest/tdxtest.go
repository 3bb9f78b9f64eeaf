// Package tdxtest is an Intel platform for tests, in software: a root, a platform's key, a quoting enclave, and quotes in the real format.
//
// Guaranteed: its quotes have the form of real ones. Not guaranteed: anything about real ones; those are tested with what others published.
// Only tests import it.
package tdxtest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	cx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/pcs"

	"github.com/bailment/bailment/internal/attest/tsm"
)

// Platform is a machine with its root.
type Platform struct {
	Root  *cx509.Certificate
	Chain []byte // PEM: the PCK's certificate, its issuer's, the root's
	PCK   *ecdsa.PrivateKey
	AK    *ecdsa.PrivateKey // of the quoting enclave

	// These are applied before signing: to header and body, to the quoting enclave's report.
	ChangeBody, ChangeEnclave func([]byte)
	// Data are the quoting enclave's own.
	Data []byte
}

// Maker is how a Platform's certificates are made. The zero value makes a good one.
type Maker struct {
	ChangeRoot, ChangeIssuer, ChangePCK func(*cx509.Certificate)
}

// New makes a platform whose certificates are valid around now.
func New(t testing.TB, now time.Time, m Maker) *Platform {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	template := func(cn string, ca bool, change func(*cx509.Certificate)) *cx509.Certificate {
		c := &cx509.Certificate{
			SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(48 * time.Hour), BasicConstraintsValid: true, IsCA: ca,
			Subject:  pkix.Name{CommonName: cn, Organization: []string{"Intel Corporation"}, Locality: []string{"Santa Clara"}, Province: []string{"CA"}, Country: []string{"US"}},
			KeyUsage: cx509.KeyUsageCertSign | cx509.KeyUsageCRLSign,
		}
		if !ca {
			c.KeyUsage, c.NotAfter = cx509.KeyUsageDigitalSignature, now.Add(24*time.Hour)
			c.SubjectKeyId, c.CRLDistributionPoints = []byte{1}, []string{"https://crl.example"}
			c.ExtraExtensions = []pkix.Extension{{Id: pcs.OidSgxExtension, Value: Extensions(t)}}
		}
		if change != nil {
			change(c)
		}
		return c
	}
	issue := func(tmpl, parent *cx509.Certificate, pub crypto.PublicKey, by *ecdsa.PrivateKey) *cx509.Certificate {
		t.Helper()
		der, err := cx509.CreateCertificate(rand.Reader, tmpl, parent, pub, by)
		if err != nil {
			t.Fatal(err)
		}
		c, err := cx509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	rootKey, issuerKey := key(), key()
	p := &Platform{PCK: key(), AK: key(), Data: []byte("data of the enclave")}
	tmpl := template("Intel SGX Root CA", true, m.ChangeRoot)
	p.Root = issue(tmpl, tmpl, rootKey.Public(), rootKey)
	issuer := issue(template("Intel SGX PCK Platform CA", true, m.ChangeIssuer), p.Root, issuerKey.Public(), rootKey)
	pck := issue(template("Intel SGX PCK Certificate", false, m.ChangePCK), issuer, p.PCK.Public(), issuerKey)
	for _, c := range []*cx509.Certificate{pck, issuer, p.Root} {
		p.Chain = append(p.Chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return p
}

// Extensions are what Intel writes into a PCK's certificate (Intel SGX PCK Certificate and CRL Profile §1.3.5).
func Extensions(t testing.TB) []byte {
	t.Helper()
	must := func(v any) []byte {
		der, err := asn1.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	type attribute struct {
		Type  asn1.ObjectIdentifier
		Value any
	}
	var tcb []asn1.RawValue
	for i := range 16 {
		tcb = append(tcb, asn1.RawValue{FullBytes: must(attribute{append(bytesOID(), 2, i+1), i})})
	}
	tcb = append(tcb, asn1.RawValue{FullBytes: must(attribute{pcs.OidPCESvn, 11})}, asn1.RawValue{FullBytes: must(attribute{pcs.OidCPUSvn, make([]byte, 16)})})
	fill := func(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }
	return must([]asn1.RawValue{
		{FullBytes: must(attribute{pcs.OidPPID, fill(1, 16)})},
		{FullBytes: must(attribute{pcs.OidTCB, tcb})},
		{FullBytes: must(attribute{pcs.OidPCEID, fill(0, 2)})},
		{FullBytes: must(attribute{pcs.OidFMSPC, fill(3, 6)})},
	})
}

func bytesOID() asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{}, pcs.OidSgxExtension...)
}

// Report makes a quote as the kernel gives it.
func (p *Platform) Report(_ context.Context, data [tsm.DataSize]byte) (tsm.Report, error) {
	quote, err := p.Quote(data)
	return tsm.Report{Provider: "tdx_guest", Out: quote}, err
}

// Quote makes a quote of version 4 (Intel TDX DCAP Quoting Library API, appendix A.3).
func (p *Platform) Quote(data [tsm.DataSize]byte) ([]byte, error) {
	le := binary.LittleEndian
	signed := make([]byte, 48+584)
	le.PutUint16(signed, 4)
	le.PutUint16(signed[2:], 2)
	le.PutUint32(signed[4:], 0x81)
	vendor, _ := hex.DecodeString("939a7233f79c4ca9940a0db3957f0607")
	copy(signed[12:], vendor)
	body := signed[48:]
	body[0] = 3                                     // TEE_TCB_SVN
	copy(body[16:], bytes.Repeat([]byte{0x5E}, 48)) // MRSEAM
	body[123] = 0x10                                // TD_ATTRIBUTES: SEPT_VE_DISABLE
	copy(body[136:], bytes.Repeat([]byte{0xAA}, 48))
	for i := range 4 {
		copy(body[328+48*i:], bytes.Repeat([]byte{0xB0 + byte(i)}, 48))
	}
	copy(body[520:], data[:])
	if p.ChangeBody != nil {
		p.ChangeBody(signed)
	}
	signature, err := sign(p.AK, signed)
	if err != nil {
		return nil, err
	}
	point, err := p.AK.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	key := point[1:]

	report := make([]byte, 384)
	report[48] = 0x11 // attributes: INIT, PROVISION_KEY
	signer, _ := hex.DecodeString("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
	copy(report[128:], signer)
	le.PutUint16(report[256:], 2) // product
	le.PutUint16(report[258:], 4) // security version
	sum := sha256.Sum256(append(bytes.Clone(key), p.Data...))
	copy(report[320:], sum[:])
	if p.ChangeEnclave != nil {
		p.ChangeEnclave(report)
	}
	certification := report
	reportSignature, err := sign(p.PCK, report)
	if err != nil {
		return nil, err
	}
	certification = append(certification, reportSignature...)
	certification = le.AppendUint16(certification, uint16(len(p.Data)))
	certification = append(certification, p.Data...)
	certification = append(certification, tag(5, p.Chain)...)

	auth := append(signature, key...)
	auth = append(auth, tag(6, certification)...)
	return append(le.AppendUint32(signed, uint32(len(auth))), auth...), nil
}

func tag(kind uint16, data []byte) []byte {
	out := binary.LittleEndian.AppendUint16(nil, kind)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(data)))
	return append(out, data...)
}

// sign gives r and s, 32 bytes each.
func sign(key *ecdsa.PrivateKey, message []byte) ([]byte, error) {
	sum := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return nil, err
	}
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return out, nil
}
