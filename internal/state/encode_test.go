package state

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/bailment/bailment/internal/problem"
)

// The short way gives the same bytes as encoding/json, whatever the text is.
func TestReleaseEncodesLikeJSON(t *testing.T) {
	text := rapid.OneOf(rapid.StringMatching(`[a-z/.:-]{0,20}`), rapid.String(), rapid.SampledFrom([]string{"", "\ufffd", `\ufffd`, "<&>\"\\\u2028\x7f\x00", "\xff"}))
	moment := rapid.OneOf(rapid.Just(Millis(0)), rapid.Map(rapid.Int64Range(-1e12, 300_000_000_000_000), func(n int64) Millis { return Millis(n) }))
	rapid.Check(t, func(t *rapid.T) {
		digest := func(label string) (d Digest) {
			copy(d[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, label))
			return d
		}
		e := &SecretReleased{
			Secret: text.Draw(t, "secret"), Version: rapid.Uint64().Draw(t, "version"), Digest: digest("digest"), Purpose: text.Draw(t, "purpose"),
			Assurance: text.Draw(t, "assurance"), Lease: rapid.Uint64Range(0, 3).Draw(t, "lease"), Expires: moment.Draw(t, "expires"), Max: moment.Draw(t, "max"),
			Anchor: text.Draw(t, "anchor"), Root: rapid.Uint64Range(0, 3).Draw(t, "root"),
			Actor:  Actor{Identity: text.Draw(t, "identity"), Node: text.Draw(t, "node"), Session: rapid.Uint64Range(0, 2).Draw(t, "session")},
			Ruling: Ruling{Generation: rapid.Uint64().Draw(t, "generation"), Bundle: digest("bundle"), Grant: text.Draw(t, "grant"), Evaluator: rapid.Int().Draw(t, "evaluator")},
		}
		if rapid.Bool().Draw(t, "idem") {
			e.Idem = &IdemKey{Key: text.Draw(t, "key"), Request: digest("request"), First: rapid.Uint64Range(0, 2).Draw(t, "first")}
		}
		want, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(e.append(nil)); got != string(want) {
			t.Fatalf("got  %s\nwant %s", got, want)
		}
	})
}

// What Encode lets through, Decode reads as the same; what would come back as something else is refused.
func TestEncodeRefusesWhatIsNotUTF8(t *testing.T) {
	for text, ok := range map[string]bool{"plain": true, "\ufffd": true, `\ufffd`: true, `\\ufffd`: true, "\xff": false, "\\\xff": false, `\ufffd` + "\xff": false} {
		for _, ev := range []Event{&SecretReleased{Secret: text}, &RequestDenied{Target: text, Reason: "x"}} {
			b, err := Encode(&Entry{Time: 1, Event: ev})
			if !ok {
				if !problem.Is(err, problem.ReasonInvalid) {
					t.Errorf("%q: %v", text, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%q: %v", text, err)
			} else if _, err := Decode(b); err != nil {
				t.Errorf("%q: %v: %s", text, err, b)
			}
		}
	}
}

// An entry has one form: what means the same to some readers and something else to others is not read at all.
func TestDecodeTakesOneForm(t *testing.T) {
	b, err := Encode(&Entry{Time: 1, Event: &LeaseReturned{Lease: 7, Actor: Actor{Identity: "/node/a"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b); err != nil {
		t.Fatal(err)
	}
	good := string(b)
	for name, bad := range map[string]string{
		"a key twice":            strings.Replace(good, `"lease":7`, `"lease":8,"lease":7`, 1),
		"a key in other case":    strings.Replace(good, `"lease"`, `"Lease"`, 1),
		"null":                   good[:strings.Index(good, `"body":`)] + `"body":null}`,
		"a space":                strings.Replace(good, `,`, `, `, 1),
		"an escape":              strings.Replace(good, `/node/a`, `/node/\u0061`, 1),
		"another order":          strings.Replace(good, `"type":"lease.returned","v":1`, `"v":1,"type":"lease.returned"`, 1),
		"a zero that is omitted": strings.Replace(good, `{"identity":"/node/a"}`, `{"identity":"/node/a","session":0}`, 1),
	} {
		if bad == good {
			t.Fatalf("%s: nothing was planted", name)
		}
		if _, err := Decode([]byte(bad)); !problem.Is(err, problem.ReasonTampered) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func BenchmarkEncodeRelease(b *testing.B) {
	e := &Entry{Time: 1_790_000_000_000, Event: &SecretReleased{
		Secret: "db/password", Version: 3, Purpose: "runtime", Assurance: "token", Lease: 99, Expires: 1_790_000_060_000, Root: 7,
		Actor: Actor{Identity: "/workload/api", Node: "/node/web-1", Session: 12}, Ruling: Ruling{Generation: 4, Grant: "api", Evaluator: 1},
	}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Encode(e); err != nil {
			b.Fatal(err)
		}
	}
}

// A packed snapshot is the same state with the same root; a broken, cut or foreign one is refused.
func TestPack(t *testing.T) {
	s := New()
	for i := range 20_000 { // over the buffers and more than one read ahead
		path := strings.Repeat("x", i%50) + string(rune('a'+i%26)) + strings.Repeat("/y", 1+i%3) + "-" + string(rune('0'+i%10))
		s.Secrets.set(path, &Secret{Path: path, Last: uint64(i)})
		s.Leases.set(uint64(i)+1, &Lease{ID: uint64(i) + 1, Secret: path, Expires: Millis(i)})
	}
	var plain bytes.Buffer
	if err := s.Snapshot(&plain); err != nil {
		t.Fatal(err)
	}
	packed, root, err := s.Pack()
	if err != nil || root != RootOf(plain.Bytes()) || len(packed) > plain.Len()/4 {
		t.Fatalf("%d bytes of %d, root %s, %v", len(packed), plain.Len(), root, err)
	}
	for _, data := range [][]byte{packed, plain.Bytes()} {
		back, err := Restore(data)
		if err != nil {
			t.Fatal(err)
		}
		var again bytes.Buffer
		if err := back.Snapshot(&again); err != nil || !bytes.Equal(again.Bytes(), plain.Bytes()) {
			t.Fatal("it came back as another state", err)
		}
		if got, err := PackedRoot(data); err != nil || got != root {
			t.Fatal(got, err)
		}
	}
	broken := bytes.Clone(packed)
	broken[len(broken)/2] ^= 0x55
	for name, data := range map[string][]byte{"cut": packed[:len(packed)-20], "broken": broken, "nothing": {}, "foreign": []byte("PK\x03\x04"), "trailing": append(bytes.Clone(packed), 'x')} {
		got, err := PackedRoot(data)
		if _, errRestore := Restore(data); errRestore == nil && (err != nil || got == root) {
			t.Errorf("%s: was read as the same state", name)
		}
	}
}
