package lease

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/target"
)

// The errors of roles.
var (
	ErrNoRole       = &estover.Error{Kind: estover.NotFound, Code: "lease_role_not_found", Detail: "There is no such role. See `estover secret role list`."}
	ErrRole         = &estover.Error{Kind: estover.Invalid, Code: "lease_role_invalid", Detail: "The role is not valid."}
	ErrRoleChanged  = &estover.Error{Kind: estover.Conflict, Code: "lease_role_changed", Detail: "The role has been changed in the meantime. Try again."}
	ErrRoleInUse    = &estover.Error{Kind: estover.Conflict, Code: "lease_role_in_use", Detail: "There are leases of the role. Revoke them first."}
	ErrNotChecked   = &estover.Error{Kind: estover.Conflict, Code: "lease_role_not_checked", Detail: "It has not been seen yet that credentials of this role can be made and taken away. Do that: estover secret engine check."}
	errUnchangeable = ErrRole.With("A role stays at its target. Make another one.").At("target")
)

// A Bind is what a lease ends with besides its time.
type Bind string

// What leases are bound to.
const (
	ToSession Bind = "session" // the task
	ToToken   Bind = "token"   // the token with which it was asked for, and the session
)

// A RoleSpec is what one says of a role: whose credentials it gives out, and who
// gets them.
type RoleSpec struct {
	Name          string          `json:"name" doc:"How it is called: small letters, digits, dots, dashes and underscores"`
	Target        string          `json:"target" doc:"The name of the target at which the credentials are made"`
	Template      engine.Template `json:"template,omitempty" doc:"What they may do there, as the kind of target describes it"`
	Resource      string          `json:"resource,omitempty" doc:"The resource of the catalogue that they open, by id or name: an agent gets a lease if a grant covers the action there. Without one people alone get leases"`
	Action        string          `json:"action,omitempty" doc:"The action of the resource"`
	TTLSeconds    int64           `json:"ttl_seconds,omitempty" minimum:"0" maximum:"31536000" doc:"How long a lease lives unless less is asked for; 1 hour if left out"`
	MaxTTLSeconds int64           `json:"max_ttl_seconds,omitempty" minimum:"0" maximum:"31536000" doc:"To how long it can be extended; 24 hours, or the time of a lease, if left out"`
	Delivery      Delivery        `json:"delivery,omitempty" enum:"handle,plaintext" doc:"handle: the gateway opens it, which is so if left out; plaintext: whoever asks gets it, and it counts as having left us"`
	Bind          Bind            `json:"bind,omitempty" enum:"session,token" doc:"What it ends with besides its time; session if left out"`
	Shared        bool            `json:"shared,omitempty" doc:"A session that asks again in the first half of a lease's time gets the same one; with handles only"`
	PerMinute     int64           `json:"per_minute,omitempty" minimum:"0" maximum:"100000" doc:"How many are made in a minute; 20 if left out"`
	Description   string          `json:"description,omitempty" maxLength:"1000"`
}

// A Role is what leases are made from.
type Role struct {
	ID string `json:"id"`
	RoleSpec
	Ready      bool            `json:"ready"`                 // the whole round has gone well as the role and its target are
	CheckedAt  time.Time       `json:"checked_at,omitzero"`   // when it last did
	CheckError string          `json:"check_error,omitempty"` // why it did not
	Warnings   []string        `json:"warnings,omitempty"`    // what whoever puts it should know of the template
	CreatedAt  time.Time       `json:"created_at"`
	CreatedBy  estover.Subject `json:"created_by"`
	UpdatedAt  time.Time       `json:"updated_at"`

	targetID     string
	targetReach  int64
	checkedReach int64
	epoch        int64
}

func (r *Role) ready() bool { return !r.CheckedAt.IsZero() && r.checkedReach == r.targetReach }

// PutRole makes a role, or changes the one of this name. Nothing is issued from it
// before [Leases.CheckRole] has gone well.
func (l *Leases) PutRole(ctx context.Context, c estover.Caller, s RoleSpec) (r Role, err error) {
	op := guard.Op{Action: "lease_role.put", Target: "lease_role:" + s.Name, Detail: map[string]any{"spec": s}}
	s, invalid := s.check()
	err = l.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if invalid != nil {
			return invalid
		}
		at, err := target.FindNamed(ctx, tx.Tx, s.Target)
		if err != nil {
			return err
		}
		k, err := l.targets.Kind(at.Kind)
		if err != nil {
			return err
		}
		if err := checkTemplate(k, s.Template); err != nil {
			return err
		}
		spec := s
		if spec.Resource != "" {
			if spec.Resource, err = l.o.Resource(ctx, tx.Tx, s.Resource, s.Action); err != nil {
				return err
			}
		}
		was, err := findRole(ctx, tx.Tx, s.Name)
		if err != nil && !errors.Is(err, ErrNoRole) {
			return err
		}
		r = Role{
			ID: estover.NewID("lrl"), RoleSpec: spec, CreatedAt: tx.Now(), CreatedBy: c.Subject, UpdatedAt: tx.Now(),
			targetID: at.ID, targetReach: at.Reach, epoch: 1,
		}
		if k.Warn != nil {
			r.Warnings = k.Warn(r.Template)
		}
		tx.Note("delivery", r.Delivery)
		tx.Touch(roleKind, r.Name)
		if err != nil {
			if _, err := target.Lock(ctx, tx.Tx, at.ID); err != nil { // which may be about to be removed
				return err
			}
			return insertRole(ctx, tx.Tx, &r)
		}
		if was.targetID != at.ID {
			return errUnchangeable
		}
		r.ID, r.CreatedAt, r.CreatedBy, r.epoch = was.ID, was.CreatedAt, was.CreatedBy, was.epoch+1
		if sameTemplate(was.Template, r.Template) {
			r.CheckedAt, r.checkedReach, r.CheckError = was.CheckedAt, was.checkedReach, was.CheckError
		}
		r.Ready = r.ready()
		return replaceRole(ctx, tx.Tx, was.epoch, &r)
	})
	return r, err
}

func sameTemplate(a, b engine.Template) bool { return maps.EqualFunc(a, b, slices.Equal[[]string]) }

// Roles gives the roles in the order of their names.
func (l *Leases) Roles(ctx context.Context, c estover.Caller, after string, limit int) (all []Role, err error) {
	err = l.guard.Read(ctx, c, guard.Op{Action: "lease_role.list"}, func(tx *db.Tx) error {
		all, err = listRoles(ctx, tx, after, limit)
		return err
	})
	return all, err
}

// Role is the role of this name.
func (l *Leases) Role(ctx context.Context, c estover.Caller, name string) (r Role, err error) {
	err = l.guard.Read(ctx, c, guard.Op{Action: "lease_role.read", Target: "lease_role:" + name}, func(tx *db.Tx) error {
		found, err := findRole(ctx, tx, name)
		if err == nil {
			r = *found
		}
		return err
	})
	return r, err
}

// RemoveRole ends a role of which there are no leases.
func (l *Leases) RemoveRole(ctx context.Context, c estover.Caller, name string) error {
	op := guard.Op{Action: "lease_role.remove", Target: "lease_role:" + name, Effect: guard.Deletes}
	return l.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		r, err := findRole(ctx, tx.Tx, name)
		if err != nil {
			return err
		}
		if err := endRole(ctx, tx.Tx, r); err != nil {
			return err
		}
		n, err := countOpen(ctx, tx.Tx, "role_id", r.ID)
		if err != nil {
			return err
		}
		if n > 0 {
			return ErrRoleInUse.With("There are %d leases of the role %s. Revoke them first: estover secret lease revoke --role %s.", n, name, name)
		}
		tx.Touch(roleKind, name)
		return nil
	})
}

// check fills in what a spec leaves open and says what is wrong with it.
func (s RoleSpec) check() (RoleSpec, error) {
	if s.TTLSeconds == 0 {
		s.TTLSeconds = 3600
	}
	if s.MaxTTLSeconds == 0 {
		s.MaxTTLSeconds = max(s.TTLSeconds, 24*3600)
	}
	if s.Delivery == "" {
		s.Delivery = Handle
	}
	if s.Bind == "" {
		s.Bind = ToSession
	}
	if s.PerMinute == 0 {
		s.PerMinute = 20
	}
	const year = 365 * 24 * 3600
	switch {
	case !estover.ValidName(s.Name):
		return s, ErrRole.With("A role has a name of up to 63 small letters, digits, dots, dashes and underscores, not %q.", s.Name).At("name")
	case s.Target == "":
		return s, ErrRole.With("Say at which target the credentials are made.").At("target")
	case (s.Resource == "") != (s.Action == ""):
		return s, ErrRole.With("A role names a resource and an action of it, or neither.").At("action")
	case s.TTLSeconds < 1 || s.TTLSeconds > year:
		return s, ErrRole.With("A lease lives between a second and a year.").At("ttl_seconds")
	case s.MaxTTLSeconds < s.TTLSeconds || s.MaxTTLSeconds > year:
		return s, ErrRole.With("A lease can be extended to no less than its own time, and to no more than a year.").At("max_ttl_seconds")
	case s.Delivery != Handle && s.Delivery != Plaintext:
		return s, ErrRole.With("The delivery is handle or plaintext.").At("delivery")
	case s.Bind != ToSession && s.Bind != ToToken:
		return s, ErrRole.With("A lease is bound to its session or to the token.").At("bind")
	case s.Shared && s.Delivery != Handle:
		return s, ErrRole.With("What is handed out in plaintext is kept nowhere, so it cannot be handed out again: shared goes with handles.").At("shared")
	case s.Shared && s.Bind != ToSession:
		return s, ErrRole.With("What is shared in a session is not bound to one of its tokens.").At("shared")
	case s.PerMinute < 1 || s.PerMinute > 100_000:
		return s, ErrRole.With("Between 1 and 100,000 leases of a role are made in a minute.").At("per_minute")
	case len(s.Description) > 1000:
		return s, ErrRole.With("The description of a role has at most 1000 bytes.").At("description")
	}
	return s, nil
}

// checkTemplate says what is wrong with a template, without asking the target.
func checkTemplate(k engine.Kind, t engine.Template) error {
	size := 0
	known := map[string]engine.Field{}
	for _, f := range k.Template {
		known[f.Name] = f
		if f.Required && len(t[f.Name]) == 0 {
			return ErrRole.With("A role at a target of the kind %s says %s: %s.", k.Name, f.Name, f.Help).At("template." + f.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t)) {
		f, ok := known[name]
		switch {
		case !ok:
			return ErrRole.With("There is no %q in the template of a role at a target of the kind %s.", name, k.Name).At("template." + name)
		case len(t[name]) > 1 && !f.Many:
			return ErrRole.With("The template has one %s.", name).At("template." + name)
		}
		for _, v := range t[name] {
			size += len(v)
		}
	}
	if size > 64<<10 {
		return ErrRole.With("A template has at most 64 KiB.").At("template")
	}
	if k.CheckTemplate == nil {
		return nil
	}
	if err := k.CheckTemplate(t); err != nil {
		return ErrRole.With("The template cannot work: %s", sentence(err)).At("template")
	}
	return nil
}

// sentence is what an error says to a person.
func sentence(err error) string {
	var known *estover.Error
	if errors.As(err, &known) {
		return known.Detail
	}
	return err.Error()
}
