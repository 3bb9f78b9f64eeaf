package sqlite

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/bailment/bailment/internal/store"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustCreate(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Create(context.Background(), dir)
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func mustOpen(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(context.Background(), dir)
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// fill makes the next batch after head: n entries whose bodies tell their index, and hashes that
// are only counted right.
func fill(head store.Head, n, size int) *store.Batch {
	b := &store.Batch{First: head.Size, HashFirst: head.Hashes, Time: time.UnixMilli(1_790_000_000_000 + int64(head.Size)).UTC()}
	for i := range n {
		body := make([]byte, size)
		copy(body, fmt.Sprintf("entry %d ", head.Size+uint64(i)))
		b.Entries = append(b.Entries, store.Entry{Salt: make([]byte, store.SaltSize), Body: body})
	}
	b.Hashes = make([]byte, 32*(uint64(tlog.StoredHashCount(int64(head.Size)+int64(n)))-head.Hashes))
	b.Root = store.Digest{byte(head.Size), byte(head.Size >> 8), 1}
	b.Checkpoint = []byte("signed")
	return b
}

func appendN(t testing.TB, s *Store, n, size int) {
	t.Helper()
	must(t, s.Append(context.Background(), fill(s.head, n, size)))
}

func TestOneHandlePerDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s := mustCreate(t, dir)
	for name, call := range map[string]func(context.Context, string) (*Store, error){"Open": Open, "Create": Create} {
		_, err := call(context.Background(), dir)
		if !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
			t.Errorf("%s beside an open handle: %v", name, err)
		}
	}
	must(t, s.Close())
	s = mustOpen(t, dir)
	appendN(t, s, 1, 10) // the failed attempts took nothing from the first handle
	st, err := os.Stat(dir)
	must(t, err)
	if st.Mode().Perm() != 0o700 {
		t.Errorf("directory has mode %v", st.Mode())
	}
	list, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range list {
		st, err := e.Info()
		must(t, err)
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), st.Mode())
		}
	}
	if len(list) != 3 { // database, log, LOCK: no -shm, nothing left over
		t.Errorf("files: %v", list)
	}
}

// Another process that knows SQLite but not our LOCK is kept out by SQLite's own lock, also after
// this process has opened and closed the file once more (which drops POSIX locks).
func TestForeignProcessIsLockedOut(t *testing.T) {
	if path := os.Getenv("SQLITE_TEST_FOREIGN"); path != "" {
		c, err := connectDriver(dsn(path))
		must(t, err)
		defer c.Close()
		_, err = c.(driver.ExecerContext).ExecContext(context.Background(), "BEGIN IMMEDIATE; DELETE FROM entries; COMMIT", nil)
		if err == nil || !strings.Contains(err.Error(), "locked") {
			t.Fatalf("wrote to a locked database: %v", err)
		}
		return
	}
	dir := filepath.Join(t.TempDir(), "s")
	s := mustCreate(t, dir)
	appendN(t, s, 3, 10)
	_, err := os.ReadFile(filepath.Join(dir, dbName))
	must(t, err)
	cmd := exec.Command(os.Args[0], "-test.run", "^TestForeignProcessIsLockedOut$")
	cmd.Env = append(os.Environ(), "SQLITE_TEST_FOREIGN="+filepath.Join(dir, dbName))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestPermissionsWiderThanTheOwnersAreRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	s := mustCreate(t, dir)
	must(t, s.Close())
	for _, c := range []struct {
		name string
		mode os.FileMode
	}{{dbName, 0o640}, {dbName, 0o604}, {".", 0o770}, {".", 0o702}} {
		path := filepath.Join(dir, c.name)
		st, err := os.Stat(path)
		must(t, err)
		must(t, os.Chmod(path, c.mode))
		if _, err := Open(context.Background(), dir); err == nil || !strings.Contains(err.Error(), "chmod") {
			t.Errorf("%s with mode %o: %v", c.name, c.mode, err)
		}
		must(t, os.Chmod(path, st.Mode().Perm()))
	}
	must(t, mustOpen(t, dir).Close())
	real := filepath.Join(dir, "real")
	must(t, os.Rename(filepath.Join(dir, dbName), real))
	must(t, os.Symlink(real, filepath.Join(dir, dbName)))
	if _, err := Open(context.Background(), dir); err == nil {
		t.Error("opened through a symbolic link")
	}
}

func TestOpenMakesNothing(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Join(dir, "absent")} {
		if _, err := Open(context.Background(), d); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v", d, err)
		}
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("left %v, %v", list, err)
	}
}

// A Create that was interrupted leaves no store, and the next one starts over.
func TestInterruptedCreate(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o700))
	for _, name := range []string{newName, newName + "-wal"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("half a store"), 0o600))
	}
	if _, err := Open(context.Background(), dir); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	s := mustCreate(t, dir)
	appendN(t, s, 2, 10)
	if _, err := os.Stat(filepath.Join(dir, newName)); err == nil {
		t.Error("the half store is still there")
	}
}

func TestSettingsHold(t *testing.T) {
	s := mustCreate(t, filepath.Join(t.TempDir(), "s"))
	want := map[string]any{
		"journal_mode": "wal", "main.locking_mode": "exclusive", "wal_autocheckpoint": int64(0), "secure_delete": int64(1),
		"temp_store": int64(2), "cache_size": int64(-4096), "trusted_schema": int64(0), "cell_size_check": int64(1),
		"journal_size_limit": int64(64 << 20), "page_size": int64(pageSize),
		"synchronous": map[string]int64{"FULL": 2, "OFF": 0}[syncPragma],
	}
	for name, w := range want {
		err := s.c.query(func(row []driver.Value) error {
			if row[0] != w {
				return fmt.Errorf("is %v, want %v", row[0], w)
			}
			return nil
		}, "PRAGMA "+name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A store that a newer version has written opens while that says we may, and is left alone.
func TestSchemaVersions(t *testing.T) {
	ours := migrations[len(migrations)-1].version
	for _, c := range []struct {
		version, minReader int64
		opens              bool
	}{{ours + 5, ours, true}, {ours + 5, 1, true}, {ours + 5, ours + 1, false}, {ours + 1, ours + 9, false}} {
		dir := filepath.Join(t.TempDir(), "s")
		s := mustCreate(t, dir)
		appendN(t, s, 3, 10)
		must(t, s.c.do("INSERT INTO meta (version, min_reader, note) VALUES (?, ?, 'planted')", c.version, c.minReader))
		must(t, s.c.script("ALTER TABLE entries ADD COLUMN later BLOB; ALTER TABLE batches ADD COLUMN later INTEGER NOT NULL DEFAULT 7"))
		must(t, s.Close())
		s, err := Open(context.Background(), dir)
		if c.opens {
			must(t, err)
			appendN(t, s, 70, 10)
			version, _, err := schemaVersion(s.c)
			if err != nil || version != c.version {
				t.Errorf("version is %d now, %v", version, err)
			}
			must(t, s.Close())
		} else if !errors.Is(err, store.ErrTooNew) {
			t.Errorf("version %d, min_reader %d: %v", c.version, c.minReader, err)
		}
	}
}

func TestMigrationsGoForward(t *testing.T) {
	for i, m := range migrations {
		if m.version != int64(i+1) || m.minReader > m.version || m.minReader < 1 || m.note == "" {
			t.Errorf("row %d: version %d, min_reader %d, note %q", i, m.version, m.minReader, m.note)
		}
	}
	s := mustCreate(t, filepath.Join(t.TempDir(), "s"))
	next := int64(len(migrations) + 1)
	longer := append(migrations[:len(migrations):len(migrations)],
		migration{next, 1, "expand", "ALTER TABLE entries ADD COLUMN later BLOB"},
		migration{next + 1, next, "half wrong", "CREATE TABLE good (x INTEGER) STRICT; CREATE TABLE bad ("})
	if err := migrate(s.c, longer); err == nil {
		t.Fatal("a wrong step passed")
	}
	version, _, err := schemaVersion(s.c)
	if err != nil || version != next {
		t.Fatalf("version %d, %v: the good step counts, the wrong one does not", version, err)
	}
	var tables int64
	_, err = s.c.one([]any{&tables}, "SELECT count(*) FROM sqlite_schema WHERE name = 'good'")
	if err != nil || tables != 0 {
		t.Fatalf("half a step was done: %d, %v", tables, err)
	}
	must(t, migrate(s.c, longer[:next])) // again: nothing to do
	appendN(t, s, 2, 10)
}

func TestDamageIsNoticedAtOpen(t *testing.T) {
	damage := map[string]func(t *testing.T, path string){
		"garbage": func(t *testing.T, path string) {
			must(t, os.WriteFile(path, bytes.Repeat([]byte("garbage"), 9999), 0o600))
		},
		"empty":     func(t *testing.T, path string) { must(t, os.Truncate(path, 0)) },
		"short":     func(t *testing.T, path string) { must(t, os.Truncate(path, 5*pageSize)) },
		"half page": func(t *testing.T, path string) { must(t, os.Truncate(path, 100)) },
		"zeroes":    func(t *testing.T, path string) { must(t, os.WriteFile(path, make([]byte, 1<<20), 0o600)) },
	}
	for name, change := range map[string]string{
		"foreign":           "PRAGMA application_id=1",
		"entry gone":        "DELETE FROM entries WHERE idx = 250",
		"last entry gone":   "DELETE FROM entries WHERE idx = 299",
		"an entry too many": "INSERT INTO entries (idx, data) VALUES (300, zeroblob(40))",
		"batch gone":        "DELETE FROM batches WHERE first = 200",
		"last batch gone":   "DELETE FROM batches WHERE first = 290",
		"all batches gone":  "DELETE FROM batches",
		"first batch gone":  "DELETE FROM batches WHERE first = 0",
		"short root":        "UPDATE batches SET root = x'00' WHERE first = 290",
		"count":             "UPDATE batches SET count = 9 WHERE first = 290",
		"hashes cut":        "UPDATE batches SET hashes = zeroblob(33) WHERE first = 290",
		"table gone":        "DROP TABLE batches",
	} {
		damage[name] = func(t *testing.T, path string) {
			c, err := newConn(connectDriver, dsn(path))
			must(t, err)
			must(t, c.script(change))
			must(t, c.close())
		}
	}
	for name, spoil := range damage {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "s")
			s := mustCreate(t, dir)
			for range 30 {
				appendN(t, s, 10, 300)
			}
			must(t, s.Close())
			spoil(t, filepath.Join(dir, dbName))
			_, err := Open(context.Background(), dir)
			if err == nil || name != "table gone" && !errors.Is(err, store.ErrCorrupt) {
				t.Fatalf("Open: %v", err)
			}
			if _, err2 := OpenReadOnly(context.Background(), dir); err2 == nil || errors.Is(err, store.ErrCorrupt) != errors.Is(err2, store.ErrCorrupt) {
				t.Fatalf("OpenReadOnly: %v, Open: %v", err2, err)
			}
			if _, err2 := Open(context.Background(), dir); errors.Is(err2, store.ErrLocked) {
				t.Fatal("a failed Open kept the lock")
			}
		})
	}
}

// Damage behind the checked end is found when it is read.
func TestDamageIsNoticedWhenRead(t *testing.T) {
	ctx := context.Background()
	s := mustCreate(t, filepath.Join(t.TempDir(), "s"))
	for range 10 {
		appendN(t, s, 100, 10)
	}
	blobBatch := fill(s.head, 1, 10)
	data := []byte("document")
	d := store.Digest{1}
	must(t, s.Append(ctx, blobBatch))
	must(t, s.c.do("INSERT INTO blobs (digest, data) VALUES (?, ?)", d[:], data))
	if _, err := s.Blob(ctx, d); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("blob under a false name: %v", err)
	}
	must(t, s.c.script("DELETE FROM entries WHERE idx = 50; UPDATE entries SET data = x'00' WHERE idx = 60; DELETE FROM batches WHERE first = 300"))
	nop := func(uint64, store.Entry) error { return nil }
	for _, from := range []uint64{0, 50, 60} {
		if err := s.Entries(ctx, from, 20+int(60-from), nop); !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("entries from %d: %v", from, err)
		}
	}
	if _, err := s.Hashes(ctx, []uint64{uint64(tlog.StoredHashCount(300))}); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("hashes of a missing batch: %v", err)
	}
	b := fill(s.head, 1, 10)
	b.Redact = []uint64{50}
	if err := s.Append(ctx, b); !errors.Is(err, store.ErrNotDone) || !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("redaction of a missing entry: %v", err)
	}
}

// The write-ahead log stays bounded under any load, and the work of bounding it loses nothing.
func TestWriteAheadLogIsBounded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	s := mustCreate(t, dir)
	var most int64
	for i := range 1000 {
		size, n := 600, 16
		if i%50 == 0 {
			n = 400
		}
		appendN(t, s, n, size)
		if st, err := os.Stat(filepath.Join(dir, walName)); err == nil {
			most = max(most, st.Size())
		}
	}
	if limit := int64(walLimit * pageSize * 3 / 2); most > limit || most < 1<<20 {
		t.Errorf("the log grew to %d bytes, bound is %d", most, limit)
	}
	size := s.head.Size
	must(t, s.Close())
	s = mustOpen(t, dir)
	if s.head.Size != size {
		t.Errorf("%d entries of %d", s.head.Size, size)
	}
}

// What is shredded or redacted is in no file of the directory any more.
func TestErasedBytesAreGone(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "s")
	s := mustCreate(t, dir)
	appendN(t, s, 3, 100)
	secret, body := bytes.Repeat([]byte("CIPHERTEXT-"), 700), bytes.Repeat([]byte("PERSONAL-"), 1500)
	b := fill(s.head, 2, 100)
	b.Entries[0].Body = body
	b.Seal = []store.Sealed{{ID: b.First + 1, Ciphertext: secret, WrappedKey: []byte("WRAPPED-KEY"), KEK: 1}}
	must(t, s.Append(ctx, b))
	has := func() (found []string) {
		for _, name := range []string{dbName, walName} {
			raw, err := os.ReadFile(filepath.Join(dir, name))
			must(t, err)
			for _, word := range []string{"CIPHERTEXT-", "PERSONAL-", "WRAPPED-KEY"} {
				if bytes.Contains(raw, []byte(word)) {
					found = append(found, name+" "+word)
				}
			}
		}
		return found
	}
	if len(has()) < 3 {
		t.Fatalf("the test sees only %v", has())
	}
	b = fill(s.head, 1, 100)
	b.Redact, b.Shred = []uint64{3}, []uint64{4}
	must(t, s.Append(ctx, b))
	must(t, s.settle(ctx))
	if left := has(); len(left) != 0 {
		t.Errorf("still there: %v", left)
	}
}

// A checkpoint that fails after an acknowledged commit makes the handle fatal, and loses nothing.
func TestFailedCheckpointIsFatal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	s := mustCreate(t, dir)
	appendN(t, s, 5, 100)
	const text = "PRAGMA wal_checkpoint(TRUNCATE)"
	bad := badStmt{s.c.stmts[text].raw}
	s.c.stmts[text] = &stmt{raw: bad, exec: bad, qry: bad}
	b := fill(s.head, 1, 100)
	b.Redact = []uint64{0}
	must(t, s.Append(context.Background(), b)) // acknowledged: it is durable
	s.jobs.Wait()
	if _, err := s.Head(context.Background()); !errors.Is(err, store.ErrFatal) || !errors.Is(err, errInjected) {
		t.Fatalf("after a failed checkpoint: %v", err)
	}
	must(t, s.Close())
	if s = mustOpen(t, dir); s.head.Size != 6 {
		t.Fatalf("%d entries", s.head.Size)
	}
}

// badStmt fails whenever it is run.
type badStmt struct{ driver.Stmt }

func (badStmt) ExecContext(context.Context, []driver.NamedValue) (driver.Result, error) {
	return nil, errInjected
}

func (badStmt) QueryContext(context.Context, []driver.NamedValue) (driver.Rows, error) {
	return nil, errInjected
}

// A large snapshot is cut up: neither does the log grow with it, nor do commits wait for all of it.
func TestLargeSnapshotLetsCommitsPass(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "s")
	s := mustCreate(t, dir)
	appendN(t, s, 5, 100)
	done := make(chan error, 1)
	go func() { done <- s.PutSnapshot(ctx, 4, make([]byte, 40<<20)) }()
	commits := 0
	for running := true; running; {
		select {
		case err := <-done:
			must(t, err)
			running = false
		default:
			head, err := s.Head(ctx)
			must(t, err)
			must(t, s.Append(ctx, fill(head, 1, 100)))
			commits++
		}
	}
	if commits < 20 {
		t.Errorf("only %d commits passed", commits)
	}
	st, err := os.Stat(filepath.Join(dir, walName))
	must(t, err)
	if st.Size() > walLimit*pageSize*2 {
		t.Errorf("the log grew to %d bytes", st.Size())
	}
	for i := range 3 { // replaced ones free their room for the next
		must(t, s.PutSnapshot(ctx, uint64(5+i), make([]byte, 10<<20)))
	}
	must(t, s.settle(ctx)) // a checkpoint may be at work
	var parts int64
	_, err = s.c.one([]any{&parts}, "SELECT count(*) FROM snapshot_parts")
	if err != nil || parts != 20 {
		t.Errorf("%d parts left, %v", parts, err)
	}
}

// Who could write the file left something in it that would run in our transactions, and swallow what is acknowledged.
func TestForeignSchema(t *testing.T) {
	const table = "CREATE TABLE entries (idx INTEGER PRIMARY KEY, data BLOB, commitment BLOB%s) STRICT"
	const younger = "; INSERT INTO meta (version, min_reader, note) VALUES (99, 1, 'younger')"
	const unique = ", bad INTEGER AS (CASE WHEN data IS NULL THEN idx ELSE 1 END) UNIQUE ON CONFLICT IGNORE"
	for name, script := range map[string]string{
		"a trigger":              "CREATE TRIGGER t BEFORE INSERT ON entries BEGIN SELECT RAISE(IGNORE); END",
		"a trigger, younger":     "CREATE TRIGGER t BEFORE INSERT ON entries BEGIN SELECT RAISE(IGNORE); END" + younger,
		"a view":                 "CREATE VIEW v AS SELECT * FROM entries",
		"an index":               "CREATE UNIQUE INDEX i ON entries (commitment)",
		"a rule for conflicts":   "DROP TABLE entries; " + fmt.Sprintf(table, unique),
		"such a rule, younger":   "DROP TABLE entries; " + fmt.Sprintf(table, unique) + younger,
		"a column more":          "DROP TABLE entries; " + fmt.Sprintf(table, ", more BLOB"),
		"a table more":           "CREATE TABLE more (x INTEGER)",
		"nothing":                "SELECT 1",
		"statistics":             "ANALYZE",
		"statistics, reclaimed":  "INSERT INTO entries (idx) VALUES (99); ANALYZE; DELETE FROM entries; VACUUM",
		"a rule on statistics":   "ANALYZE; CREATE TRIGGER t BEFORE INSERT ON entries BEGIN DELETE FROM sqlite_stat1; SELECT RAISE(IGNORE); END",
		"a column more, younger": "ALTER TABLE entries ADD COLUMN more BLOB" + younger,
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "s")
			s := mustCreate(t, dir)
			must(t, s.c.script(script))
			must(t, s.Close())
			sound := name == "nothing" || name == "statistics" || name == "statistics, reclaimed" || name == "a column more, younger"
			for kind, open := range map[string]func(context.Context, string) (*Store, error){"Open": Open, "OpenReadOnly": OpenReadOnly} {
				s, err := open(context.Background(), dir)
				if err == nil {
					must(t, s.Close())
				}
				if sound && err != nil || !sound && !errors.Is(err, store.ErrCorrupt) {
					t.Errorf("%s: %v", kind, err)
				}
			}
		})
	}
}

// The row of a snapshot says what it likes: it costs an error, neither the process nor its memory.
func TestForgedSnapshotRow(t *testing.T) {
	ctx := context.Background()
	for _, forged := range []string{
		"parts = 1 << 42, size = 1 << 60", "parts = 1 << 42, size = 1 << 45", "parts = 1 << 20, size = 1 << 40",
		"first_part = -5", "first_part = 9223372036854775807", "parts = 9223372036854775807", "size = -1", "size = 1 << 30", "idx = -1", "idx = -5",
	} {
		s := mustCreate(t, filepath.Join(t.TempDir(), "s"))
		appendN(t, s, 3, 100)
		must(t, s.PutSnapshot(ctx, 1, make([]byte, 3<<20)))
		must(t, s.c.script("UPDATE snapshots SET "+forged))
		if index, data, err := s.Snapshot(ctx, 2); err == nil || !errors.Is(err, store.ErrCorrupt) && !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: snapshot %d of %d bytes, %v", forged, index, len(data), err)
		}
	}
}
