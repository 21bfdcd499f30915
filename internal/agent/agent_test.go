package agent_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
)

var (
	ada = estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User("usr_ada")}
	eve = estover.Caller{Tenant: "other", Subject: estover.User("usr_eve")}
)

var errStranger = &estover.Error{Kind: estover.NotFound, Code: "person_not_found", Detail: "no such person"}

// options are a directory of two people and a pepper of the tenant's own.
var options = agent.Options{
	Sponsor: func(_ context.Context, _ *db.Tx, person string) error {
		if person != "usr_ada" && person != "usr_bob" {
			return errStranger
		}
		return nil
	},
	Pepper: func(tenant estover.TenantID, secret []byte) []byte {
		m := hmac.New(sha256.New, []byte("pepper of "+tenant))
		m.Write(secret)
		return m.Sum(nil)
	},
}

// TestMain has rapid do fewer runs than it does by itself: each step of the
// model is a commit. `go test ./internal/agent -rapid.checks=1000` does more.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "30"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func open(t *testing.T, d *db.DB) *agent.Registry {
	return agent.New(guardtest.New(t, d, guardtest.AllowAll), options)
}

func spec(name string) agent.Spec {
	return agent.Spec{
		Name: name, Blueprint: "invoices", Sponsor: "usr_ada", Team: "billing", Environment: "production",
		Purposes: []string{"invoicing", "dunning"}, Clearance: estover.Confidential,
	}
}

func create(t *testing.T, r *agent.Registry, s agent.Spec) agent.Agent {
	t.Helper()
	a, err := r.Create(t.Context(), ada, s, agent.Origin{})
	if err != nil {
		t.Fatalf("creating %s: %v", s.Name, err)
	}
	return a
}

func get(t *testing.T, r *agent.Registry, id string) agent.Agent {
	t.Helper()
	a, err := r.Get(t.Context(), ada, id)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestCreate(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := open(t, d)
		s := spec("bot")
		s.Segments, s.ExpiresAt = []string{"office", "billing", "office"}, d.Now().Add(time.Hour)
		made := create(t, r, s)
		got := get(t, r, made.ID)
		if got.Status != agent.Active || got.Epoch != 1 || got.Tier != agent.Low || got.Clearance != estover.Confidential || !got.ExpiresAt.Equal(s.ExpiresAt) ||
			!slices.Equal(got.Purposes, []string{"dunning", "invoicing"}) || !slices.Equal(got.Segments, []string{"billing", "office"}) || len(got.Holds) != 0 {
			t.Errorf("the agent is %+v", got)
		}
		if a, err := r.ByName(t.Context(), ada, "bot"); err != nil || a.ID != made.ID {
			t.Errorf("by its name: %+v, %v", a, err)
		}
		text, err := json.Marshal(got)
		if err != nil || !strings.Contains(string(text), `"name":"bot"`) || !strings.Contains(string(text), `"status":"active"`) || !strings.Contains(string(text), `"holds":[]`) {
			t.Errorf("as JSON: %s, %v", text, err)
		}

		for _, c := range []struct {
			what  string
			edit  func(*agent.Spec)
			want  error
			field string
		}{
			{"a taken name", func(s *agent.Spec) { s.Name = "bot" }, agent.ErrNameTaken, "name"},
			{"a name like an id", func(s *agent.Spec) { s.Name = "agt_sly" }, agent.ErrInvalid, "name"},
			{"a name with a space", func(s *agent.Spec) { s.Name = "my bot" }, agent.ErrInvalid, "name"},
			{"no blueprint", func(s *agent.Spec) { s.Blueprint = "" }, agent.ErrInvalid, "blueprint"},
			{"no sponsor", func(s *agent.Spec) { s.Sponsor = "" }, agent.ErrInvalid, "sponsor"},
			{"a stranger as sponsor", func(s *agent.Spec) { s.Sponsor = "usr_mallory" }, agent.ErrSponsor, "sponsor"},
			{"no purpose", func(s *agent.Spec) { s.Purposes = nil }, agent.ErrInvalid, "purposes"},
			{"a purpose with a space", func(s *agent.Spec) { s.Purposes = []string{"invoicing", "every thing"} }, agent.ErrInvalid, "purposes[1]"},
			{"no clearance", func(s *agent.Spec) { s.Clearance = "" }, agent.ErrInvalid, "clearance"},
			{"an unknown tier", func(s *agent.Spec) { s.Tier = "extreme" }, agent.ErrInvalid, "tier"},
			{"an expiry that is over", func(s *agent.Spec) { s.ExpiresAt = d.Now().Add(-time.Second) }, agent.ErrInvalid, "expires_at"},
		} {
			s := spec("another")
			c.edit(&s)
			_, err := r.Create(t.Context(), ada, s, agent.Origin{})
			var e *estover.Error
			if !errors.Is(err, c.want) || !errors.As(err, &e) || e.Field != c.field {
				t.Errorf("an agent with %s: %v, want %v at %s", c.what, err, c.want, c.field)
			}
		}

		waiting, err := r.Create(t.Context(), ada, spec("waiting"), agent.Origin{Pending: "Its sponsor has not yet agreed.", ManagedBy: "scim"})
		if err != nil || waiting.Status != agent.Pending || waiting.ManagedBy != "scim" {
			t.Fatalf("a pending agent is %+v, %v", waiting, err)
		}
		if a, err := r.Lift(t.Context(), ada, waiting.ID, waiting.Holds[0].ID, "agreed"); err != nil || a.Status != agent.Active {
			t.Errorf("activated it is %+v, %v", a, err)
		}
	})
}

// TestTenants: nothing of one tenant is found under the name of another.
func TestTenants(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r, ctx := open(t, d), t.Context()
		a := create(t, r, spec("bot"))
		h, err := r.Hold(ctx, ada, a.ID, agent.Suspension, "holiday")
		if err != nil {
			t.Fatal(err)
		}
		secret, c, err := r.CreateSecret(ctx, ada, a.ID, "", 0)
		if err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{
			"get":         func() error { _, err := r.Get(ctx, eve, a.ID); return err }(),
			"by name":     func() error { _, err := r.ByName(ctx, eve, "bot"); return err }(),
			"update":      func() error { _, err := r.Update(ctx, eve, a.ID, spec("bot")); return err }(),
			"hold":        func() error { _, err := r.Hold(ctx, eve, a.ID, agent.Quarantine, "x"); return err }(),
			"lift":        func() error { _, err := r.Lift(ctx, eve, a.ID, h.ID, "x"); return err }(),
			"secret":      func() error { _, _, err := r.CreateSecret(ctx, eve, a.ID, "", 0); return err }(),
			"credentials": func() error { _, err := r.Credentials(ctx, eve, a.ID); return err }(),
			"snapshot":    func() error { _, err := r.Snapshot(ctx, eve.Tenant, a.ID); return err }(),
		} {
			if !errors.Is(err, agent.ErrNotFound) {
				t.Errorf("%s of another tenant's agent: %v, want ErrNotFound", what, err)
			}
		}
		if err := r.RetireCredential(ctx, eve, a.ID, c.ID, 0); !errors.Is(err, agent.ErrCredentialNotFound) {
			t.Errorf("retiring another tenant's credential: %v, want ErrCredentialNotFound", err)
		}
		if _, _, err := r.BySecret(ctx, eve.Tenant, a.ID, string(secret.Reveal())); !errors.Is(err, agent.ErrCredential) {
			t.Errorf("another tenant's secret: %v, want ErrCredential", err)
		}
		if list, _, err := r.List(ctx, eve, agent.Filter{}, "", 0); err != nil || len(list) != 0 {
			t.Errorf("another tenant lists %v, %v", list, err)
		}
		if got := get(t, r, a.ID); got.Epoch != 2 || len(got.Holds) != 1 {
			t.Errorf("after all that the agent is %+v", got)
		}
		if other, err := r.Create(ctx, estover.Caller{Tenant: "other", Subject: ada.Subject}, spec("bot"), agent.Origin{}); err != nil || other.ID == a.ID {
			t.Errorf("the same name in another tenant: %+v, %v", other, err)
		}
	})
}

func TestUpdate(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := open(t, d)
		s := spec("bot")
		id := create(t, r, s).ID
		epoch := int64(1)
		for _, c := range []struct {
			what   string
			edit   func()
			raises bool
		}{
			{"another purpose", func() { s.Purposes = append(s.Purposes, "reporting") }, false},
			{"one purpose less", func() { s.Purposes = []string{"invoicing", "reporting"} }, true},
			{"more clearance", func() { s.Clearance = estover.Restricted }, false},
			{"less clearance", func() { s.Clearance = estover.Internal }, true},
			{"an expiry", func() { s.ExpiresAt = d.Now().Add(2 * time.Hour) }, true},
			{"a later expiry", func() { s.ExpiresAt = s.ExpiresAt.Add(time.Hour) }, false},
			{"no expiry", func() { s.ExpiresAt = time.Time{} }, false},
			{"another tier", func() { s.Tier = agent.High }, true},
			{"a segment", func() { s.Segments = []string{"office"} }, true},
			{"another sponsor", func() { s.Sponsor = "usr_bob" }, true},
			{"another team", func() { s.Team = "" }, true},
			{"nothing", func() {}, false},
		} {
			c.edit()
			if c.raises {
				epoch++
			}
			a, err := r.Update(t.Context(), ada, id, s)
			if err != nil || a.Epoch != epoch {
				t.Errorf("with %s the epoch is %d, %v, want %d", c.what, a.Epoch, err, epoch)
			}
			want, err := agent.Check(s)
			if got := get(t, r, id); err != nil || got.Epoch != epoch || !slices.Equal(got.Purposes, want.Purposes) || got.Clearance != want.Clearance ||
				!got.ExpiresAt.Equal(want.ExpiresAt) || got.Tier != want.Tier || !slices.Equal(got.Segments, want.Segments) || got.Sponsor != want.Sponsor || got.Team != want.Team {
				t.Errorf("with %s it is stored as %+v", c.what, got)
			}
		}
		renamed := s
		renamed.Name = "robot"
		if _, err := r.Update(t.Context(), ada, id, renamed); !errors.Is(err, agent.ErrInvalid) {
			t.Errorf("renaming it: %v, want ErrInvalid", err)
		}
		s.Sponsor = "usr_mallory"
		if _, err := r.Update(t.Context(), ada, id, s); !errors.Is(err, agent.ErrSponsor) {
			t.Errorf("a stranger as its sponsor: %v, want ErrSponsor", err)
		}
	})
}

func TestList(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := open(t, d)
		for i, name := range []string{"dora", "anna", "carl", "ben", "eric"} {
			s := spec(name)
			if i%2 == 1 {
				s.Sponsor, s.Blueprint, s.Team = "usr_bob", "support", "care"
			}
			a := create(t, r, s)
			if name == "ben" || name == "carl" {
				for _, k := range []agent.Kind{agent.Suspension, agent.Quarantine} {
					if _, err := r.Hold(t.Context(), ada, a.ID, k, "because"); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		show := func(f agent.Filter, limit int) string {
			var names []string
			for after := ""; ; {
				list, next, err := r.List(t.Context(), ada, f, after, limit)
				if err != nil {
					t.Fatal(err)
				}
				for _, a := range list {
					word := a.Name
					if len(a.Holds) > 0 {
						word += "/" + string(a.Status)
					}
					names = append(names, word)
				}
				if after = next; after == "" {
					return strings.Join(names, " ")
				}
			}
		}
		for _, c := range []struct {
			filter agent.Filter
			limit  int
			want   string
		}{
			{agent.Filter{}, 2, "anna ben/quarantined carl/quarantined dora eric"},
			{agent.Filter{}, 5, "anna ben/quarantined carl/quarantined dora eric"},
			{agent.Filter{Sponsor: "usr_bob"}, 1, "anna ben/quarantined"},
			{agent.Filter{Blueprint: "invoices"}, 0, "carl/quarantined dora eric"},
			{agent.Filter{Team: "care", Hold: agent.Suspension}, 0, "ben/quarantined"},
			{agent.Filter{Hold: agent.Retirement}, 0, ""},
			{agent.Filter{ManagedBy: "apply/default"}, 0, ""},
		} {
			if got := show(c.filter, c.limit); got != c.want {
				t.Errorf("the list of %+v by %d is %q, want %q", c.filter, c.limit, got, c.want)
			}
		}
	})
}

func TestGrantable(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := open(t, d)
		a := create(t, r, spec("bot"))
		try := func(tenant estover.TenantID, purposes ...string) error {
			return d.View(t.Context(), tenant, func(tx *db.Tx) error { return r.Grantable(t.Context(), tx, a.ID, purposes) })
		}
		if err := try(ada.Tenant, "dunning"); err != nil {
			t.Errorf("a declared purpose: %v", err)
		}
		if err := try(ada.Tenant, "dunning", "espionage"); !errors.Is(err, agent.ErrPurpose) {
			t.Errorf("an undeclared purpose: %v, want ErrPurpose", err)
		}
		if err := try(eve.Tenant, "dunning"); !errors.Is(err, agent.ErrNotFound) {
			t.Errorf("another tenant's agent: %v, want ErrNotFound", err)
		}
		if err := r.Retire(t.Context(), ada, a.ID, "replaced"); err != nil {
			t.Fatal(err)
		}
		if err := try(ada.Tenant, "dunning"); !errors.Is(err, agent.ErrRetired) {
			t.Errorf("a retired agent: %v, want ErrRetired", err)
		}
	})
}

// TestRefused: without a permit nothing happens and nothing is shown.
func TestRefused(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		a := create(t, open(t, d), spec("bot"))
		r, ctx := agent.New(guardtest.New(t, d, guardtest.DenyAll), options), t.Context()
		for action, try := range map[string]func() error{
			"agent.create":      func() error { _, err := r.Create(ctx, ada, spec("two"), agent.Origin{}); return err },
			"agent.update":      func() error { _, err := r.Update(ctx, ada, a.ID, spec("bot")); return err },
			"agent.hold":        func() error { _, err := r.Hold(ctx, ada, a.ID, agent.Suspension, "x"); return err },
			"agent.lift":        func() error { _, err := r.Lift(ctx, ada, a.ID, "hld_x", "x"); return err },
			"agent.risk":        func() error { _, err := r.SetRisk(ctx, ada, a.ID, agent.HighRisk, "x"); return err },
			"agent.read":        func() error { _, err := r.Get(ctx, ada, a.ID); return err },
			"agent.list":        func() error { _, _, err := r.List(ctx, ada, agent.Filter{}, "", 0); return err },
			"credential.create": func() error { _, _, err := r.CreateSecret(ctx, ada, a.ID, "", 0); return err },
			"credential.list":   func() error { _, err := r.Credentials(ctx, ada, a.ID); return err },
			"credential.retire": func() error { return r.RetireCredential(ctx, ada, a.ID, "crd_x", 0) },
		} {
			var refusal *guard.Refusal
			if err := try(); !errors.As(err, &refusal) {
				t.Errorf("%s: %v, want a refusal", action, err)
			}
			var n int
			err := d.View(ctx, ada.Tenant, func(tx *db.Tx) error {
				return tx.QueryRow(ctx, "select count(*) from audit where tenant_id = $1 and action = $2 and outcome = 'refused'", tx.Tenant(), action).Scan(&n)
			})
			if err != nil || n != 1 {
				t.Errorf("%s: the log has %d refusals, %v, want one", action, n, err)
			}
		}
		if got := get(t, open(t, d), a.ID); got.Epoch != 1 || len(got.Holds) != 0 {
			t.Errorf("after the refusals the agent is %+v", got)
		}
	})
}
