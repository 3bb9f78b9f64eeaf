package agent

import (
	"context"
	"crypto"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/aws"
	"github.com/bailment/bailment/internal/problem"
)

// Where a machine's half of a method can fail.
const (
	atNewKey = "making a key"
	atSign   = "signing with the key"
	atHello  = "saying hello"
	atAnswer = "answering the offer"
	atAttest = "making evidence"
)

// faulty is a machine's half that fails at one place. It makes keys, and goes in one round.
type faulty struct {
	attest.Attester
	at    string
	err   *atomic.Pointer[error] // nil: none now
	tries *atomic.Int64
}

func (f faulty) fail(at string) error {
	if e := f.err.Load(); e != nil && at == f.at {
		f.tries.Add(1)
		return *e
	}
	return nil
}

func (f faulty) Attest(ctx context.Context, b attest.Binding) ([]byte, error) {
	if err := f.fail(atAttest); err != nil {
		return nil, err
	}
	return f.Attester.Attest(ctx, b)
}

func (f faulty) NewKey(context.Context) (crypto.Signer, []byte, error) {
	if err := f.fail(atNewKey); err != nil {
		return nil, nil, err
	}
	key, err := client.NewKey()
	return faultyKey{key, f}, []byte("key"), err
}

func (f faulty) LoadKey(context.Context, []byte) (crypto.Signer, error) {
	return nil, problem.New(problem.ReasonInvalid, "it does not keep any")
}

type faultyKey struct {
	crypto.Signer
	of faulty
}

func (k faultyKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := k.of.fail(atSign); err != nil {
		return nil, err
	}
	return k.Signer.Sign(random, digest, opts)
}

// greeter is a faulty half that goes in two rounds.
type greeter struct{ faulty }

func (g greeter) Hello(context.Context) ([]byte, error) { return []byte("hello"), g.fail(atHello) }

func (g greeter) Answer(ctx context.Context, b attest.Binding, _, _ []byte) ([]byte, error) {
	if err := g.fail(atAnswer); err != nil {
		return nil, err
	}
	return g.Attest(ctx, b)
}

// fails has the machine's half fail at one place, as soon as its error is set.
func (b *bench) fails(at string) *faulty {
	half := faulty{at: at, err: &atomic.Pointer[error]{}, tries: &atomic.Int64{}}
	b.alter(func(m *attest.Method) {
		m.MakesKeys = true
		make := m.NewAttester
		m.NewAttester = func(given attest.Material) (attest.Attester, error) {
			a, err := make(given)
			f := half
			f.Attester = a
			if at == atHello || at == atAnswer {
				return greeter{f}, err
			}
			return f, err
		}
	})
	b.cfg.HardwareKey = at == atNewKey || at == atSign
	return &half
}

// What fails on this machine is this machine's, whatever the reason is called: nobody is sent to look for a server that was never asked,
// or for a rule. What may pass by itself is tried soon. What the machine would show and is not good for here stays what was not proved.
func TestOwnHalf(t *testing.T) {
	rarely, soon := class{Broken, false}, class{Broken, true}
	for name, c := range map[string]struct {
		err  error
		want class
	}{
		"hardware or platform away":   {problem.New(problem.ReasonUnreachable, "planted"), soon},
		"it took too long":            {problem.New(problem.ReasonCanceled, "planted"), soon},
		"reset meanwhile":             {problem.New(problem.ReasonReset, "planted"), soon},
		"what is asked for isn't":     {problem.New(problem.ReasonInvalid, "planted"), rarely},
		"it can't do it":              {problem.New(problem.ReasonUnsupported, "planted"), rarely},
		"it may not":                  {problem.New(problem.ReasonPermissions, "planted"), rarely},
		"too much":                    {problem.New(problem.ReasonTooLarge, "planted"), rarely},
		"no token is given":           {problem.New(problem.ReasonNotProved, "planted"), rarely},
		"a defect":                    {problem.New(problem.ReasonInternal, "planted"), rarely},
		"no randomness":               {problem.New(problem.ReasonEntropy, "planted"), rarely},
		"outside of the vocabulary":   {errors.New("planted"), rarely},
		"a token of somewhere else":   {problem.New(problem.ReasonTokenForeign, "planted"), notProved},
		"a certificate of other keys": {problem.New(problem.ReasonBadChain, "planted"), notProved},
	} {
		for _, at := range []string{atNewKey, atSign, atHello, atAnswer, atAttest} {
			t.Run(name+", "+at, func(t *testing.T) {
				t.Parallel()
				inBubble(t, clienttest.Config{}, func(b *bench) { b.ownHalf(at, c.err, c.want) })
			})
		}
	}
}

func (b *bench) ownHalf(at string, err error, want class) {
	b.t.Helper()
	half := b.fails(at)
	half.err.Store(&err)
	b.begin()
	b.reach(want.state, 2*time.Second)
	b.reason(problem.As(err).Reason)
	fix := b.agent.Status().Problem.Fix
	if of := problem.As(err).Reason.Fix(); want.state == Broken && (fix == of || !strings.Contains(fix, "this machine")) {
		b.t.Errorf("the way out is one of servers: %q", fix)
	}
	b.pass(5 * time.Minute)
	synctest.Wait()
	if s := b.agent.Status(); s.State != string(want.state) || State(s.State).ExitCode() != want.state.ExitCode() {
		b.t.Errorf("state %s, want %s", s.State, want.state)
	}
	least, most := want.attempts()
	if p := problem.As(err); p.Reason == problem.ReasonReset {
		most *= 2 // each of them says hello twice
	}
	if n := int(half.tries.Load()); n < least || n > most {
		b.t.Errorf("%d attempts in five minutes, want %d to %d", n, least, most)
	}
	half.err.Store(nil)
	b.reach(Ready, lastRefused+time.Second)
}

// A valid session is kept while the machine's half fails, and the reason stands beside it.
func TestOwnHalfWhileReady(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		half := b.fails(atSign)
		b.begin()
		b.reach(Ready, time.Second)
		first := b.agent.Status()
		planted := error(problem.New(problem.ReasonUnsupported, "planted"))
		half.err.Store(&planted)
		for time.Until(first.Expires) > time.Minute {
			b.pass(20 * time.Second)
			synctest.Wait()
			if s := b.agent.Status(); State(s.State).ExitCode() != 0 || !s.Expires.Equal(first.Expires) {
				t.Fatalf("state %s with a session until %s (%+v)", s.State, s.Expires, s.Problem)
			}
		}
		b.reason(problem.ReasonUnsupported)
		b.pass(2 * time.Minute)
		b.reach(Broken, 0)
		b.reason(problem.ReasonUnsupported)
		half.err.Store(nil)
		b.reach(Ready, lastRefused+time.Second)
	})
}

// An own half that is away for a moment when the machine starts is waited for, as a server is.
func TestRunsWaitForTheOwnHalf(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.server.Put("db/password", []byte("v"))
		half, planted := b.fails(atAttest), error(problem.New(problem.ReasonUnreachable, "planted"))
		half.err.Store(&planted)
		b.begin()
		b.reach(Broken, time.Second)
		time.AfterFunc(time.Second, func() { half.err.Store(nil) })
		x, _, err := b.open(password)
		if err != nil {
			t.Fatal(err)
		}
		x.close()
	})
}

// The real half of a cloud's method, by what its metadata service answers.
func TestMetadataServiceIsOwn(t *testing.T) {
	answer := func(code int) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }))
		t.Cleanup(s.Close)
		return s.URL
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + l.Addr().String()
	_ = l.Close()
	for name, c := range map[string]struct {
		at   string
		want class
	}{
		"nobody there": {nobody, class{Broken, true}}, "not ready": {answer(http.StatusServiceUnavailable), class{Broken, true}},
		"not that cloud": {answer(http.StatusNotFound), class{Broken, false}}, "forbidden": {answer(http.StatusForbidden), class{Broken, false}},
	} {
		half, err := aws.Method().NewAttester(attest.Material{aws.NeedEndpoint: []byte(c.at)})
		if err != nil {
			t.Fatal(err)
		}
		b := attest.Binding{Method: aws.Name, Nonce: make([]byte, 32)}
		b.Genesis[0], b.SessionKey[0] = 1, 1
		if _, err = own(half).Attest(t.Context(), b); classify(err) != c.want {
			t.Errorf("%s: %+v (%v), want %+v", name, classify(err), err, c.want)
		}
	}
}
