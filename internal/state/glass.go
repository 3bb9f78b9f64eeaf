package state

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// GlassOpened opens a break-glass grant for a person. Beyond the budget, or while an earlier opening is not reviewed, it comes of an approved
// change, and is sent by its last approver.
type GlassOpened struct {
	Grant    string   `json:"grant"`
	Identity string   `json:"identity"` // the person
	Incident string   `json:"incident"`
	Reason   string   `json:"reason"`
	Until    Millis   `json:"until"`
	Change   uint64   `json:"change,omitempty"`
	Actor    Actor    `json:"actor"`
	Ruling   Ruling   `json:"ruling"`
	Idem     *IdemKey `json:"idem,omitempty"`
}

// GlassClosed ends an opening before its time.
type GlassClosed struct {
	Opening uint64 `json:"opening"`
	Actor   Actor  `json:"actor"`
	Ruling  Ruling `json:"ruling"`
}

// GlassReviewed is what another operator says of an opening that is over. Text is what he signed, byte for byte: see ceremony.GlassReview.
type GlassReviewed struct {
	Opening   uint64    `json:"opening"`
	Text      string    `json:"text"`
	Signature Signature `json:"signature"`
	Actor     Actor     `json:"actor"`
	Ruling    Ruling    `json:"ruling"`
	Idem      *IdemKey  `json:"idem,omitempty"`
}

// GlassAlarmed says that releases by break-glass grants have reached a share of all releases of a quarter that the bundle calls alarming.
// It is entered once in a quarter, with the release that reached it.
type GlassAlarmed struct {
	Quarter  string `json:"quarter"`
	Glass    int    `json:"glass"`    // releases by break-glass grants
	Releases int    `json:"releases"` // all
	Percent  int    `json:"percent"`  // what the bundle says
}

// Kind of this event.
func (*GlassOpened) Kind() Kind { return Kind{"glass.opened", 1} }

// Kind of this event.
func (*GlassClosed) Kind() Kind { return Kind{"glass.closed", 1} }

// Kind of this event.
func (*GlassReviewed) Kind() Kind { return Kind{"glass.reviewed", 1} }

// Kind of this event.
func (*GlassAlarmed) Kind() Kind { return Kind{"glass.alarmed", 1} }

// Glass is an opening, and what came of it.
type Glass struct {
	Index    uint64   `json:"index"`
	Grant    string   `json:"grant"`
	Identity string   `json:"identity"`
	Incident string   `json:"incident"`
	Reason   string   `json:"reason"`
	Opened   Millis   `json:"opened"`
	Until    Millis   `json:"until"` // from then on it is closed; sooner, if somebody closed it
	Change   uint64   `json:"change,omitempty"`
	ClosedBy string   `json:"closed_by,omitempty"` // before its time
	Uses     int      `json:"uses,omitempty"`
	Secrets  []string `json:"secrets,omitempty"` // what it was used for, in ascending order
	Beyond   int      `json:"beyond,omitempty"`  // uses for secrets that are not named, since there are too many
	// Of the review: its entry, who wrote it, and the verdict.
	Reviewed uint64 `json:"reviewed,omitempty"`
	Reviewer string `json:"reviewer,omitempty"`
	Verdict  string `json:"verdict,omitempty"`
}

// GlassTarget is what a change names that opens a break-glass grant for its proposer: which, for what incident, and for how many minutes.
func GlassTarget(grant, incident string, minutes uint64) string {
	return HoldTarget(grant+"@"+incident, minutes)
}

// ParseGlassTarget undoes GlassTarget.
func ParseGlassTarget(target string) (grant, incident string, minutes uint64, ok bool) {
	what, minutes, ok := ParseHoldTarget(target)
	grant, incident, named := strings.Cut(what, "@")
	return grant, incident, minutes, ok && named
}

// ValidIncident says what is wrong with the name of an incident.
func ValidIncident(id string) error {
	const most = 64
	plain := func(c rune) bool {
		return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("-._/", c)
	}
	if id == "" || len(id) > most || strings.ContainsFunc(id, func(c rune) bool { return !plain(c) }) {
		return fmt.Errorf("an incident's name has 1 to %d of a-z, A-Z, 0-9, '-', '.', '_' and '/', as INC-42", most)
	}
	return nil
}

// GlassQuarter are the figures of one quarter of a year, in UTC.
type GlassQuarter struct {
	Name     string `json:"name"` // 2026-Q4
	Ends     Millis `json:"ends"`
	Openings int    `json:"openings,omitempty"`
	Releases int    `json:"releases,omitempty"` // of secrets, by whatever grant
	Glass    int    `json:"glass,omitempty"`    // of them by break-glass grants
	Alarmed  bool   `json:"alarmed,omitempty"`
}

const (
	// MaxGlassOpen is for how long a break-glass grant can be open at the most: see policy.
	MaxGlassOpen = 8 * time.Hour
	// MaxGlassSecrets is how many secrets an opening remembers by name.
	MaxGlassSecrets = 50
	// GlassReviewLife is for how long after its signature a review is taken.
	GlassReviewLife = ReviewLife
	// glassAlarmFrom is how many releases by break-glass grants there are before their share says anything.
	glassAlarmFrom = 10

	keepGlass = 400 * 24 * 60 * 60 * 1000
)

// Quarter are the figures of the quarter of a moment, which is not before the newest entry.
func (s *State) Quarter(now Millis) GlassQuarter {
	if now < s.quarter.Ends {
		return s.quarter
	}
	t := now.Time()
	q := (int(t.Month()) + 2) / 3
	return GlassQuarter{Name: fmt.Sprintf("%04d-Q%d", t.Year(), q), Ends: At(time.Date(t.Year(), time.Month(3*q+1), 1, 0, 0, 0, 0, time.UTC))}
}

// Alarming reports whether one more release by a break-glass grant reaches a share for the first time in its quarter, and the figures then.
func (s *State) Alarming(now Millis, percent int) (GlassAlarmed, bool) {
	q := s.Quarter(now)
	a := GlassAlarmed{Quarter: q.Name, Glass: q.Glass + 1, Releases: q.Releases + 1, Percent: percent}
	return a, !q.Alarmed && a.reached()
}

func (e *GlassAlarmed) reached() bool {
	return e.Glass >= glassAlarmFrom && e.Glass*100 >= e.Percent*e.Releases
}

// opened calls visit with the openings of a person that are not over.
func (s *State) opened(path string, now Millis, visit func(*Glass)) {
	if !strings.HasPrefix(path, identity.PrefixHuman) {
		return
	}
	s.Glass.m.Reverse(func(_ uint64, g *Glass) bool {
		if g.Identity == path && now < g.Until {
			visit(g)
		}
		return now < g.Opened.Add(MaxGlassOpen) // those before it are over as well
	})
}

// Opened lists what a person has open, newest first.
func (s *State) Opened(path string, now Millis) (out []*Glass) {
	s.opened(path, now, func(g *Glass) { out = append(out, g) })
	return out
}

// Unreviewed is the oldest opening that nobody reviewed; nil: there is none.
func (s *State) Unreviewed() (first *Glass) {
	s.Glass.All(func(_ uint64, g *Glass) bool {
		if g.Reviewed == 0 {
			first = g
		}
		return first == nil
	})
	return first
}

func (e *GlassOpened) apply(s *State, m Meta) error {
	if err := s.needs(protocolRollout); err != nil {
		return err
	}
	switch {
	case !strings.HasPrefix(e.Identity, identity.PrefixHuman), e.Change == 0 && e.Identity != e.Actor.Identity:
		return fmt.Errorf("it is opened for %s, which is not who asks", e.Identity)
	case e.Until <= m.Time || e.Until > m.Time.Add(MaxGlassOpen):
		return fmt.Errorf("it is open until %s", e.Until)
	case e.Change == 0 && s.Unreviewed() != nil:
		return fmt.Errorf("opening %d is not reviewed", s.Unreviewed().Index)
	}
	if e.Change != 0 {
		ch, ok := s.Changes.Get(e.Change)
		if !ok || ch.Action != policy.ActGlass || ch.Proposer != e.Identity {
			return fmt.Errorf("change %d does not open anything for %s", e.Change, e.Identity)
		}
		minutes := time.Duration(e.Until-m.Time) * time.Millisecond / time.Minute
		if err := s.carryOut(e.Change, policy.ActGlass, GlassTarget(e.Grant, e.Incident, uint64(minutes)), m); err != nil {
			return err
		}
	}
	q := s.Quarter(m.Time)
	q.Openings++
	s.quarter = q
	s.Glass.set(m.Index, &Glass{
		Index: m.Index, Grant: e.Grant, Identity: e.Identity, Incident: e.Incident, Reason: e.Reason, Opened: m.Time, Until: e.Until, Change: e.Change,
	})
	s.enqueue(m.Time+keepGlass, qGlass, indexKey(m.Index))
	s.remember(e.Actor, e.Idem, m, Idempotent{})
	return nil
}

func (e *GlassClosed) apply(s *State, m Meta) error {
	g, ok := s.Glass.Get(e.Opening)
	if !ok || m.Time >= g.Until {
		return fmt.Errorf("opening %d is not open", e.Opening)
	}
	n := *g
	n.Until, n.ClosedBy = m.Time, e.Actor.Identity
	s.Glass.set(n.Index, &n)
	return nil
}

// ReviewOf is what a reviewer is to sign of an opening that is over, but for what is his to say.
func (g *Glass) ReviewOf() ceremony.GlassReview {
	return ceremony.GlassReview{
		Opening: g.Index, Grant: g.Grant, Opener: g.Identity, Incident: g.Incident, Opened: g.Opened.Time(), Closed: g.Until.Time(),
		Uses: g.Uses, Secrets: g.Secrets, Beyond: g.Beyond,
	}
}

func (e *GlassReviewed) apply(s *State, m Meta) error {
	g, ok := s.Glass.Get(e.Opening)
	if !ok || g.Reviewed != 0 || m.Time < g.Until {
		return fmt.Errorf("opening %d is not to be reviewed", e.Opening)
	}
	r, err := ceremony.ParseGlassReview(e.Text)
	if err != nil {
		return err
	}
	want := g.ReviewOf()
	want.Scope, want.Verdict, want.Person, want.Time, want.Nonce, want.Findings = r.Scope, r.Verdict, r.Person, r.Time, r.Nonce, r.Findings
	switch {
	case want.Text() != e.Text:
		return fmt.Errorf("the signed text is not about opening %d as it was", e.Opening)
	case identity.PrefixHuman+r.Person == g.Identity:
		return fmt.Errorf("%s reviews what he opened himself", r.Person)
	case !ReviewTimely(r.Time, m.Time):
		return fmt.Errorf("it was not signed just now")
	}
	if err := s.spend(r.Nonce, At(r.Time).Add(GlassReviewLife)); err != nil {
		return err
	}
	n := *g
	n.Reviewed, n.Reviewer, n.Verdict = m.Index, r.Person, string(r.Verdict)
	s.Glass.set(n.Index, &n)
	s.remember(e.Actor, e.Idem, m, Idempotent{})
	return nil
}

func (e *GlassAlarmed) apply(s *State, m Meta) error {
	q := s.Quarter(m.Time)
	if q.Alarmed || e.Quarter != q.Name || e.Glass != q.Glass || e.Releases != q.Releases || !e.reached() {
		return fmt.Errorf("the figures of %s are not these", e.Quarter)
	}
	q.Alarmed = true
	s.quarter = q
	return nil
}

// useGlass counts a decision by a grant that the person had opened, if he had, with the newest such opening.
func (s *State) useGlass(a *Actor, r *Ruling, secret string, now Millis) (by *Glass) {
	s.opened(a.Identity, now, func(g *Glass) {
		if by == nil && g.Grant == r.Grant {
			by = g
		}
	})
	if by == nil {
		return nil
	}
	n := *by
	n.Uses++
	switch at, known := slices.BinarySearch(n.Secrets, secret); {
	case known:
	case len(n.Secrets) < MaxGlassSecrets:
		n.Secrets = slices.Insert(slices.Clone(n.Secrets), at, shared(secret))
	default:
		n.Beyond++
	}
	s.Glass.set(n.Index, &n)
	return &n
}

// countRelease counts a release for the figures of its quarter.
func (s *State) countRelease(e *SecretReleased, m Meta) {
	if s.Protocol < protocolRollout {
		return // as serve
	}
	q := s.Quarter(m.Time)
	q.Releases++
	if s.useGlass(&e.Actor, &e.Ruling, e.Secret, m.Time) != nil {
		q.Glass++
	}
	s.quarter = q
}
