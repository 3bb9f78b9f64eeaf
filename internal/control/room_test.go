package control_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
)

const environment = "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  limits: {versionsPerSecret: %d}\n"

// A bundle that lowers the limit of versions by many does not make a secret unwritable: what one entry can't name goes with the next.
func TestVersionsMakeRoomInParts(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	bring(t, w, alice, "environment.yaml", fmt.Sprintf(environment, controltest.EnvName, 10000))
	put := func() int {
		t.Helper()
		_, err := w.Env.Put(context.Background(), alice.Caller, control.PutRequest{Secret: "node/key", Value: seal.NewSecret([]byte("v"))})
		if err != nil {
			t.Fatal(err)
		}
		sec, _ := w.Env.State().Secrets.Get("node/key")
		return len(sec.Versions)
	}
	for range 1200 {
		put()
	}
	bring(t, w, alice, "environment.yaml", fmt.Sprintf(environment, controltest.EnvName, 10))
	for i, want := range []int{701, 202, 10, 10} {
		if n := put(); n != want {
			t.Errorf("after write %d there are %d versions, want %d", i+1, n, want)
		}
	}
	soundLedger(t, w)
	// All of a part's numbers fit, however large they are.
	ev := &state.SecretWritten{Secret: strings.Repeat("x", 255), Version: 1, State: state.Current}
	for i := range uint64(500) {
		ev.Destroys = append(ev.Destroys, 1<<63+i)
	}
	if _, err := state.Encode(&state.Entry{Time: 1, Event: ev}); err != nil {
		t.Error(err)
	}
}
