package state

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/bailment/bailment/internal/problem"
)

func TestParseScope(t *testing.T) {
	for text, want := range map[string]Scope{
		"everything":                           {Kind: ScopeEverything},
		"identity:/workload/api":               {ScopeIdentity, "/workload/api"},
		"identity:/workload/*":                 {ScopeIdentity, "/workload/*"},
		"identity:/*":                          {ScopeIdentity, "/*"},
		"node:/node/join-token/web-1":          {ScopeNode, "/node/join-token/web-1"},
		"node:/node/*":                         {ScopeNode, "/node/*"},
		"node:/*":                              {ScopeNode, "/*"},
		"issuer:x509:corp":                     {ScopeIssuer, "x509:corp"},
		"issuer:ssh:SHA256:abc/def+ghi":        {ScopeIssuer, "ssh:SHA256:abc/def+ghi"},
		"secret:db/password":                   {ScopeSecret, "db/password"},
		"secret:db/*":                          {ScopeSecret, "db/*"},
		"secret:*":                             {ScopeSecret, "*"},
		"identity:" + strings.Repeat("/x", 16): {ScopeIdentity, strings.Repeat("/x", 16)},
	} {
		got, err := ParseScope(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%q: %+v %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "everything:", "everything:/x", "Everything", "all", "identity", "identity:", "identity:workload/api", "identity:/workload/", "identity://x",
		"identity:/work*", "identity:/workload/*/x", "identity:/../x", "node:/workload/api", "node:/node", "node:/nodes/x", "issuer:", "issuer:a b", "issuer:a\nb",
		"secret:", "secret:/db", "secret:db/", "secret:db/**", "secret:**", "secret:*/x", "user:/human/alice", "identity:" + strings.Repeat("/x", 17),
		"issuer:" + strings.Repeat("x", 600), "secret:" + strings.Repeat("x", 300), "identity:/a\x00b",
	} {
		if got, err := ParseScope(text); !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%q gave %+v, %v", text, got, err)
		}
	}
}

func TestCovers(t *testing.T) {
	x := Subject{Identity: "/workload/api", Node: "/node/join-token/web-1", Anchor: "join-token:abc", Secret: "db/password"}
	for text, want := range map[string]bool{
		"everything": true, "identity:/workload/api": true, "identity:/workload/*": true, "identity:/*": true,
		"identity:/workload/api/*": false, "identity:/workload/ap": false, "identity:/work/*": false, "identity:/node/join-token/web-1": true,
		"node:/node/join-token/web-1": true, "node:/node/*": true, "node:/*": true, "node:/node/join-token/web-10": false, "node:/node/join-token/web-1/*": false,
		"issuer:join-token:abc": true, "issuer:join-token": false, "issuer:join-token:abcd": false,
		"secret:db/password": true, "secret:db/*": true, "secret:*": true, "secret:db": false, "secret:d/*": false,
	} {
		s, err := ParseScope(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Covers(x); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
	for _, text := range []string{"secret:*", "node:/*"} {
		s, _ := ParseScope(text)
		if s.Covers(Subject{Identity: "/human/alice", Anchor: "ssh:x"}) {
			t.Errorf("%s covers who has neither", text)
		}
	}
}

// Few segments, so that scopes and subjects meet.
func drawPath(t *rapid.T, label string, absolute bool) string {
	parts := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "aa"}), 1, 3).Draw(t, label)
	if p := strings.Join(parts, "/"); !absolute {
		return p
	} else {
		return "/" + p
	}
}

func drawScope(t *rapid.T) Scope {
	tree := func(p string) string {
		if rapid.Bool().Draw(t, "tree") {
			return p + "/*"
		}
		return p
	}
	switch rapid.IntRange(0, 7).Draw(t, "kind") {
	case 0:
		return Scope{Kind: ScopeEverything}
	case 1:
		return Scope{ScopeIdentity, tree(drawPath(t, "identity", true))}
	case 2:
		return Scope{ScopeNode, tree("/node" + drawPath(t, "node", true))}
	case 3:
		return Scope{ScopeIssuer, rapid.SampledFrom([]string{"i", "i:a", "i:b"}).Draw(t, "issuer")}
	case 4:
		return Scope{ScopeSecret, "*"}
	case 5:
		return Scope{ScopeIdentity, rapid.SampledFrom([]string{"/*", "/human/*", "/human/a", "/server/*"}).Draw(t, "identity")}
	case 6:
		return Scope{ScopeNode, rapid.SampledFrom([]string{"/*", "/node/*"}).Draw(t, "node")}
	}
	return Scope{ScopeSecret, tree(drawPath(t, "secret", false))}
}

func drawSubject(t *rapid.T) Subject {
	x := Subject{
		Identity: rapid.SampledFrom([]string{"", "/human", "/server", "/node"}).Draw(t, "prefix") + drawPath(t, "identity", true),
		Anchor:   rapid.SampledFrom([]string{"i", "i:a", "i:b", "j"}).Draw(t, "anchor"),
		Own:      rapid.Uint64Range(1, 20).Draw(t, "own"),
	}
	x.Root = rapid.Uint64Range(1, x.Own).Draw(t, "root")
	if rapid.Bool().Draw(t, "on a node") {
		x.Node = "/node" + drawPath(t, "node", true)
	}
	if rapid.Bool().Draw(t, "about a secret") {
		x.Secret = drawPath(t, "secret", false)
	}
	return x
}

// The lookups by index find exactly what a scan over all revocations finds.
func TestLookupsEqualScans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		now := Millis(1000)
		n := rapid.IntRange(0, 12).Draw(t, "revocations")
		for i := range n {
			scope := drawScope(t)
			if _, err := ParseScope(scope.String()); err != nil {
				t.Fatalf("the generator made %s: %v", scope, err)
			}
			s.Cutoffs.set(scope.String(), uint64(i+3))
			if rapid.Bool().Draw(t, "hold") {
				until := rapid.SampledFrom([]Millis{0, 999, 1000, 1001}).Draw(t, "until")
				s.Holds.set(scope.String(), &Hold{Scope: scope.String(), Index: uint64(i), Until: until})
			}
		}
		x := drawSubject(t)
		var newest uint64
		s.Cutoffs.All(func(text string, at uint64) bool {
			scope, _ := ParseScope(text)
			born := x.Root
			if scope.Kind == ScopeSecret || scope.Kind == ScopeIdentity && !matchPath(scope.Value, x.Node) {
				born = x.Own
			}
			if scope.Kind == ScopeEverything {
				born = min(x.Own, x.Root)
			}
			if scope.Covers(x) && at > born && at > newest {
				newest = at
			}
			return true
		})
		scope, index, dead := s.CutoffOver(x)
		if dead != (newest != 0) || index != newest {
			t.Fatalf("%+v: lookup %s %d %t, scan %d", x, scope, index, dead, newest)
		}
		if dead {
			if at, _ := s.Cutoffs.Get(scope); at != index {
				t.Fatalf("%s is at %d, not %d", scope, at, index)
			}
		}
		held := false
		s.Holds.All(func(text string, h *Hold) bool {
			scope, _ := ParseScope(text)
			exempt := scope.Kind == ScopeEverything && (strings.HasPrefix(x.Identity, "/human/") || strings.HasPrefix(x.Identity, "/server/"))
			held = held || (scope.Covers(x) && !exempt && (h.Until == 0 || h.Until > now))
			return true
		})
		h, got := s.HoldOver(x, now)
		if got != held || (h != nil) != held {
			t.Fatalf("%+v: lookup %+v %t, scan %t", x, h, got, held)
		}
	})
}

func TestMillis(t *testing.T) {
	for text, want := range map[string]Millis{
		`"1970-01-01T00:00:00.000Z"`: 0, `"1970-01-01T00:00:00.001Z"`: 1, `"2026-01-02T03:04:05.678Z"`: 1767323045678, `"1969-12-31T23:59:59.999Z"`: -1,
	} {
		var m Millis
		if err := m.UnmarshalJSON([]byte(text)); err != nil || m != want {
			t.Errorf("%s: %d %v", text, m, err)
		}
		if b, err := m.MarshalJSON(); err != nil || string(b) != text {
			t.Errorf("%s came back as %s %v", text, b, err)
		}
	}
	for _, text := range []string{
		``, `"`, `null`, `0`, `""`, `"2026-01-02T03:04:05Z"`, `"2026-01-02T03:04:05.678"`, `"2026-01-02T03:04:05,678Z"`, `"2026-01-02T03:04:05.678z"`,
		`"2026-13-02T03:04:05.678Z"`, `"2026-02-30T03:04:05.678Z"`, `"2026-01-02 03:04:05.678Z"`, `"2026-01-02T03:04:05.6789Z"`, `"2026-01-02T03:04:60.678Z"`,
		`"2026-01-02T03:04:05.678+00:00"`, `'2026-01-02T03:04:05.678Z'`,
	} {
		var m Millis
		if err := m.UnmarshalJSON([]byte(text)); err == nil {
			t.Errorf("%s was read as %s", text, m)
		}
	}
}

func TestDigest(t *testing.T) {
	good := "sha256:" + strings.Repeat("0123456789abcdef", 4)
	d, err := ParseDigest(good)
	if err != nil || d.String() != good || d.IsZero() {
		t.Fatal(d, err)
	}
	for _, bad := range []string{
		"", "sha256:", good[:70], good + "0", strings.ToUpper(good), "sha256:" + strings.Repeat("0123456789ABCDEF", 4), "sha512:" + good[7:], good[7:], " " + good[:70],
		"sha256:" + strings.Repeat("g", 64), "sha256:" + strings.Repeat("0", 63) + "\n",
	} {
		if got, err := ParseDigest(bad); err == nil || !got.IsZero() {
			t.Errorf("%q was read as %s", bad, got)
		}
	}
	if err := new(Digest).UnmarshalText([]byte("x")); err == nil {
		t.Error("UnmarshalText takes anything")
	}
}

// The whole table of transitions, each pair named once.
func TestVersionMoves(t *testing.T) {
	all := []VersionState{Staged, Current, Retiring, Retired, Destroyed, Compromised}
	legal := map[string]bool{
		"staged current": true, "staged retired": true, "staged compromised": true,
		"current retiring": true, "current retired": true, "current compromised": true,
		"retiring current": true, "retiring retired": true, "retiring compromised": true,
		"retired destroyed": true, "retired compromised": true,
		"compromised retired": true,
	}
	for _, from := range append(all, "", "verified") {
		for _, to := range append(all, "", "verified") {
			err := CheckMove(from, to)
			if want := legal[fmt.Sprintf("%s %s", from, to)]; (err == nil) != want {
				t.Errorf("%s to %s: %v", from, to, err)
			} else if err != nil && !problem.Is(err, problem.ReasonLifecycle) {
				t.Errorf("%s to %s: %v", from, to, err)
			}
		}
	}
	v := &Version{State: Retiring, Until: 1000}
	if v.StateAt(999) != Retiring || v.StateAt(1000) != Retired || (&Version{State: Current, Until: 1}).StateAt(5) != Current {
		t.Error("the retiring window")
	}
}

func TestChangeStates(t *testing.T) {
	c := &Change{Index: 5, State: Proposed, Expires: 1000, Proposer: "/human/carol", Required: 1, Approvals: []Approval{{Person: "bob", Index: 7, Anchors: []string{"ssh:b"}}}}
	s := New()
	if c.StateAt(999) != Proposed || c.StateAt(1000) != Expired || !s.Complete(c, 1) || s.MayApprove(c, "bob", 1) == false || !s.MayApprove(c, "alice", 1) {
		t.Errorf("%+v", c)
	}
	c.Required = 2
	if s.Complete(c, 1) || s.MayApprove(c, "bob", 1) {
		t.Error("one approval of two")
	}
	c.Required = 1
	c.State = InForce
	if c.StateAt(5000) != InForce {
		t.Error("a change in force does not expire")
	}
}

// What was signed counts as long as neither the person nor a key behind it is revoked.
func TestApprovalsDerive(t *testing.T) {
	c := &Change{
		Index: 5, State: Proposed, Expires: 1000, Proposer: "/human/carol", Anchors: []string{"ssh:c"}, Required: 1,
		Approvals: []Approval{{Person: "bob", Index: 7, Anchors: []string{"ssh:b", "ssh:b-login"}}},
	}
	for scope, stands := range map[string]bool{
		"identity:/human/bob": false, "identity:/human/*": false, "issuer:ssh:b": false, "issuer:ssh:b-login": false, "everything": false,
		"identity:/human/carol": false, "issuer:ssh:c": false, "identity:/human/dave": true, "issuer:ssh:d": true, "node:/*": true,
	} {
		s := New()
		s.Cutoffs.set(scope, 8)
		if got := s.Complete(c, 1); got != stands {
			t.Errorf("a cutoff on %s: %t", scope, got)
		}
		s = New()
		s.Holds.set(scope, &Hold{Scope: scope, Index: 8, Until: 100})
		if got := s.Complete(c, 99); got != stands && scope != "everything" { // a hold on everything leaves persons
			t.Errorf("a hold on %s: %t", scope, got)
		}
		if !s.Complete(c, 100) {
			t.Errorf("the hold on %s is over", scope)
		}
	}
}

func TestHoldTarget(t *testing.T) {
	for _, scope := range []string{"everything", "identity:/human/bob", "issuer:odd#7", ""} {
		got, hold, ok := ParseHoldTarget(HoldTarget(scope, 57))
		if !ok || got != scope || hold != 57 {
			t.Errorf("%q: %q %d %t", scope, got, hold, ok)
		}
	}
	for _, target := range []string{"", "everything", "everything#", "everything#07", "everything#+7", "everything#7 ", "everything#-1", "everything#99999999999999999999"} {
		if _, _, ok := ParseHoldTarget(target); ok {
			t.Errorf("%q was read", target)
		}
	}
}

// A cutoff must not be outlived by renewing what it cut off: a renewal is as old as the proof that it goes back to.
func TestRenewalIsAsOldAsItsEnrolment(t *testing.T) {
	for path, want := range map[string]bool{"/node/x509/a": true, "/ci/github/1/2": true, "/workload/w": false, "/human/h": false} {
		s := New()
		s.Cutoffs.set("identity:"+path, 5)
		_, _, dead := s.CutoffOver(SubjectOf(&Session{Index: 7, Identity: path, Root: 3}))
		if dead != want {
			t.Errorf("%s: renewed after the cutoff, dead %t", path, dead)
		}
		if _, _, dead := s.CutoffOver(SubjectOf(&Session{Index: 7, Identity: path, Root: 7})); dead {
			t.Errorf("%s: proved anew after the cutoff, and dead", path)
		}
	}
}
