package policy

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/guard"
)

// A world is what a test says there is: the sources of a decider, in maps.
type world struct {
	agents    map[string]*Agent
	sessions  map[string]Session
	grants    map[string]*Grants
	resources map[string]*Resource
	owners    map[string]string
	holds     []string
	token     error
	tenant    error
	fails     error // of every source
}

var errNone = &estover.Error{Kind: estover.NotFound, Code: "none", Detail: "There is none."}

func find[V any](w *world, m map[string]V, id string) (v V, err error) {
	if w.fails != nil {
		return v, w.fails
	}
	v, ok := m[id]
	if !ok {
		return v, errNone
	}
	return v, nil
}

func (w *world) sources() Sources {
	return Sources{
		Agent: func(_ context.Context, _ estover.TenantID, id string) (*Agent, error) { return find(w, w.agents, id) },
		Session: func(_ context.Context, _ estover.TenantID, id string) (Session, error) {
			return find(w, w.sessions, id)
		},
		Grants: func(_ context.Context, _ estover.TenantID, id string) (*Grants, error) { return find(w, w.grants, id) },
		Resource: func(_ context.Context, _ estover.TenantID, id string) (*Resource, error) {
			return find(w, w.resources, id)
		},
		Owner: func(_ context.Context, _ estover.TenantID, target string) (string, error) {
			return w.owners[target], w.fails
		},
		Holds:  func(context.Context, estover.TenantID, *Agent) ([]string, error) { return w.holds, w.fails },
		Token:  func(context.Context, estover.Caller) error { return w.token },
		Tenant: func(context.Context, estover.TenantID) error { return w.tenant },
	}
}

// shop is a small company: a support agent that may read customers of the CRM
// and open tickets, and one for billing.
func shop() *world {
	return &world{
		agents: map[string]*Agent{
			"agt_sue": {
				ID: "agt_sue", Blueprint: "support", Team: "service", Environment: "production", Tier: "low",
				Clearance: estover.Confidential, Purposes: []string{"support", "research"}, Sponsored: true,
			},
			"agt_bill": {ID: "agt_bill", Clearance: estover.Internal, Purposes: []string{"billing"}, Sponsored: true},
		},
		sessions: map[string]Session{
			"ses_sue":      {ID: "ses_sue", Agent: "agt_sue", Purpose: "support"},
			"ses_research": {ID: "ses_research", Agent: "agt_sue", Purpose: "research"},
			"ses_bill":     {ID: "ses_bill", Agent: "agt_bill", Purpose: "billing"},
			"ses_over":     {ID: "ses_over", Agent: "agt_sue", Purpose: "support", Ended: true},
		},
		grants: map[string]*Grants{
			"agt_sue": NewGrants([]Grant{
				{ID: "gra_1", Resource: "res_crm", Actions: []string{"customer.read", "ticket.*"}, Purposes: []string{"support"}},
				{ID: "gra_2", Resource: "res_crm", Actions: []string{"statistics.read"}, Class: estover.Internal},
				{ID: "gra_3", Resource: "secret:crm-key", Actions: []string{"secret.use"}, Purposes: []string{"support"}},
			}),
		},
		resources: map[string]*Resource{
			"res_crm":        {ID: "res_crm", Type: "http", Class: estover.Confidential, Tags: []string{"customers"}},
			"res_payroll":    {ID: "res_payroll", Type: "http", Class: estover.Restricted, Segment: "finance"},
			"secret:crm-key": {ID: "secret:crm-key", Type: "secret", Class: estover.Restricted},
		},
		owners: map[string]string{"oauth_grant:ogr_sue": "agt_sue", "oauth_grant:ogr_bill": "agt_bill"},
	}
}

// sue is the support agent, in her session.
var sue = estover.Caller{
	Tenant: "acme", Subject: estover.Agent("agt_sue"), Client: "agt_sue", Session: "ses_sue", Purpose: "support", Strength: estover.ByKey,
}

func person(roles ...estover.Role) estover.Caller {
	return estover.Caller{Tenant: "acme", Subject: estover.User("usr_ann"), Roles: roles, Strength: estover.ByKey}
}

// call is a call of the CRM through the gateway.
func call(action string, effect guard.Effect) guard.Op {
	return guard.Op{Action: "gateway.call", Target: "resource:res_crm", Effect: effect, Resource: "res_crm", Input: Call{Action: action}}
}

// deciderOf decides about a world by a bundle, without a database.
func deciderOf(t testing.TB, w *world, b Bundle) *Decider {
	t.Helper()
	d := NewDecider(nil, w.sources(), Options{Logger: slog.New(slog.DiscardHandler)})
	r, found := compile(b)
	if len(found) > 0 {
		t.Fatal(found)
	}
	d.pointer("acme").Store(r)
	return d
}

func decide(t testing.TB, d *Decider, caller estover.Caller, op guard.Op) guard.Decision {
	t.Helper()
	decision, err := d.Decide(t.Context(), caller, op)
	if err != nil {
		t.Fatal(err)
	}
	return decision
}

// ago and hence are moments around the present, which is the decider's when
// there is no database.
func ago(d time.Duration) time.Time   { return time.Now().Add(-d) }
func hence(d time.Duration) time.Time { return time.Now().Add(d) }
