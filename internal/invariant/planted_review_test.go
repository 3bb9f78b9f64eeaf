package invariant_test

import (
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/state"
)

// review is a legal review by alice.
func (s *scene) review() *state.AccessReviewed {
	e := last(s, func(_ uint64, e *state.AccessReviewed) bool { return e.Signature.Person == "alice" })
	e.Actor = state.Actor{Identity: "/human/alice", Session: s.r.cast.Alice.Opened.Index}
	e.Ruling, e.Idem = s.ruling(), nil
	now := s.entries[len(s.entries)-1].Time
	lines := strings.Split(e.Text, "\n")
	lines[4] = "bundle " + e.Ruling.Bundle.String()
	lines[6] = "time " + now.Time().Format("2006-01-02T15:04:05Z")
	lines[7] = "nonce 00112233445566778899aabbccddeeff"
	e.Text = strings.Join(lines, "\n")
	return e
}

// with is the review with another line above its decisions.
func reviewWith(e *state.AccessReviewed, line int, text string) *state.AccessReviewed {
	lines := strings.Split(e.Text, "\n")
	lines[line] = text
	e.Text = strings.Join(lines, "\n")
	return e
}

func TestReviewPlantsStartLegal(t *testing.T) {
	s := newScene(t, history(t))
	s.add(s.review())
	for _, v := range s.found {
		t.Error(v)
	}
}

// reviewPlants are reviews that are nobody's, of something else, or of another time.
var reviewPlants = []planted{
	{invariant.Lifecycle, "a review of another bundle", func(s *scene) {
		s.add(reviewWith(s.review(), 4, "bundle "+state.Digest{9}.String()))
	}, "it is about another bundle than the one in force"},
	{invariant.Lifecycle, "a review that can't be read", func(s *scene) {
		s.add(reviewWith(s.review(), 0, "bailment change v2"))
	}, "it is about another bundle than the one in force"},
	{invariant.Separated, "a review that another person signed", func(s *scene) {
		e := s.review()
		e.Signature.Person = "bob"
		s.add(e)
	}, "decides what bob signed"},
	{invariant.Separated, "a review in another person's name", func(s *scene) {
		s.add(reviewWith(s.review(), 5, "person bob"))
	}, "decides what alice signed"},
	{invariant.ExactlyOnce, "a review entered twice", func(s *scene) {
		s.add(s.review())
		s.add(s.review())
	}, "its nonce was used before"},
	{invariant.Bounded, "a review that was signed long before", func(s *scene) {
		e := s.review()
		now := s.entries[len(s.entries)-1].Time
		s.add(reviewWith(e, 6, "time "+(now-2*3_600_000).Time().Format("2006-01-02T15:04:05Z")))
	}, "the review was signed at"},
	{invariant.Bounded, "a review of the future", func(s *scene) {
		e := s.review()
		now := s.entries[len(s.entries)-1].Time
		s.add(reviewWith(e, 6, "time "+(now+600_000).Time().Format("2006-01-02T15:04:05Z")))
	}, "the review was signed at"},
	{invariant.Confined, "a review of another environment", func(s *scene) {
		s.add(reviewWith(s.review(), 1, "environment elsewhere"))
	}, "what was signed is not about this environment"},
	{invariant.Permitted, "a review by who has not the duty", func(s *scene) {
		s.bring("operators.yaml", strings.ReplaceAll(string(s.r.files["operators.yaml"]), ", audit", ""))
		s.add(s.review())
	}, "audit"},
	{invariant.Revoked, "a review by a key that was revoked", func(s *scene) {
		e := s.review()
		held := s.revoke("issuer:ssh:" + e.Signature.Key)
		held.Hold = true
		s.add(held)
		s.add(e)
	}, "issuer:ssh:"},
}
