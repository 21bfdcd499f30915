package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/approval"
	"estover.dev/internal/approval/document"
	"estover.dev/internal/approve"
	"estover.dev/internal/db"
	"estover.dev/internal/directory"
	"estover.dev/internal/edge"
	"estover.dev/internal/notify"
	"estover.dev/internal/token"
)

// channels are where people are told that something waits for them.
func (s *Server) channels() *notify.Notify {
	return notify.New(s.guard, notify.Options{
		Describe: s.matter, People: s.told, Post: s.postTo, Dial: s.dialTo, Logger: s.logger,
		Secret: func(ctx context.Context, t estover.TenantID, path, host string) (estover.Secret, error) {
			in, err := s.facts.secrets.Use(ctx, estover.Caller{Tenant: t, Subject: estover.System("notify")}, path, "", host)
			return in.Value, err
		},
	})
}

// matter is a request as people are told of it.
func (s *Server) matter(ctx context.Context, t estover.TenantID, id string) (m notify.Matter, err error) {
	r, err := s.requests.Get(ctx, estover.Caller{Tenant: t, Subject: estover.System("notify")}, id)
	if err != nil {
		return m, err
	}
	m = notify.Matter{
		Reason: r.Reason, Link: token.Issuer(s.config.Issuer).Of(t) + approve.Path + "/" + r.ID,
		Open: r.State == approval.Pending, Until: r.ExpiresAt, Fingerprint: document.Fingerprint(r.Document),
	}
	who := string(r.Requester)
	if r.Requester.Kind() == estover.UserKind {
		if name, err := s.facts.people.Name(ctx, t, r.Requester.ID()); err == nil {
			who = notify.Quoted(name)
		}
	}
	switch {
	case r.Kind != approval.Access:
		m.Title = fmt.Sprintf("%s asks for %s of %s", who, r.Kind, r.Target)
	case r.Requester == estover.Agent(r.Agent):
		m.Title = "The agent " + r.AgentName + " asks for access"
	default:
		m.Title = fmt.Sprintf("%s asks for access for the agent %s", who, r.AgentName)
	}
	for _, item := range r.Offer.Items {
		name := item.Name
		if name == "" {
			name = item.Resource
		}
		line := name + ": " + strings.Join(item.Actions, ", ")
		for _, p := range sortedNames(item.Parameters) {
			line += fmt.Sprintf(", %s: %s", p, notify.Quoted(strings.Join(item.Parameters[p], " or ")))
		}
		m.Lines = append(m.Lines, line)
	}
	if r.Offer.Seconds > 0 {
		m.Lines = append(m.Lines, "For "+(time.Duration(r.Offer.Seconds)*time.Second).String()+" from the approval on")
	}
	if r.Purpose != "" {
		m.Lines = append(m.Lines, "Purpose: "+notify.Quoted(r.Purpose))
	}
	if r.Risk.Level != "" {
		m.Lines = append(m.Lines, "Risk: "+r.Risk.String())
	}
	for _, name := range sortedNames(r.Context) {
		m.Lines = append(m.Lines, notify.Quoted(name+": "+r.Context[name]))
	}
	return m, nil
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// told are the active people whom an event names: by subject, or by role
// ("role:approver").
func (s *Server) told(ctx context.Context, t estover.TenantID, who []string, _ string) (all []notify.Person, err error) {
	err = s.db.View(ctx, t, func(tx *db.Tx) error {
		all = nil
		seen := map[string]bool{}
		add := func(p directory.Person) {
			if p.Status == directory.Active && !seen[p.ID] {
				seen[p.ID] = true
				all = append(all, notify.Person{Subject: estover.User(p.ID), Name: p.Name, Email: p.Email})
			}
		}
		var roles []estover.Role
		for _, w := range who {
			if role, ok := strings.CutPrefix(w, "role:"); ok {
				roles = append(roles, estover.Role(role))
				continue
			}
			if estover.Subject(w).Kind() != estover.UserKind {
				continue
			}
			p, err := directory.Known(ctx, tx, estover.Subject(w).ID())
			switch {
			case err == nil:
				add(p)
			case estover.KindOf(err) != estover.NotFound:
				return err
			}
		}
		if len(roles) == 0 {
			return nil
		}
		people, err := directory.Holding(ctx, tx, roles)
		for _, p := range people {
			add(p)
		}
		return err
	})
	return all, err
}

// reach is how far a channel opens the address of its other side, and by which
// roots the certificate there is checked.
func (s *Server) reach(ctx context.Context, t estover.TenantID, c notify.Spec, host edge.Host) (open edge.Opening, roots *x509.CertPool, err error) {
	if c.CA != "" {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM([]byte(c.CA)) {
			return open, nil, notify.ErrSend.With("The roots of the channel are no certificates.")
		}
	}
	if c.AllowPrivate {
		open, err = s.opening(ctx, t, host)
	}
	return open, roots, err
}

// maxAcknowledgement bounds the answer of a webhook, of which nothing but the
// status counts.
const maxAcknowledgement = 64 << 10

// postTo sends a message to the webhook of a channel.
func (s *Server) postTo(ctx context.Context, t estover.TenantID, c notify.Spec, r *http.Request) (int, error) {
	host, err := edge.ParseHost(r.URL.Host, edge.DefaultPort(r.URL.Scheme))
	if err != nil {
		return 0, err
	}
	f := &edge.Fetcher{Dialer: &edge.Dialer{Own: s.own}}
	if f.Opening, f.Roots, err = s.reach(ctx, t, c, host); err != nil {
		return 0, err
	}
	d, err := f.Do(r, maxAcknowledgement)
	return d.Status, err
}

// dialTo opens a connection to the mail server of a channel.
func (s *Server) dialTo(ctx context.Context, t estover.TenantID, c notify.Spec, address string) (net.Conn, *tls.Config, error) {
	host, err := edge.ParseHost(address, 25)
	if err != nil {
		return nil, nil, err
	}
	open, roots, err := s.reach(ctx, t, c, host)
	if err != nil {
		return nil, nil, err
	}
	conn, err := (&edge.Dialer{Own: s.own}).Dial(ctx, host.String(), open)
	return conn, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, err
}
