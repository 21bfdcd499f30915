package policy_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/policy"
)

var (
	ann  = estover.Caller{Tenant: "acme", Subject: estover.User("usr_ann"), Roles: []estover.Role{estover.Admin}, Request: "req_1"}
	olaf = estover.Caller{Tenant: "acme", Subject: estover.User("usr_olaf"), Roles: []estover.Role{estover.Operator}}
	eve  = estover.Caller{Tenant: "umbrella", Subject: estover.User("usr_eve"), Roles: []estover.Role{estover.Admin}}
	sue  = estover.Caller{Tenant: "acme", Subject: estover.Agent("agt_sue"), Session: "ses_sue", Purpose: "support", Strength: estover.ByKey}
)

// read is a call that sue has a grant for.
var read = guard.Op{Action: "gateway.call", Target: "resource:res_crm", Effect: guard.Reads, Resource: "res_crm", Input: policy.Call{Action: "customer.read"}}

// node is a node of Estover: a decider, a guard that asks it, and the keeper
// of bundles behind that.
type node struct {
	*policy.Policy
	decider *policy.Decider
	guard   *guard.Guard
}

func newNode(t *testing.T, d *db.DB) node {
	agent := &policy.Agent{ID: "agt_sue", Clearance: estover.Confidential, Purposes: []string{"support"}, Sponsored: true}
	crm := &policy.Resource{ID: "res_crm", Type: "http", Class: estover.Internal}
	grants := policy.NewGrants([]policy.Grant{{Resource: "res_crm", Actions: []string{"customer.*"}}})
	decider := policy.NewDecider(d, policy.Sources{
		Agent: func(context.Context, estover.TenantID, string) (*policy.Agent, error) { return agent, nil },
		Session: func(context.Context, estover.TenantID, string) (policy.Session, error) {
			return policy.Session{ID: "ses_sue", Agent: "agt_sue", Purpose: "support"}, nil
		},
		Grants:   func(context.Context, estover.TenantID, string) (*policy.Grants, error) { return grants, nil },
		Resource: func(context.Context, estover.TenantID, string) (*policy.Resource, error) { return crm, nil },
	}, policy.Options{Logger: slog.New(slog.DiscardHandler)})
	g := guardtest.New(t, d, decider)
	return node{policy.New(g, decider), decider, g}
}

func (n node) allows(t *testing.T, caller estover.Caller, op guard.Op) (bool, string) {
	t.Helper()
	decision, err := n.decider.Decide(t.Context(), caller, op)
	if err != nil {
		t.Fatal(err)
	}
	return decision.Allow, decision.Revision
}

// bundle is a bundle that permits calls, except those of one action.
func bundle(forbidden string) policy.Bundle {
	return policy.Bundle{{Path: "calls.rego", Text: fmt.Sprintf(`# METADATA
# title: Calls
# description: What agents may call.
package tenant.calls

# METADATA
# title: Calls that are granted
permit contains "granted" if {
	input.op == "gateway.call"
	input.facts.entitled == true
}

# METADATA
# title: Not this one
# description: This is not done here.
# custom:
#   next: Leave it.
deny contains "not_here" if input.action.name == %q
`, forbidden)}}
}

func push(t *testing.T, n node, b policy.Bundle) string {
	t.Helper()
	rev, report, err := n.Push(t.Context(), ann, b, "for a test")
	if err != nil {
		t.Fatalf("pushing: %v\n%v", err, report.Findings)
	}
	return rev.Digest
}

func TestActivateAndRollback(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		n, ctx := newNode(t, d), t.Context()
		if ok, rev := n.allows(t, sue, read); !ok || rev != policy.Starter().Digest() {
			t.Fatalf("before any activation: allowed %v by %s, want the starter bundle to allow it", ok, rev)
		}
		first, second, third := push(t, n, bundle("customer.read")), push(t, n, bundle("customer.write")), push(t, n, bundle("customer.list"))
		if ok, rev := n.allows(t, sue, read); !ok || rev != policy.Starter().Digest() {
			t.Errorf("pushing alone changed what holds: allowed %v by %s", ok, rev)
		}
		if _, err := n.Rollback(ctx, ann, "", "too early"); !errors.Is(err, policy.ErrNoEarlier) {
			t.Errorf("going back before any activation: %v, want ErrNoEarlier", err)
		}
		activate := func(digest string) {
			t.Helper()
			if a, err := n.Activate(ctx, ann, digest, "for a test"); err != nil || !strings.HasPrefix(a.Digest, digest) {
				t.Fatalf("activating %s: %+v, %v", digest, a, err)
			}
		}
		activate(first)
		if ok, rev := n.allows(t, sue, read); ok || rev != first {
			t.Errorf("after the first activation: allowed %v by %s, want a refusal by %s", ok, rev, first)
		}
		activate(second[:12])
		if ok, rev := n.allows(t, sue, read); !ok || rev != second {
			t.Errorf("after the second activation: allowed %v by %s, want it allowed by %s", ok, rev, second)
		}
		activate(third)
		for _, want := range []string{second, first} {
			a, err := n.Rollback(ctx, ann, "", "it broke")
			if err != nil || a.Digest != want || a.Kind != "rollback" {
				t.Errorf("going back: %+v, %v; want %s", a, err, want)
			}
			if _, rev := n.allows(t, sue, read); rev != want {
				t.Errorf("after going back, %s holds; want %s", rev, want)
			}
		}
		if a, err := n.Rollback(ctx, ann, "", "again"); err != nil || a.Digest != policy.Starter().Digest() {
			t.Errorf("going back before the first: %+v, %v; want the starter bundle", a, err)
		}
		if _, err := n.Rollback(ctx, ann, "", "again"); !errors.Is(err, policy.ErrNoEarlier) {
			t.Errorf("going back further than there is: %v, want ErrNoEarlier", err)
		}
		if a, err := n.Rollback(ctx, ann, third, "that one"); err != nil || a.Digest != third || a.Number != 7 {
			t.Errorf("going back to one by name: %+v, %v", a, err)
		}

		history, err := n.History(ctx, ann, 10)
		if err != nil || len(history) != 7 || history[0].Digest != third || history[6].Digest != first || history[2].Reason != "it broke" || history[0].By != "user:usr_ann" {
			t.Errorf("the history is %+v, %v", history, err)
		}
		active, err := n.Active(ctx, ann)
		if err != nil || active.Digest != third {
			t.Errorf("the active one is %+v, %v", active, err)
		}
	})
}

func TestRevisions(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		n, ctx := newNode(t, d), t.Context()
		clock := dbtest.NewClock(d)
		var digests []string
		for _, forbidden := range []string{"a.b", "c.d", "e.f"} {
			digests = append(digests, push(t, n, bundle(forbidden)))
			clock.Advance(1e9)
		}
		if again := push(t, n, bundle("a.b")); again != digests[0] {
			t.Errorf("pushing the same again gave %s, want %s", again, digests[0])
		}
		list, err := n.List(ctx, ann, "", 2)
		if err != nil || len(list) != 2 || list[0].Digest != digests[2] || list[1].Digest != digests[1] {
			t.Fatalf("the first page is %+v, %v", list, err)
		}
		if list, err = n.List(ctx, ann, list[1].Digest, 2); err != nil || len(list) != 1 || list[0].Digest != digests[0] || list[0].PushedBy != "user:usr_ann" || list[0].Note != "for a test" {
			t.Errorf("the second page is %+v, %v", list, err)
		}
		rev, b, err := n.Source(ctx, ann, digests[1][:10])
		if err != nil || rev.Digest != digests[1] || b[0] != bundle("c.d")[0] {
			t.Errorf("the source of %s is %+v, %v, %v", digests[1], rev, b, err)
		}
		if _, b, err = n.Source(ctx, ann, policy.Starter().Digest()); err != nil || len(b) != len(policy.Starter()) {
			t.Errorf("the source of the starter bundle is %d files, %v", len(b), err)
		}
		for what, err := range map[string]error{
			"an unknown one":         second(n.Activate(ctx, ann, "abcdef", "")),
			"no name":                second(n.Activate(ctx, ann, "", "")),
			"another tenant's":       second(n.Activate(ctx, eve, digests[0], "")),
			"a name that is a guess": second(n.Activate(ctx, ann, "%", "")),
		} {
			if !errors.Is(err, policy.ErrNoRevision) {
				t.Errorf("activating %s: %v, want ErrNoRevision", what, err)
			}
		}
		if _, err := n.Rollback(ctx, ann, digests[0], "to what never was"); !errors.Is(err, policy.ErrNeverActive) {
			t.Errorf("going back to a revision that was never active: %v, want ErrNeverActive", err)
		}
		if _, err := n.Rollback(ctx, ann, "", " "); !errors.Is(err, policy.ErrNoReason) {
			t.Errorf("going back without a reason: %v, want ErrNoReason", err)
		}
		if _, err := n.Activate(ctx, ann, digests[0], ""); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Activate(ctx, ann, digests[0], ""); !errors.Is(err, policy.ErrIsActive) {
			t.Errorf("activating the active one: %v, want ErrIsActive", err)
		}
	})
}

func second[A any](_ A, err error) error { return err }

func TestPushRejects(t *testing.T) {
	n := newNode(t, dbtest.Open(t))
	bad := policy.Bundle{{Path: "calls.rego", Text: strings.Replace(bundle("a.b")[0].Text, "input.facts.entitled", "input.facts.entiteld", 1)}}
	_, report, err := n.Push(t.Context(), ann, bad, "")
	if !errors.Is(err, policy.ErrFindings) || !strings.Contains(err.Error(), "calls.rego:10: undefined ref: input.facts.entiteld") {
		t.Errorf("pushing a bundle with an error: %v", err)
	}
	if report.OK() || len(report.Findings) == 0 {
		t.Errorf("the report of a bundle with an error is %+v", report)
	}
	if list, err := n.List(t.Context(), ann, "", 10); err != nil || len(list) != 0 {
		t.Errorf("after a rejected push there are %+v, %v", list, err)
	}
}

// Bundles are for administrators, and what is refused is on record.
func TestBundlesAreGuarded(t *testing.T) {
	n, ctx := newNode(t, dbtest.Open(t)), t.Context()
	digest := push(t, n, bundle("a.b"))
	var refusal *guard.Refusal
	for what, err := range map[string]error{
		"an operator pushes":    func() error { _, _, err := n.Push(ctx, olaf, bundle("c.d"), ""); return err }(),
		"an operator activates": second(n.Activate(ctx, olaf, digest, "")),
		"an operator goes back": second(n.Rollback(ctx, olaf, "", "because")),
		"an agent activates":    second(n.Activate(ctx, sue, digest, "")),
		"an agent reads":        func() error { _, _, err := n.Source(ctx, sue, digest); return err }(),
	} {
		if !errors.As(err, &refusal) || refusal.Decision.Reasons[0] != "not_permitted" {
			t.Errorf("%s: %v, want a refusal", what, err)
		}
	}
	if _, err := n.List(ctx, olaf, "", 10); err != nil {
		t.Errorf("an operator looks: %v", err)
	}
}

// Whatever a bundle refuses, an administrator can go back, also from the first.
func TestThereIsAWayBack(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		n, ctx := newNode(t, d), t.Context()
		everything := policy.Bundle{{Path: "no.rego", Text: `# METADATA
# title: No
# description: No to everybody.
package tenant.no

# METADATA
# description: Nobody does anything.
# custom:
#   next: Give up.
deny contains "no" if input.caller.kind in {"agent", "user", "system"}
`}}
		digest := push(t, n, everything)
		if _, err := n.Activate(ctx, ann, digest, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Activate(ctx, ann, digest, ""); err == nil || errors.Is(err, policy.ErrIsActive) {
			t.Fatalf("activating under a bundle that denies everything: %v, want a refusal", err)
		}
		if _, err := n.Rollback(ctx, olaf, "", "let me out"); err == nil {
			t.Error("an operator went back")
		}
		if ok, _ := n.allows(t, ann, guard.Op{Action: "login.create", Target: "user:usr_ann", Effect: guard.Manages}); !ok {
			t.Error("an administrator cannot log in to go back")
		}
		system := estover.Caller{Tenant: "acme", Subject: estover.System("sweep")}
		if ok, _ := n.allows(t, system, guard.Op{Action: "session.expire", Target: "session:ses_sue", Effect: guard.Manages}); !ok {
			t.Error("a bundle stops the sweep")
		}
		if list, err := n.List(ctx, ann, "", 10); err != nil || len(list) != 1 {
			t.Errorf("looking for a way back: %+v, %v", list, err)
		}
		if a, err := n.Rollback(ctx, ann, "", "let me out"); err != nil || a.Digest != policy.Starter().Digest() {
			t.Errorf("going back: %+v, %v; want the starter bundle", a, err)
		}
		if ok, rev := n.allows(t, sue, read); !ok || rev != policy.Starter().Digest() {
			t.Errorf("after going back: allowed %v by %s", ok, rev)
		}
		if _, err := n.Rollback(ctx, ann, "", "and further"); !errors.Is(err, policy.ErrNoEarlier) {
			t.Errorf("going back before the starter bundle: %v, want ErrNoEarlier", err)
		}
		if _, err := n.Activate(ctx, ann, policy.Starter().Digest(), ""); !errors.Is(err, policy.ErrIsActive) {
			t.Errorf("activating the starter bundle when it is active: %v, want ErrIsActive", err)
		}
	})
}

func TestTenantsAreApart(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		n, ctx := newNode(t, d), t.Context()
		digest := push(t, n, bundle("customer.read"))
		if _, err := n.Activate(ctx, ann, digest, ""); err != nil {
			t.Fatal(err)
		}
		other := sue
		other.Tenant = "umbrella"
		if ok, rev := n.allows(t, other, read); !ok || rev != policy.Starter().Digest() {
			t.Errorf("the bundle of one tenant holds for another: allowed %v by %s", ok, rev)
		}
		if list, err := n.List(ctx, eve, "", 10); err != nil || len(list) != 0 {
			t.Errorf("another tenant sees %+v, %v", list, err)
		}
	})
}

// Another node hears of an activation through the log.
func TestOtherNodesFollow(t *testing.T) {
	d := dbtest.Open(t)
	here, there := newNode(t, d), newNode(t, d)
	there.allows(t, sue, read) // there, the starter bundle is loaded
	digest := push(t, here, bundle("customer.read"))
	if _, err := here.Activate(t.Context(), ann, digest, ""); err != nil {
		t.Fatal(err)
	}
	there.OnTouched("acme")
	if ok, rev := there.allows(t, sue, read); ok || rev != digest {
		t.Errorf("on another node: allowed %v by %s, want a refusal by %s", ok, rev, digest)
	}
}

// Two who activate at once: one wins, the other hears of it, and what is
// decided by is what the history says.
func TestActivationsRace(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		n := newNode(t, d)
		var digests []string
		for i := range 8 {
			digests = append(digests, push(t, n, bundle(fmt.Sprintf("action.n%d", i))))
		}
		errs := make([]error, 64)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { _, errs[i] = n.Activate(t.Context(), ann, digests[i%8], "race") })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			var refused *guard.Refusal
			switch {
			case err == nil:
				won++
			case errors.As(err, &refused) && refused.Decision.Reasons[0] == "policy_timeout": // a machine with too much to do
			case !errors.Is(err, policy.ErrRaced) && !errors.Is(err, policy.ErrIsActive):
				t.Errorf("activating in a race: %v", err)
			}
		}
		history, err := n.History(t.Context(), ann, 100)
		if err != nil || won == 0 || len(history) != won {
			t.Fatalf("%d activations succeeded and %d are in the history, %v", won, len(history), err)
		}
		for i, a := range history {
			if a.Number != int64(won-i) {
				t.Errorf("activation %d has number %d", won-i, a.Number)
			}
		}
		if _, rev := n.allows(t, sue, read); rev != history[0].Digest {
			t.Errorf("%s decides, and %s was activated last", rev, history[0].Digest)
		}
	})
}

// While revisions come and go, every answer is that of one of them.
func TestDecideDuringActivation(t *testing.T) {
	n := newNode(t, dbtest.Open(t))
	denies, permits := push(t, n, bundle("customer.read")), push(t, n, bundle("customer.write"))
	if _, err := n.Activate(t.Context(), ann, denies, ""); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if ok, rev := n.allows(t, sue, read); ok != (rev == permits) || rev != permits && rev != denies {
					t.Errorf("allowed %v by %s", ok, rev)
					return
				}
			}
		})
	}
	for i := range 20 {
		if _, err := n.Activate(t.Context(), ann, []string{permits, denies}[i%2], ""); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()
	if ok, rev := n.allows(t, sue, read); ok || rev != denies {
		t.Errorf("after the last activation: allowed %v by %s, want a refusal by %s", ok, rev, denies)
	}
}

func TestExplain(t *testing.T) {
	d := dbtest.Open(t)
	n, ctx := newNode(t, d), t.Context()
	why := func(op guard.Op) policy.Explanation {
		t.Helper()
		decision, err := n.decider.Decide(ctx, sue, op)
		if err != nil {
			t.Fatal(err)
		}
		e, err := n.Explain(ctx, ann, guard.DecisionRecord{
			Allow: decision.Allow, Reasons: decision.Reasons, Rule: decision.Rule, Engine: decision.Engine,
			Revision: decision.Revision, Facts: decision.Facts, InputDigest: decision.InputDigest,
		})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	op := func(action string) guard.Op {
		o := read
		o.Input = policy.Call{Action: action}
		return o
	}
	e := why(op("customer.read"))
	if !e.Allow || len(e.Rules) != 1 || e.Rules[0].Rule() != "tenant.access.granted_for_purpose" || e.Rules[0].Title != "Granted, and for the purpose it was granted for" || e.Note != "" {
		t.Errorf("an allowed call is explained by %+v", e)
	}
	e = why(op("invoice.read"))
	if e.Allow || e.Rules[0].Rule() != "estover.base.not_granted" || e.Rules[0].File != "estover/base.rego" || e.Rules[0].Line == 0 {
		t.Errorf("a refusal is explained by %+v", e)
	}
	if len(e.Changes) != 1 || fmt.Sprint(e.Changes[0]) != "[{entitled false true} {purpose_ok false true}]" {
		t.Errorf("the way out is %v, want a grant for the purpose", e.Changes)
	}
	if len(e.Ask) < 2 || !strings.Contains(strings.Join(e.Ask, " "), "grant") {
		t.Errorf("it says how to ask: %q", e.Ask)
	}
	e = why(guard.Op{Action: "gateway.call", Effect: guard.Writes})
	if e.Rules[0].Rule() != "tenant.access.unknown_destination" || len(e.Changes) != 0 || !strings.Contains(strings.Join(e.Ask, " "), "No change of one or two facts") {
		t.Errorf("an unknown host is explained by %+v", e)
	}
	o := op("customer.read")
	o.Input = policy.Call{Action: "customer.read", Class: estover.Restricted}
	e = why(o)
	if e.Engine != "kernel" || e.Rules[0].Code != "kernel_clearance" || !strings.Contains(e.Note, "no bundle") {
		t.Errorf("a refusal of the kernel is explained by %+v", e)
	}
}

// An old decision is explained by the revision of its time, and a record that
// was changed is not explained at all.
func TestExplainLater(t *testing.T) {
	n, ctx := newNode(t, dbtest.Open(t)), t.Context()
	digest := push(t, n, bundle("customer.read"))
	if _, err := n.Activate(ctx, ann, digest, ""); err != nil {
		t.Fatal(err)
	}
	decision, err := n.decider.Decide(ctx, sue, read)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Activate(ctx, ann, push(t, n, bundle("customer.write")), ""); err != nil {
		t.Fatal(err)
	}
	record := guard.DecisionRecord{Reasons: decision.Reasons, Engine: decision.Engine, Revision: decision.Revision, Facts: decision.Facts, InputDigest: decision.InputDigest}
	e, err := n.Explain(ctx, ann, record)
	if err != nil || e.Rules[0].Rule() != "tenant.calls.not_here" || e.Rules[0].File != "calls.rego" || e.Rules[0].Sentence != "This is not done here." {
		t.Errorf("an old decision is explained by %+v, %v", e, err)
	}
	if _, err := n.Explain(ctx, sue, record); err == nil {
		t.Error("an agent was told the rule that refused it")
	}
	record.Facts = map[string]any{"input": map[string]any{"op": "gateway.call"}}
	if _, err := n.Explain(ctx, ann, record); !errors.Is(err, policy.ErrNoInput) {
		t.Errorf("a record that was changed: %v, want ErrNoInput", err)
	}
	record.Facts = nil
	if _, err := n.Explain(ctx, ann, record); !errors.Is(err, policy.ErrNoInput) {
		t.Errorf("a record without its input: %v, want ErrNoInput", err)
	}
}
