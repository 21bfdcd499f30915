package session_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

// What an agent has in a session that is renewed lives on with it, and no
// session grows older than a day.
func TestRenew(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot, other := w.Agent("bot"), w.Agent("other")
		s, err := w.Sessions.Open(t.Context(), bot.Caller(), session.Wish{Agent: bot.ID, Life: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if w.Ask(bot, "session", s.ID).Token() == "" {
			t.Fatal("no token in an open session")
		}
		clock.Advance(50 * time.Minute)
		for what, c := range map[string]struct {
			by   estover.Caller
			life time.Duration
			want error
		}{
			"by another agent": {other.Caller(), time.Hour, session.ErrNotFound},
			"for less":         {bot.Caller(), time.Minute, session.ErrInvalid},
			"for two days":     {bot.Caller(), 48 * time.Hour, session.ErrInvalid},
			"backwards":        {bot.Caller(), -time.Hour, session.ErrInvalid},
			"another tenant's": {estover.Caller{Tenant: "acme", Subject: admin.Subject}, time.Hour, session.ErrNotFound},
		} {
			if _, err := w.Sessions.Renew(t.Context(), c.by, s.ID, c.life); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", what, err, c.want)
			}
		}
		renewed, err := w.Sessions.Renew(t.Context(), bot.Caller(), s.ID, 2*time.Hour)
		if err != nil || renewed.ExpiresAt.Sub(s.OpenedAt) < 170*time.Minute-time.Second {
			t.Fatalf("renewed it lives until %s, %v; want two hours from now", renewed.ExpiresAt, err)
		}
		clock.Advance(time.Hour) // past its first end
		if n, err := w.Sessions.ExpireDue(t.Context()); n != 0 || err != nil {
			t.Errorf("the sweep ended %d, %v; want none", n, err)
		}
		a := w.Ask(bot, "session", s.ID)
		if a.Token() == "" || !w.Live(bot, a.Token()) || a.JSON["expires_in"].(float64) < 899 {
			t.Errorf("a token after the first end: %d %s, want one for 15 minutes", a.Status, a.Body)
		}
		clock.Advance(time.Hour - 20*time.Second) // 10 minutes and some before the second
		if got, err := w.Sessions.Renew(t.Context(), bot.Caller(), s.ID, session.LongestLife); err != nil || !got.ExpiresAt.Equal(s.OpenedAt.Add(session.LongestLife)) {
			t.Errorf("renewed for a day it ends at %s, %v; want a day after %s", got.ExpiresAt, err, s.OpenedAt)
		}
		if _, err := w.Sessions.Renew(t.Context(), bot.Caller(), s.ID, session.LongestLife); !errors.Is(err, session.ErrLimit) {
			t.Errorf("renewed beyond a day: %v, want ErrLimit", err)
		}
		clock.Advance(session.LongestLife)
		if _, err := w.Sessions.Renew(t.Context(), bot.Caller(), s.ID, 0); !errors.Is(err, session.ErrEnded) {
			t.Errorf("renewed after its end: %v, want ErrEnded", err)
		}
	})
}

// A session is not renewed and ended at once: whichever comes first, it is over
// when it was ended.
func TestRenewAndEndRace(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		s, err := w.Sessions.Open(t.Context(), bot.Caller(), session.Wish{Agent: bot.ID, Life: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var ended atomic.Int64
		for i := range 64 {
			wg.Go(func() {
				if i%8 == 0 {
					if w.Sessions.End(t.Context(), admin, s.ID, "done") == nil {
						ended.Add(1)
					}
					return
				}
				_, err := w.Sessions.Renew(t.Context(), bot.Caller(), s.ID, 2*time.Hour+time.Duration(i)*time.Minute)
				if err != nil && estover.KindOf(err) != estover.Conflict && estover.KindOf(err) != estover.Invalid {
					t.Errorf("renewing: %v", err)
				}
			})
		}
		wg.Wait()
		if n := ended.Load(); n != 1 {
			t.Errorf("the session was ended %d times, want once", n)
		}
		if _, err := w.Sessions.Live(t.Context(), estover.DefaultTenant, s.ID); !errors.Is(err, session.ErrEnded) {
			t.Errorf("the session after its end: %v, want ErrEnded", err)
		}
	})
}

// A session of which nothing is heard ends, and one that is used does not. The
// heartbeat leaves nothing in the log.
func TestIdle(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot, other := w.Agent("bot"), w.Agent("other")
		open := func(idle time.Duration) session.Session {
			t.Helper()
			s, err := w.Sessions.Open(t.Context(), bot.Caller(), session.Wish{Agent: bot.ID, Idle: idle})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		for _, idle := range []time.Duration{time.Second, -time.Minute, 25 * time.Hour, 90*time.Second + time.Millisecond} {
			if _, err := w.Sessions.Open(t.Context(), bot.Caller(), session.Wish{Agent: bot.ID, Idle: idle}); !errors.Is(err, session.ErrInvalid) {
				t.Errorf("an idle time of %s: %v, want ErrInvalid", idle, err)
			}
		}
		beaten, called, left, patient := open(time.Minute), open(time.Minute), open(time.Minute), open(0)
		raw := w.Ask(bot, "session", left.ID).Token()
		events := count(t, d, "select count(*) from audit")
		for range 4 {
			clock.Advance(50 * time.Second)
			if got, err := w.Sessions.Beat(t.Context(), bot.Caller(), beaten.ID); err != nil || got.State != session.Open || got.SeenAt.Before(beaten.OpenedAt) {
				t.Fatalf("a heartbeat: %+v, %v", got, err)
			}
			w.Sessions.Seen(estover.DefaultTenant, called.ID, time.Minute)
			if _, err := w.Sessions.ExpireDue(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		state := func(id string) (session.State, string) {
			t.Helper()
			got, err := w.Sessions.Get(t.Context(), admin, id)
			if err != nil {
				t.Fatal(err)
			}
			return got.State, got.EndCause
		}
		for what, c := range map[string]struct {
			id    string
			state session.State
			cause string
		}{
			"that beats": {beaten.ID, session.Open, ""}, "that calls": {called.ID, session.Open, ""},
			"without an idle time": {patient.ID, session.Open, ""}, "that is left": {left.ID, session.Ended, "idle"},
		} {
			if state, cause := state(c.id); state != c.state || cause != c.cause {
				t.Errorf("a session %s is %s (%s), want %s (%s)", what, state, cause, c.state, c.cause)
			}
		}
		if w.Live(bot, raw) {
			t.Error("the token of a session that was left is active")
		}
		if n := count(t, d, "select count(*) from audit") - events; n != 1 {
			t.Errorf("there are %d more events, want the end of one session alone", n)
		}
		if _, err := w.Sessions.Beat(t.Context(), other.Caller(), beaten.ID); !errors.Is(err, session.ErrNotFound) {
			t.Errorf("a heartbeat by another agent: %v, want ErrNotFound", err)
		}
		if got, err := w.Sessions.Beat(t.Context(), bot.Caller(), left.ID); err != nil || got.State != session.Ended || got.EndCause != "idle" {
			t.Errorf("a heartbeat of a session that has ended: %+v, %v; want to hear of its end", got, err)
		}
		if got, err := w.Sessions.Get(t.Context(), admin, beaten.ID); err != nil || got.SeenAt.Sub(beaten.OpenedAt) < 190*time.Second {
			t.Errorf("it was last used %s after its opening, %v", got.SeenAt.Sub(beaten.OpenedAt), err)
		}
	})
}

// Who works in a session within another uses both.
func TestIdleWithin(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot := w.Agent("bot")
		root, err := w.Sessions.Open(t.Context(), admin, session.Wish{Agent: bot.ID, Idle: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		child, err := w.Sessions.Open(t.Context(), admin, session.Wish{Agent: bot.ID, Parent: root.ID})
		if err != nil || child.IdleSecs != 60 {
			t.Fatalf("within a session that may be idle for a minute: %+v, %v", child, err)
		}
		for range 3 {
			clock.Advance(50 * time.Second)
			if _, err := w.Sessions.Beat(t.Context(), admin, child.ID); err != nil {
				t.Fatal(err)
			}
			if n, err := w.Sessions.ExpireDue(t.Context()); n != 0 || err != nil {
				t.Fatalf("%d sessions ended, %v, while somebody works in the inner one", n, err)
			}
		}
		clock.Advance(2 * time.Minute)
		if n, err := w.Sessions.ExpireDue(t.Context()); err != nil || n == 0 || count(t, d, "select count(*) from session where ended_at is null") != 0 {
			t.Errorf("when nobody works any more %d ended, %v; want both", n, err)
		}
	})
}

// A node that has just started does not end what it could not hear of.
func TestIdleAfterAStart(t *testing.T) {
	d := dbtest.Open(t)
	w := oauthtest.New(t, d)
	clock := dbtest.NewClock(d)
	bot := w.Agent("bot")
	s, err := w.Sessions.Open(t.Context(), bot.Caller(), session.Wish{Agent: bot.ID, Idle: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	clock.Advance(10 * time.Minute) // there was no server
	started := session.New(w.Guard, w.Sessions.Config)
	if n, err := started.ExpireDue(t.Context()); n != 0 || err != nil {
		t.Errorf("just after its start a node ended %d sessions, %v", n, err)
	}
	if _, err := started.Beat(t.Context(), bot.Caller(), s.ID); err != nil {
		t.Fatal(err)
	}
	clock.Advance(31 * time.Second)
	if n, err := started.ExpireDue(t.Context()); n != 0 || err != nil {
		t.Errorf("a session that was heard of again: %d ended, %v", n, err)
	}
	clock.Advance(time.Minute)
	if n, err := started.ExpireDue(t.Context()); n != 1 || err != nil {
		t.Errorf("a session that is left: %d ended, %v; want 1", n, err)
	}
}

// Sessions within a session are for its purpose, live no longer, and end with it
// in one transaction, however deep they are.
func TestWithin(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, helper, stranger := w.Agent("bot"), w.Agent("helper"), w.AgentFor("stranger", "support")
		root, err := w.Sessions.Open(t.Context(), bot.Caller(), session.Wish{Agent: bot.ID, Purpose: "billing", Life: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		// What another has handed on is done in the session in which it began.
		handed := helper.Caller()
		handed.Subject, handed.Actors, handed.Session = estover.Agent(bot.ID), []estover.Subject{estover.Agent(helper.ID)}, root.ID
		child, err := w.Sessions.Open(t.Context(), handed, session.Wish{Agent: helper.ID})
		if err != nil || child.Parent != root.ID || child.Purpose != "billing" || child.ExpiresAt.After(root.ExpiresAt) {
			t.Fatalf("a session for what was handed on: %+v, %v; want one within %s", child, err, root.ID)
		}
		chain := []string{root.ID, child.ID}
		for range 3 {
			next, err := w.Sessions.Open(t.Context(), admin, session.Wish{Agent: helper.ID, Parent: chain[len(chain)-1], Life: 12 * time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			chain = append(chain, next.ID)
		}
		gone := handed
		gone.Session = "ses_none"
		for what, c := range map[string]struct {
			by   estover.Caller
			wish session.Wish
			want error
		}{
			"too deep":                  {admin, session.Wish{Agent: helper.ID, Parent: chain[4]}, session.ErrDeep},
			"another purpose":           {handed, session.Wish{Agent: helper.ID, Purpose: "support"}, session.ErrParent},
			"not the agent's purpose":   {admin, session.Wish{Agent: stranger.ID, Parent: root.ID}, session.ErrPurpose},
			"within a stranger's":       {stranger.Caller(), session.Wish{Agent: stranger.ID, Parent: root.ID}, session.ErrParent},
			"within one that is not":    {admin, session.Wish{Agent: helper.ID, Parent: "ses_none"}, session.ErrParent},
			"in a session that is gone": {gone, session.Wish{Agent: helper.ID}, session.ErrNotFound},
			"from another tenant":       {estover.Caller{Tenant: "acme", Subject: admin.Subject}, session.Wish{Agent: helper.ID, Parent: root.ID}, token.ErrNoClient},
		} {
			if _, err := w.Sessions.Open(t.Context(), c.by, c.wish); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", what, err, c.want)
			}
		}
		if _, err := w.Sessions.Renew(t.Context(), admin, child.ID, 4*time.Hour); !errors.Is(err, session.ErrLimit) {
			t.Errorf("renewed beyond its parent: %v, want ErrLimit", err)
		}
		raw := w.Ask(helper, "session", chain[4], "purpose", "billing").Token()
		if !w.Live(helper, raw) {
			t.Fatal("no token in the innermost session")
		}
		if err := w.Sessions.End(t.Context(), admin, root.ID, "done"); err != nil {
			t.Fatal(err)
		}
		if w.Live(helper, raw) {
			t.Error("the token of the innermost session is active after the end of the outermost")
		}
		for _, id := range chain[1:] {
			got, err := w.Sessions.Get(t.Context(), admin, id)
			if err != nil || got.State != session.Ended || got.EndCause != "the session that it was a part of has ended" {
				t.Errorf("%s is %s (%s), %v", id, got.State, got.EndCause, err)
			}
		}
		if n := count(t, d, "select count(distinct ended_at) from session where ended_at is not null"); n != 1 {
			t.Errorf("they ended at %d instants, want one", n)
		}
		if _, err := w.Sessions.Open(t.Context(), handed, session.Wish{Agent: helper.ID}); !errors.Is(err, session.ErrEnded) {
			t.Errorf("opened within one that has ended: %v, want ErrEnded", err)
		}
	})
}

// No session is opened within one that ends at the same time, and lives on.
func TestWithinAndEndRace(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		for range 4 {
			root, err := w.Sessions.Open(t.Context(), admin, session.Wish{Agent: bot.ID})
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for i := range 64 {
				wg.Go(func() {
					if i == 32 {
						if err := w.Sessions.End(t.Context(), admin, root.ID, "done"); err != nil {
							t.Error(err)
						}
						return
					}
					if _, err := w.Sessions.Open(t.Context(), admin, session.Wish{Agent: bot.ID, Parent: root.ID}); err != nil && !errors.Is(err, session.ErrEnded) {
						t.Errorf("opening within: %v", err)
					}
				})
			}
			wg.Wait()
		}
		if n := count(t, d, "select count(*) from session where ended_at is null"); n != 0 {
			t.Errorf("%d sessions go on without the one that they were a part of", n)
		}
	})
}

// What a launcher says of how the session is bound is kept with it.
func TestBound(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		const sum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
		s, err := w.Sessions.Open(t.Context(), bot.Caller(), session.Wish{Agent: bot.ID, Bound: session.ByProcess, Program: sum})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := w.Sessions.Get(t.Context(), admin, s.ID); err != nil || got.Bound != session.ByProcess || got.Program != sum {
			t.Errorf("it is bound to %s of %s, %v", got.Bound, got.Program, err)
		}
		if s, err := w.Sessions.Open(t.Context(), bot.Caller(), session.Wish{Agent: bot.ID}); err != nil || s.Bound != session.ByNothing {
			t.Errorf("a session whose launcher says nothing is bound to %s, %v", s.Bound, err)
		}
		for _, wish := range []session.Wish{{Agent: bot.ID, Bound: "host"}, {Agent: bot.ID, Program: "abc"}, {Agent: bot.ID, Program: sum[2:]}} {
			if _, err := w.Sessions.Open(t.Context(), bot.Caller(), wish); !errors.Is(err, session.ErrInvalid) {
				t.Errorf("%+v: %v, want ErrInvalid", wish, err)
			}
		}
	})
}

// An agent whose own time is over keeps nothing in the sessions of others: that is
// ended once, with an event, and not again; and what ended it may fail the first time,
// and for one of them for ever.
func TestLapse(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		has := map[string]bool{"agt_late": true, "agt_never": true}
		broken, lapsed := true, []string{}
		config := w.Sessions.Config
		config.Expired = func(context.Context, *db.Tx, time.Time) ([]session.AgentOf, error) {
			return []session.AgentOf{{Tenant: estover.DefaultTenant, Agent: "agt_never"}, {Tenant: estover.DefaultTenant, Agent: "agt_late"}, {Tenant: estover.DefaultTenant, Agent: "agt_empty"}}, nil
		}
		config.Left = func(_ context.Context, _ *db.Tx, agent string) (bool, error) { return has[agent], nil }
		config.Lapse = func(_ context.Context, _ *guard.Tx, agent, cause string) error {
			if broken || agent == "agt_never" {
				return errors.New("a test of " + agent)
			}
			lapsed = append(lapsed, agent+": "+cause)
			delete(has, agent)
			return nil
		}
		sessions := session.New(w.Guard, config)
		if _, err := sessions.ExpireDue(t.Context()); err == nil || !has["agt_late"] {
			t.Errorf("when it fails: %v", err)
		}
		broken = false
		for range 3 {
			if _, err := sessions.ExpireDue(t.Context()); err == nil || !strings.Contains(err.Error(), "agt_never") || strings.Contains(err.Error(), "agt_late") {
				t.Errorf("with one whose end fails: %v", err)
			}
		}
		if len(lapsed) != 1 || !strings.HasPrefix(lapsed[0], "agt_late: ") {
			t.Errorf("ended were %q, want what one agent had, once", lapsed)
		}
	})
}
