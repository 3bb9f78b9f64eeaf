package jwttest

import (
	"bytes"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
)

// Target is a method whose evidence is a token, in a state in which Good is accepted.
type Target struct {
	Method  attest.Method
	Issuer  *Issuer        // of an authority in Params whose keys are not pinned there
	Claims  map[string]any // of a good token, but for "aud"
	Binding attest.Binding
	Now     time.Time
	Params  any
	// Audience is what a good token is for.
	Audience func(attest.Binding) string
}

// Evidence is the document of all methods whose evidence is a token.
func Evidence(token []byte) []byte {
	text, _ := json.Marshal(string(token)) // of a string it can't fail
	return []byte(`{"token":` + string(text) + `}`)
}

// With is a good token with some claims changed; nil takes one away.
func (g *Target) With(change map[string]any) []byte {
	return g.Issuer.Sign(With(g.claims(), change))
}

func (g *Target) claims() map[string]any {
	return With(g.Claims, map[string]any{"aud": g.Audience(g.Binding)})
}

// Input is a token as a verifier gets it.
func (g *Target) Input(token []byte) attest.Input {
	return attest.Input{Binding: g.Binding, Evidence: Evidence(token), Now: g.Now, Params: g.Params, Keys: g.Issuer.Keys()}
}

// Good is what is accepted.
func (g *Target) Good() attest.Input { return g.Input(g.With(nil)) }

// Attack is one hostile evidence, and the reason by which it must be refused.
type Attack struct {
	Name string
	Want problem.Reason
	Make func(*Target) attest.Input
}

// claims is an attack that the issuer itself signed, with other claims.
func claims(name string, want problem.Reason, change func(*Target) map[string]any) Attack {
	return Attack{name, want, func(g *Target) attest.Input { return g.Input(g.With(change(g))) }}
}

// header is an attack that the issuer's key signed under another header.
func header(name string, want problem.Reason, change map[string]any) Attack {
	return Attack{name, want, func(g *Target) attest.Input { return g.Input(g.Issuer.SignWith(g.claims(), change)) }}
}

// raw is an attack in the bytes of the token.
func raw(name string, want problem.Reason, change func(g *Target, header, payload, signature string) string) Attack {
	return Attack{name, want, func(g *Target) attest.Input {
		parts := strings.Split(string(g.With(nil)), ".")
		return g.Input([]byte(change(g, parts[0], parts[1], parts[2])))
	}}
}

// payload is an attack in the JSON of the claims, signed by the issuer.
func payload(name string, change func(text string) string) Attack {
	return Attack{name, problem.ReasonTokenInvalid, func(g *Target) attest.Input {
		return g.Input(g.Issuer.SignRaw(g.Issuer.json(g.Issuer.Header()), []byte(change(string(g.Issuer.json(g.claims()))))))
	}}
}

// keys is an attack in what the issuer publishes.
func keys(name string, want problem.Reason, change func(g *Target) *jose.JSONWebKeySet) Attack {
	return Attack{name, want, func(g *Target) attest.Input {
		in := g.Good()
		in.Keys = change(g)
		return in
	}}
}

// evidence is an attack in the document around the token.
func evidence(name string, change func(text string) string) Attack {
	return Attack{name, problem.ReasonInvalid, func(g *Target) attest.Input {
		in := g.Good()
		in.Evidence = []byte(change(string(in.Evidence)))
		return in
	}}
}

func at(t time.Time, d time.Duration) any { return t.Add(d).Unix() }

// Attacks is the table of hostile evidences that every method whose evidence is a token must refuse.
func Attacks() []Attack {
	var all []Attack
	for _, part := range [][]Attack{audiences(), times(), issuers(), algorithms(), keySets(), encodings(), documents()} {
		all = append(all, part...)
	}
	return all
}

func audiences() []Attack {
	other := func(g *Target) string {
		b := g.Binding
		b.Genesis[0] ^= 1
		return g.Audience(b)
	}
	return []Attack{
		claims("another audience", problem.ReasonAudience, func(*Target) map[string]any { return map[string]any{"aud": "https://vault.example.com"} }),
		claims("another environment's audience", problem.ReasonAudience, func(g *Target) map[string]any { return map[string]any{"aud": other(g)} }),
		claims("no audience", problem.ReasonAudience, func(*Target) map[string]any { return map[string]any{"aud": nil} }),
		claims("an empty audience", problem.ReasonAudience, func(*Target) map[string]any { return map[string]any{"aud": ""} }),
		claims("several audiences", problem.ReasonAudience, func(g *Target) map[string]any {
			return map[string]any{"aud": []string{g.Audience(g.Binding), "https://vault.example.com"}}
		}),
		claims("our audience twice", problem.ReasonAudience, func(g *Target) map[string]any {
			return map[string]any{"aud": []string{g.Audience(g.Binding), g.Audience(g.Binding)}}
		}),
		claims("our audience in a list in a list", problem.ReasonAudience, func(g *Target) map[string]any {
			return map[string]any{"aud": [][]string{{g.Audience(g.Binding)}}}
		}),
		claims("our audience and more", problem.ReasonAudience, func(g *Target) map[string]any {
			return map[string]any{"aud": g.Audience(g.Binding) + " https://vault.example.com"}
		}),
		claims("our audience in capitals", problem.ReasonAudience, func(g *Target) map[string]any {
			return map[string]any{"aud": strings.ToUpper(g.Audience(g.Binding))}
		}),
	}
}

func times() []Attack {
	change := func(name string, want problem.Reason, iat, nbf, exp any) Attack {
		return Attack{name, want, func(g *Target) attest.Input {
			out := map[string]any{}
			for claim, v := range map[string]any{"iat": iat, "nbf": nbf, "exp": exp} {
				switch v := v.(type) {
				case time.Duration:
					out[claim] = at(g.Now, v)
				default:
					out[claim] = v
				}
			}
			return g.Input(g.With(out))
		}}
	}
	const before, after = -time.Minute, 4 * time.Minute
	return []Attack{
		change("expired", problem.ReasonEvidenceExpired, -10*time.Minute, nil, -time.Second),
		change("expired now", problem.ReasonEvidenceExpired, -5*time.Minute, nil, time.Duration(0)),
		change("from the future", problem.ReasonNotYetValid, 61*time.Second, nil, 2*time.Minute),
		change("not valid yet", problem.ReasonNotYetValid, before, 61*time.Second, after),
		change("no end", problem.ReasonTokenInvalid, before, nil, nil),
		change("no beginning", problem.ReasonTokenInvalid, nil, nil, after),
		change("an end as text", problem.ReasonTokenInvalid, before, nil, "1795348800"),
		change("an end that is true", problem.ReasonTokenInvalid, before, nil, true),
		change("an end in milliseconds", problem.ReasonTokenInvalid, before, nil, 1795348800000),
		change("an end with an exponent", problem.ReasonTokenInvalid, before, nil, json.RawMessage("1.8e9")),
		change("a negative end", problem.ReasonTokenInvalid, before, nil, -1795348800),
		change("an end beyond numbers", problem.ReasonTokenInvalid, before, nil, json.RawMessage("1"+strings.Repeat("0", 400))),
		change("a beginning as text", problem.ReasonTokenInvalid, "now", nil, after),
		change("a validity as text", problem.ReasonTokenInvalid, before, "now", after),
		change("the end before the beginning", problem.ReasonTokenInvalid, time.Duration(0), nil, before),
		change("valid for years", problem.ReasonTokenInvalid, before, nil, 10*365*24*time.Hour),
	}
}

func issuers() []Attack {
	change := func(name string, want problem.Reason, iss func(string) any) Attack {
		return claims(name, want, func(g *Target) map[string]any { return map[string]any{"iss": iss(g.Issuer.URL)} })
	}
	return []Attack{
		change("another issuer", problem.ReasonIssuer, func(string) any { return "https://evil.example.com" }),
		change("the issuer and a slash", problem.ReasonIssuer, func(url string) any { return url + "/" }),
		change("the issuer in capitals", problem.ReasonIssuer, func(url string) any { return strings.ToUpper(url) }),
		change("the issuer without its scheme", problem.ReasonIssuer, func(url string) any { return strings.TrimPrefix(url, "https://") }),
		change("no issuer", problem.ReasonTokenInvalid, func(string) any { return nil }),
		change("an empty issuer", problem.ReasonTokenInvalid, func(string) any { return "" }),
		change("a list of issuers", problem.ReasonTokenInvalid, func(url string) any { return []string{url} }),
		claims("a subject that is a number", problem.ReasonTokenInvalid, func(*Target) map[string]any { return map[string]any{"sub": 1} }),
		claims("a subject that reads backwards", problem.ReasonTokenInvalid, func(*Target) map[string]any { return map[string]any{"sub": "job\u202etxt"} }),
		claims("an ID that is a list", problem.ReasonTokenInvalid, func(*Target) map[string]any { return map[string]any{"jti": []string{"1"}} }),
		claims("an empty ID", problem.ReasonTokenInvalid, func(*Target) map[string]any { return map[string]any{"jti": ""} }),
		claims("an endless ID", problem.ReasonTokenInvalid, func(*Target) map[string]any { return map[string]any{"jti": strings.Repeat("1", 1025)} }),
	}
}

func algorithms() []Attack {
	none := func(alg string) Attack {
		return raw("algorithm "+alg, problem.ReasonWeakAlgorithm, func(g *Target, _, payload, _ string) string {
			return Encode(g.Issuer.json(map[string]any{"alg": alg, "kid": g.Issuer.KeyID, "typ": "JWT"})) + "." + payload + "."
		})
	}
	all := []Attack{
		none("none"), none("None"), none("nOnE"), none("HS512"),
		raw("no algorithm", problem.ReasonWeakAlgorithm, func(g *Target, _, payload, signature string) string {
			return Encode([]byte(`{"kid":"key-1"}`)) + "." + payload + "." + signature
		}),
		{"HMAC with the public key", problem.ReasonWeakAlgorithm, func(g *Target) attest.Input {
			h := g.Issuer.json(With(g.Issuer.Header(), map[string]any{"alg": "HS256"}))
			return g.Input(g.Issuer.HMAC(h, g.Issuer.json(g.claims())))
		}},
		header("an empty algorithm", problem.ReasonTokenInvalid, map[string]any{"alg": ""}),
		header("an algorithm that is a list", problem.ReasonTokenInvalid, map[string]any{"alg": []string{"RS256"}}),
		header("a critical extension", problem.ReasonTokenInvalid, map[string]any{"crit": []string{"exp"}, "exp": 1}),
		header("an unencoded payload", problem.ReasonTokenInvalid, map[string]any{"b64": false}),
		header("a compressed payload", problem.ReasonTokenInvalid, map[string]any{"zip": "DEF"}),
		header("a token within", problem.ReasonTokenInvalid, map[string]any{"cty": "JWT"}),
		header("an access token", problem.ReasonTokenInvalid, map[string]any{"typ": "at+jwt"}),
		header("a key beside the issuer's", problem.ReasonTokenInvalid, map[string]any{"jwk": map[string]string{"kty": "OKP", "crv": "Ed25519", "x": Encode(make([]byte, 32))}}),
		header("keys from elsewhere", problem.ReasonTokenInvalid, map[string]any{"jku": "https://evil.example.com/keys"}),
		header("a certificate from elsewhere", problem.ReasonTokenInvalid, map[string]any{"x5u": "https://evil.example.com/cert"}),
		header("a certificate of its own", problem.ReasonTokenInvalid, map[string]any{"x5c": []string{"MIIB"}}),
		header("an endless header", problem.ReasonTokenInvalid, map[string]any{"x": strings.Repeat("x", 1024)}),
	}
	for _, alg := range []string{"RS256", "PS256", "ES256", "ES384", "EdDSA"} {
		all = append(all, Attack{"key confusion: " + alg, problem.ReasonTokenInvalid, func(g *Target) attest.Input {
			in := g.Input(g.Issuer.SignWith(g.claims(), map[string]any{"alg": alg}))
			if alg == string(g.Issuer.Algorithm) { // its own: then the keys say another
				in.Keys = &jose.JSONWebKeySet{Keys: []jose.JSONWebKey{g.Issuer.JWK()}}
				in.Keys.Keys[0].Algorithm = "RS512"
			}
			return in
		}})
	}
	return append(all, Attack{"a key of its own", problem.ReasonTokenInvalid, func(g *Target) attest.Input {
		evil := *g.Issuer
		evil.Key = NewKey(g.Issuer.t, evil.Algorithm)
		jwk := evil.JWK()
		return g.Input(evil.SignWith(g.claims(), map[string]any{"jwk": jwk}))
	}})
}

func keySets() []Attack {
	set := func(keys ...jose.JSONWebKey) *jose.JSONWebKeySet { return &jose.JSONWebKeySet{Keys: keys} }
	return []Attack{
		{"another key under the same ID", problem.ReasonTokenInvalid, func(g *Target) attest.Input {
			evil := *g.Issuer
			evil.Key = NewKey(g.Issuer.t, evil.Algorithm)
			return g.Input(evil.Sign(g.claims()))
		}},
		header("an unknown key", problem.ReasonTokenInvalid, map[string]any{"kid": "key-2"}),
		header("a path as key ID", problem.ReasonTokenInvalid, map[string]any{"kid": "../../dev/null"}),
		header("an empty key ID", problem.ReasonTokenInvalid, map[string]any{"kid": ""}),
		header("a key ID that is a number", problem.ReasonTokenInvalid, map[string]any{"kid": 1}),
		keys("no keys", problem.ReasonNoKeys, func(*Target) *jose.JSONWebKeySet { return nil }),
		keys("an empty key set", problem.ReasonTokenInvalid, func(*Target) *jose.JSONWebKeySet { return set() }),
		keys("two keys of one ID", problem.ReasonTokenInvalid, func(g *Target) *jose.JSONWebKeySet { return set(g.Issuer.JWK(), g.Issuer.JWK()) }),
		keys("a key for encryption", problem.ReasonTokenInvalid, func(g *Target) *jose.JSONWebKeySet {
			k := g.Issuer.JWK()
			k.Use = "enc"
			return set(k)
		}),
		keys("a symmetric key", problem.ReasonTokenInvalid, func(g *Target) *jose.JSONWebKeySet {
			return set(jose.JSONWebKey{Key: []byte("secret"), KeyID: g.Issuer.KeyID})
		}),
		{"no key ID and several keys", problem.ReasonTokenInvalid, func(g *Target) attest.Input {
			in := g.Input(g.Issuer.SignWith(g.claims(), map[string]any{"kid": nil}))
			second := g.Issuer.JWK()
			second.Key, second.KeyID = NewKey(g.Issuer.t, g.Issuer.Algorithm).Public(), "key-2"
			in.Keys = set(g.Issuer.JWK(), second)
			return in
		}},
		{"a weak RSA key", problem.ReasonWeakAlgorithm, func(g *Target) attest.Input {
			// The key is refused before the signature is looked at, so that there need be no private key to it.
			weak := jose.JSONWebKey{Key: &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 1023, 1), E: 65537}, KeyID: g.Issuer.KeyID}
			in := g.Input(g.Issuer.SignWith(g.claims(), map[string]any{"alg": "RS256"}))
			in.Keys = set(weak)
			return in
		}},
	}
}

func encodings() []Attack {
	flip := func(s string) string {
		b := []byte(s)
		if i := len(b) / 2; b[i] == 'A' {
			b[i] = 'B'
		} else {
			b[i] = 'A'
		}
		return string(b)
	}
	return []Attack{
		raw("a claim changed", problem.ReasonTokenInvalid, func(_ *Target, h, p, s string) string { return h + "." + flip(p) + "." + s }),
		raw("the signature changed", problem.ReasonTokenInvalid, func(_ *Target, h, p, s string) string { return h + "." + p + "." + flip(s) }),
		raw("truncated", problem.ReasonTokenInvalid, func(_ *Target, h, p, s string) string { return h + "." + p[:len(p)/2] }),
		raw("the signature truncated", problem.ReasonTokenInvalid, func(_ *Target, h, p, s string) string { return h + "." + p + "." + s[:len(s)-4] }),
		raw("no signature", problem.ReasonTokenInvalid, func(_ *Target, h, p, _ string) string { return h + "." + p + "." }),
		raw("two parts", problem.ReasonTokenInvalid, func(_ *Target, h, p, _ string) string { return h + "." + p }),
		raw("four parts", problem.ReasonTokenInvalid, func(_ *Target, h, p, s string) string { return h + "." + p + "." + s + "." + s }),
		raw("encrypted", problem.ReasonTokenInvalid, func(_ *Target, h, p, s string) string { return strings.Join([]string{h, p, s, p, s}, ".") }),
		raw("JSON serialisation", problem.ReasonTokenInvalid, func(_ *Target, h, p, s string) string {
			return fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, h, p, s)
		}),
		raw("padding", problem.ReasonTokenInvalid, func(_ *Target, h, p, s string) string { return h + "." + p + "." + s + "==" }),
		raw("a space before it", problem.ReasonTokenInvalid, func(_ *Target, h, p, s string) string { return " " + h + "." + p + "." + s }),
		raw("a line end within", problem.ReasonTokenInvalid, func(_ *Target, h, p, s string) string { return h + "." + p[:4] + "\n" + p[4:] + "." + s }),
		raw("a line end behind", problem.ReasonTokenInvalid, func(_ *Target, h, p, s string) string { return h + "." + p + "." + s + "\n" }),
		raw("another alphabet", problem.ReasonTokenInvalid, func(_ *Target, h, p, s string) string { return h + "." + p + "." + s[:4] + "+/" + s[6:] }),
		{"bits behind the last byte", problem.ReasonTokenInvalid, func(g *Target) attest.Input {
			// A last character of which not all bits are used can be written in several ways.
			text := []byte(g.Issuer.Sign(g.claims()))
			if signature := text[bytes.LastIndexByte(text, '.')+1:]; len(signature)%4 == 0 { // no unused bits: make some
				text = append(text, 'B')
			} else {
				text[len(text)-1]++
			}
			return g.Input(text)
		}},
		{"oversized", problem.ReasonTooLarge, func(g *Target) attest.Input {
			return g.Input(g.With(map[string]any{"padding": strings.Repeat("x", 16<<10)}))
		}},
	}
}

func documents() []Attack {
	add := func(member string) func(string) string {
		return func(text string) string { return strings.TrimSuffix(text, "}") + "," + member + "}" }
	}
	return []Attack{
		payload("the issuer twice", add(`"iss":"https://evil.example.com"`)),
		payload("the audience twice", add(`"aud":"x"`)),
		payload("the end twice", add(`"exp":4102444800`)),
		payload("a duplicate deep inside", add(`"x":{"y":[{"z":1,"z":2}]}`)),
		payload("a duplicate by escape", add(`"i\u0073s":"https://evil.example.com"`)),
		payload("nested too deep", add(`"x":`+strings.Repeat("[", 20)+strings.Repeat("]", 20))),
		payload("too many values", add(`"x":[`+strings.Repeat("1,", 2000)+`1]`)),
		payload("not UTF-8", add("\"x\":\"\xff\"")),
		payload("half a surrogate", add(`"x":"\ud800"`)),
		payload("a list", func(text string) string { return "[" + text + "]" }),
		payload("text", func(string) string { return `"hello"` }),
		payload("nothing", func(string) string { return " " }),
		payload("cut off", func(text string) string { return text[:len(text)-1] }),
		payload("something behind", func(text string) string { return text + "{}" }),
		payload("a comment", func(text string) string { return strings.Replace(text, "{", "{/**/", 1) }),
		{"the algorithm twice", problem.ReasonTokenInvalid, func(g *Target) attest.Input {
			h := strings.TrimSuffix(string(g.Issuer.json(g.Issuer.Header())), "}") + `,"alg":"none"}`
			return g.Input(g.Issuer.SignRaw([]byte(h), g.Issuer.json(g.claims())))
		}},
		evidence("the evidence's field twice", func(text string) string { return strings.TrimSuffix(text, "}") + `,"token":"x"}` }),
		evidence("a field that is not known", func(text string) string { return strings.TrimSuffix(text, "}") + `,"more":1}` }),
		evidence("white space in the evidence", func(text string) string { return strings.Replace(text, ":", ": ", 1) }),
		evidence("the evidence cut off", func(text string) string { return text[:len(text)-1] }),
		evidence("a bare token", func(text string) string { return strings.TrimSuffix(strings.TrimPrefix(text, `{"token":"`), `"}`) }),
	}
}

// Run attacks a method with the whole table and more, and says how many hostile evidences it refused. Each must be refused by its exact
// reason, with no result beside, and without a word of the token.
func Run(t *testing.T, g *Target, more ...Attack) int {
	t.Helper()
	good, err := g.Method.Verify(g.Good())
	if err != nil {
		t.Fatalf("the good token: %v", err)
	}
	if freshly(g) != (good.Once == "") {
		t.Errorf("once is %q", good.Once)
	}
	all := append(Attacks(), more...)
	for _, a := range all {
		res, err := g.Method.Verify(a.Make(g))
		switch {
		case !problem.Is(err, a.Want):
			t.Errorf("%s: %v, wanted %s", a.Name, err, a.Want)
		case !reflect.DeepEqual(res, attest.Result{}):
			t.Errorf("%s: a result beside the refusal", a.Name)
		case strings.Contains(err.Error(), "evil") || strings.Contains(err.Error(), "eyJ"):
			t.Errorf("%s: the refusal shows the token: %v", a.Name, err)
		}
	}
	return len(all) + replays(t, g, good)
}

// freshly reports whether the audience has the challenge in it, so that a token needs no memory.
func freshly(g *Target) bool {
	b := g.Binding
	b.Nonce = bytes.Repeat([]byte{0x77}, 32)
	return g.Audience(b) != g.Audience(g.Binding)
}

// replays sends the good token again, by another and for another challenge: it is refused by its audience, or gives the same Once, by which
// the state refuses another session key.
func replays(t *testing.T, g *Target, good attest.Result) int {
	t.Helper()
	for name, change := range map[string]func(*attest.Input){
		"another session key": func(in *attest.Input) { in.Binding.SessionKey[0] ^= 1 },
		"another challenge":   func(in *attest.Input) { in.Binding.Nonce = bytes.Repeat([]byte{0x77}, 32) },
		"another environment": func(in *attest.Input) { in.Binding.Genesis[0] ^= 1 },
	} {
		in := g.Good()
		change(&in)
		res, err := g.Method.Verify(in)
		if g.Audience(in.Binding) != g.Audience(g.Binding) {
			if !problem.Is(err, problem.ReasonAudience) {
				t.Errorf("replayed with %s: %v", name, err)
			}
		} else if err != nil || res.Once == "" || res.Once != good.Once || !res.OnceUntil.Equal(good.OnceUntil) {
			t.Errorf("replayed with %s: %q, %v", name, res.Once, err)
		}
	}
	return 3
}
