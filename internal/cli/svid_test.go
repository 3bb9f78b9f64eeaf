package cli

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bailment/bailment/internal/problem"
)

// What the agent says by its Workload API is what `svid fetch` says: a server that is away is no missing agent, and a hold no missing rule.
func TestEndpointProblems(t *testing.T) {
	const addr = "unix:///run/bailment/spiffe.sock"
	for _, c := range []struct {
		name   string
		err    error
		reason problem.Reason
		has    string // in the message
		fix    string // in the way out
	}{
		{
			"no socket", status.Error(codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial unix /run/bailment/spiffe.sock: connect: no such file or directory"`),
			problem.ReasonNoAgent, addr, "SPIFFE_ENDPOINT_SOCKET",
		},
		{"no answer", status.Error(codes.DeadlineExceeded, "context deadline exceeded"), problem.ReasonNoAgent, addr, "SPIFFE_ENDPOINT_SOCKET"},
		{
			"the server is away", status.Error(codes.Unavailable, "unreachable: dial tcp 192.0.2.1:8417: connection refused; try: check the address, or the network"),
			problem.ReasonUnreachable, "dial tcp 192.0.2.1:8417: connection refused", "check the address, or the network",
		},
		{
			"held", status.Error(codes.PermissionDenied, "held: held by entry 16 (node:/node/join-token/web-1); try: lift it"),
			problem.ReasonHeld, "held by entry 16 (node:/node/join-token/web-1)", "lift it",
		},
		{
			"no rule, wrapped", fmt.Errorf("asking: %w", status.Error(codes.PermissionDenied, "no-identity: no rule fits; try: add one")),
			problem.ReasonNoIdentity, "no rule fits", "add one",
		},
		{"another agent's no", status.Error(codes.PermissionDenied, "no identity issued"), problem.ReasonNoIdentity, "no identity issued", ""},
		{"another agent's words", status.Error(codes.Unavailable, "unheard-of: something; try: nothing"), problem.ReasonNoAgent, "unheard-of: something", ""},
		{"the request", status.Error(codes.InvalidArgument, "a JWT-SVID has 1 to 8 audiences"), problem.ReasonInvalid, "1 to 8 audiences", ""},
		{"no status", errors.New("no SPIFFE endpoint"), problem.ReasonInvalid, "no SPIFFE endpoint", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := problem.As(endpointProblem(c.err, addr))
			if p.Reason != c.reason || !strings.Contains(p.Error(), c.has) || !strings.Contains(p.WayOut(), c.fix) {
				t.Errorf("%s: %s; try: %s\nwant %s, with %q and %q", p.Reason, p.Error(), p.WayOut(), c.reason, c.has, c.fix)
			}
		})
	}
}
