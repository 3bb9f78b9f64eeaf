package hostile

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	cx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/attest/platform"
	"github.com/bailment/bailment/internal/attest/platform/platformtest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

// kit is a machine of one method, and those who would be taken for it.
type kit struct {
	method    string
	authority string // its name, if a name has a meaning to the method
	spec      string // of the authority that the bundle has for it; empty: it needs none
	beside    string // of a second one
	issuer    string // of its tokens; empty: its evidence is no token
	// good makes the machine's evidence.
	good func(*house, attest.Binding) []byte
	// What a copy of good evidence gets that is shown for another challenge, by another session key, to another environment. Empty: it
	// is no attack, since the platform can't tell, and what makes up for it is another row.
	challenge, key, environment problem.Reason
	attacks                     []attack
}

// attack is one hostile evidence that only this method knows.
type attack struct {
	name string
	want problem.Reason
	make func(*house, attest.Binding) []byte
}

// ours is what tells our jobs and machines from others' of an issuer that serves everybody.
var ours = map[string]string{
	"github": ", when: claims.repository_id == \"74\"", "buildkite": ", when: claims.organization_id == \"f892efa9-103e-4d28-97a1-3b8616a0994d\"",
	"gcp": ", when: claims.project_id == \"my-project\"",
}

// files are the bundle's authorities and rules for kits.
func files(kits []kit) policy.Files {
	out := policy.Files{}
	for _, k := range kits {
		if k.spec == "" {
			continue // controltest's bundle has the rule
		}
		m, _ := authority.FindMethod(k.method)
		name := cmp.Or(k.authority, "for-"+k.method)
		out["authorities/"+k.method+".yaml"] = fmt.Appendf(nil,
			"apiVersion: bailment/v1\nkind: Authority\nmetadata: {name: %s}\nspec:\n  method: %s\n%s", name, k.method, k.spec)
		if k.beside != "" {
			out["authorities/"+k.method+"-beside.yaml"] = fmt.Appendf(nil,
				"apiVersion: bailment/v1\nkind: Authority\nmetadata: {name: beside-%s}\nspec:\n  method: %s\n%s", k.method, k.method, k.beside)
		}
		out["identities/"+k.method+".yaml"] = fmt.Appendf(nil,
			"apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: of-%s}\nspec: {method: %s, authority: %s, path: %s%s/all%s}\n",
			k.method, k.method, name, m.Prefix, name, ours[k.method])
	}
	return out
}

// specPEM is an authority's certificates.
func specPEM(certs ...*cx509.Certificate) string {
	var out strings.Builder
	out.WriteString("  pem: |\n")
	for _, c := range certs {
		text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
		for line := range strings.Lines(text) {
			out.WriteString("    " + line)
		}
	}
	return out.String()
}

// specIssuer is an authority's issuer with its keys.
func specIssuer(t testing.TB, i *jwttest.Issuer) string {
	t.Helper()
	return fmt.Sprintf("  issuer: %q\n  keys: '%s'\n", i.URL, encode(t, i.Keys()))
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// attested is what an attester of the product makes.
func attested(t testing.TB, a attest.Attester, b attest.Binding) []byte {
	t.Helper()
	out, err := a.Attest(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// edited is evidence with one of its fields replaced.
func edited(t testing.TB, evidence []byte, change func(map[string]json.RawMessage)) []byte {
	t.Helper()
	fields, order := members(t, evidence)
	change(fields)
	var out bytes.Buffer
	for i, name := range order {
		fmt.Fprintf(&out, "%c%q:%s", map[bool]byte{true: '{', false: ','}[i == 0], name, fields[name])
	}
	return append(out.Bytes(), '}')
}

// members are a JSON object's, and their order.
func members(t testing.TB, text []byte) (map[string]json.RawMessage, []string) {
	t.Helper()
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	var order []string
	for depth := 0; ; {
		token, err := dec.Token()
		if err != nil {
			break
		}
		switch token := token.(type) {
		case json.Delim:
			if token == '{' || token == '[' {
				depth++
			} else {
				depth--
			}
		case string:
			if depth == 1 && fields[token] != nil && len(order) < len(fields) {
				order = append(order, token)
				var value json.RawMessage
				if err := dec.Decode(&value); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return fields, order
}

// flipped is a field's bytes with one bit changed.
func flipped(t testing.TB, field json.RawMessage, at int) json.RawMessage {
	t.Helper()
	var b []byte
	if err := json.Unmarshal(field, &b); err != nil {
		t.Fatal(err)
	}
	b[(at+len(b))%len(b)] ^= 1
	return encode(t, b)
}

func ecKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issued is a certificate with its key.
type issued struct {
	cert *cx509.Certificate
	key  crypto.Signer
}

// issue makes a certificate that is valid for an hour around now, by itself without a parent.
func issue(t testing.TB, name string, key crypto.Signer, parent *issued, change func(*cx509.Certificate)) issued {
	t.Helper()
	c := &cx509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: cx509.KeyUsageDigitalSignature,
	}
	if change != nil {
		change(c)
	}
	by := issued{c, key}
	if parent != nil {
		by = *parent
	}
	der, err := cx509.CreateCertificate(rand.Reader, c, by.cert, key.Public(), by.key)
	if err != nil {
		t.Fatal(err)
	}
	made, err := cx509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return issued{made, key}
}

func ca(c *cx509.Certificate) { c.IsCA, c.KeyUsage = true, cx509.KeyUsageCertSign }

func overdue(c *cx509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }

func early(c *cx509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }

// tokens are the machines whose evidence is a platform's token.
func tokens(t testing.TB) []kit {
	var out []kit
	for _, m := range platformtest.Methods() {
		out = append(out, tokenKit(t, m))
	}
	for i := range out { // a token of one platform is nothing to another
		other := out[(i+1)%len(out)]
		if other.issuer == out[i].issuer {
			other = out[(i+2)%len(out)]
		}
		out[i].attacks = append(out[i].attacks, attack{"a token of another method's issuer", problem.ReasonIssuer, func(h *house, b attest.Binding) []byte { return other.good(h, b) }})
	}
	return out
}

func tokenKit(t testing.TB, m attest.Method) kit {
	bound := platformtest.Bindings(m.Name)[0]
	f := platformtest.Of(t, m, jose.ES256, time.Now(), attest.Binding{})
	if f.Claims["jti"] != nil { // two methods' shapes have the same issuer and ID: as one token, it would be used by one of them only
		f.Claims = jwttest.With(f.Claims, map[string]any{"jti": "of-" + m.Name})
	}
	target := func(b attest.Binding) *jwttest.Target {
		g := f.Target
		g.Binding, g.Now = b, time.Now()
		return &g
	}
	k := kit{method: m.Name, issuer: f.Issuer.URL, spec: specIssuer(t, f.Issuer), environment: problem.ReasonAudience}
	k.good = func(_ *house, b attest.Binding) []byte { return target(b).Good().Evidence }
	switch bound {
	case platform.ToChallenge:
		k.challenge, k.key = problem.ReasonAudience, problem.ReasonAudience
	case platform.ToKey:
		k.key = problem.ReasonAudience
	case platform.ToEnvironment:
		k.key = problem.ReasonTokenSpent
	}
	probe := target(attest.Binding{Method: m.Name, Nonce: make([]byte, 32)})
	for _, a := range jwttest.Attacks() {
		if in := a.Make(probe); !reflect.DeepEqual(in.Keys, f.Issuer.Keys()) {
			continue // its lie is what the issuer publishes, which is not evidence
		}
		k.attacks = append(k.attacks, attack{a.Name, a.Want, func(_ *house, b attest.Binding) []byte {
			g := target(b)
			if a.Want == problem.ReasonNotYetValid {
				g.Now = g.Now.Add(20 * time.Second) // so that the future has not come before it is refused
			}
			return a.Make(g).Evidence
		}})
	}
	return k
}
