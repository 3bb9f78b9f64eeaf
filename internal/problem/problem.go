// Package problem is the closed vocabulary in which Bailment says that something did not
// happen: a kind (what class of failure, and so which exit code), a stable reason (which
// program text may match on), a sentence for people, and the way out.
//
// It guarantees that every kind has exactly one Connect code and one exit code, and that every
// reason used in the program stands in the one table in reasons.go. It does not guarantee that a
// message is free of secrets: callers wrap with what was being done, never with a value.
//
// It is a leaf: every other package may import it, and it imports only the standard library.
package problem

import (
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// Kind is the class of a problem. The zero value is Internal, so that a forgotten kind is loud.
type Kind uint8

const (
	Internal       Kind = iota // a defect of ours, or a state that must not be
	Invalid                    // the request can never succeed as it is written
	NotProved                  // no valid proof of who asks
	Refused                    // proved, and not permitted
	NotFound                   // permitted, and not there
	Conflict                   // permitted, and no longer the state the request was made for
	Limited                    // too much, too fast; retry later
	Unavailable                // cannot be answered now; nothing was done
	UnknownOutcome             // may have been done; the same idempotency key is safe
)

var kindNames = [...]string{
	Internal: "internal", Invalid: "invalid", NotProved: "not proved", Refused: "refused",
	NotFound: "not found", Conflict: "conflict", Limited: "limited",
	Unavailable: "unavailable", UnknownOutcome: "unknown outcome",
}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "internal"
}

// ExitCode is the process exit code of a command that ends with this kind: 1 the request itself
// was wrong, 2 the server said no, 3 try again or ask for help.
func (k Kind) ExitCode() int {
	switch k {
	case Invalid:
		return 1
	case NotProved, Refused, NotFound, Conflict:
		return 2
	default:
		return 3
	}
}

// Problem is an error of the vocabulary. It is immutable once returned.
type Problem struct {
	Kind       Kind
	Reason     Reason        // stable, from the table in reasons.go
	Message    string        // what was being done and what went wrong; never a secret value
	Fix        string        // the way out, as an instruction; empty: the reason's own
	RetryAfter time.Duration // for Limited and Unavailable; 0: unspecified
	Err        error         // the cause, for errors.Is; not shown across the wire
	Entry      uint64        // index of the ledger's entry of this refusal; 0: none
}

// New makes a problem of the reason's own kind. The format's arguments must not hold a secret.
func New(r Reason, format string, args ...any) *Problem {
	return &Problem{Kind: r.Kind(), Reason: r, Message: fmt.Sprintf(format, args...)}
}

// Wrap is New with a cause, whose text is added to the message.
func Wrap(err error, r Reason, format string, args ...any) *Problem {
	p := New(r, format, args...)
	p.Err = err
	// A cause of this vocabulary gives its sentence: there is one kind and one reason in the end.
	if cause, ok := err.(*Problem); ok && cause != nil {
		p.Message += ": " + cause.Message
	} else if err != nil {
		p.Message += ": " + err.Error()
	}
	return p
}

// Local is what the operating system said about a path of this machine, where no server and no store had to do with
// it: nobody is to wait for one.
func Local(err error, format string, args ...any) *Problem {
	r := ReasonInvalid
	if errors.Is(err, fs.ErrPermission) {
		r = ReasonPermissions
	}
	return Wrap(err, r, format, args...).WithFix("check the path, that you may read and write there, and that there is room")
}

// WithFix replaces the way out.
func (p *Problem) WithFix(format string, args ...any) *Problem {
	q := *p
	q.Fix = fmt.Sprintf(format, args...)
	return &q
}

// WithRetryAfter says when trying again may help.
func (p *Problem) WithRetryAfter(d time.Duration) *Problem {
	q := *p
	q.RetryAfter = d
	return &q
}

// WithEntry says where the refusal was entered.
func (p *Problem) WithEntry(index uint64) *Problem {
	q := *p
	q.Entry = index
	return &q
}

func (p *Problem) Error() string {
	return p.Kind.String() + " (" + string(p.Reason) + "): " + p.Message
}

func (p *Problem) Unwrap() error { return p.Err }

// Inside says whether the message is about the insides of the server (its paths, its store), and so for its log only.
func (p *Problem) Inside() bool {
	return p.Kind == Internal || p.Reason == ReasonStore || p.Reason == ReasonStoreFull
}

// WayOut is what the reader can do about it: the problem's own fix, or its reason's.
func (p *Problem) WayOut() string {
	if p.Fix != "" {
		return p.Fix
	}
	return p.Reason.Fix()
}

// As returns err as a Problem. An error from outside the vocabulary becomes Internal: its text is
// kept as the cause but not as the message, since nobody vouched that it may be shown.
func As(err error) *Problem {
	if err == nil {
		return nil
	}
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	return &Problem{Kind: Internal, Reason: ReasonInternal, Message: "unexpected failure", Err: err}
}

// KindOf is As(err).Kind; for a nil error it panics, because nil is not a failure.
func KindOf(err error) Kind { return As(err).Kind }

// Is reports whether err carries the given reason.
func Is(err error, r Reason) bool {
	var p *Problem
	return errors.As(err, &p) && p.Reason == r
}
