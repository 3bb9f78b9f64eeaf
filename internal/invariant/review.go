package invariant

import (
	"strings"
	"time"

	"github.com/bailment/bailment/internal/state"
)

// How old a review may be when it is entered, and how far ahead of the server's clock a signer's may be.
const (
	reviewLife  = hour
	reviewAhead = 5 * minute
)

// reviewHead is what stands above the lines of a signed review.
type reviewHead struct {
	bundle, person, nonce string
	signed                state.Millis
}

// readReview reads the head of a review, apart from package ceremony.
func readReview(text string) (reviewHead, bool) {
	var r reviewHead
	lines := strings.SplitN(text, "\n", 9)
	if len(lines) < 9 || lines[0] != "bailment access review v1" {
		return r, false
	}
	for i, to := range map[int]*string{4: &r.bundle, 5: &r.person, 7: &r.nonce} {
		_, *to, _ = strings.Cut(lines[i], " ")
	}
	_, at, _ := strings.Cut(lines[6], " ")
	t, err := time.Parse(time.RFC3339, at)
	r.signed = state.At(t)
	return r, err == nil && r.nonce != ""
}

// boundedReview checks that a review was signed just before it was entered: so its nonce needs no long memory.
func boundedReview(st *step, e *state.AccessReviewed, fail failure) {
	if r, _ := readReview(e.Text); r.signed > st.at+reviewAhead || st.at >= r.signed+reviewLife {
		fail("the review was signed at %s", r.signed)
	}
}

func (m *model) learnReview(e *state.AccessReviewed) {
	if r, ok := readReview(e.Text); ok {
		m.spend("n:"+r.nonce, r.signed+reviewLife)
	}
}
