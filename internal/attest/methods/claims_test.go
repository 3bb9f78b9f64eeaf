package methods_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/attest/platform/platformtest"
	"github.com/bailment/bailment/internal/authority"
)

// What bundles are told of a method's claims is what its verifier gives, whatever shape the token has.
func TestClaimsAreThoseOfTheTable(t *testing.T) {
	checked := map[string]bool{jointoken.Name: true} // its own tests say what it gives
	for _, m := range platformtest.Methods() {
		row, _ := authority.FindMethod(m.Name)
		seen := map[string]bool{}
		for _, s := range platformtest.Shapes(t, m.Name) {
			f := platformtest.New(t, m, s, platformtest.Bindings(m.Name)[0], jose.ES256, now, platformtest.Binding())
			result, err := m.Verify(f.Input(f.With(nil)))
			if err != nil {
				t.Fatalf("%s, %s: %v", m.Name, s.Name, err)
			}
			if got := slices.Sorted(maps.Keys(result.Claims)); !slices.Equal(got, row.Claims()) {
				t.Errorf("%s, %s: the verifier gives\n%q, the table has\n%q", m.Name, s.Name, got, row.Claims())
			}
			for name, value := range result.Claims {
				if shape, ok := row.Shape(name); ok {
					text, isText := value.(string)
					if !isText || !shape.Fits(text) {
						t.Errorf("%s, %s: %s is %v, and should be %s", m.Name, s.Name, name, value, shape.Is)
					}
					seen[name] = seen[name] || text != ""
				}
			}
		}
		for _, name := range row.Claims() {
			if shape, ok := row.Shape(name); ok && !seen[name] {
				t.Errorf("%s: no token here shows that %s is %s", m.Name, name, shape.Is)
			}
		}
		checked[m.Name] = true
	}
	for _, m := range methods.All() {
		if row, _ := authority.FindMethod(m.Name); row.Claims() != nil && !checked[m.Name] {
			t.Errorf("the claims of %s are listed and not checked", m.Name)
		}
	}
}

// What tells an issuer's customers apart are claims of its method.
func TestTenantsAreClaims(t *testing.T) {
	for issuer, method := range map[string]string{
		"https://token.actions.githubusercontent.com": "github", "https://gitlab.com": "gitlab", "https://agent.buildkite.com": "buildkite", "https://accounts.google.com": "gcp",
	} {
		s, ok := authority.SharedIssuer(issuer)
		row, _ := authority.FindMethod(method)
		for _, name := range slices.Concat(s.IDs, s.Names) {
			if !slices.Contains(row.Claims(), name) {
				t.Errorf("%s has no claim %q", method, name)
			}
		}
		if !ok || len(s.IDs) == 0 {
			t.Errorf("%s is not known", issuer)
		}
	}
	if _, ok := authority.SharedIssuer("https://gitlab.example.com"); ok {
		t.Error("a server of one's own has no strangers")
	}
}
