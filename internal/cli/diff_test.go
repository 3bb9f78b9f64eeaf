package cli

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/bailment/bailment/internal/policy"
)

func TestUnified(t *testing.T) {
	from := policy.Files{
		"a.yaml": []byte("kept: 1\nold: 2\n"), "b.yaml": []byte("same\n"), "c.yaml": []byte("gone\n"), "e.bin": {0, 1}, "empty": {}, "g.md": []byte("x"),
	}
	to := policy.Files{
		"a.yaml": []byte("kept: 1\nnew: \x1b[2K2\n"), "b.yaml": []byte("same\n"), "d.yaml": []byte("-- before/a.yaml\n++ after/a.yaml\nremoved  a.yaml\n"), "e.bin": {0, 2},
		"g.md": []byte("x\n"),
	}
	got, left := unified(differences(from, to))
	want := `changed  a.yaml
--- before/a.yaml
+++ after/a.yaml
@@ -1,2 +1,2 @@
 kept: 1
-old: 2
+new: ·[2K2
removed  c.yaml
--- before/c.yaml
+++ /dev/null
@@ -1,1 +0,0 @@
-gone
added    d.yaml
--- /dev/null
+++ after/d.yaml
@@ -0,0 +1,3 @@
+-- before/a.yaml
+++ after/a.yaml
+removed  a.yaml
changed  e.bin
--- before/e.bin
+++ after/e.bin
not text: 2 bytes with SHA-256 b413f47d13ee2fe6c845b2ee141af81de858df4ec549a58b7970bb96645bc8d2, then 2 bytes with SHA-256 fcf0a6c700dd13e274b6fba8deea8dd9b26e4eedde3495717cac8408c9c5177f
removed  empty
--- before/empty
+++ /dev/null
changed  g.md
--- before/g.md
+++ after/g.md
@@ -1,1 +1,1 @@
-x
\ No newline at end of file
+x
`
	if got != want || left != 0 {
		t.Errorf("%d left out:\n%s\nwant\n%s", left, got, want)
	}
}

// However large a change is, what is shown of it is bounded, and that it is not all is said.
func TestUnifiedIsBounded(t *testing.T) {
	for name, content := range map[string]string{"lines": strings.Repeat("x\n", 3*shownLines), "bytes": strings.Repeat(strings.Repeat("x", 999)+"\n", 3000)} {
		text, left := unified(differences(policy.Files{}, policy.Files{"a": []byte(content), "b": []byte("y\n")}))
		shown := strings.Count(text, "\n")
		if total := strings.Count(content, "\n") + 4 + 5; left == 0 || shown+left != total || shown > shownLines || len(text) > shownBytes {
			t.Errorf("%s: %d lines, %d bytes, %d left out of %d", name, shown, len(text), left, total)
		}
	}
	if !strings.Contains((&review{proposal: propose(t).answer}).textLeftOut(2), "2 more lines: bailment change export 9 --files DIR") {
		t.Error("where the rest is to be seen is not said")
	}
}

// Whoever reads it sees every line that comes and every line that goes: what is shown, applied to one side, is the other.
func TestUnifiedLeavesNothingOut(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		lines := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "", "-- x", "++ x", "@@ -1,1 +1,1 @@", "d", "e"}), 0, 30)
		file := func(label string) []string { return lines.Draw(rt, label) }
		before, after := file("before"), file("after")
		join := func(x []string) []byte { return []byte(strings.Join(append(x[:len(x):len(x)], ""), "\n")) }
		text, left := unified(differences(policy.Files{"f": join(before)}, policy.Files{"f": join(after)}))
		if left != 0 {
			rt.Fatal("left out")
		}
		var out []string
		at := 0 // in before
		rest := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		if text != "" {
			rest = rest[3:] // the heading
		}
		for _, line := range rest {
			if text == "" {
				break
			}
			switch line[0] {
			case '@':
				var from, n int
				if _, err := fmt.Sscanf(line, "@@ -%d,%d ", &from, &n); err != nil {
					rt.Fatal(err)
				}
				if n > 0 {
					from--
				}
				out = append(out, before[at:from]...)
				at = from
			case ' ', '-':
				if before[at] != line[1:] {
					rt.Fatalf("%q is shown for %q", line, before[at])
				}
				if line[0] == ' ' {
					out = append(out, before[at])
				}
				at++
			case '+':
				out = append(out, line[1:])
			default:
				rt.Fatalf("%q", line)
			}
		}
		out = append(out, before[at:]...)
		if string(join(out)) != string(join(after)) {
			rt.Fatalf("%q became %q, and what is shown gives %q:\n%s", before, after, out, text)
		}
	})
}

func TestViewFiles(t *testing.T) {
	v := viewFiles(differences(policy.Files{"a": []byte("x")}, policy.Files{"b": {0xff}, "c": {}}))
	if len(v) != 3 || v[0].After != nil || v[0].Before.Text != "x" || v[1].Before != nil || v[1].After.Base64 != "/w==" || v[1].After.Text != "" || v[2].After == nil || v[2].After.Size != 0 {
		t.Errorf("%+v", v)
	}
}
