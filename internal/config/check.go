package config

import (
	"fmt"
	"maps"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/spelling"
)

// SetDefaults fills what was left out, for a configuration that was made in code.
func (s *Server) SetDefaults() { setDefaults(reflect.ValueOf(s).Elem()) }

// SetDefaults fills what was left out, for a configuration that was made in code.
func (a *Agent) SetDefaults() { setDefaults(reflect.ValueOf(a).Elem()) }

// Validate checks what no single field can tell. Loading does it already.
func (s *Server) Validate() error { return s.check().problem() }

// Validate checks what no single field can tell. Loading does it already.
func (a *Agent) Validate(has attest.Methods) error { return a.check(has).problem() }

type checker struct{ found Findings }

func (c *checker) bad(key, format string, args ...any) {
	c.found = append(c.found, Finding{Key: key, Message: fmt.Sprintf(format, args...)})
}

func (s *Server) check() Findings {
	var c checker
	for i, name := range s.Environments {
		key := fmt.Sprintf("environments[%d]", i)
		if err := identity.ValidEnv(name); err != nil {
			c.bad(key, "%q is not the name of an environment: lower case letters, digits, '.' and '-'", name)
		}
		if slices.Index(s.Environments, name) != i {
			c.bad(key, "%s stands here twice", name)
		}
	}
	for name, h := range s.RootHolders {
		key := "root_holders." + name
		if err := identity.ValidEnv(name); err != nil {
			c.bad(key, "is not the name of an environment")
		}
		if h.Location != "" && !filepath.IsAbs(h.Location) {
			c.bad(key+".location", "%q is not an absolute path", h.Location)
		}
		if h.Next.Location != "" && !filepath.IsAbs(h.Next.Location) {
			c.bad(key+".next.location", "%q is not an absolute path", h.Next.Location)
		}
		if h.Next.Location != "" && h.Next.Location == h.Location {
			c.bad(key+".next.location", "is where the present root key is")
		}
	}
	if s.ServerID != "" {
		if err := identity.ValidPath(identity.PrefixServer + s.ServerID); err != nil || strings.Contains(s.ServerID, "/") {
			c.bad("server_id", "%q is not one segment of a SPIFFE ID: use letters, digits, '.' and '-'", s.ServerID)
		}
	}
	c.notify(s.Notify)
	c.address("listen", s.Listen)
	c.loopback("ops_listen", s.OpsListen)
	if s.Limits.BundleBytes < s.Limits.RequestBytes {
		c.bad("limits.bundle_bytes", "%s is less than limits.request_bytes, %s", s.Limits.BundleBytes, s.Limits.RequestBytes)
	}
	if s.Limits.RequestMemory < s.Limits.BundleBytes {
		c.bad("limits.request_memory", "%s has no room for one bundle of %s", s.Limits.RequestMemory, s.Limits.BundleBytes)
	}
	return c.found
}

// maxAllow bounds the networks of notify.allow.
const maxAllow = 64

func (c *checker) notify(n Notify) {
	if len(n.Mail) > 0 && !filepath.IsAbs(n.Mail[0]) {
		c.bad("notify.mail[0]", "%q is not an absolute path", n.Mail[0])
	}
	for i, word := range n.Mail {
		if strings.ContainsRune(word, 0) {
			c.bad(fmt.Sprintf("notify.mail[%d]", i), "has a zero byte")
		}
	}
	if n.From != "" {
		if a, err := mail.ParseAddress(n.From); err != nil || a.Address != n.From || strings.ContainsFunc(n.From, func(r rune) bool { return r <= ' ' || r > '~' }) {
			c.bad("notify.from", "%q is not an address NAME@DOMAIN, without a name beside it", n.From)
		}
	}
	if len(n.Allow) > maxAllow {
		c.bad("notify.allow", "has more than %d networks", maxAllow)
	}
	for i, text := range n.Allow {
		key := fmt.Sprintf("notify.allow[%d]", i)
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			c.bad(key, "%q is not a network ADDRESS/BITS, as 10.1.2.0/24", text)
		case p != p.Masked():
			c.bad(key, "%q has bits behind its mask: did you mean %s?", text, p.Masked())
		}
	}
}

// Networks are those of allow; what is no network is left out, which Validate has refused.
func (n *Notify) Networks() []netip.Prefix {
	var out []netip.Prefix
	for _, text := range n.Allow {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// maxSocket is the longest path of a Unix socket, in bytes: sun_path has room for 108, the last of which is zero (unix(7)).
const maxSocket = 107

func (a *Agent) check(has attest.Methods) Findings {
	var c checker
	if a.Bootstrap != "" {
		if _, err := identity.ParseBootstrap(a.Bootstrap); err != nil {
			c.bad("bootstrap", "is not a bootstrap string, bailment1:HOST:PORT/ENV#GENESIS: copy it as `bailment init` printed it")
		}
	}
	if !filepath.IsAbs(a.Data) {
		c.bad("data", "%q is not an absolute path", a.Data)
	}
	c.socket("socket", a.Socket)
	switch beside := a.WorkloadSocket(); {
	case a.WorkloadAPI == "":
		if len(a.Socket) <= maxSocket && len(beside) > maxSocket {
			c.bad("workload_api", "would be a path of %d bytes beside socket, and the kernel takes at most %d: name a shorter one", len(beside), maxSocket)
		}
	case a.WorkloadAPI != None:
		c.socket("workload_api", beside)
	}
	if a.WorkloadSocket() == a.Socket {
		c.bad("workload_api", "is the same path as socket's")
	}
	for _, need := range slices.Sorted(maps.Keys(a.Attest.Files)) {
		if path := a.Attest.Files[need]; !filepath.IsAbs(path) {
			c.bad("attest.files."+need, "%q is not an absolute path", path)
		}
	}
	c.kubelet(a.Kubelet)
	c.method(a.Attest, has)
	return c.found
}

func (c *checker) socket(key, path string) {
	if !filepath.IsAbs(path) {
		c.bad(key, "%q is not an absolute path", path)
	}
	if len(path) > maxSocket {
		c.bad(key, "has %d bytes, and the kernel takes at most %d for a socket's path: name a shorter one", len(path), maxSocket)
	}
}

// kubelet: the token is worth something to others, so it goes over TLS to a named authority's holder, or nowhere.
func (c *checker) kubelet(k Kubelet) {
	if k.Address == "" {
		if k != (Kubelet{}) {
			c.bad("kubelet.address", "is missing: without it nothing else of the kubelet has an effect")
		}
		return
	}
	u, err := url.Parse(k.Address)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.Port() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		c.bad("kubelet.address", "%q is not https://HOST:PORT, as in https://127.0.0.1:10250", k.Address)
		return
	}
	if u.Scheme == "http" {
		if ip, err := netip.ParseAddr(u.Hostname()); err != nil || !ip.IsLoopback() {
			c.bad("kubelet.address", "%q is plain HTTP to an address that is not loopback: use https", k.Address)
		}
	}
	for _, f := range []struct{ key, path string }{{"kubelet.token_file", k.Token}, {"kubelet.ca_file", k.CA}} {
		switch {
		case u.Scheme == "http" && f.path != "":
			c.bad(f.key, "has no use with plain HTTP: leave it out, or use https")
		case u.Scheme == "https" && !filepath.IsAbs(f.path):
			c.bad(f.key, "%q is not an absolute path, and https needs it", f.path)
		}
	}
}

// method compares what the attestation method is given with what it needs.
func (c *checker) method(a Attestation, has attest.Methods) {
	m, err := has.Find(a.Method)
	if err != nil {
		var names []string
		for _, x := range has {
			names = append(names, x.Name)
		}
		c.bad("attest.method", "there is no method %q here, but %s%s", a.Method, strings.Join(names, ", "), spelling.DidYouMean(a.Method, slices.Values(names)))
		return
	}
	var files, values []string
	for _, n := range m.Needs {
		if n.Literal {
			values = append(values, n.Name)
			if a.Values[n.Name] == "" && !n.Optional {
				c.bad("attest.values", "%s needs a value for %s: %s", m.Name, n.Name, n.Doc)
			}
			continue
		}
		files = append(files, n.Name)
		if a.Files[n.Name] == "" && !n.Optional {
			c.bad("attest.files", "%s needs a file for %s: %s", m.Name, n.Name, n.Doc)
		}
	}
	if a.Key != KeySoftware && !m.MakesKeys {
		c.bad("attest.key", "%s makes no keys in hardware", m.Name)
	}
	c.useless("attest.files", m, a.Files, files)
	c.useless("attest.values", m, a.Values, values)
}

// useless finds what is given and the method does not take there.
func (c *checker) useless(key string, m attest.Method, given map[string]string, takes []string) {
	what := "takes " + strings.Join(takes, ", ")
	if len(takes) == 0 {
		what = "takes none here"
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(takes, name) {
			c.bad(key+"."+name, "%s has no use for it; it %s%s", m.Name, what, spelling.DidYouMean(name, slices.Values(takes)))
		}
	}
}

func (c *checker) address(key, addr string) (netip.Addr, bool) {
	host, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		c.bad(key, "%q is not HOST:PORT, as in 127.0.0.1:8400 or [::]:8400", addr)
		return netip.Addr{}, false
	}
	ip, err := netip.ParseAddr(host)
	return ip, err == nil
}

// loopback: what is served there is not secret, but it is plain HTTP and tells a lot about the load.
func (c *checker) loopback(key, addr string) {
	if addr == None {
		return
	}
	before := len(c.found)
	ip, ok := c.address(key, addr)
	if len(c.found) > before {
		return
	}
	if !ok || !ip.IsLoopback() {
		c.bad(key, "%q is not a loopback address, and this is plain HTTP: use 127.0.0.1 or [::1], and let a local collector scrape it", addr)
	}
}
