package verify

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

const testOrigin = "bailment/prod/0123456789abcdef/1"

// testLog is a log in memory, with entries "entry 0", "entry 1" … unless forked says otherwise.
type testLog struct {
	signer note.Signer
	vkey   string
	salts  [][SaltSize]byte
	bodies [][]byte
	hashes []tlog.Hash
}

func newKey(t testing.TB, name string, seed byte) (note.Signer, string) {
	t.Helper()
	skey, vkey, err := note.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{seed}, ed25519.SeedSize)), name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	return s, vkey
}

func newLog(t testing.TB, entries int, change map[int]string) *testLog {
	t.Helper()
	l := &testLog{}
	l.signer, l.vkey = newKey(t, testOrigin, 1)
	for i := range entries {
		body := fmt.Sprintf(`{"type":"test","n":%d}`, i)
		if c, ok := change[i]; ok {
			body = c
		}
		salt := [SaltSize]byte{byte(i), byte(i >> 8), 0xa5}
		c := LeafCommitment(salt, []byte(body))
		more, err := tlog.StoredHashes(int64(i), c[:], l)
		if err != nil {
			t.Fatal(err)
		}
		l.salts, l.bodies, l.hashes = append(l.salts, salt), append(l.bodies, []byte(body)), append(l.hashes, more...)
	}
	return l
}

func (l *testLog) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, n := range indexes {
		if n >= int64(len(l.hashes)) {
			return nil, errors.New("no such hash")
		}
		out[i] = l.hashes[n]
	}
	return out, nil
}

func (l *testLog) checkpoint(t testing.TB, size int64) Checkpoint {
	t.Helper()
	root, err := tlog.TreeHash(size, l)
	if err != nil {
		t.Fatal(err)
	}
	return Checkpoint{testOrigin, size, root}
}

func sign(t testing.TB, text string, signers ...note.Signer) []byte {
	t.Helper()
	b, err := note.Sign(&note.Note{Text: text}, signers...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (l *testLog) signed(t testing.TB, size int64) []byte {
	return sign(t, l.checkpoint(t, size).Text(), l.signer)
}

func (l *testLog) receipt(t testing.TB, size, index int64) Receipt {
	t.Helper()
	proof, err := tlog.ProveRecord(size, index, l)
	if err != nil {
		t.Fatal(err)
	}
	return Receipt{l.salts[index], l.bodies[index], index, proof, l.signed(t, size)}
}

func (l *testLog) text(t testing.TB, size, index int64) []byte {
	t.Helper()
	b, err := FormatReceipt(l.receipt(t, size, index))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (l *testLog) verifier(t testing.TB) note.Verifier {
	t.Helper()
	v, err := ParseVerifier(l.vkey)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// The leaf format never changes: this digest was computed with sha256sum.
func TestLeafCommitment(t *testing.T) {
	salt := [SaltSize]byte([]byte("0123456789abcdef"))
	got := LeafCommitment(salt, []byte(`{"a":1}`))
	if want := sha256.Sum256([]byte("bailment/leaf/v1\n0123456789abcdef{\"a\":1}")); got != want {
		t.Errorf("%x", got)
	}
	if want := "e7ce5d3e6e5c078e433a10a81623e44fe899c4302d2ad4cc12807385c3c58541"; hex.EncodeToString(got[:]) != want {
		t.Errorf("%x", got)
	}
	if LeafHash(got) != sha256.Sum256(append([]byte{0}, got[:]...)) {
		t.Error("leaf hash is not RFC 6962's")
	}
}

func TestReceipts(t *testing.T) {
	l := newLog(t, 70, nil)
	for _, size := range []int64{1, 2, 3, 7, 8, 64, 65, 70} {
		for index := range size {
			text := l.text(t, size, index)
			v, err := VerifyReceipt(text, l.vkey)
			if err != nil {
				t.Fatalf("%d of %d: %v", index, size, err)
			}
			if v.Index != index || v.Checkpoint.Size != size || v.Checkpoint.Origin != testOrigin || !bytes.Equal(v.Body, l.bodies[index]) {
				t.Fatalf("%d of %d: proved something else: %+v", index, size, v)
			}
			r, _ := ParseReceipt(text)
			if again, _ := FormatReceipt(*r); !bytes.Equal(again, text) {
				t.Fatalf("%d of %d: not canonical", index, size)
			}
		}
	}
}

func TestReceiptLimits(t *testing.T) {
	l := newLog(t, 3, map[int]string{1: strings.Repeat("b", MaxBody)})
	text := l.text(t, 3, 1)
	if len(text) > MaxReceipt {
		t.Fatalf("the longest body gives a receipt of %d bytes", len(text))
	}
	if v, err := VerifyReceipt(text, l.vkey); err != nil || len(v.Body) != MaxBody {
		t.Fatal(err)
	}
	r := l.receipt(t, 3, 1)
	for name, change := range map[string]func(*Receipt){
		"body":       func(r *Receipt) { r.Body = make([]byte, MaxBody+1) },
		"no body":    func(r *Receipt) { r.Body = nil },
		"proof":      func(r *Receipt) { r.Proof = make(tlog.RecordProof, maxProof+1) },
		"checkpoint": func(r *Receipt) { r.Checkpoint = make([]byte, MaxCheckpoint+1) },
	} {
		bad := r
		change(&bad)
		if _, err := FormatReceipt(bad); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: formatted: %v", name, err)
		}
	}
	r.Index = -1
	if _, err := FormatReceipt(r); err == nil {
		t.Error("formatted a negative index")
	}
	// The longest of everything still fits: what we can write, we can read.
	r = Receipt{Body: make([]byte, MaxBody), Index: maxSize, Proof: make(tlog.RecordProof, maxProof), Checkpoint: make([]byte, MaxCheckpoint)}
	text, err := FormatReceipt(r)
	if err != nil || len(text) > MaxReceipt {
		t.Fatalf("%d bytes, %v", len(text), err)
	}
	if _, err := ParseReceipt(text); err != nil {
		t.Error(err)
	}
}

// TestReceiptFaults plants one fault at a time in a good receipt; each is refused for its own reason.
func TestReceiptFaults(t *testing.T) {
	l := newLog(t, 13, nil)
	other, _ := newKey(t, "bailment/other/0123456789abcdef/1", 9)
	good := string(l.text(t, 13, 5))
	body64 := func(salt, body string) string {
		return base64.StdEncoding.EncodeToString([]byte(salt + body))
	}
	lines := strings.Split(good, "\n")
	extra, index, hash0, hash1 := lines[1], lines[2], lines[3], lines[4]
	signature := lines[len(lines)-2]
	oneOf := func(old, new string) func() string {
		return func() string {
			if strings.Count(good, old) < 1 {
				t.Fatalf("%q is not in the receipt", old)
			}
			return strings.Replace(good, old, new, 1)
		}
	}
	resigned := func(text string, signers ...note.Signer) func() string {
		return func() string {
			i := strings.Index(good, "\n\n")
			return good[:i+2] + string(sign(t, text, signers...))
		}
	}
	cp := l.checkpoint(t, 13)
	text := cp.Text()
	bigger := Checkpoint{testOrigin, 33, cp.Root} // a size whose proofs are longer
	smaller := Checkpoint{testOrigin, 5, cp.Root}
	huge := Checkpoint{testOrigin, 1<<62 + 1, cp.Root}
	rootBits := cp.Root.String()
	sameBits := rootBits[:42] + string(sloppy(rootBits[42])) + "="
	faults := []struct {
		name  string
		fault func() string
		kind  error
		say   string // a part of the error's text, different for each fault
	}{
		{"empty", func() string { return "" }, ErrMalformed, "first line is not c2sp.org/tlog-proof@v1"},
		{"another version", oneOf("@v1", "@v2"), ErrMalformed, "first line is not"},
		{"leading space", func() string { return " " + good }, ErrMalformed, "first line is not"},
		{"carriage returns", func() string { return strings.ReplaceAll(good, "\n", "\r\n") }, ErrMalformed, "first line is not"},
		{"too long", func() string { return good + strings.Repeat("x", MaxReceipt) }, ErrTooLarge, "receipt of"},
		{"no extra", oneOf(extra+"\n", ""), ErrMalformed, "no extra line"},
		{"extra twice", oneOf(extra+"\n", extra+"\n"+extra+"\n"), ErrMalformed, "no index line"},
		{"extra not base64", oneOf("extra ", "extra !"), ErrMalformed, "extra line: not canonical base64"},
		{"extra with carriage return", oneOf(extra, extra+"\r"), ErrMalformed, "extra line: not canonical base64"},
		{"extra without padding", oneOf(extra, strings.TrimRight("extra "+body64("0123456789abcdef", "abc"), "=")), ErrMalformed, "extra line: not canonical base64"},
		{"salt only", oneOf(extra, "extra "+body64("0123456789abcdef", "")), ErrMalformed, "extra line: 16 bytes, want a salt"},
		{"empty extra", oneOf(extra, "extra "), ErrMalformed, "extra line: 0 bytes"},
		{"body too long", oneOf(extra, "extra "+body64("0123456789abcdef", strings.Repeat("b", MaxBody+1))), ErrMalformed, "a body of 32769 bytes"},
		{"another body", oneOf(extra, "extra "+body64(string(l.salts[5][:]), `{"type":"test","n":6}`)), ErrProof, "the entry is not number 5"},
		{"another salt", oneOf(extra, "extra "+body64("0123456789abcdef", string(l.bodies[5]))), ErrProof, "the entry is not number 5"},
		{"byte moved from body to salt", oneOf(extra, "extra "+body64(string(l.salts[5][1:]), string(l.bodies[5])+"\x00")), ErrProof, "the entry is not number 5"},
		{"entry of its neighbour", oneOf(extra, "extra "+body64(string(l.salts[4][:]), string(l.bodies[4]))), ErrProof, "the entry is not number 5"},
		{"no index", oneOf(index+"\n", ""), ErrMalformed, "no index line"},
		{"index moved", oneOf(index, "index 4"), ErrProof, "the entry is not number 4"},
		{"index with zero", oneOf(index, "index 05"), ErrMalformed, `index: "05"`},
		{"index with sign", oneOf(index, "index +5"), ErrMalformed, `index: "+5"`},
		{"negative index", oneOf(index, "index -5"), ErrMalformed, `index: "-5"`},
		{"hexadecimal index", oneOf(index, "index 0x5"), ErrMalformed, `index: "0x5"`},
		{"index too big for a number", oneOf(index, "index 99999999999999999999"), ErrMalformed, `index: "99999999999999999999"`},
		{"index at the size", oneOf(index, "index 13"), ErrProof, "index 13 is not below the checkpoint's size 13"},
		{"hash missing", oneOf(hash0+"\n", ""), ErrProof, "the entry is not number 5"},
		{"hash twice", oneOf(hash0+"\n", hash0+"\n"+hash0+"\n"), ErrProof, "the entry is not number 5"},
		{"hashes swapped", oneOf(hash0+"\n"+hash1, hash1+"\n"+hash0), ErrProof, "the entry is not number 5"},
		{"hash too short", oneOf(hash0, base64.StdEncoding.EncodeToString(make([]byte, 31))), ErrMalformed, "hash 0 of the proof"},
		{"hash with loose bits", oneOf(hash1, hash1[:42]+string(sloppy(hash1[42]))+"="), ErrMalformed, "hash 1 of the proof"},
		{"too many hashes", oneOf(hash0+"\n", strings.Repeat(hash0+"\n", maxProof)), ErrMalformed, "more than 64 hashes"},
		{"no empty line", oneOf("\n\n"+testOrigin, "\n"+testOrigin), ErrMalformed, "of the proof"},
		{"cut before the checkpoint", func() string { return good[:strings.Index(good, "\n\n")+1] }, ErrMalformed, "no empty line before the checkpoint"},
		{"checkpoint missing", func() string { return good[:strings.Index(good, "\n\n")+2] }, ErrMalformed, "no checkpoint"},
		{"two empty lines", oneOf("\n\n"+testOrigin, "\n\n\n"+testOrigin), ErrSignature, "signature by bailment/prod"},
		{"checkpoint too long", oneOf("\n\n"+testOrigin, "\n\n"+strings.Repeat("x", MaxCheckpoint)+testOrigin), ErrTooLarge, "checkpoint of"},
		{"unsigned", resigned(text), ErrMalformed, "last line does not end"},
		{"signed by another log", resigned(text, other), ErrSignature, "none of the given keys"},
		{"signature cut", oneOf(signature, signature[:len(signature)-4]), ErrSignature, "signature by bailment/prod"},
		{"signature line twice", oneOf(signature, signature+"\n"+signature), ErrMalformed, "two signatures by one key"},
		{"signature with a trailing space", oneOf(signature, signature+" "), ErrMalformed, "is not canonical base64"},
		{"hyphen for dash", oneOf("— ", "- "), ErrMalformed, "is not a signature line"},
		{"many signatures", oneOf(signature, strings.Repeat(signature+"\n", MaxSignatures)+signature), ErrTooLarge, "with 33 signatures"},
		{"no final newline", func() string { return strings.TrimSuffix(good, "\n") }, ErrMalformed, "last line does not end"},
		{"text behind", func() string { return good + "more\n" }, ErrMalformed, `"more" is not a signature line`},
		{"note changed", oneOf("\n13\n", "\n14\n"), ErrSignature, "signature by bailment/prod"},
		{"signed with another size", resigned(bigger.Text(), l.signer), ErrProof, "number 5 of the 33"},
		{"signed with a smaller size", resigned(smaller.Text(), l.signer), ErrProof, "index 5 is not below the checkpoint's size 5"},
		{"signed with a size that hangs", resigned(huge.Text(), l.signer), ErrMalformed, "checkpoint: size"},
		{"signed with an extension", resigned(text+"extension\n", l.signer), ErrMalformed, "extension lines"},
		{"signed without a root", resigned(testOrigin+"\n13\n", l.signer), ErrMalformed, "2 whole lines"},
		{"signed with zeroes in front", resigned(strings.Replace(text, "\n13\n", "\n013\n", 1), l.signer), ErrMalformed, `size: "013"`},
		{"signed with loose bits", resigned(strings.Replace(text, rootBits, sameBits, 1), l.signer), ErrMalformed, "root hash"},
		{"signed with another origin", resigned(strings.Replace(text, "prod", "test", 1), l.signer), ErrSignature, "but not by its log bailment/test"},
		{"signed with a bad origin", resigned("a+b\n13\n"+rootBits+"\n", l.signer), ErrMalformed, "not a log's name"},
		{"signed empty tree with a root", resigned(testOrigin+"\n0\n"+rootBits+"\n", l.signer), ErrMalformed, "empty tree with the root of another"},
	}
	if len(faults) < 25 {
		t.Fatal("too few faults")
	}
	if _, err := VerifyReceipt([]byte(good), l.vkey); err != nil {
		t.Fatal("the good one is refused:", err)
	}
	for _, f := range faults {
		v, err := VerifyReceipt([]byte(f.fault()), l.vkey)
		if !errors.Is(err, f.kind) || !strings.Contains(err.Error(), f.say) {
			t.Errorf("%s: got %v, want %v with %q", f.name, err, f.kind, f.say)
		}
		if err != nil && v.Body != nil {
			t.Errorf("%s: gave a body together with an error", f.name)
		}
	}
}

// sloppy returns another base64 digit that differs only in bits beyond the data of a 32 byte value.
func sloppy(c byte) byte {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	return digits[strings.IndexByte(digits, c)|1]
}

// No bit of a receipt can be changed, nothing cut off, nothing inserted.
func TestReceiptEveryBit(t *testing.T) {
	l := newLog(t, 6, nil)
	good := l.text(t, 6, 2)
	v := l.verifier(t)
	check := func(b []byte) bool {
		r, err := ParseReceipt(b)
		if err != nil {
			return false
		}
		_, err = r.Verify(v)
		return err == nil
	}
	if !check(good) {
		t.Fatal("the good one is refused")
	}
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			if check(bad) {
				t.Errorf("bit %d of byte %d (%q) can be changed", bit, i, good[i])
			}
		}
		if check(good[:i]) {
			t.Errorf("verifies when cut at %d", i)
		}
		for _, c := range []byte{'\n', '\r', ' ', '=', 'A', 0} {
			if check(append(append(bytes.Clone(good[:i]), c), good[i:]...)) {
				t.Errorf("verifies with %q inserted at %d", c, i)
			}
		}
	}
}

func TestOpenCheckpoint(t *testing.T) {
	l := newLog(t, 4, nil)
	text := l.checkpoint(t, 4).Text()
	rotated, rotatedKey := newKey(t, testOrigin, 2)
	witness, witnessKey := newKey(t, "witness.example", 3)
	parse := func(keys ...string) (out []note.Verifier) {
		for _, k := range keys {
			v, err := ParseVerifier(k)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, v)
		}
		return out
	}
	signed := sign(t, text, l.signer, rotated, witness)
	for _, c := range []struct {
		keys    []string
		signers string
	}{
		{[]string{l.vkey}, testOrigin},
		{[]string{rotatedKey}, testOrigin},
		{[]string{l.vkey, rotatedKey, witnessKey}, testOrigin + " " + testOrigin + " witness.example"},
	} {
		o, err := OpenCheckpoint(signed, parse(c.keys...)...)
		if err != nil || strings.Join(o.Signers, " ") != c.signers || o.Checkpoint != l.checkpoint(t, 4) {
			t.Errorf("%v %v", o, err)
		}
	}
	// A witness alone doesn't speak for the log, nor does no key at all.
	for _, keys := range [][]string{{witnessKey}, nil} {
		if _, err := OpenCheckpoint(signed, parse(keys...)...); !errors.Is(err, ErrSignature) {
			t.Error(err)
		}
	}
	// A wrong signature by a known witness is not passed over.
	forged := bytes.Clone(signed)
	forged[bytes.Index(forged, []byte("witness.example "))+len("witness.example ")+20] ^= 1
	if _, err := OpenCheckpoint(forged, parse(l.vkey, witnessKey)...); !errors.Is(err, ErrSignature) {
		t.Error("forged witness:", err)
	}
	if _, err := OpenCheckpoint(forged, parse(l.vkey)...); err != nil {
		t.Error("a witness nobody asked about:", err)
	}
	empty := newLog(t, 0, nil)
	if o, err := OpenCheckpoint(empty.signed(t, 0), parse(l.vkey)...); err != nil || o.Size != 0 {
		t.Error("empty log:", err)
	}
}

func TestParseVerifier(t *testing.T) {
	l := newLog(t, 0, nil)
	name, rest, _ := strings.Cut(l.vkey, "+")
	hash, key, _ := strings.Cut(rest, "+")
	mlDSA := base64.StdEncoding.EncodeToString(append([]byte{6}, make([]byte, 32)...))
	for what, vkey := range map[string]string{
		"empty": "", "name": name, "no hash": name + "++" + key, "upper case hash": name + "+" + strings.ToUpper(hash) + "+" + key,
		"other name": name + "x+" + rest, "newline": l.vkey + "\n", "newline inside": name + "+" + hash + "+" + key[:20] + "\n" + key[20:],
		"long": name + "+" + hash + "+" + strings.Repeat("A", maxVkey), "algorithm": name + "+" + hash + "+" + mlDSA, "cut": l.vkey[:len(l.vkey)-4],
	} {
		if strings.ToUpper(hash) == hash && what == "upper case hash" {
			t.Fatal("choose a seed whose hash has a letter")
		}
		if _, err := ParseVerifier(vkey); err == nil {
			t.Errorf("%s: accepted %q", what, vkey)
		}
	}
	if v, err := ParseVerifier(l.vkey); err != nil || v.Name() != testOrigin {
		t.Error(err)
	}
	if _, err := VerifyReceipt(nil, "x"); !errors.Is(err, ErrKey) {
		t.Error(err)
	}
}

// Consistency, checked with package tlog as the reference for every pair of sizes.
func TestCheckConsistency(t *testing.T) {
	const n = 24
	l, fork := newLog(t, n, nil), newLog(t, n, map[int]string{3: "another"})
	for older := range int64(n) {
		for newer := older; newer <= n; newer++ {
			a, b := l.checkpoint(t, older), l.checkpoint(t, newer)
			var proof tlog.TreeProof
			if older > 0 && older < newer {
				var err error
				if proof, err = tlog.ProveTree(newer, older, l); err != nil {
					t.Fatal(err)
				}
			}
			if err := CheckConsistency(a, b, proof); err != nil {
				t.Fatalf("%d to %d: %v", older, newer, err)
			}
			if older > 3 {
				if err := CheckConsistency(fork.checkpoint(t, older), b, proof); !errors.Is(err, ErrInconsistent) {
					t.Fatalf("%d to %d: a fork is consistent: %v", older, newer, err)
				}
			}
			for i := range proof {
				bad := append(tlog.TreeProof(nil), proof...)
				bad[i][7] ^= 1
				if err := CheckConsistency(a, b, bad); !errors.Is(err, ErrInconsistent) {
					t.Fatalf("%d to %d: hash %d can be changed", older, newer, i)
				}
			}
		}
	}
	a, b := l.checkpoint(t, 5), l.checkpoint(t, 9)
	proof, _ := tlog.ProveTree(9, 5, l)
	stranger := b
	stranger.Origin += "0"
	giant := b
	giant.Size = 1<<62 + 1
	for name, err := range map[string]error{
		"backwards":       CheckConsistency(b, a, proof),
		"another log":     CheckConsistency(a, stranger, proof),
		"no proof":        CheckConsistency(a, b, nil),
		"longer proof":    CheckConsistency(a, b, append(proof, tlog.Hash{})),
		"giant":           CheckConsistency(a, giant, proof),
		"negative":        CheckConsistency(Checkpoint{Origin: testOrigin, Size: -1}, b, proof),
		"needless hashes": CheckConsistency(a, a, proof),
		"giant proof":     CheckConsistency(a, b, make(tlog.TreeProof, maxProof+1)),
	} {
		if err == nil {
			t.Errorf("%s: consistent", name)
		}
	}
}

// Any signed checkpoint text that parses is the one text of its value.
func TestCheckpointCanonical(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Checkpoint{
			Origin: rapid.StringMatching(`[a-z0-9./-]{1,40}`).Draw(t, "origin"),
			Size:   rapid.Int64Range(1, maxSize).Draw(t, "size"),
			Root:   tlog.Hash(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "root")),
		}
		got, err := ParseCheckpoint(c.Text())
		if err != nil || got != c {
			t.Fatal(got, err)
		}
	})
}
