package e2e

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/test/site"
	"github.com/bailment/bailment/test/site/sitetest"
)

// kept is what an auditor has from outside of a data directory.
type kept struct {
	bootstrap     string
	early, newest string // files with signed checkpoints
	earlySize     int64
}

// traffic runs a server through some of everything and stops it.
func traffic(t *testing.T, s *sitetest.Site) kept {
	t.Helper()
	s.Start()
	s.Connect()
	admin := s.Dial(s.Login())
	reader := s.Dial(s.Workload(admin, "web"))
	dir := t.TempDir()
	checkpoint := func(name string) (string, int64) {
		cp, err := admin.Ledger.GetCheckpoint(t.Context(), &bailmentv1.GetCheckpointRequest{})
		s.Check(err)
		path := filepath.Join(dir, name)
		s.Check(os.WriteFile(path, []byte(cp.Checkpoint), 0o600))
		size, err := strconv.ParseInt(strings.Split(cp.Checkpoint, "\n")[1], 10, 64)
		s.Check(err)
		return path, size
	}
	var k kept
	for i := range 60 {
		secret := fmt.Sprintf("app/s%d", i%4)
		_, err := admin.Secrets.Put(t.Context(), &bailmentv1.PutRequest{Secret: secret, Value: []byte(sitetest.Random())})
		s.Check(err)
		_, err = reader.Secrets.Get(t.Context(), &bailmentv1.GetRequest{Secret: secret})
		s.Check(err)
		if i == 30 {
			k.early, k.earlySize = checkpoint("early")
		}
	}
	k.newest, _ = checkpoint("newest")
	s.Stop()
	var err error
	k.bootstrap, err = s.Bootstrap()
	s.Check(err)
	return k
}

// damaged is a copy of a store after somebody was at it with an editor for databases.
func damaged(t *testing.T, dir string, change func(db *sql.DB)) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	copyTree(t, dir, to)
	db, err := sql.Open("sqlite", filepath.Join(to, "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	change(db)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return to
}

func execOn(t *testing.T, db *sql.DB, rows int64, query string, args ...any) {
	t.Helper()
	r, err := db.ExecContext(context.Background(), query, args...)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := r.RowsAffected(); err != nil || n == 0 || rows > 0 && n != rows {
		t.Fatalf("%s changed %d rows (%v)", query, n, err)
	}
}

var named = regexp.MustCompile(`error: entry (\d+): `)

// TestTamper alters copies of a real data directory, as somebody with write access to it would. The real
// binary, without a server, finds each: it says so by its exit code and names the entry.
func TestTamper(t *testing.T) {
	s := newSite(t, site.Options{Name: "tamper.example"})
	k := traffic(t, s)
	verify := func(dir string, args ...string) command {
		return cli(t, s.Site, t.TempDir(), "", append([]string{"ledger", "verify", "--dir", dir}, args...)...)
	}
	pinned := []string{"--bootstrap", k.bootstrap, "--checkpoint", k.early, "--checkpoint", k.newest}
	if out := verify(s.Dir(), pinned...); out.exit != 0 || !strings.Contains(out.stdout, "consistent and authenticated") {
		t.Fatalf("the untouched directory: %+v", out)
	}
	if out := verify(damaged(t, s.Dir(), func(*sql.DB) {}), pinned...); out.exit != 0 {
		t.Fatalf("an untouched copy: %+v", out)
	}
	caught := func(t *testing.T, out command, reason string, exit int) {
		t.Helper()
		if out.exit != exit || !strings.Contains(out.stderr, "reason: "+reason) || !strings.Contains(out.stdout, "NOT consistent") {
			t.Errorf("not caught as %s with exit code %d: %+v", reason, exit, out)
		}
	}
	t.Run("a byte of an entry", func(t *testing.T) { flipEntries(t, s.Dir(), verify, caught) })
	t.Run("a byte of the hashes", func(t *testing.T) { flipHashes(t, s.Dir(), verify, caught) })
	t.Run("the newest entry is gone", func(t *testing.T) {
		dir := damaged(t, s.Dir(), func(db *sql.DB) {
			execOn(t, db, 1, `DELETE FROM entries WHERE idx = (SELECT max(idx) FROM entries)`)
		})
		if out := verify(dir, pinned...); out.exit != 3 || !strings.Contains(out.stderr, "reason: tampered") {
			t.Errorf("not caught: %+v", out)
		}
	})
	// Cut off at the end of a batch, with the checkpoint that was right then, the directory is one that
	// truly was. Only who kept a newer checkpoint elsewhere can tell.
	cut := damaged(t, s.Dir(), func(db *sql.DB) {
		early, err := os.ReadFile(k.early)
		s.Check(err)
		execOn(t, db, 0, `DELETE FROM entries WHERE idx >= ?`, k.earlySize)
		execOn(t, db, 0, `DELETE FROM batches WHERE first >= ?`, k.earlySize)
		execOn(t, db, 1, `UPDATE checkpoint SET signed = ?`, early)
		_, err = db.Exec(`DELETE FROM snapshots WHERE idx >= ?`, k.earlySize)
		s.Check(err)
	})
	t.Run("all since a checkpoint is gone", func(t *testing.T) {
		if out := verify(cut, "--bootstrap", k.bootstrap, "--checkpoint", k.early); out.exit != 0 {
			t.Fatalf("the past is not what it was: %+v", out)
		}
		caught(t, verify(cut, pinned...), "tampered", 3)
	})
	t.Run("all rewritten and signed with another key", func(t *testing.T) {
		other := newSite(t, site.Options{Name: "tamper.example"})
		own := traffic(t, other)
		if out := verify(other.Dir(), "--bootstrap", own.bootstrap); out.exit != 0 {
			t.Fatalf("the other directory by itself: %+v", out)
		}
		out := cli(t, s.Site, t.TempDir(), "", "ledger", "verify", "--dir", other.Dir(), "--bootstrap", k.bootstrap)
		if out.exit != 2 || !strings.Contains(out.stderr, "reason: not-authentic") {
			t.Errorf("not caught: %+v", out)
		}
		if out := verify(other.Dir(), "--bootstrap", own.bootstrap, "--checkpoint", k.newest); out.exit == 0 {
			t.Errorf("not caught by a checkpoint: %+v", out)
		}
	})
}

// flipEntries changes one byte of each of many entries.
func flipEntries(t *testing.T, dir string, verify func(string, ...string) command, caught func(*testing.T, command, string, int)) {
	var size int
	damaged(t, dir, func(db *sql.DB) {
		if err := db.QueryRow(`SELECT count(*) FROM entries`).Scan(&size); err != nil {
			t.Fatal(err)
		}
	})
	for _, index := range append([]int{0, 1, size - 1}, mrand.Perm(size)[:12]...) {
		bad := damaged(t, dir, func(db *sql.DB) { flip(t, db, "entries", "data", "idx", int64(index)) })
		out := verify(bad)
		caught(t, out, "tampered", 3)
		if m := named.FindStringSubmatch(out.stderr); m == nil || m[1] != strconv.Itoa(index) {
			t.Errorf("entry %d was changed; the answer is %s", index, out.stderr)
		}
	}
}

// flipHashes changes one byte of the hashes, or of the root, of each of many batches.
func flipHashes(t *testing.T, dir string, verify func(string, ...string) command, caught func(*testing.T, command, string, int)) {
	type batch struct{ id, first, count int64 }
	var all []batch
	damaged(t, dir, func(db *sql.DB) {
		rows, err := db.Query(`SELECT hash, first, count FROM batches`)
		for err == nil && rows.Next() {
			var b batch
			err = rows.Scan(&b.id, &b.first, &b.count)
			all = append(all, b)
		}
		if err != nil || rows.Err() != nil {
			t.Fatal(err, rows.Err())
		}
	})
	newest := slices.MaxFunc(all, func(a, b batch) int { return cmp.Compare(a.first, b.first) })
	out := verify(damaged(t, dir, func(db *sql.DB) { flip(t, db, "batches", "root", "hash", newest.id) }))
	caught(t, out, "tampered", 3)
	for _, i := range mrand.Perm(len(all))[:min(16, len(all))] {
		b := all[i]
		out := verify(damaged(t, dir, func(db *sql.DB) { flip(t, db, "batches", "root", "hash", b.id) }))
		caught(t, out, "tampered", 3)
		out = verify(damaged(t, dir, func(db *sql.DB) { flip(t, db, "batches", "hashes", "hash", b.id) }))
		caught(t, out, "tampered", 3)
		m := named.FindStringSubmatch(out.stderr)
		if m == nil {
			t.Errorf("hashes of the batch at %d: no entry is named: %s", b.first, out.stderr)
		} else if index, err := strconv.ParseInt(m[1], 10, 64); err != nil || index < b.first || index >= b.first+b.count {
			t.Errorf("hashes of the batch at %d of %d entries: named is entry %s", b.first, b.count, m[1])
		}
	}
}

// flip changes one bit of a stored blob.
func flip(t *testing.T, db *sql.DB, table, column, key string, id int64) {
	t.Helper()
	var data []byte
	if err := db.QueryRow(`SELECT `+column+` FROM `+table+` WHERE `+key+` = ?`, id).Scan(&data); err != nil {
		t.Fatal(err)
	}
	at := mrand.IntN(len(data))
	t.Logf("%s.%s %d: bit of byte %d of %d", table, column, id, at, len(data))
	data[at] ^= 1 << mrand.IntN(8)
	execOn(t, db, 1, `UPDATE `+table+` SET `+column+` = ? WHERE `+key+` = ?`, data, id)
}
