package invariant

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// Of exports: for how long one can be fetched, of how many secrets, and what its reads are for.
const (
	afterExport    = day
	maxExported    = 1000
	exportsPurpose = "export"
)

// exportable lists the current versions of a pattern's secrets, by path.
func (c *Checker) exportable(pattern string, at state.Millis) []state.ExportedVersion {
	var out []state.ExportedVersion
	parts := strings.Split(pattern, "/")
	for path, sec := range c.m.secrets {
		if v := sec.versions[sec.current]; v != nil && v.at(at) == state.Current && (path == pattern || parts[len(parts)-1] == "*" && within(parts, path)) {
			out = append(out, state.ExportedVersion{Secret: path, Version: sec.current, Digest: v.digest})
		}
	}
	slices.SortFunc(out, func(a, b state.ExportedVersion) int { return strings.Compare(a.Secret, b.Secret) })
	return out
}

// exported checks that an export is the one of its change, to who proposed it, in time. That it comes twice, the change's own end says.
func (c *Checker) exported(st *step, fail failure) {
	e, ok := st.event.(*state.SecretExported)
	if !ok {
		return
	}
	ch := c.complete(e.Change, policy.ActExport, fail)
	if ch == nil {
		return
	}
	if want := e.Secrets + "@" + e.Recipient; ch.target != want {
		fail("change %d is not about %.400q", e.Change, want)
	}
	if ch.proposer != e.Actor.Identity {
		fail("change %d was proposed by %s, and its export goes to %s", e.Change, ch.proposer, e.Actor.Identity)
	}
	if st.at >= ch.end() {
		fail("change %d could be fetched until %s", e.Change, ch.end())
	}
	if e.Count < 1 || e.Count > maxExported || e.Bytes < 1 {
		fail("it exports %d values in %d bytes", e.Count, e.Bytes)
	}
	if all := c.exportable(e.Secrets, st.at); e.Count != len(all) {
		fail("it exports %d versions, and %s has %d", e.Count, e.Secrets, len(all))
	}
}

// recordedExport checks that an export names what left: by path, number and ciphertext.
func (c *Checker) recordedExport(st *step, fail failure) {
	e, ok := st.event.(*state.SecretExported)
	if !ok {
		return
	}
	all := c.exportable(e.Secrets, st.at)
	h := sha256.New()
	for _, v := range all {
		fmt.Fprintf(h, "%s %d sha256:%x\n", v.Secret, v.Version, v.Digest[:])
	}
	if e.List != state.Digest(h.Sum(nil)) {
		fail("its list is not that of the current versions of %s", e.Secrets)
	}
	if n := len(e.Versions); n > len(all) || n == 0 || !slices.Equal(e.Versions, all[:n]) {
		fail("the %d versions that it names are not the first of %s", n, e.Secrets)
	} else if n < len(all) && named(e.Versions) < 23<<10 {
		fail("it names %d of %d versions, and there was room for more", n, len(all))
	}
}

// named is about how many bytes of an entry versions take.
func named(all []state.ExportedVersion) (n int) {
	for _, v := range all {
		n += len(v.Secret) + 144
	}
	return n
}

// permittedExport checks that nothing leaves that is denied to who fetches it. That it is permitted the approvals say.
func (c *Checker) permittedExport(st *step, fail failure) {
	e, ok := st.event.(*state.SecretExported)
	if !ok || st.prog == nil {
		return
	}
	x := c.m.sessions[e.Actor.Session]
	if x == nil {
		return // "attested" says so
	}
	in, err := c.input(st, x, policy.ReadSecret, "", exportsPurpose)
	if err != nil {
		fail("it can't be decided again")
		return
	}
	for _, v := range c.exportable(e.Secrets, st.at) {
		in.Secret = v.Secret
		if d := st.prog.Decide(in); d.Reason == problem.ReasonDenied {
			fail("%s was exported, and %s", v.Secret, d.Message)
			return // one is enough to say
		}
	}
}

// revokedExport checks that neither the change nor a secret was stopped since it was proposed.
func (c *Checker) revokedExport(st *step, e *state.SecretExported, fail failure) {
	c.revokedChange(st, e.Change, fail)
	for _, v := range c.exportable(e.Secrets, st.at) {
		x := subject{identity: e.Actor.Identity, secret: v.Secret, own: e.Change, root: e.Change}
		c.covered(st, x, "the export", fail)
		c.held(st, x, "the export", fail)
	}
}
