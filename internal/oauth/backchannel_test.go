package oauth_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/token"
)

func TestBackchannel(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot, alice, mallory := w.CodeAgent("bot"), w.Person("alice"), w.Person("mallory")
		asked := w.Name(bot, "alice", "binding_message", "Invoice <b>42</b>: W4SC")
		request := asked.Text("auth_req_id")
		if asked.Status != http.StatusOK || !strings.HasPrefix(request, "est_ar_") || asked.JSON["expires_in"] != 300. || asked.JSON["interval"] != 5. ||
			asked.Header.Get("Cache-Control") != "no-store" {
			t.Fatalf("the answer is %d %s", asked.Status, asked.Body)
		}
		refused(t, "before the person has decided", w.Fetch(bot, request), 400, "authorization_pending")
		refused(t, "asked again at once", w.Fetch(bot, request), 400, "slow_down")
		refused(t, "asked with another grant type", w.Poll(bot, request), 400, "invalid_grant")

		// It waits for her and for nobody else, and she reads the same as anywhere.
		if all := mallory.Waiting(); len(all) != 0 {
			t.Errorf("for somebody else wait %v", all)
		}
		list := alice.Load("/device")
		if !strings.Contains(list.Body, "What waits for you") || !strings.Contains(list.Body, "Invoice &lt;b&gt;42&lt;/b&gt;: W4SC") {
			t.Errorf("the page of what waits says\n%s", list.Body)
		}
		page := alice.Load(alice.Waiting()[0])
		for _, want := range []string{
			"Let bot act for you?", "the sponsor of bot", "crm.example", "<code>customer.read</code>", "192.0.2.1", "Invoice &lt;b&gt;42&lt;/b&gt;: W4SC",
			"the same words where it works", "What it learns about you",
		} {
			if !strings.Contains(page.Body, want) {
				t.Errorf("the page that asks does not say %q:\n%s", want, page.Body)
			}
		}
		if p := mallory.Load(alice.Waiting()[0]); p.Status != http.StatusConflict || strings.Contains(p.Body, "W4SC") {
			t.Errorf("somebody else sees it: %d %s", p.Status, p.Body)
		}
		good := alice.Fill(page, "/device/decision", "decision", "allow")
		if p := mallory.Post("/device/decision", good); p.Status != http.StatusConflict {
			t.Errorf("somebody else decides: %d", p.Status)
		}
		// To decide takes a passkey, and not one of this morning.
		alice.SignIn(false)
		if p := alice.Load(page.At); p.Status != http.StatusSeeOther || !strings.HasPrefix(p.Header.Get("Location"), "/login?again=1&to=%2Fdevice%3Frequest") {
			t.Errorf("without a passkey: %d to %q", p.Status, p.Header.Get("Location"))
		}
		alice.SignIn(true)
		if p := alice.Answer("allow"); p.Status != http.StatusOK || !strings.Contains(p.Body, "bot acts for you") {
			t.Fatalf("a yes: %d %s", p.Status, p.Body)
		}
		refused(t, "another client's request", w.Fetch(w.CodeAgent("thief"), request), 400, "invalid_grant")
		a := w.Fetch(bot, request)
		granted(t, "after a yes", a)
		claims := claimsOf(t, w, a.Token(), oauthtest.CRM)
		if claims["sub"] != "user:"+alice.ID || claims["acr"] != "phr" || a.Text("id_token") == "" || !strings.HasPrefix(a.Text("refresh_token"), "est_rt_") {
			t.Errorf("the answer is %s", a.Body)
		}
		refused(t, "the same again", w.Fetch(bot, request), 400, "invalid_grant")
		if !w.Live(bot, a.Token()) {
			t.Error("a second presentation ended the token")
		}
		if all := alice.Waiting(); len(all) != 0 {
			t.Errorf("after the decision wait %v", all)
		}

		no := w.Name(bot, alice.ID).Text("auth_req_id")
		alice.Answer("deny")
		refused(t, "after a no", w.Fetch(bot, no), 400, "access_denied")

		// It lapses when the client says, or after five minutes.
		short := w.Name(bot, "alice", "requested_expiry", "60")
		long := w.Name(bot, "alice", "requested_expiry", "86400")
		if short.JSON["expires_in"] != 60. || long.JSON["expires_in"] != 300. {
			t.Errorf("the lives are %v and %v", short.JSON["expires_in"], long.JSON["expires_in"])
		}
		clock.Advance(time.Minute)
		refused(t, "after a minute", w.Fetch(bot, short.Text("auth_req_id")), 400, "expired_token")
		if all := alice.Waiting(); len(all) != 1 {
			t.Errorf("after a minute wait %v, want the longer one", all)
		}
		clock.Advance(4 * time.Minute)
		refused(t, "after five", w.Fetch(bot, long.Text("auth_req_id")), 400, "expired_token")

		// Whoever leaves takes it along.
		last := w.Name(bot, "alice").Text("auth_req_id")
		alice.Answer("allow")
		if _, err := w.People.Disable(t.Context(), oauthtest.Admin, alice.ID, "left"); err != nil {
			t.Fatal(err)
		}
		refused(t, "after the person has left", w.Fetch(bot, last), 400, "invalid_grant")
		refused(t, "a person who has left", w.Name(bot, "alice"), 400, "unknown_user_id")
		if w.Live(bot, a.Token()) {
			t.Error("a token outlives the person")
		}
	})
}

// However many ask at once for what a person agreed to, on one node or two,
// exactly one gets it.
func TestBackchannelRequestIsGoodOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, two := pair(t, d)
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		request := w.Name(bot, "alice").Text("auth_req_id")
		alice.Answer("allow")
		two.Access.Grant(bot.ID, oauthtest.CRM, "customer.read")
		won := 0
		for _, a := range atOnce(64, func(i int) oauthtest.Answer { return []*oauthtest.World{w, two}[i%2].Fetch(bot, request) }) {
			if a.Status == http.StatusOK {
				won++
				continue
			}
			refused(t, "one of 64", a, 400, "invalid_grant")
		}
		if won != 1 {
			t.Errorf("of 64 redemptions of one request %d got a token, want 1", won)
		}
	})
}

// What a client asks for is checked at once, and nobody is worn down.
func TestBackchannelRequestsAreChecked(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, plain := w.CodeAgent("bot"), w.Agent("plain")
		w.Person("alice")
		for name, c := range map[string]struct {
			pairs []string
			want  string
		}{
			"nobody by that name":         {[]string{"login_hint", "nobody"}, "unknown_user_id"},
			"nobody by that id":           {[]string{"login_hint", "usr_nobody"}, "unknown_user_id"},
			"a very long name":            {[]string{"login_hint", strings.Repeat("a", 300)}, "unknown_user_id"},
			"nobody":                      {[]string{"login_hint", ""}, "invalid_request"},
			"a hint of another kind":      {[]string{"id_token_hint", "x"}, "invalid_request"},
			"a request as a JWT":          {[]string{"request", "e30.e30."}, "invalid_request"},
			"without openid":              {[]string{"scope", "customer.read"}, "invalid_scope"},
			"an unknown scope":            {[]string{"scope", "openid customer.destroy"}, "invalid_scope"},
			"an unknown resource":         {[]string{"resource", "https://erp.example"}, "invalid_target"},
			"an unknown purpose":          {[]string{"purpose", "spying"}, "invalid_request"},
			"a long message":              {[]string{"binding_message", strings.Repeat("ä", 101)}, "invalid_binding_message"},
			"a message with a line break": {[]string{"binding_message", "a\nb"}, "invalid_binding_message"},
			"a message that turns round":  {[]string{"binding_message", "pay \u202e001"}, "invalid_binding_message"},
			"no time at all":              {[]string{"requested_expiry", "0"}, "invalid_request"},
			"a time that is none":         {[]string{"requested_expiry", "soon"}, "invalid_request"},
			"another client":              {[]string{"client_id", plain.ID}, "invalid_request"},
		} {
			refused(t, name, w.Name(bot, "alice", c.pairs...), 400, c.want)
		}
		refused(t, "a client that is not registered for it", w.Name(plain, "alice"), 400, "unauthorized_client")
		public := w.CodeAgent("public", func(c *agent.Client) { c.Methods = []string{"none"} })
		f := oauthtest.Form("client_id", public.ID, "login_hint", "alice", "scope", "openid")
		refused(t, "a client that does not authenticate", w.Do(oauthtest.Request("/oauth/ciba", f)), 400, "unauthorized_client")
		if n := count(t, d, "select count(*) from oauth_waiting"); n != 0 {
			t.Errorf("%d of these wait", n)
		}
		for i := range 3 {
			if a := w.Name(bot, "alice", "binding_message", fmt.Sprint(strings.Repeat("ä", 99), i)); a.Status != http.StatusOK {
				t.Fatalf("request %d: %d %s", i, a.Status, a.Body)
			}
		}
		refused(t, "a fourth request", w.Name(bot, "alice"), 429, "temporarily_unavailable")
		if a := w.Name(w.CodeAgent("other"), "alice"); a.Status != http.StatusOK {
			t.Errorf("another client's first: %d %s", a.Status, a.Body)
		}
		m := w.Metadata()
		if m.BackchannelEndpoint != m.Issuer+"/oauth/ciba" || len(m.BackchannelModes) != 1 || m.BackchannelModes[0] != "poll" {
			t.Errorf("the metadata says %q, %v", m.BackchannelEndpoint, m.BackchannelModes)
		}
		for _, grantType := range []string{token.Device, token.Backchannel} {
			if !strings.Contains(strings.Join(m.GrantTypes, " "), grantType) {
				t.Errorf("the metadata does not name %s", grantType)
			}
		}
	})
}

// FuzzWaiting: whatever is sent to the endpoints of clients without a browser is
// answered, and a link brings a code to the page or nothing.
func FuzzWaiting(f *testing.F) {
	w := oauthtest.New(f, dbtest.Open(f))
	bot, alice := w.CodeAgent("bot"), w.Person("alice")
	shown := regexp.MustCompile(`name="user_code" value="([BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4})?" required`)
	f.Add("login_hint=alice&scope=openid&binding_message=W4SC&requested_expiry=30")
	f.Add("resource=https%3A%2F%2Fcrm.example&scope=customer.read")
	f.Add("bcdf-ghjk")
	f.Add("BCDF%20GHJK")
	f.Fuzz(func(t *testing.T, text string) {
		w.T, alice.T = t, t
		for _, path := range []string{"/oauth/device", "/oauth/ciba"} {
			r := oauthtest.Request(path, nil, oauthtest.Basic(bot.ID, bot.Secret))
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
			a := w.Do(r)
			if a.Status >= 500 || a.Status == http.StatusOK && a.Text("device_code") == "" && a.Text("auth_req_id") == "" {
				t.Errorf("%s of %q: %d %s", path, text, a.Status, a.Body)
			}
		}
		if p := alice.Load("/device?user_code=" + url.QueryEscape(text)); p.Status != http.StatusOK || !shown.MatchString(p.Body) {
			t.Errorf("a link with the code %q: %d %s", text, p.Status, p.Body)
		}
	})
}
