package ceremony

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Decision is what a reviewer says of a line.
type Decision string

// The decisions. None has an effect by itself: what takes access away is a change of the bundle, which others approve.
const (
	Keep   Decision = "keep"
	Narrow Decision = "narrow"
	Remove Decision = "remove"
)

// What a review says of a line's last use where that is no time.
const (
	NeverUsed  = "never" // within what is remembered
	UseUnknown = "-"     // uses of this sort are not remembered
)

// Review is what an operator signs who has reviewed access, in namespace change@bailment: a decision for each of some lines of a bundle.
type Review struct {
	Scope
	Bundle string // digest of the manifest in force
	Person string
	Time   time.Time // of signing, to the second
	Nonce  string    // 32 hex digits
	Lines  []ReviewLine
}

// ReviewLine is who has what, by which grant, as the reviewer saw it, and the decision.
type ReviewLine struct {
	Decision Decision
	Grant    string
	Identity string // a pattern, as the bundle has it
	Secret   string // a pattern, as the bundle has it
	LastUsed string // RFC 3339 in UTC, NeverUsed or UseUnknown: what the reviewer was shown
}

// Compare orders lines by what they are about.
func (l ReviewLine) Compare(other ReviewLine) int {
	return cmp.Or(strings.Compare(l.Grant, other.Grant), strings.Compare(l.Identity, other.Identity), strings.Compare(l.Secret, other.Secret))
}

// Text is the line as it is signed, without its end.
func (l ReviewLine) Text() string {
	return strings.Join([]string{string(l.Decision), l.Grant, l.Identity, l.Secret, l.LastUsed}, " ")
}

const reviewTitle = "bailment access review v1"

// MaxReview is the most bytes a review's text may have, so that it fits into an entry with its signature. Who reviews more signs several.
const MaxReview = 24 << 10

// Text is the text to sign.
func (r Review) Text() string {
	var b strings.Builder
	r.lines(&b, reviewTitle)
	b.WriteString("bundle " + r.Bundle + "\n")
	b.WriteString("person " + r.Person + "\n")
	b.WriteString("time " + r.Time.UTC().Format(time.RFC3339) + "\n")
	b.WriteString("nonce " + r.Nonce + "\n")
	for _, l := range r.Lines {
		b.WriteString(l.Text() + "\n")
	}
	return b.String()
}

// ParseReview reads a text back. It accepts exactly what Text writes of a review that has lines, each with a decision, in their order and
// none twice.
func ParseReview(text string) (Review, error) {
	var r Review
	bad := fmt.Errorf("not the text of an access review of this version")
	if len(text) > MaxReview {
		return r, fmt.Errorf("the text of an access review has over %d bytes", MaxReview)
	}
	names := []string{"environment", "genesis", "epoch", "bundle", "person", "time", "nonce"}
	v, rest, ok := head(text, reviewTitle, names)
	if !ok || len(rest) == 0 || r.read(v) != nil {
		return r, bad
	}
	for _, line := range rest {
		l, err := ParseReviewLine(line)
		if err != nil {
			return r, err
		}
		if n := len(r.Lines); n > 0 && r.Lines[n-1].Compare(l) >= 0 {
			return r, fmt.Errorf("the lines of an access review are not in their order, or one is there twice")
		}
		r.Lines = append(r.Lines, l)
	}
	if r.Text() != text {
		return r, bad
	}
	return r, nil
}

func (r *Review) read(v map[string]string) error {
	var err error
	if r.Scope, err = readScope(v); err != nil {
		return err
	}
	r.Bundle, r.Person, r.Nonce = v["bundle"], v["person"], v["nonce"]
	r.Time, err = time.Parse(time.RFC3339, v["time"])
	return err
}

// ParseReviewLine reads a line of a review, with a decision.
func ParseReviewLine(line string) (ReviewLine, error) {
	f := strings.Split(line, " ")
	if len(f) != 5 {
		return ReviewLine{}, fmt.Errorf("a line of an access review is a decision, a grant, an identity, a secret and the last use")
	}
	l := ReviewLine{Decision: Decision(f[0]), Grant: f[1], Identity: f[2], Secret: f[3], LastUsed: f[4]}
	if !slices.Contains([]Decision{Keep, Narrow, Remove}, l.Decision) {
		return l, fmt.Errorf("a line of an access review begins with %s, %s or %s", Keep, Narrow, Remove)
	}
	for _, x := range f[1:] {
		if x == "" || strings.ContainsFunc(x, func(c rune) bool { return c <= ' ' || c > '~' || c == '"' || c == '\\' }) {
			return l, fmt.Errorf("a line of an access review has a name that is none")
		}
	}
	if l.LastUsed != NeverUsed && l.LastUsed != UseUnknown {
		if t, err := time.Parse(time.RFC3339, l.LastUsed); err != nil || t.UTC().Format(time.RFC3339) != l.LastUsed {
			return l, fmt.Errorf("the last use in a line of an access review is a time such as 2026-11-22T15:00:00Z, %q or %q", NeverUsed, UseUnknown)
		}
	}
	return l, nil
}
