// Package guard is the one door. Every operation of Estover that reveals or
// changes anything passes it, and there is no second way in: no protocol, no
// grant type and no engine can forget a step.
//
//	decide ──allowed──▶ act in a transaction ──▶ record in the same one ──▶ tell the caches
//	   └────refused───▶ record the refusal   ──▶ *Refusal
//
// An operation whose event cannot be written did not happen: both are one
// transaction. A decision that cannot be made is a refusal.
//
// There are three ways through, for three shapes of work:
//
//   - [Guard.Do] changes something, by a function in a transaction.
//   - [Guard.Read] reveals something that needs no event of its own; only a
//     refusal is recorded, and that something was named by an id of somebody
//     else. What must leave a trace when it is read, a secret for example, is a
//     Do or its two halves.
//   - [Guard.Admit] and [Guard.Record] are Do in two halves, for the hot
//     paths: what stands between them (a signature, an upstream's answer) is
//     outside of the transaction, and the rows are written by [db.DB.Append],
//     many callers' in one commit.
//
// # Decisions are made on copies
//
// Policy sees agents, sessions, grants and resources through a [Cache]: copies
// of rows, loaded when they are first asked for and dropped when an event says
// that they changed ([Tx.Touch]). On the node where the change was made that
// is before its caller is answered; other nodes follow the log and hear of it
// within half a second. A decision on a copy that has just become stale does
// no harm, since the transaction looks at the rows themselves: [Options.Alive]
// for a Do, and for a Record that says so ([Hot.Alive]); the epochs of [Hot.Live]
// for a Record. Those are looked at and not held, unless it says so ([Hot.Hold]).
package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
)

// An Effect says what an action does to the world.
type Effect string

// The effects that policy tells apart.
const (
	Reads    Effect = "read"
	Searches Effect = "search"
	Writes   Effect = "write"
	Deletes  Effect = "delete"
	Sends    Effect = "send"
	Executes Effect = "execute"
	Manages  Effect = "admin"
	Pays     Effect = "pay"
)

// An Op is what a caller wants to do.
type Op struct {
	Action   string         // what, as noun.verb: "agent.create", "gateway.call"
	Target   string         // to what, as kind:id; the function may set it ([Tx.SetTarget]) when it makes the thing
	Effect   Effect         // "" is Manages for a Do and Reads for a Read
	Resource string         // the id of the resource that an agent wants to reach
	Session  string         // the task; the caller's if empty
	Purpose  string         // what for; the caller's if empty
	Input    any            // what else the decider knows to look at: the action of a gateway call, the scopes of a token
	Detail   map[string]any // what the event tells beside
	Members  []byte         // the same of a hot path, encoded ([audit.Event.Members]); see [Guard.Event]
}

// A Decision is policy's answer, with what it rested on.
type Decision struct {
	ID          string // also the id of the event that records it
	Allow       bool
	Reasons     []string // constant codes, the first is the one that is told
	Rule        string   // the rule behind the first reason, as package.name
	Message     string   // of a refusal: one sentence for the caller
	Next        string   // of a refusal: what the caller may do
	Engine      string   // kernel, policy or cache
	Revision    string   // the digest of the policy bundle
	Facts       map[string]any
	InputDigest string // SHA-256 of the input, in hex
	Obligations []Obligation
	Encoded     json.RawMessage `json:"-"` // [Encoded] of them; nil if that is to be done for each event

	// Told is shared by the decisions whose facts are the same, so that one
	// event has them and the others name it. Nil if every event is to have its
	// own.
	Told *Told `json:"-"`
}

// Encoded is the obligations as JSON, for answers that are given many times.
func Encoded(list []Obligation) json.RawMessage {
	if len(list) == 0 {
		return nil
	}
	return appendAny(nil, list)
}

// A Told is in which event facts stand. The zero value is in none. It is safe
// for use by many at once.
type Told struct{ in atomic.Pointer[told] }

type told struct {
	tenant estover.TenantID
	event  string
}

// event is the one that has the facts, if it is of this tenant.
func (t *Told) event(tenant estover.TenantID) string {
	if t != nil {
		if in := t.in.Load(); in != nil && in.tenant == tenant {
			return in.event
		}
	}
	return ""
}

// Recorded says that the event of the decision, which has its id, is on record:
// what follows need not have the same facts again.
func (d *Decision) Recorded(tenant estover.TenantID) {
	if d.Told != nil && d.Told.in.Load() == nil {
		d.Told.in.CompareAndSwap(nil, &told{tenant, d.ID})
	}
}

// An Obligation is what must be done along with an allowed operation. Whoever
// cannot do it must refuse.
type Obligation struct {
	Type       string         `json:"type"`
	Properties map[string]any `json:"properties,omitempty"`
}

// A Decider answers whether a caller may do an operation. An error counts as a
// refusal.
type Decider interface {
	Decide(ctx context.Context, caller estover.Caller, op Op) (Decision, error)
}

// A Refusal is the error of an operation that policy did not allow.
type Refusal struct{ Decision Decision }

// Error is the sentence for the caller and what to do next.
func (r *Refusal) Error() string {
	return strings.TrimSpace(r.Decision.Message + " " + r.Decision.Next)
}

// Unwrap gives the refusal as an [estover.Error] of kind Denied whose code is
// the first reason.
func (r *Refusal) Unwrap() error {
	code := "not_permitted"
	if len(r.Decision.Reasons) > 0 {
		code = r.Decision.Reasons[0]
	}
	return &estover.Error{Kind: estover.Denied, Code: code, Detail: r.Error()}
}

// ErrNotRecorded is returned when an event could not be written, and therefore
// nothing was done.
var ErrNotRecorded = &estover.Error{Kind: estover.Unavailable, Code: "audit_unavailable", Detail: "This cannot be recorded, so it was not done. Try again, and if it goes on, run `estover doctor`."}

// ErrDeaf is returned to agents by a node that has not heard for too long of what
// others have changed: it cannot know whether they may still do what they may.
var ErrDeaf = &estover.Error{Kind: estover.Unavailable, Code: "changes_unknown", Detail: "This node has not heard of changes for a while, so it cannot say that this is still allowed. Try again in a moment."}

// deafAfter is how long a node goes on by its copies when it cannot read the log.
const deafAfter = 10 * time.Second

// Options are what the server hands in when it puts the house together.
type Options struct {
	// DeafAfter is how long agents are answered by copies while the log cannot be
	// followed; the usual time if it is zero.
	DeafAfter time.Duration
	// Alive checks, inside the transaction of a Do, that what the caller's
	// authority rests on has not ended since the caller was recognised. Nil
	// checks nothing.
	Alive  func(ctx context.Context, tx *db.Tx, caller estover.Caller) error
	Logger *slog.Logger
}

// A Guard is the door. It is safe for use by many at once.
type Guard struct {
	db      *db.DB
	log     *audit.Log
	decider Decider
	alive   func(context.Context, *db.Tx, estover.Caller) error
	logger  *slog.Logger
	deaf    time.Duration
	heard   atomic.Pointer[time.Time] // until when the log was followed; nil where it never is

	mu      sync.RWMutex
	onTouch []func(tenant estover.TenantID, kind, id string)
	onEnd   []func(ctx context.Context, tx *Tx, kind string, ids []string) error
}

// New is a door to d whose events go to log.
func New(d *db.DB, log *audit.Log, decider Decider, o Options) *Guard {
	g := &Guard{db: d, log: log, decider: decider, alive: o.Alive, logger: o.Logger, deaf: o.DeafAfter}
	if g.deaf == 0 {
		g.deaf = deafAfter
	}
	if g.alive == nil {
		g.alive = func(context.Context, *db.Tx, estover.Caller) error { return nil }
	}
	if g.logger == nil {
		g.logger = slog.Default()
	}
	return g
}

// DB is the database behind the door, for reads that reveal nothing to a
// caller: authenticating one, finding work that is due.
func (g *Guard) DB() *db.DB { return g.db }

// Log is where the events go.
func (g *Guard) Log() *audit.Log { return g.log }

// A Tx is a transaction that will be recorded.
type Tx struct {
	*db.Tx
	Decision Decision

	event audit.Event
	noted bool
	fail  error
	ended []ending
}

// An ending is what ends in a transaction, of one kind.
type ending struct {
	kind string
	ids  []string
}

// Note adds to what the event tells.
func (tx *Tx) Note(key string, value any) {
	if !tx.noted { // what there is belongs to the op
		tx.event.Detail, tx.noted = maps.Clone(tx.event.Detail), true
	}
	if tx.event.Detail == nil {
		tx.event.Detail = map[string]any{}
	}
	tx.event.Detail[key] = value
}

// SetTarget names what was done something to, when the operation made it.
func (tx *Tx) SetTarget(target string) { tx.event.Target = target }

// SetSession says which session the event belongs to, when the operation
// opened it.
func (tx *Tx) SetSession(id string) { tx.event.Session = id }

// Touch says that copies of this row are stale once the transaction commits.
func (tx *Tx) Touch(kind, id string) {
	tx.event.Touches = append(tx.event.Touches, kind+":"+id)
}

// End says that something ends in this transaction, or is good for nothing for a
// while: what rests on it in packages that do not know of it ends along with it
// ([Guard.OnEnd]).
func (tx *Tx) End(kind, id string) {
	for i := range tx.ended {
		if e := &tx.ended[i]; e.kind == kind {
			e.ids = append(e.ids, id)
			return
		}
	}
	tx.ended = append(tx.ended, ending{kind, []string{id}})
}

// Leaf makes these bytes the event's entry in the log, in the place of a
// commitment: a statement that is meant to be shown.
func (tx *Tx) Leaf(b []byte) { tx.event.Leaf = b }

// Fail commits what was done so far, records that the operation failed, and
// has Do return err: the discovery of a replay is an outcome that must stay.
func (tx *Tx) Fail(err error) { tx.fail, tx.event.Outcome = err, audit.Failed }

// Do asks policy, runs fn in a transaction and writes the event there. fn may
// run more than once, and does no I/O, cryptography or policy.
func (g *Guard) Do(ctx context.Context, caller estover.Caller, op Op, fn func(tx *Tx) error) error {
	if op.Effect == "" {
		op.Effect = Manages
	}
	decision, err := g.Admit(ctx, caller, op)
	if err != nil {
		return err
	}
	return g.Act(ctx, caller, op, decision, fn)
}

// Act is what follows [Guard.Admit] when more is to be written than rows: it
// runs fn in a transaction and writes the event of the admitted operation
// there. fn may run more than once, and does no I/O, cryptography or policy.
func (g *Guard) Act(ctx context.Context, caller estover.Caller, op Op, decision Decision, fn func(tx *Tx) error) error {
	// What is known before is encoded before: in the writer of SQLite all wait for it.
	event := g.event(caller, op, decision, audit.Done)
	var done *Tx
	err := g.db.Do(ctx, caller.Tenant, func(tx *db.Tx) error {
		if err := g.alive(ctx, tx, caller); err != nil {
			return err
		}
		done = &Tx{Tx: tx, Decision: decision, event: event}
		if err := fn(done); err != nil {
			return err
		}
		if err := g.end(ctx, done); err != nil {
			return err
		}
		done.event.Target = cut(done.event.Target, maxName)
		if done.event.Outcome != audit.Done {
			done.event.Detail = bounded(done.event.Detail)
		}
		done.event.At = tx.Now()
		p, err := g.log.Prepare(caller.Tenant, done.event)
		if err != nil {
			return ErrNotRecorded.Because(err)
		}
		if err := g.log.Write(ctx, tx, p); err != nil {
			return ErrNotRecorded.Because(err)
		}
		return nil
	})
	if err != nil {
		return g.Missed(ctx, caller, op, err)
	}
	decision.Recorded(caller.Tenant)
	g.touched(caller.Tenant, done.event.Touches)
	g.log.Wake()
	return done.fail
}

// Read asks policy and runs fn on a snapshot. Only a refusal is recorded.
func (g *Guard) Read(ctx context.Context, caller estover.Caller, op Op, fn func(tx *db.Tx) error) error {
	if op.Effect == "" {
		op.Effect = Reads
	}
	if _, err := g.Admit(ctx, caller, op); err != nil {
		return err
	}
	err := g.db.View(ctx, caller.Tenant, func(tx *db.Tx) error {
		if err := g.alive(ctx, tx, caller); err != nil {
			return err
		}
		return fn(tx)
	})
	return g.Missed(ctx, caller, op, err)
}

// Missed is the error of an operation that was found to be about nothing before it was
// done. That somebody named a thing by an id that nobody guesses, and there is none
// here, is on record (T3).
func (g *Guard) Missed(ctx context.Context, caller estover.Caller, op Op, err error) error {
	if err == nil || !strange(caller, op, err) {
		return err
	}
	decision := noSuchThing
	decision.ID = audit.NewID()
	event := g.event(caller, op, decision, audit.Refused)
	event.At = g.db.Now()
	if failed := g.write(ctx, caller.Tenant, event, Hot{}, nil); failed != nil {
		return failed
	}
	return err
}

// Admit asks policy. A refusal is recorded and returned as a [*Refusal]. What
// is admitted must be recorded before it takes effect, with [Guard.Record] or
// [Guard.Act].
func (g *Guard) Admit(ctx context.Context, caller estover.Caller, op Op) (Decision, error) {
	if caller.Acting().Kind() == estover.AgentKind {
		if at := g.heard.Load(); at != nil && time.Since(*at) > g.deaf {
			return Decision{}, ErrDeaf
		}
	}
	decision, err := g.decider.Decide(ctx, caller, op)
	if err != nil {
		var known *estover.Error
		if ctx.Err() != nil || errors.As(err, &known) {
			return decision, err
		}
		g.logger.Error("a decision could not be made", "action", op.Action, "error", err)
		decision = Decision{
			Reasons: []string{"decision_failed"}, Engine: "kernel",
			Message: "The policy could not be evaluated, so the answer is no.", Next: "Try again, and tell your administrator if it goes on.",
		}
	}
	if decision.ID == "" {
		decision.ID = audit.NewID()
	}
	if decision.Allow {
		return decision, nil
	}
	event := g.event(caller, op, decision, audit.Refused)
	event.At = g.db.Now()
	if err := g.write(ctx, caller.Tenant, event, Hot{}, nil); err != nil {
		return decision, err
	}
	return decision, &Refusal{decision}
}

// Hot is what a hot path writes along with its event.
type Hot struct {
	Live    []db.Epoch // what must not have ended since it was looked at
	Hold    bool       // whoever ends something of Live is to find the rows ([db.Append.Hold])
	Alive   bool       // look at what the caller's authority rests on, as [Guard.Act] does
	Step    *db.Step   // what is good once, or may be made only now; nil for neither
	Rows    []db.Row
	Outcome audit.Outcome // Done if empty
	Session string        // the event's session, if it is neither the op's nor the caller's
	Leaf    []byte        // the event's entry in the log, if it is meant to be shown
	Touches []string      // kind:id
}

// Record writes the event of an admitted operation, and its rows, in one
// commit shared with other callers. It returns [db.ErrStale], and nothing is
// written, if something of h.Live has ended in the meantime or h.Step finds no
// row; and what [Options.Alive] says, if that is asked.
func (g *Guard) Record(ctx context.Context, caller estover.Caller, op Op, decision Decision, h Hot) error {
	if h.Outcome == "" {
		h.Outcome = audit.Done
	}
	event := g.event(caller, op, decision, h.Outcome)
	event.At, event.Leaf, event.Touches = g.db.Now(), h.Leaf, h.Touches
	if h.Session != "" {
		event.Session = h.Session
	}
	var check func(context.Context, *db.Tx) error
	var ended error
	if h.Alive {
		who := caller // of which the heap has a copy only if it is asked about
		check = func(ctx context.Context, tx *db.Tx) error {
			ended = g.alive(ctx, tx, who)
			return ended
		}
	}
	if err := g.write(ctx, caller.Tenant, event, h, check); err != nil {
		var known *estover.Error
		if errors.As(ended, &known) {
			return ended
		}
		return err
	}
	decision.Recorded(caller.Tenant)
	g.touched(caller.Tenant, h.Touches)
	return nil
}

// Event is the event of an admitted operation as [Guard.Record] would write
// it, for a door that keeps its evidence in batches on the node first, and says
// [Decision.Recorded] when it has. What the guard adds to op.Members is written into
// the room behind them, if there is any: until the event is prepared that belongs to it.
func (g *Guard) Event(caller estover.Caller, op Op, decision Decision, outcome audit.Outcome) audit.Event {
	e := g.tell(caller, op, decision, outcome)
	e.At = g.db.Now()
	return e
}

func (g *Guard) write(ctx context.Context, tenant estover.TenantID, event audit.Event, h Hot, check func(context.Context, *db.Tx) error) error {
	p, err := g.log.Prepare(tenant, event)
	if err != nil {
		return ErrNotRecorded.Because(err)
	}
	var steps []db.Step
	if h.Step != nil {
		steps = []db.Step{*h.Step}
	}
	err = g.db.Append(ctx, db.Append{Tenant: tenant, Check: check, Live: h.Live, Hold: h.Hold, Steps: steps, Rows: append(h.Rows[:len(h.Rows):len(h.Rows)], p.Row())})
	switch {
	case err == nil:
		g.log.Wake()
		return nil
	case errors.Is(err, db.ErrStale), ctx.Err() != nil:
		return err
	}
	return ErrNotRecorded.Because(err)
}

// event is what the log will say of an operation, in memory of its own.
func (g *Guard) event(caller estover.Caller, op Op, d Decision, outcome audit.Outcome) audit.Event {
	op.Members = slices.Clip(op.Members)
	return g.tell(caller, op, d, outcome)
}

// tell is event, in the room that there is behind op.Members.
func (g *Guard) tell(caller estover.Caller, op Op, d Decision, outcome audit.Outcome) audit.Event {
	op, d = bound(op, d, outcome)
	caller.Purpose = cut(caller.Purpose, maxName)
	e := audit.Event{
		ID: d.ID, Action: op.Action, Outcome: outcome, Actor: caller.Subject, Target: op.Target,
		Session: op.Session, Request: caller.Request, Detail: op.Detail,
	}
	if e.Session == "" {
		e.Session = caller.Session
	}
	// What the guard adds stands as it is written: a map would be sorted, and
	// its values looked at by reflection, for every call and every token.
	told := record(d)
	if told.FactsIn = d.Told.event(caller.Tenant); told.FactsIn != "" {
		told.Facts = nil
	}
	b := op.Members
	if len(b) == cap(b) {
		size := 512 + len(told.encoded)
		if text, ok := told.Facts["input"].(json.RawMessage); ok {
			size += len(text)
		}
		b = slices.Grow(b, size)
	}
	b = told.AppendJSON(append(b, `,"decision":`...))
	member := func(name, value string) {
		if _, told := op.Detail[name]; !told && value != "" {
			b = audit.AppendMember(b, ',', name, value)
		}
	}
	member("resource", op.Resource)
	member("purpose", cmp(op.Purpose, caller.Purpose))
	if len(caller.Actors) > 0 {
		b = append(b, `,"actors":[`...)
		for i, a := range caller.Actors {
			if i > 0 {
				b = append(b, ',')
			}
			b = audit.AppendString(b, string(a))
		}
		b = append(b, ']')
	}
	if _, told := op.Detail["address"]; !told && caller.Address.IsValid() {
		if caller.Address.Zone() == "" { // digits, dots and colons
			b = append(caller.Address.AppendTo(append(b, `,"address":"`...)), '"')
		} else {
			member("address", caller.Address.String())
		}
	}
	if caller.Noted != "" {
		b = append(append(append(b, `,"noted":{`...), caller.Noted...), '}')
	}
	e.Members = b
	return e
}

func cmp(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// A DecisionRecord is a decision as events keep it.
type DecisionRecord struct {
	Allow       bool           `json:"allow"`
	Reasons     []string       `json:"reasons,omitempty"`
	Rule        string         `json:"rule,omitempty"`
	Message     string         `json:"message,omitempty"`
	Next        string         `json:"next,omitempty"`
	Engine      string         `json:"engine,omitempty"`
	Revision    string         `json:"revision,omitempty"`
	Facts       map[string]any `json:"facts,omitempty"`
	FactsIn     string         `json:"facts_in,omitempty"` // the event, of the last minute before, that has the facts
	InputDigest string         `json:"input_digest,omitempty"`
	Obligations []Obligation   `json:"obligations,omitempty"`

	encoded json.RawMessage
}

func record(d Decision) DecisionRecord {
	return DecisionRecord{
		Allow: d.Allow, Reasons: d.Reasons, Rule: d.Rule, Message: d.Message, Next: d.Next, Engine: d.Engine, Revision: d.Revision,
		Facts: d.Facts, InputDigest: d.InputDigest, Obligations: d.Obligations, encoded: d.Encoded,
	}
}

// AppendJSON writes the record as encoding/json does ([audit.Appender]).
func (r DecisionRecord) AppendJSON(b []byte) []byte {
	b = strconv.AppendBool(append(b, `{"allow":`...), r.Allow)
	if len(r.Reasons) > 0 {
		b = audit.AppendStrings(append(b, `,"reasons":`...), r.Reasons)
	}
	member := func(name, value string) {
		if value != "" {
			b = audit.AppendMember(b, ',', name, value)
		}
	}
	member("rule", r.Rule)
	member("message", r.Message)
	member("next", r.Next)
	member("engine", r.Engine)
	member("revision", r.Revision)
	if len(r.Facts) > 0 {
		b = append(b, `,"facts":`...)
		if text, ok := r.Facts["input"].(json.RawMessage); ok && len(r.Facts) == 1 {
			// As policy gives it: encoded already, and what its digest is of.
			b = append(append(append(b, `{"input":`...), text...), '}')
		} else {
			b = appendAny(b, r.Facts)
		}
	}
	member("facts_in", r.FactsIn)
	member("input_digest", r.InputDigest)
	switch {
	case r.encoded != nil:
		b = append(append(b, `,"obligations":`...), r.encoded...)
	case len(r.Obligations) > 0:
		b = appendAny(append(b, `,"obligations":`...), r.Obligations)
	}
	return append(b, '}')
}

func appendAny(b []byte, v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic("guard: a decision has no JSON: " + err.Error())
	}
	return append(b, text...)
}

// OnTouch has fn called after every commit that makes a copy stale, here or on
// another node. fn returns quickly.
func (g *Guard) OnTouch(fn func(tenant estover.TenantID, kind, id string)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.onTouch = append(g.onTouch, fn)
}

// OnEnd has fn called in every transaction in which something ends ([Tx.End]),
// once for each kind with all that ends of it. What fn does is a part of the
// transaction, and an error undoes it.
func (g *Guard) OnEnd(fn func(ctx context.Context, tx *Tx, kind string, ids []string) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.onEnd = append(g.onEnd, fn)
}

// end has what rests on what a transaction ends, end in it.
func (g *Guard) end(ctx context.Context, tx *Tx) error {
	if len(tx.ended) == 0 {
		return nil
	}
	g.mu.RLock()
	all := g.onEnd
	g.mu.RUnlock()
	for len(tx.ended) > 0 { // which ends more, perhaps
		ended := tx.ended
		tx.ended = nil
		for _, e := range ended {
			for _, fn := range all {
				if err := fn(ctx, tx, e.kind, e.ids); err != nil {
					return fmt.Errorf("ending what rests on a thing of the kind %s: %w", e.kind, err)
				}
			}
		}
	}
	return nil
}

func (g *Guard) touched(tenant estover.TenantID, touches []string) {
	if len(touches) == 0 {
		return
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	for _, t := range touches {
		kind, id, _ := strings.Cut(t, ":")
		for _, fn := range g.onTouch {
			fn(tenant, kind, id)
		}
	}
}

// followEvery is how often a node looks for what others have changed.
const followEvery = 150 * time.Millisecond

// Run follows the log for changes made on other nodes until ctx is done. From its
// beginning on agents are refused with [ErrDeaf] when the log cannot be read for
// too long.
func (g *Guard) Run(ctx context.Context) error {
	looked := func(at time.Time) { g.heard.Store(&at) }
	looked(time.Now())
	err := g.log.Tail(ctx, followEvery, func(tenant estover.TenantID, touches []string) { g.touched(tenant, touches) }, looked)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("following the log: %w", err)
	}
	return nil
}
