// Package person is somebody at a browser, with a passkey in software: they accept
// an invitation, sign in, read what waits for them, and approve it. It does what a
// browser does with the pages of Estover, by HTTP alone.
package person

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"

	"golang.org/x/net/html"

	"estover.dev/internal/page/softkey"
)

// A Person sits at a browser of their own.
type Person struct {
	origin string // of the server
	client *http.Client
	keys   softkey.Authenticator
}

// New is somebody who has never been to the server at this origin, which has a
// certificate of these authorities.
func New(origin string, roots *x509.CertPool) (*Person, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	return &Person{origin: origin, client: &http.Client{Jar: jar, Transport: transport}, keys: softkey.Authenticator{Origin: origin}}, nil
}

// Leave closes the browser.
func (p *Person) Leave() { p.client.CloseIdleConnections() }

// Enrol accepts an invitation and makes a passkey, and is signed in with it.
func (p *Person) Enrol(ctx context.Context, invitation string) error {
	const invited, enrol = "/login/invitation", "/login/enrol"
	start, err := p.load(ctx, http.MethodGet, invited, nil)
	if err != nil {
		return err
	}
	f, err := start.form(invited)
	if err != nil {
		return err
	}
	f.fields.Set("invitation", invitation)
	if start, err = p.load(ctx, http.MethodPost, invited, f.fields); err != nil {
		return err
	}
	if f, err = start.form(enrol); err != nil {
		return err
	}
	answer, err := p.keys.Create(f.create)
	if err != nil {
		return err
	}
	f.fields.Set("label", "a passkey in software")
	f.fields.Set("answer", answer)
	_, err = p.load(ctx, http.MethodPost, enrol, f.fields)
	return err
}

// Read opens the page of a request, which decides nothing, and gives the document
// that it shows and its eight words.
func (p *Person) Read(ctx context.Context, request string) (document, words string, err error) {
	page, err := p.load(ctx, http.MethodGet, "/approve/"+request, nil)
	if err != nil {
		return "", "", err
	}
	return page.text("document"), page.text("words"), nil
}

// Sign opens the page of a request and approves what it shows, signed with the
// passkey.
func (p *Person) Sign(ctx context.Context, request string) error {
	at := "/approve/" + request
	page, err := p.load(ctx, http.MethodGet, at, nil)
	if err != nil {
		return err
	}
	f, err := page.form(at + "/sign")
	if err != nil {
		return err
	}
	answer, err := p.keys.Get(f.get)
	if err != nil {
		return err
	}
	f.fields.Set("answer", answer)
	said, err := p.load(ctx, http.MethodPost, at+"/sign", f.fields)
	if err != nil {
		return err
	}
	var told struct{ Error string }
	if err := json.Unmarshal(said.body, &told); err != nil {
		return err
	}
	if told.Error != "" {
		return errors.New(told.Error)
	}
	return nil
}

// maxPage bounds what is read of a page, in bytes.
const maxPage = 1 << 20

// load asks for a page, or sends a form to it.
func (p *Person) load(ctx context.Context, method, path string, form url.Values) (*page, error) {
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	r, err := http.NewRequestWithContext(ctx, method, p.origin+path, body)
	if err != nil {
		return nil, err
	}
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Origin", p.origin)
		r.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	resp, err := p.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxPage))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s is answered by %s", method, path, resp.Status)
	}
	root, err := html.Parse(bytes.NewReader(b))
	return &page{path, b, root}, err
}

// A page is what a browser shows.
type page struct {
	path string
	body []byte
	root *html.Node
}

// A form of a page, with what the script of the page hands to the authenticator.
type form struct {
	fields      url.Values
	create, get string
}

// form finds the form that is sent to a path.
func (p *page) form(action string) (*form, error) {
	for n := range p.root.Descendants() {
		if n.Data != "form" || attribute(n, "action") != action || !strings.EqualFold(attribute(n, "method"), http.MethodPost) {
			continue
		}
		f := &form{url.Values{}, attribute(n, "data-create"), attribute(n, "data-get")}
		for in := range n.Descendants() {
			if name := attribute(in, "name"); in.Data == "input" && name != "" {
				f.fields.Add(name, attribute(in, "value"))
			}
		}
		return f, nil
	}
	return nil, fmt.Errorf("the page %s has no form for %s", p.path, action)
}

// text is the text of the first element of a class.
func (p *page) text(class string) string {
	for n := range p.root.Descendants() {
		if attribute(n, "class") != class {
			continue
		}
		var b strings.Builder
		for in := range n.Descendants() {
			if in.Type == html.TextNode {
				b.WriteString(in.Data)
			}
		}
		return b.String()
	}
	return ""
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}
