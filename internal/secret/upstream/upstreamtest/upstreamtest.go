// Package upstreamtest holds a store to what package upstream promises.
package upstreamtest

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
)

// Run holds a kind to its promises, at an empty store.
func Run(t *testing.T, k upstream.Kind, c engine.Config) {
	s := open(t, k, c)
	object := func(text string) estover.Secret { return estover.NewSecret([]byte(text)) }
	same := func(t *testing.T, got estover.Secret, want string) {
		t.Helper()
		var a, b any
		if err := errors.Join(json.Unmarshal(got.Reveal(), &a), json.Unmarshal([]byte(want), &b)); err != nil || !reflect.DeepEqual(a, b) {
			t.Errorf("what was read is not what was written: %v", err)
		}
	}
	named := func(path string) string {
		if k.Flat {
			path = strings.ReplaceAll(path, "/", "-")
		}
		return path
	}
	t.Run("versions", func(t *testing.T) {
		path := named("life/of-a/secret")
		if _, err := s.Get(t.Context(), path, ""); !errors.Is(err, upstream.ErrNotFound) {
			t.Fatalf("reading what is not there: %v, want ErrNotFound", err)
		}
		if v, err := s.Versions(t.Context(), path); len(v) != 0 || err != nil && !errors.Is(err, upstream.ErrNotFound) {
			t.Errorf("versions of what is not there: %v, %v", v, err)
		}
		one, two := `{"password":"first","username":"app"}`, `{"value":"just a text, ä"}`
		first, err := s.Put(t.Context(), path, object(one), upstream.None)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Put(t.Context(), path, object(two), upstream.None); !errors.Is(err, upstream.ErrVersion) {
			t.Errorf("making what is there: %v, want ErrVersion", err)
		}
		second, err := s.Put(t.Context(), path, object(two), first)
		if err != nil || second == first {
			t.Fatalf("a second version: %q after %q, %v", second, first, err)
		}
		if _, err := s.Put(t.Context(), path, object(one), first); !errors.Is(err, upstream.ErrVersion) {
			t.Errorf("following a version that was replaced: %v, want ErrVersion", err)
		}
		for _, want := range []struct{ asked, version, object string }{{"", second, two}, {first, first, one}, {second, second, two}} {
			v, err := s.Get(t.Context(), path, want.asked)
			if err != nil || v.Version != want.version {
				t.Fatalf("version %q: got %q, %v, want %q", want.asked, v.Version, err, want.version)
			}
			same(t, v.Object, want.object)
		}
		versions, err := s.Versions(t.Context(), path)
		if err != nil || len(versions) != 2 || versions[0].ID != second || versions[1].ID != first || !versions[0].Live {
			t.Errorf("versions: %v, %v, want %q and %q", versions, err, second, first)
		}
		third, err := s.Put(t.Context(), path, object(one), upstream.Any)
		if err != nil {
			t.Fatal(err)
		}
		v, err := s.Get(t.Context(), path, "")
		if err != nil || v.Version != third {
			t.Errorf("the third version: %q, %v, want %q", v.Version, err, third)
		}
	})
	t.Run("list", func(t *testing.T) {
		for _, path := range []string{"list/b", "list/a/b", "list/a/c", "list/ab", "listen"} {
			if _, err := s.Put(t.Context(), named(path), object(`{"value":"x"}`), upstream.None); err != nil {
				t.Fatal(err)
			}
		}
		for prefix, want := range map[string][]string{
			"list/": {"list/a/b", "list/a/c", "list/ab", "list/b"}, "list/a": {"list/a/b", "list/a/c", "list/ab"}, "list/a/": {"list/a/b", "list/a/c"},
			"list": {"list/a/b", "list/a/c", "list/ab", "list/b", "listen"}, "nothing/": nil,
		} {
			for i := range want {
				want[i] = named(want[i])
			}
			slices.Sort(want)
			got, err := s.List(t.Context(), named(prefix))
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("what begins with %q: %q, %v, want %q", prefix, got, err, want)
			}
		}
	})
	t.Run("delete", func(t *testing.T) {
		if _, err := s.Put(t.Context(), "deleted", object(`{"value":"x"}`), upstream.None); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := s.Delete(t.Context(), "deleted"); err != nil {
				t.Fatalf("deleting: %v", err)
			}
			if _, err := s.Get(t.Context(), "deleted", ""); !errors.Is(err, upstream.ErrNotFound) {
				t.Errorf("reading what was deleted: %v, want ErrNotFound", err)
			}
		}
		if err := s.Delete(t.Context(), "never-there"); err != nil {
			t.Errorf("deleting what was never there: %v", err)
		}
	})
	t.Run("watch", func(t *testing.T) {
		known, err := s.Put(t.Context(), "watched", object(`{"value":"x"}`), upstream.None)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		soon, stop := context.WithTimeout(ctx, 50*time.Millisecond)
		defer stop()
		if _, err := upstream.Watch(soon, s, "watched", known, 5*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("nothing has changed: %v, want the end of the time", err)
		}
		came := make(chan upstream.Value, 1)
		failed := make(chan error, 1)
		go func() {
			v, err := upstream.Watch(ctx, s, "watched", known, 5*time.Millisecond)
			failed <- err
			came <- v
		}()
		next, err := s.Put(ctx, "watched", object(`{"value":"y"}`), known)
		if err != nil {
			t.Fatal(err)
		}
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
		if v := <-came; v.Version != next {
			t.Errorf("what came is version %q, want %q", v.Version, next)
		}
	})
	t.Run("paths", func(t *testing.T) {
		for _, path := range []string{"", "/", "a//b", "../a", "a/..", "a?b", "a#b", "a%2fb", "a b", "a\x00", "\xff", strings.Repeat("x", 500)} {
			if _, err := s.Put(t.Context(), path, object(`{"value":"x"}`), upstream.Any); !refused(err) {
				t.Errorf("writing to %q: %v, want a refusal", path, err)
			}
			if _, err := s.Get(t.Context(), path, ""); !refused(err) {
				t.Errorf("reading %q: %v, want a refusal", path, err)
			}
		}
		for _, text := range []string{``, `x`, `[]`, `null`, `"x"`} {
			if _, err := s.Put(t.Context(), "no-object", object(text), upstream.Any); !refused(err) {
				t.Errorf("writing %q: %v, want a refusal", text, err)
			}
		}
	})
	t.Run("out of reach", func(t *testing.T) {
		wrong := c
		wrong.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("nobody is there") }
		dead := open(t, k, wrong)
		wrong = c
		wrong.Admin.Secret = estover.NewSecret([]byte("a-wrong-secret"))
		locked := open(t, k, wrong)
		for what, s := range map[string]upstream.Store{"a store that is not there": dead, "a store that does not let us in": locked} {
			_, get := s.Get(t.Context(), "a", "")
			_, put := s.Put(t.Context(), "a", object(`{"value":"x"}`), upstream.Any)
			_, list := s.List(t.Context(), "a")
			_, versions := s.Versions(t.Context(), "a")
			for call, err := range map[string]error{"Get": get, "Put": put, "List": list, "Versions": versions, "Delete": s.Delete(t.Context(), "a")} {
				if !errors.Is(err, engine.ErrUnreachable) {
					t.Errorf("%s at %s: %v, want ErrUnreachable", call, what, err)
				} else if strings.Contains(err.Error(), "a-wrong-secret") {
					t.Errorf("%s: the error shows the secret", call)
				}
			}
		}
	})
}

func open(t *testing.T, k upstream.Kind, c engine.Config) upstream.Store {
	t.Helper()
	s, err := k.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func refused(err error) bool {
	var r *engine.Refused
	return errors.As(err, &r)
}
