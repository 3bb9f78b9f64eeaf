package policy

import (
	"encoding/json"
	"strings"
	"testing"
)

// Every kind is there, every field of its schema has its row, and no row lacks its meaning.
func TestReference(t *testing.T) {
	text := Reference()
	for _, line := range strings.Split(text, "\n") {
		if strings.HasSuffix(line, "|  |") {
			t.Errorf("nobody says what this means: %s", line)
		}
	}
	var fields func(schema map[string]any, prefix string) []string
	fields = func(schema map[string]any, prefix string) (out []string) {
		if items, ok := schema["items"].(map[string]any); ok {
			return fields(items, prefix+"[]")
		}
		properties, _ := schema["properties"].(map[string]any)
		if len(properties) == 0 {
			return []string{prefix}
		}
		if prefix != "" {
			prefix += "."
		}
		for name, p := range properties {
			out = append(out, fields(p.(map[string]any), prefix+name)...)
		}
		return out
	}
	for kind, schema := range Schemas() {
		at := strings.Index(text, "\n## "+kind+": ")
		if at < 0 {
			t.Errorf("the kind %s is not there", kind)
			continue
		}
		section, _, _ := strings.Cut(text[at+4:], "\n## ")
		var all map[string]any
		if err := json.Unmarshal(schema, &all); err != nil {
			t.Fatal(err)
		}
		for _, f := range fields(all["properties"].(map[string]any)["spec"].(map[string]any), "") {
			if !strings.Contains(section, "\n| `"+f+"` | ") {
				t.Errorf("%s has no row for %s", kind, f)
			}
		}
	}
}
