package audit_test

import (
	"testing"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/state"
)

// A review says what its person signed, about lines of the bundle in force, or the ledger does not verify.
func TestForgedReviews(t *testing.T) {
	w := controltest.New(t, controltest.HistoryOptions)
	controltest.History(w)
	dir := w.Dir
	w.Close()
	whole := load(t, dir+"/data")
	at := index(t, whole, func(e *state.AccessReviewed) bool { return e.Signature.Person == "alice" })
	text := func(edit func(*ceremony.Review)) func(*state.AccessReviewed) {
		return func(e *state.AccessReviewed) {
			r, err := ceremony.ParseReview(e.Text)
			if err != nil {
				t.Fatal(err)
			}
			edit(&r)
			e.Text = r.Text()
		}
	}
	forgeries(t, whole, at, map[string]forgery[*state.AccessReviewed]{
		"another decision":    {text(func(r *ceremony.Review) { r.Lines[0].Decision = ceremony.Remove }), "the signature of alice"},
		"another last use":    {text(func(r *ceremony.Review) { r.Lines[0].LastUsed = "2026-11-22T15:00:00Z" }), "the signature of alice"},
		"a line less":         {text(func(r *ceremony.Review) { r.Lines = r.Lines[1:] }), "the signature of alice"},
		"another line":        {text(func(r *ceremony.Review) { r.Lines[0].Grant = "a" }), "has no such line"},
		"what he has himself": {text(func(r *ceremony.Review) { r.Lines[0].Identity = "/human/alice" }), "keeps what he has himself"},
		"another person":      {text(func(r *ceremony.Review) { r.Person = "bob" }), "not of this environment and person"},
		"another signer":      {func(e *state.AccessReviewed) { e.Signature.Person = "bob" }, "not of this environment and person"},
		"another environment": {text(func(r *ceremony.Review) { r.Environment = "elsewhere" }), "not of this environment and person"},
		"another key":         {func(e *state.AccessReviewed) { e.Signature.Key = "SHA256:x" }, "another key"},
		"another bundle":      {text(func(r *ceremony.Review) { r.Bundle = state.Digest{1}.String() }), "the signature of alice"},
		"no review":           {func(e *state.AccessReviewed) { e.Text = "bailment change v2\n" }, "not the text of an access review"},
		"another actor":       {func(e *state.AccessReviewed) { e.Actor.Identity = "/human/bob" }, "acts in session"},
	})
}
