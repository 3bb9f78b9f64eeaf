package authority

import (
	"regexp"
	"strings"
)

// Shape is the form that a service gives to every value of a claim. "", which stands for a claim that the token lacks, fits each.
type Shape struct {
	Is   string // in words
	fits func(string) bool
}

// Fits reports whether the claim can have that value.
func (s Shape) Fits(value string) bool { return value == "" || s.fits(value) }

var (
	number   = Shape{"a number in decimal digits", regexp.MustCompile(`^[0-9]+$`).MatchString}
	uuid     = Shape{"a UUID in lower case", regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString}
	truth    = Shape{`"true" or "false"`, func(s string) bool { return s == "true" || s == "false" }}
	refType  = Shape{`"branch" or "tag"`, func(s string) bool { return s == "branch" || s == "tag" }}
	fullRef  = Shape{"a full reference, like refs/heads/main", func(s string) bool { return strings.HasPrefix(s, "refs/") }}
	shortRef = Shape{"a short name, like main; the full one is ref_path", func(s string) bool {
		return !strings.HasPrefix(s, "refs/heads/") && !strings.HasPrefix(s, "refs/tags/") // GitLab takes no branch or tag of such a name
	}}
	slug = Shape{"OWNER/NAME", regexp.MustCompile(`^[^/]+/[^/]+$`).MatchString}
)

// Which claims have a shape, by method: only forms that the service documents, and that it can't leave without breaking everybody's rules. A
// test of attest/methods holds the table to the tokens that the services document.
var shapes = map[string]map[string]Shape{
	"github": {
		"actor_id": number, "check_run_id": number, "repository_id": number, "repository_owner_id": number, "run_attempt": number,
		"run_id": number, "run_number": number, "ref": fullRef, "ref_protected": truth, "ref_type": refType, "repository": slug,
	},
	"gitlab": {
		"environment_protected": truth, "job_id": number, "job_namespace_id": number, "job_project_id": number, "namespace_id": number, "pipeline_id": number,
		"project_id": number, "ref": shortRef, "ref_path": fullRef, "ref_protected": truth, "ref_type": refType, "runner_id": number, "user_id": number,
	},
	"buildkite": {
		"agent_id": uuid, "build_id": uuid, "build_number": number, "cluster_id": uuid, "job_id": uuid, "organization_id": uuid, "pipeline_id": uuid, "queue_id": uuid,
	},
	"circleci": {
		"job_id": uuid, "org_id": uuid, "pipeline_definition_id": uuid, "pipeline_id": uuid, "project_id": uuid, "ssh_rerun": truth, "vcs_ref": fullRef,
		"workflow_id": uuid,
	},
}

// Shape is the form of one of the method's claims; false: it can be any text, or something else.
func (m Method) Shape(claim string) (Shape, bool) {
	s, ok := shapes[m.Name][claim]
	return s, ok
}
