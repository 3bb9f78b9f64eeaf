package control_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// fragile is a board with a break-glass grant for alice and bob: two openings in a quarter, and two approvals beyond. Carol has no part in it, and dora
// is nobody's auditor.
func fragile(t *testing.T, more policy.Files) *board {
	t.Helper()
	extra := policy.Files{
		"environment.yaml": fmt.Appendf(nil, `apiVersion: bailment/v1
kind: Environment
metadata: {name: %s}
spec:
  class: development
  approvals: {required: 1, acts: [{act: glass.open, required: 2}]}
  breakGlass: {openings: 2, alarm: 50}
`, controltest.EnvName),
		"grants/glass.yaml": controltest.GlassGrant("glass", 30, "alice", "bob"),
	}
	for path, data := range more {
		extra[path] = data
	}
	b := newBoardOf(t, controltest.Options{Persons: []string{"alice", "bob", "carol", "dora"}, Quorum: 1, Extra: extra})
	b.InOneQuarter(4 * time.Hour)
	b.later(0)
	b.Put(b.by["alice"], "db/a", "one")
	b.Put(b.by["alice"], "node/a", "two")
	return b
}

func (b *board) reads(person, secret string, want problem.Reason) *control.Released {
	b.T.Helper()
	r, err := b.Env.Get(context.Background(), b.by[person].Caller, control.GetRequest{Secret: secret, Purpose: "incident"})
	if want != "" {
		b.refused(err, want)
		return nil
	}
	b.must(err)
	return r
}

func TestBreakGlass(t *testing.T) {
	b := fragile(t, nil)
	b.reads("bob", "db/a", problem.ReasonGlass)
	b.reads("carol", "db/a", problem.ReasonNoGrant)
	x, err := b.Env.Explain(context.Background(), b.by["bob"].Caller, control.ExplainRequest{Identity: "/human/bob", Action: policy.ReadSecret, Secret: "db/a", Purpose: "incident"})
	if err != nil || x.Decision.Allow || x.Decision.Reason != problem.ReasonGlass || !strings.Contains(fmt.Sprint(x.Rules), "has not opened it") {
		t.Errorf("explained as %+v, %v", x, err)
	}
	o, err := b.Glass(b.by["bob"], "glass", "INC-1", 20)
	b.must(err)
	if want := state.At(b.Now()).Add(20 * time.Minute); o.Until > want || o.Until < want-5000 || o.Identity != "/human/bob" {
		t.Errorf("opened %+v", o.Glass)
	}
	b.reads("alice", "db/a", problem.ReasonGlass) // it is for him alone
	b.reads("bob", "node/a", problem.ReasonNoGrant)
	r := b.reads("bob", "db/a", "")
	if r.Expires.After(o.Until.Time()) {
		t.Errorf("its lease outlasts it: %s", r.Expires)
	}
	b.later(10 * time.Minute)
	b.reads("bob", "db/a", "")
	b.later(10 * time.Minute)
	b.reads("bob", "db/a", problem.ReasonGlass)
	if g, _ := b.Env.State().Glass.Get(o.Index); g.Uses != 2 || len(g.Secrets) != 1 {
		t.Errorf("it was used as %+v", g)
	}
	b.consistent()
}

// A version has one lease for each purpose, whatever grant a read is by: one that an everyday grant gave, and that is still live, is not
// shortened by breaking the glass, and gives what it gave. The read is by the break-glass grant, and counts as such.
func TestBreakGlassWithinAnEverydayLease(t *testing.T) {
	b := fragile(t, policy.Files{"grants/early.yaml": []byte(`apiVersion: bailment/v1
kind: Grant
metadata: {name: early}
spec: {actions: [secret.read], identities: [/human/bob], secrets: [db/*], purposes: [incident], ttl: 4h, when: time.getMinutes() < 30}
`)})
	now := b.Now()
	b.later(now.Truncate(time.Hour).Add(time.Hour + 28*time.Minute).Sub(now))
	everyday := b.reads("bob", "db/a", "")
	b.Advance(4 * time.Minute)
	b.reads("bob", "db/a", problem.ReasonGlass)
	o, err := b.Glass(b.by["bob"], "glass", "INC-1", 20)
	b.must(err)
	again := b.reads("bob", "db/a", "")
	if again.Lease != everyday.Lease || !again.Expires.Equal(everyday.Expires) || !again.Expires.After(o.Until.Time()) {
		t.Errorf("the lease %d until %s is %d until %s, where the glass is broken until %s", everyday.Lease, everyday.Expires, again.Lease, again.Expires, o.Until)
	}
	if g, _ := b.Env.State().Glass.Get(o.Index); g.Uses != 1 || len(g.Secrets) != 1 {
		t.Errorf("it was used as %+v", g)
	}
	// Renewing under the opening gives no more than it had, and after the opening nothing.
	renewed, err := b.Env.RenewLease(context.Background(), b.by["bob"].Caller, everyday.Lease)
	b.must(err)
	if renewed.Expires.After(everyday.Expires) {
		t.Errorf("renewed until %s", renewed.Expires)
	}
	b.later(21 * time.Minute)
	_, err = b.Env.RenewLease(context.Background(), b.by["bob"].Caller, everyday.Lease)
	if err == nil {
		t.Error("it was renewed when the glass was whole again")
	}
	b.consistent()
}

// What a hold, a deny grant or the end of one's being an operator forbids, no opening permits.
func TestBreakGlassIsNoWayRound(t *testing.T) {
	b := fragile(t, policy.Files{"grants/deny.yaml": []byte(`apiVersion: bailment/v1
kind: Grant
metadata: {name: never}
spec: {effect: deny, actions: [secret.read], identities: [/human/*], secrets: [db/never]}
`)})
	b.Put(b.by["alice"], "db/never", "three")
	_, err := b.Glass(b.by["bob"], "glass", "INC-1", 30)
	b.must(err)
	b.reads("bob", "db/never", problem.ReasonDenied)
	b.reads("bob", "db/a", "")
	bob := b.by["bob"]
	b.revoke("alice", "identity:/human/bob")
	_, err = b.Env.Get(context.Background(), bob.Caller, control.GetRequest{Secret: "db/a", Purpose: "incident"})
	b.refused(err, problem.ReasonCutoff)
	b.consistent()
}

func TestBreakGlassRefusals(t *testing.T) {
	b := fragile(t, nil)
	ctx := context.Background()
	node := b.Node(b.by["alice"], "n1")
	ask := func(who controltest.Actor, r control.GlassRequest) error {
		_, err := b.Env.OpenGlass(ctx, who.Caller, r)
		return err
	}
	good := control.GlassRequest{Grant: "glass", Incident: "INC-1", Reason: "why"}
	for what, test := range map[string]struct {
		who  controltest.Actor
		edit func(*control.GlassRequest)
		want problem.Reason
	}{
		"no session":       {controltest.Actor{}, func(*control.GlassRequest) {}, problem.ReasonNoSession},
		"a machine":        {node, func(*control.GlassRequest) {}, problem.ReasonDuty},
		"not for her":      {b.by["carol"], func(*control.GlassRequest) {}, problem.ReasonNoGrant},
		"no such grant":    {b.by["bob"], func(r *control.GlassRequest) { r.Grant = "glas" }, problem.ReasonNotFound},
		"an everyday one":  {b.by["bob"], func(r *control.GlassRequest) { r.Grant = "provision" }, problem.ReasonNotFound},
		"no incident":      {b.by["bob"], func(r *control.GlassRequest) { r.Incident = "" }, problem.ReasonInvalid},
		"a long incident":  {b.by["bob"], func(r *control.GlassRequest) { r.Incident = strings.Repeat("x", 65) }, problem.ReasonInvalid},
		"no reason":        {b.by["bob"], func(r *control.GlassRequest) { r.Reason = "" }, problem.ReasonInvalid},
		"a long reason":    {b.by["bob"], func(r *control.GlassRequest) { r.Reason = strings.Repeat("x", 501) }, problem.ReasonInvalid},
		"too long":         {b.by["bob"], func(r *control.GlassRequest) { r.Minutes = 31 }, problem.ReasonInvalid},
		"a negative time":  {b.by["bob"], func(r *control.GlassRequest) { r.Minutes = -1 }, problem.ReasonInvalid},
		"an odd key":       {b.by["bob"], func(r *control.GlassRequest) { r.Key = "a b" }, problem.ReasonInvalid},
		"a long key":       {b.by["bob"], func(r *control.GlassRequest) { r.Key = strings.Repeat("x", 129) }, problem.ReasonInvalid},
		"the proof's text": {b.by["bob"], func(r *control.GlassRequest) { r.Incident = "a\nb" }, problem.ReasonInvalid},
	} {
		r := good
		test.edit(&r)
		if err := ask(test.who, r); !problem.Is(err, test.want) {
			t.Errorf("%s: %v, want %s", what, err, test.want)
		}
	}
	if n := b.Env.State().Glass.Len(); n != 0 {
		t.Fatalf("%d openings", n)
	}
	good.Key = "once"
	b.must(ask(b.by["bob"], good))
	b.must(ask(b.by["bob"], good)) // the reply was lost
	if n := b.Env.State().Glass.Len(); n != 1 {
		t.Errorf("%d openings of one request", n)
	}
	good.Minutes = 5
	b.refused(ask(b.by["bob"], good), problem.ReasonKeyReused)
	b.consistent()
}

// The budget is of everybody, and past it others approve. The gate of the review holds for everybody too.
func TestBreakGlassBudgetAndReview(t *testing.T) {
	b := fragile(t, nil)
	ctx := context.Background()
	open := func(person, incident string, want problem.Reason) uint64 {
		t.Helper()
		o, err := b.Glass(b.by[person], "glass", incident, 10)
		if want != "" {
			b.refused(err, want)
			return 0
		}
		b.must(err)
		return o.Index
	}
	review := func(person string, opening uint64, want problem.Reason) {
		t.Helper()
		_, err := b.ReviewGlass(b.by[person], person, b.ReviewOfGlass(person, opening, ceremony.Justified), "")
		if want != "" {
			b.refused(err, want)
			return
		}
		b.must(err)
	}
	first := open("bob", "INC-1", "")
	open("alice", "INC-2", problem.ReasonGlassReview)
	open("bob", "INC-1", problem.ReasonGlassReview)
	review("carol", first, problem.ReasonConflict) // it is open
	_, err := b.Env.CloseGlass(ctx, b.by["bob"].Caller, first)
	b.must(err)
	b.reads("bob", "db/a", problem.ReasonGlass)
	_, err = b.Env.CloseGlass(ctx, b.by["bob"].Caller, first)
	b.refused(err, problem.ReasonConflict)
	_, err = b.Env.CloseGlass(ctx, b.by["bob"].Caller, first+1)
	b.refused(err, problem.ReasonNotFound)
	open("alice", "INC-2", problem.ReasonGlassReview)
	review("bob", first, problem.ReasonSeparation)
	review("carol", first, "")
	review("alice", first, problem.ReasonConflict)
	second := open("alice", "INC-2", "")
	_, err = b.Env.CloseGlass(ctx, b.by["carol"].Caller, second) // by who has the duty revoke
	b.must(err)
	review("bob", second, "")
	open("bob", "INC-3", problem.ReasonGlassBudget)

	// Past the budget: two others approve, and neither is the one who asks.
	p, err := b.act("bob", control.ActionGlass, "glass@INC-3#10")
	b.must(err)
	_, err = b.Approve(b.by["bob"], "bob", p.Change)
	b.refused(err, problem.ReasonSeparation)
	_, err = b.Approve(b.by["carol"], "carol", p.Change)
	b.must(err)
	b.reads("bob", "db/a", problem.ReasonGlass) // one of two
	_, err = b.Approve(b.by["carol"], "carol", p.Change)
	b.refused(err, problem.ReasonSeparation)
	_, err = b.Approve(b.by["alice"], "alice", p.Change)
	b.must(err)
	b.reads("bob", "db/a", "")
	third := b.Env.State().Unreviewed().Index
	if g, _ := b.Env.State().Glass.Get(third); g.Change != p.Index || g.Identity != "/human/bob" || g.Incident != "INC-3" {
		t.Errorf("opened %+v", g)
	}
	// And while it is not reviewed.
	q, err := b.act("alice", control.ActionGlass, "glass@INC-4#10")
	b.must(err)
	for _, person := range []string{"bob", "dora"} {
		_, err = b.Approve(b.by[person], person, q.Change)
		b.must(err)
	}
	b.reads("alice", "db/a", "")
	b.later(11 * time.Minute)
	review("dora", third, "")
	open("bob", "INC-5", problem.ReasonGlassReview)
	review("dora", b.Env.State().Unreviewed().Index, "")
	open("bob", "INC-5", problem.ReasonGlassBudget)
	b.later(time.Until(b.Env.State().Quarter(state.At(b.Now())).Ends.Time()) - time.Until(b.Now()) + time.Minute)
	open("bob", "INC-5", "")
	b.consistent()
}

// What a change would open is there, for who proposes it, and is when it is approved.
func TestBreakGlassByChange(t *testing.T) {
	b := fragile(t, nil)
	for target, want := range map[string]problem.Reason{
		"glass": problem.ReasonInvalid, "glass#5": problem.ReasonInvalid, "glass@INC 1#5": problem.ReasonInvalid, "glass@INC-1#0": problem.ReasonInvalid,
		"glass@INC-1#31": problem.ReasonInvalid, "glass@INC-1#9999999": problem.ReasonInvalid, "other@INC-1#5": problem.ReasonNotFound,
	} {
		_, err := b.act("bob", control.ActionGlass, target)
		if !problem.Is(err, want) {
			t.Errorf("%s: %v, want %s", target, err, want)
		}
	}
	_, err := b.act("carol", control.ActionGlass, "glass@INC-1#5")
	b.refused(err, problem.ReasonNoGrant)
	p, err := b.act("bob", control.ActionGlass, "glass@INC-1#5")
	b.must(err)
	// The bundle changes: what was approved was approved under another one.
	other, err := b.Propose(b.by["carol"], "carol", b.with("grants/glass.yaml", string(controltest.GlassGrant("glass", 30, "alice"))))
	b.must(err)
	_, err = b.Approve(b.by["dora"], "dora", other.Change)
	b.must(err)
	_, err = b.Approve(b.by["alice"], "alice", p.Change)
	b.refused(err, problem.ReasonConflict)
	// Nobody approves a bundle that lets himself break the glass.
	b.Files = b.with("grants/glass.yaml", string(controltest.GlassGrant("glass", 30, "alice")))
	own, err := b.Propose(b.by["alice"], "alice", b.with("grants/glass.yaml", string(controltest.GlassGrant("glass", 30, "alice", "carol"))))
	b.must(err)
	_, err = b.Approve(b.by["carol"], "carol", own.Change)
	b.refused(err, problem.ReasonSeparation)
	// Nor one by which he can do it more often, without anybody's approval.
	often, err := b.Propose(b.by["carol"], "carol", b.with("environment.yaml", strings.Replace(string(b.Files["environment.yaml"]), "openings: 2", "openings: 3", 1)))
	b.must(err)
	_, err = b.Approve(b.by["alice"], "alice", often.Change)
	b.refused(err, problem.ReasonSeparation)
	_, err = b.Approve(b.by["bob"], "bob", often.Change) // whom it doesn't name
	b.must(err)
	b.consistent()
}

// A bundle without the grant, or in which it is another person's, ends what is open.
func TestBreakGlassEndsWithItsGrant(t *testing.T) {
	b := fragile(t, nil)
	_, err := b.Glass(b.by["bob"], "glass", "INC-1", 30)
	b.must(err)
	b.reads("bob", "db/a", "")
	p, err := b.Propose(b.by["carol"], "carol", b.with("grants/glass.yaml", string(controltest.GlassGrant("glass", 30, "alice"))))
	b.must(err)
	_, err = b.Approve(b.by["dora"], "dora", p.Change)
	b.must(err)
	b.reads("bob", "db/a", problem.ReasonNoGrant)
	b.consistent()
}

func TestBreakGlassReviews(t *testing.T) {
	b := fragile(t, nil)
	files := b.with("operators.yaml", strings.Replace(string(b.Files["operators.yaml"]), "admit, keys, audit]", "admit, keys]", -1))
	files["operators.yaml"] = []byte(strings.Replace(string(files["operators.yaml"]), "admit, keys]", "admit, keys, audit]", 3)) // dora's is the last
	p, err := b.Propose(b.by["alice"], "alice", files)
	b.must(err)
	_, err = b.Approve(b.by["carol"], "carol", p.Change)
	b.must(err)
	o, err := b.Glass(b.by["bob"], "glass", "INC-1", 5)
	b.must(err)
	b.reads("bob", "db/a", "")
	b.later(5 * time.Minute)
	good := b.ReviewOfGlass("carol", o.Index, ceremony.NotJustified)
	for what, test := range map[string]struct {
		by, person string
		edit       func(*ceremony.GlassReview)
		want       problem.Reason
	}{
		"fewer uses":          {"carol", "carol", func(r *ceremony.GlassReview) { r.Uses = 0 }, problem.ReasonSignature},
		"other secrets":       {"carol", "carol", func(r *ceremony.GlassReview) { r.Secrets = []string{"db/b"} }, problem.ReasonSignature},
		"another environment": {"carol", "carol", func(r *ceremony.GlassReview) { r.Environment = "elsewhere" }, problem.ReasonSignature},
		"another's name":      {"carol", "alice", func(r *ceremony.GlassReview) { r.Person = "alice" }, problem.ReasonSignature},
		"another's signature": {"carol", "alice", func(*ceremony.GlassReview) {}, problem.ReasonSignature},
		"no verdict":          {"carol", "carol", func(r *ceremony.GlassReview) { r.Verdict = "" }, problem.ReasonInvalid},
		"no words":            {"carol", "carol", func(r *ceremony.GlassReview) { r.Findings = "ok" }, problem.ReasonInvalid},
		"a bad nonce":         {"carol", "carol", func(r *ceremony.GlassReview) { r.Nonce = "00" }, problem.ReasonReplayed},
		"signed long ago":     {"carol", "carol", func(r *ceremony.GlassReview) { r.Time = r.Time.Add(-2 * time.Hour) }, problem.ReasonReplayed},
		"no duty":             {"dora", "dora", func(r *ceremony.GlassReview) { r.Person = "dora" }, problem.ReasonDuty},
		"no such opening":     {"carol", "carol", func(r *ceremony.GlassReview) { r.Opening++ }, problem.ReasonNotFound},
	} {
		r := good
		test.edit(&r)
		if _, err := b.ReviewGlass(b.by[test.by], test.person, r, ""); !problem.Is(err, test.want) {
			t.Errorf("%s: %v, want %s", what, err, test.want)
		}
	}
	index, err := b.ReviewGlass(b.by["carol"], "carol", good, "once")
	b.must(err)
	again, err := b.ReviewGlass(b.by["carol"], "carol", good, "once") // the reply was lost
	if err != nil || again != index {
		t.Errorf("%d, %v; want %d", again, err, index)
	}
	all, err := b.Env.ListGlass(b.by["dora"].Caller)
	b.must(err)
	if g := all.Openings[0]; len(all.Openings) != 1 || g.Verdict != "not-justified" || g.Reviewer != "carol" || len(all.Grants) != 1 || all.Quarter.Openings != 1 || all.Settings.Openings != 2 {
		t.Errorf("listed as %+v, %+v", all, g)
	}
	if _, err = b.Env.ListGlass(b.Node(b.by["alice"], "n1").Caller); !problem.Is(err, problem.ReasonDuty) {
		t.Errorf("a machine lists openings: %v", err)
	}
	b.consistent()
}

// The alarm is raised with the release that reaches the share, once in a quarter.
func TestBreakGlassAlarm(t *testing.T) {
	b := fragile(t, nil)
	_, err := b.Glass(b.by["bob"], "glass", "INC-1", 30)
	b.must(err)
	alarms := func() (n int) {
		for _, e := range b.Stored() {
			if strings.Contains(string(e.Body), `"glass.alarmed"`) {
				n++
			}
		}
		return n
	}
	for i := range 14 {
		b.reads("bob", "db/a", "")
		if want := min(1, (i+1)/10); alarms() != want {
			t.Fatalf("%d alarms after %d releases", alarms(), i+1)
		}
	}
	q, open, unreviewed := b.Env.Quarter()
	if q.Glass != 14 || q.Releases != 14 || !q.Alarmed || open != 1 || unreviewed != 1 {
		t.Errorf("%+v, %d open, %d to be reviewed", q, open, unreviewed)
	}
	b.consistent()
	b.Reopen()
	b.consistent()
}

// What a person reads by a grant that he has open counts as such, also where a bundle has made it an everyday one meanwhile: the alarm is
// raised by what the checks count.
func TestBreakGlassAlarmOfAGrantThatIsNoneAnyMore(t *testing.T) {
	b := fragile(t, nil)
	_, err := b.Glass(b.by["bob"], "glass", "INC-1", 30)
	b.must(err)
	everyday := strings.Replace(string(controltest.GlassGrant("glass", 30, "alice", "bob")), "  breakGlass: 30m\n", "", 1)
	p, err := b.Propose(b.by["carol"], "carol", b.with("grants/glass.yaml", everyday))
	b.must(err)
	_, err = b.Approve(b.by["dora"], "dora", p.Change)
	b.must(err)
	for range 11 {
		b.reads("bob", "db/a", "")
	}
	if q, _, _ := b.Env.Quarter(); q.Glass != 11 || !q.Alarmed {
		t.Errorf("%+v", q)
	}
	b.consistent()
}
