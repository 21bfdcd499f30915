package secret_test

import (
	"errors"
	"flag"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret"
)

// A secret with many versions is written with as much in its row as one with few;
// all versions are there, and none of those that are told of together can be
// changed without its being seen (K1).
func TestManyVersions(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		g, keys := guardtest.New(t, d, guardtest.AllowAll), sealer(t, d)
		s := secret.New(g, keys, secret.Options{})
		if _, err := s.Create(t.Context(), ann, secret.Spec{Path: "long"}); err != nil {
			t.Fatal(err)
		}
		const versions = 120
		for i := range versions {
			if _, err := s.Write(t.Context(), ann, "long", values("value", fmt.Sprint("value ", i+1)), int64(i)); err != nil {
				t.Fatal(err)
			}
		}
		one := func(query string) (n int64) {
			t.Helper()
			err := d.View(t.Context(), "acme", func(tx *db.Tx) error { return tx.QueryRow(t.Context(), query).Scan(&n) })
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		if n := one("select length(past) from secret"); n > 1500 {
			t.Errorf("with %d versions the row has %d bytes about those before the current one, want at most 1500", versions, n)
		}
		for _, n := range []int64{1, 50, versions - 1, versions} {
			p, err := s.Read(t.Context(), ann, "long", n, "a test")
			if err != nil || string(p.Values["value"].Reveal()) != fmt.Sprint("value ", n) {
				t.Errorf("version %d: %v, %v", n, p.Values, err)
			}
		}
		list, err := s.Versions(t.Context(), ann, "long")
		if err != nil || len(list) != versions || list[0].N != versions {
			t.Errorf("%d versions are listed, %v, want %d", len(list), err, versions)
		}
		// Older ones are deleted and come back, whether they are told of together or not.
		if err := s.Delete(t.Context(), ann, "long", 2, versions-2); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(t.Context(), ann, "long", 2, "a test"); !errors.Is(err, secret.ErrNoVersion) {
			t.Errorf("reading a deleted version: %v, want ErrNoVersion", err)
		}
		if err := s.Undelete(t.Context(), ann, "long", 2); err != nil {
			t.Fatal(err)
		}
		for _, change := range []struct{ what, with, back string }{
			{"undeleting one", `update secret_version set deleted_at = null where version = 118`, `update secret_version set deleted_at = 1 where version = 118`},
			{"deleting one of long ago", `update secret_version set deleted_at = 1 where version = 2`, `update secret_version set deleted_at = null where version = 2`},
			{"another time for one of long ago", `update secret_version set created_at = created_at + 1 where version = 3`, `update secret_version set created_at = created_at - 1 where version = 3`},
			{"another number", `update secret_version set version = 1000 where version = 118`, `update secret_version set version = 118 where version = 1000`},
		} {
			exec := func(sql string) {
				t.Helper()
				err := d.Do(t.Context(), "acme", func(tx *db.Tx) error {
					if _, err := tx.Exec(t.Context(), "delete from secret_fingerprint where version = 118"); err != nil {
						return err
					}
					n, err := tx.Exec(t.Context(), sql)
					if err == nil && n != 1 {
						t.Errorf("%s changed %d rows", sql, n)
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			exec(change.with)
			if _, err := s.Read(t.Context(), ann, "long", 3, "a test"); !errors.Is(err, secret.ErrTampered) {
				t.Errorf("after %s reading an older version gives %v, want ErrTampered", change.what, err)
			}
			if _, err := s.Versions(t.Context(), ann, "long"); !errors.Is(err, secret.ErrTampered) {
				t.Errorf("after %s listing the versions gives %v, want ErrTampered", change.what, err)
			}
			exec(change.back)
		}
		if _, err := s.Versions(t.Context(), ann, "long"); err != nil {
			t.Errorf("as it was again: %v", err)
		}
		// A limit that comes late counts those that are told of together too.
		most := int64(5)
		if _, err := s.Update(t.Context(), ann, "long", secret.Change{MaxVersions: &most}); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			if _, err := s.Write(t.Context(), ann, "long", values("value", "x"), int64(versions+i)); err != nil {
				t.Fatal(err)
			}
			if list, err := s.Versions(t.Context(), ann, "long"); err != nil || int64(len(list)) != most {
				t.Errorf("%d versions are left, %v, want %d", len(list), err, most)
			}
		}
		if n := one("select count(*) from secret_fingerprint"); n != most {
			t.Errorf("%d versions would be recognised, want %d", n, most)
		}
	})
}

// A row that was written before rows spoke of other versions is read as it is,
// and is one of the others after the next change.
func TestFirstForm(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		g, keys := guardtest.New(t, d, guardtest.AllowAll), sealer(t, d)
		s := secret.New(g, keys, secret.Options{})
		if _, err := s.Create(t.Context(), ann, secret.Spec{Path: "old"}); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			if _, err := s.Write(t.Context(), ann, "old", values("value", fmt.Sprint(i+1)), secret.Any); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.InFirstForm(t.Context(), "acme", "old"); err != nil {
			t.Fatal(err)
		}
		s = secret.New(g, keys, secret.Options{})
		if list, err := s.List(t.Context(), ann, "", "", 10); err != nil || len(list) != 1 {
			t.Errorf("listing it: %v, %v", list, err)
		}
		for _, n := range []int64{0, 1, 3} {
			p, err := s.Read(t.Context(), ann, "old", n, "a test")
			if want := fmt.Sprint((n+2)%3 + 1); err != nil || string(p.Values["value"].Reveal()) != want {
				t.Errorf("version %d: %v, want %s", n, err, want)
			}
		}
		for i := range 2 {
			if _, err := s.Write(t.Context(), ann, "old", values("value", "x"), int64(3+i)); err != nil {
				t.Fatal(err)
			}
		}
		if list, err := s.Versions(t.Context(), ann, "old"); err != nil || len(list) != 5 {
			t.Errorf("%d versions, %v, want 5", len(list), err)
		}
		err := d.Do(t.Context(), "acme", func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), "update secret set past = null")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(t.Context(), ann, "old", 0, "a test"); !errors.Is(err, secret.ErrTampered) {
			t.Errorf("a row from which the others were taken: %v, want ErrTampered", err)
		}
	})
}

// Whatever is done to a secret, its versions are those that a list of them would
// have, and its row agrees with them.
func TestVersionsModel(t *testing.T) {
	checks := flag.Lookup("rapid.checks")
	if old := checks.Value.String(); old == checks.DefValue { // nobody asked for more
		_ = checks.Value.Set("12")
		defer func() { _ = checks.Value.Set(old) }()
	}
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		g, keys := guardtest.New(t, d, guardtest.AllowAll), sealer(t, d)
		s := secret.New(g, keys, secret.Options{})
		made := 0
		rapid.Check(t, func(r *rapid.T) {
			made++
			path := fmt.Sprint("secret/", made)
			if _, err := s.Create(t.Context(), ann, secret.Spec{Path: path}); err != nil {
				r.Fatal(err)
			}
			var model []secret.State
			first, most := int64(1), int64(0)
			for range rapid.IntRange(1, 60).Draw(r, "steps") {
				newest := first + int64(len(model)) - 1
				var err error
				switch what := rapid.SampledFrom([]string{"write", "write", "write", "write", "delete", "undelete", "destroy", "limit"}).Draw(r, "what"); {
				case what == "write":
					_, err = s.Write(t.Context(), ann, path, values("value", fmt.Sprint(newest+1)), newest)
					if model = append(model, secret.Live); most > 0 && int64(len(model)) > most {
						out := int64(len(model)) - most
						model, first = model[out:], first+out
					}
				case what == "limit":
					most = rapid.SampledFrom([]int64{0, 1, 3, 20}).Draw(r, "most")
					_, err = s.Update(t.Context(), ann, path, secret.Change{MaxVersions: &most})
				case len(model) > 0:
					n := rapid.Int64Range(first, newest).Draw(r, "n")
					at := &model[n-first]
					switch {
					case what == "delete":
						if err = s.Delete(t.Context(), ann, path, n); *at == secret.Live {
							*at = secret.Deleted
						}
					case what == "undelete":
						if err = s.Undelete(t.Context(), ann, path, n); *at == secret.Deleted {
							*at = secret.Live
						}
					default:
						err, *at = s.Destroy(t.Context(), ann, path, n), secret.Destroyed
					}
				}
				if err != nil {
					r.Fatal(err)
				}
			}
			list, err := s.Versions(t.Context(), ann, path)
			if err != nil || len(list) != len(model) {
				r.Fatalf("%d versions, %v, want %d", len(list), err, len(model))
			}
			for i, v := range list {
				n := first + int64(len(model)-1-i)
				if v.N != n || v.State != model[n-first] {
					r.Errorf("version %d is %s, want version %d, which is %s", v.N, v.State, n, model[n-first])
				}
				p, err := s.Read(t.Context(), ann, path, v.N, "a test")
				if live := v.State == secret.Live; live != (err == nil) || live && string(p.Values["value"].Reveal()) != fmt.Sprint(n) {
					r.Errorf("reading version %d, which is %s: %v", n, v.State, err)
				}
			}
		})
	})
}
