package e2e

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"database/sql"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	modernc "modernc.org/sqlite"

	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/sqlite"
)

// -update writes the data directory of this version, if testdata/upgrade has none of it yet. It never
// changes one: they stand for what others have on their disks.
var update = flag.Bool("update", false, "write testdata/upgrade/"+upgradeVersion+" if it is not there")

const (
	upgradeDir     = "../../testdata/upgrade"
	upgradeVersion = "v0.3" // whose formats -update writes: the next release's that changes any
	upgradeMost    = 700 << 10
)

// The files of a version's directory. testdata/upgrade/README.md says what each is.
const (
	upgradeStore  = "store.sql"
	upgradeRoot   = "root.key"
	upgradePerson = "alice.key"
	upgradeWant   = "want.json"
)

// upgradeFacts are what must be found in the directory.
type upgradeFacts struct {
	Entries uint64       `json:"entries"`
	Root    state.Digest `json:"root"` // of the state that they amount to
	Genesis state.Digest `json:"genesis"`
	Time    time.Time    `json:"time"` // when it was stopped
	Secret  string       `json:"secret"`
	Version uint64       `json:"version"` // current
	Value   string       `json:"value"`
}

// TestUpgrade: what any released version left on a disk is opened, replayed, read and continued by this one.
func TestUpgrade(t *testing.T) {
	if *update {
		writeUpgrade(t, filepath.Join(upgradeDir, upgradeVersion))
	}
	versions, err := filepath.Glob(filepath.Join(upgradeDir, "v*"))
	if err != nil || !slices.Contains(versions, filepath.Join(upgradeDir, upgradeVersion)) {
		t.Fatalf("%s has no %s: run with -update", upgradeDir, upgradeVersion)
	}
	for _, dir := range versions {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			// As it was stopped, and without its snapshots, so that every entry is applied.
			t.Run("from the snapshot", func(t *testing.T) { openUpgrade(t, dir) })
			t.Run("from entry 0", func(t *testing.T) { openUpgrade(t, dir, "DELETE FROM snapshots", "DELETE FROM snapshot_parts") })
		})
	}
}

// A test that would believe any directory protects nobody: these changes must be found.
func TestUpgradeNotices(t *testing.T) {
	dir := filepath.Join(upgradeDir, upgradeVersion)
	want := readFacts(t, dir)
	for name, change := range map[string]string{
		"an entry's body":    "UPDATE entries SET data = CAST(substr(data, 1, length(data)-2) || X'2020' AS BLOB) WHERE idx = 3",
		"the last batch":     "DELETE FROM batches WHERE hash = (SELECT max(hash) FROM batches)",
		"a sealed value":     "UPDATE sealed SET ciphertext = zeroblob(length(ciphertext))",
		"a blob":             "DELETE FROM blobs",
		"the schema version": "UPDATE meta SET version = 1000, min_reader = 1000",
	} {
		t.Run(name, func(t *testing.T) {
			w := rebuild(t, dir, want, "DELETE FROM snapshots", "DELETE FROM snapshot_parts", change)
			err := tryUpgrade(w, want)
			if err == nil {
				_, _, err = handOver(w, want)
			}
			if err == nil {
				t.Fatal("not noticed")
			}
			t.Log(err)
		})
	}
}

// openUpgrade opens a version's directory, looks at it, goes on with it, and opens that.
func openUpgrade(t *testing.T, dir string, changes ...string) {
	t.Helper()
	want := readFacts(t, dir)
	w := rebuild(t, dir, want, changes...)
	if err := tryUpgrade(w, want); err != nil {
		t.Fatal(err)
	}

	alice, api, err := handOver(w, want)
	if err != nil {
		t.Fatal(err)
	}
	w.Put(alice, want.Secret, "of a later version")

	size, root := w.Env.Ledger().Size(), stateRoot(t, w.Env)
	if size <= want.Entries {
		t.Fatalf("there are %d entries, as many as before", size)
	}
	w.Reopen()
	if got := w.Env.Ledger().Size(); got != size {
		t.Fatalf("after reopening there are %d entries, want %d", got, size)
	}
	if got := stateRoot(t, w.Env); got != root {
		t.Fatalf("after reopening the state's root is %s, want %s", got, root)
	}
	if value, _, err := w.Get(api, want.Secret); err != nil || value != "of a later version" {
		t.Fatalf("after reopening the value is %q (%v)", value, err)
	}
	w.Close()
}

// tryUpgrade opens the environment and compares it with what it was, entry by entry and as a whole.
func tryUpgrade(w *controltest.World, want upgradeFacts) error {
	env, err := control.Open(context.Background(), w.Config)
	if err != nil {
		return err
	}
	check := func() error {
		if got := env.Ledger().Size(); got != want.Entries {
			return fmt.Errorf("there are %d entries, want %d", got, want.Entries)
		}
		if env.Genesis() != want.Genesis {
			return fmt.Errorf("genesis is %s, want %s", env.Genesis(), want.Genesis)
		}
		var b bytes.Buffer
		if err := env.State().Snapshot(&b); err != nil {
			return err
		}
		if got := state.RootOf(b.Bytes()); got != want.Root {
			return fmt.Errorf("the state's root is %s, want %s", got, want.Root)
		}
		return decodeStored(env, want)
	}
	if err := check(); err != nil {
		return errors.Join(err, env.Close(context.Background()))
	}
	w.Env = env
	return nil
}

// decodeStored decodes every entry.
func decodeStored(env *control.Environment, want upgradeFacts) error {
	kinds := map[state.Kind]bool{}
	err := env.Ledger().Entries(context.Background(), 0, int(want.Entries), func(i uint64, e store.Entry) error {
		x, err := state.Decode(e.Body)
		if err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		kinds[x.Event.Kind()] = true
		return nil
	})
	if err != nil {
		return err
	}
	if len(kinds) < 20 {
		return fmt.Errorf("only %d types of entries: that is no history", len(kinds))
	}
	return nil
}

// handOver has an operator of then log in and a new machine join, and hands over what then was current.
func handOver(w *controltest.World, want upgradeFacts) (alice, api controltest.Actor, err error) {
	alice = w.Login("alice")
	api = w.Workload(w.Node(alice, "upgraded"), "")
	value, released, err := w.Get(api, want.Secret)
	if err == nil && (value != want.Value || released.Version != want.Version) {
		err = fmt.Errorf("version %d of %s is %q, want version %d, %q", released.Version, want.Secret, value, want.Version, want.Value)
	}
	return alice, api, err
}

// rebuild makes a data directory out of a dump, changes it, and returns a world that can open it.
func rebuild(t *testing.T, dir string, want upgradeFacts, changes ...string) *controltest.World {
	t.Helper()
	w := &controltest.World{T: t, Dir: t.TempDir(), Persons: map[string]ssh.Signer{}, Genesis: want.Genesis}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(w.Dir, "data")
	must(os.Mkdir(data, 0o700))
	dump, err := os.ReadFile(filepath.Join(dir, upgradeStore))
	must(err)
	db := filepath.Join(data, "store.db")
	must(os.WriteFile(db, nil, 0o600))
	must(script(t, db, append([]string{string(dump)}, changes...)...))

	key, err := os.ReadFile(filepath.Join(dir, upgradeRoot))
	must(err)
	must(os.WriteFile(filepath.Join(w.Dir, upgradeRoot), key, 0o600))
	person, err := os.ReadFile(filepath.Join(dir, upgradePerson))
	must(err)
	w.Persons["alice"], err = ssh.ParsePrivateKey(person)
	must(err)

	holder, err := file.Open(filepath.Join(w.Dir, upgradeRoot))
	must(err)
	src, err := seal.NewSource(nil)
	must(err)
	// The clock goes on from when the directory was stopped: years later, every deadline in it would be over.
	begun := time.Now()
	w.Config = control.Config{
		OpenStore: func(ctx context.Context) (store.Store, error) { return sqlite.Open(ctx, data) },
		Holder:    holder, Source: src, Methods: methods.All(), ServerID: "s1",
		Now: func() time.Time { return want.Time.Add(time.Minute + time.Since(begun)) },
	}
	t.Cleanup(func() {
		if w.Env != nil {
			w.Close()
		}
	})
	return w
}

// openSQL opens a database past the product. The kind of locks is a whole process's, and the product has
// chosen it.
func openSQL(path string) (*sql.DB, error) {
	if _, err := modernc.OFDLocking(true); err != nil && !errors.Is(err, modernc.ErrOFDLockingUnavailable) {
		return nil, err
	}
	db, err := sql.Open("sqlite", path)
	if err == nil {
		db.SetMaxOpenConns(1) // a script's transaction and pragmas are one connection's
	}
	return db, err
}

// script runs SQL on a database file.
func script(t *testing.T, path string, texts ...string) error {
	t.Helper()
	db, err := openSQL(path)
	if err != nil {
		return err
	}
	defer db.Close()
	for _, text := range texts {
		if _, err := db.ExecContext(t.Context(), text); err != nil {
			return err
		}
	}
	return db.Close()
}

func readFacts(t *testing.T, dir string) upgradeFacts {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, upgradeWant))
	if err != nil {
		t.Fatal(err)
	}
	var want upgradeFacts
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&want); err != nil {
		t.Fatal(err)
	}
	return want
}

func stateRoot(t *testing.T, env *control.Environment) state.Digest {
	t.Helper()
	var b bytes.Buffer
	if err := env.State().Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return state.RootOf(b.Bytes())
}

// writeUpgrade plays a history with one of everything, stops cleanly, and dumps what lies on the disk.
func writeUpgrade(t *testing.T, dir string) {
	t.Helper()
	switch _, err := os.Lstat(dir); {
	case err == nil:
		t.Logf("%s is there already: it is left as it is", dir)
		return
	case !errors.Is(err, fs.ErrNotExist):
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w, alice := foundUpgrade(t)
	cast := controltest.History(w)
	value, released, err := w.Get(cast.API, "db/c")
	must(err)
	// What a clean stop adds must be in the facts: they are taken after one.
	w.Reopen()
	facts := upgradeFacts{
		Entries: w.Env.Ledger().Size(), Root: stateRoot(t, w.Env), Genesis: w.Genesis,
		Secret: "db/c", Version: released.Version, Value: value,
	}
	w.Close()
	facts.Time = w.Now().UTC().Truncate(time.Second).Add(time.Second)

	dump, err := dumpStore(t, filepath.Join(w.Dir, "data", "store.db"))
	must(err)
	if len(dump) > upgradeMost {
		t.Fatalf("the dump has %d bytes, more than %d", len(dump), upgradeMost)
	}
	rootKey, err := os.ReadFile(w.RootKey) // under which the history has left the keys
	must(err)
	text, err := json.MarshalIndent(facts, "", "  ")
	must(err)
	block, err := ssh.MarshalPrivateKey(alice, "alice of testdata/upgrade, good for nothing else")
	must(err)
	// Under its name only when it is whole: what is there is never written again.
	making, err := os.MkdirTemp(upgradeDir, "making-")
	must(err)
	for name, data := range map[string][]byte{
		upgradeStore: dump, upgradeRoot: rootKey, upgradePerson: pem.EncodeToMemory(block), upgradeWant: append(text, '\n'),
	} {
		must(os.WriteFile(filepath.Join(making, name), data, 0o644))
	}
	must(os.Chmod(making, 0o755))
	must(os.Rename(making, dir))
}

// foundUpgrade founds an environment for the history, as controltest.New does, but with a key of
// alice's that can be written down. The others' are forgotten.
func foundUpgrade(t *testing.T) (*controltest.World, ed25519.PrivateKey) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	o := controltest.HistoryOptions
	w := &controltest.World{T: t, Dir: t.TempDir(), Persons: map[string]ssh.Signer{}}
	for _, p := range o.Persons {
		w.AddPerson(p)
	}
	src, err := seal.NewSource(nil)
	must(err)
	alice, err := seal.GenerateEd25519(src)
	must(err)
	w.Persons["alice"], err = ssh.NewSignerFromKey(alice)
	must(err)
	w.Files = w.Bundle(o)
	holder, err := file.Create(filepath.Join(w.Dir, upgradeRoot), src)
	must(err)
	data := filepath.Join(w.Dir, "data")
	st, err := sqlite.Create(t.Context(), data)
	must(err)
	w.Genesis, err = control.Found(t.Context(), control.Founding{
		Files: w.Files, Holder: holder, Source: src, Store: st, Methods: o.Methods, Now: w.Now,
		Sign: func(_ context.Context, namespace, text string) (string, string, error) {
			return "alice", w.Sign("alice", namespace, text), nil
		},
	})
	must(err)
	must(st.Close())
	w.Config = control.Config{
		OpenStore: func(ctx context.Context) (store.Store, error) { return sqlite.Open(ctx, data) },
		Holder:    holder, Source: src, Methods: o.Methods, Now: w.Now, ServerID: "s1",
	}
	w.Open()
	return w, alice
}

// dumpStore writes a database as SQL: the same text for the same content. Nothing of the product reads it,
// so that a defect in its reading can't hide in the dump.
func dumpStore(t *testing.T, path string) ([]byte, error) {
	db, err := openSQL(path)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	var out bytes.Buffer
	out.WriteString("-- Written by test/e2e/upgrade_test.go. Never edit: it stands for what is on others' disks.\n")
	for _, name := range []string{"page_size", "application_id", "user_version"} {
		var v int64
		if err := db.QueryRowContext(t.Context(), "PRAGMA "+name).Scan(&v); err != nil {
			return nil, err
		}
		fmt.Fprintf(&out, "PRAGMA %s=%d;\n", name, v)
	}
	out.WriteString("PRAGMA journal_mode=WAL;\nBEGIN;\n")
	rows, err := db.QueryContext(t.Context(), "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type DESC, name")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var tables []string
	for rows.Next() {
		var kind, name, text string
		if err := rows.Scan(&kind, &name, &text); err != nil {
			return nil, err
		}
		fmt.Fprintf(&out, "%s;\n", text)
		if kind == "table" {
			tables = append(tables, name)
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, err
	}
	for _, name := range tables {
		if err := dumpTable(t, db, &out, name); err != nil {
			return nil, fmt.Errorf("table %s: %w", name, err)
		}
	}
	out.WriteString("COMMIT;\n")
	return out.Bytes(), nil
}

// dumpTable writes a table's rows in the order of its first column, which is the key in all of ours.
func dumpTable(t *testing.T, db *sql.DB, out *bytes.Buffer, name string) error {
	rows, err := db.QueryContext(t.Context(), fmt.Sprintf("SELECT * FROM %q ORDER BY 1", name))
	if err != nil {
		return err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	values, into := make([]any, len(columns)), make([]any, len(columns))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		literals := make([]string, len(values))
		for i, v := range values {
			switch v := v.(type) {
			case nil:
				literals[i] = "NULL"
			case int64:
				literals[i] = fmt.Sprint(v)
			case []byte:
				literals[i] = fmt.Sprintf("X'%x'", v)
				if readable(v) { // half as long, and can be reviewed
					literals[i] = "CAST(" + quoteSQL(string(v)) + " AS BLOB)"
				}
			case string:
				literals[i] = quoteSQL(v)
			default:
				return fmt.Errorf("column %s has a %T", columns[i], v)
			}
		}
		fmt.Fprintf(out, "INSERT INTO %s VALUES(%s);\n", name, strings.Join(literals, ","))
	}
	return rows.Err()
}

func quoteSQL(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// readable says whether bytes are text that any editor leaves as it is.
func readable(b []byte) bool {
	return len(b) > 0 && !bytes.ContainsFunc(b, func(r rune) bool { return r != '\n' && (r < ' ' || r > '~') })
}
