package token

import (
	"context"
	"crypto/sha256"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

// ErrReplayed is returned when something that may be presented once was
// presented again.
var ErrReplayed = &estover.Error{Kind: estover.Unknown, Code: "assertion_replayed", Detail: "This assertion was presented before. Sign one with a new jti for each request."}

// A Used is a name that may be presented once until a time: the jti of an
// assertion or a proof.
type Used struct {
	By      string // who presented it: the client, the issuer, the key
	Name    string
	Expires time.Time
	Again   *estover.Error // what it is to present it again; nil for [ErrReplayed]
}

// again is the error of presenting it a second time.
func (u Used) again() *estover.Error {
	if u.Again == nil {
		return ErrReplayed
	}
	return u.Again
}

// hash stands for the name in the table: of one size, whatever was presented.
func (u Used) hash() []byte {
	h := sha256.New()
	h.Write([]byte(u.By))
	h.Write([]byte{0})
	h.Write([]byte(u.Name))
	return h.Sum(nil)
}

// IsUsed returns the error of the first that was presented before, nil if none
// was, for requests that would change something before they come to
// [Tokens.Issue]. Only Issue makes sure.
func (t *Tokens) IsUsed(ctx context.Context, tenant estover.TenantID, use []Used) error {
	if len(use) == 0 {
		return nil
	}
	return t.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		for _, u := range use {
			if used, err := isUsed(ctx, tx, u); err != nil {
				return err
			} else if used {
				return u.again()
			}
		}
		return nil
	})
}

// Consume marks as presented what a request presents once, when the request
// writes nothing else. [ErrReplayed] if it was presented before.
func (t *Tokens) Consume(ctx context.Context, tenant estover.TenantID, use []Used) error {
	if len(use) == 0 {
		return nil
	}
	r := Request{Caller: estover.Caller{Tenant: tenant}, Use: use}
	return t.replayed(ctx, r, t.guard.DB().Append(ctx, db.Append{Tenant: tenant, Rows: r.rows()}))
}

// Sweep forgets what has expired: the names of assertions and the revocations
// of tokens that nobody could present any more. There is nothing to record.
func (t *Tokens) Sweep(ctx context.Context) (n int64, err error) {
	err = t.guard.DB().Do(ctx, "", func(tx *db.Tx) error {
		n, err = sweep(ctx, tx)
		return err
	})
	return n, err
}
