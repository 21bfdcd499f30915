// Package reveal is the door at which people look at the value of a secret in a
// browser.
//
//	{issuer}/secrets?path=PATH         a secret: what it is, and a form to see its value
//	{issuer}/secrets/value?path=PATH   the value
//
// A value is shown to somebody who has proved who they are within the last ten
// minutes, who says what it is needed for, and who may read it by policy; each time
// is an event of its own. No link shows one: only the form does that, sent by POST
// from the page that says which secret it is, by whoever is signed in there.
//
// Every page works without a script.
package reveal

import (
	"embed"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"estover.dev/internal/page"
	"estover.dev/internal/secret"
)

//go:embed *.html
var files embed.FS

var (
	askPage   = page.Parse(files, "ask.html")
	valuePage = page.Parse(files, "value.html")
)

// Path is where the pages are, below the issuer of a tenant.
const Path = "/secrets"

// freshly is what seeing a value wants.
var freshly = page.Demand{Within: 10 * time.Minute}

// A Door is where people look at values.
type Door struct {
	Secrets *secret.Secrets
	Pages   *page.Pages
}

// Mount adds the pages of all tenants to mux.
func (d *Door) Mount(mux *http.ServeMux) {
	d.Pages.Handle(mux, Path, d.ask, http.MethodGet)
	d.Pages.Handle(mux, Path+"/value", d.value, http.MethodPost)
}

// at is the path of a page about the secret that a request names.
func at(r *page.Request, more string) string {
	to := r.Path(Path) + more
	if path := r.URL.Query().Get("path"); path != "" {
		to += "?" + url.Values{"path": {path}}.Encode()
	}
	return to
}

// word is the purpose of the form about a secret.
func word(path string) string { return "value of " + path }

type askView struct {
	secret.Secret
	List, Action, Word string
}

// ask shows a secret without its value, or asks which one it is.
func (d *Door) ask(r *page.Request) error {
	if !r.Demand(page.Demand{}, at(r, "")) {
		return nil
	}
	v := askView{List: r.Path(Path)}
	path := r.URL.Query().Get("path")
	if path == "" {
		return r.Show(askPage, page.View{Title: "A secret", Data: v})
	}
	var err error
	if v.Secret, err = d.Secrets.Get(r.Context(), r.Visit.Caller, path); err != nil {
		return err
	}
	v.Action, v.Word = at(r, "/value"), r.Form(word(path))
	return r.Show(askPage, page.View{Title: "Secret " + path, Data: v})
}

type valueView struct {
	Path    string
	Version int64
	Fields  []field
	Back    string
}

// A field is as it is in the page when a browser has read it: lines end as they do in
// the value, which a browser would see to otherwise.
type field struct {
	Name   string
	Pieces []string // between the carriage returns of the value
	Exact  bool     // it is copied as it is shown
}

func fieldOf(name, value string) field {
	strange := func(r rune) bool { return r != '\n' && r != '\t' && unicode.IsControl(r) }
	return field{name, strings.Split(value, "\r"), strings.TrimSpace(value) == value && !strings.ContainsFunc(value, strange)}
}

// value shows the value of a secret.
func (d *Door) value(r *page.Request) error {
	if !r.Demand(freshly, at(r, "")) {
		return nil
	}
	path := r.URL.Query().Get("path")
	form, err := r.Posted(word(path))
	if err != nil {
		return err
	}
	purpose := strings.TrimSpace(form.Get("purpose"))
	if purpose == "" || len(purpose) > 500 {
		return secret.ErrPurpose.With("Say what the value of the secret is needed for, in up to 500 bytes.")
	}
	p, err := d.Secrets.Read(r.Context(), r.Visit.Caller, path, 0, purpose)
	if err != nil {
		return err
	}
	v := valueView{Path: path, Version: p.N, Back: at(r, "")}
	for _, name := range slices.Sorted(maps.Keys(p.Values)) {
		v.Fields = append(v.Fields, fieldOf(name, string(p.Values[name].Reveal())))
	}
	return r.Show(valuePage, page.View{Title: "The value of " + path, Data: v})
}
