package directory_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
)

// provider is one that people are recognised at by their address.
func provider(t *testing.T, dir *directory.Directory, name string) directory.Provider {
	t.Helper()
	p, err := dir.PutProvider(t.Context(), root, directory.ProviderSpec{
		Name: name, Issuer: "https://" + name + ".example", ClientID: "estover", Match: "email",
	}, "")
	if err != nil {
		t.Fatalf("adding the provider %s: %v", name, err)
	}
	return p
}

// vouched is somebody whose address a provider has verified.
func vouched(subject, email string) directory.Identity {
	return directory.Identity{Subject: subject, Claims: map[string]any{"email": email, "email_verified": true}}
}

func federate(t *testing.T, d *db.DB, dir *directory.Directory, p directory.Provider, i directory.Identity) (string, error) {
	t.Helper()
	value, err := dir.Federated(t.Context(), browser, p.ID, i, answer(d), time.Time{})
	return string(value.Reveal()), err
}

// count is how many events there are of an action with this outcome.
func count(t *testing.T, d *db.DB, action, outcome string) (n int) {
	t.Helper()
	err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), "select count(*) from audit where action = $1 and outcome = $2", action, outcome).Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRetireProvider: with a provider end the sign-ins that rest on it, and no
// others.
func TestRetireProvider(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		alice := create(t, dir, "alice")
		corp, other := provider(t, dir, "corp"), provider(t, dir, "other")
		in := func(p directory.Provider) string {
			t.Helper()
			value, err := federate(t, d, dir, p, vouched("sub-1", "alice@example.com"))
			if err != nil {
				t.Fatalf("alice signs in at %s: %v", p.Name, err)
			}
			return value
		}
		byCorp, byOther := in(corp), in(other)
		byPasskey, _ := enrol(t, d, dir, create(t, dir, "bob"))
		if err := dir.RetireProvider(t.Context(), root, "corp"); err != nil {
			t.Fatal(err)
		}
		signedOut(t, dir, "after its provider was retired", byCorp)
		visit(t, dir, byOther)
		visit(t, dir, byPasskey)
		if _, err := federate(t, d, dir, corp, vouched("sub-1", "alice@example.com")); !errors.Is(err, directory.ErrProviderNotFound) {
			t.Errorf("signing in by what was retired: %v, want ErrProviderNotFound", err)
		}
		// One of the same name is another provider: what the old one has said is
		// nothing there.
		again := provider(t, dir, "corp")
		if again.ID == corp.ID {
			t.Fatal("the provider has come back")
		}
		if _, err := federate(t, d, dir, corp, vouched("sub-1", "alice@example.com")); !errors.Is(err, directory.ErrProviderNotFound) {
			t.Errorf("what the old provider says, at the one of its name: %v, want ErrProviderNotFound", err)
		}
		if v := visit(t, dir, in(again)); v.Person.ID != alice.ID {
			t.Errorf("at the one of its name alice is %+v", v.Person)
		}
	})
}

// TestRetireProviderAtOnce: whoever signs in while a provider is retired is
// either refused or signed out.
func TestRetireProviderAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		corp := provider(t, dir, "corp")
		const people = 32
		for i := range people {
			create(t, dir, fmt.Sprintf("person%d", i))
		}
		values := make([]string, people)
		var wg sync.WaitGroup
		for i := range people {
			wg.Go(func() {
				value, err := federate(t, d, dir, corp, vouched(fmt.Sprint(i), fmt.Sprintf("person%d@example.com", i)))
				if err != nil && estover.KindOf(err) == estover.Fault {
					t.Errorf("signing in while the provider is retired: %v", err)
				}
				values[i] = value
			})
		}
		wg.Go(func() {
			if err := dir.RetireProvider(t.Context(), root, "corp"); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		for i, value := range values {
			if value != "" {
				signedOut(t, dir, fmt.Sprintf("person%d", i), value)
			}
		}
	})
}

// TestDisabledIsOnRecord: somebody who has left and tries to come in is told
// nothing, and is noticed.
func TestDisabledIsOnRecord(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		var dir *directory.Directory
		dir = directory.New(guard.New(d, guardtest.Log(t, d), guardtest.AllowAll, guard.Options{
			Alive: func(ctx context.Context, tx *db.Tx, c estover.Caller) error {
				if c.Subject.Kind() != estover.UserKind {
					return nil
				}
				return dir.Alive(ctx, tx, c)
			},
		}), directory.Options{})
		alice := create(t, dir, "alice")
		corp := provider(t, dir, "corp")
		_, codes := enrol(t, d, dir, alice)
		if _, err := federate(t, d, dir, corp, vouched("sub-1", "alice@example.com")); err != nil {
			t.Fatal(err)
		}
		if _, err := dir.Disable(t.Context(), root, alice.ID, "left"); err != nil {
			t.Fatal(err)
		}
		before := count(t, d, "login.create", "refused")
		if _, err := federate(t, d, dir, corp, vouched("sub-1", "alice@example.com")); !errors.Is(err, directory.ErrSignIn) || errors.Is(err, directory.ErrToken) {
			t.Errorf("somebody who has left, by their provider: %v, want ErrSignIn", err)
		}
		if _, _, err := dir.Recover(t.Context(), browser, codes[0]); !errors.Is(err, directory.ErrSignIn) {
			t.Errorf("somebody who has left, by a recovery code: %v, want ErrSignIn", err)
		}
		if n := count(t, d, "login.create", "refused") - before; n != 2 {
			t.Errorf("%d of their two attempts are on record", n)
		}
	})
}

// TestAddressOfAnother: an address is somebody's as it was verified and written.
// One that only looks like it, or that was given to somebody else, is another's.
func TestAddressOfAnother(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		mike := create(t, dir, "mike")
		corp := provider(t, dir, "corp")
		refused := func(why string, i directory.Identity) {
			t.Helper()
			before := count(t, d, "login.create", "refused")
			value, err := federate(t, d, dir, corp, i)
			if !errors.Is(err, directory.ErrStranger) || value != "" {
				t.Errorf("%s: %v, want ErrStranger", why, err)
			}
			if n := count(t, d, "login.create", "refused") - before; n != 1 {
				t.Errorf("%s: %d events, want 1", why, n)
			}
		}
		refused("a letter that becomes another one as a small one", vouched("eve", "mi\u212ae@example.com"))
		with := func(claims map[string]any) directory.Identity {
			claims["email"] = "mike@example.com"
			return directory.Identity{Subject: "eve", Claims: claims}
		}
		refused("an address that one claim has not verified", with(map[string]any{"email_verified": false, "xms_edov": true}))
		if v, err := federate(t, d, dir, corp, vouched("mike", "MIKE@example.com")); err != nil || visit(t, dir, v).Person.ID != mike.ID {
			t.Errorf("mike in capitals: %v", err)
		}
		refused("an address that somebody has come in with", vouched("mike-the-second", "mike@example.com"))
		if v, err := federate(t, d, dir, corp, vouched("mike", "other@example.com")); err != nil || visit(t, dir, v).Person.ID != mike.ID {
			t.Errorf("mike, who is linked: %v", err)
		}
		// A person's own address is kept as it was written, but for capitals.
		if p, err := dir.Create(t.Context(), root, directory.Spec{Name: "other", Email: "MI\u212aE@Example.com"}, ""); err != nil || p.Email != "mi\u212ae@example.com" {
			t.Errorf("an address with a letter that looks like another: %q, %v", p.Email, err)
		}
	})
}

// TestLinkAtOnce: of many who come with one address, one is the person.
func TestLinkAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		create(t, dir, "alice")
		corp := provider(t, dir, "corp")
		var in atomic.Int64
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				switch _, err := federate(t, d, dir, corp, vouched(fmt.Sprint(i), "alice@example.com")); {
				case err == nil:
					in.Add(1)
				case !errors.Is(err, directory.ErrSignIn) && !errors.Is(err, directory.ErrStranger):
					t.Errorf("coming with the address of alice at once: %v", err)
				}
			})
		}
		wg.Wait()
		if in.Load() != 1 {
			t.Errorf("%d subjects have become alice, want 1", in.Load())
		}
	})
}

// TestProviderIsChecked: what would let in anybody is refused.
func TestProviderIsChecked(t *testing.T) {
	for name, change := range map[string]func(*directory.ProviderSpec){
		"a claim without a value": func(s *directory.ProviderSpec) { s.Claims = map[string]string{"hd": ""} },
		"Google without its preset, for everybody": func(s *directory.ProviderSpec) {
			s.Issuer, s.Create = "https://accounts.google.com", true
		},
		"Google for everybody": func(s *directory.ProviderSpec) {
			s.Issuer, s.Preset, s.Create = "https://accounts.google.com", "google", true
		},
	} {
		spec := directory.ProviderSpec{Name: "corp", Issuer: "https://corp.example", ClientID: "estover"}
		if _, err := directory.CheckProvider(spec); err != nil {
			t.Fatal(err)
		}
		change(&spec)
		if _, err := directory.CheckProvider(spec); !errors.Is(err, directory.ErrProviderInvalid) {
			t.Errorf("%s: %v, want ErrProviderInvalid", name, err)
		}
	}
}
