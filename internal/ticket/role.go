package ticket

import (
	"context"
	"errors"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// The kinds of roles: how one gets a ticket by it.
const (
	TokenRoles = "token"
	AppRoles   = "approle"
	JWTRoles   = "jwt"
	CertRoles  = "cert"
)

// Errors about roles.
var (
	// ErrNoRole is returned when there is no such role.
	ErrNoRole = &estover.Error{Kind: estover.NotFound, Code: "ticket_role_not_found", Detail: "There is no such role."}
	// ErrRole is returned for a role that cannot be.
	ErrRole = &estover.Error{Kind: estover.Invalid, Code: "ticket_role_invalid", Detail: "There cannot be such a role."}
	// ErrRoleTaken is returned when another role has the role-id.
	ErrRoleTaken = &estover.Error{Kind: estover.Conflict, Code: "ticket_role_taken", Detail: "role_id already in use"}
	// ErrBusy is returned when a role was changed too often meanwhile.
	ErrBusy = &estover.Error{Kind: estover.Unavailable, Code: "ticket_role_busy", Detail: "The role is being changed by others. Try again."}
)

// A Way is an auth mount, by which one gets tickets.
type Way struct {
	ID   string // of the mount, which may move
	Path string // where it is: auth/approle
	TTL  time.Duration
	Most time.Duration // 0 for [LongestLife]
}

// Limits are what every role says of the tickets that are got by it. Numbers are
// seconds.
type Limits struct {
	TTL             int64    `json:"token_ttl"`
	MaxTTL          int64    `json:"token_max_ttl"`
	ExplicitMaxTTL  int64    `json:"token_explicit_max_ttl"`
	Period          int64    `json:"token_period"`
	Policies        []string `json:"token_policies"`
	CIDRs           []string `json:"token_bound_cidrs"`
	NoDefaultPolicy bool     `json:"token_no_default_policy"`
	NumUses         int64    `json:"token_num_uses"`
	Type            string   `json:"token_type"`
	StrictIP        bool     `json:"token_strictly_bind_ip"`

	// Old are the names without token_ that were used, and are told back.
	Old []string `json:"old,omitempty"`
}

// A TokenRole says what may be asked of auth/token/create/NAME.
type TokenRole struct {
	Allowed        []string `json:"allowed_policies"`
	Disallowed     []string `json:"disallowed_policies"`
	AllowedGlob    []string `json:"allowed_policies_glob"`
	DisallowedGlob []string `json:"disallowed_policies_glob"`
	Orphan         bool     `json:"orphan"`
	Renewable      bool     `json:"renewable"`
	PathSuffix     string   `json:"path_suffix"`
	EntityAliases  []string `json:"allowed_entity_aliases"`
}

// An AppRole says what it takes to log in by role-id and secret-id.
type AppRole struct {
	BindSecretID bool     `json:"bind_secret_id"`
	CIDRs        []string `json:"secret_id_bound_cidrs"`
	NumUses      int64    `json:"secret_id_num_uses"`
	TTL          int64    `json:"secret_id_ttl"`
	Local        bool     `json:"local_secret_ids"`
}

// A Role is a role of a way. Of the kinds one is set.
type Role struct {
	ID     string `json:"-"`
	Mount  string `json:"-"`
	Name   string `json:"-"`
	Kind   string `json:"-"`
	RoleID string `json:"-"` // of an AppRole
	Agent  string `json:"-"` // that logs in by it
	Made   bool   `json:"-"` // the agent was made with the role
	New    bool   `json:"-"`

	Limits Limits     `json:"limits"`
	Token  *TokenRole `json:"token,omitempty"`
	App    *AppRole   `json:"approle,omitempty"`
	JWT    *JWTRole   `json:"jwt,omitempty"`
	Cert   *CertRole  `json:"cert,omitempty"`

	epoch int64
}

// fresh is a role as it is before anybody has said anything of it.
func fresh(mount, kind, name string) *Role {
	r := &Role{ID: estover.NewID("trl"), Mount: mount, Name: name, Kind: kind, New: true}
	r.Limits = Limits{Policies: []string{}, CIDRs: []string{}, Type: "default"}
	switch kind {
	case TokenRoles:
		r.Token = &TokenRole{Renewable: true, Allowed: []string{}, Disallowed: []string{}, AllowedGlob: []string{}, DisallowedGlob: []string{}, EntityAliases: []string{}}
		r.Limits.Type = "default-service"
	case AppRoles:
		r.App = &AppRole{BindSecretID: true}
		r.RoleID = newUUID()
	case JWTRoles:
		r.JWT = &JWTRole{RoleType: "oidc", BoundClaimsType: "string"}
	case CertRoles:
		r.Cert = &CertRole{}
	}
	return r
}

var roleName = regexp.MustCompile(`^\w(([\w.@-]+)?\w)?$`)

// check says what is wrong with a role, and puts it into the one form in which
// it is kept.
func (r *Role) check() (err error) {
	if len(r.Name) > maxName || !roleName.MatchString(r.Name) {
		return ErrRole.With("%q is no name of a role", r.Name)
	}
	l := &r.Limits
	for _, n := range []int64{l.TTL, l.MaxTTL, l.ExplicitMaxTTL, l.Period, l.NumUses} {
		if n < 0 || n > int64(100*365*24*time.Hour/time.Second) {
			return ErrRole.With("token_num_uses and durations cannot be negative, nor longer than a hundred years")
		}
	}
	if l.MaxTTL > 0 && l.TTL > l.MaxTTL {
		return ErrRole.With("'token_ttl' cannot be greater than 'token_max_ttl'")
	}
	switch l.Type {
	case "":
		l.Type = "default"
	case "default", Service, Batch, "default-service", "default-batch":
	default:
		return ErrRole.With("invalid 'token_type' value: %q", l.Type)
	}
	if l.Type == Batch && (l.NumUses > 0 || l.Period > 0) {
		return ErrRole.With("'token_type' cannot be 'batch' when set to generate tokens with limited use count or a period")
	}
	if l.CIDRs, err = Networks(l.CIDRs); err != nil {
		return err
	}
	if _, err := Policies(l.Policies); err != nil {
		return err
	}
	if len(encode(r)) > maxSetting { // strangers have it read
		return ErrRole.With("a role has at most %d bytes", maxSetting)
	}
	switch {
	case r.Token != nil:
		return r.Token.check()
	case r.App != nil:
		return r.checkApp()
	case r.JWT != nil:
		return r.JWT.check()
	case r.Cert != nil:
		return r.Cert.check()
	}
	return nil
}

func (k *TokenRole) check() error {
	if len(k.PathSuffix) > maxName || strings.HasPrefix(k.PathSuffix, "/") {
		return ErrRole.With("given role path suffix contains invalid characters; must match the form of a name")
	}
	for _, list := range [][]string{k.Allowed, k.Disallowed, k.AllowedGlob, k.DisallowedGlob, k.EntityAliases} {
		if len(list) > maxList {
			return ErrRole.With("a list of policies has at most %d names", maxList)
		}
	}
	return nil
}

// wish is the ticket that one gets by logging in by a role.
func (r *Role) wish(at Way, from From) Wish {
	l := r.Limits
	w := Wish{
		Mount: at.ID, Role: r.Name, Path: at.Path + "/login", Kind: l.Type, Policies: l.Policies, Any: true, Alone: true, NoDefault: l.NoDefaultPolicy, Orphan: true,
		TTL: seconds(l.TTL), ExplicitMax: seconds(l.ExplicitMaxTTL), Period: seconds(l.Period), Uses: l.NumUses, CIDRs: l.CIDRs, Most: at.Most,
	}
	if w.TTL == 0 {
		w.TTL = at.TTL
	}
	if l.MaxTTL > 0 && (w.Most == 0 || seconds(l.MaxTTL) < w.Most) {
		w.Most = seconds(l.MaxTTL)
	}
	if w.Most > 0 && w.TTL == 0 {
		w.TTL = min(DefaultLife, w.Most)
	}
	if l.StrictIP && from.Address.IsValid() && within(from.Address, l.CIDRs) { // from elsewhere nobody logs in
		w.CIDRs = []string{netip.PrefixFrom(from.Address, from.Address.BitLen()).String()}
	}
	return w
}

// roleTarget names a role in an operation.
func roleTarget(mount, name string) string { return "ticket_role:" + mount + "/" + name }

// maxAttempts is how often a change is planned again when another one came first.
const maxAttempts = 8

// ChangeRole changes a role of a way, or makes one that is not there. The change
// is a function of the role as it is, is called within the transaction and may be
// called more than once. The agent is the name or id of the one that the role
// leads to; "" keeps the one that it has, and makes one for a new role.
func (t *Tickets) ChangeRole(ctx context.Context, caller estover.Caller, at Way, kind, name, agent string, change func(*Role) error) (*Role, error) {
	var seen *Role
	err := t.guard.DB().View(ctx, caller.Tenant, func(tx *db.Tx) (err error) {
		seen, err = findRole(ctx, tx, at.ID, name)
		return err
	})
	if err != nil && !errors.Is(err, ErrNoRole) {
		return nil, err
	}
	op := guard.Op{Action: "ticket_role.put", Target: roleTarget(at.Path, name)}
	decision, err := t.guard.Admit(ctx, caller, op)
	if err != nil {
		return nil, err
	}
	// What cannot be is refused before an agent is made for it.
	trial := fresh(at.ID, kind, name)
	if seen != nil {
		trial = seen.copy()
	}
	if err := apply(trial, kind, change); err != nil {
		return nil, err
	}
	var leads string
	made := false
	if kind != TokenRoles && (seen == nil || agent != "") {
		if leads, made, err = t.Agent(ctx, caller, at, agent, kind+"-"+name); err != nil {
			return nil, err
		}
	}
	var r *Role
	for range maxAttempts {
		err = t.guard.Act(ctx, caller, op, decision, func(tx *guard.Tx) error {
			r, err = findRole(ctx, tx.Tx, at.ID, name)
			switch {
			case errors.Is(err, ErrNoRole):
				r = fresh(at.ID, kind, name)
			case err != nil:
				return err
			}
			switch {
			case leads != "" && (r.New || agent != ""):
				r.Agent, r.Made = leads, made
			case r.New && kind != TokenRoles: // it was removed meanwhile
				return ErrBusy
			}
			if err := apply(r, kind, change); err != nil {
				return err
			}
			tx.Note("kind", kind)
			tx.Note("agent", r.Agent)
			tx.Note("policies", r.Limits.Policies)
			if r.New {
				return insertRole(ctx, tx.Tx, r)
			}
			return updateRole(ctx, tx.Tx, r)
		})
		if !errors.Is(err, errStale) {
			break
		}
	}
	switch {
	case errors.Is(err, errStale):
		return nil, ErrBusy
	case db.Taken(err):
		return nil, ErrRoleTaken.Because(err)
	}
	return r, err
}

func apply(r *Role, kind string, change func(*Role) error) error {
	if r.Kind != kind {
		return ErrRole.With("there is a role of this name of another kind")
	}
	if err := change(r); err != nil {
		return err
	}
	return r.check()
}

// copy is a role that may be changed.
func (r *Role) copy() *Role {
	c := *r
	b := encode(r)
	c.Token, c.App, c.JWT, c.Cert, c.Limits = nil, nil, nil, nil, Limits{}
	decode(b, &c)
	return &c
}

// Role shows a role.
func (t *Tickets) Role(ctx context.Context, caller estover.Caller, at Way, name string) (r *Role, err error) {
	err = t.guard.Read(ctx, caller, guard.Op{Action: "ticket_role.read", Target: roleTarget(at.Path, name)}, func(tx *db.Tx) error {
		r, err = findRole(ctx, tx, at.ID, name)
		return err
	})
	return r, err
}

// HasRole reports whether there is a role, for whoever decides whether a write
// makes one. It is for the door alone, and tells nobody.
func (t *Tickets) HasRole(ctx context.Context, tenant estover.TenantID, mount, name string) (bool, error) {
	err := t.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		_, err := findRole(ctx, tx, mount, name)
		return err
	})
	if errors.Is(err, ErrNoRole) {
		return false, nil
	}
	return err == nil, err
}

// Roles are the names of a way's roles, in order.
func (t *Tickets) Roles(ctx context.Context, caller estover.Caller, at Way) (names []string, err error) {
	err = t.guard.Read(ctx, caller, guard.Op{Action: "ticket_role.list", Target: roleTarget(at.Path, "")}, func(tx *db.Tx) error {
		names, err = roleNames(ctx, tx, at.ID)
		return err
	})
	return names, err
}

// RemoveRole ends a role with what was got by it, and the agent that was made
// with it. What is not there is no error.
func (t *Tickets) RemoveRole(ctx context.Context, caller estover.Caller, at Way, name string) error {
	var r *Role
	op := guard.Op{Action: "ticket_role.remove", Target: roleTarget(at.Path, name), Effect: guard.Deletes}
	err := t.guard.Do(ctx, caller, op, func(tx *guard.Tx) (err error) {
		if r, err = findRole(ctx, tx.Tx, at.ID, name); err != nil {
			return err
		}
		if err = dropRole(ctx, tx.Tx, r.ID); err != nil || r.Kind == TokenRoles { // those were handed on, and go on with what they came of
			return err
		}
		_, err = t.end(ctx, tx, func() ([]string, error) { return endRole(ctx, tx.Tx, at.ID, name) })
		return err
	})
	if errors.Is(err, ErrNoRole) {
		return nil
	}
	if err == nil && r.Made {
		err = t.Retire(ctx, caller, r.Agent)
	}
	return err
}

// EndOfAgent takes away the secret-ids by which an agent logs in, inside a
// transaction that does more, and says how many there were.
func EndOfAgent(ctx context.Context, tx *guard.Tx, agent string) (int, error) {
	return dropSecretsOf(ctx, tx.Tx, agent)
}

// CreateByRole makes a ticket as a token role lets. What the role says is told to
// whoever may make tickets.
func (t *Tickets) CreateByRole(ctx context.Context, caller estover.Caller, parent *Ticket, at Way, name string, w Wish) (Made, error) {
	w, err := t.byRole(ctx, caller.Tenant, parent, at, name, w)
	if err == nil {
		return t.Create(ctx, caller, parent, w)
	}
	op := guard.Op{Action: "ticket.create", Target: string(caller.Subject), Effect: guard.Manages}
	if _, refused := t.guard.Admit(ctx, caller, op); refused != nil {
		err = refused
	}
	return Made{}, err
}

// byRole is a wish as a token role lets one have it.
func (t *Tickets) byRole(ctx context.Context, tenant estover.TenantID, parent *Ticket, at Way, name string, w Wish) (Wish, error) {
	var r *Role
	err := t.guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		r, err = findRole(ctx, tx, at.ID, name)
		return err
	})
	if errors.Is(err, ErrNoRole) {
		err = ErrRole.With("unknown role %s", name)
	}
	if err != nil {
		return w, err
	}
	k, l := r.Token, r.Limits
	asked, err := Policies(w.Policies)
	if err != nil {
		return w, err
	}
	if l.NoDefaultPolicy || contains(k.Disallowed, Default) || containsLike(k.DisallowedGlob, Default) {
		w.NoDefault = true
	}
	// Where nothing is asked for it is what the role allows, or else what the
	// parent has; which the role may not want either.
	switch {
	case len(asked) > 0:
	case len(k.Allowed) > 0 || len(k.AllowedGlob) > 0:
		if asked, err = Policies(k.Allowed); err != nil {
			return w, err
		}
		w.Alone = true
	case parent != nil:
		asked = slices.DeleteFunc(slices.Clone(parent.Policies), func(p string) bool { return p == Default && w.NoDefault })
	default:
		asked = []string{Root}
	}
	if len(k.Allowed) > 0 || len(k.AllowedGlob) > 0 {
		for _, p := range asked {
			if p != Default && !contains(k.Allowed, p) && !containsLike(k.AllowedGlob, p) {
				return w, ErrPolicies.With("token policies (%q) must be subset of the role's allowed policies (%q) or glob policies (%q)", asked, k.Allowed, k.AllowedGlob)
			}
		}
		w.Any = true
	}
	for _, p := range asked {
		if contains(k.Disallowed, p) || containsLike(k.DisallowedGlob, p) {
			return w, ErrPolicies.With("token policy %q is disallowed by this role", p)
		}
	}
	w.Policies = asked
	w.Role, w.Orphan, w.Fixed = name, k.Orphan, w.Fixed || !k.Renewable
	if k.PathSuffix != "" {
		w.Path += "/" + k.PathSuffix
	}
	if l.Period > 0 {
		w.Period = seconds(l.Period)
	}
	if l.ExplicitMaxTTL > 0 && (w.ExplicitMax == 0 || w.ExplicitMax > seconds(l.ExplicitMaxTTL)) {
		w.ExplicitMax = seconds(l.ExplicitMaxTTL)
	}
	if l.NumUses > 0 && (w.Uses == 0 || w.Uses > l.NumUses) {
		w.Uses = l.NumUses
	}
	if len(l.CIDRs) > 0 {
		w.CIDRs = l.CIDRs
	}
	if l.Type == Service || l.Type == Batch || w.Kind == "" {
		w.Kind = l.Type
	}
	return w, nil
}

// contains looks for a policy in a list as it was written.
func contains(list []string, p string) bool {
	return slices.ContainsFunc(list, func(have string) bool { return strings.EqualFold(strings.TrimSpace(have), p) })
}

// containsLike looks for a policy among patterns as they were written.
func containsLike(patterns []string, p string) bool {
	return slices.ContainsFunc(patterns, func(like string) bool { return glob(strings.ToLower(strings.TrimSpace(like)), p) })
}

// globs reports whether one of the patterns, in which * stands for anything,
// fits.
func globs(patterns []string, s string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return glob(p, s) })
}

// glob reports whether a pattern fits, in which * stands for anything.
func glob(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	rest, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	for _, p := range parts[1 : len(parts)-1] {
		_, after, found := strings.Cut(rest, p)
		if !found {
			return false
		}
		rest = after
	}
	return strings.HasSuffix(rest, parts[len(parts)-1])
}

// under is a path below a way.
func (w Way) under(parts ...string) string { return path.Join(append([]string{w.Path}, parts...)...) }
