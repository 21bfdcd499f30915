package resource

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"

	"estover.dev"
	"estover.dev/internal/db"
)

// An Upstream is a resource made ready for the data path: everything in it is
// parsed. It is shared and never changed.
type Upstream struct {
	Resource
	URL     *url.URL       // of Spec.BaseURL
	Roots   *x509.CertPool // of Spec.CA; nil is the system's
	Private []netip.Prefix // of Spec.AllowPrivate

	routes node
}

// ready parses a resource.
func ready(r Resource) (*Upstream, error) {
	u := &Upstream{Resource: r}
	var err error
	if u.URL, err = url.Parse(r.BaseURL); err != nil {
		return nil, fmt.Errorf("resource %s: %w", r.ID, err)
	}
	if r.CA != "" {
		u.Roots = x509.NewCertPool()
		if !u.Roots.AppendCertsFromPEM([]byte(r.CA)) {
			return nil, fmt.Errorf("resource %s: its roots cannot be read", r.ID)
		}
	}
	for _, text := range r.AllowPrivate {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("resource %s: %w", r.ID, err)
		}
		u.Private = append(u.Private, p)
	}
	for _, a := range r.Actions {
		if _, err := u.routes.add(a); err != nil {
			return nil, fmt.Errorf("resource %s: %w", r.ID, err)
		}
	}
	return u, nil
}

// Load is what a [guard.Cache] of the kind "resource" calls:
// [Catalogue.Upstream] here, and whoever keeps something that follows from a
// resource.
func Load(ctx context.Context, tx *db.Tx, id string) (*Upstream, error) {
	r, err := find(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	return ready(r)
}

// Lock is [Load], and waits for those who [Keep] it: what they have made is there
// to be seen afterwards.
func Lock(ctx context.Context, tx *db.Tx, id string) (*Upstream, error) {
	r, err := lock(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	return ready(r)
}

// Keep keeps a resource from being locked before the transaction ends, beside others
// who do the same.
func Keep(ctx context.Context, tx *db.Tx, id string) error { return keep(ctx, tx, id) }

// IDOf is the id of a resource that is named by its id or its name.
func IDOf(ctx context.Context, tx *db.Tx, ref string) (string, error) {
	r, err := find(ctx, tx, ref)
	if errors.Is(err, ErrNotFound) {
		r, err = findName(ctx, tx, ref)
	}
	return r.ID, err
}

// Upstream is the resource with this id, from memory, or [ErrNotFound].
func (c *Catalogue) Upstream(ctx context.Context, tenant estover.TenantID, id string) (*Upstream, error) {
	return c.upstreams.Get(ctx, tenant, id)
}

// InSegments are the resources of these segments and of none, or all if no segment
// is named, in the order of their names: at most so many, and none from behind
// the first five thousand.
func (c *Catalogue) InSegments(ctx context.Context, tenant estover.TenantID, segments []string, limit int) (found []Resource, err error) {
	err = c.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		after := ""
		for range 5000 / MaxPage {
			page, err := list(ctx, tx, Filter{}, after, MaxPage)
			if err != nil || len(page) == 0 {
				return err
			}
			for _, r := range page {
				if len(segments) == 0 || r.Segment == "" || slices.Contains(segments, r.Segment) {
					found = append(found, r)
				}
				if len(found) == limit {
					return nil
				}
			}
			after = page[len(page)-1].Name
		}
		return nil
	})
	return found, err
}

// UpstreamByName is the resource with this name, from memory, or [ErrNotFound].
func (c *Catalogue) UpstreamByName(ctx context.Context, tenant estover.TenantID, name string) (*Upstream, error) {
	id, err := c.names.Get(ctx, tenant, name)
	if err != nil {
		return nil, err
	}
	return c.upstreams.Get(ctx, tenant, id)
}

// RouteByName is [Catalogue.UpstreamByName] for what the gateway forwards to: a
// service has no route.
func (c *Catalogue) RouteByName(ctx context.Context, tenant estover.TenantID, name string) (*Upstream, error) {
	u, err := c.UpstreamByName(ctx, tenant, name)
	if err == nil && u.Type == Service {
		return nil, ErrNotFound.With("The resource %s is a service: agents reach it with leases, and not by way of the gateway.", name)
	}
	return u, err
}

// UpstreamByHost is the resource that is addressed by this host and port, from
// memory, or [ErrNotFound]. The host is in the spelling of [HostPort].
func (c *Catalogue) UpstreamByHost(ctx context.Context, tenant estover.TenantID, hostPort string) (*Upstream, error) {
	id, err := c.hosts.Get(ctx, tenant, hostPort)
	if err != nil {
		return nil, err
	}
	return c.upstreams.Get(ctx, tenant, id)
}
