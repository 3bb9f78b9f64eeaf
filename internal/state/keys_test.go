package state

import (
	"bytes"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/ceremony"
)

// genesisOf is a genesis with a document that says the same, and no signatures: the reducer checks none.
func genesisOf(t testing.TB, change func(*Genesis)) *Genesis {
	t.Helper()
	ca, checkpoint := []byte("a certificate"), bytes.Repeat([]byte{7}, 32)
	e := &Genesis{
		Name: "test.example", Class: "development", Manifest: Digest{1},
		Keys: []KeyFacts{{Name: "ca/1", Cert: ca}, {Name: "checkpoint/1", Public: checkpoint}, {Name: "kek/1"}},
	}
	doc := ceremony.Genesis{Format: ceremony.GenesisFormat, Name: e.Name, Class: e.Class, Manifest: e.Manifest.String(), CA: ca, Checkpoint: checkpoint}
	var err error
	if e.Document, err = doc.Text(); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(e)
	}
	return e
}

// Only what the document says, which founders signed, is how an environment begins.
func TestGenesisIsItsDocument(t *testing.T) {
	key := func(i int, change func(*KeyFacts)) func(*Genesis) { return func(e *Genesis) { change(&e.Keys[i]) } }
	more := func(k KeyFacts) func(*Genesis) { return func(e *Genesis) { e.Keys = append(e.Keys, k) } }
	other := bytes.Repeat([]byte{8}, 32)
	for what, change := range map[string]func(*Genesis){
		"another name":                func(e *Genesis) { e.Name = "other.example" },
		"another class":               func(e *Genesis) { e.Class = "production" },
		"another manifest":            func(e *Genesis) { e.Manifest[0]++ },
		"no document":                 func(e *Genesis) { e.Document = "" },
		"a document of another form":  func(e *Genesis) { e.Document = strings.Replace(e.Document, "genesis v1", "genesis v2", 1) },
		"no keys":                     func(e *Genesis) { e.Keys = nil },
		"a key less":                  func(e *Genesis) { e.Keys = e.Keys[:2] },
		"a checkpoint key before":     more(KeyFacts{Name: "checkpoint/0", Public: other}),
		"a checkpoint key after":      more(KeyFacts{Name: "checkpoint/2", Public: other}),
		"a checkpoint key twice":      func(e *Genesis) { e.Keys[2] = e.Keys[1] },
		"a CA before":                 more(KeyFacts{Name: "ca/0", Cert: other}),
		"a key of another kind":       more(KeyFacts{Name: "root/1", Public: other}),
		"a number with a zero before": key(1, func(k *KeyFacts) { k.Name = "checkpoint/01" }),
		"another checkpoint key":      key(1, func(k *KeyFacts) { k.Public = other }),
		"another CA":                  key(0, func(k *KeyFacts) { k.Cert = other }),
		"a CA with a public key":      key(0, func(k *KeyFacts) { k.Public = other }),
		"a CA that another signed":    key(0, func(k *KeyFacts) { k.Cross = other }),
		"a key that another signed":   key(1, func(k *KeyFacts) { k.Cross = bytes.Repeat([]byte{1}, 64) }),
		"a public key that is secret": key(2, func(k *KeyFacts) { k.Public = other }),
	} {
		if err := New().Apply(0, nil, &Entry{Time: f0, Event: genesisOf(t, change)}); err == nil {
			t.Errorf("%s was applied", what)
		}
	}
	if err := New().Apply(0, nil, &Entry{Time: f0, Event: genesisOf(t, nil)}); err != nil {
		t.Error(err)
	}
}

// A key follows the one before it, by number, and has what its kind has.
func TestKeysFollow(t *testing.T) {
	public, cross := bytes.Repeat([]byte{8}, 32), bytes.Repeat([]byte{9}, 64)
	next := map[string]KeyFacts{
		"ca": {Name: "ca/2", Cert: []byte("cert"), Cross: []byte("cross")}, "checkpoint": {Name: "checkpoint/2", Public: public, Cross: cross},
		"kek": {Name: "kek/2"},
	}
	for kind, k := range next {
		f := newFeeder(t, 1)
		for what, bad := range map[string]KeyFacts{
			"again":          {Name: kind + "/1", Public: k.Public, Cert: k.Cert, Cross: k.Cross},
			"zero":           {Name: kind + "/0", Public: k.Public, Cert: k.Cert, Cross: k.Cross},
			"left out":       {Name: kind + "/3", Public: k.Public, Cert: k.Cert, Cross: k.Cross},
			"another form":   {Name: kind + "/02", Public: k.Public, Cert: k.Cert, Cross: k.Cross},
			"more behind":    {Name: kind + "/2/2", Public: k.Public, Cert: k.Cert, Cross: k.Cross},
			"no number":      {Name: kind, Public: k.Public, Cert: k.Cert, Cross: k.Cross},
			"overflow":       {Name: kind + "/4294967298", Public: k.Public, Cert: k.Cert, Cross: k.Cross},
			"another kind":   {Name: "x" + kind + "/2", Public: k.Public, Cert: k.Cert, Cross: k.Cross},
			"a public key":   {Name: kind + "/2", Public: append([]byte{1}, k.Public...), Cert: k.Cert, Cross: k.Cross},
			"a signature":    {Name: kind + "/2", Public: k.Public, Cert: k.Cert, Cross: append(k.Cross[:len(k.Cross):len(k.Cross)], 1)},
			"no signature":   {Name: kind + "/2", Public: k.Public, Cert: k.Cert},
			"no public side": {Name: kind + "/2"},
		} {
			if kind == KeyKEK && (what == "no signature" || what == "no public side") || kind == KeyCA && what == "a signature" {
				continue // legal, or not to be told from what is
			}
			if err := f.apply(&KeyAdded{Key: bad}); err == nil {
				t.Errorf("%s: %s was applied", kind, what)
			}
		}
		f.must(&KeyAdded{Key: k})
		if now, ok := f.s.CurrentKey(kind); !ok || now.Name != k.Name {
			t.Errorf("current is %+v", now)
		}
		if first, _ := f.s.Keys.Get(kind + "/1"); first == nil || first.Current {
			t.Errorf("%s/1 is still current", kind)
		}
	}
}

func TestParseKeyName(t *testing.T) {
	if kind, n, err := ParseKeyName("checkpoint/4294967295"); err != nil || kind != "checkpoint" || n != 1<<32-1 || KeyName(kind, n) != "checkpoint/4294967295" {
		t.Errorf("%s %d %v", kind, n, err)
	}
	for _, name := range []string{"", "/", "/1", "ca", "ca/", "ca/0", "ca/00", "ca/01", "ca/+1", "ca/-1", "ca/1_0", "ca/1 ", " ca/1", "CA/1", "ca/x", "ca/1/", "ca//1", "c a/1", "ca/4294967296", "ca/١"} {
		if kind, n, err := ParseKeyName(name); err == nil {
			t.Errorf("%q is %s %d", name, kind, n)
		}
	}
}

// A snapshot can't bring keys in that no entries give.
func TestRestoreRefusesKeys(t *testing.T) {
	public := bytes.Repeat([]byte{8}, 32)
	for what, change := range map[string]func(*State){
		"a CA before":            func(s *State) { s.Keys.set("ca/0", &PublicKey{Name: "ca/0", Cert: []byte("x")}) },
		"a CA after":             func(s *State) { s.Keys.set("ca/2", &PublicKey{Name: "ca/2", Cert: []byte("x"), Cross: []byte("x")}) },
		"a name that is not its": func(s *State) { s.Keys.set("kek/2", &PublicKey{Name: "kek/1", Current: true}) },
		"no CA":                  func(s *State) { s.Keys.del("ca/1") },
		"no current key":         func(s *State) { s.Keys.set("kek/1", &PublicKey{Name: "kek/1"}) },
		"two current keys":       func(s *State) { s.Keys.set("kek/2", &PublicKey{Name: "kek/2", Current: true}) },
		"a key of another kind":  func(s *State) { s.Keys.set("root/1", &PublicKey{Name: "root/1", Public: public, Current: true}) },
		"a first key that crosses": func(s *State) {
			s.Keys.set("ca/1", &PublicKey{Name: "ca/1", Cert: []byte("x"), Cross: []byte("x"), Current: true})
		},
	} {
		s := newFeeder(t, 1).s.Fork()
		change(s)
		if _, err := Restore(snapshotOf(t, s)); err == nil {
			t.Errorf("%s was restored", what)
		}
	}
	if _, err := Restore(snapshotOf(t, newFeeder(t, 1).s)); err != nil {
		t.Error(err)
	}
}
