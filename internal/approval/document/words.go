package document

import "strings"

// The words of fingerprints are made of a beginning and an ending, 64 and 32 of
// them: 2,048 words of five letters, which can be said and mean nothing.
const (
	onsets  = "bdfghklmnprstvwz" // 16
	vowels  = "aeio"             // 4
	middles = "bdgklmnt"         // 8
)

var endings = [...]string{"an", "el", "is", "or"}

// Words is how many words a fingerprint has, and Bits how many bits each of them
// stands for.
const (
	Words = 8
	Bits  = 11
)

// word is the word with this number, below 2,048.
func word(n int) string {
	head, tail := n>>5, n&31
	return string([]byte{onsets[head>>2], vowels[head&3], middles[tail>>2]}) + endings[tail&3]
}

// Fingerprint is eight words that stand for the first 88 bits of a document's
// digest. Who sees the same words in two places sees the same document there.
func Fingerprint(text []byte) string {
	digest := Digest(text)
	words := make([]string, 0, Words)
	bits, have, next := 0, 0, 0
	for len(words) < Words {
		for have < Bits {
			bits, have, next = bits<<8|int(digest[next]), have+8, next+1
		}
		have -= Bits
		words = append(words, word(bits>>have&(1<<Bits-1)))
		bits &= 1<<have - 1
	}
	return strings.Join(words, " ")
}
