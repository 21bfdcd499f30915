package redis_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/engine/redis"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/lease/leasetest"
	"estover.dev/internal/secret/target"
)

// A stoppable Redis is one that is stopped and comes back as it was, at the same place.
type stoppable struct{ *enginetest.Server }

func startStoppable(t *testing.T) stoppable {
	t.Helper()
	p := process(true, grants)
	redis, prepare := p.Program, p.Prepare
	p.Program, p.Prepare = "sh", func(s *enginetest.Server) (args, env []string, err error) {
		args, env, err = prepare(s)
		const script = `while :; do "$@"; while [ -e down ]; do sleep 0.02; done; done`
		return append([]string{"-c", script, "sh", redis}, args...), env, err
	}
	s, err := enginetest.Start(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return stoppable{s}
}

// down stops it, until up is called.
func (s stoppable) down(t *testing.T) {
	t.Helper()
	if _, err := s.Write("down", ""); err != nil {
		t.Fatal(err)
	}
	boss := as(s.Server, "boss", admin)
	defer boss.Close()
	_ = boss.ShutdownNoSave(t.Context()) // it hangs up instead of answering
	s.until(t, "it has stopped", func() bool { return boss.Ping(t.Context()).Err() != nil })
}

func (s stoppable) up(t *testing.T) {
	t.Helper()
	if err := os.Remove(filepath.Join(s.Dir, "down")); err != nil {
		t.Fatal(err)
	}
	boss := as(s.Server, "boss", admin)
	defer boss.Close()
	s.until(t, "it is back", func() bool { return boss.Ping(t.Context()).Err() == nil })
}

func (s stoppable) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for nothing: %s", what)
		}
	}
}

// users are those with a mark, by the account of the Redis itself.
func (s stoppable) users(t *testing.T, mark string) (list []string) {
	t.Helper()
	boss := as(s.Server, "boss", admin)
	defer boss.Close()
	all, err := boss.Do(t.Context(), "acl", "users").StringSlice()
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range all {
		if strings.HasPrefix(user, mark) {
			list = append(list, user)
		}
	}
	return list
}

// F8, Q5, Q6: a Redis is stopped for a week, while some of its users are contained and
// others come to the end of their time. None is forgotten: it is an alarm, nothing is
// issued there, and who asks is told why. It comes back with all of its users, whose
// passwords are good again; then they are gone, the alarm is cleared, and it goes on.
// Package lease has the same on every storage engine, with a target in memory.
func TestDownForAWeek(t *testing.T) {
	d := dbtest.Open(t)
	clock := dbtest.NewClock(d)
	s := startStoppable(t)
	h, boss := leasetest.At(t, d, redis.Kind, config(s.Server), lease.Options{})
	h.Role(t, boss, lease.RoleSpec{Name: "reader", Target: "real", Template: rules, Delivery: lease.Plaintext, Resource: "res_cache", Action: "read"})
	const many = 12
	issue := func(i int) (lease.Issued, error) {
		c := estover.Caller{Tenant: boss.Tenant, Subject: estover.Agent(fmt.Sprint("agt_", i%2)), Session: fmt.Sprint("ses_", i), Purpose: "support"}
		return h.Leases.Create(t.Context(), c, lease.Wish{Role: "reader"})
	}
	var made []lease.Issued
	for i := range many {
		x, err := issue(i)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, x)
	}
	mark := made[0].User[:len("e_12345678_")]
	enters := func(x lease.Issued) error {
		c := as(s.Server, string(x.Values["username"].Reveal()), string(x.Values["password"].Reveal()))
		defer c.Close()
		return c.Set(t.Context(), "app:x", "1", 0).Err()
	}
	if users := s.users(t, mark); len(users) != many || enters(made[0]) != nil {
		t.Fatalf("there are %d users, and one logs in with %v", len(users), enters(made[0]))
	}
	work := func() {
		t.Helper()
		if err := h.Leases.MarkDue(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := h.Leases.Work(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	open := func(f lease.Filter) []lease.Lease {
		t.Helper()
		f.Open = true
		all, err := h.Leases.List(t.Context(), boss, f, "", 100)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}

	s.down(t)
	if _, err := h.Leases.Revoke(t.Context(), boss, lease.Which{Agent: "agt_0"}, "it is contained"); err != nil {
		t.Fatal(err)
	}
	for day := range 14 { // of half a day
		work()
		if _, err := issue(0); day == 0 && !errors.Is(err, target.ErrUnreachable) || day > 0 && !errors.Is(err, lease.ErrOverdue) {
			t.Errorf("issuing on the day %d: %v, want ErrUnreachable, and ErrOverdue later", day/2, err)
		}
		clock.Advance(12 * time.Hour)
	}
	work()
	if err := h.Leases.Alarm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(h.Told(t, boss.Tenant, "lease.overdue")); n != 1 {
		t.Errorf("%d alarms, want 1 for the target", n)
	}
	if late := open(lease.Filter{Overdue: true}); len(late) != many || late[0].LastError == "" || late[0].Attempts == 0 {
		t.Errorf("after a week %d leases are overdue, want %d that say why: %+v", len(late), many, late)
	}
	if _, err := issue(0); !errors.Is(err, lease.ErrOverdue) {
		t.Errorf("issuing after a week: %v, want ErrOverdue", err)
	}

	s.up(t)
	if users := s.users(t, mark); len(users) != many || enters(made[1]) != nil {
		t.Fatalf("it has come back with %d users, and one logs in with %v; want it as it was", len(users), enters(made[1]))
	}
	clock.Advance(10 * time.Minute) // whatever the back-off had grown to
	for range 20 {
		if work(); len(open(lease.Filter{})) == 0 {
			break
		}
		clock.Advance(time.Minute)
	}
	if left, users := open(lease.Filter{}), s.users(t, mark); len(left) != 0 || len(users) != 0 {
		t.Errorf("after its return %d leases and the users %v are left", len(left), users)
	}
	for _, x := range made {
		if err := enters(x); err == nil {
			t.Errorf("the user %s logs in", x.User)
		}
	}
	cleared := 0
	for _, detail := range h.Told(t, boss.Tenant, "lease.end") {
		if detail["overdue_cleared"] == true {
			cleared++
		}
	}
	if err := h.Leases.Alarm(t.Context()); err != nil || cleared != 1 || len(h.Told(t, boss.Tenant, "lease.overdue")) != 1 {
		t.Errorf("the alarm is cleared by %d events, want 1, and not raised again: %v", cleared, err)
	}
	if x, err := issue(0); err != nil || enters(x) != nil {
		t.Errorf("issuing after its return: %v", err)
	}
}
