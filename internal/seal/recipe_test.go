package seal

import (
	"encoding/base64"
	"encoding/hex"
	"io"
	"math"
	"regexp"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/problem"
)

func TestGenerate(t *testing.T) {
	src := testSource(t)
	for _, c := range []struct {
		recipe string
		length int
		want   string // the value matches it
	}{
		{"password", 0, `^[A-Za-z0-9][A-Za-z0-9._~+=,-]{31}$`},
		{"password", 22, `^[A-Za-z0-9][A-Za-z0-9._~+=,-]{21}$`},
		{"password", 1000, `^[A-Za-z0-9][A-Za-z0-9._~+=,-]{999}$`},
		{"alphanumeric", 0, `^[A-Za-z0-9]{32}$`},
		{"hex", 0, `^[0-9a-f]{64}$`},
		{"hex", 16, `^[0-9a-f]{32}$`},
		{"base64", 0, `^[A-Za-z0-9+/]{43}=$`},
		{"token", 0, `^[A-Za-z0-9_-]{43}$`},
		{"uuid", 0, `^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`},
	} {
		seen := map[string]bool{}
		for range 50 {
			s, err := Generate(c.recipe, c.length, src)
			if err != nil {
				t.Fatalf("%s %d: %v", c.recipe, c.length, err)
			}
			v := string(s.Expose())
			if !regexp.MustCompile(c.want).MatchString(v) || seen[v] {
				t.Fatalf("%s %d: %q, seen %v", c.recipe, c.length, v, seen[v])
			}
			if c.recipe == "password" && !hasClasses(s.Expose()) {
				t.Fatalf("password without all classes: %q", v)
			}
			seen[v] = true
		}
	}
}

func TestGenerateRefuses(t *testing.T) {
	src := testSource(t)
	for _, r := range Recipes() {
		for _, n := range []int{-1, 1, r.Min - 1, r.Max + 1, math.MaxInt} {
			_, err := Generate(r.Name, n, src)
			wantReason(t, err, problem.ReasonInvalid)
		}
	}
	_, err := Generate("password1", 0, src)
	wantReason(t, err, problem.ReasonInvalid)
	if fix := problem.As(err).WayOut(); !strings.Contains(fix, "alphanumeric") {
		t.Errorf("the way out doesn't list the recipes: %s", fix)
	}
}

// Each recipe holds 128 bits at its shortest, and one character less would not.
func TestGenerateMinimalEntropy(t *testing.T) {
	for _, r := range Recipes() {
		bits := map[string]func(n int) float64{
			"password": func(n int) float64 {
				return math.Log2(float64(len(alnum))) + float64(n-1)*math.Log2(float64(len(printing))) - 1
			},
			"alphanumeric": func(n int) float64 { return float64(n) * math.Log2(float64(len(alnum))) },
			"hex":          func(n int) float64 { return 8 * float64(n) },
			"base64":       func(n int) float64 { return 8 * float64(n) },
			"token":        func(n int) float64 { return 8 * float64(n) },
			"uuid":         func(int) float64 { return 122 },
		}[r.Name]
		if r.Name == "uuid" {
			continue // its standard fixes 122; the documentation says so
		}
		if bits(r.Min) < 128 || bits(r.Min-1) >= 128 {
			t.Errorf("%s: %d gives %.1f bits, one less %.1f", r.Name, r.Min, bits(r.Min), bits(r.Min-1))
		}
		if r.Default < r.Min || r.Default > r.Max {
			t.Errorf("%s: default outside of limits", r.Name)
		}
	}
}

// chiSquare compares counts with a uniform distribution and returns how many standard deviations
// the statistic is away from its mean.
func chiSquare(counts []int) float64 {
	total := 0
	for _, c := range counts {
		total += c
	}
	want, x := float64(total)/float64(len(counts)), 0.0
	for _, c := range counts {
		x += (float64(c) - want) * (float64(c) - want) / want
	}
	df := float64(len(counts) - 1)
	return (x - df) / math.Sqrt(2*df)
}

// Picks are unbiased; the planted sampler with a plain remainder must fail the same test.
func TestGenerateUnbiased(t *testing.T) {
	src := testSource(t)
	const draws = 200_000
	for _, set := range []string{alnum, printing, "ab", "abc"} {
		index := map[byte]int{}
		for i := range len(set) {
			index[set[i]] = i
		}
		p := pool{src: src}
		fair, remainder := make([]int, len(set)), make([]int, len(set))
		raw := make([]byte, draws)
		if _, err := io.ReadFull(src, raw); err != nil {
			t.Fatal(err)
		}
		for i := range draws {
			c, err := p.pick(set)
			if err != nil {
				t.Fatal(err)
			}
			fair[index[c]]++
			remainder[int(raw[i])%len(set)]++
		}
		if d := chiSquare(fair); d > 8 { // a false alarm is rarer than 1 in 10^9
			t.Errorf("%d characters: %.1f deviations from uniform", len(set), d)
		}
		if d := chiSquare(remainder); len(set) > 3 && d < 8 {
			t.Errorf("%d characters: the planted bias was not found: %.1f", len(set), d)
		}
	}
}

// Bits of the encodings are balanced at every position.
func TestGenerateBits(t *testing.T) {
	src := testSource(t)
	decode := map[string]func(string) ([]byte, error){"hex": hex.DecodeString, "base64": base64.StdEncoding.DecodeString, "token": base64.RawURLEncoding.DecodeString}
	const n = 4000
	for recipe, dec := range decode {
		var ones [16 * 8]int
		for range n {
			s, err := Generate(recipe, 16, src)
			if err != nil {
				t.Fatal(err)
			}
			b, err := dec(string(s.Expose()))
			if err != nil || len(b) != 16 {
				t.Fatal(err)
			}
			for i := range ones {
				ones[i] += int(b[i/8]>>(i%8)) & 1
			}
		}
		for i, c := range ones {
			if d := math.Abs(float64(c)-n/2) / math.Sqrt(n/4); d > 7 {
				t.Errorf("%s: bit %d is one %d times of %d", recipe, i, c, n)
			}
		}
	}
}
