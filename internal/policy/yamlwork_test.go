package policy

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/goccy/go-yaml/lexer"
)

// An honest document is as long as its file may be: thousands of cases, in either style.
func TestLongDocuments(t *testing.T) {
	for name, one := range map[string]string{
		"in braces": "    - {name: case %d, identity: /human/alice, secret: db/password, claims: {a: {b: 1}}, expect: deny}\n",
		"in lines":  "    - name: case %d\n      identity: /human/alice\n      secret: db/password\n      # why\n      expect: deny\n",
	} {
		t.Run(name, func(t *testing.T) {
			const n = 2_000
			var b strings.Builder
			b.WriteString("  cases:\n")
			for i := range n {
				fmt.Fprintf(&b, one, i)
			}
			p := mustCompile(t, withTests(bare(t), b.String()))
			if got := len(p.Tests()[0].Cases); got != n {
				t.Errorf("%d cases", got)
			}
		})
	}
	t.Run("ten thousand", func(t *testing.T) {
		files := benchTests(t, 1_000, MaxTests)
		if got := mustCompile(t, files).Tests(); len(got) != MaxTests/perTestFile {
			t.Errorf("%d tests", len(got))
		}
	})
}

// Whatever a document is made of, the parser's work on it is foreseen: what is within the budget is parsed within half a second (here
// with room for a busy machine) and without much memory.
func TestParseWork(t *testing.T) {
	repeated := func(before, s, after string) func(n int) string {
		return func(n int) string { return before + strings.Repeat(s, n/len(s)) + after }
	}
	numbered := func(before, s, after string) func(n int) string {
		return func(n int) string {
			var b strings.Builder
			b.WriteString(before)
			for i := 0; b.Len() < n; i++ {
				fmt.Fprintf(&b, s, i)
			}
			return b.String() + after
		}
	}
	refused := 0
	for name, text := range map[string]func(n int) string{
		"keys":                    numbered("", "k%d: b\n", ""),
		"keys below":              numbered("a:\n  b:\n", "    k%d: b\n", ""),
		"keys without values":     numbered("", "k%d:\n", ""),
		"keys and comments":       numbered("", "  # c\nk%d: b\n", ""),
		"keys and lists":          numbered("", "k%d:\n- a\n", ""),
		"keys and brackets":       numbered("", "k%d: {a: [\nb]}\n", ""),
		"keys and texts":          numbered("", "k%d: |\n  a\n", ""),
		"keys and quotes":         numbered("", "k%d: 'a\n b'\n", ""),
		"long keys":               repeated(strings.Repeat("k", 100_000)+": {", "b: c, ", "}\n"),
		"long keys in lines":      repeated(strings.Repeat("k", 100_000)+":\n", "  - c\n", ""),
		"items":                   repeated("a:\n", "- b\n", ""),
		"items without values":    repeated("a:\n", "-\n", ""),
		"items with keys below":   repeated("a:\n", "-\na: b\n", ""),
		"lists in lists":          repeated("a:\n", "  - - - - b\n", ""),
		"mappings in mappings":    repeated("a:\n", "  - a:\n      b:\n        c: d\n", ""),
		"braces":                  repeated("a: {", "b: c, ", "d: e}\n"),
		"braces without values":   repeated("a: {", "b, ", "d: e}\n"),
		"braces without values 2": repeated("a: {", "b: , ", "d: e}\n"),
		"braces in brackets":      repeated("a: [", "{b}, ", "d]\n"),
		"keys in brackets":        repeated("a: [", "b: , ", "d]\n"),
		"lines in brackets":       repeated("a: [\n", "b: c\n", "]\n"),
		"lines in braces":         repeated("a: {x:\n", "b: c\n", "}\n"),
		"brackets":                repeated("a: [", "b, ", "e]\n"),
		"open brackets":           repeated("[a, [a, [a, ", "b, ", ""),
		"open braces":             repeated("{a: {a: {a: ", "b, ", ""),
		"comments":                repeated("a: b\n", "# a\n", ""),
		"documents":               repeated("", "---\na: b\n", ""),
		"null documents":          repeated("", "---\nnull\n", ""),
		"ends of documents":       repeated("", "a: b\n...\n", ""),
		"deep in brackets": func(n int) string {
			text := "a: [\n"
			for i := 1; len(text) < n; i++ {
				text += strings.Repeat(" ", i) + "a:\n"
			}
			return text + "]\n"
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{16 << 10, 32 << 10, 64 << 10, 128 << 10, MaxFileBytes - 1024} {
				r := &yamlReader{found: &collector{}}
				tokens := lexer.Tokenize(text(size))
				if !r.acceptable("x.yaml", tokens) {
					refused++
					return
				}
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				_, _ = parse(tokens) // if it is an error, it comes at the end of the work
				runtime.ReadMemStats(&after)
				share := float64(r.work) / maxParseWork
				if used := after.TotalAlloc - before.TotalAlloc; float64(used) > (share+0.02)*(1<<30) {
					t.Errorf("%d bytes, %.0f%% of the budget, took %d MiB", size, 100*share, used>>20)
				}
			}
		})
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
}
