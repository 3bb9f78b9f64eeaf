package policy

import (
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
)

// Unlock is something that a secret's value opens for whoever has it. One of the three is set. It is a statement about the world, for
// questions about reach (package reach): no decision looks at it.
type Unlock struct {
	Identity string           // the path of an identity that he can pass for
	System   string           // a system outside, by a name that only these statements know
	Deploy   identity.Pattern // the workloads as which he can have code run
	Source   Pos
}

// maxUnlocks is how much one secret may unlock.
const maxUnlocks = 64

// unlocks reads what secrets unlock, once it is known which identities there are.
func (c *compiler) unlocks() {
	if !slices.ContainsFunc(c.byKind[kindSecret], func(d *document) bool { return len(d.spec.(*secretSpec).Unlocks) > 0 }) {
		return
	}
	workloads := make([]string, 0, len(c.workloads))
	for w := range c.workloads {
		workloads = append(workloads, w)
	}
	slices.Sort(workloads)
	at := make(map[Pos]int, len(c.program.secrets))
	for i, s := range c.program.secrets {
		at[s.Source] = i
	}
	c.each(kindSecret, func(d *document) {
		s := d.spec.(*secretSpec)
		i, ok := at[d.at]
		if len(s.Unlocks) == 0 || !ok {
			return
		}
		if len(s.Unlocks) > maxUnlocks {
			c.found.add(s.Unlocks[maxUnlocks].At, "\"unlocks\" has more than %d entries", maxUnlocks)
			return
		}
		for _, u := range s.Unlocks {
			out, ok := c.unlock(u, workloads)
			if !ok {
				continue
			}
			same := func(x Unlock) bool {
				return x.Identity == out.Identity && x.System == out.System && x.Deploy == out.Deploy
			}
			if slices.ContainsFunc(c.program.secrets[i].Unlocks, same) {
				c.found.add(u.At, "the same is in \"unlocks\" twice")
				continue
			}
			c.program.secrets[i].Unlocks = append(c.program.secrets[i].Unlocks, out)
		}
	})
}

func (c *compiler) unlock(u unlockSpec, workloads []string) (Unlock, bool) {
	given := 0
	for _, t := range []text{u.Identity, u.System, u.Deploy} {
		if t.set {
			given++
		}
	}
	out := Unlock{Identity: u.Identity.value, System: u.System.value, Source: u.At}
	switch {
	case given != 1:
		c.found.add(u.At, "an entry of \"unlocks\" has one of identity, system and deploy")
		return out, false
	case u.System.set:
		if !validName(out.System) {
			c.found.add(u.System.at, "the system %.80q must be 1 to 63 of a-z, 0-9, '-' and '.', and begin with a letter or digit", out.System)
			return out, false
		}
		return out, true
	case u.Identity.set:
		if err := identity.ValidPath(out.Identity); err != nil {
			c.found.add(u.Identity.at, "%v", err)
			return out, false
		}
		if _, human := strings.CutPrefix(out.Identity, identity.PrefixHuman); human && !c.canBe(out.Identity) {
			c.nobody(u.Identity.at, "nobody can be %s: there is no such operator", out.Identity)
			return out, c.accepted
		}
		if !c.canBe(out.Identity) {
			c.found.add(u.Identity.at, "nobody can be %s: no identity rule gives it", out.Identity)
			return out, false
		}
		return out, true
	}
	p, err := identity.ParseIDPattern(u.Deploy.value)
	if err != nil {
		c.found.add(u.Deploy.at, "%v", err)
		return out, false
	}
	prefix, subtree := p.Prefix()
	if path, exact := p.Exact(); exact {
		prefix = path
	}
	_, found := slices.BinarySearch(workloads, prefix)
	if subtree {
		at, _ := slices.BinarySearch(workloads, prefix+"/")
		found = at < len(workloads) && p.Match(workloads[at])
	}
	if !found {
		c.found.add(u.Deploy.at, "no identity rule gives a workload that is %s", p)
		return out, false
	}
	out.Deploy = p
	return out, true
}

// canBe reports whether a rule gives the identity, or an operator has it.
func (c *compiler) canBe(path string) bool {
	if name, human := strings.CutPrefix(path, identity.PrefixHuman); human {
		return !c.humansKnown || c.humans[name]
	}
	return c.workloads[path] || c.nodeCanBe(path)
}

// Within is the narrowest pattern that selects everything that the rule can give and p selects, and whether there is anything.
func (r IdentityRule) Within(p identity.Pattern) (identity.Pattern, bool) {
	whole, exact := p.Exact()
	prefix, subtree := p.Prefix()
	switch {
	case exact:
		prefix = whole
	case !subtree:
		return identity.Pattern{}, false
	}
	fixed, n := strings.Builder{}, 0
	if prefix != "" {
		for segment := range strings.SplitSeq(prefix[1:], "/") {
			if n >= len(r.path) || r.path[n].claim == nil && r.path[n].literal != segment {
				return identity.Pattern{}, false
			}
			fixed.WriteString("/" + segment)
			n++
		}
	}
	if exact {
		return p, n == len(r.path)
	}
	if n == len(r.path) {
		return identity.Pattern{}, false // the subtree's root is not in it
	}
	for n < len(r.path) && r.path[n].claim == nil {
		fixed.WriteString("/" + r.path[n].literal)
		n++
	}
	text := fixed.String()
	if n < len(r.path) {
		text += "/*"
	}
	out, err := identity.ParseIDPattern(text)
	return out, err == nil
}

// MostAssurance is the most that evidence of a method proves, whatever it says; of what is no method it is the highest grade. That of a
// workload is its node's.
func MostAssurance(method string) identity.Assurance {
	most, ok := mostAssurance[method]
	if !ok {
		return identity.Measured
	}
	return most
}

// mostAssurance repeats what the methods say of themselves; their tests hold it to that.
var mostAssurance = map[string]identity.Assurance{
	"join-token": identity.Token, "aws": identity.Token, "k8s": identity.Token, "k8s-job": identity.Token, "gitlab": identity.Token,
	"x509": identity.Key, "sshhost": identity.Key, "azure": identity.Platform, "oidc": identity.Platform, "circleci": identity.Platform,
	"buildkite": identity.Platform, "github": identity.Platform, "gcp": identity.Platform, "sev-snp": identity.Platform,
	"tdx": identity.Platform, "tpm": identity.Measured,
}

// OperatorAssurance is what a person's login proves: possession of a key that the bundle vouches for.
const OperatorAssurance = identity.Key
