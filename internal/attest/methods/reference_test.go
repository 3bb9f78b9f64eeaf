package methods_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/methods"
)

var update = flag.Bool("update", false, "write docs/reference/attestation.md")

const reference = "../../../docs/reference/attestation.md"

// The reference says of every method what its row says.
func TestReference(t *testing.T) {
	var b strings.Builder
	b.WriteString(`# Attestation methods

What each method proves, and what it does not, from the table that server and agent work by. The weakest come first; how each can be stolen or replayed stands on its page.
Assurance is what grants and rules ask for; no evidence raises it. [CI services](ci.md) are compared on a page of their own, and [processes](workload-claims.md) are
known by their agent.

| method | assurance | renewal | proves | does not prove |
|---|---|---|---|---|
`)
	how := map[attest.RenewalKind]string{attest.RenewByEvidence: "fresh evidence", attest.RenewByPossession: "possession, with a counter"}
	for _, m := range methods.All() {
		pages, err := filepath.Glob("../*/README.md")
		if err != nil {
			t.Fatal(err)
		}
		deep, err := filepath.Glob("../*/*/README.md")
		if err != nil {
			t.Fatal(err)
		}
		page := ""
		for _, p := range append(pages, deep...) {
			text, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(string(text), "# Attestation method `"+m.Name+"`\n") {
				page = "../../internal/attest/" + strings.TrimPrefix(filepath.ToSlash(p), "../")
			}
		}
		if page == "" || how[m.Renewal.Kind] == "" {
			t.Errorf("%s has no page, or renews by %q", m.Name, m.Renewal.Kind)
		}
		fmt.Fprintf(&b, "| [`%s`](%s) | `%s` | %s | %s | %s |\n", m.Name, page, m.Assurance, how[m.Renewal.Kind], m.Proves, m.DoesNotProve)
	}
	if *update {
		if err := os.WriteFile(reference, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(reference)
	if err != nil || string(have) != b.String() {
		t.Errorf("docs/reference/attestation.md is not what the table says (%v): go test ./internal/attest/methods -run Reference -args -update", err)
	}
}
