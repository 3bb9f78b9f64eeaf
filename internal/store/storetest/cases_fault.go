package storetest

import (
	"bytes"
	"context"
	"errors"
	"math"
	"testing"

	"github.com/bailment/bailment/internal/store"
)

func testCrash(t testing.TB, site Site) {
	s := create(t, site)
	m := newModel(30)
	for i := range 12 {
		m.append(t, s, m.rich(1+i*5))
		if i%4 == 1 {
			m.putSnapshot(t, s, m.head.Size-1, 1<<20+5)
		}
		site.Crash(s)
		s = open(t, site)
		m.check(t, s)
	}
}

// testRandom lives a random life, with restarts and crashes, beside the model.
func testRandom(t testing.TB, site Site) {
	ctx := context.Background()
	s := create(t, site)
	m := newModel(31)
	for range 120 {
		switch m.rng.IntN(12) {
		case 0:
			s = reopen(t, site, s)
			m.check(t, s)
		case 1:
			site.Crash(s)
			s = open(t, site)
			m.check(t, s)
		case 2:
			if m.head.Size > 0 && m.snaps[m.head.Size-1] == nil {
				m.putSnapshot(t, s, m.head.Size-1, m.rng.IntN(1<<16))
			}
		case 3:
			m.signed = m.bytes(120)
			if err := s.PutCheckpoint(ctx, m.signed); err != nil {
				t.Fatalf("PutCheckpoint: %v", err)
			}
		case 4:
			b := m.rich(2)
			b.First += uint64(1 + m.rng.IntN(3))
			if err := s.Append(ctx, b); !errors.Is(err, store.ErrConflict) {
				t.Fatalf("batch ahead of the head: %v", err)
			}
		default:
			m.append(t, s, m.rich(1+m.rng.IntN(90)))
		}
	}
	m.check(t, s)
	m.check(t, reopen(t, site, s))
}

// faultCase is an operation that is made to fail at each of its statements.
type faultCase struct {
	op    func(s store.Store) error
	apply func(m *model)
	// done tells, of a sound store, whether the operation is in it.
	done func(s store.Store) bool
}

func testFailedAppend(t testing.TB, site Site) {
	testFailures(t, site, func(m *model) faultCase {
		b := m.rich(70)
		return faultCase{
			op:    func(s store.Store) error { return s.Append(context.Background(), b) },
			apply: func(m *model) { m.apply(b) },
			done: func(s store.Store) bool {
				head, err := s.Head(context.Background())
				return err == nil && head.Size == b.First+70
			},
		}
	})
}

func testFailedCheckpoint(t testing.TB, site Site) {
	testFailures(t, site, func(m *model) faultCase {
		signed := m.bytes(90)
		return faultCase{
			op:    func(s store.Store) error { return s.PutCheckpoint(context.Background(), signed) },
			apply: func(m *model) { m.signed = signed },
			done: func(s store.Store) bool {
				got, err := s.Checkpoint(context.Background())
				return err == nil && bytes.Equal(got, signed)
			},
		}
	})
}

func testFailedSnapshot(t testing.TB, site Site) {
	testFailures(t, site, func(m *model) faultCase {
		data, index := m.bytes(5<<19), m.head.Size-1
		return faultCase{
			op:    func(s store.Store) error { return s.PutSnapshot(context.Background(), index, data) },
			apply: func(m *model) { m.applySnapshot(index, data) },
			done: func(s store.Store) bool {
				_, got, err := s.Snapshot(context.Background(), math.MaxUint64)
				return err == nil && bytes.Equal(got, data)
			},
		}
	})
}

// maxStatements ends the search for a statement that no longer fails: no engine needs more for
// the operations here.
const maxStatements = 200

// testFailures fails the first, second … statement of an operation, before and after it is done;
// each time the handle must turn fatal, and the store, opened again after a close or a crash, must
// be as the error says.
func testFailures(t testing.TB, site Site, plan func(m *model) faultCase) {
	s := create(t, site)
	m := newModel(32)
	m.append(t, s, m.rich(9))
	m.append(t, s, m.rich(9))
	if site.FailWrite(0, false) == nil {
		t.Log("this engine can't be made to fail from here: the case says nothing about it")
		return
	}
	unknowns := 0
	for n := 1; ; n++ {
		if n > maxStatements {
			t.Fatalf("more than %d statements, or failures that don't happen", maxStatements)
		}
		reached := false
		for _, after := range []bool{false, true} {
			// A fresh entry, so that indexes differ from the last round's.
			m.append(t, s, m.rich(1))
			c := plan(m)
			fired := site.FailWrite(n, after)
			err := c.op(s)
			hit := fired()
			site.FailWrite(0, false)
			reached = reached || hit
			if !hit {
				if err != nil {
					t.Fatalf("failed without a fault: %v", err)
				}
				c.apply(m)
				continue
			}
			if errors.Is(err, store.ErrUnknown) {
				unknowns++
			}
			if err == nil { // then it is done, whatever became of the tidying up after it
				c.apply(m)
				s = reopen(t, site, s)
				m.check(t, s)
				continue
			}
			s = checkFailure(t, site, s, m, c, err, n%2 == 0)
		}
		if !reached {
			break
		}
	}
	if unknowns == 0 {
		t.Fatal("no failure left the outcome unknown: a failing commit was not noticed")
	}
	m.check(t, s)
	m.append(t, s, m.rich(4))
	m.check(t, reopen(t, site, s))
}

// checkFailure checks the error, the dead handle and the reopened store, and brings the model up
// to what happened.
func checkFailure(t testing.TB, site Site, s store.Store, m *model, c faultCase, err error, crash bool) store.Store {
	t.Helper()
	notDone, unknown := errors.Is(err, store.ErrNotDone), errors.Is(err, store.ErrUnknown)
	if notDone == unknown || errors.Is(err, store.ErrConflict) {
		t.Fatalf("a failed write says: %v", err)
	}
	for name, call := range calls(s, m.clone().rich(1)) {
		if err := call(context.Background()); !errors.Is(err, store.ErrFatal) {
			t.Fatalf("%s after a failed write: %v", name, err)
		}
	}
	if crash {
		site.Crash(s)
	} else if err := s.Close(); err != nil {
		t.Fatalf("Close after a failed write: %v", err)
	}
	s = open(t, site)
	done := c.done(s)
	if done && notDone {
		t.Fatalf("done, though the error was: %v", err)
	}
	if done {
		c.apply(m)
	}
	m.check(t, s)
	return s
}
