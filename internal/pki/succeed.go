package pki

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// Ending is the action of the event that says that nobody will sign any more unless
// somebody sees to it.
const Ending = "pki.ending"

// Succeed sees to it that there is always an authority that can certify for as long
// as roles allow. One that ends within three of the longest lives gets its next
// generation: the next one is published then and signs after two of them, so that
// everybody has had that long to learn of it, and what the old one signs until then
// ends before it does. Where the old one is signed by somebody else, or is of a mount of
// the Vault-compatible door, whose owner has it done, an event says so once a day. It
// returns how many got one, and is called now and then.
func (p *PKI) Succeed(ctx context.Context, tenant estover.TenantID) (n int, err error) {
	var due []*Authority
	var overlaps []time.Duration
	err = p.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		all, err := newestAuthorities(ctx, tx)
		if err != nil {
			return err
		}
		for _, id := range all {
			a, err := findAuthority(ctx, tx, id)
			if err != nil {
				return err
			}
			longest := time.Hour
			roles, err := listRoles(ctx, tx, a.Mount, a.Kind)
			if err != nil {
				return err
			}
			for _, r := range roles {
				longest = max(longest, r.longest())
			}
			if at := a.succeededAt(longest); !at.After(tx.Now()) {
				due = append(due, a)
				overlaps = append(overlaps, max(0, min(2*longest, a.NotAfter.Sub(tx.Now())-longest)))
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	c := estover.Caller{Tenant: tenant, Subject: estover.System("pki")}
	var failed []error
	for i, a := range due {
		if own := a.Options.Parent != "" || bytes.Equal(a.certificate.RawIssuer, a.certificate.RawSubject); !own || a.Mount != "" || a.Name == "" {
			failed = append(failed, p.warn(ctx, c, a))
			continue
		}
		_, err := p.Rotate(ctx, c, a.Mount, a.Kind, a.ID, overlaps[i])
		switch {
		case errors.Is(err, ErrExists): // somebody else's was first
		case err != nil:
			failed = append(failed, err, p.warn(ctx, c, a))
		default:
			n++
		}
	}
	return n, errors.Join(failed...)
}

// succeededAt is when an authority gets its next generation: three of the longest
// lives before its end, but not in the first half of its own.
func (a *Authority) succeededAt(longest time.Duration) time.Time {
	at := a.NotAfter.Add(-3 * longest)
	if half := a.CreatedAt.Add(a.NotAfter.Sub(a.CreatedAt) / 2); half.After(at) {
		at = half
	}
	return at
}

// warn tells once a day that an authority ends and no other is there.
func (p *PKI) warn(ctx context.Context, c estover.Caller, a *Authority) error {
	told := false
	day := strconv.Quote(p.guard.DB().Now().UTC().Format(time.DateOnly))
	err := p.guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) error {
		text, err := findSetting(ctx, tx, a.Mount, "ending."+a.ID)
		told = text == day
		return err
	})
	if err != nil || told {
		return err
	}
	op := guard.Op{Action: Ending, Target: target(a.Kind, "authority", a.ID), Detail: map[string]any{"name": a.Name, "mount": a.Mount, "not_after": a.NotAfter}}
	return p.guard.Do(ctx, c, op, func(tx *guard.Tx) error { return putSetting(ctx, tx.Tx, a.Mount, "ending."+a.ID, day) })
}
