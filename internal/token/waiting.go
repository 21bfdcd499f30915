package token

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/opaque"
)

// Device is the grant type of a client that shows a person a code, for want of a
// browser to send them with (RFC 8628).
const Device = "urn:ietf:params:oauth:grant-type:device_code"

// Backchannel is the grant type of a client that names the person (OpenID Connect
// Client-Initiated Backchannel Authentication, in the mode poll).
const Backchannel = "urn:openid:params:grant-type:ciba"

// The lives of what waits for a person.
const (
	DeviceLife      = 10 * time.Minute
	BackchannelLife = 5 * time.Minute
	PollInterval    = 5 * time.Second // that a client leaves between two questions, and by which it grows
	pollSlack       = time.Second     // by which one may come early, for networks
	fetchTime       = time.Minute     // that a client has at least, once the person has said yes
)

// Errors of what waits for a person (RFC 8628, section 3.5).
var (
	ErrPending = &estover.Error{Kind: estover.Conflict, Code: "authorization_pending", Detail: "The person has not decided yet. Ask again later."}
	ErrTooSoon = &estover.Error{Kind: estover.Conflict, Code: "slow_down", Detail: "This was asked too soon. Leave five seconds more between two questions from here on."}
	ErrLapsed  = &estover.Error{Kind: estover.Conflict, Code: "expired_token", Detail: "Nobody decided in time, or the decision was not asked for in time. Begin anew."}
	ErrSaidNo  = &estover.Error{Kind: estover.Denied, Code: "access_denied", Detail: "The person said no."}
	// ErrWaiting is returned for a value that buys nothing.
	ErrWaiting = &estover.Error{Kind: estover.Conflict, Code: "waiting_unknown", Detail: "What was presented is not known, belongs to another client or has been exchanged before."}
	// ErrInsistent is returned to a client that has asked the same person often.
	ErrInsistent = &estover.Error{Kind: estover.TooMuch, Code: "person_busy", Detail: "Several requests of this client wait for the person already."}
	// ErrDecided is returned to a person who decides too late, or not alone.
	ErrDecided = &estover.Error{Kind: estover.Conflict, Code: "waiting_decided", Detail: "This was decided before, or it has waited for too long. Let the agent ask again."}
	// ErrUserCode is returned for a code for which nothing waits.
	ErrUserCode = &estover.Error{Kind: estover.NotFound, Code: "user_code_unknown", Detail: "Nothing waits for this code. It may be mistyped, or too old."}
)

// The states of a request that waits for a person:
//
//	pending ──approve──▶ approved ──exchange──▶ redeemed
//	   │ └─────deny────▶ denied       │
//	   └───────(expires_at)───────────┘ (never stored: see [Waiting.Ready])
const (
	pending  = "pending"
	approved = "approved"
	denied   = "denied"
	redeemed = "redeemed"
)

// A Waiting is a request of a client that waits for a person, who decides on a
// page of ours and not where the client is.
type Waiting struct {
	ID      string
	Kind    string // the grant type
	Client  string
	Request string // what is asked for, as a form
	Person  string // who is asked; "" for whoever types the code
	Key     string // jkt that the client must show; "" for none
	From    string // the address that the request came from
	Asked   time.Time
	Expires time.Time
	Grant   *Grant // that the decision made; nil for none

	hash  [32]byte
	state string
}

// waitingKinds are the kinds of the values that clients ask with.
var waitingKinds = map[string]opaque.Kind{Device: opaque.DeviceCode, Backchannel: opaque.AuthRequest}

// maxWaiting bounds what waits of one client for one person: nobody is worn down
// by questions.
const maxWaiting = 3

// Wait keeps a request of an authenticated client until a person decides it, and
// gives the value that the client asks with. code stands for what the person
// types, nil where the client has named them. Nothing is decided by it.
func (t *Tokens) Wait(ctx context.Context, tenant estover.TenantID, w Waiting, from netip.Addr, code []byte, life time.Duration) (string, error) {
	value := opaque.New(waitingKinds[w.Kind])
	w.ID, w.hash = estover.NewID("wtg"), opaque.Hash(value)
	if from.IsValid() {
		w.From = from.String()
	}
	return value, t.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error {
		w.Expires = tx.Now().Add(life)
		if w.Person != "" {
			if n, err := countWaiting(ctx, tx, w.Person, w.Client); err != nil {
				return err
			} else if n >= maxWaiting {
				return ErrInsistent
			}
		}
		return insertWaiting(ctx, tx, &w, code)
	})
}

// ErrCodeTaken is returned when something else waits for the same code.
var ErrCodeTaken = errors.New("something else waits for this code")

// Waiting looks at a request by the value that its client asks with, and uses
// nothing up.
func (t *Tokens) Waiting(ctx context.Context, tenant estover.TenantID, kind, value string) (*Waiting, error) {
	if !opaque.Check(value, waitingKinds[kind]) {
		return nil, ErrWaiting
	}
	hash := opaque.Hash(value)
	return t.waiting(ctx, tenant, ErrWaiting, "hash = $2 and kind = $3", hash[:], kind)
}

// Typed looks at what waits for a code, as long as a person may decide it.
func (t *Tokens) Typed(ctx context.Context, tenant estover.TenantID, code []byte) (*Waiting, error) {
	w, err := t.waiting(ctx, tenant, ErrUserCode, "user_hash = $2", code)
	if err == nil && !w.Undecided(t.guard.DB().Now()) {
		return nil, ErrUserCode
	}
	return w, err
}

// Shown looks at a request that the caller, who is a person, was shown: one that
// asks nobody else.
func (t *Tokens) Shown(ctx context.Context, caller estover.Caller, id string) (*Waiting, error) {
	return t.waiting(ctx, caller.Tenant, ErrDecided, "id = $2 and (person_id is null or person_id = $3)", id, caller.Subject.ID())
}

// WaitingFor shows what waits for the caller, who is a person, because a client
// has named them, the oldest first.
func (t *Tokens) WaitingFor(ctx context.Context, caller estover.Caller) (all []*Waiting, err error) {
	err = t.guard.Read(ctx, caller, guard.Op{Action: "authorization.list", Target: string(caller.Subject)}, func(tx *db.Tx) error {
		all, err = waitingFor(ctx, tx, caller.Subject.ID())
		return err
	})
	return all, err
}

// Undecided reports whether the person may still decide.
func (w *Waiting) Undecided(now time.Time) bool { return w.state == pending && now.Before(w.Expires) }

func (t *Tokens) waiting(ctx context.Context, tenant estover.TenantID, missing error, where string, args ...any) (w *Waiting, err error) {
	err = t.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		w, err = findWaiting(ctx, tx, missing, where, args...)
		return err
	})
	return w, err
}

// Ready says why the client gets nothing yet, or nothing any more; nil if the
// person has said yes.
func (w *Waiting) Ready(now time.Time) error {
	switch {
	case w.state == redeemed:
		return ErrWaiting
	case w.state == denied:
		return ErrSaidNo
	case !now.Before(w.Expires):
		return ErrLapsed
	case w.state == pending:
		return ErrPending
	}
	return nil
}

// Consume exchanges what the person agreed to, in the transaction that issues.
func (w *Waiting) Consume(ctx context.Context, tx *guard.Tx) error {
	return redeemWaiting(ctx, tx.Tx, w.ID)
}

// polled notes that a client has asked while nothing was decided, and says
// whether that was too soon. There is nothing to record; what the request
// presents once is used up.
func (t *Tokens) polled(ctx context.Context, r Request) error {
	early := false
	err := t.guard.DB().Do(ctx, r.Caller.Tenant, func(tx *db.Tx) error {
		for _, row := range r.rows() {
			if err := tx.Insert(ctx, row); err != nil {
				return err
			}
		}
		inTime, err := poll(ctx, tx, r.Proof.Waiting.ID)
		early = !inTime
		return err
	})
	switch {
	case err != nil:
		return t.replayed(ctx, r, err)
	case early:
		return ErrTooSoon
	}
	return ErrPending
}

// Approve records that a person lets a client have what it waits for. Session
// and grant are made in the same transaction, and live until the client asks.
func (t *Tokens) Approve(ctx context.Context, a Authorization, w *Waiting) error {
	a.Registered, a.Asked = w.Kind, true
	return t.authorize(ctx, a, w.Kind, func(tx *guard.Tx, g *Grant) error {
		tx.Note("asked_from", w.From)
		tx.Note("asked_at", w.Asked)
		return decideWaiting(ctx, tx.Tx, w.ID, approved, a.Person.Subject.ID(), g.ID)
	})
}

// Deny records that a person does not let a client have what it waits for. form
// is the answer that says so, good once.
func (t *Tokens) Deny(ctx context.Context, person estover.Caller, w *Waiting, form Used) error {
	op := guard.Op{Action: "authorization.deny", Target: string(person.Subject), Detail: map[string]any{
		"client": w.Client, "grant_type": w.Kind, "asked_from": w.From, "asked_at": w.Asked,
	}}
	return t.guard.Do(ctx, person, op, func(tx *guard.Tx) error {
		if err := spend(ctx, tx.Tx, form); err != nil {
			return err
		}
		return decideWaiting(ctx, tx.Tx, w.ID, denied, person.Subject.ID(), "")
	})
}
