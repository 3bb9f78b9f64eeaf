package policy

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Reference is the reference of all kinds and fields as Markdown, generated from the same structs as Schemas.
func Reference() string {
	var b strings.Builder
	b.WriteString("# The bundle\n\n<!-- generated from internal/policy: do not edit -->\n\n")
	b.WriteString("A bundle is a directory of strict YAML (a subset: no anchors, aliases, tags or merge keys). Every document has `apiVersion: " + APIVersion + "`, its `kind`, a\n")
	b.WriteString("`metadata.name` that is unique among those of its kind, and a `spec`, whose fields follow. A file has one document or more, parted by `---`; which file of a\n")
	b.WriteString("directory it is in, and in which order, does not matter. An unknown or repeated field is an error with file, line and column. `[]` is a list. What conditions may\n")
	b.WriteString("say: [conditions](conditions.md). `bailment bundle check` checks a directory, and `bailment bundle schema` prints JSON Schemas for editors.\n")
	dirs := slices.SortedFunc(maps.Keys(places), func(x, y string) int {
		if places[x].single != places[y].single {
			return map[bool]int{true: -1, false: 1}[places[x].single]
		}
		return cmp.Compare(x, y)
	})
	for _, dir := range dirs {
		p, where := places[dir], "`"+dir+"/*.yaml`"
		if p.single {
			where = "`" + dir + ".yaml`, one document"
		}
		fmt.Fprintf(&b, "\n## %s: %s\n\nIn %s.\n\n| field of `spec` | is | default | meaning |\n|---|---|---|---|\n", p.kind, p.what, where)
		referTo(&b, "", reflect.TypeOf(newSpec(p.kind)).Elem())
	}
	return b.String()
}

// referTo writes a row for each field of a struct, and of those in it.
func referTo(b *strings.Builder, prefix string, t reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("yaml")
		if name == "" {
			continue
		}
		name, of, list := prefix+name, f.Type, ""
		if of.Kind() == reflect.Slice && !isScalar(of) {
			of, list = of.Elem(), "[]"
		}
		def := f.Tag.Get("default")
		switch {
		case def != "":
			def = "`" + def + "`"
		case f.Tag.Get("need") == "true":
			def = "must be given"
		}
		doc := f.Tag.Get("doc")
		if enum := f.Tag.Get("enum"); enum != "" {
			doc += " One of: `" + strings.ReplaceAll(enum, ",", "`, `") + "`."
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", name+list, formOf(of), def, strings.ReplaceAll(doc, "|", `\|`))
		if !isScalar(of) {
			referTo(b, name+list+".", of)
		}
	}
}

func isScalar(t reflect.Type) bool {
	return t.Implements(reflect.TypeFor[scalar]()) || reflect.PointerTo(t).Implements(reflect.TypeFor[scalar]())
}

// formOf says what is written for a value of a type.
func formOf(t reflect.Type) string {
	if !isScalar(t) {
		return "mapping"
	}
	switch s := reflect.New(t).Interface().(scalar).schema(); {
	case s["pattern"] != nil:
		return "duration"
	case s["type"] == "string":
		return "text"
	case s["type"] == "integer":
		return "number"
	case s["type"] == "boolean":
		return "true or false"
	default:
		return "mapping"
	}
}
