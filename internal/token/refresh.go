package token

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"time"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/opaque"
)

// Refresh is the grant type that renews a grant. A refresh token belongs to a
// family, and that to a grant: each is spent for a successor, and the one that is
// presented again after it was spent ends all of it.
//
//	live ──refresh──▶ spent ──10 s──▶ presented again, ends the grant
//	                    └─ asked again by the same client: the same successor
//
// A family is one row, which has the hash of the one token that is good. All its
// tokens begin alike, with what is not to be guessed and is stored nowhere: so what begins
// with it and is not the good one was spent, however long ago (RFC 9700, section
// 4.14.2).
//
// The successor is made of the value that was spent and of a key of those few seconds,
// which all families share, so that only whoever had that value gets it again. With
// the key it is gone.
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

	// What the commit writes, and what its event says of it.
	made family // as the family is from then on
	step *db.Step
	rows []db.Row
	told any
}

// FirstRenewal begins a family. Its tokens are bound to a key, unless it is "".
func FirstRenewal(key string) *Renewal { return &Renewal{key: key} }

// A RefreshToken is one that was presented, as its family was when it was looked at.
type RefreshToken struct {
	Grant *Grant
	Key   string // jkt that must be shown with it; "" for none

	value  string
	hash   []byte // by which its family knows it
	family family
	copied bool   // whether that is what memory has of it
	spent  bool   // whether another one is the good one
	after  string // its successor, while that may be asked for again
}

// RefreshToken looks at a refresh token, and does not spend it. Its grant is the
// copy in memory, and so is its family if the token is to be spent and is the good one as
// far as this node knows: reading them anew was a third of the work of a refresh. The
// commit that spends the token makes sure of both, and if it comes to no commit,
// [Tokens.Refuse] does.
func (t *Tokens) RefreshToken(ctx context.Context, tenant estover.TenantID, value string, spends bool) (*RefreshToken, error) {
	r := &RefreshToken{value: value}
	if opaque.InFamily(value, opaque.RefreshToken) {
		hash := opaque.Hash(value)
		r.hash, r.family.id = hash[:], opaque.Family(value)
		if f, ok := t.families.get(tenant, r.family.id); ok && spends && bytes.Equal(f.hash, r.hash) {
			r.family, r.copied = f, true
		} else if err := t.look(ctx, tenant, r); err != nil {
			return r, err
		}
	} else if err := t.older(ctx, tenant, r); err != nil {
		return r, err
	}
	r.Key = r.family.key
	var err error
	if r.Grant, err = t.grants.Get(ctx, tenant, r.family.grant); err == nil && !t.guard.DB().Now().Before(r.Grant.Expires) {
		err = ErrRefresh
	}
	return r, err
}

// older looks at a token that was made before there were families. Each has a row to
// itself, which is found by its first bytes and the rest of its hash, or by its hash.
func (t *Tokens) older(ctx context.Context, tenant estover.TenantID, r *RefreshToken) (err error) {
	if !opaque.Check(r.value, opaque.RefreshToken) {
		return ErrRefresh
	}
	for _, id := range [][32]byte{opaque.Key(r.value), opaque.Hash(r.value)} {
		r.family.id, r.hash = id, id[:]
		if err = t.look(ctx, tenant, r); !errors.Is(err, ErrRefresh) {
			return err
		}
	}
	return err
}

func (t *Tokens) look(ctx context.Context, tenant estover.TenantID, r *RefreshToken) error {
	err := t.guard.DB().Look(ctx, tenant, func(tx *db.Tx) (err error) {
		r.family, err = findFamily(ctx, tx, r.family.id)
		return err
	})
	if err != nil {
		return err
	}
	r.copied, r.spent, r.after = false, !bytes.Equal(r.family.hash, r.hash), ""
	now := t.guard.DB().Now()
	if turned := r.family.turned; !r.spent || now.Sub(turned) > RetryWindow || turned.Sub(now) > kept {
		return nil // also if the clock was set back: the time of a retry does not come again
	}
	var keys []window
	err = t.guard.DB().Look(ctx, "", func(tx *db.Tx) (err error) {
		keys, err = windowsBetween(ctx, tx, windowOf(now.Add(-RetryWindow)), windowOf(r.family.turned))
		return err
	})
	if err == nil {
		r.after, err = r.family.after(r.value, keys, now, maxRetried)
	}
	if err != nil || r.after == "" || r.family.hash != nil {
		return err
	}
	// Of an older one the successor has a family of its own, if it was made like this.
	err = t.guard.DB().Look(ctx, tenant, func(tx *db.Tx) error {
		_, err := findFamily(ctx, tx, opaque.Family(r.after))
		return err
	})
	if errors.Is(err, ErrRefresh) {
		r.after, err = "", nil
	}
	return err
}

// Again reports whether the token was spent and is not asked for again by the
// same client with the same key in time, but by somebody else or too late.
func (r *RefreshToken) Again(key string) bool {
	return r.spent && (r.after == "" || key != r.family.shown)
}

// Renew is the renewal that spends the token. The key is the one that was
// shown, and what the successor is bound to if this one was bound.
func (r *RefreshToken) Renew() *Renewal { return &Renewal{presented: r, key: r.Key} }

// prepare makes what the commit is to write: the first token of a family, or the one after
// what was presented.
func (n *Renewal) prepare(ctx context.Context, t *Tokens, tenant estover.TenantID, g *Grant, shown string, now time.Time) (err error) {
	p := n.presented
	n.step, n.rows = nil, nil
	if p != nil && p.spent {
		n.next, n.told = p.after, "again"
		return nil
	}
	if p == nil {
		n.next, n.told = opaque.NewFamily(opaque.RefreshToken), "first"
	} else {
		key, err := t.window(ctx, now)
		if err != nil {
			return err
		}
		if n.next, err = opaque.Next(opaque.RefreshToken, p.value, key); err != nil {
			return err
		}
	}
	hash := opaque.Hash(n.next)
	n.made = family{id: opaque.Family(n.next), grant: g.ID, key: n.key, hash: hash[:], generation: 1}
	if p != nil {
		n.made.generation = p.family.generation + 1
		n.told = n.made.generation
		n.step = &db.Step{Text: spendText(t.guard.DB().Engine()), Args: []any{p.family.id[:], p.hash, hash[:], n.made.generation, now, shown, g.Epoch}}
		if n.made.id == p.family.id {
			n.made.turned, n.made.shown = now, shown
			return nil
		}
		n.step.Args[2] = nil // no other of this older one's
	}
	n.rows = []db.Row{n.made.row(tenant, g.Expires)}
	return nil
}

// member is what the event of a hot path tells of it, encoded.
func (n *Renewal) member() []byte {
	b := append(make([]byte, 0, 48), `,"refresh_token":`...)
	if generation, ok := n.told.(int64); ok {
		return strconv.AppendInt(b, generation, 10)
	}
	return audit.AppendString(b, n.told.(string))
}

// write does by itself what the commit of a hot path is given to do.
func (n *Renewal) write(ctx context.Context, tx *guard.Tx) error {
	tx.Note("refresh_token", n.told)
	if n.step != nil {
		if changed, err := tx.Exec(ctx, n.step.Text, append([]any{tx.Tenant()}, n.step.Args...)...); err != nil {
			return err
		} else if changed != 1 {
			return db.ErrStale
		}
	}
	for _, row := range n.rows {
		if err := tx.Insert(ctx, row); err != nil {
			return err
		}
	}
	return nil
}

// spentMeanwhile looks whether a token that was good as far as this node knew was spent
// on another node, or a moment ago on this one. Nil if not, or if it may be had again.
func (t *Tokens) spentMeanwhile(ctx context.Context, r Request) error {
	n := r.Proof.Renewal
	if n == nil || n.presented == nil {
		return nil
	}
	if err := t.look(ctx, r.Caller.Tenant, n.presented); err != nil {
		return err
	}
	if n.presented.Again(r.Confirm.Key) {
		return ErrPresentedTwice
	}
	return nil
}
