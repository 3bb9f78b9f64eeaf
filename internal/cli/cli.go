// Package cli is the command line: one explicit tree of commands, a file for each noun.
//
// Guaranteed: nothing but data on standard output, notes and progress on standard error; every failure is one line
// `error:`, its stable reason, and the way out, or the same as JSON with -o json; exit codes by package problem (1 the
// request, 2 the server said no, 3 try again or ask for help), 4 for what is sound but not authenticated, 5 for a scope
// that nothing known is in, and the child's own for `run`, or 125 and above. A secret value is never an argument. What is signed is computed here, from what this side
// knows and has checked, and never taken from the server. Not guaranteed: that the terminal, or the shell's history
// and pipes, keep what they are given.
//
// Its place: on top. It starts server and agent, calls environments through package client, and reads data
// directories, without a server, through package audit.
//
//arch:allow package-lines: a file for each noun; they share nothing but connect.go and output.go
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/run"
)

// version is set by the linker, or left empty.
var version string

// thisVersion is the version of this binary: what it was built as, else what the go command knew of it.
func thisVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return versionOf(info)
}

func versionOf(info *debug.BuildInfo) string {
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	set := make(map[string]string)
	for _, s := range info.Settings {
		set[s.Key] = s.Value
	}
	revision := set["vcs.revision"]
	if revision == "" {
		return "unknown"
	}
	revision = revision[:min(len(revision), 12)]
	if set["vcs.modified"] == "true" {
		revision += "-dirty"
	}
	return revision
}

// app is one run of the command line: its streams, its environment, its global flags.
type app struct {
	in     io.Reader
	out    io.Writer
	err    io.Writer
	getenv func(string) string
	flags  globals
	stop   context.CancelFunc // of the signals
}

// globals are the flags that every command takes. Each has an environment variable.
type globals struct {
	addr, env, bootstrap, key, home string
	output                          string
	timeout                         time.Duration
	quiet                           bool
}

// exitCode ends the program with a code of its own, after everything was said.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// coded is a failure with an exit code of its own.
type coded struct {
	code int
	error
}

func (c coded) Unwrap() error { return c.error }

// codeNotAuthenticated: consistent, and not authenticated (DESIGN §16).
const codeNotAuthenticated exitCode = 4

// codeViolated: entries that are what they say, and not what the rules allowed.
const codeViolated = 5

// Main runs the command line of this process and returns its exit code.
func Main() int {
	return Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv)
}

// Run runs one command and returns its exit code.
func Run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer, getenv func(string) string) int {
	a := &app{in: in, out: out, err: errOut, getenv: getenv, stop: func() {}}
	defer func() { a.stop() }()
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var code exitCode
	if errors.As(err, &code) {
		return int(code)
	}
	p := asProblem(err)
	exit := p.Kind.ExitCode()
	var own coded
	if errors.As(err, &own) {
		exit = own.code
	}
	a.printProblem(p, exit)
	return exit
}

// usageError marks what cobra itself finds wrong, which has no kind of its own.
type usageError struct{ error }

func asProblem(err error) *problem.Problem {
	var p *problem.Problem
	if errors.As(err, &p) {
		return p
	}
	var u usageError
	// Cobra has no type for a required flag that is missing.
	if errors.As(err, &u) || strings.HasPrefix(err.Error(), "required flag(s) ") {
		return problem.Wrap(err, problem.ReasonInvalid, "usage").WithFix("see `bailment help`, or a command's --help")
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return problem.Wrap(err, problem.ReasonCanceled, "stopped")
	}
	if p := localProblem(err); p != nil {
		return p
	}
	// Its text is of this machine, for the person at it. The reason's own way out is for what a server said.
	return (&problem.Problem{Kind: problem.Internal, Reason: problem.ReasonInternal, Message: err.Error(), Err: err}).
		WithFix("this is a defect of this program: report what was run, and what it said")
}

// localProblem is what the operating system said about a file of this machine, which no server can help with.
func localProblem(err error) *problem.Problem {
	var of *fs.PathError
	if !errors.As(err, &of) {
		return nil
	}
	if of.Op == "write" && of.Path == os.Stdout.Name() {
		return problem.Wrap(of.Err, problem.ReasonInvalid, "writing to standard output").
			WithFix("mend where the output goes; what was asked for may have been done, so look before you ask for it again")
	}
	return problem.Wrap(err, problem.ReasonInvalid, "on this machine").WithFix("check the name, that you may use it, and that there is room")
}

type problemJSON struct {
	Error      string `json:"error"`
	Kind       string `json:"kind"`
	Reason     string `json:"reason"`
	Try        string `json:"try"`
	RetryAfter string `json:"retry_after,omitempty"`
	Exit       int    `json:"exit"`
}

func (a *app) printProblem(p *problem.Problem, exit int) {
	retry := ""
	if p.RetryAfter > 0 {
		retry = p.RetryAfter.String()
	}
	if a.flags.output == formatJSON {
		e := json.NewEncoder(a.err)
		e.SetEscapeHTML(false)
		// A failure to say it can't be said either.
		_ = e.Encode(problemJSON{p.Message, p.Kind.String(), string(p.Reason), p.WayOut(), retry, exit})
		return
	}
	fmt.Fprintf(a.err, "error: %s\n", p.Message)
	fmt.Fprintf(a.err, "reason: %s (%s)\n", p.Reason, p.Kind)
	if retry != "" {
		fmt.Fprintf(a.err, "retry after: %s\n", retry)
	}
	if fix := p.WayOut(); fix != "" {
		fmt.Fprintf(a.err, "try: %s\n", fix)
	}
}

// note tells the person something that is not data.
func (a *app) note(format string, args ...any) {
	if !a.flags.quiet {
		fmt.Fprintf(a.err, format+"\n", args...)
	}
}

const rootLong = `Bailment hands secrets over for one purpose, for a limited time, against proof of who
takes them, with a receipt.

Data goes to standard output, everything else to standard error. Exit codes: 0 done;
1 the request is wrong, or something on this machine; 2 the server said no; 3 try again, or
ask for help; 4 sound, but not authenticated; 5 sound, but with entries that its own rules
forbid; 6 nothing known is in the scope to revoke; from 125 on, those of run. Errors say a
stable reason and what to try.`

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "bailment", Short: "Hand secrets over against proof, with a receipt", Long: rootLong,
		Example:       "  bailment login alice\n  bailment secret put db/password < value\n  bailment ledger verify --dir /var/lib/bailment/prod",
		SilenceErrors: true, SilenceUsage: true, Version: thisVersion(),
		Args:              cobra.ArbitraryArgs,
		PersistentPreRunE: a.begin,
		RunE:              group,
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(helpCommand())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	f := root.PersistentFlags()
	f.StringVar(&a.flags.addr, "addr", "", "HOST:PORT of the server, instead of the pinned one ($BAILMENT_ADDR)")
	f.StringVar(&a.flags.env, "env", "", "environment, of those that are pinned here ($BAILMENT_ENV)")
	f.StringVar(&a.flags.bootstrap, "bootstrap", "", "bootstrap string bailment1:HOST:PORT/ENV#GENESIS ($BAILMENT_BOOTSTRAP)")
	f.StringVarP(&a.flags.key, "ssh-key", "i", "", "SSH key to sign with: a private or public key file, or a fingerprint in ssh-agent ($BAILMENT_SSH_KEY)")
	f.StringVar(&a.flags.home, "home", "", "directory for what is pinned and for sessions (default $BAILMENT_HOME, else $XDG_CONFIG_HOME/bailment)")
	f.StringVarP(&a.flags.output, "output", "o", formatTable, "form of the data: table, json or yaml")
	f.DurationVar(&a.flags.timeout, "timeout", 30*time.Second, "longest wait for the server, retries included")
	f.BoolVarP(&a.flags.quiet, "quiet", "q", false, "no notes and no progress")
	a.complete(root, "output", func(context.Context) []string { return []string{formatTable, formatJSON, formatYAML} })
	a.complete(root, "env", func(context.Context) []string { return a.pinned() })

	root.AddCommand(
		a.initCommand(), a.serverCommand(), a.agentCommand(), a.attestCommand(), a.runCommand(), a.ciCommand(), a.configCommand(),
		a.loginCommand(), a.logoutCommand(), a.svidCommand(), a.statusCommand(), a.doctorCommand(),
		a.secretCommand(), a.leaseCommand(), a.nodeCommand(), a.identityCommand(),
		a.environmentCommand(), a.bundleCommand(), a.rootsCommand(), a.changeCommand(), a.recoveryCommand(), a.revokeCommand(), a.revocationCommand(), a.explainCommand(),
		a.whoCanCommand(), a.canCommand(), a.blastRadiusCommand(), a.accessCommand(), a.breakGlassCommand(),
		a.ledgerCommand(), a.receiptCommand(), a.keyCommand(), a.rootCommand(),
		a.quickstartCommand(), a.completionCommand(), a.versionCommand(), a.genCommand(),
	)
	root.AddCommand(a.demoCommands()...)
	checkUsage(root)
	return root
}

// group is a command that only has others below it.
func group(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%q is not a command of %q", args[0], c.CommandPath())}
	}
	c.SetOut(c.ErrOrStderr()) // help that nobody asked for is not data
	if err := c.Help(); err != nil {
		return err
	}
	return usageError{fmt.Errorf("%q needs a command", c.CommandPath())}
}

// helpCommand is cobra's, but for what is not there: that is a mistake like any other.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]...", Short: "Help about any command", Args: cobra.ArbitraryArgs,
		Long: "Prints the help of a command, as --help does.", Example: "  bailment help secret put",
		ValidArgsFunction: func(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			var out []string
			if of, rest, err := c.Root().Find(args); err == nil && len(rest) == 0 {
				for _, sub := range of.Commands() {
					if sub.IsAvailableCommand() {
						out = append(out, sub.Name())
					}
				}
			}
			return filter(out, prefix), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			of, rest, err := c.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usageError{fmt.Errorf("%q is not a command of %q", strings.Join(args, " "), c.Root().Name())}
			}
			of.InitDefaultHelpFlag()
			return of.Help()
		},
	}
}

// checkUsage makes every complaint about arguments a usage error.
func checkUsage(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			var p *problem.Problem
			if err == nil || errors.As(err, &p) {
				return err
			}
			return usageError{err}
		}
	}
	for _, sub := range c.Commands() {
		checkUsage(sub)
	}
}

// begin runs before every command.
func (a *app) begin(c *cobra.Command, _ []string) error {
	if c.Name() == "run" {
		// It passes signals on to its child, and dies of them before it has one. Its own exit codes begin where
		// a program's are not expected.
		if err := a.finishFlags(); err != nil {
			return coded{run.ExitOurs, err}
		}
		return nil
	}
	ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
	a.stop = stop
	c.SetContext(ctx)
	return a.finishFlags()
}

// finishFlags fills global flags from the environment, and checks them.
func (a *app) finishFlags() error {
	fill := func(to *string, name string) {
		if *to == "" {
			*to = a.getenv(name)
		}
	}
	fill(&a.flags.addr, "BAILMENT_ADDR")
	fill(&a.flags.env, "BAILMENT_ENV")
	fill(&a.flags.bootstrap, "BAILMENT_BOOTSTRAP")
	fill(&a.flags.key, "BAILMENT_SSH_KEY")
	fill(&a.flags.home, "BAILMENT_HOME")
	if a.flags.home == "" {
		config := a.getenv("XDG_CONFIG_HOME")
		if config == "" && a.getenv("HOME") != "" {
			config = filepath.Join(a.getenv("HOME"), ".config")
		}
		if config != "" {
			a.flags.home = filepath.Join(config, "bailment")
		}
	}
	switch a.flags.output {
	case formatTable, formatJSON, formatYAML:
	default:
		bad := a.flags.output
		a.flags.output = formatTable
		return problem.New(problem.ReasonInvalid, "there is no output form %q", bad).WithFix("use -o table, -o json or -o yaml")
	}
	if a.flags.timeout <= 0 {
		return problem.New(problem.ReasonInvalid, "--timeout must be more than zero").WithFix("give a duration such as 30s")
	}
	return a.checkKey()
}

// checkKey refuses the name of an identity where the file of a key belongs.
func (a *app) checkKey() error {
	looks := strings.HasPrefix(a.flags.key, "spiffe://")
	for _, p := range []string{identity.PrefixHuman, identity.PrefixNode, identity.PrefixWorkload, identity.PrefixServer} {
		looks = looks || strings.HasPrefix(a.flags.key, p)
	}
	if !looks {
		return nil
	}
	if _, err := os.Stat(a.flags.key); err == nil {
		return nil
	}
	return problem.New(problem.ReasonInvalid, "--ssh-key (-i, BAILMENT_SSH_KEY) takes a key of yours, and %s is the name of an identity", a.flags.key).
		WithFix("name an identity as an argument, as in `bailment lease list %s`", a.flags.key)
}

// wrong is a problem of what was given on this machine: exit code 1.
func wrong(err error, format string, args ...any) error {
	var p *problem.Problem
	if errors.As(err, &p) {
		return err
	}
	return problem.Wrap(err, problem.ReasonInvalid, format, args...).WithFix("check the name, and that you may read or write there")
}
