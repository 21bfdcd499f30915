package vault

import (
	"context"
	"slices"
	"strings"
	"time"

	"estover.dev/internal/edge"
	"estover.dev/internal/ticket"
)

func (d *Door) certs() []Route {
	const kind = ticket.CertRoles
	return []Route{
		{Mount: kind, Path: "config", Read: d.readCertConfig, Write: d.writeCertConfig, Help: "how certificates are looked at"},
		{Mount: kind, Path: "certs", List: d.listRoles, Help: "the certificates that let somebody in"},
		{Mount: kind, Path: "certs/:name", Read: d.readCertRole, Write: d.writeCertRole, Delete: d.dropRole("name"), Exists: d.roleThere("name"), Help: "a certificate that lets somebody in, and what one then is"},
		{Mount: kind, Path: "crls/:name", Read: d.readCRL, Write: d.writeCRL, Delete: d.dropCRL, Help: "a list of certificates that count no more"},
		{Mount: kind, Path: "login", Write: d.loginCert, Open: true, Help: "log in by the certificate of the connection"},
	}
}

// thumbprint is the certificate of the connection, as tickets are bound to one.
func thumbprint(q *Request) string { return edge.OriginOf(q.HTTP).Thumbprint() }

func (d *Door) loginCert(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Name string `json:"name"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	o := edge.OriginOf(q.HTTP)
	m, err := d.Tickets.LoginCert(ctx, q.Tenant, q.way(), q.from(), strings.ToLower(in.Name), ticket.Shown{Leaf: o.Certificate, Chain: o.Chain, Thumbprint: o.Thumbprint()})
	if err != nil {
		return nil, err
	}
	return signedIn(m), nil
}

func (d *Door) readCertConfig(ctx context.Context, q *Request) (*Answer, error) {
	c, err := d.Tickets.Cert(ctx, q.Caller, q.way())
	if err != nil {
		return nil, err
	}
	return &Answer{Data: map[string]any{"disable_binding": c.DisableBinding, "enable_identity_alias_metadata": c.EnableIdentity, "ocsp_cache_size": c.CacheSize}}, nil
}

func (d *Door) writeCertConfig(ctx context.Context, q *Request) (*Answer, error) {
	c, err := d.Tickets.Cert(ctx, q.Caller, q.way())
	if err != nil {
		return nil, err
	}
	var in struct {
		Disable  *bool  `json:"disable_binding"`
		Identity *bool  `json:"enable_identity_alias_metadata"`
		Cache    *int64 `json:"ocsp_cache_size"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	set(&c.DisableBinding, in.Disable)
	set(&c.EnableIdentity, in.Identity)
	set(&c.CacheSize, in.Cache)
	return nil, d.Tickets.SetCert(ctx, q.Caller, q.way(), c)
}

func (d *Door) readCertRole(ctx context.Context, q *Request) (*Answer, error) {
	r, err := d.Tickets.Role(ctx, q.Caller, q.way(), strings.ToLower(q.Param("name")))
	if err != nil {
		return nil, err
	}
	k := r.Cert
	return &Answer{Data: limited(r.Limits, map[string]any{
		"certificate": k.Certificate, "display_name": k.DisplayName, "allowed_names": words(k.Names), "allowed_common_names": words(k.CommonNames),
		"allowed_dns_sans": words(k.DNS), "allowed_email_sans": words(k.Emails), "allowed_uri_sans": words(k.URIs), "allowed_organizational_units": words(k.Units),
		"required_extensions": words(k.Extensions), "allowed_metadata_extensions": words(k.MetaExtension), "agent": r.Agent,
	})}, nil
}

func (d *Door) writeCertRole(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		limits
		before
		Agent       string         `json:"agent"`
		Certificate *string        `json:"certificate"`
		DisplayName *string        `json:"display_name"`
		Names       *[]string      `json:"allowed_names"`
		CommonNames *[]string      `json:"allowed_common_names"`
		DNS         *[]string      `json:"allowed_dns_sans"`
		Emails      *[]string      `json:"allowed_email_sans"`
		URIs        *[]string      `json:"allowed_uri_sans"`
		Units       *[]string      `json:"allowed_organizational_units"`
		Extensions  *[]string      `json:"required_extensions"`
		Metadata    *[]string      `json:"allowed_metadata_extensions"`
		Lease       *time.Duration `json:"lease"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	if in.before.TTL == nil {
		in.before.TTL = in.Lease
	}
	name := strings.ToLower(q.Param("name"))
	_, err := d.Tickets.ChangeRole(ctx, q.Caller, q.way(), ticket.CertRoles, name, in.Agent, func(r *ticket.Role) error {
		in.before.apply(&r.Limits, &in.limits)
		in.limits.apply(&r.Limits)
		k := r.Cert
		if r.New {
			k.DisplayName = name
		}
		set(&k.Certificate, in.Certificate)
		set(&k.DisplayName, in.DisplayName)
		set(&k.Names, in.Names)
		set(&k.CommonNames, in.CommonNames)
		set(&k.DNS, in.DNS)
		set(&k.Emails, in.Emails)
		set(&k.URIs, in.URIs)
		set(&k.Units, in.Units)
		set(&k.Extensions, in.Extensions)
		set(&k.MetaExtension, in.Metadata)
		return nil
	})
	return nil, err
}

func (d *Door) readCRL(ctx context.Context, q *Request) (*Answer, error) {
	l, err := d.Tickets.RevocationList(ctx, q.Caller, q.way(), strings.ToLower(q.Param("name")))
	if err != nil {
		return nil, err
	}
	serials := map[string]any{}
	for _, s := range slices.Sorted(keys(l.Serials)) {
		serials[s] = map[string]any{}
	}
	return &Answer{Data: map[string]any{"serials": serials}}, nil
}

// keys goes through the names of a map.
func keys[V any](m map[string]V) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (d *Door) writeCRL(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		CRL string `json:"crl"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	return nil, d.Tickets.PutList(ctx, q.Caller, q.way(), strings.ToLower(q.Param("name")), in.CRL)
}

func (d *Door) dropCRL(ctx context.Context, q *Request) (*Answer, error) {
	return nil, d.Tickets.DropList(ctx, q.Caller, q.way(), strings.ToLower(q.Param("name")))
}
