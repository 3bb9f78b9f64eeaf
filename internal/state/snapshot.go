package state

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"sync"
)

// snapshotVersion is that of the format below. A snapshot of another version is not read: the
// state is replayed instead.
const snapshotVersion = 1

// head is the part of a snapshot that is not a table.
type head struct {
	Format     int       `json:"format"`
	Env        Env       `json:"env"`
	Next       uint64    `json:"next"`
	Time       Millis    `json:"time"`
	Generation uint64    `json:"generation"`
	Bundle     Digest    `json:"bundle"`
	BundleAt   uint64    `json:"bundle_at"`
	Protocol   int       `json:"protocol"`
	Control    uint64    `json:"control"`
	Root       StateRoot `json:"root"`
}

// Snapshot writes the state in its canonical form: a line of JSON for the head, then for each
// table its name, its number of rows, and a line a row in order of keys. Its SHA-256 is the state root.
func (s *State) Snapshot(out io.Writer) error {
	w := bufio.NewWriterSize(out, 1<<16)
	enc := json.NewEncoder(w)
	h := head{
		Format: snapshotVersion, Env: s.Env, Next: s.Next, Time: s.Time, Generation: s.Generation,
		Bundle: s.Bundle, BundleAt: s.BundleAt, Protocol: s.Protocol, Control: s.Control, Root: s.Root,
	}
	if err := enc.Encode(h); err != nil {
		return fmt.Errorf("writing the state's head: %w", err)
	}
	for _, t := range s.tables() {
		if err := t.write(w, enc); err != nil {
			return fmt.Errorf("writing the state's table %s: %w", t.name, err)
		}
	}
	return w.Flush()
}

// RootOf is the SHA-256 of a snapshot's bytes.
func RootOf(snapshot []byte) Digest { return sha256.Sum256(snapshot) }

// Restore reads a snapshot strictly.
func Restore(data []byte) (*State, error) {
	s := New()
	r := &lines{rest: data}
	var h head
	if err := r.next(&h); err != nil {
		return nil, fmt.Errorf("reading a state snapshot: %w", err)
	}
	if h.Format != snapshotVersion {
		return nil, fmt.Errorf("state snapshot has format %d, not %d", h.Format, snapshotVersion)
	}
	s.Env, s.Next, s.Time, s.Generation, s.Bundle = h.Env, h.Next, h.Time, h.Generation, h.Bundle
	s.BundleAt, s.Protocol, s.Control, s.Root = h.BundleAt, h.Protocol, h.Control, h.Root
	for _, t := range s.tables() {
		if err := t.read(r); err != nil {
			return nil, fmt.Errorf("reading the state's table %s: %w", t.name, err)
		}
	}
	if len(r.rest) > 0 {
		return nil, fmt.Errorf("trailing data after a state snapshot")
	}
	if err := s.checkShape(); err != nil {
		return nil, fmt.Errorf("reading a state snapshot: %w", err)
	}
	return s, nil
}

// lines are the lines of a snapshot that are still to be read.
type lines struct{ rest []byte }

func (l *lines) take() ([]byte, error) {
	n := bytes.IndexByte(l.rest, '\n')
	if n < 0 {
		return nil, io.ErrUnexpectedEOF
	}
	line := l.rest[:n]
	l.rest = l.rest[n+1:]
	return line, nil
}

func (l *lines) next(v any) error {
	line, err := l.take()
	if err != nil {
		return err
	}
	return strict(line, v)
}

// checkShape refuses what the reducers would stumble over: a snapshot is applied to before it is confirmed.
func (s *State) checkShape() error {
	var err error
	s.Secrets.All(func(path string, sec *Secret) bool {
		for _, v := range sec.Versions {
			if v == nil {
				err = fmt.Errorf("secret %q has a version that is none", path)
			}
		}
		return err == nil
	})
	s.queue.All(func(key string, _ struct{}) bool {
		const head = 9
		switch {
		case len(key) < head:
			err = fmt.Errorf("a row of the queue is too short")
		case queueKind(key[8]) == qSession || queueKind(key[8]) == qLease || queueKind(key[8]) == qChange:
			if len(key) != head+8 {
				err = fmt.Errorf("a row of the queue names no index")
			}
		}
		return err == nil
	})
	if err != nil {
		return err
	}
	return s.checkKeys()
}

type tableIO struct {
	name  string
	write func(*bufio.Writer, *json.Encoder) error
	read  func(*lines) error
}

// tables lists every table in the order of the snapshot.
func (s *State) tables() []tableIO {
	return []tableIO{
		tableOf("secrets", s.Secrets), tableOf("leases", s.Leases), tableOf("lease_of", s.LeaseOf),
		tableOf("sessions", s.Sessions), tableOf("identities", s.Identities), tableOf("tokens", s.Tokens),
		tableOf("changes", s.Changes), tableOf("cutoffs", s.Cutoffs), tableOf("holds", s.Holds),
		tableOf("idem", s.Idem), tableOf("idem_count", s.IdemCount), tableOf("once", s.Once),
		tableOf("seen_keys", s.SeenKeys), tableOf("denials", s.Denials), tableOf("keys", s.Keys),
		tableOf("manifests", s.Manifests), tableOf("queue", s.queue),
	}
}

// row is a line of a table. A text key is hex, because some keys are bytes.
type row[V any] struct {
	Key   string `json:"k,omitempty"`
	Index uint64 `json:"i,omitempty"`
	Value V      `json:"v"`
}

type tableHead struct {
	Table string `json:"table"`
	Rows  int    `json:"rows"`
}

func tableOf[K cmp.Ordered, V any](name string, t Table[K, V]) tableIO {
	return tableIO{
		name: name,
		write: func(w *bufio.Writer, enc *json.Encoder) error {
			if err := enc.Encode(tableHead{name, t.Len()}); err != nil {
				return err
			}
			var err error
			t.All(func(k K, v V) bool {
				r := row[V]{Value: v}
				switch k := any(k).(type) {
				case string:
					r.Key = hex.EncodeToString([]byte(k))
				case uint64:
					r.Index = k
				}
				err = enc.Encode(r)
				return err == nil
			})
			return err
		},
		read: func(r *lines) error {
			var h tableHead
			if err := r.next(&h); err != nil {
				return err
			}
			if h.Table != name {
				return fmt.Errorf("found table %q", h.Table)
			}
			for left := h.Rows; left > 0; left -= readAhead {
				if err := readRows(r, min(left, readAhead), t); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// readAhead is how many rows are read before they are set: enough to be worth all cores, since a
// start waits for it, and a few MB.
const readAhead = 8192

// readRows decodes rows on all cores and sets them in their order.
func readRows[K cmp.Ordered, V any](r *lines, n int, t Table[K, V]) error {
	texts, keys, values := make([][]byte, 0, min(n, len(r.rest))), make([]K, n), make([]V, n)
	for range n {
		line, err := r.take()
		if err != nil {
			return err
		}
		texts = append(texts, line)
	}
	workers := min(runtime.GOMAXPROCS(0), 1+n/256)
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w * n / workers; i < (w+1)*n/workers && errs[w] == nil; i++ {
				errs[w] = readRow(texts[i], &keys[i], &values[i])
			}
		})
	}
	wg.Wait()
	if err := cmp.Or(errs...); err != nil {
		return err
	}
	for i := range keys {
		t.m.Load(keys[i], values[i]) // quick for ascending keys, and right for others
	}
	return nil
}

func readRow[K cmp.Ordered, V any](line []byte, key *K, value *V) error {
	var got row[V]
	if err := strict(line, &got); err != nil {
		return err
	}
	if v := reflect.ValueOf(got.Value); v.Kind() == reflect.Pointer && v.IsNil() {
		return fmt.Errorf("a row has no value")
	}
	*value = got.Value
	switch p := any(key).(type) {
	case *string:
		b, err := hex.DecodeString(got.Key)
		if err != nil {
			return err
		}
		*p = string(b)
	case *uint64:
		*p = got.Index
	}
	return nil
}
