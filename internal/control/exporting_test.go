package control_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// exportBoard is an environment with secrets, and somebody who may have them sealed to a key.
func exportBoard(t *testing.T, files policy.Files) (*board, *age.X25519Identity) {
	t.Helper()
	return exportBoardOf(t, controltest.Options{Persons: []string{"alice", "bob", "carol"}, Quorum: 1, Extra: files})
}

func exportBoardOf(t *testing.T, o controltest.Options) (*board, *age.X25519Identity) {
	t.Helper()
	b := newBoardOf(t, o)
	b.Put(b.by["alice"], "db/x", "one")
	b.Put(b.by["alice"], "db/x", "two")
	b.Put(b.by["alice"], "db/y", "three")
	id, err := age.GenerateX25519Identity()
	b.must(err)
	return b, id
}

// exportOf is a change about an export, with its approval.
func (b *board) exportOf(pattern string, id *age.X25519Identity) *state.Change {
	b.T.Helper()
	p, err := b.act("alice", control.ActionExport, state.ExportTarget(pattern, id.Recipient().String()))
	b.must(err)
	_, err = b.Approve(b.by["bob"], "bob", p.Change)
	b.must(err)
	return p.Change
}

func (b *board) fetch(person string, ch *state.Change) (*control.Proposal, error) {
	return b.Env.CarryOut(context.Background(), b.by[person].Caller, ch.Index)
}

// opened are the lines of an export.
func (b *board) opened(file []byte, id *age.X25519Identity) map[string]string {
	b.T.Helper()
	r, err := age.Decrypt(bytes.NewReader(file), id)
	b.must(err)
	lines := json.NewDecoder(r)
	var h struct {
		Format, Environment, Genesis, Secrets string
		Change                                uint64
		Count                                 int
	}
	b.must(lines.Decode(&h))
	if h.Format != "bailment.export/1" || h.Environment != controltest.EnvName || h.Genesis != b.Genesis.String() {
		b.T.Errorf("%+v", h)
	}
	out := map[string]string{}
	for lines.More() {
		var x struct {
			Secret, Digest string
			Version        uint64
			Value          []byte
		}
		b.must(lines.Decode(&x))
		out[fmt.Sprintf("%s#%d", x.Secret, x.Version)] = string(x.Value)
	}
	if h.Count != len(out) {
		b.T.Errorf("%d lines, and it says %d", len(out), h.Count)
	}
	return out
}

// What was approved is given to its proposer, sealed, once, and the entry names it.
func TestExport(t *testing.T) {
	b, id := exportBoard(t, nil)
	target := state.ExportTarget("db/*", id.Recipient().String())
	p, err := b.act("alice", control.ActionExport, target)
	b.must(err)
	_, err = b.fetch("alice", p.Change)
	b.refused(err, problem.ReasonConflict) // nobody approved it
	_, err = b.Approve(b.by["alice"], "alice", p.Change)
	b.refused(err, problem.ReasonSeparation)
	_, err = b.Approve(b.by["bob"], "bob", p.Change)
	b.must(err)
	b.stateOf(p.Change, state.Waiting)
	_, err = b.fetch("bob", p.Change)
	b.refused(err, problem.ReasonSeparation)
	_, err = b.fetch("carol", p.Change)
	b.refused(err, problem.ReasonSeparation)
	b.Put(b.by["alice"], "db/z", "since") // what is current when it is fetched
	before := b.Env.State().Quarter(state.At(b.Now()))
	out, err := b.fetch("alice", p.Change)
	b.must(err)
	got := b.opened(out.File, id)
	if fmt.Sprint(got) != "map[db/x#2:two db/y#1:three db/z#1:since]" || out.Values != 3 {
		t.Errorf("got %v", got)
	}
	entry := b.last(t)
	ev, ok := entry.(*state.SecretExported)
	if !ok || ev.Recipient != id.Recipient().String() || ev.Secrets != "db/*" || ev.Count != 3 || len(ev.Versions) != 3 || ev.File != sha256.Sum256(out.File) || ev.Bytes != len(out.File) || ev.Change != p.Index {
		t.Errorf("%+v", entry)
	}
	if after := b.Env.State().Quarter(state.At(b.Now())); after != before {
		t.Errorf("releases were counted: %+v, %+v", before, after)
	}
	b.stateOf(p.Change, state.Done)
	_, err = b.fetch("alice", p.Change)
	b.refused(err, problem.ReasonConflict)
	_, found, err := b.Env.Check(context.Background())
	b.must(err)
	if len(found) > 0 {
		t.Error(found)
	}
}

// last is the newest entry.
func (b *board) last(t *testing.T) state.Event {
	t.Helper()
	all := b.Stored()
	e, err := state.Decode(all[len(all)-1].Body)
	b.must(err)
	return e.Event
}

// What makes no sense is refused when it is proposed.
func TestExportProposed(t *testing.T) {
	b, id := exportBoard(t, nil)
	to := id.Recipient().String()
	for target, want := range map[string]problem.Reason{
		"": problem.ReasonInvalid, "db/*": problem.ReasonInvalid, "@" + to: problem.ReasonInvalid, "db/*@": problem.ReasonInvalid, "db/x@ssh-ed25519": problem.ReasonInvalid,
		"db/*x@" + to: problem.ReasonInvalid, "db/*@" + to[:61] + "b": problem.ReasonInvalid, "db/*@" + strings.ToUpper(to): problem.ReasonInvalid,
		"db/*@" + to[:50] + strings.Repeat("q", 12): problem.ReasonInvalid, "db/*@" + to + "@" + to: problem.ReasonInvalid,
		"*/*@" + to: problem.ReasonInvalid, "**@" + to: problem.ReasonInvalid, "db/**@" + to: problem.ReasonInvalid, "*/x@" + to: problem.ReasonInvalid, "db/*/x@" + to: problem.ReasonInvalid,
		"/db/*@" + to: problem.ReasonInvalid, "db//*@" + to: problem.ReasonInvalid, "db/../db/*@" + to: problem.ReasonInvalid, "db/*,node/*@" + to: problem.ReasonInvalid, " db/*@" + to: problem.ReasonInvalid,
		"DB/*@" + to: problem.ReasonNotFound, "d*@" + to: problem.ReasonInvalid, "db/*@age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq5cu47z": problem.ReasonInvalid,
		"other/*@" + to: problem.ReasonNotFound, "db@" + to: problem.ReasonNotFound, "db/none@" + to: problem.ReasonNotFound,
	} {
		if _, err := b.act("alice", control.ActionExport, target); !problem.Is(err, want) {
			t.Errorf("%s: %v, want %s", target, err, want)
		}
	}
	for _, target := range []string{"db/x@" + to, "*@" + to} {
		_, err := b.act("alice", control.ActionExport, target)
		b.must(err)
	}
}

// An export can be fetched for a day, and not after; a bundle may have it wait before.
func TestExportInTime(t *testing.T) {
	b, id := exportBoard(t, nil)
	ch := b.exportOf("db/*", id)
	b.later(24*time.Hour - time.Minute)
	ended := b.exportOf("db/*", id)
	_, err := b.fetch("alice", ch)
	b.must(err)
	b.later(24 * time.Hour)
	b.stateOf(ended, state.Expired)
	_, err = b.fetch("alice", ended)
	b.refused(err, problem.ReasonConflict)
}

func TestExportWaits(t *testing.T) {
	b, id := exportBoard(t, policy.Files{
		"environment.yaml": fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  approvals: {required: 1, acts: [{act: secret.export, delay: 1h}]}\n", controltest.EnvName),
	})
	ch := b.exportOf("db/*", id)
	_, err := b.fetch("alice", ch)
	b.refused(err, problem.ReasonWaiting)
	b.later(time.Hour)
	_, err = b.fetch("alice", ch)
	b.must(err)
}

// Denials, holds and cutoffs win over approvals, for each secret: the whole is refused, and it says because of which.
func TestExportStopped(t *testing.T) {
	deny := func(b *board) {
		b.Files["grants/deny-export.yaml"] = []byte("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: deny-export}\nspec: {effect: deny, actions: [secret.read], identities: [/human/alice], secrets: [db/y], purposes: [export]}\n")
		_, err := b.Approve(b.by["bob"], "bob", b.propose("alice", "denies"))
		b.must(err)
	}
	revoke := func(b *board, scope string, hold bool) {
		_, err := b.Env.Revoke(context.Background(), b.by["carol"].Caller, control.RevokeRequest{Scope: scope, Reason: "test", HoldOnly: hold})
		b.must(err)
	}
	for name, c := range map[string]struct {
		do   func(*board)
		want problem.Reason
	}{
		"a held secret": {func(b *board) { revoke(b, "secret:db/y", true) }, problem.ReasonHeld}, "a cut off secret": {func(b *board) { revoke(b, "secret:db/y", false) }, problem.ReasonCutoff},
		"a cut off subtree":  {func(b *board) { revoke(b, "secret:db/*", false) }, problem.ReasonCutoff},
		"a cut off approver": {func(b *board) { revoke(b, "identity:/human/bob", false) }, problem.ReasonQuorum},
		"another bundle":     {deny, problem.ReasonConflict},
	} {
		t.Run(name, func(t *testing.T) {
			b, id := exportBoard(t, nil)
			ch := b.exportOf("db/*", id)
			c.do(b)
			out, err := b.fetch("alice", ch)
			b.refused(err, c.want)
			if out != nil {
				t.Error("it left")
			}
			if strings.HasSuffix(name, "secret") && !strings.Contains(err.Error(), "db/") {
				t.Errorf("it does not say which: %v", err)
			}
		})
	}
	t.Run("a denied secret", func(t *testing.T) {
		b, id := exportBoard(t, nil)
		deny(b)
		to := id.Recipient().String()
		_, err := b.act("alice", control.ActionExport, state.ExportTarget("db/*", to))
		b.refused(err, problem.ReasonDenied)
		if !strings.Contains(err.Error(), "db/y") {
			t.Error(err)
		}
		b.exportOf("db/x", id)
		_, err = b.act("bob", control.ActionExport, state.ExportTarget("db/*", to)) // it is denied to alice
		b.must(err)
	})
	t.Run("what was cut off before is exported", func(t *testing.T) {
		b, id := exportBoard(t, nil)
		revoke(b, "secret:db/y", false)
		_, err := b.fetch("alice", b.exportOf("db/*", id))
		b.must(err)
	})
}

// What has another version by the time it is entered is sealed again; what is too much is refused.
func TestExportLimits(t *testing.T) {
	b, id := exportBoard(t, nil)
	big := strings.Repeat("x", 60<<10)
	for i := range 72 {
		b.Put(b.by["alice"], fmt.Sprintf("db/big-%02d", i), big)
	}
	ch := b.exportOf("db/*", id)
	_, err := b.fetch("alice", ch)
	b.refused(err, problem.ReasonTooLarge)
	b.stateOf(ch, state.Waiting)
	for i := range state.MaxExported {
		b.Put(b.by["alice"], fmt.Sprintf("db/s/%04d", i), "v")
	}
	out, err := b.fetch("alice", b.exportOf("db/s/*", id))
	b.must(err)
	if got := b.opened(out.File, id); len(got) != state.MaxExported {
		t.Errorf("%d values", len(got))
	}
	ev := b.last(t).(*state.SecretExported)
	if n := len(ev.Versions); n < 100 || n >= state.MaxExported || ev.Count != state.MaxExported {
		t.Errorf("it names %d of %d", n, ev.Count)
	}
	_, err = b.act("alice", control.ActionExport, state.ExportTarget("db/*", id.Recipient().String()))
	b.refused(err, problem.ReasonLimit)
	_, found, err := b.Env.Check(context.Background())
	b.must(err)
	if len(found) > 0 {
		t.Error(found)
	}
}

// In production it takes two others, whatever the bundle says.
func TestExportInProduction(t *testing.T) {
	e := policy.Environment{Class: policy.Production, Approvals: 1}
	if n := e.Needs(policy.ActExport); n.Approvals != 2 || n.Self || n.Delay != 0 {
		t.Errorf("%+v", n)
	}
}
