package policy

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/spiffe"
)

// kindFederation documents live in federation/.
const kindFederation = "Federation"

// Profiles of a bundle endpoint (SPIFFE_Federation §5.2).
const (
	ProfileSPIFFE = "https_spiffe" // the endpoint shows an X.509-SVID, checked against the bundle that is known so far
	ProfileWeb    = "https_web"    // the endpoint shows a certificate for its DNS name
)

type (
	// spiffeSpec is environment.yaml's spiffe.
	spiffeSpec struct {
		RefreshHint period `yaml:"refreshHint" default:"5m" doc:"How often others are asked to fetch this environment's trust bundle, 1m to 24h."`
		JWT         struct {
			Issuer    text   `yaml:"issuer" doc:"URL of the issuer that JWT-SVIDs name (iss), https://… without a slash at its end. The discovery document and the keys must be reachable below it. Without it tokens name none, and clouds can't federate."`
			Audiences []text `yaml:"audiences" doc:"Audiences that tokens may be asked for: exact, or PREFIX* for all that begin so. Default: any."`
			TTL       period `yaml:"ttl" default:"5m" doc:"Longest life of a token, 30s to 5m."`
			Algorithm text   `yaml:"algorithm" enum:"ES256,RS256" default:"ES256" doc:"What tokens are signed by. RS256 is for verifiers that know nothing else, such as Microsoft Entra. When it changes, a key for it is published as soon as the one before it was published for refreshHint, and signs after the next rotation."`
			Rotate    period `yaml:"rotate" default:"720h" doc:"How often the key of tokens is rotated, 24h to 8760h. A new key is published for so long before it signs."`
		} `yaml:"jwt" doc:"JWT-SVIDs: tokens that workloads, CI jobs and machines show to others."`
	}

	federationSpec struct {
		At          Pos
		TrustDomain text `yaml:"trustDomain" need:"true" doc:"The other trust domain. It is not this environment's name."`
		Endpoint    struct {
			At         Pos
			URL        text `yaml:"url" need:"true" doc:"Where its bundle is fetched: https://HOST:PORT/PATH."`
			Profile    text `yaml:"profile" need:"true" enum:"https_spiffe,https_web" doc:"How the endpoint proves itself: by an X.509-SVID, or by a certificate for its DNS name."`
			ID         text `yaml:"id" doc:"https_spiffe only: the SPIFFE ID that the endpoint must prove, in the other trust domain."`
			ServerName text `yaml:"serverName" doc:"https_spiffe only: the TLS server name to ask for. Default: the other trust domain's name, which is what a server of this software wants."`
			Roots      text `yaml:"roots" doc:"https_web only: PEM of the CAs that may vouch for the endpoint, instead of the machine's own."`
		} `yaml:"endpoint" need:"true" doc:"The other trust domain's bundle endpoint."`
		Bundle text `yaml:"bundle" doc:"The other trust domain's bundle as it was compared out of band, a JWK Set in the SPIFFE bundle format. https_spiffe can't do without."`
	}
)

// Bounds of what spiffe says.
const (
	defaultRefreshHint = 5 * time.Minute
	maxRefreshHint     = 24 * time.Hour
	defaultJWTRotate   = 720 * time.Hour
	minJWTRotate       = 24 * time.Hour
	maxJWTRotate       = 8760 * time.Hour
	maxAudiencePattern = 64 // patterns
	maxFederations     = 64
)

// SPIFFE are an environment's settings of how it is known to others, with defaults filled in.
type SPIFFE struct {
	RefreshHint time.Duration
	Issuer      string // of JWT-SVIDs; empty: they name none
	TokenTTL    time.Duration
	Algorithm   string        // of new keys of JWT-SVIDs
	Rotate      time.Duration // of the key of JWT-SVIDs
	audiences   []string      // exact, or PREFIX*; none: any
}

// Audiences lists the patterns of audiences that tokens may be for, as they are written; none: any. It is shared: don't change it.
func (s *SPIFFE) Audiences() []string { return s.audiences }

// Audience reports whether a token may be for an audience.
func (s *SPIFFE) Audience(name string) bool {
	if len(s.audiences) == 0 {
		return true
	}
	return slices.ContainsFunc(s.audiences, func(p string) bool {
		if prefix, family := strings.CutSuffix(p, "*"); family {
			return strings.HasPrefix(name, prefix) && len(name) > len(prefix)
		}
		return p == name
	})
}

// Federation is a relation with another trust domain. It is shared: don't change what it refers to.
type Federation struct {
	Name        string
	TrustDomain string
	URL         string
	Profile     string
	EndpointID  string // https_spiffe
	ServerName  string // https_spiffe; never empty there
	Roots       []*x509.Certificate
	Pinned      []byte // the bundle document that was approved; empty: none (https_web)
	Source      Pos
}

func (c *compiler) spiffe(s *environmentSpec) {
	e := &c.program.environment.SPIFFE
	in := &s.SPIFFE
	e.RefreshHint = c.duration(in.RefreshHint, "spiffe.refreshHint", defaultRefreshHint, minPeriod, maxRefreshHint)
	e.TokenTTL = c.duration(in.JWT.TTL, "spiffe.jwt.ttl", spiffe.MaxTokenLife, spiffe.MinTokenLife, spiffe.MaxTokenLife)
	e.Rotate = c.duration(in.JWT.Rotate, "spiffe.jwt.rotate", defaultJWTRotate, minJWTRotate, maxJWTRotate)
	if e.Algorithm = c.oneOf(in.JWT.Algorithm, "spiffe.jwt.algorithm", spiffe.ES256, spiffe.RS256); e.Algorithm == "" {
		e.Algorithm = spiffe.ES256
	}
	e.Issuer, e.audiences = "", nil
	if t := in.JWT.Issuer; t.set {
		if err := spiffe.ValidIssuer(t.value); err != nil {
			c.found.add(t.at, "spiffe.jwt.issuer: %v", err)
		}
		e.Issuer = t.value
	}
	if len(in.JWT.Audiences) > maxAudiencePattern {
		c.found.add(in.JWT.Audiences[maxAudiencePattern].at, "\"audiences\" has more than %d patterns", maxAudiencePattern)
		return
	}
	for _, t := range in.JWT.Audiences {
		if err := spiffe.ValidAudience(t.value); err != nil {
			c.found.add(t.at, "spiffe.jwt.audiences: %v", err)
			continue
		}
		if strings.Contains(strings.TrimSuffix(t.value, "*"), "*") {
			c.found.add(t.at, "%q: only a last '*' stands for more", t.value)
			continue
		}
		if slices.Contains(e.audiences, t.value) {
			c.found.add(t.at, "%q is here twice", t.value)
			continue
		}
		e.audiences = append(e.audiences, t.value)
	}
}

func (c *compiler) federations() {
	domains := map[string]string{}
	c.each(kindFederation, func(d *document) {
		s := d.spec.(*federationSpec)
		if len(c.program.federations) == maxFederations {
			c.found.add(d.at, "there are more than %d federations", maxFederations)
			return
		}
		f := Federation{Name: d.name.value, TrustDomain: s.TrustDomain.value, URL: s.Endpoint.URL.value, Source: d.at}
		if err := identity.ValidEnv(f.TrustDomain); err != nil {
			c.found.add(s.TrustDomain.at, "the trust domain: %v", err)
		} else if f.TrustDomain == c.program.environment.Name {
			c.found.add(s.TrustDomain.at, "an environment doesn't federate with itself")
		}
		if other, twice := domains[f.TrustDomain]; twice {
			c.found.add(s.TrustDomain.at, "the federation %s is with this trust domain already", other)
		}
		domains[f.TrustDomain] = f.Name
		if err := spiffe.ValidEndpoint(f.URL); err != nil {
			c.found.add(s.Endpoint.URL.at, "the endpoint: %v", err)
		}
		c.endpoint(s, &f)
		c.pinned(s, &f)
		c.program.federations = append(c.program.federations, f)
	})
	slices.SortFunc(c.program.federations, func(a, b Federation) int { return strings.Compare(a.Name, b.Name) })
}

// endpoint checks what each profile needs, and that it has nothing of the other.
func (c *compiler) endpoint(s *federationSpec, f *Federation) {
	e := &s.Endpoint
	f.Profile = c.oneOf(e.Profile, "profile", ProfileSPIFFE, ProfileWeb)
	switch f.Profile {
	case ProfileSPIFFE:
		if e.Roots.set {
			c.found.add(e.Roots.at, "\"roots\" is for the profile %s", ProfileWeb)
		}
		id, err := identity.Parse(e.ID.value)
		switch {
		case !e.ID.set:
			c.found.add(e.At, "the profile %s needs the field \"id\"", ProfileSPIFFE)
		case err != nil:
			c.found.add(e.ID.at, "the endpoint's id: %v", err)
		case id.Env() != f.TrustDomain:
			// Otherwise one trust domain could be made to vouch for another's keys.
			c.found.add(e.ID.at, "the endpoint's id must be of the trust domain %s, which its pinned bundle can prove", f.TrustDomain)
		}
		f.EndpointID, f.ServerName = e.ID.value, f.TrustDomain
		if e.ServerName.set {
			f.ServerName = e.ServerName.value
			if err := identity.ValidEnv(f.ServerName); err != nil {
				c.found.add(e.ServerName.at, "the server name: %v", err)
			}
		}
	case ProfileWeb:
		for _, t := range []text{e.ID, e.ServerName} {
			if t.set {
				c.found.add(t.at, "\"id\" and \"serverName\" are for the profile %s", ProfileSPIFFE)
			}
		}
		if e.Roots.set {
			roots, err := authority.Parse([]byte(e.Roots.value))
			if err != nil {
				c.found.add(e.Roots.at, "the endpoint's roots: %v", err)
			}
			f.Roots = roots
		}
	}
}

func (c *compiler) pinned(s *federationSpec, f *Federation) {
	if !s.Bundle.set {
		if f.Profile == ProfileSPIFFE {
			c.found.add(s.At, "the profile %s needs the field \"bundle\": what the endpoint shows is checked against it", ProfileSPIFFE)
		}
		return
	}
	f.Pinned = []byte(s.Bundle.value)
	b, err := spiffe.Parse(f.TrustDomain, f.Pinned)
	switch {
	case err != nil:
		c.found.add(s.Bundle.at, "%v", err)
	case f.Profile == ProfileSPIFFE && len(b.Authorities) == 0:
		c.found.add(s.Bundle.at, "the bundle has no X.509 authority, so no endpoint can be checked against it")
	}
}

// federatesWith checks the relations that a workload's rule names.
func (c *compiler) federatesWith(s *identitySpec, r *identityRule) {
	if r.method != MethodWorkload {
		if s.FederatesWith != nil {
			c.found.add(s.At, "\"federatesWith\" is for workloads")
		}
		return
	}
	for _, t := range s.FederatesWith {
		known := slices.ContainsFunc(c.byKind[kindFederation], func(d *document) bool { return d.name.value == t.value })
		switch {
		case !known:
			c.found.add(t.at, "there is no federation %q in federation/", t.value)
		case slices.Contains(r.federates, t.value):
			c.found.add(t.at, "%q is here twice", t.value)
		default:
			r.federates = append(r.federates, t.value)
		}
	}
	slices.Sort(r.federates)
}

// Federations lists the relations with other trust domains by name.
func (p *Program) Federations() []Federation { return slices.Clone(p.federations) }

// Federation finds a relation by name.
func (p *Program) Federation(name string) (Federation, bool) {
	for _, f := range p.federations {
		if f.Name == name {
			return f, true
		}
	}
	return Federation{}, false
}

// FederatesWith are the names of the relations that a rule of a workload gives, sorted. It is shared: don't change it.
func (p *Program) FederatesWith(rule string) []string {
	for i := range p.workloads {
		if p.workloads[i].name == rule {
			return p.workloads[i].federates
		}
	}
	return nil
}

// Spoken is a workload that a node may speak for, and the relations that some rule of it gives there.
type Spoken struct {
	Path          string
	FederatesWith []string // sorted
}

// SpokenFor lists the workloads that a node may speak for, by path. Which process is which workload is not asked here.
func (p *Program) SpokenFor(node string) []Spoken {
	var out []Spoken
	for _, path := range p.Workloads() {
		x := Spoken{Path: path}
		speaks := false
		for _, i := range p.byWorkload[path] {
			if r := &p.workloads[i]; matchAny(r.nodes, node) {
				speaks = true
				x.FederatesWith = append(x.FederatesWith, r.federates...)
			}
		}
		if speaks {
			slices.Sort(x.FederatesWith)
			x.FederatesWith = slices.Compact(x.FederatesWith)
			out = append(out, x)
		}
	}
	return out
}

// Pin is what a fetched bundle holds for: the relation as it was approved. When whom to believe changes, what was fetched before
// counts no more; where it is fetched may change.
func (f *Federation) Pin() [32]byte {
	h := sha256.New()
	h.Write([]byte("bailment federation v1\n"))
	add := func(part []byte) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write(part)
	}
	for _, text := range []string{f.Name, f.TrustDomain, f.Profile, f.EndpointID} {
		add([]byte(text))
	}
	for _, c := range f.Roots {
		add(c.Raw)
	}
	add(f.Pinned)
	return [32]byte(h.Sum(nil))
}
