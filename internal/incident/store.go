package incident

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

const columns = "id, scope, target, hold_id, contained_by, reason, at, steps, coalesce(zero_us, 0), event_id, ended_at, lingers"

// insert begins a containment, unless it was begun before.
func insert(ctx context.Context, tx *db.Tx, c Containment) error {
	n, err := tx.Exec(ctx, `insert into containment (tenant_id, id, scope, target, hold_id, contained_by, reason, at)
		values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict (tenant_id, id) do nothing`,
		tx.Tenant(), c.ID, c.Scope, c.Target.ID, c.Hold, c.By, c.Reason, c.At)
	if err == nil && n == 0 {
		return errBegun
	}
	return err
}

// update writes what was done. False: the containment has reached zero, and stays
// as it is.
func update(ctx context.Context, tx *db.Tx, c Containment) (bool, error) {
	steps, err := json.Marshal(c.Steps)
	if err != nil {
		return false, err
	}
	var zero any
	if c.ZeroMicros > 0 {
		zero = c.ZeroMicros
	}
	lingers, err := json.Marshal(append([]string{}, c.Lingers...))
	if err != nil {
		return false, err
	}
	n, err := tx.Exec(ctx, "update containment set steps = $3, zero_us = $4, event_id = $5, lingers = $6 where tenant_id = $1 and id = $2 and zero_us is null",
		tx.Tenant(), c.ID, string(steps), zero, c.Event, string(lingers))
	return n == 1, err
}

func scan(columns func(...any) error) (c Containment, err error) {
	var steps, lingers string
	if err = columns(&c.ID, &c.Scope, &c.Target.ID, &c.Hold, &c.By, &c.Reason, &c.At, &steps, &c.ZeroMicros, &c.Event, &c.EndedAt, &lingers); err == nil {
		err = errors.Join(json.Unmarshal([]byte(steps), &c.Steps), json.Unmarshal([]byte(lingers), &c.Lingers))
	}
	if c.Scope == Agent {
		c.Agent = c.Target.ID
	}
	return c, err
}

func find(ctx context.Context, tx *db.Tx, id string) (Containment, error) {
	c, err := scan(tx.QueryRow(ctx, "select "+columns+" from containment where tenant_id = $1 and id = $2", tx.Tenant(), id).Scan)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrNotFound
	}
	return c, err
}

// giveUp closes a containment whose hold was lifted before it came to its end.
func giveUp(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, "update containment set ended_at = $3 where tenant_id = $1 and id = $2 and zero_us is null and ended_at is null", tx.Tenant(), id, tx.Now())
	return err
}

func list(ctx context.Context, tx *db.Tx, of Target, limit int) ([]Containment, error) {
	return db.All(ctx, tx, scan, "select "+columns+` from containment
		where tenant_id = $1 and ($2 = '' or scope = $2) and ($3 = '' or target = $3) order by at desc, id limit $4`,
		tx.Tenant(), of.Scope, of.ID, limit)
}

type tenantContainment struct {
	Containment
	tenant estover.TenantID
}

// unfinished are the containments of all tenants that began before a time and
// have not come to zero.
func unfinished(ctx context.Context, tx *db.Tx, before time.Time) ([]tenantContainment, error) {
	return db.All(ctx, tx, scanOfTenant, "select tenant_id, "+columns+" from containment where zero_us is null and ended_at is null and at < $1 order by at limit 100", before)
}

// recent are the containments of all tenants that began since a time, and not of
// one agent or of a resource.
func recent(ctx context.Context, tx *db.Tx, since time.Time) ([]tenantContainment, error) {
	return db.All(ctx, tx, scanOfTenant, "select tenant_id, "+columns+" from containment where at > $1 and scope not in ('agent', 'resource') order by at limit 100", since)
}

func scanOfTenant(columns func(...any) error) (t tenantContainment, err error) {
	t.Containment, err = scan(func(rest ...any) error { return columns(append([]any{&t.tenant}, rest...)...) })
	return t, err
}

func insertDrill(ctx context.Context, tx *db.Tx, d Drill) error {
	_, err := tx.Exec(ctx, `insert into drill (tenant_id, id, run_by, at, containment_id, refused_us, stream_us, zero_us, bound_us, error)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		tx.Tenant(), d.ID, d.By, d.At, d.Containment, d.RefusedMicros, d.StreamMicros, d.ZeroMicros, d.BoundMicros, d.Error)
	return err
}

func listDrills(ctx context.Context, tx *db.Tx, limit int) ([]Drill, error) {
	return db.All(ctx, tx, func(scan func(...any) error) (d Drill, err error) {
		err = scan(&d.ID, &d.By, &d.At, &d.Containment, &d.RefusedMicros, &d.StreamMicros, &d.ZeroMicros, &d.BoundMicros, &d.Error)
		d.Slow = d.slow()
		return d, err
	}, `select id, run_by, at, containment_id, refused_us, stream_us, zero_us, bound_us, error from drill
		where tenant_id = $1 order by at desc, id limit $2`, tx.Tenant(), limit)
}
