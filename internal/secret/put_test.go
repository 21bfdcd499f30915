package secret_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret"
)

func object(text string) estover.Secret { return estover.NewSecret([]byte(text)) }

// read is the current version of a secret as JSON, or why it cannot be read.
func read(t *testing.T, s *secret.Secrets, path string, n int64) string {
	t.Helper()
	p, err := s.Read(t.Context(), ann, path, n, "a test")
	if err != nil {
		return err.Error()
	}
	return string(p.Object.Reveal())
}

// V27, V29: values of any type stay as they are written, and a patch merges.
func TestPut(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := setup(t, d, guardtest.AllowAll)
		makes := secret.Put{Expect: secret.Any, Make: &secret.Spec{Path: "team/db"}}
		if _, _, err := s.Put(t.Context(), ann, "team/db", object(`{}`), secret.Put{}); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("writing a secret that is not there: %v, want ErrNotFound", err)
		}
		x, v, err := s.Put(t.Context(), ann, "team/db", object(` { "port":5432.0, "on" : true, "user":"ann", "e":"", "tags":["a", {"b":null}], "big":123456789012345678901234567890 , "snow\u2603 man":"x"} `), makes)
		if err != nil || v.N != 1 || x.Path != "team/db" {
			t.Fatalf("writing one: %+v %v", v, err)
		}
		want := `{"port":5432.0,"on":true,"user":"ann","e":"","tags":["a",{"b":null}],"big":123456789012345678901234567890,"snow\u2603 man":"x"}`
		if got := read(t, s, "team/db", 0); got != want {
			t.Errorf("read back %s, want %s", got, want)
		}
		p, err := s.Read(t.Context(), ann, "team/db", 0, "a test")
		if err != nil || string(p.Values["user"].Reveal()) != "ann" || string(p.Values["port"].Reveal()) != "5432.0" || string(p.Values["snow☃ man"].Reveal()) != "x" {
			t.Errorf("the values of it are %v, %v", p.Version.Fields, err)
		}
		if found, err := s.Identify(t.Context(), ann, object("ann")); err != nil || len(found) != 1 || found[0].Field != "user" {
			t.Errorf("identifying a value of it: %v, %v", found, err)
		}
		var many strings.Builder
		for i := range 60_000 {
			fmt.Fprintf(&many, `"nothing-of-the-kind-%d":null,`, i)
		}
		if _, _, err := s.Put(t.Context(), ann, "team/db", object("{"+many.String()+`"x":null}`), secret.Put{Expect: secret.Any, Patch: true}); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("a patch of more than a mebibyte: %v, want ErrInvalid", err)
		}
		for _, c := range []struct {
			patch, want string
			expect      int64
			err         error
		}{
			{`{"user":"bob","on":null,"tags":{"c":1,"d":null}}`, `{"port":5432.0,"user":"bob","e":"","tags":{"c":1},"big":123456789012345678901234567890,"snow☃ man":"x"}`, secret.Any, nil},
			{`{"tags":{"c":{"deep":2}}}`, ``, 1, secret.ErrVersion},
			{`["no object"]`, ``, secret.Any, secret.ErrInvalid},
			{`{"a":1,"a":2}`, ``, secret.Any, secret.ErrInvalid},
			{`{"tags":{"c":{"deep":2}},"port":null,"e":null,"big":null,"snow☃ man":null}`, `{"user":"bob","tags":{"c":{"deep":2}}}`, 2, nil},
		} {
			_, _, err := s.Put(t.Context(), ann, "team/db", object(c.patch), secret.Put{Expect: c.expect, Patch: true})
			if !errors.Is(err, c.err) {
				t.Errorf("patching by %s: %v, want %v", c.patch, err, c.err)
			}
			if got := read(t, s, "team/db", 0); c.err == nil && got != c.want {
				t.Errorf("patched by %s it is %s, want %s", c.patch, got, c.want)
			}
		}
		for depth, want := range map[int64]string{0: `{"user":null,"tags":{"c":{"deep":null}}}`, 1: `{"user":null,"tags":null}`, 2: `{"user":null,"tags":{"c":null}}`} {
			if _, _, keys, err := s.Subkeys(t.Context(), ann, "team/db", 0, depth); err != nil || string(keys) != want {
				t.Errorf("the names down to %d: %s, %v, want %s", depth, keys, err, want)
			}
		}
		if err := s.Delete(t.Context(), ann, "team/db", secret.Newest); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Put(t.Context(), ann, "team/db", object(`{"a":1}`), secret.Put{Expect: secret.Any, Patch: true}); !errors.Is(err, secret.ErrNoVersion) {
			t.Errorf("patching what is deleted: %v, want ErrNoVersion", err)
		}
		// T1: another tenant's secret is not there.
		if _, _, err := s.Put(t.Context(), eve, "team/db", object(`{"a":1}`), secret.Put{Expect: secret.Any, Patch: true}); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("patching another tenant's: %v, want ErrNotFound", err)
		}
		for name, text := range map[string]string{
			"no object": `[1]`, "half of one": `{"a":`, "two": `{}{}`, "a name twice, within": `{"a":{"b":1,"b":2}}`, "a name that cannot be printed": `{"a\u0000":1}`,
			"no name": `{"":1}`, "too much": `{"a":"` + strings.Repeat("x", 1<<20) + `"}`, "no text": "{\"a\":\"\xff\"}",
		} {
			if _, _, err := s.Put(t.Context(), ann, "team/db", object(text), secret.Put{Expect: secret.Any}); !errors.Is(err, secret.ErrInvalid) {
				t.Errorf("writing %s: %v, want ErrInvalid", name, err)
			}
		}
	})
}

// V28: how versions are kept, by the secret and by whoever writes.
func TestKeep(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		s := setup(t, d, guardtest.AllowAll)
		spec := secret.Spec{Path: "p", Keep: secret.Keep{MaxVersions: 2, CASRequired: true}, Custom: map[string]string{"team": "blue"}}
		if _, err := s.Create(t.Context(), ann, spec); err != nil {
			t.Fatal(err)
		}
		put := func(expect int64, keep secret.Keep) error {
			_, _, err := s.Put(t.Context(), ann, "p", object(fmt.Sprintf(`{"n":"value-%d"}`, expect)), secret.Put{Expect: expect, Keep: keep})
			return err
		}
		if err := put(secret.Any, secret.Keep{}); !errors.Is(err, secret.ErrExpect) {
			t.Errorf("writing without saying over what: %v, want ErrExpect", err)
		}
		if _, err := s.Write(t.Context(), ann, "p", values("a", "b"), secret.Any); !errors.Is(err, secret.ErrExpect) {
			t.Errorf("writing fields without saying over what: %v, want ErrExpect", err)
		}
		for n := range int64(4) {
			if err := put(n, secret.Keep{MaxVersions: 9}); err != nil {
				t.Fatal(err)
			}
		}
		shown := func() (text string) {
			t.Helper()
			x, versions, err := s.Show(t.Context(), ann, "p")
			if err != nil {
				return err.Error()
			}
			for _, v := range versions {
				text += fmt.Sprintf("%d %s ", v.N, v.State)
			}
			return text + fmt.Sprint(x.Custom)
		}
		if got, want := shown(), "4 live 3 live map[team:blue]"; got != want {
			t.Errorf("of four versions there are %q, want %q", got, want)
		}
		if found, err := s.Identify(t.Context(), ann, object("value-0")); err != nil || len(found) != 0 {
			t.Errorf("a value of a version that is not kept: %v, %v", found, err)
		}
		red, after, no := "red", secret.Duration(time.Hour), false
		if _, err := s.Update(t.Context(), ann, "p", secret.Change{DeleteAfter: &after, CASRequired: &no, Merge: map[string]*string{"team": nil, "colour": &red}}); err != nil {
			t.Fatal(err)
		}
		if err := put(secret.Any, secret.Keep{DeleteAfter: secret.Duration(48 * time.Hour)}); err != nil {
			t.Fatal(err)
		}
		clock.Advance(59 * time.Minute)
		if got, want := shown(), "5 live 4 live map[colour:red]"; got != want {
			t.Errorf("before its time is over: %q, want %q", got, want)
		}
		clock.Advance(2 * time.Minute)
		if got, want := shown(), "5 deleted 4 live map[colour:red]"; got != want {
			t.Errorf("after its time is over: %q, want %q", got, want)
		}
		if got := read(t, s, "p", 0); !strings.Contains(got, "was deleted when its time was over") {
			t.Errorf("reading it: %s", got)
		}
		if err := s.Undelete(t.Context(), ann, "p", 5); err != nil {
			t.Fatal(err)
		}
		if got, want := read(t, s, "p", 0), `{"n":"value--1"}`; got != want {
			t.Errorf("brought back it reads %s, want %s", got, want)
		}
		for name, spec := range map[string]secret.Spec{
			"too many versions": {Path: "q", Keep: secret.Keep{MaxVersions: 1001}}, "fewer than none": {Path: "q", Keep: secret.Keep{MaxVersions: -1}},
			"a time gone by": {Path: "q", Keep: secret.Keep{DeleteAfter: -1}}, "a key that is long": {Path: "q", Custom: map[string]string{strings.Repeat("k", 129): ""}},
			"a value that is long": {Path: "q", Custom: map[string]string{"k": strings.Repeat("v", 513)}},
		} {
			if _, err := s.Create(t.Context(), ann, spec); !errors.Is(err, secret.ErrInvalid) {
				t.Errorf("%s: %v, want ErrInvalid", name, err)
			}
		}
	})
}

// What is said about versions is under the secret's MAC: whoever can write to
// the database cannot keep a version from being deleted, nor have it deleted.
func TestKeepIsUnderTheMAC(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := setup(t, d, guardtest.AllowAll)
		crm(t, s, "x")
		for _, change := range []string{
			`update secret set max_versions = 1`, `update secret set cas_required = true`, `update secret set delete_after = 5000000`,
			`update secret set custom = '{"a":"b"}'`, `update secret_version set delete_at = 1`,
		} {
			before, err := s.Get(t.Context(), ann, "crm/api-key")
			if err != nil {
				t.Fatal(err)
			}
			err = d.Do(t.Context(), "acme", func(tx *db.Tx) error {
				_, err := tx.Exec(t.Context(), change+` where tenant_id = $1`, "acme")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Get(t.Context(), ann, "crm/api-key"); !errors.Is(err, secret.ErrTampered) {
				t.Errorf("after %q: %v, want ErrTampered", change, err)
			}
			err = d.Do(t.Context(), "acme", func(tx *db.Tx) error {
				for _, back := range []string{`update secret set max_versions = 0, cas_required = false, delete_after = 0, custom = '{}'`, `update secret_version set delete_at = null`} {
					if _, err := tx.Exec(t.Context(), back+` where tenant_id = $1`, "acme"); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if after, err := s.Get(t.Context(), ann, "crm/api-key"); err != nil || after.ID != before.ID {
				t.Fatalf("put back after %q: %v", change, err)
			}
		}
	})
}

func TestFolder(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := setup(t, d, guardtest.AllowAll)
		for _, path := range []string{"kv/a", "kv/a/b", "kv/a/c/d", "kv/ä b", "kv/Z", "kvx/no", "kv"} {
			if _, err := s.Create(t.Context(), ann, secret.Spec{Path: path}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Create(t.Context(), eve, secret.Spec{Path: "kv/hers"}); err != nil {
			t.Fatal(err)
		}
		for prefix, want := range map[string]string{"kv/": "[Z a a/ ä b]", "kv/a/": "[b c/]", "kv/b/": "[]"} {
			if got, err := s.Folder(t.Context(), ann, prefix); err != nil || fmt.Sprint(got) != want {
				t.Errorf("below %s: %v, %v, want %s", prefix, got, err, want)
			}
		}
		there := []string{"crm.example"}
		if _, err := s.Update(t.Context(), ann, "kv/a/b", secret.Change{Destinations: &there}); err != nil {
			t.Fatal(err)
		}
		if err := s.RemoveBelow(t.Context(), ann, "kv/"); !errors.Is(err, secret.ErrInUse) {
			t.Errorf("removing what a gateway needs: %v, want ErrInUse", err)
		}
		if got, err := s.Folder(t.Context(), ann, "kv/"); err != nil || len(got) != 4 {
			t.Errorf("what is refused removes nothing: %v, %v", got, err)
		}
		there = nil
		if _, err := s.Update(t.Context(), ann, "kv/a/b", secret.Change{Destinations: &there}); err != nil {
			t.Fatal(err)
		}
		if err := s.RemoveBelow(t.Context(), ann, "kv/"); err != nil {
			t.Fatal(err)
		}
		if got, err := s.List(t.Context(), ann, "", "", 10); err != nil || len(got) != 2 {
			t.Errorf("what is left beside: %v, %v, want kv and kvx/no", got, err)
		}
		if got, err := s.Folder(t.Context(), eve, "kv/"); err != nil || fmt.Sprint(got) != "[hers]" {
			t.Errorf("another tenant's: %v, %v", got, err)
		}
	})
}

// jsonValue draws a value of JSON.
func jsonValue(depth int) *rapid.Generator[any] {
	return rapid.Custom(func(t *rapid.T) any {
		switch n := rapid.IntRange(0, 6).Draw(t, "kind"); {
		case n == 0:
			return nil
		case n == 1:
			return rapid.Bool().Draw(t, "bool")
		case n == 2:
			return float64(rapid.IntRange(-1000, 1000).Draw(t, "number"))
		case n >= 5 && depth > 0:
			return rapid.MapOfN(rapid.SampledFrom([]string{"a", "b", `"`, `\`, "{", "☃"}), jsonValue(depth-1), 0, 4).Draw(t, "object")
		case n == 4 && depth > 0:
			return rapid.SliceOfN(jsonValue(depth-1), 0, 3).Draw(t, "list")
		}
		return rapid.StringOfN(rapid.SampledFrom([]rune(`ab"\{}[],:é☃ `)), 0, 8, -1).Draw(t, "text")
	})
}

// merged is RFC 7396 as it stands there.
func merged(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	in, _ := target.(map[string]any)
	out := map[string]any{}
	for k, v := range in {
		out[k] = v
	}
	for k, v := range p {
		if v == nil {
			delete(out, k)
		} else {
			out[k] = merged(out[k], v)
		}
	}
	return out
}

// Whatever is written is read back, and whatever is merged is merged as RFC 7396
// says.
func TestPutAnything(t *testing.T) {
	s := setup(t, dbtest.Open(t), guardtest.AllowAll)
	objects := rapid.MapOfN(rapid.SampledFrom([]string{"a", "b", "c", `"`, `\`, "☃", "{", ","}), jsonValue(3), 0, 5)
	n := 0
	rapid.Check(t, func(r *rapid.T) {
		n++
		path := fmt.Sprintf("any/%d", n)
		write := func(v map[string]any, o secret.Put) {
			b, err := json.Marshal(v)
			if err != nil {
				r.Fatal(err)
			}
			if _, _, err := s.Put(t.Context(), ann, path, estover.NewSecret(b), o); err != nil {
				r.Fatalf("writing %s: %v", b, err)
			}
		}
		same := func(want any) {
			var got any
			if text := read(t, s, path, 0); json.Unmarshal([]byte(text), &got) != nil || !reflect.DeepEqual(got, want) {
				r.Fatalf("read back %s, want %v", text, want)
			}
		}
		first, patch := objects.Draw(r, "first"), objects.Draw(r, "patch")
		write(first, secret.Put{Expect: 0, Make: &secret.Spec{Path: path}})
		same(any(first))
		write(patch, secret.Put{Expect: 1, Patch: true})
		same(merged(any(first), any(patch)))
	})
}
