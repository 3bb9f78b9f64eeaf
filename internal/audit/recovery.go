package audit

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// maxRecoveryLife is how long a signed recovery may wait for its beginning.
const maxRecoveryLife = 14 * 24 * 60 * 60 * 1000

// recovering checks the beginning of a recovery: that its text is about this environment and the bundle in force, says what follows from
// their files, and is signed by as many persons as that bundle asks for. The reducer has checked that there is no other, that its persons are
// distinct and as many as its text says, and its delay against the text.
func (r *run) recovering(at state.Millis, ev *state.RecoveryStarted) error {
	text, err := ceremony.ParseRecovery(ev.Text)
	if err != nil {
		return err
	}
	switch {
	case text.Scope != r.scope():
		return errors.New("the signed text is not of this environment")
	case text.Base != r.state.Bundle.String():
		return errors.New("it is about a bundle that was not in force")
	case at >= state.At(text.Expires) || state.At(text.Expires) > at+maxRecoveryLife:
		return fmt.Errorf("it could begin until %s", state.At(text.Expires))
	}
	prog, err := r.bundles.program(r.state.Bundle)
	if err != nil || prog == nil {
		return err
	}
	by := prog.Environment().Recovery
	switch {
	case !by.Prepared() || text.Required != by.Required:
		return fmt.Errorf("it takes %d signatures, and the bundle in force asks for %d", text.Required, by.Required)
	case text.Delay != by.Delay:
		return fmt.Errorf("it waits for %s, and the bundle in force asks for %s", text.Delay, by.Delay)
	case len(ev.Signatures) != by.Required:
		return fmt.Errorf("it has %d signatures, and the bundle in force asks for %d", len(ev.Signatures), by.Required)
	case !slices.Equal(text.Before, prog.Persons()):
		return errors.New("the operators in force are others than it says")
	}
	for _, s := range ev.Signatures {
		if err := r.recoverySigned(by, s, ev.Text); err != nil {
			return err
		}
	}
	after, operators, err := r.onlyOperators(r.state.Bundle, text.New)
	if err != nil || after == nil {
		return err
	}
	switch {
	case operators != text.Operators:
		return fmt.Errorf("its operators are %s, and its bundle has %s", text.Operators, operators)
	case !slices.Equal(text.After, after.Persons()):
		return errors.New("the operators after it are others than it says")
	}
	return nil
}

// onlyOperators compares a bundle with the one that a recovery makes of it, and gives the program of that and the digest of its operators'
// file; nil without an error if they can't be had.
func (r *run) onlyOperators(base state.Digest, manifest string) (*policy.Program, string, error) {
	d, err := state.ParseDigest(manifest)
	if err != nil {
		return nil, "", err
	}
	was, err := r.bundles.manifest(base)
	if err != nil || was == nil {
		return nil, "", err
	}
	is, err := r.bundles.manifest(d)
	if err != nil || is == nil {
		return nil, "", err
	}
	h := is.Header()
	if h.Environment != r.state.Env.Name || h.Genesis != policy.Digest(r.state.Env.Genesis) || h.Previous != policy.Digest(base) || h.Version != was.Header().Version+1 {
		return nil, "", errors.New("its manifest is of another environment, or follows another bundle")
	}
	operators, err := policy.OnlyOperators(was, is)
	if err != nil {
		return nil, "", err
	}
	prog, err := r.bundles.program(d)
	return prog, operators.String(), err
}

// recoverySigned checks a signature by the recovery keys of the bundle that governed.
func (r *run) recoverySigned(by policy.Recovery, s state.Signature, text string) error {
	var keys []ssh.PublicKey
	for _, k := range by.Of(s.Person) {
		keys = append(keys, k.Key)
	}
	return r.signedBy(keys, s, ceremony.NamespaceRecovery, []byte(text))
}

// withdrawn checks who ended a recovery. The reducer has checked that it was under way, and that he is said to have signed it.
func (r *run) withdrawn(ev *state.RecoveryWithdrawn) error {
	text, err := ceremony.ParseWithdrawal(ev.Text)
	if err != nil {
		return err
	}
	under := r.state.Recovery()
	if under == nil || text.Scope != r.scope() || text.Recovery != ev.Recovery || text.New != under.Manifest.String() || text.Person != ev.Signature.Person {
		return errors.New("the signed text is not about this recovery and person")
	}
	prog, err := r.bundles.program(r.state.Bundle)
	if err != nil || prog == nil {
		return err
	}
	return r.recoverySigned(prog.Environment().Recovery, ev.Signature, ev.Text)
}

// recovered checks a bundle that came into force by a recovery. The reducer has checked that its delay was over, and that it is the one that
// was signed, if no rollback came between; here its files are compared.
func (r *run) recovered(at state.Millis, ev *state.BundleInForce) error {
	under := r.state.Recovery()
	switch {
	case under == nil || under.Index != ev.Recovery:
		return fmt.Errorf("recovery %d was not under way", ev.Recovery)
	case at < under.Until:
		return fmt.Errorf("recovery %d waits until %s", ev.Recovery, under.Until)
	}
	after, operators, err := r.onlyOperators(r.state.Bundle, ev.Manifest.String())
	if err != nil || after == nil {
		return err
	}
	if operators != under.Operators.String() {
		return fmt.Errorf("its operators are %s, and %s were signed", operators, under.Operators)
	}
	return nil
}
