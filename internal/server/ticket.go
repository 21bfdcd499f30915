package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/edge"
	"estover.dev/internal/federation"
	"estover.dev/internal/guard"
	"estover.dev/internal/mount"
	"estover.dev/internal/secret/database"
	"estover.dev/internal/ticket"
	"estover.dev/internal/vault"
)

// doorTickets are the tokens of the Vault-compatible door.
func (s *Server) doorTickets() *ticket.Tickets {
	f := &s.facts
	return ticket.New(s.guard, ticket.Options{
		Sealer: s.sealer, Tenant: s.known,
		Session: s.ticketSession,
		Ambient: func(ctx context.Context, c estover.Caller, id string) (ticket.Session, error) {
			client, err := f.Client(ctx, c.Tenant, id)
			if err != nil {
				return ticket.Session{}, err
			}
			one, err := f.sessions.Ambient(ctx, c, client, "", nil)
			if err != nil {
				return ticket.Session{}, err
			}
			return s.ticketSession(ctx, c.Tenant, one.ID)
		},
		Hold:   func(ctx context.Context, tx *guard.Tx, id string) error { return f.sessions.Hold(ctx, tx, id) },
		Person: f.people.ByToken,
		Agent:  s.loginAgent,
		Retire: func(ctx context.Context, c estover.Caller, id string) error {
			err := f.registry.Retire(ctx, c, id, "The role that it was made with was removed.")
			if errors.Is(err, agent.ErrRetired) {
				err = nil
			}
			return err
		},
		Ended: func(ctx context.Context, tx *guard.Tx, ids []string) error {
			n, err := s.leases.EndOfTokens(ctx, tx, ids)
			tx.Note("leases", n)
			return err
		},
		Fetch: func(ctx context.Context, t estover.TenantID, url, authorities string, private bool) ([]byte, error) {
			return s.fetchKeys(ctx, federation.Source{Tenant: t, URL: url, CA: authorities, AllowPrivate: private})
		},
		Redeem: s.redeem,
		Logger: s.logger,
	})
}

// redeem sends a request to a token endpoint of somebody's provider.
func (s *Server) redeem(ctx context.Context, t estover.TenantID, x ticket.Exchange) ([]byte, error) {
	method, body := http.MethodPost, x.Form.Encode()
	if !x.Access.Empty() {
		method, body = http.MethodGet, ""
	}
	r, err := http.NewRequestWithContext(ctx, method, x.URL, strings.NewReader(body))
	if err != nil {
		return nil, edge.ErrFetch.With("The URL cannot be read.")
	}
	r.Header.Set("Accept", "application/json")
	if x.Access.Empty() {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.SetBasicAuth(url.QueryEscape(x.Client), url.QueryEscape(string(x.Secret.Reveal()))) // RFC 6749, section 2.3.1
	} else {
		r.Header.Set("Authorization", "Bearer "+string(x.Access.Reveal()))
	}
	f, err := s.fetcher(ctx, federation.Source{Tenant: t, URL: x.URL, CA: x.Authorities, AllowPrivate: x.Private})
	if err != nil {
		return nil, err
	}
	d, err := f.Do(r, edge.MaxKeys)
	if err == nil && d.Status != http.StatusOK {
		err = edge.ErrFetch.With("The provider refuses what it was sent: the answer has the status %d.", d.Status)
	}
	return d.Body, err
}

func (s *Server) ticketSession(ctx context.Context, t estover.TenantID, id string) (ticket.Session, error) {
	one, err := s.facts.sessions.Snapshot(ctx, t, id)
	if err != nil {
		return ticket.Session{}, err
	}
	return ticket.Session{ID: one.ID, Agent: one.Agent, Purpose: one.Purpose, Expires: one.ExpiresAt, Epoch: one.Epoch}, nil
}

// What agents are that were made with a role of the door, until somebody says more.
const (
	doorBlueprint = "vault-client"
	doorPurpose   = "vault-client"
)

// loginAgent is the agent that a role of the door leads to: the one that is
// named, or one that is made with the role. Whoever makes the role answers for it.
func (s *Server) loginAgent(ctx context.Context, c estover.Caller, at ticket.Way, name, role string) (id string, made bool, err error) {
	registry := s.facts.registry
	if name != "" {
		var a agent.Agent
		if strings.HasPrefix(name, "agt_") {
			a, err = registry.Get(ctx, c, name)
		} else {
			a, err = registry.ByName(ctx, c, name)
		}
		return a.ID, false, err
	}
	sponsor := s.ownerFor(ctx, c)
	if sponsor.Kind() != estover.UserKind {
		return "", false, agent.ErrSponsor
	}
	base, by := agentName(role), "vault/"+at.ID+"/"+role
	for n := range 50 {
		name := base
		if n > 0 {
			name = fmt.Sprintf("%s-%d", base, n+1)
		}
		a, err := registry.Create(ctx, c, agent.Spec{
			Name: name, Blueprint: doorBlueprint, Sponsor: sponsor.ID(), Purposes: []string{doorPurpose}, Clearance: estover.Confidential,
		}, agent.Origin{ManagedBy: by})
		if !errors.Is(err, agent.ErrNameTaken) {
			return a.ID, err == nil, err
		}
		// It may have been made for this very role, which was then not written.
		have, err := registry.ByName(ctx, c, name)
		if err == nil && have.ManagedBy == by && have.Status == agent.Active {
			return have.ID, true, nil
		}
		if err != nil && !errors.Is(err, agent.ErrNotFound) {
			return "", false, err
		}
	}
	return "", false, agent.ErrNameTaken
}

// agentName is a text as a name of an agent can be.
func agentName(text string) string {
	name := []byte(strings.ToLower(text))
	for i, c := range name {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
			name[i] = '-'
		}
	}
	return strings.Trim(string(name[:min(len(name), 58)]), ".-_")
}

// ticketKinds are the ways to log in at the Vault-compatible door, and its
// databases.
func (s *Server) ticketKinds() (all []mount.Kind) {
	for _, name := range []string{ticket.AppRoles, ticket.JWTRoles, "oidc", ticket.CertRoles} {
		all = append(all, mount.Kind{
			Name: name, Section: mount.Auth,
			Disabled: func(ctx context.Context, tx *guard.Tx, m mount.Mount) error {
				return s.tickets.EndOfMount(ctx, tx, m.ID)
			},
		})
	}
	return append(all, mount.Kind{
		Name: "database", Section: mount.Secrets,
		Empty: func(ctx context.Context, c estover.Caller, m mount.Mount) error {
			return s.databases.Empty(ctx, c, database.Mount{ID: m.ID, Path: strings.TrimSuffix(m.Full(), "/")})
		},
	})
}

// ticketToken says who a ticket is.
func (s *Server) ticketToken(r *http.Request, value string) (vault.Token, error) {
	o := edge.OriginOf(r)
	c, one, err := s.tickets.Authenticate(r.Context(), value, ticket.From{Address: o.Address, Certificate: o.Thumbprint(), Request: o.Request})
	if err != nil {
		return vault.Token{}, err
	}
	return vault.Token{Caller: c, Policies: one.Policies, Unbounded: isRoot(one), Ticket: one}, nil
}

// isRoot reports whether no policy of the door binds a ticket.
func isRoot(t *ticket.Ticket) bool { return len(t.Policies) == 1 && t.Policies[0] == ticket.Root }

// byAccessor is what binds the ticket of an accessor.
func (s *Server) byAccessor(ctx context.Context, c estover.Caller, accessor string) (vault.Token, error) {
	one, err := s.tickets.Lookup(ctx, c, ticket.Ref{Accessor: accessor})
	if err != nil {
		return vault.Token{}, err
	}
	return vault.Token{Caller: estover.Caller{Tenant: c.Tenant}, Policies: one.Policies, Unbounded: isRoot(one)}, nil
}

// wrapAnswer keeps an answer for whoever will have its token.
func (s *Server) wrapAnswer(ctx context.Context, q *vault.Request, a vault.Wrapped) (vault.WrapInfo, error) {
	c := q.Caller
	if c.Subject == "" { // of a log-in
		c.Subject = estover.System("vault")
	}
	body, err := vault.Keep(a)
	if err != nil {
		return vault.WrapInfo{}, err
	}
	w, err := s.tickets.Wrap(ctx, c, a.Path, body, a.Accessor, a.TTL)
	if err != nil {
		return vault.WrapInfo{}, err
	}
	return vault.WrapInfo{
		Token: string(w.Value.Reveal()), Accessor: w.ID, TTL: int64(w.TTL / time.Second), CreationTime: vault.Time(w.CreatedAt), CreationPath: w.Path, Accessed: w.Accessor,
	}, nil
}
