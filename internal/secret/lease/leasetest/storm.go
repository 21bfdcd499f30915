package leasetest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/lease"
)

// issues is how many credentials clients get in each storm.
var issues = flag.Int("storm", 0, "how many credentials clients get in a storm, whatever else they ask for; 0 for as many as each test says")

// A Storm asks a target that runs for credentials while nodes crash between any
// two steps, clients hang up at any time, what the target answers is held up or
// lost on its way, and other nodes take away what is due.
type Storm struct {
	Kind     engine.Kind
	Config   engine.Config // of a target that runs
	Template engine.Template

	// Issues is how many credentials clients get, if -storm does not say. They ask
	// for about four times as many.
	Issues int

	// Users gives the names that begin so of those who are at the target, by the
	// target's own account; nil for what the engine lists. A name that has two
	// credentials is there twice.
	Users func(ctx context.Context, prefix string) ([]string, error)

	// Settles is how long a target may take until what was ended there stays so;
	// zero for one where it does at once.
	Settles time.Duration
}

// errCrash is what a node that dies has to say.
var errCrash = errors.New("the node crashed here")

// A death is the step before or after which a node dies.
type death struct {
	step  string
	after bool
}

var deaths = []*death{nil, nil, nil, nil, nil, nil, {"L1", false}, {"L1", true}, {"L2", false}, {"L2", true}, {"L3", false}, {"L3", true}}

// Rage has the storm go over a target. At no moment is there a user that no lease
// knows, and in the end those who are there are those of live leases: F1, F2 and
// F3 of what can go wrong.
func (s Storm) Rage(t *testing.T, d *db.DB) {
	t.Helper()
	n := s.Issues
	if *issues > 0 {
		n = *issues
	}
	most := 40*n + 400 // are asked for; a storm that needs more is broken
	clock := dbtest.NewClock(d)
	host, err := s.Kind.Host(s.Config.Address)
	if err != nil {
		t.Fatal(err)
	}
	var between weather
	through := s.Config
	through.Address = strings.Replace(s.Config.Address, host, Relay(t, host, between.connection), 1)
	var made atomic.Int64
	kind := s.Kind
	kind.Open = func(c engine.Config) (engine.Engine, error) {
		e, err := s.Kind.Open(c)
		return counted{e, &made}, err
	}
	h, admin := At(t, d, kind, through, lease.Options{Quota: int64(most) + 1})
	h.Role(t, admin, lease.RoleSpec{Name: "storm", Target: "real", Template: s.Template, Delivery: lease.Plaintext, Resource: "res_db", Action: "read"})
	if s.Users == nil {
		looker, err := s.Kind.Open(s.Config)
		if err != nil {
			t.Fatal(err)
		}
		defer looker.Close()
		s.Users = looker.List
	}
	leases := func(f lease.Filter) []lease.Lease {
		t.Helper()
		list, err := h.Leases.List(t.Context(), admin, f, "", most+100)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	mark := leases(lease.Filter{})[0].User[:len("e_12345678_")] // of the round that the role has gone
	users := func() []string {
		t.Helper()
		names, err := s.Users(t.Context(), mark)
		for range 5 { // some cannot list users while others go
			if err == nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
			names, err = s.Users(t.Context(), mark)
		}
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		return names
	}

	var (
		wait                           sync.WaitGroup
		asked, issued, crashed, unsure atomic.Int64
		hungUp, late                   atomic.Int64 // clients: at once, and at a target that is held up
		handedOut                      sync.Map     // the user, by the id of the lease
	)
	made.Store(0)
	// goesOn reports whether there is something to be seen yet.
	goesOn := func() bool {
		return issued.Load() < int64(n) || crashed.Load() == 0 || hungUp.Load() == 0 || late.Load() == 0 || between.lost.Load() == 0
	}
	between.loses.Store(true)
	for i := range 8 {
		var dies atomic.Pointer[death]
		node := h.dying(t, func(step string, done bool) error {
			if at := dies.Load(); at != nil && at.step == step && at.after == done {
				return errCrash
			}
			return nil
		})
		agent := estover.Caller{Tenant: admin.Tenant, Subject: estover.Agent(fmt.Sprint("agt_", i)), Session: fmt.Sprint("ses_", i), Purpose: "storm"}
		wait.Go(func() {
			for goesOn() && int(asked.Add(1)) <= most {
				ctx, hangUp := context.WithCancel(context.Background())
				dies.Store(deaths[rand.N(len(deaths))])
				patience, gone := time.Duration(0), &hungUp
				switch rand.N(20) {
				case 0:
					between.hold()
					patience, gone = time.Duration(20+rand.N(400))*time.Millisecond, &late
				case 1, 2, 3, 4, 5:
					patience = time.Duration(1+rand.N(15_000)) * time.Microsecond
				}
				if patience > 0 {
					time.AfterFunc(patience, hangUp)
				}
				x, err := node.Leases.Create(ctx, agent, lease.Wish{Role: "storm"})
				hangUp()
				var known *estover.Error
				switch {
				case err == nil:
					issued.Add(1)
					handedOut.Store(x.ID, x.User)
				case errors.Is(err, errCrash):
					crashed.Add(1)
				case errors.Is(err, context.Canceled):
					gone.Add(1)
				case errors.As(err, &known) && known.Kind == estover.Unavailable && !errors.Is(err, lease.ErrRefused):
					unsure.Add(1) // what the target answered was lost, or the connection of somebody who has hung up
				default:
					t.Errorf("issuing: %v", err)
				}
			}
		})
	}
	sweeping, calm := context.WithCancel(context.Background())
	defer calm()
	swept := make(chan error, 1)
	sweeper := h.Another(t, guardtest.AllowAll)
	go func() { swept <- sweeper.Leases.Run(sweeping) }()
	over := make(chan struct{})
	go func() {
		wait.Wait()
		close(over)
	}()
	for storming := true; storming; {
		if s.Settles == 0 {
			there := users()
			known := map[string]bool{}
			for _, x := range leases(lease.Filter{Open: true}) {
				known[x.User] = true
			}
			still := users() // of those before, some may have gone together with their leases
			for _, name := range there {
				if !known[name] && slices.Contains(still, name) {
					t.Errorf("in the storm there is %s, whom no lease knows", name)
				}
			}
		}
		select {
		case <-over:
			storming = false
		case <-time.After(100 * time.Millisecond):
		}
	}
	between.loses.Store(false)
	calm()
	if err := <-swept; err != nil {
		t.Error(err)
	}
	t.Logf("%s: %d asked for, %d made there, %d handed out, %d crashes, %d clients hung up at once and %d after 20 to 420 ms, %d times the outcome was unknown, %d answers lost",
		s.Kind.Title, min(asked.Load(), int64(most)), made.Load(), issued.Load(), crashed.Load(), hungUp.Load(), late.Load(), unsure.Load(), between.lost.Load())
	if goesOn() {
		t.Errorf("it was no storm, or not the whole of it: of %d that were asked for %d were to be handed out", most, n)
	}

	// settled works until the leases have come to rest, and compares.
	settled := func(when string) (there []string) {
		t.Helper()
		var want []string
		for range 30 {
			clock.Advance(16 * time.Second)
			if err := h.Leases.Work(t.Context()); err != nil {
				t.Fatal(err)
			}
			want = nil
			moving := false
			for _, x := range leases(lease.Filter{Open: true}) {
				moving = moving || x.State != lease.Live
				want = append(want, x.User)
			}
			if !moving {
				break
			}
		}
		for _, x := range leases(lease.Filter{Open: true}) {
			if x.State != lease.Live {
				t.Errorf("%s the lease of %s is %s: %s", when, x.User, x.State, x.LastError)
			}
		}
		slices.Sort(want)
		there = users()
		for until := time.Now().Add(s.Settles); !slices.Equal(there, want) && time.Now().Before(until); there = users() {
			time.Sleep(100 * time.Millisecond)
		}
		if !slices.Equal(there, want) {
			t.Errorf("%s there are %d users and %d live leases", when, len(there), len(want))
		}
		t.Logf("%s: %d users at the target, %d live leases", when, len(there), len(want))
		return there
	}
	there := settled("after the storm")
	handedOut.Range(func(_, user any) bool {
		if !slices.Contains(there, user.(string)) {
			t.Errorf("the lease of %s was handed out, and its user is not there", user)
		}
		return true
	})
	if _, err := h.Leases.Revoke(t.Context(), admin, lease.Which{All: true}, ""); err != nil {
		t.Fatal(err)
	}
	if there := settled("after everything was revoked"); len(there) != 0 {
		t.Errorf("after everything was revoked there are %q", there)
	}
}

// counted is an engine that counts whom it has made.
type counted struct {
	engine.Engine
	made *atomic.Int64
}

func (c counted) Create(ctx context.Context, o engine.Order) (engine.Material, error) {
	m, err := c.Engine.Create(ctx, o)
	if err == nil {
		c.made.Add(1)
	}
	return m, err
}

// dying is another node, which is told of each step of a lease and may end there.
func (h *House) dying(t testing.TB, reached func(step string, done bool) error) *House {
	t.Helper()
	other := *h
	other.o.Node, other.o.Reached = "", reached
	other.wire(t, guardtest.AllowAll)
	return &other
}

// weather is what a storm does to the answers of a target: it loses some, and holds
// them up.
type weather struct {
	loses   atomic.Bool
	until   atomic.Int64 // whatever is answered is held up, in Unix nanoseconds
	answers atomic.Int64
	lost    atomic.Int64
}

// everyAnswer is which answer of the target is lost while some are, with the
// connection that it came by.
const everyAnswer = 31

// hold has every answer wait for as long as a client may who hangs up.
func (w *weather) hold() { w.until.Store(time.Now().Add(420 * time.Millisecond).UnixNano()) }

func (w *weather) connection() Between {
	return Between{Answered: func([]byte) bool {
		time.Sleep(time.Until(time.Unix(0, w.until.Load())))
		if w.loses.Load() && w.answers.Add(1)%everyAnswer == 0 {
			w.lost.Add(1)
			return false
		}
		return true
	}}
}
