package seal

import (
	"crypto/rand"
	"io"
	"sync"

	"github.com/bailment/bailment/internal/problem"
)

// The health tests of NIST SP 800-90B §4.4, on bytes, with alpha = 2^-30 for a source of H = 4
// bits of min-entropy per byte:
//
//   - Repetition Count Test (§4.4.1): 1 + ceil(30/4) = 9 equal bytes in a row.
//   - Adaptive Proportion Test (§4.4.2): the first byte of a window of 512 comes back so often
//     that its count reaches 1 + critbinom(512, 2^-4, 1-2^-30) = 71.
//
// H is set at half of what the source promises (8), since what is tested is the output of the
// kernel's or the FIPS module's generator, and a trip is final: full-entropy bytes trip the first
// test with a chance of 2^-64 per byte and the second with less than 2^-266 per window, so a
// server that draws 100 KB every second for ten years trips by chance with less than 2^-19.
// H = 8 would put the first cutoff at 5 and trip by chance within hours.
const (
	rctCutoff = 9
	aptWindow = 512
	aptCutoff = 71
	// startupBytes are tested and thrown away before the first use (§4.3, requirement 4).
	startupBytes = 1024
)

// Source is where all keys come from: random bytes under continuous health tests, and a memory of
// the keys it gave. It catches a source that is stuck, heavily biased or rewound (a restored
// machine image, say); it can't tell a predictable source that looks random.
//
// Once a test failed, every later call fails with reason entropy, until the process is restarted.
// Safe for concurrent use.
type Source struct {
	mu      sync.Mutex
	r       io.Reader
	seen    *KeyGuard
	tripped *problem.Problem

	run     int  // RCT: how often last came in a row
	last    byte // RCT
	pos     int  // APT: position in the window
	matches int  // APT: occurrences of first in the window
	first   byte // APT
}

// NewSource tests the first 1,024 bytes of r and returns a Source over the rest. A nil r is
// crypto/rand, which every caller outside of tests wants.
func NewSource(r io.Reader) (*Source, error) {
	if r == nil {
		r = rand.Reader
	}
	s := &Source{r: r, seen: NewKeyGuard(DefaultGuardSize)}
	if _, err := s.Read(make([]byte, startupBytes)); err != nil {
		return nil, err
	}
	return s, nil
}

// Read fills all of p, or fails and leaves zeroes: there is no short read.
func (s *Source) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.read(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *Source) read(p []byte) error {
	if s.tripped != nil {
		return s.tripped
	}
	if _, err := io.ReadFull(s.r, p); err != nil {
		clear(p)
		return s.trip("the random source can't be read: %v", err)
	}
	for _, b := range p {
		if what := s.test(b); what != "" {
			clear(p)
			return s.trip("the random source failed the %s", what)
		}
	}
	return nil
}

func (s *Source) trip(format string, args ...any) error {
	s.tripped = problem.New(problem.ReasonEntropy, format, args...)
	return s.tripped
}

// test takes one sample and names the test that it fails, if any.
func (s *Source) test(b byte) string {
	if b == s.last && s.run > 0 {
		if s.run++; s.run >= rctCutoff {
			return "repetition count test"
		}
	} else {
		s.last, s.run = b, 1
	}
	if s.pos == 0 {
		s.first, s.matches = b, 0
	}
	if b == s.first {
		if s.matches++; s.matches >= aptCutoff {
			return "adaptive proportion test"
		}
	}
	s.pos = (s.pos + 1) % aptWindow
	return ""
}

// Key returns n fresh bytes to be used as a key. Bytes that were given before trip the source:
// for 16 bytes or more, chance doesn't repeat them.
func (s *Source) Key(n int) (Secret, error) {
	b := make([]byte, n)
	if err := s.fill(b); err != nil {
		return Secret{}, err
	}
	return NewSecret(b), nil
}

// fill is Key into memory that the caller has.
func (s *Source) fill(key []byte) error {
	if len(key) < 16 {
		return problem.New(problem.ReasonInternal, "a key of %d bytes is too short", len(key))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.read(key); err != nil {
		return err
	}
	return s.checkSeen(key)
}

// refuseSeen trips the source if key, made from its bytes, was made before.
func (s *Source) refuseSeen(key []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tripped != nil {
		return s.tripped
	}
	return s.checkSeen(key)
}

func (s *Source) checkSeen(key []byte) error {
	if s.seen.Seen(key) {
		clear(key)
		return s.trip("the random source gave a key that it had given before")
	}
	return nil
}

// Healthy returns the problem that tripped the source, or nil.
func (s *Source) Healthy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tripped != nil {
		return s.tripped
	}
	return nil
}

// fail trips the source for a reason found by its user.
func (s *Source) fail(format string, args ...any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trip(format, args...)
}
