package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"testing"
)

// The tokens of the example are what the verifiers made of tokens in the forms that the services document: each is one of the methods' vectors,
// but for the authority's name.
func TestExampleTokensAreRecorded(t *testing.T) {
	b, err := Load(exampleNamed(t, "ci"))
	if err != nil {
		t.Fatal(err)
	}
	recorded := map[string]map[string]bool{}
	for method, dir := range map[string]string{"github": "ci/github", "gitlab": "ci/gitlab", "buildkite": "ci/buildkite", "k8s-job": "k8s/k8s-job"} {
		data, err := os.ReadFile("../attest/" + dir + "/testdata/vectors.json")
		if err != nil {
			t.Fatal(err)
		}
		var vectors []struct {
			Claims map[string]any `json:"claims"`
		}
		if err := json.Unmarshal(data, &vectors); err != nil {
			t.Fatal(err)
		}
		recorded[method] = map[string]bool{}
		for _, v := range vectors {
			delete(v.Claims, "authority")
			recorded[method][fmt.Sprint(v.Claims)] = true
		}
	}
	n, forms := 0, map[any]bool{}
	for _, d := range b.docs {
		s, ok := d.spec.(*testSpec)
		if !ok {
			continue
		}
		for _, x := range s.Tokens {
			claims := maps.Clone(x.Claims.value)
			forms[claims["subject_form"]] = true
			delete(claims, "authority")
			if n++; !recorded[x.Method.value][fmt.Sprint(claims)] {
				t.Errorf("the token %s is none of the vectors of %s", x.Name.value, x.Method.value)
			}
		}
	}
	if n < 8 || !forms["names"] || !forms["ids"] {
		t.Errorf("%d tokens, subjects %v", n, forms)
	}
}
