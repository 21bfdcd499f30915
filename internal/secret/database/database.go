// Package database ties what clients of Vault know of a database mount to what
// there is here: a configuration is a target with a secret for its admin, and a
// role is a role of leases. It keeps the names that a mount gives them and what
// was written, so that it reads back; all else is done by the packages next to it.
//
//	config/NAME   a target MOUNT.NAME, its admin's secret at vault-database/MOUNT/NAME
//	roles/NAME    a role of leases MOUNT.NAME, delivered in plaintext, bound to the token
//	static-roles/NAME  a secret at vault-database/MOUNT/static/NAME that is rotated
//	creds/NAME    a lease of that role, whose id is the path of the request and the
//	              lease's own
//
// What is written is merged into what is there: a field that is left out stays.
package database

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/rotation"
	"estover.dev/internal/secret/target"
)

// The errors of database mounts.
var (
	ErrNoConfig = &estover.Error{Kind: estover.NotFound, Code: "database_config_not_found", Detail: "There is no such configuration."}
	ErrNoRole   = &estover.Error{Kind: estover.NotFound, Code: "database_role_not_found", Detail: "There is no such role."}
	ErrInvalid  = &estover.Error{Kind: estover.Invalid, Code: "database_invalid", Detail: "This cannot be kept of a database."}
	ErrLogin    = &estover.Error{Kind: estover.Invalid, Code: "database_login", Detail: "error creating database object"}
	ErrAllowed  = &estover.Error{Kind: estover.Denied, Code: "database_role_not_allowed", Detail: "The role is not an allowed role of the configuration."}
	ErrBusy     = &estover.Error{Kind: estover.Unavailable, Code: "database_busy", Detail: "This is being changed by others. Try again."}
	ErrInUse    = &estover.Error{Kind: estover.Conflict, Code: "database_in_use", Detail: "There are roles of this configuration. Remove them first."}
)

// A Mount is a database mount of the door.
type Mount struct {
	ID   string // which stays when it moves
	Path string // without slashes around it
}

// A Config is a configuration as it was written.
type Config struct {
	Name string `json:"-"`
	// Target and Admin are what it stands for here.
	Target string `json:"-"`
	Admin  string `json:"-"`

	Plugin         string                     `json:"plugin_name"`
	PluginVersion  string                     `json:"plugin_version"`
	Allowed        []string                   `json:"allowed_roles"`
	RootStatements []string                   `json:"root_credentials_rotate_statements"`
	PasswordPolicy string                     `json:"password_policy"`
	Details        map[string]json.RawMessage `json:"connection_details"` // without what is secret

	epoch int64
}

// A Role is a role as it was written.
type Role struct {
	Name  string `json:"-"`
	Lease string `json:"-"` // the role of leases that it stands for

	DB               string            `json:"db_name"`
	Creation         []string          `json:"creation_statements"`
	Revocation       []string          `json:"revocation_statements"`
	Rollback         []string          `json:"rollback_statements"`
	Renew            []string          `json:"renew_statements"`
	TTL              int64             `json:"default_ttl"` // seconds
	MaxTTL           int64             `json:"max_ttl"`
	CredentialType   string            `json:"credential_type"`
	CredentialConfig map[string]string `json:"credential_config"`

	// Resource and Action are what a grant must cover for an agent to get
	// credentials. They are ours, and not Vault's.
	Resource string `json:"resource"`
	Action   string `json:"action"`

	epoch int64
}

// Options are what database mounts are made of.
type Options struct {
	Secrets *secret.Secrets
	Targets *target.Targets
	Leases  *lease.Leases

	Rotations *rotation.Rotations

	// Owner is the person who answers for what a caller makes.
	Owner  func(ctx context.Context, c estover.Caller) estover.Subject
	Logger *slog.Logger
}

// Databases are the database mounts of all tenants. It is safe for use by many at
// once.
type Databases struct {
	Options
	guard *guard.Guard
}

// New keeps database mounts behind the door g.
func New(g *guard.Guard, o Options) *Databases {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Databases{o, g}
}

var name = regexp.MustCompile(`^\w(([\w.-]+)?\w)?$`)

// nameIn is the name that something of a mount has outside of it.
func nameIn(m Mount, of string) string {
	text := []byte(strings.ToLower(m.Path + "." + of))
	for i, c := range text {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
			text[i] = '-'
		}
	}
	return strings.Trim(string(text[:min(len(text), 63)]), ".-_")
}

// A Written is what a client says of a configuration; nil leaves things as they are.
type Written struct {
	Plugin         *string
	PluginVersion  *string
	Verify         bool
	Allowed        *[]string
	RootStatements *[]string
	PasswordPolicy *string
	Details        map[string]json.RawMessage // with what is secret
}

// Config shows a configuration.
func (d *Databases) Config(ctx context.Context, c estover.Caller, m Mount, of string) (x *Config, err error) {
	err = d.guard.Read(ctx, c, guard.Op{Action: "target.read", Target: "target:" + nameIn(m, of)}, func(tx *db.Tx) error {
		x, err = findConfig(ctx, tx, m.ID, of)
		return err
	})
	return x, err
}

// Configs are the names of the configurations of a mount, in order.
func (d *Databases) Configs(ctx context.Context, c estover.Caller, m Mount) (names []string, err error) {
	err = d.guard.Read(ctx, c, guard.Op{Action: "target.list"}, func(tx *db.Tx) error {
		names, err = configNames(ctx, tx, m.ID)
		return err
	})
	return names, err
}

// Exists reports whether there is a configuration, or a role, for whoever decides
// whether a write makes one. It is for the door alone, and tells nobody.
func (d *Databases) Exists(ctx context.Context, tenant estover.TenantID, m Mount, of string, role bool) (there bool, err error) {
	err = d.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		if role {
			_, err = findRole(ctx, tx, m.ID, of)
		} else {
			_, err = findConfig(ctx, tx, m.ID, of)
		}
		return err
	})
	if errors.Is(err, ErrNoConfig) || errors.Is(err, ErrNoRole) {
		return false, nil
	}
	return err == nil, err
}

// may asks policy before anything is looked up: who may not do something hears nothing
// of what there is. What is done is decided on once more, with all that is known then.
func (d *Databases) may(ctx context.Context, c estover.Caller, action, target string, effect guard.Effect) error {
	_, err := d.guard.Admit(ctx, c, guard.Op{Action: action, Target: target, Effect: effect})
	return err
}

// told is a mistake that is named to whoever may hear of what it was made at.
func (d *Databases) told(ctx context.Context, c estover.Caller, action, target string, effect guard.Effect, mistake error) error {
	if err := d.may(ctx, c, action, target, effect); err != nil {
		return err
	}
	return mistake
}

// PutConfig makes a configuration or changes one. Unless that is not wanted, its
// admin logs in before anything is kept. One who writes a configuration waits for
// nobody else who writes the same: that is [ErrBusy].
func (d *Databases) PutConfig(ctx context.Context, c estover.Caller, m Mount, of string, w Written) (err error) {
	if len(of) > 63 || !name.MatchString(of) {
		return ErrInvalid.With("%q is no name of a configuration", of)
	}
	if err := d.may(ctx, c, "target.update", "target:"+nameIn(m, of), guard.Manages); err != nil { // nor does who may not keep anybody from writing
		return err
	}
	give, err := d.turn(ctx, c.Tenant, m, of)
	if err != nil {
		return err
	}
	defer give()
	x, err := d.peek(ctx, c.Tenant, m, of)
	if errors.Is(err, ErrNoConfig) {
		x = &Config{Name: of, Target: nameIn(m, of), Admin: adminPath(m, of), Allowed: []string{}, RootStatements: []string{}, Details: map[string]json.RawMessage{}}
	} else if err != nil {
		return err
	}
	fresh := x.epoch == 0
	set(&x.Plugin, w.Plugin)
	set(&x.PluginVersion, w.PluginVersion)
	set(&x.Allowed, w.Allowed)
	set(&x.RootStatements, w.RootStatements)
	set(&x.PasswordPolicy, w.PasswordPolicy)
	for k, v := range w.Details {
		x.Details[k] = v
	}
	at, err := x.reach()
	if err != nil {
		return err
	}
	if len(encode(x)) > 256<<10 {
		return ErrInvalid.With("a configuration has at most 256 KiB")
	}
	if fresh && at.password.Empty() {
		return ErrInvalid.With("password is missing: it is what the admin logs in with")
	}
	spec := target.Spec{
		Name: x.Target, Kind: at.kind, Address: at.address, Options: at.options, Authorities: at.authorities, Admin: x.Admin, Owner: d.Owner(ctx, c),
		Description: "config/" + x.Name + " of a database mount of the Vault-compatible door",
	}
	// Where a target of the name has another admin, it is not this configuration's.
	if have, err := d.targetOf(ctx, c.Tenant, x.Target); err != nil {
		return err
	} else if have != nil && have.Admin != x.Admin {
		return ErrInvalid.With("there is a target %s that this mount knows nothing of; give the configuration another name", x.Target)
	}
	if w.Verify {
		if err := d.login(ctx, c, spec, at); err != nil {
			return err
		}
	}
	own, err := d.putAdmin(ctx, c, x, at)
	if err != nil {
		return err
	}
	made, err := d.putTarget(ctx, c, spec)
	if err == nil {
		op := guard.Op{Action: "target.update", Target: "target:" + x.Target, Detail: map[string]any{"mount": m.ID, "config": of}}
		err = d.guard.Do(ctx, c, op, func(tx *guard.Tx) error { return putConfig(ctx, tx.Tx, m.ID, x) })
	}
	if err != nil && own { // nothing is left of one that could not be made
		if made {
			err = errors.Join(err, d.Targets.Remove(ctx, c, x.Target))
		}
		if gone := d.Secrets.Remove(ctx, c, x.Admin); gone != nil && !errors.Is(gone, secret.ErrNotFound) {
			d.Logger.Error("the secret of a database that could not be set up is left", "secret", x.Admin, "error", gone)
		}
	}
	return err
}

// turnLife is for how long whoever writes a configuration has their turn at most. The
// turn of one that died is over then, and what they have left is taken up.
const turnLife = time.Minute

// turn has nobody else write or remove a configuration until it is given back.
func (d *Databases) turn(ctx context.Context, tenant estover.TenantID, m Mount, of string) (give func(), err error) {
	holder := estover.NewID("trn")
	if err := d.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error { return takeTurn(ctx, tx, m.ID, of, holder, turnLife) }); err != nil {
		return nil, err
	}
	return func() {
		ctx := context.WithoutCancel(ctx)
		if err := d.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error { return giveTurn(ctx, tx, m.ID, of, holder) }); err != nil {
			d.Logger.Error("the turn of who has written a configuration could not be given back", "config", of, "error", err)
		}
	}, nil
}

// targetOf is the target of a name, or nil if there is none.
func (d *Databases) targetOf(ctx context.Context, tenant estover.TenantID, name string) (*target.Target, error) {
	id, err := d.Targets.Named(ctx, tenant, name)
	if err == nil {
		var x *target.Target
		if x, err = d.Targets.Snapshot(ctx, tenant, id); err == nil {
			return x, nil
		}
	}
	if errors.Is(err, target.ErrNotFound) {
		err = nil
	}
	return nil, err
}

// adminPath is where the secret of the admin of a configuration lies.
func adminPath(m Mount, of string) string { return "vault-database/" + m.ID + "/" + of }

func (d *Databases) peek(ctx context.Context, tenant estover.TenantID, m Mount, of string) (x *Config, err error) {
	err = d.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		x, err = findConfig(ctx, tx, m.ID, of)
		return err
	})
	return x, err
}

func set[T any](to *T, v *T) {
	if v != nil {
		*to = *v
	}
}

// putAdmin stores as whom users are made, and reports whether it made the secret
// for that.
func (d *Databases) putAdmin(ctx context.Context, c estover.Caller, x *Config, at reach) (made bool, err error) {
	to := []string{at.host}
	have, err := d.Secrets.Describe(ctx, c.Tenant, x.Admin)
	switch {
	case errors.Is(err, secret.ErrNotFound):
		if _, err := d.Secrets.Create(ctx, c, secret.Spec{
			Path: x.Admin, Class: estover.Restricted, Risk: secret.High, Owner: d.Owner(ctx, c), Destinations: to,
			Description: "The admin of the database " + x.Target,
		}); err != nil {
			return false, err
		}
		made = true
	case err != nil:
		return false, err
	case !slices.Equal(have.Destinations, to):
		if _, err := d.Secrets.Update(ctx, c, x.Admin, secret.Change{Destinations: &to}); err != nil {
			return false, err
		}
	}
	if at.password.Empty() {
		return made, nil
	}
	fields := map[string]estover.Secret{"password": at.password}
	if at.user != "" {
		fields["username"] = estover.NewSecret([]byte(at.user))
	}
	_, err = d.Secrets.Write(ctx, c, x.Admin, fields, secret.Any)
	return made, err
}

// putTarget registers where the database is, and reports whether it was not known.
func (d *Databases) putTarget(ctx context.Context, c estover.Caller, s target.Spec) (made bool, err error) {
	_, err = d.Targets.Update(ctx, c, s.Name, target.Change{Address: &s.Address, Options: &s.Options, Authorities: &s.Authorities, Admin: &s.Admin})
	if !errors.Is(err, target.ErrNotFound) {
		return false, err
	}
	_, err = d.Targets.Create(ctx, c, s)
	return err == nil, err
}

// loginTime is how long a database may take to let its admin in.
const loginTime = 10 * time.Second

// login has the admin of a database log in there as it would be.
func (d *Databases) login(ctx context.Context, c estover.Caller, s target.Spec, at reach) error {
	ctx, cancel := context.WithTimeout(ctx, loginTime)
	defer cancel()
	e, err := d.Targets.Try(ctx, c, s, engine.Credential{User: at.user, Secret: at.password})
	if err == nil {
		_, err = e.Now(ctx)
		err = errors.Join(err, e.Close())
	}
	switch estover.KindOf(err) {
	case estover.Denied, estover.Unknown:
		return err
	}
	if err != nil {
		return ErrLogin.With("error creating database object: error verifying connection: %s", why(err)).Because(err)
	}
	return nil
}

// why is an error in words that whoever set up a database may read.
func why(err error) string {
	var no *engine.Refused
	var known *estover.Error
	switch {
	case errors.As(err, &no):
		return no.Reason
	case errors.As(err, &known):
		return known.Detail
	case errors.Is(err, engine.ErrUnreachable):
		return "the database cannot be reached, or does not let the admin in"
	}
	return "the database does not answer as expected"
}

// RemoveConfig takes a configuration away of which there are no roles, and that nobody
// writes at this moment.
func (d *Databases) RemoveConfig(ctx context.Context, c estover.Caller, m Mount, of string) error {
	if err := d.may(ctx, c, "target.remove", "target:"+nameIn(m, of), guard.Deletes); err != nil {
		return err
	}
	give, err := d.turn(ctx, c.Tenant, m, of)
	if err != nil {
		return err
	}
	defer give()
	x, err := d.peek(ctx, c.Tenant, m, of)
	if errors.Is(err, ErrNoConfig) {
		return nil
	}
	if err != nil {
		return err
	}
	var roles []string
	if err := d.guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) error {
		all, err := allRoles(ctx, tx, m.ID)
		for _, r := range all {
			if r.DB == of {
				roles = append(roles, r.Name)
			}
		}
		if err != nil {
			return err
		}
		static, err := allStatic(ctx, tx, m.ID)
		for _, r := range static {
			if r.DB == of {
				roles = append(roles, r.Name)
			}
		}
		return err
	}); err != nil {
		return err
	}
	if len(roles) > 0 {
		return ErrInUse.With("there are roles of this configuration, remove them first: %s", strings.Join(roles, ", "))
	}
	// The rotation of the admin is at the target, which stays as long as it does.
	if err := d.Rotations.Remove(ctx, c, x.Admin); err != nil && !errors.Is(err, rotation.ErrNotFound) {
		return err
	}
	if err := d.Targets.Remove(ctx, c, x.Target); err != nil && !errors.Is(err, target.ErrNotFound) {
		return err
	}
	if err := d.Secrets.Remove(ctx, c, x.Admin); err != nil && !errors.Is(err, secret.ErrNotFound) {
		return err
	}
	op := guard.Op{Action: "target.remove", Target: "target:" + x.Target, Effect: guard.Deletes}
	return d.guard.Do(ctx, c, op, func(tx *guard.Tx) error { return dropConfig(ctx, tx.Tx, m.ID, of) })
}

// Role shows a role.
func (d *Databases) Role(ctx context.Context, c estover.Caller, m Mount, of string) (r *Role, err error) {
	err = d.guard.Read(ctx, c, guard.Op{Action: "lease_role.read", Target: "lease_role:" + nameIn(m, of)}, func(tx *db.Tx) error {
		r, err = findRole(ctx, tx, m.ID, of)
		return err
	})
	return r, err
}

// Roles are the names of the roles of a mount, in order.
func (d *Databases) Roles(ctx context.Context, c estover.Caller, m Mount) (names []string, err error) {
	err = d.guard.Read(ctx, c, guard.Op{Action: "lease_role.list"}, func(tx *db.Tx) error {
		all, err := allRoles(ctx, tx, m.ID)
		for _, r := range all {
			names = append(names, r.Name)
		}
		return err
	})
	return names, err
}

// The lives of credentials unless a role says otherwise.
const (
	usualTTL = 3600
	mostTTL  = 24 * 3600
)

// PutRole makes a role or changes one, by a function of the role as it is. It
// gives what the client should know of it: above all, that credentials cannot be
// made yet, and why.
func (d *Databases) PutRole(ctx context.Context, c estover.Caller, m Mount, of string, change func(*Role) error) (warnings []string, err error) {
	if len(of) > 63 || !name.MatchString(of) {
		return nil, ErrInvalid.With("%q is no name of a role", of)
	}
	if err := d.may(ctx, c, "lease_role.put", "lease_role:"+nameIn(m, of), guard.Manages); err != nil {
		return nil, err
	}
	var r *Role
	err = d.guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) error {
		r, err = findRole(ctx, tx, m.ID, of)
		return err
	})
	if errors.Is(err, ErrNoRole) {
		if _, err := d.peekStatic(ctx, c.Tenant, m, of); !errors.Is(err, ErrNoRole) {
			return nil, errors.Join(err, ErrInvalid.With("Role and Static Role names must be unique"))
		}
		r = &Role{
			Name: of, Lease: nameIn(m, of), CredentialType: "password", Creation: []string{}, Revocation: []string{}, Rollback: []string{}, Renew: []string{},
			CredentialConfig: map[string]string{},
		}
	} else if err != nil {
		return nil, err
	}
	if err := change(r); err != nil {
		return nil, err
	}
	if r.CredentialType != "password" {
		return nil, ErrInvalid.With("credential_type %q is not offered: there is password", r.CredentialType)
	}
	if r.DB == "" {
		return nil, ErrInvalid.With("database name is required")
	}
	x, err := d.peek(ctx, c.Tenant, m, r.DB)
	if errors.Is(err, ErrNoConfig) {
		err = ErrInvalid.With("failed to find entry for connection with name: %q", r.DB)
	}
	if err != nil {
		return nil, err
	}
	spec, err := r.spec(x)
	if err != nil {
		return nil, err
	}
	if r.epoch == 0 {
		switch _, err := d.Leases.Role(ctx, c, r.Lease); {
		case err == nil:
			return nil, ErrInvalid.With("there is a role of leases %s that this mount knows nothing of; give the role another name", r.Lease)
		case !errors.Is(err, lease.ErrNoRole):
			return nil, err
		}
	}
	put, err := d.Leases.PutRole(ctx, c, spec)
	if err != nil {
		return nil, err
	}
	op := guard.Op{Action: "lease_role.put", Target: "lease_role:" + r.Lease, Detail: map[string]any{"mount": m.ID, "role": of}}
	if err := d.guard.Do(ctx, c, op, func(tx *guard.Tx) error { return putRole(ctx, tx.Tx, m.ID, r) }); err != nil {
		return nil, err
	}
	warnings = put.Warnings
	if spec.Resource == "" {
		warnings = append(warnings, "agents get no credentials of this role yet: say with resource and action what of the catalogue a grant must cover (docs/guides/use-vault-clients.md)")
	}
	if !put.Ready {
		checked, err := d.Leases.CheckRole(ctx, c, r.Lease)
		if err != nil {
			warnings = append(warnings, "whether credentials of this role can be made could not be tried, so none are: "+why(err))
		} else if !checked.OK {
			for _, s := range checked.Steps {
				if s.State == "failed" {
					warnings = append(warnings, "no credentials of this role are made, since it did not go well when that was tried: "+s.Name+": "+s.What)
				}
			}
		}
	}
	return warnings, nil
}

// spec is the role of leases that a role stands for.
func (r *Role) spec(x *Config) (lease.RoleSpec, error) {
	s := lease.RoleSpec{
		Name: r.Lease, Target: x.Target, Resource: r.Resource, Action: r.Action, TTLSeconds: r.TTL, MaxTTLSeconds: r.MaxTTL,
		Delivery: lease.Plaintext, Bind: lease.ToToken, PerMinute: 1000, Description: "roles/" + r.Name + " of a database mount of the Vault-compatible door",
	}
	if s.TTLSeconds == 0 {
		s.TTLSeconds = usualTTL
		if s.MaxTTLSeconds > 0 {
			s.TTLSeconds = min(s.TTLSeconds, s.MaxTTLSeconds)
		}
	}
	if s.MaxTTLSeconds == 0 {
		s.MaxTTLSeconds = max(s.TTLSeconds, mostTTL)
	}
	if s.TTLSeconds > s.MaxTTLSeconds {
		return s, ErrInvalid.With("default_ttl cannot be greater than max_ttl")
	}
	var err error
	s.Template, err = r.template(x)
	return s, err
}

// RemoveRole ends a role with the credentials that were made by it.
func (d *Databases) RemoveRole(ctx context.Context, c estover.Caller, m Mount, of string) error {
	if err := d.may(ctx, c, "lease_role.remove", "lease_role:"+nameIn(m, of), guard.Deletes); err != nil {
		return err
	}
	var r *Role
	err := d.guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) (err error) {
		r, err = findRole(ctx, tx, m.ID, of)
		return err
	})
	if errors.Is(err, ErrNoRole) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := d.Leases.Revoke(ctx, c, lease.Which{Role: r.Lease}, "The role was removed."); err != nil {
		return err
	}
	// The users go at once, and the role when they are gone.
	wait, cancel := context.WithTimeout(ctx, loginTime)
	defer cancel()
	if err := d.Leases.Settled(wait, c.Tenant, lease.Filter{Role: r.Lease}); err != nil {
		return err
	}
	err = d.Leases.RemoveRole(ctx, c, r.Lease)
	if err != nil && !errors.Is(err, lease.ErrNoRole) {
		return err
	}
	op := guard.Op{Action: "lease_role.remove", Target: "lease_role:" + r.Lease, Effect: guard.Deletes}
	return d.guard.Do(ctx, c, op, func(tx *guard.Tx) error { return dropRole(ctx, tx.Tx, m.ID, of) })
}

// Empty takes away all that a mount has, before it is disabled.
func (d *Databases) Empty(ctx context.Context, c estover.Caller, m Mount) error {
	var roles []*Role
	var static []*Static
	var configs []string
	if err := d.guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) (err error) {
		if roles, err = allRoles(ctx, tx, m.ID); err != nil {
			return err
		}
		if static, err = allStatic(ctx, tx, m.ID); err == nil {
			configs, err = configNames(ctx, tx, m.ID)
		}
		return err
	}); err != nil {
		return err
	}
	for _, r := range static {
		if err := d.RemoveStatic(ctx, c, m, r.Name); err != nil {
			return err
		}
	}
	for _, r := range roles {
		if err := d.RemoveRole(ctx, c, m, r.Name); err != nil {
			return err
		}
	}
	for _, of := range configs {
		if err := d.RemoveConfig(ctx, c, m, of); err != nil {
			return err
		}
	}
	return nil
}

// Issue makes credentials of a role, which end with a token.
func (d *Databases) Issue(ctx context.Context, c estover.Caller, m Mount, of, token string) (lease.Issued, error) {
	var r *Role
	var x *Config
	err := d.guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) (err error) {
		if r, err = findRole(ctx, tx, m.ID, of); err == nil {
			x, err = findConfig(ctx, tx, m.ID, r.DB)
		}
		return err
	})
	if err == nil && !allowed(x.Allowed, of) {
		err = ErrAllowed.With("%q is not an allowed role of the configuration %q", of, r.DB)
	}
	if err != nil {
		return lease.Issued{}, d.told(ctx, c, "lease_role.read", "lease_role:"+nameIn(m, of), guard.Reads, err)
	}
	purpose := ""
	if c.Acting().Kind() == estover.UserKind {
		purpose = m.Path + "/creds/" + of + ", asked for at the Vault-compatible door"
	}
	return d.Leases.Create(ctx, c, lease.Wish{Role: r.Lease, Purpose: purpose, Token: token})
}

// allowed reports whether a configuration lets a role use it.
func allowed(list []string, role string) bool {
	return slices.ContainsFunc(list, func(a string) bool {
		prefix, star := strings.CutSuffix(a, "*")
		return a == role || star && strings.HasPrefix(role, prefix)
	})
}

// LeaseOf is the id that clients know a lease by, in a mount.
func LeaseOf(m Mount, role, id string) string {
	return m.Path + "/creds/" + role + "/" + strings.TrimPrefix(id, "lse_")
}

// LeaseRole is the role of leases of a role of a mount, for whoever has a lease's
// path and no more.
func (d *Databases) LeaseRole(ctx context.Context, tenant estover.TenantID, m Mount, of string) (string, error) {
	var r *Role
	err := d.guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		r, err = findRole(ctx, tx, m.ID, of)
		return err
	})
	if err != nil {
		return "", err
	}
	return r.Lease, nil
}

// LeaseRoles are those of all roles of a mount, by the roles' names.
func (d *Databases) LeaseRoles(ctx context.Context, tenant estover.TenantID, m Mount) (map[string]string, error) {
	all := map[string]string{}
	err := d.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		roles, err := allRoles(ctx, tx, m.ID)
		for _, r := range roles {
			all[r.Name] = r.Lease
		}
		return err
	})
	return all, err
}

// TargetOf is the target of a role of a mount.
func (d *Databases) TargetOf(ctx context.Context, tenant estover.TenantID, m Mount, of string) (string, error) {
	var x *Config
	err := d.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		r, err := findRole(ctx, tx, m.ID, of)
		if err == nil {
			x, err = findConfig(ctx, tx, m.ID, r.DB)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	return x.Target, nil
}
