package jointoken

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/attesttest"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors.json")

// Fixed keys for tests only: everything made with them is public.
func fixedToken(n byte) Token {
	m := new(material)
	genesis := attesttest.Array(1)
	copy(m.hint[:], genesis[:])
	copy(m.id[:], bytes.Repeat([]byte{0xa0 + n}, idSize))
	copy(m.seed[:], bytes.Repeat([]byte{0x50 + n}, seedSize))
	return tokenOf(m)
}

var now = attesttest.Now()

func binding() attest.Binding { return attesttest.Binding(Name) }

func record(t Token) Record {
	return Record{PublicKey: t.PublicKey(), Name: "web-1", Expires: now.Add(time.Hour), Genesis: attesttest.Array(1)}
}

func lookup(records map[string]Record) Params {
	return Params{Lookup: func(id string) (Record, bool) { r, ok := records[id]; return r, ok }}
}

func input(evidence []byte) attest.Input {
	tok := fixedToken(1)
	return attest.Input{Binding: binding(), Evidence: evidence, Now: now, Params: lookup(map[string]Record{tok.ID(): record(tok)})}
}

func evidenceOf(t testing.TB, tok Token, b attest.Binding) []byte {
	t.Helper()
	a, err := NewAttester(tok)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := a.Attest(context.Background(), b)
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func TestVerify(t *testing.T) {
	tok := fixedToken(1)
	ev := evidenceOf(t, tok, binding())
	got, err := Verify(input(ev))
	if err != nil {
		t.Fatal(err)
	}
	key, _ := attest.Thumbprint(tok.PublicKey())
	want := attest.Result{
		Claims:    map[string]any{"name": "web-1", "token": tok.ID()},
		Assurance: identity.Token,
		Anchor:    "join-token:" + tok.ID(),
		Once:      "join-token:" + tok.ID(),
		Key:       key,
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	// A lost answer: the same evidence verifies again. Whether it may count again is the caller's.
	if _, err := Verify(input(ev)); err != nil {
		t.Fatal(err)
	}
	if again := evidenceOf(t, tok, binding()); !bytes.Equal(again, ev) {
		t.Fatal("a retry makes other evidence")
	}
	if id, err := TokenID(ev); err != nil || id != tok.ID() {
		t.Fatalf("TokenID: %q, %v", id, err)
	}
	if bytes.Contains(ev, []byte(tok.Reveal()[len(Prefix):])) {
		t.Fatal("the token is in its evidence")
	}
}

// TestHostileEvidence is the table of what a thief, a relay and a fool would send.
func TestHostileEvidence(t *testing.T) {
	tok, other := fixedToken(1), fixedToken(2)
	good := string(evidenceOf(t, tok, binding()))
	var ev evidence
	if err := json.Unmarshal([]byte(good), &ev); err != nil {
		t.Fatal(err)
	}
	mangle := func(change func(*evidence)) []byte {
		e := ev
		e.Signature = bytes.Clone(ev.Signature)
		change(&e)
		out, _ := json.Marshal(e)
		return out
	}
	bound := func(change func(*attest.Binding)) []byte {
		b := binding()
		change(&b)
		out, _ := attest.EncodeEvidence(evidence{Environment: hintText(tok.get().hint), Token: tok.ID(), Signature: ed25519.Sign(tok.key(), b.Message())})
		return out
	}
	state := func(change func(*Record)) attest.Input {
		r := record(tok)
		change(&r)
		in := input([]byte(good))
		in.Params = lookup(map[string]Record{tok.ID(): r})
		return in
	}
	text := func(old, new string) attest.Input { return input([]byte(strings.Replace(good, old, new, 1))) }

	for name, c := range map[string]struct {
		in   attest.Input
		want problem.Reason
	}{
		"replay with another nonce":   {input(bound(func(b *attest.Binding) { b.Nonce = bytes.Repeat([]byte{8}, 32) })), problem.ReasonBadProof},
		"a longer nonce":              {input(bound(func(b *attest.Binding) { b.Nonce = append(bytes.Clone(b.Nonce), 7) })), problem.ReasonBadProof},
		"signed for other genesis":    {input(bound(func(b *attest.Binding) { b.Genesis = attesttest.Array(2) })), problem.ReasonBadProof},
		"same first 8 bytes, other":   {input(bound(func(b *attest.Binding) { b.Genesis[31]++ })), problem.ReasonBadProof},
		"other session key":           {input(bound(func(b *attest.Binding) { b.SessionKey = attesttest.Array(8) })), problem.ReasonBadProof},
		"signed for other method":     {input(bound(func(b *attest.Binding) { b.Method = "x509" })), problem.ReasonBadProof},
		"token of other environment":  {input(mangle(func(e *evidence) { e.Environment = "0202020202020202" })), problem.ReasonTokenForeign},
		"no environment":              {input(mangle(func(e *evidence) { e.Environment = "" })), problem.ReasonTokenForeign},
		"upper-case environment":      {input(mangle(func(e *evidence) { e.Environment = "0X01010101010101" })), problem.ReasonTokenForeign},
		"unknown token":               {input(mangle(func(e *evidence) { e.Token = other.ID() })), problem.ReasonTokenUnknown},
		"swapped key":                 {state(func(r *Record) { r.PublicKey = other.PublicKey() }), problem.ReasonBadProof},
		"forged by another token":     {input(mangle(func(e *evidence) { e.Signature = ed25519.Sign(other.key(), binding().Message()) })), problem.ReasonBadProof},
		"signature over nothing":      {input(mangle(func(e *evidence) { e.Signature = ed25519.Sign(tok.key(), nil) })), problem.ReasonBadProof},
		"flipped signature bit":       {input(mangle(func(e *evidence) { e.Signature[0] ^= 1 })), problem.ReasonBadProof},
		"flipped last bit":            {input(mangle(func(e *evidence) { e.Signature[63] ^= 0x20 })), problem.ReasonBadProof},
		"short signature":             {input(mangle(func(e *evidence) { e.Signature = e.Signature[:63] })), problem.ReasonBadProof},
		"long signature":              {input(mangle(func(e *evidence) { e.Signature = append(e.Signature, 0) })), problem.ReasonBadProof},
		"empty signature":             {input(mangle(func(e *evidence) { e.Signature = []byte{} })), problem.ReasonBadProof},
		"null signature":              {input(mangle(func(e *evidence) { e.Signature = nil })), problem.ReasonBadProof},
		"zero signature":              {input(mangle(func(e *evidence) { e.Signature = make([]byte, 64) })), problem.ReasonBadProof},
		"malleable signature (S + L)": {input(mangle(func(e *evidence) { addOrder(e.Signature[32:]) })), problem.ReasonBadProof},
		"expired this moment":         {state(func(r *Record) { r.Expires = now }), problem.ReasonTokenExpired},
		"expired long ago":            {state(func(r *Record) { r.Expires = now.Add(-1000 * time.Hour) }), problem.ReasonTokenExpired},
		"record of other environment": {state(func(r *Record) { r.Genesis = attesttest.Array(3) }), problem.ReasonTokenForeign},
		"record without expiry":       {state(func(r *Record) { r.Expires = time.Time{} }), problem.ReasonInternal},
		"record without key":          {state(func(r *Record) { r.PublicKey = nil }), problem.ReasonInternal},
		"short ID":                    {input(mangle(func(e *evidence) { e.Token = e.Token[:31] })), problem.ReasonInvalid},
		"upper-case ID":               {input(mangle(func(e *evidence) { e.Token = strings.ToUpper(e.Token) })), problem.ReasonInvalid},
		"ID with a slash":             {input(mangle(func(e *evidence) { e.Token = "../" + e.Token[3:] })), problem.ReasonInvalid},
		"the token itself":            {input([]byte(tok.Reveal())), problem.ReasonInvalid},
		"empty":                       {input(nil), problem.ReasonInvalid},
		"null":                        {input([]byte("null")), problem.ReasonInvalid},
		"truncated":                   {input([]byte(good[:len(good)-1])), problem.ReasonInvalid},
		"trailing":                    {input([]byte(good + "{}")), problem.ReasonInvalid},
		"duplicate field":             {text(`{"environment"`, `{"token":"`+other.ID()+`","environment"`), problem.ReasonInvalid},
		"unknown field":               {text(`{"environment"`, `{"alg":"none","environment"`), problem.ReasonInvalid},
		"other letter case":           {text(`"token"`, `"Token"`), problem.ReasonInvalid},
		"white space":                 {text(`,`, `, `), problem.ReasonInvalid},
		"oversized":                   {input(append([]byte(good), make([]byte, attest.MaxEvidence)...)), problem.ReasonTooLarge},
		"deeply nested":               {input([]byte(strings.Repeat(`{"a":`, 10_000))), problem.ReasonInvalid},
		"params of another method":    {attest.Input{Binding: binding(), Evidence: []byte(good), Now: now, Params: 1}, problem.ReasonInternal},
		"binding of another method":   {attest.Input{Binding: attest.Binding{Method: "x509", Genesis: attesttest.Array(1), Nonce: make([]byte, 16), SessionKey: attesttest.Array(9)}, Evidence: []byte(good), Now: now}, problem.ReasonInternal},
		"no time":                     {attest.Input{Binding: binding(), Evidence: []byte(good)}, problem.ReasonInternal},
		"expired, and not the holder's": {func() attest.Input {
			in := state(func(r *Record) { r.Expires = now })
			in.Evidence = mangle(func(e *evidence) { e.Signature[5] ^= 1 })
			return in
		}(), problem.ReasonBadProof},
	} {
		t.Run(name, func(t *testing.T) {
			res, err := Verify(c.in)
			if !problem.Is(err, c.want) {
				t.Fatalf("got %v, want %s", err, c.want)
			}
			if !reflect.DeepEqual(res, attest.Result{}) {
				t.Fatalf("a result beside the refusal: %+v", res)
			}
		})
	}
}

// addOrder adds the group order L to the scalar S, which gives a second signature where verifiers
// don't insist on S < L (RFC 8032 §8.4).
func addOrder(s []byte) {
	l := [32]byte{
		0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
		31: 0x10,
	}
	carry := 0
	for i := range s {
		carry += int(s[i]) + int(l[i])
		s[i], carry = byte(carry), carry>>8
	}
}

func TestAttesterRefuses(t *testing.T) {
	tok := fixedToken(1)
	a, err := NewAttester(tok)
	if err != nil {
		t.Fatal(err)
	}
	foreign := binding()
	foreign.Genesis = attesttest.Array(2)
	if ev, err := a.Attest(context.Background(), foreign); !problem.Is(err, problem.ReasonTokenForeign) || ev != nil {
		t.Errorf("another environment: %s, %v", ev, err)
	}
	wrong := binding()
	wrong.Method = "x509"
	if _, err := a.Attest(context.Background(), wrong); !problem.Is(err, problem.ReasonInternal) {
		t.Errorf("another method: %v", err)
	}
	if _, err := a.Attest(context.Background(), attest.Binding{}); err == nil {
		t.Error("an empty binding was signed")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := a.Attest(ctx, binding()); !problem.Is(err, problem.ReasonCanceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := NewAttester(Token{}); err == nil {
		t.Error("no token, no error")
	}
}

func TestTokenText(t *testing.T) {
	tok, err := New(attesttest.Array(1))
	if err != nil {
		t.Fatal(err)
	}
	text := tok.Reveal()
	if len(text) != textSize || !strings.HasPrefix(text, "bjt1_") {
		t.Fatalf("%d characters", len(text))
	}
	back, err := Parse(" " + text + "\n")
	if err != nil || *back.get() != *tok.get() {
		t.Fatalf("%v", err)
	}
	if !back.Of(attesttest.Array(1)) || back.Of(attesttest.Array(2)) || (Token{}).Of([32]byte{}) {
		t.Fatal("Of is wrong")
	}
	if two, _ := New(attesttest.Array(1)); two.ID() == tok.ID() || bytes.Equal(two.PublicKey(), tok.PublicKey()) {
		t.Fatal("two tokens are alike")
	}
	// Every single mistyped character is noticed.
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for i := len(Prefix); i < len(text); i++ {
		c := alphabet[(strings.IndexByte(alphabet, text[i])+1)%len(alphabet)]
		if _, err := Parse(text[:i] + string(c) + text[i+1:]); err == nil {
			t.Fatalf("a typo at %d was not noticed", i)
		}
	}
	for name, bad := range map[string]string{
		"empty": "", "prefix only": Prefix, "no prefix": text[5:], "other version": "bjt2_" + text[5:],
		"cut": text[:len(text)-1], "longer": text + "A", "two": text + text, "space inside": text[:40] + " " + text[41:],
		"swapped": text[:20] + text[40:60] + text[20:40] + text[60:], "plus": text[:40] + "+" + text[41:],
	} {
		_, err := Parse(bad)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		for i := len(Prefix); i+8 <= len(text); i++ {
			if strings.Contains(err.Error(), text[i:i+8]) {
				t.Errorf("%s: the error shows the token", name)
			}
		}
	}
}

func TestTokenDoesNotPrint(t *testing.T) {
	tok := fixedToken(1)
	var forbidden []string
	seed, text := tok.get().seed[:], tok.Reveal()
	forbidden = append(forbidden, text[len(Prefix)+33:len(Prefix)+70], string(seed), fmt.Sprintf("%x", seed), fmt.Sprintf("%X", seed), fmt.Sprint(seed)[1:20], base64.StdEncoding.EncodeToString(seed))
	var log bytes.Buffer
	for _, l := range []*slog.Logger{slog.New(slog.NewTextHandler(&log, nil)), slog.New(slog.NewJSONHandler(&log, nil))} {
		l.Info("x", "token", tok, "holder", struct{ T Token }{tok}, "ptr", &tok)
	}
	out := []string{log.String()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%T", "%p", "%10.3s"} {
		out = append(out, fmt.Sprintf(verb, tok), fmt.Sprintf(verb, &tok), fmt.Sprintf(verb, []Token{tok}), fmt.Sprintf(verb, struct{ T Token }{tok}), fmt.Sprintf(verb, struct{ t Token }{tok}))
	}
	for _, v := range []any{tok, map[string]any{"t": tok}, struct{ T Token }{tok}} {
		if data, err := json.Marshal(v); err == nil {
			t.Errorf("marshalled: %s", data)
		} else {
			out = append(out, err.Error())
		}
	}
	for _, o := range out {
		for _, f := range forbidden {
			if strings.Contains(o, f) {
				t.Errorf("%q shows the seed", o)
			}
		}
	}
	if got := tok.String(); got != "[join token "+tok.ID()+"]" {
		t.Error(got)
	}
}

func TestWipe(t *testing.T) {
	tok := fixedToken(3)
	dup := tok
	tok.Wipe()
	if dup.get().seed != [seedSize]byte{} {
		t.Fatal("the seed is still there")
	}
	(Token{}).Wipe()
}

func TestRecordValidate(t *testing.T) {
	good := record(fixedToken(1))
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Record){
		"no key":     func(r *Record) { r.PublicKey = nil },
		"no expiry":  func(r *Record) { r.Expires = time.Time{} },
		"no genesis": func(r *Record) { r.Genesis = [32]byte{} },
		"no name":    func(r *Record) { r.Name = "" },
		"slash":      func(r *Record) { r.Name = "a/b" },
		"dot first":  func(r *Record) { r.Name = ".." },
		"newline":    func(r *Record) { r.Name = "a\nb" },
		"umlaut":     func(r *Record) { r.Name = "wüb" },
		"long name":  func(r *Record) { r.Name = strings.Repeat("a", MaxName+1) },
	} {
		r := good
		change(&r)
		if r.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// vector is one line of testdata/vectors.json: what another implementation needs to agree with us.
type vector struct {
	attesttest.Bound
	PublicKey []byte    `json:"public_key"`
	Expires   time.Time `json:"expires"`
	attesttest.Case
}

func (v vector) Input(testing.TB) attest.Input {
	r := Record{PublicKey: v.PublicKey, Name: "web-1", Expires: v.Expires, Genesis: [32]byte(v.Genesis)}
	return v.InputOf(Name, v.Case, lookup(map[string]Record{fixedToken(1).ID(): r}))
}

func vectors(t testing.TB) []vector {
	make := func(comment string, b attest.Binding, tok Token, at time.Time, ev []byte) vector {
		r := record(fixedToken(1))
		return vector{
			Bound: attesttest.BoundTo(comment, b), PublicKey: r.PublicKey, Expires: r.Expires,
			Case: attesttest.Case{Now: at, Evidence: string(ev)},
		}
	}
	tok, b := fixedToken(1), binding()
	good := evidenceOf(t, tok, b)
	short := b
	short.Nonce = b.Nonce[:16]
	ok, least := make("accepted", b, tok, now, good), make("accepted: the shortest nonce", short, tok, now, evidenceOf(t, tok, short))
	ok.Claims = map[string]any{"name": "web-1", "token": tok.ID()}
	least.Claims = ok.Claims
	late := make("expired", b, tok, now.Add(time.Hour), good)
	late.Refused = problem.ReasonTokenExpired
	replay := make("another nonce", short, tok, now, good)
	replay.Refused = problem.ReasonBadProof
	unknown := make("another token", b, tok, now, evidenceOf(t, fixedToken(2), b))
	unknown.Refused = problem.ReasonTokenUnknown
	return []vector{ok, least, late, replay, unknown}
}

func TestVectors(t *testing.T) {
	if *update {
		attesttest.Write(t, vectors(t))
	}
	if !bytes.Equal(attesttest.Stored(t), attesttest.Encode(t, vectors(t))) {
		t.Error("what we make is no longer what the vectors say: the wire format changed")
	}
	for _, v := range attesttest.Read[vector](t, 5) {
		attesttest.Check(t, Verify, v.Comment, v)
	}
}

func FuzzVerify(f *testing.F) {
	good := evidenceOf(f, fixedToken(1), binding())
	f.Add(good)
	for _, v := range vectors(f) {
		f.Add([]byte(v.Evidence))
	}
	f.Add([]byte(`{"environment":"0101010101010101","token":"","signature":""}`))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := Verify(input(data))
		// Ed25519 evidence has one encoding and one signature, so only the true one may pass.
		if (err == nil) != bytes.Equal(data, good) {
			t.Fatalf("%q: %v", data, err)
		}
		if err != nil {
			if problem.KindOf(err) == problem.Internal {
				t.Fatalf("a stranger caused an internal error: %v", err)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(fixedToken(1).Reveal())
	f.Add(Prefix + strings.Repeat("A", 80))
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := Parse(text)
		if err == nil && tok.Reveal() != strings.TrimSpace(text) {
			t.Fatalf("%q has a second spelling", text)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	in := input(evidenceOf(b, fixedToken(1), binding()))
	for b.Loop() {
		if _, err := Verify(in); err != nil {
			b.Fatal(err)
		}
	}
}
