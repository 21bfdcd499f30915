// Package approval keeps requests: somebody asks for something that they may not
// do by themselves, and policy or people decide. Most requests are for access,
// permissions that an agent needs for its task; others are for acts that want a
// second person, as lifting a hold.
//
//	pending ──approve, by as many as the rule wants──▶ approved
//	   │ └───deny───▶ denied
//	   ├─cancel, end of its session──▶ cancelled
//	   └─(expires_at)──▶ expired        never stored: see [Request.StateAt]
//
// # Who decides
//
// Policy is asked twice. Whether the caller may ask at all is the operation
// access.request, as any other. What is asked for is then the operation
// [Elevate], one question for each action, with the facts of the agent:
//
//   - what policy permits is approved at once, in the same call;
//   - what it denies, by its kernel or by a rule, is refused, and nobody can
//     approve it;
//   - what nothing permits and nothing denies goes to people, under the
//     strictest of what the obligations of the type "approval" demand ([Rule]).
//
// Whoever approves access asks policy once more: what it has come to deny, or to
// want more for, is not approved under the rule of before.
//
// A person decides for others only. Nobody decides about their own request, about
// one of an agent in whose chain they stand, or about one for a session that they
// opened; no agent decides anything.
// Each has one vote. A vote counts when the last one is given: whoever was
// disabled or lost the role in between has not approved.
//
// # What was approved
//
// What is on the table ([Request.Offer]) is written down in a document, whose
// bytes are shown, signed and kept. A person may approve less than was asked
// ([Choice]): that begins another round over another document, in which all who
// decide must agree to the same; it is never more. The last vote and its effect
// ([Effect]) are one transaction: 64 clicks make one grant.
//
// The effects, and what is known of agents, resources, sessions and people, are
// handed in at wiring ([Options]).
package approval

import (
	"context"
	"encoding/json"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Kind says what is asked for.
type Kind string

// The kinds of requests. What each does when it is approved is handed in as an
// [Effect].
const (
	Access  Kind = "access"  // permissions for an agent
	Lift    Kind = "lift"    // that a hold or a containment is lifted
	Restore Kind = "restore" // that permissions are put back to what they were
)

// A State is where a request stands.
type State string

// The states of a request.
const (
	Pending   State = "pending"
	Approved  State = "approved"
	Denied    State = "denied"
	Expired   State = "expired"
	Cancelled State = "cancelled"
)

// Elevate is the operation about which policy is asked for each action of what
// is requested, as the agent that it is for.
const Elevate = "access.elevate"

// Bounds of what is asked.
const (
	Shortest    = time.Minute
	Longest     = 24 * time.Hour
	UsualLife   = time.Hour          // of what is granted, if nothing is said
	UsualWait   = 24 * time.Hour     // until a request expires, if no rule says it
	LongestWait = 7 * 24 * time.Hour // whatever a rule says

	MaxPending = 20 // requests of one agent, or of one person for none, that wait at the same time
	MaxItems   = 10 // of one request
	MaxReason  = 500
)

// An Item is one thing that is asked for: actions of one resource.
type Item struct {
	Resource   string              `json:"resource" minLength:"1" maxLength:"200" doc:"The resource."`
	Name       string              `json:"resource_name,omitempty" readOnly:"true" doc:"What people call it."`
	Actions    []string            `json:"actions" minItems:"1" maxItems:"50" nullable:"false" doc:"Its actions, or * for every one."`
	Parameters map[string][]string `json:"parameters,omitempty" doc:"What the parameters of the actions' paths may be, by name; anything for those that are not named."`
	Class      estover.Class       `json:"class,omitempty" enum:"public,internal,confidential,restricted" doc:"The most sensitive class of data. By itself what the actions need."`
}

// Budgets bound the use of what is granted. A zero member is without limit.
type Budgets struct {
	Calls    int64 `json:"calls,omitempty" minimum:"0" doc:"How many calls."`
	Rows     int64 `json:"rows,omitempty" minimum:"0" doc:"How many rows or list elements."`
	Records  int64 `json:"records,omitempty" minimum:"0" doc:"How many records of personal data."`
	BytesOut int64 `json:"bytes_out,omitempty" minimum:"0" doc:"How many bytes of answers."`
	Money    int64 `json:"money,omitempty" minimum:"0" doc:"How much money, in millionths of the currency unit."`
	Seconds  int64 `json:"seconds,omitempty" minimum:"0" doc:"How many seconds of calls that are under way."`
	FanOut   int64 `json:"fan_out,omitempty" minimum:"0" doc:"How many agents at once that it is handed on to."`
}

// Granted is what is on the table: as it was asked for, or as it was narrowed.
type Granted struct {
	Items   []Item  `json:"items,omitempty"`
	Seconds int64   `json:"for_seconds,omitempty"` // how long it will last from the approval on, at most
	Budgets Budgets `json:"budgets,omitzero"`

	// Until is when what was granted ends; zero before it is granted, and for
	// what does not end.
	Until time.Time `json:"until,omitzero"`
}

// A Request is what somebody asked for, and what became of it.
type Request struct {
	ID    string `json:"id"` // apr_…
	Kind  Kind   `json:"kind"`
	State State  `json:"state"` // when it was read; see [Request.StateAt]

	Requester estover.Subject   `json:"requester"`
	Chain     []estover.Subject `json:"chain,omitempty"` // for whom the requester acted, and through whom
	Agent     string            `json:"agent,omitempty"` // that it is for
	AgentName string            `json:"agent_name,omitempty"`
	Session   string            `json:"session,omitempty"`
	OpenedBy  estover.Subject   `json:"session_opened_by,omitempty"` // the person in whose hands the session is
	Purpose   string            `json:"purpose,omitempty"`

	Items   []Item  `json:"items,omitempty"` // as asked for
	Seconds int64   `json:"for_seconds,omitempty"`
	Budgets Budgets `json:"budgets,omitzero"`

	Target    string            `json:"target,omitempty"` // of the kinds beside access
	Arguments map[string]string `json:"arguments,omitempty"`

	Reason  string            `json:"reason"`
	Context map[string]string `json:"context,omitempty"` // ticket, customer, …

	Rule     Rule    `json:"rule"`             // what must happen before it is approved
	Policy   Verdict `json:"policy"`           // what policy said
	Offer    Granted `json:"offer"`            // what is on the table
	Round    int64   `json:"round"`            // 1, and more each time that somebody narrows it
	Document []byte  `json:"document"`         // of what is on the table: the bytes that are shown and signed
	Votes    []Vote  `json:"votes,omitempty"`  // of all rounds, the oldest first
	Result   string  `json:"result,omitempty"` // the ids of what it led to

	CreatedAt   time.Time       `json:"created_at"`
	ExpiresAt   time.Time       `json:"expires_at"` // if nobody decides before
	EscalatedAt time.Time       `json:"escalated_at,omitzero"`
	DecidedAt   time.Time       `json:"decided_at,omitzero"`
	DecidedBy   estover.Subject `json:"decided_by,omitempty"` // of the last vote; system:policy for policy
	Note        string          `json:"note,omitempty"`       // of the decision

	// Risk is of what is on the table, for whoever decides about access; zero once it
	// is decided, and for an agent. See [Risk].
	Risk Risk `json:"risk,omitzero"`

	// Eligible says for each item whether policy approved it knowing that the agent
	// had been given it already, to be activated. It is known while it is asked, and
	// not kept: an effect that finds it otherwise by then does nothing.
	Eligible []bool `json:"-"`

	row        row
	nonce      string    // of its documents
	escalateAt time.Time // zero for never, and once it is done
	lapsedAt   time.Time // when it was put on record that it had expired
}

// A Vote is what one person said about what was on the table.
type Vote struct {
	Round    int64           `json:"round"`
	Approver estover.Subject `json:"approver"`
	For      estover.Subject `json:"for,omitempty"` // in whose place, of somebody who is absent
	Verdict  State           `json:"verdict"`       // approved or denied
	At       time.Time       `json:"at"`
	Note     string          `json:"note,omitempty"`
	Document []byte          `json:"document,omitempty"` // the bytes that the vote is about

	// Assertion is the signature over the document, in the form that the
	// [Options.Verify] of the server reads; nil where none was given.
	Assertion json.RawMessage `json:"assertion,omitempty"`

	mac []byte // see [Approvals.authentic]
}

// A Verdict is what policy said about a request.
type Verdict struct {
	Rule     string `json:"rule,omitempty"`     // that permits it, or why nobody asks it: package.code
	Revision string `json:"revision,omitempty"` // of the bundle
}

// StateAt is the state of the request at a time.
func (r *Request) StateAt(now time.Time) State {
	if r.State == Expired || r.State == Pending {
		if !r.lapsedAt.IsZero() || !now.Before(r.ExpiresAt) {
			return Expired
		}
		return Pending
	}
	return r.State
}

// A Wish is what somebody asks for.
type Wish struct {
	Kind    Kind   // Access if empty
	Agent   string // that it is for; the caller if empty and an agent asks
	Session string // that it is for; the caller's if empty
	Purpose string // the session's, or the agent's only one, if empty

	Items   []Item
	For     time.Duration // how long; 0 for [UsualLife], or until the session ends
	Budgets Budgets

	Target    string // of the kinds beside access
	Arguments map[string]string

	Reason  string
	Context map[string]string
}

// A Choice is what a person approves: all that is on the table if it is empty.
type Choice struct {
	Narrow  []Item        // only these, of what is on the table; nil for all
	For     time.Duration // at most as long; 0 for as long as is on the table
	Budgets *Budgets      // at most so much; nil for what is on the table
	Note    string

	// Digest is that of the document which the person has seen, so that nothing
	// else is approved; nil leaves that to the transaction, which takes what is
	// on the table.
	Digest []byte
	// Assertion is the person's signature over the document, if there is one.
	Assertion json.RawMessage
}

// Errors about requests.
var (
	// ErrNotFound is returned when there is no such request in the tenant, or none
	// that the caller may know of.
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "request_not_found", Detail: "There is no such request. `estover access list` shows which there are."}
	// ErrInvalid is returned when this cannot be asked for.
	ErrInvalid = &estover.Error{Kind: estover.Invalid, Code: "request_invalid", Detail: "This cannot be asked for."}
	// ErrNotPending is returned when a request has been decided already, or is
	// no longer waiting.
	ErrNotPending = &estover.Error{Kind: estover.Conflict, Code: "request_not_pending", Detail: "The request is no longer pending."}
	// ErrTooMany is returned when too many requests wait already.
	ErrTooMany = &estover.Error{Kind: estover.TooMuch, Code: "requests_too_many", Detail: "Too many requests are waiting already. Wait until some are decided, or cancel those that are no longer needed."}
	// ErrNotYours is returned when somebody asks for an agent that is not theirs.
	ErrNotYours = &estover.Error{Kind: estover.Denied, Code: "request_for_another", Detail: "An agent asks for itself, and a person for agents that they sponsor, unless they are an administrator or an operator."}
	// ErrOwn is returned when somebody decides about what they asked for themselves.
	ErrOwn = &estover.Error{Kind: estover.Denied, Code: "request_own", Detail: "Nobody decides about their own request, or one that was made in their name or in a session that they opened. Somebody else has to."}
	// ErrPerson is returned when something decides that is not a person by themselves.
	ErrPerson = &estover.Error{Kind: estover.Denied, Code: "request_needs_person", Detail: "A request is decided by a person who is signed in, and not by an agent or in somebody's place."}
	// ErrNotApprover is returned when somebody decides whom the rule does not name.
	ErrNotApprover = &estover.Error{Kind: estover.Denied, Code: "request_not_approver", Detail: "You are not among those who decide about this request. `estover access why` says who is."}
	// ErrVoted is returned when somebody votes again for the same thing.
	ErrVoted = &estover.Error{Kind: estover.Conflict, Code: "request_voted", Detail: "You have approved this already; it waits for others."}
	// ErrWider is returned when somebody approves more than was asked for.
	ErrWider = &estover.Error{Kind: estover.Invalid, Code: "request_wider", Detail: "That is more than what is on the table. A request can be approved as it is, or narrower."}
	// ErrChanged is returned when what is on the table is not what the person has seen.
	ErrChanged = &estover.Error{Kind: estover.Conflict, Code: "request_changed", Detail: "What is on the table is not what you have seen. Look at the request again."}
	// ErrStricter is returned when policy has come to want more for what was asked for
	// than the request's rule does.
	ErrStricter = &estover.Error{Kind: estover.Conflict, Code: "request_policy_changed", Detail: "Policy wants more for this than it did when it was asked for. Deny the request, so that it can be asked for again under the rule that holds by now."}
	// ErrUnsigned is returned when a vote lacks the signature that policy wants.
	ErrUnsigned = &estover.Error{Kind: estover.Denied, Code: "request_unsigned", Detail: "Policy wants this approval signed: approve it on its page with a passkey, or with `estover access approve --ssh-key`."}
	// ErrNote is returned when a request is denied without a word.
	ErrNote = &estover.Error{Kind: estover.Invalid, Code: "request_note_missing", Detail: "Say why, in up to 500 characters: whoever asked needs to know.", Field: "note"}
	// ErrNobody is returned when the rules of policy leave nobody who could decide.
	ErrNobody = &estover.Error{Kind: estover.Denied, Code: "request_undecidable", Detail: "The policies that this falls under leave nobody who could approve it. Tell your administrator."}
)

// An Agent is what must be known of the agent that a request is for.
type Agent struct {
	ID, Name  string
	Sponsor   string // the id of a person
	Tier      string // low, medium or high: how much harm it can do
	Purposes  []string
	Clearance estover.Class
	Segments  []string // that it may reach; empty is every one
}

// A Resource is what must be known of a resource.
type Resource struct {
	ID, Name, Segment string
	Purposes          []string // for which alone it may be used; empty is every one
	Special           bool     // it holds special categories of personal data
	Public            bool     // whoever is at the other end is the public
	Actions           []Action
}

// An Action is one of a resource.
type Action struct {
	Name       string
	Effect     guard.Effect
	Class      estover.Class
	Parameters []string // the names of those in its path
}

// A Session is what must be known of a session.
type Session struct {
	ID, Agent, Purpose string
	OpenedBy           estover.Subject // it, or the session that it is a part of
	Expires            time.Time
	Ended              bool
}

// A Person is what must be known of somebody who decides.
type Person struct {
	ID, Name string
	Roles    []estover.Role
	Active   bool
}

// An Effect is what an approved request does, in the transaction of the last
// vote. It says the ids of what it made, which are kept as the result.
type Effect func(ctx context.Context, tx *guard.Tx, r Request, what Granted) (result string, err error)

// Options are what requests need of others. What is asked inside a transaction
// does no I/O beside.
type Options struct {
	// Effects are what approved requests do, by their kind. There are no
	// requests of another kind.
	Effects map[Kind]Effect
	// Floors are the least that a kind of request demands, whatever policy says.
	Floors map[Kind]Rule

	// Decide asks policy without putting the answer on record: it becomes part of
	// the event of the request.
	Decide func(ctx context.Context, caller estover.Caller, op guard.Op) (guard.Decision, error)

	// Eligible reports whether the agent of a request has been given an item already,
	// to be activated. Nil knows of nothing.
	Eligible func(ctx context.Context, tx *db.Tx, r Request, item Item) (bool, error)

	// Given reports whether an agent was ever given anything of a resource, also what
	// is over. Nil knows of nothing.
	Given func(ctx context.Context, tx *db.Tx, agent, resource string) (bool, error)

	// Agent is an agent, also one that may not act. Acting makes sure that it may,
	// and that nobody holds it until the transaction ends.
	Agent  func(ctx context.Context, tx *db.Tx, id string) (Agent, error)
	Acting func(ctx context.Context, tx *db.Tx, id string) error
	// Resource is a resource that is not retired.
	Resource func(ctx context.Context, tx *db.Tx, id string) (Resource, error)
	// Session is a session, also one that has ended. Hold makes sure that it does
	// not end before the transaction does.
	Session func(ctx context.Context, tx *db.Tx, id string) (Session, error)
	Hold    func(ctx context.Context, tx *guard.Tx, id string) error
	// Person is somebody, also somebody who is disabled.
	Person func(ctx context.Context, tx *db.Tx, id string) (Person, error)
	// Holding are the active people with one of the roles.
	Holding func(ctx context.Context, tx *db.Tx, roles []estover.Role) ([]Person, error)

	// Verify checks a person's signature over a document. It is called before
	// the transaction. Nil verifies none, so that what must be signed is never
	// approved.
	Verify func(ctx context.Context, caller estover.Caller, document []byte, assertion json.RawMessage) error
	// MAC is a keyed digest of a tenant, by which rows are known to have been
	// written here. Nil looks at none.
	MAC func(tenant estover.TenantID, value []byte) []byte
}

// Waiting is the kind of the copies of what waits for a decision, by agent: what
// a [guard.Cache] follows. A request for no agent is under "".
const Waiting = "access_request"

// Approvals is the requests of all tenants. It is safe for use by many at once.
type Approvals struct {
	Options
	guard  *guard.Guard
	copies *guard.Cache[[]Request] // that wait, by agent
}

// New is the requests behind the door g.
func New(g *guard.Guard, o Options) *Approvals {
	return &Approvals{Options: o, guard: g, copies: guard.NewCache(g, Waiting, waiting)}
}
