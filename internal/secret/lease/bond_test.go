package lease_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/lease/leasetest"
)

// L7: a lease ends with the grant that it was made on and with what its token came
// from, and no other does; it is not made on what has ended since policy was asked.
func TestBonds(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		s := &leasetest.Server{Now: clock.Now}
		on, gone := lease.Grant{ID: "grt_1"}, error(nil)
		h := leasetest.New(t, d, guardtest.AllowAll, lease.Options{
			Grant: func(context.Context, estover.Caller, string, string) (lease.Grant, error) { return on, nil },
			Token: func(context.Context, *db.Tx, estover.Caller) error { return gone },
		}, s.Kind())
		h.Role(t, ann, lease.RoleSpec{Name: "reader", Delivery: lease.Plaintext, Resource: "res_db", Action: "read"})
		h.Role(t, ann, lease.RoleSpec{Name: "bound", Delivery: lease.Plaintext, Resource: "res_db", Action: "read", Bind: lease.ToToken})
		held := bot
		held.Grant, held.Until = "ogr_1", clock.Now().Add(10*time.Minute)
		person := estover.Caller{Tenant: "acme", Subject: estover.User("usr_bob"), Roles: []estover.Role{estover.Admin}, Grant: "ptk_1", Purpose: "a look"}
		reads, bound, theirs := create(t, h, held, "reader"), create(t, h, held, "bound"), create(t, h, person, "reader")
		if bound.ExpiresBy != "token" || !bound.ExpiresAt.Equal(held.Until.UTC().Truncate(time.Microsecond)) || bound.Token != "tok_1" || reads.ExpiresBy != "ttl" {
			t.Errorf("bound to a token it ends at %s by %s, and to a session by %s", bound.ExpiresAt, bound.ExpiresBy, reads.ExpiresBy)
		}
		live := func(want ...string) {
			t.Helper()
			var have []string
			for _, x := range all(t, h, lease.Filter{State: lease.Live}) {
				have = append(have, x.ID)
			}
			slices.Sort(have)
			slices.Sort(want)
			if !slices.Equal(have, want) {
				t.Errorf("the leases %v are live, want %v", have, want)
			}
		}
		tokens := func(ids ...string) {
			within(t, h, func(tx *guard.Tx) (int, error) { return h.Leases.EndOfTokens(t.Context(), tx, ids) })
		}
		tokens("tok_2", "ogr_2", "ptk_2", "")
		live(reads.ID, bound.ID, theirs.ID)
		tokens("ogr_1")
		live(reads.ID, theirs.ID)
		tokens("ptk_1")
		live(reads.ID)
		within(t, h, func(tx *guard.Tx) (int, error) {
			return h.Leases.EndOfGrants(t.Context(), tx, []string{"grt_2", "grt_1"})
		})
		live()
		if x := get(t, h, reads.ID); x.Cause != lease.WithGrant || x.Priority != 2 {
			t.Errorf("it ended for %s of priority %d, want its grant", x.Cause, x.Priority)
		}
		on.Rows = []db.Epoch{{Table: "secret_target", ID: reads.Target, Epoch: 99}} // as one that has been raised
		if _, err := h.Leases.Create(t.Context(), held, lease.Wish{Role: "reader"}); !errors.Is(err, lease.ErrGrant) {
			t.Errorf("a lease on a grant that has just ended: %v, want ErrGrant", err)
		}
		on.Rows, gone = nil, errors.New("the token was revoked")
		if _, err := h.Leases.Create(t.Context(), held, lease.Wish{Role: "bound"}); !errors.Is(err, gone) {
			t.Errorf("a lease with a token that has just been revoked: %v", err)
		}
		live()
	})
}

// L7: however many ask for leases on a grant while it ends, none is left on it: either
// the end finds the lease, or the lease finds the end.
func TestGrantEndsMeanwhile(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		s := &leasetest.Server{Now: clock.Now}
		on := lease.Grant{ID: "grt_1"}
		h := leasetest.New(t, d, guardtest.AllowAll, lease.Options{
			Grant: func(context.Context, estover.Caller, string, string) (lease.Grant, error) { return on, nil },
		}, s.Kind())
		h.Role(t, ann, lease.RoleSpec{Name: "reader", Delivery: lease.Plaintext, Resource: "res_db", Action: "read"})
		// Whatever has an epoch and an end stands for the grant.
		if err := d.Do(t.Context(), "acme", func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `insert into lease_role (tenant_id, name, id, target_id, template, resource_id, action, ttl_s, max_ttl_s, delivery, bind, shared,
					per_minute, description, created_at, created_by, updated_at, epoch)
				values ($1, 'stands for a grant', 'grt_1', '', '{}', '', '', 1, 1, 'handle', 'session', $2, 1, '', 0, '', 0, 1)`, tx.Tenant(), false)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		on.Rows = []db.Epoch{{Table: "lease_role", ID: "grt_1", Epoch: 1}}
		var asking sync.WaitGroup
		var made, late atomic.Int64
		some := make(chan struct{}, 64)
		for i := range 64 {
			asking.Go(func() {
				_, err := h.Leases.Create(t.Context(), in(fmt.Sprint("agt_", i), fmt.Sprint("ses_", i)), lease.Wish{Role: "reader"})
				some <- struct{}{}
				switch {
				case err == nil:
					made.Add(1)
				case errors.Is(err, lease.ErrGrant), errors.Is(err, lease.ErrEnded):
					late.Add(1)
				default:
					t.Errorf("asking while the grant ends: %v", err)
				}
			})
		}
		<-some // one has been answered, and others are under way
		within(t, h, func(tx *guard.Tx) (int, error) {
			if _, err := tx.Exec(t.Context(), `update lease_role set ended_at = $2, epoch = epoch + 1 where tenant_id = $1 and id = 'grt_1'`, tx.Tenant(), tx.Now()); err != nil {
				return 0, err
			}
			return h.Leases.EndOfGrants(t.Context(), tx, []string{"grt_1"})
		})
		asking.Wait()
		if left := all(t, h, lease.Filter{State: lease.Live}); len(left) != 0 {
			t.Errorf("of %d that were made and %d that came too late %d are live on a grant that has ended", made.Load(), late.Load(), len(left))
		}
		work(t, h)
		if names := s.Users(); len(names) != 0 {
			t.Errorf("users are left: %v", names)
		}
	})
}

// H4: what was handed out is recognised by its value, after its end as well, by whoever
// may list leases, and in its own tenant alone.
func TestIdentify(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, _ := setup(t, d)
		x := create(t, h, bot, "reader")
		in := create(t, h, bot, "writer")
		used, err := h.Leases.Use(t.Context(), bot, "res_db", "writer", "password")
		if err != nil {
			t.Fatal(err)
		}
		revoke(t, h, lease.Which{ID: x.ID})
		work(t, h)
		find := func(c estover.Caller, v estover.Secret) []lease.Sighting {
			t.Helper()
			list, err := h.Leases.Identify(t.Context(), c, v)
			if err != nil {
				t.Fatal(err)
			}
			return list
		}
		if list := find(ann, x.Values["password"]); len(list) != 1 || list[0] != (lease.Sighting{Lease: x.ID, Field: "password"}) {
			t.Errorf("the password of %s is recognised as %v", x.ID, list)
		}
		if list := find(ann, used.Value); len(list) != 1 || list[0].Lease != used.Lease {
			t.Errorf("what the gateway opens of %s is recognised as %v", in.ID, list)
		}
		if list := find(eve, x.Values["password"]); len(list) != 0 {
			t.Errorf("in another tenant it is recognised as %v", list)
		}
		if list := find(ann, estover.NewSecret([]byte("nobody's own"))); len(list) != 0 {
			t.Errorf("a value of nobody is recognised as %v", list)
		}
	})
}
