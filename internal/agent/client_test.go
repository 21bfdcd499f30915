package agent_test

import (
	"errors"
	"reflect"
	"testing"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
)

// TestClient: the settings of an OAuth client are kept in one form, and a
// change of them takes effect at once on whoever decided on the old ones.
func TestClient(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		reg := agent.New(guardtest.New(t, d, guardtest.AllowAll), options)
		s := spec("invoices-bot")
		s.Client = &agent.Client{
			GrantTypes:      []string{"refresh_token", "client_credentials", "authorization_code", "refresh_token"},
			RedirectURIs:    []string{"http://127.0.0.1/back", "https://app.example/back?x=1"},
			DefaultResource: "https://CRM.example:443/api/",
			Introspect:      []string{"https://b.example/", "https://a.example"},
			TokenSeconds:    60,
			Methods:         []string{"private_key_jwt"},
		}
		a, err := reg.Create(t.Context(), ada, s, agent.Origin{})
		if err != nil {
			t.Fatal(err)
		}
		want := &agent.Client{
			GrantTypes:      []string{"authorization_code", "refresh_token"},
			RedirectURIs:    []string{"http://127.0.0.1/back", "https://app.example/back?x=1"},
			DefaultResource: "https://crm.example/api",
			Introspect:      []string{"https://a.example", "https://b.example"},
			TokenSeconds:    60,
			Methods:         []string{"private_key_jwt"},
		}
		read, err := reg.Get(t.Context(), ada, a.ID)
		if err != nil || !reflect.DeepEqual(read.Client, want) {
			t.Errorf("the client is kept as %+v, %v; want %+v", read.Client, err, want)
		}

		same := read.Spec
		if again, err := reg.Update(t.Context(), ada, a.ID, same); err != nil || again.Epoch != a.Epoch {
			t.Errorf("an update that changes nothing has the epoch %d, %v; want %d", again.Epoch, err, a.Epoch)
		}
		same.Client = &agent.Client{DPoPBound: true}
		bound, err := reg.Update(t.Context(), ada, a.ID, same)
		if err != nil || bound.Epoch != a.Epoch+1 {
			t.Errorf("a client that became bound has the epoch %d, %v; want %d", bound.Epoch, err, a.Epoch+1)
		}
		same.Client = &agent.Client{GrantTypes: []string{"client_credentials"}}
		none, err := reg.Update(t.Context(), ada, a.ID, same)
		if err != nil || none.Client != nil {
			t.Errorf("settings that say nothing are kept as %+v, %v; want none", none.Client, err)
		}
		snapshot, err := reg.Snapshot(t.Context(), ada.Tenant, a.ID)
		if err != nil || snapshot.Client != nil || snapshot.Epoch != none.Epoch {
			t.Errorf("the copy has %+v with the epoch %d, %v", snapshot.Client, snapshot.Epoch, err)
		}
	})
}

// TestClientRefuses: what could be read in more than one way is refused, with
// the place where it stands.
func TestClientRefuses(t *testing.T) {
	redirect := func(uri string) agent.Client { return agent.Client{RedirectURIs: []string{uri}} }
	for _, c := range []struct {
		client agent.Client
		field  string
	}{
		{agent.Client{GrantTypes: []string{"password"}}, "client.grant_types[0]"},
		{agent.Client{GrantTypes: []string{"authorization_code"}}, "client.redirect_uris"},
		{agent.Client{Methods: []string{"client_secret_jwt"}}, "client.token_endpoint_auth_methods[0]"},
		{agent.Client{Methods: []string{"none", "private_key_jwt"}}, "client.token_endpoint_auth_methods"},
		{agent.Client{TokenSeconds: 1801}, "client.access_token_seconds"},
		{agent.Client{TokenSeconds: -1}, "client.access_token_seconds"},
		{agent.Client{IDTokenAlgorithm: "none"}, "client.id_token_signed_response_alg"},
		{agent.Client{DefaultResource: "crm"}, "client.default_resource"},
		{agent.Client{DefaultResource: "https://crm.example/#a"}, "client.default_resource"},
		{agent.Client{Introspect: []string{"https://a.example", "https://u@b.example"}}, "client.introspect[1]"},
		{redirect("http://app.example/back"), "client.redirect_uris[0]"},
		{redirect("app:/back"), "client.redirect_uris[0]"},
		{redirect("https://app.example/back#"), "client.redirect_uris[0]"},
		{redirect("https://good@evil.example/"), "client.redirect_uris[0]"},
		{redirect("https://app.example\\@evil.example/"), "client.redirect_uris[0]"},
		{redirect("https://app.example/%2e%2e/x"), "client.redirect_uris[0]"},
		{redirect("https://app.example/a/../b"), "client.redirect_uris[0]"},
		{redirect("https://App.example/"), "client.redirect_uris[0]"},
		{redirect("HTTPS://app.example/"), "client.redirect_uris[0]"},
		{redirect("https://app.example./"), "client.redirect_uris[0]"},
		{redirect("https://app.example/ü"), "client.redirect_uris[0]"},
		{redirect("https://"), "client.redirect_uris[0]"},
		{redirect("https://*.example/"), "client.redirect_uris[0]"},
		{redirect("https://app.example/{x}"), "client.redirect_uris[0]"},
		{redirect("http://127.0.0.1.evil.example/"), "client.redirect_uris[0]"},
	} {
		s := spec("invoices-bot")
		s.Client = &c.client
		var e *estover.Error
		if _, err := agent.Check(s); !errors.As(err, &e) || !errors.Is(err, agent.ErrInvalid) || e.Field != c.field {
			t.Errorf("%+v: %v, want an error at %s", c.client, err, c.field)
		}
	}
	for _, uri := range []string{"https://app.example", "https://app.example:8443/a/b?c=d", "http://localhost:1/x", "http://[::1]/x"} {
		s := spec("invoices-bot")
		s.Client = &agent.Client{RedirectURIs: []string{uri}}
		if _, err := agent.Check(s); err != nil {
			t.Errorf("%s is refused: %v", uri, err)
		}
	}
}
