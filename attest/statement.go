package attest

import (
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// StatementType is the _type of every statement.
const StatementType = "https://in-toto.io/Statement/v1"

// The predicate types.
const (
	ActionType      = "https://estover.dev/attestation/action/v1"
	SessionType     = "https://estover.dev/attestation/session/v1"
	EnrolmentType   = "https://estover.dev/attestation/enrolment/v1"
	ContainmentType = "https://estover.dev/attestation/containment/v1"
	EmergencyType   = "https://estover.dev/attestation/emergency-rotation/v1"
)

// A Statement is an in-toto Statement v1: subjects, each a named hash, and a
// predicate that says what is claimed about them. Its bytes are the leaf of
// the log, so they are made once, by [Statement.AppendJSON], and kept.
type Statement struct {
	Subjects  []Subject
	Predicate Predicate
}

// A Subject is a thing that the statement is about.
type Subject struct {
	Name   string
	Digest Digest
}

// The names of an action's subjects. Each digest is a commitment ([Commit]),
// except for that of an intent.
const (
	Request    = "request"   // as forwarded, with a slot shown in the place of a secret
	Response   = "response"  // as received from the upstream
	Delivered  = "delivered" // as handed to the agent, if that differs
	IntentLeaf = "intent"    // [Intent.Digest], when no more than the intent of a call is known
)

// A Predicate is one of [*Action], [*Session], [*Enrolment] and
// [*Containment], [*Emergency].
type Predicate interface {
	// Type is the predicateType.
	Type() string
	encode(e *encoder)
}

// An Action is the predicate of one call that an agent made through a
// gateway. A member that is empty is left out.
type Action struct {
	ID        string      `json:"id"` // of the gateway's call
	Tenant    string      `json:"tenant"`
	Time      time.Time   `json:"time"` // of the decision, in microseconds
	Seq       int64       `json:"seq"`  // 1, 2, 3 … within the session
	Intent    Intent      `json:"intent"`
	Agent     Agent       `json:"agent"`
	Principal Principal   `json:"principal"`
	Grant     GrantRef    `json:"grant"`
	Approval  ApprovalRef `json:"approval,omitzero"`
	Decision  Decision    `json:"decision"`
	Call      Call        `json:"action"`
	Outcome   Outcome     `json:"outcome"`
	Recording Recording   `json:"recording"`
}

// An Intent is the record that was written before the call was forwarded.
type Intent struct {
	Digest Digest `json:"digest,omitzero"` // the leaf hash (RFC 6962) of the intent
	Index  *int64 `json:"index,omitzero"`  // its place in the log, where it had one yet
}

// An Agent is who called, and how it proved that.
type Agent struct {
	ID    string     `json:"id,omitzero"`
	JKT   string     `json:"jkt,omitzero"` // the thumbprint of the key that the session is bound to
	Proof AgentProof `json:"proof"`
}

// The kinds of proof that an agent gives.
const (
	ByMTLS  = "mtls"  // a client certificate on the connection: Digest is its SHA-256 (x5t#S256)
	ByToken = "token" // a token alone: Digest is the SHA-256 of the token's id
)

// A AgentProof is what the agent showed to prove who it is.
type AgentProof struct {
	Kind   string `json:"kind,omitzero"`
	Digest Digest `json:"digest,omitzero"`
}

// A Principal is on whose authority the agent acted.
type Principal struct {
	Subject Digest   `json:"subject,omitzero"` // commitment to the subject's name
	Issuer  string   `json:"issuer,omitzero"`
	Act     []string `json:"act,omitzero"` // the chain of actors, the nearest first
}

// A GrantRef names the grant that the action rested on.
type GrantRef struct {
	Digest   Digest    `json:"digest,omitzero"`   // commitment to the grant document ([Grant])
	LogIndex *int64    `json:"logIndex,omitzero"` // of the event that made the grant
	NotAfter time.Time `json:"notAfter,omitzero"`
	Purpose  string    `json:"purpose,omitzero"`
}

// The results of a decision.
const (
	Allow = "allow"
	Deny  = "deny"
)

// A Decision is policy's answer.
type Decision struct {
	Result      string   `json:"result"`            // allow or deny
	Bundle      Digest   `json:"bundle,omitzero"`   // the SHA-256 of the policy bundle
	Revision    string   `json:"revision,omitzero"` // the bundle's name
	Input       Digest   `json:"input,omitzero"`    // the SHA-256 of the input, redacted
	Rule        string   `json:"rule,omitzero"`
	Obligations []string `json:"obligations,omitzero"`
}

// A Call is what was asked of the upstream.
type Call struct {
	Protocol   string   `json:"protocol,omitzero"`   // http, mcp, …
	Revision   string   `json:"revision,omitzero"`   // of the protocol
	Server     string   `json:"server,omitzero"`     // host:port
	SPKI       Digest   `json:"spki,omitzero"`       // of the server's certificate
	Resource   string   `json:"resource,omitzero"`   // the resource that the server is to Estover
	Name       string   `json:"name,omitzero"`       // the resource's name for the action, which grants are written in
	Method     string   `json:"method,omitzero"`     // GET, tools/call, …
	Tool       string   `json:"tool,omitzero"`       // the tool, or the path template
	Definition Digest   `json:"definition,omitzero"` // the SHA-256 of the tool's definition
	Args       Digest   `json:"args,omitzero"`       // commitment to the arguments
	Effect     Digest   `json:"effect,omitzero"`     // commitment to the effect that was approved
	Secrets    []string `json:"secrets,omitzero"`    // the secret versions put into slots: id@version
}

// An Outcome is how the call ended. That of a refused call is empty.
type Outcome struct {
	Status   int64  `json:"status,omitzero"` // the protocol's own: an HTTP status, a JSON-RPC error code
	IsError  bool   `json:"isError,omitzero"`
	Result   Digest `json:"result,omitzero"` // commitment to the result
	Rows     int64  `json:"rows,omitzero"`
	Commit   string `json:"commit,omitzero"`         // committed, rolled back, unknown
	Duration int64  `json:"durationMicros,omitzero"` // from the decision to the last byte
	Error    string `json:"error,omitzero"`          // why there is no answer: a code, never the upstream's words
}

// A Recording says where the call was recorded, and which session it belongs
// to whether or not it was.
type Recording struct {
	Session string `json:"session"`
	Segment string `json:"segment,omitzero"`
	Root    Digest `json:"root,omitzero"`
}

// Type is [ActionType].
func (*Action) Type() string { return ActionType }

// A Session is the closing statement of a session. With the actions numbered
// from 1, Count says whether all of them are there.
type Session struct {
	ID     string    `json:"id"`
	Tenant string    `json:"tenant"`
	Time   time.Time `json:"time"`
	Agent  string    `json:"agent,omitzero"`
	Count  int64     `json:"count"`
}

// Type is [SessionType].
func (*Session) Type() string { return SessionType }

// NewSession is the closing statement of a session.
func NewSession(s Session) *Statement {
	return &Statement{Subjects: []Subject{{s.ID, Sum([]byte(s.ID))}}, Predicate: &s}
}

// An Enrolment admits the key of one gateway. It is signed by the root of
// enrolment and is a leaf that stands before all that the key signs.
type Enrolment struct {
	Gateway   string    `json:"gateway"` // the gateway's name
	Tenant    string    `json:"tenant"`
	Time      time.Time `json:"time"`
	Key       []byte    `json:"key"` // an Ed25519 public key
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
}

// Type is [EnrolmentType].
func (*Enrolment) Type() string { return EnrolmentType }

// NewEnrolment is the statement that admits a gateway's key.
func NewEnrolment(e Enrolment) *Statement {
	return &Statement{Subjects: []Subject{{e.Gateway, Sum(e.Key)}}, Predicate: &e}
}

// A Containment certifies that something was cut off: an agent, the agents of a
// blueprint or of a person, a resource, an organisation or everything. It tells
// what was done, and how long each step took.
type Containment struct {
	ID     string            `json:"id"`
	Tenant string            `json:"tenant"`
	Time   time.Time         `json:"time"`   // when it was asked for
	Target string            `json:"target"` // what was contained: agent:agt_…, blueprint:NAME, person:usr_…, resource:res_…, tenant:NAME or everything
	By     Digest            `json:"by"`     // commitment to who asked for it
	Reason Digest            `json:"reason"` // commitment to why
	Steps  []ContainmentStep `json:"steps"`
	Zero   int64             `json:"zeroMicros"` // from Time until nothing of the target could act any more
	// Lingers is what may go on elsewhere, since the other side cannot end it or looks
	// when it likes: a sentence for each.
	Lingers []string `json:"lingers,omitzero"`
}

// A ContainmentStep is one thing that was done.
type ContainmentStep struct {
	Name   string `json:"name"`            // holds, sessions, tokens, tunnels, …
	State  string `json:"state"`           // done or failed
	Count  int64  `json:"count"`           // how many things it touched
	Micros int64  `json:"micros"`          // from Time until the step was done
	Error  string `json:"error,omitzero"`  // a code
	Detail Digest `json:"detail,omitzero"` // commitment to the list of what was touched
}

// Type is [ContainmentType].
func (*Containment) Type() string { return ContainmentType }

// NewContainment is the certificate of a containment.
func NewContainment(c Containment) *Statement {
	return &Statement{Subjects: []Subject{{c.Target, Sum([]byte(c.Target))}}, Predicate: &c}
}

// An Emergency reports what was ended and changed since somebody may have had it
// who should not: of an agent, a resource, a containment or a secret.
type Emergency struct {
	ID      string            `json:"id"`
	Tenant  string            `json:"tenant"`
	Time    time.Time         `json:"time"`             // when it was asked for
	Target  string            `json:"target"`           // agent:agt_…, resource:res_…, incident:ctn_… or secret:sec_…
	By      Digest            `json:"by"`               // commitment to who asked for it
	Reason  Digest            `json:"reason"`           // commitment to why
	Steps   []ContainmentStep `json:"steps"`            // in the order in which they came to where they are
	Pending int64             `json:"pending"`          // how many of them are not done
	Lingers []string          `json:"lingers,omitzero"` // as in [Containment]
}

// Type is [EmergencyType].
func (*Emergency) Type() string { return EmergencyType }

// NewEmergency is the report of an emergency rotation.
func NewEmergency(e Emergency) *Statement {
	return &Statement{Subjects: []Subject{{e.Target, Sum([]byte(e.Target))}}, Predicate: &e}
}

// A Grant is the document that a grant's digest commits to. An action is
// covered by it if agent and purpose are the same, the time lies within, and
// one of the permissions names the resource and the action.
type Grant struct {
	ID          string       `json:"id"`
	Agent       string       `json:"agent"`
	Purpose     string       `json:"purpose"`
	NotBefore   time.Time    `json:"notBefore"`
	NotAfter    time.Time    `json:"notAfter"`
	Permissions []Permission `json:"permissions"`
}

// A Permission allows actions on one resource. The action "*" stands for all
// of the resource's actions, "NAME.*" for all that begin with "NAME.".
type Permission struct {
	Resource string   `json:"resource"`
	Actions  []string `json:"actions"`
}

// ParseStatement reads a statement. Duplicate members, members in another
// case and invalid UTF-8 are errors; members that are not known are ignored,
// as in-toto asks.
func ParseStatement(b []byte) (*Statement, error) {
	var w struct {
		Type    string `json:"_type"`
		Subject []struct {
			Name   string `json:"name"`
			Digest struct {
				SHA256 Digest `json:"sha256"`
			} `json:"digest"`
		} `json:"subject"`
		PredicateType string         `json:"predicateType"`
		Predicate     jsontext.Value `json:"predicate"`
	}
	if err := json.Unmarshal(b, &w); err != nil {
		return nil, fmt.Errorf("reading the statement: %w", err)
	}
	if w.Type != StatementType {
		return nil, fmt.Errorf("the statement has the type %q, not %q", w.Type, StatementType)
	}
	s := &Statement{}
	for _, sub := range w.Subject {
		if sub.Digest.SHA256.IsZero() {
			return nil, fmt.Errorf("the subject %q has no digest", sub.Name)
		}
		s.Subjects = append(s.Subjects, Subject{sub.Name, sub.Digest.SHA256})
	}
	if len(s.Subjects) == 0 {
		return nil, fmt.Errorf("the statement has no subject")
	}
	switch w.PredicateType {
	case ActionType:
		s.Predicate = &Action{}
	case SessionType:
		s.Predicate = &Session{}
	case EnrolmentType:
		s.Predicate = &Enrolment{}
	case ContainmentType:
		s.Predicate = &Containment{}
	case EmergencyType:
		s.Predicate = &Emergency{}
	default:
		return nil, fmt.Errorf("the predicate type %q is not known", w.PredicateType)
	}
	if err := json.Unmarshal(w.Predicate, s.Predicate); err != nil {
		return nil, fmt.Errorf("reading the predicate: %w", err)
	}
	return s, nil
}
