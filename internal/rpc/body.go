package rpc

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"connectrpc.com/connect"

	"github.com/bailment/bailment/internal/problem"
)

// body is a request's body, read whole before anything is done with it: every method takes exactly
// one message, so a slow or endless sender costs a buffer and nothing behind it.
type body struct {
	data  []byte
	off   int
	share share // of the memory for all bodies
}

const (
	firstBuffer = 4 << 10  // what every request has; only these are kept for reuse, so what is kept is what each has anyway
	keepAnswer  = 64 << 10 // larger answers' buffers are left to the garbage collector
)

func (b *body) Read(p []byte) (int, error) {
	if b.off >= len(b.data) {
		return 0, io.EOF
	}
	n := copy(p, b.data[b.off:])
	b.off += n
	return n, nil
}

func (b *body) Close() error { return nil }

// readBody reads the body within its limits.
func (a *API) readBody(w http.ResponseWriter, r *http.Request, c *call) (*body, *problem.Problem) {
	most := a.o.Limits.RequestBytes
	tooMuch := func() *problem.Problem { return tooLarge(most) }
	if c.route.bundle {
		// More room and more time are for who may propose. The decision itself is still to come, at the head.
		if err := c.conn.site.Env.MayPropose(c.conn.caller); err != nil {
			tooMuch = func() *problem.Problem { return problem.As(err) }
		} else {
			most = a.o.Limits.BundleBytes
			a.extend(w, a.o.Limits.ReadBundle)
		}
	}
	if r.ContentLength > most {
		return nil, tooMuch()
	}
	in := a.bodies.Get().(*body)
	if in.data == nil {
		in.data = make([]byte, 0, firstBuffer)
	}
	in.off = 0
	for {
		if len(in.data) == cap(in.data) {
			if p := a.grow(in, c, most); p != nil {
				a.putBody(in)
				return nil, p
			}
		}
		n, err := r.Body.Read(in.data[len(in.data):cap(in.data)])
		in.data = in.data[:len(in.data)+n]
		if int64(len(in.data)) > most {
			a.putBody(in)
			return nil, tooMuch()
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			a.putBody(in)
			return nil, unreadable(r, c, err)
		}
	}
	if c.route.stream {
		// A stream lasts longer than its request took to arrive; each message has its own deadline.
		// Without it the stream ends early, and no more.
		c := http.NewResponseController(w)
		_, _ = c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{})
	}
	return in, nil
}

// unreadable says why a body did not come to its end. Who broke off can't be answered: the connection (in HTTP/2, the
// stream) is aborted, since any answer would say that there was a request.
func unreadable(r *http.Request, c *call, err error) *problem.Problem {
	var broken *net.OpError
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return problem.New(problem.ReasonTooSlow, "the request's body did not arrive in time")
	case errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &broken), r.Context().Err() != nil:
		c.code = connect.CodeCanceled.String()
		panic(http.ErrAbortHandler)
	}
	return problem.New(problem.ReasonInvalid, "the request's body can't be read to its end")
}

func tooLarge(most int64) *problem.Problem {
	return problem.New(problem.ReasonTooLarge, "a request of this method has at most %d bytes", most)
}

// extend gives a request more time than the server's own.
func (a *API) extend(w http.ResponseWriter, d time.Duration) {
	c := http.NewResponseController(w)
	now := time.Now()
	_ = c.SetReadDeadline(now.Add(d)) // a writer that can't is a test's own
	_ = c.SetWriteDeadline(now.Add(d + a.o.Limits.Write))
}

// grow doubles a full buffer, from the memory that all bodies share. What was announced counts for nothing: only what came does.
func (a *API) grow(in *body, c *call, most int64) *problem.Problem {
	if in.share.by == "" {
		in.share.by, in.share.strange = c.conn.asker()
	}
	size := min(2*int64(cap(in.data)), most+1)
	if !a.memory.take(&in.share, size-int64(cap(in.data)), most) {
		return problem.New(problem.ReasonOverloaded, "too many large requests are arriving").WithRetryAfter(time.Second)
	}
	old := in.data
	in.data = append(make([]byte, 0, size), old...)
	clear(old)
	return nil
}

// asker is whose the connection's requests are: an identity's while its session stands, else a stranger's at its source.
func (c *connection) asker() (by string, strange bool) {
	if c.stands() {
		return c.key, false
	}
	return sourceKey(c.source), true
}

// putBody wipes a body, which may have held a value, and gives its memory back.
func (a *API) putBody(in *body) {
	clear(in.data)
	a.memory.give(&in.share)
	in.data = in.data[:0]
	if cap(in.data) > firstBuffer {
		in.data = nil
	}
	a.bodies.Put(in)
}

// DeliverWithin is how long after its release a value may still leave (invariant "revoked").
const DeliverWithin = 5 * time.Second

// secretWriter sends an answer that holds a value: it wipes each buffer behind itself, and lets nothing leave later than
// DeliverWithin after the release. What is written may wait in a buffer, or for the client's window (HTTP/2), so the
// deadline is the connection's or stream's own, and the answer is flushed while there is still somebody to see that it failed.
//
// Wiping what Write was given breaks io.Writer's contract on purpose: the buffer is connect's, who
// pools it, and reads nothing of it after Write.
type secretWriter struct {
	http.ResponseWriter
	call   *call
	failed bool
}

func (w *secretWriter) Write(p []byte) (int, error) {
	c := w.call
	if c.released.IsZero() {
		return w.ResponseWriter.Write(p) // a refusal
	}
	defer clear(p)
	if !c.sending {
		last := c.released.Add(DeliverWithin)
		if !time.Now().Before(last) {
			w.fail()
			panic(http.ErrAbortHandler)
		}
		c.sending = true
		// net/http sets it anew for the next request. A writer that can't is a test's own.
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(last)
	}
	n, err := w.ResponseWriter.Write(p)
	if err != nil {
		w.fail()
	}
	return n, err
}

// fail counts an answer that did not leave, once.
func (w *secretWriter) fail() {
	if !w.failed {
		w.failed = true
		w.call.api.o.Events.DeliveryFailed()
	}
}

// Flush sends what was written of a value. An answer whose length was told goes out here in the one write that net/http
// would do after the handler, where nobody learns of its failure.
func (w *secretWriter) Flush() {
	err := http.NewResponseController(w.ResponseWriter).Flush()
	if err != nil && !errors.Is(err, http.ErrNotSupported) && w.call.sending {
		w.fail()
	}
}

// finish flushes an answer with a value when its handler is done.
func (w *secretWriter) finish() {
	if w.call.sending {
		w.Flush()
	}
}

// Unwrap is for http.ResponseController.
func (w *secretWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// deadlineWriter gives each message of a stream its own time to be sent.
type deadlineWriter struct {
	http.ResponseWriter
	each time.Duration
}

func (w *deadlineWriter) Write(p []byte) (int, error) {
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(w.each)) // a writer that can't is a test's own
	return w.ResponseWriter.Write(p)
}

// Flush sends what was written.
func (w *deadlineWriter) Flush() {
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
	// Until the next message nothing is due.
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Time{})
}

// Unwrap is for http.ResponseController.
func (w *deadlineWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
