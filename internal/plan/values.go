package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/release"
)

func number(name string, n int, s sense) value {
	x := int64(n)
	return value{name: name, sense: s, set: []string{strconv.Itoa(n)}, number: &x}
}

func period(name string, d time.Duration, s sense) value {
	if d == 0 {
		return value{name: name, sense: s}
	}
	x := int64(d)
	return value{name: name, sense: s, set: []string{d.String()}, number: &x}
}

func one(name, s string, how sense) value {
	if s == "" {
		return value{name: name, sense: how}
	}
	return value{name: name, sense: how, set: []string{s}}
}

func many(name string, list []string, how sense) value {
	list = slices.Clone(list)
	slices.Sort(list)
	return value{name: name, sense: how, set: list}
}

// quietly marks what is not security-sensitive.
func quietly(v value) value {
	v.quiet = true
	return v
}

// settings are all settings of an environment that have a meaning; a test holds them against policy.Environment.
func settings(e *policy.Environment) []value {
	return []value{
		one("name", e.Name, neither),
		one("class", string(e.Class), neither),
		number("approvals.required", e.Approvals, lessWider),
		one("approvals.keys", hardware(e.Hardware), lessWider),
		many("approvals.acts", acts(e), lessWider),
		period("sessions.node", e.Sessions.Node, moreWider),
		period("sessions.workload", e.Sessions.Workload, moreWider),
		period("sessions.operator", e.Sessions.Operator, moreWider),
		quietly(period("leases.default", e.Leases.Default, moreWider)),
		period("leases.max", e.Leases.Max, moreWider),
		number("revocation.blastLimit", e.BlastLimit, moreWider),
		number("breakGlass.openings", e.BreakGlass.Openings, moreWider), number("breakGlass.alarm", e.BreakGlass.Alarm, moreWider),
		quietly(number("limits.secrets", e.Limits.Secrets, moreWider)),
		quietly(number("limits.versionsPerSecret", e.Limits.VersionsPerSecret, moreWider)),
		quietly(number("limits.valueBytes", e.Limits.ValueBytes, moreWider)),
		period("nodes.lifetime", e.NodeLifetime, moreWider),
		many("agents.signers", fingerprints(e.Agents.Signers), moreWider),
		minimum(e.Agents.Minimum),
		required(e.Agents.Require),
		one("agents.rollback", e.Agents.Rollback, neither),
		quietly(period("spiffe.refreshHint", e.SPIFFE.RefreshHint, neither)),
		one("spiffe.jwt.issuer", e.SPIFFE.Issuer, neither),
		period("spiffe.jwt.ttl", e.SPIFFE.TokenTTL, moreWider),
		one("spiffe.jwt.algorithm", e.SPIFFE.Algorithm, neither),
		period("spiffe.jwt.rotate", e.SPIFFE.Rotate, moreWider),
		audiences(e.SPIFFE.Audiences()),
		many("notify", notified(e.Notify), neither),
		number("recovery.required", e.Recovery.Required, neither), // none at all is the least that can be done
		period("recovery.delay", e.Recovery.Delay, lessWider),
		many("recovery.keys", recoverers(e.Recovery.Keys), moreWider),
	}
}

// notified are who is told of what. Others who are told, or who are told no more, are neither wider nor narrower, and never of no account.
func notified(targets []policy.Notify) []string {
	out := make([]string, len(targets))
	for i, n := range targets {
		where := strings.Join(n.To, " ")
		if n.URL != "" {
			where = n.URL
		}
		if len(n.Roots) > 0 {
			h := sha256.New()
			for _, c := range n.Roots {
				h.Write(c.Raw)
			}
			where += " roots sha256:" + hex.EncodeToString(h.Sum(nil))
		}
		on := make([]string, len(n.On))
		for i, t := range n.On {
			on[i] = string(t)
		}
		out[i] = n.Name + ": " + strings.Join(on, ", ") + ": " + where
	}
	return out
}

// hardware is "" where any key counts.
func hardware(only bool) string {
	if only {
		return "hardware"
	}
	return ""
}

// acts are those that take more than all do.
func acts(e *policy.Environment) []string {
	var out []string
	for _, a := range policy.Acts {
		if n := e.Needs(a.Name); n.Approvals > max(e.Approvals, 1) || n.Hardware != e.Hardware || n.Delay > 0 {
			text := strings.TrimSpace(fmt.Sprintf("%s: %d %s", a.Name, n.Approvals, hardware(n.Hardware)))
			if n.Delay > 0 {
				text += " after " + n.Delay.String()
			}
			out = append(out, text)
		}
	}
	return out
}

// recoverers are who may replace the operators, and by which keys.
func recoverers(keys []policy.RecoveryKey) []string {
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = k.Person + " " + k.Fingerprint
	}
	return out
}

func fingerprints(keys []policy.OperatorKey) []string {
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = k.Fingerprint
	}
	return out
}

func minimum(v release.Version) value {
	out := value{name: "agents.minimum", sense: lessWider, version: &v}
	if !v.IsZero() {
		out.set = []string{v.String()}
	}
	return out
}

func required(l release.Level) value {
	n := int64(slices.Index([]release.Level{release.LevelAny, release.LevelSigned, release.LevelMeasured}, l))
	return value{name: "agents.require", sense: lessWider, set: []string{l.String()}, number: &n}
}

// audiences: none is any.
func audiences(list []string) value {
	if len(list) == 0 {
		return value{name: "spiffe.jwt.audiences", sense: neither, set: []string{"any"}}
	}
	return many("spiffe.jwt.audiences", list, moreWider)
}

// settingsOf makes each setting a record of its own, so that each is named.
func settingsOf(p *policy.Program) []record {
	e := p.Environment()
	var out []record
	for _, v := range settings(&e) {
		out = append(out, record{section: Settings, key: v.name, name: v.name, fields: []value{v}, appears: Other})
	}
	return out
}

func personsOf(p *policy.Program) []record {
	var out []record
	for _, o := range p.Operators() {
		duties := make([]string, len(o.Duties))
		for i, d := range o.Duties {
			duties[i] = string(d)
		}
		out = append(out, record{
			section: Persons, key: o.Name, name: o.Name, appears: Wider,
			fields: []value{many("keys", fingerprints(o.Keys), moreWider), many("duties", duties, moreWider)},
		})
	}
	return out
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func authoritiesOf(p *policy.Program) []record {
	var out []record
	for _, a := range p.Authorities("") {
		var roots, ssh, hosts, endorsed, pcrs, references, keys []string
		for _, c := range a.Certificates {
			roots = append(roots, digest(c.Raw))
		}
		for _, k := range a.SSHKeys {
			ssh = append(ssh, digest(k.Marshal()))
		}
		for _, h := range a.Hosts {
			hosts = append(hosts, h.Name+" "+digest(h.Key.Marshal()))
		}
		for _, k := range a.EndorsementKeys {
			endorsed = append(endorsed, "sha256:"+hex.EncodeToString(k[:]))
		}
		for _, n := range a.PCRs {
			pcrs = append(pcrs, strconv.Itoa(n))
		}
		for _, r := range a.References {
			references = append(references, reference(r))
		}
		if a.Keys != nil {
			for _, k := range a.Keys.Keys {
				text, err := k.MarshalJSON()
				if err != nil {
					text = fmt.Append(nil, k.KeyID)
				}
				keys = append(keys, strings.TrimSpace(k.KeyID+" "+digest(text)))
			}
		}
		if len(keys) == 0 && a.Issuer != "" {
			keys = []string{"fetched"} // pinned in place of it, or the other way, they trust somebody else
		}
		out = append(out, record{
			section: Authorities, key: a.Name, name: a.Name, appears: Wider,
			fields: []value{
				one("method", a.Method, neither), many("roots", roots, moreWider), many("sshKeys", ssh, moreWider), many("hosts", hosts, moreWider),
				one("issuer", a.Issuer, neither), one("keysURL", a.KeysURL, neither), many("keys", keys, moreWider),
				many("endorsementKeys", endorsed, moreWider), many("pcrs", pcrs, lessWider), many("references", references, moreWider),
				period("maxAge", a.MaxAge, moreWider),
			},
		})
	}
	return out
}

// reference names a set of reference values by all that it says.
func reference(r authority.Reference) string {
	var b strings.Builder
	for n := range 24 {
		for _, v := range r.PCRs[n] {
			fmt.Fprintf(&b, "pcr %d %x\n", n, v)
		}
	}
	fmt.Fprintf(&b, "events %x\nsigners %x\n%s %s", r.Events, r.Signers, r.From, r.Until)
	return r.Name + " " + r.Version + " " + digest([]byte(b.String()))
}

func federationsOf(p *policy.Program) []record {
	var out []record
	for _, f := range p.Federations() {
		var roots []string
		for _, c := range f.Roots {
			roots = append(roots, digest(c.Raw))
		}
		pinned := ""
		if len(f.Pinned) > 0 {
			pinned = digest(f.Pinned)
		}
		out = append(out, record{
			section: Federations, key: f.Name, name: f.Name, appears: Wider,
			fields: []value{
				one("trustDomain", f.TrustDomain, neither), one("endpoint.url", f.URL, neither), one("endpoint.profile", f.Profile, neither),
				one("endpoint.id", f.EndpointID, neither), one("endpoint.serverName", f.ServerName, neither), many("endpoint.roots", roots, neither),
				one("bundle", pinned, neither),
			},
		})
	}
	return out
}

// rolloutsOf are how bundles come into force: steps count in their order.
func rolloutsOf(p *policy.Program) []record {
	var out []record
	for _, r := range p.Rollouts() {
		var steps, triggers []string
		for i, x := range r.Steps {
			steps = append(steps, fmt.Sprintf("%d: %s for %s", i+1, x.Stage, x.For))
			if x.Share > 0 {
				steps[i] += fmt.Sprintf(", %d%%", x.Share)
			}
			if x.Asked > 0 {
				steps[i] += fmt.Sprintf(", of whom %d must ask", x.Asked)
			}
			if len(x.Cohort) > 0 {
				steps[i] += ", " + strings.Join(names(x.Cohort), " ")
			}
		}
		for _, x := range r.Triggers {
			triggers = append(triggers, fmt.Sprintf("%s: %d sources, %d%%, served within %s", x.On, x.Sources, x.Share, x.Served))
		}
		out = append(out, record{
			section: Rollouts, key: r.Name, name: r.Name, appears: Other,
			fields: []value{{name: "steps", set: steps}, period("watch", r.Watch, lessWider), many("triggers", triggers, lessWider)},
		})
	}
	return out
}

// secretsOf are the patterns that either bundle declares, with the declaration that governs each in this one: a secret that is no longer
// declared by itself may be one of a family.
func secretsOf(p, other *policy.Program) []record {
	var out []record
	seen := map[identity.Pattern]bool{}
	for _, from := range []*policy.Program{p, other} {
		for _, declared := range from.Secrets() {
			if seen[declared.Pattern] {
				continue
			}
			seen[declared.Pattern] = true
			name := declared.Pattern.String()
			s, ok := p.Secret(name)
			if !ok {
				continue
			}
			recipe := s.Recipe.Name
			if s.Recipe.Length > 0 {
				recipe += " " + strconv.Itoa(s.Recipe.Length)
			}
			out = append(out, record{
				section: Secrets, key: name, name: name, appears: Wider,
				fields: []value{
					quietly(one("type", s.Type, neither)), one("generate", recipe, neither), quietly(number("maxBytes", s.MaxBytes, moreWider)),
					period("retain", s.Retain, moreWider), quietly(period("lease.ttl", s.Lease.Default, moreWider)), period("lease.max", s.Lease.Max, neither),
				},
			})
		}
	}
	return out
}
