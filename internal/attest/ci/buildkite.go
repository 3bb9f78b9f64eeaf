package ci

import (
	"strings"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt"
	"github.com/bailment/bailment/internal/attest/platform"
)

// BuildkiteName is the method of Buildkite.
const BuildkiteName = "buildkite"

// buildkiteLifetime is what is asked for, in seconds. Buildkite's default is the same; a session is renewed with the next token.
const buildkiteLifetime = "300"

// Buildkite is the method's row. A job asks for a token with any audience, at any time; its tokens have no ID.
func Buildkite() attest.Method {
	return platform.Platform{
		Name:   BuildkiteName,
		Proves: "a job of this pipeline, of this build and branch, asked Buildkite for this session key",
		DoesNotProve: "that the job runs what was reviewed: any step of it can ask for the token, and an agent of one's own can be made to run " +
			"anything. Rules must name organization_id and pipeline_id, and build_branch or build_source",
		Bindings:    []platform.Binding{platform.ToKey},
		Renewal:     byEvidence,
		MaxLifetime: time.Hour,
		Claims:      buildkiteClaims,
		Needs:       []attest.Need{programNeed("buildkite-agent")},
		NewAttester: program(BuildkiteName, "buildkite-agent", func(audience string) []string {
			return []string{"oidc", "request-token", "--audience", audience, "--lifetime", buildkiteLifetime, "--claim", "organization_id,pipeline_id,build_id,cluster_id,queue_id"}
		}),
	}.Method()
}

// buildkiteClaims are the claims by https://buildkite.com/docs/agent/cli/reference/oidc. The IDs are there because we ask for them.
func buildkiteClaims(token jwt.Token) (map[string]any, error) {
	out, err := jwt.Pick(token.Claims,
		"organization_id", "organization_slug", "pipeline_id", "pipeline_slug", "build_id", "build_number", "build_branch", "build_tag",
		"build_commit", "build_source", "step_key", "job_id", "agent_id", "runner_environment", "cluster_id", "cluster_name", "queue_id", "queue_key")
	if err != nil {
		return nil, err
	}
	if err := platform.Require(out, "organization_id", "organization_slug", "pipeline_id", "pipeline_slug", "build_number", "job_id"); err != nil {
		return nil, err
	}
	// The default form; a job may ask for a subject that is one of its IDs instead.
	if strings.HasPrefix(token.Subject, "organization:") &&
		!strings.HasPrefix(token.Subject, "organization:"+out["organization_slug"].(string)+":pipeline:"+out["pipeline_slug"].(string)+":") {
		return nil, platform.Contradicts("subject", "pipeline")
	}
	return out, nil
}
