package invariant

import (
	"container/heap"
	"strings"

	"github.com/bailment/bailment/internal/state"
)

// The model forgets what no rule asks about any more, as the state does, so that a long history takes no more memory than what lives.

// dueRow is a row to look at when its time has come.
type dueRow struct {
	at   state.Millis
	kind byte
	n    uint64
	s    string
}

type dueQueue []dueRow

func (q dueQueue) Len() int           { return len(q) }
func (q dueQueue) Less(i, j int) bool { return q[i].at < q[j].at }
func (q dueQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *dueQueue) Push(x any)        { *q = append(*q, x.(dueRow)) }
func (q *dueQueue) Pop() any {
	old := *q
	x := old[len(old)-1]
	old[len(old)-1] = dueRow{}
	*q = old[:len(old)-1]
	return x
}

func (m *model) later(at state.Millis, kind byte, n uint64, s string) {
	heap.Push(&m.due, dueRow{at, kind, n, s})
}

// prune drops what is over by now. What lives on is put back.
func (m *model) prune(now state.Millis) {
	for len(m.due) > 0 && m.due[0].at <= now {
		d := heap.Pop(&m.due).(dueRow)
		if until, kept := m.drop(d, now); kept {
			m.later(until, d.kind, d.n, d.s)
		}
	}
}

// drop removes a row that is over, or says until when it lives.
func (m *model) drop(d dueRow, now state.Millis) (state.Millis, bool) {
	switch d.kind {
	case 's':
		delete(m.sessions, d.n)
	case 'l':
		if l := m.leases[d.n]; l != nil && l.expires+afterLease > now {
			return l.expires + afterLease, true
		}
		delete(m.leases, d.n)
	case 'e':
		if x := m.enrolments[d.s]; x != nil {
			if until := max(x.last, x.lifetime) + afterEnrolment; until > now {
				return until, true
			}
		}
		delete(m.enrolments, d.s)
	case 'c':
		if ch := m.changes[d.n]; ch != nil && ch.over == "" && ch.end() > now {
			return ch.end(), true
		} else if ch != nil && ch.over != overInto && ch.over != overShadow && ch.over != overCanary {
			delete(m.changes, d.n)
		}
	case 'v':
		return m.dropUse(d.s, now)
	case 't':
		delete(m.tokens, d.s)
	case 'u':
		if u := m.uses[d.s]; u != nil && u.until != 0 && u.until <= now {
			delete(m.uses, d.s)
		}
	case 'h':
		if h, ok := m.holds[d.s]; ok && h.until != 0 {
			if h.until > now {
				return h.until, true
			}
			delete(m.holds, d.s)
		}
	case 'i':
		if f := m.idem[d.s]; f != nil {
			if f.expires > now {
				return f.expires, true
			}
			delete(m.idem, d.s)
			owner, _, _ := strings.Cut(d.s, "\x00")
			if m.idemCount[owner]--; m.idemCount[owner] <= 0 {
				delete(m.idemCount, owner)
			}
		}
	case 'p':
		who, scope, _ := strings.Cut(d.s, "\x00")
		if until := m.stopped[who][scope]; until > now {
			return until, true
		}
		if delete(m.stopped[who], scope); len(m.stopped[who]) == 0 {
			delete(m.stopped, who)
		}
	case 'o':
		if until, ok := m.spent[d.s]; ok && until <= now {
			delete(m.spent, d.s)
		}
	case 'k':
		key := state.Digest([]byte(d.s))
		if o := m.keyOwners[key]; o != nil {
			if o.until > now {
				return o.until, true
			}
			delete(m.keyOwners, key)
		}
	case 'd':
		if x := m.denials[d.s]; x != nil {
			if until := state.Millis(x.minute+1) * minute; until > now {
				return until, true
			}
			delete(m.denials, d.s)
		}
	}
	return 0, false
}
