package connect_test

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/connect"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/edge"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/login"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/page"
	"estover.dev/internal/page/pagetest"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret/connection"
)

// A world is the door with people who sign in, and a connection at a provider.
type world struct {
	*oauthtest.World
	connections *connection.Connections
	handler     http.Handler
	given       int // tokens that the provider gave out
}

// permit lets operators authorize, and nobody else of those who are no administrators.
func permit(c estover.Caller, op guard.Op) guard.Decision {
	if strings.HasPrefix(op.Action, "connection.") && c.Subject.Kind() == estover.UserKind && !c.Has(estover.Admin) && !c.Has(estover.Operator) {
		return guardtest.DenyAll(c, op)
	}
	return guardtest.AllowAll(c, op)
}

func open(t *testing.T) *world {
	t.Helper()
	w := &world{World: oauthtest.New(t, dbtest.Open(t))}
	key := []byte(rand.Text())
	pages, err := page.New(page.Config{
		Issuer: oauthtest.Issuer, People: w.People, Now: w.DB.Now, Logger: slog.New(slog.DiscardHandler),
		MAC: func(_ estover.TenantID, value []byte) []byte {
			m := hmac.New(sha256.New, key)
			m.Write(value)
			return m.Sum(nil)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	in, err := login.New(login.Config{Issuer: oauthtest.Issuer, People: w.People, Pages: pages, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	d := dbtest.Open(t)
	sealer, err := seal.Open(t.Context(), d, seal.File{Path: filepath.Join(t.TempDir(), "root.key")})
	if err != nil {
		t.Fatal(err)
	}
	provider := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.FormValue("code") != "a code" {
			rw.WriteHeader(http.StatusBadRequest)
			io.WriteString(rw, `{"error":"invalid_grant"}`)
			return
		}
		w.given++
		fmt.Fprintf(rw, `{"access_token":"token-%d","token_type":"bearer","refresh_token":"r","expires_in":60}`, w.given)
	}))
	t.Cleanup(provider.Close)
	w.connections = connection.New(guardtest.New(t, d, guardtest.Decider(permit)), sealer, connection.Options{
		Send: func(ctx context.Context, _ estover.TenantID, _ connection.Spec, r *http.Request, _ int64) (connection.Answer, error) {
			res, err := http.DefaultTransport.RoundTrip(r.WithContext(ctx))
			if err != nil {
				return connection.Answer{}, err
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			return connection.Answer{Status: res.StatusCode, Header: res.Header, Body: b}, err
		},
		Back: func(_ estover.TenantID, name string) string {
			return string(oauthtest.Issuer) + connect.Path + "/" + name + "/back"
		},
	})
	if _, err := w.connections.Put(t.Context(), oauthtest.Admin, connection.Spec{
		Name: "mail", ClientID: "us", Authorize: provider.URL + "/auth?tenant=1", Token: provider.URL + "/token", Destinations: []string{"api.example.com"}, AllowPrivate: true,
	}); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	pages.Mount(mux)
	in.Mount(mux)
	(&connect.Door{Connections: w.connections, Pages: pages}).Mount(mux)
	w.handler = edge.Front{}.Handler(mux)
	return w
}

// person is somebody who has made a passkey in a browser of their own.
func (w *world) person(name string, roles ...estover.Role) *pagetest.Browser {
	w.T.Helper()
	p, err := w.People.Create(w.T.Context(), oauthtest.Admin, directory.Spec{Name: name, Roles: roles}, "")
	if err != nil {
		w.T.Fatal(err)
	}
	value, _, err := w.People.Invite(w.T.Context(), oauthtest.Admin, p.ID, 0)
	if err != nil {
		w.T.Fatal(err)
	}
	b := pagetest.New(w.T, w.handler, string(oauthtest.Issuer))
	start := b.Send(b.Load("/login/invitation"), "/login/invitation", "invitation", string(value.Reveal()))
	if end := b.Send(start, "/login/enrol", "label", "phone"); end.Status != http.StatusOK {
		w.T.Fatalf("enrolling %s: %d\n%s", name, end.Status, end.Body)
	}
	return b
}

const at = connect.Path + "/mail"

// begin goes from the page of the connection to the provider, and gives where that is.
func begin(t *testing.T, b *pagetest.Browser) *url.URL {
	t.Helper()
	p := b.Send(b.Go(at), at+"/begin")
	m := regexp.MustCompile(`class="button" href="([^"]+)"`).FindStringSubmatch(p.Body)
	if p.Status != http.StatusOK || m == nil {
		t.Fatalf("the page that leads to the provider: %d\n%s", p.Status, p.Body)
	}
	u, err := url.Parse(html.UnescapeString(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func back(to *url.URL, code string) string {
	return at + "/back?" + url.Values{"code": {code}, "state": {to.Query().Get("state")}}.Encode()
}

func TestAuthorize(t *testing.T) {
	w := open(t)
	olive, oscar := w.person("olive", estover.Operator), w.person("oscar", estover.Operator)
	nobody := w.person("nobody")

	if p := pagetest.New(t, w.handler, string(oauthtest.Issuer)).Load(at); p.Status != http.StatusSeeOther || !strings.HasPrefix(p.Header.Get("Location"), "/login?") {
		t.Errorf("without signing in: %d %s", p.Status, p.Header.Get("Location"))
	}
	if p := nobody.Go(at); p.Status != http.StatusForbidden {
		t.Errorf("somebody without a role: %d", p.Status)
	}
	if p := olive.Go(connect.Path + "/other"); p.Status != http.StatusNotFound {
		t.Errorf("a connection that there is not: %d", p.Status)
	}

	to := begin(t, olive)
	q := to.Query()
	if q.Get("tenant") != "1" || q.Get("code_challenge_method") != "S256" || q.Get("redirect_uri") != string(oauthtest.Issuer)+at+"/back" || q.Get("state") == "" {
		t.Errorf("it leads to %s", to)
	}
	// A link begins nothing, nor does a form of another site or of another page.
	if p := olive.Load(at + "/begin"); p.Status == http.StatusOK || p.Status == http.StatusSeeOther {
		t.Errorf("beginning by a link: %d", p.Status)
	}
	for what, p := range map[string]*pagetest.Page{
		"a form without its word":    olive.Post(at+"/begin", url.Values{}),
		"a form of somebody else's":  olive.Post(at+"/begin", oscar.Fill(oscar.Go(at), at+"/begin")),
		"a form from another origin": olive.Post(at+"/begin", olive.Fill(olive.Go(at), at+"/begin"), func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }),
	} {
		if p.Status != http.StatusForbidden {
			t.Errorf("%s: %d", what, p.Status)
		}
	}

	// What comes back is for whoever began.
	if p := oscar.Go(back(to, "a code")); p.Status != http.StatusForbidden || w.given != 0 {
		t.Errorf("somebody else comes back: %d, %d tokens", p.Status, w.given)
	}
	if p := olive.Go(back(to, "a code")); p.Status != http.StatusForbidden || w.given != 0 {
		t.Errorf("after that: %d, %d tokens", p.Status, w.given)
	}
	to = begin(t, olive)
	if p := olive.Go(back(to, "another code")); p.Status != http.StatusBadGateway || !strings.Contains(p.Body, "invalid_grant") {
		t.Errorf("with a code that is not good: %d\n%s", p.Status, p.Body)
	}
	if p := olive.Go(at + "/back?error=access_denied&error_description=pwned&state=" + begin(t, olive).Query().Get("state")); p.Status != http.StatusBadGateway || !strings.Contains(p.Body, "access_denied") || strings.Contains(p.Body, "pwned") {
		t.Errorf("refused: %d\n%s", p.Status, p.Body)
	}
	to = begin(t, olive)
	p := olive.Go(back(to, "a code"))
	if p.Status != http.StatusOK || p.At != at || !strings.Contains(p.Body, "It is healthy") || w.given != 1 || strings.Contains(p.Body, "token-1") {
		t.Errorf("authorized: %d at %s, %d tokens\n%s", p.Status, p.At, w.given, p.Body)
	}
	if p := olive.Go(back(to, "a code")); p.Status != http.StatusForbidden || w.given != 1 {
		t.Errorf("once more: %d, %d tokens", p.Status, w.given)
	}
	c, err := w.connections.Get(t.Context(), oauthtest.Admin, "mail")
	if err != nil || c.State != connection.Healthy || c.Account.Kind() != estover.UserKind {
		t.Errorf("it is %+v, %v", c, err)
	}
}
