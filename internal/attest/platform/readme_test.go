package platform_test

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/examples"
	"github.com/bailment/bailment/internal/attest/platform/platformtest"
	"github.com/bailment/bailment/internal/policy"
)

// documents are the bundle's documents in a README: in its YAML blocks, below a comment that names the file each.
func documents(t *testing.T, readme string) policy.Files {
	t.Helper()
	out := policy.Files{}
	name, inside := "", false
	for line := range strings.Lines(readme) {
		switch trimmed := strings.TrimSpace(line); {
		case strings.HasPrefix(trimmed, "```"):
			inside, name = trimmed == "```yaml", ""
		case !inside:
		case strings.HasPrefix(line, "# authorities/"), strings.HasPrefix(line, "# identities/"):
			name = strings.TrimPrefix(trimmed, "# ")
			kind := map[string]string{"authorities": "Authority", "identities": "Identity"}[path.Dir(name)]
			out[name] = []byte("apiVersion: bailment/v1\nkind: " + kind + "\nmetadata:\n  name: " + strings.TrimSuffix(path.Base(name), ".yaml") + "\n")
		case name != "":
			out[name] = append(out[name], line...)
		}
	}
	return out
}

// TestReadmes: the documents that each README shows make a bundle, and its rule fits one of the documented tokens.
func TestReadmes(t *testing.T) {
	for _, m := range platformtest.Methods() {
		t.Run(m.Name, func(t *testing.T) {
			readme, err := os.ReadFile(filepath.Join(dirOf(m.Name), "README.md"))
			if err != nil {
				t.Fatal(err)
			}
			shown := documents(t, string(readme))
			if len(shown) != 2 {
				t.Fatalf("%d documents", len(shown))
			}
			base, err := fs.Sub(examples.FS, "payments")
			if err != nil {
				t.Fatal(err)
			}
			files, err := policy.ReadFiles(base)
			if err != nil {
				t.Fatal(err)
			}
			authority := ""
			for name, text := range shown {
				files[name] = text
				if path.Dir(name) == "authorities" {
					authority = strings.TrimSuffix(path.Base(name), ".yaml")
				}
			}
			bundle, err := policy.Load(files)
			if err != nil {
				t.Fatal(err)
			}
			program, err := policy.Compile(bundle)
			if err != nil {
				t.Fatal(err)
			}
			params, err := m.Params(program.Authorities(m.Name))
			if err != nil {
				t.Fatal(err)
			}
			fits := ""
			for _, s := range platformtest.Shapes(t, m.Name) {
				f := platformtest.New(t, m, s, platformtest.Bindings(m.Name)[0], jose.ES256, now, platformtest.Binding())
				in := f.Good()
				in.Params = params
				res, err := m.Verify(in)
				if err != nil {
					t.Errorf("%s: %v", s.Name, err)
					continue
				}
				claims, err := policy.PrepareClaims(res.Claims)
				if err != nil {
					t.Fatal(err)
				}
				if match, err := program.IdentifyNode(m.Name, authority, claims); err == nil {
					fits = match.Path
				}
			}
			if fits == "" {
				t.Error("the rule fits none of the documented tokens")
			}
		})
	}
}
