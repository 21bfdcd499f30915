package incident_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/evidence"
	"estover.dev/internal/gateway"
	"estover.dev/internal/hold"
	"estover.dev/internal/incident"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/session"
)

// stuck is a gateway in which something of a session does not leave.
type stuck struct {
	gateway.Live
	mu   sync.Mutex
	open int
}

func (s *stuck) CountWhere(func(*estover.Caller, string, string) bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

func (s *stuck) set(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = n
}

func theAgent(id string) incident.Target { return incident.Target{Scope: incident.Agent, ID: id} }

// over is the kill switch of a world, whose tenants are two.
func over(w *oauthtest.World, gw incident.Gateway) *incident.Incidents {
	return incident.New(incident.Config{
		Guard: w.Guard, Agents: w.Agents, Sessions: w.Sessions, Holds: hold.New(w.Guard), Gateway: gw, Evidence: evidence.New(w.Guard, w.Keys, nil, nil),
		Deciders: func(ctx context.Context, tx *db.Tx) (ids []string, err error) {
			people, err := directory.Holding(ctx, tx, []estover.Role{estover.Admin, estover.Approver})
			for _, p := range people {
				ids = append(ids, p.ID)
			}
			return ids, err
		},
		Person: func(ctx context.Context, tx *db.Tx, id string) error {
			_, err := directory.Known(ctx, tx, id)
			return err
		},
		Tenant: func(context.Context, estover.TenantID) error { return nil },
		Tenants: func(context.Context) ([]estover.TenantID, error) {
			return []estover.TenantID{estover.DefaultTenant}, nil
		},
	})
}

func certificates(t *testing.T, w *oauthtest.World) (n int) {
	t.Helper()
	if err := w.DB.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
		list, _, err := w.Guard.Log().List(t.Context(), tx, audit.Filter{Action: evidence.CertifyAction}, 0, 10)
		n = len(list)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// A containment holds the agent and ends all of its sessions in one step; what
// others have decided about the agent stays. It is certified only once nothing
// of the agent can act, and one that did not come to that is taken up again.
func TestContain(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, w := t.Context(), oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot := w.Agent("bot")
		other := w.Agent("other")
		gw := &stuck{}
		i := over(w, gw)
		var opened []session.Session
		for _, id := range []string{bot.ID, bot.ID, other.ID} {
			s, err := w.Sessions.Open(ctx, oauthtest.Admin, session.Wish{Agent: id})
			if err != nil {
				t.Fatal(err)
			}
			opened = append(opened, s)
		}
		if _, err := i.Contain(ctx, oauthtest.Admin, theAgent(bot.ID), ""); !errors.Is(err, incident.ErrReason) {
			t.Errorf("without a reason: %v", err)
		}
		if _, err := i.Contain(ctx, oauthtest.Admin, theAgent("agt_nobody"), "x"); !errors.Is(err, agent.ErrNotFound) {
			t.Errorf("an agent that is not there: %v", err)
		}
		if _, err := w.Agents.Hold(ctx, oauthtest.Admin, bot.ID, agent.Suspension, "its sponsor is away"); err != nil {
			t.Fatal(err)
		}

		// Something does not leave: there is no certificate, but the agent is
		// cut off all the same.
		gw.set(1)
		c, err := i.Contain(ctx, oauthtest.Admin, theAgent(bot.ID), "a drill")
		if !errors.Is(err, incident.ErrNotZero) || certificates(t, w) != 0 {
			t.Errorf("a containment that did not come to zero: %v, with %d certificates", err, certificates(t, w))
		}
		for n, s := range opened {
			got, err := w.Sessions.Get(ctx, oauthtest.Admin, s.ID)
			if want := map[bool]session.State{true: session.Ended, false: session.Open}[n < 2]; err != nil || got.State != want {
				t.Errorf("session %d is %s, %v, want %s", n, got.State, err, want)
			}
		}
		a, err := w.Agents.Get(ctx, oauthtest.Admin, bot.ID)
		if err != nil || len(a.Holds) != 2 {
			t.Fatalf("the agent has %d holds, %v, want its sponsor's and the containment's", len(a.Holds), err)
		}

		// A minute later it is taken up again.
		if err := i.Resume(ctx); err != nil {
			t.Errorf("resuming what is under way: %v", err)
		}
		if n := certificates(t, w); n != 0 {
			t.Errorf("%d certificates of a containment that is under way", n)
		}
		gw.set(0)
		clock.Advance(2 * time.Minute)
		for range 2 { // it is finished once
			if err := i.Resume(ctx); err != nil {
				t.Error(err)
			}
		}
		list, err := i.List(ctx, oauthtest.Admin, theAgent(bot.ID), 10)
		if err != nil || len(list) != 1 || list[0].ID != c.ID || list[0].ZeroMicros < time.Minute.Microseconds() || certificates(t, w) != 1 {
			t.Errorf("after it was resumed: %+v, %v, with %d certificates", list, err, certificates(t, w))
		}

		// Lifting the containment's hold leaves the sponsor's.
		for _, h := range a.Holds {
			if h.Kind == agent.Quarantine {
				if a, err = w.Agents.Lift(ctx, oauthtest.Admin, bot.ID, h.ID, "over"); err != nil || a.Status != agent.Suspended {
					t.Errorf("after the containment's hold was lifted the agent is %s, %v, want suspended", a.Status, err)
				}
			}
		}
		if _, err := i.Certificate(ctx, estover.Caller{Tenant: "other", Subject: "user:usr_eve"}, c.ID); !errors.Is(err, incident.ErrNotFound) {
			t.Errorf("another tenant's certificate: %v, want not found", err)
		}
	})
}
