package rpc_test

import (
	"crypto/rand"
	"encoding/hex"
	"testing"
)

func nonce(t *testing.T) string {
	t.Helper()
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(b[:])
}
