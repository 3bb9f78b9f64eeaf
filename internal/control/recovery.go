package control

import (
	"context"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/plan"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/sshsig"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// The last resort (docs/design/0025): the holders of recovery keys replace the operators. Nobody logs in for it, since maybe nobody can: what
// counts are the signatures. Holds and cutoffs count neither for them nor against them: one operator can set those, and it is from operators
// that this is to recover.

// RecoveryRequest begins a recovery.
type RecoveryRequest struct {
	Text       string
	Signatures []state.Signature // of Person and SSHSIG; exactly as many as it takes
	Operators  []byte            // the file that lists the operators after it
}

// Recovering is a recovery as it was entered.
type Recovering struct {
	Index uint64
	Until time.Time // when it is carried out
	Proof *ledger.Proof
}

// recovery is a checked request.
type recovery struct {
	text       ceremony.Recovery
	signatures []state.Signature
	manifest   *policy.Manifest
	after      *policy.Program
	base       state.Digest
}

// RecoveryAttempt is what an attempt to begin or end a recovery counts as.
func (e *Environment) RecoveryAttempt() Attempt {
	if prog := e.Program(); prog == nil || !prog.Environment().Recovery.Prepared() {
		return Attempt{Subject: unknownSubject}
	}
	return Attempt{Subject: "recovery"}
}

// Recover begins to replace the operators. Anybody may bring what the holders of recovery keys signed. The same text again, while it is under
// way, gives the same answer.
func (e *Environment) Recover(ctx context.Context, r RecoveryRequest) (*Recovering, error) {
	text, err := ceremony.ParseRecovery(r.Text)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "reading the signed text")
	}
	out, proof, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (*recovery, error) {
			return e.prepareRecovery(ctx, s, r, text)
		},
		func(t *turn, p *recovery) (*Recovering, error) { return t.recover(r, p) })
	if err != nil {
		return nil, err
	}
	out.Proof = proof
	return out, nil
}

// prepareRecovery checks what costs little first: a stranger's request goes no further than to the first signature that is none.
func (e *Environment) prepareRecovery(ctx context.Context, s *state.State, r RecoveryRequest, text ceremony.Recovery) (*recovery, error) {
	p := &recovery{text: text, base: s.Bundle}
	if same := s.Recovery(); same != nil && same.Text == r.Text {
		return p, nil
	}
	prog, err := e.program(ctx, s.Bundle)
	if err != nil {
		return nil, err
	}
	by := prog.Environment().Recovery
	if err := checkRecovery(s, e.scope(s), by, text, state.At(e.cfg.Now())); err != nil {
		return nil, err
	}
	if p.signatures, err = signedBy(by, r); err != nil {
		return nil, err
	}
	base, files, err := e.bundleFiles(ctx, s.Bundle)
	if err != nil {
		return nil, err
	}
	var after policy.Files
	if p.manifest, after, err = policy.Recovered(base, policy.Digest(s.Env.Genesis), files, r.Operators); err != nil {
		return nil, err
	}
	switch {
	case text.Operators != policy.OperatorsDigest(r.Operators).String():
		return nil, unlike("operators")
	case text.New != state.Digest(p.manifest.Digest()).String():
		return nil, unlike("new")
	}
	compiled, err := policy.CompileRecovered(after)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonBundleInvalid, "compiling the bundle with these operators")
	}
	p.after = compiled
	e.programs.put(state.Digest(p.manifest.Digest()), compiled, bundlesOf(s))
	switch {
	case !slices.Equal(text.Before, prog.Persons()):
		return nil, unlike("before")
	case !slices.Equal(text.After, compiled.Persons()):
		return nil, unlike("after")
	}
	return p, plan.Recovery(prog, compiled)
}

func unlike(what string) error {
	return problem.New(problem.ReasonSignature, "the signed text is not about this: %s", what).
		WithFix("prepare it from the bundle in force, and have it signed anew")
}

// checkRecovery says why a text begins no recovery of this environment, of this bundle and now. It is asked again at the head.
func checkRecovery(s *state.State, here ceremony.Scope, by policy.Recovery, text ceremony.Recovery, now state.Millis) error {
	expires := state.At(text.Expires)
	switch {
	case !by.Prepared():
		return problem.New(problem.ReasonUnsupported, "the bundle in force prepares no recovery").WithFix("a change of the bundle prepares it: see docs/howto/recover-operators.md")
	case text.Scope != here:
		return problem.New(problem.ReasonWrongEnvironment, "the signed text is of another environment, genesis or epoch")
	case !validNonce(text.Nonce), s.Once.Has("nonce:" + text.Nonce):
		return problem.New(problem.ReasonReplayed, "the nonce of the signed text was used before or is malformed").WithFix("prepare it anew")
	case now >= expires:
		return problem.New(problem.ReasonExpired, "the recovery could begin until %s", expires).WithFix("prepare it anew, and have it signed")
	case expires > now.Add(maxChangeLife):
		return problem.New(problem.ReasonInvalid, "a recovery expires within %s of its beginning", maxChangeLife)
	case text.Base != s.Bundle.String():
		return problem.New(problem.ReasonConflict, "the recovery is of another bundle than the one in force").
			WithFix("prepare it from the bundle in force, and have it signed anew")
	case text.Required != by.Required:
		return unlike("required")
	case text.Delay != by.Delay:
		return unlike("delay")
	}
	if r := s.Recovery(); r != nil {
		return problem.New(problem.ReasonConflict, "recovery %d is under way: there is one at a time", r.Index).
			WithFix("wait for it, or have one of its signers withdraw it")
	}
	return nil
}

// signedBy checks the signatures of a recovery, and gives them in their order.
func signedBy(by policy.Recovery, r RecoveryRequest) ([]state.Signature, error) {
	switch n := len(r.Signatures); {
	case n < by.Required:
		return nil, problem.New(problem.ReasonQuorum, "a recovery takes the signatures of %d persons, and here are %d", by.Required, n).
			WithFix("have more of those sign it who hold recovery keys")
	case n > by.Required:
		return nil, problem.New(problem.ReasonInvalid, "a recovery has exactly as many signatures as it takes, which are %d", by.Required)
	}
	out := make([]state.Signature, 0, len(r.Signatures))
	for i, x := range r.Signatures {
		if slices.ContainsFunc(out, func(o state.Signature) bool { return o.Person == x.Person }) {
			return nil, problem.New(problem.ReasonSeparation, "signature %d is of who signed before: every person counts once", i+1)
		}
		fingerprint, err := verifyRecovery(by, i+1, x.Person, r.Text, x.SSHSIG)
		if err != nil {
			return nil, err
		}
		out = append(out, state.Signature{Person: x.Person, Key: fingerprint, SSHSIG: x.SSHSIG})
	}
	slices.SortFunc(out, func(a, b state.Signature) int { return strings.Compare(a.Person, b.Person) })
	return out, nil
}

// verifyRecovery checks the nth SSHSIG by one of the person's recovery keys and returns that key's fingerprint. A stranger learns nothing of
// who has one.
func verifyRecovery(by policy.Recovery, n int, person, text, armored string) (string, error) {
	listed := by.Of(person)
	if len(listed) == 0 {
		return "", problem.New(problem.ReasonSignature, "signature %d is not by a recovery key that the bundle in force lists for that person", n)
	}
	keys := make([]ssh.PublicKey, len(listed))
	for i, k := range listed {
		keys[i] = k.Key
	}
	key, err := sshsig.Verify([]byte(armored), keys, ceremony.NamespaceRecovery, []byte(text))
	if err != nil {
		return "", problem.New(problem.ReasonSignature, "signature %d is not by a recovery key that the bundle in force lists for that person", n)
	}
	return sshsig.Fingerprint(key), nil
}

func (t *turn) recover(r RecoveryRequest, p *recovery) (*Recovering, error) {
	if x := t.s.Recovery(); x != nil && x.Text == r.Text {
		return &Recovering{Index: x.Index, Until: x.Until.Time()}, nil
	}
	if p.base != t.s.Bundle || p.manifest == nil {
		return nil, errStale
	}
	if err := checkRecovery(t.s, t.e.scope(t.s), t.prog.Environment().Recovery, p.text, t.now); err != nil {
		return nil, err
	}
	until := t.now.Add(p.text.Delay)
	if err := t.unheld(p.after, until); err != nil {
		return nil, err
	}
	t.draft.Blobs = []store.Blob{
		{Digest: store.Digest(p.manifest.Digest()), Data: p.manifest.Text()},
		{Digest: store.Digest(policy.OperatorsDigest(r.Operators)), Data: r.Operators},
	}
	index, err := t.enter(&state.RecoveryStarted{Text: r.Text, Signatures: p.signatures, Until: until, Ruling: t.ruling("")})
	return &Recovering{Index: index, Until: until.Time()}, err
}

// unheld refuses operators too many of whom would be held when they are to be some: they could change nothing, nor lift those holds, and one
// person may have set them.
func (t *turn) unheld(after *policy.Program, at state.Millis) error {
	var held []string
	free := func(op policy.Operator) bool { return t.canLogin(op, at, func(state.Subject) bool { return false }) }
	for _, op := range after.Operators() {
		if !free(op) {
			held = append(held, op.Name)
		}
	}
	if p := quorum(after, free); p != nil {
		return p.WithFix("holds cover %s, or all their keys: name others, with other keys", strings.Join(held, ", "))
	}
	return nil
}

// WithdrawRecovery ends the recovery that is under way: one of its signers takes his signature back, by a key that the bundle in force lists
// for him. Nobody else can, but a quorum of the operators by any change of the bundle.
func (e *Environment) WithdrawRecovery(ctx context.Context, text string, by state.Signature) (uint64, error) {
	w, err := ceremony.ParseWithdrawal(text)
	if err != nil {
		return 0, problem.Wrap(err, problem.ReasonInvalid, "reading the signed text")
	}
	index, _, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (state.Signature, error) {
			prog, err := e.program(ctx, s.Bundle)
			if err != nil {
				return by, err
			}
			by.Person = w.Person
			if err := checkWithdrawal(s, e.scope(s), w); err != nil {
				return by, err
			}
			by.Key, err = verifyRecovery(prog.Environment().Recovery, 1, w.Person, text, by.SSHSIG)
			return by, err
		},
		func(t *turn, by state.Signature) (uint64, error) {
			if err := checkWithdrawal(t.s, t.e.scope(t.s), w); err != nil {
				return 0, err
			}
			// A rollback may have come since, but who holds recovery keys is what none changes.
			if !slices.ContainsFunc(t.prog.Environment().Recovery.Of(w.Person), func(k policy.OperatorKey) bool { return k.Fingerprint == by.Key }) {
				return 0, errStale
			}
			return t.enter(&state.RecoveryWithdrawn{Recovery: w.Recovery, Text: text, Signature: by, Ruling: t.ruling("")})
		})
	return index, err
}

// checkWithdrawal says why a text withdraws nothing here and now.
func checkWithdrawal(s *state.State, here ceremony.Scope, w ceremony.Withdrawal) error {
	r := s.Recovery()
	switch {
	case w.Scope != here:
		return problem.New(problem.ReasonWrongEnvironment, "the signed text is of another environment, genesis or epoch")
	case r == nil || r.Index != w.Recovery:
		return problem.New(problem.ReasonConflict, "recovery %d is not under way", w.Recovery)
	case r.Manifest.String() != w.New:
		return unlike("new")
	case !r.SignedBy(w.Person):
		return problem.New(problem.ReasonSeparation, "this person didn't sign recovery %d, and only its signers can take their signature back", r.Index).
			WithFix("a quorum of the operators ends it by any change of the bundle")
	}
	return nil
}

// recovered is what is to come into force by a recovery: over the bundle in force, which may be another one than when it began, since
// that can have been rolled back.
type recovered struct {
	base     state.Digest
	manifest *policy.Manifest
}

// CarryOutRecovery replaces the operators if a recovery's delay is over, and gives the entry; 0: nothing was due. It is called in the
// background, and may be at any time: what is due follows from the entries.
func (e *Environment) CarryOutRecovery(ctx context.Context) (uint64, error) {
	if !e.log.State().RecoveryDue(state.At(e.cfg.Now())) {
		return 0, nil
	}
	index, _, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (*recovered, error) { return e.recovered(ctx, s) },
		func(t *turn, p *recovered) (uint64, error) { return t.carryOutRecovery(p) })
	return index, err
}

func (e *Environment) recovered(ctx context.Context, s *state.State) (*recovered, error) {
	r := s.Recovery()
	if r == nil {
		return &recovered{base: s.Bundle}, nil
	}
	operators, err := e.log.Store().Blob(ctx, store.Digest(r.Operators))
	if err != nil {
		return nil, e.storeProblem(err, "reading the operators of the recovery")
	}
	base, files, err := e.bundleFiles(ctx, s.Bundle)
	if err != nil {
		return nil, err
	}
	m, after, err := policy.Recovered(base, policy.Digest(s.Env.Genesis), files, operators)
	if err != nil {
		return nil, err
	}
	compiled, err := policy.CompileRecovered(after)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonBundleInvalid, "compiling the bundle of recovery %d", r.Index)
	}
	e.programs.put(state.Digest(m.Digest()), compiled, bundlesOf(s))
	return &recovered{base: s.Bundle, manifest: m}, nil
}

func (t *turn) carryOutRecovery(p *recovered) (uint64, error) {
	r := t.s.Recovery()
	switch {
	case r == nil || !t.s.RecoveryDue(t.now):
		return 0, nil // it ended meanwhile, or this clock is ahead of the ledger's
	case p.manifest == nil || p.base != t.s.Bundle:
		return 0, errStale
	}
	manifest := state.Digest(p.manifest.Digest())
	if _, ok := t.e.programs.get(manifest); !ok {
		return 0, errStale
	}
	generation := t.s.Generation
	if staged := t.s.Staged(); staged != nil {
		// Whoever approved it may be an operator no more.
		ended := t.ended(staged, state.Cause{By: state.BySupersede})
		if _, err := t.enter(ended); err != nil {
			return 0, err
		}
		generation = max(generation, ended.Generation)
	}
	t.draft.Blobs = []store.Blob{{Digest: store.Digest(manifest), Data: p.manifest.Text()}}
	return t.enter(&state.BundleInForce{
		Generation: generation + 1, Manifest: manifest, Previous: t.s.Bundle, How: state.ByRecovery, Recovery: r.Index,
	})
}

// recoveryTick is how long the loop sleeps at most while a recovery waits: the clock may be set.
const recoveryTick = time.Minute

// recoveryLoop carries recoveries out when their delay is over.
func (e *Environment) recoveryLoop(ctx context.Context) {
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.recoveryWake:
		case <-next.C:
		}
		if _, err := e.CarryOutRecovery(ctx); err != nil && ctx.Err() == nil {
			e.logger.Error("carrying out the recovery failed", "err", err)
		}
		if r := e.log.State().Recovery(); r != nil {
			next.Reset(min(max(r.Until.Time().Sub(e.cfg.Now()), time.Second), recoveryTick))
		}
	}
}

// recovers wakes the loop with the first state that has a recovery.
func (e *Environment) recovers(s *state.State) {
	at := uint64(0)
	if r := s.Recovery(); r != nil {
		at = r.Index
	}
	if e.recoveryAt.Swap(at) == at || at == 0 {
		return
	}
	select {
	case e.recoveryWake <- struct{}{}:
	default:
	}
}

// RecoveryView is what anybody may know of recovering an environment: what is needed to prepare it, and the one that is under way.
type RecoveryView struct {
	Bundle   state.Digest  // the manifest in force
	Header   policy.Header // of it
	Recovery *state.Recovery
}

// inForceHeader is the header of a manifest, kept since strangers ask for it.
type inForceHeader struct {
	of     state.Digest
	header policy.Header
}

// ShowRecovery tells what anybody may know. It reads from the store once for each bundle.
func (e *Environment) ShowRecovery(ctx context.Context) (*RecoveryView, error) {
	s := e.log.State()
	out := &RecoveryView{Bundle: s.Bundle, Recovery: s.Recovery()}
	if h := e.header.Load(); h != nil && h.of == s.Bundle {
		out.Header = h.header
		return out, nil
	}
	text, err := e.log.Store().Blob(ctx, store.Digest(s.Bundle))
	if err != nil {
		return nil, e.storeProblem(err, "reading the manifest")
	}
	m, err := policy.ParseManifest(text)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonTampered, "reading the manifest %s", s.Bundle)
	}
	out.Header = m.Header()
	e.header.Store(&inForceHeader{s.Bundle, out.Header})
	return out, nil
}
