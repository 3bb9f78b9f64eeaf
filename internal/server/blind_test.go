package server_test

import (
	"log/slog"
	"net/http"
	"strings"
	"testing"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/server/servertest"
)

// Who may write a secret can't make the operators blind by it: a value that is a piece of what the server says all the time takes
// neither the metrics away nor more of a line of the log than itself.
func TestValueThatIsOurOwnText(t *testing.T) {
	var log lockedBuffer
	h := servertest.Start(t, servertest.Options{
		Name:   "an-environment-with-a-long-name",
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	alice := h.Login("alice")
	for _, value := range []string{
		"bailment_invariant_violations_total", "# HELP bailment_ledger_entries_total ", `bailment_ready{environment="an-environment-with-a-long-name"} 1`,
		"an-environment-with-a-long-name", "\ninvariant\nsilent\ndetail\n", "an invariant was violated", "/node/join-token/a-machine-with-a-name",
	} {
		if _, err := alice.Secret.Put(t.Context(), &pb.PutRequest{Secret: "app/password", Value: []byte(value)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, metrics := get(t, http.DefaultClient, h.OpsURL()+"/metrics"); !strings.Contains(metrics, `bailment_invariant_violations_total{invariant="silent"}`) || !strings.Contains(metrics, `bailment_ledger_size{environment="an-environment-with-a-long-name"}`) {
		t.Errorf("the metrics are gone: %.200q", metrics)
	}
	// A machine's name is in entries, and that is reported.
	h.Node("a-machine-with-a-name")
	if _, found, err := h.Env().Check(t.Context()); err != nil || len(found) == 0 {
		t.Fatalf("found %v, %v", found, err)
	}
	if text := log.String(); !strings.Contains(text, "invariant=silent") {
		t.Errorf("the log does not say which invariant: %s", text)
	}
}
