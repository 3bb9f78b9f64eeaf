package audit_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
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

// forgedExport is a ledger whose last entry is an export that no server would have entered, after what is done since it was approved.
func forgedExport(t *testing.T, since func(*controltest.World, controltest.Actor)) (*memory, int) {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	from := time.Now().Add(12 * time.Hour).UTC().Format(time.RFC3339)
	w := controltest.New(t, controltest.Options{Persons: []string{"alice", "bob", "carol"}, Quorum: 1, Extra: policy.Files{
		"grants/deny.yaml": []byte("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: deny-later}\nspec: {effect: deny, actions: [secret.read], identities: [/human/*], secrets: [db/y], when: 'time > timestamp(\"" + from + "\")'}\n"),
	}})
	alice, bob := w.Login("alice"), w.Login("bob")
	w.Put(alice, "db/x", "one")
	w.Put(alice, "db/y", "two")
	p, err := w.Act(alice, "alice", control.ActionExport, state.ExportTarget("db/*", controltest.ExportRecipient))
	must(err)
	_, err = w.Approve(bob, "bob", p.Change)
	must(err)
	since(w, bob)
	alice = w.Login("alice")
	_, err = w.Env.CarryOut(ctx, alice.Caller, 1<<40) // an entry, whose place the export takes
	if !problem.Is(err, problem.ReasonNotFound) {
		t.Fatal(err)
	}
	pattern, err := identity.ParseSecretPattern("db/*")
	must(err)
	all, _ := w.Env.State().Exportable(pattern, state.At(w.Now()))
	w.Close()
	m := load(t, w.Dir+"/data")
	m.checkpoint, m.snapshots = nil, nil
	at := len(m.entries) - 1
	m.change(t, at, func(e *state.Entry) {
		denied, ok := e.Event.(*state.RequestDenied)
		if !ok {
			t.Fatalf("the last entry is a %T", e.Event)
		}
		e.Event = &state.SecretExported{
			Change: p.Index, Secrets: "db/*", Recipient: controltest.ExportRecipient, Count: len(all), Versions: all, List: state.ExportList(all),
			File: state.Digest{1}, Bytes: 1000, Actor: denied.Actor, Ruling: denied.Ruling,
		}
	})
	return m, at
}

// What stops an export is looked for in the ledger: a cutoff or a hold since its proposal, of a secret, of all, or of who approved it; and its time.
func TestExportStoppedSince(t *testing.T) {
	revoke := func(scope string, hold bool) func(*controltest.World, controltest.Actor) {
		return func(w *controltest.World, by controltest.Actor) {
			if _, err := w.Env.Revoke(t.Context(), by.Caller, control.RevokeRequest{Scope: scope, Reason: "test", HoldOnly: hold}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		since func(*controltest.World, controltest.Actor)
		says  string
	}{
		"nothing":                 {func(*controltest.World, controltest.Actor) {}, ""},
		"a cutoff elsewhere":      {revoke("secret:node/x", false), ""},
		"a cutoff of a secret":    {revoke("secret:db/y", false), "db/y was cut off or held since"},
		"a cutoff of the subtree": {revoke("secret:db/*", false), "db/x was cut off or held since"},
		"a hold on a secret":      {revoke("secret:db/y", true), "db/y was cut off or held since"},
		"a hold on its approver":  {revoke("identity:/human/bob", true), "is not an approved secret.export"},
		"a denial":                {func(w *controltest.World, _ controltest.Actor) { w.Advance(13 * time.Hour) }, "db/y was exported, and the grant deny-later denies"},
		"its day":                 {func(w *controltest.World, _ controltest.Actor) { w.Advance(25 * time.Hour) }, "is expired"},
	} {
		t.Run(name, func(t *testing.T) {
			m, at := forgedExport(t, c.since)
			r, err := run(m, audit.Options{})
			var f *audit.Fault
			if errors.As(err, &f) {
				if c.says == "" || f.Index != uint64(at) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v, want entry %d: %q", err, at, c.says)
				}
				return
			}
			// Each entry is what it says; that nobody signed the last one is not what this is about. What was decided is decided again.
			if !problem.Is(err, problem.ReasonTampered) || !strings.Contains(err.Error(), "there is no signed checkpoint") {
				t.Error(err)
			}
			switch {
			case c.says == "" && len(r.Violations) > 0:
				t.Errorf("found %v", r.Violations)
			case c.says != "" && (len(r.Violations) != 1 || r.Violations[0].Index != uint64(at) || !strings.Contains(r.Violations[0].Detail, c.says)):
				t.Errorf("found %v, want entry %d: %s", r.Violations, at, c.says)
			}
		})
	}
}
