package custody

import (
	"context"
	"crypto"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/spiffe"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// JWT keys sign JWT-SVIDs. There are none until the environment's protocol is one that knows them.
const JWT = state.KeyJWT

// tokenKey is a key of JWT-SVIDs, unsealed.
type tokenKey struct {
	id     string
	signer crypto.Signer
}

// unsealTokens opens the keys of JWT-SVIDs that sign, or will: withdrawn ones and those that signed before are not needed any more. As
// with checkpoint keys, the private half is what tells a key of ours from one that somebody has written into the entries.
func (v Vault) unsealTokens(ctx context.Context, s *state.State, k *Keys) error {
	if _, ok := s.NewestKey(JWT); !ok {
		return nil
	}
	all, err := Numbered(s, JWT)
	if err != nil {
		return err
	}
	k.tokens = make(map[string]tokenKey, 2)
	for i := max(len(all)-2, 0); i < len(all); i++ {
		x := all[i]
		signer, err := v.unwrapSigner(ctx, k.keks, x.Name)
		if err != nil {
			return err
		}
		t, err := spiffe.ParseTokenKey(x.Public)
		if err != nil || !seal.SameKey(signer.Public(), t.Public) {
			return problem.New(problem.ReasonTampered, "the key %s is not the one that the ledger names", x.Name)
		}
		k.tokens[x.Name] = tokenKey{t.ID, signer}
	}
	return nil
}

// HasToken reports whether tokens can be signed with a key.
func (k *Keys) HasToken(name string) bool {
	_, ok := k.tokens[name]
	return ok
}

// SignToken makes a JWT-SVID with the key of a name.
func (k *Keys) SignToken(name string, c spiffe.Claims) (string, error) {
	t, ok := k.tokens[name]
	if !ok {
		return "", problem.New(problem.ReasonStarting, "the key %s is not loaded", name)
	}
	token, err := spiffe.Sign(t.signer, t.id, c)
	if err != nil {
		return "", problem.Wrap(err, problem.ReasonInternal, "signing a token")
	}
	return token, nil
}

// MakeToken makes a key of JWT-SVIDs of a number, for an algorithm (spiffe.ES256, spiffe.RS256): what the ledger enters of it, and its
// wrapped form.
func (v Vault) MakeToken(k *Keys, n uint32, algorithm string, src *seal.Source) (state.KeyFacts, store.Key, error) {
	facts := state.KeyFacts{Name: Name(JWT, n)}
	key, err := generateToken(algorithm, src)
	if err != nil {
		return facts, store.Key{}, err
	}
	if facts.Public, err = spiffe.MarshalTokenKey(key.Public()); err != nil {
		return facts, store.Key{}, problem.Wrap(err, problem.ReasonInternal, "encoding a key of tokens")
	}
	row, err := v.wrapSigner(k.kek, JWT, n, key)
	return facts, row, err
}

func generateToken(algorithm string, src *seal.Source) (crypto.Signer, error) {
	switch algorithm {
	case spiffe.ES256:
		return seal.GenerateECDSA(src)
	case spiffe.RS256:
		return seal.GenerateRSA(src)
	}
	return nil, problem.New(problem.ReasonInternal, "no key of tokens signs by %q", algorithm)
}
