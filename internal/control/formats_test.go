package control_test

import (
	"context"
	"maps"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// later writes an entry of a release that is not there yet.
func later(t *testing.T, w *controltest.World, body string) {
	t.Helper()
	_, _, err := ledger.Commit(context.Background(), w.Env.Ledger(), func(_ *state.State, at ledger.At) (ledger.Draft, struct{}, error) {
		now := state.At(at.Time)
		stands := &state.Entry{Time: now, Event: &state.DenialsSummed{}} // what the newer release makes of it
		return ledger.Draft{Records: []ledger.Record{{Body: []byte(strings.Replace(body, "TIME", now.String(), 1)), Event: stands}}}, struct{}{}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A server that finds what a newer release wrote doesn't start, and says what to do: not one whose entries it doesn't know, nor one that was
// raised to a protocol under which the entries that it knows mean something else.
func TestNewerFormatsAreRefused(t *testing.T) {
	for name, c := range map[string]struct{ body, says string }{
		"a newer entry":         {`{"type":"secret.shared","v":1,"time":"TIME","body":{}}`, `entry type "secret.shared`},
		"a newer version of it": {`{"type":"rollout.moved","v":9,"time":"TIME","body":{}}`, `entry type "rollout.moved`},
		"a newer protocol":      {`{"type":"protocol.raised","v":1,"time":"TIME","body":{"version":99}}`, "of protocol 99"},
	} {
		t.Run(name, func(t *testing.T) {
			w := controltest.New(t, controltest.Options{})
			later(t, w, c.body)
			w.Close()
			w.Env = nil
			env, err := control.Open(context.Background(), w.Config)
			if err == nil {
				_ = env.Close(context.Background())
				t.Fatal("it was opened")
			}
			p := problem.As(err)
			if p.Reason != problem.ReasonUnknownVersion || !strings.Contains(err.Error(), "entry ") || !strings.Contains(err.Error(), c.says) || !strings.Contains(p.Fix, "newer") {
				t.Errorf("it says %v; %s", err, p.Fix)
			}
			t.Logf("%v\n%s", err, p.Fix)
		})
	}
}

// A bundle that a newer release brought into force, under the entries that there are, is not enforced without what this one doesn't know: a
// server doesn't start with it, and says which file, line and field.
func TestNewerBundlesAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(policy.Files)
		says []string
	}{
		"a field": {
			func(f policy.Files) {
				f["environment.yaml"] = []byte(strings.Replace(string(f["environment.yaml"]), "\nspec:\n", "\nspec:\n  quantum: {safe: true}\n", 1))
			}, []string{"environment.yaml:", `unknown field "quantum"`},
		},
		"a field of a grant": {
			func(f policy.Files) {
				f["grants/newer.yaml"] = []byte("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: newer}\nspec:\n  effect: deny\n  actions: [secret.read]\n  identities: [/human/*]\n  secrets: ['*']\n  unless: x\n")
			}, []string{"grants/newer.yaml:9:3", `unknown field "unless"`},
		},
		"a kind": {
			func(f policy.Files) {
				f["engines/pg.yaml"] = []byte("apiVersion: bailment/v1\nkind: Engine\nmetadata: {name: pg}\nspec: {}\n")
			}, []string{"engines/pg.yaml: has no effect yet: this version has no Engine"},
		},
		"a format": {
			func(f policy.Files) {
				f["environment.yaml"] = []byte(strings.Replace(string(f["environment.yaml"]), "bailment/v1", "bailment/v2", 1))
			}, []string{"environment.yaml:1", "bailment/v1"},
		},
		"an action": {
			func(f policy.Files) {
				f["grants/newer.yaml"] = []byte("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: newer}\nspec:\n  effect: deny\n  actions: [secret.sign]\n  identities: [/human/*]\n  secrets: ['*']\n")
			}, []string{"grants/newer.yaml:6", "secret.sign"},
		},
		"a function in a condition": {
			func(f policy.Files) {
				f["grants/newer.yaml"] = []byte("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: newer}\nspec:\n  effect: deny\n  actions: [secret.read]\n  identities: [/human/*]\n  secrets: ['*']\n  when: moon.full()\n")
			}, []string{"grants/newer.yaml:9", "moon"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := controltest.New(t, controltest.Options{})
			files := maps.Clone(w.Files)
			c.edit(files)
			w.ForceForeign(files)
			w.Close()
			w.Env = nil
			env, err := control.Open(context.Background(), w.Config)
			if err == nil {
				_ = env.Close(context.Background())
				t.Fatal("it was opened")
			}
			if p := problem.As(err); p.Reason != problem.ReasonUnknownVersion || !strings.Contains(p.WayOut(), "newer") {
				t.Errorf("it says %v; %s", err, p.WayOut())
			}
			for _, says := range c.says {
				if !strings.Contains(err.Error(), says) {
					t.Errorf("it does not say %q: %v", says, err)
				}
			}
		})
	}
}
