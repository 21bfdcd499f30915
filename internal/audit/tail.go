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
// event that commits late is found, since the last minute before the round
// that succeeded last is looked at again, however long ago that was.
func (l *Log) Tail(ctx context.Context, every time.Duration, fn func(tenant estover.TenantID, touches []string)) error {
	seen := map[string]time.Time{}
	last := l.db.Now()
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		now := l.db.Now()
		var recent []touched
		err := l.db.View(ctx, "", func(tx *db.Tx) (err error) {
			recent, err = readTouched(ctx, tx, last.Add(-lateCommit))
			return err
		})
		if err != nil {
			continue // the next round looks at the same time again
		}
		last = now
		for _, e := range recent {
			if _, ok := seen[e.id]; !ok {
				fn(e.tenant, strings.Fields(e.touches))
			}
			seen[e.id] = now
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
