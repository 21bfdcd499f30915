package oauth_test

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/federation"
	"estover.dev/internal/oauth/oauthtest"
)

// authoritiesOf is the bundle of a trust domain with these authorities.
func authoritiesOf(t *testing.T, all ...*authority) []byte {
	t.Helper()
	keys := []map[string]any{}
	for _, a := range all {
		keys = append(keys, map[string]any{"use": "x509-svid", "kty": "EC", "x5c": []string{base64.StdEncoding.EncodeToString(a.cert.Raw)}})
	}
	b, err := json.Marshal(map[string]any{"keys": keys, "spiffe_refresh_hint": 300})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// An X.509-SVID authenticates an agent by the bundle of its trust domain, as it
// was fetched last.
func TestX509SVIDs(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		root, next := newAuthority(t, "example.org", nil), newAuthority(t, "example.org", nil)
		svid := func(a *authority, id string) *x509.Certificate {
			return a.leaf(func(c *x509.Certificate) { c.URIs = []*url.URL{uri(id)} })
		}
		const id = "spiffe://example.org/bot"
		add(t, w, bot, agent.Wanted{Kind: agent.Certified, Certificate: &agent.Certificate{URI: id}})
		refused(t, "without a trust in the domain", askOver(w, bot, svid(root, id)), 401, "invalid_client")

		if _, err := w.Trusts.Put(t.Context(), oauthtest.Admin, federation.Spec{
			Name: "spire", Issuer: "spiffe://example.org", JWKSURL: "https://spire.example/bundle", Algorithms: []string{"ES256"}, Audience: string(oauthtest.Issuer),
		}, ""); err != nil {
			t.Fatal(err)
		}
		if a := askOver(w, bot, svid(root, id)); a.Status != 503 {
			t.Errorf("while the bundle cannot be had: %d %s, want 503", a.Status, a.Body)
		}
		bundle := authoritiesOf(t, root)
		w.Published = func(s federation.Source) ([]byte, error) { return bundle, nil }
		clock.Advance(31 * time.Second)
		granted(t, "an X.509-SVID", askOver(w, bot, svid(root, id)))
		refused(t, "of another workload", askOver(w, bot, svid(root, "spiffe://example.org/other")), 401, "invalid_client")
		refused(t, "of another domain", askOver(w, bot, svid(root, "spiffe://example.com/bot")), 401, "invalid_client")
		refused(t, "of an authority that is not in the bundle", askOver(w, bot, svid(next, id)), 401, "invalid_client")
		refused(t, "that vouches for itself", askOver(w, bot, certify(t, x509.Certificate{URIs: []*url.URL{uri(id)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, oauthtest.NewKey(t, "P-256"), nil)), 401, "invalid_client")

		bundle = authoritiesOf(t, next)
		clock.Advance(5 * time.Minute)
		refused(t, "of an authority that was taken out", askOver(w, bot, svid(root, id)), 401, "invalid_client")
		granted(t, "of its successor", askOver(w, bot, svid(next, id)))

		trust, err := w.Trusts.ByName(t.Context(), oauthtest.Admin, "spire")
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Trusts.Retire(t.Context(), oauthtest.Admin, trust.ID); err != nil {
			t.Fatal(err)
		}
		refused(t, "after the trust was retired", askOver(w, bot, svid(next, id)), 401, "invalid_client")
	})
}

// While the keys of an issuer cannot be had, whoever asks is told so each time,
// and the log once a minute.
func TestOutagesAreToldOnce(t *testing.T) {
	d := dbtest.Open(t)
	clock := dbtest.NewClock(d)
	w := oauthtest.New(t, d)
	var log bytes.Buffer
	w.Door.Logger = slog.New(slog.NewTextHandler(&log, nil))
	bot := w.Agent("bot")
	p := w.Platform("ci", func(s *federation.Spec) { s.JWKS, s.JWKSURL = "", "https://ci.example/jwks" }, bot)
	for minute := 1; minute <= 3; minute++ {
		for range 50 {
			if a := w.AskByAssertion(p.Token(bot)); a.Status != 503 || a.Header.Get("Retry-After") == "" {
				t.Fatalf("while the keys cannot be had: %d %s, want 503 with Retry-After", a.Status, a.Body)
			}
		}
		if n := strings.Count(log.String(), "level=ERROR"); n != minute {
			t.Errorf("after %d minutes with 50 requests each the log has %d lines, want %d:\n%s", minute, n, minute, log.String())
		}
		clock.Advance(61 * time.Second)
	}
}
