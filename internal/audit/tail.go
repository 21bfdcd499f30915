package audit

import (
	"context"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

// Tail calls fn with what each event from now on has touched, whoever wrote
// it, until ctx is done. It looks every so often, remembers its place in
// memory only, and is for copies of rows that are loaded afresh anyway: an
// event that commits late is found, since the last minute is looked at again.
func (l *Log) Tail(ctx context.Context, every time.Duration, fn func(tenant estover.TenantID, touches []string)) error {
	seen := map[string]time.Time{}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		now := l.db.Now()
		type touched struct {
			tenant  estover.TenantID
			id      string
			touches string
		}
		var fresh []touched
		err := l.db.View(ctx, "", func(tx *db.Tx) error {
			rows, err := tx.Query(ctx, "select tenant_id, id, touches from audit where touched_at >= $1", now.Add(-lateCommit))
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var e touched
				if err := rows.Scan(&e.tenant, &e.id, &e.touches); err != nil {
					return err
				}
				if _, ok := seen[e.id]; !ok {
					fresh = append(fresh, e)
				}
			}
			return rows.Err()
		})
		if err != nil {
			continue // the next round looks at the same time again
		}
		for _, e := range fresh {
			seen[e.id] = now
			fn(e.tenant, strings.Split(e.touches, " "))
		}
		for id, at := range seen {
			if now.Sub(at) > 2*lateCommit {
				delete(seen, id)
			}
		}
	}
}

// lateCommit is how long after the instant in its row an event may still
// appear.
const lateCommit = time.Minute
