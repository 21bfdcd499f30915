// Package guardtest makes doors for tests: the real guard and the real log,
// with a decider of the test's own.
package guardtest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Decider is a function that decides.
type Decider func(caller estover.Caller, op guard.Op) guard.Decision

// Decide calls the function.
func (f Decider) Decide(_ context.Context, caller estover.Caller, op guard.Op) (guard.Decision, error) {
	return f(caller, op), nil
}

// AllowAll allows everything.
var AllowAll = Decider(func(estover.Caller, guard.Op) guard.Decision { return guard.Decision{Allow: true, Engine: "policy"} })

// DenyAll refuses everything.
var DenyAll = Decider(func(estover.Caller, guard.Op) guard.Decision {
	return guard.Decision{Reasons: []string{"denied_by_test"}, Message: "The test says no.", Engine: "policy"}
})

// New is a door to d with a log whose payloads are sealed under a key that
// nobody keeps.
func New(t testing.TB, d *db.DB, decider guard.Decider) *guard.Guard {
	return guard.New(d, Log(t, d), decider, guard.Options{})
}

// Log is the log in d, its payloads sealed under a key that nobody keeps.
func Log(t testing.TB, d *db.DB) *audit.Log {
	t.Helper()
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	_, sign, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return audit.Open(d, audit.Options{
		Key: func(context.Context, estover.TenantID) (crypto.Signer, error) { return sign, nil },
		Seal: func(tenant estover.TenantID, id string, plain []byte) ([]byte, error) {
			return aead.Seal(nil, nil, plain, []byte(string(tenant)+"\x00"+id)), nil
		},
		Open: func(tenant estover.TenantID, id string, sealed []byte) ([]byte, error) {
			return aead.Open(nil, nil, sealed, []byte(string(tenant)+"\x00"+id))
		},
	})
}

// Recorded is how many events there are of an action with an outcome, "" for any,
// whichever node of the test wrote them. Those that came at once may share a row, which
// has what they say of themselves one behind the other.
func Recorded(t testing.TB, d *db.DB, tenant estover.TenantID, action string, outcome audit.Outcome) (n int) {
	t.Helper()
	said, err := cbor.Marshal(action)
	if err == nil && outcome != "" {
		var how []byte
		how, err = cbor.Marshal(string(outcome))
		said = append(said, how...)
	}
	if err != nil {
		t.Fatal(err)
	}
	err = d.View(t.Context(), tenant, func(tx *db.Tx) error {
		n = 0
		rows, err := tx.Query(t.Context(), "select action, outcome, heads from audit where tenant_id = $1", tenant)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			var what, how string
			var heads []byte
			switch err := rows.Scan(&what, &how, &heads); {
			case err != nil:
				return err
			case len(heads) > 0:
				n += bytes.Count(heads, said)
			case what == action && (outcome == "" || how == string(outcome)):
				n++
			}
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
