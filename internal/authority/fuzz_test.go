package authority_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/authority"
)

// seeds are key sets as issuers publish them, and as they should not.
func seeds(f *testing.F) []string {
	f.Helper()
	members := func(key any, id string, rest string) string {
		text, err := json.Marshal(jose.JSONWebKey{Key: key, KeyID: id})
		if err != nil {
			f.Fatal(err)
		}
		return strings.TrimSuffix(string(text), "}") + rest + "}"
	}
	var keys []string
	var private any
	for i, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			f.Fatal(err)
		}
		private = key
		keys = append(keys, members(key.Public(), fmt.Sprint("ec", i), `,"use":"sig"`))
	}
	signer, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	short := base64.RawURLEncoding.EncodeToString(signer.N.Bytes()[:128])
	keys = append(keys,
		members(&signer.PublicKey, "rsa", `,"alg":"RS256"`), members(&signer.PublicKey, "enc", `,"use":"enc"`), members(public, "ed", ""), members(private, "private", ""),
		`{"kty":"oct","k":"c2VjcmV0","kid":"oct"}`, `{"kty":"RSA","kid":"e3","n":"`+base64.RawURLEncoding.EncodeToString(signer.N.Bytes())+`","e":"Aw"}`,
		`{"kty":"RSA","kid":"short","n":"`+short+`","e":"AQAB"}`, `{"kty":"EC","crv":"P-256","x":"AA","y":"AA","kid":"off"}`, `{"kty":"OKP","crv":"Ed25519","x":"AA"}`, `{"kty":"new"}`, `{}`, `7`)
	out := []string{``, `null`, `[]`, `{"keys":null}`, `{"keys":[]}`, `{"keys":[` + keys[0] + `]} {}`, `{"keys":[` + keys[0] + `,` + keys[0] + `]}`}
	for i := range keys {
		out = append(out, `{"keys":[`+keys[i]+`]}`, `{"keys":[`+keys[0]+`,`+strings.Join(keys[i:], ",")+`]}`)
	}
	return append(out, `{"keys":[`+strings.Repeat(`{},`, authority.MaxKeys)+`{}]}`)
}

// FuzzParseKeys: whatever an issuer publishes, what is accepted is a handful of public keys of the accepted types and sizes, each of which may
// sign and has an ID of its own; and it is the same when it is written down and read again, as a bundle that pins it does.
func FuzzParseKeys(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		set, err := authority.ParseKeys(text)
		if err != nil {
			if set != nil || len(err.Error()) > 200 {
				t.Errorf("%d bytes of error, beside %v", len(err.Error()), set)
			}
			return
		}
		if len(set.Keys) == 0 || len(set.Keys) > authority.MaxKeys {
			t.Fatalf("%d keys", len(set.Keys))
		}
		ids := map[string]bool{}
		for _, k := range set.Keys {
			good := false
			switch pub := k.Key.(type) {
			case *ecdsa.PublicKey:
				_, err := pub.ECDH() // that it is a point of its curve
				good = err == nil
			case *rsa.PublicKey:
				good = pub.N.BitLen() >= 2048 && pub.N.BitLen() <= authority.MaxRSA && pub.E >= 65537
			case ed25519.PublicKey:
				good = len(pub) == ed25519.PublicKeySize
			}
			if !good || !k.Valid() || k.Use != "" && k.Use != "sig" || ids[k.KeyID] {
				t.Errorf("accepted %T %+v", k.Key, k)
			}
			ids[k.KeyID] = true
		}
		again, err := json.Marshal(set)
		if err != nil {
			t.Fatalf("it can't be written down: %v", err)
		}
		same, err := authority.ParseKeys(again)
		if err != nil {
			t.Fatalf("it can't be read again: %v", err)
		}
		for i, k := range set.Keys {
			if s := same.Keys[i]; s.KeyID != k.KeyID || s.Algorithm != k.Algorithm || s.Use != k.Use || !reflect.DeepEqual(s.Key, k.Key) {
				t.Errorf("key %d is %+v, and was %+v", i, s, k)
			}
		}
	})
}
