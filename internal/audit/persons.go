package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/sshsig"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// judge checks what the reducer does not: who acted and signed, and under which bundle. The state is as of before the entry.
func (r *run) judge(index uint64, at state.Millis, ev state.Event) error {
	if r.report.Ended != 0 {
		return fmt.Errorf("the environment ended with entry %d, and nothing follows that", r.report.Ended)
	}
	if err := r.acted(index, at, ev); err != nil {
		return err
	}
	if err := r.overtaking(ev); err != nil {
		return err
	}
	switch ev := ev.(type) {
	case *state.Genesis:
		return r.genesis(index, ev)
	case *state.ChangeProposed:
		return r.proposed(ev)
	case *state.ChangeApproved:
		return r.approved(ev)
	case *state.AccessReviewed:
		return r.reviewed(ev)
	case *state.GlassOpened:
		return r.glassOpened(at, ev)
	case *state.GlassReviewed:
		return r.glassReviewed(ev)
	case *state.GlassAlarmed:
		return r.glassAlarmed(ev)
	case *state.RecoveryStarted:
		return r.recovering(at, ev)
	case *state.RecoveryWithdrawn:
		return r.withdrawn(ev)
	case *state.BundleInForce:
		if ev.How == state.ByRecovery {
			return r.recovered(at, ev)
		}
		return r.broughtIntoForce(at, ev)
	case *state.RolloutMoved:
		return r.rolled(at, ev)
	case *state.RolloutEnded:
		return r.takenBack(at, &ev.Cause, ev.Change)
	case *state.SecretMoved:
		if ev.Change != 0 {
			return r.completed(at, ev.Change, policy.ActDestroy, func(c *state.Change) bool {
				return c.Target == state.HoldTarget(ev.Secret, ev.Version) && ev.To == state.Destroyed
			})
		}
	case *state.HoldLifted:
		return r.completed(at, ev.Change, "hold.lift", func(c *state.Change) bool { return c.Target == state.HoldTarget(ev.Scope, ev.Hold) })
	case *state.EvidenceForgotten:
		return r.completed(at, ev.Change, "evidence.forget", func(c *state.Change) bool { return c.Target == ev.Use })
	case *state.IdentityDecommissioned:
		return r.completed(at, ev.Change, "identity.decommission", func(c *state.Change) bool { return c.Target == ev.Identity })
	case *state.RevocationRecorded:
		if ev.Change != 0 {
			return r.completed(at, ev.Change, "revocation.confirm", func(c *state.Change) bool {
				h, ok := r.state.Holds.Get(ev.Scope)
				return ok && c.Target == state.HoldTarget(ev.Scope, h.Index)
			})
		}
	case *state.SecretExported:
		return r.exported(at, ev)
	case *state.KeyAdded:
		return r.keyAdded(&ev.Key)
	case *state.CustodyMoved:
		return r.custodyMoved(at, ev)
	case *state.EnvironmentEnded:
		r.report.Ended = index
		return r.completed(at, ev.Change, policy.ActDeleteEnvironment, func(c *state.Change) bool {
			return ev.Environment == r.state.Env.Name && ev.Genesis == r.state.Env.Genesis && c.Target == ev.Environment+"#"+ev.Genesis.String()
		})
	}
	return nil
}

// settled checks what an entry brought about: a bundle in force must be there, whole.
func (r *run) settled(ev state.Event) error {
	switch ev.(type) {
	case *state.Genesis, *state.BundleInForce:
		_, err := r.bundles.program(r.state.Bundle)
		return err
	}
	return nil
}

// genesis checks entry 0: the document, that it says the same as the entry, and that a founder signed it.
func (r *run) genesis(index uint64, g *state.Genesis) error {
	if index != 0 {
		return errors.New("a genesis is entry 0")
	}
	digest := state.Digest(sha256.Sum256([]byte(g.Document)))
	r.report.Environment, r.report.Class, r.report.Genesis = g.Name, g.Class, digest
	if pin := r.o.Genesis; !pin.IsZero() && pin != digest {
		return problem.New(problem.ReasonNotAuthentic, "genesis is %s, but %s is pinned: this is another ledger", digest, pin)
	}
	if pin := r.o.Environment; pin != "" && pin != g.Name {
		return problem.New(problem.ReasonNotAuthentic, "the environment is %s, but %s is pinned", g.Name, pin)
	}
	doc, err := ceremony.ParseGenesis(g.Document, digest)
	if err != nil {
		return err
	}
	switch {
	case doc.LeafHash != ceremony.LeafHashV1 || doc.EntryFormat != ceremony.EntryFormatV1:
		return errors.New("its document names formats that this version does not know")
	case doc.Name != g.Name || doc.Class != g.Class || doc.Manifest != g.Manifest.String():
		return errors.New("its fields are not those of its document")
	case !slices.EqualFunc(g.Keys, documentKeys(doc), sameKey):
		return errors.New("its keys are not those of its document")
	case len(g.Signatures) == 0:
		return errors.New("no founder signed its document")
	}
	for _, s := range g.Signatures {
		if err := founderSigned(doc, g.Document, s); err != nil {
			return err
		}
		r.report.Signatures++
	}
	r.document = doc
	return nil
}

// documentKeys are all keys that an environment begins with. Nothing but the document vouches for them.
func documentKeys(doc ceremony.Genesis) []state.KeyFacts {
	return []state.KeyFacts{{Name: "ca/1", Cert: doc.CA}, {Name: "checkpoint/1", Public: doc.Checkpoint}, {Name: "kek/1"}}
}

func sameKey(a, b state.KeyFacts) bool {
	return a.Name == b.Name && bytes.Equal(a.Public, b.Public) && bytes.Equal(a.Cert, b.Cert) && bytes.Equal(a.Cross, b.Cross)
}

// founderSigned checks a signature against the fingerprints in the document itself: genesis needs nothing else.
func founderSigned(doc ceremony.Genesis, text string, s state.Signature) error {
	i := slices.IndexFunc(doc.Operators, func(f ceremony.Founder) bool { return f.Name == s.Person })
	if i < 0 {
		return fmt.Errorf("%s signed its document, and is not among its operators", s.Person)
	}
	sig, err := sshsig.ParseSignature([]byte(s.SSHSIG))
	if err != nil {
		return fmt.Errorf("the signature of %s: %w", s.Person, err)
	}
	if fp := sshsig.Fingerprint(sig.Key); fp != s.Key || !slices.Contains(doc.Operators[i].Keys, fp) {
		return fmt.Errorf("the signature of %s is by a key that its document does not list", s.Person)
	}
	if _, err := sshsig.Verify([]byte(s.SSHSIG), []ssh.PublicKey{sig.Key}, sshsig.NamespaceChange, []byte(text)); err != nil {
		return fmt.Errorf("the signature of %s: %w", s.Person, err)
	}
	return nil
}

// proposed checks a proposal: its text, its signatures, and the manifest that it names.
func (r *run) proposed(ev *state.ChangeProposed) error {
	person, _ := strings.CutPrefix(ev.Actor.Identity, identity.PrefixHuman) // that it is one was checked
	want := ceremony.Change{
		Scope: r.scope(), Action: ev.Action, Base: ev.Base.String(), Target: ev.Target, Role: ceremony.Proposer,
		Person: person, Nonce: ev.Nonce, Expires: ev.Expires.Time(), Reason: ev.Reason,
		Version: max(ev.Version, 1), Rollout: ev.Rollout, Containment: ev.Containment,
	}
	if !ev.Manifest.IsZero() {
		want.New = ev.Manifest.String()
	}
	if !ev.Rollback.IsZero() {
		want.Rollback = ev.Rollback.String()
	}
	switch {
	case want.Text() != ev.Text || ev.Signature.Person != person:
		return errors.New("the signed text is not about this proposal")
	case ev.Base != r.state.Bundle:
		return errors.New("it is based on a bundle that was not in force")
	case ev.Action == "bundle" && (ev.Manifest.IsZero() || ev.Bundle == nil || ev.Bundle.Person != person):
		return errors.New("the proposed manifest is not signed by its proposer")
	}
	prog, err := r.bundles.program(r.state.Bundle)
	if err != nil || prog == nil {
		return err
	}
	if need := prog.Environment().Needs(ev.Action); ev.Required != need.Approvals || ev.SelfOK != need.Self {
		return fmt.Errorf("it asks for %d approvals, the bundle in force for %d", ev.Required, need.Approvals)
	} else if time.Duration(ev.Delay)*time.Second != need.Delay {
		return fmt.Errorf("it waits for %d seconds, and the bundle in force asks for %s", ev.Delay, need.Delay)
	}
	if err := r.signed(prog, policy.DutyPropose, ev.Signature, sshsig.NamespaceChange, []byte(ev.Text)); err != nil {
		return err
	}
	if ev.Action != "bundle" {
		return nil
	}
	m, err := r.bundles.manifest(ev.Manifest)
	if err != nil || m == nil {
		return err
	}
	h := m.Header()
	if h.Environment != r.state.Env.Name || h.Genesis != policy.Digest(r.state.Env.Genesis) || h.Previous != policy.Digest(ev.Base) {
		return errors.New("the proposed manifest is of another environment, or follows another bundle")
	}
	if err := r.rehearsed(ev, prog, m); err != nil {
		return err
	}
	return r.signed(prog, policy.DutyPropose, *ev.Bundle, sshsig.NamespaceBundle, m.Text())
}

// approved checks an approval. The reducer has checked that it is the first of this person.
func (r *run) approved(ev *state.ChangeApproved) error {
	c, ok := r.state.Changes.Get(ev.Change)
	if !ok {
		return fmt.Errorf("there is no change %d", ev.Change)
	}
	person, _ := strings.CutPrefix(ev.Actor.Identity, identity.PrefixHuman) // that it is one was checked
	want := ceremony.Change{
		Scope: r.scope(), Action: c.Action, Base: c.Base.String(), Target: c.Target, Role: ceremony.Approver,
		Person: person, Number: c.Index, Nonce: ev.Nonce, Expires: c.Expires.Time(), Reason: c.Reason,
		Version: max(c.Text, 1), Rollout: c.Rollout, Containment: c.Containment,
	}
	if !c.Manifest.IsZero() {
		want.New = c.Manifest.String()
	}
	if !c.Rollback.IsZero() {
		want.Rollback = c.Rollback.String()
	}
	switch {
	case want.Text() != ev.Text || ev.Signature.Person != person:
		return errors.New("the signed text is not about this change")
	case c.Proposer == ev.Actor.Identity && !c.SelfOK:
		return errors.New("it approves the person's own proposal")
	case c.Base != r.state.Bundle:
		return errors.New("the change was made for a bundle that is no longer in force")
	}
	prog, err := r.bundles.program(r.state.Bundle)
	if err != nil || prog == nil {
		return err
	}
	if op, _ := prog.Operator(person); prog.Environment().Needs(c.Action).Hardware &&
		!slices.ContainsFunc(op.Keys, func(k policy.OperatorKey) bool { return k.Fingerprint == ev.Signature.Key && k.Hardware() }) {
		return errors.New("it is approved by a key that is not hardware-backed")
	}
	return r.signed(prog, policy.DutyToApprove(c.Action), ev.Signature, sshsig.NamespaceChange, []byte(ev.Text))
}

// errNotTheirs is about a review.
var errNotTheirs = errors.New("the signed text is not of this environment and person")

// reviewed checks an access review: that its text is of this person and environment, about lines of the bundle in force, and signed. That
// it is about that bundle, and was signed just then, the reducer checks.
func (r *run) reviewed(ev *state.AccessReviewed) error {
	person, _ := strings.CutPrefix(ev.Actor.Identity, identity.PrefixHuman) // that it is one was checked
	text, err := ceremony.ParseReview(ev.Text)
	if err != nil {
		return err
	}
	if text.Scope != r.scope() || text.Person != person || ev.Signature.Person != person {
		return errNotTheirs
	}
	prog, err := r.bundles.program(r.state.Bundle)
	if err != nil || prog == nil {
		return err
	}
	lines := make([]policy.Line, len(text.Lines))
	for i, l := range text.Lines {
		lines[i] = policy.Line{Grant: l.Grant, Identity: l.Identity, Secret: l.Secret}
		if l.Decision == ceremony.Keep && l.Identity == ev.Actor.Identity && !prog.Environment().Needs(policy.ActBundle).Self {
			return fmt.Errorf("%s decides that he keeps what he has himself by the grant %s", person, l.Grant)
		}
	}
	if l, missing := prog.MissingLine(lines); missing {
		return fmt.Errorf("it is about %s, %s, %s, and the bundle has no such line", l.Grant, l.Identity, l.Secret)
	}
	return r.signed(prog, policy.DutyAudit, ev.Signature, sshsig.NamespaceChange, []byte(ev.Text))
}

// completed checks that an approved change of this action, and about this, is behind an entry. Approvals of who, or by what, was
// revoked since are not counted.
func (r *run) completed(at state.Millis, change uint64, action string, about func(*state.Change) bool) error {
	c, ok := r.state.Changes.Get(change)
	if !ok || c.Action != action || !r.state.Complete(c, r.state.Time) || !about(c) {
		return fmt.Errorf("change %d is not an approved %s about this", change, action)
	}
	if !c.Waits() {
		if c.StateAt(r.state.Time) != state.Proposed {
			return fmt.Errorf("change %d is %s", change, c.StateAt(r.state.Time))
		}
		return nil
	}
	switch st := c.StateAt(at); {
	case st != state.Waiting:
		return fmt.Errorf("change %d is %s, and waits for %d seconds first", change, st, c.Delay)
	case at < c.Since+state.Millis(c.Delay*1000):
		return fmt.Errorf("change %d waits until %s", change, c.Due())
	case c.Base != r.state.Bundle:
		return fmt.Errorf("change %d was made for another bundle than the one in force", change)
	}
	return nil
}

func (r *run) scope() ceremony.Scope {
	return ceremony.Scope{Environment: r.state.Env.Name, Genesis: r.state.Env.Genesis, Epoch: r.state.Env.Epoch}
}

// signed checks a person's signature by the keys and duties of the bundle that governed.
func (r *run) signed(prog *policy.Program, d policy.Duty, s state.Signature, namespace string, message []byte) error {
	op, ok := prog.Operator(s.Person)
	if !ok || !op.Has(d) {
		return fmt.Errorf("%s was not an operator with the duty %s", s.Person, d)
	}
	keys := make([]ssh.PublicKey, 0, len(op.Keys))
	for _, k := range op.Keys {
		keys = append(keys, k.Key)
	}
	return r.signedBy(keys, s, namespace, message)
}

// signedBy checks a signature by any of a person's keys, which is the one that the entry names.
func (r *run) signedBy(keys []ssh.PublicKey, s state.Signature, namespace string, message []byte) error {
	key, err := sshsig.Verify([]byte(s.SSHSIG), keys, namespace, message)
	if err != nil {
		return fmt.Errorf("the signature of %s: %w", s.Person, err)
	}
	if sshsig.Fingerprint(key) != s.Key {
		return fmt.Errorf("the signature of %s is by another key than the entry names", s.Person)
	}
	r.report.Signatures++
	return nil
}

// keyAdded checks a key's public side: a new CA must be signed by the one before, so that pinned clients follow.
func (r *run) keyAdded(k *state.KeyFacts) error {
	kind, _, err := state.ParseKeyName(k.Name)
	if err != nil {
		return err
	}
	switch kind {
	case state.KeyCA:
		before, ok := r.state.CurrentKey(state.KeyCA)
		if !ok {
			return errors.New("there is no CA before it")
		}
		parent, err := x509.ParseCertificate(before.Cert)
		if err != nil {
			return err
		}
		cert, err := x509.ParseCertificate(k.Cert)
		if err != nil {
			return err
		}
		cross, err := x509.ParseCertificate(k.Cross)
		if err != nil {
			return err
		}
		if err := cross.CheckSignatureFrom(parent); err != nil {
			return fmt.Errorf("the new CA is not signed by the one before: %w", err)
		}
		switch {
		case !cert.IsCA || !cross.IsCA: // a session's certificate is signed by a CA too
			return errors.New("the new CA's certificates are not a CA's")
		case !bytes.Equal(cert.RawSubjectPublicKeyInfo, cross.RawSubjectPublicKeyInfo):
			return errors.New("the new CA's two certificates are of different keys")
		}
	case state.KeyCheckpoint, state.KeyKEK:
		// What it must have, and which number, the reducer checks; the signature by the key before it is checked with all keys.
	default:
		return fmt.Errorf("there are no keys of the kind %s", kind)
	}
	return nil
}

// bundles reads bundles from their documents. A nil result without an error means that it can't be had.
type bundles struct {
	ctx     context.Context
	blob    func(ctx context.Context, d store.Digest) ([]byte, error)
	partial bool
	report  *Report

	of   state.Digest // the newest that was compiled: bundles govern one after another
	prog *policy.Program
	// during a rollout two or three take turns
	kept map[state.Digest]*policy.Program
}

// keptPrograms is how many compiled bundles are kept: what is in force, a candidate, and what a change replaces.
const keptPrograms = 4

func (b *bundles) get(d policy.Digest) ([]byte, error) {
	data, err := b.blob(b.ctx, store.Digest(d))
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(data) != d {
		return nil, fmt.Errorf("the document %s is another one", d)
	}
	return data, nil
}

// manifest reads a manifest.
func (b *bundles) manifest(d state.Digest) (*policy.Manifest, error) {
	if b.blob == nil {
		b.miss(d)
		return nil, nil
	}
	text, err := b.get(policy.Digest(d))
	if errors.Is(err, store.ErrNotFound) && b.partial {
		b.miss(d)
		return nil, nil
	}
	if err != nil {
		return nil, documentProblem(err, "manifest "+d.String())
	}
	return policy.ParseManifest(text)
}

func (b *bundles) miss(d state.Digest) {
	b.report.note("bundle %s can't be had here: signatures and duties that need it were not checked", d)
}

// program reads and compiles a bundle.
func (b *bundles) program(d state.Digest) (*policy.Program, error) {
	if b.of == d {
		return b.prog, nil
	}
	if prog, ok := b.kept[d]; ok { // before its manifest is read: that may take a whole bundle from a server
		b.of, b.prog = d, prog
		return prog, nil
	}
	m, err := b.manifest(d)
	if err != nil {
		return nil, err
	}
	b.of, b.prog = d, nil
	if m == nil {
		return nil, nil
	}
	files, err := m.Fetch(b.get)
	if err != nil {
		return nil, documentProblem(err, "bundle "+d.String())
	}
	bundle, err := policy.Load(files)
	if err == nil {
		b.prog, err = policy.CompileAccepted(bundle)
	}
	if err != nil {
		// Its files are those of its manifest, so this is not damage.
		return nil, problem.Wrap(err, problem.ReasonUnknownVersion, "the bundle %s, which another release accepted", d).WithFix("use the release that accepted it, or a newer one")
	}
	if len(b.kept) >= keptPrograms || b.kept == nil {
		b.kept = make(map[state.Digest]*policy.Program)
	}
	b.kept[d] = b.prog
	return b.prog, nil
}

// documentProblem keeps a store that can't be read apart from a document that is wrong.
func documentProblem(err error, what string) error {
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrCorrupt) || problem.Is(err, problem.ReasonTampered) {
		return fmt.Errorf("%s is missing or damaged: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
