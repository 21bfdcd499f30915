package rotation

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/job"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
)

// How long things take, and when they are tried again.
const (
	holdTime   = 2 * time.Minute  // for which a node has a rotation; longer than what it does at the target and [skew] together
	effectTime = 30 * time.Second // for one thing at the target, by the target's own reckoning too
	firstWait  = time.Second      // after a first failure; it doubles each time
	mostWait   = 5 * time.Minute
	askAgain   = 15 * time.Second // whether somebody still uses a version is looked again, or sooner if its grace is short
)

// advance claims a rotation and does what can be done of it now. It returns
// errLost if another node has it, or there is nothing to do yet.
func (x *Rotations) advance(ctx context.Context, tenant estover.TenantID, id string) error {
	w := &work{x: x, tenant: tenant}
	err := x.Guard.DB().Do(ctx, tenant, func(tx *db.Tx) (err error) {
		if w.r, err = find(ctx, tx, id); err != nil {
			return err
		}
		if w.r.Next.After(tx.Now()) || w.r.heldUntil.After(tx.Now()) {
			return errLost
		}
		w.r.heldBy, w.r.heldUntil = x.Node, tx.Now().Add(holdTime)
		return save(ctx, tx, &w.r)
	})
	if err != nil {
		return err
	}
	defer w.stopProbe()
	again := true
	for again && err == nil {
		err = job.Guarded(func() (err error) { again, err = w.step(ctx); return err })
	}
	if errors.Is(err, errLost) || errors.Is(err, errCrash) {
		return err
	}
	if failed := w.late(ctx); failed != nil {
		return failed
	}
	if !w.r.waits(x.Guard.DB().Now()) {
		if failed := w.escalate(ctx); failed != nil {
			return failed
		}
	}
	if err != nil {
		return w.putOff(ctx, err)
	}
	return w.release(ctx)
}

// errCrash is what tests end the work with as a crash would.
var errCrash = errors.New("the node is gone")

// A work is a rotation that this node has claimed.
type work struct {
	x      *Rotations
	tenant estover.TenantID
	r      Rotation
	probe  *probe
}

// step does the next thing, and says whether there may be another one to do at
// once.
func (w *work) step(ctx context.Context) (again bool, err error) {
	if waits, err := w.waiting(ctx); waits || err != nil {
		return false, err
	}
	switch w.r.Step {
	case Idle:
		return w.stage(ctx)
	case Staged:
		return w.apply(ctx)
	case Applied:
		return w.verify(ctx)
	case Verified:
		return w.change(ctx)
	case Grace:
		return w.ask(ctx)
	case Retiring:
		return w.settle(ctx)
	case Scrambling:
		return w.scramble(ctx)
	case Aborting:
		return w.abort(ctx)
	}
	panic("rotation: a step that there is not: " + string(w.r.Step))
}

// waiting reports whether nothing may be done about the rotation, and has it be looked
// at again if so. It is asked before each step: what a target is believed to be may
// change between two of them.
func (w *work) waiting(ctx context.Context) (bool, error) {
	err := w.x.Guard.DB().View(ctx, w.tenant, func(tx *db.Tx) error {
		now, err := find(ctx, tx, w.r.Secret)
		w.r.Waits = now.Waits
		return err
	})
	now := w.x.Guard.DB().Now()
	if err != nil || !w.r.waits(now) || w.r.Step == Idle && (w.r.DueAt.IsZero() || w.r.DueAt.After(now)) {
		return false, err
	}
	return true, w.later(ctx, func(now time.Time) time.Time { return now.Add(askAgain) })
}

// move stores the next state of the rotation in one guarded operation; turn, if
// it is not nil, changes the versions of the secret along with it. Both work on
// copies and may run more than once.
func (w *work) move(ctx context.Context, action string, detail map[string]any, turn func(t *secret.Turn, n *Rotation) error, change func(tx *guard.Tx, n *Rotation) error) error {
	op := guard.Op{Action: action, Target: target(w.r.Path), Detail: detail}
	planned, next := w.r, w.r
	then := func(tx *guard.Tx) error {
		next = planned
		next.heldUntil, next.tries, next.LastError = tx.Now().Add(holdTime), 0, ""
		if err := change(tx, &next); err != nil {
			return err
		}
		return save(ctx, tx.Tx, &next)
	}
	var err error
	if turn == nil {
		err = w.x.Guard.Do(ctx, system(w.tenant), op, then)
	} else {
		_, err = w.x.Secrets.Turn(ctx, system(w.tenant), op, w.r.Path, func(t *secret.Turn) error {
			planned = w.r
			return turn(t, &planned)
		}, then)
	}
	if err == nil {
		w.r = next
	}
	return err
}

// putOff has the rotation tried again later, and keeps why.
func (w *work) putOff(ctx context.Context, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return w.store(ctx, func(now time.Time, n *Rotation) {
		n.LastError = db.Short(reason(why))
		n.Next = now.Add(min(firstWait<<min(n.tries, 20), mostWait))
		n.tries++
		n.heldBy, n.heldUntil = "", time.Time{}
	})
}

// store changes the row of the rotation where there is nothing to tell.
func (w *work) store(ctx context.Context, change func(now time.Time, n *Rotation)) error {
	var n Rotation
	err := w.x.Guard.DB().Do(ctx, w.tenant, func(tx *db.Tx) error {
		n = w.r
		change(tx.Now(), &n)
		return save(ctx, tx, &n)
	})
	if err == nil {
		w.r = n
	}
	return err
}

// reason is an error as it is told to operators.
func reason(err error) string {
	var known *estover.Error
	if errors.As(err, &known) {
		return known.Detail
	}
	return err.Error()
}

// names are those of fields, in order.
func names(fields map[string]estover.Secret) string {
	return strings.Join(slices.Sorted(maps.Keys(fields)), ", ")
}

// release lets others have the rotation.
func (w *work) release(ctx context.Context) error {
	return w.store(ctx, func(_ time.Time, n *Rotation) { n.heldBy, n.heldUntil = "", time.Time{} })
}

// later stores that there is nothing to do before a time.
func (w *work) later(ctx context.Context, at func(now time.Time) time.Time) error {
	return w.store(ctx, func(now time.Time, n *Rotation) { n.Next = at(now) })
}

// effect does something at the target, between two points at which a node may
// die.
func (w *work) effect(ctx context.Context, point string, do func(ctx context.Context, e engine.Engine) error) error {
	return w.between(ctx, point, func(ctx context.Context) error {
		e, err := w.x.Engine(ctx, w.tenant, w.r.Target)
		if err != nil {
			return err
		}
		return do(ctx, e)
	})
}

// between does something between two points at which a node may die.
func (w *work) between(ctx context.Context, point string, do func(ctx context.Context) error) error {
	if err := w.x.at("before " + point); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, effectTime)
	defer cancel()
	if err := do(ctx); err != nil {
		return err
	}
	return w.x.at("after " + point)
}

// newPassword is 24 random bytes in letters (L9).
func newPassword() estover.Secret {
	b := make([]byte, 24)
	_, _ = rand.Read(b) // never fails
	text := make([]byte, base64.RawURLEncoding.EncodedLen(len(b)))
	base64.RawURLEncoding.Encode(text, b)
	clear(b)
	return estover.NewSecret(text)
}

// former are the fields of the current version, which is to be replaced: also of one
// that somebody has deleted, and none of one that was destroyed.
func (w *work) former(ctx context.Context) (map[string]estover.Secret, error) {
	fields, err := w.x.Secrets.Former(ctx, w.tenant, w.r.Path, w.r.Current)
	if errors.Is(err, secret.ErrNoVersion) {
		return map[string]estover.Secret{}, nil
	}
	return fields, err
}

// idle is the slot that does not serve.
func (r *Rotation) idle() string {
	if r.kind != SingleSlot && r.Slot == "a" {
		return "b"
	}
	return "a"
}

// stage is R1: the next secret is stored, before anything is touched.
func (w *work) stage(ctx context.Context) (bool, error) {
	if w.r.DueAt.IsZero() || w.r.DueAt.After(w.x.Guard.DB().Now()) {
		return false, w.later(ctx, func(time.Time) time.Time {
			if w.r.DueAt.IsZero() {
				return never
			}
			return w.r.DueAt
		})
	}
	if next := w.r.missed(w.r.DueAt, w.x.Guard.DB().Now()); !next.IsZero() {
		return false, w.store(ctx, func(_ time.Time, n *Rotation) { n.DueAt, n.Next = next, next })
	}
	slot := w.r.idle()
	if err := w.x.free(ctx, estover.Caller{Tenant: w.tenant}, w.r); err != nil {
		return false, err
	}
	turn, err := w.first(ctx, slot)
	if err != nil {
		return false, err
	}
	if err := w.x.at("before R1"); err != nil {
		return false, err
	}
	err = w.move(ctx, "rotation.stage", map[string]any{"slot": slot}, turn, func(tx *guard.Tx, n *Rotation) error {
		n.Step, n.applyingAt = Staged, time.Time{}
		return begin(ctx, tx.Tx, n.Target)
	})
	switch {
	case errors.Is(err, ErrCrowded):
		return false, w.later(ctx, func(now time.Time) time.Time { return now.Add(5 * time.Second) })
	case errors.Is(err, ErrStopped):
		return false, w.later(ctx, func(now time.Time) time.Time { return now.Add(mostWait) })
	case err != nil:
		return false, err
	}
	return true, w.x.at("after R1")
}

// first is what R1 stores: the next secret of the idle slot. Of what comes from the
// other side it is the row alone, which says under which name it is asked for.
func (w *work) first(ctx context.Context, slot string) (func(t *secret.Turn, n *Rotation) error, error) {
	if w.r.kind.made() {
		return nil, nil
	}
	fields, err := w.kept(ctx)
	if err != nil {
		return nil, err
	}
	fields[w.r.UserField] = estover.NewSecret([]byte(w.r.user(slot)))
	fields[w.r.SecretField] = newPassword()
	return stageIn(fields, slot), nil
}

// kept are the fields of the current version, to be taken along: host, port and the
// like are as they were.
func (w *work) kept(ctx context.Context) (map[string]estover.Secret, error) {
	fields := map[string]estover.Secret{}
	if w.r.Current > 0 {
		old, err := w.former(ctx)
		if err != nil {
			return nil, err
		}
		maps.Copy(fields, old)
	}
	return fields, nil
}

// stageIn stores the pending version.
func stageIn(fields map[string]estover.Secret, slot string) func(t *secret.Turn, n *Rotation) error {
	return func(t *secret.Turn, n *Rotation) (err error) {
		n.Pending, err = t.Stage(fields, slot)
		return err
	}
}

// take is R2 of what comes from the other side: it is asked for, and stored as the
// pending version. What a crash has lost in between is asked for again.
func (w *work) take(ctx context.Context) (bool, error) {
	slot := w.r.idle()
	fields, err := w.kept(ctx)
	if err != nil {
		return false, err
	}
	if w.r.kind == Certificate {
		err = w.certify(ctx, fields)
	} else {
		err = w.effect(ctx, "R2", func(ctx context.Context, e engine.Engine) error {
			// Where an end has to be said, it is one that no rotation comes to: a key that
			// is in use must not die by the target's clock.
			until := w.x.Guard.DB().Now().AddDate(10, 0, 0)
			made, err := e.Create(ctx, engine.Order{Name: w.r.user(slot), Until: until, Template: w.r.Template})
			if err != nil {
				return err
			}
			return w.r.material(fields, made)
		})
	}
	if w.unwilling(err) {
		return true, w.fail(ctx, err, false)
	}
	if err != nil {
		return false, err
	}
	return true, w.move(ctx, "rotation.apply", map[string]any{"slot": slot}, stageIn(fields, slot), func(tx *guard.Tx, n *Rotation) error {
		tx.Note("version", secret.VersionID(n.Secret, n.Pending))
		n.Step = Applied
		if n.kind == Certificate {
			n.pendingSerial = string(fields[serialField].Reveal())
		}
		return nil
	})
}

// apply is R2: the user of the idle slot gets at the target what is stored.
func (w *work) apply(ctx context.Context) (bool, error) {
	if w.r.kind.made() {
		return w.take(ctx)
	}
	values, err := w.x.Secrets.Values(ctx, w.tenant, w.r.Path, w.r.Pending)
	if errors.Is(err, secret.ErrNoVersion) { // somebody has destroyed it
		return true, w.fail(ctx, err, false)
	}
	if err != nil {
		return false, err
	}
	user, password := w.r.user(w.r.idle()), values[w.r.SecretField]
	var keep estover.Secret
	if w.r.kind == SingleSlot && w.r.Current > 0 {
		at, err := w.x.Target(ctx, w.tenant, w.r.Target)
		if err != nil {
			return false, err
		}
		old, err := w.former(ctx)
		if err != nil {
			return false, err
		}
		if at.Overlap {
			keep = old[w.r.SecretField]
		} else if err := w.beginRefusing(ctx, user, old[w.r.SecretField]); err != nil {
			return false, err
		}
	}
	err = w.effect(ctx, "R2", func(ctx context.Context, e engine.Engine) error {
		err := e.SetSecret(ctx, user, password, keep)
		if errors.Is(err, engine.ErrNoUser) && len(w.r.Template) > 0 {
			_, err = e.Create(ctx, engine.Order{Name: user, Secret: password, Template: w.r.Template})
		} else if errors.Is(err, engine.ErrNoUser) {
			err = w.pair(ctx, e, user, password, err)
		}
		return err
	})
	if final(err) {
		return true, w.fail(ctx, err, false)
	}
	if err != nil {
		return false, err
	}
	return true, w.move(ctx, "rotation.apply", map[string]any{"slot": w.r.idle(), "version": secret.VersionID(w.r.Secret, w.r.Pending)}, nil, func(_ *guard.Tx, n *Rotation) error {
		n.Step = Applied
		return nil
	})
}

// final reports whether a target has refused for good what it was asked for.
func final(err error) bool {
	var refused *engine.Refused
	return errors.As(err, &refused) || errors.Is(err, engine.ErrNoUser) || errors.Is(err, engine.ErrUnsupported)
}

// unwilling reports whether it is of no use to ask for the same again: who makes the
// value has refused, or it has come and cannot be used.
func (w *work) unwilling(err error) bool {
	kind := estover.KindOf(err)
	return final(err) || errors.Is(err, ErrInvalid) ||
		w.r.kind == Certificate && err != nil && slices.Contains([]estover.Kind{estover.Invalid, estover.Denied, estover.NotFound, estover.Conflict}, kind)
}

// verify is R3: somebody logs in as clients do.
func (w *work) verify(ctx context.Context) (bool, error) {
	values, err := w.x.Secrets.Values(ctx, w.tenant, w.r.Path, w.r.Pending)
	if errors.Is(err, secret.ErrNoVersion) { // somebody has destroyed it
		return true, w.fail(ctx, err, false)
	}
	if err != nil {
		return false, err
	}
	if w.r.kind == Certificate {
		err = w.between(ctx, "R3", func(context.Context) error {
			_, err := leaf(values, w.x.Guard.DB().Now())
			return err
		})
		if err != nil && !errors.Is(err, errCrash) {
			return true, w.fail(ctx, err, false)
		}
	} else {
		err = w.effect(ctx, "R3", func(ctx context.Context, e engine.Engine) error {
			return e.Verify(ctx, engine.Credential{User: w.r.user(w.r.idle()), Secret: values[w.r.SecretField]})
		})
	}
	if err == nil {
		wrong, err := w.tryAdmin(ctx, values)
		if err != nil {
			return false, err
		}
		if wrong != nil { // it has just logged in, so that it is its own fault
			return true, w.fail(ctx, wrong, true)
		}
	}
	if errors.Is(err, engine.ErrWrongSecret) || final(err) {
		return true, w.fail(ctx, err, true)
	}
	if err != nil {
		return false, err
	}
	if err := w.copy(ctx, values); err != nil {
		return false, err
	}
	return true, w.move(ctx, "rotation.verify", map[string]any{"version": secret.VersionID(w.r.Secret, w.r.Pending)}, nil, func(_ *guard.Tx, n *Rotation) error {
		n.Step = Verified
		return nil
	})
}

// tryAdmin sees whether the next admin of a target can do the one thing that the
// rotation needs of it: change the password of the one before. It sets the one
// that is there. One that was made here has the rights of the one before: who made it may
// have been cut off before that was looked at. Wrong is why it cannot; err is what went wrong here, and says nothing
// of it.
func (w *work) tryAdmin(ctx context.Context, values map[string]estover.Secret) (wrong, err error) {
	if w.r.kind != TwoUsers || w.r.Current == 0 || w.x.As == nil {
		return nil, nil
	}
	at, err := w.x.Target(ctx, w.tenant, w.r.Target)
	if err != nil || at.Admin != w.r.Path {
		return nil, err
	}
	old, err := w.former(ctx)
	if err != nil || old[w.r.SecretField].Empty() { // nobody knows it any more, so there is nothing to set
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, effectTime)
	defer cancel()
	e, err := w.x.As(limited, w.tenant, w.r.Target, engine.Credential{User: w.r.user(w.r.idle()), Secret: values[w.r.SecretField]})
	if err != nil {
		return nil, err
	}
	defer func() { _ = e.Close() }()
	var keep estover.Secret
	if at.Overlap { // what else the one before has stays, for this rotation may be given up
		keep = old[w.r.SecretField]
	}
	if err := e.SetSecret(limited, w.r.user(w.r.Slot), old[w.r.SecretField], keep); err != nil {
		if ctx.Err() != nil { // this node goes
			return nil, err
		}
		return fmt.Errorf("the next admin cannot do what the one before can. Let %s change the password of %s, then run `estover rotation clear %s` (%w)",
			w.r.user(w.r.idle()), w.r.user(w.r.Slot), at.Name, err), nil
	}
	if c, can := e.(engine.Comparer); can && at.Pair && w.r.switchedAt.IsZero() && w.r.user("b") == secondOf(w.r.user("a")) {
		second, first := w.r.user(w.r.idle()), w.r.user(w.r.Slot)
		err := c.Alike(limited, second, first)
		if final(err) && !errors.Is(err, engine.ErrUnsupported) {
			return fmt.Errorf("%s has not the rights of %s. Give it the same, or delete it at the target and it is made anew; then run `estover rotation clear %s` and `estover secret engine rotate-root %s --second-admin %s` (%w)",
				second, first, at.Name, at.Name, second, err), nil
		} else if err != nil && !final(err) {
			return nil, err
		}
	}
	return nil, nil
}

// copy has what the next admin of a target logs in with be kept for the day on which
// nothing of this is there any more, before anything works with it (R12).
func (w *work) copy(ctx context.Context, values map[string]estover.Secret) error {
	if w.x.Copy == nil || w.r.kind == Certificate {
		return nil
	}
	at, err := w.x.Target(ctx, w.tenant, w.r.Target)
	if err != nil || at.Admin != w.r.Path {
		return err
	}
	return w.x.Copy(ctx, w.tenant, at.Name, w.r.Path, w.r.Pending, values)
}

// fail ends a rotation before R4. If the new password did not log in, no other
// rotation begins at the target before somebody has looked (R11).
func (w *work) fail(ctx context.Context, why error, stop bool) error {
	text := db.Short(reason(why))
	return w.move(ctx, "rotation.abort", map[string]any{"version": w.pending(), "why": text, "target_stopped": stop}, nil, func(tx *guard.Tx, n *Rotation) error {
		n.Step, n.LastError = Aborting, text
		if !stop {
			return nil
		}
		return stopTarget(ctx, tx.Tx, n.Target, n.Secret, text)
	})
}

// change is R4, the only step that cannot be taken back: the pending version is
// the current one.
func (w *work) change(ctx context.Context) (bool, error) {
	overlap := w.r.kind != SingleSlot
	if !overlap {
		at, err := w.x.Target(ctx, w.tenant, w.r.Target)
		if err != nil {
			return false, err
		}
		overlap = at.Overlap
	}
	risk, err := w.x.risk(ctx, w.tenant, w.r.Path)
	if err != nil {
		return false, err
	}
	var ends time.Time
	if w.r.kind == Certificate {
		values, err := w.x.Secrets.Former(ctx, w.tenant, w.r.Path, w.r.Pending)
		if err == nil {
			ends, err = w.r.expiry(values, w.x.Guard.DB().Now())
		}
		if err != nil {
			return true, w.fail(ctx, err, false)
		}
	}
	if err := w.x.at("before R4"); err != nil {
		return false, err
	}
	grace := w.x.Guard.DB().Now().Add(w.r.Grace())
	slot := w.r.idle()
	detail := map[string]any{"version": secret.VersionID(w.r.Secret, w.r.Pending), "slot": slot}
	err = w.move(ctx, "rotation.switch", detail, func(t *secret.Turn, n *Rotation) error {
		before, err := t.Promote(n.Pending, grace)
		if err != nil {
			return err
		}
		n.Current, n.Pending, n.Previous, n.Slot, n.GraceUntil = n.Pending, 0, before, slot, time.Time{}
		if n.Step = Idle; before == 0 {
			return nil
		}
		if !overlap { // the target has accepted nothing else since R2
			n.Previous = 0
			return t.Done(before, secret.Previous)
		}
		n.Step, n.GraceUntil = Grace, grace
		return nil
	}, func(tx *guard.Tx, n *Rotation) error {
		if !n.applyingAt.IsZero() {
			n.Refused = tx.Now().Sub(n.applyingAt).Microseconds() // at most; the probe knows better
		}
		n.RotatedAt, n.LateAt, n.Laggards, n.ForcedBy, n.Reason = tx.Now(), time.Time{}, []Laggard{}, "", ""
		if w.r.Current > 0 {
			n.switchedAt = tx.Now()
		}
		if n.Step == Grace {
			tx.Note("previous", secret.VersionID(n.Secret, n.Previous))
			tx.Note("grace_until", n.GraceUntil)
		}
		n.previousExpires, n.ExpiresAt = time.Time{}, ends
		n.previousSerial, n.currentSerial, n.pendingSerial = "", w.r.pendingSerial, ""
		if n.Step == Grace {
			n.previousExpires, n.previousSerial = w.r.ExpiresAt, w.r.currentSerial
		}
		n.DueAt = n.next(risk)
		if n.wait(); n.Step == Grace {
			n.Next = n.GraceUntil
		}
		return done(ctx, tx.Tx, n.Target)
	})
	if err != nil {
		return false, err
	}
	if err := w.x.at("after R4"); err != nil {
		return false, err
	}
	return false, w.endRefusing(ctx)
}

// abort undoes what was begun of a rotation that failed (R6).
func (w *work) abort(ctx context.Context) (bool, error) {
	if err := w.undo(ctx); err != nil {
		return false, err
	}
	why := w.r.LastError
	var turn func(t *secret.Turn, n *Rotation) error
	if w.r.Pending > 0 {
		turn = func(t *secret.Turn, n *Rotation) error {
			err := t.Done(n.Pending, secret.Pending)
			n.Pending = 0
			return err
		}
	}
	return false, w.move(ctx, "rotation.abandon", map[string]any{"version": w.pending(), "why": why}, turn, func(tx *guard.Tx, n *Rotation) error {
		n.Step, n.LastError, n.applyingAt, n.pendingSerial = Idle, why, time.Time{}, ""
		if at := tx.Now().Add(n.rest(tx.Now())); !n.DueAt.IsZero() && n.DueAt.Before(at) {
			n.DueAt = at
		}
		n.wait()
		return done(ctx, tx.Tx, n.Target)
	})
}

// pending is the id of the version that is on its way; "" if it has not come yet.
func (w *work) pending() string {
	if w.r.Pending == 0 {
		return ""
	}
	return secret.VersionID(w.r.Secret, w.r.Pending)
}

// undo takes back what was done at the target, or may have been.
func (w *work) undo(ctx context.Context) error {
	switch w.r.kind {
	case Certificate:
		if w.r.Pending == 0 {
			return nil
		}
		return w.uncertify(ctx, "R6", w.r.Pending, w.r.pendingSerial)
	case Keys:
		return w.drop(ctx, "R6")
	}
	user, password := w.r.user(w.r.idle()), newPassword()
	if w.r.kind == SingleSlot && w.r.Current > 0 {
		old, err := w.former(ctx)
		if err != nil {
			return err
		}
		if before := old[w.r.SecretField]; !before.Empty() {
			password = before
			if err := w.beside(ctx, engine.Credential{User: user, Secret: before}); err == nil || errors.Is(err, errCrash) {
				return err
			}
		}
	}
	err := w.effect(ctx, "R6", func(ctx context.Context, e engine.Engine) error {
		return e.SetSecret(ctx, user, password, estover.Secret{})
	})
	if errors.Is(err, engine.ErrNoUser) {
		err = nil
	}
	if final(err) && w.r.kind == SingleSlot {
		err = w.untouched(ctx, engine.Credential{User: user, Secret: password}, err)
	}
	return err
}

// beside is nil if a user who may have two passwords has nothing of the next one, so that
// nothing is set and what else it has stays.
func (w *work) beside(ctx context.Context, before engine.Credential) error {
	at, err := w.x.Target(ctx, w.tenant, w.r.Target)
	if err == nil && !at.Overlap {
		err = engine.ErrUnsupported
	}
	if err != nil {
		return err
	}
	return w.untouched(ctx, before, engine.ErrWrongSecret)
}

// untouched is nil if the one user at a target, which has refused to have its password
// set to what it was, has it still, and not the next one beside it. Else it is why.
func (w *work) untouched(ctx context.Context, before engine.Credential, why error) error {
	next, err := w.x.Secrets.Values(ctx, w.tenant, w.r.Path, w.r.Pending)
	if err != nil {
		return errors.Join(why, err)
	}
	return w.effect(ctx, "R6", func(ctx context.Context, e engine.Engine) error {
		if err := e.Verify(ctx, before); err != nil {
			return errors.Join(why, err)
		}
		if !errors.Is(e.Verify(ctx, engine.Credential{User: before.User, Secret: next[w.r.SecretField]}), engine.ErrWrongSecret) {
			return why
		}
		return nil
	})
}

// drop deletes the key of the slot that does not serve.
func (w *work) drop(ctx context.Context, point string) error {
	return w.effect(ctx, point, func(ctx context.Context, e engine.Engine) error {
		return e.Revoke(ctx, []engine.Doomed{{Name: w.r.user(w.r.idle()), Template: w.r.Template}})[0]
	})
}

// scramble is the end of R5: nothing accepts the previous version any more.
func (w *work) scramble(ctx context.Context) (bool, error) {
	switch w.r.kind {
	case Certificate:
		if err := w.uncertify(ctx, "R5", w.r.Previous, w.r.previousSerial); err != nil {
			return false, err
		}
	case Keys:
		if err := w.drop(ctx, "R5"); err != nil {
			return false, err
		}
	case TwoUsers:
		user := w.r.user(w.r.idle())
		err := w.effect(ctx, "R5", func(ctx context.Context, e engine.Engine) error {
			err := e.SetSecret(ctx, user, newPassword(), estover.Secret{})
			if errors.Is(err, engine.ErrNoUser) {
				return nil
			}
			if err == nil {
				err = e.EndSessions(ctx, user)
			}
			return err
		})
		if err != nil {
			return false, err
		}
	default:
		values, err := w.x.Secrets.Former(ctx, w.tenant, w.r.Path, w.r.Current)
		if err != nil {
			return false, err
		}
		former, err := w.typed(ctx)
		if err != nil {
			return false, err
		}
		err = w.effect(ctx, "R5", func(ctx context.Context, e engine.Engine) error {
			err := e.SetSecret(ctx, w.r.user("a"), values[w.r.SecretField], estover.Secret{})
			if err == nil && !former.Empty() {
				err = gone(ctx, e, engine.Credential{User: w.r.user("a"), Secret: former})
			}
			return err
		})
		if err != nil {
			return false, err
		}
	}
	return true, w.move(ctx, "rotation.retire", map[string]any{"version": secret.VersionID(w.r.Secret, w.r.Previous), "forced_by": string(w.r.ForcedBy)}, func(t *secret.Turn, n *Rotation) error {
		err := t.Done(n.Previous, secret.Retiring)
		n.Previous = 0
		return err
	}, func(_ *guard.Tx, n *Rotation) error {
		n.Step, n.GraceUntil, n.LateAt, n.Laggards, n.ForcedBy, n.Reason = Idle, time.Time{}, time.Time{}, []Laggard{}, "", ""
		n.previousExpires, n.previousSerial = time.Time{}, ""
		n.wait()
		return nil
	})
}

// typed is the password that a target's one admin had before, which may be known to
// whoever typed it in; empty for any other secret, or if it was destroyed.
func (w *work) typed(ctx context.Context) (estover.Secret, error) {
	at, err := w.x.Target(ctx, w.tenant, w.r.Target)
	if err != nil || at.Admin != w.r.Path {
		return estover.Secret{}, err
	}
	former, err := w.x.Secrets.Former(ctx, w.tenant, w.r.Path, w.r.Previous)
	if errors.Is(err, secret.ErrNoVersion) {
		err = nil
	}
	return former[w.r.SecretField], err
}

// gone sees whether nobody gets in with a password that was taken from a user. It may
// stand elsewhere, as that of a directory's root in its configuration does.
func gone(ctx context.Context, e engine.Engine, c engine.Credential) error {
	err := e.Verify(ctx, c)
	switch {
	case errors.Is(err, engine.ErrWrongSecret):
		return nil
	case err == nil:
		return ErrFailed.With("The password that %s had before was taken from it, and the target lets it in with that all the same: it stands in the target's configuration too. Take it out there.", c.User)
	}
	return err
}

// A probe logs in again and again with the only password of a user while that
// changes, until it is refused: from then until there is another current version,
// nobody gets in who asks us for one.
type probe struct {
	stop  chan struct{}
	done  chan struct{}
	first time.Time // when a log-in was first refused, by the clock of this process
}

// probeEvery is how often the probe logs in.
const probeEvery = 10 * time.Millisecond

// beginRefusing stores when the only password of a user begins to change, and
// starts to measure for how long log-ins are refused.
func (w *work) beginRefusing(ctx context.Context, user string, old estover.Secret) error {
	if w.r.applyingAt.IsZero() {
		if err := w.store(ctx, func(now time.Time, n *Rotation) { n.applyingAt = now }); err != nil {
			return err
		}
	}
	if w.probe != nil || old.Empty() {
		return nil
	}
	e, err := w.x.Engine(ctx, w.tenant, w.r.Target)
	if err != nil {
		return err
	}
	p := &probe{stop: make(chan struct{}), done: make(chan struct{})}
	w.probe = p
	ctx = context.WithoutCancel(ctx)
	go func() {
		defer close(p.done)
		t := time.NewTicker(probeEvery)
		defer t.Stop()
		for {
			limited, cancel := context.WithTimeout(ctx, effectTime)
			began := time.Now()
			err := job.Guarded(func() error { return e.Verify(limited, engine.Credential{User: user, Secret: old}) })
			cancel()
			if errors.Is(err, engine.ErrWrongSecret) { // once: many a target locks a user out who comes with wrong ones
				p.first = began
				return
			}
			select {
			case <-p.stop:
				return
			case <-t.C:
			}
		}
	}()
	return nil
}

// endRefusing stores what the probe has measured, once the next password is the
// current one.
func (w *work) endRefusing(ctx context.Context) error {
	p := w.probe
	if p == nil {
		return nil
	}
	measured := time.Now()
	w.stopProbe()
	if p.first.IsZero() {
		return nil // it was over between two looks; what is stored is at most
	}
	refused := measured.Sub(p.first).Microseconds()
	return w.store(ctx, func(_ time.Time, n *Rotation) { n.Refused = refused })
}

func (w *work) stopProbe() {
	if w.probe == nil {
		return
	}
	close(w.probe.stop)
	<-w.probe.done
	w.probe = nil
}
