package controltest

import (
	"context"
	"slices"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/policy"
)

// ReviewOf is a review of all lines of some grants of the bundle in force, or of all grants, by one decision, as a person signs it.
func (w *World) ReviewOf(person string, d ceremony.Decision, grants ...string) ceremony.Review {
	r := ceremony.Review{Scope: w.Scope(), Bundle: w.Env.State().Bundle.String(), Person: person, Time: w.Now().UTC().Truncate(time.Second), Nonce: Nonce()}
	for _, g := range w.Env.Program().Grants() {
		if g.Effect != policy.Allow || len(grants) > 0 && !slices.Contains(grants, g.Name) {
			continue
		}
		for _, who := range g.Identities {
			for _, secret := range g.Secrets {
				r.Lines = append(r.Lines, ceremony.ReviewLine{Decision: d, Grant: g.Name, Identity: who.String(), Secret: secret.String(), LastUsed: ceremony.NeverUsed})
			}
		}
	}
	slices.SortFunc(r.Lines, ceremony.ReviewLine.Compare)
	return r
}

// Review enters a review that a person signs.
func (w *World) Review(by Actor, person string, r ceremony.Review, key string) (uint64, error) {
	text := r.Text()
	return w.Env.Review(context.Background(), by.Caller, control.ReviewRequest{Text: text, SSHSIG: w.Sign(person, ceremony.NamespaceChange, text), Key: key})
}

// reviews are two, of which the second knows better.
func (h *history) reviews() {
	h.pass(0)
	_, err := h.w.Review(h.alice, "alice", h.w.ReviewOf("alice", ceremony.Keep), "review-1")
	h.check(err)
	_, err = h.w.Review(h.bob, "bob", h.w.ReviewOf("bob", ceremony.Narrow), "")
	h.check(err)
}
