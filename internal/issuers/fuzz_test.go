package issuers_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/issuers"
)

// FuzzDiscovery: whatever an issuer answers, what is accepted is its own word (issuer is equal byte for byte), and leads nowhere but to an
// https URL without user or fragment.
func FuzzDiscovery(f *testing.F) {
	const us = "https://issuer.example"
	for _, document := range []string{
		`{"issuer":"https://issuer.example","jwks_uri":"https://issuer.example/keys","response_types_supported":["id_token"]}`,
		`{"issuer":"https://issuer.example","jwks_uri":"https://keys.example:8443/v1/certs?x=1"}`,
		`{"issuer":"https://issuer.example/","jwks_uri":"https://issuer.example/keys"}`,
		`{"Issuer":"https://issuer.example","JWKS_URI":"https://issuer.example/keys"}`,
		`{"issuer":"https://other.example","issuer":"https://issuer.example","jwks_uri":"https://issuer.example/keys"}`,
		`{"issuer":"https://issuer.example","jwks_uri":"http://issuer.example/keys"}`,
		`{"issuer":"https://issuer.example","jwks_uri":"https://user@issuer.example/keys#x"}`,
		`{"issuer":"https://issuer.example","jwks_uri":"https:issuer.example"}`,
		`{"issuer":"https://issuer.example","jwks_uri":null}`,
		`{"issuer":["https://issuer.example"],"jwks_uri":{}}`,
		`{"issuer":"https:\/\/issuer.example","jwks_uri":"https://issuer.example/` + strings.Repeat("a", 2100) + `"}`,
		`{}`, `null`, `[]`, `"x"`, ``, `{"issuer":`, strings.Repeat(`{"issuer":`, 1000),
	} {
		f.Add([]byte(document), us)
	}
	f.Add([]byte(`{"issuer":"https://issuer.example/a/","jwks_uri":"https://issuer.example/keys"}`), us+"/a/")
	f.Fuzz(func(t *testing.T, document []byte, issuer string) {
		where, err := issuers.KeysOf(document, issuer)
		if err != nil {
			if len(err.Error()) > 200 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		var said map[string]any
		if err := json.Unmarshal(document, &said); err != nil {
			t.Fatalf("accepted, and no object: %v", err)
		}
		if said["issuer"] != issuer || said["jwks_uri"] != where {
			t.Errorf("asked %q, it says %q; its keys are at %q, it says %q", issuer, said["issuer"], where, said["jwks_uri"])
		}
		u, err := url.Parse(where)
		if err != nil || len(where) > 2048 || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" || strings.ContainsAny(where, "\r\n\x00") {
			t.Errorf("sent to %q: %v", where, err)
		}
	})
}
