package directory

import (
	"context"
	"errors"
	"fmt"
	"net/mail"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Status says whether a person may come in and answer for agents.
type Status string

// The states of a person.
const (
	Active   Status = "active"
	Disabled Status = "disabled"
)

// A Spec is what an administrator decides about a person.
type Spec struct {
	Name  string         `json:"name" pattern:"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$" doc:"What the person is called, once and for good: small letters, digits, dots, dashes and underscores."`
	Email string         `json:"email,omitempty" maxLength:"254" doc:"Where the person can be reached; nobody else may have the same."`
	Roles []estover.Role `json:"roles,omitempty" enum:"admin,operator,auditor,approver" doc:"What the person may do in the management of Estover. A sponsor needs no role."`
}

// A Person is somebody who manages Estover or answers for agents.
type Person struct {
	ID string `json:"id"` // usr_…
	Spec
	Status         Status    `json:"status"`
	DisabledAt     time.Time `json:"disabled_at,omitzero"`
	DisabledReason string    `json:"disabled_reason,omitempty"`
	ManagedBy      string    `json:"managed_by,omitempty"` // who made it and keeps it: "apply/NAME"; "" if it was made by hand
	CreatedAt      time.Time `json:"created_at"`
	ExpiresAt      time.Time `json:"expires_at,omitzero"` // when they stop by themselves: who came in by emergency codes
	Epoch          int64     `json:"epoch"`               // raised when the person's roles change or the person is disabled
}

// Errors about people.
var (
	// ErrNotFound is returned when there is no such person in the tenant.
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "person_not_found", Detail: "There is no such person. `estover person list` shows who there is."}
	// ErrInvalid is returned when what is said of a person cannot be.
	ErrInvalid = &estover.Error{Kind: estover.Invalid, Code: "person_invalid", Detail: "This cannot be said of a person."}
	// ErrNameTaken is returned when another person has the name, or had it.
	ErrNameTaken = &estover.Error{Kind: estover.Conflict, Code: "person_name_taken", Detail: "Another person has this name. Choose another one; names are never used twice."}
	// ErrEmailTaken is returned when another person has the address.
	ErrEmailTaken = &estover.Error{Kind: estover.Conflict, Code: "person_email_taken", Detail: "Another person has this email address. Change it there first, or leave it out here."}
	// ErrDisabled is returned when somebody who is disabled would have to act.
	ErrDisabled = &estover.Error{Kind: estover.Conflict, Code: "person_disabled", Detail: "The person is disabled. Enable them first, or name somebody else."}
	// ErrLastAdmin is returned when nobody would be left to administer.
	ErrLastAdmin = &estover.Error{Kind: estover.Conflict, Code: "last_admin", Detail: "This is the last active administrator. Make somebody else one first."}
)

// Check gives the spec in the one form in which it is kept, or everything that
// is wrong with it.
func Check(s Spec) (Spec, error) {
	var bad []error
	wrong := func(field, format string, args ...any) { bad = append(bad, ErrInvalid.With(format, args...).At(field)) }
	if !estover.ValidName(s.Name) {
		wrong("name", "The name of a person has up to 63 small letters, digits, dots, dashes and underscores, not %q.", s.Name)
	}
	if s.Email != "" {
		s.Email = fold(s.Email)
		if a, err := mail.ParseAddress(s.Email); err != nil || a.Address != s.Email || len(s.Email) > 254 {
			wrong("email", "%q is not an email address.", s.Email)
		}
	}
	for i, r := range s.Roles {
		if !isRole(r) {
			wrong(fmt.Sprintf("roles[%d]", i), "%q is no role: there are admin, operator, auditor and approver.", r)
		}
	}
	s.Roles = slices.Clone(s.Roles)
	slices.Sort(s.Roles)
	s.Roles = slices.Compact(s.Roles)
	return s, errors.Join(bad...)
}

// isRole reports whether there is such a role.
func isRole(r estover.Role) bool {
	return r == estover.Admin || r == estover.Operator || r == estover.Auditor || r == estover.Approver
}

// fold is an address in the one spelling in which it is compared. Letters of
// other alphabets stay as they are: some become, as small ones, letters of an
// address that is somebody else's.
func fold(address string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r - 'A' + 'a'
		}
		return r
	}, address)
}

// Create adds a person. managedBy says who keeps it, if not a person by hand.
func (d *Directory) Create(ctx context.Context, caller estover.Caller, spec Spec, managedBy string) (Person, error) {
	spec, err := Check(spec)
	if err != nil {
		return Person{}, err
	}
	p := Person{ID: estover.NewID("usr"), Spec: spec, ManagedBy: managedBy, Status: Active, Epoch: 1}
	op := guard.Op{Action: "person.create", Target: string(estover.User(p.ID))}
	err = d.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		p.CreatedAt = tx.Now()
		tx.Note("person", spec)
		tx.Touch(estover.UserKind, p.ID)
		return insert(ctx, tx.Tx, p)
	})
	return p, err
}

// Identity is the person that the caller acts for, or is: what an agent is told
// of them, as far as they let it.
func (d *Directory) Identity(ctx context.Context, caller estover.Caller) (p Person, err error) {
	op := guard.Op{Action: "identity.read", Target: string(caller.Subject), Effect: guard.Reads}
	err = d.guard.Read(ctx, caller, op, func(tx *db.Tx) error {
		p, err = find(ctx, tx, caller.Subject.ID())
		return err
	})
	return p, err
}

// Update changes what is said of a person, except the name.
func (d *Directory) Update(ctx context.Context, caller estover.Caller, id string, spec Spec) (p Person, err error) {
	if spec, err = Check(spec); err != nil {
		return p, err
	}
	err = d.change(ctx, caller, "person.update", id, func(tx *guard.Tx, now *Person) error {
		if spec.Name != now.Name {
			return ErrInvalid.With("The name of a person is for good: %s cannot become %s.", now.Name, spec.Name).At("name")
		}
		if now.is(estover.Admin) && !slices.Contains(spec.Roles, estover.Admin) {
			if err := anotherAdministrator(ctx, tx.Tx, id); err != nil {
				return err
			}
		}
		if !slices.Equal(now.Roles, spec.Roles) {
			now.Epoch++
		}
		tx.Note("before", now.Spec)
		tx.Note("after", spec)
		now.Spec, p = spec, *now
		p.Spec = spec
		return nil
	})
	return p, err
}

// Disable keeps a person out and ends their tokens. It does nothing to
// somebody who is disabled already.
func (d *Directory) Disable(ctx context.Context, caller estover.Caller, id, reason string) (p Person, err error) {
	err = d.change(ctx, caller, "person.disable", id, func(tx *guard.Tx, now *Person) error {
		tx.Note("reason", reason)
		if now.Status == Disabled {
			p = *now
			return nil
		}
		if now.is(estover.Admin) {
			if err := anotherAdministrator(ctx, tx.Tx, id); err != nil {
				return err
			}
		}
		now.Status, now.DisabledAt, now.DisabledReason = Disabled, tx.Now(), reason
		now.Epoch++
		p = *now
		if err := endEntries(ctx, tx, id); err != nil {
			return err
		}
		if err := d.endKeys(ctx, tx.Tx, id); err != nil {
			return err
		}
		return d.left(ctx, tx, id)
	})
	return p, err
}

// Enable lets a person come in again, by an enrolment: the tokens of before
// stay ended.
func (d *Directory) Enable(ctx context.Context, caller estover.Caller, id string) (p Person, err error) {
	err = d.change(ctx, caller, "person.enable", id, func(_ *guard.Tx, now *Person) error {
		now.Status, now.DisabledAt, now.DisabledReason = Active, time.Time{}, ""
		p = *now
		return nil
	})
	return p, err
}

// change runs fn on the locked row of a person, and stores what fn made of it.
func (d *Directory) change(ctx context.Context, caller estover.Caller, action, id string, fn func(tx *guard.Tx, p *Person) error) error {
	return d.guard.Do(ctx, caller, guard.Op{Action: action, Target: string(estover.User(id))}, func(tx *guard.Tx) error {
		p, err := lock(ctx, tx.Tx, id)
		if err != nil {
			return err
		}
		if err := fn(tx, &p); err != nil {
			return err
		}
		tx.Touch(estover.UserKind, id)
		return update(ctx, tx.Tx, p)
	})
}

// anotherAdministrator is nil if somebody beside the person is an active
// administrator. It locks all of them, so that two cannot strip each other.
func anotherAdministrator(ctx context.Context, tx *db.Tx, id string) error {
	admins, err := lockAdministrators(ctx, tx)
	if err != nil {
		return err
	}
	for _, other := range admins {
		if other != id {
			return nil
		}
	}
	return ErrLastAdmin
}

// is reports whether the person is active and has the role.
func (p Person) is(r estover.Role) bool { return p.Status == Active && slices.Contains(p.Roles, r) }

// Get shows a person.
func (d *Directory) Get(ctx context.Context, caller estover.Caller, id string) (p Person, err error) {
	err = d.guard.Read(ctx, caller, guard.Op{Action: "person.read", Target: string(estover.User(id))}, func(tx *db.Tx) error {
		p, err = find(ctx, tx, id)
		return err
	})
	return p, err
}

// ByName shows the person with this name.
func (d *Directory) ByName(ctx context.Context, caller estover.Caller, name string) (p Person, err error) {
	err = d.guard.Read(ctx, caller, guard.Op{Action: "person.read"}, func(tx *db.Tx) error {
		p, err = findName(ctx, tx, name)
		return err
	})
	return p, err
}

// A Filter narrows a list; empty fields do not.
type Filter struct {
	ManagedBy string
}

// MaxPage is the most that one page of a list holds, and what it holds if
// nothing is asked.
const MaxPage = 200

// List shows people by name. next is where the following page begins (pass it
// as after), or "" at the end.
func (d *Directory) List(ctx context.Context, caller estover.Caller, f Filter, after string, limit int) (people []Person, next string, err error) {
	if limit <= 0 || limit > MaxPage {
		limit = MaxPage
	}
	err = d.guard.Read(ctx, caller, guard.Op{Action: "person.list"}, func(tx *db.Tx) error {
		people, err = list(ctx, tx, f, after, limit+1)
		return err
	})
	if len(people) > limit {
		people = people[:limit]
		next = people[limit-1].Name
	}
	return people, next, err
}
