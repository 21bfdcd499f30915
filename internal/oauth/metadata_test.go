package oauth_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/seal"
)

// Every member of the metadata has the value of tokens.md, section 2, and there
// is no other: what clients rely on changes on purpose alone.
func TestEveryMemberOfTheMetadata(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		i := string(oauthtest.Issuer)
		methods := []string{"client_secret_basic", "client_secret_post", "private_key_jwt", "tls_client_auth", "self_signed_tls_client_auth"}
		withNone := append(slices.Clone(methods), "none")
		keys := []string{"ES256", "EdDSA", "Ed25519"} // RS256 is for clients that are registered with it
		want := map[string]any{
			"issuer":                                i,
			"authorization_endpoint":                i + "/oauth/authorize",
			"pushed_authorization_request_endpoint": i + "/oauth/par",
			"device_authorization_endpoint":         i + "/oauth/device",
			"backchannel_authentication_endpoint":   i + "/oauth/ciba",
			"token_endpoint":                        i + "/oauth/token",
			"jwks_uri":                              i + "/oauth/jwks",
			"userinfo_endpoint":                     i + "/oauth/userinfo",
			"introspection_endpoint":                i + "/oauth/introspect",
			"revocation_endpoint":                   i + "/oauth/revoke",
			"grant_types_supported": []string{
				"authorization_code", "client_credentials", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code",
				"urn:ietf:params:oauth:grant-type:jwt-bearer", "urn:ietf:params:oauth:grant-type:token-exchange", "urn:openid:params:grant-type:ciba",
			},
			"response_types_supported":                          []string{"code"},
			"response_modes_supported":                          []string{"query"},
			"code_challenge_methods_supported":                  []string{"S256"},
			"authorization_response_iss_parameter_supported":    true,
			"request_parameter_supported":                       false,
			"request_uri_parameter_supported":                   false,
			"require_pushed_authorization_requests":             false,
			"backchannel_token_delivery_modes_supported":        []string{"poll"},
			"authorization_grant_profiles_supported":            []string{"urn:ietf:params:oauth:grant-profile:id-jag"},
			"identity_chaining_requested_token_types_supported": []string{"urn:ietf:params:oauth:token-type:id-jag"},
			"token_endpoint_auth_methods_supported":             withNone,
			"revocation_endpoint_auth_methods_supported":        withNone,
			"introspection_endpoint_auth_methods_supported":     methods, // who does not authenticate asks about nothing
			"introspection_signing_alg_values_supported":        []string{"ES256"},
			"dpop_signing_alg_values_supported":                 keys,
			"tls_client_certificate_bound_access_tokens":        true,
			"client_id_metadata_document_supported":             true,
			"subject_types_supported":                           []string{"public"},
			"id_token_signing_alg_values_supported":             []string{"RS256", "ES256"},
			"scopes_supported":                                  []string{"openid", "profile", "email"},
			"acr_values_supported":                              []string{"phr"},
			"authorization_details_types_supported":             []string{"estover_task"},
			"token_endpoint_auth_signing_alg_values_supported":  keys,
			"claims_supported":                                  []string{"iss", "sub", "aud", "exp", "iat", "auth_time", "nonce", "acr", "amr", "at_hash", "grant_id", "name", "preferred_username", "email"},
		}
		for _, endpoint := range []string{"introspection", "revocation"} {
			want[endpoint+"_endpoint_auth_signing_alg_values_supported"] = want["token_endpoint_auth_signing_alg_values_supported"]
		}
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var parsed map[string]any
		if err := json.Unmarshal(b, &parsed); err != nil {
			t.Fatal(err)
		}
		got := w.Do(httpGet("/.well-known/oauth-authorization-server")).JSON
		for _, name := range slices.Sorted(maps.Keys(parsed)) {
			if g, w := fmt.Sprint(got[name]), fmt.Sprint(parsed[name]); g != w {
				t.Errorf("%s is %s, want %s", name, g, w)
			}
		}
		for name, value := range got {
			if _, known := parsed[name]; !known {
				t.Errorf("the metadata has %s: %v", name, value)
			}
		}
	})
}

// Who keeps a copy of the keys as long as they may has each key before it signs.
func TestKeysAreKeptForLessThanTheirLead(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		a := oauthtest.New(t, d).Do(httpGet("/oauth/jwks"))
		seconds, err := strconv.Atoi(strings.TrimPrefix(a.Header.Get("Cache-Control"), "public, max-age="))
		if err != nil {
			t.Fatalf("Cache-Control %q: %v", a.Header.Get("Cache-Control"), err)
		}
		if kept := time.Duration(seconds) * time.Second; kept <= 0 || kept > seal.Lead {
			t.Errorf("keys may be kept for %v, and sign %v after they are published", kept, seal.Lead)
		}
	})
}

// Scripts of other origins reach what tokens.md, section 2 says, and what is
// asked with a token that they hold; never what a browser's cookies would open,
// and none of the endpoints that servers use.
func TestCrossOriginOfEachPath(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := registering(t, d).World
		for path, open := range map[string]bool{
			"/oauth/token": true, "/oauth/jwks": true, "/oauth/userinfo": true,
			"/.well-known/oauth-authorization-server": true, "/.well-known/openid-configuration": true,
			"/oauth/introspect": false, "/oauth/revoke": false, "/oauth/par": false, "/oauth/device": false, "/oauth/ciba": false,
			"/oauth/register": false, "/oauth/register/agt_x": false, "/oauth/authorize": false, "/oauth/consent": false, "/device": false,
		} {
			r := httpGet(path)
			r.Method = http.MethodOptions
			r.Header.Set("Origin", "https://app.example")
			r.Header.Set("Access-Control-Request-Method", "POST")
			a := w.Do(r)
			origin := a.Header.Get("Access-Control-Allow-Origin")
			if open && (a.Status != http.StatusNoContent || origin != "*") || !open && (origin != "" || a.Status == http.StatusNoContent) {
				t.Errorf("a preflight of %s: %d %v, want it open: %v", path, a.Status, a.Header, open)
			}
			if a.Header.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("%s lets scripts use cookies", path)
			}
		}
	})
}
