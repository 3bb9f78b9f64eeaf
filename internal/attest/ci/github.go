package ci

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt"
	"github.com/bailment/bailment/internal/attest/platform"
	"github.com/bailment/bailment/internal/problem"
)

// GitHubName is the method of GitHub Actions.
const GitHubName = "github"

// GitHub is the method's row. A job asks for a token with any audience, at any time.
func GitHub() attest.Method {
	return platform.Platform{
		Name:   GitHubName,
		Proves: "a job of this repository, on this ref, event, environment and workflow, asked GitHub for this session key",
		DoesNotProve: "that the job runs what was reviewed: any step of it can ask for the token. Rules must name the IDs of owner and " +
			"repository, and ref, event or environment",
		Bindings:    []platform.Binding{platform.ToKey},
		Renewal:     byEvidence,
		MaxLifetime: time.Hour, // GitHub's live for minutes
		Claims:      githubClaims,
		Needs: []attest.Need{
			{Name: NeedRequestURL, Literal: true, Doc: "ACTIONS_ID_TOKEN_REQUEST_URL of the job, which has it with the permission id-token: write"},
			{Name: NeedRequestToken, Secret: true, Doc: "ACTIONS_ID_TOKEN_REQUEST_TOKEN of the job"},
		},
		NewAttester: newGitHub,
	}.Method()
}

func fromGitHub(j job) (attest.Material, error) {
	where, token := j.getenv("ACTIONS_ID_TOKEN_REQUEST_URL"), j.getenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
	if where == "" || token == "" {
		return nil, problem.New(problem.ReasonInvalid, "the job may not ask for ID tokens").
			WithFix("give it the permission: `permissions: {id-token: write}` in the workflow; jobs of pull requests from forks can't have it")
	}
	return attest.Material{NeedRequestURL: []byte(where), NeedRequestToken: []byte(token)}, nil
}

func newGitHub(m attest.Material) (attest.Attester, error) {
	where, err := platform.Address(m[NeedRequestURL])
	if err != nil {
		return nil, err
	}
	bearer := strings.TrimSpace(string(m[NeedRequestToken]))
	if bearer == "" || strings.ContainsFunc(bearer, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, problem.New(problem.ReasonInvalid, "the job's request token is not one")
	}
	return platform.NewAttester(GitHubName, platform.ToKey, func(ctx context.Context, audience string) ([]byte, error) {
		ask := *where
		query := ask.Query()
		query.Set("audience", audience)
		ask.RawQuery = query.Encode()
		// Runners of one's own may reach GitHub by a proxy only. It sees a host's name, since the address is https.
		body, _, err := platform.Get(ctx, &ask, http.Header{"Authorization": {"Bearer " + bearer}, "Accept": {"application/json"}}, http.ProxyFromEnvironment)
		if err != nil {
			return nil, err
		}
		defer clear(body)
		var answer struct {
			Value string `json:"value"`
		}
		if json.Unmarshal(body, &answer) != nil || answer.Value == "" {
			return nil, problem.New(problem.ReasonNotProved, "GitHub's answer holds no token")
		}
		return []byte(answer.Value), nil
	}), nil
}

// githubClaims are the claims by https://docs.github.com/actions/reference/security/oidc.
func githubClaims(token jwt.Token) (map[string]any, error) {
	out, err := jwt.Pick(token.Claims,
		"repository", "repository_id", "repository_owner", "repository_owner_id", "repository_visibility",
		"ref", "ref_type", "ref_protected", "sha", "base_ref", "head_ref", "environment", "event_name",
		"workflow", "workflow_ref", "workflow_sha", "job_workflow_ref", "job_workflow_sha",
		"run_id", "run_number", "run_attempt", "check_run_id", "runner_environment", "actor", "actor_id", "enterprise", "enterprise_id")
	if err != nil {
		return nil, err
	}
	if err := platform.Require(out, "repository", "repository_id", "repository_owner", "repository_owner_id", "ref", "event_name", "workflow_ref", "run_id"); err != nil {
		return nil, err
	}
	g := github{out}
	owner, name, ok := strings.Cut(g.get("repository"), "/")
	switch {
	case !ok || owner != g.get("repository_owner") || name == "" || strings.Contains(name, "/"):
		return nil, platform.Contradicts("repository", "owner")
	case !numeric(g.get("repository_id")) || !numeric(g.get("repository_owner_id")):
		return nil, problem.New(problem.ReasonTokenInvalid, "the token's IDs are not numbers")
	case !strings.HasPrefix(g.get("workflow_ref"), g.get("repository")+"/"):
		return nil, platform.Contradicts("workflow", "repository")
	}
	form, err := g.subject(token.Subject, owner, name)
	if err != nil {
		return nil, err
	}
	out["subject_form"] = form
	return out, nil
}

// The forms of GitHub's subjects, as the claim "subject_form" names them.
const (
	subjectNames  = "names"  // repo:OWNER/REPO:…
	subjectIDs    = "ids"    // repo:OWNER@ID/REPO@ID:…, which repositories have that were made, renamed or moved since 2026-07-15
	subjectCustom = "custom" // what the repository or organization has made of it
)

type github struct{ claims map[string]any }

func (g github) get(name string) string { s, _ := g.claims[name].(string); return s }

// subject says which form a subject has, and refuses one that contradicts the other claims. A custom one is not looked into unless it
// begins like the others: it is made of claims in an order that only its owner knows.
func (g github) subject(text, owner, name string) (form string, err error) {
	rest, ok := strings.CutPrefix(text, "repo:")
	if !ok {
		if text == "" {
			return "", problem.New(problem.ReasonTokenInvalid, "the token has no subject")
		}
		return subjectCustom, nil
	}
	repository, context, _ := strings.Cut(rest, ":")
	switch repository {
	case owner + "/" + name:
		form = subjectNames
	case owner + "@" + g.get("repository_owner_id") + "/" + name + "@" + g.get("repository_id"):
		form = subjectIDs
	default:
		return "", platform.Contradicts("subject", "repository")
	}
	switch exactly, err := g.context(context); {
	case err != nil:
		return "", err
	case !exactly:
		return subjectCustom, nil
	}
	return form, nil
}

// context checks what follows the repository: environment, ref or pull_request in the default form, after which a custom one may go on. It
// reports whether the subject is exactly of the default form.
func (g github) context(text string) (exactly bool, err error) {
	kind, value, _ := strings.Cut(text, ":")
	env := g.get("environment")
	switch kind {
	case "environment":
		// GitHub writes a colon within as %3A, and older servers don't.
		for _, written := range []string{env, strings.ReplaceAll(env, ":", "%3A")} {
			if rest, ok := strings.CutPrefix(value, written); ok && env != "" && (rest == "" || rest[0] == ':') {
				return rest == "", nil
			}
		}
		return false, platform.Contradicts("subject", "environment")
	case "ref":
		// A ref has no colon (git-check-ref-format). In the default form it stands there only if the job has no environment.
		if ref, _, _ := strings.Cut(value, ":"); ref != g.get("ref") {
			return false, platform.Contradicts("subject", "ref")
		}
		return value == g.get("ref") && env == "", nil
	case "pull_request":
		if !strings.HasPrefix(g.get("event_name"), "pull_request") {
			return false, platform.Contradicts("subject", "event")
		}
		return value == "" && env == "", nil
	}
	return false, nil
}

func numeric(s string) bool {
	return s != "" && len(s) <= 20 && !strings.ContainsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
}
