package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"github.com/bailment/bailment/internal/problem"
)

// The messages of these tests are made by another implementation, and by openssl.

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func certify(t testing.TB, key crypto.Signer, serial int64) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{
		// The other implementation states the time of signing, and compares it.
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "signer"}, SubjectKeyId: []byte{1, 2, 3},
		NotBefore: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return c
}

// sign makes a message by the other implementation.
func sign(t testing.TB, content []byte, digest asn1.ObjectIdentifier, attributes bool, key crypto.PrivateKey, certs ...*x509.Certificate) []byte {
	t.Helper()
	sd, err := pkcs7.NewSignedData(content)
	if err != nil {
		t.Fatal(err)
	}
	sd.SetDigestAlgorithm(digest)
	for _, c := range certs {
		if attributes {
			err = sd.AddSigner(c, key, pkcs7.SignerInfoConfig{})
		} else {
			err = sd.SignWithoutAttr(c, key, pkcs7.SignerInfoConfig{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	out, err := sd.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// encoded is the one encoding of a message of the other implementation.
func encoded(t testing.TB, message []byte) []byte {
	t.Helper()
	s, err := Rewrite(message)
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

const document = `{"hello":"world"}`

func TestRoundTrip(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		digest     asn1.ObjectIdentifier
		attributes bool
		key        crypto.Signer
	}{
		"RSA SHA-256":                       {pkcs7.OIDDigestAlgorithmSHA256, true, rsaKey()},
		"RSA SHA-384":                       {pkcs7.OIDDigestAlgorithmSHA384, true, rsaKey()},
		"RSA SHA-512":                       {pkcs7.OIDDigestAlgorithmSHA512, true, rsaKey()},
		"RSA SHA-256 without attributes":    {pkcs7.OIDDigestAlgorithmSHA256, false, rsaKey()},
		"ECDSA SHA-256":                     {pkcs7.OIDDigestAlgorithmSHA256, true, ec},
		"ECDSA SHA-512 without attributes ": {pkcs7.OIDDigestAlgorithmSHA512, false, ec},
	} {
		t.Run(name, func(t *testing.T) {
			cert := certify(t, c.key, 7)
			der := encoded(t, sign(t, []byte(document), c.digest, c.attributes, c.key, cert))
			s, err := Parse(der)
			if err != nil {
				t.Fatal(err)
			}
			if string(s.Content) != document || !s.IsSigner(cert) || len(s.Certificates) != 1 || !bytes.Equal(s.Certificates[0], cert.Raw) {
				t.Fatalf("%+v", s)
			}
			if err := s.Verify(cert); err != nil {
				t.Fatal(err)
			}
			other := certify(t, c.key, 8)
			if s.IsSigner(other) {
				t.Error("a certificate of another serial number is the signer")
			}
			// Our encoding is also what the other implementation reads.
			p7, err := pkcs7.Parse(der)
			if err != nil {
				t.Fatal(err)
			}
			if err := p7.Verify(); err != nil {
				t.Error(err)
			}
			s.Content = bytes.Replace(s.Content, []byte("world"), []byte("earth"), 1)
			if err := s.Verify(cert); !problem.Is(err, problem.ReasonBadProof) {
				t.Errorf("a changed document: %v", err)
			}
		})
	}
}

// TestVerifyRefuses plants faults into a message that was read.
func TestVerifyRefuses(t *testing.T) {
	cert := certify(t, rsaKey(), 7)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der := encoded(t, sign(t, []byte(document), pkcs7.OIDDigestAlgorithmSHA256, true, rsaKey(), cert))
	for name, plant := range map[string]func(*Signed, **x509.Certificate){
		"another content":                  func(s *Signed, _ **x509.Certificate) { s.Content = []byte("{}") },
		"another signature":                func(s *Signed, _ **x509.Certificate) { s.signature[0] ^= 1 },
		"no signature":                     func(s *Signed, _ **x509.Certificate) { s.signature = nil },
		"another certificate of that name": func(_ *Signed, c **x509.Certificate) { *c = certify(t, ec, 7) },
		"said to be ECDSA":                 func(s *Signed, _ **x509.Certificate) { s.byECDSA = true },
		"another digest":                   func(s *Signed, _ **x509.Certificate) { s.row = algorithms[1] },
		"attributes left out":              func(s *Signed, _ **x509.Certificate) { s.attributes = nil },
		// The signature is over exactly these bytes: only the rule about attributes stops it.
		"attributes shown as content": func(s *Signed, _ **x509.Certificate) { s.Content, s.attributes = s.attributes, nil },
		"attributes of nothing":       func(s *Signed, _ **x509.Certificate) { s.attributes = []byte{0x31, 0} },
		"attributes damaged":          func(s *Signed, _ **x509.Certificate) { s.attributes[len(s.attributes)-1]++ },
		"attributes that are no set":  func(s *Signed, _ **x509.Certificate) { s.attributes = []byte{0x30, 0} },
	} {
		s, err := Parse(der)
		if err != nil {
			t.Fatal(err)
		}
		c := cert
		plant(s, &c)
		if err := s.Verify(c); !problem.Is(err, problem.ReasonBadProof) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAttributes signs attributes that are signed well and say the wrong thing.
func TestAttributes(t *testing.T) {
	cert := certify(t, rsaKey(), 7)
	type attribute struct {
		Type   asn1.ObjectIdentifier
		Values []any `asn1:"set"`
	}
	sum := sha256.Sum256([]byte(document))
	kind, digest := attribute{oidContentType, []any{oidData}}, attribute{oidMessageDigest, []any{sum[:]}}
	for name, c := range map[string]struct {
		attributes []attribute
		want       problem.Reason
	}{
		"good":               {[]attribute{kind, digest}, ""},
		"no digest":          {[]attribute{kind}, problem.ReasonBadProof},
		"no type":            {[]attribute{digest}, problem.ReasonBadProof},
		"two digests":        {[]attribute{kind, digest, digest}, problem.ReasonBadProof},
		"another type":       {[]attribute{{oidContentType, []any{oidSignedData}}, digest}, problem.ReasonBadProof},
		"another digest":     {[]attribute{kind, {oidMessageDigest, []any{sum[1:]}}}, problem.ReasonBadProof},
		"two values":         {[]attribute{kind, {oidMessageDigest, []any{sum[:], sum[:]}}}, problem.ReasonBadProof},
		"an unknown one":     {[]attribute{kind, digest, {asn1.ObjectIdentifier{1, 2, 3}, []any{1}}}, ""},
		"a type as a digest": {[]attribute{kind, {oidMessageDigest, []any{oidData}}}, problem.ReasonBadProof},
	} {
		set, err := asn1.MarshalWithParams(c.attributes, "set")
		if err != nil {
			t.Fatal(err)
		}
		hash := sha256.Sum256(set)
		signature, err := rsa.SignPKCS1v15(rand.Reader, rsaKey(), crypto.SHA256, hash[:])
		if err != nil {
			t.Fatal(err)
		}
		s := &Signed{Content: []byte(document), issuer: cert.RawIssuer, serial: cert.SerialNumber, row: algorithms[0], attributes: set, signature: signature}
		if err := s.Verify(cert); c.want == "" && err != nil || c.want != "" && !problem.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	cert := certify(t, rsaKey(), 7)
	second := certify(t, rsaKey(), 8)
	good := encoded(t, sign(t, []byte(document), pkcs7.OIDDigestAlgorithmSHA256, true, rsaKey(), cert))
	many := make([]*x509.Certificate, MaxCertificates+1)
	for i := range many {
		many[i] = cert
	}
	replace := func(old, with []byte) []byte {
		if len(old) != len(with) || !bytes.Contains(good, old) {
			t.Fatalf("the message has no %x", old)
		}
		return bytes.ReplaceAll(good, old, with)
	}
	oid := func(o asn1.ObjectIdentifier) []byte {
		out, err := asn1.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for name, c := range map[string]struct {
		der  []byte
		want problem.Reason
		says string
	}{
		"nothing":            {nil, problem.ReasonInvalid, "can't be read"},
		"no DER":             {[]byte("hello"), problem.ReasonInvalid, "can't be read"},
		"trailing":           {append(bytes.Clone(good), 0), problem.ReasonInvalid, "something follows"},
		"cut":                {good[:len(good)-1], problem.ReasonInvalid, "can't be read"},
		"too large":          {make([]byte, MaxMessage+1), problem.ReasonTooLarge, "bytes"},
		"large content":      {sign(t, make([]byte, MaxContent+1), pkcs7.OIDDigestAlgorithmSHA256, true, rsaKey(), cert), problem.ReasonTooLarge, "document inside"},
		"two signers":        {sign(t, []byte(document), pkcs7.OIDDigestAlgorithmSHA256, true, rsaKey(), cert, second), problem.ReasonInvalid, "exactly one signer"},
		"no signer":          {sign(t, []byte(document), pkcs7.OIDDigestAlgorithmSHA256, true, rsaKey()), problem.ReasonInvalid, "exactly one signer"},
		"SHA-1":              {sign(t, []byte(document), pkcs7.OIDDigestAlgorithmSHA1, true, rsaKey(), cert), problem.ReasonWeakAlgorithm, "not accepted"},
		"SHA-224":            {replace(oid(algorithms[0].digest), oid(pkcs7.OIDDigestAlgorithmSHA224)), problem.ReasonWeakAlgorithm, "not accepted"},
		"MD5 with RSA":       {replace(oid(oidRSA), oid(pkcs7.OIDEncryptionAlgorithmRSAMD5)), problem.ReasonWeakAlgorithm, "not accepted"},
		"enveloped data":     {replace(oid(oidSignedData), oid(pkcs7.OIDEnvelopedData)), problem.ReasonInvalid, "not SignedData"},
		"content of a type":  {replace(oid(oidData), oid(pkcs7.OIDEnvelopedData)), problem.ReasonInvalid, "type data"},
		"not its encoding":   {bytes.Replace(good, []byte{5, 0}, []byte{4, 0}, 1), problem.ReasonInvalid, "one encoding"},
		"degenerate":         {degenerate(t, cert), problem.ReasonInvalid, "can't be read"},
		"unsigned attribute": {unsignedAttribute(t), problem.ReasonInvalid, "one encoding"},
		"nine certificates":  {withCertificates(t, many), problem.ReasonTooLarge, "certificates"},
		"BER": {replaceOnce(t, good, []byte{0x30, 0x82}, func(rest []byte) []byte {
			return append(append([]byte{0x30, 0x80}, rest[2:]...), 0, 0)
		}), problem.ReasonInvalid, "not DER"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse(c.der); !problem.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %s with %q", err, c.want, c.says)
			}
		})
	}
}

// replaceOnce changes what follows the first prefix.
func replaceOnce(t *testing.T, der, prefix []byte, change func(rest []byte) []byte) []byte {
	t.Helper()
	rest, ok := bytes.CutPrefix(der, prefix)
	if !ok {
		t.Fatalf("%x doesn't begin with %x", der[:4], prefix)
	}
	return change(rest)
}

func degenerate(t *testing.T, cert *x509.Certificate) []byte {
	out, err := pkcs7.DegenerateCertificate(cert.Raw)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// unsignedAttribute adds what nobody has signed.
func unsignedAttribute(t *testing.T) []byte {
	t.Helper()
	const text = "left out"
	cert := certify(t, rsaKey(), 7)
	sd, err := pkcs7.NewSignedData([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	if err := sd.AddSigner(cert, rsaKey(), pkcs7.SignerInfoConfig{ExtraUnsignedAttributes: []pkcs7.Attribute{{Type: asn1.ObjectIdentifier{1, 2, 3}, Value: text}}}); err != nil {
		t.Fatal(err)
	}
	out, err := sd.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(out, []byte(text)) || bytes.Contains(encoded(t, out), []byte(text)) {
		t.Error("Rewrite keeps what is not signed")
	}
	return out
}

func withCertificates(t *testing.T, certs []*x509.Certificate) []byte {
	t.Helper()
	sd, err := pkcs7.NewSignedData([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	if err := sd.AddSigner(certs[0], rsaKey(), pkcs7.SignerInfoConfig{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range certs[1:] {
		sd.AddCertificate(c)
	}
	out, err := sd.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestOpenSSL reads what openssl makes in one go and streaming, which is BER with lengths without end, as AWS's messages are.
func TestOpenSSL(t *testing.T) {
	dir := t.TempDir()
	cert := certify(t, rsaKey(), 7)
	key, err := x509.MarshalPKCS8PrivateKey(rsaKey())
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	write("document", []byte(document))
	openssl := func(args ...string) []byte {
		t.Helper()
		c := exec.Command("openssl", args...)
		c.Dir = dir
		var stderr bytes.Buffer
		c.Stderr = &stderr
		out, err := c.Output()
		if err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, stderr.Bytes())
		}
		return out
	}
	base := []string{"-sign", "-binary", "-nodetach", "-in", "document", "-signer", "cert.pem", "-inkey", "key.pem", "-outform", "DER", "-md"}
	for name, args := range map[string][]string{
		"cms":                    append([]string{"cms"}, append(base, "sha256")...),
		"cms streaming":          append([]string{"cms", "-stream"}, append(base, "sha256")...),
		"smime":                  append([]string{"smime"}, append(base, "sha512")...),
		"without a certificate":  append([]string{"cms", "-nocerts"}, append(base, "sha256")...),
		"without attributes":     append([]string{"cms", "-noattr"}, append(base, "sha256")...),
		"smime, streaming, none": append([]string{"smime", "-stream", "-nocerts", "-noattr"}, append(base, "sha384")...),
	} {
		message := openssl(args...)
		if strings.Contains(name, "streaming") && !bytes.HasPrefix(message, []byte{0x30, 0x80}) {
			t.Errorf("%s: openssl gives definite lengths, so this tests nothing", name)
		}
		der := encoded(t, message)
		s, err := Parse(der)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if string(s.Content) != document || !s.IsSigner(cert) {
			t.Errorf("%s: %+v", name, s)
		}
		if err := s.Verify(cert); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		write("again", der)
		if got := openssl("cms", "-verify", "-inform", "DER", "-in", "again", "-certfile", "cert.pem", "-noverify", "-binary"); string(got) != document {
			t.Errorf("%s: openssl reads %q", name, got)
		}
	}
	sha1 := openssl(append([]string{"cms"}, append(base, "sha1")...)...)
	if _, err := Rewrite(sha1); !problem.Is(err, problem.ReasonWeakAlgorithm) {
		t.Errorf("SHA-1: %v", err)
	}
	keyID := openssl(append([]string{"cms", "-keyid"}, append(base, "sha256")...)...)
	if _, err := Rewrite(keyID); !problem.Is(err, problem.ReasonInvalid) {
		t.Errorf("a signer without a name: %v", err)
	}
}

func TestRewriteRefuses(t *testing.T) {
	deep := append(bytes.Repeat([]byte{0x30, 0x80}, maxDepth+2), bytes.Repeat([]byte{0, 0}, maxDepth+2)...)
	for name, ber := range map[string][]byte{
		"nothing":                       nil,
		"one byte":                      {0x30},
		"deep":                          deep,
		"without its end":               {0x30, 0x80, 5, 0},
		"primitive without its end":     {0x04, 0x80, 0, 0},
		"a long tag":                    {0x1f, 0x81, 0},
		"a length of five bytes":        {0x30, 0x85, 0, 0, 0, 0, 1, 0},
		"a length beyond its bytes":     {0x30, 0x82, 1},
		"longer than it is":             {0x30, 5, 1},
		"a huge length":                 {0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0},
		"something behind":              {0x30, 0, 1},
		"octets of something else":      {0x24, 0x80, 2, 1, 1, 0, 0},
		"an inner one beyond its bound": {0x30, 3, 4, 5, 1, 2, 3, 4, 5},
	} {
		if _, err := Rewrite(ber); !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Rewrite(make([]byte, MaxMessage+1)); !problem.Is(err, problem.ReasonTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	// Each worker of the fuzzer is a process: the key is the same in all of them.
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{7}, 32))
	if err != nil {
		f.Fatal(err)
	}
	cert := certify(f, key, 7)
	for _, attributes := range []bool{true, false} {
		message := sign(f, []byte(document), pkcs7.OIDDigestAlgorithmSHA256, attributes, key, cert)
		f.Add(message)
		f.Add(encoded(f, message))
	}
	f.Add([]byte{0x30, 0x80, 0x24, 0x80, 4, 1, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := Parse(data); err == nil {
			again, err := s.Encode()
			if err != nil || !bytes.Equal(again, data) {
				t.Fatalf("two encodings of one message: %v", err)
			}
			if s.Verify(cert) == nil && string(s.Content) != document {
				t.Fatalf("%q was never signed", s.Content)
			}
		} else if problem.KindOf(err) == problem.Internal {
			t.Fatal(err)
		}
		s, err := Rewrite(data)
		if err != nil {
			if problem.KindOf(err) == problem.Internal {
				t.Fatal(err)
			}
			return
		}
		der, err := s.Encode()
		if err != nil {
			return
		}
		if _, err := Parse(der); err != nil {
			t.Fatalf("Parse refuses what Rewrite gives: %v", err)
		}
	})
}
