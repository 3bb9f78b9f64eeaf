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
		"long keys":        strings.Repeat("k", 100_000) + ": {" + strings.Repeat("a: b, ", 20_000) + "}\n",
		"no values":        "a: {" + fill("b, ") + "}\n",
		"no items":         "a:\n" + strings.Repeat("-\n", size/2-8),
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
	t.Run("ten thousand files", func(t *testing.T) {
		files := maps.Clone(exampleFiles(t))
		for i := range MaxFiles - len(files) {
			files[fmt.Sprintf("tests/hostile%d.yaml", i)] = []byte("apiVersion: bailment/v1\nkind: Test\nmetadata: {name: same}\nspec: {}\n")
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

// testDocuments puts n Test documents over the example, each with the spec that one makes, 50 to a file.
func testDocuments(t *testing.T, n int, one func(i int) string) Files {
	files := maps.Clone(exampleFiles(t))
	for from := 0; from < n; from += 50 {
		var b strings.Builder
		for i := from; i < min(from+50, n); i++ {
			fmt.Fprintf(&b, "---\napiVersion: bailment/v1\nkind: Test\nmetadata: {name: t%d}\nspec:\n%s", i, one(i))
		}
		files[fmt.Sprintf("tests/hostile%d.yaml", from)] = []byte(b.String())
	}
	return files
}

// Tests are refused as soon as they are more than can be run in the time that a server has for them.
func TestHostileTests(t *testing.T) {
	const head = "  tokens: [{name: t%d, method: workload, node: /node/join-token/a, claims: %s}]\n"
	wide := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "c%d: %d, ", i, i)
		}
		return "{" + b.String() + "name: a}"
	}
	few := wide(60)
	for name, files := range map[string]Files{
		"deep claims": testDocuments(t, 1, func(int) string { return fmt.Sprintf(head, 0, strings.Repeat("{a: ", 12)+"1"+strings.Repeat("}", 12)) }),
		"deep blocks": testDocuments(t, 1, func(int) string {
			return "  tokens:\n    - name: a\n      method: join-token\n      claims:\n" + deepClaims(30)
		}),
		"many values": testDocuments(t, 1, func(int) string { return fmt.Sprintf(head, 0, wide(MaxClaimValues)) }),
		"a long text": testDocuments(t, 1, func(int) string { return fmt.Sprintf(head, 0, "{a: "+strings.Repeat("x", MaxClaimText+1)+"}") }),
		"a long list": testDocuments(t, 1, func(int) string { return fmt.Sprintf(head, 0, "{a: ["+strings.Repeat("1,", 20_000)+"1]}") }),
		"bombs":       testDocuments(t, 1, func(int) string { return fmt.Sprintf(head, 0, "{a: &a [1], b: [*a, *a]}") }),
		"numbers":     testDocuments(t, 1, func(int) string { return fmt.Sprintf(head, 0, "{a: "+strings.Repeat("9", 200_000)+"}") }),
		"many tokens": testDocuments(t, maxTestTokens+1, func(i int) string { return fmt.Sprintf(head, i, "{name: a}") }),
		"many claims": testDocuments(t, 700, func(i int) string { return fmt.Sprintf(head, i, wide(300)) }),
		"many limits": testDocuments(t, MaxReachLimits+1, func(i int) string {
			return fmt.Sprintf("  limits: [{name: l%d, from: [/human/*], to: [db/*]}]\n", i)
		}),
		"many cases": testDocuments(t, MaxTests+1, func(int) string {
			return "  cases:\n    - {name: x, identity: /human/alice, secret: db/password, expect: deny}\n"
		}),
		"thousands with huge claims": testDocuments(t, 1_000, func(i int) string {
			spec := fmt.Sprintf(head, i, few) + "  cases:\n"
			for j := range 9 {
				spec += fmt.Sprintf("    - {name: x%d, token: t%d, claims: {name: b}, secret: db/password, expect: deny}\n", j, i)
			}
			return spec
		}),
		"many rules": func() Files {
			files := testDocuments(t, 3_000, func(i int) string {
				return "  identities:\n    - {name: x, token: p, expect: refuse}\n"
			})
			files["tests/p.yaml"] = []byte("apiVersion: bailment/v1\nkind: Test\nmetadata: {name: p}\nspec:\n  tokens: [{name: p, method: workload, node: /node/join-token/a, claims: {a: 1}}]\n")
			for path, data := range benchFiles(t, 1_000, "") {
				files[path] = data
			}
			return files
		}(),
	} {
		t.Run(name, func(t *testing.T) { refuse(t, files) })
	}
}

func deepClaims(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", 8+2*i) + "a:\n")
	}
	return b.String() + strings.Repeat(" ", 8+2*n) + "a: 1\n"
}

func refuse(t *testing.T, files Files) {
	t.Helper()
	runtime.GC()
	stop, peak := make(chan struct{}), make(chan uint64)
	go func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		var m runtime.MemStats
		most := uint64(0)
		for {
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapInuse)
			select {
			case <-tick.C:
			case <-stop:
				peak <- most
				return
			}
		}
	}()
	start := time.Now()
	_, err := compileFiles(files)
	took := time.Since(start)
	close(stop)
	used := <-peak >> 20
	var list Findings
	if !errors.As(err, &list) {
		t.Fatalf("not refused: %v", err)
	}
	for _, f := range list {
		if len(f.Message) > 2*maxMessage {
			t.Errorf("a finding of %d bytes", len(f.Message))
		}
	}
	// A second without the race detector and beside nothing else (see the log); here it is about not hanging.
	if took > 30*time.Second || used > 256 {
		t.Errorf("took %v and %d MiB: %s", took, used, list[0])
	}
	t.Logf("%v, %d MiB: %s", took.Round(time.Millisecond), used, list[0])
}

func deepIndent(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}
