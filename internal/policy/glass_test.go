package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

const glassDoc = "Grant emergency actions: [secret.read, secret.write], identities: [/human/alice], secrets: [db/*], purposes: [incident], assurance: key, breakGlass: 30m"

// A break-glass grant applies as long as the one who asks has it open, and a lease by it ends with that.
func TestGlassDecides(t *testing.T) {
	p := mustCompile(t, everyday(with(t, glassDoc,
		"Grant everyday actions: [secret.read], identities: [/human/alice], secrets: [db/a], purposes: [incident], ttl: 10m",
		"Grant conditional actions: [secret.read], identities: [/human/alice], secrets: [x/*], purposes: [incident], breakGlass: 5m, when: claims.x == 1",
		"Secret x/* type: opaque", "Secret db/* type: opaque",
	)))
	at := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	open := func(left time.Duration, grants ...string) (out []Opened) {
		for _, g := range grants {
			out = append(out, Opened{g, at.Add(left)})
		}
		return out
	}
	for what, c := range map[string]struct {
		secret string
		opened []Opened
		want   problem.Reason
		by     string
		ttl    time.Duration
	}{
		"closed":              {"db/b", nil, problem.ReasonGlass, "emergency", 0},
		"open":                {"db/b", open(20*time.Minute, "emergency"), "", "emergency", 20 * time.Minute},
		"another one open":    {"db/b", open(time.Hour, "everyday", "conditional"), problem.ReasonGlass, "emergency", 0},
		"just over":           {"db/b", open(0, "emergency"), problem.ReasonGlass, "emergency", 0},
		"over and open again": {"db/b", append(open(-time.Hour, "emergency"), open(time.Minute, "emergency")...), "", "emergency", time.Minute},
		"every day":           {"db/a", nil, "", "everyday", 10 * time.Minute},
		"both, the longer":    {"db/a", open(20*time.Minute, "emergency"), "", "emergency", 20 * time.Minute},
		"both, as long":       {"db/a", open(10*time.Minute, "emergency"), "", "everyday", 10 * time.Minute},
		"both, the shorter":   {"db/a", open(time.Minute, "emergency"), "", "everyday", 10 * time.Minute},
		"its condition first": {"x/a", nil, problem.ReasonCondition, "conditional", 0},
		"and open":            {"x/a", open(time.Hour, "conditional"), problem.ReasonCondition, "conditional", 0},
	} {
		in := &Input{Action: ReadSecret, Identity: "/human/alice", Secret: c.secret, Purpose: "incident", Assurance: identity.Key, Time: at, Opened: c.opened}
		d := p.Decide(in)
		if d.Allow != (c.want == "") || d.Reason != c.want || d.Grant != c.by || d.TTL != c.ttl || d.Glass != (d.Allow && c.by == "emergency") {
			t.Errorf("%s: %+v", what, d)
		}
	}
	if g, ok := p.Glass("emergency"); !ok || g.Glass != 30*time.Minute || g.When != "break-glass for 30m" {
		t.Errorf("%+v, %t", g, ok)
	}
	if g, ok := p.Glass("conditional"); !ok || g.When != "break-glass for 5m && (claims.x == 1)" {
		t.Errorf("%+v, %t", g, ok)
	}
	if _, ok := p.Glass("everyday"); ok {
		t.Error("an everyday grant is to be opened")
	}
}

// A test says what is open; that nothing is given when it is closed is a case that a mutant asks for.
func TestGlassCases(t *testing.T) {
	files := everyday(with(t, glassDoc, "Secret db/* type: opaque"))
	open := "  cases:\n    - {name: open, identity: /human/alice, secret: db/a, purpose: incident, opened: [emergency], expect: allow, by: emergency, ttl: 30m}\n"
	r := runTests(t, withTests(files, open))
	if r.Err() != nil {
		t.Fatal(r.Results)
	}
	survives := func(cases string) bool {
		m, err := mustCompile(t, withTests(files, cases)).Mutate(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range m.Survivors {
			if x.Rule == "the grant emergency" && x.Change == "open at all times" {
				return strings.Contains(x.LetsIn, "who has not broken the glass") && x.Source.Line > 1
			}
		}
		return false
	}
	if !survives("  cases:\n    - {name: other, identity: /human/alice, secret: db/a, purpose: incident, opened: [emergency], expect: allow}\n") {
		t.Error("nothing asks for the case in which it is closed")
	}
	if survives(open + "    - {name: closed, identity: /human/alice, secret: db/a, purpose: incident, expect: deny, reason: break-glass}\n") {
		t.Error("the case in which it is closed does not count")
	}
}

// everyday is a bundle without tests, and without the example's grant that keeps persons from reading.
func everyday(files Files) Files {
	files = withoutTests(files)
	delete(files, "grants/no-human-reads.yaml")
	return files
}
