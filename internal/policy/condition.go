package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types"

	"github.com/bailment/bailment/internal/identity"
)

// Limits of conditions. Cost is in CEL's units, some tens of nanoseconds each.
const (
	MaxCondition   = 4096    // bytes of an expression
	maxNodes       = 2000    // of its tree, macros expanded
	maxRecursion   = 32      // of the parser
	maxRegex       = 1000    // instructions of one regular expression
	softCost       = 20_000  // up to this static bound, evaluation is not metered: metering costs 2.7 times the time
	hardCost       = 500_000 // beyond this static bound a condition is refused
	runtimeCost    = softCost
	maxConditions  = 20_000 // distinct ones in a bundle
	maxSecretBytes = identity.MaxSecretPath
)

// condition is a compiled expression. It is immutable and safe for concurrent use.
type condition struct {
	program cel.Program
}

// scope says which variables an expression may use. Attributes are declared as qualified names, so
// that an unknown one is an error when the bundle is compiled and not when it is needed.
type scope struct {
	env   *cel.Env
	names []string
	cache map[string]compiled
}

type compiled struct {
	condition *condition
	issues    []issue
}

// issue is what is wrong with an expression, at a line and column of it (from 1; 0: as a whole).
type issue struct {
	line, column int
	message      string
}

// Names of the variables.
const (
	varClaims     = "claims"
	varNodeClaims = "node_claims"
	varIDPath     = "identity.path"
	varIDEnv      = "identity.env"
	varIDSegments = "identity.segments"
	varNodePath   = "node.path"
	varAction     = "request.action"
	varSecret     = "request.secret"
	varPurpose    = "request.purpose"
	varSecretName = "secret.name"
	varSecretType = "secret.type"
	varAssurance  = "assurance"
	varTime       = "time"
)

// grantScope is for a grant's condition.
func grantScope(more ...cel.EnvOption) (*scope, error) { return newScope(more, declarations(false)) }

// identityScope is for the condition of an identity rule: there is no identity yet.
func identityScope(more ...cel.EnvOption) (*scope, error) {
	return newScope(more, declarations(true))
}

func newScope(more []cel.EnvOption, variables []attribute) (*scope, error) {
	s := &scope{cache: map[string]compiled{}}
	options := append(slices.Clone(more),
		cel.ParserExpressionSizeLimit(MaxCondition),
		cel.ParserRecursionLimit(maxRecursion),
		cel.ParserErrorRecoveryLimit(4),
		cel.ExpressionNodeLimit(maxNodes),
		cel.RegexProgramSizeLimit(maxRegex),
		// Numbers in claims are integers wherever they can be, and literals shouldn't have to care.
		cel.CrossTypeNumericComparisons(true),
		cel.DefaultUTCTimeZone(true),
		cel.ASTValidators(cel.ValidateRegexLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateDurationLiterals()),
	)
	for _, v := range variables {
		options = append(options, cel.Variable(v.name, v.t))
		s.names = append(s.names, v.name)
	}
	// Assurance is compared as a number, so that "assurance >= level.key" means what it says; text
	// would compare by the alphabet.
	for _, a := range identity.Assurances() {
		name := "level." + a.String()
		options = append(options, cel.Constant(name, cel.IntType, types.Int(a)))
		s.names = append(s.names, name)
	}
	var err error
	if s.env, err = cel.NewEnv(options...); err != nil {
		return nil, fmt.Errorf("building the condition environment: %w", err)
	}
	return s, nil
}

// compile checks an expression and plans it. Equal expressions share one program.
func (s *scope) compile(expression string) (*condition, []issue) {
	if c, ok := s.cache[expression]; ok {
		return c.condition, c.issues
	}
	if len(s.cache) >= maxConditions {
		return nil, []issue{{message: fmt.Sprintf("the bundle has more than %d different conditions", maxConditions)}}
	}
	c, issues := s.compileNew(expression)
	s.cache[expression] = compiled{c, issues}
	return c, issues
}

func (s *scope) compileNew(expression string) (out *condition, issues []issue) {
	refuse := func(format string, args ...any) (*condition, []issue) {
		return nil, []issue{{message: fmt.Sprintf(format, args...)}}
	}
	if len(expression) > MaxCondition {
		return refuse("the condition is longer than %d bytes", MaxCondition)
	}
	// The library parses a language; it must not be able to stop the server.
	defer func() {
		if v := recover(); v != nil {
			out, issues = refuse("the condition is not understood")
		}
	}()
	checked, problems := s.env.Compile(expression)
	if problems.Err() != nil {
		for _, e := range problems.Errors() {
			issues = append(issues, issue{e.Location.Line(), e.Location.Column() + 1, s.explain(e.Message)})
		}
		return nil, issues
	}
	if t := checked.OutputType(); t != cel.BoolType {
		if t == cel.DynType {
			return refuse("the condition is a claim of unknown type: compare it, as in `claims.x == true`")
		}
		return refuse("the condition is of type %s, not bool", t)
	}
	if issues = inspect(checked); len(issues) > 0 {
		return nil, issues
	}
	estimate, err := s.env.EstimateCost(checked, sizes{})
	if err != nil {
		return refuse("the condition's cost can't be estimated")
	}
	if estimate.Max > hardCost {
		return refuse("the condition is too expensive: it may cost %s units, and %d is the limit", costText(estimate.Max), hardCost)
	}
	program, err := s.env.Program(checked, planning(estimate.Max)...)
	if err != nil {
		return refuse("the condition can't be planned: %v", err)
	}
	return &condition{program}, nil
}

// planning is how an expression of such a static cost is run.
func planning(most uint64) []cel.ProgramOption {
	options := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	if most > softCost {
		options = append(options, cel.CostLimit(runtimeCost))
	}
	return options
}

func costText(c uint64) string {
	if c > 1<<50 {
		return "unboundedly many"
	}
	return fmt.Sprint(c)
}

// explain adds to the library's message what may be used instead.
func (s *scope) explain(message string) string {
	message = strings.ReplaceAll(message, " (in container '')", "")
	if message == "invalid matches argument" {
		return "the pattern of matches() is no regular expression (RE2), or too large a one"
	}
	if strings.HasPrefix(message, "undeclared reference") && !strings.Contains(message, "to '_") {
		message += ": a condition may use " + strings.Join(s.names, ", ")
	}
	return message
}

// inspect finds what type checking accepts and we don't.
func inspect(checked *cel.Ast) []issue {
	tree := checked.NativeRep()
	var out []issue
	add := func(e celast.Expr, message string) {
		at := tree.SourceInfo().GetStartLocation(e.ID())
		out = append(out, issue{at.Line(), at.Column() + 1, message})
	}
	variables := false
	celast.PostOrderVisit(tree.Expr(), celast.NewExprVisitor(func(e celast.Expr) {
		if e.Kind() == celast.IdentKind || e.Kind() == celast.SelectKind {
			if r := tree.ReferenceMap()[e.ID()]; r != nil && r.Name != "" && r.Value == nil {
				variables = true
			}
		}
		if e.Kind() == celast.CallKind && e.AsCall().FunctionName() == "matches" {
			call := e.AsCall()
			args := call.Args()
			if pattern := args[len(args)-1]; pattern.Kind() != celast.LiteralKind {
				// Otherwise whoever makes the claim chooses how long it takes.
				add(pattern, "the pattern of matches() must be a literal")
			}
		}
	}))
	if !variables {
		add(tree.Expr(), "the condition doesn't depend on anything: it is always true, or never")
	}
	return out
}

// sizes bounds the inputs for the static cost.
type sizes struct{}

func (sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}

func (sizes) EstimateSize(element cost.AstNode) *cost.SizeEstimate {
	if element.ComputedSize() != nil {
		return nil
	}
	limit := uint64(MaxClaimText)
	if path := element.Path(); len(path) > 0 {
		switch path[0] {
		case varIDPath, varNodePath:
			limit = identity.MaxPath
		case varIDEnv:
			limit = identity.MaxEnv
		case varIDSegments:
			if limit = identity.MaxSegments; len(path) > 1 {
				limit = identity.MaxPath
			}
		case varAction, varPurpose, varSecretType:
			limit = 64
		case varSecret, varSecretName:
			limit = maxSecretBytes
		}
	}
	if kind := element.Type().Kind(); kind == types.MapKind || kind == types.ListKind && limit == MaxClaimText {
		limit = MaxClaimValues
	}
	out := cost.RangedSizeEstimate(0, limit)
	return &out
}

// vars are the variables of one evaluation.
type vars struct {
	in   *Input
	prog *Program
	from *Claims // of an identity rule, which has no Input
	node string
	seen *coverage // nil: nobody wants to know what was evaluated
}

// ResolveName implements cel.Activation.
func (v *vars) ResolveName(name string) (any, bool) {
	if v.from != nil {
		switch name {
		case varClaims:
			return v.from.mapper(), true
		case varNodePath:
			return types.String(v.node), true
		}
		return nil, false
	}
	switch name {
	case varClaims:
		return v.in.Claims.mapper(), true
	case varNodeClaims:
		return v.in.NodeClaims.mapper(), true
	case varIDPath:
		return types.String(v.in.Identity), true
	case varIDEnv:
		return types.String(v.prog.environment.Name), true
	case varIDSegments:
		return types.NewStringList(types.DefaultTypeAdapter, strings.Split(strings.TrimPrefix(v.in.Identity, "/"), "/")), true
	case varNodePath:
		return types.String(v.in.Node), true
	case varAction:
		return types.String(v.in.Action), true
	case varSecret:
		return types.String(v.in.Secret), true
	case varPurpose:
		return types.String(v.in.Purpose), true
	case varSecretName:
		s, _ := v.prog.Secret(v.in.Secret)
		return types.String(s.Pattern.String()), true
	case varSecretType:
		s, _ := v.prog.Secret(v.in.Secret)
		return types.String(s.Type), true
	case varAssurance:
		return types.Int(v.in.Assurance), true
	case varTime:
		// Whole milliseconds are what the ledger keeps, and a replay must see the same.
		return types.Timestamp{Time: v.in.Time.UTC().Truncate(time.Millisecond)}, true
	}
	return nil, false
}

// Parent implements cel.Activation.
func (*vars) Parent() cel.Activation { return nil }

var errNotBool = errors.New("the condition did not give true or false")

// holds evaluates the condition. An error says that it could not be told: a claim is missing or of
// another type, or the cost limit was reached.
func (c *condition) holds(v *vars) (bool, error) {
	out, _, err := c.program.Eval(v)
	if err != nil {
		return false, err
	}
	b, ok := out.(types.Bool)
	if !ok {
		return false, errNotBool
	}
	return bool(b), nil
}
