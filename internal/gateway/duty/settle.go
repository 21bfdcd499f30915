package duty

import (
	"context"
	"errors"
	"strconv"
	"time"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/internal/access"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/evidence"
	"estover.dev/internal/gateway"
	"estover.dev/internal/guard"
	"estover.dev/internal/session"
)

// errNotRecorded is what the agent is told when a call cannot be recorded
// before it is made.
var errNotRecorded = &estover.Error{Kind: estover.Unavailable, Code: "audit_unavailable", Detail: "The call cannot be recorded, so it was not made. Try again."}

// Intend gives the call its number and records that it will be made.
func (d *Duties) Intend(ctx context.Context, ex *gateway.Exchange, p *gateway.Plan) error {
	c := p.State.(*call)
	var err error
	if c.seq, err = c.task.next(ctx, d); err != nil {
		return err
	}
	err = d.intend(ctx, ex, p, c)
	switch {
	case err == nil:
		c.decision.Recorded(ex.Caller.Tenant)
		if c.covered.Grant != "" {
			d.Access.Used(ex.Caller.Tenant, c.covered.Grant)
		}
		d.intents.Add(1)
		return nil
	case errors.Is(err, access.ErrBudget):
		err = d.exceeded(ctx, ex, c, err)
	case errors.Is(err, db.ErrStale):
		err = gateway.ErrEnded
	case ctx.Err() == nil:
		d.Logger.Error("a call could not be recorded and was refused", "request", ex.Caller.Request, "error", err)
		err = errNotRecorded.Because(err)
	}
	// The number is used up. Its gap in the log would look like a call that
	// was taken out, so it is filled: a call that was never made.
	d.abandon(ex, c, err)
	c.tapsDone()
	return err
}

// intend records that a call will be made, and takes what it draws of budgets in
// the same commit. Where nothing is left of one grant another may cover the call.
func (d *Duties) intend(ctx context.Context, ex *gateway.Exchange, p *gateway.Plan, c *call) error {
	asked := c.op.Action
	members := appendNumber(c.op.Members, "seq", c.seq)
	for {
		// If this process dies under the call, whoever writes its outcome has only
		// this to write it from.
		c.op.Members = appendCommitted(members, c.commits)
		if ex.Caller.Grant != "" {
			c.op.Members = audit.AppendMember(c.op.Members, ',', tokenKey, ex.Caller.Grant)
		}
		c.op.Action = intentAction
		event := d.Guard.Event(ex.Caller, c.op, c.decision, audit.Done)
		prepared, err := d.Guard.Log().Prepare(ex.Caller.Tenant, event)
		if err == nil {
			c.intent = prepared.LeafHash()
			err = d.write(ctx, ex.Caller.Tenant, prepared, p, c)
		}
		if !errors.Is(err, access.ErrBudget) {
			return err
		}
		c.op.Action, c.op.Members = asked, members
		before := c.covered.Grant
		if failed := d.cover(ctx, ex, c); errors.Is(failed, errUncovered) {
			return err
		} else if failed != nil {
			return failed
		}
		if c.covered.Grant == before {
			return err
		}
	}
}

// tokenKey is where an intent has the grant of the token that was shown, if it
// was a token.
const tokenKey = "token_grant"

// write records an intent: committed while the session is alive, or on the
// node's spool.
func (d *Duties) write(ctx context.Context, tenant estover.TenantID, p audit.Prepared, plan *gateway.Plan, c *call) error {
	if !c.strict && len(c.covered.Accounts) == 0 {
		return d.Spool.Append(p)
	}
	w := db.Append{
		Tenant: tenant, Live: []db.Epoch{{Table: session.Table, ID: c.task.key.session, Epoch: c.task.epoch}}, Rows: []db.Row{p.Row()},
	}
	var err error
	if len(c.covered.Accounts) == 0 {
		err = d.Guard.DB().Append(ctx, w)
	} else {
		err = d.draw(ctx, plan, c, w)
	}
	if err == nil {
		d.Guard.Log().Wake()
	}
	return err
}

// abandon writes the outcome of a call whose intent could not be recorded.
func (d *Duties) abandon(ex *gateway.Exchange, c *call, why error) {
	d.outcome(ex, c, &gateway.Outcome{End: gateway.Refused, Err: why, Begun: c.at, Took: d.Guard.DB().Now().Sub(c.at)})
}

// Settle records what became of the call: its statement is a leaf of the log.
func (d *Duties) Settle(ex *gateway.Exchange, p *gateway.Plan, out *gateway.Outcome) {
	c := p.State.(*call)
	for _, one := range c.carries {
		one.Done()
	}
	d.outcome(ex, c, out)
	d.outcomes.Add(1)
	d.settle(ex, c, out)
}

func (d *Duties) outcome(ex *gateway.Exchange, c *call, out *gateway.Outcome) {
	if c.rec != nil {
		c.rec.close(out)
		c.commits.Recording, c.commits.Stream, c.commits.Cut = c.rec.id(), c.rec.stream, c.rec.cut
	}
	leaf := d.statement(ex, c, out).AppendJSON(make([]byte, 0, 2048))
	op := guard.Op{
		Action: evidence.CallAction, Target: c.op.Target, Resource: c.op.Resource, Session: c.op.Session, Purpose: c.op.Purpose,
		Members: c.told(out),
	}
	event := d.Guard.Event(ex.Caller, op, guard.Decision{ID: audit.NewID(), Allow: true}, audit.Done)
	event.Leaf = leaf
	prepared, err := d.Guard.Log().Prepare(ex.Caller.Tenant, event)
	if err == nil {
		if err = d.keep(ex.Caller.Tenant, prepared); err != nil {
			c.task.owe(prepared)
		}
	}
	if err != nil {
		d.Logger.Error("the outcome of a call could not be recorded yet", "request", ex.Caller.Request, "call", c.decision.ID, "error", err)
	}
}

// told is what the event of an outcome tells. It is written where the intent was told,
// which has been prepared, and nothing more is recorded of the call.
func (c *call) told(out *gateway.Outcome) []byte {
	b := audit.AppendMember(c.op.Members[:0], ',', "call", c.decision.ID)
	b = audit.AppendMember(b, ',', "end", string(out.End))
	for _, m := range [...]struct {
		name  string
		value int64
	}{
		{"seq", c.seq},
		{"status", int64(out.Status)},
		{"sent", out.Sent},
		{"received", out.Received},
		{"delivered", out.Delivered},
		{"took_us", out.Took.Microseconds()},
	} {
		b = appendNumber(b, m.name, m.value)
	}
	b = appendCommitted(b, c.commits)
	if len(c.secrets) > 0 {
		b = audit.AppendStrings(append(b, `,"secrets":`...), c.secrets)
	}
	if out.Err != nil {
		b = audit.AppendMember(b, ',', "error", out.Err.Error())
	}
	if out.Address != "" {
		b = audit.AppendMember(b, ',', "upstream", out.Address)
	}
	return b
}

// appendNumber writes a member that is a number.
func appendNumber(b []byte, name string, n int64) []byte {
	b = append(append(append(b, `,"`...), name...), `":`...)
	return strconv.AppendInt(b, n, 10)
}

func appendCommitted(b []byte, c evidence.Committed) []byte {
	return c.AppendJSON(append(b, `,"`+evidence.DetailKey+`":`...))
}

// owe keeps an outcome in memory that neither the database nor the node's disk
// takes. Nothing else begins in the session until it is recorded, so that there
// are never more of them than there were calls under way.
func (t *task) owe(p audit.Prepared) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.owed = append(t.owed, p)
}

// pay records what is owed. t.mu is held.
func (t *task) pay(d *Duties) error {
	for len(t.owed) > 0 {
		if err := d.keep(t.key.tenant, t.owed[0]); err != nil {
			return errNotRecorded.Because(err)
		}
		t.owed = t.owed[1:]
	}
	return nil
}

// settleTime bounds how long the outcome of a call waits for the database.
const settleTime = 5 * time.Second

// keep records an outcome: on the node's spool, whether or not the intent was
// committed, for what has been done is done. Where the spool does not take it
// the database may.
func (d *Duties) keep(tenant estover.TenantID, p audit.Prepared) error {
	failed := d.Spool.Append(p)
	if failed == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), settleTime)
	defer cancel()
	if err := d.Guard.DB().Append(ctx, db.Append{Tenant: tenant, Rows: []db.Row{p.Row()}}); err != nil {
		return errors.Join(failed, err)
	}
	d.Guard.Log().Wake()
	return nil
}

// statement is what a receipt of the call says.
func (d *Duties) statement(ex *gateway.Exchange, c *call, out *gateway.Outcome) *attest.Statement {
	s := &struct {
		attest.Statement
		action   attest.Action
		subjects [3]attest.Subject
	}{}
	a := &s.action
	s.Predicate = a
	*a = attest.Action{
		ID: c.decision.ID, Tenant: string(ex.Caller.Tenant), Time: c.at, Seq: c.seq,
		Intent:    attest.Intent{Digest: c.intent},
		Agent:     attest.Agent{ID: ex.Caller.Acting().ID()}, // in a session that may be another's, by delegation
		Principal: attest.Principal{Subject: attest.Commit(c.salt(attest.PrincipalName), ex.Caller.Subject)},
		Decision:  attest.Decision{Result: attest.Allow, Rule: c.decision.Rule},
		Call: attest.Call{
			Protocol: "http", Revision: out.Proto, Server: c.host, SPKI: out.SPKI, Resource: c.resource.Name,
			Name: c.action.Name, Method: ex.Method, Tool: c.action.Path, Secrets: c.secrets,
		},
		Outcome:   attest.Outcome{Status: int64(out.Status), IsError: out.End != gateway.Complete || out.Status >= 400, Duration: out.Took.Microseconds()},
		Recording: attest.Recording{Session: c.task.key.session},
	}
	for _, actor := range ex.Caller.Actors {
		a.Principal.Act = append(a.Principal.Act, string(actor))
	}
	a.Agent.Proof = c.task.shown(ex.Caller.Grant)
	decided(&a.Decision, c.decision.Revision, c.decision.InputDigest, c.decision.Obligations)
	if c.commits.Grant != "" {
		a.Grant = attest.GrantRef{Digest: attest.Commit(c.salt(attest.GrantDocument), c.commits.Grant), Purpose: ex.Caller.Purpose}
	}
	a.Approval = c.approval
	if known := ours(out.Err); known != nil {
		a.Outcome.Error = known.Code
	} else if out.End != gateway.Complete {
		a.Outcome.Error = string(out.End)
	}
	if c.sent == nil {
		return &s.Statement // it was never made
	}
	came, delivered, differ := c.answer.Sums()
	s.Subjects = append(s.subjects[:0], attest.Subject{Name: attest.Request, Digest: c.sent.Sum()}, attest.Subject{Name: attest.Response, Digest: came})
	if differ {
		s.Subjects = append(s.Subjects, attest.Subject{Name: attest.Delivered, Digest: delivered})
	}
	c.sent, c.answer = nil, nil
	return &s.Statement
}

// ours is the error of ours in err; nil if there is none.
func ours(err error) *estover.Error {
	if err == nil { // which needs no place for one
		return nil
	}
	var known *estover.Error
	errors.As(err, &known)
	return known
}

// shown is what the agent proved itself with: a token of this grant, or with
// none the session's certificate.
func (t *task) shown(grant string) attest.AgentProof {
	if grant == "" {
		return attest.AgentProof{Kind: attest.ByMTLS, Digest: t.proof}
	}
	return attest.AgentProof{Kind: attest.ByToken, Digest: attest.Sum(grant)}
}

// decided adds to a decision what it rests on and what it demands.
func decided(d *attest.Decision, revision, input string, obligations []guard.Obligation) {
	d.Bundle, _ = attest.ParseDigest(revision)
	d.Input, _ = attest.ParseDigest(input)
	if len(obligations) > 0 { // an empty list would be written
		d.Obligations = make([]string, 0, len(obligations))
	}
	for _, o := range obligations {
		d.Obligations = append(d.Obligations, o.Type)
	}
}
