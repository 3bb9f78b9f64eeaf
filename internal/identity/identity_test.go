package identity

import (
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestValidEnv(t *testing.T) {
	for _, name := range []string{"a", "payments-dev", "a.b-c.d9", "9a", strings.Repeat("a", 63), "1.2.3"} {
		if err := ValidEnv(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{
		"", ".", "a.", ".a", "a..b", "-a", "a-", "a.-b", "a-.b", "A", "a_b", "a/b", "a b", "é", "a\x00", strings.Repeat("a", 64), "10.0.0.1", "127.0.0.1",
	} {
		if ValidEnv(name) == nil {
			t.Errorf("%q is accepted", name)
		}
	}
}

func TestID(t *testing.T) {
	for _, s := range []string{
		"spiffe://payments-dev/workload/payments-api", "spiffe://a/node/join-token/web_5F1", "spiffe://a/x/_2E_2E", "spiffe://a/...",
		"spiffe://a" + strings.Repeat("/s", MaxSegments), "spiffe://a/" + strings.Repeat("x", MaxPath-1),
	} {
		id, err := Parse(s)
		if err != nil || id.String() != s || id.URL().String() != s || id.IsZero() {
			t.Errorf("%q: %v %v", s, id, err)
		}
		again, err := New(id.Env(), id.Path())
		if err != nil || again != id || "/"+strings.Join(id.Segments(), "/") != id.Path() {
			t.Errorf("%q: %v %v", s, again, err)
		}
		b, err := json.Marshal(id)
		var back ID
		if err != nil || json.Unmarshal(b, &back) != nil || back != id {
			t.Errorf("%q: %s %v", s, b, err)
		}
	}
	for _, s := range []string{
		"", "spiffe://", "spiffe://a", "spiffe://a/", "spiffe:///a", "SPIFFE://a/b", "spiffe://A/b", "https://a/b", "spiffe://a/b/", "spiffe://a//b",
		"spiffe://a/.", "spiffe://a/b/..", "spiffe://a/b?c", "spiffe://a/b#c", "spiffe://a/b%41", "spiffe://a:1/b", "spiffe://u@a/b", "spiffe://a/b c",
		"spiffe://a/é", "spiffe://a/a_b", "spiffe://a/_5f", "spiffe://a/_41", "spiffe://a/_", "spiffe://a/_2", "spiffe://a/_2E", "spiffe://a/x_2E",
		"spiffe://a" + strings.Repeat("/s", MaxSegments+1), "spiffe://a/" + strings.Repeat("x", MaxPath), "spiffe://a/" + strings.Repeat("x", MaxID),
	} {
		// "_2E" alone is how "." is written, so that one stands.
		if id, err := Parse(s); (err == nil) != (s == "spiffe://a/_2E") {
			t.Errorf("%q: %v, %v", s, id, err)
		}
	}
	var none ID
	if none.String() != "" || !none.IsZero() || none.URL() != nil || none.Segments() != nil {
		t.Error("the zero ID is not none")
	}
	if b, err := json.Marshal(none); err != nil || string(b) != `""` {
		t.Errorf("%s %v", b, err)
	}
	if err := json.Unmarshal([]byte(`""`), &none); err != nil || !none.IsZero() {
		t.Error("the empty text is not none")
	}
	if json.Unmarshal([]byte(`"x"`), &none) == nil {
		t.Error("any text is an ID")
	}
}

func TestEscapeIsInjective(t *testing.T) {
	for s, want := range map[string]string{"web-1": "web-1", "a_b": "a_5Fb", "": "", ".": "_2E", "..": "_2E_2E", "...": "...", "a/b": "a_2Fb", "é": "_C3_A9", "\xff\x00": "_FF_00", "x*": "x_2A"} {
		if got := Escape(s); got != want {
			t.Errorf("Escape(%q) is %q", s, got)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		// A small alphabet makes collisions likely, if there are any.
		gen := rapid.StringOfN(rapid.SampledFrom([]rune("a_.5F/2E")), 0, 8, -1)
		a, b := gen.Draw(rt, "a"), gen.Draw(rt, "b")
		if (Escape(a) == Escape(b)) != (a == b) {
			rt.Fatalf("%q and %q", a, b)
		}
		if back, err := Unescape(Escape(a)); err != nil || back != a {
			rt.Fatalf("%q came back as %q: %v", a, back, err)
		}
		if a != "" && ValidPath("/"+Escape(a)) != nil {
			rt.Fatalf("%q is no segment", Escape(a))
		}
		// What is accepted has one spelling.
		if plain, err := Unescape(b); err == nil && Escape(plain) != b {
			rt.Fatalf("%q is another spelling of %q", b, Escape(plain))
		}
	})
}

func TestParseSecretPath(t *testing.T) {
	for _, s := range []string{"a", "db/password", "A9/b.c_d-e", "1", strings.Repeat("a/", 15) + "a", strings.Repeat("a", 255)} {
		if p, err := ParseSecretPath(s); err != nil || string(p) != s {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "a/../b", ".a", "_a", "-a", "a/-b", "a b", "a*", "é", "a\n", strings.Repeat("a/", 16) + "a", strings.Repeat("a", 256)} {
		if _, err := ParseSecretPath(s); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

func TestPatterns(t *testing.T) {
	id := func(s string) Pattern {
		p, err := ParseIDPattern(s)
		if err != nil || p.String() != s {
			t.Fatalf("%q: %q, %v", s, p, err)
		}
		return p
	}
	secret := func(s string) Pattern {
		p, err := ParseSecretPattern(s)
		if err != nil || p.String() != s {
			t.Fatalf("%q: %q, %v", s, p, err)
		}
		return p
	}
	for _, c := range []struct {
		p    Pattern
		path string
		want bool
	}{
		{id("/a/b"), "/a/b", true},
		{id("/a/b"), "/a/b/c", false},
		{id("/a/b"), "/a", false},
		{id("/a/*"), "/a/b", true},
		{id("/a/*"), "/a/b/c", true},
		{id("/a/*"), "/a", false},
		{id("/a/*"), "/ab", false},
		{id("/a/*"), "/ab/c", false},
		{id("/a/*"), "/a/", false},
		{id("/*"), "/a", true},
		{id("/*"), "/", false},
		{id("/*"), "", false},
		{id("/*"), "a", false},
		{secret("a"), "a", true},
		{secret("a"), "a/b", false},
		{secret("a/*"), "a/b", true},
		{secret("a/*"), "a", false},
		{secret("a/*"), "ab/c", false},
		{secret("*"), "a/b", true},
		{secret("*"), "", false},
		{secret("*"), "/a", false},
		{Pattern{}, "", false},
		{Pattern{}, "/a", false},
	} {
		if got := c.p.Match(c.path); got != c.want {
			t.Errorf("%q matches %q: %v", c.p, c.path, got)
		}
	}
	for _, s := range []string{"", "*", "/", "a", "/a/", "/a*", "/*/a", "/a/*/b", "/a/**", "//*", "/a_b", "/../*", "/a/*/*"} {
		if _, err := ParseIDPattern(s); err == nil {
			t.Errorf("identity pattern %q is accepted", s)
		}
	}
	for _, s := range []string{"", "/*", "/a", "a/", "a*", "*/a", "a/*/b", "**", "a//*", "../*"} {
		if _, err := ParseSecretPattern(s); err == nil {
			t.Errorf("secret pattern %q is accepted", s)
		}
	}
}

// Covers means: whatever the other matches, this one does. The paths are few enough to try all.
func TestPropertyCovers(t *testing.T) {
	var paths []string
	for _, a := range []string{"a", "b", "ab"} {
		paths = append(paths, a)
		for _, b := range []string{"a", "b"} {
			paths = append(paths, a+"/"+b, a+"/"+b+"/a", a+"/"+b+"/b")
		}
	}
	gen := rapid.Custom(func(t *rapid.T) Pattern {
		s := rapid.SampledFrom([]string{"a", "b", "ab", "a/a", "a/b", "a/*", "b/*", "ab/*", "a/a/*", "a/b/*", "*"}).Draw(t, "pattern")
		var p Pattern
		if rapid.Bool().Draw(t, "secret") {
			p, _ = ParseSecretPattern(s)
		} else {
			p, _ = ParseIDPattern("/" + s)
		}
		return p
	})
	rapid.Check(t, func(rt *rapid.T) {
		p, q := gen.Draw(rt, "p"), gen.Draw(rt, "q")
		covers := true
		for _, path := range paths {
			for _, form := range []string{path, "/" + path, path + "/zz", "/" + path + "/zz", "zz", "/zz"} {
				if q.Match(form) && !p.Match(form) {
					covers = false
				}
			}
		}
		if p.Covers(q) != covers {
			rt.Fatalf("%q covers %q: %v, should be %v", p, q, p.Covers(q), covers)
		}
	})
	if !(Pattern{}).Covers(Pattern{}) {
		t.Error("nothing covers nothing")
	}
}

func TestAssurance(t *testing.T) {
	for i, a := range Assurances() {
		back, err := ParseAssurance(a.String())
		if err != nil || back != a {
			t.Errorf("%v: %v", a, err)
		}
		for j, b := range Assurances() {
			if a.AtLeast(b) != (i >= j) {
				t.Errorf("%v, %v", a, b)
			}
		}
		text, err := a.MarshalText()
		if err != nil || back.UnmarshalText(text) != nil || back != a {
			t.Errorf("%v: %v", a, err)
		}
	}
	var zero Assurance
	if zero != Unbound {
		t.Error("the zero value is not the weakest")
	}
	for _, s := range []string{"", "Token", "strong"} {
		if _, err := ParseAssurance(s); err == nil || zero.UnmarshalText([]byte(s)) == nil {
			t.Errorf("%q is accepted", s)
		}
	}
	if _, err := Assurance(99).MarshalText(); err == nil {
		t.Error("99 is on the scale")
	}
}

func TestBootstrap(t *testing.T) {
	g := strings.Repeat("0", 63) + "1"
	for s, addr := range map[string]string{
		"bailment1:127.0.0.1:8443/payments-dev#" + g:             "127.0.0.1:8443",
		"bailment1:[::1]:1/a#" + g:                               "[::1]:1",
		"bailment1:[2001:db8::1]:65535/a#" + g:                   "[2001:db8::1]:65535",
		"bailment1:bailment.example.com:8443/a.b#" + g:           "bailment.example.com:8443",
		"bailment1:bailment_server:8443/a#" + g:                  "bailment_server:8443",
		"bailment1:localhost:443/a#" + strings.Repeat("af", 32):  "localhost:443",
		"bailment1:x1.9a:443/a#" + strings.Repeat("0123ef90", 8): "x1.9a:443",
	} {
		b, err := ParseBootstrap(s)
		if err != nil || b.String() != s || b.Addr() != addr || b.Validate() != nil {
			t.Errorf("%q: %q %v", s, b, err)
		}
		text, err := b.MarshalText()
		var back Bootstrap
		if err != nil || back.UnmarshalText(text) != nil || back != b {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{
		"", "bailment1:", "bailment2:h:1/a#" + g, "h:1/a#" + g, "bailment1:h/a#" + g, "bailment1::1/a#" + g, "bailment1:h:0/a#" + g, "bailment1:h:01/a#" + g,
		"bailment1:h:65536/a#" + g, "bailment1:h:+1/a#" + g, "bailment1:h:1#" + g, "bailment1:h:1/a", "bailment1:h:1/#" + g, "bailment1:h:1/A#" + g,
		"bailment1:h:1/a#" + g[1:], "bailment1:h:1/a#" + g + "0", "bailment1:h:1/a#" + strings.ToUpper(strings.Repeat("af", 32)), "bailment1:h:1/a#" + strings.Repeat("0", 64),
		"bailment1:h:1/a#" + strings.Repeat("g", 64), "bailment1:H:1/a#" + g, "bailment1:::1:1/a#" + g, "bailment1:[::1:1/a#" + g, "bailment1:[h]:1/a#" + g, "bailment1:[127.0.0.1]:1/a#" + g,
		"bailment1:[::0001]:1/a#" + g, "bailment1:[fe80::1%eth0]:1/a#" + g, "bailment1:10.1:1/a#" + g, "bailment1:127.000.0.1:1/a#" + g, "bailment1:u@h:1/a#" + g,
		"bailment1:-h:1/a#" + g, "bailment1:h..x:1/a#" + g, "bailment1:h:1/a/b#" + g, " bailment1:h:1/a#" + g, "bailment1:h:1/a#" + g + "\n", "bailment1:" + strings.Repeat("h", 300) + ":1/a#" + g,
	} {
		if b, err := ParseBootstrap(s); err == nil {
			t.Errorf("%q is accepted as %v", s, b)
		}
	}
	if (Bootstrap{Host: "h", Env: "a", Genesis: [32]byte{1}}).Validate() == nil {
		t.Error("port 0 is valid")
	}
}

func FuzzID(f *testing.F) {
	for _, s := range []string{"spiffe://a/b", "spiffe://a/_2E", "spiffe://a.b/c/d_5F", "spiffe://a/.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := Parse(s)
		if err == nil && (id.String() != s || id.URL().String() != s || len(s) > MaxID) {
			t.Fatalf("%q prints as %q and %q", s, id, id.URL())
		}
		if back, err := Unescape(Escape(s)); err != nil || back != s {
			t.Fatalf("%q came back as %q: %v", s, back, err)
		}
		if plain, err := Unescape(s); err == nil && Escape(plain) != s {
			t.Fatalf("%q is another spelling of %q", s, Escape(plain))
		}
	})
}

func FuzzPattern(f *testing.F) {
	f.Add("/a/*", "/a/b")
	f.Add("a/*", "a/b/c")
	f.Add("*", "x")
	f.Add("/*", "/x")
	f.Fuzz(func(t *testing.T, s, path string) {
		for _, parse := range []func(string) (Pattern, error){ParseIDPattern, ParseSecretPattern} {
			p, err := parse(s)
			if err != nil {
				continue
			}
			if p.String() != s || !p.Covers(p) {
				t.Fatalf("%q prints as %q", s, p)
			}
			prefix, subtree := p.Prefix()
			exact, single := p.Exact()
			if subtree == single {
				t.Fatalf("%q is both or neither", s)
			}
			if p.Match(path) && (single && path != exact || subtree && !strings.HasPrefix(path, prefix)) {
				t.Fatalf("%q matches %q", s, path)
			}
		}
	})
}

func FuzzBootstrap(f *testing.F) {
	f.Add("bailment1:127.0.0.1:8443/payments-dev#" + strings.Repeat("af", 32))
	f.Add("bailment1:[2001:db8::1]:1/a#" + strings.Repeat("01", 32))
	f.Fuzz(func(t *testing.T, s string) {
		b, err := ParseBootstrap(s)
		if err == nil && (b.String() != s || b.Validate() != nil) {
			t.Fatalf("%q prints as %q", s, b)
		}
	})
}

func TestPatternAround(t *testing.T) {
	for in, want := range map[string]string{
		"/*": "", "*": "", "/a": "/*", "/a/*": "/*", "/a/b/c": "/a/b/* /a/* /*", "/a/b/*": "/a/* /*", "a": "*", "a/*": "*", "a/b/c": "a/b/* a/* *", "a/b/*": "a/* *",
	} {
		parse := ParseSecretPattern
		if in[0] == '/' {
			parse = ParseIDPattern
		}
		p, err := parse(in)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, around := range p.Around() {
			got = append(got, around.String())
			if !around.Covers(p) || p.Covers(around) {
				t.Errorf("%s is not around %s", around, in)
			}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("around %s: %s, want %s", in, s, want)
		}
	}
	if len((Pattern{}).Around()) != 0 {
		t.Error("nothing has something around it")
	}
}
