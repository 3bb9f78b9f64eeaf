package sealtest_test

import (
	"bytes"
	"crypto/rand"
	"runtime/debug"
	"testing"

	"github.com/bailment/bailment/internal/seal/sealtest"
)

// What is there is found, once for each place, also across the pieces that are read; what was overwritten is not.
func TestMark(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	b := make([]byte, 48)
	_, _ = rand.Read(b)
	one, two := bytes.Clone(b), make([]byte, 3<<20)
	for at := 0; at+len(b) <= len(two); at += 1 << 20 {
		copy(two[at:], b)
	}
	m := sealtest.NewMark(b)
	if n := m.Count(t); n != 4 {
		t.Errorf("found %d times", n)
	}
	clear(one)
	clear(two)
	if n := m.Count(t); n != 0 {
		t.Errorf("found %d times after it was wiped", n)
	}
}
