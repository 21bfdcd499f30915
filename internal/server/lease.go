package server

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/db"
	"estover.dev/internal/directory"
	"estover.dev/internal/edge"
	"estover.dev/internal/guard"
	"estover.dev/internal/hold"
	"estover.dev/internal/jose"
	"estover.dev/internal/policy"
	"estover.dev/internal/resource"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/httpkey"
	"estover.dev/internal/secret/engine/ldap"
	"estover.dev/internal/secret/engine/mysql"
	"estover.dev/internal/secret/engine/nats"
	"estover.dev/internal/secret/engine/postgres"
	"estover.dev/internal/secret/engine/rabbitmq"
	"estover.dev/internal/secret/engine/redis"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/rotation"
	"estover.dev/internal/secret/target"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/secret/upstream/aws"
	"estover.dev/internal/secret/upstream/azure"
	"estover.dev/internal/secret/upstream/google"
	"estover.dev/internal/secret/upstream/openbao"
	"estover.dev/internal/ticket"
	"estover.dev/internal/token"
)

// kinds are the kinds of target at which credentials are made. This is the one
// place where another kind joins.
func kinds() []engine.Kind {
	return []engine.Kind{httpkey.Kind, ldap.Kind, mysql.Kind, nats.Kind, postgres.Kind, rabbitmq.Kind, redis.Kind}
}

// imports are the other vaults that secrets are copied from.
func (s *Server) imports() *upstream.Imports {
	i := upstream.NewImports(s.guard, s.facts.secrets, s.dialTarget, storeKinds()...)
	i.Stores = s.stores
	return i
}

// storeKinds are the kinds of other vaults. This is the one place where another kind
// joins.
func storeKinds() []upstream.Kind {
	return []upstream.Kind{aws.Kind, azure.Kind, google.Kind, openbao.Kind}
}

// storing puts together what reads secrets through other vaults and pushes them there.
func (s *Server) storing() *upstream.Stores {
	return upstream.NewStores(upstream.Config{
		Guard: s.guard, Secrets: s.facts.secrets, Sealer: s.sealer, Kinds: storeKinds(), Dial: s.dialTarget, Assert: s.assertStore, Node: s.claims(), Logger: s.logger,
	})
}

// assertStore signs what logs in at a store for us: an ID token about the store, which is
// good for five minutes and for its audience alone.
func (s *Server) assertStore(ctx context.Context, t estover.TenantID, store, audience string) (string, error) {
	key, err := s.keys.Active(ctx, t, jose.IDToken)
	if err != nil {
		return "", err
	}
	now := s.db.Now()
	return jose.Sign(jose.IDToken, key.Token, map[string]any{
		"iss": token.Issuer(s.config.Issuer).Of(t), "sub": "store:" + store, "aud": audience, "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(), "jti": estover.NewID("ast"),
	})
}

// dialTarget connects to where a tenant has a target, or another vault. Where that is
// its operators say, and the owner of the secret that logs in there allows; that
// may be an address of the house, as far as the tenant may reach those.
func (s *Server) dialTarget(ctx context.Context, t estover.TenantID, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	open := edge.Opening{Hosts: []string{host}}
	if t != estover.DefaultTenant {
		networks, err := s.facts.tenants.Kept(ctx, t)
		if err != nil {
			return nil, err
		}
		open = edge.Opening{Prefixes: networks}
	}
	dialer := &edge.Dialer{Own: s.own}
	return dialer.Dial(ctx, address, open)
}

// leasing puts together what credentials are made with.
func (s *Server) leasing() (*target.Targets, *lease.Leases) {
	targets := target.New(s.guard, s.facts.secrets, target.Options{Kinds: kinds(), InUse: targetInUse, Dial: s.dialTarget, Logger: s.logger})
	return targets, lease.New(s.guard, s.sealer, targets, lease.Options{
		Action: s.leaseAction, Resource: s.leaseResource, Held: leaseHeld, Session: s.leaseSession, Grant: s.leaseGrant, Token: leaseToken, Node: s.claims(), Logger: s.logger,
	})
}

// targetInUse says what keeps a target from being removed.
func targetInUse(ctx context.Context, tx *db.Tx, at *target.Target) (string, error) {
	if why, err := lease.AtTarget(ctx, tx, at); err != nil || why != "" {
		return why, err
	}
	n, err := rotation.Rotated(ctx, tx, at.ID)
	if err == nil && n > 0 {
		return fmt.Sprintf("%d secrets are rotated at the target %s. End their rotations first: estover rotation list, and estover rotation remove PATH.", n, at.Name), nil
	}
	return "", err
}

// leaseAction is what policy is told of the action that a lease is for.
func (s *Server) leaseAction(ctx context.Context, t estover.TenantID, id, action string) (any, guard.Effect, error) {
	u, err := s.facts.resources.Upstream(ctx, t, id)
	if err != nil {
		return nil, "", err
	}
	for i := range u.Actions {
		if a := &u.Actions[i]; a.Name == action {
			return policy.Call{Action: a.Name, Class: a.Class}, a.Effect, nil
		}
	}
	return nil, "", resource.ErrNotFound.With("The resource %s has no action %s any more.", u.Name, action)
}

// leaseResource is a resource that a role names, by its id or its name.
func (s *Server) leaseResource(ctx context.Context, tx *db.Tx, ref, action string) (string, error) {
	id, err := resource.IDOf(ctx, tx, ref)
	if err != nil {
		return "", err
	}
	return id, s.facts.resources.Grantable(ctx, tx, id, []string{action})
}

// leaseHeld keeps a resource from being held, unless it is: what is made for it
// meanwhile would not be among what its containment takes away.
func leaseHeld(ctx context.Context, tx *db.Tx, id string) error {
	if err := resource.Keep(ctx, tx, id); err != nil {
		return err
	}
	held, err := hold.OnResource(ctx, tx, id)
	if err == nil && len(held) > 0 {
		err = resource.ErrHeld.With("The resource is held, so nothing is made that opens it.")
	}
	return err
}

// leaseSession keeps a session from ending, and says when it will by itself.
func (s *Server) leaseSession(ctx context.Context, tx *db.Tx, id string) (time.Time, error) {
	if err := s.facts.sessions.Hold(ctx, &guard.Tx{Tx: tx}, id); err != nil {
		return time.Time{}, err
	}
	one, err := s.facts.sessions.Snapshot(ctx, tx.Tenant(), id)
	if err != nil {
		return time.Time{}, err
	}
	return one.ExpiresAt, nil
}

// leaseToken keeps what a caller came with from ending, unless it has: the guard
// does that for tickets of Vault's door, and for the grants of tokens.
func leaseToken(ctx context.Context, tx *db.Tx, c estover.Caller) error {
	switch {
	case ticket.Is(c.Token):
		return nil
	case c.Token != "":
		return token.Held(ctx, tx, c)
	case c.Subject.Kind() == estover.UserKind:
		return directory.Keep(ctx, tx, c.Subject.ID(), c.Grant)
	}
	return nil
}

// endBound ends the leases that were made on what ends in a transaction: a grant of
// access, a token or what it came from (L7).
func (s *Server) endBound(ctx context.Context, tx *guard.Tx, kind string, ids []string) (err error) {
	n := 0
	switch kind {
	case access.Table:
		n, err = s.leases.EndOfGrants(ctx, tx, ids)
	case token.GrantTable, token.One, directory.TokenTable:
		n, err = s.leases.EndOfTokens(ctx, tx, ids)
	}
	if n > 0 {
		tx.Note("leases_made_on_it", n)
	}
	return err
}

// leaseGrant is the grant on which a lease rests.
func (s *Server) leaseGrant(ctx context.Context, c estover.Caller, id, action string) (lease.Grant, error) {
	g, held, err := s.grantOf(ctx, c, id, action, nil)
	if err != nil {
		return lease.Grant{}, err
	}
	on := lease.Grant{ID: g.ID, Until: g.ExpiresAt, Rows: []db.Epoch{{Table: access.Table, ID: g.ID, Epoch: g.Epoch}}}
	for i := range held { // what was made of a grant covers nothing without that
		if from := &held[i]; from.ID == g.ActivatedFrom {
			on.Rows = append(on.Rows, db.Epoch{Table: access.Table, ID: from.ID, Epoch: from.Epoch})
		}
	}
	return on, nil
}

// grantEnds says until when the grant goes on that covers an action with these
// parameters.
func (s *Server) grantEnds(ctx context.Context, c estover.Caller, id, action string, parameters map[string]string) (time.Time, error) {
	g, _, err := s.grantOf(ctx, c, id, action, parameters)
	if err != nil {
		return time.Time{}, err
	}
	return g.ExpiresAt, nil
}

// grantOf is the grant that covers an action with these parameters, and all that
// its holder has.
func (s *Server) grantOf(ctx context.Context, c estover.Caller, id, action string, parameters map[string]string) (*access.Grant, []access.Grant, error) {
	input, _, err := s.leaseAction(ctx, c.Tenant, id, action)
	if err != nil {
		return nil, nil, err
	}
	call := access.Call{Resource: id, Action: action, Class: input.(policy.Call).Class, Purpose: c.Purpose, Session: c.Session, Parameters: parameters}
	if c.Session != "" {
		at, err := s.facts.sessions.Snapshot(ctx, c.Tenant, c.Session)
		if err != nil {
			return nil, nil, err
		}
		if call.Purpose == "" {
			call.Purpose = at.Purpose
		}
		within, err := s.facts.within(ctx, c.Tenant, at)
		if err != nil {
			return nil, nil, err
		}
		for _, parent := range within {
			call.Within = append(call.Within, parent.ID)
		}
	}
	grants, err := s.facts.access.Grants(ctx, c.Tenant, c.Acting().ID())
	if err != nil {
		return nil, nil, err
	}
	g, _ := access.Entitled(s.db.Now(), grants, call)
	if g == nil { // policy has just said otherwise, so it has ended in between
		return nil, nil, lease.ErrGrant
	}
	return g, grants, nil
}

// owner is the agent to whom something belongs.
func (s *Server) owner(ctx context.Context, t estover.TenantID, target string) (string, error) {
	if id, is := strings.CutPrefix(target, "lease:"); is {
		return s.leases.Owner(ctx, t, id)
	}
	return s.pki.Owner(ctx, t, target)
}

// errLeasesOverdue is returned to who retires an agent of which something is left.
var errLeasesOverdue = &estover.Error{Kind: estover.Conflict, Code: "agent_has_overdue_leases", Detail: "Credentials of the agent should be gone and are not, so it is not retired yet. Suspend it, and look with `estover secret lease list --overdue`."}

// retirable says why an agent cannot be retired yet.
func retirable(ctx context.Context, tx *db.Tx, id string) error {
	n, err := lease.StandingIn(ctx, tx, lease.Filter{Agent: id})
	if err == nil && n.Overdue > 0 {
		err = errLeasesOverdue.With("%d credentials of the agent should be gone and are not, so it is not retired yet. Suspend it, and look with `estover secret lease list --agent %s --overdue`.", n.Overdue, id)
	}
	return err
}
