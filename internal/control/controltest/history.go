package controltest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// HistoryOptions found the environment in which History does one of everything.
var HistoryOptions = Options{
	Persons: []string{"alice", "bob", "carol"}, Quorum: 1, Methods: Believe(historyMethods...),
	Extra: policy.Files{"federation/partner.yaml": []byte(partnerBundle), "authorities/all.yaml": []byte(historyAuthorities), "identities/proved.yaml": []byte(historyRules)},
}

// Cast are those who are alive after History.
type Cast struct {
	Alice, Bob, Node, API Actor
	Lease                 uint64 // of API, for db/c
	Token                 string // an unspent join token
	// Machine is a node that renews by fresh evidence (MachineProof), Box one that is trusted on first use (BoxProof), and Job a job, its
	// evidence (JobProof) used once. Quarantined is a node that its own proof stopped, Ended one that was decommissioned.
	Machine, Box, Job  Actor
	Quarantined, Ended string
}

// History does one of everything that enters something, so that the ledger has each type of entry in
// legal surroundings. The environment must have been founded with HistoryOptions.
func History(w *World) Cast {
	w.T.Helper()
	h := history{w: w, ctx: context.Background()}
	h.people()
	h.machines()
	h.secrets()
	h.leases()
	h.denials()
	h.changes()
	h.revocations()
	h.keys()
	h.proofs()
	h.rollouts()
	h.reviews()
	h.glass()
	h.recoveries()
	h.waits()
	return h.finale()
}

type history struct {
	w          *World
	ctx        context.Context
	alice, bob Actor
	node, api  Actor
	waiting    uint64 // a change that finale carries out
}

func (h *history) check(err error) { h.w.T.Helper(); h.w.check(err) }

// refused fails the test unless an operation was refused for the reason.
func (h *history) refused(err error, want problem.Reason) {
	h.w.T.Helper()
	if !problem.Is(err, want) {
		h.w.T.Fatalf("got %v, want a refusal: %s", err, want)
	}
}

func (h *history) people() {
	key, _ := Key(h.w.T)
	_, _, err := h.w.Env.ServerCertificate(h.ctx, key, time.Hour)
	h.check(err)
	h.alice, h.bob = h.w.Login("alice"), h.w.Login("bob")
	carol := h.w.Login("carol")
	h.check(h.w.Env.Logout(h.ctx, carol.Caller))
}

func (h *history) machines() {
	w := h.w
	tok := w.Token(h.alice, "web-1", time.Hour)
	key, _ := Key(w.T)
	_, err := w.TryJoin(tok, key)
	h.check(err)
	o, err := w.TryJoin(tok, key) // the reply was lost
	h.check(err)
	joined := w.Enter(key, o)
	key2, _ := Key(w.T)
	_, err = w.Renew(joined, key2)
	h.check(err)
	o, err = w.Renew(joined, key2) // and again
	h.check(err)
	h.node = w.Enter(key2, o)
	h.api = w.Workload(h.node, "")
	w.Workload(w.Node(h.alice, "special"), "/workload/other")
	_, err = w.TryWorkload(h.node, "/workload/other")
	h.refused(err, problem.ReasonForeignNode)
}

func (h *history) move(path string, version uint64, to state.VersionState) {
	h.w.T.Helper()
	_, err := h.w.Env.Move(h.ctx, h.alice.Caller, control.MoveRequest{Secret: path, Version: version, To: to, Reason: "history"})
	h.check(err)
}

func (h *history) secrets() {
	w := h.w
	w.Put(h.alice, "db/a", "one")
	w.Put(h.alice, "db/a", "two")
	w.Put(h.alice, "node/seed", "for the node itself")
	for range 2 {
		_, err := w.Env.Generate(h.ctx, h.alice.Caller, control.GenerateRequest{Secret: "db/a", Recipe: "hex", Stage: true, Key: "gen-1"})
		h.check(err)
	}
	h.move("db/a", 3, state.Current)
	h.move("db/a", 2, state.Current) // the rotation is taken back
	h.move("db/a", 1, state.Compromised)
	h.move("db/a", 1, state.Retired)
	destroy, err := w.Act(h.alice, "alice", control.ActionDestroy, state.HoldTarget("db/a", 1))
	h.check(err)
	_, err = w.Approve(h.bob, "bob", destroy.Change)
	h.check(err)
	w.Put(h.alice, "db/b", "b")
	w.Put(h.alice, "db/c", "c")
	_, err = w.Env.Move(h.ctx, h.alice.Caller, control.MoveRequest{Secret: "db/b", Version: 1, To: state.Destroyed})
	h.refused(err, problem.ReasonLifecycle)
}

func (h *history) leases() {
	w := h.w
	for range 2 {
		_, err := w.Env.Get(h.ctx, h.api.Caller, control.GetRequest{Secret: "db/a", Key: "read-1"})
		h.check(err)
	}
	_, r, err := w.Get(h.api, "db/a")
	h.check(err)
	_, err = w.Env.RenewLease(h.ctx, h.api.Caller, r.Lease)
	h.check(err)
	m, err := w.Env.Get(h.ctx, h.api.Caller, control.GetRequest{Secret: "db/b", Purpose: "migration"})
	h.check(err)
	_, err = w.Env.ReturnLease(h.ctx, h.api.Caller, m.Lease)
	h.check(err)
	_, _, err = w.Get(h.node, "node/seed")
	h.check(err)
}

func (h *history) denials() {
	for range 62 { // more than are entered whole
		_, _, err := h.w.Get(h.alice, "db/a")
		h.refused(err, problem.ReasonNoGrant)
	}
	h.w.Env.Unproved("session", problem.New(problem.ReasonSessionUnknown, "nobody"), netip.MustParseAddr("2001:db8::1"))
	h.check(h.w.Env.FlushDenials(h.ctx))
}

// act proposes an act that is not a bundle, as alice, and has bob approve it.
func (h *history) act(action, target string) {
	h.w.T.Helper()
	text := h.w.Change("alice", action, target, nil).Text()
	p, err := h.w.Env.Propose(h.ctx, h.alice.Caller, control.ProposeRequest{Text: text, SSHSIG: h.w.Sign("alice", ceremony.NamespaceChange, text)})
	h.check(err)
	_, err = h.w.Approve(h.bob, "bob", p.Change)
	h.check(err)
}

func (h *history) changes() {
	w := h.w
	files := policy.Files{}
	for path, data := range w.Files {
		files[path] = data
	}
	files["grants/more.yaml"] = []byte("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: more}\nspec: {actions: [secret.read], identities: [/human/alice], secrets: [db/c], purposes: [runtime]}\n")
	p, err := w.Propose(h.alice, "alice", files)
	h.check(err)
	_, err = w.Approve(h.alice, "alice", p.Change)
	h.refused(err, problem.ReasonSeparation)
	_, err = w.Env.Reject(h.ctx, h.bob.Caller, p.Change.Index, "not yet")
	h.check(err)
	// One person's reach is small from here on, so that the next revocation is provisional.
	files["environment.yaml"] = fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  approvals: {required: 1, acts: [{act: secret.destroy, delay: 24h}]}\n  revocation: {blastLimit: 2}\n", EnvName)
	for range 2 {
		if p, err = w.Propose(h.alice, "alice", files); err != nil {
			h.check(err)
		}
		_, err = w.Approve(h.bob, "bob", p.Change)
		h.check(err)
		delete(files, "grants/more.yaml")
	}
	w.Files = files
}

func (h *history) revocations() {
	w := h.w
	_, err := w.Env.Revoke(h.ctx, h.alice.Caller, control.RevokeRequest{Scope: "secret:db/a", Reason: "leaked"})
	h.check(err)
	_, err = w.Env.Get(h.ctx, h.api.Caller, control.GetRequest{Secret: "db/a", Key: "read-1"})
	h.refused(err, problem.ReasonCutoff)
	_, _, err = w.Get(h.api, "db/a") // a new lease, under a live session
	h.check(err)
	_, err = w.Env.Revoke(h.ctx, h.alice.Caller, control.RevokeRequest{Scope: "identity:/workload/api", Reason: "test"})
	h.check(err)
	_, _, err = w.Get(h.api, "db/a")
	h.refused(err, problem.ReasonCutoff)
	h.act(control.ActionLiftHold, w.Hold("identity:/workload/api"))
	h.api = w.Workload(h.node, "")
	out, err := w.Env.Revoke(h.ctx, h.bob.Caller, control.RevokeRequest{Scope: "node:/node/*", Reason: "an incident"})
	h.check(err)
	if out.Provisional.IsZero() {
		w.T.Fatal("the revocation was not provisional")
	}
	h.act(control.ActionConfirmCut, w.Hold("node:/node/*"))
	_, err = w.TryWorkload(h.node, "")
	h.refused(err, problem.ReasonCutoff)
	h.act(control.ActionLiftHold, w.Hold("node:/node/*"))

	// A machine whose enrolment has two holders.
	forked := w.Node(h.alice, "forked")
	key, _ := Key(w.T)
	o, err := w.Renew(forked, key)
	h.check(err)
	third, _ := Key(w.T)
	_, err = w.Renew(w.Enter(key, o), third)
	h.check(err)
	thief, _ := Key(w.T)
	_, err = w.Renew(forked, thief)
	h.refused(err, problem.ReasonForked)
}

func (h *history) keys() {
	for _, kind := range []string{"kek", "ca", "checkpoint"} {
		_, _, err := h.w.Env.RotateKey(h.ctx, h.alice.Caller, kind)
		h.check(err)
	}
	h.check(h.w.Env.Rewrap(h.ctx, h.alice.Caller, func(control.RewrapProgress) error { return nil }))
	for range 2 { // the holder of before is another one than that of genesis only the second time
		h.act(control.ActionMove, h.w.Spare())
		h.w.Config.Holder, h.w.Config.Next = h.w.Config.Next, nil
	}
	h.check(h.w.Env.Snapshot(h.ctx))
}

// waits proposes and approves what can't be undone, and takes one such change back.
func (h *history) waits() {
	w := h.w
	h.alice, h.bob = w.Login("alice"), w.Login("bob")
	w.Put(h.alice, "db/w", "one")
	w.Put(h.alice, "db/w", "two")
	h.move("db/w", 1, state.Retired)
	for range 2 {
		p, err := w.Act(h.alice, "alice", control.ActionDestroy, state.HoldTarget("db/w", 1))
		h.check(err)
		_, err = w.Approve(h.bob, "bob", p.Change)
		h.check(err)
		_, err = w.Env.CarryOut(h.ctx, h.alice.Caller, p.Index)
		h.refused(err, problem.ReasonWaiting)
		if h.waiting == 0 {
			h.waiting = p.Index
			continue
		}
		_, err = w.Env.Reject(h.ctx, h.bob.Caller, p.Index, "one of them is enough")
		h.check(err)
	}
}

// finale goes on after a while: what was opened before is over.
func (h *history) finale() Cast {
	w := h.w
	w.Advance(26 * time.Hour)
	c := Cast{Alice: w.Login("alice"), Bob: w.Login("bob")}
	_, err := w.Env.CarryOut(h.ctx, c.Alice.Caller, h.waiting)
	h.check(err)
	w.Put(c.Alice, "db/a", "four") // version 3 is retired by now
	c.Node = w.Node(c.Alice, "web-2")
	c.API = w.Workload(c.Node, "")
	_, err = w.Env.Get(h.ctx, c.API.Caller, control.GetRequest{Secret: "db/a", Key: "read-1"}) // the key is free again
	h.check(err)
	_, r, err := w.Get(c.API, "db/c")
	h.check(err)
	c.Lease = r.Lease
	c.Token = w.Token(c.Alice, "spare", time.Hour).ID()
	h.proved(&c)
	h.spiffe(c)
	h.exports(c)
	h.check(w.Env.Snapshot(h.ctx))
	return c
}

// ExportRecipient is a recipient of age. Nobody has its identity.
const ExportRecipient = "age1x39257svttrkalynw3jn574zvncf0yf40dds8wlz880rcj66raeqqawjjm"

func (h *history) exports(c Cast) {
	w := h.w
	p, err := w.Act(c.Alice, "alice", control.ActionExport, state.ExportTarget("db/*", ExportRecipient))
	h.check(err)
	_, err = w.Approve(c.Bob, "bob", p.Change)
	h.check(err)
	_, err = w.Env.CarryOut(h.ctx, c.Bob.Caller, p.Index)
	h.refused(err, problem.ReasonSeparation)
	_, err = w.Env.CarryOut(h.ctx, c.Alice.Caller, p.Index)
	h.check(err)
	_, err = w.Env.CarryOut(h.ctx, c.Alice.Caller, p.Index)
	h.refused(err, problem.ReasonConflict)
}

// End ends the environment after a History, which nothing can follow.
func End(w *World, c Cast) {
	w.T.Helper()
	p, err := w.Act(c.Alice, "alice", control.ActionDelete, state.EndTarget(EnvName, w.Genesis))
	w.check(err)
	_, err = w.Approve(c.Bob, "bob", p.Change)
	w.check(err)
}

// Commit enters an event past all use cases and decisions: a wrong one stands for a defect.
func (w *World) Commit(ev state.Event) error {
	w.T.Helper()
	_, _, err := ledger.Commit(context.Background(), w.Env.Ledger(), func(_ *state.State, at ledger.At) (ledger.Draft, struct{}, error) {
		entry := &state.Entry{Time: state.At(at.Time), Event: ev}
		body, err := state.Encode(entry)
		return ledger.Draft{Records: []ledger.Record{{Body: body, Event: entry}}}, struct{}{}, err
	})
	return err
}

// Stored are the entries as they are stored.
func (w *World) Stored() []store.Entry {
	w.T.Helper()
	var out []store.Entry
	err := w.Env.Ledger().Entries(context.Background(), 0, int(w.Env.Ledger().Size()), func(_ uint64, e store.Entry) error {
		if len(e.Commitment) > 0 {
			return errors.New("an entry is redacted")
		}
		out = append(out, store.Entry{Salt: append([]byte(nil), e.Salt...), Body: append([]byte(nil), e.Body...)})
		return nil
	})
	w.check(err)
	return out
}

// Programs compiles every bundle that was ever in force, or rolled out.
func (w *World) Programs() map[state.Digest]*policy.Program {
	w.T.Helper()
	out := make(map[state.Digest]*policy.Program)
	st := w.Env.Ledger().Store()
	for _, x := range w.Stored() {
		entry, err := state.Decode(x.Body)
		w.check(err)
		var d state.Digest
		switch e := entry.Event.(type) {
		case *state.Genesis:
			d = e.Manifest
		case *state.BundleInForce:
			d = e.Manifest
		case *state.RolloutMoved:
			d = e.Manifest
		default:
			continue
		}
		text, err := st.Blob(context.Background(), store.Digest(d))
		w.check(err)
		m, err := policy.ParseManifest(text)
		w.check(err)
		files, err := m.Fetch(func(d policy.Digest) ([]byte, error) { return st.Blob(context.Background(), store.Digest(d)) })
		w.check(err)
		b, err := policy.Load(files)
		w.check(err)
		out[d], err = policy.CompileAccepted(b)
		w.check(err)
	}
	return out
}
