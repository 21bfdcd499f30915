package directory_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/opaque"
)

var (
	root = estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.System("test")}
	eve  = estover.Caller{Tenant: "other", Subject: estover.User("usr_eve"), Roles: []estover.Role{estover.Admin}}
)

func open(t *testing.T, d *db.DB) *directory.Directory {
	return directory.New(guardtest.New(t, d, guardtest.AllowAll), directory.Options{})
}

func create(t *testing.T, dir *directory.Directory, name string, roles ...estover.Role) directory.Person {
	t.Helper()
	p, err := dir.Create(t.Context(), root, directory.Spec{Name: name, Email: name + "@example.com", Roles: roles}, "")
	if err != nil {
		t.Fatalf("creating %s: %v", name, err)
	}
	return p
}

func enter(t *testing.T, dir *directory.Directory, person string) (string, directory.Token) {
	t.Helper()
	invitation, _, err := dir.Invite(t.Context(), root, person, 0)
	if err != nil {
		t.Fatalf("inviting %s: %v", person, err)
	}
	value, token, err := dir.Redeem(t.Context(), root, string(invitation.Reveal()), "laptop", 0)
	if err != nil {
		t.Fatalf("redeeming the enrolment of %s: %v", person, err)
	}
	return string(value.Reveal()), token
}

func TestPeople(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		alice := create(t, dir, "alice", estover.Operator, estover.Admin, estover.Operator)
		bob := create(t, dir, "bob")

		got, err := dir.Get(t.Context(), root, alice.ID)
		if err != nil {
			t.Fatal(err)
		}
		if got.Name != "alice" || got.Email != "alice@example.com" || got.Status != directory.Active || got.Epoch != 1 ||
			!slices.Equal(got.Roles, []estover.Role{estover.Admin, estover.Operator}) || got.CreatedAt.IsZero() {
			t.Errorf("alice is %+v", got)
		}
		if p, err := dir.ByName(t.Context(), root, "bob"); err != nil || p.ID != bob.ID {
			t.Errorf("by the name bob: %+v, %v", p, err)
		}
		for _, c := range []struct {
			spec  directory.Spec
			want  error
			field string
		}{
			{directory.Spec{Name: "alice", Email: "other@example.com"}, directory.ErrNameTaken, "name"},
			{directory.Spec{Name: "carol", Email: "ALICE@example.com"}, directory.ErrEmailTaken, "email"},
			{directory.Spec{Name: "Carol"}, directory.ErrInvalid, "name"},
			{directory.Spec{Name: "carol", Email: "Carol <carol@example.com>"}, directory.ErrInvalid, "email"},
			{directory.Spec{Name: "carol", Roles: []estover.Role{"admin", "root"}}, directory.ErrInvalid, "roles[1]"},
		} {
			_, err := dir.Create(t.Context(), root, c.spec, "")
			var e *estover.Error
			if !errors.Is(err, c.want) || !errors.As(err, &e) || e.Field != c.field {
				t.Errorf("creating %+v: %v, want %v at %s", c.spec, err, c.want, c.field)
			}
		}

		// Another tenant's people are not found, whatever is tried.
		if _, err := dir.Get(t.Context(), eve, alice.ID); !errors.Is(err, directory.ErrNotFound) {
			t.Errorf("another tenant gets alice: %v, want ErrNotFound", err)
		}
		if _, err := dir.ByName(t.Context(), eve, "alice"); !errors.Is(err, directory.ErrNotFound) {
			t.Errorf("another tenant gets alice by name: %v, want ErrNotFound", err)
		}
		if _, err := dir.Update(t.Context(), eve, alice.ID, alice.Spec); !errors.Is(err, directory.ErrNotFound) {
			t.Errorf("another tenant updates alice: %v, want ErrNotFound", err)
		}
		if _, err := dir.Disable(t.Context(), eve, alice.ID, ""); !errors.Is(err, directory.ErrNotFound) {
			t.Errorf("another tenant disables alice: %v, want ErrNotFound", err)
		}
		if _, _, err := dir.Invite(t.Context(), eve, alice.ID, 0); !errors.Is(err, directory.ErrNotFound) {
			t.Errorf("another tenant invites alice: %v, want ErrNotFound", err)
		}
		if _, err := dir.Tokens(t.Context(), eve, alice.ID); !errors.Is(err, directory.ErrNotFound) {
			t.Errorf("another tenant lists alice's tokens: %v, want ErrNotFound", err)
		}
		if people, _, err := dir.List(t.Context(), eve, directory.Filter{}, "", 0); err != nil || len(people) != 0 {
			t.Errorf("another tenant lists %v, %v, want nobody", people, err)
		}

		if _, err := dir.Update(t.Context(), root, bob.ID, directory.Spec{Name: "robert"}); !errors.Is(err, directory.ErrInvalid) {
			t.Errorf("renaming bob: %v, want ErrInvalid", err)
		}
		if _, err := dir.Update(t.Context(), root, bob.ID, directory.Spec{Name: "bob", Email: "alice@example.com"}); !errors.Is(err, directory.ErrEmailTaken) {
			t.Errorf("bob takes alice's address: %v, want ErrEmailTaken", err)
		}
		p, err := dir.Update(t.Context(), root, bob.ID, directory.Spec{Name: "bob", Roles: []estover.Role{estover.Auditor}})
		if err != nil || p.Epoch != 2 || p.Email != "" {
			t.Errorf("bob becomes an auditor: %+v, %v, want epoch 2 and no address", p, err)
		}
		again, err := dir.Get(t.Context(), root, bob.ID)
		if err != nil || !slices.Equal(again.Roles, p.Roles) || again.Epoch != 2 {
			t.Errorf("bob is stored as %+v, %v", again, err)
		}
	})
}

func TestList(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		for _, name := range []string{"dora", "anna", "carl", "ben", "eric"} {
			create(t, dir, name)
		}
		if _, err := dir.Create(t.Context(), root, directory.Spec{Name: "frank"}, "apply/default"); err != nil {
			t.Fatal(err)
		}
		var names []string
		for after := ""; ; {
			people, next, err := dir.List(t.Context(), root, directory.Filter{}, after, 2)
			if err != nil {
				t.Fatal(err)
			}
			if len(people) > 2 {
				t.Fatalf("a page of 2 holds %d people", len(people))
			}
			for _, p := range people {
				names = append(names, p.Name)
			}
			if after = next; after == "" {
				break
			}
		}
		if got := strings.Join(names, " "); got != "anna ben carl dora eric frank" {
			t.Errorf("the pages show %s", got)
		}
		people, next, err := dir.List(t.Context(), root, directory.Filter{ManagedBy: "apply/default"}, "", 0)
		if err != nil || len(people) != 1 || people[0].Name != "frank" || next != "" {
			t.Errorf("what apply manages: %v, %q, %v, want frank alone", people, next, err)
		}
	})
}

func TestBootstrap(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		dir := open(t, d)
		lost, err := dir.Bootstrap(t.Context(), estover.DefaultTenant)
		if err != nil || !opaque.Check(string(lost.Reveal()), opaque.Enrolment) {
			t.Fatalf("the first start gives %q, %v, want an enrolment", lost.Reveal(), err)
		}
		clock.Advance(48 * time.Hour)
		value, err := dir.Bootstrap(t.Context(), estover.DefaultTenant)
		if err != nil || value.Empty() {
			t.Fatalf("a start after the enrolment was lost gives %q, %v, want another", value.Reveal(), err)
		}
		if _, _, err := dir.Redeem(t.Context(), root, string(lost.Reveal()), "", 0); !errors.Is(err, directory.ErrEnrolment) {
			t.Errorf("redeeming an enrolment after two days: %v, want ErrEnrolment", err)
		}
		token, _, err := dir.Redeem(t.Context(), root, string(value.Reveal()), "", 0)
		if err != nil {
			t.Fatal(err)
		}
		caller, err := dir.Authenticate(t.Context(), estover.DefaultTenant, string(token.Reveal()))
		if err != nil || !caller.Has(estover.Admin) {
			t.Fatalf("the first person is %+v, %v, want an administrator", caller, err)
		}
		if p, err := dir.Get(t.Context(), root, caller.Subject.ID()); err != nil || p.Name != "admin" {
			t.Errorf("the first person is %+v, %v, want the name admin", p, err)
		}
		if again, err := dir.Bootstrap(t.Context(), estover.DefaultTenant); err != nil || !again.Empty() {
			t.Errorf("a start after somebody came in gives %q, %v, want nothing", again.Reveal(), err)
		}
		if other, err := dir.Bootstrap(t.Context(), "other"); err != nil || other.Empty() {
			t.Errorf("the first start of another tenant gives %q, %v, want an enrolment", other.Reveal(), err)
		}
	})
}

// TestBootstrapAtOnce starts nodes side by side: each may hand out an
// enrolment, and all are for one person.
func TestBootstrapAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if value, err := dir.Bootstrap(t.Context(), estover.DefaultTenant); err != nil || value.Empty() {
					t.Errorf("a start beside others gives %q, %v, want an enrolment", value.Reveal(), err)
				}
			})
		}
		wg.Wait()
		if people, _, err := dir.List(t.Context(), root, directory.Filter{}, "", 0); err != nil || len(people) != 1 {
			t.Errorf("eight starts made %v, %v, want one person", people, err)
		}
	})
}

func TestRedeemOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		alice := create(t, dir, "alice", estover.Admin)
		value, _, err := dir.Invite(t.Context(), root, alice.ID, 0)
		if err != nil {
			t.Fatal(err)
		}
		spare, _, err := dir.Invite(t.Context(), root, alice.ID, 0)
		if err != nil {
			t.Fatal(err)
		}
		var won, lost atomic.Int64
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				_, _, err := dir.Redeem(t.Context(), root, string(value.Reveal()), "", 0)
				switch {
				case err == nil:
					won.Add(1)
				case errors.Is(err, directory.ErrEnrolment):
					lost.Add(1)
				default:
					t.Errorf("redeeming beside others: %v", err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 || lost.Load() != 63 {
			t.Errorf("of 64 who redeemed one enrolment %d succeeded and %d were refused, want 1 and 63", won.Load(), lost.Load())
		}
		if tokens, err := dir.Tokens(t.Context(), root, alice.ID); err != nil || len(tokens) != 1 {
			t.Errorf("they hold %v, %v, want one token", tokens, err)
		}
		if _, _, err := dir.Redeem(t.Context(), root, string(spare.Reveal()), "", 0); !errors.Is(err, directory.ErrEnrolment) {
			t.Errorf("redeeming the other enrolment afterwards: %v, want ErrEnrolment", err)
		}
		if n := outcomes(t, d, "login.create", "failed"); n != 64 {
			t.Errorf("the log has %d failed enrolments, want 64", n)
		}
		if _, _, err := dir.Redeem(t.Context(), root, opaque.New(opaque.Enrolment), "", 0); !errors.Is(err, directory.ErrEnrolment) {
			t.Errorf("redeeming what was never issued: %v, want ErrEnrolment", err)
		}
		other := root
		other.Tenant = "other"
		again, _, err := dir.Invite(t.Context(), root, alice.ID, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := dir.Redeem(t.Context(), other, string(again.Reveal()), "", 0); !errors.Is(err, directory.ErrEnrolment) {
			t.Errorf("redeeming at another tenant: %v, want ErrEnrolment", err)
		}
	})
}

func outcomes(t *testing.T, d *db.DB, action string, outcome audit.Outcome) int {
	t.Helper()
	return guardtest.Recorded(t, d, estover.DefaultTenant, action, outcome)
}

func TestAuthenticate(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		dir := open(t, d)
		create(t, dir, "ada", estover.Admin)
		alice := create(t, dir, "alice", estover.Admin)
		value, token := enter(t, dir, alice.ID)
		refused := func(when string) {
			t.Helper()
			if c, err := dir.Authenticate(t.Context(), estover.DefaultTenant, value); !errors.Is(err, directory.ErrToken) {
				t.Errorf("%s: %+v, %v, want ErrToken", when, c, err)
			}
		}
		for range 2 { // from the database, then from memory
			c, err := dir.Authenticate(t.Context(), estover.DefaultTenant, value)
			if err != nil || c.Subject != estover.User(alice.ID) || !c.Has(estover.Admin) || c.Strength != estover.BySecret || c.Grant != token.ID {
				t.Errorf("alice's token is %+v, %v", c, err)
			}
		}
		if c, err := dir.Authenticate(t.Context(), "other", value); !errors.Is(err, directory.ErrToken) {
			t.Errorf("alice's token at another tenant is %+v, %v, want ErrToken", c, err)
		}
		for _, bad := range []string{"", value[:len(value)-1], opaque.New(opaque.PersonToken), opaque.New(opaque.ClientSecret)} {
			if c, err := dir.Authenticate(t.Context(), estover.DefaultTenant, bad); !errors.Is(err, directory.ErrToken) {
				t.Errorf("the token %q is %+v, %v, want ErrToken", bad, c, err)
			}
		}

		// A change of roles takes effect on the next call.
		if _, err := dir.Update(t.Context(), root, alice.ID, directory.Spec{Name: "alice"}); err != nil {
			t.Fatal(err)
		}
		if c, err := dir.Authenticate(t.Context(), estover.DefaultTenant, value); err != nil || c.Has(estover.Admin) {
			t.Errorf("without her role alice is %+v, %v, want no administrator", c, err)
		}

		clock.Advance(12*time.Hour + time.Second)
		refused("a token after twelve hours")

		value, token = enter(t, dir, alice.ID)
		if err := dir.Retire(t.Context(), eve, alice.ID, token.ID); !errors.Is(err, directory.ErrTokenNotFound) {
			t.Errorf("another tenant retires the token: %v, want ErrTokenNotFound", err)
		}
		if err := dir.Retire(t.Context(), root, alice.ID, token.ID); err != nil {
			t.Fatal(err)
		}
		refused("a retired token")
		if err := dir.Retire(t.Context(), root, alice.ID, token.ID); !errors.Is(err, directory.ErrTokenNotFound) {
			t.Errorf("retiring it again: %v, want ErrTokenNotFound", err)
		}

		value, _ = enter(t, dir, alice.ID)
		if _, err := dir.Disable(t.Context(), root, alice.ID, "left the company"); err != nil {
			t.Fatal(err)
		}
		refused("the token of somebody who is disabled")
		if _, _, err := dir.Invite(t.Context(), root, alice.ID, 0); !errors.Is(err, directory.ErrDisabled) {
			t.Errorf("inviting somebody who is disabled: %v, want ErrDisabled", err)
		}
		if _, err := dir.Enable(t.Context(), root, alice.ID); err != nil {
			t.Fatal(err)
		}
		refused("the token of before she was disabled")
		if value, _ = enter(t, dir, alice.ID); value == "" {
			t.Error("alice cannot come in again")
		}
	})
}

// TestAuthenticateFromMemory: once a token is known, its database may be away.
func TestAuthenticateFromMemory(t *testing.T) {
	d := dbtest.Open(t)
	dir := open(t, d)
	value, _ := enter(t, dir, create(t, dir, "alice").ID)
	if _, err := dir.Authenticate(t.Context(), estover.DefaultTenant, value); err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel() // no transaction begins under this context
	if _, err := dir.Authenticate(over, estover.DefaultTenant, value); err != nil {
		t.Errorf("the second look at a token went to the database: %v", err)
	}
	if _, err := dir.Authenticate(over, estover.DefaultTenant, opaque.New(opaque.PersonToken)); !errors.Is(err, context.Canceled) {
		t.Errorf("an unknown token was answered without the database: %v", err)
	}
}

func TestIssue(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		value, first := enter(t, dir, create(t, dir, "alice").ID)
		alice, err := dir.Authenticate(t.Context(), estover.DefaultTenant, value)
		if err != nil {
			t.Fatal(err)
		}
		value2, second, err := dir.Issue(t.Context(), alice, "pipeline", 365*24*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if life := second.ExpiresAt.Sub(second.CreatedAt); life != directory.MaxTokenLife {
			t.Errorf("a token for a year lives %v, want the most there is, %v", life, directory.MaxTokenLife)
		}
		if c, err := dir.Authenticate(t.Context(), estover.DefaultTenant, string(value2.Reveal())); err != nil || c.Grant != second.ID {
			t.Errorf("the second token is %+v, %v", c, err)
		}
		tokens, err := dir.Tokens(t.Context(), root, alice.Subject.ID())
		if err != nil || len(tokens) != 2 || tokens[0].ID != second.ID || tokens[1].ID != first.ID || tokens[0].Label != "pipeline" {
			t.Errorf("alice holds %+v, %v, want the second and the first", tokens, err)
		}
		for _, c := range []estover.Caller{root, {Tenant: estover.DefaultTenant, Subject: estover.Agent("agt_bot")}} {
			if _, _, err := dir.Issue(t.Context(), c, "", 0); !errors.Is(err, directory.ErrNotAPerson) {
				t.Errorf("%s gets a person's token: %v, want ErrNotAPerson", c.Subject, err)
			}
		}
	})
}

func TestLastAdministrator(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		ada, bob := create(t, dir, "ada", estover.Admin), create(t, dir, "bob", estover.Admin)
		var wg sync.WaitGroup
		var done, kept atomic.Int64
		count := func(err error) {
			switch {
			case err == nil:
				done.Add(1)
			case errors.Is(err, directory.ErrLastAdmin):
				kept.Add(1)
			default:
				t.Errorf("removing an administrator: %v", err)
			}
		}
		wg.Go(func() { _, err := dir.Disable(t.Context(), root, ada.ID, ""); count(err) })
		wg.Go(func() {
			_, err := dir.Update(t.Context(), root, bob.ID, directory.Spec{Name: "bob"})
			count(err)
		})
		wg.Wait()
		if done.Load() != 1 || kept.Load() != 1 {
			t.Errorf("of two administrators removed at once %d went and %d stayed, want one each", done.Load(), kept.Load())
		}
	})
}

// TestAlive: what a caller's authority rests on is looked at again inside the
// transaction, where copies in memory may be behind.
func TestAlive(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		create(t, dir, "ada", estover.Admin)
		alice := create(t, dir, "alice", estover.Admin)
		value, token := enter(t, dir, alice.ID)
		caller, err := dir.Authenticate(t.Context(), estover.DefaultTenant, value)
		if err != nil {
			t.Fatal(err)
		}
		alive := func() error {
			return d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error { return dir.Alive(t.Context(), tx, caller) })
		}
		if err := alive(); err != nil {
			t.Errorf("a live token: %v", err)
		}
		if _, err := dir.Update(t.Context(), root, alice.ID, directory.Spec{Name: "alice"}); err != nil {
			t.Fatal(err)
		}
		if err := alive(); !errors.Is(err, db.ErrStale) {
			t.Errorf("with roles of before: %v, want ErrStale", err)
		}
		if err := dir.Retire(t.Context(), root, alice.ID, token.ID); err != nil {
			t.Fatal(err)
		}
		if err := alive(); !errors.Is(err, directory.ErrToken) {
			t.Errorf("with a retired token: %v, want ErrToken", err)
		}
		caller.Grant = "" // a session of another kind
		if err := alive(); err != nil {
			t.Errorf("by another way than a token: %v", err)
		}
		if _, err := dir.Disable(t.Context(), root, alice.ID, ""); err != nil {
			t.Fatal(err)
		}
		if err := alive(); !errors.Is(err, directory.ErrToken) {
			t.Errorf("disabled: %v, want ErrToken", err)
		}
	})
}

func TestSponsor(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		var left []string
		dir := directory.New(guardtest.New(t, d, guardtest.AllowAll), directory.Options{
			Left: func(_ context.Context, _ *guard.Tx, person string) error {
				left = append(left, person)
				return nil
			},
		})
		alice := create(t, dir, "alice")
		sponsor := func(tenant estover.TenantID) error {
			return d.View(t.Context(), tenant, func(tx *db.Tx) error { return dir.Sponsor(t.Context(), tx, alice.ID) })
		}
		if err := sponsor(estover.DefaultTenant); err != nil {
			t.Errorf("alice as a sponsor: %v", err)
		}
		if err := sponsor("other"); !errors.Is(err, directory.ErrNotFound) {
			t.Errorf("alice as a sponsor in another tenant: %v, want ErrNotFound", err)
		}
		active := func() bool {
			ok, err := dir.Active(t.Context(), estover.DefaultTenant, alice.ID)
			if err != nil {
				t.Fatal(err)
			}
			return ok
		}
		if !active() {
			t.Error("alice is not active")
		}
		for range 2 { // the second time changes nothing
			if _, err := dir.Disable(t.Context(), root, alice.ID, "left"); err != nil {
				t.Fatal(err)
			}
		}
		if err := sponsor(estover.DefaultTenant); !errors.Is(err, directory.ErrDisabled) {
			t.Errorf("alice as a sponsor after she left: %v, want ErrDisabled", err)
		}
		if active() {
			t.Error("alice is active after she left")
		}
		if !slices.Equal(left, []string{alice.ID}) {
			t.Errorf("told of %v leaving, want alice once", left)
		}
		if ok, err := dir.Active(t.Context(), estover.DefaultTenant, "usr_nobody"); err != nil || ok {
			t.Errorf("nobody is active: %v, %v", ok, err)
		}
	})
}

// TestRefused: without a permit nothing happens and nothing is shown.
func TestRefused(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		alice := create(t, open(t, d), "alice")
		dir := directory.New(guardtest.New(t, d, guardtest.DenyAll), directory.Options{})
		ctx := t.Context()
		for name, try := range map[string]func() error{
			"person.create":  func() error { _, err := dir.Create(ctx, root, directory.Spec{Name: "bob"}, ""); return err },
			"person.update":  func() error { _, err := dir.Update(ctx, root, alice.ID, directory.Spec{Name: "alice"}); return err },
			"person.disable": func() error { _, err := dir.Disable(ctx, root, alice.ID, ""); return err },
			"person.enable":  func() error { _, err := dir.Enable(ctx, root, alice.ID); return err },
			"person.read":    func() error { _, err := dir.Get(ctx, root, alice.ID); return err },
			"person.list":    func() error { _, _, err := dir.List(ctx, root, directory.Filter{}, "", 0); return err },
			"person.invite":  func() error { _, _, err := dir.Invite(ctx, root, alice.ID, 0); return err },
			"login.list":     func() error { _, err := dir.Tokens(ctx, root, alice.ID); return err },
			"login.end":      func() error { return dir.Retire(ctx, root, alice.ID, "ptk_x") },
		} {
			var refusal *guard.Refusal
			if err := try(); !errors.As(err, &refusal) {
				t.Errorf("%s: %v, want a refusal", name, err)
			}
			if n := outcomes(t, d, name, "refused"); n != 1 {
				t.Errorf("%s: the log has %d refusals, want one", name, n)
			}
		}
		if people, _, err := open(t, d).List(ctx, root, directory.Filter{}, "", 0); err != nil || len(people) != 1 {
			t.Errorf("after the refusals there are %v, %v, want alice alone", people, err)
		}
	})
}
