package session_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

// A target is a system elsewhere in which something belongs to sessions.
type target struct {
	mu    sync.Mutex
	holds map[string]bool
	fail  func() (before, after error) // it, before its effect and after; nil for never
	calls int
}

func (x *target) add(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.holds == nil {
		x.holds = map[string]bool{}
	}
	x.holds[id] = true
}

func (x *target) has(id string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.holds[id]
}

func (x *target) end(id string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.calls++
	var before, after error
	if x.fail != nil {
		before, after = x.fail()
	}
	if before == nil {
		delete(x.holds, id)
	}
	return errors.Join(before, after)
}

var errTarget = errors.New("the target does not answer")

// What is kept elsewhere ends after the commit, and again until it succeeds:
// whether the target fails before its effect or after it, and whether the node
// dies before, during or after the step. Nothing is done for a session that goes
// on, and what is done is done for the last time.
func TestWhatFollowsTheEnd(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot := w.Agent("bot")
		var x target
		node := func(part session.Part) *session.Sessions {
			part.Name = "users"
			return session.New(w.Guard, w.Sessions.Config, session.Part{Name: "grants", End: token.EndSessions}, part)
		}
		doomed := w.Sessions.Config
		doomed.Node = "doomed"
		after := session.Part{After: func(_ context.Context, tenant estover.TenantID, id string) error {
			if tenant != estover.DefaultTenant {
				return fmt.Errorf("asked for the tenant %q", tenant)
			}
			return x.end(id)
		}}
		died := errors.New("the node is gone")
		for what, c := range map[string]struct {
			fail  func() (before, after error)
			crash bool // the node dies with the step in its hands
		}{
			"nothing fails":                  {nil, false},
			"it fails before its effect":     {func() (error, error) { return errTarget, nil }, false},
			"it fails after its effect":      {func() (error, error) { return nil, errTarget }, false},
			"the node dies before it":        {func() (error, error) { return died, nil }, true},
			"the node dies after its effect": {func() (error, error) { return nil, died }, true},
		} {
			t.Run(what, func(t *testing.T) {
				x.mu.Lock()
				x.fail = nil
				x.mu.Unlock()
				first := node(after)
				s, err := first.Open(t.Context(), admin, session.Wish{Agent: bot.ID})
				if err != nil {
					t.Fatal(err)
				}
				other, err := first.Open(t.Context(), admin, session.Wish{Agent: bot.ID})
				if err != nil {
					t.Fatal(err)
				}
				x.add(s.ID)
				x.add(other.ID)
				if err := first.End(t.Context(), admin, s.ID, "done"); err != nil {
					t.Fatal(err)
				}
				if !x.has(s.ID) {
					t.Fatal("the target was called within the transaction")
				}
				if got, err := first.Get(t.Context(), admin, s.ID); err != nil || !slices.Equal(got.Ending, []string{"users"}) {
					t.Errorf("before it has followed the session says that %v still end, %v", got.Ending, err)
				}
				if c.fail != nil {
					x.mu.Lock()
					x.fail = c.fail
					x.mu.Unlock()
					ctx, cancel := context.WithCancel(t.Context())
					hands := first
					if c.crash { // it takes the step, and is never heard of again
						hands = session.New(w.Guard, doomed, session.Part{Name: "users", After: func(_ context.Context, _ estover.TenantID, id string) error {
							err := x.end(id)
							cancel()
							return err
						}})
					}
					n, _ := hands.FinishDue(ctx)
					cancel()
					if n != 0 {
						t.Errorf("%d steps were done by a target that failed", n)
					}
					x.mu.Lock()
					x.fail = nil
					x.mu.Unlock()
					if n, err := node(after).FinishDue(t.Context()); n != 0 || err != nil {
						t.Errorf("at once it was done again: %d, %v; want it put off", n, err)
					}
					// What a node had that is no more is free when its server says so, and
					// otherwise when the time is over for which it had it.
					if what == "the node dies before it" {
						if err := errors.Join(first.Release(t.Context(), "another"), first.Release(t.Context(), "")); err != nil {
							t.Fatal(err)
						}
						if n, err := node(after).FinishDue(t.Context()); n != 0 || err != nil {
							t.Errorf("when others had given back what they had it was done: %d, %v", n, err)
						}
						if err := first.Release(t.Context(), doomed.Node); err != nil {
							t.Fatal(err)
						}
					} else {
						clock.Advance(2 * time.Minute)
					}
				}
				// Another node finishes what this one began.
				second := node(after)
				if n, err := second.FinishDue(t.Context()); n != 1 || err != nil {
					t.Errorf("it was done %d times, %v; want once", n, err)
				}
				if x.has(s.ID) || !x.has(other.ID) {
					t.Errorf("the target has what belonged to the session: %v, and to the other: %v", x.has(s.ID), x.has(other.ID))
				}
				clock.Advance(time.Hour)
				if n, err := first.FinishDue(t.Context()); n != 0 || err != nil {
					t.Errorf("it was done again: %d, %v", n, err)
				}
				if got, err := second.Get(t.Context(), admin, s.ID); err != nil || len(got.Ending) != 0 {
					t.Errorf("when all is done the session says that %v still end, %v", got.Ending, err)
				}
			})
		}
	})
}

// Of many nodes one does a step, however many look for it at once.
func TestOneNodeDoesAStep(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		var x target
		s := session.New(w.Guard, w.Sessions.Config, session.Part{Name: "users", After: func(_ context.Context, _ estover.TenantID, id string) error { return x.end(id) }})
		for range 20 {
			if _, err := s.Open(t.Context(), admin, session.Wish{Agent: bot.ID}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.EndAll(t.Context(), admin, bot.ID, "done"); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if _, err := s.FinishDue(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if x.calls != 20 {
			t.Errorf("20 steps were done %d times", x.calls)
		}
	})
}

// What a node holds itself ends on every node, and again until it succeeds.
func TestWhatANodeHolds(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		var x target
		x.fail = func() (error, error) {
			if x.calls < 3 {
				return errTarget, nil
			}
			return nil, nil
		}
		doubts := make(chan string, 8)
		s := session.New(w.Guard, w.Sessions.Config, session.Part{Name: "connections", Here: func(_ context.Context, _ estover.TenantID, id string, ended bool) error {
			if !ended {
				doubts <- id
				return nil
			}
			return x.end(id)
		}})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		t.Cleanup(func() {
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		open, err := s.Open(t.Context(), admin, session.Wish{Agent: bot.ID, Life: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		x.add(open.ID)
		if _, err := s.Renew(t.Context(), admin, open.ID, 2*time.Hour); err != nil { // it is touched, and goes on
			t.Fatal(err)
		}
		if err := s.End(t.Context(), admin, open.ID, "done"); err != nil {
			t.Fatal(err)
		}
		for until := time.Now().Add(time.Minute); x.has(open.ID); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(until) {
				t.Fatal("the node still holds what belonged to the session")
			}
		}
		// What cannot be looked up ends as well.
		if err := w.Guard.Do(t.Context(), admin, guard.Op{Action: "session.end"}, func(tx *guard.Tx) error {
			tx.Touch(session.Kind, "ses_unreadable")
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		select {
		case id := <-doubts:
			if id != "ses_unreadable" {
				t.Errorf("in doubt about %s", id)
			}
		case <-time.After(time.Minute):
			t.Error("what belongs to a session that cannot be read goes on")
		}
	})
}

// Random lives of sessions against a map: open, within others, used, renewed,
// ended, left. What the sessions carry is what the map says, and a step waits for
// each end and for nothing else.
func TestSessionModel(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot := w.Agent("bot")
		s := session.New(w.Guard, w.Sessions.Config, session.Part{Name: "users", After: func(context.Context, estover.TenantID, string) error { return nil }})
		clock.Advance(time.Minute)
		rapid.Check(t, func(rt *rapid.T) {
			if _, err := s.EndAll(t.Context(), admin, bot.ID, "the model begins"); err != nil {
				rt.Fatal(err)
			}
			type one struct {
				parent              string
				opened, until, idle time.Time
				life                time.Duration // idle
				depth               int
				ended               bool
			}
			model := map[string]*one{}
			var ids []string
			var end func(id string)
			end = func(id string) {
				model[id].ended = true
				for _, child := range ids {
					if model[child].parent == id && !model[child].ended {
						end(child)
					}
				}
			}
			heard := func(id string) { // by those that it is a part of too
				for ; id != ""; id = model[id].parent {
					model[id].idle = d.Now().Add(model[id].life)
				}
			}
			live := func(m *one) bool { return !m.ended && d.Now().Before(m.until) }
			pick := func() string { return rapid.SampledFrom(ids).Draw(rt, "session") }
			rt.Repeat(map[string]func(*rapid.T){
				"open": func(rt *rapid.T) {
					wish := session.Wish{Agent: bot.ID, Life: rapid.SampledFrom([]time.Duration{time.Hour, 8 * time.Hour}).Draw(rt, "life")}
					wish.Idle = rapid.SampledFrom([]time.Duration{0, time.Minute, 40 * time.Minute}).Draw(rt, "idle")
					var parent *one
					if len(ids) > 0 && rapid.Bool().Draw(rt, "within") {
						wish.Parent = pick()
						parent = model[wish.Parent]
					}
					got, err := s.Open(t.Context(), admin, wish)
					switch {
					case parent != nil && parent.depth >= session.MaxDepth:
						if !errors.Is(err, session.ErrDeep) {
							rt.Fatalf("five deep: %v, want ErrDeep", err)
						}
						return
					case parent != nil && !live(parent):
						if !errors.Is(err, session.ErrEnded) {
							rt.Fatalf("within one that has ended: %v, want ErrEnded", err)
						}
						return
					case err != nil:
						rt.Fatal(err)
					}
					m := &one{parent: wish.Parent, opened: got.OpenedAt, until: got.OpenedAt.Add(wish.Life), life: wish.Idle, idle: got.OpenedAt.Add(wish.Idle)}
					if parent != nil {
						if m.life == 0 {
							m.life, m.idle = parent.life, got.OpenedAt.Add(parent.life)
						}
						m.depth = parent.depth + 1
						if parent.until.Before(m.until) {
							m.until = parent.until
						}
					}
					model[got.ID] = m
					ids = append(ids, got.ID)
				},
				"renew": func(rt *rapid.T) {
					if len(ids) == 0 {
						return
					}
					id := pick()
					m := model[id]
					was := live(m)
					got, err := s.Renew(t.Context(), admin, id, 9*time.Hour)
					limit := m.opened.Add(session.LongestLife)
					if m.parent != "" && model[m.parent].until.Before(limit) {
						limit = model[m.parent].until
					}
					switch {
					case !was:
						if !errors.Is(err, session.ErrEnded) {
							rt.Fatalf("renewing what has ended: %v, want ErrEnded", err)
						}
					case err == nil:
						if got.ExpiresAt.After(limit) || !got.ExpiresAt.After(m.until) {
							rt.Fatalf("renewed from %s until %s, the limit is %s", m.until, got.ExpiresAt, limit)
						}
						m.until = got.ExpiresAt
						heard(id)
					case !errors.Is(err, session.ErrLimit) && !errors.Is(err, session.ErrInvalid):
						rt.Fatalf("renewing: %v", err)
					}
				},
				"beat": func(rt *rapid.T) {
					if len(ids) == 0 {
						return
					}
					id := pick()
					m := model[id]
					was := live(m)
					got, err := s.Beat(t.Context(), admin, id)
					if err != nil || (got.State == session.Open) != was {
						rt.Fatalf("a heartbeat says %s, %v; want open: %v", got.State, err, was)
					}
					if was {
						heard(id)
					}
				},
				"end": func(rt *rapid.T) {
					if len(ids) == 0 {
						return
					}
					id := pick()
					err := s.End(t.Context(), admin, id, "the model says so")
					if want := model[id].ended; want != errors.Is(err, session.ErrEnded) || !want && err != nil {
						rt.Fatalf("ending: %v, it had ended: %v", err, want)
					}
					if err == nil {
						end(id)
					}
				},
				"wait": func(rt *rapid.T) {
					clock.Advance(rapid.SampledFrom([]time.Duration{time.Second, 20 * time.Second, 10 * time.Minute, 3 * time.Hour}).Draw(rt, "time"))
					if _, err := s.ExpireDue(t.Context()); err != nil {
						rt.Fatal(err)
					}
					for _, id := range ids {
						// Within the slack either is right; the database has the word.
						m := model[id]
						late := d.Now().Sub(m.idle)
						switch {
						case m.ended:
						case !d.Now().Before(m.until), m.life > 0 && late > 5*time.Second:
							end(id)
						case m.life > 0 && late > 0:
							if got, err := s.Get(t.Context(), admin, id); err != nil {
								rt.Fatal(err)
							} else if !got.EndedAt.IsZero() {
								end(id)
							}
						}
					}
				},
				"follow": func(rt *rapid.T) {
					if _, err := s.FinishDue(t.Context()); err != nil {
						rt.Fatal(err)
					}
				},
				"": func(rt *rapid.T) {
					for _, id := range ids {
						_, err := s.Live(t.Context(), estover.DefaultTenant, id)
						if want := live(model[id]); want != (err == nil) {
							rt.Fatalf("%s carries something: %v, want %v", id, err, want)
						}
						got, err := s.Get(t.Context(), admin, id)
						if err != nil || got.EndedAt.IsZero() && len(got.Ending) > 0 {
							rt.Fatalf("%s goes on, and %v end, %v", id, got.Ending, err)
						}
					}
				},
			})
		})
	})
}
