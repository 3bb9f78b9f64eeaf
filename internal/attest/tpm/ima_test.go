package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/tpm/tpmtest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// imaData is template data of ima-ng.
func imaData(file [32]byte, name string) []byte {
	le := binary.LittleEndian
	field := append([]byte("sha256:\x00"), file[:]...)
	out := append(le.AppendUint32(nil, uint32(len(field))), field...)
	return append(le.AppendUint32(out, uint32(len(name)+1)), name+"\x00"...)
}

// imaEntryRaw is an entry as the kernel lists it.
func imaEntryRaw(pcr uint32, data []byte, violation bool) []byte {
	le := binary.LittleEndian
	out := le.AppendUint32(nil, pcr)
	head := bytes.Repeat([]byte{0x11}, 20)
	if violation {
		head = make([]byte, 20)
	}
	out = append(out, head...)
	out = append(le.AppendUint32(out, 6), "ima-ng"...)
	return append(le.AppendUint32(out, uint32(len(data))), data...)
}

func imaExtends(data []byte, violation bool) [32]byte {
	if violation {
		return [32]byte(bytes.Repeat([]byte{0xff}, 32))
	}
	return sha256.Sum256(data)
}

// someIMA is a list of four entries on some start, with one in full, and the value of PCR 10 after it.
func someIMA() (*imaList, [32]byte) {
	l := &imaList{Start: bytes.Repeat([]byte{4}, 32)}
	value := [32]byte(l.Start)
	for i := range 4 {
		data := imaData(sum(string(rune('a'+i))), "/usr/bin/x")
		if i == 2 {
			data = []byte("canary")
		}
		d := sha256.Sum256(data)
		l.Digests = append(l.Digests, d[:]...)
		value = extend(value, d)
		if i == 0 {
			l.Entries = append(l.Entries, imaEntry{At: 0, Data: data})
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
		list = append(list, imaEntryRaw(pcrIMA, data, violation)...)
		if extend {
			s.Extend(pcrIMA, imaExtends(data, violation))
		}
	}
	add(imaData(sum("boot_aggregate"), "boot_aggregate"), false, true)
	add(imaData(sum("init"), "/sbin/init"), false, true)
	list = append(list, imaEntryRaw(11, imaData(sum("other"), "/other"), false)...)
	add(imaData(file, "/usr/bin/bailment"), false, true)
	add(imaData(sum("log"), "/var/log/x"), true, true)
	add(imaData(sum("later"), "/usr/bin/later"), false, true)
	// The list goes on while it is read: what the quote doesn't have yet is left out.
	add(imaData(sum("last"), "/usr/bin/last"), false, false)
	path := filepath.Join(t.TempDir(), "ima")
	if err := os.WriteFile(path, list, 0o600); err != nil {
		t.Fatal(err)
	}
	p := paramsOf(t, maker(s, func(a *authority.Authority) { a.PCRs = []int{7, pcrIMA} }))
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

func TestShorten(t *testing.T) {
	file := sum("me")
	data := imaData(file, "/me")
	value := func(all ...[]byte) [32]byte {
		var v [32]byte
		for _, d := range all {
			v = extend(v, sha256.Sum256(d))
		}
		return v
	}
	other := imaData(sum("other"), "/other")
	raw := bytes.Join([][]byte{imaEntryRaw(10, other, false), imaEntryRaw(10, data, false)}, nil)
	old := append(bytes.Clone(imaEntryRaw(10, other, false)[:24]), 3, 0, 0, 0, 'i', 'm', 'a')
	for name, c := range map[string]struct {
		list   []byte
		quoted [32]byte
		want   problem.Reason
		found  bool
	}{
		"there":                 {raw, value(other, data), "", true},
		"not in what is quoted": {raw, value(other), "", false},
		"other value":           {raw, value(data), problem.ReasonEventLog, false},
		"empty":                 {nil, value(), problem.ReasonEventLog, false},
		"truncated":             {raw[:len(raw)-1], value(other, data), problem.ReasonEventLog, false},
		"old template":          {old, value(data), problem.ReasonEventLog, false},
		"huge entry":            {append(bytes.Clone(raw[:34]), 0xff, 0xff, 0xff, 0xff), value(data), problem.ReasonEventLog, false},
		"huge name":             {append(bytes.Clone(raw[:24]), 0xff, 0xff, 0xff, 0xff), value(data), problem.ReasonEventLog, false},
	} {
		got, err := shorten(context.Background(), bytes.NewReader(c.list), c.quoted, file)
		if c.want == "" && err != nil || c.want != "" && !problem.Is(err, c.want) || (got != nil) != c.found {
			t.Errorf("%s: %v %v", name, got, err)
		}
		if got != nil {
			if files, err := got.verify(c.quoted); err != nil || !files[file] {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	// After too many others, nothing can be shown of it.
	one := imaEntryRaw(10, other, false)
	var v [32]byte
	v = extend(v, sha256.Sum256(data))
	for range maxIMA {
		v = extend(v, sha256.Sum256(other))
	}
	long := io.MultiReader(bytes.NewReader(imaEntryRaw(10, data, false)), bytes.NewReader(bytes.Repeat(one, maxIMA)))
	if got, err := shorten(context.Background(), long, v, file); err != nil || got != nil {
		t.Errorf("%v %v", got != nil, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := shorten(ctx, bytes.NewReader(raw), v, file); !problem.Is(err, problem.ReasonCanceled) {
		t.Error(err)
	}
}
