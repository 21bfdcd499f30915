package lease

import (
	"context"
	"errors"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/target"
)

// ErrNoField is returned when what a lease hands out has no such part.
var ErrNoField = &estover.Error{Kind: estover.NotFound, Code: "lease_field_not_found", Detail: "The credential has no such part."}

// ErrOtherResource is returned when a role opens another resource than the one that
// it is used for.
var ErrOtherResource = &estover.Error{Kind: estover.Denied, Code: "lease_other_resource", Detail: "The role opens another resource, so its credentials are not sent there."}

// openedKey is what the gateway uses in a session.
type openedKey struct {
	tenant        estover.TenantID
	session, role string
}

// mostOpened bounds the copies.
const mostOpened = 10_000

// An Injection is a part of a credential on its way into a request.
type Injection struct {
	Value estover.Secret
	Lease string // its id, which stands for the value in every record
	User  string // at the target
	Until time.Time
}

// Use gives the gateway a part of the credential that a session has of a role, for
// a request to a resource (its id) on behalf of a caller. The first use in a session
// makes it, and policy is asked then; those that follow share it, and in the second
// half of its time the next one is made. What Use refuses must not be forwarded.
func (l *Leases) Use(ctx context.Context, c estover.Caller, resource, role, field string) (Injection, error) {
	if c.Session == "" {
		return Injection{}, ErrSession
	}
	for attempt := 0; ; attempt++ {
		x, err := l.shared(ctx, c, resource, role)
		if err != nil {
			return Injection{}, err
		}
		plain, err := l.sealer.Open(c.Tenant, x.aad(), x.sealed)
		if err != nil && attempt == 0 { // the copy may lie under a data key that has been retired since
			l.forget(c.Tenant, c.Session)
			continue
		}
		if errors.Is(err, seal.ErrBroken) {
			return Injection{}, ErrTampered.With("The lease %s in the database is not as it was written, so it is not used.", x.ID)
		}
		if err != nil {
			return Injection{}, err
		}
		values, err := decode(plain)
		if err != nil {
			return Injection{}, err
		}
		v, there := values[field]
		for name, other := range values {
			if name != field {
				other.Wipe()
			}
		}
		if !there {
			return Injection{}, ErrNoField.With("What the role %s hands out has no part %q.", role, field)
		}
		return Injection{Value: v, Lease: x.ID, User: x.User, Until: x.ExpiresAt}, nil
	}
}

// ErrTampered is returned when a lease is not as it was written.
var ErrTampered = &estover.Error{Kind: estover.Fault, Code: "lease_tampered", Detail: "The lease in the database is not as it was written, so it is not used."}

// shared is the lease that a session has of a role, or one that is made.
func (l *Leases) shared(ctx context.Context, c estover.Caller, resource, role string) (*Lease, error) {
	key, now := openedKey{c.Tenant, c.Session, role}, l.guard.DB().Now()
	l.mu.Lock()
	x := l.opened[key]
	l.mu.Unlock()
	half := func(x *Lease) time.Time { return x.CreatedAt.Add(x.ExpiresAt.Sub(x.CreatedAt) / 2) }
	if x != nil && now.Before(half(x)) && (x.Token == "" || x.Token == c.Token) {
		if x.Resource != resource {
			return nil, ErrOtherResource
		}
		return x, nil
	}
	r, err := l.roles.Get(ctx, c.Tenant, role)
	if err != nil {
		return nil, err
	}
	switch {
	case r.Resource != resource || resource == "":
		return nil, ErrOtherResource.With("The role %s opens another resource, so its credentials are not sent there.", role)
	case r.Delivery != Handle:
		return nil, ErrRole.With("The role %s hands its credentials out, so the gateway does not open them. Put a role with handles.", role)
	}
	l.mu.Lock()
	before := l.dropped
	l.mu.Unlock()
	w := Wish{Role: role}
	if err := w.bind(c, r); err != nil {
		return nil, err
	}
	made, err := l.create(ctx, c, r, w, shareOf(c.Session, r.ID, w.Token))
	if err != nil {
		return nil, err
	}
	x = &made.Lease
	l.mu.Lock()
	defer l.mu.Unlock()
	if before == l.dropped { // nothing was marked meanwhile
		if len(l.opened) >= mostOpened {
			clear(l.opened)
		}
		l.opened[key] = x
	}
	return x, nil
}

// touched hears of leases that are marked, here or on another node, after the
// commit.
func (l *Leases) touched(tenant estover.TenantID, kind, id string) {
	if kind == Marked {
		l.forget(tenant, id)
		l.stir()
	}
}

// forget drops the copies of a session, or all of a tenant.
func (l *Leases) forget(tenant estover.TenantID, session string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropped++
	for key := range l.opened {
		if key.tenant == tenant && (session == "*" || key.session == session) {
			delete(l.opened, key)
		}
	}
}

// Renew extends a lease: the target first, then the row (L7). How far is bounded
// by the role, the session and the grant; the lease says which of them it was. A
// person says what for, if the caller does not.
func (l *Leases) Renew(ctx context.Context, c estover.Caller, id string, more time.Duration, purpose string) (Lease, error) {
	if len(purpose) > 500 {
		return Lease{}, ErrInvalid.With("The purpose has at most 500 bytes.").At("purpose")
	}
	if purpose != "" {
		c.Purpose = purpose
	}
	x, err := l.read(ctx, c.Tenant, id)
	if errors.Is(err, ErrNotFound) { // who may ask hears that, and it is on record
		return Lease{}, l.guard.Do(ctx, c, guard.Op{Action: "lease.renew", Target: "lease:" + id, Effect: guard.Executes}, func(*guard.Tx) error { return err })
	}
	if err != nil {
		return Lease{}, err
	}
	op := guard.Op{Action: "lease.renew", Target: "lease:" + id, Effect: guard.Executes, Resource: x.Resource, Purpose: c.Purpose}
	r, err := l.roles.Get(ctx, c.Tenant, x.Role)
	if err == nil && r.ID != x.roleID {
		err = ErrNoRole.With("The role of the lease is no more, so it cannot be extended.")
	}
	if err != nil {
		return Lease{}, err
	}
	if x.Resource != "" {
		if op.Input, op.Effect, err = l.o.Action(ctx, c.Tenant, x.Resource, r.Action); err != nil {
			return Lease{}, err
		}
	}
	decision, err := l.guard.Admit(ctx, c, op)
	if err != nil {
		return Lease{}, err
	}
	if a := c.Acting(); a.Kind() == estover.AgentKind && a != x.Holder {
		return Lease{}, ErrNotFound
	}
	var granted Grant
	if x.Resource != "" && x.Agent != "" {
		who := c
		if c.Acting() != x.Holder {
			who = estover.Caller{Tenant: c.Tenant, Subject: x.Holder, Session: x.Session}
		}
		if granted, err = l.o.Grant(ctx, who, x.Resource, r.Action); err != nil {
			return Lease{}, err
		}
	}
	if x.State != Live || !l.guard.DB().Now().Before(x.ExpiresAt) {
		return Lease{}, ErrNotLive.With("The lease is %s. Ask for another one.", x.State)
	}
	ttl := time.Duration(r.TTLSeconds) * time.Second
	if more > 0 {
		ttl = min(ttl, more)
	}
	was := *x
	var session time.Time
	// When the session ends is asked for in a transaction that changes nothing; the
	// one that follows looks again whether it goes on.
	if x.Session != "" {
		err = l.guard.DB().Do(ctx, c.Tenant, func(tx *db.Tx) (err error) {
			session, err = l.o.Session(ctx, tx, x.Session)
			return err
		})
		if err != nil {
			return Lease{}, err
		}
	}
	x.until(l.guard.DB().Now().Add(ttl), session, granted.Until, time.Time{})
	if was.ExpiresBy == "token" && x.ExpiresAt.After(was.ExpiresAt) {
		x.ExpiresAt, x.ExpiresBy = was.ExpiresAt, "token"
	}
	if !x.ExpiresAt.After(was.ExpiresAt) {
		return Lease{}, ErrMaximum.With("The lease ends at %s, and its %s lets it go on no longer.", was.ExpiresAt.Format(time.RFC3339), x.ExpiresBy)
	}
	if err := l.extendAt(ctx, c.Tenant, x); err != nil {
		return Lease{}, err
	}
	op.Session = x.Session
	err = l.guard.Act(ctx, c, op, decision, func(tx *guard.Tx) error {
		if x.Session != "" {
			if _, err := l.o.Session(ctx, tx.Tx, x.Session); err != nil {
				return err
			}
		}
		if err := granted.keep(ctx, tx.Tx); err != nil {
			return err
		}
		if granted.ID != "" {
			x.Grant = granted.ID
		}
		tx.Note("expires_at", x.ExpiresAt)
		tx.Note("role", x.Role)
		tx.Touch(Marked, x.Session)
		is, err := extend(ctx, tx.Tx, &was, x)
		if err == nil && !is {
			err = ErrNotLive
		}
		return err
	})
	if err != nil {
		return Lease{}, err
	}
	return *x, nil
}

// extendAt has the target refuse the user later.
func (l *Leases) extendAt(ctx context.Context, tenant estover.TenantID, x *Lease) error {
	limited, cancel := context.WithTimeout(ctx, createIn)
	defer cancel()
	err := l.targets.Work(limited, tenant, x.Target, target.Making, true, func(ctx context.Context, e engine.Engine) error {
		skew, err := l.targets.Clock(ctx, tenant, x.Target, e)
		if err != nil {
			return err
		}
		return e.Extend(ctx, x.User, x.template, x.ExpiresAt.Add(skew+grace))
	})
	var no *engine.Refused
	switch {
	case errors.Is(err, engine.ErrUnsupported): // its end stands where nobody can change it
		return ErrMaximum.With("The lease ends at the target when it was said to end, and that cannot be put off there. Ask for another one.").Because(err)
	case errors.As(err, &no), errors.Is(err, engine.ErrNoUser):
		return ErrRefused.With("The target did not extend the credential. An operator finds the reason with `estover secret engine check`.").Because(err)
	case err == nil:
		return nil
	}
	return unreachable(err)
}
