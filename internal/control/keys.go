package control

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// vault reads wrapped keys from the store as it is open now, and opens them with the root holder that they are under in a state.
func (e *Environment) vault(s *state.State) custody.Vault { return e.vaultOf(e.holder(s)) }

func (e *Environment) vaultOf(h keyring.Holder) custody.Vault {
	return custody.Vault{Holder: h, Genesis: e.genesis, Read: func(ctx context.Context, name string) ([]byte, error) {
		data, err := e.log.Store().Key(ctx, name)
		return data, e.log.Failed(err)
	}}
}

// Peer reads the certificate of a connection, whose key TLS has proved, into a Caller. An expired certificate is read
// as well: the session says so with its own reason.
func (e *Environment) Peer(cert *x509.Certificate) (Caller, identity.ID, error) {
	s, err := e.readSVID(cert.Raw)
	if err != nil {
		return Caller{}, identity.ID{}, err
	}
	return Caller{Session: s.Index, Key: s.Key}, s.ID, nil
}

// CheckpointKeys are the verifier keys of checkpoints, the current one first.
func (e *Environment) CheckpointKeys() []string { return e.keys.Load().VerifierKeys() }

// Certificates are the CA certificates, genesis first.
func (e *Environment) Certificates() []*x509.Certificate { return e.keys.Load().Certificates() }

// CAChain is what a client needs to go from the genesis CA to the current one: the genesis CA's certificate, then each later CA
// as signed by the one before.
func (e *Environment) CAChain() [][]byte { return e.keys.Load().Chain() }

// RotateKey adds a new key of a kind (ca, checkpoint, kek), which is the current one from its entry on. Of jwt the new one is only
// published, and the one that was published until now is the current one.
func (e *Environment) RotateKey(ctx context.Context, c Caller, kind string) (string, *ledger.Proof, error) {
	if err := e.dutiful(ctx, c, policy.DutyKeys); err != nil {
		return "", nil, err
	}
	if err := e.keyMu.enter(ctx); err != nil {
		return "", nil, err
	}
	defer e.keyMu.leave()
	if err := e.moveMu.enter(ctx); err != nil {
		return "", nil, err
	}
	defer e.moveMu.leave()
	switch kind {
	case custody.JWT:
		proof, err := e.rotateTokens(ctx, c)
		if err != nil {
			return "", nil, err
		}
		return custody.Name(custody.JWT, newestNumber(e.log.State())), proof, nil
	case custody.CA, custody.Checkpoint, custody.KEK:
	default:
		return "", nil, problem.New(problem.ReasonInvalid, "keys of kind %q are not rotated", kind).
			WithFix("rotate one of ca, checkpoint, kek, jwt")
	}
	type made struct {
		by    *custody.Keys
		under uint64 // the entry that put the keys under the root holder of now
		facts state.KeyFacts
		row   store.Key
	}
	name, proof, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (made, error) {
			k, err := e.currentKeys(ctx, s)
			if err != nil {
				return made{}, err
			}
			all, err := custody.Numbered(s, kind)
			if err != nil {
				return made{}, err
			}
			ctx, cancel := context.WithTimeout(ctx, holderTimeout)
			defer cancel()
			facts, row, err := e.vault(s).Make(ctx, k, kind, all[len(all)-1].Number+1, e.scope(s), e.cfg.Source, e.cfg.Now())
			return made{k, s.Custody.Moved, facts, row}, err
		},
		func(t *turn, m made) (string, error) {
			x, err := t.session(c)
			if err != nil {
				return "", err
			}
			if _, err := t.duty(x, policy.DutyKeys); err != nil {
				return "", err
			}
			if m.by.Behind(t.s) || m.under != t.s.Custody.Moved {
				return "", errStale // the key that vouches for it, or what wraps it, is not the current one
			}
			if _, err := t.enter(&state.KeyAdded{Key: m.facts, Actor: actorOf(x), Ruling: t.ruling("")}); err != nil {
				return "", err
			}
			t.draft.Keys = append(t.draft.Keys, m.row)
			return m.facts.Name, nil
		})
	if err != nil {
		return "", nil, err
	}
	if _, err := e.currentKeys(ctx, e.log.State()); err != nil {
		return "", nil, fmt.Errorf("%s is entered, and will be used as soon as it can be unsealed: %w", name, err)
	}
	return name, proof, nil
}

// dutiful refuses a caller without a duty before anything is made for him, and has it entered; the decision asks again.
func (e *Environment) dutiful(ctx context.Context, c Caller, d policy.Duty) error {
	s := e.log.State()
	if x, dead := standing(s, c, state.At(e.cfg.Now())); dead == nil {
		prog, err := e.inForce(s)
		if err != nil {
			return err
		}
		if _, p := dutyOf(prog, x, d); p == nil {
			return nil
		}
	}
	_, _, err := do(ctx, e, nothing, func(t *turn, _ struct{}) (struct{}, error) {
		x, err := t.session(c)
		if err == nil {
			_, err = t.duty(x, d)
		}
		return struct{}{}, err
	})
	return err
}

// How long a load of the keys may take, and the rest before another one; and how long a root holder has to wrap what is new under it, while
// whatever else is about the keys waits.
const (
	loadTimeout   = 30 * time.Second
	loadRest      = time.Second
	holderTimeout = 30 * time.Second
)

// gate lets one through at a time. Other than a mutex, who waits for it may give up: a root holder can be slow, and far away.
type gate chan struct{}

func (g gate) enter(ctx context.Context) error {
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return problem.Wrap(ctx.Err(), problem.ReasonCanceled, "waiting for what is being done to the keys")
	}
}

func (g gate) leave() { <-g }

// currentKeys are the keys of the state, or newer ones: they are loaded if the state names more than are here. The ledger says which
// keys there are, whoever added them, and whether or not he stayed to hear of it; so a load is nobody's to cancel, and ends with
// the environment only; who waits for one may give up.
func (e *Environment) currentKeys(ctx context.Context, s *state.State) (*custody.Keys, error) {
	if k := e.keys.Load(); !k.Behind(s) {
		return k, nil
	}
	if err := e.loadMu.enter(ctx); err != nil {
		return nil, err
	}
	defer e.loadMu.leave()
	if k := e.keys.Load(); !k.Behind(s) {
		return k, nil
	}
	run, cancel := context.WithTimeout(e.run, loadTimeout)
	defer cancel()
	now := e.log.State()
	k, err := e.vault(now).Unseal(run, now, e.log.Origin())
	if err != nil {
		return nil, fmt.Errorf("loading the environment's keys: %w", err)
	}
	// First the signers: who sees the keys may rotate again, and the batch that enters a key must be signed by the two before it, or
	// nothing signs the head that the next start believes.
	e.log.SetSigners(k.Signers())
	e.keys.Store(k)
	return k, nil
}

// keysLoop loads keys that were entered, also when a rotation's outcome was unknown to who asked for it.
func (e *Environment) keysLoop(ctx context.Context) {
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.keysWake:
		case <-rest.C:
		}
		if _, err := e.currentKeys(ctx, e.log.State()); err != nil {
			e.logger.Error("a new key can't be used yet", "err", err)
			rest.Reset(loadRest)
		}
	}
}

// rewrapSlice is how many versions are wrapped anew in one commit.
const rewrapSlice = 256

// RewrapProgress is how far a rewrap has come.
type RewrapProgress struct {
	Done, Total int
	Finished    bool
}

// Rewrap puts every data key and named key that is under an older key-encryption key under the current one. It can be broken off
// anywhere and called again: what is done stays done.
//
// It keeps rotations out, for as long as report takes, but no move: that is about the key-encryption keys, and this about all others.
func (e *Environment) Rewrap(ctx context.Context, c Caller, report func(RewrapProgress) error) error {
	if err := e.keyMu.enter(ctx); err != nil {
		return err
	}
	defer e.keyMu.leave()
	s := e.log.State()
	x, err := e.judge(s, c, state.At(e.cfg.Now()))
	if err != nil {
		return err
	}
	prog, err := e.inForce(s)
	if err != nil {
		return err
	}
	if _, p := dutyOf(prog, x, policy.DutyKeys); p != nil {
		return e.unanswered(x, c, state.At(e.cfg.Now()), p)
	}
	k, err := e.currentKeys(ctx, s)
	if err != nil {
		return err
	}
	if err := e.rewrapNamed(ctx, c); err != nil {
		return err
	}
	to := k.KEK()
	progress := RewrapProgress{Total: versionsOf(s)}
	for after := uint64(0); ; {
		ids, err := e.log.Store().SealedUnder(ctx, to.Number(), after, rewrapSlice)
		if err != nil {
			return e.storeProblem(err, "listing what is to be rewrapped")
		}
		if len(ids) == 0 {
			break
		}
		if err := e.rewrapIDs(ctx, c, to, ids, false); err != nil {
			return err
		}
		after = ids[len(ids)-1]
		progress.Done += len(ids)
		if err := report(progress); err != nil {
			return err
		}
	}
	if err := e.rewrapIDs(ctx, c, to, nil, true); err != nil {
		return err
	}
	progress.Finished = true
	return report(progress)
}

func versionsOf(s *state.State) int {
	n := 0
	s.Secrets.All(func(_ string, sec *state.Secret) bool {
		n += len(sec.Versions)
		return true
	})
	return n
}

// rewrapIDs moves some versions' data keys, and enters how many. The context of each is found by its ID in the state.
func (e *Environment) rewrapIDs(ctx context.Context, c Caller, to *seal.KEK, ids []uint64, done bool) error {
	var moved []store.Rewrap
	if len(ids) > 0 {
		where := e.locate(ids)
		for _, id := range ids {
			at, ok := where[id]
			if !ok {
				continue // destroyed meanwhile
			}
			row, err := e.log.Store().Sealed(ctx, id)
			if err != nil {
				return e.storeProblem(err, "reading a sealed version")
			}
			from, ok := e.keys.Load().KEKNumbered(row.KEK)
			if !ok {
				return problem.New(problem.ReasonTampered, "%s version %d is under a key that is not there", at.path, at.version)
			}
			wrapped, err := seal.Rewrap(from, to, e.valueContext(at.path, at.version), row.WrappedKey)
			if err != nil {
				return err
			}
			moved = append(moved, store.Rewrap{ID: id, WrappedKey: wrapped, KEK: to.Number()})
		}
	}
	_, _, err := do(ctx, e, nothing, func(t *turn, _ struct{}) (struct{}, error) {
		t.draft.Rewraps = moved
		return struct{}{}, t.rewrapped(c, custody.Name(custody.KEK, to.Number()), len(moved), done)
	})
	return err
}

// rewrapped enters a part of a rewrap, if the caller may still have it done.
func (t *turn) rewrapped(c Caller, to string, count int, done bool) error {
	x, err := t.session(c)
	if err != nil {
		return err
	}
	if _, err := t.duty(x, policy.DutyKeys); err != nil {
		return err
	}
	_, err = t.enter(&state.KeysRewrapped{To: to, Count: count, Done: done, Actor: actorOf(x), Ruling: t.ruling("")})
	return err
}

type place struct {
	path    string
	version uint64
}

func (e *Environment) locate(ids []uint64) map[uint64]place {
	want := make(map[uint64]bool, len(ids))
	for _, id := range ids {
		want[id] = true
	}
	out := make(map[uint64]place, len(ids))
	e.log.State().Secrets.All(func(path string, sec *state.Secret) bool {
		for _, v := range sec.Versions {
			if want[v.Sealed] {
				out[v.Sealed] = place{path, v.Number}
			}
		}
		return len(out) < len(want)
	})
	return out
}

// rewrapNamed moves the environment's own keys under the current key-encryption key.
func (e *Environment) rewrapNamed(ctx context.Context, c Caller) error {
	k := e.keys.Load()
	names := []string{custody.Name(custody.MAC, 1)}
	e.log.State().Keys.All(func(name string, _ *state.PublicKey) bool {
		names = append(names, name)
		return true
	})
	rows, err := e.vault(e.log.State()).Rewrapped(ctx, k, names)
	if err != nil {
		return err
	}
	_, _, err = do(ctx, e, nothing, func(t *turn, _ struct{}) (struct{}, error) {
		t.draft.Keys = rows
		return struct{}{}, t.rewrapped(c, custody.Name(custody.KEK, k.KEK().Number()), len(rows), false)
	})
	return err
}

// KeyView is a key of the environment, for listing.
type KeyView struct {
	*state.PublicKey
	Certificate *x509.Certificate // of a CA
}

// ListKeys lists the environment's keys for operators.
func (e *Environment) ListKeys(_ context.Context, c Caller) ([]KeyView, error) {
	s := e.log.State()
	x, err := e.judge(s, c, state.At(e.cfg.Now()))
	if err != nil {
		return nil, err
	}
	prog, err := e.inForce(s)
	if err != nil {
		return nil, err
	}
	if _, p := dutyOf(prog, x, policy.DutyKeys); p != nil {
		if err := e.mayInspect(x, c); err != nil {
			return nil, err
		}
	}
	var out []KeyView
	for _, kind := range []string{custody.CA, custody.Checkpoint, custody.KEK, custody.JWT} {
		if _, some := s.NewestKey(kind); !some && kind == custody.JWT {
			continue
		}
		all, err := custody.Numbered(s, kind)
		if err != nil {
			return nil, err
		}
		for _, k := range all {
			v := KeyView{PublicKey: k.PublicKey}
			if len(k.Cert) > 0 {
				if v.Certificate, err = x509.ParseCertificate(k.Cert); err != nil {
					return nil, problem.Wrap(err, problem.ReasonTampered, "reading the certificate of %s", k.Name)
				}
			}
			out = append(out, v)
		}
	}
	return out, nil
}
