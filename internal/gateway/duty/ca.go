package duty

import (
	"context"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/gateway"
	"estover.dev/internal/seal"
	"estover.dev/internal/session"
)

// caKind is the kind of the copies of sessions' authorities. A session's never
// changes, so nothing touches them.
const caKind = "gateway_ca"

// CA is the certificate authority of a session, by which it is shown the hosts
// that it may reach. It is made when it is first asked for, and its key is
// never stored in clear.
func (d *Duties) CA(ctx context.Context, tenant estover.TenantID, id string) (*gateway.CA, error) {
	ca, err := d.cas.Get(ctx, tenant, id)
	if err != nil || ca != nil {
		return ca, err
	}
	s, err := d.Sessions.Snapshot(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	hosts, err := d.Reachable(ctx, tenant, s.Agent)
	if err != nil {
		return nil, err
	}
	made, err := gateway.NewCA(id, hosts, d.Guard.DB().Now())
	if err != nil {
		return nil, err
	}
	plain, err := made.Marshal()
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	sealed, err := d.Sealer.Seal(tenant, caAAD(id), plain)
	if err != nil {
		return nil, err
	}
	if err := d.Guard.DB().Do(ctx, tenant, func(tx *db.Tx) error {
		if err := begin(ctx, tx, id); err != nil {
			return err
		}
		return setCA(ctx, tx, id, sealed)
	}); err != nil {
		return nil, err
	}
	// Whoever else made one at the same time: one of them is there.
	d.cas.Drop(tenant, id)
	if ca, err = d.cas.Get(ctx, tenant, id); err == nil && ca == nil {
		err = gateway.ErrEnded
	}
	return ca, err
}

// Authority is the certificate of a session's authority, in PEM: what its
// programs trust.
func (d *Duties) Authority(ctx context.Context, tenant estover.TenantID, id string) (string, error) {
	ca, err := d.CA(ctx, tenant, id)
	if err != nil {
		return "", err
	}
	return string(ca.PEM()), nil
}

// Placeholders are the values that a session's programs get in the place of
// secrets, by the variables that they look for. They open nothing; one that
// comes in anywhere but in its slot is refused and recorded.
func (d *Duties) Placeholders(ctx context.Context, tenant estover.TenantID, id string) (map[string]string, error) {
	s, err := d.Sessions.Snapshot(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	ups, err := d.Granted(ctx, tenant, s.Agent)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, up := range ups {
		for _, slot := range up.Slots {
			if slot.Placeholder == "" {
				continue
			}
			for _, variable := range []string{slot.Placeholder, slot.SecretVariable()} {
				if variable == "" {
					continue
				}
				if out[variable], err = d.Secrets.Placeholder(ctx, tenant, estover.Agent(s.Agent), id, slot.Secret); err != nil {
					return nil, err
				}
			}
		}
	}
	return out, nil
}

func caAAD(id string) seal.AAD { return seal.AAD{Class: seal.PKI, ID: "session:" + id} }

// loadCA opens a session's authority; nil if it has none yet.
func (d *Duties) loadCA(ctx context.Context, tx *db.Tx, id string) (*gateway.CA, error) {
	sealed, err := findCA(ctx, tx, id)
	if err != nil || len(sealed) == 0 {
		return nil, err
	}
	plain, err := d.Sealer.Open(tx.Tenant(), caAAD(id), sealed)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	return gateway.UnmarshalCA(plain)
}

// ByCertificate finds the session that a client certificate stands for, for
// the door of the forward proxy.
func (d *Duties) ByCertificate(ctx context.Context, thumbprint string) (*gateway.Conn, error) {
	tenant, s, err := d.Sessions.ByKey(ctx, thumbprint)
	if err != nil {
		return nil, err
	}
	if s.State != session.Open {
		return nil, gateway.ErrEnded
	}
	if d.Known != nil {
		if err := d.Known(ctx, tenant); err != nil {
			return nil, err
		}
	}
	ca, err := d.CA(ctx, tenant, s.ID)
	if err != nil {
		return nil, err
	}
	if d.Guard.DB().Now().After(ca.NotAfter().Add(-time.Minute)) {
		return nil, gateway.ErrEnded
	}
	return &gateway.Conn{CA: ca, Caller: estover.Caller{
		Tenant: tenant, Subject: estover.Agent(s.Agent), Client: s.Agent, Session: s.ID, Purpose: s.Purpose, Epoch: s.Epoch,
		Strength: s.Strength,
	}}, nil
}
