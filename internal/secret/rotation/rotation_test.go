package rotation_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/rotation"
)

var (
	ann = estover.Caller{Tenant: "acme", Subject: estover.User("usr_ann"), Roles: []estover.Role{estover.Admin}}
	bot = estover.Caller{Tenant: "acme", Subject: estover.Agent("agt_bot"), Session: "ses_1", Purpose: "billing"}
	eve = estover.Caller{Tenant: "evil", Subject: estover.User("usr_eve"), Roles: []estover.Role{estover.Admin}, Purpose: "theft"}
)

const (
	path  = "db/reader"
	there = "db.example:5432"
)

// A house is what a rotation stands in.
type house struct {
	t         testing.TB
	d         *db.DB
	tenant    estover.TenantID
	ann       estover.Caller // its administrator
	clock     *dbtest.Clock
	guard     *guard.Guard
	sealer    *seal.Sealer
	secrets   *secret.Secrets
	target    *memory
	engine    engine.Engine // in the place of the target in memory
	overlap   bool
	plain     bool // the target makes keys
	pair      bool // a second admin can be made there
	kind      rotation.Kind
	authority *authority
	admin     string // the path of the target's own secret
	others    map[string]rotation.Target
	account   func(string) string // rotation.Target.Account
	checked   time.Time
	over      map[string]bool // sessions and subjects that cannot work with us any more
	risk      secret.Risk
	x         *rotation.Rotations
}

// roots are the files of the root keys, by database.
var roots sync.Map

func build(t testing.TB, d *db.DB, target *memory) *house {
	t.Helper()
	return buildAt(t, d, target, "acme")
}

func buildAt(t testing.TB, d *db.DB, target *memory, tenant estover.TenantID) *house {
	t.Helper()
	h := &house{t: t, d: d, tenant: tenant, ann: ann, clock: dbtest.NewClock(d), target: target, over: map[string]bool{}}
	h.ann.Tenant = tenant
	var err error
	root, _ := roots.LoadOrStore(d, filepath.Join(t.TempDir(), "root.key"))
	if h.sealer, err = seal.Open(t.Context(), d, seal.File{Path: root.(string)}); err != nil {
		t.Fatal(err)
	}
	h.sealer.Hold(secret.Holding)
	h.guard = guardtest.New(t, d, guardtest.AllowAll)
	h.authority = newAuthority(t, h.clock.Now)
	h.x, h.secrets = h.node("node_1")
	_, err = h.secrets.Create(t.Context(), h.ann, secret.Spec{Path: path, Destinations: []string{there}})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// node is another node over the same database.
func (h *house) node(name string) (*rotation.Rotations, *secret.Secrets) {
	var x *rotation.Rotations
	g := h.guard
	if name != "node_1" {
		g = guardtest.New(h.t, h.d, guardtest.AllowAll) // whose copies nobody drops
	}
	secrets := secret.New(g, h.sealer, secret.Options{Logger: slog.New(slog.DiscardHandler), Standing: func() error { return x.Standing() }})
	x = rotation.New(rotation.Config{
		Guard: g, Secrets: secrets, Node: name, Logger: slog.New(slog.DiscardHandler),
		Target: func(_ context.Context, tenant estover.TenantID, name string) (rotation.Target, error) {
			if o, there := h.others[name]; there && tenant == h.tenant {
				return o, nil
			}
			if tenant != h.tenant || name != "orders" && name != "tgt_1" {
				return rotation.Target{}, rotation.ErrNotFound.With("There is no target %s.", name)
			}
			return rotation.Target{ID: "tgt_1", Name: "orders", Admin: h.admin, Host: there, Overlap: h.overlap, Plain: h.plain, Pair: h.pair, CheckedAt: h.checked, Account: h.account}, nil
		},
		Certifier: h.authority.certifier(),
		Engine: func(context.Context, estover.TenantID, string) (engine.Engine, error) {
			if h.engine != nil {
				return h.engine, nil
			}
			return h.target, nil
		},
		As: func(_ context.Context, _ estover.TenantID, _ string, c engine.Credential) (engine.Engine, error) {
			return asAdmin{h.target, c}, nil
		},
		Sponsor: func(context.Context, *db.Tx, string) (string, error) { return "usr_sam", nil },
		Over: func(_ context.Context, _ *db.Tx, s estover.Subject, session string, _ time.Time) (bool, error) {
			return h.over[session] || h.over[string(s)], nil
		},
		Risk: func(_ context.Context, _ estover.TenantID, s secret.Secret) (secret.Risk, error) {
			if h.risk != "" {
				return h.risk, nil
			}
			return s.Spec.Risk, nil
		},
	})
	h.tick(x)
	return x, secrets
}

func (h *house) tick(nodes ...*rotation.Rotations) {
	h.t.Helper()
	for _, x := range nodes {
		if err := x.Tick(h.t.Context()); err != nil {
			h.t.Fatal(err)
		}
	}
}

var pair = rotation.Spec{Target: "orders", Users: []string{"reader_a", "reader_b"}, Cache: 60, Quiet: 30, Schedule: "manual"}

func (h *house) put(spec rotation.Spec) {
	h.t.Helper()
	if _, err := h.x.Put(h.t.Context(), h.ann, path, spec); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) run() rotation.Rotation {
	h.t.Helper()
	r, err := h.x.Run(h.t.Context(), h.ann, path)
	if err != nil {
		h.t.Fatalf("rotating: %v", err)
	}
	return r
}

// pass moves the clock and does on every node what falls due.
func (h *house) pass(by time.Duration, nodes ...*rotation.Rotations) rotation.Explanation {
	h.t.Helper()
	h.clock.Advance(by)
	if len(nodes) == 0 {
		nodes = []*rotation.Rotations{h.x}
	}
	h.tick(nodes...)
	for _, x := range nodes {
		if err := x.RunDue(h.t.Context()); err != nil {
			h.t.Fatal(err)
		}
	}
	return h.explain()
}

func (h *house) explain() rotation.Explanation {
	h.t.Helper()
	e, err := h.x.Explain(h.t.Context(), h.ann, path)
	if err != nil {
		h.t.Fatal(err)
	}
	return e
}

// use is a use by the gateway, and what the target says of it.
func (h *house) use(s *secret.Secrets) (secret.Injection, error) {
	h.t.Helper()
	which, use := fields(h.kind)
	for {
		user, err := s.Use(h.t.Context(), bot, path, which, there)
		if err != nil {
			return user, err
		}
		password, err := s.Use(h.t.Context(), bot, path, use, there)
		if err != nil {
			return user, err
		}
		if user.Version != password.Version {
			continue
		}
		if h.kind == rotation.Certificate {
			if !h.authority.accepts(string(user.Value.Reveal())) {
				return user, engine.ErrWrongSecret
			}
			return password, nil
		}
		return password, h.target.Verify(h.t.Context(), engine.Credential{User: string(user.Value.Reveal()), Secret: password.Value})
	}
}

// phases are the versions of the secret as they stand, the oldest first.
func (h *house) phases() string {
	h.t.Helper()
	list, err := h.secrets.Versions(h.t.Context(), h.ann, path)
	if err != nil {
		h.t.Fatal(err)
	}
	var said []string
	for _, v := range slices.Backward(list) {
		said = append(said, fmt.Sprintf("%d%s:%s", v.N, v.Slot, v.Phase))
		if gone := v.State == secret.Destroyed; gone != (v.Phase == secret.Retired || v.Phase == secret.Abandoned) {
			h.t.Errorf("version %d is %s and %s", v.N, v.Phase, v.State)
		}
	}
	return strings.Join(said, " ")
}

func (h *house) want(phases string) {
	h.t.Helper()
	if got := h.phases(); got != phases {
		h.t.Errorf("the versions are %s, want %s", got, phases)
	}
}

// works checks that the current version logs in.
func (h *house) works() {
	h.t.Helper()
	if _, err := h.use(h.secrets); err != nil {
		h.t.Errorf("the current version: %v", err)
	}
}

// TestFiveSteps shows R1–R5: one version after the other, each in the other slot,
// with the one before it good until it is retired.
func TestFiveSteps(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("reader_a", "reader_b"))
		h.put(pair)
		if r := h.run(); r.Current != 1 || r.Slot != "a" || r.Step != rotation.Idle {
			t.Errorf("after the first rotation: %+v", r)
		}
		h.want("1a:current")
		h.works()
		if _, err := h.secrets.Write(t.Context(), ann, path, map[string]estover.Secret{"password": estover.NewSecret([]byte("x"))}, secret.Any); !errors.Is(err, secret.ErrManaged) {
			t.Errorf("writing a version by hand: %v, want ErrManaged", err)
		}
		if err := h.secrets.Remove(t.Context(), ann, path); !errors.Is(err, secret.ErrManaged) {
			t.Errorf("removing a secret that is rotated: %v, want ErrManaged", err)
		}

		first, err := h.secrets.Read(t.Context(), ann, path, 1, "a test")
		if err != nil {
			t.Fatal(err)
		}
		// L9: 24 random bytes, in letters that fit everywhere.
		if made, err := base64.RawURLEncoding.DecodeString(string(first.Values["password"].Reveal())); err != nil || len(made) != 24 {
			t.Errorf("a password has %d bytes, %v; want 24", len(made), err)
		}
		h.over[string(ann.Subject)] = true
		if r := h.run(); r.Current != 2 || r.Previous != 1 || r.Slot != "b" || r.Step != rotation.Grace {
			t.Errorf("after the second rotation: %+v", r)
		}
		h.want("1a:previous 2b:current")
		h.works()
		old := engine.Credential{User: "reader_a", Secret: first.Values["password"]}
		if err := h.target.Verify(t.Context(), old); err != nil {
			t.Errorf("the previous version in its grace: %v", err)
		}
		// R7: a pair is never rotated twice within one grace.
		if _, err := h.x.Run(t.Context(), ann, path); !errors.Is(err, rotation.ErrBusy) {
			t.Errorf("rotating again in the grace: %v, want ErrBusy", err)
		}
		if e := h.pass(30 * time.Second); e.Step != rotation.Grace || !strings.Contains(e.Why, "Version 1 is still good") {
			t.Errorf("before the grace is over: %s %s", e.Step, e.Why)
		}
		if e := h.pass(31 * time.Second); e.Step != rotation.Idle || e.Previous != 0 {
			t.Errorf("when the grace is over: %s %s", e.Step, e.Why)
		}
		h.want("1a:retired 2b:current")
		if err := h.target.Verify(t.Context(), old); !errors.Is(err, engine.ErrWrongSecret) {
			t.Errorf("the retired version logs in: %v", err)
		}
		if _, err := h.secrets.Read(t.Context(), ann, path, 1, "a test"); !errors.Is(err, secret.ErrNoVersion) {
			t.Errorf("reading a retired version: %v, want ErrNoVersion", err)
		}
		h.run()
		h.want("1a:retired 2b:previous 3a:current")
		h.works()

		// Another organisation sees nothing of it.
		if _, err := h.x.Explain(t.Context(), eve, path); !errors.Is(err, rotation.ErrNotFound) {
			t.Errorf("explaining another's rotation: %v, want ErrNotFound", err)
		}
		if _, err := h.x.Run(t.Context(), eve, path); !errors.Is(err, rotation.ErrNotFound) {
			t.Errorf("running another's rotation: %v, want ErrNotFound", err)
		}
		if list, err := h.x.List(t.Context(), eve, "", "", 10); err != nil || len(list) != 0 {
			t.Errorf("another's list: %v, %v", list, err)
		}
		if list, err := h.x.List(t.Context(), ann, "db/", "", 10); err != nil || len(list) != 1 || list[0].Path != path {
			t.Errorf("the list: %v, %v", list, err)
		}

		if err := h.x.Remove(t.Context(), ann, path); !errors.Is(err, rotation.ErrBusy) {
			t.Errorf("ending a rotation under way: %v, want ErrBusy", err)
		}
		h.pass(time.Hour)
		if err := h.x.Remove(t.Context(), ann, path); err != nil {
			t.Fatal(err)
		}
		h.want("1a:retired 2b:retired 3:")
		if _, err := h.secrets.Write(t.Context(), ann, path, map[string]estover.Secret{"password": estover.NewSecret([]byte("x"))}, 3); err != nil {
			t.Errorf("writing a version once the rotation has ended: %v", err)
		}
		if _, err := h.x.Put(t.Context(), ann, path, pair); !errors.Is(err, rotation.ErrInvalid) {
			t.Errorf("rotating a secret without the user's name: %v, want ErrInvalid", err)
		}
	})
}

// points are where a node may die in a rotation whose old version retires.
var points = []string{
	"before R1", "after R1", "before R2", "after R2", "before R3", "after R3", "before R4", "after R4",
	"before ask", "after ask", "before look", "after look", "before R5", "after R5",
}

// TestCrash shows R6: wherever a node dies, before or after an effect, another one
// brings the rotation to the same end, and at every moment the current version
// logs in. It is F11's first half, and F7: the one that died comes back and finds
// nothing to do.
func TestCrash(t *testing.T) {
	eachKind(t, func(t *testing.T, h *house, spec rotation.Spec) {
		h.put(spec)
		h.run()
		other, _ := h.node("node_2")
		version := int64(1)
		for _, point := range points {
			if spec.Kind == rotation.Certificate && strings.HasSuffix(point, "look") {
				continue // nobody logs in anywhere
			}
			died := false
			h.x.Reached(func(at string) error {
				h.works()
				if at != point {
					return nil
				}
				died = true
				return rotation.ErrCrash
			})
			_, err := h.x.Run(t.Context(), ann, path)
			if err != nil && !errors.Is(err, rotation.ErrCrash) {
				t.Fatalf("%s: %v", point, err)
			}
			for range 2 { // the second time the other node has answered
				h.clock.Advance(rotation.HoldTime + time.Second)
				h.tick(h.x, other)
				if err := h.x.RunDue(t.Context()); err != nil {
					t.Fatalf("%s: %v", point, err)
				}
			}
			if !died {
				t.Errorf("nothing was reached that is called %q", point)
			}
			h.x.Reached(nil)
			h.works()
			for range 4 { // what the node that died still holds is another's after a minute
				h.clock.Advance(rotation.HoldTime + time.Second)
				h.tick(h.x, other)
				if err := other.RunDue(t.Context()); err != nil {
					t.Fatalf("%s: %v", point, err)
				}
				h.works()
			}
			e := h.explain()
			if e.Step != rotation.Idle || e.Previous != 0 || e.Pending != 0 || e.Current <= version {
				t.Errorf("%s: it ends as %s with version %d: %s", point, e.Step, e.Current, e.Why)
			}
			if strings.Contains(h.phases(), "abandoned") {
				t.Errorf("%s: %s", point, h.phases())
			}
			if len(h.target.users) > 1 && h.plain {
				t.Errorf("%s: there are keys that no version has: %v", point, h.target.users)
			}
			version = e.Current
		}
	})
}

// TestLaggards shows R8: who uses the old version is named, by every way, and
// nothing dies before they are settled.
func TestLaggards(t *testing.T) {
	eachKind(t, func(t *testing.T, h *house, spec rotation.Spec) {
		h.put(spec)
		h.run()
		used, err := h.use(h.secrets)
		if err != nil {
			t.Fatal(err)
		}
		closed := h.secrets.Carry(used).Done
		reader := bot
		reader.Session = "ses_2"
		if _, err := h.secrets.Read(t.Context(), reader, path, 0, "a tool that takes no handle"); err != nil {
			t.Fatal(err)
		}
		h.target.sessions["reader_a"] = 1
		h.run()

		named := func(when string, e rotation.Explanation, want ...string) {
			t.Helper()
			var got []string
			for _, l := range e.Laggards {
				got = append(got, fmt.Sprintf("%s %s %s %s %d", l.Way, l.Subject, l.Session, l.Sponsor, l.Connections))
				if l.Way != rotation.AtTarget && (l.LastUse.IsZero() || l.Uses == 0) {
					t.Errorf("%s: %+v does not say when it was last used, and how often", when, l)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", when, got, want)
			}
			if h.x.Standing() != nil || e.Step != rotation.Grace {
				t.Errorf("%s: it is at the step %s", when, e.Step)
			}
			h.works()
		}
		const (
			gateway = "gateway agent:agt_bot ses_1 usr_sam 1"
			plain   = "plaintext agent:agt_bot ses_2 usr_sam 0"
			logged  = "target    1"
		)
		named("in the grace", h.pass(20*time.Second), gateway, plain)
		named("after the grace and the quiet period", h.pass(2*time.Minute), gateway, plain)
		closed()
		named("when the connection is closed", h.pass(20*time.Second), plain)
		if late, err := h.x.Late(t.Context()); err != nil || late != 1 {
			t.Errorf("%d are late after a second grace, %v; want 1", late, err)
		}
		if _, err := h.secrets.Read(t.Context(), reader, path, 0, "the same tool"); err != nil {
			t.Fatal(err)
		}
		e := h.pass(20 * time.Second)
		if spec.Kind != rotation.Certificate { // with which nobody logs in where we would see it
			named("when the reader has the current version", e, logged)
			if !strings.Contains(e.Why, "from 192.0.2.7") {
				t.Errorf("explained as %q", e.Why)
			}
		}
		delete(h.target.sessions, "reader_a")
		if e := h.pass(20 * time.Second); e.Step != rotation.Idle || len(e.Laggards) != 0 {
			t.Errorf("when nobody is left: %s %+v", e.Step, e.Laggards)
		}
		h.want("1a:retired 2b:current")
		if late, _ := h.x.Late(t.Context()); late != 0 {
			t.Errorf("%d are late when all have retired", late)
		}

		// The end of the session settles it as well.
		if _, err := h.secrets.Read(t.Context(), reader, path, 0, "once more"); err != nil {
			t.Fatal(err)
		}
		h.run()
		if e := h.pass(2 * time.Minute); len(e.Laggards) != 1 {
			t.Errorf("%d hold it up, want the reader", len(e.Laggards))
		}
		h.over["ses_2"] = true
		if e := h.pass(20 * time.Second); e.Step != rotation.Idle {
			t.Errorf("when the reader's session has ended: %s", e.Why)
		}
	})
}

// TestForce shows that a person ends a version that is in use, with a reason, and
// is told who loses access by it.
func TestForce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("reader_a", "reader_b"))
		h.put(pair)
		h.run()
		if _, err := h.use(h.secrets); err != nil {
			t.Fatal(err)
		}
		if _, err := h.x.Force(t.Context(), ann, path, "nothing to end"); !errors.Is(err, rotation.ErrNothing) {
			t.Errorf("forcing nothing: %v, want ErrNothing", err)
		}
		h.run()
		if _, err := h.x.Force(t.Context(), ann, path, ""); !errors.Is(err, rotation.ErrReason) {
			t.Errorf("forcing without a reason: %v, want ErrReason", err)
		}
		r, err := h.x.Force(t.Context(), ann, path, "the password is on a forum")
		if err != nil || r.Step != rotation.Idle || len(r.Laggards) != 1 || r.Laggards[0].Session != "ses_1" {
			t.Errorf("forced: %+v, %v; want it idle, and the session that loses access", r, err)
		}
		h.want("1a:retired 2b:current")
		h.works()
	})
}

// TestEscalate shows that a version which is used is an alarm first, and dies when
// its rotation lets it wait no longer; and that one waits without end of which
// nothing is said.
func TestEscalate(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("reader_a", "reader_b"))
		short := pair
		short.Escalate = 30
		if _, err := h.x.Put(t.Context(), ann, path, short); !errors.Is(err, rotation.ErrInvalid) {
			t.Errorf("it dies before the alarm: %v, want ErrInvalid", err)
		}
		patient := pair
		patient.Escalate = 3600
		h.put(patient)
		h.run()
		used, err := h.use(h.secrets)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.secrets.Carry(used).Done)
		h.run()
		h.clock.Hold()
		grace := h.explain().GraceUntil
		h.clock.Advance(grace.Add(time.Hour - time.Second).Sub(h.clock.Now()))
		if e := h.pass(0); e.Step != rotation.Grace || e.LateAt.IsZero() || e.ForcedBy != "" {
			t.Errorf("a second before: %s, late since %s, forced by %q", e.Step, e.LateAt, e.ForcedBy)
		}
		h.want("1a:previous 2b:current")
		if e := h.pass(time.Minute); e.ForcedBy == "" || len(e.Laggards) != 1 || !strings.Contains(e.Why, "all the same") {
			t.Errorf("after it: forced by %q, cut off %+v, %q", e.ForcedBy, e.Laggards, e.Why)
		}
		if e := h.pass(time.Minute); e.Step != rotation.Idle {
			t.Errorf("after it: %s, %s", e.Step, e.Why)
		}
		h.want("1a:retired 2b:current")
		h.works()
	})
}

// TestNodes shows that every node that is there has to answer, that what it has
// counted in memory counts, and that a node which cannot say that it is there uses
// no rotated secret (R9).
func TestNodes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("reader_a", "reader_b"))
		h.clock.Hold()
		other, secrets := h.node("node_2")
		h.put(pair)
		h.run()
		if _, err := h.use(secrets); err != nil {
			t.Fatal(err)
		}
		h.run()
		// The second node has not heard of it, and uses what it has in memory.
		h.clock.Advance(2 * time.Minute)
		h.tick(h.x, other)
		stale, err := h.use(secrets)
		if err != nil || !strings.HasSuffix(stale.Version, "@1") {
			t.Fatalf("the node that has not heard uses %s, %v; want version 1", stale.Version, err)
		}
		// Nothing that the first node knows holds the version up, so it asks.
		if err := h.x.RunDue(t.Context()); err != nil {
			t.Fatal(err)
		}
		e := h.explain()
		if e.Step != rotation.Retiring || !slices.Equal(e.Nodes, []string{"node_2"}) {
			t.Fatalf("it is %s and waits for %v, want it to wait for the second node", e.Step, e.Nodes)
		}
		h.tick(other)
		if now, err := h.use(secrets); err != nil || !strings.HasSuffix(now.Version, "@2") {
			t.Errorf("the node that was asked uses %s, %v; want version 2", now.Version, err)
		}
		if e := h.pass(2*time.Second, h.x); e.Step != rotation.Grace || len(e.Laggards) != 1 || e.Laggards[0].Way != rotation.ByGateway {
			t.Errorf("after the answer: %s %+v; want the use that only the second node knew of", e.Step, e.Laggards)
		}

		// A node that does not answer any more uses nothing after its own fifteen seconds,
		// and is not waited for a minute after that: so much its clock may be behind.
		h.clock.Advance(20 * time.Second)
		h.tick(h.x)
		if _, err := h.use(secrets); !errors.Is(err, rotation.ErrNode) {
			t.Errorf("a node that has not said that it is there uses the secret: %v, want ErrNode", err)
		}
		e = h.pass(20*time.Second, h.x)
		for range 3 {
			e = h.pass(10*time.Second, h.x)
		}
		if e.Step == rotation.Idle {
			t.Errorf("before a minute is over, the node's clock may be behind, and nobody has asked it: %s, %s", e.Step, e.Why)
		}
		if e = h.pass(20*time.Second, h.x); e.Step == rotation.Retiring {
			e = h.pass(2*time.Second, h.x)
		}
		if e.Step != rotation.Idle {
			t.Errorf("without that node: %s, %s", e.Step, e.Why)
		}
		h.tick(other)
		if _, err := h.use(secrets); err != nil {
			t.Errorf("the node that is back: %v", err)
		}
	})
}

// TestStopped shows R11: a new password that does not log in is taken back, the
// current one has never been touched, and nothing more is begun at the target
// before somebody has looked.
func TestStopped(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("reader_a", "reader_b"))
		h.put(pair)
		h.run()
		h.target.wrong = "reader_b"
		if _, err := h.x.Run(t.Context(), ann, path); !errors.Is(err, rotation.ErrFailed) {
			t.Errorf("rotating to a password that does not log in: %v, want ErrFailed", err)
		}
		h.want("1a:current 2b:abandoned")
		h.works()
		h.target.wrong = ""
		if _, err := h.x.Run(t.Context(), ann, path); !errors.Is(err, rotation.ErrStopped) {
			t.Errorf("rotating at a target where it is stopped: %v, want ErrStopped", err)
		}
		if e := h.explain(); e.Stopped == "" || !strings.Contains(e.Why, "No rotation begins at the target") {
			t.Errorf("explained as %q", e.Why)
		}
		if err := h.x.Clear(t.Context(), ann, "orders"); err != nil {
			t.Fatal(err)
		}
		if err := h.x.Clear(t.Context(), ann, "orders"); !errors.Is(err, rotation.ErrInvalid) {
			t.Errorf("clearing what is not stopped: %v, want ErrInvalid", err)
		}
		h.run()
		h.want("1a:previous 2b:abandoned 3b:current")
		h.pass(time.Hour)

		// What the target refuses for good ends as well, but stops nothing.
		h.target.refuse = "reader_a"
		if _, err := h.x.Run(t.Context(), ann, path); !errors.Is(err, rotation.ErrFailed) && !errors.Is(err, rotation.ErrBusy) {
			t.Errorf("rotating a user whose password cannot be changed: %v, want ErrFailed", err)
		}
		h.target.refuse = ""
		h.pass(time.Hour)
		h.works()
		if e := h.explain(); e.Step != rotation.Idle || e.Stopped != "" {
			t.Errorf("after a refusal: %s %q", e.Step, e.Stopped)
		}

		// A check of the target that passes clears it, too.
		h.target.wrong = "reader_a"
		_, err := h.x.Run(t.Context(), ann, path)
		if h.target.wrong = ""; !errors.Is(err, rotation.ErrFailed) {
			t.Errorf("rotating: %v, want ErrFailed", err)
		}
		if _, err := h.x.Run(t.Context(), ann, path); !errors.Is(err, rotation.ErrStopped) {
			t.Errorf("rotating before the target is checked: %v, want ErrStopped", err)
		}
		h.checked = h.clock.Now()
		h.run()
		h.works()
	})
}

// TestTwoPerTarget shows the bound of R11 with many that are due at once.
func TestTwoPerTarget(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory())
		var mu sync.Mutex
		under, most := 0, 0
		h.x.Reached(func(at string) error {
			mu.Lock()
			defer mu.Unlock()
			switch at {
			case "after R1":
				under++
				most = max(most, under)
			case "before R4":
				under--
			}
			return nil
		})
		for i := range 8 {
			p, a, b := fmt.Sprintf("db/many%d", i), fmt.Sprintf("a%d", i), fmt.Sprintf("b%d", i)
			h.target.users[a], h.target.users[b] = []string{"x"}, []string{"x"}
			if _, err := h.secrets.Create(t.Context(), ann, secret.Spec{Path: p}); err != nil {
				t.Fatal(err)
			}
			if _, err := h.x.Put(t.Context(), ann, p, rotation.Spec{Target: "orders", Users: []string{a, b}}); err != nil {
				t.Fatal(err)
			}
		}
		for range 10 {
			h.clock.Advance(6 * time.Second)
			if err := h.x.RunDue(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		list, err := h.x.List(t.Context(), ann, "db/many", "", 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list {
			if r.Current != 1 {
				t.Errorf("%s has no version yet: %s %s", r.Path, r.Step, r.LastError)
			}
		}
		if len(list) != 8 || most > 2 || most == 0 {
			t.Errorf("%d rotations, %d under way at once; want 8, and 2 at most", len(list), most)
		}
	})
}

// TestAdmin shows R12: the second admin is made, and logs in, before anybody
// touches the password of the first.
func TestAdmin(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("operator"))
		fields := map[string]estover.Secret{"username": estover.NewSecret([]byte("operator")), "password": estover.NewSecret([]byte("first-of-operator")), "port": estover.NewSecret([]byte("5432"))}
		if _, err := h.secrets.Write(t.Context(), ann, path, fields, 0); err != nil {
			t.Fatal(err)
		}
		spec := pair
		spec.Users, spec.Template = []string{"operator", "estover_admin"}, engine.Template{"groups": {"admins"}}
		h.admin = path
		h.put(spec)
		h.want("1a:current")
		// One that cannot do what the first one can is taken back.
		h.target.powerless = "estover_admin"
		if _, err := h.x.Run(t.Context(), ann, path); !errors.Is(err, rotation.ErrFailed) || !strings.Contains(err.Error(), "the next admin cannot do") {
			t.Errorf("an admin without rights: %v, want ErrFailed", err)
		}
		h.want("1a:current 2b:abandoned")
		h.target.powerless, h.target.made = "", nil
		delete(h.target.users, "estover_admin")
		if err := h.x.Clear(t.Context(), ann, "orders"); err != nil {
			t.Fatal(err)
		}
		operators := engine.Credential{User: "operator", Secret: estover.NewSecret([]byte("first-of-operator"))}
		h.x.Reached(func(at string) error {
			if at == "before R4" && !slices.Equal(h.target.made, []string{"estover_admin admins"}) {
				t.Errorf("before the switch there were made %q", h.target.made)
			}
			if err := h.target.Verify(t.Context(), operators); err != nil && at != "after R5" {
				t.Errorf("%s: the operator's own password: %v", at, err)
			}
			return nil
		})
		h.run()
		h.works()
		h.pass(2 * time.Minute)
		h.pass(2 * time.Minute)
		h.x.Reached(nil)
		h.want("1a:retired 2b:abandoned 3b:current")
		if err := h.target.Verify(t.Context(), operators); !errors.Is(err, engine.ErrWrongSecret) {
			t.Errorf("the operator's own password afterwards: %v, want ErrWrongSecret", err)
		}
		p, err := h.secrets.Read(t.Context(), ann, path, 0, "a test")
		if err != nil || string(p.Values["username"].Reveal()) != "estover_admin" || string(p.Values["port"].Reveal()) != "5432" {
			t.Errorf("the version has the fields %v, %v; want the second admin, and the port as it was", p.Fields, err)
		}
	})
}

// TestSingleSlot shows the honest figure of one user, and that a target which
// takes two passwords at once refuses nobody.
func TestSingleSlot(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("only"))
		h.put(rotation.Spec{Target: "orders", Kind: rotation.SingleSlot, Users: []string{"only"}, Cache: 60, Quiet: 30, Schedule: "manual"})
		h.run()
		h.target.slow = 30 * time.Millisecond
		r := h.run()
		h.want("1a:retired 2a:current")
		h.works()
		if r.Step != rotation.Idle || r.Refused == 0 {
			t.Errorf("after a rotation of one user: %s, log-ins refused for %d µs; want it idle, and a figure", r.Step, r.Refused)
		}
		h.clock.Advance(time.Hour)
		h.tick(h.x)
		h.target.wrong = "only"
		_, err := h.x.Run(t.Context(), ann, path)
		if h.target.wrong = ""; !errors.Is(err, rotation.ErrFailed) {
			t.Errorf("rotating: %v, want ErrFailed", err)
		}
		h.works() // R6: what was good before is good again
		if err := h.x.Clear(t.Context(), ann, "orders"); err != nil {
			t.Fatal(err)
		}

		h.overlap = true
		before, err := h.secrets.Read(t.Context(), bot, path, 0, "a test")
		if err != nil {
			t.Fatal(err)
		}
		h.run()
		h.works()
		if err := h.target.Verify(t.Context(), engine.Credential{User: "only", Secret: before.Values["password"]}); err != nil {
			t.Errorf("the previous password beside the current one: %v", err)
		}
		h.over["ses_1"] = true
		h.pass(2 * time.Minute)
		h.want("1a:retired 2a:retired 3a:abandoned 4a:current")
		if err := h.target.Verify(t.Context(), engine.Credential{User: "only", Secret: before.Values["password"]}); !errors.Is(err, engine.ErrWrongSecret) {
			t.Errorf("the retired password: %v, want ErrWrongSecret", err)
		}
		h.works()
	})
}

// TestDown shows that a target which cannot be reached is asked again, and that a
// rotation goes on where it was.
func TestDown(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("reader_a", "reader_b"))
		h.put(pair)
		h.run()
		h.target.down = engine.ErrUnreachable
		if _, err := h.x.Run(t.Context(), ann, path); !errors.Is(err, rotation.ErrFailed) {
			t.Errorf("rotating at a target that is down: %v, want ErrFailed", err)
		}
		h.want("1a:current 2b:pending")
		if _, err := h.secrets.Read(t.Context(), ann, path, 2, "a test"); !errors.Is(err, secret.ErrNoVersion) {
			t.Errorf("reading a pending version: %v, want ErrNoVersion", err)
		}
		for range 3 {
			h.pass(10 * time.Minute)
		}
		h.target.down = nil
		h.works()
		h.pass(10 * time.Minute)
		h.want("1a:previous 2b:current")
		h.works()
		h.target.down = engine.ErrUnreachable
		if e := h.pass(time.Hour); e.Previous != 1 {
			t.Errorf("a version has retired at a target that is down: %s", e.Why)
		}
		h.target.down = nil
		h.pass(time.Hour)
		h.want("1a:retired 2b:current")
	})
}

// TestAlterUnderWay: how a secret is rotated is changed while a node is at work, and
// what that does is not lost, so that nobody waits for its claim to end.
func TestAlterUnderWay(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("reader_a", "reader_b"))
		h.put(pair)
		begun, go1 := make(chan struct{}), make(chan struct{})
		h.x.Reached(func(at string) error {
			if at == "before R2" {
				close(begun)
				<-go1
			}
			return nil
		})
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := h.x.Run(t.Context(), ann, path); err != nil {
				t.Errorf("the rotation: %v", err)
			}
		})
		<-begun
		spec := pair
		spec.Schedule = "12h"
		wg.Go(func() {
			if r, err := h.x.Put(t.Context(), ann, path, spec); err != nil || r.Schedule != "12h" {
				t.Errorf("changing how it is rotated: %+v, %v", r.Schedule, err)
			}
		})
		for range 3 { // it has come by then, most of the time
			if _, err := h.x.Get(t.Context(), ann, path); err != nil {
				t.Error(err)
			}
		}
		close(go1)
		wg.Wait()
		h.want("1a:current")
		h.works()
	})
}

// TestRace shows that many who ask at once, on two nodes, make one version.
func TestRace(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("reader_a", "reader_b"))
		other, _ := h.node("node_2")
		h.put(pair)
		h.run()
		var wg sync.WaitGroup
		var mu sync.Mutex
		good := 0
		for i := range 64 {
			wg.Go(func() {
				x := []*rotation.Rotations{h.x, other}[i%2]
				r, err := x.Run(t.Context(), ann, path)
				mu.Lock()
				defer mu.Unlock()
				if err == nil && r.Current == 2 {
					good++
				} else if err == nil || estover.KindOf(err) != estover.Conflict {
					t.Errorf("one of many: version %d, %v; want version 2, or a conflict", r.Current, err)
				}
			})
		}
		wg.Wait()
		if h.want("1a:previous 2b:current"); good == 0 {
			t.Error("nobody was told that it is done")
		}
		h.works()
	})
}

// TestSchedule shows R10.
func TestSchedule(t *testing.T) {
	since := time.Date(2026, 3, 2, 12, 30, 0, 0, time.UTC) // a Monday
	for _, c := range []struct {
		schedule, window string
		risk             secret.Risk
		least, most      string
	}{
		{"", "", secret.High, "2026-03-03T10:06:00Z", "2026-03-03T12:30:00Z"},
		{"", "", secret.Standard, "2026-03-08T19:42:00Z", "2026-03-09T12:30:00Z"},
		{"", "", secret.Low, "2026-03-29T12:30:00Z", "2026-04-01T12:30:00Z"},
		{"10h", "", secret.High, "2026-03-02T21:30:00Z", "2026-03-02T22:30:00Z"},
		{"2d", "02:00-05:00", secret.High, "2026-03-05T02:00:00Z", "2026-03-05T02:00:00Z"},
		{"10h", "21:00-02:00", secret.High, "2026-03-02T21:30:00Z", "2026-03-02T22:30:00Z"},
		{"0 3 * * *", "", "", "2026-03-03T03:00:00Z", "2026-03-03T03:00:00Z"},
		{"*/20 12 * * *", "", "", "2026-03-02T12:40:00Z", "2026-03-02T12:40:00Z"},
		{"15 4 * * 7", "", "", "2026-03-08T04:15:00Z", "2026-03-08T04:15:00Z"},
		{"0 0 1 * 5", "", "", "2026-03-06T00:00:00Z", "2026-03-06T00:00:00Z"},
		{"0 0 29 2 *", "", "", "2028-02-29T00:00:00Z", "2028-02-29T00:00:00Z"},
		{"0 6 1-7,20 3-5 *", "", "", "2026-03-03T06:00:00Z", "2026-03-03T06:00:00Z"},
	} {
		got := rotation.Due(rotation.Spec{Schedule: c.schedule, Window: c.window}, since, c.risk, "sec_1", 3).Format(time.RFC3339)
		if got < c.least || got > c.most {
			t.Errorf("%q in %q at the risk %q is due at %s, want between %s and %s", c.schedule, c.window, c.risk, got, c.least, c.most)
		}
	}
	if due := rotation.Due(rotation.Spec{Schedule: "manual"}, since, secret.High, "sec_1", 3); !due.IsZero() {
		t.Errorf("by hand it is due at %s", due)
	}
	// R10: a tenth of the time is what secrets are spread over.
	const week = 7 * 24 * time.Hour
	least, most := week, time.Duration(0)
	for n := range int64(200) {
		due := rotation.Due(rotation.Spec{}, since, secret.Standard, fmt.Sprint("sec_", n%20), n/20).Sub(since)
		least, most = min(least, due), max(most, due)
	}
	if least < week*90/100 || least > week*92/100 || most < week*98/100 || most > week {
		t.Errorf("two hundred versions are due between %s and %s, want them spread over the last tenth of a week", least, most)
	}
	// R7.
	for _, c := range []struct {
		cache, poll, connection int64
		want                    time.Duration
	}{{0, 0, 0, time.Hour}, {60, 0, 0, time.Minute}, {60, 40, 0, 80 * time.Second}, {60, 40, 90, 90 * time.Second}, {100, 40, 90, 100 * time.Second}, {0, 1, 0, 2 * time.Second}} {
		if got := (rotation.Spec{Cache: c.cache, Poll: c.poll, Connection: c.connection}).Grace(); got != c.want {
			t.Errorf("with a cache of %d s, a look every %d s and connections of %d s a version is kept for %s, want %s", c.cache, c.poll, c.connection, got, c.want)
		}
	}
	h := build(t, dbtest.Open(t), newMemory("reader_a", "reader_b"))
	for _, bad := range []rotation.Spec{
		{Target: "orders"},
		{Target: "orders", Users: []string{"a", "a"}},
		{Target: "orders", Users: []string{"a"}},
		{Target: "orders", Users: []string{"a", "b"}, Kind: "three"},
		{Users: []string{"a", "b"}},
		{Target: "orders", Users: []string{"a", "b"}, Schedule: "1s"},
		{Target: "orders", Users: []string{"a", "b"}, Schedule: "60 * * * *"},
		{Target: "orders", Users: []string{"a", "b"}, Schedule: "0 0 31 2 *"},
		{Target: "orders", Users: []string{"a", "b"}, Schedule: "0 0 5-3 2 *"},
		{Target: "orders", Users: []string{"a", "b"}, Window: "02:00"},
		{Target: "orders", Users: []string{"a", "b"}, Window: "02:00-02:00"},
		{Target: "orders", Users: []string{"a", "b"}, UserField: "password"},
	} {
		if _, err := h.x.Put(t.Context(), ann, path, bad); !errors.Is(err, rotation.ErrInvalid) {
			t.Errorf("rotating as %+v: %v, want ErrInvalid", bad, err)
		}
	}
	if _, err := h.x.Put(t.Context(), ann, path, rotation.Spec{Target: "elsewhere", Users: []string{"a", "b"}}); !errors.Is(err, rotation.ErrNotFound) {
		t.Errorf("rotating at a target that there is not: %v, want ErrNotFound", err)
	}
}

// TestSeconds shows that a secret is rotated as often as every five seconds (V31), and
// its pair no more often than within a grace (R7); and that one which may only begin
// for a while after its time waits for the next.
func TestSeconds(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("reader_a", "reader_b"))
		spec := pair
		spec.Schedule, spec.Cache, spec.Connection, spec.Quiet = "5s", 0, 2, 1
		h.put(spec)
		h.pass(time.Second)
		for n := int64(2); n < 5; n++ {
			for second := 0; h.explain().Current < n; second++ {
				if second > 5 {
					t.Fatalf("version %d is not made in %d seconds: %s", n, second, h.explain().Why)
				}
				h.pass(time.Second)
			}
			h.works()
		}
		spec.Schedule = "4s"
		if _, err := h.x.Put(t.Context(), h.ann, path, spec); !errors.Is(err, rotation.ErrInvalid) {
			t.Errorf("rotating every 4 s: %v, want ErrInvalid", err)
		}

		for h.explain().Step != rotation.Idle {
			h.pass(time.Second)
		}
		spec.Schedule, spec.Within = "0 3 * * *", 3600
		h.put(spec)
		made, due := h.explain().Current, h.explain().DueAt
		h.clock.Advance(due.Sub(h.clock.Now()) + time.Hour) // nobody worked meanwhile
		if e := h.pass(time.Second); e.Current != made || !e.DueAt.Equal(due.Add(24*time.Hour)) {
			t.Errorf("an hour after its time there is version %d and the next is due at %s, want %d and %s", e.Current, e.DueAt, made, due.Add(24*time.Hour))
		}
		if err := h.x.Plan(t.Context()); err != nil {
			t.Fatal(err)
		}
		if e := h.explain(); !e.DueAt.Equal(due.Add(24 * time.Hour)) {
			t.Errorf("what has missed its time was brought forward to %s, want %s as before", e.DueAt, due.Add(24*time.Hour))
		}
		h.clock.Advance(h.explain().DueAt.Sub(h.clock.Now()))
		if e := h.pass(59 * time.Minute); e.Current != made+1 {
			t.Errorf("within the hour there is version %d, want %d", e.Current, made+1)
		}
		spec.Schedule = "1h"
		if _, err := h.x.Put(t.Context(), h.ann, path, spec); !errors.Is(err, rotation.ErrInvalid) {
			t.Errorf("a time in which it may begin without a time at which: %v, want ErrInvalid", err)
		}
	})
}

// TestRisk shows that a rise of the risk brings the next rotation forward at once,
// and that what is due begins by itself (R10).
func TestRisk(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("reader_a", "reader_b"))
		spec := pair
		spec.Schedule = ""
		h.put(spec)
		h.pass(time.Second)
		h.want("1a:current") // the first is made at once
		week := h.explain().DueAt
		h.pass(3 * 24 * time.Hour)
		h.want("1a:current")
		h.risk = secret.High
		if err := h.x.Plan(t.Context()); err != nil {
			t.Fatal(err)
		}
		if e := h.explain(); !e.DueAt.Before(week) {
			t.Errorf("at a high risk it is due at %s, as before", e.DueAt)
		}
		h.pass(time.Second)
		h.want("1a:previous 2b:current")
		if _, err := h.secrets.Create(t.Context(), ann, secret.Spec{Path: "db/other"}); err != nil {
			t.Fatal(err)
		}
		other := pair
		other.Users = []string{"reader_c", "reader_b"}
		if _, err := h.x.Put(t.Context(), ann, "db/other", other); !errors.Is(err, rotation.ErrInvalid) {
			t.Errorf("two rotations of one user: %v, want ErrInvalid", err)
		}
	})
}

// TestNothingShows looks for passwords in what is told of a rotation.
func TestNothingShows(t *testing.T) {
	h := build(t, dbtest.Open(t), newMemory("reader_a", "reader_b"))
	h.put(pair)
	h.run()
	h.run()
	told, err := json.Marshal(h.explain())
	if err != nil {
		t.Fatal(err)
	}
	for user, list := range h.target.users {
		for _, p := range list {
			if strings.Contains(string(told), p) {
				t.Errorf("the password of %s is in %s", user, told)
			}
		}
	}
}

// TestWhose: with a version that there is one logs in at the target, so that nobody has
// it rotated who may not add a destination to the secret.
func TestWhose(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory("only"))
		oscar := estover.Caller{Tenant: "acme", Subject: estover.User("usr_oscar"), Roles: []estover.Role{estover.Operator}}
		spec := rotation.Spec{Target: "orders", Kind: rotation.SingleSlot, Users: []string{"only"}, Cache: 60, Quiet: 30, Schedule: "manual"}
		_, err := h.secrets.Write(t.Context(), h.ann, path, map[string]estover.Secret{
			"username": estover.NewSecret([]byte("only")), "password": estover.NewSecret([]byte("first-of-only")),
		}, secret.Any)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.x.Put(t.Context(), oscar, path, spec); !errors.Is(err, rotation.ErrNotOwner) {
			t.Errorf("an operator has somebody else's secret sent to a target: %v, want ErrNotOwner", err)
		}
		wrong := spec
		wrong.Users = []string{"a guess"}
		if _, err := h.x.Put(t.Context(), oscar, path, wrong); !errors.Is(err, rotation.ErrNotOwner) {
			t.Errorf("an operator guesses the user of a secret: %v, want ErrNotOwner", err)
		}
		owner := h.ann
		owner.Roles = []estover.Role{estover.Operator}
		if _, err := h.x.Put(t.Context(), owner, path, spec); err != nil {
			t.Errorf("its owner has it rotated: %v", err)
		}
	})
}

// TestDeleted: a current version that somebody has taken out of use is replaced like
// any other, in an emergency too. What stands in it beside the log-in stays, unless it
// was destroyed.
func TestDeleted(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		for _, kind := range []rotation.Kind{rotation.TwoUsers, rotation.SingleSlot} {
			for _, destroyed := range []bool{false, true} {
				h := buildAt(t, d, newMemory("reader_a", "reader_b"), estover.TenantID(fmt.Sprintf("acme-%s-%t", kind, destroyed)))
				fields := map[string]estover.Secret{}
				for k, v := range map[string]string{"username": "reader_a", "password": "first-of-reader_a", "host": "db.example"} {
					fields[k] = estover.NewSecret([]byte(v))
				}
				if _, err := h.secrets.Write(t.Context(), h.ann, path, fields, secret.Any); err != nil {
					t.Fatal(err)
				}
				spec := pair
				if spec.Kind = kind; kind == rotation.SingleSlot {
					spec.Users = spec.Users[:1]
				}
				h.put(spec)
				out := h.secrets.Delete
				if destroyed {
					out = h.secrets.Destroy
				}
				if err := out(t.Context(), h.ann, path, 1); err != nil {
					t.Fatal(err)
				}
				left := "unknown"
				for range 5 {
					var err error
					if left, err = h.x.Replace(t.Context(), h.ann, path, 1, "it was seen", false); err != nil {
						t.Fatal(err)
					}
					h.clock.Advance(rotation.HoldTime)
					h.tick(h.x)
				}
				if left != "" {
					t.Errorf("%s: replacing a version that is out of use leaves %q", kind, left)
				}
				now, err := h.secrets.Values(t.Context(), h.tenant, path, 2)
				if err != nil {
					t.Fatal(err)
				}
				if host := string(now["host"].Reveal()); host != map[bool]string{false: "db.example"}[destroyed] {
					t.Errorf("%s, destroyed: %t: the next version has the host %q", kind, destroyed, host)
				}
				if !h.target.accepts(engine.Credential{User: string(now["username"].Reveal()), Secret: now["password"]}) {
					t.Errorf("%s, destroyed: %t: the next version does not log in", kind, destroyed)
				}
				if h.target.accepts(engine.Credential{User: "reader_a", Secret: fields["password"]}) {
					t.Errorf("%s, destroyed: %t: the version that was taken out of use logs in", kind, destroyed)
				}
				if err := d.Do(t.Context(), h.tenant, func(tx *db.Tx) error {
					_, err := tx.Exec(t.Context(), "update rotation set ended_at = $2 where tenant_id = $1", tx.Tenant(), tx.Now())
					return err
				}); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// TestDestroyed: a version that somebody destroys on its way ends its rotation, and no
// other.
func TestDestroyed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		for _, point := range []string{"after R1", "after R2"} {
			h := build(t, d, newMemory("reader_a", "reader_b"))
			h.put(pair)
			first := h.run().Current
			h.x.Reached(func(at string) error {
				if at == point {
					return rotation.ErrCrash
				}
				return nil
			})
			h.clock.Advance(time.Hour)
			h.tick(h.x)
			if _, err := h.x.Run(t.Context(), h.ann, path); !errors.Is(err, rotation.ErrCrash) {
				t.Fatalf("%s: %v", point, err)
			}
			h.x.Reached(nil)
			if err := h.secrets.Destroy(t.Context(), h.ann, path, first+1); err != nil {
				t.Fatal(err)
			}
			if e := h.pass(2 * rotation.HoldTime); e.Step != rotation.Idle || e.Current != first {
				t.Errorf("%s, destroyed: %s with version %d (%s), want idle with %d", point, e.Step, e.Current, e.LastError, first)
			}
			h.works()
			if r := h.run(); r.Current != first+2 {
				t.Errorf("%s: the next is version %d, want %d", point, r.Current, first+2)
			}
			h.works()
			h.x.Force(t.Context(), h.ann, path, "a test")
			if err := h.x.Remove(t.Context(), h.ann, path); err != nil {
				t.Fatal(err)
			}
			if err := h.secrets.Remove(t.Context(), h.ann, path); err != nil {
				t.Fatal(err)
			}
		}
	})
}
