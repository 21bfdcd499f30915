package database

import (
	"context"
	"errors"
	"fmt"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/rotation"
)

// A Static role is a user that is there, whose password is changed from time to
// time: with one user, or with a second one so that both work for a while.
type Static struct {
	Name string `json:"-"`
	Path string `json:"-"` // of the secret that is rotated

	DB             string   `json:"db_name"`
	Username       string   `json:"username"`
	Second         string   `json:"second_username"` // ours, and not Vault's
	Statements     []string `json:"rotation_statements"`
	Period         int64    `json:"rotation_period"` // seconds
	Schedule       string   `json:"rotation_schedule"`
	Window         int64    `json:"rotation_window"` // seconds
	CredentialType string   `json:"credential_type"`

	epoch int64
}

// A StaticCredential is what a static role logs in with now.
type StaticCredential struct {
	Username string
	Password estover.Secret
	Rotated  time.Time
	Next     time.Time
}

// shortestPeriod is how often a password is changed at the most, and shortestWindow
// for how long it may begin at least, in seconds.
const (
	shortestPeriod = 5
	shortestWindow = 3600
)

// spec is how the secret of a static role is rotated.
func (r *Static) spec(x *Config) (rotation.Spec, error) {
	s := rotation.Spec{Target: x.Target, Kind: rotation.SingleSlot, Users: []string{r.Username}, Connection: 1, Quiet: 1}
	if r.Second != "" {
		s.Kind, s.Users, s.Connection, s.Quiet = rotation.TwoUsers, append(s.Users, r.Second), 0, 0
		if r.Period > 0 { // the old password ends before the next change
			s.Connection, s.Quiet = max(1, min(3600, r.Period/2)), max(1, min(600, r.Period/2))
		}
	}
	switch {
	case r.Username == "":
		return s, ErrInvalid.With("username is a required field to create a static account")
	case r.CredentialType != "password":
		return s, ErrInvalid.With("credential_type %q is not offered: there is password", r.CredentialType)
	case len(r.Statements) > 0:
		return s, ErrInvalid.With("rotation_statements are not offered: the password is changed as the kind of database has it, and is not sent in clear")
	case r.Period > 0 && r.Schedule != "":
		return s, ErrInvalid.With("mutually exclusive fields rotation_period and rotation_schedule were both specified; only one of them can be provided")
	case r.Window != 0 && r.Schedule == "":
		return s, ErrInvalid.With("rotation_window goes with rotation_schedule, not with rotation_period")
	case r.Window != 0 && r.Window < shortestWindow:
		return s, ErrInvalid.With("rotation_window must be %d seconds or more", shortestWindow)
	case r.Schedule != "":
		s.Schedule, s.Within = r.Schedule, r.Window
	case r.Period < shortestPeriod:
		return s, ErrInvalid.With("rotation_period must be %d seconds or more", shortestPeriod)
	default:
		s.Schedule = fmt.Sprintf("%ds", r.Period)
	}
	return s, nil
}

// Static shows a static role.
func (d *Databases) Static(ctx context.Context, c estover.Caller, m Mount, of string) (r *Static, err error) {
	err = d.guard.Read(ctx, c, guard.Op{Action: "rotation.read", Target: "secret:" + d.staticPath(m, of)}, func(tx *db.Tx) error {
		r, err = findStatic(ctx, tx, m.ID, of)
		return err
	})
	return r, err
}

// Statics are the names of the static roles of a mount, in order.
func (d *Databases) Statics(ctx context.Context, c estover.Caller, m Mount) (names []string, err error) {
	err = d.guard.Read(ctx, c, guard.Op{Action: "rotation.list"}, func(tx *db.Tx) error {
		all, err := allStatic(ctx, tx, m.ID)
		for _, r := range all {
			names = append(names, r.Name)
		}
		return err
	})
	return names, err
}

func (*Databases) staticPath(m Mount, of string) string {
	return "vault-database/" + m.ID + "/static/" + of
}

func (d *Databases) peekStatic(ctx context.Context, tenant estover.TenantID, m Mount, of string) (r *Static, err error) {
	err = d.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		r, err = findStatic(ctx, tx, m.ID, of)
		return err
	})
	return r, err
}

// PutStatic makes a static role, and changes the password of its user at once, or
// changes one.
func (d *Databases) PutStatic(ctx context.Context, c estover.Caller, m Mount, of string, change func(*Static) error) error {
	if len(of) > 63 || !name.MatchString(of) {
		return ErrInvalid.With("%q is no name of a role", of)
	}
	if err := d.may(ctx, c, "rotation.schedule", "secret:"+d.staticPath(m, of), guard.Manages); err != nil {
		return err
	}
	r, err := d.peekStatic(ctx, c.Tenant, m, of)
	was := Static{}
	switch {
	case errors.Is(err, ErrNoRole):
		r = &Static{Name: of, Path: d.staticPath(m, of), CredentialType: "password", Statements: []string{}}
		if there, err := d.Exists(ctx, c.Tenant, m, of, true); err != nil || there {
			return errors.Join(err, ErrInvalid.With("Role and Static Role names must be unique"))
		}
	case err != nil:
		return err
	default:
		was = *r
	}
	if err := change(r); err != nil {
		return err
	}
	switch { // who names the other one changes over
	case was.Schedule != "" && r.Schedule == was.Schedule && r.Period != was.Period:
		r.Schedule, r.Window = "", 0
	case was.Period > 0 && r.Period == was.Period && r.Schedule != was.Schedule:
		r.Period = 0
	}
	if was.epoch > 0 && (r.Username != was.Username || r.DB != was.DB || r.Second != was.Second) {
		return ErrInvalid.With("cannot update static account username, second_username or db_name")
	}
	x, err := d.peek(ctx, c.Tenant, m, r.DB)
	if errors.Is(err, ErrNoConfig) {
		err = ErrInvalid.With("failed to find entry for connection with name: %q", r.DB)
	}
	if err != nil {
		return err
	}
	spec, err := r.spec(x)
	if err != nil {
		return err
	}
	fresh := was.epoch == 0
	if fresh {
		admin, err := d.Secrets.Get(ctx, c, x.Admin)
		if err != nil {
			return err
		}
		if _, err := d.Secrets.Create(ctx, c, secret.Spec{
			Path: r.Path, Risk: secret.Standard, Owner: d.Owner(ctx, c), Destinations: admin.Destinations, Description: "static-roles/" + of + " of a database mount of the Vault-compatible door",
		}); err != nil && !errors.Is(err, secret.ErrExists) {
			return err
		}
	}
	_, err = d.Rotations.Put(ctx, c, r.Path, spec)
	if err == nil && fresh {
		_, err = d.Rotations.Run(ctx, c, r.Path)
	}
	if err != nil {
		if fresh {
			d.forgetStatic(ctx, c, r)
		}
		return err
	}
	op := guard.Op{Action: "rotation.schedule", Target: "secret:" + r.Path, Detail: map[string]any{"mount": m.ID, "static_role": of}}
	return d.guard.Do(ctx, c, op, func(tx *guard.Tx) error { return putStatic(ctx, tx.Tx, m.ID, r) })
}

// forgetStatic takes away what was begun of a static role that could not be made.
// A password that the database takes already stays: it is known nowhere else.
func (d *Databases) forgetStatic(ctx context.Context, c estover.Caller, r *Static) {
	if there, err := d.Secrets.Written(ctx, c.Tenant, r.Path); err != nil || there {
		return
	}
	err := d.Rotations.Remove(ctx, c, r.Path)
	if err == nil || errors.Is(err, rotation.ErrNotFound) {
		err = d.Secrets.Remove(ctx, c, r.Path)
	}
	if err != nil && !errors.Is(err, secret.ErrNotFound) {
		d.Logger.Error("the secret of a static role that could not be made is left", "secret", r.Path, "error", err)
	}
}

// RemoveStatic ends a static role. Its user stays, with the password that it has,
// which nobody knows any more.
func (d *Databases) RemoveStatic(ctx context.Context, c estover.Caller, m Mount, of string) error {
	if err := d.may(ctx, c, "rotation.remove", "secret:"+d.staticPath(m, of), guard.Deletes); err != nil {
		return err
	}
	r, err := d.peekStatic(ctx, c.Tenant, m, of)
	if errors.Is(err, ErrNoRole) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := d.Rotations.Remove(ctx, c, r.Path); err != nil && !errors.Is(err, rotation.ErrNotFound) {
		return err
	}
	if err := d.Secrets.Remove(ctx, c, r.Path); err != nil && !errors.Is(err, secret.ErrNotFound) {
		return err
	}
	op := guard.Op{Action: "rotation.remove", Target: "secret:" + r.Path, Effect: guard.Deletes}
	return d.guard.Do(ctx, c, op, func(tx *guard.Tx) error { return dropRole(ctx, tx.Tx, m.ID, of) })
}

// StaticCredential hands out what a static role logs in with now.
func (d *Databases) StaticCredential(ctx context.Context, c estover.Caller, m Mount, of string) (out StaticCredential, err error) {
	r, err := d.peekStatic(ctx, c.Tenant, m, of)
	if err != nil {
		return out, d.told(ctx, c, "rotation.read", "secret:"+d.staticPath(m, of), guard.Reads, err)
	}
	purpose := ""
	if c.Acting().Kind() == estover.UserKind {
		purpose = m.Path + "/static-creds/" + of + ", asked for at the Vault-compatible door"
	}
	plain, err := d.Secrets.Read(ctx, c, r.Path, 0, purpose)
	if err != nil {
		return out, err
	}
	out = StaticCredential{Username: string(plain.Values["username"].Reveal()), Password: plain.Values["password"]}
	// When it was changed last is no secret to whoever has just got it.
	at, err := d.Rotations.Get(ctx, estover.Caller{Tenant: c.Tenant, Subject: estover.System("vault")}, r.Path)
	out.Rotated, out.Next = at.RotatedAt, at.DueAt
	return out, err
}

// RotateStatic changes the password of a static role now.
func (d *Databases) RotateStatic(ctx context.Context, c estover.Caller, m Mount, of string) error {
	r, err := d.peekStatic(ctx, c.Tenant, m, of)
	if err != nil {
		return d.told(ctx, c, "rotation.run", "secret:"+d.staticPath(m, of), guard.Manages, err)
	}
	_, err = d.Rotations.Run(ctx, c, r.Path)
	return err
}

// RotateRoot changes the password of the admin of a configuration now; from then on
// nobody but the server knows it.
func (d *Databases) RotateRoot(ctx context.Context, c estover.Caller, m Mount, of string) error {
	if err := d.may(ctx, c, "rotation.run", "secret:"+adminPath(m, of), guard.Manages); err != nil {
		return err
	}
	x, err := d.peek(ctx, c.Tenant, m, of)
	if err != nil {
		return err
	}
	at, err := x.reach()
	if err != nil {
		return err
	}
	if _, err := d.Rotations.Get(ctx, c, x.Admin); errors.Is(err, rotation.ErrNotFound) {
		spec := rotation.Spec{Target: x.Target, Kind: rotation.SingleSlot, Users: []string{at.user}, Schedule: "manual", Connection: 1, Quiet: 1}
		if _, err := d.Rotations.Put(ctx, c, x.Admin, spec); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	_, err = d.Rotations.Run(ctx, c, x.Admin)
	return err
}
