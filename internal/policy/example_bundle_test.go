package policy

import (
	"encoding/json"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/examples"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

func exampleFiles(t testing.TB) Files { return exampleNamed(t, "payments") }

func exampleNamed(t testing.TB, name string) Files {
	t.Helper()
	sub, err := fs.Sub(examples.FS, name)
	if err != nil {
		t.Fatal(err)
	}
	files, err := ReadFiles(sub)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func compileFiles(files Files) (*Program, error) {
	b, err := Load(files)
	if err != nil {
		return nil, err
	}
	return Compile(b)
}

func mustCompile(t testing.TB, files Files) *Program {
	t.Helper()
	p, err := compileFiles(files)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustClaims(t testing.TB, m map[string]any) Claims {
	t.Helper()
	c, err := PrepareClaims(m)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestExampleDecides(t *testing.T) {
	p := mustCompile(t, exampleFiles(t))
	if e := p.Environment(); e.Name != "payments-dev" || e.Class != Development || e.Sessions.Workload != 10*time.Minute || e.NodeLifetime != 2160*time.Hour {
		t.Errorf("environment: %+v", e)
	}
	node, err := p.IdentifyNode(authority.JoinToken, "", mustClaims(t, map[string]any{"name": "web_1"}))
	if err != nil || node.Path != "/node/join-token/web_5F1" || node.Session != time.Hour {
		t.Fatalf("node: %+v, %v", node, err)
	}
	work, err := p.IdentifyWorkload(node.Path, Claims{}, "")
	if err != nil || work.Path != "/workload/payments-api" {
		t.Fatalf("workload: %+v, %v", work, err)
	}
	ask := func(action Action, id, purpose string, a identity.Assurance) Decision {
		return p.Decide(&Input{Action: action, Identity: id, Assurance: a, Secret: "db/password", Purpose: purpose})
	}
	for _, c := range []struct {
		name   string
		d      Decision
		reason problem.Reason
	}{
		{"service", ask(ReadSecret, work.Path, "runtime", identity.Token), ""},
		{"other purpose", ask(ReadSecret, work.Path, "debug", identity.Token), problem.ReasonPurpose},
		{"unbound", ask(ReadSecret, work.Path, "runtime", identity.Unbound), problem.ReasonAssurance},
		{"service writes", ask(WriteSecret, work.Path, "", identity.Token), problem.ReasonNoGrant},
		{"stranger", ask(ReadSecret, "/workload/other", "runtime", identity.Measured), problem.ReasonNoGrant},
		{"alice writes", ask(WriteSecret, "/human/alice", "", identity.Key), ""},
		{"alice reads", ask(ReadSecret, "/human/alice", "runtime", identity.Key), problem.ReasonDenied},
		{"node", ask(ReadSecret, node.Path, "runtime", identity.Token), problem.ReasonDenied},
		{"good node", ask(ReadSecret, node.Path, "runtime", identity.Hardware), problem.ReasonNoGrant},
		{"no action", ask("secret.steal", "/human/alice", "", identity.Key), problem.ReasonNoGrant},
	} {
		if c.d.Reason != c.reason || c.d.Allow != (c.reason == "") {
			t.Errorf("%s: %+v, want reason %q", c.name, c.d, c.reason)
		}
		if (c.d.Err() == nil) != c.d.Allow {
			t.Errorf("%s: Err is %v", c.name, c.d.Err())
		}
	}
	if d := ask(ReadSecret, work.Path, "runtime", identity.Token); d.TTL != time.Hour || d.Grant != "payments-api-reads-db" {
		t.Errorf("service: %+v", d)
	}
}

// The schemas are what editors see. Every property of the example must be known to them, and they
// must not know properties that decoding refuses.
func TestSchemasFitExample(t *testing.T) {
	schemas := Schemas()
	if len(schemas) != len(places) {
		t.Fatalf("%d schemas for %d kinds", len(schemas), len(places))
	}
	parsed := map[string]map[string]any{}
	for kind, b := range schemas {
		var s map[string]any
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		parsed[kind] = s
	}
	var found collector
	reader := &yamlReader{found: &found}
	seen := 0
	for path, data := range exampleFiles(t) {
		if !strings.HasSuffix(path, ".yaml") {
			continue
		}
		for _, doc := range reader.documents(path, data) {
			kind := ""
			for _, e := range doc.entries {
				if e.key == "kind" {
					kind = e.value.text
				}
			}
			for _, complaint := range conforms(doc, parsed[kind], kind) {
				t.Errorf("%s: %s", path, complaint)
			}
			seen++
			// The checker must be able to complain.
			doc.entries[0].key = "planted"
			if len(conforms(doc, parsed[kind], kind)) == 0 {
				t.Errorf("%s: a planted property was not found", path)
			}
		}
	}
	if seen < 8 || len(found.list) > 0 {
		t.Errorf("%d documents, findings %v", seen, found.list)
	}
}

// conforms checks the part of JSON Schema that schemaOf uses.
func conforms(n *node, schema map[string]any, at string) (out []string) {
	switch schema["type"] {
	case "object":
		properties, _ := schema["properties"].(map[string]any)
		given := map[string]bool{}
		if n.kind != kindMap {
			return []string{at + " is no object"}
		}
		for _, e := range n.entries {
			given[e.key] = true
			sub, ok := properties[e.key].(map[string]any)
			if schema["additionalProperties"] == true {
				continue
			}
			if !ok {
				out = append(out, at+"."+e.key+" is not in the schema")
				continue
			}
			out = append(out, conforms(e.value, sub, at+"."+e.key)...)
		}
		required, _ := schema["required"].([]any)
		for _, r := range required {
			if !given[r.(string)] {
				out = append(out, at+" lacks "+r.(string))
			}
		}
	case "array":
		if n.kind != kindList {
			return []string{at + " is no array"}
		}
		for _, item := range n.items {
			out = append(out, conforms(item, schema["items"].(map[string]any), at+"[]")...)
		}
	case "integer":
		if n.kind != kindNumber {
			out = append(out, at+" is no integer")
		}
	default:
		if n.kind != kindText {
			out = append(out, at+" is no string")
		}
		if c, ok := schema["const"]; ok && c != n.text {
			out = append(out, at+" is not "+c.(string))
		}
		if enum, ok := schema["enum"].([]any); ok {
			hit := false
			for _, v := range enum {
				hit = hit || v == n.text
			}
			if !hit {
				out = append(out, at+" is not in the enum")
			}
		}
	}
	return out
}
