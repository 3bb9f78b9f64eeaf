package identity

import (
	"errors"
	"fmt"
	"strings"
)

// Pattern selects identities or secrets: an exact path, a whole subtree ("PREFIX/*": everything
// below PREFIX at any depth, by whole segments, and not PREFIX itself), or everything ("/*" for
// identities, "*" for secrets). It is comparable; the zero Pattern matches nothing.
type Pattern struct {
	path string // the exact path, or the subtree's prefix without "/*"; "" for everything
	kind patternKind
}

type patternKind uint8

const (
	matchNothing patternKind = iota
	matchExact
	matchSubtree // also "/*", whose prefix is empty
	matchSecrets // "*"
)

// ParseIDPattern reads a pattern of identities, by their paths: "/human/alice", "/node/*", "/*".
func ParseIDPattern(s string) (Pattern, error) {
	if s == "/*" {
		return Pattern{kind: matchSubtree}, nil
	}
	prefix, subtree := strings.CutSuffix(s, "/*")
	if err := ValidPath(prefix); err != nil {
		return Pattern{}, patternError(s, err)
	}
	if subtree {
		return Pattern{prefix, matchSubtree}, nil
	}
	return Pattern{prefix, matchExact}, nil
}

// ParseSecretPattern reads a pattern of secrets: "db/password", "db/*", "*".
func ParseSecretPattern(s string) (Pattern, error) {
	if s == "*" {
		return Pattern{kind: matchSecrets}, nil
	}
	prefix, subtree := strings.CutSuffix(s, "/*")
	if _, err := ParseSecretPath(prefix); err != nil {
		return Pattern{}, patternError(s, err)
	}
	if subtree {
		return Pattern{prefix, matchSubtree}, nil
	}
	return Pattern{prefix, matchExact}, nil
}

func patternError(s string, err error) error {
	if s == "" {
		return errors.New("the pattern is empty")
	}
	if strings.IndexByte(s, '*') >= 0 {
		return fmt.Errorf("pattern %q: '*' may stand only as a last, whole segment: %w", s, err)
	}
	return err
}

// Match reports whether the pattern selects the path. It does not check that the path is valid.
func (p Pattern) Match(path string) bool {
	switch p.kind {
	case matchExact:
		return path == p.path
	case matchSubtree:
		return len(path) > len(p.path)+1 && path[len(p.path)] == '/' && path[:len(p.path)] == p.path
	case matchSecrets:
		return path != "" && path[0] != '/'
	}
	return false
}

// Covers reports whether every path that other selects is selected by p too.
func (p Pattern) Covers(other Pattern) bool {
	switch other.kind {
	case matchNothing:
		return true
	case matchExact:
		return p.Match(other.path)
	case matchSecrets:
		return p.kind == matchSecrets
	}
	return p == other || p.kind != matchExact && other.path != "" && p.Match(other.path)
}

// Exact is the only path that the pattern selects, and whether there is just one.
func (p Pattern) Exact() (string, bool) { return p.path, p.kind == matchExact }

// Prefix is the path above the subtree that the pattern selects ("" for everything), and whether
// it selects a subtree at all.
func (p Pattern) Prefix() (string, bool) {
	return p.path, p.kind == matchSubtree || p.kind == matchSecrets
}

// String is the text that the pattern was parsed from; "" for the zero Pattern.
func (p Pattern) String() string {
	switch p.kind {
	case matchExact:
		return p.path
	case matchSubtree:
		return p.path + "/*"
	case matchSecrets:
		return "*"
	}
	return ""
}

// Around lists the subtrees that hold all that the pattern selects, without itself: the narrowest first, everything last.
func (p Pattern) Around() []Pattern {
	var out []Pattern
	root := Pattern{kind: matchSubtree}
	if p.path != "" && p.path[0] != '/' {
		root = Pattern{kind: matchSecrets}
	}
	if p.path == "" || p.kind == matchNothing {
		return nil
	}
	for cut := strings.LastIndexByte(p.path, '/'); cut > 0; cut = strings.LastIndexByte(p.path[:cut], '/') {
		out = append(out, Pattern{p.path[:cut], matchSubtree})
	}
	return append(out, root)
}

// Texts are the patterns as they are written, in their order.
func Texts(patterns []Pattern) []string {
	out := make([]string, len(patterns))
	for i, p := range patterns {
		out[i] = p.String()
	}
	return out
}
