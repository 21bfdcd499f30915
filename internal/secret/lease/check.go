package lease

import (
	"context"
	"errors"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/target"
)

// A CheckStep is one thing that was tried.
type CheckStep struct {
	Name  string `json:"name"`  // reach, create, log_in, revoke, gone
	State string `json:"state"` // done, failed or skipped
	What  string `json:"what"`  // in a sentence
}

// A Checked is how the whole round went: a user was made, logged in, was taken away,
// and was gone.
type Checked struct {
	OK     bool        `json:"ok"`
	Target string      `json:"target"`
	Role   string      `json:"role,omitempty"`
	Skew   int64       `json:"clock_ahead_micros"` // how far the target's clock is ahead of ours
	Steps  []CheckStep `json:"steps"`
	Rights []Right     `json:"rights,omitempty"` // of the admin at the target, where the kind can tell
}

// A Right is something that the admin has to be allowed at the target.
type Right struct {
	Name   string `json:"name"`
	Has    bool   `json:"has"`
	Needed bool   `json:"needed"` // nothing works without it
	Help   string `json:"help"`   // what it is for, and how it is given
}

func (c *Checked) step(name, what string, err error) {
	s := CheckStep{name, "done", what}
	switch {
	case errors.Is(err, engine.ErrUnsupported):
		s.State, s.What = "skipped", "The target cannot do this."
	case err != nil:
		s.State, s.What = "failed", told(err)
		c.OK = false
	}
	c.Steps = append(c.Steps, s)
}

// told is an error for an operator: the sentence, and the target's words.
func told(err error) string {
	var no *engine.Refused
	if errors.As(err, &no) {
		return "The target refuses: " + no.Reason
	}
	var known *estover.Error
	if errors.As(err, &known) && known.Err != nil {
		return known.Detail + " (" + known.Err.Error() + ")"
	}
	return sentence(err)
}

// failure is why the round did not go well; empty if it did.
func (c *Checked) failure() string {
	for _, s := range c.Steps {
		if s.State == "failed" {
			return db.Short(s.Name + ": " + s.What)
		}
	}
	return ""
}

// CheckRole goes the whole round for a role: it makes a user by its template, logs
// in as it, takes it away, and sees that it is gone. Only then is anything issued
// from the role.
func (l *Leases) CheckRole(ctx context.Context, c estover.Caller, name string) (out Checked, err error) {
	op := guard.Op{Action: "target.check", Target: "lease_role:" + name, Effect: guard.Manages}
	if _, err := l.guard.Admit(ctx, c, op); err != nil { // before anything is done at the target
		return out, err
	}
	r, err := l.roles.Get(ctx, c.Tenant, name)
	if err == nil {
		l.roles.Drop(c.Tenant, name)
		r, err = l.roles.Get(ctx, c.Tenant, name)
	}
	if err != nil {
		return out, err
	}
	at, err := l.targets.Snapshot(ctx, c.Tenant, r.targetID)
	if err != nil {
		return out, err
	}
	out, err = l.check(ctx, c, at, r, r.Template)
	if err != nil {
		return out, err
	}
	out.Role = name
	op.Detail = map[string]any{"ok": out.OK, "steps": out.Steps}
	return out, l.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		tx.Touch(roleKind, name)
		tx.Touch(target.Kind, at.ID)
		if err := saveCheck(ctx, tx.Tx, r, out.failure()); err != nil || !out.OK {
			return err
		}
		return target.Passed(ctx, tx.Tx, at.ID, r.targetReach)
	})
}

// CheckTarget goes the whole round at a target with a template, or, without one,
// sees whether it can be reached and what its clock says.
func (l *Leases) CheckTarget(ctx context.Context, c estover.Caller, name string, t engine.Template) (out Checked, err error) {
	op := guard.Op{Action: "target.check", Target: "target:" + name, Effect: guard.Manages}
	if _, err := l.guard.Admit(ctx, c, op); err != nil { // before anything is done at the target
		return out, err
	}
	id, err := l.targets.Named(ctx, c.Tenant, name)
	if err != nil {
		return out, err
	}
	at, err := l.targets.Snapshot(ctx, c.Tenant, id)
	if err != nil {
		return out, err
	}
	out, err = l.check(ctx, c, at, nil, t)
	if err != nil {
		return out, err
	}
	op.Detail = map[string]any{"ok": out.OK, "steps": out.Steps}
	return out, l.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if !out.OK || t == nil {
			return nil
		}
		tx.Touch(target.Kind, at.ID)
		return target.Passed(ctx, tx.Tx, at.ID, at.Reach)
	})
}

// checkIn is how long a round may take.
const checkIn = 40 * time.Second

// check goes the round. The user that it makes has a row before it is made, as any
// other, so that a round that is cut off leaves nothing behind.
func (l *Leases) check(ctx context.Context, c estover.Caller, at *target.Target, r *Role, t engine.Template) (out Checked, err error) {
	if err := l.sealer.Prepare(ctx, c.Tenant); err != nil {
		return out, err
	}
	k, err := l.targets.Kind(at.Kind)
	if err != nil {
		return out, err
	}
	if t != nil {
		if err := checkTemplate(k, t); err != nil {
			return out, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, checkIn)
	defer cancel()
	out = Checked{OK: true, Target: at.Name}
	var skew time.Duration
	var rights []Right
	err = l.targets.Work(ctx, c.Tenant, at.ID, target.Making, true, func(ctx context.Context, e engine.Engine) (err error) {
		if skew, err = l.targets.Clock(ctx, c.Tenant, at.ID, e); err != nil {
			return err
		}
		_, err = e.List(ctx, l.prefix(c.Tenant))
		if errors.Is(err, engine.ErrUnsupported) {
			err = nil
		}
		if in, can := e.(engine.Inspector); can && err == nil {
			var all []engine.Right
			if all, err = in.Rights(ctx, t); errors.Is(err, engine.ErrUnsupported) {
				err = nil
			}
			for _, r := range all {
				rights = append(rights, Right{r.Name, r.Has, r.Needed, r.Help})
			}
		}
		return err
	})
	out.Skew = skew.Microseconds()
	out.Rights = rights
	out.step("reach", "The target answers, and lets its users be listed.", err)
	if err != nil || t == nil {
		return out, nil
	}
	x := &Lease{
		ID: estover.NewID("lse"), Target: at.ID, template: t, Delivery: Plaintext, State: Creating, Trial: true,
		Session: c.Session, Holder: c.Acting(), User: l.name(c.Tenant, "check", randomName(), k.MaxName),
	}
	if r != nil {
		x.Role, x.roleID, x.Resource = r.Name, r.ID, r.Resource
	}
	op := guard.Op{Action: "target.check", Target: "target:" + at.Name, Session: c.Session, Detail: map[string]any{"lease": x.ID, "user": x.User}}
	err = l.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if _, err := target.Lock(ctx, tx.Tx, at.ID); err != nil {
			return err
		}
		x.CreatedAt, x.createBy = tx.Now(), tx.Now().Add(checkIn)
		x.ExpiresAt, x.ExpiresBy, x.MaxAt = x.createBy, "ttl", x.createBy
		return insert(ctx, tx.Tx, x)
	})
	if err != nil {
		return out, err
	}
	known := l.round(ctx, c.Tenant, k, x, skew, &out)
	ending, stop := context.WithTimeout(context.WithoutCancel(ctx), undoIn)
	defer stop()
	if known && out.gone() {
		err = l.settle(ending, c.Tenant, x, Expired, "")
	} else {
		// The workers take it away, for as long as that takes: also one that was not there
		// when it was looked for, but may have been on its way (L6).
		_, err = l.markWhere(ending, system(c.Tenant), "lease:"+x.ID, x.Session, Failed, "", "id = ?", x.ID)
	}
	return out, err
}

// gone reports whether the user was seen to be gone.
func (c *Checked) gone() bool {
	return slices.ContainsFunc(c.Steps, func(s CheckStep) bool { return s.Name == "gone" && s.State != "failed" })
}

// round makes a user, logs in, takes it away and looks. It reports whether it is known
// what became of the making.
func (l *Leases) round(ctx context.Context, tenant estover.TenantID, k engine.Kind, x *Lease, skew time.Duration, out *Checked) (known bool) {
	known = true
	_ = l.targets.Work(ctx, tenant, x.Target, target.Making, true, func(ctx context.Context, e engine.Engine) error {
		o := engine.Order{Name: x.User, Until: x.ExpiresAt.Add(skew + grace), Template: x.template}
		if !k.Plain {
			o.Secret = password()
		}
		values, err := e.Create(ctx, o)
		var no *engine.Refused
		known = err == nil || errors.As(err, &no) || errors.Is(err, engine.ErrUnreachable)
		out.step("create", "A user was made.", err)
		login := values.Login()
		can := err == nil && !login.Secret.Empty()
		if can {
			err := e.Verify(ctx, login)
			out.step("log_in", "It can log in.", err)
			can = err == nil
		}
		// It is taken away whatever came before.
		err = errors.Join(e.Revoke(ctx, []engine.Doomed{{Name: x.User, Template: x.template}})...)
		out.step("revoke", "It was taken away.", err)
		if err != nil {
			return nil
		}
		err = nil
		names, listed := e.List(ctx, x.User)
		switch {
		case listed != nil && !errors.Is(listed, engine.ErrUnsupported):
			err = listed
		case slices.Contains(names, x.User):
			err = engine.Refuse("the user %s is still there", x.User)
		}
		if err == nil && can {
			switch err = e.Verify(ctx, login); {
			case err == nil:
				err = engine.Refuse("the user %s can still log in", x.User)
			case errors.Is(err, engine.ErrWrongSecret), errors.Is(err, engine.ErrNoUser), errors.Is(err, engine.ErrUnsupported):
				err = nil
			}
		}
		out.step("gone", "It is gone.", err)
		return nil
	})
	if len(out.Steps) == 1 {
		out.step("create", "", target.ErrUnreachable)
	}
	return known
}
