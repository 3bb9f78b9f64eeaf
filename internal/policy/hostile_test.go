package policy

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/problem"
)

// Every bundle here is refused, soon and without taking much memory. The limits are generous for
// a busy machine and the race detector; what they catch is a hundred times worse.
func TestHostileBundles(t *testing.T) {
	const size = MaxFileBytes - 1024
	fill := func(s string) string { return strings.Repeat(s, size/len(s)) }
	grant := func(when string) string {
		return "apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: g}\nspec:\n  actions: [secret.list]\n  identities: [/human/alice]\n  secrets: [db/password]\n  when: " + when + "\n"
	}
	for name, text := range map[string]string{
		"flow lists":       fill("["),
		"flow maps":        fill("{a: "),
		"block lists":      fill("- "),
		"explicit keys":    fill("? "),
		"keys in keys":     fill("a: "),
		"many keys":        fill("a: b\n"),
		"many items":       "a:\n" + fill("- b\n"),
		"documents":        fill("---\n") + "x",
		"document lists":   fill("---\n- a\n"),
		"quoted":           fill("\"a\""),
		"single quoted":    "a: '" + fill("''"),
		"comments":         fill("# a\n"),
		"deep indentation": deepIndent(700),
		"billion laughs":   "a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: [*b,*b,*b,*b]\n",
		"pipes":            fill("|\n"),
		"colons":           fill(":"),
		"braces closed":    fill("}"),
		"long text":        "apiVersion: bailment/v1\nkind: \"" + fill("x") + "\"\n",
		"control":          fill("\x00"),
		"over size":        strings.Repeat("# \n", MaxFileBytes/2),
		"condition deep":   grant("'" + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + "'"),
		"condition not":    grant("'" + strings.Repeat("!", 4000) + "true'"),
		"condition minus":  grant("'" + strings.Repeat("-", 4000) + "claims == 1'"),
		"condition calls":  grant("'" + strings.Repeat("size(", 700) + "claims" + strings.Repeat(")", 700) + " == 1'"),
		"condition chain":  grant("'claims" + strings.Repeat(".a", 1900) + " == 1'"),
		"condition macros": grant("'" + strings.Repeat("claims.l.all(x, ", 100) + "x" + strings.Repeat(")", 100) + "'"),
		"condition regex":  grant(`'node.path.matches("` + strings.Repeat("(x+x+)+", 500) + `")'`),
		"condition repeat": grant(`'node.path.matches("((((a{1,100}){1,100}){1,100}){1,100})")'`),
		"condition joins":  grant("'" + strings.Repeat("claims.a + ", 300) + "claims.a == \"x\"'"),
	} {
		t.Run(name, func(t *testing.T) {
			files := maps.Clone(exampleFiles(t))
			files["grants/hostile.yaml"] = []byte(text)
			refuse(t, files)
		})
	}
	t.Run("every file", func(t *testing.T) {
		files := maps.Clone(exampleFiles(t))
		for i := range MaxBytes/MaxFileBytes - 1 {
			files[fmt.Sprintf("grants/hostile%d.yaml", i)] = []byte(fill("a: b\n"))
		}
		refuse(t, files)
	})
	t.Run("patterns", func(t *testing.T) {
		files := maps.Clone(exampleFiles(t))
		for i := range 200 {
			var ids, secrets []string
			for j := range maxPatterns {
				ids = append(ids, fmt.Sprintf("/workload/a%d-%d/*", i, j))
				secrets = append(secrets, fmt.Sprintf("s%d-%d/*", i, j))
			}
			files[fmt.Sprintf("grants/g%d.yaml", i)] = fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: g%d}\nspec:\n  actions: [secret.list]\n  identities: [%s]\n  secrets: [%s]\n", i, strings.Join(ids, ", "), strings.Join(secrets, ", "))
		}
		refuse(t, files)
	})
	t.Run("a hundred megabytes", func(t *testing.T) {
		files := maps.Clone(exampleFiles(t))
		shared := make([]byte, 1<<20)
		for i := range 100 {
			files[fmt.Sprintf("grants/%d.yaml", i)] = shared
		}
		if _, err := compileFiles(files); !problem.Is(err, problem.ReasonTooLarge) {
			t.Errorf("%v", err)
		}
	})
}

func refuse(t *testing.T, files Files) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	_, err := compileFiles(files)
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	var list Findings
	if !errors.As(err, &list) {
		t.Fatalf("not refused: %v", err)
	}
	for _, f := range list {
		if len(f.Message) > 2*maxMessage {
			t.Errorf("a finding of %d bytes", len(f.Message))
		}
	}
	allocated := (after.TotalAlloc - before.TotalAlloc) >> 20
	if took > 3*time.Second || allocated > 512 {
		t.Errorf("took %v and %d MiB in all: %s", took, allocated, list[0])
	}
	t.Logf("%v, %d MiB in all: %s", took.Round(time.Millisecond), allocated, list[0])
}

func deepIndent(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}
