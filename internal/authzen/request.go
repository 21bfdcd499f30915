package authzen

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/approval"
	"estover.dev/internal/db"
	"estover.dev/internal/edge"
	"estover.dev/internal/guard"
	"estover.dev/internal/jose"
)

// This file is the adapter to the AuthZEN Access Request and Approval Profile,
// draft 1: a refusal says how to ask, asking makes a request of [approval], and
// its approval is an input of the next evaluation, which decides as ever.
//
//	refusal ─access_request─▶ POST requests ─▶ task ─approved─▶ evaluation again
//
// The words of the profile stand on the left, ours on the right: task, request;
// task status, state; approval, request that was approved.

// The paths of requests below an issuer.
const (
	requestsPath = "/access/v1/requests"
	schemaPath   = requestsPath + "/schema"
)

// capability is by which a PEP knows that we do this (Discovery).
const capability = "urn:openid:authzen:capability:access-request"

// denialLife is how long a refusal may be answered by a request.
const denialLife = 10 * time.Minute

// errorPrefix begins the types of the profile's problems (Error Responses).
const errorPrefix = "urn:openid:authzen:access-request:error:"

// The profile's problems.
var (
	errNotRequestable = &estover.Error{Kind: estover.Invalid, Code: "not_requestable", Detail: "This cannot be asked for: nobody could approve it."}
	errExpiredDenial  = &estover.Error{Kind: estover.Invalid, Code: "expired_denial", Detail: "The refusal is too old. Evaluate again, and ask with what that says."}
	errBinding        = &estover.Error{Kind: estover.Invalid, Code: "invalid_denial_binding", Detail: "The request is not about what was refused. Send back what the refusal said, unchanged: denial.binding_token and denial.expires_at, and the subject, resource, action and context of the evaluation."}
	errDuplicate      = &estover.Error{Kind: estover.Conflict, Code: "duplicate_request", Detail: "This Idempotency-Key was used for another request. Take a new key for a new request."}
	errNoTask         = &estover.Error{Kind: estover.NotFound, Code: "unknown_task", Detail: "There is no such task, or it is none of yours."}
	errTaskState      = &estover.Error{Kind: estover.Conflict, Code: "invalid_task_state", Detail: "The task is over."}
)

// profile are the statuses of the profile's problems.
var profile = map[string]int{
	errNotRequestable.Code: http.StatusBadRequest, errExpiredDenial.Code: http.StatusGone, errBinding.Code: http.StatusBadRequest,
	errDuplicate.Code: http.StatusConflict, errNoTask.Code: http.StatusNotFound, errTaskState.Code: http.StatusConflict,
}

// A bound is what a binding token says: of which refusal it is, and of what.
type bound struct {
	Issuer     string   `json:"iss"`
	Subject    string   `json:"sub"` // the PEP that was refused
	Audience   string   `json:"aud"`
	IssuedAt   int64    `json:"iat"`
	Expires    int64    `json:"exp"`
	ID         string   `json:"jti"`
	Evaluation string   `json:"evaluation_id"`
	Until      string   `json:"denial_expires_at"`
	Members    []string `json:"binding_context_members"`
	Hash       string   `json:"binding_hash"`
}

// relevant are the members of a context that decide (Authorization-Relevant
// Context).
var relevant = []string{"class", "purpose", "session"}

// members are those of a context that it has.
func members(context jsontext.Value) (names []string, values map[string]jsontext.Value, err error) {
	values = map[string]jsontext.Value{}
	if len(context) > 0 {
		if err := json.Unmarshal(context, &values); err != nil {
			return nil, nil, ErrQuestion.At("context").Because(err)
		}
	}
	names = []string{}
	for _, name := range relevant {
		if _, ok := values[name]; ok {
			names = append(names, name)
		}
	}
	return names, values, nil
}

// hash is the SHA-256 of what a refusal is bound to, in its canonical form
// (Binding Token Integrity; RFC 8785).
func hash(q *question, names []string) (string, error) {
	_, values, err := members(q.Context)
	if err != nil {
		return "", err
	}
	about := map[string]jsontext.Value{}
	for _, name := range names {
		if v, ok := values[name]; ok {
			about[name] = v
		}
	}
	s := *q.Subject
	if len(s.Properties) > 0 { // the actor may stand in another place
		properties := map[string]jsontext.Value{}
		if err := json.Unmarshal(s.Properties, &properties); err != nil {
			return "", ErrQuestion.At("subject.properties").Because(err)
		}
		delete(properties, "act")
		if s.Properties, err = json.Marshal(properties); err != nil {
			return "", err
		}
		if len(properties) == 0 {
			s.Properties = nil
		}
	}
	b, err := json.Marshal(map[string]any{"subject": s, "resource": q.Resource, "action": q.Action, "context": about})
	if err != nil {
		return "", err
	}
	v := jsontext.Value(b)
	if err := v.Canonicalize(); err != nil {
		return "", ErrQuestion.Because(err)
	}
	sum := sha256.Sum256(v)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

// bind is the token by which a request is known to be about this refusal.
func (d *Door) bind(ctx context.Context, a *asking, q *question, evaluation string, now, until time.Time) (string, error) {
	key, err := d.Keys.Active(ctx, a.tenant, jose.Denial)
	if err != nil {
		return "", err
	}
	names, _, err := members(q.Context)
	if err != nil {
		return "", err
	}
	sum, err := hash(q, names)
	if err != nil {
		return "", err
	}
	issuer := d.Issuer.Of(a.tenant)
	return jose.Sign(jose.Denial, key.Token, bound{
		Issuer: issuer, Subject: string(a.caller.Subject), Audience: issuer, IssuedAt: now.Unix(), Expires: until.Unix(), ID: estover.NewID("den"),
		Evaluation: evaluation, Until: until.Format(time.RFC3339), Members: names, Hash: sum,
	})
}

// A denial is what a request echoes of a refusal.
type denial struct {
	Evaluation string `json:"evaluation_id"`
	Expires    string `json:"expires_at"`
	Token      string `json:"binding_token"`
}

// unbind makes sure that a request is about what was refused, to whoever asks,
// and not too long ago.
func (d *Door) unbind(ctx context.Context, a *asking, q *question, n *denial) error {
	if n == nil || n.Token == "" || n.Expires == "" {
		return errBinding
	}
	keys, err := d.Keys.Verifying(ctx, a.tenant, jose.Denial)
	if err != nil {
		return err
	}
	issuer := d.Issuer.Of(a.tenant)
	claims, err := jose.Verify(jose.Denial, keys, n.Token, jose.Expected{Now: d.Guard.DB().Now(), Issuer: issuer, Audiences: []string{issuer}})
	switch {
	case errors.Is(err, jose.ErrExpired):
		return errExpiredDenial
	case err != nil:
		return errBinding.Because(err)
	}
	var b bound
	if err := claims.Into(&b); err != nil {
		return errBinding.Because(err)
	}
	names, _, err := members(q.Context)
	if err != nil {
		return err
	}
	sum, err := hash(q, b.Members)
	if err != nil {
		return err
	}
	if b.Hash != sum || !slices.Equal(names, b.Members) || b.Subject != string(a.caller.Subject) || b.Until != n.Expires || n.Evaluation != "" && n.Evaluation != b.Evaluation {
		return errBinding
	}
	return nil
}

// wish is what would have to be asked for so that a question is answered with
// yes.
func (f *found) wish(q *question) approval.Wish {
	return approval.Wish{Agent: f.agent, Session: f.Session, Purpose: f.purpose, Items: []approval.Item{f.item(q)}}
}

func (f *found) item(q *question) approval.Item {
	item := approval.Item{Resource: f.resource.ID, Actions: []string{q.Action.Name}, Class: f.Class}
	for _, v := range f.deeds {
		if item.Class != "" && v.class.Rank() > item.Class.Rank() {
			item.Class = v.class
		}
		for name, value := range v.params {
			if item.Parameters == nil {
				item.Parameters = map[string][]string{}
			}
			if !slices.Contains(item.Parameters[name], value) {
				item.Parameters[name] = append(item.Parameters[name], value)
			}
		}
	}
	return item
}

// grantable are the reasons of a refusal that a grant would do away with.
var grantable = []string{"not_granted", "purpose_mismatch"}

// remedy adds to a refusal how to ask, if somebody could approve it: what the
// kernel refuses nobody can, and what a rule denies neither (Requestable Denial
// Context).
func (d *Door) remedy(ctx context.Context, a *asking, q *question, f *found, refused guard.Decision, at time.Time, out map[string]any) error {
	if refused.Engine == "kernel" || f.resource == nil || len(f.deeds) == 0 ||
		slices.ContainsFunc(refused.Reasons, func(r string) bool { return !slices.Contains(grantable, r) }) {
		return nil
	}
	id, err := d.Requests.Waits(ctx, a.tenant, f.agent, f.Session, f.resource.ID, q.Action.Name)
	if err != nil {
		return err
	}
	base := d.Issuer.Of(a.tenant) + requestsPath
	if id != "" {
		out["next_action"] = "wait"
		out["task"] = map[string]any{"id": id, "status": string(approval.Pending), "status_endpoint": base + "/" + id}
		return nil
	}
	out["next_action"] = "none"
	_, permitted, err := d.Requests.Foresee(ctx, a.caller, f.wish(q))
	switch estover.KindOf(err) {
	case estover.Denied, estover.Invalid, estover.NotFound, estover.Conflict:
		return nil
	default:
		if err != nil {
			return err
		}
	}
	until := at.Add(denialLife).UTC().Truncate(time.Second)
	token, err := d.bind(ctx, a, q, refused.ID, at, until)
	if err != nil {
		return err
	}
	says := "A person decides about it."
	if permitted {
		says = "Policy approves it at once."
	}
	out["next_action"] = "request"
	out["access_request"] = map[string]any{
		"endpoint": base, "template": "access", "expires_at": until.Format(time.RFC3339), "binding_token": token,
		"request_schema_url": d.Issuer.Of(a.tenant) + schemaPath,
		"display":            map[string]string{"title": "Ask for access", "description": "Access to " + f.resource.Name + " can be asked for. " + says},
	}
	return nil
}

// A submission is what somebody asks for (Access Request Submission).
type submission struct {
	question
	Items []struct {
		Resource  *thing    `json:"resource"`
		Action    *deed     `json:"action"`
		Denial    *denial   `json:"denial"`
		Requested requested `json:"requested_access"`
	} `json:"items"`
	Denial    *denial        `json:"denial"`
	Requested requested      `json:"requested_access"`
	Callback  jsontext.Value `json:"callback"`
}

type requested struct {
	Until time.Time `json:"requested_until"`
}

// asks are the questions that a submission is about, each with its refusal and
// until when it is wanted.
func (s *submission) asks() (all []question, denials []*denial, until []time.Time, err error) {
	if len(s.Callback) > 0 {
		return nil, nil, nil, missing("callback", "No address is registered for callbacks. Look at the task, or have a channel tell you of it.")
	}
	if s.Items == nil {
		return []question{s.question}, []*denial{s.Denial}, []time.Time{s.Requested.Until}, s.check()
	}
	if s.Resource != nil || s.Action != nil {
		return nil, nil, nil, missing("items", "With items there is no resource and no action beside.")
	}
	if len(s.Items) == 0 || len(s.Items) > approval.MaxItems {
		return nil, nil, nil, missing("items", "Between 1 and %d things are asked for at once.", approval.MaxItems)
	}
	for _, item := range s.Items {
		q := question{Subject: s.Subject, Action: item.Action, Resource: item.Resource, Context: s.Context}
		if err := q.check(); err != nil {
			return nil, nil, nil, err
		}
		at := item.Requested.Until
		if at.IsZero() {
			at = s.Requested.Until
		}
		// One refusal stands for one thing, so a bundle has as many.
		all, denials, until = append(all, q), append(denials, item.Denial), append(until, at)
	}
	return all, denials, until, nil
}

// submit makes a request of a refusal.
func (d *Door) submit(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) {
	d.task(w, r, tenant, func(a *asking) (int, *tasked, error) {
		var err error
		if a.body, err = readBody(w, r); err != nil {
			return 0, nil, err
		}
		var s submission
		if err := into(a.body, &s); err != nil {
			return 0, nil, err
		}
		key, err := keyOf(a)
		if err != nil {
			return 0, nil, err
		}
		made, err := d.asked(a, key)
		var questions []question
		switch {
		case err == nil: // the refusal may be too old by now, but was not when it was asked
			questions, _, _, err = s.asks()
		case estover.KindOf(err) == estover.NotFound:
			var wish approval.Wish
			if wish, questions, err = d.wished(a, &s); err == nil {
				made, err = d.ask(a, wish, key)
			}
		}
		if err != nil {
			return 0, nil, err
		}
		code := http.StatusAccepted
		if made.State != approval.Pending {
			code = http.StatusCreated
		}
		w.Header().Set("Location", d.Issuer.Of(tenant)+requestsPath+"/"+made.ID)
		if s.Items == nil {
			questions = nil
		}
		return code, d.tasked(a, &made, questions), nil
	})
}

// wished is a submission as a wish. That it is about refusals is made sure of
// first.
func (d *Door) wished(a *asking, s *submission) (w approval.Wish, questions []question, err error) {
	questions, denials, until, err := s.asks()
	if err != nil {
		return w, nil, err
	}
	for i := range questions {
		if err := d.unbind(a.Context(), a, &questions[i], denials[i]); err != nil {
			return w, nil, err
		}
	}
	for i := range questions {
		f, err := d.find(a.Context(), a, &questions[i])
		if err == nil {
			f.purpose, err = d.purposeOf(a.Context(), a.tenant, &f)
		}
		if err != nil {
			return w, nil, err
		}
		if f.resource == nil || len(f.deeds) == 0 {
			return w, nil, errNotRequestable
		}
		one := f.wish(&questions[i])
		one.Items = append(w.Items, one.Items...)
		one.For, w = w.For, one
		if !until[i].IsZero() {
			if life := until[i].Sub(d.Guard.DB().Now()); w.For == 0 || life < w.For {
				w.For = life
			}
			if w.For < approval.Shortest || w.For > approval.Longest {
				return w, nil, missing("requested_access.requested_until", "Access is asked for between %s and %s.", approval.Shortest, approval.Longest)
			}
		}
	}
	w.Reason, w.Context, err = words(s.Context)
	return w, questions, err
}

// words are what a context says to those who decide: the reason, and what else
// is text.
func words(context jsontext.Value) (reason string, more map[string]string, err error) {
	_, values, err := members(context)
	if err != nil {
		return "", nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		var s string
		if values[name].Kind() != '"' || slices.Contains(relevant, name) || name == "time" {
			continue
		}
		if err := json.Unmarshal(values[name], &s); err != nil {
			return "", nil, ErrQuestion.At("context." + name).Because(err)
		}
		switch name {
		case "reason":
			reason = s
		case "business_justification":
			reason = cmp.Or(reason, s)
		default:
			if more == nil {
				more = map[string]string{}
			}
			more[name] = s
		}
	}
	if reason == "" {
		return "", nil, missing("context.reason", "Say what it is for, in up to %d characters: whoever decides needs to know.", approval.MaxReason)
	}
	return reason, more, nil
}

// maxKey bounds an Idempotency-Key, in bytes.
const maxKey = 200

// keyOf is the Idempotency-Key of a submission; nil if it has none.
func keyOf(a *asking) (*keyed, error) {
	key := a.Header.Get("Idempotency-Key")
	if key == "" {
		return nil, nil
	}
	if len(key) > maxKey {
		return nil, missing("Idempotency-Key", "This has more than %d bytes.", maxKey)
	}
	v := jsontext.Value(slices.Clone(a.body))
	if err := v.Canonicalize(); err != nil {
		return nil, ErrQuestion.Because(err)
	}
	return &keyed{requester: string(a.caller.Subject), key: sum("key", []byte(key)), body: sum("body", v)}, nil
}

// asked is the request that was made with a key before; an error of kind NotFound
// if none was. The same key with another body is an error.
func (d *Door) asked(a *asking, k *keyed) (approval.Request, error) {
	if k == nil {
		return approval.Request{}, approval.ErrNotFound
	}
	request := ""
	err := d.Guard.DB().View(a.Context(), a.tenant, func(tx *db.Tx) (err error) {
		request, err = findKey(a.Context(), tx, *k)
		return err
	})
	if err != nil {
		return approval.Request{}, err
	}
	return d.Requests.Get(a.Context(), a.caller, request)
}

// ask makes a request, along with its key: whoever sends the same at the same time
// makes none.
func (d *Door) ask(a *asking, w approval.Wish, k *keyed) (approval.Request, error) {
	if k == nil {
		return d.Requests.Ask(a.Context(), a.caller, w)
	}
	made, err := d.Requests.AskAlong(a.Context(), a.caller, w, func(tx *db.Tx, id string) error {
		return insertKey(a.Context(), tx, *k, id)
	})
	if errors.Is(err, errKeyTaken) {
		return d.asked(a, k)
	}
	return made, err
}

func sum(what string, b []byte) string {
	s := sha256.Sum256(append([]byte(what+"\n"), b...))
	return hex.EncodeToString(s[:])
}

// A tasked is what is answered about a request (Access Request Response).
type tasked struct {
	Task   map[string]any `json:"task"`
	Result map[string]any `json:"result,omitempty"`
}

// tasked is a request as a task; of a bundle with its items.
func (d *Door) tasked(a *asking, r *approval.Request, items []question) *tasked {
	at := d.Issuer.Of(a.tenant) + requestsPath + "/" + r.ID
	t := &tasked{Task: map[string]any{"id": r.ID, "status": string(r.State), "status_endpoint": at}}
	switch r.State {
	case approval.Pending:
		t.Task["expires_at"] = r.ExpiresAt.UTC().Format(time.RFC3339)
		t.Task["links"] = map[string]string{"cancel": at + "/cancel"}
	case approval.Approved:
		t.Result = result(r)
	}
	if r.Note != "" && r.State != approval.Pending {
		t.Task["display"] = map[string]string{"description": r.Note}
	}
	if items != nil {
		t.items(r, items)
	}
	return t
}

// result is an approval as an input of the next evaluation (Completion
// Semantics).
func result(r *approval.Request) map[string]any {
	ref := map[string]any{"id": r.ID, "approved_until": r.Offer.Until.UTC().Format(time.RFC3339)}
	if !r.DecidedAt.IsZero() {
		ref["approved_at"] = r.DecidedAt.UTC().Format(time.RFC3339)
	}
	return map[string]any{"mode": "reevaluate", "approval": ref}
}

// items says of each thing of a bundle what became of it: a person may have
// approved a part.
func (t *tasked) items(r *approval.Request, asked []question) {
	list := make([]map[string]any, len(asked))
	seen := map[string]bool{}
	for i, q := range asked {
		state := string(r.State)
		list[i] = map[string]any{"resource": q.Resource, "action": q.Action}
		if r.State == approval.Approved {
			named := func(it approval.Item) bool {
				return slices.Contains(it.Actions, q.Action.Name) && (it.Name == q.Resource.ID || it.Resource == q.Resource.ID)
			}
			if slices.ContainsFunc(r.Offer.Items, named) {
				list[i]["result"] = result(r)
			} else {
				state = string(approval.Denied)
			}
		}
		list[i]["status"] = state
		seen[state] = true
	}
	t.Task["items"] = list
	if len(seen) > 1 {
		t.Task["status"] = "partial"
		t.Result = nil
	}
}

// status answers what became of a task (Task Status Endpoint).
func (d *Door) status(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) {
	d.task(w, r, tenant, func(a *asking) (int, *tasked, error) {
		req, err := d.Requests.Get(a.Context(), a.caller, r.PathValue("id"))
		if err != nil {
			return 0, nil, err
		}
		if req.State == approval.Pending {
			w.Header().Set("Retry-After", "5")
		}
		return http.StatusOK, d.tasked(a, &req, bundled(&req)), nil
	})
}

// bundled are the things of a request that was a bundle, as they were asked for.
func bundled(r *approval.Request) (all []question) {
	if len(r.Items) < 2 {
		return nil
	}
	for _, item := range r.Items {
		for _, action := range item.Actions {
			all = append(all, question{Resource: &thing{Type: "http", ID: item.Resource}, Action: &deed{Name: action}})
		}
	}
	return all
}

// cancel takes a request back (Cancellation).
func (d *Door) cancel(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) {
	d.task(w, r, tenant, func(a *asking) (int, *tasked, error) {
		var in struct {
			Reason  string `json:"reason"`
			Comment string `json:"comment"`
		}
		if r.ContentLength != 0 && r.Method == http.MethodPost {
			b, err := readBody(w, r)
			if err == nil {
				err = into(b, &in)
			}
			if err != nil {
				return 0, nil, err
			}
		}
		req, err := d.Requests.Cancel(a.Context(), a.caller, r.PathValue("id"), cmp.Or(in.Comment, in.Reason))
		if err != nil {
			return 0, nil, err
		}
		return http.StatusOK, d.tasked(a, &req, bundled(&req)), nil
	})
}

// task answers whoever is known with a task, or with a problem (Error Responses;
// RFC 9457).
func (d *Door) task(w http.ResponseWriter, r *http.Request, tenant estover.TenantID, serve func(a *asking) (int, *tasked, error)) {
	a := &asking{Request: r, tenant: tenant}
	caller, err := d.Callers.Authenticate(r, tenant)
	if err != nil {
		d.problem(w, a, err)
		return
	}
	a.caller = caller
	code, out, err := serve(a)
	if err != nil {
		d.problem(w, a, err)
		return
	}
	d.answer(w, a, code, out)
}

// problem answers with a problem: one of the profile's where there is one.
func (d *Door) problem(w http.ResponseWriter, a *asking, err error) {
	var refusal *guard.Refusal
	var known *estover.Error
	switch {
	case errors.Is(err, approval.ErrNotFound):
		err = errNoTask
	case errors.Is(err, approval.ErrNotPending):
		errors.As(err, &known)
		err = errTaskState.With("%s", known.Detail)
	case errors.As(err, &refusal) && strings.HasPrefix(a.URL.Path, d.base+requestsPath) && a.Method == http.MethodPost && a.PathValue("id") == "":
		err = errNotRequestable.With("%s", refusal.Error())
	}
	p := map[string]any{"type": "about:blank"}
	code, text := http.StatusInternalServerError, "Something went wrong in Estover itself. The log of the server has the details."
	known = nil
	switch {
	case errors.As(err, &refusal):
		code, text = http.StatusForbidden, refusal.Error()
	case errors.As(err, &known) && known.Kind != estover.Fault:
		text, code = known.Detail, profile[known.Code]
		if code == 0 {
			code = status[known.Kind]
		} else {
			p["type"] = errorPrefix + known.Code
		}
		if known.Field != "" {
			p["errors"] = []map[string]string{{"location": known.Field, "message": known.Detail}}
		}
	}
	if code >= http.StatusInternalServerError && a.Context().Err() == nil {
		d.Logger.Error("a request of a PEP could not be answered", "request", a.caller.Request, "caller", a.caller.Subject, "error", err)
	}
	edge.Again(w.Header(), code, err)
	p["title"], p["status"], p["detail"] = http.StatusText(code), code, text
	b, err := json.Marshal(p, json.Deterministic(true))
	if err != nil {
		d.failWith(w, http.StatusInternalServerError, text)
		return
	}
	if code == http.StatusUnauthorized && w.Header()["Www-Authenticate"] == nil {
		w.Header().Set("WWW-Authenticate", `Bearer realm="estover"`)
	}
	write(w, code, "application/problem+json", b)
}

// reference is an approval that a PEP brings along, if it is one for this
// question: of the agent, its session, the resource, the action and its
// parameters, in its time, and not taken back. Nobody is allowed anything because
// of it; it says until when what is allowed may be used.
func (d *Door) reference(ctx context.Context, a *asking, q *question, f *found, id string) (map[string]any, error) {
	if f.resource == nil {
		return nil, nil
	}
	var r approval.Request
	err := d.Guard.DB().View(ctx, a.tenant, func(tx *db.Tx) (err error) {
		r, err = d.Requests.Proven(ctx, tx, id)
		return err
	})
	if kind := estover.KindOf(err); kind == estover.NotFound || kind == estover.Denied || kind == estover.Invalid {
		return nil, nil
	}
	now := d.Guard.DB().Now()
	if err != nil || r.Agent != f.agent || r.Session != "" && r.Session != f.Session || !now.Before(r.Offer.Until) {
		return nil, err
	}
	wanted := f.item(q)
	fits := slices.ContainsFunc(r.Offer.Items, func(have approval.Item) bool {
		if have.Resource != wanted.Resource || !slices.Contains(have.Actions, q.Action.Name) && !slices.Contains(have.Actions, approval.All) {
			return false
		}
		for name, values := range have.Parameters {
			for _, v := range wanted.Parameters[name] {
				if !slices.Contains(values, v) {
					return false
				}
			}
			if len(wanted.Parameters[name]) == 0 {
				return false
			}
		}
		return true
	})
	if !fits {
		return nil, nil
	}
	grants, err := d.Grants.Grants(ctx, a.tenant, f.agent)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(grants, func(g access.Grant) bool { return g.Request == r.ID && g.StateAt(now) == access.Live }) {
		return nil, nil
	}
	return map[string]any{"id": r.ID, "approved_until": r.Offer.Until.UTC().Format(time.RFC3339)}, nil
}

// schema is what a submission has to say beside what the evaluation said
// (Machine-Readable Forms).
const schema = `{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "Ask for access",
  "type": "object",
  "properties": {
    "context": {
      "type": "object",
      "properties": {
        "reason": {"type": "string", "minLength": 1, "maxLength": 500, "description": "What it is for, in a sentence"},
        "ticket": {"type": "string", "maxLength": 200},
        "customer": {"type": "string", "maxLength": 200}
      },
      "required": ["reason"],
      "additionalProperties": {"type": "string", "maxLength": 200}
    },
    "requested_access": {
      "type": "object",
      "properties": {
        "requested_until": {"type": "string", "format": "date-time", "description": "Until when; an hour, or until the session ends, if it is left out"}
      }
    }
  },
  "required": ["context"]
}
`

func (d *Door) schema(w http.ResponseWriter, _ *http.Request, _ estover.TenantID) {
	write(w, http.StatusOK, "application/schema+json", []byte(schema))
}
