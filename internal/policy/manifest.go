package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

const manifestVersion = "bailment manifest v1"

// MaxManifest bounds a manifest's text in bytes.
const MaxManifest = 6 << 20

// Digest is a SHA-256 digest. The zero value stands for "none".
type Digest [sha256.Size]byte

// String is "sha256:" and 64 lower-case hexadecimal digits.
func (d Digest) String() string { return "sha256:" + hex.EncodeToString(d[:]) }

// IsZero reports whether d is "none".
func (d Digest) IsZero() bool { return d == Digest{} }

// ParseDigest reads the form that String prints. The zero digest is refused.
func ParseDigest(s string) (Digest, error) {
	rest, ok := strings.CutPrefix(s, "sha256:")
	if !ok {
		return Digest{}, fmt.Errorf("digest %.80q has no sha256: before it", s)
	}
	return parseHex(rest)
}

func parseHex(s string) (Digest, error) {
	var d Digest
	if len(s) != 2*len(d) || strings.ToLower(s) != s {
		return d, fmt.Errorf("%.80q is not 64 lower-case hexadecimal digits", s)
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil {
		return Digest{}, fmt.Errorf("%.80q is not 64 lower-case hexadecimal digits", s)
	}
	if d.IsZero() {
		return Digest{}, fmt.Errorf("the digest is all zero")
	}
	return d, nil
}

// Header says where a manifest stands. In the founding manifest, and only there, Version is 1 and
// Genesis and Previous are zero, since the genesis names the founding manifest's digest.
type Header struct {
	Environment string // the environment's name
	Genesis     Digest // of the environment; zero in the founding manifest
	Version     uint64 // from 1, one more than the previous manifest's
	Previous    Digest // of the previous manifest's text; zero in the founding manifest
}

// ManifestFile is one line of a manifest.
type ManifestFile struct {
	Digest Digest
	Size   int64
	Path   string
}

// Manifest is the text that is signed for a bundle. It is immutable.
type Manifest struct {
	header Header
	files  []ManifestFile // in byte order of Path
	text   []byte
}

// BuildManifest makes the manifest of a bundle's files. Every file is in it, README files too. It
// does not check what the files say: that is Compile's part.
func BuildManifest(files Files, h Header) (*Manifest, error) {
	if err := files.check(); err != nil {
		return nil, err
	}
	list := make([]ManifestFile, 0, len(files))
	for _, path := range files.Paths() {
		list = append(list, ManifestFile{sha256.Sum256(files[path]), int64(len(files[path])), path})
	}
	return newManifest(h, list)
}

func newManifest(h Header, list []ManifestFile) (*Manifest, error) {
	if err := h.validate(); err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "manifest")
	}
	if len(list) == 0 {
		return nil, problem.New(problem.ReasonInvalid, "manifest: no files")
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nenvironment %s\n", manifestVersion, h.Environment)
	genesis, previous := "-", "-"
	if !h.Genesis.IsZero() {
		genesis, previous = hex.EncodeToString(h.Genesis[:]), h.Previous.String()
	}
	fmt.Fprintf(&b, "genesis %s\nversion %d\nprevious %s\n\n", genesis, h.Version, previous)
	for _, f := range list {
		fmt.Fprintf(&b, "%s  %d  %s\n", hex.EncodeToString(f.Digest[:]), f.Size, f.Path)
	}
	return &Manifest{h, list, b.Bytes()}, nil
}

func (h Header) validate() error {
	if err := identity.ValidEnv(h.Environment); err != nil {
		return err
	}
	founding := h.Version == 1
	switch {
	case h.Version == 0:
		return fmt.Errorf("the version is 0: versions count from 1")
	case founding != h.Genesis.IsZero():
		return fmt.Errorf("version %d: the founding manifest is version 1 and has no genesis, every later one has it", h.Version)
	case founding != h.Previous.IsZero():
		return fmt.Errorf("version %d: the founding manifest is version 1 and has no previous manifest, every later one names it", h.Version)
	}
	return nil
}

// ParseManifest reads a manifest's text. It accepts exactly what BuildManifest writes: printing
// what it read gives the same bytes.
func ParseManifest(text []byte) (*Manifest, error) {
	fail := func(format string, args ...any) (*Manifest, error) {
		return nil, problem.New(problem.ReasonInvalid, "manifest: "+format, args...)
	}
	if len(text) > MaxManifest {
		return nil, problem.New(problem.ReasonTooLarge, "manifest: larger than %d bytes", MaxManifest)
	}
	head, body, ok := strings.Cut(string(text), "\n\n")
	lines := strings.Split(head, "\n")
	if lines[0] != manifestVersion {
		if strings.HasPrefix(lines[0], "bailment manifest v") {
			return nil, problem.New(problem.ReasonUnknownVersion, "manifest: its version is not known to this binary")
		}
		return fail("the first line is not %q", manifestVersion)
	}
	if !ok || len(lines) != 5 {
		return fail("the header is not 5 lines and an empty one")
	}
	values := make([]string, 5)
	for i, key := range []string{1: "environment ", "genesis ", "version ", "previous "} {
		if values[i], ok = strings.CutPrefix(lines[i], key); !ok {
			return fail("line %d does not begin with %q", i+1, key)
		}
	}
	h := Header{Environment: values[1]}
	var err error
	if values[2] != "-" {
		if h.Genesis, err = parseHex(values[2]); err != nil {
			return fail("genesis: %v", err)
		}
	}
	if h.Version, err = strconv.ParseUint(values[3], 10, 63); err != nil {
		return fail("the version is not a number")
	}
	if values[4] != "-" {
		if h.Previous, err = ParseDigest(values[4]); err != nil {
			return fail("previous: %v", err)
		}
	}
	list, err := parseManifestFiles(body)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "manifest")
	}
	m, err := newManifest(h, list)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(m.text, text) {
		return fail("it is not in its canonical form")
	}
	return m, nil
}

func parseManifestFiles(body string) ([]ManifestFile, error) {
	body, ok := strings.CutSuffix(body, "\n")
	if !ok {
		return nil, fmt.Errorf("the last line has no end")
	}
	if n := strings.Count(body, "\n") + 1; n > MaxFiles {
		return nil, fmt.Errorf("more than %d files", MaxFiles)
	}
	var list []ManifestFile
	total := int64(0)
	for line := range strings.SplitSeq(body, "\n") {
		n := 7 + len(list)
		parts := strings.Split(line, "  ")
		if len(parts) != 3 {
			return nil, fmt.Errorf("line %d is not \"SHA256  SIZE  PATH\"", n)
		}
		digest, err := parseHex(parts[0])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		size, err := strconv.ParseInt(parts[1], 10, 64)
		if err != nil || size < 0 || size > MaxBytes {
			return nil, fmt.Errorf("line %d: the size is not a number up to %d", n, MaxBytes)
		}
		if total += size; total > MaxBytes {
			return nil, fmt.Errorf("the files are larger than %d bytes together", MaxBytes)
		}
		if err := validFilePath(parts[2]); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if len(list) > 0 && list[len(list)-1].Path >= parts[2] {
			return nil, fmt.Errorf("line %d: the paths are not in ascending byte order", n)
		}
		list = append(list, ManifestFile{digest, size, parts[2]})
	}
	return list, nil
}

// Header says where the manifest stands.
func (m *Manifest) Header() Header { return m.header }

// Files lists the files in byte order of their paths.
func (m *Manifest) Files() []ManifestFile { return slices.Clone(m.files) }

// Text is exactly the bytes that are signed and hashed.
func (m *Manifest) Text() []byte { return slices.Clone(m.text) }

// Digest is the SHA-256 of the text: the bundle's name.
func (m *Manifest) Digest() Digest { return sha256.Sum256(m.text) }

// Fetch collects the files from where they are kept by digest, and verifies every one. An error of
// get is returned as it is, with the path; a blob that differs is of reason tampered.
func (m *Manifest) Fetch(get func(Digest) ([]byte, error)) (Files, error) {
	files := make(Files, len(m.files))
	for _, f := range m.files {
		data, err := get(f.Digest)
		if err != nil {
			return nil, fmt.Errorf("file %s of the bundle: %w", f.Path, err)
		}
		if int64(len(data)) != f.Size || sha256.Sum256(data) != f.Digest {
			return nil, problem.New(problem.ReasonTampered, "file %s of the bundle is not what its manifest says", f.Path)
		}
		files[f.Path] = slices.Clone(data)
	}
	return files, nil
}

// Verify reports the first difference between the manifest and a bundle's files: one that is
// missing, one that is too many, or one with other bytes.
func (m *Manifest) Verify(files Files) error {
	for _, f := range m.files {
		data, ok := files[f.Path]
		if !ok {
			return problem.New(problem.ReasonInvalid, "file %s of the manifest is missing", f.Path)
		}
		if int64(len(data)) != f.Size || sha256.Sum256(data) != f.Digest {
			return problem.New(problem.ReasonInvalid, "file %s is not what the manifest says", f.Path)
		}
	}
	if len(files) == len(m.files) {
		return nil
	}
	for _, path := range files.Paths() {
		if _, ok := slices.BinarySearchFunc(m.files, path, func(f ManifestFile, p string) int { return strings.Compare(f.Path, p) }); !ok {
			return problem.New(problem.ReasonInvalid, "file %s is not in the manifest", Pos{File: path})
		}
	}
	return nil
}
