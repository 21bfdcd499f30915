package directory

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/opaque"
)

// How long tokens and enrolments live.
const (
	TokenLife        = 12 * time.Hour // unless something else is asked for
	MaxTokenLife     = 30 * 24 * time.Hour
	EnrolmentLife    = 24 * time.Hour
	MaxEnrolmentLife = 7 * 24 * time.Hour
)

// maxTokens bounds the live tokens of one person.
const maxTokens = 100

const tokenPrefix = "ptk"

// A Token lets a person in. Its value is shown once, when it is made.
type Token struct {
	ID        string    `json:"id"` // ptk_…
	Person    string    `json:"person"`
	Label     string    `json:"label,omitempty"` // what it is for
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
	EndedAt   time.Time `json:"ended_at,omitzero"`
	Kind      string    `json:"kind"` // bearer for the API, browser for pages

	// Of a browser: how the person proved who they are, and when it last asked.
	Methods []string  `json:"methods,omitempty"`
	SeenAt  time.Time `json:"seen_at,omitzero"`
	Since   time.Time `json:"authenticated_at,omitzero"`

	hash     [32]byte
	provider string // by which its person came in; "" for none
}

// The kinds of tokens. Their values differ too, so that neither is taken for
// the other.
const (
	bearerToken  = "bearer"
	browserToken = "browser"
)

// live reports whether the token lets its person in at this time.
func (t Token) live(now time.Time) bool { return t.EndedAt.IsZero() && now.Before(t.ExpiresAt) }

// An Enrolment is exchanged once for a token. Its value is shown once, when it
// is made.
type Enrolment struct {
	ID        string    `json:"id"` // enr_…
	Person    string    `json:"person"`
	ExpiresAt time.Time `json:"expires_at"`

	hash [32]byte
	life time.Duration
}

// Errors about coming in.
var (
	// ErrToken is returned for a token that lets nobody in.
	ErrToken = &estover.Error{Kind: estover.Unknown, Code: "token_invalid", Detail: "This token is wrong, has expired or was retired. Log in again with `estover login`, or ask an administrator for an enrolment."}
	// ErrEnrolment is returned for an enrolment that buys nothing.
	ErrEnrolment = &estover.Error{Kind: estover.Unknown, Code: "enrolment_invalid", Detail: "This enrolment is wrong, has expired or was used before. Ask an administrator for another one; if you did not use it yourself, tell them."}
	// ErrTokenNotFound is returned when a person has no such token.
	ErrTokenNotFound = &estover.Error{Kind: estover.NotFound, Code: "token_not_found", Detail: "The person has no such live token. `estover person tokens` shows which there are."}
	// ErrTooManyTokens is returned when a person holds as many tokens as one may.
	ErrTooManyTokens = &estover.Error{Kind: estover.TooMuch, Code: "too_many_tokens", Detail: "A person may have 100 live tokens. Retire some first."}
	// ErrNotAPerson is returned when somebody else than a person asks for a person's token.
	ErrNotAPerson = &estover.Error{Kind: estover.Denied, Code: "not_a_person", Detail: "Only people have such tokens. An agent gets its tokens at the token endpoint."}
)

// clamp is the life that was asked for, within its bounds.
func clamp(life, usual, most time.Duration) time.Duration {
	if life <= 0 {
		return usual
	}
	return min(life, most)
}

func newEnrolment(person string, life time.Duration) (estover.Secret, Enrolment) {
	value := opaque.New(opaque.Enrolment)
	return estover.NewSecret([]byte(value)), Enrolment{
		ID: estover.NewID("enr"), Person: person,
		hash: opaque.Hash(value), life: clamp(life, EnrolmentLife, MaxEnrolmentLife),
	}
}

// Invite makes an enrolment for a person, to be handed to them and nobody
// else. It lives for a day unless another life is asked for, at most a week.
func (d *Directory) Invite(ctx context.Context, caller estover.Caller, id string, life time.Duration) (estover.Secret, Enrolment, error) {
	value, e := newEnrolment(id, life)
	op := guard.Op{Action: "person.invite", Target: string(estover.User(id)), Detail: map[string]any{"enrolment": e.ID}}
	err := d.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		p, err := find(ctx, tx.Tx, id)
		if err != nil {
			return err
		}
		if p.Status == Disabled {
			return ErrDisabled
		}
		e.ExpiresAt = tx.Now().Add(e.life)
		return insertEnrolment(ctx, tx.Tx, e, caller.Subject)
	})
	if err != nil {
		return estover.Secret{}, Enrolment{}, err
	}
	return value, e, nil
}

// Redeem exchanges an enrolment for a token, once. from says where the request
// comes from: its tenant, address and id. The other open enrolments of the
// person are void afterwards.
func (d *Directory) Redeem(ctx context.Context, from estover.Caller, enrolment, label string, life time.Duration) (estover.Secret, Token, error) {
	if !opaque.Check(enrolment, opaque.Enrolment) {
		return estover.Secret{}, Token{}, ErrEnrolment
	}
	hash := opaque.Hash(enrolment)
	var p Person
	err := d.guard.DB().View(ctx, from.Tenant, func(tx *db.Tx) error {
		id, err := enrolled(ctx, tx, hash[:])
		if err != nil {
			return err
		}
		p, err = find(ctx, tx, id)
		return err
	})
	if err != nil {
		return estover.Secret{}, Token{}, err
	}
	caller := from
	caller.Subject, caller.Roles, caller.Strength = estover.User(p.ID), p.Roles, estover.BySecret
	value, t := newToken(p.ID, label)
	op := guard.Op{Action: "login.create", Target: string(caller.Subject)}
	err = d.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		now, err := lock(ctx, tx.Tx, p.ID) // what a person is disabled with must see the token
		if err != nil {
			return err
		}
		e, err := consume(ctx, tx.Tx, hash[:])
		if errors.Is(err, ErrEnrolment) || now.Status == Disabled {
			tx.Fail(ErrEnrolment)
			return nil
		}
		if err != nil {
			return err
		}
		tx.Note("enrolment", e)
		return d.issue(ctx, tx, &t, life)
	})
	if err != nil {
		return estover.Secret{}, Token{}, err
	}
	return value, t, nil
}

// Issue makes another token for the caller, who is a person.
func (d *Directory) Issue(ctx context.Context, caller estover.Caller, label string, life time.Duration) (estover.Secret, Token, error) {
	if caller.Subject.Kind() != estover.UserKind || len(caller.Actors) > 0 {
		return estover.Secret{}, Token{}, ErrNotAPerson
	}
	value, t := newToken(caller.Subject.ID(), label)
	err := d.guard.Do(ctx, caller, guard.Op{Action: "login.create", Target: string(caller.Subject)}, func(tx *guard.Tx) error {
		p, err := lock(ctx, tx.Tx, t.Person)
		if err != nil {
			return err
		}
		if p.Status == Disabled {
			return ErrDisabled
		}
		return d.issue(ctx, tx, &t, life)
	})
	if err != nil {
		return estover.Secret{}, Token{}, err
	}
	return value, t, nil
}

func newToken(person, label string) (estover.Secret, Token) {
	value := opaque.New(opaque.PersonToken)
	if len(label) > 100 {
		label = label[:100]
	}
	return estover.NewSecret([]byte(value)), Token{
		ID: estover.NewID(tokenPrefix), Person: person, Label: label, Kind: bearerToken, hash: opaque.Hash(value),
	}
}

func (d *Directory) issue(ctx context.Context, tx *guard.Tx, t *Token, life time.Duration) error {
	held, err := tokensOf(ctx, tx.Tx, t.Person)
	if err != nil {
		return err
	}
	held = slices.DeleteFunc(held, func(t Token) bool { return t.Kind != bearerToken })
	if len(held) >= maxTokens {
		return ErrTooManyTokens
	}
	t.CreatedAt = tx.Now()
	t.ExpiresAt = t.CreatedAt.Add(clamp(life, TokenLife, MaxTokenLife))
	tx.Note("token", t.ID)
	tx.Note("expires_at", t.ExpiresAt)
	tx.Touch(estover.UserKind, t.Person)
	return insertToken(ctx, tx.Tx, *t)
}

// Tokens shows the tokens of a person that are live, the newest first.
func (d *Directory) Tokens(ctx context.Context, caller estover.Caller, person string) (tokens []Token, err error) {
	err = d.guard.Read(ctx, caller, guard.Op{Action: "login.list", Target: string(estover.User(person))}, func(tx *db.Tx) error {
		if _, err := find(ctx, tx, person); err != nil {
			return err
		}
		tokens, err = tokensOf(ctx, tx, person)
		return err
	})
	return tokens, err
}

// Retire ends a token of a person.
func (d *Directory) Retire(ctx context.Context, caller estover.Caller, person, token string) error {
	op := guard.Op{Action: "login.end", Target: string(estover.User(person)), Detail: map[string]any{"token": token}}
	return d.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		tx.Touch(estover.UserKind, person)
		return endToken(ctx, tx, person, token)
	})
}

// TokenTable is where the tokens of people are kept. Under this name the end of one
// is told of ([guard.Tx.End]).
const TokenTable = "person_token"

// Keep keeps a token of a person from being ended before the transaction is, and
// says that it has, if so.
func Keep(ctx context.Context, tx *db.Tx, person, token string) error {
	live, err := tokenLive(ctx, tx, person, token, tx.ForUpdate())
	if err == nil && !live {
		err = ErrToken
	}
	return err
}

// Authenticate says who presents the token: the caller's tenant, subject,
// roles, strength, and as its grant the token's id with the person's epoch. It
// answers from memory where it can, and returns [ErrToken] whatever is wrong.
func (d *Directory) Authenticate(ctx context.Context, tenant estover.TenantID, value string) (estover.Caller, error) {
	if !opaque.Check(value, opaque.PersonToken) {
		return estover.Caller{}, ErrToken
	}
	hash := opaque.Hash(value)
	owner, err := d.owners.Get(ctx, tenant, hex.EncodeToString(hash[:]))
	if err != nil {
		return estover.Caller{}, err
	}
	h, err := d.people.Get(ctx, tenant, owner)
	if err != nil {
		return estover.Caller{}, err
	}
	now := d.guard.DB().Now()
	for _, t := range h.tokens {
		if t.hash == hash && t.live(now) && h.Status == Active && !h.over(now) {
			return estover.Caller{
				Tenant: tenant, Subject: estover.User(h.ID), Roles: h.Roles,
				Grant: t.ID, Epoch: h.Epoch, Until: t.ExpiresAt, Strength: estover.BySecret,
			}, nil
		}
	}
	return estover.Caller{}, ErrToken
}

// ByToken says who a person is to whom a token was given, and until when it lets
// them in: for what rests on the token without showing it. It is [ErrToken] if it
// lets nobody in any more.
func (d *Directory) ByToken(ctx context.Context, tenant estover.TenantID, person, token string) (estover.Caller, time.Time, error) {
	h, err := d.people.Get(ctx, tenant, person)
	if err != nil {
		return estover.Caller{}, time.Time{}, err
	}
	now := d.guard.DB().Now()
	for _, t := range h.tokens {
		if t.ID == token && t.Kind == bearerToken && t.live(now) && h.Status == Active && !h.over(now) {
			return estover.Caller{
				Tenant: tenant, Subject: estover.User(h.ID), Roles: h.Roles, Grant: t.ID, Epoch: h.Epoch, Strength: estover.BySecret,
			}, t.ExpiresAt, nil
		}
	}
	return estover.Caller{}, time.Time{}, ErrToken
}
