package ceremony

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Verdict is what a reviewer says of an opening of a break-glass grant.
type Verdict string

// The verdicts. Neither has an effect by itself: what follows from an opening that was not justified is for people.
const (
	Justified    Verdict = "justified"
	NotJustified Verdict = "not-justified"
)

// GlassReview is what an operator signs who has reviewed that somebody else broke the glass, in namespace change@bailment: what was opened
// and what came of it, as the reviewer saw it, and what he says of it.
type GlassReview struct {
	Scope
	Opening  uint64 // index of its entry
	Grant    string
	Opener   string // path of the person
	Incident string
	Opened   time.Time // in milliseconds, as the entry has it
	Closed   time.Time // when it was over
	Uses     int       // how often the grant decided while it was open
	Secrets  []string  // what it was used for, in ascending order
	Beyond   int       // uses for secrets that are not named, since there are too many
	Verdict  Verdict
	Person   string    // who reviews
	Time     time.Time // of signing, to the second
	Nonce    string    // 32 hex digits
	Findings string    // what the reviewer writes, in lines
}

const (
	glassTitle = "bailment break-glass review v1"
	// MaxGlassReview is the most bytes a review's text may have, so that it fits into an entry with its signature.
	MaxGlassReview = 24 << 10
	// MaxFindings is the most bytes of what a reviewer writes.
	MaxFindings = 4 << 10
	minFindings = 20

	glassTime = "2006-01-02T15:04:05.000Z"
	quoted    = "> "
)

// Text is the text to sign.
func (g GlassReview) Text() string {
	var b strings.Builder
	g.lines(&b, glassTitle)
	for _, x := range [...][2]string{
		{"opening", strconv.FormatUint(g.Opening, 10)},
		{"grant", g.Grant},
		{"opener", g.Opener},
		{"incident", g.Incident},
		{"opened", g.Opened.UTC().Format(glassTime)},
		{"closed", g.Closed.UTC().Format(glassTime)},
		{"uses", strconv.Itoa(g.Uses)},
		{"beyond", strconv.Itoa(g.Beyond)},
		{"verdict", string(g.Verdict)},
		{"person", g.Person},
		{"time", g.Time.UTC().Format(time.RFC3339)},
		{"nonce", g.Nonce},
	} {
		b.WriteString(x[0] + " " + x[1] + "\n")
	}
	for _, s := range g.Secrets {
		b.WriteString("secret " + s + "\n")
	}
	for line := range strings.SplitSeq(g.Findings, "\n") {
		b.WriteString(quoted + line + "\n")
	}
	return b.String()
}

// ParseGlassReview reads a text back. It accepts exactly what Text writes of a review that has a verdict and findings.
func ParseGlassReview(text string) (GlassReview, error) {
	var g GlassReview
	bad := fmt.Errorf("not the text of a break-glass review of this version")
	if len(text) > MaxGlassReview {
		return g, fmt.Errorf("the text of a break-glass review has over %d bytes", MaxGlassReview)
	}
	names := []string{
		"environment", "genesis", "epoch", "opening", "grant", "opener", "incident", "opened", "closed", "uses", "beyond", "verdict", "person", "time", "nonce",
	}
	v, rest, ok := head(text, glassTitle, names)
	if !ok || g.read(v) != nil {
		return g, bad
	}
	var findings []string
	for _, line := range rest {
		switch secret, is := strings.CutPrefix(line, "secret "); {
		case is && findings == nil:
			g.Secrets = append(g.Secrets, secret)
		case strings.HasPrefix(line, quoted):
			findings = append(findings, line[len(quoted):])
		default:
			return g, bad
		}
	}
	g.Findings = strings.Join(findings, "\n")
	if err := ValidFindings(g.Findings); err != nil {
		return g, err
	}
	if !slices.IsSorted(g.Secrets) || g.Text() != text {
		return g, bad
	}
	return g, nil
}

func (g *GlassReview) read(v map[string]string) (err error) {
	if g.Scope, err = readScope(v); err != nil {
		return err
	}
	g.Grant, g.Opener, g.Incident, g.Verdict, g.Person, g.Nonce = v["grant"], v["opener"], v["incident"], Verdict(v["verdict"]), v["person"], v["nonce"]
	if g.Verdict != Justified && g.Verdict != NotJustified {
		return fmt.Errorf("the verdict is %s or %s", Justified, NotJustified)
	}
	if g.Opening, err = strconv.ParseUint(v["opening"], 10, 64); err != nil {
		return err
	}
	for name, to := range map[string]*time.Time{"opened": &g.Opened, "closed": &g.Closed} {
		if *to, err = time.Parse(glassTime, v[name]); err != nil {
			return err
		}
	}
	for name, to := range map[string]*int{"uses": &g.Uses, "beyond": &g.Beyond} {
		if *to, err = strconv.Atoi(v[name]); err != nil || *to < 0 {
			return fmt.Errorf("%s is no number", name)
		}
	}
	g.Time, err = time.Parse(time.RFC3339, v["time"])
	return err
}

// ValidFindings says what is wrong with what a reviewer wrote: it is text in lines, and says something.
func ValidFindings(text string) error {
	switch {
	case len(strings.TrimSpace(text)) < minFindings:
		return fmt.Errorf("a break-glass review says in words what was found, with %d characters at the least", minFindings)
	case len(text) > MaxFindings:
		return fmt.Errorf("the findings of a break-glass review have over %d bytes", MaxFindings)
	case !utf8.ValidString(text), strings.ContainsFunc(text, func(c rune) bool { return c != '\n' && !unicode.IsPrint(c) }):
		return fmt.Errorf("the findings of a break-glass review are lines of text, without control characters")
	}
	return nil
}
