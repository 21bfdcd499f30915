package oauth_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/page/pagetest"
)

// atOnce runs n functions as nearly at once as can be, and gives what each
// answered.
func atOnce[T any](n int, fn func(i int) T) []T {
	out := make([]T, n)
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	ready.Add(n)
	for i := range n {
		done.Go(func() {
			ready.Done()
			<-start
			out[i] = fn(i)
		})
	}
	ready.Wait()
	close(start)
	done.Wait()
	return out
}

// pair are two nodes on one database.
func pair(t *testing.T, d *db.DB) (one, two *oauthtest.World) {
	t.Helper()
	key := t.TempDir() + "/root.key"
	return oauthtest.Node(t, d, key), oauthtest.Node(t, d, key)
}

// at is the browser of a person, at one node or the other.
func at(p *oauthtest.Person, i int, nodes ...*oauthtest.World) *pagetest.Browser {
	b := clone(p)
	b.Handler = nodes[i%len(nodes)].Handler
	return b
}

// However many present one assertion at once, on one node or two, exactly one
// gets a token for it; also when it is the first request of all, and when no
// token comes of it.
func TestAssertionIsGoodOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := t.TempDir() + "/root.key"
		one, two := oauthtest.Node(t, d, key), oauthtest.Node(t, d, key)
		bot := one.Agent("bot")
		two.Access.Grant(bot.ID, oauthtest.CRM, "customer.read")
		for _, round := range []string{"the first request of a session", "a session that is there"} {
			assertion := one.Assertion(bot)
			won := 0
			for _, a := range atOnce(64, func(i int) oauthtest.Answer {
				return []*oauthtest.World{one, two}[i%2].AskWith(assertion, "resource", oauthtest.CRM)
			}) {
				if a.Status == http.StatusOK {
					won++
					continue
				}
				refused(t, round, a, 401, "invalid_client")
			}
			if won != 1 {
				t.Errorf("%s: of 64 presentations of one assertion %d got a token, want 1", round, won)
			}
		}
		refusedOnce := one.Assertion(bot)
		refused(t, "a request for an unknown resource", one.AskWith(refusedOnce, "resource", "https://erp.example"), 400, "invalid_target")
		refused(t, "the same assertion for a resource that is known", one.AskWith(refusedOnce, "resource", oauthtest.CRM), 401, "invalid_client")

		before := count(t, d, "select count(*) from session")
		refused(t, "the same assertion for another purpose", one.AskWith(refusedOnce, "purpose", "support"), 401, "invalid_client")
		if n := count(t, d, "select count(*) from session"); n != before {
			t.Error("an assertion that was presented before opened a session")
		}

		one.Decider.Set(oauthtest.Deny("token.issue"))
		denied := one.Assertion(bot)
		refused(t, "a request that policy refuses", one.AskWith(denied), 400, "access_denied")
		refused(t, "the same again", one.AskWith(denied), 401, "invalid_client")
		one.Decider.Set(nil)
		refused(t, "the same when policy allows it", one.AskWith(denied), 401, "invalid_client")

		asked := one.Assertion(bot)
		f := oauthtest.Form("token", "x", "client_assertion_type", oauthtest.AssertionType, "client_assertion", asked)
		if a := one.Do(oauthtest.Request("/oauth/introspect", f)); a.Status != http.StatusOK {
			t.Fatalf("introspection by an assertion: %d %s", a.Status, a.Body)
		}
		refused(t, "the same assertion for a token", one.AskWith(asked), 401, "invalid_client")
	})
}

// One grant is made, however many requests are the first ones.
func TestFirstRequestsAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := t.TempDir() + "/root.key"
		one, two := oauthtest.Node(t, d, key), oauthtest.Node(t, d, key)
		bot := one.Agent("bot")
		for _, a := range atOnce(64, func(i int) oauthtest.Answer { return []*oauthtest.World{one, two}[i%2].Ask(bot) }) {
			granted(t, "one of 64 first requests", a)
		}
		if n := count(t, d, "select count(*) from session"); n != 1 {
			t.Errorf("64 requests opened %d sessions, want 1", n)
		}
		if n := count(t, d, "select count(*) from oauth_grant"); n != 1 {
			t.Errorf("64 requests made %d grants, want 1", n)
		}
	})
}

// When the end of a session has been answered, no token of it is good, however
// many were being issued.
func TestNoTokenOutlivesItsSession(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		for round := range 8 {
			s, err := w.Sessions.Open(t.Context(), bot.Caller(), wish(bot, time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			if round%2 == 1 { // with a grant that is there, and without
				granted(t, "before", w.Ask(bot, "session", s.ID))
			}
			var ended error
			tokens := atOnce(33, func(i int) string {
				if i == 16 {
					ended = w.Sessions.End(t.Context(), bot.Caller(), s.ID, "done")
					return ""
				}
				a := w.Ask(bot, "session", s.ID)
				if a.Status != http.StatusOK && a.Error() != "invalid_grant" && a.Status != http.StatusServiceUnavailable {
					t.Errorf("a request while the session ends: %d %s", a.Status, a.Body)
				}
				return a.Token()
			})
			if ended != nil {
				t.Fatal(ended)
			}
			for _, raw := range tokens {
				if raw != "" && w.Live(bot, raw) {
					t.Fatal("a token is active although its session has ended")
				}
			}
			refused(t, "afterwards", w.Ask(bot, "session", s.ID), 400, "invalid_grant")
			if n := count(t, d, "select count(*) from oauth_grant where session_id = $1 and ended_at is null", s.ID); n != 0 {
				t.Fatalf("%d grants live on in a session that has ended", n)
			}
		}
	})
}

// When the revocation of a token, or the end of its session, has been answered,
// nothing lives that was handed on of it at whatever distance, however much was being
// handed on at other nodes.
func TestNothingHandedOnOutlivesItsRoot(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := t.TempDir() + "/root.key"
		one, two := oauthtest.Node(t, d, key), oauthtest.Node(t, d, key)
		bot := exchanger(one, "bot")
		for round := range 8 {
			s, err := one.Sessions.Open(t.Context(), bot.Caller(), wish(bot, time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			root := granted(t, "the root", one.Ask(bot, "session", s.ID)).Token()
			below := granted(t, "what is below", exchange(one, bot, root)).Token()
			var ended error
			atOnce(33, func(i int) struct{} {
				w, from := []*oauthtest.World{one, two}[i%2], []string{root, below}[i/2%2]
				switch {
				case i == 16 && round%2 == 0:
					if a := w.Do(oauthtest.Request("/oauth/revoke", oauthtest.Form("token", root), oauthtest.Basic(bot.ID, bot.Secret))); a.Status != http.StatusOK {
						ended = fmt.Errorf("revoking: %d %s", a.Status, a.Body)
					}
				case i == 16:
					ended = w.Sessions.End(t.Context(), bot.Caller(), s.ID, "done")
				default:
					if a := exchange(w, bot, from); a.Status != http.StatusOK && a.Error() != "invalid_grant" && a.Status != http.StatusServiceUnavailable {
						t.Errorf("an exchange meanwhile: %d %s", a.Status, a.Body)
					}
				}
				return struct{}{}
			})
			if ended != nil {
				t.Fatal(ended)
			}
			if n := count(t, d, "select count(*) from oauth_grant where session_id = $1 and kind = '"+exchangeType+"' and ended_at is null", s.ID); n != 0 {
				t.Fatalf("round %d: %d grants live on that were handed on", round, n)
			}
		}
	})
}

// What ends at one node is inactive at the other within a second, whatever it is
// that ends (tokens.md, section 6).
func TestOtherNodesFollow(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		one, two := pair(t, d)
		go func() { _ = two.Guard.Run(t.Context()) }()
		alice := one.Person("alice")
		for what, end := range map[string]func(bot *oauthtest.Agent, raw string) error{
			"the token is revoked": func(bot *oauthtest.Agent, raw string) error {
				a := one.Do(oauthtest.Request("/oauth/revoke", oauthtest.Form("token", raw), oauthtest.Basic(bot.ID, bot.Secret)))
				if a.Status != http.StatusOK {
					return fmt.Errorf("%d %s", a.Status, a.Body)
				}
				return nil
			},
			"the session ends": func(bot *oauthtest.Agent, _ string) error {
				_, err := one.Sessions.EndAll(t.Context(), oauthtest.Admin, bot.ID, "contained")
				return err
			},
			"the agent is held": func(bot *oauthtest.Agent, _ string) error {
				_, err := one.Agents.Hold(t.Context(), oauthtest.Admin, bot.ID, agent.Suspension, "a test")
				return err
			},
			"the agent is retired": func(bot *oauthtest.Agent, _ string) error {
				_, err := one.Agents.Hold(t.Context(), oauthtest.Admin, bot.ID, agent.Retirement, "a test")
				return err
			},
			"the sponsor leaves": func(bot *oauthtest.Agent, _ string) error {
				_, err := one.People.Disable(t.Context(), oauthtest.Admin, bot.Sponsor.ID, "left")
				return err
			},
			"the refresh token is revoked": nil,
			"the person leaves":            nil,
		} {
			bot := one.CodeAgent("bot-" + strings.ReplaceAll(what, " ", "-"))
			two.Access.Grant(bot.ID, oauthtest.CRM, "customer.read")
			asker := one.Agent("asker-" + strings.ReplaceAll(what, " ", "-")) // who serves the resource, and stays
			one.Set(asker, agent.Client{Introspect: []string{oauthtest.CRM}})
			raw := ""
			switch what {
			case "the refresh token is revoked":
				a := granted(t, what, one.Redeem(bot, alice.Code(bot)))
				raw = a.Token()
				end = func(bot *oauthtest.Agent, _ string) error {
					if a := one.Do(oauthtest.Request("/oauth/revoke", oauthtest.Form("token", a.Text("refresh_token")), oauthtest.Basic(bot.ID, bot.Secret))); a.Status != http.StatusOK {
						return fmt.Errorf("%d %s", a.Status, a.Body)
					}
					return nil
				}
			case "the person leaves":
				bob := one.Person("bob")
				raw = granted(t, what, one.Redeem(bot, bob.Code(bot))).Token()
				end = func(*oauthtest.Agent, string) error {
					_, err := one.People.Disable(t.Context(), oauthtest.Admin, bob.ID, "left")
					return err
				}
			default:
				raw = granted(t, what, one.Ask(bot, "resource", oauthtest.CRM)).Token()
			}
			if !two.Live(asker, raw) {
				t.Fatalf("%s: before, the token of one node is not active on the other", what)
			}
			if err := end(bot, raw); err != nil {
				t.Fatal(err)
			}
			ended := time.Now()
			for live := true; live; {
				asked := time.Now()
				if live = two.Live(asker, raw); live && asked.Sub(ended) > 4*time.Second { // a quarter of one, where nothing else is at work
					t.Errorf("%s: %v later the token is still active on the other node", what, asked.Sub(ended))
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if one.Live(asker, raw) {
				t.Errorf("%s: the token is still active on the node where that was done", what)
			}
		}
	})
}
