// Package pagetest looks at pages as a browser does: it keeps cookies, follows
// redirects on the same site and sends the forms that a page shows. An
// [Authenticator] holds passkeys.
package pagetest

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"estover.dev/internal/page/softkey"
)

// A Browser is somebody's browser.
type Browser struct {
	T       testing.TB
	Handler http.Handler
	Origin  string // of the site that it looks at
	Cookies map[string]string
	Keys    *Authenticator
}

// New is a browser that has never been here.
func New(t testing.TB, h http.Handler, origin string) *Browser {
	return &Browser{T: t, Handler: h, Origin: origin, Cookies: map[string]string{}, Keys: &Authenticator{T: t, Authenticator: softkey.Authenticator{Origin: origin}}}
}

// A Page is what a browser shows.
type Page struct {
	Status int
	Header http.Header
	Body   string
	At     string // path and query
	Forms  []*Form
}

// A Form is what a page lets one send.
type Form struct {
	Action string
	Fields url.Values
	Create string // options for a passkey to be made
	Get    string // options for a passkey to sign with
}

// Do sends a request, with the cookies, and does not follow.
func (b *Browser) Do(r *http.Request) *Page {
	b.T.Helper()
	for name, value := range b.Cookies {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	rec := httptest.NewRecorder()
	b.Handler.ServeHTTP(rec, r)
	res := rec.Result()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		b.T.Fatal(err)
	}
	for _, c := range res.Cookies() {
		if !strings.HasPrefix(c.Name, "__Host-") || !c.Secure || !c.HttpOnly || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteLaxMode {
			b.T.Errorf("%s sets the cookie %s", r.URL.Path, c.Raw)
		}
		if c.MaxAge < 0 {
			delete(b.Cookies, c.Name)
		} else {
			b.Cookies[c.Name] = c.Value
		}
	}
	p := &Page{Status: res.StatusCode, Header: res.Header, Body: string(body), At: r.URL.RequestURI()}
	if strings.HasPrefix(res.Header.Get("Content-Type"), "text/html") {
		p.Forms = forms(b.T, p.Body)
	}
	return p
}

// Load looks at a path, without following a redirect.
func (b *Browser) Load(path string) *Page {
	b.T.Helper()
	return b.Do(httptest.NewRequest(http.MethodGet, b.Origin+path, nil))
}

// Go looks at a path, and follows redirects as long as they stay on the site.
func (b *Browser) Go(path string) *Page {
	b.T.Helper()
	return b.follow(b.Load(path))
}

func (b *Browser) follow(p *Page) *Page {
	b.T.Helper()
	for range 10 {
		to := p.Header.Get("Location")
		if p.Status != http.StatusSeeOther || !strings.HasPrefix(to, "/") {
			return p
		}
		p = b.Load(to)
	}
	b.T.Fatalf("redirects go round in a circle at %s", p.At)
	return nil
}

// Post sends a form as a page of the site does, and does not follow.
func (b *Browser) Post(path string, form url.Values, change ...func(*http.Request)) *Page {
	b.T.Helper()
	r := httptest.NewRequest(http.MethodPost, b.Origin+path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	for _, fn := range change {
		fn(r)
	}
	return b.Do(r)
}

// Send fills in the form of a page with this action, and follows.
func (b *Browser) Send(p *Page, action string, pairs ...string) *Page {
	b.T.Helper()
	return b.follow(b.Post(action, b.fill(p, action, pairs...)))
}

// fill is the form of a page with this action, filled in; its passkey is made
// or has signed.
func (b *Browser) fill(p *Page, action string, pairs ...string) url.Values {
	b.T.Helper()
	f := p.Form(b.T, action)
	v := url.Values{}
	for name, values := range f.Fields {
		v[name] = values
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	switch {
	case f.Create != "":
		v.Set("answer", b.Keys.Create(f.Create))
	case f.Get != "":
		v.Set("answer", b.Keys.Get(f.Get))
	}
	return v
}

// Fill is the form of a page with this action, filled in but not sent.
func (b *Browser) Fill(p *Page, action string, pairs ...string) url.Values {
	b.T.Helper()
	return b.fill(p, action, pairs...)
}

// Form is the form with this action.
func (p *Page) Form(t testing.TB, action string) *Form {
	t.Helper()
	for _, f := range p.Forms {
		if f.Action == action {
			return f
		}
	}
	t.Fatalf("the page at %s (%d) has no form for %s:\n%s", p.At, p.Status, action, p.Body)
	return nil
}

// Has reports whether the page has a form with this action.
func (p *Page) Has(action string) bool {
	for _, f := range p.Forms {
		if f.Action == action {
			return true
		}
	}
	return false
}

// forms reads the forms of a page.
func forms(t testing.TB, body string) (all []*Form) {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	look := false // at another page, which changes nothing
	var walk func(n *html.Node, in *Form)
	walk = func(n *html.Node, in *Form) {
		if n.Type == html.ElementNode {
			attr := map[string]string{}
			for _, a := range n.Attr {
				attr[a.Key] = a.Val
			}
			switch n.Data {
			case "form":
				in = &Form{Action: attr["action"], Fields: url.Values{}, Create: attr["data-create"], Get: attr["data-get"]}
				all = append(all, in)
				look = strings.EqualFold(attr["method"], "get")
				if !look && !strings.EqualFold(attr["method"], "post") {
					t.Errorf("the form for %s says neither GET nor POST", in.Action)
				}
			case "input":
				if look && attr["name"] == "form" {
					t.Errorf("the form for %s decides something and is not a POST", in.Action)
				}
				if in != nil && attr["name"] != "" {
					in.Fields.Add(attr["name"], attr["value"])
				}
			}
		}
		for c := n.FirstChild; c != nil; c = c.NextSibling {
			walk(c, in)
		}
	}
	walk(doc, nil)
	return all
}
