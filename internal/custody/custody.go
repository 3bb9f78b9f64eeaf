// Package custody keeps the keys of one environment: it makes them, wraps them for the store, unseals
// them, and signs with them.
//
// Guaranteed: key-encryption keys are only ever stored under the root holder, every other key only
// under a key-encryption key, each bound to environment, kind and number; every CA of a Keys value leads
// to that of genesis; a Keys value is immutable, so who has one works with one consistent set. Not guaranteed: that a signature was recorded first. That
// is control's order: the entry, then the certificate.
//
// Its place: control calls it; below it are keyring's contract, seal, and the store's plain types.
package custody

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// Kinds of keys of an environment. Each key has a name KIND/NUMBER.
const (
	CA         = state.KeyCA         // signs certificates
	Checkpoint = state.KeyCheckpoint // signs checkpoints
	KEK        = state.KeyKEK        // wraps data keys and the other kinds
	MAC        = "mac"               // keyed digests and challenges; number 1 for ever, and not in the ledger
)

// Name is KIND/NUMBER.
func Name(kind string, number uint32) string { return state.KeyName(kind, number) }

// Key is a key of the ledger with its number.
type Key struct {
	*state.PublicKey
	Number uint32
}

// Numbered lists a kind's keys in the order in which they were added, the first one first.
func Numbered(s *state.State, kind string) ([]Key, error) {
	var out []Key
	var err error
	s.Keys.From(kind+"/", func(name string, x *state.PublicKey) bool {
		if !strings.HasPrefix(name, kind+"/") {
			return false
		}
		k := Key{PublicKey: x}
		if _, k.Number, err = state.ParseKeyName(name); err == nil {
			out = append(out, k)
		}
		return err == nil
	})
	if err != nil {
		return nil, err
	}
	// Names sort as text: ten comes before two.
	slices.SortFunc(out, func(a, b Key) int { return cmp.Compare(a.Number, b.Number) })
	for i, k := range out {
		if k.Number != uint32(i+1) {
			return nil, problem.New(problem.ReasonTampered, "key %s is not the %dth of its kind", k.Name, i+1)
		}
	}
	if len(out) == 0 {
		return nil, problem.New(problem.ReasonTampered, "the environment has no key of the kind %s", kind)
	}
	return out, nil
}

// Vault is where wrapped keys are kept and what opens them.
type Vault struct {
	Holder  keyring.Holder
	Genesis state.Digest
	// Read returns the wrapped key of a name, or store.ErrNotFound.
	Read func(ctx context.Context, name string) ([]byte, error)
}

// Keys are an environment's keys, unsealed. A value never changes; a rotation makes a new one. It is
// safe for concurrent use.
type Keys struct {
	kek  *seal.KEK            // current
	keks map[uint32]*seal.KEK // all that may still wrap something
	mac  seal.Secret

	ca     crypto.Signer
	caCert *x509.Certificate
	chain  [][]byte            // DER, from the current CA's cross-certificate up to, without, the genesis CA
	cas    []*x509.Certificate // every CA that may have signed something: genesis first

	signers   []note.Signer
	verifiers []note.Verifier
	vkeys     []string

	tokens map[string]tokenKey // by name; those that sign, or will

	known int // keys that the state named: keys are only ever added
}

// Behind reports whether the state names keys that are not among these. What was sealed, wrapped or vouched for with keys that
// are behind must not be entered: it would be by a key that is no longer the current one.
func (k *Keys) Behind(s *state.State) bool { return k.known < s.Keys.Len() }

// KEK is the current key-encryption key.
func (k *Keys) KEK() *seal.KEK { return k.kek }

// KEKNumbered is the key-encryption key of a number, if it is still there.
func (k *Keys) KEKNumbered(n uint32) (*seal.KEK, bool) {
	x, ok := k.keks[n]
	return x, ok
}

// MAC is the key of keyed digests.
func (k *Keys) MAC() seal.Secret { return k.mac }

// Certificates are the CA certificates, genesis first.
func (k *Keys) Certificates() []*x509.Certificate { return k.cas }

// Chain leads from the genesis CA to the current one: the genesis CA's certificate, then each later CA as signed by the
// one before. DER.
func (k *Keys) Chain() [][]byte {
	out := [][]byte{k.cas[0].Raw}
	for i := len(k.chain) - 1; i >= 0; i-- {
		out = append(out, k.chain[i])
	}
	return out
}

// Signers sign checkpoints: the current key first, and the one before beside it, so that a verifier who has not heard of a
// rotation still verifies.
func (k *Keys) Signers() []note.Signer { return k.signers }

// Verifiers verify checkpoints of this and all former keys. Each is proved to be of this environment by its private half.
func (k *Keys) Verifiers() []note.Verifier { return k.verifiers }

// HeadVerifiers verify the checkpoint of the newest batch: it is signed by what were the Signers then, and one rotation may have been
// entered since. A key before those signs no more, so who has stolen one, or broken in where it was, adds nothing to the end.
func (k *Keys) HeadVerifiers() []note.Verifier { return k.verifiers[:len(k.signers)] }

// VerifierKeys are the Verifiers as text, the current one first.
func (k *Keys) VerifierKeys() []string { return k.vkeys }

// Wipe overwrites what Go lets us overwrite. The Keys must not be used any more.
func (k *Keys) Wipe() {
	k.mac.Wipe()
	for _, x := range k.keks {
		x.Key().Wipe()
	}
}

// Unseal opens all keys that the state names: key-encryption keys by the root holder, the others by those.
// origin is the checkpoints' origin line.
func (v Vault) Unseal(ctx context.Context, s *state.State, origin string) (*Keys, error) {
	k := &Keys{keks: make(map[uint32]*seal.KEK), known: s.Keys.Len()}
	if err := v.unseal(ctx, s, k, origin); err != nil {
		k.Wipe() // it may be tried again for as long as a root holder fails
		return nil, err
	}
	return k, nil
}

func (v Vault) unseal(ctx context.Context, s *state.State, k *Keys, origin string) error {
	keks, err := Numbered(s, KEK)
	if err != nil {
		return err
	}
	rows := make([]store.Key, 0, len(keks))
	for _, x := range keks {
		data, err := v.read(ctx, x.Name)
		if err != nil {
			return err
		}
		rows = append(rows, store.Key{Name: x.Name, Data: data})
	}
	if err := checkMoved(s, rows); err != nil {
		return err
	}
	for i, x := range keks {
		if err := v.unsealKEK(ctx, k, x, rows[i].Data); err != nil {
			return err
		}
	}
	if k.kek == nil {
		return problem.New(problem.ReasonTampered, "the environment has no key-encryption key")
	}
	if k.mac, err = v.unwrap(ctx, k.keks, Name(MAC, 1)); err != nil {
		return err
	}
	if err := v.unsealCA(ctx, s, k); err != nil {
		return err
	}
	if err := v.unsealTokens(ctx, s, k); err != nil {
		return err
	}
	return v.unsealCheckpoint(ctx, s, k, origin)
}

func (v Vault) unwrapKEK(ctx context.Context, x Key, data []byte) (seal.Secret, error) {
	aad, err := seal.KeyContext{Genesis: v.Genesis, Name: KEK, Number: x.Number}.Encode()
	if err != nil {
		return seal.Secret{}, err
	}
	secret, err := v.Holder.Unwrap(ctx, aad, data)
	if err != nil {
		return seal.Secret{}, fmt.Errorf("unsealing %s with the root holder %s: %w", Name(KEK, x.Number), v.Holder.Descriptor().Kind, err)
	}
	return secret, nil
}

func (v Vault) unsealKEK(ctx context.Context, k *Keys, x Key, data []byte) error {
	secret, err := v.unwrapKEK(ctx, x, data)
	if err != nil {
		return err
	}
	kek, err := seal.NewKEK(x.Number, secret)
	if err != nil {
		return err
	}
	k.keks[x.Number] = kek
	if x.Current {
		k.kek = kek
	}
	return nil
}

func (v Vault) read(ctx context.Context, name string) ([]byte, error) {
	data, err := v.Read(ctx, name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, problem.Wrap(err, problem.ReasonTampered, "the wrapped key %s is missing", name)
	case err != nil:
		return nil, problem.Wrap(err, problem.ReasonStore, "reading the wrapped key %s", name)
	}
	return data, nil
}

func (v Vault) unsealCA(ctx context.Context, s *state.State, k *Keys) error {
	all, err := Numbered(s, CA)
	if err != nil {
		return err
	}
	name := ""
	for i, x := range all {
		cert, err := x509.ParseCertificate(x.Cert)
		if err != nil {
			return problem.Wrap(err, problem.ReasonTampered, "reading the certificate of %s", x.Name)
		}
		if i > 0 {
			if err := vouched(k.cas[i-1], cert, x.Cross); err != nil {
				return problem.Wrap(err, problem.ReasonTampered, "%s is not vouched for by %s", x.Name, all[i-1].Name)
			}
			k.chain = append([][]byte{x.Cross}, k.chain...) // newest first: each leads to the CA before it
		}
		k.cas = append(k.cas, cert)
		if x.Current {
			k.caCert, name = cert, x.Name
		}
	}
	if name == "" {
		return problem.New(problem.ReasonTampered, "the environment has no CA")
	}
	if k.ca, err = v.unwrapSigner(ctx, k.keks, name); err != nil {
		return err
	}
	if !seal.SameKey(k.ca.Public(), k.caCert.PublicKey) {
		return problem.New(problem.ReasonTampered, "the key of %s is not that of its certificate", name)
	}
	return nil
}

// vouched checks that a CA's cross-certificate is signed by the CA before it, and is of the CA's own key: what is trusted because
// of the ledger leads to genesis.
func vouched(before, cert *x509.Certificate, cross []byte) error {
	c, err := x509.ParseCertificate(cross)
	if err != nil {
		return err
	}
	if err := c.CheckSignatureFrom(before); err != nil {
		return err
	}
	switch {
	case !c.IsCA || !cert.IsCA: // a session's certificate is signed by a CA too
		return errors.New("it is not a CA")
	case !bytes.Equal(c.RawSubjectPublicKeyInfo, cert.RawSubjectPublicKeyInfo):
		return errors.New("the two certificates are of different keys")
	}
	return nil
}

func (v Vault) unsealCheckpoint(ctx context.Context, s *state.State, k *Keys, origin string) error {
	all, err := Numbered(s, Checkpoint)
	if err != nil {
		return err
	}
	for i := len(all) - 1; i >= 0; i-- {
		vkey, err := note.NewEd25519VerifierKey(origin, ed25519.PublicKey(all[i].Public))
		if err != nil {
			return problem.Wrap(err, problem.ReasonTampered, "reading the key %s", all[i].Name)
		}
		verifier, err := note.NewVerifier(vkey)
		if err != nil {
			return problem.Wrap(err, problem.ReasonTampered, "reading the key %s", all[i].Name)
		}
		// Every key is opened, also those that sign no more: the private half under our own key-encryption key is what tells a
		// key of ours from one that somebody has written into the entries.
		signer, err := v.unwrapSigner(ctx, k.keks, all[i].Name)
		if err != nil {
			return err
		}
		if !seal.SameKey(signer.Public(), ed25519.PublicKey(all[i].Public)) {
			return problem.New(problem.ReasonTampered, "the key %s is not the one that the ledger names", all[i].Name)
		}
		k.vkeys = append(k.vkeys, vkey)
		k.verifiers = append(k.verifiers, verifier)
		if i < len(all)-2 {
			continue
		}
		k.signers = append(k.signers, &checkpointSigner{name: origin, hash: verifier.KeyHash(), key: signer})
	}
	if len(k.signers) == 0 {
		return problem.New(problem.ReasonTampered, "the environment has no checkpoint key")
	}
	return nil
}

// checkpointSigner is a note.Signer over a crypto.Signer, so that the key need not be text.
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

// unwrap opens a key that is under a key-encryption key, whose number stands before it.
func (v Vault) unwrap(ctx context.Context, keks map[uint32]*seal.KEK, name string) (seal.Secret, error) {
	kind, n, err := state.ParseKeyName(name)
	if err != nil {
		return seal.Secret{}, err
	}
	data, err := v.read(ctx, name)
	if err != nil {
		return seal.Secret{}, err
	}
	if len(data) < 4 {
		return seal.Secret{}, problem.New(problem.ReasonTampered, "the key %s is damaged", name)
	}
	kek, ok := keks[binary.BigEndian.Uint32(data)]
	if !ok {
		return seal.Secret{}, problem.New(problem.ReasonTampered, "the key %s is under a key-encryption key that is not there", name)
	}
	return seal.UnwrapKey(kek, seal.KeyContext{Genesis: v.Genesis, Name: kind, Number: n}, data[4:])
}

func (v Vault) unwrapSigner(ctx context.Context, keks map[uint32]*seal.KEK, name string) (crypto.Signer, error) {
	secret, err := v.unwrap(ctx, keks, name)
	if err != nil {
		return nil, err
	}
	defer secret.Wipe()
	return seal.ParsePrivateKey(secret)
}

// wrap puts a key under a key-encryption key.
func (v Vault) wrap(kek *seal.KEK, kind string, n uint32, key seal.Secret) (store.Key, error) {
	data, err := seal.WrapKey(kek, seal.KeyContext{Genesis: v.Genesis, Name: kind, Number: n}, key)
	if err != nil {
		return store.Key{}, err
	}
	return store.Key{Name: Name(kind, n), Data: append(binary.BigEndian.AppendUint32(nil, kek.Number()), data...)}, nil
}

func (v Vault) wrapSigner(kek *seal.KEK, kind string, n uint32, key crypto.Signer) (store.Key, error) {
	secret, err := seal.MarshalPrivateKey(key)
	if err != nil {
		return store.Key{}, err
	}
	defer secret.Wipe()
	return v.wrap(kek, kind, n, secret)
}

// wrapKEK puts a key-encryption key under the root holder, and unwraps it once more: what a holder can't give back is not handed to it.
func (v Vault) wrapKEK(ctx context.Context, k *seal.KEK) (store.Key, error) {
	aad, err := seal.KeyContext{Genesis: v.Genesis, Name: KEK, Number: k.Number()}.Encode()
	if err != nil {
		return store.Key{}, err
	}
	data, err := v.Holder.Wrap(ctx, aad, k.Key())
	if err != nil {
		return store.Key{}, fmt.Errorf("wrapping %s with the root holder %s: %w", Name(KEK, k.Number()), HolderOf(v.Holder), err)
	}
	again, err := v.unwrapKEK(ctx, Key{Number: k.Number()}, data)
	if err != nil {
		return store.Key{}, err
	}
	defer again.Wipe()
	if !again.Equal(k.Key()) || again.Len() != seal.KeySize { // one that was wiped meanwhile is equal to another such
		return store.Key{}, problem.New(problem.ReasonTampered, "the root holder %s gives back another key than it was given", HolderOf(v.Holder))
	}
	return store.Key{Name: Name(KEK, k.Number()), Data: data}, nil
}

// Make makes the next key of a kind: what the ledger enters of it, and its wrapped form. The key before it vouches for a CA
// and for a checkpoint key.
func (v Vault) Make(ctx context.Context, k *Keys, kind string, n uint32, scope ceremony.Scope, src *seal.Source, now time.Time) (state.KeyFacts, store.Key, error) {
	facts := state.KeyFacts{Name: Name(kind, n)}
	switch kind {
	case KEK:
		kek, err := seal.GenerateKEK(n, src)
		if err != nil {
			return facts, store.Key{}, err
		}
		defer kek.Key().Wipe() // from here on it is unsealed like all others
		row, err := v.wrapKEK(ctx, kek)
		return facts, row, err
	case Checkpoint:
		key, err := seal.GenerateEd25519(src)
		if err != nil {
			return facts, store.Key{}, err
		}
		facts.Public = key.Public().(ed25519.PublicKey)
		text := ceremony.CheckpointKey{Scope: scope, Name: facts.Name, Public: facts.Public}.Text()
		if facts.Cross, err = k.signers[0].Sign([]byte(text)); err != nil {
			return facts, store.Key{}, problem.Wrap(err, problem.ReasonInternal, "vouching for the new checkpoint key")
		}
		row, err := v.wrapSigner(k.kek, kind, n, key)
		return facts, row, err
	case CA:
		key, err := seal.GenerateECDSA(src)
		if err != nil {
			return facts, store.Key{}, err
		}
		if facts.Cert, err = signCA(scope.Environment, n, key.Public(), nil, key, now); err != nil {
			return facts, store.Key{}, err
		}
		if facts.Cross, err = signCA(scope.Environment, n, key.Public(), k.caCert, k.ca, now); err != nil {
			return facts, store.Key{}, err
		}
		row, err := v.wrapSigner(k.kek, kind, n, key)
		return facts, row, err
	}
	return facts, store.Key{}, problem.New(problem.ReasonInvalid, "keys of kind %q are not made", kind)
}

// signCA signs a CA's certificate by itself (parent nil) or by the CA before it.
func signCA(env string, n uint32, pub crypto.PublicKey, parent *x509.Certificate, by crypto.Signer, now time.Time) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonEntropy, "making a serial number")
	}
	t := caTemplate(env, n, serial, now)
	if parent == nil {
		parent = t
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, by)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "signing a CA certificate")
	}
	return der, nil
}

// Founding are an environment's first keys, made before genesis exists and wrapped after it is known.
type Founding struct {
	CACert     []byte            // DER of the genesis CA
	Checkpoint ed25519.PublicKey // of the genesis checkpoint key
	Facts      []state.KeyFacts

	kek     *seal.KEK
	secrets map[string]seal.Secret
}

// Found makes the first keys.
func Found(env string, src *seal.Source, now time.Time) (*Founding, error) {
	f := &Founding{secrets: make(map[string]seal.Secret)}
	var err error
	if f.kek, err = seal.GenerateKEK(1, src); err != nil {
		return nil, err
	}
	if f.secrets[MAC], err = src.Key(seal.KeySize); err != nil {
		return nil, err
	}
	ca, err := seal.GenerateECDSA(src)
	if err != nil {
		return nil, err
	}
	if f.CACert, err = signCA(env, 1, ca.Public(), nil, ca, now); err != nil {
		return nil, err
	}
	if f.secrets[CA], err = seal.MarshalPrivateKey(ca); err != nil {
		return nil, err
	}
	checkpoint, err := seal.GenerateEd25519(src)
	if err != nil {
		return nil, err
	}
	f.Checkpoint = checkpoint.Public().(ed25519.PublicKey)
	if f.secrets[Checkpoint], err = seal.MarshalPrivateKey(checkpoint); err != nil {
		return nil, err
	}
	f.Facts = []state.KeyFacts{
		{Name: Name(CA, 1), Cert: f.CACert}, {Name: Name(Checkpoint, 1), Public: f.Checkpoint}, {Name: Name(KEK, 1)},
	}
	return f, nil
}

// Signer signs the first checkpoint. It must be asked for before Wrap, and needs no key afterwards.
func (f *Founding) Signer(origin string) (note.Signer, error) {
	key, err := seal.ParsePrivateKey(f.secrets[Checkpoint])
	if err != nil {
		return nil, err
	}
	vkey, err := note.NewEd25519VerifierKey(origin, f.Checkpoint)
	if err != nil {
		return nil, err
	}
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, err
	}
	return &checkpointSigner{name: origin, hash: verifier.KeyHash(), key: key}, nil
}

// Wrap wraps the first keys for the store, bound to genesis, and wipes them.
func (f *Founding) Wrap(ctx context.Context, v Vault) ([]store.Key, error) {
	defer func() {
		for _, s := range f.secrets {
			s.Wipe()
		}
		f.kek.Key().Wipe()
	}()
	row, err := v.wrapKEK(ctx, f.kek)
	if err != nil {
		return nil, err
	}
	rows := []store.Key{row}
	for _, kind := range []string{MAC, CA, Checkpoint} {
		row, err := v.wrap(f.kek, kind, 1, f.secrets[kind])
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// Rewrapped wraps every key that is under an older key-encryption key under the current one.
func (v Vault) Rewrapped(ctx context.Context, k *Keys, names []string) ([]store.Key, error) {
	var rows []store.Key
	for _, name := range names {
		kind, n, err := state.ParseKeyName(name)
		if err != nil {
			return nil, err
		}
		if kind == KEK {
			continue // under the root holder
		}
		secret, err := v.unwrap(ctx, k.keks, name)
		if err != nil {
			return nil, err
		}
		row, err := v.wrap(k.kek, kind, n, secret)
		secret.Wipe()
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}
