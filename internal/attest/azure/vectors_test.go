package azure

import (
	"encoding/json"
	"flag"
	"testing"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/attesttest"
	"github.com/bailment/bailment/internal/attest/cms/cmstest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors.json")

// vector is one line of testdata/vectors.json: what another implementation needs to agree with us.
type vector struct {
	attesttest.Bound
	Documents string          `json:"documents"`        // PEM of the authority of documents
	Issuer    string          `json:"issuer,omitempty"` // of tokens, with its keys
	Keys      json.RawMessage `json:"keys,omitempty"`
	attesttest.Case
}

func (v vector) Input(t testing.TB) attest.Input {
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
	return v.InputOf(Name, v.Case, params(t, all...))
}

func writeVectors(t *testing.T) {
	c := newCloud(t)
	keys, err := json.Marshal(c.tenant.Keys())
	if err != nil {
		t.Fatal(err)
	}
	b := binding()
	var vs []vector
	add := func(comment string, refused problem.Reason, withTokens bool, document []byte, token string) {
		v := vector{
			Bound: attesttest.BoundTo(comment, b), Documents: string(certificatePEM(c.root.Certificate)),
			Case: attesttest.Case{Now: now, Evidence: string(evidenceOf(t, document, token)), Refused: refused},
		}
		if withTokens {
			v.Issuer, v.Keys = tenantURL, keys
		}
		v.Record(t, Verify, v.Input(t))
		vs = append(vs, v)
	}
	document := c.signed(t, attested(b))
	other := b
	other.SessionKey = attesttest.Array(8)
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
	add("another environment's token", problem.ReasonAudience, true, document, c.token(t, map[string]any{"aud": Resource(tenant, attesttest.Array(2))}))
	attesttest.Write(t, vs)
}

func readVectors(t testing.TB) []vector { return attesttest.Read[vector](t, 8) }

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	for _, v := range readVectors(t) {
		attesttest.Check(t, Verify, v.Comment, v)
	}
}

func FuzzVerify(f *testing.F) {
	vs := readVectors(f)
	alone, both := vs[0].Input(f), vs[1].Input(f)
	known := attesttest.Proves(vs)
	for _, v := range vs {
		f.Add([]byte(v.Evidence))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, in := range []attest.Input{alone, both} {
			in.Evidence = data
			_, _ = issuerOf(data)
			known.Hold(t, Verify, in)
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
