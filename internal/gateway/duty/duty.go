// Package duty is what the gateway owes for each request besides carrying it:
// the steps of [gateway.Pipeline], made of the packages of the domain.
//
//	Decide   the resource and its action ─▶ policy ─▶ obligations
//	Intend   the call gets its number in the session, and a record that it will be made
//	Fill     the secrets of the resource go into their slots, and nowhere else
//	Settle   what became of it: the statement of a receipt, as a leaf of the log
//
// # Evidence
//
// An intent is recorded before anything is sent. With strict evidence that is a
// commit, in which the session must still be alive; with batched evidence it is
// a write to this node's spool, which outlives the process, and the database
// has it a moment later. Which of the two holds is policy's obligation, unless
// the resource asks for the stricter one. The calls of a session are numbered
// 1, 2, 3 …; when a session has ended and nothing of it is under way any more,
// its closing statement says how many there were.
//
// # What changes under way
//
// A tunnel confers nothing: every request in it is decided for itself. Streams
// are long requests, so whatever changes about a session, an agent, its grants,
// a resource or the policy is applied to them at once: what would not be
// allowed any more, or only along with an obligation that it was begun without, is
// cut.
package duty

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/internal/access"
	"estover.dev/internal/agent"
	"estover.dev/internal/audit"
	"estover.dev/internal/edge"
	"estover.dev/internal/evidence"
	"estover.dev/internal/gateway"
	"estover.dev/internal/guard"
	"estover.dev/internal/policy"
	"estover.dev/internal/recording"
	"estover.dev/internal/redact"
	"estover.dev/internal/resource"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

// intentAction is that of a call which will be made, beside that of the call itself
// ([evidence.CallAction]).
const intentAction = "gateway.intent"

// EchoAction is that of a secret that came back, and ViolationAction that of what was
// refused before it came to a decision. Their detail "then" says what is to become of
// it.
const (
	EchoAction      = "secret.echoed"
	ViolationAction = "gateway.violation"
)

// Config is what the gateway's duties are made of.
type Config struct {
	Guard      *guard.Guard
	Agents     *agent.Registry
	Resources  *resource.Catalogue
	Sessions   *session.Sessions
	Secrets    *secret.Secrets
	Recordings *recording.Recordings
	Spool      *audit.Spool
	Sealer     *seal.Sealer
	Live       *gateway.Live

	// Covered is what a call rests on.
	Covered func(ctx context.Context, caller estover.Caller, call access.Call) (Covered, error)
	// Access takes what calls draw of the budgets of grants.
	Access *access.Access
	// Approval is what was approved by a request, and how, for the receipt. Nil where
	// there are no requests.
	Approval func(ctx context.Context, tenant estover.TenantID, request string) (mode string, record []byte, err error)

	// Reachable are hosts that an agent may ever reach, also if something is granted
	// to it in the middle of a session: what the certificate authority of its
	// sessions is good for.
	Reachable func(ctx context.Context, tenant estover.TenantID, agent string) ([]string, error)
	// Granted are the resources on which an agent is granted anything, or eligible
	// for it.
	Granted func(ctx context.Context, tenant estover.TenantID, agent string) ([]*resource.Upstream, error)

	// Requestable is how an agent asks for a call that no grant covers. Nil knows no
	// way.
	Requestable func(ctx context.Context, caller estover.Caller, u *resource.Upstream, action string, params map[string]string, decision string) (*gateway.AccessRequest, error)

	// Known says why there is no such tenant, or why it may do nothing. Nil knows
	// every one.
	Known func(ctx context.Context, tenant estover.TenantID) error

	// Opened are those of a resource's private networks that its tenant may open.
	// Nil opens all.
	Opened func(ctx context.Context, tenant estover.TenantID, networks []netip.Prefix) ([]netip.Prefix, error)

	// Rests says why what a caller's authority rests on has ended, if it has: what
	// is handed on ends with whatever it was handed on by way of. Nil asks nobody.
	Rests func(ctx context.Context, caller estover.Caller) error

	// Auth is how the person at the root of the caller's grant proved who they
	// are; zero where none stands there.
	Auth func(ctx context.Context, caller estover.Caller) (token.Auth, error)

	// Lease is a field of the credential that a role makes for the caller's session,
	// for a request to a resource. Nil where there are no leases.
	Lease func(ctx context.Context, caller estover.Caller, resource, role, field string) (secret.Injection, error)
	// Leases are those of some leases that are live no more. Nil where there are none.
	Leases func(ctx context.Context, tenant estover.TenantID, ids []string) (ended []string, err error)
	// Connection is the access token of an OAuth connection, for a request to a host.
	// Nil where there are no connections.
	Connection func(ctx context.Context, caller estover.Caller, name, host string) (secret.Injection, error)

	// Drop closes the connections to upstreams that were made for a session.
	Drop func(tenant estover.TenantID, session string)

	Node   string // the name of this gateway
	Logger *slog.Logger
}

// Covered is what a call rests on.
type Covered struct {
	Grant    string           // the id of the grant that covers it; "" if there is none
	Grants   []string         // that grant, and those of all by way of whom the work came
	Document string           // of the first, for the receipt
	Request  string           // that it came of; "" if it came of none
	Accounts []access.Account // on whose budgets it draws; none for most
}

// Duties are the steps of the pipeline. It is safe for use by many at once.
type Duties struct {
	Config
	cas  *guard.Cache[*gateway.CA]
	kept *guard.Cache[*kept] // tokens of upstreams, by the digest of their handle

	mu    sync.Mutex
	tasks map[taskKey]*task
	jars  map[jarKey]*jar

	changed changed

	marked   atomic.Int64 // how often leases were marked
	unleased changed      // tenants in which some were

	needles      needles
	certificates certificates
	Counts
}

type taskKey struct {
	tenant  estover.TenantID
	session string
}

// A task is what this node knows of a session that calls through it.
type task struct {
	key   taskKey
	agent string
	epoch int64         // of the session's row
	proof attest.Digest // of the certificate that stands for the session, if one does
	idle  time.Duration // for which nobody may use the session; 0 for as long as it lives

	mu      sync.Mutex
	calls   int64            // how many intents have a number; -1 until they have been counted
	owed    []audit.Prepared // outcomes that could not be recorded yet
	closing bool
}

// New makes the duties and follows what touches the sessions of this node.
func New(c Config) *Duties {
	d := &Duties{Config: c, tasks: map[taskKey]*task{}}
	d.cas = guard.NewCache(c.Guard, caKind, d.loadCA)
	d.kept = guard.NewCache(c.Guard, keptKind, loadKept)
	c.Guard.OnTouch(d.touched)
	return d
}

// A call is what the steps carry from one to the next ([gateway.Plan.State]).
type call struct {
	task     *task
	decision guard.Decision
	op       guard.Op
	method   string
	resource *resource.Upstream
	action   resource.Action
	params   map[string]string // of the action's path
	known    bool              // there is such an action
	strict   bool
	covered  Covered
	charge   *access.Charge // what was taken of budgets; nil if there are none
	seq      int64
	intent   [32]byte // the leaf hash of the intent
	at       time.Time
	secrets  []string // id@version of what was put in
	places   []string // where which part of it was put
	leases   atomic.Pointer[[]string]
	handed   []handed          // handles of tokens that came with it
	carries  []*secret.Carried // what it has open with versions of secrets
	onEcho   map[string]string
	commits  evidence.Committed
	approval attest.ApprovalRef
	salt     func(name string) attest.Salt
	rec      *tape // nil if nothing is recorded

	sent   *gateway.Hash
	answer *gateway.Answer

	// What every call has is a part of it, and not twenty objects.
	host     string                                      // that the request is for, with its port
	plan     gateway.Plan                                // of the call
	upstream gateway.Upstream                            // of the plan
	salts    struct{ sent, came, delivered attest.Salt } // of the hashes
	tape     tape
	room     struct { // for the lists of most calls
		secrets, places [1]string
		carries         [1]*secret.Carried
		slots           [1]gateway.Slot
		values          [2]redact.Value
	}
}

// Connect decides whether there may be a tunnel to a host at all: it must be a
// resource's.
func (d *Duties) Connect(r *http.Request, ex *gateway.Exchange) (*gateway.Tunnel, error) {
	up, err := d.Resources.UpstreamByHost(r.Context(), ex.Caller.Tenant, ex.Host.String())
	switch {
	case err == nil && up.URL.Scheme == "https":
		return &gateway.Tunnel{}, nil
	case err != nil && estover.KindOf(err) != estover.NotFound:
		return nil, err
	}
	op := guard.Op{
		Action: evidence.CallAction, Effect: guard.Sends, Input: policy.Call{},
		Detail: map[string]any{"method": http.MethodConnect, "host": ex.Host.String()},
	}
	decision, err := d.admit(r.Context(), ex, op)
	if err == nil {
		err = d.nowhere(r.Context(), ex, op, decision)
	}
	return nil, err
}

// nowhere refuses what policy permits although it is in no catalogue: there is
// nowhere to go.
func (d *Duties) nowhere(ctx context.Context, ex *gateway.Exchange, op guard.Op, decision guard.Decision) error {
	r, err := d.refuse(ctx, ex, op, decision, errUnknownHost)
	if err != nil {
		return err
	}
	return r
}

var errUnknownHost = &estover.Error{Kind: estover.Denied, Code: "unknown_destination", Detail: "This host is not among the resources that agents may reach. Have an operator register it."}

// admit asks policy, and says a refusal in the gateway's way.
func (d *Duties) admit(ctx context.Context, ex *gateway.Exchange, op guard.Op) (guard.Decision, error) {
	decision, err := d.Guard.Admit(ctx, ex.Caller, op)
	if err == nil {
		return decision, nil
	}
	var refusal *guard.Refusal
	if errors.As(err, &refusal) {
		d.refusals.Add(1)
		return decision, &gateway.Refusal{
			Err:      &estover.Error{Kind: estover.Denied, Code: code(decision), Detail: decision.Message},
			Decision: decision.ID, Rule: decision.Rule, Help: decision.Next,
		}
	}
	return decision, err
}

func code(d guard.Decision) string {
	if len(d.Reasons) > 0 {
		return d.Reasons[0]
	}
	return "not_permitted"
}

// purposeHeader is where an agent may say what a request is for. Policy refuses
// a purpose that is not the session's, so nothing can be gained by it: an agent
// that says what it does is stopped before it uses data for something else.
const purposeHeader = "Estover-Purpose"

// Decide finds the resource and the action that a request is for, asks policy,
// and makes the plan that its obligations demand.
func (d *Duties) Decide(r *http.Request, ex *gateway.Exchange) (*gateway.Plan, error) {
	ctx := r.Context()
	c, err := d.classify(ctx, ex)
	if err != nil {
		return nil, err
	}
	c.op.Purpose = strings.Join(r.Header.Values(purposeHeader), ", ")
	if c.decision, err = d.admit(ctx, ex, c.op); err != nil {
		return nil, d.requestable(ctx, ex, c, lacking(ex, c, err))
	}
	if c.resource == nil || !c.known {
		return nil, d.nowhere(ctx, ex, c.op, c.decision)
	}
	if c.task, err = d.task(ctx, ex.Caller); err != nil {
		return nil, err
	}
	d.Sessions.Seen(c.task.key.tenant, c.task.key.session, c.task.idle)
	ex.Keep(c)
	if c.handed, err = handles(r, ex); err != nil {
		return nil, err
	}
	if err := d.recognise(r, ex, c); err != nil {
		return nil, err
	}
	return d.plan(ctx, ex, c)
}

// grantable are the reasons of a refusal that a grant would take away. If there is
// another among them nobody can approve the call.
var grantable = []string{"not_granted", "outside_parameters", "purpose_mismatch", "not_permitted"}

// requestable adds to a refusal how the call could be asked for.
func (d *Duties) requestable(ctx context.Context, ex *gateway.Exchange, c *call, err error) error {
	var r *gateway.Refusal
	if d.Requestable == nil || !errors.As(err, &r) || c.resource == nil || !c.known || c.decision.Engine != "policy" || len(c.decision.Reasons) == 0 ||
		slices.ContainsFunc(c.decision.Reasons, func(why string) bool { return !slices.Contains(grantable, why) }) {
		return err
	}
	asked, _ := c.op.Input.(policy.Call)
	params, _ := asked.Params.(map[string]string)
	how, failed := d.Requestable(ctx, ex.Caller, c.resource, c.action.Name, params, r.Decision)
	if failed != nil {
		d.Logger.Error("how a refused call could be asked for is not known", "request", ex.Caller.Request, "error", failed)
		return err
	}
	switch r.Access = how; {
	case how == nil:
	case how.Pending != "":
		r.Help = "This has been asked for and waits for a decision (" + how.Pending + "). Try again when it is approved."
	default:
		r.Help = "Ask for it: send the body of access_request to its endpoint, with a reason. " + r.Help
	}
	return err
}

// lacking adds to a refusal which scope would help, if the token lacks that and
// nothing else: what the agent is not granted no token has.
func lacking(ex *gateway.Exchange, c *call, err error) error {
	var r *gateway.Refusal
	if ex.Challenge != nil && errors.As(err, &r) && slices.Equal(c.decision.Reasons, []string{policy.NotInToken}) {
		r.Challenge = ex.Challenge("insufficient_scope", edge.Need{Scopes: []string{c.action.Name}})
	}
	return err
}

// eventRoom is for what an event of a call tells, with what the guard adds to it. Most
// are no longer.
const eventRoom = 1280

// classify names what is asked for: the resource, the action and its class.
func (d *Duties) classify(ctx context.Context, ex *gateway.Exchange) (*call, error) {
	c := &call{at: d.Guard.DB().Now(), method: ex.Method, host: ex.Host.String()}
	told := audit.AppendMember(make([]byte, 0, eventRoom), ',', "method", ex.Method)
	told = audit.AppendMember(told, ',', "host", c.host)
	told = audit.AppendMember(told, ',', "path", string(ex.Path))
	if ex.Query != "" {
		told = audit.AppendMember(told, ',', "query", ex.Query)
	}
	input := policy.Call{}
	c.op = guard.Op{Action: evidence.CallAction, Effect: guard.Writes}
	up, err := d.upstream(ctx, ex)
	if err != nil && estover.KindOf(err) != estover.NotFound {
		return nil, err
	}
	if err == nil {
		c.resource, c.op.Resource, c.op.Target = up, up.ID, "resource:"+up.ID
		if c.action, c.params, c.known = up.Match(ex.Method, string(ex.Path)); c.known {
			c.op.Effect = c.action.Effect
			input.Action, input.Class, input.Params = c.action.Name, c.action.Class, c.params
			told = audit.AppendMember(told, ',', "action", c.action.Name)
		}
	}
	c.op.Input, c.op.Members = input, told
	return c, nil
}

func (d *Duties) upstream(ctx context.Context, ex *gateway.Exchange) (*resource.Upstream, error) {
	if ex.Route != "" {
		return d.Resources.RouteByName(ctx, ex.Caller.Tenant, ex.Route)
	}
	return d.Resources.UpstreamByHost(ctx, ex.Caller.Tenant, ex.Host.String())
}

// recordLevel is how much of a call is recorded.
type recordLevel int

const (
	recordNone recordLevel = iota
	recordMeta             // heads
	recordFull             // and bodies
)

var recordLevels = map[string]recordLevel{"none": recordNone, "meta": recordMeta, "full": recordFull}

// plan says how the call is to be made: policy's obligations and what the
// resource asks for, the stricter of both. An obligation that cannot be carried
// out here is a refusal.
func (d *Duties) plan(ctx context.Context, ex *gateway.Exchange, c *call) (*gateway.Plan, error) {
	up := c.resource
	private := up.Private
	if d.Opened != nil && len(private) > 0 {
		var err error
		if private, err = d.Opened(ctx, ex.Caller.Tenant, private); err != nil {
			return nil, err
		}
	}
	c.upstream = gateway.Upstream{
		Scheme: up.URL.Scheme, Host: ex.Host, Address: up.Address, Roots: up.Roots, Opening: edge.Opening{Prefixes: private}, Revision: revisionOf(up, private),
	}
	c.plan = gateway.Plan{
		Decision: c.decision.ID, State: c, Upstream: &c.upstream, Tripwire: tripwire(),
		Limits: gateway.Limits{Request: up.Limits.BodyBytes, Answer: up.Limits.BodyBytes},
	}
	p := &c.plan
	if up.Limits.TimeoutSeconds > 0 {
		p.Upstream.FirstByte = time.Duration(up.Limits.TimeoutSeconds) * time.Second
	}
	c.strict = up.Evidence == "strict"
	level, asked := recordLevels[up.Record], up.Record != ""
	for _, o := range c.decision.Obligations {
		switch o.Type {
		case "evidence":
			c.strict = c.strict || o.Properties["mode"] != "batched"
		case "record":
			word, _ := o.Properties["level"].(string)
			l, known := recordLevels[word]
			if !known {
				return nil, d.cannot(ctx, ex, c, o)
			}
			level, asked = max(level, l), true
		case "step-up":
			if err := d.stepUp(ctx, ex, c, o); err != nil {
				return nil, err
			}
		case "receipt", "notification":
			// Every call has a receipt; whoever is to be told follows the log.
		case "limit":
			if !limit(&p.Limits, o.Properties) {
				return nil, d.cannot(ctx, ex, c, o)
			}
		default:
			return nil, d.cannot(ctx, ex, c, o)
		}
	}
	if !asked {
		level = recordFull
	}
	c.commits = evidence.Committed{Seed: evidence.NewSeed(), Principal: ex.Caller.Subject}
	if err := d.cover(ctx, ex, c); errors.Is(err, errUncovered) {
		r, err := d.refuse(ctx, ex, c.op, c.decision, errUncovered)
		if err != nil {
			return nil, err
		}
		return nil, r
	} else if err != nil {
		return nil, err
	}
	d.taps(ex, c, p, level)
	return p, nil
}

// approved is how a receipt refers to the approval that a call rests on.
func (d *Duties) approved(ctx context.Context, tenant estover.TenantID, c evidence.Committed) (ref attest.ApprovalRef, err error) {
	if c.Approval == "" || d.Approval == nil {
		return ref, nil
	}
	mode, record, err := d.Approval(ctx, tenant, c.Approval)
	if err != nil {
		return ref, err
	}
	ref.Mode = mode
	if record != nil {
		ref.Digest = attest.Commit(c.Salt(attest.ApprovalRecord), record)
	}
	return ref, nil
}

// class is the class of the data that the call reaches.
func (c *call) class() estover.Class {
	if c.action.Class != "" {
		return c.action.Class
	}
	return c.resource.Class
}

// errObligation refuses a call because of an obligation that this door does not
// know.
var errObligation = &estover.Error{Kind: estover.Denied, Code: "obligation_unmet", Detail: "Policy allows this only together with something that the gateway cannot do."}

func (d *Duties) cannot(ctx context.Context, ex *gateway.Exchange, c *call, o guard.Obligation) error {
	r, err := d.refuse(ctx, ex, c.op, c.decision, errObligation.With("Policy allows this only together with something that the gateway cannot do: %s.", o.Type))
	if err != nil {
		return err
	}
	r.Help = "Have your administrator change the policy's obligation."
	return r
}

// refuse records that a call which policy allows is refused here all the same.
func (d *Duties) refuse(ctx context.Context, ex *gateway.Exchange, op guard.Op, refused guard.Decision, why *estover.Error) (*gateway.Refusal, error) {
	d.refusals.Add(1)
	refused.Allow, refused.Reasons, refused.Message = false, []string{why.Code}, why.Detail
	if err := d.Guard.Record(ctx, ex.Caller, op, refused, guard.Hot{Outcome: audit.Refused}); err != nil {
		return nil, err
	}
	return &gateway.Refusal{Err: why, Decision: refused.ID, Rule: refused.Rule}, nil
}

// errStepUp refuses a call for which the person at the root has to prove anew
// who they are (RFC 9470, section 3).
var errStepUp = &estover.Error{Kind: estover.Unknown, Code: "insufficient_user_authentication", Detail: "Policy allows this only shortly after the person has signed in, or by a stronger sign-in."}

// stepUp refuses a call unless the person at the root of the caller's grant has
// proved who they are by the class of sign-in that policy wants, and not too long
// ago. Where nobody stands there, nobody has.
func (d *Duties) stepUp(ctx context.Context, ex *gateway.Exchange, c *call, o guard.Obligation) error {
	need := edge.Need{Scopes: []string{c.action.Name}}
	for name, v := range o.Properties {
		ok := false
		switch name {
		case "acr_value":
			need.Class, ok = v.(string)
		case "max_age":
			need.MaxAge, ok = number(v)
			ok = ok && need.MaxAge > 0
		}
		if !ok { // amr_values cannot be asked of a client
			return d.cannot(ctx, ex, c, o)
		}
	}
	auth, err := d.Auth(ctx, ex.Caller)
	if err != nil {
		return err
	}
	fresh := need.MaxAge == 0 || c.at.Sub(time.Unix(auth.Time, 0)) <= time.Duration(need.MaxAge)*time.Second
	if auth.Time != 0 && fresh && (need.Class == "" || need.Class == auth.Class) {
		return nil
	}
	r, err := d.refuse(ctx, ex, c.op, c.decision, errStepUp)
	if err != nil {
		return err
	}
	r.Help = "Have the person sign in again, with max_age and acr_values as the answer says, and use the token that comes of it."
	if ex.Challenge == nil {
		r.Err = &estover.Error{Kind: estover.Denied, Code: errStepUp.Code, Detail: errStepUp.Detail}
		return r
	}
	r.Challenge = ex.Challenge(errStepUp.Code, need)
	return r
}

// number is a number of an obligation, whoever has read it.
func number(v any) (int64, bool) {
	switch n := v.(type) {
	case json.Number:
		i, err := n.Int64()
		return i, err == nil
	case float64:
		return int64(n), true
	case int64:
		return n, true
	case int:
		return int64(n), true
	}
	return 0, false
}

// limit applies the bounds of an obligation that the gateway can hold.
func limit(l *gateway.Limits, properties map[string]any) bool {
	for name, v := range properties {
		n, ok := number(v)
		if !ok || n <= 0 {
			return false
		}
		switch name {
		case "bytes":
			l.Request, l.Answer = least(l.Request, n), least(l.Answer, n)
		case "seconds":
			l.Age = time.Duration(least(int64(l.Age/time.Second), n)) * time.Second
		default:
			return false
		}
	}
	return true
}

func least(have, n int64) int64 {
	if have == 0 {
		return n
	}
	return min(have, n)
}

// echoed records that a resource sent an injected secret back.
func (d *Duties) echoed(ex *gateway.Exchange, c *call, name string) {
	system := estover.Caller{Tenant: ex.Caller.Tenant, Subject: estover.System("gateway"), Request: ex.Caller.Request}
	op := guard.Op{
		Action: EchoAction, Target: sighted(name), Resource: c.resource.ID, Session: ex.Caller.Session,
		Detail: map[string]any{"version": name, "call": c.decision.ID},
	}
	if then := c.onEcho[name]; then != "" {
		op.Detail["then"] = then
	}
	d.note(system, op)
}

// sighted is what a label stands for, as events name it.
func sighted(label string) string {
	id, _, _ := strings.Cut(label, "@")
	if id == cookieLabel {
		return id
	}
	for prefix, kind := range map[string]string{"lse_": "lease:", "con_": "connection:", "utk_": "upstream_token:"} {
		if strings.HasPrefix(id, prefix) {
			return kind + id
		}
	}
	return "secret:" + id
}

// note records what is no call: it is written as soon as it can be, on the
// node's spool.
func (d *Duties) note(caller estover.Caller, op guard.Op) {
	event := d.Guard.Event(caller, op, guard.Decision{ID: audit.NewID(), Allow: true}, audit.Done)
	p, err := d.Guard.Log().Prepare(caller.Tenant, event)
	if err == nil {
		err = d.Spool.Append(p)
	}
	if err != nil {
		d.Logger.Error("an event of the gateway could not be recorded", "action", op.Action, "error", err)
	}
}

// Violate records what was refused before it came to a decision.
func (d *Duties) Violate(ex *gateway.Exchange, err error) {
	d.refusals.Add(1)
	var known *estover.Error
	reason := "fault"
	if errors.As(err, &known) {
		reason = known.Code
	}
	op := guard.Op{
		Action: ViolationAction, Target: "session:" + ex.Caller.Session, Session: ex.Caller.Session,
		Detail: map[string]any{"reason": reason, "method": ex.Method, "host": ex.Host.String(), "door": ex.Door},
	}
	if c, ok := ex.Kept().(*call); ok && errors.Is(err, gateway.ErrTripwire) {
		op.Resource = c.resource.ID
		if c.resource.OnMisuse != "" {
			op.Detail["then"] = c.resource.OnMisuse
		}
	}
	event := d.Guard.Event(ex.Caller, op, guard.Decision{ID: audit.NewID(), Reasons: []string{reason}, Engine: "kernel"}, audit.Refused)
	p, err := d.Guard.Log().Prepare(ex.Caller.Tenant, event)
	if err == nil {
		err = d.Spool.Append(p)
	}
	if err != nil {
		d.Logger.Error("a violation could not be recorded", "reason", reason, "error", err)
	}
}
