package e2e

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/attest/tpm/tpmtest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/test/site"
	"github.com/bailment/bailment/test/site/sitetest"
)

// machineRules let machines in by a token, and by a TPM whose manufacturer is trusted.
func machineRules(s *tpmtest.TPM) policy.Files {
	var roots strings.Builder
	for line := range strings.Lines(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Issuing.Raw}))) {
		roots.WriteString("    " + line)
	}
	return policy.Files{
		"authorities/maker.yaml": []byte("apiVersion: bailment/v1\nkind: Authority\nmetadata: {name: maker}\nspec:\n  method: tpm\n  pem: |\n" + roots.String()),
		"identities/all.yaml": []byte("apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: by-token}\nspec: {method: join-token, path: '/node/join-token/{claims.name}'}\n" +
			"---\napiVersion: bailment/v1\nkind: Identity\nmetadata: {name: by-tpm}\nspec: {method: tpm, authority: maker, path: '/node/tpm/{claims.ek}'}\n"),
		"grants/all.yaml": []byte("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: list}\nspec: {actions: [secret.list], identities: [/human/alice], secrets: ['*']}\n"),
	}
}

// BenchmarkEnrol is the time from an agent's start, as a process that knows nothing, until it has its first SVID.
func BenchmarkEnrol(b *testing.B) {
	s := tpmtest.New(b, 0)
	x := newSite(b, site.Options{Extra: machineRules(s)})
	x.Start()
	x.Connect()
	boot, err := x.Bootstrap()
	if err != nil {
		b.Fatal(err)
	}
	admin := x.Dial(x.Login())
	n := 0
	for _, c := range []struct {
		name   string
		attest func(dir string) string
	}{
		{"join-token", func(dir string) string {
			n++
			token := filepath.Join(dir, "token")
			if err := os.WriteFile(token, []byte(x.Token(admin, fmt.Sprintf("m%d", n)).Reveal()), 0o600); err != nil {
				b.Fatal(err)
			}
			return "method: join-token\n  files: {token: " + token + "}"
		}},
		{"tpm/key in software", func(string) string { return "method: tpm\n  values: {device: " + s.Socket + "}" }},
		{"tpm/key in the TPM", func(string) string { return "method: tpm\n  key: tpm\n  values: {device: " + s.Socket + "}" }},
	} {
		b.Run(c.name, func(b *testing.B) {
			var cpu time.Duration
			for b.Loop() {
				b.StopTimer()
				dir := b.TempDir()
				text := fmt.Sprintf("bootstrap: '%s'\ndata: %s/state\nsocket: %s/a.sock\nattest:\n  %s\n", boot, dir, dir, c.attest(dir))
				if err := os.WriteFile(filepath.Join(dir, "agent.yaml"), []byte(text), 0o600); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				cpu += enrolled(b, x, dir)
			}
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/op")
			b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N), "agent-cpu-ms/op")
		})
	}
}

// enrolled starts an agent, waits until it has an SVID, and stops it while no time is taken. It gives the CPU time that the agent took.
func enrolled(b *testing.B, x *sitetest.Site, dir string) (cpu time.Duration) {
	b.Helper()
	var log bytes.Buffer
	cmd := exec.Command(x.Bin, "agent", "--config", filepath.Join(dir, "agent.yaml"))
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		b.StopTimer()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		b.StartTimer()
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	c := localapi.Client{Socket: filepath.Join(dir, "a.sock")}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-tick.C {
		if status, err := c.Status(b.Context()); err == nil && status.Identity != "" {
			return 0
		}
	}
	b.Fatalf("no SVID within a minute\n%s", &log)
	return 0
}

// BenchmarkColdStart is the time from the start of the server of an environment that was just founded until it answers.
func BenchmarkColdStart(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		x := newSite(b, site.Options{})
		b.StartTimer()
		x.Start()
		b.StopTimer()
		x.Stop()
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/op")
}
