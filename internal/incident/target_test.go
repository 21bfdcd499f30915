package incident_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/approval"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/guard"
	"estover.dev/internal/hold"
	"estover.dev/internal/incident"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/session"
)

// open opens a session of an agent.
func open(t *testing.T, w *oauthtest.World, id string) session.Session {
	t.Helper()
	s, err := w.Sessions.Open(t.Context(), oauthtest.Admin, session.Wish{Agent: id})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func state(t *testing.T, w *oauthtest.World, s session.Session) session.State {
	t.Helper()
	got, err := w.Sessions.Get(t.Context(), oauthtest.Admin, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	return got.State
}

// What is contained as a whole is held by one hold, and what it covers loses its
// sessions; the others keep theirs.
func TestContainAsAWhole(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, w := t.Context(), oauthtest.New(t, d)
		i := over(w, &stuck{})
		var bots []*oauthtest.Agent
		for n := range 4 {
			bots = append(bots, w.Agent(fmt.Sprintf("bot-%d", n)))
		}
		other := bots[3]
		spec := other.Spec
		spec.Blueprint = "clerk"
		if _, err := w.Agents.Update(ctx, oauthtest.Admin, other.ID, spec); err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]struct {
			target incident.Target
			ends   []bool // of the sessions of each
		}{
			"a blueprint":         {incident.Target{Scope: hold.Blueprint, ID: "bot"}, []bool{true, true, true, false}},
			"a person":            {incident.Target{Scope: hold.Person, ID: bots[1].Sponsor.ID}, []bool{false, true, false, false}},
			"an organisation":     {incident.Target{Scope: hold.Tenant, ID: "default"}, []bool{true, true, true, true}},
			"everything":          {incident.Target{Scope: hold.Everything}, []bool{true, true, true, true}},
			"another tenant":      {incident.Target{Scope: hold.Tenant, ID: "acme"}, []bool{false, false, false, false}},
			"a blueprint of none": {incident.Target{Scope: hold.Blueprint, ID: "nothing"}, []bool{false, false, false, false}},
		} {
			var opened []session.Session
			for _, b := range bots {
				opened = append(opened, open(t, w, b.ID))
			}
			before := certificates(t, w)
			done, err := i.Contain(ctx, oauthtest.Admin, c.target, "a drill")
			if err != nil || done.ZeroMicros <= 0 || done.Hold == "" {
				t.Fatalf("containing %s: %+v, %v", name, done, err)
			}
			for n, s := range opened {
				if want := map[bool]session.State{true: session.Ended, false: session.Open}[c.ends[n]]; state(t, w, s) != want {
					t.Errorf("containing %s leaves the session of bot-%d %s, want %s", name, n, state(t, w, s), want)
				}
			}
			if n := certificates(t, w); n != before+1 {
				t.Errorf("containing %s made %d certificates, want one", name, n-before)
			}
			if l, err := i.Lift(ctx, oauthtest.Admin, done.Hold, "over", true); err != nil || l.State != incident.Lifted {
				t.Errorf("lifting the hold on %s, alone: %+v, %v", name, l, err)
			}
			if list, err := i.List(ctx, oauthtest.Admin, c.target, 10); err != nil || len(list) != 1 || list[0].ID != done.ID {
				t.Errorf("the containments of %s are %+v, %v", name, list, err)
			}
			for _, s := range opened { // for the next
				if state(t, w, s) == session.Open {
					if err := w.Sessions.End(ctx, oauthtest.Admin, s.ID, "over"); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		for what, target := range map[string]incident.Target{
			"nothing":             {},
			"everything by name":  {Scope: hold.Everything, ID: "x"},
			"an agent of no name": {Scope: incident.Agent},
			"a bad blueprint":     {Scope: hold.Blueprint, ID: "No Name"},
			"an unknown kind":     {Scope: "planet", ID: "earth"},
		} {
			if _, err := i.Contain(ctx, oauthtest.Admin, target, "x"); !errors.Is(err, incident.ErrTarget) {
				t.Errorf("containing %s: %v, want ErrTarget", what, err)
			}
		}
		if _, err := i.Contain(ctx, oauthtest.Admin, incident.Target{Scope: hold.Person, ID: "usr_nobody"}, "x"); !errors.Is(err, directory.ErrNotFound) {
			t.Errorf("containing the agents of a person who is not there: %v, want not found", err)
		}
	})
}

// errDied is the end of a server in the middle of a containment.
var errDied = errors.New("the server died")

// Wherever a server dies in a containment, before a step takes effect or after,
// another finishes it: the sessions are ended, one hold stands, and there is one
// certificate. Before the first commit nothing has happened.
func TestContainmentSurvives(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, w := t.Context(), oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		n := 0
		for _, scope := range []hold.Scope{incident.Agent, hold.Blueprint, hold.Everything} {
			for _, step := range []string{"hold", "connections", "sessions", "certificate"} {
				for _, done := range []bool{false, true} {
					if scope == hold.Everything && step != "sessions" { // the others are the same as for a blueprint
						continue
					}
					n++
					bot := w.Agent(fmt.Sprintf("bot-%d", n))
					spec := bot.Spec
					spec.Blueprint = fmt.Sprintf("kind-%d", n)
					if _, err := w.Agents.Update(ctx, oauthtest.Admin, bot.ID, spec); err != nil {
						t.Fatal(err)
					}
					target := map[hold.Scope]incident.Target{
						incident.Agent: theAgent(bot.ID), hold.Blueprint: {Scope: hold.Blueprint, ID: spec.Blueprint}, hold.Everything: {Scope: hold.Everything},
					}[scope]
					s := open(t, w, bot.ID)
					what := fmt.Sprintf("%s, dead at %s (done: %v)", scope, step, done)
					before := certificates(t, w)
					reached := false
					first := over(w, &stuck{})
					first.Reached(func(at string, is bool) error {
						if at == step && is == done {
							reached = true
							return errDied
						}
						return nil
					})
					c, err := first.Contain(ctx, oauthtest.Admin, target, "a fault")
					if reached != errors.Is(err, errDied) {
						t.Fatalf("%s: %v", what, err)
					}
					clock.Advance(2 * time.Minute)
					second := over(w, &stuck{})
					for range 2 {
						if err := second.Resume(ctx); err != nil {
							t.Errorf("%s: resuming: %v", what, err)
						}
					}
					if step == "hold" && !done {
						if state(t, w, s) != session.Open || certificates(t, w) != before {
							t.Errorf("%s: something happened although nothing was committed", what)
						}
						if err := w.Sessions.End(ctx, oauthtest.Admin, s.ID, "over"); err != nil {
							t.Fatal(err)
						}
						continue
					}
					if state(t, w, s) != session.Ended {
						t.Errorf("%s: the session is open", what)
					}
					if got := certificates(t, w) - before; got != 1 {
						t.Errorf("%s: %d certificates, want one", what, got)
					}
					if list, err := second.List(ctx, oauthtest.Admin, target, 1); err != nil || len(list) != 1 || list[0].ID != c.ID || list[0].ZeroMicros == 0 {
						t.Errorf("%s: the containment is %+v, %v", what, list, err)
					}
					standing, err := second.Standing(ctx, oauthtest.Admin)
					if err != nil {
						t.Fatal(err)
					}
					holds := 0
					for _, h := range standing {
						if h.Target == target {
							holds++
						}
						if _, err := second.Lift(ctx, oauthtest.Admin, h.ID, "over", false); err != nil && !errors.Is(err, agent.ErrRetired) {
							t.Errorf("%s: lifting %s: %v", what, h.ID, err)
						}
					}
					if holds != 1 {
						t.Errorf("%s: %d holds stand, want one", what, holds)
					}
				}
			}
		}
	})
}

// A containment that takes so long that another node takes it up is certified by
// the one that is done first, and by that alone.
func TestCertifiedOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, w := t.Context(), oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot := w.Agent("bot")
		first, second := over(w, &stuck{}), over(w, &stuck{})
		first.Reached(func(at string, is bool) error {
			if at != "certificate" || is {
				return nil
			}
			clock.Advance(2 * time.Minute)
			return second.Resume(ctx)
		})
		c, err := first.Contain(ctx, oauthtest.Admin, theAgent(bot.ID), "a slow one")
		if err != nil {
			t.Fatalf("a containment that another has certified: %v", err)
		}
		if n := certificates(t, w); n != 1 {
			t.Errorf("there are %d certificates, want one", n)
		}
		list, err := first.List(ctx, oauthtest.Admin, theAgent(bot.ID), 1)
		if err != nil || len(list) != 1 || list[0].Event != c.Event || list[0].ZeroMicros != c.ZeroMicros || c.Event == "" {
			t.Errorf("it is %+v, %v, and was answered as %+v", list, err, c)
		}
	})
}

// A containment whose hold is lifted before it came to its end is given up: what
// is done for the agent afterwards is not ended again.
func TestGivenUp(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, w := t.Context(), oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		gw := &stuck{}
		i := over(w, gw)
		bot := w.Agent("bot")
		gw.set(1)
		c, err := i.Contain(ctx, oauthtest.Admin, theAgent(bot.ID), "a drill")
		if !errors.Is(err, incident.ErrNotZero) {
			t.Fatalf("a containment that does not come to zero: %v", err)
		}
		if _, err := i.Lift(ctx, oauthtest.Admin, c.Hold, "a mistake", false); err != nil {
			t.Fatal(err)
		}
		s := open(t, w, bot.ID)
		gw.set(0)
		clock.Advance(2 * time.Minute)
		if err := i.Resume(ctx); err != nil {
			t.Error(err)
		}
		if state(t, w, s) != session.Open || certificates(t, w) != 0 {
			t.Errorf("after the hold was lifted the session is %s, with %d certificates", state(t, w, s), certificates(t, w))
		}
		if list, err := i.List(ctx, oauthtest.Admin, theAgent(bot.ID), 1); err != nil || len(list) != 1 || list[0].EndedAt.IsZero() {
			t.Errorf("the containment is %+v, %v, want given up", list, err)
		}
	})
}

// Where somebody else could decide, nobody lifts a containment's hold on their
// own word; a suspension is lifted as ever.
func TestLiftAlone(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, w := t.Context(), oauthtest.New(t, d)
		i := over(w, &stuck{})
		bot := w.Agent("bot")
		c, err := i.Contain(ctx, oauthtest.Admin, theAgent(bot.ID), "a drill")
		if err != nil {
			t.Fatal(err)
		}
		suspended, err := w.Agents.Hold(ctx, oauthtest.Admin, bot.ID, agent.Suspension, "its sponsor is away")
		if err != nil {
			t.Fatal(err)
		}
		second, err := w.People.Create(ctx, oauthtest.Admin, directory.Spec{Name: "second", Roles: []estover.Role{estover.Approver}}, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := i.Lift(ctx, oauthtest.Admin, c.Hold, "it is fine", false); !errors.Is(err, incident.ErrSecond) {
			t.Errorf("lifting it while there is somebody else: %v, want ErrSecond", err)
		}
		for _, reason := range []string{"", strings.Repeat("x", 501)} {
			if _, err := i.Lift(ctx, oauthtest.Admin, c.Hold, reason, false); !errors.Is(err, incident.ErrLiftReason) {
				t.Errorf("lifting it for a reason of %d bytes: %v", len(reason), err)
			}
		}
		eve := estover.Caller{Tenant: "other", Subject: estover.User("usr_eve"), Roles: []estover.Role{estover.Admin}}
		if _, err := i.Lift(ctx, eve, c.Hold, "mine", false); !errors.Is(err, hold.ErrNotFound) {
			t.Errorf("lifting another tenant's hold: %v, want ErrNotFound", err)
		}
		if _, err := i.Lift(ctx, oauthtest.Admin, suspended.ID, "it is back", false); err != nil {
			t.Errorf("lifting a suspension: %v", err)
		}
		if _, err := w.People.Disable(ctx, oauthtest.Admin, second.ID, "left"); err != nil {
			t.Fatal(err)
		}
		operator := oauthtest.Admin
		operator.Roles = []estover.Role{estover.Operator}
		if _, err := i.Lift(ctx, operator, c.Hold, "it is fine", false); !errors.Is(err, incident.ErrSecond) {
			t.Errorf("an operator who is alone lifts it: %v, want ErrSecond", err)
		}
		if l, err := i.Lift(ctx, oauthtest.Admin, c.Hold, "it is fine", false); err != nil || l.State != incident.Lifted {
			t.Errorf("an administrator who is alone lifts it: %+v, %v", l, err)
		}
		if a, err := w.Agents.Get(ctx, oauthtest.Admin, bot.ID); err != nil || a.Status != agent.Active {
			t.Errorf("the agent is %s, %v", a.Status, err)
		}
	})
}

// An approved request lifts the one hold that it is about, if those who approved
// it were told what it is and none of them had raised it.
func TestApproved(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, w := t.Context(), oauthtest.New(t, d)
		i := over(w, &stuck{})
		bot := w.Agent("bot")
		ann, ben := estover.User("usr_ann"), estover.User("usr_ben")
		one, err := i.Contain(ctx, oauthtest.Admin, theAgent(bot.ID), "a drill")
		if err != nil {
			t.Fatal(err)
		}
		two, err := i.Contain(ctx, oauthtest.Admin, incident.Target{Scope: hold.Blueprint, ID: "bot"}, "another\ndrill")
		if err != nil {
			t.Fatal(err)
		}
		told := func(c incident.Containment, reason string) map[string]string {
			return map[string]string{"holds": c.Target.String(), "raised_by": string(oauthtest.Admin.Subject), "raised_for": "Contained: " + reason}
		}
		vote := func(by, in estover.Subject) []approval.Vote {
			return []approval.Vote{{Round: 1, Approver: by, For: in, Verdict: approval.Approved}}
		}
		carry := func(tenant estover.TenantID, r approval.Request) error {
			r.Kind, r.Round = approval.Lift, 1
			caller := estover.Caller{Tenant: tenant, Subject: ben}
			return w.Guard.Do(ctx, caller, guard.Op{Action: "access.approve"}, func(tx *guard.Tx) error {
				_, err := i.Approved(ctx, tx, r, approval.Granted{})
				return err
			})
		}
		for what, c := range map[string]struct {
			tenant  estover.TenantID
			request approval.Request
			want    error
		}{
			"it is about no hold":          {"default", approval.Request{Target: "agent:" + bot.ID, Votes: vote(ann, "")}, hold.ErrNotFound},
			"it is about another tenant's": {"other", approval.Request{Target: "hold:" + one.Hold, Arguments: told(one, "a drill"), Votes: vote(ann, "")}, hold.ErrNotFound},
			"it describes another hold":    {"default", approval.Request{Target: "hold:" + one.Hold, Arguments: told(two, "another drill"), Votes: vote(ann, "")}, incident.ErrTold},
			"it describes nothing":         {"default", approval.Request{Target: "hold:" + one.Hold, Votes: vote(ann, "")}, incident.ErrTold},
			"whoever raised it approves": {
				"default", approval.Request{Target: "hold:" + one.Hold, Arguments: told(one, "a drill"), Votes: vote(oauthtest.Admin.Subject, "")}, incident.ErrRaised,
			},
			"somebody approves in the place of whoever raised it": {
				"default", approval.Request{Target: "hold:" + one.Hold, Arguments: told(one, "a drill"), Votes: vote(ann, oauthtest.Admin.Subject)}, incident.ErrRaised,
			},
		} {
			if err := carry(c.tenant, c.request); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", what, err, c.want)
			}
		}
		for n, c := range []incident.Containment{two, one} {
			reason := []string{"another drill", "a drill"}[n]
			if err := carry("default", approval.Request{Target: "hold:" + c.Hold, Arguments: told(c, reason), Votes: vote(ann, "")}); err != nil {
				t.Errorf("lifting the hold on %s: %v", c.Target, err)
			}
			standing, err := i.Standing(ctx, oauthtest.Admin)
			if err != nil || len(standing) != 1-n {
				t.Errorf("after %d were lifted %+v stand, %v", n+1, standing, err)
			}
			if err := carry("default", approval.Request{Target: "hold:" + c.Hold, Arguments: told(c, reason), Votes: vote(ann, "")}); !errors.Is(err, hold.ErrNotFound) {
				t.Errorf("lifting it again: %v, want ErrNotFound", err)
			}
		}
	})
}

// What would be contained is what is contained then, and to look changes nothing.
// The same key contains once.
func TestForeseeAndOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, w := t.Context(), oauthtest.New(t, d)
		i := over(w, &stuck{})
		one, two := w.Agent("bot-1"), w.Agent("bot-2")
		open(t, w, one.ID)
		open(t, w, one.ID)
		s := open(t, w, two.ID)
		for target, want := range map[incident.Target]incident.Reach{
			theAgent(one.ID):                         {Agents: 1, Sessions: 2},
			{Scope: hold.Blueprint, ID: "bot"}:       {Agents: 2, Sessions: 3},
			{Scope: hold.Blueprint, ID: "nothing"}:   {},
			{Scope: hold.Person, ID: two.Sponsor.ID}: {Agents: 1, Sessions: 1},
			{Scope: hold.Tenant, ID: "default"}:      {Agents: 2, Sessions: 3},
			{Scope: hold.Tenant, ID: "acme"}:         {},
			{Scope: hold.Everything}:                 {Agents: 2, Sessions: 3},
		} {
			if got, err := i.Foresee(ctx, oauthtest.Admin, target); err != nil || got != want {
				t.Errorf("%s would cover %+v, %v, want %+v", target, got, err, want)
			}
		}
		if _, err := i.Foresee(ctx, oauthtest.Admin, theAgent("agt_nobody")); !errors.Is(err, agent.ErrNotFound) {
			t.Errorf("an agent that is not there: %v", err)
		}
		if state(t, w, s) != session.Open {
			t.Error("to look ended a session")
		}
		w.Decider.Set(oauthtest.Deny("tenant.contain"))
		for _, target := range []incident.Target{{Scope: hold.Everything}, {Scope: hold.Tenant, ID: "acme"}} {
			if _, err := i.Foresee(ctx, oauthtest.Admin, target); estover.KindOf(err) != estover.Denied {
				t.Errorf("%s, to whoever may not contain it: %v, want a refusal", target, err)
			}
		}
		w.Decider.Set(nil)

		var done [8]incident.Containment
		var all sync.WaitGroup
		for n := range done {
			all.Go(func() {
				var err error
				if done[n], err = i.ContainOnce(ctx, oauthtest.Admin, "a key", theAgent(one.ID), "a drill"); err != nil {
					t.Errorf("containing once: %v", err)
				}
			})
		}
		all.Wait()
		for _, c := range done {
			if c.ID != done[0].ID || c.Hold != done[0].Hold {
				t.Errorf("the same key contained as %s by %s and as %s by %s", c.ID, c.Hold, done[0].ID, done[0].Hold)
			}
		}
		if list, err := i.List(ctx, oauthtest.Admin, theAgent(one.ID), 10); err != nil || len(list) != 1 || list[0].ZeroMicros <= 0 {
			t.Errorf("the same key contained %d times, %v", len(list), err)
		}
		other, err := i.ContainOnce(ctx, oauthtest.Admin, "another key", theAgent(one.ID), "a drill")
		if err != nil || other.ID == done[0].ID {
			t.Errorf("another key is the same containment: %+v, %v", other, err)
		}
		if elses, err := i.ContainOnce(ctx, oauthtest.Admin, "a key", theAgent(two.ID), "a drill"); err != nil || elses.Agent != two.ID {
			t.Errorf("the same key for another agent: %+v, %v", elses, err)
		}
	})
}
