package approval_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/approval"
	"estover.dev/internal/approval/document"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
)

const tenant = estover.DefaultTenant

func person(id string, roles ...estover.Role) estover.Caller {
	return estover.Caller{Tenant: tenant, Subject: estover.User("usr_" + id), Roles: roles, Strength: estover.ByBound}
}

// The people: two approvers and an administrator, an operator, the sponsor of the
// agent, who has no role, and somebody who has nothing to do with it.
var (
	ann  = person("ann", estover.Admin)
	bob  = person("bob", estover.Approver)
	cy   = person("cy", estover.Approver)
	opal = person("opal", estover.Operator)
	sue  = person("sue")
	dan  = person("dan")
	bot  = estover.Caller{Tenant: tenant, Subject: estover.Agent("agt_bot"), Client: "agt_bot", Session: "ses_1", Purpose: "support", Strength: estover.ByKey}
	eve  = estover.Caller{Tenant: "other", Subject: estover.User("usr_ann"), Roles: []estover.Role{estover.Admin}}
)

var errNone = &estover.Error{Kind: estover.NotFound, Code: "none", Detail: "There is none."}

// A world is what the requests of a test know of others.
type world struct {
	mu       sync.Mutex
	people   map[string]approval.Person
	sessions map[string]approval.Session
	held     bool // the agent
	permits  []string
	denies   []string
	demands  []guard.Obligation
	asked    []guard.Op
}

func newWorld(d *db.DB) *world {
	w := &world{people: map[string]approval.Person{}, sessions: map[string]approval.Session{
		"ses_1": {ID: "ses_1", Agent: "agt_bot", Purpose: "support", Expires: d.Now().Add(8 * time.Hour)},
		"ses_2": {ID: "ses_2", Agent: "agt_other", Purpose: "support", Expires: d.Now().Add(8 * time.Hour)},
	}}
	for _, c := range []estover.Caller{ann, bob, cy, opal, sue, dan} {
		id := c.Subject.ID()
		w.people[id] = approval.Person{ID: id, Name: strings.TrimPrefix(id, "usr_"), Roles: c.Roles, Active: true}
	}
	return w
}

func (w *world) change(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fn()
}

func (w *world) disable(id string) {
	w.change(func() { p := w.people[id]; p.Active = false; w.people[id] = p })
}

// decide is the policy about what is asked for.
func (w *world) decide(op guard.Op) guard.Decision {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, op)
	action, _, _, _, _ := op.Input.(approval.Elevation).Elevates()
	d := guard.Decision{Engine: "policy", Rule: "tenant.test.rule", Revision: "rev1"}
	switch {
	case slices.Contains(w.denies, action):
		d.Reasons, d.Message = []string{"forbidden"}, "The policy forbids it."
	case slices.Contains(w.permits, action):
		d.Allow, d.Obligations = true, w.demands
	default:
		d.Reasons, d.Obligations = []string{approval.NotPermitted}, w.demands
	}
	return d
}

func options(w *world, grants *access.Access) approval.Options {
	crm := approval.Resource{ID: "res_crm", Name: "crm", Actions: []approval.Action{
		{Name: "customer.read", Effect: guard.Reads, Class: estover.Internal, Parameters: []string{"id"}},
		{Name: "customer.list", Effect: guard.Searches, Class: estover.Internal},
		{Name: "customer.delete", Effect: guard.Deletes, Class: estover.Confidential, Parameters: []string{"id"}},
	}}
	resources := map[string]approval.Resource{
		"res_crm":   crm,
		"res_vault": {ID: "res_vault", Name: "vault", Actions: []approval.Action{{Name: "read", Effect: guard.Reads, Class: estover.Restricted}}},
		"res_far":   {ID: "res_far", Name: "far", Segment: "finance", Actions: []approval.Action{{Name: "read", Effect: guard.Reads, Class: estover.Public}}},
		"res_ads":   {ID: "res_ads", Name: "ads", Purposes: []string{"marketing"}, Actions: []approval.Action{{Name: "read", Effect: guard.Reads, Class: estover.Public}}},
	}
	agents := map[string]approval.Agent{
		"agt_bot": {ID: "agt_bot", Name: "bot", Sponsor: "usr_sue", Purposes: []string{"support", "billing"}, Clearance: estover.Confidential, Segments: []string{"office"}},
	}
	return approval.Options{
		Effects: map[approval.Kind]approval.Effect{
			approval.Access: func(ctx context.Context, tx *guard.Tx, r approval.Request, what approval.Granted) (string, error) {
				var ids []string
				for _, item := range what.Items {
					g, err := grants.Give(ctx, tx, access.Spec{
						Agent: r.Agent, Resource: item.Resource, Actions: item.Actions, Purposes: []string{r.Purpose}, Class: item.Class, ExpiresAt: what.Until,
					}, r.DecidedBy)
					if err != nil {
						return "", err
					}
					ids = append(ids, g.ID)
				}
				return strings.Join(ids, " "), nil
			},
			approval.Lift: func(context.Context, *guard.Tx, approval.Request, approval.Granted) (string, error) {
				return "lifted", nil
			},
		},
		Floors: map[approval.Kind]approval.Rule{approval.Lift: {Quorum: 1, Roles: []string{"admin", "operator"}}},
		Decide: func(_ context.Context, _ estover.Caller, op guard.Op) (guard.Decision, error) {
			return w.decide(op), nil
		},
		Agent: func(_ context.Context, tx *db.Tx, id string) (approval.Agent, error) {
			a, ok := agents[id]
			if !ok || tx.Tenant() != tenant {
				return a, errNone
			}
			return a, nil
		},
		Acting: func(_ context.Context, tx *db.Tx, _ string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.held {
				return &estover.Error{Kind: estover.Denied, Code: "agent_not_active", Detail: "The agent is quarantined."}
			}
			return nil
		},
		Resource: func(_ context.Context, _ *db.Tx, id string) (approval.Resource, error) {
			r, ok := resources[id]
			if !ok {
				return r, errNone
			}
			return r, nil
		},
		Session: func(_ context.Context, _ *db.Tx, id string) (approval.Session, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			s, ok := w.sessions[id]
			if !ok {
				return s, errNone
			}
			return s, nil
		},
		Hold: func(context.Context, *guard.Tx, string) error { return nil },
		Person: func(_ context.Context, _ *db.Tx, id string) (approval.Person, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			p := w.people[id]
			p.ID = id
			return p, nil
		},
		Holding: func(_ context.Context, _ *db.Tx, roles []estover.Role) (all []approval.Person, err error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, p := range w.people {
				if p.Active && slices.ContainsFunc(roles, func(r estover.Role) bool { return slices.Contains(p.Roles, r) }) {
					all = append(all, p)
				}
			}
			return all, nil
		},
	}
}

// A house is the requests of a test over a database, with the grants that they
// lead to.
type house struct {
	*approval.Approvals
	*world
	grants *access.Access
	db     *db.DB
	clock  *dbtest.Clock
}

func opened(t *testing.T, d *db.DB, w *world, change ...func(*approval.Options)) *house {
	g := guardtest.New(t, d, guardtest.Decider(func(_ estover.Caller, op guard.Op) guard.Decision {
		if op.Action == approval.Elevate {
			return w.decide(op)
		}
		return guard.Decision{Allow: true, Engine: "policy"}
	}))
	grants := access.New(g, access.Options{
		Agent:    func(context.Context, *db.Tx, string, []string) error { return nil },
		Resource: func(context.Context, *db.Tx, string, []string) error { return nil },
	})
	o := options(w, grants)
	for _, fn := range change {
		fn(&o)
	}
	return &house{approval.New(g, o), w, grants, d, nil}
}

func open(t *testing.T, d *db.DB, change ...func(*approval.Options)) *house {
	h := opened(t, d, newWorld(d), change...)
	h.clock = dbtest.NewClock(d)
	return h
}

// reading is the usual wish.
func reading(actions ...string) approval.Wish {
	if len(actions) == 0 {
		actions = []string{"customer.read"}
	}
	return approval.Wish{Items: []approval.Item{{Resource: "res_crm", Actions: actions}}, Reason: "The customer calls", Context: map[string]string{"ticket": "INC-1"}}
}

func (h *house) ask(t testing.TB, caller estover.Caller, w approval.Wish) approval.Request {
	t.Helper()
	r, err := h.Ask(t.Context(), caller, w)
	if err != nil {
		t.Fatalf("asking for %v: %v", w.Items, err)
	}
	return r
}

// live is how many grants the agent holds.
func (h *house) live(t testing.TB) int {
	t.Helper()
	all, _, err := h.grants.List(t.Context(), ann, access.Filter{Agent: "agt_bot", Live: true}, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// is fails unless an error is the wanted one.
func is(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func demand(properties map[string]any) []guard.Obligation {
	return []guard.Obligation{{Type: "approval", Properties: properties}}
}

func TestPolicyApprovesAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := open(t, d)
		h.permits = []string{"customer.read", "customer.list"}
		began := time.Now()
		r := h.ask(t, bot, reading("customer.list", "customer.read"))
		t.Logf("decided by policy in %s", time.Since(began))
		if r.State != approval.Approved || r.DecidedBy != approval.ByPolicy || r.Policy.Rule != "tenant.test.rule" || r.Result == "" || len(h.asked) != 2 {
			t.Fatalf("%+v, after %d questions; want it approved by policy", r, len(h.asked))
		}
		if want := r.CreatedAt.Add(time.Hour); !r.Offer.Until.Equal(want) || r.Session != "ses_1" || r.Purpose != "support" || h.live(t) != 1 {
			t.Errorf("it lasts until %s for %s in %q, with %d grants; want %s for support in ses_1, and one", r.Offer.Until, r.Purpose, r.Session, h.live(t), want)
		}
		got, err := h.Get(t.Context(), bot, r.ID)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(r) {
			t.Errorf("stored it is %+v, %v, want %+v", got, err, r)
		}
		// One action that policy does not permit keeps all of it waiting.
		if r = h.ask(t, bot, reading("customer.delete", "customer.read")); r.State != approval.Pending || h.live(t) != 1 {
			t.Errorf("with one that is not permitted it is %s", r.State)
		}
		// What is denied is refused, and nobody can approve it.
		h.denies = []string{"customer.delete"}
		var refusal *guard.Refusal
		if _, err := h.Ask(t.Context(), bot, reading("customer.delete")); !errors.As(err, &refusal) || refusal.Decision.ID == "" {
			t.Errorf("asking for what is denied: %v, want a refusal that is on record", err)
		}
		// As long as the session goes on, and no longer.
		h.change(func() { s := h.sessions["ses_1"]; s.Expires = d.Now().Add(20 * time.Minute); h.sessions["ses_1"] = s })
		if r = h.ask(t, bot, reading("customer.list")); r.Offer.Until.After(d.Now().Add(20 * time.Minute)) {
			t.Errorf("it outlasts its session: until %s", r.Offer.Until)
		}
	})
}

func TestAskIsChecked(t *testing.T) {
	d := dbtest.Open(t)
	h := open(t, d)
	with := func(fn func(*approval.Wish)) approval.Wish { w := reading(); fn(&w); return w }
	item := func(fn func(*approval.Item)) approval.Wish { return with(func(w *approval.Wish) { fn(&w.Items[0]) }) }
	long := strings.Repeat("x", approval.MaxReason+1)
	for _, c := range []struct {
		what   string
		caller estover.Caller
		wish   approval.Wish
		want   error
	}{
		{"without a reason", bot, with(func(w *approval.Wish) { w.Reason = "" }), approval.ErrInvalid},
		{"with a long reason", bot, with(func(w *approval.Wish) { w.Reason = long }), approval.ErrInvalid},
		{"with a reason of two lines", bot, with(func(w *approval.Wish) { w.Reason = "a\nb" }), approval.ErrInvalid},
		{"with a reason that runs backwards", bot, with(func(w *approval.Wish) { w.Reason = "a\u202eb" }), approval.ErrInvalid},
		{"for too short", bot, with(func(w *approval.Wish) { w.For = time.Second }), approval.ErrInvalid},
		{"for too long", bot, with(func(w *approval.Wish) { w.For = 25 * time.Hour }), approval.ErrInvalid},
		{"for nothing", bot, with(func(w *approval.Wish) { w.Items = nil }), approval.ErrInvalid},
		{"for no action", bot, item(func(i *approval.Item) { i.Actions = nil }), approval.ErrInvalid},
		{"for an action that there is not", bot, item(func(i *approval.Item) { i.Actions = []string{"customer.burn"} }), approval.ErrInvalid},
		{"for a parameter that there is not", bot, item(func(i *approval.Item) { i.Parameters = map[string][]string{"name": {"x"}} }), approval.ErrInvalid},
		{"for a resource that there is not", bot, item(func(i *approval.Item) { i.Resource = "res_none" }), errNone},
		{"above the clearance", bot, item(func(i *approval.Item) { i.Resource, i.Actions = "res_vault", []string{"read"} }), approval.ErrInvalid},
		{"outside the segment", bot, item(func(i *approval.Item) { i.Resource, i.Actions = "res_far", []string{"read"} }), approval.ErrInvalid},
		{"for a resource of another purpose", bot, item(func(i *approval.Item) { i.Resource, i.Actions = "res_ads", []string{"read"} }), approval.ErrInvalid},
		{"for another purpose than the session's", bot, with(func(w *approval.Wish) { w.Purpose = "billing" }), approval.ErrInvalid},
		{"for a purpose that is not declared", sue, with(func(w *approval.Wish) { w.Agent, w.Purpose = "agt_bot", "espionage" }), approval.ErrInvalid},
		{"for somebody else's session", sue, with(func(w *approval.Wish) { w.Agent, w.Session = "agt_bot", "ses_2" }), approval.ErrInvalid},
		{"for another agent", bot, with(func(w *approval.Wish) { w.Agent = "agt_other" }), approval.ErrNotYours},
		{"that a hold is lifted, as an agent", bot, approval.Wish{Kind: approval.Lift, Target: "hold:x", Reason: "x"}, approval.ErrNotYours},
		{"for an agent that one has nothing to do with", dan, with(func(w *approval.Wish) { w.Agent, w.Purpose = "agt_bot", "support" }), approval.ErrNotYours},
		{"for another tenant's agent", eve, with(func(w *approval.Wish) { w.Agent, w.Purpose = "agt_bot", "support" }), errNone},
		{"for a kind that there is not", ann, approval.Wish{Kind: "magic", Reason: "x"}, approval.ErrInvalid},
		{"for two resources with one budget", bot, with(func(w *approval.Wish) {
			w.Items, w.Budgets = append(w.Items, w.Items[0]), approval.Budgets{Calls: 1}
		}), approval.ErrInvalid},
	} {
		if r, err := h.Ask(t.Context(), c.caller, c.wish); !errors.Is(err, c.want) {
			t.Errorf("asking %s: %+v, %v, want %v", c.what, r, err, c.want)
		}
	}
	for _, c := range []estover.Caller{sue, opal, ann} {
		w := reading()
		w.Agent, w.Purpose, w.Reason = "agt_bot", "billing", "For "+string(c.Subject)
		w.Items[0].Parameters = map[string][]string{"id": {c.Subject.ID()}}
		if r := h.ask(t, c, w); r.Session != "" || r.Requester != c.Subject || r.State != approval.Pending {
			t.Errorf("asked for by %s it is %+v", c.Subject, r)
		}
	}
	h.change(func() { h.held = true })
	if _, err := h.Ask(t.Context(), bot, reading("customer.list")); estover.KindOf(err) != estover.Denied {
		t.Errorf("asking as an agent that is held: %v", err)
	}
}

func TestTheSameIsAskedOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := open(t, d)
		first := h.ask(t, bot, reading("customer.read", "customer.list"))
		again := reading("customer.list", "customer.read")
		again.Reason = "In other words"
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				if r, err := h.Ask(t.Context(), bot, again); err != nil || r.ID != first.ID {
					t.Errorf("asked again it is %s, %v, want %s", r.ID, err, first.ID)
				}
			})
		}
		wg.Wait()
		// Once it has expired, another takes its place, whether or not that is on record.
		h.clock.Advance(25 * time.Hour)
		h.change(func() { s := h.sessions["ses_1"]; s.Expires = d.Now().Add(8 * time.Hour); h.sessions["ses_1"] = s })
		if r := h.ask(t, bot, again); r.ID == first.ID {
			t.Error("a request that has expired is still waiting")
		}
		if r, err := h.Get(t.Context(), bot, first.ID); err != nil || r.State != approval.Expired {
			t.Errorf("the first is %s, %v", r.State, err)
		}
		for i := range approval.MaxPending - 1 {
			w := reading()
			w.Items[0].Parameters = map[string][]string{"id": {fmt.Sprint(i)}}
			h.ask(t, bot, w)
		}
		_, err := h.Ask(t.Context(), bot, reading("customer.delete"))
		is(t, "asking for one more", err, approval.ErrTooMany)
	})
}

func TestPeopleDecide(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := open(t, d)
		ctx := t.Context()
		wish := reading()
		wish.Agent, wish.Purpose = "agt_bot", "support"
		r := h.ask(t, ann, wish)
		approve := func(c estover.Caller) error { _, err := h.Approve(ctx, c, r.ID, approval.Choice{}); return err }
		is(t, "approving one's own request", approve(ann), approval.ErrOwn)
		is(t, "approving as an agent", approve(bot), approval.ErrPerson)
		inTheirPlace := bob
		inTheirPlace.Actors = []estover.Subject{bot.Subject}
		is(t, "approving in somebody's place", approve(inTheirPlace), approval.ErrPerson)
		is(t, "approving as somebody who has nothing to do with it", approve(dan), approval.ErrNotFound)
		is(t, "approving as the sponsor, whom the rule does not name", approve(sue), approval.ErrNotApprover)
		is(t, "approving as an operator, whom the rule does not name", approve(opal), approval.ErrNotApprover)
		is(t, "approving another tenant's request", approve(eve), approval.ErrNotFound)
		if h.live(t) != 0 {
			t.Fatal("something was granted")
		}
		e, err := h.Why(ctx, bob, r.ID)
		if err != nil || e.Missing != 1 || len(e.May) != 2 || e.May[0].Name != "bob" || !strings.HasPrefix(e.You, "You can decide") {
			t.Errorf("the explanation is %+v, %v; want that bob and cy may", e, err)
		}
		got, err := h.Approve(ctx, bob, r.ID, approval.Choice{Note: "Of course"})
		if err != nil || got.State != approval.Approved || got.DecidedBy != bob.Subject || got.Result == "" || len(got.Votes) != 1 || h.live(t) != 1 {
			t.Fatalf("approved it is %+v, %v, with %d grants", got, err, h.live(t))
		}
		is(t, "approving it again", approve(bob), approval.ErrNotPending)
		is(t, "approving it after somebody else", approve(cy), approval.ErrNotPending)
		_, err = h.Deny(ctx, cy, r.ID, "Too late")
		is(t, "denying it after it was approved", err, approval.ErrNotPending)
		if h.live(t) != 1 {
			t.Errorf("there are %d grants, want one", h.live(t))
		}

		// Somebody for whom the agent acts is in its chain.
		delegated := estover.Caller{Tenant: tenant, Subject: bob.Subject, Actors: []estover.Subject{bot.Subject}, Session: "ses_1", Purpose: "support"}
		r = h.ask(t, delegated, reading("customer.list"))
		if r.Requester != bot.Subject || !slices.Equal(r.Chain, []estover.Subject{bob.Subject}) {
			t.Errorf("asked for in bob's name it is by %s, for %v", r.Requester, r.Chain)
		}
		is(t, "approving what was asked in one's name", approve(bob), approval.ErrOwn)

		// Whoever has started an agent does not approve what it asks for.
		h.change(func() { s := h.sessions["ses_1"]; s.OpenedBy = bob.Subject; h.sessions["ses_1"] = s })
		started := h.ask(t, bot, reading("customer.delete"))
		h.change(func() { s := h.sessions["ses_1"]; s.OpenedBy = ""; h.sessions["ses_1"] = s })
		_, err = h.Approve(ctx, bob, started.ID, approval.Choice{})
		is(t, "approving what was asked in a session of one's own", err, approval.ErrOwn)
		if _, err = h.Deny(ctx, cy, started.ID, "No"); err != nil {
			t.Errorf("denying what was asked in another's session: %v", err)
		}

		_, err = h.Deny(ctx, cy, r.ID, "")
		is(t, "denying without a word", err, approval.ErrNote)
		if got, err = h.Deny(ctx, cy, r.ID, "Not today"); err != nil || got.State != approval.Denied || got.Note != "Not today" || h.live(t) != 1 {
			t.Errorf("denied it is %+v, %v", got, err)
		}

		// Taking it back is for whoever asked, and not for those who decide.
		r = h.ask(t, bot, reading("customer.delete"))
		_, err = h.Cancel(ctx, bob, r.ID, "")
		is(t, "taking back what somebody else asked for", err, approval.ErrNotYours)
		if got, err = h.Cancel(ctx, sue, r.ID, "A mistake"); err != nil || got.State != approval.Cancelled {
			t.Errorf("taken back by the sponsor it is %+v, %v", got, err)
		}
		is(t, "approving what was taken back", approve(bob), approval.ErrNotPending)
	})
}

// What policy says when people approve counts, and not only what it said when they
// were asked.
func TestPolicyChangesMeanwhile(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := open(t, d)
		ctx := t.Context()
		quorum := func(n int64) []guard.Obligation { return demand(map[string]any{"quorum": n}) }
		for name, c := range map[string]struct {
			change func()
			want   error
		}{
			"two must approve":      {func() { h.demands = quorum(2) }, approval.ErrStricter},
			"it must be signed":     {func() { h.demands = demand(map[string]any{"signed": true}) }, approval.ErrStricter},
			"others decide":         {func() { h.demands = demand(map[string]any{"roles": []string{"admin"}}) }, approval.ErrStricter},
			"the sponsor may not":   {func() { h.demands = demand(map[string]any{"exclude_sponsor": true}) }, approval.ErrStricter},
			"nobody may":            {func() { h.demands = demand(map[string]any{"roles": []string{}}) }, approval.ErrNobody},
			"it needs nobody":       {func() { h.permits = []string{"customer.read"} }, nil},
			"it is as it was":       {func() {}, nil},
			"nothing but the other": {func() { h.denies = []string{"customer.delete"} }, nil},
		} {
			h.change(func() { h.demands, h.denies, h.permits = quorum(1), nil, nil })
			r, before := h.ask(t, bot, reading()), h.live(t)
			h.change(c.change)
			got, err := h.Approve(ctx, bob, r.ID, approval.Choice{})
			if c.want != nil {
				is(t, name, err, c.want)
				if n := h.live(t) - before; n != 0 {
					t.Errorf("%s: %d grants were made", name, n)
				}
				if _, err := h.Deny(ctx, bob, r.ID, "policy has changed"); err != nil {
					t.Errorf("%s: denying it: %v", name, err)
				}
				continue
			}
			if err != nil || got.State != approval.Approved {
				t.Errorf("%s: approving is %s, %v", name, got.State, err)
			}
		}

		h.change(func() { h.demands, h.denies, h.permits = quorum(2), nil, nil })
		r, before := h.ask(t, bot, reading("customer.read", "customer.delete")), h.live(t)
		if _, err := h.Approve(ctx, bob, r.ID, approval.Choice{}); err != nil {
			t.Fatal(err)
		}
		h.change(func() { h.denies = []string{"customer.delete"} })
		var refusal *guard.Refusal
		if _, err := h.Approve(ctx, cy, r.ID, approval.Choice{}); !errors.As(err, &refusal) || h.live(t) != before {
			t.Errorf("approving what is forbidden by now: %v, %d grants", err, h.live(t)-before)
		}
		_, err := h.Approve(ctx, dan, r.ID, approval.Choice{})
		is(t, "approving it as somebody who has nothing to do with it", err, approval.ErrNotFound)
		only := approval.Choice{Narrow: []approval.Item{{Resource: "res_crm", Actions: []string{"customer.read"}}}}
		for _, c := range []estover.Caller{cy, bob} {
			if _, err := h.Approve(ctx, c, r.ID, only); err != nil {
				t.Errorf("approving what is not forbidden: %v", err)
			}
			only.Narrow = nil
		}
		if h.live(t) != before+1 {
			t.Errorf("%d grants were made, want 1", h.live(t)-before)
		}
	})
}

func TestQuorum(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := open(t, d)
		ctx := t.Context()
		h.demands = demand(map[string]any{"quorum": int64(2), "roles": []string{"approver", "sponsor"}})
		r := h.ask(t, bot, reading())
		if got, err := h.Approve(ctx, bob, r.ID, approval.Choice{}); err != nil || got.State != approval.Pending || h.live(t) != 0 {
			t.Fatalf("with one of two it is %s, %v", got.State, err)
		}
		_, err := h.Approve(ctx, bob, r.ID, approval.Choice{})
		is(t, "approving it twice", err, approval.ErrVoted)
		if e, err := h.Why(ctx, bot, r.ID); err != nil || e.Missing != 1 || len(e.Heard) != 1 || e.Heard[0].Name != "bob" {
			t.Errorf("the explanation is %+v, %v", e, err)
		}
		// Whoever is disabled when the last vote comes has not approved.
		h.disable("usr_bob")
		if got, err := h.Approve(ctx, sue, r.ID, approval.Choice{}); err != nil || got.State != approval.Pending || h.live(t) != 0 {
			t.Fatalf("with the vote of somebody who was disabled it is %s, %v", got.State, err)
		}
		if got, err := h.Approve(ctx, cy, r.ID, approval.Choice{}); err != nil || got.State != approval.Approved || h.live(t) != 1 {
			t.Fatalf("with two it is %s, %v", got.State, err)
		}

		// Where the sponsor's word does not count, it does not.
		h.demands = demand(map[string]any{"roles": []string{"approver", "sponsor"}, "exclude_sponsor": true})
		r = h.ask(t, bot, reading("customer.list"))
		_, err = h.Approve(ctx, sue, r.ID, approval.Choice{})
		is(t, "approving as the sponsor", err, approval.ErrNotApprover)

		// Of several demands the strictest holds, and roles that have nothing in common
		// are nobody's.
		h.demands = append(demand(map[string]any{"quorum": int64(3), "expires_seconds": int64(600)}), demand(map[string]any{"quorum": int64(2), "signed": true, "expires_seconds": int64(900)})...)
		r = h.ask(t, bot, reading("customer.delete"))
		if r.Rule.Quorum != 3 || !r.Rule.Signed || r.Rule.ExpiresAfter != 600 || !r.ExpiresAt.Equal(r.CreatedAt.Add(10*time.Minute)) {
			t.Errorf("the rule is %+v", r.Rule)
		}
		h.demands = append(demand(map[string]any{"roles": []string{"admin"}}), demand(map[string]any{"roles": []string{"sponsor"}})...)
		_, err = h.Ask(ctx, bot, reading("customer.read", "customer.list"))
		is(t, "asking for what nobody may decide about", err, approval.ErrNobody)
	})
}

// What policy approves because the agent is eligible is not given when that has ended
// in between.
func TestEligibleNoMore(t *testing.T) {
	d := dbtest.Open(t)
	was, told := true, []bool(nil)
	h := open(t, d, func(o *approval.Options) {
		o.Eligible = func(context.Context, *db.Tx, approval.Request, approval.Item) (bool, error) { return was, nil }
		give := o.Effects[approval.Access]
		o.Effects[approval.Access] = func(ctx context.Context, tx *guard.Tx, r approval.Request, what approval.Granted) (string, error) {
			told = r.Eligible
			if slices.Contains(r.Eligible, true) { // it has ended by now
				return "", approval.ErrChanged
			}
			return give(ctx, tx, r, what)
		}
	})
	h.permits = []string{"customer.read"}
	_, err := h.Ask(t.Context(), bot, reading())
	is(t, "asking for what ends meanwhile", err, approval.ErrChanged)
	if all, _, err := h.List(t.Context(), ann, approval.Filter{}, "", 0); err != nil || len(all) != 0 || h.live(t) != 0 || !slices.Equal(told, []bool{true}) {
		t.Errorf("%d requests, %v; %d grants; it was told %v", len(all), err, h.live(t), told)
	}
	was = false
	if r := h.ask(t, bot, reading()); r.State != approval.Approved || !slices.Equal(told, []bool{false}) || h.live(t) != 1 {
		t.Errorf("asking for what is permitted all the same: %s, told %v", r.State, told)
	}
}

// Others decide later only as far as every rule that says who decides lets them.
func TestEscalationIsNoWayAround(t *testing.T) {
	d := dbtest.Open(t)
	h := open(t, d)
	later := map[string]any{"roles": []string{"admin", "approver"}, "escalate_seconds": int64(600), "escalate_roles": []string{"approver", "operator"}}
	h.demands = append(demand(map[string]any{"roles": []string{"admin", "approver"}}), demand(later)...)
	r := h.ask(t, bot, reading())
	if !slices.Equal(r.Rule.EscalateTo, []string{"approver"}) {
		t.Errorf("it escalates to %v, want the approvers, whom both name", r.Rule.EscalateTo)
	}
	h.demands = append(demand(map[string]any{"roles": []string{"admin"}}), demand(later)...)
	r = h.ask(t, bot, reading("customer.list"))
	if len(r.Rule.EscalateTo) > 0 || r.Rule.EscalateAfter != 0 {
		t.Errorf("it escalates to %v after %d, want never", r.Rule.EscalateTo, r.Rule.EscalateAfter)
	}
	h.demands = demand(map[string]any{"escalate_seconds": int64(600), "escalate_roles": []string{"auditor", "operator"}})
	if r = h.ask(t, opal, approval.Wish{Kind: approval.Lift, Target: "hold:hld_1", Reason: "It was a drill"}); !slices.Equal(r.Rule.EscalateTo, []string{"operator"}) {
		t.Errorf("what has a floor escalates to %v, want the operators, whom it names", r.Rule.EscalateTo)
	}
}

func TestNarrower(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := open(t, d)
		ctx := t.Context()
		h.demands = demand(map[string]any{"quorum": int64(2), "roles": []string{"approver", "admin"}})
		wish := reading("customer.read", "customer.delete")
		wish.For, wish.Budgets = 30*time.Minute, approval.Budgets{Calls: 10}
		r := h.ask(t, bot, wish)
		only := func(actions ...string) []approval.Item {
			return []approval.Item{{Resource: "res_crm", Actions: actions}}
		}
		for what, c := range map[string]approval.Choice{
			"another action":         {Narrow: only("customer.list")},
			"every action":           {Narrow: only("*")},
			"another resource":       {Narrow: []approval.Item{{Resource: "res_far", Actions: []string{"read"}}}},
			"a higher class":         {Narrow: []approval.Item{{Resource: "res_crm", Actions: []string{"customer.read"}, Class: estover.Restricted}}},
			"twice the same":         {Narrow: append(only("customer.read"), only("customer.read")...)},
			"nothing":                {Narrow: []approval.Item{}},
			"a longer time":          {For: time.Hour},
			"a larger budget":        {Budgets: &approval.Budgets{Calls: 11}},
			"a budget below nothing": {Budgets: &approval.Budgets{Calls: -1}},
		} {
			_, err := h.Approve(ctx, ann, r.ID, c)
			is(t, "approving "+what, err, approval.ErrWider)
		}
		if got, err := h.Approve(ctx, bob, r.ID, approval.Choice{}); err != nil || got.Round != 1 || got.State != approval.Pending {
			t.Fatalf("as it is: %+v, %v", got, err)
		}
		// Somebody narrows it, which begins another round over another document.
		less := approval.Choice{Narrow: []approval.Item{{Resource: "res_crm", Actions: []string{"customer.read"}, Parameters: map[string][]string{"id": {"42"}}}}, For: 10 * time.Minute, Budgets: &approval.Budgets{Calls: 1}}
		text, _, err := h.Preview(ctx, cy, r.ID, less)
		if err != nil || !strings.Contains(string(text), "parameter: id=42\n") || !strings.Contains(string(text), "seconds: 600\n") || strings.Contains(string(text), "customer.delete") {
			t.Fatalf("the document is\n%s\n%v", text, err)
		}
		got, err := h.Approve(ctx, cy, r.ID, less)
		if err != nil || got.State != approval.Pending || got.Round != 2 || string(got.Document) != string(text) || h.live(t) != 0 {
			t.Fatalf("narrowed it is %+v, %v; want it to wait for others who agree to that", got, err)
		}
		digest := document.Digest(r.Document)
		_, err = h.Approve(ctx, bob, r.ID, approval.Choice{Digest: digest[:]})
		is(t, "approving what was on the table before", err, approval.ErrChanged)
		_, err = h.Approve(ctx, bob, r.ID, approval.Choice{For: 30 * time.Minute})
		is(t, "widening it again", err, approval.ErrWider)
		digest = document.Digest(text)
		if got, err = h.Approve(ctx, bob, r.ID, approval.Choice{Digest: digest[:]}); err != nil || got.State != approval.Approved {
			t.Fatalf("agreed to it is %+v, %v", got, err)
		}
		if o := got.Offer; len(o.Items) != 1 || !slices.Equal(o.Items[0].Actions, []string{"customer.read"}) || o.Budgets.Calls != 1 || !o.Until.Equal(got.DecidedAt.Add(10*time.Minute)) {
			t.Errorf("what was granted is %+v", o)
		}
		if len(got.Items[0].Actions) != 2 || got.Seconds != 1800 {
			t.Errorf("what was asked is no longer known: %+v", got)
		}
		if all, _, err := h.grants.List(ctx, ann, access.Filter{}, "", 0); err != nil || len(all) != 1 || !slices.Equal(all[0].Actions, []string{"customer.read"}) {
			t.Errorf("the grants are %+v, %v", all, err)
		}
	})
}

// What was checked when it was asked is checked again when it is approved.
func TestApprovedTooLate(t *testing.T) {
	d := dbtest.Open(t)
	h := open(t, d)
	r := h.ask(t, bot, reading())
	h.change(func() { h.held = true })
	if _, err := h.Approve(t.Context(), bob, r.ID, approval.Choice{}); estover.KindOf(err) != estover.Denied || h.live(t) != 0 {
		t.Errorf("approving for an agent that is held: %v", err)
	}
	h.change(func() { h.held = false; s := h.sessions["ses_1"]; s.Ended = true; h.sessions["ses_1"] = s })
	_, err := h.Approve(t.Context(), bob, r.ID, approval.Choice{})
	is(t, "approving for a session that is over", err, approval.ErrInvalid)
	if got, err := h.Get(t.Context(), bob, r.ID); err != nil || got.State != approval.Pending || len(got.Votes) != 0 {
		t.Errorf("what failed has left something: %+v, %v", got, err)
	}
}

func TestExpiryAndEscalation(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := open(t, d)
		ctx := t.Context()
		h.demands = demand(map[string]any{"roles": []string{"approver"}, "escalate_seconds": int64(600), "escalate_roles": []string{"operator"}, "expires_seconds": int64(3600)})
		r := h.ask(t, bot, reading())
		due := func(what string, fn func(context.Context) (int, error), want int) {
			t.Helper()
			if n, err := fn(ctx); err != nil || n != want {
				t.Errorf("%s: %d, %v, want %d", what, n, err, want)
			}
		}
		due("escalating before the time", h.EscalateDue, 0)
		_, err := h.Approve(ctx, opal, r.ID, approval.Choice{})
		is(t, "deciding before it has escalated", err, approval.ErrNotApprover)
		h.clock.Advance(11 * time.Minute)
		due("escalating", h.EscalateDue, 1)
		due("escalating again", h.EscalateDue, 0)
		got, err := h.Get(ctx, opal, r.ID)
		if err != nil || got.EscalatedAt.IsZero() {
			t.Errorf("escalated it is %+v, %v", got, err)
		}
		if e, err := h.Why(ctx, opal, r.ID); err != nil || !slices.Equal(e.Roles, []string{"approver", "operator"}) || len(e.May) != 3 {
			t.Errorf("the explanation is %+v, %v", e, err)
		}
		due("expiring before the time", h.ExpireDue, 0)
		h.clock.Advance(50 * time.Minute)
		if got, err = h.Get(ctx, bot, r.ID); err != nil || got.State != approval.Expired {
			t.Errorf("at its time it is %s, %v", got.State, err)
		}
		_, err = h.Approve(ctx, opal, r.ID, approval.Choice{})
		is(t, "deciding after it has expired", err, approval.ErrNotPending)
		due("expiring", h.ExpireDue, 1)
		due("expiring again", h.ExpireDue, 0)
		if h.live(t) != 0 {
			t.Error("something was granted")
		}
		for state, want := range map[approval.State]int{approval.Expired: 1, approval.Pending: 0, "": 1} {
			if all, _, err := h.List(ctx, ann, approval.Filter{State: state}, "", 0); err != nil || len(all) != want {
				t.Errorf("%d requests are %q, %v, want %d", len(all), state, err, want)
			}
		}
	})
}

// Whoever can write to the database lets nobody decide before it is their turn.
func TestEscalatedByHand(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := open(t, d)
		ctx := t.Context()
		h.demands = demand(map[string]any{"roles": []string{"approver"}, "escalate_seconds": int64(600), "escalate_roles": []string{"operator"}})
		r := h.ask(t, bot, reading())
		for _, after := range []time.Duration{0, 10 * time.Minute} {
			err := d.Do(ctx, tenant, func(tx *db.Tx) error {
				_, err := tx.Exec(ctx, "update access_request set escalated_at = $3 where tenant_id = $1 and id = $2", tx.Tenant(), r.ID, r.CreatedAt.Add(after))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			_, err = h.Approve(ctx, opal, r.ID, approval.Choice{})
			is(t, fmt.Sprintf("deciding when it says that it has escalated after %s", after), err, approval.ErrNotApprover)
		}
		h.clock.Advance(10 * time.Minute)
		if got, err := h.Approve(ctx, opal, r.ID, approval.Choice{}); err != nil || got.State != approval.Approved {
			t.Errorf("deciding in time: %s, %v", got.State, err)
		}
	})
}

func TestAbsence(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := open(t, d)
		ctx := t.Context()
		week := d.Now().Add(7 * 24 * time.Hour)
		h.demands = demand(map[string]any{"quorum": int64(2), "roles": []string{"approver"}})
		r := h.ask(t, bot, reading())
		_, err := h.Approve(ctx, dan, r.ID, approval.Choice{})
		is(t, "approving as nobody's deputy", err, approval.ErrNotFound)
		if _, err := h.Absent(ctx, bob, "usr_bob", "usr_dan", week); err != nil {
			t.Fatal(err)
		}
		got, err := h.Approve(ctx, dan, r.ID, approval.Choice{})
		if err != nil || got.State != approval.Pending || got.Votes[0].For != bob.Subject {
			t.Fatalf("approved by bob's deputy it is %+v, %v", got, err)
		}
		// The deputy's word and that of whom they stand in for are one.
		if got, err = h.Approve(ctx, bob, r.ID, approval.Choice{}); err != nil || got.State != approval.Pending {
			t.Fatalf("approved by bob and his deputy it is %s, %v; want it to wait for another", got.State, err)
		}
		if got, err = h.Approve(ctx, cy, r.ID, approval.Choice{}); err != nil || got.State != approval.Approved {
			t.Fatalf("approved by cy too it is %s, %v", got.State, err)
		}
		// Nobody stands in for whoever asked.
		h.demands = demand(map[string]any{"roles": []string{"approver", "admin"}})
		wish := reading("customer.list")
		wish.Agent, wish.Purpose = "agt_bot", "support"
		if _, err := h.Absent(ctx, ann, "usr_ann", "usr_opal", week); err != nil {
			t.Fatal(err)
		}
		r = h.ask(t, ann, wish)
		_, err = h.Approve(ctx, opal, r.ID, approval.Choice{})
		is(t, "approving in the place of whoever asked", err, approval.ErrNotApprover)

		for _, c := range []struct {
			person, deputy string
			until          time.Time
			want           error
		}{
			{"usr_bob", "usr_bob", week, approval.ErrAbsence},
			{"usr_bob", "usr_cy", d.Now().Add(-time.Hour), approval.ErrAbsence},
			{"usr_bob", "usr_cy", week.AddDate(2, 0, 0), approval.ErrAbsence},
			{"usr_bob", "usr_none", week, approval.ErrNoPerson},
			{"usr_none", "usr_bob", week, approval.ErrNoPerson},
		} {
			_, err := h.Absent(ctx, ann, c.person, c.deputy, c.until)
			is(t, fmt.Sprintf("%s being away until %s for %s", c.person, c.until, c.deputy), err, c.want)
		}
		// Over is over: at its time, or when they say that they are back.
		r = h.ask(t, bot, reading("customer.delete"))
		if err := h.Back(ctx, bob, "usr_bob"); err != nil {
			t.Fatal(err)
		}
		_, err = h.Approve(ctx, dan, r.ID, approval.Choice{})
		is(t, "approving for somebody who is back", err, approval.ErrNotFound)
		is(t, "coming back twice", h.Back(ctx, bob, "usr_bob"), approval.ErrNoAbsence)
		if all, err := h.Absences(ctx, ann); err != nil || len(all) != 1 || all[0].Deputy != "usr_opal" {
			t.Errorf("away are %+v, %v", all, err)
		}
		h.clock.Advance(8 * 24 * time.Hour)
		if all, err := h.Absences(ctx, ann); err != nil || len(all) != 0 {
			t.Errorf("a week later away are %+v, %v", all, err)
		}
	})
}

func TestSigned(t *testing.T) {
	d := dbtest.Open(t)
	signature := func(c estover.Caller, text []byte) json.RawMessage {
		b, _ := json.Marshal(string(c.Subject) + string(text))
		return b
	}
	bad := errors.New("the signature is bad")
	w := newWorld(d)
	w.demands = demand(map[string]any{"signed": true})
	unable := opened(t, d, w)
	h := opened(t, d, w, func(o *approval.Options) {
		o.Verify = func(_ context.Context, c estover.Caller, text []byte, assertion json.RawMessage) error {
			if string(assertion) != string(signature(c, text)) {
				return bad
			}
			return nil
		}
	})
	ctx := t.Context()
	r := h.ask(t, bot, reading("customer.read", "customer.list"))
	_, err := h.Approve(ctx, bob, r.ID, approval.Choice{})
	is(t, "approving without a signature", err, approval.ErrUnsigned)
	_, err = unable.Approve(ctx, bob, r.ID, approval.Choice{Assertion: signature(bob, r.Document)})
	is(t, "approving where nobody can check it", err, approval.ErrUnsigned)
	_, err = h.Approve(ctx, bob, r.ID, approval.Choice{Assertion: signature(cy, r.Document)})
	is(t, "approving with somebody else's signature", err, bad)
	less := approval.Choice{Narrow: []approval.Item{{Resource: "res_crm", Actions: []string{"customer.list"}}}, Assertion: signature(bob, r.Document)}
	_, err = h.Approve(ctx, bob, r.ID, less)
	is(t, "approving less with a signature over all", err, bad)
	text, _, err := h.Preview(ctx, bob, r.ID, less)
	if err != nil {
		t.Fatal(err)
	}
	less.Assertion = signature(bob, text)
	got, err := h.Approve(ctx, bob, r.ID, less)
	if err != nil || got.State != approval.Approved || string(got.Votes[0].Assertion) != string(less.Assertion) || string(got.Votes[0].Document) != string(text) {
		t.Errorf("approved with a signature it is %+v, %v", got, err)
	}
	other := h.ask(t, bot, reading("customer.delete"))
	_, err = h.Approve(ctx, bob, other.ID, approval.Choice{Assertion: less.Assertion})
	is(t, "approving something else with the same signature", err, bad)
}

// A request of another kind has its own effect, and a floor below which no policy
// goes.
func TestOtherKinds(t *testing.T) {
	d := dbtest.Open(t)
	h := open(t, d)
	h.permits = []string{"lift"}
	wish := approval.Wish{Kind: approval.Lift, Target: "hold:hld_1", Arguments: map[string]string{"scope": "tenant"}, Reason: "It was a drill"}
	r := h.ask(t, opal, wish)
	if r.State != approval.Pending || !slices.Equal(r.Rule.Roles, []string{"admin", "operator"}) {
		t.Fatalf("asked for by an operator it is %+v; want it to wait for a second person", r)
	}
	if same := h.ask(t, opal, wish); same.ID != r.ID {
		t.Error("asked for again it is another request")
	}
	_, err := h.Approve(t.Context(), opal, r.ID, approval.Choice{})
	is(t, "approving one's own", err, approval.ErrOwn)
	_, err = h.Approve(t.Context(), ann, r.ID, approval.Choice{For: time.Minute})
	is(t, "approving half of it", err, approval.ErrWider)
	got, err := h.Approve(t.Context(), ann, r.ID, approval.Choice{})
	if err != nil || got.State != approval.Approved || got.Result != "lifted" {
		t.Errorf("approved it is %+v, %v", got, err)
	}
}

func TestEndOfSessions(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := open(t, d)
		r := h.ask(t, bot, reading())
		free := reading()
		free.Agent, free.Purpose = "agt_bot", "support"
		other := h.ask(t, sue, free)
		if id, err := h.Waits(t.Context(), tenant, "agt_bot", "ses_1", "res_crm", "customer.read"); err != nil || id != r.ID {
			t.Errorf("what waits is %q, %v, want %s", id, err, r.ID)
		}
		g := guardtest.New(t, d, guardtest.AllowAll)
		n := 0
		err := g.Do(t.Context(), ann, guard.Op{Action: "session.end"}, func(tx *guard.Tx) (err error) {
			n, err = h.EndOfSessions(t.Context(), tx, []string{"ses_1", "ses_9"})
			return err
		})
		if err != nil || n != 1 {
			t.Fatalf("%d requests ended with the session, %v, want one", n, err)
		}
		if got, err := h.Get(t.Context(), bot, r.ID); err != nil || got.State != approval.Cancelled || got.Note == "" {
			t.Errorf("that of the session is %+v, %v", got, err)
		}
		_, err = h.Approve(t.Context(), bob, r.ID, approval.Choice{})
		is(t, "approving it", err, approval.ErrNotPending)
		if got, err := h.Get(t.Context(), bot, other.ID); err != nil || got.State != approval.Pending {
			t.Errorf("that of no session is %+v, %v", got, err)
		}
	})
}

// Whatever many do at once: one request leads to one grant.
func TestApprovedAtOnce(t *testing.T) {
	race := func(t *testing.T, houses ...*house) {
		first := houses[0]
		first.change(func() {
			first.demands = demand(map[string]any{"quorum": int64(2), "roles": []string{"approver", "admin"}})
		})
		r := first.ask(t, bot, reading())
		callers := []estover.Caller{ann, bob, cy}
		var wg sync.WaitGroup
		var mu sync.Mutex
		approved := 0
		for i := range 64 {
			wg.Go(func() {
				h := houses[i%len(houses)]
				got, err := h.Approve(t.Context(), callers[i%len(callers)], r.ID, approval.Choice{})
				switch {
				case err == nil && got.State == approval.Approved:
					mu.Lock()
					approved++
					mu.Unlock()
				case err == nil && got.State == approval.Pending, errors.Is(err, approval.ErrVoted), errors.Is(err, approval.ErrNotPending):
				default:
					t.Errorf("%s, %v", got.State, err)
				}
			})
		}
		wg.Wait()
		got, err := first.Get(t.Context(), ann, r.ID)
		if err != nil || got.State != approval.Approved || approved != 1 || len(got.Votes) != 2 || first.live(t) != 1 {
			t.Errorf("%d were the last, it is %s with %d votes and %d grants, %v; want one of each, and two votes", approved, got.State, len(got.Votes), first.live(t), err)
		}
	}
	t.Run("sqlite", func(t *testing.T) { race(t, open(t, dbtest.Open(t))) })
	t.Run("two servers on one postgres", func(t *testing.T) {
		url := dbtest.Postgres(t)
		var houses []*house
		var w *world
		for range 2 {
			d, err := db.Open(t.Context(), url, db.Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = d.Close() })
			if w == nil {
				w = newWorld(d)
			}
			houses = append(houses, opened(t, d, w))
		}
		race(t, houses...)
	})
}

// TestRiskIsShown looks at where a risk is shown, to whom, and that it is of what is
// on the table at present.
func TestRiskIsShown(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		given, gone := map[string]bool{}, false
		h := open(t, d, func(o *approval.Options) {
			o.Given = func(_ context.Context, _ *db.Tx, agent, resource string) (bool, error) {
				return given[agent+" "+resource], nil
			}
			agent, resource := o.Agent, o.Resource
			o.Agent = func(ctx context.Context, tx *db.Tx, id string) (approval.Agent, error) {
				a, err := agent(ctx, tx, id)
				a.Tier = "low"
				return a, err
			}
			o.Resource = func(ctx context.Context, tx *db.Tx, id string) (approval.Resource, error) {
				if gone {
					return approval.Resource{}, errNone
				}
				return resource(ctx, tx, id)
			}
		})
		h.demands = demand(map[string]any{"quorum": int64(2)})
		r := h.ask(t, bot, reading("customer.delete", "customer.list"))
		shown := func(who estover.Caller) approval.Risk {
			t.Helper()
			got, err := h.Get(ctx, who, r.ID)
			if err != nil {
				t.Fatal(err)
			}
			why, err := h.Why(ctx, who, r.ID)
			if err != nil {
				t.Fatal(err)
			}
			all, _, err := h.List(ctx, who, approval.Filter{}, "", 0)
			if err != nil {
				t.Fatal(err)
			}
			if len(all) != 1 || why.Request.Risk.String() != got.Risk.String() || all[0].Risk.String() != got.Risk.String() {
				t.Errorf("of %d requests, this one has the risk %q, but %q where it is explained, or another in the list", len(all), got.Risk, why.Request.Risk)
			}
			return got.Risk
		}
		want := "high. The agent could delete: customer.delete of crm. It reaches confidential data: crm. " +
			"Neither parameters nor a budget bound how much: crm. The agent was never given anything there before: crm."
		if got := shown(ann); got.String() != want {
			t.Errorf("the risk is\n%s\nwant\n%s", got, want)
		}
		// It is for those who decide: what is asked is not made up for it.
		if got := shown(bot); got.Level != "" || r.Risk.Level != "" {
			t.Errorf("the agent is told that the risk is %s, and %s when it asks", got, r.Risk)
		}
		if same := h.ask(t, sue, approval.Wish{Agent: "agt_bot", Session: "ses_1", Purpose: "support", Items: reading("customer.delete", "customer.list").Items, Reason: "x"}); same.ID != r.ID || same.Risk.String() != want {
			t.Errorf("the sponsor who asks for the same is told of %s: %s", same.ID, same.Risk)
		}
		// It is of what is known by now, and of what is on the table by now.
		given["agt_bot res_crm"] = true
		if got := shown(ann); slices.ContainsFunc(got.Because, func(s string) bool { return strings.Contains(s, "never given") }) {
			t.Errorf("once the agent was given something there, the risk is %s", got)
		}
		gone = true
		if got := shown(ann); got.Level != approval.HighRisk || !strings.HasPrefix(got.Because[0], "Some of it is not there any more") {
			t.Errorf("of a resource that is gone the risk is %s", got)
		}
		gone = false
		less := []approval.Item{{Resource: "res_crm", Actions: []string{"customer.list"}, Class: estover.Internal}}
		if _, risk, err := h.Preview(ctx, ann, r.ID, approval.Choice{Narrow: less}); err != nil || risk.Level != approval.LowRisk {
			t.Errorf("of less the risk would be %s, %v, want low", risk, err)
		}
		if got := shown(ann); got.Level != approval.HighRisk {
			t.Errorf("after somebody looked at less the risk is %s", got)
		}
		if _, err := h.Approve(ctx, bob, r.ID, approval.Choice{Narrow: less}); err != nil {
			t.Fatal(err)
		}
		if got := shown(ann); got.String() != "low. Neither parameters nor a budget bound how much: crm." {
			t.Errorf("of less the risk is %s", got)
		}
		// What is decided is no risk any more, and what was is on record.
		if _, err := h.Deny(ctx, cy, r.ID, "No"); err != nil {
			t.Fatal(err)
		}
		if got := shown(ann); got.Level != "" {
			t.Errorf("of what is denied the risk is %s", got)
		}
	})
}
