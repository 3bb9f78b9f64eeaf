package localapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/problem"
)

// Client asks the agent at a socket. It is safe for concurrent use.
type Client struct {
	Socket string
}

const (
	dialTimeout   = 5 * time.Second
	answerTimeout = time.Minute
	closeTimeout  = 15 * time.Second
)

// sender sends a descriptor with the first bytes that are written.
type sender struct {
	*net.UnixConn
	mu   sync.Mutex
	file *os.File
}

func (s *sender) Write(b []byte) (int, error) {
	s.mu.Lock()
	f := s.file
	s.file = nil
	s.mu.Unlock()
	if f == nil || len(b) == 0 {
		return s.UnixConn.Write(b)
	}
	n, _, err := s.UnixConn.WriteMsgUnix(b, unix.UnixRights(int(f.Fd())), nil)
	if err != nil || n == len(b) {
		return n, err
	}
	m, err := s.UnixConn.Write(b[n:])
	return n + m, err
}

// Unanswered is the problem of who could not connect to an agent's socket.
func Unanswered(socket string, err error) *problem.Problem {
	switch {
	case len(socket) > MaxSocket:
		return problem.New(problem.ReasonInvalid, "the path of the agent's socket has %d bytes, and the kernel takes at most %d: %s", len(socket), MaxSocket, socket).
			WithFix("name a shorter path as `socket` in the agent's configuration and in BAILMENT_AGENT")
	case errors.Is(err, fs.ErrPermission):
		return problem.Wrap(err, problem.ReasonPermissions, "user %d may not use the agent's socket %s", os.Geteuid(), socket).
			WithFix("the socket itself is for all users (0666): make every directory on the way to it searchable (chmod a+x %s), or ask as a user who may go there", filepath.Dir(socket))
	case errors.Is(err, fs.ErrNotExist):
		return problem.New(problem.ReasonNoAgent, "there is no agent's socket at %s", socket)
	case errors.Is(err, unix.ECONNREFUSED):
		return problem.New(problem.ReasonNoAgent, "nobody answers at %s: the agent that made it is gone", socket)
	}
	return problem.Wrap(err, problem.ReasonNoAgent, "asking the agent at %s", socket)
}

// do makes one request over a connection of its own.
func (c *Client) do(ctx context.Context, method, path string, body any, file *os.File) (*http.Response, *http.Transport, error) {
	var conn net.Conn
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", c.Socket)
	if err != nil {
		return nil, nil, Unanswered(c.Socket, err)
	}
	s := &sender{UnixConn: conn.(*net.UnixConn), file: file}
	used := false
	t := &http.Transport{DisableCompression: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		if used {
			return nil, errors.New("the agent closed the connection")
		}
		used = true
		return s, nil
	}}
	var text []byte
	if body != nil {
		if text, err = json.Marshal(body); err != nil {
			conn.Close()
			return nil, nil, problem.Wrap(err, problem.ReasonInternal, "encoding the request")
		}
	}
	// The path is the only thing that counts; the host is the form's.
	r, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, bytes.NewReader(text))
	if err != nil {
		conn.Close()
		return nil, nil, problem.Wrap(err, problem.ReasonInternal, "making the request")
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	res, err := t.RoundTrip(r)
	if err != nil {
		conn.Close()
		return nil, nil, problem.Wrap(err, problem.ReasonNoAgent, "asking the agent")
	}
	if res.StatusCode != http.StatusOK {
		defer t.CloseIdleConnections()
		defer res.Body.Close()
		var f Failure
		if err := json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&f); err != nil || f.Reason == "" {
			return nil, nil, problem.New(problem.ReasonNoAgent, "what answers at %s is no agent (%s)", c.Socket, res.Status)
		}
		return nil, nil, f.Problem()
	}
	return res, t, nil
}

// Status asks for the agent's status.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return c.status(ctx, http.MethodGet, PathStatus, nil)
}

// Renew has the agent prove the machine anew at once, and gives the status after that. The error is what was wrong, as the agent or the
// server has it; permissions if the asker is neither root nor the agent's user.
func (c *Client) Renew(ctx context.Context) (*Status, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return c.status(ctx, http.MethodPost, PathRenew, struct{}{})
}

func (c *Client) status(ctx context.Context, method, path string, body any) (*Status, error) {
	res, t, err := c.do(ctx, method, path, body, nil)
	if err != nil {
		return nil, err
	}
	defer t.CloseIdleConnections()
	defer res.Body.Close()
	var s Status
	if err := json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&s); err != nil {
		return nil, problem.Wrap(err, problem.ReasonNoAgent, "reading the agent's status")
	}
	return &s, nil
}

// Run is an open run: it lasts until Close, or the end of this process.
type Run struct {
	Opened
	client *Client
	cancel context.CancelFunc
	body   io.Closer
	t      *http.Transport
	events chan Event
}

// Open asks for secrets for the executable that exe is open on; exe may be nil, and is not closed. ctx bounds the asking,
// not the run. The error is the agent's or the server's Problem, or no-agent.
func (c *Client) Open(ctx context.Context, r OpenRequest, exe *os.File) (*Run, error) {
	live, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	timer := time.AfterFunc(answerTimeout, cancel)
	fail := func(err error) (*Run, error) {
		ended := live.Err() != nil
		stop()
		timer.Stop()
		cancel()
		if p := problem.As(err); p.Reason == problem.ReasonNoAgent && ended {
			switch {
			case errors.Is(ctx.Err(), context.Canceled):
				err = problem.Wrap(ctx.Err(), problem.ReasonCanceled, "asking the agent")
			default:
				err = problem.New(problem.ReasonUnreachable, "the agent at %s did not answer in time", c.Socket).
					WithFix("see `bailment agent status`: the agent, or the server behind it, is busy or away")
			}
		}
		return nil, err
	}
	res, t, err := c.do(live, http.MethodPost, PathOpen, r, exe)
	if err != nil {
		return fail(err)
	}
	run := &Run{client: c, cancel: cancel, body: res.Body, t: t, events: make(chan Event, 8)}
	lines := bufio.NewReaderSize(io.LimitReader(res.Body, maxLine), 64<<10)
	text, err := lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(text, &run.Opened)
	}
	clear(text)
	if err != nil {
		res.Body.Close()
		t.CloseIdleConnections()
		return fail(problem.Wrap(errors.New("its answer was cut short"), problem.ReasonNoAgent, "asking the agent"))
	}
	if !stop() || !timer.Stop() {
		run.end()
		return fail(problem.New(problem.ReasonCanceled, "asking the agent"))
	}
	go run.listen(lines)
	return run, nil
}

func (r *Run) listen(lines *bufio.Reader) {
	defer close(r.events)
	for {
		text, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var e Event
		if json.Unmarshal(text, &e) != nil {
			continue
		}
		select {
		case r.events <- e:
		default: // nobody listens
		}
	}
}

// Events are what happens to the run's leases. The channel is closed when the agent is gone.
func (r *Run) Events() <-chan Event { return r.events }

func (r *Run) end() {
	r.cancel()
	r.body.Close()
	r.t.CloseIdleConnections()
}

// Close ends the run and waits until its leases are given back, 15 s at most. Whatever it returns, the run is over.
func (r *Run) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	defer r.end()
	for i := range r.Secrets {
		clear(r.Secrets[i].Value)
	}
	res, t, err := r.client.do(ctx, http.MethodPost, PathClose, CloseRequest{Run: r.Run}, nil)
	if err != nil {
		return err
	}
	res.Body.Close()
	t.CloseIdleConnections()
	return nil
}
