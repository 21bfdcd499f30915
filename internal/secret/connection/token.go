package connection

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/url"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/job"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
)

// How renewal goes.
const (
	claimFor   = time.Minute            // for which one has a connection that it renews; longer than renewTime
	renewTime  = 20 * time.Second       // how long a renewal may take
	lookAgain  = 100 * time.Millisecond // how often one looks whether another has renewed it
	leeway     = 30 * time.Second       // before its end a token is not begun with any more
	mostBefore = time.Hour              // before its end a token is renewed at the earliest
	leastWait  = time.Second            // after a failure; it doubles each time
	mostWait   = 5 * time.Minute
)

func aad(c Connection) seal.AAD { return seal.AAD{Class: seal.KV, ID: c.ID, Version: c.Generation} }

// seal seals tokens for the connection as it is.
func (x *Connections) seal(tenant estover.TenantID, c Connection, t tokens) ([]byte, error) {
	t.Mark = []byte(c.mark())
	b, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	return x.sealer.Seal(tenant, aad(c), b)
}

// open opens the tokens of a connection.
func (x *Connections) open(tenant estover.TenantID, c Connection) (t tokens, err error) {
	plain, err := x.sealer.Open(tenant, aad(c), c.sealed)
	if errors.Is(err, seal.ErrBroken) {
		return t, ErrTampered
	}
	if err != nil {
		return t, err
	}
	defer clear(plain)
	if json.Unmarshal(plain, &t) != nil || !bytes.Equal(t.Mark, []byte(c.mark())) {
		return tokens{}, ErrTampered
	}
	return t, nil
}

// allows reports whether the token may be sent to a host.
func (c *Connection) allows(host string) error {
	if to, err := destination(host); err == nil && slices.Contains(c.Destinations, to) {
		return nil
	}
	return ErrDestination.With("%s is not among the destinations of the connection %s, so its token is not sent there. An administrator may add it.", host, c.Name)
}

// fresh reports whether the access token is good for something that begins now.
func (c *Connection) fresh(now time.Time) bool {
	return c.State == Healthy && c.sealed != nil && (c.ExpiresAt.IsZero() || now.Before(c.ExpiresAt.Add(-leeway)))
}

// wants says what has to be done about a connection that is not healthy.
func (c *Connection) wants() error {
	why := ""
	if c.Reason != "" {
		why = ": " + c.Reason
	}
	switch c.State {
	case Reauthorize:
		return ErrReauthorize.With("The connection %s has to be authorized by a person%s. Ask an operator to run `estover connection authorize %s`.", c.Name, why, c.Name)
	case Misconfigured:
		return ErrMisconfigured.With("The connection %s is not set up as its provider wants it%s. Ask an administrator to look with `estover connection show %s`.", c.Name, why, c.Name)
	}
	return nil
}

// Use gives the gateway the access token for a request to a host on behalf of a
// caller, renewed if it has to be. The call is one that the guard has admitted.
// What Use refuses must not be forwarded.
func (x *Connections) Use(ctx context.Context, caller estover.Caller, name, host string) (secret.Injection, error) {
	if err := x.sealer.Prepare(ctx, caller.Tenant); err != nil {
		return secret.Injection{}, err
	}
	for attempt := 0; ; attempt++ {
		copied, err := x.copies.Get(ctx, caller.Tenant, name)
		if err != nil {
			return secret.Injection{}, err
		}
		c := *copied
		if err := c.allows(host); err != nil {
			return secret.Injection{}, err
		}
		if err := c.wants(); err != nil {
			return secret.Injection{}, err
		}
		if !c.fresh(x.guard.DB().Now()) {
			renewed, err := x.renew(ctx, caller.Tenant, name, false)
			switch good := c.sealed != nil && x.guard.DB().Now().Before(c.ExpiresAt); {
			case err == nil:
				c = renewed
				if err := c.allows(host); err != nil {
					return secret.Injection{}, err
				}
			case !good || !errors.Is(err, ErrProvider):
				return secret.Injection{}, err
			}
		}
		t, err := x.open(caller.Tenant, c)
		if err != nil && attempt == 0 {
			// The copy may lie under a data key that has been retired since.
			x.copies.Drop(caller.Tenant, name)
			continue
		}
		if err != nil {
			return secret.Injection{}, err
		}
		return secret.Injection{
			Value: estover.NewSecret([]byte(t.Access)), Secret: c.ID, Version: secret.VersionID(c.ID, c.Generation), Class: c.Class,
		}, nil
	}
}

// A flight is a renewal, and flown what came of it.
type (
	flight struct {
		tenant estover.TenantID
		name   string
		force  bool
	}
	flown struct {
		done chan struct{}
		c    Connection
		err  error
	}
)

// renew has the connection renewed, once however many ask for it, unless it is fresh.
// With force it is renewed all the same, and a connection that is misconfigured is
// tried again. It goes on if whoever asked does not wait.
func (x *Connections) renew(ctx context.Context, tenant estover.TenantID, name string, force bool) (Connection, error) {
	key := flight{tenant, name, force}
	x.mu.Lock()
	f := x.flying[key]
	if f == nil {
		f = &flown{done: make(chan struct{})}
		x.flying[key] = f
		go func() {
			own, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewTime)
			defer cancel()
			f.err = job.Guarded(func() (err error) { f.c, err = x.renewOnce(own, tenant, name, force); return err })
			x.mu.Lock()
			delete(x.flying, key)
			x.mu.Unlock()
			close(f.done)
		}()
	}
	x.mu.Unlock()
	select {
	case <-f.done:
		return f.c, f.err
	case <-ctx.Done():
		return Connection{}, ctx.Err()
	}
}

// renewOnce renews a connection, or waits for whoever does.
func (x *Connections) renewOnce(ctx context.Context, tenant estover.TenantID, name string, force bool) (Connection, error) {
	if err := x.sealer.Prepare(ctx, tenant); err != nil {
		return Connection{}, err
	}
	for {
		c, err := x.snapshot(ctx, tenant, name)
		if err != nil {
			return c, err
		}
		if !force && c.fresh(x.guard.DB().Now()) {
			return c, nil
		}
		if c.State == Reauthorize || c.State == Misconfigured && !force {
			return c, c.wants()
		}
		mine, died := false, c.claimedBy != ""
		err = x.guard.DB().Do(ctx, tenant, func(tx *db.Tx) (err error) {
			mine, err = claim(ctx, tx, &c, x.Node, tx.Now().Add(claimFor))
			return err
		})
		if err != nil {
			return c, err
		}
		if mine {
			return x.claimed(ctx, tenant, c, died)
		}
		select {
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return c, ErrProvider.With("The connection %s is being renewed, and that takes long. Try again.", name)
		}
	}
}

// claimed renews a connection that this node has for a while. died says that another
// had it and has not said what came of that.
func (x *Connections) claimed(ctx context.Context, tenant estover.TenantID, c Connection, died bool) (Connection, error) {
	form := url.Values{"grant_type": {"client_credentials"}}
	var old tokens
	if len(c.Scopes) > 0 {
		form.Set("scope", join(c.Scopes))
	}
	if c.Grant == AuthorizationCode {
		var err error
		if c.sealed != nil {
			if old, err = x.open(tenant, c); err != nil {
				return c, errors.Join(err, x.release(ctx, tenant, c))
			}
		}
		if old.Refresh == "" {
			return x.failed(ctx, tenant, c, Reauthorize, "its token has run out, and the provider gave none to renew it with", nil)
		}
		form = url.Values{"grant_type": {"refresh_token"}, "refresh_token": {old.Refresh}} // for the scopes that were granted
	}
	t, err := x.ask(ctx, tenant, c.Spec, form)
	var no *refusal
	var gone *away
	switch {
	case errors.As(err, &no):
		if state, final := no.final(c.Grant); final {
			why := no.what
			if died && state == Reauthorize {
				why += "; a renewal before was broken off, so the provider may take its refresh token for a used one"
			}
			return x.failed(ctx, tenant, c, state, why, err)
		}
		return x.postponed(ctx, tenant, c, no.what, err)
	case errors.As(err, &gone):
		return x.postponed(ctx, tenant, c, gone.Error(), err)
	case err != nil:
		return c, errors.Join(err, x.release(ctx, tenant, c))
	}
	if t.Refresh == "" {
		t.Refresh = old.Refresh // RFC 6749, section 6: it stays
	}
	return x.store(ctx, tenant, x.system(tenant), "connection.renew", c, t)
}

func (x *Connections) system(tenant estover.TenantID) estover.Caller {
	return estover.Caller{Tenant: tenant, Subject: estover.System("connection")}
}

// with is a connection with other tokens.
func (x *Connections) with(tenant estover.TenantID, c Connection, t tokens, now time.Time) (Connection, error) {
	c.Generation++
	c.State, c.Reason, c.failures, c.RenewedAt = Healthy, "", 0, now
	c.Granted, c.Renewable, c.ExpiresAt = t.scopes, t.Refresh != "" || c.Grant == ClientCredentials, time.Time{}
	if t.life > 0 {
		c.ExpiresAt = now.Add(t.life)
	}
	var err error
	c.sealed, err = x.seal(tenant, c, t)
	return c, err
}

// due is when a connection is renewed by itself; zero for never.
func (c *Connection) due() time.Time {
	if c.ExpiresAt.IsZero() || !c.Renewable {
		return time.Time{}
	}
	life := c.ExpiresAt.Sub(c.RenewedAt)
	before := min(max(life/5, 2*leeway), mostBefore, life/2)
	return c.ExpiresAt.Add(-before - rand.N(before/10+1))
}

// store keeps the tokens that came of a renewal. If the connection has been changed
// or removed meanwhile they belong to nobody, and are ended.
func (x *Connections) store(ctx context.Context, tenant estover.TenantID, caller estover.Caller, action string, c Connection, t tokens) (Connection, error) {
	// What has been given out is kept, whoever still waits for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewTime)
	defer cancel()
	fresh, err := x.with(tenant, c, t, x.guard.DB().Now())
	if err != nil {
		return c, err
	}
	op := guard.Op{Action: action, Target: target(c.Name), Effect: guard.Writes, Detail: map[string]any{
		"connection": c.ID, "generation": fresh.Generation, "scopes": fresh.Granted, "expires_at": fresh.ExpiresAt,
	}}
	err = x.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		tx.Touch(copyKind, c.Name)
		return renewed(ctx, tx.Tx, fresh, c.Generation)
	})
	if errors.Is(err, errStale) {
		x.copies.Drop(tenant, c.Name)
		return c, errors.Join(x.disown(ctx, tenant, c, t), ErrProvider.With("The connection %s has been changed while it was renewed. Try again.", c.Name))
	}
	return fresh, err
}

// disown ends tokens that a connection was too late for, unless others that came of
// the same authorization are in use: with them the provider would end those.
func (x *Connections) disown(ctx context.Context, tenant estover.TenantID, c Connection, t tokens) error {
	now, err := x.snapshot(ctx, tenant, c.Name)
	if err == nil && now.ID == c.ID && now.sealed != nil && same(now.Spec, c.Spec) {
		return nil
	}
	if err = ignore(err, ErrNotFound); err != nil {
		return err
	}
	ends, err := x.endsOf(tenant, c.ID, c.Spec, t)
	if err != nil {
		return err
	}
	return x.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error { return addRevocations(ctx, tx, ends) })
}

// failed notes that a connection needs somebody.
func (x *Connections) failed(ctx context.Context, tenant estover.TenantID, c Connection, state State, why string, behind error) (Connection, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewTime)
	defer cancel()
	op := guard.Op{Action: "connection.fail", Target: target(c.Name), Effect: guard.Writes, Detail: map[string]any{
		"connection": c.ID, "state": state, "reason": why,
	}}
	was := c.Generation
	c.State, c.Reason = state, why
	err := x.guard.Do(ctx, x.system(tenant), op, func(tx *guard.Tx) error {
		tx.Touch(copyKind, c.Name)
		return settle(ctx, tx.Tx, c, was, time.Time{})
	})
	if err != nil && !errors.Is(err, errStale) {
		return c, err
	}
	var known *estover.Error
	if errors.As(c.wants(), &known) {
		return c, known.Because(behind)
	}
	return c, behind
}

// postponed notes that a provider cannot be asked, and when it is tried again.
func (x *Connections) postponed(ctx context.Context, tenant estover.TenantID, c Connection, why string, behind error) (Connection, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewTime)
	defer cancel()
	c.Reason = why
	c.failures++
	if c.State == Misconfigured { // it was tried by hand, and is not known to be so any more
		c.State = Healthy
	}
	err := x.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error {
		return settle(ctx, tx, c, c.Generation, tx.Now().Add(wait(c.failures)))
	})
	x.copies.Drop(tenant, c.Name)
	if err != nil && !errors.Is(err, errStale) {
		return c, err
	}
	return c, ErrProvider.With("The provider of the connection %s cannot be asked for a token at this moment: %s. Try again.", c.Name, why).Because(behind)
}

// wait is how long a provider is left alone that has failed so many times: longer
// each time, and not in step with others.
func wait(failures int64) time.Duration {
	d := min(leastWait<<min(failures-1, 20), mostWait)
	return d - d/5 + rand.N(2*d/5+1)
}

// release gives a connection back of which nothing came.
func (x *Connections) release(ctx context.Context, tenant estover.TenantID, c Connection) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewTime)
	defer cancel()
	return ignore(x.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error {
		return settle(ctx, tx, c, c.Generation, tx.Now().Add(wait(c.failures+1)))
	}), errStale)
}

// Renew renews a connection by hand, also one that is misconfigured.
func (x *Connections) Renew(ctx context.Context, caller estover.Caller, name string) (Connection, error) {
	op := guard.Op{Action: "connection.try", Target: target(name), Effect: guard.Writes}
	err := x.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		_, err := findName(ctx, tx.Tx, name, "")
		return err
	})
	if err != nil {
		return Connection{}, err
	}
	return x.renew(ctx, caller.Tenant, name, true)
}

// atOnce bounds what is done at once of what is due.
const atOnce = 8

// RenewDue renews the connections of all tenants whose time has come.
func (x *Connections) RenewDue(ctx context.Context) error {
	var all []flight
	err := x.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		all, err = dueConnections(ctx, tx)
		return err
	})
	slots := make(chan struct{}, atOnce)
	for _, one := range all {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			_, err := x.renew(ctx, one.tenant, one.name, true)
			if err != nil && estover.KindOf(err) != estover.Unavailable && ctx.Err() == nil {
				x.Logger.Error("a connection could not be renewed", "connection", one.name, "error", err)
			}
		}()
	}
	for range atOnce {
		slots <- struct{}{}
	}
	return err
}

func join(scopes []string) string {
	b := make([]byte, 0, 64)
	for i, s := range scopes {
		if i > 0 {
			b = append(b, ' ')
		}
		b = append(b, s...)
	}
	return string(b)
}
