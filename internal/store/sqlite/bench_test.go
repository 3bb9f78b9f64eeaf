package sqlite

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/bailment/bailment/internal/store"
)

// BenchmarkAppend measures batches of entries of 600 bytes with a checkpoint, on the disk of
// TMPDIR, including the checkpoints of the write-ahead log.
func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { benchAppend(b, n, 0) })
	}
	b.Run("64+64sealed", func(b *testing.B) { benchAppend(b, 64, 1024) })
}

func benchAppend(b *testing.B, n, sealed int) {
	ctx := context.Background()
	s := mustCreate(b, filepath.Join(b.TempDir(), "s"))
	must(b, s.Append(ctx, fill(s.head, 1, 600)))
	batch := fill(s.head, n, 600-store.SaltSize)
	batch.Checkpoint = make([]byte, 300)
	for range batch.Entries {
		if sealed > 0 {
			batch.Seal = append(batch.Seal, store.Sealed{Ciphertext: make([]byte, sealed), WrappedKey: make([]byte, 60), KEK: 1})
		}
	}
	all := make([]byte, 32*2*(n+40))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		batch.First, batch.HashFirst = s.head.Size, s.head.Hashes
		batch.Hashes = all[:32*(uint64(tlog.StoredHashCount(int64(batch.First)+int64(n)))-batch.HashFirst)]
		for i := range batch.Seal {
			batch.Seal[i].ID = batch.First + uint64(i)
		}
		if err := s.Append(ctx, batch); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
	b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "records/s")
	must(b, s.Close())
}

// BenchmarkSealed is a miss of the ciphertext cache: one row by primary key.
func BenchmarkSealed(b *testing.B) {
	ctx := context.Background()
	s := mustCreate(b, filepath.Join(b.TempDir(), "s"))
	const total = 20000
	must(b, s.Append(ctx, fill(s.head, 1, 10)))
	for s.head.Size < total {
		batch := fill(s.head, 1000, 100)
		for i := range batch.Entries {
			batch.Seal = append(batch.Seal, store.Sealed{ID: batch.First + uint64(i), Ciphertext: make([]byte, 1024), WrappedKey: make([]byte, 60)})
		}
		must(b, s.Append(ctx, batch))
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if _, err := s.Sealed(ctx, 1+uint64(i*7919)%total); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen is the start: with an empty log after a clean end.
func BenchmarkOpen(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "s")
	s := mustCreate(b, dir)
	for range 100 {
		appendN(b, s, 1000, 600)
	}
	must(b, s.Close())
	b.ResetTimer()
	for range b.N {
		s, err := Open(context.Background(), dir)
		must(b, err)
		must(b, s.Close())
	}
}

// BenchmarkInsertWays keeps the comparison by which insertEntries was chosen, with syncs off, so
// that it shows the processor's share. A row per batch would be cheaper still (0.6 of it), but an
// entry of its own can be read, disclosed and redacted by itself.
func BenchmarkInsertWays(b *testing.B) {
	const n, size = 64, 616
	one, packed := make([]byte, size), make([]byte, n*size)
	offsets := "[0"
	for i := 1; i <= n; i++ {
		offsets += fmt.Sprintf(",%d", i*size)
	}
	offsets += "]"
	ways := map[string]func(c *conn, at int64) error{
		"a statement per row": func(c *conn, at int64) error {
			for i := range int64(n) {
				if err := c.do(`INSERT INTO entries (idx, data) VALUES (?, ?)`, at+i, one); err != nil {
					return err
				}
			}
			return nil
		},
		"many rows (chosen)": func(c *conn, at int64) error {
			s, err := c.prepare(insertText(n))
			if err != nil {
				return err
			}
			s.reset()
			s.bind(at)
			for range n {
				s.bind(one)
			}
			return s.run()
		},
		"packed, recursive": func(c *conn, at int64) error {
			return c.do(fmt.Sprintf(`WITH RECURSIVE r(i) AS (VALUES(0) UNION ALL SELECT i+1 FROM r WHERE i+1 < %d)
				INSERT INTO entries (idx, data) SELECT ?1+i, substr(?2, i*%d+1, %d) FROM r`, n, size, size), at, packed)
		},
		"packed, json_each": func(c *conn, at int64) error {
			return c.do(`INSERT INTO entries (idx, data) SELECT ?1+key, substr(?2, value+1, json_extract(?3, '$['||(key+1)||']')-value)
				FROM json_each(?3) WHERE key < 64`, at, packed, offsets)
		},
	}
	for name, way := range ways {
		b.Run(name, func(b *testing.B) {
			s := mustCreate(b, filepath.Join(b.TempDir(), "s"))
			must(b, s.c.script("PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=4000"))
			b.ReportAllocs()
			at := int64(0)
			for b.Loop() {
				must(b, s.c.do("BEGIN IMMEDIATE"))
				must(b, way(s.c, at))
				must(b, s.c.do("COMMIT"))
				at += n
			}
		})
	}
}
