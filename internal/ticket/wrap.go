package ticket

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/opaque"
	"estover.dev/internal/seal"
)

// ErrWrap is returned for a token by which nothing is unwrapped: one that was used
// already, that has expired, or that never was.
var ErrWrap = &estover.Error{Kind: estover.Invalid, Code: "wrapping_token_invalid", Detail: "wrapping token is not valid or does not exist"}

// ErrWrapTooLarge is returned for an answer that is too large to be wrapped.
var ErrWrapTooLarge = &estover.Error{Kind: estover.Invalid, Code: "wrapped_too_large", Detail: "An answer of more than a mebibyte cannot be wrapped."}

// A Wrapped is an answer that waits for whoever has its token, once.
type Wrapped struct {
	ID        string // the accessor of its token
	Path      string // of the request that it answers
	Accessor  string // of what is in it: a token, a secret-id; "" for neither
	TTL       time.Duration
	MadeBy    estover.Subject
	CreatedAt time.Time
	ExpiresAt time.Time
	Value     estover.Secret // when it is made

	tenant  estover.TenantID
	session string
	hash    []byte
	sealed  []byte
}

// door is who acts where nobody has said who they are: whoever unwraps an answer
// shows its token and nothing beside.
func door(tenant estover.TenantID, from From) estover.Caller {
	return estover.Caller{Tenant: tenant, Subject: estover.System("vault"), Address: from.Address, Request: from.Request, Noted: from.Noted}
}

// IsWrapping reports whether a value may be a wrapping token.
func IsWrapping(value string) bool {
	_, ok := split(value, opaque.Wrapping)
	return ok
}

// Wrap keeps an answer for whoever will have its token. It is gone when it was
// fetched, after ttl, and with the session of an agent that had it wrapped.
func (t *Tickets) Wrap(ctx context.Context, caller estover.Caller, path string, answer []byte, accessor string, ttl time.Duration) (Wrapped, error) {
	w := Wrapped{Path: path, Accessor: accessor, TTL: ttl, MadeBy: caller.Subject}
	if caller.Acting().Kind() == estover.AgentKind {
		w.session = caller.Session
	}
	return t.wrap(ctx, caller, w, answer)
}

func (t *Tickets) wrap(ctx context.Context, caller estover.Caller, w Wrapped, answer []byte) (Wrapped, error) {
	switch {
	case len(answer) > MaxSealed:
		return Wrapped{}, ErrWrapTooLarge
	case w.TTL < time.Second || w.TTL > LongestLife:
		return Wrapped{}, ErrInvalid.With("a wrapping TTL is between 1s and %s", LongestLife)
	}
	if err := t.Sealer.Prepare(ctx, caller.Tenant); err != nil {
		return Wrapped{}, err
	}
	v := value(opaque.Wrapping, caller.Tenant)
	w.ID, w.CreatedAt, w.TTL = estover.NewID("wrp"), t.guard.DB().Now(), w.TTL.Truncate(time.Second)
	w.tenant, w.hash = caller.Tenant, t.hash(caller.Tenant, wrapUse, v)
	w.ExpiresAt = w.CreatedAt.Add(w.TTL)
	var err error
	if w.sealed, err = t.Sealer.Seal(caller.Tenant, w.aad(), answer); err != nil {
		return Wrapped{}, fmt.Errorf("sealing an answer: %w", err)
	}
	op := guard.Op{Action: "ticket.wrap", Target: string(caller.Acting()), Detail: map[string]any{"path": w.Path, "wrapping": w.ID, "wrapped": w.Accessor}}
	err = t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		tx.SetTarget("wrapping:" + w.ID)
		if w.session != "" {
			if err := t.Hold(ctx, tx, w.session); err != nil {
				return err
			}
		}
		return insertWrap(ctx, tx.Tx, &w)
	})
	if err != nil {
		return Wrapped{}, err
	}
	w.Value = estover.NewSecret([]byte(v))
	return w, nil
}

func (w *Wrapped) aad() seal.AAD {
	return seal.AAD{Class: seal.Lease, ID: w.ID, Created: w.CreatedAt}
}

// LookupWrap shows what waits, without taking it. Whoever has the token needs no
// other. tenant is that of a caller who has; "" for none.
func (t *Tickets) LookupWrap(ctx context.Context, tenant estover.TenantID, value string) (*Wrapped, error) {
	of, ok := split(value, opaque.Wrapping)
	if !ok || tenant != "" && of != tenant {
		return nil, ErrWrap
	}
	switch err := t.known(ctx, of); estover.KindOf(err) {
	case estover.NotFound, estover.Denied:
		return nil, ErrWrap
	default:
		if err != nil {
			return nil, err
		}
	}
	hash := t.hash(of, wrapUse, value)
	var w *Wrapped
	err := t.guard.DB().View(ctx, of, func(tx *db.Tx) (err error) {
		w, err = findWrap(ctx, tx, hash)
		return err
	})
	return w, err
}

// Unwrap gives an answer that waits, once.
func (t *Tickets) Unwrap(ctx context.Context, tenant estover.TenantID, value string, from From) ([]byte, *Wrapped, error) {
	w, err := t.LookupWrap(ctx, tenant, value)
	if err != nil {
		return nil, nil, err
	}
	answer, err := t.Sealer.Open(w.tenant, w.aad(), w.sealed)
	if err != nil {
		return nil, nil, fmt.Errorf("opening an answer: %w", err)
	}
	op := guard.Op{Action: "ticket.unwrap", Target: "wrapping:" + w.ID, Detail: map[string]any{"path": w.Path, "wrapped": w.Accessor, "made_by": w.MadeBy}}
	err = t.guard.Do(ctx, door(w.tenant, from), op, func(tx *guard.Tx) error {
		ok, err := takeWrap(ctx, tx.Tx, w.ID)
		if err == nil && !ok {
			err = ErrWrap
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return answer, w, nil
}

// NoWrap has on record that somebody who is known wanted an answer that does not wait:
// others have it, or it is another tenant's (T3).
func (t *Tickets) NoWrap(ctx context.Context, caller estover.Caller) error {
	op := guard.Op{Action: "ticket.unwrap", Target: "wrapping:", Detail: map[string]any{"found": false}}
	return t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		tx.Fail(ErrWrap)
		return nil
	})
}

// Rewrap gives what waits another token, for as long again. It still goes with the
// session of who had it wrapped first.
func (t *Tickets) Rewrap(ctx context.Context, tenant estover.TenantID, value string, from From) (Wrapped, error) {
	answer, old, err := t.Unwrap(ctx, tenant, value, from)
	if err != nil {
		return Wrapped{}, err
	}
	defer clear(answer)
	again := Wrapped{Path: old.Path, Accessor: old.Accessor, TTL: old.TTL, MadeBy: old.MadeBy, session: old.session}
	return t.wrap(ctx, door(old.tenant, from), again, answer)
}

// dropWrap takes away an answer that waits, by the accessor of its token, and
// reports whether there was one.
func (t *Tickets) dropWrap(ctx context.Context, caller estover.Caller, id string) (bool, error) {
	var by estover.Subject
	err := t.guard.DB().View(ctx, caller.Tenant, func(tx *db.Tx) (err error) {
		by, err = wrapOwner(ctx, tx, id)
		return err
	})
	if errors.Is(err, ErrWrap) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	op := guard.Op{Action: "ticket.revoke", Target: string(by), Effect: guard.Deletes, Detail: map[string]any{"wrapping": id}}
	return true, t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		tx.SetTarget("wrapping:" + id)
		ok, err := takeWrap(ctx, tx.Tx, id)
		if err == nil && !ok {
			err = ErrNotFound
		}
		return err
	})
}

// Cubbyholes: what a ticket keeps for itself. Nobody else comes at it, and it
// goes with the ticket.

// ErrCubbyhole is returned for what a ticket cannot keep.
var ErrCubbyhole = &estover.Error{Kind: estover.Invalid, Code: "cubbyhole_invalid", Detail: "A token keeps at most 100 things, of 64 KiB each, at paths of at most 512 bytes."}

// ErrNoCubbyhole is returned when a ticket keeps nothing there.
var ErrNoCubbyhole = &estover.Error{Kind: estover.NotFound, Code: "cubbyhole_not_found", Detail: "The token keeps nothing there."}

// The bounds of a cubbyhole.
const (
	maxKept     = 100
	maxKeptSize = 64 << 10
	maxKeptPath = 512
)

// Keep has a ticket keep data at a path, in the place of what is there.
func (t *Tickets) Keep(ctx context.Context, caller estover.Caller, one *Ticket, path string, data []byte) error {
	if path == "" || len(path) > maxKeptPath || len(data) > maxKeptSize || strings.HasSuffix(path, "/") {
		return ErrCubbyhole
	}
	if err := t.Sealer.Prepare(ctx, one.tenant); err != nil {
		return err
	}
	id, at := estover.NewID("cub"), t.guard.DB().Now()
	sealed, err := t.Sealer.Seal(one.tenant, cubbyholeAAD(id, at), data)
	if err != nil {
		return fmt.Errorf("sealing what a ticket keeps: %w", err)
	}
	op := guard.Op{Action: "cubbyhole.write", Target: string(one.Subject), Effect: guard.Writes, Detail: map[string]any{"ticket": one.ID}}
	return t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		if ok, err := hold(ctx, tx.Tx, one.ID); err != nil || !ok {
			return errors.Join(err, ErrTicket)
		}
		return keep(ctx, tx.Tx, one.ID, path, id, sealed, at)
	})
}

func cubbyholeAAD(id string, at time.Time) seal.AAD {
	return seal.AAD{Class: seal.Lease, ID: id, Created: at}
}

// Kept is what a ticket keeps at a path.
func (t *Tickets) Kept(ctx context.Context, caller estover.Caller, one *Ticket, path string) ([]byte, error) {
	if err := t.Sealer.Prepare(ctx, one.tenant); err != nil {
		return nil, err
	}
	var id string
	var at time.Time
	var sealed []byte
	op := guard.Op{Action: "cubbyhole.read", Target: string(one.Subject), Detail: map[string]any{"ticket": one.ID}}
	err := t.guard.Read(ctx, caller, op, func(tx *db.Tx) (err error) {
		id, sealed, at, err = findKept(ctx, tx, one.ID, path)
		return err
	})
	if err != nil {
		return nil, err
	}
	return t.Sealer.Open(one.tenant, cubbyholeAAD(id, at), sealed)
}

// KeptBelow are the names below a path at which a ticket keeps something, in
// order; those of folders end in a slash.
func (t *Tickets) KeptBelow(ctx context.Context, caller estover.Caller, one *Ticket, prefix string) (names []string, err error) {
	if prefix = strings.Trim(prefix, "/"); prefix != "" {
		prefix += "/"
	}
	op := guard.Op{Action: "cubbyhole.list", Target: string(one.Subject), Detail: map[string]any{"ticket": one.ID}}
	err = t.guard.Read(ctx, caller, op, func(tx *db.Tx) error {
		paths, err := keptPaths(ctx, tx, one.ID)
		for _, p := range paths {
			if rest, ok := strings.CutPrefix(p, prefix); ok {
				name, _, folder := strings.Cut(rest, "/")
				if folder {
					name += "/"
				}
				names = append(names, name)
			}
		}
		return err
	})
	slices.Sort(names)
	return slices.Compact(names), err
}

// Forget has a ticket keep nothing at a path.
func (t *Tickets) Forget(ctx context.Context, caller estover.Caller, one *Ticket, path string) error {
	op := guard.Op{Action: "cubbyhole.remove", Target: string(one.Subject), Effect: guard.Deletes, Detail: map[string]any{"ticket": one.ID}}
	return t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error { return forget(ctx, tx.Tx, one.ID, path) })
}

// Keeps reports whether a ticket keeps something at a path, for whoever decides
// whether a write makes it. It is for the door alone, and tells nobody.
func (t *Tickets) Keeps(ctx context.Context, one *Ticket, path string) (bool, error) {
	err := t.guard.DB().View(ctx, one.tenant, func(tx *db.Tx) error {
		_, _, _, err := findKept(ctx, tx, one.ID, path)
		return err
	})
	if errors.Is(err, ErrNoCubbyhole) {
		return false, nil
	}
	return err == nil, err
}
