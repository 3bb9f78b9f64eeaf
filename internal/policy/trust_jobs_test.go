package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// jobRule is a bundle with one identity rule for jobs. The rest of its spec is text.
func jobRule(t testing.TB, method, issuer, spec string) Files {
	files := maps.Clone(bare(t))
	files["authorities/jobs.yaml"] = fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Authority\nmetadata: {name: a}\nspec: {method: %s, issuer: %q}\n", method, issuer)
	files["identities/jobs.yaml"] = fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: jobs}\nspec:\n  method: %s\n  authority: a\n%s", method, spec)
	return files
}

const (
	publicGitHub    = "https://token.actions.githubusercontent.com"
	ownGitHub       = "https://github.example.com/_services/token"
	publicGitLab    = "https://gitlab.com"
	ownGitLab       = "https://gitlab.example.com"
	publicBuildkite = "https://agent.buildkite.com"
	circle          = "https://oidc.circleci.com/org/8b1a9953-c461-4c29-b6c8-1d3f1e1a2b3c"
	cluster         = "https://kubernetes.example.com"
	ownService      = "https://ci.example.com"
)

const (
	uuidA = "0184990a-477b-4fa8-9968-496074483cee"
)

// One over-broad rule of each kind for each service is planted, and found; accepted by name it is not mentioned any more. "refused" stands
// for a finding: nobody can mean it.
func TestPlantedJobRules(t *testing.T) {
	for _, c := range []struct {
		name, method, issuer, path, when string
		want                             []string
	}{
		// As they should be.
		{"good", "github", publicGitHub, "/ci/github/{claims.repository_owner_id}/{claims.repository_id}/prod", `claims.environment == "production"`, nil},
		{"good by IDs", "github", publicGitHub, "/ci/github/x", `claims.subject == "repo:octo-org@65/octo-repo@74:environment:production"`, nil},
		{"good", "gitlab", publicGitLab, "/ci/gitlab/{claims.namespace_id}/{claims.project_id}/x", `claims.project_id == "20" && claims.environment == "prod" && claims.environment_protected == "true"`, nil},
		{"good", "buildkite", publicBuildkite, "/ci/buildkite/{claims.pipeline_id}", `claims.pipeline_id == "` + uuidA + `" && claims.build_branch == "main"`, nil},
		{"good", "circleci", circle, "/ci/circleci/{claims.project_id}", `claims.vcs_ref == "refs/heads/main" && "` + uuidA + `" in claims.context_ids`, nil},
		{"good", "k8s-job", cluster, "/ci/k8s-job/{claims.namespace}/{claims.service_account_uid}", "", nil},
		{"good", "oidc", ownService, "/ci/oidc/x", `claims.claims.pipeline == "7"`, nil},

		// Audience only: every job that the issuer serves.
		{"audience only", "github", publicGitHub, "/ci/github/x", `claims.environment == "production"`, []string{"refused"}},
		{"audience only", "github", ownGitHub, "/ci/github/x", `claims.environment == "production"`, []string{acceptEveryJob}},
		{"audience only", "gitlab", publicGitLab, "/ci/gitlab/x", "", []string{"refused"}},
		{"audience only", "gitlab", ownGitLab, "/ci/gitlab/x", `claims.environment_protected == "true" && claims.environment == "p"`, []string{acceptEveryJob}},
		{"audience only", "buildkite", publicBuildkite, "/ci/buildkite/x", `claims.build_branch == "main"`, []string{"refused"}},
		{"audience only", "circleci", circle, "/ci/circleci/x", "", []string{acceptEveryJob, acceptAnyBranch, acceptPullRequests, acceptNoEnvironment}},
		{"audience only", "k8s-job", cluster, "/ci/k8s-job/x", "", []string{acceptEveryJob}},
		{"audience only", "oidc", ownService, "/ci/oidc/x", "", []string{acceptEveryJob}},

		// repo:*, in the forms that people try.
		{"repo:*", "github", publicGitHub, "/ci/github/x", `claims.subject.startsWith("repo:")`, []string{"refused"}},
		{"repo:*", "github", publicGitHub, "/ci/github/x", `claims.subject.matches("^repo:.*")`, []string{"refused"}},
		{"any ID", "github", publicGitHub, "/ci/github/x", `claims.repository_owner_id.matches("^[0-9]+$")`, []string{"refused"}},
		{"any ID", "buildkite", publicBuildkite, "/ci/buildkite/x", `claims.build_branch == "main" && claims.pipeline_id.matches("^[0-9a-f-]{36}$")`, []string{"refused"}},
		{"repo:* as a glob", "github", publicGitHub, "/ci/github/{claims.repository_id}", `claims.environment == "p" && claims.subject == "repo:octo-org/*"`, []string{"refused"}},
		{"repo:*", "github", ownGitHub, "/ci/github/x", `claims.subject.startsWith("repo:")`, []string{acceptEveryJob, acceptAnyBranch, acceptPullRequests, acceptNoEnvironment}},

		// Mutable names where an ID exists.
		{"names", "github", publicGitHub, "/ci/github/x", `claims.repository == "octo-org/octo-repo" && claims.environment == "production"`, []string{"refused"}},
		{"names", "github", publicGitHub, "/ci/github/x", `claims.subject == "repo:octo-org/octo-repo:environment:production"`, []string{"refused"}},
		{"names", "github", ownGitHub, "/ci/github/x", `claims.repository == "octo-org/octo-repo" && claims.environment == "production"`, []string{acceptNames}},
		{"names", "gitlab", ownGitLab, "/ci/gitlab/x", `claims.project_path == "g/p" && claims.environment_protected == "true" && claims.environment == "p"`, []string{acceptNames}},
		{"names", "buildkite", publicBuildkite, "/ci/buildkite/x", `claims.pipeline_slug == "app" && claims.build_branch == "main"`, []string{"refused"}},
		{"names", "circleci", circle, "/ci/circleci/x", `claims.vcs_origin == "github.com/acme/app" && claims.vcs_ref == "refs/heads/main" && "` + uuidA + `" in claims.context_ids`, []string{acceptNames}},
		{"names", "k8s-job", cluster, "/ci/k8s-job/x", `claims.namespace == "ci" && claims.service_account == "builder"`, []string{acceptNames}},

		// Any branch.
		{"any branch", "github", publicGitHub, "/ci/github/x", `claims.repository_id == "74" && claims.event_name == "push"`, []string{acceptAnyBranch, acceptNoEnvironment}},
		{"any branch", "github", publicGitHub, "/ci/github/x", `claims.repository_id == "74" && claims.event_name == "push" && claims.ref.startsWith("refs/heads/")`, []string{acceptAnyBranch, acceptNoEnvironment}},
		{"any branch", "github", publicGitHub, "/ci/github/x", `claims.repository_id == "74" && claims.event_name == "push" && claims.ref.matches("^refs/heads/.+$")`, []string{acceptAnyBranch, acceptNoEnvironment}},
		{"any branch but", "github", publicGitHub, "/ci/github/x", `claims.repository_id == "74" && claims.event_name == "push" && claims.ref != "refs/heads/wild"`, []string{acceptAnyBranch, acceptNoEnvironment}},
		{"any branch by subject", "github", publicGitHub, "/ci/github/x", `claims.event_name == "push" && claims.subject.startsWith("repo:octo-org@65/octo-repo@74:")`, []string{acceptAnyBranch, acceptNoEnvironment}},
		{"a branch by subject", "github", publicGitHub, "/ci/github/x", `claims.event_name == "push" && claims.subject == "repo:octo-org@65/octo-repo@74:ref:refs/heads/main"`, []string{acceptNoEnvironment}},
		{"a branch or any", "github", publicGitHub, "/ci/github/x", `claims.repository_id == "74" && claims.event_name == "push" && (claims.ref == "refs/heads/main" || claims.actor == "bot")`, []string{acceptAnyBranch, acceptNoEnvironment}},
		{"the path tells", "github", publicGitHub, "/ci/github/{claims.repository_id}/{claims.ref}", `claims.event_name == "push"`, []string{acceptNoEnvironment}},
		{"releases", "github", publicGitHub, "/ci/github/x", `claims.repository_id == "74" && claims.event_name in ["push", "release"] && claims.ref.startsWith("refs/tags/v")`, []string{acceptNoEnvironment}},
		{"any branch", "gitlab", publicGitLab, "/ci/gitlab/x", `claims.project_id == "20" && claims.pipeline_source == "push" && claims.environment == "p"`, []string{acceptAnyBranch}},
		{"any branch", "buildkite", publicBuildkite, "/ci/buildkite/x", `claims.pipeline_id == "` + uuidA + `"`, []string{acceptAnyBranch}},
		{"any branch", "circleci", circle, "/ci/circleci/x", `claims.project_id == "` + uuidA + `" && claims.vcs_ref.startsWith("refs/heads/")`, []string{acceptAnyBranch, acceptNoEnvironment}},

		// Pull requests from forks.
		{"pull requests", "github", publicGitHub, "/ci/github/x", `claims.repository_id == "74" && claims.ref == "refs/heads/main"`, []string{acceptPullRequests, acceptNoEnvironment}},
		{"pull requests but", "github", publicGitHub, "/ci/github/x", `claims.repository_id == "74" && claims.ref == "refs/heads/main" && !(claims.event_name in ["pull_request_target", "workflow_run"])`, []string{acceptNoEnvironment}},
		{"pull requests", "gitlab", publicGitLab, "/ci/gitlab/x", `claims.project_id == "20" && claims.ref == "main" && claims.environment == "p"`, []string{acceptPullRequests}},
		{"pull requests", "circleci", circle, "/ci/circleci/x", `claims.project_id == "` + uuidA + `" && "` + uuidA + `" in claims.context_ids`, []string{acceptPullRequests}},

		{"runs of runs", "github", publicGitHub, "/ci/github/x", `claims.repository_id == "74" && claims.event_name in ["push", "workflow_run"] && claims.ref == "refs/heads/main"`, []string{acceptPullRequests, acceptNoEnvironment}},
		{"runs of runs", "github", publicGitHub, "/ci/github/x", `claims.subject == "repo:octo-org@65/octo-repo@74:ref:refs/heads/main"`, []string{acceptPullRequests, acceptNoEnvironment}},

		// The same, written so that it looks narrow.
		{"exists and not", "github", publicGitHub, "/ci/github/x", `["5"].exists(x, x != claims.repository_id) && claims.environment == "p"`, []string{"refused"}},
		{"exists and nothing", "github", publicGitHub, "/ci/github/x", `["5"].exists(x, claims.repository_id.startsWith("")) && claims.environment == "p"`, []string{"refused"}},
		{"exists in itself", "github", publicGitHub, "/ci/github/x", `[claims.repository_id].exists(x, size(x) > 0) && claims.environment == "p"`, []string{"refused"}},
		{"all of none", "github", publicGitHub, "/ci/github/x", `[].all(x, claims.repository_id == x) && claims.environment == "p"`, []string{"refused"}},
		{"exists", "github", publicGitHub, "/ci/github/x", `["5", "6"].exists(x, claims.repository_id == x) && claims.environment == "p"`, nil},
		{"all", "github", publicGitHub, "/ci/github/x", `["repo:octo-org@65/"].all(x, claims.subject.startsWith(x)) && claims.environment == "p"`, nil},
		{"many IDs", "github", publicGitHub, "/ci/github/x", `claims.repository_id.matches("^[1-8][0-9]*$") && claims.environment == "p"`, []string{"refused"}},
		{"ten IDs", "github", publicGitHub, "/ci/github/x", `claims.repository_id.matches("^7[0-9]$") && claims.environment == "p"`, nil},
		{"two IDs", "github", publicGitHub, "/ci/github/x", `claims.repository_id.matches("^(74|75)$") && claims.environment == "p"`, nil},
		{"any subject of that form", "github", publicGitHub, "/ci/github/x", `claims.subject.matches("^repo:[^@]+@[0-9]+/[^@]+@[0-9]+:environment:p$") && claims.environment == "p"`, []string{"refused"}},
		{"any owner with a prefix", "github", publicGitHub, "/ci/github/x", `claims.subject.matches("^repo:octo.*@[0-9]+/[^@]+@[0-9]+:environment:p$") && claims.environment == "p"`, []string{"refused"}},
		{"half an ID", "github", publicGitHub, "/ci/github/x", `claims.subject.startsWith("repo:octo-org@6") && claims.environment == "p"`, []string{"refused"}},
		{"an owner of two", "github", publicGitHub, "/ci/github/x", `claims.subject.matches("^repo:(octo-org@65|octo-inc@66)/.*:environment:p$") && claims.environment == "p"`, nil},
		{"any project", "gitlab", publicGitLab, "/ci/gitlab/x", `claims.subject.startsWith("project_id:") && claims.environment == "p" && claims.ref_protected == "true"`, []string{"refused"}},
		{"a project", "gitlab", publicGitLab, "/ci/gitlab/x", `claims.subject.startsWith("project_id:20:") && claims.environment == "p" && claims.ref_protected == "true"`, nil},
		{"any subject", "circleci", circle, "/ci/circleci/x", `claims.subject.startsWith("org/") && claims.vcs_ref == "refs/heads/main" && "` + uuidA + `" in claims.context_ids`, []string{acceptEveryJob}},
		{"any origin", "circleci", circle, "/ci/circleci/x", `claims.vcs_origin.startsWith("github.com/acme") && claims.vcs_ref == "refs/heads/main" && "` + uuidA + `" in claims.context_ids`, []string{acceptEveryJob}},
		{"not one", "oidc", ownService, "/ci/oidc/x", `claims.claims.pipeline != "7"`, []string{acceptEveryJob}},
		{"not one", "oidc", ownService, "/ci/oidc/x", `!(claims.claims.pipeline == "7")`, []string{acceptEveryJob}},
		{"any", "oidc", ownService, "/ci/oidc/x", `has(claims.claims.pipeline)`, []string{acceptEveryJob}},
		{"any", "oidc", ownService, "/ci/oidc/x", `claims.claims.pipeline.startsWith("")`, []string{acceptEveryJob}},
		{"one or not", "oidc", ownService, "/ci/oidc/x", `claims.claims.pipeline == "7" || claims.claims.pipeline != "7"`, []string{acceptEveryJob}},
		{"in a list", "oidc", ownService, "/ci/oidc/x", `"deploy" in claims.claims.groups`, nil},
		{"in a list", "oidc", ownService, "/ci/oidc/x", `claims.claims.groups.exists(g, g == "deploy")`, nil},
		{"another door", "oidc", publicGitHub, "/ci/oidc/x", `claims.claims.repository_id == "74"`, []string{acceptAnyBranch, acceptPullRequests, acceptNoEnvironment}},
		{"another door", "oidc", publicGitHub, "/ci/oidc/x", `claims.claims.repository_id == "74" && claims.claims.environment == "p"`, nil},
		{"end of a branch", "github", publicGitHub, "/ci/github/{claims.repository_id}", `claims.event_name == "push" && claims.ref.endsWith("main")`, []string{acceptAnyBranch, acceptNoEnvironment}},
		{"end of a branch", "github", publicGitHub, "/ci/github/{claims.repository_id}", `claims.event_name == "push" && claims.ref.endsWith("/main")`, []string{acceptAnyBranch, acceptNoEnvironment}},
		{"part of a branch", "github", publicGitHub, "/ci/github/{claims.repository_id}", `claims.event_name == "push" && claims.ref.contains("main")`, []string{acceptAnyBranch, acceptNoEnvironment}},
		{"begin of a branch", "github", publicGitHub, "/ci/github/{claims.repository_id}", `claims.event_name == "push" && claims.ref.startsWith("refs/heads/main")`, []string{acceptAnyBranch, acceptNoEnvironment}},
		{"without an end", "github", publicGitHub, "/ci/github/{claims.repository_id}", `claims.event_name == "push" && claims.ref.matches("^refs/heads/main")`, []string{acceptAnyBranch, acceptNoEnvironment}},
		{"without a begin", "github", publicGitHub, "/ci/github/{claims.repository_id}", `claims.event_name == "push" && claims.ref.matches("main$")`, []string{acceptAnyBranch, acceptNoEnvironment}},
		{"small letters", "github", publicGitHub, "/ci/github/{claims.repository_id}", `claims.event_name == "push" && claims.ref.matches("^refs/heads/[a-z]+$")`, []string{acceptAnyBranch, acceptNoEnvironment}},
		{"begin of a branch", "buildkite", publicBuildkite, "/ci/buildkite/{claims.pipeline_id}", `claims.build_branch.startsWith("main")`, []string{acceptAnyBranch}},
		{"a family of branches", "buildkite", publicBuildkite, "/ci/buildkite/{claims.pipeline_id}", `claims.build_branch.startsWith("release/")`, nil},
		{"one branch", "github", publicGitHub, "/ci/github/{claims.repository_id}", `claims.event_name == "push" && claims.ref.matches("^refs/heads/(main|release/.+)$")`, []string{acceptNoEnvironment}},

		// A missing environment.
		{"no environment", "github", publicGitHub, "/ci/github/x", `claims.repository_id == "74" && claims.ref == "refs/heads/main" && claims.event_name == "push"`, []string{acceptNoEnvironment}},
		{"no environment", "gitlab", publicGitLab, "/ci/gitlab/x", `claims.project_id == "20" && claims.ref_protected == "true"`, []string{acceptNoEnvironment}},
		{"no environment", "circleci", circle, "/ci/circleci/x", `claims.project_id == "` + uuidA + `" && claims.vcs_ref == "refs/heads/main"`, []string{acceptNoEnvironment}},
	} {
		t.Run(c.method+"/"+c.name, func(t *testing.T) {
			spec := "  path: '" + c.path + "'\n"
			if c.when != "" {
				spec += "  when: '" + c.when + "'\n"
			}
			p, err := compileFiles(jobRule(t, c.method, c.issuer, spec))
			var findings Findings
			if errors.As(err, &findings) {
				if !slices.Equal(c.want, []string{"refused"}) || findings[0].Pos.File != "identities/jobs.yaml" {
					t.Errorf("refused: %v", findings)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range p.Advice(nil) {
				_, kind, _ := strings.Cut(f.Message, "accepts: [")
				got = append(got, strings.TrimSuffix(kind, "]"))
				if f.Pos.File != "identities/jobs.yaml" || f.Pos.Line == 0 {
					t.Errorf("at %s", f.Pos)
				}
			}
			slices.Sort(got)
			want := slices.Sorted(slices.Values(c.want))
			if !slices.Equal(got, want) {
				t.Fatalf("got %v, want %v: %v", got, want, p.Advice(nil))
			}
			// What is accepted by name is meant; what is accepted in vain is said.
			spec += "  accepts: [" + strings.Join(got, ", ") + "]\n"
			if list := mustCompile(t, jobRule(t, c.method, c.issuer, spec)).Advice(nil); len(list) > 0 {
				t.Errorf("accepted: %v", list)
			}
			if !slices.Contains(got, acceptEveryJob) {
				spec = strings.Replace(spec, "accepts: [", "accepts: [every-job, ", 1)
				list := mustCompile(t, jobRule(t, c.method, c.issuer, strings.Replace(spec, ", ]", "]", 1))).Advice(nil)
				if len(list) != 1 || !strings.Contains(list[0].Message, "accepts every-job, and does not let it in") {
					t.Errorf("accepted in vain: %v", list)
				}
			}
		})
	}
}

// Rules that no token can fit are findings, and what is near them is not.
func TestImpossibleJobRules(t *testing.T) {
	for when, want := range map[string]string{
		`claims.ref == "refs/heads/*"`:                                                                "stands for itself",
		`claims.subject.startsWith("repo:octo-org@65/*")`:                                             "stands for itself",
		`claims.environment in ["prod-*", "x"]`:                                                       "stands for itself",
		`claims.ref == "refs/heads/a" && claims.ref == "refs/heads/b"`:                                "two things at once",
		`claims.ref == "refs/heads/a" && claims.event_name == "push" && claims.ref != "refs/heads/a"`: "two things at once",
		`claims.environment in ["a", "b"] && claims.environment in ["c"]`:                             "two things at once",
		`claims.environment == "a" && claims.environment.startsWith("b")`:                             "two things at once",
		`claims.event_name == "pull_request" && claims.ref == "refs/heads/main"`:                      "refs/pull/NUMBER/merge",
		`claims.event_name == "pull_request" && claims.ref_protected == "true"`:                       "refs/pull/NUMBER/merge",

		`claims.event_name == "pull_request"`:                                                             "",
		`claims.event_name in ["pull_request", "push"] && claims.ref == "refs/heads/main"`:                "",
		`claims.event_name in ["pull_request", "merge_group"] && claims.ref == "refs/heads/main"`:         "",
		`claims.ref == "refs/heads/a" || claims.ref == "refs/heads/b"`:                                    "",
		`claims.subject.matches("^repo:octo-org@65/.*:environment:prod$")`:                                "",
		`claims.environment in ["a", "b"] && claims.environment != "a"`:                                   "",
		`claims.environment == "a" && claims.environment.startsWith("a")`:                                 "",
		`claims.environment == "a" && (claims.environment == "b" || claims.repository_visibility == "x")`: "",
	} {
		_, err := compileFiles(jobRule(t, "github", publicGitHub, "  path: '/ci/github/{claims.repository_id}'\n  when: '"+when+"'\n"))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", when, err)
		}
	}
}
