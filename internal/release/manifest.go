// Package release says which builds of Bailment are released: a manifest names a release's version and the digests of its files for each
// platform, and a signature by one of the release's signers makes it believable.
//
// Guaranteed: a manifest has exactly one text (Parse accepts what Text gives, and nothing else), so its signature covers all that is read from
// it; Verify takes signatures of the namespace "release@bailment" only, which `ssh-keygen -Y verify` checks as well; and Appraise calls an
// agent signed only if a listed signer vouches for its very digest on its very platform.
//
// Not guaranteed: that the program which makes a Statement is the one that it names. What it says of itself is claimed; whether somebody
// else measured the same digest (TPM, IMA) knows the caller, who compares Verdict.Digest with that. A build that was released once stays
// signed for ever: it is the minimum version that ends it.
//
// Its place is beside sshsig: the pure half of what is asked of agents. Package own reads this program's own statement, cmd/release makes
// releases.
package release

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/sshsig"
)

// Namespace keeps a release's signature from being taken for another kind of text's (PROTOCOL.sshsig).
const Namespace = "release@bailment"

// Protocol is the least protocol of an environment that this source's release works with.
const Protocol = 1

// Names that a release's files have, in its archives and where they are installed.
const (
	Program       = "bailment"
	ManifestName  = "bailment.manifest"
	SignatureName = "bailment.manifest.sig"
)

// AnyPlatform is the platform of files that are the same on all of them.
const AnyPlatform = "any"

// Limits. A manifest travels with evidence, so it is small.
const (
	MaxManifest  = 16 << 10 // bytes of text
	MaxFiles     = 100
	MaxSize      = 1 << 30 // bytes of one file
	maxName      = 64
	maxPlatform  = 32
	maxProtocol  = 1_000_000
	maxToolchain = 32
)

const (
	firstLine   = "bailment release v1"
	firstLineOf = "bailment release v"
)

// Manifest is what a release says of itself. It is immutable once made.
type Manifest struct {
	Version  Version
	Protocol int       // the least protocol of an environment that it works with
	Commit   string    // of the source: 40 or 64 lower-case hexadecimal digits
	Date     time.Time // of the commit, in UTC and whole seconds
	Go       string    // the toolchain that built it, as "go1.26.8": whoever builds it again needs the same
	Files    []File    // in byte order of platform and name
}

// File is one file of a release.
type File struct {
	Digest   [32]byte // SHA-256
	Size     int64    // bytes
	Platform string   // GOOS/GOARCH, or AnyPlatform
	Name     string   // of letters, digits, '.', '-' and '_', without a directory
}

// Text is the manifest's one text, which is what is signed:
//
//	bailment release v1
//	version 1.4.0
//	protocol 1
//	commit <40 hex>
//	date 2026-11-22T12:00:00Z
//	go go1.26.8
//
//	<64 hex>  <bytes>  linux/amd64  bailment
//
// It is an error if the manifest is not one that Parse would give.
func (m *Manifest) Text() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "release manifest")
	}
	text := m.text()
	if len(text) > MaxManifest {
		return nil, tooLarge()
	}
	return text, nil
}

func tooLarge() error {
	return problem.New(problem.ReasonTooLarge, "release manifest: larger than %d bytes", MaxManifest)
}

func (m *Manifest) text() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nversion %s\nprotocol %d\ncommit %s\ndate %s\ngo %s\n\n",
		firstLine, m.Version, m.Protocol, m.Commit, m.Date.UTC().Format(time.RFC3339), m.Go)
	for _, f := range m.Files {
		fmt.Fprintf(&b, "%x  %d  %s  %s\n", f.Digest, f.Size, f.Platform, f.Name)
	}
	return b.Bytes()
}

// Parse reads a manifest's text, of which there is exactly one. Its errors show nothing of the text, which may be a stranger's: reasons
// invalid, too-large, unknown-version.
func Parse(text []byte) (*Manifest, error) {
	fail := func(format string, args ...any) (*Manifest, error) {
		return nil, problem.New(problem.ReasonInvalid, "release manifest: "+format, args...)
	}
	if len(text) > MaxManifest {
		return nil, tooLarge()
	}
	head, body, ok := strings.Cut(string(text), "\n\n")
	lines := strings.Split(head, "\n")
	if lines[0] != firstLine {
		if number, ok := strings.CutPrefix(lines[0], firstLineOf); ok && numeric(number) {
			return nil, problem.New(problem.ReasonUnknownVersion, "release manifest: its format is not known to this binary")
		}
		return fail("the first line is not %q", firstLine)
	}
	keys := []string{1: "version ", "protocol ", "commit ", "date ", "go "}
	if !ok || len(lines) != len(keys) {
		return fail("the header is not %d lines and an empty one", len(keys))
	}
	values := make([]string, len(keys))
	for i := 1; i < len(keys); i++ {
		if values[i], ok = strings.CutPrefix(lines[i], keys[i]); !ok {
			return fail("line %d does not begin with %q", i+1, keys[i])
		}
	}
	m := &Manifest{Commit: values[3], Go: values[5]}
	var err error
	if m.Version, err = ParseVersion(values[1]); err != nil {
		return fail("line 2: %v", err)
	}
	if m.Protocol, err = strconv.Atoi(values[2]); err != nil {
		return fail("line 3 holds no number")
	}
	if m.Date, err = time.Parse(time.RFC3339, values[4]); err != nil {
		return fail("line 5 holds no time")
	}
	m.Date = m.Date.UTC()
	if m.Files, err = parseFiles(body, len(keys)+2); err != nil {
		return fail("%v", err)
	}
	if err := m.check(); err != nil {
		return fail("%v", err)
	}
	if !bytes.Equal(m.text(), text) {
		return fail("it is not in its one form")
	}
	return m, nil
}

func parseFiles(body string, first int) ([]File, error) {
	body, ok := strings.CutSuffix(body, "\n")
	if !ok {
		return nil, fmt.Errorf("the last line has no end")
	}
	if strings.Count(body, "\n")+1 > MaxFiles {
		return nil, fmt.Errorf("more than %d files", MaxFiles)
	}
	var files []File
	for line := range strings.SplitSeq(body, "\n") {
		n := first + len(files)
		parts := strings.Split(line, "  ")
		if len(parts) != 4 {
			return nil, fmt.Errorf("line %d is not \"SHA256  SIZE  PLATFORM  NAME\"", n)
		}
		f := File{Platform: parts[2], Name: parts[3]}
		if raw, err := hex.DecodeString(parts[0]); err != nil || len(raw) != len(f.Digest) {
			return nil, fmt.Errorf("line %d does not begin with a SHA-256 digest", n)
		} else {
			f.Digest = [32]byte(raw)
		}
		var err error
		if f.Size, err = strconv.ParseInt(parts[1], 10, 64); err != nil {
			return nil, fmt.Errorf("line %d: the size is not a number", n)
		}
		files = append(files, f)
	}
	return files, nil
}

// check is all that a manifest must fulfil besides its form. Its errors show nothing of the values.
func (m *Manifest) check() error {
	switch {
	case m.Version.IsZero():
		return fmt.Errorf("the version is 0.0.0")
	case m.Version.check() != nil:
		return m.Version.check()
	case m.Protocol < 1 || m.Protocol > maxProtocol:
		return fmt.Errorf("the protocol is not a number from 1 to %d", maxProtocol)
	case len(m.Commit) != 40 && len(m.Commit) != 64 || !only(m.Commit, "0123456789abcdef"):
		return fmt.Errorf("the commit is not 40 or 64 lower-case hexadecimal digits")
	case m.Date.Year() < 2000 || m.Date.Year() > 9999 || m.Date.Nanosecond() != 0 || m.Date.Location() != time.UTC:
		return fmt.Errorf("the date is not one in UTC and whole seconds")
	case !strings.HasPrefix(m.Go, "go1.") || len(m.Go) > maxToolchain || !only(m.Go, lower+digits+"."):
		return fmt.Errorf("the Go version is none")
	case len(m.Files) == 0 || len(m.Files) > MaxFiles:
		return fmt.Errorf("it must have 1 to %d files", MaxFiles)
	}
	for i, f := range m.Files {
		if err := f.check(); err != nil {
			return fmt.Errorf("file %d: %w", i+1, err)
		}
		if i > 0 && m.Files[i-1].key() >= f.key() {
			return fmt.Errorf("file %d: the files are not in ascending byte order of platform and name", i+1)
		}
	}
	return nil
}

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits = "0123456789"
)

func only(s, alphabet string) bool { return strings.Trim(s, alphabet) == "" }

// key orders files; no platform and no name has a space.
func (f File) key() string { return f.Platform + " " + f.Name }

func (f File) check() error {
	system, machine, two := strings.Cut(f.Platform, "/")
	switch {
	case f.Digest == [32]byte{}:
		return fmt.Errorf("its digest is all zero")
	case f.Size < 1 || f.Size > MaxSize:
		return fmt.Errorf("its size is not 1 to %d bytes", MaxSize)
	case f.Platform != AnyPlatform && (!two || system == "" || machine == "" || len(f.Platform) > maxPlatform || !only(system, lower+digits) || !only(machine, lower+digits)):
		return fmt.Errorf("its platform is neither GOOS/GOARCH nor %q", AnyPlatform)
	case f.Name == "" || len(f.Name) > maxName || f.Name[0] == '.' || f.Name[0] == '-' || !only(f.Name, lower+upper+digits+".-_"):
		return fmt.Errorf("its name is not made of letters, digits, '.', '-' and '_', at most %d", maxName)
	case f.Name == ManifestName || f.Name == SignatureName:
		return fmt.Errorf("a manifest can't name itself or its signature")
	}
	return nil
}

// Program gives the program of that digest on that platform, if the release has it.
func (m *Manifest) Program(platform string, digest [32]byte) (File, bool) {
	for _, f := range m.Files {
		if f.Name == Program && f.Platform == platform && f.Digest == digest {
			return f, true
		}
	}
	return File{}, false
}

// Verify reads a manifest after checking that one of the signers signed its very bytes as a release. Errors: bad-signature, unsupported,
// invalid, too-large, unknown-version.
func Verify(text, signature []byte, signers []ssh.PublicKey) (*Manifest, ssh.PublicKey, error) {
	if len(text) > MaxManifest {
		return nil, nil, tooLarge()
	}
	key, err := sshsig.Verify(signature, signers, Namespace, text)
	if err != nil {
		return nil, nil, err
	}
	m, err := Parse(text)
	if err != nil {
		return nil, nil, err
	}
	return m, key, nil
}
