package directory

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"strings"

	"estover.dev"
	"estover.dev/internal/guard"
)

// RecoveryCodes is how many recovery codes a person gets at a time.
const RecoveryCodes = 10

// A recovery code is 28 letters and digits in four groups, 140 random bits. It
// says by itself whose it is, and lets that person in once.
const (
	codeLength = 28
	codeGroup  = 7
)

// newCodes makes a set of recovery codes.
func newCodes() (codes []string, hashes [][32]byte) {
	for range RecoveryCodes {
		text := strings.ToLower(rand.Text() + rand.Text())[:codeLength]
		codes = append(codes, text[:codeGroup]+"-"+text[codeGroup:2*codeGroup]+"-"+text[2*codeGroup:3*codeGroup]+"-"+text[3*codeGroup:])
		hashes = append(hashes, codeHash(text))
	}
	return codes, hashes
}

// codeHash is what is stored of a code in its plain form.
func codeHash(plain string) [32]byte { return sha256.Sum256([]byte("recovery code " + plain)) }

// plainCode reads a code as somebody has typed it: groups, spaces and case do
// not matter, and digits that no code has are the letters that they look like.
func plainCode(typed string) (string, bool) {
	if len(typed) > 100 {
		return "", false
	}
	plain := strings.Map(func(r rune) rune {
		switch {
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		case r == '0':
			return 'o'
		case r == '1':
			return 'l'
		case r == '8':
			return 'b'
		case 'a' <= r && r <= 'z', '2' <= r && r <= '7':
			return r
		case r == '-', r == ' ', r == '\t', r == '\n', r == '\r':
			return -1
		}
		return '?'
	}, typed)
	return plain, len(plain) == codeLength && !strings.Contains(plain, "?")
}

// NewRecoveryCodes gives the caller, who is a person, new recovery codes in the
// place of those they had. They are shown once.
func (d *Directory) NewRecoveryCodes(ctx context.Context, caller estover.Caller) ([]string, error) {
	if caller.Subject.Kind() != estover.UserKind || len(caller.Actors) > 0 {
		return nil, ErrNotAPerson
	}
	codes, hashes := newCodes()
	op := guard.Op{Action: "recovery.create", Target: string(caller.Subject)}
	err := d.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		if _, err := lock(ctx, tx.Tx, caller.Subject.ID()); err != nil {
			return err
		}
		return replaceCodes(ctx, tx.Tx, caller.Subject.ID(), hashes)
	})
	return codes, err
}
