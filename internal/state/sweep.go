package state

import (
	"encoding/binary"
)

// What is kept after its end, so that the answer can be "expired" rather than "unknown".
const (
	keepSession  = 60 * 60 * 1000
	keepLease    = 10 * 60 * 1000
	keepToken    = 24 * 60 * 60 * 1000
	keepKey      = 24 * 60 * 60 * 1000
	keepIdentity = 30 * 24 * 60 * 60 * 1000
	keepChange   = 30 * 24 * 60 * 60 * 1000
	idemLifetime = 60 * 60 * 1000
	// provisionalMemory is for how long a provisional hold counts against who set it.
	provisionalMemory = 24 * 60 * 60 * 1000
)

// sweepPerEntry bounds the work that one entry does for the past. It is more than an entry can
// create, so the backlog shrinks.
const sweepPerEntry = 16

type queueKind byte

const (
	qSession  queueKind = 's'
	qLease    queueKind = 'l'
	qIdem     queueKind = 'i'
	qOnce     queueKind = 'o'
	qKey      queueKind = 'k'
	qDenial   queueKind = 'd'
	qToken    queueKind = 't'
	qIdentity queueKind = 'n'
	qChange   queueKind = 'c'
	qHold     queueKind = 'h'
	qUse      queueKind = 'u'
	qServed   queueKind = 'v'
	qReviewed queueKind = 'w'
	qGlass    queueKind = 'g'
)

func queueKey(at Millis, kind queueKind, key string) string {
	b := make([]byte, 9, 9+len(key))
	binary.BigEndian.PutUint64(b, uint64(at))
	b[8] = byte(kind)
	return string(append(b, key...))
}

func indexKey(i uint64) string {
	return string(binary.BigEndian.AppendUint64(nil, i))
}

// enqueue says when to look at a row. There is one queue row for each: when it comes up and the
// row lives on, it is put back, so renewals cost nothing here.
func (s *State) enqueue(at Millis, kind queueKind, key string) {
	s.queue.set(queueKey(at, kind, key), struct{}{})
}

// sweep removes rows that are over by now.
func (s *State) sweep(now Millis) {
	for range sweepPerEntry {
		first, _, ok := s.queue.m.Min()
		if !ok || Millis(binary.BigEndian.Uint64([]byte(first[:8]))) > now {
			return
		}
		s.queue.del(first)
		kind, key := queueKind(first[8]), first[9:]
		if due := s.due(kind, key, now); due > now {
			s.enqueue(due, kind, key)
		} else if due >= 0 {
			s.remove(kind, key)
		}
	}
}

// due is when the row may go, as far as is known now; -1 if it is gone already.
func (s *State) due(kind queueKind, key string, now Millis) Millis {
	switch kind {
	case qSession:
		if x, ok := s.Sessions.Get(indexOf(key)); ok {
			return x.Expires + keepSession
		}
	case qLease:
		if x, ok := s.Leases.Get(indexOf(key)); ok {
			return x.Expires + keepLease
		}
	case qIdem:
		if x, ok := s.Idem.Get(key); ok {
			return x.Expires
		}
	case qOnce:
		if x, ok := s.Once.Get(key); ok {
			return x
		}
	case qKey:
		if x, ok := s.SeenKeys.Get(key); ok {
			return x.Until
		}
	case qDenial:
		if x, ok := s.Denials.Get(key); ok {
			return Millis(x.Minute+2) * 60_000
		}
	case qToken:
		if x, ok := s.Tokens.Get(key); ok {
			return x.Expires + keepToken
		}
	case qIdentity:
		if x, ok := s.Identities.Get(key); ok {
			return max(x.Last, x.Lifetime) + keepIdentity
		}
	case qChange:
		if x, ok := s.Changes.Get(indexOf(key)); ok {
			return max(x.Expires, x.Ends(), s.rolledUntil(x.Index, now)) + keepChange
		}
	case qHold:
		if x, ok := s.Holds.Get(key); ok && x.Until != 0 {
			return x.Until
		}
	case qUse:
		if x, ok := s.Uses.Get(key); ok && x.Until != 0 {
			return x.Until
		}
	case qServed:
		if x, ok := s.Served.Get(key); ok {
			return x.Last + keepServed
		}
	case qReviewed:
		if x, ok := s.Reviewed.Get(key); ok {
			return x.Time + keepReviewed
		}
	case qGlass:
		if x, ok := s.Glass.Get(indexOf(key)); ok {
			if x.Reviewed == 0 { // it waits, however long
				return now + keepGlass
			}
			return x.Opened + keepGlass
		}
	}
	return -1
}

func (s *State) remove(kind queueKind, key string) {
	switch kind {
	case qSession:
		s.Sessions.del(indexOf(key))
	case qLease:
		s.dropLease(indexOf(key))
	case qIdem:
		s.Idem.del(key)
		owner := idemOwner(key)
		if n, _ := s.IdemCount.Get(owner); n > 1 {
			s.IdemCount.set(owner, n-1)
		} else {
			s.IdemCount.del(owner)
		}
	case qOnce:
		s.Once.del(key)
	case qKey:
		s.SeenKeys.del(key)
	case qDenial:
		s.Denials.del(key)
	case qToken:
		s.Tokens.del(key)
	case qIdentity:
		s.Identities.del(key)
	case qChange:
		s.Changes.del(indexOf(key))
	case qHold:
		s.Holds.del(key)
	case qUse:
		s.Uses.del(key)
	case qServed:
		s.Served.del(key)
	case qReviewed:
		s.Reviewed.del(key)
	case qGlass:
		s.Glass.del(indexOf(key))
	}
}

func indexOf(key string) uint64 { return binary.BigEndian.Uint64([]byte(key)) }

func (s *State) dropLease(id uint64) {
	l, ok := s.Leases.Get(id)
	if !ok {
		return
	}
	s.Leases.del(id)
	k := LeaseKey(l.Identity, l.Node, l.Secret, l.Version, l.Purpose)
	if newest, _ := s.LeaseOf.Get(k); newest == id {
		s.LeaseOf.del(k)
	}
}
