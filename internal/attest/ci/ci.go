// Package ci is the attestation methods of CI services: "github", "gitlab", "buildkite", "circleci", and "oidc" for any other that gives
// its jobs ID tokens. A job proves what it is by such a token.
//
// Guaranteed: the service signed the token for this environment, for a job of the repository, project or pipeline that the claims name by
// their immutable IDs; claims that say the same thing twice agree; and the token is used by one session key only. Where the service lets a
// job choose the audience, the token is bound to the session key from the beginning (assurance "platform"), else to the first one that uses
// it (assurance "token").
//
// Not guaranteed: that the job runs what was reviewed. Whatever code a job runs can ask for its token; what the claims say of branch, event
// and environment is all that tells a release from a stranger's pull request, and rules must ask for it. docs/reference/ci.md compares the
// services.
//
// Its place: methods of package attest, by way of package platform. A service is one row here, and one file.
package ci

import (
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/k8s"
	"github.com/bailment/bailment/internal/attest/platform"
	"github.com/bailment/bailment/internal/problem"
)

// service is a CI service, and how a job of it is known.
type service struct {
	method string
	// here reports whether this process runs in one of its jobs.
	here func(getenv func(string) string) bool
	// material is what the method's attester needs, from the job's environment.
	material func(job job) (attest.Material, error)
}

// job is what a process can see of its job.
type job struct {
	getenv   func(string) string
	readFile func(string) ([]byte, error)
}

// The variables that people set for us; all others are the services' own.
const (
	// EnvToken holds an ID token with the environment's audience: GitLab's id_tokens, or that of a service not known here.
	EnvToken = "BAILMENT_ID_TOKEN"
	// EnvTokenFile names a file that holds one: a projected volume of Kubernetes.
	EnvTokenFile = "BAILMENT_ID_TOKEN_FILE"
	// EnvTokenCommand is a program that prints one for the audience that is its last argument.
	EnvTokenCommand = "BAILMENT_ID_TOKEN_COMMAND"
)

// services is the table by which a job is known, in the order in which it is asked: the services' own variables first, since their runners
// may be pods, and what was set for us last.
var services = []service{
	{GitHubName, is("GITHUB_ACTIONS", "true"), fromGitHub},
	{GitLabName, is("GITLAB_CI", "true"), fromToken},
	{BuildkiteName, is("BUILDKITE", "true"), nothing},
	{CircleCIName, is("CIRCLECI", "true"), nothing},
	{k8s.JobName, all(set("KUBERNETES_SERVICE_HOST"), set(EnvTokenFile)), fromToken},
	{OIDCName, either(set(EnvToken), set(EnvTokenFile), set(EnvTokenCommand)), fromOIDC},
}

// Methods are the rows of this package.
func Methods() attest.Methods {
	return attest.Methods{GitLab(), OIDC(), CircleCI(), Buildkite(), GitHub()}
}

// Detect says by which method a process in a CI job attests, from the job's environment.
func Detect(getenv func(string) string) (method string, ok bool) {
	for _, s := range services {
		if s.here(getenv) {
			return s.method, true
		}
	}
	return "", false
}

// Material is what the attester of that method needs, from the job's environment: for attest.Methods.NewAttesterFrom. Its errors say what
// the job's definition lacks, and show nothing of the environment.
func Material(method string, getenv func(string) string, readFile func(name string) ([]byte, error)) (attest.Material, error) {
	for _, s := range services {
		if s.method == method {
			return s.material(job{getenv, readFile})
		}
	}
	return nil, problem.New(problem.ReasonUnknownMethod, "method %.32q is none of CI jobs", method)
}

func is(name, value string) func(func(string) string) bool {
	return func(getenv func(string) string) bool { return getenv(name) == value }
}

func set(name string) func(func(string) string) bool {
	return func(getenv func(string) string) bool { return getenv(name) != "" }
}

func all(conditions ...func(func(string) string) bool) func(func(string) string) bool {
	return func(getenv func(string) string) bool {
		for _, c := range conditions {
			if !c(getenv) {
				return false
			}
		}
		return true
	}
}

func either(conditions ...func(func(string) string) bool) func(func(string) string) bool {
	return func(getenv func(string) string) bool {
		for _, c := range conditions {
			if c(getenv) {
				return true
			}
		}
		return false
	}
}

// nothing is the material of services whose own program is all that it takes.
func nothing(job) (attest.Material, error) { return attest.Material{}, nil }

// fromToken takes the token that was handed to the job.
func fromToken(j job) (attest.Material, error) {
	if token := j.getenv(EnvToken); token != "" {
		return attest.Material{NeedToken: []byte(token)}, nil
	}
	name := j.getenv(EnvTokenFile)
	if name == "" {
		return nil, problem.New(problem.ReasonInvalid, "the job has no ID token").
			WithFix("have the service make one with the environment's audience (bailment:v1:GENESIS), in %s", EnvToken)
	}
	token, err := j.readFile(name)
	if err != nil {
		return nil, problem.Local(err, "read the file that %s names", EnvTokenFile)
	}
	return attest.Material{NeedToken: token}, nil
}

// fromOIDC takes the program before the token: it binds to the session key.
func fromOIDC(j job) (attest.Material, error) {
	if command := j.getenv(EnvTokenCommand); command != "" {
		return attest.Material{NeedCommand: []byte(command)}, nil
	}
	return fromToken(j)
}

// The needs of these methods.
const (
	NeedToken        = k8s.NeedToken
	NeedCommand      = "command"
	NeedRequestURL   = "request-url"
	NeedRequestToken = "request-token"
)

// givenToken makes the attester of a token that is bound to the environment.
func givenToken(method string) func(attest.Material) (attest.Attester, error) {
	return func(m attest.Material) (attest.Attester, error) {
		source, err := platform.Given(m[NeedToken])
		if err != nil {
			return nil, err
		}
		return platform.NewAttester(method, platform.ToEnvironment, source), nil
	}
}

// program makes the attester of a service whose own program prints tokens for any audience.
func program(method, usual string, arguments func(audience string) []string) func(attest.Material) (attest.Attester, error) {
	return func(m attest.Material) (attest.Attester, error) {
		name := usual
		if given := string(m[NeedCommand]); given != "" {
			name = given
		}
		source, err := platform.Command(name, arguments)
		if err != nil {
			return nil, err
		}
		return platform.NewAttester(method, platform.ToKey, source), nil
	}
}

// programNeed is the one need of such a method.
func programNeed(usual string) attest.Need {
	return attest.Need{Name: NeedCommand, Optional: true, Literal: true, Doc: "the program that asks for tokens; without it " + usual + " in PATH"}
}

// byEvidence and byPossession are how these methods are renewed: with a fresh token where a job can ask for one at any time; where it was
// given one for good, by the enrolled key until the token's end, which is the job's.
var (
	byEvidence   = attest.Renewal{Kind: attest.RenewByEvidence}
	byPossession = attest.Renewal{Kind: attest.RenewByPossession, HardLifetime: true}
)
