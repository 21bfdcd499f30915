package token

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/opaque"
)

// Refresh is the grant type that renews a grant. A refresh token belongs to a
// grant, and the grant is its family: each is spent for a successor, and the
// one that is presented again after it was spent ends all of it.
//
//	live ──refresh──▶ spent, with its successor sealed ──10 s──▶ spent
//	                     └─ asked again by the same client: the same successor
//
// The successor is sealed under the value that was spent, of which nothing is
// stored, and so only whoever had that value gets it.
const Refresh = "refresh_token"

// RetryWindow is how long a client that did not hear the answer may ask again.
const RetryWindow = 10 * time.Second

// refreshPrefix begins every refresh token, and no access token.
const refreshPrefix = "est_rt_"

// ErrRefresh is returned for a refresh token that buys nothing.
var ErrRefresh = &estover.Error{Kind: estover.Conflict, Code: "refresh_invalid", Detail: "The refresh token is not known, has expired or belongs to another client."}

// A Renewal is the refresh token that goes out along with an access token: the
// first of its family, or the successor of one that is presented.
type Renewal struct {
	presented *RefreshToken
	key       string // that the successor is bound to
	next      string // that goes out, once it is known
}

// FirstRenewal begins a family. Its tokens are bound to a key, unless it is "".
func FirstRenewal(key string) *Renewal { return &Renewal{key: key} }

// A RefreshToken is one as it was made.
type RefreshToken struct {
	Grant *Grant
	Key   string // jkt that must be shown with it; "" for none

	value      string
	key        [32]byte // that its row is found by
	generation int64
	spent      time.Time
	spentKey   string
	successor  []byte
}

// RefreshToken looks at a refresh token, and does not spend it. Its grant is the
// copy in memory: reading that anew, with what was revoked of it, was a quarter of
// the work of a refresh, and the transaction that spends the token makes sure that
// the grant lives.
func (t *Tokens) RefreshToken(ctx context.Context, tenant estover.TenantID, value string) (*RefreshToken, error) {
	if !opaque.Check(value, opaque.RefreshToken) {
		return nil, ErrRefresh
	}
	r := &RefreshToken{value: value}
	var grant string
	var err error
	// Those that were made before there was a time in them are found by their hash.
	for _, key := range [][32]byte{opaque.Key(value), opaque.Hash(value)} {
		r.key = key
		err = t.guard.DB().Look(ctx, tenant, func(tx *db.Tx) (err error) {
			grant, err = findRefresh(ctx, tx, r)
			return err
		})
		if !errors.Is(err, ErrRefresh) {
			break
		}
	}
	if err != nil {
		return r, err
	}
	r.Grant, err = t.grants.Get(ctx, tenant, grant)
	return r, err
}

// Again reports whether the token was spent and is not asked for again by the
// same client with the same key in time, but by somebody else or too late.
func (r *RefreshToken) Again(now time.Time, key string) bool {
	return !r.spent.IsZero() && (now.Sub(r.spent) > RetryWindow || key != r.spentKey || r.successor == nil)
}

// Renew is the renewal that spends the token. The key is the one that was
// shown, and what the successor is bound to if this one was bound.
func (r *RefreshToken) Renew() *Renewal { return &Renewal{presented: r, key: r.Key} }

// exchange is renew where it can be said beforehand what is to be written: the
// token that was presented is not known to be spent.
func (n *Renewal) exchange(tenant estover.TenantID, g *Grant, key string, now time.Time) (*db.Step, db.Row, error) {
	n.next = opaque.NewOrdered(opaque.RefreshToken)
	sealed, err := sealSuccessor(n.presented.value, n.next)
	if err != nil {
		return nil, db.Row{}, err
	}
	step := &db.Step{Text: spendText, Args: []any{n.presented.key[:], now, key, sealed}}
	return step, refreshRow(tenant, n.next, g, n.presented.generation+1, n.key, now), nil
}

// renew spends the refresh token that was presented and stores its successor,
// or the first one of the grant. key was shown along with the request.
func (n *Renewal) renew(ctx context.Context, tx *guard.Tx, g *Grant, key string) error {
	n.next = opaque.NewOrdered(opaque.RefreshToken)
	if n.presented == nil {
		tx.Note("refresh_token", "first")
		return tx.Insert(ctx, refreshRow(tx.Tenant(), n.next, g, 1, n.key, tx.Now()))
	}
	p := n.presented
	sealed, err := sealSuccessor(p.value, n.next)
	if err != nil {
		return err
	}
	spent, err := spendRefresh(ctx, tx.Tx, p.key, key, sealed)
	if err != nil {
		return err
	}
	if spent {
		tx.Note("refresh_token", p.generation+1)
		return tx.Insert(ctx, refreshRow(tx.Tenant(), n.next, g, p.generation+1, n.key, tx.Now()))
	}
	now := RefreshToken{key: p.key}
	if _, err := findRefresh(ctx, tx.Tx, &now); err != nil {
		return err
	}
	if now.Again(tx.Now(), key) {
		return ErrPresentedTwice
	}
	tx.Note("refresh_token", "again")
	n.next, err = openSuccessor(p.value, now.successor)
	return err
}

// successorSeal is the key that a successor is sealed under: made of the value
// that was spent for it.
func successorSeal(spent string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, []byte(spent), nil, "estover refresh successor", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func sealSuccessor(spent, successor string) ([]byte, error) {
	aead, err := successorSeal(spent)
	if err != nil {
		return nil, err
	}
	return aead.Seal(nil, nil, []byte(successor), nil), nil
}

func openSuccessor(spent string, sealed []byte) (string, error) {
	aead, err := successorSeal(spent)
	if err != nil {
		return "", err
	}
	plain, err := aead.Open(nil, nil, sealed, nil)
	return string(plain), err
}

// EraseSuccessors forgets the successors that nobody may ask for again, of all
// tenants.
func (t *Tokens) EraseSuccessors(ctx context.Context) error {
	return t.guard.DB().Do(ctx, "", func(tx *db.Tx) error { return eraseSuccessors(ctx, tx) })
}

// revokeRefresh ends the grant of a refresh token with all that came from it
// (RFC 7009, section 2.1).
func (t *Tokens) revokeRefresh(ctx context.Context, caller estover.Caller, client *Client, raw string) (bool, error) {
	r, err := t.RefreshToken(ctx, caller.Tenant, raw)
	switch kind := estover.KindOf(err); {
	case err != nil && (kind == estover.Fault || kind == estover.Unavailable):
		return false, err
	case err != nil, client != nil && r.Grant.Client != client.ID, r.Grant.live(t.guard.DB().Now()) != nil:
		return false, nil
	}
	target := r.Grant.Subject
	if client != nil {
		target = client.Subject
	}
	op := guard.Op{
		Action: "token.revoke", Target: string(target), Session: r.Grant.Session,
		Detail: map[string]any{"token": record{Client: r.Grant.Client, Grant: r.Grant.ID}},
	}
	return true, t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		return t.Sessions.EndWithin(ctx, tx, r.Grant.Session, "the refresh token was revoked")
	})
}
