package audit_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// Whatever is forged about an export is found: to whom, what, by which change, by whom, when, and how often.
func TestExportFaults(t *testing.T) {
	w := controltest.New(t, controltest.HistoryOptions)
	controltest.History(w)
	w.Close()
	whole := load(t, w.Dir+"/data")
	at := index(t, whole, func(*state.SecretExported) bool { return true })
	const other = "is not an approved secret.export about this"
	for name, c := range map[string]struct {
		edit func(*state.Entry, *state.SecretExported)
		says string
	}{
		"another recipient": {func(_ *state.Entry, e *state.SecretExported) { e.Recipient = e.Recipient[:61] + "q" }, other},
		"other secrets":     {func(_ *state.Entry, e *state.SecretExported) { e.Secrets = "*" }, other},
		"another change":    {func(_ *state.Entry, e *state.SecretExported) { e.Change = 1 }, other},
		"by who may not":    {func(_ *state.Entry, e *state.SecretExported) { e.Actor.Identity = "/human/mallory" }, "duty propose"},
		"too late":          {func(x *state.Entry, _ *state.SecretExported) { x.Time = x.Time.Add(25 * time.Hour) }, "session"},
		"other versions": {func(_ *state.Entry, e *state.SecretExported) {
			e.Versions[0].Version++
			e.List = state.ExportList(e.Versions)
		}, "legal step"},
		"fewer versions": {func(_ *state.Entry, e *state.SecretExported) {
			e.Versions, e.Count = e.Versions[1:], e.Count-1
			e.List = state.ExportList(e.Versions)
		}, "legal step"},
		"nothing": {func(_ *state.Entry, e *state.SecretExported) { e.Bytes = 0 }, "legal step"},
		"unnamed": {func(_ *state.Entry, e *state.SecretExported) { e.Versions = e.Versions[:1] }, "legal step"},
	} {
		t.Run(name, func(t *testing.T) {
			m := whole.clone()
			m.checkpoint, m.snapshots, m.entries = nil, nil, m.entries[:at+1:at+1]
			m.change(t, at, func(x *state.Entry) { c.edit(x, x.Event.(*state.SecretExported)) })
			_, err := run(m, audit.Options{})
			var f *audit.Fault
			if !problem.Is(err, problem.ReasonTampered) || !errors.As(err, &f) || f.Index != uint64(at) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want entry %d: %s", err, at, c.says)
			}
		})
	}
	t.Run("twice", func(t *testing.T) {
		m := whole.clone()
		m.checkpoint, m.snapshots, m.entries = nil, nil, m.entries[:at+2:at+2]
		again, err := state.Decode(m.entries[at].Body)
		if err != nil {
			t.Fatal(err)
		}
		m.change(t, at+1, func(x *state.Entry) { *x = *again })
		_, err = run(m, audit.Options{})
		if !problem.Is(err, problem.ReasonTampered) || !strings.Contains(err.Error(), other) && !strings.Contains(err.Error(), "is done") {
			t.Error(err)
		}
	})
}
