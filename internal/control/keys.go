package control

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"math/big"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// Kinds of keys of an environment. Each has a name KIND/NUMBER.
const (
	keyCA         = "ca"
	keyCheckpoint = "checkpoint"
	keyKEK        = "kek"
	keyMAC        = "mac"
)

func thumbprint(pub crypto.PublicKey) ([32]byte, error) {
	t, err := seal.Thumbprint(pub)
	if err != nil {
		return t, problem.Wrap(err, problem.ReasonInvalid, "the public key")
	}
	return t, nil
}

func splitKeyName(name string) (kind string, number uint32, err error) {
	kind, n, _ := strings.Cut(name, "/")
	x, err := strconv.ParseUint(n, 10, 32)
	if err != nil || x == 0 {
		return "", 0, problem.New(problem.ReasonTampered, "key %q is not KIND/NUMBER", name)
	}
	return kind, uint32(x), nil
}

func keyName(kind string, number uint32) string {
	return kind + "/" + strconv.FormatUint(uint64(number), 10)
}

// wrapKEK puts a key-encryption key under the root holder.
func wrapKEK(ctx context.Context, cfg *Config, genesis state.Digest, k *seal.KEK) (store.Key, error) {
	aad, err := seal.KeyContext{Genesis: genesis, Name: keyKEK, Number: k.Number()}.Encode()
	if err != nil {
		return store.Key{}, err
	}
	data, err := cfg.Holder.Wrap(ctx, aad, k.Key())
	return store.Key{Name: keyName(keyKEK, k.Number()), Data: data}, err
}

// wrapNamed puts another key under a key-encryption key, whose number stands before it.
func wrapNamed(kek *seal.KEK, genesis state.Digest, kind string, number uint32, key seal.Secret) (store.Key, error) {
	data, err := seal.WrapKey(kek, seal.KeyContext{Genesis: genesis, Name: kind, Number: number}, key)
	if err != nil {
		return store.Key{}, err
	}
	return store.Key{Name: keyName(kind, number), Data: append(binary.BigEndian.AppendUint32(nil, kek.Number()), data...)}, nil
}

func (e *Environment) unwrapNamed(ctx context.Context, keks map[uint32]*seal.KEK, name string) (seal.Secret, error) {
	kind, number, err := splitKeyName(name)
	if err != nil {
		return seal.Secret{}, err
	}
	data, err := e.log.Store().Key(ctx, name)
	if err != nil {
		return seal.Secret{}, e.storeProblem(err, "reading the key "+name)
	}
	if len(data) < 4 {
		return seal.Secret{}, problem.New(problem.ReasonTampered, "the key %s is damaged", name)
	}
	kek, ok := keks[binary.BigEndian.Uint32(data)]
	if !ok {
		return seal.Secret{}, problem.New(problem.ReasonTampered, "the key %s is under a key-encryption key that is not there", name)
	}
	return seal.UnwrapKey(kek, seal.KeyContext{Genesis: e.genesis, Name: kind, Number: number}, data[4:])
}

// unseal opens all keys that the state names: key-encryption keys by the root holder, the others by those.
func (e *Environment) unseal(ctx context.Context, s *state.State) (*keys, error) {
	k := &keys{keks: make(map[uint32]*seal.KEK), roots: x509.NewCertPool()}
	var failed error
	s.Keys.From(keyKEK+"/", func(name string, x *state.PublicKey) bool {
		if !strings.HasPrefix(name, keyKEK+"/") {
			return false
		}
		failed = e.unsealKEK(ctx, k, x)
		return failed == nil
	})
	if failed != nil {
		return nil, failed
	}
	if k.kek == nil {
		return nil, problem.New(problem.ReasonTampered, "the environment has no key-encryption key")
	}
	var err error
	if k.mac, err = e.unwrapNamed(ctx, k.keks, keyName(keyMAC, 1)); err != nil {
		return nil, err
	}
	if err := e.unsealCA(ctx, s, k); err != nil {
		return nil, err
	}
	return k, e.unsealCheckpoint(ctx, s, k)
}

func (e *Environment) unsealKEK(ctx context.Context, k *keys, x *state.PublicKey) error {
	_, number, err := splitKeyName(x.Name)
	if err != nil {
		return err
	}
	data, err := e.log.Store().Key(ctx, x.Name)
	if err != nil {
		return e.storeProblem(err, "reading the key "+x.Name)
	}
	aad, err := seal.KeyContext{Genesis: e.genesis, Name: keyKEK, Number: number}.Encode()
	if err != nil {
		return err
	}
	secret, err := e.cfg.Holder.Unwrap(ctx, aad, data)
	if err != nil {
		return fmt.Errorf("unsealing %s with the root holder %s: %w", x.Name, e.cfg.Holder.Descriptor().Kind, err)
	}
	kek, err := seal.NewKEK(number, secret)
	if err != nil {
		return err
	}
	k.keks[number] = kek
	if x.Current {
		k.kek = kek
	}
	return nil
}

// numbered lists a kind's keys in order of their numbers.
func numbered(s *state.State, kind string) []*state.PublicKey {
	var out []*state.PublicKey
	s.Keys.From(kind+"/", func(name string, x *state.PublicKey) bool {
		if !strings.HasPrefix(name, kind+"/") {
			return false
		}
		out = append(out, x)
		return true
	})
	for i := 1; i < len(out); i++ { // names sort as text: ten comes before two
		for j := i; j > 0 && out[j].Created < out[j-1].Created; j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	return out
}

func (e *Environment) unsealCA(ctx context.Context, s *state.State, k *keys) error {
	all := numbered(s, keyCA)
	if len(all) == 0 {
		return problem.New(problem.ReasonTampered, "the environment has no CA")
	}
	var crosses [][]byte
	for _, x := range all {
		cert, err := x509.ParseCertificate(x.Cert)
		if err != nil {
			return problem.Wrap(err, problem.ReasonTampered, "reading the certificate of %s", x.Name)
		}
		k.rootCerts = append(k.rootCerts, cert)
		k.roots.AddCert(cert)
		if len(x.Cross) > 0 {
			crosses = append(crosses, x.Cross)
		}
		if x.Current {
			k.caCert, k.caName = cert, x.Name
		}
	}
	// From the newest down: each cross-certificate leads to the CA before it.
	for i := len(crosses) - 1; i >= 0; i-- {
		k.chain = append(k.chain, crosses[i])
	}
	secret, err := e.unwrapNamed(ctx, k.keks, k.caName)
	if err != nil {
		return err
	}
	defer secret.Wipe()
	if k.ca, err = seal.ParsePrivateKey(secret); err != nil {
		return err
	}
	if !seal.SameKey(k.ca.Public(), k.caCert.PublicKey) {
		return problem.New(problem.ReasonTampered, "the key of %s is not that of its certificate", k.caName)
	}
	return nil
}

// unsealCheckpoint prepares the checkpoint keys: the current one signs, and the one before beside it, so that a
// verifier who has not heard of the rotation still verifies.
func (e *Environment) unsealCheckpoint(ctx context.Context, s *state.State, k *keys) error {
	all := numbered(s, keyCheckpoint)
	origin := ledger.OriginOf(s.Env.Name, s.Env.Genesis, s.Env.Epoch)
	for i := len(all) - 1; i >= 0; i-- {
		vkey, err := note.NewEd25519VerifierKey(origin, ed25519.PublicKey(all[i].Public))
		if err != nil {
			return problem.Wrap(err, problem.ReasonTampered, "reading the key %s", all[i].Name)
		}
		verifier, err := note.NewVerifier(vkey)
		if err != nil {
			return problem.Wrap(err, problem.ReasonTampered, "reading the key %s", all[i].Name)
		}
		k.checkpointVkeys = append(k.checkpointVkeys, vkey)
		k.checkpointVerifiers = append(k.checkpointVerifiers, verifier)
		if i < len(all)-2 {
			continue
		}
		secret, err := e.unwrapNamed(ctx, k.keks, all[i].Name)
		if err != nil {
			return err
		}
		signer, err := seal.ParsePrivateKey(secret)
		secret.Wipe()
		if err != nil {
			return err
		}
		k.checkpointSigners = append(k.checkpointSigners, &checkpointSigner{name: origin, hash: verifier.KeyHash(), key: signer})
	}
	if len(k.checkpointSigners) == 0 {
		return problem.New(problem.ReasonTampered, "the environment has no checkpoint key")
	}
	return nil
}

// checkpointSigner is a note.Signer over any Ed25519 crypto.Signer, so that the key need not be text.
type checkpointSigner struct {
	name string
	hash uint32
	key  crypto.Signer
}

func (s *checkpointSigner) Name() string    { return s.name }
func (s *checkpointSigner) KeyHash() uint32 { return s.hash }
func (s *checkpointSigner) Sign(msg []byte) ([]byte, error) {
	return s.key.Sign(rand.Reader, msg, crypto.Hash(0))
}

// CheckpointKeys are the verifier keys of checkpoints, the current one first.
func (e *Environment) CheckpointKeys() []string { return e.keys.Load().checkpointVkeys }

// Certificates are the CA certificates, genesis first.
func (e *Environment) Certificates() []*x509.Certificate { return e.keys.Load().rootCerts }

// CAChain is what a client needs to go from the genesis CA to the current one: the genesis CA's certificate, then each later CA
// as signed by the one before.
func (e *Environment) CAChain() [][]byte {
	k := e.keys.Load()
	out := [][]byte{k.rootCerts[0].Raw}
	for i := len(k.chain) - 1; i >= 0; i-- {
		out = append(out, k.chain[i])
	}
	return out
}

// RotateKey adds a new key of a kind (ca, checkpoint, kek), which is the current one from its entry on.
func (e *Environment) RotateKey(ctx context.Context, c Caller, kind string) (string, *ledger.Proof, error) {
	e.keyMu.Lock()
	defer e.keyMu.Unlock()
	switch kind {
	case keyCA, keyCheckpoint, keyKEK:
	default:
		return "", nil, problem.New(problem.ReasonInvalid, "keys of kind %q are not rotated", kind).
			WithFix("rotate one of ca, checkpoint, kek")
	}
	type made struct {
		facts state.KeyFacts
		row   store.Key
	}
	name, proof, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (made, error) {
			all := numbered(s, kind)
			_, last, err := splitKeyName(all[len(all)-1].Name)
			if err != nil {
				return made{}, err
			}
			facts, row, err := e.makeKey(ctx, s, kind, last+1)
			return made{facts, row}, err
		},
		func(t *turn, m made) (string, error) {
			x, err := t.session(c)
			if err != nil {
				return "", err
			}
			if _, err := t.duty(x, policy.DutyKeys); err != nil {
				return "", err
			}
			if t.s.Keys.Has(m.facts.Name) {
				return "", errStale
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
	k, err := e.unseal(ctx, e.log.State())
	if err != nil {
		return "", nil, fmt.Errorf("using the new key: %w", err)
	}
	e.keys.Store(k)
	e.log.SetSigners(k.checkpointSigners)
	return name, proof, nil
}

func (e *Environment) makeKey(ctx context.Context, s *state.State, kind string, number uint32) (state.KeyFacts, store.Key, error) {
	k := e.keys.Load()
	facts := state.KeyFacts{Name: keyName(kind, number)}
	switch kind {
	case keyKEK:
		kek, err := seal.GenerateKEK(number, e.cfg.Source)
		if err != nil {
			return facts, store.Key{}, err
		}
		row, err := wrapKEK(ctx, &e.cfg, e.genesis, kek)
		return facts, row, err
	case keyCheckpoint:
		key, err := seal.GenerateEd25519(e.cfg.Source)
		if err != nil {
			return facts, store.Key{}, err
		}
		facts.Public = key.Public().(ed25519.PublicKey)
		row, err := wrapSigner(k.kek, e.genesis, kind, number, key)
		return facts, row, err
	}
	key, err := seal.GenerateECDSA(e.cfg.Source)
	if err != nil {
		return facts, store.Key{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return facts, store.Key{}, problem.Wrap(err, problem.ReasonEntropy, "making a serial number")
	}
	t := caTemplate(s.Env.Name, number, serial, e.cfg.Now())
	if facts.Cert, err = x509.CreateCertificate(rand.Reader, t, t, key.Public(), key); err != nil {
		return facts, store.Key{}, problem.Wrap(err, problem.ReasonInternal, "signing the new CA")
	}
	if facts.Cross, err = x509.CreateCertificate(rand.Reader, t, k.caCert, key.Public(), k.ca); err != nil {
		return facts, store.Key{}, problem.Wrap(err, problem.ReasonInternal, "cross-signing the new CA")
	}
	row, err := wrapSigner(k.kek, e.genesis, kind, number, key)
	return facts, row, err
}

func wrapSigner(kek *seal.KEK, genesis state.Digest, kind string, number uint32, key crypto.Signer) (store.Key, error) {
	secret, err := seal.MarshalPrivateKey(key)
	if err != nil {
		return store.Key{}, err
	}
	defer secret.Wipe()
	return wrapNamed(kek, genesis, kind, number, secret)
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
func (e *Environment) Rewrap(ctx context.Context, c Caller, report func(RewrapProgress) error) error {
	e.keyMu.Lock()
	defer e.keyMu.Unlock()
	s := e.log.State()
	x, err := e.judge(s, c, state.At(e.cfg.Now()))
	if err != nil {
		return err
	}
	if _, p := dutyOf(e.Program(), x, policy.DutyKeys); p != nil {
		return p
	}
	if err := e.rewrapNamed(ctx); err != nil {
		return err
	}
	to := e.keys.Load().kek
	progress := RewrapProgress{Total: versionsOf(s)}
	for after := uint64(0); ; {
		ids, err := e.log.Store().SealedUnder(ctx, to.Number(), after, rewrapSlice)
		if err != nil {
			return e.storeProblem(err, "listing what is to be rewrapped")
		}
		if len(ids) == 0 {
			break
		}
		if err := e.rewrapIDs(ctx, to, ids, false); err != nil {
			return err
		}
		after = ids[len(ids)-1]
		progress.Done += len(ids)
		if err := report(progress); err != nil {
			return err
		}
	}
	if err := e.rewrapIDs(ctx, to, nil, true); err != nil {
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
func (e *Environment) rewrapIDs(ctx context.Context, to *seal.KEK, ids []uint64, done bool) error {
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
			from, ok := e.keys.Load().keks[row.KEK]
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
		_, err := t.enter(&state.KeysRewrapped{To: keyName(keyKEK, to.Number()), Count: len(moved), Done: done})
		return struct{}{}, err
	})
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
func (e *Environment) rewrapNamed(ctx context.Context) error {
	k := e.keys.Load()
	names := []string{keyName(keyMAC, 1)}
	e.log.State().Keys.All(func(name string, _ *state.PublicKey) bool {
		if !strings.HasPrefix(name, keyKEK+"/") {
			names = append(names, name)
		}
		return true
	})
	var rows []store.Key
	for _, name := range names {
		secret, err := e.unwrapNamed(ctx, k.keks, name)
		if err != nil {
			return err
		}
		kind, number, err := splitKeyName(name)
		if err != nil {
			return err
		}
		row, err := wrapNamed(k.kek, e.genesis, kind, number, secret)
		secret.Wipe()
		if err != nil {
			return err
		}
		rows = append(rows, row)
	}
	_, _, err := do(ctx, e, nothing, func(t *turn, _ struct{}) (struct{}, error) {
		t.draft.Keys = rows
		_, err := t.enter(&state.KeysRewrapped{To: keyName(keyKEK, k.kek.Number()), Count: len(rows)})
		return struct{}{}, err
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
	if _, p := dutyOf(e.Program(), x, policy.DutyKeys); p != nil {
		if err := e.mayInspect(x); err != nil {
			return nil, err
		}
	}
	var out []KeyView
	for _, kind := range []string{keyCA, keyCheckpoint, keyKEK} {
		for _, k := range numbered(s, kind) {
			v := KeyView{PublicKey: k}
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
