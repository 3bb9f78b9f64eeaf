package state

import (
	"fmt"
	"testing"

	"github.com/bailment/bailment/internal/policy"
)

const dayMillis = Millis(24 * 60 * 60 * 1000)

// waits is a change about destroying that waits for a day, before its approval.
func (f *feeder) waits(edit func(*ChangeProposed)) uint64 {
	f.t.Helper()
	e := &ChangeProposed{
		Action: "secret.destroy", Base: f.s.Bundle, Target: "db/w#1", Required: 1, Nonce: fmt.Sprint("n", f.s.Next), Expires: f.now + 3_600_000,
		Actor: Actor{Identity: "/human/alice"}, Delay: 86_400,
	}
	if edit != nil {
		edit(e)
	}
	return f.must(e)
}

func (f *feeder) approves(ch uint64, person string) error {
	return f.apply(&ChangeApproved{Change: ch, Nonce: fmt.Sprint("m", f.s.Next), Signature: Signature{Person: person}, Actor: Actor{Identity: "/human/" + person}})
}

// version is a retired version to destroy.
func (f *feeder) version() {
	f.t.Helper()
	f.must(&SecretWritten{Secret: "db/w", Version: 1, State: Staged, Digest: Digest{1}})
	f.must(&SecretMoved{Secret: "db/w", Version: 1, From: Staged, To: Retired})
}

func destroys(ch uint64) *SecretMoved {
	return &SecretMoved{Secret: "db/w", Version: 1, From: Retired, To: Destroyed, Change: ch}
}

// at moves the feeder's clock.
func (f *feeder) at(t Millis) *feeder {
	f.now = max(f.now, t)
	return f
}

func (f *feeder) refuses(ev Event, what string) {
	f.t.Helper()
	fork := *f
	fork.s = f.s.Fork()
	if err := fork.apply(ev); err == nil {
		f.t.Errorf("%s is a legal step", what)
	}
}

// A change that waits is done when it is due, for a week, under the bundle that it was made for, and by approvals that stand.
func TestWaiting(t *testing.T) {
	f := rolling(t)
	f.version()
	ch := f.waits(nil)
	f.refuses(destroys(ch), "without an approval")
	if err := f.approves(ch, "bob"); err != nil {
		t.Fatal(err)
	}
	c, _ := f.s.Changes.Get(ch)
	since := f.s.Time
	if c.StateAt(since) != Waiting || c.Due() != since+dayMillis || c.Ends() != since+8*dayMillis || f.s.Approvable(c, since) || f.s.Ripe(c, since+dayMillis-1) || !f.s.Ripe(c, since+dayMillis) || f.s.Ripe(c, since+8*dayMillis) {
		t.Errorf("%+v", c)
	}
	if c.StateAt(since+8*dayMillis-1) != Waiting || c.StateAt(since+8*dayMillis) != Expired {
		t.Error("it ends at another time")
	}
	f.refuses(destroys(ch), "too early")
	fork := *f
	fork.s = f.s.Fork()
	if err := fork.approves(ch, "carol"); err == nil {
		t.Error("a change that waits was approved once more")
	}
	fork.s = f.s.Fork()
	if err := fork.apply(&ChangeRejected{Change: ch}); err != nil {
		t.Error(err)
	}
	fork.at(since + dayMillis)
	fork.refuses(destroys(ch), "after its rejection")

	// Past what other changes are kept for, it is still there.
	f.at(since + 7*dayMillis)
	for range 20 {
		f.must(&DenialsSummed{Method: "session", Count: 1})
	}
	data := snapshotOf(t, f.s)
	again, err := Restore(data)
	if err != nil {
		t.Fatal(err)
	}
	if x, ok := again.Changes.Get(ch); !ok || x.Due() != c.Due() {
		t.Error("a snapshot forgets that it waits")
	}
	f.must(destroys(ch))
}

// With an approval that is revoked the wait is over; it begins anew with another one.
func TestWaitingAnew(t *testing.T) {
	f := rolling(t)
	f.version()
	ch := f.waits(nil)
	if err := f.approves(ch, "bob"); err != nil {
		t.Fatal(err)
	}
	first := f.s.Time
	f.must(&RevocationRecorded{Scope: "identity:/human/bob", Cutoff: true})
	f.at(first + 60_000)
	if err := f.approves(ch, "carol"); err != nil {
		t.Fatal(err)
	}
	second := f.s.Time
	f.at(first + dayMillis)
	if f.now >= second+dayMillis {
		t.Fatal("the moments are the same")
	}
	f.refuses(destroys(ch), "a day after the first approval")
	f.at(second + dayMillis)
	f.must(destroys(ch))
}

func TestWaitsFor(t *testing.T) {
	for _, seconds := range []int64{-1, maxDelaySeconds + 1, 1 << 60} {
		f := rolling(t)
		f.refuses(&ChangeProposed{Action: "secret.destroy", Required: 1, Nonce: "n", Expires: f.now + 3_600_000, Delay: seconds}, fmt.Sprint(seconds))
	}
	f := rolling(t)
	f.refuses(&ChangeProposed{Action: "bundle", Manifest: Digest{1}, Required: 1, Nonce: "n", Expires: f.now + 3_600_000, Delay: 60}, "a bundle that waits")
}

// The end is of this environment, says what it takes along, needs its change, and nothing follows it.
func TestEnded(t *testing.T) {
	f := rolling(t)
	f.version()
	target := EndTarget(f.s.Env.Name, f.s.Env.Genesis)
	values, keys := f.s.Left()
	change := func(action, target string) uint64 {
		ch := f.waits(func(e *ChangeProposed) { e.Action, e.Target, e.Delay = action, target, 0 })
		if err := f.approves(ch, "bob"); err != nil {
			t.Fatal(err)
		}
		return ch
	}
	ok := change(policy.ActDeleteEnvironment, target)
	end := func(edit func(*EnvironmentEnded)) *EnvironmentEnded {
		e := &EnvironmentEnded{Environment: f.s.Env.Name, Genesis: f.s.Env.Genesis, Change: ok, Values: values, Keys: append([]EndedKeys{}, keys...)}
		if edit != nil {
			edit(e)
		}
		return e
	}
	for name, edit := range map[string]func(*EnvironmentEnded){
		"another name":    func(e *EnvironmentEnded) { e.Environment = "x" },
		"another genesis": func(e *EnvironmentEnded) { e.Genesis[0]++ },
		"other values":    func(e *EnvironmentEnded) { e.Values++ },
		"other keys":      func(e *EnvironmentEnded) { e.Keys[0].Last++ },
		"fewer keys":      func(e *EnvironmentEnded) { e.Keys = e.Keys[1:] },
		"no change":       func(e *EnvironmentEnded) { e.Change = 0 },
		"another act":     func(e *EnvironmentEnded) { e.Change = change("secret.destroy", target) },
		"another target":  func(e *EnvironmentEnded) { e.Change = change(policy.ActDeleteEnvironment, target+"0") },
	} {
		f.refuses(end(edit), name)
	}
	open := f.waits(nil)
	at := f.must(end(nil))
	if f.s.Ended != at {
		t.Errorf("it ended with %d, not %d", f.s.Ended, at)
	}
	if c, _ := f.s.Changes.Get(open); c.State != Superseded {
		t.Errorf("an open change is %s", c.State)
	}
	if sec, _ := f.s.Secrets.Get("db/w"); sec.Versions[0].State != Destroyed || sec.Current != 0 {
		t.Errorf("%+v", sec)
	}
	again, err := Restore(snapshotOf(t, f.s))
	if err != nil || again.Ended != at {
		t.Errorf("a snapshot forgets it: %v", err)
	}
	for _, ev := range []Event{&DenialsSummed{Method: "session", Count: 1}, &StateRootSet{Index: at}, &ProtocolRaised{Version: 99}, end(nil)} {
		f.refuses(ev, ev.Kind().String()+" after the end")
	}
}
