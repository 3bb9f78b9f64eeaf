package state

import (
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/bailment/bailment/internal/policy"
)

// The keys move from where they are to what an approved change names, all of them; and no change that was about where they were before does
// it again.
func TestCustodyMoved(t *testing.T) {
	f := rolling(t)
	change := func(action, target string, approvals int) uint64 {
		ch := f.waits(func(e *ChangeProposed) { e.Action, e.Target, e.Delay = action, target, 0 })
		for i := range approvals {
			if err := f.approves(ch, fmt.Sprint("bob", i)); err != nil {
				t.Fatal(err)
			}
		}
		return ch
	}
	holder := func(id string) RootHolder { return RootHolder{Kind: "tpm", ID: id} }
	ok := change(policy.ActMoveCustody, "tpm:b", 1)
	move := func(edit func(*CustodyMoved)) *CustodyMoved {
		e := &CustodyMoved{From: holder("a"), To: holder("b"), Keys: f.s.KEKs(), Digest: Digest{1}, Change: ok}
		if edit != nil {
			edit(e)
		}
		return e
	}
	for name, edit := range map[string]func(*CustodyMoved){
		"to the same":       func(e *CustodyMoved) { e.From = e.To },
		"from nowhere":      func(e *CustodyMoved) { e.From = RootHolder{} },
		"to nowhere":        func(e *CustodyMoved) { e.To = RootHolder{} },
		"a key is left":     func(e *CustodyMoved) { e.Keys-- },
		"a key too many":    func(e *CustodyMoved) { e.Keys++ },
		"without a digest":  func(e *CustodyMoved) { e.Digest = Digest{} },
		"no change":         func(e *CustodyMoved) { e.Change = 0 },
		"another act":       func(e *CustodyMoved) { e.Change = change("secret.destroy", "tpm:b", 1) },
		"another target":    func(e *CustodyMoved) { e.Change = change(policy.ActMoveCustody, "tpm:c", 1) },
		"without approvals": func(e *CustodyMoved) { e.Change = change(policy.ActMoveCustody, "tpm:b", 0) },
	} {
		f.refuses(move(edit), name)
	}
	spare, open, other := change(policy.ActMoveCustody, "tpm:b", 1), change(policy.ActMoveCustody, "tpm:b", 0), change("secret.destroy", "db/w#1", 0)
	at := f.must(move(nil))
	if c := f.s.Custody; c.Moved != at || c.Holder != "tpm:b" || c.Keys != f.s.KEKs() || c.Digest != (Digest{1}) {
		t.Errorf("%+v", c)
	}
	for ch, want := range map[uint64]ChangeState{ok: Done, spare: Superseded, open: Superseded, other: Proposed} {
		if c, _ := f.s.Changes.Get(ch); c.State != want {
			t.Errorf("change %d is %s, not %s", ch, c.State, want)
		}
	}
	again, err := Restore(snapshotOf(t, f.s))
	if err != nil || again.Custody != f.s.Custody {
		t.Errorf("a snapshot forgets it: %v", err)
	}
	back := change(policy.ActMoveCustody, "tpm:a", 1)
	f.refuses(move(func(e *CustodyMoved) { e.To, e.Change = holder("a"), back }), "from where they are not")
	f.must(move(func(e *CustodyMoved) { e.From, e.To, e.Change = holder("b"), holder("a"), back }))
	for name, ch := range map[string]uint64{"done": ok, "of before": spare} {
		f.refuses(move(func(e *CustodyMoved) { e.Change = ch }), name)
	}
	if err := f.approves(open, "bob"); err == nil {
		t.Error("a change of before was approved")
	}
	f.s.Env.Class = "production"
	last := change(policy.ActMoveCustody, "tpm:c", 1)
	e := &CustodyMoved{From: holder("a"), To: holder("c"), Keys: f.s.KEKs(), Digest: Digest{1}, Change: last}
	e.To.DevelopmentOnly = true
	f.refuses(e, "a root key for development, in production")
	e.To.DevelopmentOnly = false
	f.must(e)
}

// The digest of what was moved is part of the format: computed here by its description, with another program.
func TestMovedDigest(t *testing.T) {
	const want = "ceec46a08eb18f2e990813b380fca208d5402d9de84989d2d46fc7a77715927f"
	got := MovedDigest(func(yield func(string, []byte) bool) {
		_ = yield("kek/1", []byte("one")) && yield("kek/2", nil)
	})
	if hex.EncodeToString(got[:]) != want {
		t.Errorf("%x", got)
	}
}
