package control_test

import (
	"fmt"
	"testing"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/seal"
)

// recipeCompiles says whether a bundle that generates by this recipe with this length may come into force.
// Length 0 leaves the length out.
func recipeCompiles(t *testing.T, recipe string, length int) (policy.Recipe, error) {
	t.Helper()
	generate := "recipe: " + recipe
	if length != 0 {
		generate += fmt.Sprintf(", length: %d", length)
	}
	b, err := policy.Load(policy.Files{
		"environment.yaml": []byte("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: test.example}\nspec: {class: development}\n"),
		"operators.yaml": []byte("apiVersion: bailment/v1\nkind: Operators\nmetadata: {name: operators}\nspec:\n  operators:\n" +
			"    - name: alice\n      keys: [\"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAID1dQvVasHoWteSHKQCUU24kxROZpxv+HOlfhLx4VOrQ\"]\n      duties: [propose, approve, revoke, admit, keys, audit]\n"),
		"secrets/x.yaml": fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Secret\nmetadata: {name: x}\nspec:\n  type: opaque\n  generate: {%s}\n", generate),
	})
	if err != nil {
		return policy.Recipe{}, err
	}
	p, err := policy.Compile(b)
	if err != nil {
		return policy.Recipe{}, err
	}
	s, ok := p.Secret("x")
	if !ok {
		t.Fatal("the secret is not declared")
	}
	return s.Recipe, nil
}

// The bundle's language and what makes values don't know each other. What the first accepts the second
// must make, with the size that the first computed, and their least lengths are the same.
func TestRecipesAgree(t *testing.T) {
	src, err := seal.NewSource(nil)
	if err != nil {
		t.Fatal(err)
	}
	const most = 512 // the bundle's limit, below seal's
	for _, r := range seal.Recipes() {
		lengths := []int{0}
		if r.Min < r.Max {
			lengths = append(lengths, r.Min, r.Default, most)
			if _, err := recipeCompiles(t, r.Name, r.Min-1); err == nil {
				t.Errorf("%s: the bundle accepts length %d, and nothing can make it", r.Name, r.Min-1)
			}
			if _, err := seal.Generate(r.Name, r.Min-1, src); err == nil {
				t.Errorf("%s: a value of length %d was made", r.Name, r.Min-1)
			}
			if _, err := recipeCompiles(t, r.Name, most+1); err == nil {
				t.Errorf("%s: the bundle accepts length %d", r.Name, most+1)
			}
		} else if _, err := recipeCompiles(t, r.Name, r.Min); err == nil {
			t.Errorf("%s: the bundle accepts a length where there is none to choose", r.Name)
		}
		for _, n := range lengths {
			recipe, err := recipeCompiles(t, r.Name, n)
			if err != nil {
				t.Errorf("%s of length %d: %v", r.Name, n, err)
				continue
			}
			v, err := seal.Generate(recipe.Name, recipe.Length, src)
			if err != nil {
				t.Errorf("%s of length %d: %v", r.Name, n, err)
			} else if got, want := len(v.Expose()), recipe.Size(); got != want {
				t.Errorf("%s of length %d: %d bytes, the bundle computes %d", r.Name, n, got, want)
			}
		}
	}
	if _, err := recipeCompiles(t, "none", 0); err == nil {
		t.Error("the bundle accepts a recipe that nobody has")
	}
}
