package seal

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/fips140"
	"crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"testing"

	"github.com/bailment/bailment/internal/problem"
)

// TestFIPSOnlyIsEnforced proves that the mode TestFIPSOnly runs in does refuse something.
func TestFIPSOnlyIsEnforced(t *testing.T) {
	defer func() {
		if refused := recover() != nil; refused != fips140.Enforced() {
			t.Errorf("MD5 refused: %v, mode enforced: %v", refused, fips140.Enforced())
		}
	}()
	md5.Sum([]byte("x"))
}

// faulty gives good random bytes until its fault sets in after a number of bytes.
type faulty struct {
	after int
	fault func(p []byte) (int, error)
}

func (f *faulty) Read(p []byte) (int, error) {
	if f.after <= 0 {
		return f.fault(p)
	}
	if len(p) > f.after {
		p = p[:f.after]
	}
	f.after -= len(p)
	return rand.Read(p)
}

func TestSourceTrips(t *testing.T) {
	biased := func(odds byte) func(p []byte) (int, error) { // zero with a chance of odds/256
		return func(p []byte) (int, error) {
			rand.Read(p)
			for i := range p {
				if p[i] < odds {
					p[i] = 0
				}
			}
			return len(p), nil
		}
	}
	block := make([]byte, 64)
	rand.Read(block)
	position := 0
	for name, c := range map[string]struct {
		fault func(p []byte) (int, error)
		draws int // 32 byte keys until it must have tripped
	}{
		"stuck at zero": {func(p []byte) (int, error) { clear(p); return len(p), nil }, 1},
		"stuck at 0xff": {func(p []byte) (int, error) { copy(p, bytes.Repeat([]byte{0xff}, len(p))); return len(p), nil }, 1},
		"stuck one byte at a time": {func(p []byte) (int, error) {
			p[0] = 7
			return 1, nil
		}, 1},
		"two values in turn": {func(p []byte) (int, error) {
			for i := range p {
				p[i] = byte(i & 1)
			}
			return len(p), nil
		}, 33},
		"one bit a byte":  {biased(128), 4000},
		"2.3 bits a byte": {biased(51), 4000},
		"repeating a block of 64 bytes": {func(p []byte) (int, error) {
			for i := range p {
				p[i] = block[position%len(block)]
				position++
			}
			return len(p), nil
		}, 4},
		"error":     {func(p []byte) (int, error) { return 0, errors.New("device gone") }, 1},
		"ends":      {func(p []byte) (int, error) { return 0, io.EOF }, 1},
		"short end": {func(p []byte) (int, error) { return 3, io.EOF }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			src, err := NewSource(&faulty{startupBytes + 4096, c.fault})
			if err != nil {
				t.Fatal("tripped while healthy:", err)
			}
			for range 128 {
				if _, err := src.Key(32); err != nil {
					t.Fatal("tripped while healthy:", err)
				}
			}
			if err := src.Healthy(); err != nil {
				t.Fatal(err)
			}
			for range c.draws {
				var key Secret
				if key, err = src.Key(32); err != nil {
					if key.Len() != 0 {
						t.Error("gave bytes together with an error")
					}
					break
				}
			}
			wantReason(t, err, problem.ReasonEntropy)
			checkTripped(t, src)
		})
	}
}

// checkTripped shows that a tripped source stays so, even if its reader recovers, on every way in.
func checkTripped(t *testing.T, src *Source) {
	t.Helper()
	src.mu.Lock()
	src.r = rand.Reader
	src.mu.Unlock()
	p := []byte("0123456789abcdef")
	if n, err := src.Read(p); n != 0 || !problem.Is(err, problem.ReasonEntropy) {
		t.Errorf("Read after the trip: %d, %v", n, err)
	}
	kek := testKEK(t, 1)
	for name, err := range map[string]error{
		"Healthy":  src.Healthy(),
		"Key":      func() error { _, err := src.Key(32); return err }(),
		"KEK":      func() error { _, err := GenerateKEK(1, src); return err }(),
		"ECDSA":    func() error { _, err := GenerateECDSA(src); return err }(),
		"Ed25519":  func() error { _, err := GenerateEd25519(src); return err }(),
		"RSA":      func() error { _, err := GenerateRSA(src); return err }(),
		"Seal":     func() error { _, err := SealValue(kek, testContext(), NewSecret(p), src); return err }(),
		"Generate": func() error { _, err := Generate("password", 0, src); return err }(),
		"UUID":     func() error { _, err := Generate("uuid", 0, src); return err }(),
	} {
		if !problem.Is(err, problem.ReasonEntropy) {
			t.Errorf("%s after the trip: %v", name, err)
		}
	}
}

func TestSourceStartup(t *testing.T) {
	_, err := NewSource(bytes.NewReader(make([]byte, 1<<16)))
	wantReason(t, err, problem.ReasonEntropy)
	_, err = NewSource(io.LimitReader(rand.Reader, startupBytes-1))
	wantReason(t, err, problem.ReasonEntropy)
	src := testSource(t)
	if _, err = src.Key(8); err == nil {
		t.Error("made a key of 8 bytes")
	}
}

// A machine image that is started twice replays the generator's output: the second key is refused
// although each stretch looks perfectly random.
func TestSourceRewound(t *testing.T) {
	stretch := make([]byte, 32)
	rand.Read(stretch)
	rewound := func(p []byte) (int, error) { return copy(p, stretch), nil }
	for name, make := range map[string]func(*Source) error{
		"key":     func(s *Source) error { _, err := s.Key(32); return err },
		"ecdsa":   func(s *Source) error { _, err := GenerateECDSA(s); return err },
		"ed25519": func(s *Source) error { _, err := GenerateEd25519(s); return err },
		"rsa":     func(s *Source) error { _, err := GenerateRSA(s); return err },
		"value":   func(s *Source) error { _, err := Generate("hex", 32, s); return err },
	} {
		src, err := NewSource(&faulty{startupBytes, rewound})
		if err != nil {
			t.Fatal(err)
		}
		if err := make(src); err != nil {
			t.Errorf("%s: first: %v", name, err)
		}
		if err := make(src); !problem.Is(err, problem.ReasonEntropy) {
			t.Errorf("%s: the same key twice: %v", name, err)
		}
	}
}

// The cutoffs in the code are the ones that the standard's formulas give.
func TestSourceCutoffs(t *testing.T) {
	alpha := new(big.Rat).SetFrac64(1, 1<<30)
	if want := 1 + (30+3)/4; rctCutoff != want {
		t.Errorf("repetition cutoff %d, want %d", rctCutoff, want)
	}
	limit := new(big.Rat).Sub(big.NewRat(1, 1), alpha)
	if k := 1 + critBinomial(aptWindow, big.NewRat(1, 16), limit); k != aptCutoff {
		t.Errorf("proportion cutoff %d, want %d", aptCutoff, k)
	}
	// False alarm per window with full entropy: cutoff-1 or more matches among the other 511.
	tail := binomialTail(aptWindow-1, aptCutoff-1, big.NewRat(1, 256))
	if bits := tail.Denom().BitLen() - tail.Num().BitLen(); bits < 266 {
		t.Errorf("false alarms of the proportion test: 2^-%d", bits)
	}
}

func binomialTerm(n, k int, p *big.Rat) *big.Rat {
	q := new(big.Rat).Sub(big.NewRat(1, 1), p)
	r := new(big.Rat).SetInt(new(big.Int).Binomial(int64(n), int64(k)))
	pow := func(x *big.Rat, e int) *big.Rat {
		E := big.NewInt(int64(e))
		return new(big.Rat).SetFrac(new(big.Int).Exp(x.Num(), E, nil), new(big.Int).Exp(x.Denom(), E, nil))
	}
	return r.Mul(r, pow(p, k)).Mul(r, pow(q, n-k))
}

// critBinomial is the smallest k with P(X <= k) >= limit.
func critBinomial(n int, p, limit *big.Rat) int {
	sum := new(big.Rat)
	for k := 0; ; k++ {
		if sum.Add(sum, binomialTerm(n, k, p)); sum.Cmp(limit) >= 0 {
			return k
		}
	}
}

func binomialTail(n, from int, p *big.Rat) *big.Rat {
	sum := new(big.Rat)
	for k := from; k <= n; k++ {
		sum.Add(sum, binomialTerm(n, k, p))
	}
	return sum
}

// Real randomness never trips in 8 MB here; by the figures above, nor in 2^60 bytes.
func TestSourceNoFalseAlarm(t *testing.T) {
	src := testSource(t)
	p := make([]byte, 1<<16)
	for range 128 {
		if _, err := src.Read(p); err != nil {
			t.Fatal(err)
		}
	}
}

// Just below the cutoffs passes, at the cutoffs trips: an off-by-one would show.
func TestSourceCutoffEdges(t *testing.T) {
	feed := func(data []byte) error {
		s := &Source{r: bytes.NewReader(data)}
		_, err := s.Read(make([]byte, len(data)))
		return err
	}
	run := append([]byte{1}, make([]byte, rctCutoff-1)...)
	if err := feed(append(run, 1)); err != nil {
		t.Errorf("a run of %d tripped: %v", rctCutoff-1, err)
	}
	if err := feed(append(run, 0)); err == nil {
		t.Errorf("a run of %d passed", rctCutoff)
	}
	window := func(count int) []byte { // first byte occurs count times, never twice in a row
		w := make([]byte, aptWindow)
		for i := range w {
			w[i] = byte(1 + i%251)
		}
		for i := range count {
			w[2*i] = 0
		}
		return w
	}
	if err := feed(window(aptCutoff - 1)); err != nil {
		t.Errorf("%d in a window tripped: %v", aptCutoff-1, err)
	}
	if err := feed(window(aptCutoff)); err == nil {
		t.Errorf("%d in a window passed", aptCutoff)
	}
	// The count starts again with each window.
	if err := feed(append(window(aptCutoff-1), window(aptCutoff-1)...)); err != nil {
		t.Errorf("two good windows tripped: %v", err)
	}
}

func TestKeyGuard(t *testing.T) {
	g := NewKeyGuard(3)
	key := func(i byte) []byte { return bytes.Repeat([]byte{i}, 32) }
	for i := range byte(3) {
		if g.Seen(key(i)) {
			t.Fatalf("key %d seen at once", i)
		}
	}
	for i := range byte(3) {
		if !g.Seen(key(i)) {
			t.Fatalf("key %d forgotten", i)
		}
	}
	g.Seen(key(3)) // pushes out key 0
	if g.Seen(key(0)) {
		t.Error("the guard is not bounded")
	}
	if !g.Seen(key(3)) || !g.Seen(key(2)) {
		t.Error("forgot a recent key")
	}
	if len(g.seen) != 3 || len(g.ring) != 3 {
		t.Errorf("holds %d and %d", len(g.seen), len(g.ring))
	}
	plain := fingerprint(sha256.New().Sum(nil)[:16])
	sum := sha256.Sum256(key(3))
	copy(plain[:], sum[:])
	if _, ok := g.seen[plain]; ok {
		t.Error("the guard keeps plain digests of keys")
	}
	if NewKeyGuard(0).size != DefaultGuardSize {
		t.Error("size 0 is not the default")
	}
}

func TestSigningKeys(t *testing.T) {
	src := testSource(t)
	ec, err := GenerateECDSA(src)
	if err != nil {
		t.Fatal(err)
	}
	ed, err := GenerateEd25519(src)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("m"))
	sig, err := ecdsa.SignASN1(rand.Reader, ec, digest[:])
	if err != nil || !ecdsa.VerifyASN1(&ec.PublicKey, digest[:], sig) || ec.Curve != elliptic.P256() {
		t.Error("the ECDSA key doesn't work:", err)
	}
	if !ed25519.Verify(ed.Public().(ed25519.PublicKey), []byte("m"), ed25519.Sign(ed, []byte("m"))) {
		t.Error("the Ed25519 key doesn't work")
	}
	secret, err := MarshalPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	if k, err := ParsePrivateKey(secret); err != nil || !ec.Equal(k) {
		t.Error(err)
	}
	secret, err = MarshalPrivateKey(ed)
	if err != nil {
		t.Fatal(err)
	}
	if k, err := ParsePrivateKey(secret); err != nil || !ed.Equal(k) {
		t.Error(err)
	}
	der, _ := x509.MarshalPKIXPublicKey(ec.Public())
	if got, err := Thumbprint(ec.Public()); err != nil || got != sha256.Sum256(der) {
		t.Error("thumbprint", err)
	}
	if !SameKey(ec.Public(), ec.Public()) || SameKey(ec.Public(), ed.Public()) || SameKey(nil, nil) {
		t.Error("SameKey")
	}
	if _, err := Thumbprint("no key"); err == nil {
		t.Error("thumbprint of a string")
	}
	trailing := NewSecret(append(bytes.Clone(secret.Expose()), 0))
	for name, s := range map[string]Secret{"empty": {}, "trailing": trailing, "cut": NewSecret(bytes.Clone(secret.Expose())[:20]), "huge": NewSecret(make([]byte, MaxKey+1))} {
		if _, err := ParsePrivateKey(s); err == nil {
			t.Errorf("%s parsed", name)
		}
	}
}

func TestForeignKeysAreRefused(t *testing.T) {
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	rsaKey, _ := rsa.GenerateKey(rand.Reader, 3072)
	for _, k := range []any{p384, rsaKey} {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		_, err = ParsePrivateKey(NewSecret(der))
		wantReason(t, err, problem.ReasonUnsupported)
	}
	_, err := MarshalPrivateKey(p384)
	wantReason(t, err, problem.ReasonUnsupported)
}

func TestRSA(t *testing.T) {
	key, err := GenerateRSA(testSource(t))
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("m"))
	sig, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil || rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, digest[:], sig) != nil {
		t.Error("the key doesn't work:", err)
	}
	secret, err := MarshalPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ParsePrivateKey(secret); err != nil || !key.Equal(again) {
		t.Error(err)
	}
}

// The scalar comes from the Source and from nowhere else, or the tripwire would guard nothing.
func TestSigningKeysComeFromTheSource(t *testing.T) {
	seed := sha256.Sum256([]byte("seed"))
	var keys [2]*ecdsa.PrivateKey
	for i := range keys {
		src, err := NewSource(&faulty{startupBytes, func(p []byte) (int, error) { return copy(p, seed[:]), nil }})
		if err != nil {
			t.Fatal(err)
		}
		if keys[i], err = GenerateECDSA(src); err != nil {
			t.Fatal(err)
		}
	}
	if !keys[0].Equal(keys[1]) {
		t.Error("the same source gave two keys")
	}
}

func TestDerive(t *testing.T) {
	key := NewSecret(bytes.Repeat([]byte{1}, 32))
	a, err := Derive(key, nil, "a", 48)
	if err != nil || a.Len() != 48 {
		t.Fatal(err)
	}
	again, _ := Derive(key, nil, "a", 48)
	b, _ := Derive(key, nil, "b", 48)
	salted, _ := Derive(key, []byte("salt"), "a", 48)
	if !a.Equal(again) || a.Equal(b) || a.Equal(salted) {
		t.Error("derivation doesn't follow its inputs")
	}
	if _, err := Derive(NewSecret(make([]byte, 15)), nil, "a", 32); err == nil {
		t.Error("derived from a short key")
	}
	if _, err := Derive(key, nil, "a", 255*32+1); err == nil {
		t.Error("derived too much")
	}
}

func BenchmarkSourceKey(b *testing.B) {
	src := testSource(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := src.Key(32); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGenerateECDSA(b *testing.B) {
	src := testSource(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := GenerateECDSA(src); err != nil {
			b.Fatal(err)
		}
	}
}
