package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/agent"
	"github.com/bailment/bailment/internal/attest/tpm/ima"
	"github.com/bailment/bailment/internal/attest/tpm/tpmtest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/test/site"
)

// tpmFleet lets machines with one of these TPMs in, and asks that their agents be measured.
func tpmFleet(t *testing.T, machines ...*tpmtest.TPM) *fleet {
	t.Helper()
	var keys []string
	for _, m := range machines {
		for _, k := range m.EndorsementKeys() {
			keys = append(keys, "'sha256:"+hex.EncodeToString(k[:])+"'")
		}
	}
	return newFleet(t, "    require: measured\n", policy.Files{
		"authorities/rack.yaml": []byte("apiVersion: bailment/v1\nkind: Authority\nmetadata: {name: rack}\nspec:\n  method: tpm\n  pcrs: [7, 10]\n  endorsementKeys: [" + strings.Join(keys, ", ") + "]\n"),
		"identities/tpm.yaml":   []byte("apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: machines}\nspec: {method: tpm, authority: rack, path: '/node/tpm/{claims.ek}'}\n"),
	})
}

// measured is a machine with a TPM, whose kernel has measured these programs.
func (f *fleet) measured(name string, machine *tpmtest.TPM, programs ...string) *host {
	f.T.Helper()
	h := &host{f: f, name: name, home: filepath.Join(f.dir, name), logs: &site.Log{}}
	f.Check(os.MkdirAll(h.home, 0o755))
	boot, err := f.Bootstrap()
	f.Check(err)
	var list []byte
	for _, path := range append([]string{"/proc/self/exe"}, programs...) { // something else comes first, as it does on machines
		text, err := os.ReadFile(path)
		f.Check(err)
		data := tpmtest.IMAData(sha256.Sum256(text), path)
		list = append(list, tpmtest.IMAEntry(ima.PCR, data, false)...)
		machine.Extend(ima.PCR, sha256.Sum256(data))
	}
	f.Check(os.WriteFile(filepath.Join(h.home, "ima"), list, 0o600))
	f.Check(os.WriteFile(filepath.Join(h.home, "agent.yaml"), fmt.Appendf(nil,
		"bootstrap: %q\ndata: %[2]s/agent\nsocket: %[3]s\nattest:\n  method: tpm\n  values: {device: %[4]s, ima: %[2]s/ima}\n",
		boot, h.home, h.socket(), machine.Socket), 0o600))
	return h
}

// An agent that the machine's TPM has measured, by the kernel's IMA, runs where that is asked; one of the same release that was not
// measured does not.
func TestAgentIsMeasured(t *testing.T) {
	t.Parallel()
	machines := []*tpmtest.TPM{tpmtest.New(t, 0), tpmtest.New(t, 1)}
	f := tpmFleet(t, machines...)
	dir := f.installed("1.4.0")
	binary := filepath.Join(dir, "bailment")
	good, other := f.measured("good", machines[0], binary), f.measured("other", machines[1])
	f.install(dir, good.home, wholeRelease...)
	f.install(dir, other.home, wholeRelease...)
	for _, h := range []*host{good, other} {
		h.start()
	}
	const begin = 30 * time.Second
	good.reaches(agent.Ready, "", begin)
	other.reaches(agent.Outdated, problem.ReasonAgentClaimed, begin)
	if list := f.must("alice", "node", "list"); !strings.Contains(list, "1.4.0 signed") || !strings.Contains(list, "measured") {
		t.Errorf("%s", list)
	}
	healthy(t, f.Site.Site)
}
