package invariant

import "strings"

// scope is a revocation's scope, read by this package's own rules: a kind, and a pattern as segments.
type scope struct {
	kind     string
	value    string
	segments []string // of the pattern; "*" only as the last one
}

func readScope(text string) scope {
	kind, value, _ := strings.Cut(text, ":")
	return scope{kind: kind, value: value, segments: strings.Split(value, "/")}
}

// subject is whose credential is judged, and what it derives from.
type subject struct {
	identity, node, anchor, secret string
	own, root                      uint64 // when it and the oldest thing under it came to be
}

// within compares segment by segment; a last "*" stands for one segment or more.
func within(pattern []string, path string) bool {
	if path == "" {
		return false
	}
	rest, more := path, true
	for i, want := range pattern {
		if want == "*" && i == len(pattern)-1 {
			return more
		}
		if !more {
			return false
		}
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		if segment != want {
			return false
		}
	}
	return !more
}

func (s scope) covers(x subject) bool {
	switch s.kind {
	case "everything":
		return true
	case "identity": // and what it speaks for
		return within(s.segments, x.identity) || within(s.segments, x.node)
	case "node":
		return within(s.segments, x.node)
	case "issuer":
		return x.anchor != "" && x.anchor == s.value
	case "secret":
		return within(s.segments, x.secret)
	}
	return false
}

// kills reports whether a cutoff on the scope, at an index, ends the subject's credential: whoever is named
// can come back with a new credential of his own, but not with one that derives from before.
func (s scope) kills(x subject, index uint64) bool {
	if !s.covers(x) {
		return false
	}
	switch s.kind {
	case "identity":
		return within(s.segments, x.identity) && x.own < index || within(s.segments, x.node) && x.root < index
	case "secret":
		return x.own < index
	case "everything":
		return x.own < index || x.root < index
	}
	return x.root < index
}

// stops reports whether a hold on the scope refuses the subject. A hold on everything leaves persons and
// servers, since otherwise nobody could lift it.
func (s scope) stops(x subject) bool {
	if s.kind == "everything" && (strings.HasPrefix(x.identity, "/human/") || strings.HasPrefix(x.identity, "/server/")) {
		return false
	}
	return s.covers(x)
}
