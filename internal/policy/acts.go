package policy

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"
)

// Act is something that takes approvals: the action of a change.
type Act struct {
	Name string
	// Duty is the narrow one that approves it; who has the duty approve may approve all.
	Duty Duty
	Doc  string
	// Final: it can't be undone (DESIGN §13), so a bundle may have it wait once it is approved.
	Final bool
	// Least and Delay are what it takes in production whatever the bundle says: approvals, and the wait after the last one.
	Least int
	Delay time.Duration
}

// The acts.
const (
	ActBundle            = "bundle"
	ActLiftHold          = "hold.lift"
	ActConfirmCut        = "revocation.confirm"
	ActForget            = "evidence.forget"
	ActDecommission      = "identity.decommission"
	ActDestroy           = "secret.destroy"
	ActGlass             = "glass.open"
	ActExport            = "secret.export"
	ActDeleteEnvironment = "environment.delete"
	ActMoveCustody       = "custody.move"
)

// The longest wait, and the one of what ends an environment in production: a day, so that every person who could take it back comes by.
const (
	maxDelay = 30 * 24 * time.Hour
	endDelay = 24 * time.Hour
)

// Acts is the closed table of what takes approvals.
var Acts = []Act{
	{Name: ActBundle, Duty: DutyApproveBundles, Doc: "bring a bundle into force"},
	{Name: ActLiftHold, Duty: DutyApproveContainment, Doc: "end a hold or a quarantine"},
	{Name: ActConfirmCut, Duty: DutyApproveContainment, Doc: "make a provisional hold a cutoff, and a hold without end"},
	{Name: ActForget, Duty: DutyApproveContainment, Doc: "let evidence of first use be used once more"},
	{Name: ActDecommission, Duty: DutyApproveContainment, Doc: "end an identity for ever", Final: true},
	{Name: ActDestroy, Duty: DutyApproveSecrets, Doc: "destroy a version of a secret", Final: true},
	{Name: ActGlass, Duty: DutyApproveSecrets, Doc: "open a break-glass grant beyond its budget, or before an earlier opening was reviewed"},
	{Name: ActExport, Duty: DutyApproveSecrets, Doc: "give the current values of a pattern's secrets to its proposer, sealed to a key", Final: true, Least: 2},
	{Name: ActDeleteEnvironment, Duty: DutyApprove, Doc: "end the environment for ever, with all its keys and values", Final: true, Least: 2, Delay: endDelay},
	{Name: ActMoveCustody, Duty: DutyApprove, Doc: "put the environment's keys under another root key", Final: true, Least: 2},
}

// FindAct finds an act by its name.
func FindAct(name string) (Act, bool) {
	i := slices.IndexFunc(Acts, func(a Act) bool { return a.Name == name })
	if i < 0 {
		return Act{}, false
	}
	return Acts[i], true
}

// DutyToApprove is the duty that approving an act takes. Whoever may approve everything has it: see Operator.Has.
func DutyToApprove(act string) Duty {
	if a, ok := FindAct(act); ok {
		return a.Duty
	}
	return DutyApprove
}

// Need is what an act takes.
type Need struct {
	Approvals int  // distinct persons, the proposer not counted
	Self      bool // one alone: the proposer's own approval counts (development only)
	Hardware  bool // signatures by hardware-backed keys only
	// Delay is for how long it waits after the last approval, in which it can be taken back; whole seconds.
	Delay time.Duration
}

// actNeed is what a bundle asks for one act beyond what it asks for all.
type actNeed struct {
	act      string
	required int
	hardware bool
	delay    time.Duration
}

// Needs is what an act takes in this environment. It is one function for who asks, who carries out, and who checks afterwards.
func (e Environment) Needs(act string) Need {
	n := Need{Approvals: e.Approvals, Hardware: e.Hardware}
	for _, x := range e.acts {
		if x.act == act {
			n.Approvals, n.Hardware, n.Delay = max(n.Approvals, x.required), n.Hardware || x.hardware, x.delay
		}
	}
	if a, ok := FindAct(act); ok && e.Class == Production {
		n.Approvals, n.Delay = max(n.Approvals, a.Least), max(n.Delay, a.Delay)
	}
	if n.Approvals == 0 {
		n.Approvals, n.Self = 1, e.Class != Production // which has one at least
	}
	return n
}

// Takes reports whether an act that a grant permits takes a change as well: where persons approve one another, what can't be undone does.
func (e Environment) Takes(act string) bool { return !e.Needs(act).Self }

// Hardware reports whether the key never leaves a device that a person touches for each signature (FIDO, the types sk-…).
func (k OperatorKey) Hardware() bool {
	return k.Key.Type() == ssh.KeyAlgoSKED25519 || k.Key.Type() == ssh.KeyAlgoSKECDSA256
}

// actNames lists the acts, for messages.
var actNames = func() []string {
	out := make([]string, len(Acts))
	for i, a := range Acts {
		out[i] = a.Name
	}
	return out
}()

const (
	keysAny      = "any"
	keysHardware = "hardware"
)

func (c *compiler) approvals(s *environmentSpec) {
	e := &c.program.environment
	e.Hardware = c.oneOf(s.Approvals.Keys, "approvals.keys", keysAny, keysHardware) == keysHardware
	e.acts = nil
	for i := range s.Approvals.Acts {
		x := &s.Approvals.Acts[i]
		n := actNeed{act: c.oneOf(x.Act, "act", actNames...), hardware: c.oneOf(x.Keys, "keys", keysAny, keysHardware) == keysHardware}
		a, _ := FindAct(n.act)
		least, wait := e.Approvals, time.Duration(0)
		if e.Class == Production {
			least, wait = max(least, a.Least), a.Delay
		}
		n.required = c.count(x.Required, "required", least, least, maxApprovals)
		n.delay = c.duration(x.Delay, "delay", wait, wait, maxDelay)
		switch {
		case slices.ContainsFunc(e.acts, func(o actNeed) bool { return n.act != "" && o.act == n.act }):
			c.found.add(x.Act.at, "the act %q is here twice", n.act)
		case x.Delay.set && n.act != "" && !a.Final:
			c.found.add(x.Delay.at, "%s can be undone, and does not wait: a delay is for what can't be", n.act)
		case !x.Required.set && !x.Keys.set && !x.Delay.set:
			c.found.add(x.At, "it asks for nothing more than approvals do for every act")
		case e.Hardware && x.Keys.set && !n.hardware:
			c.found.add(x.Keys.at, "approvals.keys asks for hardware-backed keys in every act")
		}
		e.acts = append(e.acts, n)
	}
}

// quorum refuses a bundle under which some act could never be approved.
func (c *compiler) quorum(at Pos) {
	if !slices.ContainsFunc(c.program.operators, func(o Operator) bool { return o.Has(DutyPropose) }) {
		c.found.add(at, "nobody has the duty propose: this environment could never be changed again")
		return
	}
	said := map[Need]bool{}
	for _, act := range Acts {
		need := c.program.environment.Needs(act.Name)
		if Quorum(c.program, act.Name, func(Operator) bool { return true }) || said[need] {
			continue
		}
		said[need] = true
		if e := c.program.environment; act.Least > 0 && need.Approvals == act.Least && !slices.ContainsFunc(e.acts, func(n actNeed) bool { return n.act == act.Name }) {
			// An environment of few persons is none the worse for it, until somebody wants to end it.
			c.program.advice = append(c.program.advice, Finding{at, oneLine(fmt.Sprintf("%s could not be approved: it takes %d persons with the duty %s besides the proposer", act.Name, need.Approvals, act.Duty))})
			continue
		}
		keys := ""
		if need.Hardware {
			keys = " and a hardware-backed key"
		}
		if act.Name == ActBundle {
			c.found.add(at, "no change could ever be approved: it takes %d person(s) with the duty approve%s besides the proposer", need.Approvals, keys)
			return // and then nothing else could be mended
		}
		c.found.add(at, "%s could never be approved: it takes %d person(s) with the duty %s%s besides the proposer", act.Name, need.Approvals, act.Duty, keys)
	}
}

// Quorum reports whether an act could be proposed and approved by those of the operators for whom can holds: one who proposes, and as many
// others who may approve it, each by a key that counts, as the bundle asks for.
func Quorum(p *Program, act string, can func(Operator) bool) bool {
	return QuorumBy(p, act, func(Operator) bool { return true }, can)
}

// QuorumBy is Quorum where only those may propose for whom by holds.
func QuorumBy(p *Program, act string, by, can func(Operator) bool) bool {
	need := p.environment.Needs(act)
	approves := func(o Operator) bool {
		return o.Has(DutyToApprove(act)) && (!need.Hardware || slices.ContainsFunc(o.Keys, OperatorKey.Hardware))
	}
	all := 0
	var proposers []Operator
	for _, o := range p.operators {
		if !can(o) {
			continue
		}
		if approves(o) {
			all++
		}
		if o.Has(DutyPropose) && by(o) {
			proposers = append(proposers, o)
		}
	}
	return slices.ContainsFunc(proposers, func(o Operator) bool {
		if approves(o) && !need.Self {
			return all-1 >= need.Approvals
		}
		return all >= need.Approvals
	})
}
