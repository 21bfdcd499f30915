package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/directory"
	"estover.dev/internal/gateway/rest"
	"estover.dev/internal/guard"
	"estover.dev/internal/hold"
	"estover.dev/internal/oauth"
	"estover.dev/internal/policy"
	"estover.dev/internal/resource"
	"estover.dev/internal/secret"
	"estover.dev/internal/session"
	"estover.dev/internal/tenant"
	"estover.dev/internal/token"
)

// facts is what the packages of the domain tell each other of: what policy
// decides on, and what the token service knows of its clients. Everything is
// answered from copies in memory, made once for each version of a row.
type facts struct {
	tenants   *tenant.Register
	people    *directory.Directory
	sessions  *session.Sessions
	resources *resource.Catalogue
	access    *access.Access
	secrets   *secret.Secrets
	registry  *agent.Registry
	holds     *hold.Holds
	now       func() time.Time
	origin    string // under which clients know the reverse routes
	base      string // the path of the issuer

	agents   *guard.Cache[*policy.Agent]
	grants   *guard.Cache[*policy.Grants]
	upstream *guard.Cache[*policy.Resource]
	clients  *guard.Cache[*token.Client]

	mu      sync.Mutex
	secretR map[secretKey]*policy.Resource
}

// A secretKey is all that rules see of a secret. One that is written again and
// again is the same to them each time, and so are the decisions about it.
type secretKey struct {
	tenant estover.TenantID
	ref    string
	class  estover.Class
}

// follow sets up the copies. It is called once there is a door to follow.
func (f *facts) follow(g *guard.Guard) {
	f.secretR = map[secretKey]*policy.Resource{}
	f.agents = guard.NewCache(g, estover.AgentKind, f.loadAgent)
	f.grants = guard.NewCache(g, access.Copies, f.loadGrants)
	f.upstream = guard.NewCache(g, "resource", loadResource)
	f.clients = guard.NewCache(g, estover.AgentKind, f.loadClient)
}

// sources are the facts as policy asks for them.
func (f *facts) sources() policy.Sources {
	return policy.Sources{
		Agent: func(ctx context.Context, tenant estover.TenantID, id string) (*policy.Agent, error) {
			return f.agents.Get(ctx, tenant, id)
		},
		Session: func(ctx context.Context, tenant estover.TenantID, id string) (policy.Session, error) {
			s, err := f.sessions.Snapshot(ctx, tenant, id)
			if err != nil {
				return policy.Session{}, err
			}
			within, err := f.within(ctx, tenant, s)
			if err != nil {
				return policy.Session{}, err
			}
			one := policy.Session{ID: s.ID, Agent: s.Agent, Purpose: s.Purpose, Ended: !s.EndedAt.IsZero(), Expires: s.ExpiresAt, Epoch: s.Epoch, Bound: string(s.Bound)}
			for _, parent := range within {
				one.Within = append(one.Within, parent.ID)
			}
			return one, nil
		},
		Grants: func(ctx context.Context, tenant estover.TenantID, id string) (*policy.Grants, error) {
			return f.grants.Get(ctx, tenant, id)
		},
		Resource: f.resource,
		Holds: func(ctx context.Context, tenant estover.TenantID, a *policy.Agent) (codes []string, err error) {
			over, err := f.holds.Over(ctx, tenant, hold.Agent{Blueprint: a.Blueprint, Sponsor: a.Sponsor})
			for _, h := range over {
				codes = append(codes, string(h.Scope))
			}
			return codes, err
		},
	}
}

// within are the sessions that one is a part of, the nearest first.
func (f *facts) within(ctx context.Context, tenant estover.TenantID, s *session.Session) (all []*session.Session, err error) {
	for s.Parent != "" && len(all) <= session.MaxDepth {
		if s, err = f.sessions.Snapshot(ctx, tenant, s.Parent); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// covered says why an agent may not act that is held along with others, if it is.
func (f *facts) covered(ctx context.Context, tenant estover.TenantID, a *agent.Agent) error {
	over, err := f.holds.Over(ctx, tenant, hold.Agent{Blueprint: a.Blueprint, Sponsor: a.Sponsor})
	if err == nil && len(over) > 0 {
		err = agent.ErrNotActive.With("The agent is %s.", agent.Quarantined)
	}
	return err
}

// wide gives what says which holds cover an agent along with others, as the
// registry shows them.
func wide(ctx context.Context, tx *db.Tx) (func(blueprint, sponsor string) []agent.Hold, error) {
	over, err := hold.Over(ctx, tx)
	return func(blueprint, sponsor string) (all []agent.Hold) {
		for _, h := range over(hold.Agent{Blueprint: blueprint, Sponsor: sponsor}) {
			all = append(all, agent.Hold{ID: h.ID, Kind: agent.Quarantine, Scope: string(h.Scope), Reason: h.Reason, By: h.By, At: h.At})
		}
		return all
	}, err
}

// loadAgent is an agent as policy sees it. That its sponsor leaves touches the
// agent too, since it is then suspended.
func (f *facts) loadAgent(ctx context.Context, tx *db.Tx, id string) (*policy.Agent, error) {
	s, err := agent.Load(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	a := &policy.Agent{
		ID: s.ID, Blueprint: s.Blueprint, Team: s.Team, Environment: s.Environment, Tier: s.Tier, Risk: string(s.Risk.Band), Clearance: s.Clearance,
		Purposes: s.Purposes, Expires: s.ExpiresAt, Segments: s.Segments,
		Sponsor: s.Sponsor, Sponsored: f.people.Sponsor(ctx, tx, s.Sponsor) == nil,
	}
	for _, h := range s.Holds {
		switch h.Kind {
		case agent.Activation, agent.Retirement:
			a.Pending = true
		default:
			a.Holds = append(a.Holds, string(h.Kind))
		}
	}
	return a, nil
}

// sponsors are those who hear of what becomes of an agent's grants.
func (f *facts) sponsors(ctx context.Context, tx *db.Tx, id string) ([]estover.Subject, error) {
	a, err := agent.Load(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	return []estover.Subject{estover.User(a.Sponsor)}, nil
}

// loadGrants are the grants of an agent as policy sees them: those that may cover
// something.
func (f *facts) loadGrants(ctx context.Context, tx *db.Tx, id string) (*policy.Grants, error) {
	list, err := f.access.Load(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	tenant := tx.Tenant()
	var out []policy.Grant
	for _, g := range list {
		if g.Kind == access.Eligible {
			continue
		}
		one := policy.Grant{
			ID: g.ID, Resource: g.Resource, Actions: g.Actions, Class: g.Class, Purposes: g.Purposes,
			Parameters: g.Parameters, Session: g.Session, Elevated: g.Elevated(), Unused: !g.AnnouncedAt.IsZero(),
			From: g.StartsAt, Until: g.ExpiresAt, Ended: !g.EndedAt.IsZero(),
		}
		if drawn := access.Drawn(list, &g, access.Worker{}); len(drawn) > 0 {
			one.Left = func(ctx context.Context) (word, which string, err error) { return f.access.Left(ctx, tenant, drawn) }
		}
		out = append(out, one)
	}
	return policy.NewGrants(out), nil
}

func loadResource(ctx context.Context, tx *db.Tx, id string) (*policy.Resource, error) {
	u, err := resource.Load(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	held, err := hold.OnResource(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	codes := make([]string, len(held))
	for i, h := range held {
		codes[i] = string(h.Scope)
	}
	return &policy.Resource{
		ID: u.ID, Type: u.Type, Class: u.Class, Tags: u.Tags, Purposes: u.Purposes, Destination: u.Destination,
		SpecialCategory: u.SpecialCategory, Identifier: u.BaseURL, Segment: u.Segment, Holds: codes,
	}, nil
}

// resource is a resource of the catalogue, or a secret as one.
func (f *facts) resource(ctx context.Context, tenant estover.TenantID, ref string) (*policy.Resource, error) {
	path, isSecret := strings.CutPrefix(ref, "secret:")
	if !isSecret {
		return f.upstream.Get(ctx, tenant, ref)
	}
	class, err := f.secrets.Class(ctx, tenant, path)
	if err != nil {
		return nil, err
	}
	k := secretKey{tenant, ref, class}
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.secretR[k]
	if r == nil {
		if len(f.secretR) > 10_000 {
			clear(f.secretR)
		}
		r = &policy.Resource{ID: ref, Type: "secret", Class: class}
		f.secretR[k] = r
	}
	return r, nil
}

// loadClient is an agent as the token service sees it: the OAuth client whose
// id is the agent's.
func (f *facts) loadClient(ctx context.Context, tx *db.Tx, id string) (*token.Client, error) {
	s, err := agent.Load(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	tenant := tx.Tenant()
	return oauth.ClientOf(s, func(ctx context.Context, now time.Time) error {
		if status := s.StatusAt(now); status != agent.Active {
			return agent.ErrNotActive.With("The agent is %s.", status)
		}
		if err := f.covered(ctx, tenant, &s.Agent); err != nil {
			return err
		}
		there, err := f.people.Active(ctx, tenant, s.Sponsor)
		if err == nil && !there {
			return agent.ErrNotActive.With("The agent has no sponsor any more.")
		}
		return err
	})
}

// Client is an agent as a client of the token service ([token.Clients]).
func (f *facts) Client(ctx context.Context, tenant estover.TenantID, id string) (*token.Client, error) {
	var err error
	if token.IsURL(id) {
		id, err = f.registry.ByMetadataURL(ctx, tenant, id)
	}
	var c *token.Client
	if err == nil {
		c, err = f.clients.Get(ctx, tenant, id)
	}
	if estover.KindOf(err) == estover.NotFound {
		err = token.ErrNoClient
	}
	return c, err
}

// acting says why a person may not act, if they may not.
func (f *facts) acting(ctx context.Context, tenant estover.TenantID, person string) error {
	there, err := f.people.Active(ctx, tenant, person)
	if err == nil && !there {
		err = directory.ErrDisabled.With("The person is disabled.")
	}
	return err
}

// vouched is whom somebody at an identity provider is here.
func (f *facts) vouched(ctx context.Context, tenant estover.TenantID, provider, issuer, subject string, claims map[string]any) (person string, strong bool, err error) {
	return f.people.Vouched(ctx, tenant, provider, issuer, directory.Identity{Subject: subject, Claims: claims})
}

// requester is what people are told of an agent that asks to act for them. Its
// digest changes with that, and with what the agent is registered for.
func (f *facts) requester(ctx context.Context, tenant estover.TenantID, id string) (oauth.Requester, error) {
	a, err := f.registry.Snapshot(ctx, tenant, id)
	if err != nil {
		return oauth.Requester{}, err
	}
	r := oauth.Requester{ID: a.ID, Name: a.Name, Kind: a.Blueprint, Team: a.Team}
	if r.Sponsor, err = f.people.Name(ctx, tenant, a.Sponsor); err != nil {
		return oauth.Requester{}, err
	}
	known, err := json.Marshal([]any{r, a.Sponsor, a.Purposes, a.Client})
	if err != nil {
		return oauth.Requester{}, err
	}
	sum := sha256.Sum256(known)
	r.Digest = hex.EncodeToString(sum[:])
	return r, nil
}

// identity is what is known of the person that somebody acts for.
func (f *facts) identity(ctx context.Context, caller estover.Caller) (oauth.Identity, error) {
	p, err := f.people.Identity(ctx, caller)
	return oauth.Identity{Name: p.Name, Email: p.Email}, err
}

// Secret finds the credential that a client secret belongs to.
func (f *facts) Secret(ctx context.Context, tenant estover.TenantID, id, value string) (string, error) {
	_, c, err := f.registry.BySecret(ctx, tenant, id, value)
	if err != nil {
		return "", err
	}
	return c.ID, nil
}

// Used notes that a credential has just proved something.
func (f *facts) Used(tenant estover.TenantID, credential string) { f.registry.Used(tenant, credential) }

// Allowed is what an agent may ask for on the resource with this identifier,
// its base URL ([token.Access]).
func (f *facts) Allowed(ctx context.Context, tenant estover.TenantID, agentID, identifier, purpose string) (token.Allowed, error) {
	u, err := f.identified(ctx, tenant, identifier)
	if err != nil {
		return token.Allowed{}, err
	}
	grants, err := f.access.Grants(ctx, tenant, agentID)
	if err != nil {
		return token.Allowed{}, err
	}
	a := token.Allowed{
		Resource: u.ID, Audience: u.BaseURL, Actions: make([]string, 0, len(u.Actions)), Scopes: make([]string, 0, len(u.Actions)),
	}
	now := f.now()
	for i := range u.Actions {
		action := &u.Actions[i]
		a.Actions = append(a.Actions, action.Name)
		class := action.Class
		if class == "" {
			class = u.Class
		}
		call := access.Call{Resource: u.ID, Action: action.Name, Class: class, Purpose: purpose, Some: true}
		if _, fit := access.Entitled(now, grants, call); fit == access.Granted {
			a.Scopes = append(a.Scopes, action.Name)
		}
	}
	slices.Sort(a.Scopes)
	a.Scopes = slices.Compact(a.Scopes)
	slices.Sort(a.Actions)
	a.Actions = slices.Compact(a.Actions)
	if len(a.Scopes) == 0 {
		return token.Allowed{}, token.ErrTarget
	}
	return a, nil
}

// identified is the resource that has this URL as its own, or that a reverse
// route leads to which has: whoever found it there (RFC 9728) asks for a token by
// that URL. The comparison is exact: what is normalised was normalised when the
// resource was registered (RFC 8707, section 2).
func (f *facts) identified(ctx context.Context, tenant estover.TenantID, identifier string) (*resource.Upstream, error) {
	if path, ok := strings.CutPrefix(identifier, f.origin); ok {
		if at, ok := rest.Find(f.base, path); ok && at.Tenant == tenant {
			return f.routed(ctx, at)
		}
	}
	// Whatever else a parser would find wrong with it, it is no URL of a resource then.
	at, port := "", ""
	if rest, ok := strings.CutPrefix(identifier, "https://"); ok {
		at, port = rest, "443"
	} else if rest, ok := strings.CutPrefix(identifier, "http://"); ok {
		at, port = rest, "80"
	}
	if end := strings.IndexAny(at, "/?#"); end >= 0 {
		at = at[:end]
	}
	host, err := resource.HostPort(at, port)
	if err != nil || port == "" {
		return nil, token.ErrTarget
	}
	u, err := f.resources.UpstreamByHost(ctx, tenant, host)
	switch {
	case estover.KindOf(err) == estover.NotFound, err == nil && u.BaseURL != identifier:
		return nil, token.ErrTarget
	case err != nil:
		return nil, err
	}
	return u, nil
}

// routed is the resource that a reverse route leads to.
func (f *facts) routed(ctx context.Context, at rest.Place) (*resource.Upstream, error) {
	u, err := f.resources.RouteByName(ctx, at.Tenant, at.Name)
	if estover.KindOf(err) == estover.NotFound {
		err = token.ErrTarget
	}
	return u, err
}
