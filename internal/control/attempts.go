package control

import (
	"strconv"

	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// What can be said of a request at little cost, before its proof is verified, for the limits of who asks. Nothing here is a decision:
// each says what its use case would say, or less.
//
// The subject of an attempt is what its proof is about, of what the state knows; all that it does not know is one subject, and
// refused without a verification. So who fails on purpose can keep out nobody but those whom he names.

// unknownSubject is the subject of attempts that are about nothing that is here.
const unknownSubject = "?"

// LoginAttempt checks a login's challenge, and returns the person whom it is about.
func (e *Environment) LoginAttempt(r LoginRequest) (subject string, err error) {
	if _, err := e.checkChallenge(r.Challenge); err != nil {
		return "", err
	}
	if prog := e.Program(); prog != nil {
		if _, ok := prog.Operator(r.Person); ok {
			return "person " + r.Person, nil
		}
	}
	return unknownSubject, nil
}

// AttestAttempt checks an attestation's method and challenge, and returns the join token that it is about. For methods whose
// evidence names nothing that is here, it is the method.
func (e *Environment) AttestAttempt(r AttestRequest) (subject string, err error) {
	method, err := e.cfg.Methods.Find(r.Method)
	if err != nil {
		return "", err
	}
	if _, err := e.checkChallenge(r.Challenge); err != nil {
		return "", err
	}
	if method.Name != jointoken.Name {
		return "method " + method.Name, nil
	}
	id, err := jointoken.TokenID(r.Evidence)
	if err != nil {
		return "", err
	}
	if _, ok := e.log.State().Tokens.Get(id); ok {
		return "token " + id, nil
	}
	return unknownSubject, nil
}

// RenewAttempt checks a renewal's challenge, and that its certificate is of this environment, and returns the session that it is about.
func (e *Environment) RenewAttempt(r RenewRequest) (subject string, err error) {
	if _, err := e.checkChallenge(r.Challenge); err != nil {
		return "", err
	}
	old, err := e.keys.Load().ReadSVID(r.Certificate, e.Name())
	if err != nil {
		return "", err
	}
	return "session " + strconv.FormatUint(old.Index, 10), nil
}

// Stands says whether the caller's session stands, as of now. It counts nothing.
func (e *Environment) Stands(c Caller) error {
	if _, p := standing(e.log.State(), c, state.At(e.cfg.Now())); p != nil {
		return p
	}
	return nil
}

// MayPropose says whether the caller's session stands and is that of an operator who proposes changes, as of now. It counts nothing.
func (e *Environment) MayPropose(c Caller) error {
	x, p := standing(e.log.State(), c, state.At(e.cfg.Now()))
	if p != nil {
		return p
	}
	prog, err := e.inForce(e.log.State())
	if err != nil {
		return err
	}
	if _, p := dutyOf(prog, x, policy.DutyPropose); p != nil {
		return p
	}
	return nil
}
