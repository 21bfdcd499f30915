// Package contain is the door at which people use the kill switch in a browser,
// also in that of a phone.
//
//	{issuer}/contain                         what is contained, and a form to contain more
//	{issuer}/contain/look                    what that would cover; it changes nothing
//	{issuer}/contain/now                     contain it
//	{issuer}/contain/done/ID                 a containment: its steps, and the time to zero
//	{issuer}/contain/done/ID/certificate     its signed certificate
//	{issuer}/contain/hold/ID                 a hold, and a form to have it lifted
//	{issuer}/contain/hold/ID/lift            ask for that
//
// Nothing is contained or lifted by a link: only forms do that, sent by POST from
// a page that said what would happen, in the same browser, by whoever is signed in
// there. The form is bound to the target and the reason that were shown, and is
// good once: sent again, it shows what has become of it.
//
// Containing is urgent and takes away only, so that whoever is signed in proves
// nothing again: a visit lasts twelve hours at most. To have a hold lifted wants
// somebody who showed a short while ago that it is they. What anybody may is for
// the guard alone to say.
//
// Every page works without a script.
package contain

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"net/http"
	"net/url"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/approval"
	"estover.dev/internal/edge"
	"estover.dev/internal/hold"
	"estover.dev/internal/incident"
	"estover.dev/internal/page"
)

//go:embed *.html
var files embed.FS

var (
	listPage = page.Parse(files, "list.html")
	lookPage = page.Parse(files, "look.html")
	donePage = page.Parse(files, "done.html")
	holdPage = page.Parse(files, "hold.html")
)

// Path is where the pages are, below the issuer of a tenant.
const Path = "/contain"

// Config is what the door needs of others.
type Config struct {
	Incidents *incident.Incidents
	Approvals *approval.Approvals
	Pages     *page.Pages
	Requests  string // the path of the pages on which people decide about requests

	// Find is a target that somebody names by name or id, by its id.
	Find func(ctx context.Context, caller estover.Caller, t incident.Target) (incident.Target, error)
	// May says whether policy would allow an action. It is asked for what a page
	// shows, and never for what is done.
	May func(ctx context.Context, caller estover.Caller, action, target string) (bool, error)
	// Name is what people call an agent, a resource or a person, or "".
	Name func(ctx context.Context, tenant estover.TenantID, t incident.Target) (string, error)
}

// A Door is where people contain.
type Door struct {
	Config
	refused *edge.Limiter // what policy denies, by person
}

// How often somebody may try what they may not.
const (
	refusedPerSecond, refusedAtOnce = 0.2, 20
)

// New is the door.
func New(c Config) *Door {
	return &Door{Config: c, refused: edge.NewLimiter(refusedPerSecond, refusedAtOnce, c.Pages.Now)}
}

// Mount adds the pages of all tenants to mux.
func (d *Door) Mount(mux *http.ServeMux) {
	const get, post = http.MethodGet, http.MethodPost
	for _, one := range []struct {
		at     string
		serve  func(*page.Request) error
		method string
	}{
		{"", d.list, get},
		{"/look", d.look, post},
		{"/now", d.now, post},
		{"/done/{id}", d.done, get},
		{"/done/{id}/certificate", d.certificate, get},
		{"/hold/{id}", d.hold, get},
		{"/hold/{id}/lift", d.lift, post},
	} {
		d.Pages.Handle(mux, Path+one.at, d.paced(one.serve), one.method)
	}
}

var errTooOften = &estover.Error{Kind: estover.TooMuch, Code: "too_many_attempts", Detail: "You have tried too often what you may not. Wait a minute."}

// paced counts what somebody tries who may not.
func (d *Door) paced(serve func(*page.Request) error) func(*page.Request) error {
	return func(r *page.Request) error {
		key := string(r.Tenant) + "/"
		if r.Visit != nil {
			key += r.Visit.Person.ID
		}
		if r.Visit != nil && d.refused.Exhausted(key) {
			return errTooOften
		}
		err := serve(r)
		if r.Visit != nil && estover.KindOf(err) == estover.Denied {
			d.refused.Allow(key)
		}
		return err
	}
}

// freshly is what having a hold lifted wants.
var freshly = page.Demand{Within: 10 * time.Minute}

// at is the path of a page of the door.
func at(r *page.Request, parts ...string) string {
	p := r.Path(Path)
	for _, part := range parts {
		p += "/" + url.PathEscape(part)
	}
	return p
}

// scopes are the kinds of targets, as the form offers them.
var scopes = []scopeView{
	{Value: incident.Agent, Words: "an agent"},
	{Value: hold.Blueprint, Words: "all agents of a blueprint"},
	{Value: hold.Person, Words: "all agents of a person"},
	{Value: hold.Resource, Words: "a resource: no agent reaches it"},
	{Value: hold.Tenant, Words: "all agents of an organisation"},
	{Value: hold.Everything, Words: "everything: all agents of all organisations"},
}

type scopeView struct {
	Value hold.Scope
	Words string
	On    bool
}

type listView struct {
	Seen     bool // whether the person sees what is contained
	Standing []standingView
	More     bool
	Form     formView
}

// A formView is the form by which somebody says what is to be contained.
type formView struct {
	Look, Word   string
	Scopes       []scopeView
	Name, Reason string
	Wrong        string
}

type standingView struct {
	incident.Standing
	What string // its kind and name
	Who  string
	At   string // its page
	Lift string // the page of the request to lift it, if one waits
}

// maxStanding bounds the holds that the page shows.
const maxStanding = 100

// list shows what is contained.
func (d *Door) list(r *page.Request) error {
	if !r.Demand(page.Demand{}, at(r)) {
		return nil
	}
	return d.start(r, http.StatusOK, formView{})
}

// start shows what is contained, and a form, with what was entered before and what
// was wrong about it.
func (d *Door) start(r *page.Request, status int, f formView) error {
	ctx, caller := r.Context(), r.Visit.Caller
	everything, err := d.May(ctx, caller, "tenant.contain", string(hold.Everything))
	if err != nil {
		return err
	}
	f.Look, f.Word = at(r, "look"), r.Form("look")
	on := selected(f.Scopes)
	f.Scopes = nil
	for _, s := range scopes {
		if s.Value != hold.Everything || everything {
			s.On = s.Value == on
			f.Scopes = append(f.Scopes, s)
		}
	}
	v := listView{Form: f}
	if v.Seen, err = d.May(ctx, caller, "containment.list", ""); err != nil {
		return err
	}
	if v.Seen {
		if err := d.standing(r, &v); err != nil {
			return err
		}
	}
	return r.Show(listPage, page.View{Title: "Contain", Data: v, Status: status})
}

func selected(all []scopeView) hold.Scope {
	for _, s := range all {
		if s.On {
			return s.Value
		}
	}
	return incident.Agent
}

// standing fills in the holds, the newest first.
func (d *Door) standing(r *page.Request, v *listView) error {
	all, err := d.Incidents.Standing(r.Context(), r.Visit.Caller)
	if err != nil {
		return err
	}
	waiting, err := d.waiting(r)
	if err != nil {
		return err
	}
	v.More = len(all) > maxStanding
	for i := len(all) - 1; i >= max(0, len(all)-maxStanding); i-- {
		s, err := d.shown(r, all[i], waiting)
		if err != nil {
			return err
		}
		v.Standing = append(v.Standing, s)
	}
	return nil
}

// waiting are the pages of the requests to lift a hold that wait, by hold.
func (d *Door) waiting(r *page.Request) (map[string]string, error) {
	all, _, err := d.Approvals.List(r.Context(), r.Visit.Caller, approval.Filter{Kind: approval.Lift, State: approval.Pending}, "", approval.MaxPage)
	if estover.KindOf(err) == estover.Denied {
		return nil, nil
	}
	waiting := map[string]string{}
	for _, q := range all {
		if id, ok := strings.CutPrefix(q.Target, "hold:"); ok {
			waiting[id] = r.Path(d.Requests + "/" + url.PathEscape(q.ID))
		}
	}
	return waiting, err
}

func (d *Door) shown(r *page.Request, h incident.Standing, waiting map[string]string) (v standingView, err error) {
	v = standingView{Standing: h, At: at(r, "hold", h.ID), Lift: waiting[h.ID]}
	if v.What, err = d.called(r, h.Target); err != nil {
		return v, err
	}
	v.Who, err = d.person(r, h.By)
	return v, err
}

// called is what people call a target: its kind and its name.
func (d *Door) called(r *page.Request, t incident.Target) (string, error) {
	if t.Scope == hold.Everything {
		return string(t.Scope), nil
	}
	name, err := d.Name(r.Context(), r.Tenant, t)
	if name == "" {
		name = t.ID
	}
	return string(t.Scope) + " " + name, err
}

// person is what people call whoever did something.
func (d *Door) person(r *page.Request, who estover.Subject) (name string, err error) {
	switch who.Kind() {
	case estover.UserKind:
		name, err = d.Name(r.Context(), r.Tenant, incident.Target{Scope: hold.Person, ID: who.ID()})
	case estover.AgentKind:
		name, err = d.Name(r.Context(), r.Tenant, incident.Target{Scope: incident.Agent, ID: who.ID()})
	}
	if name == "" {
		name = string(who)
	}
	return name, err
}

// purpose ties a form to a target and a reason.
func purpose(t incident.Target, reason string) string {
	sum := sha256.Sum256([]byte(t.String() + "\x00" + reason))
	return "contain " + hex.EncodeToString(sum[:])
}

type lookView struct {
	incident.Reach
	Target incident.Target
	What   string
	Reason string
	Now    string
	Word   string
	Back   string
}

// look shows what would be contained. It contains nothing.
func (d *Door) look(r *page.Request) error {
	if !r.Demand(page.Demand{}, at(r)) {
		return nil
	}
	form, err := r.Posted("look")
	if err != nil {
		return err
	}
	t := incident.Target{Scope: hold.Scope(form.Get("scope")), ID: strings.TrimSpace(form.Get("name"))}
	if t.Scope == hold.Everything {
		t.ID = ""
	}
	f := formView{Scopes: []scopeView{{Value: t.Scope, On: true}}, Name: t.ID, Reason: strings.TrimSpace(form.Get("reason"))}
	v, err := d.foresee(r, t, f.Reason)
	switch kind := estover.KindOf(err); {
	case err == nil:
		return r.Show(lookPage, page.View{Title: "Contain " + v.What + "?", Data: v})
	case kind == estover.Invalid || kind == estover.NotFound:
		sentence, _, status := r.Failure(err)
		f.Wrong = sentence
		return d.start(r, status, f)
	}
	return err
}

func (d *Door) foresee(r *page.Request, t incident.Target, reason string) (v lookView, err error) {
	if reason == "" || len(reason) > 500 {
		return v, incident.ErrReason
	}
	if t, err = d.Find(r.Context(), r.Visit.Caller, t); err != nil {
		return v, err
	}
	v = lookView{Target: t, Reason: reason, Now: at(r, "now"), Word: r.Form(purpose(t, reason)), Back: at(r)}
	if v.Reach, err = d.Incidents.Foresee(r.Context(), r.Visit.Caller, t); err != nil {
		return v, err
	}
	v.What, err = d.called(r, t)
	return v, err
}

// now contains what the form's page has shown.
func (d *Door) now(r *page.Request) error {
	if !r.Demand(page.Demand{}, at(r)) {
		return nil
	}
	if err := r.ParseForm(); err != nil {
		return page.ErrForm.Because(err)
	}
	t := incident.Target{Scope: hold.Scope(r.PostForm.Get("scope")), ID: r.PostForm.Get("target")}
	reason := r.PostForm.Get("reason")
	form, err := r.Posted(purpose(t, reason))
	if err != nil {
		return err
	}
	c, err := d.Incidents.ContainOnce(r.Context(), r.Visit.Caller, form.Number, t, reason)
	if err != nil && c.Hold == "" { // nothing is held
		return err
	}
	return d.result(r, c, err)
}

type doneView struct {
	incident.Containment
	What        string
	Who         string
	Zero        time.Duration
	Steps       []stepView
	Wrong       string // why it has not come to zero
	Certificate string // where it is, for those who may have it
	Again, List string
}

type stepView struct {
	incident.Step
	After time.Duration
}

// done shows a containment.
func (d *Door) done(r *page.Request) error {
	id := r.PathValue("id")
	if !r.Demand(page.Demand{}, at(r, "done", id)) {
		return nil
	}
	c, err := d.Incidents.Get(r.Context(), r.Visit.Caller, id)
	if err != nil {
		return err
	}
	return d.result(r, c, nil)
}

// result shows what has become of a containment, and what failed of it after it
// was held.
func (d *Door) result(r *page.Request, c incident.Containment, failed error) (err error) {
	v := doneView{Containment: c, Zero: time.Duration(c.ZeroMicros) * time.Microsecond, List: at(r)}
	for _, s := range c.Steps {
		v.Steps = append(v.Steps, stepView{s, time.Duration(s.Micros) * time.Microsecond})
	}
	status := http.StatusOK
	if failed != nil {
		v.Wrong, _, status = r.Failure(failed)
		edge.Again(r.Writer.Header(), status, failed)
	}
	if v.What, err = d.called(r, c.Target); err != nil {
		return err
	}
	if v.Who, err = d.person(r, c.By); err != nil {
		return err
	}
	may, err := d.May(r.Context(), r.Visit.Caller, "containment.read", "containment:"+c.ID)
	if err != nil {
		return err
	}
	if may {
		v.Again = at(r, "done", c.ID)
		if c.Event != "" {
			v.Certificate = at(r, "done", c.ID, "certificate")
		}
	}
	return r.Show(donePage, page.View{Title: "Contained: " + v.What, Data: v, Status: status})
}

// certificate gives the certificate of a containment.
func (d *Door) certificate(r *page.Request) error {
	id := r.PathValue("id")
	if !r.Demand(page.Demand{}, at(r, "done", id)) {
		return nil
	}
	b, err := d.Incidents.Certificate(r.Context(), r.Visit.Caller, id)
	if err != nil {
		return err
	}
	h := r.Writer.Header()
	h.Set("Content-Type", "application/x-ndjson")
	h.Set("Content-Disposition", `attachment; filename="`+id+`.estover-receipt"`)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	_, _ = r.Writer.Write(b) // the browser may be gone
	return nil
}

type holdView struct {
	standingView
	Action, Word, List string
}

// hold shows a hold, and a form to have it lifted.
func (d *Door) hold(r *page.Request) error {
	id := r.PathValue("id")
	if !r.Demand(freshly, at(r, "hold", id)) {
		return nil
	}
	h, err := d.Incidents.Hold(r.Context(), r.Visit.Caller, id)
	if err != nil {
		return err
	}
	waiting, err := d.waiting(r)
	if err != nil {
		return err
	}
	v := holdView{Action: at(r, "hold", id, "lift"), Word: r.Form("lift " + id), List: at(r)}
	if v.standingView, err = d.shown(r, h, waiting); err != nil {
		return err
	}
	return r.Show(holdPage, page.View{Title: "Let " + v.What + " go on?", Data: v})
}

// lift asks that a hold be lifted.
func (d *Door) lift(r *page.Request) error {
	id := r.PathValue("id")
	if !r.Demand(freshly, at(r, "hold", id)) {
		return nil
	}
	form, err := r.Posted("lift " + id)
	if err != nil {
		return err
	}
	l, err := d.Incidents.Lift(r.Context(), r.Visit.Caller, id, strings.TrimSpace(form.Get("reason")), true)
	if err != nil {
		return err
	}
	if l.State == incident.Asked {
		r.Go(r.Path(d.Requests + "/" + url.PathEscape(l.Request)))
		return nil
	}
	r.Go(at(r))
	return nil
}
