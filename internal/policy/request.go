package policy

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"estover.dev"
	"estover.dev/internal/guard"
)

// Sources is where policy learns what it decides on. Each function answers
// from memory (a [guard.Cache]): it is called on every decision. What it
// returns is shared with other decisions and never changed.
//
// A thing that is not there is an [estover.Error] of kind NotFound; any other
// error refuses the request, since nothing is known about it.
type Sources struct {
	// Agent is an agent of the tenant.
	Agent func(ctx context.Context, tenant estover.TenantID, id string) (*Agent, error)

	// Session is a session of the tenant, also one that has ended.
	Session func(ctx context.Context, tenant estover.TenantID, id string) (Session, error)

	// Grants are the grants of an agent. Ended and lapsed ones may be among
	// them.
	Grants func(ctx context.Context, tenant estover.TenantID, agent string) (*Grants, error)

	// Resource is what stands in [guard.Op.Resource], or, for an operation on
	// secrets, the secret in [guard.Op.Target] ("secret:…").
	Resource func(ctx context.Context, tenant estover.TenantID, ref string) (*Resource, error)

	// Tenant says why there is no such tenant, or why it may do nothing, by an error
	// of kind NotFound or Denied. Nil knows every one.
	Tenant func(ctx context.Context, tenant estover.TenantID) error

	// Holds are the holds that cover an agent along with others, as codes: those on
	// its blueprint, its sponsor's agents, the tenant or everything. Nil is none.
	Holds func(ctx context.Context, tenant estover.TenantID, a *Agent) ([]string, error)

	// Owner is the id of the agent to whom a target belongs that is neither an
	// agent nor a session: "oauth_grant:…", "credential:…". "" is nobody. It is
	// asked about what agents do in the management of Estover. Nil knows none.
	Owner func(ctx context.Context, tenant estover.TenantID, target string) (string, error)

	// Pending reports whether somebody is being asked to let an agent do this to the
	// resource. It is asked about what no grant covers. Nil knows of nothing.
	Pending func(ctx context.Context, tenant estover.TenantID, agent, session, resource, action string) (bool, error)

	// Token says whether what the caller's token rests on is still good. Nil
	// leaves that to the transaction, which looks at the rows themselves.
	Token func(ctx context.Context, caller estover.Caller) error
}

// A Session is what policy knows of a task.
type Session struct {
	ID      string
	Agent   string // the agent whose task it is
	Purpose string
	Within  []string // the sessions that it is a part of, the nearest first
	Ended   bool
	Expires time.Time // zero is never
	Epoch   int64     // raised by whatever changes what its tokens are worth
	Budget  string    // ok, near or exceeded; "" is ok
	Bound   string    // process, user or none: to what it is bound, as its launcher says; "" is none
}

// A Call is the [guard.Op.Input] of gateway.call, of secret.use and of what hands
// out something for an action (lease.create, pki.sign, …): what the
// resource's catalogue says of the request at hand. Its effect is
// [guard.Op.Effect].
type Call struct {
	Action string        // the name that the resource has for it: customer.read; "" if it has none
	Class  estover.Class // of the data that the action reaches; "" is the resource's
	Params any           // the arguments, for rules that ask for them; a value that JSON could hold

	// Charged are the grants of whose budgets a call that is under way has taken its
	// share: that nothing is left of them is no reason to end it.
	Charged []string

	// Foreseen says that nobody makes the call: it is asked what would be said of it
	// in a session that would be opened for the purpose. Only what makes no call
	// sets it.
	Foreseen bool
}

// A Request is the [guard.Op.Input] of token.issue: what the token is to be
// for.
type Request struct {
	Resources []string // the ids of the resources; empty is [guard.Op.Resource], or whatever the agent is granted
}

// A handover is the [guard.Op.Input] of token.issue when somebody's token is
// handed on.
type handover interface {
	// Handover is the agent whose token it is, and how it came to the one who
	// presents it, as a word of the fact handover; "" if none is handed on.
	Handover() (from estover.Subject, how string)
}

// An identifying is the [guard.Op.Input] of token.issue when the token may be
// for learning who a person is.
type identifying interface {
	// Identifies reports whether it is for nothing else. That rests on what the
	// person agreed to, and on no grant of the agent's.
	Identifies() bool
}

// An elsewhere is the [guard.Op.Input] of token.issue when what is issued is for
// the authorization server of somebody else.
type elsewhere interface {
	// Elsewhere is that server's issuer, "" for none, and the scopes that are
	// asked for there. A rule finds them as input.resource, of the type
	// authorization_server, and input.params.scope.
	Elsewhere() (issuer string, scopes []string)
}

// elevate is the operation about which policy is asked before an agent is given
// something that it asks for.
const elevate = "access.elevate"

// An elevating is the [guard.Op.Input] of access.elevate.
type elevating interface {
	// Elevates is the action that is asked for, by the name that the resource has for
	// it, the class of the data that it reaches, for how long, and what the parameters
	// of its path may be, which a rule finds as input.params; nil for anything. And
	// whether the agent has been given it already, to be activated.
	Elevates() (action string, class estover.Class, life time.Duration, params any, eligible bool)
}

// span is a duration as a word of the fact duration.
func span(d time.Duration) string {
	switch {
	case d <= 0:
		return "none"
	case d <= time.Hour:
		return "short"
	case d <= 8*time.Hour:
		return "usual"
	}
	return "long"
}

// A detailed is the [guard.Op.Input] of token.issue when the token would have
// authorization details.
type detailed interface {
	// Detailed are the authorization details as JSON has them, nil for none, which a
	// rule finds as input.params.authorization_details, and whether they confine
	// the token to tasks.
	Detailed() (details []any, confined bool)
}

// A Grant lets an agent do something.
type Grant struct {
	ID       string
	Resource string        // the id of a resource, or secret:NAME
	Actions  []string      // names, a prefix that ends in ".*", or "*" for all
	Class    estover.Class // the most sensitive class that it covers; "" leaves that to the agent's clearance
	Purposes []string      // for which it was given; empty is every one that the agent has declared

	// Parameters are the values that those of an action's path may have; nil for
	// anything.
	Parameters map[string][]string

	Session  string // the task that it belongs to; "" is none
	Elevated bool   // asked for and approved, rather than standing
	Unused   bool   // it has not been used for long
	From     time.Time
	Until    time.Time // zero is never
	Ended    bool

	// Left says how much is left of its budgets, ok, near or exceeded, and which of
	// them that is about. Nil if it has none.
	Left func(ctx context.Context) (word, which string, err error)
}

// Grants are the grants of one agent, by resource.
type Grants struct {
	all        []Grant
	byResource map[string][]Grant
}

// NewGrants makes a snapshot of grants. It takes the list over.
func NewGrants(list []Grant) *Grants {
	g := &Grants{all: list, byResource: make(map[string][]Grant, len(list))}
	for _, one := range list {
		g.byResource[one.Resource] = append(g.byResource[one.Resource], one)
	}
	return g
}

// live reports whether a grant holds now and in one of these sessions.
func (g *Grant) live(sessions []string, now time.Time) bool {
	return !g.Ended && (g.Session == "" || contains(sessions, g.Session)) &&
		(g.From.IsZero() || !now.Before(g.From)) && (g.Until.IsZero() || now.Before(g.Until))
}

// sessions are the one in which it is done, and those that it is a part of.
func (k *known) sessions() []string {
	if !k.tasked {
		return nil
	}
	return append(k.task.Within[:len(k.task.Within):len(k.task.Within)], k.task.ID)
}

// names reports whether a grant names an action.
func (g *Grant) names(action string) bool {
	for _, a := range g.Actions {
		if a == action && a != "" || a == "*" {
			return true
		}
		if prefix, ok := strings.CutSuffix(a, "*"); ok && strings.HasSuffix(prefix, ".") && strings.HasPrefix(action, prefix) {
			return true
		}
	}
	return false
}

// given reports whether a grant was given for a purpose.
func (g *Grant) given(purpose string) bool {
	return len(g.Purposes) == 0 || contains(g.Purposes, purpose)
}

// ErrNoFacts is returned when what a decision rests on cannot be had.
var ErrNoFacts = &estover.Error{Kind: estover.Unavailable, Code: "policy_facts_unavailable", Detail: "What this decision rests on cannot be read, so the answer is no. Try again."}

// handsOut are the operations that give an agent something by which it gets at
// data elsewhere, or that do something with a key in its place. Each is for an
// action of a resource, which a grant has to cover.
var handsOut = []string{
	"lease.create", "lease.renew", "pki.issue", "pki.sign", "ssh.issue", "ssh.sign",
	"transit.datakey", "transit.decrypt", "transit.encrypt", "transit.hmac", "transit.rewrap", "transit.sign", "transit.verify",
}

// The operations of agents that need a grant, as estover.base has them.
var dataPath = append([]string{"gateway.call", "secret.use", "token.issue"}, handsOut...)

// known is what is known of one request: what policy sees and what only the
// kernel asks for.
type known struct {
	Input
	caller     estover.Caller
	agent      *Agent // who acts, if an agent does
	needsGrant bool
	tasked     bool     // it is done in a task
	task       Session  // which, if so
	foreseen   bool     // a session of the agent's own would be opened for it
	holds      []string // that cover the agent along with others
	at         string   // the identifier of the resource that is reached; "" if it is none of the catalogue
	unique     bool     // its answer would never be asked for again
	spent      string   // which budget is used up
	charged    []string // the grants of whose budgets it has taken its share
	now        time.Time
}

// gather finds out what a request is about and writes it to k, which knows nothing
// yet. The error is a refusal of the kernel, told by its code, or ErrNoFacts.
func (s *Sources) gather(ctx context.Context, k *known, caller estover.Caller, op guard.Op, now time.Time) error {
	k.caller, k.now = caller, now
	k.Op, k.Action, k.Effect, k.Facts = op.Action, op.Action, string(op.Effect), Unremarkable
	k.Agent, k.Purpose = nobody, clean(op.Purpose)
	if k.Purpose == "" {
		k.Purpose = clean(caller.Purpose)
	}
	k.needsGrant = contains(dataPath, op.Action)
	acting := caller.Subject
	if len(caller.Actors) > 0 {
		acting = caller.Actors[0]
		k.Facts.Delegated = true
		k.Facts.HumanRoot = caller.Subject.Kind() == estover.UserKind
	}
	k.Caller = acting.Kind()
	if s.Tenant != nil && k.Caller != estover.SystemKind { // what Estover itself ends and sweeps goes on
		switch err := s.Tenant(ctx, caller.Tenant); estover.KindOf(err) {
		case estover.NotFound, estover.Denied:
			return errKernel("kernel_tenant")
		default:
			if err != nil {
				return ErrNoFacts.Because(err)
			}
		}
	}
	k.Facts.AuthStrength = among("auth_strength", string(caller.Strength), "secret")
	switch k.Caller {
	case estover.AgentKind:
		agent, err := s.Agent(ctx, caller.Tenant, acting.ID())
		if err != nil {
			return refuse(err, "kernel_agent_unknown")
		}
		k.agent, k.Agent = agent, agent
		k.Facts.AgentTier = among("agent_tier", agent.Tier, "high")
		k.Facts.RiskBand = among("risk_band", agent.Risk, "critical")
		if s.Token != nil {
			if err := s.Token(ctx, caller); err != nil {
				return errKernel("kernel_token")
			}
		}
		if s.Holds != nil {
			if k.holds, err = s.Holds(ctx, caller.Tenant, agent); err != nil {
				return ErrNoFacts.Because(err)
			}
		}
	case estover.UserKind:
		k.Admin, k.Operator, k.Auditor = caller.Has(estover.Admin), caller.Has(estover.Operator), caller.Has(estover.Auditor)
		k.Approver = caller.Has(estover.Approver)
	case estover.SystemKind:
	default:
		return errKernel("kernel_subject")
	}
	if err := s.session(ctx, k, op); err != nil {
		return err
	}
	if err := s.delegator(ctx, k, op); err != nil {
		return err
	}
	if err := s.resource(ctx, k, op); err != nil {
		return err
	}
	if err := s.own(ctx, k, op, acting); err != nil {
		return err
	}
	return s.entitlement(ctx, k, op)
}

// session finds the task in which the request is made.
func (s *Sources) session(ctx context.Context, k *known, op guard.Op) error {
	id := op.Session
	if id == "" || strings.HasPrefix(op.Action, "session.") {
		id = k.caller.Session // an operation on a session is not a part of that session's task
	}
	if id == "" {
		return nil
	}
	if k.agent == nil {
		k.Session = clean(id)
		return nil // people look at sessions; they work in none
	}
	task, err := s.Session(ctx, k.caller.Tenant, id)
	if err != nil {
		return refuse(err, "kernel_session_unknown")
	}
	k.tasked, k.task, k.Session = true, task, clean(task.ID)
	if k.Purpose == "" {
		k.Purpose = clean(task.Purpose)
	}
	k.Facts.Budget = among("budget", task.Budget, "exceeded")
	k.Facts.Bound = among("bound", task.Bound, "none")
	return nil
}

// delegator finds whose token is handed on, if one is.
func (s *Sources) delegator(ctx context.Context, k *known, op guard.Op) error {
	h, ok := op.Input.(handover)
	if !ok {
		return nil
	}
	from, how := h.Handover()
	if how == "" {
		return nil
	}
	k.Facts.Handover = among("handover", how, "edge")
	if from.Kind() != estover.AgentKind {
		return nil
	}
	agent, err := s.Agent(ctx, k.caller.Tenant, from.ID())
	if err != nil {
		return refuse(err, "kernel_agent_unknown")
	}
	k.Delegator = agent
	return nil
}

// resource finds what the request reaches, and of what class the data is.
func (s *Sources) resource(ctx context.Context, k *known, op guard.Op) error {
	call, _ := op.Input.(Call)
	if e, ok := op.Input.(elevating); ok {
		var life time.Duration
		call.Action, call.Class, life, call.Params, k.Facts.Eligible = e.Elevates()
		k.Facts.Duration = span(life)
	}
	k.Params, k.foreseen, k.charged = call.Params, call.Foreseen, call.Charged
	noun, _, _ := strings.Cut(op.Action, ".")
	ref := op.Resource
	if ref == "" && noun == "secret" && strings.HasPrefix(op.Target, "secret:") && op.Action != "secret.create" {
		ref = op.Target
	}
	switch {
	case ref != "":
		r, err := s.Resource(ctx, k.caller.Tenant, ref)
		switch {
		case err == nil:
			k.Resource = r
			k.at = r.Identifier
		case op.Resource == "" && estover.KindOf(err) == estover.NotFound:
			// Whoever may do this to secrets hears from the secrets that this
			// one is not there. It counts as one of which nobody has said anything.
			k.Resource = &Resource{ID: clean(ref), Type: noun, Class: estover.Confidential}
			k.unique = true
		default:
			return refuse(err, "kernel_resource_unknown")
		}
	case op.Action == "gateway.call":
		k.Resource = unknown
	case noun == "token":
		k.Resource = tokens
		if e, ok := op.Input.(elsewhere); ok {
			if issuer, scopes := e.Elsewhere(); issuer != "" {
				k.Resource = &Resource{ID: clean(issuer), Type: "authorization_server", Class: estover.Internal}
				asked := make([]any, len(scopes))
				for i, s := range scopes {
					asked[i] = s
				}
				k.Params = map[string]any{"scope": asked}
				k.unique = true
			}
		}
	default:
		k.Resource = &Resource{ID: clean(op.Target), Type: noun, Class: estover.Internal}
		k.unique = true
	}
	k.Facts.TaskBound = k.caller.Tasks != nil
	if d, ok := op.Input.(detailed); ok {
		var details []any
		if details, k.Facts.TaskBound = d.Detailed(); len(details) > 0 {
			k.Params = map[string]any{"authorization_details": details}
		}
	}
	k.Class = k.Resource.Class
	if op.Action == "gateway.call" || op.Action == "secret.use" || op.Action == elevate || contains(handsOut, op.Action) {
		if call.Action != "" || op.Action == "gateway.call" {
			k.Action = clean(call.Action)
		}
		if call.Class != "" {
			k.Class = call.Class
		}
	}
	k.Facts.Destination = among("destination", k.Resource.Destination, "public")
	k.Facts.SpecialCategory = k.Resource.SpecialCategory
	return nil
}

// tokens stands for what is done to tokens in general.
var tokens = &Resource{Type: "token", Class: estover.Internal}

// own finds out whether the target belongs to who asks. What is not there is
// nobody's: an agent hears the same of it as of what is another's.
func (s *Sources) own(ctx context.Context, k *known, op guard.Op, acting estover.Subject) error {
	kind, id, _ := strings.Cut(op.Target, ":")
	switch {
	case kind == estover.AgentKind || kind == estover.UserKind || kind == "person":
		k.Facts.Own = id == acting.ID() && (kind == acting.Kind() || kind == "person" && acting.Kind() == estover.UserKind)
		return nil
	case k.agent == nil:
		return nil
	case op.Action == "session.open" || op.Action == "token.issue":
		k.Facts.Own = !k.tasked || k.task.Agent == k.agent.ID
		return nil
	}
	var owner string
	switch {
	case kind == "session" && k.tasked && k.task.ID == id:
		owner = k.task.Agent
	case kind == "session":
		other, err := s.Session(ctx, k.caller.Tenant, id)
		if err != nil && estover.KindOf(err) != estover.NotFound {
			return ErrNoFacts.Because(err)
		}
		owner = other.Agent
	case s.Owner != nil && id != "" && k.Op != "gateway.call" && k.Op != "secret.use":
		var err error
		if owner, err = s.Owner(ctx, k.caller.Tenant, op.Target); err != nil && estover.KindOf(err) != estover.NotFound {
			return ErrNoFacts.Because(err)
		}
	}
	k.Facts.Own = owner != "" && owner == k.agent.ID
	return nil
}

// entitlement finds out whether a grant covers the request, and whether the
// purpose is a declared one.
func (s *Sources) entitlement(ctx context.Context, k *known, op guard.Op) error {
	if k.agent == nil {
		k.Facts.PurposeOK = k.Purpose != "" || k.Caller == estover.SystemKind
		return nil
	}
	declared := contains(k.agent.Purposes, k.Purpose) && (!k.tasked || k.Purpose == k.task.Purpose) &&
		(len(k.Resource.Purposes) == 0 || contains(k.Resource.Purposes, k.Purpose))
	k.Facts.PurposeOK = declared
	if !k.needsGrant {
		return nil
	}
	if i, ok := op.Input.(identifying); ok && i.Identifies() {
		k.Facts.Entitled = k.Facts.HumanRoot
		return nil
	}
	grants, err := s.Grants(ctx, k.caller.Tenant, k.agent.ID)
	if err != nil {
		if estover.KindOf(err) != estover.NotFound {
			return ErrNoFacts.Because(err)
		}
		grants = NewGrants(nil)
	}
	best, err := k.covering(ctx, grants, op)
	if err != nil {
		return ErrNoFacts.Because(err)
	}
	if best != nil && (k.Op == "gateway.call" || contains(handsOut, k.Op)) {
		// Work that was handed on rests on the grants of all by way of whom it came.
		for _, holder := range append([]estover.Subject{k.caller.Subject}, k.caller.Actors...) {
			if holder.Kind() != estover.AgentKind || holder.ID() == k.agent.ID {
				continue
			}
			theirs, err := s.Grants(ctx, k.caller.Tenant, holder.ID())
			if estover.KindOf(err) == estover.NotFound {
				theirs, err = NewGrants(nil), nil
			}
			var g *Grant
			if err == nil {
				g, err = k.covering(ctx, theirs, op)
			}
			if err != nil {
				return ErrNoFacts.Because(err)
			}
			if g == nil {
				best = nil
				break
			}
		}
	}
	k.Facts.Entitled = best != nil
	k.Facts.PurposeOK = declared && best != nil && best.given(k.Purpose)
	switch {
	case best == nil && s.Pending == nil:
	case best == nil:
		waits, err := s.Pending(ctx, k.caller.Tenant, k.agent.ID, k.Session, op.Resource, k.Action)
		if err != nil {
			return ErrNoFacts.Because(err)
		}
		if waits {
			k.Facts.Elevation = "pending"
		}
	case best.Elevated:
		k.Facts.GrantKind, k.Facts.Elevation, k.Facts.UnusedLong = "elevated", "approved", best.Unused
	default:
		k.Facts.GrantKind, k.Facts.UnusedLong = "standing", best.Unused
	}
	return nil
}

// covering is the grant that covers the request, preferably one that was given
// for its purpose, and among those the first of whose budgets most is left. A
// secret that is used for a resource, with no word about the action, is covered
// by any grant on the resource: the action has been decided on by itself, and the
// agent does not see the secret.
func (k *known) covering(ctx context.Context, grants *Grants, op guard.Op) (*Grant, error) {
	if op.Action == "token.issue" {
		return k.tokenGrant(grants, op), nil
	}
	ref := op.Resource
	if ref == "" {
		ref = op.Target
	}
	handed := k.Op == "secret.use" && k.Action == k.Op && op.Resource != ""
	params, _ := k.Params.(map[string]string)
	var best *Grant
	var bestWord, bestWhich string
	outside := false
	list := grants.byResource[ref]
	for i := range list {
		g := &list[i]
		if !g.live(k.sessions(), k.now) {
			continue
		}
		if handed {
			if best == nil || !best.given(k.Purpose) && g.given(k.Purpose) {
				best = g
			}
			continue
		}
		if !g.names(k.Action) || g.Class != "" && !g.Class.Covers(k.Class) {
			continue
		}
		if !on(g.Parameters, params) {
			outside = true
			continue
		}
		word, which := "ok", ""
		if g.Left != nil && !contains(k.charged, g.ID) {
			var err error
			if word, which, err = g.Left(ctx); err != nil {
				return nil, err
			}
		}
		if best == nil || !best.given(k.Purpose) && g.given(k.Purpose) ||
			best.given(k.Purpose) == g.given(k.Purpose) && word != bestWord && worse(word, bestWord) == bestWord {
			best, bestWord, bestWhich = g, word, which
		}
	}
	switch {
	case best == nil:
		k.Facts.ArgsInScope = !outside
	case best.Left != nil && !handed:
		if word := among("budget", bestWord, "exceeded"); word != "ok" {
			k.Facts.Budget, k.spent = worse(k.Facts.Budget, word), bestWhich
		}
	}
	return best, nil
}

// worse is the one of two words of the fact budget that leaves less.
func worse(a, b string) string {
	order := []string{"ok", "near", "exceeded"}
	if slices.Index(order, a) > slices.Index(order, b) {
		return a
	}
	return b
}

// tokenGrant is a grant on what the token is to be for: on every resource that
// is named, or any grant if none is.
func (k *known) tokenGrant(grants *Grants, op guard.Op) *Grant {
	wanted, _ := op.Input.(Request)
	refs := wanted.Resources
	if len(refs) == 0 && op.Resource != "" {
		refs = []string{op.Resource}
	}
	pick := func(list []Grant) *Grant {
		var best *Grant
		for i := range list {
			if g := &list[i]; g.live(k.sessions(), k.now) && (best == nil || !best.given(k.Purpose) && g.given(k.Purpose)) {
				best = g
			}
		}
		return best
	}
	if len(refs) == 0 {
		return pick(grants.all)
	}
	var best *Grant
	for _, ref := range refs {
		g := pick(grants.byResource[ref])
		if g == nil {
			return nil
		}
		if best == nil || !g.given(k.Purpose) {
			best = g
		}
	}
	return best
}

// refuse turns the error of a source into a refusal if the thing is not there.
func refuse(err error, code string) error {
	if estover.KindOf(err) == estover.NotFound {
		return errKernel(code)
	}
	var known *estover.Error
	if errors.As(err, &known) && known.Is(ErrNoFacts) {
		return err
	}
	return ErrNoFacts.Because(err)
}

// among is the word of a fact that a source supplied: the usual one if the
// source said nothing, and the one that permits least if it said what is not
// on the list.
func among(name, word, otherwise string) string {
	i := 0
	for facts[i].name != name { // it is there: the name is ours
		i++
	}
	switch f := &facts[i]; {
	case word == "":
		return *f.word(&Unremarkable)
	case contains(f.list, word):
		return word
	}
	return otherwise
}

// clean makes a word that came from outside fit for JSON.
func clean(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// member reports whether a segment is one of an agent's.
func (a *Agent) member(segment string) bool {
	return len(a.Segments) == 0 || segment == "" || slices.Contains(a.Segments, segment)
}
