package tpm

import (
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// corpus is where logs and certificates of real machines are, which are others' and not part of this repository; "" where they aren't.
func corpus(t *testing.T) string {
	dir := os.Getenv("BAILMENT_CORPUS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "..", "shared", "corpus")
	}
	dir = filepath.Join(dir, "attestation")
	if _, err := os.Stat(dir); err != nil {
		t.Log("the corpus of real logs and certificates is not here (BAILMENT_CORPUS): only our own were checked")
		return ""
	}
	return dir
}

// TestPublishedLogs reads event logs of real machines, replays them, and says of each what is known of it.
func TestPublishedLogs(t *testing.T) {
	if l, err := parseLog(typical("kernel 1", nil).bytes()); err != nil || len(l.events) == 0 {
		t.Fatal(err)
	}
	dir := corpus(t)
	if dir == "" {
		return
	}
	for name, c := range map[string]struct {
		refused problem.Reason
		secure  string
		signers int
		cmdline string
		images  int
	}{
		"crypto_agile_eventlog": {secure: "off", images: 2},
		// shim's certificate, which an old shim logs with a byte too much, is a signer here, beside the firmware's.
		"sb_cert_eventlog": {secure: "on", signers: 2, images: 3},
		"coreos_36_shielded_vm_no_secure_boot_eventlog":   {secure: "off", images: 2, cmdline: "(hd0,gpt3)/ostree/fedora-coreos-"},
		"ubuntu_2104_shielded_vm_no_secure_boot_eventlog": {secure: "off", images: 2, cmdline: "/boot/vmlinuz-5.11.0-1006-gcp root=PARTUUID="},
		// These have SHA-1 digests only, which this method doesn't take.
		"option_rom_eventlog":        {refused: problem.ReasonWeakAlgorithm},
		"ebs_event_missing_eventlog": {refused: problem.ReasonWeakAlgorithm},
		"short_no_action_eventlog":   {refused: problem.ReasonWeakAlgorithm},
		"windows_gcp_shielded_vm":    {refused: problem.ReasonWeakAlgorithm},
	} {
		raw, err := readPublished(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		log, err := parseLog(raw)
		if c.refused != "" {
			if !problem.Is(err, c.refused) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		values := map[int][32]byte{}
		var pcrs []int
		for p := range maxPCR + 1 {
			pcrs = append(pcrs, p)
			values[p] = log.replay(p)
		}
		x, err := explain(raw, values, pcrs)
		if err != nil {
			t.Fatal(err)
		}
		b := x.describe(nil, then)
		_, signers := x.secureBoot()
		if b.secureBoot != c.secure || signers == nil || len(signers) != c.signers || len(b.images) != c.images || !strings.HasPrefix(b.cmdline, c.cmdline) ||
			(b.cmdline == "") != (c.cmdline == "") {
			t.Errorf("%s: Secure Boot %s, %d signers, %d images, %q %q", name, b.secureBoot, len(signers), len(b.images), b.cmdline, b.findings)
		}
		// The same log with any one event less does not replay.
		for i := range log.events {
			less := bootLog{events: slices.Delete(slices.Clone(log.events), i, i+1), locality: log.locality}
			if p := log.events[i].pcr; less.replay(p) == values[p] {
				t.Errorf("%s: replays without event %d", name, log.events[i].at)
			}
		}
	}
}

func readPublished(dir, name string) ([]byte, error) {
	path := filepath.Join(dir, "tpm-eventlogs", name)
	raw, err := os.ReadFile(path)
	if err == nil {
		return raw, nil
	}
	text, err := os.ReadFile(path + ".json")
	if err != nil {
		return nil, err
	}
	var dump struct{ Log struct{ Raw []byte } }
	err = json.Unmarshal(text, &dump)
	return dump.Log.Raw, err
}

// TestPublishedAuthorities: the certificates that GCP's TPMs are vouched by can be a bundle's authority.
func TestPublishedAuthorities(t *testing.T) {
	dir := corpus(t)
	if dir == "" {
		return
	}
	files, err := filepath.Glob(filepath.Join(dir, "gcp-tpm-ca", "*.crt"))
	if err != nil || len(files) == 0 {
		t.Fatal(len(files), err)
	}
	for _, file := range files {
		der, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		certs, err := authority.Parse(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(file), err)
			continue
		}
		paramsOf(t, authority.Authority{Name: "gcp", Certificates: certs})
	}
}

// TestParamsRefuse: a bundle that could not be used is refused when it is compiled.
func TestParamsRefuse(t *testing.T) {
	f := newForger(t, nil)
	good := f.auth
	for name, c := range map[string]struct {
		says string
		all  []authority.Authority
	}{
		"nothing in it":       {"neither", []authority.Authority{{Name: "a"}}},
		"bad name":            {"name", []authority.Authority{{Name: "A:b", EndorsementKeys: [][32]byte{array(1)}}}},
		"PCR 24":              {"PCRs", []authority.Authority{{Name: "a", EndorsementKeys: [][32]byte{array(1)}, PCRs: []int{24}}}},
		"PCRs not ascending":  {"PCRs", []authority.Authority{{Name: "a", EndorsementKeys: [][32]byte{array(1)}, PCRs: []int{7, 4}}}},
		"a PCR twice":         {"PCRs", []authority.Authority{{Name: "a", EndorsementKeys: [][32]byte{array(1)}, PCRs: []int{7, 7}}}},
		"a root of two":       {"belongs", []authority.Authority{good, {Name: "zz", Certificates: good.Certificates}}},
		"a key listed by two": {"lists already", []authority.Authority{{Name: "a", EndorsementKeys: [][32]byte{array(1)}}, {Name: "b", EndorsementKeys: [][32]byte{array(1)}}}},
		"too many":            {"more than", make([]authority.Authority, authority.Max+1)},
	} {
		if _, err := NewParams(c.all); !strings.Contains(errText(err), c.says) || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewParams(nil); err != nil {
		t.Error(err)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
