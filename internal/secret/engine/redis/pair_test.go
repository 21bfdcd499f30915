package redis_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/engine/redis"
)

// TestSecondAdmin is of the second admin (R12): it has the rules of the first, selectors
// too, and stands in the ACL file; nobody is taken over; and Estover lets go of the first.
func TestSecondAdmin(t *testing.T) {
	first := "resetchannels &news ~seen:* %R~read:* " + grants + " (~other:* +get) (%W~third -@all +set)"
	s, err := start(true, first)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	boss := as(s, "boss", admin)
	defer boss.Close()
	second := engine.Credential{User: "estover_b", Secret: estover.NewSecret([]byte("made-for-the-second"))}
	e := open(t, config(s))
	if err := e.(engine.Pairer).Pair(t.Context(), second.User, "estover", second.Secret); err != nil {
		t.Fatal(err)
	}
	line := func(user string) string {
		t.Helper()
		all, err := boss.ACLList(t.Context()).Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range all {
			words := strings.Fields(l)
			if words[1] == user { // user NAME on [sanitize-payload] #HASH RULES
				for i, w := range words {
					if strings.HasPrefix(w, "#") {
						return strings.TrimSuffix(strings.Join(words[2:i], " "), " sanitize-payload") + " " + strings.Join(words[i+1:], " ") // said or not, it is so
					}
				}
			}
		}
		return ""
	}
	if like, has := line("estover"), line(second.User); like == "" || like != has {
		t.Errorf("the first admin is %q and the second %q", like, has)
	}
	c := config(s)
	c.Admin = second
	b := open(t, c)
	if _, err := b.Create(t.Context(), order("e_pair_a", "secret")); err != nil {
		t.Errorf("a user that the second admin makes: %v", err)
	}
	if err := b.Revoke(t.Context(), []engine.Doomed{{Name: "e_pair_a"}})[0]; err != nil {
		t.Error(err)
	}
	var refused *engine.Refused
	again := e.(engine.Pairer).Pair
	if err := again(t.Context(), second.User, "estover", estover.NewSecret([]byte("another"))); !errors.As(err, &refused) || b.Verify(t.Context(), second) != nil {
		t.Errorf("who is there already: %v, want a refusal and the password as it was", err)
	}
	if err := again(t.Context(), "estover_c", "boss", second.Secret); !errors.As(err, &refused) {
		t.Errorf("like another than the admin: %v, want a refusal", err)
	}

	// Who is logged in as the first admin is not Estover, which goes on all the same.
	if open, err := b.Sessions(t.Context(), "estover"); err != nil || len(open) == 0 {
		t.Fatalf("the first admin has the connections %v, %v; want some", open, err)
	}
	e.(engine.Drainer).Drain()
	for range 2 {
		if open, err := b.Sessions(t.Context(), "estover"); err != nil || len(open) > 0 {
			t.Errorf("after it was drained the first admin has the connections %v, %v", open, err)
		}
		if _, err := e.Now(t.Context()); err != nil {
			t.Errorf("after it was drained: %v", err)
		}
	}
	// What one has that the other has not is told, though both log in (R12).
	if err := b.(engine.Comparer).Alike(t.Context(), second.User, "estover"); err != nil {
		t.Errorf("two admins that are alike: %v", err)
	}
	if err := boss.Do(t.Context(), "acl", "setuser", second.User, "-time").Err(); err != nil {
		t.Fatal(err)
	}
	if err := b.(engine.Comparer).Alike(t.Context(), second.User, "estover"); !errors.As(err, &refused) || !strings.Contains(err.Error(), "rights of the first") {
		t.Errorf("one without a right of the other: %v, want a refusal", err)
	}
	if err := boss.Do(t.Context(), "acl", "setuser", second.User, "+time").Err(); err != nil {
		t.Fatal(err)
	}
	// What the first has beside its own stays while it is only tried.
	beside := engine.Credential{User: "estover", Secret: estover.NewSecret([]byte("of somebody else"))}
	own := engine.Credential{User: "estover", Secret: estover.NewSecret([]byte(admin))}
	if err := b.SetSecret(t.Context(), "estover", beside.Secret, own.Secret); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.SetSecret(t.Context(), "estover", own.Secret, own.Secret), b.Verify(t.Context(), beside), b.Verify(t.Context(), own)); err != nil {
		t.Errorf("the first admin's other password after its own was set to what it is: %v", err)
	}
	if err := b.SetSecret(t.Context(), "estover", second.Secret, estover.Secret{}); err != nil {
		t.Errorf("the first admin's password, by the second: %v", err)
	}
	if err := b.Verify(t.Context(), beside); !errors.Is(err, engine.ErrWrongSecret) {
		t.Errorf("the first admin's other password after it was changed: %v, want ErrWrongSecret", err)
	}
	file, err := os.ReadFile(filepath.Join(s.Dir, "users.acl"))
	if err != nil || !strings.Contains(string(file), "user "+second.User+" on ") || strings.Contains(string(file), admin) {
		t.Errorf("the ACL file has the second admin, and no password: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

// TestSecondAdminCutOff is of a second admin in the making of which somebody is cut off,
// also before the ACL file was written (R6): when the rotation has come through, the
// server knows it from the file.
func TestSecondAdminCutOff(t *testing.T) {
	s, err := start(true, "resetchannels ~seen:* "+grants+" (~other:* +get)")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	boss := as(s, "boss", admin)
	defer boss.Close()
	second := engine.Credential{User: "estover_b", Secret: estover.NewSecret([]byte("made-for-the-second"))}
	rights := func(user string) string {
		file, err := os.ReadFile(filepath.Join(s.Dir, "users.acl"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(file)) {
			if words := strings.Fields(line); len(words) > 1 && words[1] == user {
				return strings.Join(slices.DeleteFunc(words[2:], func(w string) bool { return w[0] == '#' || w == "sanitize-payload" }), " ")
			}
		}
		return ""
	}
	if err := boss.Do(t.Context(), "acl", "save").Err(); err != nil { // as the server writes it
		t.Fatal(err)
	}
	enginetest.CutOff(t, redis.Kind, config(s), second, rights, func() {
		if err := errors.Join(boss.ACLDelUser(t.Context(), second.User).Err(), boss.Do(t.Context(), "acl", "save").Err()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestNoSecondAdmin: where the server would forget a second admin, or the first needs no
// password, there is none.
func TestNoSecondAdmin(t *testing.T) {
	s, err := start(false, grants)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	for _, c := range []struct {
		what string
		at   *enginetest.Server
		user string
		want string
	}{
		{"no ACL file", s, "estover", "aclfile"},
		{"no password", running(t), "open", "needs no password"},
	} {
		at := as(c.at, "boss", admin)
		defer at.Close()
		if c.user == "open" {
			if err := at.Do(t.Context(), "acl", "setuser", "open", "on", "nopass", "+@all").Err(); err != nil {
				t.Fatal(err)
			}
			defer at.ACLDelUser(t.Context(), "open")
		}
		conf := config(c.at)
		conf.Admin.User = c.user
		var refused *engine.Refused
		if err := open(t, conf).(engine.Pairer).Pair(t.Context(), "no_second", c.user, conf.Admin.Secret); !errors.As(err, &refused) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want a refusal with %q", c.what, err, c.want)
		}
		if users, err := at.ACLUsers(t.Context()).Result(); err != nil || strings.Contains(strings.Join(users, " "), "no_second") {
			t.Errorf("%s: there are %q, %v", c.what, users, err)
		}
	}
}
