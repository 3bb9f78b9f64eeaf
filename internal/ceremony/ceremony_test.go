package ceremony

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// a change with every field.
func full() Change {
	return Change{
		Scope:   Scope{Environment: "test.example", Genesis: [32]byte{1, 2}, Epoch: 3},
		Version: 2, Action: "bundle", Base: "sha256:aa", New: "sha256:bb", Target: "node:/node/a#7", Rollout: "default", Rollback: "sha256:cc",
		Containment: []string{"grants/a b.yaml", "grants/ü.yaml"}, Role: Approver, Person: "alice", Number: 12, Nonce: "00ff",
		Expires: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Reason: "it is \"needed\"\nnow",
	}
}

// first is the same as version 1 has it.
func first() Change {
	c := full()
	c.Version, c.Rollout, c.Rollback, c.Containment = 1, "", "", nil
	return c
}

// drawn is any change that is made of what names and digests are made of.
func drawn(t *rapid.T) Change {
	word := rapid.StringMatching(`[a-z0-9/:#.][a-z0-9/:#. -]{0,20}`)
	maybe := rapid.OneOf(rapid.Just(""), word)
	c := Change{
		Scope: Scope{Environment: word.Draw(t, "environment"), Epoch: rapid.Uint64().Draw(t, "epoch")}, Version: rapid.IntRange(1, 2).Draw(t, "version"),
		Action: word.Draw(t, "action"), Base: maybe.Draw(t, "base"), New: maybe.Draw(t, "new"), Target: maybe.Draw(t, "target"),
		Role: rapid.SampledFrom([]Role{Proposer, Approver}).Draw(t, "role"), Person: word.Draw(t, "person"), Number: rapid.Uint64().Draw(t, "number"),
		Nonce: word.Draw(t, "nonce"), Expires: time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "expires"), 0).UTC(), Reason: rapid.StringN(0, 40, 200).Draw(t, "reason"),
	}
	copy(c.Genesis[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "genesis"))
	if c.Version > 1 {
		c.Rollout, c.Rollback = maybe.Draw(t, "rollout"), maybe.Draw(t, "rollback")
		if files := rapid.SliceOfN(rapid.String(), 0, 5).Draw(t, "containment"); len(files) > 0 {
			c.Containment = files
		}
	}
	return c
}

// What is written is read as it was, in both versions.
func TestChangeRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := drawn(rt)
		text := c.Text()
		if len(text) > maxText {
			return
		}
		got, err := ParseChange(text)
		if err != nil {
			rt.Fatalf("%v\n%s", err, text)
		}
		if !reflect.DeepEqual(got, c) {
			rt.Fatalf("%+v came back as %+v\n%s", c, got, text)
		}
	})
}

// No two changes give one text.
func TestTextsDiffer(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a, b := drawn(rt), drawn(rt)
		if rapid.Bool().Draw(rt, "alike") { // all the same but one field
			b = a
			v, from := reflect.ValueOf(&b).Elem(), reflect.ValueOf(drawn(rt))
			i := rapid.IntRange(0, v.NumField()-1).Draw(rt, "field")
			if name := v.Type().Field(i).Name; name == "Version" || b.Version == 1 && (name == "Rollout" || name == "Rollback" || name == "Containment") {
				return // drawn fits its version
			}
			v.Field(i).Set(from.Field(i))
		}
		if !reflect.DeepEqual(a, b) && a.Text() == b.Text() {
			rt.Fatalf("%+v and %+v are both\n%s", a, b, a.Text())
		}
	})
}

// Each field is in the text: another value is another text, and none of them can take the place of another.
func TestEveryFieldIsSigned(t *testing.T) {
	seen := map[string]string{full().Text(): "none", first().Text(): "the version"}
	for name, edit := range map[string]func(*Change){
		"environment": func(c *Change) { c.Environment = "x" }, "genesis": func(c *Change) { c.Genesis[31]++ }, "epoch": func(c *Change) { c.Epoch++ },
		"action": func(c *Change) { c.Action = "x" }, "base": func(c *Change) { c.Base = "x" }, "new": func(c *Change) { c.New = "x" },
		"target": func(c *Change) { c.Target = "x" }, "rollout": func(c *Change) { c.Rollout = "x" }, "no rollout": func(c *Change) { c.Rollout = "" },
		"rollback": func(c *Change) { c.Rollback = "x" }, "no rollback": func(c *Change) { c.Rollback = "" },
		"containment": func(c *Change) { c.Containment = []string{"grants/a", "b.yaml", "grants/ü.yaml"} }, "no containment": func(c *Change) { c.Containment = nil },
		"containment of nothing": func(c *Change) { c.Containment = []string{""} }, "role": func(c *Change) { c.Role = Proposer },
		"person": func(c *Change) { c.Person = "x" }, "number": func(c *Change) { c.Number++ }, "nonce": func(c *Change) { c.Nonce = "x" },
		"expires": func(c *Change) { c.Expires = c.Expires.Add(time.Second) }, "reason": func(c *Change) { c.Reason = "x" },
		"another version": func(c *Change) { c.Version = 3 },
	} {
		c := full()
		edit(&c)
		if other, ok := seen[c.Text()]; ok {
			t.Errorf("%s and %s give one text", name, other)
		}
		seen[c.Text()] = name
	}
}

// A text of version 1 is what it always was: no line of the later one is in it, whatever the change says.
func TestFirstVersionHasNoLaterLines(t *testing.T) {
	want := `bailment change v1
environment test.example
genesis 0102000000000000000000000000000000000000000000000000000000000000
epoch 3
action bundle
base sha256:aa
new sha256:bb
target node:/node/a#7
role approve
person alice
change 12
nonce 00ff
expires 2026-01-02T03:04:05Z
reason "it is \"needed\"\nnow"
`
	if got := first().Text(); got != want {
		t.Errorf("it is\n%s", got)
	}
	c := full()
	c.Version = 1
	if got := c.Text(); got != want {
		t.Errorf("it is\n%s", got)
	}
	if got := full().Text(); got != strings.Replace(strings.Replace(want, "change v1", "change v2", 1), "role", `rollout default
rollback sha256:cc
containment "grants/a b.yaml" "grants/\u00fc.yaml"
role`, 1) {
		t.Errorf("the second version is\n%s", got)
	}
	c.Version = 0
	if c.Text() != full().Text() {
		t.Error("what names no version is not of the newest")
	}
}

// Versions that there are not are no texts, and don't bring down who compares with them: an entry names one.
func TestUnknownVersions(t *testing.T) {
	for _, version := range []int{-1, 3, 1 << 40} {
		c := full()
		c.Version = version
		if _, err := ParseChange(c.Text()); err == nil {
			t.Errorf("a text of version %d was read", version)
		}
	}
}

func TestParseChangeRefuses(t *testing.T) {
	good := full().Text()
	edit := func(from, to string) string {
		out := strings.Replace(good, from, to, 1)
		if out == good {
			t.Fatalf("%q is not in it", from)
		}
		return out
	}
	for what, bad := range map[string]string{
		"nothing":                       "",
		"a newline":                     "\n",
		"another version":               edit("change v2", "change v3"),
		"the first version":             edit("change v2", "change v1"),
		"no version":                    edit("bailment change v2", ""),
		"a login":                       edit("bailment change v2", "bailment login v1"),
		"no newline at the end":         strings.TrimSuffix(good, "\n"),
		"a line more":                   good + "x y\n",
		"an empty line":                 good + "\n",
		"a line less":                   edit("epoch 3\n", ""),
		"lines in another order":        edit("epoch 3\naction bundle\n", "action bundle\nepoch 3\n"),
		"a value that is empty":         edit("rollout default", "rollout "),
		"a carriage return":             edit("rollout default\n", "rollout default\r\n") + "x",
		"a genesis in capitals":         edit("0102", "01AB"),
		"a short genesis":               edit("genesis 01", "genesis "),
		"an epoch with a zero":          edit("epoch 3", "epoch 03"),
		"a number with a sign":          edit("change 12", "change +12"),
		"the number 0":                  edit("change 12", "change 0"),
		"a time with a fraction":        edit("05Z", "05.0Z"),
		"a time elsewhere":              edit("05Z", "05+00:00"),
		"a reason without quotes":       edit(`"it is \"needed\"\nnow"`, "now"),
		"an empty reason":               edit(`"it is \"needed\"\nnow"`, `""`),
		"a reason in another form":      edit(`"it is`, `"\x69t is`),
		"a reason in other quotes":      edit(`"it is \"needed\"\nnow"`, "`now`"),
		"a file without quotes":         edit(`"grants/a b.yaml"`, "grants/a.yaml"),
		"files without a space":         edit(`.yaml" "grants`, `.yaml""grants`),
		"files with two spaces":         edit(`.yaml" "grants`, `.yaml"  "grants`),
		"a space after the files":       edit("fc.yaml\"\n", "fc.yaml\" \n"),
		"a file in another form":        edit(`\u00fc`, `ü`),
		"a text that is over the limit": edit("needed", strings.Repeat("x", maxText)),
	} {
		if c, err := ParseChange(bad); err == nil {
			t.Errorf("%s was read as %+v", what, c)
		}
	}
}

// What a line can't hold comes to no text that reads back as something else.
func TestNoFieldBecomesALine(t *testing.T) {
	for _, sneaky := range []string{"a\nperson bob", "a\n", "\na", "-", "a\r"} {
		for name, edit := range map[string]func(*Change){
			"environment": func(c *Change) { c.Environment = sneaky }, "action": func(c *Change) { c.Action = sneaky }, "target": func(c *Change) { c.Target = sneaky },
			"rollout": func(c *Change) { c.Rollout = sneaky }, "person": func(c *Change) { c.Person = sneaky }, "nonce": func(c *Change) { c.Nonce = sneaky },
		} {
			c := full()
			edit(&c)
			got, err := ParseChange(c.Text())
			if err == nil && !reflect.DeepEqual(got, c) && sneaky != "-" {
				t.Errorf("%s %q is read as %+v", name, sneaky, got)
			}
			if sneaky == "-" && err == nil && !reflect.DeepEqual(got, c) {
				t.Logf("%s %q is read as none: what has names must not take it for one", name, sneaky)
			}
		}
	}
}

// FuzzParseChange: what is read is written as the same bytes, and nothing panics.
func FuzzParseChange(f *testing.F) {
	for _, c := range []Change{full(), first(), {Version: 2, Scope: Scope{Environment: "e"}, Action: "a", Role: Proposer, Person: "p", Nonce: "n"}} {
		f.Add(c.Text())
	}
	f.Add("bailment change v2\n")
	f.Add(strings.Replace(full().Text(), `"grants/a b.yaml"`, `"a" `, 1))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseChange(text)
		if err != nil {
			return
		}
		if c.Text() != text {
			t.Fatalf("%q is written %q", text, c.Text())
		}
		if again, err := ParseChange(c.Text()); err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("%+v comes back as %+v: %v", c, again, err)
		}
		if c.Version == 1 && (c.Rollout != "" || c.Rollback != "" || c.Containment != nil) {
			t.Fatalf("a text of version 1 says %+v", c)
		}
	})
}

func TestLoginAndKeyTexts(t *testing.T) {
	scope := full().Scope
	login := Login{Scope: scope, Person: "alice", SessionKey: [32]byte{9}, Challenge: []byte{1}}
	key := CheckpointKey{Scope: scope, Name: "checkpoint/2", Public: []byte{2}}
	seen := map[string]bool{full().Text(): true}
	for _, text := range []string{
		login.Text(), Login{Scope: scope, Person: "bob", SessionKey: [32]byte{9}, Challenge: []byte{1}}.Text(),
		Login{Scope: scope, Person: "alice", SessionKey: [32]byte{8}, Challenge: []byte{1}}.Text(), Login{Scope: scope, Person: "alice", SessionKey: [32]byte{9}, Challenge: []byte{2}}.Text(),
		Login{Person: "alice", SessionKey: [32]byte{9}, Challenge: []byte{1}}.Text(), key.Text(), CheckpointKey{Scope: scope, Name: "checkpoint/3", Public: []byte{2}}.Text(),
	} {
		if seen[text] {
			t.Errorf("two meanings give\n%s", text)
		}
		seen[text] = true
		if _, err := ParseChange(text); err == nil {
			t.Errorf("read as a change:\n%s", text)
		}
	}
}
