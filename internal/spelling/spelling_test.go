package spelling_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/bailment/bailment/internal/spelling"
)

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"kitten", "sitting", 3}, {"abc", "acb", 2}, {"same", "same", 0}} {
		if got := spelling.Distance(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

// It is a metric, and an edit changes it by one at most.
func TestMetric(t *testing.T) {
	word := rapid.StringMatching(`[ab]{0,6}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := word.Draw(t, "a"), word.Draw(t, "b"), word.Draw(t, "c")
		d := spelling.Distance(a, b)
		if d != spelling.Distance(b, a) || (d == 0) != (a == b) || d > max(len(a), len(b)) || d < max(len(a), len(b))-min(len(a), len(b)) {
			t.Fatalf("%q, %q: %d", a, b, d)
		}
		if d > spelling.Distance(a, c)+spelling.Distance(c, b) {
			t.Fatalf("%q, %q is farther than by way of %q", a, b, c)
		}
		if spelling.Distance(a+c, b) > d+len(c) {
			t.Fatalf("%d insertions of %q cost more", len(c), c)
		}
	})
}

func TestDidYouMean(t *testing.T) {
	words := []string{"listen", "limits", "storage", "no", "on"}
	for got, want := range map[string]string{
		"lsten":                  `: did you mean "listen"?`,
		"limit":                  `: did you mean "limits"?`,
		"xyz":                    "",
		"":                       "",
		"o":                      "", // as many edits as it has letters
		"oo":                     `: did you mean "no"?`,
		strings.Repeat("a", 1e6): "",
	} {
		if out := spelling.DidYouMean(got, slices.Values(words)); out != want {
			t.Errorf("%.20q: %q, want %q", got, out, want)
		}
	}
	if out := spelling.DidYouMean("listen", slices.Values([]string{strings.Repeat("listen", 1e5)})); out != "" {
		t.Error(out)
	}
}
