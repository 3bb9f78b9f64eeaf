package server_test

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/server/servertest"
)

// Approvers are told of a change within a second of it, by webhook and by mail, and of what comes of it; that nobody answers at one of the
// targets delays nothing.
func TestApproversAreTold(t *testing.T) {
	bodies := make(chan []byte, 16)
	hook := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		bodies <- b
	}))
	defer hook.Close()
	release := make(chan struct{})
	dead := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer dead.Close()
	defer close(release)
	dir := t.TempDir()
	command := filepath.Join(dir, "sendmail")
	if err := os.WriteFile(command, []byte("#!/bin/sh\ncat > \"$1/$$.part\" && mv \"$1/$$.part\" \"$1/$$.mail\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	environment := func(name string) []byte {
		roots := func(s *httptest.Server) string {
			return fmt.Sprintf("%q", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
		}
		return fmt.Appendf(nil, `apiVersion: bailment/v1
kind: Environment
metadata: {name: %s}
spec:
  class: development
  approvals: {required: 0}
  notify:
    - {name: dead, on: [change.proposed], webhook: {url: "%s/", roots: %s}}
    - {name: hook, on: [change.proposed, change.approved, change.in-force], webhook: {url: "%s/x", roots: %s}}
    - {name: mail, on: [change.proposed], mail: {to: [bob@example.org]}}
`, name, dead.URL, roots(dead), hook.URL, roots(hook))
	}
	h := servertest.Start(t, servertest.Options{
		Files: with(policy.Files{"environment.yaml": environment(servertest.Name)}),
		Configure: func(c *config.Server) {
			c.Notify.Mail, c.Notify.Allow = []string{command, dir}, []string{"127.0.0.0/8"}
		},
	})
	began := time.Now()
	bring(t, h, policy.Files{"environment.yaml": append(environment(servertest.Name), "    - {name: later, on: [revocation], mail: {to: [bob@example.org]}}\n"...)})
	for _, want := range []policy.Topic{policy.TopicProposed, policy.TopicApproved, policy.TopicInForce} {
		var m struct {
			Event       policy.Topic
			Environment string
			Genesis     string
			Change      uint64
			Reason      string
			Review      string
		}
		select {
		case b := <-bodies:
			if err := json.Unmarshal(b, &m); err != nil || m.Event != want || m.Environment != h.Name || m.Genesis != h.Env().Genesis().String() || m.Reason != "a test" || m.Review != fmt.Sprintf("bailment change show %d", m.Change) {
				t.Errorf("%v %s", err, b)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("nobody was told of %s", want)
		}
	}
	if took := time.Since(began); took > 5*time.Second { // a second, on a machine with nothing else to do
		t.Errorf("it took %s", took)
	}
	var mails []string
	for deadline := time.Now().Add(10 * time.Second); len(mails) == 0 && time.Now().Before(deadline); {
		mails, _ = filepath.Glob(filepath.Join(dir, "*.mail"))
	}
	if len(mails) != 1 {
		t.Fatalf("%d mails", len(mails))
	}
	if b, err := os.ReadFile(mails[0]); err != nil || !bytes.Contains(b, []byte("To: bob@example.org\n")) || !bytes.Contains(b, []byte("Subject: ["+h.Name+"] change.proposed: change ")) {
		t.Errorf("%v %s", err, b)
	}
	res, err := http.Get(h.OpsURL() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if want := fmt.Sprintf(`bailment_notifications_total{environment=%q,outcome="told",target="hook"} `, h.Name); err != nil || !strings.Contains(string(text), want) {
		t.Errorf("%v: %s is not in the metrics", err, want)
	}
}
