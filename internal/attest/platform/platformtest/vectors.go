package platformtest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/attesttest"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/attest/platform"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// Vector is one of a method's testdata/vectors.json: what another implementation needs to agree with us.
type Vector struct {
	Comment    string              `json:"comment"`
	Source     string              `json:"source,omitempty"` // of the token's shape
	Genesis    []byte              `json:"genesis"`
	Nonce      []byte              `json:"nonce"`
	SessionKey []byte              `json:"session_key"`
	Issuer     string              `json:"issuer"`
	Keys       *jose.JSONWebKeySet `json:"keys"`
	Now        time.Time           `json:"now"`
	Evidence   string              `json:"evidence"`
	Claims     map[string]any      `json:"claims,omitempty"`
	Assurance  string              `json:"assurance,omitempty"`
	Once       string              `json:"once,omitempty"`
	NotAfter   time.Time           `json:"not_after,omitzero"`
	Refused    problem.Reason      `json:"refused,omitempty"`
}

// Now is the time of the vectors.
var Now = attesttest.Now()

// Vectors holds a method to the vectors in dir/testdata, or writes them anew.
func Vectors(t *testing.T, m attest.Method, dir string, update bool) {
	t.Helper()
	path := filepath.Join(dir, "testdata", "vectors.json")
	if update {
		writeVectors(t, m, path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []Vector
	if err := json.Unmarshal(data, &all); err != nil || len(all) < 5 {
		t.Fatal(len(all), err)
	}
	for _, v := range all {
		res, err := m.Verify(v.input(t, m))
		if v.Refused != "" {
			if !problem.Is(err, v.Refused) {
				t.Errorf("%s: %v", v.Comment, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", v.Comment, err)
			continue
		}
		if !reflect.DeepEqual(res.Claims, v.Claims) || res.Assurance.String() != v.Assurance || res.Once != v.Once || !res.NotAfter.Equal(v.NotAfter) {
			t.Errorf("%s: %+v", v.Comment, res)
		}
	}
}

func (v Vector) input(t testing.TB, m attest.Method) attest.Input {
	return attest.Input{
		Binding:  attest.Binding{Method: m.Name, Genesis: [32]byte(v.Genesis), Nonce: v.Nonce, SessionKey: [32]byte(v.SessionKey)},
		Evidence: []byte(v.Evidence), Now: v.Now, Keys: v.Keys,
		Params: params(t, m, authority.Authority{Name: AuthorityName, Method: m.Name, Issuer: v.Issuer}),
	}
}

// writeVectors makes the file anew: each shape in each way in which the method's tokens are bound, and some refusals. Its keys are nowhere
// kept, so the stored file is what counts, and it is never compared with a new one.
func writeVectors(t *testing.T, m attest.Method, path string) {
	t.Helper()
	var all []Vector
	add := func(f *Fixture, comment, source string, in attest.Input, refused problem.Reason) {
		v := Vector{
			Comment: comment, Source: source, Genesis: in.Binding.Genesis[:], Nonce: in.Binding.Nonce, SessionKey: in.Binding.SessionKey[:],
			Issuer: f.Issuer.URL, Keys: f.Issuer.Keys(), Now: in.Now, Evidence: string(in.Evidence), Refused: refused,
		}
		if refused == "" {
			res, err := m.Verify(in)
			if err != nil {
				t.Fatalf("%s: %v", comment, err)
			}
			v.Claims, v.Assurance, v.Once, v.NotAfter = res.Claims, res.Assurance.String(), res.Once, res.NotAfter
		}
		all = append(all, v)
	}
	names := map[platform.Binding]string{platform.ToChallenge: "the challenge", platform.ToKey: "the session key", platform.ToEnvironment: "the environment"}
	for _, bound := range bindings[m.Name] {
		for _, s := range Shapes(t, m.Name) {
			f := New(t, m, s, bound, jose.RS256, Now, Binding())
			add(f, "accepted, bound to "+names[bound]+": "+s.Name, s.Source, f.Good(), "")
		}
	}
	f := Of(t, m, jose.RS256, Now, Binding())
	for _, a := range jwttest.Attacks() {
		switch a.Name {
		case "another environment's audience", "several audiences", "expired", "from the future", "no end", "algorithm none", "HMAC with the public key", "another key under the same ID",
			"the issuer and a slash", "the end twice", "truncated":
			add(f, a.Name, "", a.Make(&f.Target), a.Want)
		}
	}
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Binding is the one of the vectors, of no method yet.
func Binding() attest.Binding { return attesttest.Binding("") }
