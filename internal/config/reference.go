package config

import (
	"fmt"
	"reflect"
	"strings"
)

// Reference is the reference of all fields as Markdown, generated from the structs.
func Reference() string {
	var b strings.Builder
	b.WriteString("# Configuration\n\n<!-- generated from internal/config: do not edit -->\n\n")
	b.WriteString("Strict YAML: an unknown or repeated field is an error with file, line and column. Everything may be left out, but for what an agent's attestation method needs.\n")
	b.WriteString("`bailment config check FILE` checks without starting anything. Durations are written 10s or 5m, sizes 64KiB or 1MiB,\n")
	b.WriteString("rates \"20/s 200\": 20 a second on average, 200 at once.\n")
	for _, r := range []struct {
		title string
		of    reflect.Type
	}{{"Server: `bailment server --config FILE`", reflect.TypeFor[Server]()}, {"Agent: `bailment agent --config FILE`", reflect.TypeFor[Agent]()}} {
		fmt.Fprintf(&b, "\n## %s\n\n| field | default | meaning |\n|---|---|---|\n", r.title)
		describe(&b, "", r.of)
	}
	return b.String()
}

func describe(b *strings.Builder, prefix string, t reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		key := prefix + f.Tag.Get("yaml")
		doc := f.Tag.Get("doc")
		if one := f.Tag.Get("one"); one != "" {
			doc += " One of: " + strings.ReplaceAll(one, " ", ", ") + "."
		}
		def := f.Tag.Get("default")
		if def != "" {
			def = "`" + def + "`"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", key, def, strings.ReplaceAll(doc, "|", `\|`))
		switch {
		case f.Type.Kind() == reflect.Struct && f.Type != rateType:
			describe(b, key+".", f.Type)
		case f.Type.Kind() == reflect.Map && f.Type.Elem().Kind() == reflect.Struct:
			describe(b, key+".NAME.", f.Type.Elem())
		}
	}
}
