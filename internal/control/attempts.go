package control

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"strconv"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// What can be said of a request at little cost, before its proof is verified, for the limits of who asks. Nothing here is a decision:
// each says what its use case would say, or less.
//
// The subject of an attempt is what its proof is about, of what the state knows; all that it does not know is one subject, and
// refused without a verification. So who fails on purpose can keep out nobody but those whom he names.
//
// What proves something that is not known here yet (most attestations) is about the key that its session is to have, which nobody but
// its owner can name. Anybody can make up such keys: so these attempts have a crowd, too, whose members have a bound together.

// Attempt is what an attempt counts as.
type Attempt struct {
	Subject string // what the proof is about
	Crowd   string // those whose subjects can be made up; empty: this one's can't
}

// unknownSubject is the subject of attempts that are about nothing that is here.
const unknownSubject = "?"

// LoginAttempt checks a login's challenge, and returns the person whom it is about.
func (e *Environment) LoginAttempt(r LoginRequest) (Attempt, error) {
	if _, err := e.checkChallenge(r.Challenge); err != nil {
		return Attempt{}, err
	}
	if prog := e.Program(); prog != nil {
		if _, ok := prog.Operator(r.Person); ok {
			return Attempt{Subject: "person " + r.Person}, nil
		}
	}
	return Attempt{Subject: unknownSubject}, nil
}

// AttestAttempt checks an attestation's method, challenge and size, and returns what it is about: the join token, or the session key.
func (e *Environment) AttestAttempt(r AttestRequest) (Attempt, error) {
	method, err := e.cfg.Methods.Find(r.Method)
	if err != nil {
		return Attempt{}, err
	}
	if _, err := e.checkChallenge(r.Challenge); err != nil {
		return Attempt{}, err
	}
	if most := cmp.Or(method.MaxEvidence, attest.MaxEvidence); len(r.Evidence) > most {
		return Attempt{}, problem.New(problem.ReasonTooLarge, "the evidence has more than %d bytes", most)
	}
	if method.Name != jointoken.Name {
		csr, err := readCSR(r.CSR)
		if err != nil {
			return Attempt{}, err
		}
		return madeUp("method "+method.Name, csr.RawSubjectPublicKeyInfo), nil
	}
	id, err := jointoken.TokenID(r.Evidence)
	if err != nil {
		return Attempt{}, err
	}
	if _, ok := e.log.State().Tokens.Get(id); ok {
		return Attempt{Subject: "token " + id}, nil
	}
	return Attempt{Subject: unknownSubject}, nil
}

// OfferAttempt checks that a method answers a hello of that size. An offer is about the machine that says hello, whoever that is.
func (e *Environment) OfferAttempt(name string, hello []byte) (Attempt, error) {
	method, err := e.cfg.Methods.Find(name)
	if err != nil {
		return Attempt{}, err
	}
	if method.Offer == nil {
		return Attempt{}, problem.New(problem.ReasonInvalid, "method %s goes in one round: it takes no hello", method.Name)
	}
	if len(hello) > attest.MaxEvidence {
		return Attempt{}, problem.New(problem.ReasonTooLarge, "the hello has more than %d bytes", attest.MaxEvidence)
	}
	return madeUp("offer "+method.Name, hello), nil
}

// madeUp is an attempt about something that a stranger can make up.
func madeUp(crowd string, subject []byte) Attempt {
	sum := sha256.Sum256(subject)
	return Attempt{Subject: crowd + " " + hex.EncodeToString(sum[:16]), Crowd: crowd}
}

// RenewAttempt checks a renewal's challenge, and that its certificate is of this environment, and returns the session that it is about.
func (e *Environment) RenewAttempt(r RenewRequest) (Attempt, error) {
	if _, err := e.checkChallenge(r.Challenge); err != nil {
		return Attempt{}, err
	}
	old, err := e.keys.Load().ReadSVID(r.Certificate, e.Name())
	if err != nil {
		return Attempt{}, err
	}
	return Attempt{Subject: "session " + strconv.FormatUint(old.Index, 10)}, nil
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
