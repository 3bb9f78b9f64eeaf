package state

import (
	"bytes"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/policy"
)

func opened(f *feeder, person string, minutes int) *GlassOpened {
	path := "/human/" + person
	return &GlassOpened{Grant: "glass", Identity: path, Incident: "INC-1", Reason: "why", Until: f.now + Millis(minutes)*60_000, Actor: Actor{Identity: path}}
}

// glassReview is what a person signs of an opening now.
func glassReview(f *feeder, opening uint64, person string) ceremony.GlassReview {
	g, _ := f.s.Glass.Get(opening)
	r := g.ReviewOf()
	r.Scope, r.Verdict, r.Person, r.Time = ceremony.Scope{Environment: "e"}, ceremony.Justified, person, f.now.Time().Truncate(time.Second)
	r.Nonce, r.Findings = fmt.Sprintf("%032x", f.s.Next), "What was read was needed."
	return r
}

func glassReviewed(r ceremony.GlassReview) *GlassReviewed {
	return &GlassReviewed{Opening: r.Opening, Text: r.Text(), Actor: Actor{Identity: "/human/" + r.Person}}
}

func TestGlass(t *testing.T) {
	f := newFeeder(t, 1)
	if err := f.apply(opened(f, "bob", 30)); err == nil {
		t.Error("it was opened before its protocol was raised")
	}
	f.must(&ProtocolRaised{Version: protocolRollout})
	for what, e := range map[string]*GlassOpened{
		"for a machine":      {Grant: "glass", Identity: "/node/x/n0", Until: f.now + 60_000, Actor: Actor{Identity: "/node/x/n0"}},
		"for somebody else":  {Grant: "glass", Identity: "/human/bob", Until: f.now + 60_000, Actor: Actor{Identity: "/human/alice"}},
		"for no time":        opened(f, "bob", 0),
		"for too long":       opened(f, "bob", 8*60+1),
		"by no change":       {Grant: "glass", Identity: "/human/bob", Until: f.now + 60_000, Change: 4711, Actor: Actor{Identity: "/human/alice"}},
		"by another change":  {Grant: "glass", Identity: "/human/bob", Incident: "INC-1", Until: f.now + 60_000, Change: f.complete("hold.lift", GlassTarget("glass", "INC-1", 1)), Actor: Actor{Identity: "/human/alice"}},
		"by another's":       {Grant: "glass", Identity: "/human/bob", Incident: "INC-1", Until: f.now + 60_000, Change: f.complete(policy.ActGlass, GlassTarget("glass", "INC-1", 1)), Actor: Actor{Identity: "/human/alice"}},
		"longer than agreed": {Grant: "glass", Identity: "/human/alice", Incident: "INC-1", Until: f.now + 120_000, Change: f.complete(policy.ActGlass, GlassTarget("glass", "INC-1", 1)), Actor: Actor{Identity: "/human/alice"}},
	} {
		if err := f.apply(e); err == nil {
			t.Errorf("it was opened %s", what)
		}
	}
	first := f.must(opened(f, "bob", 30))
	if g := f.s.Opened("/human/bob", f.now); len(g) != 1 || g[0].Index != first || len(f.s.Opened("/human/alice", f.now)) != 0 {
		t.Errorf("open: %v", g)
	}
	if err := f.apply(opened(f, "alice", 30)); err == nil {
		t.Error("a second one was opened without approvals, and the first is not reviewed")
	}
	if err := f.apply(glassReviewed(glassReview(f, first, "alice"))); err == nil {
		t.Error("it was reviewed while it was open")
	}
	f.now += 60_000
	f.must(&GlassClosed{Opening: first, Actor: Actor{Identity: "/human/bob"}})
	if err := f.apply(&GlassClosed{Opening: first, Actor: Actor{Identity: "/human/bob"}}); err == nil || len(f.s.Opened("/human/bob", f.now)) != 0 {
		t.Error("it was closed twice, or is open still")
	}
	for what, edit := range map[string]func(*ceremony.GlassReview){
		"by who opened it":  func(r *ceremony.GlassReview) { r.Person = "bob" },
		"with other uses":   func(r *ceremony.GlassReview) { r.Uses = 7 },
		"of another time":   func(r *ceremony.GlassReview) { r.Opened = r.Opened.Add(time.Millisecond) },
		"for another":       func(r *ceremony.GlassReview) { r.Opener = "/human/carol" },
		"without a verdict": func(r *ceremony.GlassReview) { r.Verdict = "fine" },
		"without words":     func(r *ceremony.GlassReview) { r.Findings = "ok" },
		"long ago":          func(r *ceremony.GlassReview) { r.Time = r.Time.Add(-GlassReviewLife - time.Second) },
		"in advance":        func(r *ceremony.GlassReview) { r.Time = r.Time.Add(ReviewAhead + time.Minute) },
	} {
		r := glassReview(f, first, "alice")
		edit(&r)
		before := snapshotOf(t, f.s)
		if err := f.apply(glassReviewed(r)); err == nil || !bytes.Equal(before, snapshotOf(t, f.s)) {
			t.Errorf("it was reviewed %s: %v", what, err)
		}
	}
	review := f.must(glassReviewed(glassReview(f, first, "alice")))
	want := Glass{
		Index: first, Grant: "glass", Identity: "/human/bob", Incident: "INC-1", Reason: "why", Opened: f.now - 60_000, Until: f.now, ClosedBy: "/human/bob",
		Reviewed: review, Reviewer: "alice", Verdict: "justified",
	}
	if g, _ := f.s.Glass.Get(first); !reflect.DeepEqual(*g, want) {
		t.Errorf("it is remembered as %+v", g)
	}
	if err := f.apply(glassReviewed(glassReview(f, first, "carol"))); err == nil {
		t.Error("it was reviewed twice")
	}
	second := f.must(opened(f, "alice", 10))
	// What is not reviewed stays, whatever its age, and what was reviewed goes.
	f.now += keepGlass + 1
	for range 3 {
		f.must(&DenialsSummed{})
	}
	if f.s.Glass.Len() != 1 || f.s.Unreviewed() == nil || f.s.Unreviewed().Index != second {
		t.Errorf("%d openings are left", f.s.Glass.Len())
	}
	f.must(glassReviewed(glassReview(f, second, "bob")))
	f.now += keepGlass + 1
	for range 3 {
		f.must(&DenialsSummed{})
	}
	if f.s.Glass.Len() != 0 {
		t.Errorf("%d openings are left", f.s.Glass.Len())
	}
}

func TestQuarters(t *testing.T) {
	s := New()
	for text, want := range map[string]string{
		"2026-01-01T00:00:00.000Z": "2026-Q1 2026-04-01", "2026-03-31T23:59:59.999Z": "2026-Q1 2026-04-01", "2026-04-01T00:00:00.000Z": "2026-Q2 2026-07-01",
		"2026-09-30T23:59:59.999Z": "2026-Q3 2026-10-01", "2026-12-31T23:59:59.999Z": "2026-Q4 2027-01-01",
	} {
		at, err := time.Parse(millisLayout, text)
		if err != nil {
			t.Fatal(err)
		}
		q := s.Quarter(At(at))
		if got := q.Name + " " + q.Ends.Time().Format(time.DateOnly); got != want {
			t.Errorf("%s is in %s, want %s", text, got, want)
		}
	}
}

// The figures begin anew with each quarter, and the alarm is raised once in it, by the true ones.
func TestGlassFigures(t *testing.T) {
	f := newFeeder(t, 1)
	f.must(&ProtocolRaised{Version: protocolRollout})
	f.must(&SecretWritten{Secret: "db/a", Version: 1, State: Current, Actor: Actor{Identity: "/human/alice"}})
	opening := f.must(opened(f, "bob", 30))
	read := func(who, grant string) {
		t.Helper()
		f.must(&SecretReleased{
			Secret: "db/a", Version: 1, Purpose: "runtime", Expires: f.now + 60_000, Max: f.now + 60_000, Actor: Actor{Identity: who}, Ruling: Ruling{Grant: grant},
		})
	}
	for range 9 {
		read("/human/bob", "glass")
		read("/human/bob", "another") // by what he has every day
		read("/human/carol", "glass") // who has not opened it: the checkers say that this can't be
		if _, due := f.s.Alarming(f.now, 1); due != (f.s.Quarter(f.now).Glass == 9) {
			t.Errorf("alarming (%t) at %+v", due, f.s.Quarter(f.now))
		}
	}
	if _, due := f.s.Alarming(f.now, 40); due {
		t.Error("10 of 28 are 40 percent")
	}
	a, _ := f.s.Alarming(f.now, 35)
	if err := f.apply(&a); err == nil {
		t.Error("the alarm was raised before it was due")
	}
	read("/human/bob", "glass")
	for what, edit := range map[string]func(*GlassAlarmed){
		"another quarter": func(x *GlassAlarmed) { x.Quarter = "2023-Q3" }, "more": func(x *GlassAlarmed) { x.Glass++ }, "fewer": func(x *GlassAlarmed) { x.Releases-- },
		"a greater share": func(x *GlassAlarmed) { x.Percent = 50 },
	} {
		x := a
		edit(&x)
		if err := f.apply(&x); err == nil {
			t.Errorf("an alarm by %s", what)
		}
	}
	f.must(&a)
	if err := f.apply(&a); err == nil {
		t.Error("the alarm was raised twice")
	}
	if q := f.s.Quarter(f.now); q.Glass != 10 || q.Releases != 28 || q.Openings != 1 || !q.Alarmed {
		t.Errorf("the figures are %+v", q)
	}
	if g, _ := f.s.Glass.Get(opening); g.Uses != 10 || !reflect.DeepEqual(g.Secrets, []string{"db/a"}) {
		t.Errorf("the opening has %+v", g)
	}
	again, err := Restore(snapshotOf(t, f.s))
	if err != nil || again.quarter != f.s.quarter || !bytes.Equal(snapshotOf(t, again), snapshotOf(t, f.s)) {
		t.Errorf("a snapshot lost something: %v", err)
	}
	if q := f.s.Quarter(f.s.quarter.Ends); q.Glass != 0 || q.Releases != 0 || q.Openings != 0 || q.Alarmed {
		t.Errorf("the next quarter begins with %+v", q)
	}
}

// However much is read while the glass is broken, what is remembered by name is bounded, and what is not is counted.
func TestGlassSecretsAreBounded(t *testing.T) {
	f := newFeeder(t, 1)
	f.must(&ProtocolRaised{Version: protocolRollout})
	opening := f.must(opened(f, "bob", 30))
	for i := range MaxGlassSecrets + 5 {
		f.must(&SecretWritten{Secret: fmt.Sprintf("s/%03d", 999-i), Version: 1, State: Current, Actor: Actor{Identity: "/human/bob"}, Ruling: Ruling{Grant: "glass"}})
	}
	g, _ := f.s.Glass.Get(opening)
	if g.Uses != MaxGlassSecrets+5 || len(g.Secrets) != MaxGlassSecrets || g.Beyond != 5 || g.Secrets[0] != "s/950" {
		t.Errorf("%d uses of %d secrets, and %d more", g.Uses, len(g.Secrets), g.Beyond)
	}
	if n := len(g.ReviewOf().Text()); n > ceremony.MaxGlassReview-ceremony.MaxFindings {
		t.Errorf("the text of its review has %d bytes", n)
	}
}

func TestGlassTargets(t *testing.T) {
	for _, bad := range []string{"", "glass", "glass#5", "glass@INC-1", "glass@INC-1#05", "glass@INC-1#-5"} {
		if _, _, _, ok := ParseGlassTarget(bad); ok {
			t.Errorf("%q was read", bad)
		}
	}
	if g, i, m, ok := ParseGlassTarget(GlassTarget("glass", "ops/INC-1", 5)); !ok || g != "glass" || i != "ops/INC-1" || m != 5 {
		t.Error(g, i, m, ok)
	}
	for _, bad := range []string{"", "INC 1", "INC#1", "INC@1", "é", "\x1b[2J", "x\n", fmt.Sprintf("%065d", 0)} {
		if ValidIncident(bad) == nil {
			t.Errorf("%q is an incident", bad)
		}
	}
}
