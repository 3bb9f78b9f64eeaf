package notify

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// Schema is the version of the body that a webhook gets. Fields may be added to it; none changes its meaning.
const Schema = "bailment.notification/1"

// Message is what one entry tells. As JSON it is a webhook's body: docs/reference/notifications.md.
type Message struct {
	Schema      string       `json:"schema"`
	Environment string       `json:"environment"`
	Genesis     string       `json:"genesis"`
	Entry       uint64       `json:"entry"`
	Time        time.Time    `json:"time"`
	Event       policy.Topic `json:"event"`
	Summary     string       `json:"summary"`
	By          string       `json:"by,omitempty"` // an identity; none: the server itself, by what was approved
	Change      uint64       `json:"change,omitempty"`
	Action      string       `json:"action,omitempty"`
	Target      string       `json:"target,omitempty"`
	Digest      string       `json:"digest,omitempty"` // of the bundle's manifest
	Reason      string       `json:"reason,omitempty"`
	Duty        string       `json:"duty,omitempty"`      // that approving takes
	Required    int          `json:"required,omitempty"`  // approvals
	Self        bool         `json:"self,omitempty"`      // the proposer's own may be one of them
	Approvals   int          `json:"approvals,omitempty"` // so far
	Expires     *time.Time   `json:"expires,omitempty"`
	Due         *time.Time   `json:"due,omitempty"` // it has its approvals, waits until then, and can be rejected
	Review      string       `json:"review"`        // the command that shows what there is to see
}

// Concerns says whether an entry is one that Of makes a message of. It is called for every entry, and quick.
func Concerns(ev state.Event) bool {
	switch x := ev.(type) {
	case *state.ChangeProposed, *state.ChangeApproved, *state.ChangeRejected, *state.BundleInForce, *state.RolloutMoved, *state.RolloutEnded,
		*state.RevocationRecorded, *state.HoldLifted, *state.EvidenceForgotten, *state.IdentityDecommissioned,
		*state.GlassOpened, *state.GlassClosed, *state.GlassReviewed, *state.GlassAlarmed, *state.RecoveryStarted, *state.RecoveryWithdrawn, *state.EnvironmentEnded,
		*state.CustodyMoved, *state.SecretExported:
		return true
	case *state.SecretMoved:
		return x.Change != 0
	}
	return false
}

// About is what is known of an environment beside the entry. Change finds a change by its number, in a state after the entry.
type About struct {
	Environment, Genesis string
	Change               func(uint64) (*state.Change, bool)
}

// Of is the table of entries and what they tell. It gives a message for exactly the entries that Concerns names. Nothing of it is a secret's value, as entries have none; what persons
// wrote is bounded, and what can't be seen in it stands as '·'.
func Of(s About, index uint64, entry *state.Entry) (Message, bool) {
	m := Message{Schema: Schema, Environment: s.Environment, Genesis: s.Genesis, Entry: index, Time: entry.Time.Time().UTC()}
	switch x := entry.Event.(type) {
	case *state.ChangeProposed:
		m.about(s, policy.TopicProposed, index, "was proposed")
		m.By = x.Actor.Identity
		m.needs(s, index)
	case *state.ChangeApproved:
		m.about(s, policy.TopicApproved, x.Change, "was approved")
		m.By = x.Actor.Identity
		m.needs(s, x.Change)
		m.waits(s, x.Change)
	case *state.ChangeRejected:
		m.about(s, policy.TopicRejected, x.Change, "was rejected")
		m.By, m.Reason = x.Actor.Identity, x.Reason
	case *state.RecoveryStarted:
		m.recovery(fmt.Sprintf("a recovery began: it replaces the operators at %s", x.Until.Time().UTC().Format(time.RFC3339)), x.Signatures)
		if text, err := ceremony.ParseRecovery(x.Text); err == nil {
			m.Reason, m.Digest = text.Reason, text.New
		}
		until := x.Until.Time().UTC()
		m.Expires = &until
	case *state.RecoveryWithdrawn:
		m.recovery(fmt.Sprintf("recovery %d was withdrawn", x.Recovery), []state.Signature{x.Signature})
		if text, err := ceremony.ParseWithdrawal(x.Text); err == nil {
			m.Reason = text.Reason
		}
	case *state.BundleInForce:
		if x.How == state.ByRecovery {
			m.recovery(fmt.Sprintf("recovery %d was carried out: the operators were replaced", x.Recovery), nil)
		} else if x.How == state.ByRollback {
			m.about(s, policy.TopicRolledBack, x.Change, "was rolled back")
			m.cause(x.Cause)
		} else {
			m.about(s, policy.TopicInForce, x.Change, "is in force")
		}
		m.Digest = x.Manifest.String()
	case *state.RolloutMoved:
		m.about(s, policy.TopicStep, x.Change, fmt.Sprintf("is at step %d of its rollout", x.Step+1))
		m.Digest = x.Manifest.String()
	case *state.RolloutEnded:
		m.about(s, policy.TopicRolledBack, x.Change, "was taken back before it was in force")
		m.cause(&x.Cause)
	case *state.RevocationRecorded:
		m.Event, m.By, m.Change, m.Target, m.Reason = policy.TopicRevocation, x.Actor.Identity, x.Change, x.Scope, x.Reason
		m.Summary = fmt.Sprintf("%s, %d in scope", revoked(x), x.Covers)
		m.Review = "bailment revocation list"
	case *state.GlassOpened:
		m.glass(x.Actor.Identity, x.Change, x.Grant, fmt.Sprintf("%s broke the glass: %s is open until %s, for %s", x.Identity, x.Grant, x.Until, x.Incident))
		m.Reason, m.Review = x.Reason, fmt.Sprintf("bailment break-glass show %d", index)
	case *state.GlassClosed:
		m.glass(x.Actor.Identity, 0, "", fmt.Sprintf("opening %d was closed before its time", x.Opening))
		m.Review = fmt.Sprintf("bailment break-glass review %d", x.Opening)
	case *state.GlassReviewed:
		m.glass(x.Actor.Identity, 0, "", fmt.Sprintf("opening %d was reviewed", x.Opening))
		m.Review = fmt.Sprintf("bailment break-glass show %d", x.Opening)
	case *state.GlassAlarmed:
		m.glass("", 0, "", fmt.Sprintf("%d of %d releases of %s were by break-glass grants, which is %d percent or more", x.Glass, x.Releases, x.Quarter, x.Percent))
		m.Review = "bailment break-glass list"
	case *state.CustodyMoved:
		m.about(s, policy.TopicInForce, x.Change, "was carried out: the keys are under the root holder "+x.To.String())
		m.By = x.Actor.Identity
	case *state.EnvironmentEnded:
		m.about(s, policy.TopicInForce, x.Change, "was carried out: the environment has ended for ever")
		m.By, m.Review = x.Actor.Identity, "bailment ledger verify"
	case *state.SecretExported:
		m.about(s, policy.TopicInForce, x.Change, fmt.Sprintf("was carried out: %d values left, sealed to %s", x.Count, x.Recipient))
		m.By = x.Actor.Identity
	default:
		if !m.carriedOut(s, entry.Event) {
			return Message{}, false
		}
	}
	m.Summary, m.By, m.Action = plain(m.Summary), plain(m.By), plain(m.Action)
	m.Target, m.Reason = plain(m.Target), plain(m.Reason)
	return m, true
}

// recovery is for what is done by who holds recovery keys: persons, and no identities.
func (m *Message) recovery(summary string, by []state.Signature) {
	m.Event, m.Summary, m.Review = policy.TopicRecovery, summary, "bailment recovery status"
	for i, x := range by {
		if i > 0 {
			m.By += ", "
		}
		m.By += x.Person
	}
}

// carriedOut is for the acts that are no bundles: what they do is the entry.
func (m *Message) carriedOut(s About, ev state.Event) bool {
	var change uint64
	switch x := ev.(type) {
	case *state.HoldLifted:
		change = x.Change
	case *state.EvidenceForgotten:
		change = x.Change
	case *state.IdentityDecommissioned:
		change = x.Change
	case *state.SecretMoved:
		change = x.Change
	}
	if change == 0 {
		return false
	}
	m.about(s, policy.TopicInForce, change, "was carried out")
	return true
}

// about says what change it is.
func (m *Message) about(s About, topic policy.Topic, change uint64, what string) {
	m.Event, m.Change, m.Summary = topic, change, fmt.Sprintf("change %d %s", change, what)
	m.Review = fmt.Sprintf("bailment change show %d", change)
	ch, ok := s.Change(change)
	if !ok {
		return // it was swept since, or is older than what is kept
	}
	m.Action, m.Target, m.Reason = ch.Action, ch.Target, ch.Reason
	if ch.Manifest != (state.Digest{}) {
		m.Digest = ch.Manifest.String()
	}
}

// needs says what approvers have to know.
func (m *Message) needs(s About, change uint64) {
	ch, ok := s.Change(change)
	if !ok {
		return
	}
	for _, a := range ch.Approvals {
		if a.Index <= m.Entry { // the state may be later
			m.Approvals++
		}
	}
	expires := ch.Expires.Time().UTC()
	m.Required, m.Self, m.Expires, m.Duty = ch.Required, ch.SelfOK, &expires, string(policy.DutyToApprove(ch.Action))
}

// waits says that a change has what it needs, and waits from this entry on.
func (m *Message) waits(s About, change uint64) {
	ch, ok := s.Change(change)
	if !ok || ch.Delay == 0 || ch.Since != state.At(m.Time) { // the state may be later, and it does not wait any more
		return
	}
	due := m.Time.Add(time.Duration(ch.Delay) * time.Second)
	m.Due, m.Summary = &due, fmt.Sprintf("change %d has its approvals, can't be undone, and waits", change)
}

func (m *Message) cause(c *state.Cause) {
	if c == nil {
		return
	}
	m.Reason = c.Reason
	switch {
	case c.Actor != nil:
		m.By = c.Actor.Identity
	case c.Figure != nil:
		m.Reason = fmt.Sprintf("trigger %s: %d of %d that asked", c.Figure.On, c.Figure.Sources, c.Figure.Asked)
	case m.Reason == "":
		m.Reason = c.By
	}
}

func (m *Message) glass(by string, change uint64, target, summary string) {
	m.Event, m.By, m.Change, m.Target, m.Summary = policy.TopicGlass, by, change, target, summary
}

func revoked(x *state.RevocationRecorded) string {
	switch {
	case x.Cutoff && x.Hold:
		return "cut off and held"
	case x.Cutoff:
		return "cut off"
	case x.Until != 0:
		return "held for the time being: it takes a change to confirm it"
	}
	return "held"
}

// maxText bounds what of one text is told, in characters.
const maxText = 500

// plain is a text as one line of characters that can be seen.
func plain(s string) string {
	n := 0
	var b strings.Builder
	for _, r := range s {
		if n++; n > maxText {
			b.WriteRune('…')
			break
		}
		if !unicode.IsPrint(r) { // line ends, control characters, marks of direction
			r = '·'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// JSON is the body for webhooks.
func (m *Message) JSON() []byte {
	b, err := json.Marshal(m)
	if err != nil {
		panic("notify: a message can't be printed: " + err.Error()) // texts, numbers and times only
	}
	return append(b, '\n')
}

// Subject is one line of ASCII with nothing in it that somebody wrote freely.
func (m *Message) Subject() string {
	out := fmt.Sprintf("[%s] %s", m.Environment, m.Event)
	if m.Change != 0 {
		out += fmt.Sprintf(": change %d", m.Change)
	}
	if m.By != "" {
		out += " by " + m.By
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '?' { // '?' makes encoded words (RFC 2047)
			return '.'
		}
		return r
	}, out)
}

// Text is for persons. Every line with a text of somebody's begins with what it is, so that none can pass for another.
func (m *Message) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s.\n\n", m.Environment, m.Summary)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "  %-10s %s\n", name, value)
		}
	}
	row("by", m.By)
	row("action", m.Action)
	row("about", m.Target)
	row("digest", m.Digest)
	if m.Reason != "" {
		row("reason", "\""+m.Reason+"\"")
	}
	if m.Required > 0 {
		who := "others"
		if m.Self {
			who = "anybody"
		}
		row("approvals", fmt.Sprintf("%d of %d, by %s with the duty %s, until %s", m.Approvals, m.Required, who, m.Duty, m.Expires.Format(time.RFC3339)))
	}
	if m.Due != nil {
		row("waits", "until "+m.Due.Format(time.RFC3339)+"; to stop it: bailment change reject "+strconv.FormatUint(m.Change, 10))
	}
	row("time", m.Time.Format(time.RFC3339))
	fmt.Fprintf(&b, "\nLook at it with: %s\n", m.Review)
	fmt.Fprintf(&b, "\nThis message proves nothing, and nothing can be approved by answering it. Ask the server:\nenvironment %s, genesis %s, entry %d.\n", m.Environment, m.Genesis, m.Entry)
	return b.String()
}
