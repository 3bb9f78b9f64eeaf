package plan

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

// operators are NAME:DUTY+DUTY…, or NAME for all duties; each has a key of his own.
func operators(t testing.TB, list ...string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("apiVersion: bailment/v1\nkind: Operators\nmetadata: {name: operators}\nspec:\n  operators:\n")
	for _, x := range list {
		name, duties, some := strings.Cut(x, ":")
		if !some {
			duties = "propose+approve+revoke+keys+audit"
		}
		seed := make([]byte, ed25519.SeedSize)
		copy(seed, name)
		key, err := ssh.NewPublicKey(ed25519.NewKeyFromSeed(seed).Public())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "    - name: %s\n      keys: [%q]\n      duties: [%s]\n", name, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), strings.ReplaceAll(duties, "+", ", "))
	}
	return b.String()
}

// production is the example as one, with these operators.
func production(t testing.TB, approvals int, persons []string, edits ...string) *policy.Program {
	t.Helper()
	all := []string{
		"operators.yaml", "", operators(t, persons...),
		"environment.yaml", "class: development", "class: production\n  agents: {signers: [" + bobKey + "]}",
		"environment.yaml", "required: 0", fmt.Sprintf("required: %d", approvals),
	}
	return edited(t, append(all, edits...)...)
}

var three = []string{"alice", "bob", "carol"}

func TestSeparation(t *testing.T) {
	read := func(who, secret string) string {
		return grantYAML("reader", "actions: [secret.read], purposes: [debug], identities: ["+who+"], secrets: ["+secret+"]")
	}
	write := func(who, secret string) string {
		return grantYAML("writer", "actions: [secret.write], identities: ["+who+"], secrets: ["+secret+"]")
	}
	none := []string{"grants/no-human-reads.yaml", "", grantYAML("pad", "actions: [secret.read], effect: deny, identities: [/human/nobody/*], secrets: ['*']")}
	for _, c := range []struct {
		name    string
		persons []string
		edits   []string
		want    []string
	}{
		{name: "three operators"},
		{name: "two operators", persons: three[:2], want: []string{"recovery true alice", "recovery true bob"}},
		{
			name: "one who proposes", persons: []string{"alice:propose", "bob:approve", "carol:approve"}, want: []string{"recovery true alice"},
		},
		{
			name: "two who propose and two who approve", persons: []string{"alice:propose", "dave:propose", "bob:approve", "carol:approve"},
			edits: []string{"grants/alice.yaml", "secret.list", "secret.list"},
		},
		{
			name: "writes and reads by two grants", edits: append([]string{"grants/new.yaml", "", read("/human/alice", "db/*")}, none...),
			want: []string{"read-back true /human/alice may write db/* by the grant alice-provisions (grants/alice.yaml:2:1), and read it back by the grant reader"},
		},
		{
			name: "by patterns", edits: append([]string{"grants/new.yaml", "", read("/workload/*", "app/*") + write("/workload/payments-api", "app/x/*")}, none...),
			want: []string{"read-back true /workload/payments-api may write app/x/* by the grant writer"},
		},
		{name: "forbidden to read", edits: []string{"grants/new.yaml", "", read("/human/alice", "db/*")}},
		{
			name:  "named in one grant",
			edits: append([]string{"grants/new.yaml", "", grantYAML("both", "actions: [secret.read, secret.write], purposes: [debug], identities: [/human/alice], secrets: [db/*]")}, none...),
		},
		{name: "of other secrets", edits: append([]string{"grants/new.yaml", "", read("/human/bob", "db/*") + write("/human/bob", "app/*")}, none...)},
		{
			name: "everybody", edits: append([]string{"grants/new.yaml", "", read("/*", "app/*")}, none...),
			want: []string{
				"everybody true the grant reader permits secret.read on app/* to /*, which is every operator too",
				"read-back true /human/alice may write app/* by the grant alice-provisions",
			},
		},
		{name: "everybody but persons", edits: []string{"grants/new.yaml", "", read("/*", "app/*")}},
		{
			name: "who writes admits machines", persons: []string{"alice:propose+approve+admit", "bob", "carol"},
			want: []string{"admit false alice (operators.yaml:6:7) may write db/password, and by the duty admit make a machine"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.persons == nil {
				c.persons = three
			}
			p := production(t, 1, c.persons, c.edits...)
			found := Separation(p)
			refused := 0
			for _, want := range c.want {
				rule, rest, _ := strings.Cut(want, " ")
				hard, text, _ := strings.Cut(rest, " ")
				if !slices.ContainsFunc(found, func(b Breach) bool {
					return string(b.Rule) == rule && fmt.Sprint(b.Refused) == hard && strings.Contains(b.Finding.Message, text) && b.Finding.Pos.Line > 0
				}) {
					t.Errorf("not found: %s", want)
				}
				if hard == "true" {
					refused++
				}
			}
			if len(found) != len(c.want) {
				t.Errorf("found %+v", found)
			}
			err := CheckSeparation(p)
			var list policy.Findings
			if (err != nil) != (refused > 0) || err != nil && (!problem.Is(err, problem.ReasonSeparation) || !errors.As(err, &list) || len(list) != refused) {
				t.Errorf("refused: %v", err)
			}
		})
	}
}

// In development it is advice.
func TestSeparationInDevelopment(t *testing.T) {
	p := edited(t)
	var rules []string
	for _, b := range Separation(p) {
		if b.Refused {
			t.Errorf("refused: %+v", b)
		}
		rules = append(rules, string(b.Rule))
	}
	slices.Sort(rules)
	if want := []string{"admit", "alone", "recovery"}; !slices.Equal(rules, want) {
		t.Errorf("%q", rules)
	}
	if err := CheckSeparation(p); err != nil {
		t.Error(err)
	}
}

func TestRecovery(t *testing.T) {
	four := append(slices.Clone(three), "dave")
	for _, c := range []struct {
		name          string
		before, after []string
		need          int // after; before it is 1
		want          string
	}{
		{name: "the same", before: three, after: three, need: 1},
		{name: "one of four goes", before: four, after: three, need: 1},
		{name: "the last second goes", before: three, after: three[:2], need: 1, want: "alice"},
		{name: "all are others", before: three, after: []string{"erin", "frank"}, need: 1, want: "erin"},
		{name: "one more is needed", before: three, after: three, need: 2, want: "alice"},
		{name: "one more is needed of four", before: four, after: four, need: 2},
		{name: "a duty goes", before: three, after: []string{"alice", "bob", "carol:audit"}, need: 1, want: "alice"},
		{name: "only one proposes", before: three, after: []string{"alice", "bob:approve", "carol:approve"}, need: 1, want: "alice"},
		{name: "two stay two", before: three[:2], after: []string{"alice", "erin"}, need: 1},
		{name: "two become three", before: three[:2], after: three, need: 1},
		{name: "who was dispensable is not any more", before: []string{"alice:propose", "bob:approve", "carol:approve"}, after: []string{"alice:propose", "bob:approve", "carol:audit"}, need: 1, want: "bob"},
	} {
		t.Run(c.name, func(t *testing.T) {
			grants := []string{"grants/alice.yaml", "/human/alice", "/human/*"}
			err := Recovery(production(t, 1, c.before, grants...), production(t, c.need, c.after, grants...))
			if (err != nil) != (c.want != "") || err != nil && (!problem.Is(err, problem.ReasonLastQuorum) || !strings.Contains(err.Error(), "if "+c.want+" is lost")) {
				t.Errorf("got %v", err)
			}
		})
	}
}
