package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jws"
	"github.com/lestrrat-go/jwx/v3/jwt"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/db/dbtest"
)

// A metadata is what a client finds out about the token service by itself.
type metadata struct {
	Issuer        string   `json:"issuer"`
	Token         string   `json:"token_endpoint"`
	Authorization string   `json:"authorization_endpoint"`
	JWKS          string   `json:"jwks_uri"`
	Introspection string   `json:"introspection_endpoint"`
	Revocation    string   `json:"revocation_endpoint"`
	Methods       []string `json:"token_endpoint_auth_methods_supported"`
}

// An oauthDesk is a desk with the credentials of its agent, and a client that
// finds its way from the issuer alone.
type oauthDesk struct {
	*desk
	metadata
	agent, secret string
	key           jwk.Key
}

func newOAuthDesk(t *testing.T, srv *e2etest.Server) *oauthDesk {
	t.Helper()
	d := &oauthDesk{desk: newDesk(t, srv)}
	body := d.get(t, d.URL+"/.well-known/oauth-authorization-server", http.StatusOK)
	if err := json.Unmarshal(body, &d.metadata); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	var secret struct {
		ClientID     string `json:"client_id"`
		ClientSecret string `json:"client_secret"`
	}
	d.admin.JSON(t, &secret, "agent", "credential", "add", "bot", "--label", "tests")
	d.agent, d.secret = secret.ClientID, secret.ClientSecret

	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if d.key, err = jwk.Import(private); err != nil {
		t.Fatal(err)
	}
	must(t, d.key.Set(jwk.KeyIDKey, "first"))
	must(t, d.key.Set(jwk.AlgorithmKey, jwa.ES256()))
	public, err := d.key.PublicKey()
	must(t, err)
	set := jwk.NewSet()
	must(t, set.AddKey(public))
	text, err := json.Marshal(set)
	must(t, err)
	file := filepath.Join(t.TempDir(), "jwks.json")
	must(t, os.WriteFile(file, text, 0o644))
	d.admin.Must(t, "agent", "credential", "add", "bot", "--jwks", file)
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// get reads a page of the server.
func (d *oauthDesk) get(t *testing.T, url string, status int) []byte {
	t.Helper()
	res, err := d.HTTP(t).Get(url)
	must(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	must(t, err)
	if res.StatusCode != status {
		t.Fatalf("GET %s: %s, want %d\n%s", url, res.Status, status, body)
	}
	return body
}

// post sends a form to the token service, as the agent by its secret.
func (d *oauthDesk) post(t *testing.T, url string, form url.Values) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(form.Encode()))
	must(t, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if form.Get("client_id") == "" {
		req.SetBasicAuth(d.agent, d.secret)
	}
	res, err := d.HTTP(t).Do(req)
	must(t, err)
	defer res.Body.Close()
	answer := map[string]any{}
	if b, err := io.ReadAll(res.Body); err != nil || len(b) > 0 && json.Unmarshal(b, &answer) != nil {
		t.Fatalf("POST %s: %s %v %s", url, res.Status, err, b)
	}
	return res.StatusCode, answer
}

// assertion is a fresh private_key_jwt.
func (d *oauthDesk) assertion(t *testing.T) string {
	t.Helper()
	now := time.Now()
	tok, err := jwt.NewBuilder().Issuer(d.agent).Subject(d.agent).Audience([]string{d.Issuer}).IssuedAt(now).Expiration(now.Add(time.Minute)).JwtID(rand.Text()).Build()
	must(t, err)
	// The audience is the issuer as one string.
	signed, err := jwt.NewSerializer().Sign(jwt.WithKey(jwa.ES256(), d.key)).Serialize(flat{tok})
	must(t, err)
	return string(signed)
}

// A flat token writes its one audience as a string.
type flat struct{ jwt.Token }

func (f flat) MarshalJSON() ([]byte, error) {
	b, err := json.Marshal(f.Token)
	if err != nil {
		return nil, err
	}
	var claims map[string]any
	if err := json.Unmarshal(b, &claims); err != nil {
		return nil, err
	}
	if aud, ok := claims["aud"].([]any); ok && len(aud) == 1 {
		claims["aud"] = aud[0]
	}
	return json.Marshal(claims)
}

// token gets a token by the ordinary OAuth client of Go.
func (d *oauthDesk) token(t *testing.T, method string, form url.Values, scopes ...string) (*oauth2.Token, error) {
	t.Helper()
	c := clientcredentials.Config{ClientID: d.agent, ClientSecret: d.secret, TokenURL: d.Token, Scopes: scopes, EndpointParams: form}
	switch method {
	case "client_secret_basic":
		c.AuthStyle = oauth2.AuthStyleInHeader
	case "client_secret_post":
		c.AuthStyle = oauth2.AuthStyleInParams
	case "private_key_jwt":
		c.AuthStyle, c.ClientSecret = oauth2.AuthStyleInParams, ""
		c.EndpointParams = url.Values{"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {d.assertion(t)}}
		for k, v := range form {
			c.EndpointParams[k] = v
		}
	}
	return c.Token(context.WithValue(t.Context(), oauth2.HTTPClient, d.HTTP(t)))
}

// verified checks a token as a resource would that knows nothing but the
// issuer.
func (d *oauthDesk) verified(t *testing.T, raw, audience string) jwt.Token {
	t.Helper()
	set, err := jwk.Fetch(t.Context(), d.JWKS, jwk.WithHTTPClient(d.HTTP(t)))
	must(t, err)
	tok, err := jwt.Parse([]byte(raw), jwt.WithKeySet(set), jwt.WithIssuer(d.Issuer), jwt.WithAudience(audience), jwt.WithValidate(true))
	if err != nil {
		t.Fatalf("a stranger does not accept the token: %v", err)
	}
	message, err := jws.Parse([]byte(raw))
	must(t, err)
	if typ, _ := message.Signatures()[0].ProtectedHeaders().Type(); typ != "at+jwt" {
		t.Errorf("the type of the token is %q, want at+jwt", typ)
	}
	return tok
}

// call calls the customer system by its reverse route.
func (d *oauthDesk) call(t *testing.T, method, path, token string) (int, string, http.Header) {
	t.Helper()
	return d.callAt(t, "crm", method, path, token)
}

// callAt is call at another resource.
func (d *oauthDesk) callAt(t *testing.T, resource, method, path, token string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, d.URL+"/u/"+resource+path, nil)
	must(t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := d.HTTP(t).Do(req)
	must(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	must(t, err)
	return res.StatusCode, string(b), res.Header
}

// codeOf is the error that the token service has answered with.
func codeOf(err error) string {
	var e *oauth2.RetrieveError
	if errors.As(err, &e) {
		return e.ErrorCode
	}
	return ""
}

// An agent gets tokens in each of the three ways, by a client that is not
// ours, for exactly what it asks for; and a stranger verifies them.
func TestTokens(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, database string) {
		d := newOAuthDesk(t, e2etest.StartOn(t, database))
		for _, method := range []string{"client_secret_basic", "client_secret_post", "private_key_jwt"} {
			t.Run(method, func(t *testing.T) {
				if !slices.Contains(d.Methods, method) {
					t.Errorf("the metadata does not name the method: %q", d.Methods)
				}
				got, err := d.token(t, method, url.Values{"resource": {d.site.URL}, "purpose": {"support"}}, "customer.read", "customer.list")
				must(t, err)
				if life := time.Until(got.Expiry); got.TokenType != "Bearer" || life < 14*time.Minute || life > 15*time.Minute {
					t.Errorf("the token is a %s for %s", got.TokenType, life)
				}
				tok := d.verified(t, got.AccessToken, d.site.URL)
				var scope, sid, client string
				must(t, errors.Join(tok.Get("scope", &scope), tok.Get("sid", &sid), tok.Get("client_id", &client)))
				subject, _ := tok.Subject()
				scopes := strings.Fields(scope)
				slices.Sort(scopes)
				if subject != "agent:"+d.agent || client != d.agent || !slices.Equal(scopes, []string{"customer.list", "customer.read"}) || !strings.HasPrefix(sid, "ses_") {
					t.Errorf("the token says sub %q, client_id %q, scope %q, sid %q", subject, client, scope, sid)
				}
				if status, body, _ := d.call(t, http.MethodGet, "/v1/customers/cus_1001", got.AccessToken); status != http.StatusOK || !strings.Contains(body, "Ada Lindqvist") {
					t.Errorf("the reverse route answers %d: %s", status, body)
				}
			})
		}
		for name, c := range map[string]struct {
			ask  func() error
			want string
		}{
			"a wrong secret": {func() error {
				other := *d
				other.secret = "est_cs_" + strings.Repeat("A", 44) + "000000"
				_, err := other.token(t, "client_secret_basic", url.Values{"resource": {d.site.URL}})
				return err
			}, "invalid_client"},
			"an unknown resource": {func() error {
				_, err := d.token(t, "client_secret_basic", url.Values{"resource": {"https://elsewhere.example.test"}, "purpose": {"support"}})
				return err
			}, "invalid_target"},
			"an action that is not granted": {func() error {
				_, err := d.token(t, "client_secret_basic", url.Values{"resource": {d.site.URL}, "purpose": {"support"}}, "customer.delete")
				return err
			}, "invalid_scope"},
			"a purpose without a grant": {func() error {
				_, err := d.token(t, "client_secret_basic", url.Values{"resource": {d.site.URL}, "purpose": {"marketing"}})
				return err
			}, "invalid_target"},
			"an assertion for the second time": {func() error {
				form := url.Values{
					"client_id": {d.agent}, "grant_type": {"client_credentials"}, "purpose": {"support"},
					"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {d.assertion(t)},
				}
				if status, answer := d.post(t, d.Token, form); status != http.StatusOK {
					t.Errorf("the first time: %d %v", status, answer)
				}
				_, answer := d.post(t, d.Token, form)
				return &oauth2.RetrieveError{ErrorCode: answer["error"].(string)}
			}, "invalid_client"},
		} {
			t.Run(name, func(t *testing.T) {
				if err := c.ask(); codeOf(err) != c.want {
					t.Errorf("the token service answers %v, want %s", err, c.want)
				}
			})
		}
	})
}

// A client finds the token service from its issuer, wherever it looks, and
// also when the issuer has a path.
func TestDiscovery(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ path string }{"at the root": {""}, "below a path": {"/id"}} {
		t.Run(name, func(t *testing.T) {
			srv := e2etest.Start(t, "--issuer", "https://localhost:{port}"+c.path)
			d := &oauthDesk{desk: &desk{Server: srv}}
			var all []string
			places := []string{
				srv.URL + "/.well-known/oauth-authorization-server" + c.path, srv.URL + "/.well-known/openid-configuration" + c.path,
				srv.URL + c.path + "/.well-known/openid-configuration",
			}
			for _, at := range places {
				all = append(all, string(d.get(t, at, http.StatusOK)))
			}
			if len(slices.Compact(all)) != 1 {
				t.Errorf("the documents differ: %q", all)
			}
			must(t, json.Unmarshal([]byte(all[0]), &d.metadata))
			if d.Issuer != srv.URL+c.path {
				t.Errorf("the issuer is %q, want %q", d.Issuer, srv.URL+c.path)
			}
			set, err := jwk.Parse(d.get(t, d.JWKS, http.StatusOK))
			if err != nil || set.Len() == 0 {
				t.Errorf("the keys: %v, %v", set, err)
			}
			// The command line needs the server's address and not the issuer.
			srv.Admin(t).Must(t, "agent", "list")
		})
	}
}

// A token is good at the resource that it is for, and nowhere else.
func TestReverseRoute(t *testing.T) {
	t.Parallel()
	d := newOAuthDesk(t, e2etest.Start(t))
	good, err := d.token(t, "client_secret_basic", url.Values{"resource": {d.site.URL}, "purpose": {"support"}})
	must(t, err)
	elsewhere, err := d.token(t, "client_secret_basic", url.Values{"purpose": {"support"}})
	must(t, err)
	status, body, head := d.call(t, http.MethodGet, "/v1/echo", good.AccessToken)
	if status != http.StatusOK || strings.Contains(body, crmKey) || strings.Contains(body, good.AccessToken) || strings.Contains(head.Get("Echo-Authorization"), crmKey) {
		t.Errorf("the echo of the credential is %d %s %v", status, body, head)
	}
	for name, c := range map[string]struct {
		method, path, token string
		status              int
		code                string
	}{
		"no token":                   {http.MethodGet, "/v1/customers", "", http.StatusUnauthorized, ""},
		"no token at all":            {http.MethodGet, "/v1/customers", "nonsense", http.StatusUnauthorized, ""},
		"a token for the issuer":     {http.MethodGet, "/v1/customers", elsewhere.AccessToken, http.StatusUnauthorized, ""},
		"a person's token":           {http.MethodGet, "/v1/customers", d.admin.Token(t), http.StatusUnauthorized, "invalid_token"},
		"an action without a grant":  {http.MethodDelete, "/v1/customers/cus_1001", good.AccessToken, http.StatusForbidden, "not_granted"},
		"an action that is not one":  {http.MethodPut, "/v1/customers/cus_1001", good.AccessToken, http.StatusForbidden, "unknown_action"},
		"a path with two readings":   {http.MethodGet, "/v1/customers/..%2fcustomers", good.AccessToken, http.StatusBadRequest, ""},
		"a path outside of the base": {http.MethodGet, "/../../v1/agents", good.AccessToken, http.StatusBadRequest, ""},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(d.crm.Calls())
			status, body, head := d.call(t, c.method, c.path, c.token)
			if status != c.status || !strings.Contains(body, c.code) {
				t.Errorf("%d %s, want %d with %q", status, body, c.status, c.code)
			}
			if status == http.StatusUnauthorized && !strings.HasPrefix(head.Get("WWW-Authenticate"), "Bearer ") {
				t.Errorf("the challenge is %q", head.Get("WWW-Authenticate"))
			}
			if n := len(d.crm.Calls()) - before; n != 0 {
				t.Errorf("%d requests came to the customer system", n)
			}
		})
	}
}

// What ends a token ends it at once: its revocation, its session's end, its
// agent's containment.
func TestTokenEnds(t *testing.T) {
	t.Parallel()
	d := newOAuthDesk(t, e2etest.Start(t))
	works := func(t *testing.T, token string) bool {
		t.Helper()
		status, body, _ := d.call(t, http.MethodGet, "/v1/customers", token)
		_, answer := d.post(t, d.Introspection, url.Values{"token": {token}})
		if (status == http.StatusOK) != (answer["active"] == true) {
			t.Errorf("the reverse route answers %d %s, and introspection %v", status, body, answer)
		}
		if status != http.StatusOK && status != http.StatusUnauthorized {
			t.Errorf("the reverse route answers %d: %s", status, body)
		}
		if answer["active"] != true && len(answer) != 1 {
			t.Errorf("introspection tells of a token that is none: %v", answer)
		}
		return status == http.StatusOK
	}
	fresh := func(t *testing.T, more url.Values) string {
		t.Helper()
		form := url.Values{"resource": {d.site.URL}, "purpose": {"support"}}
		for k, v := range more {
			form[k] = v
		}
		tok, err := d.token(t, "client_secret_basic", form)
		must(t, err)
		if !works(t, tok.AccessToken) {
			t.Fatal("a token that was just issued does not work")
		}
		return tok.AccessToken
	}
	t.Run("revocation", func(t *testing.T) {
		one, other := fresh(t, nil), fresh(t, nil)
		if status, answer := d.post(t, d.Revocation, url.Values{"token": {one}}); status != http.StatusOK {
			t.Errorf("revocation: %d %v", status, answer)
		}
		if works(t, one) {
			t.Error("a token works that was revoked")
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.Revocation, strings.NewReader(url.Values{"token": {other}}.Encode()))
		must(t, err)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Authorization", "Bearer "+other)
		res, err := d.HTTP(t).Do(req)
		must(t, err)
		if _ = res.Body.Close(); res.StatusCode != http.StatusUnauthorized {
			t.Errorf("whoever has a token is let end it: %s", res.Status)
		}
		if !works(t, other) {
			t.Error("another token does not work any more")
		}
		if r := d.admin.Input(t, other, "token", "revoke"); r.Code != 0 {
			t.Errorf("estover token revoke: %s", r.Stderr)
		}
		if works(t, other) {
			t.Error("a token works that a person has revoked")
		}
		if status, _ := d.post(t, d.Revocation, url.Values{"token": {"nonsense"}}); status != http.StatusOK {
			t.Errorf("the revocation of nothing: %d", status)
		}
	})
	t.Run("session", func(t *testing.T) {
		own, err := d.token(t, "client_secret_basic", url.Values{"purpose": {"support"}})
		must(t, err)
		s, err := d.Open(t, own.AccessToken, "", "support")
		must(t, err)
		token := fresh(t, url.Values{"session": {s.ID}})
		must(t, d.Post(t, own.AccessToken, "/v1/sessions/"+s.ID+"/end", map[string]string{"cause": "done"}, nil))
		if works(t, token) {
			t.Error("a token works whose session has ended")
		}
		if _, err := d.token(t, "client_secret_basic", url.Values{"resource": {d.site.URL}, "session": {s.ID}}); codeOf(err) != "invalid_grant" {
			t.Errorf("a token of a session that has ended: %v, want invalid_grant", err)
		}
	})
	t.Run("another agent", func(t *testing.T) {
		token := fresh(t, nil)
		d.admin.Apply(t, e2etest.Agent("other", "support"))
		var c struct {
			ClientID     string `json:"client_id"`
			ClientSecret string `json:"client_secret"`
		}
		d.admin.JSON(t, &c, "agent", "credential", "add", "other")
		other := *d
		other.agent, other.secret = c.ClientID, c.ClientSecret
		if _, answer := other.post(t, d.Introspection, url.Values{"token": {token}}); len(answer) != 1 || answer["active"] != false {
			t.Errorf("another agent learns %v of a token", answer)
		}
		if status, _ := other.post(t, d.Revocation, url.Values{"token": {token}}); status != http.StatusOK {
			t.Errorf("another agent's revocation is answered with %d", status)
		}
		if !works(t, token) {
			t.Error("another agent has revoked the token")
		}
	})
	t.Run("containment", func(t *testing.T) {
		token := fresh(t, nil)
		d.admin.Must(t, "contain", "bot", "--reason", "a drill")
		status, body, _ := d.call(t, http.MethodGet, "/v1/customers", token)
		if status != http.StatusUnauthorized && status != http.StatusForbidden {
			t.Errorf("a contained agent's token is answered with %d %s", status, body)
		}
		_, err := d.token(t, "private_key_jwt", url.Values{"purpose": {"support"}})
		if code := codeOf(err); code != "access_denied" && code != "invalid_client" && code != "unauthorized_client" {
			t.Errorf("a contained agent's request for a token: %v", err)
		}
	})
}
