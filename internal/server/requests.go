package server

import (
	"container/list"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/problem"
)

// gate bounds the requests that are open at a time. A request is open until its answer was taken: a client
// that asks over HTTP/2 and takes nothing (a window of 0) holds its stream, a goroutine and the answer's
// buffers, and that is what counts, not the microseconds of the method. Who proved no identity has
// less of everything.
type gate struct {
	api    edge
	limits config.Limits
	write  time.Duration // for an answer over a connection that proved no identity
	count  requestCounts
	words  chan struct{} // places for refusals in words

	working atomic.Int64 // requests that wait for the server, not for the client

	mu         sync.Mutex
	open       int
	unproved   int
	sources    map[string]*load
	identities map[string]int
	levels     []int // how many sources have so many unproved requests; the first says nothing
}

// edge is what the gate asks of the API.
type edge interface {
	http.Handler
	Proved(*http.Request) (identity string)
	Refuse(http.ResponseWriter, *http.Request, *problem.Problem)
}

// requestCounts are the gate's metrics.
type requestCounts interface {
	requestOpen(delta int)
	requestRefused(limit string)
}

// load are the requests of one source that are open.
type load struct {
	open, unproved int
	strangers      list.List // *exchange of who proved no identity, oldest first
}

const (
	sourceShare   = 8           // of the unproved requests, one source has this part
	wordyRefusals = 64          // refusals in words at a time; the others are a status and nothing that could be parked
	refusalWithin = time.Second // a refusal is taken in this time, or not at all
)

func newGate(api edge, limits config.Limits, write time.Duration, count requestCounts) *gate {
	g := &gate{api: api, limits: limits, write: write, count: count, words: make(chan struct{}, wordyRefusals), sources: make(map[string]*load), identities: make(map[string]int)}
	g.levels = make([]int, g.unprovedShare()+1)
	return g
}

// unprovedShare is how many unproved requests one source has.
func (g *gate) unprovedShare() int { return max(1, g.limits.UnprovedRequests/sourceShare) }

type connectionKey struct{}

// connContext is for http.Server: requests find their connection by it.
func (g *gate) connContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, connectionOf(c))
}

// ServeHTTP serves a request that there is room for, and returns when its answer was taken.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, _ := r.Context().Value(connectionKey{}).(*connection)
	if c == nil {
		http.Error(w, "no connection", http.StatusMisdirectedRequest)
		return
	}
	x := &exchange{ResponseWriter: w, gate: g, conn: c, identity: g.api.Proved(r)}
	if limit := g.enter(x); limit != "" {
		g.count.requestRefused(limit)
		g.refuse(w, r)
		return
	}
	defer g.leave(x)
	if r.Body == nil || r.Body == http.NoBody {
		x.received()
	} else {
		// A copy: net/http looks at its own request's body to end an unread one without losing the answer.
		r = r.WithContext(r.Context())
		r.Body = &received{ReadCloser: r.Body, exchange: x}
	}
	g.api.ServeHTTP(x, r)
	if x.written && r.ProtoMajor == 2 {
		// HTTP/1.1 answers one request after the other, so a connection bounds what is parked there. Here the
		// answer would wait for the client's window after this function, out of sight.
		x.Flush()
	}
}

// enter counts a request in, or says which limit it is over.
func (g *gate) enter(x *exchange) (limit string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.sources[x.conn.from]
	if s == nil {
		s = new(load)
	}
	switch {
	case g.open >= g.limits.OpenRequests:
		return "total"
	case s.open >= g.limits.SourceOpenRequests:
		return "source"
	case x.identity != "":
		// One connection's requests are taken in any case.
		if g.identities[x.identity] >= max(g.limits.OpenRequests/identityShare, g.limits.ConnectionStreams) {
			return "identity"
		}
	case int(x.conn.open.Load()) >= g.limits.UnprovedStreams:
		return "unproved-connection"
	case s.unproved >= g.unprovedShare():
		return "unproved-source"
	case g.unproved >= g.limits.UnprovedRequests && !g.makeRoom(s):
		return "unproved"
	}
	g.sources[x.conn.from] = s
	g.add(x, s, 1)
	if x.identity == "" {
		x.place = s.strangers.PushBack(x)
	}
	return ""
}

// makeRoom breaks off a stranger's request for one of another source that has fewer: the one that waits for its client for longest, of
// the source that has most of those that has any. So a few sources can't keep out who comes from elsewhere, to log in or to renew, by
// requests that never end.
func (g *gate) makeRoom(of *load) bool {
	if !slices.ContainsFunc(g.levels[min(of.unproved+2, len(g.levels)):], func(n int) bool { return n > 0 }) {
		return false // without looking at each source: everybody's requests wait for the lock
	}
	var most *load
	var spared *exchange
	for _, s := range g.sources {
		if s.unproved > of.unproved+1 && (most == nil || s.unproved > most.unproved) {
			if x := s.waiting(); x != nil {
				most, spared = s, x
			}
		}
	}
	if most == nil {
		return false
	}
	g.forget(spared, most)
	g.count.requestRefused("unproved-room")
	if spared.state.Load() == receiving {
		select {
		case g.words <- struct{}{}:
			spared.told = true
		default:
		}
	}
	spared.hurry()
	return true
}

// waiting is the source's request that waits for its client for longest; nil: there is none.
func (s *load) waiting() *exchange {
	for e := s.strangers.Front(); e != nil; e = e.Next() {
		if x := e.Value.(*exchange); x.state.Load() != working {
			return x
		}
	}
	return nil
}

// hurry ends a request that made room: nobody counts it any more, so it has no time but what a refusal in words has, and that only if
// there is a place for one. The caller has the gate's lock, so the request is still open, and has a writer.
func (x *exchange) hurry() {
	c, now := http.NewResponseController(x.ResponseWriter), time.Now()
	past := now.Add(-time.Second)
	_ = c.SetReadDeadline(past) // a writer that can't is a test's own
	if x.told {
		_ = c.SetWriteDeadline(now.Add(refusalWithin))
	} else {
		_ = c.SetWriteDeadline(past)
	}
}

// forget counts a request out, once.
func (g *gate) forget(x *exchange, s *load) {
	if x.forgotten {
		return
	}
	x.forgotten = true
	if x.place != nil {
		s.strangers.Remove(x.place)
	}
	g.add(x, s, -1)
	if s.open == 0 {
		delete(g.sources, x.conn.from)
	}
}

func (g *gate) add(x *exchange, s *load, n int) {
	g.open += n
	s.open += n
	x.conn.open.Add(int32(n))
	if x.identity == "" {
		g.unproved += n
		g.levels[s.unproved]--
		s.unproved += n
		g.levels[s.unproved]++
	} else if g.identities[x.identity] += n; g.identities[x.identity] == 0 {
		delete(g.identities, x.identity)
	}
	g.count.requestOpen(n)
}

// leave counts it out.
func (g *gate) leave(x *exchange) {
	x.answering()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forget(x, g.sources[x.conn.from])
	if x.told {
		<-g.words
	}
}

// refuse says that there is no room, as far as there is room to say it.
func (g *gate) refuse(w http.ResponseWriter, r *http.Request) {
	select {
	case g.words <- struct{}{}:
		defer func() { <-g.words }()
	default:
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	c := http.NewResponseController(w)
	_ = c.SetWriteDeadline(time.Now().Add(refusalWithin)) // without it, the server's own
	g.api.Refuse(w, r, problem.New(problem.ReasonOverloaded, "there are too many requests at a time").WithRetryAfter(time.Second).
		WithFix("take the answers of earlier requests, or try again after the time given; the limits are open_requests and those beside it in the server's configuration"))
	if r.ProtoMajor == 2 {
		_ = c.Flush() // it counts until it was taken
	}
}

// Whom an exchange waits for.
const (
	receiving int32 = iota // the client: its request is not here yet
	working                // the server
	answering              // the client: it takes the answer
)

// exchange is a request under way, and the writer of its answer.
type exchange struct {
	http.ResponseWriter
	gate    *gate
	conn    *connection
	written bool // something of a body
	state   atomic.Int32
	// identity is whose it is; empty: of who proved none.
	identity string
	// Under the gate's lock.
	place     *list.Element // among its source's strangers; nil: it is none
	forgotten bool          // counted out; while it is open, because it made room
	told      bool          // it made room, and has a place for words
}

// received notes that the request is here.
func (x *exchange) received() {
	if x.state.CompareAndSwap(receiving, working) {
		x.conn.working.Add(1)
		x.gate.working.Add(1)
	}
}

// answering notes that the answer begins. From here on a stranger has little time.
func (x *exchange) answering() {
	before := x.state.Swap(answering)
	if before == answering {
		return
	}
	if before == working {
		x.conn.working.Add(-1)
		x.gate.working.Add(-1)
	}
	if x.identity == "" {
		_ = http.NewResponseController(x.ResponseWriter).SetWriteDeadline(time.Now().Add(x.gate.write)) // without it, the server's own
		x.gate.mu.Lock()
		defer x.gate.mu.Unlock()
		if x.forgotten {
			x.hurry() // it made room in between
		}
	}
}

func (x *exchange) WriteHeader(status int) {
	x.answering()
	x.ResponseWriter.WriteHeader(status)
}

func (x *exchange) Write(p []byte) (int, error) {
	x.answering()
	x.written = x.written || len(p) > 0
	return x.ResponseWriter.Write(p)
}

// Flush sends what was written, and waits until the client has room for it.
func (x *exchange) Flush() {
	_ = x.FlushError() // the client may be gone
}

// FlushError is Flush for who wants to know.
func (x *exchange) FlushError() error {
	x.answering()
	return http.NewResponseController(x.ResponseWriter).Flush()
}

// Unwrap is for http.ResponseController.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// received is a request's body that notes its end.
type received struct {
	io.ReadCloser
	exchange *exchange
}

func (b *received) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.exchange.received()
	}
	return n, err
}
