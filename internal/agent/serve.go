package agent

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"log"
	"mime"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/problem"
)

// Bounds of the local API's time.
const (
	readTimeout  = 10 * time.Second
	writeTimeout = 20 * time.Second
	stopTimeout  = 10 * time.Second
)

type connKey struct{}

// serve answers at the socket until ctx ends, then lets go of the runs.
func (a *Agent) serve(ctx context.Context, l net.Listener) error {
	a.stopping = ctx.Done()
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+localapi.PathStatus, a.handleStatus)
	mux.HandleFunc("POST "+localapi.PathRenew, a.handleRenew)
	mux.HandleFunc("POST "+localapi.PathOpen, a.handleOpen)
	mux.HandleFunc("POST "+localapi.PathClose, a.handleClose)
	h := &http.Server{
		Handler:     mux,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ReadTimeout: readTimeout, ReadHeaderTimeout: readTimeout, IdleTimeout: readTimeout,
		MaxHeaderBytes: 8 << 10, ErrorLog: log.New(io.Discard, "", 0), DisableGeneralOptionsHandler: true,
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if h.Shutdown(grace) != nil {
			_ = h.Close()
		}
	}()
	err := served(h.Serve(l))
	if err != nil {
		return err
	}
	<-stopped
	return nil
}

func (a *Agent) handleStatus(w http.ResponseWriter, _ *http.Request) {
	text, err := json.MarshalIndent(a.Status(), "", "  ")
	if err != nil {
		fail(w, problem.Wrap(err, problem.ReasonInternal, "encoding the status"))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	_, _ = w.Write(append(text, '\n'))
}

// handleRenew makes an attempt for who may stop the agent as well: every attempt costs the server and the hardware something.
func (a *Agent) handleRenew(w http.ResponseWriter, r *http.Request) {
	conn, ok := r.Context().Value(connKey{}).(*localapi.Conn)
	if _, err := body(w, r); err != nil || !ok {
		fail(w, err)
		return
	}
	if uid := conn.Peer.UID; uid != 0 && int(uid) != os.Geteuid() {
		fail(w, problem.New(problem.ReasonPermissions, "user %d may not have the agent renew", uid).WithFix("ask as root or as the agent's own user; the agent renews by itself, too"))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), attemptTimeout+writeTimeout/2)
	defer cancel()
	// The request was read; a deadline for reading that passed now would end it.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	if err := a.renewNow(ctx); err != nil {
		fail(w, err)
		return
	}
	a.handleStatus(w, r)
}

// statuses are HTTP's words for the kinds, for who reads logs; programs read the body.
var statuses = map[problem.Kind]int{
	problem.Invalid: http.StatusBadRequest, problem.NotProved: http.StatusUnauthorized, problem.Refused: http.StatusForbidden,
	problem.NotFound: http.StatusNotFound, problem.Conflict: http.StatusConflict, problem.Limited: http.StatusTooManyRequests,
	problem.Unavailable: http.StatusServiceUnavailable, problem.UnknownOutcome: http.StatusGatewayTimeout,
}

func fail(w http.ResponseWriter, err error) {
	p := problem.As(err)
	code, ok := statuses[p.Kind]
	if !ok {
		code = http.StatusInternalServerError
	}
	text, _ := json.Marshal(localapi.FailureOf(p)) // a struct of texts and a number
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(text, '\n'))
}

// body reads a request of the local API to its end.
func body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		// A page in a browser can't send this type elsewhere without being asked, should the socket ever be forwarded.
		return nil, problem.New(problem.ReasonInvalid, "the request is not of type application/json")
	}
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, localapi.MaxRequest))
	if err != nil {
		return nil, problem.New(problem.ReasonTooLarge, "the request is cut short, or has more than %d bytes", localapi.MaxRequest)
	}
	return text, nil
}

func (a *Agent) handleClose(w http.ResponseWriter, r *http.Request) {
	conn, ok := r.Context().Value(connKey{}).(*localapi.Conn)
	text, err := body(w, r)
	if err != nil || !ok {
		fail(w, err)
		return
	}
	req, err := localapi.ParseClose(text)
	if err != nil {
		fail(w, err)
		return
	}
	x, err := a.find(req.Run, conn.Peer)
	if err != nil {
		fail(w, err)
		return
	}
	x.end()
	t := time.NewTimer(returnTimeout + time.Second)
	defer t.Stop()
	select {
	case <-x.over:
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{}\n")
	case <-t.C:
		fail(w, problem.New(problem.ReasonUnreachable, "the leases are still being given back; those that can't be expire by themselves"))
	}
}

// handleOpen hands over, and then stays as long as the run: its end is the end of the request.
func (a *Agent) handleOpen(w http.ResponseWriter, r *http.Request) {
	conn, ok := r.Context().Value(connKey{}).(*localapi.Conn)
	if !ok {
		fail(w, problem.New(problem.ReasonInternal, "the connection is not one of the local API"))
		return
	}
	exe := conn.File()
	if exe != nil {
		defer exe.Close()
	}
	text, err := body(w, r)
	if err != nil {
		fail(w, err)
		return
	}
	req, err := localapi.ParseOpen(text)
	if err != nil {
		fail(w, err)
		return
	}
	// The earlier it is held, the less can have happened to it since it connected.
	asker, err := a.workloads.Open(conn.UnixConn)
	if err != nil {
		fail(w, err)
		return
	}
	defer asker.Close()
	// From here on, a read that ends means that the process did: it must have no deadline, and find nothing else.
	if conn.Last() {
		fail(w, problem.New(problem.ReasonInvalid, "something follows the request, which is the connection's last"))
		return
	}
	out := http.NewResponseController(w)
	if err := out.SetReadDeadline(time.Time{}); err != nil {
		fail(w, problem.Wrap(err, problem.ReasonInternal, "keeping the connection"))
		return
	}
	x, err := a.begin(conn.Peer)
	if err != nil {
		fail(w, err)
		return
	}
	defer x.finish()
	x.asker = asker
	ctx, cancel := context.WithTimeout(r.Context(), openTimeout)
	defer cancel()
	e, err := a.measurer.measure(ctx, conn.Peer.UID, exe, req.Exe)
	if err != nil {
		fail(w, err)
		return
	}
	opened, err := x.open(ctx, req, e)
	if err == nil {
		// The rules were asked about a process as it was some round trips ago. The connection outlives an execve, and can be in
		// other hands: what is written goes to whom it was decided for, or to nobody, and then the leases are given back.
		if err = asker.Same(); err != nil {
			wipe(opened)
		}
	}
	if err != nil {
		p := problem.As(err)
		a.log.Info("a run was not given what it asked for", "uid", conn.Peer.UID, "pid", conn.Peer.PID, "exe", e.path,
			"secrets", len(req.Secrets), "reason", string(p.Reason), "problem", p.Message)
		fail(w, err)
		return
	}
	a.log.Info("a run begins", "run", x.id[:8], "identity", opened.Identity, "uid", conn.Peer.UID, "pid", conn.Peer.PID,
		"exe", e.path, "digest", e.digest, "source", e.source, "secrets", len(opened.Secrets))
	if err := give(w, out, opened); err != nil {
		return
	}
	x.stay(r.Context(), w, out)
	a.log.Info("a run ends", "run", x.id[:8], "identity", opened.Identity)
}

// give writes the first line. It is put together by hand, so that package json's pooled buffers don't keep values.
func give(w http.ResponseWriter, out *http.ResponseController, o *localapi.Opened) error {
	defer wipe(o)
	values := make([][]byte, len(o.Secrets))
	for i := range o.Secrets {
		values[i], o.Secrets[i].Value = o.Secrets[i].Value, nil
	}
	size := 0
	for _, v := range values {
		size += base64.StdEncoding.EncodedLen(len(v))
		defer clear(v)
	}
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	line := make([]byte, 0, len(text)+size+1)
	defer func() { clear(line[:cap(line)]) }()
	// Every secret's value stands as null, in order, and nowhere else can this text be: inside of JSON texts, quotes are escaped.
	const hole = `"value":null`
	rest := string(text)
	for _, v := range values {
		before, after, ok := strings.Cut(rest, hole)
		if !ok {
			return problem.New(problem.ReasonInternal, "encoding the answer")
		}
		line = append(line, before...)
		line = append(line, `"value":"`...)
		line = base64.StdEncoding.AppendEncode(line, v)
		line = append(line, '"')
		rest = after
	}
	line = append(append(line, rest...), '\n')
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	if err := out.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if _, err := w.Write(line); err != nil {
		return err
	}
	return out.Flush()
}

// stay tends the run until its process is gone, its end is asked for, or the agent stops.
func (r *run) stay(ctx context.Context, w http.ResponseWriter, out *http.ResponseController) {
	tending, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.tend(tending)
	}()
	defer func() {
		cancel()
		<-done
	}()
	say := func(e localapi.Event) {
		text, err := json.Marshal(e)
		if err != nil {
			return
		}
		_ = out.SetWriteDeadline(time.Now().Add(writeTimeout))
		_, _ = w.Write(append(text, '\n'))
		_ = out.Flush()
	}
	for {
		select {
		case e := <-r.events:
			say(e)
		case <-r.ended:
			return
		case <-ctx.Done():
			select {
			case <-r.a.stopping:
				// The process goes on with what it has, and proves itself to the next agent. To give its leases
				// back would say that it has nothing.
				r.goesOn = true
			default: // the process is gone
			}
			say(localapi.Event{Event: localapi.EventStopping})
			return
		}
	}
}
