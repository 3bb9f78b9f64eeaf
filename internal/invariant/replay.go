package invariant

import (
	"bytes"
	"errors"
	"fmt"
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
	var a, b bytes.Buffer
	if err := errors.Join(r.s.Snapshot(&a), inForce.Snapshot(&b)); err != nil {
		return []Violation{{Replayable, at, err.Error()}}
	}
	if bytes.Equal(a.Bytes(), b.Bytes()) {
		return nil
	}
	return []Violation{{Replayable, at, "the state in force is not what the entries give: " + firstDifference(a.Bytes(), b.Bytes())}}
}

// firstDifference names the table and line, not the contents.
func firstDifference(a, b []byte) string {
	table := "head"
	for line := 1; ; line++ {
		x, restA, okA := bytes.Cut(a, []byte{'\n'})
		y, restB, okB := bytes.Cut(b, []byte{'\n'})
		if bytes.HasPrefix(x, []byte(`{"table":`)) {
			table = string(x)
		}
		if !bytes.Equal(x, y) || okA != okB || !okA {
			return fmt.Sprintf("line %d of the snapshot, in %s", line, table)
		}
		a, b = restA, restB
	}
}

func rootOf(s *state.State) (state.Digest, error) {
	var b bytes.Buffer
	if err := s.Snapshot(&b); err != nil {
		return state.Digest{}, err
	}
	return state.RootOf(b.Bytes()), nil
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
