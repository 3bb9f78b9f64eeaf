package invariant_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/state"
)

// Keys of rita, sam and tess, whose signatures nobody checks here.
var recoveryKeys = map[string]string{
	"rita": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBwiBcxF9wiBbT2I9ADzUUQ/IfPSuTLWzeIsKeWtFrzy",
	"sam":  "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGuw2Cnxw5g3sDTBjGPMWBcYp1MXQbRmVnv4XgDGMnrM",
}

var (
	recoveredBundle = state.Digest{0xda}
	widenedBundle   = state.Digest{0xdb}
	foreignBundle   = state.Digest{0xdc}
)

// recoverable brings a bundle into force that can be recovered by rita and sam after an hour, and makes those that could follow it.
func (s *scene) recoverable() {
	s.t.Helper()
	env := string(s.r.files["environment.yaml"]) + "  recovery:\n    required: 2\n    delay: 1h\n    keys:\n"
	for _, p := range []string{"rita", "sam"} {
		env += fmt.Sprintf("      - {person: %s, key: %s}\n", p, recoveryKeys[p])
	}
	s.bring("environment.yaml", env)
	files := maps.Clone(s.r.files)
	files["environment.yaml"] = []byte(env)
	files["operators.yaml"] = append([]byte("# recovered\n"), files["operators.yaml"]...)
	s.r.programs[recoveredBundle] = compileFiles(s.t, files)
	wider := maps.Clone(files)
	wider["grants/all.yaml"] = append([]byte("# and more\n"), files["grants/all.yaml"]...)
	s.r.programs[widenedBundle] = compileFiles(s.t, wider)
	files["operators.yaml"] = append([]byte("# others\n"), files["operators.yaml"]...)
	s.r.programs[foreignBundle] = compileFiles(s.t, files)
}

// recovery is a legal beginning of one, a second after what was last.
func (s *scene) recovery() *state.RecoveryStarted {
	prog := s.r.programs[s.ruling().Bundle]
	e := last(s, func(_ uint64, e *state.RecoveryStarted) bool { return true })
	lines := strings.Split(e.Text, "\n")
	lines[5], lines[6] = "base "+s.ruling().Bundle.String(), "new "+recoveredBundle.String()
	lines[7] = "operators " + s.r.programs[recoveredBundle].Sources().Operators.String()
	lines[8], lines[9], lines[10] = "required 2", "delay 1h0m0s", fmt.Sprintf("nonce %032x", len(s.entries))
	lines[11] = "expires " + s.now().Time().Add(time.Hour).Format("2006-01-02T15:04:05Z")
	e.Text, e.Until, e.Ruling, e.Signatures = strings.Join(lines, "\n"), s.now()+1000+3_600_000, s.ruling(), nil
	for _, k := range prog.Environment().Recovery.Keys {
		e.Signatures = append(e.Signatures, state.Signature{Person: k.Person, Key: k.Fingerprint, SSHSIG: "x"})
	}
	return e
}

// recoveryWith is the recovery with another line of its text.
func recoveryWith(e *state.RecoveryStarted, line int, text string) *state.RecoveryStarted {
	lines := strings.Split(e.Text, "\n")
	lines[line] = text
	e.Text = strings.Join(lines, "\n")
	return e
}

// underWay is a recovery that began.
func (s *scene) underWay() uint64 {
	s.t.Helper()
	s.recoverable()
	at := s.add(s.recovery())
	s.legal()
	return at
}

// recovers is how it ends, and when.
func (s *scene) recovers(recovery uint64) (*state.BundleInForce, state.Millis) {
	r := s.ruling()
	return &state.BundleInForce{Generation: r.Generation + 1, Manifest: recoveredBundle, Previous: r.Bundle, How: state.ByRecovery, Recovery: recovery},
		last[*state.RecoveryStarted](s, nil).Until
}

// withdrawn is its end by sam.
func (s *scene) withdrawn(recovery uint64) *state.RecoveryWithdrawn {
	e := last[*state.RecoveryWithdrawn](s, nil)
	lines := strings.Split(e.Text, "\n")
	lines[4], lines[6] = fmt.Sprintf("recovery %d", recovery), "person sam"
	e.Recovery, e.Text, e.Ruling = recovery, strings.Join(lines, "\n"), s.ruling()
	e.Signature = last[*state.RecoveryStarted](s, nil).Signatures[1]
	return e
}

func TestRecoveryPlantsStartLegal(t *testing.T) {
	r := history(t)
	for what, do := range map[string]func(*scene){
		"carried out": func(s *scene) {
			e, at := s.recovers(s.underWay())
			s.addAt(at, e)
		},
		"withdrawn": func(s *scene) { s.add(s.withdrawn(s.underWay())) },
		"again after it was withdrawn": func(s *scene) {
			s.add(s.withdrawn(s.underWay()))
			s.add(s.recovery())
		},
	} {
		mine := *r
		mine.programs = maps.Clone(r.programs)
		s := newScene(t, &mine)
		do(s)
		for _, v := range s.found {
			t.Errorf("%s: %s", what, v)
		}
	}
}

// recoveryPlants are recoveries that nobody, or too few, asked for, and what is not carried out as it was signed.
var recoveryPlants = []planted{
	{invariant.Lifecycle, "a recovery that is carried out early", func(s *scene) {
		e, at := s.recovers(s.underWay())
		s.addAt(at-1, e)
	}, "waits until"},
	{invariant.Bounded, "a recovery that waits less than the bundle asks", func(s *scene) {
		s.recoverable()
		e := recoveryWith(s.recovery(), 9, "delay 1m0s")
		e.Until = s.now() + 1000 + 60_000
		s.add(e)
	}, "it waits until"},
	{invariant.Bounded, "a recovery that doesn't wait as it says", func(s *scene) {
		s.recoverable()
		e := s.recovery()
		e.Until = s.now() + 2000
		s.add(e)
	}, "it waits until"},
	{invariant.Bounded, "a recovery that had expired", func(s *scene) {
		s.recoverable()
		s.add(recoveryWith(s.recovery(), 11, "expires "+s.now().Time().Format("2006-01-02T15:04:05Z")))
	}, "it could begin until"},
	{invariant.Separated, "a recovery by too few", func(s *scene) {
		s.recoverable()
		e := recoveryWith(s.recovery(), 8, "required 1")
		e.Signatures = e.Signatures[:1]
		s.add(e)
	}, "1 persons signed it, and the bundle in force asks for 2"},
	{invariant.Separated, "a recovery by one person twice", func(s *scene) {
		s.recoverable()
		e := s.recovery()
		e.Signatures[1] = e.Signatures[0]
		s.add(e)
	}, "rita signed it twice"},
	{invariant.Separated, "a recovery by another key", func(s *scene) {
		s.recoverable()
		e := s.recovery()
		e.Signatures[1].Key = "SHA256:x"
		s.add(e)
	}, "lists no recovery key SHA256:x of sam"},
	{invariant.Separated, "a recovery by a key of the other person", func(s *scene) {
		s.recoverable()
		e := s.recovery()
		e.Signatures[1].Key = e.Signatures[0].Key
		s.add(e)
	}, "of sam"},
	{invariant.Separated, "a recovery where none is prepared", func(s *scene) {
		s.recoverable()
		e := s.recovery()
		s.bring("README.md", "without it\n")
		r := s.ruling()
		e = recoveryWith(e, 5, "base "+r.Bundle.String())
		e.Ruling, e.Until = r, s.now()+1000+3_600_000
		s.add(e)
	}, "asks for 0"},
	{invariant.Lifecycle, "what is no recovery", func(s *scene) {
		s.recoverable()
		s.add(recoveryWith(s.recovery(), 4, "action bundle"))
	}, "what was signed is no recovery by 2 persons"},
	{invariant.Lifecycle, "a recovery of another bundle", func(s *scene) {
		s.recoverable()
		s.add(recoveryWith(s.recovery(), 5, "base "+state.Digest{9}.String()))
	}, "it is about another bundle than the one in force"},
	{invariant.Lifecycle, "two recoveries", func(s *scene) {
		s.underWay()
		s.add(s.recovery())
	}, "is under way"},
	{invariant.ExactlyOnce, "a recovery entered again", func(s *scene) {
		s.recoverable()
		e := s.recovery()
		s.add(s.withdrawn(s.add(e)))
		again := *e
		again.Until = s.now() + 1000 + 3_600_000
		s.add(&again)
	}, "its nonce was used before"},
	{invariant.Confined, "a recovery of another environment", func(s *scene) {
		s.recoverable()
		s.add(recoveryWith(s.recovery(), 2, "genesis "+strings.Repeat("0", 64)))
	}, "what was signed is not about this environment"},
	{invariant.Separated, "a hold that locks out whom a recovery makes operators", func(s *scene) {
		s.recoverable()
		files := maps.Clone(s.r.files)
		others := strings.ReplaceAll(string(files["operators.yaml"]), "- name: ", "- name: z")
		others = strings.Replace(others, "- name: zalice", "- name: alice", 1) // whom a grant names
		files["operators.yaml"] = []byte(others)
		s.r.programs[recoveredBundle] = compileFiles(s.t, files)
		s.add(s.recovery())
		for _, op := range s.r.programs[recoveredBundle].Operators() {
			if op.Name == "alice" {
				continue
			}
			s.legal() // as long as one is left besides her
			e := s.revoke("identity:" + op.Path())
			e.Hold, e.Ruling = true, s.ruling()
			s.add(e)
		}
	}, "operators who are left can change nothing"},
	{invariant.Lifecycle, "a recovery that never began", func(s *scene) {
		s.recoverable()
		r := s.ruling()
		s.add(&state.BundleInForce{Generation: r.Generation + 1, Manifest: recoveredBundle, Previous: r.Bundle, How: state.ByRecovery, Recovery: 7})
	}, "recovery 7 is not under way"},
	{invariant.Lifecycle, "a recovery that a change has ended", func(s *scene) {
		at := s.underWay()
		s.bring("README.md", "we are here\n")
		e, when := s.recovers(at)
		s.addAt(when, e)
	}, "is not under way"},
	{invariant.Lifecycle, "a recovery that was withdrawn", func(s *scene) {
		at := s.underWay()
		e, when := s.recovers(at)
		s.add(s.withdrawn(at))
		s.addAt(when, e)
	}, "is not under way"},
	{invariant.Lifecycle, "a recovery to another bundle than was signed", func(s *scene) {
		e, at := s.recovers(s.underWay())
		e.Manifest = foreignBundle
		s.addAt(at, e)
	}, "comes into force"},
	{invariant.Lifecycle, "a recovery to other operators than were signed", func(s *scene) {
		s.recoverable()
		n := s.add(recoveryWith(s.recovery(), 6, "new "+foreignBundle.String()))
		e, at := s.recovers(n)
		e.Manifest = foreignBundle
		s.addAt(at, e)
	}, "were signed"},
	{invariant.Lifecycle, "a recovery that changes a grant", func(s *scene) {
		s.recoverable()
		n := s.add(recoveryWith(s.recovery(), 6, "new "+widenedBundle.String()))
		e, at := s.recovers(n)
		e.Manifest = widenedBundle
		s.addAt(at, e)
	}, "it changes more than the operators"},
	{invariant.Lifecycle, "a recovery by a change", func(s *scene) {
		e, at := s.recovers(s.underWay())
		e.Change = 9
		s.addAt(at, e)
	}, "and by something else"},
	{invariant.Lifecycle, "the withdrawal of what is not under way", func(s *scene) {
		at := s.underWay()
		e := s.withdrawn(at)
		s.add(e)
		s.add(e)
	}, "is not under way"},
	{invariant.Lifecycle, "the withdrawal of another recovery", func(s *scene) {
		at := s.underWay()
		e := s.withdrawn(at)
		e.Text = strings.Replace(e.Text, fmt.Sprint("recovery ", at), "recovery 7", 1)
		s.add(e)
	}, "does not withdraw recovery"},
	{invariant.Separated, "a withdrawal in another's name", func(s *scene) {
		e := s.withdrawn(s.underWay())
		e.Text = strings.Replace(e.Text, "person sam", "person rita", 1)
		s.add(e)
	}, "rita is said to withdraw what sam signed"},
	{invariant.Separated, "a withdrawal by who didn't sign", func(s *scene) {
		e := s.withdrawn(s.underWay())
		e.Signature.Person = "tess"
		s.add(e)
	}, "tess withdraws a recovery that he didn't sign"},
	{invariant.Separated, "a withdrawal by another key", func(s *scene) {
		e := s.withdrawn(s.underWay())
		e.Signature.Key = "SHA256:x"
		s.add(e)
	}, "lists no recovery key SHA256:x of sam"},
}
