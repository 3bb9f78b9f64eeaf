package audit_test

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// change edits an entry as a forger does, who computes every hash anew.
func (m *memory) change(t *testing.T, index int, edit func(*state.Entry)) {
	t.Helper()
	e, err := state.Decode(m.entries[index].Body)
	if err != nil {
		t.Fatal(err)
	}
	edit(e)
	if m.entries[index].Body, err = state.Encode(e); err != nil {
		t.Fatal(err)
	}
	m.rehash(t)
}

// index is that of the first entry of a type that fits.
func index[E state.Event](t *testing.T, m *memory, fits func(E) bool) int {
	t.Helper()
	for i, x := range m.entries {
		e, err := state.Decode(x.Body)
		if err != nil {
			t.Fatal(err)
		}
		if ev, ok := e.Event.(E); ok && (fits == nil || fits(ev)) {
			return i
		}
	}
	t.Fatalf("there is no such %T", *new(E))
	return 0
}

// A ledger rewritten as somebody likes it, under the real genesis document with its real signature, and signed with a key of his
// own that entry 0 lists beside, instead of, or in front of the document's: the pinned genesis does not vouch for that key.
func TestForeignKeyInGenesis(t *testing.T) {
	l := live(t)
	whole := load(t, l.dir)
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	own := func(name string) state.KeyFacts { return state.KeyFacts{Name: name, Public: public} }
	crossed := func(g *state.Genesis) {
		text := ceremony.CheckpointKey{Scope: l.w.Scope(), Name: "checkpoint/1", Public: g.Keys[1].Public}.Text()
		g.Keys[1].Cross = ed25519.Sign(private, []byte(text))
	}
	for name, forge := range map[string]func(*state.Genesis){
		"in front, by its number": func(g *state.Genesis) { crossed(g); g.Keys = append(g.Keys, own("checkpoint/0")) },
		"in front, by its place":  func(g *state.Genesis) { crossed(g); g.Keys = slices.Insert(g.Keys, 0, own("checkpoint/2")) },
		"by an odd number":        func(g *state.Genesis) { crossed(g); g.Keys = append(g.Keys, own("checkpoint/00")) },
		"by no number":            func(g *state.Genesis) { crossed(g); g.Keys = append(g.Keys, own("checkpoint/")) },
		"behind":                  func(g *state.Genesis) { g.Keys = append(g.Keys, own("checkpoint/2")) },
		"twice":                   func(g *state.Genesis) { g.Keys = append(g.Keys, own("checkpoint/1")) },
		"instead, the real one as another": func(g *state.Genesis) {
			g.Keys[1].Name = "checkpoint/2"
			g.Keys = append(g.Keys, own("checkpoint/1"))
		},
		"a CA in front": func(g *state.Genesis) { g.Keys = append(g.Keys, state.KeyFacts{Name: "ca/0", Cert: g.Keys[0].Cert}) },
	} {
		t.Run(name, func(t *testing.T) {
			m := whole.clone()
			m.entries, m.snapshots = m.entries[:3:3], nil // what the forger likes
			m.change(t, 0, func(e *state.Entry) { forge(e.Event.(*state.Genesis)) })
			m.sign(t, fmt.Sprintf("bailment/%s/%x/0", controltest.EnvName, l.w.Genesis[:8]), private)
			for _, o := range []audit.Options{{Genesis: l.w.Genesis, Environment: controltest.EnvName}, {}} {
				r, err := run(m, o)
				var at *audit.Fault
				if !problem.Is(err, problem.ReasonTampered) || !errors.As(err, &at) || at.Index != 0 || r.Authenticated != 0 {
					t.Errorf("%d of %d entries are authenticated: %v", r.Authenticated, r.Size, err)
				}
			}
		})
	}
}

// A rotation to a key of one's own, for which one signs oneself.
func TestForeignKeyAdded(t *testing.T) {
	l := live(t)
	whole := load(t, l.dir)
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	at := index(t, whole, func(e *state.KeyAdded) bool { return strings.HasPrefix(e.Key.Name, "checkpoint/") })
	m := whole.clone()
	m.snapshots, m.entries = nil, m.entries[:at+1:at+1]
	m.change(t, at, func(e *state.Entry) {
		k := &e.Event.(*state.KeyAdded).Key
		k.Public = public
		k.Cross = ed25519.Sign(private, []byte(ceremony.CheckpointKey{Scope: l.w.Scope(), Name: k.Name, Public: public}.Text()))
	})
	m.sign(t, fmt.Sprintf("bailment/%s/%x/0", controltest.EnvName, l.w.Genesis[:8]), private)
	_, err = run(m, audit.Options{Genesis: l.w.Genesis})
	if err == nil || !strings.Contains(err.Error(), "not vouched for by checkpoint/1") {
		t.Errorf("got %v", err)
	}
	// A session's certificate is signed by the CA, and makes nobody a CA.
	at = index(t, whole, func(e *state.KeyAdded) bool { return strings.HasPrefix(e.Key.Name, "ca/") })
	m = whole.clone()
	m.checkpoint, m.snapshots, m.entries = nil, nil, m.entries[:at+1:at+1]
	m.change(t, at, func(e *state.Entry) {
		k := &e.Event.(*state.KeyAdded).Key
		k.Cert, k.Cross = l.leaf, l.leaf
	})
	if _, err = run(m, audit.Options{}); err == nil || !strings.Contains(err.Error(), "not a CA's") {
		t.Errorf("got %v", err)
	}
}

// What takes a duty takes a person who has it, in a live session of his own. Only the hold on a forked node has no person.
func TestActsOfNoPerson(t *testing.T) {
	l := live(t)
	whole := load(t, l.dir)
	size := uint64(len(whole.entries))
	as := func(identity string, session uint64) state.Actor {
		return state.Actor{Identity: identity, Session: session}
	}
	alice := uint64(index(t, whole, func(e *state.SessionOpened) bool { return e.Identity == "/human/alice" }))
	bob := uint64(index(t, whole, func(e *state.SessionOpened) bool { return e.Identity == "/human/bob" }))
	node := uint64(index(t, whole, func(e *state.SessionOpened) bool { return e.Via == "attest" }))
	api := uint64(index(t, whole, func(e *state.SessionOpened) bool { return e.Via == "workload" }))
	const nodePath = "/node/join-token/web-1"
	acts := map[string]struct {
		at  int
		set func(*state.Entry, state.Actor)
	}{
		"token":    {index[*state.TokenCreated](t, whole, nil), func(e *state.Entry, a state.Actor) { e.Event.(*state.TokenCreated).Actor = a }},
		"key":      {index[*state.KeyAdded](t, whole, nil), func(e *state.Entry, a state.Actor) { e.Event.(*state.KeyAdded).Actor = a }},
		"rewrap":   {index[*state.KeysRewrapped](t, whole, nil), func(e *state.Entry, a state.Actor) { e.Event.(*state.KeysRewrapped).Actor = a }},
		"proposal": {index[*state.ChangeProposed](t, whole, nil), func(e *state.Entry, a state.Actor) { e.Event.(*state.ChangeProposed).Actor = a }},
		"approval": {index[*state.ChangeApproved](t, whole, nil), func(e *state.Entry, a state.Actor) { e.Event.(*state.ChangeApproved).Actor = a }},
		"revocation": {
			index[*state.RevocationRecorded](t, whole, nil), func(e *state.Entry, a state.Actor) { e.Event.(*state.RevocationRecorded).Actor = a },
		},
		"a revocation like a fork's": {index[*state.RevocationRecorded](t, whole, nil), func(e *state.Entry, a state.Actor) {
			ev := e.Event.(*state.RevocationRecorded)
			ev.Actor, ev.Scope, ev.Hold, ev.Cutoff = a, "node:"+a.Identity, true, true
		}},
	}
	for name, act := range acts {
		for _, c := range []struct {
			actor state.Actor
			says  string
		}{
			{state.Actor{}, "not a person"},
			{as("alice", alice), "not a person"},
			{as("/workload/api", api), "not a person"},
			{as(nodePath, node), "not a person"}, // its newest session: no fork
			{as("/human/alice", bob), "is of /human/bob"},
			{as("/human/alice", size+7), "never was"},
			{as("/human/alice", 0), "never was"},
			{state.Actor{Identity: "/human/alice", Node: nodePath, Session: alice}, "is of"},
		} {
			m := whole.clone()
			m.checkpoint, m.snapshots = nil, nil
			m.change(t, act.at, func(e *state.Entry) { act.set(e, c.actor) })
			_, err := run(m, audit.Options{})
			var at *audit.Fault
			if !errors.As(err, &at) || at.Index != uint64(act.at) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s by %+v: %v", name, c.actor, err)
			}
		}
	}
	// The same person, after his session was given back.
	m := whole.clone()
	m.checkpoint, m.snapshots = nil, nil
	closed, err := state.Decode(m.entries[index[*state.SessionClosed](t, m, nil)].Body)
	if err != nil {
		t.Fatal(err)
	}
	late, err := state.Decode(m.entries[acts["revocation"].at].Body)
	if err != nil {
		t.Fatal(err)
	}
	m.entries = append(m.entries, m.entries[acts["token"].at])
	m.change(t, len(m.entries)-1, func(e *state.Entry) {
		ev := e.Event.(*state.TokenCreated)
		e.Time, ev.ID, ev.Expires, ev.Ruling = closed.Time, "another", closed.Time+1000, late.Event.(*state.RevocationRecorded).Ruling
	})
	if _, err := run(m, audit.Options{}); err == nil || !strings.Contains(err.Error(), "given back") {
		t.Errorf("got %v", err)
	}
}

// What control enters when a node's enrolment has two holders passes, and nothing that only looks like it.
func TestForkIsTheOneActWithoutPerson(t *testing.T) {
	w := controltest.New(t, controltest.HistoryOptions)
	controltest.History(w)
	dir := w.Dir
	w.Close()
	whole := load(t, dir+"/data")
	if _, err := run(whole, audit.Options{Genesis: w.Genesis}); err != nil {
		t.Fatal(err)
	}
	fork := index(t, whole, func(e *state.RevocationRecorded) bool { return strings.HasPrefix(e.Actor.Identity, "/node/") })
	for name, edit := range map[string]func(*state.RevocationRecorded){
		"no cutoff":       func(e *state.RevocationRecorded) { e.Cutoff = false },
		"no hold":         func(e *state.RevocationRecorded) { e.Hold = false },
		"for a while":     func(e *state.RevocationRecorded) { e.Until = e.Horizon },
		"of another node": func(e *state.RevocationRecorded) { e.Scope = "node:/node/join-token/web-2" },
		"of all nodes":    func(e *state.RevocationRecorded) { e.Scope = "node:/node/*" },
		"by nobody":       func(e *state.RevocationRecorded) { e.Actor.Session = uint64(fork) + 1 },
		"in no enrolment": func(e *state.RevocationRecorded) { e.Actor.Session = 1 },
		"by a stranger": func(e *state.RevocationRecorded) {
			e.Actor.Identity = "/node/join-token/never"
			e.Scope = "node:" + e.Actor.Identity
		},
	} {
		m := whole.clone()
		m.checkpoint, m.snapshots = nil, nil
		m.change(t, fork, func(e *state.Entry) { edit(e.Event.(*state.RevocationRecorded)) })
		_, err := run(m, audit.Options{})
		var at *audit.Fault
		if !errors.As(err, &at) || at.Index != uint64(fork) || !strings.Contains(err.Error(), "not a person") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
