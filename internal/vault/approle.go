package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/ticket"
)

func (d *Door) appRoles() []Route {
	route := func(r Route) Route { r.Mount = ticket.AppRoles; return r }
	all := []Route{
		route(Route{Path: "login", Write: d.loginAppRole, Open: true, Help: "log in by role ID and secret ID"}),
		route(Route{Path: "role", List: d.listRoles, Help: "the roles"}),
		route(Route{Path: "role/:name", Read: d.readAppRole, Write: d.writeAppRole, Delete: d.dropRole("name"), Exists: d.roleThere("name"), Help: "a role: what it takes to log in, and what one then is"}),
		route(Route{Path: "role/:name/role-id", Read: d.readRoleID, Write: d.writeRoleID, Help: "the role ID"}),
		route(Route{Path: "role/:name/secret-id", Write: d.makeSecretID, List: d.listSecretIDs, Help: "make a secret ID, or list the accessors of those there are"}),
		route(Route{Path: "role/:name/custom-secret-id", Write: d.makeSecretID, Help: "make a secret ID of one's own"}),
		route(Route{Path: "role/:name/secret-id/lookup", Write: d.lookupSecretID, Help: "what a secret ID is"}),
		route(Route{Path: "role/:name/secret-id/destroy", Write: d.destroySecretID, Delete: d.destroySecretID, Help: "take a secret ID away"}),
		route(Route{Path: "role/:name/secret-id-accessor/lookup", Write: d.lookupSecretID, Help: "what the secret ID of an accessor is"}),
		route(Route{Path: "role/:name/secret-id-accessor/destroy", Write: d.destroySecretID, Delete: d.destroySecretID, Help: "take the secret ID of an accessor away"}),
		route(Route{Path: "tidy/secret-id", Write: d.tidyTickets, Help: "take away what has ended"}),
	}
	for path, name := range appFields {
		all = append(all, route(Route{Path: "role/:name/" + path, Read: d.readAppField(name), Write: d.writeAppRole, Delete: d.resetAppField(name), Help: "the field " + name + " of a role"}))
	}
	return all
}

// appFields are the fields of a role that have a path of their own.
var appFields = map[string]string{
	"policies": "token_policies", "period": "token_period", "bind-secret-id": "bind_secret_id", "secret-id-num-uses": "secret_id_num_uses", "secret-id-ttl": "secret_id_ttl",
	"secret-id-bound-cidrs": "secret_id_bound_cidrs", "bound-cidr-list": "bound_cidr_list", "token-ttl": "token_ttl", "token-max-ttl": "token_max_ttl",
	"token-num-uses": "token_num_uses", "token-bound-cidrs": "token_bound_cidrs", "local-secret-ids": "local_secret_ids",
}

func (d *Door) loginAppRole(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		RoleID   string         `json:"role_id"`
		SecretID estover.Secret `json:"secret_id"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	if in.RoleID == "" {
		return nil, refuse(http.StatusBadRequest, "missing role_id")
	}
	m, err := d.Tickets.LoginAppRole(ctx, q.Tenant, q.way(), q.from(), in.RoleID, in.SecretID)
	if err != nil {
		return nil, err
	}
	return signedIn(m), nil
}

// noRole are the words for a role that is not there (V25).
func noRole(err error) error {
	var e *estover.Error
	if errors.Is(err, ticket.ErrNoRole) && errors.As(err, &e) && strings.HasPrefix(e.Detail, "role ") || errors.Is(err, ticket.ErrNoSecret) && errors.As(err, &e) {
		return refuse(http.StatusNotFound, "%s", e.Detail).because(err)
	}
	return err
}

func appData(r *ticket.Role) map[string]any {
	var cidrs any // null until somebody sets them, as Vault has it
	if r.App.CIDRs != nil {
		cidrs = r.App.CIDRs
	}
	data := limited(r.Limits, map[string]any{
		"bind_secret_id": r.App.BindSecretID, "secret_id_bound_cidrs": cidrs, "secret_id_num_uses": r.App.NumUses, "secret_id_ttl": r.App.TTL, "local_secret_ids": r.App.Local,
		"agent": r.Agent,
	})
	for _, name := range r.Limits.Old {
		if name == "bound_cidr_list" {
			data[name] = words(r.App.CIDRs)
		}
	}
	return data
}

func (d *Door) readAppRole(ctx context.Context, q *Request) (*Answer, error) {
	r, err := d.Tickets.Role(ctx, q.Caller, q.way(), q.roleName("name"))
	if err != nil {
		return nil, err
	}
	return &Answer{Data: appData(r)}, nil
}

func (d *Door) readAppField(name string) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		r, err := d.Tickets.Role(ctx, q.Caller, q.way(), q.roleName("name"))
		if err != nil {
			return nil, err
		}
		data := appData(r)
		if name == "bound_cidr_list" {
			data[name] = words(r.App.CIDRs)
		}
		return &Answer{Data: map[string]any{name: data[name]}}, nil
	}
}

// resetAppField puts one field of a role back to what it is for a new one.
func (d *Door) resetAppField(name string) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		return nil, d.changeAppRole(ctx, q, "", func(r *ticket.Role) error {
			switch name {
			case "token_policies":
				r.Limits.Policies = []string{}
			case "token_period":
				r.Limits.Period = 0
			case "bind_secret_id":
				r.App.BindSecretID = true
			case "secret_id_num_uses":
				r.App.NumUses = 0
			case "secret_id_ttl":
				r.App.TTL = 0
			case "secret_id_bound_cidrs", "bound_cidr_list":
				r.App.CIDRs = nil
			case "token_ttl":
				r.Limits.TTL = 0
			case "token_max_ttl":
				r.Limits.MaxTTL = 0
			case "token_num_uses":
				r.Limits.NumUses = 0
			case "token_bound_cidrs":
				r.Limits.CIDRs = []string{}
			default:
				return refuse(http.StatusMethodNotAllowed, "unsupported operation")
			}
			return nil
		})
	}
}

// changeAppRole changes a role; one field of one that is not there cannot be
// changed.
func (d *Door) changeAppRole(ctx context.Context, q *Request, agent string, change func(*ticket.Role) error) error {
	whole := q.route.Path == "role/:name"
	_, err := d.Tickets.ChangeRole(ctx, q.Caller, q.way(), ticket.AppRoles, q.roleName("name"), agent, func(r *ticket.Role) error {
		if r.New && !whole {
			return ticket.ErrNoRole.With("role %q does not exist", r.Name)
		}
		return change(r)
	})
	return noRole(err)
}

func (d *Door) writeAppRole(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		limits
		Agent     string         `json:"agent"`
		RoleID    *string        `json:"role_id"`
		Bind      *bool          `json:"bind_secret_id"`
		CIDRs     *[]string      `json:"secret_id_bound_cidrs"`
		OldCIDRs  *[]string      `json:"bound_cidr_list"`
		Uses      *int64         `json:"secret_id_num_uses"`
		TTL       *time.Duration `json:"secret_id_ttl"`
		Local     *bool          `json:"local_secret_ids"`
		Policies  *[]string      `json:"policies"`
		OldPeriod *time.Duration `json:"period"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	return nil, d.changeAppRole(ctx, q, in.Agent, func(r *ticket.Role) error {
		(&before{Policies: in.Policies, Period: in.OldPeriod}).apply(&r.Limits, &in.limits)
		in.apply(&r.Limits)
		set(&r.RoleID, in.RoleID)
		set(&r.App.BindSecretID, in.Bind)
		if in.OldCIDRs != nil && in.CIDRs == nil {
			r.App.CIDRs = *in.OldCIDRs
			if !contains(r.Limits.Old, "bound_cidr_list") {
				r.Limits.Old = append(r.Limits.Old, "bound_cidr_list")
			}
		}
		set(&r.App.CIDRs, in.CIDRs)
		set(&r.App.NumUses, in.Uses)
		setSeconds(&r.App.TTL, in.TTL)
		if in.Local != nil && *in.Local != r.App.Local && !r.New {
			return refuse(http.StatusBadRequest, "local_secret_ids can only be modified during role creation")
		}
		set(&r.App.Local, in.Local)
		return nil
	})
}

func contains(list []string, s string) bool {
	for _, have := range list {
		if have == s {
			return true
		}
	}
	return false
}

func (d *Door) readRoleID(ctx context.Context, q *Request) (*Answer, error) {
	r, err := d.Tickets.Role(ctx, q.Caller, q.way(), q.roleName("name"))
	if err != nil {
		return nil, err
	}
	return &Answer{Data: map[string]any{"role_id": r.RoleID}}, nil
}

func (d *Door) writeRoleID(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		RoleID string `json:"role_id"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	if in.RoleID == "" {
		return nil, refuse(http.StatusBadRequest, "missing role_id")
	}
	return nil, d.changeAppRole(ctx, q, "", func(r *ticket.Role) error {
		r.RoleID = in.RoleID
		return nil
	})
}

func (d *Door) makeSecretID(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Value      estover.Secret `json:"secret_id"`
		Meta       string         `json:"metadata"`
		CIDRs      []string       `json:"cidr_list"`
		TokenCIDRs []string       `json:"token_bound_cidrs"`
		TTL        *time.Duration `json:"ttl"`
		Uses       *int64         `json:"num_uses"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	w := ticket.SecretWish{CIDRs: in.CIDRs, TokenCIDRs: in.TokenCIDRs, Uses: in.Uses}
	if in.Meta != "" {
		if err := json.Unmarshal([]byte(in.Meta), &w.Meta); err != nil {
			return nil, refuse(http.StatusBadRequest, "failed to parse metadata: it is a JSON object of strings, written as a string")
		}
	}
	if in.TTL != nil {
		n := seconds(*in.TTL)
		w.TTL = &n
	}
	if strings.HasSuffix(q.route.Path, "/custom-secret-id") {
		if in.Value.Empty() {
			return nil, refuse(http.StatusBadRequest, "missing secret_id")
		}
		w.Value = in.Value
	}
	v, s, err := d.Tickets.CreateSecretID(ctx, q.Caller, q.way(), q.roleName("name"), w)
	if err != nil {
		return nil, noRole(err)
	}
	return &Answer{Wraps: s.ID, Data: map[string]any{
		"secret_id": string(v.Reveal()), "secret_id_accessor": s.ID, "secret_id_ttl": s.TTL, "secret_id_num_uses": s.Uses,
	}}, nil
}

func (d *Door) listSecretIDs(ctx context.Context, q *Request) (*Answer, error) {
	list, err := d.Tickets.SecretIDs(ctx, q.Caller, q.way(), q.roleName("name"))
	if err != nil {
		return nil, noRole(err)
	}
	return listing(list, nil)
}

// secretRef reads which secret ID a request is about.
func (q *Request) secretRef() (ticket.SecretRef, error) {
	var in struct {
		Value    estover.Secret `json:"secret_id"`
		Accessor string         `json:"secret_id_accessor"`
	}
	if err := q.Read(&in); err != nil {
		return ticket.SecretRef{}, err
	}
	if strings.Contains(q.route.Path, "/secret-id-accessor/") {
		if in.Accessor == "" {
			return ticket.SecretRef{}, refuse(http.StatusBadRequest, "missing secret_id_accessor")
		}
		return ticket.SecretRef{Accessor: in.Accessor}, nil
	}
	if in.Value.Empty() {
		return ticket.SecretRef{}, refuse(http.StatusBadRequest, "missing secret_id")
	}
	return ticket.SecretRef{Value: in.Value}, nil
}

func (d *Door) lookupSecretID(ctx context.Context, q *Request) (*Answer, error) {
	ref, err := q.secretRef()
	if err != nil {
		return nil, err
	}
	s, err := d.Tickets.LookupSecretID(ctx, q.Caller, q.way(), q.roleName("name"), ref)
	if errors.Is(err, ticket.ErrNoSecret) && ref.Accessor == "" {
		return nil, nil // Vault has nothing to say of a secret ID that there is not
	}
	if err != nil {
		return nil, noRole(err)
	}
	expires := "0001-01-01T00:00:00Z"
	if !s.ExpiresAt.IsZero() {
		expires = Time(s.ExpiresAt)
	}
	meta := s.Meta
	if meta == nil {
		meta = map[string]string{}
	}
	return &Answer{Data: map[string]any{
		"secret_id_accessor": s.ID, "secret_id_ttl": s.TTL, "secret_id_num_uses": s.UsesLeft, "metadata": meta, "cidr_list": words(s.CIDRs), "token_bound_cidrs": words(s.TokenCIDRs),
		"creation_time": Time(s.CreatedAt), "expiration_time": expires, "last_updated_time": Time(s.UpdatedAt),
	}}, nil
}

func (d *Door) destroySecretID(ctx context.Context, q *Request) (*Answer, error) {
	ref, err := q.secretRef()
	if err != nil {
		return nil, err
	}
	err = d.Tickets.DestroySecretID(ctx, q.Caller, q.way(), q.roleName("name"), ref)
	if errors.Is(err, ticket.ErrNoSecret) && ref.Accessor == "" {
		return nil, nil
	}
	if err = noRole(err); err != nil && q.Op == Delete { // here a missing accessor is told of, also where it is deleted
		var f *Failure
		if errors.As(err, &f) {
			return nil, &Failure{Status: f.Status, Errors: f.Errors, err: fmt.Errorf("%w", f)}
		}
	}
	return nil, err
}
