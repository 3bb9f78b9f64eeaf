package policy

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/identity"
)

// Limits of a bundle's tests.
const (
	MaxTests      = 10_000  // cases of both kinds, in all documents
	maxTestTokens = 2_000   // in all documents
	maxTestValues = 200_000 // of claims, counted once for each case that has some of its own
	maxTestRules  = 2_000_000
)

// The spec of the kind Test, as it is written.
type (
	testSpec struct {
		At         Pos
		Tokens     []tokenSpec        `yaml:"tokens" doc:"Recorded proofs, for the cases of all tests of the bundle."`
		Identities []identityCaseSpec `yaml:"identities" doc:"Who is it: what the identity rules make of a proof."`
		Cases      []caseSpec         `yaml:"cases" doc:"May they: what the grants say to a request."`
		Limits     []limitSpec        `yaml:"limits" doc:"How far may it reach: what nobody of a class may get at by whatever way, when he alone is compromised."`
	}

	tokenSpec struct {
		At        Pos
		Name      text      `yaml:"name" need:"true" doc:"What cases call it, unique in the bundle."`
		Method    text      `yaml:"method" need:"true" enum:"join-token,x509,sshhost,k8s,aws,gcp,azure,tpm,sev-snp,tdx,github,gitlab,buildkite,circleci,k8s-job,oidc,workload" doc:"The attestation method that gave these claims."`
		Authority text      `yaml:"authority" doc:"The authority that vouched. Not for join-token and workload."`
		Node      text      `yaml:"node" doc:"workload only: path of the node whose agent told the claims."`
		Assurance text      `yaml:"assurance" enum:"unbound,token,key,platform,hardware,measured" doc:"What the proof was worth: platform by default for github, buildkite and circleci, and token for the others."`
		Claims    claimTree `yaml:"claims" doc:"The claims as rules see them: what bailment ci whoami prints. Text that looks like a number or a truth value must be in quotes."`
	}

	identityCaseSpec struct {
		At      Pos
		Name    text      `yaml:"name" need:"true" doc:"What is tested, unique in the document."`
		Token   text      `yaml:"token" need:"true" doc:"Name of the proof."`
		Claims  claimTree `yaml:"claims" doc:"Claims that this case lays over the token's."`
		Without []text    `yaml:"without" doc:"Claims of the token that this case does not have, as NAME or NAME.NAME."`
		Node    text      `yaml:"node" doc:"workload only: another node than the token's."`
		Asks    text      `yaml:"asks" doc:"workload only: the identity that the process asks for; by default whichever fits."`
		Expect  text      `yaml:"expect" need:"true" doc:"The identity's path, or refuse, or quarantine."`
		Rule    text      `yaml:"rule" doc:"Name of the identity rule that must give it."`
		Session period    `yaml:"session" doc:"How long its session must last."`
		Reason  text      `yaml:"reason" doc:"Why it must be refused: no-identity, ambiguous-identity, foreign-node, posture, agent-unsigned, agent-unknown, agent-outdated or agent-not-measured."`
	}

	caseSpec struct {
		At         Pos
		Name       text      `yaml:"name" need:"true" doc:"What is tested, unique in the document."`
		Identity   text      `yaml:"identity" doc:"Who asks, by path. Either this or token."`
		Token      text      `yaml:"token" doc:"Who asks, by proof: the identity is what the rules make of it, and the claims are the token's."`
		Claims     claimTree `yaml:"claims" doc:"Claims of the session; with token, laid over its claims."`
		Without    []text    `yaml:"without" doc:"Claims of the token that this case does not have, as NAME or NAME.NAME."`
		Node       text      `yaml:"node" doc:"The node that speaks for a workload, by path."`
		NodeClaims claimTree `yaml:"nodeClaims" doc:"Claims of the node's session."`
		Assurance  text      `yaml:"assurance" enum:"unbound,token,key,platform,hardware,measured" doc:"Of the session: by default the token's, key for operators, and token for others."`
		Action     text      `yaml:"action" default:"secret.read" enum:"secret.read,secret.write,secret.generate,secret.list,secret.destroy,secret.promote" doc:"What is asked for."`
		Secret     text      `yaml:"secret" need:"true" doc:"The secret, by path."`
		Purpose    text      `yaml:"purpose" default:"runtime" doc:"For what it is read. Other actions have no purpose."`
		Time       text      `yaml:"time" default:"2026-01-01T12:00:00Z" doc:"When it is asked (RFC 3339)."`
		Expect     text      `yaml:"expect" need:"true" enum:"allow,deny" doc:"The answer."`
		By         text      `yaml:"by" doc:"Name of the grant that must decide; for a refusal also the one that came nearest."`
		Reason     text      `yaml:"reason" doc:"Why it must be refused: no-grant, denied, purpose, assurance-too-low, condition or break-glass; with token also what an identity is refused for."`
		Opened     []text    `yaml:"opened" doc:"Names of the break-glass grants that the person has just opened, each for as long as it may be."`
		TTL        period    `yaml:"ttl" doc:"The longest lease that it may give: the least of what grant, secret and environment say."`
	}
)

// defaultTestTime is when a case asks that doesn't say. Which time is of no importance, and that it is always the same is.
var defaultTestTime = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// platformMethods are those whose sessions are worth identity.Platform at the least.
var platformMethods = []string{"github", "buildkite", "circleci"}

// placedError is an error inside a value, at its own place.
type placedError struct {
	at Pos
	error
}

// claimTree is a mapping of free values, as claims are.
type claimTree struct {
	value map[string]any
	at    Pos
	set   bool
}

func (*claimTree) schema() map[string]any {
	return map[string]any{"type": "object", "additionalProperties": true}
}

func (v *claimTree) decode(n *node) error {
	if n.kind != kindMap {
		return fmt.Errorf("must be a mapping, not %s", n.describe())
	}
	value, err := freeValue(n, 0)
	if err != nil {
		return err
	}
	*v = claimTree{value.(map[string]any), n.at, true}
	return nil
}

// freeValue reads what JSON has, too: a claim has come as JSON once. PrepareClaims has the limits but that of the recursion here.
func freeValue(n *node, depth int) (any, error) {
	fail := func(format string, args ...any) (any, error) {
		return nil, &placedError{n.at, fmt.Errorf(format, args...)}
	}
	if depth > MaxClaimDepth {
		return fail("is nested deeper than %d", MaxClaimDepth)
	}
	switch n.kind {
	case kindText:
		if n.style == 0 && plainFloat(n.text) && strings.ContainsAny(n.text, "0123456789") {
			return fail("has a number that is out of range, or text that needs quotes: %.40s", n.text)
		}
		return n.text, nil
	case kindNumber:
		i, err := strconv.ParseInt(n.text, 10, 64)
		if err != nil || strconv.FormatInt(i, 10) != n.text {
			return fail("has a number that is not in plain decimal digits, or out of range: %.40s", n.text)
		}
		return i, nil
	case kindMap:
		out := make(map[string]any, len(n.entries))
		for _, e := range n.entries {
			inner, err := freeValue(e.value, depth+1)
			if err != nil {
				return nil, err
			}
			out[e.key] = inner
		}
		return out, nil
	case kindList:
		out := make([]any, len(n.items))
		for i, item := range n.items {
			inner, err := freeValue(item, depth+1)
			if err != nil {
				return nil, err
			}
			out[i] = inner
		}
		return out, nil
	case kindOther:
		switch n.text {
		case "true":
			return true, nil
		case "false":
			return false, nil
		}
		if f, err := strconv.ParseFloat(n.text, 64); err == nil && plainFloat(n.text) {
			return f, nil
		}
		return fail("has a value that is no text, true, false or number in plain digits: %.40s", n.text)
	}
	return fail("has an empty value: leave out a claim that is not there")
}

// plainFloat keeps forms out that are read differently by different people, as .5, 1_000.0 and infinity.
func plainFloat(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9', c == '.' && i > 0, c == '-', c == '+' && i > 0, c == 'e' && i > 0, c == 'E' && i > 0:
		default:
			return false
		}
	}
	return s != ""
}

// laid returns base with over laid upon it, maps into maps, and without the named claims. Neither is changed; what they hold is shared.
func laid(base, over map[string]any, without [][]string) (map[string]any, error) {
	out := make(map[string]any, len(base)+len(over))
	for k, v := range base {
		out[k] = v
	}
	for _, path := range without {
		if err := remove(out, path); err != nil {
			return nil, err
		}
	}
	for k, v := range over {
		below, isMap := v.(map[string]any)
		if there, ok := out[k].(map[string]any); ok && isMap {
			merged, err := laid(there, below, nil)
			if err != nil {
				return nil, err
			}
			v = merged
		}
		out[k] = v
	}
	return out, nil
}

var errNoSuchClaim = errors.New("the token has no such claim")

// remove takes a claim out of m, which is the caller's own; maps below it are copied.
func remove(m map[string]any, path []string) error {
	v, ok := m[path[0]]
	if !ok {
		return errNoSuchClaim
	}
	if len(path) == 1 {
		delete(m, path[0])
		return nil
	}
	below, ok := v.(map[string]any)
	if !ok {
		return errNoSuchClaim
	}
	copied := make(map[string]any, len(below))
	for k, v := range below {
		copied[k] = v
	}
	m[path[0]] = copied
	return remove(copied, path[1:])
}

// countValues is how much the claims count of maxTestValues.
func countValues(v any) int {
	n := 1
	switch v := v.(type) {
	case map[string]any:
		for _, x := range v {
			n += countValues(x)
		}
	case []any:
		for _, x := range v {
			n += countValues(x)
		}
	}
	return n
}

// defaultAssurance is what a session is worth of which a test doesn't say it.
func defaultAssurance(method, path string) identity.Assurance {
	for _, m := range platformMethods {
		if m == method {
			return identity.Platform
		}
	}
	if len(path) > len(identity.PrefixHuman) && path[:len(identity.PrefixHuman)] == identity.PrefixHuman {
		return identity.Key
	}
	return identity.Token
}
