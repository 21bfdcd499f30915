package approval

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"estover.dev"
	"estover.dev/internal/approval/document"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// ByPolicy is who decided what policy approved by itself.
var ByPolicy = estover.System("policy")

// An Elevation is the [guard.Op.Input] of [Elevate]: one action that is asked for.
type Elevation struct {
	Action string        // the name that the resource has for it; for kinds beside access, the kind
	Class  estover.Class // of the data that it reaches
	For    time.Duration // how long
	Params any           // what the parameters of its path may be, for rules that ask for them

	// Eligible says that the agent has been given this already, to be activated
	// when it is needed.
	Eligible bool
}

// Elevates is what policy sees of it.
func (e Elevation) Elevates() (action string, class estover.Class, life time.Duration, params any, eligible bool) {
	return e.Action, e.Class, e.For, e.Params, e.Eligible
}

// Ask asks for something: an agent for itself, or a person for an agent or for
// an act of their own. What policy permits is approved in the same call. Whoever
// asks for the same again, while it waits, gets the request that is there.
func (a *Approvals) Ask(ctx context.Context, caller estover.Caller, w Wish) (Request, error) {
	return a.AskAlong(ctx, caller, w, func(*db.Tx, string) error { return nil })
}

// AskAlong is [Approvals.Ask] that notes something along with the request, given
// its id: it is asked if that is noted, and the other way round.
func (a *Approvals) AskAlong(ctx context.Context, caller estover.Caller, w Wish, along func(tx *db.Tx, id string) error) (Request, error) {
	made, likeness, err := a.wished(caller, w)
	if err != nil {
		return Request{}, err
	}
	op := guard.Op{Action: "access.request", Session: made.Session, Purpose: made.Purpose, Effect: guard.Writes}
	if made.Agent != "" {
		op.Target = string(estover.Agent(made.Agent))
	}
	may, err := a.guard.Admit(ctx, caller, op)
	if err != nil {
		return Request{}, err
	}
	if err := a.guard.DB().View(ctx, caller.Tenant, func(tx *db.Tx) error { return a.look(ctx, tx, caller, &made) }); err != nil {
		return Request{}, err
	}
	questions, err := a.questions(ctx, caller, &made)
	if err != nil {
		return Request{}, err
	}
	said, err := a.decided(ctx, asAgent(caller, made), questions)
	if err != nil {
		return Request{}, err
	}
	floor, floored := a.Floors[made.Kind]
	permitted := said.permitted && !floored
	made.Policy, made.Rule = Verdict{said.rule, said.revision}, Rule{Roles: []string{}}
	if !permitted {
		if made.Rule, err = stricter(floor, said.obligations); err != nil {
			return Request{}, err
		}
	}
	var out Request
	for range 4 {
		err = a.guard.Act(ctx, caller, op, may, func(tx *guard.Tx) (err error) {
			if out, err = a.ask(ctx, tx, caller, made, likeness, permitted); err != nil {
				return err
			}
			return along(tx.Tx, out.ID)
		})
		if !errors.Is(err, db.ErrStale) { // somebody has just asked for the same
			break
		}
	}
	out.Eligible = nil
	return out, err
}

// ask writes a request down, and carries it out if policy has approved it.
func (a *Approvals) ask(ctx context.Context, tx *guard.Tx, caller estover.Caller, r Request, likeness string, permitted bool) (Request, error) {
	if err := a.look(ctx, tx.Tx, caller, &r); err != nil {
		return r, err
	}
	if err := a.keep(ctx, tx, r); err != nil {
		return r, err
	}
	tx.SetTarget("request:" + r.ID)
	same, err := alike(ctx, tx.Tx, likeness)
	switch {
	case err == nil && same.State == Pending:
		tx.SetTarget("request:" + same.ID)
		a.tell(tx, same)
		tx.Note("again", true)
		return same, a.weigh(ctx, tx.Tx, caller, &same)
	case err == nil: // it has expired, and nobody has put that on record yet
		if err := lapse(ctx, tx.Tx, same.ID); err != nil {
			return r, err
		}
	case !errors.Is(err, ErrNotFound):
		return r, err
	}
	r.CreatedAt, r.Round, r.State = tx.Now(), 1, Pending
	r.ExpiresAt = tx.Now().Add(time.Duration(r.Rule.ExpiresAfter) * time.Second)
	if r.Session != "" {
		s, err := a.Session(ctx, tx.Tx, r.Session)
		if err != nil {
			return r, err
		}
		if s.Expires.Before(r.ExpiresAt) {
			r.ExpiresAt = s.Expires
		}
	}
	if r.Rule.EscalateAfter > 0 {
		r.escalateAt = tx.Now().Add(time.Duration(r.Rule.EscalateAfter) * time.Second)
	}
	r.Offer = Granted{Items: r.Items, Seconds: r.Seconds, Budgets: r.Budgets}
	if r.Document, err = r.render(tx.Tenant(), r.Offer, r.Round); err != nil {
		return r, err
	}
	tx.Note("items", r.Items)
	tx.Note("for_seconds", r.Seconds)
	tx.Note("policy", r.Policy)
	if r.Kind == Access {
		risk, err := a.riskOf(ctx, tx.Tx, &r)
		if err != nil {
			return r, err
		}
		tx.Note("risk", risk.Level)
	}
	if permitted {
		r.DecidedBy, r.escalateAt = ByPolicy, time.Time{}
		if err := a.carryOut(ctx, tx, &r); err != nil {
			return r, err
		}
		r.DecidedAt = tx.Now()
		a.tell(tx, r)
		return r, a.insert(ctx, tx.Tx, r, likeness)
	}
	n, err := count(ctx, tx.Tx, r.Agent, r.Requester)
	if err != nil {
		return r, err
	}
	if n >= MaxPending {
		return r, ErrTooMany
	}
	a.tell(tx, r)
	if err := a.tellApprovers(ctx, tx, &r, r.Rule.Roles); err != nil {
		return r, err
	}
	tx.Touch(Waiting, r.Agent)
	if err := a.weigh(ctx, tx.Tx, caller, &r); err != nil {
		return r, err
	}
	return r, a.insert(ctx, tx.Tx, r, likeness)
}

// tell says in the event what others rely on.
func (a *Approvals) tell(tx *guard.Tx, r Request) {
	tx.Note("request", r.ID)
	tx.Note("kind", r.Kind)
	tx.Note("state", r.State)
	if r.Agent != "" {
		tx.Note("agent", r.Agent)
	}
	if r.Session != "" {
		tx.SetSession(r.Session)
	}
	if r.Result != "" {
		tx.Note("result", r.Result)
	}
}

// tellApprovers says in the event who is to be told that a request waits: roles
// as role:NAME, and people by their subjects.
func (a *Approvals) tellApprovers(ctx context.Context, tx *guard.Tx, r *Request, roles []string) error {
	var told []string
	for _, role := range roles {
		if role != Sponsor {
			told = append(told, "role:"+role)
			continue
		}
		if r.Agent == "" {
			continue
		}
		agent, err := a.Agent(ctx, tx.Tx, r.Agent)
		if err != nil {
			return err
		}
		told = append(told, string(estover.User(agent.Sponsor)))
	}
	away, err := absences(ctx, tx.Tx, "")
	if err != nil {
		return err
	}
	for _, one := range away {
		s, err := a.may(ctx, tx.Tx, r, one.Deputy)
		if err != nil {
			return err
		}
		if who := string(estover.User(one.Deputy)); s.instead != "" && !slices.Contains(told, who) {
			told = append(told, who)
		}
	}
	tx.Note("approvers", told)
	return nil
}

// wished is the request that was wished for, in the one form in which it is kept,
// as far as that can be known without looking anything up, and the digest by which
// the same is recognised.
func (a *Approvals) wished(caller estover.Caller, w Wish) (r Request, likeness string, err error) {
	var bad []error
	wrong := func(field, format string, args ...any) { bad = append(bad, ErrInvalid.With(format, args...).At(field)) }
	if w.Kind == "" {
		w.Kind = Access
	}
	if a.Effects[w.Kind] == nil {
		wrong("kind", "There is no request of the kind %q.", w.Kind)
	}
	acts := caller.Acting()
	if acts.Kind() == estover.AgentKind {
		if w.Agent == "" {
			w.Agent = acts.ID()
		}
		if w.Agent != acts.ID() || w.Kind != Access {
			return r, "", ErrNotYours
		}
		if w.Session == "" {
			w.Session = caller.Session
		}
		if w.Purpose == "" && w.Session == caller.Session {
			w.Purpose = caller.Purpose
		}
	}
	r = Request{
		ID: estover.NewID("apr"), Kind: w.Kind, Requester: caller.Subject, Agent: w.Agent, Session: w.Session, Purpose: w.Purpose,
		Seconds: int64(w.For / time.Second), Budgets: w.Budgets, Target: w.Target, Arguments: w.Arguments,
		Reason: w.Reason, Context: w.Context, nonce: rand.Text(),
	}
	if len(caller.Actors) > 0 {
		r.Requester, r.Chain = acts, append(slices.Clone(caller.Actors[1:]), caller.Subject)
	}
	text := func(field, s string, most int) {
		if len(s) > most || !plain(s) {
			wrong(field, "This is text of one line and up to %d bytes.", most)
		}
	}
	if r.Reason == "" {
		wrong("reason", "Say what it is for, in up to %d characters: whoever decides needs to know.", MaxReason)
	}
	text("reason", r.Reason, MaxReason)
	if len(r.Context) > 10 {
		wrong("context", "The context has 10 members at most.")
	}
	if len(r.Arguments) > 20 {
		wrong("arguments", "There are 20 arguments at most.")
	}
	for _, name := range slices.Sorted(maps.Keys(r.Context)) {
		if !estover.ValidName(name) {
			wrong("context", "The names of the context have up to 63 small letters, digits, dots, dashes and underscores, not %q.", name)
		}
		text("context."+name, r.Context[name], 200)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Arguments)) {
		if !estover.ValidName(name) {
			wrong("arguments", "The names of arguments have up to 63 small letters, digits, dots, dashes and underscores, not %q.", name)
		}
		text("arguments."+name, r.Arguments[name], 1000)
	}
	text("target", r.Target, 200)
	if w.Kind == Access {
		if r.Agent == "" {
			wrong("agent", "Access is asked for an agent.")
		}
		if w.For != 0 && (w.For < Shortest || w.For > Longest) {
			wrong("for_seconds", "Access is asked for between %s and %s, not for %s.", Shortest, Longest, w.For)
		}
		if len(w.Items) == 0 || len(w.Items) > MaxItems {
			wrong("items", "Between 1 and %d resources are asked for at once.", MaxItems)
		}
		var more []error
		r.Items, more = normal(w.Items)
		bad = append(bad, more...)
		if r.Target != "" || len(r.Arguments) > 0 {
			wrong("target", "Access is asked for as items.")
		}
	} else if len(w.Items) > 0 || w.For != 0 || w.Budgets != (Budgets{}) {
		wrong("items", "What is asked for is named by its target and arguments.")
	}
	if w.Budgets != (Budgets{}) && len(w.Items) > 1 {
		wrong("budgets", "A budget is of one resource: ask for each resource by itself.")
	}
	if b := w.Budgets; min(b.Calls, b.Rows, b.Records, b.BytesOut, b.Money, b.Seconds, b.FanOut) < 0 {
		wrong("budgets", "A budget is zero, for none, or more.")
	}
	if err := errors.Join(bad...); err != nil {
		return r, "", err
	}
	alike := []any{r.Kind, r.Agent, r.Session, r.Purpose, r.Items, r.Seconds, r.Budgets, r.Target, r.Arguments}
	if r.Agent == "" {
		alike = append(alike, r.Requester)
	}
	b, err := json.Marshal(alike)
	if err != nil {
		return r, "", err
	}
	sum := sha256.Sum256(b)
	return r, hex.EncodeToString(sum[:]), nil
}

// plain reports whether a text is one line that shows all that is in it.
func plain(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r != ' ' && !unicode.IsGraphic(r) {
			return false
		}
	}
	return true
}

// normal are items in the one form in which they are kept.
func normal(items []Item) (all []Item, bad []error) {
	wrong := func(field, format string, args ...any) { bad = append(bad, ErrInvalid.With(format, args...).At(field)) }
	for i, item := range items {
		at := fmt.Sprintf("items[%d].", i)
		if item.Resource == "" || len(item.Resource) > 200 {
			wrong(at+"resource", "An item names a resource.")
		}
		if len(item.Actions) == 0 || len(item.Actions) > 50 {
			wrong(at+"actions", "An item names between 1 and 50 actions.")
		}
		item.Actions = words(item.Actions)
		if slices.Contains(item.Actions, All) && len(item.Actions) > 1 {
			wrong(at+"actions", "* stands for every action; name either it or the actions.")
		}
		if item.Class != "" && item.Class.Rank() < 0 {
			wrong(at+"class", "The class is public, internal, confidential or restricted, not %q.", item.Class)
		}
		if len(item.Parameters) > 10 {
			wrong(at+"parameters", "An item confines 10 parameters at most.")
		}
		var params map[string][]string
		for _, name := range slices.Sorted(maps.Keys(item.Parameters)) {
			values := words(item.Parameters[name])
			if len(values) == 0 || len(values) > 20 {
				wrong(at+"parameters."+name, "A parameter has between 1 and 20 values.")
			}
			for _, v := range values {
				if v == "" || len(v) > 200 || !plain(v) {
					wrong(at+"parameters."+name, "The value of a parameter is text of one line and up to 200 bytes.")
				}
			}
			if params == nil {
				params = map[string][]string{}
			}
			params[name] = values
		}
		item.Parameters, item.Name = params, ""
		all = append(all, item)
	}
	return all, bad
}

// words is a list in order, each word once.
func words(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}

// look checks a request against what there is at present, and fills in what
// follows from that. It is done when something is asked, and again when it is
// approved.
func (a *Approvals) look(ctx context.Context, tx *db.Tx, caller estover.Caller, r *Request) error {
	if r.Agent == "" {
		return nil
	}
	agent, err := a.Agent(ctx, tx, r.Agent)
	if err != nil {
		return err
	}
	r.AgentName = agent.Name
	if acts := caller.Acting(); acts.Kind() == estover.UserKind && r.Kind == Access && r.CreatedAt.IsZero() &&
		acts != estover.User(agent.Sponsor) && !caller.Has(estover.Admin) && !caller.Has(estover.Operator) {
		return ErrNotYours
	}
	if r.Kind != Access {
		return nil
	}
	left := Longest
	if r.Session != "" {
		s, err := a.Session(ctx, tx, r.Session)
		if err != nil {
			return err
		}
		theirs := s.Agent == r.Agent || caller.Acting() == estover.Agent(r.Agent) && caller.Session == s.ID || !r.CreatedAt.IsZero()
		if left = s.Expires.Sub(tx.Now()); s.Ended || left <= 0 || !theirs {
			return ErrInvalid.With("The session %s is over, or another agent's. Ask for a session of the agent's that goes on.", r.Session).At("session")
		}
		if left < Shortest && r.CreatedAt.IsZero() {
			return ErrInvalid.With("The session ends in less than %s. Open another one, and ask for that.", Shortest).At("session")
		}
		if r.CreatedAt.IsZero() && s.OpenedBy.Kind() == estover.UserKind {
			r.OpenedBy = s.OpenedBy
		}
		if r.Purpose == "" {
			r.Purpose = s.Purpose
		}
		if r.Purpose != s.Purpose {
			return ErrInvalid.With("The session is for %s, not for %s.", s.Purpose, r.Purpose).At("purpose")
		}
	}
	if r.Purpose == "" && len(agent.Purposes) == 1 {
		r.Purpose = agent.Purposes[0]
	}
	if !slices.Contains(agent.Purposes, r.Purpose) {
		return ErrInvalid.With("Name one of the purposes that the agent %s has declared, not %q.", agent.Name, r.Purpose).At("purpose")
	}
	if r.Seconds == 0 {
		r.Seconds = int64(UsualLife / time.Second)
	}
	if r.CreatedAt.IsZero() {
		r.Seconds = min(r.Seconds, int64(left/time.Second))
	}
	items := slices.Clone(r.Items)
	for i := range items {
		if err := a.lookAt(ctx, tx, agent, r.Purpose, &items[i], fmt.Sprintf("items[%d].", i)); err != nil {
			return err
		}
	}
	r.Items = items
	return nil
}

// lookAt checks one item against the resource and the agent.
func (a *Approvals) lookAt(ctx context.Context, tx *db.Tx, agent Agent, purpose string, item *Item, at string) error {
	res, err := a.Resource(ctx, tx, item.Resource)
	if err != nil {
		return err
	}
	item.Name = res.Name
	if res.Segment != "" && len(agent.Segments) > 0 && !slices.Contains(agent.Segments, res.Segment) {
		return ErrInvalid.With("The resource %s is outside the segments of the agent %s; nobody can approve that.", res.Name, agent.Name).At(at + "resource")
	}
	if len(res.Purposes) > 0 && !slices.Contains(res.Purposes, purpose) {
		return ErrInvalid.With("The resource %s is not to be used for %s; nobody can approve that.", res.Name, purpose).At(at + "resource")
	}
	actions, err := res.named(item.Actions, at)
	if err != nil {
		return err
	}
	class := estover.Public
	for _, act := range actions {
		if !class.Covers(act.Class) {
			class = act.Class
		}
		for name := range item.Parameters {
			if item.Actions[0] != All && !slices.Contains(act.Parameters, name) {
				return ErrInvalid.With("The path of the action %s has no parameter %q.", act.Name, name).At(at + "parameters")
			}
		}
	}
	if item.Class == "" {
		item.Class = class
	}
	if !agent.Clearance.Covers(item.Class) {
		return ErrInvalid.With("The agent %s is cleared for %s data, and this is %s; nobody can approve that. Have its sponsor raise the clearance.", agent.Name, agent.Clearance, item.Class).At(at + "class")
	}
	return nil
}

// named are the actions of a resource that stand in a list.
func (res *Resource) named(list []string, at string) (all []Action, err error) {
	if slices.Contains(list, All) {
		return res.Actions, nil
	}
	for _, name := range list {
		i := slices.IndexFunc(res.Actions, func(act Action) bool { return act.Name == name })
		if i < 0 {
			return nil, ErrInvalid.With("The resource %s has no action %q.", res.Name, name).At(at + "actions")
		}
		all = append(all, res.Actions[i])
	}
	return all, nil
}

// keep makes sure that the agent of a request may act and that its session goes
// on, until the transaction ends.
func (a *Approvals) keep(ctx context.Context, tx *guard.Tx, r Request) error {
	if r.Kind != Access {
		return nil
	}
	if err := a.Acting(ctx, tx.Tx, r.Agent); err != nil {
		return err
	}
	if r.Session != "" {
		return a.Hold(ctx, tx, r.Session)
	}
	return nil
}

// asAgent is as whom policy is asked: the agent that a request for access is for.
func asAgent(caller estover.Caller, r Request) estover.Caller {
	if r.Kind != Access || caller.Acting() == estover.Agent(r.Agent) {
		return caller
	}
	return estover.Caller{
		Tenant: caller.Tenant, Subject: estover.Agent(r.Agent), Client: r.Agent, Session: r.Session, Purpose: r.Purpose,
		Strength: caller.Strength, Address: caller.Address, Request: caller.Request,
	}
}

// questions are what policy is asked about a request: one for each action. It keeps
// in the request of what the agent is eligible.
func (a *Approvals) questions(ctx context.Context, caller estover.Caller, r *Request) (all []guard.Op, err error) {
	life := time.Duration(r.Seconds) * time.Second
	if r.Kind != Access {
		return []guard.Op{{
			Action: Elevate, Target: r.Target, Purpose: r.Purpose, Effect: guard.Manages,
			Input: Elevation{Action: string(r.Kind), Class: estover.Restricted, For: life},
		}}, nil
	}
	err = a.guard.DB().View(ctx, caller.Tenant, func(tx *db.Tx) error {
		all, r.Eligible = nil, make([]bool, len(r.Items))
		for i, item := range r.Items {
			res, err := a.Resource(ctx, tx, item.Resource)
			if err != nil {
				return err
			}
			actions, err := res.named(item.Actions, fmt.Sprintf("items[%d].", i))
			if err != nil {
				return err
			}
			if a.Eligible != nil {
				if r.Eligible[i], err = a.Eligible(ctx, tx, *r, item); err != nil {
					return err
				}
			}
			for _, act := range actions {
				e := Elevation{Action: act.Name, Class: act.Class, For: life, Eligible: r.Eligible[i]}
				if item.Parameters != nil {
					e.Params = item.Parameters
				}
				all = append(all, guard.Op{
					Action: Elevate, Target: "resource:" + res.ID, Resource: res.ID, Session: r.Session, Purpose: r.Purpose, Effect: act.Effect, Input: e,
				})
			}
		}
		return nil
	})
	return all, err
}

// An answer is what policy said to all questions about a request.
type answer struct {
	permitted   bool
	rule        string // of the first question that is not permitted, or else of the first
	revision    string
	obligations []guard.Obligation
}

// decided asks policy. What it denies is put on record as refused, and returned
// as a [*guard.Refusal].
func (a *Approvals) decided(ctx context.Context, as estover.Caller, questions []guard.Op) (said answer, err error) {
	said.permitted = len(questions) > 0
	for i, q := range questions {
		d, err := a.Decide(ctx, as, q)
		if err != nil {
			return said, err
		}
		if !d.Allow && !undecided(d) {
			if d, err = a.guard.Admit(ctx, as, q); err != nil {
				return said, err
			}
		}
		if i == 0 || said.permitted && !d.Allow {
			said.rule, said.revision = d.Rule, d.Revision
		}
		said.permitted = said.permitted && d.Allow
		said.obligations = append(said.obligations, d.Obligations...)
	}
	return said, nil
}

// undecided reports whether policy neither permits nor denies: people may.
func undecided(d guard.Decision) bool {
	return d.Engine == "policy" && len(d.Reasons) == 1 && d.Reasons[0] == NotPermitted
}

// NotPermitted is the reason of a refusal that no rule gave.
const NotPermitted = "not_permitted"

// render is the document of what is on the table in a round.
func (r *Request) render(tenant estover.TenantID, offer Granted, round int64) ([]byte, error) {
	d := document.Document{
		Tenant: tenant, Request: r.ID, Kind: string(r.Kind), Requester: r.Requester, Agent: r.Agent, AgentName: r.AgentName, Chain: r.Chain,
		Session: r.Session, Purpose: r.Purpose, Reason: r.Reason, Target: r.Target, Arguments: r.Arguments,
		Budgets: []document.Budget{
			{Name: "calls", Most: offer.Budgets.Calls},
			{Name: "rows", Most: offer.Budgets.Rows},
			{Name: "records", Most: offer.Budgets.Records},
			{Name: "bytes_out", Most: offer.Budgets.BytesOut},
			{Name: "money", Most: offer.Budgets.Money},
			{Name: "seconds", Most: offer.Budgets.Seconds},
			{Name: "fan_out", Most: offer.Budgets.FanOut},
		},
		Revision: r.Policy.Revision, Approvals: r.Rule.Quorum, Signed: r.Rule.Signed, Seconds: offer.Seconds, Uses: offer.Budgets.Calls,
		NotAfter: r.ExpiresAt.Add(time.Duration(offer.Seconds) * time.Second), Nonce: fmt.Sprintf("%s-%d", r.nonce, round),
	}
	for _, item := range offer.Items {
		d.Items = append(d.Items, document.Item{
			Resource: item.Resource, Name: item.Name, Class: item.Class, Actions: item.Actions, Parameters: item.Parameters,
		})
	}
	return document.New(d)
}
