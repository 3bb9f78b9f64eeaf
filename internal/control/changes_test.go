package control_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// board is an environment with operators who are logged in.
type board struct {
	*controltest.World
	by map[string]controltest.Actor
}

func newBoard(t *testing.T, quorum int, persons ...string) *board {
	t.Helper()
	return newBoardOf(t, controltest.Options{Persons: persons, Quorum: quorum})
}

func newBoardOf(t *testing.T, o controltest.Options) *board {
	t.Helper()
	b := &board{controltest.New(t, o), map[string]controltest.Actor{}}
	for _, p := range o.Persons {
		b.by[p] = b.Login(p)
	}
	return b
}

// with is the bundle with one file more, or another one.
func (b *board) with(path, text string) policy.Files {
	files := maps.Clone(b.Files)
	files[path] = []byte(text)
	return files
}

// propose proposes a bundle that differs in its README.
func (b *board) propose(person, readme string) *state.Change {
	b.T.Helper()
	p, err := b.Propose(b.by[person], person, b.with("README.md", readme))
	b.must(err)
	return p.Change
}

func (b *board) must(err error) {
	b.T.Helper()
	if err != nil {
		b.T.Fatal(err)
	}
}

func (b *board) refused(err error, want problem.Reason) {
	b.T.Helper()
	if !problem.Is(err, want) {
		b.T.Fatalf("got %v; want %s", err, want)
	}
}

// consistent has everything checked, by the running checks and by a replay.
func (b *board) consistent() {
	b.T.Helper()
	_, found, err := b.Env.Check(context.Background())
	if err == nil && len(found) == 0 {
		found, err = b.Env.Replay(context.Background())
	}
	if err != nil || len(found) > 0 {
		b.T.Fatalf("%d violations, the first: %v %v", len(found), found[:min(len(found), 3)], err)
	}
}

// revoke revokes with a hold.
func (b *board) revoke(person, scope string) *control.Revoked {
	b.T.Helper()
	r, err := b.Env.Revoke(context.Background(), b.by[person].Caller, control.RevokeRequest{Scope: scope, Reason: "test"})
	b.must(err)
	return r
}

// act proposes something about the hold on a scope.
func (b *board) act(person, action, target string) (*control.Proposal, error) {
	b.T.Helper()
	text := b.Change(person, action, target, nil).Text()
	return b.Env.Propose(context.Background(), b.by[person].Caller, control.ProposeRequest{Text: text, SSHSIG: b.Sign(person, ceremony.NamespaceChange, text)})
}

// lift lifts a hold by the proposal of one person and the approvals of others.
func (b *board) lift(scope, by string, others ...string) {
	b.T.Helper()
	p, err := b.act(by, control.ActionLiftHold, b.Hold(scope))
	b.must(err)
	for _, o := range others {
		_, err = b.Approve(b.by[o], o, p.Change)
		b.must(err)
	}
	if b.Env.State().Holds.Has(scope) {
		b.T.Fatalf("%s is held", scope)
	}
}

// inForce checks the generation, and that the running checks find nothing.
func (b *board) inForce(generation uint64) {
	b.T.Helper()
	if g := b.Env.State().Generation; g != generation {
		b.T.Fatalf("generation %d, want %d", g, generation)
	}
	if _, found, err := b.Env.Check(context.Background()); err != nil || len(found) > 0 {
		b.T.Fatalf("%v %v", found, err)
	}
}

func (b *board) key(person string) string {
	return "issuer:ssh:" + ssh.FingerprintSHA256(b.Persons[person].PublicKey())
}

// An approval does not outlive its approver's revocation, by person or by key; another approval takes its place.
func TestApprovalDerivesFromItsApprover(t *testing.T) {
	for _, by := range []string{"person", "key"} {
		t.Run(by, func(t *testing.T) {
			b := newBoard(t, 2, "alice", "bob", "carol", "dave", "erin")
			ch := b.propose("alice", "x")
			_, err := b.Approve(b.by["bob"], "bob", ch)
			b.must(err)
			scope := "identity:/human/bob"
			if by == "key" {
				scope = b.key("bob")
			}
			b.revoke("dave", scope)
			out, err := b.Approve(b.by["carol"], "carol", ch)
			b.must(err)
			if out.Generation != 0 {
				t.Fatal("it came into force by the approval of somebody who is revoked")
			}
			if got := b.Env.ApprovedBy(out.Change); len(got) != 1 || got[0] != "carol" {
				t.Errorf("it is shown as approved by %v", got)
			}
			b.inForce(1)
			// Bob comes back, and approves anew: what he signed before is dead.
			b.lift(scope, "alice", "carol", "dave")
			b.inForce(1)
			b.by["bob"] = b.Login("bob")
			out, err = b.Approve(b.by["bob"], "bob", ch)
			b.must(err)
			if out.Generation != 2 || len(out.Change.Approvals) != 2 {
				t.Fatalf("%+v %+v", out, out.Change)
			}
			b.inForce(2)
		})
	}
}

// A hold without a cutoff suspends an approval: when it is over, the approval counts again, and whoever approves again carries the
// change out.
func TestApprovalUnderHold(t *testing.T) {
	b := newBoard(t, 2, "alice", "bob", "carol", "dave")
	ch := b.propose("alice", "x")
	_, err := b.Approve(b.by["bob"], "bob", ch)
	b.must(err)
	_, err = b.Approve(b.by["bob"], "bob", ch)
	b.refused(err, problem.ReasonSeparation)
	_, err = b.Env.Revoke(context.Background(), b.by["dave"].Caller, control.RevokeRequest{Scope: "identity:/human/bob", HoldOnly: true, Reason: "test"})
	b.must(err)
	_, err = b.Approve(b.by["carol"], "carol", ch)
	b.must(err)
	b.inForce(1)
	b.lift("identity:/human/bob", "alice", "carol", "dave")
	out, err := b.Approve(b.by["carol"], "carol", ch)
	b.must(err)
	if out.Generation != 2 {
		t.Fatalf("%+v", out)
	}
	b.inForce(2)
}

// A proposal does not outlive its proposer's revocation.
func TestProposalDerivesFromItsProposer(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	ch := b.propose("alice", "x")
	b.revoke("carol", "identity:/human/alice")
	_, err := b.Approve(b.by["bob"], "bob", ch)
	b.refused(err, problem.ReasonCutoff)
	b.inForce(1)
}

// The key that signed is judged, and not just that of the login.
func TestSignatureByHeldKey(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	b.AddPerson("spare") // a second key of bob
	line := func(p string) string {
		return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(b.Persons[p].PublicKey())), "\n")
	}
	duties := "[propose, approve, revoke, admit, keys, audit]"
	b.Files["operators.yaml"] = fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Operators\nmetadata: {name: operators}\nspec:\n  operators:\n    - name: alice\n      keys: [%q]\n      duties: %s\n    - name: bob\n      keys: [%q, %q]\n      duties: %s\n    - name: carol\n      keys: [%q]\n      duties: %s\n",
		line("alice"), duties, line("bob"), line("spare"), duties, line("carol"), duties)
	_, err := b.Approve(b.by["carol"], "carol", b.propose("alice", "two keys")) // bob would give himself a key
	b.must(err)
	b.revoke("alice", b.key("spare"))

	ch := b.propose("alice", "x")
	c := b.Approval("bob", ch)
	_, err = b.Env.Approve(context.Background(), b.by["bob"].Caller, control.ApproveRequest{Change: ch.Index, Text: c.Text(), SSHSIG: b.Sign("spare", ceremony.NamespaceChange, c.Text())})
	b.refused(err, problem.ReasonHeld)

	text := b.Change("bob", control.ActionLiftHold, b.Hold(b.key("spare")), nil).Text()
	_, err = b.Env.Propose(context.Background(), b.by["bob"].Caller, control.ProposeRequest{Text: text, SSHSIG: b.Sign("spare", ceremony.NamespaceChange, text)})
	b.refused(err, problem.ReasonHeld)
	b.inForce(2)
}

// An approval about one hold is none for another one on the same scope.
func TestApprovalNamesItsHold(t *testing.T) {
	const scope = "identity:/workload/api"
	for _, action := range []string{control.ActionLiftHold, control.ActionConfirmCut} {
		t.Run(action, func(t *testing.T) {
			b := newBoard(t, 2, "alice", "bob", "carol", "dave")
			first := b.revoke("dave", scope)
			p, err := b.act("alice", action, b.Hold(scope))
			b.must(err)
			_, err = b.Approve(b.by["bob"], "bob", p.Change)
			b.must(err)
			b.lift(scope, "alice", "bob", "carol")
			second := b.revoke("dave", scope) // a new incident
			_, err = b.Approve(b.by["carol"], "carol", p.Change)
			b.refused(err, problem.ReasonConflict)
			if h, ok := b.Env.State().Holds.Get(scope); !ok || h.Index != second.Index {
				t.Fatalf("what was said of hold %d had an effect on %d: %+v", first.Index, second.Index, h)
			}
			for _, target := range []string{scope, state.HoldTarget(scope, first.Index), state.HoldTarget("identity:/workload/other", second.Index)} {
				if _, err := b.act("alice", action, target); err == nil {
					t.Errorf("a change about %s was proposed", target)
				}
			}
			b.inForce(1)
		})
	}
}

// A retry of a proposal gives its first effect, also when that is in force by now.
func TestProposalRetriedAfterItsEffect(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob")
	ctx := context.Background()
	alice := b.by["alice"]
	files := b.with("README.md", "x")
	m, c := b.NextBundle(alice, "alice", files)
	text := c.Text()
	req := control.ProposeRequest{
		Text: text, SSHSIG: b.Sign("alice", ceremony.NamespaceChange, text), Manifest: m.Text(), Files: files,
		ManifestSignature: b.Sign("alice", ceremony.NamespaceBundle, string(m.Text())), Key: "k",
	}
	first, err := b.Env.Propose(ctx, alice.Caller, req)
	b.must(err)
	size := b.Env.Ledger().Size()
	for _, when := range []string{"open", "in force"} {
		again, err := b.Env.Propose(ctx, alice.Caller, req)
		if err != nil || again.Index != first.Index || b.Env.Ledger().Size() != size {
			t.Fatalf("%s: %+v %v", when, again, err)
		}
		if when == "open" {
			_, err = b.Approve(b.by["bob"], "bob", first.Change)
			b.must(err)
			size = b.Env.Ledger().Size()
		}
	}
	req.Text = strings.Replace(req.Text, "test", "rest", 1)
	if _, err = b.Env.Propose(ctx, alice.Caller, req); err == nil {
		t.Error("another request under the same key went through")
	}
}

// Nobody fills the room for open changes, and bundles don't take that of containment.
func TestRoomForChanges(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	b.revoke("carol", "identity:/workload/api")
	hold := b.Hold("identity:/workload/api")
	for _, action := range []string{control.ActionBundle, control.ActionLiftHold} {
		n := 0
		for ; n < 20; n++ {
			var err error
			if action == control.ActionBundle {
				_, err = b.Propose(b.by["alice"], "alice", b.with("README.md", fmt.Sprint(n)))
			} else {
				_, err = b.act("alice", action, hold)
			}
			if err != nil {
				b.refused(err, problem.ReasonLimit)
				break
			}
		}
		if n != 8 {
			t.Errorf("%s: %d changes of one proposer", action, n)
		}
	}
	p, err := b.act("bob", control.ActionLiftHold, hold)
	b.must(err)
	_, err = b.Approve(b.by["carol"], "carol", p.Change)
	b.must(err)
	// What can't be carried out any more takes no room.
	_, err = b.Approve(b.by["bob"], "bob", b.propose("carol", "new"))
	b.must(err)
	if ch := b.propose("alice", "once more"); ch.State != state.Proposed {
		t.Errorf("%+v", ch)
	}
	if open, err := b.Env.ListChanges(context.Background(), b.by["bob"].Caller, control.ChangeFilter{Open: true}); err != nil || !slices.ContainsFunc(open, func(v control.ChangeView) bool { return v.Proposer == "/human/alice" }) {
		t.Errorf("%v %v", open, err)
	}
}

// A change is open for a fortnight at most, also when the difference of its moments is more than a duration can say.
func TestChangesEnd(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob")
	b.revoke("bob", "identity:/workload/api")
	const most = 1<<63 - 1
	for _, life := range [][]time.Duration{{most, most, 2, time.Hour}, {most}, {15 * 24 * time.Hour}, {30 * time.Second}} {
		c := b.Change("alice", control.ActionLiftHold, b.Hold("identity:/workload/api"), nil)
		c.Expires = b.Now()
		for _, by := range life {
			c.Expires = c.Expires.Add(by)
		}
		c.Expires = c.Expires.Truncate(time.Second)
		text := c.Text()
		_, err := b.Env.Propose(context.Background(), b.by["alice"].Caller, control.ProposeRequest{Text: text, SSHSIG: b.Sign("alice", ceremony.NamespaceChange, text)})
		b.refused(err, problem.ReasonInvalid)
	}
	b.inForce(1)
}

// Whoever is listed by a key that no signature is accepted of could never approve anything: such a bundle locks an environment up.
func TestOperatorsCanSign(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	b := newBoard(t, 0, "alice")
	line := strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(public)), "\n")
	text := fmt.Sprintf("apiVersion: bailment/v1\nkind: Operators\nmetadata: {name: operators}\nspec:\n  operators:\n    - name: alice\n      keys: [%q]\n      duties: [propose, approve]\n", line)
	_, err = b.Propose(b.by["alice"], "alice", b.with("operators.yaml", text))
	b.refused(err, problem.ReasonBundleInvalid)
}

// A bundle that was proposed to a release which looked less closely does not come into force by this one without its findings, be they the
// compiler's or a verifier's.
func TestApprovesByItsOwnFindings(t *testing.T) {
	// This release has no tpm.
	ms := slices.DeleteFunc(methods.All(), func(m attest.Method) bool { return m.Name == "tpm" })
	b := newBoardOf(t, controltest.Options{Persons: []string{"alice", "bob"}, Quorum: 1, Methods: ms})
	ch := b.propose("alice", "as good as any")
	for want, file := range map[string][2]string{
		"no agent could run": {"environment.yaml", strings.Replace(string(b.Files["environment.yaml"]), "spec:\n", "spec:\n  agents: {require: signed}\n", 1)},
		"the authority rack": {"authorities/rack.yaml", "apiVersion: bailment/v1\nkind: Authority\nmetadata: {name: rack}\nspec: {method: tpm, endorsementKeys: ['sha256:" + strings.Repeat("ab", 32) + "']}\n"},
	} {
		_, err := b.Approve(b.by["bob"], "bob", b.elsewhere(ch, b.with(file[0], file[1])))
		b.refused(err, problem.ReasonBundleInvalid)
		if !strings.Contains(problem.As(err).Message, want) {
			t.Errorf("it doesn't say %q: %v", want, err)
		}
		b.inForce(1)
	}
	_, err := b.Approve(b.by["bob"], "bob", ch)
	b.must(err)
	b.inForce(2)
}

// elsewhere enters another bundle as a proposal like one that there is, as a release does that finds nothing in it.
func (b *board) elsewhere(like *state.Change, files policy.Files) *state.Change {
	b.T.Helper()
	entry, err := state.Decode(b.Stored()[like.Index].Body)
	b.must(err)
	older, ok := entry.Event.(*state.ChangeProposed)
	if !ok {
		b.T.Fatalf("entry %d is a %T", like.Index, entry.Event)
	}
	base, _, _, err := b.Env.Bundle(context.Background(), b.by["alice"].Caller, state.Digest{})
	b.must(err)
	m, err := policy.BuildManifest(files, policy.Header{
		Environment: controltest.EnvName, Genesis: policy.Digest(b.Genesis), Version: base.Header().Version + 1, Previous: base.Digest(),
	})
	b.must(err)
	older.Manifest, older.Nonce = state.Digest(m.Digest()), controltest.Nonce()
	blobs := []store.Blob{{Digest: store.Digest(m.Digest()), Data: m.Text()}}
	for _, f := range m.Files() {
		blobs = append(blobs, store.Blob{Digest: store.Digest(f.Digest), Data: files[f.Path]})
	}
	index, _, err := ledger.Commit(context.Background(), b.Env.Ledger(), func(_ *state.State, at ledger.At) (ledger.Draft, uint64, error) {
		e := &state.Entry{Time: state.At(at.Time), Event: older}
		body, err := state.Encode(e)
		return ledger.Draft{Records: []ledger.Record{{Body: body, Event: e}}, Blobs: blobs}, at.Index, err
	})
	b.must(err)
	proposed, ok := b.Env.State().Changes.Get(index)
	if !ok {
		b.T.Fatal("it is not proposed")
	}
	return proposed
}

// Who proposes and rejects, and proposes again, does not fill the state and the store.
func TestChangesOfADay(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob")
	b.revoke("bob", "identity:/workload/api")
	hold := b.Hold("identity:/workload/api")
	n := 0
	for ; n < 300; n++ {
		p, err := b.act("alice", control.ActionLiftHold, hold)
		if err != nil {
			b.refused(err, problem.ReasonLimit)
			break
		}
		_, err = b.Env.Reject(context.Background(), b.by["alice"].Caller, p.Change.Index, "")
		b.must(err)
	}
	if n != 200 {
		t.Errorf("%d changes in a day", n)
	}
	_, err := b.act("bob", control.ActionLiftHold, hold)
	b.must(err)
	b.propose("alice", "a bundle")
	b.inForce(1)
	b.Advance(25 * time.Hour)
	b.by["alice"] = b.Login("alice")
	_, err = b.act("alice", control.ActionLiftHold, hold)
	b.must(err)
	b.inForce(1)
}
