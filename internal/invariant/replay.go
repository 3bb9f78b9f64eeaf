package invariant

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"maps"
	"slices"

	"github.com/bailment/bailment/internal/state"
)

// Replayer reduces a whole ledger from genesis and compares: the invariant "replayable". It needs as
// much memory as the state itself.
type Replayer struct {
	s     *state.State
	roots map[uint64]state.Digest
	dead  bool // an entry could not be applied
}

// NewReplayer makes one that expects entry 0, and will compare with the state roots that are given by the
// index of the last entry each covers (see Checker.Roots).
func NewReplayer(roots map[uint64]state.Digest) *Replayer {
	return &Replayer{s: state.New(), roots: roots}
}

// Next is the index of the entry that is expected next.
func (r *Replayer) Next() uint64 { return r.s.Next }

// Feed applies the next entry's body, as stored.
func (r *Replayer) Feed(index uint64, body []byte) []Violation {
	if r.dead {
		return nil
	}
	if err := r.s.Apply(index, body, nil); err != nil {
		r.dead = true
		return []Violation{{Replayable, index, err.Error()}}
	}
	if want, ok := r.roots[index]; ok {
		if got, err := rootOf(r.s); err != nil || got != want {
			return []Violation{{Replayable, index, fmt.Sprintf("the state is %s, but the state root entered for it is %s", got, want)}}
		}
	}
	return nil
}

// Compare compares with the state in force, which must be of the same number of entries.
func (r *Replayer) Compare(inForce *state.State) []Violation {
	if r.dead {
		return nil // said already
	}
	at := inForce.Next
	if r.s.Next != at {
		return []Violation{{Replayable, at, fmt.Sprintf("%d entries were replayed, and the state in force is of %d", r.s.Next, at)}}
	}
	a, errA := rootOf(r.s)
	b, errB := rootOf(inForce)
	switch err := errors.Join(errA, errB); {
	case err != nil:
		return []Violation{{Replayable, at, err.Error()}}
	case a == b:
		return nil
	}
	return []Violation{{Replayable, at, "the state in force is not what the entries give: they differ in " + firstDifference(r.s, inForce)}}
}

// rootOf hashes a snapshot while it is written: a state may be too large to have it in memory twice more.
func rootOf(s *state.State) (state.Digest, error) {
	h := sha256.New()
	if err := s.Snapshot(h); err != nil {
		return state.Digest{}, err
	}
	return state.Digest(h.Sum(nil)), nil
}

// outline is a writer that keeps a hash of each line, and where the tables begin.
type outline struct {
	line   []byte
	hashes []uint64
	tables map[int]string
}

func (o *outline) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		part, after, whole := bytes.Cut(rest, []byte{'\n'})
		o.line, rest = append(o.line, part...), after
		if !whole {
			break
		}
		if bytes.HasPrefix(o.line, []byte(`{"table":`)) {
			o.tables[len(o.hashes)] = string(o.line)
		}
		h := fnv.New64a()
		h.Write(o.line)
		o.hashes, o.line = append(o.hashes, h.Sum64()), o.line[:0]
	}
	return len(p), nil
}

// firstDifference names the table and line in which two states differ, and not what stands there.
func firstDifference(a, b *state.State) string {
	x, y := &outline{tables: map[int]string{}}, &outline{tables: map[int]string{}}
	if err := errors.Join(a.Snapshot(x), b.Snapshot(y)); err != nil {
		return err.Error()
	}
	table := "the head"
	for i := 0; i < len(x.hashes) && i < len(y.hashes); i++ {
		if name, ok := x.tables[i]; ok {
			table = name
		}
		if x.hashes[i] != y.hashes[i] {
			return fmt.Sprintf("%s, line %d of the snapshot", table, i+1)
		}
	}
	return "their length"
}

// Replay reduces entries from genesis and compares with the state in force and with the state roots among the
// entries themselves. It is the whole check at once, for offline use and tests.
func Replay(entries iter.Seq2[uint64, []byte], inForce *state.State) []Violation {
	roots := make(map[uint64]state.Digest)
	for _, body := range entries {
		if e, err := state.Decode(body); err == nil {
			if r, ok := e.Event.(*state.StateRootSet); ok {
				roots[r.Index] = r.Root
			}
		}
	}
	r := NewReplayer(roots)
	var out []Violation
	for index, body := range entries {
		out = append(out, r.Feed(index, body)...)
	}
	out = append(out, r.Compare(inForce)...)
	if missed := slices.DeleteFunc(slices.Sorted(maps.Keys(roots)), func(i uint64) bool { return i < r.Next() }); len(missed) > 0 && !r.dead {
		out = append(out, Violation{Replayable, r.Next(), fmt.Sprintf("a state root covers entry %d, which is not there", missed[0])})
	}
	return out
}
