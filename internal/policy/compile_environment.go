package policy

import (
	"crypto/rsa"
	"errors"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/sshsig"
)

func (c *compiler) environment() {
	// Defaults first, so that a missing or broken file doesn't make the others look wrong.
	c.settings(&environmentSpec{})
	c.each(kindEnvironment, func(d *document) {
		s := d.spec.(*environmentSpec)
		c.env = s
		e := &c.program.environment
		e.Name, e.Description = d.name.value, d.about
		if err := identity.ValidEnv(e.Name); err != nil {
			c.found.add(d.name.at, "%v", err)
		}
		c.settings(s)
		c.agents(s)
		c.authorities(s)
	})
}

func (c *compiler) settings(s *environmentSpec) {
	e := &c.program.environment
	e.Class = Class(c.oneOf(s.Class, "class", string(Development), string(Production)))
	least, what := 0, "approvals.required"
	if e.Class == Production {
		least, what = 1, "approvals.required in the class production"
	}
	e.Approvals = c.count(s.Approvals.Required, what, least, least, maxApprovals)
	c.approvals(s)
	c.glass(s)
	e.Sessions = Sessions{
		Node:     c.duration(s.Sessions.Node, "sessions.node", defaultNodeSession, minPeriod, maxNodeSession),
		Workload: c.duration(s.Sessions.Workload, "sessions.workload", defaultWorkloadSession, minPeriod, maxWorkloadSession),
		Operator: c.duration(s.Sessions.Operator, "sessions.operator", defaultOperatorSession, minPeriod, maxOperatorSession),
	}
	e.Leases.Max = c.duration(s.Leases.Max, "leases.max", defaultMaxLease, minPeriod, maxLease)
	e.Leases.Default = c.duration(s.Leases.Default, "leases.default", min(defaultLease, e.Leases.Max), minPeriod, e.Leases.Max)
	e.BlastLimit = c.count(s.Revocation.BlastLimit, "revocation.blastLimit", defaultBlastLimit, 1, maxBlastLimit)
	e.Limits = Limits{
		Secrets:           c.count(s.Limits.Secrets, "limits.secrets", defaultSecrets, 1, maxSecrets),
		VersionsPerSecret: c.count(s.Limits.VersionsPerSecret, "limits.versionsPerSecret", defaultVersions, 2, maxVersions),
		ValueBytes:        c.count(s.Limits.ValueBytes, "limits.valueBytes", maxValueBytes, 1, maxValueBytes),
	}
	c.spiffe(s)
	c.notify(s)
	e.NodeLifetime = c.duration(s.Nodes.Lifetime, "nodes.lifetime", defaultNodeLifetime, minNodeLifetime, maxNodeLifetime)
}

// authorities are held to the same rule as by the verifier, which would otherwise refuse the whole bundle's.
func (c *compiler) authorities(s *environmentSpec) {
	if len(s.Authorities) > authority.Max {
		c.found.add(s.Authorities[authority.Max].At, "there are more than %d authorities", authority.Max)
		return
	}
	set := c.rootSet(MethodX509)
	for _, a := range s.Authorities {
		if err := authority.ValidName(a.Name.value); err != nil {
			c.found.add(a.Name.at, "%v", err)
		}
		if _, twice := c.program.Authority(a.Name.value); twice {
			c.found.add(a.Name.at, "the authority %q is here twice", a.Name.value)
			continue
		}
		certificates, err := authority.Parse([]byte(a.PEM.value))
		if err == nil {
			err = set.Add(a.Name.value, certificates)
		}
		if err != nil {
			c.found.add(a.PEM.at, "the authority %q: %v", a.Name.value, err)
		}
		c.program.authorities = append(c.program.authorities, authority.Authority{Name: a.Name.value, Method: MethodX509, Certificates: certificates})
	}
}

var allDuties = []string{
	string(DutyPropose), string(DutyApprove), string(DutyRevoke), string(DutyAdmit), string(DutyKeys), string(DutyAudit),
	string(DutyApproveBundles), string(DutyApproveContainment), string(DutyApproveSecrets),
}

func (c *compiler) operators() {
	c.each(kindOperators, func(d *document) {
		s := d.spec.(*operatorsSpec)
		c.humansKnown = true
		if !validName(d.name.value) {
			c.found.add(d.name.at, "the name %q must be 1 to 63 of a-z, 0-9, '-' and '.', and begin with a letter or digit", d.name.value)
		}
		if len(s.Operators) == 0 {
			c.found.add(s.At, "there are no operators: nobody could ever change this environment")
		}
		if len(s.Operators) > maxOperators {
			c.found.add(s.Operators[maxOperators].At, "there are more than %d operators", maxOperators)
			return
		}
		whole := true
		owners := map[string]string{}
		for _, o := range s.Operators {
			before := len(c.found.list)
			c.operator(o, owners)
			whole = whole && len(c.found.list) == before
		}
		slices.SortFunc(c.program.operators, func(a, b Operator) int { return strings.Compare(a.Name, b.Name) })
		for i, o := range c.program.operators {
			for _, k := range o.Keys {
				c.program.byKey[string(k.Key.Marshal())] = i
			}
		}
		if whole && len(s.Operators) > 0 {
			c.quorum(s.At)
		}
	})
}

func (c *compiler) operator(s operatorSpec, owners map[string]string) {
	o := Operator{Name: s.Name.value, Source: s.At}
	if err := ValidPerson(o.Name); err != nil {
		c.found.add(s.Name.at, "%v", err)
	}
	if c.humans[o.Name] {
		c.found.add(s.Name.at, "the person %q is here twice", o.Name)
		return
	}
	c.humans[o.Name] = true
	if len(s.Keys) == 0 {
		c.found.add(s.At, "%s has no keys", o.Name)
	}
	if len(s.Keys) > maxKeysPerPerson {
		c.found.add(s.Keys[maxKeysPerPerson].at, "%s has more than %d keys", o.Name, maxKeysPerPerson)
		return
	}
	for _, line := range s.Keys {
		key, err := parseOperatorKey(line.value)
		if err != nil {
			c.found.add(line.at, "a key of %s: %v", o.Name, err)
			continue
		}
		if owner, taken := owners[string(key.Key.Marshal())]; taken {
			if owner == o.Name {
				c.found.add(line.at, "this key of %s is here twice", o.Name)
			} else {
				c.found.add(line.at, "this key belongs to %s already: one key can't be two persons", owner)
			}
			continue
		}
		owners[string(key.Key.Marshal())] = o.Name
		o.Keys = append(o.Keys, key)
	}
	given := map[string]bool{}
	for _, duty := range s.Duties {
		if c.oneOf(duty, "duty", allDuties...) == "" {
			continue
		}
		if given[duty.value] {
			c.found.add(duty.at, "the duty %q is here twice", duty.value)
		}
		given[duty.value] = true
	}
	for _, duty := range s.Duties {
		if strings.HasPrefix(duty.value, string(DutyApprove)+"-") && given[string(DutyApprove)] {
			c.found.add(duty.at, "the duty approve contains %s", duty.value)
		}
	}
	for _, duty := range allDuties {
		if given[duty] {
			o.Duties = append(o.Duties, Duty(duty))
		}
	}
	c.program.operators = append(c.program.operators, o)
}

// parseOperatorKey reads one authorized_keys line without options.
func parseOperatorKey(line string) (OperatorKey, error) {
	line = strings.TrimSpace(line)
	if strings.ContainsAny(line, "\n\r") {
		return OperatorKey{}, errors.New("one key is one line")
	}
	if strings.Contains(line, "PRIVATE KEY") {
		return OperatorKey{}, errors.New("this is a PRIVATE KEY: it does not belong here, and must be replaced now that it has been shown")
	}
	key, comment, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return OperatorKey{}, errors.New("it is not an SSH public key as in authorized_keys")
	}
	if len(options) > 0 || len(rest) > 0 {
		return OperatorKey{}, errors.New("options are not allowed before the key")
	}
	// The rule of who checks signatures: a person whose keys it refuses could neither log in nor approve.
	if err := sshsig.CheckKey(key); err != nil {
		return OperatorKey{}, errors.New(problem.As(err).Message)
	}
	if crypto, ok := key.(ssh.CryptoPublicKey); ok {
		if public, ok := crypto.CryptoPublicKey().(*rsa.PublicKey); ok && public.E < 65537 {
			return OperatorKey{}, errors.New("the RSA key's exponent is too small")
		}
	}
	return OperatorKey{key, ssh.FingerprintSHA256(key), comment}, nil
}
