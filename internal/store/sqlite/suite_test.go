package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/storetest"
)

func TestSuite(t *testing.T) { storetest.Run(t, newSite) }

// A store wrapped without a fault must still be one.
func TestSuiteBehindFaulty(t *testing.T) {
	for _, c := range storetest.Cases() {
		if c.Name == "BigBatch" {
			continue // the same once more, only long
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			c.Run(t, wrappedSite{newSite(t).(*site), func(s store.Store) store.Store { return storetest.NewFaulty(s) }})
		})
	}
}

// site is a directory for one store, whose connections can be made to fail.
type site struct {
	t    testing.TB
	dir  string
	plan plan
}

func newSite(t testing.TB) storetest.Site {
	return &site{t: t, dir: filepath.Join(t.TempDir(), "store")}
}

func (p *site) Create(ctx context.Context) (store.Store, error) {
	s, err := create(ctx, p.dir, p.connect)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (p *site) Open(ctx context.Context) (store.Store, error) {
	s, err := open(ctx, p.dir, p.connect)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Crash moves on to a copy of the directory as it is at this moment, which is what a killed process
// leaves: what it has written is in the kernel's hands. The lock goes with the process.
func (p *site) Crash(s store.Store) {
	st := s.(*Store)
	st.sem <- struct{}{} // a moment between two system calls of one thread
	next := filepath.Join(p.t.TempDir(), "store")
	copyDir(p.t, p.dir, next)
	st.release()
	st.Close()
	p.dir = next
}

func copyDir(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Mkdir(to, 0o700); err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Name() == lockName {
			continue
		}
		in, err := os.Open(filepath.Join(from, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out, err := os.OpenFile(filepath.Join(to, e.Name()), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(out, in)
		if err := errors.Join(err, in.Close(), out.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func (p *site) FailWrite(n int, after bool) func() bool {
	p.plan.mu.Lock()
	defer p.plan.mu.Unlock()
	p.plan.left, p.plan.after, p.plan.fired = n, after, false
	return func() bool {
		p.plan.mu.Lock()
		defer p.plan.mu.Unlock()
		p.plan.left = 0
		return p.plan.fired
	}
}

// plan is the failure to come.
type plan struct {
	mu    sync.Mutex
	left  int // statements until it; 0: none planned
	after bool
	fired bool
}

var errInjected = errors.New("injected failure")

// run does or fails one statement.
func (p *plan) run(do func() (driver.Result, error)) (driver.Result, error) {
	p.mu.Lock()
	hit := p.left == 1
	if p.left > 0 {
		p.left--
	}
	p.fired = p.fired || hit
	after := p.after
	p.mu.Unlock()
	if !hit {
		return do()
	}
	if after {
		if r, err := do(); err != nil {
			return r, err
		}
	}
	return nil, errInjected
}

func (p *site) connect(dsn string) (driver.Conn, error) {
	c, err := connectDriver(dsn)
	if err != nil {
		return nil, err
	}
	return &faultConn{c, &p.plan}, nil
}

// faultConn is the driver with a plan between it and the engine.
type faultConn struct {
	driver.Conn
	plan *plan
}

func (c *faultConn) ExecContext(ctx context.Context, q string, args []driver.NamedValue) (driver.Result, error) {
	return c.Conn.(driver.ExecerContext).ExecContext(ctx, q, args)
}

func (c *faultConn) Prepare(q string) (driver.Stmt, error) {
	s, err := c.Conn.Prepare(q)
	if err != nil {
		return nil, err
	}
	return &faultStmt{s, c.plan}, nil
}

type faultStmt struct {
	driver.Stmt
	plan *plan
}

func (s *faultStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.plan.run(func() (driver.Result, error) { return s.Stmt.(driver.StmtExecContext).ExecContext(ctx, args) })
}

func (s *faultStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, args)
}

// wrappedSite hands out wrapped stores.
type wrappedSite struct {
	*site
	wrap func(store.Store) store.Store
}

// unwrapper keeps the engine below a wrapper, for Crash.
type unwrapper struct {
	store.Store
	engine store.Store
}

func (w wrappedSite) Create(ctx context.Context) (store.Store, error) {
	s, err := w.site.Create(ctx)
	if err != nil {
		return nil, err
	}
	return unwrapper{w.wrap(s), s}, nil
}

func (w wrappedSite) Open(ctx context.Context) (store.Store, error) {
	s, err := w.site.Open(ctx)
	if err != nil {
		return nil, err
	}
	return unwrapper{w.wrap(s), s}, nil
}

func (w wrappedSite) Crash(s store.Store) { w.site.Crash(s.(unwrapper).engine) }
