package server_test

import (
	"context"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/server/servertest"
)

// The running check for "silent" fires on a planted leak: a value that somebody sends as the name of a secret comes into an error's
// text and into the entry of the denial. The text is withheld, the metric rises, the log names the invariant and not the value.
func TestLeakIsNoticed(t *testing.T) {
	var log lockedBuffer
	h := servertest.Start(t, servertest.Options{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	value := strings.Repeat("0123456789abcdef", 3)
	alice, app := h.Login("alice"), h.App("web-1")
	leak := func() string {
		_, err := app.Secret.Get(t.Context(), &pb.GetRequest{Secret: "app/" + value})
		if err == nil {
			t.Fatal("there is such a secret")
		}
		return err.Error()
	}
	if text := leak(); !strings.Contains(text, value) || silent(t, h) != "0" {
		t.Fatalf("it is no value yet: %s, %s violations", text, silent(t, h))
	}
	if _, err := alice.Secret.Put(t.Context(), &pb.PutRequest{Secret: "app/password", Value: []byte(value)}); err != nil {
		t.Fatal(err)
	}
	if text := leak(); strings.Contains(text, value) || !strings.Contains(text, "withheld") {
		t.Error(text)
	}
	if _, found, err := h.Env().Check(context.Background()); err != nil || len(found) == 0 || found[0].Invariant != "silent" ||
		!strings.Contains(found[0].Detail, "wire") || !strings.Contains(found[0].Detail, "ledger") {
		t.Errorf("found %v, %v", found, err)
	}
	if n := silent(t, h); n == "0" {
		t.Error("the metric did not rise")
	}
	if err := h.Stop(); err != nil {
		t.Fatal(err)
	}
	if text := log.String(); strings.Contains(text, value) || strings.Contains(text, hex.EncodeToString([]byte(value))) || !strings.Contains(text, "invariant=silent") {
		t.Error(text)
	}
}

// Who may write a secret does not blind the metrics by writing their own words as its value: it is counted, and they stay.
func TestMetricsSurviveTheirOwnWords(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	alice := h.Login("alice")
	if n := silent(t, h); n != "0" {
		t.Fatal(n)
	}
	if _, err := alice.Secret.Put(t.Context(), &pb.PutRequest{Secret: "app/password", Value: []byte("bailment_invariant_violations_total{")}); err != nil {
		t.Fatal(err)
	}
	if _, found, err := h.Env().Check(context.Background()); err != nil || len(found) == 0 || found[0].Invariant != "silent" {
		t.Errorf("found %v, %v", found, err)
	}
	if n := silent(t, h); n == "0" {
		t.Error("the metric did not rise")
	}
}

// silent is the metric of the invariant as a scrape shows it.
func silent(t *testing.T, h *servertest.House) string {
	t.Helper()
	res, err := http.Get(h.OpsURL() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), `bailment_invariant_violations_total{invariant="silent"} `)
	n, _, _ := strings.Cut(rest, "\n")
	if !ok {
		t.Fatal("there is no such metric")
	}
	return n
}
