package plan

import (
	"cmp"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

// Limits of a Replayed.
const (
	maxGroups  = 1000
	maxSamples = 5 // of one group
)

// Replayed is what a bundle says of the recorded past.
type Replayed struct {
	Decisions uint64 `json:"decisions"` // that were decided again
	Allowed   uint64 `json:"allowed"`   // then
	Denied    uint64 `json:"denied"`    // then
	// NowAllowed and NowDenied are those that would be decided otherwise.
	NowAllowed uint64    `json:"now_allowed"`
	NowDenied  uint64    `json:"now_denied"`
	First      time.Time `json:"first,omitzero"`
	Last       time.Time `json:"last,omitzero"`
	Groups     []Group   `json:"groups"` // of the differences, the largest first
	Others     uint64    `json:"others"` // differences in groups that are not listed
}

// Group are differences of one kind.
type Group struct {
	Allowed  bool           `json:"allowed"`  // now; then it was the other
	Who      string         `json:"who"`      // an identity, or a family of nodes or jobs
	Identity int            `json:"identity"` // how many different ones, up to 1000
	Secret   string         `json:"secret"`
	Action   policy.Action  `json:"action"`
	Purpose  string         `json:"purpose,omitempty"`
	Then     string         `json:"then,omitempty"` // the grant that decided then
	Now      string         `json:"now,omitempty"`  // the one that would
	Reason   problem.Reason `json:"reason,omitempty"`
	Why      string         `json:"why,omitempty"` // of the first
	Count    uint64         `json:"count"`
	Samples  []Sample       `json:"samples"`
}

// Sample is one of a group.
type Sample struct {
	Index    uint64    `json:"entry"`
	Time     time.Time `json:"time"`
	Identity string    `json:"identity"`
}

type groupKey struct {
	allowed            bool
	who, secret        string
	action             policy.Action
	purpose, then, now string
	reason             problem.Reason
}

// Replay decides recorded questions by a bundle, by the one evaluator. The decisions must all be of grants: a refusal for another reason,
// as a hold, is none.
func Replay(recorded iter.Seq2[policy.Recorded, error], p *policy.Program) (*Replayed, error) {
	out := &Replayed{Groups: []Group{}}
	groups := map[groupKey]*Group{}
	who := map[*Group]map[string]bool{}
	for r, err := range recorded {
		if err != nil {
			return nil, err
		}
		out.Decisions++
		if out.First.IsZero() {
			out.First = r.Time
		}
		out.Last = r.Time
		if r.Allowed {
			out.Allowed++
		} else {
			out.Denied++
		}
		d := p.Again(&r)
		if d.Allow == r.Allowed {
			continue
		}
		if d.Allow {
			out.NowAllowed++
		} else {
			out.NowDenied++
		}
		key := groupKey{d.Allow, familyOf(r.Input.Identity), r.Input.Secret, r.Input.Action, r.Input.Purpose, r.Grant, d.Grant, d.Reason}
		g := groups[key]
		if g == nil {
			if len(groups) == maxGroups {
				out.Others++
				continue
			}
			g = &Group{
				Allowed: d.Allow, Who: key.who, Secret: key.secret, Action: key.action, Purpose: key.purpose,
				Then: r.Grant, Now: d.Grant, Reason: d.Reason, Why: d.Message, Samples: []Sample{},
			}
			groups[key], who[g] = g, map[string]bool{}
		}
		g.Count++
		if seen := who[g]; len(seen) < 1000 {
			seen[r.Input.Identity] = true
			g.Identity = len(seen)
		}
		if len(g.Samples) < maxSamples {
			g.Samples = append(g.Samples, Sample{r.Index, r.Time, r.Input.Identity})
		}
	}
	for _, g := range groups {
		out.Groups = append(out.Groups, *g)
	}
	slices.SortFunc(out.Groups, func(a, b Group) int {
		return cmp.Or(
			cmp.Compare(b.Count, a.Count), strings.Compare(a.Who, b.Who), strings.Compare(a.Secret, b.Secret), strings.Compare(string(a.Action), string(b.Action)),
			strings.Compare(a.Purpose, b.Purpose), strings.Compare(a.Then, b.Then), strings.Compare(a.Now, b.Now), strings.Compare(string(a.Reason), string(b.Reason)),
		)
	})
	return out, nil
}

// familyOf takes machines and jobs together that come in numbers: those of a method, and those of a repository.
func familyOf(path string) string {
	keep := 0
	switch {
	case strings.HasPrefix(path, identity.PrefixNode):
		keep = 2 // node, METHOD
	case strings.HasPrefix(path, identity.PrefixCI):
		keep = 4 // ci, PROVIDER, OWNER, REPOSITORY
	default:
		return path
	}
	segments := strings.Split(path[1:], "/")
	if len(segments) <= keep {
		return path
	}
	return "/" + strings.Join(segments[:keep], "/") + "/*"
}
