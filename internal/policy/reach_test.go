package policy

import (
	"testing"

	"github.com/bailment/bailment/internal/identity"
)

func TestRuleWithin(t *testing.T) {
	for path, cases := range map[string]map[string]string{
		"/workload/a":                 {"/*": "/workload/a", "/workload/*": "/workload/a", "/workload/a": "/workload/a", "/workload/b": "", "/workload/a/*": "", "/node/*": ""},
		"/node/join-token/{claims.n}": {"/*": "/node/join-token/*", "/node/join-token/*": "/node/join-token/*", "/node/join-token/x": "/node/join-token/x", "/node/join-token/x/*": "", "/node/x509/*": "", "/node/join-token": ""},
		"/ci/github/{claims.o}/7/x":   {"/*": "/ci/github/*", "/ci/github/1/*": "/ci/github/1/7/x", "/ci/github/1/8/*": "", "/ci/github/1/7/x": "/ci/github/1/7/x", "/ci/github/1/7": ""},
	} {
		template, err := parseTemplate(path)
		if err != nil {
			t.Fatal(err)
		}
		for pattern, want := range cases {
			p, err := identity.ParseIDPattern(pattern)
			if err != nil {
				t.Fatal(err)
			}
			got, ok := IdentityRule{path: template}.Within(p)
			if ok != (want != "") || ok && got.String() != want {
				t.Errorf("%s within %s is %q (%v), not %q", path, pattern, got, ok, want)
			}
			if got, ok := (IdentityRule{path: template}).Within(identity.Pattern{}); ok {
				t.Errorf("within nothing is %q", got)
			}
		}
	}
}

// What unlocks is there to be asked for, in the order of the file.
func TestUnlocks(t *testing.T) {
	files := exampleFiles(t)
	files["secrets/u.yaml"] = []byte("apiVersion: bailment/v1\nkind: Secret\nmetadata: {name: ci/*}\nspec:\n  type: opaque\n  unlocks:\n    - system: prod-db\n    - deploy: /workload/*\n    - identity: /human/alice\n")
	p, err := compileFiles(files)
	if err != nil {
		t.Fatal(err)
	}
	s, ok := p.Secret("ci/token")
	if !ok || len(s.Unlocks) != 3 || s.Unlocks[0].System != "prod-db" || s.Unlocks[1].Deploy.String() != "/workload/*" || s.Unlocks[2].Identity != "/human/alice" || s.Unlocks[2].Source.Line != 9 {
		t.Errorf("unlocks %+v", s.Unlocks)
	}
}
