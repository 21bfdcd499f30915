package oauth_test

import (
	"flag"
	"net/http"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/token"
)

// A modelledFamily is what a test knows of the refresh tokens of one grant.
type modelledFamily struct {
	client *oauthtest.Agent
	values []string    // by generation
	spent  []time.Time // when each was spent, but the last
	access []string
	issued []time.Time // of the access tokens
	dead   bool
}

// TestFamilies does at random what can be done with refresh tokens, by their own
// client and by another, and looks after each step whether exactly those access
// tokens are good that should be.
func TestFamilies(t *testing.T) {
	checks := flag.Lookup("rapid.checks")
	old := checks.Value.String()
	if old == checks.DefValue { // nobody asked for more
		_ = checks.Value.Set("12")
		defer func() { _ = checks.Value.Set(old) }()
	}
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		clients := []*oauthtest.Agent{w.CodeAgent("one"), w.CodeAgent("two")}
		rapid.Check(t, func(rt *rapid.T) {
			alice := w.Person("p" + rapid.StringMatching(`[a-z]{12}`).Draw(rt, "person"))
			var families []*modelledFamily
			authorize := func(rt *rapid.T) {
				c := rapid.SampledFrom(clients).Draw(rt, "client")
				a := w.Redeem(c, alice.Code(c))
				families = append(families, &modelledFamily{
					client: c, values: []string{a.Text("refresh_token")}, access: []string{a.Token()}, issued: []time.Time{d.Now()},
				})
			}
			pick := func(rt *rapid.T) (*modelledFamily, int) {
				if len(families) == 0 {
					authorize(rt)
				}
				f := rapid.SampledFrom(families).Draw(rt, "family")
				return f, rapid.IntRange(max(0, len(f.values)-3), len(f.values)-1).Draw(rt, "generation")
			}
			rt.Repeat(map[string]func(*rapid.T){
				"authorize": authorize,
				"refresh": func(rt *rapid.T) {
					f, i := pick(rt)
					by := rapid.SampledFrom(clients).Draw(rt, "by")
					latest := i == len(f.values)-1
					again := func() bool { return !latest && d.Now().Sub(f.spent[i]) <= token.RetryWindow }
					before := again()
					a := w.Refresh(by, f.values[i])
					good := by == f.client && !f.dead && (latest || before)
					// Of one whose successor was spent, too, the server knows the two seconds of its spending.
					vague := i < len(f.values)-2 && d.Now().Sub(f.spent[i]) > token.RetryWindow-2*time.Second
					if before != again() || good && vague { // the window closed meanwhile: either is right
						good = a.Status == http.StatusOK
					}
					if good != (a.Status == http.StatusOK) || !good && a.Error() != "invalid_grant" {
						rt.Fatalf("refreshing generation %d of %d: %d %s, want success: %v", i+1, len(f.values), a.Status, a.Body, good)
					}
					switch {
					case !good && by == f.client && !latest:
						f.dead = true
					case !good:
					case latest:
						f.values, f.spent = append(f.values, a.Text("refresh_token")), append(f.spent, d.Now())
						f.access, f.issued = append(f.access, a.Token()), append(f.issued, d.Now())
					case a.Text("refresh_token") != f.values[i+1]:
						rt.Fatalf("asking again for generation %d gives another successor", i+1)
					}
				},
				"revoke": func(rt *rapid.T) {
					f, i := pick(rt)
					by := rapid.SampledFrom(clients).Draw(rt, "by")
					r := w.Do(oauthtest.Request("/oauth/revoke", oauthtest.Form("token", f.values[i]), oauthtest.Basic(by.ID, by.Secret)))
					if r.Status != http.StatusOK {
						rt.Fatalf("revoking: %d %s", r.Status, r.Body)
					}
					f.dead = f.dead || by == f.client
				},
				"time passes": func(rt *rapid.T) {
					clock.Advance(time.Duration(rapid.IntRange(1, 15).Draw(rt, "seconds")) * time.Second)
				},
				"": func(rt *rapid.T) {
					for _, f := range families {
						last := len(f.access) - 1
						if d.Now().Sub(f.issued[last]) > 14*time.Minute {
							continue
						}
						if w.Live(f.client, f.access[last]) == f.dead {
							rt.Fatalf("of a family that is dead: %v, an access token is good: %v", f.dead, !f.dead)
						}
					}
				},
			})
		})
	})
}
