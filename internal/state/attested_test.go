package state

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

// evidence is a feeder with a machine, and the machine's session.
func evidence(t testing.TB) (*feeder, uint64) {
	t.Helper()
	f := newFeeder(t, 11)
	f.must(&ProtocolRaised{Version: 2})
	return f, f.must(f.machine("m1", Digest{1}))
}

// machine is a proof of a machine.
func (f *feeder) machine(name string, key Digest) *SessionOpened {
	e := f.session("/node/tpm/"+name, "")
	e.Via, e.Method, e.Anchor, e.Key, e.Evidence = "attest", "tpm", "tpm:fleet", key, Digest{2}
	return e
}

// complete proposes an act and approves it.
func (f *feeder) complete(action, target string) uint64 {
	f.t.Helper()
	ch := f.must(&ChangeProposed{
		Action: action, Target: target, Base: f.s.Bundle, Nonce: fmt.Sprint("n", f.s.Next), Expires: f.now + 3_600_000, Required: 1, Actor: Actor{Identity: "/human/alice"},
	})
	f.must(&ChangeApproved{Change: ch, Nonce: fmt.Sprint("m", f.s.Next), Signature: Signature{Person: "bob"}, Actor: Actor{Identity: "/human/bob"}})
	return ch
}

func TestAttestedReducers(t *testing.T) {
	f, session := evidence(t)
	use := func(change func(*EvidenceUsed)) *EvidenceUsed {
		e := &EvidenceUsed{Use: "tpm:m1", Key: Digest{1}, Session: session, Identity: "/node/tpm/m1"}
		change(e)
		return e
	}
	refused := func(what string, ev Event) {
		t.Helper()
		if err := f.apply(ev); err == nil {
			t.Errorf("%s was applied", what)
		}
	}
	before := newFeeder(t, 1)
	at := before.must(before.machine("m1", Digest{1}))
	for _, ev := range []Event{
		&EvidenceUsed{Use: "tpm:m1", Key: Digest{1}, Session: at, Identity: "/node/tpm/m1"},
		&NodeQuarantined{Identity: "/node/tpm/m1", Session: at, Evidence: Digest{2}},
	} {
		if err := before.apply(ev); err == nil || !strings.Contains(err.Error(), "protocol") {
			t.Errorf("%s before its protocol: %v", ev.Kind(), err)
		}
	}
	refused("a use by another session", use(func(e *EvidenceUsed) { e.Session++ }))
	refused("a use by another key", use(func(e *EvidenceUsed) { e.Key = Digest{9} }))
	refused("a use by another identity", use(func(e *EvidenceUsed) { e.Identity = "/node/tpm/m2" }))
	refused("nothing forgotten", &EvidenceForgotten{Use: "tpm:m1", Change: f.complete("evidence.forget", "tpm:m1")})
	f.must(use(func(*EvidenceUsed) {}))
	refused("a use again", use(func(*EvidenceUsed) {}))
	refused("forgotten by no change", &EvidenceForgotten{Use: "tpm:m1", Change: 1 << 40})
	refused("forgotten by another change", &EvidenceForgotten{Use: "tpm:m1", Change: f.complete("evidence.forget", "tpm:m2")})
	done := f.complete("evidence.forget", "tpm:m1")
	f.must(&EvidenceForgotten{Use: "tpm:m1", Change: done})
	f.must(use(func(*EvidenceUsed) {}))
	refused("forgotten by a change that is done", &EvidenceForgotten{Use: "tpm:m1", Change: done})

	quarantine := func(change func(*NodeQuarantined)) *NodeQuarantined {
		e := &NodeQuarantined{Identity: "/node/tpm/m1", Session: session, Method: "tpm", Evidence: Digest{2}, Why: "it is bad"}
		change(e)
		return e
	}
	refused("a quarantine of nobody", quarantine(func(e *NodeQuarantined) { e.Identity = "/node/tpm/m2" }))
	refused("a quarantine by another key", quarantine(func(e *NodeQuarantined) { e.Evidence = Digest{3} }))
	refused("a quarantine of an older proof", quarantine(func(e *NodeQuarantined) { e.Session-- }))
	answer := func(e *NodeQuarantined) { e.Challenge, e.ChallengeTo = "c:q", f.now.Add(2*time.Minute) }
	first := f.must(quarantine(answer))
	refused("a quarantine by an answer that was given before", quarantine(answer))
	h, ok := f.s.Holds.Get("node:/node/tpm/m1")
	if !ok || !h.Quarantine || h.Index != first || h.Until != 0 || f.s.Control != first {
		t.Fatalf("%+v", h)
	}
	f.must(quarantine(func(*NodeQuarantined) {}))
	if h, _ = f.s.Holds.Get("node:/node/tpm/m1"); h.Index != first {
		t.Error("a hold that is there is replaced")
	}

	end := func(change uint64) *IdentityDecommissioned {
		return &IdentityDecommissioned{Identity: "/node/tpm/m1", Cutoff: first, Change: change}
	}
	refused("an end that nobody approved", end(1<<40))
	refused("an end of another", end(f.complete("identity.decommission", "/node/tpm/m2")))
	for what, leave := range map[string]func(*IdentityDecommissioned){
		"a lease": func(e *IdentityDecommissioned) { e.Leases = 1 }, "a session": func(e *IdentityDecommissioned) { e.Sessions = 1 },
		"a token": func(e *IdentityDecommissioned) { e.Tokens = 1 },
	} {
		e := end(f.complete("identity.decommission", "/node/tpm/m1"))
		leave(e)
		refused("an end that leaves "+what, e)
	}
	f.must(end(f.complete("identity.decommission", "/node/tpm/m1")))
	refused("an end after the end", end(f.complete("identity.decommission", "/node/tpm/m1")))
	refused("a session after the end", f.machine("m1", Digest{4}))
	if f.s.Identities.Has("/node/tpm/m1") || !f.s.Gone.Has("/node/tpm/m1") {
		t.Error("it is not gone")
	}
	f.must(f.machine("m2", Digest{5}))
}

// A use goes at its end, whatever became of the evidence in between, and one without an end stays.
func TestSweepUses(t *testing.T) {
	f, session := evidence(t)
	use := func(name string, until Millis) {
		t.Helper()
		f.must(&EvidenceUsed{Use: "tpm:" + name, Key: Digest{1}, Session: session, Identity: "/node/tpm/m1", Until: until})
	}
	later := func(by Millis) {
		t.Helper()
		f.now += by
		f.must(&DenialsSummed{})
	}
	const minute = Millis(60_000)
	use("short", f.now+5*minute)
	use("ever", 0)
	use("again", f.now+5*minute)
	f.must(&EvidenceForgotten{Use: "tpm:again", Change: f.complete("evidence.forget", "tpm:again")})
	use("again", f.now+20*minute) // the row of the first one is still in the queue
	use("once", f.now+5*minute)
	f.must(&EvidenceForgotten{Use: "tpm:once", Change: f.complete("evidence.forget", "tpm:once")})
	use("once", 0)
	later(5*minute - 1)
	if f.s.Uses.Len() != 4 {
		t.Fatalf("%d uses before any end", f.s.Uses.Len())
	}
	later(1)
	if f.s.Uses.Has("tpm:short") || f.s.Uses.Len() != 3 {
		t.Errorf("%d uses at the end of one", f.s.Uses.Len())
	}
	later(20 * minute)
	if f.s.Uses.Has("tpm:again") || !f.s.Uses.Has("tpm:ever") || !f.s.Uses.Has("tpm:once") {
		t.Error("not at its own end")
	}
	later(1000 * 24 * 60 * minute)
	for range 20 {
		later(1)
	}
	if f.s.Uses.Len() != 2 {
		t.Errorf("%d uses, and two have no end", f.s.Uses.Len())
	}
	f.s.queue.All(func(key string, _ struct{}) bool {
		if queueKind(key[8]) == qUse {
			t.Errorf("a row of the queue is left for %s", key[9:])
		}
		return true
	})
}

// later is a state with rows in all later tables.
func later(t testing.TB) *State {
	t.Helper()
	f, session := evidence(t)
	f.must(&EvidenceUsed{Use: "tpm:m1", Key: Digest{1}, Session: session, Identity: "/node/tpm/m1", Until: f.now + 600_000})
	f.must(&EvidenceUsed{Use: "tpm:m2", Key: Digest{1}, Session: session, Identity: "/node/tpm/m1"})
	f.must(&IdentityDecommissioned{Identity: "/node/tpm/m0", Change: f.complete("identity.decommission", "/node/tpm/m0")})
	f.must(&FederationRefreshed{Name: "partner", TrustDomain: "partner.example", Document: Digest{1}, Pin: Digest{2}})
	f.must(&ProtocolRaised{Version: protocolRollout})
	f.reads("/node/x/n0")
	f.now += 1000
	f.into(1)
	f.loses("/node/x/n0")
	f.must(reviewed(f, 0))
	f.must(opened(f, "bob", 30))
	f.must(f.recovers())
	return f.s
}

// Tables that came later are not there until they have rows: the root of a state that makes no use of them is what it always was.
func TestLaterTablesAreWrittenWithRows(t *testing.T) {
	old := newFeeder(t, 5)
	for range 60 {
		old.step()
	}
	plain := snapshotOf(t, old.s)
	full := snapshotOf(t, later(t))
	for _, table := range old.s.laterTables() {
		head := fmt.Appendf(nil, "{\"table\":%q,", table.name)
		if bytes.Contains(plain, head) {
			t.Errorf("%s is written without rows", table.name)
		}
		if bytes.Count(full, head) != 1 {
			t.Errorf("%s is not written", table.name)
		}
	}
	f := old.s.Fork()
	f.Uses.set("x", &Use{})
	f.Gone.set("/node/x", 1)
	if bytes.Equal(snapshotOf(t, f), plain) {
		t.Error("they are not in the root")
	}
	f.Uses.del("x")
	f.Gone.del("/node/x")
	if !bytes.Equal(snapshotOf(t, f), plain) {
		t.Error("what was there once stays in the root")
	}
	for what, text := range map[string][]byte{"without": plain, "with": full} {
		s, err := Restore(text)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if !bytes.Equal(snapshotOf(t, s), text) {
			t.Errorf("%s: it is written differently again", what)
		}
	}
	// Each alone, and each left out.
	if n := len(old.s.laterTables()); n != 9 {
		t.Fatalf("there are %d later tables, and the test knows nine", n)
	}
	for i, one := range later(t).laterTables() {
		for _, alone := range []bool{true, false} {
			s := later(t)
			for j, table := range []func(){
				func() { s.Uses = newTable[string, *Use]() }, func() { s.Gone = newTable[string, uint64]() },
				func() { s.Federations = newTable[string, *Federated]() }, func() { s.rollouts = newTable[string, *Rollout]() },
				func() { s.sources = newTable[string, *RolloutSource]() }, func() { s.Served = newTable[string, *Served]() },
				func() { s.Reviewed = newTable[string, *Reviewed]() }, func() { s.Glass = newTable[uint64, *Glass]() },
				func() { s.Reviewed = newTable[string, *Reviewed]() },
				func() { s.recoveries = newTable[string, *Recovery]() },
			} {
				if (i == j) != alone {
					table()
				}
			}
			again, err := Restore(snapshotOf(t, s))
			if err != nil || !bytes.Equal(snapshotOf(t, again), snapshotOf(t, s)) {
				t.Errorf("%s (alone: %t): %v", one.name, alone, err)
			}
		}
	}
}

func TestRestoreRefusesLaterTables(t *testing.T) {
	good := snapshotOf(t, later(t))
	at := func(name string) int { return bytes.Index(good, fmt.Appendf(nil, "{\"table\":%q,", name)) }
	uses, gone, federations := good[at("uses"):at("gone")], good[at("gone"):at("federations")], good[at("federations"):]
	head := good[:at("uses")]
	join := func(parts ...any) []byte {
		var b bytes.Buffer
		b.Write(head)
		for _, p := range parts {
			fmt.Fprintf(&b, "%s", p)
		}
		return b.Bytes()
	}
	if !bytes.Equal(join(uses, gone, federations), good) {
		t.Fatal("the parts are not the whole")
	}
	for what, bad := range map[string][]byte{
		"in another order":       join(gone, uses, federations),
		"the last one first":     join(federations, uses, gone),
		"one twice":              join(uses, uses, gone, federations),
		"one that is empty":      join(uses, `{"table":"gone","rows":0}`+"\n", federations),
		"all empty":              join(`{"table":"uses","rows":0}`+"\n", `{"table":"gone","rows":0}`+"\n", `{"table":"federations","rows":0}`+"\n"),
		"one of less than none":  join(uses, `{"table":"gone","rows":-1}`+"\n", federations),
		"one of minus none":      join(uses, `{"table":"gone","rows":-0}`+"\n", federations),
		"an unknown one":         join(uses, gone, federations, `{"table":"ghosts","rows":0}`+"\n"),
		"a row less":             join(bytes.Replace(uses, []byte(`"rows":2`), []byte(`"rows":3`), 1), gone, federations),
		"a row more":             join(bytes.Replace(uses, []byte(`"rows":2`), []byte(`"rows":1`), 1), gone, federations),
		"a head with a space":    join(bytes.Replace(uses, []byte(`"rows":2`), []byte(`"rows": 2`), 1), gone, federations, "x"),
		"a use that is none":     join(`{"table":"uses","rows":1}`+"\n"+`{"k":"61","v":null}`+"\n", gone, federations),
		"a use with another key": join(bytes.Replace(uses, []byte(`"session"`), []byte(`"sessions"`), 1), gone, federations),
		"half a table":           join(uses[:len(uses)/2]),
		"half a head":            join(`{"table":"us`),
		"a fewer rows than none": bytes.Replace(good, []byte(`{"table":"holds","rows":0}`), []byte(`{"table":"holds","rows":-1}`), 1),
	} {
		if bytes.Equal(bad, good) {
			t.Errorf("%s: the case changes nothing", what)
		}
		if _, err := Restore(bad); err == nil {
			t.Errorf("%s was restored", what)
		}
	}
}
