package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
)

// entry is one file of an archive.
type entry struct {
	name string
	mode int64
	data []byte
}

// archive writes the archive of one platform: its files, those of any platform, the manifest and its signature, so that the program finds
// them beside itself. Go's own tar and gzip are used, whose bytes depend on the toolchain only, as the binary's do.
func archive(m *release.Manifest, manifest, signature []byte, dir, platform string) (string, error) {
	entries := []entry{{release.ManifestName, 0o644, manifest}, {release.SignatureName, 0o644, signature}}
	for _, f := range m.Files {
		if f.Platform != platform && f.Platform != release.AnyPlatform {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, folder(f.Platform), f.Name))
		if err != nil {
			return "", problem.Local(err, "read what is to be released")
		}
		if sha256.Sum256(data) != f.Digest {
			return "", problem.New(problem.ReasonTampered, "%s for %s changed meanwhile", f.Name, f.Platform)
		}
		mode := int64(0o644)
		if f.Name == release.Program {
			mode = 0o755
		}
		entries = append(entries, entry{f.Name, mode, data})
	}
	top := fmt.Sprintf("bailment-%s-%s", m.Version, strings.ReplaceAll(platform, "/", "-"))
	packed, err := compress(top, m, entries)
	if err != nil {
		return "", problem.Wrap(err, problem.ReasonInvalid, "pack the archive of %s", platform)
	}
	name := top + ".tar.gz"
	if err := os.WriteFile(filepath.Join(dir, name), packed, 0o644); err != nil {
		return "", problem.Local(err, "write the archive")
	}
	return name, nil
}

// compress leaves out all that differs between machines: the order of a directory, owners, modes and times.
func compress(top string, m *release.Manifest, entries []entry) ([]byte, error) {
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(z)
	head := tar.Header{Format: tar.FormatUSTAR, ModTime: m.Date, Uname: "root", Gname: "root"}
	head.Typeflag, head.Name, head.Mode = tar.TypeDir, top+"/", 0o755
	if err := w.WriteHeader(&head); err != nil {
		return nil, err
	}
	head.Typeflag = tar.TypeReg
	for i, e := range entries {
		if i > 0 && entries[i-1].name == e.name {
			return nil, fmt.Errorf("two files are called %s", e.name)
		}
		head.Name, head.Mode, head.Size = top+"/"+e.name, e.mode, int64(len(e.data))
		if err := w.WriteHeader(&head); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
