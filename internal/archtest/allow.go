package archtest

import (
	"strings"
)

// allow is one exception:
//
//	//arch:allow RULE: reason in one line
//
// It stands in the doc comment of what it excuses, on the line above, or on the same line. For
// file-lines it stands above the package clause, for package-lines above one of the package clauses.
type allow struct {
	rule, reason string
	line         int
	used         bool
}

const allowPrefix = "//arch:allow "

func allowsIn(f *File) []*allow {
	var out []*allow
	for _, group := range f.AST.Comments {
		for _, c := range group.List {
			text, ok := strings.CutPrefix(c.Text, allowPrefix)
			if !ok {
				continue
			}
			rule, reason, _ := strings.Cut(text, ":")
			out = append(out, &allow{rule: strings.TrimSpace(rule), reason: strings.TrimSpace(reason), line: f.line(c.Pos())})
		}
	}
	return out
}

// excused reports whether an exception for the rule stands on the lines from..to, and marks it used.
func (f *File) excused(rule string, from, to int) bool {
	for _, a := range f.allows {
		if a.rule == rule && a.reason != "" && from <= a.line && a.line <= to {
			a.used = true
			return true
		}
	}
	return false
}

// CheckAllows finds exceptions without a reason, and such as excuse nothing. It must run last.
func CheckAllows(pkgs []Package) []Finding {
	var out []Finding
	for _, p := range pkgs {
		for _, f := range p.Files {
			for _, a := range f.allows {
				switch {
				case a.reason == "":
					out = append(out, Finding{"allow", f.Path, a.line, "an exception needs its reason: " + allowPrefix + "RULE: reason"})
				case !a.used:
					out = append(out, Finding{"allow", f.Path, a.line, "this exception (" + a.rule + ") excuses nothing"})
				}
			}
		}
	}
	return out
}
