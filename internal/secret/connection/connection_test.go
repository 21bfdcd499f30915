package connection_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/connection"
)

var (
	ann = estover.Caller{Tenant: "acme", Subject: estover.User("usr_ann"), Roles: []estover.Role{estover.Admin}}
	bob = estover.Caller{Tenant: "acme", Subject: estover.User("usr_bob"), Roles: []estover.Role{estover.Admin}}
	bot = estover.Caller{Tenant: "acme", Subject: estover.Agent("agt_bot"), Session: "ses_1", Purpose: "mail"}
	eve = estover.Caller{Tenant: "evil", Subject: estover.User("usr_eve"), Roles: []estover.Role{estover.Admin}}
)

const clientSecret = "the client's own secret"

// A provider is an authorization server that gives a refresh token out anew with each
// use, and ends everything when a used one comes back.
type provider struct {
	*httptest.Server
	t *testing.T

	mu        sync.Mutex
	codes     map[string]string // code → challenge
	refresh   map[string]bool   // those that are good
	used      map[string]bool
	n         int
	renewals  int
	atOnce    int
	most      int
	revoked   []string
	down      bool
	lenient   bool // takes a used refresh token once more
	lose      bool // does what it is asked, and its answer is lost
	revokeOut bool // the revocation endpoint is out of order
	wait      chan struct{}
	answer    func(w http.ResponseWriter) bool // in the place of its own
}

func newProvider(t *testing.T) *provider {
	p := &provider{t: t, codes: map[string]string{}, refresh: map[string]bool{}, used: map[string]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{
			"issuer": p.URL, "authorization_endpoint": p.URL + "/auth", "token_endpoint": p.URL + "/token", "revocation_endpoint": p.URL + "/revoke",
			"authorization_response_iss_parameter_supported": true,
		})
	})
	mux.HandleFunc("POST /token", p.token)
	mux.HandleFunc("POST /revoke", func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if id, s, ok := r.BasicAuth(); p.revokeOut || !ok || id != "estover" || s != url.QueryEscape(clientSecret) {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		p.revoked = append(p.revoked, r.FormValue("token_type_hint")+" "+r.FormValue("token"))
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

// authorize is what a person's browser and the provider do with each other.
func (p *provider) authorize(to string) url.Values {
	u, err := url.Parse(to)
	if err != nil {
		p.t.Fatal(err)
	}
	q := u.Query()
	if q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" || q.Get("client_id") != "estover" || q.Get("redirect_uri") != "https://estover.example/connections/mail/back" {
		p.t.Fatalf("the authorization request is %s", to)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	code := fmt.Sprintf("code-%d", p.n)
	p.codes[code] = q.Get("code_challenge")
	return url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {p.URL}}
}

func (p *provider) token(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.atOnce++
	p.most = max(p.most, p.atOnce)
	wait := p.wait
	p.mu.Unlock()
	if wait != nil {
		<-wait
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.atOnce--
	fail := func(status int, code string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"error":%q,"error_description":"you sent %s"}`, code, r.FormValue("refresh_token"))
	}
	if p.down {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if p.answer != nil && p.answer(w) {
		return
	}
	if id, s, ok := r.BasicAuth(); !ok || id != "estover" || s != url.QueryEscape(clientSecret) {
		fail(401, "invalid_client")
		return
	}
	switch r.FormValue("grant_type") {
	case "authorization_code":
		challenge, ok := p.codes[r.FormValue("code")]
		delete(p.codes, r.FormValue("code"))
		sum := sha256.Sum256([]byte(r.FormValue("code_verifier")))
		if !ok || base64.RawURLEncoding.EncodeToString(sum[:]) != challenge {
			fail(400, "invalid_grant")
			return
		}
	case "refresh_token":
		p.renewals++
		old := r.FormValue("refresh_token")
		if p.used[old] && !p.lenient {
			p.refresh = map[string]bool{} // it is taken for stolen
		}
		if !p.refresh[old] && !(p.used[old] && p.lenient) {
			fail(400, "invalid_grant")
			return
		}
		delete(p.refresh, old)
		p.used[old] = true
	case "client_credentials":
		p.renewals++
	default:
		fail(400, "unsupported_grant_type")
		return
	}
	p.n++
	refresh := fmt.Sprintf("refresh-%d", p.n)
	p.refresh[refresh] = true
	out := map[string]any{"access_token": fmt.Sprintf("access-%d", p.n), "token_type": "Bearer", "expires_in": 3600}
	if r.FormValue("grant_type") != "client_credentials" {
		out["refresh_token"] = refresh
	}
	if p.lose {
		p.lose = false
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			conn.Close()
		}
		return
	}
	json.NewEncoder(w).Encode(out)
}

func (p *provider) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

// A node is connections on a database, as one server has them.
type node struct {
	*connection.Connections
	guard  *guard.Guard
	sealer *seal.Sealer
}

func nodes(t *testing.T, d *db.DB, n int) (all []node) {
	t.Helper()
	key := filepath.Join(t.TempDir(), "root.key")
	for i := range n {
		g := guardtest.New(t, d, guardtest.AllowAll)
		s, err := seal.Open(t.Context(), d, seal.File{Path: key})
		if err != nil {
			t.Fatal(err)
		}
		s.Hold(connection.Holdings...)
		all = append(all, node{connection.New(g, s, connection.Options{
			Node: fmt.Sprint("node-", i), Logger: slog.New(slog.DiscardHandler),
			Send: func(ctx context.Context, _ estover.TenantID, _ connection.Spec, r *http.Request, limit int64) (connection.Answer, error) {
				res, err := http.DefaultTransport.RoundTrip(r.WithContext(ctx))
				if err != nil {
					return connection.Answer{}, err
				}
				defer res.Body.Close()
				b, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
				if err == nil && int64(len(b)) > limit {
					err = errors.New("it is too long")
				}
				return connection.Answer{Status: res.StatusCode, Header: res.Header, Body: b}, err
			},
			Secret: func(_ context.Context, _ estover.TenantID, path, _ string) (estover.Secret, error) {
				if path != "mail/client" {
					return estover.Secret{}, secret.ErrNotFound
				}
				return estover.NewSecret([]byte(clientSecret)), nil
			},
			Back: func(_ estover.TenantID, name string) string {
				return "https://estover.example/connections/" + name + "/back"
			},
		}), g, s})
	}
	return all
}

func mail(p *provider) connection.Spec {
	return connection.Spec{
		Name: "mail", Issuer: p.URL, ClientID: "estover", Secret: "mail/client", Scopes: []string{"mail.read", "offline_access"},
		Destinations: []string{"api.mail.example"}, AllowPrivate: true, Parameters: map[string]string{"prompt": "consent"},
	}
}

func put(t *testing.T, x node, s connection.Spec) connection.Connection {
	t.Helper()
	c, err := x.Put(t.Context(), ann, s)
	if err != nil {
		t.Fatalf("putting the connection: %v", err)
	}
	return c
}

func authorize(t *testing.T, x node, p *provider) connection.Connection {
	t.Helper()
	to, err := x.Begin(t.Context(), ann, "mail")
	if err != nil {
		t.Fatalf("beginning to authorize: %v", err)
	}
	c, err := x.Complete(t.Context(), ann, "mail", p.authorize(to))
	if err != nil {
		t.Fatalf("authorizing: %v", err)
	}
	return c
}

func use(t *testing.T, x node) string {
	t.Helper()
	in, err := x.Use(t.Context(), bot, "mail", "api.mail.example:443")
	if err != nil {
		return err.Error()
	}
	return string(in.Value.Reveal())
}

func show(t *testing.T, x node) connection.Connection {
	t.Helper()
	c, err := x.Get(t.Context(), ann, "mail")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestLife(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock, p := dbtest.NewClock(d), newProvider(t)
		x := nodes(t, d, 1)[0]
		ctx := t.Context()
		if c := put(t, x, mail(p)); c.State != connection.Reauthorize || c.ClientAuth != connection.ByBasic || c.Destinations[0] != "api.mail.example:443" {
			t.Errorf("put, it is %+v", c)
		}
		if _, err := x.Use(ctx, bot, "mail", "api.mail.example:443"); !errors.Is(err, connection.ErrReauthorize) || !strings.Contains(err.Error(), "estover connection authorize mail") {
			t.Errorf("used before it is authorized: %v, want ErrReauthorize with what to do", err)
		}

		// Only who began completes, once, and with the provider's own word.
		begin := func() url.Values {
			t.Helper()
			to, err := x.Begin(ctx, ann, "mail")
			if err != nil {
				t.Fatal(err)
			}
			return p.authorize(to)
		}
		q := begin()
		if _, err := x.Complete(ctx, bob, "mail", q); !errors.Is(err, connection.ErrVisit) {
			t.Errorf("completed by somebody else: %v, want ErrVisit", err)
		}
		if _, err := x.Complete(ctx, ann, "mail", q); !errors.Is(err, connection.ErrVisit) {
			t.Errorf("completed after that: %v, want ErrVisit", err)
		}
		q = begin()
		q.Set("iss", "https://mixed-up.example")
		if _, err := x.Complete(ctx, ann, "mail", q); !errors.Is(err, connection.ErrMisconfigured) {
			t.Errorf("with another provider's name: %v, want ErrMisconfigured", err)
		}
		q = begin()
		q.Del("iss")
		if _, err := x.Complete(ctx, ann, "mail", q); !errors.Is(err, connection.ErrMisconfigured) {
			t.Errorf("without the provider's name: %v, want ErrMisconfigured", err)
		}
		q = begin()
		clock.Advance(11 * time.Minute)
		if _, err := x.Complete(ctx, ann, "mail", q); !errors.Is(err, connection.ErrVisit) {
			t.Errorf("completed too late: %v, want ErrVisit", err)
		}
		if _, err := x.Complete(ctx, ann, "mail", url.Values{"error": {"access_denied"}, "state": begin()["state"]}); err == nil || !strings.Contains(err.Error(), "access_denied") {
			t.Errorf("refused by the person: %v", err)
		}

		c := authorize(t, x, p)
		if c.State != connection.Healthy || c.Account != ann.Subject || !c.Renewable || c.Generation != 1 || c.ExpiresAt.IsZero() {
			t.Errorf("authorized, it is %+v", c)
		}
		in, err := x.Use(ctx, bot, "mail", "api.mail.example:443")
		if err != nil || !strings.HasPrefix(string(in.Value.Reveal()), "access-") || in.Version != c.ID+"@1" || in.Class != estover.Confidential {
			t.Errorf("used it gives %+v, %v", in, err)
		}
		if _, err := x.Use(ctx, bot, "mail", "evil.example:443"); !errors.Is(err, connection.ErrDestination) {
			t.Errorf("for another host: %v, want ErrDestination", err)
		}

		// It is renewed by itself, before the token runs out.
		before := use(t, x)
		clock.Advance(50 * time.Minute)
		if err := x.RenewDue(ctx); err != nil {
			t.Fatal(err)
		}
		if after := use(t, x); after == before || !strings.HasPrefix(after, "access-") {
			t.Errorf("fifty minutes later it gives %q, after %q", after, before)
		}
		if err := x.RenewDue(ctx); err != nil || p.renewals != 1 {
			t.Errorf("there were %d renewals (%v), want 1", p.renewals, err)
		}
		// And when it is used too late for that.
		clock.Advance(3 * time.Hour)
		if got := use(t, x); !strings.HasPrefix(got, "access-") || p.renewals != 2 {
			t.Errorf("hours later it gives %q after %d renewals", got, p.renewals)
		}

		// Another destination keeps the token, another scope does not.
		s := mail(p)
		s.Destinations = append(s.Destinations, "files.mail.example")
		now := use(t, x)
		if c := put(t, x, s); c.State != connection.Healthy || use(t, x) != now {
			t.Errorf("with another destination it is %+v", c)
		}
		s.Scopes = []string{"mail.send"}
		if c := put(t, x, s); c.State != connection.Reauthorize || len(c.Granted) != 0 {
			t.Errorf("with another scope it is %+v", c)
		}
		if err := x.RevokeDue(ctx); err != nil || len(p.revoked) != 2 || !slices.Contains(p.revoked, "access_token "+now) {
			t.Errorf("ended at the provider: %v (%v), want the tokens of before", p.revoked, err)
		}

		// Removed, its tokens are ended, whenever the provider can be asked.
		authorize(t, x, p)
		now = use(t, x)
		p.set(func() { p.revokeOut, p.revoked = true, nil })
		if err := x.Remove(ctx, ann, "mail"); err != nil {
			t.Fatal(err)
		}
		if _, err := x.Use(ctx, bot, "mail", "api.mail.example:443"); !errors.Is(err, connection.ErrNotFound) {
			t.Errorf("used when it is removed: %v, want ErrNotFound", err)
		}
		if err := x.RevokeDue(ctx); err != nil || len(p.revoked) != 0 {
			t.Errorf("at a provider that is out of order: %v, %v", p.revoked, err)
		}
		p.set(func() { p.revokeOut = false })
		clock.Advance(time.Hour)
		if err := x.RevokeDue(ctx); err != nil || len(p.revoked) != 2 || !slices.Contains(p.revoked, "access_token "+now) || !slices.Contains(p.revoked, "refresh_token "+strings.Replace(now, "access", "refresh", 1)) {
			t.Errorf("ended an hour later: %v (%v)", p.revoked, err)
		}
		clock.Advance(time.Hour)
		if err := x.RevokeDue(ctx); err != nil || len(p.revoked) != 2 {
			t.Errorf("ended again: %v (%v)", p.revoked, err)
		}
		if c := put(t, x, mail(p)); c.State != connection.Reauthorize || c.Generation != 0 {
			t.Errorf("the name used again gives %+v", c)
		}
	})
}

// TestOneRenews: 64 who need the token at once, on two nodes, renew it once.
func TestOneRenews(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock, p := dbtest.NewClock(d), newProvider(t)
		two := nodes(t, d, 2)
		put(t, two[0], mail(p))
		authorize(t, two[0], p)
		use(t, two[1]) // has a copy
		for round := 1; round <= 3; round++ {
			clock.Advance(2 * time.Hour)
			for _, x := range two { // what the other changed is heard of by the log, which nobody follows here
				x.Drop("acme", "mail")
			}
			var wg sync.WaitGroup
			var got sync.Map
			for i := range 64 {
				wg.Go(func() { got.Store(use(t, two[i%2]), true) })
			}
			wg.Wait()
			n := 0
			got.Range(func(k, _ any) bool {
				if n++; !strings.HasPrefix(k.(string), "access-") {
					t.Errorf("somebody got %v", k)
				}
				return true
			})
			if n != 1 || p.renewals != round || p.most != 1 {
				t.Errorf("round %d: %d tokens, %d renewals, at most %d at once; want 1, %d and 1", round, n, p.renewals, p.most, round)
			}
		}
	})
}

// TestReplyLost: a provider has given out another refresh token, and the answer never
// came. Where it takes the old one once more that is all; where it does not, the
// connection says why it has to be authorized again, and does not go on trying.
func TestReplyLost(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock, x := dbtest.NewClock(d), nodes(t, d, 1)[0]
		for _, lenient := range []bool{true, false} {
			p := newProvider(t)
			put(t, x, mail(p))
			authorize(t, x, p)
			clock.Advance(2 * time.Hour)
			p.set(func() { p.lose, p.lenient = true, lenient })
			if _, err := x.Use(t.Context(), bot, "mail", "api.mail.example:443"); !errors.Is(err, connection.ErrProvider) {
				t.Errorf("while the answer is lost: %v, want ErrProvider", err)
			}
			got := use(t, x)
			c := show(t, x)
			if lenient && (!strings.HasPrefix(got, "access-") || c.State != connection.Healthy) {
				t.Errorf("at a lenient provider it gives %q and is %+v", got, c)
			}
			if !lenient {
				n := p.renewals
				use(t, x)
				if c.State != connection.Reauthorize || !strings.Contains(c.Reason, "invalid_grant") || p.renewals != n {
					t.Errorf("at a strict provider it is %+v, and was tried %d times more", c, p.renewals-n)
				}
				if strings.Contains(c.Reason, "refresh-") {
					t.Errorf("the reason quotes a token: %s", c.Reason)
				}
				authorize(t, x, p)
				if got := use(t, x); !strings.HasPrefix(got, "access-") {
					t.Errorf("authorized again it gives %q", got)
				}
			}
			if err := x.Remove(t.Context(), ann, "mail"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestNodeDies: a node that stands still in the middle of a renewal is overtaken when
// its time is over, and what it still brings is not taken.
func TestNodeDies(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock, p := dbtest.NewClock(d), newProvider(t)
		p.lenient = true
		two := nodes(t, d, 2)
		put(t, two[0], mail(p))
		authorize(t, two[0], p)
		clock.Advance(2 * time.Hour)
		hang := make(chan struct{})
		p.set(func() { p.wait = hang })
		first := make(chan string)
		go func() { first <- use(t, two[0]) }()
		for { // until the provider has it
			p.mu.Lock()
			n := p.atOnce
			p.mu.Unlock()
			if n == 1 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		p.set(func() { p.wait = nil })
		clock.Advance(2 * time.Minute)
		got := use(t, two[1])
		if !strings.HasPrefix(got, "access-") {
			t.Errorf("the second node gets %q", got)
		}
		close(hang)
		<-first
		two[0].Drop("acme", "mail")
		if again := use(t, two[0]); again != got || show(t, two[0]).Generation != 2 {
			t.Errorf("after that the first has %q, and the second %q", again, got)
		}
	})
}

// TestHostileEndpoints: whatever a token endpoint answers, the connection is in a
// state that says what is wrong, and quotes nothing.
func TestHostileEndpoints(t *testing.T) {
	d := dbtest.Open(t)
	clock, x := dbtest.NewClock(d), nodes(t, d, 1)[0]
	canary := "refresh-leaked-back"
	body := func(status int, kind, text string) func(http.ResponseWriter) bool {
		return func(w http.ResponseWriter) bool {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(status)
			io.WriteString(w, text)
			return true
		}
	}
	const ok = "application/json"
	for _, c := range []struct {
		what   string
		answer func(http.ResponseWriter) bool
		state  connection.State
		err    error
	}{
		{"a page", body(200, "text/html", "<h1>Sign in to the WLAN</h1>"), connection.Healthy, connection.ErrProvider},
		{"an endless answer", func(w http.ResponseWriter) bool {
			w.Write(bytes.Repeat([]byte(" "), 1<<20))
			return true
		}, connection.Healthy, connection.ErrProvider},
		{"a redirect", func(w http.ResponseWriter) bool {
			w.Header().Set("Location", "http://169.254.169.254/")
			w.WriteHeader(307)
			return true
		}, connection.Misconfigured, connection.ErrMisconfigured},
		{"no token", body(200, ok, `{"token_type":"Bearer"}`), connection.Misconfigured, connection.ErrMisconfigured},
		{"a token twice", body(200, ok, `{"access_token":"a","access_token":"b","token_type":"Bearer"}`), connection.Healthy, connection.ErrProvider},
		{"a token of another type", body(200, ok, `{"access_token":"aaaaaaaa","token_type":"mac"}`), connection.Misconfigured, connection.ErrMisconfigured},
		{"a token with a line end", body(200, ok, `{"access_token":"aaaa\r\nX-Evil: 1","token_type":"Bearer"}`), connection.Misconfigured, connection.ErrMisconfigured},
		{"an error that quotes", body(400, ok, `{"error":"invalid_grant","error_description":"bad token `+canary+`"}`), connection.Reauthorize, connection.ErrReauthorize},
		{"an error that is the token", body(400, ok, `{"error":"`+canary+`"}`), connection.Misconfigured, connection.ErrMisconfigured},
		{"a client that it does not know", body(401, ok, `{"error":"invalid_client"}`), connection.Misconfigured, connection.ErrMisconfigured},
		{"too many requests", body(429, ok, `{}`), connection.Healthy, connection.ErrProvider},
		{"a fault", body(500, ok, `{"error":"server_error"}`), connection.Healthy, connection.ErrProvider},
	} {
		p := newProvider(t)
		put(t, x, mail(p))
		authorize(t, x, p)
		clock.Advance(2 * time.Hour)
		p.set(func() { p.answer = c.answer })
		_, err := x.Use(t.Context(), bot, "mail", "api.mail.example:443")
		if !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.what, err, c.err)
		}
		got := show(t, x)
		if got.State != c.state || got.Reason == "" || strings.Contains(fmt.Sprint(got, err), canary) || strings.Contains(got.Reason, "\n") {
			t.Errorf("%s: it is %s because %q (%v), want %s", c.what, got.State, got.Reason, err, c.state)
		}
		// It works again when the provider does, in every way that there is.
		p.set(func() { p.answer = nil })
		switch c.state {
		case connection.Reauthorize:
			authorize(t, x, p)
		case connection.Misconfigured:
			if _, err := x.Renew(t.Context(), ann, "mail"); err != nil {
				t.Errorf("%s: tried by hand: %v", c.what, err)
			}
		}
		if got := use(t, x); !strings.HasPrefix(got, "access-") {
			t.Errorf("%s: when the provider works again it gives %q", c.what, got)
		}
		if err := x.Remove(t.Context(), ann, "mail"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestProviderDown: a token is used for as long as it is good, whatever the provider
// does; and the provider is left alone for longer each time.
func TestProviderDown(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock, p := dbtest.NewClock(d), newProvider(t)
		x := nodes(t, d, 1)[0]
		put(t, x, mail(p))
		authorize(t, x, p)
		token := use(t, x)
		p.set(func() { p.down = true })
		clock.Advance(59*time.Minute + 45*time.Second) // too near its end to be begun with
		if got := use(t, x); got != token {
			t.Errorf("just before its end it gives %q, want the token that is good still", got)
		}
		clock.Advance(time.Minute)
		if _, err := x.Use(t.Context(), bot, "mail", "api.mail.example:443"); !errors.Is(err, connection.ErrProvider) {
			t.Errorf("after its end: %v, want ErrProvider", err)
		}
		if c := show(t, x); c.State != connection.Healthy || c.Reason == "" {
			t.Errorf("it is %s because %q", c.State, c.Reason)
		}
		clock.Advance(time.Hour)
		p.set(func() { p.down = false })
		if err := x.RenewDue(t.Context()); err != nil {
			t.Fatal(err)
		}
		if c := show(t, x); c.Reason != "" || !strings.HasPrefix(use(t, x), "access-") {
			t.Errorf("when the provider is back it is %s because %q", c.State, c.Reason)
		}
	})
}

// TestClientCredentials: nobody is asked, and whether it works is said at once.
func TestClientCredentials(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock, p := dbtest.NewClock(d), newProvider(t)
		x := nodes(t, d, 1)[0]
		s := mail(p)
		s.Grant, s.Parameters = connection.ClientCredentials, nil
		s.ClientID = "somebody else"
		if c := put(t, x, s); c.State != connection.Misconfigured || !strings.Contains(c.Reason, "invalid_client") {
			t.Errorf("with another client it is %+v", c)
		}
		s.ClientID = "estover"
		if c := put(t, x, s); c.State != connection.Healthy || c.Generation == 0 || !c.Renewable {
			t.Errorf("put right it is %+v", c)
		}
		first := use(t, x)
		clock.Advance(2 * time.Hour)
		if second := use(t, x); second == first || !strings.HasPrefix(second, "access-") {
			t.Errorf("two hours later it gives %q, after %q", second, first)
		}
		if _, err := x.Begin(t.Context(), ann, "mail"); !errors.Is(err, connection.ErrInvalid) {
			t.Errorf("authorizing what needs nobody: %v, want ErrInvalid", err)
		}
		s.Secret = "no/such"
		if c := put(t, x, s); c.State != connection.Misconfigured || !strings.Contains(c.Reason, "client secret") {
			t.Errorf("without its client secret it is %+v", c)
		}
	})
}

// TestAtRest: tokens are sealed together with what was said of the connection, follow
// the keys, and are of no use to another tenant.
func TestAtRest(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock, p := dbtest.NewClock(d), newProvider(t)
		x := nodes(t, d, 1)[0]
		ctx := t.Context()
		put(t, x, mail(p))
		authorize(t, x, p)
		token := use(t, x)
		if err := x.sealer.RotateDEK(ctx, "acme", seal.KV); err != nil {
			t.Fatal(err)
		}
		clock.Advance(time.Minute) // until every node has the key
		if done, err := x.sealer.Rewrap(ctx, "acme"); err != nil || done.Resealed != 1 || len(done.Broken) != 0 {
			t.Errorf("resealed: %+v, %v", done, err)
		}
		if got := use(t, x); got != token {
			t.Errorf("under another key it gives %q, want %q", got, token)
		}
		for what, err := range map[string]error{
			"get":    func() error { _, err := x.Get(ctx, eve, "mail"); return err }(),
			"use":    func() error { _, err := x.Use(ctx, eve, "mail", "api.mail.example:443"); return err }(),
			"begin":  func() error { _, err := x.Begin(ctx, eve, "mail"); return err }(),
			"renew":  func() error { _, err := x.Renew(ctx, eve, "mail"); return err }(),
			"remove": x.Remove(ctx, eve, "mail"),
		} {
			if !errors.Is(err, connection.ErrNotFound) {
				t.Errorf("%s of another tenant's connection: %v, want ErrNotFound", what, err)
			}
		}
		if list, _, err := x.List(ctx, eve, "", 0); err != nil || len(list) != 0 {
			t.Errorf("another tenant lists %v, %v", list, err)
		}
		// A destination that was added in the database.
		if err := d.Do(ctx, "acme", func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `update connection set spec = replace(spec, 'api.mail.example:443', 'evil.example:443') where tenant_id = $1`, tx.Tenant())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		x.Drop("acme", "mail")
		if _, err := x.Use(ctx, bot, "mail", "evil.example:443"); !errors.Is(err, connection.ErrTampered) {
			t.Errorf("with a destination of the database's: %v, want ErrTampered", err)
		}
		if err := x.Remove(ctx, ann, "mail"); err != nil {
			t.Errorf("removing what was changed: %v", err)
		}
	})
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		what  string
		edit  func(*connection.Spec)
		field string
	}{
		{"a name with a slash", func(s *connection.Spec) { s.Name = "a/b" }, "name"},
		{"another grant", func(s *connection.Spec) { s.Grant = "password" }, "grant"},
		{"plain http", func(s *connection.Spec) { s.Issuer = "http://login.example" }, "issuer"},
		{"neither issuer nor endpoints", func(s *connection.Spec) { s.Issuer = "" }, "issuer"},
		{"an endpoint with a user", func(s *connection.Spec) { s.Token = "https://me@login.example/token" }, "token_endpoint"},
		{"no client", func(s *connection.Spec) { s.ClientID = "" }, "client_id"},
		{"a secret that is not shown", func(s *connection.Spec) { s.ClientAuth = connection.ByNone }, "secret"},
		{"a client for itself without a secret", func(s *connection.Spec) { s.Grant, s.Secret = connection.ClientCredentials, "" }, "secret"},
		{"a scope with a blank", func(s *connection.Spec) { s.Scopes = []string{"a b"} }, "scopes"},
		{"a parameter that is ours", func(s *connection.Spec) { s.Parameters = map[string]string{"redirect_uri": "https://evil.example"} }, "parameters"},
		{"no destination", func(s *connection.Spec) { s.Destinations = nil }, "destinations"},
		{"a pattern", func(s *connection.Spec) { s.Destinations = []string{"*.mail.example"} }, "destinations"},
		{"roots that are none", func(s *connection.Spec) { s.CA = "trust me" }, "ca"},
	} {
		s := connection.Spec{Name: "mail", Issuer: "https://login.example", ClientID: "estover", Secret: "mail/client", Destinations: []string{"api.mail.example"}}
		c.edit(&s)
		_, err := connection.Check(s)
		var e *estover.Error
		if !errors.Is(err, connection.ErrInvalid) || !errors.As(err, &e) || e.Field != c.field {
			t.Errorf("%s: %v, want ErrInvalid at %s", c.what, err, c.field)
		}
	}
}

// TestOurOwnTrouble: that our own database cannot be asked for a moment says nothing of
// a connection.
func TestOurOwnTrouble(t *testing.T) {
	d := dbtest.Open(t)
	clock, p := dbtest.NewClock(d), newProvider(t)
	x := nodes(t, d, 1)[0]
	put(t, x, mail(p))
	authorize(t, x, p)
	mine := x.Secret
	x.Secret = func(context.Context, estover.TenantID, string, string) (estover.Secret, error) {
		return estover.Secret{}, db.ErrUnavailable
	}
	clock.Advance(2 * time.Hour)
	if _, err := x.Use(t.Context(), bot, "mail", "api.mail.example:443"); !errors.Is(err, db.ErrUnavailable) {
		t.Errorf("while our database is away: %v, want that", err)
	}
	if c := show(t, x); c.State != connection.Healthy {
		t.Errorf("it is %s because %q", c.State, c.Reason)
	}
	x.Secret = mine
	if got := use(t, x); !strings.HasPrefix(got, "access-") {
		t.Errorf("when it is back: %q", got)
	}
}

// TestPrivateHosts: what is opened of a private network are the hosts that an
// administrator named, and none that the provider names.
func TestPrivateHosts(t *testing.T) {
	x := nodes(t, dbtest.Open(t), 1)[0]
	asked := false
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	t.Cleanup(inside.Close)
	elsewhere := strings.Replace(inside.URL, "127.0.0.1", "localhost", 1)
	var issuer *httptest.Server
	issuer = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{"issuer": issuer.URL, "token_endpoint": elsewhere + "/token"})
	}))
	t.Cleanup(issuer.Close)
	s := connection.Spec{
		Name: "mail", Grant: connection.ClientCredentials, Issuer: issuer.URL, ClientID: "estover", Secret: "mail/client",
		Destinations: []string{"api.mail.example"}, AllowPrivate: true,
	}
	if c := put(t, x, s); c.State != connection.Misconfigured || asked {
		t.Errorf("the provider names another host: %s because %q, asked %v", c.State, c.Reason, asked)
	}
	s.Token = elsewhere + "/token"
	if put(t, x, s); !asked {
		t.Error("the host that was named is not asked")
	}
	for text, want := range map[string]bool{issuer.URL: true, elsewhere: true, "https://10.0.0.1/token": false} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if s.Private(u) != want {
			t.Errorf("%s is opened: %v, want %v", text, !want, want)
		}
	}
}
