package policy

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"maps"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/problem"
)

const (
	recoveryKeyA = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGuw2Cnxw5g3sDTBjGPMWBcYp1MXQbRmVnv4XgDGMnrM"
	recoveryKeyB = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBwiBcxF9wiBbT2I9ADzUUQ/IfPSuTLWzeIsKeWtFrzy"
)

// recoverable is the example with a recovery by one.
func recoverable(t testing.TB) Files {
	t.Helper()
	files := maps.Clone(bare(t))
	files["environment.yaml"] = fmt.Appendf(bytes.Clone(files["environment.yaml"]), "  recovery:\n    required: 1\n    keys:\n      - {person: rita, key: %s}\n", recoveryKeyA)
	return files
}

func operatorsWith(lines string) []byte {
	return []byte("apiVersion: bailment/v1\nkind: Operators\nmetadata: {name: operators}\nspec:\n  operators:\n" + lines)
}

func TestRecoveryCompiles(t *testing.T) {
	r := mustCompile(t, recoverable(t)).Environment().Recovery
	if !r.Prepared() || r.Required != 1 || r.Delay != defaultRecovery || len(r.Of("rita")) != 1 || len(r.Of("sam")) != 0 {
		t.Errorf("%+v", r)
	}
	if mustCompile(t, bare(t)).Environment().Recovery.Prepared() {
		t.Error("one is prepared that nobody wrote")
	}
}

// More operators than a text could name are refused where a recovery is prepared.
func TestRecoveryNamesAll(t *testing.T) {
	files := recoverable(t)
	var many strings.Builder
	many.WriteString("    - {name: alice, keys: [" + recoveryKeyB + "], duties: [propose, approve]}\n")
	for i := range 200 {
		fmt.Fprintf(&many, "    - {name: p%d, keys: [%s], duties: [audit]}\n", i, numberedKey(i))
	}
	files["operators.yaml"] = operatorsWith(many.String())
	if _, err := compileFiles(files); err == nil || !strings.Contains(err.Error(), "its signed text could not name all operators") {
		t.Errorf("%v", err)
	}
	files["environment.yaml"] = bare(t)["environment.yaml"]
	if _, err := compileFiles(files); err != nil {
		t.Errorf("without a recovery: %v", err)
	}
}

func TestRecoveryAdvice(t *testing.T) {
	files := recoverable(t)
	told := "recovery is prepared, and nobody is told"
	if got := strings.Join(adviceOf(t, files), "\n"); !strings.Contains(got, told) {
		t.Errorf("nobody is told, and the advice is %q", got)
	}
	files["environment.yaml"] = append(bytes.Clone(files["environment.yaml"]), "  notify:\n    - {name: all, on: [recovery], mail: {to: [a@example.org]}}\n"...)
	if got := strings.Join(adviceOf(t, files), "\n"); strings.Contains(got, "recovery") {
		t.Errorf("somebody is told, and the advice is %q", got)
	}
}

// What a recovery brings into force are the same files, but one.
func TestRecovered(t *testing.T) {
	files := recoverable(t)
	base, err := BuildManifest(files, Header{Environment: "payments-dev", Genesis: Digest{1}, Version: 4, Previous: Digest{2}})
	if err != nil {
		t.Fatal(err)
	}
	operators := operatorsWith("    - {name: dora, keys: [" + recoveryKeyB + "], duties: [propose, approve]}\n")
	m, after, err := Recovered(base, Digest{1}, files, operators)
	if err != nil {
		t.Fatal(err)
	}
	if h := m.Header(); h.Version != 5 || h.Previous != base.Digest() || h.Genesis != (Digest{1}) {
		t.Errorf("%+v", h)
	}
	if diff := ChangedFiles(files, after); len(diff) != 1 || diff[0] != "operators.yaml" {
		t.Errorf("it changes %q", diff)
	}
	digest, err := OnlyOperators(base, m)
	if err != nil || digest != OperatorsDigest(operators) {
		t.Errorf("%s %v", digest, err)
	}
	// The example grants something to alice: that is to nobody now, and no finding; in a bundle that is proposed it is one.
	p, err := CompileRecovered(after)
	if err != nil {
		t.Fatal(err)
	}
	if p.Orphans() == 0 || strings.Join(p.Persons(), "\n") != "dora propose,approve "+p.Operators()[0].Keys[0].Fingerprint {
		t.Errorf("%d orphans, %q", p.Orphans(), p.Persons())
	}
	if _, err := compileFiles(after); !problem.Is(err, problem.ReasonBundleInvalid) {
		t.Errorf("proposed as it is: %v", err)
	}
	if was := mustCompile(t, files).Sources(); was.Others != p.Sources().Others || was.Operators == p.Sources().Operators || p.Sources().Operators != digest {
		t.Errorf("%+v, and before %+v", p.Sources(), was)
	}
	for what, list := range map[string][]byte{"the same": files["operators.yaml"], "too large": bytes.Repeat([]byte("#"), MaxFileBytes+1)} {
		if _, _, err := Recovered(base, Digest{1}, files, list); err == nil {
			t.Errorf("%s: it was made", what)
		}
	}
	if _, _, err := Recovered(base, Digest{1}, after, operators); err == nil {
		t.Error("of other files than the manifest's")
	}
	// A bundle in its other spelling stays in it.
	other := maps.Clone(files)
	other["operators.yml"] = other["operators.yaml"]
	delete(other, "operators.yaml")
	base, err = BuildManifest(other, base.Header())
	if err != nil {
		t.Fatal(err)
	}
	if _, after, err = Recovered(base, Digest{1}, other, operators); err != nil || len(ChangedFiles(other, after)) != 1 || !bytes.Equal(after["operators.yml"], operators) {
		t.Errorf("%v", err)
	}
}

// numberedKey is a public key of its own for each number.
func numberedKey(i int) string {
	seed := make([]byte, ed25519.SeedSize)
	binary.BigEndian.PutUint32(seed, uint32(i))
	key, err := ssh.NewPublicKey(ed25519.NewKeyFromSeed(seed).Public())
	if err != nil {
		panic(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}
