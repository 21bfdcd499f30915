package token

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/jose"
	"estover.dev/internal/seal"
)

// keyKind is the kind of the copies of signing keys that an event touches.
const keyKind = "signing_key"

// A Key is a signing key as whoever looks after the server sees it.
type Key struct {
	ID         string        `json:"id"` // kid, the thumbprint of the public half
	Purpose    jose.Purpose  `json:"purpose"`
	Algorithm  string        `json:"alg"`
	State      seal.KeyState `json:"state"`
	Generation int64         `json:"generation"` // 1 for the first key of its purpose
	CreatedAt  time.Time     `json:"created_at"`
	SignsFrom  time.Time     `json:"signs_from"`
	LeavesAt   time.Time     `json:"leaves_at,omitzero"` // when it leaves the key set
	RevokedAt  time.Time     `json:"revoked_at,omitzero"`
}

// ErrNotRotated is returned for a purpose whose keys sign no tokens.
var ErrNotRotated = &estover.Error{Kind: estover.Invalid, Code: "key_not_rotated", Detail: "Only keys that sign tokens are rotated.", Field: "purpose"}

// ListKeys lists all signing keys that the tenant has ever had, by purpose and
// generation. Their public halves are no secret, and stay known.
func (t *Tokens) ListKeys(ctx context.Context, caller estover.Caller) (list []Key, err error) {
	if err = t.guard.Read(ctx, caller, guard.Op{Action: "key.list"}, func(*db.Tx) error { return nil }); err != nil {
		return nil, err
	}
	if err := t.Keys.Fresh(ctx, caller.Tenant); err != nil {
		return nil, err
	}
	keys, err := t.Keys.Public(ctx, caller.Tenant)
	for _, k := range keys {
		list = append(list, Key{
			ID: k.KID, Purpose: k.Purpose, Algorithm: k.Alg, State: k.State, Generation: k.Generation,
			CreatedAt: k.Created, SignsFrom: k.From, LeavesAt: k.Until, RevokedAt: k.Revoked,
		})
	}
	return list, err
}

// ErrNoReason is returned for an emergency of which nothing is said.
var ErrNoReason = &estover.Error{Kind: estover.Invalid, Code: "reason_missing", Detail: "An emergency has a reason (--reason), for those who find their tokens refused.", Field: "reason"}

// A Rotation is what became of the keys of a purpose.
type Rotation struct {
	Purpose   jose.Purpose `json:"purpose"`
	Key       string       `json:"key"` // the next one
	SignsFrom time.Time    `json:"signs_from"`
	Revoked   []string     `json:"revoked,omitempty"`
	Already   bool         `json:"already,omitempty"` // it was made before, and nothing was done
}

// RotateKey gives a purpose of tokens its next signing key
// ([seal.Keyring.Rotate]). In an emergency it signs at once, the others are
// revoked, and nothing that they signed is valid any more.
func (t *Tokens) RotateKey(ctx context.Context, caller estover.Caller, purpose jose.Purpose, emergency bool, reason string) (Rotation, error) {
	op := guard.Op{Action: "key.rotate", Effect: guard.Manages, Detail: map[string]any{"purpose": purpose, "emergency": emergency, "reason": reason}}
	decision, err := t.guard.Admit(ctx, caller, op)
	if err != nil {
		return Rotation{}, err
	}
	if !seal.SignsTokens(purpose) {
		return Rotation{}, ErrNotRotated.With("There are no keys that sign tokens for %q. `estover key list` shows which there are.", purpose)
	}
	if emergency && reason == "" {
		return Rotation{}, ErrNoReason
	}
	c, err := t.Keys.Rotate(ctx, caller.Tenant, purpose, emergency, t.recordKeys(caller, op, decision))
	return Rotation{Purpose: purpose, Key: c.Made, SignsFrom: c.From, Revoked: c.Revoked, Already: c.Already}, err
}

// recordOwn records what the keyring does by itself.
func (t *Tokens) recordOwn(ctx context.Context, c seal.Change, write func(context.Context, *db.Tx) error) error {
	system := estover.Caller{Tenant: c.Tenant, Subject: estover.System("keyring")}
	op := guard.Op{Action: "key.rotate", Effect: guard.Manages, Detail: map[string]any{"purpose": c.Purpose}}
	// The schedule is the operator's, and the first key of a purpose is nobody's
	// choice: there is nothing for policy to say.
	return t.recordKeys(system, op, guard.Decision{Allow: true})(ctx, c, write)
}

// recordKeys records a change as the operation that was decided on, and lets
// other nodes know.
func (t *Tokens) recordKeys(caller estover.Caller, op guard.Op, d guard.Decision) seal.Recorder {
	if d.ID == "" {
		d.ID = audit.NewID()
	}
	return func(ctx context.Context, c seal.Change, write func(context.Context, *db.Tx) error) error {
		return t.guard.Act(ctx, caller, op, d, func(tx *guard.Tx) error {
			tx.SetTarget("key:" + c.Made)
			tx.Note("from", c.From)
			tx.Note("revoked", c.Revoked)
			tx.Touch(keyKind, string(c.Purpose))
			return write(ctx, tx.Tx)
		})
	}
}

// verify checks a token of ours. A key that is not known may be one that another
// node has just made, so it is looked for once more.
func (t *Tokens) verify(ctx context.Context, tenant estover.TenantID, purpose jose.Purpose, raw string, want jose.Expected) (*jose.Claims, *jose.Keys, error) {
	keys, err := t.Keys.Verifying(ctx, tenant, purpose)
	if err != nil {
		return nil, nil, err
	}
	c, err := jose.Verify(purpose, keys, raw, want)
	if !errors.Is(err, jose.ErrUnknownKey) {
		return c, keys, err
	}
	if err := t.Keys.Fresh(ctx, tenant); err != nil {
		return nil, nil, err
	}
	newer, broken := t.Keys.Verifying(ctx, tenant, purpose)
	if broken != nil || newer == keys {
		return nil, nil, cmp.Or(broken, err)
	}
	c, err = jose.Verify(purpose, newer, raw, want)
	return c, newer, err
}

// replaced reports whether one of the keys that were to sign was revoked. Its
// successor is known by then.
func (t *Tokens) replaced(ctx context.Context, tenant estover.TenantID, signers []db.Epoch) bool {
	if err := t.Keys.Fresh(ctx, tenant); err != nil {
		return false
	}
	keys, err := t.Keys.Public(ctx, tenant)
	return err == nil && slices.ContainsFunc(keys, func(k seal.PublicKey) bool {
		return k.State == seal.KeyRevoked && slices.ContainsFunc(signers, func(e db.Epoch) bool { return e.ID == k.KID })
	})
}
