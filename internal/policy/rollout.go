package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// The stages of a rollout, in their order (DESIGN §8).
const (
	StageShadow = "shadow" // decided beside the bundle in force, and only compared
	StageCanary = "canary" // it governs a share of the identities
)

// What a trigger counts.
const (
	TriggerDenied    = "denied"    // requests that the bundle before would have allowed
	TriggerUndecided = "undecided" // of these, the ones whose condition could not be told
)

// Rollout is a Rollout document: by which steps a change of the bundle comes into force, and what brings the earlier one back.
type Rollout struct {
	Name     string
	Steps    []RolloutStep
	Watch    time.Duration // after coming into force; 0: triggers end with the last step
	Triggers []RolloutTrigger
}

// RolloutStep is one step. A canary has a share or a cohort.
type RolloutStep struct {
	Stage  string
	For    time.Duration
	Share  int                // percent of the identities, 1 to 99; 0: none
	Cohort []identity.Pattern // named instead
	Asked  int                // the step is not over before so many machines and repositories asked
}

// RolloutTrigger brings the earlier bundle back.
type RolloutTrigger struct {
	On      string
	Sources int           // at least so many machines and repositories, each counted once
	Share   int           // and more than so many percent of those that asked
	Served  time.Duration // only what an identity was given within so long before the rollout counts
}

// Rollouts lists the rollouts by name.
func (p *Program) Rollouts() []Rollout { return slices.Clone(p.rollouts) }

// Rollout finds a rollout by its name.
func (p *Program) Rollout(name string) (Rollout, bool) {
	i := slices.IndexFunc(p.rollouts, func(r Rollout) bool { return r.Name == name })
	if i < 0 {
		return Rollout{}, false
	}
	return p.rollouts[i], true
}

// DefaultRollout is by which rollout a change comes into force that names none.
const DefaultRollout = "default"

const kindRollout = "Rollout"

type rolloutSpec struct {
	At       Pos
	Steps    []rolloutStepSpec    `yaml:"steps" need:"true" doc:"What a change goes through before it is in force, in order: shadow steps, then canary steps."`
	Watch    period               `yaml:"watch" doc:"How long after coming into force the triggers bring the earlier bundle back by themselves, up to 168h. Default 0: not at all."`
	Triggers []rolloutTriggerSpec `yaml:"triggers" doc:"What brings the earlier bundle back without anybody's asking. They count refusals of secrets: not errors of the server, of programs or of the network, nor machines that are let in or not."`
}

type rolloutStepSpec struct {
	At     Pos
	Stage  text   `yaml:"stage" need:"true" enum:"shadow,canary" doc:"shadow: decided beside the bundle in force, and every difference recorded. canary: it decides for some."`
	For    period `yaml:"for" need:"true" doc:"How long, 1s to 168h."`
	Share  number `yaml:"share" doc:"canary: for how many percent of the identities, 1 to 99. Which ones is stable during a change."`
	Cohort []text `yaml:"cohort" doc:"canary: for which identities, instead of a share: paths and subtrees."`
	Asked  number `yaml:"asked" default:"0" doc:"The step is not over before so many machines and repositories asked in it, 0 to 1000, however long that takes: the time in which nobody could ask proves nothing."`
}

type rolloutTriggerSpec struct {
	At      Pos
	On      text   `yaml:"on" need:"true" enum:"denied,undecided" doc:"denied: requests are refused that the bundle before would have allowed. undecided: of these, those whose condition could not be told."`
	Sources number `yaml:"sources" default:"3" doc:"From how many machines and repositories, each counted once whatever it asks: 2 to 1000. One that is hostile must not be enough."`
	Share   number `yaml:"share" default:"0" doc:"And of more than how many percent of the machines and repositories that asked, 0 to 99."`
	Served  period `yaml:"served" default:"24h" doc:"What an identity was given within so long before the rollout, and is refused now, counts, if it was given it before the change was proposed, too, and its machine did not join by a token since; nothing else does. 1h to 720h."`
}

const (
	maxRollouts      = 32
	maxRolloutSteps  = 16
	maxTriggers      = 16
	maxStep          = 168 * time.Hour
	maxRolloutTime   = 720 * time.Hour // of all steps together
	minTriggerSource = 2
	maxServed        = 720 * time.Hour
)

func (c *compiler) rollouts() {
	c.each(kindRollout, func(d *document) {
		s := d.spec.(*rolloutSpec)
		r := Rollout{Name: d.name.value, Watch: c.duration(s.Watch, "watch", 0, 0, maxStep)}
		switch {
		case len(s.Steps) == 0:
			c.found.add(s.At, "\"steps\" is empty: without a rollout a change is in force at once")
		case len(s.Steps) > maxRolloutSteps:
			c.found.add(s.Steps[maxRolloutSteps].At, "there are more than %d steps", maxRolloutSteps)
			return
		case len(s.Triggers) > maxTriggers:
			c.found.add(s.Triggers[maxTriggers].At, "there are more than %d triggers", maxTriggers)
			return
		case len(c.program.rollouts) >= maxRollouts:
			c.found.add(d.at, "there are more than %d rollouts", maxRollouts)
			return
		}
		for i := range s.Steps {
			c.rolloutStep(&r, &s.Steps[i])
		}
		patterns, all := 0, time.Duration(0)
		for i, step := range r.Steps {
			all += step.For
			if patterns += len(step.Cohort); patterns > maxPatterns {
				c.found.add(s.Steps[i].At, "the steps have more than %d patterns together", maxPatterns)
				break
			}
		}
		if all > maxRolloutTime {
			c.found.add(s.At, "the steps take %s together, and %s is the limit", shortDuration(all), shortDuration(maxRolloutTime))
		}
		for i := range s.Triggers {
			t := &s.Triggers[i]
			r.Triggers = append(r.Triggers, RolloutTrigger{
				On:      c.oneOf(t.On, "on", TriggerDenied, TriggerUndecided),
				Sources: c.count(t.Sources, "sources", 3, minTriggerSource, 1000),
				Share:   c.count(t.Share, "share", 0, 0, 99),
				Served:  c.duration(t.Served, "served", 24*time.Hour, time.Hour, maxServed),
			})
		}
		if s.Watch.set && r.Watch > 0 && len(r.Triggers) == 0 {
			c.found.add(s.Watch.at, "\"watch\" has no effect without triggers")
		}
		c.program.rollouts = append(c.program.rollouts, r)
	})
	slices.SortFunc(c.program.rollouts, func(a, b Rollout) int { return strings.Compare(a.Name, b.Name) })
}

func (c *compiler) rolloutStep(r *Rollout, s *rolloutStepSpec) {
	step := RolloutStep{
		Stage: c.oneOf(s.Stage, "stage", StageShadow, StageCanary), For: c.duration(s.For, "for", 0, time.Second, maxStep),
		Share: c.count(s.Share, "share", 0, 1, 99), Asked: c.count(s.Asked, "asked", 0, 0, 1000),
	}
	canaries, last := 0, RolloutStep{}
	if n := len(r.Steps); n > 0 {
		last = r.Steps[n-1]
		if last.Stage == StageCanary {
			canaries = n
		}
	}
	switch {
	case step.Stage == StageShadow && (s.Share.set || s.Cohort != nil):
		c.found.add(s.At, "a shadow step governs nobody: \"share\" and \"cohort\" are for canary steps")
	case step.Stage == StageShadow && canaries > 0:
		c.found.add(s.Stage.at, "a shadow step can't follow a canary")
	case step.Stage == StageCanary && s.Share.set == (s.Cohort != nil):
		c.found.add(s.At, "a canary step has either \"share\" or \"cohort\"")
	case s.Cohort != nil:
		step.Cohort = c.patterns(s.Cohort, "cohort", s.At, identity.ParseIDPattern)
		for _, t := range s.Cohort {
			if t.value == "/*" || strings.HasPrefix(t.value, identity.PrefixHuman) {
				c.found.add(t.at, "%q is no cohort: a canary is of some nodes, workloads and jobs, and the bundle in force governs persons until it is another", t.value)
			}
		}
	case step.Share > 0 && last.Share > step.Share:
		c.found.add(s.Share.at, "the share %d is smaller than that of the step before: a rollout only grows", step.Share)
	}
	r.Steps = append(r.Steps, step)
}

// Lot is what the identities of a change's canaries are drawn by: another one for each change, and the same during it, so that a larger share
// contains a smaller one. It is made of the candidate's manifest, of the entry that proposed it, and of when its rollout began, in
// milliseconds, which nobody knows who could still edit the bundle or give a name: else its proposer could edit it until the canary is of
// whom he likes.
func Lot(candidate Digest, change uint64, began int64) Digest {
	buf := append(make([]byte, 0, 80), "bailment canary v1\n"...)
	buf = append(buf, candidate[:]...)
	buf = binary.BigEndian.AppendUint64(buf, change)
	return sha256.Sum256(binary.BigEndian.AppendUint64(buf, uint64(began)))
}

// Covers reports whether a canary step's candidate governs an identity, by the change's lot. Persons and servers are never in it.
func (s RolloutStep) Covers(lot Digest, path string) bool {
	if s.Stage != StageCanary {
		return false
	}
	if !strings.HasPrefix(path, identity.PrefixNode) && !strings.HasPrefix(path, identity.PrefixWorkload) && !strings.HasPrefix(path, identity.PrefixCI) {
		return false
	}
	if s.Share == 0 {
		return matchAny(s.Cohort, path)
	}
	return cohortOf(lot, path) < uint64(s.Share)
}

// cohortOf is an identity's place among the hundred parts of a canary, 0 to 99.
func cohortOf(lot Digest, path string) uint64 {
	buf := make([]byte, 0, 256)
	buf = append(buf, "bailment cohort v1\n"...)
	buf = append(buf, lot[:]...)
	sum := sha256.Sum256(append(buf, path...))
	return binary.BigEndian.Uint64(sum[:8]) % 100
}

// SourceOf is what a trigger counts once: the machine that speaks for a workload, a node itself, or a job's repository. Whoever is
// hostile has one of them, and can have many identities on it. Persons and servers are none (""): who loses what he had is no reason
// to give it back.
func SourceOf(path, node string) string {
	if node != "" {
		return node
	}
	if !strings.HasPrefix(path, identity.PrefixNode) && !strings.HasPrefix(path, identity.PrefixWorkload) && !strings.HasPrefix(path, identity.PrefixCI) {
		return ""
	}
	if strings.HasPrefix(path, identity.PrefixCI) {
		const segments = 4 // /ci/METHOD/OWNER/REPOSITORY
		for i, n := 1, 0; i < len(path); i++ {
			if path[i] == '/' {
				if n++; n == segments {
					return path[:i]
				}
			}
		}
	}
	return path
}

// MaxContainment is how many files a change may mark as containment.
const MaxContainment = 32

// RollbackFiles are the files of the bundle that a change can be rolled back to: those of the bundle that it replaces, but what never
// comes back (DESIGN §8) is as in the change: the operators; the environment's settings, whole, if they differ in what is asked of
// agents, in approvals, in who may recover, or in the blast limit; and the files that the change marks as containment, which are sorted. was and is are the
// settings of the two bundles. The result shares the files' bytes. It is of reason invalid if a marked file is not one that the change
// changes.
func RollbackFiles(base, changed Files, was, is Environment, containment []string) (Files, error) {
	if len(containment) > MaxContainment {
		return nil, problem.New(problem.ReasonTooLarge, "a change marks at most %d files as containment", MaxContainment)
	}
	differ := ChangedFiles(base, changed)
	out := maps.Clone(base)
	keep := func(path string) {
		if data, ok := changed[path]; ok {
			out[path] = data
		} else {
			delete(out, path)
		}
	}
	for i, path := range containment {
		if _, ok := slices.BinarySearch(differ, path); !ok {
			return nil, problem.New(problem.ReasonInvalid, "the change marks %s as containment, and doesn't change it", Pos{File: path})
		}
		if i > 0 && containment[i-1] >= path {
			return nil, problem.New(problem.ReasonInvalid, "the files marked as containment are not in ascending order, each once")
		}
		keep(path)
	}
	if !bytes.Equal(operatorsOf(base), operatorsOf(changed)) {
		// What it tests may be about persons who are none any more, and nobody runs them then.
		maps.DeleteFunc(out, func(path string, _ []byte) bool { return strings.HasPrefix(path, "tests/") })
	}
	kept := []string{"operators"}
	if !was.sameGuards(is) {
		kept = append(kept, "environment")
	}
	for _, name := range kept {
		// Both spellings: a bundle has one of them, and a change may have renamed it.
		keep(name + ".yaml")
		keep(name + ".yml")
	}
	return out, nil
}

func operatorsOf(files Files) []byte {
	if data, ok := files["operators.yaml"]; ok {
		return data
	}
	return files["operators.yml"]
}

// sameGuards reports whether two settings agree in what a rollback never brings back.
func (e Environment) sameGuards(o Environment) bool {
	a, b := e.Agents, o.Agents
	return e.Approvals == o.Approvals && e.Hardware == o.Hardware && slices.Equal(e.acts, o.acts) && e.BlastLimit == o.BlastLimit && e.BreakGlass == o.BreakGlass &&
		e.Recovery.equal(o.Recovery) && a.Minimum.Compare(b.Minimum) == 0 && a.Require == b.Require && a.Rollback == b.Rollback &&
		slices.EqualFunc(a.Signers, b.Signers, func(x, y OperatorKey) bool { return x.Fingerprint == y.Fingerprint })
}

// RollbackOf is the manifest, and the files, of what a change can be rolled back to: it follows the change's own manifest. It is nil if a
// rollback would keep all that the change changes. Proposers, approvers and the server each compute it, and sign or compare its digest.
func RollbackOf(change *Manifest, base, changed Files, was, is Environment, containment []string) (*Manifest, Files, error) {
	h := change.Header()
	if h.Genesis.IsZero() {
		return nil, nil, problem.New(problem.ReasonInvalid, "the founding bundle replaces nothing")
	}
	files, err := RollbackFiles(base, changed, was, is, containment)
	if err != nil || len(ChangedFiles(files, changed)) == 0 {
		return nil, nil, err
	}
	h.Version, h.Previous = h.Version+1, change.Digest()
	m, err := BuildManifest(files, h)
	return m, files, err
}

// RollbackDigest is the digest that proposers and approvers sign as what a change may be rolled back to, "" if there is none. Who signs
// computes it from the files.
func RollbackDigest(change *Manifest, base, changed Files, containment []string) (string, error) {
	var settings [2]Environment
	for i, files := range []Files{base, changed} {
		b, err := Load(files)
		if err != nil {
			return "", err
		}
		p, err := CompileAccepted(b)
		if err != nil {
			return "", err
		}
		settings[i] = p.environment
	}
	m, _, err := RollbackOf(change, base, changed, settings[0], settings[1], containment)
	if err != nil || m == nil {
		return "", err
	}
	return m.Digest().String(), nil
}

// ChangedFiles lists the paths that differ between two bundles, in byte order.
func ChangedFiles(base, changed Files) []string {
	var out []string
	for path, data := range changed {
		if was, ok := base[path]; !ok || !bytes.Equal(was, data) {
			out = append(out, path)
		}
	}
	for path := range base {
		if _, ok := changed[path]; !ok {
			out = append(out, path)
		}
	}
	slices.Sort(out)
	return out
}
