package target

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/job"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
)

// A site is what this node knows of a target that it works at.
type site struct {
	opening sync.Mutex // one engine is opened at a time

	mu       sync.Mutex
	engine   engine.Engine
	reach    int64  // of the target when it was opened
	version  string // of the admin's secret
	skew     time.Duration
	measured time.Time // when the skew was; zero if it was not yet
	lanes    [2]chan struct{}

	failures int           // of the target in a row
	probing  bool          // somebody tries whether it answers again
	probe    time.Time     // when the next one may
	wait     time.Duration // after it, if it fails
}

// The breaker.
const (
	tolerated = 5 // failures of a target in a row, until nothing is tried but a probe
	firstWait = time.Second
	mostWait  = 30 * time.Second
)

const (
	keep      = time.Minute      // how long an engine is kept whose place another has taken: nothing takes longer
	measureIn = 10 * time.Minute // how long a skew is believed
)

// A Lane is what is done at a target, since one does not wait for the other.
type Lane int

// The lanes.
const (
	Making Lane = iota // credentials, for somebody who waits
	Ending             // credentials, in batches
)

// making is how many credentials are made at a target at once.
const making = 8

func (t *Targets) site(tenant estover.TenantID, id string) *site {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := db.Place{Tenant: tenant, ID: id}
	s := t.open[at]
	if s == nil {
		s = &site{wait: firstWait}
		t.open[at] = s
	}
	return s
}

// Engine is the engine that works at a target. It is shared, stays open, and is
// another one when the target is reached otherwise or its admin's secret has a new
// version. What is done with it directly is not bounded and does not count for
// the breaker: see [Targets.Work].
func (t *Targets) Engine(ctx context.Context, tenant estover.TenantID, id string) (engine.Engine, error) {
	x, err := t.copies.Get(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	k, err := t.Kind(x.Kind)
	if err != nil {
		return nil, err
	}
	host, err := k.Host(x.Address)
	if err != nil {
		return nil, ErrInvalid.With("The address cannot be: %s.", err)
	}
	admin, version, err := t.admin(ctx, tenant, x, host)
	if err != nil {
		return nil, err
	}
	s := t.site(tenant, id)
	s.opening.Lock()
	defer s.opening.Unlock()
	s.mu.Lock()
	have := s.engine
	if have != nil && s.reach == x.Reach && s.version == version {
		s.mu.Unlock()
		return have, nil
	}
	s.mu.Unlock()
	e, err := t.engine(tenant, x, k, host, admin)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.engine, s.reach, s.version, s.measured = e, x.Reach, version, time.Time{}
	s.mu.Unlock()
	if have != nil {
		if d, can := have.(engine.Drainer); can {
			d.Drain()
		}
		time.AfterFunc(keep, func() { _ = have.Close() })
	}
	return e, nil
}

// As is an engine that works at a target as somebody who is not its admin yet, to
// see whether they could be. The caller closes it.
func (t *Targets) As(ctx context.Context, tenant estover.TenantID, id string, admin engine.Credential) (engine.Engine, error) {
	x, err := t.copies.Get(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	k, err := t.Kind(x.Kind)
	if err != nil {
		return nil, err
	}
	host, err := k.Host(x.Address)
	if err != nil {
		return nil, ErrInvalid.With("The address cannot be: %s.", err)
	}
	return t.engine(tenant, x, k, host, admin)
}

// Try is an engine for a target as it would be if it were made or changed so, to see
// whether it lets its admin in. An admin without a secret has the one that the target
// has now. Only who may have the target so may try it: the password goes there. The
// caller closes it.
func (t *Targets) Try(ctx context.Context, c estover.Caller, s Spec, admin engine.Credential) (engine.Engine, error) {
	s, invalid := t.check(s)
	var was *Target
	id, err := t.Named(ctx, c.Tenant, s.Name)
	if err == nil {
		was, err = t.Snapshot(ctx, c.Tenant, id)
	}
	op := guard.Op{Action: "target.update", Target: "target:" + s.Name, Effect: guard.Manages, Detail: map[string]any{"tries": s.Address}}
	if errors.Is(err, ErrNotFound) {
		op.Action, err = "target.create", nil
	}
	if err != nil {
		return nil, err
	}
	if _, err := t.guard.Admit(ctx, c, op); err != nil {
		return nil, err
	}
	switch {
	case invalid != nil:
		return nil, invalid
	case was != nil && elsewhere(was.Spec, s) && c.Subject != was.Owner && !c.Has(estover.Admin) && c.Subject.Kind() != estover.SystemKind:
		return nil, ErrNotOwner
	}
	k, err := t.Kind(s.Kind)
	if err != nil {
		return nil, err
	}
	host, err := k.Host(s.Address)
	if err != nil {
		return nil, ErrInvalid.With("The address cannot be: %s.", err)
	}
	if admin.Secret.Empty() && was != nil {
		before, err := k.Host(was.Address)
		if err != nil {
			return nil, ErrInvalid.With("The address cannot be: %s.", err)
		}
		if err := t.sends(ctx, c, was, host); err != nil {
			return nil, err
		}
		if admin, _, err = t.admin(ctx, c.Tenant, was, before); err != nil {
			return nil, err
		}
	}
	return t.engine(c.Tenant, &Target{Spec: s}, k, host, admin)
}

// sends says why somebody may not have the secret of a target's admin sent to a host,
// if so: where that is not among its destinations, its owner or an administrator would
// have to add it.
func (t *Targets) sends(ctx context.Context, c estover.Caller, x *Target, host string) error {
	if x.Admin == "" {
		return nil
	}
	s, err := t.secrets.Describe(ctx, c.Tenant, x.Admin)
	if err != nil || s.Allows(host) == nil || c.Subject == s.Owner || c.Has(estover.Admin) || c.Subject.Kind() == estover.SystemKind {
		return err
	}
	return ErrNotOwner.With("The secret %s is somebody else's, and %s is not among its destinations.", x.Admin, host)
}

// engine opens one.
func (t *Targets) engine(tenant estover.TenantID, x *Target, k engine.Kind, host string, admin engine.Credential) (engine.Engine, error) {
	config := engine.Config{Address: x.Address, Options: x.Options, Authorities: []byte(x.Authorities), Admin: admin}
	hosts := []string{host}
	if k.Beside != nil {
		more, err := k.Beside(config)
		if err != nil {
			return nil, ErrInvalid.With("The target %s cannot be opened: %s", x.Name, err)
		}
		hosts = append(hosts, more...)
	}
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		return t.dial(ctx, tenant, hosts, network, address)
	}
	e, err := k.Open(config)
	if err != nil {
		return nil, ErrInvalid.With("The target %s cannot be opened: %s", x.Name, err)
	}
	return guardedBy(e, t.o.Logger.With("target", x.Name, "tenant", tenant)), nil
}

// dial opens a connection to the target, and to nothing else.
func (t *Targets) dial(ctx context.Context, tenant estover.TenantID, hosts []string, network, address string) (net.Conn, error) {
	if !strings.HasPrefix(network, "tcp") || !slices.ContainsFunc(hosts, func(host string) bool { return strings.EqualFold(address, host) }) {
		return nil, fmt.Errorf("%w: %s is not the address of the target", engine.ErrUnreachable, address)
	}
	if t.o.Dial == nil {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	return t.o.Dial(ctx, tenant, address)
}

// The fields of an admin's secret.
const (
	userField     = "username"
	passwordField = "password"
)

// admin is as whom users are made at a target, and by which version of which
// secret.
func (t *Targets) admin(ctx context.Context, tenant estover.TenantID, x *Target, host string) (c engine.Credential, version string, err error) {
	if x.Admin == "" {
		return c, "", nil
	}
	caller := estover.Caller{Tenant: tenant, Subject: estover.System("target")}
	use := func(field string) (secret.Injection, error) { return t.secrets.Use(ctx, caller, x.Admin, field, host) }
	bad := func(err error) error {
		var known *estover.Error
		if errors.As(err, &known) && known.Kind != estover.Unavailable && known.Kind != estover.Fault {
			return ErrAdmin.With("The target %s cannot be worked at: %s", x.Name, known.Detail).Because(err)
		}
		return err
	}
	for range 3 { // a version may come between the two fields
		password, err := use(passwordField)
		if errors.Is(err, secret.ErrNoField) {
			password, err = use(secret.DefaultField)
		}
		if err != nil {
			return c, "", bad(err)
		}
		user, err := use(userField)
		if errors.Is(err, secret.ErrNoField) { // a key, which needs no name
			user, err = secret.Injection{Version: password.Version}, nil
		}
		if err != nil {
			return c, "", bad(err)
		}
		if user.Version == password.Version {
			return engine.Credential{User: string(user.Value.Reveal()), Secret: password.Value}, password.Version, nil
		}
	}
	return c, "", ErrAdmin.With("The secret %s changes faster than it can be read.", x.Admin)
}

// Work does something at a target, in its turn in a lane, and unless its breaker
// is open. An error of fn that wraps [engine.ErrUnreachable], or that its time is
// over, is a failure of the target. With wait false it is [ErrBusy] at once if it
// is nobody's turn.
func (t *Targets) Work(ctx context.Context, tenant estover.TenantID, id string, lane Lane, wait bool, fn func(ctx context.Context, e engine.Engine) error) error {
	x, err := t.copies.Get(ctx, tenant, id)
	if err != nil {
		return err
	}
	s := t.site(tenant, id)
	turn := s.lane(lane, x)
	select {
	case turn <- struct{}{}:
	default:
		if !wait {
			return ErrBusy
		}
		select {
		case turn <- struct{}{}:
		case <-ctx.Done():
			return ErrBusy.Because(ctx.Err())
		}
	}
	defer func() { <-turn }()
	if !s.enter(t.guard.DB().Now()) {
		return ErrUnreachable.With("The target %s has not answered for a while, and it is tried again by and by. An operator finds the reason with `estover secret engine check %s`.", x.Name, x.Name)
	}
	e, err := t.Engine(ctx, tenant, id)
	if err == nil {
		err = job.Guarded(func() error { return fn(ctx, e) })
	}
	// Whose own context is over says nothing of the target.
	failed := err != nil && (errors.Is(err, engine.ErrUnreachable) || errors.Is(err, context.DeadlineExceeded))
	if s.leave(t.guard.DB().Now(), failed, err == nil || answered(err)) {
		t.o.Logger.Error("a target does not answer, so nothing but a probe now and then is tried there", "target", x.Name, "tenant", tenant, "error", err)
	}
	return err
}

// answered reports whether the target has answered, if only to refuse.
func answered(err error) bool {
	var no *engine.Refused
	return errors.As(err, &no) || errors.Is(err, engine.ErrNoUser) || errors.Is(err, engine.ErrWrongSecret)
}

func (s *site) lane(l Lane, x *Target) chan struct{} {
	n := making
	if l == Ending {
		n = int(x.Batches)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if cap(s.lanes[l]) != n {
		s.lanes[l] = make(chan struct{}, n)
	}
	return s.lanes[l]
}

// enter reports whether something may be tried.
func (s *site) enter(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failures < tolerated:
		return true
	case s.probing || now.Before(s.probe):
		return false
	}
	s.probing = true
	return true
}

// leave notes how it went, and reports whether the breaker has just opened.
func (s *site) leave(now time.Time, failed, well bool) (opened bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probing = false
	switch {
	case failed:
		s.failures++
		if s.failures >= tolerated {
			opened = s.failures == tolerated
			s.probe = now.Add(s.wait)
			s.wait = min(2*s.wait, mostWait)
		}
	case well:
		s.failures, s.wait = 0, firstWait
	}
	return opened
}

// Broken reports whether the breaker of a target is open on this node.
func (t *Targets) Broken(tenant estover.TenantID, id string) bool {
	s := t.site(tenant, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failures >= tolerated
}

// Clock is how far the clock of a target is ahead of ours, measured not long
// ago with the engine that works there. It is 0 for a target that has none.
func (t *Targets) Clock(ctx context.Context, tenant estover.TenantID, id string, e engine.Engine) (time.Duration, error) {
	s := t.site(tenant, id)
	now := t.guard.DB().Now()
	s.mu.Lock()
	skew, fresh := s.skew, !s.measured.IsZero() && now.Sub(s.measured).Abs() < measureIn && s.engine == e
	s.mu.Unlock()
	if fresh {
		return skew, nil
	}
	theirs, err := e.Now(ctx)
	switch {
	case errors.Is(err, engine.ErrUnsupported):
		skew = 0
	case err != nil:
		return 0, err
	default:
		after := t.guard.DB().Now()
		skew = theirs.Sub(now.Add(after.Sub(now) / 2))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.engine == e {
		s.skew, s.measured = skew, now
	}
	return skew, nil
}

// A State is what this node knows of a target.
type State struct {
	Broken bool  `json:"broken"`             // it has not answered for a while
	Skew   int64 `json:"clock_ahead_micros"` // how far its clock is ahead of ours
}

// State is what this node knows of a target.
func (t *Targets) State(tenant estover.TenantID, id string) State {
	s := t.site(tenant, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	return State{s.failures >= tolerated, s.skew.Microseconds()}
}

// Close lets go of all engines.
func (t *Targets) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.open {
		s.mu.Lock()
		if s.engine != nil {
			_ = s.engine.Close()
			s.engine = nil
		}
		s.mu.Unlock()
	}
}
