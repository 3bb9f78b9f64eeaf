package agent

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/problem"
)

// files is the state directory:
//
//	trust.json      what is pinned
//	session.json    the newest session and its key
//	enrolment.json  what the enrolment was made from
//	attest.key      the key of an attestation that may have been answered
//	renew.key       the key of a renewal that may have been answered
//	control.json    the newest news heard
//	lock            held by the agent that runs
type files string

const (
	trustFile     = "trust.json"
	sessionFile   = "session.json"
	enrolmentFile = "enrolment.json"
	attestKeyFile = "attest.key"
	renewKeyFile  = "renew.key"
	controlFile   = "control.json"
)

const maxFile = 64 << 10

func (f files) path(name string) string { return filepath.Join(string(f), name) }

// pending is a key that was or will be sent. It is written before, so that a lost reply is asked for again with
// the same key, also after a restart.
type pending struct {
	Format string `json:"format"`
	For    string `json:"for"` // what it belongs to: a digest of the material, or of the session that is renewed
	Key    []byte `json:"key"` // PKCS#8
}

const pendingFormat = "bailment pending key v1"

// key returns the pending key for a purpose: the one that was kept for it, or a new one, kept now.
func (f files) key(name, purpose string) (crypto.Signer, error) {
	var p pending
	err := f.read(name, &p)
	if err == nil && p.Format == pendingFormat && p.For == purpose {
		defer clear(p.Key)
		k, err := x509.ParsePKCS8PrivateKey(p.Key)
		if signer, ok := k.(crypto.Signer); err == nil && ok {
			return signer, nil
		}
		return nil, fmt.Errorf("%s is damaged", f.path(name))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := client.NewKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return key, f.write(name, pending{pendingFormat, purpose, der})
}

func (f files) remove(name string) {
	// What stays is not used again: it belongs to what was.
	_ = os.Remove(f.path(name))
}

// enrolment says what material the enrolment was made from, so that the same token is not tried again and a new one is.
type enrolment struct {
	Format   string `json:"format"`
	Material string `json:"material"`
}

const enrolmentFormat = "bailment enrolment v1"

// heard is the newest news.
type heard struct {
	Control uint64 `json:"control"`
}

func (f files) write(name string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	defer clear(text)
	return durable.WriteFile(f.path(name), text, 0o600)
}

func (f files) read(name string, v any) error {
	text, err := readFile(f.path(name), true)
	if err != nil {
		return err
	}
	defer clear(text)
	if json.Unmarshal(text, v) != nil {
		return fmt.Errorf("%s is damaged", f.path(name))
	}
	return nil
}

// readFile reads a small regular file; a private one only if nobody but its owner may use it.
func readFile(path string, private bool) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if private && st.Mode().Perm()&0o077 != 0 {
		return nil, problem.New(problem.ReasonPermissions, "%s can be used by others than its owner", path)
	}
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, problem.New(problem.ReasonTooLarge, "%s has more than %d bytes", path, maxFile)
	}
	return text, nil
}

// material reads what the method needs, and a digest that tells one material from another.
func (a *Agent) material() (attest.Material, string, error) {
	m := make(attest.Material)
	h := sha256.New()
	_, _ = io.WriteString(h, "bailment material v1\n")
	for _, n := range a.method.Needs {
		if n.Literal {
			if value := a.cfg.Values[n.Name]; value != "" {
				m[n.Name] = []byte(value)
				_, _ = fmt.Fprintf(h, "%s %x\n", n.Name, sha256.Sum256([]byte(value)))
			}
			continue
		}
		path := a.cfg.Needs[n.Name]
		if path == "" {
			continue
		}
		text, err := readFile(path, n.Secret)
		if err != nil {
			p := problem.Wrap(err, problem.ReasonInvalid, "reading %s for attestation method %s", n.Name, a.method.Name)
			if problem.Is(err, problem.ReasonPermissions) {
				p = problem.As(err)
			}
			return nil, "", local{p.WithFix("put %s into %s, readable by the agent only (0600)", n.Doc, path)}
		}
		m[n.Name] = text
		sum := sha256.Sum256(text)
		_, _ = fmt.Fprintf(h, "%s %x\n", n.Name, sum)
	}
	return m, hex.EncodeToString(h.Sum(nil)), nil
}

// signature tells whether the files of the needs, or the installed program, may have changed, without reading them.
func (a *Agent) signature() string {
	var b strings.Builder
	if a.replaced() {
		b.WriteString("another program\n")
	}
	for _, n := range a.method.Needs {
		if st, err := os.Stat(a.cfg.Needs[n.Name]); err == nil {
			fmt.Fprintf(&b, "%s %d %d %v\n", n.Name, st.Size(), st.ModTime().UnixNano(), st.Mode())
		}
	}
	return b.String()
}

// sessionName is what a renewal's pending key belongs to: the session that is renewed.
func sessionName(s *client.Session) string {
	sum := sha256.Sum256(s.Certificate.Certificate[0])
	return hex.EncodeToString(sum[:])
}

// reEnrol are the ends of an enrolment: only attesting anew leads on.
var reEnrol = []problem.Reason{
	problem.ReasonCutoff, problem.ReasonLifetimeOver, problem.ReasonSessionUnknown, problem.ReasonSessionForeign, problem.ReasonBadProof,
}

func endsEnrolment(err error) bool { return slices.Contains(reEnrol, problem.As(err).Reason) }
