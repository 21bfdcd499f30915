package token

import (
	"context"
	"errors"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/detail"
	"estover.dev/internal/guard"
)

// ErrConsent is returned when what a person agreed to does not cover the request (any more).
var ErrConsent = &estover.Error{Kind: estover.Conflict, Code: "consent_needed", Detail: "The person has not agreed to this."}

// A Consent is what a person has agreed to for a client at a redirect URI, for
// as often as it asks and until it is ended.
type Consent struct {
	ID       string
	Client   string
	Redirect string // as it is registered; the grant type where there is no browser
	Reach    Reach
	Details  detail.List
	Created  time.Time

	digest string
}

// covers reports whether a request lies within what was agreed to, and the
// client is as it was then. Details that let the client do something were agreed
// to once: each time is another payment.
func (c *Consent) covers(a *Authorization, types detail.Types) bool {
	return c.digest == a.Digest && c.Reach.covers(a.Reach) && types.Check(a.Details) == nil && types.Within(a.Details, c.Details) == nil &&
		len(types.Confining(a.Details)) == len(a.Details)
}

type consentKey struct{ person, client, redirect string }

// consent stores what was agreed to, or makes sure that it was.
func (a *Authorization) consent(ctx context.Context, tx *guard.Tx, types detail.Types, id string) error {
	k := consentKey{a.Person.Subject.ID(), a.Client.ID, a.Registered}
	if !a.Asked {
		kept, err := findConsent(ctx, tx.Tx, k, true)
		if err == nil && !kept.covers(a, types) {
			err = ErrConsent
		}
		tx.Note("consent", kept.ID)
		return err
	}
	tx.Note("consent", id)
	return replaceConsent(ctx, tx.Tx, k, Consent{ID: id, Reach: a.Reach, Details: a.Details, digest: a.Digest})
}

// Agreed reports whether the person has agreed to all of this before. It
// decides what is shown, and [Tokens.Authorize] makes sure.
func (t *Tokens) Agreed(ctx context.Context, a Authorization) (bool, error) {
	var kept Consent
	err := t.guard.DB().View(ctx, a.Person.Tenant, func(tx *db.Tx) (err error) {
		kept, err = findConsent(ctx, tx, consentKey{a.Person.Subject.ID(), a.Client.ID, a.Registered}, false)
		return err
	})
	if errors.Is(err, ErrConsent) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	types, err := t.DetailTypes.Of(ctx, a.Person.Tenant)
	return err == nil && kept.covers(&a, types), err
}

// Consents shows what the caller, who is a person, has agreed to, the newest
// first.
func (t *Tokens) Consents(ctx context.Context, caller estover.Caller) (all []Consent, err error) {
	err = t.guard.Read(ctx, caller, guard.Op{Action: "consent.list", Target: string(caller.Subject)}, func(tx *db.Tx) error {
		all, err = consentsOf(ctx, tx, caller.Subject.ID())
		return err
	})
	return all, err
}

// EndConsent takes back what the caller, who is a person, has agreed to. Every
// session that the client has on their behalf ends.
func (t *Tokens) EndConsent(ctx context.Context, caller estover.Caller, id string) error {
	op := guard.Op{Action: "consent.end", Target: string(caller.Subject), Detail: map[string]any{"consent": id}}
	return t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		client, err := endConsent(ctx, tx.Tx, caller.Subject.ID(), id)
		if err != nil {
			return err
		}
		tx.Note("client", client)
		return t.endConsented(ctx, tx, caller.Subject, client, "the person took their consent back")
	})
}

// EndPerson ends what clients have on behalf of somebody who leaves, in the
// transaction in which they do.
func (t *Tokens) EndPerson(ctx context.Context, tx *guard.Tx, person string) error {
	if err := endConsents(ctx, tx.Tx, person); err != nil {
		return err
	}
	return t.endConsented(ctx, tx, estover.User(person), "", "the person was disabled")
}

// endConsented ends the sessions that clients have on behalf of a person: of
// one client, or of all if it is "".
func (t *Tokens) endConsented(ctx context.Context, tx *guard.Tx, person estover.Subject, client, cause string) error {
	sessions, err := consentedSessions(ctx, tx.Tx, person, client)
	if err != nil {
		return err
	}
	for _, s := range sessions {
		if err := t.Sessions.EndWithin(ctx, tx, s, cause); err != nil {
			return err
		}
	}
	return nil
}
