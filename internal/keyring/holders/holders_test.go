package holders

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/keyring/holdertest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
)

// Every row passes the contract's suite through the table.
func TestKinds(t *testing.T) {
	src, err := seal.NewSource(nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, k := range Kinds() {
		if seen[k.Name] || k.Name == "" || k.Location == "" {
			t.Errorf("row %q is incomplete or twice there", k.Name)
		}
		seen[k.Name] = true
		t.Run(k.Name, func(t *testing.T) {
			holdertest.Run(t, func() (keyring.Holder, func() keyring.Holder) {
				where := filepath.Join(t.TempDir(), "root")
				h, err := k.Create(t.Context(), where, src)
				if err != nil {
					t.Fatal(err)
				}
				if d := h.Descriptor(); d.Kind != k.Name || d.DevelopmentOnly != k.DevelopmentOnly {
					t.Errorf("the row and the descriptor disagree: %+v", d)
				}
				if _, err := k.Create(t.Context(), where, src); err == nil {
					t.Error("created twice")
				}
				return h, func() keyring.Holder {
					h, err := k.Open(t.Context(), where)
					if err != nil {
						t.Fatal(err)
					}
					return h
				}
			})
			if h, err := k.Open(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil || h != nil {
				t.Error("opened what isn't there")
			}
		})
	}
}

func TestLookup(t *testing.T) {
	if k, err := Lookup("file"); err != nil || !k.DevelopmentOnly {
		t.Error(k, err)
	}
	_, err := Lookup("files")
	if !problem.Is(err, problem.ReasonInvalid) || !strings.Contains(problem.As(err).WayOut(), "file") {
		t.Error(err)
	}
}
