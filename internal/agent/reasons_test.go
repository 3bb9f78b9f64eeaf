package agent

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/problem"
)

const challengeCall = bailmentv1connect.AttestationServiceChallengeProcedure

// wantStates is what each reason means for an agent, written down a second time: a class that changes by mistake differs from it.
var wantStates = map[State]string{
	Unreachable: `internal too-slow limit idempotency-key-limit rate-limited overloaded clock store store-full starting stopping unreachable
		no-agent unknown-outcome entropy canceled issuer-keys-unavailable stale delivery-too-late not-authentic wrong-environment tampered violated`,
	NotProved: `not-proved no-session session-expired session-foreign session-unknown token-unknown token-expired token-spent token-foreign
		token-invalid bad-proof bad-chain replayed challenge-expired challenge-foreign key-seen bad-signature wrong-audience unknown-issuer
		weak-algorithm not-yet-valid evidence-expired instance-seen key-attributes bad-quote event-log-mismatch machine-reset pod-unknown`,
	Held:        `held forked`,
	Quarantined: `quarantined`,
	Outdated:    `agent-outdated agent-unsigned agent-unknown agent-not-measured`,
}

// wantSlow are those of state unreachable that time does not mend.
var wantSlow = strings.Fields("no-agent not-authentic wrong-environment tampered violated")

func wantClass(r problem.Reason) class {
	for state, reasons := range wantStates {
		if slices.Contains(strings.Fields(reasons), string(r)) {
			return class{state, state == Unreachable && !slices.Contains(wantSlow, string(r))}
		}
	}
	return class{Refused, false}
}

// A reason that nobody has classed is found here.
func TestEveryReasonHasAClass(t *testing.T) {
	known := problem.Reasons()
	for _, r := range known {
		if got, ok := classes[r]; !ok || got != wantClass(r) {
			t.Errorf("%s: class %+v (listed: %t), want %+v", r, got, ok, wantClass(r))
		}
	}
	if len(classes) != len(known) {
		t.Errorf("%d classes of %d reasons", len(classes), len(known))
	}
	for _, reasons := range wantStates {
		for _, r := range strings.Fields(reasons) {
			if !slices.Contains(known, problem.Reason(r)) {
				t.Errorf("there is no reason %s", r)
			}
		}
	}
}

// A later server's reasons are classed by their kind.
func TestReasonsOfLaterServers(t *testing.T) {
	for kind, want := range map[problem.Kind]class{
		problem.Internal: away, problem.Unavailable: away, problem.Limited: away, problem.UnknownOutcome: away, problem.NotProved: notProved,
		problem.Refused: refused, problem.Invalid: refused, problem.NotFound: refused, problem.Conflict: refused,
	} {
		if got := classOf(&problem.Problem{Kind: kind, Reason: "of-the-future"}); got != want {
			t.Errorf("%s: %+v, want %+v", kind, got, want)
		}
	}
}

// Whatever a server answers to an attestation: the state is the reason's, there is a way out, and it is asked again at a fitting rate.
// Whatever it answers to a renewal: the session that there is stays, and serves, until it ends; then the state is the reason's.
func TestEveryReason(t *testing.T) {
	for _, r := range problem.Reasons() {
		t.Run(string(r), func(t *testing.T) {
			t.Parallel()
			want := wantClass(r)
			inBubble(t, clienttest.Config{}, func(b *bench) { attestRefused(b, r, want) })
			inBubble(t, clienttest.Config{}, func(b *bench) { renewalRefused(b, r, want) })
		})
	}
}

// attempts is how many there may be in five minutes.
func (c class) attempts() (least, most int) {
	if c.soon {
		return 12, 40
	}
	return 3, 10
}

func attestRefused(b *bench, r problem.Reason, want class) {
	b.t.Helper()
	b.token()
	fail1(b, r)
	b.begin()
	b.reach(want.state, 2*time.Second)
	b.reason(r)
	b.pass(5 * time.Minute)
	synctest.Wait()
	if s := b.agent.Status(); s.State != string(want.state) || s.Identity != "" || State(s.State).ExitCode() == 0 {
		b.t.Errorf("state %s, %q, want %s without a session", s.State, s.Identity, want.state)
	}
	least, most := want.attempts()
	if n := b.server.Calls(challengeCall); n < least || n > most {
		b.t.Errorf("%d attempts in five minutes, want %d to %d", n, least, most)
	}
	b.server.Before(nil)
	b.reach(Ready, lastRefused+time.Second)
}

func renewalRefused(b *bench, r problem.Reason, want class) {
	b.t.Helper()
	b.token()
	b.begin()
	b.reach(Ready, time.Second)
	var on atomic.Bool
	on.Store(true)
	b.server.Before(func(procedure string) error {
		if procedure == renewCall && on.Load() {
			return problem.New(r, "planted")
		}
		return nil
	})
	first := b.agent.Status()
	for time.Until(first.Expires) > time.Minute {
		b.pass(20 * time.Second)
		synctest.Wait()
		s := b.agent.Status()
		if State(s.State).ExitCode() != 0 || s.Identity != first.Identity || !s.Expires.Equal(first.Expires) {
			b.t.Fatalf("state %s with a session until %s: a renewal that failed took it away (%+v)", s.State, s.Expires, s.Problem)
		}
	}
	b.reason(r)
	b.pass(2 * time.Minute)
	synctest.Wait()
	if s := b.agent.Status(); s.State != string(want.state) {
		b.t.Errorf("after the session's end: %s (%+v), want %s", s.State, s.Problem, want.state)
	}
	b.reason(r)
	on.Store(false)
	b.reach(Ready, lastRefused+time.Second)
}

// What is pushed takes a session away only as long as it is so.
func TestPushedAndTakenBack(t *testing.T) {
	for r, want := range map[problem.Reason]State{
		problem.ReasonHeld: Held, problem.ReasonQuarantined: Quarantined, problem.ReasonAgentOutdated: Outdated, problem.ReasonAgentClaimed: Outdated,
		problem.ReasonNoIdentity: Refused, problem.ReasonPosture: Refused,
	} {
		t.Run(string(r), func(t *testing.T) {
			inBubble(t, clienttest.Config{SessionTTL: 24 * time.Hour}, func(b *bench) {
				b.token()
				b.begin()
				b.reach(Ready, time.Second)
				b.server.Push(nodePath, r)
				b.reach(want, 100*time.Millisecond)
				b.reason(r)
				b.pass(time.Hour)
				b.reach(want, 0)
				if n := b.server.Calls(renewCall); n > 30 {
					t.Errorf("%d renewals in an hour", n)
				}
				b.server.Push(nodePath, "")
				b.reach(Ready, 100*time.Millisecond)
				if b.agent.Status().Problem != nil {
					t.Error("it is well, with a problem")
				}
			})
		})
	}
}

// A build that is installed while the running one is refused is not tried by itself, and the status says what helps.
func TestReplaced(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		var installed atomic.Bool
		b.cfg.Replaced = installed.Load
		b.token()
		fail1(b, problem.ReasonAgentOutdated)
		b.begin()
		b.reach(Outdated, time.Second)
		if s := b.agent.Status(); s.Replaced || strings.Contains(s.Problem.Fix, "restart") {
			t.Errorf("%+v %+v", s, s.Problem)
		}
		b.pass(time.Hour)
		installed.Store(true)
		b.pass(lookForChange + time.Second)
		synctest.Wait()
		if s := b.agent.Status(); !s.Replaced || !strings.Contains(s.Problem.Fix, "restart") {
			t.Errorf("%+v %+v", s, s.Problem)
		}
	})
}
