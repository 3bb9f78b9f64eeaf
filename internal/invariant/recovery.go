package invariant

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// maxRecovery is how long a signed recovery may wait for its beginning.
const maxRecovery = 14 * day

// recovering is a recovery that is under way.
type recovering struct {
	recoveryHead
	index   uint64
	until   state.Millis
	signers []string
}

// recoveryHead is what a signed recovery says.
type recoveryHead struct {
	base, manifest, operators, nonce string
	required                         int
	delay                            time.Duration
	expires                          state.Millis
}

// readRecovery reads a recovery's text, apart from package ceremony.
func readRecovery(text string) (recoveryHead, bool) {
	var r recoveryHead
	lines := strings.Split(text, "\n")
	if len(lines) < 14 || lines[0] != "bailment recovery v1" || lines[4] != "action operators.replace" {
		return r, false
	}
	value := func(i int, name string) string {
		got, v, _ := strings.Cut(lines[i], " ")
		if got != name {
			return ""
		}
		return v
	}
	r.base, r.manifest, r.operators, r.nonce = value(5, "base"), value(6, "new"), value(7, "operators"), value(10, "nonce")
	var bad [3]error
	r.required, bad[0] = strconv.Atoi(value(8, "required"))
	r.delay, bad[1] = time.ParseDuration(value(9, "delay"))
	var expires time.Time
	expires, bad[2] = time.Parse(time.RFC3339, value(11, "expires"))
	r.expires = state.At(expires)
	return r, bad == [3]error{} && r.nonce != ""
}

// withdraws reads a withdrawal's text: of which recovery, and by whom.
func withdraws(text string) (recovery, person string) {
	lines := strings.Split(text, "\n")
	if len(lines) < 8 || lines[0] != "bailment recovery withdrawal v1" {
		return "", ""
	}
	_, recovery, _ = strings.Cut(lines[4], " ")
	_, person, _ = strings.Cut(lines[6], " ")
	return recovery, person
}

// deedOfRecovery is nobody's session: who holds recovery keys has none.
func deedOfRecovery(e state.Event) deed {
	if w, ok := e.(*state.RecoveryWithdrawn); ok {
		return deed{ruling: &w.Ruling}
	}
	return deed{ruling: &e.(*state.RecoveryStarted).Ruling}
}

// recoverySigned checks that signatures are of distinct persons, by keys that the bundle in force lists for them, and as many as it asks for.
func recoverySigned(st *step, signatures []state.Signature, fail failure) {
	seen := map[string]bool{}
	for _, x := range signatures {
		if seen[x.Person] {
			fail("%s signed it twice", x.Person)
		}
		seen[x.Person] = true
		if st.prog != nil && !recoveryKey(st.prog, x) {
			fail("the bundle in force lists no recovery key %s of %s", x.Key, x.Person)
		}
	}
	if st.prog == nil {
		return
	}
	if need := st.prog.Environment().Recovery.Required; len(seen) < need || need == 0 {
		fail("%d persons signed it, and the bundle in force asks for %d", len(seen), need)
	}
}

func recoveryKey(prog *policy.Program, x state.Signature) bool {
	return slices.ContainsFunc(prog.Environment().Recovery.Keys, func(k policy.RecoveryKey) bool { return k.Person == x.Person && k.Fingerprint == x.Key })
}

// boundedRecovery checks that a recovery waits as long as its signers, and the bundle in force, say.
func boundedRecovery(st *step, e *state.RecoveryStarted, fail failure) {
	r, ok := readRecovery(e.Text)
	if !ok {
		return // "lifecycle" says so
	}
	if e.Until != st.at.Add(r.delay) || st.prog != nil && st.prog.Environment().Recovery.Delay != r.delay {
		fail("it waits until %s", e.Until)
	}
	if st.at >= r.expires || r.expires > st.at+maxRecovery {
		fail("it could begin until %s", r.expires)
	}
}

// recoveries checks the life of recoveries.
func (c *Checker) recoveries(st *step, fail failure) {
	switch e := st.event.(type) {
	case *state.RecoveryStarted:
		r, ok := readRecovery(e.Text)
		switch {
		case !ok || r.required != len(e.Signatures):
			fail("what was signed is no recovery by %d persons", len(e.Signatures))
		case c.m.recovery != nil:
			fail("recovery %d is under way", c.m.recovery.index)
		case r.base != c.m.bundle.String():
			fail("it is about another bundle than the one in force")
		}
	case *state.RecoveryWithdrawn:
		r := c.m.recovery
		if r == nil || r.index != e.Recovery {
			fail("recovery %d is not under way", e.Recovery)
			return
		}
		if of, _ := withdraws(e.Text); of != strconv.FormatUint(e.Recovery, 10) {
			fail("what was signed does not withdraw recovery %d", e.Recovery)
		}
	}
}

// recoversInto checks a bundle that comes into force by a recovery: late enough, the one that was signed, and nothing but other operators.
func (c *Checker) recoversInto(st *step, e *state.BundleInForce, fail failure) {
	r := c.m.recovery
	switch {
	case r == nil || r.index != e.Recovery:
		fail("recovery %d is not under way", e.Recovery)
		return
	case e.Change != 0 || e.Watch != 0 || e.Cause != nil || c.m.staged() != nil:
		fail("it comes into force by recovery %d, and by something else", e.Recovery)
	case st.at < r.until:
		fail("recovery %d waits until %s", e.Recovery, r.until)
	case r.base == c.m.bundle.String() && r.manifest != e.Manifest.String():
		fail("%s was signed, and %s comes into force", r.manifest, e.Manifest)
	}
	if st.prog == nil || c.opts.Program == nil {
		return
	}
	next := c.opts.Program(e.Manifest)
	if next == nil {
		return // "permitted" says so
	}
	was, is := st.prog.Sources(), next.Sources()
	if was.Others != is.Others {
		fail("it changes more than the operators")
	}
	if is.Operators.String() != r.operators {
		fail("its operators are %s, and %s were signed", is.Operators, r.operators)
	}
}

// separatedRecovery checks who signed the withdrawal of a recovery.
func (c *Checker) separatedRecovery(st *step, e *state.RecoveryWithdrawn, fail failure) {
	if _, person := withdraws(e.Text); person != e.Signature.Person {
		fail("%s is said to withdraw what %s signed", person, e.Signature.Person)
	}
	if r := c.m.recovery; r != nil && !slices.Contains(r.signers, e.Signature.Person) {
		fail("%s withdraws a recovery that he didn't sign", e.Signature.Person)
	}
	if st.prog != nil && !recoveryKey(st.prog, e.Signature) {
		fail("the bundle in force lists no recovery key %s of %s", e.Signature.Key, e.Signature.Person)
	}
}

func (m *model) learnRecovery(st *step) {
	switch e := st.event.(type) {
	case *state.RecoveryStarted:
		r, ok := readRecovery(e.Text)
		if !ok {
			return
		}
		m.recovery = &recovering{recoveryHead: r, index: st.index, until: e.Until}
		for _, x := range e.Signatures {
			m.recovery.signers = append(m.recovery.signers, x.Person)
		}
		m.spend("n:"+r.nonce, r.expires)
	case *state.RecoveryWithdrawn:
		m.recovery = nil
	case *state.BundleInForce:
		if e.How != state.ByRollback { // which one person can make
			m.recovery = nil
		}
	}
}
