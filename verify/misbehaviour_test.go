package verify

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

func TestCompare(t *testing.T) {
	l, fork := newLog(t, 20, nil), newLog(t, 20, map[int]string{6: "rewritten"})
	v := l.verifier(t)
	// A log that keeps its past is never accused, for any pair of sizes.
	for older := range int64(20) {
		for newer := older; newer <= 20; newer++ {
			if m, err := Compare(l.signed(t, older), l.signed(t, newer), l, v); m != nil || err != nil {
				t.Fatalf("%d to %d: %v %v", older, newer, m, err)
			}
		}
	}
	// One that rewrote entry 6 is, by every pair of checkpoints that covers it.
	for older := int64(7); older <= 20; older++ {
		for newer := older; newer <= 20; newer++ {
			m, err := Compare(l.signed(t, older), fork.signed(t, newer), fork, v)
			if err != nil || m == nil {
				t.Fatalf("%d to %d: not found: %v", older, newer, err)
			}
			again, err := ParseMisbehaviour(m.Format())
			if err != nil || !bytes.Equal(again.Format(), m.Format()) {
				t.Fatal(err)
			}
			if err := again.Verify(v); err != nil {
				t.Fatalf("%d to %d: %v", older, newer, err)
			}
		}
	}
	// Before the change the two are the same log.
	if m, err := Compare(l.signed(t, 6), fork.signed(t, 20), fork, v); m != nil || err != nil {
		t.Errorf("%v %v", m, err)
	}
	// Hashes that aren't the newer tree's accuse nobody.
	if m, err := Compare(l.signed(t, 9), l.signed(t, 20), fork, v); m != nil || !errors.Is(err, ErrProof) {
		t.Errorf("%v %v", m, err)
	}
	if m, err := Compare(l.signed(t, 20), l.signed(t, 9), l, v); m != nil || !errors.Is(err, ErrInconsistent) {
		t.Errorf("the wrong way round: %v %v", m, err)
	}
	if m, err := Compare(l.signed(t, 5), l.signed(t, 9), newLog(t, 2, nil), v); m != nil || err == nil {
		t.Errorf("hashes missing: %v %v", m, err)
	}
	if m, err := Compare(l.signed(t, 5), l.signed(t, 9), l); m != nil || !errors.Is(err, ErrSignature) {
		t.Errorf("without keys: %v %v", m, err)
	}
}

// Nobody can accuse an honest log, whatever is put together.
func TestMisbehaviourCannotBeForged(t *testing.T) {
	l, fork := newLog(t, 20, nil), newLog(t, 20, map[int]string{6: "rewritten"})
	v := l.verifier(t)
	stranger, _ := newKey(t, testOrigin, 7)
	elsewhere, elsewhereKey := newKey(t, "bailment/prod/0123456789abcdef/2", 1)
	ev, err := ParseVerifier(elsewhereKey)
	if err != nil {
		t.Fatal(err)
	}
	real, err := Compare(l.signed(t, 9), fork.signed(t, 20), fork, v)
	if err != nil {
		t.Fatal(err)
	}
	nextEpoch := fork.checkpoint(t, 20)
	nextEpoch.Origin = elsewhere.Name()
	proof, _ := tlog.ProveTree(20, 9, l)
	for name, m := range map[string]Misbehaviour{
		"honest, other prefix": {l.signed(t, 9), l.signed(t, 20), tlog.Hash{1}, proof},
		"honest, same prefix":  {l.signed(t, 9), l.signed(t, 20), l.checkpoint(t, 9).Root, proof},
		"honest, one size":     {l.signed(t, 9), l.signed(t, 9), l.checkpoint(t, 9).Root, nil},
		"honest, made up":      {l.signed(t, 9), l.signed(t, 9), tlog.Hash{1}, nil},
		"empty":                {l.signed(t, 0), l.signed(t, 9), tlog.Hash{1}, nil},
		"backwards":            {real.Newer, real.Older, real.Prefix, real.Proof},
		"foreign key":          {real.Older, sign(t, fork.checkpoint(t, 20).Text(), stranger), real.Prefix, real.Proof},
		"another epoch":        {real.Older, sign(t, nextEpoch.Text(), elsewhere), real.Prefix, real.Proof},
		"proof cut":            {real.Older, real.Newer, real.Prefix, real.Proof[1:]},
		"nothing":              {},
	} {
		if m.Verify(v, ev) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	text := real.Format()
	for i := range text {
		bad := bytes.Clone(text)
		bad[i] ^= 1
		if m, err := ParseMisbehaviour(bad); err == nil && m.Verify(v) == nil {
			t.Errorf("byte %d (%q) can be changed", i, text[i])
		}
		if _, err := ParseMisbehaviour(text[:i]); err == nil {
			t.Errorf("parsed when cut at %d", i)
		}
	}
	if _, err := ParseMisbehaviour(append(bytes.Clone(text), 'x')); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
	if _, err := ParseMisbehaviour(make([]byte, MaxMisbehaviour+1)); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
}
