package sqlite

import (
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/bailment/bailment/internal/store"
)

// migration is one step forward of the schema. There is no way back: a step expands first, and
// what it replaces is dropped in a later version, when no supported one reads it any more.
type migration struct {
	version   int64
	minReader int64 // the lowest version of this list that can still read and write the result
	note      string
	sql       string
}

// migrations is the whole history of the schema, oldest first. A published row never changes.
//
// Choices of version 1:
//   - Every key on the hot path rises with the entries (idx, hash, id), so that rows are appended
//     at the right edge of their tree. A random key there would dirty a page per row.
//   - batches is keyed by the first stored hash, because that is what it is looked up by; its
//     newest row is the head. Hashes are one blob per batch: a row each doubled the cost.
//   - an entry has data (salt, then body) or, redacted, a commitment: two columns, because a
//     length can't tell them apart.
//   - narrow columns stand before wide ones, so that scans don't follow overflow pages.
//   - a snapshot is cut into parts, each committed by itself, so that a large one neither holds up
//     commits nor blows up the write-ahead log; its row in snapshots is written last.
//   - no foreign keys: rows are only ever removed by their own key.
var migrations = []migration{
	{1, 1, "first version", `
CREATE TABLE entries (idx INTEGER PRIMARY KEY, data BLOB, commitment BLOB) STRICT;
CREATE TABLE batches (hash INTEGER PRIMARY KEY, first INTEGER NOT NULL, count INTEGER NOT NULL,
	time INTEGER NOT NULL, root BLOB NOT NULL, hashes BLOB NOT NULL) STRICT;
CREATE TABLE sealed (id INTEGER PRIMARY KEY, kek INTEGER NOT NULL, wrapped BLOB NOT NULL, ciphertext BLOB NOT NULL) STRICT;
CREATE TABLE blobs (digest BLOB PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TABLE keys (name TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TABLE checkpoint (one INTEGER PRIMARY KEY CHECK (one = 1), signed BLOB NOT NULL) STRICT;
CREATE TABLE snapshots (idx INTEGER PRIMARY KEY, first_part INTEGER NOT NULL, parts INTEGER NOT NULL, size INTEGER NOT NULL) STRICT;
CREATE TABLE snapshot_parts (id INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;
`},
}

// metaTable holds a row per migration done. Its shape is fixed for ever: it is read before
// anything is known about the rest.
const metaTable = `CREATE TABLE IF NOT EXISTS meta (version INTEGER PRIMARY KEY, min_reader INTEGER NOT NULL, note TEXT NOT NULL) STRICT`

// schemaVersion reads what the store says of itself: the newest migration done, and the lowest
// version that may open it.
func schemaVersion(c *conn) (version, minReader int64, err error) {
	var v, m int64
	_, err = c.one([]any{&v, &m}, `SELECT coalesce(max(version), 0), coalesce(max(min_reader), 0) FROM meta`)
	return v, m, err
}

// migrate applies the steps of list that the store misses, each in its own transaction, and
// refuses only a store that says it can't be read by the newest of list. A store with a higher
// version but a low enough min_reader is opened as it is.
func migrate(c *conn, list []migration) error {
	if err := c.script(metaTable); err != nil {
		return err
	}
	have, minReader, err := schemaVersion(c)
	if err != nil {
		return err
	}
	newest := list[len(list)-1].version
	if minReader > newest {
		return fmt.Errorf("%w: its schema %d needs a program that knows schema %d, this one knows %d",
			store.ErrTooNew, have, minReader, newest)
	}
	for _, m := range list {
		if m.version <= have {
			continue
		}
		if err := applyMigration(c, m); err != nil {
			return fmt.Errorf("migration %d (%s): %w", m.version, m.note, err)
		}
	}
	return nil
}

func applyMigration(c *conn, m migration) error {
	if err := c.do("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	err := c.script(m.sql)
	if err == nil {
		err = c.do(`INSERT INTO meta (version, min_reader, note) VALUES (?, ?, ?)`, driver.Value(m.version), m.minReader, m.note)
	}
	if err == nil {
		err = c.do("COMMIT")
	}
	if err != nil {
		_ = c.do("ROLLBACK") // the first error is the one that counts
	}
	return err
}

// object is a row of the schema table: a table, an index, a trigger or a view.
type object struct{ kind, name, sql string }

// statistics are the tables that ANALYZE leaves, when an operator runs it. They advise SQLite which way to look, and no answer
// depends on them.
var statistics = []object{
	{"table", "sqlite_stat1", "CREATE TABLE sqlite_stat1(tbl,idx,stat)"},
	{"table", "sqlite_stat4", "CREATE TABLE sqlite_stat4(tbl,idx,neq,nlt,ndlt,sample)"},
}

func objects(c *conn) ([]object, error) {
	var out []object
	err := c.query(func(row []driver.Value) error {
		var o object
		if err := scan(row, &o.kind, &o.name, &o.sql); err != nil {
			return err
		}
		if !slices.Contains(statistics, o) {
			out = append(out, o)
		}
		return nil
	}, `SELECT type, name, coalesce(sql, '') FROM sqlite_schema ORDER BY type, name`)
	return out, err
}

// ours are the objects that the migrations give.
var ours = sync.OnceValues(func() ([]object, error) {
	c, err := newConn(connectDriver, ":memory:")
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := migrate(c, migrations); err != nil {
		return nil, err
	}
	return objects(c)
})

// checkSchema refuses a store that holds more than data: a trigger, or a table's own rule for conflicts, that somebody who could
// write the file left in it would run in our transactions, and swallow an entry that was then acknowledged. The tables of a
// younger version we can't know; triggers, views and such rules no version has.
func checkSchema(c *conn) error {
	have, err := objects(c)
	if err != nil {
		return err
	}
	for _, o := range have {
		if o.kind != "table" && o.kind != "index" || strings.Contains(strings.ToUpper(o.sql), "CONFLICT") {
			return corrupt("there is a %s %.80q in it, which is none of ours", o.kind, o.name)
		}
	}
	version, _, err := schemaVersion(c)
	if err != nil || version > migrations[len(migrations)-1].version {
		return err
	}
	want, err := ours()
	if err != nil {
		return fmt.Errorf("making the schema to compare with: %w", err)
	}
	if !slices.Equal(have, want) {
		return corrupt("its tables are not those of schema %d", version)
	}
	return nil
}
