package ceremony

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func fullRecovery() Recovery {
	return Recovery{
		Scope: Scope{Environment: "test.example", Genesis: [32]byte{1, 2}, Epoch: 3},
		Base:  "sha256:aa", New: "sha256:bb", Operators: "sha256:cc", Required: 2, Delay: 72 * time.Hour, Nonce: "00ff",
		Expires: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Reason: "both keys were in the \"flood\"\n",
		Before: []string{"alice propose,approve SHA256:a", "bob approve SHA256:b"}, After: []string{"dora propose,approve SHA256:d"},
	}
}

func fullWithdrawal() Withdrawal {
	return Withdrawal{Scope: Scope{Environment: "test.example", Genesis: [32]byte{1, 2}, Epoch: 3}, Recovery: 97, New: "sha256:bb", Person: "rita", Reason: "it was not me"}
}

// The text is what auditors and people with ssh-keygen read: it changes with its version only.
func TestRecoveryText(t *testing.T) {
	want := `bailment recovery v1
environment test.example
genesis 0102000000000000000000000000000000000000000000000000000000000000
epoch 3
action operators.replace
base sha256:aa
new sha256:bb
operators sha256:cc
required 2
delay 72h0m0s
nonce 00ff
expires 2026-01-02T03:04:05Z
reason "both keys were in the \"flood\"\n"
before alice propose,approve SHA256:a
before bob approve SHA256:b
after dora propose,approve SHA256:d
`
	if got := fullRecovery().Text(); got != want {
		t.Errorf("it is\n%s", got)
	}
	want = `bailment recovery withdrawal v1
environment test.example
genesis 0102000000000000000000000000000000000000000000000000000000000000
epoch 3
recovery 97
new sha256:bb
person rita
reason "it was not me"
`
	if got := fullWithdrawal().Text(); got != want {
		t.Errorf("it is\n%s", got)
	}
}

// What is written is read as it was, and no two recoveries give one text.
func TestRecoveryRoundTrip(t *testing.T) {
	word := rapid.StringMatching(`[a-z0-9:,.]{1,20}`)
	line := rapid.StringMatching(`[a-z0-9:,.]{1,9}( [a-z0-9:,.]{1,9}){0,3}`)
	draw := func(t *rapid.T) Recovery {
		r := Recovery{
			Scope: Scope{Environment: word.Draw(t, "environment"), Epoch: rapid.Uint64().Draw(t, "epoch")}, Base: word.Draw(t, "base"), New: word.Draw(t, "new"),
			Operators: word.Draw(t, "operators"), Required: rapid.IntRange(0, 9).Draw(t, "required"), Delay: time.Duration(rapid.Int64Range(0, 1<<50).Draw(t, "delay")),
			Nonce: word.Draw(t, "nonce"), Expires: time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "expires"), 0).UTC(), Reason: rapid.StringN(1, 40, 200).Draw(t, "reason"),
			Before: rapid.SliceOfN(line, 1, 3).Draw(t, "before"), After: rapid.SliceOfN(line, 1, 3).Draw(t, "after"),
		}
		copy(r.Genesis[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "genesis"))
		return r
	}
	rapid.Check(t, func(rt *rapid.T) {
		a := draw(rt)
		got, err := ParseRecovery(a.Text())
		if err != nil || !reflect.DeepEqual(got, a) {
			rt.Fatalf("%+v came back as %+v: %v", a, got, err)
		}
		b := a
		v, from := reflect.ValueOf(&b).Elem(), reflect.ValueOf(draw(rt))
		i := rapid.IntRange(0, v.NumField()-1).Draw(rt, "field")
		v.Field(i).Set(from.Field(i))
		if !reflect.DeepEqual(a, b) && a.Text() == b.Text() {
			rt.Fatalf("%+v and %+v are both\n%s", a, b, a.Text())
		}
	})
	w := fullWithdrawal()
	if got, err := ParseWithdrawal(w.Text()); err != nil || got != w {
		t.Errorf("%+v came back as %+v: %v", w, got, err)
	}
}

func TestParseRecoveryRefuses(t *testing.T) {
	good, gone := fullRecovery().Text(), fullWithdrawal().Text()
	for what, edit := range map[string][2]string{
		"another version":              {"recovery v1", "recovery v2"},
		"a change":                     {"bailment recovery v1", "bailment change v2"},
		"a withdrawal":                 {"bailment recovery v1", "bailment recovery withdrawal v1"},
		"another action":               {"operators.replace", "bundle"},
		"no action":                    {"action operators.replace\n", ""},
		"a line more":                  {"required 2\n", "required 2\nrequired 1\n"},
		"lines in another order":       {"base sha256:aa\nnew sha256:bb", "new sha256:bb\nbase sha256:aa"},
		"a delay in another form":      {"72h0m0s", "72h"},
		"a delay without unit":         {"72h0m0s", "72"},
		"a number with a sign":         {"required 2", "required +2"},
		"no reason":                    {`"both keys were in the \"flood\"\n"`, `""`},
		"a reason without quotes":      {`"both keys were in the \"flood\"\n"`, "flood"},
		"a genesis in capitals":        {"0102", "01AB"},
		"nobody before":                {"before alice propose,approve SHA256:a\nbefore bob approve SHA256:b\n", ""},
		"nobody after":                 {"after dora propose,approve SHA256:d\n", ""},
		"before after after":           {"after dora propose,approve SHA256:d\n", "after dora propose,approve SHA256:d\nbefore x y z\n"},
		"a line that says neither":     {"after dora", "later dora"},
		"an empty person":              {"after dora propose,approve SHA256:d\n", "after \n"},
		"a time elsewhere":             {"05Z", "05+00:00"},
		"a text that is over its size": {"after dora", "after " + strings.Repeat("x", MaxRecovery)},
		"no end":                       {"SHA256:d\n", "SHA256:d"},
	} {
		bad := strings.Replace(good, edit[0], edit[1], 1)
		if bad == good {
			t.Fatalf("%s: %q is not in it", what, edit[0])
		}
		if r, err := ParseRecovery(bad); err == nil {
			t.Errorf("%s was read as %+v", what, r)
		}
	}
	for what, edit := range map[string][2]string{
		"another version": {"withdrawal v1", "withdrawal v2"}, "a recovery": {"recovery withdrawal v1", "recovery v1"}, "no reason": {`"it was not me"`, `""`},
		"a line more": {"person rita\n", "person rita\nperson bob\n"}, "a line after it": {"me\"\n", "me\"\nx y\n"}, "a number with a zero": {"recovery 97", "recovery 097"},
	} {
		bad := strings.Replace(gone, edit[0], edit[1], 1)
		if bad == gone {
			t.Fatalf("%s: %q is not in it", what, edit[0])
		}
		if w, err := ParseWithdrawal(bad); err == nil {
			t.Errorf("%s was read as %+v", what, w)
		}
	}
}

func FuzzParseRecovery(f *testing.F) {
	f.Add(fullRecovery().Text())
	f.Add(fullWithdrawal().Text())
	f.Fuzz(func(t *testing.T, text string) {
		if r, err := ParseRecovery(text); err == nil && r.Text() != text {
			t.Errorf("%q is written as %q", text, r.Text())
		}
		if w, err := ParseWithdrawal(text); err == nil && w.Text() != text {
			t.Errorf("%q is written as %q", text, w.Text())
		}
	})
}
