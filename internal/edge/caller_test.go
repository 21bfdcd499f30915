package edge_test

import (
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/edge"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/token"
)

func request(headers ...string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/v1/agents", nil)
	for _, h := range headers {
		r.Header.Add("Authorization", h)
	}
	return r
}

func TestAuthorization(t *testing.T) {
	for _, c := range []struct {
		headers []string
		want    string
		err     error
	}{
		{[]string{"Bearer abc"}, "abc", nil},
		{[]string{"bearer abc"}, "abc", nil},
		{[]string{"BEARER  abc"}, "abc", nil},
		{nil, "", edge.ErrNoCaller},
		{[]string{"Bearer"}, "", edge.ErrScheme},
		{[]string{"Bearer "}, "", edge.ErrScheme},
		{[]string{"Bearer a b"}, "", edge.ErrScheme},
		{[]string{"Bearer a, Bearer b"}, "", edge.ErrScheme},
		{[]string{"Bearer a\t"}, "", edge.ErrScheme},
		{[]string{"Basic YTpi"}, "", edge.ErrScheme},
		{[]string{"DPoP abc"}, "abc", nil},
		{[]string{"dpop abc"}, "abc", nil},
		{[]string{"DPoP a, DPoP b"}, "", edge.ErrScheme},
		{[]string{"abc"}, "", edge.ErrScheme},
		{[]string{"Bearer a", "Bearer b"}, "", edge.ErrScheme},
	} {
		_, got, err := edge.Authorization(request(c.headers...))
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%q: %q, %v; want %q, %v", c.headers, got, err, c.want, c.err)
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/v1/agents?access_token=abc", nil)
	if _, _, err := edge.Authorization(r); !errors.Is(err, edge.ErrNoCaller) {
		t.Errorf("a token in the URL: %v, want ErrNoCaller", err)
	}
}

func TestCallers(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		answer := w.AskByKey(bot, "purpose", "support")
		caller, err := w.Callers.Authenticate(request("Bearer "+answer.Token()), estover.DefaultTenant)
		if err != nil {
			t.Fatal(err)
		}
		tok, err := w.Tokens.Verify(t.Context(), answer.Token())
		if err != nil {
			t.Fatal(err)
		}
		if caller.Tenant != estover.DefaultTenant || caller.Subject != estover.Agent(bot.ID) || caller.Client != bot.ID || caller.Session != answer.Text("session") ||
			caller.Purpose != "support" || caller.Grant != tok.Grant || caller.Epoch != 1 || caller.Strength != estover.ByKey ||
			caller.Address.String() != "192.0.2.1" || caller.Request == "" {
			t.Errorf("the caller is %+v", caller)
		}
		atCRM := w.Ask(bot, "resource", oauthtest.CRM, "scope", "customer.read").Token()
		if _, err := w.Callers.Authenticate(request("Bearer "+atCRM), estover.DefaultTenant); !errors.Is(err, edge.ErrAudience) {
			t.Errorf("a token for a resource at our own API: %v, want ErrAudience", err)
		}
		if c, err := w.Callers.For(request("Bearer "+atCRM), estover.DefaultTenant, oauthtest.CRM); err != nil || len(c.Scopes) != 1 || c.Strength != estover.BySecret {
			t.Errorf("a token at its resource: %+v, %v", c, err)
		}
		if _, err := w.Callers.For(request("Bearer "+answer.Token()), estover.DefaultTenant, oauthtest.CRM); !errors.Is(err, edge.ErrAudience) {
			t.Errorf("a token for us at a resource: %v, want ErrAudience", err)
		}

		eve, err := w.People.Create(t.Context(), oauthtest.Admin, directory.Spec{Name: "eve", Roles: []estover.Role{estover.Operator}}, "")
		if err != nil {
			t.Fatal(err)
		}
		value, _, err := w.People.Issue(t.Context(), estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User(eve.ID), Roles: eve.Roles}, "test", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		asEve := "Bearer " + string(value.Reveal())
		if c, err := w.Callers.Authenticate(request(asEve), estover.DefaultTenant); err != nil || c.Subject != estover.User(eve.ID) || !c.Has(estover.Operator) || c.Request == "" {
			t.Errorf("a person: %+v, %v", c, err)
		}
		if _, err := w.Callers.For(request(asEve), estover.DefaultTenant, oauthtest.CRM); !errors.Is(err, token.ErrInvalid) {
			t.Errorf("a person's token at a resource: %v, want ErrInvalid", err)
		}
		if _, err := w.Callers.Authenticate(request(asEve[:len(asEve)-1]+"x"), estover.DefaultTenant); estover.KindOf(err) != estover.Unknown {
			t.Errorf("a person's token with a typing error: %v, want Unknown", err)
		}

		// Liveness is asked each time, although the signature is remembered.
		if err := w.Sessions.End(t.Context(), oauthtest.Admin, caller.Session, "done"); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Callers.Authenticate(request("Bearer "+answer.Token()), estover.DefaultTenant); !errors.Is(err, token.ErrInvalid) {
			t.Errorf("a token of an ended session: %v, want ErrInvalid", err)
		}
	})
}

// A token that is bound to a key opens nothing without it.
func TestBoundTokens(t *testing.T) {
	d := dbtest.Open(t)
	w := oauthtest.New(t, d)
	bot := w.Agent("bot")
	client, err := w.Tokens.Clients.Client(t.Context(), estover.DefaultTenant, bot.ID)
	if err != nil {
		t.Fatal(err)
	}
	s, err := w.Sessions.Ambient(t.Context(), bot.Caller(), client, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	der := certificate(t).Certificate[0]
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	other, err := x509.ParseCertificate(certificate(t).Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	byKey := bot.Caller()
	byKey.Strength = estover.ByKey
	for _, c := range []struct {
		confirm token.Confirm
		shown   *x509.Certificate
		ok      bool
	}{
		{token.Confirm{Certificate: edge.Thumbprint(der)}, cert, true},
		{token.Confirm{Certificate: edge.Thumbprint(der)}, other, false},
		{token.Confirm{Certificate: edge.Thumbprint(der)}, nil, false},
		{token.Confirm{Key: "x"}, cert, false},
		{token.Confirm{Certificate: edge.Thumbprint(der), Key: "x"}, cert, false},
		{token.Confirm{}, nil, true},
	} {
		for _, by := range []estover.Caller{bot.Caller(), byKey} {
			issued, err := w.Tokens.Issue(t.Context(), token.Request{
				Caller: by, Client: client, Session: s, Confirm: c.confirm,
				Proof: token.Proof{GrantType: token.Own, Subject: client.Subject},
			})
			if err != nil {
				t.Fatal(err)
			}
			r := request("Bearer " + issued.Token)
			if c.shown != nil {
				r.TLS = tlsWith(c.shown)
			}
			caller, err := w.Callers.Authenticate(r, estover.DefaultTenant)
			if c.ok != (err == nil) || !c.ok && !errors.Is(err, edge.ErrUnbound) {
				t.Errorf("bound to %+v: %v, want it good: %v", c.confirm, err, c.ok)
			}
			// A certificate of their own making is worth nothing to whoever has a
			// secret alone.
			if bound := c.ok && c.shown != nil && by.Strength == estover.ByKey; bound != (caller.Strength == estover.ByBound) {
				t.Errorf("bound to %+v after %q: the strength is %q", c.confirm, by.Strength, caller.Strength)
			}
		}
	}
}
