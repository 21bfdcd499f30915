package server

import (
	"context"
	"net/url"
	"time"

	"estover.dev"
	"estover.dev/internal/ca"
	"estover.dev/internal/guard"
	"estover.dev/internal/mount"
	"estover.dev/internal/pki"
	"estover.dev/internal/policy"
	"estover.dev/internal/secret/transit"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

// certifying puts together what certificates are made with, and the keys that
// encrypt for others.
func (s *Server) certifying() (*pki.PKI, *transit.Transit) {
	return pki.New(s.guard, s.sealer, pki.Options{
			Session: s.certifiedSession, Action: s.certifiedAction, Resource: s.leaseResource, Until: s.grantEnds, URL: s.authorityURL, Logger: s.logger,
		}), transit.New(s.guard, s.sealer, transit.Options{
			Action: s.leaseAction, Resource: s.leaseResource,
		})
}

// certifiedSession is an open session as a certificate rests on it.
func (s *Server) certifiedSession(ctx context.Context, t estover.TenantID, id string) (out pki.Session, err error) {
	if _, err := s.facts.sessions.Live(ctx, t, id); err != nil {
		return out, err
	}
	one, err := s.facts.sessions.Snapshot(ctx, t, id)
	if err != nil {
		return out, err
	}
	out.Agent, out.ExpiresAt = one.Agent, one.ExpiresAt
	out.Epoch.Table, out.Epoch.ID, out.Epoch.Epoch = session.Table, one.ID, one.Epoch
	return out, nil
}

// certifiedAction is what policy is told of the action that a role is for.
func (s *Server) certifiedAction(ctx context.Context, t estover.TenantID, id, action string, parameters map[string]string) (any, guard.Effect, error) {
	input, effect, err := s.leaseAction(ctx, t, id, action)
	if call, ok := input.(policy.Call); ok {
		call.Params = parameters
		input = call
	}
	return input, effect, err
}

// certifyingKinds are the mounts of the door that certify and encrypt.
func (s *Server) certifyingKinds() []mount.Kind {
	certificates := func(ctx context.Context, tx *guard.Tx, m mount.Mount) error { return s.pki.EndMount(ctx, tx, m.ID) }
	return []mount.Kind{
		{Name: "pki", Section: mount.Secrets, Disabled: certificates},
		{Name: "ssh", Section: mount.Secrets, Disabled: certificates},
		{Name: "transit", Section: mount.Secrets, Disabled: func(ctx context.Context, tx *guard.Tx, m mount.Mount) error { return s.transit.EndMount(ctx, tx, m.ID) }},
	}
}

// authorityURL is where an authority publishes.
func (s *Server) authorityURL(t estover.TenantID, id string) string {
	return string(token.Issuer(s.config.Issuer).Of(t)) + pki.Path + id
}

// authorities is the door at which everybody learns which certificates hold.
func (s *Server) authorities() *ca.Door {
	base := ""
	if u, err := url.Parse(s.config.Issuer); err == nil {
		base = u.Path
	}
	return &ca.Door{PKI: s.pki, Base: base, Tenants: token.TenantPath, Known: s.known, Logger: s.logger}
}

// sweepCertificates forgets what has long ended, and signs lists before they are
// old.
func (s *Server) sweepCertificates(ctx context.Context) error {
	return s.eachTenant(ctx, func(ctx context.Context, t estover.TenantID) error {
		_, err := s.pki.Sweep(ctx, t)
		return err
	})
}

// succeedAuthorities has the next one published before an authority ends.
func (s *Server) succeedAuthorities(ctx context.Context) error {
	return s.eachTenant(ctx, func(ctx context.Context, t estover.TenantID) error {
		_, err := s.pki.Succeed(ctx, t)
		return err
	})
}

// How often certificates are swept, and keys looked at whose time to rotate comes.
const (
	certificateSweep = 10 * time.Minute
	transitSweep     = time.Minute
)
