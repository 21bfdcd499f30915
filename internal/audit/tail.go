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
// memory only, and is for copies of rows that are loaded afresh anyway.
//
// It goes by the numbers of the rows, which PostgreSQL gives before a
// transaction commits: a number that is left out may still appear, and is
// looked for until no transaction can be that old. What a round costs is in
// proportion to what happened since the last one.
//
// After a round looked is told when it began: whatever was committed before has
// been told by then. Nil is told nothing.
func (l *Log) Tail(ctx context.Context, every time.Duration, fn func(tenant estover.TenantID, touches []string), looked func(at time.Time)) error {
	t := tail{missing: map[int64]time.Time{}}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		begun := time.Now()
		recent, err := t.next(ctx, l.db)
		if err != nil {
			continue // the next round looks for the same
		}
		for _, e := range recent {
			fn(e.tenant, strings.Fields(e.touches))
		}
		if looked != nil {
			looked(begun)
		}
	}
}

// A tail is how far somebody has come who looks at every event.
type tail struct {
	begun   bool
	last    int64               // the highest number that was looked at
	missing map[int64]time.Time // lower ones that were not there, and since when
}

// lateCommit is how long after the instant in its row an event may still
// appear.
const lateCommit = time.Minute

// next reads what has come since the last time. After an error it is as if it
// had not been called.
func (t *tail) next(ctx context.Context, d *db.DB) ([]touched, error) {
	now := d.Now()
	from, end := t.last, int64(0)
	var late, recent []touched
	var numbers []int64
	err := d.View(ctx, "", func(tx *db.Tx) (err error) {
		if !t.begun {
			if from, err = firstTouched(ctx, tx, now.Add(-lateCommit)); err != nil {
				return err
			}
			from--
		}
		if end, err = lastNumber(ctx, tx); err != nil {
			return err
		}
		if recent, err = readTouched(ctx, tx, from, end); err != nil || tx.Engine() == db.SQLite {
			return err // SQLite gives a number when it commits
		}
		if late, err = readTouchedAt(ctx, tx, t.missing); err != nil {
			return err
		}
		numbers, err = readNumbers(ctx, tx, from, end)
		return err
	})
	if err != nil {
		return nil, err
	}
	t.begun, t.last = true, max(from, end)
	for _, e := range late {
		delete(t.missing, e.seq)
	}
	for seq, since := range t.missing {
		if now.Sub(since) > 2*lateCommit {
			delete(t.missing, seq)
		}
	}
	next := from + 1
	for _, n := range numbers {
		for ; next < n; next++ {
			t.missing[next] = now
		}
		next = n + 1
	}
	return append(late, recent...), nil
}
