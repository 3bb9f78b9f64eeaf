package audit_test

import (
	"testing"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/state"
)

// A history that began under the first protocol, and has every entry that there is, is as sound as any, to its end.
func TestFromTheFirstProtocol(t *testing.T) {
	o := controltest.HistoryOptions
	o.First = true
	w := controltest.New(t, o)
	controltest.End(w, controltest.History(w))
	w.Close()
	whole := load(t, w.Dir+"/data")
	r, err := run(whole, audit.Options{Genesis: w.Genesis})
	if err != nil || !r.Complete() || len(r.Undecided)+len(r.Violations) != 0 {
		t.Fatalf("%+v %v", r, err)
	}
	if at := index(t, whole, func(e *state.ProtocolRaised) bool { return e.Version == state.Protocol }); at == 0 {
		t.Error("nothing raised the protocol")
	}
}
