package secret

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/guard"
)

// A Phase is what a version is in the rotation of its secret; empty for a
// version of a secret that is not rotated here.
//
//	pending ─▶ current ─▶ previous ⇄ retiring ─▶ retired
//	   └─▶ abandoned
type Phase string

// The phases. Of a retired and of an abandoned version nothing accepts the
// values any more, and their bytes are destroyed.
const (
	Pending   Phase = "pending"   // made, and not in use yet
	Current   Phase = "current"   // what is used
	Previous  Phase = "previous"  // still good, for who has it
	Retiring  Phase = "retiring"  // asked of every node whether anybody uses it
	Retired   Phase = "retired"   // was current
	Abandoned Phase = "abandoned" // was never current
)

// ErrManaged is returned when somebody writes a version of a secret whose
// versions Estover makes.
var ErrManaged = &estover.Error{Kind: estover.Conflict, Code: "secret_managed", Detail: "The versions of this secret are made by its rotation. Make one with `estover rotation run`, or end the rotation with `estover rotation remove`."}

// errPhase is returned when a version is not in the phase that a turn expects:
// another one has moved it.
var errPhase = &estover.Error{Kind: estover.Conflict, Code: "secret_phase_conflict", Detail: "The version is no longer what it was. Look again."}

// managed reports whether versions of the secret are made by a rotation.
func (r *record) managed() bool {
	return slices.ContainsFunc(r.versions, func(v Version) bool {
		return v.Phase == Pending || v.Phase == Current || v.Phase == Previous || v.Phase == Retiring
	})
}

// newest is the number of the last version that was made.
func (r *record) newest() int64 {
	if len(r.versions) == 0 {
		return r.past.newest()
	}
	return r.versions[len(r.versions)-1].N
}

// A Turn is a secret whose versions are about to change places: what
// [Secrets.Turn] hands to its plan.
type Turn struct {
	s *Secrets
	c estover.Caller
	r *record
	w *write
}

// Secret is the secret as it will be.
func (t *Turn) Secret() Secret { return t.r.Secret }

// Version is the version of that number as it will be; false if there is none.
func (t *Turn) Version(n int64) (Version, bool) {
	v := t.r.version(n)
	if v == nil {
		return Version{}, false
	}
	return *v, true
}

// Stage adds a pending version for a slot and gives its number. The current
// version stays. A turn stages one version at most.
func (t *Turn) Stage(fields map[string]estover.Secret, slot string) (int64, error) {
	if t.w.version != nil {
		panic("secret: a turn stages one version")
	}
	if t.r.Link != nil {
		return 0, ErrLinked
	}
	names, plain, err := encode(fields)
	defer clear(plain)
	if err != nil {
		return 0, err
	}
	v := Version{Fields: names, CreatedBy: t.c.Subject, Phase: Pending, Slot: slot}
	err = t.s.add(t.c.Tenant, t.r, t.w, &v, plain, fields)
	return v.N, err
}

// Adopt makes the current version, which somebody wrote, one of a slot. It
// returns its number; 0 if there is no version yet.
func (t *Turn) Adopt(slot string) (int64, error) {
	if t.r.managed() {
		return 0, ErrManaged.With("The secret %s is rotated already.", t.r.Path)
	}
	if t.r.Link != nil {
		return 0, ErrLinked
	}
	if t.r.CurrentVersion == 0 {
		return 0, nil
	}
	v, err := t.r.usable(t.r.CurrentVersion)
	if err != nil {
		return 0, err
	}
	v.Phase, v.Slot = Current, slot
	return v.N, nil
}

// Release ends the rotation of the secret: its current version is an ordinary
// one again. All others must have come to their end before.
func (t *Turn) Release() error {
	for i := range t.r.versions {
		switch v := &t.r.versions[i]; v.Phase {
		case Current:
			v.Phase, v.Slot = "", ""
		case Pending, Previous, Retiring:
			return errPhase.With("Version %d of the secret %s is %s. Wait until it has come to its end.", v.N, t.r.Path, v.Phase)
		}
	}
	return nil
}

// Promote makes a pending version the current one, and gives back the number of
// the one that was it before, which is now the previous one until grace; 0 if
// there was none.
func (t *Turn) Promote(n int64, grace time.Time) (before int64, err error) {
	v, err := t.in(n, Pending)
	if err != nil {
		return 0, err
	}
	if was := t.r.version(t.r.CurrentVersion); was != nil && was.Phase == Current {
		was.Phase, was.GraceUntil, before = Previous, grace, was.N
	}
	v.Phase, t.r.CurrentVersion = Current, n
	return before, nil
}

// Retire asks about a previous version ([Retiring]).
func (t *Turn) Retire(n int64) error { return t.move(n, Previous, Retiring) }

// Keep lets a version be that was asked about: somebody uses it.
func (t *Turn) Keep(n int64) error { return t.move(n, Retiring, Previous) }

// Done says that no system accepts a version any more: one that was current, or
// one that never was. Its bytes are destroyed.
func (t *Turn) Done(n int64, from Phase) error {
	to := Retired
	if from == Pending {
		to = Abandoned
	}
	if err := t.move(n, from, to); err != nil {
		return err
	}
	destroy(t.r.version(n), t.r.UpdatedAt)
	return nil
}

func (t *Turn) move(n int64, from, to Phase) error {
	v, err := t.in(n, from)
	if err == nil {
		v.Phase = to
	}
	return err
}

func (t *Turn) in(n int64, phase Phase) (*Version, error) {
	v := t.r.version(n)
	if v == nil || v.Phase != phase {
		return nil, errPhase.With("Version %d of the secret %s is not %s any more. Look again.", n, t.r.Path, phase)
	}
	return v, nil
}

// Turn changes the places of a secret's versions in an operation of somebody
// else's, who has rows of its own to change: then does that in the same
// transaction, and may run more than once. Plan runs before, and again if the
// secret has changed meanwhile. What it finds wrong is told only to who may do
// the operation.
func (s *Secrets) Turn(ctx context.Context, c estover.Caller, op guard.Op, path string, plan func(*Turn) error, then func(tx *guard.Tx) error) (Secret, error) {
	r, err := s.change(ctx, c, op, path, func(r *record) (*write, error) {
		w := &write{note: map[string]any{}, then: then}
		if err := plan(&Turn{s, c, r, w}); err != nil {
			return nil, err
		}
		return w, nil
	})
	if err != nil {
		return Secret{}, err
	}
	return r.Secret, nil
}

// Values gives the fields of a version to a rotation, whose step the guard
// admits and records: they go to the target that they are for, and to nobody
// else. Pending versions are what it is for.
func (s *Secrets) Values(ctx context.Context, tenant estover.TenantID, path string, n int64) (map[string]estover.Secret, error) {
	return s.values(ctx, tenant, path, n, Live)
}

// Former is [Secrets.Values] of a version that is about to be replaced, also if
// somebody has deleted it: what is out of use is all the more to be replaced.
func (s *Secrets) Former(ctx context.Context, tenant estover.TenantID, path string, n int64) (map[string]estover.Secret, error) {
	return s.values(ctx, tenant, path, n, Live, Deleted)
}

func (s *Secrets) values(ctx context.Context, tenant estover.TenantID, path string, n int64, in ...State) (fields map[string]estover.Secret, err error) {
	r, err := s.read(ctx, tenant, path, n)
	if err != nil {
		return nil, err
	}
	v := r.version(n)
	if v == nil || !slices.Contains(in, v.State) {
		return nil, ErrNoVersion.With("Version %d of the secret %s is not there any more.", n, path)
	}
	err = s.open(tenant, r.ID, v, func(plain []byte) (err error) {
		fields, err = decode(plain)
		return err
	})
	return fields, err
}

// add seals the fields of a version and appends it to the record as its newest.
func (s *Secrets) add(tenant estover.TenantID, r *record, w *write, v *Version, plain []byte, fields map[string]estover.Secret) (err error) {
	v.N, v.State, v.CreatedAt = r.newest()+1, Live, r.UpdatedAt
	v.ID = VersionID(r.ID, v.N)
	if v.sealed, err = s.sealer.Seal(tenant, v.aad(r.ID), plain); err != nil {
		return fmt.Errorf("sealing a version: %w", err)
	}
	r.versions = append(r.versions, *v)
	w.version, w.note = v, map[string]any{"version": v.ID}
	for name, value := range fields {
		w.prints = append(w.prints, fingerprint{name, s.fingerprint(tenant, value)})
	}
	slices.SortFunc(w.prints, func(a, b fingerprint) int { return strings.Compare(a.field, b.field) })
	return nil
}
