package policy

import (
	"encoding/hex"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
)

// Agents is what an environment asks of the agents on its nodes (DESIGN.md §7).
type Agents struct {
	Signers []OperatorKey   // of releases
	Minimum release.Version // zero: none
	Require release.Level
	// Rollback names the rollback that lowers Minimum or Require; it is about the change that brings it.
	Rollback string
}

// What claims.agent says, beside version, platform, digest and signer, which are what they are called.
const (
	ClaimAgent = "agent"

	AgentSigned   = "signed"   // claims.agent.state: a release that a listed signer signed
	AgentUnsigned = "unsigned" // none
	AgentUnknown  = "unknown"  // a release, whose manifest does not have this binary

	AgentClaimed  = "claimed"  // claims.agent.evidence: by its own word
	AgentMeasured = "measured" // by the platform
)

const maxSigners = 16

// agents compiles what the environment asks of agents.
func (c *compiler) agents(s *environmentSpec) {
	a := Agents{Require: release.LevelSigned, Rollback: s.Agents.Rollback.value}
	if c.program.environment.Class == Development {
		a.Require = release.LevelAny
	}
	if len(s.Agents.Signers) > maxSigners {
		c.found.add(s.Agents.Signers[maxSigners].at, "there are more than %d signers of releases", maxSigners)
		return
	}
	for _, t := range s.Agents.Signers {
		key, err := parseOperatorKey(t.value)
		switch {
		case err != nil:
			c.found.add(t.at, "a signer of releases: %v", err)
		case slices.ContainsFunc(a.Signers, func(k OperatorKey) bool { return k.Fingerprint == key.Fingerprint }):
			c.found.add(t.at, "this signer is here twice")
		default:
			a.Signers = append(a.Signers, key)
		}
	}
	if t := s.Agents.Minimum; t.set {
		v, err := release.ParseVersion(t.value)
		if err != nil {
			c.found.add(t.at, "agents.minimum must be a version such as 1.4.0")
		}
		a.Minimum = v
	}
	switch c.oneOf(s.Agents.Require, "agents.require", "any", "signed", "measured") {
	case "any":
		if c.program.environment.Class == Production {
			c.found.add(s.Agents.Require.at, "unsigned agents run in the class development only")
		}
		a.Require = release.LevelAny
	case "signed":
		a.Require = release.LevelSigned
	case "measured":
		a.Require = release.LevelMeasured
	}
	if at := s.Agents.Require.at; a.Require != release.LevelAny && len(a.Signers) == 0 {
		if !s.Agents.Require.set {
			at = s.Class.at
		}
		if s.Agents.Require.set || c.program.environment.Class == Production {
			c.advise(at, "no agent could run: agents.signers names no signer of releases")
		}
	}
	if r := a.Rollback; s.Agents.Rollback.set && (strings.TrimSpace(r) == "" || len(r) > 200) {
		c.found.add(s.Agents.Rollback.at, "agents.rollback names a rollback, in 1 to 200 bytes")
	}
	c.program.environment.Agents = a
}

// LowersAgents says why a bundle may not follow another: it lowers what is asked of agents, and names no rollback of its own for that.
func (p *Program) LowersAgents(before *Program) error {
	a, b := p.environment.Agents, before.environment.Agents
	what := ""
	switch {
	case a.Minimum.Compare(b.Minimum) < 0:
		what = "the minimum version of agents is lowered from " + b.Minimum.String() + " to " + a.Minimum.String()
		if a.Minimum.IsZero() {
			what = "the minimum version of agents, " + b.Minimum.String() + ", is dropped"
		}
	case strictness(a.Require) < strictness(b.Require):
		what = "what is required of agents is lowered from " + b.Require.String() + " to " + a.Require.String()
	default:
		return nil
	}
	if a.Rollback != "" && a.Rollback != b.Rollback {
		return nil
	}
	return problem.New(problem.ReasonFloorLowered, "%s, and agents.rollback names no rollback that is new", what)
}

func strictness(l release.Level) int {
	return slices.Index([]release.Level{release.LevelAny, release.LevelSigned, release.LevelMeasured}, l)
}

// agentStands says what the environment has against the agent that claims speak of, or nil.
func (p *Program) agentStands(claims Claims) error {
	want := p.environment.Agents
	get := func(name string) string {
		text, _ := claims.text([]string{ClaimAgent, name})
		return text
	}
	state := get("state")
	if state == AgentSigned && !slices.ContainsFunc(want.Signers, func(k OperatorKey) bool { return k.Fingerprint == get("signer") }) {
		state = AgentUnsigned
	}
	if want.Require != release.LevelAny {
		switch {
		case state == AgentUnknown:
			return problem.New(problem.ReasonAgentUnknown, "the agent's binary is not the one that its release has for its platform")
		case state != AgentSigned:
			return problem.New(problem.ReasonAgentUnsigned, "the agent is not a release that a listed signer signed")
		}
	}
	if !want.Minimum.IsZero() {
		version, err := release.ParseVersion(get("version"))
		if err != nil {
			return problem.New(problem.ReasonAgentOutdated, "the agent's version can't be compared with the minimum %s", want.Minimum)
		}
		if version.Compare(want.Minimum) < 0 {
			return problem.New(problem.ReasonAgentOutdated, "the agent is version %s, and the minimum is %s", version, want.Minimum)
		}
	}
	if want.Require == release.LevelMeasured && get("evidence") != AgentMeasured {
		return problem.New(problem.ReasonAgentClaimed, "nothing but the agent itself says which program it is, and the bundle requires a measurement")
	}
	return nil
}

// AgentStands says what the environment would have against an agent with such a claim ClaimAgent, or nil. It is for asking beforehand.
func (p *Program) AgentStands(claim map[string]any) error {
	claims, err := PrepareClaims(map[string]any{ClaimAgent: claim})
	if err != nil {
		return err
	}
	return p.agentStands(claims)
}

// AppraiseAgent turns what an agent says of itself into the claim ClaimAgent. measured are the digests of programs that the platform
// measured; nil: it measures none.
func (p *Program) AppraiseAgent(s release.Statement, measured map[[32]byte]bool) map[string]any {
	signers := p.environment.Agents.signers()
	out := map[string]any{"state": AgentSigned, "evidence": AgentClaimed, "digest": digestText(s.Digest), "platform": short(s.Platform), "version": short(s.Version)}
	if measured[s.Digest] && s.Digest != [32]byte{} {
		out["evidence"] = AgentMeasured
	}
	v, err := release.Appraise(s, release.Policy{Signers: signers})
	switch {
	case err == nil:
		out["version"], out["signer"] = v.Version.String(), v.Signer
	case problem.Is(err, problem.ReasonAgentUnknown):
		out["state"] = AgentUnknown
	default:
		out["state"] = AgentUnsigned
	}
	return out
}

func (a Agents) signers() []ssh.PublicKey {
	out := make([]ssh.PublicKey, 0, len(a.Signers))
	for _, k := range a.Signers {
		out = append(out, k.Key)
	}
	return out
}

func digestText(d [32]byte) string { return "sha256:" + hex.EncodeToString(d[:]) }

// short keeps an agent's own words printable ASCII and small: they become claims.
func short(s string) string {
	if len(s) > 100 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return ""
	}
	return s
}
