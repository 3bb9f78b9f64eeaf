package ceremony

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func reviewText() Review {
	return Review{
		Scope: Scope{Environment: "prod", Genesis: [32]byte{1, 2}, Epoch: 3}, Bundle: "sha256:00", Person: "alice",
		Time: time.Date(2026, 11, 22, 15, 4, 5, 0, time.UTC), Nonce: "00ff",
		Lines: []ReviewLine{
			{Keep, "a", "/workload/api", "db/*", "2026-11-22T15:00:00Z"}, {Narrow, "a", "/workload/api", "tls/*", NeverUsed}, {Remove, "b", "/*", "*", UseUnknown},
		},
	}
}

func TestReviewText(t *testing.T) {
	r := reviewText()
	text := r.Text()
	want := `bailment access review v1
environment prod
genesis 0102000000000000000000000000000000000000000000000000000000000000
epoch 3
bundle sha256:00
person alice
time 2026-11-22T15:04:05Z
nonce 00ff
keep a /workload/api db/* 2026-11-22T15:00:00Z
narrow a /workload/api tls/* never
remove b /* * -
`
	if text != want {
		t.Errorf("the text is\n%s", text)
	}
	if back, err := ParseReview(text); err != nil || !reflect.DeepEqual(back, r) {
		t.Errorf("read back: %+v, %v", back, err)
	}
	for what, bad := range map[string]string{
		"nothing":              "",
		"no end":               strings.TrimSuffix(text, "\n"),
		"another title":        strings.Replace(text, "review v1", "review v2", 1),
		"a change":             Change{}.Text(),
		"no lines":             text[:strings.Index(text, "keep ")],
		"no decision":          strings.Replace(text, "keep a", "? a", 1),
		"another decision":     strings.Replace(text, "keep a", "Keep a", 1),
		"a line twice":         strings.Replace(text, "narrow a /workload/api tls/* never", "narrow a /workload/api db/* never", 1),
		"lines in disorder":    strings.Replace(text, "remove b", "remove Z", 1),
		"a line without use":   strings.Replace(text, " never", "", 1),
		"a line with more":     strings.Replace(text, " never", " never again", 1),
		"two spaces":           strings.Replace(text, "narrow a", "narrow  a", 1),
		"a use of no time":     strings.Replace(text, " never", " sometimes", 1),
		"a use elsewhere":      strings.Replace(text, "2026-11-22T15:00:00Z", "2026-11-22T15:00:00+01:00", 1),
		"a time elsewhere":     strings.Replace(text, "15:04:05Z", "15:04:05+00:00", 1),
		"a finer time":         strings.Replace(text, "15:04:05Z", "15:04:05.5Z", 1),
		"an epoch with a zero": strings.Replace(text, "epoch 3", "epoch 03", 1),
		"upper-case digits":    strings.Replace(text, "genesis 0102", "genesis 0A02", 1),
		"a quote":              strings.Replace(text, "keep a ", "keep \"a ", 1),
		"another alphabet":     strings.Replace(text, "keep a ", "keep ä ", 1),
		"an empty line":        text + "\n",
		"too long":             text + strings.Repeat("remove c /* * -\n", MaxReview/16),
	} {
		if _, err := ParseReview(bad); err == nil {
			t.Errorf("%s was read", what)
		}
	}
}

// What is read is what was written, and nothing else is.
func FuzzParseReview(f *testing.F) {
	f.Add(reviewText().Text())
	f.Add("bailment access review v1\n")
	f.Fuzz(func(t *testing.T, text string) {
		if r, err := ParseReview(text); err == nil && r.Text() != text {
			t.Errorf("read %q and wrote %q", text, r.Text())
		}
	})
}
