package vault

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/mount"
	"estover.dev/internal/ticket"
)

func (d *Door) tickets() []Route {
	route := func(path string, write Handler, help string) Route {
		return Route{Mount: mount.Token, Path: path, Write: write, Help: help}
	}
	sudo := func(r Route) Route { r.Sudo = true; return r }
	all := []Route{
		route("create", d.createTicket, "make a token that ends with the one that is used"),
		sudo(route("create-orphan", d.createTicket, "make a token that ends with no other")),
		route("create/:role", d.createTicket, "make a token as a role says"),
		route("lookup", d.lookupTicket, "what a token is"),
		route("lookup-accessor", d.lookupAccessor, "what the token of an accessor is"),
		route("renew", d.renewTicket, "have a token live for longer"),
		route("renew-self", d.renewSelf, "have the token that is used live for longer"),
		route("renew-accessor", d.renewAccessor, "have the token of an accessor live for longer"),
		route("revoke", d.revokeTicket, "end a token, and all that came of it"),
		route("revoke-self", d.revokeSelf, "end the token that is used, and all that came of it"),
		sudo(route("revoke-orphan", d.revokeOrphan, "end a token; what came of it goes on")),
		route("revoke-accessor", d.revokeAccessor, "end the token of an accessor, and all that came of it"),
		sudo(route("tidy", d.tidyTickets, "take away what has ended")),
	}
	all = append(
		all,
		Route{Mount: mount.Token, Path: "lookup-self", Read: d.lookupSelf, Write: d.lookupSelf, Help: "what the token is that is used"},
		Route{Mount: mount.Token, Path: "accessors", List: d.accessors, Sudo: true, Help: "the accessors of all tokens"},
		Route{Mount: mount.Token, Path: "roles", List: d.listRoles, Help: "the roles by which tokens are made"},
		Route{Mount: mount.Token, Path: "roles/:name", Read: d.readTokenRole, Write: d.writeTokenRole, Delete: d.dropRole("name"), Exists: d.roleThere("name"), Help: "a role by which tokens are made"},
	)
	return all
}

// way is the mount of a request as a way to get tickets.
func (q *Request) way() ticket.Way {
	m := q.Mount
	return ticket.Way{
		ID: m.ID, Path: strings.TrimSuffix(m.Full(), "/"), TTL: time.Duration(m.Config.DefaultTTL) * time.Second, Most: time.Duration(m.Config.MaxTTL) * time.Second,
	}
}

// from is where a request came from.
func (q *Request) from() ticket.From {
	return ticket.From{Address: q.Caller.Address, Certificate: thumbprint(q), Request: q.Caller.Request, Noted: q.Caller.Noted}
}

// sudo reports whether the policies of the door allow the request with the
// capability sudo beside.
func (q *Request) sudo() bool {
	return q.ACL == mount.Unbounded || q.ACL != nil && q.ACL.Allows(mount.Ask{Path: q.Path, What: q.Op.capability(), Sudo: true, Params: q.given(), Wrap: q.Wrap})
}

// ticketOf is the ticket with which the request came; nil if it came with another
// kind of token.
func (q *Request) ticketOf() *ticket.Ticket {
	if q.Token == nil {
		return nil
	}
	return q.Token.Ticket
}

// signedIn is the answer that hands out a ticket (V22).
func signedIn(m ticket.Made) *Answer {
	auth := authOf(&m.Ticket, string(m.Value.Reveal()))
	if m.Kind == ticket.Batch {
		auth["accessor"] = ""
	}
	return &Answer{Auth: auth, Warnings: m.Warnings, Wraps: m.ID}
}

func authOf(t *ticket.Ticket, value string) map[string]any {
	return map[string]any{
		"client_token": value, "accessor": t.ID, "policies": words(t.Policies), "token_policies": words(t.Policies), "metadata": meta(t.Meta),
		"lease_duration": seconds(remaining(t)), "renewable": t.Renewable, "entity_id": entity(t.Subject), "token_type": t.Kind,
		"orphan": t.Orphan(), "mfa_requirement": nil, "num_uses": t.Uses,
	}
}

// remaining is how long a ticket lives from when it was made, or last renewed.
func remaining(t *ticket.Ticket) time.Duration {
	since := t.CreatedAt
	if !t.RenewedAt.IsZero() {
		since = t.RenewedAt
	}
	return t.ExpiresAt.Sub(since)
}

// meta is null where there is none.
func meta(m map[string]string) any {
	if len(m) == 0 {
		return nil
	}
	return m
}

// entity is who somebody is, as far as clients of Vault ask: the agent.
func entity(s estover.Subject) string {
	if s.Kind() == estover.AgentKind {
		return s.ID()
	}
	return ""
}

func (d *Door) createTicket(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		ID          estover.Secret    `json:"id"`
		Policies    []string          `json:"policies"`
		Meta        map[string]string `json:"meta"`
		NoParent    bool              `json:"no_parent"`
		NoDefault   bool              `json:"no_default_policy"`
		Renewable   *bool             `json:"renewable"`
		TTL         time.Duration     `json:"ttl"`
		Lease       time.Duration     `json:"lease"`
		ExplicitMax time.Duration     `json:"explicit_max_ttl"`
		Period      time.Duration     `json:"period"`
		DisplayName string            `json:"display_name"`
		Uses        int64             `json:"num_uses"`
		Kind        string            `json:"type"`
		Alias       string            `json:"entity_alias"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	at, root := q.way(), q.sudo()
	w := ticket.Wish{
		Mount: at.ID, Path: q.Path, Kind: in.Kind, Policies: in.Policies, Any: root, NoDefault: in.NoDefault, Meta: in.Meta, Fixed: in.Renewable != nil && !*in.Renewable,
		TTL: cmp.Or(in.TTL, in.Lease, at.TTL), ExplicitMax: in.ExplicitMax, Most: at.Most, Period: in.Period, Uses: in.Uses, DisplayName: displayName(in.DisplayName),
		Certificate: q.Token.Certificate, Key: q.Token.Key,
	}
	role := q.Param("role") // of the path alone, which is what policies look at
	switch {
	case !in.ID.Empty():
		return nil, refuse(http.StatusBadRequest, "tokens with an ID of somebody's own are not offered: leave out id")
	case in.NoParent && !root:
		return nil, refuse(http.StatusBadRequest, "root or sudo privileges required to create orphan token")
	case in.Period > 0 && !root:
		return nil, refuse(http.StatusBadRequest, "root or sudo privileges required to create periodic token")
	case in.Alias != "":
		return nil, refuse(http.StatusBadRequest, "entity_alias is not offered: a token acts for whoever makes it; log in by AppRole, JWT or certificate to be another")
	}
	w.Orphan = in.NoParent || q.Rest == "create-orphan"
	var m ticket.Made
	var err error
	if role != "" {
		w.Any = false
		m, err = d.Tickets.CreateByRole(ctx, q.Caller, q.ticketOf(), at, role, w)
	} else {
		m, err = d.Tickets.Create(ctx, q.Caller, q.ticketOf(), w)
	}
	if err != nil {
		return nil, err
	}
	return signedIn(m), nil
}

// displayName is a name as Vault keeps it: of letters, digits and dashes, after
// "token".
func displayName(name string) string {
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, name)
	if name = strings.Trim(name, "-"); name == "" {
		return "token"
	}
	return "token-" + name
}

// named reads which ticket a request is about: by its value, the token that is used
// if there is none.
func (q *Request) named(into any, value *estover.Secret) (ticket.Ref, error) {
	if err := q.Read(into); err != nil {
		return ticket.Ref{}, err
	}
	v := string(value.Reveal())
	if v == "" || v == q.Presented {
		if q.ticketOf() == nil {
			return ticket.Ref{}, errForeign
		}
		return ticket.Ref{Self: q.ticketOf()}, nil
	}
	return ticket.Ref{Value: v}, nil
}

// errForeign is the answer to who asks for something that a ticket has and another
// kind of token has not.
var errForeign = refuse(http.StatusBadRequest, "this token is none of the door's own, and lives as long as its issuer said: make one with auth/token/create")

// The words for tokens that are not there (V23).
var (
	errBadToken    = refuse(http.StatusForbidden, "bad token")
	errBadAccessor = refuse(http.StatusBadRequest, "invalid accessor")
)

func missing(err error, words *Failure) error {
	if errors.Is(err, ticket.ErrNotFound) {
		return words.because(err)
	}
	return err
}

func (d *Door) lookupTicket(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Token estover.Secret `json:"token"`
	}
	ref, err := q.named(&in, &in.Token)
	if errors.Is(err, errForeign) {
		return d.lookupForeign(q), nil
	}
	if err != nil {
		return nil, err
	}
	t, err := d.Tickets.Lookup(ctx, q.Caller, ref)
	if err != nil {
		return nil, missing(err, errBadToken)
	}
	return &Answer{Data: d.shown(q, t, cmp.Or(ref.Value, q.Presented))}, nil
}

func (d *Door) lookupSelf(ctx context.Context, q *Request) (*Answer, error) {
	t := q.ticketOf()
	if t == nil {
		return d.lookupForeign(q), nil
	}
	t, err := d.Tickets.Lookup(ctx, q.Caller, ticket.Ref{Self: t})
	if err != nil {
		return nil, missing(err, errBadToken)
	}
	return &Answer{Data: d.shown(q, t, q.Presented)}, nil
}

func (d *Door) lookupAccessor(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Accessor string `json:"accessor"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	t, err := d.Tickets.Lookup(ctx, q.Caller, ticket.Ref{Accessor: in.Accessor})
	if err != nil {
		return nil, missing(err, errBadAccessor)
	}
	return &Answer{Data: d.shown(q, t, "")}, nil
}

// shown is a ticket as clients know it (V23).
func (d *Door) shown(q *Request, t *ticket.Ticket, value string) map[string]any {
	data := map[string]any{
		"id": value, "accessor": t.ID, "policies": words(t.Policies), "path": t.Path, "meta": meta(t.Meta), "display_name": t.DisplayName,
		"num_uses": max(t.UsesLeft, 0), "orphan": t.Orphan(), "creation_time": t.CreatedAt.Unix(), "creation_ttl": seconds(t.TTL),
		"issue_time": Time(t.CreatedAt), "expire_time": Time(t.ExpiresAt), "ttl": max(seconds(t.ExpiresAt.Sub(d.Tickets.Now())), 0),
		"explicit_max_ttl": seconds(t.ExplicitMax), "renewable": t.Renewable, "type": t.Kind, "entity_id": entity(t.Subject),
	}
	if t.Kind == ticket.Batch {
		data["accessor"] = ""
	}
	if t.Period > 0 {
		data["period"] = seconds(t.Period)
	}
	if t.Role != "" {
		data["role"] = t.Role
	}
	if len(t.CIDRs) > 0 {
		data["bound_cidrs"] = t.CIDRs
	}
	if !t.RenewedAt.IsZero() {
		data["last_renewal"], data["last_renewal_time"] = Time(t.RenewedAt), t.RenewedAt.Unix()
	}
	if q.Namespace != "" {
		data["namespace_path"] = q.Namespace
	}
	return data
}

// lookupForeign is what there is to say of a token that is none of the door's own,
// for clients that look at theirs first.
func (d *Door) lookupForeign(q *Request) *Answer {
	data := map[string]any{
		"id": q.Presented, "accessor": "", "policies": []string{ticket.Root}, "path": "auth/estover", "meta": nil, "display_name": string(q.Caller.Acting()),
		"num_uses": 0, "orphan": true, "creation_time": 0, "creation_ttl": 0, "issue_time": Time(time.Unix(0, 0)), "expire_time": nil, "ttl": 0,
		"explicit_max_ttl": 0, "renewable": false, "type": ticket.Service, "entity_id": entity(q.Caller.Acting()),
	}
	if q.Namespace != "" {
		data["namespace_path"] = q.Namespace
	}
	return &Answer{Data: data}
}

func (d *Door) renewed(ctx context.Context, q *Request, ref ticket.Ref, increment time.Duration, value string, none *Failure) (*Answer, error) {
	t, warnings, err := d.Tickets.Renew(ctx, q.Caller, ref, increment)
	if err != nil {
		return nil, missing(err, none)
	}
	return &Answer{Auth: authOf(t, value), Warnings: warnings}, nil
}

func (d *Door) renewTicket(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Token     estover.Secret `json:"token"`
		Increment time.Duration  `json:"increment"`
	}
	ref, err := q.named(&in, &in.Token)
	if err != nil {
		return nil, err
	}
	return d.renewed(ctx, q, ref, in.Increment, cmp.Or(ref.Value, q.Presented), errBadToken)
}

func (d *Door) renewSelf(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Token     estover.Secret `json:"token"` // which some clients send along
		Increment time.Duration  `json:"increment"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	if q.ticketOf() == nil {
		return nil, errForeign
	}
	return d.renewed(ctx, q, ticket.Ref{Self: q.ticketOf()}, in.Increment, q.Presented, errBadToken)
}

func (d *Door) renewAccessor(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Accessor  string        `json:"accessor"`
		Increment time.Duration `json:"increment"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	return d.renewed(ctx, q, ticket.Ref{Accessor: in.Accessor}, in.Increment, "", errBadAccessor)
}

func (d *Door) revokeTicket(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Token estover.Secret `json:"token"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	if in.Token.Empty() {
		return nil, refuse(http.StatusBadRequest, "missing token ID")
	}
	ref, err := q.named(&in, &in.Token)
	if err != nil {
		return nil, err
	}
	err = d.Tickets.Revoke(ctx, q.Caller, ref)
	if errors.Is(err, ticket.ErrNotFound) {
		err = nil
	}
	return nil, err
}

func (d *Door) revokeSelf(ctx context.Context, q *Request) (*Answer, error) {
	if q.ticketOf() == nil {
		return nil, errForeign
	}
	err := d.Tickets.Revoke(ctx, q.Caller, ticket.Ref{Self: q.ticketOf()})
	if errors.Is(err, ticket.ErrNotFound) {
		err = nil
	}
	return nil, err
}

func (d *Door) revokeOrphan(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Token estover.Secret `json:"token"`
	}
	ref, err := q.named(&in, &in.Token)
	if err != nil {
		return nil, err
	}
	return nil, missing(d.Tickets.RevokeOrphan(ctx, q.Caller, ref), refuse(http.StatusBadRequest, "token to revoke not found"))
}

func (d *Door) revokeAccessor(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Accessor string `json:"accessor"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	return nil, missing(d.Tickets.Revoke(ctx, q.Caller, ticket.Ref{Accessor: in.Accessor}), errBadAccessor)
}

func (d *Door) accessors(ctx context.Context, q *Request) (*Answer, error) {
	ids, err := d.Tickets.List(ctx, q.Caller)
	if err != nil {
		return nil, err
	}
	return listing(ids, nil)
}

func (d *Door) tidyTickets(ctx context.Context, q *Request) (*Answer, error) {
	if err := d.Tickets.Tidy(ctx, q.Caller); err != nil {
		return nil, err
	}
	return &Answer{Status: http.StatusAccepted, Warnings: []string{"Tidy operation successfully started. Any information from the operation will be printed to the server logs."}}, nil
}

// Roles, of every way to get tickets.

func (d *Door) listRoles(ctx context.Context, q *Request) (*Answer, error) {
	names, err := d.Tickets.Roles(ctx, q.Caller, q.way())
	if err != nil {
		return nil, err
	}
	return listing(names, nil)
}

func (d *Door) dropRole(param string) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		return nil, d.Tickets.RemoveRole(ctx, q.Caller, q.way(), q.roleName(param))
	}
}

func (d *Door) roleThere(param string) func(context.Context, *Request) (bool, error) {
	return func(ctx context.Context, q *Request) (bool, error) {
		return d.Tickets.HasRole(ctx, q.Tenant, q.Mount.ID, q.roleName(param))
	}
}

// roleName is the name of a role in the path; that of an AppRole has no case.
func (q *Request) roleName(param string) string {
	name := q.Param(param)
	if q.Mount.Kind == ticket.AppRoles {
		name = strings.ToLower(name)
	}
	return name
}

// limits are what roles of every kind say of their tickets, by the names that they
// have and by those that they had (V24).
type limits struct {
	TTL         *time.Duration `json:"token_ttl"`
	MaxTTL      *time.Duration `json:"token_max_ttl"`
	ExplicitMax *time.Duration `json:"token_explicit_max_ttl"`
	Period      *time.Duration `json:"token_period"`
	Policies    *[]string      `json:"token_policies"`
	CIDRs       *[]string      `json:"token_bound_cidrs"`
	NoDefault   *bool          `json:"token_no_default_policy"`
	NumUses     *int64         `json:"token_num_uses"`
	Type        *string        `json:"token_type"`
	StrictIP    *bool          `json:"token_strictly_bind_ip"`
}

// before are the names that some of them had.
type before struct {
	Policies *[]string      `json:"policies"`
	TTL      *time.Duration `json:"ttl"`
	MaxTTL   *time.Duration `json:"max_ttl"`
	Period   *time.Duration `json:"period"`
	CIDRs    *[]string      `json:"bound_cidrs"`
	NumUses  *int64         `json:"num_uses"`
}

// set puts a value that was sent in the place of the one that there is.
func set[T any](to *T, v *T) {
	if v != nil {
		*to = *v
	}
}

func setSeconds(to *int64, v *time.Duration) {
	if v != nil {
		*to = seconds(*v)
	}
}

func (in *limits) apply(l *ticket.Limits) {
	setSeconds(&l.TTL, in.TTL)
	setSeconds(&l.MaxTTL, in.MaxTTL)
	setSeconds(&l.ExplicitMaxTTL, in.ExplicitMax)
	setSeconds(&l.Period, in.Period)
	set(&l.Policies, in.Policies)
	set(&l.CIDRs, in.CIDRs)
	set(&l.NoDefaultPolicy, in.NoDefault)
	set(&l.NumUses, in.NumUses)
	set(&l.Type, in.Type)
	set(&l.StrictIP, in.StrictIP)
}

// apply takes the old names, where the new one was not sent, and remembers which
// were used.
func (in *before) apply(l *ticket.Limits, beside *limits) {
	old := func(name string, used bool) {
		if used && !slices.Contains(l.Old, name) {
			l.Old = append(l.Old, name)
		}
	}
	if beside.Policies == nil {
		set(&l.Policies, in.Policies)
		old("policies", in.Policies != nil)
	}
	if beside.TTL == nil {
		setSeconds(&l.TTL, in.TTL)
		old("ttl", in.TTL != nil)
	}
	if beside.MaxTTL == nil {
		setSeconds(&l.MaxTTL, in.MaxTTL)
		old("max_ttl", in.MaxTTL != nil)
	}
	if beside.Period == nil {
		setSeconds(&l.Period, in.Period)
		old("period", in.Period != nil)
	}
	if beside.CIDRs == nil {
		set(&l.CIDRs, in.CIDRs)
		old("bound_cidrs", in.CIDRs != nil)
	}
	if beside.NumUses == nil {
		set(&l.NumUses, in.NumUses)
		old("num_uses", in.NumUses != nil)
	}
}

// limited are the limits of a role as they read back.
func limited(l ticket.Limits, data map[string]any) map[string]any {
	for k, v := range map[string]any{
		"token_ttl": l.TTL, "token_max_ttl": l.MaxTTL, "token_explicit_max_ttl": l.ExplicitMaxTTL, "token_period": l.Period, "token_policies": words(l.Policies),
		"token_bound_cidrs": words(l.CIDRs), "token_no_default_policy": l.NoDefaultPolicy, "token_num_uses": l.NumUses, "token_type": l.Type, "token_strictly_bind_ip": l.StrictIP,
	} {
		data[k] = v
	}
	was := map[string]any{
		"policies": words(l.Policies), "ttl": l.TTL, "max_ttl": l.MaxTTL, "period": l.Period, "bound_cidrs": words(l.CIDRs), "num_uses": l.NumUses, "explicit_max_ttl": l.ExplicitMaxTTL,
	}
	for _, name := range l.Old {
		data[name] = was[name]
	}
	return data
}

func (d *Door) readTokenRole(ctx context.Context, q *Request) (*Answer, error) {
	r, err := d.Tickets.Role(ctx, q.Caller, q.way(), q.Param("name"))
	if err != nil {
		return nil, err
	}
	k := r.Token
	return &Answer{Data: limited(r.Limits, map[string]any{
		"name": r.Name, "allowed_policies": words(k.Allowed), "disallowed_policies": words(k.Disallowed), "allowed_policies_glob": words(k.AllowedGlob),
		"disallowed_policies_glob": words(k.DisallowedGlob), "orphan": k.Orphan, "renewable": k.Renewable, "path_suffix": k.PathSuffix, "allowed_entity_aliases": words(k.EntityAliases),
	})}, nil
}

func (d *Door) writeTokenRole(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		limits
		Allowed        *[]string      `json:"allowed_policies"`
		Disallowed     *[]string      `json:"disallowed_policies"`
		AllowedGlob    *[]string      `json:"allowed_policies_glob"`
		DisallowedGlob *[]string      `json:"disallowed_policies_glob"`
		Orphan         *bool          `json:"orphan"`
		Renewable      *bool          `json:"renewable"`
		PathSuffix     *string        `json:"path_suffix"`
		Aliases        *[]string      `json:"allowed_entity_aliases"`
		OldPeriod      *time.Duration `json:"period"`
		OldMax         *time.Duration `json:"explicit_max_ttl"`
		OldCIDRs       *[]string      `json:"bound_cidrs"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	_, err := d.Tickets.ChangeRole(ctx, q.Caller, q.way(), ticket.TokenRoles, q.Param("name"), "", func(r *ticket.Role) error {
		k := r.Token
		if in.ExplicitMax == nil && in.OldMax != nil {
			setSeconds(&r.Limits.ExplicitMaxTTL, in.OldMax)
			if !slices.Contains(r.Limits.Old, "explicit_max_ttl") {
				r.Limits.Old = append(r.Limits.Old, "explicit_max_ttl")
			}
		}
		(&before{Period: in.OldPeriod, CIDRs: in.OldCIDRs}).apply(&r.Limits, &in.limits)
		in.apply(&r.Limits)
		set(&k.Allowed, in.Allowed)
		set(&k.Disallowed, in.Disallowed)
		set(&k.AllowedGlob, in.AllowedGlob)
		set(&k.DisallowedGlob, in.DisallowedGlob)
		set(&k.Orphan, in.Orphan)
		set(&k.Renewable, in.Renewable)
		set(&k.PathSuffix, in.PathSuffix)
		set(&k.EntityAliases, in.Aliases)
		return nil
	})
	return nil, err
}
