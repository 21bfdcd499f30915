package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"github.com/open-policy-agent/opa/v1/ast"
)

// An Agent is what policy knows of the agent that acts. Whoever supplies it
// makes it once for each version of the agent's rows and shares it: it is
// never changed afterwards, and its address stands for its content in the
// cache of decisions.
type Agent struct {
	ID          string
	Blueprint   string // the kind of agent that it is an instance of
	Team        string
	Environment string // development, staging, production, …
	Tier        string // low, medium or high: how much harm it can do; "" is low
	Risk        string // low, raised, high or critical: how risky it is held to be; "" is low
	Clearance   estover.Class
	Purposes    []string // that it has declared

	// What the kernel asks for, and no policy sees.
	Pending   bool      // not yet activated, or retired
	Holds     []string  // what holds it alone, as codes; any one stops it
	Sponsor   string    // the id of the person who answers for it
	Sponsored bool      // its sponsor is a living person
	Expires   time.Time // zero is never
	Segments  []string  // of the network that it may reach; empty is every one

	once  sync.Once
	shape shape
}

// A Resource is what an action reaches. It is shared and never changed, as an
// [Agent] is.
type Resource struct {
	ID              string
	Type            string // http, database, …; the noun of the operation for what is not in the catalogue
	Class           estover.Class
	Tags            []string
	Purposes        []string // for which alone it may be used; empty is every one
	Destination     string   // internal, partner or public; "" is internal
	SpecialCategory bool     // holds special categories of personal data

	// What the kernel asks for, and no policy sees.
	Identifier string // by which tokens name it; "" for what is none of the catalogue
	Holds      []string
	Segment    string

	once   sync.Once
	shapes [4]shape // by class: that of an action may be above the resource's own
}

// unknown stands for a host that is not in the catalogue.
var unknown = &Resource{Type: "unknown", Class: estover.Public, Destination: "public"}

// nobody stands for the agent of a caller that is none.
var nobody = &Agent{Clearance: estover.Public}

// A shape is a piece of an input in both of its forms: as OPA evaluates it and
// as the record keeps it.
type shape struct {
	term *ast.Term
	json []byte
}

// An Input is what a policy sees of a request. docs/reference/policy-input.md
// describes it for those who write policies, input.schema.json for the
// compiler.
type Input struct {
	Op       string // the operation: gateway.call, agent.create, …
	Purpose  string // what it is done for
	Action   string // the resource's name for it (customer.read); the operation where the resource has none
	Effect   string // read, search, write, delete, send, execute, admin or pay
	Class    estover.Class
	Caller   string // agent, user or system
	Admin    bool
	Operator bool
	Auditor  bool
	Approver bool
	Resource *Resource
	Agent    *Agent
	Session  string
	Facts    Facts

	// Delegator is the agent whose token is handed on; nil if none is.
	Delegator *Agent

	// Params are the arguments of the call. They reach a policy only if one of
	// its rules asks for them, and then no answer is cached.
	Params any
}

// The keys of the input, made once.
var (
	keyAction, keyAgent, keyCaller, keyFacts = ast.InternedTerm("action"), ast.InternedTerm("agent"), ast.InternedTerm("caller"), ast.InternedTerm("facts")
	keyOp, keyParams, keyPurpose             = ast.InternedTerm("op"), ast.InternedTerm("params"), ast.InternedTerm("purpose")
	keyResource, keySession                  = ast.InternedTerm("resource"), ast.InternedTerm("session")
	keyDelegator                             = ast.InternedTerm("delegator")
)

// term is the input as OPA evaluates it.
func (in *Input) term(facts *shape, params *ast.Term) ast.Value {
	members := [][2]*ast.Term{
		{keyAction, object("effect", in.Effect, "name", in.Action)},
		{keyAgent, in.Agent.as().term},
		{keyCaller, callers[in.callerIndex()].term},
		{keyFacts, facts.term},
		{keyOp, ast.StringTerm(in.Op)},
		{keyPurpose, ast.StringTerm(in.Purpose)},
		{keyResource, in.Resource.as(in.Class).term},
		{keySession, object("id", in.Session)},
	}
	if in.Delegator != nil {
		members = append(members, [2]*ast.Term{keyDelegator, in.Delegator.as().term})
	}
	if params != nil {
		members = append(members, [2]*ast.Term{keyParams, params})
	}
	return ast.NewObject(members...)
}

// appendJSON writes the input, without its params, with the members of every
// object in the order of their names: one text for one input, whose digest
// stands in the record.
func (in *Input) appendJSON(b []byte, facts *shape) []byte {
	b = append(b, `{"action":{"effect":`...)
	b = appendString(b, in.Effect)
	b = append(b, `,"name":`...)
	b = appendString(b, in.Action)
	b = append(b, `},"agent":`...)
	b = append(b, in.Agent.as().json...)
	b = append(b, `,"caller":`...)
	b = append(b, callers[in.callerIndex()].json...)
	if in.Delegator != nil {
		b = append(b, `,"delegator":`...)
		b = append(b, in.Delegator.as().json...)
	}
	b = append(b, `,"facts":`...)
	b = append(b, facts.json...)
	b = append(b, `,"op":`...)
	b = appendString(b, in.Op)
	b = append(b, `,"purpose":`...)
	b = appendString(b, in.Purpose)
	b = append(b, `,"resource":`...)
	b = append(b, in.Resource.as(in.Class).json...)
	b = append(b, `,"session":{"id":`...)
	b = appendString(b, in.Session)
	return append(b, `}}`...)
}

// digest is the SHA-256 of a text, in hex.
func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (a *Agent) as() *shape {
	a.once.Do(func() {
		a.shape = shapeOf(map[string]any{
			"id": a.ID, "blueprint": a.Blueprint, "team": a.Team, "environment": a.Environment,
			"clearance": string(a.Clearance), "purposes": words(a.Purposes),
		})
	})
	return &a.shape
}

// as is the resource as it is for data of a class.
func (r *Resource) as(class estover.Class) *shape {
	r.once.Do(func() {
		for i, c := range estover.Classes {
			r.shapes[i] = shapeOf(map[string]any{"id": r.ID, "type": r.Type, "class": string(c), "tags": words(r.Tags)})
		}
	})
	rank := class.Rank()
	if rank < 0 {
		rank = len(r.shapes) - 1 // what nobody classified is treated as the most sensitive
	}
	return &r.shapes[rank]
}

// words is a list that is never null in JSON.
func words(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// callers are the shapes of every caller there can be: the kind and four
// roles.
var callers = func() (all [48]shape) {
	for i := range all {
		all[i] = shapeOf(map[string]any{
			"kind":  []string{estover.AgentKind, estover.UserKind, estover.SystemKind}[i/16],
			"roles": map[string]bool{"admin": i&1 != 0, "operator": i&2 != 0, "auditor": i&4 != 0, "approver": i&8 != 0},
		})
	}
	return all
}()

func (in *Input) callerIndex() int {
	i := 0
	switch in.Caller {
	case estover.UserKind:
		i = 16
	case estover.SystemKind:
		i = 32
	}
	if in.Admin {
		i |= 1
	}
	if in.Operator {
		i |= 2
	}
	if in.Auditor {
		i |= 4
	}
	if in.Approver {
		i |= 8
	}
	return i
}

// An interner keeps one shape for each set of facts. Agents repeat themselves:
// a few hundred sets cover a day.
type interner struct {
	mu     sync.RWMutex
	shapes map[Facts]*shape
}

// maxInterned bounds an interner; beyond it, it starts again.
const maxInterned = 4096

func (n *interner) of(f *Facts) *shape {
	n.mu.RLock()
	s := n.shapes[*f]
	n.mu.RUnlock()
	if s != nil {
		return s
	}
	made := shapeOf(*f)
	n.mu.Lock()
	defer n.mu.Unlock()
	if s = n.shapes[*f]; s != nil {
		return s
	}
	if n.shapes == nil || len(n.shapes) >= maxInterned {
		n.shapes = make(map[Facts]*shape, 64)
	}
	n.shapes[*f] = &made
	return &made
}

// shapeOf makes both forms of a value that is made of words, flags and lists
// of words, whose names are in the order of the alphabet.
func shapeOf(v any) shape {
	b, err := json.Marshal(v)
	if err != nil {
		panic("policy: a piece of the input has no JSON: " + err.Error())
	}
	val, err := ast.ValueFromReader(strings.NewReader(string(b)))
	if err != nil {
		panic("policy: a piece of the input is not a value of OPA: " + err.Error())
	}
	settle(val)
	return shape{ast.NewTerm(val), b}
}

// settle has objects sort themselves before they are shared: they do it at
// the first walk.
func settle(v ast.Value) {
	if o, ok := v.(ast.Object); ok {
		o.Foreach(func(_, member *ast.Term) { settle(member.Value) })
	}
}

// object is a small object of words.
func object(pairs ...string) *ast.Term {
	members := make([][2]*ast.Term, 0, 2)
	for i := 0; i+1 < len(pairs); i += 2 {
		members = append(members, [2]*ast.Term{ast.InternedTerm(pairs[i]), ast.StringTerm(pairs[i+1])})
	}
	return ast.NewTerm(ast.NewObject(members...))
}

// appendString writes s as encoding/json would, since the record is encoded
// by it and the digest must be that of the record.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			q, err := json.Marshal(s)
			if err != nil {
				panic("policy: a string has no JSON: " + err.Error())
			}
			return append(b, q...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}
