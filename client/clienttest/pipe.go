package clienttest

import (
	"context"
	"net"
	"sync"
)

// Pipe is a network in memory, which works inside of a synctest bubble.
type Pipe struct {
	mu     sync.Mutex
	conns  chan net.Conn
	closed chan struct{}
	down   error
}

// NewPipe makes one.
func NewPipe() *Pipe { return &Pipe{conns: make(chan net.Conn), closed: make(chan struct{})} }

// Down has every dial fail with err; nil ends that.
func (p *Pipe) Down(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = err
}

// Dial is Options.Dialer.
func (p *Pipe) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	p.mu.Lock()
	down := p.down
	p.mu.Unlock()
	if down != nil {
		return nil, &net.OpError{Op: "dial", Err: down}
	}
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.closed:
		return nil, &net.OpError{Op: "dial", Err: net.ErrClosed}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept waits for a Dial.
func (p *Pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// Close ends it.
func (p *Pipe) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "127.0.0.1:1" }

// Addr is a made-up one.
func (p *Pipe) Addr() net.Addr { return pipeAddr{} }
