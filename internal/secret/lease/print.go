package lease

import (
	"context"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/secret/engine"
)

// A print is what is kept of a value to recognise it by.
type print struct {
	field  string
	digest []byte
}

// prints are the fingerprints of what a lease hands out. A user's name is in the
// lease.
func (l *Leases) prints(tenant estover.TenantID, values engine.Material) (all []print) {
	for name, v := range values {
		if name != "username" && !v.Empty() {
			all = append(all, print{name, l.sealer.MAC(tenant, "secret.fingerprint", v.Reveal())})
		}
	}
	return all
}

// A Sighting says of which lease a value is.
type Sighting struct {
	Lease string `json:"lease"`
	Field string `json:"field"`
}

// Identify says of which leases a value is that was found where it should not be,
// whether or not they have ended: the newest first.
func (l *Leases) Identify(ctx context.Context, c estover.Caller, value estover.Secret) (list []Sighting, err error) {
	if err := l.sealer.Prepare(ctx, c.Tenant); err != nil {
		return nil, err
	}
	digest := l.sealer.MAC(c.Tenant, "secret.fingerprint", value.Reveal())
	err = l.guard.Read(ctx, c, guard.Op{Action: "lease.list"}, func(tx *db.Tx) error {
		list, err = printed(ctx, tx, digest)
		return err
	})
	return list, err
}
