package control_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// An environment that the first release founded has a protocol under which no glass is broken, nothing waits and nothing is exported. Whoever
// does the first of these raises it in the same commit: it takes no step of its own, and is done as anywhere else.
func TestFirstProtocol(t *testing.T) {
	for name, do := range map[string]func(b *board){
		"breaking the glass": func(b *board) {
			o, err := b.Glass(b.by["bob"], "glass", "INC-1", 10)
			b.must(err)
			if o.Proof.Index != o.Index {
				b.T.Errorf("entry %d is proved for opening %d", o.Proof.Index, o.Index)
			}
			b.reads("bob", "db/a", "")
			b.reads("alice", "db/a", problem.ReasonGlass)
			_, err = b.Glass(b.by["alice"], "glass", "INC-2", 10)
			b.refused(err, problem.ReasonGlassReview)
		},
		"breaking it by approvals": func(b *board) {
			ch := b.first("bob", control.ActionGlass, state.GlassTarget("glass", "INC-1", 10))
			b.must(b.approve("alice", ch))
			b.raised(false)
			out, err := b.Approve(b.by["carol"], "carol", ch) // approved, raised and opened, in one commit
			b.must(err)
			var kinds []string
			for _, r := range b.Stored()[out.Index:] {
				e, err := state.Decode(r.Body)
				b.must(err)
				kinds = append(kinds, e.Event.Kind().Type)
			}
			if want := []string{"change.approved", "protocol.raised", "glass.opened"}; !slices.Equal(kinds, want) || out.Proof.Index != out.Index {
				b.T.Errorf("entry %d is proved, of %q from %d on", out.Proof.Index, kinds, out.Index)
			}
			b.stateOf(ch, state.Done)
			b.reads("bob", "db/a", "")
		},
		"a change that waits": func(b *board) {
			p, err := b.act("alice", control.ActionDestroy, "db/a#1")
			b.must(err)
			b.must(b.approve("carol", p.Change))
			b.refused(b.carryOut("alice", p.Change), problem.ReasonWaiting)
			b.later(24 * time.Hour)
			b.must(b.carryOut("alice", p.Change))
			if v := b.version("db/a", 1); v.State != state.Destroyed {
				b.T.Errorf("the version is %s", v.State)
			}
		},
		"an export": func(b *board) {
			id, err := age.GenerateX25519Identity()
			b.must(err)
			ch := b.first("alice", control.ActionExport, state.ExportTarget("db/*", id.Recipient().String()))
			b.must(b.approve("bob", ch))
			b.raised(false)
			out, err := b.fetch("alice", ch)
			b.must(err)
			if got := b.opened(out.File, id); len(got) != 1 {
				b.T.Errorf("it has %d values", len(got))
			}
		},
		"the end": func(b *board) {
			p, err := b.act("alice", control.ActionDelete, b.endTarget())
			b.must(err)
			b.must(b.approve("bob", p.Change))
			_, err = b.Glass(b.by["bob"], "glass", "INC-1", 10)
			b.refused(err, problem.ReasonEnvironmentEnded)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBoardOf(t, controltest.Options{First: true, Persons: []string{"alice", "bob", "carol"}, Quorum: 1, Extra: policy.Files{
				"environment.yaml": fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n"+
					"  approvals: {required: 1, acts: [{act: glass.open, required: 2}, {act: secret.destroy, delay: 24h}]}\n  breakGlass: {openings: 2}\n", controltest.EnvName),
				"grants/glass.yaml": controltest.GlassGrant("glass", 30, "alice", "bob"),
			}})
			b.Put(b.by["alice"], "db/a", "one")
			b.Put(b.by["alice"], "db/a", "two")
			_, err := b.Env.Move(context.Background(), b.by["alice"].Caller, control.MoveRequest{Secret: "db/a", Version: 1, To: state.Retired})
			b.must(err)
			b.later(0)
			b.raised(false)
			do(b)
			b.raised(true)
			b.consistent()
		})
	}
}

// raised checks the protocol: the first, or the newest.
func (b *board) raised(want bool) {
	b.T.Helper()
	protocol := 1
	if want {
		protocol = state.Protocol
	}
	if got := b.Env.State().Protocol; got != protocol {
		b.T.Fatalf("it is under protocol %d, not %d", got, protocol)
	}
}

// first proposes an act by a text of the first version, as a command line of the first release does.
func (b *board) first(person, action, target string) *state.Change {
	b.T.Helper()
	c := b.Change(person, action, target, nil)
	c.Version = 1
	p, err := b.Env.Propose(context.Background(), b.by[person].Caller, control.ProposeRequest{Text: c.Text(), SSHSIG: b.Sign(person, ceremony.NamespaceChange, c.Text())})
	b.must(err)
	return p.Change
}
