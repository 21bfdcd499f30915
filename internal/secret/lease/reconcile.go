package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/target"
)

// A Stray is a user at a target who bears our mark, and of whom no lease knows:
// one that was made after the backup that the server was restored from.
type Stray struct {
	User      string    `json:"user"`
	FoundAt   time.Time `json:"found_at"`
	LockedAt  time.Time `json:"locked_at,omitzero"` // since when it cannot log in
	DropAt    time.Time `json:"drop_at"`            // when it is taken away
	LastError string    `json:"last_error,omitempty"`
}

// A Reconciled target is one whose users have been compared with the leases here.
type Reconciled struct {
	Target string  `json:"target"`
	Users  int     `json:"users"`            // that bear our mark
	Strays []Stray `json:"strays,omitempty"` // of whom no lease knows
	Lost   int64   `json:"lost"`             // leases whose users are not there, and which end
	Unseen string  `json:"unseen,omitempty"` // what could not be looked at, where users cannot be listed
}

// A Comparison says how a target is reconciled.
type Comparison struct {
	Drop bool // users of whom no lease knows are taken away at once, and not in an hour
	// Unlisted is said by somebody who knows that the users there cannot be listed, so
	// that some may be there of whom no lease knows. Reason is why that may be.
	Unlisted bool
	Reason   string
}

// ErrUnlisted is returned where users cannot be listed, to who has not said that they
// know it.
var ErrUnlisted = &estover.Error{Kind: estover.Conflict, Code: "target_users_not_listed", Detail: "The users at the target cannot be listed, so they cannot be compared with the leases here."}

// strayFor is how long a stray is shown before it is taken away.
const strayFor = time.Hour

// Restored says that the server was restored from a backup: nothing is issued at
// any target before that is reconciled (F5). It says how many there are.
func (l *Leases) Restored(ctx context.Context, c estover.Caller) (n int64, err error) {
	op := guard.Op{Action: "target.reconcile", Target: "target:*", Detail: map[string]any{"restored": true}}
	err = l.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		ids, err := target.All(ctx, tx.Tx)
		if err != nil {
			return err
		}
		for _, id := range ids {
			tx.Touch(target.Kind, id)
		}
		n, err = target.SetSuspect(ctx, tx.Tx, "", tx.Now())
		return err
	})
	return n, err
}

// Reconcile compares the users at a target that bear our mark with the leases
// here. Those of whom no lease knows are locked at once and taken away an hour
// later, or now if that is said; leases whose users are not there end. Then
// credentials are issued there again, and rotations go on. Where users cannot be
// listed nobody is compared, and somebody has to say that they know so.
func (l *Leases) Reconcile(ctx context.Context, c estover.Caller, name string, how Comparison) (out Reconciled, err error) {
	if how.Unlisted && how.Reason == "" || len(how.Reason) > 500 {
		return out, ErrInvalid.With("Say why credentials may be issued again although the users there cannot be listed, in up to 500 bytes.").At("reason")
	}
	id, err := l.targets.Named(ctx, c.Tenant, name)
	if err != nil {
		return out, err
	}
	op := guard.Op{Action: "target.reconcile", Target: "target:" + name, Detail: map[string]any{"drop": how.Drop}}
	if how.Unlisted {
		op.Detail["unlisted"], op.Detail["reason"] = true, how.Reason
	}
	decision, err := l.guard.Admit(ctx, c, op)
	if err != nil {
		return out, err
	}
	if err := l.sealer.Prepare(ctx, c.Tenant); err != nil {
		return out, err
	}
	limited, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	out.Target = name
	begun := l.guard.DB().Now()
	var names []string
	err = l.targets.Work(limited, c.Tenant, id, target.Making, true, func(ctx context.Context, e engine.Engine) error {
		if names, err = e.List(ctx, l.prefix(c.Tenant)); err != nil {
			return err
		}
		if err := l.listed(ctx, e, c.Tenant, id, begun, names); err != nil {
			return err
		}
		out.Users = len(names)
		// The rows are read after the users: each had its row before it was there.
		known, err := l.names(ctx, c.Tenant)
		if err != nil {
			return err
		}
		for _, user := range names {
			if !known[user] {
				out.Strays = append(out.Strays, l.stray(ctx, e, user, how.Drop))
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, engine.ErrUnsupported):
		return l.unlisted(ctx, c, name, id, op, decision, how)
	case errors.Is(err, engine.ErrUnreachable):
		return out, target.ErrUnreachable.Because(err)
	case err != nil:
		return out, err
	}
	gone := func(s Stray) bool { return s.DropAt.IsZero() }
	err = l.guard.Act(ctx, c, op, decision, func(tx *guard.Tx) error {
		var left, dropped []string
		for i := range out.Strays {
			s := &out.Strays[i]
			if gone(*s) {
				dropped = append(dropped, s.User)
				if err := dropStray(ctx, tx.Tx, id, s.User); err != nil {
					return err
				}
				continue
			}
			left = append(left, s.User)
			if err := saveStray(ctx, tx.Tx, id, *s); err != nil {
				return err
			}
		}
		lost, _, err := liveElsewhere(ctx, tx.Tx, id, begun, names)
		if err != nil {
			return err
		}
		out.Lost = 0
		for part := range slices.Chunk(lost, 500) {
			where, args := in("id", part)
			n, _, err := mark(ctx, tx.Tx, Failed, where, args...)
			if err != nil {
				return err
			}
			out.Lost += n
		}
		tx.Note("users", out.Users)
		tx.Note("strays", left)
		tx.Note("dropped", dropped)
		tx.Note("lost", out.Lost)
		tx.Touch(target.Kind, id)
		tx.Touch(Marked, "*")
		_, err = target.SetSuspect(ctx, tx.Tx, id, time.Time{})
		return err
	})
	out.Strays = slices.DeleteFunc(out.Strays, gone)
	return out, err
}

// listed says [engine.ErrUnsupported] if users are found by their whole names who were
// not among those whose names begin with our mark: so do some HTTP APIs. Who is not
// found by either is not there.
func (l *Leases) listed(ctx context.Context, e engine.Engine, tenant estover.TenantID, id string, begun time.Time, names []string) error {
	var missing []string
	err := l.guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		_, missing, err = liveElsewhere(ctx, tx, id, begun, names)
		return err
	})
	for _, user := range missing[:min(len(missing), 3)] {
		found, err := e.List(ctx, user)
		if err != nil {
			return err
		}
		if slices.Contains(found, user) {
			return engine.ErrUnsupported
		}
	}
	return err
}

// unlisted lets a target whose users cannot be listed be worked at again, if somebody
// says so, and says what nobody has seen.
func (l *Leases) unlisted(ctx context.Context, c estover.Caller, name, id string, op guard.Op, decision guard.Decision, how Comparison) (out Reconciled, err error) {
	out.Target = name
	err = l.guard.Act(ctx, c, op, decision, func(tx *guard.Tx) error {
		at, err := target.Find(ctx, tx.Tx, id)
		if err != nil {
			return err
		}
		if out.Unseen, err = unseen(ctx, tx.Tx, at); err != nil {
			return err
		}
		if !how.Unlisted {
			return ErrUnlisted.With("%s If that may be: estover secret engine reconcile %s --unlisted --reason …", out.Unseen, name)
		}
		tx.Note("unseen", out.Unseen)
		tx.Touch(target.Kind, id)
		_, err = target.SetSuspect(ctx, tx.Tx, id, time.Time{})
		return err
	})
	return out, err
}

// unseen says what nobody sees at a target whose users cannot be listed, and how long
// it may be there.
func unseen(ctx context.Context, tx *db.Tx, at *target.Target) (string, error) {
	longest, err := longestAt(ctx, tx, at.ID)
	if err != nil {
		return "", err
	}
	said := "The users at " + at.Name + " cannot be listed: whom a newer database made there, of whom no lease knows, nobody has seen."
	switch until := at.SuspectAt.Add(longest); {
	case at.SuspectAt.IsZero() || longest == 0:
		return said, nil
	case until.After(tx.Now()):
		return fmt.Sprintf("%s By the roles that are here the last of them ends at %s, where the target ends users itself.", said, until.UTC().Format(time.RFC3339)), nil
	default:
		return said + " By the roles that are here the last of them has ended, where the target ends users itself.", nil
	}
}

// names are the users of all leases of a tenant that have not ended.
func (l *Leases) names(ctx context.Context, tenant estover.TenantID) (known map[string]bool, err error) {
	err = l.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		known, err = openNames(ctx, tx)
		return err
	})
	return known, err
}

// Strangers compares the users at a target that bear our mark with the leases here:
// it says how many there are, and of which no lease knows. Nothing is done about
// them; that is [Leases.Reconcile].
func (l *Leases) Strangers(ctx context.Context, tenant estover.TenantID, e engine.Engine) (users int, strangers []string, err error) {
	if err := l.sealer.Prepare(ctx, tenant); err != nil {
		return 0, nil, err
	}
	names, err := e.List(ctx, l.prefix(tenant))
	if err != nil {
		return 0, nil, err
	}
	// The rows are read after the users: each had its row before it was there.
	known, err := l.names(ctx, tenant)
	for _, name := range names {
		if err == nil && !known[name] {
			strangers = append(strangers, name)
		}
	}
	return len(names), strangers, err
}

// stray locks a user of whom no lease knows, or takes it away: then it is to be
// dropped at no time.
func (l *Leases) stray(ctx context.Context, e engine.Engine, user string, drop bool) Stray {
	now := l.guard.DB().Now()
	s := Stray{User: user, FoundAt: now, DropAt: now.Add(strayFor)}
	if drop {
		err := errors.Join(e.Revoke(ctx, []engine.Doomed{{Name: user}})...)
		if err == nil {
			s.DropAt = time.Time{}
			return s
		}
		s.DropAt, s.LastError = now, db.Short(err.Error())
		return s
	}
	err := e.SetSecret(ctx, user, password(), estover.Secret{})
	if err == nil {
		s.LockedAt = now
		err = e.EndSessions(ctx, user)
	}
	switch {
	case errors.Is(err, engine.ErrNoUser): // it has ended in between
		s.DropAt = time.Time{}
	case errors.Is(err, engine.ErrUnsupported): // it cannot be locked, so it does not stay
		return l.stray(ctx, e, user, true)
	case err != nil:
		s.LastError = db.Short(err.Error())
	}
	return s
}

// Strays are the users at a target of whom no lease knows and that are still there.
func (l *Leases) Strays(ctx context.Context, c estover.Caller, name string) (all []Stray, err error) {
	err = l.guard.Read(ctx, c, guard.Op{Action: "target.read", Target: "target:" + name}, func(tx *db.Tx) error {
		at, err := target.FindNamed(ctx, tx, name)
		if err != nil {
			return err
		}
		all, err = strays(ctx, tx, at.ID)
		return err
	})
	return all, err
}

// DropStrays takes users away of whom no lease knows and whose hour is over. It is
// called every minute, on one node.
func (l *Leases) DropStrays(ctx context.Context) error {
	var due map[span][]string
	err := l.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		due, err = dueStrays(ctx, tx)
		return err
	})
	for s, users := range due {
		doomed := make([]engine.Doomed, len(users))
		for i, user := range users {
			doomed[i].Name = user
		}
		var errs []error
		failed := l.targets.Work(ctx, s.tenant, s.target, target.Ending, true, func(ctx context.Context, e engine.Engine) error {
			limited, cancel := context.WithTimeout(ctx, batchIn)
			defer cancel()
			errs = e.Revoke(limited, doomed)
			return nil
		})
		if failed != nil {
			err = errors.Join(err, failed)
			continue
		}
		op := guard.Op{Action: "target.reconcile", Target: "target:" + s.target, Effect: guard.Deletes}
		err = errors.Join(err, l.guard.Do(ctx, system(s.tenant), op, func(tx *guard.Tx) error {
			var dropped []string
			for i, user := range users {
				if i < len(errs) && errs[i] == nil {
					dropped = append(dropped, user)
					if err := dropStray(ctx, tx.Tx, s.target, user); err != nil {
						return err
					}
					continue
				}
				reason := "the engine has not said what became of the user"
				if i < len(errs) {
					reason = errs[i].Error()
				}
				if err := putOffStray(ctx, tx.Tx, s.target, user, db.Short(reason), tx.Now().Add(most)); err != nil {
					return err
				}
			}
			tx.Note("dropped", dropped)
			return nil
		}))
	}
	return err
}
