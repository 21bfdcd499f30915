package ticket_test

import (
	"errors"
	"flag"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/ticket"
)

// A modelled ticket is what the model knows of one.
type modelled struct {
	made    ticket.Made
	parent  *modelled // nil for an orphan
	session string
	expires time.Time
	bound   time.Time // that it is never renewed beyond
	ended   bool
	uses    int64 // -1 for as many as one likes
	period  time.Duration
}

// live reports whether a ticket is good at a time: it and all that it came of.
func (m *modelled) live(now time.Time) bool {
	for at := m; at != nil; at = at.parent {
		if at.ended || !now.Before(at.expires) {
			return false
		}
	}
	return m.uses != 0
}

// TestModel does at random what can happen to tickets: they are made of each other,
// renewed, used and revoked, their sessions end, time passes, rows are swept away.
// After each step every ticket is good exactly if the model says so.
func TestModel(t *testing.T) {
	checks := flag.Lookup("rapid.checks")
	if old := checks.Value.String(); old == checks.DefValue { // nobody asked for more
		_ = checks.Value.Set("5")
		defer func() { _ = checks.Value.Set(old) }()
	}
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		runs := 0
		rapid.Check(t, func(rt *rapid.T) {
			runs++
			var all []*modelled
			bot := func(session string) estover.Caller {
				return estover.Caller{Tenant: "default", Subject: estover.Agent("agt_" + session), Session: session, Purpose: "vault-client", Epoch: 1}
			}
			sessions := []string{fmt.Sprintf("ses_%d_a", runs), fmt.Sprintf("ses_%d_b", runs)}
			over := map[string]bool{}
			pick := func(rt *rapid.T) *modelled {
				return all[rapid.IntRange(0, len(all)-1).Draw(rt, "ticket")]
			}
			add := func(rt *rapid.T, parent *modelled, session string) {
				ttl := time.Duration(rapid.IntRange(1, 120).Draw(rt, "minutes")) * time.Minute
				wish := ticket.Wish{TTL: ttl, Most: 10 * time.Hour, Orphan: parent != nil && rapid.Bool().Draw(rt, "orphan")}
				one := &modelled{session: session, uses: -1}
				switch rapid.IntRange(0, 4).Draw(rt, "kind") {
				case 0:
					wish.Uses = int64(rapid.IntRange(1, 3).Draw(rt, "uses"))
					one.uses = wish.Uses
				case 1:
					wish.Period = ttl
					one.period = ttl
				case 2:
					wish.ExplicitMax = 3 * time.Hour
				}
				var from *ticket.Ticket
				if parent != nil {
					from = &parent.made.Ticket
					if !wish.Orphan {
						one.parent = parent
					}
				}
				m, err := w.Create(t.Context(), bot(session), from, wish)
				may := !over[session] && (parent == nil || from.Uses == 0 && (wish.Orphan || parent.live(d.Now())))
				if (err == nil) != may {
					rt.Fatalf("making a ticket: %v, want that it is made: %v", err, may)
				}
				if err != nil {
					return
				}
				one.made, one.expires = m, m.ExpiresAt
				one.bound = m.CreatedAt.Add(10 * time.Hour)
				if wish.ExplicitMax > 0 {
					one.bound = m.CreatedAt.Add(wish.ExplicitMax)
				}
				if one.period > 0 {
					one.bound = time.Time{}
				}
				all = append(all, one)
			}
			add(rt, nil, sessions[0]) // there is one to pick from the beginning
			rt.Repeat(map[string]func(*rapid.T){
				"log in": func(rt *rapid.T) { add(rt, nil, rapid.SampledFrom(sessions).Draw(rt, "session")) },
				"make":   func(rt *rapid.T) { p := pick(rt); add(rt, p, p.session) },
				"use": func(rt *rapid.T) {
					m := pick(rt)
					good := m.live(d.Now())
					_, _, err := w.Authenticate(t.Context(), value(m.made), home)
					if (err == nil) != good || err != nil && !errors.Is(err, ticket.ErrTicket) {
						rt.Fatalf("using a ticket: %v, want that it is good: %v", err, good)
					}
					if good && m.uses > 0 {
						m.uses--
					}
				},
				"renew": func(rt *rapid.T) {
					m := pick(rt)
					by := time.Duration(rapid.IntRange(0, 300).Draw(rt, "minutes")) * time.Minute
					good := m.live(d.Now())
					one, _, err := w.Renew(t.Context(), ada, ticket.Ref{Accessor: m.made.ID}, by)
					if (err == nil) != good || err != nil && !errors.Is(err, ticket.ErrNotFound) {
						rt.Fatalf("renewing a ticket: %v, want that it is renewed: %v", err, good)
					}
					if err != nil {
						return
					}
					until, _ := w.Options.Session(t.Context(), "default", m.session)
					if one.ExpiresAt.After(until.Expires) || !m.bound.IsZero() && one.ExpiresAt.After(m.bound) {
						rt.Fatalf("renewed it lives until %s, beyond %s or %s", one.ExpiresAt, until.Expires, m.bound)
					}
					m.expires = one.ExpiresAt
				},
				"revoke": func(rt *rapid.T) {
					m := pick(rt)
					good := m.live(d.Now())
					err := w.Revoke(t.Context(), ada, ticket.Ref{Accessor: m.made.ID})
					if (err == nil) != good {
						rt.Fatalf("revoking a ticket: %v, want that it is revoked: %v", err, good)
					}
					if good {
						m.ended = true
					}
				},
				"revoke alone": func(rt *rapid.T) {
					m := pick(rt)
					good := m.live(d.Now())
					err := w.RevokeOrphan(t.Context(), ada, ticket.Ref{Accessor: m.made.ID})
					if (err == nil) != good {
						rt.Fatalf("revoking a ticket alone: %v, want that it is revoked: %v", err, good)
					}
					if !good {
						return
					}
					m.ended = true
					for _, c := range all {
						if c.parent == m && !c.ended {
							c.parent = nil
						}
					}
				},
				"end a session": func(rt *rapid.T) {
					s := rapid.SampledFrom(sessions).Draw(rt, "session")
					if rapid.IntRange(0, 3).Draw(rt, "really") != 0 {
						return
					}
					w.endSession(s)
					over[s] = true
					for _, m := range all {
						m.ended = m.ended || m.session == s
					}
				},
				"wait": func(rt *rapid.T) {
					w.clock.Advance(time.Duration(rapid.IntRange(1, 60).Draw(rt, "minutes")) * time.Minute)
				},
				"sweep": func(rt *rapid.T) {
					if err := w.Sweep(t.Context()); err != nil {
						rt.Fatal(err)
					}
				},
				"": func(rt *rapid.T) {
					for i, m := range all {
						_, err := w.Find(t.Context(), value(m.made))
						if good := m.live(d.Now()); (err == nil) != good {
							rt.Fatalf("ticket %d: %v, want that it is good: %v", i, err, good)
						}
					}
				},
			})
		})
	})
}
