package job

import "github.com/bailment/bailment/internal/attest/ci"

// Platform is what is known of a CI platform beside its method of attestation.
type Platform struct {
	Title string
	// Hidden are variables by which whoever has them can get tokens of the platform. The program does not see them.
	Hidden []string
	// Masks: the platform takes values out of the job's log when it is told them there.
	Masks bool
	// SameToken: the token is the same each time, so it is good for the session key that used it first.
	SameToken bool
}

// PlatformOf is the platform of a method. One that is not known gives its token by a variable or a file of the job's definition.
//
// Of Buildkite nothing is hidden: the agent's own token (BUILDKITE_AGENT_ACCESS_TOKEN), which is the right to ID tokens, is what the step's other commands need for
// artifacts, annotations and metadata.
func PlatformOf(method string) Platform {
	switch method {
	case ci.GitHubName:
		return Platform{Title: "GitHub Actions", Masks: true, Hidden: []string{"ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"}}
	case ci.GitLabName:
		return Platform{Title: "GitLab CI/CD", SameToken: true, Hidden: []string{ci.EnvToken}}
	case ci.BuildkiteName:
		return Platform{Title: "Buildkite"}
	case ci.CircleCIName:
		return Platform{Title: "CircleCI", Hidden: []string{"CIRCLE_OIDC_TOKEN", "CIRCLE_OIDC_TOKEN_V2"}}
	}
	return Platform{Title: "the platform", SameToken: true, Hidden: []string{ci.EnvToken}}
}
