package access_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
)

// withSessions are options that know the sessions ses_*, and whom to tell.
func withSessions() access.Options {
	o := options
	o.Session = func(_ context.Context, _ *guard.Tx, id string) error {
		if id != "ses_one" && id != "ses_two" {
			return &estover.Error{Kind: estover.Conflict, Code: "session_ended"}
		}
		return nil
	}
	o.Told = func(_ context.Context, _ *db.Tx, agent string) ([]estover.Subject, error) {
		return []estover.Subject{estover.User("usr_sponsor_of_" + agent)}, nil
	}
	return o
}

// actions are those of the events about a grant, the first first.
func actions(t *testing.T, g *guard.Guard, d *db.DB, id string) (all []string) {
	t.Helper()
	if err := d.View(t.Context(), ada.Tenant, func(tx *db.Tx) error {
		page, _, err := g.Log().List(t.Context(), tx, audit.Filter{Target: "grant:" + id}, 0, 100)
		for _, e := range page {
			all = append(all, e.Action)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(all)
	return all
}

func TestParameters(t *testing.T) {
	now := time.Now()
	g := access.Grant{Spec: access.Spec{
		Resource: "res_crm", Actions: []string{"*"}, Purposes: []string{"support"}, Class: estover.Internal, Kind: access.Standing,
		Parameters: map[string][]string{"id": {"42", "43"}},
	}}
	for _, c := range []struct {
		what   string
		params map[string]string
		some   bool
		want   bool
	}{
		{"a value of the list", map[string]string{"id": "42"}, false, true},
		{"another beside it", map[string]string{"id": "43", "part": "x"}, false, true},
		{"another value", map[string]string{"id": "44"}, false, false},
		{"the empty value", map[string]string{"id": ""}, false, false},
		{"an action without the parameter", nil, false, false},
		{"what there is some value for", nil, true, true},
	} {
		if got := g.Covers(now, access.Call{Resource: "res_crm", Action: "customer.read", Class: estover.Internal, Parameters: c.params, Some: c.some}); got != c.want {
			t.Errorf("%s: covered is %v, want %v", c.what, got, c.want)
		}
	}
	g.Parameters, g.Session = nil, "ses_one"
	for session, want := range map[string]bool{"ses_one": true, "ses_two": false, "": false} {
		if got := g.Covers(now, access.Call{Resource: "res_crm", Action: "customer.read", Class: estover.Internal, Session: session}); got != want {
			t.Errorf("in the session %q a grant of ses_one covers: %v, want %v", session, got, want)
		}
	}
	if !g.Covers(now, access.Call{Resource: "res_crm", Action: "customer.read", Class: estover.Internal, Session: "ses_inner", Within: []string{"ses_middle", "ses_one"}}) {
		t.Error("a grant of ses_one does not cover what is done in a session within it")
	}
}

func TestMandateRefuses(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		a := access.New(guardtest.New(t, d, guardtest.AllowAll), withSessions())
		for _, c := range []struct {
			what  string
			edit  func(*access.Spec)
			want  error
			field string
		}{
			{"a kind that there is not", func(s *access.Spec) { s.Kind = "lending" }, access.ErrInvalid, "kind"},
			{"a parameter without values", func(s *access.Spec) { s.Parameters = map[string][]string{"id": nil} }, access.ErrInvalid, "parameters.id"},
			{"a parameter with an empty value", func(s *access.Spec) { s.Parameters = map[string][]string{"id": {""}} }, access.ErrInvalid, "parameters.id"},
			{"a budget below zero", func(s *access.Spec) { s.Budgets.Rows = -1 }, access.ErrInvalid, "budgets.rows"},
			{"a budget beyond all measure", func(s *access.Spec) { s.Budgets.Money = 1 << 62 }, access.ErrInvalid, "budgets.money"},
			{"an age below zero", func(s *access.Spec) { s.UnusedAfter = -1 }, access.ErrInvalid, "unused_after_seconds"},
			{"a session that has ended", func(s *access.Spec) { s.Session = "ses_over" }, access.ErrSession, "session"},
			{"an eligible one of a session", func(s *access.Spec) { s.Session, s.Kind = "ses_one", access.Eligible }, access.ErrInvalid, "session"},
			{"a request by hand", func(s *access.Spec) { s.Request = "apr_forged" }, access.ErrInvalid, "request"},
		} {
			s := spec("")
			c.edit(&s)
			_, err := a.Put(t.Context(), ada, s, "")
			var e *estover.Error
			if !errors.Is(err, c.want) || !errors.As(err, &e) || e.Field != c.field || e.Detail == "" {
				t.Errorf("%s: %v at %v, want %v at %s", c.what, err, e, c.want, c.field)
			}
		}
	})
}

// TestEndOfSessions: the grants of a session end with it, those of others stay,
// and whoever worked in it on the grants of others makes room.
func TestEndOfSessions(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		gd := guardtest.New(t, d, guardtest.AllowAll)
		a, ctx := access.New(gd, withSessions()), t.Context()
		s := spec("")
		s.Session = "ses_one"
		of := put(t, a, s)
		s.Session = "ses_two"
		other := put(t, a, s)
		shared, _ := budgeted(t, a, access.Budgets{FanOut: 1})
		work := func(agent, session string) error {
			_, err := a.Charge(ctx, ada.Tenant, access.Drawn([]access.Grant{shared}, &shared, access.Worker{Agent: agent, Session: session}), access.Amount{Calls: 1}, db.Append{})
			return err
		}
		if err := work("agt_helper", "ses_one"); err != nil {
			t.Fatal(err)
		}
		if err := work("agt_helper", "ses_two"); !errors.Is(err, access.ErrBudget) {
			t.Errorf("a second helper: %v, want ErrBudget", err)
		}
		if grants, err := a.Grants(ctx, ada.Tenant, "agt_bot"); err != nil || len(grants) != 3 {
			t.Fatalf("the agent holds %+v, %v", grants, err)
		}
		if err := gd.Do(ctx, ada, guard.Op{Action: "session.end", Target: "session:ses_one"}, func(tx *guard.Tx) error {
			n, err := access.EndOfSessions(ctx, tx, []string{"ses_one", "ses_none"})
			if err == nil && n != 1 {
				t.Errorf("%d grants ended, want one", n)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		for id, want := range map[string]access.State{of.ID: access.Ended, other.ID: access.Live, shared.ID: access.Live} {
			if g, err := a.Get(ctx, ada, id); err != nil || g.State != want {
				t.Errorf("the grant of the session %q is %s, %v, want %s", g.Session, g.State, err, want)
			}
		}
		if grants, err := a.Grants(ctx, ada.Tenant, "agt_bot"); err != nil || len(grants) != 2 {
			t.Errorf("from memory the agent holds %+v, %v, want two grants", grants, err)
		}
		if err := work("agt_helper", "ses_two"); err != nil {
			t.Errorf("after the first helper's session: %v", err)
		}
	})
}

// TestActivate: an eligible grant covers nothing, and what is made of it no more
// than it says, for a while, and not after it has ended.
func TestActivate(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		gd := guardtest.New(t, d, guardtest.AllowAll)
		a, ctx := access.New(gd, withSessions()), t.Context()
		s := spec("eligible")
		s.Kind, s.Parameters, s.Budgets = access.Eligible, map[string][]string{"id": {"1", "2"}}, access.Budgets{Calls: 3}
		eligible := put(t, a, s)
		call := access.Call{Resource: s.Resource, Action: "customer.read", Class: estover.Internal, Purpose: "support", Session: "ses_one", Parameters: map[string]string{"id": "1"}}
		fit := func(c access.Call) access.Fit {
			t.Helper()
			grants, err := a.Grants(ctx, ada.Tenant, s.Agent)
			if err != nil {
				t.Fatal(err)
			}
			_, fit := access.Entitled(d.Now(), grants, c)
			return fit
		}
		if fit(call) != access.NotGranted {
			t.Error("an eligible grant covers a call")
		}
		try := func(what access.Activation) error {
			return gd.Do(ctx, ada, guard.Op{Action: "access.approve"}, func(tx *guard.Tx) error {
				_, err := a.Activate(ctx, tx, eligible.ID, what, ada.Subject)
				return err
			})
		}
		for what, c := range map[string]struct {
			activation access.Activation
			want       error
		}{
			"another action":  {access.Activation{For: time.Hour, Actions: []string{"customer.delete"}}, access.ErrWider},
			"another value":   {access.Activation{For: time.Hour, Parameters: map[string][]string{"id": {"1", "3"}}}, access.ErrWider},
			"a higher class":  {access.Activation{For: time.Hour, Class: estover.Restricted}, access.ErrWider},
			"no time":         {access.Activation{}, access.ErrInvalid},
			"a session ended": {access.Activation{For: time.Hour, Session: "ses_over"}, access.ErrSession},
		} {
			if err := try(c.activation); !errors.Is(err, c.want) {
				t.Errorf("activated with %s: %v, want %v", what, err, c.want)
			}
		}
		made := activate(t, gd, a, eligible.ID, access.Activation{
			For: time.Hour, Actions: []string{"customer.read"}, Parameters: map[string][]string{"id": {"1"}}, Session: "ses_one", Budgets: access.Budgets{Calls: 2},
		})
		if !made.Elevated() || made.ActivatedFrom != eligible.ID || made.Kind != access.Standing || !slices.Equal(made.Actions, []string{"customer.read"}) {
			t.Errorf("made is %+v", made)
		}
		if fit(call) != access.Granted {
			t.Error("the activated grant does not cover what it names")
		}
		for what, edit := range map[string]func(*access.Call){
			"another action": func(c *access.Call) { c.Action = "customer.list" }, "another value": func(c *access.Call) { c.Parameters = map[string]string{"id": "2"} },
			"another session": func(c *access.Call) { c.Session = "ses_two" },
		} {
			c := call
			edit(&c)
			if fit(c) != access.NotGranted {
				t.Errorf("the activated grant covers %s", what)
			}
		}

		// What is made twice has not twice the budget.
		again := activate(t, gd, a, eligible.ID, access.Activation{For: time.Hour, Budgets: access.Budgets{Calls: 2}})
		grants := []access.Grant{eligible, made, again}
		for i, g := range []access.Grant{made, made, again} {
			if _, err := a.Charge(ctx, ada.Tenant, access.Drawn(grants, &g, access.Worker{}), access.Amount{Calls: 1}, db.Append{}); err != nil {
				t.Errorf("call %d: %v", i, err)
			}
		}
		for _, g := range []access.Grant{made, again} {
			if _, err := a.Charge(ctx, ada.Tenant, access.Drawn(grants, &g, access.Worker{}), access.Amount{Calls: 1}, db.Append{}); !errors.Is(err, access.ErrBudget) {
				t.Errorf("a fourth call: %v, want ErrBudget", err)
			}
		}

		clock.Advance(61 * time.Minute)
		if fit(call) != access.NotGranted {
			t.Error("the activated grant covers a call after its time")
		}
		last := activate(t, gd, a, eligible.ID, access.Activation{For: time.Hour})
		if _, err := a.End(ctx, ada, eligible.ID, "no more"); err != nil {
			t.Fatal(err)
		}
		if g, err := a.Get(ctx, ada, last.ID); err != nil || g.State != access.Ended {
			t.Errorf("what was made of a grant that has ended is %s, %v", g.State, err)
		}
		if err := try(access.Activation{For: time.Hour}); !errors.Is(err, access.ErrNotEligible) {
			t.Errorf("activated after its end: %v, want ErrNotEligible", err)
		}
	})
}

// TestDecay: what nobody uses is announced, suspended and ended, and comes back
// when somebody wants it or uses it.
func TestDecay(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		gd := guardtest.New(t, d, guardtest.AllowAll)
		a, ctx := access.New(gd, withSessions()), t.Context()
		s := spec("")
		s.UnusedAfter = int64(90 * 24 * time.Hour / time.Second)
		idle, busy, asked := put(t, a, s), put(t, a, s), put(t, a, s)
		forever := put(t, a, spec("forever"))
		day := 24 * time.Hour
		decay := func() {
			t.Helper()
			if err := errors.Join(a.SaveUses(ctx), a.Decay(ctx)); err != nil {
				t.Fatal(err)
			}
		}
		holds := func(g access.Grant) bool {
			t.Helper()
			grants, err := a.Grants(ctx, ada.Tenant, "agt_bot")
			if err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(grants, func(h access.Grant) bool { return h.ID == g.ID })
		}
		clock.Advance(89 * day)
		decay()
		if got := actions(t, gd, d, idle.ID); !slices.Equal(got, []string{"grant.create"}) {
			t.Errorf("before its time there is %v", got)
		}
		clock.Advance(2 * day)
		decay()
		decay() // once is enough
		if got := actions(t, gd, d, idle.ID); !slices.Equal(got, []string{"grant.create", "grant.unused"}) {
			t.Errorf("after 91 days there is %v", got)
		}
		if g, err := a.Get(ctx, ada, idle.ID); err != nil || g.State != access.Live || g.AnnouncedAt.IsZero() || !holds(idle) {
			t.Errorf("announced it is %+v, %v", g, err)
		}
		// One of them is used, and one is wanted.
		a.Used(ada.Tenant, busy.ID)
		if _, err := a.Resume(ctx, ada, asked.ID); err != nil {
			t.Fatal(err)
		}
		clock.Advance(access.Notice + time.Minute)
		decay()
		if g, err := a.Get(ctx, ada, idle.ID); err != nil || g.State != access.Suspended || g.Epoch != idle.Epoch+1 || holds(idle) {
			t.Errorf("a week later it is %+v, %v", g, err)
		}
		for _, g := range []access.Grant{busy, asked, forever} {
			if got, err := a.Get(ctx, ada, g.ID); err != nil || got.State != access.Live || !got.AnnouncedAt.IsZero() || !holds(g) {
				t.Errorf("what was used or restored is %+v, %v", got, err)
			}
		}
		if got := actions(t, gd, d, busy.ID); !slices.Equal(got, []string{"grant.create", "grant.unused", "grant.used"}) {
			t.Errorf("of what was used there is %v", got)
		}
		// A suspended one comes back, and its time begins anew.
		if g, err := a.Resume(ctx, ada, idle.ID); err != nil || g.State != access.Live || !holds(idle) {
			t.Errorf("restored it is %+v, %v", g, err)
		}
		if _, err := a.Resume(ctx, ada, idle.ID); !errors.Is(err, access.ErrNotSuspended) {
			t.Errorf("restored twice: %v, want ErrNotSuspended", err)
		}
		if _, err := a.Resume(ctx, eve, idle.ID); !errors.Is(err, access.ErrNotFound) {
			t.Errorf("restored by another tenant: %v, want ErrNotFound", err)
		}
		decay()
		clock.Advance(91 * day)
		decay()
		clock.Advance(access.Notice + time.Minute)
		decay()
		if g, err := a.Get(ctx, ada, idle.ID); err != nil || g.State != access.Suspended {
			t.Errorf("after another 98 days it is %+v, %v", g, err)
		}
		clock.Advance(access.Recovery + time.Minute)
		decay()
		if g, err := a.Get(ctx, ada, idle.ID); err != nil || g.State != access.Ended || g.EndReason == "" {
			t.Errorf("not restored for 30 days it is %+v, %v", g, err)
		}
		if _, err := a.Resume(ctx, ada, idle.ID); !errors.Is(err, access.ErrEnded) {
			t.Errorf("restored after its end: %v, want ErrEnded", err)
		}
		// Whoever activates an eligible grant uses it.
		s.Kind = access.Eligible
		eligible := put(t, a, s)
		clock.Advance(91 * day)
		decay()
		if g, err := a.Get(ctx, ada, eligible.ID); err != nil || g.AnnouncedAt.IsZero() {
			t.Errorf("an eligible grant that nobody activates is %+v, %v", g, err)
		}
		activate(t, gd, a, eligible.ID, access.Activation{For: time.Hour})
		clock.Advance(access.Notice + time.Minute)
		decay()
		if g, err := a.Get(ctx, ada, eligible.ID); err != nil || g.State != access.Live || !g.AnnouncedAt.IsZero() {
			t.Errorf("an eligible grant that was activated is %+v, %v", g, err)
		}
		if g, err := a.Get(ctx, ada, forever.ID); err != nil || g.State != access.Live {
			t.Errorf("what is never doubted is %+v, %v", g, err)
		}
	})
}

// TestDecayOfEligible: what was made of an eligible grant that is suspended covers
// nothing, and cannot be used without that one's budgets.
func TestDecayOfEligible(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		gd := guardtest.New(t, d, guardtest.AllowAll)
		a, ctx := access.New(gd, withSessions()), t.Context()
		day := 24 * time.Hour
		s := spec("may")
		s.Kind, s.Budgets, s.UnusedAfter = access.Eligible, access.Budgets{Calls: 1}, int64(day/time.Second)
		eligible := put(t, a, s)
		made := activate(t, gd, a, eligible.ID, access.Activation{For: 60 * day})
		var ended []string // what rests on a grant elsewhere ends in the same transaction (L7)
		gd.OnEnd(func(_ context.Context, _ *guard.Tx, kind string, ids []string) error {
			if kind == access.Table {
				ended = append(ended, ids...)
			}
			return nil
		})
		covers := func() (drawn int, fit access.Fit) {
			t.Helper()
			grants, err := a.Grants(ctx, ada.Tenant, "agt_bot")
			if err != nil {
				t.Fatal(err)
			}
			g, fit := access.Entitled(d.Now(), grants, access.Call{Resource: s.Resource, Action: s.Actions[0], Class: s.Class, Purpose: s.Purposes[0]})
			if fit == access.Granted {
				drawn = len(access.Drawn(grants, g, access.Worker{}))
			}
			return drawn, fit
		}
		if drawn, fit := covers(); fit != access.Granted || drawn != 1 {
			t.Fatalf("%s fits %d, and draws on %d accounts", made.Name, fit, drawn)
		}
		for _, wait := range []time.Duration{2 * day, access.Notice + day} {
			clock.Advance(wait)
			if err := a.Decay(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if g, err := a.Get(ctx, ada, eligible.ID); err != nil || g.State != access.Suspended {
			t.Fatalf("the eligible grant is %+v, %v", g, err)
		}
		if drawn, fit := covers(); fit != access.NotGranted {
			t.Errorf("while it is suspended what was made of it fits %d, and draws on %d accounts", fit, drawn)
		}
		if !slices.Contains(ended, eligible.ID) || !slices.Contains(ended, made.ID) {
			t.Errorf("told of are the ends of %v, want the suspended grant and what was made of it", ended)
		}
		if _, err := a.Resume(ctx, ada, eligible.ID); err != nil {
			t.Fatal(err)
		}
		if drawn, fit := covers(); fit != access.Granted || drawn != 1 {
			t.Errorf("when it is back, what was made of it fits %d, and draws on %d accounts", fit, drawn)
		}
		ended = nil
		if _, err := a.End(ctx, ada, eligible.ID, "no more"); err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(ended, eligible.ID) || !slices.Contains(ended, made.ID) {
			t.Errorf("told of are the ends of %v, want the grant and what was made of it", ended)
		}
	})
}

// TestUsedCostsNoWrite: the last use is written down once an hour.
func TestUsedCostsNoWrite(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		a, ctx := open(t, d), t.Context()
		g := put(t, a, spec("used"))
		lastUse := func() time.Time {
			t.Helper()
			if err := a.SaveUses(ctx); err != nil {
				t.Fatal(err)
			}
			got, err := a.Get(ctx, ada, g.ID)
			if err != nil {
				t.Fatal(err)
			}
			return got.UsedAt
		}
		if at := lastUse(); !at.IsZero() {
			t.Errorf("before any use it was used at %s", at)
		}
		a.Used(ada.Tenant, g.ID)
		first := lastUse()
		if first.IsZero() {
			t.Error("a use was not written down")
		}
		clock.Advance(50 * time.Minute)
		a.Used(ada.Tenant, g.ID)
		if at := lastUse(); !at.Equal(first) {
			t.Errorf("within the hour it was written down again: %s after %s", at, first)
		}
		clock.Advance(11 * time.Minute)
		a.Used(ada.Tenant, g.ID)
		if at := lastUse(); at.Sub(first) < time.Hour {
			t.Errorf("after the hour the last use is %s, after %s", at, first)
		}
	})
}

// TestVerify: a grant that came of a request and is not what was approved counts
// for nothing, and is on record once.
func TestVerify(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		gd := guardtest.New(t, d, guardtest.AllowAll)
		o := withSessions()
		o.Verify = func(_ context.Context, _ *db.Tx, g access.Grant) error {
			if g.Request != "apr_real" {
				return errors.New("nobody has approved it")
			}
			return nil
		}
		a, ctx := access.New(gd, o), t.Context()
		give := func(request string) (g access.Grant) {
			t.Helper()
			if err := gd.Do(ctx, ada, guard.Op{Action: "access.approve"}, func(tx *guard.Tx) (err error) {
				s := spec("")
				s.Request = request
				g, err = a.Give(ctx, tx, s, ada.Subject)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return g
		}
		standing, approved, forged := give(""), give("apr_real"), give("apr_forged")
		grants, err := a.Grants(ctx, ada.Tenant, "agt_bot")
		if err != nil || len(grants) != 2 || grants[0].ID == forged.ID || grants[1].ID == forged.ID {
			t.Errorf("the agent holds %+v, %v, want %s and %s", grants, err, standing.ID, approved.ID)
		}
		give("apr_real") // has the list loaded anew
		if grants, err = a.Grants(ctx, ada.Tenant, "agt_bot"); err != nil || len(grants) != 3 {
			t.Errorf("the agent holds %+v, %v, want three grants", grants, err)
		}
		deadline := time.Now().Add(time.Minute)
		for len(actions(t, gd, d, forged.ID)) == 0 && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
		}
		if got := actions(t, gd, d, forged.ID); !slices.Equal(got, []string{"grant.refused"}) {
			t.Errorf("of a grant that nobody approved there is %v", got)
		}
	})
}
