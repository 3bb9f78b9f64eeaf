package rpc

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/bailment/bailment/internal/problem"
)

// body is a request's body, read whole before anything is done with it: every method takes exactly
// one message, so a slow or endless sender costs a buffer and nothing behind it.
type body struct {
	data  []byte
	off   int
	taken int64 // from the memory for all bodies
}

const (
	firstRead = 4 << 10  // buffers start so large, and are kept for reuse up to keepBody
	keepBody  = 64 << 10 // larger ones are left to the garbage collector
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

// readBody reads the body within its limits. It returns nil, nil if the client broke off.
func (a *API) readBody(w http.ResponseWriter, r *http.Request, rt *route) (*body, *problem.Problem) {
	most := a.o.Limits.RequestBytes
	if rt.bundle {
		most = a.o.Limits.BundleBytes
		a.extend(w, a.o.Limits.ReadBundle)
	}
	if r.ContentLength > most {
		return nil, tooLarge(most)
	}
	in := a.bodies.Get().(*body)
	if cap(in.data) == 0 {
		in.data = make([]byte, 0, firstRead)
	}
	in.data, in.off = in.data[:0], 0
	for {
		if len(in.data) == cap(in.data) {
			if p := a.grow(in, r.ContentLength, most); p != nil {
				a.putBody(in)
				return nil, p
			}
		}
		n, err := r.Body.Read(in.data[len(in.data):cap(in.data)])
		in.data = in.data[:len(in.data)+n]
		if int64(len(in.data)) > most {
			a.putBody(in)
			return nil, tooLarge(most)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			a.putBody(in)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil, problem.New(reasonTooSlow, "the request's body did not arrive in time")
			}
			return nil, nil
		}
	}
	if rt.stream {
		// A stream lasts longer than its request took to arrive; each message has its own deadline.
		// Without it the stream ends early, and no more.
		c := http.NewResponseController(w)
		_, _ = c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{})
	}
	return in, nil
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

// grow doubles a buffer, from the memory that all bodies share.
func (a *API) grow(in *body, length, most int64) *problem.Problem {
	size := min(2*int64(cap(in.data)), most+1)
	if length >= 0 {
		size = max(size, min(length+1, 1<<20)) // what was announced, but not all of it on trust
	}
	more := size - int64(cap(in.data))
	if a.memory.Add(more) > a.o.Limits.RequestMemory {
		a.memory.Add(-more)
		return problem.New(problem.ReasonOverloaded, "too many large requests are arriving").WithRetryAfter(time.Second)
	}
	in.taken += more
	old := in.data
	in.data = append(make([]byte, 0, size), old...)
	clear(old)
	return nil
}

// putBody wipes a body, which may have held a value, and gives its memory back.
func (a *API) putBody(in *body) {
	clear(in.data)
	a.memory.Add(-in.taken)
	in.taken = 0
	if cap(in.data) > keepBody {
		in.data = nil
	}
	a.bodies.Put(in)
}

// deliverWithin is how long after its release a value may still begin to leave (invariant "revoked").
const deliverWithin = 5 * time.Second

// secretWriter sends an answer that holds a value: it wipes each buffer behind itself, and sends
// nothing that comes too late after its decision.
//
// Wiping what Write was given breaks io.Writer's contract on purpose: the buffer is connect's, who
// pools it, and reads nothing of it after Write.
type secretWriter struct {
	http.ResponseWriter
	call *call
}

func (w *secretWriter) Write(p []byte) (int, error) {
	if c := w.call; !c.sending && !c.released.IsZero() {
		if time.Since(c.released) > deliverWithin {
			c.api.o.Events.DeliveryFailed()
			panic(http.ErrAbortHandler)
		}
		c.sending = true
	}
	n, err := w.ResponseWriter.Write(p)
	if w.call.wipe != nil {
		clear(p)
	}
	if err != nil {
		w.call.api.o.Events.DeliveryFailed()
	}
	return n, err
}

// Flush is for gRPC, which flushes its trailers.
func (w *secretWriter) Flush() {
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
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
