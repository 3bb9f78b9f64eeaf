package job

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
)

// Audience is what the audience of a platform's token can be bound to.
type Audience int

// The audiences.
const (
	// AudienceKey: the job chooses the audience when it asks, so it names environment and session key (attest.Binding.KeyAudience). Nobody
	// else can use the token.
	AudienceKey Audience = iota
	// AudienceEnvironment: the audience stands in the job's definition, so it names the environment only
	// (attest.Binding.EnvironmentAudience). The server binds the token to the first session key that comes with it.
	AudienceEnvironment
)

// Platform is a CI platform as a job on it finds it.
type Platform struct {
	Name     string // as --platform takes it
	Title    string
	Method   string // of attestation
	Audience Audience
	// Hidden are variables by which whoever has them can get tokens of the platform. The program does not see them.
	Hidden []string
	// Masks: the platform takes values out of the job's log when it is told them on standard output.
	Masks bool
	Token TokenSource
}

// Options of Detect. The zero value leaves all to the platform.
type Options struct {
	Platform  string // instead of what the environment says
	Method    string // instead of the platform's
	TokenEnv  string // variable that holds the token
	TokenFile string // file that holds the token
}

// The platforms' names.
const (
	GitHub     = "github"
	GitLab     = "gitlab"
	Buildkite  = "buildkite"
	CircleCI   = "circleci"
	Kubernetes = "kubernetes"
	Generic    = "oidc"
)

// DefaultTokenEnv is the variable that is looked for where a job's definition names it.
const DefaultTokenEnv = "BAILMENT_ID_TOKEN"

// Where a pod's own token would be: it is for the cluster's API, not for us, and so it is never taken.
const clusterToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// row is a platform in the table of those that are known.
type row struct {
	Platform
	// marker is the variable by which a job knows where it runs, and the value that it has there; empty: any.
	marker, value string
	// source is where its token comes from; nil: from a variable or a file that the job's definition names.
	source func(env func(string) string) (TokenSource, error)
}

func rows() []row {
	return []row{
		{
			Platform: Platform{Name: GitHub, Title: "GitHub Actions", Method: "github", Audience: AudienceKey, Masks: true, Hidden: []string{githubURL, githubToken}},
			marker:   "GITHUB_ACTIONS", value: "true", source: githubJob,
		},
		{Platform: Platform{Name: GitLab, Title: "GitLab CI/CD", Method: "gitlab", Audience: AudienceEnvironment}, marker: "GITLAB_CI", value: "true"},
		// Nothing of Buildkite's is hidden: the agent's own token (BUILDKITE_AGENT_ACCESS_TOKEN) is what the step's other commands need too.
		{Platform: Platform{Name: Buildkite, Title: "Buildkite", Method: "buildkite", Audience: AudienceKey}, marker: "BUILDKITE", value: "true", source: buildkiteJob},
		{
			Platform: Platform{Name: CircleCI, Title: "CircleCI", Method: "circleci", Audience: AudienceKey, Hidden: []string{"CIRCLE_OIDC_TOKEN", "CIRCLE_OIDC_TOKEN_V2"}},
			marker:   "CIRCLECI", value: "true", source: circleJob,
		},
		{Platform: Platform{Name: Kubernetes, Title: "Kubernetes", Method: "k8s", Audience: AudienceEnvironment}, marker: "KUBERNETES_SERVICE_HOST"},
		{Platform: Platform{Name: Generic, Title: "the platform", Method: "oidc", Audience: AudienceEnvironment}},
	}
}

// Names lists the platforms.
func Names() []string {
	var out []string
	for _, r := range rows() {
		out = append(out, r.Name)
	}
	return out
}

// Detect finds out on which platform this process is a job, from its environment, and how to get its token there. Nothing is asked yet. A job of
// one platform that says it is one of another too (a runner inside of a runner) must be told which.
func Detect(env func(string) string, o Options) (*Platform, error) {
	found, err := detect(env, o)
	if err != nil {
		return nil, err
	}
	p := &found.Platform
	if o.Method != "" {
		if !attest.ValidMethodName(o.Method) {
			return nil, problem.New(problem.ReasonInvalid, "%q can't be an attestation method", o.Method).WithFix("give one of the bundle's methods with --method")
		}
		p.Method = o.Method
	}
	if o.TokenEnv != "" || o.TokenFile != "" || found.source == nil {
		return p, p.given(env, o)
	}
	p.Token, err = found.source(env)
	return p, err
}

func detect(env func(string) string, o Options) (row, error) {
	all := rows()
	if o.Platform != "" {
		i := slices.IndexFunc(all, func(r row) bool { return r.Name == o.Platform })
		if i < 0 {
			return row{}, problem.New(problem.ReasonInvalid, "there is no platform %q", o.Platform).WithFix("give one of %s", strings.Join(Names(), ", "))
		}
		return all[i], nil
	}
	var found []row
	for _, r := range all {
		// A job of another platform often runs in a pod, so being in one says nothing beside that.
		if r.marker == "" || env(r.marker) == "" || r.value != "" && env(r.marker) != r.value || r.Name == Kubernetes && len(found) > 0 {
			continue
		}
		found = append(found, r)
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		if o.TokenEnv != "" || o.TokenFile != "" || env(DefaultTokenEnv) != "" {
			return all[len(all)-1], nil
		}
		return row{}, problem.New(problem.ReasonInvalid, "this is no job of a CI platform that is known: none of its variables is set").
			WithFix("on a platform with OIDC tokens give --token-env or --token-file; on a machine with an agent use `bailment run`")
	}
	var names []string
	for _, r := range found {
		names = append(names, r.Name)
	}
	return row{}, problem.New(problem.ReasonAmbiguous, "the environment says that this is a job of %s", strings.Join(names, " and of ")).
		WithFix("say with --platform which one's token is meant")
}

const (
	githubURL   = "ACTIONS_ID_TOKEN_REQUEST_URL"
	githubToken = "ACTIONS_ID_TOKEN_REQUEST_TOKEN"
)

func githubJob(env func(string) string) (TokenSource, error) {
	url, bearer := env(githubURL), env(githubToken)
	if url == "" || bearer == "" {
		return nil, problem.New(problem.ReasonNotProved, "GitHub gave this job no right to ask for an ID token").
			WithFix("give the job `permissions: id-token: write`; a workflow that a pull request from a fork started gets none")
	}
	return newRequestSource(url, bearer)
}

func buildkiteJob(func(string) string) (TokenSource, error) {
	return commandSource{"Buildkite", func(audience string) []string {
		return []string{"buildkite-agent", "oidc", "request-token", "--audience", audience}
	}}, nil
}

func circleJob(func(string) string) (TokenSource, error) {
	return commandSource{"CircleCI", func(audience string) []string {
		// No character of an audience of ours is one that JSON escapes; of somebody else's it is escaped.
		claims, _ := json.Marshal(map[string]string{"aud": audience})
		return []string{"circleci", "run", "oidc", "get", "--claims", string(claims)}
	}}, nil
}

// given takes the token from a variable or a file. Its audience was fixed when the job was defined.
func (p *Platform) given(env func(string) string, o Options) error {
	p.Audience = AudienceEnvironment
	switch {
	case o.TokenEnv != "" && o.TokenFile != "":
		return problem.New(problem.ReasonInvalid, "--token-env and --token-file contradict each other").WithFix("give one of them")
	case o.TokenFile == clusterToken:
		return problem.New(problem.ReasonInvalid, "%s is the pod's token for its cluster's API, which must not be shown to anybody else", clusterToken).
			WithFix("project one for this environment: a volume `projected: sources: [serviceAccountToken: {audience: AUDIENCE, path: token}]`, with the audience that `bailment ci audience` prints")
	case o.TokenFile != "":
		p.Token = fileSource{o.TokenFile}
		return nil
	}
	name := o.TokenEnv
	if name == "" {
		name = DefaultTokenEnv
	}
	value := env(name)
	if value == "" {
		return problem.New(problem.ReasonNotProved, "there is no token of %s: the variable %s is not set", p.Title, name).WithFix("%s", p.howToGive(name))
	}
	p.Hidden = append(slices.Clone(p.Hidden), name)
	p.Token = variableSource{value}
	return nil
}

func (p *Platform) howToGive(name string) string {
	switch p.Name {
	case GitLab:
		return "give the job `id_tokens: {" + name + ": {aud: AUDIENCE}}`, with the audience that `bailment ci audience` prints; a name of your own goes with --token-env"
	case Kubernetes:
		return "project a service account's token whose audience is what `bailment ci audience` prints into the pod, and give its path with --token-file"
	}
	return "have the platform put an ID token there whose audience is what `bailment ci audience` prints, or give --token-file"
}
