package ticket_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/ticket"
)

var (
	appWay  = ticket.Way{ID: "mnt_app", Path: "auth/approle"}
	jwtWay  = ticket.Way{ID: "mnt_jwt", Path: "auth/jwt"}
	certWay = ticket.Way{ID: "mnt_cert", Path: "auth/cert"}
)

// role makes or changes a role.
func (w *world) role(at ticket.Way, kind, name string, change func(*ticket.Role)) *ticket.Role {
	w.t.Helper()
	r, err := w.ChangeRole(w.t.Context(), ada, at, kind, name, "", func(r *ticket.Role) error { change(r); return nil })
	if err != nil {
		w.t.Fatalf("the role %s: %v", name, err)
	}
	return r
}

func (w *world) secretID(name string, wish ticket.SecretWish) (estover.Secret, ticket.SecretID) {
	w.t.Helper()
	v, s, err := w.CreateSecretID(w.t.Context(), ada, appWay, name, wish)
	if err != nil {
		w.t.Fatal(err)
	}
	return v, s
}

func TestAppRole(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		ctx := t.Context()
		r := w.role(appWay, ticket.AppRoles, "app", func(r *ticket.Role) {
			r.Limits.Policies, r.Limits.TTL, r.App.NumUses, r.App.TTL = []string{"app"}, 600, 3, 3600
		})
		if r.Agent != "agt_approle-app" || !r.Made || !slices.Equal(w.agents, []string{"agt_approle-app"}) {
			t.Errorf("the role leads to %q, made with it: %v; want an agent of its own", r.Agent, r.Made)
		}
		w.role(appWay, ticket.AppRoles, "app", func(r *ticket.Role) { r.Limits.MaxTTL = 3600 })
		if len(w.agents) != 1 {
			t.Errorf("changing the role made another agent: %v", w.agents)
		}
		secret, s := w.secretID("app", ticket.SecretWish{Meta: map[string]string{"env": "ci"}})
		login := func(id string, v estover.Secret) (ticket.Made, error) {
			return w.LoginAppRole(ctx, "default", appWay, home, id, v)
		}
		m, err := login(r.RoleID, secret)
		if err != nil {
			t.Fatal(err)
		}
		if m.Subject != estover.Agent(r.Agent) || m.TTL != 10*time.Minute || !slices.Equal(m.Policies, []string{"app", "default"}) || m.Meta["role_name"] != "app" || m.Meta["env"] != "ci" || !m.Orphan() || m.Session == "" {
			t.Errorf("the log-in gives %+v", m.Ticket)
		}
		if !w.opens(m) {
			t.Error("its token lets nobody in")
		}
		// V25: one text, whatever is wrong.
		second := w.role(appWay, ticket.AppRoles, "second", func(*ticket.Role) {})
		for what, c := range map[string]struct {
			id string
			v  estover.Secret
		}{
			"no such role":       {"nobody", secret},
			"no such secret":     {r.RoleID, estover.NewSecret([]byte("no"))},
			"no secret":          {r.RoleID, estover.Secret{}},
			"another role's":     {second.RoleID, secret},
			"its accessor":       {r.RoleID, estover.NewSecret([]byte(s.ID))},
			"the name as the id": {"app", secret},
		} {
			if _, err := login(c.id, c.v); !errors.Is(err, ticket.ErrLogin) || err.Error() != "invalid role or secret ID" {
				t.Errorf("%s: %v, want ErrLogin", what, err)
			}
		}
		if _, err := w.LoginAppRole(ctx, "other", appWay, home, r.RoleID, secret); !errors.Is(err, ticket.ErrLogin) {
			t.Errorf("in another tenant: %v, want ErrLogin (T1)", err)
		}
		got, err := w.LookupSecretID(ctx, ada, appWay, "app", ticket.SecretRef{Value: secret})
		if err != nil || got.ID != s.ID || got.UsesLeft != 2 || got.Meta["env"] != "ci" {
			t.Errorf("the secret-id is %+v, %v; want 2 uses left", got, err)
		}
		if _, err := w.LookupSecretID(ctx, eve, appWay, "app", ticket.SecretRef{Accessor: s.ID}); estover.KindOf(err) != estover.NotFound {
			t.Errorf("another tenant looks: %v, want NotFound (T3)", err)
		}
		if err := w.DestroySecretID(ctx, eve, appWay, "app", ticket.SecretRef{Accessor: s.ID}); estover.KindOf(err) != estover.NotFound {
			t.Errorf("another tenant destroys: %v, want NotFound (T3)", err)
		}
		if _, err := w.LookupSecretID(ctx, ada, appWay, "app", ticket.SecretRef{Accessor: "no"}); !errors.Is(err, ticket.ErrNoSecret) || !strings.Contains(err.Error(), "failed to find accessor entry") {
			t.Errorf("no such accessor: %v", err)
		}
		if _, _, err := w.CreateSecretID(ctx, ada, appWay, "no", ticket.SecretWish{}); !errors.Is(err, ticket.ErrNoRole) || !strings.Contains(err.Error(), `role "no" does not exist`) {
			t.Errorf("a secret-id of no role: %v", err)
		}
		// TTL and uses above the role's are refused, not clipped.
		for what, wish := range map[string]ticket.SecretWish{
			"a longer TTL": {TTL: new(int64(7200))}, "no TTL": {TTL: new(int64(0))}, "more uses": {Uses: new(int64(4))}, "any uses": {Uses: new(int64(0))},
		} {
			if _, _, err := w.CreateSecretID(ctx, ada, appWay, "app", wish); !errors.Is(err, ticket.ErrSecret) {
				t.Errorf("%s: %v, want ErrSecret", what, err)
			}
		}
		custom := estover.NewSecret([]byte("chosen by somebody"))
		if _, _, err := w.CreateSecretID(ctx, ada, appWay, "app", ticket.SecretWish{Value: custom, TTL: new(int64(60)), Uses: new(int64(1))}); err != nil {
			t.Errorf("a secret-id of somebody's own: %v", err)
		}
		if _, _, err := w.CreateSecretID(ctx, ada, appWay, "app", ticket.SecretWish{Value: custom}); !errors.Is(err, ticket.ErrSecret) {
			t.Errorf("the same again: %v, want ErrSecret", err)
		}
		list, err := w.SecretIDs(ctx, ada, appWay, "app")
		if err != nil || len(list) != 2 {
			t.Errorf("the role has %v, %v; want 2 secret-ids", list, err)
		}
		w.clock.Advance(61 * time.Second)
		if _, err := login(r.RoleID, custom); !errors.Is(err, ticket.ErrLogin) {
			t.Errorf("with a secret-id whose time is over: %v", err)
		}
		// The end of an agent is that of its secret-ids.
		if err := w.guard.Do(ctx, ada, guard.Op{Action: "test"}, func(tx *guard.Tx) error {
			n, err := ticket.EndOfAgent(ctx, tx, r.Agent)
			if n != 2 {
				t.Errorf("%d secret-ids were taken, want 2", n)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := login(r.RoleID, secret); !errors.Is(err, ticket.ErrLogin) {
			t.Errorf("after its secret-ids were taken: %v", err)
		}
		// The end of the role is the end of what was got by it.
		if err := w.RemoveRole(ctx, ada, appWay, "app"); err != nil {
			t.Fatal(err)
		}
		if w.opens(m) || !slices.Equal(w.retired, []string{r.Agent}) {
			t.Errorf("after the role: the token opens %v, retired are %v", w.opens(m), w.retired)
		}
		if err := w.RemoveRole(ctx, ada, appWay, "app"); err != nil {
			t.Errorf("removing what is not there: %v (V9)", err)
		}
	})
}

// A secret-id that is good n times lets n in, of 64 at once on two nodes.
func TestSecretIDRace(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		key := t.TempDir() + "/root.key"
		w, second := node(t, d, key), node(t, d, key)
		r := w.role(appWay, ticket.AppRoles, "app", func(r *ticket.Role) { r.App.NumUses = 5 })
		v, _ := w.secretID("app", ticket.SecretWish{})
		var good atomic.Int64
		var all sync.WaitGroup
		for i := range 64 {
			all.Go(func() {
				n := w
				if i%2 == 1 {
					n = second
				}
				if _, err := n.LoginAppRole(t.Context(), "default", appWay, home, r.RoleID, v); err == nil {
					good.Add(1)
				} else if !errors.Is(err, ticket.ErrLogin) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if good.Load() != 5 {
			t.Errorf("a secret-id for 5 log-ins was good %d times", good.Load())
		}
	})
}

func TestAppRoleNetworks(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	r := w.role(appWay, ticket.AppRoles, "app", func(r *ticket.Role) {
		r.App.CIDRs, r.Limits.CIDRs = []string{"192.0.2.0/24"}, []string{"192.0.2.0/24"}
	})
	if _, _, err := w.CreateSecretID(t.Context(), ada, appWay, "app", ticket.SecretWish{CIDRs: []string{"10.0.0.0/8"}}); !errors.Is(err, ticket.ErrSecret) {
		t.Errorf("a secret-id for another network: %v, want ErrSecret", err)
	}
	v, _ := w.secretID("app", ticket.SecretWish{CIDRs: []string{"192.0.2.7/32"}, TokenCIDRs: []string{"192.0.2.7"}})
	for from, want := range map[string]bool{"192.0.2.7": true, "192.0.2.8": false, "10.0.0.1": false} {
		m, err := w.LoginAppRole(t.Context(), "default", appWay, ticket.From{Address: netip.MustParseAddr(from)}, r.RoleID, v)
		if (err == nil) != want || err == nil && !slices.Equal(m.CIDRs, []string{"192.0.2.7"}) {
			t.Errorf("from %s: %v, %v; want that it lets in: %v", from, m.CIDRs, err, want)
		}
	}
	if _, err := w.ChangeRole(t.Context(), ada, appWay, ticket.AppRoles, "loose", "", func(r *ticket.Role) error {
		r.App.BindSecretID = false
		return nil
	}); !errors.Is(err, ticket.ErrRole) {
		t.Errorf("a role that asks for nothing: %v, want ErrRole", err)
	}
	if slices.Contains(w.agents, "agt_approle-loose") {
		t.Error("an agent was made for a role that cannot be")
	}
}

// Who may not log in is told so by the policy, and gets nothing.
func TestLoginIsDecidedOn(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	r := w.role(appWay, ticket.AppRoles, "app", func(*ticket.Role) {})
	v, s := w.secretID("app", ticket.SecretWish{Uses: new(int64(1))})
	w.decide = func(c estover.Caller, op guard.Op) guard.Decision {
		if op.Action == "ticket.login" {
			if c.Subject != estover.Agent(r.Agent) || op.Target != string(c.Subject) {
				t.Errorf("decided about %+v, %+v", c, op)
			}
			return guardtest.DenyAll(c, op)
		}
		return guardtest.AllowAll(c, op)
	}
	if _, err := w.LoginAppRole(t.Context(), "default", appWay, home, r.RoleID, v); estover.KindOf(err) != estover.Denied {
		t.Errorf("an agent that may not log in: %v, want Denied", err)
	}
	if got, err := w.LookupSecretID(t.Context(), ada, appWay, "app", ticket.SecretRef{Accessor: s.ID}); err != nil || got.UsesLeft != 1 {
		t.Errorf("its secret-id has %+v, %v; want its use left", got, err)
	}
}

func TestTokenRole(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	at := ticket.Way{ID: "mnt_token", Path: "auth/token"}
	w.role(at, ticket.TokenRoles, "ci", func(r *ticket.Role) {
		r.Token.Allowed, r.Token.AllowedGlob, r.Token.Disallowed = []string{"build"}, []string{"deploy-*"}, []string{"deploy-prod"}
		r.Token.Orphan, r.Token.PathSuffix, r.Limits.Period, r.Limits.ExplicitMaxTTL = true, "ci", 1800, 7200
	})
	app := w.make(ada, nil, ticket.Wish{Policies: []string{"other"}})
	for _, c := range []struct {
		policies, want []string
	}{
		{nil, []string{"build", "default"}}, {[]string{"deploy-test"}, []string{"default", "deploy-test"}}, {[]string{"deploy-prod"}, nil}, {[]string{"ops"}, nil}, {[]string{"other"}, nil},
	} {
		m, err := w.CreateByRole(t.Context(), ada, &app.Ticket, at, "ci", ticket.Wish{Policies: c.policies, Path: "auth/token/create/ci"})
		if c.want == nil {
			if !errors.Is(err, ticket.ErrPolicies) {
				t.Errorf("the policies %v: %v, %v; want ErrPolicies", c.policies, m.Policies, err)
			}
			continue
		}
		if err != nil || !slices.Equal(m.Policies, c.want) || !m.Orphan() || m.Period != 30*time.Minute || m.ExplicitMax != 2*time.Hour || m.Path != "auth/token/create/ci/ci" || m.Role != "ci" {
			t.Errorf("the policies %v give %+v, %v; want %v", c.policies, m.Ticket, err, c.want)
		}
	}
	// Where nothing is asked for the role's word counts, too.
	w.role(at, ticket.TokenRoles, "glob", func(r *ticket.Role) { r.Token.AllowedGlob = []string{"deploy-*"} })
	w.role(at, ticket.TokenRoles, "not", func(r *ticket.Role) { r.Token.Disallowed = []string{"other"} })
	w.role(at, ticket.TokenRoles, "none", func(r *ticket.Role) { r.Token.DisallowedGlob = []string{" Oth*"} }) // names of policies have no capitals
	w.role(at, ticket.TokenRoles, "bare", func(r *ticket.Role) { r.Limits.NoDefaultPolicy = true })
	if m, err := w.CreateByRole(t.Context(), ada, &app.Ticket, at, "glob", ticket.Wish{}); err != nil || !slices.Equal(m.Policies, []string{"default"}) {
		t.Errorf("nothing asked for of a role with patterns: %v, %v", m.Policies, err)
	}
	for _, role := range []string{"not", "none"} {
		if m, err := w.CreateByRole(t.Context(), ada, &app.Ticket, at, role, ticket.Wish{}); !errors.Is(err, ticket.ErrPolicies) {
			t.Errorf("the parent's policies, which the role %s does not want: %v, %v", role, m.Policies, err)
		}
	}
	if m, err := w.CreateByRole(t.Context(), ada, &app.Ticket, at, "bare", ticket.Wish{}); err != nil || !slices.Equal(m.Policies, []string{"other"}) {
		t.Errorf("the parent's without default: %v, %v", m.Policies, err)
	}
	if _, err := w.CreateByRole(t.Context(), ada, nil, at, "no", ticket.Wish{}); !errors.Is(err, ticket.ErrRole) {
		t.Errorf("no such role: %v", err)
	}
}

// A signer of JWTs.
type signer struct{ key *ecdsa.PrivateKey }

func newSigner(t *testing.T) *signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{k}
}

func (s *signer) pem(t *testing.T) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func (s *signer) jwks(t *testing.T, kid string) []byte {
	t.Helper()
	raw, err := s.key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	b, err := json.Marshal(map[string]any{"keys": []any{map[string]any{"kty": "EC", "crv": "P-256", "kid": kid, "x": b64(raw[1:33]), "y": b64(raw[33:])}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *signer) sign(t *testing.T, header, claims map[string]any) string {
	t.Helper()
	h := map[string]any{"alg": "ES256", "typ": "JWT"}
	for k, v := range header {
		h[k] = v
	}
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := part(h) + "." + part(claims)
	sum := sha256.Sum256([]byte(text))
	r, ss, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	ss.FillBytes(sig[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func TestJWT(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	ctx := t.Context()
	s, stranger := newSigner(t), newSigner(t)
	if _, err := w.LoginJWT(ctx, "default", jwtWay, home, "ci", "x"); !errors.Is(err, ticket.ErrNotSet) {
		t.Errorf("before it is set: %v", err)
	}
	for what, c := range map[string]ticket.JWTConfig{
		"no keys": {}, "two sources": {JWKSURL: "https://idp.example/keys", PublicKeys: []string{s.pem(t)}}, "no key": {PublicKeys: []string{"x"}},
		"a file": {JWKSURL: "file:///etc/passwd"}, "an unsigned algorithm": {PublicKeys: []string{s.pem(t)}, Algorithms: []string{"none"}}, "a shared secret": {PublicKeys: []string{s.pem(t)}, Algorithms: []string{"HS256"}},
		"keys that cannot be had": {JWKSURL: "https://idp.example/keys"},
	} {
		if err := w.SetJWT(ctx, ada, jwtWay, c, estover.Secret{}); !errors.Is(err, ticket.ErrSetting) {
			t.Errorf("%s: %v, want ErrSetting", what, err)
		}
	}
	if err := w.SetJWT(ctx, ada, jwtWay, ticket.JWTConfig{PublicKeys: []string{s.pem(t)}, BoundIssuer: "https://idp.example", DefaultRole: "ci"}, estover.Secret{}); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*ticket.JWTRole){
		"no user claim":   func(r *ticket.JWTRole) { r.UserClaim = "" },
		"bound to nobody": func(r *ticket.JWTRole) { r.BoundAudiences = nil },
		"another type":    func(r *ticket.JWTRole) { r.RoleType = "saml" },
		"another match":   func(r *ticket.JWTRole) { r.BoundClaimsType = "regexp" },
		"a time before":   func(r *ticket.JWTRole) { r.MaxAge = -1 },
		"no end":          func(r *ticket.JWTRole) { r.BoundClaims = map[string]any{"team": strings.Repeat("x", 300<<10)} },
	} {
		if _, err := w.ChangeRole(ctx, ada, jwtWay, ticket.JWTRoles, "bad", "", func(r *ticket.Role) error {
			r.JWT.RoleType, r.JWT.UserClaim, r.JWT.BoundAudiences = "jwt", "sub", []string{"vault"}
			change(r.JWT)
			return nil
		}); !errors.Is(err, ticket.ErrRole) {
			t.Errorf("a role with %s: %v, want ErrRole", what, err)
		}
	}
	w.role(jwtWay, ticket.JWTRoles, "ci", func(r *ticket.Role) {
		r.Limits.Policies = []string{"build"}
		r.JWT.RoleType, r.JWT.UserClaim, r.JWT.BoundAudiences, r.JWT.BoundClaimsType = "jwt", "/kubernetes/name", []string{"vault"}, "glob"
		r.JWT.UserClaimPointer = true
		r.JWT.BoundClaims = map[string]any{"project": []any{"team/*", "x"}, "/kubernetes/ns": "prod", "protected": "true"}
		r.JWT.ClaimMappings = map[string]string{"project": "project"}
	})
	now := time.Now().Unix()
	good := func() map[string]any {
		return map[string]any{
			"iss": "https://idp.example", "sub": "job:1", "aud": []string{"vault", "other"}, "iat": now, "nbf": now, "exp": now + 300,
			"project": "team/app", "protected": true, "kubernetes": map[string]any{"ns": "prod", "name": "builder"},
		}
	}
	m, err := w.LoginJWT(ctx, "default", jwtWay, home, "", s.sign(t, nil, good()))
	if err != nil {
		t.Fatal(err)
	}
	if m.Subject != "agent:agt_jwt-ci" || m.DisplayName != "jwt-builder" || m.Meta["role"] != "ci" || m.Meta["project"] != "team/app" || !slices.Equal(m.Policies, []string{"build", "default"}) {
		t.Errorf("the log-in gives %+v", m.Ticket)
	}
	for what, change := range map[string]func(h, c map[string]any){
		"another issuer": func(_, c map[string]any) { c["iss"] = "https://evil.example" }, "no issuer": func(_, c map[string]any) { delete(c, "iss") },
		"another audience": func(_, c map[string]any) { c["aud"] = "other" }, "no audience": func(_, c map[string]any) { delete(c, "aud") },
		"another project": func(_, c map[string]any) { c["project"] = "evil/team/app" }, "a claim less": func(_, c map[string]any) { delete(c, "protected") },
		"the claim deeper": func(_, c map[string]any) { c["kubernetes"] = map[string]any{"name": "builder"} },
		"late":             func(_, c map[string]any) { c["exp"] = now - 120 }, "no end": func(_, c map[string]any) { delete(c, "exp") },
		"early": func(_, c map[string]any) { c["nbf"] = now + 120 }, "unsigned": func(h, _ map[string]any) { h["alg"] = "none" }, "a shared secret": func(h, _ map[string]any) { h["alg"] = "HS256" },
		"no user": func(_, c map[string]any) { c["kubernetes"] = map[string]any{"ns": "prod"} },
	} {
		h, c := map[string]any{}, good()
		change(h, c)
		if _, err := w.LoginJWT(ctx, "default", jwtWay, home, "ci", s.sign(t, h, c)); !errors.Is(err, ticket.ErrJWT) {
			t.Errorf("%s: %v, want ErrJWT (V26)", what, err)
		}
	}
	late := good()
	late["exp"], late["nbf"], late["iat"] = now-30, now-600, now-600
	if _, err := w.LoginJWT(ctx, "default", jwtWay, home, "ci", s.sign(t, nil, late)); err != nil {
		t.Errorf("half a minute late, within the usual leeway: %v", err)
	}
	for what, token := range map[string]string{"another's signature": stranger.sign(t, nil, good()), "nothing": "", "no token": "x"} {
		if _, err := w.LoginJWT(ctx, "default", jwtWay, home, "ci", token); !errors.Is(err, ticket.ErrJWT) {
			t.Errorf("%s: %v, want ErrJWT", what, err)
		}
	}
	if _, err := w.LoginJWT(ctx, "other", jwtWay, home, "ci", s.sign(t, nil, good())); !errors.Is(err, ticket.ErrNotSet) {
		t.Errorf("in another tenant: %v (T1)", err)
	}
	if _, err := w.LoginJWT(ctx, "default", jwtWay, home, "no", s.sign(t, nil, good())); !errors.Is(err, ticket.ErrJWT) {
		t.Errorf("no such role: %v", err)
	}
	w.role(jwtWay, ticket.JWTRoles, "ci", func(r *ticket.Role) { r.JWT.BoundAudiences, r.JWT.BoundSubject = nil, "job:1" })
	if _, err := w.LoginJWT(ctx, "default", jwtWay, home, "ci", s.sign(t, nil, good())); !errors.Is(err, ticket.ErrJWT) {
		t.Errorf("a token with aud for a role without: %v, want ErrJWT (V26)", err)
	}
}

// Keys are fetched when a new one is named, and not for every token that names one
// that there is not.
func TestJWTKeys(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	ctx := t.Context()
	old, fresh := newSigner(t), newSigner(t)
	var now atomic.Pointer[[]byte]
	set := func(b []byte) { now.Store(&b) }
	set(old.jwks(t, "old"))
	w.keys = func(url string) ([]byte, error) {
		switch url {
		case "https://idp.example/.well-known/openid-configuration":
			return []byte(`{"issuer":"https://idp.example","jwks_uri":"https://idp.example/keys"}`), nil
		case "https://idp.example/keys":
			return *now.Load(), nil
		}
		return nil, errors.New("not there")
	}
	if err := w.SetJWT(ctx, ada, jwtWay, ticket.JWTConfig{DiscoveryURL: "https://idp.example"}, estover.Secret{}); err != nil {
		t.Fatal(err)
	}
	w.role(jwtWay, ticket.JWTRoles, "ci", func(r *ticket.Role) { r.JWT.RoleType, r.JWT.UserClaim, r.JWT.BoundSubject = "jwt", "sub", "job" })
	claims := func(iss string) map[string]any {
		return map[string]any{"iss": iss, "sub": "job", "exp": w.d.Now().Add(time.Hour).Unix()}
	}
	login := func(s *signer, kid, iss string) error {
		_, err := w.LoginJWT(ctx, "default", jwtWay, home, "ci", s.sign(t, map[string]any{"kid": kid}, claims(iss)))
		return err
	}
	if err := login(old, "old", "https://idp.example"); err != nil {
		t.Errorf("by a fetched key: %v", err)
	}
	if err := login(old, "old", "https://evil.example"); !errors.Is(err, ticket.ErrJWT) {
		t.Errorf("of an issuer that the description does not name: %v, want ErrJWT", err)
	}
	set(fresh.jwks(t, "fresh"))
	w.clock.Advance(31 * time.Second)
	if err := login(fresh, "fresh", "https://idp.example"); err != nil {
		t.Errorf("by a key that came meanwhile: %v", err)
	}
	before := w.fetched.Load()
	for range 20 {
		if err := login(newSigner(t), "unknown", "https://idp.example"); !errors.Is(err, ticket.ErrJWT) {
			t.Errorf("by a key that there is not: %v", err)
		}
	}
	if n := w.fetched.Load() - before; n > 2 {
		t.Errorf("20 tokens of unknown keys had keys fetched %d times", n)
	}
}

// While the keys of an issuer cannot be had, strangers who log in do not have it
// asked for each of them: one fetch goes on at a time, and the next waits half a
// minute.
func TestJWTKeysDown(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	ctx := t.Context()
	s := newSigner(t)
	var down atomic.Bool
	w.keys = func(string) ([]byte, error) {
		if down.Load() {
			return nil, errors.New("it does not answer")
		}
		return s.jwks(t, "k"), nil
	}
	if err := w.SetJWT(ctx, ada, jwtWay, ticket.JWTConfig{JWKSURL: "https://idp.example/keys"}, estover.Secret{}); err != nil {
		t.Fatal(err)
	}
	w.role(jwtWay, ticket.JWTRoles, "ci", func(r *ticket.Role) { r.JWT.RoleType, r.JWT.UserClaim, r.JWT.BoundSubject = "jwt", "sub", "job" })
	storm := func() (errs [64]error) {
		token := s.sign(t, map[string]any{"kid": "k"}, map[string]any{"sub": "job", "exp": w.d.Now().Add(time.Hour).Unix()})
		var all sync.WaitGroup
		for i := range errs {
			all.Go(func() { _, errs[i] = w.LoginJWT(ctx, "default", jwtWay, home, "ci", token) })
		}
		all.Wait()
		return errs
	}
	down.Store(true)
	w.clock.Advance(2 * time.Hour) // the keys that were fetched serve no longer
	for round := range int64(2) {
		before := w.fetched.Load()
		for _, err := range storm() {
			if !errors.Is(err, ticket.ErrKeys) {
				t.Fatalf("a log-in while the issuer is down: %v, want ErrKeys", err)
			}
		}
		if n := w.fetched.Load() - before; n != 1 {
			t.Errorf("64 log-ins had the keys fetched %d times in round %d, want once", n, round)
		}
		w.clock.Advance(31 * time.Second)
	}
	down.Store(false)
	before := w.fetched.Load()
	for _, err := range storm() {
		if err != nil {
			t.Fatalf("a log-in when the issuer is back: %v", err)
		}
	}
	if n := w.fetched.Load() - before; n != 1 {
		t.Errorf("64 log-ins had the keys fetched %d times, want once", n)
	}
}

// A secret-id that was made when its role was good from more places is good from
// where the role is now, and so is what is got by it.
func TestAppRoleNarrowed(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	ctx := t.Context()
	r := w.role(appWay, ticket.AppRoles, "app", func(r *ticket.Role) { r.Limits.CIDRs = []string{"10.0.0.0/8", "192.168.0.0/16"} })
	v, _, err := w.CreateSecretID(ctx, ada, appWay, "app", ticket.SecretWish{TokenCIDRs: []string{"10.0.0.0/8"}})
	if err != nil {
		t.Fatal(err)
	}
	from := func(a string) ticket.From { return ticket.From{Address: netip.MustParseAddr(a)} }
	narrow := func(strict bool, cidrs ...string) {
		w.role(appWay, ticket.AppRoles, "app", func(r *ticket.Role) { r.Limits.CIDRs, r.Limits.StrictIP = cidrs, strict })
	}
	narrow(false, "10.1.0.0/16", "192.168.0.0/16")
	if m, err := w.LoginAppRole(ctx, "default", appWay, from("10.1.2.3"), r.RoleID, v); err != nil || !slices.Equal(m.CIDRs, []string{"10.1.0.0/16"}) {
		t.Errorf("the ticket is good from %v, %v; want what the role and the secret-id have in common", m.CIDRs, err)
	}
	for _, a := range []string{"10.2.0.1", "192.168.0.1"} {
		if _, err := w.LoginAppRole(ctx, "default", appWay, from(a), r.RoleID, v); !errors.Is(err, ticket.ErrLogin) {
			t.Errorf("from %s: %v, want ErrLogin", a, err)
		}
	}
	narrow(false, "172.16.0.0/12")
	if _, err := w.LoginAppRole(ctx, "default", appWay, from("10.1.2.3"), r.RoleID, v); !errors.Is(err, ticket.ErrLogin) {
		t.Errorf("nothing in common: %v, want ErrLogin", err)
	}
	narrow(true, "10.1.0.0/16") // token_strictly_bind_ip narrows, too
	if _, err := w.LoginAppRole(ctx, "default", appWay, from("10.2.0.1"), r.RoleID, v); !errors.Is(err, ticket.ErrLogin) {
		t.Errorf("from outside of a role that binds to an address: %v, want ErrLogin", err)
	}
	if m, err := w.LoginAppRole(ctx, "default", appWay, from("10.1.2.3"), r.RoleID, v); err != nil || !slices.Equal(m.CIDRs, []string{"10.1.2.3"}) {
		t.Errorf("bound to an address: %v, %v", m.CIDRs, err)
	}
}

// An authority issues certificates for a test.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{key: newSigner(t).key}
	a.cert = a.issue(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, a.key)
	return a
}

func (a *authority) issue(t *testing.T, c *x509.Certificate, key crypto.Signer) *x509.Certificate {
	t.Helper()
	parent := a.cert
	if parent == nil {
		parent = c
	}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	one, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return one
}

func asPEM(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

func TestCertificate(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	ctx := t.Context()
	ca, evil := newAuthority(t, "ca"), newAuthority(t, "ca")
	uri, err := url.Parse("spiffe://example/app")
	if err != nil {
		t.Fatal(err)
	}
	leaf := func(a *authority, serial int64, cn string, use x509.ExtKeyUsage) ticket.Shown {
		c := a.issue(t, &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: cn, OrganizationalUnit: []string{"ops"}}, DNSNames: []string{cn + ".example"}, URIs: []*url.URL{uri},
			ExtKeyUsage: []x509.ExtKeyUsage{use},
		}, newSigner(t).key)
		return ticket.Shown{Leaf: c, Thumbprint: "thumb-" + cn}
	}
	r := w.role(certWay, ticket.CertRoles, "web", func(r *ticket.Role) {
		r.Cert.Certificate, r.Cert.CommonNames, r.Cert.URIs, r.Limits.Policies = asPEM(ca.cert), []string{"app*"}, []string{"spiffe://example/*"}, []string{"web"}
	})
	good := leaf(ca, 10, "app1", x509.ExtKeyUsageClientAuth)
	m, err := w.LoginCert(ctx, "default", certWay, home, "", good)
	if err != nil {
		t.Fatal(err)
	}
	if m.Subject != estover.Agent(r.Agent) || m.Certificate != "thumb-app1" || m.Meta["cert_name"] != "web" || m.Meta["common_name"] != "app1" || m.Meta["serial_number"] != "10" {
		t.Errorf("the log-in gives %+v", m.Ticket)
	}
	if w.opens(m) {
		t.Error("its token is good without the certificate (V35)")
	}
	for what, c := range map[string]struct {
		name  string
		shown ticket.Shown
	}{
		"none": {"", ticket.Shown{}}, "another authority of the same name": {"", leaf(evil, 11, "app1", x509.ExtKeyUsageClientAuth)}, "another name": {"", leaf(ca, 12, "web1", x509.ExtKeyUsageClientAuth)},
		"a server's": {"", leaf(ca, 13, "app1", x509.ExtKeyUsageServerAuth)}, "no such role": {"other", good},
	} {
		if _, err := w.LoginCert(ctx, "default", certWay, home, c.name, c.shown); !errors.Is(err, ticket.ErrCertificate) {
			t.Errorf("%s: %v, want ErrCertificate", what, err)
		}
	}
	if _, err := w.LoginCert(ctx, "other", certWay, home, "", good); !errors.Is(err, ticket.ErrCertificate) {
		t.Errorf("in another tenant: %v (T1)", err)
	}
	crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(10), RevocationTime: time.Now()}},
	}, ca.cert, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.PutList(ctx, ada, certWay, "ca", string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: crl}))); err != nil {
		t.Fatal(err)
	}
	if _, err := w.LoginCert(ctx, "default", certWay, home, "", good); !errors.Is(err, ticket.ErrCertificate) {
		t.Errorf("revoked by a list: %v, want ErrCertificate", err)
	}
	if _, err := w.LoginCert(ctx, "default", certWay, home, "", leaf(ca, 14, "app2", x509.ExtKeyUsageClientAuth)); err != nil {
		t.Errorf("one that is not on it: %v", err)
	}
	if err := w.SetCert(ctx, ada, certWay, ticket.CertConfig{DisableBinding: true}); err != nil {
		t.Fatal(err)
	}
	if m, err = w.LoginCert(ctx, "default", certWay, home, "web", leaf(ca, 15, "app3", x509.ExtKeyUsageClientAuth)); err != nil || !w.opens(m) {
		t.Errorf("without binding: %v; it opens: %v", err, w.opens(m))
	}
}

// A mount that is taken away takes all with it that was got by it.
func TestEndOfMount(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		r := w.role(appWay, ticket.AppRoles, "app", func(*ticket.Role) {})
		v, _ := w.secretID("app", ticket.SecretWish{})
		m, err := w.LoginAppRole(t.Context(), "default", appWay, home, r.RoleID, v)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.guard.Do(t.Context(), ada, guard.Op{Action: "mount.disable"}, func(tx *guard.Tx) error { return w.EndOfMount(t.Context(), tx, appWay.ID) }); err != nil {
			t.Fatal(err)
		}
		if w.opens(m) {
			t.Error("a token lets in that was got by a mount that is gone")
		}
		if _, err := w.LoginAppRole(t.Context(), "default", appWay, home, r.RoleID, v); !errors.Is(err, ticket.ErrLogin) {
			t.Errorf("logging in by it: %v", err)
		}
		for _, table := range []string{"ticket_role", "ticket_secret", "ticket_setting"} {
			if n := count(t, d, "select count(*) from "+table); n != 0 {
				t.Errorf("%d rows of %s are left", n, table)
			}
		}
	})
}

// Nothing is fetched for whoever may not set whose JWTs are looked at.
func TestSettingIsDecidedOnFirst(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	w.decide = guardtest.DenyAll
	if err := w.SetJWT(t.Context(), bot, jwtWay, ticket.JWTConfig{JWKSURL: "https://inside.example/keys", AllowPrivate: true}, estover.Secret{}); estover.KindOf(err) != estover.Denied || w.fetched.Load() != 0 {
		t.Errorf("setting it: %v, and %d things were fetched", err, w.fetched.Load())
	}
}

// Of those who log in by a role while it is removed nobody stays.
func TestLoginAgainstRemoval(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		for range 10 {
			r := w.role(appWay, ticket.AppRoles, "app", func(*ticket.Role) {})
			v, _ := w.secretID("app", ticket.SecretWish{})
			var mu sync.Mutex
			var in []ticket.Made
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					m, err := w.LoginAppRole(t.Context(), "default", appWay, home, r.RoleID, v)
					if err != nil {
						if !errors.Is(err, ticket.ErrLogin) && !errors.Is(err, ticket.ErrBusy) {
							t.Error(err)
						}
						return
					}
					mu.Lock()
					defer mu.Unlock()
					in = append(in, m)
				})
			}
			all.Go(func() {
				if err := w.RemoveRole(t.Context(), ada, appWay, "app"); err != nil {
					t.Error(err)
				}
			})
			all.Wait()
			for _, m := range in {
				if w.opens(m) {
					t.Fatal("a token lets in whose role was removed")
				}
			}
		}
	})
}
