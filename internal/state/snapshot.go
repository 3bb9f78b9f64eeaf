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

	"github.com/klauspost/compress/zstd"
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
	// ServesSince came later: a state that has none is written as ever.
	ServesSince Millis        `json:"serves_since,omitempty"`
	Quarter     *GlassQuarter `json:"quarter,omitempty"`
	Ended       uint64        `json:"ended,omitempty"` // so did this
	Custody     *Custody      `json:"custody,omitempty"`
}

// Snapshot writes the state in its canonical form: a line of JSON for the head, then for each
// table its name, its number of rows, and a line a row in order of keys. Its SHA-256 is the state root.
func (s *State) Snapshot(out io.Writer) error {
	w := bufio.NewWriterSize(out, 1<<16)
	enc := json.NewEncoder(w)
	h := head{
		Format: snapshotVersion, Env: s.Env, Next: s.Next, Time: s.Time, Generation: s.Generation,
		Bundle: s.Bundle, BundleAt: s.BundleAt, Protocol: s.Protocol, Control: s.Control, Root: s.Root, ServesSince: s.ServesSince, Ended: s.Ended,
	}
	if s.quarter != (GlassQuarter{}) {
		h.Quarter = &s.quarter
	}
	if s.Custody != (Custody{}) {
		h.Custody = &s.Custody
	}
	if err := enc.Encode(h); err != nil {
		return fmt.Errorf("writing the state's head: %w", err)
	}
	for _, t := range s.tables() {
		if err := t.write(w, enc); err != nil {
			return fmt.Errorf("writing the state's table %s: %w", t.name, err)
		}
	}
	for _, t := range s.laterTables() {
		if t.rows == 0 {
			continue
		}
		if err := t.write(w, enc); err != nil {
			return fmt.Errorf("writing the state's table %s: %w", t.name, err)
		}
	}
	return w.Flush()
}

// Pack writes a snapshot as it is stored, compressed (zstd, RFC 8878), since a million leases are a gigabyte of JSON; and gives its
// state root. It needs memory for the compressed form only.
func (s *State) Pack() ([]byte, Digest, error) {
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(packWindow))
	if err != nil {
		return nil, Digest{}, fmt.Errorf("packing the state: %w", err)
	}
	root := sha256.New()
	if err := s.Snapshot(io.MultiWriter(root, z)); err != nil {
		return nil, Digest{}, err
	}
	if err := z.Close(); err != nil {
		return nil, Digest{}, fmt.Errorf("packing the state: %w", err)
	}
	return b.Bytes(), Digest(root.Sum(nil)), nil
}

const (
	packWindow = 1 << 20
	maxLine    = 64 << 20 // bytes of a row: a secret with all its versions is far below
)

// unpack reads what Pack or Snapshot wrote.
func unpack(data []byte) (io.Reader, func(), error) {
	if len(data) > 0 && data[0] == '{' {
		return bytes.NewReader(data), func() {}, nil
	}
	z, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(packWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, nil, fmt.Errorf("unpacking a state snapshot: %w", err)
	}
	return z, z.Close, nil
}

// RootOf is the state root of what Snapshot wrote: the SHA-256 of its bytes.
func RootOf(snapshot []byte) Digest { return sha256.Sum256(snapshot) }

// PackedRoot is the state root of a stored snapshot, packed or not.
func PackedRoot(snapshot []byte) (Digest, error) {
	r, done, err := unpack(snapshot)
	if err != nil {
		return Digest{}, err
	}
	defer done()
	root := sha256.New()
	if _, err := io.Copy(root, r); err != nil {
		return Digest{}, fmt.Errorf("unpacking a state snapshot: %w", err)
	}
	return Digest(root.Sum(nil)), nil
}

// Restore reads a snapshot strictly, packed or not.
func Restore(data []byte) (*State, error) {
	plain, done, err := unpack(data)
	if err != nil {
		return nil, err
	}
	defer done()
	s := New()
	r := &lines{in: bufio.NewReaderSize(plain, 1<<18)}
	var h head
	if err := r.next(&h); err != nil {
		return nil, fmt.Errorf("reading a state snapshot: %w", err)
	}
	if h.Format != snapshotVersion {
		return nil, fmt.Errorf("state snapshot has format %d, not %d", h.Format, snapshotVersion)
	}
	if err := known(h.Protocol); err != nil {
		return nil, fmt.Errorf("reading a state snapshot: %w", err)
	}
	s.Env, s.Next, s.Time, s.Generation, s.Bundle = h.Env, h.Next, h.Time, h.Generation, h.Bundle
	s.BundleAt, s.Protocol, s.Control, s.Root = h.BundleAt, h.Protocol, h.Control, h.Root
	s.ServesSince, s.Ended = h.ServesSince, h.Ended
	if h.Quarter != nil {
		s.quarter = *h.Quarter
	}
	if h.Custody != nil {
		s.Custody = *h.Custody
	}
	for _, t := range s.tables() {
		if err := t.read(r, 0); err != nil {
			return nil, fmt.Errorf("reading the state's table %s: %w", t.name, err)
		}
	}
	for _, t := range s.laterTables() {
		if err := t.readIfThere(r); err != nil {
			return nil, fmt.Errorf("reading the state's table %s: %w", t.name, err)
		}
	}
	if _, err := r.in.ReadByte(); err != io.EOF {
		return nil, fmt.Errorf("trailing data after a state snapshot")
	}
	if err := s.checkShape(); err != nil {
		return nil, fmt.Errorf("reading a state snapshot: %w", err)
	}
	return s, nil
}

// lines are the lines of a snapshot that are still to be read.
type lines struct {
	in   *bufio.Reader
	kept []byte // lines that were taken and are still needed, one after the other
}

// take returns the next line. It is good until forget.
func (l *lines) take() ([]byte, error) {
	from := len(l.kept)
	for {
		part, err := l.in.ReadSlice('\n')
		l.kept = append(l.kept, part...)
		switch {
		case err == nil:
			return l.kept[from : len(l.kept)-1 : len(l.kept)-1], nil
		case err == io.EOF:
			return nil, io.ErrUnexpectedEOF
		case err != bufio.ErrBufferFull:
			return nil, err
		case len(l.kept)-from > maxLine:
			return nil, fmt.Errorf("a row of over %d bytes", maxLine)
		}
	}
}

func (l *lines) forget() { l.kept = l.kept[:0] }

func (l *lines) next(v any) error {
	line, err := l.take()
	if err != nil {
		return err
	}
	defer l.forget()
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
		case queueKind(key[8]) == qSession || queueKind(key[8]) == qLease || queueKind(key[8]) == qChange || queueKind(key[8]) == qGlass:
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
	rows  int
	write func(*bufio.Writer, *json.Encoder) error
	read  func(r *lines, least int) error // refuses a table with fewer rows
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

// laterTables are those that came after the first version, in the order of the snapshot. They are written if they have rows: so the root of a
// state that makes no use of them is the same as ever.
func (s *State) laterTables() []tableIO {
	return []tableIO{
		tableOf("uses", s.Uses), tableOf("gone", s.Gone), tableOf("federations", s.Federations),
		tableOf("rollouts", s.rollouts), tableOf("rollout_sources", s.sources), tableOf("served", s.Served), tableOf("reviewed", s.Reviewed),
		tableOf("glass", s.Glass),
		tableOf("recoveries", s.recoveries),
	}
}

// readIfThere reads the table if it is the next one. A table that is there without rows was not written by Snapshot.
func (t tableIO) readIfThere(r *lines) error {
	head := fmt.Appendf(nil, `{"table":%q,`, t.name)
	next, err := r.in.Peek(len(head))
	if err == io.EOF || err == nil && !bytes.Equal(next, head) {
		return nil
	}
	if err != nil {
		return err
	}
	return t.read(r, 1)
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
		rows: t.Len(),
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
		read: func(r *lines, least int) error {
			var h tableHead
			if err := r.next(&h); err != nil {
				return err
			}
			if h.Table != name {
				return fmt.Errorf("found table %q", h.Table)
			}
			if h.Rows < least {
				return fmt.Errorf("a table of %d rows", h.Rows)
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
	texts, keys, values := make([][]byte, 0, n), make([]K, n), make([]V, n)
	defer r.forget()
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
	switch v := any(got.Value).(type) {
	case *Lease:
		v.intern()
	case *Served:
		v.Identity, v.Secret, v.Grant = shared(v.Identity), shared(v.Secret), shared(v.Grant)
	case *Reviewed:
		v.Decision, v.By = shared(v.Decision), shared(v.By)
	case *Rollout:
		if err := v.prepare(); err != nil {
			return err
		}
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
