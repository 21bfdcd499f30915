package oauth_test

import (
	"net/http"
	"testing"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
)

// A node that dies while it redeems what is good once has used it up along with
// what it bought, or not at all (tokens.md, section 6): before the commit it is as
// good as it was, and after it, although nobody heard the answer, it buys nothing
// more. The retry of a refresh is answered with the same successor.
func TestRedemptionIsWholeOrNotAtAll(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := t.TempDir() + "/root.key"
		w := oauthtest.Node(t, d, key)
		alice := w.Person("alice")
		for what, ready := range map[string]func(bot *oauthtest.Agent) func(w *oauthtest.World) oauthtest.Answer{
			"a code": func(bot *oauthtest.Agent) func(*oauthtest.World) oauthtest.Answer {
				value := alice.Code(bot)
				return func(w *oauthtest.World) oauthtest.Answer { return w.Redeem(bot, value) }
			},
			"a refresh token": func(bot *oauthtest.Agent) func(*oauthtest.World) oauthtest.Answer {
				value := granted(t, "a code", w.Redeem(bot, alice.Code(bot))).Text("refresh_token")
				return func(w *oauthtest.World) oauthtest.Answer { return w.Refresh(bot, value) }
			},
			"a device code": func(bot *oauthtest.Agent) func(*oauthtest.World) oauthtest.Answer {
				value := alice.DeviceCode(bot)
				return func(w *oauthtest.World) oauthtest.Answer { return w.Poll(bot, value) }
			},
			"an auth_req_id": func(bot *oauthtest.Agent) func(*oauthtest.World) oauthtest.Answer {
				value := w.Name(bot, "alice").Text("auth_req_id")
				alice.Answer("allow")
				return func(w *oauthtest.World) oauthtest.Answer { return w.Fetch(bot, value) }
			},
		} {
			bot := w.CodeAgent("bot-" + estover.NewID("x")[2:8])
			node := func() *oauthtest.World { // one that has just started
				n := oauthtest.Node(t, d, key)
				n.Access.Grant(bot.ID, oauthtest.CRM, "customer.read", "customer.update")
				return n
			}
			redeem := ready(bot)
			before := count(t, d, "select count(*) from audit where action = 'token.issue' and outcome = 'done'")
			breakDown(t, d)
			if a := redeem(w); a.Status < 500 || a.Token() != "" {
				t.Errorf("%s, with a commit that fails: %d %s", what, a.Status, a.Body)
			}
			mend(t, d)
			if n := count(t, d, "select count(*) from audit where action = 'token.issue' and outcome = 'done'"); n != before {
				t.Errorf("%s, with a commit that fails: %d tokens are on record as issued", what, n-before)
			}
			first := granted(t, what+", after a restart", redeem(node())) // and nobody hears it
			again := redeem(node())
			if what == "a refresh token" {
				if granted(t, what+", retried", again); again.Text("refresh_token") != first.Text("refresh_token") {
					t.Errorf("%s, retried after a restart, has another successor", what)
				}
				continue
			}
			refused(t, what+", retried", again, http.StatusBadRequest, "invalid_grant")
			if n := count(t, d, "select count(*) from audit where action = 'token.issue' and outcome = 'done'"); n != before+1 {
				t.Errorf("%s: %d tokens are on record as issued, want 1", what, n-before)
			}
		}
	})
}

// breakDown lets no grant be made and no refresh token follow another, at the very
// end of the transaction that would.
func breakDown(t *testing.T, d *db.DB) {
	t.Helper()
	if d.Engine() == db.SQLite {
		for _, event := range []string{"insert", "update"} {
			run(t, d, `create trigger broken_`+event+` before `+event+` on refresh_family begin select raise(abort, 'no'); end`)
		}
		return
	}
	run(t, d, `create function broken() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$`)
	run(t, d, `create trigger broken before insert or update on refresh_family for each row execute function broken()`)
}

func mend(t *testing.T, d *db.DB) {
	t.Helper()
	if d.Engine() == db.SQLite {
		run(t, d, `drop trigger broken_insert`)
		run(t, d, `drop trigger broken_update`)
		return
	}
	run(t, d, `drop trigger broken on refresh_family`)
	run(t, d, `drop function broken`)
}

func run(t *testing.T, d *db.DB, query string) {
	t.Helper()
	if err := d.Do(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), query)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
