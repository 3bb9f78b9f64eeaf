package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"

	modernc "modernc.org/sqlite"
)

// connector opens one database connection. It is a parameter so that a test can put a failing
// driver between the engine and SQLite.
type connector func(dsn string) (driver.Conn, error)

func connectDriver(dsn string) (driver.Conn, error) {
	// Closing any descriptor of a file drops this process's POSIX locks on it, and OpenReadOnly
	// does just that to a database which may be open in the same process. Open-file-description
	// locks don't have this flaw. Where they don't exist, the LOCK file still keeps out every
	// program that asks it.
	if _, err := modernc.OFDLocking(true); err != nil && !errors.Is(err, modernc.ErrOFDLockingUnavailable) {
		return nil, err
	}
	c, err := modernc.NewConnector(dsn)
	if err != nil {
		return nil, err
	}
	return c.Connect(context.Background())
}

// conn is one SQLite connection, used through the driver's interfaces instead of database/sql:
// there is one connection and one user at a time, so a pool, a goroutine per context and a
// conversion per argument would be paid for nothing. Not safe for concurrent use.
type conn struct {
	raw   driver.Conn
	stmts map[string]*stmt
}

func newConn(connect connector, dsn string) (*conn, error) {
	raw, err := connect(dsn)
	if err != nil {
		return nil, err
	}
	return &conn{raw: raw, stmts: make(map[string]*stmt)}, nil
}

// close finalizes the statements and closes the connection; SQLite then moves the write-ahead log
// into the database if it can.
func (c *conn) close() error {
	for _, s := range c.stmts {
		s.raw.Close()
	}
	c.stmts = nil
	return c.raw.Close()
}

// stmt is a prepared statement, kept for the connection's life.
type stmt struct {
	raw  driver.Stmt
	exec driver.StmtExecContext
	qry  driver.StmtQueryContext
	args []driver.NamedValue // reused: the driver copies what it binds
}

// prepare returns the statement for the text, which must be one of a small set.
func (c *conn) prepare(text string) (*stmt, error) {
	if s, ok := c.stmts[text]; ok {
		return s, nil
	}
	raw, err := c.raw.Prepare(text)
	if err != nil {
		return nil, err
	}
	exec, ok1 := raw.(driver.StmtExecContext)
	qry, ok2 := raw.(driver.StmtQueryContext)
	if !ok1 || !ok2 {
		raw.Close()
		return nil, errors.New("driver without contexts")
	}
	s := &stmt{raw: raw, exec: exec, qry: qry}
	c.stmts[text] = s
	return s, nil
}

// reset empties the reused arguments; bind adds one.
func (s *stmt) reset() { s.args = s.args[:0] }

func (s *stmt) bind(v driver.Value) {
	s.args = append(s.args, driver.NamedValue{Ordinal: len(s.args) + 1, Value: v})
}

// run executes with the arguments bound so far. The background context is deliberate: a write
// under way is never interrupted, see store.Store.
func (s *stmt) run() error {
	_, err := s.exec.ExecContext(context.Background(), s.args)
	clear(s.args) // don't keep the caller's bytes alive
	return err
}

// do executes a statement that returns no rows.
func (c *conn) do(text string, args ...driver.Value) error {
	s, err := c.prepare(text)
	if err != nil {
		return err
	}
	s.reset()
	for _, a := range args {
		s.bind(a)
	}
	return s.run()
}

// script executes statements without arguments that are not kept prepared.
func (c *conn) script(text string) error {
	x, ok := c.raw.(driver.ExecerContext)
	if !ok {
		return errors.New("driver without ExecContext")
	}
	_, err := x.ExecContext(context.Background(), text, nil)
	return err
}

// errStop ends an iteration of query early, without an error.
var errStop = errors.New("stop")

// query calls fn for each row until it returns an error. The row is fn's to keep: the driver makes
// its byte slices anew.
func (c *conn) query(fn func(row []driver.Value) error, text string, args ...driver.Value) (err error) {
	s, err := c.prepare(text)
	if err != nil {
		return err
	}
	s.reset()
	for _, a := range args {
		s.bind(a)
	}
	rows, err := s.qry.QueryContext(context.Background(), s.args)
	if err != nil {
		return err
	}
	defer func() {
		if e := rows.Close(); err == nil {
			err = e
		}
	}()
	row := make([]driver.Value, len(rows.Columns()))
	for {
		switch err := rows.Next(row); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		switch err := fn(row); {
		case errors.Is(err, errStop):
			return nil
		case err != nil:
			return err
		}
	}
}

// one reads a single row into dest (*int64, *[]byte, *string), and says whether there was one.
func (c *conn) one(dest []any, text string, args ...driver.Value) (found bool, err error) {
	err = c.query(func(row []driver.Value) error {
		found = true
		if err := scan(row, dest...); err != nil {
			return err
		}
		return errStop
	}, text, args...)
	return found, err
}

// scan copies a row's values. STRICT tables keep their types, so another one means damage.
func scan(row []driver.Value, dest ...any) error {
	if len(row) != len(dest) {
		return fmt.Errorf("row of %d columns, want %d", len(row), len(dest))
	}
	for i, d := range dest {
		var ok bool
		switch d := d.(type) {
		case *int64:
			*d, ok = row[i].(int64)
		case *string:
			*d, ok = row[i].(string)
		case *[]byte:
			*d, ok = row[i].([]byte)
			ok = ok || row[i] == nil
		}
		if !ok {
			return fmt.Errorf("column %d holds a %T", i, row[i])
		}
	}
	return nil
}
