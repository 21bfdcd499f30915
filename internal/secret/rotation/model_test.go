package rotation_test

import (
	"errors"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/rotation"
)

// A holder is what the model knows of who uses a version.
type holder struct {
	used   time.Time // by the gateway, last
	open   int       // connections
	reads  bool      // it has read the value in plaintext
	closed []func()
}

func (w *holder) close() {
	for _, f := range w.closed {
		f()
	}
	w.open, w.closed = 0, nil
}

// TestModel has agents use a secret by every way while it is rotated, nodes die at
// any point, and the target fails now and then. Whatever happens, the current
// version logs in, and no version dies that somebody uses (R5–R9).
func TestModel(t *testing.T) {
	for name, value := range map[string]string{"rapid.checks": "10", "rapid.steps": "80"} { // unless somebody asks for more
		if f := flag.Lookup(name); f.Value.String() == f.DefValue {
			_ = f.Value.Set(value)
			defer func() { _ = f.Value.Set(f.DefValue) }()
		}
	}
	n := 0
	d := dbtest.Open(t)
	rapid.Check(t, func(rt *rapid.T) {
		n++
		spec := rapid.SampledFrom(kinds).Draw(rt, "kind")
		h := buildAt(t, d, newMemory("reader_a", "reader_b"), estover.TenantID(fmt.Sprintf("tenant%d", n)))
		if h.plain = spec.Kind == rotation.Keys; h.plain {
			h.target = newMemory()
			h.target.plain = true
		}
		_, field := fields(spec.Kind)
		h.x.Wait(100 * time.Millisecond) // whoever has died holds a rotation until the clock moves
		h.put(spec)
		h.run()
		other, _ := h.node("node_2")
		holders := map[int64]map[string]*holder{}
		held := func(version int64, session string) *holder {
			if holders[version] == nil {
				holders[version] = map[string]*holder{}
			}
			if holders[version][session] == nil {
				holders[version][session] = &holder{}
			}
			return holders[version][session]
		}
		values := map[int64]map[string]estover.Secret{}
		sessions, begun := []string{"ses_1", "ses_2", "ses_3"}, 3
		forced := map[int64]bool{}
		which := rapid.IntRange(0, len(sessions)-1)
		as := func(s string) estover.Caller {
			c := bot
			c.Tenant, c.Session = h.tenant, s
			return c
		}
		version := func(id string) (v int64) {
			_, _ = fmt.Sscan(id[strings.IndexByte(id, '@')+1:], &v)
			return v
		}
		check := func() {
			list, err := h.secrets.Versions(t.Context(), h.ann, path)
			if err != nil {
				rt.Fatal(err)
			}
			count := map[secret.Phase]int{}
			now := h.clock.Now()
			for _, v := range list {
				count[v.Phase]++
				if v.Phase == secret.Current || v.Phase == secret.Previous {
					c, known := values[v.N]
					if !known {
						var err error
						if c, err = h.secrets.Values(t.Context(), h.tenant, path, v.N); err != nil {
							rt.Fatal(err)
						}
						values[v.N] = c
					}
					if !h.accepts(c) {
						rt.Fatalf("version %d is %s, and does not log in", v.N, v.Phase)
					}
				}
				if c, known := values[v.N]; known && (v.Phase == secret.Retired || v.Phase == secret.Abandoned) && h.accepts(c) {
					rt.Fatalf("version %d is %s, and is good still", v.N, v.Phase)
				}
				if v.Phase != secret.Retired || forced[v.N] {
					continue
				}
				for s, who := range holders[v.N] {
					if who.open > 0 {
						rt.Fatalf("version %d has retired while %s has %d connections open", v.N, s, who.open)
					}
					if who.reads && !h.over[s] {
						rt.Fatalf("version %d has retired while %s has its value", v.N, s)
					}
					if quiet := now.Sub(who.used); !who.used.IsZero() && quiet < 30*time.Second {
						rt.Fatalf("version %d has retired %s after %s used it", v.N, quiet, s)
					}
				}
				delete(holders, v.N) // looked at once: later uses are of other versions
			}
			if count[secret.Current] > 1 || count[secret.Previous]+count[secret.Retiring] > 1 || count[secret.Pending] > 1 {
				rt.Fatalf("the versions are %s", h.phases())
			}
		}
		run := func(*rapid.T) {
			_, err := h.x.Run(t.Context(), h.ann, path)
			if err != nil && !errors.Is(err, rotation.ErrBusy) && !errors.Is(err, rotation.ErrFailed) && !errors.Is(err, rotation.ErrStopped) {
				rt.Fatal(err)
			}
			h.target.restore()
			h.authority.fail("")
			if errors.Is(err, rotation.ErrStopped) {
				if err := h.x.Clear(t.Context(), h.ann, "orders"); err != nil {
					rt.Fatal(err)
				}
			}
		}
		pass := func(rt *rapid.T) {
			h.clock.Advance(time.Duration(rapid.IntRange(1, 200).Draw(rt, "seconds")) * time.Second)
			for range 3 { // until everybody has asked and answered
				h.tick(h.x, other)
				for _, x := range []*rotation.Rotations{h.x, other} {
					if err := x.RunDue(t.Context()); err != nil {
						rt.Fatal(err)
					}
				}
				h.clock.Advance(2 * time.Second)
			}
			h.tick(h.x, other)
		}
		rt.Repeat(map[string]func(*rapid.T){
			"":          func(*rapid.T) { check() },
			"run":       run,
			"run again": run,
			"pass":      pass,
			"pass on":   pass,

			"use": func(rt *rapid.T) {
				s := sessions[which.Draw(rt, "session")]
				in, err := h.secrets.Use(t.Context(), as(s), path, field, there)
				if errors.Is(err, secret.ErrNoVersion) {
					return
				}
				if errors.Is(err, rotation.ErrNode) {
					h.tick(h.x)
					return
				}
				if err != nil {
					rt.Fatal(err)
				}
				who := held(version(in.Version), s)
				if who.used = h.clock.Now(); rapid.Bool().Draw(rt, "a connection") {
					who.open++
					who.closed = append(who.closed, h.secrets.Carry(in).Done)
				}
			},
			"close": func(rt *rapid.T) {
				for _, m := range holders {
					for _, who := range m {
						who.close()
					}
				}
			},
			"read": func(rt *rapid.T) {
				s := sessions[which.Draw(rt, "session")]
				p, err := h.secrets.Read(t.Context(), as(s), path, 0, "a test")
				if err != nil {
					return // there is none yet
				}
				for n, m := range holders {
					if who := m[s]; who != nil && n < p.N {
						who.reads = false
					}
				}
				held(p.N, s).reads = true
			},
			"end": func(rt *rapid.T) { // and another session begins
				i := which.Draw(rt, "session")
				begun++
				h.over[sessions[i]], sessions[i] = true, fmt.Sprint("ses_", begun)
			},
			"fail": func(rt *rapid.T) {
				if rapid.IntRange(0, 3).Draw(rt, "now") > 0 {
					return
				}
				how := rapid.SampledFrom([]string{"down", "wrong", "refuse"}).Draw(rt, "how")
				h.target.fail(how)
				h.authority.fail(how)
			},
			"recover": func(*rapid.T) {
				h.target.restore()
				h.authority.fail("")
			},
			"force": func(*rapid.T) {
				e := h.explain()
				if e.Previous == 0 {
					return
				}
				forced[e.Previous] = true
				_, err := h.x.Force(t.Context(), h.ann, path, "a test")
				if err != nil && !errors.Is(err, rotation.ErrNothing) && !errors.Is(err, rotation.ErrFailed) {
					rt.Fatal(err)
				}
			},
			"die": func(rt *rapid.T) {
				if rapid.IntRange(0, 2).Draw(rt, "now") > 0 {
					return
				}
				point := rapid.SampledFrom(points).Draw(rt, "point")
				h.x.Reached(func(at string) error {
					if at == point {
						return rotation.ErrCrash
					}
					return nil
				})
				_, _ = h.x.Run(t.Context(), h.ann, path)
				_ = h.x.RunDue(t.Context())
				h.x.Reached(nil)
			},
		})
		for _, m := range holders {
			for _, who := range m {
				who.close()
			}
		}
		// The next world's nodes leave this one's alone.
		err := d.Do(t.Context(), h.tenant, func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), "update rotation set ended_at = $2 where tenant_id = $1", tx.Tenant(), tx.Now())
			return err
		})
		if err != nil {
			rt.Fatal(err)
		}
	})
}
