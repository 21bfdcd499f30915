package audit

import (
	"errors"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// TestHead shows K5: whoever kept the newest checkpoint finds out that the whole
// database was put back, also if it was written to since; a log that has only grown
// is as it was left.
func TestHead(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, k := t.Context(), newKeys(t)
		l := k.open(d)
		if heads, err := l.Heads(ctx); err != nil || len(heads) != 0 {
			t.Fatalf("before anything happened: %+v, %v", heads, err)
		}
		write(t, l, acme, 1, 300) // more than a tile has
		fatal(t, l.Sequence(ctx, acme))
		old, err := l.Heads(ctx)
		if err != nil || len(old) != 1 || old[0].Tenant != acme {
			t.Fatalf("the heads: %+v, %v; want one", old, err)
		}
		if err := l.Continues(ctx, old[0]); err != nil {
			t.Errorf("a log as it was left: %v", err)
		}
		write(t, l, acme, 301, 700)
		fatal(t, l.Sequence(ctx, acme))
		if err := l.Continues(ctx, old[0]); err != nil {
			t.Errorf("a log that has grown: %v", err)
		}
		heads, err := l.Heads(ctx)
		fatal(t, err)
		newest := heads[0]

		// Another database, with the same beginning, as a copy that was put back has it.
		other := k.open(dbtest.Open(t))
		write(t, other, acme, 1, 300)
		fatal(t, other.Sequence(ctx, acme))
		if err := other.Continues(ctx, newest); !errors.Is(err, ErrBehind) || !strings.Contains(err.Error(), "has 300 entries here, and had 700") {
			t.Errorf("a database that was put back: %v, want ErrBehind", err)
		}
		write(t, other, acme, 1301, 1800) // which goes on, another way
		fatal(t, other.Sequence(ctx, acme))
		if err := other.Continues(ctx, newest); !errors.Is(err, ErrBehind) || !strings.Contains(err.Error(), "went another way") {
			t.Errorf("a database that was put back and written to: %v, want ErrBehind", err)
		}
		if err := l.Continues(ctx, Head{Tenant: acme, Checkpoint: "nothing"}); err == nil || errors.Is(err, ErrBehind) {
			t.Errorf("what is no checkpoint: %v", err)
		}
		if err := l.Continues(ctx, Head{Tenant: "none", Checkpoint: newest.Checkpoint}); !errors.Is(err, ErrBehind) {
			t.Errorf("a log that is gone: %v, want ErrBehind", err)
		}
	})
}

// TestClock shows F6: it is found out that the clock is more than a minute behind the
// newest event.
func TestClock(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, clock := t.Context(), dbtest.NewClock(d)
		l := newKeys(t).open(d)
		if err := l.CheckClock(ctx); err != nil {
			t.Errorf("before anything happened: %v", err)
		}
		e := event(1)
		e.At = clock.Now()
		p, err := l.Prepare(acme, e)
		fatal(t, err)
		fatal(t, d.Append(ctx, db.Append{Tenant: acme, Rows: []db.Row{p.Row()}}))
		for _, c := range []struct {
			move time.Duration
			good bool
		}{{0, true}, {-59 * time.Second, true}, {-2 * time.Second, false}, {-24 * time.Hour, false}, {48 * time.Hour, true}} {
			clock.Advance(c.move)
			if err := l.CheckClock(ctx); (err == nil) != c.good || err != nil && !errors.Is(err, ErrClock) {
				t.Errorf("%s after the newest event: %v, want it good: %v", clock.Now().Sub(e.At), err, c.good)
			}
		}
	})
}
