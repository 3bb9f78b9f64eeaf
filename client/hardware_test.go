package client_test

import (
	"context"
	"crypto"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/problem"
)

// sealed is a key that can't be marshalled.
type sealed struct{ crypto.Signer }

// A session whose key is in hardware is kept without it, can be used, and is loaded by the hardware that has the key.
func TestHardwareSession(t *testing.T) {
	s := start(t, nil)
	trust, err := client.Bootstrap(t.Context(), s.Bootstrap, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	inside, err := client.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	tok, err := s.Token("web-1")
	if err != nil {
		t.Fatal(err)
	}
	a, err := jointoken.NewAttester(tok)
	if err != nil {
		t.Fatal(err)
	}
	node, err := dial(t, trust, client.Options{}).Attest(t.Context(), jointoken.Name, a, client.HardwareKey{Signer: sealed{inside}, Blob: []byte("its name")}, "v")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := node.PEM(); !problem.Is(err, problem.ReasonUnsupported) {
		t.Errorf("as PEM: %v", err)
	}
	path := filepath.Join(t.TempDir(), "session.json")
	if err := node.Save(path); err != nil {
		t.Fatal(err)
	}
	_, err = client.LoadSession(path, trust)
	wantReason(t, err, problem.ReasonUnsupported)
	away := errors.New("away")
	if _, err := client.LoadHardwareSession(path, trust, func([]byte) (crypto.Signer, error) { return nil, away }); !errors.Is(err, away) {
		t.Errorf("without its hardware: %v", err)
	}
	other, err := client.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.LoadHardwareSession(path, trust, func([]byte) (crypto.Signer, error) { return other, nil })
	wantReason(t, err, problem.ReasonNotAuthentic)
	again, err := client.LoadHardwareSession(path, trust, func(blob []byte) (crypto.Signer, error) {
		if string(blob) != "its name" {
			t.Errorf("the blob is %q", blob)
		}
		return sealed{inside}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, trust, client.Options{Credentials: again.Credentials()})
	key, err := client.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.AttestWorkload(t.Context(), map[string]any{}, "/workload/pay", key); err != nil {
		t.Errorf("with the loaded key: %v", err)
	}
	if err := again.Save(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// A file in software's format is not given to the hardware.
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), "hardware session", "session", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = client.LoadHardwareSession(path, trust, func([]byte) (crypto.Signer, error) { return sealed{inside}, nil })
	wantReason(t, err, problem.ReasonInvalid)
}

// sleeper is a machine that was reset so many times between its hello and its answer.
type sleeper struct{ resets, hellos int }

func (s *sleeper) Attest(context.Context, attest.Binding) ([]byte, error) {
	return nil, errors.New("it goes in two rounds")
}

func (s *sleeper) Hello(context.Context) ([]byte, error) {
	s.hellos++
	return []byte("hello"), nil
}

func (s *sleeper) Answer(context.Context, attest.Binding, []byte, []byte) ([]byte, error) {
	if s.resets > 0 {
		s.resets--
		return nil, problem.New(problem.ReasonReset, "it was reset")
	}
	return nil, problem.New(problem.ReasonBadProof, "it answers")
}

// A machine that was reset says hello again: once, and not for any other reason.
func TestHelloAgain(t *testing.T) {
	bubble(t, clienttest.Config{}, func(t *testing.T, _ *clienttest.Server, p *clienttest.Pipe, trust *client.Trust) {
		c := dial(t, trust, client.Options{Dialer: p.Dial})
		key, err := client.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		for resets, want := range []problem.Reason{problem.ReasonBadProof, problem.ReasonBadProof, problem.ReasonReset, problem.ReasonReset} {
			s := &sleeper{resets: resets}
			if _, err := c.Attest(t.Context(), "tpm", s, key, "v"); !problem.Is(err, want) || s.hellos != min(resets+1, 2) {
				t.Errorf("%d resets: %d hellos, %v", resets, s.hellos, err)
			}
		}
	})
}
