package policy

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/sshsig"
)

// Limits of one authority.
const (
	maxSSHKeys         = 64
	maxHosts           = 1000
	maxEndorsementKeys = 10_000
	maxReferences      = 64
	maxReferenceValues = 2000 // digests, of one reference set
	maxIssuer          = 300
)

// authorityDocuments compiles authorities/. Whether a method can use what it is given is asked again by the method itself, before
// a bundle comes into force; what is wrong with a text is found here, with its place.
func (c *compiler) authorityDocuments() {
	if n := len(c.byKind[kindAuthority]) + len(c.program.authorities); n > authority.Max {
		c.found.add(c.byKind[kindAuthority][0].at, "there are %d authorities, and at most %d are allowed", n, authority.Max)
		return
	}
	c.each(kindAuthority, func(d *document) {
		s := d.spec.(*authoritySpec)
		if err := authority.ValidName(d.name.value); err != nil {
			c.found.add(d.name.at, "%v", err)
		}
		if _, twice := c.program.Authority(d.name.value); twice {
			c.found.add(d.name.at, "environment.yaml has an authority %q too", d.name.value)
			return
		}
		method, known := authority.FindMethod(s.Method.value)
		if !known || !method.Authorities() {
			c.oneOf(s.Method, "method", authorityMethods()...)
			return
		}
		a := authority.Authority{Name: d.name.value, Method: method.Name, Source: s.Source.value, Imported: c.moment(s.Imported, "imported")}
		c.authorityFields(s, method)
		c.issuer(s, &a)
		c.roots(s, &a)
		c.hostKeys(s, &a)
		c.measurements(s, method, &a)
		a.MaxAge = c.duration(s.MaxAge, "maxAge", 0, minPeriod, maxEvidenceAge)
		c.program.authorities = append(c.program.authorities, a)
	})
	slices.SortFunc(c.program.authorities, func(a, b authority.Authority) int { return strings.Compare(a.Name, b.Name) })
}

func authorityMethods() []string {
	var out []string
	for _, m := range authority.Methods {
		if m.Authorities() {
			out = append(out, m.Name)
		}
	}
	return out
}

// given is what a document gives, by the bits that package authority knows them by.
func (s *authoritySpec) given() map[authority.Fields]struct {
	name string
	at   Pos
	set  bool
} {
	type field = struct {
		name string
		at   Pos
		set  bool
	}
	return map[authority.Fields]field{
		authority.FieldPEM:             {"pem", s.PEM.at, s.PEM.set},
		authority.FieldSSH:             {"sshKeys or hosts", s.At, s.SSHKeys != nil || s.Hosts != nil},
		authority.FieldIssuer:          {"issuer", s.Issuer.at, s.Issuer.set},
		authority.FieldKeys:            {"keys", s.Keys.at, s.Keys.set},
		authority.FieldKeysURL:         {"keysURL", s.KeysURL.at, s.KeysURL.set},
		authority.FieldEndorsementKeys: {"endorsementKeys", s.At, s.EndorsementKeys != nil},
		authority.FieldMeasurements:    {"pcrs or references", s.At, s.PCRs != nil || s.References != nil},
		authority.FieldMaxAge:          {"maxAge", s.MaxAge.at, s.MaxAge.set},
	}
}

// authorityFields holds a document to what its method takes: what would have no effect is refused.
func (c *compiler) authorityFields(s *authoritySpec, m authority.Method) {
	given := s.given()
	var one []string
	has := false
	for bit := authority.FieldPEM; bit <= authority.FieldMaxAge; bit <<= 1 {
		f := given[bit]
		switch {
		case f.set && m.Takes&bit == 0:
			c.found.add(f.at, "%s has no effect for the method %s", f.name, m.Name)
		case !f.set && m.Needs&bit != 0:
			c.found.add(s.At, "an authority for the method %s needs the field %q", m.Name, f.name)
		}
		if m.OneOf&bit != 0 {
			one = append(one, f.name)
			has = has || f.set
		}
	}
	if m.OneOf != 0 && !has {
		c.found.add(s.At, "an authority for the method %s needs one of: %s", m.Name, joinWords(one))
	}
	if s.Keys.set && s.KeysURL.set {
		c.found.add(s.KeysURL.at, "keys are pinned, so keysURL has no effect")
	}
}

func (c *compiler) roots(s *authoritySpec, a *authority.Authority) {
	if !s.PEM.set {
		return
	}
	certificates, err := authority.ParseFor(a.Method, []byte(s.PEM.value))
	if err == nil && a.Issuer == "" {
		err = c.rootSet(a.Method).Add(a.Name, certificates)
	}
	if err != nil {
		c.found.add(s.PEM.at, "the authority %q: %v", a.Name, err)
	}
	a.Certificates = certificates
}

// rootSet is which authority of a method each certificate is of.
func (c *compiler) rootSet(method string) *authority.Set {
	if c.rootSets == nil {
		c.rootSets = map[string]*authority.Set{}
	}
	if c.rootSets[method] == nil {
		c.rootSets[method] = &authority.Set{}
	}
	return c.rootSets[method]
}

func (c *compiler) hostKeys(s *authoritySpec, a *authority.Authority) {
	if len(s.SSHKeys) > maxSSHKeys || len(s.Hosts) > maxHosts {
		c.found.add(s.At, "there are more than %d sshKeys or %d hosts", maxSSHKeys, maxHosts)
		return
	}
	seen := map[string]bool{}
	parse := func(t text) ssh.PublicKey {
		key, err := parseHostKey(t.value)
		switch {
		case err != nil:
			c.found.add(t.at, "%v", err)
			return nil
		case seen[string(key.Marshal())]:
			c.found.add(t.at, "this key is here twice")
			return nil
		}
		seen[string(key.Marshal())] = true
		return key
	}
	for _, t := range s.SSHKeys {
		if key := parse(t); key != nil {
			a.SSHKeys = append(a.SSHKeys, key)
		}
	}
	for _, h := range s.Hosts {
		if h.Name.value == "" || len(h.Name.value) > 255 || strings.ContainsFunc(h.Name.value, func(r rune) bool { return r <= ' ' || r > '~' }) {
			c.found.add(h.Name.at, "a host's name is 1 to 255 printable ASCII characters")
		}
		if key := parse(h.Key); key != nil {
			a.Hosts = append(a.Hosts, authority.Host{Name: h.Name.value, Key: key})
		}
	}
}

func parseHostKey(line string) (ssh.PublicKey, error) {
	line = strings.TrimSpace(line)
	if strings.ContainsAny(line, "\n\r") || strings.Contains(line, "PRIVATE KEY") {
		return nil, errors.New("it must be one SSH public key, on one line")
	}
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(options) > 0 || len(rest) > 0 {
		return nil, errors.New("it is not an SSH public key as in ssh_host_ed25519_key.pub")
	}
	if err := sshsig.CheckKey(key); err != nil {
		return nil, fmt.Errorf("the key: %w", err)
	}
	return key, nil
}

func (c *compiler) issuer(s *authoritySpec, a *authority.Authority) {
	check := func(t text, what string) {
		if !t.set {
			return
		}
		u, err := url.Parse(t.value)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || len(t.value) > maxIssuer {
			c.found.add(t.at, "%s must be an https address without user, query and fragment, of at most %d characters", what, maxIssuer)
		}
	}
	check(s.Issuer, "issuer")
	check(s.KeysURL, "keysURL")
	a.Issuer, a.KeysURL = s.Issuer.value, s.KeysURL.value
	if a.Issuer != "" {
		for _, other := range c.program.authorities {
			if other.Method == a.Method && other.Issuer == a.Issuer {
				c.found.add(s.Issuer.at, "the authority %q has this issuer for %s too", other.Name, a.Method)
			}
		}
	}
	if s.Keys.set {
		keys, err := authority.ParseKeys([]byte(s.Keys.value))
		if err != nil {
			c.found.add(s.Keys.at, "keys: %v", err)
		}
		a.Keys = keys
	}
}

func (c *compiler) measurements(s *authoritySpec, m authority.Method, a *authority.Authority) {
	if m.Takes&authority.FieldMeasurements == 0 {
		return
	}
	if len(s.EndorsementKeys) > maxEndorsementKeys || len(s.References) > maxReferences {
		c.found.add(s.At, "there are more than %d endorsementKeys or %d references", maxEndorsementKeys, maxReferences)
		return
	}
	a.EndorsementKeys = c.digests(s.EndorsementKeys)
	for _, n := range s.PCRs {
		if pcr := c.pcr(n); !slices.Contains(a.PCRs, pcr) {
			a.PCRs = append(a.PCRs, pcr)
		}
	}
	if s.PCRs == nil {
		a.PCRs = authority.DefaultPCRs()
	}
	slices.Sort(a.PCRs)
	seen := map[string]bool{}
	for _, r := range s.References {
		c.reference(r, a, seen)
	}
}

func (c *compiler) pcr(n number) int { return c.count(n, "a PCR", 0, 0, 23) }

func (c *compiler) reference(s referenceSpec, a *authority.Authority, seen map[string]bool) {
	if !validName(s.Name.value) {
		c.found.add(s.Name.at, "the name %q must be 1 to 63 of a-z, 0-9, '-' and '.', and begin with a letter or digit", s.Name.value)
	}
	if v := s.Version.value; v == "" || len(v) > 100 || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' }) {
		c.found.add(s.Version.at, "a version is 1 to 100 printable ASCII characters without spaces")
	}
	if seen[s.Name.value+" "+s.Version.value] {
		c.found.add(s.Version.at, "the reference set %s %s is here twice", s.Name.value, s.Version.value)
	}
	seen[s.Name.value+" "+s.Version.value] = true
	r := authority.Reference{
		Name: s.Name.value, Version: s.Version.value, From: c.moment(s.From, "from"), Until: c.moment(s.Until, "until"),
		PCRs: map[int][][32]byte{}, Events: c.digests(s.Events), Signers: c.digests(s.Signers),
	}
	if !r.From.IsZero() && !r.Until.IsZero() && !r.From.Before(r.Until) {
		c.found.add(s.Until.at, "until must be after from")
	}
	n := len(r.Events) + len(r.Signers)
	for _, p := range s.PCRs {
		pcr := c.pcr(p.PCR)
		if _, twice := r.PCRs[pcr]; twice {
			c.found.add(p.At, "PCR %d is here twice: put all its values into one list", pcr)
		}
		if !slices.Contains(a.PCRs, pcr) {
			c.found.add(p.At, "PCR %d is not quoted: add it to the authority's pcrs", pcr)
		}
		r.PCRs[pcr] = c.digests(p.Values)
		n += len(r.PCRs[pcr])
	}
	switch {
	case n == 0:
		c.found.add(s.At, "the reference set compares nothing: give pcrs, events or signers")
	case n > maxReferenceValues:
		c.found.add(s.At, "the reference set has more than %d values", maxReferenceValues)
	}
	a.References = append(a.References, r)
}

// digests parses a list of sha256:HEX.
func (c *compiler) digests(list []text) [][32]byte {
	var out [][32]byte
	for _, t := range list {
		digits, ok := strings.CutPrefix(t.value, "sha256:")
		b, err := hex.DecodeString(digits)
		if !ok || err != nil || len(b) != 32 || digits != strings.ToLower(digits) {
			c.found.add(t.at, "a digest is sha256: and 64 hexadecimal digits in lower case")
			continue
		}
		if slices.Contains(out, [32]byte(b)) {
			c.found.add(t.at, "this digest is here twice")
			continue
		}
		out = append(out, [32]byte(b))
	}
	return out
}

// moment parses an RFC 3339 time.
func (c *compiler) moment(t text, what string) time.Time {
	if !t.set {
		return time.Time{}
	}
	at, err := time.Parse(time.RFC3339, t.value)
	if err != nil {
		c.found.add(t.at, "%s must be a time such as 2026-11-22T00:00:00Z", what)
	}
	return at.UTC()
}
