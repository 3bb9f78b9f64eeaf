package audit_test

import (
	"bytes"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/sshsig"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// A recovery is what its signers signed, about the bundle in force, or the ledger does not verify.
func TestForgedRecoveries(t *testing.T) {
	w := controltest.New(t, controltest.HistoryOptions)
	controltest.History(w)
	sign := func(person, text string) state.Signature {
		return state.Signature{
			Person: person, Key: sshsig.Fingerprint(w.Persons[person].PublicKey()), SSHSIG: w.Sign(person, ceremony.NamespaceRecovery, text),
		}
	}
	dir := w.Dir
	w.Close()
	whole := load(t, dir+"/data")
	// The one that was carried out, by sam and tess.
	at := index(t, whole, func(e *state.RecoveryStarted) bool {
		return e.Signatures[0].Person == "sam" && e.Signatures[1].Person == "tess"
	})
	withdrawn := index(t, whole, func(*state.RecoveryWithdrawn) bool { return true })
	carried := index(t, whole, func(e *state.BundleInForce) bool { return e.How == state.ByRecovery })
	// edit has the forged text signed by those who may: what is wrong is then in what it says.
	edit := func(change func(*ceremony.Recovery)) func(*state.Entry) {
		return func(x *state.Entry) {
			e := x.Event.(*state.RecoveryStarted)
			r, err := ceremony.ParseRecovery(e.Text)
			if err != nil {
				t.Fatal(err)
			}
			change(&r)
			e.Text = r.Text()
			e.Signatures = []state.Signature{sign("sam", e.Text), sign("tess", e.Text)}
		}
	}
	other := func(name string) func(*state.Entry) {
		return func(x *state.Entry) {
			e := x.Event.(*state.RecoveryStarted)
			e.Signatures[1] = sign(name, e.Text)
		}
	}
	for name, c := range map[string]struct {
		at    int
		forge func(*state.Entry)
		says  string
	}{
		"unsigned": {at, func(x *state.Entry) { x.Event.(*state.RecoveryStarted).Signatures[1].SSHSIG = "x" }, "the signature of tess"},
		"another text": {at, func(x *state.Entry) {
			e := x.Event.(*state.RecoveryStarted)
			e.Text = strings.Replace(e.Text, `reason "test"`, `reason "best"`, 1)
		}, "the signature of sam"},
		"another key": {at, func(x *state.Entry) { x.Event.(*state.RecoveryStarted).Signatures[0].Key = "SHA256:x" }, "another key"},
		"an operator": {at, other("alice"), "the signature of alice"},
		"too few":     {at, func(x *state.Entry) { e := x.Event.(*state.RecoveryStarted); e.Signatures = e.Signatures[:1] }, "it has 1 signatures"},
		"fewer asked for": {at, func(x *state.Entry) {
			edit(func(r *ceremony.Recovery) { r.Required = 1 })(x)
			e := x.Event.(*state.RecoveryStarted)
			e.Signatures = e.Signatures[:1]
		}, "asks for 2"},
		"another environment": {at, edit(func(r *ceremony.Recovery) { r.Environment = "elsewhere" }), "not of this environment"},
		"another genesis":     {at, edit(func(r *ceremony.Recovery) { r.Genesis[0]++ }), "not of this environment"},
		"another base":        {at, edit(func(r *ceremony.Recovery) { r.Base = state.Digest{1}.String() }), "not in force"},
		"a shorter delay": {at, func(x *state.Entry) {
			edit(func(r *ceremony.Recovery) { r.Delay = time.Minute })(x)
			x.Event.(*state.RecoveryStarted).Until = x.Time.Add(time.Minute)
		}, "asks for 1h0m0s"},
		"less than its delay":  {at, func(x *state.Entry) { x.Event.(*state.RecoveryStarted).Until = x.Time + 1 }, "its delay is not over"},
		"expired":              {at, edit(func(r *ceremony.Recovery) { r.Expires = r.Expires.Add(-48 * time.Hour) }), "it could begin until"},
		"other operators":      {at, edit(func(r *ceremony.Recovery) { r.Operators = state.Digest{1}.String() }), "its bundle has"},
		"others before":        {at, edit(func(r *ceremony.Recovery) { r.Before = r.Before[1:] }), "the operators in force are others"},
		"others after":         {at, edit(func(r *ceremony.Recovery) { r.After = r.After[1:] }), "the operators after it are others"},
		"another ruling":       {at, func(x *state.Entry) { x.Event.(*state.RecoveryStarted).Ruling.Generation++ }, "governed it"},
		"no recovery":          {at, func(x *state.Entry) { x.Event.(*state.RecoveryStarted).Text = "bailment change v2\n" }, "not the text of a recovery"},
		"withdrawn by nobody":  {withdrawn, func(x *state.Entry) { x.Event.(*state.RecoveryWithdrawn).Signature.SSHSIG = "x" }, "the signature of sam"},
		"withdrawn by another": {withdrawn, func(x *state.Entry) { e := x.Event.(*state.RecoveryWithdrawn); e.Signature = sign("rita", e.Text) }, "not about this recovery and person"},
		"another is withdrawn": {withdrawn, func(x *state.Entry) { x.Event.(*state.RecoveryWithdrawn).Recovery++ }, "not about this recovery and person"},
		"what withdraws another": {withdrawn, func(x *state.Entry) {
			e := x.Event.(*state.RecoveryWithdrawn)
			text, err := ceremony.ParseWithdrawal(e.Text)
			if err != nil {
				t.Fatal(err)
			}
			text.New = state.Digest{1}.String()
			e.Text = text.Text()
			e.Signature = sign("sam", e.Text)
		}, "not about this recovery and person"},
		"carried out early":   {carried, func(x *state.Entry) { x.Time -= 90 * 60 * 1000 }, "waits until"},
		"another bundle":      {carried, func(x *state.Entry) { x.Event.(*state.BundleInForce).Manifest = state.Digest{1} }, "is missing or damaged"},
		"of another recovery": {carried, func(x *state.Entry) { x.Event.(*state.BundleInForce).Recovery++ }, "was not under way"},
	} {
		m := whole.clone()
		m.checkpoint, m.snapshots = nil, nil
		m.change(t, c.at, c.forge)
		_, err := run(m, audit.Options{})
		var fault *audit.Fault
		if !errors.As(err, &fault) || fault.Index != uint64(c.at) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whoever holds all recovery keys, and the server, brings nothing into force beside other operators.
func TestRecoveryOfMoreThanOperators(t *testing.T) {
	w := controltest.New(t, controltest.HistoryOptions)
	controltest.History(w)
	dir := w.Dir
	w.Close()
	whole := load(t, dir+"/data")
	at := index(t, whole, func(e *state.RecoveryStarted) bool {
		return e.Signatures[0].Person == "sam" && e.Signatures[1].Person == "tess"
	})
	for name, change := range map[string]func(policy.Files){
		"a grant more":    func(f policy.Files) { f["grants/more.yaml"] = f["grants/all.yaml"] },
		"a grant less":    func(f policy.Files) { delete(f, "grants/all.yaml") },
		"other settings":  func(f policy.Files) { f["environment.yaml"] = append(bytes.Clone(f["environment.yaml"]), '\n') },
		"no operators":    func(f policy.Files) { delete(f, "operators.yaml") },
		"two such files":  func(f policy.Files) { f["operators.yml"] = f["operators.yaml"] },
		"another version": func(policy.Files) {},
	} {
		m := whole.clone()
		m.checkpoint, m.snapshots = nil, nil
		m.blobs = maps.Clone(m.blobs)
		m.change(t, at, func(x *state.Entry) {
			e := x.Event.(*state.RecoveryStarted)
			r, err := ceremony.ParseRecovery(e.Text)
			if err != nil {
				t.Fatal(err)
			}
			d, err := state.ParseDigest(r.New)
			if err != nil {
				t.Fatal(err)
			}
			honest, err := policy.ParseManifest(m.blobs[store.Digest(d)])
			if err != nil {
				t.Fatal(err)
			}
			files, err := honest.Fetch(func(d policy.Digest) ([]byte, error) { return m.blobs[store.Digest(d)], nil })
			if err != nil {
				t.Fatal(err)
			}
			change(files)
			h := honest.Header()
			if name == "another version" {
				h.Version++
			}
			forged, err := policy.BuildManifest(files, h)
			if err != nil {
				t.Fatal(err)
			}
			m.blobs[store.Digest(forged.Digest())] = forged.Text()
			for _, data := range files {
				m.blobs[store.Digest(policy.OperatorsDigest(data))] = data
			}
			r.New = forged.Digest().String()
			e.Text = r.Text()
			for i, p := range []string{"sam", "tess"} {
				e.Signatures[i].SSHSIG = w.Sign(p, ceremony.NamespaceRecovery, e.Text)
			}
		})
		_, err := run(m, audit.Options{})
		var fault *audit.Fault
		if !errors.As(err, &fault) || fault.Index != uint64(at) {
			t.Errorf("%s: %v", name, err)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}
