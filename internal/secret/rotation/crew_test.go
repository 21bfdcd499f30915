package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/rotation"
)

// A yard is a target at which everything hangs until it opens.
type yard struct {
	*memory
	mu      sync.Mutex
	there   map[string]int // by the target
	tenants map[estover.TenantID]int
	all     int
	most    string // what was too many, if anything
	open    chan struct{}
}

func (y *yard) enter(tenant estover.TenantID, target string, by int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.there[string(tenant)+target] += by
	y.tenants[tenant] += by
	if y.all += by; y.there[string(tenant)+target] > 2 || y.tenants[tenant] > 8 || y.all > 32 {
		y.most = fmt.Sprint(y.there, y.tenants, y.all)
	}
}

func (y *yard) waiting() (n int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.all
}

// TestHung: targets that do not answer hold up themselves. Of one target, of one tenant
// and of all there are so many turns, and those who have failed before have some alone,
// so that neither another target of the same tenant nor another tenant waits for them.
func TestHung(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory())
		y := &yard{there: map[string]int{}, tenants: map[estover.TenantID]int{}, open: make(chan struct{})}
		well := newMemory()
		x := rotation.New(rotation.Config{
			Guard: h.guard, Secrets: h.secrets, Node: "node_1", Logger: slog.New(slog.DiscardHandler),
			Target: func(_ context.Context, _ estover.TenantID, name string) (rotation.Target, error) {
				return rotation.Target{ID: name, Name: name}, nil
			},
			Engine: func(ctx context.Context, tenant estover.TenantID, id string) (engine.Engine, error) {
				if !strings.HasPrefix(id, "hung") {
					return well, nil
				}
				y.enter(tenant, id, 1)
				defer y.enter(tenant, id, -1)
				select {
				case <-ctx.Done():
				case <-y.open:
				}
				return nil, engine.ErrUnreachable
			},
		})
		put := func(tenant estover.TenantID, name, target string) {
			t.Helper()
			c := ann
			c.Tenant = tenant
			if _, err := h.secrets.Create(t.Context(), c, secret.Spec{Path: name}); err != nil {
				t.Fatal(err)
			}
			users := []string{name + "_a", name + "_b"}
			spec := rotation.Spec{Target: target, Users: users, Template: engine.Template{"groups": {"readers"}}, Schedule: "30d"}
			if _, err := x.Put(t.Context(), c, name, spec); err != nil {
				t.Fatal(err)
			}
		}
		made := func(tenant estover.TenantID, name string) bool {
			c := ann
			c.Tenant = tenant
			r, err := x.Get(t.Context(), c, name)
			return err == nil && r.Current == 1
		}
		until := func(what string, is func() bool) {
			t.Helper()
			for late := time.Now().Add(time.Minute); !is(); {
				if time.Now().After(late) {
					t.Fatalf("after 20 seconds: not %s; there wait %d", what, y.waiting())
				}
				select {
				case <-t.Context().Done():
				case <-time.After(5 * time.Millisecond):
				}
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var working sync.WaitGroup
		defer working.Wait()
		defer cancel()

		// Of one tenant three hang at a target, and one is at another.
		for n := range 3 {
			put("acme", fmt.Sprint("stuck", n), "hung")
		}
		put("acme", "beside", "well")
		working.Go(func() {
			if err := x.Work(ctx); err != nil {
				t.Error(err)
			}
		})
		until("two hang", func() bool { return y.waiting() == 2 })
		until("the one beside is made", func() bool { return made("acme", "beside") })

		// Another tenant has more that hang than there are turns for it.
		for n := range 10 {
			put("many", fmt.Sprint("stuck", n), fmt.Sprint("hung", n/2))
		}
		until("ten hang", func() bool { return y.waiting() == 10 })
		put("small", "beside", "well")
		until("another tenant's is made", func() bool { return made("small", "beside") })

		// What has hung is over, and hangs when it is tried again.
		close(y.open)
		until("all of them have failed", func() bool {
			n, err := 0, error(nil)
			for _, tenant := range []estover.TenantID{"acme", "many"} {
				c := ann
				c.Tenant = tenant
				list, failed := x.List(t.Context(), c, "stuck", "", 100)
				err = errors.Join(err, failed)
				for _, r := range list {
					if r.LastError != "" {
						n++
					}
				}
			}
			return err == nil && n == 12 // the third at the one target waits for a turn there
		})
		put("many", "beside", "well")
		until("the tenant's own is made", func() bool { return made("many", "beside") })
		if y.most != "" {
			t.Errorf("too many at once: %s", y.most)
		}
	})
}

// TestTurns: of those who have failed the last time only so many are at it, whoever's
// they are, and the others have turns all the same.
func TestTurns(t *testing.T) {
	var c rotation.Crew
	n := 0
	take := func(failed bool) bool {
		n++
		return c.Take(estover.TenantID(fmt.Sprint("tenant", n)), fmt.Sprint("target", n), failed)
	}
	had := 0
	for range 40 {
		if take(true) {
			had++
		}
	}
	well := 0
	for range 40 {
		if take(false) {
			well++
		}
	}
	if had != 16 || well != 16 {
		t.Errorf("of 40 that failed before %d have a turn, and of 40 others %d; want 16 of each", had, well)
	}
}

// TestDueIsFair: whoever has many that have waited for long has one turn before others
// have one, and so has a target among those of its tenant.
func TestDueIsFair(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory())
		waits := time.Hour
		due := func(tenant estover.TenantID, target string, many int) {
			t.Helper()
			c := ann
			c.Tenant = tenant
			for range many {
				s, err := h.secrets.Create(t.Context(), c, secret.Spec{Path: fmt.Sprint("db/", int(waits.Seconds()))})
				if err != nil {
					t.Fatal(err)
				}
				if err := d.Do(t.Context(), tenant, func(tx *db.Tx) error {
					_, err := tx.Exec(t.Context(), `insert into rotation (tenant_id, secret_id, target_id, kind, spec, step, slot, current, next_try_at, created_at, created_by)
						values ($1, $2, $3, 'two_users', '{}', 'idle', 'a', 0, $4, $5, 'user:usr_ann')`, tx.Tenant(), s.ID, target, tx.Now().Add(-waits), tx.Now())
					return err
				}); err != nil {
					t.Fatal(err)
				}
				waits -= time.Second
			}
		}
		due("many", "old", 12)
		due("many", "younger", 5)
		due("many", "youngest", 1)
		due("small", "one", 2)
		got, err := h.x.DueNow(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"many/old", "small/one", "many/younger", "small/one", "many/youngest", "many/old", "many/younger"}
		if len(got) != 8+5+1+2 || !slices.Equal(got[:len(want)], want) { // a target has eight that are looked at
			t.Errorf("what is due has its turns as %q, want %d that begin with %q", got, 8+5+1+2, want)
		}
	})
}
