package ticket_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/ticket"
)

// A provider logs people in, as OpenID Connect has it: a code is good once, for whom it
// was given, with the verifier of its challenge.
type provider struct {
	*signer
	t     *testing.T
	w     *world
	mu    sync.Mutex
	codes map[string]url.Values
	asked int
	alter func(claims map[string]any) // of the next ID tokens
	tells string                      // what its userinfo answers; "" for nothing
	shown []string                    // the access tokens that userinfo was shown
}

const (
	idp      = "https://idp.example"
	callback = "http://localhost:8250/oidc/callback"
)

func newProvider(t *testing.T, w *world) *provider {
	p := &provider{signer: newSigner(t), t: t, w: w, codes: map[string]url.Values{}}
	keys := p.jwks(t, "k")
	w.keys = func(at string) ([]byte, error) {
		if strings.HasSuffix(at, "/keys") {
			return keys, nil
		}
		return []byte(`{"issuer":"` + idp + `","jwks_uri":"` + idp + `/keys","authorization_endpoint":"` + idp + `/auth?tenant=a","token_endpoint":"` + idp + `/token","userinfo_endpoint":"` + idp + `/userinfo"}`), nil
	}
	w.redeem = p.redeem
	if err := w.SetJWT(t.Context(), ada, jwtWay, ticket.JWTConfig{DiscoveryURL: idp, ClientID: "door", DefaultRole: "staff"}, estover.NewSecret([]byte("s3cret"))); err != nil {
		t.Fatal(err)
	}
	w.role(jwtWay, ticket.JWTRoles, "staff", func(r *ticket.Role) {
		r.JWT.RoleType, r.JWT.UserClaim, r.JWT.Redirects, r.JWT.Scopes = "oidc", "email", []string{callback}, []string{"email"}
		r.JWT.BoundClaims = map[string]any{"team": "blue"}
	})
	return p
}

// visit is a browser at the provider: it is sent back with a state and a code.
func (p *provider) visit(to string) (state, code string) {
	p.t.Helper()
	u, err := url.Parse(to)
	if err != nil || u.Host != "idp.example" || u.Query().Get("tenant") != "a" {
		p.t.Fatalf("the browser is sent to %q, %v", to, err)
	}
	q := u.Query()
	for name, want := range map[string]string{"response_type": "code", "client_id": "door", "redirect_uri": callback, "scope": "openid email", "code_challenge_method": "S256"} {
		if q.Get(name) != want {
			p.t.Errorf("the browser is sent with %s %q, want %q", name, q.Get(name), want)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	code = "code-" + q.Get("nonce")
	p.codes[code] = q
	return q.Get("state"), code
}

func (p *provider) redeem(x ticket.Exchange) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !x.Access.Empty() {
		if x.URL != idp+"/userinfo" || len(x.Form) > 0 || x.Client != "" || !x.Secret.Empty() || p.tells == "" {
			return nil, errors.New("it does not answer")
		}
		p.shown = append(p.shown, string(x.Access.Reveal()))
		return []byte(p.tells), nil
	}
	p.asked++
	q := p.codes[x.Form.Get("code")]
	sum := sha256.Sum256([]byte(x.Form.Get("code_verifier")))
	if q == nil || x.URL != idp+"/token" || x.Client != "door" || string(x.Secret.Reveal()) != "s3cret" || x.Form.Get("redirect_uri") != q.Get("redirect_uri") ||
		base64.RawURLEncoding.EncodeToString(sum[:]) != q.Get("code_challenge") {
		return nil, errors.New("invalid_grant")
	}
	now := p.w.d.Now().Unix()
	claims := map[string]any{"iss": idp, "sub": "1", "aud": "door", "exp": now + 300, "iat": now, "nonce": q.Get("nonce"), "email": "ada@example.com", "team": "blue"}
	if p.alter != nil {
		p.alter(claims)
	}
	return json.Marshal(map[string]string{"id_token": p.sign(p.t, map[string]any{"kid": "k"}, claims), "token_type": "Bearer", "access_token": "access-" + x.Form.Get("code")})
}

func (p *provider) begin(nonce string) string {
	p.t.Helper()
	to, err := p.w.BeginOpenID(p.t.Context(), "default", jwtWay, "", callback, nonce)
	if err != nil || to == "" {
		p.t.Fatalf("beginning: %q, %v", to, err)
	}
	return to
}

func (p *provider) finish(state, code, nonce string) (ticket.Made, error) {
	return p.w.FinishOpenID(p.t.Context(), "default", jwtWay, home, state, code, nonce)
}

func TestOpenID(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		p := newProvider(t, w)
		state, code := p.visit(p.begin("mine"))
		for what, c := range map[string][3]string{
			"another client": {state, code, "theirs"}, "no client": {state, code, ""}, "a state of somebody's own": {"x.y", code, "mine"}, "no state": {"", code, "mine"},
			"a changed state": {"A" + state[1:], code, "mine"},
		} {
			if _, err := p.finish(c[0], c[1], c[2]); !errors.Is(err, ticket.ErrSignIn) {
				t.Errorf("%s: %v, want ErrSignIn", what, err)
			}
		}
		if _, err := w.FinishOpenID(t.Context(), "other", jwtWay, home, state, code, "mine"); !errors.Is(err, ticket.ErrSignIn) {
			t.Errorf("in another tenant: %v (T1)", err)
		}
		if _, err := w.FinishOpenID(t.Context(), "default", appWay, home, state, code, "mine"); !errors.Is(err, ticket.ErrSignIn) {
			t.Errorf("at another mount: %v", err)
		}
		if p.asked != 0 {
			t.Errorf("the provider was asked %d times for what was not begun here", p.asked)
		}
		m, err := p.finish(state, code, "mine")
		if err != nil || m.Subject != "agent:agt_jwt-staff" || m.DisplayName != "jwt-ada@example.com" || m.Meta["role"] != "staff" || !slices.Equal(m.Policies, []string{"default"}) || m.Path != "auth/jwt/oidc/callback" {
			t.Fatalf("the log-in gives %+v, %v", m.Ticket, err)
		}
		if !w.opens(m) {
			t.Error("the ticket opens nothing")
		}
		if _, err := p.finish(state, code, "mine"); !errors.Is(err, ticket.ErrSignIn) {
			t.Errorf("a second time: %v, want ErrSignIn", err)
		}
		if p.asked != 1 {
			t.Errorf("the provider was asked %d times, want once", p.asked)
		}
		// Of 64 who come back with one state at once one is let in.
		state, code = p.visit(p.begin(""))
		errs := make([]error, 64)
		var all sync.WaitGroup
		for i := range errs {
			all.Go(func() { _, errs[i] = p.finish(state, code, "") })
		}
		all.Wait()
		in := 0
		for _, err := range errs {
			if err == nil {
				in++
			} else if !errors.Is(err, ticket.ErrSignIn) {
				t.Errorf("one of many: %v, want ErrSignIn", err)
			}
		}
		if in != 1 || p.asked != 2 {
			t.Errorf("of 64 with one state %d were let in, want one; the provider was asked %d times, want once more", in, p.asked-1)
		}
		// The browser may take ten minutes, and no more.
		state, code = p.visit(p.begin(""))
		w.clock.Advance(10 * time.Minute)
		if _, err := p.finish(state, code, ""); !errors.Is(err, ticket.ErrSignIn) {
			t.Errorf("after ten minutes: %v, want ErrSignIn", err)
		}
		w.clock.Advance(3 * time.Hour)
		if err := w.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		var left int
		if err := d.View(t.Context(), "default", func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), "select count(*) from ticket_sign_in where tenant_id = $1", tx.Tenant()).Scan(&left)
		}); err != nil || left != 0 {
			t.Errorf("%d states are left, %v", left, err)
		}
	})
}

// What a provider says is held against what was asked, and redirect URIs are exact.
func TestOpenIDRefused(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	ctx := t.Context()
	p := newProvider(t, w)
	for _, redirect := range []string{callback + "/", callback + "?x=y", "http://localhost:8251/oidc/callback", "http://LOCALHOST:8250/oidc/callback", "https://evil.example/"} {
		if to, err := w.BeginOpenID(ctx, "default", jwtWay, "staff", redirect, ""); to != "" || err != nil {
			t.Errorf("with the redirect URI %q: %q, %v; want nothing", redirect, to, err)
		}
	}
	for what, alter := range map[string]func(map[string]any){
		"another nonce": func(c map[string]any) { c["nonce"] = "x" }, "no nonce": func(c map[string]any) { delete(c, "nonce") }, "another client": func(c map[string]any) { c["aud"] = "other" },
		"given to another": func(c map[string]any) { c["azp"] = "other" }, "for two, given to neither": func(c map[string]any) { c["aud"] = []string{"door", "other"} },
		"another issuer": func(c map[string]any) { c["iss"] = "https://evil.example" }, "over": func(c map[string]any) { c["exp"] = w.d.Now().Add(-time.Hour).Unix() },
		"another team": func(c map[string]any) { c["team"] = "red" }, "nobody": func(c map[string]any) { delete(c, "email") },
	} {
		p.alter = alter
		state, code := p.visit(p.begin(""))
		if _, err := p.finish(state, code, ""); !errors.Is(err, ticket.ErrJWT) {
			t.Errorf("an ID token that is of %s: %v, want ErrJWT", what, err)
		}
		// Whatever came of it, the state is used up.
		p.alter = nil
		asked := p.asked
		if _, err := p.finish(state, code, ""); !errors.Is(err, ticket.ErrSignIn) || p.asked != asked {
			t.Errorf("the state of an ID token that is of %s, once more: %v, want ErrSignIn; the provider was asked %d times, want %d", what, err, p.asked, asked)
		}
	}
	for what, one := range map[string]struct {
		code  func(string) string
		after error // the next answer with that state
	}{
		"none":      {func(string) string { return "" }, nil}, // nothing came, and nobody was asked
		"another's": {func(c string) string { return c + "x" }, ticket.ErrSignIn},
	} {
		state, code := p.visit(p.begin(""))
		if _, err := p.finish(state, one.code(code), ""); !errors.Is(err, ticket.ErrJWT) {
			t.Errorf("a code that is %s: %v, want ErrJWT", what, err)
		}
		if _, err := p.finish(state, code, ""); !errors.Is(err, one.after) {
			t.Errorf("the right code after one that is %s: %v, want %v", what, err, one.after)
		}
	}
	// max_age wants a log-in at the provider that is not long ago.
	w.role(jwtWay, ticket.JWTRoles, "staff", func(r *ticket.Role) { r.JWT.MaxAge = 600 })
	for ago, good := range map[time.Duration]bool{time.Minute: true, 20 * time.Minute: false, -1: false} {
		p.alter = func(c map[string]any) {
			if ago >= 0 {
				c["auth_time"] = w.d.Now().Add(-ago).Unix()
			}
		}
		state, code := p.visit(p.begin(""))
		if _, err := p.finish(state, code, ""); (err == nil) != good {
			t.Errorf("a log-in %s ago: %v, want good: %t", ago, err, good)
		}
	}
	// A redirect URI that is taken out of the role meanwhile counts no longer.
	p.alter = nil
	w.role(jwtWay, ticket.JWTRoles, "staff", func(r *ticket.Role) { r.JWT.MaxAge = 0 })
	state, code := p.visit(p.begin(""))
	w.role(jwtWay, ticket.JWTRoles, "staff", func(r *ticket.Role) { r.JWT.Redirects = []string{"https://other.example/"} })
	if _, err := p.finish(state, code, ""); !errors.Is(err, ticket.ErrSignIn) {
		t.Errorf("to where nobody is sent any more: %v, want ErrSignIn", err)
	}

	secret := estover.NewSecret([]byte("s3cret"))
	for what, c := range map[string]struct {
		ticket.JWTConfig
		secret estover.Secret
	}{
		"no secret": {ticket.JWTConfig{DiscoveryURL: idp, ClientID: "door"}, estover.Secret{}}, "no client": {ticket.JWTConfig{DiscoveryURL: idp}, secret},
		"no description": {ticket.JWTConfig{PublicKeys: []string{p.pem(t)}, ClientID: "door"}, secret}, "tokens by way of a browser": {ticket.JWTConfig{DiscoveryURL: idp, ClientID: "door", ResponseTypes: []string{"id_token"}}, secret},
	} {
		if err := w.SetJWT(ctx, ada, jwtWay, c.JWTConfig, c.secret); !errors.Is(err, ticket.ErrSetting) {
			t.Errorf("%s: %v, want ErrSetting", what, err)
		}
	}
	if err := w.SetJWT(ctx, ada, jwtWay, ticket.JWTConfig{DiscoveryURL: idp}, estover.Secret{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.BeginOpenID(ctx, "default", jwtWay, "staff", callback, ""); !errors.Is(err, ticket.ErrNotSet) {
		t.Errorf("without a client: %v, want ErrNotSet", err)
	}
	w.role(jwtWay, ticket.JWTRoles, "ci", func(r *ticket.Role) { r.JWT.RoleType, r.JWT.UserClaim, r.JWT.BoundSubject = "jwt", "sub", "job" })
	if _, err := w.BeginOpenID(ctx, "default", jwtWay, "ci", callback, ""); !errors.Is(err, ticket.ErrJWT) {
		t.Errorf("by a role for JWTs: %v, want ErrJWT", err)
	}
	if _, err := w.LoginJWT(ctx, "default", jwtWay, home, "staff", "x"); !errors.Is(err, ticket.ErrJWT) {
		t.Errorf("by a JWT at a role for people: %v, want ErrJWT", err)
	}
}

// What an ID token lacks its provider is asked for (OpenID Connect Core, section 5.3);
// what is signed stands, and the answer is about whoever has logged in. A role that
// looks at groups wants them there, and bound_claims says which.
func TestUserInfo(t *testing.T) {
	w := newWorld(t, dbtest.Open(t))
	p := newProvider(t, w)
	lean := func(c map[string]any) { delete(c, "team"); delete(c, "email") }
	for name, c := range map[string]struct {
		groups string
		bound  map[string]any
		alter  func(map[string]any)
		tells  string
		as     string // the name; "" for who is not let in
		asked  int
	}{
		"all is there":                {alter: nil, tells: `{"sub":"1","email":"eve@example.com"}`, as: "jwt-ada@example.com"},
		"it is told":                  {alter: lean, tells: `{"sub":"1","email":"bob@example.com","team":"blue"}`, as: "jwt-bob@example.com", asked: 1},
		"of what is signed no word":   {alter: func(c map[string]any) { delete(c, "email") }, tells: `{"sub":"1","email":"bob@example.com","team":"red"}`, as: "jwt-bob@example.com", asked: 1},
		"the signed one is not blue":  {alter: func(c map[string]any) { delete(c, "email"); c["team"] = "red" }, tells: `{"sub":"1","email":"bob@example.com","team":"blue"}`, asked: 1},
		"another subject":             {alter: lean, tells: `{"sub":"2","email":"bob@example.com","team":"blue"}`, asked: 1},
		"no subject":                  {alter: lean, tells: `{"email":"bob@example.com","team":"blue"}`, asked: 1},
		"no subject anywhere":         {alter: func(c map[string]any) { lean(c); delete(c, "sub") }, tells: `{"email":"bob@example.com","team":"blue"}`, asked: 1},
		"a member twice":              {alter: lean, tells: `{"sub":"1","email":"bob@example.com","team":"red","team":"blue"}`, asked: 1},
		"no object":                   {alter: lean, tells: `null`, asked: 1},
		"no answer":                   {alter: lean},
		"groups that are signed":      {groups: "groups", bound: map[string]any{"groups": "ops"}, alter: func(c map[string]any) { c["groups"] = []string{"dev", "ops"} }, as: "jwt-ada@example.com"},
		"groups that are told":        {groups: "/at/groups", bound: map[string]any{"/at/groups": []any{"ops"}}, tells: `{"sub":"1","at":{"groups":["dev","ops"]}}`, as: "jwt-ada@example.com", asked: 1},
		"groups of somebody else":     {groups: "groups", bound: map[string]any{"groups": "ops"}, alter: func(c map[string]any) { c["groups"] = []string{"dev"} }},
		"groups that are not there":   {groups: "groups", tells: `{"sub":"1"}`, asked: 1},
		"groups that are no texts":    {groups: "groups", alter: func(c map[string]any) { c["groups"] = []any{"ops", 7} }},
		"a token's claim is not told": {groups: "amr", alter: func(c map[string]any) { delete(c, "amr") }, tells: `{"sub":"1","amr":["pwd"]}`, asked: 1},
	} {
		p.alter, p.tells, p.shown = c.alter, c.tells, nil
		w.role(jwtWay, ticket.JWTRoles, "staff", func(r *ticket.Role) {
			r.JWT.GroupsClaim, r.JWT.BoundClaims = c.groups, c.bound
			if c.bound == nil {
				r.JWT.BoundClaims = map[string]any{"team": "blue"}
			}
		})
		state, code := p.visit(p.begin(""))
		m, err := p.finish(state, code, "")
		if c.as == "" && !errors.Is(err, ticket.ErrJWT) || c.as != "" && (err != nil || m.DisplayName != c.as) {
			t.Errorf("%s: %q, %v; want %q", name, m.DisplayName, err, c.as)
		}
		if len(p.shown) != c.asked || c.asked > 0 && p.shown[0] != "access-"+code {
			t.Errorf("%s: userinfo was shown %q, want the access token %d times", name, p.shown, c.asked)
		}
	}
}
