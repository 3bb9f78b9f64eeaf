package controltest

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// GlassGrant is a break-glass grant to some persons, by which they read db/….
func GlassGrant(name string, minutes int, persons ...string) []byte {
	list := ""
	for _, p := range persons {
		list += "/human/" + p + ", "
	}
	return fmt.Appendf(nil, `apiVersion: bailment/v1
kind: Grant
metadata: {name: %s}
spec:
  actions: [secret.read]
  identities: [%s]
  secrets: [db/*]
  purposes: [incident]
  assurance: key
  breakGlass: %dm
`, name, list[:len(list)-2], minutes)
}

// Glass opens a break-glass grant.
func (w *World) Glass(by Actor, grant, incident string, minutes int) (*control.Opening, error) {
	return w.Env.OpenGlass(context.Background(), by.Caller, control.GlassRequest{Grant: grant, Incident: incident, Reason: "nobody can pay", Minutes: minutes})
}

// ReviewOfGlass is what a person signs of an opening that is over.
func (w *World) ReviewOfGlass(person string, opening uint64, v ceremony.Verdict) ceremony.GlassReview {
	g, ok := w.Env.State().Glass.Get(opening)
	if !ok {
		w.T.Fatalf("there is no opening %d", opening)
	}
	r := g.ReviewOf()
	r.Scope, r.Verdict, r.Person, r.Time, r.Nonce = w.Scope(), v, person, w.Now().UTC().Truncate(time.Second), Nonce()
	r.Findings = "The reads were those that the incident needed.\nThe password was rotated afterwards."
	return r
}

// ReviewGlass enters a review that a person signs.
func (w *World) ReviewGlass(by Actor, person string, r ceremony.GlassReview, key string) (uint64, error) {
	text := r.Text()
	return w.Env.ReviewGlass(context.Background(), by.Caller, r.Opening, control.ReviewRequest{Text: text, SSHSIG: w.Sign(person, ceremony.NamespaceChange, text), Key: key})
}

// InOneQuarter moves the clock past the end of the quarter of a year if that is near.
func (w *World) InOneQuarter(near time.Duration) {
	if now := state.At(w.Now()); now.Add(near) >= w.Env.State().Quarter(now).Ends {
		w.Advance(near)
	}
}

// glass is opened by one person, used until the alarm, closed and reviewed; and once more by a change, since the budget is one.
func (h *history) glass() {
	w := h.w
	w.InOneQuarter(48 * time.Hour)
	h.pass(0)
	files := maps.Clone(w.Files)
	files["grants/glass.yaml"] = GlassGrant("glass", 30, "alice")
	files["environment.yaml"] = fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  approvals: {required: 1, acts: [{act: secret.destroy, delay: 24h}]}\n  revocation: {blastLimit: 2}\n  breakGlass: {openings: 1, alarm: 5}\n", EnvName)
	h.bring(files)
	read := func() {
		_, err := w.Env.Get(h.ctx, h.alice.Caller, control.GetRequest{Secret: "db/b", Purpose: "incident"})
		h.check(err)
	}
	_, err := w.Env.Get(h.ctx, h.alice.Caller, control.GetRequest{Secret: "db/b", Purpose: "incident"})
	h.refused(err, problem.ReasonGlass)
	o, err := w.Glass(h.alice, "glass", "INC-1", 10)
	h.check(err)
	for range 12 {
		read()
	}
	h.pass(time.Minute)
	_, err = w.Env.CloseGlass(h.ctx, h.alice.Caller, o.Index)
	h.check(err)
	_, err = w.ReviewGlass(h.bob, "bob", w.ReviewOfGlass("bob", o.Index, ceremony.Justified), "glass-review-1")
	h.check(err)
	_, err = w.Glass(h.alice, "glass", "INC-2", 10)
	h.refused(err, problem.ReasonGlassBudget)
	p, err := w.Act(h.alice, "alice", control.ActionGlass, state.GlassTarget("glass", "INC-2", 10))
	h.check(err)
	_, err = w.Approve(h.bob, "bob", p.Change)
	h.check(err)
	read()
	h.pass(20 * time.Minute)
}

// bring has a bundle come into force at once. Alice may gain by it.
func (h *history) bring(files policy.Files) {
	h.w.T.Helper()
	p, err := h.w.Propose(h.alice, "alice", files)
	h.check(err)
	_, err = h.w.Approve(h.bob, "bob", p.Change)
	h.check(err)
	h.w.Files = files
}
