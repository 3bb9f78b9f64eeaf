package methods_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	cx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/aws"
	"github.com/bailment/bailment/internal/attest/azure"
	"github.com/bailment/bailment/internal/attest/ci"
	"github.com/bailment/bailment/internal/attest/cms/cmstest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/attest/platform"
	"github.com/bailment/bailment/internal/attest/platform/platformtest"
	"github.com/bailment/bailment/internal/attest/tpm"
	"github.com/bailment/bailment/internal/attest/tpm/tpmtest"
	"github.com/bailment/bailment/internal/attest/x509"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func array(b byte) [32]byte { return [32]byte(bytes.Repeat([]byte{b}, 32)) }

// fixture is what the common suite needs of a method: material for an attester, and the params
// under which its evidence for the environment array(1) is good at now.
type fixture struct {
	material attest.Material
	params   any
}

// fixtures has a row for every method: TestSuite fails for a method without one.
func fixtures(t *testing.T) map[string]fixture {
	all := map[string]fixture{jointoken.Name: joinToken(t), aws.Name: awsInstance(t), azure.Name: azureMachine(t), x509.Name: certificate(t), tpm.Name: softwareTPM(t)}
	for _, m := range platformtest.Methods() {
		all[m.Name] = token(t, m)
	}
	maps.Copy(all, machines(t))
	return all
}

// softwareTPM lists the endorsement keys, so that the fixture doesn't depend on the time at which swtpm makes certificates.
func softwareTPM(t *testing.T) fixture {
	s := tpmtest.New(t, 0)
	params, err := tpm.NewParams([]authority.Authority{{Name: "list", Method: tpm.Name, EndorsementKeys: s.EndorsementKeys()}})
	if err != nil {
		t.Fatal(err)
	}
	return fixture{attest.Material{tpm.NeedDevice: []byte(s.Socket)}, params}
}

// token is the fixture of a method whose evidence is a platform's token.
func token(t *testing.T, m attest.Method) fixture {
	x := platformtest.Of(t, m, jose.ES256, now, platformtest.Binding())
	return fixture{x.Material, x.Pinned}
}

// unnoticed are the changes of the binding that a method's evidence does not notice. Then Result.Once must be what it is remembered by.
func unnoticed(m attest.Method) []string {
	for _, bound := range platformtest.Bindings(m.Name) {
		switch bound {
		case platform.ToKey:
			return []string{"other nonce"}
		case platform.ToEnvironment:
			return []string{"other nonce", "other session key"}
		}
	}
	return nil
}

// opaque are the needs of which nobody can see that they are damaged until they are used.
var opaque = []string{ci.NeedRequestToken}

func joinToken(t *testing.T) fixture {
	tok, err := jointoken.New(array(1))
	if err != nil {
		t.Fatal(err)
	}
	record := jointoken.Record{PublicKey: tok.PublicKey(), Name: "web-1", Expires: now.Add(time.Hour), Genesis: array(1)}
	return fixture{
		attest.Material{jointoken.NeedToken: []byte(tok.Reveal() + "\n")},
		jointoken.Params{Lookup: func(id string) (jointoken.Record, bool) { return record, id == tok.ID() }},
	}
}

func certificate(t *testing.T) fixture {
	issue := func(ca bool, parent *cx509.Certificate, signer *ecdsa.PrivateKey) (*cx509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tmpl := &cx509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, IsCA: ca, BasicConstraintsValid: true,
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		}
		if parent == nil {
			parent, signer = tmpl, key
			tmpl.Subject.CommonName = "root"
		}
		der, err := cx509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := cx509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	root, rootKey := issue(true, nil, nil)
	cert, key := issue(false, root, rootKey)
	der, err := cx509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	authorities, err := x509.NewAuthorities(map[string][]byte{"corp": block("CERTIFICATE", root.Raw)})
	if err != nil {
		t.Fatal(err)
	}
	return fixture{
		attest.Material{x509.NeedCertificate: block("CERTIFICATE", cert.Raw), x509.NeedKey: block("PRIVATE KEY", der)},
		x509.Params{Authorities: authorities},
	}
}

func awsInstance(t *testing.T) fixture {
	signer := cmstest.Issue(t, "Amazon Web Services LLC", 1, cmstest.Key(0), nil, nil)
	document := `{"accountId":"123456789012","architecture":"x86_64","availabilityZone":"eu-west-1a","imageId":"ami-5fb8c835",` +
		`"instanceId":"i-1234567890abcdef0","instanceType":"t2.micro","pendingTime":"2026-11-22T11:55:00Z","privateIp":"10.0.0.1","region":"eu-west-1"}`
	message := cmstest.Message(t, []byte(document), cmstest.SHA256, true, signer)
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			_, _ = w.Write([]byte("token"))
			return
		}
		_, _ = w.Write([]byte(base64.StdEncoding.EncodeToString(message)))
	}))
	t.Cleanup(service.Close)
	regions, err := aws.RegionsOf([]authority.Authority{{Name: "eu-west-1", Certificates: []*cx509.Certificate{signer.Certificate}}})
	if err != nil {
		t.Fatal(err)
	}
	return fixture{attest.Material{aws.NeedEndpoint: []byte(service.URL)}, aws.Params{Regions: regions}}
}

func azureMachine(t *testing.T) fixture {
	const tenant, id = "11111111-2222-3333-4444-555555555555", "8d10da13-8125-4ba9-a717-bf7490507b3d"
	root := cmstest.Issue(t, "root", 1, cmstest.Key(0), nil, cmstest.CA)
	issuing := cmstest.Issue(t, "issuing", 2, cmstest.Key(1), &root, cmstest.CA)
	signer := cmstest.Issue(t, "signer", 3, cmstest.Key(2), &issuing, func(c *cx509.Certificate) { c.DNSNames = []string{"metadata.azure.com"} })
	issuer := jwttest.New(t, "https://sts.windows.net/"+tenant+"/", jose.RS256)
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if q.Has("nonce") {
			document := `{"nonce":"` + q.Get("nonce") + `","subscriptionId":"` + id + `","vmId":"` + id +
				`","timeStamp":{"createdOn":"11/22/26 11:59:00 -0000","expiresOn":"11/22/26 17:59:00 -0000"}}`
			message := cmstest.Message(t, []byte(document), cmstest.SHA256, false, signer)
			_, _ = w.Write([]byte(`{"encoding":"pkcs7","signature":"` + base64.StdEncoding.EncodeToString(message) + `"}`))
			return
		}
		token := issuer.Sign(map[string]any{
			"iss": issuer.URL, "aud": q.Get("resource"), "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "tid": tenant, "oid": id, "appid": q.Get("client_id"),
			"xms_mirid": "/subscriptions/" + id + "/resourcegroups/web/providers/Microsoft.Compute/virtualMachines/web-1",
		})
		_, _ = w.Write([]byte(`{"access_token":"` + string(token) + `"}`))
	}))
	t.Cleanup(service.Close)
	authorities, err := azure.AuthoritiesOf([]authority.Authority{
		{Name: "documents", Certificates: []*cx509.Certificate{root.Certificate}}, {Name: "tenant", Issuer: issuer.URL, Keys: issuer.Keys()},
	})
	if err != nil {
		t.Fatal(err)
	}
	return fixture{
		attest.Material{
			azure.NeedEndpoint: []byte(service.URL), azure.NeedTenant: []byte(tenant), azure.NeedClient: []byte(id),
			azure.NeedChain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuing.Certificate.Raw}),
		},
		azure.Params{Authorities: authorities},
	}
}

func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range methods.All() {
		switch {
		case !attest.ValidMethodName(m.Name):
			t.Errorf("%s: bad name", m.Name)
		case seen[m.Name]:
			t.Errorf("%s stands in the table twice", m.Name)
		case m.Proves == "" || m.DoesNotProve == "":
			t.Errorf("%s doesn't say what it proves and doesn't", m.Name)
		case m.Verify == nil || m.NewAttester == nil || len(m.Needs) == 0:
			t.Errorf("%s is half a method", m.Name)
		case m.Renewal.Kind != attest.RenewByEvidence && m.Renewal.Kind != attest.RenewByPossession:
			t.Errorf("%s declares no renewal", m.Name)
		case m.Renewal.Kind == attest.RenewByPossession && !m.Renewal.HardLifetime:
			t.Errorf("%s is renewed without evidence for ever", m.Name)
		case m.Unbound && !identity.Token.AtLeast(m.Assurance):
			t.Errorf("%s is not bound, and says %s", m.Name, m.Assurance)
		case policy.MostAssurance(m.Name) != m.Assurance:
			t.Errorf("%s says %s, and questions about reach count with %s", m.Name, m.Assurance, policy.MostAssurance(m.Name))
		}
		seen[m.Name] = true
		checkReadme(t, m)
	}
}

// checkReadme holds each README to what the row says, and to the sections that readers look for.
func checkReadme(t *testing.T, m attest.Method) {
	dir := filepath.Join("..", strings.ReplaceAll(m.Name, "-", ""))
	// Methods that share a package have a folder in it each.
	if within, err := filepath.Glob(filepath.Join("..", "*", m.Name)); err == nil && len(within) == 1 {
		dir = within[0]
	}
	text, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Errorf("%s has no README: %v", m.Name, err)
		return
	}
	wants := []string{
		"## Proves", "## Does not prove", "## How it can be stolen or replayed", "## Renewal", "## Evidence",
		"`" + m.Assurance.String() + "`", "`" + string(m.Renewal.Kind) + "`",
	}
	if m.Unbound {
		wants = append(wants, "the evidence is not bound", "present it once to each environment")
	}
	for _, want := range wants {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s/README.md lacks %q", dir, want)
		}
	}
	// What is claimed, not claimed, and feared stands in rows: a sentence that points elsewhere is no list of what was thought of.
	for _, section := range wants[:3] {
		if rows := tableRows(string(text), section); rows == 0 {
			t.Errorf("%s/README.md: no row of a table below %q", dir, section)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "testdata", "vectors.json")); err != nil {
		t.Errorf("%s has no vectors: %v", m.Name, err)
	}
}

// tableRows counts the rows of the tables of a section, without their heads.
func tableRows(text, section string) (rows int) {
	_, body, _ := strings.Cut("\n"+text, "\n"+section+"\n")
	body, _, _ = strings.Cut(body, "\n## ")
	inTable := false
	for line := range strings.Lines(body) {
		switch {
		case !strings.HasPrefix(line, "|"):
			inTable = false
		case strings.HasPrefix(line, "|--"), strings.HasPrefix(line, "| --"), strings.HasPrefix(line, "|:-"):
			inTable = true
		case inTable:
			rows++
		}
	}
	return rows
}

func TestTableRows(t *testing.T) {
	for text, want := range map[string]int{
		"":                                      0,
		"## A\n\nwhat others do\n":              0,
		"## A\n\n| x | y |\n|---|---|\n":        0,
		"## A\n| x |\n|---|\n| 1 |\n| 2 |\n":    2,
		"## A\nno\n\n## B\n| x |\n|---|\n| 1 |": 0,
		"## AB\n| x |\n|---|\n| 1 |\n\n## A\n":  0,
		"## A\n| 1 |\n":                         0,
	} {
		if got := tableRows(text, "## A"); got != want {
			t.Errorf("%q: %d rows, want %d", text, got, want)
		}
	}
}

// TestSuite is the contract of package attest, executable: every method must pass it.
func TestSuite(t *testing.T) {
	table := methods.All()
	all := fixtures(t)
	if len(all) != len(table) {
		t.Fatalf("%d fixtures for %d methods", len(all), len(table))
	}
	for _, m := range table {
		f, ok := all[m.Name]
		if !ok {
			t.Errorf("%s has no fixture here", m.Name)
			continue
		}
		t.Run(m.Name, func(t *testing.T) { suite(t, table, m, f) })
	}
}

func suite(t *testing.T, table attest.Methods, m attest.Method, f fixture) {
	a, err := table.NewAttesterFrom(m.Name, f.material)
	if err != nil {
		t.Fatal(err)
	}
	if _, makes := a.(attest.KeyMaker); makes != m.MakesKeys {
		t.Errorf("its attester makes keys: %v, the table says %v", makes, m.MakesKeys)
	}
	if s, ok := f.params.(inSoftware); ok {
		a, f.params = s.attester, s.params
	}
	b := attest.Binding{Method: m.Name, Genesis: array(1), Nonce: bytes.Repeat([]byte{7}, 32), SessionKey: array(9)}
	good := attest.Input{Binding: b, Now: now, Params: f.params}
	if m.Offer == nil {
		good.Evidence, err = a.Attest(context.Background(), b)
	} else {
		good.Secret = secretOf
		good.Evidence, err = twoRounds(t, m, a, b, f)
	}
	if err != nil {
		t.Fatal(err)
	}
	ev := good.Evidence
	res, err := m.Verify(good)
	if err != nil {
		t.Fatal(err)
	}
	checkResult(t, m, res)
	if again, err := m.Verify(good); err != nil || !reflect.DeepEqual(again, res) {
		t.Errorf("the verifier isn't pure: %+v, %v", again, err)
	}

	other := m.Name + "-x"
	refuse := func(name string, in attest.Input, wants ...problem.Reason) {
		t.Helper()
		got, err := m.Verify(in)
		if slices.Contains(unnoticed(m), name) {
			if err != nil || got.Once == "" || got.Once != res.Once || got.OnceUntil.IsZero() {
				t.Errorf("%s: once %q, %v", name, got.Once, err)
			}
			return
		}
		if !reflect.DeepEqual(got, attest.Result{}) {
			t.Errorf("%s: a result beside the refusal", name)
		}
		for _, want := range wants {
			if problem.Is(err, want) {
				return
			}
		}
		t.Errorf("%s: %v", name, err)
	}
	change := func(f func(*attest.Input)) attest.Input {
		in := good
		in.Evidence = bytes.Clone(ev)
		f(&in)
		return in
	}
	if m.Unbound {
		checkUnbound(t, m, good, res)
	} else {
		refuse("other nonce", change(func(in *attest.Input) { in.Binding.Nonce = bytes.Repeat([]byte{8}, 32) }), problem.ReasonBadProof, problem.ReasonAudience)
		refuse("other session key", change(func(in *attest.Input) { in.Binding.SessionKey = array(8) }), problem.ReasonBadProof, problem.ReasonAudience)
		refuse("other environment", change(func(in *attest.Input) { in.Binding.Genesis = array(2) }), problem.ReasonBadProof, problem.ReasonTokenForeign, problem.ReasonAudience)
	}
	refuse("other method", change(func(in *attest.Input) { in.Binding.Method = other }), problem.ReasonInternal)
	refuse("no params", change(func(in *attest.Input) { in.Params = nil }), problem.ReasonInternal)
	refuse("no time", change(func(in *attest.Input) { in.Now = time.Time{} }), problem.ReasonInternal)
	refuse("no binding", change(func(in *attest.Input) { in.Binding = attest.Binding{} }), problem.ReasonInternal)
	refuse("no evidence", change(func(in *attest.Input) { in.Evidence = nil }), problem.ReasonInvalid)
	refuse("too large", change(func(in *attest.Input) { in.Evidence = make([]byte, cmp.Or(m.MaxEvidence, attest.MaxEvidence)+1) }), problem.ReasonTooLarge)
	if m.Offer != nil {
		refuse("no secret", change(func(in *attest.Input) { in.Secret = nil }), problem.ReasonInternal)
		refuse("other secret", change(func(in *attest.Input) { in.Secret = func([]byte) [32]byte { return array(3) } }), problem.ReasonBadProof)
	}
	refuse("trailing", change(func(in *attest.Input) { in.Evidence = append(in.Evidence, ' ') }), problem.ReasonInvalid)
	for cut := 1; cut < len(ev); cut += 1 + len(ev)/100 {
		refuse("cut", change(func(in *attest.Input) { in.Evidence = in.Evidence[:cut] }), problem.ReasonInvalid)
	}
	// No flipped bit anywhere may prove anything else; nearly all prove nothing.
	for i := range ev {
		in := change(func(in *attest.Input) { in.Evidence[i] ^= 1 })
		if r, err := m.Verify(in); err == nil && !reflect.DeepEqual(r, res) {
			t.Errorf("byte %d flipped: %+v", i, r)
		} else if err != nil && problem.KindOf(err) == problem.Internal {
			t.Errorf("byte %d flipped: %v", i, err)
		}
	}
	for _, n := range m.Needs {
		checkNeed(t, table, m, n, f)
	}
	if _, err := table.NewAttesterFrom(m.Name, attest.Material{"nonsense": []byte("x")}); err == nil {
		t.Error("material that nobody needs was accepted")
	}
}

// checkUnbound holds a method that says its evidence is not bound to what makes up for it: one use for ever, the same whoever shows it, and
// no assurance above that of a single-use token. A method whose evidence is bound may not say that it isn't.
func checkUnbound(t *testing.T, m attest.Method, good attest.Input, res attest.Result) {
	t.Helper()
	if res.Once == "" || !res.OnceUntil.IsZero() || !identity.Token.AtLeast(res.Assurance) {
		t.Errorf("evidence that is not bound gives %+v", res)
	}
	good.Binding.Genesis, good.Binding.Nonce, good.Binding.SessionKey = array(2), bytes.Repeat([]byte{8}, 32), array(8)
	if again, err := m.Verify(good); err != nil || !reflect.DeepEqual(again, res) {
		t.Errorf("it is bound to something: %+v, %v", again, err)
	}
}

// secretOf is a server's rule for what it hides in the offer to a hello.
func secretOf(hello []byte) [32]byte { return sha256.Sum256(append([]byte("secret "), hello...)) }

// twoRounds is how a method with an offer makes evidence; on the way, what only it has is tried.
func twoRounds(t *testing.T, m attest.Method, a attest.Attester, b attest.Binding, f fixture) ([]byte, error) {
	t.Helper()
	g, ok := a.(attest.Greeter)
	if !ok {
		t.Fatal("a method with an offer has an attester that doesn't greet")
	}
	if _, err := a.Attest(context.Background(), b); err == nil {
		t.Error("evidence was made without an offer")
	}
	hello, err := g.Hello(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := g.Hello(context.Background()); err != nil || !bytes.Equal(hello, again) {
		t.Errorf("two hellos differ: %v", err)
	}
	good := attest.OfferInput{Hello: hello, Secret: secretOf(hello), Random: rand.Reader, Now: now, Params: f.params}
	offer, err := m.Offer(good)
	if err != nil {
		t.Fatal(err)
	}
	if secret := secretOf(hello); bytes.Contains(offer, secret[:]) {
		t.Error("the offer shows its secret")
	}
	for name, c := range map[string]struct {
		change func(*attest.OfferInput)
		want   problem.Reason
	}{
		"no hello":  {func(in *attest.OfferInput) { in.Hello = nil }, problem.ReasonInvalid},
		"trailing":  {func(in *attest.OfferInput) { in.Hello = append(bytes.Clone(hello), ' ') }, problem.ReasonInvalid},
		"cut":       {func(in *attest.OfferInput) { in.Hello = hello[:len(hello)/2] }, problem.ReasonInvalid},
		"too large": {func(in *attest.OfferInput) { in.Hello = make([]byte, attest.MaxEvidence+1) }, problem.ReasonTooLarge},
		"no params": {func(in *attest.OfferInput) { in.Params = nil }, problem.ReasonInternal},
		"no time":   {func(in *attest.OfferInput) { in.Now = time.Time{} }, problem.ReasonInternal},
	} {
		in := good
		c.change(&in)
		if out, err := m.Offer(in); !problem.Is(err, c.want) || out != nil {
			t.Errorf("offer, %s: %v", name, err)
		}
	}
	for name, bad := range map[string][]byte{"nothing": nil, "cut": offer[:len(offer)-1], "trailing": append(bytes.Clone(offer), ' ')} {
		if _, err := g.Answer(context.Background(), b, hello, bad); err == nil {
			t.Errorf("an answer to an offer that is %s", name)
		}
	}
	return g.Answer(context.Background(), b, hello, offer)
}

func checkResult(t *testing.T, m attest.Method, res attest.Result) {
	t.Helper()
	if !m.Assurance.AtLeast(res.Assurance) {
		t.Errorf("assurance %s is above the method's", res.Assurance)
	}
	if !strings.HasPrefix(res.Anchor, m.Name+":") || res.Key == [32]byte{} {
		t.Errorf("anchor %q, key %x", res.Anchor, res.Key)
	}
	if own := []string{"join-token", "sshhost", "tpm", "x509"}; slices.Contains(own, m.Name) == m.Shared || !m.Shared && m.Machine != nil {
		t.Errorf("whose key signs its evidence? shared: %v, %v", m.Shared, m.Machine)
	}
	for _, name := range m.Machine {
		if text, _ := res.Claims[name].(string); text == "" {
			t.Errorf("its claim %q, which is to name the machine, is %v", name, res.Claims[name])
		}
	}
	if row, ok := authority.FindMethod(m.Name); !ok || row.Once != (res.Once != "") {
		t.Errorf("bundles know the method as %+v, and its use is %q", row, res.Once)
	}
	if res.Once != "" && !strings.HasPrefix(res.Once, m.Name+":") && !strings.HasPrefix(res.Once, attest.OnceToken) {
		t.Errorf("%q is not unique across methods", res.Once)
	}
	data, err := json.Marshal(res.Claims)
	if err != nil {
		t.Fatal(err)
	}
	var back map[string]any
	if err := json.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(back, res.Claims) {
		t.Errorf("claims don't survive JSON: %s", data)
	}
	if err := attest.CheckClaims(res.Claims); err != nil {
		t.Error(err)
	}
}

// checkNeed drops one need, and then damages it with a canary that no error may show.
func checkNeed(t *testing.T, table attest.Methods, m attest.Method, n attest.Need, f fixture) {
	t.Helper()
	without := attest.Material{}
	for k, v := range f.material {
		if k != n.Name {
			without[k] = v
		}
	}
	if _, err := table.NewAttesterFrom(m.Name, without); !n.Optional && !problem.Is(err, problem.ReasonInvalid) {
		t.Errorf("without %s: %v", n.Name, err)
	}
	whole := f.material[n.Name]
	without[n.Name] = append(bytes.Clone(whole[:len(whole)/2]), "canary-5b1e"...)
	a, err := table.NewAttesterFrom(m.Name, without)
	if err == nil && slices.Contains(opaque, n.Name) {
		_, err = a.Attest(t.Context(), attest.Binding{Method: m.Name, Genesis: array(1), Nonce: bytes.Repeat([]byte{7}, 32), SessionKey: array(9)})
	}
	if err == nil || strings.Contains(err.Error(), "canary") || len(whole) > 0 && strings.Contains(err.Error(), string(whole[len(whole)/4:len(whole)/2])) {
		t.Errorf("damaged %s: %v", n.Name, err)
	}
}

func TestFind(t *testing.T) {
	for _, m := range methods.All() {
		if got, err := methods.All().Find(m.Name); err != nil || got.Name != m.Name {
			t.Errorf("%s: %v", m.Name, err)
		}
	}
	if _, err := methods.All().Find("tpm9"); !problem.Is(err, problem.ReasonUnknownMethod) {
		t.Error(err)
	}
	if _, err := methods.All().NewAttesterFrom("tpm9", nil); !problem.Is(err, problem.ReasonUnknownMethod) {
		t.Error(err)
	}
}
