package policy

import (
	"crypto/x509"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/spiffe"
)

// Topic is something that persons are told of.
type Topic string

// The closed set of topics. Each is made of entries: see package notify.
const (
	TopicProposed   Topic = "change.proposed"
	TopicApproved   Topic = "change.approved"
	TopicRejected   Topic = "change.rejected"
	TopicInForce    Topic = "change.in-force"    // a bundle came into force, or another act was carried out
	TopicRolledBack Topic = "change.rolled-back" // whether it was in force or on its way
	TopicStep       Topic = "rollout.step"
	TopicRevocation Topic = "revocation"
	TopicGlass      Topic = "break-glass" // opened, closed and reviewed, and the alarm of its share
)

// Topics are all topics.
var Topics = []Topic{TopicProposed, TopicApproved, TopicRejected, TopicInForce, TopicRolledBack, TopicStep, TopicRevocation, TopicGlass}

// Bounds of what notify says.
const (
	maxTargets   = 16
	maxAddresses = 64
	maxAddress   = 254 // RFC 5321 §4.5.3.1.3, without the brackets
	maxLocalPart = 64  // RFC 5321 §4.5.3.1.1
)

type (
	notifySpec struct {
		At      Pos
		Name    text   `yaml:"name" need:"true" doc:"What metrics and logs call it."`
		On      []text `yaml:"on" need:"true" enum:"change.proposed,change.approved,change.rejected,change.in-force,change.rolled-back,rollout.step,revocation,break-glass" doc:"What it is told of."`
		Webhook struct {
			At    Pos
			URL   text `yaml:"url" need:"true" doc:"https://HOST…, which gets a POST (docs/reference/notifications.md). Whoever reads the bundle reads it: it is no place for a secret."`
			Roots text `yaml:"roots" doc:"PEM of the CAs that may vouch for its certificate, instead of the machine's own."`
		} `yaml:"webhook" doc:"Told by HTTPS. Either this or mail."`
		Mail struct {
			At Pos
			To []text `yaml:"to" need:"true" doc:"Addresses, 64 at most, each NAME@DOMAIN and nothing else."`
		} `yaml:"mail" doc:"Told by mail, with the command that the server's own configuration names."`
	}
)

// Notify is who is told of what. It is shared: don't change what it refers to.
type Notify struct {
	Name  string
	On    []Topic // in the order of Topics
	URL   string  // of a webhook; empty: mail
	Roots []*x509.Certificate
	To    []string // of a mail
}

// Wants reports whether it is to be told of the topic.
func (n *Notify) Wants(t Topic) bool { return slices.Contains(n.On, t) }

// A command is not among it: whoever gets a bundle approved would run it on the server.
func (c *compiler) notify(s *environmentSpec) {
	e := &c.program.environment
	e.Notify = nil
	for i := range s.Notify {
		x := &s.Notify[i]
		if i == maxTargets {
			c.found.add(x.At, "there are more than %d targets", maxTargets)
			return
		}
		n := Notify{Name: x.Name.value}
		if !validName(n.Name) {
			c.found.add(x.Name.at, "the name %q must be 1 to 63 of a-z, 0-9, '-' and '.', and begin with a letter or digit", n.Name)
		}
		if slices.ContainsFunc(e.Notify, func(o Notify) bool { return o.Name == n.Name }) {
			c.found.add(x.Name.at, "the target %q is here twice", n.Name)
		}
		n.On = c.topics(x)
		c.webhook(x, &n)
		c.mail(x, &n)
		switch webhook, mail := x.Webhook.At != (Pos{}), x.Mail.At != (Pos{}); {
		case webhook && mail:
			c.found.add(x.At, "a target is a webhook or a mail, not both: make two of it")
		case !webhook && !mail:
			c.found.add(x.At, "it has neither \"webhook\" nor \"mail\", so nobody would be told")
		}
		e.Notify = append(e.Notify, n)
	}
}

func (c *compiler) topics(x *notifySpec) []Topic {
	names := make([]string, len(Topics))
	for i, t := range Topics {
		names[i] = string(t)
	}
	given := map[string]bool{}
	for _, t := range x.On {
		if given[t.value] {
			c.found.add(t.at, "%q is here twice", t.value)
		}
		if c.oneOf(t, "on", names...) != "" {
			given[t.value] = true
		}
	}
	if len(x.On) == 0 {
		c.found.add(x.At, "\"on\" is empty, so nothing would be told")
	}
	var out []Topic
	for _, t := range Topics {
		if given[string(t)] {
			out = append(out, t)
		}
	}
	return out
}

func (c *compiler) webhook(x *notifySpec, n *Notify) {
	if t := x.Webhook.URL; t.set {
		n.URL = t.value
		if err := spiffe.ValidEndpoint(n.URL); err != nil {
			c.found.add(t.at, "the webhook's url: %v", err)
		}
	}
	if t := x.Webhook.Roots; t.set {
		roots, err := authority.Parse([]byte(t.value))
		if err != nil {
			c.found.add(t.at, "the webhook's roots: %v", err)
		}
		n.Roots = roots
	}
}

func (c *compiler) mail(x *notifySpec, n *Notify) {
	if x.Mail.At != (Pos{}) && len(x.Mail.To) == 0 {
		c.found.add(x.Mail.At, "\"to\" is empty, so nobody would be told")
	}
	for i, t := range x.Mail.To {
		switch {
		case i == maxAddresses:
			c.found.add(t.at, "\"to\" has more than %d addresses", maxAddresses)
			return
		case !validAddress(t.value):
			c.found.add(t.at, "%q is not an address NAME@DOMAIN: letters, digits and .!#$%%&'*+/=?^_`{|}~- before the '@'", t.value)
		case slices.Contains(n.To, t.value):
			c.found.add(t.at, "%q is here twice", t.value)
		default:
			n.To = append(n.To, t.value)
		}
	}
}

// validAddress knows the dot-atom form only (RFC 5322 §3.4.1): no quotes, comments, spaces, or names beside it, which headers and mail
// programs read in many ways. It doesn't begin with '-', which a program could take for an option.
func validAddress(s string) bool {
	local, domain, ok := strings.Cut(s, "@")
	if !ok || len(s) > maxAddress || len(local) > maxLocalPart || strings.HasPrefix(local, "-") {
		return false
	}
	for atom := range strings.SplitSeq(local, ".") {
		if atom == "" || strings.ContainsFunc(atom, func(r rune) bool { return !alphanumeric(r) && !strings.ContainsRune("!#$%&'*+/=?^_`{|}~-", r) }) {
			return false
		}
	}
	for label := range strings.SplitSeq(domain, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, func(r rune) bool { return !alphanumeric(r) && r != '-' }) {
			return false
		}
	}
	return true
}

func alphanumeric(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
}
