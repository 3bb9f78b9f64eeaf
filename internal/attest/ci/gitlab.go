package ci

import (
	"strings"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt"
	"github.com/bailment/bailment/internal/attest/platform"
	"github.com/bailment/bailment/internal/problem"
)

// GitLabName is the method of GitLab CI/CD.
const GitLabName = "gitlab"

// GitLab is the method's row. The audience stands in .gitlab-ci.yml (id_tokens), and the token is made before the job begins.
func GitLab() attest.Method {
	return platform.Platform{
		Name:   GitLabName,
		Proves: "a token that GitLab made for a job of this project, on this ref and source, for this environment, and that no other session key has used",
		DoesNotProve: "that the session key is the job's: whoever reads the token first has it; nor that the job runs what was reviewed. " +
			"Rules must name the IDs of namespace and project, and ref, ref_protected or environment",
		Bindings:    []platform.Binding{platform.ToEnvironment},
		Renewal:     byPossession,
		MaxLifetime: 24 * time.Hour, // the job's timeout, which GitLab bounds by a month; nobody should need a day
		Claims:      gitlabClaims,
		Needs:       []attest.Need{{Name: NeedToken, Secret: true, Doc: "the job's ID token, whose audience in .gitlab-ci.yml is bailment:v1:GENESIS"}},
		NewAttester: givenToken(GitLabName),
	}.Method()
}

// gitlabClaims are the claims by https://docs.gitlab.com/ci/secrets/id_token_authentication. In pipelines of merge requests from forks,
// project_id and namespace_id are the fork's; job_project_id and job_namespace_id (since 18.4) are where the job runs.
func gitlabClaims(token jwt.Token) (map[string]any, error) {
	out, err := jwt.Pick(token.Claims,
		"namespace_id", "namespace_path", "project_id", "project_path", "project_visibility", "job_project_id", "job_project_path",
		"job_namespace_id", "job_namespace_path", "user_id", "user_login", "user_access_level",
		"pipeline_id", "pipeline_source", "job_id", "job_source", "ref", "ref_type", "ref_path", "ref_protected", "sha",
		"environment", "environment_protected", "environment_action", "deployment_tier", "deployment_action",
		"runner_id", "runner_environment", "ci_config_ref_uri", "ci_config_sha")
	if err != nil {
		return nil, err
	}
	if err := platform.Require(out, "namespace_id", "project_id", "project_path", "pipeline_id", "pipeline_source", "job_id", "ref", "ref_type", "ref_protected"); err != nil {
		return nil, err
	}
	if !numeric(out["namespace_id"].(string)) || !numeric(out["project_id"].(string)) {
		return nil, problem.New(problem.ReasonTokenInvalid, "the token's IDs are not numbers")
	}
	// The default form. A project may have made another of it, which begins with project_path: too, or not.
	if rest, ok := strings.CutPrefix(token.Subject, "project_path:"); ok {
		path, _, _ := strings.Cut(rest, ":")
		if path != out["project_path"] {
			return nil, platform.Contradicts("subject", "project")
		}
	}
	switch out["ref_type"] {
	case "branch", "tag":
	default:
		return nil, problem.New(problem.ReasonTokenInvalid, "the token's ref is neither a branch nor a tag")
	}
	return out, nil
}
