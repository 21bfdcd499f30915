package directory_test

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
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

var (
	browser = directory.Browser{From: estover.Caller{Tenant: estover.DefaultTenant}}
	byKey   = []string{directory.ByHardwareKey, directory.Verified}
)

func passkey() directory.Passkey {
	return directory.Passkey{Credential: []byte(rand.Text()), Record: []byte(`{}`), Label: "laptop"}
}

// answer is one to a challenge of its own.
func answer(d *db.DB) directory.Answer {
	return directory.Answer{Challenge: rand.Text(), Expires: d.Now().Add(5 * time.Minute)}
}

// enrol brings a person in by an invitation, with a passkey.
func enrol(t *testing.T, d *db.DB, dir *directory.Directory, p directory.Person) (visit string, codes []string) {
	t.Helper()
	invitation, _, err := dir.Invite(t.Context(), root, p.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	value, codes, err := dir.Enrol(t.Context(), browser, string(invitation.Reveal()), passkey(), answer(d), byKey)
	if err != nil {
		t.Fatalf("%s enrols: %v", p.Name, err)
	}
	return string(value.Reveal()), codes
}

// signIn brings a person in by their first passkey.
func signIn(t *testing.T, d *db.DB, dir *directory.Directory, p directory.Person, a directory.Answer) (string, error) {
	t.Helper()
	_, keys, err := dir.Holder(t.Context(), estover.DefaultTenant, p.ID)
	if err != nil {
		return "", err
	}
	value, err := dir.SignIn(t.Context(), browser, keys[0], a, byKey)
	return string(value.Reveal()), err
}

func visit(t *testing.T, dir *directory.Directory, value string) *directory.Visit {
	t.Helper()
	v, err := dir.Visit(t.Context(), estover.DefaultTenant, value)
	if err != nil {
		t.Fatalf("a browser that was just signed in: %v", err)
	}
	return v
}

func signedOut(t *testing.T, dir *directory.Directory, why, value string) {
	t.Helper()
	if v, err := dir.Visit(t.Context(), estover.DefaultTenant, value); !errors.Is(err, directory.ErrToken) {
		t.Errorf("%s: the browser is %+v, %v, want ErrToken", why, v, err)
	}
}

func TestEnrol(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		alice := create(t, dir, "alice", estover.Operator)
		invitation, _, err := dir.Invite(t.Context(), root, alice.ID, 0)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // looking does not use it up
			if p, err := dir.Invited(t.Context(), estover.DefaultTenant, string(invitation.Reveal())); err != nil || p.ID != alice.ID {
				t.Fatalf("the invitation is for %+v, %v, want alice", p, err)
			}
		}
		if _, err := dir.Invited(t.Context(), "other", string(invitation.Reveal())); !errors.Is(err, directory.ErrEnrolment) {
			t.Errorf("the invitation in another tenant: %v, want ErrEnrolment", err)
		}
		value, codes, err := dir.Enrol(t.Context(), browser, string(invitation.Reveal()), passkey(), answer(d), byKey)
		if err != nil {
			t.Fatal(err)
		}
		v := visit(t, dir, string(value.Reveal()))
		if v.Caller.Subject != estover.User(alice.ID) || !v.Caller.Has(estover.Operator) || v.Caller.Strength != estover.ByKey || !v.Strong() ||
			!slices.Equal(v.Methods, byKey) || v.Since.IsZero() || v.Person.Name != "alice" {
			t.Errorf("alice is signed in as %+v", v)
		}
		if _, err := dir.Visit(t.Context(), "other", string(value.Reveal())); !errors.Is(err, directory.ErrToken) {
			t.Errorf("the browser at another tenant: %v, want ErrToken", err)
		}
		if len(codes) != directory.RecoveryCodes {
			t.Errorf("alice has %d recovery codes, want %d", len(codes), directory.RecoveryCodes)
		}
		// What is in a browser does not open the API, and the reverse.
		if _, err := dir.Authenticate(t.Context(), estover.DefaultTenant, string(value.Reveal())); !errors.Is(err, directory.ErrToken) {
			t.Errorf("a visit at the API: %v, want ErrToken", err)
		}
		if _, _, err := dir.Enrol(t.Context(), browser, string(invitation.Reveal()), passkey(), answer(d), byKey); !errors.Is(err, directory.ErrEnrolment) {
			t.Errorf("the same invitation again: %v, want ErrEnrolment", err)
		}
		// Another invitation means that all was lost.
		old := string(value.Reveal())
		again, _ := enrol(t, d, dir, alice)
		keys, err := dir.Passkeys(t.Context(), visit(t, dir, again).Caller, alice.ID)
		if err != nil || len(keys) != 1 {
			t.Errorf("after a second enrolment alice has %d passkeys, %v, want 1", len(keys), err)
		}
		if _, _, err := dir.Recover(t.Context(), browser, codes[0]); !errors.Is(err, directory.ErrSignIn) {
			t.Errorf("a recovery code of before: %v, want ErrSignIn", err)
		}
		signedOut(t, dir, "after a second enrolment", old)
	})
}

// However many present one invitation at once, one of them gets in.
func TestEnrolOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		alice := create(t, dir, "alice")
		invitation, _, err := dir.Invite(t.Context(), root, alice.ID, 0)
		if err != nil {
			t.Fatal(err)
		}
		var in atomic.Int64
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				_, _, err := dir.Enrol(t.Context(), browser, string(invitation.Reveal()), passkey(), answer(d), byKey)
				switch {
				case err == nil:
					in.Add(1)
				case !errors.Is(err, directory.ErrEnrolment):
					t.Errorf("enrolling at once: %v, want ErrEnrolment", err)
				}
			})
		}
		wg.Wait()
		_, keys, err := dir.Holder(t.Context(), estover.DefaultTenant, alice.ID)
		if in.Load() != 1 || err != nil || len(keys) != 1 {
			t.Errorf("of 64 at once %d got in, with %d passkeys, %v, want one", in.Load(), len(keys), err)
		}
	})
}

func TestSignIn(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		clock := dbtest.NewClock(d)
		alice := create(t, dir, "alice")
		enrol(t, d, dir, alice)
		a := answer(d)
		first, err := signIn(t, d, dir, alice, a)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := signIn(t, d, dir, alice, a); !errors.Is(err, directory.ErrChallenge) {
			t.Errorf("the same answer again: %v, want ErrChallenge", err)
		}
		late := answer(d)
		clock.Advance(6 * time.Minute)
		if _, err := signIn(t, d, dir, alice, late); !errors.Is(err, directory.ErrChallenge) {
			t.Errorf("an answer after its time: %v, want ErrChallenge", err)
		}
		// Signing in again takes the place of what the browser held, and says
		// when it was.
		was := visit(t, dir, first)
		_, keys, err := dir.Holder(t.Context(), estover.DefaultTenant, alice.ID)
		if err != nil {
			t.Fatal(err)
		}
		value, err := dir.SignIn(t.Context(), directory.Browser{From: browser.From, Previous: was}, keys[0], answer(d), byKey)
		if err != nil {
			t.Fatal(err)
		}
		signedOut(t, dir, "after another sign-in", first)
		if v := visit(t, dir, string(value.Reveal())); v.Since.Sub(was.Since) < 5*time.Minute {
			t.Errorf("alice proved who she is at %s, before that at %s", v.Since, was.Since)
		}
		// A passkey that was taken away signs nobody in.
		v := visit(t, dir, string(value.Reveal()))
		if _, err := dir.AddPasskey(t.Context(), v.Caller, passkey(), answer(d)); err != nil {
			t.Fatal(err)
		}
		if err := dir.EndPasskey(t.Context(), v.Caller, keys[0].ID); err != nil {
			t.Fatal(err)
		}
		if _, err := dir.SignIn(t.Context(), browser, keys[0], answer(d), byKey); !errors.Is(err, directory.ErrSignIn) {
			t.Errorf("a passkey that was removed: %v, want ErrSignIn", err)
		}
	})
}

// TestAnswerOnce: a challenge that was answered is answered, whoever was first.
func TestAnswerOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		alice := create(t, dir, "alice")
		enrol(t, d, dir, alice)
		a := answer(d)
		var in atomic.Int64
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				switch _, err := signIn(t, d, dir, alice, a); {
				case err == nil:
					in.Add(1)
				case !errors.Is(err, directory.ErrChallenge):
					t.Errorf("signing in at once: %v, want ErrChallenge", err)
				}
			})
		}
		wg.Wait()
		if in.Load() != 1 {
			t.Errorf("of 64 with one answer %d got in, want 1", in.Load())
		}
	})
}

func TestVisitEnds(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		clock := dbtest.NewClock(d)
		create(t, dir, "root", estover.Admin)
		alice := create(t, dir, "alice", estover.Admin)
		enrol(t, d, dir, alice)
		in := func() string {
			t.Helper()
			value, err := signIn(t, d, dir, alice, answer(d))
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
		idle := in()
		clock.Advance(directory.VisitIdle + time.Second)
		signedOut(t, dir, "after two idle hours", idle)

		busy := in()
		for range int(directory.VisitLife / time.Hour) {
			visit(t, dir, busy)
			clock.Advance(time.Hour)
		}
		signedOut(t, dir, "after half a day of work", busy)

		out := in()
		if v := visit(t, dir, out); v.Expires.IsZero() || !v.Caller.Until.Equal(v.Expires) {
			t.Errorf("what alice came with ends at %s, and her visit at %s", v.Caller.Until, v.Expires)
		}
		if err := dir.SignOut(t.Context(), visit(t, dir, out)); err != nil {
			t.Fatal(err)
		}
		signedOut(t, dir, "after signing out", out)

		demoted := in()
		held := visit(t, dir, demoted).Caller
		spec := alice.Spec
		spec.Roles = nil
		if _, err := dir.Update(t.Context(), root, alice.ID, spec); err != nil {
			t.Fatal(err)
		}
		if v := visit(t, dir, demoted); v.Caller.Has(estover.Admin) {
			t.Error("alice still is an administrator in her browser")
		}
		if err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error { return dir.Alive(t.Context(), tx, held) }); !errors.Is(err, db.ErrStale) {
			t.Errorf("what alice began as an administrator: %v, want ErrStale", err)
		}

		disabled := in()
		held = visit(t, dir, disabled).Caller
		if _, err := dir.Disable(t.Context(), root, alice.ID, "left"); err != nil {
			t.Fatal(err)
		}
		signedOut(t, dir, "after alice was disabled", disabled)
		if err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error { return dir.Alive(t.Context(), tx, held) }); !errors.Is(err, directory.ErrToken) {
			t.Errorf("what alice began before she was disabled: %v, want ErrToken", err)
		}
		if _, err := dir.Enable(t.Context(), root, alice.ID); err != nil {
			t.Fatal(err)
		}
		signedOut(t, dir, "after alice was enabled again", disabled)
		if _, keys, err := dir.Holder(t.Context(), estover.DefaultTenant, alice.ID); err != nil || len(keys) != 0 {
			t.Errorf("after alice was enabled again she has %d passkeys, %v, want none: she needs an invitation", len(keys), err)
		}
	})
}

// A person has so many browsers; the oldest makes room.
func TestVisitsMakeRoom(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		clock := dbtest.NewClock(d)
		alice := create(t, dir, "alice")
		first, _ := enrol(t, d, dir, alice)
		var second string
		for i := range 30 {
			clock.Advance(time.Second)
			value, err := signIn(t, d, dir, alice, answer(d))
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				second = value
			}
		}
		signedOut(t, dir, "after 30 other sign-ins", first)
		visit(t, dir, second)
	})
}

// What rests on a visit hears of its end, in whatever way it ends.
func TestVisitsTellOfTheirEnd(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ended := map[string]bool{}
		g := guardtest.New(t, d, guardtest.AllowAll)
		g.OnEnd(func(_ context.Context, _ *guard.Tx, kind string, ids []string) error {
			for _, id := range ids {
				ended[kind+" "+id] = true
			}
			return nil
		})
		dir := directory.New(g, directory.Options{})
		create(t, dir, "root", estover.Admin)
		alice := create(t, dir, "alice")
		told := func(why string, v *directory.Visit, want bool) {
			t.Helper()
			if ended[directory.TokenTable+" "+v.Caller.Grant] != want {
				t.Errorf("%s: told of the end of the visit: %t, want %t", why, !want, want)
			}
		}
		in := func(previous *directory.Visit) *directory.Visit {
			t.Helper()
			dbtest.NewClock(d).Advance(time.Second)
			_, keys, err := dir.Holder(t.Context(), estover.DefaultTenant, alice.ID)
			if err != nil {
				t.Fatal(err)
			}
			value, err := dir.SignIn(t.Context(), directory.Browser{From: browser.From, Previous: previous}, keys[0], answer(d), byKey)
			if err != nil {
				t.Fatal(err)
			}
			return visit(t, dir, string(value.Reveal()))
		}
		value, _ := enrol(t, d, dir, alice)
		first := visit(t, dir, value)
		second := in(first)
		told("alice has signed in once more in her browser", first, true)
		told("the one that took its place", second, false)
		var last *directory.Visit
		for range 30 {
			last = in(nil)
		}
		told("30 others were signed in", second, true)
		told("the last of them", last, false)
		value, _ = enrol(t, d, dir, alice)
		told("alice had lost her keys and was invited anew", last, true)
		last = visit(t, dir, value)
		if err := dir.SignOut(t.Context(), last); err != nil {
			t.Fatal(err)
		}
		told("alice has signed out", last, true)
		value, _ = enrol(t, d, dir, alice)
		last = visit(t, dir, value)
		if _, err := dir.Disable(t.Context(), root, alice.ID, "left"); err != nil {
			t.Fatal(err)
		}
		told("alice has left", last, true)
	})
}

func TestRecover(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		alice := create(t, dir, "alice")
		_, codes := enrol(t, d, dir, alice)
		value, left, err := dir.Recover(t.Context(), browser, "  "+strings.ToUpper(strings.ReplaceAll(codes[3], "-", " "))+"\n")
		if err != nil || left != directory.RecoveryCodes-1 {
			t.Fatalf("a code, as somebody types it: %d left, %v", left, err)
		}
		v := visit(t, dir, string(value.Reveal()))
		if v.Strong() || v.Caller.Strength != estover.BySecret || !slices.Equal(v.Methods, []string{directory.ByCode}) {
			t.Errorf("alice is signed in as %+v, want by a code", v)
		}
		if _, _, err := dir.Recover(t.Context(), browser, codes[3]); !errors.Is(err, directory.ErrSignIn) {
			t.Errorf("the same code again: %v, want ErrSignIn", err)
		}
		for _, wrong := range []string{"", codes[0][:27], codes[0] + "a", strings.Repeat("a", 28), strings.Repeat("x", 1<<16), "\x00"} {
			if _, _, err := dir.Recover(t.Context(), browser, wrong); !errors.Is(err, directory.ErrSignIn) {
				t.Errorf("the code %.40q: %v, want ErrSignIn", wrong, err)
			}
		}
		if _, _, err := dir.Recover(t.Context(), directory.Browser{From: estover.Caller{Tenant: "other"}}, codes[0]); !errors.Is(err, directory.ErrSignIn) {
			t.Errorf("a code in another tenant: %v, want ErrSignIn", err)
		}
		fresh, err := dir.NewRecoveryCodes(t.Context(), v.Caller)
		if err != nil || len(fresh) != directory.RecoveryCodes {
			t.Fatalf("new codes: %v, %v", fresh, err)
		}
		if _, _, err := dir.Recover(t.Context(), browser, codes[0]); !errors.Is(err, directory.ErrSignIn) {
			t.Errorf("a code of the set before: %v, want ErrSignIn", err)
		}
		// However many present one code at once, one gets in.
		var in atomic.Int64
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				switch _, _, err := dir.Recover(t.Context(), browser, fresh[0]); {
				case err == nil:
					in.Add(1)
				case !errors.Is(err, directory.ErrSignIn):
					t.Errorf("a code at once: %v, want ErrSignIn", err)
				}
			})
		}
		wg.Wait()
		if in.Load() != 1 {
			t.Errorf("of 64 with one code %d got in, want 1", in.Load())
		}
		if _, err := dir.Disable(t.Context(), root, alice.ID, "left"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := dir.Recover(t.Context(), browser, fresh[1]); !errors.Is(err, directory.ErrSignIn) {
			t.Errorf("a code of somebody who is disabled: %v, want ErrSignIn", err)
		}
	})
}

func TestPasskeys(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := open(t, d)
		alice, bob := create(t, dir, "alice"), create(t, dir, "bob")
		value, _ := enrol(t, d, dir, alice)
		enrol(t, d, dir, bob)
		v := visit(t, dir, value)
		first, err := dir.Passkeys(t.Context(), v.Caller, alice.ID)
		if err != nil || len(first) != 1 {
			t.Fatalf("alice has %v, %v, want one passkey", first, err)
		}
		if err := dir.EndPasskey(t.Context(), v.Caller, first[0].ID); !errors.Is(err, directory.ErrLastPasskey) {
			t.Errorf("removing the only passkey: %v, want ErrLastPasskey", err)
		}
		second, err := dir.AddPasskey(t.Context(), v.Caller, directory.Passkey{
			Credential: []byte("two"), Record: []byte(`{"signCount":1}`), Label: strings.Repeat("é", 40) + "\x01",
		}, answer(d))
		if err != nil || second.Label != strings.Repeat("é", 30) {
			t.Fatalf("a second passkey: %+v, %v, want its label cut to 60 bytes", second, err)
		}
		if _, err := dir.AddPasskey(t.Context(), v.Caller, directory.Passkey{Credential: []byte("two"), Record: []byte(`{}`)}, answer(d)); !errors.Is(err, directory.ErrPasskeyTaken) {
			t.Errorf("the same passkey again: %v, want ErrPasskeyTaken", err)
		}
		_, theirs, err := dir.Holder(t.Context(), estover.DefaultTenant, bob.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := dir.EndPasskey(t.Context(), v.Caller, theirs[0].ID); !errors.Is(err, directory.ErrPasskeyNotFound) {
			t.Errorf("removing bob's passkey: %v, want ErrPasskeyNotFound", err)
		}
		agent := estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User(alice.ID), Actors: []estover.Subject{estover.Agent("agt_1")}}
		if _, err := dir.AddPasskey(t.Context(), agent, passkey(), answer(d)); !errors.Is(err, directory.ErrNotAPerson) {
			t.Errorf("an agent that acts for alice adds a passkey: %v, want ErrNotAPerson", err)
		}
		if _, err := dir.NewRecoveryCodes(t.Context(), agent); !errors.Is(err, directory.ErrNotAPerson) {
			t.Errorf("an agent that acts for alice makes recovery codes: %v, want ErrNotAPerson", err)
		}
		keys, err := dir.Passkeys(t.Context(), v.Caller, alice.ID)
		if err != nil || len(keys) != 2 || string(keys[1].Record) != `{"signCount":1}` || string(keys[1].Credential) != "two" {
			t.Errorf("alice has %+v, %v, want two passkeys", keys, err)
		}
		var wg sync.WaitGroup
		var ended atomic.Int64
		for _, k := range keys { // both at once: one stays
			wg.Go(func() {
				if dir.EndPasskey(t.Context(), v.Caller, k.ID) == nil {
					ended.Add(1)
				}
			})
		}
		wg.Wait()
		if ended.Load() != 1 {
			t.Errorf("of two passkeys %d could be removed at once, want 1", ended.Load())
		}
	})
}
