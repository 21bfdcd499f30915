package duty

import (
	"context"
	"slices"
	"strings"

	"estover.dev"
	"estover.dev/internal/gateway"
)

// A lease may be revoked alone, while the session that has it goes on. What is under
// way with its credential is cut then, on every node: which leases an exchange
// carries is kept with it, and when some are marked, here or elsewhere, all that are
// carried are looked up at once.

// ErrRevoked is the cause of what is cut because the credential was revoked that it
// was begun with.
var ErrRevoked = &estover.Error{Kind: estover.Denied, Code: "credential_revoked", Detail: "The credential that this was begun with has been revoked. Ask again: another one is made, if that is still allowed."}

// leasePrefix begins the ids of leases.
const leasePrefix = "lse_"

// carry keeps with a call which leases it carries. If some were marked since the
// first was read, which this node counts, they are looked up: whoever cut what
// carried them may not have seen this call.
func (d *Duties) carry(ctx context.Context, tenant estover.TenantID, c *call, marked int64) error {
	leased := func(label string) bool { return strings.HasPrefix(label, leasePrefix) }
	if !slices.ContainsFunc(c.secrets, leased) {
		return nil
	}
	leases := slices.DeleteFunc(slices.Clone(c.secrets), func(label string) bool { return !leased(label) })
	c.leases.Store(&leases)
	if d.marked.Load() == marked {
		return nil
	}
	return d.leasesStand(ctx, tenant, leases)
}

// leasesStand says why what carries these leases may not go on, if so.
func (d *Duties) leasesStand(ctx context.Context, tenant estover.TenantID, leases []string) error {
	if d.Leases == nil || len(leases) == 0 {
		return nil
	}
	ended, err := d.Leases(ctx, tenant, leases)
	if err == nil && len(ended) > 0 {
		err = ErrRevoked
	}
	return err
}

// carried are the leases that an exchange carries.
func carried(ex *gateway.Exchange) []string {
	if c, ok := ex.Kept().(*call); ok {
		if leases := c.leases.Load(); leases != nil {
			return *leases
		}
	}
	return nil
}

// LeasesEnded hears that leases of a tenant were marked, here or on another node,
// after the commit. It returns at once; what carries them is cut.
func (d *Duties) LeasesEnded(tenant estover.TenantID) {
	d.marked.Add(1)
	d.unleased.add(tenant, "", d.cutUnleased)
}

// cutUnleased cuts what is under way with a lease that is live no more. That it
// cannot be known is no reason to let it go on.
func (d *Duties) cutUnleased() {
	for some := d.unleased.take(); len(some) > 0; some = d.unleased.take() {
		for tenant := range some {
			var all []string
			d.Live.RecheckAll(tenant, func(ex *gateway.Exchange) error {
				all = append(all, carried(ex)...)
				return nil
			})
			if len(all) == 0 || d.Leases == nil {
				continue
			}
			slices.Sort(all)
			all = slices.Compact(all)
			ctx, cancel := context.WithTimeout(context.Background(), recheckTime)
			ended, err := d.Leases(ctx, tenant, all)
			cancel()
			if err != nil {
				d.Logger.Error("which leases are revoked is not known, so what carries any is cut", "error", err)
				ended = all
			}
			if len(ended) == 0 {
				continue
			}
			d.Live.RecheckAll(tenant, func(ex *gateway.Exchange) error {
				if slices.ContainsFunc(carried(ex), func(id string) bool { return slices.Contains(ended, id) }) {
					return ErrRevoked
				}
				return nil
			})
		}
	}
}
