// Package incident cuts off what must not go on: the kill switch.
//
// What is contained is an agent, the agents of a blueprint or of a person, a
// resource, an organisation, or everything ([Target]). It is one guarded
// transaction and, after it, what cannot stand in a transaction, each step timed
// from the moment it was asked for:
//
//	hold, sessions, grants ─one commit─▶ connections cut ─▶ looked again ─▶ certificate
//
// From the commit on no token of what is held is good and no call of it is
// allowed: an agent is held by a hold of its own, anything else by one hold that
// covers it as a whole (package hold), whatever the number of agents, and those
// too that are registered later. Where there are very many sessions, or those of
// other organisations, the commit ends the first of them and batches that follow
// end the others; none of them is good for anything meanwhile. Then the sockets
// and streams that are open here are closed. Then it is looked whether anything
// can still act; only when nothing can is the time to zero taken and the
// certificate written: a statement in the log, signed, that anyone can verify
// offline (package attest).
//
//	begun ──(nothing can act)──▶ certified
//	  └──(its hold is lifted before)──▶ given up
//
// A containment whose server died in between is finished by [Incidents.Resume]:
// its row says that it has no certificate yet, and every step may be done again.
// How a hold is lifted is in lift.go.
package incident

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/internal/agent"
	"estover.dev/internal/approval"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/evidence"
	"estover.dev/internal/guard"
	"estover.dev/internal/hold"
	"estover.dev/internal/resource"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

// The errors of containment.
var (
	ErrReason   = &estover.Error{Kind: estover.Invalid, Code: "containment_reason_missing", Detail: "Say why it is contained, in up to 500 characters: those who find it held need to know.", Field: "reason"}
	ErrTarget   = &estover.Error{Kind: estover.Invalid, Code: "containment_target_invalid", Detail: "Say what is contained: agent, blueprint, resource, person or tenant with a name, or everything."}
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "containment_not_found", Detail: "There is no such containment."}
	ErrLeases   = &estover.Error{Kind: estover.Unavailable, Code: "containment_leases_left", Detail: "It is held and its sessions are ended, but credentials that were made for it are not gone at their targets yet. They are taken away again and again, and the containment is certified when they are gone; look with `estover secret lease list --open`."}
	ErrNotZero  = &estover.Error{Kind: estover.Unavailable, Code: "containment_incomplete", Detail: "It is held and its sessions are ended, but something of it still acts here. It is tried again; look with `estover contain list`."}
)

// Agent is the scope of the containment of one agent; the others are those of
// holds.
const Agent hold.Scope = "agent"

// A Target is what is contained: an agent, a resource or a person by id, a
// blueprint or an organisation by name, or everything.
type Target struct {
	Scope hold.Scope `json:"scope"`
	ID    string     `json:"target,omitempty"`
}

// String is the target as events and certificates name it.
func (t Target) String() string {
	if t.Scope == hold.Everything {
		return string(t.Scope)
	}
	return string(t.Scope) + ":" + t.ID
}

// check says what is wrong with a target.
func (t Target) check() error {
	switch t.Scope {
	case hold.Everything:
		if t.ID != "" {
			return ErrTarget.With("Everything is contained without a name.")
		}
	case Agent, hold.Resource, hold.Person, hold.Tenant:
		if t.ID == "" {
			return ErrTarget
		}
	case hold.Blueprint:
		if !estover.ValidName(t.ID) {
			return ErrTarget.With("A blueprint has a name of up to 63 small letters, digits, dots, dashes and underscores, not %q.", t.ID)
		}
	default:
		return ErrTarget
	}
	return nil
}

// A Step is one thing that was done.
type Step struct {
	Name   string `json:"name"`
	What   string `json:"what"`  // in a sentence
	Count  int64  `json:"count"` // how many things it touched
	Micros int64  `json:"micros"`
}

// A Containment is what was done to cut something off.
type Containment struct {
	ID string `json:"id"`
	Target
	Agent      string          `json:"agent,omitempty"` // the target, if that is an agent
	Hold       string          `json:"hold,omitempty"`  // that it raised
	By         estover.Subject `json:"by"`
	Reason     string          `json:"reason"`
	At         time.Time       `json:"at"`
	Steps      []Step          `json:"steps"`
	ZeroMicros int64           `json:"zero_micros"` // from the request until nothing could act; 0 while that is not so
	Event      string          `json:"event,omitempty"`
	EndedAt    time.Time       `json:"ended_at,omitzero"` // when it was given up, since its hold was lifted before
	Lingers    []string        `json:"lingers,omitempty"` // what may go on elsewhere although it has ended here, as its certificate says too

	leases int64 // credentials that were marked with it
}

// Gateway is what this node has open for agents.
type Gateway interface {
	// Cut ends everything that is under way in a session, lets nothing begin in it
	// again, and says how much that was.
	Cut(tenant estover.TenantID, session string, cause error) int
	// CutWhere ends everything of which match says so, by its caller, the host and
	// port that it goes to, and the name of the resource by whose route it came.
	CutWhere(match func(c *estover.Caller, host, route string) bool, cause error) int
	// CountWhere is how much is under way of which match says so.
	CountWhere(match func(c *estover.Caller, host, route string) bool) int
}

// Leases are the credentials that were made for agents.
type Leases interface {
	// Contain and ContainResource mark those of agents, and those that open a
	// resource, in the transaction that holds them.
	Contain(ctx context.Context, tx *guard.Tx, agents []string) (int, error)
	ContainResource(ctx context.Context, tx *guard.Tx, resource string) (int, error)
	// ContainSessions marks those of sessions, whoever holds them.
	ContainSessions(ctx context.Context, tx *guard.Tx, sessions []string) (int, error)
	// Left is how many there are that were contained and are not gone at their
	// targets: those of which is says so, by the agent that holds it, the session and
	// the resource that it opens.
	Left(ctx context.Context, tenant estover.TenantID, is func(agent, session, resource string) bool) (int64, error)
	// ContainedLingers says what may go on at targets of those that were contained and
	// have not ended, or have since a time, in a sentence for each kind of target.
	ContainedLingers(ctx context.Context, tenant estover.TenantID, since time.Time, is func(agent, session, resource string) bool) ([]string, error)
}

// Config is what the kill switch is made of.
type Config struct {
	Guard    *guard.Guard
	Agents   *agent.Registry
	Sessions *session.Sessions
	Holds    *hold.Holds
	Gateway  Gateway
	Leases   Leases // nil where no credentials are made
	Evidence *evidence.Evidence

	// Certificates takes back what was certified for agents, in whoever's session, in the
	// transaction that holds them. Nil where nothing is.
	Certificates func(ctx context.Context, tx *guard.Tx, agents []string, cause string) (int, error)

	// Certified says what may go on of what was certified for agents, all of them if all
	// is true, and taken back since a time. Nil where nothing is certified.
	Certified func(ctx context.Context, tx *db.Tx, agents []string, all bool, since time.Time) ([]string, error)

	// Patience is how long a containment waits for credentials to be gone at their
	// targets; 10 s if zero.
	Patience time.Duration

	// Ask puts it to others that a hold be lifted. Nil asks nobody.
	Ask func(ctx context.Context, caller estover.Caller, w approval.Wish) (approval.Request, error)
	// Deciders are the people who may decide about that, by their ids.
	Deciders func(ctx context.Context, tx *db.Tx) ([]string, error)
	// Decoy makes an agent that a drill contains.
	Decoy func(ctx context.Context, caller estover.Caller) (*Decoy, error)
	// Person says in a transaction that there is no such person, if so.
	Person func(ctx context.Context, tx *db.Tx, id string) error
	// Tenant says that there is no such tenant, if so. Tenants are all of them.
	Tenant  func(ctx context.Context, tenant estover.TenantID) error
	Tenants func(ctx context.Context) ([]estover.TenantID, error)
}

// Incidents contains what must not go on. It is safe for use by many at once.
type Incidents struct {
	Config

	// reached is told of each step of a containment before it is done and when it
	// is, and may stop it there. It is nil but in tests.
	reached func(step string, done bool) error
}

// New puts the kill switch together.
func New(c Config) *Incidents {
	if c.Patience == 0 {
		c.Patience = 10 * time.Second
	}
	return &Incidents{Config: c}
}

// ErrContained is the cause with which connections are cut.
var ErrContained = &estover.Error{Kind: estover.Denied, Code: "agent_contained", Detail: "The agent was contained."}

// cause is the cause with which sessions end.
const cause = "containment"

// batch is how many agents' sessions end in one transaction.
const batch = 100

// Contain holds what must not go on, ends its sessions and all that belongs to
// them, and cuts what it has open. The answer comes when nothing of it can act
// any more, with the time that this took. It may be done to what is held already:
// whatever that still has ends.
func (i *Incidents) Contain(ctx context.Context, caller estover.Caller, target Target, reason string) (Containment, error) {
	return i.contain(ctx, caller, estover.NewID("ctn"), target, reason)
}

// ContainOnce is [Incidents.Contain] for what may be sent twice, as a form may: the
// same key of the same caller is the same containment, and the answer is what has
// become of it.
func (i *Incidents) ContainOnce(ctx context.Context, caller estover.Caller, key string, target Target, reason string) (Containment, error) {
	sum := sha256.Sum256([]byte(string(caller.Subject) + "\x00" + target.String() + "\x00" + key))
	id := "ctn_" + hex.EncodeToString(sum[:13]) // as long as others
	c, err := i.contain(ctx, caller, id, target, reason)
	if !errors.Is(err, errBegun) {
		return c, err
	}
	err = i.Guard.DB().View(ctx, caller.Tenant, func(tx *db.Tx) (err error) {
		c, err = find(ctx, tx, id)
		return err
	})
	return c, err
}

// errBegun says that this very containment was begun before.
var errBegun = errors.New("the containment was begun before")

// op is what containing a target is for policy.
func (t Target) op(caller estover.Caller) guard.Op {
	op := guard.Op{Action: "containment.run", Target: t.String(), Effect: guard.Manages}
	if t.others(caller.Tenant) { // which is for those who run the installation
		op.Action = "tenant.contain"
	}
	return op
}

// others reports whether a target covers agents of other tenants than this.
func (t Target) others(tenant estover.TenantID) bool {
	return t.Scope == hold.Everything || t.Scope == hold.Tenant && t.ID != string(tenant)
}

// there says that there is no such other tenant, to those who run the
// installation.
func (i *Incidents) there(ctx context.Context, caller estover.Caller, t Target) error {
	if t.Scope == hold.Tenant && t.others(caller.Tenant) && caller.Tenant == estover.DefaultTenant {
		if err := i.Tenant(ctx, estover.TenantID(t.ID)); estover.KindOf(err) == estover.NotFound {
			return err
		}
	}
	return nil
}

func (i *Incidents) contain(ctx context.Context, caller estover.Caller, id string, target Target, reason string) (Containment, error) {
	if reason == "" || len(reason) > 500 {
		return Containment{}, ErrReason
	}
	if err := target.check(); err != nil {
		return Containment{}, err
	}
	begun := time.Now()
	c := Containment{ID: id, Target: target, By: caller.Subject, Reason: reason}
	if target.Scope == Agent {
		c.Agent = target.ID
	}
	op := target.op(caller)
	op.Detail = map[string]any{"containment": c.ID, "reason": reason}
	if err := i.there(ctx, caller, target); err != nil {
		return Containment{}, err
	}
	if err := i.at("hold", false); err != nil {
		return Containment{}, err
	}
	// What is open is counted before: from the commit on it is cut by whoever hears
	// of the hold first.
	match, err := i.match(ctx, caller.Tenant, target)
	if err != nil {
		return Containment{}, err
	}
	open := i.Gateway.CountWhere(match)
	var ended []string
	leases := 0
	err = i.Guard.Do(ctx, caller, op, func(tx *guard.Tx) (err error) {
		c.At = tx.Now()
		if c.Hold, ended, leases, err = i.hold(ctx, tx, caller, target, reason); err != nil {
			return err
		}
		tx.Note("hold_id", c.Hold)
		return insert(ctx, tx.Tx, c)
	})
	if err != nil {
		return Containment{}, err
	}
	c.step(begun, "hold", holding[target.Scope], 1)
	c.step(begun, "sessions", "The sessions are ended, with the grants and tokens that belong to them.", int64(len(ended)))
	if err := i.at("hold", true); err != nil {
		return c, err
	}
	c.leases = int64(leases)
	// From here on it is cut off whoever still waits for the answer.
	return i.finish(context.WithoutCancel(ctx), caller, c, ended, open, begun)
}

// holding is what a hold says, by its scope.
var holding = map[hold.Scope]string{
	Agent:           "The agent is held: no token, no call, no session.",
	hold.Blueprint:  "The blueprint is held: no token, no call, no session of its agents, and of those that are made.",
	hold.Person:     "The agents that the person sponsors are held: no token, no call, no session.",
	hold.Resource:   "The resource is held: no agent reaches it.",
	hold.Tenant:     "The agents of the organisation are held: no token, no call, no session.",
	hold.Everything: "All agents of all organisations are held: no token, no call, no session.",
}

func (i *Incidents) at(step string, done bool) error {
	if i.reached == nil {
		return nil
	}
	return i.reached(step, done)
}

// hold raises the hold and ends the first sessions, in one transaction. It says how
// many credentials are on their way out.
func (i *Incidents) hold(ctx context.Context, tx *guard.Tx, caller estover.Caller, t Target, reason string) (id string, ended []string, leases int, err error) {
	switch t.Scope {
	case Agent:
		if ended, err = i.Sessions.EndAgent(ctx, tx, t.ID, cause); err != nil {
			return "", nil, 0, err
		}
		if leases, err = i.mark(ctx, tx, []string{t.ID}, ended); err != nil {
			return "", nil, 0, err
		}
		h, err := i.Agents.Raise(ctx, tx, t.ID, agent.Quarantine, "Contained: "+reason, caller.Subject)
		return h.ID, ended, leases, err
	case hold.Resource:
		if _, err := resource.Lock(ctx, tx.Tx, t.ID); err != nil { // what is just being made for it is made before
			return "", nil, 0, err
		}
		if i.Leases != nil {
			if leases, err = i.Leases.ContainResource(ctx, tx, t.ID); err != nil {
				return "", nil, 0, err
			}
			tx.Note("leases", leases)
		}
	case hold.Person:
		if err := i.Person(ctx, tx.Tx, t.ID); err != nil {
			return "", nil, 0, err
		}
	}
	h, err := i.Holds.Raise(ctx, tx, t.Scope, t.ID, "Contained: "+reason, caller.Subject)
	if err != nil || !i.within(caller.Tenant, t) {
		return h.ID, nil, leases, err
	}
	some, err := i.working(ctx, tx.Tx, t)
	if err != nil || len(some) == 0 {
		return h.ID, nil, leases, err
	}
	ended, _, leases, err = i.end(ctx, tx, some)
	return h.ID, ended, leases, err
}

// mark has the credentials of agents and sessions be taken away before all others,
// and says how many there are.
func (i *Incidents) mark(ctx context.Context, tx *guard.Tx, agents, sessions []string) (int, error) {
	if i.Leases == nil {
		return 0, nil
	}
	held, err := i.Leases.Contain(ctx, tx, agents)
	if err != nil {
		return 0, err
	}
	within, err := i.Leases.ContainSessions(ctx, tx, sessions)
	tx.Note("leases", held+within)
	return held + within, err
}

// within reports whether agents of this tenant are covered by a target.
func (i *Incidents) within(tenant estover.TenantID, t Target) bool {
	return t.Scope != hold.Resource && (t.Scope != hold.Tenant || t.ID == string(tenant))
}

// working are the agents of the transaction's tenant that a target covers and
// that have something under way: a session, or a part in somebody else's.
func (i *Incidents) working(ctx context.Context, tx *db.Tx, t Target) ([]string, error) {
	busy, err := session.Working(ctx, tx)
	if err != nil {
		return nil, err
	}
	more, err := token.Working(ctx, tx)
	if err != nil {
		return nil, err
	}
	busy = append(busy, more...)
	slices.Sort(busy)
	busy = slices.Compact(busy)
	if len(busy) == 0 {
		return nil, nil
	}
	covered, err := i.covered(ctx, tx, t)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(busy, func(id string) bool { return covered != nil && !covered[id] }), nil
}

// covered are the agents of the transaction's tenant that a target covers; nil
// for all of them.
func (i *Incidents) covered(ctx context.Context, tx *db.Tx, t Target) (map[string]bool, error) {
	var ids []string
	var err error
	switch t.Scope {
	case Agent:
		ids = []string{t.ID}
	case hold.Blueprint:
		ids, err = i.Agents.Covered(ctx, tx, t.ID, "")
	case hold.Person:
		ids, err = i.Agents.Covered(ctx, tx, "", t.ID)
	default:
		return nil, nil
	}
	set := make(map[string]bool, len(ids))
	for _, id := range ids {
		set[id] = true
	}
	return set, err
}

// end ends the sessions of some agents, what others have handed to them, and the
// certificates and credentials that were made for them. It takes the first of them, and says how much
// of each it ended.
func (i *Incidents) end(ctx context.Context, tx *guard.Tx, agents []string) (sessions []string, handed, leases int, err error) {
	agents = agents[:min(len(agents), batch)]
	if sessions, err = i.Sessions.EndAgents(ctx, tx, agents, cause); err != nil {
		return nil, 0, 0, err
	}
	for _, a := range agents {
		n, err := token.EndClient(ctx, tx, a, cause)
		if err != nil {
			return nil, 0, 0, err
		}
		handed += n
	}
	tx.Note("handed_on", handed)
	if i.Certificates != nil {
		n, err := i.Certificates(ctx, tx, agents, cause)
		if err != nil {
			return nil, 0, 0, err
		}
		tx.Note("certificates", n)
	}
	leases, err = i.mark(ctx, tx, agents, sessions)
	return sessions, handed, leases, err
}

func (c *Containment) step(begun time.Time, name, what string, count int64) {
	c.Steps = append(c.Steps, Step{name, what, count, time.Since(begun).Microseconds()})
}

// finish does what follows the commit: it cuts, ends what the commit has not
// ended, looks again, and certifies. ended are the sessions that ended already, and
// open is how much was under way.
func (i *Incidents) finish(ctx context.Context, caller estover.Caller, c Containment, ended []string, open int, begun time.Time) (Containment, error) {
	match, err := i.match(ctx, caller.Tenant, c.Target)
	if err != nil {
		return c, err
	}
	if err := i.at("connections", false); err != nil {
		return c, err
	}
	cut, gone := 0, map[string]bool{}
	for _, s := range ended {
		gone[s] = true
		if c.Scope == Agent {
			cut += i.Gateway.Cut(caller.Tenant, s, ErrContained)
		}
	}
	// What was cut takes a moment to leave, and is counted once.
	cut += i.Gateway.CutWhere(func(o *estover.Caller, host, route string) bool {
		return match(o, host, route) && (c.Scope != Agent || !gone[o.Session])
	}, ErrContained)
	c.step(begun, "connections", "The connections and streams that were open are cut.", int64(max(cut, open)))
	if err := i.at("connections", true); err != nil {
		return c, err
	}
	more, leases, err := i.rest(ctx, caller, c)
	for _, s := range more {
		gone[s] = true
	}
	c.leases += leases
	// A session may have ended along with one of what is held that is another's.
	under := func(o *estover.Caller, host, route string) bool { return match(o, host, route) || gone[o.Session] }
	i.Gateway.CutWhere(under, ErrContained)
	if len(more) > 0 {
		c.step(begun, "rest", "The sessions that were too many for one commit, or another organisation's, are ended.", int64(len(more)))
	}
	if err == nil {
		err = i.at("sessions", true)
	}
	if err == nil {
		err = i.zero(ctx, caller.Tenant, c, under)
	}
	if err == nil {
		err = i.leased(ctx, caller.Tenant, &c, gone, begun)
	}
	if err != nil {
		return c, errors.Join(err, i.save(ctx, caller.Tenant, c))
	}
	c.step(begun, "verified", "Nothing can act: looked at holds, sessions and connections.", int64(len(gone)))
	c.ZeroMicros = max(time.Since(begun).Microseconds(), 1)
	if err := i.at("certificate", false); err != nil {
		return c, err
	}
	if err := i.certify(ctx, caller, &c); errors.Is(err, errCertified) {
		err = i.Guard.DB().View(ctx, caller.Tenant, func(tx *db.Tx) (err error) {
			c, err = find(ctx, tx, c.ID)
			return err
		})
		return c, err
	} else if err != nil {
		return c, err
	}
	return c, i.at("certificate", true)
}

// errCertified says that another node has taken the containment up and was first.
var errCertified = errors.New("the containment is certified already")

// patience bounds how long it is tried to end the last sessions of a target.
const patience = time.Minute

// rest ends the sessions that a target still has, in batches, and says which they
// were.
func (i *Incidents) rest(ctx context.Context, caller estover.Caller, c Containment) (gone []string, leases int64, err error) {
	if c.Scope == hold.Resource {
		return nil, 0, nil
	}
	tenants, err := i.tenants(ctx, caller.Tenant, c)
	if err != nil {
		return nil, 0, err
	}
	var failed error
	deadline := time.Now().Add(patience)
	for _, tenant := range tenants {
		for {
			var some []string
			err := i.Guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
				some, err = i.working(ctx, tx, c.Target)
				return err
			})
			if err != nil || len(some) == 0 {
				failed = errors.Join(failed, err)
				break
			}
			if time.Now().After(deadline) {
				return gone, leases, errors.Join(failed, ErrNotZero)
			}
			if err := i.at("sessions", false); err != nil {
				return gone, leases, err
			}
			system := estover.Caller{Tenant: tenant, Subject: estover.System("incident"), Request: caller.Request}
			op := guard.Op{Action: "session.end", Target: c.Target.String(), Detail: map[string]any{"cause": cause, "containment": c.ID}}
			var ended []string
			marked := 0
			err = i.Guard.Do(ctx, system, op, func(tx *guard.Tx) (err error) {
				ended, _, marked, err = i.end(ctx, tx, some)
				return err
			})
			gone = append(gone, ended...)
			leases += int64(marked)
			if err != nil {
				failed = errors.Join(failed, err)
				break
			}
		}
	}
	return gone, leases, failed
}

// tenants are those whose agents a containment covers.
func (i *Incidents) tenants(ctx context.Context, own estover.TenantID, c Containment) ([]estover.TenantID, error) {
	switch c.Scope {
	case hold.Tenant:
		return []estover.TenantID{estover.TenantID(c.Target.ID)}, nil
	case hold.Everything:
		return i.Tenants(ctx)
	}
	return []estover.TenantID{own}, nil
}

// leased waits until the credentials that were marked are gone: before that there
// is no certificate. gone are the sessions that have ended.
func (i *Incidents) leased(ctx context.Context, tenant estover.TenantID, c *Containment, gone map[string]bool, begun time.Time) error {
	tenants, err := i.tenants(ctx, tenant, *c)
	if err != nil {
		return err
	}
	var covered map[string]bool // nil for all
	if c.Scope != hold.Resource && c.Scope != hold.Tenant && c.Scope != hold.Everything {
		err = i.Guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
			covered, err = i.covered(ctx, tx, c.Target)
			return err
		})
		if err != nil {
			return err
		}
	}
	is := func(agent, session, resource string) bool {
		if c.Scope == hold.Resource {
			return resource == c.Target.ID
		}
		return covered == nil || covered[agent] || gone[session]
	}
	if err := i.lingers(ctx, tenants, c, covered, is); err != nil || i.Leases == nil {
		return err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(i.Patience); ; <-tick.C {
		left := int64(0)
		for _, t := range tenants {
			n, err := i.Leases.Left(ctx, t, is)
			if err != nil {
				return err
			}
			left += n
		}
		c.leases = max(c.leases, left)
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			return ErrLeases.With("It is held and its sessions are ended, but %d credentials that were made for it are not gone at their targets yet. They are taken away again and again, and the containment is certified when they are gone; look with `estover secret lease list --open`.", left)
		}
	}
	if c.leases > 0 {
		c.step(begun, "leases", "The credentials that were made for it are gone at their targets.", c.leases)
	}
	return nil
}

// lingers looks for what may go on elsewhere although it has ended here, since the
// other side cannot end it or looks when it likes (Q8). covered are the agents that
// are contained, nil for all.
func (i *Incidents) lingers(ctx context.Context, tenants []estover.TenantID, c *Containment, covered map[string]bool, is func(agent, session, resource string) bool) error {
	all := c.Lingers
	for _, t := range tenants {
		if i.Leases != nil {
			some, err := i.Leases.ContainedLingers(ctx, t, c.At, is)
			if err != nil {
				return err
			}
			all = append(all, some...)
		}
		if i.Certified == nil || c.Scope == hold.Resource {
			continue
		}
		err := i.Guard.DB().View(ctx, t, func(tx *db.Tx) error {
			some, err := i.Certified(ctx, tx, slices.Sorted(maps.Keys(covered)), covered == nil, c.At)
			all = append(all, some...)
			return err
		})
		if err != nil {
			return err
		}
	}
	slices.Sort(all)
	if c.Lingers = slices.Compact(all); len(c.Lingers) == 0 {
		c.Lingers = nil
	}
	return nil
}

// match finds what is under way of a target.
func (i *Incidents) match(ctx context.Context, tenant estover.TenantID, t Target) (match func(c *estover.Caller, host, route string) bool, err error) {
	switch t.Scope {
	case hold.Everything:
		return func(*estover.Caller, string, string) bool { return true }, nil
	case hold.Tenant:
		return func(c *estover.Caller, _, _ string) bool { return string(c.Tenant) == t.ID }, nil
	case hold.Resource:
		err = i.Guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
			u, err := resource.Load(ctx, tx, t.ID)
			if err != nil {
				return err
			}
			match = func(c *estover.Caller, host, route string) bool {
				return c.Tenant == tenant && (route == u.Name || route == "" && slices.Contains(u.Hosts, host))
			}
			return nil
		})
		return match, err
	}
	covered, err := i.under(ctx, tenant, t)
	agent := func(s estover.Subject) bool { return s.Kind() == estover.AgentKind && covered[s.ID()] }
	return func(c *estover.Caller, _, _ string) bool {
		return c.Tenant == tenant && (covered[c.Client] || agent(c.Subject) || slices.ContainsFunc(c.Actors, agent))
	}, err
}

// under are the agents that a target covers and that have a part in something
// which is under way here. There are few of them, however many it covers.
func (i *Incidents) under(ctx context.Context, tenant estover.TenantID, t Target) (map[string]bool, error) {
	if t.Scope == Agent {
		return map[string]bool{t.ID: true}, nil
	}
	some := map[string]bool{}
	i.Gateway.CountWhere(func(c *estover.Caller, _, _ string) bool {
		if c.Tenant == tenant {
			some[c.Client] = true
			for _, s := range append([]estover.Subject{c.Subject}, c.Actors...) {
				if s.Kind() == estover.AgentKind {
					some[s.ID()] = true
				}
			}
		}
		return false
	})
	for id := range some {
		a, err := i.Agents.Snapshot(ctx, tenant, id)
		if err != nil && estover.KindOf(err) != estover.NotFound {
			return nil, err
		}
		some[id] = err == nil && (t.Scope == hold.Blueprint && a.Blueprint == t.ID || t.Scope == hold.Person && a.Sponsor == t.ID)
	}
	return some, nil
}

// stands reports whether the hold of a containment still stands.
func (i *Incidents) stands(ctx context.Context, tx *db.Tx, c Containment) (bool, error) {
	if c.Scope == Agent {
		a, err := agent.Load(ctx, tx, c.Target.ID)
		if err != nil {
			return false, err
		}
		if c.Hold == "" { // of before holds were noted
			return a.StatusAt(tx.Now()) != agent.Active, nil
		}
		return !a.EndedAt.IsZero() || slices.ContainsFunc(a.Holds, func(h agent.Hold) bool { return h.ID == c.Hold }), nil
	}
	_, err := hold.Find(ctx, tx, c.Hold)
	if errors.Is(err, hold.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// errLifted says that the hold of a containment was lifted before it came to
// its end.
var errLifted = &estover.Error{Kind: estover.Conflict, Code: "containment_lifted", Detail: "Its hold was lifted before it was certified that nothing can act. There is no certificate."}

// zero looks whether anything can still act. Handlers of connections that were
// cut take a moment to leave.
func (i *Incidents) zero(ctx context.Context, tenant estover.TenantID, c Containment, match func(c *estover.Caller, host, route string) bool) error {
	stands := false
	err := i.Guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		stands, err = i.stands(ctx, tx, c)
		return err
	})
	if err != nil {
		return err
	}
	if !stands {
		return errLifted
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); ; <-tick.C {
		if i.Gateway.CountWhere(match) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return ErrNotZero
		}
	}
}

// certify writes the statement of a containment into the log and closes its
// row.
func (i *Incidents) certify(ctx context.Context, caller estover.Caller, c *Containment) error {
	committed := evidence.Committed{Seed: evidence.NewSeed()}
	s := attest.Containment{
		ID: c.ID, Tenant: string(caller.Tenant), Time: c.At, Target: c.Target.String(),
		By:     attest.Commit(committed.Salt(attest.ContainedBy), []byte(c.By)),
		Reason: attest.Commit(committed.Salt(attest.ContainedReason), []byte(c.Reason)),
		Zero:   c.ZeroMicros, Lingers: c.Lingers,
	}
	for _, step := range c.Steps {
		s.Steps = append(s.Steps, attest.ContainmentStep{Name: step.Name, State: "done", Count: step.Count, Micros: step.Micros})
	}
	leaf := attest.NewContainment(s).AppendJSON(nil)
	op := guard.Op{
		Action: evidence.CertifyAction, Target: c.Target.String(),
		Detail: map[string]any{"containment": c.ID, evidence.DetailKey: committed, "zero_micros": c.ZeroMicros},
	}
	system := estover.Caller{Tenant: caller.Tenant, Subject: estover.System("incident"), Request: caller.Request}
	decision, err := i.Guard.Admit(ctx, system, op)
	if err != nil {
		return err
	}
	c.Event = decision.ID
	return i.Guard.Act(ctx, system, op, decision, func(tx *guard.Tx) error {
		tx.Leaf(leaf)
		open, err := update(ctx, tx.Tx, *c)
		if err == nil && !open {
			err = errCertified
		}
		return err
	})
}

func (i *Incidents) save(ctx context.Context, tenant estover.TenantID, c Containment) error {
	return i.Guard.DB().Do(ctx, tenant, func(tx *db.Tx) error {
		_, err := update(ctx, tx, c)
		return err
	})
}

// Certificate is the receipt of a containment's certificate, to be verified
// offline.
func (i *Incidents) Certificate(ctx context.Context, caller estover.Caller, id string) ([]byte, error) {
	var c Containment
	var event audit.Entry
	op := guard.Op{Action: "containment.read", Target: "containment:" + id, Effect: guard.Reads}
	err := i.Guard.Read(ctx, caller, op, func(tx *db.Tx) (err error) {
		if c, err = find(ctx, tx, id); err != nil {
			return err
		}
		if c.Event == "" {
			return ErrNotZero
		}
		event, err = i.Guard.Log().Find(ctx, tx, c.Event)
		return err
	})
	if err != nil {
		return nil, err
	}
	r, err := i.Evidence.Certificate(ctx, caller.Tenant, event)
	if err != nil {
		return nil, err
	}
	var committed evidence.Committed
	b, err := json.Marshal(event.Detail[evidence.DetailKey])
	if err == nil {
		err = json.Unmarshal(b, &committed)
	}
	if err != nil {
		return nil, fmt.Errorf("reading what the certificate commits to: %w", err)
	}
	r.Disclosures = []attest.Disclosure{
		{Name: attest.ContainedBy, Salt: committed.Salt(attest.ContainedBy), Octets: []byte(c.By)},
		{Name: attest.ContainedReason, Salt: committed.Salt(attest.ContainedReason), Octets: []byte(c.Reason)},
	}
	return r.Marshal()
}

// List shows the containments of a target, or all if its scope is empty, the
// newest first.
func (i *Incidents) List(ctx context.Context, caller estover.Caller, of Target, limit int) (all []Containment, err error) {
	op := guard.Op{Action: "containment.list", Effect: guard.Reads}
	err = i.Guard.Read(ctx, caller, op, func(tx *db.Tx) (err error) {
		all, err = list(ctx, tx, of, limit)
		return err
	})
	return all, err
}

// Resume finishes the containments of this and of nodes that died, a minute
// after they began, and gives up those whose hold was lifted meanwhile. Besides,
// it ends what a session of something held may have become that was opened at the
// very moment of the hold. It is called every few seconds.
func (i *Incidents) Resume(ctx context.Context) error {
	var open []tenantContainment
	err := i.Guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		open, err = unfinished(ctx, tx, tx.Now().Add(-time.Minute))
		return err
	})
	if err != nil {
		return err
	}
	failed := i.sweep(ctx)
	for _, t := range open {
		failed = errors.Join(failed, i.resume(ctx, t))
	}
	return failed
}

func (i *Incidents) resume(ctx context.Context, t tenantContainment) error {
	begun := time.Now().Add(-i.Guard.DB().Now().Sub(t.At)) // the time to zero counts from the request
	system := estover.Caller{Tenant: t.tenant, Subject: estover.System("incident")}
	lifted := false
	err := i.Guard.DB().Do(ctx, t.tenant, func(tx *db.Tx) error {
		stands, err := i.stands(ctx, tx, t.Containment)
		if lifted = err == nil && !stands; lifted {
			return giveUp(ctx, tx, t.ID)
		}
		return err
	})
	if err != nil || lifted {
		return err
	}
	// What its sessions had open here was cut when this node heard of their end,
	// or died with the node.
	t.Steps = nil
	t.step(begun, "resumed", "The server that began this ended in between; everything was done again.", 1)
	_, err = i.finish(ctx, system, t.Containment, nil, 0, begun)
	return err
}

// sweep ends the sessions of what is held as a whole. There are none unless one
// was opened just when the hold was raised.
func (i *Incidents) sweep(ctx context.Context) error {
	var standing []tenantContainment
	err := i.Guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		standing, err = recent(ctx, tx, tx.Now().Add(-sweepFor))
		return err
	})
	for _, t := range standing {
		stands := false
		failed := i.Guard.DB().View(ctx, t.tenant, func(tx *db.Tx) (err error) {
			stands, err = i.stands(ctx, tx, t.Containment)
			return err
		})
		if failed == nil && stands {
			_, _, failed = i.rest(ctx, estover.Caller{Tenant: t.tenant, Subject: estover.System("incident")}, t.Containment)
		}
		err = errors.Join(err, failed)
	}
	return err
}

// sweepFor is how long after a hold it is still looked for sessions that were
// opened at its very moment.
const sweepFor = 5 * time.Minute
