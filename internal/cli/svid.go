package cli

import (
	"context"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/problem"
)

func (a *app) svidCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "svid", Short: "Certificates of a login, or of this process, for other programs", RunE: group, Args: cobra.ArbitraryArgs,
		Long: `A login is an X.509-SVID: a certificate that names the identity, and its key. A process on a
machine with an agent gets one of its own by the SPIFFE Workload API.`,
		Example: "  bailment svid export --dir svid",
	}
	var dir string
	export := &cobra.Command{
		Use: "export --dir DIR", Short: "Write certificate, key and CA as PEM files", Args: cobra.NoArgs,
		Long: `Writes the login as three files, for curl and whatever else takes PEM: svid.pem has the
certificate and those between it and the CA, key.pem its key, and bundle.pem the CA of
genesis, the only one to trust. They are readable by their owner only, and replace those of an
earlier login. No server is asked.

Whoever has the key is you until the certificate expires or you log out.`,
		Example: "  bailment svid export --dir svid",
		RunE:    func(*cobra.Command, []string) error { return a.exportSVID(dir) },
	}
	export.Flags().StringVar(&dir, "dir", "", "directory to write to, made if need be (required)")
	must(export.MarkFlagRequired("dir"))
	c.AddCommand(export, a.fetchSVIDCommand())
	return c
}

const defaultEndpoint = "unix:///run/bailment/spiffe.sock"

func (a *app) fetchSVIDCommand() *cobra.Command {
	var dir, audience string
	c := &cobra.Command{
		Use: "fetch [--dir DIR] [--audience AUDIENCE]", Short: "Ask the SPIFFE Workload API who this process is", Args: cobra.NoArgs,
		Long: `Asks the agent's SPIFFE Workload API as any program does, and shows the identity that this
process has there. The socket is $SPIFFE_ENDPOINT_SOCKET, else
` + defaultEndpoint + `.

With --dir it writes svid.pem, key.pem and bundle.pem, as export does, but with every authority
of the environment. They are those of one moment: a program that runs on should follow the
Workload API itself. With --audience it prints a JWT-SVID instead, and nothing else.`,
		Example: "  bailment svid fetch\n  bailment svid fetch --dir svid\n  bailment svid fetch --audience sts.example",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), a.flags.timeout)
			defer cancel()
			addr := a.getenv(workloadapi.SocketEnv)
			if addr == "" {
				addr = defaultEndpoint
			}
			if audience != "" {
				t, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience}, workloadapi.WithAddr(addr))
				if err != nil {
					return endpointProblem(err, addr)
				}
				_, err = fmt.Fprintln(a.out, t.Marshal())
				return err
			}
			x, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr(addr))
			if err != nil {
				return endpointProblem(err, addr)
			}
			return a.showSVID(x, dir)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "directory to write PEM files to, made if need be")
	c.Flags().StringVar(&audience, "audience", "", "print a JWT-SVID for this audience")
	c.MarkFlagsMutuallyExclusive("dir", "audience")
	return c
}

// endpointProblem is what a Workload API's refusal is here. An agent of ours says reason and way out in its text, and they stay what they
// are: an environment that is away is no missing agent.
func endpointProblem(err error, addr string) error {
	s, ok := status.FromError(err)
	if !ok {
		return problem.Wrap(err, problem.ReasonInvalid, "the Workload API at %s", addr)
	}
	if reason, rest, ok := strings.Cut(s.Message(), ": "); ok && problem.Reason(reason).Fix() != "" {
		text, fix, _ := strings.Cut(rest, "; try: ")
		return problem.New(problem.Reason(reason), "%s", text).WithFix("%s", fix)
	}
	switch {
	case s.Code() == codes.PermissionDenied:
		return problem.New(problem.ReasonNoIdentity, "the Workload API refuses: %s", s.Message())
	case s.Code() == codes.Unavailable || s.Code() == codes.DeadlineExceeded:
		return problem.New(problem.ReasonNoAgent, "the Workload API at %s is not available: %s", addr, s.Message()).
			WithFix("start `bailment agent` on this machine, or set SPIFFE_ENDPOINT_SOCKET=unix://PATH to its Workload API's socket")
	}
	return problem.New(problem.ReasonInvalid, "the Workload API at %s: %s", addr, s.Message())
}

// showSVID shows the first SVID, and writes it if there is a place to.
func (a *app) showSVID(x *workloadapi.X509Context, dir string) error {
	s := x.DefaultSVID()
	v := svidView{Environment: s.ID.TrustDomain().Name(), Identity: s.ID.String(), Expires: s.Certificates[0].NotAfter.UTC()}
	if dir != "" {
		chain, key, err := s.Marshal()
		if err != nil {
			return problem.Wrap(err, problem.ReasonInternal, "encoding the SVID")
		}
		defer clear(key)
		roots, err := x.Bundles.GetX509BundleForTrustDomain(s.ID.TrustDomain())
		if err != nil {
			return problem.Wrap(err, problem.ReasonNotAuthentic, "the SVID's trust bundle")
		}
		bundle, err := roots.Marshal()
		if err != nil {
			return problem.Wrap(err, problem.ReasonInternal, "encoding the trust bundle")
		}
		if err := v.write(dir, chain, key, bundle); err != nil {
			return err
		}
	}
	return a.show(v, v.rows)
}

type svidView struct {
	Environment string    `json:"environment"`
	Identity    string    `json:"identity"`
	Expires     time.Time `json:"expires"`
	SVID        string    `json:"svid,omitempty"`
	Key         string    `json:"key,omitempty"`
	Bundle      string    `json:"bundle,omitempty"`
}

// write writes the files, and notes where.
func (v *svidView) write(dir string, chain, key, bundle []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return wrong(err, "making the directory")
	}
	v.SVID, v.Key, v.Bundle = filepath.Join(dir, "svid.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "bundle.pem")
	for _, f := range []struct {
		path string
		text []byte
	}{{v.Key, key}, {v.SVID, chain}, {v.Bundle, bundle}} {
		if err := durable.WriteFile(f.path, f.text, 0o600); err != nil {
			return wrong(err, "writing %s", f.path)
		}
	}
	return nil
}

func (v *svidView) rows(r *rows) {
	r.add("identity", v.Identity)
	r.add("expires", v.Expires)
	if v.SVID != "" {
		r.add("certificate", v.SVID)
		r.add("key", v.Key)
		r.add("CA", v.Bundle)
	}
}

// exportSVID writes the login as PEM.
func (a *app) exportSVID(dir string) error {
	t, err := a.knownTrust()
	if err != nil {
		return err
	}
	if t == nil {
		return problem.New(problem.ReasonNoSession, "there is no login here: the environment is not pinned").WithFix("log in with `bailment login PERSON`")
	}
	s, err := a.session(t)
	if err != nil {
		return err
	}
	chain, key, err := s.PEM()
	if err != nil {
		return err
	}
	defer clear(key)
	v := svidView{Environment: t.Environment, Identity: s.Identity, Expires: s.Expires.UTC()}
	if err := v.write(dir, chain, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: t.CA.Raw})); err != nil {
		return err
	}
	return a.show(v, v.rows)
}
