package job

import (
	"context"
	"time"

	"estover.dev/internal/db"
)

// A row is what all nodes know of a job.
type row struct {
	due, until time.Time
}

func read(ctx context.Context, tx *db.Tx) (map[string]row, error) {
	rows, err := tx.Query(ctx, "select name, due, held_until from job")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[string]row{}
	for rows.Next() {
		var name string
		var r row
		if err := rows.Scan(&name, &r.due, &r.until); err != nil {
			return nil, err
		}
		out[name] = r
	}
	return out, rows.Err()
}

// take makes the node the job's holder, if it is due and nobody else is.
func take(ctx context.Context, tx *db.Tx, name, node string, until time.Time) (bool, error) {
	n, err := tx.Exec(ctx, `insert into job (name, due, holder, held_until) values ($1, $2, $3, $4)
		on conflict (name) do update set holder = excluded.holder, held_until = excluded.held_until
		where job.due <= $2 and job.held_until <= $2`, name, tx.Now(), node, until)
	return n > 0, err
}

// hold moves the end of the lease, if it is still the node's.
func hold(ctx context.Context, tx *db.Tx, name, node string, until time.Time) (bool, error) {
	n, err := tx.Exec(ctx, "update job set held_until = $3 where name = $1 and holder = $2 and held_until > $4", name, node, until, tx.Now())
	return n > 0, err
}

// release ends the leases of a node that is no more.
func release(ctx context.Context, tx *db.Tx, node string) error {
	_, err := tx.Exec(ctx, "update job set held_until = 0 where holder = $1", node)
	return err
}

// giveBack ends the lease, if it is still the node's, and says when the job is
// due again.
func giveBack(ctx context.Context, tx *db.Tx, name, node string, due time.Time) error {
	_, err := tx.Exec(ctx, "update job set due = $3, held_until = 0 where name = $1 and holder = $2", name, node, due)
	return err
}
