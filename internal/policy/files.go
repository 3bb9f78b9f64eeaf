package policy

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/bailment/bailment/internal/problem"
)

// Limits of a bundle.
const (
	MaxFiles      = 10_000
	MaxBytes      = 10 << 20  // of all files together
	MaxFileBytes  = 256 << 10 // of one YAML file
	maxFilePath   = 512       // bytes of a path
	maxFileDepth  = 8         // directories of a path
	maxDirEntries = 2 * MaxFiles
)

// Files are a bundle's files by path, as bytes. What was checked, what is signed and what is sent
// are made from one value of this type, so that a file that changes meanwhile changes nothing.
type Files map[string][]byte

// Paths lists the files in byte order.
func (f Files) Paths() []string { return slices.Sorted(maps.Keys(f)) }

// ReadFiles reads a bundle's directory. Hidden files and directories (names that begin with '.')
// are no part of a bundle: they are neither read, nor checked, nor in the manifest, so that a
// working copy may hold a .git. Everything else must be a regular file with an acceptable name: a
// symbolic link, a device, or more than MaxFiles files or MaxBytes bytes is an error of reason
// bundle-invalid or too-large.
func ReadFiles(fsys fs.FS) (Files, error) {
	files := Files{}
	total, entries := 0, 0
	var found collector
	err := fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("reading %s: %w", Pos{File: path}, err)
		}
		if path == "." {
			return nil
		}
		if entries++; entries > maxDirEntries {
			return problem.New(problem.ReasonTooLarge, "the bundle has more than %d files and directories", maxDirEntries)
		}
		if strings.HasPrefix(d.Name(), ".") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if err := validFilePath(path); err != nil {
			found.add(Pos{File: path}, "%v", err)
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() {
			return nil
		}
		if !d.Type().IsRegular() {
			found.add(Pos{File: path}, "is not a regular file (%s): a bundle has no links or devices", kindOfFile(d.Type()))
			return nil
		}
		if len(files) >= MaxFiles {
			return problem.New(problem.ReasonTooLarge, "the bundle has more than %d files", MaxFiles)
		}
		data, err := readBounded(fsys, path, MaxBytes-total)
		if err != nil {
			return err
		}
		total += len(data)
		files[path] = data
		return nil
	})
	if err != nil {
		var p *problem.Problem
		if errors.As(err, &p) {
			return nil, p
		}
		return nil, problem.Wrap(err, problem.ReasonBundleInvalid, "reading the bundle")
	}
	if list := found.findings(); len(list) > 0 {
		return nil, invalid(list)
	}
	return files, nil
}

// readBounded never reads more than it may keep, whatever size the directory told.
func readBounded(fsys fs.FS, path string, room int) ([]byte, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	defer f.Close()
	// The entry was regular when it was listed; what was opened must be so too.
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("reading %s: it is not a regular file any more", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(room)+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(data) > room {
		return nil, problem.New(problem.ReasonTooLarge, "the bundle is larger than %d MiB", MaxBytes>>20)
	}
	return data, nil
}

func kindOfFile(mode fs.FileMode) string {
	switch {
	case mode&fs.ModeSymlink != 0:
		return "symbolic link"
	case mode&fs.ModeDevice != 0:
		return "device"
	case mode&fs.ModeNamedPipe != 0:
		return "named pipe"
	case mode&fs.ModeSocket != 0:
		return "socket"
	}
	return "irregular"
}

// check applies ReadFiles' rules to files that came some other way.
func (f Files) check() error {
	if len(f) > MaxFiles {
		return problem.New(problem.ReasonTooLarge, "the bundle has more than %d files", MaxFiles)
	}
	total := 0
	for path, data := range f {
		if err := validFilePath(path); err != nil {
			return problem.New(problem.ReasonBundleInvalid, "file %q: %v", path, err)
		}
		if total += len(data); total > MaxBytes {
			return problem.New(problem.ReasonTooLarge, "the bundle is larger than %d MiB", MaxBytes>>20)
		}
	}
	return nil
}

// validFilePath keeps the manifest's lines unambiguous and harmless to show: a clean relative path
// of printable UTF-8, no hidden segment, no backslash, no two spaces in a row, none at an end.
func validFilePath(path string) error {
	switch {
	case !fs.ValidPath(path) || path == ".":
		return errors.New("the path is not clean and relative")
	case len(path) > maxFilePath:
		return fmt.Errorf("the path is longer than %d bytes", maxFilePath)
	case strings.Count(path, "/") > maxFileDepth:
		return fmt.Errorf("the path is deeper than %d directories", maxFileDepth)
	case !utf8.ValidString(path):
		return errors.New("the path is not UTF-8")
	case strings.Contains(path, "  ") || path[0] == ' ' || path[len(path)-1] == ' ':
		return errors.New("the path has two spaces in a row, or one at an end")
	case strings.ContainsRune(path, '\\'):
		return errors.New("the path has a backslash")
	}
	for _, r := range path {
		if !printable(r) {
			return errors.New("the path has a character that can't be printed")
		}
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment[0] == '.' {
			return errors.New("hidden files are no part of a bundle")
		}
	}
	return nil
}

// printable excludes what can make a text look different from what it is: control characters,
// and format characters such as the bidirectional overrides (CVE-2021-42574).
func printable(r rune) bool { return r == ' ' || unicode.IsPrint(r) && r != utf8.RuneError }
