package holdertest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
)

// good is the simplest right holder; faults below break one promise of it each.
type good struct {
	kek *seal.KEK
	id  string
}

func (g good) Descriptor() keyring.Descriptor { return keyring.Descriptor{Kind: "test", ID: g.id} }
func (g good) Wrap(_ context.Context, c []byte, key seal.Secret) ([]byte, error) {
	return g.kek.Wrap(c, key)
}

func (g good) Unwrap(_ context.Context, c, wrapped []byte) (seal.Secret, error) {
	return g.kek.Unwrap(c, wrapped)
}

type faulty struct {
	good
	wrap   func(good, []byte, seal.Secret) ([]byte, error)
	unwrap func(good, []byte, []byte) (seal.Secret, error)
	id     string
}

func (f faulty) Descriptor() keyring.Descriptor {
	d := f.good.Descriptor()
	if f.id != "" {
		d.ID = f.id
	}
	return d
}

func (f faulty) Wrap(ctx context.Context, c []byte, key seal.Secret) ([]byte, error) {
	if f.wrap != nil {
		return f.wrap(f.good, c, key)
	}
	return f.good.Wrap(ctx, c, key)
}

func (f faulty) Unwrap(ctx context.Context, c, wrapped []byte) (seal.Secret, error) {
	if f.unwrap != nil {
		return f.unwrap(f.good, c, wrapped)
	}
	return f.good.Unwrap(ctx, c, wrapped)
}

// recorder is a T that keeps what the suite finds.
type recorder struct {
	*testing.T
	mu    sync.Mutex
	found []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found = append(r.found, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	panic(r)
}

func run(t *testing.T, plant func(good) keyring.Holder) []string {
	src, err := seal.NewSource(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{T: t}
	func() {
		defer func() {
			if p := recover(); p != nil && p != r {
				panic(p)
			}
		}()
		n := 0
		Run(r, func() (keyring.Holder, func() keyring.Holder) {
			n++
			kek, err := seal.GenerateKEK(1, src)
			if err != nil {
				t.Fatal(err)
			}
			h := plant(good{kek, fmt.Sprint("id-", n)})
			return h, func() keyring.Holder { return h }
		})
	}()
	return r.found
}

func TestSuitePassesAGoodHolder(t *testing.T) {
	if found := run(t, func(g good) keyring.Holder { return g }); len(found) != 0 {
		t.Error(found)
	}
}

func TestSuiteFindsPlantedFaults(t *testing.T) {
	var shared []byte
	var mu sync.Mutex
	for name, c := range map[string]struct {
		holder faulty
		want   string
	}{
		"one ID for all": {faulty{id: "x"}, "two root keys"},
		"ID too long":    {faulty{id: strings.Repeat("x", 200)}, "too long"},
		"ignores the context": {faulty{
			wrap:   func(g good, _ []byte, k seal.Secret) ([]byte, error) { return g.kek.Wrap(nil, k) },
			unwrap: func(g good, _, w []byte) (seal.Secret, error) { return g.kek.Unwrap(nil, w) },
		}, "context"},
		"does not encrypt": {faulty{
			wrap:   func(_ good, _ []byte, k seal.Secret) ([]byte, error) { return slices.Clone(k.Expose()), nil },
			unwrap: func(_ good, _, w []byte) (seal.Secret, error) { return seal.NewSecret(slices.Clone(w)), nil },
		}, "readable"},
		"takes the key away": {faulty{wrap: func(g good, c []byte, k seal.Secret) ([]byte, error) {
			w, err := g.kek.Wrap(c, k)
			k.Wipe()
			return w, err
		}}, "bytes"},
		"leaks in its error": {faulty{unwrap: func(g good, c, w []byte) (seal.Secret, error) {
			s, err := g.kek.Unwrap(c, w)
			if err != nil {
				err = problem.New(problem.ReasonTampered, "key-of-holdertest-key-of-holdert")
			}
			return s, err
		}}, "holds the key"},
		"wrong reason": {faulty{unwrap: func(g good, c, w []byte) (seal.Secret, error) {
			s, err := g.kek.Unwrap(c, w)
			if err != nil {
				err = fmt.Errorf("no")
			}
			return s, err
		}}, "want reason tampered"},
		"a value with its error": {faulty{unwrap: func(g good, c, w []byte) (seal.Secret, error) {
			s, err := g.kek.Unwrap(c, w)
			if err != nil {
				return seal.NewSecret([]byte("x")), err
			}
			return s, nil
		}}, "together with an error"},
		"accepts damage at the end": {faulty{unwrap: func(g good, c, w []byte) (seal.Secret, error) {
			if s, err := g.kek.Unwrap(c, w); err == nil || len(w) == 0 {
				return s, err
			}
			return g.kek.Unwrap(c, w[:len(w)-1])
		}}, "longer"},
		"one buffer for all calls": {faulty{unwrap: func(g good, c, w []byte) (seal.Secret, error) {
			s, err := g.kek.Unwrap(c, w)
			if err != nil {
				return s, err
			}
			mu.Lock()
			defer mu.Unlock()
			previous := shared
			shared = slices.Clone(s.Expose())
			if len(previous) == len(shared) {
				return seal.NewSecret(previous), nil
			}
			return s, nil
		}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			found := run(t, func(g good) keyring.Holder {
				f := c.holder
				f.good = g
				return f
			})
			if !strings.Contains(strings.Join(found, "\n"), c.want) || len(found) == 0 {
				t.Errorf("found only %q", found)
			}
		})
	}
}
