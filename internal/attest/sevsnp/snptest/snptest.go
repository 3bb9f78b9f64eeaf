// Package snptest is an AMD CPU for tests, in software: a root, a signing key, a chip's key, and reports signed by it in the real format.
//
// Guaranteed: its reports have the form of real ones. Not guaranteed: anything about real ones; those are tested with what others published.
// Only tests import it.
package snptest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	cx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"

	"github.com/bailment/bailment/internal/attest/tsm"
)

// Finding primes is slow, and whose key is whose doesn't matter among tests: there are two.
var keys = [2]func() *rsa.PrivateKey{sync.OnceValue(newRSA), sync.OnceValue(newRSA)}

func newRSA() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
}

// TCB is what the chip's firmware levels are: boot loader 3, TEE 0, SNP 8, microcode 115.
const TCB = 3 | 8<<48 | 115<<56

// Chip is a CPU with its roots.
type Chip struct {
	Roots       []*cx509.Certificate // ARK and ASK (or ASVK)
	Certificate *cx509.Certificate
	Key         *ecdsa.PrivateKey
	// Change is applied to reports before they are signed.
	Change func(report []byte)
	now    time.Time
	vlek   bool
}

// Maker is how a Chip's certificates are made. The zero value makes a good Milan.
type Maker struct {
	Line   string // default Milan
	VLEK   bool
	Rogue  bool                     // another root of the same names
	Change func(*cx509.Certificate) // of the chip's certificate
}

// HWID is the chip's ID.
func HWID() []byte {
	id := make([]byte, abi.ChipIDSize)
	for i := range id {
		id[i] = byte(i + 1)
	}
	return id
}

// New makes a chip whose certificates are valid around now.
func New(t testing.TB, now time.Time, m Maker) *Chip {
	t.Helper()
	if m.Line == "" {
		m.Line = "Milan"
	}
	which := 0
	if m.Rogue {
		which = 1
	}
	signingKey := keys[which]()
	issue := func(tmpl, parent *cx509.Certificate, pub crypto.PublicKey) *cx509.Certificate {
		t.Helper()
		tmpl.SignatureAlgorithm = cx509.SHA384WithRSAPSS
		der, err := cx509.CreateCertificate(rand.Reader, tmpl, parent, pub, signingKey)
		if err != nil {
			t.Fatal(err)
		}
		c, err := cx509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	name := func(cn string) pkix.Name {
		return pkix.Name{
			Country: []string{"US"}, Locality: []string{"Santa Clara"}, Province: []string{"CA"},
			Organization: []string{"Advanced Micro Devices"}, OrganizationalUnit: []string{"Engineering"}, CommonName: cn,
		}
	}
	ca := func(cn string) *cx509.Certificate {
		return &cx509.Certificate{
			SerialNumber: big.NewInt(1), Subject: name(cn), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(48 * time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: cx509.KeyUsageCertSign | cx509.KeyUsageCRLSign,
		}
	}
	template := ca("ARK-" + m.Line)
	ark := issue(template, template, signingKey.Public())
	middle, leaf := "SEV-"+m.Line, "SEV-VCEK"
	if m.VLEK {
		middle, leaf = "SEV-VLEK-"+m.Line, "SEV-VLEK"
	}
	ask := issue(ca(middle), ark, signingKey.Public())

	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &cx509.Certificate{
		SerialNumber: big.NewInt(0), Subject: name(leaf), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		ExtraExtensions: Extensions(t, m.Line, m.VLEK, TCB, HWID()),
	}
	if m.Change != nil {
		m.Change(tmpl)
	}
	return &Chip{Roots: []*cx509.Certificate{ask, ark}, Certificate: issue(tmpl, ask, key.Public()), Key: key, now: now, vlek: m.VLEK}
}

// Extensions are what AMD writes into a certificate (AMD 57230 §3).
func Extensions(t testing.TB, line string, vlek bool, tcb uint64, hwid []byte) []pkix.Extension {
	t.Helper()
	must := func(v any, params string) []byte {
		der, err := asn1.MarshalWithParams(v, params)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	p := kds.DecomposeTCBVersion(kds.TCBVersion(tcb))
	product := line + "-B0"
	if vlek {
		product = line
	}
	out := []pkix.Extension{
		{Id: kds.OidStructVersion, Value: must(1, "")},
		{Id: kds.OidProductName1, Value: must(product, "ia5")},
		{Id: kds.OidBlSpl, Value: must(int(p.BlSpl), "")},
		{Id: kds.OidTeeSpl, Value: must(int(p.TeeSpl), "")},
		{Id: kds.OidSnpSpl, Value: must(int(p.SnpSpl), "")},
		{Id: kds.OidSpl4, Value: must(0, "")},
		{Id: kds.OidSpl5, Value: must(0, "")},
		{Id: kds.OidSpl6, Value: must(0, "")},
		{Id: kds.OidSpl7, Value: must(0, "")},
		{Id: kds.OidUcodeSpl, Value: must(int(p.UcodeSpl), "")},
	}
	if vlek {
		return append(out, pkix.Extension{Id: kds.OidCspID, Value: must("cloud.example", "ia5")})
	}
	return append(out, pkix.Extension{Id: kds.OidHwid, Value: hwid})
}

// Report makes a report as the kernel gives it, with the table of certificates.
func (c *Chip) Report(_ context.Context, data [tsm.DataSize]byte) (tsm.Report, error) {
	r := c.Unsigned(data)
	if err := c.Sign(r); err != nil {
		return tsm.Report{}, err
	}
	return tsm.Report{Provider: "sev_guest", Out: r, Aux: c.Table()}, nil
}

// Table is the table of certificates that a host gives with a report.
func (c *Chip) Table() []byte {
	guid := []byte{0x63, 0xda, 0x75, 0x8d, 0xe6, 0x64, 0x45, 0x64, 0xad, 0xc5, 0xf4, 0xb9, 0x3b, 0xe8, 0xac, 0xcd}
	if c.vlek {
		guid = []byte{0xa8, 0x07, 0x4b, 0xc2, 0xa2, 0x5a, 0x48, 0x3e, 0xaa, 0xe6, 0x39, 0xc0, 0x45, 0xa0, 0xb8, 0xa1}
	}
	table := binary.LittleEndian.AppendUint32(guid, 2*abi.CertTableEntrySize)
	table = binary.LittleEndian.AppendUint32(table, uint32(len(c.Certificate.Raw)))
	table = append(table, make([]byte, abi.CertTableEntrySize)...)
	return append(table, c.Certificate.Raw...)
}

// Unsigned is a report of version 2 by SEV-SNP ABI (AMD 56860), of a VM that may not be debugged.
func (c *Chip) Unsigned(data [tsm.DataSize]byte) []byte {
	r := make([]byte, abi.ReportSize)
	le := binary.LittleEndian
	le.PutUint32(r, 2)
	le.PutUint32(r[0x04:], 7)              // guest SVN
	le.PutUint64(r[0x08:], 1<<17|1<<16|31) // reserved bit, SMT, ABI 0.31
	le.PutUint32(r[0x34:], abi.SignEcdsaP384Sha384)
	for _, at := range []int{0x38, 0x180, 0x1E0, 0x1F0} {
		le.PutUint64(r[at:], TCB)
	}
	if c.vlek {
		le.PutUint32(r[0x48:], 1<<2)
	}
	copy(r[0x50:], data[:])
	for i := range abi.MeasurementSize {
		r[0x90+i] = 0xAA
	}
	copy(r[0x1A0:], HWID())
	if c.Change != nil {
		c.Change(r)
	}
	return r
}

// Sign signs a report.
func (c *Chip) Sign(report []byte) error {
	sum := sha512.Sum384(report[:0x2A0])
	r, s, err := ecdsa.Sign(rand.Reader, c.Key, sum[:])
	if err != nil {
		return err
	}
	return abi.SetSignature(r, s, report)
}
