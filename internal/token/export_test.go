package token

import (
	"context"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// Plant writes a grant as a grant type would that hands authority on: below
// another grant, which is held until the transaction ends.
func (t *Tokens) Plant(ctx context.Context, tx *guard.Tx, g *Grant, parent *Grant) error {
	if parent != nil {
		if err := holdGrant(ctx, tx.Tx, parent.ID, parent.Epoch); err != nil {
			return err
		}
		g.Parent, g.Root = parent.ID, parent.Root
	} else {
		g.Root = g.ID
	}
	g.Epoch = 1
	_, err := insertGrant(ctx, tx.Tx, g)
	return err
}

// Stored reads a grant from the database, not from a copy.
func Stored(ctx context.Context, tx *db.Tx, id string) (*Grant, error) { return loadGrant(ctx, tx, id) }

// Remembered is how many tokens are remembered as verified.
func (t *Tokens) Remembered() (n int) {
	for i := range t.verified.shards {
		n += len(t.verified.shards[i].tokens)
	}
	return n
}

// MaxRemembered is the most that there may be.
const MaxRemembered = maxVerified * len(verified{}.shards)

// Alike reports whether a token may rest on the one grant in place of the other.
func (g *Grant) Alike(other *Grant) bool { return g.alike(other) }

// Hand remembers a grant as one that was handed on, and says how many there are.
func (t *Tokens) Hand(g *Grant, now time.Time) int {
	t.handed.keep(estover.DefaultTenant, g, now)
	return len(t.handed.made)
}

// MaxHanded is the most that there may be.
const MaxHanded = maxHanded
