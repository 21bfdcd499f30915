package upstream_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/secret/upstream/azure"
	"estover.dev/internal/secret/upstream/google"
	"estover.dev/internal/secret/upstream/openbao"
)

const asserted = "eyJ.an-assertion.of-ours"

// TestFederation: each kind exchanges an assertion where it is good, as its protocol
// has it, and what is refused is told without it.
func TestFederation(t *testing.T) {
	var mu sync.Mutex
	var seen *http.Request
	var body string
	refuse, code := false, "invalid_grant"
	sts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.Header.Get("Content-Type") == "application/json" {
			var in map[string]string
			_ = json.NewDecoder(r.Body).Decode(&in)
			body = in["role"] + " " + in["jwt"]
		} else {
			_ = r.ParseForm()
			body = r.PostForm.Encode()
		}
		if seen = r; refuse {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(map[string]any{"error": code, "error_description": "this is not good: " + asserted})
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "got", "expires_in": 3600, "auth": map[string]any{"client_token": "got", "lease_duration": 3600}})
	}))
	defer sts.Close()
	for _, c := range []struct {
		kind    upstream.Kind
		options map[string]string
		path    string
		body    []string
	}{
		{openbao.Kind, map[string]string{"audience": "vault", "role": "estover", "auth": "ours/jwt"}, "/v1/auth/ours/jwt/login", []string{"estover " + asserted}},
		{azure.Kind, map[string]string{"audience": "api://AzureADTokenExchange", "tenant": "t-1", "client": "c-1", "authority": sts.URL}, "/t-1/oauth2/v2.0/token", []string{
			"client_assertion=" + asserted, "client_id=c-1", "grant_type=client_credentials", "scope=https%3A%2F%2Fvault.azure.net%2F.default",
			"client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer",
		}},
		{google.Kind, map[string]string{"project": "acme", "audience": "https://iam.googleapis.com/projects/1/x", "sts": sts.URL}, "/v1/token", []string{
			"audience=%2F%2Fiam.googleapis.com%2Fprojects%2F1%2Fx", "subject_token=" + asserted, "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange",
		}},
	} {
		config := engine.Config{Address: sts.URL, Options: c.options}
		got, until, err := c.kind.Federation.Login(t.Context(), config, asserted)
		if err != nil || string(got.Secret.Reveal()) != "got" || time.Until(until) < 50*time.Minute || time.Until(until) > time.Hour {
			t.Errorf("%s: until %s, %v, want a token for an hour", c.kind.Name, until, err)
			continue
		}
		if seen.URL.Path != c.path || seen.Method != http.MethodPost {
			t.Errorf("%s asks %s %s, want %s", c.kind.Name, seen.Method, seen.URL.Path, c.path)
		}
		for _, want := range c.body {
			if !strings.Contains(body, want) {
				t.Errorf("%s sends %s, without %s", c.kind.Name, body, want)
			}
		}
		mu.Lock()
		refuse = true
		mu.Unlock()
		_, _, err = c.kind.Federation.Login(t.Context(), config, asserted)
		if !errors.Is(err, engine.ErrUnreachable) || !strings.Contains(err.Error(), "400 invalid_grant") || strings.Contains(err.Error(), asserted) {
			t.Errorf("%s, refused: %v, want the reason without the assertion", c.kind.Name, err)
		}
		mu.Lock()
		code = asserted
		mu.Unlock()
		if _, _, err = c.kind.Federation.Login(t.Context(), config, asserted); err == nil || !strings.HasSuffix(err.Error(), ": 400") {
			t.Errorf("%s, with a code that is none: %v, want no more than the status", c.kind.Name, err)
		}
		mu.Lock()
		refuse, code = false, "invalid_grant"
		mu.Unlock()
	}
}

// TestFederated: one assertion is enough for as long as what came of it is good, and
// after a refusal another is made. It is for administrators.
func TestFederated(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		h.there.write("crm/key", `{"password":"first"}`)
		kind := h.there.kind()
		kind.Options = []engine.Field{{Name: upstream.Audience}}
		asks := 0
		kind.Federation = &upstream.Federation{Login: func(_ context.Context, _ engine.Config, assertion string) (engine.Credential, time.Time, error) {
			if asks++; assertion != "acme for them" {
				return engine.Credential{}, time.Time{}, engine.Unreachable(errors.New("it is not for us"))
			}
			return engine.Credential{Secret: estover.NewSecret([]byte("by-assertion"))}, time.Now().Add(time.Hour), nil
		}}
		h.x = upstream.NewStores(upstream.Config{
			Guard: h.guard, Secrets: h.secrets, Sealer: h.sealer, Kinds: []upstream.Kind{kind}, Logger: slog.New(slog.DiscardHandler),
			Assert: func(_ context.Context, tenant estover.TenantID, _, audience string) (string, error) {
				return string(tenant) + " for " + audience, nil
			},
		})
		spec := upstream.StoreSpec{Name: "cloud", Kind: "memory", Address: "https://vault.example", Options: map[string]string{"audience": "them"}}
		if _, err := h.x.Put(t.Context(), bea, spec); !errors.Is(err, upstream.ErrNotOwner) {
			t.Errorf("by an operator: %v, want ErrNotOwner", err)
		}
		spec.Login = "vault/token"
		if _, err := h.x.Put(t.Context(), ann, spec); !errors.Is(err, upstream.ErrInvalid) {
			t.Errorf("with a secret as well: %v, want ErrInvalid", err)
		}
		spec.Login = ""
		if _, err := h.x.Put(t.Context(), ann, spec); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := h.x.Check(t.Context(), ann, "cloud", ""); err != nil {
				t.Fatal(err)
			}
		}
		if asks != 1 || !h.there.tokens["by-assertion"] {
			t.Errorf("%d assertions were exchanged, want one, and its token used", asks)
		}
		if _, err := h.x.Link(t.Context(), ann, upstream.LinkSpec{Path: "crm/key", Store: "cloud", TTL: secret.Duration(time.Minute)}); err != nil {
			t.Fatal(err)
		}
		s, err := h.secrets.Get(t.Context(), ann, "crm/key")
		if err != nil {
			t.Fatal(err)
		}
		if err := h.x.Fresh(t.Context(), "acme", s, nil); err != nil || asks != 1 {
			t.Errorf("reading through it: %v, after %d exchanges", err, asks)
		}
		h.there.set(true)
		h.clock.Advance(2 * time.Minute)
		if err := h.x.Fresh(t.Context(), "acme", s, nil); !errors.Is(err, upstream.ErrStore) {
			t.Errorf("a store that refuses: %v, want ErrStore", err)
		}
		h.there.set(false)
		h.clock.Advance(time.Minute)
		if err := h.x.Fresh(t.Context(), "acme", s, nil); err != nil || asks != 2 {
			t.Errorf("after a refusal: %v, %d exchanges, want another one", err, asks)
		}
		// An import logs in as the store does.
		imports := upstream.NewImports(h.guard, h.secrets, nil, kind)
		order := upstream.Order{Store: "cloud", From: "crm/", To: "imported/", Destinations: []string{crmHost}}
		if _, err := imports.Run(t.Context(), ann, order); !errors.Is(err, upstream.ErrNoStore) {
			t.Errorf("where no stores are known: %v, want ErrNoStore", err)
		}
		imports.Stores = h.x
		if r, err := imports.Run(t.Context(), ann, order); err != nil || len(r.Items) != 1 || r.Items[0].Outcome != upstream.Imported || asks != 2 {
			t.Errorf("importing: %+v, %v, after %d exchanges", r, err, asks)
		}
		if v, err := h.use(h.secrets, "imported/key"); err != nil || v != "first" {
			t.Errorf("what was imported: %q, %v", v, err)
		}
		both, beyond := order, order
		both.Kind, beyond.From = "memory", "../"
		for what, c := range map[string]struct {
			caller estover.Caller
			order  upstream.Order
			want   error
		}{
			"somebody else's store": {bea, order, upstream.ErrNotOwner}, "another tenant's": {eve, order, upstream.ErrNoStore},
			"a store and a kind": {ann, both, upstream.ErrImport}, "a path that is none": {ann, beyond, upstream.ErrImport},
			"an assertion for what is not registered": {ann, upstream.Order{Kind: "memory", Address: spec.Address, Options: spec.Options}, upstream.ErrImport},
		} {
			if _, err := imports.Run(t.Context(), c.caller, c.order); !errors.Is(err, c.want) {
				t.Errorf("importing from %s: %v, want %v", what, err, c.want)
			}
		}
		h.there.set(true)
		var told *estover.Error
		if _, err := imports.Run(t.Context(), ann, order); !errors.As(err, &told) || !errors.Is(err, upstream.ErrStore) || !strings.Contains(told.Detail, "nobody is there") {
			t.Errorf("importing from a store that is down: %v, want ErrStore with the reason", err)
		}
		h.there.set(false)
		if r, err := imports.Run(t.Context(), ann, order); err != nil || len(r.Items) != 1 || r.Items[0].Outcome != upstream.Unchanged || asks != 3 {
			t.Errorf("importing again: %+v, %v, after %d exchanges, want one more", r, err, asks)
		}
		spec.Options = map[string]string{"audience": "others"}
		if _, err := h.x.Put(t.Context(), ann, spec); err != nil {
			t.Fatal(err)
		}
		if err := h.x.Check(t.Context(), ann, "cloud", ""); !errors.Is(err, upstream.ErrStore) || !strings.Contains(err.(*estover.Error).Detail, "it is not for us") {
			t.Errorf("an assertion that is not taken: %v, want ErrStore with the reason", err)
		}
	})
}
