package upstream_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
)

// sync has the secret crm/key pushed to the store, at app/key.
func (h *house) sync() upstream.Sync {
	h.t.Helper()
	s, err := h.x.Sync(h.t.Context(), h.ann, upstream.SyncSpec{Path: "crm/key", Store: "old", To: "app/key"})
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h *house) push() {
	h.t.Helper()
	if err := h.x.PushDue(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) find(id string) upstream.Sync {
	h.t.Helper()
	s, err := h.x.GetSync(h.t.Context(), h.ann, id)
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// counts compares what wants somebody's attention with these numbers, in the tenant and
// everywhere.
func (h *house) counts(when string, overdue, drifted int64) {
	h.t.Helper()
	for _, tenant := range []estover.TenantID{h.tenant, ""} {
		p, err := h.x.Pushes(h.t.Context(), tenant)
		if want := (upstream.Pushes{Overdue: overdue, Drifted: drifted}); err != nil || p != want {
			h.t.Errorf("%s, in the tenant %q: %+v, %v, want %+v", when, tenant, p, err, want)
		}
	}
}

// stands compares what the store has had at the path, in order, with these.
func (h *house) stands(when string, want ...string) {
	h.t.Helper()
	if got := h.there.all("app/key"); !alike(got, want) {
		h.t.Fatalf("%s: the store has had %q, want %q", when, got, want)
	}
}

// alike compares versions, which are objects of JSON; "" is one that was deleted.
func alike(got, want []string) bool {
	return slices.EqualFunc(got, want, func(got, want string) bool {
		var a, b any
		return got == want || json.Unmarshal([]byte(got), &a) == nil && json.Unmarshal([]byte(want), &b) == nil && reflect.DeepEqual(a, b)
	})
}

func key(n int) string { return fmt.Sprintf(`{"password":"v%d","username":"app"}`, n) }

// TestSync is sync-out in one life (M16): each version is pushed once, a foreign
// change is a drift that is never overwritten by itself, and somebody decides.
func TestSync(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		h.make("crm/key", key(1), crmHost)
		if _, err := h.x.Sync(t.Context(), ann, upstream.SyncSpec{Path: "crm/key", Store: "old"}); !errors.Is(err, secret.ErrDestination) {
			t.Fatalf("a store that the secret does not name: %v, want ErrDestination", err)
		}
		hosts := []string{crmHost, vaultHost}
		if _, err := h.secrets.Update(t.Context(), ann, "crm/key", secret.Change{Destinations: &hosts}); err != nil {
			t.Fatal(err)
		}
		if _, err := h.x.Sync(t.Context(), bea, upstream.SyncSpec{Path: "crm/key", Store: "old"}); !errors.Is(err, upstream.ErrNotOwner) {
			t.Errorf("to somebody else's store: %v, want ErrNotOwner", err)
		}
		if _, err := h.x.Put(t.Context(), bea, upstream.StoreSpec{Name: "of-bea", Kind: "memory", Address: "https://vault.example", Login: "vault/token"}); err != nil {
			t.Fatal(err)
		}
		if _, err := h.x.Sync(t.Context(), bea, upstream.SyncSpec{Path: "crm/key", Store: "of-bea"}); !errors.Is(err, secret.ErrNotOwner) {
			t.Errorf("somebody else's secret, at the same host: %v, want ErrNotOwner", err)
		}
		s := h.sync()
		if _, err := h.x.Sync(t.Context(), ann, upstream.SyncSpec{Path: "crm/key", Store: "old", To: "app/key"}); !errors.Is(err, upstream.ErrSyncExists) {
			t.Errorf("the same place twice: %v, want ErrSyncExists", err)
		}
		if s.State != upstream.Behind || s.Cursor != 0 || s.Current != 1 {
			t.Errorf("a sync that has just begun: %+v", s)
		}
		h.push()
		h.push()
		h.stands("at first", key(1))
		h.make("crm/key", key(2))
		h.push()
		h.push()
		h.stands("after another version", key(1), key(2))
		if s = h.find(s.ID); s.State != upstream.InSync || s.Cursor != 2 || s.There != "2" || s.Overdue {
			t.Errorf("in sync: %+v", s)
		}
		h.counts("in sync", 0, 0)
		if err := h.secrets.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		uses, err := h.secrets.Uses(t.Context(), ann, secret.UseFilter{Via: secret.Synced}, 10)
		if err != nil || len(uses) != 2 || uses[0].Count != 1 {
			t.Errorf("uses by sync: %+v, %v, want one of each version", uses, err)
		}

		// Somebody writes there. It is seen within ten minutes, or when we would write.
		h.there.write("app/key", `{"password":"theirs"}`)
		h.clock.Advance(11 * time.Minute)
		h.push()
		if s = h.find(s.ID); s.State != upstream.Drifted || s.Drift != "3" || s.DriftAt.IsZero() {
			t.Fatalf("after a foreign write: %+v, want a drift", s)
		}
		h.make("crm/key", key(3))
		for range 3 {
			h.clock.Advance(11 * time.Minute)
			h.push()
		}
		h.stands("with a drift", key(1), key(2), `{"password":"theirs"}`)
		if s = h.find(s.ID); !s.Overdue || s.Cursor != 2 {
			t.Errorf("a drift for half an hour: %+v, want it overdue", s)
		}
		late, err := h.x.Syncs(t.Context(), ann, upstream.SyncFilter{Late: true, State: upstream.Drifted, Store: "old", Path: "crm/key"}, "", 10)
		if err != nil || len(late) != 1 || late[0].ID != s.ID {
			t.Errorf("what is late: %+v, %v", late, err)
		}
		h.counts("a drift for half an hour", 1, 1)
		if p, err := h.x.Pushes(t.Context(), eve.Tenant); err != nil || p != (upstream.Pushes{}) {
			t.Errorf("what another tenant has to look at: %+v, %v, want nothing", p, err)
		}
		if _, err := h.x.Overwrite(t.Context(), ann, s.ID, ""); !errors.Is(err, upstream.ErrSyncReason) {
			t.Errorf("without a reason: %v, want ErrSyncReason", err)
		}
		for what, err := range map[string]error{
			"overwriting": func() error { _, err := h.x.Overwrite(t.Context(), bea, s.ID, "mine"); return err }(),
			"accepting":   func() error { _, err := h.x.Accept(t.Context(), bea, s.ID); return err }(),
			"removing":    h.x.RemoveSync(t.Context(), bea, s.ID),
		} {
			if !errors.Is(err, upstream.ErrNotOwner) {
				t.Errorf("%s at somebody else's store: %v, want ErrNotOwner", what, err)
			}
		}
		for what, err := range map[string]error{
			"overwriting": func() error { _, err := h.x.Overwrite(t.Context(), eve, s.ID, "mine"); return err }(),
			"accepting":   func() error { _, err := h.x.Accept(t.Context(), eve, s.ID); return err }(),
			"removing":    h.x.RemoveSync(t.Context(), eve, s.ID),
			"showing":     func() error { _, err := h.x.GetSync(t.Context(), eve, s.ID); return err }(),
		} {
			if !errors.Is(err, upstream.ErrNoSync) {
				t.Errorf("%s another tenant's sync: %v, want ErrNoSync", what, err)
			}
		}
		if _, err := h.x.Overwrite(t.Context(), ann, s.ID, "ours is the one that counts"); err != nil {
			t.Fatal(err)
		}
		h.counts("overwritten, and not there yet", 1, 0)
		h.push()
		h.counts("overwritten", 0, 0)
		h.stands("overwritten", key(1), key(2), `{"password":"theirs"}`, key(3))

		// Another one, which is accepted: it is our next version.
		h.there.write("app/key", `{"password":"theirs too"}`)
		h.clock.Advance(11 * time.Minute)
		h.push()
		if s, err = h.x.Accept(t.Context(), ann, s.ID); err != nil || s.State != upstream.InSync || s.Cursor != 4 {
			t.Fatalf("accepting: %+v, %v", s, err)
		}
		h.uses("theirs too")
		h.push()
		h.stands("accepted", key(1), key(2), `{"password":"theirs"}`, key(3), `{"password":"theirs too"}`)
		if _, err := h.x.Accept(t.Context(), ann, s.ID); !errors.Is(err, upstream.ErrNoDrift) {
			t.Errorf("accepting twice: %v, want ErrNoDrift", err)
		}

		// Somebody deletes it there: that is not made good silently either.
		if err := h.there.Delete(t.Context(), "app/key"); err != nil {
			t.Fatal(err)
		}
		h.make("crm/key", key(5))
		h.push()
		h.stands("deleted", key(1), key(2), `{"password":"theirs"}`, key(3), "")
		if s = h.find(s.ID); s.State != upstream.Drifted || !strings.Contains(s.Drift, "deleted") {
			t.Errorf("after a deletion there: %+v, want a drift", s)
		}
		if _, err := h.x.Accept(t.Context(), ann, s.ID); !errors.Is(err, upstream.ErrSync) {
			t.Errorf("accepting a deletion: %v, want ErrSync", err)
		}
		if _, err := h.x.Overwrite(t.Context(), ann, s.ID, "it is needed there"); err != nil {
			t.Fatal(err)
		}
		h.push()
		h.stands("made again", key(1), key(2), `{"password":"theirs"}`, key(3), "", key(5))

		// What stands there at first and is not ours is a drift too; what is the same is not.
		h.there.write("app/other", `{"password":"theirs"}`)
		h.there.write("app/same", `{ "username": "app", "password": "v5" }`)
		for to, want := range map[string]upstream.SyncState{"app/other": upstream.Drifted, "app/same": upstream.InSync} {
			s, err := h.x.Sync(t.Context(), ann, upstream.SyncSpec{Path: "crm/key", Store: "old", To: to})
			if err != nil {
				t.Fatal(err)
			}
			h.push()
			if s = h.find(s.ID); s.State != want || len(h.there.all(to)) != 1 {
				t.Errorf("%s: %+v with %q, want %s and nothing written", to, s, h.there.all(to), want)
			}
		}

		// The end of a sync leaves what stands there.
		if err := h.x.RemoveSync(t.Context(), ann, s.ID); err != nil {
			t.Fatal(err)
		}
		h.make("crm/key", key(6))
		h.push()
		h.stands("removed", key(1), key(2), `{"password":"theirs"}`, key(3), "", key(5))
	})
}

// TestStoreThatRepeats: what a store repeats of what was sent to it is in no error and in
// no row (F14); what it says otherwise is there.
func TestStoreThatRepeats(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		const value = "correct-horse-battery-staple"
		h.make("vault/token", `{"value":"s.a-token-of-ours"}`)
		h.make("crm/key", `{"fields":{"password":"`+value+`","port":5432},"user":"app"}`, vaultHost)
		s := h.sync()
		says := func(words string) string {
			t.Helper()
			h.there.fail(engine.Refuse("%s", words), nil)
			h.clock.Advance(11 * time.Minute)
			h.push()
			return h.find(s.ID).LastError
		}
		for _, words := range []string{
			"bad value " + value, "bad value " + base64.StdEncoding.EncodeToString([]byte(value)), "a token s.a-token-of-ours may not", strings.Repeat("x", 480) + value,
			"payload " + base64.StdEncoding.EncodeToString([]byte(`{"a":"`+value+`"}`)), "payload " + base64.URLEncoding.EncodeToString([]byte(`{"ab":"`+value+`"}`)),
		} {
			if said := says(words); !strings.Contains(said, "is left out") || strings.Contains(said, value[:15]) || strings.Contains(said, "s.a-token") {
				t.Errorf("a store that says %q: %q", words, said)
			}
		}
		if said := says("the password of app at 5432 is too short"); !strings.Contains(said, "the password of app at 5432 is too short") {
			t.Errorf("a store that repeats nothing: %q", said)
		}
		h.there.why = errors.New("403 s.a-token-of-ours is not known")
		h.there.set(true)
		var told *estover.Error
		if err := h.x.Check(t.Context(), ann, "old", ""); !errors.As(err, &told) || !errors.Is(err, upstream.ErrStore) || strings.Contains(told.Detail, "s.a-token") || !strings.Contains(told.Detail, "is left out") {
			t.Errorf("looking at a store that repeats the token: %v", err)
		}
		h.there.set(false)
		h.there.fail(nil, nil)
		h.clock.Advance(11 * time.Minute)
		h.push()
		if s = h.find(s.ID); s.State != upstream.InSync || s.LastError != "" {
			t.Errorf("in the end: %+v, want it in sync", s)
		}
	})
}

// TestSyncCrash stops the work before and after each step, loses replies and has
// writes fail, on one node and then another. Each version is there exactly once in
// the end, in order, and none of it looks like a drift.
func TestSyncCrash(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		h.make("crm/key", key(1), crmHost, vaultHost)
		s := h.sync()
		h.push()
		want := []string{key(1)}
		gone := engine.Unreachable(errors.New("the line was cut"))
		for i, crash := range []func(){
			func() { h.stopAt("before put") },
			func() { h.stopAt("after put") },
			func() { h.stopAt("after record") },
			func() { h.there.fail(gone, nil) },
			func() { h.there.fail(nil, gone) },
			func() { h.there.fail(nil, errors.New("the reply was lost")) },
			func() { h.there.fail(nil, upstream.ErrVersion) }, // a write that was repeated on the way
		} {
			n := i + 2
			h.make("crm/key", key(n))
			want = append(want, key(n))
			crash()
			_ = h.x.PushDue(t.Context())
			h.x.Reach(nil)
			other, _ := h.node(fmt.Sprintf("node_%d", n))
			h.clock.Advance(2 * time.Minute) // a dead node's claim lapses
			if i%2 == 1 {                    // and a version comes before anybody has looked
				n = 100 + n
				h.make("crm/key", key(n))
				if got := h.there.all("app/key"); len(got) < len(want) { // the one before was never there
					want = want[:len(want)-1]
				}
				want = append(want, key(n))
			}
			for range 3 {
				if err := other.PushDue(t.Context()); err != nil {
					t.Fatal(err)
				}
				h.clock.Advance(time.Second)
			}
			h.stands(fmt.Sprintf("after crash %d", i), want...)
			if s = h.find(s.ID); s.State != upstream.InSync {
				t.Fatalf("after crash %d: %+v", i, s)
			}
		}
	})
}

func (h *house) stopAt(point string) {
	h.x.Reach(func(p string) error {
		if p == point {
			return upstream.ErrStopped
		}
		return nil
	})
}

// fail has the next write fail, before it has taken effect or after.
func (m *memory) fail(before, after error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.before, m.after = before, after
}

// TestSyncWeek: a store that is down for a week is tried for as long, ever more
// seldom, is overdue all the while, and has what is current when it is back.
func TestSyncWeek(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		h.make("crm/key", key(1), crmHost, vaultHost)
		s := h.sync()
		h.push()
		h.there.set(true)
		h.make("crm/key", key(2))
		for range 40 {
			h.push()
			h.clock.Advance(7 * time.Minute)
		}
		h.clock.Advance(7 * 24 * time.Hour)
		h.make("crm/key", key(3))
		h.push()
		s = h.find(s.ID)
		if s.State != upstream.Behind || !s.Overdue || s.Cursor != 1 || s.Tries < 30 || !strings.Contains(s.LastError, "nobody is there") {
			t.Errorf("after a week: %+v, want it behind, overdue, and why", s)
		}
		if wait := s.Next.Sub(d.Now()); wait > 7*time.Minute || wait < 3*time.Minute {
			t.Errorf("it is tried again in %s, want about five minutes", wait)
		}
		h.there.set(false)
		h.push()
		h.stands("before its turn", key(1))
		h.clock.Advance(7 * time.Minute)
		h.push()
		h.stands("when it is back", key(1), key(3))
		if s = h.find(s.ID); s.State != upstream.InSync || s.Overdue || s.Tries != 0 {
			t.Errorf("when it is back: %+v", s)
		}
	})
}

// TestSyncOutage: many syncs to a store that does not answer hold up nobody else's: each
// of them is put off, without the store being asked for each.
func TestSyncOutage(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d, guardtest.AllowAll)
	h.make("crm/key", key(1), crmHost, vaultHost)
	const syncs = 40
	for n := range syncs {
		if _, err := h.x.Sync(t.Context(), ann, upstream.SyncSpec{Path: "crm/key", Store: "old", To: fmt.Sprintf("app/%d", n)}); err != nil {
			t.Fatal(err)
		}
	}
	h.there.set(true)
	h.push()
	if h.there.knocks > 8 {
		t.Errorf("the store that is down was asked %d times", h.there.knocks)
	}
	all, err := h.x.Syncs(t.Context(), ann, upstream.SyncFilter{}, "", 100)
	if err != nil || len(all) != syncs {
		t.Fatalf("%d syncs, %v", len(all), err)
	}
	for _, s := range all {
		if s.Tries != 1 || !strings.Contains(s.LastError, "nobody is there") || !s.Next.After(d.Now()) {
			t.Errorf("a sync to a store that is down: %+v, want it put off, and why", s)
		}
	}
	h.there.set(false)
	h.clock.Advance(time.Minute)
	h.push()
	if all, err := h.x.Syncs(t.Context(), ann, upstream.SyncFilter{State: upstream.InSync}, "", 100); err != nil || len(all) != syncs {
		t.Errorf("%d are there when the store is back, %v, want all", len(all), err)
	}
}

// TestSyncRace: 64 who push at once on two nodes push each version once.
func TestSyncRace(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		h.make("crm/key", key(1), crmHost, vaultHost)
		h.sync()
		other, _ := h.node("node_2")
		var want []string
		for n := 1; n <= 3; n++ {
			if n > 1 {
				h.make("crm/key", key(n))
			}
			want = append(want, key(n))
			var wg sync.WaitGroup
			for i := range 64 {
				wg.Go(func() {
					x := h.x
					if i%2 == 1 {
						x = other
					}
					if err := x.PushDue(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			h.push()
			h.stands("after 64 pushes", want...)
		}
	})
}

// TestSyncModel does random things to a secret, its store and the nodes that push.
// Whatever happens, nothing that somebody else wrote is lost unless somebody said
// so, and when all is well again the store has the current version or the drift is
// shown.
func TestSyncModel(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d, guardtest.AllowAll)
	made := 0
	rapid.Check(t, func(rt *rapid.T) {
		// A tenant of its own for each run.
		made++
		h.tenant = estover.TenantID(fmt.Sprintf("tenant-%d", made))
		h.ann.Tenant = h.tenant
		h.there.mu.Lock()
		h.there.secrets, h.there.down, h.there.before, h.there.after = map[string][]stored{}, false, nil, nil
		h.there.mu.Unlock()
		h.x.Reach(nil)
		h.store()
		h.make("crm/key", key(0), crmHost, vaultHost)
		s := h.sync()
		defer func() { // the next run has the store to itself
			if err := h.x.RemoveSync(h.t.Context(), h.ann, s.ID); err != nil {
				h.t.Error(err)
			}
		}()
		nodes := []*upstream.Stores{h.x}
		other, _ := h.node("node_2")
		nodes = append(nodes, other)
		n, foreign := 0, 0
		guarded := -1 // the place of a foreign version that nobody has decided on
		protected := func(when string) {
			all := h.there.all("app/key")
			if guarded >= 0 && len(all) != guarded+1 {
				rt.Fatalf("%s: a foreign version was overwritten: %q", when, all)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(*rapid.T) { n++; h.make("crm/key", key(n)) },
			"foreign": func(*rapid.T) {
				foreign++
				h.there.write("app/key", fmt.Sprintf(`{"password":"foreign%d"}`, foreign))
				guarded = len(h.there.all("app/key")) - 1
			},
			"down": func(t *rapid.T) { h.there.set(rapid.Bool().Draw(t, "down")) },
			"fail": func(t *rapid.T) {
				err := engine.Unreachable(errors.New("the line was cut"))
				if rapid.Bool().Draw(t, "after") {
					h.there.fail(nil, err)
				} else {
					h.there.fail(err, nil)
				}
			},
			"push": func(t *rapid.T) {
				x := rapid.SampledFrom(nodes).Draw(t, "node")
				at := rapid.SampledFrom([]string{"", "", "before put", "after put", "after record"}).Draw(t, "stop")
				x.Reach(func(p string) error {
					if p == at {
						return upstream.ErrStopped
					}
					return nil
				})
				_ = x.PushDue(h.t.Context())
				x.Reach(nil)
			},
			"wait": func(t *rapid.T) {
				h.clock.Advance(time.Duration(rapid.IntRange(1, 700).Draw(t, "seconds")) * time.Second)
			},
			"overwrite": func(*rapid.T) {
				if _, err := h.x.Overwrite(h.t.Context(), h.ann, s.ID, "it is ours"); err == nil && h.find(s.ID).There == fmt.Sprint(len(h.there.all("app/key"))) {
					guarded = -1
				}
			},
			"accept": func(*rapid.T) {
				if _, err := h.x.Accept(h.t.Context(), h.ann, s.ID); err == nil {
					guarded = -1
				}
			},
			"": func(*rapid.T) { protected("in between") },
		})
		h.there.set(false)
		h.there.fail(nil, nil)
		for range 4 {
			h.clock.Advance(11 * time.Minute)
			for _, x := range nodes {
				if err := x.PushDue(h.t.Context()); err != nil {
					rt.Fatal(err)
				}
			}
		}
		protected("in the end")
		s = h.find(s.ID)
		if guarded >= 0 {
			if s.State != upstream.Drifted {
				rt.Fatalf("a foreign version stands there and the sync says %+v", s)
			}
			return
		}
		all := h.there.all("app/key")
		current, err := h.use(h.secrets, "crm/key")
		if err != nil || s.State != upstream.InSync || len(all) == 0 || !strings.Contains(all[len(all)-1], `"`+current+`"`) {
			rt.Fatalf("in the end the store has had %q and the sync says %+v; ours is %q, %v", all, s, current, err)
		}
		for i := 1; i < len(all); i++ { // each of ours once
			if all[i] == all[i-1] || slices.Contains(all[:i], all[i]) && !strings.Contains(all[i], "foreign") {
				rt.Fatalf("a version was pushed twice: %q", all)
			}
		}
	})
}
