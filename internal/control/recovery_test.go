package control_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/sshsig"
	"github.com/bailment/bailment/internal/state"
)

// custodians is a board whose bundle prepares a recovery by two of rita, sam and tess, after three days.
type custodians struct {
	*board
	operators []byte // with dora and erin in the place of alice and bob
}

const recoveryDelay = 72 * time.Hour

func newCustodians(t *testing.T) *custodians {
	t.Helper()
	c := &custodians{board: newBoard(t, 1, "alice", "bob", "carol")}
	c.Files["environment.yaml"] = c.Recoverable(c.Files["environment.yaml"], 2, recoveryDelay, "rita", "sam", "tess")
	c.bring("alice", "bob", c.Files)
	c.AddPerson("dora")
	c.AddPerson("erin")
	c.operators = c.Operators("carol", "dora", "erin")
	return c
}

// bring brings files into force.
func (b *board) bring(proposer, approver string, files policy.Files) *state.Change {
	b.T.Helper()
	p, err := b.Propose(b.by[proposer], proposer, files)
	b.must(err)
	_, err = b.Approve(b.by[approver], approver, p.Change)
	b.must(err)
	return p.Change
}

// begin begins a recovery by rita and sam.
func (c *custodians) begin() *control.Recovering {
	c.T.Helper()
	out, err := c.Recover(c.RecoveryOf(c.operators), c.operators, "rita", "sam")
	c.must(err)
	return out
}

func (c *custodians) carryOut() uint64 {
	c.T.Helper()
	index, err := c.Env.CarryOutRecovery(context.Background())
	c.must(err)
	return index
}

func (c *custodians) isOperator(name string) bool {
	_, ok := c.Env.Program().Operator(name)
	return ok
}

// The way of one: it is public, waits, replaces the operators and nothing else, and ends what those had open.
func TestRecovery(t *testing.T) {
	c := newCustodians(t)
	ctx := context.Background()
	open := c.propose("alice", "left behind")
	before, files := c.InForce()
	s := c.begin()
	if got := c.Env.State().Recovery(); got == nil || got.Index != s.Index || !got.Until.Time().Equal(s.Until) || len(got.Signatures) != 2 {
		t.Fatalf("%+v", got)
	}
	view, err := c.Env.ShowRecovery(ctx)
	c.must(err)
	if view.Recovery == nil || view.Bundle != c.Env.State().Bundle || view.Header != before.Header() {
		t.Errorf("it is shown as %+v", view)
	}
	if n := c.carryOut(); n != 0 || !c.isOperator("alice") {
		t.Fatal("it was carried out at once")
	}
	// A crash between beginning and end, and a start from a snapshot: it is still there, and as early as before.
	c.must(c.Env.Snapshot(ctx))
	c.Advance(recoveryDelay - time.Hour)
	if n := c.carryOut(); n != 0 || !c.isOperator("alice") || c.Env.State().Recovery() == nil {
		t.Fatal("it was carried out early, or forgotten")
	}
	alice := c.Login("alice")
	// A server that was away does it later: by itself, as soon as it is there.
	c.Advance(7 * 24 * time.Hour)
	c.awaitRecovery()
	if c.isOperator("alice") || c.isOperator("bob") || !c.isOperator("carol") || !c.isOperator("dora") {
		t.Fatal("the operators were not replaced")
	}
	after, now := c.InForce()
	if diff := policy.ChangedFiles(files, now); len(diff) != 1 || diff[0] != "operators.yaml" || after.Header().Previous != before.Digest() {
		t.Errorf("it changed %q", diff)
	}
	// Who is no operator any more has no session, and what he proposed has no base.
	_, err = c.Env.ListChanges(ctx, alice.Caller, control.ChangeFilter{})
	recoveryRefused(t, err, problem.ReasonSessionUnknown)
	carol, dora, erin := c.Login("carol"), c.Login("dora"), c.Login("erin")
	_, err = c.Approve(carol, "carol", open)
	recoveryRefused(t, err, problem.ReasonConflict)
	p, err := c.Propose(dora, "dora", c.withFiles(now, "README.md", "after"))
	c.must(err)
	_, err = c.Approve(erin, "erin", p.Change)
	c.must(err)
	if _, found, err := c.Env.Check(ctx); err != nil || len(found) > 0 {
		t.Errorf("%v %v", found, err)
	}
}

func (b *board) withFiles(files policy.Files, path, text string) policy.Files {
	out := maps.Clone(files)
	out[path] = []byte(text)
	return out
}

func recoveryRefused(t *testing.T, err error, want problem.Reason) {
	t.Helper()
	if !problem.Is(err, want) {
		t.Errorf("got %v, want a refusal: %s", err, want)
	}
}

// awaitRecovery waits until the environment has carried it out by itself.
func (c *custodians) awaitRecovery() {
	c.T.Helper()
	limit := time.After(20 * time.Second)
	for c.Env.State().Recovery() != nil {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-limit:
			c.T.Fatal("it is not carried out")
		}
	}
}

// A live session of somebody who is replaced is one of nobody.
func TestRecoveryEndsSessions(t *testing.T) {
	c := &custodians{board: newBoard(t, 1, "alice", "bob")}
	c.Files["environment.yaml"] = c.Recoverable(c.Files["environment.yaml"], 1, time.Second, "rita")
	c.bring("alice", "bob", c.Files)
	c.AddPerson("dora")
	c.operators = c.Operators("bob", "dora")
	_, err := c.Recover(c.RecoveryOf(c.operators), c.operators, "rita")
	c.must(err)
	c.awaitRecovery()
	_, err = c.Env.ListChanges(context.Background(), c.by["alice"].Caller, control.ChangeFilter{})
	recoveryRefused(t, err, problem.ReasonDuty)
	_, err = c.Env.ListChanges(context.Background(), c.by["bob"].Caller, control.ChangeFilter{})
	c.must(err)
}

// What begins none, and why.
func TestRecoveryRefusals(t *testing.T) {
	c := newCustodians(t)
	elsewhere := newCustodians(t)
	base := c.Env.State().Bundle
	for name, x := range map[string]struct {
		edit    func(*ceremony.Recovery)
		by      []string
		file    []byte
		refused problem.Reason
	}{
		"too few signers":          {by: []string{"rita"}, refused: problem.ReasonQuorum},
		"nobody":                   {by: []string{}, refused: problem.ReasonQuorum},
		"too many signers":         {by: []string{"rita", "sam", "tess"}, refused: problem.ReasonInvalid},
		"one person twice":         {by: []string{"rita", "rita"}, refused: problem.ReasonSeparation},
		"an operator":              {by: []string{"rita", "alice"}, refused: problem.ReasonSignature},
		"who is to be an operator": {by: []string{"rita", "dora"}, refused: problem.ReasonSignature},
		"another genesis":          {edit: func(r *ceremony.Recovery) { r.Genesis = elsewhere.Genesis }, refused: problem.ReasonWrongEnvironment},
		"another environment":      {edit: func(r *ceremony.Recovery) { r.Environment = "elsewhere" }, refused: problem.ReasonWrongEnvironment},
		"another epoch":            {edit: func(r *ceremony.Recovery) { r.Epoch++ }, refused: problem.ReasonWrongEnvironment},
		"another base":             {edit: func(r *ceremony.Recovery) { r.Base = state.Digest{1}.String() }, refused: problem.ReasonConflict},
		"another new bundle":       {edit: func(r *ceremony.Recovery) { r.New = state.Digest{1}.String() }, refused: problem.ReasonSignature},
		"the same bundle":          {edit: func(r *ceremony.Recovery) { r.New = base.String() }, refused: problem.ReasonSignature},
		"another file":             {edit: func(r *ceremony.Recovery) { r.Operators = state.Digest{1}.String() }, refused: problem.ReasonSignature},
		"other operators":          {file: c.Operators("carol", "dora"), refused: problem.ReasonSignature},
		"others before":            {edit: func(r *ceremony.Recovery) { r.Before = r.Before[1:] }, refused: problem.ReasonSignature},
		"others after":             {edit: func(r *ceremony.Recovery) { r.After[0] += " SHA256:x" }, refused: problem.ReasonSignature},
		"a shorter delay":          {edit: func(r *ceremony.Recovery) { r.Delay = time.Hour }, refused: problem.ReasonSignature},
		"no delay":                 {edit: func(r *ceremony.Recovery) { r.Delay = 0 }, refused: problem.ReasonSignature},
		"fewer are enough":         {edit: func(r *ceremony.Recovery) { r.Required = 1 }, by: []string{"rita"}, refused: problem.ReasonSignature},
		"an expired text":          {edit: func(r *ceremony.Recovery) { r.Expires = c.Now().Add(-time.Minute).UTC().Truncate(time.Second) }, refused: problem.ReasonExpired},
		"a text for long":          {edit: func(r *ceremony.Recovery) { r.Expires = r.Expires.Add(15 * 24 * time.Hour) }, refused: problem.ReasonInvalid},
		"a malformed nonce":        {edit: func(r *ceremony.Recovery) { r.Nonce = "00FF" }, refused: problem.ReasonReplayed},
		"no reason":                {edit: func(r *ceremony.Recovery) { r.Reason = "" }, refused: problem.ReasonInvalid},
		"the same operators":       {file: c.Files["operators.yaml"], refused: problem.ReasonInvalid},
		"a file that is none":      {file: []byte("x"), refused: problem.ReasonSignature},
		"a file that is huge":      {file: bytes.Repeat([]byte("#"), policy.MaxFileBytes+1), refused: problem.ReasonTooLarge},
	} {
		r, by, file := c.RecoveryOf(c.operators), []string{"sam", "rita"}, c.operators
		if x.by != nil {
			by = x.by
		}
		if x.edit != nil {
			x.edit(&r)
		}
		if x.file != nil {
			file = x.file
		}
		if _, err := c.Recover(r, file, by...); !problem.Is(err, x.refused) {
			t.Errorf("%s: %v, want %s", name, err, x.refused)
		}
	}
	if c.Env.State().Recovery() != nil {
		t.Error("one began")
	}
}

// Operators who could not act, or who would hold a recovery key, are none that a recovery brings.
func TestRecoveryOperators(t *testing.T) {
	c := newCustodians(t)
	for name, operators := range map[string][]byte{
		"one, where a change takes two": c.Operators("dora"),
		"nobody":                        []byte("apiVersion: bailment/v1\nkind: Operators\nmetadata: {name: operators}\nspec: {operators: []}\n"),
		"a recovery key":                c.Operators("dora", "erin", "tess"),
		"a grant beside them":           append(bytes.Clone(c.operators), "---\napiVersion: bailment/v1\nkind: Grant\nmetadata: {name: mine}\nspec: {actions: [secret.read], identities: [/human/dora], secrets: [\"*\"], purposes: [runtime]}\n"...),
		"another kind":                  c.Files["grants/all.yaml"],
	} {
		base, files := c.InForce()
		m, _, err := policy.Recovered(base, policy.Digest(c.Genesis), files, operators)
		c.must(err)
		r := c.RecoveryOf(c.operators)
		r.New, r.Operators = m.Digest().String(), policy.OperatorsDigest(operators).String()
		_, err = c.Recover(r, operators, "rita", "sam")
		if !problem.Is(err, problem.ReasonBundleInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Who is named by a grant and is an operator no more is no reason to refuse them: the grant is one to nobody then.
	files := c.with("grants/alice.yaml", "apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: alices}\nspec: {actions: [secret.read], identities: [/human/alice], secrets: [db/*], purposes: [runtime]}\n")
	c.bring("alice", "bob", files)
	c.begin()
	c.Advance(recoveryDelay + time.Hour)
	c.carryOut()
	c.Reopen()
	if !c.isOperator("dora") || c.isOperator("alice") {
		t.Error("it was not carried out, or doesn't open again")
	}
}

// Signatures count in their namespace, over these bytes, by a key that is listed for that person now.
func TestRecoverySignatures(t *testing.T) {
	c := newCustodians(t)
	ctx := context.Background()
	r := c.RecoveryOf(c.operators)
	good := func(person string) state.Signature {
		return state.Signature{Person: person, SSHSIG: c.Sign(person, ceremony.NamespaceRecovery, r.Text())}
	}
	try := func(by ...state.Signature) error {
		_, err := c.Env.Recover(ctx, control.RecoveryRequest{Text: r.Text(), Operators: c.operators, Signatures: by})
		return err
	}
	for name, second := range map[string]state.Signature{
		"another namespace": {Person: "sam", SSHSIG: c.Sign("sam", ceremony.NamespaceChange, r.Text())},
		"another text":      {Person: "sam", SSHSIG: c.Sign("sam", ceremony.NamespaceRecovery, r.Text()+"x")},
		"another's":         {Person: "sam", SSHSIG: good("tess").SSHSIG},
		"rita's once more":  {Person: "sam", SSHSIG: good("rita").SSHSIG},
		"none":              {Person: "sam", SSHSIG: "x"},
		"nobody's":          {Person: "", SSHSIG: good("sam").SSHSIG},
	} {
		if err := try(good("rita"), second); !problem.Is(err, problem.ReasonSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Keys of the bundle in force: who held one before doesn't any more.
	was := c.RecoveryOf(c.operators)
	files := maps.Clone(c.Files)
	files["environment.yaml"] = bytes.Replace(files["environment.yaml"], []byte("person: sam"), []byte("person: uma"), 1)
	c.bring("alice", "bob", files)
	_, err := c.Recover(was, c.operators, "rita", "sam")
	recoveryRefused(t, err, problem.ReasonConflict)
	r = c.RecoveryOf(c.operators)
	recoveryRefused(t, try(good("rita"), good("sam")), problem.ReasonSignature)
}

// Where nothing is prepared, nobody recovers.
func TestRecoveryUnprepared(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	b.AddPerson("dora")
	operators := b.Operators("bob", "dora")
	r := b.RecoveryOf(operators)
	r.Required, r.Delay = 1, time.Hour
	_, err := b.Recover(r, operators, "alice")
	recoveryRefused(t, err, problem.ReasonUnsupported)
}

// One at a time, and once: the same text is the same recovery, and none later.
func TestRecoveryOnce(t *testing.T) {
	c := newCustodians(t)
	r := c.RecoveryOf(c.operators)
	first, err := c.Recover(r, c.operators, "rita", "sam")
	c.must(err)
	again, err := c.Recover(r, c.operators, "rita", "sam")
	c.must(err)
	if again.Index != first.Index || !again.Until.Equal(first.Until) {
		t.Errorf("%+v, and then %+v", first, again)
	}
	_, err = c.Recover(c.RecoveryOf(c.operators), c.operators, "sam", "tess")
	recoveryRefused(t, err, problem.ReasonConflict)

	_, err = c.Withdraw(c.WithdrawalOf("rita"), "rita")
	c.must(err)
	_, err = c.Recover(r, c.operators, "rita", "sam")
	recoveryRefused(t, err, problem.ReasonReplayed)
	c.begin()
	c.Advance(recoveryDelay + time.Hour)
	c.carryOut()
	_, err = c.Recover(r, c.operators, "rita", "sam")
	if !problem.Is(err, problem.ReasonExpired) {
		t.Errorf("after it was carried out: %v", err)
	}
}

// A quorum of the operators stops it by any change; one person's rollback does not, and what it brings back is what the operators of are
// replaced.
func TestRecoverySuperseded(t *testing.T) {
	c := newCustodians(t)
	ch := c.bring("alice", "bob", c.with("grants/wide.yaml", "apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: wide}\nspec: {actions: [secret.read], identities: [/node/*], secrets: [db/*], purposes: [runtime]}\n"))
	c.begin()
	_, err := c.Env.RollBack(context.Background(), c.by["carol"].Caller, control.RollbackRequest{Change: ch.Index, Reason: "too wide"})
	c.must(err)
	if c.Env.State().Recovery() == nil {
		t.Fatal("a rollback by one person ended it")
	}
	_, rolled := c.InForce()
	// And what is on its way is not in force, and stops nothing.
	c.Advance(recoveryDelay + time.Hour)
	c.carryOut()
	_, files := c.InForce()
	if diff := policy.ChangedFiles(rolled, files); len(diff) != 1 || diff[0] != "operators.yaml" || !c.isOperator("dora") {
		t.Errorf("over the rollback it changed %q", diff)
	}
	if _, found, err := c.Env.Check(context.Background()); err != nil || len(found) > 0 {
		t.Errorf("%v %v", found, err)
	}

	c = newCustodians(t)
	c.begin()
	c.bring("alice", "bob", c.with("README.md", "we are here"))
	if c.Env.State().Recovery() != nil {
		t.Fatal("a change that a quorum approved didn't end it")
	}
	c.Advance(recoveryDelay + time.Hour)
	if n := c.carryOut(); n != 0 || !c.isOperator("alice") {
		t.Error("it was carried out all the same")
	}
}

// A change that is still being rolled out stops nothing, and ends with the operators who approved it.
func TestRecoveryEndsRollout(t *testing.T) {
	c := newCustodians(t)
	c.Files["rollouts/default.yaml"] = []byte(strings.ReplaceAll(stagedRollout, "10m", "100h"))
	c.bring("alice", "bob", c.Files)
	ch := c.bring("alice", "bob", c.with("README.md", "slowly"))
	c.begin()
	c.Advance(recoveryDelay + time.Hour)
	c.carryOut()
	if got, _ := c.Env.State().Changes.Get(ch.Index); got.State != state.RolledBack || c.Env.State().Staged() != nil || !c.isOperator("dora") {
		t.Errorf("the change is %s", got.State)
	}
	if _, found, err := c.Env.Check(context.Background()); err != nil || len(found) > 0 {
		t.Errorf("%v %v", found, err)
	}
}

// A rollback never brings back who may recover, as it brings back no operators.
func TestRollbackKeepsRecovery(t *testing.T) {
	c := newCustodians(t)
	files := c.with("README.md", "and another key")
	files["environment.yaml"] = bytes.Replace(files["environment.yaml"], []byte("person: sam"), []byte("person: uma"), 1)
	ch := c.bring("alice", "bob", files)
	_, err := c.Env.RollBack(context.Background(), c.by["carol"].Caller, control.RollbackRequest{Change: ch.Index, Reason: "back"})
	c.must(err)
	if by := c.Env.Program().Environment().Recovery; len(by.Of("uma")) != 1 || len(by.Of("sam")) != 0 {
		t.Errorf("it is %+v", by)
	}
}

// Only its signers take their signature back, and one is enough.
func TestRecoveryWithdrawal(t *testing.T) {
	c := newCustodians(t)
	s := c.begin()
	for name, x := range map[string]struct {
		edit    func(*ceremony.Withdrawal)
		by      string
		refused problem.Reason
	}{
		"who didn't sign":     {func(w *ceremony.Withdrawal) { w.Person = "tess" }, "tess", problem.ReasonSeparation},
		"an operator":         {func(w *ceremony.Withdrawal) { w.Person = "alice" }, "alice", problem.ReasonSeparation},
		"another's name":      {func(*ceremony.Withdrawal) {}, "tess", problem.ReasonSignature},
		"another recovery":    {func(w *ceremony.Withdrawal) { w.Recovery++ }, "sam", problem.ReasonConflict},
		"another bundle":      {func(w *ceremony.Withdrawal) { w.New = state.Digest{1}.String() }, "sam", problem.ReasonSignature},
		"another environment": {func(w *ceremony.Withdrawal) { w.Genesis[0]++ }, "sam", problem.ReasonWrongEnvironment},
		"no reason":           {func(w *ceremony.Withdrawal) { w.Reason = "" }, "sam", problem.ReasonInvalid},
	} {
		w := c.WithdrawalOf("sam")
		x.edit(&w)
		if _, err := c.Withdraw(w, x.by); !problem.Is(err, x.refused) {
			t.Errorf("%s: %v, want %s", name, err, x.refused)
		}
	}
	_, err := c.Withdraw(c.WithdrawalOf("sam"), "sam")
	c.must(err)
	if c.Env.State().Recovery() != nil {
		t.Fatal("it is still under way")
	}
	w := ceremony.Withdrawal{Scope: c.Scope(), Recovery: s.Index, New: state.Digest{1}.String(), Person: "sam", Reason: "x"}
	_, err = c.Withdraw(w, "sam")
	recoveryRefused(t, err, problem.ReasonConflict)
	c.Advance(recoveryDelay + time.Hour)
	if n := c.carryOut(); n != 0 || !c.isOperator("alice") {
		t.Error("it was carried out all the same")
	}
}

// Whatever one operator sets on persons and keys, and he can set it on anything, the last resort stays.
func TestRecoveryUnderHolds(t *testing.T) {
	c := newCustodians(t)
	for _, scope := range []string{"identity:/human/bob", "issuer:ssh:" + sshsig.Fingerprint(c.Persons["rita"].PublicKey()), "issuer:ssh:" + sshsig.Fingerprint(c.Persons["dora"].PublicKey())} {
		_, err := c.Env.Revoke(context.Background(), c.by["alice"].Caller, control.RevokeRequest{Scope: scope, Reason: "mine alone"})
		c.must(err)
	}
	c.begin()
	c.Advance(recoveryDelay + time.Hour)
	c.carryOut()
	if !c.isOperator("dora") || c.isOperator("alice") {
		t.Error("it was not carried out")
	}
}

// A recovery key opens nothing, proposes nothing and approves nothing.
func TestRecoveryKeysDoNothingElse(t *testing.T) {
	c := newCustodians(t)
	ctx := context.Background()
	challenge, _, err := c.Env.Challenge()
	c.must(err)
	_, csr := controltest.Key(t)
	_, err = c.Env.Login(ctx, control.LoginRequest{Challenge: challenge, Person: "rita", SSHSIG: c.Sign("rita", ceremony.NamespaceLogin, "x"), CSR: csr})
	recoveryRefused(t, err, problem.ReasonSignature)
	_, err = c.Propose(c.by["alice"], "rita", c.with("README.md", "mine"))
	recoveryRefused(t, err, problem.ReasonSignature)
	ch := c.propose("alice", "theirs")
	_, err = c.Approve(c.by["bob"], "rita", ch)
	recoveryRefused(t, err, problem.ReasonSignature)
}

// Two who begin one at the same time: one does, the other is told.
func TestRecoveryRaces(t *testing.T) {
	c := newCustodians(t)
	one, two := c.RecoveryOf(c.operators), c.RecoveryOf(c.operators)
	errs := make(chan error, 2)
	for _, r := range []ceremony.Recovery{one, two} {
		go func() {
			_, err := c.Recover(r, c.operators, "rita", "sam")
			errs <- err
		}()
	}
	a, b := <-errs, <-errs
	if (a == nil) == (b == nil) || a != nil && !problem.Is(a, problem.ReasonConflict) || b != nil && !problem.Is(b, problem.ReasonConflict) {
		t.Errorf("%v, %v", a, b)
	}
}

// What was entered is verified with ssh-keygen alone.
func TestRecoveryBySSHKeygen(t *testing.T) {
	c := newCustodians(t)
	c.begin()
	r := c.Env.State().Recovery()
	dir := t.TempDir()
	var allowed strings.Builder
	for _, p := range []string{"rita", "sam", "tess"} {
		fmt.Fprintf(&allowed, "%s %s", p, ssh.MarshalAuthorizedKey(c.Persons[p].PublicKey()))
	}
	c.must(os.WriteFile(filepath.Join(dir, "custodians"), []byte(allowed.String()), 0o600))
	for _, x := range r.Signatures {
		c.must(os.WriteFile(filepath.Join(dir, "sig"), []byte(x.SSHSIG), 0o600))
		for _, way := range []struct{ namespace, text string }{{ceremony.NamespaceRecovery, r.Text}, {ceremony.NamespaceChange, r.Text}, {ceremony.NamespaceRecovery, r.Text + "x"}} {
			cmd := exec.Command("ssh-keygen", "-Y", "verify", "-f", "custodians", "-I", x.Person, "-n", way.namespace, "-s", "sig")
			cmd.Dir, cmd.Stdin = dir, strings.NewReader(way.text)
			out, err := cmd.CombinedOutput()
			if good := way.namespace == ceremony.NamespaceRecovery && way.text == r.Text; good != (err == nil) {
				t.Errorf("%s in %s: %v %s", x.Person, way.namespace, err, out)
			}
		}
	}
}

// In production the new operators must leave nobody indispensable, as a change must; and one signature is never enough.
func TestRecoveryInProduction(t *testing.T) {
	src, err := seal.NewSource(nil)
	if err != nil {
		t.Fatal(err)
	}
	holder, err := file.Create(t.TempDir()+"/root.key", src)
	if err != nil {
		t.Fatal(err)
	}
	releases := "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBwiBcxF9wiBbT2I9ADzUUQ/IfPSuTLWzeIsKeWtFrzy"
	c := &custodians{board: newBoardOf(t, controltest.Options{
		Persons: []string{"alice", "bob", "carol"}, Class: "production", Quorum: 1, Holder: sturdy{holder},
		Extra: policy.Files{"environment.yaml": []byte("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: " + controltest.EnvName +
			"}\nspec:\n  class: production\n  agents: {signers: ['" + releases + "']}\n")},
	})}
	c.Files["environment.yaml"] = c.Recoverable(c.Files["environment.yaml"], 2, recoveryDelay, "rita", "sam", "tess")
	c.bring("alice", "bob", c.Files)
	c.AddPerson("dora")
	c.AddPerson("erin")
	for name, x := range map[string]struct {
		persons []string
		refused problem.Reason
	}{
		"two, of whom each is needed": {[]string{"dora", "erin"}, problem.ReasonLastQuorum},
		"one":                         {[]string{"dora"}, problem.ReasonBundleInvalid},
	} {
		operators := c.Operators(x.persons...)
		base, files := c.InForce()
		m, after, err := policy.Recovered(base, policy.Digest(c.Genesis), files, operators)
		c.must(err)
		all := c.Operators("carol", "dora", "erin")
		r := c.RecoveryOf(all)
		r.New, r.Operators = m.Digest().String(), policy.OperatorsDigest(operators).String()
		if p, err := policy.CompileRecovered(after); err == nil {
			r.After = p.Persons()
		}
		if _, err := c.Recover(r, operators, "rita", "sam"); !problem.Is(err, x.refused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.operators = c.Operators("carol", "dora", "erin")
	c.begin()
}

// Nobody approves that he gets a recovery key himself.
func TestNobodyApprovesHisOwnRecoveryKey(t *testing.T) {
	c := newCustodians(t)
	key := bytes.TrimSpace(ssh.MarshalAuthorizedKey(c.AddPerson("spare").PublicKey()))
	files := maps.Clone(c.Files)
	files["environment.yaml"] = fmt.Appendf(bytes.Clone(files["environment.yaml"]), "      - {person: bob, key: %q}\n", key)
	p, err := c.Propose(c.by["alice"], "alice", files)
	c.must(err)
	_, err = c.Approve(c.by["bob"], "bob", p.Change)
	recoveryRefused(t, err, problem.ReasonSeparation)
	_, err = c.Approve(c.by["carol"], "carol", p.Change)
	c.must(err)
}
