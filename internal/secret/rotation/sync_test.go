package rotation_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/rotation"
	"estover.dev/internal/secret/upstream"
)

// A shelf is another vault with one secret in it.
type shelf struct {
	mu       sync.Mutex
	versions [][]byte
	down     bool
}

func (s *shelf) at() ([][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, engine.Unreachable(errors.New("nobody is there"))
	}
	return s.versions, nil
}

func (s *shelf) set(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

func (s *shelf) Get(_ context.Context, _, version string) (v upstream.Value, err error) {
	all, err := s.at()
	n, _ := strconv.Atoi(version)
	if err == nil && (n < 1 || n > len(all)) {
		err = upstream.ErrNotFound
	}
	if err != nil {
		return v, err
	}
	return upstream.Value{Version: version, Object: estover.NewSecret(bytes.Clone(all[n-1]))}, nil
}

func (s *shelf) Put(_ context.Context, _ string, object estover.Secret, _ string) (string, error) {
	if _, err := s.at(); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.versions = append(s.versions, bytes.Clone(object.Reveal()))
	return strconv.Itoa(len(s.versions)), nil
}

func (s *shelf) List(context.Context, string) ([]string, error) { return nil, upstream.ErrNotFound }
func (s *shelf) Delete(context.Context, string) error           { return upstream.ErrNotFound }

func (s *shelf) Versions(context.Context, string) (list []upstream.Version, err error) {
	all, err := s.at()
	for n := len(all); n > 0; n-- {
		list = append(list, upstream.Version{ID: strconv.Itoa(n), Live: true})
	}
	return list, err
}

// TestPushed is the row of sync-out in §5.2: a version stays in its place while a
// store has it and not the current one, and the store is named; then it retires.
func TestPushed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("reader_a", "reader_b"))
		store := &shelf{}
		kind := upstream.Kind{Name: "shelf", Address: "https://HOST", Open: func(engine.Config) (upstream.Store, error) { return store, nil }}
		stores := upstream.NewStores(upstream.Config{Guard: h.guard, Secrets: h.secrets, Sealer: h.sealer, Kinds: []upstream.Kind{kind}, Logger: slog.New(slog.DiscardHandler)})
		h.x.Behind = func(ctx context.Context, tx *db.Tx, id string, version int64) (found []rotation.Laggard, err error) {
			places, err := upstream.Lagging(ctx, tx, id, version)
			for _, at := range places {
				found = append(found, rotation.Laggard{Way: rotation.BySync, Store: at.Store, Drift: at.Drift})
			}
			return found, err
		}
		push := func() {
			t.Helper()
			if err := stores.PushDue(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := stores.Put(t.Context(), ann, upstream.StoreSpec{Name: "team", Kind: "shelf", Address: "https://vault.example"}); err != nil {
			t.Fatal(err)
		}
		hosts := []string{there, "vault.example:443"}
		if _, err := h.secrets.Update(t.Context(), ann, path, secret.Change{Destinations: &hosts}); err != nil {
			t.Fatal(err)
		}
		h.put(pair)
		h.run()
		s, err := stores.Sync(t.Context(), ann, upstream.SyncSpec{Path: path, Store: "team"})
		if err != nil {
			t.Fatal(err)
		}
		push()
		store.set(true)
		h.run()
		push()
		for range 3 {
			e := h.pass(2 * time.Minute)
			if e.Step != rotation.Grace || len(e.Laggards) != 1 || e.Laggards[0].Store != "team" || !strings.Contains(e.Why, "The store team has not got the current version yet") {
				t.Fatalf("with a store that has the version before: %s, %+v, %s", e.Step, e.Laggards, e.Why)
			}
			push()
		}
		h.want("1a:previous 2b:current")
		h.works()
		store.set(false)
		h.clock.Advance(6 * time.Minute)
		push()
		if e := h.pass(2 * time.Minute); e.Step != rotation.Idle {
			t.Fatalf("when the store has it: %s, %s", e.Step, e.Why)
		}
		h.want("1a:retired 2b:current")

		// A drift holds it up just as well, until somebody decides.
		if _, err := store.Put(t.Context(), "", estover.NewSecret([]byte(`{"password":"theirs"}`)), ""); err != nil {
			t.Fatal(err)
		}
		h.run()
		push()
		if e := h.pass(2 * time.Minute); e.Step != rotation.Grace || !strings.Contains(e.Why, "somebody else has changed what stands there") {
			t.Fatalf("with a drift: %s, %s", e.Step, e.Why)
		}
		if _, err := stores.Accept(t.Context(), ann, s.ID); !errors.Is(err, secret.ErrManaged) {
			t.Errorf("accepting a version of a secret that is rotated here: %v, want ErrManaged", err)
		}
		if _, err := stores.Overwrite(t.Context(), ann, s.ID, "the target made it"); err != nil {
			t.Fatal(err)
		}
		push()
		if e := h.pass(2 * time.Minute); e.Step != rotation.Idle {
			t.Fatalf("when it is overwritten: %s, %s", e.Step, e.Why)
		}
		h.want("1a:retired 2b:retired 3a:current")
	})
}
