package seal

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/problem"
	"pgregory.net/rapid"
)

func testSource(t testing.TB) *Source {
	t.Helper()
	s, err := NewSource(nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testKEK(t testing.TB, number uint32) *KEK {
	t.Helper()
	k, err := GenerateKEK(number, testSource(t))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testContext() Context {
	return Context{Format: FormatValue1, Genesis: sha256.Sum256([]byte("g")), Path: "db/password", Version: 3, Purpose: "serve"}
}

func wantReason(t *testing.T, err error, r problem.Reason) {
	t.Helper()
	if !problem.Is(err, r) {
		t.Errorf("got %v, want reason %s", err, r)
	}
}

func TestSealOpen(t *testing.T) {
	kek, ctx, src := testKEK(t, 1), testContext(), testSource(t)
	for _, n := range []int{1, 16, 1024, MaxValue} {
		value := NewSecret(bytes.Repeat([]byte{'v'}, n))
		sealed, err := SealValue(kek, ctx, value, src)
		if err != nil {
			t.Fatal(err)
		}
		if len(sealed.Ciphertext) != n+Overhead || sealed.KEK != 1 || sealed.Digest != sha256.Sum256(sealed.Ciphertext) {
			t.Fatalf("%d bytes: odd result %d %d", n, len(sealed.Ciphertext), sealed.KEK)
		}
		if n > 8 && bytes.Contains(sealed.Ciphertext, value.Expose()) {
			t.Fatal("not encrypted")
		}
		got, err := OpenValue(kek, ctx, sealed)
		if err != nil || !got.Equal(value) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	_, err := SealValue(kek, ctx, NewSecret(make([]byte, MaxValue+1)), src)
	wantReason(t, err, problem.ReasonTooLarge)
	_, err = SealValue(kek, ctx, Secret{}, src)
	wantReason(t, err, problem.ReasonInvalid)
}

func TestSealIsFresh(t *testing.T) {
	kek, ctx, src := testKEK(t, 1), testContext(), testSource(t)
	value := NewSecret([]byte("the same"))
	a, _ := SealValue(kek, ctx, value, src)
	b, _ := SealValue(kek, ctx, value, src)
	if bytes.Equal(a.Ciphertext, b.Ciphertext) || bytes.Equal(a.WrappedKey, b.WrappedKey) {
		t.Fatal("two seals of one value are alike")
	}
	// Data keys differ, not only nonces: the other's wrapped key doesn't open it.
	a.WrappedKey = b.WrappedKey
	_, err := OpenValue(kek, ctx, a)
	wantReason(t, err, problem.ReasonTampered)
}

// changedContexts is every way to change one field of ctx.
func changedContexts(ctx Context) map[string]Context {
	out := map[string]Context{}
	set := func(name string, change func(*Context)) {
		c := ctx
		change(&c)
		out[name] = c
	}
	set("format", func(c *Context) { c.Format += "x" })
	set("genesis first byte", func(c *Context) { c.Genesis[0] ^= 1 })
	set("genesis last byte", func(c *Context) { c.Genesis[31] ^= 0x80 })
	set("path", func(c *Context) { c.Path = "db/passwore" })
	set("path longer", func(c *Context) { c.Path += "/" })
	set("version", func(c *Context) { c.Version++ })
	set("version high", func(c *Context) { c.Version |= 1 << 63 })
	set("purpose", func(c *Context) { c.Purpose = "backup" })
	set("no purpose", func(c *Context) { c.Purpose = "" })
	set("byte moved from path to purpose", func(c *Context) {
		c.Purpose = c.Path[len(c.Path)-1:] + c.Purpose
		c.Path = c.Path[:len(c.Path)-1]
	})
	set("byte moved from format to path", func(c *Context) {
		c.Path = c.Format[len(c.Format)-1:] + c.Path
		c.Format = c.Format[:len(c.Format)-1]
	})
	return out
}

func TestContextIsBound(t *testing.T) {
	kek, next, ctx := testKEK(t, 1), testKEK(t, 2), testContext()
	sealed, err := SealValue(kek, ctx, NewSecret([]byte("value")), testSource(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range changedContexts(ctx) {
		_, err := OpenValue(kek, c, sealed)
		if !problem.Is(err, problem.ReasonTampered) {
			t.Errorf("opened with another %s: %v", name, err)
		}
		if _, err = Rewrap(kek, next, c, sealed.WrappedKey); !problem.Is(err, problem.ReasonTampered) {
			t.Errorf("rewrapped with another %s: %v", name, err)
		}
		// Were only the wrapped key bound and not the value, this would open.
		s := getScratch()
		key, err := s.openDataKey(kek, &ctx, sealed.KEK, sealed.WrappedKey)
		if err != nil {
			t.Fatal(err)
		}
		a, _ := newAEAD(key)
		if _, err := a.Open(nil, nil, sealed.Ciphertext, s.valueAAD(&c)); err == nil {
			t.Errorf("the value itself is not bound to %s", name)
		}
		s.put()
	}
}

func TestOpenRefusesDamage(t *testing.T) {
	kek, ctx := testKEK(t, 1), testContext()
	value := NewSecret([]byte("value"))
	sealed, _ := SealValue(kek, ctx, value, testSource(t))
	for i := range sealed.Ciphertext {
		bad := sealed
		bad.Ciphertext = bytes.Clone(sealed.Ciphertext)
		bad.Ciphertext[i] ^= 1 << (i % 8)
		_, err := OpenValue(kek, ctx, bad)
		wantReason(t, err, problem.ReasonTampered)
		bad.Digest = sha256.Sum256(bad.Ciphertext) // with a digest that fits: the tag must catch it
		_, err = OpenValue(kek, ctx, bad)
		wantReason(t, err, problem.ReasonTampered)
	}
	for i := range sealed.WrappedKey {
		bad := sealed
		bad.WrappedKey = bytes.Clone(sealed.WrappedKey)
		bad.WrappedKey[i] ^= 1 << (i % 8)
		_, err := OpenValue(kek, ctx, bad)
		wantReason(t, err, problem.ReasonTampered)
	}
	for name, change := range map[string]func(*Sealed){
		"digest":            func(s *Sealed) { s.Digest[5] ^= 1 },
		"empty ciphertext":  func(s *Sealed) { s.Ciphertext = nil },
		"no value":          func(s *Sealed) { s.Ciphertext = s.Ciphertext[:Overhead] },
		"cut ciphertext":    func(s *Sealed) { s.Ciphertext = s.Ciphertext[:len(s.Ciphertext)-1] },
		"huge ciphertext":   func(s *Sealed) { s.Ciphertext = make([]byte, MaxValue+Overhead+1) },
		"no wrapped key":    func(s *Sealed) { s.WrappedKey = nil },
		"longer wrapped":    func(s *Sealed) { s.WrappedKey = append(bytes.Clone(s.WrappedKey), 0) },
		"swapped with data": func(s *Sealed) { s.WrappedKey, s.Ciphertext = s.Ciphertext, s.WrappedKey },
	} {
		bad := sealed
		change(&bad)
		if _, err := OpenValue(kek, ctx, bad); !problem.Is(err, problem.ReasonTampered) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := testKEK(t, 1)
	_, err := OpenValue(other, ctx, sealed)
	wantReason(t, err, problem.ReasonTampered)
	_, err = OpenValue(testKEK(t, 2), ctx, sealed)
	wantReason(t, err, problem.ReasonInternal)
	renumbered, _ := NewKEK(2, kek.Key())
	bad := sealed
	bad.KEK = 2
	_, err = OpenValue(renumbered, ctx, bad) // same key bytes under another number
	wantReason(t, err, problem.ReasonTampered)
	if form := leaks(fmt.Sprint(err)); form != "" {
		t.Error("error leaks")
	}
}

func TestRewrap(t *testing.T) {
	from, to, ctx := testKEK(t, 1), testKEK(t, 2), testContext()
	value := NewSecret([]byte("value"))
	sealed, _ := SealValue(from, ctx, value, testSource(t))
	wrapped, err := Rewrap(from, to, ctx, sealed.WrappedKey)
	if err != nil {
		t.Fatal(err)
	}
	moved := Sealed{Ciphertext: sealed.Ciphertext, WrappedKey: wrapped, KEK: to.Number(), Digest: sealed.Digest}
	if got, err := OpenValue(to, ctx, moved); err != nil || !got.Equal(value) {
		t.Fatal(err)
	}
	if got, err := OpenValue(from, ctx, sealed); err != nil || !got.Equal(value) {
		t.Fatal("the old wrapped key must go on working:", err)
	}
	_, err = Rewrap(to, from, ctx, sealed.WrappedKey)
	wantReason(t, err, problem.ReasonTampered)
}

func TestContextChecks(t *testing.T) {
	kek, src, v := testKEK(t, 1), testSource(t), NewSecret([]byte("v"))
	for name, change := range map[string]func(*Context){
		"no format": func(c *Context) { c.Format = "" }, "long format": func(c *Context) { c.Format = strings.Repeat("f", MaxFormat+1) },
		"no genesis": func(c *Context) { c.Genesis = [32]byte{} },
		"no path":    func(c *Context) { c.Path = "" }, "long path": func(c *Context) { c.Path = strings.Repeat("p", MaxPath+1) },
		"long purpose": func(c *Context) { c.Purpose = strings.Repeat("p", MaxPurpose+1) },
	} {
		c := testContext()
		change(&c)
		if _, err := SealValue(kek, c, v, src); err == nil {
			t.Errorf("%s: sealed", name)
		}
		if _, err := OpenValue(kek, c, Sealed{}); err == nil {
			t.Errorf("%s: opened", name)
		}
		if _, err := Rewrap(kek, kek, c, nil); err == nil {
			t.Errorf("%s: rewrapped", name)
		}
	}
	if _, err := NewKEK(0, NewSecret(make([]byte, KeySize))); err == nil {
		t.Error("KEK number 0 accepted")
	}
	if _, err := NewKEK(1, NewSecret(make([]byte, 16))); err == nil {
		t.Error("16 byte KEK accepted")
	}
}

// The encoding of the associated data is part of the stored format: these bytes never change.
func TestAADEncoding(t *testing.T) {
	ctx := Context{Format: "f", Path: "p", Version: 0x0102, Purpose: ""}
	ctx.Genesis[0] = 0xaa
	s := &scratch{}
	genesis := "\x00\x00\x00\x20\xaa" + strings.Repeat("\x00", 31)
	tail := "\x00\x00\x00\x01f" + genesis + "\x00\x00\x00\x01p" + "\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x01\x02" + "\x00\x00\x00\x00"
	if got, want := string(s.valueAAD(&ctx)), "\x00\x00\x00\x15bailment/aad/value/v1"+tail; got != want {
		t.Errorf("value: %q", got)
	}
	if got, want := string(s.dataKeyAAD(7, &ctx)), "\x00\x00\x00\x18bailment/aad/data-key/v1"+"\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x07"+tail; got != want {
		t.Errorf("data key: %q", got)
	}
}

func TestAADIsInjective(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gen := func(label string) (uint32, Context) {
			short := rapid.StringOfN(rapid.SampledFrom([]rune("a\x00\x01")), 0, 4, -1)
			c := Context{Format: short.Draw(t, label+"format"), Path: short.Draw(t, label+"path"), Purpose: short.Draw(t, label+"purpose"), Version: rapid.Uint64Range(0, 3).Draw(t, label+"version")}
			return rapid.Uint32Range(0, 2).Draw(t, label+"number"), c
		}
		n1, a := gen("a")
		n2, b := gen("b")
		s, u := &scratch{}, &scratch{}
		if (a == b) != bytes.Equal(s.valueAAD(&a), u.valueAAD(&b)) {
			t.Fatalf("value: %+v and %+v", a, b)
		}
		if (a == b && n1 == n2) != bytes.Equal(s.dataKeyAAD(n1, &a), u.dataKeyAAD(n2, &b)) {
			t.Fatalf("data key: %d %+v and %d %+v", n1, a, n2, b)
		}
	})
}

func TestWrapKey(t *testing.T) {
	kek := testKEK(t, 4)
	ctx := KeyContext{Genesis: [32]byte{1}, Name: "ca", Number: 2}
	key := NewSecret([]byte("a private key"))
	wrapped, err := WrapKey(kek, ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := UnwrapKey(kek, ctx, wrapped); err != nil || !got.Equal(key) {
		t.Fatal(err)
	}
	for name, c := range map[string]KeyContext{
		"genesis": {Genesis: [32]byte{2}, Name: "ca", Number: 2}, "name": {Genesis: [32]byte{1}, Name: "checkpoint", Number: 2},
		"number": {Genesis: [32]byte{1}, Name: "ca", Number: 3},
	} {
		if _, err := UnwrapKey(kek, c, wrapped); !problem.Is(err, problem.ReasonTampered) {
			t.Errorf("unwrapped with another %s: %v", name, err)
		}
	}
	for i := range wrapped {
		bad := bytes.Clone(wrapped)
		bad[i] ^= 1
		_, err := UnwrapKey(kek, ctx, bad)
		wantReason(t, err, problem.ReasonTampered)
	}
	_, err = UnwrapKey(testKEK(t, 4), ctx, wrapped)
	wantReason(t, err, problem.ReasonTampered)
	for _, n := range []int{0, 1, Overhead, MaxKey + Overhead + 1} {
		_, err = kek.Unwrap(nil, make([]byte, n))
		wantReason(t, err, problem.ReasonTampered)
	}
	for name, err := range map[string]error{
		"empty key":   func() error { _, err := WrapKey(kek, ctx, Secret{}); return err }(),
		"huge key":    func() error { _, err := WrapKey(kek, ctx, NewSecret(make([]byte, MaxKey+1))); return err }(),
		"no genesis":  func() error { _, err := WrapKey(kek, KeyContext{Name: "ca"}, key); return err }(),
		"no name":     func() error { _, err := WrapKey(kek, KeyContext{Genesis: [32]byte{1}}, key); return err }(),
		"big context": func() error { _, err := kek.Wrap(make([]byte, MaxContext+1), key); return err }(),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A data key wrapped for a value must not open through the general door, with whatever context.
func TestWrapIsSeparateFromDataKeys(t *testing.T) {
	kek, ctx := testKEK(t, 1), testContext()
	sealed, _ := SealValue(kek, ctx, NewSecret([]byte("v")), testSource(t))
	s := &scratch{}
	for _, c := range [][]byte{nil, ctx.append(nil), s.dataKeyAAD(1, &ctx)} {
		_, err := kek.Unwrap(c, sealed.WrappedKey)
		wantReason(t, err, problem.ReasonTampered)
	}
}

func TestKEKDoesNotPrint(t *testing.T) {
	kek, err := NewKEK(3, NewSecret([]byte(canary + canary)[:KeySize]))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%p"} {
		text := fmt.Sprintf(v, kek) + fmt.Sprintf(v, *kek) + fmt.Sprintf(v, struct{ k *KEK }{kek})
		if form := leaks(text); form != "" || strings.Contains(text, canary[:8]) {
			t.Errorf("%s leaks: %s", v, text)
		}
	}
}

// TestFIPSOnly runs this package's functional tests in a process where anything but FIPS 140-3
// approved cryptography panics or fails.
func TestFIPSOnly(t *testing.T) {
	const marker = "BAILMENT_TEST_FIPS"
	if os.Getenv(marker) != "" {
		if _, err := NewKEK(1, NewSecret(make([]byte, KeySize))); err != nil {
			t.Fatal(err)
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.v", "-test.run=^(TestFIPSOnly|TestFIPSOnlyIsEnforced|TestSealOpen|TestRewrap|TestWrapKey|TestSigningKeys|TestDerive|TestGenerate.*|TestSource.*)$")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only", marker+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"TestFIPSOnlyIsEnforced", "TestSealOpen", "TestSigningKeys", "TestGenerate"} {
		if !strings.Contains(string(out), "--- PASS: "+name) {
			t.Errorf("%s didn't run:\n%s", name, out)
		}
	}
}

var benchValue Secret

func BenchmarkOpenValue(b *testing.B) {
	kek, ctx, src := testKEK(b, 1), testContext(), testSource(b)
	for _, n := range []int{32, 1024, MaxValue} {
		sealed, err := SealValue(kek, ctx, NewSecret(bytes.Repeat([]byte{1}, n)), src)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(n))
			for b.Loop() {
				if benchValue, err = OpenValue(kek, ctx, sealed); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSealValue(b *testing.B) {
	kek, ctx, src := testKEK(b, 1), testContext(), testSource(b)
	value := NewSecret(bytes.Repeat([]byte{1}, 1024))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := SealValue(kek, ctx, value, src); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRewrap(b *testing.B) {
	from, to, ctx := testKEK(b, 1), testKEK(b, 2), testContext()
	sealed, err := SealValue(from, ctx, NewSecret([]byte("v")), testSource(b))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Rewrap(from, to, ctx, sealed.WrappedKey); err != nil {
			b.Fatal(err)
		}
	}
}
