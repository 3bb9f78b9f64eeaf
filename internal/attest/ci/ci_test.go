package ci_test

import (
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/ci"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/attest/platform"
	"github.com/bailment/bailment/internal/attest/platform/platformtest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

var now = platformtest.Now

func find(t *testing.T, name string) attest.Method {
	t.Helper()
	m, err := platformtest.Methods().Find(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func fixture(t *testing.T, name string) *platformtest.Fixture {
	t.Helper()
	return platformtest.Of(t, find(t, name), jose.ES256, now, platformtest.Binding())
}

// changed is one token with other claims, and why it is refused; "" if it is good.
type changed struct {
	name   string
	claims map[string]any
	want   problem.Reason
}

func check(t *testing.T, f *platformtest.Fixture, all []changed) {
	t.Helper()
	for _, c := range all {
		_, err := f.Method.Verify(f.Input(f.With(c.claims)))
		if c.want == "" && err != nil || c.want != "" && !problem.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestGitHubSubjects(t *testing.T) {
	const bad = problem.ReasonTokenInvalid
	check(t, fixture(t, ci.GitHubName), []changed{
		{"another repository", map[string]any{"sub": "repo:octo-org/other:ref:refs/heads/main"}, bad},
		{"another owner", map[string]any{"sub": "repo:evil/octo-repo:ref:refs/heads/main"}, bad},
		{"another letter case", map[string]any{"sub": "repo:Octo-Org/octo-repo:ref:refs/heads/main"}, bad},
		{"the repository only", map[string]any{"sub": "repo:octo-org/octo-repo"}, ""},
		{"IDs", map[string]any{"sub": "repo:octo-org@65/octo-repo@74:ref:refs/heads/main"}, ""},
		{"another owner's ID", map[string]any{"sub": "repo:octo-org@66/octo-repo@74:ref:refs/heads/main"}, bad},
		{"another repository's ID", map[string]any{"sub": "repo:octo-org@65/octo-repo@75:ref:refs/heads/main"}, bad},
		{"IDs the other way round", map[string]any{"sub": "repo:octo-org@74/octo-repo@65:ref:refs/heads/main"}, bad},
		{"half of the IDs", map[string]any{"sub": "repo:octo-org@65/octo-repo:ref:refs/heads/main"}, bad},
		{"an ID too many", map[string]any{"sub": "repo:octo-org@65@65/octo-repo@74:ref:refs/heads/main"}, bad},
		{"another ref", map[string]any{"sub": "repo:octo-org/octo-repo:ref:refs/heads/other"}, bad},
		{"a custom ref beside an environment", map[string]any{"environment": "Production"}, ""},
		{"a custom subject that goes on", map[string]any{"sub": "repo:octo-org/octo-repo:ref:refs/heads/main:actor:octocat"}, ""},
		{"another ref, going on", map[string]any{"sub": "repo:octo-org/octo-repo:ref:refs/heads/mai:n"}, bad},
		{"an environment, going on", map[string]any{"sub": "repo:octo-org/octo-repo:environment:Production:actor:octocat", "environment": "Production"}, ""},
		{"an environment that begins like it", map[string]any{"sub": "repo:octo-org/octo-repo:environment:Production2", "environment": "Production"}, bad},
		{"a colon within, as older servers write it", map[string]any{"sub": "repo:octo-org/octo-repo:environment:a:b", "environment": "a:b"}, ""},
		{"an environment", map[string]any{"sub": "repo:octo-org/octo-repo:environment:Production", "environment": "Production"}, ""},
		{"another environment", map[string]any{"sub": "repo:octo-org/octo-repo:environment:Production", "environment": "staging"}, bad},
		{"no environment", map[string]any{"sub": "repo:octo-org/octo-repo:environment:Production"}, bad},
		{"an empty environment", map[string]any{"sub": "repo:octo-org/octo-repo:environment:"}, bad},
		{"a pull request", map[string]any{"sub": "repo:octo-org/octo-repo:pull_request", "event_name": "pull_request_target"}, ""},
		{"a pull request by push", map[string]any{"sub": "repo:octo-org/octo-repo:pull_request"}, bad},
		{"a pull request, going on", map[string]any{"sub": "repo:octo-org/octo-repo:pull_request:actor:octocat", "event_name": "pull_request"}, ""},
		{"a push as a pull request's branch", map[string]any{"sub": "repo:octo-org/octo-repo:ref:refs/pull/7/merge"}, bad},
		{"no subject", map[string]any{"sub": nil}, bad},
		{"the repository of another owner", map[string]any{"repository_owner": "evil", "sub": "x"}, bad},
		{"a repository without owner", map[string]any{"repository": "octo-repo", "sub": "x"}, bad},
		{"a repository within one", map[string]any{"repository": "octo-org/octo-repo/x", "sub": "x"}, bad},
		{"a repository without name", map[string]any{"repository": "octo-org/", "sub": "x"}, bad},
		{"an ID that is none", map[string]any{"repository_id": "74a", "sub": "x"}, bad},
		{"an owner's ID that is none", map[string]any{"repository_owner_id": "-65", "sub": "x"}, bad},
		{"IDs as numbers", map[string]any{"repository_id": 74, "repository_owner_id": 65}, ""},
		{"another repository's workflow", map[string]any{"workflow_ref": "octo-org/octo-repo-2/.github/workflows/release.yml@refs/heads/main"}, bad},
		{"no repository ID", map[string]any{"repository_id": nil}, bad},
		{"no owner's ID", map[string]any{"repository_owner_id": nil}, bad},
		{"no ref", map[string]any{"ref": nil}, bad},
		{"no event", map[string]any{"event_name": nil}, bad},
		{"a list of refs", map[string]any{"ref": []string{"refs/heads/main"}}, bad},
		{"a ref that reads backwards", map[string]any{"ref": "refs/heads/\u202emain"}, bad},
	})
}

func TestGitHubForms(t *testing.T) {
	m := find(t, ci.GitHubName)
	want := map[string]string{
		"subject of names, a branch": "names", "subject of IDs, a branch": "ids", "an environment": "names", "an environment with a colon, subject of IDs": "ids",
		"a pull request": "names", "a tag": "ids", "a custom subject that goes on": "custom", "a custom subject": "custom", "a custom subject that begins like the others": "custom",
	}
	shapes := platformtest.Shapes(t, m.Name)
	if len(shapes) != len(want) {
		t.Fatal(len(shapes))
	}
	for _, s := range shapes {
		f := platformtest.New(t, m, s, platform.ToKey, jose.ES256, now, platformtest.Binding())
		res, err := m.Verify(f.Good())
		if err != nil || res.Claims["subject_form"] != want[s.Name] {
			t.Errorf("%s: %v, %v", s.Name, res.Claims["subject_form"], err)
		}
	}
}

func TestGitLab(t *testing.T) {
	const bad = problem.ReasonTokenInvalid
	check(t, fixture(t, ci.GitLabName), []changed{
		{"another project", map[string]any{"sub": "project_path:my-group/other:ref_type:branch:ref:feature-branch-1"}, bad},
		{"a project that begins like it", map[string]any{"sub": "project_path:my-group/my-project-2:ref_type:branch:ref:x"}, bad},
		{"the project only", map[string]any{"sub": "project_path:my-group/my-project"}, ""},
		{"no project", map[string]any{"project_id": nil}, bad},
		{"a project that is no number", map[string]any{"project_id": "my-project"}, bad},
		{"a namespace that is no number", map[string]any{"namespace_id": "7 2"}, bad},
		{"IDs as numbers", map[string]any{"project_id": 20, "namespace_id": 72, "job_id": 302, "pipeline_id": 574}, ""},
		{"protected as true", map[string]any{"ref_protected": true}, ""},
		{"a ref of another kind", map[string]any{"ref_type": "merge_request"}, bad},
		{"nothing about protection", map[string]any{"ref_protected": nil}, bad},
		{"no source", map[string]any{"pipeline_source": nil}, bad},
	})
}

func TestBuildkite(t *testing.T) {
	const bad = problem.ReasonTokenInvalid
	check(t, fixture(t, ci.BuildkiteName), []changed{
		{"another pipeline", map[string]any{"pipeline_slug": "other"}, bad},
		{"another organization", map[string]any{"organization_slug": "evil"}, bad},
		{"a pipeline that begins like it", map[string]any{"sub": "organization:acme-inc:pipeline:super-duper-app-2:ref:refs/heads/main"}, bad},
		{"no organization's ID", map[string]any{"organization_id": nil}, bad},
		{"no pipeline's ID", map[string]any{"pipeline_id": nil}, bad},
		{"no job", map[string]any{"job_id": nil}, bad},
		{"a build of lists", map[string]any{"build_number": []int{1}}, bad},
	})
}

func TestCircleCI(t *testing.T) {
	const bad = problem.ReasonTokenInvalid
	const org, project = "8b1a9953-c461-4c29-b6c8-1d3f1e1a2b3c", "76543210-ba98-4edc-a210-edcba0987654"
	check(t, fixture(t, ci.CircleCIName), []changed{
		{"another organization", map[string]any{"oidc.circleci.com/org-id": "00000000-c461-4c29-b6c8-1d3f1e1a2b3c"}, bad},
		{"another project", map[string]any{"oidc.circleci.com/project-id": "00000000-c461-4c29-b6c8-1d3f1e1a2b3c"}, bad},
		{"no project", map[string]any{"oidc.circleci.com/project-id": nil}, bad},
		{"a subject without user", map[string]any{"sub": "org/" + org + "/project/" + project}, bad},
		{"a subject of another kind", map[string]any{"sub": "organization/" + org + "/project/" + project + "/user/x"}, bad},
		{"a subject that is empty where it counts", map[string]any{"sub": "org//project//user/", "oidc.circleci.com/org-id": nil, "oidc.circleci.com/project-id": nil}, bad},
		{"contexts that are no list", map[string]any{"oidc.circleci.com/context-ids": "a"}, bad},
		{"no contexts", map[string]any{"oidc.circleci.com/context-ids": nil}, ""},
	})
}

func TestOIDC(t *testing.T) {
	m := find(t, ci.OIDCName)
	f := fixture(t, ci.OIDCName)
	check(t, f, []changed{
		{"no subject", map[string]any{"sub": nil}, problem.ReasonTokenInvalid},
		{"claims that are endless", map[string]any{"a": strings.Repeat("x", 2000), "b": strings.Repeat("x", 2000), "c": strings.Repeat("x", 2000), "d": strings.Repeat("x", 2000), "e": strings.Repeat("x", 2000)}, problem.ReasonTooLarge},
	})
	many := map[string]any{}
	for i := range 70 {
		many["c"+strings.Repeat("x", i%60)+string(rune('a'+i/60))] = "x"
	}
	check(t, f, []changed{{"claims without number", many, problem.ReasonTooLarge}})
	res, err := m.Verify(f.Input(f.With(map[string]any{"backwards": "\u202ex", strings.Repeat("n", 65): "x", "": "x", "bad\u202ename": "x", "lists": []any{[]any{"a"}}})))
	want := map[string]any{"pipeline": "7", "run": "42", "trusted": "true", "groups": []any{"a", "b"}}
	if err != nil || !reflect.DeepEqual(res.Claims["claims"], want) {
		t.Errorf("%v, %v", res.Claims, err)
	}
	// The same token for the environment only is worth less, and is good for whoever is first.
	first := platformtest.New(t, m, platformtest.Shapes(t, m.Name)[0], platform.ToEnvironment, jose.ES256, now, platformtest.Binding())
	in := first.Good()
	in.Binding.SessionKey[0] ^= 1
	res, err = m.Verify(in)
	if err != nil || res.Assurance != identity.Token || res.Once == "" {
		t.Errorf("%+v, %v", res, err)
	}
}

// TestOtherMethodsToken: the issuer of one service vouches for no other service's jobs, whatever the token says.
func TestOtherMethodsToken(t *testing.T) {
	hub := fixture(t, ci.GitHubName)
	m := find(t, ci.GitLabName)
	p, err := m.Params([]authority.Authority{{Name: "corp", Issuer: "https://gitlab.example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	in := hub.Good()
	in.Binding.Method, in.Params = m.Name, p
	if _, err := m.Verify(in); !problem.Is(err, problem.ReasonIssuer) {
		t.Error(err)
	}
}

func environment(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func TestDetect(t *testing.T) {
	for name, c := range map[string]struct {
		vars map[string]string
		want string
	}{
		"nothing":                     {nil, ""},
		"GitHub":                      {map[string]string{"CI": "true", "GITHUB_ACTIONS": "true"}, ci.GitHubName},
		"not really GitHub":           {map[string]string{"GITHUB_ACTIONS": "false"}, ""},
		"GitLab":                      {map[string]string{"GITLAB_CI": "true"}, ci.GitLabName},
		"Buildkite":                   {map[string]string{"BUILDKITE": "true"}, ci.BuildkiteName},
		"CircleCI":                    {map[string]string{"CIRCLECI": "true"}, ci.CircleCIName},
		"a pod":                       {map[string]string{"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""},
		"a pod with a token":          {map[string]string{"KUBERNETES_SERVICE_HOST": "10.0.0.1", ci.EnvTokenFile: "/t"}, "k8s-job"},
		"a runner of GitLab in a pod": {map[string]string{"KUBERNETES_SERVICE_HOST": "10.0.0.1", "GITLAB_CI": "true", ci.EnvTokenFile: "/t"}, ci.GitLabName},
		"a token":                     {map[string]string{ci.EnvToken: "x"}, ci.OIDCName},
		"a token's file":              {map[string]string{ci.EnvTokenFile: "x"}, ci.OIDCName},
		"a program":                   {map[string]string{ci.EnvTokenCommand: "x"}, ci.OIDCName},
	} {
		if got, ok := ci.Detect(environment(c.vars)); got != c.want || ok != (c.want != "") {
			t.Errorf("%s: %q, %v", name, got, ok)
		}
	}
}

func TestMaterial(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		method string
		vars   map[string]string
		want   attest.Material // nil: refused
	}{
		"GitHub": {
			ci.GitHubName,
			map[string]string{"ACTIONS_ID_TOKEN_REQUEST_URL": "https://x", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "canary"},
			attest.Material{ci.NeedRequestURL: []byte("https://x"), ci.NeedRequestToken: []byte("canary")},
		},
		"GitHub without permission":      {ci.GitHubName, map[string]string{"GITHUB_TOKEN": "canary"}, nil},
		"GitHub with half of it":         {ci.GitHubName, map[string]string{"ACTIONS_ID_TOKEN_REQUEST_TOKEN": "canary"}, nil},
		"GitLab":                         {ci.GitLabName, map[string]string{ci.EnvToken: "canary"}, attest.Material{ci.NeedToken: []byte("canary")}},
		"GitLab without a token":         {ci.GitLabName, map[string]string{"CI_JOB_TOKEN": "canary"}, nil},
		"Buildkite":                      {ci.BuildkiteName, nil, attest.Material{}},
		"CircleCI":                       {ci.CircleCIName, nil, attest.Material{}},
		"a pod":                          {"k8s-job", map[string]string{ci.EnvTokenFile: file}, attest.Material{ci.NeedToken: []byte("from a file")}},
		"a file that is not there":       {"k8s-job", map[string]string{ci.EnvTokenFile: file + "canary"}, nil},
		"a program before a token":       {ci.OIDCName, map[string]string{ci.EnvTokenCommand: "get-token --now", ci.EnvToken: "canary"}, attest.Material{ci.NeedCommand: []byte("get-token --now")}},
		"a method that is none of jobs":  {"tpm", nil, nil},
		"a service without what it gave": {ci.OIDCName, nil, nil},
	} {
		got, err := ci.Material(c.method, environment(c.vars), os.ReadFile)
		if c.want == nil {
			if err == nil || problem.As(err).WayOut() == "" || strings.Contains(err.Error()+problem.As(err).WayOut(), "canary") && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestDetectedAttests: what Detect and Material find makes an attester whose evidence is good.
func TestDetectedAttests(t *testing.T) {
	for _, name := range []string{ci.GitHubName, ci.GitLabName, ci.BuildkiteName, ci.CircleCIName, "k8s-job", ci.OIDCName} {
		f := fixture(t, name)
		vars := map[string]string{}
		switch name {
		case ci.GitHubName:
			vars["GITHUB_ACTIONS"] = "true"
			vars["ACTIONS_ID_TOKEN_REQUEST_URL"], vars["ACTIONS_ID_TOKEN_REQUEST_TOKEN"] = string(f.Material[ci.NeedRequestURL]), string(f.Material[ci.NeedRequestToken])
		case ci.GitLabName:
			vars["GITLAB_CI"], vars[ci.EnvToken] = "true", string(f.Material[ci.NeedToken])
		case "k8s-job":
			file := filepath.Join(t.TempDir(), "token")
			if err := os.WriteFile(file, f.Material[ci.NeedToken], 0o644); err != nil {
				t.Fatal(err)
			}
			vars["KUBERNETES_SERVICE_HOST"], vars[ci.EnvTokenFile] = "10.0.0.1", file
		case ci.OIDCName:
			vars[ci.EnvTokenCommand] = string(f.Material[ci.NeedCommand])
		default:
			// The service's own program is found in PATH.
			usual := map[string]string{ci.BuildkiteName: "buildkite-agent", ci.CircleCIName: "circleci"}[name]
			dir := t.TempDir()
			if err := os.Symlink(string(f.Material[ci.NeedCommand]), filepath.Join(dir, usual)); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
			vars[strings.ToUpper(name)] = "true"
		}
		got, ok := ci.Detect(environment(vars))
		if !ok || got != name {
			t.Errorf("%s: %q", name, got)
			continue
		}
		material, err := ci.Material(got, environment(vars), os.ReadFile)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		a, err := platformtest.Methods().NewAttesterFrom(name, material)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		in := f.Good()
		if in.Evidence, err = a.Attest(t.Context(), f.Binding); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := f.Method.Verify(in); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestProgramArguments: what a service's program is asked for.
func TestProgramArguments(t *testing.T) {
	f := fixture(t, ci.BuildkiteName)
	b := f.Binding
	for name, want := range map[string]string{
		ci.BuildkiteName: "oidc|request-token|--audience|AUD|--lifetime|300|--claim|organization_id,pipeline_id,build_id,cluster_id,queue_id|",
		ci.CircleCIName:  `run|oidc|get|--claims|{"aud":"AUD"}|`,
		ci.OIDCName:      "--flag|AUD|",
	} {
		dir := t.TempDir()
		script := filepath.Join(dir, "program")
		text := "#!/bin/sh\nfor a; do printf '%s|' \"$a\"; done >'" + dir + "/args'\nexit 1\n"
		if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		command := script
		if name == ci.OIDCName {
			command += " --flag"
		}
		a, err := find(t, name).NewAttester(attest.Material{ci.NeedCommand: []byte(command)})
		if err != nil {
			t.Fatal(err)
		}
		b.Method = name
		if _, err := a.Attest(t.Context(), b); !problem.Is(err, problem.ReasonNotProved) {
			t.Errorf("%s: %v", name, err)
		}
		got, err := os.ReadFile(filepath.Join(dir, "args"))
		if err != nil || string(got) != strings.ReplaceAll(want, "AUD", b.KeyAudience()) {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}

// TestGitHubAsks: each of these answers must be refused, and none of them may show the request's token.
func TestGitHubAsks(t *testing.T) {
	f := fixture(t, ci.GitHubName)
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request)
		want   problem.Reason
	}{
		"refused":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, problem.ReasonNotProved},
		"broken":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, problem.ReasonUnreachable},
		"too often": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }, problem.ReasonUnreachable},
		"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://evil.example/", http.StatusFound)
		}, problem.ReasonNotProved},
		"no JSON":     {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, problem.ReasonNotProved},
		"no token":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) }, problem.ReasonNotProved},
		"not a token": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"value":"x"}`)) }, problem.ReasonTokenInvalid},
		"endless":     {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 70<<10)) }, problem.ReasonTooLarge},
		"for somebody": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"value":"` + string(f.With(map[string]any{"aud": "sts.amazonaws.com"})) + `"}`))
		}, problem.ReasonAudience},
	} {
		server := httptest.NewServer(http.HandlerFunc(c.answer))
		a, err := f.Method.NewAttester(attest.Material{ci.NeedRequestURL: []byte(server.URL), ci.NeedRequestToken: []byte("canary-7f3a")})
		if err != nil {
			t.Fatal(err)
		}
		_, err = a.Attest(t.Context(), f.Binding)
		server.Close()
		if !problem.Is(err, c.want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
		if c.want == problem.ReasonAudience && !strings.Contains(problem.As(err).WayOut(), f.Binding.KeyAudience()) {
			t.Errorf("%s: it does not say which audience is wanted: %s", name, problem.As(err).WayOut())
		}
	}
	for name, m := range map[string]attest.Material{
		"over http":           {ci.NeedRequestURL: []byte("http://github.example/x"), ci.NeedRequestToken: []byte("canary")},
		"no URL":              {ci.NeedRequestURL: []byte("canary"), ci.NeedRequestToken: []byte("canary")},
		"a header in a token": {ci.NeedRequestURL: []byte("https://github.example/x"), ci.NeedRequestToken: []byte("canary\r\nX: y")},
	} {
		if _, err := f.Method.NewAttester(m); !problem.Is(err, problem.ReasonInvalid) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGivenTokenForSomebody: a token that was made for another service is not shown to us.
func TestGivenTokenForSomebody(t *testing.T) {
	f := fixture(t, ci.GitLabName)
	a, err := f.Method.NewAttester(attest.Material{ci.NeedToken: f.With(map[string]any{"aud": "https://vault.example.com"})})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Attest(t.Context(), f.Binding); !problem.Is(err, problem.ReasonAudience) || !strings.Contains(problem.As(err).WayOut(), f.Binding.EnvironmentAudience()) {
		t.Error(err)
	}
}

func TestCommandBounds(t *testing.T) {
	f := fixture(t, ci.OIDCName)
	endless := filepath.Join(t.TempDir(), "endless")
	if err := os.WriteFile(endless, []byte("#!/bin/sh\nexec head -c 1000000 /dev/zero\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	a, err := f.Method.NewAttester(attest.Material{ci.NeedCommand: []byte(endless)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Attest(t.Context(), f.Binding); !problem.Is(err, problem.ReasonTooLarge) {
		t.Error(err)
	}
	if _, err := f.Method.NewAttester(attest.Material{ci.NeedCommand: []byte("nowhere-to-be-found-5b1e")}); !problem.Is(err, problem.ReasonInvalid) {
		t.Error(err)
	}
	if _, err := f.Method.NewAttester(nil); !problem.Is(err, problem.ReasonInvalid) {
		t.Error(err)
	}
}

// TestMoreAttacks counts with the common table what only these services' tokens can be made to say.
func TestMoreAttacks(t *testing.T) {
	f := fixture(t, ci.GitHubName)
	forge := func(name string, change map[string]any) jwttest.Attack {
		return jwttest.Attack{Name: name, Want: problem.ReasonTokenInvalid, Make: func(g *jwttest.Target) attest.Input { return g.Input(g.With(change)) }}
	}
	jwttest.Run(t, &f.Target,
		forge("a repository taken over under its old name", map[string]any{"sub": "repo:octo-org@65/octo-repo@74:ref:refs/heads/main", "repository_id": "99"}),
		forge("an owner taken over under its old name", map[string]any{"sub": "repo:octo-org@65/octo-repo@74:ref:refs/heads/main", "repository_owner_id": "99"}))
}
