// Package spell finds the word that was probably meant.
package spell

import (
	"strings"
	"unicode/utf8"
)

// Nearest is the valid word that was probably meant, or "": a third of its
// letters may be other ones, missing or too many, two of a short word. Of those
// that are as near it is the first in the alphabet.
func Nearest(word string, valid []string) string {
	if len(word) > 100 {
		return ""
	}
	best, at := "", max(2, utf8.RuneCountInString(word)/3)+1
	for _, v := range valid {
		d := distance(strings.ToLower(word), v)
		if d < at || d == at && best != "" && v < best {
			best, at = v, d
		}
	}
	if at >= utf8.RuneCountInString(word) { // nothing of it is left
		return ""
	}
	return best
}

// distance counts the letters to change, add or take away (Levenshtein).
func distance(a, b string) int {
	ra, rb := []rune(a), []rune(b)
	row := make([]int, len(rb)+1)
	for j := range row {
		row[j] = j
	}
	for i, x := range ra {
		diagonal := row[0]
		row[0] = i + 1
		for j, y := range rb {
			cost := diagonal
			if x != y {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(rb)]
}
