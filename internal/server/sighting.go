package server

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/audit"
	"estover.dev/internal/gateway/duty"
	"estover.dev/internal/resource"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/connection"
	"estover.dev/internal/secret/lease"
)

// What was seen where it should not be is in the log, cut out or refused, when it is
// dealt with here: the log is the outbox, so that nothing is forgotten.

// wantsSightings says which events are looked at.
func wantsSightings(context.Context, estover.TenantID) (func(action string) bool, error) {
	return func(action string) bool { return action == duty.EchoAction || action == duty.ViolationAction }, nil
}

// sightings does what the rules of resources say about what was seen.
func (s *Server) sightings(ctx context.Context, tenant estover.TenantID, events []audit.Entry) error {
	for i := range events {
		e := &events[i]
		word := func(key string) string { v, _ := e.Detail[key].(string); return v }
		var err error
		switch then := word("then"); {
		case e.Action == duty.EchoAction && (then == resource.OnEchoRevoke || then == resource.OnEchoRotate):
			err = s.echoed(ctx, tenant, word("version"), then)
		case e.Action == duty.ViolationAction && then == resource.OnMisuseQuarantine:
			err = s.misused(ctx, tenant, e)
		}
		switch kind := estover.KindOf(err); {
		case err == nil:
		case kind == estover.Fault || kind == estover.Unavailable:
			return err // it is tried again
		default:
			s.logger.Error("what a rule says about something that was seen could not be done", "event", e.ID, "error", err)
		}
	}
	return nil
}

// echoed takes what a resource sent back out of use, or has another made.
func (s *Server) echoed(ctx context.Context, tenant estover.TenantID, label, then string) error {
	system := estover.Caller{Tenant: tenant, Subject: estover.System("gateway")}
	id, number, _ := strings.Cut(label, "@")
	switch {
	case strings.HasPrefix(id, "lse_"): // the next request makes another
		_, err := s.leases.Revoke(ctx, system, lease.Which{ID: id}, "its resource sent it back")
		return err
	case strings.HasPrefix(id, "con_"):
		name, err := s.connected.NameOf(ctx, tenant, id)
		if err == nil {
			_, err = s.connected.Renew(ctx, system, name)
		}
		if errors.Is(err, connection.ErrNotFound) {
			err = nil
		}
		return err
	case !strings.HasPrefix(id, "sec_"):
		return nil // it ends with its session
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return nil
	}
	path, err := s.facts.secrets.PathOf(ctx, tenant, id)
	switch {
	case errors.Is(err, secret.ErrNotFound):
		return nil
	case err != nil:
		return err
	case then == resource.OnEchoRotate:
		return s.rotations.Soon(ctx, system, path, n)
	}
	return s.facts.secrets.Delete(ctx, system, path, n)
}

// misused quarantines an agent that sent a placeholder where none belongs.
func (s *Server) misused(ctx context.Context, tenant estover.TenantID, e *audit.Entry) error {
	who := e.Actor
	if chain, ok := e.Detail["actors"].([]any); ok && len(chain) > 0 { // the nearest acts
		if first, ok := chain[0].(string); ok {
			who = estover.Subject(first)
		}
	}
	if who.Kind() != estover.AgentKind {
		return nil
	}
	system := estover.Caller{Tenant: tenant, Subject: estover.System("gateway")}
	a, err := s.facts.registry.Get(ctx, system, who.ID())
	if err != nil {
		return err
	}
	for _, h := range a.Holds {
		if h.Kind == agent.Quarantine || h.Kind == agent.Retirement {
			return nil
		}
	}
	_, err = s.facts.registry.Hold(ctx, system, who.ID(), agent.Quarantine, "It sent a placeholder of a secret, or the handle of a token, where none belongs (event "+e.ID+").")
	return err
}
