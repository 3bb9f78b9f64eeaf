package invariant_test

import (
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// export is an approved export, and the entry that it leads to.
func (s *scene) export() *state.SecretExported {
	s.t.Helper()
	p := s.propose(policy.ActExport, state.ExportTarget("db/*", controltest.ExportRecipient))
	ch := s.add(p)
	s.add(s.approve(ch))
	s.legal()
	pattern, err := identity.ParseSecretPattern("db/*")
	if err != nil {
		s.t.Fatal(err)
	}
	all, _ := s.state().Exportable(pattern, s.entries[len(s.entries)-1].Time+1000)
	if len(all) < 2 {
		s.t.Fatalf("there are %d to export", len(all))
	}
	return &state.SecretExported{
		Change: ch, Secrets: "db/*", Recipient: controltest.ExportRecipient, Count: len(all), Versions: all, List: state.ExportList(all),
		File: state.Digest{1}, Bytes: 1000, Actor: p.Actor, Ruling: s.ruling(),
	}
}

func TestExportPlantsStartLegal(t *testing.T) {
	s := newScene(t, history(t))
	s.add(s.export())
	for _, v := range s.found {
		t.Error(v)
	}
	if found := s.c.CheckCounts(invariant.Counts{Delivered: 1}); len(found) > 0 {
		t.Error(found)
	}
}

// wrongly plants an export after an edit.
func wrongly(edit func(*scene, *state.SecretExported)) func(*scene) {
	return func(s *scene) {
		e := s.export()
		edit(s, e)
		s.add(e)
	}
}

// exportPlants are exports that are not what was approved.
var exportPlants = []planted{
	{invariant.Lifecycle, "an export to another recipient", wrongly(func(_ *scene, e *state.SecretExported) {
		e.Recipient = "age1" + e.Recipient[5:] + "q"
	}), "is not about"},
	{invariant.Lifecycle, "an export of other secrets", wrongly(func(_ *scene, e *state.SecretExported) { e.Secrets = "*" }), "is not about"},
	{invariant.Lifecycle, "an export twice", func(s *scene) {
		e := s.export()
		s.add(e)
		s.add(e)
	}, "is done"},
	{invariant.Lifecycle, "an export by a change about something else", wrongly(func(s *scene, e *state.SecretExported) {
		e.Change = s.add(s.propose(policy.ActForget, state.ExportTarget(e.Secrets, e.Recipient)))
		s.add(s.approve(e.Change))
	}), "is a evidence.forget"},
	{invariant.Lifecycle, "an export to who did not propose it", wrongly(func(s *scene, e *state.SecretExported) { e.Actor = s.approve(e.Change).Actor }), "and its export goes to"},
	{invariant.Lifecycle, "an export of nothing", wrongly(func(_ *scene, e *state.SecretExported) { e.Count, e.Bytes = 0, 0 }), "it exports 0 values"},
	{invariant.Lifecycle, "an export of more than it says", wrongly(func(_ *scene, e *state.SecretExported) { e.Count-- }), "versions, and db/* has"},
	{invariant.Lifecycle, "an export after its day", func(s *scene) {
		e := s.export()
		p := s.propose(policy.ActExport, state.ExportTarget("db/*", controltest.ExportRecipient))
		p.Expires = s.entries[len(s.entries)-1].Time.Add(13 * 24 * time.Hour)
		e.Change = s.add(p)
		s.add(s.approve(e.Change))
		s.addAt(s.entries[len(s.entries)-1].Time.Add(24*time.Hour), e)
	}, "could be fetched until"},
	{invariant.Recorded, "an export of other versions", wrongly(func(_ *scene, e *state.SecretExported) {
		e.Versions[0].Version++
		e.List = state.ExportList(e.Versions)
	}), "its list is not that of the current versions"},
	{invariant.Recorded, "an export of other ciphertexts", wrongly(func(_ *scene, e *state.SecretExported) { e.Versions[1].Digest[0]++ }), "are not the first of"},
	{invariant.Recorded, "an export that names too few", wrongly(func(_ *scene, e *state.SecretExported) { e.Versions = e.Versions[:1] }), "there was room for more"},
	{invariant.Separated, "an export that nobody approved", wrongly(func(s *scene, e *state.SecretExported) {
		e.Change = s.add(s.propose(policy.ActExport, state.ExportTarget(e.Secrets, e.Recipient)))
	}), "has the approval of 0 persons"},
	{invariant.Separated, "an export before its approval", wrongly(func(s *scene, e *state.SecretExported) {
		e.Change = s.add(s.propose(policy.ActExport, state.ExportTarget(e.Secrets, e.Recipient)))
	}), "has not begun to wait"},
	{invariant.Permitted, "an export of what is denied", func(s *scene) {
		s.bring("grants/deny-export.yaml", "apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: deny-export}\nspec: {effect: deny, actions: [secret.read], identities: [/human/*], secrets: [db/*], purposes: [export]}\n")
		s.add(s.export())
	}, "was exported, and the grant deny-export denies"},
	{invariant.Revoked, "an export of what was cut off since", func(s *scene) {
		e := s.export()
		s.add(s.revoke("secret:" + e.Versions[0].Secret))
		s.add(e)
	}, "the export of"},
	{invariant.Revoked, "an export of what is held", func(s *scene) {
		e := s.export()
		r := s.revoke("secret:" + e.Versions[0].Secret)
		r.Cutoff, r.Hold, r.Horizon = false, true, 0
		s.add(r)
		s.add(e)
	}, "the export of"},
	{invariant.Revoked, "an export by an approval that was revoked", func(s *scene) {
		e := s.export()
		s.add(s.revoke("identity:/human/bob"))
		s.add(e)
	}, "the others are revoked"},
	{invariant.Attested, "an export in somebody else's session", wrongly(func(s *scene, e *state.SecretExported) { e.Actor.Session = s.approve(e.Change).Actor.Session }), "in session"},
	{invariant.Permitted, "an export ruled by another generation", wrongly(func(_ *scene, e *state.SecretExported) { e.Ruling.Generation-- }), "it was ruled by generation"},
	{invariant.Lifecycle, "an export for another bundle", func(s *scene) {
		e := s.export()
		s.bring("README.md", "another")
		e.Ruling = s.ruling()
		s.add(e)
	}, "another bundle"},
	{invariant.Lifecycle, "an export that was taken back", func(s *scene) {
		e := s.export()
		s.add(&state.ChangeRejected{Change: e.Change, Reason: "no", Actor: e.Actor, Ruling: e.Ruling})
		s.add(e)
	}, "is rejected"},
	{invariant.Recorded, "an export of a version that came since", func(s *scene) {
		e := s.export()
		w := s.write()
		w.Secret, w.Version, w.Retires, w.Until = "db/since", 1, 0, 0
		s.add(w)
		s.add(e)
	}, "its list is not that of the current versions"},
	{invariant.Permitted, "an export by a machine", wrongly(func(s *scene, e *state.SecretExported) { e.Actor = s.release().Actor }), "is not a person"},
}
