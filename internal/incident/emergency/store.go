package emergency

import (
	"context"
	"errors"

	"estover.dev/internal/db"
)

const columns = `id, scope, target, since, reason, keep, asked_by, at, planned_at, done_at, event_id`

func scan(columns func(...any) error) (e Emergency, err error) {
	e.Items = []Item{}
	err = columns(&e.ID, &e.Scope, &e.Target, &e.Since, &e.Reason, &e.Keep, &e.By, &e.At, &e.PlannedAt, &e.DoneAt, &e.Event)
	return e, err
}

func one(ctx context.Context, tx *db.Tx, row db.Single) (Emergency, error) {
	e, err := scan(row.Scan)
	if errors.Is(err, db.ErrNoRows) {
		return e, ErrNotFound
	}
	if err != nil {
		return e, err
	}
	e.Items, err = db.All(ctx, tx, func(scan func(...any) error) (i Item, err error) {
		err = scan(&i.N, &i.Kind, &i.Ref, &i.secret, &i.Version, &i.Why, &i.State, &i.Note, &i.Tries, &i.BegunAt, &i.DoneAt,
			&i.Count, &i.Open, &i.Overdue, &i.Oldest)
		return i, err
	}, `select n, kind, ref, secret_id, version, why, state, note, tries, begun_at, done_at,
			members, standing, overdue, oldest_at from emergency_rotation_item
		where tenant_id = $1 and emergency_id = $2 order by n`, tx.Tenant(), e.ID)
	return e, err
}

func find(ctx context.Context, tx *db.Tx, id string) (Emergency, error) {
	return one(ctx, tx, tx.QueryRow(ctx, "select "+columns+" from emergency_rotation where tenant_id = $1 and id = $2", tx.Tenant(), id))
}

// findOpen is the one that is under way about the same, and for as much or more: who
// says how long ago says it a moment later the next time. What asks for more than that
// is another one.
func findOpen(ctx context.Context, tx *db.Tx, w Wish) (Emergency, error) {
	since := int64(0)
	if !w.Since.IsZero() {
		since = w.Since.UnixMicro()
	}
	return one(ctx, tx, tx.QueryRow(ctx, "select "+columns+` from emergency_rotation
		where tenant_id = $1 and scope = $2 and target = $3 and keep = $4 and coalesce(since, 0) <= $5 and done_at is null order by at limit 1`,
		tx.Tenant(), w.Scope, w.Target, w.Keep, since))
}

func insert(ctx context.Context, tx *db.Tx, e Emergency) error {
	_, err := tx.Exec(ctx, `insert into emergency_rotation (tenant_id, id, scope, target, since, reason, keep, asked_by, at)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9)`, tx.Tenant(), e.ID, e.Scope, e.Target, e.Since, e.Reason, e.Keep, e.By, e.At)
	if err != nil {
		return err
	}
	return insertItems(ctx, tx, e.ID, e.Items)
}

func insertItems(ctx context.Context, tx *db.Tx, id string, items []Item) error {
	for _, i := range items {
		_, err := tx.Exec(ctx, `insert into emergency_rotation_item (tenant_id, emergency_id, n, kind, ref, secret_id, version, why, state, note, members, standing, overdue, oldest_at)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
			tx.Tenant(), id, i.N, i.Kind, i.Ref, i.secret, i.Version, i.Why, i.State, i.Note, i.Count, i.Open, i.Overdue, i.Oldest)
		if err != nil {
			return err
		}
	}
	return nil
}

// planned says that the items are found, and whether nobody has said so before.
func planned(ctx context.Context, tx *db.Tx, id string) (bool, error) {
	n, err := tx.Exec(ctx, `update emergency_rotation set planned_at = $3 where tenant_id = $1 and id = $2 and planned_at is null`, tx.Tenant(), id, tx.Now())
	return n == 1, err
}

// settle stores how far an item is, unless it is done.
func settle(ctx context.Context, tx *db.Tx, id string, i Item, state State, note string) error {
	var done any
	if state == Done {
		done = tx.Now()
	}
	_, err := tx.Exec(ctx, `update emergency_rotation_item set state = $4, note = $5, done_at = $6, tries = tries + 1, begun_at = coalesce(begun_at, $7),
			standing = $8, overdue = $9, oldest_at = $10
		where tenant_id = $1 and emergency_id = $2 and n = $3 and state <> 'done'`,
		tx.Tenant(), id, i.N, state, note, done, tx.Now(), i.Open, i.Overdue, i.Oldest)
	return err
}

func reported(ctx context.Context, tx *db.Tx, e *Emergency) error {
	_, err := tx.Exec(ctx, `update emergency_rotation set event_id = $3, done_at = $4 where tenant_id = $1 and id = $2 and done_at is null`,
		tx.Tenant(), e.ID, e.Event, e.DoneAt)
	return err
}

// unfinished are those of all tenants of which something is not done.
func unfinished(ctx context.Context, tx *db.Tx) ([]db.Place, error) {
	return db.All(ctx, tx, db.ScanPlace, `select tenant_id, id from emergency_rotation where done_at is null order by at limit 100`)
}

func newest(ctx context.Context, tx *db.Tx, limit int) ([]Emergency, error) {
	return db.All(ctx, tx, scan, "select "+columns+" from emergency_rotation where tenant_id = $1 order by at desc, id limit $2", tx.Tenant(), limit)
}
