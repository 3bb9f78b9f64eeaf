package policy

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
)

// Line is who has what by which grant, as the bundle writes it: what an access review decides about.
type Line struct {
	Grant    string
	Identity string // a pattern
	Secret   string // a pattern
}

// MissingLine looks lines up among those of the grants that allow something, and gives the first that is none of them.
func (p *Program) MissingLine(lines []Line) (Line, bool) {
	names := make(map[string]*grant, len(lines))
	for _, l := range lines {
		names[l.Grant] = nil
	}
	for i := range p.grants {
		if _, asked := names[p.grants[i].name]; asked && p.grants[i].effect == Allow {
			names[p.grants[i].name] = &p.grants[i]
		}
	}
	for _, l := range lines {
		g := names[l.Grant]
		if g == nil {
			return l, true
		}
		who := slices.ContainsFunc(g.identities, named(l.Identity))
		if !who || !slices.ContainsFunc(g.secrets, named(l.Secret)) {
			return l, true
		}
	}
	return Line{}, false
}

// OwnLine finds a line that names one identity and no other.
func OwnLine(lines []Line, path string) (Line, bool) {
	i := slices.IndexFunc(lines, func(l Line) bool { return l.Identity == path })
	if i < 0 {
		return Line{}, false
	}
	return lines[i], true
}

func named(text string) func(identity.Pattern) bool {
	return func(p identity.Pattern) bool { return p.String() == text }
}

// WithoutGrants is a bundle's files without the documents of some grants: each a file less if there was nothing else in it. All other
// documents stay as they are written, byte for byte.
func WithoutGrants(files Files, names []string) (Files, error) {
	b, err := Load(files)
	if err != nil {
		return nil, err
	}
	if len(b.found) > 0 || b.partial {
		return nil, invalid(b.found)
	}
	gone := func(d *document) bool { return d.kind == kindGrant && slices.Contains(names, d.name.value) }
	of := map[string][]*document{}
	for _, d := range b.docs {
		of[d.at.File] = append(of[d.at.File], d)
	}
	out := maps.Clone(files)
	var want []string
	for _, path := range files.Paths() {
		docs := of[path]
		stay := slices.DeleteFunc(slices.Clone(docs), gone)
		for _, d := range stay {
			want = append(want, d.kind+" "+d.name.value)
		}
		switch {
		case len(stay) == len(docs):
		case len(stay) == 0:
			delete(out, path)
		default:
			out[path] = withoutDocuments(files[path], slices.DeleteFunc(slices.Clone(docs), func(d *document) bool { return !gone(d) }))
		}
	}
	// The text was cut, and not the documents: what is left is read again.
	left, err := Load(out)
	if err != nil {
		return nil, err
	}
	var have []string
	for _, d := range left.docs {
		have = append(have, d.kind+" "+d.name.value)
	}
	if len(left.found) > 0 || !slices.Equal(have, want) {
		return nil, fmt.Errorf("the documents of %s can't be told apart in their files: take them out by hand", strings.Join(names, ", "))
	}
	return out, nil
}

// withoutDocuments cuts documents out of a file with several. A line that begins with "---" begins a document, whatever stands around it
// (YAML 1.2, 9.1.2).
func withoutDocuments(data []byte, gone []*document) []byte {
	lines := bytes.SplitAfter(data, []byte("\n"))
	var parts [][]byte // each begins with its marker, if it has one
	var first []int    // the number of the line that each begins with
	for i, line := range lines {
		text := strings.TrimRight(string(line), "\r\n")
		marker := text == "---" || strings.HasPrefix(text, "--- ") || strings.HasPrefix(text, "---\t")
		if i == 0 || marker {
			parts, first = append(parts, nil), append(first, i+1)
		}
		parts[len(parts)-1] = append(parts[len(parts)-1], line...)
	}
	cut := make([]bool, len(parts))
	for _, d := range gone {
		at := 0
		for i := range first {
			if first[i] <= d.at.Line {
				at = i
			}
		}
		cut[at] = true
	}
	var out []byte
	for i, part := range parts {
		if !cut[i] {
			out = append(out, part...)
		}
	}
	return out
}
