package ci

import (
	"strings"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt"
	"github.com/bailment/bailment/internal/attest/platform"
)

// CircleCIName is the method of CircleCI.
const CircleCIName = "circleci"

// CircleCI is the method's row. The tokens in a job's environment have the organization's ID as their audience, which says nothing of us;
// but the job can ask for one with any audience (CircleCI's cloud, server 4.4 or later). Each organization is an issuer of its own.
func CircleCI() attest.Method {
	return platform.Platform{
		Name:   CircleCIName,
		Proves: "a job of this project, of this pipeline and ref, asked CircleCI for this session key",
		DoesNotProve: "that the job runs what was reviewed: any step of it can ask for the token, and so can a person who has a shell in it " +
			"(ssh_rerun). Rules must name project_id, and vcs_origin and vcs_ref, or context_ids",
		Bindings:    []platform.Binding{platform.ToKey},
		Renewal:     byEvidence,
		MaxLifetime: 24 * time.Hour, // an hour, unless a project sets another
		Claims:      circleClaims,
		Needs:       []attest.Need{programNeed("circleci")},
		NewAttester: program(CircleCIName, "circleci", func(audience string) []string {
			// An audience has no character that JSON would escape.
			return []string{"run", "oidc", "get", "--claims", `{"aud":"` + audience + `"}`}
		}),
	}.Method()
}

const circlePrefix = "oidc.circleci.com/"

// circleClaims are the claims by https://circleci.com/docs/guides/permissions-authentication/openid-connect-tokens, whose names lose their
// prefix and get underscores. org_id is of the subject where the claim is not there (before November 2025).
func circleClaims(token jwt.Token) (map[string]any, error) {
	names := []string{"org-id", "project-id", "pipeline-id", "pipeline-definition-id", "workflow-id", "job-id", "vcs-origin", "vcs-ref", "ssh-rerun"}
	out := make(map[string]any, len(names)+2)
	for _, name := range names {
		picked, err := jwt.Pick(token.Claims, circlePrefix+name)
		if err != nil {
			return nil, err
		}
		out[strings.ReplaceAll(name, "-", "_")] = picked[circlePrefix+name]
	}
	var err error
	if out["context_ids"], err = jwt.List(token.Claims, circlePrefix+"context-ids"); err != nil {
		return nil, err
	}
	// org/ORG/project/PROJECT/user/USER, and what follows in tokens of the second form.
	subject := strings.SplitN(token.Subject, "/", 7)
	if len(subject) < 6 || subject[0] != "org" || subject[2] != "project" || subject[4] != "user" {
		return nil, platform.Contradicts("subject", "issuer")
	}
	if out["org_id"] == "" {
		out["org_id"] = subject[1]
	}
	if subject[1] != out["org_id"] || subject[3] != out["project_id"] {
		return nil, platform.Contradicts("subject", "organization or project")
	}
	out["user_id"] = subject[5]
	return out, platform.Require(out, "org_id", "project_id")
}
