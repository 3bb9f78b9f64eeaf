package authority

import "slices"

// What the methods' verifiers say, by claim. A method that is not here says more than can be listed: its rules are not checked for names.
// Each has "agent" beside these, if the agent has said what it is. A test of attest/methods holds the table to the verifiers.
var claims = map[string][]string{
	JoinToken: {"name", "token"},
	"k8s":     pod,
	"k8s-job": pod,
	"gcp": {
		"authority", "instance_creation_timestamp", "instance_id", "instance_name", "issuer", "licenses", "project_id", "project_number",
		"service_account", "service_account_id", "subject", "zone",
	},
	"github": {
		"actor", "actor_id", "authority", "base_ref", "check_run_id", "enterprise", "enterprise_id", "environment", "event_name", "head_ref", "issuer",
		"job_workflow_ref", "job_workflow_sha", "ref", "ref_protected", "ref_type", "repository", "repository_id", "repository_owner",
		"repository_owner_id", "repository_visibility", "run_attempt", "run_id", "run_number", "runner_environment", "sha", "subject", "subject_form",
		"workflow", "workflow_ref", "workflow_sha",
	},
	"gitlab": {
		"authority", "ci_config_ref_uri", "ci_config_sha", "deployment_action", "deployment_tier", "environment", "environment_action",
		"environment_protected", "issuer", "job_id", "job_namespace_id", "job_namespace_path", "job_project_id", "job_project_path", "job_source",
		"namespace_id", "namespace_path", "pipeline_id", "pipeline_source", "project_id", "project_path", "project_visibility", "ref", "ref_path",
		"ref_protected", "ref_type", "runner_environment", "runner_id", "sha", "subject", "user_access_level", "user_id", "user_login",
	},
	"buildkite": {
		"agent_id", "authority", "build_branch", "build_commit", "build_id", "build_number", "build_source", "build_tag", "cluster_id", "cluster_name",
		"issuer", "job_id", "organization_id", "organization_slug", "pipeline_id", "pipeline_slug", "queue_id", "queue_key", "runner_environment",
		"step_key", "subject",
	},
	"circleci": {
		"authority", "context_ids", "issuer", "job_id", "org_id", "pipeline_definition_id", "pipeline_id", "project_id", "ssh_rerun", "subject",
		"user_id", "vcs_origin", "vcs_ref", "workflow_id",
	},
	"oidc": {"authority", "claims", "issuer", "subject"},
}

var pod = []string{"authority", "issuer", "namespace", "node", "node_uid", "pod", "pod_uid", "service_account", "service_account_uid", "subject"}

// Claims are the names of the claims that the method's verifier gives, sorted; nil: they depend on the evidence.
func (m Method) Claims() []string { return slices.Clone(claims[m.Name]) }

// Shared is an issuer that people who don't know each other have in common. A rule that compares none of IDs and Names lets all of them in.
type Shared struct {
	// IDs name a customer, or what is a customer's, for good.
	IDs []string
	// Names do so until they are given up: then somebody else may take them. Not among them are those that another customer's job may have as
	// well: that of a reusable workflow (job_workflow_ref), or of a configuration that is included (ci_config_ref_uri).
	Names []string
}

var shared = map[string]Shared{
	"https://token.actions.githubusercontent.com": {
		IDs:   []string{"repository_owner_id", "repository_id", "enterprise_id"},
		Names: []string{"repository", "repository_owner", "enterprise", "workflow_ref", "subject"},
	},
	"https://gitlab.com": {
		IDs:   []string{"namespace_id", "project_id", "job_namespace_id", "job_project_id"},
		Names: []string{"namespace_path", "project_path", "job_namespace_path", "job_project_path", "subject"},
	},
	"https://agent.buildkite.com": {
		IDs:   []string{"organization_id", "pipeline_id", "cluster_id", "queue_id"},
		Names: []string{"organization_slug", "pipeline_slug", "subject"},
	},
	"https://accounts.google.com": {
		IDs: []string{"project_number", "project_id", "instance_id", "service_account_id", "service_account", "subject"},
	},
}

// SharedIssuer finds what tells the customers of an issuer apart, if it is known that there are many.
func SharedIssuer(issuer string) (Shared, bool) {
	s, ok := shared[issuer]
	return s, ok
}
