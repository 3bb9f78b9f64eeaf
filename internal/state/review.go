package state

import (
	"fmt"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
)

// AccessReviewed is a person's decisions about lines of the bundle in force. Text is what he signed, byte for byte: see ceremony.Review.
// It changes nothing that anybody may do.
type AccessReviewed struct {
	Text      string    `json:"text"`
	Signature Signature `json:"signature"`
	Actor     Actor     `json:"actor"`
	Ruling    Ruling    `json:"ruling"`
	Idem      *IdemKey  `json:"idem,omitempty"`
}

// Kind of this event.
func (*AccessReviewed) Kind() Kind { return Kind{"access.reviewed", 1} }

// Reviewed is the newest decision about a line: who has what, by which grant.
type Reviewed struct {
	Decision string `json:"decision"`
	By       string `json:"by"` // the person
	Index    uint64 `json:"index"`
	Time     Millis `json:"time"`
}

const (
	// ReviewLife is for how long after its time a review is taken, and its nonce remembered: it may be read for a while before it is signed.
	ReviewLife = time.Hour
	// ReviewAhead is by how much a signer's clock may be ahead.
	ReviewAhead = 5 * time.Minute
	// MaxReviewed is how many lines have a decision that is remembered. Each is for 400 days.
	MaxReviewed = 65_536

	keepReviewed = 400 * 24 * 60 * 60 * 1000
)

// ReviewKey is the name of a line.
func ReviewKey(grant, identity, secret string) string {
	return grant + "\x00" + identity + "\x00" + secret
}

// ParseReviewKey undoes ReviewKey.
func ParseReviewKey(key string) (grant, identity, secret string) {
	grant, rest, _ := strings.Cut(key, "\x00")
	identity, secret, _ = strings.Cut(rest, "\x00")
	return grant, identity, secret
}

// ReviewRoom reports whether all decisions of a review can be remembered.
func (s *State) ReviewRoom(r ceremony.Review) bool {
	fresh := 0
	for _, l := range r.Lines {
		if !s.Reviewed.Has(ReviewKey(l.Grant, l.Identity, l.Secret)) {
			fresh++
		}
	}
	return s.Reviewed.Len()+fresh <= MaxReviewed
}

// ReviewTimely reports whether a review that was signed at a moment is taken at another.
func ReviewTimely(signed time.Time, now Millis) bool {
	at := At(signed)
	return at <= now.Add(ReviewAhead) && now < at.Add(ReviewLife)
}

func (e *AccessReviewed) apply(s *State, m Meta) error {
	if err := s.needs(protocolRollout); err != nil {
		return err
	}
	r, err := ceremony.ParseReview(e.Text)
	if err != nil {
		return err
	}
	switch {
	case r.Bundle != s.Bundle.String():
		return fmt.Errorf("it is about another bundle than the one in force")
	case !ReviewTimely(r.Time, m.Time):
		return fmt.Errorf("it was not signed just now")
	case !s.ReviewRoom(r):
		return fmt.Errorf("%d lines have a decision already", s.Reviewed.Len())
	}
	if err := s.spend(r.Nonce, At(r.Time).Add(ReviewLife)); err != nil {
		return err
	}
	for _, l := range r.Lines {
		k := ReviewKey(l.Grant, l.Identity, l.Secret)
		if !s.Reviewed.Has(k) {
			s.enqueue(m.Time+keepReviewed, qReviewed, k)
		}
		s.Reviewed.set(k, &Reviewed{Decision: shared(string(l.Decision)), By: shared(r.Person), Index: m.Index, Time: m.Time})
	}
	s.remember(e.Actor, e.Idem, m, Idempotent{})
	return nil
}

// UsesSince is since when uses are remembered; zero: they are not yet.
func (s *State) UsesSince(now Millis) Millis {
	if s.ServesSince == 0 {
		return 0
	}
	return max(s.ServesSince, now-keepServed)
}
