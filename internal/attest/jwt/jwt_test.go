package jwt_test

import (
	"bytes"
	"crypto/rsa"
	"encoding/json"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/problem"
)

const (
	issuerURL = "https://token.example.com"
	audience  = "bailment:v1:01"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func expect() jwt.Expect {
	return jwt.Expect{Issuer: issuerURL, Audience: audience, Now: now, Skew: jwt.MaxSkew, MaxLifetime: time.Hour}
}

func claims() map[string]any {
	return map[string]any{
		"iss": issuerURL, "aud": audience, "sub": "job", "jti": "1", "iat": now.Add(-time.Minute).Unix(), "nbf": now.Add(-time.Minute).Unix(),
		"exp": now.Add(10 * time.Minute).Unix(),
	}
}

func TestAlgorithms(t *testing.T) {
	for _, alg := range []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.EdDSA,
	} {
		issuer := jwttest.New(t, issuerURL, alg)
		token := issuer.Sign(claims())
		got, err := jwt.Verify(token, issuer.Keys(), expect())
		if err != nil {
			t.Errorf("%s: %v", alg, err)
			continue
		}
		key, err := attest.Thumbprint(issuer.Key.Public())
		if err != nil {
			t.Fatal(err)
		}
		if got.ID != "1" || got.Subject != "job" || got.Algorithm != string(alg) || got.Key != key || got.Unique == [32]byte{} ||
			!got.Issued.Equal(now.Add(-time.Minute)) || !got.Expires.Equal(now.Add(10*time.Minute)) {
			t.Errorf("%s: %+v", alg, got)
		}
		head, named, err := jwt.Head(token)
		if err != nil || named != string(alg) || head.Issuer != issuerURL || head.KeyID != "key-1" {
			t.Errorf("%s: %+v, %s, %v", alg, head, named, err)
		}
	}
}

// method is the smallest one over this package, so that its table of attacks can run here.
func method() attest.Method {
	return attest.Method{Name: "token", Verify: func(in attest.Input) (attest.Result, error) {
		var ev struct {
			Token string `json:"token"`
		}
		if err := attest.DecodeEvidence(in.Evidence, &ev); err != nil {
			return attest.Result{}, err
		}
		e := expect()
		e.Audience = in.Binding.KeyAudience()
		got, err := jwt.Verify([]byte(ev.Token), in.Keys, e)
		if err != nil {
			return attest.Result{}, err
		}
		return attest.Result{Once: string(got.Unique[:]), OnceUntil: got.Expires}, nil
	}}
}

func TestAttacks(t *testing.T) {
	for _, alg := range []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.EdDSA} {
		t.Run(string(alg), func(t *testing.T) {
			target := &jwttest.Target{
				Method: method(), Issuer: jwttest.New(t, issuerURL, alg), Claims: claims(), Now: now, Audience: attest.Binding.KeyAudience,
				Binding: attest.Binding{Method: "token", Genesis: [32]byte{1}, Nonce: bytes.Repeat([]byte{7}, 32), SessionKey: [32]byte{9}},
			}
			if n := jwttest.Run(t, target); n < 90 {
				t.Errorf("only %d", n)
			}
		})
	}
}

// TestTimes: the edges of what is good.
func TestTimes(t *testing.T) {
	issuer := jwttest.New(t, issuerURL, jose.ES256)
	at := func(d time.Duration) any { return now.Add(d).Unix() }
	for name, c := range map[string]struct {
		claims map[string]any
		expect func(*jwt.Expect)
		want   problem.Reason
	}{
		"the last second":               {map[string]any{"exp": at(time.Second)}, nil, ""},
		"over":                          {map[string]any{"exp": at(0)}, nil, problem.ReasonEvidenceExpired},
		"skew does not prolong":         {map[string]any{"exp": at(-time.Second)}, nil, problem.ReasonEvidenceExpired},
		"as far ahead as may be":        {map[string]any{"iat": at(time.Minute), "nbf": at(time.Minute)}, nil, ""},
		"too far ahead":                 {map[string]any{"iat": at(time.Minute + time.Second), "nbf": nil}, nil, problem.ReasonNotYetValid},
		"no skew":                       {map[string]any{"iat": at(time.Second)}, func(e *jwt.Expect) { e.Skew = 0 }, problem.ReasonNotYetValid},
		"no nbf":                        {map[string]any{"nbf": nil}, nil, ""},
		"the longest life":              {map[string]any{"iat": at(-time.Minute), "exp": at(59 * time.Minute)}, nil, ""},
		"a second longer":               {map[string]any{"iat": at(-time.Minute), "exp": at(59*time.Minute + time.Second)}, nil, problem.ReasonTokenInvalid},
		"as old as may be":              {nil, func(e *jwt.Expect) { e.MaxAge = time.Minute }, ""},
		"older":                         {nil, func(e *jwt.Expect) { e.MaxAge = time.Minute - time.Second }, problem.ReasonEvidenceExpired},
		"fractions":                     {map[string]any{"iat": json.Number("1795348740.5"), "exp": json.Number("1795349400.123456789")}, nil, ""},
		"a long fraction":               {map[string]any{"exp": json.Number("1795349400.1234567890")}, nil, problem.ReasonTokenInvalid},
		"a fraction and an exponent":    {map[string]any{"exp": json.Number("1795349400.1e1")}, nil, problem.ReasonTokenInvalid},
		"milliseconds":                  {map[string]any{"iat": now.UnixMilli(), "nbf": nil, "exp": now.UnixMilli() + 300}, nil, problem.ReasonTokenInvalid},
		"before there were such tokens": {map[string]any{"iat": 1}, nil, problem.ReasonTokenInvalid},
	} {
		e := expect()
		if c.expect != nil {
			c.expect(&e)
		}
		_, err := jwt.Verify(issuer.Sign(jwttest.With(claims(), c.claims)), issuer.Keys(), e)
		if c.want == "" && err != nil || c.want != "" && !problem.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAccepts: what issuers do, and may.
func TestAccepts(t *testing.T) {
	issuer := jwttest.New(t, issuerURL, jose.ES256)
	other := jwttest.New(t, issuerURL, jose.RS256)
	other.KeyID = "key-2"
	both := &jose.JSONWebKeySet{Keys: []jose.JSONWebKey{other.JWK(), issuer.JWK()}}
	bare := issuer.JWK()
	bare.Use, bare.Algorithm = "", ""
	for name, c := range map[string]struct {
		token []byte
		keys  *jose.JSONWebKeySet
	}{
		"a list of one audience":             {issuer.Sign(jwttest.With(claims(), map[string]any{"aud": []string{audience}})), both},
		"no type":                            {issuer.SignWith(claims(), map[string]any{"typ": nil}), both},
		"a type in small letters":            {issuer.SignWith(claims(), map[string]any{"typ": "jwt"}), both},
		"a thumbprint of a certificate":      {issuer.SignWith(claims(), map[string]any{"x5t": "abc", "x5t#S256": "def"}), both},
		"no key ID, and one key that fits":   {issuer.SignWith(claims(), map[string]any{"kid": nil}), both},
		"a key that says nothing of itself":  {issuer.Sign(claims()), &jose.JSONWebKeySet{Keys: []jose.JSONWebKey{bare}}},
		"claims of all kinds":                {issuer.Sign(jwttest.With(claims(), map[string]any{"a": []any{1, true, nil, "x", map[string]any{"b": 1.5}}})), both},
		"no subject and no ID":               {issuer.Sign(jwttest.With(claims(), map[string]any{"sub": nil, "jti": nil})), both},
		"a member that is called like ours":  {issuer.Sign(jwttest.With(claims(), map[string]any{"ISS": "x", "Aud": "y"})), both},
		"the other key of the same key set ": {other.Sign(claims()), both},
	} {
		if _, err := jwt.Verify(c.token, c.keys, expect()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUnique: two tokens of one ID are one, and one token is one, whatever is done to its signature.
func TestUnique(t *testing.T) {
	issuer := jwttest.New(t, issuerURL, jose.ES256)
	unique := func(token []byte) [32]byte {
		t.Helper()
		got, err := jwt.Verify(token, issuer.Keys(), expect())
		if err != nil {
			t.Fatal(err)
		}
		return got.Unique
	}
	with := func(change map[string]any) []byte { return issuer.Sign(jwttest.With(claims(), change)) }
	one := unique(with(nil))
	if one != unique(with(nil)) || one != unique(with(map[string]any{"sub": "other"})) {
		t.Error("a token is another one although it has the same ID")
	}
	if one == unique(with(map[string]any{"jti": "2"})) {
		t.Error("two IDs are one")
	}
	bare := with(map[string]any{"jti": nil})
	if unique(bare) == one || unique(bare) == unique(with(map[string]any{"jti": nil, "sub": "other"})) {
		t.Error("tokens without ID are not told apart")
	}
	// ECDSA: (r, n-s) is a signature too, which whoever has the token can make.
	if twin := malleable(t, bare); bytes.Equal(twin, bare) || unique(twin) != unique(bare) {
		t.Error("a token is another one although only its signature was changed")
	}
	evil := *issuer
	evil.URL = "https://b.example"
	e := expect()
	e.Issuer = evil.URL
	got, err := jwt.Verify(evil.Sign(jwttest.With(claims(), map[string]any{"iss": evil.URL})), issuer.Keys(), e)
	if err != nil || got.Unique == one {
		t.Errorf("two issuers' tokens of one ID are one: %v", err)
	}
}

// malleable replaces s of an ES256 signature by n-s.
func malleable(t *testing.T, token []byte) []byte {
	t.Helper()
	i := bytes.LastIndexByte(token, '.') + 1
	parsed, err := jose.ParseSignedCompact(string(token), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	sig := bytes.Clone(parsed.Signatures[0].Signature)
	n, _ := new(big.Int).SetString("FFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551", 16)
	s := new(big.Int).SetBytes(sig[32:])
	n.Sub(n, s).FillBytes(sig[32:])
	return append(bytes.Clone(token[:i]), jwttest.Encode(sig)...)
}

// TestExpect: a caller that expects nothing has a defect, and no token is good for it.
func TestExpect(t *testing.T) {
	issuer := jwttest.New(t, issuerURL, jose.ES256)
	for name, change := range map[string]func(*jwt.Expect){
		"no issuer":        func(e *jwt.Expect) { e.Issuer = "" },
		"no audience":      func(e *jwt.Expect) { e.Audience = "" },
		"no time":          func(e *jwt.Expect) { e.Now = time.Time{} },
		"no lifetime":      func(e *jwt.Expect) { e.MaxLifetime = 0 },
		"too much skew":    func(e *jwt.Expect) { e.Skew = jwt.MaxSkew + 1 },
		"a negative skew":  func(e *jwt.Expect) { e.Skew = -1 },
		"a negative age":   func(e *jwt.Expect) { e.MaxAge = -1 },
		"a negative while": func(e *jwt.Expect) { e.MaxLifetime = -1 },
	} {
		e := expect()
		change(&e)
		if _, err := jwt.Verify(issuer.Sign(claims()), issuer.Keys(), e); !problem.Is(err, problem.ReasonInternal) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWeakKeys(t *testing.T) {
	issuer := jwttest.New(t, issuerURL, jose.RS256)
	n := issuer.Key.Public().(*rsa.PublicKey).N
	for name, key := range map[string]*rsa.PublicKey{
		"a small exponent": {N: n, E: 3},
		"a small modulus":  {N: new(big.Int).SetBit(big.NewInt(1), 2046, 1), E: 65537},
		"a huge modulus":   {N: new(big.Int).SetBit(big.NewInt(1), 16383, 1), E: 65537},
	} {
		keys := &jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key, KeyID: "key-1"}}}
		if _, err := jwt.Verify(issuer.Sign(claims()), keys, expect()); !problem.Is(err, problem.ReasonWeakAlgorithm) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPick(t *testing.T) {
	in := map[string]any{
		"text": "x", "id": json.Number("18446744073709551615"), "negative": json.Number("-7"), "yes": true, "no": false, "null": nil,
		"list": []any{"a", json.Number("1"), true}, "object": map[string]any{"a": "b"}, "half": json.Number("1.5"), "exponent": json.Number("1e3"),
		"long": json.Number(strings.Repeat("9", 30)), "lists": []any{[]any{"a"}}, "backwards": "a\u202eb", "many": make([]any, 65),
	}
	got, err := jwt.Pick(in, "text", "id", "negative", "yes", "no", "null", "missing")
	want := map[string]any{"text": "x", "id": "18446744073709551615", "negative": "-7", "yes": "true", "no": "false", "null": "", "missing": ""}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, name := range []string{"list", "object", "half", "exponent", "long", "lists", "backwards"} {
		if _, err := jwt.Pick(in, name); !problem.Is(err, problem.ReasonTokenInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	list, err := jwt.List(in, "list")
	if err != nil || !reflect.DeepEqual(list, []any{"a", "1", "true"}) {
		t.Errorf("%v, %v", list, err)
	}
	if list, err = jwt.List(in, "missing"); err != nil || list == nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	for _, name := range []string{"text", "lists", "object", "many"} {
		if _, err := jwt.List(in, name); !problem.Is(err, problem.ReasonTokenInvalid) {
			t.Errorf("list %s: %v", name, err)
		}
	}
	if o, err := jwt.Object(in, "object"); err != nil || o["a"] != "b" {
		t.Errorf("%v, %v", o, err)
	}
	if o, err := jwt.Object(in, "missing"); err != nil || o != nil {
		t.Errorf("%v, %v", o, err)
	}
	if _, err := jwt.Object(in, "text"); !problem.Is(err, problem.ReasonTokenInvalid) {
		t.Error(err)
	}
}

func TestUnverified(t *testing.T) {
	issuer := jwttest.New(t, issuerURL, jose.ES256)
	got, err := jwt.Unverified(issuer.Sign(claims()))
	if err != nil || got["sub"] != "job" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := jwt.Unverified([]byte("x")); !problem.Is(err, problem.ReasonTokenInvalid) {
		t.Error(err)
	}
}

// FuzzHead: nothing of what is not believed is unbounded, and what Head takes has one encoding.
func FuzzHead(f *testing.F) {
	issuer := jwttest.New(f, issuerURL, jose.ES256)
	f.Add(issuer.Sign(claims()))
	f.Add([]byte("eyJhbGciOiJub25lIn0.e30."))
	f.Fuzz(func(t *testing.T, token []byte) {
		head, alg, err := jwt.Head(token)
		if err != nil {
			if problem.KindOf(err) == problem.Internal {
				t.Error(err)
			}
			return
		}
		if alg == "" || head.Issuer == "" || len(head.Issuer) > 1024 || len(head.KeyID) > 1024 {
			t.Errorf("%+v, %q", head, alg)
		}
		if again := bytes.TrimSpace(token); !bytes.Equal(again, token) {
			t.Error("white space around a token is accepted")
		}
	})
}

// FuzzVerify: nothing but what the issuer signed is good. The payload is what the fuzzer changes, with the issuer's signature over it.
func FuzzVerify(f *testing.F) {
	issuer := jwttest.New(f, issuerURL, jose.EdDSA)
	keys := issuer.Keys()
	text, err := json.Marshal(claims())
	if err != nil {
		f.Fatal(err)
	}
	head := []byte(`{"alg":"EdDSA","kid":"key-1"}`)
	f.Add(head, text)
	f.Add(head, []byte(`{"iss":"https://token.example.com","iss":"x"}`))
	f.Add([]byte(`{"alg":"EdDSA","kid":"key-1","crit":["x"]}`), text)
	signed := issuer.Raw
	f.Fuzz(func(t *testing.T, header, payload []byte) {
		got, err := jwt.Verify(signed(header, payload), keys, expect())
		if err != nil {
			if problem.KindOf(err) == problem.Internal {
				t.Error(err)
			}
			return
		}
		// An independent reader must see the same, whatever it does with duplicates.
		var last map[string]any
		if err := json.Unmarshal(payload, &last); err != nil || last["iss"] != issuerURL || got.Expires.Before(now) {
			t.Errorf("%s: %v", payload, err)
		}
	})
}
