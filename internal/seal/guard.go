package seal

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"hash"
	"sync"
)

// DefaultGuardSize is how many recent keys a Source's guard remembers: about 1 MB.
const DefaultGuardSize = 16384

type fingerprint [16]byte

// KeyGuard remembers the keys it was shown, the most recent ones up to its size. It keeps
// HMAC-SHA-256 fingerprints under a key that is made with the guard and never leaves it, so what
// it holds tells nothing about the keys once the process is gone. Safe for concurrent use.
type KeyGuard struct {
	mu   sync.Mutex
	mac  hash.Hash
	seen map[fingerprint]struct{}
	ring []fingerprint // in order of arrival, to forget the oldest
	next int
	size int
}

// NewKeyGuard makes an empty guard that remembers size keys; a size below 1 is DefaultGuardSize.
func NewKeyGuard(size int) *KeyGuard {
	if size < 1 {
		size = DefaultGuardSize
	}
	key := make([]byte, sha256.Size)
	rand.Read(key) // never fails: it ends the program instead
	return &KeyGuard{mac: hmac.New(sha256.New, key), seen: make(map[fingerprint]struct{}), size: size}
}

// Seen reports whether key is among the remembered ones, and remembers it.
func (g *KeyGuard) Seen(key []byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	var sum [sha256.Size]byte
	g.mac.Reset()
	g.mac.Write(key)
	f := fingerprint(g.mac.Sum(sum[:0]))
	if _, ok := g.seen[f]; ok {
		return true
	}
	if len(g.ring) < g.size {
		g.ring = append(g.ring, f)
	} else {
		delete(g.seen, g.ring[g.next])
		g.ring[g.next] = f
		g.next = (g.next + 1) % g.size
	}
	g.seen[f] = struct{}{}
	return false
}
