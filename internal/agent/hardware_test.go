package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/attest"
	attestx509 "github.com/bailment/bailment/internal/attest/x509"
	"github.com/bailment/bailment/internal/problem"
)

// chip is hardware that keeps keys and gives names for them.
type chip struct {
	mu   sync.Mutex
	keys map[string]crypto.Signer
	away bool
}

// fixed is a key of the chip: nobody can marshal it.
type fixed struct {
	chip *chip
	crypto.Signer
}

func (c *chip) key(name []byte) (crypto.Signer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k, ok := c.keys[string(name)]; ok && !c.away {
		return fixed{c, k}, nil
	}
	return nil, problem.New(problem.ReasonUnreachable, "the chip does not give the key")
}

// chipped is an attester with a chip.
type chipped struct {
	attest.Attester
	*chip
}

func (c chipped) NewKey(context.Context) (crypto.Signer, []byte, error) {
	c.mu.Lock()
	k, err := client.NewKey()
	name := "key " + string(rune('a'+len(c.keys)))
	if c.away {
		err = problem.New(problem.ReasonUnreachable, "there is no chip")
	}
	if err == nil {
		c.keys[name] = k
	}
	c.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	out, err := c.key([]byte(name))
	return out, []byte(name), err
}

func (c chipped) LoadKey(_ context.Context, blob []byte) (crypto.Signer, error) { return c.key(blob) }

// alter makes the bench's method another one.
func (b *bench) alter(change func(*attest.Method)) {
	b.certificate()
	m := attestx509.Method()
	change(&m)
	b.cfg.Methods = attest.Methods{m}
}

// hardware gives the machine a chip.
func (b *bench) hardware() *chip {
	c := &chip{keys: map[string]crypto.Signer{}}
	b.alter(func(m *attest.Method) {
		m.MakesKeys = true
		make := m.NewAttester
		m.NewAttester = func(given attest.Material) (attest.Attester, error) {
			a, err := make(given)
			return chipped{a, c}, err
		}
	})
	b.cfg.HardwareKey = true
	return c
}

// sessionKey is the public key of the present session.
func (b *bench) sessionKey() *ecdsa.PublicKey {
	b.t.Helper()
	b.agent.mu.Lock()
	defer b.agent.mu.Unlock()
	if b.agent.session == nil {
		b.t.Fatal("there is no session")
	}
	return b.agent.session.Certificate.Leaf.PublicKey.(*ecdsa.PublicKey)
}

// A session key in hardware: nothing that could be copied is on the disk, the session is taken up after a restart, and each renewal has a
// key of its own.
func TestHardwareKey(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		c := b.hardware()
		b.begin()
		b.reach(Ready, time.Second)
		first := b.sessionKey()
		b.pass(time.Hour)
		synctest.Wait()
		if first.Equal(b.sessionKey()) {
			t.Error("an hour of renewals has one key")
		}
		files, err := os.ReadDir(b.cfg.StateDir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(b.agent.files.path(f.Name()))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(text), "MIGHAgEA") || bytes.Contains(text, []byte("PRIVATE")) { // PKCS#8 of P-256, in base64
				t.Errorf("%s holds a private key", f.Name())
			}
		}
		last, calls := b.sessionKey(), b.server.Calls(attestCall)
		b.end()
		b.begin()
		b.reach(Ready, time.Second)
		if !last.Equal(b.sessionKey()) || b.server.Calls(attestCall) != calls {
			t.Error("the session was not taken up")
		}
		b.end()

		// A disk that was copied, hardware that was cleared: the machine proves itself anew.
		c.mu.Lock()
		clear(c.keys)
		c.mu.Unlock()
		b.begin()
		b.reach(Ready, time.Second)
		if last.Equal(b.sessionKey()) || b.server.Calls(attestCall) != calls+1 {
			t.Error("a key that the hardware does not have is used")
		}
		b.end()

		// Hardware that is away is waited for. It is not the server that can't be reached, and the state says so.
		c.mu.Lock()
		c.away = true
		c.mu.Unlock()
		b.begin()
		b.reach(Broken, time.Second)
		b.pass(time.Second)
		synctest.Wait()
		if s := b.agent.Status(); s.State != string(Broken) || s.Identity != "" || s.Problem == nil || s.Problem.Message != "there is no chip" {
			t.Errorf("without its hardware: %+v", s)
		}
		c.mu.Lock()
		c.away = false
		c.mu.Unlock()
		b.reach(Ready, time.Minute)
	})
}

// The same key is used again when the answer was lost, and when the configuration goes back to keys in software, its pending key is none.
func TestHardwareKeyPending(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		c := b.hardware()
		b.server.Lose(func(p string) bool { return p == attestCall && b.server.Calls(attestCall) == 1 })
		b.begin()
		b.reach(Ready, time.Minute)
		if len(c.keys) != 1 || b.server.Calls(attestCall) != 2 {
			t.Errorf("%d keys for %d attestations", len(c.keys), b.server.Calls(attestCall))
		}
		b.end()
		if err := b.agent.files.write(attestKeyFile, pending{pendingFormat, inHardware + "x", []byte("key a")}); err != nil {
			t.Fatal(err)
		}
		if k, err := b.agent.files.key(attestKeyFile, "x"); err != nil {
			t.Error(err)
		} else if _, ok := k.(fixed); ok {
			t.Error("a key in hardware is taken for one in software")
		}
	})
}

func TestHardwareKeyNeedsAMethod(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.cfg.HardwareKey = true
		if _, err := New(b.cfg); !problem.Is(err, problem.ReasonInvalid) {
			t.Error(err)
		}
	})
}

// Evidence that counts for one key comes with that key as long as the material is the same.
func TestGivenEvidence(t *testing.T) {
	for name, one := range map[string]bool{"one key": true, "a key each": false} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, clienttest.Config{}, func(b *bench) {
				b.alter(func(m *attest.Method) { m.Given = one })
				b.begin()
				b.reach(Ready, time.Second)
				first := b.sessionKey()
				b.pass(time.Hour)
				synctest.Wait()
				if n := b.server.Calls(attestCall); n < 3 || first.Equal(b.sessionKey()) != one {
					t.Errorf("%d attestations, the key is the same: %v", n, first.Equal(b.sessionKey()))
				}
				b.end()
				b.begin() // the key outlives a restart
				b.pass(time.Hour)
				synctest.Wait()
				if first.Equal(b.sessionKey()) != one {
					t.Error("after a restart")
				}
				needs := b.cfg.Methods
				b.certificate() // the next token
				b.cfg.Methods = needs
				b.end()
				b.begin()
				b.pass(time.Hour)
				b.reach(Ready, time.Second)
				if first.Equal(b.sessionKey()) {
					t.Error("new material comes with the old key")
				}
			})
		})
	}
}

// Who asks for a renewal gets one that began after he asked, and what was wrong with it.
func TestRenewNow(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.certificate()
		b.begin()
		b.reach(Ready, time.Second)
		first := b.sessionKey()
		if err := b.agent.renewNow(b.t.Context()); err != nil || first.Equal(b.sessionKey()) {
			t.Errorf("%v, the key is the same: %v", err, first.Equal(b.sessionKey()))
		}
		no := problem.New(problem.ReasonPosture, "not as required")
		b.server.Before(func(p string) error {
			if p == attestCall {
				return no
			}
			return nil
		})
		if err := b.agent.renewNow(b.t.Context()); !problem.Is(err, problem.ReasonPosture) {
			t.Error(err)
		}
		b.server.Before(nil)
		if err := b.agent.renewNow(b.t.Context()); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Millisecond)
		defer cancel()
		b.pipe.Down(errors.New("down"))
		if err := b.agent.renewNow(ctx); err == nil {
			t.Error("renewed without a network")
		}
	})
}
