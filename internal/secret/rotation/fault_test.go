package rotation_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/rotation"
)

// TestOurFault: what goes wrong here while the next admin is tried out says nothing of
// it. The rotation is tried again, and others at the target are not stopped (R11).
func TestOurFault(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("operator"))
		fields := map[string]estover.Secret{"username": estover.NewSecret([]byte("operator")), "password": estover.NewSecret([]byte("first-of-operator"))}
		if _, err := h.secrets.Write(t.Context(), ann, path, fields, 0); err != nil {
			t.Fatal(err)
		}
		spec := pair
		spec.Users, spec.Template = []string{"operator", "estover_admin"}, engine.Template{"groups": {"admins"}}
		h.admin = path
		h.put(spec)
		ours := errors.New("our database does not answer")
		look, as := h.x.Target, h.x.As
		for what, breaks := range map[string]func(){
			"looking the target up": func() {
				h.x.Target = func(context.Context, estover.TenantID, string) (rotation.Target, error) {
					return rotation.Target{}, ours
				}
			},
			"opening an engine": func() {
				h.x.As = func(context.Context, estover.TenantID, string, engine.Credential) (engine.Engine, error) {
					return nil, ours
				}
			},
		} {
			h.x.Reached(func(at string) error {
				if at == "after R3" {
					breaks()
				}
				return nil
			})
			_, err := h.x.Run(t.Context(), ann, path)
			h.x.Reached(nil)
			h.x.Target, h.x.As = look, as
			e := h.explain()
			if !errors.Is(err, rotation.ErrFailed) || e.Step != rotation.Applied || e.Stopped != "" || !strings.Contains(e.LastError, ours.Error()) {
				t.Errorf("%s fails: %v, %s, stopped %q, last error %q; want it applied and tried again", what, err, e.Step, e.Stopped, e.LastError)
			}
		}
		if e := h.pass(time.Minute); e.Step != rotation.Grace || e.Current != 2 {
			t.Errorf("when all is well again: %s with version %d (%s), want version 2 in its grace", e.Step, e.Current, e.LastError)
		}
		h.works()
	})
}

// TestAnswers: an answer that cannot be written holds up no other.
func TestAnswers(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("reader_a", "reader_b", "other_a", "other_b"))
		h.put(pair)
		if _, err := h.secrets.Create(t.Context(), ann, secret.Spec{Path: "db/other", Destinations: []string{there}}); err != nil {
			t.Fatal(err)
		}
		other := pair
		other.Users = []string{"other_a", "other_b"}
		if _, err := h.x.Put(t.Context(), ann, "db/other", other); err != nil {
			t.Fatal(err)
		}
		run := func(path string) (r rotation.Rotation) {
			t.Helper()
			r, err := h.x.Run(t.Context(), ann, path)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		exec := func(statement string) {
			t.Helper()
			err := d.Do(t.Context(), "", func(tx *db.Tx) error {
				_, err := tx.Exec(t.Context(), statement)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		paths := []string{path, "db/other"}
		ids := map[string]string{}
		for _, p := range paths {
			ids[p] = run(p).Secret
		}
		h.clock.Advance(time.Hour)
		h.tick(h.x)
		for _, p := range paths { // what is open is what there is to say
			in, err := h.secrets.Use(t.Context(), bot, p, "password", there)
			if err != nil {
				t.Fatal(err)
			}
			defer h.secrets.Carry(in).Done()
			run(p)
		}
		for n, bad := range paths {
			breaks, mends := `alter table rotation_ack add constraint broken check (secret_id <> '`+ids[bad]+`')`, `alter table rotation_ack drop constraint broken`
			if d.Engine() == db.SQLite {
				breaks, mends = `create trigger broken before insert on rotation_ack when new.secret_id = '`+ids[bad]+`' begin select raise(abort, 'broken'); end`, `drop trigger broken`
			}
			exec(`delete from rotation_ack`)
			exec(breaks)
			err := h.x.Tick(t.Context())
			exec(mends)
			if err == nil || !strings.Contains(err.Error(), bad) || strings.Contains(err.Error(), paths[1-n]) {
				t.Errorf("an answer about %s that cannot be written: %v", bad, err)
			}
			said := ""
			err = d.View(t.Context(), "", func(tx *db.Tx) error {
				return tx.QueryRow(t.Context(), `select secret_id from rotation_ack`).Scan(&said)
			})
			if err != nil || said != ids[paths[1-n]] {
				t.Errorf("with none about %s the node has answered about %q, %v; want the other", bad, said, err)
			}
		}
	})
}

// TestSoon: a version that was seen where it should not be is replaced as soon as may
// be: at once or, in the grace of the one before, after that has retired (R7).
func TestSoon(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("reader_a", "reader_b"))
		h.put(pair)
		h.run()
		soon := func(n int64) {
			t.Helper()
			if err := h.x.Soon(t.Context(), ann, path, n); err != nil {
				t.Fatal(err)
			}
		}
		h.clock.Advance(time.Hour)
		soon(1)
		if e := h.pass(0); e.Current != 2 || e.Step != rotation.Grace {
			t.Fatalf("version 1 was seen: %s with version %d, want version 2 in its grace", e.Step, e.Current)
		}
		soon(1) // it is on its way out
		if e := h.explain(); !e.DueAt.IsZero() {
			t.Errorf("what is replaced already is to be replaced at %s", e.DueAt)
		}
		soon(2)
		e := h.pass(0)
		if late := e.DueAt.Sub(e.GraceUntil); e.Current != 2 || late < 0 || late > time.Second {
			t.Errorf("in the grace: version %d, due at %s; want version 2, and another at %s", e.Current, e.DueAt, e.GraceUntil)
		}
		h.pass(2 * time.Minute)
		if e := h.pass(time.Second); e.Current != 3 {
			t.Errorf("after the grace: %s with version %d (%s), want version 3", e.Step, e.Current, e.LastError)
		}
		h.works()
		if err := h.x.Soon(t.Context(), ann, "db/none", 1); !errors.Is(err, rotation.ErrNotFound) {
			t.Errorf("a secret that is not rotated: %v, want ErrNotFound", err)
		}
		if err := h.x.Soon(t.Context(), eve, path, 3); !errors.Is(err, rotation.ErrNotFound) {
			t.Errorf("another organisation's: %v, want ErrNotFound", err)
		}
	})
}

// TestCertificateDestroyed: a certificate is revoked also where somebody has destroyed
// the version that had it.
func TestCertificateDestroyed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory())
		h.kind = rotation.Certificate
		h.put(kinds[2])
		h.pass(time.Second)
		serial := func(n int64) string {
			t.Helper()
			values, err := h.secrets.Values(t.Context(), h.tenant, path, n)
			if err != nil {
				t.Fatal(err)
			}
			return string(values["serial"].Reveal())
		}
		destroy := func(n int64) {
			t.Helper()
			if err := h.secrets.Destroy(t.Context(), h.ann, path, n); err != nil {
				t.Fatal(err)
			}
		}
		h.clock.Advance(time.Hour)
		h.tick(h.x)
		first := serial(1)
		h.run()
		destroy(1) // in its grace
		h.pass(2 * time.Minute)
		if e := h.pass(2 * time.Minute); e.Step != rotation.Idle || h.authority.accepts(first) {
			t.Errorf("the previous one, destroyed: %s, and it holds: %v; want it retired and revoked", e.Step, h.authority.accepts(first))
		}

		// The current one; and the rotation that ends and begins again knows it too.
		if err := h.x.Remove(t.Context(), ann, path); err != nil {
			t.Fatal(err)
		}
		h.put(kinds[2])
		second := serial(2)
		h.clock.Advance(time.Hour)
		h.tick(h.x)
		destroy(2)
		h.run()
		h.pass(2 * time.Minute)
		if e := h.pass(2 * time.Minute); e.Step != rotation.Idle || h.authority.accepts(second) {
			t.Errorf("the current one, destroyed: %s, and it holds: %v; want it retired and revoked", e.Step, h.authority.accepts(second))
		}

		// The pending one.
		h.x.Reached(func(at string) error {
			if at == "before R3" {
				return rotation.ErrCrash
			}
			return nil
		})
		h.clock.Advance(time.Hour)
		h.tick(h.x)
		if _, err := h.x.Run(t.Context(), ann, path); !errors.Is(err, rotation.ErrCrash) {
			t.Fatal(err)
		}
		h.x.Reached(nil)
		pending := h.explain().Pending
		third := serial(pending)
		destroy(pending)
		if e := h.pass(2 * rotation.HoldTime); e.Step != rotation.Idle || e.Current != 3 || h.authority.accepts(third) {
			t.Errorf("the pending one, destroyed: %s with version %d, and it holds: %v; want it abandoned and revoked", e.Step, e.Current, h.authority.accepts(third))
		}
		h.works()
	})
}

// TestSoonAtTheEnd: while a node scrambles what has retired, no other gives that user
// its next password: the scrambling might come after it.
func TestSoonAtTheEnd(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("reader_a", "reader_b"))
		other, _ := h.node("node_2")
		h.put(pair)
		h.run()
		h.clock.Advance(time.Hour)
		h.tick(h.x, other)
		h.run()
		pass := func(by time.Duration) {
			t.Helper()
			h.clock.Advance(by)
			h.tick(h.x, other)
			if err := h.x.RunDue(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		seen := false
		h.x.Reached(func(at string) error {
			if at == "before R5" && !seen {
				seen = true
				if err := errors.Join(other.Soon(t.Context(), ann, path, 2), other.RunDue(t.Context())); err != nil {
					t.Error(err)
				}
			}
			return nil
		})
		for range 4 {
			pass(time.Minute)
		}
		h.x.Reached(nil)
		if !seen {
			t.Fatal("nothing was scrambled")
		}
		h.works()
		for range 3 {
			pass(rotation.HoldTime + time.Second)
			h.works()
		}
		if e := h.explain(); e.Current != 3 {
			t.Errorf("in the end: %s with version %d (%s), want version 3", e.Step, e.Current, e.LastError)
		}
	})
}
