package token

import (
	"context"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/detail"
	"estover.dev/internal/guard"
)

// A DetailType is a type of authorization details that a tenant has registered
// (RFC 9396, section 2.1).
//
//	live ──put──▶ live        the same name, another specification, a higher epoch
//	  └──retire──▶ ended      the name is free for another type
//
// Whatever was granted by a type is held against it as it is when a token is
// asked for: what does not fit any more, or has no type any more, buys nothing.
type DetailType struct {
	ID string `json:"id"` // dty_…
	detail.Spec
	ManagedBy string    `json:"managed_by,omitempty"`
	CreatedAt time.Time `json:"created_at,omitzero"`
	ChangedAt time.Time `json:"changed_at,omitzero"`
	EndedAt   time.Time `json:"ended_at,omitzero"` // when it was retired
	Epoch     int64     `json:"epoch"`             // raised by every change
}

// Errors about types of authorization details.
var (
	// ErrNoDetailType is returned when there is no such type in the tenant.
	ErrNoDetailType = &estover.Error{Kind: estover.NotFound, Code: "detail_type_not_found", Detail: "There is no such type of authorization details. `estover detail-type list` shows which there are."}
	// ErrDetailTypes is returned when a tenant has as many types as it may have.
	ErrDetailTypes = &estover.Error{Kind: estover.TooMuch, Code: "detail_types_too_many", Detail: "There are too many types of authorization details. Retire one that nobody uses."}
)

// maxDetailTypes bounds the types of a tenant: all of them are held ready.
const maxDetailTypes = 100

// detailTypeKind is the kind of the copy of a tenant's types, of which there is
// one.
const (
	detailTypeKind = "detail_type"
	allDetailTypes = "all"
)

// DetailTypes are the types of authorization details of all tenants. They are
// safe for use by many at once.
type DetailTypes struct {
	guard *guard.Guard
	ready *guard.Cache[detail.Types]
}

// NewDetailTypes are the types that are registered behind this door.
func NewDetailTypes(g *guard.Guard) *DetailTypes {
	return &DetailTypes{guard: g, ready: guard.NewCache(g, detailTypeKind, func(ctx context.Context, tx *db.Tx, _ string) (detail.Types, error) {
		list, err := listDetailTypes(ctx, tx, "", "", maxDetailTypes)
		if err != nil {
			return nil, err
		}
		types := make([]*detail.Type, len(list))
		for i := range list {
			if types[i], err = detail.New(list[i].Spec); err != nil {
				return nil, err
			}
		}
		return detail.NewTypes(types...), nil
	})}
}

// Of are the types of a tenant, ready to be used, the one that is built in among
// them.
func (d *DetailTypes) Of(ctx context.Context, tenant estover.TenantID) (detail.Types, error) {
	return d.ready.Get(ctx, tenant, allDetailTypes)
}

// Put adds a type, or changes the one of this name. managedBy says who keeps one
// that is added, if not a person by hand.
func (d *DetailTypes) Put(ctx context.Context, caller estover.Caller, spec detail.Spec, managedBy string) (out DetailType, err error) {
	if spec, err = detail.Check(spec); err != nil {
		return out, err
	}
	id := estover.NewID("dty")
	err = d.guard.Do(ctx, caller, guard.Op{Action: "detail_type.put"}, func(tx *guard.Tx) error {
		out, err = findDetailType(ctx, tx.Tx, spec.Name, tx.ForUpdate())
		switch {
		case err == nil:
			tx.Note("before", out.Spec)
			out.Spec, out.ChangedAt = spec, tx.Now()
			out.Epoch++
			err = updateDetailType(ctx, tx.Tx, out)
		case estover.KindOf(err) == estover.NotFound:
			out = DetailType{ID: id, Spec: spec, ManagedBy: managedBy, CreatedAt: tx.Now(), ChangedAt: tx.Now(), Epoch: 1}
			err = insertDetailType(ctx, tx.Tx, out)
		}
		if err != nil {
			return err
		}
		tx.SetTarget("detail_type:" + out.ID)
		tx.Note("detail_type", spec)
		tx.Touch(detailTypeKind, allDetailTypes)
		return nil
	})
	return out, err
}

// Retire ends a type. No token is issued with such a detail any more; those that
// there are say what they said until they expire.
func (d *DetailTypes) Retire(ctx context.Context, caller estover.Caller, name string) error {
	return d.guard.Do(ctx, caller, guard.Op{Action: "detail_type.retire"}, func(tx *guard.Tx) error {
		was, err := findDetailType(ctx, tx.Tx, name, tx.ForUpdate())
		if err != nil {
			return err
		}
		was.EndedAt, was.ChangedAt = tx.Now(), tx.Now()
		was.Epoch++
		tx.SetTarget("detail_type:" + was.ID)
		tx.Touch(detailTypeKind, allDetailTypes)
		return updateDetailType(ctx, tx.Tx, was)
	})
}

// ByName shows the type with this name. The one that is built in has no id.
func (d *DetailTypes) ByName(ctx context.Context, caller estover.Caller, name string) (out DetailType, err error) {
	err = d.guard.Read(ctx, caller, guard.Op{Action: "detail_type.read"}, func(tx *db.Tx) error {
		if name == detail.Task {
			out = DetailType{Spec: detail.BuiltIn().Spec}
			return nil
		}
		out, err = findDetailType(ctx, tx, name, "")
		return err
	})
	return out, err
}

// List shows types by name, those that managedBy keeps if it is not "", without
// the one that is built in. next is where the following page begins (pass it as
// after), or "" at the end.
func (d *DetailTypes) List(ctx context.Context, caller estover.Caller, managedBy, after string, limit int) (types []DetailType, next string, err error) {
	if limit <= 0 || limit > maxDetailTypes {
		limit = maxDetailTypes
	}
	err = d.guard.Read(ctx, caller, guard.Op{Action: "detail_type.list"}, func(tx *db.Tx) error {
		types, err = listDetailTypes(ctx, tx, managedBy, after, limit+1)
		return err
	})
	if len(types) > limit {
		types = types[:limit]
		next = types[limit-1].Name
	}
	return types, next, err
}
