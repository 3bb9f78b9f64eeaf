package verify

import (
	"bytes"
	"testing"
)

// FuzzReceipt: what parses has one text, and what verifies is the entry that the log has.
func FuzzReceipt(f *testing.F) {
	l := newLog(f, 9, nil)
	for i := range int64(9) {
		f.Add(l.text(f, 9, i))
	}
	f.Add([]byte("c2sp.org/tlog-proof@v1\nextra MDEyMzQ1Njc4OWFiY2RlZmE=\nindex 0\n\nx\n"))
	f.Add([]byte("c2sp.org/tlog-proof@v1\nindex 0\n\n"))
	v := l.verifier(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := ParseReceipt(text)
		if err != nil {
			return
		}
		again, err := FormatReceipt(*r)
		if err != nil || !bytes.Equal(again, text) {
			t.Fatalf("two texts for one receipt: %v\n%q\n%q", err, text, again)
		}
		if got, err := r.Verify(v); err == nil && !bytes.Equal(got.Body, l.bodies[got.Index]) {
			t.Fatalf("proved an entry that the log does not have: %+v", got)
		}
	})
}

// FuzzCheckpoint: what parses has one text, and what opens is a tree head that the log signed.
func FuzzCheckpoint(f *testing.F) {
	l := newLog(f, 9, nil)
	for n := range int64(10) {
		f.Add(l.signed(f, n))
		f.Add([]byte(l.checkpoint(f, n).Text()))
	}
	f.Add([]byte("a\n4611686018427387905\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"))
	v := l.verifier(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := ParseCheckpoint(string(b)); err == nil && c.Text() != string(b) {
			t.Fatalf("two texts for one checkpoint: %q %q", b, c.Text())
		}
		if o, err := OpenCheckpoint(b, v); err == nil && o.Checkpoint != l.checkpoint(t, o.Size) {
			t.Fatalf("opened what the log did not sign: %+v", o)
		}
	})
}

// FuzzMisbehaviour: an honest log is never found guilty, and what parses has one text.
func FuzzMisbehaviour(f *testing.F) {
	l, fork := newLog(f, 9, nil), newLog(f, 9, map[int]string{2: "x"})
	v := l.verifier(f)
	m, err := Compare(l.signed(f, 5), fork.signed(f, 9), fork, v)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.Format())
	honest := Misbehaviour{l.signed(f, 5), l.signed(f, 9), m.Prefix, m.Proof}
	f.Add(honest.Format())
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := ParseMisbehaviour(text)
		if err != nil {
			return
		}
		if !bytes.Equal(m.Format(), text) {
			t.Fatalf("two texts for one proof: %q", text)
		}
		if m.Verify(v) == nil && !bytes.Contains(text, fork.signed(t, 9)) {
			t.Fatalf("an honest log is accused: %q", text)
		}
	})
}

func BenchmarkFormatReceipt(b *testing.B) {
	r := newLog(b, 1000, nil).receipt(b, 1000, 500)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := FormatReceipt(r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyReceipt(b *testing.B) {
	l := newLog(b, 1000, nil)
	text, v := l.text(b, 1000, 500), l.verifier(b)
	b.ReportAllocs()
	for b.Loop() {
		r, err := ParseReceipt(text)
		if err == nil {
			_, err = r.Verify(v)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
