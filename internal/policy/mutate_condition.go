package policy

import (
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/parser"
)

// conditionMutant is a condition of which one part was weakened.
type conditionMutant struct {
	condition *condition
	dropped   bool   // nothing is left of it
	part      string // what was weakened, as it is written
	taken     bool   // what it is taken for
	line      int    // of the part in the text, from 1
}

// conditionMutator weakens conditions. Equal texts are weakened once.
type conditionMutator struct {
	scope *scope
	cache map[conditionKey][]conditionMutant
}

type conditionKey struct {
	text string
	aim  bool
}

func newConditionMutator(scope func(...cel.EnvOption) (*scope, error)) (*conditionMutator, error) {
	// Without the calls of macros an expression can't be written down again.
	s, err := scope(cel.EnableMacroCallTracking())
	return &conditionMutator{s, map[conditionKey][]conditionMutant{}}, err
}

// of weakens a condition in all ways, one at a time. The aim is what it is weakened towards: true for what lets in, false for what keeps
// out. Left out is what gives the same answer always: of equal mutants all but the first, and a look whether a claim is there before what
// can't be true (or false) without it.
func (m *conditionMutator) of(text string, aim bool) []conditionMutant {
	key := conditionKey{text, aim}
	if out, ok := m.cache[key]; ok {
		return out
	}
	out := m.weakened(text, aim)
	m.cache[key] = out
	return out
}

func (m *conditionMutator) weakened(text string, aim bool) []conditionMutant {
	checked, problems := m.scope.env.Compile(text)
	if problems.Err() != nil {
		return nil // it was compiled before, so this is not reached
	}
	tree := checked.NativeRep()
	w := &weakening{aim: aim, tree: tree, factory: celast.NewExprFactory()}
	w.walk(tree.Expr(), upright, nil)
	most := uint64(softCost + 1)
	if estimate, err := m.scope.env.EstimateCost(checked, sizes{}); err == nil {
		most = estimate.Max
	}
	out := []conditionMutant{{dropped: true, part: text, taken: aim, line: 1}}
	seen := map[string]bool{}
	for _, s := range w.sites {
		weak := w.with(tree.Expr(), s)
		if weak.Kind() == celast.LiteralKind || seen[w.text(weak)] {
			continue // nothing is left but the aim, or it was had
		}
		seen[w.text(weak)] = true
		program, err := m.scope.env.PlanProgram(celast.NewCheckedAST(celast.NewAST(weak, tree.SourceInfo()), tree.TypeMap(), tree.ReferenceMap()), planning(most)...)
		if err != nil {
			continue
		}
		line := tree.SourceInfo().GetStartLocation(s.part.ID()).Line()
		out = append(out, conditionMutant{condition: &condition{program}, part: w.text(s.part), taken: s.value, line: max(line, 1)})
	}
	return out
}

// bearing says what becomes of the whole if a part becomes more often true.
type bearing int8

const (
	upright bearing = iota // the whole does, too
	turned                 // the whole becomes more often false
	open                   // one or the other
)

// site is a part that is taken for a constant.
type site struct {
	part  celast.Expr
	value bool
}

type weakening struct {
	aim     bool
	tree    *celast.AST
	factory celast.ExprFactory
	sites   []site
}

// walk finds the atoms of an expression's logic. beside are the parts that have to hold (for the aim true; for false: to fail) together
// with this one.
func (w *weakening) walk(e celast.Expr, b bearing, beside []celast.Expr) {
	name, args := logic(e)
	switch name {
	case operators.LogicalAnd, operators.LogicalOr:
		chain := b == upright && (name == operators.LogicalAnd) == w.aim
		for i, arg := range args {
			if chain {
				w.walk(arg, b, append(slices.Clone(beside), args[1-i]))
			} else {
				w.walk(arg, b, nil)
			}
		}
	case operators.LogicalNot:
		// !has(x) keeps its neighbours, which are what it guards.
		if !w.aim && b == upright && isHas(args[0]) {
			w.guarded(args[0], beside, false)
			return
		}
		w.walk(args[0], [...]bearing{turned, upright, open}[b], nil)
	case operators.Conditional:
		w.walk(args[0], open, nil)
		w.walk(args[1], b, nil)
		w.walk(args[2], b, nil)
	default:
		w.atom(e, b, beside)
	}
}

func (w *weakening) atom(e celast.Expr, b bearing, beside []celast.Expr) {
	if e.Kind() == celast.LiteralKind {
		return
	}
	switch {
	case b == open:
		w.sites = append(w.sites, site{e, true}, site{e, false})
	case w.aim && b == upright && isHas(e):
		w.guarded(e, beside, true)
	default:
		w.sites = append(w.sites, site{e, w.aim == (b == upright)})
	}
}

// guarded is about has(claim): taken away, what stands beside it is asked for a claim that is not there, and can't be told. For a grant that
// allows this is as good as false, and for one that denies as true: as what has(claim) was for.
func (w *weakening) guarded(e celast.Expr, beside []celast.Expr, aim bool) {
	claim := claimOf(e)
	for _, other := range beside {
		if claim != nil && undecided(other, claim, aim) {
			return
		}
	}
	w.sites = append(w.sites, site{e, true})
}

func isHas(e celast.Expr) bool { return e.Kind() == celast.SelectKind && e.AsSelect().IsTestOnly() }

// undecided reports whether an expression never gives aim when the claim is missing.
func undecided(e celast.Expr, claim []string, aim bool) bool {
	name, args := logic(e)
	switch name {
	case operators.LogicalAnd, operators.LogicalOr:
		if (name == operators.LogicalAnd) == aim {
			return undecided(args[0], claim, aim) || undecided(args[1], claim, aim)
		}
		return undecided(args[0], claim, aim) && undecided(args[1], claim, aim)
	case operators.LogicalNot:
		inner, _ := logic(args[0])
		return inner == "" && reads(args[0], claim)
	case operators.Conditional:
		return false
	}
	return reads(e, claim)
}

// reads reports whether an atom can't be told without the claim.
func reads(e celast.Expr, claim []string) bool {
	found, lazy := false, false
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		// Not every part of these is evaluated.
		inner, _ := logic(x)
		lazy = lazy || x.Kind() == celast.ComprehensionKind || isHas(x) || inner != ""
		path := claimOf(x)
		found = found || len(path) >= len(claim) && slices.Equal(path[:len(claim)], claim)
	}))
	return found && !lazy
}

// logic is the operator and the operands of an expression of truth values, or "".
func logic(e celast.Expr) (string, []celast.Expr) {
	if e.Kind() != celast.CallKind {
		return "", nil
	}
	switch name := e.AsCall().FunctionName(); name {
	case operators.LogicalAnd, operators.LogicalOr, operators.LogicalNot, operators.Conditional:
		return name, e.AsCall().Args()
	}
	return "", nil
}

// with returns the expression with a site taken for its value, and without what that makes superfluous. The original is not changed.
func (w *weakening) with(e celast.Expr, s site) celast.Expr {
	if e.ID() == s.part.ID() {
		return w.factory.NewLiteral(e.ID(), types.Bool(s.value))
	}
	name, args := logic(e)
	if name == "" {
		return e
	}
	changed := make([]celast.Expr, len(args))
	same := true
	for i, arg := range args {
		changed[i] = w.with(arg, s)
		same = same && changed[i] == arg
	}
	if same {
		return e
	}
	constant := func(i int, value bool) bool {
		return changed[i].Kind() == celast.LiteralKind && changed[i].AsLiteral() == types.Bool(value)
	}
	switch name {
	case operators.LogicalNot:
		if changed[0].Kind() == celast.LiteralKind {
			return w.factory.NewLiteral(e.ID(), types.Bool(constant(0, false)))
		}
	case operators.LogicalAnd, operators.LogicalOr:
		neutral := name == operators.LogicalAnd
		for i := range changed {
			if constant(i, neutral) {
				return changed[1-i]
			}
			if constant(i, !neutral) {
				return changed[i]
			}
		}
	case operators.Conditional:
		if constant(0, true) {
			return changed[1]
		}
		if constant(0, false) {
			return changed[2]
		}
	}
	return w.factory.NewCall(e.ID(), name, changed...)
}

func (w *weakening) text(e celast.Expr) string {
	s, err := parser.Unparse(e, w.tree.SourceInfo())
	if err != nil {
		return "a part of the condition"
	}
	return strings.Join(strings.Fields(s), " ")
}
