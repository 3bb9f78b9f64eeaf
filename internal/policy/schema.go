package policy

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
)

// Schemas are JSON Schemas (draft 2020-12) of the kinds of documents, by kind, for editors. They
// are generated from the same structs that the bundle is decoded into, so they know every field
// and no other; they don't know what only Compile checks.
func Schemas() map[string][]byte {
	out := make(map[string][]byte, len(places))
	for _, p := range places {
		spec := reflect.TypeOf(newSpec(p.kind)).Elem()
		doc := map[string]any{
			"$schema":              "https://json-schema.org/draft/2020-12/schema",
			"title":                p.kind,
			"description":          p.what,
			"type":                 "object",
			"additionalProperties": false,
			"required":             []string{"apiVersion", "kind", "metadata", "spec"},
			"properties": map[string]any{
				"apiVersion": map[string]any{"const": APIVersion},
				"kind":       map[string]any{"const": p.kind},
				"metadata":   schemaOf(reflect.TypeFor[metadataSpec]()),
				"spec":       schemaOf(spec),
			},
		}
		b, err := json.MarshalIndent(doc, "", "  ")
		if err != nil {
			panic("policy: a schema can't be printed: " + err.Error()) // maps and strings only
		}
		out[p.kind] = append(b, '\n')
	}
	return out
}

func schemaOf(t reflect.Type) map[string]any {
	if leaf, ok := reflect.New(t).Interface().(scalar); ok {
		return leaf.schema()
	}
	if t.Kind() == reflect.Slice {
		return map[string]any{"type": "array", "items": schemaOf(t.Elem())}
	}
	properties := map[string]any{}
	required := []string{}
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("yaml")
		if name == "" {
			continue
		}
		property := schemaOf(f.Type)
		if doc := f.Tag.Get("doc"); doc != "" {
			property["description"] = doc
		}
		if value := f.Tag.Get("default"); value != "" {
			if property["type"] == "integer" {
				property["default"] = json.Number(value)
			} else {
				property["default"] = value
			}
		}
		if enum := f.Tag.Get("enum"); enum != "" {
			target := property
			if items, ok := property["items"].(map[string]any); ok {
				target = items
			}
			target["enum"] = strings.Split(enum, ",")
		}
		if f.Tag.Get("need") == "true" {
			required = append(required, name)
		}
		properties[name] = property
	}
	out := map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
	if len(required) > 0 {
		slices.Sort(required)
		out["required"] = required
	}
	return out
}
