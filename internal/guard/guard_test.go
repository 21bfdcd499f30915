package guard_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
)

var alice = estover.Caller{Tenant: "acme", Subject: "user:usr_alice", Request: "req_1"}

// events are the actions and outcomes of a tenant's log, in the order in which
// they were written.
func events(t *testing.T, d *db.DB, tenant estover.TenantID) (out []string) {
	t.Helper()
	if err := d.View(t.Context(), tenant, func(tx *db.Tx) error {
		rows, err := tx.Query(t.Context(), "select action, outcome, actor, target from audit where tenant_id = $1 order by seq", tx.Tenant())
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var action, outcome, actor, target string
			if err := rows.Scan(&action, &outcome, &actor, &target); err != nil {
				return err
			}
			out = append(out, strings.Join([]string{action, outcome, actor, target}, " "))
		}
		return rows.Err()
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// thing is a table that these tests change through the door.
func makeThing(t *testing.T, d *db.DB) {
	t.Helper()
	if err := d.Do(t.Context(), "acme", func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), "create table thing (tenant_id text, id text, epoch bigint, ended_at bigint, primary key (tenant_id, id))")
		if err == nil {
			_, err = tx.Exec(t.Context(), "insert into thing values ('acme', 'a', 0, null)")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func epochOf(t *testing.T, d *db.DB) (n int64) {
	t.Helper()
	if err := d.View(t.Context(), "acme", func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), "select epoch from thing where tenant_id = $1 and id = 'a'", tx.Tenant()).Scan(&n)
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func raise(t *testing.T) func(tx *guard.Tx) error {
	return func(tx *guard.Tx) error {
		tx.Touch("thing", "a")
		_, err := tx.Exec(t.Context(), "update thing set epoch = epoch + 1 where tenant_id = $1 and id = 'a'", tx.Tenant())
		return err
	}
}

func TestDo(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeThing(t, d)
		g := guardtest.New(t, d, guardtest.AllowAll)
		op := guard.Op{Action: "thing.raise", Target: "thing:a"}
		if err := g.Do(t.Context(), alice, op, raise(t)); err != nil {
			t.Fatal(err)
		}
		boom := errors.New("boom")
		if err := g.Do(t.Context(), alice, op, func(tx *guard.Tx) error { return errors.Join(raise(t)(tx), boom) }); !errors.Is(err, boom) {
			t.Errorf("work that fails: %v", err)
		}
		replay := &estover.Error{Kind: estover.Conflict, Code: "replayed", Detail: "Used before."}
		if err := g.Do(t.Context(), alice, op, func(tx *guard.Tx) error { tx.Fail(replay); return raise(t)(tx) }); !errors.Is(err, replay) {
			t.Errorf("an outcome that is told as an error: %v", err)
		}
		if n := epochOf(t, d); n != 2 {
			t.Errorf("the thing was raised %d times, want 2: once in good order, once with a replay", n)
		}
		want := "[thing.raise done user:usr_alice thing:a thing.raise failed user:usr_alice thing:a]"
		if got := fmt.Sprint(events(t, d, "acme")); got != want {
			t.Errorf("the log has %s, want %s", got, want)
		}
	})
}

func TestRefusalIsRecorded(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeThing(t, d)
		g := guardtest.New(t, d, guardtest.DenyAll)
		ran := false
		fn := func(*guard.Tx) error { ran = true; return nil }
		err := g.Do(t.Context(), alice, guard.Op{Action: "thing.raise", Target: "thing:a"}, fn)
		var refusal *guard.Refusal
		if !errors.As(err, &refusal) || estover.KindOf(err) != estover.Denied || refusal.Decision.ID == "" || ran {
			t.Errorf("a refused Do: %v, ran: %v", err, ran)
		}
		if err := g.Read(t.Context(), alice, guard.Op{Action: "thing.read"}, func(*db.Tx) error { ran = true; return nil }); estover.KindOf(err) != estover.Denied || ran {
			t.Errorf("a refused Read: %v, ran: %v", err, ran)
		}
		if got := fmt.Sprint(events(t, d, "acme")); got != "[thing.raise refused user:usr_alice thing:a thing.read refused user:usr_alice ]" {
			t.Errorf("the log has %s", got)
		}
	})
}

type broken struct{}

func (broken) Decide(context.Context, estover.Caller, guard.Op) (guard.Decision, error) {
	return guard.Decision{Allow: true}, errors.New("no policy is loaded")
}

// A decision that cannot be made is a refusal, even if the answer beside the
// error says otherwise.
func TestBrokenDeciderRefuses(t *testing.T) {
	d := dbtest.Open(t)
	g := guardtest.New(t, d, broken{})
	if err := g.Do(t.Context(), alice, guard.Op{Action: "thing.raise"}, func(*guard.Tx) error { return nil }); estover.KindOf(err) != estover.Denied {
		t.Errorf("%v, want a refusal", err)
	}
	if got := fmt.Sprint(events(t, d, "acme")); !strings.Contains(got, "thing.raise refused") {
		t.Errorf("the log has %s", got)
	}
}

// An operation whose event cannot be written did not happen, whichever way it
// takes through the door.
func TestFailClosed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeThing(t, d)
		g := guardtest.New(t, d, guardtest.AllowAll)
		if err := d.Do(t.Context(), "acme", func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), "alter table audit rename to audit_is_gone")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		op := guard.Op{Action: "thing.raise", Target: "thing:a"}
		if err := g.Do(t.Context(), alice, op, raise(t)); !errors.Is(err, guard.ErrNotRecorded) {
			t.Errorf("Do: %v, want ErrNotRecorded", err)
		}
		decision, err := g.Admit(t.Context(), alice, op)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Record(t.Context(), alice, op, decision, guard.Hot{}); !errors.Is(err, guard.ErrNotRecorded) {
			t.Errorf("Record: %v, want ErrNotRecorded", err)
		}
		if n := epochOf(t, d); n != 0 {
			t.Errorf("the thing was raised %d times though nothing could be recorded", n)
		}
		if _, err := guardtest.New(t, d, guardtest.DenyAll).Admit(t.Context(), alice, op); !errors.Is(err, guard.ErrNotRecorded) {
			t.Errorf("a refusal that cannot be recorded: %v, want ErrNotRecorded", err)
		}
	})
}

// A node that does not hear of changes any more goes by its copies for a while,
// and then answers no agent: one may have been contained elsewhere. Who contains
// one is answered.
func TestWhoHearsNothingAnswersNoAgent(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		const deaf = 500 * time.Millisecond
		g := guard.New(d, guardtest.Log(t, d), guardtest.AllowAll, guard.Options{DeafAfter: deaf})
		bot := estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.Agent("agt_bot")}
		op := guard.Op{Action: "gateway.call"}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			_, err := g.Admit(t.Context(), bot, op)
			if time.Since(begun) > 2*deaf && err == nil {
				break // it has heard since it began
			}
			if err != nil && !errors.Is(err, guard.ErrDeaf) || time.Since(begun) > time.Minute {
				t.Fatalf("while the log is followed: %v", err)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		time.Sleep(deaf + time.Millisecond)
		if _, err := g.Admit(t.Context(), bot, op); !errors.Is(err, guard.ErrDeaf) {
			t.Errorf("long after it was followed: %v, want ErrDeaf", err)
		}
		person := estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User("usr_ada")}
		if _, err := g.Admit(t.Context(), person, guard.Op{Action: "containment.run"}); err != nil {
			t.Errorf("a person, after that: %v", err)
		}
		person.Actors = []estover.Subject{bot.Subject}
		if _, err := g.Admit(t.Context(), person, op); !errors.Is(err, guard.ErrDeaf) {
			t.Errorf("an agent for a person, after that: %v, want ErrDeaf", err)
		}
	})
}

func TestRecordRestsOnEpochs(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeThing(t, d)
		g := guardtest.New(t, d, guardtest.AllowAll)
		op := guard.Op{Action: "token.issue", Target: "thing:a"}
		live := []db.Epoch{{Table: "thing", ID: "a", Epoch: 0}}
		decision, err := g.Admit(t.Context(), alice, op)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Record(t.Context(), alice, op, decision, guard.Hot{Live: live}); err != nil {
			t.Fatal(err)
		}
		if err := g.Do(t.Context(), alice, guard.Op{Action: "thing.raise"}, raise(t)); err != nil {
			t.Fatal(err)
		}
		decision, _ = g.Admit(t.Context(), alice, op)
		if err := g.Record(t.Context(), alice, op, decision, guard.Hot{Live: live}); !errors.Is(err, db.ErrStale) {
			t.Errorf("recording on an epoch that has passed: %v, want ErrStale", err)
		}
		if n := len(events(t, d, "acme")); n != 2 {
			t.Errorf("%d events, want the 2 of what happened", n)
		}
	})
}

func TestAliveIsAskedInTheTransaction(t *testing.T) {
	d := dbtest.Open(t)
	ended := &estover.Error{Kind: estover.Denied, Code: "session_ended", Detail: "The session has ended."}
	g := guard.New(d, guardtest.Log(t, d), guardtest.AllowAll, guard.Options{
		Alive: func(context.Context, *db.Tx, estover.Caller) error { return ended },
	})
	if err := g.Do(t.Context(), alice, guard.Op{Action: "x.y"}, func(*guard.Tx) error { t.Error("ran"); return nil }); !errors.Is(err, ended) {
		t.Errorf("Do: %v", err)
	}
	if err := g.Read(t.Context(), alice, guard.Op{Action: "x.y"}, func(*db.Tx) error { t.Error("ran"); return nil }); !errors.Is(err, ended) {
		t.Errorf("Read: %v", err)
	}
	op := guard.Op{Action: "x.y"}
	decision, err := g.Admit(t.Context(), alice, op)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Record(t.Context(), alice, op, decision, guard.Hot{Alive: true}); !errors.Is(err, ended) {
		t.Errorf("Record: %v", err)
	}
	if err := g.Record(t.Context(), alice, op, decision, guard.Hot{}); err != nil { // which does not ask
		t.Errorf("Record: %v", err)
	}

	// A database that does not answer has not said that anything ended.
	g = guard.New(d, guardtest.Log(t, d), guardtest.AllowAll, guard.Options{
		Alive: func(context.Context, *db.Tx, estover.Caller) error { return io.ErrUnexpectedEOF },
	})
	for name, err := range map[string]error{
		"Do":     g.Do(t.Context(), alice, op, func(*guard.Tx) error { t.Error("ran"); return nil }),
		"Record": g.Record(t.Context(), alice, op, decision, guard.Hot{Alive: true}),
	} {
		if estover.KindOf(err) != estover.Unavailable {
			t.Errorf("%s without an answer of the database: %v, want unavailable", name, err)
		}
	}
}

// A copy is never older than the last change that was acknowledged here, and
// another node's copy follows within a second.
func TestCache(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeThing(t, d)
		load := func(ctx context.Context, tx *db.Tx, id string) (n int64, err error) {
			err = tx.QueryRow(ctx, "select epoch from thing where tenant_id = $1 and id = $2", tx.Tenant(), id).Scan(&n)
			return n, err
		}
		here, there := guardtest.New(t, d, guardtest.AllowAll), guardtest.New(t, d, guardtest.AllowAll)
		mine, theirs := guard.NewCache(here, "thing", load), guard.NewCache(there, "thing", load)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var running sync.WaitGroup
		running.Go(func() {
			if err := there.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		if _, err := mine.Get(ctx, "other", "a"); !errors.Is(err, db.ErrNoRows) {
			t.Errorf("another tenant's thing: %v, want ErrNoRows", err)
		}
		var known atomic.Int64 // the last epoch that was acknowledged
		var readers sync.WaitGroup
		for range 4 {
			readers.Go(func() {
				for known.Load() < 20 {
					least := known.Load()
					got, err := mine.Get(ctx, "acme", "a")
					if err != nil || got < least {
						t.Errorf("a copy says %d, %v, when %d had been acknowledged", got, err, least)
						return
					}
				}
			})
		}
		if n, err := theirs.Get(ctx, "acme", "a"); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		for i := range 20 {
			if err := here.Do(ctx, alice, guard.Op{Action: "thing.raise"}, raise(t)); err != nil {
				t.Error(err)
			}
			known.Store(int64(i + 1))
		}
		readers.Wait()
		deadline := time.Now().Add(20 * time.Second) // it hears within a quarter of one, if it hears at all
		for {
			n, err := theirs.Get(ctx, "acme", "a")
			if err != nil {
				t.Fatal(err)
			}
			if n == 20 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("another node still says %d, want 20", n)
			}
		}
		cancel()
		running.Wait()
	})
}

// Nothing of an event that can hold a person's data is readable in the
// database without its key, and nothing of it is in the leaf.
func TestEventsAreSealed(t *testing.T) {
	d := dbtest.Open(t)
	g := guardtest.New(t, d, guardtest.AllowAll)
	op := guard.Op{Action: "person.create", Target: "user:usr_1", Detail: map[string]any{"email": "maria.schulz@example.org"}}
	if err := g.Do(t.Context(), alice, op, func(tx *guard.Tx) error { tx.Note("name", "Maria Schulz"); return nil }); err != nil {
		t.Fatal(err)
	}
	var leaf, payload []byte
	if err := d.View(t.Context(), "acme", func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), "select leaf, payload from audit where tenant_id = $1", tx.Tenant()).Scan(&leaf, &payload)
	}); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"maria", "Schulz", "usr_"} {
		if strings.Contains(string(leaf), word) || strings.Contains(string(payload), word) {
			t.Errorf("%q can be read in the leaf %s or in the payload", word, leaf)
		}
	}
	if !strings.Contains(string(leaf), `"commit":"`) {
		t.Errorf("the leaf %s has no commitment", leaf)
	}
}

// The facts of an answer that is given many times stand in one event of each
// tenant; the others name it. An event that was not written has told nothing.
func TestFactsAreToldOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		var told guard.Told
		g := guardtest.New(t, d, guardtest.Decider(func(estover.Caller, guard.Op) guard.Decision {
			return guard.Decision{Allow: true, Engine: "cache", Facts: map[string]any{"input": "what was known"}, InputDigest: "00", Told: &told}
		}))
		ids := map[string]string{}
		record := func(name string, caller estover.Caller, live []db.Epoch, want error) {
			t.Helper()
			op := guard.Op{Action: "token.issue", Target: "agent:agt_1"}
			decision, err := g.Admit(t.Context(), caller, op)
			if err != nil {
				t.Fatal(err)
			}
			ids[name] = decision.ID
			if err := g.Record(t.Context(), caller, op, decision, guard.Hot{Live: live}); !errors.Is(err, want) {
				t.Fatalf("recording: %v, want %v", err, want)
			}
		}
		makeThing(t, d)
		other := alice
		other.Tenant = "other"
		record("failed", alice, []db.Epoch{{Table: "thing", ID: "a", Epoch: 7}}, db.ErrStale)
		record("first", alice, nil, nil)
		record("second", alice, nil, nil)
		record("elsewhere", other, nil, nil)
		for _, c := range []struct {
			name   string
			tenant estover.TenantID
			in     string
		}{{"first", "acme", ""}, {"second", "acme", "first"}, {"elsewhere", "other", ""}} {
			if err := d.View(t.Context(), c.tenant, func(tx *db.Tx) error {
				e, err := g.Log().Find(t.Context(), tx, ids[c.name])
				if err != nil {
					return err
				}
				decision := e.Detail["decision"].(map[string]any)
				if in, _ := decision["facts_in"].(string); in != ids[c.in] || (decision["facts"] == nil) != (c.in != "") || decision["input_digest"] != "00" {
					t.Errorf("the %s event tells %v", c.name, decision)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
	})
}
