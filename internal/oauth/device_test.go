package oauth_test

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

func TestDevice(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		clock.Advance(d.Now().Truncate(time.Hour).Add(time.Hour).Sub(d.Now())) // the page names the hour
		bot, alice := w.CodeAgent("bot"), w.Person("alice")                    // who is signed in for less than an hour
		asked := w.Device(bot, "scope", "customer.read")
		code, value := asked.Text("user_code"), asked.Text("device_code")
		if asked.Status != http.StatusOK || !regexp.MustCompile(`^[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}$`).MatchString(code) ||
			!strings.HasPrefix(value, "est_dc_") || asked.JSON["expires_in"] != 600. || asked.JSON["interval"] != 5. ||
			asked.Text("verification_uri") != string(oauthtest.Issuer)+"/device" || asked.Text("verification_uri_complete") != string(oauthtest.Issuer)+"/device?user_code="+code ||
			asked.Header.Get("Cache-Control") != "no-store" {
			t.Fatalf("the answer is %d %s", asked.Status, asked.Body)
		}
		refused(t, "before anybody has decided", w.Poll(bot, value), 400, "authorization_pending")

		// However the code is typed, the person reads who asks, for whom and whence.
		page := alice.Type(" " + strings.ToLower(strings.ReplaceAll(code, "-", " ")))
		for _, want := range []string{
			"Let bot act for you?", "<strong>alice</strong>", "the sponsor of bot", "crm.example", "<code>customer.read</code>", "at most 24 hours", "billing",
			"192.0.2.1", d.Now().Format("2 January 2006, 15:"), code, "What it can never do", "You will be asked each time.", "started this agent yourself",
		} {
			if !strings.Contains(page.Body, want) {
				t.Errorf("the page that asks does not say %q:\n%s", want, page.Body)
			}
		}
		if strings.Contains(page.Body, "customer.update") || strings.Contains(page.Body, "You go back to") {
			t.Error("the page speaks of what was not asked for")
		}
		done := alice.Post("/device/decision", alice.Fill(page, "/device/decision", "decision", "allow"))
		if done.Status != http.StatusOK || !strings.Contains(done.Body, "bot acts for you") {
			t.Fatalf("a yes: %d %s", done.Status, done.Body)
		}
		a := w.Poll(bot, value)
		granted(t, "a code that was agreed to", a)
		if a.Text("scope") != "customer.read" || !strings.HasPrefix(a.Text("refresh_token"), "est_rt_") {
			t.Errorf("the answer is %s", a.Body)
		}
		claims := claimsOf(t, w, a.Token(), oauthtest.CRM)
		for name, want := range map[string]any{"sub": "user:" + alice.ID, "client_id": bot.ID, "scope": "customer.read", "acr": "phr", "purpose": "billing"} {
			if claims[name] != want {
				t.Errorf("the claim %s is %v, want %v", name, claims[name], want)
			}
		}
		s, err := w.Sessions.Get(t.Context(), oauthtest.Admin, a.Text("session"))
		if err != nil || s.Agent != bot.ID || s.OpenedBy != estover.User(alice.ID) {
			t.Errorf("the token belongs to the session %+v, %v", s, err)
		}

		// What was exchanged buys nothing more, and takes nothing away.
		refused(t, "the same again", w.Poll(bot, value), 400, "invalid_grant")
		next := w.Refresh(bot, a.Text("refresh_token"))
		granted(t, "a refresh afterwards", next)
		if !w.Live(bot, a.Token()) {
			t.Error("a second presentation ended the token")
		}
		if p := alice.Type(code); p.Status != http.StatusBadRequest || !strings.Contains(p.Body, "Nothing waits for this code") {
			t.Errorf("a code that was decided: %d %s", p.Status, p.Body)
		}

		// It stands among what acts for the person, who ends it there.
		kept := alice.Load("/oauth/consents")
		if !strings.Contains(kept.Body, "asks each time") {
			t.Errorf("the page of consents says %s", kept.Body)
		}
		if p := alice.Post("/oauth/consents", alice.Fill(kept, "/oauth/consents")); p.Status != http.StatusSeeOther {
			t.Fatal(p.Body)
		}
		if w.Live(bot, next.Token()) {
			t.Error("the token outlives the consent")
		}
		refused(t, "a refresh after the end", w.Refresh(bot, next.Text("refresh_token")), 400, "invalid_grant")

		// The yes of before is not a yes to the next.
		again := w.Device(bot, "scope", "customer.read")
		refused(t, "a second request", w.Poll(bot, again.Text("device_code")), 400, "authorization_pending")
		if p := alice.Decide(again.Text("user_code"), "deny"); p.Status != http.StatusOK || !strings.Contains(p.Body, "bot gets nothing") {
			t.Errorf("a no: %d %s", p.Status, p.Body)
		}
		refused(t, "after a no", w.Poll(bot, again.Text("device_code")), 400, "access_denied")
		if n := count(t, d, "select count(*) from audit where action = 'authorization.deny' and outcome = 'done'"); n != 1 {
			t.Errorf("a no is on record %d times, want once", n)
		}

		late := w.Device(bot)
		clock.Advance(token.DeviceLife)
		refused(t, "after ten minutes", w.Poll(bot, late.Text("device_code")), 400, "expired_token")
		if p := alice.Type(late.Text("user_code")); p.Status != http.StatusBadRequest {
			t.Errorf("a code of ten minutes ago: %d", p.Status)
		}

		// Nothing of what can be typed or presented is stored.
		if n := count(t, d, "select count(*) from oauth_waiting where request like $1 or request like $2", "%"+value+"%", "%"+code+"%"); n != 0 {
			t.Error("a code stands in the database")
		}
	})
}

// A client waits between two questions, and longer when it did not; other
// refusals are on record, and this is none.
func TestDeviceSlowDown(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		clock.Hold()
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		asked := w.Device(bot)
		value := asked.Text("device_code")
		for i, step := range []struct {
			after time.Duration
			want  string
		}{
			{0, "authorization_pending"},
			{5 * time.Second, "authorization_pending"},
			{time.Second, "slow_down"},      // ten seconds from here
			{5 * time.Second, "slow_down"},  // fifteen
			{10 * time.Second, "slow_down"}, // twenty
			{20 * time.Second, "authorization_pending"},
			{20 * time.Second, "authorization_pending"},
		} {
			clock.Advance(step.after)
			if a := w.Poll(bot, value); a.Status != http.StatusBadRequest || a.Error() != step.want {
				t.Errorf("question %d: %d %s, want %s", i, a.Status, a.Body, step.want)
			}
		}
		if n := count(t, d, "select count(*) from audit where action = 'token.issue'"); n != 0 {
			t.Errorf("%d questions are on record as refusals", n)
		}
		// What authenticates a question is used up by it.
		f := oauthtest.Form("grant_type", token.Device, "device_code", value, "client_assertion_type", oauthtest.AssertionType, "client_assertion", w.Assertion(bot))
		clock.Advance(time.Minute)
		f.Set("client_assertion", w.Assertion(bot))
		refused(t, "by an assertion", w.Do(oauthtest.Request("/oauth/token", f)), 400, "authorization_pending")
		refused(t, "by the same assertion", w.Do(oauthtest.Request("/oauth/token", f)), 401, "invalid_client")
		// A yes is told however soon it is asked for.
		alice.Decide(asked.Text("user_code"), "allow")
		granted(t, "at once after the yes", w.Poll(bot, value))
	})
}

// However many ask at once for what a person agreed to, on one node or two,
// exactly one gets it; and of a yes and a no at once exactly one counts.
func TestDeviceCodeIsGoodOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := t.TempDir() + "/root.key"
		one, two := oauthtest.Node(t, d, key), oauthtest.Node(t, d, key)
		bot, alice := one.CodeAgent("bot"), one.Person("alice")
		two.Access.Grant(bot.ID, oauthtest.CRM, "customer.read", "customer.update") // the page says what it is about
		value := alice.DeviceCode(bot)
		won := 0
		raw := ""
		for _, a := range atOnce(64, func(i int) oauthtest.Answer { return []*oauthtest.World{one, two}[i%2].Poll(bot, value) }) {
			if a.Status == http.StatusOK {
				won++
				raw = a.Token()
				continue
			}
			refused(t, "one of 64", a, 400, "invalid_grant")
		}
		if won != 1 {
			t.Errorf("of 64 redemptions of one device code %d got a token, want 1", won)
		}
		if !one.Live(bot, raw) {
			t.Error("what the code bought has ended, although nobody else could have it")
		}

		asked := one.Device(bot)
		forms := make([]url.Values, 64)
		for i := range forms {
			if i%16 == 0 { // some forms are sent several times
				forms[i] = alice.Fill(alice.Type(asked.Text("user_code")), "/device/decision", "decision", []string{"allow", "deny"}[i/16%2])
			} else {
				forms[i] = forms[i-1]
			}
		}
		decided := 0
		for _, status := range atOnce(64, func(i int) int { return at(alice, i, one, two).Post("/device/decision", forms[i]).Status }) {
			switch status {
			case http.StatusOK:
				decided++
			case http.StatusConflict:
			default:
				t.Errorf("one of 64 decisions: %d", status)
			}
		}
		if decided != 1 {
			t.Errorf("of 64 decisions on one request %d counted, want 1", decided)
		}
		if n := count(t, d, "select count(*) from oauth_grant where kind = $1", token.Device); n > 2 {
			t.Errorf("%d grants were made of two requests", n)
		}
	})
}

// TestA17: device codes cannot be guessed, reused or phished in silence.
func TestA17(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		clock.Hold() // guesses come back as time goes by
		bot, thief, alice, mallory := w.CodeAgent("bot"), w.CodeAgent("thief"), w.Person("alice"), w.Person("mallory")
		asked := w.Device(bot)
		code, value := asked.Text("user_code"), asked.Text("device_code")

		// Guessing: after a few codes a person is held up, also by the right one,
		// and nobody else is.
		for range 10 {
			if p := mallory.Type("BBBB-BBBB"); p.Status != http.StatusBadRequest || !strings.Contains(p.Body, "Nothing waits") {
				t.Fatalf("a guess: %d %s", p.Status, p.Body)
			}
		}
		if p := mallory.Type(code); p.Status != http.StatusTooManyRequests {
			t.Errorf("the eleventh guess: %d", p.Status)
		}
		if p := alice.Type(code); p.Status != http.StatusOK {
			t.Errorf("somebody else's first code: %d", p.Status)
		}
		clock.Advance(31 * time.Second)
		if p := mallory.Type(code); p.Status != http.StatusOK {
			t.Errorf("after half a minute: %d", p.Status)
		}
		// From one address all people together have fifty.
		for i := range 4 {
			p := w.Person("many-" + string(rune('a'+i)))
			for range 10 {
				p.Type("BBBB-BBBB")
			}
		}
		late := w.Person("late")
		for range 10 {
			late.Type("BBBB-BBBB")
		}
		if p := w.Person("last").Type(code); p.Status != http.StatusTooManyRequests {
			t.Errorf("after fifty codes from one address: %d", p.Status)
		}
		clock.Advance(2 * time.Minute)

		// A link decides nothing: the person confirms the code, and then is asked.
		linked := alice.Load("/device?user_code=" + code)
		if linked.Status != http.StatusOK || !strings.Contains(linked.Body, `value="`+code+`"`) || linked.Has("/device/decision") || strings.Contains(linked.Body, "sponsor of bot") {
			t.Errorf("the page of a link: %d %s", linked.Status, linked.Body)
		}
		page := alice.Post("/device", alice.Fill(linked, "/device"))
		if !strings.Contains(page.Body, "Where it asks from") || !strings.Contains(page.Body, "192.0.2.1") {
			t.Errorf("the page does not say where the request came from:\n%s", page.Body)
		}
		// Forms of elsewhere, of somebody else or for something else do nothing.
		other := w.Device(bot) // the same once more, of somebody else who uses the agent
		good := alice.Fill(page, "/device/decision", "decision", "allow")
		cross := func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }
		for name, try := range map[string]func() int{
			"a code from another site":     func() int { return alice.Post("/device", alice.Fill(linked, "/device"), cross).Status },
			"a decision from another site": func() int { return alice.Post("/device/decision", good, cross).Status },
			"another person's form":        func() int { return mallory.Post("/device/decision", good).Status },
			"the form for another request": func() int {
				return alice.Post("/device/decision", saying(clonedForm(good), "request", otherWaiting(t, d, good.Get("request")))).Status
			},
			"a form without its word":       func() int { return alice.Post("/device/decision", saying(clonedForm(good), "form", "")).Status },
			"a request that does not exist": func() int { return alice.Post("/device/decision", saying(clonedForm(good), "request", "wtg_x")).Status },
		} {
			if status := try(); status != http.StatusForbidden && status != http.StatusConflict {
				t.Errorf("%s: %d", name, status)
			}
		}
		refused(t, "after all that", w.Poll(bot, value), 400, "authorization_pending")
		refused(t, "and the other", w.Poll(bot, other.Text("device_code")), 400, "authorization_pending")

		// What has changed since the person read it is asked anew.
		w.Access.Grant(bot.ID, oauthtest.CRM, "customer.read", "customer.update", "customer.delete")
		if p := alice.Post("/device/decision", good); p.Status != http.StatusForbidden {
			t.Errorf("a yes to less than what would be given: %d", p.Status)
		}
		// Who has signed in by something that can be written down signs in again.
		alice.SignIn(false)
		if p := alice.Load("/device?user_code=" + code); p.Status != http.StatusSeeOther || !strings.HasPrefix(p.Header.Get("Location"), "/login?again=1&to=%2Fdevice%3Fuser_code%3D"+code) {
			t.Errorf("without a passkey: %d to %q", p.Status, p.Header.Get("Location"))
		}
		alice.SignIn(true)
		clock.Advance(31 * time.Minute)
		if p := alice.Load("/device"); p.Status != http.StatusSeeOther {
			t.Errorf("with a passkey of this morning: %d", p.Status)
		}
		alice.SignIn(true)

		// Another client's code is worth nothing, and the right one goes on.
		value = alice.DeviceCode(bot)
		refused(t, "another client's device code", w.Poll(thief, value), 400, "invalid_grant")
		refused(t, "a code of another kind", w.Poll(bot, alice.Code(bot)), 400, "invalid_grant")
		refused(t, "a code with a letter more", w.Poll(bot, value+"x"), 400, "invalid_grant")
		refused(t, "no code", w.Poll(bot, ""), 400, "invalid_request")
		granted(t, "its own client afterwards", w.Poll(bot, value))
	})
}

func clonedForm(f url.Values) url.Values {
	c := url.Values{}
	for name, values := range f {
		c[name] = values
	}
	return c
}

// otherWaiting is the request that waits beside this one.
func otherWaiting(t *testing.T, d *db.DB, one string) (id string) {
	t.Helper()
	if err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), "select id from oauth_waiting where id <> $1", one).Scan(&id)
	}); err != nil {
		t.Fatal(err)
	}
	return id
}

// Locks and suspensions of person, agent and client are checked when the person
// decides and when the client comes, and what was never fetched ends.
func TestDeviceAfterwards(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		// At the decision.
		held, alice := w.CodeAgent("held"), w.Person("alice")
		asked := w.Device(held)
		page := alice.Type(asked.Text("user_code"))
		hold(t, w, held, agent.Suspension)
		if p := alice.Post("/device/decision", alice.Fill(page, "/device/decision", "decision", "allow")); p.Status != http.StatusForbidden {
			t.Errorf("a yes to an agent that is held: %d", p.Status)
		}
		if p := alice.Type(asked.Text("user_code")); p.Status != http.StatusForbidden {
			t.Errorf("the code of an agent that is held: %d", p.Status)
		}
		refused(t, "a request of an agent that is held", w.Device(held), 400, "access_denied")
		if n := count(t, d, "select count(*) from oauth_grant"); n != 0 {
			t.Errorf("%d grants were made", n)
		}
		// At the exchange; the agent's own states are in TestMatrixOfPeople.
		bot, bob := w.CodeAgent("bot"), w.Person("bob")
		value := bob.DeviceCode(bot)
		if _, err := w.People.Disable(t.Context(), oauthtest.Admin, bob.ID, "left"); err != nil {
			t.Fatal(err)
		}
		refused(t, "after the person has left", w.Poll(bot, value), 400, "invalid_grant")
		if n := count(t, d, "select count(*) from oauth_grant where ended_at is null"); n != 0 {
			t.Errorf("%d grants of somebody who left live on", n)
		}
		clock.Hold()
		// A late yes leaves time to fetch it; nobody comes, and it ends.
		late := w.Device(bot)
		clock.Advance(token.DeviceLife - time.Second)
		alice.SignIn(true)
		alice.Decide(late.Text("user_code"), "allow")
		clock.Advance(50 * time.Second)
		if err := w.Tokens.SweepCodes(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := count(t, d, "select count(*) from oauth_grant where ended_at is null"); n != 1 {
			t.Errorf("%d grants live while the client may come, want 1", n)
		}
		clock.Advance(11 * time.Second)
		refused(t, "too late", w.Poll(bot, late.Text("device_code")), 400, "expired_token")
		if err := w.Tokens.SweepCodes(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := count(t, d, "select count(*) from session where ended_at is null"); n != 0 {
			t.Errorf("%d sessions are open for what nobody came for", n)
		}
		clock.Advance(session.LongestLife)
		if err := w.Tokens.SweepCodes(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := count(t, d, "select count(*) from oauth_waiting"); n != 0 {
			t.Errorf("%d requests are kept for ever", n)
		}
	})
}

// Who may ask: clients that are registered for it, as at the token endpoint,
// also those that do not authenticate; and what they ask for is checked at once.
func TestDeviceRequestsAreChecked(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, plain, alice := w.CodeAgent("bot"), w.Agent("plain"), w.Person("alice")
		for name, c := range map[string]struct {
			pairs []string
			want  string
		}{
			"an unknown scope":    {[]string{"scope", "customer.destroy"}, "invalid_scope"},
			"an unknown resource": {[]string{"resource", "https://erp.example"}, "invalid_target"},
			"an unknown purpose":  {[]string{"purpose", "spying"}, "invalid_request"},
			"another client":      {[]string{"client_id", plain.ID}, "invalid_request"},
		} {
			refused(t, name, w.Device(bot, c.pairs...), 400, c.want)
		}
		refused(t, "a client that is not registered for it", w.Device(plain), 400, "unauthorized_client")
		refused(t, "a wrong secret", w.Do(oauthtest.Request("/oauth/device", oauthtest.Form(), oauthtest.Basic(bot.ID, plain.Secret))), 401, "invalid_client")
		refused(t, "nobody", w.Do(oauthtest.Request("/oauth/device", oauthtest.Form("client_id", bot.ID))), 401, "invalid_client")
		if a := w.Do(httpGet("/oauth/device")); a.Status != http.StatusMethodNotAllowed {
			t.Errorf("a GET: %d", a.Status)
		}
		m := w.Metadata()
		if m.DeviceEndpoint != m.Issuer+"/oauth/device" {
			t.Errorf("the metadata says %q", m.DeviceEndpoint)
		}
		public := w.CodeAgent("public", func(c *agent.Client) { c.Methods = []string{"none"} })
		ask := func() oauthtest.Answer {
			return w.Do(oauthtest.Request("/oauth/device", oauthtest.Form("client_id", public.ID, "resource", oauthtest.CRM)))
		}
		asked := ask()
		alice.Decide(asked.Text("user_code"), "allow")
		f := oauthtest.Form("client_id", public.ID, "grant_type", token.Device, "device_code", asked.Text("device_code"))
		granted(t, "a client that does not authenticate", w.Do(oauthtest.Request("/oauth/token", f)))
		for range 29 {
			ask()
		}
		refused(t, "the thirty-first request of a stranger", ask(), 429, "temporarily_unavailable")
		if a := w.Device(bot); a.Status != http.StatusOK {
			t.Errorf("a client that authenticates, from the same address: %d %s", a.Status, a.Body)
		}
		// A key that is shown with the request is shown at the end, too.
		prover, thief := w.Prover("P-256"), w.Prover("P-256")
		bound := w.Do(oauthtest.Request("/oauth/device", oauthtest.Form("resource", oauthtest.CRM), oauthtest.Basic(bot.ID, bot.Secret), prover.Prove("")))
		alice.Decide(bound.Text("user_code"), "allow")
		g := oauthtest.Form("grant_type", token.Device, "device_code", bound.Text("device_code"))
		refused(t, "without the key", w.Do(oauthtest.Request("/oauth/token", g, oauthtest.Basic(bot.ID, bot.Secret))), 400, "invalid_grant")
		refused(t, "with another key", w.Do(oauthtest.Request("/oauth/token", g, oauthtest.Basic(bot.ID, bot.Secret), thief.Prove(""))), 400, "invalid_grant")
		granted(t, "with the key", w.Do(oauthtest.Request("/oauth/token", g, oauthtest.Basic(bot.ID, bot.Secret), prover.Prove(""))))
		// With openid the client learns who the person is.
		id := w.Poll(bot, alice.DeviceCode(bot, "scope", "openid customer.read"))
		granted(t, "with openid", id)
		if id.Text("id_token") == "" {
			t.Errorf("no ID token: %s", id.Body)
		}
	})
}
