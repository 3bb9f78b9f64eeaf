package policy

import (
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
)

// Bounds of looking at a regular expression, and at one element of a list after the other. What needs more is taken to let in everybody.
const (
	maxBeginnings = 64
	maxClass      = 16 // characters of a class that are told apart
	maxElements   = 64
)

// beginning is a text with which what a regular expression fits begins. It is whole if that is all of it.
type beginning struct {
	text    string
	anchor  bool // it stands where the text begins
	stopped bool // what follows can be many things
	whole   bool
}

// beginnings are the texts of which one begins whatever a regular expression fits; none if it may fit in the midst of a text, or if they
// are too many to look at.
func beginnings(pattern string) []beginning {
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return nil
	}
	list := follow(re.Simplify(), []beginning{{}})
	if slices.ContainsFunc(list, func(b beginning) bool { return !b.anchor }) {
		return nil
	}
	return list
}

// follow goes on with each beginning by what comes next; none if they become too many.
func follow(re *syntax.Regexp, list []beginning) []beginning {
	switch re.Op {
	case syntax.OpConcat, syntax.OpCapture:
		for _, sub := range re.Sub {
			list = follow(sub, list)
		}
		return list
	case syntax.OpAlternate:
		var out []beginning
		for _, sub := range re.Sub {
			if out = append(out, follow(sub, slices.Clone(list))...); len(out) > maxBeginnings {
				return nil
			}
		}
		return out
	case syntax.OpCharClass:
		var out []beginning
		for i := 0; i < len(re.Rune); i += 2 {
			if re.Rune[i+1]-re.Rune[i] >= maxClass {
				out = nil
				break
			}
			for r := re.Rune[i]; r <= re.Rune[i+1]; r++ {
				out = append(out, then(list, string(r))...)
			}
			if len(out) > maxBeginnings {
				return nil
			}
		}
		if out != nil {
			return out
		}
	case syntax.OpLiteral:
		if re.Flags&syntax.FoldCase == 0 {
			return then(list, string(re.Rune))
		}
	case syntax.OpEmptyMatch:
		return list
	}
	out := slices.Clone(list)
	for i := range out {
		switch b := &out[i]; {
		case b.stopped || b.whole:
		case re.Op == syntax.OpBeginText && b.text == "":
			b.anchor = true
		case re.Op == syntax.OpEndText:
			b.whole = true
		default:
			b.stopped = true
		}
	}
	return out
}

func then(list []beginning, text string) []beginning {
	out := slices.Clone(list)
	for i := range out {
		if b := &out[i]; !b.stopped && !b.whole {
			b.text += text
			b.stopped = !b.anchor // it may stand anywhere
		}
	}
	return out
}

// begins is whom a condition lets in for which a claim begins with one of some texts.
func (t tenants) begins(claim celast.Expr, list []beginning) reach {
	name := claimOf(claim)
	if name == nil || len(list) == 0 {
		return everybody
	}
	out := byID
	for _, b := range list {
		text, class := b.text, t.class(name)
		if !b.whole && (!t.own || len(name) == 1) {
			text = text[:strings.LastIndexAny(text, "/:")+1] // or octo is octopus too, and 65 is 650
		}
		switch {
		case !b.whole && (text == "" || slices.ContainsFunc(strangers, func(s string) bool { return strings.HasPrefix(s, text) })):
			return everybody
		case class == byName && name[len(name)-1] == "subject" && hasID(text):
			class = byID // in one of the forms of subjects that are made of IDs
		}
		out = min(out, class)
	}
	return out
}

// strangers are claims of jobs of somebody else.
var strangers = []string{
	zz, zz + "/zz", zz + "/zz/zz", "repo:" + zz + "/zz:ref:refs/heads/zz", "repo:" + zz + "@9007199254740881/zz@9007199254740847:ref:refs/heads/zz",
	"repo:" + zz + "/zz:environment:zz", "project_path:" + zz + "/zz:ref_type:branch:ref:zz", "organization:" + zz + ":pipeline:zz:ref:refs/heads/zz:commit:0:step:zz",
	"project_id:9007199254740881:ref_type:branch:ref:zz", zz + "/zz/.github/workflows/zz.yml@refs/heads/zz", "9007199254740881", "f7f3d2a1-5b0e-4c7d-9c55-8d2a6e1b4f90",
	"org/f7f3d2a1-5b0e-4c7d-9c55-8d2a6e1b4f90/project/f7f3d2a1-5b0e-4c7d-9c55-8d2a6e1b4f91/user/f7f3d2a1-5b0e-4c7d-9c55-8d2a6e1b4f92",
	"github.com/" + zz + "/zz", "gitlab.com/" + zz + "/zz", "bitbucket.org/" + zz + "/zz", "https://github.com/" + zz + "/zz", "system:serviceaccount:" + zz + ":zz",
}

// fitStrangers reports whether a regular expression fits them.
func fitStrangers(pattern string) bool {
	re, err := regexp.Compile(pattern)
	return err == nil && slices.ContainsFunc(strangers, re.MatchString)
}

// branches are names of branches that nobody looks after, which a condition might let in that means another one: with parts of its own texts,
// where it does not ask for all of the claim.
func branches(trees []*celast.AST) []string {
	var out []string
	add := func(text string) {
		text = strings.TrimPrefix(text, "refs/heads/")
		if text == "" {
			return
		}
		out = append(out, zz+text, zz+"/"+text+"/"+zz)
		if last := text[len(text)-1]; last != '/' && last != '-' && last != '_' && last != '.' {
			out = append(out, text+zz) // main is mainly, too; release/ is a family that somebody named
		}
	}
	for _, tree := range trees {
		if tree == nil {
			continue
		}
		celast.PostOrderVisit(tree.Expr(), celast.NewExprVisitor(func(e celast.Expr) {
			if e.Kind() != celast.CallKind || !e.AsCall().IsMemberFunction() || len(e.AsCall().Args()) != 1 {
				return
			}
			text, _ := literal(e.AsCall().Args()[0])
			switch e.AsCall().FunctionName() {
			case "startsWith", "endsWith", "contains":
				add(text)
			case "matches":
				out = append(out, "anybodys", "feature/anybodys", "7")
				for _, run := range runs(text) {
					add(run)
				}
			}
		}))
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return out[:min(len(out), maxBranches)]
}

// Bounds of trying branches: of one rule, and of a bundle in bytes of conditions. Beyond, rules are tried on the usual one only.
const (
	maxBranches = 24
	maxTried    = 2 << 20
)

// on is the example with another branch.
func (x example) on(branch string) example {
	out := make(example, len(x))
	for claim, value := range x {
		out[claim] = strings.ReplaceAll(value, zz, branch)
	}
	return out
}

// runs are the literal parts of a regular expression.
func runs(pattern string) []string {
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return nil
	}
	var out []string
	var walk func(*syntax.Regexp)
	walk = func(re *syntax.Regexp) {
		if re.Op == syntax.OpLiteral {
			out = append(out, string(re.Rune))
		}
		for _, sub := range re.Sub {
			walk(sub)
		}
	}
	walk(re)
	return out
}

// each is whom exists and all let in over texts that are written down, one after the other, and exists over a claim that is a list. Others
// can be written otherwise, and are taken to let in everybody.
func (t tenants) each(e celast.Expr) reach {
	c := e.AsComprehension()
	name, args := logic(c.LoopStep())
	if name == "" || len(args) != 2 || c.HasIterVar2() || hasComprehension(args[1]) {
		return everybody
	}
	all := name == operators.LogicalAnd
	if claimOf(c.IterRange()) != nil && !all { // all is true of a list that is empty
		return t.narrows(replaced(args[1], c.IterVar(), c.IterRange()))
	}
	if c.IterRange().Kind() != celast.ListKind {
		return everybody
	}
	list := c.IterRange().AsList().Elements()
	if len(list) == 0 || len(list) > maxElements {
		return everybody
	}
	out := map[bool]reach{true: everybody, false: byID}[all]
	for _, x := range list {
		if x.Kind() != celast.LiteralKind {
			return everybody
		}
		got := t.narrows(replaced(args[1], c.IterVar(), x))
		if all {
			out = max(out, got)
		} else {
			out = min(out, got)
		}
	}
	return out
}

func hasComprehension(e celast.Expr) bool {
	found := false
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) { found = found || x.Kind() == celast.ComprehensionKind }))
	return found
}

// replaced is an expression without comprehensions in which something stands in place of a variable.
func replaced(e celast.Expr, variable string, by celast.Expr) celast.Expr {
	f := celast.NewExprFactory()
	var walk func(celast.Expr) celast.Expr
	walkAll := func(list []celast.Expr) []celast.Expr {
		out := make([]celast.Expr, len(list))
		for i, x := range list {
			out[i] = walk(x)
		}
		return out
	}
	walk = func(e celast.Expr) celast.Expr {
		switch e.Kind() {
		case celast.IdentKind:
			if e.AsIdent() == variable {
				return by
			}
		case celast.CallKind:
			c := e.AsCall()
			if c.IsMemberFunction() {
				return f.NewMemberCall(e.ID(), c.FunctionName(), walk(c.Target()), walkAll(c.Args())...)
			}
			return f.NewCall(e.ID(), c.FunctionName(), walkAll(c.Args())...)
		case celast.ListKind:
			return f.NewList(e.ID(), walkAll(e.AsList().Elements()), nil)
		}
		return e
	}
	return walk(e)
}
