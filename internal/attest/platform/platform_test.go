package platform_test

import (
	"flag"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/attest/k8s"
	"github.com/bailment/bailment/internal/attest/platform"
	"github.com/bailment/bailment/internal/attest/platform/platformtest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

var update = flag.Bool("update", false, "rewrite the methods' testdata/vectors.json; read the difference")

var now = platformtest.Now

// dirOf is where a method's README and vectors are.
func dirOf(name string) string {
	switch name {
	case k8s.Name, "gcp":
		return filepath.Join("..", name)
	case k8s.JobName:
		return filepath.Join("..", k8s.Name, name)
	}
	return filepath.Join("..", "ci", name)
}

func TestVectors(t *testing.T) {
	for _, m := range platformtest.Methods() {
		t.Run(m.Name, func(t *testing.T) { platformtest.Vectors(t, m, dirOf(m.Name), *update) })
	}
}

// TestShapes: every documented token is accepted in every way in which the method's tokens may be bound, by every algorithm.
func TestShapes(t *testing.T) {
	for _, m := range platformtest.Methods() {
		for _, bound := range platformtest.Bindings(m.Name) {
			for _, s := range platformtest.Shapes(t, m.Name) {
				for _, alg := range []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA} {
					f := platformtest.New(t, m, s, bound, alg, now, platformtest.Binding())
					res, err := m.Verify(f.Good())
					if err != nil {
						t.Errorf("%s: %s: %v", m.Name, s.Name, err)
						continue
					}
					checkResult(t, f, res, bound)
				}
			}
		}
	}
}

func checkResult(t *testing.T, f *platformtest.Fixture, res attest.Result, bound platform.Binding) {
	t.Helper()
	name := f.Method.Name
	want := identity.Platform
	if bound == platform.ToEnvironment {
		want = identity.Token
	}
	if res.Assurance != want || !f.Method.Assurance.AtLeast(res.Assurance) {
		t.Errorf("%s: assurance %s", name, res.Assurance)
	}
	if res.Anchor != name+":"+platformtest.AuthorityName || res.Claims["authority"] != platformtest.AuthorityName || res.Claims["issuer"] != f.Issuer.URL || res.Claims["subject"] != f.Claims["sub"] {
		t.Errorf("%s: %+v", name, res)
	}
	if !res.NotAfter.After(now) || res.NotAfter.After(now.Add(24*time.Hour)) {
		t.Errorf("%s: ends %s", name, res.NotAfter)
	}
	if bound == platform.ToChallenge {
		if res.Once != "" || !res.OnceUntil.IsZero() {
			t.Errorf("%s: once %q", name, res.Once)
		}
	} else if !strings.HasPrefix(res.Once, attest.OnceToken+"sha256:") || !res.OnceUntil.Equal(res.NotAfter) {
		t.Errorf("%s: once %q until %s", name, res.Once, res.OnceUntil)
	}
	if err := attest.CheckClaims(res.Claims); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// TestAttacks runs the table of hostile tokens over every method and every way of binding.
func TestAttacks(t *testing.T) {
	total := 0
	for _, m := range platformtest.Methods() {
		for _, bound := range platformtest.Bindings(m.Name) {
			t.Run(m.Name, func(t *testing.T) {
				f := platformtest.New(t, m, platformtest.Shapes(t, m.Name)[0], bound, jose.ES256, now, platformtest.Binding())
				total += jwttest.Run(t, &f.Target)
			})
		}
	}
	t.Logf("%d hostile evidences", total)
	if total < 700 {
		t.Errorf("only %d hostile evidences", total)
	}
}

// TestPinned: keys of the bundle are the only ones; what somebody fetched does not count beside them.
func TestPinned(t *testing.T) {
	for _, m := range platformtest.Methods() {
		f := platformtest.Of(t, m, jose.ES256, now, platformtest.Binding())
		in := f.Good()
		in.Params, in.Keys = f.Pinned, nil
		want, err := m.Verify(in)
		if err != nil {
			t.Errorf("%s: %v", m.Name, err)
			continue
		}
		evil := platformtest.Of(t, m, jose.ES256, now, platformtest.Binding())
		in.Keys = evil.Issuer.Keys()
		if got, err := m.Verify(in); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v", m.Name, err)
		}
		in.Evidence = evil.Good().Evidence
		if _, err := m.Verify(in); !problem.Is(err, problem.ReasonTokenInvalid) {
			t.Errorf("%s: fetched keys were believed beside the pinned ones: %v", m.Name, err)
		}
	}
}

func TestIssuer(t *testing.T) {
	for _, m := range platformtest.Methods() {
		f := platformtest.Of(t, m, jose.ES256, now, platformtest.Binding())
		head, err := m.Issuer(f.Good().Evidence)
		if err != nil || head.Issuer != f.Issuer.URL || head.KeyID != "key-1" {
			t.Errorf("%s: %+v, %v", m.Name, head, err)
		}
		if _, err := m.Issuer(nil); !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%s: %v", m.Name, err)
		}
		if _, err := m.Issuer(jwttest.Evidence([]byte("a.b.c"))); !problem.Is(err, problem.ReasonTokenInvalid) {
			t.Errorf("%s: %v", m.Name, err)
		}
	}
}

// TestAttesters: what each attester gets from the stand-in of its platform is good.
func TestAttesters(t *testing.T) {
	for _, m := range platformtest.Methods() {
		f := platformtest.Of(t, m, jose.ES256, now, platformtest.Binding())
		a, err := platformtest.Methods().NewAttesterFrom(m.Name, f.Material)
		if err != nil {
			t.Errorf("%s: %v", m.Name, err)
			continue
		}
		for range 2 {
			ev, err := a.Attest(t.Context(), f.Binding)
			if err != nil {
				t.Errorf("%s: %v", m.Name, err)
				continue
			}
			in := f.Good()
			in.Evidence = ev
			if _, err := m.Verify(in); err != nil {
				t.Errorf("%s: %v", m.Name, err)
			}
		}
		other := f.Binding
		other.Method = "other"
		if _, err := a.Attest(t.Context(), other); !problem.Is(err, problem.ReasonInternal) {
			t.Errorf("%s: for another method: %v", m.Name, err)
		}
		other = f.Binding
		other.Nonce = nil
		if _, err := a.Attest(t.Context(), other); !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%s: without a nonce: %v", m.Name, err)
		}
	}
}

func TestParams(t *testing.T) {
	one, two := authority.Authority{Name: "one", Issuer: "https://a.example"}, authority.Authority{Name: "two", Issuer: "https://a.example"}
	if _, err := platform.NewParams([]authority.Authority{one, two}); !problem.Is(err, problem.ReasonInvalid) {
		t.Errorf("two authorities of one issuer: %v", err)
	}
	if _, err := platform.NewParams([]authority.Authority{{Name: "none"}}); !problem.Is(err, problem.ReasonInvalid) {
		t.Errorf("an authority without issuer: %v", err)
	}
	if _, err := platform.NewParams(nil); err != nil {
		t.Error(err)
	}
}

// TestOtherParams: a method of the table that is wired wrongly fails closed, and not as if the token were bad.
func TestOtherParams(t *testing.T) {
	m := platformtest.Methods()[0]
	f := platformtest.Of(t, m, jose.ES256, now, platformtest.Binding())
	for name, change := range map[string]func(*attest.Input){
		"no params":    func(in *attest.Input) { in.Params = nil },
		"no time":      func(in *attest.Input) { in.Now = time.Time{} },
		"no binding":   func(in *attest.Input) { in.Binding = attest.Binding{} },
		"other method": func(in *attest.Input) { in.Binding.Method = "x509" },
	} {
		in := f.Good()
		change(&in)
		if _, err := m.Verify(in); !problem.Is(err, problem.ReasonInternal) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMaxAge(t *testing.T) {
	m := platformtest.Methods()[0]
	f := platformtest.Of(t, m, jose.ES256, now, platformtest.Binding())
	p, err := m.Params([]authority.Authority{{Name: "corp", Issuer: f.Issuer.URL, MaxAge: time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	in := f.Good()
	in.Params = p
	if _, err := m.Verify(in); !problem.Is(err, problem.ReasonEvidenceExpired) {
		t.Error(err)
	}
}

func FuzzVerify(f *testing.F) {
	methods := platformtest.Methods()
	good := make([]attest.Input, len(methods))
	for i, m := range methods {
		x := platformtest.Of(f, m, jose.ES256, now, platformtest.Binding())
		good[i] = x.Good()
		f.Add(uint8(i), good[i].Evidence)
		for _, a := range jwttest.Attacks() {
			f.Add(uint8(i), a.Make(&x.Target).Evidence)
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, evidence []byte) {
		i := int(which) % len(good)
		in := good[i]
		in.Evidence = evidence
		res, err := methods[i].Verify(in)
		switch {
		case err == nil && attest.CheckClaims(res.Claims) != nil:
			t.Errorf("%+v", res)
		case err != nil && problem.KindOf(err) == problem.Internal:
			t.Error(err)
		}
	})
}
