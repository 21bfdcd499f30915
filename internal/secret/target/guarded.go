package target

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"estover.dev"
	"estover.dev/internal/job"
	"estover.dev/internal/secret/engine"
)

// A guarded engine is one whose panics are the errors of what was asked for, since a
// client's library is only as good as what it was tried with, and the other side may
// be anybody. Such an error leaves open what has happened there.
type guarded struct {
	of  engine.Engine
	log *slog.Logger // of the target
}

// A pairing engine is a guarded one of an [engine.Pairer].
type pairing struct {
	guarded
	pairer engine.Pairer
}

func guardedBy(e engine.Engine, log *slog.Logger) engine.Engine {
	g := guarded{e, log}
	if p, can := e.(engine.Pairer); can {
		return pairing{g, p}
	}
	return g
}

// do asks the engine.
func (g guarded) do(work func() error) error {
	err := job.Guarded(work)
	var p *job.Panicked
	if errors.As(err, &p) {
		g.log.Error("the client of a target panicked, which is an error of what was asked for", "with", p.With, "calls", p.Calls)
	}
	return err
}

func (g guarded) Create(ctx context.Context, o engine.Order) (m engine.Material, err error) {
	err = g.do(func() error { m, err = g.of.Create(ctx, o); return err })
	return m, err
}

func (g guarded) Extend(ctx context.Context, name string, t engine.Template, until time.Time) error {
	return g.do(func() error { return g.of.Extend(ctx, name, t, until) })
}

// Revoke says of each user that it is not known what became of it, if it panics.
func (g guarded) Revoke(ctx context.Context, users []engine.Doomed) (errs []error) {
	if err := g.do(func() error { errs = g.of.Revoke(ctx, users); return nil }); err != nil {
		errs = make([]error, len(users))
		for i := range errs {
			errs[i] = err
		}
	}
	return errs
}

func (g guarded) List(ctx context.Context, prefix string) (names []string, err error) {
	err = g.do(func() error { names, err = g.of.List(ctx, prefix); return err })
	return names, err
}

func (g guarded) SetSecret(ctx context.Context, user string, s, keep estover.Secret) error {
	return g.do(func() error { return g.of.SetSecret(ctx, user, s, keep) })
}

func (g guarded) Verify(ctx context.Context, c engine.Credential) error {
	return g.do(func() error { return g.of.Verify(ctx, c) })
}

func (g guarded) Sessions(ctx context.Context, user string) (all []engine.Session, err error) {
	err = g.do(func() error { all, err = g.of.Sessions(ctx, user); return err })
	return all, err
}

func (g guarded) EndSessions(ctx context.Context, user string) error {
	return g.do(func() error { return g.of.EndSessions(ctx, user) })
}

func (g guarded) Now(ctx context.Context) (now time.Time, err error) {
	err = g.do(func() error { now, err = g.of.Now(ctx); return err })
	return now, err
}

func (g guarded) Close() error { return g.do(g.of.Close) }

// Rights is [engine.ErrUnsupported] if the engine is no [engine.Inspector].
func (g guarded) Rights(ctx context.Context, t engine.Template) (rights []engine.Right, err error) {
	in, can := g.of.(engine.Inspector)
	if !can {
		return nil, engine.ErrUnsupported
	}
	err = g.do(func() error { rights, err = in.Rights(ctx, t); return err })
	return rights, err
}

// Alike is [engine.ErrUnsupported] if the engine is no [engine.Comparer].
func (g guarded) Alike(ctx context.Context, user, like string) error {
	c, can := g.of.(engine.Comparer)
	if !can {
		return engine.ErrUnsupported
	}
	return g.do(func() error { return c.Alike(ctx, user, like) })
}

// Drain does nothing if the engine is no [engine.Drainer].
func (g guarded) Drain() {
	if d, can := g.of.(engine.Drainer); can {
		_ = g.do(func() error { d.Drain(); return nil })
	}
}

func (p pairing) Pair(ctx context.Context, user, like string, s estover.Secret) error {
	return p.do(func() error { return p.pairer.Pair(ctx, user, like, s) })
}
