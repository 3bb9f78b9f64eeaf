package state

import (
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// ScopeKind is what a revocation names.
type ScopeKind string

// The closed set of scopes.
const (
	ScopeEverything ScopeKind = "everything"
	ScopeIdentity   ScopeKind = "identity" // an identity or a subtree of them, and what they speak for
	ScopeNode       ScopeKind = "node"     // nodes, and whatever they speak for
	ScopeIssuer     ScopeKind = "issuer"   // what vouched: x509:AUTHORITY, join-token:ID, ssh:FINGERPRINT
	ScopeSecret     ScopeKind = "secret"   // a secret or a subtree of them
)

// Scope is a parsed scope. Its text is `everything` or `KIND:VALUE`; a value is a path or, as
// `PREFIX/*`, a subtree.
type Scope struct {
	Kind  ScopeKind
	Value string
}

func (s Scope) String() string {
	if s.Kind == ScopeEverything {
		return string(s.Kind)
	}
	return string(s.Kind) + ":" + s.Value
}

const maxScope = 600

// ParseScope reads the text form strictly.
func ParseScope(text string) (Scope, error) {
	if text == string(ScopeEverything) {
		return Scope{Kind: ScopeEverything}, nil
	}
	kind, value, _ := strings.Cut(text, ":")
	s := Scope{Kind: ScopeKind(kind), Value: value}
	bad := func(why string) (Scope, error) {
		return Scope{}, problem.New(problem.ReasonInvalid, "scope %.80q: %s", text, why).
			WithFix("a scope is everything, identity:/PATH, node:/PATH, issuer:NAME or secret:PATH; a subtree ends in /*")
	}
	if len(text) > maxScope {
		return bad("too long")
	}
	switch s.Kind {
	case ScopeIdentity, ScopeNode:
		p, err := identity.ParseIDPattern(value)
		if err != nil {
			return bad(err.Error())
		}
		if s.Kind == ScopeNode && value != "/*" && value != "/node/*" && !strings.HasPrefix(value, "/node/") {
			return bad("a node's identity begins with /node/")
		}
		s.Value = p.String()
	case ScopeSecret:
		p, err := identity.ParseSecretPattern(value)
		if err != nil {
			return bad(err.Error())
		}
		s.Value = p.String()
	case ScopeIssuer:
		if value == "" || strings.ContainsAny(value, " \n\t") {
			return bad("an issuer has a name")
		}
	default:
		return bad("unknown kind")
	}
	return s, nil
}

// Subject is what a decision asks about: whose credential, and what it derives from.
type Subject struct {
	Identity string
	Node     string // the node that speaks for it, or the identity itself if it is a node
	Anchor   string // what vouched for the node or identity
	Secret   string // empty if no secret is concerned
	Own      uint64 // index of what is judged (session, lease, enrolment)
	Root     uint64 // index of the oldest thing it derives from
}

// SubjectOf is the subject of a session's own credential.
func SubjectOf(x *Session) Subject {
	own := x.Index
	node := x.Node
	if node == "" && strings.HasPrefix(x.Identity, "/node/") {
		node = x.Identity
		own = x.Root // a renewal is as old as its enrolment
	}
	if strings.HasPrefix(x.Identity, identity.PrefixCI) {
		own = x.Root // a job's too
	}
	return Subject{Identity: x.Identity, Node: node, Anchor: x.Anchor, Own: own, Root: x.Root}
}

// SubjectOfEffect is the subject of an idempotency key's first effect.
func SubjectOfEffect(who string, x *Idempotent) Subject {
	node := x.Node
	if node == "" && strings.HasPrefix(who, "/node/") {
		node = who
	}
	return Subject{Identity: who, Node: node, Anchor: x.Anchor, Own: x.Index, Root: min(x.Root, x.Index)}
}

// SubjectOfLease is the subject of a lease. A node speaks for itself.
func SubjectOfLease(l *Lease) Subject {
	node := l.Node
	if node == "" && strings.HasPrefix(l.Identity, "/node/") {
		node = l.Identity
	}
	return Subject{Identity: l.Identity, Node: node, Anchor: l.Anchor, Secret: l.Secret, Own: l.ID, Root: l.Root}
}

// SubjectOfToken is the subject of a join token: it is as good as who made it.
func SubjectOfToken(t *Token) Subject {
	return Subject{Identity: t.By, Anchor: t.Anchor, Own: t.Created, Root: t.Created}
}

// Covers reports whether the scope covers the subject.
func (s Scope) Covers(x Subject) bool {
	switch s.Kind {
	case ScopeEverything:
		return true
	case ScopeIdentity:
		return matchPath(s.Value, x.Identity) || (x.Node != "" && matchPath(s.Value, x.Node))
	case ScopeNode:
		return x.Node != "" && matchPath(s.Value, x.Node)
	case ScopeIssuer:
		return x.Anchor == s.Value
	case ScopeSecret:
		return x.Secret != "" && matchPath(s.Value, x.Secret)
	}
	return false
}

func matchPath(pattern, path string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(path, prefix) && len(path) > len(prefix)
	}
	return pattern == path
}

// CutoffOver returns the newest cutoff that kills the subject's credential, if there is one.
func (s *State) CutoffOver(x Subject) (scope string, index uint64, dead bool) {
	if s.Cutoffs.Len() == 0 {
		return "", 0, false
	}
	try := func(key string, born uint64) bool {
		at, ok := s.Cutoffs.Get(key)
		if ok && at > born && at > index {
			scope, index, dead = key, at, true
		}
		return true
	}
	try(string(ScopeEverything), min(x.Own, x.Root))
	eachPattern("identity:", x.Identity, func(k string) bool { return try(k, x.Own) })
	if x.Node != "" {
		eachPattern("node:", x.Node, func(k string) bool { return try(k, x.Root) })
		eachPattern("identity:", x.Node, func(k string) bool { return try(k, x.Root) })
	}
	try("issuer:"+x.Anchor, x.Root)
	if x.Secret != "" {
		eachPattern("secret:", x.Secret, func(k string) bool { return try(k, x.Own) })
	}
	return scope, index, dead
}

// HoldOver returns a hold in force that covers the subject. A hold on everything does not cover
// persons and servers: somebody must be able to recover the environment, and to reach it.
func (s *State) HoldOver(x Subject, now Millis) (*Hold, bool) {
	if s.Holds.Len() == 0 {
		return nil, false
	}
	var found *Hold
	try := func(key string) bool {
		h, ok := s.Holds.Get(key)
		if ok && (h.Until == 0 || now < h.Until) {
			found = h
			return false
		}
		return true
	}
	exempt := strings.HasPrefix(x.Identity, identity.PrefixHuman) || strings.HasPrefix(x.Identity, identity.PrefixServer)
	if !exempt && !try(string(ScopeEverything)) {
		return found, true
	}
	eachPattern("identity:", x.Identity, try)
	if found == nil && x.Node != "" {
		eachPattern("node:", x.Node, try)
	}
	if found == nil && x.Node != "" {
		eachPattern("identity:", x.Node, try)
	}
	if found == nil {
		try("issuer:" + x.Anchor)
	}
	if found == nil && x.Secret != "" {
		eachPattern("secret:", x.Secret, try)
	}
	return found, found != nil
}

// eachPattern calls fn with every pattern that matches path, the exact one first, until fn
// returns false.
func eachPattern(kind, path string, fn func(string) bool) {
	if !fn(kind + path) {
		return
	}
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' && !fn(kind+path[:i+1]+"*") {
			return
		}
	}
	if path != "" && path[0] != '/' {
		fn(kind + "*")
	}
}
