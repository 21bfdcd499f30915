package oauth_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/detail"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/token"
)

// Details that are asked for in tests.
const (
	reads   = `[{"type":"estover_task","locations":["https://crm.example"],"actions":["customer.read"],"parameters":{"id":["7"]}}]`
	updates = `[{"type":"estover_task","locations":["https://crm.example"],"actions":["customer.read","customer.update"]}]`
	pays    = `[{"type":"payment","amount":100,"to":["DE1","DE2"]}]`
)

// payments registers a type that the CRM enforces.
func payments(t *testing.T, w *oauthtest.World) {
	t.Helper()
	if _, err := w.Tokens.DetailTypes.Put(t.Context(), oauthtest.Admin, detail.Spec{
		Name: "payment", Title: "Start one payment", Resources: []string{oauthtest.CRM},
		Schema: `{"type":"object","additionalProperties":false,"required":["type","amount","to"],
			"properties":{"type":{"const":"payment"},"amount":{"type":"number"},"to":{"type":"array","items":{"type":"string"}}}}`,
		Members: []detail.Member{{Name: "amount", Title: "At most", Narrows: detail.AtMost}, {Name: "to", Title: "To one of", Narrows: detail.Subset}},
	}, ""); err != nil {
		t.Fatal(err)
	}
}

// detailed lets an agent use both types.
func detailed(c *agent.Client) { c.Details = []string{"estover_task", "payment"} }

// has checks which authorization details an answer has, in the response and in the
// token.
func has(t *testing.T, what string, a oauthtest.Answer, want string) oauthtest.Answer {
	t.Helper()
	granted(t, what, a)
	var details any
	if want != "" {
		if err := json.Unmarshal([]byte(want), &details); err != nil {
			t.Fatal(err)
		}
	}
	if a.Token() != "" && (!reflect.DeepEqual(a.JSON["authorization_details"], details) || !reflect.DeepEqual(said(t, a.Token())["authorization_details"], details)) {
		t.Errorf("%s: the answer is %s, want the details %s", what, a.Body, want)
	}
	return a
}

// What is granted beyond scopes stands in the token, the response and the
// introspection (RFC 9396, sections 7 and 9), bounds the scope, names the audience,
// and is known to policy and to the record.
func TestAuthorizationDetails(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		payments(t, w)
		bot := w.CodeAgent("bot", detailed)
		if m := w.Metadata().DetailTypes; !reflect.DeepEqual(m, []string{"estover_task", "payment"}) {
			t.Errorf("authorization_details_types_supported is %v", m)
		}
		var seen []any
		var bound bool
		w.Decider.Set(func(c estover.Caller, op guard.Op) guard.Decision {
			if in, ok := op.Input.(token.Wanted); ok {
				seen, bound = in.Detailed()
			}
			return guardtest.AllowAll(c, op)
		})
		a := has(t, "a task", w.Ask(bot, "authorization_details", " "+reads+" "), reads)
		if says := said(t, a.Token()); says["aud"] != oauthtest.CRM || says["scope"] != "customer.read" || a.Text("scope") != "customer.read" {
			t.Errorf("the token is for %v with the scope %v, want the location and the action of the task", says["aud"], says["scope"])
		}
		if len(seen) != 1 || !bound {
			t.Errorf("policy saw %v, bound: %v", seen, bound)
		}
		looked := w.Do(oauthtest.Request("/oauth/introspect", oauthtest.Form("token", a.Token()), oauthtest.Basic(bot.ID, bot.Secret)))
		if !reflect.DeepEqual(looked.JSON["authorization_details"], a.JSON["authorization_details"]) || looked.JSON["active"] != true {
			t.Errorf("introspection says %s", looked.Body)
		}
		if tok, err := w.Tokens.Verify(t.Context(), a.Token()); err != nil || len(tok.Caller().Tasks) != 1 || tok.Caller().Tasks[0].Parameters["id"][0] != "7" {
			t.Errorf("whoever takes the token reads %+v, %v", tok, err)
		}
		if n := count(t, d, `select count(*) from audit where action = 'token.issue' and outcome = 'done'`); n == 0 {
			t.Error("nothing is on record")
		}
		has(t, "a payment", w.Ask(bot, "resource", oauthtest.CRM, "authorization_details", pays), pays)
		if len(seen) != 1 || bound {
			t.Errorf("policy saw %v, bound: %v", seen, bound)
		}
		has(t, "both", w.Ask(bot, "resource", oauthtest.CRM, "authorization_details", reads[:len(reads)-1]+","+pays[1:]), reads[:len(reads)-1]+","+pays[1:])
		has(t, "none", w.Ask(bot, "resource", oauthtest.CRM), "")
		has(t, "an empty list", w.Ask(bot, "resource", oauthtest.CRM, "authorization_details", "[]"), "")
	})
}

// Nothing that is not in order is granted anywhere, and the answer says what to do
// (RFC 9396, section 5).
func TestA16AuthorizationDetailsAreStrict(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		payments(t, w)
		bot, plain, alice := w.CodeAgent("bot", detailed), w.CodeAgent("plain"), w.Person("alice")
		const code = "invalid_authorization_details"
		for what, text := range map[string]string{
			"no JSON": `{`, "no array": `{"type":"payment"}`, "deep": strings.Repeat(`[`, 5000) + strings.Repeat(`]`, 5000), "a name twice": `[{"type":"payment","type":"estover_task"}]`,
			"10,000 elements": "[" + strings.Repeat("1,", 9_999) + "1]", "17 KiB": "[" + strings.Repeat(" ", 17<<10) + "]", "an exponent": `[{"type":"payment","amount":1e400000000,"to":[]}]`,
			"a type that there is not": `[{"type":"refund"}]`, "a member that is missing": `[{"type":"payment","amount":1}]`, "a member that is not known": `[{"type":"payment","amount":1,"to":[],"x":1}]`,
			"what nobody enforces":          `[{"type":"estover_task","locations":["https://crm.example"],"actions":["customer.read"],"max_calls":5}]`,
			"an action that is not granted": `[{"type":"estover_task","locations":["https://crm.example"],"actions":["customer.delete"]}]`,
			"another purpose":               `[{"type":"estover_task","locations":["https://crm.example"],"actions":["customer.read"],"purpose":"sales"}]`,
		} {
			a := w.Ask(bot, "resource", oauthtest.CRM, "authorization_details", text)
			refused(t, what, a, 400, code)
			if !strings.HasSuffix(a.Text("error_description"), ".") {
				t.Errorf("%s: the description is %q", what, a.Text("error_description"))
			}
			if what == "17 KiB" || what == "10,000 elements" || what == "deep" {
				continue // longer than what a browser brings
			}
			f := oauthtest.AuthorizeQuery(bot, "authorization_details", text)
			refused(t, what+", pushed", w.Do(oauthtest.Request("/oauth/par", f, oauthtest.Basic(bot.ID, bot.Secret))), 400, code)
			if back := oauthtest.Back(alice, alice.Ask(bot, "authorization_details", text)); back.Get("error") != code {
				t.Errorf("%s, by a browser: %v", what, back)
			}
			refused(t, what+", by a code that is typed", w.Device(bot, "authorization_details", text), 400, code)
		}
		refused(t, "twice", w.Do(oauthtest.Request("/oauth/token", url.Values{"grant_type": {"client_credentials"}, "authorization_details": {reads, reads}}, oauthtest.Basic(bot.ID, bot.Secret))), 400, "invalid_request")

		// A client uses the types that it is registered for, in every flow.
		refused(t, "a client that may use none", w.Ask(plain, "authorization_details", reads), 400, code)
		refused(t, "the same, pushed", w.Do(oauthtest.Request("/oauth/par", oauthtest.AuthorizeQuery(plain, "authorization_details", pays), oauthtest.Basic(plain.ID, plain.Secret))), 400, code)

		// The place of a detail is that of the token (RFC 8707, RFC 9396, section 2.2).
		refused(t, "a location that the token is not for", w.Ask(bot, "resource", oauthtest.Tickets, "authorization_details", reads), 400, "invalid_target")
		refused(t, "a location that there is not", w.Ask(bot, "authorization_details", strings.Replace(reads, "crm", "erp", 1)), 400, "invalid_target")
		refused(t, "a resource at which no task is done", w.Ask(bot, "resource", oauthtest.Tickets, "authorization_details", strings.Replace(reads, `["https://crm`, `["https://tickets.example/v2","https://crm`, 1)), 400, code)
		refused(t, "a type that another resource enforces", w.Ask(bot, "resource", oauthtest.Tickets, "authorization_details", pays), 400, code)
		refused(t, "a type that no resource enforces", w.Ask(bot, "authorization_details", pays), 400, code)
	})
}

// Nothing widens: what a refresh, an exchange or another's assertion rests on bounds
// the authorization details as it bounds the scope, and to leave them out loses no
// bound.
func TestA19NoAuthorizationDetailsWiden(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		payments(t, w)
		const code = "invalid_authorization_details"
		bot, alice := w.CodeAgent("bot", detailed), w.Person("alice")
		both := updates[:len(updates)-1] + "," + pays[1:]
		a := has(t, "a code", w.Redeem(bot, alice.Code(bot, "authorization_details", both)), both)
		renew := func(pairs ...string) oauthtest.Answer {
			t.Helper()
			next := w.Refresh(bot, a.Text("refresh_token"), pairs...)
			if next.Token() != "" {
				a = next
			}
			return next
		}
		less := reads[:len(reads)-1] + `,{"type":"payment","amount":99.5,"to":["DE2"]}]`
		has(t, "a refresh that asks for nothing", renew(), both)
		has(t, "a refresh for less", renew("authorization_details", less), less)
		has(t, "a refresh without the payment", renew("authorization_details", reads), reads)
		has(t, "the grant keeps its width", renew(), both)
		for what, text := range map[string]string{
			"no task":              pays,
			"nothing":              "[]",
			"a larger payment":     strings.Replace(both, "100", "100.01", 1),
			"another payee":        strings.Replace(both, "DE2", "DE3", 1),
			"the payment twice":    both[:len(both)-1] + "," + pays[1:],
			"another place":        strings.Replace(updates, "crm.example", "tickets.example/v2", 1),
			"another action there": strings.Replace(updates, "customer.update", "note.write", 1),
		} {
			if got := renew("resource", oauthtest.CRM, "authorization_details", text); got.Token() != "" || got.Error() != code && got.Error() != "invalid_target" {
				t.Errorf("a refresh for %s: %d %s", what, got.Status, got.Body)
			}
		}

		// A person who agreed to no details agreed to no payment, but may be asked for less.
		none := w.Redeem(bot, alice.Code(bot))
		refused(t, "a payment that nobody agreed to", w.Refresh(bot, none.Text("refresh_token"), "authorization_details", pays), 400, code)
		has(t, "a task within what was agreed to", w.Refresh(bot, none.Text("refresh_token"), "authorization_details", reads), reads)

		// Handed on, to an agent that may use no type: to be confined nobody needs leave.
		ann := w.Agent("ann")
		w.Set(ann, agent.Client{Details: []string{"estover_task", "payment"}})
		helper := exchanger(w, "helper", oauthtest.CRM, oauthtest.Tickets)
		task := w.Ask(ann, "resource", oauthtest.CRM, "authorization_details", updates).Token()
		has(t, "an exchange that asks for nothing", exchange(w, helper, task), updates)
		refused(t, "an exchange for less, by who may not ask", exchange(w, helper, task, "authorization_details", reads), 400, code)
		refused(t, "an exchange with a payment, by who may not use any", exchange(w, helper, w.Ask(ann, "resource", oauthtest.CRM, "authorization_details", pays).Token()), 400, code)
		w.Set(helper, agent.Client{GrantTypes: []string{exchangeType}, Introspect: []string{oauthtest.CRM, oauthtest.Tickets}, Details: []string{"estover_task", "payment"}})
		one := has(t, "an exchange for less", exchange(w, helper, task, "authorization_details", reads), reads)
		refused(t, "widened again", exchange(w, helper, one.Token(), "authorization_details", updates), 400, code)
		refused(t, "left out", exchange(w, helper, task, "authorization_details", "[]"), 400, code)
		refused(t, "a payment that the token has not", exchange(w, helper, task, "authorization_details", both), 400, code)
		whole := w.Ask(ann, "resource", oauthtest.CRM, "resource", oauthtest.Tickets).Token()
		has(t, "a task of a token without one", exchange(w, helper, whole, "resource", oauthtest.CRM, "authorization_details", reads), reads)
		wide := w.Ask(ann, "authorization_details", reads[:len(reads)-1]+`,{"type":"estover_task","locations":["`+oauthtest.Tickets+`"],"actions":["ticket.read"]}]`).Token()
		has(t, "the part of one place", exchange(w, helper, wide, "resource", oauthtest.CRM), reads)

		// Another organisation's word.
		acme := trusted(t, w, "acme", nil, nil)
		acme.signIn(t, "u-alice")
		w.Set(helper, agent.Client{GrantTypes: []string{assertionGrant}, Details: []string{"estover_task", "payment"}})
		assert := func(details string, pairs ...string) oauthtest.Answer {
			change := map[string]any{}
			if details != "" {
				change["authorization_details"] = json.RawMessage(details)
			}
			return present(w, helper, acme.sign(t, with(acme.claims("u-alice", helper), change)), append(pairs, "resource", oauthtest.CRM)...)
		}
		has(t, "the details of an assertion", assert(both), both)
		has(t, "less than those", assert(both, "authorization_details", less), less)
		refused(t, "more than those", assert(reads, "authorization_details", updates), 400, code)
		refused(t, "other than those", assert(reads, "authorization_details", both), 400, code)
		refused(t, "details of an assertion without any", assert("", "authorization_details", pays), 400, code)
		has(t, "a task of an assertion without any", assert("", "authorization_details", reads), reads)
		refused(t, "an assertion with what is not known here", assert(`[{"type":"refund"}]`), 400, code)

		// What was granted is held against its type as it is.
		if err := w.Tokens.DetailTypes.Retire(t.Context(), oauthtest.Admin, "payment"); err != nil {
			t.Fatal(err)
		}
		refused(t, "a refresh when the type is gone", renew(), 400, code)
		refused(t, "a refresh without it, which might have confined", renew("authorization_details", updates), 400, code)
		payments(t, w)
		has(t, "a refresh when it is back", renew(), both)
	})
}

// A person reads all that the details say, in the words of their type and with what
// the client wrote as it is, and is asked again as soon as they are wider.
func TestConsentToAuthorizationDetails(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		payments(t, w)
		bot, alice := w.CodeAgent("bot", detailed), w.Person("alice")
		strange := strings.Replace(pays, "DE2", "<b>DE2</b>", 1)
		says := func(what, body string) {
			t.Helper()
			for _, want := range []string{"Start one payment", "<dt>At most</dt><dd><code>100</code>", "<dt>To one of</dt><dd><code>DE1</code>, <code>&lt;b&gt;DE2&lt;/b&gt;</code>"} {
				if !strings.Contains(body, want) {
					t.Errorf("%s: the page does not say %q:\n%s", what, want, body)
				}
			}
		}
		says("by a browser", alice.Ask(bot, "authorization_details", strange).Body)
		says("by a code", alice.Type(w.Device(bot, "resource", oauthtest.CRM, "authorization_details", strange).Text("user_code")).Body)
		w.Name(bot, "alice", "resource", oauthtest.CRM, "authorization_details", strange)
		says("by name", alice.Load(alice.Waiting()[0]).Body)
		task := alice.Ask(bot, "authorization_details", reads).Body
		for _, want := range []string{"This task", "and nothing beside", "<dt>Where</dt><dd><code>https://crm.example</code>", "<dt>What</dt><dd><code>customer.read</code>", "<dt>On what: id</dt><dd><code>7</code>"} {
			if !strings.Contains(task, want) {
				t.Errorf("the page does not say %q:\n%s", want, task)
			}
		}
		if strings.Contains(task, "customer.update") {
			t.Error("the page speaks of actions that no task names")
		}

		asks := func(name string, want bool, text string) {
			t.Helper()
			if got := alice.Ask(bot, "authorization_details", text); (got.Status == http.StatusOK) != want {
				t.Errorf("%s: %d to %q, want a question: %v", name, got.Status, got.Header.Get("Location"), want)
			}
		}
		both := updates[:len(updates)-1] + "," + pays[1:]
		alice.Allow(bot, "authorization_details", updates)
		asks("the same", false, updates)
		asks("less", false, reads)
		asks("no details at all", true, "")
		// What lets an agent do something is agreed to each time: nobody makes two
		// payments of one.
		if page := alice.Ask(bot, "authorization_details", both); !strings.Contains(page.Body, "You will be asked each time") {
			t.Errorf("the page does not say that a payment is asked about each time:\n%s", page.Body)
		}
		alice.Allow(bot, "authorization_details", both)
		asks("the same payment", true, both)
		asks("a smaller payment", true, strings.Replace(both, "100", "99", 1))
		asks("a larger payment", true, strings.Replace(both, "100", "101", 1))
		asks("a payment more", true, both[:len(both)-1]+","+pays[1:])
		asks("no payment", false, updates)
		asks("no task", true, pays)
		if page := alice.Load("/oauth/consents"); !strings.Contains(page.Body, "Start one payment; At most: <code>100</code>") {
			t.Errorf("what alice agreed to is shown as\n%s", page.Body)
		}

		// By a code and by name, what was agreed to is what comes.
		asked := w.Device(bot, "authorization_details", reads)
		alice.Post("/device/decision", alice.Fill(alice.Type(asked.Text("user_code")), "/device/decision", "decision", "allow"))
		has(t, "by a code", w.Poll(bot, asked.Text("device_code")), reads)

		// And pushed, as a strict client does.
		f := oauthtest.AuthorizeQuery(bot, "authorization_details", reads, "resource", "")
		pushed := w.Do(oauthtest.Request("/oauth/par", f, oauthtest.Basic(bot.ID, bot.Secret)))
		page := alice.Load("/oauth/authorize?" + oauthtest.Form("client_id", bot.ID, "request_uri", pushed.Text("request_uri")).Encode())
		if page.Status == http.StatusOK {
			page = alice.Post("/oauth/consent", alice.Fill(page, "/oauth/consent"))
		}
		has(t, "pushed", w.Redeem(bot, oauthtest.Back(alice, page).Get("code")), reads)
	})
}
