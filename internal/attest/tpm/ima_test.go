package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/tpm/ima"
	"github.com/bailment/bailment/internal/attest/tpm/tpmtest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

func imaExtends(data []byte, violation bool) [32]byte {
	if violation {
		return [32]byte(bytes.Repeat([]byte{0xff}, 32))
	}
	return sha256.Sum256(data)
}

// someIMA is a list of four entries on some start, with one in full, and the value of PCR 10 after it.
func someIMA() (*ima.List, [32]byte) {
	l := &ima.List{Start: bytes.Repeat([]byte{4}, 32)}
	value := [32]byte(l.Start)
	for i := range 4 {
		data := tpmtest.IMAData(sum(string(rune('a'+i))), "/usr/bin/x")
		if i == 2 {
			data = []byte("canary")
		}
		d := sha256.Sum256(data)
		l.Digests = append(l.Digests, d[:]...)
		value = extend(value, d)
		if i == 0 {
			l.Entries = append(l.Entries, ima.Entry{At: 0, Data: data})
		}
	}
	return l, value
}

// TestIMA goes from a kernel's list to the claim, with a software TPM whose PCR 10 was extended as the kernel would.
func TestIMA(t *testing.T) {
	s := tpmtest.New(t, 0)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	file := sha256.Sum256(self)
	var list []byte
	add := func(data []byte, violation, extend bool) {
		list = append(list, tpmtest.IMAEntry(ima.PCR, data, violation)...)
		if extend {
			s.Extend(ima.PCR, imaExtends(data, violation))
		}
	}
	add(tpmtest.IMAData(sum("boot_aggregate"), "boot_aggregate"), false, true)
	add(tpmtest.IMAData(sum("init"), "/sbin/init"), false, true)
	list = append(list, tpmtest.IMAEntry(11, tpmtest.IMAData(sum("other"), "/other"), false)...)
	add(tpmtest.IMAData(file, "/usr/bin/bailment"), false, true)
	add(tpmtest.IMAData(sum("log"), "/var/log/x"), true, true)
	add(tpmtest.IMAData(sum("later"), "/usr/bin/later"), false, true)
	// The list goes on while it is read: what the quote doesn't have yet is left out.
	add(tpmtest.IMAData(sum("last"), "/usr/bin/last"), false, false)
	path := filepath.Join(t.TempDir(), "ima")
	if err := os.WriteFile(path, list, 0o600); err != nil {
		t.Fatal(err)
	}
	p := paramsOf(t, maker(s, func(a *authority.Authority) { a.PCRs = []int{7, ima.PCR} }))
	r := goes(t, attesterOf(t, s, attest.Material{NeedIMA: []byte(path)}), p, binding())
	res, err := Verify(r.input())
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Executables) != 1 || !res.Executables[file] || res.Claims["ima"].(map[string]any)["list"] != "replayed" {
		t.Errorf("%v %v", res.Executables, res.Claims["ima"])
	}
	if ev := r.open(t); len(ev.IMA.Digests) != 3*32 || len(ev.IMA.Entries) != 1 {
		t.Errorf("%d digests, %d entries in full", len(ev.IMA.Digests)/32, len(ev.IMA.Entries))
	}
	// A list that lacks what was measured is of no use; asked for, it is an error, and not left out silently.
	if err := os.WriteFile(path, list[:len(list)/3], 0o600); err != nil {
		t.Fatal(err)
	}
	a := attesterOf(t, s, attest.Material{NeedIMA: []byte(path)})
	said, err := a.Hello(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	offered, err := Offer(offerInput(p, said))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Answer(context.Background(), binding(), said, offered); !problem.Is(err, problem.ReasonEventLog) {
		t.Error(err)
	}
}
