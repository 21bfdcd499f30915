package duty

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/internal/access"
	"estover.dev/internal/agent"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/evidence"
	"estover.dev/internal/gateway"
	"estover.dev/internal/guard"
	"estover.dev/internal/hold"
	"estover.dev/internal/policy"
	"estover.dev/internal/session"
	organisation "estover.dev/internal/tenant"
	"estover.dev/internal/token"
)

// Counts are what this gateway has done since it started.
type Counts struct{ intents, outcomes, refusals atomic.Int64 }

// Heartbeat is the counts as a leaf of the log has them once a minute.
func (d *Duties) Heartbeat(now time.Time, boot string) audit.Heartbeat {
	return audit.Heartbeat{
		At: now, Gateway: d.Node, Boot: boot,
		Intents: d.intents.Load(), Outcomes: d.outcomes.Load(), Refusals: d.refusals.Load(), Spooled: d.Spool.Taken(),
	}
}

// task finds what this node knows of the caller's session.
func (d *Duties) task(ctx context.Context, caller estover.Caller) (*task, error) {
	key := taskKey{caller.Tenant, caller.Session}
	d.mu.Lock()
	t := d.tasks[key]
	d.mu.Unlock()
	if t != nil {
		return t, nil
	}
	s, err := d.Sessions.Snapshot(ctx, caller.Tenant, caller.Session)
	if err != nil {
		return nil, err
	}
	if err := d.Guard.DB().Do(ctx, caller.Tenant, func(tx *db.Tx) error { return begin(ctx, tx, key.session) }); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if t = d.tasks[key]; t == nil {
		t = &task{key: key, agent: s.Agent, epoch: s.Epoch, calls: -1, idle: time.Duration(s.IdleSecs) * time.Second}
		if b, err := base64.RawURLEncoding.DecodeString(s.Key); err == nil && len(b) == len(t.proof) {
			t.proof = attest.Digest(b)
		}
		d.tasks[key] = t
	}
	return t, nil
}

// next is the number of the session's next call.
func (t *task) next(ctx context.Context, d *Duties) (int64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := errors.Join(t.pay(d), t.count(ctx, d)); err != nil {
		return 0, err
	}
	t.calls++
	return t.calls, nil
}

// count looks what was numbered before this process started. A call whose
// outcome nobody wrote, because the gateway died under it, gets one here: it
// is not known what became of it. t.mu is held.
func (t *task) count(ctx context.Context, d *Duties) error {
	if t.calls >= 0 {
		return nil
	}
	if err := d.Spool.Flush(ctx); err != nil {
		return err
	}
	begun, ended := map[int64]audit.Entry{}, map[int64]bool{}
	last := int64(0)
	err := d.each(ctx, t.key, func(e audit.Entry, seq int64) {
		switch e.Action {
		case intentAction:
			begun[seq] = e
		case evidence.CallAction:
			ended[seq] = true
		default:
			return
		}
		last = max(last, seq)
	})
	if err != nil {
		return err
	}
	for seq, e := range begun {
		if !ended[seq] {
			if err := d.unknown(ctx, t, e, seq); err != nil {
				return err
			}
		}
	}
	t.calls = last
	return nil
}

// each goes through the events of a session that have a number: those of its calls,
// and others.
func (d *Duties) each(ctx context.Context, key taskKey, fn func(e audit.Entry, seq int64)) error {
	return d.Guard.DB().View(ctx, key.tenant, func(tx *db.Tx) error {
		for before := int64(0); ; {
			page, next, err := d.Guard.Log().List(ctx, tx, audit.Filter{Session: key.session, Outcome: audit.Done}, before, 500)
			if err != nil {
				return err
			}
			for _, e := range page {
				if seq, ok := e.Detail["seq"].(float64); ok {
					fn(e, int64(seq))
				}
			}
			if next == 0 {
				return nil
			}
			before = next
		}
	})
}

// unknown writes the outcome of a call that was begun and never settled.
func (d *Duties) unknown(ctx context.Context, t *task, intent audit.Entry, seq int64) error {
	word := func(key string) string { s, _ := intent.Detail[key].(string); return s }
	var committed evidence.Committed
	var decision guard.DecisionRecord
	if err := errors.Join(reread(intent.Detail[evidence.DetailKey], &committed), reread(intent.Detail["decision"], &decision)); err != nil {
		return fmt.Errorf("reading the intent %s: %w", intent.ID, err)
	}
	caller := estover.Caller{Subject: intent.Actor}
	if chain := intent.Detail["actors"]; chain != nil {
		if err := reread(chain, &caller.Actors); err != nil {
			return fmt.Errorf("reading the actors of the intent %s: %w", intent.ID, err)
		}
	}
	a := &attest.Action{
		ID: intent.ID, Tenant: string(t.key.tenant), Time: intent.At, Seq: seq,
		Intent:    attest.Intent{Digest: attest.Digest(tlog.RecordHash(intent.Leaf))},
		Agent:     attest.Agent{ID: caller.Acting().ID(), Proof: t.shown(word(tokenKey))},
		Principal: attest.Principal{Subject: attest.Commit(committed.Salt(attest.PrincipalName), intent.Actor)},
		Decision:  attest.Decision{Result: attest.Allow, Rule: decision.Rule},
		Call:      attest.Call{Protocol: "http", Server: word("host"), Name: word("action"), Method: word("method")},
		Outcome:   attest.Outcome{IsError: true, Commit: "unknown", Error: "gateway_died"},
		Recording: attest.Recording{Session: t.key.session},
	}
	for _, actor := range caller.Actors {
		a.Principal.Act = append(a.Principal.Act, string(actor))
	}
	decided(&a.Decision, decision.Revision, decision.InputDigest, decision.Obligations)
	if committed.Grant != "" {
		a.Grant = attest.GrantRef{Digest: attest.Commit(committed.Salt(attest.GrantDocument), committed.Grant), Purpose: word("purpose")}
		var grant attest.Grant
		if json.Unmarshal([]byte(committed.Grant), &grant) == nil && len(grant.Permissions) > 0 {
			a.Call.Resource = grant.Permissions[0].Resource
		}
	}
	var err error
	if a.Approval, err = d.approved(ctx, t.key.tenant, committed); err != nil {
		return fmt.Errorf("reading the approval of the intent %s: %w", intent.ID, err)
	}
	// There is nothing that went over the wire of which anybody knows.
	leaf := (&attest.Statement{Subjects: []attest.Subject{{Name: attest.IntentLeaf, Digest: a.Intent.Digest}}, Predicate: a}).AppendJSON(nil)
	system := estover.Caller{Tenant: t.key.tenant, Subject: estover.System("gateway")}
	op := guard.Op{
		Action: evidence.CallAction, Target: intent.Target, Session: t.key.session,
		Detail: map[string]any{"call": intent.ID, "seq": seq, "end": "unknown", evidence.DetailKey: committed},
	}
	event := d.Guard.Event(system, op, guard.Decision{ID: audit.NewID(), Allow: true}, audit.Done)
	event.Leaf = leaf
	p, err := d.Guard.Log().Prepare(t.key.tenant, event)
	if err != nil {
		return err
	}
	return d.keep(t.key.tenant, p)
}

// Orphaned is how long a session that has ended is left to the gateway that it
// called through, before another closes it.
const Orphaned = 10 * time.Second

// reread reads a part of an event's detail into what it was written from.
func reread(detail, into any) error {
	b, err := json.Marshal(detail)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// touched applies what has changed to what is under way. It is called by the
// guard after a commit and returns at once.
func (d *Duties) touched(tenant estover.TenantID, kind, id string) {
	switch kind {
	case estover.AgentKind, access.Copies, token.GrantTable:
		d.changed.add(tenant, id, d.lookAgain)
	case "resource", "policy":
		d.recheck(tenant, func(*task) bool { return true })
	case organisation.Kind:
		d.recheck(estover.TenantID(id), func(*task) bool { return true })
	case hold.Kind: // those of the default tenant may reach every other
		if tenant != estover.DefaultTenant {
			d.recheck(tenant, func(*task) bool { return true })
			return
		}
		_ = d.Recheck(context.Background()) // it has no error
	}
}

// changed are the agents and grants that have changed since what they have a part
// in was last looked at. When many change at once, all are looked at together.
type changed struct {
	mu   sync.Mutex
	ids  map[estover.TenantID]map[string]bool
	busy bool
}

// add has look called soon, unless it is under way and will see this one too.
func (c *changed) add(tenant estover.TenantID, id string, look func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ids[tenant] == nil {
		if c.ids == nil {
			c.ids = map[estover.TenantID]map[string]bool{}
		}
		c.ids[tenant] = map[string]bool{}
	}
	c.ids[tenant][id] = true
	if !c.busy {
		c.busy = true
		go look()
	}
}

// take empties the list; once it was empty, the next call of add begins anew.
func (c *changed) take() map[estover.TenantID]map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := c.ids
	c.ids, c.busy = nil, len(ids) > 0
	return ids
}

// lookAgain asks again about everything that what has changed has a part in.
func (d *Duties) lookAgain() {
	for ids := d.changed.take(); len(ids) > 0; ids = d.changed.take() {
		for tenant, some := range ids {
			d.Live.RecheckOf(tenant, some, d.still)
		}
	}
}

// recheck asks again about everything that is under way in some sessions.
func (d *Duties) recheck(tenant estover.TenantID, which func(*task) bool) {
	d.mu.Lock()
	var some []*task
	for key, t := range d.tasks {
		if key.tenant == tenant && which(t) && d.Live.Count(tenant, key.session) > 0 {
			some = append(some, t)
		}
	}
	d.mu.Unlock()
	for _, t := range some {
		d.Sessions.Seen(tenant, t.key.session, t.idle) // it has something under way
		go d.Live.Recheck(tenant, t.key.session, func(ex *gateway.Exchange) error { return d.still(ex) })
	}
}

// Recheck asks again about everything that is under way. Nothing says that the
// time of a grant or of an agent is over, so it is called every so often.
func (d *Duties) Recheck(context.Context) error {
	d.mu.Lock()
	var tenants []estover.TenantID
	for key := range d.tasks {
		if !slices.Contains(tenants, key.tenant) {
			tenants = append(tenants, key.tenant)
		}
	}
	d.mu.Unlock()
	for _, t := range tenants {
		d.recheck(t, func(*task) bool { return true })
	}
	return nil
}

// recheckTime bounds the question whether something may go on. No answer is no.
const recheckTime = 5 * time.Second

// still asks whether an exchange that is under way would be allowed now.
func (d *Duties) still(ex *gateway.Exchange) error {
	ctx, cancel := context.WithTimeout(context.Background(), recheckTime)
	defer cancel()
	if d.Known != nil {
		if err := d.Known(ctx, ex.Caller.Tenant); err != nil {
			return err
		}
	}
	if d.Rests != nil {
		if err := d.Rests(ctx, ex.Caller); err != nil {
			return err
		}
	}
	if ex.Method == http.MethodConnect { // a tunnel: it confers nothing, but its agent must be there
		a, err := d.Agents.Snapshot(ctx, ex.Caller.Tenant, ex.Caller.Acting().ID())
		if err == nil && a.StatusAt(d.Guard.DB().Now()) != agent.Active {
			err = gateway.ErrEnded.With("The agent may not act any more.")
		}
		return err
	}
	c, err := d.classify(ctx, ex)
	if err != nil {
		return err
	}
	if input, ok := c.op.Input.(policy.Call); ok {
		if began, ok := ex.Kept().(*call); ok {
			input.Charged = began.covered.Grants
			c.op.Input = input
		}
	}
	if err := d.leasesStand(ctx, ex.Caller.Tenant, carried(ex)); err != nil {
		return err
	}
	decision, err := d.admit(ctx, ex, c.op)
	if err == nil && d.demandsMore(decision, ex) {
		// It was begun without what policy asks for now, and cannot have it added.
		err = gateway.ErrEnded.With("Policy has changed and asks for more than this was begun with. Ask again.")
	}
	return err
}

// demandsMore reports whether a decision comes with an obligation that was not
// there when an exchange was begun.
func (d *Duties) demandsMore(now guard.Decision, ex *gateway.Exchange) bool {
	began, ok := ex.Kept().(*call)
	return ok && slices.ContainsFunc(now.Obligations, func(o guard.Obligation) bool {
		return !slices.ContainsFunc(began.decision.Obligations, func(b guard.Obligation) bool {
			return b.Type == o.Type && reflect.DeepEqual(b.Properties, o.Properties)
		})
	})
}

// Ended cuts what a session that has ended has under way here, and closes it: the
// gateway's part of sessions. Where it is not known whether the session has ended,
// what it has open is cut all the same.
func (d *Duties) Ended(ctx context.Context, tenant estover.TenantID, id string, ended bool) error {
	if !ended {
		d.Live.Recheck(tenant, id, func(*gateway.Exchange) error { return gateway.ErrEnded })
		return nil
	}
	d.empty(tenant, id)
	return d.Close(ctx, tenant, id)
}

// Close writes the closing statement of a session that has ended: how many
// calls there were. It waits until nothing of the session is under way here,
// and does nothing if it was done before, or if the session goes on.
func (d *Duties) Close(ctx context.Context, tenant estover.TenantID, id string) error {
	key := taskKey{tenant, id}
	s, err := d.Sessions.Snapshot(ctx, tenant, id)
	if err != nil {
		return err
	}
	if s.EndedAt.IsZero() {
		return nil
	}
	// First of all, for a call may be under way that has left no trace yet.
	d.Live.Cut(tenant, id, gateway.ErrEnded)
	open := false
	if err := d.Guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		open, err = isOpen(ctx, tx, id)
		return err
	}); err != nil {
		return err
	}
	if !open {
		d.Live.Forget(tenant, id) // whoever comes from here on is refused by policy
		return nil
	}
	t, err := d.task(ctx, estover.Caller{Tenant: tenant, Session: id})
	if err != nil {
		return err
	}
	t.mu.Lock()
	if t.closing {
		t.mu.Unlock()
		return errClosing
	}
	t.closing = true
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		t.closing = false
		t.mu.Unlock()
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for d.Live.Count(tenant, id) > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := d.Recordings.End(ctx, tenant, id); err != nil {
		return err
	}
	t.mu.Lock()
	err = errors.Join(t.pay(d), t.count(ctx, d))
	count := t.calls
	t.mu.Unlock()
	if err == nil {
		err = d.Spool.Flush(ctx) // the closing statement comes last
	}
	if err != nil {
		return err
	}
	if err := d.closing(ctx, s, tenant, count); err != nil {
		return err
	}
	d.mu.Lock()
	delete(d.tasks, key)
	d.mu.Unlock()
	d.cas.Drop(tenant, id)
	d.Live.Forget(tenant, id)
	d.empty(tenant, id) // of what was under way when it ended
	d.Drop(tenant, id)
	return nil
}

// closing records the closing statement, once.
func (d *Duties) closing(ctx context.Context, s *session.Session, tenant estover.TenantID, count int64) error {
	statement := attest.NewSession(attest.Session{ID: s.ID, Tenant: string(tenant), Time: d.Guard.DB().Now(), Agent: s.Agent, Count: count}).AppendJSON(nil)
	system := estover.Caller{Tenant: tenant, Subject: estover.System("gateway")}
	op := guard.Op{Action: evidence.ClosingAction, Target: "session:" + s.ID, Session: s.ID, Detail: map[string]any{"calls": count}}
	err := d.Guard.Do(ctx, system, op, func(tx *guard.Tx) error {
		first, err := closeRow(ctx, tx.Tx, s.ID)
		if err == nil && !first {
			return errClosed
		}
		tx.Leaf(statement)
		return err
	})
	if errors.Is(err, errClosed) {
		err = nil
	}
	return err
}

// errClosing says that the session is being closed on this node already.
var errClosing = &estover.Error{Kind: estover.Unavailable, Code: "session_closing", Detail: "The session is being closed. Ask again in a moment."}

// errClosed says that somebody else has closed the session.
var errClosed = errors.New("the session is closed already")
