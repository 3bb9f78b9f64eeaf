package archtest

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// MaxMapLines is the most lines that ARCHITECTURE.md may have: a map that fits in one sitting.
const MaxMapLines = 150

// mapRow is a row of a table of ARCHITECTURE.md that begins with a package: | `internal/x` | …
var mapRow = regexp.MustCompile("^\\| *`([^`]+)` *\\|")

// CheckMap compares the text of ARCHITECTURE.md with the packages that there are. A generated tree
// is mapped as one line, "api/...".
func CheckMap(text string, pkgs []Package) []Finding {
	const name = "ARCHITECTURE.md"
	var out []Finding
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) > MaxMapLines {
		out = append(out, Finding{"map", name, 0, fmt.Sprintf("%d lines (ceiling %d)", len(lines), MaxMapLines)})
	}
	var listed []string
	for i, l := range lines {
		m := mapRow.FindStringSubmatch(l)
		if m == nil {
			continue
		}
		if slices.Contains(listed, m[1]) {
			out = append(out, Finding{"map", name, i + 1, m[1] + " is listed twice"})
		}
		listed = append(listed, m[1])
		if !slices.ContainsFunc(pkgs, func(p Package) bool { return matches(m[1], p.Path) }) {
			out = append(out, Finding{"map", name, i + 1, "lists " + m[1] + ", which is no package"})
		}
	}
	for _, p := range pkgs {
		if !slices.ContainsFunc(listed, func(l string) bool { return matches(l, p.Path) }) {
			out = append(out, Finding{"map", name, 0, "does not list the package " + p.Path})
		}
	}
	return out
}
