package audit

import (
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// Of an event whose id follows from what it is about there is one, however many
// write it at once and together with others.
func TestOnceID(t *testing.T) {
	if a, b := OnceID("a", "bc"), OnceID("ab", "c"); a == b || a != OnceID("a", "bc") || len(a) != len(NewID()) {
		t.Errorf("the ids are %s and %s", a, b)
	}
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		const each, ids = 16, 4
		var won [ids]atomic.Int64
		var wg sync.WaitGroup
		for i := range each * ids {
			wg.Go(func() {
				e := event(1000 + i)
				e.ID, e.Touches = OnceID("use", strconv.Itoa(i%ids)), []string{"use:1"}
				beside, failed := l.Prepare(acme, event(i+1))
				once, err := l.Prepare(acme, e)
				if err != nil || failed != nil {
					t.Error(err, failed)
					return
				}
				if d.Append(t.Context(), db.Append{Tenant: acme, Rows: []db.Row{beside.Row(), once.Row()}}) == nil {
					won[i%ids].Add(1)
				}
			})
		}
		wg.Wait()
		for n := range won {
			if won[n].Load() != 1 {
				t.Errorf("%d of %d have written the event %d", won[n].Load(), each, n)
			}
		}
		var all []string
		fatal(t, d.View(t.Context(), acme, func(tx *db.Tx) error {
			page, _, err := l.List(t.Context(), tx, Filter{}, 0, 500)
			for _, e := range page {
				all = append(all, e.ID)
			}
			return err
		}))
		if slices.Sort(all); len(all) != 2*ids || len(slices.Compact(all)) != 2*ids {
			t.Errorf("the log has the events %q, want %d", all, 2*ids)
		}
	})
}
