package rotation

import (
	"context"
	"errors"
	"slices"
	"strings"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/secret/engine"
)

// ErrNoPair is returned where a second admin cannot be made with the rights of the
// first.
var ErrNoPair = &estover.Error{Kind: estover.Invalid, Code: "rotation_no_second_admin", Detail: "A second admin cannot be made at the target."}

// rootSpec is how the admins are rotated that [Rotations.RotateRoot] begins with, a pair or
// one alone: nobody but Estover works as one of them, and it has the current version at once.
func rootSpec(at Target, users ...string) Spec {
	s := Spec{Target: at.Name, Kind: TwoUsers, Users: users, Cache: 1, Quiet: 1}
	if len(users) == 1 {
		s.Kind = SingleSlot
	}
	return s
}

// RotateRoot has what a target's admin logs in with be known to nobody (R12): a second
// admin is made there with the rights of the first, logs in, shows that it can change
// the password of the first, and is the current one. The password that somebody typed
// in dies as any previous version does. From then on the pair is rotated by the risk
// of its secret. Where no second admin can be made and a user takes two passwords at once,
// the first gets another beside its own, and logs in with it before its own is taken away.
// Second is the name of the second admin, who may be there already;
// if it is empty, that of the first with _b, who may not. A pair that is rotated
// already is rotated once more.
//
// If it does not come through, the secret is not rotated, and what the operator has
// typed in is as good as before. Where it may be half done at the target, which does
// not answer, it is brought to its end when that does, and the error says so.
func (x *Rotations) RotateRoot(ctx context.Context, c estover.Caller, name, second string) (Rotation, error) {
	op := guard.Op{Action: "rotation.schedule", Target: "target:" + name, Detail: map[string]any{"second": second}}
	if _, err := x.Guard.Admit(ctx, c, op); err != nil { // before anything is asked of the target
		return Rotation{}, err
	}
	at, err := x.Target(ctx, c.Tenant, name)
	if err == nil && at.Admin == "" {
		err = ErrNoPair.With("Estover works at %s without a secret, so there is no password to change.", name)
	}
	if err != nil {
		return Rotation{}, x.refused(ctx, c, op, err)
	}
	_, err = x.load(ctx, c.Tenant, at.Admin)
	if err == nil {
		return x.Run(ctx, c, at.Admin)
	}
	if !errors.Is(err, ErrNotFound) {
		return Rotation{}, err
	}
	spec, err := x.pairOf(ctx, c, at, second)
	if err != nil {
		return Rotation{}, x.refused(ctx, c, op, err)
	}
	put, err := x.Put(ctx, c, at.Admin, spec)
	if err != nil {
		return Rotation{}, err
	}
	r, err := x.Run(ctx, c, at.Admin)
	if err == nil || put.Generation > 1 { // somebody else has begun it
		return r, err
	}
	// What has not come through is not tried again behind somebody's back.
	failed := x.Remove(context.WithoutCancel(ctx), c, at.Admin)
	switch {
	case errors.Is(failed, ErrBusy) && errors.Is(err, ErrFailed):
		err = ErrFailed.With("%s It is tried again until it is done: estover rotation explain %s", reason(err), at.Admin)
	case !errors.Is(failed, ErrBusy):
		err = errors.Join(err, failed)
	}
	return r, err
}

// secondOf is the name of a second admin whom nobody has named.
func secondOf(first string) string { return first + "_b" }

// pairOf is how a target's admins are rotated, one of whom is to be made, or how the one is.
func (x *Rotations) pairOf(ctx context.Context, c estover.Caller, at Target, second string) (spec Spec, err error) {
	alone := !at.Pair && at.Overlap && second == ""
	if !at.Pair && !alone {
		return spec, ErrNoPair.With("Estover cannot make a second admin like the first at a %s. Make one there, and then: estover rotation put %s --target %s --user FIRST --user SECOND", at.Kind, at.Admin, at.Name)
	}
	s, err := x.Secrets.Describe(ctx, c.Tenant, at.Admin)
	if err != nil {
		return spec, err
	}
	if c.Subject != s.Owner && !c.Has(estover.Admin) && c.Subject.Kind() != estover.SystemKind {
		return spec, ErrNotOwner
	}
	fields, err := x.Secrets.Values(ctx, c.Tenant, at.Admin, s.CurrentVersion)
	if err != nil {
		return spec, err
	}
	first := string(fields["username"].Reveal())
	if first == "" || fields["password"].Empty() {
		return spec, ErrNoPair.With("The secret %s has no fields username and password, so it is not known whose password is to be changed.", at.Admin)
	}
	if alone {
		_, err := x.shared(ctx, c, at, at.Admin, first)
		return rootSpec(at, first), err
	}
	named := second != ""
	if !named {
		second = secondOf(first)
	}
	if _, err := x.shared(ctx, c, at, at.Admin, first, second); err != nil || named {
		return rootSpec(at, first, second), err
	}
	e, err := x.Engine(ctx, c.Tenant, at.ID)
	if err != nil {
		return spec, err
	}
	ctx, cancel := context.WithTimeout(ctx, effectTime)
	defer cancel()
	there, err := e.List(ctx, second)
	if err != nil {
		return spec, ErrFailed.With("The admins of %s could not be looked at: %s.", at.Name, reason(err))
	}
	if slices.Contains(there, second) {
		return spec, ErrNoPair.With("There is a user %s at %s already. If it is to be the second admin, whose password changes, name it; if not, name another one.", second, at.Name)
	}
	return rootSpec(at, first, second), nil
}

// ErrShared is returned where a target would not be let in any more if a secret were
// rotated.
var ErrShared = &estover.Error{Kind: estover.Invalid, Code: "rotation_locks_out", Detail: "A target works with what would be changed, and would not be let in any more."}

// shared says why the passwords of users at a target are not rotated in the secret at
// a path, if a target would not be let in any more: one at the same server that has the
// password of one of them in another secret, be it that target itself, or one at
// another server that has this secret. Whose secret that is, is told to whoever may know.
// Near are the targets at the same server.
func (x *Rotations) shared(ctx context.Context, c estover.Caller, at Target, path string, users ...string) (near []string, err error) {
	var all []db.Place
	err = x.Guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) (err error) {
		all, err = allTargets(ctx, tx)
		return err
	})
	for _, one := range all {
		o, err := x.Target(ctx, c.Tenant, one.ID)
		switch {
		case estover.KindOf(err) == estover.NotFound: // removed a moment ago
			continue
		case err != nil:
			return nil, err
		}
		same := strings.EqualFold(o.Host, at.Host)
		if same && o.ID != at.ID {
			near = append(near, o.ID)
		}
		switch {
		case o.Admin == "" || (o.Admin == path) == same:
			continue // both have the pair, or it is another server with a secret of its own
		case o.Admin == path:
			name := "another target"
			if c.Has(estover.Admin) {
				name = o.Name
			}
			return nil, ErrShared.With("The secret %s is that of %s too, which is another server and would know nothing of the next password. Give each a secret of its own.", path, name)
		}
		var fields map[string]estover.Secret
		s, err := x.Secrets.Describe(ctx, c.Tenant, o.Admin)
		if err == nil {
			fields, err = x.Secrets.Former(ctx, c.Tenant, o.Admin, s.CurrentVersion)
		}
		if err != nil && estover.KindOf(err) != estover.NotFound { // then it cannot be worked at anyway
			return nil, err
		}
		if !slices.ContainsFunc(users, func(u string) bool { return at.same(u, string(fields["username"].Reveal())) }) {
			continue
		}
		if c.Has(estover.Admin) || c.Subject != "" && c.Subject == s.Owner {
			return nil, ErrShared.With("The target %s is at the same server and has the password of the same user in a secret of its own, %s, which would not be good any more. Have both work with one secret, or as different users.", o.Name, o.Admin)
		}
		return nil, ErrShared.With("A target at the same server has the password of one of the users in a secret of its own, which would not be good any more. Rotate other users; an administrator is told which it is by: estover rotation run %s", path)
	}
	return near, err
}

// same reports whether two names are those of one user at the target.
func (t Target) same(a, b string) bool {
	if t.Account != nil {
		a, b = t.Account(a), t.Account(b)
	}
	return a == b
}

// free sees whether nobody is locked out by a rotation that is there, and the next one of
// which may begin: targets and rotations may have come since it was put.
func (x *Rotations) free(ctx context.Context, c estover.Caller, r Rotation) error {
	if r.kind.made() {
		return nil
	}
	at, err := x.Target(ctx, c.Tenant, r.Target)
	if err != nil {
		return err
	}
	near, err := x.shared(ctx, c, at, r.Path, r.Users...)
	if err != nil || len(near) == 0 {
		return err
	}
	return x.Guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) error { return taken(ctx, tx, r, at, near, c.Has(estover.Admin)) })
}

// pair makes the second admin of a target, who is not there, with the rights of the
// one that serves.
func (w *work) pair(ctx context.Context, e engine.Engine, user string, password estover.Secret, none error) error {
	p, can := e.(engine.Pairer)
	if !can || w.r.kind != TwoUsers || w.r.Current == 0 {
		return none
	}
	at, err := w.x.Target(ctx, w.tenant, w.r.Target)
	if err != nil {
		return err
	}
	if at.Admin != w.r.Path {
		return none
	}
	err = p.Pair(ctx, user, w.r.user(w.r.Slot), password)
	if final(err) && e.SetSecret(ctx, user, password, estover.Secret{}) == nil {
		return nil // it is there meanwhile: what somebody was cut off from has come through
	}
	return err
}
