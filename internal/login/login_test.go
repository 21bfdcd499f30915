package login_test

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/edge"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/login"
	"estover.dev/internal/page"
	"estover.dev/internal/page/pagetest"
	"estover.dev/internal/token"
)

const issuer token.Issuer = "https://estover.example"

var root = estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.System("test")}

// A world is people, pages and the door between them.
type world struct {
	t       *testing.T
	db      *db.DB
	people  *directory.Directory
	handler http.Handler
	entered int
	fetcher func(directory.Provider) (*edge.Fetcher, error)
}

func open(t *testing.T, d *db.DB) *world { return openAt(t, d, issuer) }

func openAt(t *testing.T, d *db.DB, at token.Issuer) *world {
	t.Helper()
	w := &world{t: t, db: d, people: directory.New(guardtest.New(t, d, guardtest.AllowAll), directory.Options{})}
	key := []byte(rand.Text())
	pages, err := page.New(page.Config{
		Issuer: at, People: w.people, Now: d.Now, Logger: slog.New(slog.DiscardHandler),
		Known: func(_ context.Context, tenant estover.TenantID) error {
			if tenant != "acme" {
				return token.ErrNoTenant
			}
			return nil
		},
		MAC: func(tenant estover.TenantID, value []byte) []byte {
			m := hmac.New(sha256.New, append(key, tenant...))
			m.Write(value)
			return m.Sum(nil)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	door, err := login.New(login.Config{
		Issuer: at, People: w.people, Pages: pages, Entered: func(estover.TenantID) { w.entered++ }, Logger: slog.New(slog.DiscardHandler),
		Fetcher: func(_ context.Context, _ estover.TenantID, p directory.Provider) (*edge.Fetcher, error) {
			return w.fetcher(p)
		},
		Secret: func(_ context.Context, _ estover.TenantID, path, host string) (estover.Secret, error) {
			return estover.NewSecret([]byte("the secret at " + path + " for " + host)), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	pages.Mount(mux)
	door.Mount(mux)
	w.handler = edge.Front{}.Handler(mux)
	return w
}

func (w *world) browser() *pagetest.Browser { return pagetest.New(w.t, w.handler, string(issuer)) }

func (w *world) person(name string) directory.Person {
	w.t.Helper()
	p, err := w.people.Create(w.t.Context(), root, directory.Spec{Name: name}, "")
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) invite(p directory.Person) string {
	w.t.Helper()
	value, _, err := w.people.Invite(w.t.Context(), root, p.ID, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(value.Reveal())
}

// enrolled is a browser in which the person has come in by an invitation, with
// the recovery codes that it showed.
func (w *world) enrolled(p directory.Person) (*pagetest.Browser, []string) {
	w.t.Helper()
	b := w.browser()
	start := b.Send(b.Load("/login/invitation"), "/login/invitation", "invitation", w.invite(p))
	end := b.Send(start, "/login/enrol", "label", "my laptop")
	codes := regexp.MustCompile(`<li>([a-z2-7]{7}(?:-[a-z2-7]{7}){3})</li>`).FindAllStringSubmatch(end.Body, -1)
	if end.Status != http.StatusOK || len(codes) != directory.RecoveryCodes {
		w.t.Fatalf("enrolling %s: %d with %d codes\n%s", p.Name, end.Status, len(codes), end.Body)
	}
	var all []string
	for _, c := range codes {
		all = append(all, c[1])
	}
	return b, all
}

// signIn answers the sign-in page with a passkey, and gives what the script of
// the page is told.
func signIn(b *pagetest.Browser, from string) (told struct{ To, Error string }, status int) {
	b.T.Helper()
	p := b.Post("/login/passkey", b.Fill(b.Go(from), "/login/passkey"))
	if err := json.Unmarshal([]byte(p.Body), &told); err != nil {
		b.T.Fatalf("%v in %s", err, p.Body)
	}
	return told, p.Status
}

func TestEnrolAndSignIn(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		alice := w.person("alice")
		b, _ := w.enrolled(alice)
		if w.entered != 1 {
			t.Errorf("%d people have entered, want 1", w.entered)
		}
		if p := b.Go("/"); p.At != "/login/you" {
			t.Errorf("the bare address leads alice to %s", p.At)
		}
		you := b.Go("/login/you")
		if !strings.Contains(you.Body, "my laptop") || !strings.Contains(you.Body, "You have 10 left.") || !strings.Contains(you.Body, ">alice<") {
			t.Errorf("alice sees\n%s", you.Body)
		}
		if out := b.Send(you, "/login/out"); out.At != "/login" {
			t.Errorf("signing out leads to %s", out.At)
		}
		if p := b.Load("/login/you"); p.Header.Get("Location") != "/login?to=%2Flogin%2Fyou" {
			t.Errorf("after signing out alice is sent to %q", p.Header.Get("Location"))
		}
		told, status := signIn(b, "/login?to="+url.QueryEscape("/login/you?x=1"))
		if status != http.StatusOK || told.To != "/login/you?x=1" {
			t.Fatalf("signing in: %d %+v", status, told)
		}
		if p := b.Load("/login/you"); p.Status != http.StatusOK {
			t.Errorf("after signing in: %d", p.Status)
		}
		if p := b.Load("/login?to=%2Flogin%2Fyou"); p.Header.Get("Location") != "/login/you" {
			t.Errorf("whoever is signed in is sent to %q", p.Header.Get("Location"))
		}
	})
}

// What a passkey answers counts for the page that asked, once, in the browser
// that showed it.
func TestSignInIsRefused(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		clock := dbtest.NewClock(d)
		b, _ := w.enrolled(w.person("alice"))
		delete(b.Cookies, "__Host-estover")
		refused := func(name string, p *pagetest.Page) {
			t.Helper()
			if p.Status < 400 || b.Cookies["__Host-estover"] != "" || !strings.Contains(p.Body, `"error"`) {
				t.Errorf("%s: %d %s", name, p.Status, p.Body)
			}
			delete(b.Cookies, "__Host-estover")
		}
		form := b.Fill(b.Load("/login"), "/login/passkey")
		if p := b.Post("/login/passkey", form); p.Status != http.StatusOK {
			t.Fatalf("signing in: %d %s", p.Status, p.Body)
		}
		delete(b.Cookies, "__Host-estover")
		refused("the same answer again", b.Post("/login/passkey", form))

		b.Keys.Unverified = true
		refused("an authenticator that does not look who uses it", b.Post("/login/passkey", b.Fill(b.Load("/login"), "/login/passkey")))
		b.Keys.Unverified = false

		b.Keys.Origin = "https://estover.example.evil.example"
		refused("another origin", b.Post("/login/passkey", b.Fill(b.Load("/login"), "/login/passkey")))
		b.Keys.Origin = string(issuer)

		one, two := b.Fill(b.Load("/login"), "/login/passkey"), b.Fill(b.Load("/login"), "/login/passkey")
		one.Set("answer", two.Get("answer"))
		refused("the answer to another challenge", b.Post("/login/passkey", one))

		stranger := w.browser()
		stranger.Keys = b.Keys
		theirs := stranger.Fill(stranger.Load("/login"), "/login/passkey")
		refused("the page of another browser", b.Post("/login/passkey", theirs))

		late := b.Fill(b.Load("/login"), "/login/passkey")
		clock.Advance(11 * time.Minute)
		refused("a page of eleven minutes ago", b.Post("/login/passkey", late))

		b.Keys.Counter = 0
		refused("a passkey that counts backwards", b.Post("/login/passkey", b.Fill(b.Load("/login"), "/login/passkey")))
		b.Keys.Counter = 100

		for name, bad := range map[string]string{"no answer": "", "no JSON": "{", "an empty object": "{}", "a large one": strings.Repeat("a", 70<<10)} {
			f := b.Fill(b.Load("/login"), "/login/passkey")
			f.Set("answer", bad)
			refused(name, b.Post("/login/passkey", f))
		}
		// What a known person's passkey failed at is on record, but not without end.
		if n := refusals(t, d); n < 2 || n > 5 {
			t.Errorf("%d failures are on record, want a few", n)
		}
		if told, status := signIn(b, "/login"); status != http.StatusOK {
			t.Errorf("at last a good answer: %d %+v", status, told)
		}
	})
}

// A form counts if a page of ours was shown to whoever is signed in, in this
// browser, and it is the page that says where it goes.
func TestFormsOfOthers(t *testing.T) {
	d := dbtest.Open(t)
	w := open(t, d)
	b, _ := w.enrolled(w.person("alice"))
	out := func(change func(*http.Request), fields func(url.Values)) int {
		t.Helper()
		f := b.Fill(b.Go("/login/you"), "/login/out")
		if fields != nil {
			fields(f)
		}
		return b.Post("/login/out", f, func(r *http.Request) {
			if change != nil {
				change(r)
			}
		}).Status
	}
	header := func(pairs ...string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Del("Sec-Fetch-Site")
			for i := 0; i < len(pairs); i += 2 {
				r.Header.Set(pairs[i], pairs[i+1])
			}
		}
	}
	other, _ := w.enrolled(w.person("bob"))
	theirs := other.Fill(other.Go("/login/you"), "/login/out").Get("form")
	codes := b.Fill(b.Go("/login/you"), "/login/you/codes").Get("form")
	for name, c := range map[string]struct {
		change func(*http.Request)
		fields func(url.Values)
	}{
		"another site":            {change: header("Sec-Fetch-Site", "cross-site")},
		"another host":            {change: header("Sec-Fetch-Site", "same-site")},
		"typed by hand":           {change: header("Sec-Fetch-Site", "none")},
		"an old browser, abroad":  {change: header("Origin", "https://evil.example")},
		"without the word":        {fields: func(f url.Values) { f.Del("form") }},
		"another form's word":     {fields: func(f url.Values) { f.Set("form", codes) }},
		"somebody else's word":    {fields: func(f url.Values) { f.Set("form", theirs) }},
		"a word twice":            {fields: func(f url.Values) { f.Add("form", f.Get("form")) }},
		"a word that was changed": {fields: func(f url.Values) { f.Set("form", "B"+f.Get("form")[1:]) }},
	} {
		if status := out(c.change, c.fields); status != http.StatusForbidden {
			t.Errorf("%s: %d, want 403", name, status)
		}
	}
	if p := b.Load("/login/you"); p.Status != http.StatusOK {
		t.Fatalf("alice was signed out by one of them: %d", p.Status)
	}
	for name, change := range map[string]func(*http.Request){
		"an old browser that says nothing": header(), "an old browser of ours": header("Origin", string(issuer)),
		"an old browser without a referrer": header("Origin", "null"),
	} {
		if status := out(change, nil); status != http.StatusSeeOther {
			t.Errorf("%s: %d, want 303", name, status)
		}
		if told, status := signIn(b, "/login"); status != http.StatusOK {
			t.Fatalf("signing in again: %d %+v", status, told)
		}
	}
}

// The sign-in page leads nowhere but to pages of ours.
func TestNoOpenRedirect(t *testing.T) {
	d := dbtest.Open(t)
	w := open(t, d)
	b, _ := w.enrolled(w.person("alice"))
	for _, to := range []string{
		"https://evil.example/", "//evil.example/", `/\evil.example/`, "/%5cevil.example\\", "/\tevil", "javascript:alert(1)", "/login/../../evil", "/./login",
		"\\\\evil.example", "/login#x", "login", "", "/" + strings.Repeat("a", 20000), "///evil.example", "/login/you\r\nX: y", "/%2e%2e//evil.example",
	} {
		p := b.Load("/login?to=" + url.QueryEscape(to))
		if got := p.Header.Get("Location"); got != "/login/you" {
			t.Errorf("to=%.40q leads to %q, want /login/you", to, got)
		}
	}
	for _, to := range []string{"/login/you", "/oauth/authorize?client_id=a&redirect_uri=https%3A%2F%2Fgood.example", "/v1/openapi.json"} {
		if got := b.Load("/login?to=" + url.QueryEscape(to)).Header.Get("Location"); got != to {
			t.Errorf("to=%q leads to %q", to, got)
		}
	}
}

// Every page says that it must not be framed, kept or guessed at, errors too.
func TestHeads(t *testing.T) {
	d := dbtest.Open(t)
	w := open(t, d)
	b, _ := w.enrolled(w.person("alice"))
	for _, path := range []string{"/login", "/login?again=1", "/login/recovery", "/login/invitation", "/login/you", "/login/passkey", "/t/nobody/login"} {
		p := b.Load(path)
		csp := p.Header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "form-action 'self';", "base-uri 'none'", "script-src 'self';"} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s has the policy %q, want %s", path, csp, want)
			}
		}
		for name, want := range map[string]string{
			"Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
			"Access-Control-Allow-Origin": "",
		} {
			if got := p.Header.Get(name); got != want {
				t.Errorf("%s has %s: %q, want %q", path, name, got, want)
			}
		}
		if strings.Contains(p.Body, "<script>") || regexp.MustCompile(`\son[a-z]+=|style=`).MatchString(p.Body) {
			t.Errorf("%s has a script or a style of its own", path)
		}
	}
	style := regexp.MustCompile(`/page/style\.css\?v=[0-9a-f]+`).FindString(b.Load("/login/recovery").Body)
	if p := b.Load(style); p.Status != http.StatusOK || !strings.HasPrefix(p.Header.Get("Content-Type"), "text/css") || !strings.Contains(p.Body, "prefers-color-scheme: dark") {
		t.Errorf("the style sheet %s: %d", style, p.Status)
	}
	if p := b.Load("/login/out"); p.Status != http.StatusMethodNotAllowed || p.Header.Get("Allow") != "POST" {
		t.Errorf("looking at the page that signs out: %d", p.Status)
	}
	if p := b.Load("/t/nobody/login"); p.Status != http.StatusNotFound {
		t.Errorf("a tenant that is not there: %d", p.Status)
	}
}

func TestRecoveryCode(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		_, codes := w.enrolled(w.person("alice"))
		b := w.browser()
		wrong := b.Send(b.Load("/login/recovery?to=%2Flogin%2Fyou"), "/login/recovery", "code", codes[0][1:]+codes[0][:1]+"-")
		if wrong.Status != http.StatusUnauthorized || !strings.Contains(wrong.Body, "This code is wrong") || wrong.Form(t, "/login/recovery").Fields.Get("to") != "/login/you" {
			t.Errorf("a wrong code: %d\n%s", wrong.Status, wrong.Body)
		}
		in := b.Send(wrong, "/login/recovery", "code", strings.ToUpper(codes[0]))
		if in.Status != http.StatusOK || !strings.Contains(in.Body, "9 codes are left") {
			t.Fatalf("a code: %d\n%s", in.Status, in.Body)
		}
		// A code is enough to make a passkey, and for nothing else.
		you := b.Load("/login/you")
		if !you.Has("/login/you/passkey") || you.Has("/login/you/codes") {
			t.Errorf("whoever came by a code sees\n%s", you.Body)
		}
		you = b.Send(you, "/login/you/passkey", "label", "new phone")
		if you.At != "/login/you" || !strings.Contains(you.Body, "new phone") {
			t.Errorf("adding a passkey leads to %s\n%s", you.At, you.Body)
		}
		delete(b.Cookies, "__Host-estover")
		if told, status := signIn(b, "/login"); status != http.StatusOK {
			t.Errorf("the new passkey: %d %+v", status, told)
		}
		again := b.Send(b.Load("/login/recovery"), "/login/recovery", "code", codes[0])
		if again.Status != http.StatusUnauthorized {
			t.Errorf("the same code again: %d", again.Status)
		}
	})
}

// Changing what one comes in by wants a passkey, a short while ago.
func TestStepUp(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		clock := dbtest.NewClock(d)
		b, old := w.enrolled(w.person("alice"))
		fresh := b.Load("/login/you")
		codes, keys := b.Fill(fresh, "/login/you/codes"), b.Keys
		b.Keys = pagetest.New(t, nil, b.Origin).Keys // the second passkey is in another device
		passkey := b.Fill(fresh, "/login/you/passkey", "label", "a second one")
		b.Keys = keys
		clock.Advance(login.Fresh + time.Second)
		stale := b.Load("/login/you")
		if stale.Has("/login/you/codes") || stale.Has("/login/you/passkey") || !strings.Contains(stale.Body, "again=1") {
			t.Errorf("after five minutes alice sees\n%s", stale.Body)
		}
		changed := changes(t, d)
		for path, form := range map[string]url.Values{"/login/you/codes": codes, "/login/you/passkey": passkey, "/login/you/passkey/end": codes} {
			if p := b.Post(path, form); p.Header.Get("Location") != "/login?again=1&to=%2Flogin%2Fyou" {
				t.Errorf("%s after five minutes: %d to %q", path, p.Status, p.Header.Get("Location"))
			}
		}
		if n := changes(t, d) - changed; n != 0 {
			t.Errorf("%d things were changed by who had not signed in again", n)
		}
		before := b.Cookies["__Host-estover"]
		if told, status := signIn(b, "/login?again=1&to=%2Flogin%2Fyou"); status != http.StatusOK || told.To != "/login/you" || b.Cookies["__Host-estover"] == before {
			t.Fatalf("signing in once more: %d %+v", status, told)
		}
		made := b.Send(b.Load("/login/you"), "/login/you/codes")
		if made.Status != http.StatusOK || strings.Contains(made.Body, old[0]) || strings.Count(made.Body, "<li>") != directory.RecoveryCodes {
			t.Errorf("new codes: %d\n%s", made.Status, made.Body)
		}
		// Who is signed in elsewhere with what was held before the step-up is not.
		b.Cookies["__Host-estover"] = before
		if p := b.Load("/login/you"); p.Status != http.StatusSeeOther {
			t.Errorf("the visit of before: %d, want it ended", p.Status)
		}
	})
}

// An invitation is good until the passkey is stored, and then no more.
func TestInvitation(t *testing.T) {
	d := dbtest.Open(t)
	w := open(t, d)
	alice := w.person("alice")
	invitation := w.invite(alice)
	b := w.browser()
	start := b.Send(b.Load("/login/invitation"), "/login/invitation", "invitation", invitation)
	if !strings.Contains(start.Body, "Welcome, alice") {
		t.Fatalf("the invitation: %d\n%s", start.Status, start.Body)
	}
	form := b.Fill(start, "/login/enrol")
	other := w.invite(w.person("bob"))
	swapped := url.Values{}
	for k, v := range form {
		swapped[k] = v
	}
	swapped.Set("invitation", other)
	if p := b.Post("/login/enrol", swapped); p.Status != http.StatusForbidden {
		t.Errorf("the page of one invitation with another: %d, want 403", p.Status)
	}
	if p := b.Post("/login/enrol", form); p.Status != http.StatusOK {
		t.Fatalf("enrolling: %d\n%s", p.Status, p.Body)
	}
	before := refusals(t, d)
	again := w.browser()
	for _, value := range []string{invitation, other[:len(other)-1], "", "est_et_"} {
		p := again.Send(again.Load("/login/invitation"), "/login/invitation", "invitation", value)
		if p.Status != http.StatusUnauthorized || p.Has("/login/enrol") {
			t.Errorf("the invitation %.12q: %d, want 401", value, p.Status)
		}
	}
	if n := refusals(t, d) - before; n != 1 {
		t.Errorf("%d refusals are on record, want that of the invitation which was used before", n)
	}
}

// Whoever tries too often waits.
func TestTooManyAttempts(t *testing.T) {
	d := dbtest.Open(t)
	w := open(t, d)
	alice, codes := w.enrolled(w.person("alice"))
	b := w.browser()
	dbtest.NewClock(d).Hold()
	for range 25 {
		b.Send(b.Load("/login/recovery"), "/login/recovery", "code", strings.Repeat("a", 28))
	}
	if p := b.Send(b.Load("/login/recovery"), "/login/recovery", "code", codes[0]); p.Status != http.StatusTooManyRequests {
		t.Errorf("a good code after 25 wrong ones: %d, want 429", p.Status)
	}
	b.Keys = alice.Keys
	if p := b.Post("/login/passkey", b.Fill(b.Load("/login"), "/login/passkey")); p.Status != http.StatusTooManyRequests || p.Header.Get("Retry-After") == "" {
		t.Errorf("a passkey after 25 wrong codes: %d, again after %q seconds; want 429 and when", p.Status, p.Header.Get("Retry-After"))
	}
	dbtest.NewClock(d).Advance(time.Minute)
	if p := b.Send(b.Load("/login/recovery"), "/login/recovery", "code", codes[0]); p.Status != http.StatusOK {
		t.Errorf("a minute later: %d", p.Status)
	}
}

// Passkeys belong to names; a server that is known by an address says so.
func TestAddress(t *testing.T) {
	w := openAt(t, dbtest.Open(t), "https://192.0.2.1:8443")
	b := pagetest.New(t, w.handler, "https://192.0.2.1:8443")
	for _, path := range []string{"/login", "/login/invitation"} {
		if p := b.Load(path); p.Status != http.StatusServiceUnavailable || !strings.Contains(p.Body, "Passkeys work for a name") {
			t.Errorf("%s: %d\n%s", path, p.Status, p.Body)
		}
	}
}

// A person sees where they are signed in, and ends what they do not know; the
// same page ends nothing of anybody else's.
func TestPlaces(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := open(t, d)
		alice := w.person("alice")
		b, _ := w.enrolled(alice)
		other, _ := w.enrolled(w.person("bob"))
		lost := w.browser()
		lost.Keys = b.Keys
		if told, status := signIn(lost, "/login"); status != http.StatusOK {
			t.Fatalf("signing in elsewhere: %d %+v", status, told)
		}
		value, _, err := w.people.Issue(t.Context(), estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User(alice.ID)}, "laptop", 0)
		if err != nil {
			t.Fatal(err)
		}
		you := b.Load("/login/you")
		if !strings.Contains(you.Body, "This browser") || !strings.Contains(you.Body, "A browser") || !strings.Contains(you.Body, "The command line (laptop)") ||
			strings.Count(you.Body, `action="/login/you/leave"`) != 2 {
			t.Errorf("alice sees\n%s", you.Body)
		}
		stolen := other.Fill(b.Load("/login/you"), "/login/you/leave")
		stolen.Set("form", "x")
		if p := other.Post("/login/you/leave", stolen); p.Status != http.StatusForbidden {
			t.Errorf("bob signs alice out: %d, want 403", p.Status)
		}
		for range 2 {
			you = b.Send(b.Load("/login/you"), "/login/you/leave")
		}
		if you.Has("/login/you/leave") {
			t.Errorf("after signing out elsewhere alice sees\n%s", you.Body)
		}
		if p := lost.Load("/login/you"); p.Status != http.StatusSeeOther {
			t.Errorf("the other browser: %d, want it signed out", p.Status)
		}
		if _, err := w.people.Authenticate(t.Context(), estover.DefaultTenant, string(value.Reveal())); !errors.Is(err, directory.ErrToken) {
			t.Errorf("the command line: %v, want ErrToken", err)
		}
		if p := b.Load("/login/you"); p.Status != http.StatusOK {
			t.Errorf("this browser: %d", p.Status)
		}
	})
}

// changes counts what has been done, as the log has it.
func changes(t *testing.T, d *db.DB) (n int) {
	t.Helper()
	if err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), "select count(*) from audit where tenant_id = $1 and outcome = 'done'", tx.Tenant()).Scan(&n)
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// refusals is how many failed sign-ins are on record.
func refusals(t *testing.T, d *db.DB) (n int) {
	t.Helper()
	err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), "select count(*) from audit where action = 'login.create' and outcome = 'refused'").Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
