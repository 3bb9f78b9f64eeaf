package policy

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/problem"
)

// Bounds of what recovery says.
const (
	maxRecoveryRequired = 8 // whose signatures fit into an entry beside the text
	maxRecoveryKeys     = 32
	defaultRecovery     = 72 * time.Hour
	leastRecovery       = 24 * time.Hour // in the class production
	maxRecovery         = 30 * 24 * time.Hour

	// MaxRecoveryPersons is how many bytes the lines may have that name all operators: both lists, those before and those after, are in
	// what is signed.
	MaxRecoveryPersons = 6 << 10
)

type (
	recoverySpec struct {
		At       Pos
		Required number            `yaml:"required" need:"true" doc:"How many distinct persons sign a recovery. Production: 2 or more."`
		Delay    period            `yaml:"delay" default:"72h" doc:"How long a recovery is public before it is carried out, up to 720h. Production: 24h or more. Development: any, so that it can be rehearsed."`
		Keys     []recoveryKeySpec `yaml:"keys" need:"true" doc:"Who may sign one. At most 32."`
	}

	recoveryKeySpec struct {
		At     Pos
		Person text `yaml:"person" need:"true" doc:"Who holds it. A person with several keys counts once."`
		Key    text `yaml:"key" need:"true" doc:"SSH public key, as in authorized_keys. It is no operator's and signs no releases: it does nothing else."`
	}
)

// Recovery is who may replace the operators when they can't do it themselves, and after which delay (docs/design/0025). Its zero value:
// nobody may. It is shared: don't change what it refers to.
type Recovery struct {
	Required int // distinct persons
	Delay    time.Duration
	Keys     []RecoveryKey // in the bundle's order
}

// RecoveryKey is a person's key that signs recoveries, and nothing else.
type RecoveryKey struct {
	Person string
	OperatorKey
}

// Prepared reports whether there can be a recovery.
func (r Recovery) Prepared() bool { return r.Required > 0 }

// Of lists a person's keys.
func (r Recovery) Of(person string) []OperatorKey {
	var out []OperatorKey
	for _, k := range r.Keys {
		if k.Person == person {
			out = append(out, k.OperatorKey)
		}
	}
	return out
}

func (r Recovery) equal(o Recovery) bool {
	return r.Required == o.Required && r.Delay == o.Delay && slices.EqualFunc(r.Keys, o.Keys, func(a, b RecoveryKey) bool {
		return a.Person == b.Person && a.Fingerprint == b.Fingerprint
	})
}

func (c *compiler) recovery(s *environmentSpec) {
	e, x := &c.program.environment, &s.Recovery
	e.Recovery = Recovery{}
	if x.At == (Pos{}) {
		return
	}
	least, shortest, where := 1, time.Second, ""
	if e.Class == Production {
		least, shortest, where = 2, leastRecovery, " in the class production"
	}
	r := Recovery{
		Required: c.count(x.Required, "recovery.required"+where, least, least, maxRecoveryRequired),
		Delay:    c.duration(x.Delay, "recovery.delay"+where, defaultRecovery, shortest, maxRecovery),
	}
	if len(x.Keys) > maxRecoveryKeys {
		c.found.add(x.Keys[maxRecoveryKeys].At, "there are more than %d recovery keys", maxRecoveryKeys)
		return
	}
	persons := map[string]bool{}
	for _, k := range x.Keys {
		if err := ValidPerson(k.Person.value); err != nil {
			c.found.add(k.Person.at, "%v", err)
		}
		key, err := parseOperatorKey(k.Key.value)
		if err != nil {
			c.found.add(k.Key.at, "a recovery key of %s: %v", k.Person.value, err)
			continue
		}
		if i := slices.IndexFunc(r.Keys, func(o RecoveryKey) bool { return o.Fingerprint == key.Fingerprint }); i >= 0 {
			c.found.add(k.Key.at, "this recovery key belongs to %s already", r.Keys[i].Person)
			continue
		}
		if slices.ContainsFunc(e.Agents.Signers, func(o OperatorKey) bool { return o.Fingerprint == key.Fingerprint }) {
			c.found.add(k.Key.at, "this key signs releases of agents: a recovery key does nothing else")
		}
		persons[k.Person.value] = true
		r.Keys = append(r.Keys, RecoveryKey{k.Person.value, key})
	}
	if len(persons) < r.Required && len(r.Keys) == len(x.Keys) {
		c.found.add(x.At, "recovery asks for the signatures of %d persons, and %d have a key: nobody could recover", r.Required, len(persons))
	}
	e.Recovery = r
}

// notForRecovery refuses an operator's key that recovers: whoever has it would be one of those who can't act any more, and one of those
// who act then.
func (c *compiler) notForRecovery(at Pos, key OperatorKey) {
	r := c.program.environment.Recovery
	if i := slices.IndexFunc(r.Keys, func(o RecoveryKey) bool { return o.Fingerprint == key.Fingerprint }); i >= 0 {
		c.found.add(at, "this is the recovery key of %s, which does nothing else: no operator has it", r.Keys[i].Person)
	}
}

// recoverable refuses more operators than the text of a recovery could name.
func (c *compiler) recoverable(at Pos) {
	if n := len(strings.Join(c.program.Persons(), "\n")); c.program.environment.Recovery.Prepared() && n > MaxRecoveryPersons {
		c.found.add(at, "recovery is prepared, and its signed text could not name all operators: their names, duties and fingerprints have %d bytes, and %d are the limit", n, MaxRecoveryPersons)
	}
}

// adviseRecovery says where nobody could recover the environment, or nobody would hear of it.
func (p *Program) adviseRecovery(found *collector) {
	e := &p.environment
	at := Pos{File: "environment.yaml"}
	switch {
	case e.Class == Production && !e.Recovery.Prepared():
		found.add(at, "recovery is not prepared: when too many operators have lost their keys, nobody can ever change this environment (docs/howto/recover-operators.md)")
	case e.Recovery.Prepared() && !slices.ContainsFunc(e.Notify, func(n Notify) bool { return n.Wants(TopicRecovery) }):
		found.add(at, "recovery is prepared, and nobody is told when one begins: name %s among what notify is on", TopicRecovery)
	}
}

// Persons lists the operators as they are signed in the text of a recovery, in order of their names: name, duties, fingerprints.
func (p *Program) Persons() []string {
	out := make([]string, len(p.operators))
	for i, o := range p.operators {
		duties, keys := make([]string, len(o.Duties)), make([]string, len(o.Keys))
		for j, d := range o.Duties {
			duties[j] = string(d)
		}
		for j, k := range o.Keys {
			keys[j] = k.Fingerprint
		}
		slices.Sort(keys)
		what := strings.Join(duties, ",")
		if what == "" {
			what = "-"
		}
		out[i] = o.Name + " " + what + " " + strings.Join(keys, " ")
	}
	return out
}

// OperatorsFile is the path of the file that lists the operators: a bundle has one.
func (f Files) OperatorsFile() string {
	if _, ok := f["operators.yml"]; ok {
		return "operators.yml"
	}
	return "operators.yaml"
}

// Recovered is what a recovery brings into force over a bundle: all its files, but the operators. base is that bundle's manifest, which the
// result follows. Signers, the server and auditors each compute it. The result shares the files' bytes.
func Recovered(base *Manifest, genesis Digest, files Files, operators []byte) (*Manifest, Files, error) {
	if err := base.Verify(files); err != nil {
		return nil, nil, err
	}
	path := files.OperatorsFile()
	if bytes.Equal(files[path], operators) {
		return nil, nil, problem.New(problem.ReasonInvalid, "the operators are those of the bundle in force: there is nothing to recover")
	}
	if len(operators) > MaxFileBytes {
		return nil, nil, problem.New(problem.ReasonTooLarge, "a file of operators has at most %d bytes", MaxFileBytes)
	}
	out := maps.Clone(files)
	out[path] = operators
	h := base.Header()
	h.Genesis, h.Version, h.Previous = genesis, h.Version+1, base.Digest()
	m, err := BuildManifest(out, h)
	return m, out, err
}

// OnlyOperators reports the first file in which two manifests differ though it doesn't list the operators, and the digest of the one in the
// second that does.
func OnlyOperators(before, after *Manifest) (operators Digest, err error) {
	of := func(m *Manifest) (map[string]ManifestFile, string) {
		list, path := make(map[string]ManifestFile, len(m.files)), "operators.yaml"
		for _, f := range m.files {
			list[f.Path] = f
			if f.Path == "operators.yml" {
				path = f.Path
			}
		}
		return list, path
	}
	was, path := of(before)
	is, _ := of(after)
	for _, list := range []map[string]ManifestFile{was, is} {
		for _, name := range slices.Sorted(maps.Keys(list)) {
			if name != path && was[name] != is[name] {
				return Digest{}, fmt.Errorf("%s differs, and a recovery replaces the operators only", Pos{File: name})
			}
		}
	}
	if _, ok := is[path]; !ok {
		return Digest{}, fmt.Errorf("it has no %s", path)
	}
	return is[path].Digest, nil
}

// Orphans is how many places name persons who are no operators, in a bundle that was compiled as one that came into force once.
func (p *Program) Orphans() int { return p.orphans }

// Sources are digests of the files that a program was compiled from.
type Sources struct {
	Operators Digest // of the file that lists them
	Others    Digest // of all other files together, and of their paths
}

// Sources are those of the program.
func (p *Program) Sources() Sources { return p.sources }

func sourcesOf(files Files) Sources {
	var out Sources
	path, others := files.OperatorsFile(), sha256.New()
	for _, name := range files.Paths() {
		digest := OperatorsDigest(files[name])
		if name == path {
			out.Operators = digest
			continue
		}
		fmt.Fprintf(others, "%x  %s\n", digest, name)
	}
	others.Sum(out.Others[:0])
	return out
}

// CompileRecovered compiles what Recovered made, for who is to bring it into force or to sign it. What else there is in the bundle came into
// force once and stays: so a grant may name a person who is an operator no more, and is then one to nobody.
func CompileRecovered(files Files) (*Program, error) {
	b, err := Load(files)
	if err != nil {
		return nil, err
	}
	return CompileAccepted(b)
}

// OperatorsDigest is the digest of a file of operators.
func OperatorsDigest(data []byte) Digest { return sha256.Sum256(data) }
