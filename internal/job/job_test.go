package job_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/job"
)

// node is a node of the installation.
func node(d *db.DB, lease time.Duration) *job.Jobs {
	return job.New(d, job.Options{Lease: lease, Poll: time.Millisecond, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
}

// start runs a node until the test ends or the function is called.
func start(t *testing.T, j *job.Jobs) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- j.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never happened: %s", what)
		}
	}
}

// Three nodes, one job: it is done once each time that it is due, and never
// twice at once.
func TestEvery(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		var runs, now atomic.Int32
		for range 3 {
			j := node(d, time.Hour)
			j.Every("sweep", 10*time.Minute, func(context.Context) error {
				if now.Add(1) != 1 {
					t.Error("two nodes do the job at once")
				}
				defer now.Add(-1)
				runs.Add(1)
				return errors.New("a failure changes nothing")
			})
			start(t, j)
		}
		for n := int32(1); n <= 4; n++ {
			eventually(t, "the job is done", func() bool { return runs.Load() == n })
			// The run is over when the job is due at another time than now.
			eventually(t, "the job is given back", func() bool { return free(t, d, "sweep") })
			clock.Advance(9 * time.Minute)
			if got := runs.Load(); got != n {
				t.Fatalf("nine minutes later the job was done %d times, want %d", got, n)
			}
			clock.Advance(2 * time.Minute)
		}
	})
}

// free reports whether nobody holds the job.
func free(t *testing.T, d *db.DB, name string) (ok bool) {
	t.Helper()
	err := d.View(t.Context(), "", func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), "select held_until = 0 from job where name = $1", name).Scan(&ok)
	})
	if err != nil && !errors.Is(err, db.ErrNoRows) {
		t.Fatal(err)
	}
	return ok
}

// A node that stops hands its job over at once; one that vanishes, when its
// lease has ended.
func TestWhile(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		at := make(chan string, 10)
		follow := func(name string) func(context.Context) error {
			return func(ctx context.Context) error {
				at <- name
				<-ctx.Done()
				return nil
			}
		}
		a, b := node(d, time.Hour), node(d, time.Hour)
		a.While("follow", follow("a"))
		b.While("follow", follow("b"))
		stopA := start(t, a)
		if got := <-at; got != "a" {
			t.Fatalf("%s follows, want a", got)
		}
		start(t, b)
		stopA()
		if got := <-at; got != "b" {
			t.Fatalf("after a stopped, %s follows, want b", got)
		}
		// A node that is gone without a word: its row is all that is left.
		if err := d.Do(t.Context(), "", func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), "insert into job (name, due, holder, held_until) values ('other', 0, 'node_gone', $1)", tx.Now().Add(time.Hour))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		c := node(d, 10*time.Hour)
		c.While("other", follow("c"))
		start(t, c)
		select {
		case got := <-at:
			t.Fatalf("%s follows while another node has the lease", got)
		default:
		}
		clock.Advance(59 * time.Minute)
		if free(t, d, "other") {
			t.Error("the lease ended before its time")
		}
		clock.Advance(2 * time.Minute)
		if got := <-at; got != "c" {
			t.Fatalf("%s follows, want c", got)
		}
	})
}

// Whoever loses the lease is told so, and leaves the job to its holder.
func TestLost(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		j := node(d, time.Second)
		lost := make(chan error, 1)
		j.While("follow", func(ctx context.Context) error {
			<-ctx.Done()
			select {
			case lost <- context.Cause(ctx):
			default:
			}
			return ctx.Err()
		})
		start(t, j)
		steal := func(tx *db.Tx) error {
			n, err := tx.Exec(t.Context(), "update job set holder = 'node_thief', held_until = $1 where name = 'follow'", tx.Now().Add(time.Hour))
			if err == nil && n == 0 {
				err = db.ErrNoRows
			}
			return err
		}
		eventually(t, "the job is taken", func() bool { return d.Do(t.Context(), "", steal) == nil })
		if err := <-lost; !errors.Is(err, job.ErrLost) {
			t.Errorf("the work ended because of %v, want ErrLost", err)
		}
		var holder string
		if err := d.View(t.Context(), "", func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), "select holder from job where name = 'follow'").Scan(&holder)
		}); err != nil || holder != "node_thief" {
			t.Errorf("the job's holder is %q (%v)", holder, err)
		}
	})
}

// A lease is renewed for as long as the work goes on, and a job that ends or
// panics begins again.
func TestRenewAndRestart(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		j, other := node(d, time.Second), node(d, time.Second)
		var runs atomic.Int32
		long := make(chan error, 1)
		j.While("follow", func(ctx context.Context) error {
			if runs.Add(1) == 1 {
				panic("a fault of ours")
			}
			var err error
			select { // longer than a lease
			case <-ctx.Done():
				err = context.Cause(ctx)
			case <-time.After(1500 * time.Millisecond):
			}
			select {
			case long <- err:
			case <-t.Context().Done():
			}
			return nil
		})
		other.While("follow", func(context.Context) error { return nil })
		clock := dbtest.NewClock(d)
		start(t, j)
		eventually(t, "the job panics", func() bool { return runs.Load() == 1 && free(t, d, "follow") })
		clock.Advance(2 * time.Second)
		eventually(t, "the job begins again", func() bool { return runs.Load() >= 2 })
		start(t, other)
		var err error
		for range 10 { // a process that is held up for a second may lose it, and gets it again
			if err = <-long; err == nil {
				break
			}
		}
		if err != nil {
			t.Errorf("the lease was not renewed: %v", err)
		}
	})
}
