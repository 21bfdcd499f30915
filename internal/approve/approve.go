// Package approve is the door at which people decide about requests in a browser,
// also in that of a phone.
//
//	{issuer}/approve               what waits for whoever is signed in
//	{issuer}/approve/ID            one request: who asks, for what, and the document
//	{issuer}/approve/ID?for=…      the same, narrower: another document
//	{issuer}/approve/ID/yes        approve, without a signature
//	{issuer}/approve/ID/sign       approve, signed by a passkey
//	{issuer}/approve/ID/no         deny
//
// A link to a request is sent around, so to open it does nothing, however often
// and by whomever it is opened: only forms decide, sent by POST from the page that
// showed the document, in the same browser, by whoever is signed in there. The
// form is bound to the document's digest. If something else is on the table by
// then, nothing is approved.
//
// What a passkey signs is the digest of the bytes that the page shows. Nothing is
// asked of a script but that: every page works without one.
package approve

import (
	"context"
	"embed"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/approval"
	"estover.dev/internal/approval/document"
	"estover.dev/internal/edge"
	"estover.dev/internal/page"
)

//go:embed *.html
var files embed.FS

var (
	requestPage = page.Parse(files, "request.html")
	listPage    = page.Parse(files, "list.html")
)

// Path is where the pages are, below the issuer of a tenant.
const Path = "/approve"

// Config is what the door needs of others.
type Config struct {
	Approvals *approval.Approvals
	Pages     *page.Pages

	// Signing are the options, as JSON, with which a passkey of the person who is
	// signed in signs a document. Signed checks its answer.
	Signing func(r *page.Request, text []byte) (string, error)
	Signed  func(r *page.Request, text []byte, answer string) (document.Assertion, error)

	// Agent is what people are told of an agent.
	Agent func(ctx context.Context, tenant estover.TenantID, id string) (Agent, error)
	// Name is what somebody is called, or "".
	Name func(ctx context.Context, tenant estover.TenantID, who estover.Subject) (string, error)
}

// An Agent is what people are told of an agent for which something is asked.
type Agent struct {
	Name, Kind, Team string
	Sponsor          string // the name of the person who answers for it
}

// A Door is where people decide.
type Door struct {
	Config
	votes *edge.Limiter // that fail, by person
}

// How often a decision may fail, of one person.
const (
	failuresPerSecond, failuresAtOnce = 0.2, 20
)

// New is the door.
func New(c Config) *Door {
	return &Door{Config: c, votes: edge.NewLimiter(failuresPerSecond, failuresAtOnce, c.Pages.Now)}
}

// Mount adds the pages of all tenants to mux.
func (d *Door) Mount(mux *http.ServeMux) {
	const get, post = http.MethodGet, http.MethodPost
	d.Pages.Handle(mux, Path, d.list, get)
	d.Pages.Handle(mux, Path+"/{id}", d.show, get)
	d.Pages.Handle(mux, Path+"/{id}/yes", d.yes, post)
	d.Pages.Handle(mux, Path+"/{id}/sign", d.sign, post)
	d.Pages.Handle(mux, Path+"/{id}/no", d.no, post)
}

// errTooOften is returned to somebody whose decisions keep failing.
var errTooOften = &estover.Error{Kind: estover.TooMuch, Code: "too_many_attempts", Detail: "Too many of your decisions have failed. Wait a minute, and load the page again."}

// at is the path of a request's page.
func at(r *page.Request, id string) string { return r.Path(Path + "/" + url.PathEscape(id)) }

// here is the path and query that a browser has asked for, to come back to.
func here(r *page.Request, id string) string {
	if r.URL.RawQuery == "" {
		return at(r, id)
	}
	return at(r, id) + "?" + r.URL.Query().Encode()
}

// maxWaiting bounds the requests of the list. Whoever has more decides some first.
const maxWaiting = 50

// list shows what waits for whoever is signed in.
func (d *Door) list(r *page.Request) error {
	if !r.Demand(page.Demand{}, r.Path(Path)) {
		return nil
	}
	caller := r.Visit.Caller
	all, _, err := d.Approvals.List(r.Context(), caller, approval.Filter{State: approval.Pending}, "", approval.MaxPage)
	if err != nil {
		return err
	}
	var v listView
	for _, q := range all {
		why, err := d.Approvals.Why(r.Context(), caller, q.ID)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(why.May, func(w approval.Who) bool { return w.Person == r.Visit.Person.ID }) {
			continue
		}
		if len(v.Waiting) == maxWaiting {
			v.More = true
			break
		}
		v.Waiting = append(v.Waiting, lineView{At: at(r, q.ID), Request: q, Agent: nameOf(q), Items: itemsOf(q.Offer.Items), Missing: why.Missing})
	}
	return r.Show(listPage, page.View{Title: "Waiting for you", Data: v})
}

type listView struct {
	Waiting []lineView
	More    bool
}

type lineView struct {
	At      string
	Request approval.Request
	Agent   string
	Items   []itemView
	Missing int64
}

// nameOf is what people call the agent of a request.
func nameOf(q approval.Request) string {
	if q.AgentName != "" {
		return q.AgentName
	}
	return q.Agent
}

// An itemView is one thing that is asked for.
type itemView struct {
	Name       string
	Class      estover.Class
	Actions    []actionView
	Parameters []paramView
}

type actionView struct {
	Name  string
	Value string // of its box, when it is chosen
	On    bool
}

type paramView struct {
	Name   string
	Values []string
}

func itemsOf(items []approval.Item) (all []itemView) {
	for i, it := range items {
		v := itemView{Name: it.Name, Class: it.Class}
		if v.Name == "" {
			v.Name = it.Resource
		}
		for _, a := range it.Actions {
			v.Actions = append(v.Actions, actionView{Name: a, Value: strconv.Itoa(i) + "/" + a})
		}
		for _, name := range slices.Sorted(maps.Keys(it.Parameters)) {
			v.Parameters = append(v.Parameters, paramView{name, it.Parameters[name]})
		}
		all = append(all, v)
	}
	return all
}

// A chosen is what is left of what is on the table, as a query and a form say it:
// "only" the boxes of actions, "for" so many seconds.
type chosen struct {
	only []string
	life int64
}

var errChoice = &estover.Error{Kind: estover.Invalid, Code: "choice_invalid", Detail: "This is no choice among what was asked for. Load the page of the request again."}

func readChosen(only []string, life string) (c chosen, err error) {
	for _, one := range only {
		for _, box := range strings.Split(one, ",") {
			if box != "" && !slices.Contains(c.only, box) {
				c.only = append(c.only, box)
			}
		}
	}
	if len(c.only) > 500 {
		return c, errChoice
	}
	if life != "" {
		if c.life, err = strconv.ParseInt(life, 10, 64); err != nil || c.life < 0 {
			return c, errChoice
		}
	}
	return c, nil
}

// of is the choice, of what is on the table.
func (c chosen) of(offer approval.Granted) (approval.Choice, error) {
	var out approval.Choice
	if c.life > 0 && c.life < offer.Seconds {
		out.For = time.Duration(c.life) * time.Second
	}
	if len(c.only) == 0 {
		return out, nil
	}
	found, all := 0, 0
	for i, it := range offer.Items {
		var actions []string
		for _, a := range it.Actions {
			all++
			if slices.Contains(c.only, strconv.Itoa(i)+"/"+a) {
				actions, found = append(actions, a), found+1
			}
		}
		if len(actions) > 0 {
			out.Narrow = append(out.Narrow, approval.Item{Resource: it.Resource, Actions: actions, Class: it.Class, Parameters: it.Parameters})
		}
	}
	if found != len(c.only) {
		return out, errChoice
	}
	if found == all {
		out.Narrow = nil
	}
	return out, nil
}

// purpose ties a form to a request, the document that was shown and what of it was
// chosen.
func purpose(what, id string, text []byte) string {
	digest := document.Digest(text)
	return what + " request " + id + " " + hex.EncodeToString(digest[:])
}

// A requestView is the page of a request.
type requestView struct {
	Request  approval.Request
	Pending  bool
	State    string
	Agent    Agent
	Asked    string // who asked
	Chain    []string
	Items    []itemView // of what is on the table
	Context  []paramView
	Args     []paramView
	Budgets  []paramView
	Lives    []lifeView
	Length   string // for how long, in words
	Heard    []string
	Missing  int64
	May      bool   // the person may decide
	Not      string // why they may not
	Risk     approval.Risk
	Text     string // the document
	Words    string
	Narrow   bool // less than what is on the table
	Narrower bool // could be chosen
	Signed   bool
	Options  string // for the passkey; "" if there is none
	NoKey    string // why there is none
	Form     map[string]string
	Digest   string
	Only     string
	For      string
	At       string // the page
	All      string // the page of the list
	Recent   []recentView
	Before   recentCount
}

type lifeView struct {
	Seconds int64
	Words   string
	On      bool
}

type recentView struct {
	At    string
	What  string
	State string
	When  time.Time
}

type recentCount struct{ Asked, Approved, Denied int }

// recently is how far back the page looks at what was asked for the same agent.
const recently = 7 * 24 * time.Hour

// maxRecent bounds what it shows of that.
const maxRecent = 5

// show shows a request. It decides nothing.
func (d *Door) show(r *page.Request) error {
	id := r.PathValue("id")
	if !r.Demand(page.Demand{}, here(r, id)) {
		return nil
	}
	ctx, caller := r.Context(), r.Visit.Caller
	why, err := d.Approvals.Why(ctx, caller, id)
	if err != nil {
		return err
	}
	q := why.Request
	v := requestView{
		Request: q, Pending: q.State == approval.Pending, State: string(q.State), Missing: why.Missing, Signed: q.Rule.Signed, Text: string(q.Document),
		At: at(r, id), All: r.Path(Path), Items: itemsOf(q.Offer.Items), Length: words(time.Duration(q.Offer.Seconds) * time.Second), Risk: q.Risk,
		Context: pairs(q.Context), Args: pairs(q.Arguments), Budgets: budgets(q.Offer.Budgets),
	}
	v.May = slices.ContainsFunc(why.May, func(w approval.Who) bool { return w.Person == r.Visit.Person.ID })
	if !v.May {
		v.Not = why.You
	}
	for _, h := range why.Heard {
		v.Heard = append(v.Heard, h.Name)
	}
	if v.Asked, err = d.called(ctx, r.Tenant, q.Requester); err != nil {
		return err
	}
	for _, who := range q.Chain {
		name, err := d.called(ctx, r.Tenant, who)
		if err != nil {
			return err
		}
		v.Chain = append(v.Chain, name)
	}
	if q.Agent != "" {
		if v.Agent, err = d.Agent(ctx, r.Tenant, q.Agent); err != nil && estover.KindOf(err) != estover.NotFound {
			return err
		}
		if err := d.recent(r, &v); err != nil {
			return err
		}
	}
	if v.Pending && v.May {
		if err := d.decide(r, &v); err != nil {
			return err
		}
	}
	v.Words = document.Fingerprint([]byte(v.Text))
	title := "A request to " + string(q.Kind)
	if q.Kind == approval.Access {
		title = nameOf(q) + " asks for more"
	}
	return r.Show(requestPage, page.View{Title: title, Data: v})
}

// decide fills in what a person needs who may decide: what is chosen, its
// document, and forms.
func (d *Door) decide(r *page.Request, v *requestView) error {
	query := r.URL.Query()
	c, err := readChosen(query["only"], query.Get("for"))
	if err != nil {
		return err
	}
	if query.Has("some") && len(c.only) == 0 {
		return errChoice.With("Choose at least one action, or deny the request.")
	}
	choice, err := c.of(v.Request.Offer)
	if err != nil {
		return err
	}
	text, risk, err := d.Approvals.Preview(r.Context(), r.Visit.Caller, v.Request.ID, choice)
	if err != nil {
		return err
	}
	v.Narrow = string(text) != v.Text
	v.Text, v.Only, v.Risk = string(text), strings.Join(c.only, ","), risk
	if choice.For > 0 {
		v.For, v.Length = strconv.FormatInt(c.life, 10), words(choice.For)
	}
	for i := range v.Items {
		for j := range v.Items[i].Actions {
			a := &v.Items[i].Actions[j]
			a.On = len(c.only) == 0 || slices.Contains(c.only, a.Value)
		}
	}
	if v.Request.Kind == approval.Access {
		v.Narrower = true
		for _, life := range []time.Duration{5 * time.Minute, 15 * time.Minute, time.Hour, 4 * time.Hour, 8 * time.Hour} {
			if seconds := int64(life / time.Second); seconds < v.Request.Offer.Seconds {
				v.Lives = append(v.Lives, lifeView{seconds, words(life), seconds == c.life})
			}
		}
	}
	id := v.Request.ID
	v.Form = map[string]string{
		"yes": r.Form(purpose("approve", id, text)), "sign": r.Form(purpose("sign", id, text)), "no": r.Form(purpose("deny", id, v.Request.Document)),
	}
	digest := document.Digest(text)
	v.Digest = hex.EncodeToString(digest[:])
	if v.Signed {
		options, err := d.Signing(r, text)
		switch kind := estover.KindOf(err); {
		case err == nil:
			v.Options = options
		case kind == estover.Denied || kind == estover.Unavailable || kind == estover.Unknown:
			v.NoKey, _, _ = r.Failure(err)
		default:
			return err
		}
	}
	return nil
}

// recent looks at what was asked for the same agent in the last days.
func (d *Door) recent(r *page.Request, v *requestView) error {
	all, _, err := d.Approvals.List(r.Context(), r.Visit.Caller, approval.Filter{Agent: v.Request.Agent}, "", approval.MaxPage)
	if err != nil {
		return err
	}
	for _, q := range all {
		if q.ID == v.Request.ID || r.Now().Sub(q.CreatedAt) > recently {
			continue
		}
		v.Before.Asked++
		switch q.State {
		case approval.Approved:
			v.Before.Approved++
		case approval.Denied:
			v.Before.Denied++
		}
		if len(v.Recent) < maxRecent {
			v.Recent = append(v.Recent, recentView{At: at(r, q.ID), What: summary(q), State: string(q.State), When: q.CreatedAt})
		}
	}
	return nil
}

// summary is what a request asks for, in a line.
func summary(q approval.Request) string {
	if q.Kind != approval.Access {
		return string(q.Kind) + " " + q.Target
	}
	var parts []string
	for _, it := range itemsOf(q.Offer.Items) {
		for _, a := range it.Actions {
			parts = append(parts, a.Name+" on "+it.Name)
		}
	}
	if len(parts) > 3 {
		parts = append(parts[:3], "and "+strconv.Itoa(len(parts)-3)+" more")
	}
	return strings.Join(parts, ", ")
}

// called is what somebody is called.
func (d *Door) called(ctx context.Context, tenant estover.TenantID, who estover.Subject) (string, error) {
	name, err := d.Name(ctx, tenant, who)
	if name == "" {
		name = string(who)
	}
	return name, err
}

func pairs(m map[string]string) (all []paramView) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		all = append(all, paramView{name, []string{m[name]}})
	}
	return all
}

// budgets are limits in words.
func budgets(b approval.Budgets) (all []paramView) {
	for _, one := range []struct {
		name string
		most int64
	}{
		{"calls", b.Calls},
		{"rows", b.Rows},
		{"records of personal data", b.Records},
		{"bytes of answers", b.BytesOut},
		{"millionths of the currency unit", b.Money},
		{"seconds of calls", b.Seconds},
		{"agents at once that it is handed on to", b.FanOut},
	} {
		if one.most > 0 {
			all = append(all, paramView{one.name, []string{strconv.FormatInt(one.most, 10)}})
		}
	}
	return all
}

// words is a length of time as people say it.
func words(d time.Duration) string {
	var parts []string
	for _, u := range []struct {
		unit time.Duration
		one  string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		if n := d / u.unit; n > 0 {
			word := strconv.FormatInt(int64(n), 10) + " " + u.one
			if n > 1 {
				word += "s"
			}
			parts, d = append(parts, word), d%u.unit
		}
	}
	return strings.Join(parts, " ")
}

// deciding reads a form by which somebody decides: from the page that showed the
// document with this digest, to whoever is signed in. It reports false when the
// browser was sent to sign in.
func (d *Door) deciding(r *page.Request, what string) (id string, form page.Posted, c approval.Choice, text []byte, ok bool, err error) {
	id = r.PathValue("id")
	if !r.Demand(page.Demand{}, at(r, id)) {
		return id, form, c, nil, false, nil
	}
	if d.votes.Exhausted(string(r.Tenant) + "/" + r.Visit.Person.ID) {
		return id, form, c, nil, false, errTooOften
	}
	if err := r.ParseForm(); err != nil {
		return id, form, c, nil, false, page.ErrForm.Because(err)
	}
	q, err := d.Approvals.Get(r.Context(), r.Visit.Caller, id)
	if err != nil {
		return id, form, c, nil, false, err
	}
	if q.State != approval.Pending {
		return id, form, c, nil, false, approval.ErrNotPending.With("The request is %s.", q.State)
	}
	text = q.Document
	if what != "deny" {
		chosen, err := readChosen([]string{r.PostForm.Get("only")}, r.PostForm.Get("for"))
		if err != nil {
			return id, form, c, nil, false, err
		}
		if c, err = chosen.of(q.Offer); err != nil {
			return id, form, c, nil, false, err
		}
		if text, _, err = d.Approvals.Preview(r.Context(), r.Visit.Caller, id, c); err != nil {
			return id, form, c, nil, false, err
		}
		digest := document.Digest(text)
		if r.PostForm.Get("digest") != hex.EncodeToString(digest[:]) {
			return id, form, c, nil, false, approval.ErrChanged
		}
		c.Digest = digest[:]
	}
	if form, err = r.Posted(purpose(what, id, text)); err != nil {
		return id, form, c, nil, false, err
	}
	c.Note = strings.TrimSpace(form.Get("note"))
	return id, form, c, text, true, nil
}

// failed counts a decision that was refused.
func (d *Door) failed(r *page.Request, err error) error {
	if r.Visit != nil && estover.KindOf(err) == estover.Denied {
		d.votes.Allow(string(r.Tenant) + "/" + r.Visit.Person.ID)
	}
	return err
}

// yes approves without a signature.
func (d *Door) yes(r *page.Request) error {
	id, _, c, _, ok, err := d.deciding(r, "approve")
	if !ok {
		return d.failed(r, err)
	}
	if _, err := d.Approvals.Approve(r.Context(), r.Visit.Caller, id, c); err != nil {
		return d.failed(r, err)
	}
	r.Go(at(r, id))
	return nil
}

// no denies.
func (d *Door) no(r *page.Request) error {
	id, _, c, _, ok, err := d.deciding(r, "deny")
	if !ok {
		return d.failed(r, err)
	}
	if _, err := d.Approvals.Deny(r.Context(), r.Visit.Caller, id, c.Note); err != nil {
		return d.failed(r, err)
	}
	r.Go(at(r, id))
	return nil
}

// sign approves with the signature of a passkey. It is asked by the script of the
// page, which is told where to go or what went wrong.
func (d *Door) sign(r *page.Request) error {
	to, err := d.signed(r)
	if err == nil && to == "" {
		return nil
	}
	r.Writer.Header().Set("Cache-Control", "no-store")
	r.Writer.Header().Set("Content-Type", "application/json")
	told := map[string]string{"to": to}
	if err != nil {
		err = d.failed(r, err)
		sentence, _, status := r.Failure(err)
		edge.Again(r.Writer.Header(), status, err)
		r.Writer.WriteHeader(status)
		told = map[string]string{"error": sentence}
	}
	return json.NewEncoder(r.Writer).Encode(told)
}

func (d *Door) signed(r *page.Request) (to string, err error) {
	id, form, c, text, ok, err := d.deciding(r, "sign")
	if !ok {
		return "", err
	}
	a, err := d.Signed(r, text, form.Get("answer"))
	if err != nil {
		return "", err
	}
	c.Assertion = document.Encode(a)
	if _, err := d.Approvals.Approve(r.Context(), r.Visit.Caller, id, c); err != nil {
		return "", err
	}
	return at(r, id), nil
}
