package approval

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/approval/document"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// personal says why a caller decides nothing, if it does not: it is not a person,
// or one in whose name something else acts.
func personal(caller estover.Caller, note string) error {
	if caller.Subject.Kind() != estover.UserKind || len(caller.Actors) > 0 {
		return ErrPerson
	}
	if len(note) > MaxReason || !plain(note) {
		return ErrInvalid.With("A note is text of one line and up to %d bytes.", MaxReason).At("note")
	}
	return nil
}

// Approve is a person's word for what is on the table, or for less. The last that
// the rule wants carries the request out, in the same transaction.
func (a *Approvals) Approve(ctx context.Context, caller estover.Caller, id string, c Choice) (r Request, err error) {
	if err := personal(caller, c.Note); err != nil {
		return r, err
	}
	var signed []byte
	if c.Assertion != nil {
		if signed, err = a.preview(ctx, caller, id, c); err != nil {
			return r, err
		}
		if a.Verify == nil {
			return r, ErrUnsigned
		}
		if err := a.Verify(ctx, caller, signed, c.Assertion); err != nil {
			return r, err
		}
	}
	if err := a.still(ctx, caller, id, c); err != nil {
		return r, err
	}
	op := guard.Op{Action: "access.approve", Target: "request:" + id}
	err = a.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		s, err := a.deciding(ctx, tx, caller, id, &r)
		if err != nil {
			return err
		}
		was := r.Round
		if err := a.choose(ctx, tx.Tx, &r, c); err != nil {
			return err
		}
		switch digest := document.Digest(r.Document); {
		case c.Digest != nil && !bytes.Equal(c.Digest, digest[:]), signed != nil && !bytes.Equal(signed, r.Document):
			return ErrChanged
		case r.Rule.Signed && signed == nil:
			return ErrUnsigned
		}
		if r.Round != was {
			tx.Note("narrowed", r.Offer)
			if err := a.offer(ctx, tx.Tx, r); err != nil {
				return err
			}
			tx.Touch(Waiting, r.Agent)
		}
		v := Vote{
			Round: r.Round, Approver: caller.Subject, For: s.instead, Verdict: Approved, At: tx.Now(), Note: c.Note, Document: r.Document, Assertion: c.Assertion,
		}
		if err := a.voted(ctx, tx, &r, v); err != nil {
			return err
		}
		heard, err := a.approvals(ctx, tx.Tx, &r)
		if err != nil {
			return err
		}
		if int64(len(heard)) < r.Rule.Quorum {
			a.tell(tx, r)
			tx.Note("approvals", len(heard))
			return a.tellApprovers(ctx, tx, &r, r.roles())
		}
		granted := r
		granted.Items = r.Offer.Items
		if err := a.look(ctx, tx.Tx, caller, &granted); err != nil {
			return err
		}
		if err := a.keep(ctx, tx, r); err != nil {
			return err
		}
		r.DecidedBy, r.Note = caller.Subject, c.Note
		if err := a.carryOut(ctx, tx, &r); err != nil {
			return err
		}
		return a.settled(ctx, tx, &r)
	})
	return r, err
}

// still makes sure that policy, as it is by now, lets people approve what they
// choose of a request for access under its rule: what it has come to deny is
// refused, and what it wants more for is to be asked for anew. All else that keeps
// the caller from approving it is for the transaction to say.
func (a *Approvals) still(ctx context.Context, caller estover.Caller, id string, c Choice) error {
	var r Request
	decides := false
	if err := a.guard.DB().View(ctx, caller.Tenant, func(tx *db.Tx) (err error) {
		decides = false
		r, err = find(ctx, tx, id)
		if errors.Is(err, ErrNotFound) || err == nil && (r.Kind != Access || r.State != Pending) {
			return nil
		}
		if err != nil {
			return err
		}
		s, err := a.may(ctx, tx, &r, caller.Subject.ID())
		if err != nil || s.own || len(s.by) == 0 {
			return err
		}
		decides = a.choose(ctx, tx, &r, c) == nil
		return nil
	}); err != nil {
		return err
	}
	if !decides {
		return nil
	}
	r.Items, r.Seconds, r.Budgets = r.Offer.Items, r.Offer.Seconds, r.Offer.Budgets
	questions, err := a.questions(ctx, caller, &r)
	if err != nil {
		return err
	}
	said, err := a.decided(ctx, r.asker(caller), questions)
	if err != nil {
		return err
	}
	rule, err := stricter(a.Floors[r.Kind], said.obligations)
	if err != nil {
		return err
	}
	if !r.Rule.meets(rule) {
		return ErrStricter
	}
	return nil
}

// asker is as whom policy is asked about a request when a person decides about it:
// as the agent that it is for, in whose name it was asked. How that proved who it
// is was looked at then.
func (r *Request) asker(caller estover.Caller) estover.Caller {
	c := asAgent(caller, *r)
	c.Strength = estover.ByBound
	if n := len(r.Chain); n > 0 {
		c.Subject, c.Actors = r.Chain[n-1], append([]estover.Subject{r.Requester}, r.Chain[:n-1]...)
	}
	return c
}

// deciding locks a request about which the caller may decide.
func (a *Approvals) deciding(ctx context.Context, tx *guard.Tx, caller estover.Caller, id string, r *Request) (s standing, err error) {
	if *r, err = lock(ctx, tx.Tx, id); err != nil {
		return s, err
	}
	if err := a.shown(ctx, tx.Tx, caller, r); err != nil {
		return s, err
	}
	if err := a.authentic(tx.Tenant(), r); err != nil {
		return s, err
	}
	if s, err = a.may(ctx, tx.Tx, r, caller.Subject.ID()); err != nil {
		return s, err
	}
	switch {
	case s.own:
		return s, ErrOwn
	case len(s.by) == 0:
		return s, ErrNotApprover
	case r.State != Pending:
		return s, ErrNotPending.With("The request is %s.", r.State)
	}
	tx.Note("by", s.by)
	if s.instead != "" {
		tx.Note("in_place_of", s.instead)
	}
	return s, nil
}

// voted stores a vote.
func (a *Approvals) voted(ctx context.Context, tx *guard.Tx, r *Request, v Vote) error {
	if err := a.vote(ctx, tx.Tx, r.ID, v); err != nil {
		return err
	}
	r.Votes = append(r.Votes, v)
	return nil
}

// carryOut does what a request is for. It is approved then.
func (a *Approvals) carryOut(ctx context.Context, tx *guard.Tx, r *Request) (err error) {
	if r.Offer.Seconds > 0 {
		r.Offer.Until = tx.Now().Add(time.Duration(r.Offer.Seconds) * time.Second)
		if r.Session != "" {
			s, err := a.Session(ctx, tx.Tx, r.Session)
			if err != nil {
				return err
			}
			if s.Expires.Before(r.Offer.Until) {
				r.Offer.Until = s.Expires
			}
		}
	}
	r.State = Approved
	r.Result, err = a.Effects[r.Kind](ctx, tx, *r, r.Offer)
	return err
}

// settled stores a decision, and says it in the event.
func (a *Approvals) settled(ctx context.Context, tx *guard.Tx, r *Request) error {
	r.DecidedAt = tx.Now()
	a.tell(tx, *r)
	tx.Note("requester", r.Requester)
	tx.Touch(Waiting, r.Agent)
	return a.settle(ctx, tx.Tx, *r)
}

// Deny is a person's word against a request. One is enough.
func (a *Approvals) Deny(ctx context.Context, caller estover.Caller, id, note string) (r Request, err error) {
	if err := personal(caller, note); err != nil {
		return r, err
	}
	if note == "" {
		return r, ErrNote
	}
	op := guard.Op{Action: "access.deny", Target: "request:" + id, Detail: map[string]any{"note": note}}
	err = a.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		s, err := a.deciding(ctx, tx, caller, id, &r)
		if err != nil {
			return err
		}
		// Whoever has approved it may think again: the last word is kept beside.
		said := slices.ContainsFunc(r.Votes, func(v Vote) bool { return v.Round == r.Round && v.Approver == caller.Subject })
		if !said {
			v := Vote{Round: r.Round, Approver: caller.Subject, For: s.instead, Verdict: Denied, At: tx.Now(), Note: note, Document: r.Document}
			if err := a.voted(ctx, tx, &r, v); err != nil {
				return err
			}
		}
		r.State, r.DecidedBy, r.Note = Denied, caller.Subject, note
		return a.settled(ctx, tx, &r)
	})
	return r, err
}

// Cancel takes a request back: by whoever asked, the agent that it is for, its
// sponsor, or an administrator or operator.
func (a *Approvals) Cancel(ctx context.Context, caller estover.Caller, id, note string) (r Request, err error) {
	if len(note) > MaxReason || !plain(note) {
		return r, ErrInvalid.With("A note is text of one line and up to %d bytes.", MaxReason).At("note")
	}
	err = a.guard.Do(ctx, caller, a.op(caller, "access.cancel", id), func(tx *guard.Tx) error {
		tx.SetTarget("request:" + id)
		if r, err = lock(ctx, tx.Tx, id); err != nil {
			return err
		}
		if err := a.shown(ctx, tx.Tx, caller, &r); err != nil {
			return err
		}
		theirs := r.Requester == caller.Subject || caller.Acting().Kind() != estover.UserKind || caller.Has(estover.Admin) || caller.Has(estover.Operator)
		if !theirs && r.Agent != "" {
			agent, err := a.Agent(ctx, tx.Tx, r.Agent)
			if err != nil {
				return err
			}
			theirs = caller.Subject == estover.User(agent.Sponsor)
		}
		switch {
		case !theirs:
			return ErrNotYours.With("A request is taken back by whoever made it, by the agent's sponsor, or by an operator. You can deny it.")
		case r.State != Pending:
			return ErrNotPending.With("The request is %s.", r.State)
		}
		r.State, r.DecidedBy, r.Note = Cancelled, caller.Acting(), note
		return a.settled(ctx, tx, &r)
	})
	return r, err
}

// Preview is the document that a person would approve by this choice, which they
// look at, and sign, before they do; and the risk of that.
func (a *Approvals) Preview(ctx context.Context, caller estover.Caller, id string, c Choice) (text []byte, risk Risk, err error) {
	err = a.guard.Read(ctx, caller, a.op(caller, "access.read", id), func(tx *db.Tx) error {
		r, err := find(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := a.shown(ctx, tx, caller, &r); err != nil {
			return err
		}
		if r.State != Pending {
			return ErrNotPending.With("The request is %s.", r.State)
		}
		if err := a.choose(ctx, tx, &r, c); err != nil {
			return err
		}
		err = a.weigh(ctx, tx, caller, &r)
		text, risk = r.Document, r.Risk
		return err
	})
	return text, risk, err
}

// preview is [Approvals.Preview] on the way to a decision, which is recorded.
func (a *Approvals) preview(ctx context.Context, caller estover.Caller, id string, c Choice) (text []byte, err error) {
	err = a.guard.DB().View(ctx, caller.Tenant, func(tx *db.Tx) error {
		r, err := find(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := a.shown(ctx, tx, caller, &r); err != nil {
			return err
		}
		if r.State != Pending {
			return ErrNotPending.With("The request is %s.", r.State)
		}
		err = a.choose(ctx, tx, &r, c)
		text = r.Document
		return err
	})
	return text, err
}

// choose puts on the table what a choice leaves of it. If that is less, another
// round begins over another document.
func (a *Approvals) choose(ctx context.Context, tx *db.Tx, r *Request, c Choice) error {
	next := Granted{Items: r.Offer.Items, Seconds: r.Offer.Seconds, Budgets: r.Offer.Budgets}
	if r.Kind != Access && (c.Narrow != nil || c.For != 0 || c.Budgets != nil) {
		return ErrWider.With("A request of the kind %s is approved as it is, or not at all.", r.Kind)
	}
	if c.Narrow != nil {
		items, err := narrowed(r.Offer.Items, c.Narrow)
		if err != nil {
			return err
		}
		agent, err := a.Agent(ctx, tx, r.Agent)
		if err != nil {
			return err
		}
		for i := range items {
			if err := a.lookAt(ctx, tx, agent, r.Purpose, &items[i], "only."); err != nil {
				return err
			}
		}
		next.Items = items
	}
	if c.For != 0 {
		if next.Seconds = int64(c.For / time.Second); c.For < Shortest || next.Seconds > r.Offer.Seconds {
			return ErrWider.With("It can be approved for between %s and %s.", Shortest, time.Duration(r.Offer.Seconds)*time.Second).At("for_seconds")
		}
	}
	if c.Budgets != nil {
		if len(next.Items) > 1 {
			return ErrInvalid.With("A budget is of one resource: approve one by itself, or without a budget.").At("budgets")
		}
		var err error
		if next.Budgets, err = lesser(r.Offer.Budgets, *c.Budgets); err != nil {
			return err
		}
	}
	if reflect.DeepEqual(next, r.Offer) {
		return nil
	}
	r.Offer, r.Round = next, r.Round+1
	text, err := r.render(tx.Tenant(), r.Offer, r.Round)
	r.Document = text
	return err
}

// narrowed are the items that a choice leaves: each is within one of what is on
// the table, and what it does not say stays as it is there.
func narrowed(table, choice []Item) ([]Item, error) {
	if len(choice) == 0 || len(choice) > len(table) {
		return nil, ErrWider.At("only")
	}
	choice, bad := normal(choice)
	if len(bad) > 0 {
		return nil, bad[0]
	}
	taken := make([]bool, len(table))
	out := make([]Item, len(choice))
next:
	for n, c := range choice {
		for i, t := range table {
			if taken[i] || c.Resource != t.Resource {
				continue
			}
			if one, ok := within(t, c); ok {
				taken[i], out[n] = true, one
				continue next
			}
		}
		return nil, ErrWider.At("only")
	}
	return out, nil
}

// within is a choice that says everything, if it is within an item.
func within(t, c Item) (Item, bool) {
	if !slices.Contains(t.Actions, All) {
		for _, act := range c.Actions {
			if !slices.Contains(t.Actions, act) {
				return c, false
			}
		}
	}
	if c.Class == "" {
		c.Class = t.Class
	}
	params := map[string][]string{}
	for name, values := range t.Parameters {
		params[name] = values
	}
	for name, values := range c.Parameters {
		for _, v := range values {
			if have, bound := t.Parameters[name]; bound && !slices.Contains(have, v) {
				return c, false
			}
		}
		params[name] = values
	}
	if c.Parameters = params; len(params) == 0 {
		c.Parameters = nil
	}
	c.Name = t.Name
	return c, t.Class.Covers(c.Class)
}

// lesser are budgets within others. What a choice leaves out stays as it is.
func lesser(table, choice Budgets) (Budgets, error) {
	out := table
	for _, f := range []struct{ out, want *int64 }{
		{&out.Calls, &choice.Calls},
		{&out.Rows, &choice.Rows},
		{&out.Records, &choice.Records},
		{&out.BytesOut, &choice.BytesOut},
		{&out.Money, &choice.Money},
		{&out.Seconds, &choice.Seconds},
		{&out.FanOut, &choice.FanOut},
	} {
		switch {
		case *f.want == 0:
		case *f.want < 0 || *f.out != 0 && *f.want > *f.out:
			return table, ErrWider.At("budgets")
		default:
			*f.out = *f.want
		}
	}
	return out, nil
}
