package secret_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
)

var (
	ann = estover.Caller{Tenant: "acme", Subject: estover.User("usr_ann"), Roles: []estover.Role{estover.Admin}}
	bob = estover.Caller{Tenant: "acme", Subject: estover.User("usr_bob"), Roles: []estover.Role{estover.Operator}}
	bot = estover.Caller{Tenant: "acme", Subject: estover.Agent("agt_bot"), Session: "ses_1", Purpose: "billing"}
	eve = estover.Caller{Tenant: "evil", Subject: estover.User("usr_eve"), Roles: []estover.Role{estover.Admin}, Purpose: "theft"}
)

func sealer(t testing.TB, d *db.DB) *seal.Sealer {
	t.Helper()
	s, err := seal.Open(t.Context(), d, seal.File{Path: filepath.Join(t.TempDir(), "root.key")})
	if err != nil {
		t.Fatal(err)
	}
	s.Hold(secret.Holding)
	return s
}

func setup(t testing.TB, d *db.DB, decider guard.Decider) *secret.Secrets {
	t.Helper()
	return secret.New(guardtest.New(t, d, decider), sealer(t, d), secret.Options{Logger: slog.New(slog.DiscardHandler)})
}

// values are fields in plaintext.
func values(pairs ...string) map[string]estover.Secret {
	m := map[string]estover.Secret{}
	for i := 0; i+1 < len(pairs); i += 2 {
		m[pairs[i]] = estover.NewSecret([]byte(pairs[i+1]))
	}
	return m
}

// crm is a secret for the tests, with one version.
func crm(t testing.TB, s *secret.Secrets, value string) secret.Secret {
	t.Helper()
	one, err := s.Create(t.Context(), ann, secret.Spec{Path: "crm/api-key", Destinations: []string{"crm.example", "CRM.example:8443"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(t.Context(), ann, "crm/api-key", values("value", value), 0); err != nil {
		t.Fatal(err)
	}
	return one
}

func TestVersions(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := setup(t, d, guardtest.AllowAll)
		made := crm(t, s, "one")
		if made.Owner != ann.Subject || made.Class != estover.Confidential || made.Risk != secret.Standard || made.CurrentVersion != 0 ||
			fmt.Sprint(made.Destinations) != "[crm.example:443 crm.example:8443]" {
			t.Errorf("made %+v", made)
		}
		if _, err := s.Create(t.Context(), bob, secret.Spec{Path: "crm/api-key"}); !errors.Is(err, secret.ErrExists) {
			t.Errorf("a second secret at the path: %v, want ErrExists", err)
		}
		for _, c := range []struct {
			value  string
			expect int64
			want   error
		}{{"two", 0, secret.ErrVersion}, {"two", 1, nil}, {"three", 1, secret.ErrVersion}, {"three", secret.Any, nil}} {
			if _, err := s.Write(t.Context(), ann, "crm/api-key", values("value", c.value, "user", "u"), c.expect); !errors.Is(err, c.want) {
				t.Errorf("writing %s over version %d: %v, want %v", c.value, c.expect, err, c.want)
			}
		}
		reading := func(n int64) string {
			t.Helper()
			p, err := s.Read(t.Context(), ann, "crm/api-key", n, "a test")
			if err != nil {
				return err.Error()
			}
			return p.ID + " " + string(p.Values["value"].Reveal())
		}
		for n, want := range map[int64]string{
			0: made.ID + "@3 three", 1: made.ID + "@1 one", 2: made.ID + "@2 two", 3: made.ID + "@3 three",
			4: "The secret crm/api-key has no version 4.",
		} {
			if got := reading(n); got != want {
				t.Errorf("version %d reads %q, want %q", n, got, want)
			}
		}

		if err := s.Delete(t.Context(), ann, "crm/api-key", 1, 3); err != nil {
			t.Fatal(err)
		}
		if got := reading(0); got != "Version 3 of the secret crm/api-key is deleted." {
			t.Errorf("a deleted version reads %q", got)
		}
		if _, err := s.Use(t.Context(), bot, "crm/api-key", "", "crm.example:443"); !errors.Is(err, secret.ErrNoVersion) {
			t.Errorf("using a deleted version: %v, want ErrNoVersion", err)
		}
		if err := s.Undelete(t.Context(), ann, "crm/api-key", 3); err != nil {
			t.Fatal(err)
		}
		if err := s.Destroy(t.Context(), ann, "crm/api-key", 1, 2); err != nil {
			t.Fatal(err)
		}
		if err := s.Undelete(t.Context(), ann, "crm/api-key", 1, 2); err != nil {
			t.Fatal(err)
		}
		list, err := s.Versions(t.Context(), bob, "crm/api-key")
		if err != nil || len(list) != 3 {
			t.Fatalf("%d versions, %v; want 3", len(list), err)
		}
		for i, want := range []secret.State{secret.Live, secret.Destroyed, secret.Destroyed} {
			if v := list[i]; v.State != want || v.N != int64(3-i) || v.CreatedBy != ann.Subject || v.CreatedAt.IsZero() {
				t.Errorf("version %d is listed as %+v, want it %s", 3-i, v, want)
			}
		}
		if fmt.Sprint(list[0].Fields) != "[user value]" {
			t.Errorf("its fields are %v", list[0].Fields)
		}
		if err := s.Destroy(t.Context(), ann, "crm/api-key", 9); !errors.Is(err, secret.ErrNoVersion) {
			t.Errorf("destroying what is not there: %v, want ErrNoVersion", err)
		}
		if err := s.Destroy(t.Context(), ann, "crm/api-key"); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("destroying nothing in particular: %v, want ErrInvalid", err)
		}
		err = d.View(t.Context(), "acme", func(tx *db.Tx) error {
			var n int
			err := tx.QueryRow(t.Context(), "select count(*) from secret_version where tenant_id = $1 and sealed is not null", tx.Tenant()).Scan(&n)
			if n != 1 {
				t.Errorf("%d versions still have their bytes, want 1", n)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}

		if err := s.Remove(t.Context(), ann, "crm/api-key"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(t.Context(), ann, "crm/api-key"); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("a secret that was removed: %v, want ErrNotFound", err)
		}
		if again := crm(t, s, "anew"); again.ID == made.ID {
			t.Error("another secret at the path has the id of the one that was removed")
		}
	})
}

// What is written is what is read, and every change of state is the one of the
// model.
func TestModel(t *testing.T) {
	d := dbtest.Open(t)
	s := setup(t, d, guardtest.AllowAll)
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		path := fmt.Sprintf("model/%d with blank and %%", round)
		if _, err := s.Create(t.Context(), ann, secret.Spec{Path: path, Destinations: []string{"a.example"}}); err != nil {
			rt.Fatal(err)
		}
		type version struct {
			fields map[string]string
			state  secret.State
		}
		var model []version
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			n := int64(rapid.IntRange(1, len(model)+1).Draw(rt, "n"))
			has := n <= int64(len(model))
			var err error
			var want secret.State
			switch rapid.SampledFrom([]string{"write", "write", "delete", "undelete", "destroy"}).Draw(rt, "step") {
			case "write":
				fields := rapid.MapOfN(rapid.StringMatching(`[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}`), rapid.StringN(1, 50, -1), 1, 4).Draw(rt, "fields")
				in := map[string]estover.Secret{}
				for k, v := range fields {
					in[k] = estover.NewSecret([]byte(v))
				}
				v, err := s.Write(t.Context(), ann, path, in, int64(len(model)))
				if err != nil || v.N != int64(len(model)+1) {
					rt.Fatalf("writing version %d: %d, %v", len(model)+1, v.N, err)
				}
				model = append(model, version{fields, secret.Live})
				continue
			case "delete":
				err = s.Delete(t.Context(), ann, path, n)
				if want = secret.Deleted; has && model[n-1].state == secret.Destroyed {
					want = secret.Destroyed
				}
			case "undelete":
				err = s.Undelete(t.Context(), ann, path, n)
				if want = secret.Live; has && model[n-1].state == secret.Destroyed {
					want = secret.Destroyed
				}
			case "destroy":
				err = s.Destroy(t.Context(), ann, path, n)
				want = secret.Destroyed
			}
			if has != (err == nil) {
				rt.Fatalf("version %d of %d: %v", n, len(model), err)
			}
			if has {
				model[n-1].state = want
			}
		}
		for i, m := range model {
			p, err := s.Read(t.Context(), ann, path, int64(i+1), "a test")
			if (err == nil) != (m.state == secret.Live) {
				rt.Fatalf("reading version %d, which is %s: %v", i+1, m.state, err)
			}
			if err != nil {
				continue
			}
			for k, v := range m.fields {
				if string(p.Values[k].Reveal()) != v {
					rt.Fatalf("field %s of version %d reads %q, want %q", k, i+1, p.Values[k].Reveal(), v)
				}
			}
			if i == len(model)-1 {
				for k, v := range m.fields {
					in, err := s.Use(t.Context(), bot, path, k, "a.example:443")
					if err != nil || string(in.Value.Reveal()) != v {
						rt.Fatalf("using field %s: %v", k, err)
					}
				}
			}
		}
	})
}

func TestUseGoesNowhereElse(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := setup(t, d, guardtest.AllowAll)
		made := crm(t, s, "the key")
		use := func(host string) error {
			in, err := s.Use(t.Context(), bot, "crm/api-key", "", host)
			if err == nil && (string(in.Value.Reveal()) != "the key" || in.Version != made.ID+"@1" || in.Secret != made.ID || in.Class != estover.Confidential) {
				t.Errorf("used %+v", in)
			}
			if err != nil && !in.Value.Empty() {
				t.Error("a refusal came with the value")
			}
			return err
		}
		for _, host := range []string{"crm.example:443", "crm.example", "crm.example:8443", "CRM.EXAMPLE:443"} {
			if err := use(host); err != nil {
				t.Errorf("a request to %s: %v", host, err)
			}
		}
		for _, host := range []string{
			"evil.example:443", "crm.example:80", "crm.example.evil:443", "evil.crm.example:443", "xcrm.example:443", "crm.example.:443",
			"crm.example:0443", "", ":443", "*", "crm.example:443@evil.example", "crm.example:443 ", "[::1]:443",
		} {
			err := use(host)
			if !errors.Is(err, secret.ErrDestination) || estover.KindOf(err) != estover.Denied || !strings.Contains(err.Error(), "destinations of the secret crm/api-key") {
				t.Errorf("a request to %q: %v, want ErrDestination and the rule", host, err)
			}
		}
		if _, err := s.Use(t.Context(), bot, "crm/api-key", "other", "crm.example:443"); !errors.Is(err, secret.ErrNoField) {
			t.Errorf("a field that is not there: %v, want ErrNoField", err)
		}
		if _, err := s.Use(t.Context(), bot, "crm/other", "", "crm.example:443"); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("a secret that is not there: %v, want ErrNotFound", err)
		}
		if _, err := s.Use(t.Context(), eve, "crm/api-key", "", "crm.example:443"); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("another organisation's secret: %v, want ErrNotFound", err)
		}
		if _, err := s.Create(t.Context(), ann, secret.Spec{Path: "nowhere"}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Use(t.Context(), bot, "nowhere", "", "crm.example:443"); !errors.Is(err, secret.ErrDestination) {
			t.Errorf("a secret without destinations: %v, want ErrDestination", err)
		}

		// What changes takes effect on the next use.
		if _, err := s.Update(t.Context(), ann, "crm/api-key", secret.Change{Destinations: &[]string{"crm.example:8443"}}); err != nil {
			t.Fatal(err)
		}
		if err := use("crm.example:443"); !errors.Is(err, secret.ErrDestination) {
			t.Errorf("a destination that was taken away: %v, want ErrDestination", err)
		}
		if _, err := s.Write(t.Context(), ann, "crm/api-key", values("value", "the next key"), 1); err != nil {
			t.Fatal(err)
		}
		if in, err := s.Use(t.Context(), bot, "crm/api-key", "", "crm.example:8443"); err != nil || in.Version != made.ID+"@2" || string(in.Value.Reveal()) != "the next key" {
			t.Errorf("after the next version: %s, %v", in.Version, err)
		}
	})
}

func TestOnlyTheOwnerAddsDestinations(t *testing.T) {
	d := dbtest.Open(t)
	s := setup(t, d, guardtest.AllowAll)
	if _, err := s.Create(t.Context(), ann, secret.Spec{Path: "p", Owner: "user:usr_carol", Destinations: []string{"a.example", "b.example"}}); err != nil {
		t.Fatal(err)
	}
	carol := estover.Caller{Tenant: "acme", Subject: "user:usr_carol"}
	to := func(list ...string) secret.Change { return secret.Change{Destinations: &list} }
	owner := bob.Subject
	for name, c := range map[string]struct {
		by   estover.Caller
		what secret.Change
		want error
	}{
		"an operator adds one":         {bob, to("a.example", "evil.example"), secret.ErrNotOwner},
		"an operator replaces one":     {bob, to("evil.example"), secret.ErrNotOwner},
		"an operator takes one away":   {bob, to("a.example"), nil},
		"an operator takes it over":    {bob, secret.Change{Owner: &owner}, secret.ErrNotOwner},
		"an operator describes it":     {bob, secret.Change{Description: &[]string{"for billing"}[0]}, nil},
		"the owner adds one":           {carol, to("a.example", "c.example"), nil},
		"an administrator adds one":    {ann, to("a.example", "c.example", "d.example"), nil},
		"an agent adds one":            {bot, to("evil.example"), secret.ErrNotOwner},
		"another organisation adds it": {eve, to("evil.example"), secret.ErrNotFound},
	} {
		if _, err := s.Update(t.Context(), c.by, "p", c.what); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestSecretsThatCannotBe(t *testing.T) {
	d := dbtest.Open(t)
	s := setup(t, d, guardtest.AllowAll)
	for name, spec := range map[string]secret.Spec{
		"no path": {}, "a path with an empty word": {Path: "a//b"}, "a path that climbs": {Path: "a/../b"}, "a path with a field": {Path: "a#b"}, "a path with a wide space": {Path: "a\u2003b"},
		"a path with a line end": {Path: "a\nb"}, "a slash first": {Path: "/a"}, "a slash last": {Path: "a/"},
		"a class that is none": {Path: "a", Class: "secret"}, "a risk that is none": {Path: "a", Risk: "huge"},
		"an agent as owner": {Path: "a", Owner: bot.Subject}, "no kind of owner": {Path: "a", Owner: "ann"},
		"a pattern": {Path: "a", Destinations: []string{"*.example"}}, "a URL": {Path: "a", Destinations: []string{"https://a.example"}},
		"a path in a destination": {Path: "a", Destinations: []string{"a.example/x"}}, "a port too high": {Path: "a", Destinations: []string{"a.example:65536"}},
		"port zero": {Path: "a", Destinations: []string{"a.example:0"}}, "an empty destination": {Path: "a", Destinations: []string{""}},
	} {
		if _, err := s.Create(t.Context(), ann, spec); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	crm(t, s, "x")
	const canary = "canary with blanks"
	for name, fields := range map[string]map[string]estover.Secret{
		"no fields": {}, "an empty value": values("value", ""), "bytes that are no text": values("value", "\xff"),
		"a value as name": values(canary, "value"), "a value too long": values("value", strings.Repeat("x", 65<<10)),
	} {
		if _, err := s.Write(t.Context(), ann, "crm/api-key", fields, secret.Any); !errors.Is(err, secret.ErrInvalid) || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

// Whoever can write into the database, and has no key, can change nothing that
// is believed.
func TestTampering(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		g, keys := guardtest.New(t, d, guardtest.AllowAll), sealer(t, d)
		for name, sql := range map[string]string{
			"another destination":         `update secret set destinations = '["evil.example:443"]' where path = 'crm/api-key'`,
			"another owner":               `update secret set owner = 'user:usr_eve' where path = 'crm/api-key'`,
			"another class":               `update secret set class = 'public' where path = 'crm/api-key'`,
			"an older version as current": `update secret set current_version = 1 where path = 'crm/api-key'`,
			"another path's id":           `update secret set path = 'third' where path = 'crm/api-key'`,
			"another's MAC":               `update secret set mac = (select mac from secret where path = 'other') where path = 'crm/api-key'`,
			"a deleted version undeleted": `update secret_version set deleted_at = null where version = 1 and deleted_at is not null`,
			"a version taken away":        `delete from secret_version where version = 3`,
			"an older version's value":    `update secret_version set sealed = (select v.sealed from secret_version v where v.secret_id = secret_version.secret_id and v.version = 2) where version = 3`,
			"another secret's value":      `update secret_version set sealed = (select sealed from secret_version v where v.version = 4) where version = 3`,
			"another time":                `update secret_version set created_at = created_at + 1 where version = 3`,
			"another field":               `update secret_version set fields = '["user"]' where version = 3`,
		} {
			s := secret.New(g, keys, secret.Options{})
			for _, path := range []string{"crm/api-key", "other"} {
				if _, err := s.Create(t.Context(), ann, secret.Spec{Path: path, Destinations: []string{"crm.example"}}); err != nil {
					t.Fatal(err)
				}
				for i := range 3 {
					if _, err := s.Write(t.Context(), ann, path, values("value", fmt.Sprint("value ", i)), secret.Any); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.Delete(t.Context(), ann, path, 1); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.Write(t.Context(), ann, "other", values("value", "of another"), 3); err != nil {
				t.Fatal(err)
			}
			err := d.Do(t.Context(), "acme", func(tx *db.Tx) error {
				if _, err := tx.Exec(t.Context(), "delete from secret_fingerprint where version = 3"); err != nil {
					return err
				}
				n, err := tx.Exec(t.Context(), sql)
				if err == nil && n == 0 {
					t.Errorf("%s: nothing was changed", name)
				}
				return err
			})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			path := "crm/api-key"
			if name == "another path's id" {
				path = "third"
			}
			s = secret.New(g, keys, secret.Options{}) // another process, without copies
			if name == "a deleted version undeleted" {
				// It is not the current one, so it is found by whoever wants it.
				if _, err := s.Read(t.Context(), ann, path, 1, "a test"); !errors.Is(err, secret.ErrTampered) {
					t.Errorf("%s: reading it gives %v, want ErrTampered", name, err)
				}
				if _, err := s.Versions(t.Context(), ann, path); !errors.Is(err, secret.ErrTampered) {
					t.Errorf("%s: listing the versions gives %v, want ErrTampered", name, err)
				}
				if err := s.Delete(t.Context(), ann, path, 2); !errors.Is(err, secret.ErrTampered) {
					t.Errorf("%s: deleting another one gives %v, want ErrTampered", name, err)
				}
				forgetAll(t, d)
				continue
			}
			if _, err := s.Use(t.Context(), bot, path, "", "crm.example:443"); !errors.Is(err, secret.ErrTampered) {
				t.Errorf("%s: using it gives %v, want ErrTampered", name, err)
			}
			if _, err := s.Read(t.Context(), ann, path, 0, "a test"); !errors.Is(err, secret.ErrTampered) {
				t.Errorf("%s: reading it gives %v, want ErrTampered", name, err)
			}
			if !strings.Contains(name, "value") {
				if _, err := s.Write(t.Context(), ann, path, values("value", "x"), secret.Any); !errors.Is(err, secret.ErrTampered) {
					t.Errorf("%s: writing to it gives %v, want ErrTampered", name, err)
				}
				if _, err := s.List(t.Context(), ann, "", "", 10); !errors.Is(err, secret.ErrTampered) {
					t.Errorf("%s: listing it gives %v, want ErrTampered", name, err)
				}
			}
			forgetAll(t, d)
		}
	})
}

// forgetAll takes all secrets out of a database.
func forgetAll(t testing.TB, d *db.DB) {
	t.Helper()
	err := d.Do(t.Context(), "acme", func(tx *db.Tx) error {
		for _, table := range []string{"secret_use", "secret_fingerprint", "secret_version", "secret"} {
			if _, err := tx.Exec(t.Context(), "delete from "+table); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// events counts the events of an action by outcome.
func events(t testing.TB, d *db.DB, tenant estover.TenantID, action, outcome string) (n int) {
	t.Helper()
	err := d.View(t.Context(), tenant, func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), "select count(*) from audit where tenant_id = $1 and action = $2 and outcome = $3", tx.Tenant(), action, outcome).Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestReadingIsLoud(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		agents := guardtest.Decider(func(c estover.Caller, op guard.Op) guard.Decision {
			return guard.Decision{Allow: c.Subject.Kind() == estover.UserKind, Reasons: []string{"agents_do_not_read"}, Message: "No."}
		})
		s := setup(t, d, agents)
		made := crm(t, s, "the key")
		for _, purpose := range []string{"", " \t", "\u00a0"} {
			if _, err := s.Read(t.Context(), ann, "crm/api-key", 0, purpose); !errors.Is(err, secret.ErrPurpose) {
				t.Errorf("reading for the purpose %q: %v, want ErrPurpose", purpose, err)
			}
		}
		if _, err := s.Read(t.Context(), bot, "crm/api-key", 0, ""); estover.KindOf(err) != estover.Denied {
			t.Errorf("an agent reads: %v, want a refusal", err)
		}
		if _, err := s.Read(t.Context(), bot, "no/such", 0, ""); estover.KindOf(err) != estover.Denied {
			t.Errorf("an agent reads what is not there: %v, want the same refusal", err)
		}
		if _, err := s.Read(t.Context(), eve, "crm/api-key", 0, ""); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("another organisation reads: %v, want ErrNotFound", err)
		}
		p, err := s.Read(t.Context(), ann, "crm/api-key", 0, "the provider asks for it")
		if err != nil || string(p.Values["value"].Reveal()) != "the key" {
			t.Fatalf("read %v, %v", p, err)
		}
		if b, err := json.Marshal(p); err != nil || bytes.Contains(b, []byte("the key")) || fmt.Sprint(p) == "" || strings.Contains(fmt.Sprintf("%+v", p), "the key") {
			t.Errorf("a version in plaintext shows itself: %s, %v", b, err)
		}
		if n := events(t, d, "acme", "secret.read", "done"); n != 1 {
			t.Errorf("%d events of reading, want 1", n)
		}
		if n := events(t, d, "acme", "secret.read", "refused"); n != 2 {
			t.Errorf("%d events of refused readings, want 2", n)
		}
		uses, err := s.Uses(t.Context(), ann, secret.UseFilter{Via: secret.Plaintext}, 10)
		if err != nil || len(uses) != 1 {
			t.Fatalf("%d plaintext uses, %v; want 1", len(uses), err)
		}
		if u := uses[0]; u.Secret != made.ID || u.Path != "crm/api-key" || u.Version != 1 || u.Subject != ann.Subject || u.Count != 1 || u.FirstAt.IsZero() {
			t.Errorf("the use is %+v", u)
		}
	})
}

func TestWhoUsedWhat(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		s := setup(t, d, guardtest.AllowAll)
		made := crm(t, s, "the key")
		helper := estover.Caller{Tenant: "acme", Subject: bot.Subject, Actors: []estover.Subject{estover.Agent("agt_helper")}, Session: "ses_2"}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 25 {
					if _, err := s.Use(t.Context(), bot, "crm/api-key", "", "crm.example:443"); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		clock.Advance(time.Minute)
		if _, err := s.Write(t.Context(), ann, "crm/api-key", values("value", "the next key"), 1); err != nil {
			t.Fatal(err)
		}
		for _, c := range []estover.Caller{bot, helper} {
			if _, err := s.Use(t.Context(), c, "crm/api-key", "", "crm.example:443"); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		clock.Advance(time.Minute)
		if _, err := s.Use(t.Context(), bot, "crm/api-key", "", "crm.example:443"); err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]struct {
			secret.UseFilter
			want string
		}{
			"what an agent touched":   {secret.UseFilter{Subject: bot.Subject}, "[2 by agent:agt_bot: 2] [1 by agent:agt_bot: 200]"},
			"who used a version":      {secret.UseFilter{Secret: made.ID, Version: 2}, "[2 by agent:agt_bot: 2] [2 by agent:agt_helper: 1]"},
			"what a session touched":  {secret.UseFilter{Session: "ses_2"}, "[2 by agent:agt_helper: 1]"},
			"what left us":            {secret.UseFilter{Via: secret.Plaintext}, ""},
			"who used it of late":     {secret.UseFilter{Since: clock.Now().Add(-30 * time.Second)}, "[2 by agent:agt_bot: 2]"},
			"what another one used":   {secret.UseFilter{Subject: "agent:agt_none"}, ""},
			"who used another secret": {secret.UseFilter{Secret: "sec_none"}, ""},
		} {
			list, err := s.Uses(t.Context(), bob, c.UseFilter, 10)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, u := range list {
				got = append(got, fmt.Sprintf("[%d by %s: %d]", u.Version, u.Subject, u.Count))
				if u.LastAt.Before(u.FirstAt) || u.Version == 2 && u.Subject == bot.Subject && u.LastAt.Sub(u.FirstAt) < time.Minute {
					t.Errorf("used from %v to %v", u.FirstAt, u.LastAt)
				}
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("%s: %v, want %s", name, got, c.want)
			}
		}
		if list, err := s.Uses(t.Context(), eve, secret.UseFilter{}, 10); err != nil || len(list) != 0 {
			t.Errorf("another organisation sees %v, %v", list, err)
		}
	})
}

// What was used is written by itself, and at the end.
func TestRun(t *testing.T) {
	d := dbtest.Open(t)
	s := secret.New(guardtest.New(t, d, guardtest.AllowAll), sealer(t, d), secret.Options{FlushEvery: time.Millisecond})
	crm(t, s, "the key")
	count := func() (n int) {
		err := d.View(t.Context(), "acme", func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), "select coalesce(sum(count), 0) from secret_use where tenant_id = $1", tx.Tenant()).Scan(&n)
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	use := func() {
		if _, err := s.Use(t.Context(), bot, "crm/api-key", "", "crm.example:443"); err != nil {
			t.Fatal(err)
		}
	}
	use()
	for deadline := time.Now().Add(time.Minute); count() != 1; {
		if time.Now().After(deadline) {
			t.Fatal("nothing was written within 10 s")
		}
	}
	use()
	stop()
	if err := <-done; err != nil || count() != 2 {
		t.Errorf("after the end %d uses are written, %v; want 2", count(), err)
	}
}

// Writers who race each make a version of their own, and those who expect the
// same one cannot both have it.
func TestWritersRace(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := setup(t, d, guardtest.AllowAll)
		crm(t, s, "one")
		const writers = 16
		var mu sync.Mutex
		won, made := 0, map[int64]bool{}
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				_, err := s.Write(t.Context(), ann, "crm/api-key", values("value", fmt.Sprint("two of ", i)), 1)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
				} else if !errors.Is(err, secret.ErrVersion) {
					t.Errorf("writer %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Errorf("%d writers replaced version 1, want 1", won)
		}
		for i := range writers {
			wg.Go(func() {
				v, err := s.Write(t.Context(), ann, "crm/api-key", values("value", fmt.Sprint("any of ", i)), secret.Any)
				mu.Lock()
				defer mu.Unlock()
				if err != nil || made[v.N] {
					t.Errorf("writer %d made version %d: %v", i, v.N, err)
				}
				made[v.N] = true
			})
		}
		wg.Wait()
		if one, err := s.Get(t.Context(), ann, "crm/api-key"); err != nil || one.CurrentVersion != 2+writers {
			t.Errorf("the current version is %d, %v; want %d", one.CurrentVersion, err, 2+writers)
		}
	})
}

func TestRefusals(t *testing.T) {
	d := dbtest.Open(t)
	keys := sealer(t, d)
	s := secret.New(guardtest.New(t, d, guardtest.AllowAll), keys, secret.Options{})
	crm(t, s, "the key")
	s = secret.New(guardtest.New(t, d, guardtest.DenyAll), keys, secret.Options{})
	change := secret.Change{}
	for action, call := range map[string]func(path string) error{
		"secret.create": func(path string) error { _, err := s.Create(t.Context(), ann, secret.Spec{Path: path}); return err },
		"secret.update": func(path string) error { _, err := s.Update(t.Context(), ann, path, change); return err },
		"secret.write": func(path string) error {
			_, err := s.Write(t.Context(), ann, path, values("value", "x"), 0)
			return err
		},
		"secret.delete":   func(path string) error { return s.Delete(t.Context(), ann, path, 1) },
		"secret.undelete": func(path string) error { return s.Undelete(t.Context(), ann, path, 1) },
		"secret.destroy":  func(path string) error { return s.Destroy(t.Context(), ann, path, 1) },
		"secret.remove":   func(path string) error { return s.Remove(t.Context(), ann, path) },
		"secret.read":     func(path string) error { _, err := s.Read(t.Context(), ann, path, 0, "why"); return err },
		"secret.list":     func(path string) error { _, err := s.Get(t.Context(), ann, path); return err },
	} {
		// Whether there is such a secret is not told to who may not know.
		for _, path := range []string{"crm/api-key", "no/such"} {
			var no *guard.Refusal
			if err := call(path); !errors.As(err, &no) {
				t.Errorf("%s of %s: %v, want a refusal", action, path, err)
			}
		}
		if n := events(t, d, "acme", action, "refused"); n != 2 {
			t.Errorf("%s: %d refusals in the log, want 2", action, n)
		}
	}
	for name, call := range map[string]func() error{
		"listing":     func() error { _, err := s.List(t.Context(), ann, "", "", 10); return err },
		"versions":    func() error { _, err := s.Versions(t.Context(), ann, "crm/api-key"); return err },
		"uses":        func() error { _, err := s.Uses(t.Context(), ann, secret.UseFilter{}, 10); return err },
		"identifying": func() error { _, err := s.Identify(t.Context(), ann, estover.NewSecret([]byte("x"))); return err },
	} {
		var no *guard.Refusal
		if err := call(); !errors.As(err, &no) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
	}
}

func TestList(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := setup(t, d, guardtest.AllowAll)
		for _, path := range []string{"a/1", "a/2", "a/3", "b/1", "a%"} {
			if _, err := s.Create(t.Context(), ann, secret.Spec{Path: path}); err != nil {
				t.Fatal(err)
			}
		}
		paths := func(prefix, after string, limit int) string {
			list, err := s.List(t.Context(), bob, prefix, after, limit)
			if err != nil {
				t.Fatal(err)
			}
			var p []string
			for _, one := range list {
				p = append(p, one.Path)
			}
			return strings.Join(p, " ")
		}
		for _, c := range []struct {
			prefix, after string
			limit         int
			want          string
		}{
			{"a/", "", 10, "a/1 a/2 a/3"}, {"a/", "", 2, "a/1 a/2"}, {"a/", "a/2", 2, "a/3"}, {"b", "", 10, "b/1"}, {"c", "", 10, ""}, {"a%", "", 10, "a%"},
		} {
			if got := paths(c.prefix, c.after, c.limit); got != c.want {
				t.Errorf("below %q after %q: %q, want %q", c.prefix, c.after, got, c.want)
			}
		}
	})
}

func TestIdentify(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := setup(t, d, guardtest.AllowAll)
		made := crm(t, s, "leaked")
		if _, err := s.Write(t.Context(), ann, "crm/api-key", values("value", "fresh", "backup", "leaked"), 1); err != nil {
			t.Fatal(err)
		}
		if err := s.Destroy(t.Context(), ann, "crm/api-key", 1); err != nil {
			t.Fatal(err)
		}
		list, err := s.Identify(t.Context(), bob, estover.NewSecret([]byte("leaked")))
		want := []secret.Sighting{{Secret: made.ID, Path: "crm/api-key", Version: 1, Field: "value"}, {Secret: made.ID, Path: "crm/api-key", Version: 2, Field: "backup"}}
		if err != nil || fmt.Sprint(list) != fmt.Sprint(want) {
			t.Errorf("identified as %v, %v; want %v", list, err, want)
		}
		for _, c := range []struct {
			by    estover.Caller
			value string
		}{{bob, "unknown"}, {eve, "leaked"}} {
			if list, err := s.Identify(t.Context(), c.by, estover.NewSecret([]byte(c.value))); err != nil || len(list) != 0 {
				t.Errorf("%s of %s identified as %v, %v", c.value, c.by.Tenant, list, err)
			}
		}
	})
}

func TestPlaceholders(t *testing.T) {
	d := dbtest.Open(t)
	s := setup(t, d, guardtest.AllowAll)
	make := func(tenant estover.TenantID, agent estover.Subject, session, of string) string {
		t.Helper()
		p, err := s.Placeholder(t.Context(), tenant, agent, session, of)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	mine := make("acme", "agent:a", "ses_1", "sec_1")
	if mine != make("acme", "agent:a", "ses_1", "sec_1") {
		t.Error("a placeholder is another one the second time")
	}
	if len(mine) != len(secret.PlaceholderPrefix)+26 {
		t.Errorf("the placeholder %q has %d characters", mine, len(mine))
	}
	seen := map[string]bool{mine: true}
	for _, other := range []string{
		make("evil", "agent:a", "ses_1", "sec_1"), make("acme", "agent:b", "ses_1", "sec_1"),
		make("acme", "agent:a", "ses_2", "sec_1"), make("acme", "agent:a", "ses_1", "sec_2"),
	} {
		if seen[other] {
			t.Errorf("two have the placeholder %s", other)
		}
		seen[other] = true
	}
	for _, c := range []struct {
		agent   estover.Subject
		session string
		of      []string
		want    string
	}{
		{"agent:a", "ses_1", []string{"sec_2", "sec_1"}, "sec_1"},
		{"agent:a", "ses_1", []string{"sec_2"}, ""},
		{"agent:b", "ses_1", []string{"sec_1"}, ""},
		{"agent:a", "ses_2", []string{"sec_1"}, ""},
	} {
		if got, err := s.Recognise(t.Context(), "acme", c.agent, c.session, c.of, mine); err != nil || got != c.want {
			t.Errorf("for %s in %s it is the placeholder of %q, %v; want %q", c.agent, c.session, got, err, c.want)
		}
	}
	for text, want := range map[string]int{
		mine: 0, "Bearer " + mine: 7, `{"key":"` + mine + `"}`: 8, "est_ph_ " + mine: 8, "est_ph_abc.est_ph_" + mine[7:]: 11, mine + mine: 0,
		"": -1, "est_ph_": -1, mine[:len(mine)-1]: -1, strings.ToUpper(mine): -1, "est_ph_est_ph_": -1, "a" + mine + "b": 1,
	} {
		got, at := secret.FindPlaceholder([]byte(text))
		if at != want || want >= 0 && got != mine {
			t.Errorf("in %q the placeholder %q stands at %d, want it at %d", text, got, at, want)
		}
	}
}

func TestHandles(t *testing.T) {
	for text, want := range map[string]secret.Handle{
		"estover:secret/crm/api-key":          {Path: "crm/api-key", Field: "value"},
		"estover:secret/crm/api-key#token":    {Path: "crm/api-key", Field: "token"},
		"estover:secret/a%20b/c%23d%25#value": {},
		"estover:secret/a%20b/%C3%A9%25#x":    {Path: "a b/é%", Field: "x"},
		"estover:secret/":                     {}, "estover:secret": {}, "secret/a": {}, "estover:secret/a#b c": {}, "estover:secret/a/../b": {}, "estover:secret/%zz": {},
	} {
		h, err := secret.ParseHandle(text)
		if (want == secret.Handle{}) != errors.Is(err, secret.ErrInvalid) || h != want {
			t.Errorf("%s was read as %+v, %v; want %+v", text, h, err, want)
		}
		if err != nil {
			continue
		}
		if again, err := secret.ParseHandle(h.String()); err != nil || again != h {
			t.Errorf("%+v was written as %s and read back as %+v, %v", h, h, again, err)
		}
	}
}

// A data key may be rotated and retired under the copies in memory.
func TestRotationOfDataKeys(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		keys := sealer(t, d)
		s := secret.New(guardtest.New(t, d, guardtest.AllowAll), keys, secret.Options{})
		crm(t, s, "the key")
		use := func() error {
			in, err := s.Use(t.Context(), bot, "crm/api-key", "", "crm.example:443")
			if err == nil && string(in.Value.Reveal()) != "the key" {
				t.Errorf("used %s", in.Value.Reveal())
			}
			return err
		}
		other := secret.New(guardtest.New(t, d, guardtest.AllowAll), keys, secret.Options{}) // with copies of its own
		read := func() error {
			p, err := other.Read(t.Context(), ann, "crm/api-key", 0, "a test")
			if err == nil && string(p.Values["value"].Reveal()) != "the key" {
				t.Errorf("read %s", p.Values["value"].Reveal())
			}
			return err
		}
		if err := errors.Join(use(), read()); err != nil {
			t.Fatal(err)
		}
		if err := keys.RotateDEK(t.Context(), "acme", seal.KV); err != nil {
			t.Fatal(err)
		}
		clock.Advance(25 * time.Hour)
		deleted := 0
		for range 3 {
			p, err := keys.Rewrap(t.Context(), "acme")
			if err != nil || len(p.Broken) > 0 {
				t.Fatalf("rewrapped %+v, %v", p, err)
			}
			deleted += p.Deleted
		}
		if deleted != 1 {
			t.Fatalf("%d old keys were deleted, want 1", deleted)
		}
		if err := use(); err != nil {
			t.Errorf("using a copy whose key is gone: %v", err)
		}
		if err := read(); err != nil {
			t.Errorf("reading a copy whose key is gone: %v", err)
		}
	})
}

// What was read is in memory, and is handed out no more as soon as another node has
// changed it: before any word of that has come here.
func TestReadAfterAnotherNode(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		keys := sealer(t, d)
		node := func() *secret.Secrets {
			return secret.New(guardtest.New(t, d, guardtest.AllowAll), keys, secret.Options{})
		}
		here, there := node(), node()
		ctx := t.Context()
		for what, c := range map[string]struct {
			do   func(path string) error
			want error // nil: the second value
		}{
			"written": {func(path string) error {
				_, err := there.Write(ctx, ann, path, values("value", "two"), secret.Any)
				return err
			}, nil},
			"deleted":   {func(path string) error { return there.Delete(ctx, ann, path, 1) }, secret.ErrNoVersion},
			"destroyed": {func(path string) error { return there.Destroy(ctx, ann, path, 1) }, secret.ErrNoVersion},
			"removed":   {func(path string) error { return there.Remove(ctx, ann, path) }, secret.ErrNotFound},
			"made-anew": {func(path string) error {
				gone := there.Remove(ctx, ann, path)
				_, made := there.Create(ctx, ann, secret.Spec{Path: path})
				_, wrote := there.Write(ctx, ann, path, values("value", "two"), 0)
				return errors.Join(gone, made, wrote)
			}, nil},
		} {
			path := "crm/" + what
			if _, err := there.Create(ctx, ann, secret.Spec{Path: path}); err != nil {
				t.Fatal(err)
			}
			if _, err := there.Write(ctx, ann, path, values("value", "one"), 0); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if p, err := here.Read(ctx, ann, path, 0, "a test"); err != nil || string(p.Values["value"].Reveal()) != "one" {
					t.Fatalf("%s, before: %v", what, err)
				}
			}
			if err := c.do(path); err != nil {
				t.Fatal(err)
			}
			p, err := here.Read(ctx, ann, path, 0, "a test")
			if value := string(p.Values["value"].Reveal()); !errors.Is(err, c.want) || value == "one" || (c.want == nil) != (value == "two") {
				t.Errorf("%s at another node: read %q, %v; want %v", what, value, err, c.want)
			}
		}
	})
}

// A value is nowhere but in the answer to who asked for it: not in the
// database, its log of writes, the events, what is logged, or any error.
func TestCanary(t *testing.T) {
	dir := t.TempDir()
	d, err := db.Open(t.Context(), "sqlite:"+filepath.Join(dir, "estover.db"), db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var logged bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	before := slog.Default()
	slog.SetDefault(logger)
	defer slog.SetDefault(before)

	const canary = "canary-value-7f3a9b51"
	keys := sealer(t, d)
	// Events are kept in clear here, so that a value in one of them would be
	// seen.
	log := audit.Open(d, audit.Options{Seal: func(_ estover.TenantID, _ string, plain []byte) ([]byte, error) { return bytes.Clone(plain), nil }})
	s := secret.New(guard.New(d, log, guardtest.AllowAll, guard.Options{}), keys, secret.Options{Logger: logger})
	crm(t, s, canary)
	var said []string
	say := func(err error) {
		if err != nil {
			said = append(said, err.Error(), fmt.Sprintf("%+v", err))
		}
	}
	in, err := s.Use(t.Context(), bot, "crm/api-key", "", "crm.example:443")
	say(err)
	said = append(said, fmt.Sprintf("%v %+v %#v", in, in, in))
	logger.Info("used", "injection", in, "value", in.Value)
	p, err := s.Read(t.Context(), ann, "crm/api-key", 0, "a test")
	say(err)
	said = append(said, fmt.Sprintf("%v %+v %#v", p, p, p))
	logger.Info("read", "plain", p)
	_, err = s.Write(t.Context(), ann, "crm/api-key", values("value", canary), 7)
	say(err)
	_, err = s.Write(t.Context(), ann, "crm/api-key", values("value", canary+"\xff"), 1)
	say(err)
	_, err = s.Write(t.Context(), ann, "crm/api-key", values(canary+" ", canary), 1)
	say(err)
	_, err = s.Use(t.Context(), bot, "crm/api-key", "", "evil.example:443")
	say(err)
	_, err = s.Identify(t.Context(), ann, estover.NewSecret([]byte(canary)))
	say(err)
	say(s.Flush(t.Context()))
	if len(said) < 8 {
		t.Fatalf("only %d things were said", len(said))
	}
	for _, text := range append(said, logged.String()) {
		if strings.Contains(text, canary) {
			t.Errorf("the value is in %q", text)
		}
	}
	files, seen := 0, false
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		seen = seen || bytes.Contains(b, []byte("a test"))
		if bytes.Contains(b, []byte(canary)) || bytes.Contains(b, []byte(canary[:12])) {
			t.Errorf("the value is in %s", e.Name())
		}
		return err
	})
	if err != nil || files < 2 || !seen {
		t.Errorf("%d files were searched, %v; want the database and its log of writes, with the events in clear: %t", files, err, seen)
	}
}

func BenchmarkUse(b *testing.B) {
	s := setup(b, dbtest.Open(b), guardtest.AllowAll)
	crm(b, s, "sk_live_0123456789abcdef0123456789abcdef")
	b.ReportAllocs()
	for b.Loop() {
		in, err := s.Use(b.Context(), bot, "crm/api-key", "", "crm.example:443")
		if err != nil {
			b.Fatal(err)
		}
		in.Value.Wipe()
	}
}
