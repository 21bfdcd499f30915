package lease

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/target"
)

// createIn is how long a target may take to make a credential.
const createIn = 10 * time.Second

// grace is how much later than we the target itself refuses a user, so that it
// does not do so before the lease ends.
const grace = 5 * time.Second

// A Wish is what somebody asks for.
type Wish struct {
	Role string
	TTL  time.Duration // less than the role's; 0 for that
	// Purpose is what it is for; the caller's own if it is empty. A person says one.
	Purpose string
	// Token is the token that the lease is to end with, for a role that binds to
	// it; the caller's if it is empty.
	Token string
}

// An Issued lease is one that has just been handed out.
type Issued struct {
	Lease
	Values   engine.Material `json:"-"`                 // what it logs in with; nil if the gateway opens it
	Existing bool            `json:"existing"`          // the session had it already
	Lingers  string          `json:"lingers,omitempty"` // what may go on after it has ended
}

// Create makes a credential and hands it out. What policy is asked is whether the
// caller may do the role's action at its resource.
func (l *Leases) Create(ctx context.Context, c estover.Caller, w Wish) (Issued, error) {
	r, err := l.roles.Get(ctx, c.Tenant, w.Role)
	if err != nil {
		return Issued{}, err
	}
	if len(w.Purpose) > 500 {
		return Issued{}, ErrInvalid.With("The purpose has at most 500 bytes.").At("purpose")
	}
	if w.Purpose != "" {
		c.Purpose = w.Purpose
	}
	if err := w.bind(c, r); err != nil {
		return Issued{}, err
	}
	share := ""
	if r.Shared {
		share = shareOf(c.Session, r.ID, w.Token)
	}
	return l.create(ctx, c, r, w, share)
}

// shareOf is by what the lease of a session for a role is found again: by whoever
// has the same token, if it is bound to one.
func shareOf(session, role, token string) string {
	switch {
	case session == "":
		return ""
	case token != "":
		return session + " " + role + " " + token
	}
	return session + " " + role
}

// The outcomes of L1 besides a new row.
var (
	errStands  = errors.New("the session has such a lease")
	errPending = errors.New("the session is just getting such a lease")
)

func (l *Leases) create(ctx context.Context, c estover.Caller, r *Role, w Wish, share string) (Issued, error) {
	if c.Acting().Kind() == estover.AgentKind && c.Session == "" {
		return Issued{}, ErrSession
	}
	ttl := time.Duration(r.TTLSeconds) * time.Second
	if w.TTL < 0 || w.TTL > 0 && w.TTL < time.Second {
		return Issued{}, ErrInvalid.With("A lease lives for a second at least.").At("ttl_seconds")
	}
	if w.TTL > 0 {
		ttl = min(ttl, w.TTL)
	}
	changed := false
	for deadline := time.Now().Add(createIn); ; {
		x, k, err := l.intend(ctx, c, r, w, ttl, share)
		switch {
		case errors.Is(err, errStands):
			return Issued{Lease: *x, Existing: true, Lingers: k.Lingers}, nil
		case errors.Is(err, errPending) && time.Now().Before(deadline):
			if err := pause(ctx, 20*time.Millisecond); err != nil {
				return Issued{}, err
			}
			continue
		case errors.Is(err, errPending):
			return Issued{}, ErrUnsure.Because(err)
		case errors.Is(err, ErrRoleChanged) && !changed: // the copy was of before
			l.roles.Drop(c.Tenant, r.Name)
			now, err := l.roles.Get(ctx, c.Tenant, r.Name)
			if err != nil {
				return Issued{}, err
			}
			if now.ID != r.ID || now.Bind != r.Bind || now.Delivery != r.Delivery {
				return Issued{}, ErrRoleChanged
			}
			r, ttl, changed = now, min(ttl, time.Duration(now.TTLSeconds)*time.Second), true
			continue
		case err != nil:
			return Issued{}, err
		}
		if err := l.at("L1", true); err != nil {
			return Issued{}, err
		}
		values, err := l.make(ctx, c.Tenant, x, k)
		if err != nil {
			return Issued{}, err
		}
		if err := l.activate(ctx, c.Tenant, x, values); err != nil {
			return Issued{}, err
		}
		if ctx.Err() != nil { // L4: nobody waits for it any more
			l.undelivered(ctx, c.Tenant, x)
			return Issued{}, ctx.Err()
		}
		out := Issued{Lease: *x, Lingers: k.Lingers}
		if x.Delivery == Plaintext {
			out.Values = values
		}
		return out, nil
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// The bounds within which more is issued at a target (Q6).
const (
	mostOverdue   = 100
	oldestOverdue = 15 * time.Minute
)

// intend is L1: it asks policy and stores the row. With errStands it is the lease
// that there is already.
func (l *Leases) intend(ctx context.Context, c estover.Caller, r *Role, w Wish, ttl time.Duration, share string) (x *Lease, k engine.Kind, err error) {
	if err := l.sealer.Prepare(ctx, c.Tenant); err != nil {
		return nil, k, err
	}
	op := guard.Op{Action: "lease.create", Target: "lease_role:" + r.Name, Effect: guard.Executes, Resource: r.Resource, Purpose: c.Purpose}
	if r.Resource != "" {
		if op.Input, op.Effect, err = l.o.Action(ctx, c.Tenant, r.Resource, r.Action); err != nil {
			return nil, k, err
		}
	}
	decision, err := l.guard.Admit(ctx, c, op)
	if err != nil {
		return nil, k, err
	}
	var granted Grant
	if r.Resource != "" && c.Acting().Kind() == estover.AgentKind {
		if granted, err = l.o.Grant(ctx, c, r.Resource, r.Action); err != nil {
			return nil, k, err
		}
	}
	if err := l.at("L1", false); err != nil {
		return nil, k, err
	}
	id, random := estover.NewID("lse"), randomName()
	err = l.guard.Act(ctx, c, op, decision, func(tx *guard.Tx) error {
		if err := holdRole(ctx, tx.Tx, r); err != nil {
			return err
		}
		at, err := target.Lock(ctx, tx.Tx, r.targetID)
		if err != nil {
			return err
		}
		if err := at.Usable(); err != nil {
			return err
		}
		if !r.ready() || r.checkedReach != at.Reach {
			return ErrNotChecked.With("It has not been seen yet that credentials of the role %s can be made at %s and taken away. Do that: estover secret role check %s.", r.Name, at.Name, r.Name)
		}
		if k, err = l.targets.Kind(at.Kind); err != nil {
			return err
		}
		x = &Lease{
			ID: id, Role: r.Name, roleID: r.ID, Target: at.ID, template: r.Template, Resource: r.Resource, Delivery: r.Delivery, State: Creating,
			Session: c.Session, Holder: c.Acting(), Token: w.Token, authority: authority(c, w.Token), Grant: granted.ID, share: share,
			CreatedAt: tx.Now(), createBy: tx.Now().Add(createIn), MaxAt: tx.Now().Add(time.Duration(r.MaxTTLSeconds) * time.Second),
		}
		if x.Holder.Kind() == estover.AgentKind {
			x.Agent = x.Holder.ID()
		}
		if r.Resource != "" && l.o.Held != nil { // since policy was asked
			if err := l.o.Held(ctx, tx.Tx, r.Resource); err != nil {
				return err
			}
		}
		if err := granted.keep(ctx, tx.Tx); err != nil {
			return err
		}
		if l.o.Token != nil && x.authority != "" {
			if err := l.o.Token(ctx, tx.Tx, c); err != nil {
				return err
			}
		}
		token := w.until(c)
		if !token.IsZero() && token.Before(x.MaxAt) {
			x.MaxAt = token.UTC().Truncate(time.Microsecond)
		}
		var session time.Time
		if x.Session != "" {
			if session, err = l.o.Session(ctx, tx.Tx, x.Session); err != nil {
				return err
			}
		}
		x.until(tx.Now().Add(ttl), session, granted.Until, token)
		if !x.ExpiresAt.After(tx.Now()) {
			return ErrInvalid.With("The %s ends before a lease could begin.", x.ExpiresBy)
		}
		if share != "" {
			if err := l.sharing(ctx, tx, &x, share); err != nil {
				return err
			}
		}
		if err := l.quotas(ctx, tx.Tx, r, x, at); err != nil {
			return err
		}
		x.User = l.name(tx.Tenant(), r.Name, random, k.MaxName)
		tx.Note("lease", x.ID)
		tx.Note("target", at.ID)
		tx.Note("user", x.User)
		tx.Note("delivery", x.Delivery)
		tx.Note("expires_at", x.ExpiresAt)
		if err := insert(ctx, tx.Tx, x); db.Taken(err) {
			return errPending // another one asked for the same at this moment
		} else if err != nil {
			return err
		}
		return nil
	})
	if err != nil && !errors.Is(err, errStands) {
		return nil, k, err
	}
	return x, k, err
}

// until sets when a lease ends, and what says so: the first of the instants.
func (x *Lease) until(ttl, session, grant, token time.Time) {
	x.ExpiresAt, x.ExpiresBy = ttl, "ttl"
	for _, end := range []struct {
		at time.Time
		by string
	}{{token, "token"}, {x.MaxAt, "ttl"}, {session, "session"}, {grant, "grant"}} {
		if !end.at.IsZero() && end.at.Before(x.ExpiresAt) {
			x.ExpiresAt, x.ExpiresBy = end.at.UTC().Truncate(time.Microsecond), end.by
		}
	}
}

// sharing finds the lease that a session has of the role already, if more than half
// of its time is left; another one takes its place otherwise.
func (l *Leases) sharing(ctx context.Context, tx *guard.Tx, x **Lease, share string) error {
	have, err := findShared(ctx, tx.Tx, share)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	case have.State == Creating && tx.Now().Before(have.createBy):
		return errPending
	case have.State == Live && tx.Now().Before(have.CreatedAt.Add(have.ExpiresAt.Sub(have.CreatedAt)/2)):
		*x = have
		return errStands
	}
	return unshare(ctx, tx.Tx, have.ID)
}

// quotas says what is used up, if anything is (L8, Q6).
func (l *Leases) quotas(ctx context.Context, tx *db.Tx, r *Role, x *Lease, at *target.Target) error {
	since := tx.Now().Add(-time.Minute)
	made, err := countMade(ctx, tx, r.ID, since)
	if err != nil {
		return err
	}
	if made >= r.PerMinute {
		// There is room when so many of them are a minute old that one more may be made.
		leaves, err := madeAt(ctx, tx, r.ID, since, made-r.PerMinute)
		if err != nil {
			return err
		}
		again := ErrRate.In(leaves.Sub(since))
		return again.With("%d leases of the role %s have been made in the last minute, which is as many as there may be. Try again in %d seconds.", made, r.Name, estover.Wait(again))
	}
	if x.Agent != "" {
		n, err := countLive(ctx, tx, x.Agent)
		if err != nil {
			return err
		}
		if n >= l.o.Quota {
			return ErrQuota.With("The agent has %d live leases, which is as many as it may have. Revoke those that it does not need.", n)
		}
	}
	more, oldest, err := backlog(ctx, tx, at.ID, mostOverdue)
	if err != nil {
		return err
	}
	if more || !oldest.IsZero() && tx.Now().Sub(oldest) > oldestOverdue {
		return ErrOverdue.With("Credentials at the target %s should be gone and are not, so no more are made there. An operator finds the reason with `estover secret lease list --overdue`.", at.Name)
	}
	return nil
}

var lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Names of users: e_, the mark of the tenant, the role, and what makes it unique.
const (
	markLen   = 8
	roleLen   = 12
	randomLen = 16
)

func randomName() string {
	b := make([]byte, 10)
	_, _ = rand.Read(b) // never fails
	return lower.EncodeToString(b)[:randomLen]
}

// Prefix is what the names of all users begin with that are made here for a
// tenant, and those of nobody else.
func (l *Leases) prefix(tenant estover.TenantID) string {
	return "e_" + lower.EncodeToString(l.sealer.MAC(tenant, "lease.mark", nil))[:markLen] + "_"
}

// name is that of a user, of most bytes at most.
func (l *Leases) name(tenant estover.TenantID, role, random string, most int) string {
	role = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, role)
	prefix := l.prefix(tenant)
	room := roleLen
	if most > 0 {
		room = min(room, most-len(prefix)-1-randomLen)
	}
	if room <= 0 {
		name := prefix + random
		if most > 0 {
			name = name[:min(len(name), most)]
		}
		return name
	}
	return prefix + role[:min(len(role), room)] + "_" + random
}

// password is what a user logs in with (L9).
func password() estover.Secret {
	b := make([]byte, 24)
	_, _ = rand.Read(b) // never fails
	out := make([]byte, base64.RawURLEncoding.EncodedLen(len(b)))
	base64.RawURLEncoding.Encode(out, b)
	clear(b)
	return estover.NewSecret(out)
}

// make is L2: it makes the credential at the target, whoever still waits for it.
// What it cannot make it undoes, or leaves to the sweep where nobody knows.
func (l *Leases) make(ctx context.Context, tenant estover.TenantID, x *Lease, k engine.Kind) (values engine.Material, err error) {
	left := x.createBy.Sub(l.guard.DB().Now())
	detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), left)
	defer cancel()
	if err := l.at("L2", false); err != nil {
		return nil, err
	}
	begun := false
	err = l.targets.Work(detached, tenant, x.Target, target.Making, true, func(ctx context.Context, e engine.Engine) error {
		skew, err := l.targets.Clock(ctx, tenant, x.Target, e)
		if err != nil {
			return err
		}
		o := engine.Order{Name: x.User, Until: x.ExpiresAt.Add(skew + grace), Template: x.template}
		if !k.Plain {
			o.Secret = password()
		}
		begun = true
		values, err = e.Create(ctx, o)
		return err
	})
	if failed := l.at("L2", true); failed != nil {
		return nil, failed
	}
	if err == nil {
		return values, nil
	}
	var no *engine.Refused
	switch {
	case errors.As(err, &no):
		// What a target refused is not there. It is taken away all the same, once, in
		// case it is there in part.
		l.undo(ctx, tenant, x, Failed, no.Reason)
		return nil, ErrRefused.Because(err)
	case !begun || errors.Is(err, engine.ErrUnreachable):
		l.nothing(ctx, tenant, x, err)
		return nil, unreachable(err)
	}
	return nil, ErrUnsure.Because(err)
}

// unreachable is an error of a target at which nothing was begun, for whoever wanted
// something there. What is wrong with the target or its admin is the operator's.
func unreachable(err error) error {
	var known *estover.Error
	if errors.As(err, &known) && known.Kind == estover.Unavailable {
		return err
	}
	return target.ErrUnreachable.Because(err)
}

// activate is L3: from here on the lease is live.
func (l *Leases) activate(ctx context.Context, tenant estover.TenantID, x *Lease, values engine.Material) error {
	if x.Delivery == Handle {
		plain, err := encode(values)
		if err != nil {
			l.undo(ctx, tenant, x, Failed, "what the target handed out cannot be kept")
			return err
		}
		x.sealed, err = l.sealer.Seal(tenant, x.aad(), plain)
		clear(plain)
		if err != nil {
			l.undo(ctx, tenant, x, Failed, "the credential could not be sealed")
			return fmt.Errorf("sealing what a lease hands out: %w", err)
		}
	}
	prints := l.prints(tenant, values) // H4: it is recognised wherever it turns up from here on
	if err := l.at("L3", false); err != nil {
		return err
	}
	// The credential is there: what is written of it does not hang on who waits.
	detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), createIn)
	defer cancel()
	op := guard.Op{Action: "lease.activate", Target: "lease:" + x.ID, Session: x.Session, Detail: map[string]any{"role": x.Role, "user": x.User, "delivery": x.Delivery}}
	err := l.guard.Do(detached, system(tenant), op, func(tx *guard.Tx) error {
		is, err := activate(detached, tx.Tx, x.ID, x.sealed)
		if err == nil && !is {
			err = ErrEnded
		}
		if err != nil {
			return err
		}
		return savePrints(detached, tx.Tx, x.ID, prints)
	})
	if err == nil {
		err = l.at("L3 reply", true)
	}
	if err != nil && !errors.Is(err, ErrEnded) {
		// The reply may have been lost, and not the commit: the row decides (F3).
		if is, lost := l.read(detached, tenant, x.ID); lost == nil && is.State == Live {
			err = nil
		}
	}
	if failed := l.at("L3", true); failed != nil {
		return failed
	}
	if err != nil {
		l.undo(ctx, tenant, x, Failed, "") // L5
		return err
	}
	x.State = Live
	return nil
}

// undoIn is how long the creator tries to take away what it has made.
const undoIn = 10 * time.Second

// undo takes a credential away that its creator knows of and that does not become
// live, and ends the row. What fails is left to the sweep.
func (l *Leases) undo(ctx context.Context, tenant estover.TenantID, x *Lease, cause Cause, reason string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoIn)
	defer cancel()
	defer l.stir()
	if l.at("undo", false) != nil {
		return
	}
	var gone bool
	err := l.targets.Work(ctx, tenant, x.Target, target.Making, true, func(ctx context.Context, e engine.Engine) error {
		err := errors.Join(e.Revoke(ctx, []engine.Doomed{{Name: x.User, Template: x.template}})...)
		gone = err == nil
		return err
	})
	if l.at("undo", true) != nil {
		return
	}
	if gone {
		err = l.settle(ctx, tenant, x, cause, reason)
	} else {
		err = errors.Join(err, l.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error { return reported(ctx, tx, x.ID) }))
	}
	if err != nil {
		l.o.Logger.Error("a credential that nobody got could not be taken away yet", "lease", x.ID, "error", err)
	}
}

// nothing ends the row of a credential of which the target has not heard.
func (l *Leases) nothing(ctx context.Context, tenant estover.TenantID, x *Lease, why error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoIn)
	defer cancel()
	if err := l.settle(ctx, tenant, x, Failed, db.Short(why.Error())); err != nil {
		l.o.Logger.Error("the lease of a credential that was not made could not be ended yet", "lease", x.ID, "error", err)
	}
}

func (l *Leases) settle(ctx context.Context, tenant estover.TenantID, x *Lease, cause Cause, reason string) error {
	op := guard.Op{Action: "lease.end", Target: "lease:" + x.ID, Session: x.Session, Detail: map[string]any{"role": x.Role, "user": x.User, "cause": cause}}
	return l.guard.Do(ctx, system(tenant), op, func(tx *guard.Tx) error {
		is, err := settle(ctx, tx.Tx, x.ID, cause, reason)
		if err == nil && !is {
			return errTaken
		}
		return err
	})
}

// errTaken says that a worker ends the lease already.
var errTaken = errors.New("the lease is being ended already")

// undelivered revokes a lease that nobody has got.
func (l *Leases) undelivered(ctx context.Context, tenant estover.TenantID, x *Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoIn)
	defer cancel()
	if _, err := l.markWhere(ctx, system(tenant), "lease:"+x.ID, x.Session, Undelivered, "", "id = ?", x.ID); err != nil {
		l.o.Logger.Error("a lease that nobody got could not be revoked; it ends by itself", "lease", x.ID, "error", err)
	}
}

func (x *Lease) aad() seal.AAD { return seal.AAD{Class: seal.Lease, ID: x.ID, Created: x.CreatedAt} }

// encode writes what a lease hands out as JSON. The text is the caller's to clear.
func encode(m engine.Material) ([]byte, error) {
	plain := map[string][]byte{}
	for name, v := range m {
		plain[name] = v.Reveal()
	}
	return json.Marshal(plain)
}

func decode(plain []byte) (engine.Material, error) {
	defer clear(plain)
	var m map[string][]byte
	if err := json.Unmarshal(plain, &m); err != nil {
		return nil, errors.New("what a lease hands out is not what it looks like")
	}
	out := engine.Material{}
	for name, b := range m {
		out[name] = estover.NewSecret(b)
	}
	return out, nil
}
