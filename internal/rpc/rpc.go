// Package rpc is the wire side of the house: it takes requests over TLS, finds out who asks, calls
// control, and gives each failure its code, its reason and its way out.
//
// Guaranteed: the connection's SNI names the environment, and nothing in a request can name another;
// a certificate is only as good as control's judgement at each request; every limit (size, time,
// rate, memory, streams) is checked before the work that it bounds; a request that can't be read is
// refused without being quoted; errors of ours are told in general words and logged under a request
// ID; values are wiped from what this package holds once they were sent. Not guaranteed: that copies
// in net/http's and TLS's own buffers are wiped; package hardening keeps those off the disk.
//
// Its place: an edge. It decodes, asks control and encodes; it decides nothing about permissions.
package rpc

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/time/rate"

	"github.com/bailment/bailment/internal/canary"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/problem"
)

// Site is one environment as it is served.
type Site struct {
	Env *control.Environment
	// Certificate gives the server's present certificate, for each handshake.
	Certificate func() (*tls.Certificate, error)
	// Rotated is called after a key of a kind was rotated; may be nil.
	Rotated func(kind string)
}

// Meter measures one method. It is called concurrently.
type Meter interface {
	// Ended gets the code: "ok", or the name of a Connect code.
	Ended(code string, took time.Duration)
}

// Events counts what is no request's result. Its methods are called concurrently.
type Events interface {
	Panicked()
	DeliveryFailed()
	HandshakeRefused(reason string)
}

// Limits bound what callers can make the server spend. All must be set.
type Limits struct {
	RequestBytes, BundleBytes, RequestMemory int64

	SourceRate, IdentityRate, UnprovedRate    rate.Limit
	SourceBurst, IdentityBurst, UnprovedBurst int

	IdentityStreams int
	ReadHeader      time.Duration // after which a connection without a request was a slow one
	ReadBundle      time.Duration
	Write           time.Duration
}

// Options of an API. Limits are required.
type Options struct {
	Limits  Limits
	Logger  *slog.Logger
	Version string
	Meter   func(service, method string) Meter // nil: nothing is measured
	Events  Events                             // nil: nothing is counted
	// Silence looks for values in the texts of errors; nil: nobody looks.
	Silence *canary.Watch
	// Plain answers what is no method (health, say) for an environment's connections, or gives nil; may be nil.
	Plain func(environment string, r *http.Request) http.HandlerFunc
}

// API serves the environments. Its methods may be called concurrently.
type API struct {
	o      Options
	sites  map[string]*site
	routes map[string]*route
	errors *connect.ErrorWriter

	sources    limiters // requests of a source
	attempts   tallies  // failed proofs, by source and by what they are to prove
	crowds     tallies  // those of which that can be made up, by source and kind
	identities limiters // requests of an identity
	streams    streams
	memory     memory // of request bodies
	bodies     sync.Pool
	proofs     chan struct{} // strangers' questions that read the store, at a time
	beginning  sync.Map      // net.Conn of which bytes of a first request came -> nothing

	stopping context.Context
	stop     context.CancelCauseFunc
}

// site is a Site with its TLS configuration.
type site struct {
	Site
	name string
	tls  *tls.Config
}

// route is one method.
type route struct {
	handler http.Handler
	direct  direct // nil: everything goes to handler
	meter   Meter
	public  bool   // asks for no session
	proof   string // what a public method proves; empty: nothing
	secret  bool   // its answer holds a value
	stream  bool
	bundle  bool
}

// New makes the API over the environments, by name.
func New(sites map[string]Site, o Options) *API {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Events == nil {
		o.Events = noEvents{}
	}
	a := &API{o: o, sites: make(map[string]*site, len(sites)), routes: make(map[string]*route), proofs: make(chan struct{}, strangersProofs)}
	a.stopping, a.stop = context.WithCancelCause(context.Background())
	a.sources = newLimiters(o.Limits.SourceRate, o.Limits.SourceBurst)
	a.attempts = newTallies(o.Limits.UnprovedRate, o.Limits.UnprovedBurst)
	a.crowds = newTallies(crowded*o.Limits.UnprovedRate, crowded*o.Limits.UnprovedBurst)
	a.identities = newLimiters(o.Limits.IdentityRate, o.Limits.IdentityBurst)
	a.streams.most = o.Limits.IdentityStreams
	a.memory.limit = o.Limits.RequestMemory
	a.bodies.New = func() any { return new(body) }
	for name, x := range sites {
		s := &site{Site: x, name: name}
		s.tls = a.siteTLS(s)
		a.sites[name] = s
	}
	options := a.handlerOptions()
	a.errors = connect.NewErrorWriter(options...)
	a.mount(options)
	return a
}

func (a *API) handlerOptions() []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithInterceptors(a),
		connect.WithCodec(&codec{name: codecProto}),
		connect.WithCodec(&codec{name: codecJSON, json: true}),
		connect.WithCodec(&codec{name: codecJSONCharset, json: true}),
		// No compression: a secret beside text that somebody else chose would tell its bytes by the
		// length, and a small request could become a large one here.
		connect.WithCompression("gzip", nil, nil),
		connect.WithReadMaxBytes(int(max(a.o.Limits.RequestBytes, a.o.Limits.BundleBytes))),
	}
}

// Stop ends the streams, so that a graceful stop need not wait for them.
func (a *API) Stop() {
	a.stop(problem.New(problem.ReasonStopping, "the server is stopping"))
}

type noEvents struct{}

func (noEvents) Panicked()               {}
func (noEvents) DeliveryFailed()         {}
func (noEvents) HandshakeRefused(string) {}

// call is one request under way.
type call struct {
	api   *API
	conn  *connection
	route *route
	code  string
	proof string   // method of an attestation that is known
	begun bool     // the request was read and its method reached
	tries []*tally // of what this one is to prove; nil: not known yet, or it was told what became of it
	cost  int      // how many attempts this one counts as
	key   string   // whose requests and streams it counts among, where a session is asked for

	wipe     func()    // of a value, when the answer was sent
	released time.Time // when the release of a value was decided
	sending  bool      // the value is under way
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// ServeHTTP takes one request: limits first, then who asks, then the body, then the method.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn := a.connectionOf(r)
	if conn == nil {
		http.Error(w, "no environment", http.StatusMisdirectedRequest)
		return
	}
	if conn.refused == nil && !conn.stands() {
		// Its place among those that proved an identity is not its own any more, whatever it asks. A session that stands again comes
		// again.
		w.Header().Set("Connection", "close")
	}
	rt, ok := a.routes[r.URL.Path]
	if !ok {
		a.unrouted(w, r, conn)
		return
	}
	c := &call{api: a, conn: conn, route: rt, proof: rt.proof}
	if rt.meter != nil {
		began := time.Now()
		defer func() { rt.meter.Ended(c.ended(), time.Since(began)) }()
	}
	if !conn.bySource.Allow() {
		a.refuse(w, r, c, slowDown(conn.bySource, "requests from %s", conn.source))
		return
	}
	f, bad := formOf(r, rt)
	if bad != nil {
		a.refuseForm(w, r, c, bad)
		return
	}
	if p := a.admit(c); p != nil {
		a.refuse(w, r, c, p)
		return
	}
	in, p := a.readBody(w, r, c)
	if p != nil {
		if p.Reason != problem.ReasonOverloaded {
			w.Header().Set("Connection", "close") // what still comes is not read
		}
		a.refuse(w, r, c, p)
		return
	}
	defer a.putBody(in)
	if f.framed {
		if p := checkFrame(in.data); p != nil {
			a.refuse(w, r, c, p)
			return
		}
	}
	defer c.end()
	a.serve(w, r, c, in, f)
}

// serve calls the method of a request that was read.
func (a *API) serve(w http.ResponseWriter, r *http.Request, c *call, in *body, f parsed) {
	if c.route.secret {
		s := &secretWriter{ResponseWriter: w, call: c}
		defer s.finish()
		w = s
	}
	if c.route.stream {
		w = &deadlineWriter{ResponseWriter: w, each: a.o.Limits.Write}
	}
	ctx := context.WithValue(r.Context(), callKey{}, c)
	if c.route.direct != nil && f.plain && len(r.Header["Content-Encoding"]) == 0 {
		if f.timeout >= 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, f.timeout)
			defer cancel()
		}
		a.serveDirect(ctx, w, r, c, in, f.form)
		return
	}
	r = r.WithContext(ctx)
	r.Body, r.ContentLength = in, int64(len(in.data))
	c.route.handler.ServeHTTP(w, r)
}

// ended is the code that the request ended with. What connect refused by itself never came to a handler.
func (c *call) ended() string {
	if c.code == "" {
		return connect.CodeInvalidArgument.String()
	}
	return c.code
}

// end wipes and gives back, whether the handler returned or panicked.
func (c *call) end() {
	c.tried(false)
	if c.wipe != nil {
		c.wipe()
	}
}

// admit checks, for what needs a session, that the connection proved an identity of this environment, and that identity's
// limit. Whether its session still stands is control's to say.
//
// Who has proved an identity has limits that no stranger can use up, also at the same source: see meet. Failed proofs are
// limited where it is known what they are to prove: see attempt.
func (a *API) admit(c *call) *problem.Problem {
	conn := c.conn
	if c.route.public {
		return nil
	}
	if conn.refused != nil {
		return conn.refused
	}
	limit := conn.byIdentity
	c.key = conn.key
	if conn.fallen.Load() { // ServeHTTP has looked
		c.key += " fallen " + sourceKey(conn.source)
		limit = a.identities.of(c.key)
	}
	if !limit.Allow() {
		return slowDown(limit, "requests of %s", conn.identity)
	}
	return nil
}

func (a *API) unrouted(w http.ResponseWriter, r *http.Request, conn *connection) {
	if !conn.bySource.Allow() {
		http.Error(w, "slow down", http.StatusTooManyRequests)
		return
	}
	if a.o.Plain != nil {
		if h := a.o.Plain(conn.site.name, r); h != nil {
			h(w, r)
			return
		}
	}
	http.NotFound(w, r)
}

// WrapUnary turns what a method returns into what goes over the wire (connect.Interceptor).
func (a *API) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (res connect.AnyResponse, err error) {
		c := callOf(ctx)
		err = a.guarded(c, req.Spec().Procedure, func() (err error) {
			if err := noted(req.Any()); err != nil {
				return err
			}
			c.begun = true
			res, err = next(ctx, req)
			return err
		})
		if err != nil {
			return nil, err
		}
		return res, nil
	}
}

// guarded runs a method, and turns its failure or panic into what goes over the wire.
func (a *API) guarded(c *call, procedure string, method func() error) (err error) {
	defer func() {
		if x := recover(); x != nil {
			err = a.fail(c, a.panicked(procedure, x))
		}
	}()
	if err := method(); err != nil {
		return a.fail(c, err)
	}
	c.code = "ok"
	return nil
}

// WrapStreamingHandler is WrapUnary for streams, which also end when the server stops.
func (a *API) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) (err error) {
		c := callOf(ctx)
		defer func() {
			if x := recover(); x != nil {
				err = a.fail(c, a.panicked(conn.Spec().Procedure, x))
			}
		}()
		if !a.streams.begin(c.key) {
			return a.fail(c, problem.New(problem.ReasonLimit, "%s has %d streams already", c.conn.identity, a.streams.most).WithRetryAfter(time.Second))
		}
		defer a.streams.end(c.key)
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(a.stopping, func() { cancel(context.Cause(a.stopping)) })()
		c.begun = true
		if err = next(ctx, &strictConn{StreamingHandlerConn: conn}); err != nil {
			if ctx.Err() != nil && a.stopping.Err() != nil {
				err = context.Cause(a.stopping)
			}
			return a.fail(c, err)
		}
		c.code = "ok"
		return nil
	}
}

// WrapStreamingClient is there for the interface: nothing is called from here.
func (a *API) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// panicked logs where a method panicked, and not the panic's value, which may quote what it worked on.
func (a *API) panicked(procedure string, x any) error {
	if x == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
		panic(x)
	}
	a.o.Events.Panicked()
	a.o.Logger.Error("a method panicked", "method", procedure, "panic", typeName(x), "stack", string(debug.Stack()))
	return problem.New(problem.ReasonInternal, "the method failed")
}
