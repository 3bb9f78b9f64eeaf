package seal

import (
	"github.com/bailment/bailment/internal/problem"
)

// KeyContext is what a wrapped environment key is bound to: which environment, which key, which
// number of it. Examples of names: "kek", "ca", "checkpoint".
type KeyContext struct {
	Genesis [32]byte // the environment; required
	Name    string   // what the key is for; 1 to MaxName bytes
	Number  uint32   // counts the rotations of the key of this name
}

const labelKey = "bailment/context/key/v1"

// Encode is the one unambiguous encoding (see Context): the context that a root holder is given.
func (c KeyContext) Encode() ([]byte, error) {
	switch {
	case c.Genesis == [32]byte{}:
		return nil, problem.New(problem.ReasonInternal, "key context: no genesis")
	case c.Name == "" || len(c.Name) > MaxName:
		return nil, problem.New(problem.ReasonInternal, "key context: name of %d bytes, want 1 to %d", len(c.Name), MaxName)
	}
	b := appendField(nil, labelKey)
	b = appendField(b, string(c.Genesis[:]))
	b = appendField(b, c.Name)
	return appendNumber(b, uint64(c.Number)), nil
}

// WrapKey encrypts a key, such as a marshalled CA or checkpoint key, under kek, bound to ctx.
func WrapKey(kek *KEK, ctx KeyContext, key Secret) ([]byte, error) {
	c, err := ctx.Encode()
	if err != nil {
		return nil, err
	}
	return kek.Wrap(c, key)
}

// UnwrapKey is WrapKey's inverse. With another KEK or context, or changed bytes: tampered.
func UnwrapKey(kek *KEK, ctx KeyContext, wrapped []byte) (Secret, error) {
	c, err := ctx.Encode()
	if err != nil {
		return Secret{}, err
	}
	key, err := kek.Unwrap(c, wrapped)
	if err != nil {
		return Secret{}, problem.Wrap(err, problem.As(err).Reason, "unwrap key %q number %d", ctx.Name, ctx.Number)
	}
	return key, nil
}

// Wrap encrypts a key of 1 to MaxKey bytes, bound to any context of at most MaxContext bytes that
// the caller encoded without ambiguity. What Wrap makes never opens as a secret version's data
// key, nor the other way round.
func (k *KEK) Wrap(context []byte, key Secret) ([]byte, error) {
	if n := key.Len(); n == 0 || n > MaxKey {
		return nil, problem.New(problem.ReasonInternal, "key to wrap has %d bytes, want 1 to %d", n, MaxKey)
	}
	if len(context) > MaxContext {
		return nil, problem.New(problem.ReasonInternal, "context of a wrapped key has %d bytes, at most %d", len(context), MaxContext)
	}
	return k.aead().Seal(make([]byte, 0, key.Len()+Overhead), nil, key.Expose(), k.wrapAAD(context)), nil
}

// Unwrap is Wrap's inverse. With another KEK or context, or changed bytes: tampered.
func (k *KEK) Unwrap(context, wrapped []byte) (Secret, error) {
	if n := len(wrapped); n <= Overhead || n > MaxKey+Overhead {
		return Secret{}, problem.New(problem.ReasonTampered, "wrapped key has an impossible size of %d bytes", n)
	}
	if len(context) > MaxContext {
		return Secret{}, problem.New(problem.ReasonInternal, "context of a wrapped key has %d bytes, at most %d", len(context), MaxContext)
	}
	key, err := k.aead().Open(make([]byte, 0, len(wrapped)-Overhead), nil, wrapped, k.wrapAAD(context))
	if err != nil {
		return Secret{}, problem.New(problem.ReasonTampered, "wrapped key does not open with key-encryption key %d", k.number)
	}
	return NewSecret(key), nil
}

func (k *KEK) wrapAAD(context []byte) []byte {
	b := appendNumber(appendField(make([]byte, 0, 64+len(context)), labelWrap), uint64(k.number))
	return appendField(b, string(context))
}
