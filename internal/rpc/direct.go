package rpc

import (
	"context"
	"net/http"
	"strconv"
	"sync"

	"google.golang.org/protobuf/proto"

	api "github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
	"github.com/bailment/bailment/internal/problem"
)

// The methods that machines call all the time, answered without connect's machinery when they come in
// Connect's plain unary form, which is nothing but a POST of the message. That machinery (streams of one
// message, peers, trailers, its own copies) costs a read as much as its decision and its sealing
// together (docs/benchmarks.md). What comes otherwise (gRPC, a compressed body, a version to come) goes to
// connect, and gets the same answer: TestDirect compares the two.
func (a *API) directs() map[string]direct {
	s, t, x := secrets{a}, attestations{a}, spiffes{a}
	return map[string]direct{
		api.AttestationServiceChallengeProcedure:      directly(t.Challenge),
		api.AttestationServiceAttestProcedure:         directly(t.Attest),
		api.AttestationServiceRenewProcedure:          directly(t.Renew),
		api.AttestationServiceLoginProcedure:          directly(t.Login),
		api.SecretServiceGetProcedure:                 directly(s.Get),
		api.SecretServicePutProcedure:                 directly(s.Put),
		api.SecretServiceRenewLeaseProcedure:          directly(s.RenewLease),
		api.SecretServiceReturnLeaseProcedure:         directly(s.ReturnLease),
		api.AttestationServiceAttestWorkloadProcedure: directly(t.AttestWorkload),
		api.SpiffeServiceIssueJWTProcedure:            directly(x.IssueJWT),
	}
}

// direct is a unary method over messages of any type: read fills the request.
type direct func(ctx context.Context, read func(proto.Message) error) (proto.Message, error)

func directly[T any, Q interface {
	*T
	proto.Message
}, A proto.Message](method func(context.Context, Q) (A, error)) direct {
	return func(ctx context.Context, read func(proto.Message) error) (proto.Message, error) {
		q := Q(new(T))
		if err := read(q); err != nil {
			return nil, err
		}
		return method(ctx, q)
	}
}

// serveDirect answers a plain request of a method that has a direct way.
func (a *API) serveDirect(ctx context.Context, w http.ResponseWriter, r *http.Request, c *call, in *body, f form) {
	asJSON := f.json
	var answer proto.Message
	err := a.guarded(c, r.URL.Path, func() (err error) {
		answer, err = c.route.direct(ctx, func(m proto.Message) error {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if p := decode(in.data, m, asJSON); p != nil {
				return p
			}
			c.begun = true
			return nil
		})
		return err
	})
	if err != nil {
		_ = a.errors.Write(w, r, err) // the client may be gone: there is nobody to tell
		return
	}
	buf := answers.Get().(*[]byte)
	out, err := encode((*buf)[:0], answer, asJSON)
	if err != nil {
		_ = a.errors.Write(w, r, a.fail(c, problem.Wrap(err, problem.ReasonInternal, "encoding the answer")))
		return
	}
	h := w.Header()
	h["Content-Type"] = []string{f.contentType}
	h["Content-Length"] = []string{strconv.Itoa(len(out))}
	_, _ = w.Write(out) // as above
	if cap(out) <= keepAnswer {
		*buf = out
		answers.Put(buf)
	}
}

// answers are buffers of encoded messages. One that held a value was wiped by secretWriter.
var answers = sync.Pool{New: func() any { return new([]byte) }}
