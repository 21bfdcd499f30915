package tenant_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/tenant"
)

var ada = estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User("usr_ada"), Roles: []estover.Role{estover.Admin}}

// open is a register that notes which tenants were founded.
func open(t *testing.T, d *db.DB, decider guard.Decider) (*tenant.Register, *[]estover.TenantID) {
	var founded []estover.TenantID
	return tenant.New(guardtest.New(t, d, decider), tenant.Options{
		Issuer: func(t estover.TenantID) string { return "https://estover.example/t/" + string(t) },
		Found: func(_ context.Context, t estover.TenantID) error {
			founded = append(founded, t)
			return nil
		},
		Bootstrap: func(_ context.Context, t estover.TenantID) (estover.Secret, error) {
			if t == "entered" {
				return estover.Secret{}, nil
			}
			return estover.NewSecret([]byte("one-time token of " + string(t))), nil
		},
	}), &founded
}

func TestTenants(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r, founded := open(t, d, guardtest.AllowAll)
		acme, err := r.Create(t.Context(), ada, tenant.Spec{Name: "acme", Title: "Acme Ltd", PrivateNetworks: []string{"10.2.0.0/16", "10.1.0.0/16", "10.2.0.0/16"}})
		if err != nil || acme.Status != tenant.Active || acme.Issuer != "https://estover.example/t/acme" || acme.CreatedBy != ada.Subject || acme.CreatedAt.IsZero() {
			t.Fatalf("adding acme: %+v, %v", acme, err)
		}
		if !slices.Equal(*founded, []estover.TenantID{"acme"}) {
			t.Errorf("what was founded is %v, want acme", *founded)
		}
		for _, c := range []struct {
			spec  tenant.Spec
			want  error
			field string
		}{
			{tenant.Spec{Name: "acme"}, tenant.ErrTaken, "name"},
			{tenant.Spec{Name: "default"}, tenant.ErrTaken, "name"},
			{tenant.Spec{Name: ""}, tenant.ErrInvalid, "name"},
			{tenant.Spec{Name: "*"}, tenant.ErrInvalid, "name"},
			{tenant.Spec{Name: "Acme"}, tenant.ErrInvalid, "name"},
			{tenant.Spec{Name: "a/b"}, tenant.ErrInvalid, "name"},
			{tenant.Spec{Name: "a.b"}, tenant.ErrInvalid, "name"},
			{tenant.Spec{Name: "-a"}, tenant.ErrInvalid, "name"},
			{tenant.Spec{Name: estover.TenantID(strings.Repeat("a", 41))}, tenant.ErrInvalid, "name"},
			{tenant.Spec{Name: "b", Title: "two\nlines"}, tenant.ErrInvalid, "title"},
			{tenant.Spec{Name: "b", PrivateNetworks: []string{"10.0.0.0/8", "10.1.2.3/16"}}, tenant.ErrInvalid, "private_networks[1]"},
		} {
			_, err := r.Create(t.Context(), ada, c.spec)
			var e *estover.Error
			if !errors.Is(err, c.want) || !errors.As(err, &e) || e.Field != c.field {
				t.Errorf("adding %+v: %v, want %v at %s", c.spec, err, c.want, c.field)
			}
		}
		if got, err := r.Get(t.Context(), ada, "acme"); err != nil || got.Title != "Acme Ltd" || !slices.Equal(got.PrivateNetworks, []string{"10.1.0.0/16", "10.2.0.0/16"}) {
			t.Errorf("acme is %+v, %v", got, err)
		}
		changed, err := r.Update(t.Context(), ada, "acme", tenant.Spec{Name: "acme", Title: "Acme"})
		if err != nil || changed.Title != "Acme" || changed.PrivateNetworks != nil || changed.CreatedAt != acme.CreatedAt {
			t.Errorf("changing acme: %+v, %v", changed, err)
		}
		if _, err := r.Update(t.Context(), ada, "acme", tenant.Spec{Name: "other"}); !errors.Is(err, tenant.ErrInvalid) {
			t.Errorf("renaming acme: %v, want ErrInvalid", err)
		}
		if _, err := r.Update(t.Context(), ada, "nobody", tenant.Spec{Name: "nobody"}); !errors.Is(err, tenant.ErrNotFound) {
			t.Errorf("changing nobody: %v, want ErrNotFound", err)
		}
		if v, err := r.Invite(t.Context(), ada, "acme"); err != nil || string(v.Reveal()) != "one-time token of acme" {
			t.Errorf("inviting acme's first administrator: %q, %v", v.Reveal(), err)
		}
		if _, err := r.Create(t.Context(), ada, tenant.Spec{Name: "entered"}); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[estover.TenantID]error{"default": tenant.ErrDefault, "nobody": tenant.ErrNotFound, "entered": tenant.ErrEntered} {
			if v, err := r.Invite(t.Context(), ada, name); !errors.Is(err, want) || !v.Empty() {
				t.Errorf("inviting the first administrator of %s: %q, %v, want %v", name, v.Reveal(), err, want)
			}
		}
		all, next, err := r.List(t.Context(), ada, "", 2)
		if err != nil || len(all) != 2 || all[0].Name != "acme" || all[1].Name != "default" || next != "default" {
			t.Fatalf("the first page is %+v, %q, %v", all, next, err)
		}
		if all, next, err = r.List(t.Context(), ada, next, 2); err != nil || len(all) != 1 || all[0].Name != "entered" || next != "" {
			t.Errorf("the second page is %+v, %q, %v", all, next, err)
		}
		if names, err := r.Names(t.Context()); err != nil || !slices.Equal(names, []estover.TenantID{"acme", "default", "entered"}) {
			t.Errorf("the names are %v, %v", names, err)
		}
	})
}

// A disabled tenant is refused from the moment at which the call returns; the
// default one cannot be disabled.
func TestDisable(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r, _ := open(t, d, guardtest.AllowAll)
		if _, err := r.Create(t.Context(), ada, tenant.Spec{Name: "acme"}); err != nil {
			t.Fatal(err)
		}
		active := func(name estover.TenantID, want error) {
			t.Helper()
			if err := r.Active(t.Context(), name); !errors.Is(err, want) {
				t.Errorf("whether %q is active: %v, want %v", name, err, want)
			}
		}
		active("acme", nil)
		active("default", nil)
		active("nobody", tenant.ErrNotFound)
		active("", tenant.ErrNotFound)
		active("*", tenant.ErrNotFound)
		off, err := r.Disable(t.Context(), ada, "acme", "unpaid")
		if err != nil || off.Status != tenant.Disabled || off.Reason != "unpaid" {
			t.Fatalf("disabling acme: %+v, %v", off, err)
		}
		active("acme", tenant.ErrDisabled)
		if _, err := r.Invite(t.Context(), ada, "acme"); !errors.Is(err, tenant.ErrDisabled) {
			t.Errorf("inviting an administrator of a disabled tenant: %v, want ErrDisabled", err)
		}
		if _, err := r.Disable(t.Context(), ada, "default", "why not"); !errors.Is(err, tenant.ErrDefault) {
			t.Errorf("disabling the default tenant: %v, want ErrDefault", err)
		}
		if on, err := r.Enable(t.Context(), ada, "acme"); err != nil || on.Status != tenant.Active || on.Reason != "" {
			t.Errorf("enabling acme: %+v, %v", on, err)
		}
		active("acme", nil)
		if err := d.Do(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), "update tenant set status = 'disabled' where tenant_id = $1 and id = 'default'", tx.Tenant())
			return err
		}); err == nil {
			t.Error("the database lets the default tenant be disabled")
		}
	})
}

// A tenant's own settings open those networks alone that the installation lets it
// open.
func TestNetworks(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r, _ := open(t, d, guardtest.AllowAll)
		for _, s := range []tenant.Spec{{Name: "acme", PrivateNetworks: []string{"10.1.0.0/16", "fd00:1::/32"}}, {Name: "umbrella"}} {
			if _, err := r.Create(t.Context(), ada, s); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []struct {
			tenant estover.TenantID
			open   string
			want   bool
		}{
			{"acme", "10.1.0.0/16", true},
			{"acme", "10.1.2.0/24", true},
			{"acme", "10.0.0.0/8", false},
			{"acme", "10.2.0.0/16", false},
			{"acme", "127.0.0.0/8", false},
			{"acme", "fd00:1:2::/48", true},
			{"acme", "::ffff:10.1.0.0/112", false},
			{"umbrella", "10.1.0.0/16", false},
			{"default", "127.0.0.0/8", true},
		} {
			got, err := r.Opened(t.Context(), c.tenant, []netip.Prefix{netip.MustParsePrefix(c.open)})
			if err != nil || (len(got) == 1) != c.want {
				t.Errorf("%s opens %s: %v, %v, want %v", c.tenant, c.open, got, err, c.want)
			}
		}
		if _, err := r.Opened(t.Context(), "nobody", []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}); !errors.Is(err, tenant.ErrNotFound) {
			t.Errorf("what nobody opens: %v, want ErrNotFound", err)
		}
		// What was made for a tenant is taken away where it is, also once it is disabled.
		if _, err := r.Disable(t.Context(), ada, "acme", "They left."); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Networks(t.Context(), "acme"); !errors.Is(err, tenant.ErrDisabled) {
			t.Errorf("what a tenant that is disabled opens: %v, want ErrDisabled", err)
		}
		if kept, err := r.Kept(t.Context(), "acme"); err != nil || len(kept) != 2 {
			t.Errorf("what is kept open for it: %v, %v; want two networks", kept, err)
		}
		if _, err := r.Kept(t.Context(), "nobody"); !errors.Is(err, tenant.ErrNotFound) {
			t.Errorf("what is kept open for nobody: %v, want ErrNotFound", err)
		}
	})
}

// There is no way to the register but through the guard.
func TestRefused(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r, founded := open(t, d, guardtest.DenyAll)
		_, errCreate := r.Create(t.Context(), ada, tenant.Spec{Name: "acme"})
		_, errUpdate := r.Update(t.Context(), ada, "default", tenant.Spec{Name: "default"})
		_, errDisable := r.Disable(t.Context(), ada, "acme", "")
		_, errEnable := r.Enable(t.Context(), ada, "acme")
		_, errInvite := r.Invite(t.Context(), ada, "acme")
		_, errGet := r.Get(t.Context(), ada, "default")
		_, _, errList := r.List(t.Context(), ada, "", 0)
		for i, err := range []error{errCreate, errUpdate, errDisable, errEnable, errInvite, errGet, errList} {
			var refusal *guard.Refusal
			if !errors.As(err, &refusal) {
				t.Errorf("operation %d is not refused: %v", i, err)
			}
		}
		if len(*founded) > 0 {
			t.Errorf("what was refused founded %v", *founded)
		}
	})
}

// Of many that add the same tenant, or the last one that there may be, one does.
func TestCreateAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := tenant.New(guardtest.New(t, d, guardtest.AllowAll), tenant.Options{
			Issuer: func(t estover.TenantID) string { return string(t) },
			Found:  func(context.Context, estover.TenantID) error { return nil },
		})
		race := func(name func(i int) estover.TenantID, refused error) {
			t.Helper()
			var done atomic.Int64
			var all sync.WaitGroup
			for i := range 16 {
				all.Go(func() {
					switch _, err := r.Create(t.Context(), ada, tenant.Spec{Name: name(i)}); {
					case err == nil:
						done.Add(1)
					case !errors.Is(err, refused):
						t.Errorf("adding %s: %v, want %v", name(i), err, refused)
					}
				})
			}
			all.Wait()
			if done.Load() != 1 {
				t.Errorf("%d of 16 were added, want 1", done.Load())
			}
		}
		race(func(int) estover.TenantID { return "acme" }, tenant.ErrTaken)
		if err := d.Do(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
			for i := range tenant.MaxTenants - 3 { // beside acme, the default one and one more
				if _, err := tx.Exec(t.Context(), `insert into tenant (tenant_id, id, title, status, reason, private_networks, created_by)
					values ($1, $2, '', 'active', '', '[]', '')`, tx.Tenant(), fmt.Sprintf("filler-%d", i)); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		race(func(i int) estover.TenantID { return estover.TenantID(fmt.Sprintf("last-%d", i)) }, tenant.ErrTooMany)
	})
}

// A tenant that is disabled can be erased, once and for good: its keys go in the
// transaction that says so, every node forgets them, and nothing is done for it
// again and again.
func TestErase(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		var finished, shredded, emptied atomic.Int64
		left := ""
		forgotten := make(chan estover.TenantID, 10)
		var fail error
		r := tenant.New(guardtest.New(t, d, guardtest.AllowAll), tenant.Options{
			Issuer:   func(t estover.TenantID) string { return string(t) },
			Found:    func(context.Context, estover.TenantID) error { return nil },
			Finish:   func(context.Context, estover.TenantID) error { finished.Add(1); return nil },
			Shred:    func(context.Context, *db.Tx, estover.TenantID) error { shredded.Add(1); return fail },
			Shredded: func(name estover.TenantID) { forgotten <- name },
			Empty:    func(context.Context, estover.TenantID) error { emptied.Add(1); return nil },
			Open:     func(context.Context, *db.Tx, estover.TenantID) (string, error) { return left, nil },
		})
		if _, err := r.Create(t.Context(), ada, tenant.Spec{Name: "acme"}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Erase(t.Context(), ada, "acme"); !errors.Is(err, tenant.ErrActive) {
			t.Errorf("erasing an active tenant: %v, want ErrActive", err)
		}
		if _, err := r.Erase(t.Context(), ada, estover.DefaultTenant); !errors.Is(err, tenant.ErrDefault) {
			t.Errorf("erasing the default tenant: %v, want ErrDefault", err)
		}
		if _, err := r.Erase(t.Context(), ada, "umbrella"); !errors.Is(err, tenant.ErrNotFound) {
			t.Errorf("erasing what is not there: %v, want ErrNotFound", err)
		}
		if _, err := r.Disable(t.Context(), ada, "acme", "the contract has ended"); err != nil {
			t.Fatal(err)
		}
		if finished.Load()+shredded.Load()+emptied.Load() != 0 {
			t.Error("something was done to a tenant that was not erased")
		}
		left = "Two users are at the database still."
		if got, err := r.Erase(t.Context(), ada, "acme"); !errors.Is(err, tenant.ErrOpen) || !strings.Contains(err.Error(), left) || !got.ErasedAt.IsZero() || emptied.Load() != 1 || shredded.Load() != 0 {
			t.Errorf("erasing what has users at targets: %+v, %v, after it was emptied %d times; want ErrOpen", got, err, emptied.Load())
		}
		left = ""
		fail = errors.New("the disk is full")
		if _, err := r.Erase(t.Context(), ada, "acme"); !errors.Is(err, fail) {
			t.Errorf("erasing when the keys stay: %v, want the reason", err)
		}
		if got, err := r.Get(t.Context(), ada, "acme"); err != nil || !got.ErasedAt.IsZero() {
			t.Errorf("then it is %+v, %v, and its keys are there", got, err)
		}
		fail = nil
		got, err := r.Erase(t.Context(), ada, "acme")
		if err != nil || got.ErasedAt.IsZero() {
			t.Fatalf("erasing: %+v, %v", got, err)
		}
		if name := <-forgotten; name != "acme" {
			t.Errorf("%s was forgotten", name)
		}
		before := shredded.Load()
		if again, err := r.Erase(t.Context(), ada, "acme"); err != nil || !again.ErasedAt.Equal(got.ErasedAt) || shredded.Load() != before {
			t.Errorf("erasing again: %+v, %v", again, err)
		}
		if _, err := r.Enable(t.Context(), ada, "acme"); !errors.Is(err, tenant.ErrErased) {
			t.Errorf("enabling it: %v, want ErrErased", err)
		}
		if names, err := r.Names(t.Context()); err != nil || slices.Contains(names, "acme") {
			t.Errorf("what is done for each tenant is done for %v, %v", names, err)
		}
		if err := r.Active(t.Context(), "acme"); !errors.Is(err, tenant.ErrDisabled) {
			t.Errorf("whether it is active: %v, want ErrDisabled", err)
		}
		if _, err := r.Create(t.Context(), ada, tenant.Spec{Name: "acme"}); !errors.Is(err, tenant.ErrTaken) {
			t.Errorf("another of its name: %v, want ErrTaken", err)
		}
	})
}
