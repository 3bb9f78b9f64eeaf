package state

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

const exportRecipient = "age1x39257svttrkalynw3jn574zvncf0yf40dds8wlz880rcj66raeqqawjjm"

// FuzzExportTarget: what is read is written as it was, and names secrets that there can be.
func FuzzExportTarget(f *testing.F) {
	for _, pattern := range []string{"*", "db/*", "db/x", "a.b-c_d/E/*", "", "/*", "db/**", "db//x", "*/*", "db/*@x", strings.Repeat("a/", 127) + "*", strings.Repeat("a", 300)} {
		f.Add(ExportTarget(pattern, exportRecipient))
	}
	for _, to := range []string{"", "age1", exportRecipient[:61], exportRecipient + "q", strings.ToUpper(exportRecipient), exportRecipient[:61] + "b", exportRecipient + "@" + exportRecipient} {
		f.Add(ExportTarget("db/*", to))
	}
	f.Fuzz(func(t *testing.T, target string) {
		secrets, recipient, ok := ParseExportTarget(target)
		if !ok {
			return
		}
		if again := ExportTarget(secrets.String(), recipient); again != target {
			t.Fatalf("%q is written as %q", target, again)
		}
		if len(target) > identity.MaxSecretPath+2+1+62 || strings.Count(target, "@") != 1 || strings.ToLower(recipient) != recipient {
			t.Fatalf("%q is taken", target)
		}
		if path, exact := secrets.Exact(); exact {
			if _, err := identity.ParseSecretPath(path); err != nil || !secrets.Match(path) {
				t.Fatalf("%q is of no secret: %v", target, err)
			}
		} else if prefix, subtree := secrets.Prefix(); !subtree || secrets.Match(prefix) || prefix != "" && !secrets.Match(prefix+"/x") {
			t.Fatalf("%q is of %q", target, prefix)
		}
	})
}

// exporting is a feeder with secrets, and an export of db/* that is approved, and the entry that follows.
func exporting(t testing.TB, edit func(*ChangeProposed)) (*feeder, *SecretExported) {
	t.Helper()
	f := rolling(t)
	for _, path := range []string{"d", "db", "db/a", "db/b/c", "db/b-c", "db.x", "dc/a"} {
		f.must(&SecretWritten{Secret: path, Version: 1, State: Current, Digest: Digest{byte(len(path))}})
	}
	f.must(&SecretWritten{Secret: "db/staged", Version: 1, State: Staged, Digest: Digest{7}})
	f.must(&SecretWritten{Secret: "db/retired", Version: 1, State: Staged, Digest: Digest{8}})
	f.must(&SecretMoved{Secret: "db/retired", Version: 1, From: Staged, To: Retired})
	p := &ChangeProposed{
		Action: policy.ActExport, Base: f.s.Bundle, Target: ExportTarget("db/*", exportRecipient), Required: 1, Nonce: "export", Expires: f.now + 3_600_000,
		Actor: Actor{Identity: "/human/alice"},
	}
	if edit != nil {
		edit(p)
	}
	ch := f.must(p)
	if err := f.approves(ch, "bob"); err != nil {
		t.Fatal(err)
	}
	all := []ExportedVersion{{"db/a", 1, Digest{4}}, {"db/b-c", 1, Digest{6}}, {"db/b/c", 1, Digest{6}}}
	return f, &SecretExported{
		Change: ch, Secrets: "db/*", Recipient: exportRecipient, Count: 3, Versions: all, List: ExportList(all), File: Digest{1}, Bytes: 1,
		Actor: Actor{Identity: "/human/alice"},
	}
}

// An export is a legal step by its change only: approved, waiting, of the bundle in force, to who proposed it, of all that is current and nothing else.
func TestExported(t *testing.T) {
	for name, edit := range map[string]func(f *feeder, e *SecretExported){
		"no change":          func(_ *feeder, e *SecretExported) { e.Change = 0 },
		"another change":     func(_ *feeder, e *SecretExported) { e.Change++ },
		"other secrets":      func(_ *feeder, e *SecretExported) { e.Secrets = "*" },
		"fewer secrets":      func(_ *feeder, e *SecretExported) { e.Secrets = "db/a" },
		"no pattern":         func(_ *feeder, e *SecretExported) { e.Secrets = "db/**" },
		"another recipient":  func(_ *feeder, e *SecretExported) { e.Recipient = e.Recipient[:61] + "q" },
		"no recipient":       func(_ *feeder, e *SecretExported) { e.Recipient = "" },
		"to an approver":     func(_ *feeder, e *SecretExported) { e.Actor.Identity = "/human/bob" },
		"to nobody":          func(_ *feeder, e *SecretExported) { e.Actor.Identity = "" },
		"one too many":       func(_ *feeder, e *SecretExported) { e.Count++ },
		"one too few":        func(_ *feeder, e *SecretExported) { e.Count-- },
		"none":               func(_ *feeder, e *SecretExported) { e.Count, e.Versions, e.List = 0, nil, ExportList(nil) },
		"no list":            func(_ *feeder, e *SecretExported) { e.List = Digest{} },
		"named too few":      func(_ *feeder, e *SecretExported) { e.Versions = e.Versions[:2] },
		"named twice":        func(_ *feeder, e *SecretExported) { e.Versions[1] = e.Versions[0] },
		"in another order":   func(_ *feeder, e *SecretExported) { slices.Reverse(e.Versions); e.List = ExportList(e.Versions) },
		"another version":    func(_ *feeder, e *SecretExported) { e.Versions[0].Version++; e.List = ExportList(e.Versions) },
		"another ciphertext": func(_ *feeder, e *SecretExported) { e.Versions[0].Digest[0]++; e.List = ExportList(e.Versions) },
		"no bytes":           func(_ *feeder, e *SecretExported) { e.Bytes = 0 },
		"less than no bytes": func(_ *feeder, e *SecretExported) { e.Bytes = -1 },
		"a version since": func(f *feeder, _ *SecretExported) {
			f.must(&SecretWritten{Secret: "db/new", Version: 1, State: Current, Digest: Digest{9}})
		},
		"a version less": func(f *feeder, _ *SecretExported) {
			f.must(&SecretMoved{Secret: "db/a", Version: 1, From: Current, To: Retired})
		},
		"a bundle since": func(f *feeder, _ *SecretExported) { f.s = f.s.Fork(); f.s.Bundle = Digest{77} },
		"its day over":   func(f *feeder, _ *SecretExported) { f.at(f.s.Time + dayMillis) },
		"rejected":       func(f *feeder, e *SecretExported) { f.must(&ChangeRejected{Change: e.Change}) },
		"its approver cut off": func(f *feeder, _ *SecretExported) {
			f.must(&RevocationRecorded{Scope: "identity:/human/bob", Cutoff: true})
		},
		"its proposer cut off": func(f *feeder, _ *SecretExported) {
			f.must(&RevocationRecorded{Scope: "identity:/human/alice", Cutoff: true})
		},
		"its approver held": func(f *feeder, _ *SecretExported) {
			f.must(&RevocationRecorded{Scope: "identity:/human/bob", Hold: true})
		},
	} {
		f, e := exporting(t, nil)
		edit(f, e)
		f.refuses(e, name)
	}
	for name, edit := range map[string]func(*ChangeProposed){
		"another act":         func(p *ChangeProposed) { p.Action = policy.ActForget },
		"a change that waits": func(p *ChangeProposed) { p.Delay = 60 },
		"too few approvals":   func(p *ChangeProposed) { p.Required = 2 },
		"another target":      func(p *ChangeProposed) { p.Target = ExportTarget("dc/*", exportRecipient) },
		"by somebody else":    func(p *ChangeProposed) { p.Actor.Identity = "/human/carol" },
	} {
		f, e := exporting(t, edit)
		f.refuses(e, name)
	}

	f, e := exporting(t, nil)
	ch, _ := f.s.Changes.Get(e.Change)
	since := f.s.Time
	if ch.StateAt(since) != Waiting || ch.Due() != since || ch.Ends() != since+dayMillis || !f.s.Ripe(ch, since) || f.s.Approvable(ch, since) {
		t.Errorf("%+v", ch)
	}
	last := *f
	last.s = f.s.Fork()
	last.at(since + dayMillis - 1).must(e) // within its day, and later than changes of its sort are open for approvals
	f.must(e)
	f.refuses(e, "an export twice")
	if ch, _ := f.s.Changes.Get(e.Change); ch.StateAt(f.now) != Done || len(slices.Collect(leases(f.s))) != 0 {
		t.Errorf("%+v", ch)
	}
	again, err := Restore(snapshotOf(t, f.s))
	if err != nil {
		t.Fatal(err)
	}
	if x, ok := again.Changes.Get(e.Change); !ok || x.State != Done {
		t.Error("a snapshot forgets that it left")
	}
}

func leases(s *State) func(func(uint64) bool) {
	return func(yield func(uint64) bool) { s.Leases.All(func(i uint64, _ *Lease) bool { return yield(i) }) }
}

// The patterns' answers, by whole segments; of too many one more than there may be.
func TestExportable(t *testing.T) {
	f, _ := exporting(t, nil)
	for pattern, want := range map[string]string{
		"*": "d db db.x db/a db/b-c db/b/c dc/a", "db/*": "db/a db/b-c db/b/c", "db": "db", "db/a": "db/a", "db/b/*": "db/b/c", "db/a/*": "", "none": "", "db/staged": "", "db/retired": "",
		"D/*": "",
	} {
		p, err := identity.ParseSecretPattern(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all, versions := f.s.Exportable(p, f.now)
		var got []string
		for i, v := range all {
			if versions[i].Number != v.Version || versions[i].Digest != v.Digest {
				t.Errorf("%s is %+v and %+v", v.Secret, v, versions[i])
			}
			got = append(got, v.Secret)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s has %q, want %q", pattern, got, want)
		}
	}
	for i := range MaxExported + 5 {
		f.must(&SecretWritten{Secret: fmt.Sprintf("many/%04d", i), Version: 1, State: Current, Digest: Digest{1}})
	}
	p, err := identity.ParseSecretPattern("many/*")
	if err != nil {
		t.Fatal(err)
	}
	if all, _ := f.s.Exportable(p, f.now); len(all) != MaxExported+1 {
		t.Errorf("it lists %d", len(all))
	}
}

// An entry fits, however long its names are.
func TestExportedFits(t *testing.T) {
	for _, n := range []int{1, 10, 64, identity.MaxSecretPath} {
		path := strings.Repeat("x", n)
		if n > 128 {
			path = strings.Repeat("x", 127) + "/" + strings.Repeat("x", n-128)
		}
		all := make([]ExportedVersion, MaxExported)
		for i := range all {
			all[i] = ExportedVersion{path, 1<<64 - 1, Digest{0xff}}
		}
		e := &SecretExported{
			Change: 1<<64 - 1, Secrets: path[:max(0, n-2)] + "/*", Recipient: exportRecipient, Count: MaxExported, Versions: ExportNamed(all), Bytes: 1 << 30,
			Actor: Actor{Identity: strings.Repeat("x", 300), Session: 1<<64 - 1}, Ruling: Ruling{Generation: 1<<64 - 1, Grant: strings.Repeat("x", 100), Cohort: CohortCanary},
		}
		body, err := Encode(&Entry{Time: 1_700_000_000_000, Event: e})
		if err != nil || len(body) > MaxBody || len(e.Versions) < 50 {
			t.Errorf("%d names of %d bytes are %d bytes: %v", len(e.Versions), n, len(body), err)
		}
	}
}
