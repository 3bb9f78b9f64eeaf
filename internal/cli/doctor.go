package cli

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/agent"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/problem"
)

// finding is one line of doctor.
type finding struct {
	Check  string `json:"check"`
	State  string `json:"state"` // ok | off | failed
	Detail string `json:"detail"`
	Try    string `json:"try,omitempty"`
}

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Check what a command on this machine needs", Args: cobra.NoArgs,
		Long: `Checks, in order: what is pinned, that the server can be reached and is the one that is pinned,
that clocks agree, that nobody is replacing the operators, the login, the SSH key, and the agent on
this machine. What rests on a check that failed is left out. It changes nothing, and exits with 1
if a check failed. What is off (no login, no SSH key, no agent) is not a failure.`,
		Example: "  bailment doctor\n  bailment doctor -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			found := a.diagnose(cmd.Context())
			failed := 0
			for _, f := range found {
				if f.State == "failed" {
					failed++
				}
			}
			if err := a.show(found, func(t *rows) {
				for _, f := range found {
					t.add(f.State, f.Check, f.Detail)
					if f.Try != "" {
						t.add("", "", "try: "+f.Try)
					}
				}
			}); err != nil {
				return err
			}
			if failed > 0 {
				return problem.New(problem.ReasonInvalid, "%d %s failed", failed, plural(failed, "check")).WithFix("follow the first `try` above")
			}
			return nil
		},
	}
}

func failed(check string, err error) finding {
	p := asProblem(err)
	return finding{check, "failed", p.Message, p.WayOut()}
}

func off(check string, err error) finding {
	f := failed(check, err)
	f.State = "off"
	return f
}

// maxSkew is the difference between clocks beyond which short certificates begin to fail.
const maxSkew = 30 * time.Second

func (a *app) diagnose(ctx context.Context) []finding {
	return append(a.diagnoseServer(ctx), a.diagnoseKey(ctx), a.diagnoseAgent(ctx))
}

// diagnoseServer goes from the pin to the login, and stops at what makes the rest impossible.
func (a *app) diagnoseServer(ctx context.Context) (out []finding) {
	c, t, err := a.dial(ctx)
	if err != nil {
		return append(out, failed("pinned environment", err))
	}
	defer c.Close()
	out = append(out, finding{"pinned environment", "ok", fmt.Sprintf("%s (%s), genesis %x…", t.Environment, t.Class, t.Genesis[:8]), ""})
	begun := time.Now()
	e, err := c.Environment.GetEnvironment(ctx, &v1.GetEnvironmentRequest{})
	if err != nil {
		return append(out, failed("server", err))
	}
	out = append(out, finding{"server", "ok", fmt.Sprintf("%s at %s, %s, generation %d", e.ServerVersion, t.Address, time.Since(begun).Round(time.Millisecond), e.Generation), ""})
	out = append(out, diagnoseClock(ctx, c.Attestation.Challenge))
	if r, err := c.Recoveries.GetRecovery(ctx, &v1.GetRecoveryRequest{}); err == nil && r.Recovery != nil {
		out = append(out, finding{"recovery", "failed", recoveryWarning(r.Recovery.Recovery, r.Recovery.Until.AsTime()), "ask those who signed it; if nobody knows of it, approve a change of the bundle"})
	}
	if s, err := a.session(t); err != nil {
		out = append(out, off("login", err))
	} else {
		out = append(out, finding{"login", "ok", s.Path() + " until " + stamp(s.Expires), ""})
	}
	return out
}

// diagnoseClock compares clocks by a challenge's expiry: it must lie in the future, and not far.
func diagnoseClock(ctx context.Context, challenge func(context.Context, *v1.ChallengeRequest) (*v1.ChallengeResponse, error)) finding {
	r, err := challenge(ctx, &v1.ChallengeRequest{})
	if err != nil {
		return failed("clock", err)
	}
	left := time.Until(r.Expires.AsTime())
	if left < 0 || left > 10*time.Minute+maxSkew {
		return finding{"clock", "failed", fmt.Sprintf("a new challenge expires in %s by this clock", left.Round(time.Second)), "synchronise the clocks of this machine and of the server"}
	}
	return finding{"clock", "ok", "agrees with the server's", ""}
}

// diagnoseKey opens the key file that is set. Which of an ssh-agent's keys is meant is known only when a person
// logs in, so an agent is only knocked at.
func (a *app) diagnoseKey(ctx context.Context) finding {
	if a.flags.key != "" {
		s, err := a.signer(ctx, nil)
		if err != nil {
			return failed("ssh key", err)
		}
		_ = s.Close() // it was only looked at
		return finding{"ssh key", "ok", s.Source, ""}
	}
	socket := a.getenv("SSH_AUTH_SOCK")
	if socket == "" {
		return finding{"ssh key", "off", "neither BAILMENT_SSH_KEY nor an ssh-agent", "set BAILMENT_SSH_KEY to log in or sign"}
	}
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return finding{"ssh key", "off", "no ssh-agent listens on $SSH_AUTH_SOCK", "start ssh-agent, or set BAILMENT_SSH_KEY"}
	}
	_ = conn.Close() // it was only knocked at
	return finding{"ssh key", "ok", "an ssh-agent listens on " + socket, ""}
}

// agentWait bounds how long the agent on this machine may take to say how it is.
const agentWait = 5 * time.Second

// diagnoseAgent asks the agent how it is: that it listens says nothing of whether it has what a run needs.
func (a *app) diagnoseAgent(ctx context.Context) finding {
	path := a.agentSocket()
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return off("agent", localapi.Unanswered(path, err))
	}
	_ = conn.Close() // it was only knocked at
	ctx, cancel := context.WithTimeout(ctx, agentWait)
	defer cancel()
	s, err := (&localapi.Client{Socket: path}).Status(ctx)
	if err != nil {
		return failed("agent", err)
	}
	return judgeAgent(path, s)
}

// judgeAgent: only an agent with a session gives anything to anybody.
func judgeAgent(path string, s *localapi.Status) finding {
	f := finding{"agent", "failed", printable(fmt.Sprintf("at %s is %s", path, s.State)), ""}
	switch agent.State(s.State) {
	case agent.Ready, agent.Renewing:
		f.State = "ok"
		f.Detail += printable(" as " + s.Identity + " until " + stamp(s.Expires))
	case agent.Starting:
		f.State, f.Try = "off", "ask again in a moment"
	}
	if s.Problem != nil {
		f.Detail += printable(fmt.Sprintf(" (%s): %s", s.Problem.Reason, s.Problem.Message))
		f.Try = printable(s.Problem.Fix)
	}
	return f
}
