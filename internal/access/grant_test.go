package access_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
)

var (
	ada = estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User("usr_ada")}
	eve = estover.Caller{Tenant: "other", Subject: estover.User("usr_eve")}
)

// options know agents agt_*, who may do everything but espionage, and
// resources res_*, which have every action but destruction.
var options = access.Options{
	Agent: func(_ context.Context, _ *db.Tx, id string, purposes []string) error {
		if !strings.HasPrefix(id, "agt_") {
			return &estover.Error{Kind: estover.NotFound, Code: "agent_not_found", Detail: "There is no such agent."}
		}
		if slices.Contains(purposes, "espionage") {
			return &estover.Error{Kind: estover.Invalid, Code: "purpose_not_declared", Field: "purposes[0]"}
		}
		return nil
	},
	Resource: func(_ context.Context, _ *db.Tx, id string, actions []string) error {
		if !strings.HasPrefix(id, "res_") {
			return &estover.Error{Kind: estover.NotFound, Code: "resource_not_found", Detail: "There is no such resource."}
		}
		if slices.Contains(actions, "destroy") {
			return &estover.Error{Kind: estover.Invalid, Code: "action_not_found", Field: "actions[0]"}
		}
		return nil
	},
}

func open(t *testing.T, d *db.DB) *access.Access {
	return access.New(guardtest.New(t, d, guardtest.AllowAll), options)
}

func spec(name string) access.Spec {
	return access.Spec{
		Name: name, Agent: "agt_bot", Resource: "res_crm", Actions: []string{"customer.read", "customer.list"},
		Purposes: []string{"support"}, Class: estover.Confidential,
	}
}

func put(t *testing.T, a *access.Access, s access.Spec) access.Grant {
	t.Helper()
	g, err := a.Put(t.Context(), ada, s, "")
	if err != nil {
		t.Fatalf("granting %s: %v", s.Name, err)
	}
	return g
}

func TestPut(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		a, ctx := open(t, d), t.Context()
		g, err := a.Put(ctx, ada, spec("support"), "apply/default")
		if err != nil || g.State != access.Live || g.Epoch != 1 || g.CreatedBy != ada.Subject || g.ManagedBy != "apply/default" {
			t.Fatalf("the grant is %+v, %v", g, err)
		}
		if got, err := a.Get(ctx, ada, g.ID); err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", g) {
			t.Errorf("stored it is %+v, %v, want %+v", got, err, g)
		}
		held := func() string {
			t.Helper()
			grants, err := a.Grants(ctx, ada.Tenant, "agt_bot")
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, g := range grants {
				names = append(names, g.Name+":"+strings.Join(g.Actions, "+"))
			}
			return strings.Join(names, " ")
		}
		if got := held(); got != "support:customer.list+customer.read" {
			t.Errorf("the agent holds %q", got)
		}

		// The same again changes nothing.
		s := spec("support")
		slices.Reverse(s.Actions)
		if same := put(t, a, s); same.ID != g.ID || same.Epoch != 1 {
			t.Errorf("granted again it is %+v, want the same", same)
		}
		// Something else is another grant in its place.
		s.Actions = []string{access.All}
		clock.Advance(time.Second)
		other := put(t, a, s)
		if other.ID == g.ID || other.ManagedBy != "apply/default" {
			t.Errorf("granted wider it is %+v, want another", other)
		}
		if got := held(); got != "support:*" {
			t.Errorf("the agent holds %q", got)
		}
		if old, err := a.Get(ctx, ada, g.ID); err != nil || old.State != access.Ended || old.EndReason != "replaced by "+other.ID || old.Epoch != 2 {
			t.Errorf("the grant of before is %+v, %v", old, err)
		}
		if byName, err := a.ByName(ctx, ada, "support"); err != nil || byName.ID != other.ID {
			t.Errorf("by its name it is %+v, %v", byName, err)
		}
		// Given to another agent, it is taken from the first.
		s.Agent = "agt_other"
		put(t, a, s)
		if got := held(); got != "" {
			t.Errorf("the agent of before holds %q", got)
		}
		// Without a name there may be many.
		nameless := spec("")
		if one, two := put(t, a, nameless), put(t, a, nameless); one.ID == two.ID || one.Name != one.ID {
			t.Errorf("two nameless grants are %+v and %+v", one, two)
		}
	})
}

func TestGiven(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		a, ctx := open(t, d), t.Context()
		given := func(tenant estover.TenantID, agent, resource string) (ever bool) {
			t.Helper()
			if err := d.View(ctx, tenant, func(tx *db.Tx) (err error) {
				ever, err = access.Given(ctx, tx, agent, resource)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return ever
		}
		if given(ada.Tenant, "agt_bot", "res_crm") {
			t.Error("before there is a grant, one was given")
		}
		g := put(t, a, spec("support"))
		for _, when := range []string{"while it lasts", "when it is over"} {
			if !given(ada.Tenant, "agt_bot", "res_crm") {
				t.Errorf("%s, no grant was ever given", when)
			}
			if given(ada.Tenant, "agt_other", "res_crm") || given(ada.Tenant, "agt_bot", "res_wiki") || given(eve.Tenant, "agt_bot", "res_crm") {
				t.Errorf("%s, a grant of another agent, resource or tenant was given", when)
			}
			if when == "while it lasts" {
				if _, err := a.End(ctx, ada, g.ID, "over"); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

func TestPutRefuses(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		a := open(t, d)
		for _, c := range []struct {
			what  string
			edit  func(*access.Spec)
			want  error
			field string
		}{
			{"a name with a space", func(s *access.Spec) { s.Name = "my grant" }, access.ErrInvalid, "name"},
			{"no agent", func(s *access.Spec) { s.Agent = "" }, access.ErrInvalid, "agent"},
			{"an agent that is not there", func(s *access.Spec) { s.Agent = "nobody" }, access.ErrReference, "agent"},
			{"no resource", func(s *access.Spec) { s.Resource = "" }, access.ErrInvalid, "resource"},
			{"a resource that is not there", func(s *access.Spec) { s.Resource = "nothing" }, access.ErrReference, "resource"},
			{"no actions", func(s *access.Spec) { s.Actions = nil }, access.ErrInvalid, "actions"},
			{"every action and one", func(s *access.Spec) { s.Actions = []string{"*", "customer.read"} }, access.ErrInvalid, "actions"},
			{"a pattern of actions", func(s *access.Spec) { s.Actions = []string{"customer.*"} }, access.ErrInvalid, "actions[0]"},
			{"an action that is not there", func(s *access.Spec) { s.Actions = []string{"destroy"} }, &estover.Error{Code: "action_not_found"}, "actions[0]"},
			{"no purposes", func(s *access.Spec) { s.Purposes = nil }, access.ErrInvalid, "purposes"},
			{"every purpose", func(s *access.Spec) { s.Purposes = []string{"*"} }, access.ErrInvalid, "purposes[0]"},
			{"an undeclared purpose", func(s *access.Spec) { s.Purposes = []string{"espionage"} }, &estover.Error{Code: "purpose_not_declared"}, "purposes[0]"},
			{"no class", func(s *access.Spec) { s.Class = "" }, access.ErrInvalid, "class"},
			{"an end before its beginning", func(s *access.Spec) {
				s.StartsAt, s.ExpiresAt = d.Now().Add(2*time.Hour), d.Now().Add(time.Hour)
			}, access.ErrInvalid, "expires_at"},
			{"an end that is over", func(s *access.Spec) { s.ExpiresAt = d.Now().Add(-time.Hour) }, access.ErrInvalid, "expires_at"},
		} {
			s := spec("support")
			c.edit(&s)
			_, err := a.Put(t.Context(), ada, s, "")
			var e *estover.Error
			if !errors.Is(err, c.want) || !errors.As(err, &e) || e.Field != c.field {
				t.Errorf("a grant with %s: %v, want %v at %s", c.what, err, c.want, c.field)
			}
		}
		if list, _, err := a.List(t.Context(), ada, access.Filter{}, "", 0); err != nil || len(list) != 0 {
			t.Errorf("after all that there are %v, %v", list, err)
		}
	})
}

func TestEnd(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		a, ctx := open(t, d), t.Context()
		g := put(t, a, spec("support"))
		live := []db.Epoch{{Table: access.Table, ID: g.ID, Epoch: g.Epoch}}
		if err := d.Append(ctx, db.Append{Tenant: ada.Tenant, Live: live}); err != nil {
			t.Errorf("a write that rests on a live grant: %v", err)
		}
		if _, err := a.End(ctx, ada, g.ID, ""); !errors.Is(err, access.ErrReason) {
			t.Errorf("ending it without a reason: %v, want ErrReason", err)
		}
		if _, err := a.Grants(ctx, ada.Tenant, g.Agent); err != nil {
			t.Fatal(err)
		}
		ended, err := a.End(ctx, ada, g.ID, "the project is over")
		if err != nil || ended.State != access.Ended || ended.EndReason != "the project is over" {
			t.Errorf("ended it is %+v, %v", ended, err)
		}
		if grants, err := a.Grants(ctx, ada.Tenant, g.Agent); err != nil || len(grants) != 0 {
			t.Errorf("the agent holds %v, %v", grants, err)
		}
		if err := d.Append(ctx, db.Append{Tenant: ada.Tenant, Live: live}); !errors.Is(err, db.ErrStale) {
			t.Errorf("a write that rests on an ended grant: %v, want ErrStale", err)
		}
		if _, err := a.End(ctx, ada, g.ID, "again"); !errors.Is(err, access.ErrEnded) {
			t.Errorf("ending it again: %v, want ErrEnded", err)
		}
		if _, err := a.End(ctx, ada, "grt_unknown", "x"); !errors.Is(err, access.ErrNotFound) {
			t.Errorf("ending what is not there: %v, want ErrNotFound", err)
		}
		put(t, a, spec("support")) // the name is free
	})
}

func TestEndMany(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		g := guardtest.New(t, d, guardtest.AllowAll)
		a, ctx := access.New(g, options), t.Context()
		for i, s := range []struct{ agent, resource string }{{"agt_a", "res_x"}, {"agt_a", "res_y"}, {"agt_b", "res_x"}, {"agt_b", "res_y"}} {
			g := spec(fmt.Sprint("g", i))
			g.Agent, g.Resource = s.agent, s.resource
			put(t, a, g)
		}
		left := func() string {
			var names []string
			for _, agent := range []string{"agt_a", "agt_b"} {
				grants, err := a.Grants(ctx, ada.Tenant, agent)
				if err != nil {
					t.Fatal(err)
				}
				for _, g := range grants {
					names = append(names, g.Name)
				}
			}
			return strings.Join(names, " ")
		}
		if got := left(); got != "g0 g1 g2 g3" {
			t.Fatalf("there are %s", got)
		}
		do := func(tenant estover.TenantID, fn func(tx *guard.Tx) ([]string, error)) (ids []string) {
			t.Helper()
			err := g.Do(ctx, estover.Caller{Tenant: tenant, Subject: ada.Subject}, guard.Op{Action: "containment.run"}, func(tx *guard.Tx) (err error) {
				ids, err = fn(tx)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return ids
		}
		if ids := do(eve.Tenant, func(tx *guard.Tx) ([]string, error) { return access.EndOfAgent(ctx, tx, "agt_a", "x") }); len(ids) != 0 {
			t.Errorf("another tenant ends %v", ids)
		}
		if ids := do(ada.Tenant, func(tx *guard.Tx) ([]string, error) { return access.EndOfAgent(ctx, tx, "agt_a", "contained") }); len(ids) != 2 || left() != "g2 g3" {
			t.Errorf("of one agent ended %v, and left are %s", ids, left())
		}
	})
}

func TestList(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		a, ctx := open(t, d), t.Context()
		for i := range 5 {
			s := spec(fmt.Sprint("g", i))
			if i%2 == 1 {
				s.Agent = "agt_other"
			}
			if i == 3 {
				s.Resource, s.ExpiresAt = "res_erp", d.Now().Add(time.Minute)
			}
			g := put(t, a, s)
			if i == 2 {
				if _, err := a.End(ctx, ada, g.ID, "x"); err != nil {
					t.Fatal(err)
				}
			}
			clock.Advance(time.Second)
		}
		clock.Advance(time.Hour)
		show := func(f access.Filter, limit int) string {
			t.Helper()
			var names []string
			for after := ""; ; {
				list, next, err := a.List(ctx, ada, f, after, limit)
				if err != nil {
					t.Fatal(err)
				}
				for _, g := range list {
					names = append(names, g.Name+"/"+string(g.State))
				}
				if after = next; after == "" {
					return strings.Join(names, " ")
				}
			}
		}
		for _, c := range []struct {
			filter access.Filter
			limit  int
			want   string
		}{
			{access.Filter{}, 2, "g4/live g3/expired g2/ended g1/live g0/live"},
			{access.Filter{Live: true}, 1, "g4/live g1/live g0/live"},
			{access.Filter{Agent: "agt_other"}, 0, "g3/expired g1/live"},
			{access.Filter{Resource: "res_erp"}, 0, "g3/expired"},
			{access.Filter{ManagedBy: "apply/default"}, 0, ""},
		} {
			if got := show(c.filter, c.limit); got != c.want {
				t.Errorf("the list of %+v by %d is %q, want %q", c.filter, c.limit, got, c.want)
			}
		}
		for _, cursor := range []string{"x", "1", ".", "x.grt"} {
			if _, _, err := a.List(ctx, ada, access.Filter{}, cursor, 0); !errors.Is(err, access.ErrInvalid) {
				t.Errorf("from the cursor %q: %v, want ErrInvalid", cursor, err)
			}
		}
	})
}

func TestTenants(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		a, ctx := open(t, d), t.Context()
		g := put(t, a, spec("support"))
		for what, err := range map[string]error{
			"get":     func() error { _, err := a.Get(ctx, eve, g.ID); return err }(),
			"by name": func() error { _, err := a.ByName(ctx, eve, "support"); return err }(),
			"end":     func() error { _, err := a.End(ctx, eve, g.ID, "x"); return err }(),
		} {
			if !errors.Is(err, access.ErrNotFound) {
				t.Errorf("%s of another tenant's grant: %v, want ErrNotFound", what, err)
			}
		}
		if list, _, err := a.List(ctx, eve, access.Filter{}, "", 0); err != nil || len(list) != 0 {
			t.Errorf("another tenant lists %v, %v", list, err)
		}
		if grants, err := a.Grants(ctx, eve.Tenant, "agt_bot"); err != nil || len(grants) != 0 {
			t.Errorf("in another tenant the agent holds %v, %v", grants, err)
		}
		if own, err := a.Put(ctx, eve, spec("support"), ""); err != nil || own.ID == g.ID {
			t.Errorf("the same name in another tenant: %+v, %v", own, err)
		}
		if got, err := a.Get(ctx, ada, g.ID); err != nil || got.State != access.Live {
			t.Errorf("after that the grant is %+v, %v", got, err)
		}
	})
}

// TestPutAtOnce: however many put different grants under one name, one is
// live afterwards.
func TestPutAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		a := open(t, d)
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				s := spec("support")
				s.Actions = []string{fmt.Sprintf("action-%d", i)}
				if _, err := a.Put(t.Context(), ada, s, ""); err != nil && !errors.Is(err, db.ErrStale) && !errors.Is(err, access.ErrEnded) {
					t.Errorf("putting a grant beside others: %v", err)
				}
			})
		}
		wg.Wait()
		list, _, err := a.List(t.Context(), ada, access.Filter{Live: true}, "", 0)
		grants, err2 := a.Grants(t.Context(), ada.Tenant, "agt_bot")
		if err != nil || err2 != nil || len(list) != 1 || len(grants) != 1 || grants[0].ID != list[0].ID {
			t.Errorf("live are %v and in memory %v (%v, %v), want one, the same", list, grants, err, err2)
		}
	})
}

func TestRefused(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		g := put(t, open(t, d), spec("support"))
		a, ctx := access.New(guardtest.New(t, d, guardtest.DenyAll), options), t.Context()
		for action, try := range map[string]func() error{
			"grant.create": func() error { _, err := a.Put(ctx, ada, spec("two"), ""); return err },
			"grant.end":    func() error { _, err := a.End(ctx, ada, g.ID, "x"); return err },
			"grant.read":   func() error { _, err := a.Get(ctx, ada, g.ID); return err },
			"grant.list":   func() error { _, _, err := a.List(ctx, ada, access.Filter{}, "", 0); return err },
		} {
			var refusal *guard.Refusal
			if err := try(); !errors.As(err, &refusal) {
				t.Errorf("%s: %v, want a refusal", action, err)
			}
		}
		if list, _, err := open(t, d).List(ctx, ada, access.Filter{Live: true}, "", 0); err != nil || len(list) != 1 {
			t.Errorf("after the refusals there are %v, %v", list, err)
		}
	})
}

// TestEntitled compares Entitled with what its words say, grant by grant.
func TestEntitled(t *testing.T) {
	now := time.Unix(1_800_000_000, 0).UTC()
	words := func(list ...string) *rapid.Generator[string] { return rapid.SampledFrom(list) }
	class := rapid.SampledFrom([]estover.Class{estover.Public, estover.Internal, estover.Confidential, estover.Restricted, "unknown"})
	moment := rapid.Custom(func(t *rapid.T) time.Time {
		h := rapid.IntRange(-2, 2).Draw(t, "hour")
		if h == 2 {
			return time.Time{}
		}
		return now.Add(time.Duration(h) * time.Hour)
	})
	grant := rapid.Custom(func(t *rapid.T) access.Grant {
		return access.Grant{Spec: access.Spec{
			Resource: words("res_x", "res_y").Draw(t, "resource"),
			Actions:  rapid.SliceOfN(words("read", "write", "*"), 1, 2).Draw(t, "actions"),
			Purposes: rapid.SliceOfN(words("support", "billing"), 1, 2).Draw(t, "purposes"),
			Class:    class.Draw(t, "class"), StartsAt: moment.Draw(t, "starts"), ExpiresAt: moment.Draw(t, "expires"),
		}, EndedAt: rapid.SampledFrom([]time.Time{{}, {}, {}, now}).Draw(t, "ended")}
	})
	rapid.Check(t, func(t *rapid.T) {
		grants := rapid.SliceOfN(grant, 0, 8).Draw(t, "grants")
		resource, action, purpose, of := words("res_x", "res_y").Draw(t, "resource"), words("read", "write").Draw(t, "action"), words("support", "billing").Draw(t, "purpose"), class.Draw(t, "class")
		order := map[estover.Class]int{estover.Public: 1, estover.Internal: 2, estover.Confidential: 3, estover.Restricted: 4}
		want, wantFit := -1, access.NotGranted
		for i, g := range grants {
			begun := g.StartsAt.IsZero() || g.StartsAt.Equal(now) || g.StartsAt.Before(now)
			over := !g.EndedAt.IsZero() || !g.ExpiresAt.IsZero() && !g.ExpiresAt.After(now)
			covers := order[of] > 0 && order[g.Class] >= order[of]
			names := slices.Contains(g.Actions, action) || slices.Contains(g.Actions, "*")
			if g.Resource != resource || !begun || over || !covers || !names {
				continue
			}
			fit := access.OtherPurpose
			if slices.Contains(g.Purposes, purpose) {
				fit = access.Granted
			}
			if fit > wantFit {
				want, wantFit = i, fit
			}
		}
		got, fit := access.Entitled(now, grants, access.Call{Resource: resource, Action: action, Class: of, Purpose: purpose})
		if fit != wantFit || (got == nil) != (want < 0) || got != nil && got != &grants[want] {
			t.Fatalf("%s of %s for %s (%s): %v, %+v, want %v, grant %d of %+v", action, resource, purpose, of, fit, got, wantFit, want, grants)
		}
	})
}
