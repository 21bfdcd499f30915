package approve_test

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/approval"
	"estover.dev/internal/approval/document"
	"estover.dev/internal/approve"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/edge"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/login"
	"estover.dev/internal/page"
	"estover.dev/internal/page/pagetest"
	"estover.dev/internal/token"
)

const issuer token.Issuer = "https://estover.example"

const tenant = estover.DefaultTenant

var (
	root = estover.Caller{Tenant: tenant, Subject: estover.System("test")}
	bot  = estover.Caller{Tenant: tenant, Subject: estover.Agent("agt_bot"), Client: "agt_bot", Purpose: "support", Strength: estover.ByKey}
)

// A world is a door with people, and requests behind it.
type world struct {
	t        *testing.T
	db       *db.DB
	clock    *dbtest.Clock
	people   *directory.Directory
	requests *approval.Approvals
	handler  http.Handler
	signed   atomic.Bool  // policy wants signatures
	given    atomic.Int64 // how often something was granted
	asked    atomic.Int64
}

func open(t *testing.T, d *db.DB) *world {
	t.Helper()
	w := &world{t: t, db: d, clock: dbtest.NewClock(d)}
	mac := func(use string) func(estover.TenantID, []byte) []byte {
		key := []byte(rand.Text())
		return func(tenant estover.TenantID, value []byte) []byte {
			m := hmac.New(sha256.New, append([]byte(use+" "+string(tenant)+" "), key...))
			m.Write(value)
			return m.Sum(nil)
		}
	}
	g := guardtest.New(t, d, guardtest.AllowAll)
	w.people = directory.New(g, directory.Options{MAC: mac("key")})
	known := func(_ context.Context, tenant estover.TenantID) error {
		if tenant != "acme" {
			return token.ErrNoTenant
		}
		return nil
	}
	pages, err := page.New(page.Config{Issuer: issuer, People: w.people, Now: d.Now, Logger: slog.New(slog.DiscardHandler), Known: known, MAC: mac("page")})
	if err != nil {
		t.Fatal(err)
	}
	door, err := login.New(login.Config{Issuer: issuer, People: w.people, Pages: pages, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	crm := approval.Resource{ID: "res_crm", Name: "crm", Actions: []approval.Action{
		{Name: "customer.read", Effect: guard.Reads, Class: estover.Internal, Parameters: []string{"id"}}, {Name: "customer.list", Effect: guard.Reads, Class: estover.Internal},
	}}
	known1 := func(p directory.Person) approval.Person {
		return approval.Person{ID: p.ID, Name: p.Name, Roles: p.Roles, Active: p.Status == directory.Active}
	}
	w.requests = approval.New(g, approval.Options{
		Effects: map[approval.Kind]approval.Effect{approval.Access: func(context.Context, *guard.Tx, approval.Request, approval.Granted) (string, error) {
			w.given.Add(1)
			return "grt_1", nil
		}},
		Decide: func(context.Context, estover.Caller, guard.Op) (guard.Decision, error) {
			d := guard.Decision{Engine: "policy", Revision: "rev1", Reasons: []string{approval.NotPermitted}}
			if w.signed.Load() {
				d.Obligations = []guard.Obligation{{Type: "approval", Properties: map[string]any{"signed": true}}}
			}
			return d, nil
		},
		Agent: func(_ context.Context, tx *db.Tx, id string) (approval.Agent, error) {
			if tx.Tenant() != tenant {
				return approval.Agent{}, approval.ErrNotFound
			}
			return approval.Agent{ID: id, Name: "invoices-bot", Sponsor: "usr_sue", Purposes: []string{"support"}, Tier: "low", Clearance: estover.Confidential}, nil
		},
		Acting:   func(context.Context, *db.Tx, string) error { return nil },
		Resource: func(context.Context, *db.Tx, string) (approval.Resource, error) { return crm, nil },
		Person: func(ctx context.Context, tx *db.Tx, id string) (approval.Person, error) {
			p, err := directory.Known(ctx, tx, id)
			if errors.Is(err, directory.ErrNotFound) {
				return approval.Person{ID: id}, nil
			}
			return known1(p), err
		},
		Holding: func(ctx context.Context, tx *db.Tx, roles []estover.Role) (all []approval.Person, err error) {
			people, err := directory.Holding(ctx, tx, roles)
			for _, p := range people {
				all = append(all, known1(p))
			}
			return all, err
		},
		Verify: func(ctx context.Context, caller estover.Caller, text []byte, assertion json.RawMessage) error {
			a, err := document.Decode(assertion)
			if err != nil {
				return err
			}
			return d.View(ctx, caller.Tenant, func(tx *db.Tx) error {
				k, err := w.people.Approves(ctx, tx, caller.Subject.ID(), a.Key, tx.Now())
				if err != nil {
					return err
				}
				return document.Verify(text, &a, document.Key{ID: k.ID, Method: k.Method, Public: k.Public, RelyingParty: "estover.example", Origin: string(issuer)})
			})
		},
		MAC: mac("request"),
	})
	at := approve.New(approve.Config{
		Approvals: w.requests, Pages: pages, Signing: door.Signing, Signed: door.Signed,
		Agent: func(context.Context, estover.TenantID, string) (approve.Agent, error) {
			return approve.Agent{Name: "invoices-bot", Kind: "billing", Sponsor: "sue"}, nil
		},
		Name: func(ctx context.Context, tenant estover.TenantID, who estover.Subject) (string, error) {
			if who.Kind() == estover.UserKind {
				return w.people.Name(ctx, tenant, who.ID())
			}
			return "invoices-bot", nil
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
	w.t.Helper()
	p, err := w.people.Create(w.t.Context(), root, directory.Spec{Name: name, Roles: roles}, "")
	if err != nil {
		w.t.Fatal(err)
	}
	value, _, err := w.people.Invite(w.t.Context(), root, p.ID, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	b := pagetest.New(w.t, w.handler, string(issuer))
	start := b.Send(b.Load("/login/invitation"), "/login/invitation", "invitation", string(value.Reveal()))
	if end := b.Send(start, "/login/enrol", "label", "laptop"); end.Status != http.StatusOK {
		w.t.Fatalf("enrolling %s: %d\n%s", name, end.Status, end.Body)
	}
	return p, b
}

func (w *world) ask() approval.Request {
	w.t.Helper()
	r, err := w.requests.Ask(w.t.Context(), bot, approval.Wish{
		Items: []approval.Item{{Resource: "res_crm", Actions: []string{"customer.read", "customer.list"}}}, For: 2 * time.Hour,
		Reason: "The <customer> calls", Context: map[string]string{"ticket": "INC-1"}, Budgets: approval.Budgets{Calls: 3, Rows: 1000 + w.asked.Add(1)}, // so that it is another one
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) state(id string) (approval.Request, approval.State) {
	w.t.Helper()
	r, err := w.requests.Get(w.t.Context(), estover.Caller{Tenant: tenant, Subject: estover.System("test")}, id)
	if err != nil {
		w.t.Fatal(err)
	}
	return r, r.State
}

// sign answers the passkey's form of a page, and gives what the script is told.
func sign(b *pagetest.Browser, p *pagetest.Page, id string, pairs ...string) (to, wrong string, status int) {
	b.T.Helper()
	return told(b, b.Post("/approve/"+id+"/sign", b.Fill(p, "/approve/"+id+"/sign", pairs...)))
}

func told(b *pagetest.Browser, p *pagetest.Page) (to, wrong string, status int) {
	b.T.Helper()
	var out struct{ To, Error string }
	if err := json.Unmarshal([]byte(p.Body), &out); err != nil {
		b.T.Fatalf("%v in %s", err, p.Body)
	}
	if p.Status == http.StatusTooManyRequests && p.Header.Get("Retry-After") == "" {
		b.T.Error("429 without Retry-After")
	}
	return out.To, out.Error, p.Status
}

func TestLookingDecidesNothing(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		r := w.ask()
		stranger := pagetest.New(t, w.handler, string(issuer))
		if p := stranger.Load("/approve/" + r.ID); p.Status != http.StatusSeeOther || p.Header.Get("Location") != "/login?to=%2Fapprove%2F"+r.ID {
			t.Errorf("somebody who is not signed in: %d to %s", p.Status, p.Header.Get("Location"))
		}
		_, alice := w.person("alice", estover.Approver)
		for range 3 {
			p := alice.Go("/approve/" + r.ID)
			for _, want := range []string{
				"invoices-bot", "of the kind billing", "sue", "&lt;customer&gt;", "INC-1", "customer.read", "customer.list", "2 hours", "One approval",
				document.Fingerprint(r.Document), "seconds: 7200", "uses: 3", "Nothing else was asked for this agent", "3 calls",
				"<dt>Risk</dt><dd><strong>low</strong>", "<li>The agent was never given anything there before: crm.</li>",
			} {
				if !strings.Contains(p.Body, want) {
					t.Errorf("the page does not say %q:\n%s", want, p.Body)
				}
			}
			if strings.Contains(p.Body, "<customer>") {
				t.Error("the reason is HTML")
			}
			if csp := p.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "frame-ancestors 'none'") || p.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("the page comes with %v", p.Header)
			}
		}
		// The document is shown as it is, and every line of it.
		if p := alice.Go("/approve/" + r.ID); !strings.Contains(unescape(p.Body), string(r.Document)) {
			t.Errorf("the page does not show the bytes\n%s\nbut\n%s", r.Document, p.Body)
		}
		for _, at := range []string{"/approve/" + r.ID, "/approve/" + r.ID + "/yes", "/approve/" + r.ID + "/no", "/approve/" + r.ID + "/sign"} {
			for _, q := range []string{"", "?decision=approve&note=x", "?digest=" + fmt.Sprintf("%x", document.Digest(r.Document))} {
				alice.Go(at + q)
			}
		}
		if _, s := w.state(r.ID); s != approval.Pending || w.given.Load() != 0 {
			t.Errorf("after somebody looked at it the request is %s", s)
		}
		list := alice.Go("/approve")
		if !strings.Contains(list.Body, "/approve/"+r.ID) || !strings.Contains(list.Body, "invoices-bot") || !strings.Contains(list.Body, "low risk, asked") {
			t.Errorf("the list of what waits is\n%s", list.Body)
		}
		// Somebody who does not decide sees nothing of it.
		_, bob := w.person("bob")
		if p := bob.Go("/approve/" + r.ID); p.Status != http.StatusNotFound {
			t.Errorf("somebody who does not decide sees the page: %d", p.Status)
		}
		if p := bob.Go("/approve"); strings.Contains(p.Body, r.ID) {
			t.Errorf("somebody who does not decide has it in the list:\n%s", p.Body)
		}
		if p := alice.Go("/t/acme/approve/" + r.ID); p.Status == http.StatusOK && strings.Contains(p.Body, "invoices-bot") {
			t.Errorf("another tenant's pages show the request:\n%s", p.Body)
		}
	})
}

// unescape is HTML as somebody reads it, as far as documents need that.
func unescape(s string) string {
	return strings.NewReplacer("&lt;", "<", "&gt;", ">", "&#34;", `"`, "&#43;", "+", "&amp;", "&").Replace(s)
}

func TestApproveAndDeny(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		_, alice := w.person("alice", estover.Approver)
		_, carol := w.person("carol", estover.Admin)

		r := w.ask()
		path := "/approve/" + r.ID
		p := alice.Go(path)
		if p.Has(path + "/sign") {
			t.Error("a signature is asked for where policy wants none")
		}
		fields := alice.Fill(p, path+"/yes", "note", "as agreed")
		for what, change := range map[string]func(*http.Request){
			"from another site":      func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
			"from the same domain":   func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") },
			"from the address bar":   func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "none") },
			"with a foreign origin":  func(r *http.Request) { r.Header.Del("Sec-Fetch-Site"); r.Header.Set("Origin", "https://evil.example") },
			"without a single field": func(r *http.Request) { r.Body = http.NoBody },
		} {
			if p := alice.Post(path+"/yes", fields, change); p.Status < 400 {
				t.Errorf("a form %s: %d", what, p.Status)
			}
		}
		if p := carol.Post(path+"/yes", fields); p.Status != http.StatusForbidden {
			t.Errorf("a form that was shown to alice, sent by carol: %d", p.Status)
		}
		other := w.ask()
		if p := alice.Post("/approve/"+other.ID+"/yes", fields); p.Status < 400 {
			t.Errorf("a form of one request, sent for another: %d", p.Status)
		}
		changed := url.Values{}
		for k, v := range fields {
			changed[k] = v
		}
		changed.Set("for", "60")
		if p := alice.Post(path+"/yes", changed); p.Status != http.StatusConflict {
			t.Errorf("a form with another choice: %d, want 409", p.Status)
		}
		if p := alice.Post(path+"/no", changed); p.Status != http.StatusForbidden {
			t.Errorf("the word of one form in another: %d, want 403", p.Status)
		}
		if _, s := w.state(r.ID); s != approval.Pending {
			t.Fatalf("after forms that do not count the request is %s", s)
		}
		if p := alice.Post(path+"/yes", fields); p.Status != http.StatusSeeOther || p.Header.Get("Location") != path {
			t.Fatalf("approving: %d\n%s", p.Status, p.Body)
		}
		got, s := w.state(r.ID)
		if s != approval.Approved || len(got.Votes) != 1 || got.Note != "as agreed" || w.given.Load() != 1 {
			t.Errorf("the request is %s with %+v", s, got.Votes)
		}
		// A double click, and the back button.
		if p := alice.Post(path+"/yes", fields); p.Status != http.StatusConflict {
			t.Errorf("the same form again: %d, want 409", p.Status)
		}
		if p := alice.Go(path); p.Has(path+"/yes") || p.Has(path+"/no") || !strings.Contains(p.Body, "approved") || !strings.Contains(p.Body, "as agreed") {
			t.Errorf("the page of an approved request is\n%s", p.Body)
		}
		if w.given.Load() != 1 {
			t.Errorf("it was granted %d times", w.given.Load())
		}

		path = "/approve/" + other.ID
		p = carol.Go(path)
		if p := carol.Send(p, path+"/no", "note", ""); p.Status != http.StatusBadRequest {
			t.Errorf("denying without a word: %d, want 400", p.Status)
		}
		if !strings.Contains(p.Body, "1 other request for this agent: 1 approved, 0 denied") {
			t.Errorf("the page does not say what was approved lately:\n%s", p.Body)
		}
		if p := carol.Send(p, path+"/no", "note", "not on a Friday"); p.Status != http.StatusOK || !strings.Contains(p.Body, "not on a Friday") {
			t.Errorf("denying: %d\n%s", p.Status, p.Body)
		}
		if _, s := w.state(other.ID); s != approval.Denied {
			t.Errorf("the request is %s", s)
		}
	})
}

func TestNarrow(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		_, alice := w.person("alice", estover.Approver)
		r := w.ask()
		path := "/approve/" + r.ID
		for _, bad := range []string{"?only=7/customer.read", "?only=0/customer.delete", "?for=-3", "?for=soon", "?some=1"} {
			if p := alice.Go(path + bad); p.Status != http.StatusBadRequest {
				t.Errorf("looking at the choice %s: %d, want 400", bad, p.Status)
			}
		}
		full := alice.Go(path + "?some=1&for=&only=0/customer.list&only=0/customer.read")
		if !strings.Contains(full.Body, document.Fingerprint(r.Document)) {
			t.Error("to choose everything is another document")
		}
		p := alice.Go(path + "?some=1&for=900&only=0/customer.read")
		body := unescape(p.Body)
		if !strings.Contains(body, "seconds: 900") || strings.Contains(body, "\naction: customer.list\n") || !strings.Contains(body, "<dt>Risk</dt><dd><strong>low</strong>, of this much") || !strings.Contains(body, "15 minutes from the approval on") ||
			strings.Contains(body, document.Fingerprint(r.Document)) {
			t.Errorf("the narrower page is\n%s", p.Body)
		}
		if _, s := w.state(r.ID); s != approval.Pending {
			t.Errorf("after looking at less the request is %s", s)
		}
		if p := alice.Send(p, path+"/yes"); p.Status != http.StatusOK {
			t.Fatalf("approving less: %d\n%s", p.Status, p.Body)
		}
		got, s := w.state(r.ID)
		if s != approval.Approved || got.Offer.Seconds != 900 || !slices.Equal(got.Offer.Items[0].Actions, []string{"customer.read"}) {
			t.Errorf("the request is %s, and gives %+v", s, got.Offer)
		}
	})
}

// TestSignedByPasskey is an approval that policy wants signed: the passkey signs
// the digest of the bytes on the page, and nothing else counts.
func TestSignedByPasskey(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		w.signed.Store(true)
		alice, a := w.person("alice", estover.Approver)
		_, c := w.person("carol", estover.Approver)
		r := w.ask()
		path := "/approve/" + r.ID
		p := a.Go(path)
		if p.Has(path + "/yes") {
			t.Error("the page offers to approve without a signature")
		}
		// Without a signature, and with the word of another form.
		v := a.Fill(p, path+"/sign")
		v.Del("answer")
		if _, wrong, status := told(a, a.Post(path+"/sign", v)); status < 400 || wrong == "" {
			t.Errorf("no answer of a passkey: %d %q", status, wrong)
		}
		// A passkey that does not look, one of another origin, one of somebody else.
		a.Keys.Unverified = true
		if _, wrong, status := sign(a, p, r.ID); status != http.StatusForbidden {
			t.Errorf("a passkey that did not look who uses it: %d %q", status, wrong)
		}
		a.Keys.Unverified, a.Keys.Origin = false, "https://estover.example.evil"
		if _, wrong, status := sign(a, p, r.ID); status != http.StatusForbidden {
			t.Errorf("a passkey at another origin: %d %q", status, wrong)
		}
		a.Keys.Origin = string(issuer)
		v = a.Fill(p, path+"/sign")
		v.Set("answer", c.Keys.Get(p.Form(t, path+"/sign").Get))
		if _, wrong, status := told(a, a.Post(path+"/sign", v)); status != http.StatusForbidden {
			t.Errorf("carol's passkey for alice: %d %q", status, wrong)
		}
		// Replay: what was signed for another request.
		other := w.ask()
		v = a.Fill(p, path+"/sign")
		v.Set("answer", a.Keys.Get(a.Go("/approve/"+other.ID).Form(t, "/approve/"+other.ID+"/sign").Get))
		if _, wrong, status := told(a, a.Post(path+"/sign", v)); status != http.StatusForbidden {
			t.Errorf("a signature of another request: %d %q", status, wrong)
		}
		// What was signed for the whole does not approve a part, nor the other way round.
		part := a.Go(path + "?for=900")
		v = a.Fill(part, path+"/sign")
		v.Set("answer", a.Keys.Get(p.Form(t, path+"/sign").Get))
		if _, wrong, status := told(a, a.Post(path+"/sign", v)); status != http.StatusForbidden {
			t.Errorf("a signature of the whole for a part: %d %q", status, wrong)
		}
		if got, s := w.state(r.ID); s != approval.Pending || len(got.Votes) != 0 {
			t.Fatalf("after signatures that do not count the request is %s with %+v", s, got.Votes)
		}
		used := a.Fill(p, path+"/sign")
		to, wrong, status := told(a, a.Post(path+"/sign", used))
		if status != http.StatusOK || to != path {
			t.Fatalf("signing: %d %q", status, wrong)
		}
		got, s := w.state(r.ID)
		if s != approval.Approved || w.given.Load() != 1 {
			t.Fatalf("the request is %s", s)
		}
		signed, err := document.Decode(got.Votes[0].Assertion)
		if err != nil || signed.Method != document.Passkey || !strings.HasPrefix(signed.Key, "psk_") {
			t.Errorf("the assertion is %+v, %v", signed, err)
		}
		if _, _, status := told(a, a.Post(path+"/sign", used)); status != http.StatusConflict {
			t.Errorf("the same answer again: %d, want 409", status)
		}
		// A passkey that counts backwards may be a copy.
		a.Keys.Counter = 0
		q := a.Go("/approve/" + other.ID)
		if _, wrong, status := sign(a, q, other.ID); status != http.StatusForbidden || !strings.Contains(wrong, "copy") {
			t.Errorf("a passkey that counts backwards: %d %q", status, wrong)
		}
		a.Keys.Counter = 1000
		// Whoever is disabled between the page and the form.
		if _, err := w.people.Disable(t.Context(), root, alice.ID, "left"); err != nil {
			t.Fatal(err)
		}
		if p := a.Post("/approve/"+other.ID+"/sign", a.Fill(q, "/approve/"+other.ID+"/sign")); p.Status == http.StatusOK {
			t.Errorf("somebody who was disabled meanwhile: %d", p.Status)
		}
		if _, s := w.state(other.ID); s != approval.Pending {
			t.Errorf("the request is %s", s)
		}
	})
}

// Whoever tries signatures one after the other has to wait.
func TestDecisionsThatFail(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		w.signed.Store(true)
		_, alice := w.person("alice", estover.Approver)
		_, carol := w.person("carol", estover.Approver)
		r := w.ask()
		path := "/approve/" + r.ID
		p := alice.Go(path)
		alice.Keys.Unverified = true
		dbtest.NewClock(d).Hold()
		stopped := false
		for range 30 {
			_, _, status := sign(alice, p, r.ID)
			if stopped = status == http.StatusTooManyRequests; stopped {
				break
			}
		}
		if !stopped {
			t.Error("somebody may try signatures without end")
		}
		if _, wrong, status := sign(carol, carol.Go(path), r.ID); status != http.StatusOK {
			t.Errorf("somebody else meanwhile: %d %q", status, wrong)
		}
	})
}

// TestPasskeyRowEdited is the passkey in the attack list "a row of the database is
// edited by hand": it lets nobody in, and signs nothing.
func TestPasskeyRowEdited(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		w.signed.Store(true)
		alice, a := w.person("alice", estover.Approver)
		eve, e := w.person("eve")
		exec := func(query string, args ...any) {
			t.Helper()
			if err := d.Do(t.Context(), tenant, func(tx *db.Tx) error {
				_, err := tx.Exec(t.Context(), query, args...)
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		r := w.ask()
		path := "/approve/" + r.ID
		p := a.Go(path)
		options := p.Form(t, path+"/sign").Get
		// Eve, who can write to the database, puts her key in the place of alice's.
		exec(`update passkey set credential_id = $1 where person_id = $2`, []byte("gone"), eve.ID)
		for _, column := range []string{"credential", "public_key", "mac"} {
			exec(`update passkey set credential_id = $1, credential = (select credential from passkey where person_id = $3 limit 1) where person_id = $2`, []byte("x"+column), alice.ID, eve.ID)
			v := a.Fill(p, path+"/sign")
			v.Set("answer", e.Keys.Get(options))
			if _, wrong, status := told(a, a.Post(path+"/sign", v)); status < 400 {
				t.Errorf("with another %s: %d %q", column, status, wrong)
			}
			if column != "credential" {
				exec(`update passkey set `+column+` = (select `+column+` from passkey where person_id = $1 limit 1) where person_id = $2`, eve.ID, alice.ID)
			}
		}
		if p := a.Go(path); p.Has(path + "/sign") {
			t.Error("a passkey whose row was edited is asked to sign")
		}
		if _, s := w.state(r.ID); s != approval.Pending {
			t.Errorf("the request is %s", s)
		}
	})
}

// TestDoubleClick is 64 clicks on the same button: one approval.
func TestDoubleClick(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		_, alice := w.person("alice", estover.Approver)
		r := w.ask()
		path := "/approve/" + r.ID
		fields := alice.Fill(alice.Go(path), path+"/yes")
		var wg sync.WaitGroup
		var done atomic.Int64
		cookies := alice.Cookies
		for range 64 {
			wg.Go(func() {
				b := pagetest.New(t, w.handler, string(issuer))
				for k, v := range cookies {
					b.Cookies[k] = v
				}
				if p := b.Post(path+"/yes", fields); p.Status == http.StatusSeeOther {
					done.Add(1)
				}
			})
		}
		wg.Wait()
		got, s := w.state(r.ID)
		if done.Load() != 1 || s != approval.Approved || len(got.Votes) != 1 {
			t.Errorf("%d of 64 clicks approved it; it is %s with %d votes", done.Load(), s, len(got.Votes))
		}
	})
}

// TestRequestRowEdited is a request and a vote in the attack list "a row of the
// database is edited by hand".
func TestRequestRowEdited(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		_, alice := w.person("alice", estover.Approver)
		bob, _ := w.person("bob", estover.Approver)
		exec := func(query string, args ...any) {
			t.Helper()
			if err := d.Do(t.Context(), tenant, func(tx *db.Tx) error {
				n, err := tx.Exec(t.Context(), query, args...)
				if err == nil && n != 1 {
					t.Errorf("%s changed %d rows", query, n)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		proven := func(id string) error {
			return d.View(t.Context(), tenant, func(tx *db.Tx) error {
				_, err := w.requests.Proven(t.Context(), tx, id)
				return err
			})
		}
		for what, edit := range map[string]func(r approval.Request){
			"the offer": func(r approval.Request) {
				exec(`update access_request set offer = replace(offer, '7200', '9999') where id = $1`, r.ID)
			},
			"the rule": func(r approval.Request) {
				exec(`update access_request set spec = replace(spec, '"quorum":1', '"quorum":0') where id = $1`, r.ID)
			},
			"the agent": func(r approval.Request) { exec(`update access_request set agent_id = 'agt_eve' where id = $1`, r.ID) },
			"the requester": func(r approval.Request) {
				exec(`update access_request set requester = 'user:usr_x' where id = $1`, r.ID)
			},
			"the session": func(r approval.Request) { exec(`update access_request set session_id = 'ses_eve' where id = $1`, r.ID) },
			"the end": func(r approval.Request) {
				exec(`update access_request set expires_at = expires_at + 1000000 where id = $1`, r.ID)
			},
			"the document": func(r approval.Request) {
				exec(`update access_request set document = $2 where id = $1`, r.ID, []byte("x"))
			},
			"its seal": func(r approval.Request) { exec(`update access_request set mac = null where id = $1`, r.ID) },
			"a vote's person": func(r approval.Request) {
				exec(`update access_vote set approver = $2 where request_id = $1`, r.ID, estover.User(bob.ID))
			},
			"a vote's word": func(r approval.Request) {
				exec(`update access_vote set verdict = 'denied' where request_id = $1`, r.ID)
			},
			"a vote's time": func(r approval.Request) { exec(`update access_vote set at = at - 1000000 where request_id = $1`, r.ID) },
			"a vote's document": func(r approval.Request) {
				exec(`update access_vote set document = $2 where request_id = $1`, r.ID, []byte("x"))
			},
			"a vote more": func(r approval.Request) {
				exec(`insert into access_vote (tenant_id, request_id, round, approver, in_place_of, verdict, at, note, document, assertion, mac)
					select tenant_id, request_id, round, 'user:usr_ghost', in_place_of, verdict, at, note, document, assertion, mac from access_vote where request_id = $1`, r.ID)
			},
			"what it led to": func(r approval.Request) { exec(`update access_request set result = 'grt_other' where id = $1`, r.ID) },
		} {
			r := w.ask()
			path := "/approve/" + r.ID
			vote := strings.HasPrefix(what, "a vote") || what == "what it led to"
			if !vote { // before anybody decides
				page := alice.Go(path)
				edit(r)
				if page.Has(path + "/yes") {
					if p := alice.Post(path+"/yes", alice.Fill(page, path+"/yes")); p.Status < 400 {
						t.Errorf("a request of which %s was edited is approved: %d", what, p.Status)
					}
				}
				if w.given.Load() != 0 {
					t.Fatalf("a request of which %s was edited gave something", what)
				}
				exec(`update access_request set state = 'cancelled', decided_at = 1 where id = $1`, r.ID)
				continue
			}
			if p := alice.Send(alice.Go(path), path+"/yes"); p.Status != http.StatusOK {
				t.Fatalf("approving: %d\n%s", p.Status, p.Body)
			}
			w.given.Store(0)
			if err := proven(r.ID); err != nil {
				t.Fatalf("an approved request: %v", err)
			}
			edit(r)
			if err := proven(r.ID); !errors.Is(err, approval.ErrAltered) {
				t.Errorf("an approved request of which %s was edited: %v, want ErrAltered", what, err)
			}
		}
		// One that nobody has approved is not made so by hand.
		r := w.ask()
		exec(`update access_request set state = 'approved', decided_at = 1, decided_by = 'system:policy', result = 'grt_1' where id = $1`, r.ID)
		if err := proven(r.ID); !errors.Is(err, approval.ErrAltered) {
			t.Errorf("a request that was approved by hand: %v, want ErrAltered", err)
		}
	})
}
