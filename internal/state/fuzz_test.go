package state

import (
	"bytes"
	"testing"
)

// FuzzDecode: whatever is read is written and read again as the same bytes, and applying it never panics.
func FuzzDecode(f *testing.F) {
	for _, typ := range Types {
		b, err := Encode(&Entry{Time: 1_700_000_000_000, Event: typ.New()})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"type":"session.closed","v":1,"time":"2026-01-02T03:04:05,678Z","body":{"session":1,"actor":{"identity":"/x"}}}`))
	f.Add([]byte(`{"type":"session.closed","v":2,"time":"2026-01-02T03:04:05.678Z","body":{}}`))
	f.Add([]byte(`{"type":"session.closed","v":1,"time":"2026-01-02T03:04:05.678Z","body":{"sessions":1}}`))
	f.Add([]byte(`{"type":"session.closed","v":1,"time":"2026-01-02T03:04:05.678Z"}`))
	f.Add([]byte(`{"type":"secret.moved","v":1,"time":"2026-01-02T03:04:05.678Z","body":{}} {}`))
	f.Add([]byte(``))
	full := newFeeder(f, 3)
	for range 200 {
		full.step()
	}
	full.must(&ProtocolRaised{Version: protocolRollout})
	ch := full.into(1)
	for _, ev := range []Event{ // what may come next
		full.moved(ch, 2), &RolloutEnded{Change: ch, Generation: full.s.Generation + 1, Cause: Cause{By: ByTrigger, Figure: &Figure{Named: []string{"/node/x/n0"}}}},
		&RolloutObserved{Change: ch, Compared: 2, Differences: []Difference{{Identity: "/node/x/n0", Secret: "db/a", Allowed: true, Count: 1}}},
		&RequestDenied{Action: "secret.read", Target: "db/a", Actor: Actor{Identity: "/node/x/n0"}, Beside: BesideAllowed, Ruling: Ruling{Cohort: CohortCanary}},
		&BundleInForce{Generation: full.s.Generation + 1, Manifest: rolloutCandidate, Previous: full.s.Bundle, Change: ch, How: ByRollout, Watch: full.now},
	} {
		b, err := Encode(&Entry{Time: full.now, Event: ev})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b)
		if err != nil {
			return
		}
		again, err := Encode(e)
		if err != nil {
			return // grown over the limit, by escapes
		}
		second, err := Decode(again)
		if err != nil {
			t.Fatalf("what was written can't be read: %v\n%s", err, again)
		}
		third, err := Encode(second)
		if err != nil || !bytes.Equal(again, third) {
			t.Fatalf("%v\n%s\n%s", err, again, third)
		}
		for _, s := range []*State{New(), full.s.Fork()} {
			if err := s.Apply(s.Next, b, nil); err != nil {
				continue
			}
			// What was applied from the bytes is what would be applied from the event.
			var x, y bytes.Buffer
			other := New()
			if s.Env.Name != "" && s.Next > 1 {
				other = full.s.Fork()
			}
			if err := other.Apply(other.Next, nil, second); err != nil {
				t.Fatal(err)
			}
			if s.Snapshot(&x) != nil || other.Snapshot(&y) != nil || !bytes.Equal(x.Bytes(), y.Bytes()) {
				t.Fatal("the event gives another state than its bytes")
			}
		}
	})
}

// FuzzRestore: whatever is restored can be applied to and written, without a panic.
func FuzzRestore(f *testing.F) {
	full := newFeeder(f, 5)
	for range 15 { // small: large seeds are minimised for long
		full.step()
	}
	var b bytes.Buffer
	if err := full.s.Snapshot(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(bytes.Replace(b.Bytes(), []byte(`"v":{"path"`), []byte(`"v":null,"x":{"path"`), 1))
	f.Add(bytes.Replace(b.Bytes(), []byte(`"versions":[{`), []byte(`"versions":[null,{`), 1))
	f.Add([]byte(`{"format":1}`))
	f.Add([]byte{})
	with := snapshotOf(f, later(f))
	f.Add(with)
	f.Add(bytes.Replace(with, []byte(`"rows":1}`), []byte(`"rows":0}`), 1))
	f.Add(bytes.Replace(with, []byte(`{"table":"gone"`), []byte(`{"table":"uses"`), 1))
	tail := newFeeder(f, 9)
	for range 20 {
		tail.step()
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Restore(data)
		if err != nil {
			return
		}
		var first, second bytes.Buffer
		if err := s.Snapshot(&first); err != nil {
			return // a time or number that has no text
		}
		again, err := Restore(first.Bytes())
		if err != nil {
			t.Fatalf("what was written can't be restored: %v", err)
		}
		if err := again.Snapshot(&second); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Fatal("a restored state is written differently", err)
		}
		for _, body := range tail.log[1:] {
			f := s.Fork()
			_ = f.Apply(f.Next, body, nil)
		}
		s.sweep(1 << 50)
	})
}

func TestRestoreRefuses(t *testing.T) {
	f := newFeeder(t, 5)
	for range 60 {
		f.step()
	}
	good := snapshotOf(t, f.s)
	if _, err := Restore(good); err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string][]byte{
		"nothing":            nil,
		"half":               good[:len(good)/2],
		"one byte less":      good[:len(good)-1],
		"something after":    append(bytes.Clone(good), 'x'),
		"another format":     bytes.Replace(good, []byte(`{"format":1`), []byte(`{"format":2`), 1),
		"a field too many":   bytes.Replace(good, []byte(`{"format":1`), []byte(`{"x":1,"format":1`), 1),
		"tables swapped":     bytes.Replace(good, []byte(`{"table":"leases"`), []byte(`{"table":"tokens"`), 1),
		"a row less":         bytes.Replace(good, []byte(`{"table":"secrets","rows":`), []byte(`{"table":"secrets","rows":1`), 1),
		"a key not hex":      bytes.Replace(good, []byte(`{"k":"`), []byte(`{"k":"zz`), 1),
		"a row's extra":      bytes.Replace(good, []byte(`"v":{"path"`), []byte(`"v":{"pat":1,"path"`), 1),
		"a value that is no": bytes.Replace(good, []byte(`"v":{"path":`), []byte(`"v":null,"w":{"path":`), 1),
		"a version is none":  bytes.Replace(good, []byte(`"versions":[{`), []byte(`"versions":[null,{`), 1),
	} {
		if bytes.Equal(bad, good) {
			t.Errorf("%s: the case changes nothing", what)
		}
		if _, err := Restore(bad); err == nil {
			t.Errorf("%s was restored", what)
		}
	}
	short := New()
	short.queue.set("short", struct{}{})
	if _, err := Restore(snapshotOf(t, short)); err == nil {
		t.Error("a queue row without a time was restored")
	}
	short = New()
	short.enqueue(1, qLease, "abc")
	if _, err := Restore(snapshotOf(t, short)); err == nil {
		t.Error("a queue row without an index was restored")
	}
	null := bytes.Replace(snapshotOf(t, New()), []byte("{\"table\":\"tokens\",\"rows\":0}\n"), []byte("{\"table\":\"tokens\",\"rows\":1}\n{\"k\":\"61\",\"v\":null}\n"), 1)
	if _, err := Restore(null); err == nil {
		t.Error("a row without a value was restored")
	}
}
