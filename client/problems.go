package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
	"unicode"

	"connectrpc.com/connect"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/problem"
)

// fallback is what a Connect code means when no Problem came with it: something between, such as a proxy, answered.
// The table is DESIGN §16's read from right to left.
var fallback = map[connect.Code]problem.Reason{
	connect.CodeInvalidArgument:    problem.ReasonInvalid,
	connect.CodeOutOfRange:         problem.ReasonInvalid,
	connect.CodeUnimplemented:      problem.ReasonUnsupported,
	connect.CodeUnauthenticated:    problem.ReasonNotProved,
	connect.CodePermissionDenied:   problem.ReasonDenied,
	connect.CodeNotFound:           problem.ReasonNotFound,
	connect.CodeAlreadyExists:      problem.ReasonExists,
	connect.CodeAborted:            problem.ReasonConflict,
	connect.CodeFailedPrecondition: problem.ReasonConflict,
	connect.CodeResourceExhausted:  problem.ReasonOverloaded,
	connect.CodeUnavailable:        problem.ReasonUnreachable,
	connect.CodeDeadlineExceeded:   problem.ReasonUnknownOutcome,
	connect.CodeCanceled:           problem.ReasonCanceled,
}

var kinds = func() map[string]problem.Kind {
	m := make(map[string]problem.Kind)
	for k := problem.Internal; k <= problem.UnknownOutcome; k++ {
		m[k.String()] = k
	}
	return m
}()

const (
	maxText       = 4 << 10        // of a message that is shown
	maxRetryAfter = 24 * time.Hour // what a server may ask for
)

// call is what is known about a request that failed.
type call struct {
	procedure string
	safe      bool // asking twice changes nothing
	sent      bool // the request may have reached the server
	stream    bool
}

// problemOf turns the error of a call into the vocabulary. The Problem is the server's own where it sent one.
func problemOf(ctx context.Context, err error, c call) error {
	if err == nil {
		return nil
	}
	var p *problem.Problem
	if errors.As(err, &p) {
		return err
	}
	var wire *connect.Error
	if errors.As(err, &wire) {
		if told := told(wire); told != nil {
			return told
		}
		switch code := wire.Code(); {
		case connect.IsWireError(err):
			return unexplained(wire, c)
		case c.stream:
			// A stream that was cut shows as one of many codes, all of them package connect's own.
		case code == connect.CodeResourceExhausted:
			return problem.New(problem.ReasonTooLarge, "%s: the answer is over this client's limit", c.procedure)
		case code != connect.CodeUnavailable && code != connect.CodeUnknown && code != connect.CodeCanceled && code != connect.CodeDeadlineExceeded:
			return unexplained(wire, c) // an HTTP status without a body of ours
		}
	}
	t := transportProblem(ctx, err, c.procedure)
	// "Unavailable" says that nothing was done. That is certain only if nothing was sent.
	if q := problem.As(t); c.sent && !c.safe && q.Kind == problem.Unavailable {
		return problem.Wrap(err, problem.ReasonUnknownOutcome, "%s: no answer came", c.procedure)
	}
	return t
}

// told reads the Problem that a server put into its error.
func told(wire *connect.Error) *problem.Problem {
	for _, d := range wire.Details() {
		if d.Type() != "bailment.v1.Problem" {
			continue
		}
		v, err := d.Value()
		if err != nil {
			continue
		}
		w, ok := v.(*v1.Problem)
		if !ok || w.Reason == "" {
			continue
		}
		kind, known := kinds[w.Kind]
		if !known {
			kind = fallback[wire.Code()].Kind() // a kind of a newer server; internal for a code that means nothing
		}
		p := &problem.Problem{Kind: kind, Reason: problem.Reason(clean(w.Reason)), Message: clean(w.Message), Fix: clean(w.Fix)}
		if after := w.RetryAfter.AsDuration(); w.RetryAfter != nil && after > 0 {
			p.RetryAfter = min(after, maxRetryAfter)
		}
		if w.RequestId != "" {
			p.Message += " (request " + clean(w.RequestId) + ")"
		}
		return p
	}
	return nil
}

func unexplained(wire *connect.Error, c call) *problem.Problem {
	reason, ok := fallback[wire.Code()]
	if !ok {
		reason = problem.ReasonInternal
	}
	if c.safe && reason == problem.ReasonUnknownOutcome {
		reason = problem.ReasonUnreachable
	}
	p := problem.New(reason, "%s: the answer was %s: %s", c.procedure, wire.Code(), clean(wire.Message()))
	p.Err = wire
	return p
}

// clean keeps a text from a server from doing anything to a terminal or a log.
func clean(s string) string {
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + " …"
	}
	return strings.Map(func(r rune) rune {
		if r != ' ' && !unicode.IsPrint(r) {
			return '�'
		}
		return r
	}, s)
}

// alerts are the TLS alerts (RFC 8446 §6.2) by which a server says what it has against this client. Package
// tls does not export their type for connections over TCP, so its fixed texts are all there is to tell them by.
var alerts = []struct {
	text   string
	reason problem.Reason
}{
	{"unrecognized name", problem.ReasonWrongEnvironment},
	{"expired certificate", problem.ReasonSessionExpired},
	{"revoked certificate", problem.ReasonCutoff},
	{"bad certificate", problem.ReasonSessionForeign},
	{"unsupported certificate", problem.ReasonSessionForeign},
	{"unknown certificate", problem.ReasonSessionForeign}, // and "unknown certificate authority"
	{"access denied", problem.ReasonSessionForeign},
	{"certificate required", problem.ReasonNoSession},
}

// transportProblem names what went wrong below the protocol: who is not the one he should be is told apart from
// who is not there.
func transportProblem(ctx context.Context, err error, doing string) error {
	var (
		known      *problem.Problem
		unverified *tls.CertificateVerificationError
		record     tls.RecordHeaderError
		op         *net.OpError
		invalid    x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return problem.Wrap(err, problem.ReasonNotAuthentic, "%s: the server's certificate is not valid now", doing).
			WithFix("check the clocks of this machine and of the server; then that the server renews its certificate")
	case errors.As(err, &unverified):
		return problem.Wrap(err, problem.ReasonNotAuthentic, "%s: the server is not the pinned environment's", doing)
	case errors.As(err, &record) || errors.Is(err, http.ErrSchemeMismatch):
		return problem.New(problem.ReasonNotAuthentic, "%s: what answers there does not speak TLS", doing).
			WithFix("check the address: another service listens there, or something between them interferes")
	case errors.As(err, &op) && op.Op == "remote error":
		for _, a := range alerts {
			if strings.Contains(op.Error(), a.text) {
				return problem.Wrap(err, a.reason, "%s: the server ended the TLS handshake", doing)
			}
		}
		return problem.Wrap(err, problem.ReasonNotAuthentic, "%s: the server ended the TLS handshake", doing).
			WithFix("check that the server at this address has this environment: its name is what the handshake asks for")
	case errors.As(err, &op) && op.Op == "local error":
		return problem.Wrap(err, problem.ReasonNotAuthentic, "%s: the TLS handshake failed", doing)
	case errors.Is(ctx.Err(), context.Canceled):
		return problem.Wrap(err, problem.ReasonCanceled, "%s", doing)
	case strings.HasPrefix(rootText(err), "tls: "):
		return problem.Wrap(err, problem.ReasonNotAuthentic, "%s: the TLS handshake failed", doing)
	case errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		// A server resets a connection that is over a limit before the handshake, and so can't say why.
		return problem.Wrap(err, problem.ReasonUnreachable, "%s: the connection was closed from the other side", doing).WithFix("%s", brokenOff)
	default:
		return problem.Wrap(err, problem.ReasonUnreachable, "%s", doing)
	}
}

// brokenOff is the way out of a connection that ended without a word.
const brokenOff = "try again in a moment: it may be over the server's limit of connections, in all or from one address " +
	"(limits.connections, source_connections and source_handshakes; the server counts what it refuses in bailment_connections_refused_total). " +
	"If it stays so, look there, and whether the server runs and nothing between breaks connections off"

// rootText is the text of the innermost error: package tls has no type for most of its own.
func rootText(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}
