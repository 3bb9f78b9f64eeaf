package tpm

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/bailment/bailment/internal/authority"
)

// costly is the dearest log that the limits let through, and as many reference values as a bundle may have.
func costly() ([]byte, []authority.Reference) {
	le := binary.LittleEndian
	log := header(algSHA256)
	for i := range maxEvents {
		log = le.AppendUint32(log, []uint32{4, 8}[i%2])
		log = le.AppendUint32(log, evIPL)
		log = le.AppendUint32(log, 1)
		log = le.AppendUint16(log, algSHA256)
		d := sum(fmt.Sprint("event ", i))
		log = append(log, d[:]...)
		log = le.AppendUint32(log, 0)
	}
	var refs []authority.Reference
	for i := range 64 {
		r := authority.Reference{Name: fmt.Sprint("r-", i), Version: "1"}
		for j := range 2000 {
			r.Events = append(r.Events, sum(fmt.Sprint("known ", i, " ", j)))
		}
		refs = append(refs, r)
	}
	return log, refs
}

// Whoever has a TPM of a listed manufacturer may send such a log: it must not cost a server seconds, whatever the bundle compares it with.
// What it took was counted in texts of findings that nobody is told, one for each event and set.
func TestManyEventsAndSets(t *testing.T) {
	raw, refs := costly()
	log, err := parseLog(raw)
	if err != nil {
		t.Fatal(err)
	}
	values, pcrs := map[int][32]byte{}, authority.DefaultPCRs()
	for _, p := range pcrs {
		values[p] = log.replay(p)
	}
	x, err := explain(raw, values, pcrs)
	if err != nil {
		t.Fatal(err)
	}
	var b boot
	allocations := testing.AllocsPerRun(1, func() { b = x.describe(refs, then) })
	if allocations > 200_000 {
		t.Errorf("%.0f allocations", allocations)
	}
	if b.reference != bootBad || len(b.findings) != maxFindings || b.findings[maxFindings-1] != fmt.Sprintf("and %d more", maxEvents-maxFindings+1) {
		t.Errorf("%s: %d findings, the last %q", b.reference, len(b.findings), b.findings[len(b.findings)-1])
	}
	for _, f := range b.findings {
		if f == "" {
			t.Error("a finding says nothing")
		}
	}
}
