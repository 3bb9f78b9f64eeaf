package control

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/bailment/bailment/internal/problem"
)

// Sums that could not be entered are put back within the bounds of what is counted, and none is lost.
func TestSumsPutBackAreBounded(t *testing.T) {
	var d denialSums
	total := uint64(0)
	for minute := range int64(20) {
		for i := range maxDenialKeys {
			d.add(denial{
				method: "session", identity: fmt.Sprintf("/node/n%d", i), reason: problem.Reason(fmt.Sprintf("r%d", i%700)), minute: minute,
				source: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}),
			})
			total++
		}
		sums := d.take(minute + 1)
		for i := range maxDenialKeys { // others come while it is tried
			d.add(denial{method: "attest", identity: fmt.Sprintf("/node/m%d", i), reason: problem.ReasonInvalid, minute: minute})
			total++
		}
		d.putBack(sums)
	}
	if most := 2*maxDenialKeys + 21; len(d.m) > most {
		t.Errorf("%d rows", len(d.m))
	}
	var got uint64
	for _, x := range d.take(1 << 62) {
		got += x.Count
		n := x.Others
		for _, c := range x.Sources {
			n += uint64(c)
		}
		if len(x.Sources) > maxSources || n > x.Count {
			t.Fatalf("%+v", x)
		}
	}
	if got != total {
		t.Errorf("%d of %d refusals", got, total)
	}
}
