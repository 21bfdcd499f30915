package lease_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/engine/mysql"
	"estover.dev/internal/secret/engine/postgres"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/lease/leasetest"
)

// issues is how many credentials a storm issues at a kind of target.
var issues = flag.Int("storm", 1000, "how many credentials a storm issues at a kind of target")

// TestStorm is F1 and F2 at real servers.
func TestStorm(t *testing.T) {
	t.Run("PostgreSQL", func(t *testing.T) {
		server := enginetest.Postgres(t)
		dbtest.Each(t, func(t *testing.T, d *db.DB) {
			rage(t, d, postgres.Kind, server.Config, engine.Template{"groups": {"readers"}}, *issues/2)
		})
	})
	t.Run("MariaDB", func(t *testing.T) {
		rage(t, dbtest.Open(t), mysql.Kind, enginetest.MariaDB(t).Config, engine.Template{"roles": {"readers"}}, *issues)
	})
}

// rage issues n credentials at a target that runs, while nodes crash between any
// two steps and clients hang up at any time. At no moment is there a user that no
// lease knows, and in the end those who are there are those of live leases: F1 and
// F2 of what can go wrong.
func rage(t *testing.T, d *db.DB, kind engine.Kind, config engine.Config, template engine.Template, n int) {
	clock := dbtest.NewClock(d)
	h, admin := leasetest.At(t, d, kind, config, lease.Options{Quota: int64(n) + 1})
	h.Role(t, admin, lease.RoleSpec{Name: "storm", Target: "real", Template: template, Delivery: lease.Plaintext, Resource: "res_db", Action: "read"})
	looker, err := kind.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	defer looker.Close()
	leases := func(f lease.Filter) []lease.Lease {
		t.Helper()
		list, err := h.Leases.List(t.Context(), admin, f, "", 2*n+100)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	mark := leases(lease.Filter{})[0].User[:len("e_12345678_")] // of the round that the role has gone
	users := func() []string {
		t.Helper()
		names, err := looker.List(t.Context(), mark)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		return names
	}

	// The steps before and after which a node dies; nil if it lives on.
	type death struct {
		step  string
		after bool
	}
	deaths := []*death{nil, nil, {"L1", false}, {"L1", true}, {"L2", false}, {"L2", true}, {"L3", false}, {"L3", true}}
	var (
		wait                          sync.WaitGroup
		next, issued, crashed, hungUp atomic.Int64
		handedOut                     sync.Map // the user, by the id of the lease
	)
	for i := range 8 {
		node := h.Another(t, guardtest.AllowAll)
		var dies atomic.Pointer[death]
		node.Leases.Reached(func(step string, done bool) error {
			if at := dies.Load(); at != nil && at.step == step && at.after == done {
				return errCrash
			}
			return nil
		})
		agent := estover.Caller{Tenant: admin.Tenant, Subject: estover.Agent(fmt.Sprint("agt_", i)), Session: fmt.Sprint("ses_", i), Purpose: "storm"}
		wait.Go(func() {
			for int(next.Add(1)) <= n {
				ctx, hangUp := context.WithCancel(context.Background())
				dies.Store(deaths[rand.N(len(deaths))])
				if rand.N(3) == 0 {
					time.AfterFunc(time.Duration(rand.N(15_000))*time.Microsecond, hangUp)
				}
				x, err := node.Leases.Create(ctx, agent, lease.Wish{Role: "storm"})
				hangUp()
				switch {
				case err == nil:
					issued.Add(1)
					handedOut.Store(x.ID, x.User)
				case errors.Is(err, errCrash):
					crashed.Add(1)
				case errors.Is(err, context.Canceled):
					hungUp.Add(1)
				case errors.Is(err, db.ErrUnavailable): // the connection of somebody who has hung up
				default:
					t.Errorf("issuing: %v", err)
				}
			}
		})
	}
	over := make(chan struct{})
	go func() {
		wait.Wait()
		close(over)
	}()
	for storming := true; storming; {
		there := users()
		known := map[string]bool{}
		for _, x := range leases(lease.Filter{Open: true}) {
			known[x.User] = true
		}
		still := users() // of those before, some may have gone together with their leases
		for _, name := range there {
			if !known[name] && slices.Contains(still, name) {
				t.Errorf("in the storm there is %s, whom no lease knows", name)
			}
		}
		select {
		case <-over:
			storming = false
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Logf("%d issued, %d crashes, %d clients hung up", issued.Load(), crashed.Load(), hungUp.Load())
	if issued.Load() == 0 || crashed.Load() == 0 || hungUp.Load() == 0 {
		t.Error("it was no storm")
	}

	clock.Advance(16 * time.Second)
	work := func() {
		t.Helper()
		if err := h.Leases.Work(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	work()
	work()
	var want []string
	for _, x := range leases(lease.Filter{Open: true}) {
		if x.State != lease.Live {
			t.Errorf("long after the storm the lease of %s is %s: %s", x.User, x.State, x.LastError)
		}
		want = append(want, x.User)
	}
	slices.Sort(want)
	there := users()
	if !slices.Equal(there, want) {
		t.Errorf("after the storm there are %d users and %d live leases", len(there), len(want))
	}
	handedOut.Range(func(_, user any) bool {
		if !slices.Contains(there, user.(string)) {
			t.Errorf("the lease of %s was handed out, and its user is not there", user)
		}
		return true
	})
	if _, err := h.Leases.Revoke(t.Context(), admin, lease.Which{All: true}, ""); err != nil {
		t.Fatal(err)
	}
	work()
	if there := users(); len(there) != 0 {
		t.Errorf("after everything was revoked there are %q", there)
	}
}
