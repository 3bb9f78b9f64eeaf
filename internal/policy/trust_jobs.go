package policy

import (
	"regexp"
	"slices"
	"strings"

	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"

	"github.com/bailment/bailment/internal/authority"
)

// What a rule about jobs lets in is looked for by examples: a job that its author hardly meant, of which some claims are known and the others
// can be anything. If the rule's conditions can be true of it, that is said, as advice, unless the rule accepts it by name.

// The names by which a rule accepts what is imprudent, and can be meant.
const (
	acceptEveryJob      = "every-job"
	acceptNames         = "mutable-names"
	acceptAnyBranch     = "any-branch"
	acceptPullRequests  = "pull-requests"
	acceptNoEnvironment = "no-environment"
)

var allAccepts = []string{acceptEveryJob, acceptNames, acceptAnyBranch, acceptPullRequests, acceptNoEnvironment}

// example is what is known of a job's claims. A claim that is not in it can be anything. absent stands for one that the token lacks, and
// what begins with "…" for a text of which the end is known.
type example map[string]string

const (
	absent = ""
	ending = "…"
	zz     = "zz-anybodys" // a branch that no rule is about
)

// imprudence is a kind of jobs that a rule may let in by mistake.
type imprudence struct {
	accept string
	who    string // whom the rule lets in
	ask    map[string]string
	jobs   map[string][]example
}

// imprudences are by what each service documents of its tokens: docs/reference/ci.md has the sources. Where a token can't tell, there is no
// example: of Buildkite's builds of forks, for one.
var imprudences = []imprudence{
	{
		acceptAnyBranch, "jobs of any branch, as everybody can push who can write",
		map[string]string{
			"github": `claims.ref, or claims.environment`, "gitlab": `claims.ref_protected == "true", or claims.ref_path`,
			"buildkite": "claims.build_branch", "circleci": "claims.vcs_ref",
		},
		map[string][]example{
			"github": {{
				"ref": "refs/heads/" + zz, "ref_type": "branch", "ref_protected": "false", "environment": absent,
				"subject": ending + ":ref:refs/heads/" + zz, "workflow_ref": ending + "@refs/heads/" + zz,
			}},
			"gitlab": {{
				"ref": zz, "ref_path": "refs/heads/" + zz, "ref_type": "branch", "ref_protected": "false", "environment_protected": "false",
				"subject": ending + ":ref_type:branch:ref:" + zz, "ci_config_ref_uri": ending + "@refs/heads/" + zz,
			}},
			"buildkite": {{"build_branch": zz, "build_tag": absent}},
			"circleci":  {{"vcs_ref": "refs/heads/" + zz, "context_ids": absent}},
		},
	},
	{
		acceptPullRequests, "jobs that a pull request from a fork starts, and which may run what is in it",
		map[string]string{
			"github": `claims.event_name (jobs of pull_request_target and workflow_run have the ref of a branch of one's own), or claims.environment`,
			"gitlab": `claims.pipeline_source, or claims.ref_protected == "true"`, "circleci": "claims.vcs_ref",
		},
		map[string][]example{
			"github": {
				{"event_name": "pull_request_target", "environment": absent, "subject": ending + ":pull_request_target"},
				{"event_name": "workflow_run", "environment": absent, "subject": ending + ":ref:refs/heads/main"},
				{"event_name": "workflow_run", "environment": absent, "subject": ending + ":ref:refs/heads/master"},
			},
			"gitlab":   {{"pipeline_source": "merge_request_event", "ref_protected": "false", "environment_protected": "false"}},
			"circleci": {{"vcs_ref": "refs/pull/7"}},
		},
	},
	{
		acceptNoEnvironment, "jobs without a deployment environment, which nobody's approval or branch policy holds up",
		map[string]string{"github": "claims.environment", "gitlab": "claims.environment, with claims.environment_protected", "circleci": "claims.context_ids"},
		map[string][]example{
			"github":   {{"environment": absent, "subject": ending + ":ref:refs/heads/main"}},
			"gitlab":   {{"environment": absent, "environment_protected": absent, "deployment_tier": absent, "environment_action": absent}},
			"circleci": {{"context_ids": absent}},
		},
	},
}

// jobTenants is what tells a service's customers apart, whoever runs the service.
var jobTenants = map[string]authority.Shared{
	"circleci": {IDs: []string{"org_id", "project_id", "pipeline_definition_id", "subject"}, Names: []string{"vcs_origin"}},
	"k8s-job":  {IDs: []string{"service_account_uid"}, Names: []string{"namespace", "service_account", "subject"}},
	"oidc":     {IDs: []string{"subject"}},
	"github":   sharedOf("https://token.actions.githubusercontent.com"), "gitlab": sharedOf("https://gitlab.com"), "buildkite": sharedOf("https://agent.buildkite.com"),
}

func sharedOf(issuer string) authority.Shared {
	s, _ := authority.SharedIssuer(issuer)
	return s
}

// prudent looks at a rule about jobs, and at what it accepts.
func (c *compiler) prudent(d *document, s *identitySpec, r *identityRule) {
	accepted := map[string]bool{}
	for _, t := range s.Accepts {
		if c.oneOf(t, "accepts", allAccepts...) != "" && accepted[t.value] {
			c.found.add(t.at, "%q is here twice", t.value)
		}
		accepted[t.value] = true
	}
	found := map[string]bool{}
	if service, ok := jobTenants[r.method]; ok {
		for _, kind := range allAccepts {
			message := c.imprudent(kind, s, r, service)
			if message == "" {
				continue
			}
			found[kind] = true
			if !accepted[kind] {
				c.program.advice = append(c.program.advice, Finding{d.at, oneLine("the identity " + r.name + " is for " + message + "; or say that it is meant: accepts: [" + kind + "]")})
			}
		}
		c.impossible(s, r)
	}
	for _, t := range s.Accepts {
		if slices.Contains(allAccepts, t.value) && !found[t.value] {
			c.program.advice = append(c.program.advice, Finding{t.at, oneLine("the identity " + r.name + " accepts " + t.value + ", and does not let it in: remove it")})
		}
	}
}

// imprudent says whom of a kind the rule lets in, and what to ask for; "" if it does not.
func (c *compiler) imprudent(kind string, s *identitySpec, r *identityRule, service authority.Shared) string {
	trees := []*celast.AST{c.ruleScope.parsed(s.When), c.ruleScope.parsed(s.Require)}
	if kind == acceptEveryJob || kind == acceptNames {
		if _, _, shared := c.tenantsOf(r); shared {
			return "" // there it is a finding
		}
		t := tenants{Shared: service, own: r.method == "oidc"}
		best := everybody
		for _, tree := range trees {
			if tree != nil {
				best = max(best, t.narrows(tree.Expr()))
			}
		}
		for _, segment := range r.path {
			best = max(best, t.class(segment.claim))
			if r.method == "oidc" && len(segment.claim) > 1 {
				best = byID
			}
		}
		switch {
		case best == everybody && kind == acceptEveryJob:
			return "every job that its issuer serves: compare one of " + strings.Join(service.IDs, ", ") + " in \"when\", or put it into the path"
		case best == byName && kind == acceptNames && len(service.IDs) > 0:
			return "jobs that it tells by a name, which somebody else may get: compare one of " + strings.Join(service.IDs, ", ") + " in \"when\", or put it into the path"
		}
		return ""
	}
	i := slices.IndexFunc(imprudences, func(x imprudence) bool { return x.accept == kind })
	of := c.serviceOf(r)
	jobs := imprudences[i].jobs[of]
	for _, segment := range r.path {
		if name := inner(segment.claim); name != "" && slices.ContainsFunc(jobs, func(job example) bool { _, told := job[name]; return told }) {
			return "" // the path tells, and so grants do
		}
	}
	if kind == acceptAnyBranch && len(jobs) > 0 {
		for _, b := range branches(trees) {
			if c.tried += len(s.When.value) + len(s.Require.value); c.tried <= maxTried {
				jobs = append(slices.Clip(jobs), jobs[0].on(b))
			}
		}
	}
	for _, job := range jobs {
		if !slices.ContainsFunc(trees, func(tree *celast.AST) bool { return tree != nil && !job.may(tree.Expr(), true) }) {
			return imprudences[i].who + ": ask for " + imprudences[i].ask[of] + " in \"when\""
		}
	}
	return ""
}

// serviceOf is the method whose jobs a rule is about, if its issuer is one of those that everybody knows.
func (c *compiler) serviceOf(r *identityRule) string {
	if r.method != "oidc" {
		return r.method
	}
	a, _ := c.program.Authority(r.authority)
	return publicIssuers[a.Issuer]
}

var publicIssuers = map[string]string{
	"https://token.actions.githubusercontent.com": "github", "https://gitlab.com": "gitlab", "https://agent.buildkite.com": "buildkite",
}

// inner is the name of a claim, also of one that method oidc gives below "claims"; "" for what is deeper, or none.
func inner(claim []string) string {
	switch {
	case len(claim) == 1:
		return claim[0]
	case len(claim) == 2 && claim[0] == varClaims:
		return claim[1]
	}
	return ""
}

// may reports whether an expression can be want for the job.
func (x example) may(e celast.Expr, want bool) bool {
	name, args := logic(e)
	switch name {
	case operators.LogicalAnd, operators.LogicalOr:
		if (name == operators.LogicalAnd) == want {
			return x.may(args[0], want) && x.may(args[1], want)
		}
		return x.may(args[0], want) || x.may(args[1], want)
	case operators.LogicalNot:
		return x.may(args[0], !want)
	case operators.Conditional:
		return x.may(args[0], true) && x.may(args[1], want) || x.may(args[0], false) && x.may(args[2], want)
	}
	got, known := x.atom(e)
	return !known || got == want
}

// atom evaluates a comparison of a claim that is known with something fixed.
func (x example) atom(e celast.Expr) (got, known bool) {
	if e.Kind() != celast.CallKind {
		return false, false
	}
	call := e.AsCall()
	args := slices.Clone(call.Args())
	if call.IsMemberFunction() {
		args = append([]celast.Expr{call.Target()}, args...)
	}
	if len(args) != 2 {
		return false, false
	}
	function := call.FunctionName()
	if claimOf(args[0]) == nil {
		if function == operators.In {
			// "x" in claims.list: of a list that is not there
			value, ok := x.of(args[1])
			return false, ok && value == absent
		}
		slices.Reverse(args)
	}
	value, ok := x.of(args[0])
	if !ok {
		return false, false
	}
	var texts []string
	if !eachText(args[1], func(s string) bool { texts = append(texts, s); return true }) {
		return false, false
	}
	switch function {
	case operators.Equals, operators.In:
		return slices.ContainsFunc(texts, func(s string) bool { return same(value, s) }), true
	case operators.NotEquals:
		return !same(value, texts[0]), true
	}
	return text1(function, value, texts[0])
}

func (x example) of(e celast.Expr) (string, bool) {
	name := inner(claimOf(e))
	if name == "" || isHas(e) {
		return "", false
	}
	value, ok := x[name]
	return value, ok
}

// same compares with a text of which maybe only the end is known.
func same(value, with string) bool {
	if end, ok := strings.CutPrefix(value, ending); ok {
		return strings.HasSuffix(with, end)
	}
	return value == with
}

// text1 is a function of texts; of one of which only the end is known, as far as the end can tell.
func text1(function, value, with string) (got, known bool) {
	end, partly := strings.CutPrefix(value, ending)
	switch function {
	case "endsWith":
		if partly {
			return strings.HasSuffix(end, with) || strings.HasSuffix(with, end), !strings.HasSuffix(with, end) || with == end
		}
		return strings.HasSuffix(value, with), true
	case "startsWith":
		if partly {
			// What begins with the repository is open; what goes on to a ref or an environment is not.
			for _, mark := range []string{":ref:", ":environment:", ":ref_type:", "@refs/", ":pull_request"} {
				if i := strings.Index(with, mark); i >= 0 {
					return strings.HasPrefix(end, with[i:]), true
				}
			}
			return false, false
		}
		return strings.HasPrefix(value, with), true
	case "contains":
		if partly {
			return strings.Contains(end, with), strings.Contains(end, with)
		}
		return strings.Contains(value, with), true
	case "matches":
		re, err := regexp.Compile(with)
		if err != nil || partly {
			return false, false
		}
		return re.MatchString(value), true
	}
	return false, false
}

// impossible finds conditions of jobs that no token fulfils: a star that was meant to stand for anything, and a claim that would have to be
// two things.
func (c *compiler) impossible(s *identitySpec, r *identityRule) {
	for _, t := range []text{s.When, s.Require} {
		tree := c.ruleScope.parsed(t)
		if tree == nil {
			continue
		}
		celast.PostOrderVisit(tree.Expr(), celast.NewExprVisitor(func(e celast.Expr) {
			if e.Kind() != celast.CallKind {
				return
			}
			call := e.AsCall()
			args := slices.Clone(call.Args())
			if call.IsMemberFunction() {
				args = append(args, call.Target())
			}
			function := call.FunctionName()
			glob := false
			for _, arg := range args {
				eachText(arg, func(text string) bool { glob = glob || strings.Contains(text, "*"); return true })
			}
			about := slices.ContainsFunc(args, func(arg celast.Expr) bool { return claimOf(arg) != nil })
			if glob && about && function != "matches" && slices.Contains([]string{operators.Equals, operators.NotEquals, operators.In, "startsWith", "endsWith"}, function) {
				c.advise(t.at, "the identity %s compares a claim with a text that has a '*', which stands for itself and not for anything: use startsWith, or matches with a regular expression", r.name)
			}
		}))
		if claim := contradiction(tree.Expr()); claim != "" {
			c.advise(t.at, "the identity %s can never be given: claims.%s would have to be two things at once", r.name, claim)
		}
		c.neverTogether(t, tree, r)
	}
}

// contradiction finds a claim that all of what an expression asks for can't be true of.
func contradiction(e celast.Expr) string {
	values := map[string][]string{} // what is left for a claim
	var atoms []celast.Expr
	var collect func(celast.Expr)
	collect = func(e celast.Expr) {
		if name, args := logic(e); name == operators.LogicalAnd {
			collect(args[0])
			collect(args[1])
			return
		}
		atoms = append(atoms, e)
	}
	collect(e)
	for _, a := range atoms {
		claim, list := comparison(a)
		if claim == "" || a.AsCall().FunctionName() == operators.NotEquals {
			continue
		}
		var texts []string
		for _, v := range list {
			if text, ok := literal(v); ok {
				texts = append(texts, text)
			}
		}
		if len(texts) != len(list) || len(texts) == 0 {
			continue
		}
		if left, ok := values[claim]; ok {
			texts = slices.DeleteFunc(slices.Clone(left), func(s string) bool { return !slices.Contains(texts, s) })
		}
		if values[claim] = texts; len(texts) == 0 {
			return claim
		}
	}
	// Each value that is left must be one of which nothing else is false.
	for claim, left := range values {
		if !slices.ContainsFunc(left, func(v string) bool {
			job := example{claim: v}
			return !slices.ContainsFunc(atoms, func(a celast.Expr) bool { return !job.may(a, true) })
		}) {
			return claim
		}
	}
	return ""
}

// neverTogether finds what a service never says in one token.
func (c *compiler) neverTogether(t text, tree *celast.AST, r *identityRule) {
	if r.method != "github" {
		return
	}
	e := tree.Expr()
	for _, event := range otherEvents {
		if (example{"event_name": event}).may(e, true) {
			return
		}
	}
	pull := example{"event_name": "pull_request"}
	if !pull.may(e, true) {
		return
	}
	if pull["ref"], pull["ref_protected"] = "refs/pull/7/merge", "false"; !pull.may(e, true) {
		c.advise(t.at, "the identity %s can never be given: the ref of a pull_request is refs/pull/NUMBER/merge and not protected, and it asks for another", r.name)
	}
}

// otherEvents are those that start workflows of GitHub, besides pull_request, and one that there is not.
var otherEvents = []string{
	"push", "pull_request_target", "workflow_dispatch", "workflow_run", "schedule", "release", "deployment", "deployment_status", "merge_group",
	"repository_dispatch", "issue_comment", "issues", "create", "delete", "registry_package", "page_build", "check_run", "check_suite", "status",
	"pull_request_review", "pull_request_review_comment", zz,
}
