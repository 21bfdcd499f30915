package rotation_test

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/rotation"
)

// TestRotateRoot is R12 on import: at every moment somebody logs in as an admin, what
// the operator typed in dies last, and what does not come through leaves everything
// as it was.
func TestRotateRoot(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("operator"))
		typed := engine.Credential{User: "operator", Secret: estover.NewSecret([]byte("first-of-operator"))}
		fields := map[string]estover.Secret{"username": estover.NewSecret([]byte(typed.User)), "password": typed.Secret, "port": estover.NewSecret([]byte("5432"))}
		if _, err := h.secrets.Write(t.Context(), ann, path, fields, 0); err != nil {
			t.Fatal(err)
		}
		fails := func(what string, c estover.Caller, second string, want error, words string) {
			t.Helper()
			_, err := h.x.RotateRoot(t.Context(), c, "orders", second)
			if !errors.Is(err, want) || !strings.Contains(err.Error(), words) {
				t.Errorf("%s: %v, want %v with %q", what, err, want, words)
			}
			if _, err := h.x.Get(t.Context(), ann, path); !errors.Is(err, rotation.ErrNotFound) {
				t.Errorf("%s: the secret is rotated, %v", what, err)
			}
			if !h.target.accepts(typed) {
				t.Errorf("%s: the operator's own password is not good any more", what)
			}
		}
		fails("a target without an admin", ann, "", rotation.ErrNoPair, "without a secret")
		h.admin = path
		fails("a kind that makes no second admin", ann, "", rotation.ErrNoPair, "--user FIRST --user SECOND")
		h.pair = true
		fails("another tenant", eve, "", rotation.ErrNotFound, "")
		other := ann
		other.Subject, other.Roles = estover.User("usr_bob"), nil
		fails("whose secret it is not", other, "", rotation.ErrNotOwner, "")
		h.target.users["operator_b"] = []string{"somebody else's"}
		fails("who happens to have the name", ann, "", rotation.ErrNoPair, "There is a user operator_b")
		delete(h.target.users, "operator_b")
		h.target.down = engine.ErrUnreachable
		fails("a target that does not answer", ann, "", rotation.ErrFailed, "could not be looked at")
		h.target.down = nil
		h.target.refuse = "operator_b"
		fails("an admin that may not make another", ann, "", rotation.ErrFailed, "not this one")
		h.target.refuse = ""
		// Whom it can make, and who cannot do what the first one can.
		h.target.powerless = "operator_c"
		fails("a second admin without rights", ann, "operator_c", rotation.ErrFailed, "the next admin cannot do")
		h.target.powerless, h.target.made = "", nil
		if err := h.x.Clear(t.Context(), ann, "orders"); err != nil {
			t.Fatal(err)
		}

		h.x.Reached(func(at string) error {
			if err := h.target.Verify(t.Context(), typed); err != nil && at != "after R5" {
				t.Errorf("%s: the operator's own password: %v", at, err)
			}
			return nil
		})
		r, err := h.x.RotateRoot(t.Context(), ann, "orders", "")
		if err != nil || r.Step != rotation.Grace || !slices.Equal(h.target.made, []string{"operator_b like operator"}) {
			t.Fatalf("rotating the root: %s, %v, made %q", r.Step, err, h.target.made)
		}
		h.works()
		h.pass(2 * time.Second)
		h.pass(2 * time.Second)
		h.x.Reached(nil)
		if err := h.target.Verify(t.Context(), typed); !errors.Is(err, engine.ErrWrongSecret) {
			t.Errorf("what the operator typed in afterwards: %v, want ErrWrongSecret", err)
		}
		p, err := h.secrets.Read(t.Context(), ann, path, 0, "a test")
		if err != nil || string(p.Values["username"].Reveal()) != "operator_b" || string(p.Values["port"].Reveal()) != "5432" {
			t.Errorf("the version has the fields %v, %v; want the second admin, and the port as it was", p.Fields, err)
		}
		// It is in the hands of a schedule, by risk, and asking again rotates the pair.
		if r, err = h.x.Get(t.Context(), ann, path); err != nil || r.DueAt.IsZero() {
			t.Errorf("the pair is next rotated %v, %v", r.DueAt, err)
		}
		h.clock.Advance(time.Minute)
		h.tick(h.x)
		if r, err = h.x.RotateRoot(t.Context(), ann, "orders", ""); err != nil || r.Slot != "a" {
			t.Errorf("rotating it again: slot %s, %v", r.Slot, err)
		}
		h.works()
	})
}

// TestRotateRootAlone is R12 where a user takes two passwords and no second admin can be
// made: both are good until the operator's is taken away, and it is seen that it is
// refused then.
func TestRotateRootAlone(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("operator"))
		typed := engine.Credential{User: "operator", Secret: estover.NewSecret([]byte("first-of-operator"))}
		if _, err := h.secrets.Write(t.Context(), ann, path, map[string]estover.Secret{"username": estover.NewSecret([]byte(typed.User)), "password": typed.Secret}, 0); err != nil {
			t.Fatal(err)
		}
		h.admin, h.overlap = path, true
		fails := func(what, second string, want error, words string) {
			t.Helper()
			_, err := h.x.RotateRoot(t.Context(), ann, "orders", second)
			if !errors.Is(err, want) || !strings.Contains(err.Error(), words) {
				t.Errorf("%s: %v, want %v with %q", what, err, want, words)
			}
			if _, err := h.x.Get(t.Context(), ann, path); !errors.Is(err, rotation.ErrNotFound) {
				t.Errorf("%s: the secret is rotated, %v", what, err)
			}
			if !h.target.accepts(typed) || len(h.target.users["operator"]) != 1 {
				t.Errorf("%s: the operator has %d passwords, want the one", what, len(h.target.users["operator"]))
			}
		}
		fails("a second admin", "operator_b", rotation.ErrNoPair, "--user FIRST --user SECOND")
		h.target.refuse = "operator" // and it cannot be set back either, which has nothing to set back
		fails("who may not change its own password", "", rotation.ErrFailed, "not this one")
		h.target.refuse = ""

		// What was typed in lets in by another way too, so it is not said to be dead.
		h.target.elsewhere = string(typed.Secret.Reveal())
		h.x.Reached(func(at string) error {
			if !h.target.accepts(typed) && at != "after R5" {
				t.Errorf("%s: the operator's own password is not good any more", at)
			}
			if v, err := h.secrets.Read(t.Context(), ann, path, 0, "a test"); err != nil || !h.target.accepts(engine.Credential{User: typed.User, Secret: v.Values["password"]}) {
				t.Errorf("%s: the current version does not log in, %v", at, err)
			}
			return nil
		})
		if r, err := h.x.RotateRoot(t.Context(), ann, "orders", ""); err != nil || r.Step != rotation.Grace || r.Kind != rotation.SingleSlot {
			t.Fatalf("rotating the root: %s, %s, %v", r.Kind, r.Step, err)
		}
		h.x.Reached(nil)
		h.works()
		h.pass(2 * time.Second)
		if e := h.pass(2 * time.Second); e.Step != rotation.Scrambling || e.Previous == 0 || !strings.Contains(e.LastError, "target's configuration") {
			t.Errorf("a password that stands elsewhere too: %s, previous %d, %q", e.Step, e.Previous, e.LastError)
		}
		h.target.elsewhere = ""
		if e := h.pass(time.Minute); e.Step != rotation.Idle || e.Previous != 0 || e.LastError != "" || e.DueAt.IsZero() {
			t.Errorf("when it stands nowhere else: %s, previous %d, %q, due %v", e.Step, e.Previous, e.LastError, e.DueAt)
		}
		if err := h.target.Verify(t.Context(), typed); !errors.Is(err, engine.ErrWrongSecret) || len(h.target.users["operator"]) != 1 || len(h.target.made) > 0 {
			t.Errorf("what the operator typed in afterwards: %v, want ErrWrongSecret, and one password of one admin", err)
		}
		h.works()
	})
}

// TestRotateRootBeside: whoever else works with another password of the admin's does so
// until a rotation has come through, and goes on if it was given up.
func TestRotateRootBeside(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		for i, alone := range []bool{false, true} {
			h := buildAt(t, d, newMemory("operator"), estover.TenantID("acme"+string(rune('a'+i))))
			another := engine.Credential{User: "operator", Secret: estover.NewSecret([]byte("of somebody else"))}
			h.target.users["operator"] = append(h.target.users["operator"], string(another.Secret.Reveal()))
			fields := map[string]estover.Secret{"username": estover.NewSecret([]byte("operator")), "password": estover.NewSecret([]byte("first-of-operator"))}
			if _, err := h.secrets.Write(t.Context(), h.ann, path, fields, 0); err != nil {
				t.Fatal(err)
			}
			h.admin, h.pair, h.overlap = path, !alone, true
			came := map[string]bool{}
			h.x.Reached(func(at string) error {
				came[at] = true
				if !h.target.accepts(another) {
					t.Errorf("%s, alone %v: another password of the admin's is gone", at, alone)
				}
				return nil
			})
			if alone {
				h.target.refuse = "operator"
				if _, err := h.x.RotateRoot(t.Context(), h.ann, "orders", ""); !errors.Is(err, rotation.ErrFailed) || !came["after R6"] {
					t.Errorf("who may not change its own password: %v; came to %v", err, came)
				}
				h.target.refuse = ""
			}
			if _, err := h.x.RotateRoot(t.Context(), h.ann, "orders", ""); err != nil || !came["after R4"] {
				t.Errorf("alone %v: %v; came to %v", alone, err, came)
			}
			h.x.Reached(nil)
		}
	})
}

// TestRotateRootCrashes: a node that dies anywhere in it leaves what the next one
// brings to its end, with one second admin, or none where the first has two passwords (R6).
func TestRotateRootCrashes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		points := []string{"before R2", "after R2", "before R3", "after R3", "before R4", "after R4", "before R5", "after R5"}
		for i, alone := range slices.Repeat([]bool{false, true}, len(points)) {
			point := points[i/2]
			h := buildAt(t, d, newMemory("operator"), estover.TenantID("acme"+string(rune('a'+i))))
			fields := map[string]estover.Secret{"username": estover.NewSecret([]byte("operator")), "password": estover.NewSecret([]byte("first-of-operator"))}
			if _, err := h.secrets.Write(t.Context(), h.ann, path, fields, 0); err != nil {
				t.Fatal(err)
			}
			h.admin, h.pair, h.overlap = path, !alone, true
			crashed := false
			h.x.Reached(func(at string) error {
				v, err := h.secrets.Read(t.Context(), h.ann, path, 0, "a test")
				if err != nil || !h.target.accepts(engine.Credential{User: string(v.Values["username"].Reveal()), Secret: v.Values["password"]}) {
					t.Errorf("%s, alone %v: the current version does not log in, %v", at, alone, err)
				}
				if at == point && !crashed {
					crashed = true
					return rotation.ErrCrash
				}
				return nil
			})
			_, err := h.x.RotateRoot(t.Context(), h.ann, "orders", "")
			if early := i/2 < 6; crashed != early || (err == nil) == early {
				t.Fatalf("%s, alone %v: it came through, %v", point, alone, err)
			}
			for range 6 {
				h.pass(3 * time.Minute)
			}
			h.x.Reached(nil)
			if !crashed {
				t.Errorf("%s, alone %v: nobody came there", point, alone)
			}
			r, err := h.x.Get(t.Context(), h.ann, path)
			slot, made := "b", 1
			if alone {
				slot, made = "a", 0
			}
			if err != nil || r.Slot != slot || r.Previous != 0 || len(h.target.made) != made {
				t.Errorf("%s, alone %v: slot %q, previous %d, %v, made %q", point, alone, r.Slot, r.Previous, err, h.target.made)
			}
			if v, err := h.secrets.Read(t.Context(), h.ann, path, 0, "a test"); err != nil || !h.target.accepts(engine.Credential{User: string(v.Values["username"].Reveal()), Secret: v.Values["password"]}) {
				t.Errorf("%s, alone %v: the current version does not log in, %v", point, alone, err)
			}
			if h.target.accepts(engine.Credential{User: "operator", Secret: estover.NewSecret([]byte("first-of-operator"))}) {
				t.Errorf("%s, alone %v: what the operator typed in is good", point, alone)
			}
		}
	})
}

// TestRotateRootShared: no other target is locked out by it, at whichever server it is
// and whichever secret it has.
func TestRotateRootShared(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("operator"))
		h.admin, h.pair = path, true
		h.register()
		const beside, elsewhere = "db/beside", "elsewhere.example:5432"
		if _, err := h.secrets.Create(t.Context(), ann, secret.Spec{Path: beside, Destinations: []string{there}}); err != nil {
			t.Fatal(err)
		}
		fields := map[string]estover.Secret{"username": estover.NewSecret([]byte("operator")), "password": estover.NewSecret([]byte("first-of-operator"))}
		for _, p := range []string{path, beside} {
			if _, err := h.secrets.Write(t.Context(), ann, p, fields, 0); err != nil {
				t.Fatal(err)
			}
		}
		err := d.Do(t.Context(), h.tenant, func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `insert into secret_target (tenant_id, id, name, kind, address, options, authorities, admin, owner, description, batches,
					created_at, created_by, updated_at, epoch, reach)
				select $1, id, name, 'memory', '', '{}', '', 'db/any', '', '', 4, $2, 'user:usr_ann', $2, 1, 1
				from (select 'tgt_2' as id, 'billing' as name union all select 'tgt_3', 'far') t`, tx.Tenant(), tx.Now())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		far := rotation.Target{ID: "tgt_3", Name: "far", Admin: beside, Host: elsewhere}
		for _, c := range []struct{ what, admin, host, second, words string }{
			{"another server with the same secret", path, elsewhere, "", "which is another server"},
			{"another secret of the same user", beside, there, "", "in a secret of its own, " + beside},
			{"and a second admin that is named", beside, there, "operator_c", "in a secret of its own, " + beside},
		} {
			h.others = map[string]rotation.Target{"tgt_2": {ID: "tgt_2", Name: "billing", Admin: c.admin, Host: c.host}, "tgt_3": far}
			_, err := h.x.RotateRoot(t.Context(), ann, "orders", c.second)
			if !errors.Is(err, rotation.ErrShared) || !strings.Contains(err.Error(), "billing") || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%s: %v, want ErrShared that names billing", c.what, err)
			}
			// Nor is it when somebody has it rotated as a pair, or as a user alone.
			for _, spec := range []rotation.Spec{
				{Target: "orders", Users: []string{"operator", cmp.Or(c.second, "operator_b")}}, {Target: "orders", Kind: rotation.SingleSlot, Users: []string{"operator"}},
			} {
				if _, err := h.x.Put(t.Context(), ann, path, spec); !errors.Is(err, rotation.ErrShared) || !strings.Contains(err.Error(), c.words) {
					t.Errorf("%s, by hand as %v: %v, want ErrShared", c.what, spec.Users, err)
				}
			}
		}
		if _, err := h.x.Get(t.Context(), ann, path); !errors.Is(err, rotation.ErrNotFound) || len(h.target.made) > 0 {
			t.Errorf("it is rotated: %v, made %q", err, h.target.made)
		}
		h.others = map[string]rotation.Target{"tgt_2": {ID: "tgt_2", Name: "billing", Admin: path, Host: there}, "tgt_3": far}
		// The target itself would be locked out by another secret of its admin's.
		if _, err := h.x.Put(t.Context(), ann, beside, rotation.Spec{Target: "orders", Users: []string{"operator", "other"}}); !errors.Is(err, rotation.ErrShared) || !strings.Contains(err.Error(), "in a secret of its own, "+path) {
			t.Errorf("the target's own admin in another secret: %v, want ErrShared", err)
		}
		if r, err := h.x.RotateRoot(t.Context(), ann, "orders", ""); err != nil || r.Step != rotation.Grace {
			t.Errorf("beside one at the same server with the same secret, and one elsewhere: %s, %v", r.Step, err)
		}
	})
}

// TestRotateRootCut: a second admin whose maker has heard no answer is compared with the
// first all the same, before it serves.
func TestRotateRootCut(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		for i, unlike := range []string{"", "operator_b"} {
			h := buildAt(t, d, newMemory("operator"), estover.TenantID("acme"+string(rune('a'+i))))
			fields := map[string]estover.Secret{"username": estover.NewSecret([]byte("operator")), "password": estover.NewSecret([]byte("first-of-operator"))}
			if _, err := h.secrets.Write(t.Context(), h.ann, path, fields, 0); err != nil {
				t.Fatal(err)
			}
			h.admin, h.pair = path, true
			h.target.cut, h.target.unlike = "operator_b", unlike
			if _, err := h.x.RotateRoot(t.Context(), h.ann, "orders", ""); err == nil || !strings.Contains(err.Error(), "the answer is lost") {
				t.Fatalf("an answer that is lost: %v", err)
			}
			for range 4 { // to its end, since what is due of one tenant is done at the target of the next
				h.pass(time.Minute)
			}
			r, err := h.x.Get(t.Context(), h.ann, path)
			if unlike == "" {
				if err != nil || r.Slot != "b" {
					t.Errorf("one with the rights of the first: slot %q, %q, %v; want it to serve", r.Slot, r.LastError, err)
				}
			} else if err != nil || r.Slot != "a" || !strings.Contains(r.LastError, "has not the rights of operator") || !strings.Contains(r.LastError, "rotate-root orders --second-admin operator_b") {
				t.Errorf("one without: slot %q, %q, %v; want the first to go on, and what to do", r.Slot, r.LastError, err)
			} else { // and who does it is done
				h.target.unlike = ""
				delete(h.target.users, "operator_b")
				err := h.x.Clear(t.Context(), h.ann, "orders")
				if err == nil {
					r, err = h.x.RotateRoot(t.Context(), h.ann, "orders", "operator_b")
				}
				if err != nil || r.Slot != "b" {
					t.Errorf("one that is made anew: slot %q, %v; want it to serve", r.Slot, err)
				}
			}
			v, err := h.secrets.Read(t.Context(), h.ann, path, 0, "a test")
			if err != nil || !h.target.accepts(engine.Credential{User: string(v.Values["username"].Reveal()), Secret: v.Values["password"]}) {
				t.Errorf("with %q unlike, the current version, of %s, does not log in: %v", unlike, v.Values["username"].Reveal(), err)
			}
		}
	})
}

// TestRotateRootLate: a second admin whose maker was cut off may come after it was looked
// for, and is taken as one that was there before.
func TestRotateRootLate(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("operator"))
		fields := map[string]estover.Secret{"username": estover.NewSecret([]byte("operator")), "password": estover.NewSecret([]byte("first-of-operator"))}
		if _, err := h.secrets.Write(t.Context(), ann, path, fields, 0); err != nil {
			t.Fatal(err)
		}
		h.admin, h.pair, h.target.late = path, true, "operator_b"
		r, err := h.x.RotateRoot(t.Context(), ann, "orders", "")
		if err != nil || r.Slot != "b" || len(h.target.made) > 0 {
			t.Errorf("rotating the root: slot %q, %v, made %q; want the one that came", r.Slot, err, h.target.made)
		}
		h.works()
	})
}

// beside has a target "billing" where it is said to be, and a secret for it.
func (h *house) beside(at rotation.Target, path, user string) {
	h.t.Helper()
	if _, err := h.secrets.Create(h.t.Context(), h.ann, secret.Spec{Path: path, Destinations: []string{there}}); err != nil {
		h.t.Fatal(err)
	}
	fields := map[string]estover.Secret{"username": estover.NewSecret([]byte(user)), "password": estover.NewSecret([]byte("first-of-" + user))}
	if _, err := h.secrets.Write(h.t.Context(), h.ann, path, fields, 0); err != nil {
		h.t.Fatal(err)
	}
	err := h.d.Do(h.t.Context(), h.tenant, func(tx *db.Tx) error {
		_, err := tx.Exec(h.t.Context(), `insert into secret_target (tenant_id, id, name, kind, address, options, authorities, admin, owner, description, batches,
				created_at, created_by, updated_at, epoch, reach)
			values ($1, 'tgt_2', 'billing', 'memory', '', '{}', '', '', '', '', 4, $2, 'user:usr_ann', $2, 1, 1)`, tx.Tenant(), tx.Now())
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.move(at)
}

func (h *house) move(at rotation.Target) {
	at.ID, at.Name = "tgt_2", "billing"
	h.others = map[string]rotation.Target{"tgt_2": at, "billing": at}
}

// TestIdleAdmin is R12: the user of a pair who does not serve is one of a target's admins
// too, and nobody else rotates it at the same server, whenever that is found out.
func TestIdleAdmin(t *testing.T) {
	const beside = "db/beside"
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		for i, later := range []bool{false, true} {
			h := buildAt(t, d, newMemory("operator"), estover.TenantID("acme"+string(rune('a'+i))))
			h.admin, h.pair = path, true
			h.register()
			fields := map[string]estover.Secret{"username": estover.NewSecret([]byte("operator")), "password": estover.NewSecret([]byte("first-of-operator"))}
			if _, err := h.secrets.Write(t.Context(), h.ann, path, fields, 0); err != nil {
				t.Fatal(err)
			}
			if r, err := h.x.RotateRoot(t.Context(), h.ann, "orders", ""); err != nil || r.Slot != "b" {
				t.Fatal(r.Slot, err)
			}
			h.pass(2 * time.Second)
			h.pass(2 * time.Second)
			host := there
			if later { // it is at another server until its rotation is there
				host = "elsewhere.example:5432"
			}
			h.beside(rotation.Target{Host: host}, beside, "operator")
			_, err := h.x.Put(t.Context(), h.ann, beside, rotation.Spec{Target: "billing", Kind: rotation.SingleSlot, Users: []string{"operator"}, Schedule: "12h"})
			if later && err == nil {
				h.move(rotation.Target{Host: there})
				_, err = h.x.Run(t.Context(), h.ann, beside)
			}
			if !errors.Is(err, rotation.ErrShared) || !strings.Contains(err.Error(), path) {
				t.Errorf("the user who does not serve, later %v: %v, want ErrShared that names %s", later, err, path)
			}
			before := slices.Clone(h.target.users["operator"])
			h.pass(13 * time.Hour)
			if !slices.Equal(h.target.users["operator"], before) {
				t.Errorf("later %v: the schedule has changed its password", later)
			}
			if r, err := h.x.Get(t.Context(), h.ann, beside); later && (err != nil || r.Step != rotation.Idle || !strings.Contains(r.LastError, "same server")) {
				t.Errorf("by the schedule: %s, %q, %v, want it to wait and say why", r.Step, r.LastError, err)
			}
		}
	})
}

// TestSameUser: names are one user's where the target says so, and only there.
func TestSameUser(t *testing.T) {
	const beside = "db/beside"
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("app"))
		h.register()
		h.beside(rotation.Target{Host: there, Admin: beside}, beside, "App")
		spec := rotation.Spec{Target: "orders", Kind: rotation.SingleSlot, Users: []string{"app"}, Schedule: "manual"}
		h.account = strings.ToLower
		if _, err := h.x.Put(t.Context(), ann, path, spec); !errors.Is(err, rotation.ErrShared) {
			t.Errorf("one user by two names: %v, want ErrShared", err)
		}
		h.account = nil
		if _, err := h.x.Put(t.Context(), ann, path, spec); err != nil {
			t.Errorf("two users: %v", err)
		}
	})
}

// TestSharedIsNotTold: whoever may not schedule has no other secret looked at, and who may
// hears of nobody else's target and secret.
func TestSharedIsNotTold(t *testing.T) {
	const beside, elsewhere = "hidden/beside", "elsewhere.example:5432"
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("app"))
		h.register()
		h.beside(rotation.Target{Host: there, Admin: beside}, beside, "app")
		bob := ann
		bob.Subject, bob.Roles = estover.User("usr_bob"), nil
		spec := rotation.Spec{Target: "orders", Kind: rotation.SingleSlot, Users: []string{"app"}, Schedule: "manual"}
		for _, at := range []rotation.Target{{Host: there, Admin: beside}, {Host: elsewhere, Admin: path}} {
			h.move(at)
			_, err := h.x.Put(t.Context(), bob, path, spec)
			if !errors.Is(err, rotation.ErrShared) || strings.Contains(err.Error(), "billing") || strings.Contains(err.Error(), beside) {
				t.Errorf("somebody else's: %v, want ErrShared that names neither", err)
			}
			if _, err := h.x.Put(t.Context(), ann, path, spec); !errors.Is(err, rotation.ErrShared) || !strings.Contains(err.Error(), "billing") {
				t.Errorf("an administrator is told: %v, want ErrShared that names billing", err)
			}
		}
		looked, look := 0, h.x.Target
		h.x.Target = func(ctx context.Context, tenant estover.TenantID, name string) (rotation.Target, error) {
			if name == "tgt_2" {
				looked++
			}
			return look(ctx, tenant, name)
		}
		h.x.Guard = guardtest.New(t, d, guardtest.DenyAll)
		if _, err := h.x.Put(t.Context(), bob, path, spec); estover.KindOf(err) != estover.Denied || looked > 0 {
			t.Errorf("who may not schedule: %v, and %d targets beside were looked at; want a denial and none", err, looked)
		}
	})
}

// TestRotateRootAgain: what may be half done at a target that has stopped answering is
// brought to its end, and whoever asked for it is told so.
func TestRotateRootAgain(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("operator"))
		fields := map[string]estover.Secret{"username": estover.NewSecret([]byte("operator")), "password": estover.NewSecret([]byte("first-of-operator"))}
		if _, err := h.secrets.Write(t.Context(), ann, path, fields, 0); err != nil {
			t.Fatal(err)
		}
		h.admin, h.pair = path, true
		h.x.Reached(func(at string) error {
			if at == "before R2" {
				h.target.fail("down")
			}
			return nil
		})
		_, err := h.x.RotateRoot(t.Context(), ann, "orders", "")
		h.x.Reached(nil)
		if !errors.Is(err, rotation.ErrFailed) || !strings.Contains(err.Error(), "tried again until it is done: estover rotation explain "+path) {
			t.Errorf("a target that stops answering: %v", err)
		}
		h.target.restore()
		for range 3 {
			h.pass(3 * time.Minute)
		}
		if r, err := h.x.Get(t.Context(), ann, path); err != nil || r.Slot != "b" || r.Previous != 0 {
			t.Errorf("when it answers: slot %q, previous %d, %v", r.Slot, r.Previous, err)
		}
	})
}
