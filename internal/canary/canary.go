// Package canary looks for secret values where none may be: in logs, in errors that go over the wire, in
// entries, in metrics (invariant "silent", DESIGN §3). It is the running check beside the tests: it knows a
// sample of the values that were really handed over or written, by keyed fingerprints, and each sink shows it
// what is about to leave.
//
// Guaranteed: no value is kept, only keyed tags of 24 bytes of each of its usual forms (as it is, hex, base64, JSON, URL);
// memory is bounded; a find is counted and named by its sink, never by its text; what is found was really there, since a
// match of 24 bytes by accident does not happen. Not guaranteed: that every leak is found. Values are sampled, those
// under 24 bytes are not looked for, nor are parts, other encodings, or sinks that don't ask.
//
// Its place: a leaf. Package control seeds it, the edges and the logger show it what they write.
package canary

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/url"
	"sync"
	"sync/atomic"
)

const (
	window    = 24       // bytes that must be there
	kept      = 256      // values remembered
	sample    = 256      // one of so many values is remembered; the first ones all
	maxValue  = 64 << 10 // larger values are not encoded whole
	filterLog = 16       // log2 of the bits of the filter in front of the table
)

// Sink is where something is about to leave the process, or to stay for ever.
type Sink string

// The sinks that are watched.
const (
	Log    Sink = "log"
	Wire   Sink = "wire" // texts of errors
	Ledger Sink = "ledger"
	Metric Sink = "metric"
)

// Watch remembers and looks. Its methods may be called concurrently. A nil Watch does nothing.
type Watch struct {
	base, top uint64 // of the rolling hash: a random odd number, and its power for the byte that leaves the window
	key       [32]byte

	seen  atomic.Uint64
	table atomic.Pointer[table]

	mu    sync.Mutex
	shown []byte         // what the metrics showed last
	ring  [kept][]uint64 // hashes of each remembered value's forms
	next  int
	tags  map[uint64][16]byte
	found map[Sink]uint64
}

// table is what Look reads. It is never changed: a new one takes its place.
type table struct {
	filter [1 << filterLog / 64]uint64
	tags   map[uint64][16]byte
}

// New makes an empty Watch with keys of its own.
func New() *Watch {
	var seed [8]byte
	w := &Watch{tags: make(map[uint64][16]byte), found: make(map[Sink]uint64)}
	_, _ = rand.Read(seed[:])  // never fails (Go 1.24)
	_, _ = rand.Read(w.key[:]) // likewise
	w.base = binary.LittleEndian.Uint64(seed[:]) | 1
	w.top = 1
	for range window - 1 {
		w.top *= w.base
	}
	return w
}

// Seed may remember a value that was handed over or written. The value stays the caller's. One that the metrics show already is
// counted as found and not remembered: it has leaked before, or is no secret but their own words, written as a value by somebody who
// would have them withheld from then on.
func (w *Watch) Seed(value []byte) {
	if w == nil || len(value) < window || len(value) > maxValue {
		return
	}
	if n := w.seen.Add(1); n > kept && n%sample != 0 {
		return
	}
	var hashes []uint64
	tags := make(map[uint64][16]byte, 6)
	for _, form := range forms(value) {
		// The middle: the beginning and the end of a value are often the same for many (PEM, URLs).
		at := (len(form) - window) / 2
		if at < 0 {
			continue
		}
		part := form[at : at+window]
		if w.isShown(part) {
			return
		}
		h := w.hash(part)
		hashes, tags[h] = append(hashes, h), w.tag(part)
		clear(form)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.ring[w.next] {
		delete(w.tags, h)
	}
	w.ring[w.next] = hashes
	w.next = (w.next + 1) % kept
	maps.Copy(w.tags, tags)
	t := &table{tags: maps.Clone(w.tags)}
	for h := range t.tags {
		bit := h >> (64 - filterLog)
		t.filter[bit/64] |= 1 << (bit % 64)
	}
	w.table.Store(t)
}

// isShown reports whether the metrics show a text already, and counts it if so.
func (w *Watch) isShown(part []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !bytes.Contains(w.shown, part) {
		return false
	}
	w.found[Metric]++
	return true
}

// Metrics looks at all that the metrics are about to show, and returns what may be shown: lines that hold a value are left out, since
// who may write a value must not take the others away.
func (w *Watch) Metrics(text []byte) []byte {
	if w == nil {
		return text
	}
	if w.Look(Metric, text) {
		var kept []byte
		for line := range bytes.Lines(text) {
			if !w.holds(line) {
				kept = append(kept, line...)
			}
		}
		if text = kept; w.holds(text) {
			return nil // it goes over several lines
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shown = append(w.shown[:0], text...)
	return text
}

// forms are the ways in which a value usually shows up in text. They are copies.
func forms(value []byte) [][]byte {
	out := [][]byte{
		append([]byte(nil), value...),
		hex.AppendEncode(nil, value),
		base64.StdEncoding.AppendEncode(nil, value),
		base64.URLEncoding.AppendEncode(nil, value),
		[]byte(url.QueryEscape(string(value))),
	}
	if text, err := json.Marshal(string(value)); err == nil {
		out = append(out, text[1:len(text)-1])
	}
	return out
}

// hash is polynomial, so that it rolls; without the base nobody can make texts that collide.
func (w *Watch) hash(b []byte) uint64 {
	var h uint64
	for _, c := range b {
		h = h*w.base + uint64(c) + 1
	}
	return h
}

func (w *Watch) tag(b []byte) (t [16]byte) {
	sum := sha256.Sum256(append(append(make([]byte, 0, len(w.key)+window), w.key[:]...), b...))
	copy(t[:], sum[:])
	return t
}

// Look searches a text that a sink is about to take, counts what it finds, and reports whether there was any. It costs about
// a nanosecond a byte.
func (w *Watch) Look(sink Sink, text []byte) bool {
	if w == nil || !w.holds(text) {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.found[sink]++
	return true
}

// holds reports whether there is a value in the text.
func (w *Watch) holds(text []byte) bool {
	if len(text) < window {
		return false
	}
	t := w.table.Load()
	if t == nil {
		return false
	}
	h := w.hash(text[:window])
	for i := window; ; i++ {
		if bit := h >> (64 - filterLog); t.filter[bit/64]&(1<<(bit%64)) != 0 {
			if tag, ok := t.tags[h]; ok && tag == w.tag(text[i-window:i]) {
				return true
			}
		}
		if i == len(text) {
			return false
		}
		h = (h-(uint64(text[i-window])+1)*w.top)*w.base + uint64(text[i]) + 1
	}
}

// Found counts the texts with a value in them, by sink.
func (w *Watch) Found() map[Sink]uint64 {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.found)
}
