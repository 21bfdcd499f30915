package contain_test

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/approval"
	"estover.dev/internal/audit"
	"estover.dev/internal/contain"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/edge"
	"estover.dev/internal/evidence"
	"estover.dev/internal/gateway"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/hold"
	"estover.dev/internal/incident"
	"estover.dev/internal/login"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/page"
	"estover.dev/internal/page/pagetest"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

// A world is the door with people, and agents that work.
type world struct {
	*oauthtest.World
	clock     *dbtest.Clock
	incidents *incident.Incidents
	requests  *approval.Approvals
	handler   http.Handler
}

// permit is what people may here: administrators everything, others sign in, decide
// about requests and contain what is their own.
func permit(c estover.Caller, op guard.Op) guard.Decision {
	own := op.Action == "containment.run" && op.Target == "person:"+c.Subject.ID()
	manages := strings.HasPrefix(op.Action, "containment.") || op.Action == "tenant.contain" || op.Action == "agent.read"
	if c.Subject.Kind() == estover.UserKind && !c.Has(estover.Admin) && manages && !own {
		return guardtest.DenyAll(c, op)
	}
	return guardtest.AllowAll(c, op)
}

func open(t *testing.T, d *db.DB) *world {
	t.Helper()
	w := &world{World: oauthtest.New(t, d), clock: dbtest.NewClock(d)}
	w.Decider.Set(permit)
	mac := func(use string) func(estover.TenantID, []byte) []byte {
		key := []byte(rand.Text())
		return func(tenant estover.TenantID, value []byte) []byte {
			m := hmac.New(sha256.New, append([]byte(use+" "+string(tenant)+" "), key...))
			m.Write(value)
			return m.Sum(nil)
		}
	}
	quiet := slog.New(slog.DiscardHandler)
	pages, err := page.New(page.Config{
		Issuer: oauthtest.Issuer, People: w.People, Now: d.Now, Logger: quiet, MAC: mac("page"),
		Known: func(_ context.Context, tenant estover.TenantID) error {
			if tenant != "acme" {
				return token.ErrNoTenant
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	may := func(_ context.Context, caller estover.Caller, action, target string) (bool, error) {
		return permit(caller, guard.Op{Action: action, Target: target}).Allow, nil
	}
	door, err := login.New(login.Config{
		Issuer: oauthtest.Issuer, People: w.People, Pages: pages, Logger: quiet, Contain: contain.Path,
		MayContain: func(ctx context.Context, caller estover.Caller) (bool, error) {
			return may(ctx, caller, "containment.list", "")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	known := func(p directory.Person) approval.Person {
		return approval.Person{ID: p.ID, Name: p.Name, Roles: p.Roles, Active: p.Status == directory.Active}
	}
	holding := func(ctx context.Context, tx *db.Tx, roles []estover.Role) (all []approval.Person, err error) {
		people, err := directory.Holding(ctx, tx, roles)
		for _, p := range people {
			all = append(all, known(p))
		}
		return all, err
	}
	deciders := []estover.Role{estover.Admin, estover.Approver}
	w.requests = approval.New(w.Guard, approval.Options{
		Effects: map[approval.Kind]approval.Effect{approval.Lift: func(ctx context.Context, tx *guard.Tx, r approval.Request, what approval.Granted) (string, error) {
			return w.incidents.Approved(ctx, tx, r, what)
		}},
		Floors: map[approval.Kind]approval.Rule{approval.Lift: {Quorum: 1, Roles: []string{string(estover.Admin), string(estover.Approver)}}},
		Decide: w.Decider.Decide, MAC: mac("request"), Holding: holding,
		Person: func(ctx context.Context, tx *db.Tx, id string) (approval.Person, error) {
			p, err := directory.Known(ctx, tx, id)
			if errors.Is(err, directory.ErrNotFound) {
				return approval.Person{ID: id}, nil
			}
			return known(p), err
		},
	})
	w.incidents = incident.New(incident.Config{
		Guard: w.Guard, Agents: w.Agents, Sessions: w.Sessions, Holds: hold.New(w.Guard), Gateway: &gateway.Live{},
		Evidence: evidence.New(w.Guard, w.Keys, nil, nil), Ask: w.requests.Ask,
		Deciders: func(ctx context.Context, tx *db.Tx) (ids []string, err error) {
			people, err := holding(ctx, tx, deciders)
			for _, p := range people {
				ids = append(ids, p.ID)
			}
			return ids, err
		},
		Person: func(ctx context.Context, tx *db.Tx, id string) error {
			_, err := directory.Known(ctx, tx, id)
			return err
		},
		Tenant: func(context.Context, estover.TenantID) error { return nil },
		Tenants: func(context.Context) ([]estover.TenantID, error) {
			return []estover.TenantID{estover.DefaultTenant, "acme"}, nil
		},
	})
	at := contain.New(contain.Config{
		Incidents: w.incidents, Approvals: w.requests, Pages: pages, Requests: "/approve", May: may,
		Find: func(ctx context.Context, caller estover.Caller, t incident.Target) (incident.Target, error) {
			if t.Scope == hold.Person && t.ID == "me" {
				t.ID = caller.Subject.ID()
			}
			if t.Scope == incident.Agent && !strings.HasPrefix(t.ID, "agt_") {
				a, err := w.Agents.ByName(ctx, caller, t.ID)
				t.ID = a.ID
				return t, err
			}
			return t, nil
		},
		Name: func(ctx context.Context, tenant estover.TenantID, t incident.Target) (string, error) {
			if t.Scope == hold.Person {
				return w.People.Name(ctx, tenant, t.ID)
			}
			a, err := w.Agents.Snapshot(ctx, tenant, t.ID)
			if t.Scope != incident.Agent || errors.Is(err, agent.ErrNotFound) {
				return "", nil
			}
			return a.Name, err
		},
	})
	mux := http.NewServeMux()
	pages.Mount(mux)
	door.Mount(mux)
	at.Mount(mux)
	w.handler = edge.Front{}.Handler(mux)
	return w
}

// person is somebody who has made a passkey in a browser of their own.
func (w *world) person(name string, roles ...estover.Role) (directory.Person, *pagetest.Browser) {
	w.T.Helper()
	p, err := w.People.Create(w.T.Context(), oauthtest.Admin, directory.Spec{Name: name, Roles: roles}, "")
	if err != nil {
		w.T.Fatal(err)
	}
	value, _, err := w.People.Invite(w.T.Context(), oauthtest.Admin, p.ID, 0)
	if err != nil {
		w.T.Fatal(err)
	}
	b := pagetest.New(w.T, w.handler, string(oauthtest.Issuer))
	start := b.Send(b.Load("/login/invitation"), "/login/invitation", "invitation", string(value.Reveal()))
	if end := b.Send(start, "/login/enrol", "label", "phone"); end.Status != http.StatusOK {
		w.T.Fatalf("enrolling %s: %d\n%s", name, end.Status, end.Body)
	}
	return p, b
}

// working is an agent with a session.
func (w *world) working(name string) *oauthtest.Agent {
	w.T.Helper()
	a := w.Agent(name)
	if _, err := w.Sessions.Open(w.T.Context(), oauthtest.Admin, session.Wish{Agent: a.ID}); err != nil {
		w.T.Fatal(err)
	}
	return a
}

func (w *world) status(id string) agent.Status {
	w.T.Helper()
	a, err := w.Agents.Get(w.T.Context(), oauthtest.Admin, id)
	if err != nil {
		w.T.Fatal(err)
	}
	return a.Status
}

// containments are all that were begun, and holds those that stand.
func (w *world) containments() []incident.Containment {
	w.T.Helper()
	all, err := w.incidents.List(w.T.Context(), oauthtest.Admin, incident.Target{}, 100)
	if err != nil {
		w.T.Fatal(err)
	}
	return all
}

func (w *world) holds() []incident.Standing {
	w.T.Helper()
	all, err := w.incidents.Standing(w.T.Context(), oauthtest.Admin)
	if err != nil {
		w.T.Fatal(err)
	}
	return all
}

// look fills in the form, and gives the page that says what it would stop.
func look(b *pagetest.Browser, scope, name, reason string) *pagetest.Page {
	b.T.Helper()
	return b.Send(b.Go("/contain"), "/contain/look", "scope", scope, "name", name, "reason", reason)
}

func says(t *testing.T, what string, p *pagetest.Page, all ...string) {
	t.Helper()
	for _, want := range all {
		if !strings.Contains(p.Body, want) {
			t.Errorf("%s (%d) does not say %q:\n%s", what, p.Status, want, p.Body)
		}
	}
}

// Somebody contains an agent from a phone: they are told what that stops, confirm
// it, and see how long it took. That it goes on is asked for, and decided by another.
func TestContainAndLift(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		bot, other := w.working("bot"), w.working("other")
		_, alice := w.person("alice", estover.Admin)
		ann, _ := w.person("ann", estover.Approver)
		if p := alice.Go("/login/you"); !strings.Contains(p.Body, `href="/contain"`) {
			t.Errorf("the page of oneself has no link:\n%s", p.Body)
		}
		says(t, "the page at first", alice.Go("/contain"), "Nothing is contained", `value="everything"`)

		// What cannot be is said beside what was entered.
		p := look(alice, "agent", "nobody", "it sends customers to strangers")
		says(t, "an agent that there is not", p, `value="nobody"`, "it sends customers to strangers", `role="alert">There is no`)
		if p.Status != http.StatusNotFound {
			t.Errorf("an agent that there is not: %d, want 404", p.Status)
		}
		if p := look(alice, "agent", "bot", " "); p.Status != http.StatusBadRequest {
			t.Errorf("without a reason: %d, want 400", p.Status)
		}
		if p := look(alice, "planet", "earth", "x"); p.Status != http.StatusBadRequest {
			t.Errorf("another kind: %d, want 400", p.Status)
		}

		// A visit of many hours is good enough.
		p = look(alice, "blueprint", "bot", "a prompt that leaks")
		says(t, "what a blueprint covers", p, "<dt>Agents</dt><dd>2,", "<dt>Open sessions</dt><dd>2,")
		says(t, "what everything covers", look(alice, "everything", "", "x"), "<dt>Agents</dt><dd>2,", "<dt>Open sessions</dt><dd>2,")
		w.clock.Advance(25 * time.Minute)
		p = look(alice, "agent", "bot", "sends <customers> to strangers")
		says(t, "what an agent covers", p, "Nothing has happened yet", "agent bot", "<dt>Agents</dt><dd>1<", "<dt>Open sessions</dt><dd>1,", "&lt;customers&gt;")
		if w.status(bot.ID) != agent.Active || len(w.containments()) != 0 {
			t.Fatalf("looking contained something: the agent is %s", w.status(bot.ID))
		}
		done := alice.Send(p, "/contain/now")
		all := w.containments()
		if len(all) != 1 || all[0].ZeroMicros <= 0 || w.status(bot.ID) != agent.Quarantined || w.status(other.ID) != agent.Active {
			t.Fatalf("containing: %d, %+v, and the agents are %s and %s\n%s", done.Status, all, w.status(bot.ID), w.status(other.ID), done.Body)
		}
		certificate := "/contain/done/" + all[0].ID + "/certificate"
		says(t, "what was done", done, "Contained: agent bot", "Nothing of it can act any more", (time.Duration(all[0].ZeroMicros) * time.Microsecond).String(), certificate)
		says(t, "the same later", alice.Go("/contain/done/"+all[0].ID), "Nothing of it can act any more", certificate)
		if err := w.Guard.Log().Sequence(t.Context(), estover.DefaultTenant); err != nil {
			t.Fatal(err)
		}
		if p := alice.Load(certificate); p.Status != http.StatusOK || !strings.Contains(p.Header.Get("Content-Disposition"), all[0].ID) || !strings.Contains(p.Body, "application/vnd.in-toto+json") {
			t.Errorf("the certificate: %d %v\n%s", p.Status, p.Header, p.Body)
		}

		// What is contained, since when, by whom and why.
		h := w.holds()[0]
		page := "/contain/hold/" + h.ID
		says(t, "the page then", alice.Go("/contain"), "agent bot", "Contained: sends &lt;customers&gt; to strangers", "by alice", h.At.UTC().Format(time.RFC3339), page)

		// To ask that it goes on wants to be there, and to say why.
		if p := alice.Load(page); p.Status != http.StatusSeeOther || !strings.HasPrefix(p.Header.Get("Location"), "/login?again=1") {
			t.Errorf("to lift after 25 minutes: %d to %s, want the sign-in page", p.Status, p.Header.Get("Location"))
		}
		_, carol := w.person("carol", estover.Admin)
		p = carol.Go(page)
		if p := carol.Send(p, page+"/lift", "reason", ""); p.Status != http.StatusBadRequest {
			t.Errorf("to lift without a reason: %d, want 400", p.Status)
		}
		fields := carol.Fill(p, page+"/lift", "reason", "the prompt was mended")
		asked := carol.Post(page+"/lift", fields)
		waiting, _, err := w.requests.List(t.Context(), oauthtest.Admin, approval.Filter{Kind: approval.Lift}, "", 0)
		if err != nil || len(waiting) != 1 || waiting[0].Target != "hold:"+h.ID || waiting[0].Reason != "the prompt was mended" || asked.Header.Get("Location") != "/approve/"+waiting[0].ID {
			t.Fatalf("asking: %d to %s, with %+v, %v\n%s", asked.Status, asked.Header.Get("Location"), waiting, err, asked.Body)
		}
		carol.Post(page+"/lift", fields) // a double click asks once
		if again, _, err := w.requests.List(t.Context(), oauthtest.Admin, approval.Filter{Kind: approval.Lift}, "", 0); err != nil || len(again) != 1 {
			t.Errorf("asking twice made %d requests, %v", len(again), err)
		}
		says(t, "the page while it waits", carol.Go("/contain"), "Somebody asks that it be lifted", "/approve/"+waiting[0].ID)
		if p := carol.Go(page); p.Has(page + "/lift") {
			t.Error("what waits can be asked for again")
		}
		if w.status(bot.ID) != agent.Quarantined {
			t.Error("asking lifted it")
		}
		approver := estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User(ann.ID), Roles: ann.Roles}
		if _, err := w.requests.Approve(t.Context(), approver, waiting[0].ID, approval.Choice{}); err != nil || w.status(bot.ID) != agent.Active {
			t.Errorf("approving: %v, and the agent is %s", err, w.status(bot.ID))
		}
		says(t, "the page after that", carol.Go("/contain"), "Nothing is contained")
	})
}

// A form counts once, from the page that was shown, for what it said.
func TestForgedForms(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		bot, other := w.working("bot"), w.working("other")
		_, alice := w.person("alice", estover.Admin)
		_, carol := w.person("carol", estover.Admin)
		p := look(alice, "agent", "bot", "a drill")
		fields := alice.Fill(p, "/contain/now")
		change := func(name, value string) url.Values {
			v := url.Values{}
			for k, values := range fields {
				v[k] = values
			}
			v.Set(name, value)
			return v
		}
		for what, form := range map[string]url.Values{
			"for another agent": change("target", other.ID), "for everything": change("scope", "everything"), "for another reason": change("reason", "none"), "without a word": change("form", ""),
		} {
			if p := alice.Post("/contain/now", form); p.Status != http.StatusForbidden {
				t.Errorf("a form %s: %d, want 403", what, p.Status)
			}
		}
		for what, fn := range map[string]func(*http.Request){
			"from another site":    func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
			"from the same domain": func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") },
			"of a foreign origin":  func(r *http.Request) { r.Header.Del("Sec-Fetch-Site"); r.Header.Set("Origin", "https://evil.example") },
		} {
			if p := alice.Post("/contain/now", fields, fn); p.Status != http.StatusForbidden {
				t.Errorf("a form %s: %d, want 403", what, p.Status)
			}
		}
		if p := carol.Post("/contain/now", fields); p.Status != http.StatusForbidden {
			t.Errorf("a form that was shown to alice, sent by carol: %d, want 403", p.Status)
		}
		for _, at := range []string{"/contain/now", "/contain/look"} { // nor does it spoil the form
			if p := alice.Load(at + "?" + fields.Encode()); p.Status != http.StatusMethodNotAllowed {
				t.Errorf("%s by a link: %d, want 405", at, p.Status)
			}
		}
		if p := pagetest.New(t, w.handler, string(oauthtest.Issuer)).Load("/contain"); p.Header.Get("Location") != "/login?to=%2Fcontain" {
			t.Errorf("nobody signed in: %d to %s", p.Status, p.Header.Get("Location"))
		}
		if len(w.containments()) != 0 || w.status(bot.ID) != agent.Active || w.status(other.ID) != agent.Active {
			t.Fatalf("forms that do not count contained something: %+v", w.containments())
		}

		// Sent many times at once, it is one containment and one hold.
		var sent sync.WaitGroup
		for range 8 {
			one := *alice
			sent.Go(func() {
				if p := one.Post("/contain/now", fields); p.Status != http.StatusOK {
					t.Errorf("a click among many: %d\n%s", p.Status, p.Body)
				}
			})
		}
		sent.Wait()
		says(t, "the answer to another click", alice.Post("/contain/now", fields), "Contained: agent bot", "Nothing of it can act any more")
		if all, holds := w.containments(), w.holds(); len(all) != 1 || len(holds) != 1 {
			t.Errorf("many clicks made %d containments and %d holds, want one of each", len(all), len(holds))
		}
		w.clock.Advance(31 * time.Minute)
		if p := alice.Post("/contain/now", fields); p.Status == http.StatusOK {
			t.Errorf("a form of half an hour ago: %d", p.Status)
		}
	})
}

// Who may not, does not; and it is on record.
func TestWithoutPermission(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		bot := w.working("bot")
		_, alice := w.person("alice", estover.Admin)
		bobs, bob := w.person("bob")
		if p := bob.Go("/login/you"); strings.Contains(p.Body, `href="/contain"`) {
			t.Errorf("the page of somebody who may not has the link:\n%s", p.Body)
		}
		alice.Send(look(alice, "agent", "bot", "a drill"), "/contain/now")
		c, h := w.containments()[0], w.holds()[0]
		p := bob.Go("/contain")
		says(t, "the page of somebody without a role", p, "does not show you what is contained")
		if strings.Contains(p.Body, "agent bot") || strings.Contains(p.Body, `value="everything"`) {
			t.Errorf("somebody without a role is shown\n%s", p.Body)
		}
		for what, p := range map[string]*pagetest.Page{
			"an agent": look(bob, "agent", bot.ID, "x"), "everything": look(bob, "everything", "", "x"), "an organisation": look(bob, "tenant", "default", "x"),
			"the containment": bob.Go("/contain/done/" + c.ID), "its certificate": bob.Go("/contain/done/" + c.ID + "/certificate"), "its hold": bob.Go("/contain/hold/" + h.ID),
		} {
			if p.Status != http.StatusForbidden || strings.Contains(p.Body, "a drill") {
				t.Errorf("%s, to somebody without a role: %d\n%s", what, p.Status, p.Body)
			}
		}
		refused := 0
		if err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
			list, _, err := w.Guard.Log().List(t.Context(), tx, audit.Filter{Action: "containment.run"}, 0, 50)
			for _, e := range list {
				if e.Outcome == audit.Refused && e.Actor == estover.User(bobs.ID) {
					refused++
				}
			}
			return err
		}); err != nil || refused != 2 { // an agent and an organisation
			t.Errorf("%d refusals are on record, %v, want 2", refused, err)
		}
		if len(w.containments()) != 1 {
			t.Error("somebody without a role contained something")
		}

		// Their own agents they stop, and are told so, without what they may not see.
		done := bob.Send(look(bob, "person", "me", "my phone was stolen"), "/contain/now")
		says(t, "what somebody did without a role", done, "Contained: person bob", "Nothing of it can act any more")
		if strings.Contains(done.Body, "/certificate\"") {
			t.Error("somebody is sent to a certificate that they may not have")
		}
	})
}

// The pages of another tenant know nothing of this one's.
func TestOtherTenant(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		w.working("bot")
		_, alice := w.person("alice", estover.Admin)
		p := look(alice, "agent", "bot", "a drill")
		fields := alice.Fill(p, "/contain/now")
		for name, value := range alice.Cookies { // as if they were of the other
			alice.Cookies[name+".acme"] = value
		}
		for _, at := range []string{"/contain", "/contain/done/ctn_x", "/contain/hold/hld_x"} {
			if p := alice.Load("/t/acme" + at); p.Status != http.StatusSeeOther || !strings.HasPrefix(p.Header.Get("Location"), "/t/acme/login?") {
				t.Errorf("%s of another tenant: %d to %s, want its sign-in page", at, p.Status, p.Header.Get("Location"))
			}
		}
		if p := alice.Post("/t/acme/contain/now", fields); p.Status != http.StatusSeeOther {
			t.Errorf("a form of this tenant in another: %d, want its sign-in page", p.Status)
		}
		if p := alice.Load("/t/nobody/contain"); p.Status != http.StatusNotFound {
			t.Errorf("a tenant that there is not: %d, want 404", p.Status)
		}
		if len(w.containments()) != 0 {
			t.Error("something was contained")
		}
	})
}
