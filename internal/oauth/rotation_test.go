package oauth_test

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/jose"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/seal"
	"estover.dev/internal/token"
)

// A verifier is a resource somewhere else, which keeps a copy of the key set for
// as long as the answer says.
type verifier struct {
	t     *testing.T
	nodes []*oauthtest.World // behind one address
	turn  int
	keys  *jose.Keys
	until time.Time
}

func (v *verifier) fetch(now time.Time) {
	v.t.Helper()
	v.turn++
	a := v.nodes[v.turn%len(v.nodes)].Do(httpGet("/oauth/jwks"))
	if a.Status != http.StatusOK {
		v.t.Fatalf("the key set: %d %s", a.Status, a.Body)
	}
	keys, err := jose.ParseKeys([]byte(a.Body))
	if err != nil {
		v.t.Fatal(err)
	}
	_, age, _ := strings.Cut(a.Header.Get("Cache-Control"), "max-age=")
	seconds, err := strconv.Atoi(age)
	if err != nil {
		v.t.Fatalf("Cache-Control: %q", a.Header.Get("Cache-Control"))
	}
	v.keys, v.until = keys, now.Add(time.Duration(seconds)*time.Second)
}

func (v *verifier) verify(raw string, now time.Time) error {
	_, err := jose.Verify(jose.AccessToken, v.keys, raw, jose.Expected{Now: now, Issuer: string(oauthtest.Issuer), AnyAudience: true})
	return err
}

// Through rotations by schedule on two nodes, with tokens issued all the time,
// whoever fetches the key set when the copy is old and at no other time can
// verify every token from its first second to its last, and so can both nodes.
func TestScheduledRotationsAreNotNoticed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		file := t.TempDir() + "/root.key"
		nodes := []*oauthtest.World{oauthtest.Node(t, d, file), oauthtest.Node(t, d, file)}
		bot := nodes[0].Agent("bot")
		nodes[0].Set(bot, agent.Client{TokenSeconds: int64(token.LongestLife.Seconds())})
		for _, n := range nodes {
			n.Keys.Schedule(24 * time.Hour)
			n.Access.Grant(bot.ID, oauthtest.CRM, "customer.read")
		}
		verifiers := []*verifier{{t: t, nodes: nodes}, {t: t, nodes: nodes, turn: 1}}
		type issued struct {
			raw string
			end time.Time
		}
		var live []issued
		signers := map[string]int{}
		const step = 9 * time.Minute
		sweeping := true
		for at := time.Duration(0); at < 76*time.Hour; at += step {
			now := d.Now()
			// A node that hangs does not sweep for most of an hour.
			sweeping = at%(5*time.Hour) > 50*time.Minute
			for i, n := range nodes {
				if i == 0 || sweeping {
					if err := n.Keys.SweepTenant(t.Context(), estover.DefaultTenant); err != nil {
						t.Fatal(err)
					}
				}
			}
			for i, v := range verifiers {
				if !now.Before(v.until) || i == 1 && at%(4*step) == 0 {
					v.fetch(now)
				}
			}
			for _, n := range nodes {
				a := granted(t, "a token", n.Ask(bot, "resource", oauthtest.CRM))
				raw, life := a.Token(), a.JSON["expires_in"].(float64)
				u, err := jose.Peek(raw)
				if err != nil {
					t.Fatal(err)
				}
				signers[u.Header.KeyID]++
				live = append(live, issued{raw, now.Add(time.Duration(life) * time.Second)})
			}
			check := func(when string, now time.Time) {
				t.Helper()
				for _, one := range live {
					for _, v := range verifiers {
						if err := v.verify(one.raw, now); err != nil {
							t.Fatalf("%s after the start, %s: a token that ends in %s: %v", at, when, one.end.Sub(now), err)
						}
					}
				}
			}
			live = slices.DeleteFunc(live, func(one issued) bool { return !now.Add(step).Before(one.end) }) // at the end of a session
			check("at once", now)
			for _, n := range nodes {
				if len(live) > 0 && !n.Live(bot, live[0].raw) {
					t.Fatalf("%s after the start a token that ends in %s is inactive", at, live[0].end.Sub(now))
				}
			}
			clock.Advance(step - time.Second)
			check("at the end of the step", d.Now())
			clock.Advance(time.Second)
		}
		if len(signers) != 4 {
			t.Errorf("%d keys signed: %v, want 4 in three days of a day each and some hours", len(signers), signers)
		}
		for _, n := range nodes {
			keys, err := n.Keys.Public(t.Context(), estover.DefaultTenant)
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range keys {
				if k.Purpose == jose.AccessToken && k.Generation > 1 && k.From.Sub(k.Created) < time.Hour {
					t.Errorf("the key %d was published %s before its first signature", k.Generation, k.From.Sub(k.Created))
				}
			}
		}
	})
}

// In an emergency on one node, whoever fetches the key set again for a key that
// is not in it, from whichever node, can verify every token that is issued from
// then on, by whichever node; those of the old key are dead, at once on the node
// and on the other as soon as it hears of it.
func TestEmergencyRotation(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		file := t.TempDir() + "/root.key"
		one, two := oauthtest.Node(t, d, file), oauthtest.Node(t, d, file)
		nodes := []*oauthtest.World{one, two}
		bot := one.Agent("bot")
		for _, n := range nodes {
			n.Access.Grant(bot.ID, oauthtest.CRM, "customer.read")
		}
		ask := func(n *oauthtest.World) string {
			t.Helper()
			return granted(t, "a token", n.Ask(bot, "resource", oauthtest.CRM)).Token()
		}
		for round, from := range []*oauthtest.World{one, two, one} {
			other := nodes[1-slices.Index(nodes, from)]
			old := []string{ask(one), ask(two)}
			for _, raw := range old { // both remember that they have verified it
				for _, n := range nodes {
					if !n.Live(bot, raw) {
						t.Fatal("a token is inactive before the emergency")
					}
				}
			}
			behind := &verifier{t: t, nodes: []*oauthtest.World{other}}
			behind.fetch(d.Now())
			r, err := from.Tokens.RotateKey(t.Context(), oauthtest.Admin, jose.AccessToken, true, "a disk was stolen")
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Revoked) != 1 || r.Already {
				t.Fatalf("round %d: %+v", round, r)
			}
			// The other node has not swept and not heard of it. What it is asked
			// first is another thing each time.
			order := []*oauthtest.World{other, from}
			switch round {
			case 1: // its key set
				slices.Reverse(order)
			case 2: // about a token
				if !other.Live(bot, ask(from)) {
					t.Error("a token that another node has just signed with a key that it has just made is inactive")
				}
			}
			for _, n := range order {
				raw := ask(n)
				u, err := jose.Peek(raw)
				if err != nil || u.Header.KeyID != r.Key {
					t.Errorf("round %d: a new token has the key %s, want %s", round, u.Header.KeyID, r.Key)
				}
				if err := behind.verify(raw, d.Now()); err != nil {
					behind.fetch(d.Now())
					if err := behind.verify(raw, d.Now()); err != nil {
						t.Errorf("round %d: a new token, with the key set that was fetched for it: %v", round, err)
					}
				}
				for _, m := range nodes {
					if !m.Live(bot, raw) {
						t.Errorf("round %d: a new token is inactive", round)
					}
				}
			}
			for i, raw := range old {
				for _, n := range nodes {
					if n.Live(bot, raw) {
						t.Errorf("round %d: the old token %d is active", round, i)
					}
					if _, err := n.Tokens.Verify(t.Context(), raw); err == nil {
						t.Errorf("round %d: the gateway takes the old token %d", round, i)
					}
				}
				if behind.verify(raw, d.Now()) == nil {
					t.Errorf("round %d: the old token is good with the key set that was fetched", round)
				}
			}
		}
	})
}

// A node on which nothing happens hears of an emergency by the log.
func TestOtherNodesHearOfAnEmergency(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		file := t.TempDir() + "/root.key"
		one, two := oauthtest.Node(t, d, file), oauthtest.Node(t, d, file)
		bot := one.Agent("bot")
		one.Access.Grant(bot.ID, oauthtest.CRM, "customer.read")
		raw := granted(t, "a token", one.Ask(bot, "resource", oauthtest.CRM)).Token()
		if _, err := two.Tokens.Verify(t.Context(), raw); err != nil {
			t.Fatal(err)
		}
		go func() { _ = two.Guard.Run(t.Context()) }()
		go func() { _ = one.Guard.Log().Run(t.Context()) }()
		if _, err := one.Tokens.RotateKey(t.Context(), oauthtest.Admin, jose.AccessToken, true, "a disk was stolen"); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			if _, err := two.Tokens.Verify(t.Context(), raw); err != nil {
				break
			}
			if time.Now().After(end) {
				t.Fatal("after a minute the other node still takes a token of the old key")
			}
		}
	})
}

// Keys are rotated by those who may, on record, and only where tokens are
// signed.
func TestRotateKey(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		was := signing(t, w)
		w.Decider.Set(oauthtest.Deny("key.rotate"))
		if _, err := w.Tokens.RotateKey(t.Context(), bot.Caller(), jose.AccessToken, true, "x"); estover.KindOf(err) != estover.Denied {
			t.Errorf("rotating where policy says no: %v", err)
		}
		w.Decider.Set(oauthtest.Deny("key.list"))
		if _, err := w.Tokens.ListKeys(t.Context(), bot.Caller()); estover.KindOf(err) != estover.Denied {
			t.Errorf("listing where policy says no: %v", err)
		}
		w.Decider.Set(nil)
		for purpose, reason := range map[jose.Purpose]string{seal.LogKey: "x", "nothing": "x", jose.AccessToken: ""} {
			if _, err := w.Tokens.RotateKey(t.Context(), oauthtest.Admin, purpose, true, reason); estover.KindOf(err) != estover.Invalid {
				t.Errorf("rotating the keys for %s because of %q: %v", purpose, reason, err)
			}
		}
		if now := signing(t, w); now != was {
			t.Errorf("the key is %s, want %s as before", now, was)
		}
		next, err := w.Tokens.RotateKey(t.Context(), oauthtest.Admin, jose.AccessToken, false, "")
		if err != nil || next.Already || next.SignsFrom.Sub(d.Now()) < time.Hour-time.Minute || signing(t, w) != was {
			t.Errorf("by schedule: %+v, %v", next, err)
		}
		again, err := w.Tokens.RotateKey(t.Context(), oauthtest.Admin, jose.AccessToken, false, "")
		if err != nil || !again.Already || again.Key != next.Key {
			t.Errorf("once more: %+v, %v", again, err)
		}
		states := map[string]seal.KeyState{}
		keys, err := w.Tokens.ListKeys(t.Context(), oauthtest.Admin)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			states[k.ID] = k.State
		}
		if states[was] != seal.KeyActive || states[next.Key] != seal.KeyNext {
			t.Errorf("listed: %+v", keys)
		}
		emergency, err := w.Tokens.RotateKey(t.Context(), oauthtest.Admin, jose.AccessToken, true, "a disk was stolen")
		if err != nil || len(emergency.Revoked) != 2 || signing(t, w) != emergency.Key {
			t.Errorf("in an emergency: %+v, %v", emergency, err)
		}
		var events []audit.Entry
		if err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) (err error) {
			events, _, err = w.Guard.Log().List(t.Context(), tx, audit.Filter{Action: "key.rotate"}, 0, 50)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		var told []string
		for _, e := range events {
			told = append(told, string(e.Outcome)+" "+string(e.Actor)+" "+e.Target)
		}
		for _, want := range []string{
			"refused agent:" + bot.ID + " ", "done " + string(oauthtest.Admin.Subject) + " key:" + next.Key, "done " + string(oauthtest.Admin.Subject) + " key:" + emergency.Key,
			"done system:keyring key:" + was,
		} {
			if !slices.Contains(told, want) {
				t.Errorf("no event says %q, but %q", want, told)
			}
		}
	})
}

// signing is the id of the key that signs access tokens.
func signing(t *testing.T, w *oauthtest.World) string {
	t.Helper()
	k, err := w.Keys.Active(t.Context(), estover.DefaultTenant, jose.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	return k.KID
}
