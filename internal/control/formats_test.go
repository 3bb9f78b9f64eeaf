package control_test

import (
	"context"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/ledger"
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
