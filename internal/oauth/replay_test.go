package oauth_test

import (
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/token"
)

// A2, tokens.md section 6: a replay raises an alarm, once for a grant, however
// often and at how many nodes the value comes again; the retry of a lost answer
// raises none.
func TestReplaysAreToldOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		one, two := pair(t, d)
		clock := dbtest.NewClock(d)
		bot, alice := one.CodeAgent("bot"), one.Person("alice")
		two.Access.Grant(bot.ID, oauthtest.CRM, "customer.read", "customer.update")
		told := func(want int) {
			t.Helper()
			if n := guardtest.Recorded(t, d, estover.DefaultTenant, "authorization.replay", ""); n != want {
				t.Errorf("%d replays are told of, want %d", n, want)
			}
			if n := one.Tokens.Replays() + two.Tokens.Replays(); n != int64(want) {
				t.Errorf("%d replays are counted, want %d", n, want)
			}
		}
		at := func(i int) *oauthtest.World { return []*oauthtest.World{one, two}[i%2] }
		first := granted(t, "a code", one.Redeem(bot, alice.Code(bot))).Text("refresh_token")
		granted(t, "a refresh", one.Refresh(bot, first))
		granted(t, "its retry at the other node", two.Refresh(bot, first))
		told(0)
		clock.Advance(token.RetryWindow + time.Second)
		for _, a := range atOnce(64, func(i int) oauthtest.Answer { return at(i).Refresh(bot, first) }) {
			refused(t, "a spent refresh token", a, 400, "invalid_grant")
		}
		told(1)
		refused(t, "once more", one.Refresh(bot, first), 400, "invalid_grant")
		told(1)

		code := alice.Code(bot)
		granted(t, "another code", one.Redeem(bot, code))
		for _, a := range atOnce(64, func(i int) oauthtest.Answer { return at(i).Redeem(bot, code) }) {
			refused(t, "a spent code", a, 400, "invalid_grant")
		}
		told(2)
	})
}
