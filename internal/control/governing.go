package control

import (
	"context"
	"sync"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// governor is what decides about somebody: the bundle in force, or in a canary the candidate.
type governor struct {
	prog   *policy.Program
	bundle state.Digest
	cohort string
}

// governing is the governor of an identity. It is false if a bundle is not compiled: prepare again.
func (e *Environment) governing(s *state.State, path string) (governor, bool) {
	bundle, cohort := s.Governs(path)
	prog, ok := e.programs.get(bundle)
	return governor{prog, bundle, cohort}, ok
}

// unusable is the refusal of what only a bundle could decide that this release can't compile: a candidate of a rollout, by an older
// release that looked less closely. Nothing else waits for it, its rollback least of all.
func (g governor) unusable() *problem.Problem {
	if g.prog != nil {
		return nil
	}
	return problem.New(problem.ReasonStore, "the candidate %s, which governs this identity, can't be compiled by this release", g.bundle).
		WithFix("roll its change back: `bailment change rollback`")
}

// governingNow is the same for questions, which may compile.
func (e *Environment) governingNow(ctx context.Context, s *state.State, path string) (governor, error) {
	bundle, cohort := s.Governs(path)
	if err := e.load(ctx, s); err != nil {
		return governor{}, err
	}
	by, ok := e.governing(s, path)
	if !ok {
		prog, err := e.program(ctx, bundle)
		return governor{prog, bundle, cohort}, err
	}
	if p := by.unusable(); p != nil {
		return by, p
	}
	return by, nil
}

// bundlesOf are those that a decision at this state may need.
func bundlesOf(s *state.State) []state.Digest {
	out := []state.Digest{s.Bundle}
	if r := s.Rollout(s.Time); r != nil {
		out = append(out, r.Manifest, r.Base)
	}
	if r := s.Recovery(); r != nil {
		out = append(out, r.Manifest) // whose operators nobody may lock out: see lastQuorum
	}
	return out
}

// load compiles what decisions at this state may need.
func (e *Environment) load(ctx context.Context, s *state.State) error {
	for _, d := range bundlesOf(s) {
		if _, ok := e.programs.get(d); ok {
			continue
		}
		_, err := e.program(ctx, d)
		switch {
		case err == nil:
		case d == s.Bundle, problem.Is(err, problem.ReasonStore), ctx.Err() != nil:
			return err
		default:
			e.logger.Error("a bundle that is to be in force can't be compiled", "bundle", d, "err", err)
			e.programs.put(d, nil, bundlesOf(s))
		}
	}
	return nil
}

// beside is what the other bundle of a rollout says to a decision.
type beside struct {
	compared bool
	loses    bool // what the other one allows, and it is the one before: no shadow's candidate
	differs  *state.Difference
}

// compare decides once more, by the other bundle of a rollout if there is one for this identity.
func (t *turn) compare(x *state.Session, action policy.Action, secret, purpose string, d policy.Decision, p *problem.Problem) (beside, error) {
	other := t.s.Beside(x.Identity, t.now)
	if other.IsZero() {
		return beside{}, nil
	}
	prog, ok := t.e.programs.get(other)
	if !ok {
		return beside{}, errStale
	}
	if prog == nil {
		return beside{}, nil // it can't be compiled: there is nothing to compare with
	}
	d2, p2 := decidePermit(t.s, governor{prog: prog, bundle: other}, t.e.claims, x, action, secret, purpose, t.now)
	out := beside{compared: true, loses: p != nil && p2 == nil && t.s.Rollout(t.now).Stage() != policy.StageShadow}
	if (p == nil) == (p2 == nil) {
		return out, nil
	}
	refusal, by := p, d
	if p == nil {
		refusal, by = p2, d2
	}
	out.differs = &state.Difference{
		Identity: x.Identity, Node: x.Node, Action: string(action), Secret: limitText(secret), Purpose: limitText(purpose), Allowed: p == nil,
		Reason: string(refusal.Reason), Grant: by.Grant, Undecided: by.Undecided, Count: 1,
	}
	if sec, ok := t.s.Secrets.Get(secret); ok && action == policy.ReadSecret {
		out.differs.Version = sec.Current
	}
	return out, nil
}

// differences gathers what the bundle beside the governing one would have decided otherwise, until it is entered: by minute, in bounded
// memory.
type differences struct {
	mu sync.Mutex
	m  map[differenceMinute]*differenceSum
}

type differenceMinute struct {
	change uint64
	minute int64
}

type differenceSum struct {
	compared, others uint64
	rows             map[state.Difference]uint64 // Count is 0 in the keys
	of               map[string]int              // rows of a source
}

const (
	// differenceRows is how many distinct differences of a minute are entered, in as many entries as that takes.
	differenceRows = 1024
	// differenceRowsOfSource is how many of them are of one machine or repository, as a trigger counts them: one that asks for all sorts of
	// things must not keep what the others lose from being entered.
	differenceRowsOfSource = 8
	// differenceMinutes is how many minutes wait at most, if the store fails.
	differenceMinutes = 8
	// differenceBytes is how many bytes of them are in one entry, with room for the rest of it.
	differenceBytes = state.MaxBody - 4<<10
)

func (d *differences) add(change uint64, minute int64, b beside) {
	d.mu.Lock()
	defer d.mu.Unlock()
	sum := d.sum(change, minute)
	if sum == nil {
		return
	}
	sum.compared++
	if b.differs != nil {
		row := *b.differs
		row.Count = 0
		sum.add(row, 1)
	}
}

// sum is that of a minute; nil: too many wait. Its caller has the lock.
func (d *differences) sum(change uint64, minute int64) *differenceSum {
	k := differenceMinute{change, minute}
	sum := d.m[k]
	if sum == nil {
		if d.m == nil {
			d.m = make(map[differenceMinute]*differenceSum)
		}
		if len(d.m) >= differenceMinutes {
			return nil
		}
		sum = &differenceSum{rows: make(map[state.Difference]uint64), of: make(map[string]int)}
		d.m[k] = sum
	}
	return sum
}

// add counts a difference n times.
func (s *differenceSum) add(row state.Difference, n uint64) {
	if _, known := s.rows[row]; !known {
		source := policy.SourceOf(row.Identity, row.Node)
		if len(s.rows) >= differenceRows || s.of[source] >= differenceRowsOfSource {
			s.others += n
			return
		}
		s.of[source]++
	}
	s.rows[row] += n
}
