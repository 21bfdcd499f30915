package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/edge"
	"estover.dev/internal/jose"
	"estover.dev/internal/secret/lease"
)

// known says why there is no such tenant, or why it may do nothing. One that is
// let in has its keys here: they are loaded when the tenant is first met, and it
// costs a look at a map from then on. Of the default tenant there is nothing to
// ask.
func (s *Server) known(ctx context.Context, t estover.TenantID) error {
	if t == estover.DefaultTenant {
		return nil
	}
	if err := s.facts.tenants.Active(ctx, t); err != nil {
		return err
	}
	return s.sealer.Prepare(ctx, t)
}

// found makes what a tenant rests on: its data keys, and the keys by which it
// signs, so that whoever reads the key set before the first token is issued finds
// its key. It does nothing to what is there.
func (s *Server) found(ctx context.Context, t estover.TenantID) error {
	if err := s.sealer.Prepare(ctx, t); err != nil {
		return fmt.Errorf("making the keys: %w", err)
	}
	for _, purpose := range []jose.Purpose{jose.AccessToken, jose.Introspection} {
		if _, err := s.keys.Active(ctx, t, purpose); err != nil {
			return fmt.Errorf("making the signing keys: %w", err)
		}
	}
	return nil
}

// prepareTenants has the keys of every tenant at hand, before something is done
// with its rows that nobody has asked for: a sweep, or the sealing of its log.
func (s *Server) prepareTenants(ctx context.Context) error {
	if err := s.eachTenant(ctx, s.sealer.Prepare); err != nil {
		return fmt.Errorf("opening the keys: %w", err)
	}
	return nil
}

// emptyIn is how long the erasure of a tenant waits for targets.
const emptyIn = 10 * time.Second

// emptyTenant takes away the credentials that a tenant has at targets.
func (s *Server) emptyTenant(ctx context.Context, t estover.TenantID) error {
	left, err := s.leases.Standing(ctx, t, lease.Filter{})
	if err != nil || left.Open == 0 {
		return err
	}
	if err := s.leases.EndOfTenant(ctx, t); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, emptyIn)
	defer cancel()
	if err := s.leases.Settled(limited, t, lease.Filter{}); err != nil && !errors.Is(err, lease.ErrNotGone) {
		return err // what is left the transaction says
	}
	return nil
}

// openOfTenant says what a tenant has at targets still.
func openOfTenant(ctx context.Context, tx *db.Tx, t estover.TenantID) (string, error) {
	n, err := lease.OpenOf(ctx, tx, t)
	if err != nil || n == 0 {
		return "", err
	}
	return fmt.Sprintf("%d credentials of the tenant %s are at targets still. They are being taken away: try again when they are gone. If a target is no more, "+
		"enable the tenant, have two people say so (estover secret engine declare-gone), and disable it again.", n, t), nil
}

// shredded forgets the keys of a tenant that have been destroyed.
func (s *Server) shredded(t estover.TenantID) {
	s.sealer.Shredded(t)
	s.keys.Forget(t)
}

// opening is what a tenant's own settings open for a host that may be on a private
// network: the host, wherever it is, to those who run the machine, and to others
// the networks that these have given them.
func (s *Server) opening(ctx context.Context, t estover.TenantID, host edge.Host) (edge.Opening, error) {
	if t == estover.DefaultTenant {
		return edge.Opening{Hosts: []string{host.Bare()}}, nil
	}
	networks, err := s.facts.tenants.Networks(ctx, t)
	return edge.Opening{Prefixes: networks}, err
}

// eachTenant does something for every tenant, disabled ones too, whose rows and
// log go on. One tenant's trouble does not keep the others waiting.
func (s *Server) eachTenant(ctx context.Context, fn func(context.Context, estover.TenantID) error) error {
	names, err := s.facts.tenants.Names(ctx)
	if err != nil {
		return err
	}
	var failed []error
	for _, t := range names {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := fn(ctx, t); err != nil {
			failed = append(failed, fmt.Errorf("the tenant %s: %w", t, err))
		}
	}
	return errors.Join(failed...)
}
