package pagetest

import (
	"testing"

	"estover.dev/internal/page/softkey"
)

// An Authenticator holds the passkeys of whoever sits at a browser. What it does
// wrongly is for a test to say.
type Authenticator struct {
	T testing.TB
	softkey.Authenticator
}

// Create makes a passkey as the options of a page say, and gives the answer.
func (a *Authenticator) Create(options string) string {
	a.T.Helper()
	answer, err := a.Authenticator.Create(options)
	if err != nil {
		a.T.Fatal(err)
	}
	return answer
}

// Get signs with the last passkey that was made, and gives the answer.
func (a *Authenticator) Get(options string) string {
	a.T.Helper()
	answer, err := a.Authenticator.Get(options)
	if err != nil {
		a.T.Fatal(err)
	}
	return answer
}
