// Package sealtest looks for values in the memory of a test's own process, where a value should be gone.
//
// Guaranteed: what it finds is there. Not guaranteed: that it finds what was overwritten by chance; a test that lets go of memory turns the
// garbage collector off (debug.SetGCPercent(-1)), so that it stays as it was left. Linux only: it reads /proc/self/mem.
//
// Its place: beside seal, for tests.
package sealtest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
)

// Mark is what is looked for: kept so that it is not found for being kept.
type Mark struct{ masked []byte }

const mask = 0x5a

// NewMark overwrites a text, and remembers what it was.
func NewMark(b []byte) Mark {
	m := Mark{make([]byte, len(b))}
	for i := range b {
		m.masked[i] = b[i] ^ mask
	}
	clear(b)
	return m
}

// Count is how often it is in memory that can be written to.
func (m Mark) Count(t testing.TB) int {
	t.Helper()
	n, err := m.count()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (m Mark) count() (n int, err error) {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return 0, err
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		return 0, err
	}
	defer func() { _ = mem.Close() }() // it was only read
	part := make([]byte, 1<<20)
	defer clear(part)
	lines := bufio.NewScanner(bytes.NewReader(maps))
	for lines.Scan() {
		var from, to uint64
		var may string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &may); err != nil {
			return 0, err
		}
		if !strings.HasPrefix(may, "rw") {
			continue
		}
		own := uint64(reflect.ValueOf(part).Pointer()) // it holds what was read before
		for _, r := range [][2]uint64{{from, min(max(own, from), to)}, {max(min(own+uint64(len(part)), to), from), to}} {
			for at := r[0]; at < r[1]; at += uint64(len(part) - len(m.masked) + 1) {
				got, err := mem.ReadAt(part[:min(uint64(len(part)), r[1]-at)], int64(at)) // below 1<<47 where programs have memory
				n += m.in(part[:got])
				if err != nil && err != io.EOF {
					break // it was given back meanwhile
				}
			}
		}
		clear(part)
	}
	return n, lines.Err()
}

func (m Mark) in(part []byte) (n int) {
	for {
		i := bytes.IndexByte(part, m.masked[0]^mask)
		if i < 0 || len(part)-i < len(m.masked) {
			return n
		}
		same := true
		for k := range m.masked {
			if part[i+k]^mask != m.masked[k] {
				same = false
				break
			}
		}
		if same {
			n++
		}
		part = part[i+1:]
	}
}
