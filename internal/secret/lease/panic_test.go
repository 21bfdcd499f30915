package lease_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/lease/leasetest"
)

// TestPanics: a client's library that panics at what a target says ends neither the
// process nor the worker. It is an error of the lease, which is tried again, and the log
// says where it was without saying with what.
func TestPanics(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		s := &leasetest.Server{Now: clock.Now}
		var log bytes.Buffer
		h := leasetest.New(t, d, guardtest.AllowAll, lease.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, s.Kind())
		h.Role(t, ann, lease.RoleSpec{Name: "reader", Delivery: lease.Plaintext, Resource: "res_db", Action: "read"})
		x := create(t, h, in("agt_bot", "ses_1"), "reader")
		s.Fail = func(context.Context, string, string, bool) error { panic("makeslice: hunter2 out of range") }
		if _, err := h.Leases.Create(t.Context(), in("agt_bot", "ses_1"), lease.Wish{Role: "reader"}); err == nil {
			t.Error("a lease was made by an engine that panics")
		}
		revoke(t, h, lease.Which{All: true})
		work(t, h)
		got := get(t, h, x.ID)
		if !strings.Contains(got.LastError, "panicked") || strings.Contains(got.LastError, "hunter2") {
			t.Errorf("an engine that panics: %s, last error %q; want where, and not with what", got.State, got.LastError)
		}
		if strings.Contains(log.String(), "hunter2") {
			t.Errorf("the log says with what: %s", log.String())
		}
		s.Fail = nil
		for range 10 {
			clock.Advance(time.Hour)
			work(t, h)
		}
		if users := s.Users(); len(users) != 0 {
			t.Errorf("once it no longer panics there are still %v", users)
		}
	})
}
