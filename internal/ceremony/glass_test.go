package ceremony

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func glassText() GlassReview {
	return GlassReview{
		Scope: Scope{Environment: "prod", Genesis: [32]byte{1, 2}, Epoch: 3}, Opening: 7, Grant: "db-emergency", Opener: "/human/bob", Incident: "INC-42",
		Opened: time.Date(2026, 11, 22, 15, 4, 5, 7e6, time.UTC), Closed: time.Date(2026, 11, 22, 15, 34, 5, 7e6, time.UTC), Uses: 3, Secrets: []string{"db/a", "db/b"},
		Verdict: Justified, Person: "alice", Time: time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC), Nonce: "00ff", Findings: "Both reads were needed.\n\n> quoted: rotated since",
	}
}

func TestGlassReviewText(t *testing.T) {
	g := glassText()
	text := g.Text()
	want := `bailment break-glass review v1
environment prod
genesis 0102000000000000000000000000000000000000000000000000000000000000
epoch 3
opening 7
grant db-emergency
opener /human/bob
incident INC-42
opened 2026-11-22T15:04:05.007Z
closed 2026-11-22T15:34:05.007Z
uses 3
beyond 0
verdict justified
person alice
time 2026-11-23T09:00:00Z
nonce 00ff
secret db/a
secret db/b
> Both reads were needed.
` + "> \n" + `> > quoted: rotated since
`
	if text != want {
		t.Errorf("the text is\n%s", text)
	}
	if back, err := ParseGlassReview(text); err != nil || !reflect.DeepEqual(back, g) {
		t.Errorf("read back: %+v, %v", back, err)
	}
	for what, bad := range map[string]string{
		"nothing":             "",
		"no end":              strings.TrimSuffix(text, "\n"),
		"another title":       strings.Replace(text, "review v1", "review v2", 1),
		"an access review":    reviewText().Text(),
		"another verdict":     strings.Replace(text, "verdict justified", "verdict Justified", 1),
		"no findings":         text[:strings.Index(text, "> ")],
		"few words":           text[:strings.Index(text, "> ")] + "> fine\n",
		"a control character": strings.Replace(text, "needed", "\x1b[2J", 1),
		"a direction":         strings.Replace(text, "needed", "needed\u202e", 1),
		"no text":             strings.Replace(text, "needed", "\xff", 1),
		"too much":            text[:strings.Index(text, "> ")] + "> " + strings.Repeat("x", MaxFindings) + "x\n",
		"a secret after":      text + "secret db/c\n",
		"secrets in disorder": strings.Replace(text, "secret db/a", "secret db/c", 1),
		"an unknown line":     strings.Replace(text, "secret db/a", "seecret db/a", 1),
		"a number with zeros": strings.Replace(text, "uses 3", "uses 03", 1),
		"a negative number":   strings.Replace(text, "uses 3", "uses -3", 1),
		"a coarser time":      strings.Replace(text, "15:04:05.007Z", "15:04:05Z", 1),
		"a time elsewhere":    strings.Replace(text, "09:00:00Z", "09:00:00+00:00", 1),
		"a field twice":       strings.Replace(text, "uses 3\n", "uses 3\nuses 3\n", 1),
		"fields in disorder":  strings.Replace(text, "uses 3\nbeyond 0\n", "beyond 0\nuses 3\n", 1),
		"an empty field":      strings.Replace(text, "INC-42", "", 1),
	} {
		if g, err := ParseGlassReview(bad); err == nil {
			t.Errorf("%s: read as %+v", what, g)
		}
	}
}

func FuzzParseGlassReview(f *testing.F) {
	f.Add(glassText().Text())
	f.Add(reviewText().Text())
	f.Fuzz(func(t *testing.T, text string) {
		if g, err := ParseGlassReview(text); err == nil && g.Text() != text {
			t.Errorf("%q is not the text of what was read from it", text)
		}
	})
}
