package page_test

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/page"
)

// open makes pages.
func open(t testing.TB) *page.Pages {
	t.Helper()
	d := dbtest.Open(t)
	key := rand.Text() // another in each process: what one has sealed does not open in the next
	pages, err := page.New(page.Config{
		Issuer: "https://estover.example", People: directory.New(guardtest.New(t, d, guardtest.AllowAll), directory.Options{}), Now: time.Now,
		MAC: func(tenant estover.TenantID, value []byte) []byte {
			m := hmac.New(sha256.New, []byte(key+string(tenant)))
			m.Write(value)
			return m.Sum(nil)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

// request is a request of a browser that has been here before, as a door gets it.
func request(t testing.TB) *page.Request {
	t.Helper()
	var got *page.Request
	mux := http.NewServeMux()
	open(t).Handle(mux, "/login", func(r *page.Request) error { got = r; return nil }, http.MethodGet)
	r := httptest.NewRequest(http.MethodGet, "https://estover.example/login", nil)
	r.AddCookie(&http.Cookie{Name: "__Host-estover-browser", Value: "a-browser"})
	mux.ServeHTTP(httptest.NewRecorder(), r)
	if got == nil {
		t.Fatal("the request did not come through")
	}
	return got
}

// FuzzLocal: whatever a sign-in page is told to go on to, a browser stays on the
// site.
func FuzzLocal(f *testing.F) {
	for _, s := range []string{"/login/you", "//evil.example", "/\\evil.example", "/oauth/authorize?a=b", "https://evil.example", "/%2f%2fevil.example", "/a/../b", "/\t/evil.example"} {
		f.Add(s)
	}
	r := request(f)
	base, err := url.Parse("https://estover.example/login?to=x")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, to string) {
		if !r.Local(to) {
			return
		}
		u, err := base.Parse(to)
		if err != nil || u.Scheme != "https" || u.Host != "estover.example" || u.User != nil || strings.ContainsAny(to, "\\\r\n\t #") || !strings.HasPrefix(u.Path, "/") {
			t.Errorf("%q leads to %v, %v", to, u, err)
		}
	})
}

// TestLocalToATenant: whoever signs in to one organisation is not sent on to the
// pages of another, also from the default one, whose pages stand at the root.
func TestLocalToATenant(t *testing.T) {
	r := request(t)
	for to, want := range map[string]bool{
		"/login/you": true, "/oauth/authorize?x=/t/evil": true, "/tools": true, "/t": true,
		"/t/evil/login": false, "/t/evil": false, "/%74/evil/login": false, "/t%2fevil/login": false, "/t/": false,
	} {
		if got := r.Local(to); got != want {
			t.Errorf("from the default tenant to %s: %v, want %v", to, got, want)
		}
	}
	r.Tenant = "acme"
	for to, want := range map[string]bool{
		"/t/acme/login/you": true, "/t/evil/login": false, "/login": false, "/t/acmes/login": false, "/t/acme/../evil/login": false, "/t/acme%2f..%2fevil/login": false,
	} {
		if got := r.Local(to); got != want {
			t.Errorf("from acme to %s: %v, want %v", to, got, want)
		}
	}
}

// FuzzOpen: what was not sealed here for this purpose does not open.
func FuzzOpen(f *testing.F) {
	r := request(f)
	sealed := r.Seal("a purpose", []byte("data"), time.Hour)
	f.Add(sealed, "another purpose")
	f.Add("", "a purpose")
	f.Add(sealed[:len(sealed)-1], "a purpose")
	f.Add(sealed+"A", "a purpose")
	f.Fuzz(func(t *testing.T, text, purpose string) {
		data, _, ok := r.Open(purpose, text)
		if ok != (text == sealed && purpose == "a purpose") {
			t.Errorf("%q for %q opens: %v with %q", text, purpose, ok, data)
		}
		if at, ok := r.Marked(text); ok {
			t.Errorf("%q is a mark of %s", text, at)
		}
	})
}

// What was sealed opens once it is asked for, and not after its time; a mark is
// the moment when it was made.
func TestSeal(t *testing.T) {
	r := request(t)
	if data, _, ok := r.Open("a purpose", r.Seal("a purpose", []byte("data"), time.Hour)); !ok || string(data) != "data" {
		t.Errorf("opening gives %q, %v", data, ok)
	}
	if _, _, ok := r.Open("a purpose", r.Seal("a purpose", []byte("data"), -time.Second)); ok {
		t.Error("what has lapsed opens")
	}
	if at, ok := r.Marked(r.Mark()); !ok || time.Since(at) > time.Minute {
		t.Errorf("a mark is of %s, %v", at, ok)
	}
}
