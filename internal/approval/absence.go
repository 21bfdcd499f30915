package approval

import (
	"context"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// An Absence is a time in which somebody else decides in a person's place too:
// the deputy may what the person may, and is one person all the same.
type Absence struct {
	Person    string          `json:"person"` // usr_…
	Deputy    string          `json:"deputy"` // usr_…
	Until     time.Time       `json:"until"`
	CreatedAt time.Time       `json:"created_at"`
	CreatedBy estover.Subject `json:"created_by"`
}

// LongestAbsence is the longest that one may be said to last.
const LongestAbsence = 366 * 24 * time.Hour

var (
	// ErrNoAbsence is returned when somebody is not away.
	ErrNoAbsence = &estover.Error{Kind: estover.NotFound, Code: "absence_not_found", Detail: "The person is not away."}
	// ErrNoPerson is returned when a person is named whom nobody knows.
	ErrNoPerson = &estover.Error{Kind: estover.NotFound, Code: "person_not_found", Detail: "There is no such person. `estover person list` shows who there is."}
	// ErrAbsence is returned when somebody cannot be away like this.
	ErrAbsence = &estover.Error{Kind: estover.Invalid, Code: "absence_invalid", Detail: "An absence cannot be like this."}
)

// Absent says that a person is away until a time, and who decides in their place.
// It takes the place of what was said before.
func (a *Approvals) Absent(ctx context.Context, caller estover.Caller, person, deputy string, until time.Time) (out Absence, err error) {
	op := guard.Op{Action: "absence.put", Target: string(estover.User(person))}
	err = a.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		until := until.UTC().Truncate(time.Microsecond)
		switch {
		case person == deputy:
			return ErrAbsence.With("Somebody else stands in for a person who is away.").At("deputy")
		case !until.After(tx.Now()):
			return ErrAbsence.With("The absence would be over already. Give a time to come.").At("until")
		case until.Sub(tx.Now()) > LongestAbsence:
			return ErrAbsence.With("An absence lasts a year at most.").At("until")
		}
		away, err := a.Person(ctx, tx.Tx, person)
		if err != nil {
			return err
		}
		p, err := a.Person(ctx, tx.Tx, deputy)
		if err != nil {
			return err
		}
		if away.Name == "" || p.Name == "" {
			return ErrNoPerson
		}
		if !p.Active {
			return ErrAbsence.With("%s is disabled, and decides nothing. Name somebody else.", p.Name).At("deputy")
		}
		out = Absence{person, deputy, until, tx.Now(), caller.Subject}
		tx.Note("deputy", deputy)
		tx.Note("until", until)
		return putAbsence(ctx, tx.Tx, out)
	})
	return out, err
}

// Back says that a person is no longer away.
func (a *Approvals) Back(ctx context.Context, caller estover.Caller, person string) error {
	op := guard.Op{Action: "absence.end", Target: string(estover.User(person))}
	return a.guard.Do(ctx, caller, op, func(tx *guard.Tx) error { return endAbsence(ctx, tx.Tx, person) })
}

// Absences are those that go on, of everybody.
func (a *Approvals) Absences(ctx context.Context, caller estover.Caller) (all []Absence, err error) {
	err = a.guard.Read(ctx, caller, guard.Op{Action: "absence.list"}, func(tx *db.Tx) error {
		all, err = absences(ctx, tx, "")
		return err
	})
	return all, err
}
