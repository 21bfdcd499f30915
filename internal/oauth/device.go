package oauth

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/page"
	"estover.dev/internal/token"
)

// The paths of clients that have no browser, and of the people who decide.
const (
	devicePath   = "/oauth/device"
	decisionPath = "/device/decision"

	// DevicePage is the page on which people type the code that such a client
	// shows, below the issuer.
	DevicePage = "/device"
)

// How often a code may be typed, right or wrong: with 20⁸ codes of which few are
// good for ten minutes, nobody finds one (RFC 8628, section 5.1). And how often
// clients that do not authenticate may ask for one.
const (
	guessesPerSecond, guessesAtOnce     = 1. / 30, 10 // a person
	guessedPerSecond, guessedAtOnce     = 0.5, 50     // an address
	strangersPerSecond, strangersAtOnce = 0.5, 30     // an address
)

var (
	errCodes   = &estover.Error{Kind: estover.TooMuch, Code: "too_many_codes", Detail: "Too many codes were typed. Wait a minute."}
	errDevices = errTooOften.With("Too many codes were asked for from this address. Wait a moment.")
)

// letters are those of a user code: no vowels, so that it is no word, and no
// digits, so that it can be read out (RFC 8628, section 6.1).
const (
	letters    = "BCDFGHJKLMNPQRSTVWXZ"
	codeLength = 8
)

// newUserCode is a code that nobody can guess in the time that it is good.
func newUserCode() string {
	code := make([]byte, 0, codeLength)
	for len(code) < codeLength {
		var b [1]byte
		_, _ = rand.Read(b[:])                          // never fails
		if b[0] < byte(256/len(letters)*len(letters)) { // so that each letter is as likely
			code = append(code, letters[int(b[0])%len(letters)])
		}
	}
	return string(code)
}

// spelled is a user code as it is shown.
func spelled(code string) string { return code[:codeLength/2] + "-" + code[codeLength/2:] }

// userCode reads what a person typed: capitals and whatever stands between the
// letters do not matter. "" is no code.
func userCode(typed string) string {
	if len(typed) > 40 {
		return ""
	}
	code := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case r == '-', r == ' ', r == '.', r == '_', r == '\t', r == '–', r == '\u00a0':
			return -1
		}
		return r
	}, typed)
	if len(code) != codeLength || strings.Trim(code, letters) != "" {
		return ""
	}
	return code
}

// codeHash is what is kept of a user code. It is too short for a hash alone:
// whoever had the database would find it.
func (d *Door) codeHash(tenant estover.TenantID, code string) []byte {
	return d.Pages.MAC(tenant, []byte("user code\x00"+code))
}

// device gives a client a code that a person types, and another that it asks
// with (RFC 8628, section 3.1).
func (d *Door) device(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) {
	body, err := d.showable(w, r, tenant)
	if err != nil {
		d.fail(w, r, err)
		return
	}
	answer(w, http.StatusOK, jsonType, body)
}

// waitingFields are the parameters that say what a client asks for.
var waitingFields = []string{"scope", "resource", "purpose", "authorization_details"}

// only is a form with the parameters of these names alone.
func (f form) only(names ...string) (kept form) {
	for _, p := range f {
		if slices.Contains(names, p.name) {
			kept = append(kept, p)
		}
	}
	return kept
}

func (d *Door) showable(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) ([]byte, error) {
	a, f, err := d.apart(w, r, tenant)
	if err != nil {
		return nil, err
	}
	if a.method == token.Public && !d.strangers.Allow(edge.AddressKey(a.caller.Address)) {
		return nil, errDevices
	}
	waiting, err := d.wanted(r.Context(), a, token.Device, f.only(waitingFields...))
	if err != nil {
		return nil, err
	}
	for range 4 {
		code := newUserCode()
		value, err := d.Tokens.Wait(r.Context(), tenant, waiting, a.caller.Address, d.codeHash(tenant, code), token.DeviceLife)
		if errors.Is(err, token.ErrCodeTaken) {
			continue
		}
		if err != nil {
			return nil, err
		}
		at := d.Tokens.Issuer.Of(tenant) + DevicePage
		return json.Marshal(struct {
			DeviceCode string `json:"device_code"`
			UserCode   string `json:"user_code"`
			URI        string `json:"verification_uri"`
			Complete   string `json:"verification_uri_complete"`
			Expires    int    `json:"expires_in"`
			Interval   int    `json:"interval"`
		}{value, spelled(code), at, at + "?user_code=" + spelled(code), int(token.DeviceLife.Seconds()), int(token.PollInterval.Seconds())})
	}
	return nil, token.ErrBusy
}

// wanted checks what a client asks for as it will be when a person decides, but
// for the person.
func (d *Door) wanted(ctx context.Context, a authenticated, kind string, f form) (token.Waiting, error) {
	if !a.client.May(kind) || a.method == token.Public && !grantTypes[kind].public {
		return token.Waiting{}, errMayNot
	}
	w := token.Waiting{Kind: kind, Client: a.client.ID, Request: f.encode(), Key: a.confirm.Key}
	_, err := d.waitingFor(ctx, a.caller.Tenant, a.client, &w)
	return w, err
}

// waitingFor is what a client waits for, as it was understood.
func (d *Door) waitingFor(ctx context.Context, tenant estover.TenantID, client *token.Client, w *token.Waiting) (*ask, error) {
	f, err := parseForm(w.Request)
	if err != nil {
		return nil, err
	}
	a := &ask{client: client, maxAge: -1}
	if err := a.wants(f); err != nil {
		return nil, err
	}
	return a, d.reach(ctx, tenant, a)
}

// parseWaiting reads the parameter that a client asks with whether a person has
// decided (RFC 8628, section 3.4).
func parseWaiting(name string) func(form) (any, error) {
	return func(f form) (any, error) {
		value := f.get(name)
		if value == "" {
			return nil, errRequest.With("The parameter %s is missing.", name)
		}
		return asking{f.get("grant_type"), value}, nil
	}
}

// An asking is the question whether a person has decided.
type asking struct{ kind, value string }

// waited proves that a person let the client have what it waits for. Who asks
// with another client's value, or without the key that belongs to it, learns
// nothing.
func waited(ctx context.Context, d *Door, a authenticated, parsed any) (token.Proof, error) {
	r := parsed.(asking)
	w, err := d.Tokens.Waiting(ctx, a.caller.Tenant, r.kind, r.value)
	switch {
	case err != nil:
		return token.Proof{}, err
	case w.Client != a.client.ID:
		return token.Proof{}, token.ErrWaiting
	case w.Key != "" && w.Key != a.confirm.Key:
		return token.Proof{}, token.ErrWaiting.With("What was presented is bound to another key.")
	}
	if err := w.Ready(d.now()); err != nil {
		return token.Proof{GrantType: r.kind, Waiting: w}, err
	}
	proof := consentedBy(w.Grant)
	proof.GrantType, proof.Consume = r.kind, w.Consume
	if a.client.May(token.Refresh) {
		proof.Renewal = token.FirstRenewal(bound(a))
	}
	return proof, nil
}

var (
	devicePage  = page.Parse(files, "device.html")
	decidedPage = page.Parse(files, "decided.html")
)

// A deviceView is the page on which a code is typed.
type deviceView struct {
	Action, Form string
	Code         string // that came along, "" for none
	Wrong        string
	Waiting      []waitingView
}

// A waitingView is a request that waits for whoever is signed in.
type waitingView struct {
	Name    string // of the agent
	Since   time.Time
	Message string
	At      string // where they decide
}

// typing is the page on which people type a code. One that came along in the
// address is not looked at until the person has said that it is theirs (RFC 8628,
// section 3.3.1).
func (d *Door) typing(r *page.Request) error {
	code := userCode(r.URL.Query().Get("user_code"))
	if r.Method == http.MethodPost {
		form, err := r.Posted("user code")
		if err != nil {
			return err
		}
		return d.typed(r, form.Get("user_code"))
	}
	id := r.URL.Query().Get("request")
	to := deviceURL(r, code)
	if id != "" {
		to = waitingURL(r, id)
	}
	if !r.Demand(agreeing, to) {
		return nil
	}
	if id == "" {
		return d.showTyping(r, code, "")
	}
	w, err := d.Tokens.Shown(r.Context(), r.Visit.Caller, id)
	if err == nil && (w.Person == "" || !w.Undecided(d.now())) { // a code is typed first
		err = token.ErrDecided
	}
	if err != nil {
		return err
	}
	return d.askAbout(r, w, "")
}

// deviceURL is the page with a code, "" for none.
func deviceURL(r *page.Request, code string) string {
	at := r.Path(DevicePage)
	if code != "" {
		at += "?" + url.Values{"user_code": {spelled(code)}}.Encode()
	}
	return at
}

// waitingURL is the page with a request that waits for whoever is signed in.
func waitingURL(r *page.Request, id string) string {
	return r.Path(DevicePage) + "?" + url.Values{"request": {id}}.Encode()
}

// showTyping shows the page on which a code is typed, with what was wrong about
// the last one, and what waits for the person.
func (d *Door) showTyping(r *page.Request, code, wrong string) error {
	v := page.View{Title: "Connect an agent"}
	data := deviceView{Action: r.Path(DevicePage), Form: r.Form("user code"), Wrong: wrong}
	if code != "" {
		data.Code = spelled(code)
	}
	waiting, err := d.Tokens.WaitingFor(r.Context(), r.Visit.Caller)
	if err != nil {
		return err
	}
	for _, w := range waiting {
		who, err := d.Requester(r.Context(), r.Tenant, w.Client)
		if err != nil {
			return err
		}
		data.Waiting = append(data.Waiting, waitingView{who.Name, w.Asked, message(w), waitingURL(r, w.ID)})
	}
	if wrong != "" {
		v.Status = http.StatusBadRequest
	}
	v.Data = data
	return r.Show(devicePage, v)
}

// typed shows a person who asks them, given the code that the agent shows.
func (d *Door) typed(r *page.Request, text string) error {
	code := userCode(text)
	if !r.Demand(agreeing, deviceURL(r, code)) {
		return nil
	}
	if code == "" {
		return d.showTyping(r, "", "A code has eight letters, as in BCDF-GHJK.")
	}
	if !d.guesses.Allow(string(r.Tenant)+"/"+r.Visit.Person.ID) || !d.guessed.Allow(edge.AddressKey(r.From.Address)) {
		return errCodes
	}
	w, err := d.Tokens.Typed(r.Context(), r.Tenant, d.codeHash(r.Tenant, code))
	if errors.Is(err, token.ErrUserCode) {
		return d.showTyping(r, "", sentence(err))
	}
	if err != nil {
		return err
	}
	return d.askAbout(r, w, spelled(code))
}

// understood is what a client waits for and who it is, at this moment.
func (d *Door) understood(r *page.Request, w *token.Waiting) (*ask, Requester, error) {
	client, err := d.Tokens.Clients.Client(r.Context(), r.Tenant, w.Client)
	if err != nil {
		return nil, Requester{}, errAsking.Because(err)
	}
	if err := client.Alive(r.Context(), d.now()); err != nil {
		return nil, Requester{}, errMayNot.With("%s", sentence(err)).Because(err)
	}
	if !client.May(w.Kind) {
		return nil, Requester{}, errMayNot
	}
	a, err := d.waitingFor(r.Context(), r.Tenant, client, w)
	if err != nil {
		return nil, Requester{}, err
	}
	who, err := d.who(r.Context(), r.Tenant, client)
	return a, who, err
}

// askAbout shows a person what waits for them.
func (d *Door) askAbout(r *page.Request, w *token.Waiting, code string) error {
	a, who, err := d.understood(r, w)
	if err != nil {
		return err
	}
	v, err := d.question(r, a, who)
	if err != nil {
		return err
	}
	v.Asked = &askedView{From: w.From, At: w.Asked, Code: code, Message: message(w)}
	v.Action, v.Form, v.Request = r.Path(decisionPath), r.Form(decisionOn(w.ID, who, a)), w.ID
	return r.Show(consentPage, page.View{Title: v.title(), Data: v})
}

// decisionOn ties the answer of a person to what they were shown: if it has
// become more meanwhile, or somebody else, they are asked anew.
func decisionOn(id string, who Requester, a *ask) string {
	reach, err := json.Marshal([]any{a.reach, a.details})
	if err != nil {
		panic("oauth: a reach that cannot be JSON: " + err.Error())
	}
	return consentOf(id + "\x00" + who.Digest + "\x00" + string(reach))
}

// decided takes the answer of a person about what waits for them.
func (d *Door) decided(r *page.Request) error {
	if err := r.ParseForm(); err != nil {
		return page.ErrForm.Because(err)
	}
	if !r.Demand(agreeing, r.Path(DevicePage)) {
		return nil
	}
	w, err := d.Tokens.Shown(r.Context(), r.Visit.Caller, r.PostForm.Get("request"))
	if err != nil {
		return err
	}
	a, who, err := d.understood(r, w)
	if err != nil {
		return err
	}
	form, err := r.Posted(decisionOn(w.ID, who, a))
	if err != nil {
		return err
	}
	once := onceOf(r, form)
	yes := form.Get("decision") == "allow"
	if yes {
		err = d.Tokens.Approve(r.Context(), token.Authorization{
			Person: r.Visit.Caller, Auth: token.AuthOf(r.Visit.Since, r.Visit.Methods), Client: a.client,
			Purpose: a.purpose, Reach: a.reach, Details: a.details, Digest: who.Digest, Form: once,
		}, w)
	} else {
		err = d.Tokens.Deny(r.Context(), r.Visit.Caller, w, once)
	}
	if err != nil {
		return err
	}
	title := who.Name + " gets nothing"
	if yes {
		title = who.Name + " acts for you"
	}
	return r.Show(decidedPage, page.View{Title: title, Data: decidedView{Yes: yes, Name: who.Name, Kept: r.Path(ConsentsPath)}})
}

// A decidedView is what a person sees who has decided.
type decidedView struct {
	Yes  bool
	Name string
	Kept string // where they can end it
}
