// Package incident cuts off what must not go on: the kill switch.
//
// Containing an agent is one guarded transaction and, after it, what cannot
// stand in a transaction, each step timed from the moment it was asked for:
//
//	hold, sessions, grants ─one commit─▶ connections cut ─▶ looked again ─▶ certificate
//
// From the commit on no token of the agent is good and no call of it is
// allowed. Then the sockets and streams that are open here are closed. Then it
// is looked whether anything of the agent can still act; only when nothing can
// is the time to zero taken and the certificate written: a statement in the
// log, signed, that anyone can verify offline (package attest).
//
// A containment whose server died in between is finished by [Incidents.Resume]:
// its row says that it has no certificate yet, and every step may be done
// again. The hold that it raised is lifted like any other, by a person, with a
// reason.
package incident

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/internal/agent"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/evidence"
	"estover.dev/internal/guard"
	"estover.dev/internal/session"
)

// The errors of containment.
var (
	ErrReason   = &estover.Error{Kind: estover.Invalid, Code: "containment_reason_missing", Detail: "Say why the agent is contained, in up to 500 characters: those who find it held need to know.", Field: "reason"}
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "containment_not_found", Detail: "There is no such containment."}
	ErrNotZero  = &estover.Error{Kind: estover.Unavailable, Code: "containment_incomplete", Detail: "The agent is held and its sessions are ended, but something of it still acts here. It is tried again; look with `estover agent show`."}
)

// A Step is one thing that was done.
type Step struct {
	Name   string `json:"name"`
	What   string `json:"what"`  // in a sentence
	Count  int64  `json:"count"` // how many things it touched
	Micros int64  `json:"micros"`
}

// A Containment is what was done to cut an agent off.
type Containment struct {
	ID         string          `json:"id"`
	Agent      string          `json:"agent"`
	By         estover.Subject `json:"by"`
	Reason     string          `json:"reason"`
	At         time.Time       `json:"at"`
	Steps      []Step          `json:"steps"`
	ZeroMicros int64           `json:"zero_micros"` // from the request until nothing of the agent could act; 0 while that is not so
	Event      string          `json:"event,omitempty"`
}

// Gateway is what this node has open for agents.
type Gateway interface {
	// Cut ends everything that is under way in a session, and says how much
	// that was.
	Cut(tenant estover.TenantID, session string, cause error) int
	// Count is how much is under way in a session.
	Count(tenant estover.TenantID, session string) int
	// CutAgent is Cut for everything in which an agent has a part, but in some
	// sessions.
	CutAgent(tenant estover.TenantID, agent string, but []string, cause error) int
	// CountAgent is how much is under way in which an agent has a part.
	CountAgent(tenant estover.TenantID, agent string) int
}

// Incidents contains agents. It is safe for use by many at once.
type Incidents struct {
	guard    *guard.Guard
	agents   *agent.Registry
	sessions *session.Sessions
	gateway  Gateway
	evidence *evidence.Evidence
}

// New puts the kill switch together.
func New(g *guard.Guard, a *agent.Registry, s *session.Sessions, gw Gateway, e *evidence.Evidence) *Incidents {
	return &Incidents{g, a, s, gw, e}
}

// ErrContained is the cause with which an agent's connections are cut.
var ErrContained = &estover.Error{Kind: estover.Denied, Code: "agent_contained", Detail: "The agent was contained."}

// Contain holds an agent, ends its sessions and all that belongs to them, and
// cuts what it has open. The answer comes when nothing of it can act any more,
// with the time that this took. It may be done to an agent that is held
// already: whatever it still has ends.
func (i *Incidents) Contain(ctx context.Context, caller estover.Caller, agentID, reason string) (Containment, error) {
	if reason == "" || len(reason) > 500 {
		return Containment{}, ErrReason
	}
	begun := time.Now()
	c := Containment{ID: estover.NewID("ctn"), Agent: agentID, By: caller.Subject, Reason: reason}
	var ended []string
	op := guard.Op{Action: "containment.run", Target: "agent:" + agentID, Detail: map[string]any{"containment": c.ID, "reason": reason}}
	err := i.guard.Do(ctx, caller, op, func(tx *guard.Tx) (err error) {
		c.At = tx.Now()
		if ended, err = i.sessions.EndAgent(ctx, tx, agentID, "containment"); err != nil {
			return err
		}
		if _, err = i.agents.Raise(ctx, tx, agentID, agent.Quarantine, "Contained: "+reason, caller.Subject); err != nil {
			return err
		}
		return insert(ctx, tx.Tx, c)
	})
	if err != nil {
		return Containment{}, err
	}
	c.step(begun, "hold", "The agent is held: no token, no call, no session.", 1)
	c.step(begun, "sessions", "Its sessions are ended, with the grants and tokens that belong to them.", int64(len(ended)))
	// From here on the agent is cut off whoever still waits for the answer.
	ctx = context.WithoutCancel(ctx)
	return i.finish(ctx, caller, c, ended, begun)
}

func (c *Containment) step(begun time.Time, name, what string, count int64) {
	c.Steps = append(c.Steps, Step{name, what, count, time.Since(begun).Microseconds()})
}

// finish does what follows the commit: it cuts, looks again, and certifies.
func (i *Incidents) finish(ctx context.Context, caller estover.Caller, c Containment, sessions []string, begun time.Time) (Containment, error) {
	cut := 0
	for _, s := range sessions {
		cut += i.gateway.Cut(caller.Tenant, s, ErrContained)
	}
	// And what it does in the sessions of others, who handed it their tokens.
	cut += i.gateway.CutAgent(caller.Tenant, c.Agent, sessions, ErrContained)
	c.step(begun, "connections", "Its open connections and streams are cut.", int64(cut))
	if err := i.zero(ctx, caller.Tenant, c.Agent, sessions); err != nil {
		return c, errors.Join(err, i.save(ctx, caller.Tenant, c))
	}
	c.step(begun, "verified", "Nothing of it can act: looked at its holds, its sessions and its connections.", int64(len(sessions)))
	c.ZeroMicros = time.Since(begun).Microseconds()
	return c, i.certify(ctx, caller, &c)
}

// zero looks whether anything of the agent can still act. Handlers of
// connections that were cut take a moment to leave.
func (i *Incidents) zero(ctx context.Context, tenant estover.TenantID, agentID string, sessions []string) error {
	a, err := i.agents.Snapshot(ctx, tenant, agentID)
	if err != nil {
		return err
	}
	if a.StatusAt(i.guard.DB().Now()) == agent.Active {
		return ErrNotZero
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); ; <-tick.C {
		open := 0
		for _, s := range sessions {
			open += i.gateway.Count(tenant, s)
		}
		open += i.gateway.CountAgent(tenant, agentID)
		if open == 0 {
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
	committed := evidence.Committed{Seed: newSeed()}
	s := attest.Containment{
		ID: c.ID, Tenant: string(caller.Tenant), Time: c.At, Target: string(estover.Agent(c.Agent)),
		By:     attest.Commit(committed.Salt(attest.ContainedBy), []byte(c.By)),
		Reason: attest.Commit(committed.Salt(attest.ContainedReason), []byte(c.Reason)),
		Zero:   c.ZeroMicros,
	}
	for _, step := range c.Steps {
		s.Steps = append(s.Steps, attest.ContainmentStep{Name: step.Name, State: "done", Count: step.Count, Micros: step.Micros})
	}
	leaf := attest.NewContainment(s).AppendJSON(nil)
	op := guard.Op{
		Action: evidence.CertifyAction, Target: "agent:" + c.Agent,
		Detail: map[string]any{"containment": c.ID, evidence.DetailKey: committed, "zero_micros": c.ZeroMicros},
	}
	system := estover.Caller{Tenant: caller.Tenant, Subject: estover.System("incident"), Request: caller.Request}
	decision, err := i.guard.Admit(ctx, system, op)
	if err != nil {
		return err
	}
	c.Event = decision.ID
	return i.guard.Act(ctx, system, op, decision, func(tx *guard.Tx) error {
		tx.Leaf(leaf)
		return update(ctx, tx.Tx, *c)
	})
}

func (i *Incidents) save(ctx context.Context, tenant estover.TenantID, c Containment) error {
	return i.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error { return update(ctx, tx, c) })
}

// Certificate is the receipt of a containment's certificate, to be verified
// offline.
func (i *Incidents) Certificate(ctx context.Context, caller estover.Caller, id string) ([]byte, error) {
	var c Containment
	var event audit.Entry
	op := guard.Op{Action: "containment.read", Target: "containment:" + id, Effect: guard.Reads}
	err := i.guard.Read(ctx, caller, op, func(tx *db.Tx) (err error) {
		if c, err = find(ctx, tx, id); err != nil {
			return err
		}
		if c.Event == "" {
			return ErrNotZero
		}
		event, err = i.guard.Log().Find(ctx, tx, c.Event)
		return err
	})
	if err != nil {
		return nil, err
	}
	r, err := i.evidence.Certificate(ctx, caller.Tenant, event)
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

// List shows the containments of an agent, or of all, the newest first.
func (i *Incidents) List(ctx context.Context, caller estover.Caller, agentID string, limit int) (all []Containment, err error) {
	op := guard.Op{Action: "containment.list", Effect: guard.Reads}
	err = i.guard.Read(ctx, caller, op, func(tx *db.Tx) (err error) {
		all, err = list(ctx, tx, agentID, limit)
		return err
	})
	return all, err
}

// Resume finishes the containments of this and of nodes that died, a minute
// after they began. It is called every few seconds.
func (i *Incidents) Resume(ctx context.Context) error {
	var open []tenantContainment
	err := i.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		open, err = unfinished(ctx, tx, tx.Now().Add(-time.Minute))
		return err
	})
	if err != nil {
		return err
	}
	var failed error
	for _, t := range open {
		begun := time.Now().Add(-i.guard.DB().Now().Sub(t.At)) // the time to zero counts from the request
		system := estover.Caller{Tenant: t.tenant, Subject: estover.System("incident")}
		// The sessions were ended with the containment; what they had open
		// here was cut when this node heard of it, or died with the node.
		sessions, err := i.sessions.EndAll(ctx, system, t.Agent, "containment")
		if err == nil {
			t.Steps = nil
			t.step(begun, "resumed", "The server that began this ended in between; everything was done again.", 1)
			_, err = i.finish(ctx, system, t.Containment, sessions, begun)
		}
		failed = errors.Join(failed, err)
	}
	return failed
}
