// Package holders is the one visible table of root holders. A new kind is a package beside
// keyring/file, with its vectors and README, and one row here. What is not in the table is refused.
//
// It guarantees nothing of its own: see package keyring.
package holders

import (
	"context"
	"strings"

	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
)

// Kind is a way to hold a root key.
type Kind struct {
	Name            string
	DevelopmentOnly bool
	Location        string // what a location is for this kind, for help and reference
	// Create makes a new root key at the location; it fails if there is one.
	Create func(ctx context.Context, location string, src *seal.Source) (keyring.Holder, error)
	// Open finds the root key at the location; it never makes one.
	Open func(ctx context.Context, location string) (keyring.Holder, error)
}

// Kinds is the table.
func Kinds() []Kind {
	return []Kind{
		{
			Name: file.Kind, DevelopmentOnly: true,
			Location: "path of a file that only the server's user can read (mode 0600)",
			Create: func(_ context.Context, path string, src *seal.Source) (keyring.Holder, error) {
				h, err := file.Create(path, src)
				if err != nil {
					return nil, err
				}
				return h, nil
			},
			Open: func(_ context.Context, path string) (keyring.Holder, error) {
				h, err := file.Open(path)
				if err != nil {
					return nil, err
				}
				return h, nil
			},
		},
	}
}

// Lookup finds a kind by its name.
func Lookup(name string) (Kind, error) {
	var names []string
	for _, k := range Kinds() {
		if k.Name == name {
			return k, nil
		}
		names = append(names, k.Name)
	}
	return Kind{}, problem.New(problem.ReasonInvalid, "there is no root holder of kind %.40q", name).
		WithFix("use one of: %s", strings.Join(names, ", "))
}
