// Package spelling finds the word that was meant when another one was written: a field of a file, a
// method, a name in a scope. It guesses for messages only. Nothing is ever accepted because it is
// near to what would have been right.
package spelling

import (
	"fmt"
	"iter"
)

// longest is the length in bytes beyond which DidYouMean does not compare: the cost is the product
// of both lengths, and what was written may be a megabyte.
const longest = 64

// Distance is the edit distance of two words in bytes (Levenshtein: insertions, deletions and
// substitutions). It costs len(a)*len(b) steps; callers limit both.
func Distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// DidYouMean is the end of a message about an unknown word, `: did you mean "word"?`, if one of the
// known words is at most two edits away, and less than got is long; the nearest, and of equally near
// ones the first in the alphabet. Otherwise it is empty.
func DidYouMean(got string, known iter.Seq[string]) string {
	if len(got) > longest {
		return ""
	}
	best, least := "", min(3, len(got))
	for word := range known {
		if len(word) > longest {
			continue
		}
		if d := Distance(got, word); d < least || d == least && best != "" && word < best {
			best, least = word, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(": did you mean %q?", best)
}
