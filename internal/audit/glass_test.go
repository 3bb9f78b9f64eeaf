package audit_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/state"
)

// forgery is an entry written otherwise, and what the audit says of it.
type forgery[E state.Event] struct {
	forge func(E)
	says  string
}

// forgeries audits a ledger for each, with the entry at an index written otherwise.
func forgeries[E state.Event](t *testing.T, whole *memory, at int, all map[string]forgery[E]) {
	t.Helper()
	for name, c := range all {
		m := whole.clone()
		m.checkpoint, m.snapshots = nil, nil
		m.change(t, at, func(e *state.Entry) { c.forge(e.Event.(E)) })
		_, err := run(m, audit.Options{})
		var fault *audit.Fault
		if !errors.As(err, &fault) || fault.Index != uint64(at) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is entered of breaking the glass is what the bundle allowed and persons signed, or the ledger does not verify.
func TestForgedGlass(t *testing.T) {
	w := controltest.New(t, controltest.HistoryOptions)
	controltest.History(w)
	dir := w.Dir
	w.Close()
	whole := load(t, dir+"/data")
	first := index(t, whole, func(e *state.GlassOpened) bool { return e.Change == 0 })
	forgeries(t, whole, first, map[string]forgery[*state.GlassOpened]{
		"another grant":      {func(e *state.GlassOpened) { e.Grant = "provision" }, "has no break-glass grant"},
		"another person":     {func(e *state.GlassOpened) { e.Identity = "/human/bob" }, "is not for /human/bob"},
		"another actor":      {func(e *state.GlassOpened) { e.Actor.Identity = "/human/bob" }, "acts in session"},
		"longer":             {func(e *state.GlassOpened) { e.Until += 21 * 60_000 }, "and the bundle allows 30m"},
		"longer than may be": {func(e *state.GlassOpened) { e.Change, e.Until = 7, e.Until+9*3_600_000 }, "is not an approved glass.open"},
		"another bundle":     {func(e *state.GlassOpened) { e.Ruling.Generation++ }, "it was decided by generation"},
	})
	second := index(t, whole, func(e *state.GlassOpened) bool { return e.Change != 0 })
	forgeries(t, whole, second, map[string]forgery[*state.GlassOpened]{
		"beyond the budget":    {func(e *state.GlassOpened) { e.Change = 0 }, "1 of 1 openings"},
		"for another incident": {func(e *state.GlassOpened) { e.Incident = "INC-9" }, "is not an approved glass.open about this"},
		"for longer":           {func(e *state.GlassOpened) { e.Until += 60_000 }, "is not an approved glass.open about this"},
		"for another person":   {func(e *state.GlassOpened) { e.Identity = "/human/bob" }, "is not an approved glass.open about this"},
		"by who may not":       {func(e *state.GlassOpened) { e.Actor.Identity = "/node/join-token/web-1" }, "is not a person"},
	})
	text := func(edit func(*ceremony.GlassReview)) func(*state.GlassReviewed) {
		return func(e *state.GlassReviewed) {
			r, err := ceremony.ParseGlassReview(e.Text)
			if err != nil {
				t.Fatal(err)
			}
			edit(&r)
			e.Text = r.Text()
		}
	}
	at := index(t, whole, func(e *state.GlassReviewed) bool { return true })
	forgeries(t, whole, at, map[string]forgery[*state.GlassReviewed]{
		"another verdict":     {text(func(r *ceremony.GlassReview) { r.Verdict = ceremony.NotJustified }), "the signature of bob"},
		"other words":         {text(func(r *ceremony.GlassReview) { r.Findings += " As ever." }), "the signature of bob"},
		"another person":      {text(func(r *ceremony.GlassReview) { r.Person = "alice" }), "not of this environment and person"},
		"another environment": {text(func(r *ceremony.GlassReview) { r.Environment = "elsewhere" }), "not of this environment and person"},
		"another signer":      {func(e *state.GlassReviewed) { e.Signature.Person = "alice" }, "not of this environment and person"},
		"another key":         {func(e *state.GlassReviewed) { e.Signature.Key = "SHA256:x" }, "another key"},
		"no review":           {func(e *state.GlassReviewed) { e.Text = "bailment change v2\n" }, "not the text of a break-glass review"},
		"another opening":     {func(e *state.GlassReviewed) { e.Opening = uint64(second) }, fmt.Sprintf("opening %d is not to be reviewed", second)},
	})
	at = index(t, whole, func(e *state.GlassClosed) bool { return true })
	forgeries(t, whole, at, map[string]forgery[*state.GlassClosed]{
		"another opening": {func(e *state.GlassClosed) { e.Opening++ }, "is not open"},
		"another actor":   {func(e *state.GlassClosed) { e.Actor.Identity = "/human/carol" }, "acts in session"},
	})
	at = index(t, whole, func(e *state.GlassAlarmed) bool { return true })
	forgeries(t, whole, at, map[string]forgery[*state.GlassAlarmed]{
		"another share":   {func(e *state.GlassAlarmed) { e.Percent = 4 }, "the bundle in force says 5"},
		"more releases":   {func(e *state.GlassAlarmed) { e.Releases++ }, "the figures of"},
		"another quarter": {func(e *state.GlassAlarmed) { e.Quarter = "1999-Q4" }, "the figures of"},
	})
}
