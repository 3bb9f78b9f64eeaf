package azure

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/cms/cmstest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors.json")

// vector is one line of testdata/vectors.json: what another implementation needs to agree with us.
type vector struct {
	Comment    string          `json:"comment"`
	Genesis    []byte          `json:"genesis"`
	Nonce      []byte          `json:"nonce"`
	SessionKey []byte          `json:"session_key"`
	Documents  string          `json:"documents"`        // PEM of the authority of documents
	Issuer     string          `json:"issuer,omitempty"` // of tokens, with its keys
	Keys       json.RawMessage `json:"keys,omitempty"`
	Now        time.Time       `json:"now"`
	Evidence   string          `json:"evidence"`
	Claims     map[string]any  `json:"claims,omitempty"`
	Refused    problem.Reason  `json:"refused,omitempty"`
}

func (v vector) input(t testing.TB) attest.Input {
	t.Helper()
	certificates, err := authority.ParseFor(Name, []byte(v.Documents))
	if err != nil {
		t.Fatal(err)
	}
	all := []authority.Authority{{Name: "azure-public", Certificates: certificates}}
	if v.Issuer != "" {
		keys, err := authority.ParseKeys(v.Keys)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, authority.Authority{Name: "corp-tenant", Issuer: v.Issuer, Keys: keys})
	}
	return attest.Input{
		Binding:  attest.Binding{Method: Name, Genesis: [32]byte(v.Genesis), Nonce: v.Nonce, SessionKey: [32]byte(v.SessionKey)},
		Evidence: []byte(v.Evidence), Now: v.Now, Params: params(t, all...),
	}
}

func writeVectors(t *testing.T, path string) {
	c := newCloud(t)
	keys, err := json.Marshal(c.tenant.Keys())
	if err != nil {
		t.Fatal(err)
	}
	b := binding()
	var vs []vector
	add := func(comment string, refused problem.Reason, withTokens bool, document []byte, token string) {
		v := vector{
			Comment: comment, Genesis: b.Genesis[:], Nonce: b.Nonce, SessionKey: b.SessionKey[:], Documents: string(certificatePEM(c.root.Certificate)),
			Now: now, Evidence: string(evidenceOf(t, document, token)), Refused: refused,
		}
		if withTokens {
			v.Issuer, v.Keys = tenantURL, keys
		}
		if refused == "" {
			res, err := Verify(v.input(t))
			if err != nil {
				t.Fatal(err)
			}
			v.Claims = res.Claims
		}
		vs = append(vs, v)
	}
	document := c.signed(t, attested(b))
	other := b
	other.SessionKey = array(8)
	add("accepted: a document", "", false, document, "")
	add("accepted: a document and a token", "", true, document, c.token(t, nil))
	add("accepted: an identity assigned by a user", "", true, document, c.token(t, map[string]any{"xms_mirid": userIdentity, "xms_az_rid": machineID}))
	add("another session key", problem.ReasonBadProof, false, c.signed(t, attested(other)), "")
	add("too old", problem.ReasonEvidenceExpired, false, c.signed(t, attested(b, "11:59:00", "11:00:00")), "")
	add("another name", problem.ReasonBadChain, false, func() []byte {
		s := cmstest.Issue(t, "x", 9, cmstest.Key(2), &c.issuing, server("metadata.azure.com.example"))
		return cmstest.Encoded(t, cmstest.Message(t, attested(b), cmstest.SHA256, false, s), s.Certificate, c.issuing.Certificate)
	}(), "")
	add("no token", problem.ReasonTokenInvalid, true, document, "")
	add("another environment's token", problem.ReasonAudience, true, document, c.token(t, map[string]any{"aud": Resource(tenant, array(2))}))
	data, err := json.MarshalIndent(vs, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readVectors(t testing.TB) []vector {
	t.Helper()
	var vs []vector
	if err := json.Unmarshal(read(t, filepath.Join("testdata", "vectors.json")), &vs); err != nil || len(vs) < 8 {
		t.Fatal(len(vs), err)
	}
	return vs
}

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t, filepath.Join("testdata", "vectors.json"))
	}
	for _, v := range readVectors(t) {
		res, err := Verify(v.input(t))
		if v.Refused != "" && !problem.Is(err, v.Refused) || v.Refused == "" && err != nil {
			t.Errorf("%s: %v", v.Comment, err)
		}
		if !reflect.DeepEqual(res.Claims, v.Claims) {
			t.Errorf("%s: claims %v", v.Comment, res.Claims)
		}
	}
}

func FuzzVerify(f *testing.F) {
	vs := readVectors(f)
	alone, both := vs[0].input(f), vs[1].input(f)
	known := map[string]bool{}
	for _, v := range vs {
		f.Add([]byte(v.Evidence))
		if v.Refused == "" {
			text, _ := json.Marshal(v.Claims)
			known[string(text)] = true
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, in := range []attest.Input{alone, both} {
			in.Evidence = data
			_, _ = issuerOf(data)
			res, err := Verify(in)
			if err != nil {
				if problem.KindOf(err) == problem.Internal {
					t.Fatalf("a stranger caused an internal error: %v", err)
				}
				continue
			}
			if text, _ := json.Marshal(res.Claims); !known[string(text)] {
				t.Fatalf("%q proves %s", data, text)
			}
		}
	})
}

func FuzzDocument(f *testing.F) {
	f.Add(attested(binding()), machineID)
	f.Add(attested(binding(), `"vmId"`, `"vmId":"","vmId"`), userIdentity)
	f.Fuzz(func(t *testing.T, data []byte, id string) {
		if d, err := parseDocument(data); err == nil {
			if !guid.MatchString(d.VMID) || !guid.MatchString(d.SubscriptionID) || !d.created.Before(d.expires) {
				t.Fatalf("%+v", d)
			}
		} else if problem.KindOf(err) == problem.Internal {
			t.Fatal(err)
		}
		if r, ok := parseResource(id); ok {
			for _, part := range []string{r.group, r.name} {
				if err := attest.CheckClaimText(part); err != nil || part == "" {
					t.Fatalf("%q: %v", part, err)
				}
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	c := newCloud(b)
	in := input(evidenceOf(b, c.signed(b, attested(binding())), c.token(b, nil)), params(b, c.documents(), c.tokens()))
	for b.Loop() {
		if _, err := Verify(in); err != nil {
			b.Fatal(err)
		}
	}
}
