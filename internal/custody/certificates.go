package custody

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
)

// Serial numbers lead back to the ledger: a version byte, the epoch, the index of the entry that the certificate was
// signed after, and a tag of eight bytes (RFC 5280 §4.1.2.2 allows 20 bytes).
const (
	serialVersion = 0x01
	serialLength  = 1 + 2 + 8 + 8
)

// Tag is the part of a serial number that can't be guessed: a keyed digest of what the certificate is for, truncated. Who
// has a CA's key only can't make it for another key or identity, so a certificate is known to be one of ours also after
// its session's row is gone.
type Tag [8]byte

// Serial makes a serial number, as hex, of the certificate that entry index opens.
func Serial(epoch, index uint64, tag Tag) string {
	b := make([]byte, 0, serialLength)
	b = append(b, serialVersion)
	b = binary.BigEndian.AppendUint16(b, uint16(epoch))
	b = binary.BigEndian.AppendUint64(b, index)
	b = append(b, tag[:]...)
	return hex.EncodeToString(b)
}

// readSerial undoes Serial.
func readSerial(serial *big.Int) (epoch, index uint64, tag Tag, ok bool) {
	b := serial.Bytes()
	if len(b) != serialLength || b[0] != serialVersion {
		return 0, 0, Tag{}, false
	}
	return uint64(binary.BigEndian.Uint16(b[1:3])), binary.BigEndian.Uint64(b[3:11]), Tag(b[11:]), true
}

// backdate covers the clock difference that a peer may have.
const backdate = 30 * time.Second

func (k *Keys) template(id identity.ID, serial string, from, until time.Time) (*x509.Certificate, error) {
	raw, err := hex.DecodeString(serial)
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(raw),
		NotBefore:    from.Add(-backdate), NotAfter: until,
		URIs:                  []*url.URL{id.URL()},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}, nil
}

// SignSVID makes an X.509-SVID (SPIFFE X509-SVID §3 to §5: one URI SAN, digitalSignature, not a CA).
func (k *Keys) SignSVID(id identity.ID, pub crypto.PublicKey, serial string, from, until time.Time) ([]byte, [][]byte, error) {
	t, err := k.template(id, serial, from, until)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, k.caCert, pub, k.ca)
	return der, k.chain, err
}

// SignServer makes this server's own certificate: an SVID that also carries the environment's name, which SNI asks for. As in every
// SVID both usages are there (X509-SVID §4.4): bundle endpoints of others may be asked with it.
func (k *Keys) SignServer(id identity.ID, name string, pub crypto.PublicKey, serial string, from, until time.Time) ([]byte, [][]byte, error) {
	t, err := k.template(id, serial, from, until)
	if err != nil {
		return nil, nil, err
	}
	t.DNSNames = []string{name}
	der, err := x509.CreateCertificate(rand.Reader, t, k.caCert, pub, k.ca)
	if err != nil {
		return nil, nil, err
	}
	// The whole chain up to and with the genesis CA, so that a machine that knows only the digest of
	// genesis finds it here.
	chain := append(append([][]byte(nil), k.chain...), k.cas[0].Raw)
	return der, chain, nil
}

// caLifetime is that of a CA certificate. The genesis CA is what baked bootstrap strings lead to, so it
// outlives rotations; later CAs are replaced long before.
const caLifetime = 10 * 365 * 24 * time.Hour

func caTemplate(name string, number uint32, serial *big.Int, from time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: fmt.Sprintf("bailment %s CA %d", name, number)},
		NotBefore:    from.Add(-backdate), NotAfter: from.Add(caLifetime),
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: name}},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true,
	}
}

// SVID is a presented certificate that one of the environment's CAs signed.
type SVID struct {
	Cert  *x509.Certificate
	ID    identity.ID
	Key   state.Digest // thumbprint of its key
	Epoch uint64
	Index uint64 // of the entry that opened its session
	Tag   Tag    // as it says; the caller compares
}

const maxCertificate = 8 << 10

// ReadSVID checks that a certificate was signed by a CA of this environment, whether or not it expired, and
// reads what it says. That a CA signed it proves little: its key may be known to somebody, or have been. The caller compares
// the tag, and the key with the session's.
func (k *Keys) ReadSVID(der []byte, env string) (SVID, error) {
	foreign := func(why string) (SVID, error) {
		return SVID{}, problem.New(problem.ReasonSessionForeign, "the certificate is not one of this environment: %s", why)
	}
	if len(der) == 0 || len(der) > maxCertificate {
		return foreign("its size")
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return foreign("it can't be read")
	}
	signed := false
	for _, ca := range k.cas {
		if cert.CheckSignatureFrom(ca) == nil {
			signed = true
			break
		}
	}
	if !signed {
		return foreign("no CA of it signed it")
	}
	if len(cert.URIs) != 1 || cert.IsCA {
		return foreign("it is not an X.509-SVID")
	}
	id, err := identity.Parse(cert.URIs[0].String())
	if err != nil || id.Env() != env {
		return foreign("its identity")
	}
	out := SVID{Cert: cert, ID: id}
	ok := false
	if out.Epoch, out.Index, out.Tag, ok = readSerial(cert.SerialNumber); !ok {
		return foreign("its serial number")
	}
	if out.Key, err = seal.Thumbprint(cert.PublicKey); err != nil {
		return foreign("its key")
	}
	return out, nil
}
