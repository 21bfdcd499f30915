package lease_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/lease/leasetest"
	"estover.dev/internal/secret/target"
)

// F5: after a restore nothing is issued before what is there has been compared
// with what is here. Users that nobody knows of are locked, shown, and gone in an
// hour; leases without users end; users of others are left alone.
func TestRestored(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		h, s := setup(t, d)
		stays, lost, forgotten := create(t, h, bot, "reader"), create(t, h, bot, "reader"), create(t, h, bot, "reader")
		s.Drop(lost.User)
		s.Add("somebody_else", "their own")
		err := d.Do(t.Context(), "acme", func(tx *db.Tx) error { // as an older backup has it
			_, err := tx.Exec(t.Context(), "delete from lease where tenant_id = $1 and id = $2", tx.Tenant(), forgotten.ID)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		session, ok := s.LogIn(forgotten.User, forgotten.Values["password"])
		if !ok {
			t.Fatal("the user does not log in")
		}
		if n, err := h.Leases.Restored(t.Context(), ann); err != nil || n != 1 {
			t.Fatalf("%d targets are in doubt, %v; want 1", n, err)
		}
		if _, err := h.Leases.Create(t.Context(), bot, lease.Wish{Role: "reader"}); !errors.Is(err, target.ErrSuspect) {
			t.Errorf("issuing before it is reconciled: %v, want ErrSuspect", err)
		}
		out, err := h.Leases.Reconcile(t.Context(), ann, "main", lease.Comparison{})
		if err != nil || out.Users != 2 || len(out.Strays) != 1 || out.Strays[0].User != forgotten.User || out.Strays[0].LockedAt.IsZero() || out.Lost != 1 {
			t.Fatalf("reconciled %+v, %v", out, err)
		}
		if _, ok := s.LogIn(forgotten.User, forgotten.Values["password"]); ok || s.Open(session) {
			t.Error("a user that nobody knows of can still log in, or is")
		}
		if list, err := h.Leases.Strays(t.Context(), ann, "main"); err != nil || len(list) != 1 {
			t.Errorf("%d strays are shown, %v; want 1", len(list), err)
		}
		create(t, h, bot, "reader")
		work(t, h)
		if x := get(t, h, lost.ID); x.State != lease.Ended {
			t.Errorf("the lease whose user is not there is %s", x.State)
		}
		if _, ok := s.LogIn(stays.User, stays.Values["password"]); !ok || get(t, h, stays.ID).State != lease.Live {
			t.Error("a lease that both sides know of has not stayed")
		}
		for _, c := range []struct {
			advance time.Duration
			there   bool
		}{{59 * time.Minute, true}, {2 * time.Minute, false}} {
			clock.Advance(c.advance)
			if err := h.Leases.DropStrays(t.Context()); err != nil {
				t.Fatal(err)
			}
			there := false
			for _, u := range s.Users() {
				there = there || u == forgotten.User
			}
			if there != c.there {
				t.Errorf("after another %s the stray is there: %v", c.advance, there)
			}
		}
		if list, err := h.Leases.Strays(t.Context(), ann, "main"); err != nil || len(list) != 0 {
			t.Errorf("%d strays are still shown, %v", len(list), err)
		}
		for _, user := range []string{"somebody_else"} {
			if _, ok := s.LogIn(user, secretOf("their own")); !ok {
				t.Errorf("%s, who bears no mark of ours, is gone", user)
			}
		}

		// By hand it is at once.
		s.Add(stays.User+"x", "p")
		if out, err := h.Leases.Reconcile(t.Context(), ann, "main", lease.Comparison{Drop: true}); err != nil || len(out.Strays) != 0 {
			t.Errorf("reconciled %+v, %v", out, err)
		}
		for _, u := range s.Users() {
			if u == stays.User+"x" {
				t.Error("a stray that was to be dropped at once is still there")
			}
		}

		// Another organisation at the same target has a mark of its own.
		h.Add(t, eve, "main", "memory", leasetest.Host)
		before := len(s.Users())
		if out, err := h.Leases.Reconcile(t.Context(), eve, "main", lease.Comparison{Drop: true}); err != nil || out.Users != 0 || len(s.Users()) != before {
			t.Errorf("another organisation finds %+v, %v, and leaves %d of %d users", out, err, len(s.Users()), before)
		}
	})
}

func secretOf(text string) estover.Secret { return estover.NewSecret([]byte(text)) }

// F5 where users cannot be listed: it is said what nobody can see, and until when, and
// nothing is issued before somebody has said that it may be, which is on record.
func TestUnlisted(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		h, s := setup(t, d)
		x := create(t, h, bot, "reader")
		for _, c := range []struct {
			name  string
			whole bool
			fail  func(ctx context.Context, operation, user string, after bool) error
		}{
			{"a target that lists nobody", false, func(_ context.Context, operation, _ string, _ bool) error {
				if operation == "list" {
					return engine.ErrUnsupported
				}
				return nil
			}},
			{"one that finds whole names alone", true, nil},
		} {
			s.Whole, s.Fail = c.whole, c.fail
			began := clock.Now()
			if _, err := h.Leases.Restored(t.Context(), ann); err != nil {
				t.Fatal(err)
			}
			_, err := h.Leases.Reconcile(t.Context(), ann, "main", lease.Comparison{Drop: true})
			var known *estover.Error
			if !errors.Is(err, lease.ErrUnlisted) || !errors.As(err, &known) || !strings.Contains(known.Detail, "estover secret engine reconcile main --unlisted") ||
				!slices.ContainsFunc([]time.Time{began, clock.Now()}, func(at time.Time) bool { // between which there may be a midnight
					return strings.Contains(known.Detail, at.Add(24*time.Hour).UTC().Format("2006-01-02T"))
				}) {
				t.Errorf("%s: %v; want ErrUnlisted, what to do, and until when users may be there", c.name, err)
			}
			if _, err := h.Leases.Create(t.Context(), bot, lease.Wish{Role: "reader"}); !errors.Is(err, target.ErrSuspect) {
				t.Errorf("%s: issuing all the same: %v, want ErrSuspect", c.name, err)
			}
			if _, err := h.Leases.Reconcile(t.Context(), ann, "main", lease.Comparison{Unlisted: true}); !errors.Is(err, lease.ErrInvalid) {
				t.Errorf("%s: without a reason: %v, want ErrInvalid", c.name, err)
			}
			if _, err := h.Leases.Reconcile(t.Context(), eve, "main", lease.Comparison{Unlisted: true, Reason: "mine"}); !errors.Is(err, target.ErrNotFound) {
				t.Errorf("%s: by another organisation: %v, want ErrNotFound", c.name, err)
			}
			out, err := h.Leases.Reconcile(t.Context(), ann, "main", lease.Comparison{Unlisted: true, Reason: "the account was looked at by hand"})
			if err != nil || !strings.Contains(out.Unseen, "nobody has seen") || out.Lost != 0 {
				t.Fatalf("%s: reconciled %+v, %v", c.name, out, err)
			}
			if got := get(t, h, x.ID); got.State != lease.Live {
				t.Errorf("%s: a lease whose user is there is %s", c.name, got.State)
			}
			create(t, h, bot, "reader")
			recorded := false
			for _, e := range h.Told(t, "acme", "target.reconcile") {
				recorded = recorded || e["unlisted"] == true && e["reason"] == "the account was looked at by hand" && e["unseen"] == out.Unseen
			}
			if !recorded {
				t.Errorf("%s: it is not on record that nobody has seen the users", c.name)
			}
		}
	})
}
