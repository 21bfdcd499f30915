package resource_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/resource"
)

var (
	ada = estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User("usr_ada")}
	eve = estover.Caller{Tenant: "other", Subject: estover.User("usr_eve")}
)

func open(t *testing.T, d *db.DB) *resource.Catalogue {
	return resource.New(guardtest.New(t, d, guardtest.AllowAll))
}

func crm(hosts ...string) resource.Spec {
	return resource.Spec{
		Name: "crm", BaseURL: "https://crm.example.com", Hosts: hosts, Class: estover.Confidential,
		Actions: []resource.Action{{Name: "customer.read", Method: "GET", Path: "/v1/customers/{id}"}},
	}
}

func put(t *testing.T, c *resource.Catalogue, s resource.Spec) resource.Resource {
	t.Helper()
	r, err := c.Put(t.Context(), ada, s, "")
	if err != nil {
		t.Fatalf("putting %s: %v", s.Name, err)
	}
	return r
}

func TestPut(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		c, ctx := open(t, d), t.Context()
		r, err := c.Put(ctx, ada, crm("sales.example.com:8443"), "apply/default")
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Get(ctx, ada, r.ID)
		if err != nil || got.Epoch != 1 || got.ManagedBy != "apply/default" || strings.Join(got.Hosts, " ") != "crm.example.com:443 sales.example.com:8443" || got.Actions[0].Effect != guard.Reads {
			t.Errorf("the resource is %+v, %v", got, err)
		}
		find := func(host string) string {
			t.Helper()
			u, err := c.UpstreamByHost(ctx, ada.Tenant, host)
			if errors.Is(err, resource.ErrNotFound) {
				return ""
			}
			if err != nil {
				t.Fatal(err)
			}
			a, params, ok := u.Match("GET", "/v1/customers/7")
			return fmt.Sprint(u.ID == r.ID, " ", u.Epoch, " ", a.Name, " ", params["id"], " ", ok)
		}
		if got := find("crm.example.com:443"); got != "true 1 customer.read 7 true" {
			t.Errorf("by its host it is %q", got)
		}
		if got := find("sales.example.com:8443"); got != "true 1 customer.read 7 true" {
			t.Errorf("by its other host it is %q", got)
		}
		if got := find("sales.example.com:443"); got != "" {
			t.Errorf("by another port it is %q, want nothing", got)
		}

		// The same again changes nothing; something else raises the epoch.
		if same := put(t, c, crm("sales.example.com:8443")); same.ID != r.ID || same.Epoch != 1 || !same.ChangedAt.Equal(r.ChangedAt) || same.ManagedBy != "apply/default" {
			t.Errorf("put again it is %+v", same)
		}
		s := crm("shop.example.com")
		s.Actions[0].Name = "customer.show"
		if changed := put(t, c, s); changed.ID != r.ID || changed.Epoch != 2 {
			t.Errorf("changed it is %+v", changed)
		}
		if got := find("crm.example.com:443"); got != "true 2 customer.show 7 true" {
			t.Errorf("changed it is by its host %q", got)
		}
		if find("sales.example.com:8443") != "" || find("shop.example.com:443") == "" {
			t.Error("the copy of a host that was taken away is still there, or the added one is not")
		}
		if u, err := c.UpstreamByName(ctx, ada.Tenant, "crm"); err != nil || u.Epoch != 2 {
			t.Errorf("by its name it is %+v, %v", u, err)
		}

		// A host belongs to one resource.
		other := crm("shop.example.com")
		other.Name, other.BaseURL = "shop", "https://other.example.com"
		if _, err := c.Put(ctx, ada, other, ""); !errors.Is(err, resource.ErrHostTaken) || !strings.Contains(err.Error(), "resource crm has the host shop.example.com:443") {
			t.Errorf("a host of another resource: %v, want ErrHostTaken", err)
		}
		if _, err := c.ByName(ctx, ada, "shop"); !errors.Is(err, resource.ErrNotFound) {
			t.Errorf("the resource that could not have its host: %v, want ErrNotFound", err)
		}

		// Retired, its name and hosts are free.
		if err := c.Retire(ctx, ada, r.ID); err != nil {
			t.Fatal(err)
		}
		if find("crm.example.com:443") != "" {
			t.Error("a retired resource is found by its host")
		}
		for what, err := range map[string]error{
			"get":             func() error { _, err := c.Get(ctx, ada, r.ID); return err }(),
			"by name":         func() error { _, err := c.ByName(ctx, ada, "crm"); return err }(),
			"upstream":        func() error { _, err := c.Upstream(ctx, ada.Tenant, r.ID); return err }(),
			"upstream byname": func() error { _, err := c.UpstreamByName(ctx, ada.Tenant, "crm"); return err }(),
			"retire":          c.Retire(ctx, ada, r.ID),
		} {
			if !errors.Is(err, resource.ErrNotFound) {
				t.Errorf("%s of a retired resource: %v, want ErrNotFound", what, err)
			}
		}
		put(t, c, other)
		if again := put(t, c, crm()); again.ID == r.ID || again.Epoch != 1 {
			t.Errorf("the name used again gives %+v, want another resource", again)
		}
	})
}

// TestEpoch: who decided on a copy that a change has made stale is refused when
// it writes.
func TestEpoch(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		c, ctx := open(t, d), t.Context()
		r := put(t, c, crm())
		live := func(epoch int64) error {
			return d.Append(ctx, db.Append{Tenant: ada.Tenant, Live: []db.Epoch{{Table: "resource", ID: r.ID, Epoch: epoch}}})
		}
		if err := live(1); err != nil {
			t.Errorf("with a fresh copy: %v", err)
		}
		s := crm()
		s.Class = estover.Restricted
		put(t, c, s)
		if err := live(1); !errors.Is(err, db.ErrStale) {
			t.Errorf("with the copy of before a change: %v, want ErrStale", err)
		}
		if err := c.Retire(ctx, ada, r.ID); err != nil {
			t.Fatal(err)
		}
		if err := live(2); !errors.Is(err, db.ErrStale) {
			t.Errorf("with the copy of before it was retired: %v, want ErrStale", err)
		}
	})
}

// TestPutAtOnce: two resources that want one host at once do not both get it.
func TestPutAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		c := open(t, d)
		var won atomic.Int64
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				s := crm("shared.example.com")
				s.Name, s.BaseURL = fmt.Sprintf("crm-%d", i), fmt.Sprintf("https://crm-%d.example.com", i)
				_, err := c.Put(t.Context(), ada, s, "")
				if err == nil {
					won.Add(1)
				} else if !errors.Is(err, resource.ErrHostTaken) {
					t.Errorf("putting %s beside others: %v", s.Name, err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d resources have one host, want 1", won.Load())
		}
	})
}

func TestTenants(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		c, ctx := open(t, d), t.Context()
		r := put(t, c, crm())
		for what, err := range map[string]error{
			"get":              func() error { _, err := c.Get(ctx, eve, r.ID); return err }(),
			"by name":          func() error { _, err := c.ByName(ctx, eve, "crm"); return err }(),
			"retire":           c.Retire(ctx, eve, r.ID),
			"upstream":         func() error { _, err := c.Upstream(ctx, eve.Tenant, r.ID); return err }(),
			"upstream by name": func() error { _, err := c.UpstreamByName(ctx, eve.Tenant, "crm"); return err }(),
			"upstream by host": func() error { _, err := c.UpstreamByHost(ctx, eve.Tenant, "crm.example.com:443"); return err }(),
			"grantable": d.View(ctx, eve.Tenant, func(tx *db.Tx) error {
				return c.Grantable(ctx, tx, r.ID, []string{"*"})
			}),
		} {
			if !errors.Is(err, resource.ErrNotFound) {
				t.Errorf("%s of another tenant's resource: %v, want ErrNotFound", what, err)
			}
		}
		if list, _, err := c.List(ctx, eve, resource.Filter{}, "", 0); err != nil || len(list) != 0 {
			t.Errorf("another tenant lists %v, %v", list, err)
		}
		if own, err := c.Put(ctx, eve, crm(), ""); err != nil || own.ID == r.ID {
			t.Errorf("the same name and host in another tenant: %+v, %v", own, err)
		}
		if u, err := c.UpstreamByHost(ctx, ada.Tenant, "crm.example.com:443"); err != nil || u.ID != r.ID {
			t.Errorf("by the host both have: %+v, %v, want one's own", u, err)
		}
	})
}

func TestList(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		c := open(t, d)
		for _, name := range []string{"mail", "crm", "erp"} {
			s := crm()
			s.Name, s.BaseURL = name, "https://"+name+".example.com"
			managed := ""
			if name == "erp" {
				managed = "apply/default"
			}
			if _, err := c.Put(t.Context(), ada, s, managed); err != nil {
				t.Fatal(err)
			}
		}
		page, next, err := c.List(t.Context(), ada, resource.Filter{}, "", 2)
		if err != nil || len(page) != 2 || page[0].Name != "crm" || page[1].Name != "erp" || next != "erp" {
			t.Errorf("the first page is %v, %q, %v", page, next, err)
		}
		page, next, err = c.List(t.Context(), ada, resource.Filter{}, next, 2)
		if err != nil || len(page) != 1 || page[0].Name != "mail" || next != "" {
			t.Errorf("the second page is %v, %q, %v", page, next, err)
		}
		page, _, err = c.List(t.Context(), ada, resource.Filter{ManagedBy: "apply/default"}, "", 0)
		if err != nil || len(page) != 1 || page[0].Name != "erp" {
			t.Errorf("what apply manages is %v, %v", page, err)
		}
	})
}

func TestGrantable(t *testing.T) {
	d := dbtest.Open(t)
	c, ctx := open(t, d), t.Context()
	r := put(t, c, crm())
	try := func(actions ...string) error {
		return d.View(ctx, ada.Tenant, func(tx *db.Tx) error { return c.Grantable(ctx, tx, r.ID, actions) })
	}
	if err := try("customer.read"); err != nil {
		t.Errorf("an action of the resource: %v", err)
	}
	if err := try("*"); err != nil {
		t.Errorf("every action: %v", err)
	}
	var e *estover.Error
	if err := try("customer.read", "customer.delete"); !errors.Is(err, resource.ErrAction) || !errors.As(err, &e) || e.Field != "actions[1]" {
		t.Errorf("an action that there is not: %v, want ErrAction at actions[1]", err)
	}
}

// TestFromMemory: once an upstream is known, its database may be away.
func TestFromMemory(t *testing.T) {
	c := open(t, dbtest.Open(t))
	put(t, c, crm())
	if _, err := c.UpstreamByHost(t.Context(), ada.Tenant, "crm.example.com:443"); err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel() // no transaction begins under this context
	if _, err := c.UpstreamByHost(over, ada.Tenant, "crm.example.com:443"); err != nil {
		t.Errorf("the second look went to the database: %v", err)
	}
	if _, err := c.UpstreamByName(over, ada.Tenant, "crm"); !errors.Is(err, context.Canceled) {
		t.Errorf("the first look by name did not go to the database: %v", err)
	}
}

func TestRefused(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := put(t, open(t, d), crm())
		c, ctx := resource.New(guardtest.New(t, d, guardtest.DenyAll)), t.Context()
		for action, try := range map[string]func() error{
			"resource.put":    func() error { _, err := c.Put(ctx, ada, crm("x.example.com"), ""); return err },
			"resource.retire": func() error { return c.Retire(ctx, ada, r.ID) },
			"resource.read":   func() error { _, err := c.Get(ctx, ada, r.ID); return err },
			"resource.list":   func() error { _, _, err := c.List(ctx, ada, resource.Filter{}, "", 0); return err },
		} {
			var refusal *guard.Refusal
			if err := try(); !errors.As(err, &refusal) {
				t.Errorf("%s: %v, want a refusal", action, err)
			}
		}
		if got, err := open(t, d).Get(ctx, ada, r.ID); err != nil || got.Epoch != 1 {
			t.Errorf("after the refusals the resource is %+v, %v", got, err)
		}
	})
}

// Operators look after resources, and could point one that gets secrets to a
// server of their own: at another address, with roots of their own, or in
// clear. That takes an administrator, and the rest does not.
func TestOnlyAdministratorsSendSecretsElsewhere(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		c, ctx := open(t, d), t.Context()
		operator := estover.Caller{Tenant: ada.Tenant, Subject: estover.User("usr_oli"), Roles: []estover.Role{estover.Operator}}
		admin := estover.Caller{Tenant: ada.Tenant, Subject: estover.User("usr_ada"), Roles: []estover.Role{estover.Admin}}
		slots := []resource.Slot{{Slot: resource.Header, Name: "Authorization", Secret: "crm/key"}}
		with := func(change func(*resource.Spec)) resource.Spec {
			s := crm()
			s.Slots = slots
			change(&s)
			return s
		}
		address := func(s *resource.Spec) { s.Address, s.AllowPrivate = "127.0.0.1:8443", []string{"127.0.0.0/8"} }
		if _, err := c.Put(ctx, operator, with(address), ""); !errors.Is(err, resource.ErrElsewhere) {
			t.Errorf("a resource of an operator's at an address: %v, want ErrElsewhere", err)
		}
		if _, err := c.Put(ctx, operator, with(func(*resource.Spec) {}), ""); err != nil {
			t.Errorf("a resource of an operator's where its name leads: %v", err)
		}
		for what, change := range map[string]func(*resource.Spec){
			"an address":  address,
			"other roots": func(s *resource.Spec) { s.CA = rootPEM(t) },
			"without TLS": func(s *resource.Spec) {
				s.BaseURL, s.AllowPrivate = "http://crm.example.com:443", []string{"10.0.0.0/8"}
			},
			"what is leased": func(s *resource.Spec) {
				s.Slots = []resource.Slot{{Slot: resource.Header, Name: "Authorization", Secret: "lease:reader"}}
			},
			"no secret":    func(s *resource.Spec) { address(s); s.Slots = nil },
			"other action": func(s *resource.Spec) { s.Actions[0].Name = "customer.show" },
		} {
			want := resource.ErrElsewhere
			if what == "no secret" || what == "other action" {
				want = nil
			}
			if _, err := c.Put(ctx, operator, with(change), ""); (want == nil) != (err == nil) || want != nil && !errors.Is(err, want) {
				t.Errorf("changed by an operator to have %s: %v, want %v", what, err, want)
			}
		}
		if _, err := c.Put(ctx, admin, with(address), ""); err != nil {
			t.Errorf("an address from an administrator: %v", err)
		}
		if _, err := c.Put(ctx, operator, with(func(s *resource.Spec) { address(s); s.Actions[0].Name = "customer.look" }), ""); err != nil {
			t.Errorf("another action at the administrator's address: %v", err)
		}
		for what, change := range map[string]func(*resource.Spec){
			"host": func(s *resource.Spec) { s.Hosts = []string{"pay.example.com"} },
			"secret": func(s *resource.Spec) {
				s.Slots = []resource.Slot{{Slot: resource.Header, Name: "Authorization", Secret: "pay/key"}}
			},
		} {
			if _, err := c.Put(ctx, operator, with(func(s *resource.Spec) { address(s); change(s) }), ""); !errors.Is(err, resource.ErrElsewhere) {
				t.Errorf("another %s at the administrator's address: %v, want ErrElsewhere", what, err)
			}
		}
	})
}

// rootPEM is a certificate that anybody can make.
func rootPEM(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestInSegments(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		c := open(t, d)
		for name, segment := range map[string]string{"mail": "", "crm": "sales", "erp": "finance"} {
			s := crm()
			s.Name, s.BaseURL, s.Segment = name, "https://"+name+".example.com", segment
			put(t, c, s)
		}
		for _, want := range []struct {
			segments []string
			limit    int
			names    string
		}{
			{nil, 10, "crm erp mail"},
			{[]string{"finance"}, 10, "erp mail"},
			{[]string{"sales", "finance"}, 2, "crm erp"},
			{[]string{"elsewhere"}, 10, "mail"},
		} {
			found, err := c.InSegments(t.Context(), ada.Tenant, want.segments, want.limit)
			var names []string
			for _, r := range found {
				names = append(names, r.Name)
			}
			if got := strings.Join(names, " "); err != nil || got != want.names {
				t.Errorf("up to %d of %v are %q, %v, want %q", want.limit, want.segments, got, err, want.names)
			}
		}
		if found, err := c.InSegments(t.Context(), eve.Tenant, nil, 10); err != nil || len(found) != 0 {
			t.Errorf("another tenant finds %v, %v", found, err)
		}
	})
}

// Whoever holds a resource waits for those in whose transactions it is kept.
func TestKeep(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		c := open(t, d)
		r := put(t, c, crm())
		locked := make(chan error, 1)
		err := d.Do(t.Context(), ada.Tenant, func(tx *db.Tx) error {
			if err := resource.Keep(t.Context(), tx, r.ID); err != nil {
				return err
			}
			go func() {
				locked <- d.Do(t.Context(), ada.Tenant, func(tx *db.Tx) error {
					_, err := resource.Lock(t.Context(), tx, r.ID)
					return err
				})
			}()
			select {
			case err := <-locked:
				t.Errorf("a resource that is kept was locked: %v", err)
				locked <- err
			case <-time.After(300 * time.Millisecond):
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-locked; err != nil {
			t.Error(err)
		}
		if err := d.Do(t.Context(), eve.Tenant, func(tx *db.Tx) error { return resource.Keep(t.Context(), tx, r.ID) }); !errors.Is(err, resource.ErrNotFound) {
			t.Errorf("another tenant's resource: %v, want ErrNotFound", err)
		}
	})
}
