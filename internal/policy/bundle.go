package policy

import (
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/spelling"
)

// document is one parsed document: its kind, its metadata, and its spec as a pointer to the
// kind's spec struct.
type document struct {
	kind   string
	name   text
	about  string
	at     Pos
	source []string // the file's lines, for places inside a text
	spec   any
	whole  bool // nothing was wrong with it so far
}

// Bundle is a bundle's files, read but not yet compiled. It is immutable.
type Bundle struct {
	files   Files
	docs    []*document
	found   Findings
	partial bool // reading stopped early
}

// Load reads the documents of a bundle's files. What is wrong with them is kept for Compile, which
// reports it together with what it finds itself. The error is for files that are no bundle at all:
// too many, too large, or with unacceptable names.
func Load(files Files) (*Bundle, error) {
	if err := files.check(); err != nil {
		return nil, err
	}
	b := &Bundle{files: files}
	var found collector
	reader := &yamlReader{found: &found}
	for _, name := range files.Paths() {
		if found.full() || reader.spent {
			found.overflow = true
			break
		}
		b.loadFile(&found, reader, name, files[name])
	}
	for _, name := range []string{"environment", "operators"} {
		// What keeps a file that is there from being read says more than that it is missing.
		said := slices.ContainsFunc(found.list, func(f Finding) bool { return f.Pos.File == name+".yaml" || f.Pos.File == name+".yml" })
		if !said && !slices.ContainsFunc(b.docs, func(d *document) bool { return d.kind == places[name].kind }) && !found.overflow {
			found.add(Pos{File: name + ".yaml"}, "is missing, or has no document of kind %s: a bundle needs one", places[name].kind)
		}
	}
	b.found, b.partial = found.list, found.overflow
	return b, nil
}

// Files are the files that the bundle was loaded from. They must not be changed.
func (b *Bundle) Files() Files { return b.files }

func invalid(list Findings) error {
	first := list[0].String()
	if len(list) > 1 {
		first += " (and more)"
	}
	p := problem.New(problem.ReasonBundleInvalid, "the bundle has %d finding(s): %s", len(list), first)
	p.Err = list
	return p
}

func (b *Bundle) loadFile(found *collector, reader *yamlReader, name string, data []byte) {
	at := Pos{File: name}
	top, rest, nested := strings.Cut(name, "/")
	ext := path.Ext(name)
	switch {
	case slices.Contains(ignoredExtensions, ext):
		return
	case ext != ".yaml" && ext != ".yml":
		found.add(at, "has no meaning here: a bundle is made of .yaml and .yml files, and only %s files may accompany it", strings.Join(ignoredExtensions, " and "))
		return
	}
	if !nested {
		top = strings.TrimSuffix(name, ext)
	}
	if kind, ok := unready[top]; ok {
		found.add(at, "has no effect yet: this version has no %s", kind)
		return
	}
	p, ok := places[top]
	switch {
	case !ok || p.single == nested:
		found.add(at, "is in no place that has a meaning: a bundle has environment.yaml, operators.yaml, authorities/, identities/, grants/, secrets/, rollouts/, federation/ and tests/")
		return
	case nested && strings.Contains(rest, "/"):
		found.add(at, "is in a deeper directory: put it into %s/", top)
		return
	}
	docs := reader.documents(name, data)
	if len(docs) == 0 && !found.full() && !hasFinding(found, name) {
		found.add(at, "has no document")
	}
	source := strings.Split(strings.ReplaceAll(strings.TrimPrefix(string(data), "\uFEFF"), "\r\n", "\n"), "\n")
	for i, n := range docs {
		if p.single && i > 0 {
			found.add(n.at, "only one document is allowed in this file")
			return
		}
		if d := readDocument(found, n, p, top); d != nil {
			d.source = source
			b.docs = append(b.docs, d)
		}
	}
}

func hasFinding(found *collector, file string) bool {
	return slices.ContainsFunc(found.list, func(f Finding) bool { return f.Pos.File == file })
}

func newSpec(kind string) any {
	switch kind {
	case kindEnvironment:
		return &environmentSpec{}
	case kindOperators:
		return &operatorsSpec{}
	case kindAuthority:
		return &authoritySpec{}
	case kindIdentity:
		return &identitySpec{}
	case kindGrant:
		return &grantSpec{}
	case kindSecret:
		return &secretSpec{}
	case kindFederation:
		return &federationSpec{}
	case kindTest:
		return &testSpec{}
	case kindRollout:
		return &rolloutSpec{}
	}
	return nil
}

// readDocument decodes the envelope first, so that a wrong kind is told as that and not as many
// unknown fields.
func readDocument(found *collector, n *node, p place, top string) *document {
	before := len(found.list)
	if n.kind != kindMap {
		found.add(n.at, "a document must be a mapping, not %s", n.describe())
		return nil
	}
	var head struct{ version, kind text }
	for _, e := range n.entries {
		switch e.key {
		case "apiVersion":
			decodeValue(found, e.value, e.key, reflect.ValueOf(&head.version).Elem())
		case "kind":
			decodeValue(found, e.value, e.key, reflect.ValueOf(&head.kind).Elem())
		}
	}
	if head.version.set && head.version.value != APIVersion {
		found.add(head.version.at, "apiVersion %q is not known: this version reads %s", head.version.value, APIVersion)
		return nil
	}
	if head.kind.set && head.kind.value != p.kind {
		found.add(head.kind.at, "%s", wrongKind(head.kind.value, p, top))
		return nil
	}
	d := &document{kind: p.kind, at: n.at, spec: newSpec(p.kind)}
	var metadata metadataSpec
	envelope := map[string]reflect.Value{
		"apiVersion": reflect.ValueOf(&head.version).Elem(),
		"kind":       reflect.ValueOf(&head.kind).Elem(),
		"metadata":   reflect.ValueOf(&metadata).Elem(),
		"spec":       reflect.ValueOf(d.spec).Elem(),
	}
	given := map[string]bool{}
	for _, e := range n.entries {
		target, ok := envelope[e.key]
		if !ok {
			found.add(e.at, "unknown field %q in a document%s", e.key, spelling.DidYouMean(e.key, maps.Keys(envelope)))
			continue
		}
		given[e.key] = true
		if e.key == "metadata" || e.key == "spec" {
			decodeMap(found, e.value, e.key, target)
		}
	}
	for _, name := range []string{"apiVersion", "kind", "metadata", "spec"} {
		if !given[name] {
			found.add(n.at, "a document needs the field %q", name)
		}
	}
	d.name, d.about = metadata.Name, metadata.Description.value
	d.whole = len(found.list) == before && !found.full()
	return d
}

func wrongKind(kind string, p place, top string) string {
	for name, other := range places {
		if other.kind != kind {
			continue
		}
		if other.single {
			return "kind " + kind + " belongs into " + name + ".yaml"
		}
		return "kind " + kind + " belongs into " + name + "/"
	}
	for _, other := range unready {
		if other == kind {
			return "kind " + kind + " has no effect yet"
		}
	}
	return "unknown kind " + strings.TrimSpace(kind) + ": in " + top + " it must be " + p.kind
}
