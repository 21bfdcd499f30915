package emergency_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/evidence"
	"estover.dev/internal/gateway"
	"estover.dev/internal/hold"
	"estover.dev/internal/incident"
	"estover.dev/internal/incident/emergency"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/rotation"
	"estover.dev/internal/session"
)

var (
	admin = oauthtest.Admin
	eve   = estover.Caller{Tenant: "evil", Subject: estover.User("usr_eve"), Roles: []estover.Role{estover.Admin}}
)

// A memory is a target in memory: users and their passwords.
type memory struct {
	engine.Engine // what is not needed here
	mu            sync.Mutex
	users         map[string]string
	down          bool
}

func (m *memory) SetSecret(_ context.Context, user string, s, _ estover.Secret) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return engine.ErrUnreachable
	}
	m.users[user] = string(s.Reveal())
	return nil
}

func (m *memory) Verify(_ context.Context, c engine.Credential) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.users[c.User] != string(c.Secret.Reveal()) {
		return engine.ErrWrongSecret
	}
	return nil
}

func (m *memory) Sessions(context.Context, string) ([]engine.Session, error) { return nil, nil }
func (m *memory) EndSessions(context.Context, string) error                  { return nil }

// A house is what an emergency happens in.
type house struct {
	t        *testing.T
	d        *db.DB
	w        *oauthtest.World
	bot      *oauthtest.Agent
	session  session.Session
	target   *memory
	secrets  *secret.Secrets
	rotation *rotation.Rotations
	incident *incident.Incidents
	evidence *evidence.Evidence
	slots    map[string][]string // of resources
	revoked  map[string]int      // certificates of agents
	x        *emergency.Emergencies
}

func build(t *testing.T, d *db.DB) *house {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root.key")
	w := oauthtest.Node(t, d, root)
	ctx, cancel := context.WithCancel(t.Context())
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		_ = w.Guard.Log().Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-logged
	})
	h := &house{t: t, d: d, w: w, target: &memory{users: map[string]string{}}, slots: map[string][]string{}, revoked: map[string]int{}}
	sealer, err := seal.Open(t.Context(), d, seal.File{Path: root})
	if err != nil {
		t.Fatal(err)
	}
	sealer.Hold(secret.Holding)
	h.secrets = secret.New(w.Guard, sealer, secret.Options{Logger: slog.New(slog.DiscardHandler)})
	h.rotation = rotation.New(rotation.Config{
		Guard: w.Guard, Secrets: h.secrets, Logger: slog.New(slog.DiscardHandler),
		Target: func(context.Context, estover.TenantID, string) (rotation.Target, error) {
			return rotation.Target{ID: "tgt_1", Name: "orders"}, nil
		},
		Engine: func(context.Context, estover.TenantID, string) (engine.Engine, error) { return h.target, nil },
	})
	if err := h.rotation.Tick(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.evidence = evidence.New(w.Guard, w.Keys, nil, nil)
	h.incident = incident.New(incident.Config{
		Guard: w.Guard, Agents: w.Agents, Sessions: w.Sessions, Holds: hold.New(w.Guard), Gateway: &gateway.Live{}, Evidence: h.evidence,
		Deciders: func(context.Context, *db.Tx) ([]string, error) { return nil, nil },
		Person: func(ctx context.Context, tx *db.Tx, id string) error {
			_, err := directory.Known(ctx, tx, id)
			return err
		},
		Tenant: func(context.Context, estover.TenantID) error { return nil },
		Tenants: func(context.Context) ([]estover.TenantID, error) {
			return []estover.TenantID{estover.DefaultTenant}, nil
		},
	})
	h.x = emergency.New(emergency.Config{
		Guard: w.Guard, Incidents: h.incident, Evidence: h.evidence, Secrets: h.secrets, Rotations: h.rotation, Of: h.incident.Covers,
		Slots: func(_ context.Context, _ *db.Tx, id string) ([]string, error) {
			if h.slots[id] == nil {
				return nil, emergency.ErrTarget.With("There is no resource %s.", id)
			}
			return h.slots[id], nil
		},
		Known: func(ctx context.Context, tx *db.Tx, id string) error {
			_, err := agent.Load(ctx, tx, id)
			return err
		},
		Certificates: func(_ context.Context, _ estover.Caller, agent, _ string) (int, error) {
			h.revoked[agent]++
			return 0, nil
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	h.bot = w.Agent("bot")
	if h.session, err = w.Sessions.Open(t.Context(), admin, session.Wish{Agent: h.bot.ID}); err != nil {
		t.Fatal(err)
	}
	return h
}

// as is the agent, in its session.
func (h *house) as() estover.Caller {
	return estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.Agent(h.bot.ID), Session: h.session.ID, Purpose: "a test"}
}

// secretAt makes a secret, rotated or written by hand.
func (h *house) secretAt(path string, spec secret.Spec, rotated bool) {
	h.t.Helper()
	ctx := h.t.Context()
	spec.Path, spec.Destinations = path, []string{"db.example"}
	if _, err := h.secrets.Create(ctx, admin, spec); err != nil {
		h.t.Fatal(err)
	}
	if !rotated {
		h.write(path)
		return
	}
	if _, err := h.rotation.Put(ctx, admin, path, rotation.Spec{Target: "orders", Users: []string{path + "-a", path + "-b"}, Schedule: "manual"}); err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.rotation.Run(ctx, admin, path); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) write(path string) {
	h.t.Helper()
	if _, err := h.secrets.Write(h.t.Context(), admin, path, map[string]estover.Secret{"value": estover.NewSecret([]byte(estover.NewID("v")))}, secret.Any); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) read(path string) secret.Plain {
	h.t.Helper()
	p, err := h.secrets.Read(h.t.Context(), h.as(), path, 0, "")
	if err != nil {
		h.t.Fatal(err)
	}
	return p
}

func told(e emergency.Emergency) string {
	var b strings.Builder
	for _, i := range e.Items {
		fmt.Fprintf(&b, "%s %s %s; ", i.Kind, strings.TrimPrefix(i.Ref, "agent:"), i.State)
	}
	return b.String()
}

// verified checks a report offline, as whoever got it would.
func (h *house) verified(id string) *attest.Report {
	h.t.Helper()
	report, err := h.x.Report(h.t.Context(), admin, id)
	if err != nil {
		h.t.Fatal(err)
	}
	trust, err := h.evidence.Trust(h.t.Context(), estover.DefaultTenant)
	if err != nil {
		h.t.Fatal(err)
	}
	keys, err := attest.ParseTrust([]byte(trust))
	if err != nil {
		h.t.Fatal(err)
	}
	return attest.Verify(report, keys)
}

// TestAgent shows E1–E5: the agent is cut off, its certificates are taken back,
// what it has read is rotated and what it has only used is not, and a secret that
// is not rotated here waits for a person.
func TestAgent(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d)
		ctx := t.Context()
		h.secretAt("db/read", secret.Spec{}, true)
		h.secretAt("db/worse", secret.Spec{Class: estover.Restricted}, true)
		h.secretAt("db/used", secret.Spec{}, true)
		h.secretAt("hand/key", secret.Spec{}, false)
		old := map[string]secret.Plain{"db/read": h.read("db/read"), "db/worse": h.read("db/worse")}
		h.read("hand/key")
		used, err := h.secrets.Use(ctx, h.as(), "db/used", "password", "db.example:443")
		if err != nil {
			t.Fatal(err)
		}
		wish := emergency.Wish{Scope: emergency.Agent, Target: h.bot.ID, Reason: "it sends customers to strangers"}

		plan, err := h.x.Plan(ctx, admin, wish)
		if want := fmt.Sprintf("containment %[1]s pending; leases %[1]s pending; certificates %[1]s pending; secret db/worse pending; secret db/read pending; secret hand/key pending; ", h.bot.ID); err != nil || told(plan) != want || plan.Injected != 1 {
			t.Errorf("planned: %s, %d only injected, %v; want %s and 1", told(plan), plan.Injected, err, want)
		}
		if a, err := h.w.Agents.Get(ctx, admin, h.bot.ID); err != nil || len(a.Holds) != 0 {
			t.Errorf("a plan has held the agent: %v, %v", a.Holds, err)
		}

		e, err := h.x.Run(ctx, admin, wish)
		if want := fmt.Sprintf("containment %[1]s done; leases %[1]s done; certificates %[1]s done; secret db/worse done; secret db/read done; secret hand/key by_hand; ", h.bot.ID); err != nil || told(e) != want {
			t.Fatalf("what was done: %s, %v; want %s", told(e), err, want)
		}
		if a, err := h.w.Agents.Get(ctx, admin, h.bot.ID); err != nil || len(a.Holds) != 1 {
			t.Errorf("the agent has the holds %v, %v; want the containment's", a.Holds, err)
		}
		if s, err := h.w.Sessions.Get(ctx, admin, h.session.ID); err != nil || s.State != session.Ended {
			t.Errorf("its session is %s, %v", s.State, err)
		}
		if h.revoked[h.bot.ID] != 1 {
			t.Errorf("its certificates were taken back %d times", h.revoked[h.bot.ID])
		}
		for path, p := range old {
			c := engine.Credential{User: string(p.Values["username"].Reveal()), Secret: p.Values["password"]}
			if err := h.target.Verify(ctx, c); !errors.Is(err, engine.ErrWrongSecret) {
				t.Errorf("what the agent has read of %s: %v, want ErrWrongSecret", path, err)
			}
		}
		if now, err := h.secrets.Describe(ctx, estover.DefaultTenant, "db/used"); err != nil || secret.VersionID(now.ID, now.CurrentVersion) != used.Version {
			t.Errorf("what was only injected has become version %d, %v", now.CurrentVersion, err)
		}
		if step := h.verified(e.ID).Step(attest.ZeroStep); step.Result != attest.Fail || !strings.Contains(step.Detail, "1 of the 6 things") {
			t.Errorf("the report of what is not done: %s %s", step.Result, step.Detail)
		}

		// Whoever asks for the same again goes on with it.
		again, err := h.x.Run(ctx, admin, wish)
		if err != nil || again.ID != e.ID || !again.DoneAt.IsZero() {
			t.Errorf("asked again: %s, done %s, %v; want %s, and not done", again.ID, again.DoneAt, err, e.ID)
		}
		h.write("hand/key")
		if err := h.x.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		e, err = h.x.Get(ctx, admin, e.ID)
		if err != nil || e.DoneAt.IsZero() {
			t.Errorf("once another version was written: %s, %v", told(e), err)
		}
		if report := h.verified(e.ID); !report.OK() {
			t.Errorf("the last report: %+v", report.Steps)
		}

		if _, err := h.x.Get(ctx, eve, e.ID); !errors.Is(err, emergency.ErrNotFound) {
			t.Errorf("another organisation's: %v, want ErrNotFound", err)
		}
		if _, err := h.x.Report(ctx, eve, e.ID); !errors.Is(err, emergency.ErrNotFound) {
			t.Errorf("the report of another organisation's: %v, want ErrNotFound", err)
		}
		if _, err := h.x.Run(ctx, eve, wish); !errors.Is(err, agent.ErrNotFound) {
			t.Errorf("an agent of another organisation: %v, want not found", err)
		}
		for _, bad := range []emergency.Wish{{Scope: "planet", Target: "x", Reason: "r"}, {Scope: emergency.Agent, Reason: "r"}, {Scope: emergency.Agent, Target: h.bot.ID}} {
			if _, err := h.x.Run(ctx, admin, bad); estover.KindOf(err) != estover.Invalid {
				t.Errorf("%+v: %v, want it invalid", bad, err)
			}
		}
	})
}

// TestOthers shows an emergency about a secret, a resource and a containment.
func TestOthers(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d)
		ctx := t.Context()
		h.secretAt("db/one", secret.Spec{}, true)
		h.secretAt("db/two", secret.Spec{}, true)
		h.secretAt("db/three", secret.Spec{}, true)
		h.slots["res_crm"] = []string{"db/one", "db/three"}
		person := admin
		if _, err := h.secrets.Read(ctx, person, "db/one", 0, "a look"); err != nil {
			t.Fatal(err)
		}
		h.read("db/two")

		e, err := h.x.Run(ctx, admin, emergency.Wish{Scope: emergency.Secret, Target: "db/three", Reason: "it is on a forum"})
		if err != nil || told(e) != "secret db/three done; " || e.DoneAt.IsZero() {
			t.Errorf("about a secret: %s, %v", told(e), err)
		}
		e, err = h.x.Run(ctx, admin, emergency.Wish{Scope: emergency.Resource, Target: "res_crm", Reason: "it answers with strangers' data"})
		// The catalogue has no such resource, so it is not contained; that holds up nothing else.
		if want := "containment resource:res_crm failed; secret db/one done; "; err != nil || told(e) != want || !e.DoneAt.IsZero() {
			t.Errorf("about a resource: %s, %v; want %s", told(e), err, want)
		}
		if _, err := h.x.Run(ctx, admin, emergency.Wish{Scope: emergency.Resource, Target: "res_none", Reason: "r"}); !errors.Is(err, emergency.ErrTarget) {
			t.Errorf("a resource that is not there: %v", err)
		}
		c, err := h.incident.Contain(ctx, admin, incident.Target{Scope: incident.Agent, ID: h.bot.ID}, "a test")
		if err != nil {
			t.Fatal(err)
		}
		e, err = h.x.Run(ctx, admin, emergency.Wish{Scope: emergency.Incident, Target: c.ID, Reason: "what it had"})
		if err != nil || !strings.Contains(told(e), "secret db/two done") || strings.Contains(told(e), "db/one") || e.DoneAt.IsZero() {
			t.Errorf("about a containment: %s, %v", told(e), err)
		}
		if _, err := h.x.Run(ctx, admin, emergency.Wish{Scope: emergency.Incident, Target: "ctn_none", Reason: "r"}); !errors.Is(err, incident.ErrNotFound) {
			t.Errorf("a containment that is not there: %v", err)
		}

		// What somebody has changed elsewhere is settled by their word.
		h.secretAt("hand/other", secret.Spec{}, false)
		e, err = h.x.Run(ctx, admin, emergency.Wish{Scope: emergency.Secret, Target: "hand/other", Reason: "it is there too"})
		if err != nil || told(e) != "secret hand/other by_hand; " {
			t.Errorf("about a secret that is written by hand: %s, %v", told(e), err)
		}
		same, err := h.x.Run(ctx, admin, emergency.Wish{Scope: emergency.Secret, Target: "hand/other", Reason: "it is there too"})
		if err != nil || same.ID != e.ID {
			t.Errorf("about the same again: %s, %v, want %s", same.ID, err, e.ID)
		}
		// What asks for less does not stand in the way of what asks for more.
		less, err := h.x.Run(ctx, admin, emergency.Wish{Scope: emergency.Secret, Target: "hand/other", Reason: "it is there too", Since: time.Now().Add(-time.Hour)})
		if err != nil || less.ID == e.ID {
			t.Errorf("about a shorter time: %s, %v, want another", less.ID, err)
		}
		if _, err := h.x.Settle(ctx, admin, e.ID, 2, "somebody has"); !errors.Is(err, emergency.ErrTarget) {
			t.Errorf("settling what there is not: %v, want ErrTarget", err)
		}
		if _, err := h.x.Settle(ctx, eve, e.ID, 1, "somebody has"); !errors.Is(err, emergency.ErrNotFound) {
			t.Errorf("settling another organisation's: %v, want ErrNotFound", err)
		}
		if e, err = h.x.Settle(ctx, admin, e.ID, 1, "changed at the provider"); err != nil || e.DoneAt.IsZero() || told(e) != "secret hand/other done; " {
			t.Errorf("settled: %s, done at %s, %v", told(e), e.DoneAt, err)
		}

		// Old versions are kept while others use them, if that is what is asked for.
		e, err = h.x.Run(ctx, admin, emergency.Wish{Scope: emergency.Secret, Target: "db/one", Reason: "to be safe", Keep: true})
		if err != nil || e.Items[0].State != emergency.Pending || !strings.Contains(e.Items[0].Note, "kept while it is used") {
			t.Errorf("with old versions kept: %+v, %v", e.Items, err)
		}
		if r, err := h.rotation.Get(ctx, admin, "db/one"); err != nil || r.Current != 3 || r.Previous != 2 {
			t.Errorf("the secret has version %d, and before %d, %v", r.Current, r.Previous, err)
		}
	})
}

// errDied is how a server ends in the middle.
var errDied = errors.New("the server is gone")

// TestKilled shows that a run which dies at any item, before or after its effect,
// is brought to its end by the second, with fifty secrets.
func TestKilled(t *testing.T) {
	h := build(t, dbtest.Open(t))
	ctx := t.Context()
	const many = 50
	old := map[string]engine.Credential{}
	for n := range many {
		path := fmt.Sprintf("db/many%02d", n)
		h.secretAt(path, secret.Spec{}, true)
		p := h.read(path)
		old[path] = engine.Credential{User: string(p.Values["username"].Reveal()), Secret: p.Values["password"]}
	}
	wish := emergency.Wish{Scope: emergency.Agent, Target: h.bot.ID, Reason: "a test"}
	items := map[int64]bool{}
	for _, died := range []struct {
		at    int64
		after bool
	}{{1, false}, {1, true}, {3, true}, {17, false}, {30, true}} {
		h.x.Reached(func(i emergency.Item, done bool) error {
			if items[i.N] = true; i.N == died.at && done == died.after {
				return errDied
			}
			return nil
		})
		if _, err := h.x.Run(ctx, admin, wish); !errors.Is(err, errDied) {
			t.Fatalf("a run that dies at %d: %v", died.at, err)
		}
	}
	h.x.Reached(nil)
	h.target.down = true
	e, err := h.x.Run(ctx, admin, wish)
	if err != nil || !e.DoneAt.IsZero() {
		t.Fatalf("with the target down: done at %s, %v", e.DoneAt, err)
	}
	h.target.down = false
	dbtest.NewClock(h.d).Advance(10 * time.Minute)
	if err := h.rotation.Tick(ctx); err != nil {
		t.Fatal(err)
	}
	if e, err = h.x.Run(ctx, admin, wish); err != nil || e.DoneAt.IsZero() || len(e.Items) != 3+many {
		t.Fatalf("the last run: %s, %v", told(e), err)
	}
	for path, c := range old {
		if err := h.target.Verify(ctx, c); !errors.Is(err, engine.ErrWrongSecret) {
			t.Errorf("what the agent has read of %s: %v, want ErrWrongSecret", path, err)
		}
		p, err := h.secrets.Read(ctx, admin, path, 0, "a test")
		if err != nil {
			t.Fatal(err)
		}
		if err := h.target.Verify(ctx, engine.Credential{User: string(p.Values["username"].Reveal()), Secret: p.Values["password"]}); err != nil {
			t.Errorf("the current version of %s: %v", path, err)
		}
	}
	list, err := h.x.List(ctx, admin, 10)
	if err != nil || len(list) != 1 {
		t.Errorf("%d emergencies, %v; want the one", len(list), err)
	}
	if report := h.verified(e.ID); !report.OK() {
		t.Errorf("the last report: %+v", report.Steps)
	}
}
