package cli

import (
	"slices"
	"testing"

	"github.com/bailment/bailment/internal/state"
)

func TestNear(t *testing.T) {
	nodes := []string{"node:/node/join-token/this-machine", "node:/node/join-token/web-1", "node:/node/join-token/web-2", "node:/node/x509/this-machine"}
	for _, c := range []struct {
		scope string
		names []string
		want  []string
	}{
		{"node:/node/join-token/this-machin", nodes, nodes[:1]},
		{"node:/node/join-token/web1", nodes, nodes[1:3]},
		{"node:/node/join-tokn/*", nodes, []string{"node:/node/join-token/*"}},
		{"node:/node/other/very-far-away", nodes, nil},
		{"secret:db/passwrd", []string{"secret:db/password", "secret:db/password", "secret:tls/key"}, []string{"secret:db/password"}},
		{"issuer:join-token:zzz", []string{"issuer:join-token:0123456789abcdef"}, nil},
		{"secret:x", nil, nil},
	} {
		scope, err := state.ParseScope(c.scope)
		if err != nil {
			t.Fatal(err)
		}
		k := known{scope: scope, others: slices.Clone(c.names)}
		if got := k.near(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.scope, got, c.want)
		}
	}
}

// What is in a scope is what the server would say is in it.
func TestKnown(t *testing.T) {
	for text, want := range map[string]int{
		"identity:/workload/a": 1, "identity:/workload/*": 2, "identity:/workload/c": 0, "node:/node/n/*": 1, "identity:/node/n/x": 1, "identity:/*": 3,
	} {
		scope, err := state.ParseScope(text)
		if err != nil {
			t.Fatal(err)
		}
		k := known{scope: scope, counts: true}
		k.add("/workload/a", state.Subject{Identity: "/workload/a"})
		k.add("/workload/b", state.Subject{Identity: "/workload/b"})
		k.add("/node/n/x", state.Subject{Identity: "/node/n/x", Node: "/node/n/x"})
		if k.covered != want || k.covered+len(k.others) != 3 {
			t.Errorf("%s: %d, want %d; beside it %q", text, k.covered, want, k.others)
		}
	}
}
