package oauth

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/detail"
	"estover.dev/internal/directory"
	"estover.dev/internal/page"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

//go:embed *.html
var files embed.FS

var (
	consentPage  = page.Parse(files, "consent.html")
	consentsPage = page.Parse(files, "consents.html")
)

// A Requester is what a person is told of an agent that asks them.
type Requester struct {
	ID      string
	Name    string
	Kind    string // its blueprint
	Team    string
	Sponsor string // the name of the person who answers for it

	// Of a client that is known by a URL, the host of that; of one that registered
	// itself, that it did. Of both: by what name it calls itself, and whether it has
	// people sent nowhere but to their own machine.
	Host, Calls string
	Itself      bool
	OnlyLocal   bool

	// Digest changes with anything that a person would want to be asked about
	// again: what is above, and where the agent has people sent.
	Digest string
}

// A consentView is the page that asks.
type consentView struct {
	Who     Requester
	Person  string
	To      string     // the host that the browser goes back to; "" where none does
	Local   bool       // that is the person's own machine
	Asked   *askedView // how the agent came to ask; nil for by the browser
	Purpose string
	Tells   []told // what the agent learns of the person
	SignIn  bool   // and that is all
	Reach   []reachView
	Details []detailView
	Once    bool // some of them let it do something, and are agreed to each time
	Until   time.Time
	Hours   int
	Action  string
	Form    string
	Request string
}

// An askedView is how an agent came to ask that has no browser.
type askedView struct {
	From string // its address
	At   time.Time
	Code string // that it shows; "" where it has named the person

	// Message is what the agent shows where it works, too.
	Message string
}

// A reachView is one resource with what could be done there.
type reachView struct {
	Host       string
	Resource   string // in full, where that says more than the host
	Operations []string
}

// A detailView is what one of the authorization details says.
type detailView struct {
	Title    string
	Confines bool // whether it only says of what is listed besides how far it goes
	Lines    []detail.Line
}

// details puts authorization details into words, all that they say. The words are
// those of the type, and what the client has written stands beside them as it is.
func (d *Door) details(ctx context.Context, tenant estover.TenantID, list detail.List) (all []detailView, err error) {
	if len(list) == 0 {
		return nil, nil
	}
	types, err := d.Tokens.DetailTypes.Of(ctx, tenant)
	if err != nil {
		return nil, err
	}
	for i := range list {
		v := detailView{Title: list[i].Type}
		if t := types[list[i].Type]; t != nil { // else the type is gone, and it says nothing any more
			v = detailView{t.Title, t.Confines, t.Words(&list[i])}
		}
		all = append(all, v)
	}
	return all, nil
}

// A told is one thing that an agent learns of a person.
type told struct {
	What  string
	Value string // "" where there is none, or none that would say anything
}

// tells puts into words what the scopes of OpenID Connect tell.
func tells(identity []string, p directory.Person) (all []told) {
	for _, one := range []struct{ scope, what, value string }{
		{token.OpenID, "That it is you each time, by an identifier that stays the same, and when and how you signed in", ""},
		{token.Profile, "Your name", p.Name},
		{token.Email, "Your email address", p.Email},
	} {
		if slices.Contains(identity, one.scope) {
			all = append(all, told{one.what, one.value})
		}
	}
	return all
}

// ask shows the person who wants what, and for how long.
func (d *Door) ask(r *page.Request, a *ask) error {
	who, err := d.who(r.Context(), r.Tenant, a.client)
	if err != nil {
		return d.refuse(r, a, err)
	}
	back, err := url.Parse(a.redirect)
	if err != nil {
		return err
	}
	v, err := d.question(r, a, who)
	if err != nil {
		return d.refuse(r, a, err)
	}
	v.To, v.Local = back.Host, back.Scheme == "http"
	v.Action, v.Form, v.Request = r.Path(consentPath), r.Form(decisionOn(a.query, who, a)), a.query
	return r.Show(consentPage, page.View{Title: v.title(), Data: v, FormsTo: back.Scheme + "://" + back.Host})
}

// question is what a person is asked, wherever the answer goes.
func (d *Door) question(r *page.Request, a *ask, who Requester) (consentView, error) {
	reach := d.views(r.Tenant, a.reach)
	details, err := d.details(r.Context(), r.Tenant, a.details)
	return consentView{
		Who: who, Person: r.Visit.Person.Name, Purpose: a.purpose, Reach: reach, Details: details,
		Once:  slices.ContainsFunc(details, func(v detailView) bool { return !v.Confines }),
		Tells: tells(a.identity, r.Visit.Person), SignIn: a.identity != nil && reach == nil && details == nil,
		Until: r.Now().Add(session.LongestLife), Hours: int(session.LongestLife / time.Hour),
	}, err
}

// title is the question in a few words.
func (v *consentView) title() string {
	if v.SignIn {
		return "Sign in to " + v.Who.Name + "?"
	}
	return "Let " + v.Who.Name + " act for you?"
}

// views are what could be done at resources. We are none of them.
func (d *Door) views(tenant estover.TenantID, reach token.Reach) (all []reachView) {
	for _, name := range reach.Resources() {
		if name == d.Tokens.Issuer.Of(tenant) {
			continue
		}
		v := reachView{Host: name, Operations: reach[name]}
		if u, err := url.Parse(name); err == nil && u.Host != "" {
			v.Host = u.Host
			if u.Path != "" || u.RawQuery != "" || u.Scheme != "https" {
				v.Resource = name
			}
		}
		all = append(all, v)
	}
	return all
}

// onceOf is the answer of the person who is signed in, as it is used up.
func onceOf(r *page.Request, form page.Posted) token.Used {
	return token.Used{By: string(r.Visit.Caller.Subject) + " consent", Name: form.Number, Expires: form.Expires}
}

// consentOf ties the answer of a person to the request that they were shown.
func consentOf(query string) string {
	sum := sha256.Sum256([]byte(query))
	return "consent " + hex.EncodeToString(sum[:])
}

// consented takes the answer of a person. It is good once, from the page that
// asked, by whoever is signed in there.
func (d *Door) consented(r *page.Request) error {
	if err := r.ParseForm(); err != nil {
		return page.ErrForm.Because(err)
	}
	a, err := d.asked(r.Context(), r.Tenant, r.PostForm.Get("request"))
	if err != nil {
		return d.refuse(r, a, err)
	}
	who, err := d.who(r.Context(), r.Tenant, a.client)
	if err != nil {
		return d.refuse(r, a, err)
	}
	form, err := r.Posted(decisionOn(a.query, who, a))
	if err != nil {
		return err
	}
	if !r.Demand(agreeing, r.Path(authorizePath)+"?"+a.query) {
		return nil
	}
	if form.Get("decision") == "allow" {
		return d.complete(r, a, &form)
	}
	no := d.authorization(r, a, who)
	no.Form = onceOf(r, form)
	err = d.Tokens.Decline(r.Context(), no)
	switch {
	case errors.Is(err, token.ErrFormUsed), errors.Is(err, token.ErrPushed):
		return err // the client has its answer already, or another one
	case err != nil:
		return d.refuse(r, a, err)
	}
	return d.refuse(r, a, errDenied)
}

// consents shows a person the agents that act for them, and ends it.
func (d *Door) consents(r *page.Request) error {
	at := r.Path(ConsentsPath)
	if !r.Demand(page.Demand{}, at) {
		return nil
	}
	if r.Method == http.MethodPost {
		form, err := r.Posted("end consent")
		if err != nil {
			return err
		}
		if err := d.Tokens.EndConsent(r.Context(), r.Visit.Caller, form.Get("id")); err != nil {
			return err
		}
		r.Go(at)
		return nil
	}
	kept, err := d.Tokens.Consents(r.Context(), r.Visit.Caller)
	if err != nil {
		return err
	}
	v := consentsView{Device: r.Path(DevicePage), Action: at, Form: r.Form("end consent")}
	for _, c := range kept {
		who, err := d.Requester(r.Context(), r.Tenant, c.Client)
		switch {
		case estover.KindOf(err) == estover.NotFound && err != nil:
			who = Requester{ID: c.Client, Name: c.Client}
		case err != nil:
			return err
		}
		details, err := d.details(r.Context(), r.Tenant, c.Details)
		if err != nil {
			return err
		}
		v.Kept = append(v.Kept, keptView{
			Details: details, ID: c.ID, Who: who, Reach: d.views(r.Tenant, c.Reach), Since: c.Created,
			Again: c.Redirect == token.Device || c.Redirect == token.Backchannel, Tells: tells(c.Reach[d.Tokens.Issuer.Of(r.Tenant)], directory.Person{}),
		})
	}
	return r.Show(consentsPage, page.View{Title: "Agents that act for you", Data: v})
}

type consentsView struct {
	Kept         []keptView
	Action, Form string
	Device       string // where agents without a browser are let in
}

type keptView struct {
	ID      string
	Who     Requester
	Tells   []told
	Reach   []reachView
	Details []detailView
	Since   time.Time
	Again   bool // whether it asks anew each time
}

// encode writes a form as it stands in a query.
func (f form) encode() string {
	var b strings.Builder
	for i, p := range f {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(url.QueryEscape(p.name) + "=" + url.QueryEscape(p.value))
	}
	return b.String()
}

// without is a form without the parameters of these names.
func (f form) without(names ...string) form {
	kept := make(form, 0, len(f))
next:
	for _, p := range f {
		for _, n := range names {
			if p.name == n {
				continue next
			}
		}
		kept = append(kept, p)
	}
	return kept
}
