package db_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// What is reserved gets through when every connection is taken, and others wait.
func TestReserved(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, release := t.Context(), make(chan struct{})
		var taken, done sync.WaitGroup
		for range max(8, 4*runtime.GOMAXPROCS(0)) {
			taken.Add(1)
			done.Go(func() {
				if err := d.View(ctx, "acme", func(*db.Tx) error {
					taken.Done()
					<-release
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
		}
		taken.Wait()
		nothing := func(*db.Tx) error { return nil }
		soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		if err := d.View(soon, "acme", nothing); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("reading while every connection is taken: %v, want that it waits", err)
		}
		cancel()
		for range 5 {
			if err := d.View(db.Reserved(ctx), "acme", nothing); err != nil {
				t.Errorf("reading what is reserved: %v", err)
			}
			if err := d.Do(db.Reserved(ctx), "acme", nothing); err != nil {
				t.Errorf("writing what is reserved: %v", err)
			}
		}
		close(release)
		done.Wait()
	})
}

// With one writer, what is reserved goes before those who have waited longer.
func TestReservedFirst(t *testing.T) {
	d := dbtest.Open(t)
	ctx, began, release := t.Context(), make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var order []string
	var all sync.WaitGroup
	write := func(ctx context.Context, name string) {
		all.Go(func() {
			if err := d.Do(ctx, "acme", func(*db.Tx) error {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, name)
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Go(func() {
		_ = d.Do(ctx, "acme", func(*db.Tx) error {
			close(began)
			<-release
			return nil
		})
	})
	<-began
	for range 20 {
		write(ctx, "usual")
	}
	write(db.Reserved(ctx), "reserved")
	for deadline := time.Now().Add(time.Minute); db.Waiting(d) < 21 && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	close(release)
	all.Wait()
	if len(order) != 21 || slices.Index(order, "reserved") != 0 {
		t.Errorf("they were written as %v, want what is reserved before the others", order)
	}
}
