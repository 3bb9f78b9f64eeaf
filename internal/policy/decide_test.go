package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// with puts documents over the example bundle. Each text is a kind and what follows its name.
func with(t testing.TB, documents ...string) Files {
	t.Helper()
	files := maps.Clone(exampleFiles(t))
	for i, d := range documents {
		kind, rest, _ := strings.Cut(d, " ")
		dir := map[string]string{"Grant": "grants", "Identity": "identities", "Secret": "secrets"}[kind]
		name, spec, _ := strings.Cut(rest, " ")
		files[fmt.Sprintf("%s/with%d.yaml", dir, i)] = fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: %s\nmetadata: {name: %s}\nspec: {%s}\n", kind, name, spec)
	}
	return files
}

func TestConditions(t *testing.T) {
	in := &Input{
		Action: ReadSecret, Identity: "/workload/payments-api", Node: "/node/join-token/web-1", Secret: "db/password",
		Purpose: "test", Assurance: identity.Platform, Time: time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.FixedZone("x", 7200)),
		Claims:     mustClaims(t, map[string]any{"uid": 1000, "exe": map[string]any{"path": "/usr/bin/x"}, "groups": []string{"a", "b"}, "ok": true, "load": 0.5}),
		NodeClaims: mustClaims(t, map[string]any{"name": "web-1"}),
	}
	for _, c := range []struct {
		when string
		want string // true, false, or part of the error
	}{
		{`claims.uid == 1000`, "true"},
		{`claims.uid == 1000.0`, "true"},
		{`claims.uid < 1000`, "false"},
		{`claims.exe.path.startsWith("/usr/")`, "true"},
		{`claims["exe"]["path"] == "/usr/bin/x"`, "true"},
		{`"b" in claims.groups`, "true"},
		{`claims.groups.exists(g, g == "c")`, "false"},
		{`claims.ok == true && claims.load > 0.4`, "true"},
		{`claims.missing == 1`, "no such key: missing"},
		{`claims.uid.deeper == 1`, "no such key: deeper"},
		{`claims.uid.startsWith("x")`, "no such overload"},
		{`has(claims.missing) && claims.missing == 1`, "false"},
		{`!has(claims.missing)`, "true"},
		{`claims.missing == 1 || claims.ok == true`, "true"},
		{`node_claims.name == "web-1"`, "true"},
		{`identity.path == "/workload/payments-api" && identity.env == "payments-dev"`, "true"},
		{`identity.segments[1] == "payments-api" && size(identity.segments) == 2`, "true"},
		{`node.path.endsWith("/web-1")`, "true"},
		{`request.action == "secret.read" && request.secret == "db/password" && request.purpose == "test"`, "true"},
		{`assurance == level.platform && assurance > level.key && assurance < level.measured`, "true"},
		{`time.getHours() == 10 && time.getMilliseconds() == 123`, "true"},
		{`time == timestamp("2026-03-01T10:00:00.123Z")`, "true"},
		{strings.TrimSuffix(strings.Repeat("claims.uid == 1000 && ", 120), " && "), "true"},
		{`((((((claims.exe.path + "x" + "y") + "z"))))) == "/usr/bin/xxyz"`, "true"},
		{`node.path.matches("^/node/[a-z-]+/web-[0-9]+$")`, "true"},
	} {
		t.Run(c.when, func(t *testing.T) {
			for _, effect := range []Effect{Allow, Deny} {
				doc := "Grant probe effect: " + string(effect) + ", actions: [secret.read], identities: [/workload/payments-api], secrets: [db/password], "
				if effect == Allow {
					doc += "purposes: [test], "
				}
				p := mustCompile(t, with(t, doc+"when: "+fmt.Sprintf("%q", c.when)))
				d, rules := p.Explain(in)
				i := slices.IndexFunc(rules, func(r RuleTrace) bool { return r.Grant == "probe" })
				r := rules[i]
				// A condition that can't be told neither allows nor lets a denial be got round.
				applies := c.want == "true" || c.want != "false" && effect == Deny
				if r.Applies != applies {
					t.Errorf("%s: %+v", effect, r)
				}
				if c.want != "true" && c.want != "false" && (!strings.Contains(r.Why, c.want) || !strings.Contains(d.Message, c.want)) {
					t.Errorf("%s: %q in the trace and %q in the message should tell %q", effect, r.Why, d.Message, c.want)
				}
				if want := effect == Allow && applies; d.Allow != want {
					t.Errorf("%s: %+v", effect, d)
				}
			}
		})
	}
}

func TestNearestReason(t *testing.T) {
	base := ", actions: [secret.read], identities: [/workload/*], secrets: [db/*], "
	grants := []string{
		"Grant z-condition assurance: token" + base + "purposes: [test], when: claims.x == 1",
		"Grant a-assurance assurance: measured" + base + "purposes: [test]",
		"Grant b-purpose assurance: token" + base + "purposes: [other]",
	}
	in := &Input{Action: ReadSecret, Identity: "/workload/x", Secret: "db/x", Purpose: "test", Assurance: identity.Key}
	want := []problem.Reason{problem.ReasonCondition, problem.ReasonAssurance, problem.ReasonPurpose, problem.ReasonNoGrant}
	for i := range want {
		d := mustCompile(t, with(t, grants[i:]...)).Decide(in)
		if d.Allow || d.Reason != want[i] || d.Message == "" {
			t.Errorf("without the first %d: %+v", i, d)
		}
	}
}

// Among grants that came equally far the first by name is told, in whatever order they are found.
func TestNearestGrantIsStable(t *testing.T) {
	rest := ", secrets: [db/x/*], purposes: [other]"
	p := mustCompile(t, with(t,
		"Grant b actions: [secret.read], identities: [/workload/payments-api]"+rest,
		"Grant a actions: [secret.read], identities: [/*]"+rest,
		"Grant c actions: [secret.read], identities: [/workload/*]"+rest,
	))
	in := &Input{Action: ReadSecret, Identity: "/workload/payments-api", Secret: "db/x/y", Purpose: "test", Assurance: identity.Key}
	if d := p.Decide(in); d.Grant != "a" || d.Reason != problem.ReasonPurpose {
		t.Errorf("%+v", d)
	}
}

// Only reading has a purpose: a grant for more than reading is not lost for the rest of it.
func TestPurposeIsForReading(t *testing.T) {
	p := mustCompile(t, with(t,
		"Grant a actions: [secret.read, secret.write], identities: [/workload/payments-api], secrets: [db/x/*, db/password], purposes: [other]",
		"Grant d effect: deny, actions: [secret.read, secret.list], identities: [/human/alice], secrets: [db/*], purposes: [test]",
	))
	in := &Input{Action: WriteSecret, Identity: "/workload/payments-api", Secret: "db/password", Assurance: identity.Key}
	if d := p.Decide(in); !d.Allow {
		t.Errorf("%+v", d)
	}
	in = &Input{Action: ListSecret, Identity: "/human/alice", Secret: "db/password", Assurance: identity.Key}
	if d := p.Decide(in); d.Allow || d.Grant != "d" {
		t.Errorf("%+v", d)
	}
}

// Reducing a list of patterns never changes what it selects, and leaves no two that overlap.
func TestPropertyReduce(t *testing.T) {
	texts := []string{"a", "a/b", "a/b/c", "a/*", "a/b/*", "b", "b/*", "*"}
	paths := []string{"a", "a/b", "a/b/c", "a/b/c/d", "a/x", "b", "b/x", "c"}
	rapid.Check(t, func(rt *rapid.T) {
		var list []identity.Pattern
		for _, s := range rapid.SliceOf(rapid.SampledFrom(texts)).Draw(rt, "patterns") {
			p, err := identity.ParseSecretPattern(s)
			if err != nil {
				rt.Fatal(err)
			}
			list = append(list, p)
		}
		short := reduce(list)
		for _, path := range paths {
			if matchAny(list, path) != matchAny(short, path) {
				rt.Fatalf("%v became %v, which differs for %s", list, short, path)
			}
		}
		for i, p := range short {
			for j, q := range short {
				if i != j && p.Covers(q) {
					rt.Fatalf("%v still covers %v", p, q)
				}
			}
		}
	})
}

// A condition whose static cost is between the bounds is metered, and what it can't afford to find
// out counts as not told.
func TestCostLimit(t *testing.T) {
	var terms []string
	for i := range 10 {
		terms = append(terms, fmt.Sprintf("g != 'no%d'", i))
	}
	when := fmt.Sprintf("%q", "claims.groups.all(g, "+strings.Join(terms, " && ")+")")
	p := mustCompile(t, with(t,
		"Grant allow actions: [secret.list], identities: [/workload/*], secrets: [db/*], when: "+when,
		"Grant deny effect: deny, actions: [secret.write], identities: [/human/alice], secrets: [db/*], when: "+when,
	))
	few, many := mustClaims(t, map[string]any{"groups": []string{"a", "b"}}), mustClaims(t, map[string]any{"groups": slices.Repeat([]string{"a"}, 1000)})
	list := &Input{Action: ListSecret, Identity: "/workload/x", Secret: "db/x", Assurance: identity.Key, Claims: few}
	if d := p.Decide(list); !d.Allow {
		t.Errorf("few: %+v", d)
	}
	list.Claims = many
	if d := p.Decide(list); d.Reason != problem.ReasonCondition || !strings.Contains(d.Message, "cost") {
		t.Errorf("many: %+v", d)
	}
	write := &Input{Action: WriteSecret, Identity: "/human/alice", Secret: "db/x", Assurance: identity.Key, Claims: many}
	if d := p.Decide(write); d.Reason != problem.ReasonDenied {
		t.Errorf("many: %+v", d)
	}
}

func TestMostGenerousGrantIsNamed(t *testing.T) {
	g := func(name, ttl string) string {
		return "Grant " + name + " actions: [secret.read], identities: [/workload/*], secrets: [db/*], purposes: [test]" + ttl
	}
	in := &Input{Action: ReadSecret, Identity: "/workload/x", Secret: "db/x", Purpose: "test", Assurance: identity.Key}
	for _, c := range []struct {
		grants []string
		want   string
		ttl    time.Duration
	}{
		{[]string{g("a", ", ttl: 5m"), g("b", ", ttl: 1h"), g("c", ", ttl: 1h")}, "b", time.Hour},
		{[]string{g("a", ", ttl: 5m"), g("z", "")}, "z", 0},
	} {
		if d := mustCompile(t, with(t, c.grants...)).Decide(in); d.Grant != c.want || d.TTL != c.ttl || !d.Allow {
			t.Errorf("%+v, want %s", d, c.want)
		}
	}
}

// world draws small bundles in which much overlaps.
type world struct{ ids, secrets, purposes []string }

var small = world{
	ids:      []string{"/workload/payments-api", "/workload/*", "/human/alice", "/human/*", "/*", "/node/join-token/*", "/workload/a/*"},
	secrets:  []string{"db/password", "db/*", "*", "db/a/*", "x/*"},
	purposes: []string{"runtime", "test"},
}

func (w world) grant(t *rapid.T, name, effect string) string {
	pick := func(label string, from []string) string {
		list := rapid.SliceOfNDistinct(rapid.SampledFrom(from), 1, min(3, len(from)), rapid.ID[string]).Draw(t, label)
		for i := range list {
			list[i] = fmt.Sprintf("%q", list[i])
		}
		return "[" + strings.Join(list, ", ") + "]"
	}
	glass := effect == "allow" && rapid.IntRange(0, 3).Draw(t, "glass") == 0
	if glass {
		w.ids = []string{"/human/alice", "/human/*"}
	}
	s := "Grant " + name + " effect: " + effect + ", actions: " + pick("actions", []string{"secret.read", "secret.write", "secret.list"}) +
		", identities: " + pick("ids", w.ids) + ", secrets: " + pick("secrets", w.secrets)
	if strings.Contains(s, "secret.read") && (effect == "allow" || rapid.Bool().Draw(t, "purposes")) {
		s += ", purposes: " + pick("purpose", w.purposes)
	}
	if effect == "allow" {
		s += ", assurance: " + rapid.SampledFrom([]string{"unbound", "token", "key"}).Draw(t, "assurance")
		if strings.Contains(s, "secret.read") && rapid.Bool().Draw(t, "ttl") {
			s += rapid.SampledFrom([]string{", ttl: 5m", ", ttl: 1h"}).Draw(t, "ttl value")
		}
	}
	if glass {
		s += ", breakGlass: " + rapid.SampledFrom([]string{"65m", "2h"}).Draw(t, "glass for")
	}
	if rapid.Bool().Draw(t, "conditional") {
		s += ", when: " + rapid.SampledFrom([]string{"claims.x == 1", "assurance > level.token", "node.path != \\\"\\\""}).Draw(t, "when")
		s = strings.Replace(s, `node.path != \"\"`, `'node.path != ""'`, 1)
	}
	return s
}

func (w world) bundle(t *rapid.T) []string {
	n := rapid.IntRange(0, 8).Draw(t, "grants")
	out := make([]string, n)
	for i := range out {
		out[i] = w.grant(t, fmt.Sprintf("g%d", i), rapid.SampledFrom([]string{"allow", "allow", "deny"}).Draw(t, "effect"))
	}
	return out
}

func (w world) input(t *rapid.T) *Input {
	in := &Input{
		Action:    rapid.SampledFrom([]Action{ReadSecret, WriteSecret, ListSecret, DestroySecret, "none"}).Draw(t, "action"),
		Identity:  rapid.SampledFrom([]string{"/workload/payments-api", "/workload/a", "/workload/a/b", "/human/alice", "/node/join-token/n", ""}).Draw(t, "identity"),
		Node:      rapid.SampledFrom([]string{"", "/node/join-token/n"}).Draw(t, "node"),
		Secret:    rapid.SampledFrom([]string{"db/password", "db", "db/a", "db/a/b", "x/y/z", ""}).Draw(t, "secret"),
		Purpose:   rapid.SampledFrom([]string{"runtime", "test", ""}).Draw(t, "purpose"),
		Assurance: rapid.SampledFrom(identity.Assurances()).Draw(t, "assurance"),
	}
	claims := map[string]any{}
	if x := rapid.IntRange(0, 2).Draw(t, "x"); x > 0 {
		claims["x"] = x
	}
	in.Claims, _ = PrepareClaims(claims)
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"g0", "g1", "g2", "g3", "g4", "extra"}), 0, 4, rapid.ID[string]).Draw(t, "opened") {
		for _, left := range rapid.SliceOfN(rapid.SampledFrom([]time.Duration{-time.Minute, 0, time.Minute, 20 * time.Minute, 2 * time.Hour}), 1, 2).Draw(t, "left") {
			in.Opened = append(in.Opened, Opened{Grant: name, Until: in.Time.Add(left)})
		}
	}
	return in
}

func TestPropertyDecide(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		docs := small.bundle(rt)
		in := small.input(rt)
		before := mustCompile(t, with(t, docs...)).Decide(in)

		// Explain decides the same, over all grants and without the index, and its trace bears it out.
		p := mustCompile(t, with(t, docs...))
		again, rules := p.Explain(in)
		if again != before {
			rt.Fatalf("Decide %+v, Explain %+v", before, again)
		}
		denied := slices.ContainsFunc(rules, func(r RuleTrace) bool { return r.Effect == Deny && r.Applies })
		allowed := slices.ContainsFunc(rules, func(r RuleTrace) bool { return r.Effect == Allow && r.Applies })
		if before.Allow != (allowed && !denied) || denied != (before.Reason == problem.ReasonDenied) {
			rt.Fatalf("%+v with deny=%v allow=%v", before, denied, allowed)
		}

		// The order of files, documents and names of files never matters.
		shuffled := rapid.Permutation(docs).Draw(rt, "order")
		if d := mustCompile(t, with(t, shuffled...)).Decide(in); d != before {
			rt.Fatalf("shuffled: %+v, was %+v", d, before)
		}

		// What is open gives more and never less, and nothing that is denied; closed, a break-glass grant gives nothing.
		closed := *in
		closed.Opened = nil
		if d := p.Decide(&closed); d.Allow && (!before.Allow || before.TTL != 0 && (d.TTL == 0 || before.TTL < d.TTL)) || d.Reason == problem.ReasonDenied && before != d || d.Glass {
			rt.Fatalf("with what is open %+v, without it %+v", before, d)
		}
		if before.Glass && (before.TTL <= 0 || before.TTL > 2*time.Hour) {
			rt.Fatalf("a lease by what is open is of %s", before.TTL)
		}

		// A deny grant more never widens.
		d := mustCompile(t, with(t, append(slices.Clone(docs), small.grant(rt, "extra", "deny"))...)).Decide(in)
		if d.Allow && d != before {
			rt.Fatalf("a deny grant changed %+v to %+v", before, d)
		}
		// An allow grant more never narrows: neither the answer nor the lease.
		d = mustCompile(t, with(t, append(slices.Clone(docs), small.grant(rt, "extra", "allow"))...)).Decide(in)
		if before.Allow && (!d.Allow || d.TTL != 0 && (before.TTL == 0 || d.TTL < before.TTL)) {
			rt.Fatalf("an allow grant changed %+v to %+v", before, d)
		}
		if before.Reason == problem.ReasonDenied && d != before {
			rt.Fatalf("an allow grant changed the denial %+v to %+v", before, d)
		}
	})
}

func TestProgramIsSafeConcurrently(t *testing.T) {
	p := mustCompile(t, benchFiles(t, 200, `claims.unix.uid == 1000 && node.path.matches("^/node/")`))
	in := benchInput(t)
	in.Identity, in.Secret = "/workload/team7/app107", "team7/db/password107"
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				if d := p.Decide(in); !d.Allow {
					t.Errorf("%+v", d)
					return
				}
				p.Explain(in)
			}
		})
	}
	wg.Wait()
}

// The budget of the design, with room for a busy machine.
func TestDecideIsCheap(t *testing.T) {
	p := mustCompile(t, benchFiles(t, 1_000, "claims.unix.uid == 1000"))
	in := benchInput(t)
	if n := testing.AllocsPerRun(100, func() { p.Decide(in) }); n > 8 {
		t.Errorf("%v allocations for one decision", n)
	}
	visited := 0
	p.index.candidates(in.Identity, in.Secret, func(int32) { visited++ })
	if visited != 1 {
		t.Errorf("%d of 1,000 grants were looked at", visited)
	}
}

func TestIdentify(t *testing.T) {
	workload := func(name, rest string) string {
		return "Identity " + name + " method: workload, path: /workload/" + rest
	}
	p := mustCompile(t, with(t,
		workload("root", "root, nodes: [/node/join-token/*], session: 5m, when: claims.uid == 0"),
		workload("other", "other, nodes: [/node/join-token/special], when: claims.uid == 7"),
		workload("other-twice", "other, nodes: [/node/join-token/special], session: 2m, when: claims.uid == 7"),
		"Identity node-web method: join-token, path: '/node/join-token/web/{claims.token.id}', when: has(claims.token)",
		"Identity node-fixed method: join-token, path: /node/join-token/fixed, when: claims.name == 'clash'",
	))
	for _, c := range []struct {
		name   string
		claims map[string]any
		path   string
		reason problem.Reason
	}{
		{"plain", map[string]any{"name": "a"}, "/node/join-token/a", ""},
		{"escaped", map[string]any{"name": "../x/é"}, "/node/join-token/.._2Fx_2F_C3_A9", ""},
		{"dots", map[string]any{"name": ".."}, "/node/join-token/_2E_2E", ""},
		{"number", map[string]any{"name": 12.0}, "/node/join-token/12", ""},
		{"nested", map[string]any{"token": map[string]any{"id": 3}}, "/node/join-token/web/3", ""},
		{"empty", map[string]any{"name": ""}, "", problem.ReasonNoIdentity},
		{"missing", nil, "", problem.ReasonNoIdentity},
		{"bool", map[string]any{"name": true}, "", problem.ReasonNoIdentity},
		{"too long", map[string]any{"name": strings.Repeat("é", 200)}, "", problem.ReasonNoIdentity},
		{"two", map[string]any{"name": "clash"}, "", problem.ReasonAmbiguous},
	} {
		m, err := p.IdentifyNode(authority.JoinToken, "", mustClaims(t, c.claims))
		if m.Path != c.path || c.reason == "" && err != nil || c.reason != "" && !problem.Is(err, c.reason) {
			t.Errorf("%s: %+v, %v", c.name, m, err)
		}
	}
	if _, err := p.IdentifyNode(MethodX509, "", mustClaims(t, map[string]any{"name": "a"})); !problem.Is(err, problem.ReasonNoIdentity) {
		t.Errorf("another method: %v", err)
	}
	for _, c := range []struct {
		name, node string
		uid        int
		want       string
		match      Match
		reason     problem.Reason
	}{
		{"only one", "/node/join-token/a", 5, "", Match{Path: "/workload/payments-api", Rule: "payments-api", Session: 10 * time.Minute}, ""},
		{"two fit", "/node/join-token/a", 0, "", Match{}, problem.ReasonAmbiguous},
		{"asked for", "/node/join-token/a", 0, "/workload/root", Match{Path: "/workload/root", Rule: "root", Session: 5 * time.Minute}, ""},
		{"condition", "/node/join-token/a", 1, "/workload/root", Match{}, problem.ReasonNoIdentity},
		{"foreign node", "/node/join-token/a", 7, "/workload/other", Match{}, problem.ReasonForeignNode},
		{"foreign kind", "/node/x509/a", 5, "", Match{}, problem.ReasonForeignNode},
		{"prefix is no subtree", "/node/join-token", 5, "", Match{}, problem.ReasonForeignNode},
		{"shorter session", "/node/join-token/special", 7, "/workload/other", Match{Path: "/workload/other", Rule: "other-twice", Session: 2 * time.Minute}, ""},
		{"unknown", "/node/join-token/a", 5, "/workload/none", Match{}, problem.ReasonNoIdentity},
	} {
		m, err := p.IdentifyWorkload(c.node, mustClaims(t, map[string]any{"uid": c.uid}), c.want)
		if m != c.match || c.reason == "" && err != nil || c.reason != "" && !problem.Is(err, c.reason) {
			t.Errorf("%s: %+v, %v", c.name, m, err)
		}
	}
}

func TestDeclarations(t *testing.T) {
	p := mustCompile(t, with(t,
		"Secret bench/* type: opaque, maxBytes: 10",
		"Secret bench/a/* type: opaque, maxBytes: 20, lease: {ttl: 5m, max: 10m}",
		"Secret bench/a/b type: opaque, maxBytes: 30, generate: {recipe: alphanumeric, length: 22}",
	))
	for path, want := range map[string]int{"bench/x": 10, "bench/x/y": 10, "bench/a": 10, "bench/a/c": 20, "bench/a/b": 30, "bench/a/b/c": 20, "db/password": 65536, "bench": 0, "benchx/a": 0, "": 0} {
		s, ok := p.Secret(path)
		if ok != (want > 0) || s.MaxBytes != want {
			t.Errorf("%s: %+v", path, s)
		}
	}
	alice, ok := p.Operator("alice")
	if !ok || !alice.Has(DutyAdmit) || alice.Path() != "/human/alice" || len(p.Operators()) != 1 {
		t.Fatalf("%+v", alice)
	}
	if o, ok := p.OperatorByKey(alice.Keys[0].Key); !ok || o.Name != "alice" || !strings.HasPrefix(alice.Keys[0].Fingerprint, "SHA256:") {
		t.Errorf("by key: %+v", o)
	}
	if _, ok := p.OperatorByKey(nil); ok {
		t.Error("no key has an owner")
	}
	if _, ok := p.Operator("bob"); ok {
		t.Error("bob is nobody")
	}
}
