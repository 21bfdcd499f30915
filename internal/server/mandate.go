package server

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strconv"
	"time"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/edge"
	"estover.dev/internal/gateway/duty"
	"estover.dev/internal/resource"
	"estover.dev/internal/token"
)

// covered is what a call rests on: the grant of who acts, whose document a receipt
// commits to, and the budgets of that and of the grants of all by way of whom the
// work came to them: the agents of the chain, and those in whose sessions this one
// was opened.
func (s *Server) covered(ctx context.Context, caller estover.Caller, call access.Call) (duty.Covered, error) {
	var c duty.Covered
	acting := caller.Acting()
	holders := append([]estover.Subject{acting, caller.Subject}, caller.Actors...)
	chain := len(holders)
	own := access.Worker{} // who works on a grant of its own, but in a session within another
	if caller.Session != "" {
		at, err := s.facts.sessions.Snapshot(ctx, caller.Tenant, caller.Session)
		if err != nil {
			return c, err
		}
		within, err := s.facts.within(ctx, caller.Tenant, at)
		if err != nil {
			return c, err
		}
		for _, parent := range within {
			call.Within = append(call.Within, parent.ID)
			holders = append(holders, estover.Agent(parent.Agent))
			own = access.Worker{Agent: acting.ID(), Session: caller.Session}
		}
	}
	for i, holder := range holders {
		if holder.Kind() != estover.AgentKind || slices.Contains(holders[:i], holder) {
			continue
		}
		grants, err := s.facts.access.Grants(ctx, caller.Tenant, holder.ID())
		if err != nil {
			return c, err
		}
		g, fit, err := s.facts.access.Choose(ctx, caller.Tenant, grants, call)
		if err != nil {
			return c, err
		}
		switch {
		case fit == access.Granted, fit == access.OtherPurpose && i > 0: // what for is asked of who acts
		case 0 < i && i < chain:
			return duty.Covered{}, nil // its grant has ended since policy was asked
		default:
			continue
		}
		c.Grants = append(c.Grants, g.ID)
		if i > 0 {
			c.Accounts = append(c.Accounts, access.Drawn(grants, g, access.Worker{Agent: acting.ID(), Session: caller.Session})...)
			continue
		}
		u, err := s.facts.resources.Upstream(ctx, caller.Tenant, call.Resource)
		if err != nil {
			return c, err
		}
		c.Grant, c.Request, c.Accounts = g.ID, g.Request, access.Drawn(grants, g, own)
		if c.Document, err = s.documents.of(g, u, caller.Purpose); err != nil {
			return c, err
		}
	}
	tasks, err := s.taskAccounts(ctx, caller, call)
	c.Accounts = append(c.Accounts, tasks...)
	return c, err
}

// taskAccounts are the budgets of the tasks to which a call belongs: of the
// caller's token, and of every token by way of which that came to be. What was
// handed on twice is one task.
func (s *Server) taskAccounts(ctx context.Context, caller estover.Caller, call access.Call) (all []access.Account, err error) {
	if caller.Grant == "" || caller.Tasks == nil { // what is confined stays so, and only that has tasks
		return nil, nil
	}
	u, err := s.facts.resources.Upstream(ctx, caller.Tenant, call.Resource)
	if err != nil {
		return nil, err
	}
	g, err := s.tokens.Grant(ctx, caller.Tenant, caller.Grant)
	if err != nil {
		return nil, err
	}
	add := func(token string, tasks []estover.Task, until time.Time) {
		best := -1
		for i := range tasks {
			if belongs(&tasks[i], u.BaseURL, call) && (best < 0 || tasks[i].Budgets == nil) {
				best = i
			}
		}
		if best < 0 || tasks[best].Budgets == nil {
			return
		}
		one := access.Account{ID: "task:" + token + ":" + strconv.Itoa(best), Name: "the task of the token", Until: until}
		for name, n := range tasks[best].Budgets {
			if err = one.Budgets.Set(name, n); err != nil {
				return
			}
		}
		all = append(all, one)
	}
	add(caller.Token, caller.Tasks, g.Expires)
	for depth := 0; err == nil && depth <= token.MaxActors+1; depth++ {
		// A grant of somebody's own has its tasks for all the tokens that come of it;
		// one that was handed on has those of the token that it was made of.
		from := g.ID
		if g.Parent != "" {
			from = g.From
		}
		add(from, g.Details.Tasks(), g.Expires)
		if g.Parent == "" || err != nil {
			break
		}
		g, err = s.tokens.Grant(ctx, caller.Tenant, g.Parent)
	}
	return all, err
}

// belongs reports whether a call is part of a task.
func belongs(t *estover.Task, location string, call access.Call) bool {
	if !slices.Contains(t.Locations, location) || !slices.Contains(t.Actions, call.Action) || t.Purpose != "" && t.Purpose != call.Purpose {
		return false
	}
	for name, values := range t.Parameters {
		if v, there := call.Parameters[name]; !there || !slices.Contains(values, v) {
			return false
		}
	}
	return true
}

// maxReachable bounds the hosts that stand in the certificate of a session's
// authority.
const maxReachable = 500

// reachable are the hosts of the resources on which an agent is granted anything,
// and then those of all others in its segments: something on one of them may be
// granted to it while it works.
func (s *Server) reachable(ctx context.Context, tenant estover.TenantID, id string) (hosts []string, err error) {
	a, err := s.facts.registry.Snapshot(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	granted, err := s.granted(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	others, err := s.facts.resources.InSegments(ctx, tenant, a.Segments, maxReachable)
	if err != nil {
		return nil, err
	}
	add := func(r *resource.Resource) error {
		at, err := url.Parse(r.BaseURL)
		if err != nil {
			return err
		}
		for _, h := range r.Hosts {
			host, err := edge.ParseHost(h, edge.DefaultPort(at.Scheme))
			if err != nil {
				return err
			}
			if bare := host.Bare(); len(hosts) < maxReachable && !slices.Contains(hosts, bare) {
				hosts = append(hosts, bare)
			}
		}
		return nil
	}
	for _, u := range granted {
		err = errors.Join(err, add(&u.Resource))
	}
	for i := range others {
		err = errors.Join(err, add(&others[i]))
	}
	return hosts, err
}
