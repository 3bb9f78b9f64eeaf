package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/ci"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/job"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/run"
)

func (a *app) ciCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "ci", Short: "Jobs of a CI service", RunE: group, Args: cobra.ArbitraryArgs,
		Long: `Runs a program inside of a CI job with the secrets that the job was granted, without an agent
and without a stored credential: the job proves what it is by the ID token that its service gives
it. GitHub Actions, GitLab CI/CD, Buildkite and CircleCI are known by their variables; any other
service is method oidc.`,
		Example: "  bailment ci run --secret deploy/key=DEPLOY_KEY -- ./deploy\n  bailment ci whoami",
	}
	c.AddCommand(a.ciRunCommand(), a.ciWhoamiCommand(), a.ciAudienceCommand(), a.ciWatchdogCommand())
	return c
}

// ciToken are the flags that say where a job's token comes from.
type ciToken struct{ method, env, file string }

func (f *ciToken) add(c *cobra.Command) {
	c.Flags().StringVar(&f.method, "method", "", "attestation method (default: by the service's variables)")
	c.Flags().StringVar(&f.env, "token-env", "", "variable that holds the ID token (default "+ci.EnvToken+", where the service is not asked for one)")
	c.Flags().StringVar(&f.file, "token-file", "", "file that holds the ID token ($"+ci.EnvTokenFile+")")
}

// maxTokenFile bounds the file of a token, which is at most a quarter of it.
const maxTokenFile = 64 << 10

// attester finds the job's method and makes its attester.
func (f *ciToken) attester(getenv func(string) string) (attest.Method, attest.Attester, error) {
	if f.env != "" && f.file != "" {
		return attest.Method{}, nil, problem.New(problem.ReasonInvalid, "--token-env and --token-file contradict each other").WithFix("give one of them")
	}
	look := func(name string) string {
		switch {
		case name == ci.EnvToken && f.env != "":
			return getenv(f.env)
		case name == ci.EnvToken && f.file != "", name == ci.EnvTokenFile && f.env != "":
			return ""
		case name == ci.EnvTokenFile && f.file != "":
			return f.file
		}
		return getenv(name)
	}
	name := f.method
	if name == "" {
		var ok bool
		if name, ok = ci.Detect(look); !ok {
			return attest.Method{}, nil, problem.New(problem.ReasonInvalid, "this is no job of a CI service that is known: none of its variables is set").
				WithFix("on a service with ID tokens give --token-env or --token-file; on a machine with an agent use `bailment run`")
		}
	}
	all := methods.All()
	method, err := all.Find(name)
	if err != nil {
		return method, nil, err
	}
	read := func() (attest.Attester, error) {
		material, err := ci.Material(name, look, readLimited)
		if err != nil {
			return nil, err
		}
		return all.NewAttesterFrom(name, material)
	}
	out, err := read()
	if err == nil && look(ci.EnvTokenFile) != "" {
		out = renewed{read}
	}
	return method, out, err
}

// renewed is the attester of a job whose token may be another one later: the kubelet puts a fresh token into a projected file before the
// one that is there ends.
type renewed struct {
	read func() (attest.Attester, error)
}

// Attest implements attest.Attester.
func (r renewed) Attest(ctx context.Context, b attest.Binding) ([]byte, error) {
	a, err := r.read()
	if err != nil {
		return nil, err
	}
	return a.Attest(ctx, b)
}

func readLimited(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxTokenFile))
}

// platform is what is known of the method's platform, with the variable that was named.
func (f *ciToken) platform(method string) job.Platform {
	p := job.PlatformOf(method)
	if f.env != "" {
		p.Hidden = append(p.Hidden, f.env)
	}
	return p
}

// asked is the bootstrap string of the environment that is meant, without asking anybody.
func (a *app) asked() (string, error) {
	if a.flags.bootstrap == "" {
		t, err := a.knownTrust()
		switch {
		case err != nil:
			return "", err
		case t == nil:
			return "", problem.New(problem.ReasonInvalid, "the environment is not known here").WithFix("give its bootstrap string with BAILMENT_BOOTSTRAP; it is not secret")
		}
		return t.BootstrapString(), nil
	}
	if _, err := a.environment(); err != nil {
		return "", err
	}
	return a.moved(a.flags.bootstrap)
}

const ciRunLong = `Proves by the ID token of its CI service what this job is, and runs a program with the secrets
that the job was granted: in its environment, or in files on memory-backed storage. There is no
agent, and nothing is kept on the machine.

Whatever ends the job, leases and session are given back: when the program ends; when this process
gets SIGHUP, SIGINT, SIGQUIT or SIGTERM, which the program gets first, and --grace later SIGKILL
with its process group; when the step's shell dies; and when this process is killed, by a second
process that watches it. What can't be given back is named, with the time at which it is dead
anyway. While the program runs, session and leases are renewed.

The program does not see the variables by which a job can ask for tokens, unless with --keep-oidc.
On GitHub the values are masked in the job's log, if the output is the step's own; they are
printed nowhere else.

The exit code is the program's; 125 if something of ours went wrong, 126 if it can't be
executed, 127 if it was not found, 128+N if signal N ended it.`

func (a *app) ciRunCommand() *cobra.Command {
	var token ciToken
	var secrets, files []string
	cfg := job.Config{}
	c := &cobra.Command{
		Use: "run [flags] -- COMMAND [ARGUMENT]...", Short: "Run a program of a CI job with the secrets that it was granted", Args: cobra.ArbitraryArgs,
		Long:    ciRunLong,
		Example: "  bailment ci run --secret deploy/key=DEPLOY_KEY -- ./deploy\n  bailment ci run --token-env DEPLOY_TOKEN --secret-file tls/key=TLS_KEY -- make release",
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg.Command, cfg.Env, cfg.Version, cfg.Patience = args, os.Environ(), thisVersion(), a.flags.timeout
			cfg.Stdin, _ = a.in.(*os.File)
			cfg.Stdout, _ = a.out.(*os.File)
			cfg.Stderr, _ = a.err.(*os.File)
			cfg.Note = func(text string) { a.note("bailment: %s", text) }
			cfg.Warn = func(text string) { fmt.Fprintf(a.err, "bailment: %s\n", text) }
			cfg.Watchdog = []string{"/proc/self/exe", "ci", "watchdog", "start"}
			if err := a.ciJob(&cfg, token, secrets, files); err != nil {
				return coded{run.ExitOurs, err}
			}
			code, err := job.Run(cmd.Context(), cfg)
			if err != nil {
				return coded{code, err}
			}
			if code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
	c.Flags().SetInterspersed(false) // what follows the command is the command's
	token.add(c)
	c.Flags().StringArrayVar(&secrets, "secret", nil, "SECRET=NAME: put a secret into an environment variable; repeatable")
	c.Flags().StringArrayVar(&files, "secret-file", nil, "SECRET=PATH or SECRET=NAME: put a secret into a file, and for NAME its path into NAME_FILE; repeatable")
	c.Flags().StringVar(&cfg.Purpose, "purpose", "", "what the secrets are for (default runtime)")
	c.Flags().DurationVar(&cfg.Grace, "grace", job.DefaultGrace, "how long the program may go on after a signal, before it is killed")
	c.Flags().DurationVar(&cfg.Wait, "wait", 10*time.Second, "how long to wait for a server, or for tokens, that can't be had")
	c.Flags().BoolVar(&cfg.KeepOIDC, "keep-oidc", false, "leave the job's right to ID tokens in the program's environment")
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return coded{run.ExitOurs, usageError{err}} })
	return c
}

// ciJob fills in what a job's run needs, and asks nobody.
func (a *app) ciJob(cfg *job.Config, token ciToken, secrets, files []string) error {
	if cfg.Grace <= 0 {
		return problem.New(problem.ReasonInvalid, "--grace must be more than zero").WithFix("give a duration such as 5s; services kill a job 10 s after it was cancelled")
	}
	var err error
	if cfg.Bootstrap, err = a.asked(); err != nil {
		return err
	}
	if cfg.Secrets, err = wantedSecrets(secrets, files); err != nil {
		return err
	}
	method, attester, err := token.attester(a.getenv)
	if err != nil {
		return err
	}
	cfg.Method, cfg.Attester, cfg.Renewal, cfg.Platform = method.Name, attester, method.Renewal.Kind, token.platform(method.Name)
	return nil
}

// whoamiView is what `ci whoami` prints.
type whoamiView struct {
	Method    string         `json:"method"`
	Audience  string         `json:"audience"`
	Claims    map[string]any `json:"token_claims"`
	Identity  string         `json:"identity"`
	Assurance string         `json:"assurance"`
	Rule      string         `json:"rule"`
	Used      bool           `json:"used"`
	Reason    string         `json:"reason"`
	Message   string         `json:"message"`
	Try       string         `json:"try"`
}

func (a *app) ciWhoamiCommand() *cobra.Command {
	var token ciToken
	var offline bool
	c := &cobra.Command{
		Use: "whoami", Short: "Say what this job is, by its token and by the server", Args: cobra.NoArgs,
		Long: `Gets an ID token as run does, and prints its audience, its claims, and what the server would make
of it: the identity, or why there is none. The token itself is never printed. Nothing is opened
or used up. Claims may hold names of persons and branches: the job's log is as public as it is.

It exits with 0 if the server would open a session and with 2 if it would not.`,
		Example: "  bailment ci whoami\n  bailment ci whoami --offline -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			bootstrap, err := a.asked()
			if err != nil {
				return err
			}
			method, attester, err := token.attester(a.getenv)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), a.flags.timeout)
			defer cancel()
			answer, err := job.Whoami(ctx, job.Question{Bootstrap: bootstrap, Method: method.Name, Attester: attester, Offline: offline})
			if answer == nil {
				return err
			}
			if shown := a.showWhoami(answer); shown != nil || err != nil {
				return firstOf(err, shown)
			}
			if answer.Server.GetReason() != "" {
				return exitCode(problem.Refused.ExitCode())
			}
			return nil
		},
	}
	token.add(c)
	c.Flags().BoolVar(&offline, "offline", false, "don't ask the server")
	return c
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *app) showWhoami(answer *job.Answer) error {
	server := answer.Server
	if server == nil {
		server = &v1.AppraiseResponse{}
	}
	v := whoamiView{
		answer.Method, answer.Audience, answer.Claims, server.Identity, server.Assurance, server.Rule, server.Used, server.Reason, server.Message, server.Fix,
	}
	return a.show(v, func(t *rows) {
		t.add("method", v.Method)
		t.add("audience", v.Audience)
		t.add("identity", v.Identity)
		t.add("assurance", v.Assurance)
		t.add("rule", v.Rule)
		if v.Reason != "" {
			t.add("refused", v.Reason+": "+v.Message)
			t.add("try", v.Try)
		}
		for _, name := range slices.Sorted(maps.Keys(v.Claims)) {
			t.add("token "+name, claimText(v.Claims[name]))
		}
	})
}

// claimText is a claim as the token has it, a text without its quotes.
func claimText(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}

func (a *app) ciAudienceCommand() *cobra.Command {
	return &cobra.Command{
		Use: "audience", Short: "Print the audience that a job's token must have where its definition fixes it", Args: cobra.NoArgs,
		Long: `Prints the audience of this environment, for services that fix a token's audience in the job's
definition: id_tokens of GitLab, projected tokens of Kubernetes. GitHub, Buildkite and CircleCI
are asked for a longer one, which is bound to the session's key as well. It asks nobody.`,
		Example: "  bailment ci audience --bootstrap bailment1:…",
		RunE: func(*cobra.Command, []string) error {
			bootstrap, err := a.asked()
			if err != nil {
				return err
			}
			audience, err := job.AudienceFor(bootstrap)
			if err != nil {
				return err
			}
			return a.show(map[string]string{"audience": audience}, func(t *rows) { t.line("%s", audience) })
		},
	}
}

// ciWatchdogCommand is what `ci run` starts of itself: start is the first of two processes, and ends when there is the second.
func (a *app) ciWatchdogCommand() *cobra.Command {
	return &cobra.Command{
		Use: "watchdog start|watch", Short: "Give back what a job that was killed has left", Hidden: true, Args: cobra.ExactArgs(1), ValidArgs: []string{"start", "watch"},
		Long: "Watches over `bailment ci run`, which starts it, and is of no use to anybody else.", Example: "  bailment ci watchdog watch",
		RunE: func(_ *cobra.Command, args []string) error {
			switch args[0] {
			case "start":
				return job.Spawn([]string{"/proc/self/exe", "ci", "watchdog", "watch"})
			case "watch":
				return job.Watch(func(text string) { fmt.Fprintf(a.err, "bailment: %s\n", text) })
			}
			return usageError{fmt.Errorf("%q is neither start nor watch", args[0])}
		},
	}
}
