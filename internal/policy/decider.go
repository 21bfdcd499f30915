package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"github.com/open-policy-agent/opa/v1/ast"
)

// A Decider answers whether a caller may do an operation. It is safe for use
// by many at once, and between the reads of [Sources] it touches nothing but
// memory.
type Decider struct {
	db      *db.DB
	sources Sources
	logger  *slog.Logger

	facts       interner
	answers     *cache[*answer]            // by the whole input
	permitRules *cache[string]             // by what permit reads
	duties      *cache[[]guard.Obligation] // by what oblige reads

	mu       sync.RWMutex
	active   map[estover.TenantID]*atomic.Pointer[revision] // nil inside until it is loaded
	compiled map[string]*revision                           // by digest: activating what was active a moment ago costs nothing

	loading sync.Mutex // one revision is compiled at a time
}

// maxCompiled bounds the revisions that are kept ready.
const maxCompiled = 64

// An answer is an allowed request, ready to be given again.
type answer struct {
	rule        string
	digest      string
	facts       map[string]any
	obligations []guard.Obligation
	encoded     json.RawMessage
	told        guard.Told
}

// Options are what the server may say beside.
type Options struct {
	Logger *slog.Logger
}

// NewDecider is a decider whose active bundles are in d and whose facts come
// from s.
func NewDecider(d *db.DB, s Sources, o Options) *Decider {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Decider{
		db: d, sources: s, logger: o.Logger,
		answers: newCache[*answer](), permitRules: newCache[string](), duties: newCache[[]guard.Obligation](),
		active: map[estover.TenantID]*atomic.Pointer[revision]{}, compiled: map[string]*revision{},
	}
}

// Decide answers whether caller may do op. It never allows by mistake: a fact
// that cannot be had, an evaluation that fails or takes too long, and an
// obligation that nobody knows are refusals. Its error is always nil or that
// of ctx.
func (d *Decider) Decide(ctx context.Context, caller estover.Caller, op guard.Op) (guard.Decision, error) {
	k := &known{}
	if err := d.sources.gather(ctx, k, caller, op, d.now()); err != nil {
		return d.refuseKernel(ctx, k, err)
	}
	if code := kernel(k); code != "" {
		return d.refuseKernel(ctx, k, errKernel(code))
	}
	var r *revision
	var err error
	if k.Caller == estover.SystemKind || contains(wayBack, op.Action) {
		r = baseline()
	} else {
		r, err = d.revision(ctx, caller.Tenant)
	}
	if err != nil {
		return d.fail(ctx, op, nil, err)
	}
	return d.evaluate(ctx, r, k, op)
}

// wayBack are the operations by which an administrator leaves a bundle that
// refuses too much, or does not work at all. They are decided by the baseline
// alone, as is what Estover's own parts do: a tenant does not stop the sweep
// that ends what is over.
var wayBack = []string{"login.create", "policy.list", "policy.read", "policy.rollback"}

// baseline is the revision of nobody: the baseline by itself.
var baseline = sync.OnceValue(func() *revision {
	r, found := compile(Bundle{})
	if len(found) > 0 {
		panic("policy: the baseline does not compile: " + found[0].String())
	}
	return r
})

func (d *Decider) now() time.Time {
	if d.db == nil {
		return time.Now()
	}
	return d.db.Now()
}

// refuseKernel is the refusal of a request that no policy was asked about.
func (d *Decider) refuseKernel(ctx context.Context, k *known, err error) (guard.Decision, error) {
	if ctx.Err() != nil {
		return guard.Decision{}, ctx.Err()
	}
	var code errKernel
	if !errors.As(err, &code) {
		d.logger.Error("the facts of a decision cannot be read", "action", k.Op, "error", err)
		code = "kernel_facts"
	}
	reason := kernelReasons[string(code)]
	decision := guard.Decision{
		Engine: "kernel", Reasons: []string{reason.Code}, Rule: reason.Rule(), Message: reason.Sentence, Next: reason.Next,
	}
	if reason.Code == "kernel_budget" && k.spent != "" {
		decision.Message = "Nothing is left: " + k.spent + " is used up."
	}
	if k.Resource != nil {
		d.record(&decision, k)
	}
	return decision, nil
}

// evaluate asks a revision. What it answers depends on k and the revision
// alone.
func (d *Decider) evaluate(ctx context.Context, r *revision, k *known, op guard.Op) (guard.Decision, error) {
	now := time.Now()
	facts := d.facts.of(&k.Facts)
	keep := len(r.why) == 0 && !k.unique
	whole := r.wholeKey(k, facts)
	if keep {
		if a, ok := d.answers.get(whole, now); ok {
			return a.decision(r, "cache"), nil
		}
	}
	input, err := d.input(r, k, facts)
	if err != nil {
		return d.fail(ctx, op, r, err)
	}
	is, err := r.allows(ctx, input)
	if err != nil {
		return d.fail(ctx, op, r, err)
	}
	if !is {
		return d.deny(ctx, r, k, op, input)
	}
	a := &answer{}
	if a.rule, err = d.permitRule(ctx, r, k, facts, input, now); err != nil {
		return d.fail(ctx, op, r, err)
	}
	if a.obligations, err = d.duty(ctx, r, k, facts, input, now); err != nil {
		return d.fail(ctx, op, r, err)
	}
	a.encoded = guard.Encoded(a.obligations)
	var room [1536]byte
	text := bytes.Clone(k.appendJSON(room[:0], facts)) // no more than it needs: it is kept for each agent that is at work
	a.digest, a.facts = digest(text), map[string]any{"input": json.RawMessage(text)}
	if keep {
		d.answers.put(whole, a, now)
	}
	return a.decision(r, "policy"), nil
}

// decision is the answer as the guard wants it. Its facts and obligations are
// shared and not to be changed.
func (a *answer) decision(r *revision, engine string) guard.Decision {
	return guard.Decision{
		Allow: true, Rule: a.rule, Engine: engine, Revision: r.digest,
		Facts: a.facts, InputDigest: a.digest, Obligations: a.obligations, Encoded: a.encoded, Told: &a.told,
	}
}

// input is the input as OPA evaluates it, with the arguments of the call only
// if a rule asks for them.
func (d *Decider) input(r *revision, k *known, facts *shape) (ast.Value, error) {
	var params *ast.Term
	if len(r.why) > 0 && k.Params != nil {
		v, err := ast.InterfaceToValue(k.Params)
		if err != nil {
			return nil, err
		}
		params = ast.NewTerm(v)
	}
	return k.term(facts, params), nil
}

// permitRule is the rule that permits an allowed request, for the record.
func (d *Decider) permitRule(ctx context.Context, r *revision, k *known, facts *shape, input ast.Value, now time.Time) (string, error) {
	q, keep := r.keyOf(permits, &k.Input, facts), d.keeps(r, permits, k)
	if keep {
		if rule, ok := d.permitRules.get(q, now); ok {
			return rule, nil
		}
	}
	reasons, err := r.rules(ctx, permits, input)
	if err != nil {
		return "", err
	}
	if len(reasons) == 0 {
		return "", errors.New("a request is allowed that no rule permits")
	}
	if keep {
		d.permitRules.put(q, reasons[0].Rule(), now)
	}
	return reasons[0].Rule(), nil
}

// duty is what must be done along with an allowed request.
func (d *Decider) duty(ctx context.Context, r *revision, k *known, facts *shape, input ast.Value, now time.Time) ([]guard.Obligation, error) {
	q, keep := r.keyOf(obligations, &k.Input, facts), d.keeps(r, obligations, k)
	if keep {
		if o, ok := d.duties.get(q, now); ok {
			return o, nil
		}
	}
	o, err := r.obliges(ctx, input)
	if err != nil {
		return nil, err
	}
	if keep {
		d.duties.put(q, o, now)
	}
	return o, nil
}

// keeps reports whether the answer of an entry may be kept: it does not read
// the arguments of the call, and what it reads will come again.
func (d *Decider) keeps(r *revision, e entry, k *known) bool {
	reads := r.entries[e].reads
	return reads&partParams == 0 && (reads&partResource == 0 || !k.unique)
}

// deny finds the reasons of a refusal. Refusals are never kept.
func (d *Decider) deny(ctx context.Context, r *revision, k *known, op guard.Op, input ast.Value) (guard.Decision, error) {
	reasons, err := r.rules(ctx, denials, input)
	if err != nil {
		return d.fail(ctx, op, r, err)
	}
	if len(reasons) == 0 {
		reasons = []Reason{notPermitted}
	}
	decision := refusal(r, reasons)
	if op.Action == elevate && len(reasons) == 1 && reasons[0] == notPermitted { // people may: the rules say which, and how many
		if decision.Obligations, err = r.obliges(ctx, input); err != nil {
			return d.fail(ctx, op, r, err)
		}
	}
	d.record(&decision, k)
	return decision, nil
}

// refusal is a refusal for these reasons. The caller hears the sentence of the
// first.
func refusal(r *revision, reasons []Reason) guard.Decision {
	decision := guard.Decision{
		Engine: "policy", Rule: reasons[0].Rule(),
		Message: reasons[0].Sentence, Next: reasons[0].Next,
	}
	if decision.Message == "" {
		decision.Message = notPermitted.Sentence
	}
	if r != nil {
		decision.Revision = r.digest
	}
	for _, reason := range reasons {
		if !contains(decision.Reasons, reason.Code) {
			decision.Reasons = append(decision.Reasons, reason.Code)
		}
	}
	return decision
}

// record adds the input to a decision.
func (d *Decider) record(decision *guard.Decision, k *known) {
	text := k.appendJSON(nil, d.facts.of(&k.Facts))
	decision.InputDigest, decision.Facts = digest(text), map[string]any{"input": json.RawMessage(text)}
}

// fail is the refusal of a request whose evaluation failed.
func (d *Decider) fail(ctx context.Context, op guard.Op, r *revision, err error) (guard.Decision, error) {
	if ctx.Err() != nil {
		return guard.Decision{}, ctx.Err()
	}
	reason := broken
	if errors.Is(err, errTimeout) {
		reason = timedOut
	}
	d.logger.Error("a policy could not be evaluated", "action", op.Action, "code", reason.Code, "error", err)
	return refusal(r, []Reason{reason}), nil
}

// revision is the active revision of a tenant. The first request after an
// activation waits until it is compiled.
func (d *Decider) revision(ctx context.Context, tenant estover.TenantID) (*revision, error) {
	p := d.pointer(tenant)
	if r := p.Load(); r != nil {
		return r, nil
	}
	d.loading.Lock()
	defer d.loading.Unlock()
	if r := d.pointer(tenant).Load(); r != nil {
		return r, nil
	}
	// An activation from here on makes another pointer, so that what is read
	// below can never hide it.
	p = d.pointer(tenant)
	var digest string
	var source Bundle
	if err := d.db.View(ctx, tenant, func(tx *db.Tx) (err error) {
		if digest, err = activeDigest(ctx, tx); err != nil || digest == "" || d.ready(digest) != nil {
			return err
		}
		source, err = findSource(ctx, tx, digest)
		return err
	}); err != nil {
		return nil, err
	}
	if digest == "" {
		source = Starter()
		digest = source.Digest()
	}
	r := d.ready(digest)
	if r == nil {
		var found []Finding
		if r, found = compile(source); len(found) > 0 {
			return nil, fmt.Errorf("the active revision %s does not compile: %s", digest, found[0])
		}
		d.keep(r)
	}
	p.Store(r)
	return r, nil
}

// pointer is where the active revision of a tenant stands.
func (d *Decider) pointer(tenant estover.TenantID) *atomic.Pointer[revision] {
	d.mu.RLock()
	p := d.active[tenant]
	d.mu.RUnlock()
	if p != nil {
		return p
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if p = d.active[tenant]; p == nil {
		p = &atomic.Pointer[revision]{}
		d.active[tenant] = p
	}
	return p
}

// forget has the next decision look up which revision is active.
func (d *Decider) forget(tenant estover.TenantID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.active, tenant)
}

// ready is a compiled revision, or nil.
func (d *Decider) ready(digest string) *revision {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.compiled[digest]
}

// keep keeps a compiled revision.
func (d *Decider) keep(r *revision) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.compiled) >= maxCompiled {
		clear(d.compiled)
	}
	d.compiled[r.digest] = r
}

// Ready loads the active revision of a tenant, so that the first decision does
// not wait for it.
func (d *Decider) Ready(ctx context.Context, tenant estover.TenantID) error {
	_, err := d.revision(ctx, tenant)
	return err
}
