package client

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/verify"
)

// Trust is what is pinned of an environment: everything that a client believes without asking, and so
// everything that must have come from the right place. Make one with Bootstrap, TrustFromGenesis or
// LoadTrust, never by hand. It is immutable and safe for concurrent use.
type Trust struct {
	Environment string   // the environment's name; the TLS server name, the SPIFFE trust domain
	Address     string   // HOST:PORT
	Class       string   // development | production, from the genesis document
	Genesis     [32]byte // SHA-256 of Document: what the environment is
	Document    string   // the genesis document
	// CheckpointKeys are verifier keys of checkpoints and receipts (C2SP signed note), current first. They
	// were told by the server over TLS under CA, unless Offline.
	CheckpointKeys []string
	// CA is the genesis CA's certificate: the only root that is trusted.
	CA *x509.Certificate
	// Offline: made without a server, so CheckpointKeys has only the key of genesis. Receipts under a
	// rotated key need a Trust from Bootstrap.
	Offline bool
}

const (
	trustFormat       = "bailment trust v1"
	maxTrustFile      = 128 << 10
	maxCheckpointKeys = 64
)

// TrustFromGenesis makes a Trust offline, from a bootstrap string and the genesis document that it pins. Errors:
// invalid (the string), not-authentic (the document is another one), wrong-environment (its name is another).
func TrustFromGenesis(bootstrap, document string) (*Trust, error) {
	b, err := identity.ParseBootstrap(bootstrap)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "the bootstrap string")
	}
	return trustOf(b, document)
}

func trustOf(b identity.Bootstrap, document string) (*Trust, error) {
	g, err := ceremony.ParseGenesis(document, b.Genesis)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonNotAuthentic, "the genesis document")
	}
	if g.Name != b.Env {
		return nil, problem.New(problem.ReasonWrongEnvironment, "genesis is of environment %q, the bootstrap string is of %q", g.Name, b.Env)
	}
	ca, err := x509.ParseCertificate(g.CA)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonNotAuthentic, "the genesis CA's certificate")
	}
	if err := checkRoot(ca); err != nil {
		return nil, err
	}
	vkey, err := note.NewEd25519VerifierKey(origin(b.Env, b.Genesis, 0), g.Checkpoint)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonNotAuthentic, "the genesis checkpoint key")
	}
	return &Trust{
		Environment: b.Env, Address: b.Addr(), Class: g.Class, Genesis: b.Genesis, Document: document,
		CheckpointKeys: []string{vkey}, CA: ca, Offline: true,
	}, nil
}

// checkRoot refuses what can't be a genesis CA: it must be self-signed, since it is the end of every chain.
func checkRoot(ca *x509.Certificate) error {
	if !ca.IsCA || !bytes.Equal(ca.RawIssuer, ca.RawSubject) || ca.CheckSignatureFrom(ca) != nil {
		return problem.New(problem.ReasonNotAuthentic, "the last certificate of the chain is not a self-signed CA")
	}
	return nil
}

// origin is the name of the environment's log in an epoch (C2SP tlog-checkpoint).
func origin(env string, genesis [32]byte, epoch uint64) string {
	return fmt.Sprintf("bailment/%s/%x/%d", env, genesis[:8], epoch)
}

// withKeys returns a copy with the checkpoint keys that the server told.
func (t *Trust) withKeys(vkeys []string) (*Trust, error) {
	if len(vkeys) == 0 || len(vkeys) > maxCheckpointKeys {
		return nil, problem.New(problem.ReasonNotAuthentic, "the server gave %d checkpoint keys", len(vkeys))
	}
	prefix := strings.TrimSuffix(origin(t.Environment, t.Genesis, 0), "0")
	for _, k := range vkeys {
		v, err := verify.ParseVerifier(k)
		if err != nil {
			return nil, problem.Wrap(err, problem.ReasonNotAuthentic, "a checkpoint key")
		}
		if !strings.HasPrefix(v.Name(), prefix) {
			return nil, problem.New(problem.ReasonNotAuthentic, "a checkpoint key is of another log")
		}
	}
	out := *t
	out.CheckpointKeys, out.Offline = append([]string(nil), vkeys...), false
	return &out, nil
}

// BootstrapString is the string that this Trust satisfies, with its address.
func (t *Trust) BootstrapString() string {
	return "bailment1:" + t.Address + "/" + t.Environment + "#" + hex.EncodeToString(t.Genesis[:])
}

// Matches checks that a bootstrap string pins the same environment, and returns a Trust with its address, which
// may have changed. The error is of reason invalid or wrong-environment.
func (t *Trust) Matches(bootstrap string) (*Trust, error) {
	b, err := identity.ParseBootstrap(bootstrap)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "the bootstrap string")
	}
	if b.Env != t.Environment || b.Genesis != t.Genesis {
		return nil, problem.New(problem.ReasonWrongEnvironment, "the bootstrap string is of %s with genesis %x, and pinned here is %s with genesis %x", b.Env, b.Genesis[:8], t.Environment, t.Genesis[:8]).
			WithFix("find out which is the true one; two environments of one name are kept apart with --home")
	}
	out := *t
	out.Address = b.Addr()
	return &out, nil
}

// trustFile is a Trust on disk. The CA, the class and the digest's meaning are read from the document anew.
type trustFile struct {
	Format         string   `json:"format"`
	Bootstrap      string   `json:"bootstrap"`
	Document       string   `json:"genesis_document"`
	CheckpointKeys []string `json:"checkpoint_keys"`
	Offline        bool     `json:"offline,omitempty"`
}

// Save writes the Trust to a file, durably, readable by its owner only: nothing in it is secret, but whoever can
// change it decides whom this machine believes.
func (t *Trust) Save(path string) error {
	b, err := json.MarshalIndent(trustFile{trustFormat, t.BootstrapString(), t.Document, t.CheckpointKeys, t.Offline}, "", "  ")
	if err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "encoding what is pinned")
	}
	if err := durable.WriteFile(path, append(b, '\n'), 0o600); err != nil {
		return problem.Local(err, "keeping what is pinned")
	}
	return nil
}

// LoadTrust reads what Save wrote, and checks it as if it had just come. An absent file is an error that is
// fs.ErrNotExist, of reason not-found.
func LoadTrust(path string) (*Trust, error) {
	var f trustFile
	if err := readJSON(path, maxTrustFile, &f); err != nil {
		return nil, err
	}
	if f.Format != trustFormat {
		return nil, problem.New(problem.ReasonUnknownVersion, "%s has format %q", path, f.Format)
	}
	t, err := TrustFromGenesis(f.Bootstrap, f.Document)
	if err != nil || f.Offline {
		return t, err
	}
	return t.withKeys(f.CheckpointKeys)
}

// readJSON reads a small file that only its owner may write to or read.
func readJSON(path string, most int64, into any) error {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return problem.Wrap(err, problem.ReasonNotFound, "reading")
		}
		return problem.Wrap(err, problem.ReasonPermissions, "reading")
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return problem.Local(err, "reading")
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 {
		return problem.New(problem.ReasonPermissions, "%s is not a file that only its owner may use", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return problem.Local(err, "reading %s", path)
	}
	defer clear(text)
	if int64(len(text)) > most {
		return problem.New(problem.ReasonTooLarge, "%s has more than %d bytes", path, most)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil || d.More() {
		// The decoder's message may quote the file, which may hold a key.
		return problem.New(problem.ReasonInvalid, "%s is damaged, or not a file of ours", path).
			WithFix("put back a copy of it if there is one; else remove it, and log in again or, on an agent's machine, give the agent new evidence, such as a new join token")
	}
	return nil
}

// tlsConfig trusts the genesis CA and nothing else, and shows cert if there is one.
func (t *Trust) tlsConfig(cert *tls.Certificate) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(t.CA)
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: t.Environment,
		RootCAs:    roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert == nil {
				return &tls.Certificate{}, nil
			}
			return cert, nil
		},
		VerifyConnection: t.checkServer,
	}
}

// checkServer runs after the chain and the name were verified: a workload of the environment has a certificate of
// the same CA, and must not pass for its server even if it got itself a DNS name.
func (t *Trust) checkServer(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 || len(cs.VerifiedChains) == 0 {
		return problem.New(problem.ReasonNotAuthentic, "the server showed no certificate")
	}
	uris := cs.PeerCertificates[0].URIs
	if len(uris) != 1 {
		return problem.New(problem.ReasonNotAuthentic, "the server's certificate has %d URI names instead of one", len(uris))
	}
	id, err := identity.Parse(uris[0].String())
	if err != nil || id.Env() != t.Environment || !strings.HasPrefix(id.Path(), identity.PrefixServer) {
		return problem.New(problem.ReasonNotAuthentic, "the certificate shown is not one of a server of %s", t.Environment)
	}
	return nil
}

// genesisDigest is what a genesis document is called by.
func genesisDigest(document string) [32]byte { return sha256.Sum256([]byte(document)) }
