package emergency_test

import (
	"context"
	cx509 "crypto/x509"
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
	"estover.dev/attest"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/evidence"
	"estover.dev/internal/gateway"
	"estover.dev/internal/guard"
	"estover.dev/internal/hold"
	"estover.dev/internal/incident"
	"estover.dev/internal/incident/emergency"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/pki"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/lease/leasetest"
	"estover.dev/internal/secret/rotation"
	"estover.dev/internal/secret/target"
	"estover.dev/internal/session"
	"estover.dev/internal/ticket"
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
	users    *leasetest.Server // where leases are
	targets  *target.Targets
	leases   *lease.Leases
	pki      *pki.PKI
	tickets  *ticket.Tickets
	slots    map[string][]string // of resources
	x        *emergency.Emergencies
}

// lingers is what goes on at the targets after a revocation.
const lingers = "What is bound already stays so until its client closes it."

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
	h := &house{t: t, d: d, w: w, target: &memory{users: map[string]string{}}, users: &leasetest.Server{Lingers: lingers}, slots: map[string][]string{}}
	sealer, err := seal.Open(t.Context(), d, seal.File{Path: root})
	if err != nil {
		t.Fatal(err)
	}
	sealer.Hold(append(pki.Holdings, secret.Holding, lease.Holding)...)
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
	h.targets = target.New(w.Guard, h.secrets, target.Options{Kinds: []engine.Kind{h.users.Kind()}, InUse: lease.AtTarget, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(h.targets.Close)
	h.leases = lease.New(w.Guard, sealer, h.targets, lease.Options{
		Action: func(context.Context, estover.TenantID, string, string) (any, guard.Effect, error) {
			return nil, guard.Reads, nil
		},
		Resource: func(_ context.Context, _ *db.Tx, ref, _ string) (string, error) { return ref, nil },
		Session: func(ctx context.Context, tx *db.Tx, id string) (time.Time, error) {
			return time.Time{}, w.Sessions.Hold(ctx, &guard.Tx{Tx: tx}, id)
		},
		Grant: func(context.Context, estover.Caller, string, string) (lease.Grant, error) { return lease.Grant{}, nil },
		Quota: 2000, Look: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
	})
	for _, name := range []string{"main", "other"} {
		if _, err := h.targets.Create(t.Context(), admin, target.Spec{Name: name, Kind: "memory", Address: leasetest.Host}); err != nil {
			t.Fatal(err)
		}
		if _, err := h.leases.PutRole(t.Context(), admin, lease.RoleSpec{Name: name, Target: name, Delivery: lease.Plaintext, Resource: "res_db", Action: "read", PerMinute: 100_000}); err != nil {
			t.Fatal(err)
		}
		if c, err := h.leases.CheckRole(t.Context(), admin, name); err != nil || !c.OK {
			t.Fatalf("the round for the role %s: %+v, %v", name, c, err)
		}
	}
	one := func(ctx context.Context, tenant estover.TenantID, id string) (session.Session, error) {
		s, err := w.Sessions.Snapshot(ctx, tenant, id)
		if err != nil {
			return session.Session{}, err
		}
		return *s, nil
	}
	h.pki = pki.New(w.Guard, sealer, pki.Options{
		Session: func(ctx context.Context, tenant estover.TenantID, id string) (out pki.Session, err error) {
			s, err := one(ctx, tenant, id)
			out.Agent, out.ExpiresAt = s.Agent, s.ExpiresAt
			out.Epoch = db.Epoch{Table: session.Table, ID: id, Epoch: s.Epoch}
			return out, err
		},
		Until: func(context.Context, estover.Caller, string, string, map[string]string) (time.Time, error) {
			return time.Time{}, nil
		},
		URL:    func(_ estover.TenantID, id string) string { return "https://estover.example/pki/" + id },
		Logger: slog.New(slog.DiscardHandler),
	})
	h.tickets = ticket.New(w.Guard, ticket.Options{
		Sealer: sealer, Tenant: func(context.Context, estover.TenantID) error { return nil },
		Session: func(ctx context.Context, tenant estover.TenantID, id string) (ticket.Session, error) {
			s, err := one(ctx, tenant, id)
			return ticket.Session{ID: id, Agent: s.Agent, Purpose: s.Purpose, Expires: s.ExpiresAt, Epoch: s.Epoch}, err
		},
		Hold: func(ctx context.Context, tx *guard.Tx, id string) error { return w.Sessions.Hold(ctx, tx, id) },
		Agent: func(_ context.Context, _ estover.Caller, _ ticket.Way, name, _ string) (string, bool, error) {
			return name, false, nil
		},
		Ended: func(ctx context.Context, tx *guard.Tx, ids []string) error {
			_, err := h.leases.EndOfTokens(ctx, tx, ids)
			return err
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	h.evidence = evidence.New(w.Guard, w.Keys, nil, nil)
	h.incident = incident.New(incident.Config{
		Guard: w.Guard, Agents: w.Agents, Sessions: w.Sessions, Holds: hold.New(w.Guard), Gateway: &gateway.Live{}, Leases: h.leases, Patience: 3 * time.Second, Evidence: h.evidence,
		Certified: func(ctx context.Context, tx *db.Tx, agents []string, all bool, since time.Time) ([]string, error) {
			return pki.LingersSince(ctx, tx, pki.Crowd{Agents: agents, All: all}, since)
		},
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
		Leases: h.leases, PKI: h.pki, Tickets: h.tickets,
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

// working has the workers take leases away until the test ends, or until it is
// called.
func (h *house) working() (stop func()) {
	ctx, cancel := context.WithCancel(h.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = h.leases.Run(ctx)
	}()
	return sync.OnceFunc(func() {
		cancel()
		<-done
	})
}

// lease makes some leases for the agent, side by side.
func (h *house) lease(role string, many int) {
	h.t.Helper()
	var all sync.WaitGroup
	failed := make(chan error, many)
	turn := make(chan struct{}, 64)
	for range many {
		all.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			if _, err := h.leases.Create(h.t.Context(), h.as(), lease.Wish{Role: role}); err != nil {
				failed <- err
			}
		})
	}
	all.Wait()
	close(failed)
	for err := range failed {
		h.t.Fatalf("a lease of %s: %v", role, err)
	}
}

// certify gives somebody a certificate, and an authority has made it.
func (h *house) certify(c estover.Caller) (authority string) {
	h.t.Helper()
	if _, err := h.pki.Role(h.t.Context(), admin, "", pki.X509, "bots"); errors.Is(err, pki.ErrNoRole) {
		if _, _, err := h.pki.Generate(h.t.Context(), admin, pki.Plan{Name: "root", CommonName: "Acme"}, false); err != nil {
			h.t.Fatal(err)
		}
		if _, err := h.pki.PutRole(h.t.Context(), admin, "", pki.X509, "bots", pki.Spec{X509: &pki.X509Spec{Domains: []string{"bots.example"}, Subdomains: true, Client: true}}); err != nil {
			h.t.Fatal(err)
		}
	}
	if _, err := h.pki.Issue(h.t.Context(), c, pki.Wish{Role: "bots", CommonName: "one.bots.example"}); err != nil {
		h.t.Fatal(err)
	}
	a, err := h.pki.Issuer(h.t.Context(), c.Tenant, "", pki.X509, "root")
	if err != nil {
		h.t.Fatal(err)
	}
	return a.ID
}

// sign gives somebody a certificate of SSH, and an authority has made it.
func (h *house) sign(c estover.Caller) (authority string) {
	h.t.Helper()
	a, _, err := h.pki.Generate(h.t.Context(), admin, pki.Plan{Name: "ssh", Kind: pki.SSH, Algorithm: pki.Ed25519}, false)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.pki.PutRole(h.t.Context(), admin, "", pki.SSH, "hosts", pki.Spec{SSH: &pki.SSHSpec{User: true, Principals: []string{"deploy"}}}); err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.pki.IssueSSH(h.t.Context(), c, pki.SSHWish{Role: "hosts", Principals: []string{"deploy"}}, pki.Ed25519); err != nil {
		h.t.Fatal(err)
	}
	return a.ID
}

var appWay = ticket.Way{ID: "mnt_app", Path: "auth/approle"}

// enter gives an agent a ticket in its session, and a secret-id to log in with.
func (h *house) enter(c estover.Caller) ticket.Made {
	h.t.Helper()
	m, err := h.tickets.Create(h.t.Context(), c, nil, ticket.Wish{})
	if err != nil {
		h.t.Fatal(err)
	}
	role := "app-" + c.Subject.ID()
	if _, err := h.tickets.ChangeRole(h.t.Context(), admin, appWay, ticket.AppRoles, role, c.Subject.ID(), func(*ticket.Role) error { return nil }); err != nil {
		h.t.Fatal(err)
	}
	if _, _, err := h.tickets.CreateSecretID(h.t.Context(), admin, appWay, role, ticket.SecretWish{}); err != nil {
		h.t.Fatal(err)
	}
	return m
}

// told is how far each thing is, with how many a group has.
func told(e emergency.Emergency) string {
	var b strings.Builder
	for _, i := range e.Items {
		many := ""
		if i.Count > 0 {
			many = fmt.Sprintf(" of %d", i.Count)
		}
		fmt.Fprintf(&b, "%s%s %s %s; ", i.Kind, many, strings.TrimPrefix(i.Ref, "agent:"), i.State)
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
	return h.verify(report)
}

// verify is what whoever has a receipt reads in it.
func (h *house) verify(receipt []byte) *attest.Report {
	h.t.Helper()
	trust, err := h.evidence.Trust(h.t.Context(), estover.DefaultTenant)
	if err != nil {
		h.t.Fatal(err)
	}
	keys, err := attest.ParseTrust([]byte(trust))
	if err != nil {
		h.t.Fatal(err)
	}
	return attest.Verify(receipt, keys)
}

// TestAgent shows E1–E5: the agent is cut off, its leases, its certificates, in its
// session or not, and its ways in at the door are taken away and counted, what it
// has read is rotated and what it has only used is not, and a secret that is not
// rotated here waits for a person.
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
		h.lease("main", 3)
		h.lease("other", 2)
		defer h.working()()
		x509, ssh := h.certify(h.as()), h.sign(h.as())
		if err := d.Do(ctx, estover.DefaultTenant, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `update pki_certificate set session_id = '' where tenant_id = $1 and kind = 'x509'`, tx.Tenant())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		entered := h.enter(h.as())
		wish := emergency.Wish{Scope: emergency.Agent, Target: h.bot.ID, Reason: "it sends customers to strangers"}

		plan, err := h.x.Plan(ctx, admin, wish)
		all := fmt.Sprintf("containment %s pending; leases of 3 target:main pending; leases of 2 target:other pending; certificates of 1 authority:%s pending; ssh_certificates of 1 authority:%s pending; "+
			"tokens of 1 door pending; secret_ids of 1 door pending; secret db/worse pending; secret db/read pending; secret hand/key pending; ", h.bot.ID, x509, ssh)
		if want := all; err != nil || told(plan) != want || plan.Injected != 1 {
			t.Errorf("planned: %s, %d only injected, %v; want %s and 1", told(plan), plan.Injected, err, want)
		}
		// What was read before the time that somebody names does not matter.
		later := wish
		later.Since = d.Now().Add(time.Second)
		if plan, err := h.x.Plan(ctx, admin, later); err != nil || strings.Contains(told(plan), "secret db/") || !strings.Contains(told(plan), "leases of 3") || plan.Injected != 0 {
			t.Errorf("planned for what is read from now on: %s, %d only injected, %v; want no secrets", told(plan), plan.Injected, err)
		}
		if a, err := h.w.Agents.Get(ctx, admin, h.bot.ID); err != nil || len(a.Holds) != 0 {
			t.Errorf("a plan has held the agent: %v, %v", a.Holds, err)
		}

		e, err := h.x.Run(ctx, admin, wish)
		if want := strings.Replace(strings.ReplaceAll(all, "pending", "done"), "hand/key done", "hand/key by_hand", 1); err != nil || told(e) != want {
			t.Fatalf("what was done: %s, %v; want %s", told(e), err, want)
		}
		if a, err := h.w.Agents.Get(ctx, admin, h.bot.ID); err != nil || len(a.Holds) != 1 {
			t.Errorf("the agent has the holds %v, %v; want the containment's", a.Holds, err)
		}
		if s, err := h.w.Sessions.Get(ctx, admin, h.session.ID); err != nil || s.State != session.Ended {
			t.Errorf("its session is %s, %v", s.State, err)
		}
		if users := h.users.Users(); len(users) != 0 {
			t.Errorf("at the targets there are still %v", users)
		}
		if left, err := h.pki.Certificates(ctx, admin, pki.CertificateFilter{Kind: pki.X509, Live: true}); err != nil || len(left) != 0 {
			t.Errorf("%d certificates count, %v; want none", len(left), err)
		}
		list, err := h.pki.CRL(ctx, estover.DefaultTenant, x509)
		if err != nil {
			t.Fatal(err)
		}
		if crl, err := cx509.ParseRevocationList(list.DER); err != nil || len(crl.RevokedCertificateEntries) != 1 {
			t.Errorf("the list of revoked certificates: %+v, %v; want one on it", crl, err)
		}
		if left, err := h.pki.Certificates(ctx, admin, pki.CertificateFilter{Kind: pki.SSH, Live: true}); err != nil || len(left) != 0 {
			t.Errorf("%d certificates of SSH count, %v; want none", len(left), err)
		}
		if _, err := h.tickets.Find(ctx, string(entered.Value.Reveal())); !errors.Is(err, ticket.ErrTicket) {
			t.Errorf("its token of the door: %v, want ErrTicket", err)
		}
		if ids, err := h.tickets.SecretIDs(ctx, admin, appWay, "app-"+h.bot.ID); err != nil || len(ids) != 0 {
			t.Errorf("the secret-ids of its role: %v, %v; want none", ids, err)
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
		if step := h.verified(e.ID).Step(attest.ZeroStep); step.Result != attest.Fail || !strings.Contains(step.Detail, "1 of the 10 things") {
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

		// Q8: what cannot be ended is named, in the answer, in the report and in the
		// certificate of the containment.
		named := []string{"Certificates: " + pki.Lingers, "Memory: " + lingers, "SSH: " + pki.LingersSSH}
		for _, i := range e.Items {
			if of := map[emergency.Kind]string{emergency.Certificates: named[0], emergency.Leases: named[1], emergency.SSHCertificates: named[2]}[i.Kind]; of != "" && i.Note != of {
				t.Errorf("of the %s it says %q, want %q", i.Kind, i.Note, of)
			}
		}
		held, err := h.incident.List(ctx, admin, incident.Target{Scope: incident.Agent, ID: h.bot.ID}, 10)
		if err != nil || len(held) != 1 || !slices.Equal(held[0].Lingers, named) {
			t.Fatalf("the containments are %+v, %v; want one that names %v", held, err, named)
		}
		b, err := h.incident.Certificate(ctx, admin, held[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		for what, step := range map[string]attest.Step{"report": h.verified(e.ID).Step(attest.ZeroStep), "certificate": h.verify(b).Step(attest.ZeroStep)} {
			for _, one := range named {
				if step.Result != attest.Pass || !strings.Contains(step.Detail, one) {
					t.Errorf("whoever verifies the %s reads %s %q, want %q in it", what, step.Result, step.Detail, one)
				}
			}
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
		// What asks for less goes on with what asks for more, and does not stand in its
		// way; a moment later the same command asks for a moment less.
		since := func(path string, ago time.Duration) string {
			t.Helper()
			e, err := h.x.Run(ctx, admin, emergency.Wish{Scope: emergency.Secret, Target: path, Reason: "it is there too", Since: d.Now().Add(-ago)})
			if err != nil {
				t.Fatal(err)
			}
			return e.ID
		}
		if id := since("hand/other", time.Hour); id != e.ID {
			t.Errorf("about a shorter time: %s, want %s", id, e.ID)
		}
		h.secretAt("hand/third", secret.Spec{}, false)
		hour := since("hand/third", time.Hour)
		if id := since("hand/third", time.Hour); id != hour {
			t.Errorf("the same command again: %s, want %s", id, hour)
		}
		if id := since("hand/third", 2*time.Hour); id == hour {
			t.Errorf("about a longer time: %s, want another", id)
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

// TestEverybody shows that an emergency about everybody takes what every agent holds,
// in its session and outside of one (E2, E4), and nothing of people.
func TestEverybody(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d)
		ctx := t.Context()
		h.lease("main", 2)
		if _, err := h.leases.Create(ctx, admin, lease.Wish{Role: "main", Purpose: "a look"}); err != nil {
			t.Fatal(err)
		}
		authority := h.certify(h.as())
		h.certify(admin)
		h.enter(h.as())
		// It was given outside of a session.
		err := d.Do(ctx, estover.DefaultTenant, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `update pki_certificate set session_id = '' where tenant_id = $1 and agent_id <> ''`, tx.Tenant())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer h.working()()
		c, err := h.incident.Contain(ctx, admin, incident.Target{Scope: hold.Everything}, "a test")
		if err != nil {
			t.Fatal(err)
		}
		e, err := h.x.Run(ctx, admin, emergency.Wish{Scope: emergency.Incident, Target: c.ID, Reason: "what they had"})
		if want := "certificates of 1 authority:" + authority + " done; "; err != nil || e.DoneAt.IsZero() || !strings.Contains(told(e), want) || !strings.Contains(told(e), "secret_ids of 1 door done") {
			t.Errorf("about everybody: %s, done at %s, %v; want %s", told(e), e.DoneAt, err, want)
		}
		if left, err := h.pki.Certificates(ctx, admin, pki.CertificateFilter{Kind: pki.X509, Live: true}); err != nil || len(left) != 1 || left[0].Agent != "" {
			t.Errorf("the certificates that still count: %+v, %v; want the person's", left, err)
		}
		if s, err := h.leases.Standing(ctx, estover.DefaultTenant, lease.Filter{}); err != nil || s.Open != 1 {
			t.Errorf("%d leases go on, %v; want the person's", s.Open, err)
		}
		if users := h.users.Users(); len(users) != 1 {
			t.Errorf("at the target there are %v, want the person's", users)
		}
	})
}

// errDied is how a server ends in the middle.
var errDied = errors.New("the server is gone")

// TestKilled shows that a run which dies at any item, before or after its effect,
// is brought to its end by the second, with a thousand leases and fifty secrets:
// nothing is lost, and nothing is done twice. Until then the report says what is
// left and what is overdue, and there is no certificate of containment (E5).
func TestKilled(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d)
		ctx := t.Context()
		const leases, many = 1000, 50
		h.lease("main", leases*6/10)
		h.lease("other", leases*4/10)
		h.certify(h.as())
		h.enter(h.as())
		old := map[string]engine.Credential{}
		for n := range many {
			path := fmt.Sprintf("db/many%02d", n)
			h.secretAt(path, secret.Spec{}, true)
			p := h.read(path)
			old[path] = engine.Credential{User: string(p.Values["username"].Reveal()), Secret: p.Values["password"]}
		}
		if n := len(h.users.Users()); n != leases {
			t.Fatalf("there are %d users, want %d", n, leases)
		}
		clock := dbtest.NewClock(d)
		wish := emergency.Wish{Scope: emergency.Agent, Target: h.bot.ID, Reason: "a test"}

		// The target of the leases is down, so that the first runs leave them all.
		h.users.Down(true)
		h.incident.Patience = time.Millisecond
		stop := h.working()
		for _, died := range []struct {
			at    int64
			after bool
		}{{1, false}, {1, true}, {2, false}, {3, true}, {4, true}, {5, true}, {6, false}, {6, true}, {17, false}, {30, true}} {
			h.x.Reached(func(i emergency.Item, done bool) error {
				if i.N == died.at && done == died.after {
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
		clock.Advance(2 * time.Minute)
		e, err := h.x.Run(ctx, admin, wish)
		if err != nil || !e.DoneAt.IsZero() || len(e.Items) != 6+many {
			t.Fatalf("with the targets down: %d items, done at %s, %v", len(e.Items), e.DoneAt, err)
		}
		for _, i := range e.Items {
			if i.Kind == emergency.Leases && (i.State != emergency.Pending || i.Open != i.Count || i.Overdue != i.Count || !i.Oldest.Before(d.Now().Add(-time.Minute))) {
				t.Errorf("with the target down: %+v, want all of them overdue", i)
			}
		}
		if list, err := h.incident.List(ctx, admin, incident.Target{Scope: incident.Agent, ID: h.bot.ID}, 10); err != nil || len(list) != 1 || list[0].Event != "" {
			t.Errorf("the containment while leases are overdue: %+v, %v; want one without a certificate", list, err)
		}
		if step := h.verified(e.ID).Step(attest.ZeroStep); step.Result != attest.Fail {
			t.Errorf("the report of what is overdue: %s %s", step.Result, step.Detail)
		}

		// It is back, and the worker is killed after it has taken some away.
		h.users.Down(false)
		stop()
		h.target.down = false
		clock.Advance(10 * time.Minute)
		if err := h.leases.Work(ctx); err != nil {
			t.Fatal(err)
		}
		if err := h.rotation.Tick(ctx); err != nil {
			t.Fatal(err)
		}
		if err := h.incident.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		if e, err = h.x.Run(ctx, admin, wish); err != nil || e.DoneAt.IsZero() || len(e.Items) != 6+many {
			t.Fatalf("the last run: %s, %v", told(e), err)
		}
		if !strings.Contains(told(e), "leases of 600 target:main done; leases of 400 target:other done; certificates of 1 ") || !strings.Contains(told(e), "tokens of 1 door done; secret_ids of 1 door done;") {
			t.Errorf("what was taken away: %s", told(e))
		}
		if users := h.users.Users(); len(users) != 0 {
			t.Errorf("%d users are still there", len(users))
		}
		if s, err := h.leases.Standing(ctx, estover.DefaultTenant, lease.Filter{}); err != nil || s.Open != 0 {
			t.Errorf("%d leases have not ended, %v", s.Open, err)
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
			if p.Version.N != 2 {
				t.Errorf("%s has version %d, want 2: it was to be rotated once", path, p.Version.N)
			}
		}
		list, err := h.x.List(ctx, admin, 10)
		if err != nil || len(list) != 1 {
			t.Errorf("%d emergencies, %v; want the one", len(list), err)
		}
		contained, err := h.incident.List(ctx, admin, incident.Target{Scope: incident.Agent, ID: h.bot.ID}, 10)
		if err != nil || len(contained) != 1 || contained[0].Event == "" {
			t.Errorf("the containment once all is gone: %+v, %v; want one, with a certificate", contained, err)
		}
		if report := h.verified(e.ID); !report.OK() {
			t.Errorf("the last report: %+v", report.Steps)
		}
	})
}
