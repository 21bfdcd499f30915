package authzen

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
	"estover.dev/internal/evidence"
	"estover.dev/internal/guard"
	"estover.dev/internal/job"
	"estover.dev/internal/policy"
	"estover.dev/internal/resource"
)

// agentType is the type of the subjects that there are.
const agentType = "agent"

// The refusals of this door, beside those of the kernel and of policy.
var (
	noSubject = guard.Decision{
		Reasons: []string{"subject_unknown"}, Engine: "kernel", Message: "There is no such subject.",
		Next: "Ask about an agent, by its id or its name.",
	}
	noAction = guard.Decision{
		Reasons: []string{"unknown_action"}, Engine: "kernel", Message: "The resource has no action for this.",
		Next: "Name one of the actions that the resource has, or have an operator add it to the resource.",
	}
	noDuty = guard.Decision{
		Reasons: []string{"obligation_unmet"}, Message: "Policy allows this only together with something that you say you cannot do.",
		Next: "Have whoever enforces it learn that, or your administrator change the policy's obligation.",
	}
)

// evaluation answers one question (AuthZEN, section 6).
func (d *Door) evaluation(a *asking) (any, error) {
	var q question
	if err := into(a.body, &q); err != nil {
		return nil, err
	}
	return d.evaluate(a.Context(), a, &q)
}

// The ways of going through a batch (section 7.1.2.1).
const (
	executeAll   = "execute_all"
	firstDenial  = "deny_on_first_deny"
	firstPermit  = "permit_on_first_permit"
	parallelEach = 8 // questions of one batch at a time
)

// evaluations answers several questions in their order (section 7). A question
// that is wrong is answered with no in its place.
func (d *Door) evaluations(a *asking) (any, error) {
	var b batch
	if err := into(a.body, &b); err != nil {
		return nil, err
	}
	if len(b.Evaluations) == 0 { // section 7.1: as the single evaluation
		return d.evaluate(a.Context(), a, &b.question)
	}
	if len(b.Evaluations) > maxEvaluations {
		return nil, missing("evaluations", "There are more than %d. Ask in several requests.", maxEvaluations)
	}
	semantic := b.Options.Semantic
	switch semantic {
	case "":
		semantic = executeAll
	case executeAll, firstDenial, firstPermit:
	default:
		return nil, missing("options.evaluations_semantic", "This is %s, %s or %s.", executeAll, firstDenial, firstPermit)
	}
	answers := make([]decision, len(b.Evaluations))
	if semantic == executeAll {
		err := d.all(a, &b, answers)
		return map[string]any{"evaluations": answers}, err
	}
	for i := range answers {
		var err error
		if answers[i], err = d.item(a, &b, i); err != nil {
			return nil, err
		}
		if answers[i].Decision == (semantic == firstPermit) {
			answers = answers[:i+1]
			break
		}
	}
	return map[string]any{"evaluations": answers}, nil
}

// all answers every question of a batch, some at a time: they are independent of
// each other.
func (d *Door) all(a *asking, b *batch, answers []decision) error {
	failed := make([]error, len(answers))
	next := make(chan int)
	var working sync.WaitGroup
	for range min(parallelEach, len(answers)) {
		working.Go(func() {
			for i := range next {
				failed[i] = job.Guarded(func() (err error) { answers[i], err = d.item(a, b, i); return err })
			}
		})
	}
	for i := range answers {
		next <- i
	}
	close(next)
	working.Wait()
	return first(errors.Join(failed...))
}

// item answers one question of a batch. A member that it has takes the place of
// the whole default (section 7.1.1). Its own errors are a no that says why
// (section 7.2.1).
func (d *Door) item(a *asking, b *batch, i int) (decision, error) {
	var q question
	var out decision
	err := object("evaluations", b.Evaluations[i])
	if err == nil {
		err = into(b.Evaluations[i], &q)
	}
	if err == nil {
		if q.Subject == nil {
			q.Subject = b.Subject
		}
		if q.Action == nil {
			q.Action = b.Action
		}
		if q.Resource == nil {
			q.Resource = b.Resource
		}
		if len(q.Context) == 0 {
			q.Context = b.Context
		}
		out, err = d.evaluate(a.Context(), a, &q)
	}
	if err == nil {
		return out, nil
	}
	code := status[estover.KindOf(err)]
	if code >= http.StatusInternalServerError || a.Context().Err() != nil {
		return decision{}, err
	}
	var e *estover.Error
	errors.As(err, &e)
	text := e.Detail
	if e.Field != "" {
		text = e.Field + ": " + text
	}
	return decision{Context: map[string]any{"error": map[string]any{"status": code, "message": text}}}, nil
}

// A found question has names that stand for something, as far as they do.
type found struct {
	agent    string // the id; "" for a subject that is no agent
	resource *resource.Upstream
	deeds    []variant // that the name of the action stands for; none if it stands for nothing
	purpose  string
	situation
}

// A variant is one of the requests that the name of an action stands for.
type variant struct {
	effect guard.Effect
	class  estover.Class
	params map[string]string
}

// find looks up what a question names. What is not there is left empty.
func (d *Door) find(ctx context.Context, a *asking, q *question) (f found, err error) {
	tenant := a.tenant
	if f.situation, err = q.situation(); err != nil {
		return f, err
	}
	f.purpose = f.Purpose
	if q.Subject.Type == agentType && q.Subject.ID != "" {
		if f.agent, err = d.agentID(ctx, tenant, q.Subject.ID); err != nil {
			return f, err
		}
		// Who asks about itself asks in its own session.
		if f.Session == "" && a.caller.Acting() == estover.Agent(f.agent) {
			f.Session = a.caller.Session
		}
	}
	if q.Resource.ID != "" {
		if f.resource, err = d.upstream(ctx, tenant, q.Resource); err != nil {
			return f, err
		}
	}
	if q.Action != nil && f.resource != nil {
		f.deeds, err = variants(f.resource, q.Action, f.Class)
	}
	return f, err
}

// agentID is the id of an agent, given that or its name. One that is not there
// has the id that was given, for the kernel to refuse.
func (d *Door) agentID(ctx context.Context, tenant estover.TenantID, ref string) (string, error) {
	if !estover.ValidName(ref) || len(ref) > 4 && ref[:4] == "agt_" {
		return ref, nil
	}
	id, err := d.names.Get(ctx, tenant, ref)
	if estover.KindOf(err) == estover.NotFound {
		return ref, nil
	}
	return id, err
}

// upstream is the resource of the catalogue that is named, nil if there is none
// of that type.
func (d *Door) upstream(ctx context.Context, tenant estover.TenantID, t *thing) (*resource.Upstream, error) {
	look := d.Identified
	switch {
	case len(t.ID) > 4 && t.ID[:4] == "res_":
		look = d.Resources.Upstream
	case estover.ValidName(t.ID):
		look = d.Resources.UpstreamByName
	}
	u, err := look(ctx, tenant, t.ID)
	if err != nil {
		if kind := estover.KindOf(err); kind == estover.NotFound || kind == estover.Invalid {
			err = nil
		}
		return nil, err
	}
	if u.Type != t.Type {
		return nil, nil
	}
	return u, nil
}

// parameter is one in the path of an action.
var parameter = regexp.MustCompile(`\{([a-z0-9_]+)(?:\.\.\.)?\}`)

// variants are the requests for which the name of an action stands, as far as
// its properties tell them apart: the method, and the parameters of the path.
func variants(u *resource.Upstream, a *deed, least estover.Class) ([]variant, error) {
	said := map[string]string{}
	if len(a.Properties) > 0 {
		var properties map[string]jsontext.Value
		if err := json.Unmarshal(a.Properties, &properties); err != nil {
			return nil, ErrQuestion.At("action.properties").Because(err)
		}
		for name, v := range properties {
			if v.Kind() != '"' || len(v) > 4*maxText {
				continue // it is no parameter, and what is none is for others
			}
			var s string
			if err := json.Unmarshal(v, &s); err != nil {
				return nil, ErrQuestion.At("action.properties").Because(err)
			}
			said[name] = s
		}
	}
	var all, exact []variant
	for _, one := range u.Actions {
		if one.Name != a.Name || said["method"] != "" && !method(one.Method, said["method"]) {
			continue
		}
		v := variant{effect: one.Effect, class: one.Class, params: map[string]string{}}
		if v.class == "" {
			v.class = u.Class
		}
		if least.Rank() > v.class.Rank() {
			v.class = least
		}
		names := parameter.FindAllStringSubmatch(one.Path, -1)
		whole := true
		for _, m := range names {
			value, there := said[m[1]]
			if there {
				v.params[m[1]] = value
			}
			whole = whole && there
		}
		all = append(all, v)
		if whole && len(names) > 0 {
			exact = append(exact, v)
		}
	}
	if len(exact) > 0 {
		all = exact
	}
	return slices.CompactFunc(all, func(x, y variant) bool {
		return x.effect == y.effect && x.class == y.class && maps.Equal(x.params, y.params)
	}), nil
}

// method reports whether an action of one method is done with another.
func method(have, want string) bool {
	return have == "*" || have == want || have == http.MethodGet && want == http.MethodHead
}

// evaluate answers one question and puts the answer on record.
func (d *Door) evaluate(ctx context.Context, a *asking, q *question) (decision, error) {
	if err := q.check(); err != nil {
		return decision{}, err
	}
	f, err := d.find(ctx, a, q)
	if err != nil {
		return decision{}, err
	}
	op := d.about(q, &f, map[string]any{"subject": q.Subject.Type + ":" + q.Subject.ID, "asked": q.Action.Name, "reached": q.Resource.Type + ":" + q.Resource.ID})
	admitted, err := d.Guard.Admit(ctx, a.caller, op)
	if err != nil {
		return decision{}, err
	}
	answer, owed, err := d.decide(ctx, a, q, &f)
	if err != nil {
		return decision{}, err
	}
	answer.ID = admitted.ID
	at := d.Guard.DB().Now()
	if err := d.Guard.Record(ctx, a.caller, op, answer, guard.Hot{}); err != nil {
		return decision{}, err
	}
	out := decision{Decision: answer.Allow, Context: map[string]any{"evaluation_id": answer.ID, "evaluated_at": at.Format(time.RFC3339Nano)}}
	if len(owed) > 0 {
		out.Context["obligations"] = owed
	}
	if !answer.Allow {
		out.Context["reason"] = answer.Reasons[0]
		out.Context["reason_user"] = map[string]string{"en": answer.Message}
		if answer.Next != "" {
			out.Context["next"] = answer.Next
		}
		return out, d.remedy(ctx, a, q, &f, answer, at, out.Context)
	}
	if f.Approval.ID != "" {
		ref, err := d.reference(ctx, a, q, &f, f.Approval.ID)
		if err != nil {
			return decision{}, err
		}
		if ref != nil {
			out.Context["approval"] = ref
		}
	}
	return out, nil
}

// about is what a PEP does when it asks: of the subject, who may be itself. What
// is asked is there for rules that let somebody ask about some things alone.
func (d *Door) about(q *question, f *found, detail map[string]any) guard.Op {
	op := guard.Op{Action: EvaluateAction, Effect: guard.Reads, Detail: detail}
	params := map[string]any{"resource_type": "", "resource": "", "subject_type": "", "action": ""}
	if q.Subject != nil {
		params["subject_type"] = q.Subject.Type
		op.Target = "subject:" + q.Subject.Type
	}
	if f.agent != "" {
		op.Target = string(estover.Agent(f.agent))
	}
	if q.Action != nil {
		params["action"] = q.Action.Name
	}
	if q.Resource != nil {
		params["resource_type"] = q.Resource.Type
	}
	if f.resource != nil {
		params["resource"] = f.resource.Name
	}
	for name, value := range map[string]string{"of_session": f.Session, "of_purpose": f.purpose} {
		if value != "" && detail != nil {
			detail[name] = value
		}
	}
	op.Input = policy.Call{Params: params}
	return op
}

// decide asks the decider of the gateway. What is allowed comes with what the
// PEP has to do along with it.
func (d *Door) decide(ctx context.Context, a *asking, q *question, f *found) (guard.Decision, []obligation, error) {
	if q.Subject.Type != agentType {
		return noSubject, nil, nil
	}
	purpose, err := d.purposeOf(ctx, a.tenant, f)
	if err != nil {
		return guard.Decision{}, nil, err
	}
	f.purpose = purpose
	who := estover.Caller{
		Tenant: a.tenant, Subject: estover.Agent(f.agent), Session: f.Session, Purpose: purpose,
		Strength: estover.BySecret, Request: a.caller.Request, // how the subject proved who it is, nobody has seen here
	}
	op := guard.Op{Action: evidence.CallAction, Effect: guard.Writes, Resource: "unknown", Session: f.Session, Purpose: purpose}
	if f.resource != nil {
		op.Resource, op.Target = f.resource.ID, "resource:"+f.resource.ID
	}
	if f.resource == nil || len(f.deeds) == 0 {
		op.Input = policy.Call{Foreseen: f.Session == ""}
		answer, err := d.Decide(ctx, who, op)
		if err == nil && answer.Allow {
			answer = refused(answer, noAction)
		}
		return answer, nil, err
	}
	var answer guard.Decision
	var duties []guard.Obligation
	for i, v := range f.deeds {
		op.Effect = v.effect
		op.Input = policy.Call{Action: q.Action.Name, Class: v.class, Params: v.params, Foreseen: f.Session == ""}
		one, err := d.Decide(ctx, who, op)
		if err != nil || !one.Allow {
			return one, nil, err
		}
		duties = append(duties, one.Obligations...)
		if i == 0 {
			answer = one
		}
	}
	if len(f.deeds) > 1 {
		if duties, err = policy.Merge(duties); err != nil {
			return guard.Decision{}, nil, err
		}
		answer.Obligations, answer.Encoded, answer.Told = duties, nil, nil
	}
	owed, met := d.owed(q, f, duties)
	if !met {
		return refused(answer, noDuty), nil, nil
	}
	return answer, owed, nil
}

// refused is a decision that turns out to be a refusal, with what it rested on.
func refused(answer, why guard.Decision) guard.Decision {
	answer.Allow, answer.Reasons, answer.Message, answer.Next = false, why.Reasons, why.Message, why.Next
	answer.Obligations, answer.Encoded = nil, nil
	return answer
}

// purposeOf is what the call would be made for: what the PEP says, what the
// session says, or the only purpose that the agent has.
func (d *Door) purposeOf(ctx context.Context, tenant estover.TenantID, f *found) (string, error) {
	if f.Purpose != "" || f.Session != "" || f.agent == "" {
		return f.Purpose, nil
	}
	s, err := d.Agents.Snapshot(ctx, tenant, f.agent)
	switch {
	case estover.KindOf(err) == estover.NotFound, err == nil && len(s.Purposes) != 1:
		return "", nil
	case err != nil:
		return "", err
	}
	return s.Purposes[0], nil
}
