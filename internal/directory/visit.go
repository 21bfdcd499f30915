package directory

import (
	"context"
	"errors"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/opaque"
)

// How long a browser stays signed in.
const (
	VisitLife = 12 * time.Hour  // in any case
	VisitIdle = 2 * time.Hour   // while it asks for nothing
	seenEvery = 1 * time.Minute // how exactly it is known when it last asked
)

// maxVisits bounds the browsers in which a person is signed in. The one that
// signed in first makes room for another.
const maxVisits = 30

// The methods by which people prove who they are (RFC 8176, section 2).
const (
	ByHardwareKey = "hwk"  // a passkey that cannot leave its authenticator
	BySoftwareKey = "swk"  // a passkey that is kept in step on several devices
	Verified      = "user" // the authenticator has looked who uses it
	ByCode        = "otp"  // a recovery code
	ByStrong      = "mfa"  // at a provider whose sign-in is as good as a passkey
)

// A Visit is a browser in which a person is signed in.
type Visit struct {
	Caller  estover.Caller // the person; its grant is the visit
	Person  Person
	Since   time.Time // when the person last proved who they are
	Methods []string  // by which they did
	Expires time.Time
}

// Strong reports whether the person signed in by a passkey, or by what counts as
// one, rather than by something that can be written down or passed on.
func (v *Visit) Strong() bool {
	return slices.ContainsFunc([]string{ByHardwareKey, BySoftwareKey, ByStrong}, func(m string) bool { return slices.Contains(v.Methods, m) })
}

// Visit says who is signed in, given the value that a browser holds. It returns
// [ErrToken] whatever is wrong with it.
func (d *Directory) Visit(ctx context.Context, tenant estover.TenantID, value string) (*Visit, error) {
	if !opaque.Check(value, opaque.Visit) {
		return nil, ErrToken
	}
	hash := opaque.Hash(value)
	var t Token
	var p Person
	err := d.guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		if t, err = visitOf(ctx, tx, hash[:]); err != nil {
			return err
		}
		p, err = find(ctx, tx, t.Person)
		return err
	})
	now := d.guard.DB().Now()
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, ErrToken
	case err != nil:
		return nil, err
	case !t.live(now) || p.Status != Active || p.over(now) || now.Sub(t.SeenAt) >= VisitIdle:
		return nil, ErrToken
	}
	if now.Sub(t.SeenAt) >= seenEvery {
		// Nothing is decided by it but when the visit ends, and nobody is told.
		err := d.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error { return seen(ctx, tx, t.ID) })
		if err != nil {
			return nil, err
		}
	}
	v := &Visit{Person: p, Since: t.Since, Methods: t.Methods, Expires: t.ExpiresAt}
	v.Caller = estover.Caller{
		Tenant: tenant, Subject: estover.User(p.ID), Roles: p.Roles, Grant: t.ID, Epoch: p.Epoch, Until: t.ExpiresAt, Strength: estover.BySecret,
	}
	if v.Strong() {
		v.Caller.Strength = estover.ByKey
	}
	return v, nil
}

// A Browser is where somebody signs in: its tenant, address and request, and
// the visit that it holds already and that the new one takes the place of.
type Browser struct {
	From     estover.Caller
	Previous *Visit
}

// Invited is who an open invitation is for. Looking does not use it up. Of one
// that is not open any more it says whose it was, along with [ErrEnrolment].
func (d *Directory) Invited(ctx context.Context, tenant estover.TenantID, invitation string) (p Person, err error) {
	if !opaque.Check(invitation, opaque.Enrolment) {
		return p, ErrEnrolment
	}
	hash := opaque.Hash(invitation)
	err = d.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		id, open := openEnrolment(ctx, tx, hash[:])
		if errors.Is(open, ErrEnrolment) {
			id, err = enrolled(ctx, tx, hash[:])
		} else {
			err = open
		}
		if err != nil {
			return err
		}
		p, err = find(ctx, tx, id)
		if err == nil && (open != nil || p.Status == Disabled) {
			err = ErrEnrolment
		}
		return err
	})
	return p, err
}

// Enrol exchanges an invitation, once, for a first passkey, and signs its
// person in. It gives the value for the browser and the person's recovery
// codes, which are shown once. Codes and passkeys of before are void, and other
// browsers are signed out: whoever needs an invitation has lost them, or never
// had any.
func (d *Directory) Enrol(ctx context.Context, b Browser, invitation string, k Passkey, a Answer, methods []string) (value estover.Secret, codes []string, err error) {
	p, err := d.Invited(ctx, b.From.Tenant, invitation)
	if err != nil {
		return value, nil, err
	}
	hash := opaque.Hash(invitation)
	codes, hashes := newCodes()
	k.ID, k.Person, k.Label = estover.NewID("psk"), p.ID, label(k.Label)
	value, err = d.enter(ctx, b, p, Token{Methods: methods}, func(tx *guard.Tx) error {
		if err := answered(ctx, tx.Tx, a); err != nil {
			return err
		}
		e, err := consume(ctx, tx.Tx, hash[:])
		if err != nil {
			return err
		}
		tx.Note("enrolment", e)
		if err := d.endKeys(ctx, tx.Tx, p.ID); err != nil {
			return err
		}
		if err := makeRoom(ctx, tx, p.ID, 0); err != nil {
			return err
		}
		if err := d.add(ctx, tx, &k); err != nil {
			return err
		}
		return replaceCodes(ctx, tx.Tx, p.ID, hashes)
	})
	return value, codes, err
}

// SignIn lets a person in whose passkey has answered a challenge. k is the
// passkey with its record as it is after that.
func (d *Directory) SignIn(ctx context.Context, b Browser, k Passkey, a Answer, methods []string) (estover.Secret, error) {
	p, _, err := d.Holder(ctx, b.From.Tenant, k.Person)
	if err != nil {
		return estover.Secret{}, err
	}
	return d.enter(ctx, b, p, Token{Methods: methods}, func(tx *guard.Tx) error {
		if err := answered(ctx, tx.Tx, a); err != nil {
			return err
		}
		tx.Note("passkey", k.ID)
		return usePasskey(ctx, tx.Tx, k)
	})
}

// Recover lets a person in by a recovery code, once, and says how many codes
// are left.
func (d *Directory) Recover(ctx context.Context, b Browser, typed string) (value estover.Secret, left int, err error) {
	plain, ok := plainCode(typed)
	if !ok {
		return value, 0, ErrSignIn
	}
	hash := codeHash(plain)
	var p Person
	err = d.guard.DB().View(ctx, b.From.Tenant, func(tx *db.Tx) error {
		id, err := codeOwner(ctx, tx, hash[:])
		if err != nil {
			return err
		}
		p, err = find(ctx, tx, id)
		return err
	})
	if err != nil {
		return value, 0, err
	}
	value, err = d.enter(ctx, b, p, Token{Methods: []string{ByCode}}, func(tx *guard.Tx) error {
		if err := useCode(ctx, tx.Tx, hash[:]); err != nil {
			return err
		}
		left, err = codesLeft(ctx, tx.Tx, p.ID)
		tx.Note("recovery_codes_left", left)
		return err
	})
	return value, left, err
}

// enter signs a person in, given what proves that it is the one. t says how they
// have proved it, and when: zero for now. What is presented a second time, or by
// somebody who is disabled, is on record.
func (d *Directory) enter(ctx context.Context, b Browser, p Person, t Token, prove func(tx *guard.Tx) error) (estover.Secret, error) {
	caller := b.From
	caller.Subject, caller.Roles, caller.Strength = estover.User(p.ID), p.Roles, estover.BySecret
	value := opaque.New(opaque.Visit)
	t.ID, t.Person, t.Kind, t.hash = estover.NewID(tokenPrefix), p.ID, browserToken, opaque.Hash(value)
	op := guard.Op{Action: "login.create", Target: string(caller.Subject), Detail: map[string]any{"methods": t.Methods}}
	err := d.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		now, err := lock(ctx, tx.Tx, p.ID)
		if err != nil {
			return err
		}
		if now.Status == Disabled {
			tx.Fail(ErrSignIn)
			return nil
		}
		err = prove(tx)
		switch {
		case errors.Is(err, ErrEnrolment), errors.Is(err, ErrChallenge), errors.Is(err, ErrSignIn):
			tx.Fail(err)
			return nil
		case err != nil:
			return err
		}
		if b.Previous != nil {
			err := endToken(ctx, tx, b.Previous.Person.ID, b.Previous.Caller.Grant)
			if err != nil && !errors.Is(err, ErrTokenNotFound) {
				return err
			}
		}
		if err := makeRoom(ctx, tx, p.ID, maxVisits-1); err != nil {
			return err
		}
		t := t
		t.CreatedAt, t.ExpiresAt, t.SeenAt = tx.Now(), tx.Now().Add(VisitLife), tx.Now()
		if t.Since.IsZero() || t.Since.After(tx.Now()) {
			t.Since = tx.Now()
		}
		tx.Note("token", t.ID)
		return insertToken(ctx, tx.Tx, t)
	})
	if errors.Is(err, ErrToken) { // they are disabled, and the door lets them do nothing
		if err := d.Unproven(ctx, b.From, p.ID, err); err != nil {
			return estover.Secret{}, err
		}
		return estover.Secret{}, ErrSignIn
	}
	if err != nil {
		return estover.Secret{}, err
	}
	return estover.NewSecret([]byte(value)), nil
}

// Unproven records that somebody failed to prove to be a person: by a passkey
// that does not sign as it should, by an invitation that was used before. Nobody
// knows who it was, so the event is our own.
func (d *Directory) Unproven(ctx context.Context, from estover.Caller, person string, why error) error {
	return d.unproven(ctx, from, string(estover.User(person)), why)
}

// Unvouched records that nobody was let in by what a provider has said: it does
// not belong to a sign-in that was begun here, or is about somebody who is not
// known.
func (d *Directory) Unvouched(ctx context.Context, from estover.Caller, provider string, why error) error {
	return d.unproven(ctx, from, "provider:"+provider, why)
}

func (d *Directory) unproven(ctx context.Context, from estover.Caller, target string, why error) error {
	from.Subject = estover.System("login")
	refused := guard.Decision{ID: audit.NewID(), Engine: "kernel", Reasons: []string{"refused"}, Message: why.Error()}
	var e *estover.Error
	if errors.As(why, &e) {
		refused.Reasons[0], refused.Message = e.Code, e.Detail
	}
	op := guard.Op{Action: "login.create", Target: target, Effect: guard.Manages}
	return d.guard.Record(ctx, from, op, refused, guard.Hot{Outcome: audit.Refused})
}

// SignOut ends a visit.
func (d *Directory) SignOut(ctx context.Context, v *Visit) error {
	return d.Retire(ctx, v.Caller, v.Person.ID, v.Caller.Grant)
}

// RecoveryCodesLeft is how many codes the person of a visit could still use.
func (d *Directory) RecoveryCodesLeft(ctx context.Context, v *Visit) (left int, err error) {
	op := guard.Op{Action: "passkey.list", Target: string(v.Caller.Subject)}
	err = d.guard.Read(ctx, v.Caller, op, func(tx *db.Tx) error {
		left, err = codesLeft(ctx, tx, v.Person.ID)
		return err
	})
	return left, err
}

// Sweep forgets challenges that have lapsed, of all tenants.
func (d *Directory) Sweep(ctx context.Context) error {
	return d.guard.DB().Do(ctx, "", func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, "delete from answered_challenge where expires_at < $1", tx.Now().Add(-time.Minute))
		return err
	})
}

// Named is the active person whom somebody means who is to ask them something: by
// name, or by id.
func (d *Directory) Named(ctx context.Context, tenant estover.TenantID, hint string) (p Person, err error) {
	err = d.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		p, err = find(ctx, tx, hint)
		if errors.Is(err, ErrNotFound) {
			p, err = findName(ctx, tx, hint)
		}
		if err == nil && p.Status != Active {
			err = ErrNotFound
		}
		return err
	})
	return p, err
}
