package sqlite

import (
	"context"
	"database/sql/driver"
	"strconv"
	"strings"

	"github.com/bailment/bailment/internal/store"
)

// insertSteps: entries are inserted by statements of 1, 2, 4 … 64 rows. Measured (README.md)
// against a statement per row, json_each and a recursive query over one packed blob: the cheapest
// that keeps a row per entry.
const insertSteps = 7

// keepArena is the largest buffer kept between batches.
const keepArena = 1 << 20

// Append implements store.Store.
func (s *Store) Append(ctx context.Context, b *store.Batch) error {
	if err := s.acquire(ctx); err != nil {
		return err
	}
	defer s.release()
	if s.readOnly {
		return store.ErrReadOnly
	}
	if err := b.Check(s.head); err != nil {
		return err
	}
	if err := s.write(func() error { return s.insert(b) }); err != nil {
		return err
	}
	s.head = store.Head{
		Size:   b.First + uint64(len(b.Entries)),
		Root:   b.Root,
		Time:   b.Time.UTC(),
		Hashes: b.HashFirst + uint64(len(b.Hashes)/len(store.Digest{})),
	}
	s.account(b)
	return nil
}

// insert runs a batch's statements: for a plain batch one per 64 entries, one for the batch row,
// one for the checkpoint.
func (s *Store) insert(b *store.Batch) error {
	if err := s.insertEntries(b); err != nil {
		return err
	}
	// Sealed versions before what may change them.
	for i := range b.Seal {
		v := &b.Seal[i]
		if err := s.c.do(`INSERT INTO sealed (id, kek, wrapped, ciphertext) VALUES (?, ?, ?, ?)`,
			int64(v.ID), int64(v.KEK), v.WrappedKey, v.Ciphertext); err != nil {
			return err
		}
	}
	for i := range b.Rewraps {
		r := &b.Rewraps[i]
		if err := s.c.do(`UPDATE sealed SET kek = ?, wrapped = ? WHERE id = ?`, int64(r.KEK), r.WrappedKey, int64(r.ID)); err != nil {
			return err
		}
	}
	for _, id := range b.Shred {
		if err := s.c.do(`DELETE FROM sealed WHERE id = ?`, int64(id)); err != nil {
			return err
		}
	}
	for i := range b.Blobs {
		data := b.Blobs[i].Data
		if data == nil {
			data = []byte{} // SQL has NULL for nil
		}
		// The digest stands for the data, so an existing row is the same row.
		if err := s.c.do(`INSERT INTO blobs (digest, data) VALUES (?, ?) ON CONFLICT DO NOTHING`, b.Blobs[i].Digest[:], data); err != nil {
			return err
		}
	}
	for i := range b.Keys {
		if err := s.c.do(`INSERT INTO keys (name, data) VALUES (?, ?) ON CONFLICT DO UPDATE SET data = excluded.data`, b.Keys[i].Name, b.Keys[i].Data); err != nil {
			return err
		}
	}
	if b.Wipe {
		for _, text := range []string{`DELETE FROM sealed`, `DELETE FROM keys`} {
			if err := s.c.do(text); err != nil {
				return err
			}
		}
	}
	for _, index := range b.Redact {
		if err := s.redact(index); err != nil {
			return err
		}
	}
	if err := s.putCheckpoint(b.Checkpoint); err != nil {
		return err
	}
	return s.c.do(`INSERT INTO batches (hash, first, count, time, root, hashes) VALUES (?, ?, ?, ?, ?, ?)`,
		int64(b.HashFirst), int64(b.First), int64(len(b.Entries)), b.Time.UnixMilli(), b.Root[:], b.Hashes)
}

// insertEntries inserts runs of whole entries by the widest statements that fit. An entry that
// comes redacted (when a ledger is copied) goes by itself.
func (s *Store) insertEntries(b *store.Batch) error {
	s.arena = s.arena[:0]
	for at := 0; at < len(b.Entries); {
		if c := b.Entries[at].Commitment; len(c) > 0 {
			if err := s.c.do(`INSERT INTO entries (idx, commitment) VALUES (?, ?)`, int64(b.First)+int64(at), c); err != nil {
				return err
			}
			at++
			continue
		}
		run := at + 1
		for run < len(b.Entries) && run-at < 1<<(insertSteps-1) && len(b.Entries[run].Commitment) == 0 {
			run++
		}
		step := insertSteps - 1
		for 1<<step > run-at {
			step--
		}
		if err := s.insertRun(b, at, step); err != nil {
			return err
		}
		at += 1 << step
	}
	if cap(s.arena) > keepArena {
		s.arena = nil
	}
	return nil
}

// insertRun inserts 1<<step entries by one statement.
func (s *Store) insertRun(b *store.Batch, at, step int) error {
	if s.inserts[step] == nil {
		st, err := s.c.prepare(insertText(1 << step))
		if err != nil {
			return err
		}
		s.inserts[step] = st
	}
	st := s.inserts[step]
	st.reset()
	st.bind(int64(b.First) + int64(at))
	for _, e := range b.Entries[at : at+1<<step] {
		from := len(s.arena)
		s.arena = append(append(s.arena, e.Salt...), e.Body...)
		st.bind(blob(s.arena[from:]))
	}
	return st.run()
}

func insertText(rows int) string {
	var t strings.Builder
	t.WriteString(`INSERT INTO entries (idx, data) VALUES (?1, ?)`)
	for i := 1; i < rows; i++ {
		t.WriteString(`, (?1 + `)
		t.WriteString(strconv.Itoa(i))
		t.WriteString(`, ?)`)
	}
	return t.String()
}

// redact replaces an entry's salt and body by their commitment, computed from what is stored.
func (s *Store) redact(index uint64) error {
	var data, commitment []byte
	found, err := s.c.one([]any{&data, &commitment}, `SELECT data, commitment FROM entries WHERE idx = ?`, int64(index))
	if err != nil {
		return err
	}
	if !found || len(data) == 0 && len(commitment) != len(store.Digest{}) || len(data) > 0 && len(data) <= store.SaltSize {
		return corrupt("entry %d is not there or malformed", index)
	}
	if len(data) == 0 {
		return nil // redacted before
	}
	c := store.Commitment(data[:store.SaltSize], data[store.SaltSize:])
	return s.c.do(`UPDATE entries SET data = NULL, commitment = ? WHERE idx = ?`, c[:], int64(index))
}

func (s *Store) putCheckpoint(signed []byte) error {
	return s.c.do(`INSERT INTO checkpoint (one, signed) VALUES (1, ?) ON CONFLICT DO UPDATE SET signed = excluded.signed`, driver.Value(signed))
}

// PutCheckpoint implements store.Store.
func (s *Store) PutCheckpoint(ctx context.Context, signed []byte) error {
	if err := s.acquire(ctx); err != nil {
		return err
	}
	defer s.release()
	if s.readOnly {
		return store.ErrReadOnly
	}
	if len(signed) == 0 || len(signed) > store.MaxCheckpoint {
		return store.ErrInvalid
	}
	if err := s.write(func() error { return s.putCheckpoint(signed) }); err != nil {
		return err
	}
	s.accountBytes(1, len(signed))
	return nil
}
