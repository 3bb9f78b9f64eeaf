package reach

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// fataler is a test, or a property's.
type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// bundle is a bundle in short.
type bundle struct {
	approvals string
	operators map[string]string // name: duties
	docs      []string          // "Kind name field: value, …"
	// environment is more of environment.yaml: ", field: value"
	environment string
}

func keyOf(t fataler, name string) string {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	public, err := ssh.NewPublicKey(ed25519.NewKeyFromSeed(seed).Public())
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))
}

func (b bundle) compile(t fataler) *policy.Program {
	t.Helper()
	p, err := b.try(t)
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(b.docs[:min(len(b.docs), 50)], "\n"))
	}
	return p
}

// try compiles a bundle that may be none.
func (b bundle) try(t fataler) (*policy.Program, error) {
	t.Helper()
	class := "development"
	if b.approvals == "" {
		b.approvals = "0"
	} else if b.approvals != "0" {
		class = "production"
	}
	files := policy.Files{
		"environment.yaml": []byte("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: test}\nspec: {class: " + class + ", approvals: {required: " + b.approvals + "}" + map[string]string{"production": ", agents: {signers: [\"" + keyOf(t, "signer") + "\"], minimum: 0.1.0}"}[class] + b.environment + "}\n"),
	}
	var operators strings.Builder
	operators.WriteString("apiVersion: bailment/v1\nkind: Operators\nmetadata: {name: operators}\nspec:\n  operators:\n")
	names := []string{}
	for name := range b.operators {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&operators, "    - {name: %s, duties: [%s], keys: [%q]}\n", name, b.operators[name], keyOf(t, name))
	}
	files["operators.yaml"] = []byte(operators.String())
	docs := append([]string{"Authority github method: github, issuer: 'https://token.actions.githubusercontent.com'"}, b.docs...)
	place := map[string]string{"Authority": "authorities", "Identity": "identities", "Grant": "grants", "Secret": "secrets"}
	for i, d := range docs {
		kind, rest, _ := strings.Cut(d, " ")
		name, spec, _ := strings.Cut(rest, " ")
		file := fmt.Sprintf("%s/%d.yaml", place[kind], i/2000)
		files[file] = fmt.Appendf(files[file], "---\napiVersion: bailment/v1\nkind: %s\nmetadata: {name: '%s'}\nspec: {%s}\n", kind, name, spec)
	}
	loaded, err := policy.Load(files)
	if err != nil {
		t.Fatal(err)
	}
	return policy.Compile(loaded)
}

// all is every document that the small bundles of these tests begin with.
var all = []string{
	"Identity token method: join-token, path: '/node/join-token/{claims.name}'",
	"Identity job method: github, authority: github, path: '/ci/github/{claims.repository_owner_id}/{claims.repository_id}'",
}

func pattern(t testing.TB, s string) identity.Pattern {
	t.Helper()
	parse := identity.ParseSecretPattern
	if strings.HasPrefix(s, "/") {
		parse = identity.ParseIDPattern
	}
	p, err := parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func target(t testing.TB, s string) Target {
	t.Helper()
	out, err := ParseTarget(s)
	if err != nil || out.String() != s {
		t.Fatalf("%q is %q: %v", s, out, err)
	}
	return out
}

// text is a way on one line.
func text(way []Step) string {
	if len(way) == 0 {
		return ""
	}
	out := way[0].From.Name
	for i, s := range way {
		if i > 0 && s.From != way[i-1].To {
			out += "; " + s.From.Name
		}
		out += " " + string(s.Hop) + " " + s.To.Name
		if len(s.Conditions) > 0 {
			out += " (" + strings.Join(s.Conditions, "; ") + ")"
		}
	}
	return out
}
