package attesttest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
)

// A line of a method's testdata/vectors.json is what another implementation needs to agree with us: to what the evidence is bound
// (Bound), whom the method trusts (the method's own fields), and what its verifier says of it (Case). The file is one JSON list.

// Bound begins a line.
type Bound struct {
	Comment    string `json:"comment"`
	Genesis    []byte `json:"genesis"`
	Nonce      []byte `json:"nonce"`
	SessionKey []byte `json:"session_key"`
}

// BoundTo is the beginning of a line for a binding.
func BoundTo(comment string, b attest.Binding) Bound {
	return Bound{comment, b.Genesis[:], b.Nonce, b.SessionKey[:]}
}

// InputOf is the verifier's for a line that begins and ends so.
func (b Bound) InputOf(method string, c Case, params any) attest.Input {
	return attest.Input{
		Binding:  attest.Binding{Method: method, Genesis: [32]byte(b.Genesis), Nonce: b.Nonce, SessionKey: [32]byte(b.SessionKey)},
		Evidence: []byte(c.Evidence), Now: c.Now, Params: params,
	}
}

// Case ends a line.
type Case struct {
	Now      time.Time      `json:"now"`
	Evidence string         `json:"evidence"`
	Claims   map[string]any `json:"claims,omitempty"`
	Refused  problem.Reason `json:"refused,omitempty"`
}

//lint:ignore U1000 it makes every struct that embeds a Case a Vector
func (c Case) line() Case { return c }

// Record has verify say what the line is to hold, and fails if it says something else than the line's Refused (empty: accepted).
func (c *Case) Record(t testing.TB, verify attest.Verifier, in attest.Input) attest.Result {
	t.Helper()
	res, err := verify(in)
	if c.Refused == "" && err != nil || c.Refused != "" && !problem.Is(err, c.Refused) {
		t.Fatalf("want %q, got %v", c.Refused, err)
	}
	c.Claims = res.Claims
	return res
}

// Vector is a line: a struct of the method that embeds Case.
type Vector interface {
	Input(t testing.TB) attest.Input
	line() Case
}

// path is where the go command runs a method's tests.
func path() string { return filepath.Join("testdata", "vectors.json") }

// Write makes the file anew. Most signatures are randomized, so the stored file is what counts, and it is not compared with a new one.
func Write[V any](t testing.TB, all []V) {
	t.Helper()
	if err := os.WriteFile(path(), Encode(t, all), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Encode is the text of a file with these lines.
func Encode[V any](t testing.TB, all []V) []byte {
	t.Helper()
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(data, '\n')
}

// Stored is the file's text as it is.
func Stored(t testing.TB) []byte {
	t.Helper()
	data, err := os.ReadFile(path())
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Read reads the file, which has so many lines at least.
func Read[V any](t testing.TB, least int) []V {
	t.Helper()
	var all []V
	if err := json.Unmarshal(Stored(t), &all); err != nil || len(all) < least {
		t.Fatal(len(all), err)
	}
	return all
}

// Reasons is why the lines' evidence is refused; empty: it is not.
func Reasons[V Vector](all []V) []problem.Reason {
	out := make([]problem.Reason, len(all))
	for i, v := range all {
		out[i] = v.line().Refused
	}
	return out
}

// Check holds verify to a line, and gives its result.
func Check(t *testing.T, verify attest.Verifier, comment string, v Vector) attest.Result {
	t.Helper()
	c := v.line()
	res, err := verify(v.Input(t))
	if c.Refused != "" && !problem.Is(err, c.Refused) || c.Refused == "" && err != nil {
		t.Errorf("%s: %v", comment, err)
	}
	if !reflect.DeepEqual(res.Claims, c.Claims) {
		t.Errorf("%s: claims %v", comment, res.Claims)
	}
	return res
}

// Fuzz gives the verifier what a stranger could send in place of the first line's evidence, beginning with all lines'. It may never be
// our fault, and may prove only what one of the known lines proves: certificates can be added and left out, and an ECDSA signature has
// two forms, so that other bytes may prove the same.
func Fuzz[V Vector](f *testing.F, verify attest.Verifier, all, known []V) {
	in := all[0].Input(f)
	proves := Proves(known)
	for _, v := range all {
		f.Add([]byte(v.line().Evidence))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		in := in
		in.Evidence = data
		proves.Hold(t, verify, in)
	})
}

// Claims are sets of claims, as JSON.
type Claims map[string]bool

// Proves are the claims of the lines whose evidence is good.
func Proves[V Vector](all []V) Claims {
	known := Claims{}
	for _, v := range all {
		if c := v.line(); c.Refused == "" {
			known[text(c.Claims)] = true
		}
	}
	return known
}

// Hold has the verifier prove nothing but the claims, and fail for no fault of ours.
func (known Claims) Hold(t *testing.T, verify attest.Verifier, in attest.Input) {
	t.Helper()
	res, err := verify(in)
	switch {
	case err != nil && problem.KindOf(err) == problem.Internal:
		t.Fatalf("a stranger caused an internal error: %v", err)
	case err == nil && !known[text(res.Claims)]:
		t.Fatalf("%q proves %v", in.Evidence, res.Claims)
	}
}

func text(claims map[string]any) string {
	data, _ := json.Marshal(claims) // a map's keys are sorted; what can't be encoded is no claim that is known
	return string(data)
}
