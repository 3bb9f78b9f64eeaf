package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/bailment/bailment/internal/policy"
)

// changedFile is a file in which two bundles differ. Both sides were checked against their manifests.
type changedFile struct {
	path, how     string // how: added | changed | removed
	before, after []byte // nil where there is none
}

// differences lists the files in which two bundles differ, by path.
func differences(from, to policy.Files) []changedFile {
	all := maps.Clone(map[string][]byte(from))
	maps.Copy(all, to)
	out := []changedFile{}
	for _, path := range slices.Sorted(maps.Keys(all)) {
		before, was := from[path]
		after, is := to[path]
		d := changedFile{path: path}
		switch {
		case was && is && bytes.Equal(before, after):
			continue
		case was && is:
			d.how = "changed"
		case was:
			d.how = "removed"
		default:
			d.how = "added"
		}
		if was {
			d.before = append([]byte{}, before...)
		}
		if is {
			d.after = append([]byte{}, after...)
		}
		out = append(out, d)
	}
	return out
}

// shownLines and shownBytes bound what is shown of a change's difference. A bundle has at most 10 MiB, and nobody reads
// that on a terminal.
const (
	shownLines = 10_000
	shownBytes = 1 << 20
)

// unified is the difference in the unified format, without control characters, and how many lines of it were left out.
// A file's heading begins with a letter and every line of its content with a sign, so that none passes for the other.
func unified(files []changedFile) (text string, left int) {
	var b strings.Builder
	lines := 0
	for _, f := range files {
		for line := range strings.Lines(f.unified()) {
			if left > 0 || lines == shownLines || b.Len()+len(line) > shownBytes {
				left++
				continue
			}
			lines++
			b.WriteString(line)
		}
	}
	return b.String(), left
}

func (f changedFile) unified() string {
	const none = "/dev/null"
	from, to := "before/"+f.path, "after/"+f.path
	switch f.how {
	case "added":
		from = none
	case "removed":
		to = none
	}
	head := fmt.Sprintf("%-8s %s\n--- %s\n+++ %s\n", f.how, printable(f.path), printable(from), printable(to))
	if !isText(f.before) || !isText(f.after) {
		return head + fmt.Sprintf("not text: %s, then %s\n", described(f.before), described(f.after))
	}
	if len(f.before) == 0 && len(f.after) == 0 {
		return head // it comes or goes, and is empty
	}
	text := diff.Diff(from, f.before, to, f.after)
	for range 3 { // its own heading
		_, text, _ = bytes.Cut(text, []byte("\n"))
	}
	return head + printable(string(text))
}

// isText reports whether content can be compared by lines. What is shown of other bytes would not be what they are.
func isText(b []byte) bool { return utf8.Valid(b) && bytes.IndexByte(b, 0) < 0 }

func described(b []byte) string {
	if b == nil {
		return "nothing"
	}
	return fmt.Sprintf("%d bytes with SHA-256 %x", len(b), sha256.Sum256(b))
}

// fileView is a file of a change for programs.
type fileView struct {
	Path   string    `json:"path"`
	How    string    `json:"how"`
	Before *sideView `json:"before"` // null: it is new
	After  *sideView `json:"after"`  // null: it is gone
}

// sideView is a file's content: as text, or if that would change it as base64.
type sideView struct {
	SHA256 string `json:"sha256"`
	Size   int    `json:"size"`
	Text   string `json:"text"`
	Base64 string `json:"base64,omitempty"`
}

func viewFiles(files []changedFile) []fileView {
	out := make([]fileView, 0, len(files))
	for _, f := range files {
		out = append(out, fileView{f.path, f.how, viewSide(f.before), viewSide(f.after)})
	}
	return out
}

func viewSide(b []byte) *sideView {
	if b == nil {
		return nil
	}
	v := &sideView{SHA256: fmt.Sprintf("%x", sha256.Sum256(b)), Size: len(b)}
	if utf8.Valid(b) {
		v.Text = string(b)
	} else {
		v.Base64 = base64.StdEncoding.EncodeToString(b)
	}
	return v
}
