package seal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

// retireAfter is how long an old DEK is kept after its successor came into
// use, even if nothing seems to lie under it: a node may have been asleep.
const retireAfter = 24 * time.Hour

// batch is how many values are resealed between two transactions.
const batch = 100

// A Holding is where sealed values of a class lie. The words are names of the
// table and its columns, or expressions over them; together the columns of ID
// and Version name one row of a tenant.
type Holding struct {
	Class   Class
	Table   string
	Sealed  string // the column with the sealed bytes
	ID      string // what the value's AAD has as its ID, text
	Version string // what it has as its Version; "" if it has none
	Created string // what it has as its Created, microseconds; "" if it has none
}

// Hold says where values lie, once at wiring. A class all of whose values lie
// in holdings has its old data keys deleted when they are no longer needed; one
// without any, such as bodies in a blob store, keeps them.
func (s *Sealer) Hold(h ...Holding) { s.holdings = append(s.holdings, h...) }

// A Progress is what a walk has done.
type Progress struct {
	Resealed int      // values that were moved to the newest key
	Broken   []string // values that do not open, as table:id; the keys that they name are kept
	Deleted  int      // data keys that nothing needed any more
}

// Rewrap reseals the tenant's values that lie under old data keys. It may be
// interrupted anywhere and called again: what it has done it finds done.
func (s *Sealer) Rewrap(ctx context.Context, tenant estover.TenantID) (p Progress, err error) {
	if err := s.Reload(ctx, tenant); err != nil {
		return p, err
	}
	for _, h := range s.holdings {
		if err := s.rewrap(ctx, tenant, h, &p); err != nil {
			return p, fmt.Errorf("resealing %s: %w", h.Table, err)
		}
	}
	return p, s.retire(ctx, tenant, &p)
}

// A value is a sealed value where it lies.
type value struct {
	aad    AAD
	sealed []byte
}

// rewrap goes once through a holding.
func (s *Sealer) rewrap(ctx context.Context, tenant estover.TenantID, h Holding, p *Progress) error {
	current := s.ring(tenant, h.Class).current(s.db.Now())
	if current == nil {
		return ErrNoKey
	}
	after := value{aad: AAD{Version: -1}}
	for {
		var list []value
		err := s.db.View(ctx, tenant, func(tx *db.Tx) (err error) {
			list, err = findOlder(ctx, tx, h, current.version, after, batch)
			return err
		})
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return nil
		}
		after = list[len(list)-1]
		again := make([][]byte, len(list))
		for i, v := range list {
			plain, err := s.Open(tenant, v.aad, v.sealed)
			if err == nil {
				again[i], err = s.Seal(tenant, v.aad, plain)
				clear(plain)
			}
			switch {
			case errors.Is(err, ErrBroken), errors.Is(err, ErrNoKey):
				p.Broken = append(p.Broken, h.Table+":"+v.aad.ID)
			case err != nil:
				return err
			}
		}
		var n int
		err = s.db.Do(ctx, tenant, func(tx *db.Tx) error {
			n = 0
			for i, v := range list {
				if again[i] == nil {
					continue
				}
				changed, err := replaceValue(ctx, tx, h, v, again[i])
				if err != nil {
					return err
				}
				n += int(changed)
			}
			return nil
		})
		if err != nil {
			return err
		}
		p.Resealed += n
	}
}

// retire deletes the data keys under which nothing lies any more.
func (s *Sealer) retire(ctx context.Context, tenant estover.TenantID, p *Progress) error {
	held := map[Class][]Holding{}
	for _, h := range s.holdings {
		held[h.Class] = append(held[h.Class], h)
	}
	for class, holdings := range held {
		r := s.ring(tenant, class)
		for i, k := range r[:max(0, len(r)-1)] {
			if s.db.Now().Before(r[i+1].from.Add(retireAfter)) {
				continue
			}
			var left int
			err := s.db.Do(ctx, tenant, func(tx *db.Tx) error {
				left = 0
				for _, h := range holdings {
					n, err := countUnder(ctx, tx, h, k.version)
					if err != nil {
						return err
					}
					left += n
				}
				if left > 0 {
					return nil
				}
				return deleteDEK(ctx, tx, class, int64(k.version))
			})
			if err != nil {
				return fmt.Errorf("deleting an old data key of class %q: %w", class, err)
			}
			if left == 0 {
				p.Deleted++
			}
		}
	}
	if p.Deleted > 0 {
		return s.Reload(ctx, tenant)
	}
	return nil
}
