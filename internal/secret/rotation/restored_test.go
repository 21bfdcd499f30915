package rotation_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/rotation"
	"estover.dev/internal/secret/target"
)

// register has the target of the house stand in the register of targets.
func (h *house) register() {
	h.t.Helper()
	err := h.d.Do(h.t.Context(), h.tenant, func(tx *db.Tx) error {
		_, err := tx.Exec(h.t.Context(), `insert into secret_target (tenant_id, id, name, kind, address, options, authorities, admin, owner, description, batches,
				created_at, created_by, updated_at, epoch, reach)
			values ($1, 'tgt_1', 'orders', 'memory', 'db.example:5432', '{}', '', '', '', '', 4, $2, 'user:usr_ann', $2, 1, 1)`, tx.Tenant(), tx.Now())
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// A doubt is why nothing is done at a target: how it begins, what is said of it, and
// how it ends.
type doubt struct {
	name, says string
	set        string
	clear      string
}

var doubts = []doubt{
	{"restored", "estover secret engine reconcile orders", "suspect_at = $2", "suspect_at = null"},
	{"disabled", "estover secret engine resume orders", "disabled_at = $2, disabled_for = 'it is being moved'", "disabled_at = null, disabled_for = ''"},
}

func (h *house) doubt(set string) {
	h.t.Helper()
	err := h.d.Do(h.t.Context(), h.tenant, func(tx *db.Tx) error {
		args := []any{tx.Tenant()}
		if strings.Contains(set, "$2") {
			args = append(args, tx.Now())
		}
		_, err := tx.Exec(h.t.Context(), "update secret_target set "+set+" where tenant_id = $1", args...)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// seen is all that there is at a target.
func (m *memory) seen() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var said []string
	for _, u := range slices.Sorted(maps.Keys(m.users)) {
		said = append(said, fmt.Sprintf("%s %v %d", u, m.users[u], m.sessions[u]))
	}
	return strings.Join(append(said, fmt.Sprint(m.made, m.refused)), "\n")
}

// TestOlderDatabase shows F5 for rotations. The newer database, which is lost, had
// retired the version that the older one believes to be on its way out, and made
// another one current in its slot. That goes on logging in and its sessions stay until
// somebody has compared the two, whoever asks for what.
func TestOlderDatabase(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory(pair.Users...))
		h.register()
		h.put(pair)
		h.run()
		h.run()
		h.want("1a:previous 2b:current") // so far the backup
		newer := engine.Credential{User: "reader_a", Secret: estover.NewSecret([]byte("of version 3"))}
		h.target.mu.Lock()
		h.target.users["reader_a"], h.target.sessions["reader_a"] = []string{"of version 3"}, 2
		h.target.mu.Unlock()
		var n int64
		err := d.Do(t.Context(), h.tenant, func(tx *db.Tx) (err error) {
			n, err = target.SetSuspect(t.Context(), tx, "", tx.Now()) // as a restore that is declared does
			return err
		})
		if err != nil || n != 1 {
			t.Fatalf("%d targets are in doubt, %v; want 1", n, err)
		}

		for range 3 {
			e := h.pass(time.Hour)
			if e.Step != rotation.Grace || !strings.Contains(e.Why, doubts[0].says) {
				t.Errorf("the rotation is at %s: %s; want it to say %q", e.Step, e.Why, doubts[0].says)
			}
		}
		if _, err := h.x.Run(t.Context(), ann, path); !errors.Is(err, rotation.ErrWaits) {
			t.Errorf("rotating: %v, want ErrWaits", err)
		}
		if _, err := h.x.Force(t.Context(), ann, path, "it is late"); !errors.Is(err, rotation.ErrWaits) {
			t.Errorf("forcing: %v, want ErrWaits", err)
		}
		if left, err := h.x.Replace(t.Context(), ann, path, 2, "an emergency", false); !errors.Is(err, rotation.ErrWaits) {
			t.Errorf("replacing: %q, %v; want ErrWaits", left, err)
		}
		if h.target.sessions["reader_a"] != 2 || !h.target.accepts(newer) {
			t.Errorf("the version that the newer database had made current: %d sessions, logs in: %v", h.target.sessions["reader_a"], h.target.accepts(newer))
		}
		if late, err := h.x.Late(t.Context()); err != nil || late != 1 {
			t.Errorf("%d versions are late, %v; want 1: that it waits is an alarm all the same", late, err)
		}
		h.works()

		// Somebody has looked, and has told who was logged in.
		h.doubt(doubts[0].clear)
		h.target.sessions["reader_a"] = 0
		h.pass(time.Minute)
		h.pass(time.Minute)
		h.want("1a:retired 2b:current")
		h.run()
		h.works()
	})
}

// TestNothingIsDone shows F5 for every step: at a target in doubt nothing whatever
// happens, wherever a rotation stood, and it goes on when the doubt is over. So it is
// with the pair of the target's own admins.
func TestNothingIsDone(t *testing.T) {
	single := rotation.Spec{Kind: rotation.SingleSlot, Target: "orders", Users: []string{"reader_a"}, Cache: 60, Quiet: 30, Schedule: "manual"}
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		n := 0
		specs, doubts := []rotation.Spec{pair, single, kinds[1]}, doubts
		if d.Engine() != db.SQLite { // what differs by the kind does not by the database
			specs, doubts = specs[:1], doubts[:1]
		}
		for _, spec := range specs {
			for _, why := range doubts {
				for _, point := range []string{"after R1", "after R2", "after R3", "before R6", "after R4", "before R5"} {
					if spec.Kind == rotation.SingleSlot && (point == "before R5" || point == "after R4") {
						continue // there is nothing to retire
					}
					n++
					h := buildAt(t, d, newMemory(pair.Users...), estover.TenantID(fmt.Sprintf("tenant%d", n)))
					if h.plain = spec.Kind == rotation.Keys; h.plain {
						h.target = newMemory()
						h.target.plain = true
					}
					h.admin = path
					h.register()
					h.put(spec)
					h.run()
					died := false
					h.x.Reached(func(at string) error {
						if point == "before R6" && at == "before R3" {
							h.target.fail("wrong")
						}
						if at == point {
							died = true
							return rotation.ErrCrash
						}
						return nil
					})
					if _, err := h.x.Run(t.Context(), h.ann, path); err != nil && !errors.Is(err, rotation.ErrCrash) {
						t.Fatal(err)
					}
					for range 3 {
						if died {
							break
						}
						h.pass(time.Hour)
					}
					if !died {
						t.Fatalf("%s %s: nothing was reached that is called so", spec.Kind, point)
					}
					h.x.Reached(nil)
					h.target.restore()

					h.doubt(why.set)
					before := h.target.seen()
					for range 2 {
						if e := h.pass(rotation.HoldTime + time.Hour); !strings.Contains(e.Why, why.says) {
							t.Errorf("%s, %s %s: %s; want it to say %q", spec.Kind, why.name, point, e.Why, why.says)
						}
					}
					if _, err := h.x.Run(t.Context(), h.ann, path); !errors.Is(err, rotation.ErrWaits) {
						t.Errorf("%s, %s %s: running it: %v, want ErrWaits", spec.Kind, why.name, point, err)
					}
					if after := h.target.seen(); after != before {
						t.Errorf("%s, %s %s: the target was\n%s\nand is\n%s", spec.Kind, why.name, point, before, after)
					}
					h.doubt(why.clear)
					for range 4 {
						h.pass(time.Hour)
					}
					if e := h.explain(); e.Step != rotation.Idle || e.Waits != "" {
						t.Errorf("%s, %s %s: when the doubt is over: %s %s", spec.Kind, why.name, point, e.Step, e.Why)
					}
					if c, err := h.secrets.Values(t.Context(), h.tenant, path, h.explain().Current); err != nil || !h.accepts(c) {
						t.Errorf("%s, %s %s: the current version logs in: %v, %v", spec.Kind, why.name, point, err == nil && h.accepts(c), err)
					}
				}
			}
		}
	})
}

// TestNothingIsRevoked shows F5 for certificates, which are at no target: they are made
// as ever, and the one before is revoked when every target has been compared, or by
// whoever says so, or ends by itself.
func TestNothingIsRevoked(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory(pair.Users...))
		h.kind = rotation.Certificate
		h.register()
		h.put(kinds[2])
		h.doubt(doubts[0].set)
		h.run()
		h.run()
		if e := h.pass(10 * time.Minute); e.Step != rotation.Grace || !strings.Contains(e.Why, "estover doctor targets") {
			t.Errorf("while a target is in doubt: %s %s", e.Step, e.Why)
		}
		if r, err := h.x.Force(t.Context(), ann, path, "its key was seen"); err != nil || r.Step != rotation.Idle {
			t.Errorf("when somebody says so: %s, %v", r.Step, err)
		}
		h.want("1a:retired 2b:current")
		h.clock.Advance(time.Hour)
		h.run()
		if e := h.pass(10 * time.Minute); e.Step != rotation.Grace {
			t.Errorf("the next one: %s %s", e.Step, e.Why)
		}
		h.doubt(doubts[0].clear)
		h.pass(10 * time.Minute)
		h.pass(10 * time.Minute)
		h.want("1a:retired 2b:retired 3a:current")
	})
}
