// Package policy decides. Every operation of Estover, and every call that an
// agent makes through the gateway, is a question that a [Decider] answers; it
// is the decider of the guard.
//
// # Three layers
//
//	kernel   what must always hold: Go functions over what is in memory
//	  │      (kernel.go). No bundle, grant or approval overrides one.
//	facts    what Estover finds out about a request: yes and no, and words
//	  │      from short lists (facts.go, request.go)
//	rules    Rego, in two parts: the baseline (base/*.rego), which holds for
//	         everybody and whose denials cannot be taken away, and the
//	         tenant's own bundle, of packages below tenant
//
// A package defines up to four sets: permit, deny, oblige, respond. Allowed is
// what at least one rule permits and none denies. The default is no, and so is
// the answer when a fact cannot be had, an evaluation fails, or it takes more
// than 25 ms, and then more than 250.
//
// The facts are supplied at wiring, by the functions of [Sources], each of
// which answers from memory. A rule has no clock, no network and no
// randomness: the same input always has the same answer. So an answer can be
// kept, explained ([Explain]), and asked for again of another bundle.
//
// # The way of a decision
//
// Policy is asked on every call, so the order is by cost. The kernel first.
// Then the cache: the whole input is the key, so that a changed agent, grant
// or bundle is another question, and nothing has to be swept; refusals are not
// kept. Then the one boolean, allow, on an input that is put together from
// pieces made once for each agent, resource and set of facts. The rule that
// permitted, and the obligations, come from caches of their own whose keys are
// only what those rules read. The reasons of a refusal are looked for after
// it. Whether answers may be kept at all is a property of the bundle: one
// whose rules read input.params has its answers worked out on every call.
//
// # The life of a bundle
//
//	source ──check──▶ ──test──▶ pushed ──activate──▶ active
//	                                   ◀──rollback──
//
// A pushed bundle is a [Revision], named by its digest and never changed.
// Activating one swaps what the next decision asks, on this node at once and
// on others when they hear of it. Until a tenant has activated a bundle, the
// starter bundle ([Starter]) holds.
//
// A bundle may refuse too much, or even everything. So that there is always a
// way back, logging in, looking at bundles and going back to an earlier one are
// decided by the baseline alone, and so is what Estover's own parts do.
package policy

import (
	"context"
	"fmt"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Revision is a bundle as it was pushed.
type Revision struct {
	Digest    string    `json:"digest"`
	Size      int64     `json:"size"` // of its files as JSON, in bytes
	Note      string    `json:"note,omitempty"`
	PushedBy  string    `json:"pushed_by"`
	PushedAt  time.Time `json:"pushed_at"`
	Active    bool      `json:"active"`
	Activated bool      `json:"activated"` // it is active, or has been
}

// An Activation is a moment at which a revision became the active one.
type Activation struct {
	Number int64     `json:"number"` // 1, 2, 3 … of the tenant
	Digest string    `json:"digest"`
	Kind   string    `json:"kind"` // activate or rollback
	Reason string    `json:"reason,omitempty"`
	By     string    `json:"by"`
	At     time.Time `json:"at"`
}

// The errors of revisions.
var (
	ErrNoRevision  = &estover.Error{Kind: estover.NotFound, Code: "policy_revision_not_found", Detail: "There is no such revision. `estover policy list` shows which there are."}
	ErrNoEarlier   = &estover.Error{Kind: estover.Conflict, Code: "policy_no_earlier_revision", Detail: "No revision was active before this one."}
	ErrNeverActive = &estover.Error{Kind: estover.Conflict, Code: "policy_revision_never_active", Detail: "This revision has never been active, so there is nothing to go back to. Activate it instead."}
	ErrIsActive    = &estover.Error{Kind: estover.Conflict, Code: "policy_revision_active", Detail: "This revision is the active one already."}
	ErrRaced       = &estover.Error{Kind: estover.Conflict, Code: "policy_activation_raced", Detail: "Another activation came between. Look at which revision is active, and try again."}
	ErrFindings    = &estover.Error{Kind: estover.Invalid, Code: "policy_bundle_rejected", Detail: "The bundle has errors."}
	ErrNoReason    = &estover.Error{Kind: estover.Invalid, Code: "policy_reason_missing", Detail: "Say why: whoever reads the log will ask."}
)

// Policy keeps the bundles of tenants: pushing, activating and going back.
type Policy struct {
	guard   *guard.Guard
	decider *Decider
}

// New keeps bundles behind g for the decider that answers from them.
func New(g *guard.Guard, d *Decider) *Policy {
	g.OnTouch(func(tenant estover.TenantID, kind, _ string) {
		if kind == touchKind {
			d.forget(tenant)
		}
	})
	return &Policy{guard: g, decider: d}
}

// touchKind is how events say that another revision is active.
const touchKind = "policy"

// Push checks a bundle and stores it. It does not make it the active one. A
// bundle that is there already is answered as it is; one with errors is
// ErrFindings, and the report says where.
func (p *Policy) Push(ctx context.Context, caller estover.Caller, b Bundle, note string) (rev Revision, report Report, err error) {
	b, err = b.normal()
	if err != nil {
		return rev, report, err
	}
	op := guard.Op{Action: "policy.push", Target: "policy:" + b.Digest(), Effect: guard.Manages}
	decision, err := p.guard.Admit(ctx, caller, op)
	if err != nil {
		return rev, report, err
	}
	if report, err = Check(b); err != nil {
		return rev, report, err
	}
	if !report.OK() {
		return rev, report, rejected(report)
	}
	err = p.guard.Act(ctx, caller, op, decision, func(tx *guard.Tx) error {
		fresh, err := insertRevision(ctx, tx.Tx, report.Revision, b, note, string(caller.Subject))
		if err != nil {
			return err
		}
		tx.Note("fresh", fresh)
		tx.Note("files", report.Files)
		rev, err = findRevision(ctx, tx.Tx, report.Revision)
		return err
	})
	return rev, report, err
}

// rejected is ErrFindings with the first of the errors and their number.
func rejected(r Report) error {
	var first Finding
	n := 0
	for _, f := range r.Findings {
		if f.Warning {
			continue
		}
		if n++; n == 1 {
			first = f
		}
	}
	more := ""
	if n > 1 {
		more = fmt.Sprintf(" There are %d errors in all; `estover policy check` lists them.", n)
	}
	return ErrFindings.With("%s:%d: %s%s", first.File, first.Line, first.Message, more)
}

// Activate makes a pushed revision the active one, given its digest or the
// beginning of it. Live sessions feel it on their next call.
func (p *Policy) Activate(ctx context.Context, caller estover.Caller, digest, reason string) (Activation, error) {
	return p.turn(ctx, caller, "activate", digest, reason)
}

// Rollback makes an earlier revision the active one again: the one that was
// active before, or the one that is named. It needs a reason. It is the way out
// of a bundle that refuses too much, so the baseline alone decides who may.
func (p *Policy) Rollback(ctx context.Context, caller estover.Caller, digest, reason string) (Activation, error) {
	if strings.TrimSpace(reason) == "" {
		return Activation{}, ErrNoReason
	}
	return p.turn(ctx, caller, "rollback", digest, reason)
}

// turn makes another revision the active one. It is compiled before, so that
// an activation that succeeds is one that the next decision can ask.
func (p *Policy) turn(ctx context.Context, caller estover.Caller, kind, digest, reason string) (a Activation, err error) {
	op := guard.Op{Action: "policy." + kind, Target: "policy:" + digest, Effect: guard.Manages}
	decision, err := p.guard.Admit(ctx, caller, op)
	if err != nil {
		return a, err
	}
	var before Activation
	if err := p.guard.DB().View(ctx, caller.Tenant, func(tx *db.Tx) (err error) {
		if before, err = newestActivation(ctx, tx); err != nil {
			return err
		}
		digest, err = target(ctx, tx, kind, digest, before)
		return err
	}); err != nil {
		return a, err
	}
	if err := p.prepare(ctx, caller.Tenant, digest); err != nil {
		return a, err
	}
	err = p.guard.Act(ctx, caller, op, decision, func(tx *guard.Tx) error {
		now, err := newestActivation(ctx, tx.Tx)
		if err != nil {
			return err
		}
		if now.Number != before.Number {
			return ErrRaced
		}
		if s := Starter(); digest == s.Digest() {
			if _, err := insertRevision(ctx, tx.Tx, digest, s, "The starter bundle.", string(estover.System("estover"))); err != nil {
				return err
			}
		}
		a = Activation{Number: before.Number + 1, Digest: digest, Kind: kind, Reason: reason, By: string(caller.Subject), At: tx.Now()}
		tx.SetTarget("policy:" + digest)
		tx.Note("reason", reason)
		tx.Note("before", before.Digest)
		tx.Touch(touchKind, "active")
		return insertActivation(ctx, tx.Tx, a)
	})
	return a, err
}

// target is the revision that an activation or a rollback is about.
func target(ctx context.Context, tx *db.Tx, kind, digest string, active Activation) (string, error) {
	if digest == "" && kind == "rollback" {
		if active.Number == 0 {
			return "", ErrNoEarlier
		}
		return earlierDigest(ctx, tx, active.Digest)
	}
	if digest == "" {
		return "", ErrNoRevision
	}
	r, _, err := findWithSource(ctx, tx, digest)
	starter := r.Digest == Starter().Digest()
	switch {
	case err != nil:
		return "", err
	case r.Active || starter && active.Number == 0:
		return "", ErrIsActive
	case kind == "rollback" && !r.Activated && !starter:
		return "", ErrNeverActive
	}
	return r.Digest, nil
}

// prepare compiles a revision and keeps it ready. What was accepted under an
// earlier version of the program may no longer compile: then it stays
// inactive.
func (p *Policy) prepare(ctx context.Context, tenant estover.TenantID, digest string) error {
	if p.decider.ready(digest) != nil {
		return nil
	}
	var source Bundle
	if err := p.guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		_, source, err = findWithSource(ctx, tx, digest)
		return err
	}); err != nil {
		return err
	}
	r, found := compile(source)
	if len(found) > 0 {
		return ErrFindings.With("%s:%d: %s", found[0].File, found[0].Line, found[0].Message)
	}
	p.decider.keep(r)
	return nil
}

// Active is the activation in force. Its number is 0, and its digest that of
// the starter bundle, if there has never been one.
func (p *Policy) Active(ctx context.Context, caller estover.Caller) (a Activation, err error) {
	err = p.guard.Read(ctx, caller, guard.Op{Action: "policy.read", Target: "policy:active"}, func(tx *db.Tx) error {
		a, err = newestActivation(ctx, tx)
		return err
	})
	if err == nil && a.Number == 0 {
		a = Activation{Digest: Starter().Digest(), Kind: "activate", Reason: "The starter bundle holds until another is activated.", By: string(estover.System("estover"))}
	}
	return a, err
}

// History lists the latest activations, the newest first.
func (p *Policy) History(ctx context.Context, caller estover.Caller, limit int) (list []Activation, err error) {
	err = p.guard.Read(ctx, caller, guard.Op{Action: "policy.list", Target: "policy:history"}, func(tx *db.Tx) error {
		list, err = listActivations(ctx, tx, limit)
		return err
	})
	return list, err
}

// List lists revisions, the newest first, from after the one whose digest is
// before.
func (p *Policy) List(ctx context.Context, caller estover.Caller, before string, limit int) (list []Revision, err error) {
	err = p.guard.Read(ctx, caller, guard.Op{Action: "policy.list", Target: "policy:revisions"}, func(tx *db.Tx) error {
		list, err = listRevisions(ctx, tx, before, limit)
		return err
	})
	return list, err
}

// Manifest is what the digest of a revision is taken of, for those who put
// evidence together for somebody whom policy has let have it.
func (p *Policy) Manifest(ctx context.Context, tenant estover.TenantID, digest string) ([]byte, error) {
	if s := Starter(); s.Digest() == digest {
		return s.Manifest(), nil
	}
	var b Bundle
	err := p.guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		_, b, err = findWithSource(ctx, tx, digest)
		return err
	})
	return b.Manifest(), err
}

// Source is a revision and its files, given its digest or the beginning of it.
// The starter bundle is there without having been pushed.
func (p *Policy) Source(ctx context.Context, caller estover.Caller, digest string) (rev Revision, b Bundle, err error) {
	err = p.guard.Read(ctx, caller, guard.Op{Action: "policy.read", Target: "policy:" + digest}, func(tx *db.Tx) error {
		rev, b, err = findWithSource(ctx, tx, digest)
		return err
	})
	return rev, b, err
}

// findWithSource is a revision with its files.
func findWithSource(ctx context.Context, tx *db.Tx, digest string) (Revision, Bundle, error) {
	rev, err := findRevision(ctx, tx, digest)
	if estover.KindOf(err) == estover.NotFound && digest != "" {
		if s := Starter(); strings.HasPrefix(s.Digest(), digest) {
			return Revision{Digest: s.Digest(), PushedBy: string(estover.System("estover"))}, s, nil
		}
	}
	if err != nil {
		return rev, nil, err
	}
	b, err := findSource(ctx, tx, rev.Digest)
	return rev, b, err
}
