package cli

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/agent"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/run"
	"github.com/bailment/bailment/internal/server"
	"github.com/bailment/bailment/internal/sshsig"
)

type initView struct {
	Environment string `json:"environment"`
	Class       string `json:"class"`
	Genesis     string `json:"genesis"`
	Bootstrap   string `json:"bootstrap"`
	Dir         string `json:"dir"`
	RootKey     string `json:"root_key"`
	Founder     string `json:"founder"`
}

func (a *app) initCommand() *cobra.Command {
	var data, address, rootKind, rootLocation string
	c := &cobra.Command{
		Use: "init BUNDLE", Short: "Found an environment from a bundle", Args: cobra.ExactArgs(1),
		Long: `Founds an environment: makes its keys, writes genesis, and has it signed by the SSH key of an
operator that the bundle lists. No root token and no password come of it: from here on only
listed persons and attested machines do anything.

It prints the bootstrap string, from which every machine and person finds the environment and
knows that it is the right one. It is not secret, and must not be swapped: keep it where the
people who need it will find the true one.`,
		Example: "  bailment init ./env --data /var/lib/bailment --address bailment.corp:8400 -i ~/.ssh/id_ed25519",
		RunE: func(cmd *cobra.Command, args []string) error {
			host, port, err := splitAddress(address)
			if err != nil {
				return err
			}
			founder := ""
			files, prog, err := readBundle(args[0])
			if err != nil {
				return err
			}
			if data, err = filepath.Abs(data); err != nil {
				return wrong(err, "the data directory")
			}
			signer, err := a.founder(cmd.Context(), prog)
			if err != nil {
				return err
			}
			defer signer.Close()
			f, err := server.Init(cmd.Context(), server.InitOptions{
				Data: data, Files: files, Holder: config.RootHolder{Kind: rootKind, Location: rootLocation},
				Sign: func(_ context.Context, namespace, text string) (string, string, error) {
					op, ok := prog.OperatorByKey(signer.PublicKey())
					if !ok {
						return "", "", problem.New(problem.ReasonSignature, "the key %s is no operator's of this bundle", sshsig.Fingerprint(signer.PublicKey()))
					}
					founder = op.Name
					armored, err := a.sign(signer, namespace, []byte(text))
					return op.Name, armored, err
				},
			})
			if err != nil {
				return err
			}
			b := identity.Bootstrap{Host: host, Port: port, Env: f.Name, Genesis: f.Genesis}
			if err := b.Validate(); err != nil {
				return problem.Wrap(err, problem.ReasonInvalid, "the address")
			}
			v := initView{f.Name, f.Class, hex.EncodeToString(f.Genesis[:]), b.String(), f.Dir, f.RootKey, founder}
			a.note("start it with `bailment server`, with `data: %s` in its configuration", data)
			return a.show(v, func(t *rows) {
				t.add("environment", v.Environment)
				t.add("class", v.Class)
				t.add("founder", v.Founder)
				t.add("directory", v.Dir)
				t.add("root key", v.RootKey)
				t.add("bootstrap", v.Bootstrap)
			})
		},
	}
	c.Flags().StringVar(&data, "data", "/var/lib/bailment", "data directory; the environment gets a directory of its name in it")
	c.Flags().StringVar(&address, "address", "127.0.0.1:8400", "HOST:PORT that the bootstrap string names")
	c.Flags().StringVar(&rootKind, "root-holder", "file", "kind of root holder; file is for the development class only")
	c.Flags().StringVar(&rootLocation, "root-location", "", "where the root key is, in the terms of its kind (default root.key in the environment's directory)")
	return c
}

func splitAddress(addr string) (string, uint16, error) {
	host, port, err := net.SplitHostPort(addr)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 || host == "" {
		return "", 0, problem.New(problem.ReasonInvalid, "the address %q is not HOST:PORT", addr).WithFix("give the address as machines will dial it, as in bailment.corp:8400")
	}
	return host, uint16(n), nil
}

// founder is a key of any operator that the bundle lists.
func (a *app) founder(ctx context.Context, prog *policy.Program) (*sshsig.Signer, error) {
	var keys []ssh.PublicKey
	for _, op := range prog.Operators() {
		for _, k := range op.Keys {
			keys = append(keys, k.Key)
		}
	}
	return a.signer(ctx, keys)
}

func (a *app) logger(c config.Log) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "log.level")
	}
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(a.err, o)), nil
	}
	return slog.New(slog.NewTextHandler(a.err, o)), nil
}

type readyView struct {
	Listen string `json:"listen"`
	Ops    string `json:"ops"`
	PID    int    `json:"pid"`
}

func (a *app) serverCommand() *cobra.Command {
	var file, ready string
	c := &cobra.Command{
		Use: "server", Short: "Serve environments", Args: cobra.NoArgs,
		Long: `Serves the environments of the data directory until it is told to stop by SIGTERM or SIGINT.
It never makes an environment: that is bailment init. Every setting has a default; bailment
config reference lists them. Logs go to standard error.`,
		Example: "  bailment server --config /etc/bailment/server.yaml\n  bailment config check /etc/bailment/server.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadServer(file)
			if err != nil {
				return err
			}
			logger, err := a.logger(cfg.Log)
			if err != nil {
				return err
			}
			var failed error
			s, err := server.New(*cfg, server.Options{Logger: logger, Version: thisVersion(), Started: func(listen, ops string) {
				if ready != "" {
					failed = writeReady(ready, readyView{listen, ops, os.Getpid()})
				}
			}})
			if err != nil {
				return err
			}
			return errors.Join(s.Run(cmd.Context()), failed)
		},
	}
	c.Flags().StringVar(&file, "config", "", "configuration file (default: every setting's default)")
	c.Flags().StringVar(&ready, "ready-file", "", "write the addresses, as JSON, to this file when requests are answered")
	return c
}

// writeReady tells by a file, for who can't be told by systemd. It is there whole or not at all.
func writeReady(path string, v readyView) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return durable.WriteFile(path, append(b, '\n'), 0o644)
}

const defaultSocket = "/run/bailment/agent.sock"

func (a *app) agentSocket() string {
	if s := a.getenv("BAILMENT_AGENT"); s != "" {
		return s
	}
	return defaultSocket
}

func (a *app) agentCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "agent", Short: "Attest this machine and serve its processes", Args: cobra.NoArgs,
		Long: `Proves what this machine is, keeps its certificate fresh, and answers the processes on it over
a Unix socket, until it is told to stop. It needs the bootstrap string and what the
attestation method needs, such as a join token, in its configuration.

A second socket, spiffe.sock beside the first one, is that of the SPIFFE Workload API and of
Envoy's Secret Discovery Service: programs find it by SPIFFE_ENDPOINT_SOCKET=unix://PATH.`,
		Example: "  bailment agent --config /etc/bailment/agent.yaml\n  bailment agent status",
		RunE: func(cmd *cobra.Command, _ []string) error {
			x, err := a.newAgent(file)
			if err != nil {
				return err
			}
			return x.Run(cmd.Context())
		},
	}
	c.Flags().StringVar(&file, "config", "", "configuration file (default: every setting's default)")
	show := func(s *localapi.Status) error {
		return a.show(s, func(t *rows) { statusTable(t, s) })
	}
	c.AddCommand(&cobra.Command{
		Use: "renew", Short: "Have the agent on this machine prove it anew, now", Args: cobra.NoArgs,
		Long: `Has the agent on this machine prove the machine to the server at once, whatever it waits for, and
shows its state after that: what somebody wants who has mended what was refused. Only root and the
agent's own user may. Its socket is $BAILMENT_AGENT, else
` + defaultSocket + `.

It exits with 0 if there is a new session, and otherwise says what was wrong. What the agent had
before, it keeps.`,
		Example: "  sudo bailment agent renew",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), a.flags.timeout)
			defer cancel()
			s, err := (&localapi.Client{Socket: a.agentSocket()}).Renew(ctx)
			if err != nil {
				return err
			}
			return show(s)
		},
	}, &cobra.Command{
		Use: "status", Short: "Ask the agent on this machine how it is", Args: cobra.NoArgs,
		Long: `Asks the agent on this machine for its state. Its socket is $BAILMENT_AGENT, else
` + defaultSocket + `.

It exits with 0 if the machine has a session that can be used (ready, renewing), with 2 if the
answer is no until somebody mends what the status says (not-proved, refused, held, quarantined,
outdated), and with 3 if it may pass by itself or is this machine's own trouble (starting,
unreachable, broken, or no agent). Unreachable is the server; broken are this machine's own
files, hardware or platform (its TPM, its metadata service).`,
		Example: "  bailment agent status -o json\n  bailment agent status > /dev/null || echo \"exit code $?\"",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), a.flags.timeout)
			defer cancel()
			s, err := (&localapi.Client{Socket: a.agentSocket()}).Status(ctx)
			if err != nil {
				return err
			}
			if err := show(s); err != nil {
				return err
			}
			if code := agent.State(s.State).ExitCode(); code != 0 {
				return exitCode(code)
			}
			return nil
		},
	})
	return c
}

func statusTable(t *rows, s *localapi.Status) {
	t.add("state", s.State)
	t.add("since", s.Since)
	t.add("environment", s.Environment)
	t.add("server", s.Address)
	t.add("identity", s.Identity)
	t.add("assurance", s.Assurance)
	t.add("certificate until", s.Expires)
	t.add("enrolment until", s.LifetimeEnd)
	t.add("told of changes", s.Watching)
	t.add("runs", s.Runs)
	t.add("version", s.Version)
	if s.Replaced {
		t.line("another build is installed than the one that runs: restart the agent to use it")
	}
	if s.Problem != nil {
		t.line("problem (%s): %s", s.Problem.Reason, s.Problem.Message)
		t.line("try: %s", s.Problem.Fix)
	}
}

// badBootstrap: without its string an agent would ask nobody, for ever.
func badBootstrap(text string, err error) error {
	if text == "" {
		return problem.New(problem.ReasonInvalid, "the agent has no bootstrap string, so it can't tell which environment is meant").
			WithFix("set BAILMENT_BOOTSTRAP, or bootstrap in the configuration, to what `bailment init` printed")
	}
	return problem.Wrap(err, problem.ReasonInvalid, "the bootstrap string").
		WithFix("copy it as `bailment init` printed it, to BAILMENT_BOOTSTRAP or to bootstrap in the configuration")
}

func (a *app) runCommand() *cobra.Command {
	var secrets, files []string
	var purpose, workload, receipts string
	var wait time.Duration
	c := &cobra.Command{
		Use: "run [flags] -- COMMAND [ARGUMENT]...", Short: "Run a program with the secrets that it was granted", Args: cobra.ArbitraryArgs,
		Long: `Asks the agent on this machine for secrets on behalf of a program, and runs it with them: in
its environment, or in files on memory-backed storage. The program's file is opened, measured
and executed from one descriptor, and its digest is a claim. The leases are given back when it
ends. While agent or server are away it waits (--wait), and --timeout bounds each time that it
asks. When the agent is restarted the program goes on, and is proved to the next one.

Where the agent serves the SPIFFE Workload API, the program finds it by SPIFFE_ENDPOINT_SOCKET,
unless that is set already.

A file of --secret-file is readable by its owner only (0600), who is the user that calls run. It
must not exist, must be on a tmpfs, and is wiped and removed when the program ends. If run is
killed by SIGKILL, the next run of the same user does that.

The exit code is the program's; 125 if something of ours went wrong, 126 if it can't be
executed, 127 if it was not found, 128+N if signal N ended it.`,
		Example: "  bailment run --secret db/password=DB_PASSWORD -- ./payments-api\n  bailment run --secret-file tls/key=TLS_KEY_FILE --as /workload/web -- nginx -g 'daemon off;'",
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg := run.Config{
				Agent: &localapi.Client{Socket: a.agentSocket()}, Command: args, Env: os.Environ(), Purpose: purpose, Workload: workload,
				Receipts: receipts != "", Event: a.leaseEvent, Wait: wait, Timeout: a.flags.timeout,
			}
			cfg.Stdin, _ = a.in.(*os.File)
			cfg.Stdout, _ = a.out.(*os.File)
			cfg.Stderr, _ = a.err.(*os.File)
			var err error
			if cfg.Secrets, err = wantedSecrets(secrets, files); err != nil {
				return coded{run.ExitOurs, err}
			}
			var kept error
			cfg.Opened = func(o localapi.Opened) {
				for _, g := range o.Secrets {
					a.note("%s version %d for %s, lease %d until %s", g.Name, g.Version, o.Identity, g.Lease, stamp(g.Expires))
				}
				if receipts != "" {
					kept = keepReceipts(receipts, o.Secrets)
				}
			}
			code, err := run.Run(cmd.Context(), cfg)
			if err != nil {
				return coded{code, err}
			}
			if kept != nil {
				a.note("the receipts were not kept: %v", kept)
			}
			if code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
	c.Flags().SetInterspersed(false) // what follows the command is the command's
	c.Flags().StringArrayVar(&secrets, "secret", nil, "SECRET=NAME: put a secret into an environment variable; repeatable")
	c.Flags().StringArrayVar(&files, "secret-file", nil, "SECRET=PATH or SECRET=NAME: put a secret into a file, and for NAME its path into NAME_FILE; repeatable")
	c.Flags().StringVar(&purpose, "purpose", "", "what the secrets are for (default runtime)")
	c.Flags().StringVar(&workload, "as", "", "workload to be, where several rules fit")
	c.Flags().StringVar(&receipts, "receipts", "", "write the receipts of the hand-overs to this directory")
	c.Flags().DurationVar(&wait, "wait", 10*time.Second, "how long to wait for an agent or server that is away")
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return coded{run.ExitOurs, usageError{err}} })
	return c
}

func (a *app) leaseEvent(e localapi.Event) {
	switch e.Event {
	case localapi.EventLeaseLost:
		why := ""
		if e.Why != nil {
			why = ": " + e.Why.Message
		}
		a.note("bailment: the lease of %s is over while the program runs%s", e.Secret, why)
	case localapi.EventStopping:
		a.note("bailment: the agent stops; the program goes on with what it has")
	case localapi.EventWaiting:
		a.note("bailment: waiting: %s", e.Why.Message)
	case localapi.EventGone:
		a.note("bailment: the agent is gone; the program goes on, its leases are not renewed until there is an agent again")
	case localapi.EventResumed:
		a.note("bailment: there is an agent again, and it has taken the program's leases up")
	case localapi.EventNotResumed:
		a.note("bailment: the agent does not take the program's leases up: %s; try: %s", e.Why.Message, e.Why.Fix)
	}
}

func wantedSecrets(secrets, files []string) ([]run.Secret, error) {
	var out []run.Secret
	for _, s := range secrets {
		x, err := run.ParseSecret(s)
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	for _, s := range files {
		x, err := run.ParseSecretFile(s)
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	return out, nil
}

func keepReceipts(dir string, given []localapi.Given) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, g := range given {
		name := fmt.Sprintf("%s-%d.txt", strings.ReplaceAll(g.Name, "/", "_"), g.Index)
		if err := durable.WriteFile(filepath.Join(dir, name), g.Receipt, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// checkAgent checks an agent's file, and says what else that agent will need.
func (a *app) checkAgent(path string) error {
	cfg, err := config.LoadAgent(path, methods.All())
	if err == nil && cfg.Bootstrap == "" && a.flags.bootstrap == "" {
		a.note("bootstrap is not set: the agent needs it in BAILMENT_BOOTSTRAP")
	}
	return err
}

func (a *app) configCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "config", Short: "Configuration of server and agent", RunE: group, Args: cobra.ArbitraryArgs,
		Long: "Checks configuration files and prints the reference of every setting.", Example: "  bailment config check server.yaml",
	}
	var role string
	check := &cobra.Command{
		Use: "check FILE", Short: "Check a configuration file, and start nothing", Args: cobra.ExactArgs(1),
		Long:    "Checks a configuration file strictly and prints everything that is wrong with it, as\nFILE:LINE:COLUMN. It exits with 1 if there is anything.",
		Example: "  bailment config check server.yaml\n  bailment config check agent.yaml --role agent",
		RunE: func(_ *cobra.Command, args []string) error {
			var err error
			switch role {
			case "server":
				_, err = config.LoadServer(args[0])
			case "agent":
				err = a.checkAgent(args[0])
			default:
				return problem.New(problem.ReasonInvalid, "there is no role %q", role).WithFix("use --role server or --role agent")
			}
			var found config.Findings
			if !errors.As(err, &found) {
				if err == nil {
					a.note("ok")
				}
				return err
			}
			if err := a.show(found, func(t *rows) {
				for _, f := range found {
					t.line("%s", f)
				}
			}); err != nil {
				return err
			}
			return problem.New(problem.ReasonInvalid, "%d %s in %s", len(found), plural(len(found), "finding"), args[0]).
				WithFix("mend what is listed; `bailment config reference` lists every setting")
		},
	}
	check.Flags().StringVar(&role, "role", "server", "whose file it is: server or agent")
	a.complete(check, "role", func(context.Context) []string { return []string{"server", "agent"} })
	c.AddCommand(check, &cobra.Command{
		Use: "reference", Short: "Print the reference of every setting", Args: cobra.NoArgs,
		Long: "Prints every setting of server and agent with its default and meaning, as Markdown.", Example: "  bailment config reference",
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprint(a.out, config.Reference())
			return err
		},
	})
	return c
}
