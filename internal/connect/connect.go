// Package connect is the door at which people authorize connections to upstreams
// in a browser.
//
//	{issuer}/connections/NAME          a connection: how it is, and a form to authorize it
//	{issuer}/connections/NAME/begin    begin; it leads to the provider
//	{issuer}/connections/NAME/back     where the provider sends people back to
//
// Nothing is begun by a link: only the form does that, sent by POST from the page
// that says to whom one goes and for what, by whoever is signed in there. What comes
// back is taken from the same person in the same tenant, once, within ten minutes.
//
// Every page works without a script.
package connect

import (
	"embed"
	"errors"
	"net/http"
	"net/url"

	"estover.dev"
	"estover.dev/internal/page"
	"estover.dev/internal/secret/connection"
)

//go:embed *.html
var files embed.FS

var (
	showPage  = page.Parse(files, "show.html")
	leavePage = page.Parse(files, "leave.html")
)

// Path is where the pages are, below the issuer of a tenant.
const Path = "/connections"

// A Door is where people authorize connections.
type Door struct {
	Connections *connection.Connections
	Pages       *page.Pages
}

// Mount adds the pages of all tenants to mux.
func (d *Door) Mount(mux *http.ServeMux) {
	d.Pages.Handle(mux, Path+"/{name}", d.show, http.MethodGet)
	d.Pages.Handle(mux, Path+"/{name}/begin", d.begin, http.MethodPost)
	d.Pages.Handle(mux, Path+"/{name}/back", d.back, http.MethodGet)
}

// at is the path of a page of a connection.
func at(r *page.Request, more string) string {
	return r.Path(Path + "/" + url.PathEscape(r.PathValue("name")) + more)
}

type showView struct {
	connection.Connection
	Person      bool // whether a person authorizes it
	Begin, Word string
	Wrong       string
}

// show shows a connection.
func (d *Door) show(r *page.Request) error {
	if !r.Demand(page.Demand{}, at(r, "")) {
		return nil
	}
	c, err := d.Connections.Get(r.Context(), r.Visit.Caller, r.PathValue("name"))
	if err != nil {
		return err
	}
	return d.shown(r, c, http.StatusOK, "")
}

func (d *Door) shown(r *page.Request, c connection.Connection, status int, wrong string) error {
	v := showView{Connection: c, Person: c.Grant == connection.AuthorizationCode, Begin: at(r, "/begin"), Word: r.Form("connection " + c.ID), Wrong: wrong}
	return r.Show(showPage, page.View{Title: "Connection " + c.Name, Data: v, Status: status})
}

// begin begins an authorization, and shows where it leads.
func (d *Door) begin(r *page.Request) error {
	if !r.Demand(page.Demand{}, at(r, "")) {
		return nil
	}
	c, err := d.Connections.Get(r.Context(), r.Visit.Caller, r.PathValue("name"))
	if err != nil {
		return err
	}
	if _, err := r.Posted("connection " + c.ID); err != nil {
		return err
	}
	to, err := d.Connections.Begin(r.Context(), r.Visit.Caller, c.Name)
	if err != nil {
		return d.failed(r, c, err)
	}
	u, err := url.Parse(to)
	if err != nil {
		return err
	}
	return r.Show(leavePage, page.View{Title: "Go on to " + u.Host, Data: struct{ To, Host, Name string }{to, u.Host, c.Name}})
}

// back takes what the provider sent somebody back with.
func (d *Door) back(r *page.Request) error {
	if !r.Demand(page.Demand{}, at(r, "/back")+"?"+r.URL.RawQuery) {
		return nil
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return connection.ErrVisit
	}
	c, err := d.Connections.Complete(r.Context(), r.Visit.Caller, r.PathValue("name"), q)
	if err != nil && c.ID != "" && estover.KindOf(err) == estover.Unavailable {
		return d.failed(r, c, err)
	}
	if err != nil {
		return err
	}
	r.Go(at(r, "")) // so that the code is not in the address any more
	return nil
}

// failed shows a connection with what went wrong at its provider.
func (d *Door) failed(r *page.Request, c connection.Connection, err error) error {
	if estover.KindOf(err) != estover.Unavailable {
		return err
	}
	wrong := err.Error()
	var known *estover.Error
	if errors.As(err, &known) {
		wrong = known.Detail
	}
	return d.shown(r, c, http.StatusBadGateway, wrong)
}
