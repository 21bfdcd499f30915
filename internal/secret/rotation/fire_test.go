package rotation_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/engine/postgres"
	"estover.dev/internal/secret/rotation"
)

var (
	fireClients   = flag.Int("fire.clients", 4, "how many clients open connections while a secret is rotated")
	fireRotations = flag.Int("fire.rotations", 5, "how often it is rotated; with one user a fifth of that")
)

// A client keeps what it has read for a second, as clients do, and opens a
// connection every ten milliseconds.
type client struct {
	h       *house
	as      estover.Caller
	verify  func(context.Context, engine.Credential) error
	has     engine.Credential
	until   time.Time
	opened  int
	refused int
}

func (c *client) open(ctx context.Context) error {
	if time.Now().After(c.until) {
		p, err := c.h.secrets.Read(ctx, c.as, path, 0, "reading orders")
		if err != nil {
			return err
		}
		c.has = engine.Credential{User: string(p.Values["username"].Reveal()), Secret: p.Values["password"]}
		c.until = time.Now().Add(time.Second)
	}
	c.opened++
	err := c.verify(ctx, c.has)
	if errors.Is(err, engine.ErrWrongSecret) {
		c.refused++
		return nil
	}
	return err
}

// fire rotates a secret under clients that open connections, and says how many
// those opened and how many were refused.
func (h *house) fire(t *testing.T, e engine.Engine, clients, rotations int) (opened, refused int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	all := make([]*client, clients)
	var wg sync.WaitGroup
	for i := range all {
		c := &client{h: h, as: bot, verify: e.Verify}
		c.as.Session = fmt.Sprint("ses_", i)
		all[i] = c
		wg.Go(func() {
			t10 := time.NewTicker(10 * time.Millisecond)
			defer t10.Stop()
			for ctx.Err() == nil {
				if err := c.open(context.WithoutCancel(ctx)); err != nil {
					t.Errorf("a client: %v", err)
					return
				}
				<-t10.C
			}
		})
	}
	wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			if err := errors.Join(h.x.Tick(t.Context()), h.x.RunDue(t.Context())); err != nil {
				t.Errorf("what goes on beside: %v", err)
			}
		}
	})
	for range rotations {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			_, err := h.x.Run(t.Context(), ann, path)
			if err == nil {
				break
			}
			if !errors.Is(err, rotation.ErrBusy) || time.Now().After(deadline) {
				t.Fatalf("rotating under fire: %v", err)
			}
		}
	}
	last := time.Now().Add(1500 * time.Millisecond) // in which everybody's copy has become old
	for time.Now().Before(last) {
		time.Sleep(20 * time.Millisecond)
	}
	cancel()
	wg.Wait()
	for _, c := range all {
		opened, refused = opened+c.opened, refused+c.refused
	}
	return opened, refused
}

// TestFire is F11: with two users nobody is refused, whatever is rotated under
// whom. With one user the figure is said as it is.
func TestFire(t *testing.T) {
	server := enginetest.Postgres(t)
	e, err := postgres.Kind.Open(server.Config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	template := engine.Template{"groups": {"readers"}}
	spec := rotation.Spec{Target: "orders", Users: []string{"fire_a", "fire_b"}, Template: template, Cache: 1, Quiet: 1, Schedule: "manual"}

	h := build(t, dbtest.Open(t), nil)
	h.engine = e
	h.put(spec)
	h.run()
	began := time.Now()
	opened, refused := h.fire(t, e, *fireClients, *fireRotations)
	t.Logf("two users, %d rotations under %d clients: %d of %d connections refused, %.0f opened a second", *fireRotations, *fireClients, refused, opened, float64(opened)/time.Since(began).Seconds())
	if refused > 0 || opened < 100 {
		t.Errorf("with two users %d of %d connections were refused, want none of many", refused, opened)
	}
	r, err := h.x.Get(t.Context(), ann, path)
	if err != nil || r.Current != int64(1+*fireRotations) {
		t.Errorf("after %d rotations the current version is %d, %v", 1+*fireRotations, r.Current, err)
	}

	h = build(t, dbtest.Open(t), nil)
	h.engine = e
	spec.Kind, spec.Users = rotation.SingleSlot, []string{"fire_only"}
	h.put(spec)
	h.run()
	began, single := time.Now(), max(1, *fireRotations/5)
	opened, refused = h.fire(t, e, *fireClients, single)
	if r, err = h.x.Get(t.Context(), ann, path); err != nil {
		t.Fatal(err)
	}
	t.Logf("one user, %d rotations under %d clients: %d of %d connections refused (%.1f %%), %.0f opened a second; who asks for the version at once is refused for %d µs, the last time",
		single, *fireClients, refused, opened, 100*float64(refused)/float64(opened), float64(opened)/time.Since(began).Seconds(), r.Refused)
	if refused == 0 || r.Refused == 0 {
		t.Errorf("with one user %d of %d connections were refused, for %d µs: nothing was measured", refused, opened, r.Refused)
	}
}
