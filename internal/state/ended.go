package state

import (
	"fmt"

	"github.com/bailment/bailment/internal/policy"
)

// EnvironmentEnded is the last entry of a ledger. With it all that was secret is removed from the store: sealed values, and the wrapped
// private half of every key. What proves things is public, and stays.
type EnvironmentEnded struct {
	Environment string      `json:"environment"`
	Genesis     Digest      `json:"genesis"`
	Change      uint64      `json:"change"`
	Reason      string      `json:"reason,omitempty"`
	Values      int         `json:"values"` // versions that were not destroyed before
	Keys        []EndedKeys `json:"keys"`   // whose private halves are gone, by kind
	Actor       Actor       `json:"actor"`
	Ruling      Ruling      `json:"ruling"`
}

// EndedKeys are the keys 1 to Last of a kind.
type EndedKeys struct {
	Kind string `json:"kind"`
	Last uint32 `json:"last"`
}

// Kind is environment.ended v1.
func (*EnvironmentEnded) Kind() Kind { return Kind{"environment.ended", 1} }

// EndTarget is the target of a change that ends an environment: its name and its identity, so that nobody ends another one of that name.
func EndTarget(name string, genesis Digest) string { return name + "#" + genesis.String() }

// Left is what ending the environment would remove: the versions that are not destroyed, and the keys by kind.
func (s *State) Left() (values int, keys []EndedKeys) {
	s.Secrets.All(func(_ string, x *Secret) bool {
		for _, v := range x.Versions {
			if v.State != Destroyed {
				values++
			}
		}
		return true
	})
	last := map[string]uint32{"mac": 1} // the one that never was in the ledger
	kinds := []string{}
	s.Keys.All(func(name string, _ *PublicKey) bool {
		kind, n, err := ParseKeyName(name)
		if err != nil {
			return true
		}
		if last[kind] == 0 {
			kinds = append(kinds, kind) // names are in order, and so are kinds
		}
		last[kind] = max(last[kind], n)
		return true
	})
	for _, kind := range append(kinds, "mac") {
		keys = append(keys, EndedKeys{kind, last[kind]})
	}
	return values, keys
}

func (e *EnvironmentEnded) apply(s *State, m Meta) error {
	if err := s.needs(protocolRollout); err != nil {
		return err
	}
	if e.Environment != s.Env.Name || e.Genesis != s.Env.Genesis {
		return fmt.Errorf("it ends %s, and this is %s", EndTarget(e.Environment, e.Genesis), EndTarget(s.Env.Name, s.Env.Genesis))
	}
	values, keys := s.Left()
	if e.Values != values || !sameKeys(e.Keys, keys) {
		return fmt.Errorf("it says that %d values and the keys %v are gone, of %d and %v", e.Values, e.Keys, values, keys)
	}
	if err := s.carryOut(e.Change, policy.ActDeleteEnvironment, EndTarget(e.Environment, e.Genesis), m); err != nil {
		return err
	}
	s.clear()
	s.Ended, s.Control = m.Index, m.Index
	return nil
}

func sameKeys(a, b []EndedKeys) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// clear drops what lives on time: nothing of it can be asked for any more. Secrets, changes, keys and bundles stay, as history.
func (s *State) clear() {
	n := New()
	s.Sessions, s.Leases, s.LeaseOf, s.Tokens, s.Holds = n.Sessions, n.Leases, n.LeaseOf, n.Tokens, n.Holds
	s.Idem, s.IdemCount, s.Once, s.Denials, s.queue = n.Idem, n.IdemCount, n.Once, n.Denials, n.queue
	s.rollouts, s.sources, s.recoveries = n.rollouts, n.sources, n.recoveries
	var open []*Change
	s.Changes.All(func(_ uint64, c *Change) bool {
		if c.Open() || c.State == Shadow || c.State == Canary {
			open = append(open, c)
		}
		return true
	})
	for _, c := range open {
		s.setChange(c, Superseded)
	}
	var paths []string
	s.Secrets.All(func(path string, _ *Secret) bool { paths = append(paths, path); return true })
	for _, path := range paths {
		old, _ := s.Secrets.Get(path)
		sec := *old
		sec.Current, sec.Versions = 0, make([]*Version, len(old.Versions))
		for i, v := range old.Versions {
			gone := *v
			gone.State, gone.Until = Destroyed, 0
			sec.Versions[i] = &gone
		}
		s.Secrets.set(path, &sec)
	}
}
