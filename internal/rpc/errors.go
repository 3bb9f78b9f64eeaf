package rpc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/canary"
	"github.com/bailment/bailment/internal/problem"
)

// codes is the one table from kinds to Connect codes (DESIGN §16).
var codes = map[problem.Kind]connect.Code{
	problem.Internal:       connect.CodeInternal,
	problem.Invalid:        connect.CodeInvalidArgument,
	problem.NotProved:      connect.CodeUnauthenticated,
	problem.Refused:        connect.CodePermissionDenied,
	problem.NotFound:       connect.CodeNotFound,
	problem.Conflict:       connect.CodeAborted,
	problem.Limited:        connect.CodeResourceExhausted,
	problem.Unavailable:    connect.CodeUnavailable,
	problem.UnknownOutcome: connect.CodeDeadlineExceeded,
}

// Accounts of refusals that come before any proof of an identity.
const (
	accountSession = "session" // a certificate that proves nothing here
	accountRequest = "request" // too large, too many, too slow, not readable
	accountUnknown = "unknown" // an attestation by a method that there isn't
	accountRenewal = "renewal"
	accountLogin   = "login"

	accountRecovery = "recovery"
)

// fail accounts for an error and gives it its form on the wire.
func (a *API) fail(c *call, err error) error {
	var ready *connect.Error
	p := problem.As(err)
	switch {
	case errors.As(err, &ready) && p.Err == err: //nolint:errorlint // As wraps what is outside of the vocabulary
		// Connect's own, on sending and receiving: its text may quote the message, so only its code is kept.
		p = problem.New(problem.ReasonCanceled, "the stream broke off")
		if ready.Code() == connect.CodeInvalidArgument || ready.Code() == connect.CodeResourceExhausted {
			p = problem.New(problem.ReasonInvalid, "the message can't be read")
		}
	case p.Kind == problem.Internal && p.Reason == problem.ReasonInternal && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)):
		p = problem.New(problem.ReasonCanceled, "the request ended before it was answered")
	}
	a.account(c, p)
	return a.wire(c, p)
}

// account counts a refusal that came before proof. What a proved identity was refused, control has
// entered itself.
func (a *API) account(c *call, p *problem.Problem) {
	env := c.conn.site.Env
	switch {
	case c.proof != "":
		switch p.Kind {
		case problem.NotProved, problem.Refused, problem.Invalid:
			c.tried(true)
		}
		if p.Reason != problem.ReasonForked { // that one is an entry of its own
			env.Unproved(c.proof, p, c.conn.source)
		}
	case c.begun && p.Kind == problem.NotProved && sessionReason(p.Reason):
		env.Unproved(accountSession, p, c.conn.source)
	case !c.begun:
		env.Unproved(accountRequest, p, c.conn.source)
	}
}

// sessionReason: these refusals name nobody, so control has no identity to enter them under.
func sessionReason(r problem.Reason) bool {
	switch r {
	case problem.ReasonNoSession, problem.ReasonSessionExpired, problem.ReasonSessionForeign, problem.ReasonSessionUnknown:
		return true
	}
	return false
}

// refuse answers a request that never came to its method.
func (a *API) refuse(w http.ResponseWriter, r *http.Request, c *call, p *problem.Problem) {
	account := accountRequest
	if sessionReason(p.Reason) {
		account = accountSession
	}
	c.conn.site.Env.Unproved(account, p, c.conn.source)
	err := a.wire(c, p)
	_ = a.errors.Write(w, r, err) // the client may be gone: there is nobody to tell
}

// refuseForm answers a request whose form is not known here.
func (a *API) refuseForm(w http.ResponseWriter, r *http.Request, c *call, bad *misshaped) {
	if bad.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", http.MethodPost)
	}
	if bad.status != 0 {
		w = &statusWriter{w, bad.status}
	}
	a.refuse(w, r, c, bad.problem)
}

// wire gives a problem its form on the wire. One from inside tells nothing but where to look.
func (a *API) wire(c *call, p *problem.Problem) *connect.Error {
	id := requestID()
	message := p.Message
	if p.Inside() {
		a.o.Logger.Error("a request failed inside", "request_id", id, "environment", c.conn.site.name,
			"identity", c.conn.identity, "reason", string(p.Reason), "err", p.Error(), "cause", causeOf(p))
		message = "the server failed; its log has the details under request ID " + id
	}
	if a.o.Silence.Look(canary.Wire, []byte(message)) {
		message = "the text of this error was withheld"
	}
	code := codes[p.Kind]
	c.code = code.String()
	out := connect.NewError(code, errors.New(message))
	detail := &pb.Problem{
		Kind: p.Kind.String(), Reason: string(p.Reason), Message: message, Fix: p.WayOut(), RequestId: id,
	}
	if p.Entry != 0 {
		detail.Entry = entry(c.conn.site.Env, p.Entry)
	}
	after := p.RetryAfter
	if after == 0 && p.Kind == problem.Limited {
		after = time.Second
	}
	if after > 0 {
		detail.RetryAfter = durationpb.New(after)
		out.Meta().Set("Retry-After", strconv.Itoa(int(math.Ceil(after.Seconds()))))
	}
	if d, err := connect.NewErrorDetail(detail); err == nil {
		out.AddDetail(d)
	}
	return out
}

// causeOf is the text of an error from outside of the vocabulary, for the log.
func causeOf(p *problem.Problem) string {
	if p.Err == nil {
		return ""
	}
	return p.Err.Error()
}

func typeName(x any) string { return fmt.Sprintf("%T", x) }

// requestID is made when something failed, so that what succeeds doesn't pay for it.
func requestID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// slowDown says when a limiter has room again.
func slowDown(l *rate.Limiter, format string, args ...any) *problem.Problem {
	return slowDownFor(time.Duration((1-min(l.Tokens(), 1))/float64(l.Limit())*float64(time.Second)), format, args...)
}

func slowDownFor(wait time.Duration, format string, args ...any) *problem.Problem {
	return problem.New(problem.ReasonRateLimited, "there are too many "+format, args...).WithRetryAfter(max(wait, 10*time.Millisecond))
}
