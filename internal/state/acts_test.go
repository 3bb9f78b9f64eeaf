package state

import (
	"strings"
	"testing"
	"time"
)

// acting is an event that carries a change out, of its action and about its target; everything else about it is as it must be.
type acting struct {
	action, target string
	event          func(f *feeder, change uint64) Event
}

// Two acts may have the same target: who approves that a hold is made a cutoff has not approved that it is lifted.
func TestCarriedOutByItsAction(t *testing.T) {
	f, session := evidence(t)
	f.must(&ProtocolRaised{Version: protocolRollout})
	f.version()
	until := f.now + Millis(time.Hour/time.Millisecond)
	f.must(&RevocationRecorded{Scope: "identity:/workload/x", Hold: true, Until: until, Actor: Actor{Identity: "/human/alice"}})
	hold, _ := f.s.Holds.Get("identity:/workload/x")
	about := HoldTarget(hold.Scope, hold.Index)
	f.must(&EvidenceUsed{Use: "tpm:m1", Key: Digest{1}, Session: session, Identity: "/node/tpm/m1"})
	acts := []acting{
		{"hold.lift", about, func(_ *feeder, ch uint64) Event { return &HoldLifted{Scope: hold.Scope, Hold: hold.Index, Change: ch} }},
		{"revocation.confirm", about, func(_ *feeder, ch uint64) Event {
			return &RevocationRecorded{Scope: hold.Scope, Cutoff: true, Hold: true, Change: ch}
		}},
		{"evidence.forget", "tpm:m1", func(_ *feeder, ch uint64) Event { return &EvidenceForgotten{Use: "tpm:m1", Change: ch} }},
		{"identity.decommission", "/node/tpm/m1", func(_ *feeder, ch uint64) Event { return &IdentityDecommissioned{Identity: "/node/tpm/m1", Change: ch} }},
		{"secret.destroy", "db/w#1", func(_ *feeder, ch uint64) Event { return destroys(ch) }},
		{"glass.open", GlassTarget("night", "INC-1", 60), func(f *feeder, ch uint64) Event {
			return &GlassOpened{Grant: "night", Identity: "/human/alice", Incident: "INC-1", Reason: "x", Until: f.now + Millis(time.Hour/time.Millisecond), Change: ch, Actor: Actor{Identity: "/human/bob"}}
		}},
		{"environment.delete", EndTarget(f.s.Env.Name, f.s.Env.Genesis), func(f *feeder, ch uint64) Event {
			values, keys := f.s.Left()
			return &EnvironmentEnded{Environment: f.s.Env.Name, Genesis: f.s.Env.Genesis, Values: values, Keys: keys, Change: ch}
		}},
	}
	for _, a := range acts {
		fork := func() *feeder {
			g := *f
			g.s, g.log = f.s.Fork(), nil
			return &g
		}
		g := fork()
		if err := g.apply(a.event(g, g.complete(a.action, a.target))); err != nil {
			t.Errorf("%s by its own change: %v", a.action, err)
		}
		for _, other := range acts {
			if other.action == a.action {
				continue
			}
			g := fork()
			if err := g.apply(a.event(g, g.complete(other.action, a.target))); err == nil || !strings.Contains(err.Error(), "change") {
				t.Errorf("%s by a change about %s of the same target: %v", a.action, other.action, err)
			}
		}
	}
	// An approved destruction is carried out by destroying, and nothing less ends it.
	g := *f
	g.s = f.s.Fork()
	moved := destroys(g.complete("secret.destroy", "db/w#1"))
	moved.To = Compromised
	if err := g.apply(moved); err == nil || !strings.Contains(err.Error(), "change") {
		t.Errorf("a change about destroying, carried out by something else: %v", err)
	}
}
