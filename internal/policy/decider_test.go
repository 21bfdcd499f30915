package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/guard"
)

func TestDecideByStarter(t *testing.T) {
	const allow = ""
	key := func(c estover.Caller) estover.Caller { c.Strength = estover.BySecret; return c }
	in := func(c estover.Caller, session, purpose string) estover.Caller {
		c.Session, c.Purpose = session, purpose
		return c
	}
	from := func(op guard.Op, change func(*guard.Op)) guard.Op { change(&op); return op }
	outside := in(sue, "", "")
	bill := estover.Caller{Tenant: "acme", Subject: estover.Agent("agt_bill"), Session: "ses_bill", Purpose: "billing", Strength: estover.ByKey}
	for _, test := range []struct {
		name   string
		caller estover.Caller
		op     guard.Op
		want   string // the first reason
		rule   string
	}{
		{"what is granted", sue, call("customer.read", guard.Reads), allow, "tenant.access.granted_for_purpose"},
		{"what is granted by a prefix", sue, call("ticket.create", guard.Writes), allow, "tenant.access.granted_for_purpose"},
		{"a prefix alone", sue, call("ticketing", guard.Writes), "not_granted", "estover.base.not_granted"},
		{"an action outside the grant", sue, call("customer.delete", guard.Deletes), "not_granted", "estover.base.not_granted"},
		{"another purpose of the agent", in(sue, "ses_research", "research"), call("customer.read", guard.Reads), "purpose_mismatch", "estover.base.purpose_mismatch"},
		{"a purpose that is not the session's", in(sue, "ses_sue", "research"), call("customer.read", guard.Reads), "purpose_mismatch", "estover.base.purpose_mismatch"},
		{"a grant for every purpose", in(sue, "ses_research", "research"), from(call("statistics.read", guard.Reads), func(o *guard.Op) { o.Input = Call{Action: "statistics.read", Class: estover.Internal} }), allow, "tenant.access.granted_for_purpose"},
		{"data above the grant's class", in(sue, "ses_research", "research"), call("statistics.read", guard.Reads), "not_granted", "estover.base.not_granted"},
		{"a host that nobody knows", sue, guard.Op{Action: "gateway.call", Target: "host:evil.example", Effect: guard.Writes}, "unknown_destination", "tenant.access.unknown_destination"},
		{"a path that the resource has no action for", sue, call("", guard.Reads), "unknown_action", "tenant.access.unknown_action"},
		{"an agent without grants", bill, from(call("customer.read", guard.Reads), func(o *guard.Op) { o.Input = Call{Action: "customer.read", Class: estover.Internal} }), "not_granted", "estover.base.not_granted"},
		{"data above the agent's clearance", bill, call("customer.read", guard.Reads), "kernel_clearance", "kernel.kernel_clearance"},
		{"restricted data with a secret", key(sue), from(call("customer.read", guard.Reads), func(o *guard.Op) { o.Input = Call{Action: "customer.read", Class: estover.Restricted} }), "kernel_clearance", "kernel.kernel_clearance"},
		{"a call outside of a session", outside, call("customer.read", guard.Reads), "kernel_session_missing", "kernel.kernel_session_missing"},

		{"a secret for a granted resource", sue, guard.Op{Action: "secret.use", Target: "secret:crm-key", Resource: "res_crm", Effect: guard.Executes}, allow, "tenant.access.secret_for_granted_call"},
		{"a secret that is granted itself", sue, guard.Op{Action: "secret.use", Target: "secret:crm-key", Effect: guard.Executes}, allow, "tenant.access.secret_for_granted_call"},
		{"a secret for a resource without grant", sue, guard.Op{Action: "secret.use", Target: "secret:crm-key", Resource: "res_payroll", Effect: guard.Executes}, "not_granted", "estover.base.not_granted"},
		{"the value of a secret", in(sue, "ses_sue", "support"), guard.Op{Action: "secret.read", Target: "secret:crm-key", Effect: guard.Reads}, "kernel_clearance", "kernel.kernel_clearance"},

		{"a session of one's own", in(sue, "", "support"), guard.Op{Action: "session.open", Target: "agent:agt_sue", Effect: guard.Manages}, allow, "estover.base.agent_opens_session"},
		{"a session that has no name yet", in(sue, "", "support"), guard.Op{Action: "session.open", Effect: guard.Manages}, allow, "estover.base.agent_opens_session"},
		{"a session for an undeclared purpose", in(sue, "", "marketing"), guard.Op{Action: "session.open", Target: "agent:agt_sue", Effect: guard.Manages}, "purpose_not_declared", "estover.base.purpose_not_declared"},
		{"a session without a purpose", in(sue, "", ""), guard.Op{Action: "session.open", Target: "agent:agt_sue", Effect: guard.Manages}, "purpose_not_declared", "estover.base.purpose_not_declared"},
		{"a session for another agent", in(sue, "", "support"), guard.Op{Action: "session.open", Target: "agent:agt_bill", Effect: guard.Manages}, "not_own", "estover.base.not_own"},
		{"the end of one's own session", sue, guard.Op{Action: "session.end", Target: "session:ses_sue", Effect: guard.Manages}, allow, "estover.base.own_things"},
		{"the end of another session of one's own", sue, guard.Op{Action: "session.end", Target: "session:ses_research", Effect: guard.Manages}, allow, "estover.base.own_things"},
		{"the end of another agent's session", sue, guard.Op{Action: "session.end", Target: "session:ses_bill", Effect: guard.Manages}, "not_permitted", "estover.not_permitted"},
		{"the end of no session", sue, guard.Op{Action: "session.end", Target: "session:ses_none", Effect: guard.Manages}, "not_permitted", "estover.not_permitted"},

		{"the end of one's own session, without a token", outside, guard.Op{Action: "session.end", Target: "session:ses_sue", Session: "ses_sue", Effect: guard.Manages}, allow, "estover.base.own_things"},
		{"the end of another's session, as its target and its session", sue, guard.Op{Action: "session.end", Target: "session:ses_bill", Session: "ses_bill", Effect: guard.Manages}, "not_permitted", "estover.not_permitted"},
		{"the sessions of one's own", sue, guard.Op{Action: "session.list", Target: "agent:agt_sue", Effect: guard.Reads}, allow, "estover.base.own_things"},
		{"everybody's sessions", sue, guard.Op{Action: "session.list", Effect: guard.Reads}, "not_permitted", "estover.not_permitted"},

		{"a token in a session", outside, guard.Op{Action: "token.issue", Session: "ses_sue", Resource: "res_crm", Effect: guard.Manages}, allow, "estover.base.agent_gets_token"},
		{"a token for whatever is granted", outside, guard.Op{Action: "token.issue", Session: "ses_sue", Effect: guard.Manages}, allow, "estover.base.agent_gets_token"},
		{"a token for two resources, one without grant", outside, guard.Op{Action: "token.issue", Session: "ses_sue", Input: Request{Resources: []string{"res_crm", "res_payroll"}}, Effect: guard.Manages}, "not_granted", "estover.base.not_granted"},
		{"a token for a resource without grant", outside, guard.Op{Action: "token.issue", Session: "ses_sue", Resource: "res_payroll", Effect: guard.Manages}, "not_granted", "estover.base.not_granted"},
		{"a token in another agent's session", outside, guard.Op{Action: "token.issue", Session: "ses_bill", Resource: "res_crm", Effect: guard.Manages}, "kernel_session_foreign", "kernel.kernel_session_foreign"},
		{"a token in a session that is over", outside, guard.Op{Action: "token.issue", Session: "ses_over", Resource: "res_crm", Effect: guard.Manages}, "kernel_session_ended", "kernel.kernel_session_ended"},
		{"a token of an agent without grants", in(bill, "", ""), guard.Op{Action: "token.issue", Session: "ses_bill", Effect: guard.Manages}, "not_granted", "estover.base.not_granted"},
		{"one's own tokens given back", outside, guard.Op{Action: "token.revoke", Target: "oauth_grant:ogr_sue", Effect: guard.Manages}, allow, "estover.base.own_things"},
		{"one's own tokens given back, later", in(sue, "ses_over", "support"), guard.Op{Action: "token.revoke", Target: "oauth_grant:ogr_sue", Effect: guard.Manages}, allow, "estover.base.own_things"},
		{"another's tokens given back", outside, guard.Op{Action: "token.revoke", Target: "oauth_grant:ogr_bill", Effect: guard.Manages}, "not_permitted", "estover.not_permitted"},
		{"a look at a token", outside, guard.Op{Action: "token.introspect", Effect: guard.Reads}, allow, "estover.base.agent_introspects"},

		{"an agent that manages", sue, guard.Op{Action: "agent.create", Effect: guard.Manages}, "not_permitted", "estover.not_permitted"},
		{"an agent that lifts its own hold", sue, guard.Op{Action: "agent.lift", Target: "agent:agt_sue", Effect: guard.Manages}, "not_permitted", "estover.not_permitted"},
		{"an agent that looks at itself", sue, guard.Op{Action: "agent.read", Target: "agent:agt_sue", Effect: guard.Reads}, allow, "estover.base.own_things"},
		{"an agent that looks at another", sue, guard.Op{Action: "agent.read", Target: "agent:agt_bill", Effect: guard.Reads}, "not_permitted", "estover.not_permitted"},

		{"an administrator", person(estover.Admin), guard.Op{Action: "agent.create", Effect: guard.Manages}, allow, "estover.base.admin_manages"},
		{"an administrator in the place of an agent", person(estover.Admin), call("customer.read", guard.Reads), "not_permitted", "estover.not_permitted"},
		{"an operator", person(estover.Operator), guard.Op{Action: "agent.hold", Target: "agent:agt_sue", Effect: guard.Manages}, allow, "estover.base.operator_operates"},
		{"an operator with the policy", person(estover.Operator), guard.Op{Action: "policy.activate", Effect: guard.Manages}, "not_permitted", "estover.not_permitted"},
		{"an auditor", person(estover.Auditor), guard.Op{Action: "evidence.export", Session: "ses_sue", Effect: guard.Reads}, allow, "estover.base.auditor_reads"},
		{"an auditor that changes something", person(estover.Auditor), guard.Op{Action: "agent.hold", Target: "agent:agt_sue", Effect: guard.Manages}, "not_permitted", "estover.not_permitted"},
		{"a person without a role", person(), guard.Op{Action: "agent.list", Effect: guard.Reads}, "not_permitted", "estover.not_permitted"},
		{"a person that looks at themself", person(), guard.Op{Action: "person.read", Target: "user:usr_ann", Effect: guard.Reads}, allow, "estover.base.own_things"},
		{"an administrator that sees a secret for a purpose", person(estover.Admin), guard.Op{Action: "secret.read", Target: "secret:crm-key", Purpose: "break glass", Effect: guard.Reads}, allow, "estover.base.admin_reads_secret"},
		{"an administrator that sees a secret for nothing", person(estover.Admin), guard.Op{Action: "secret.read", Target: "secret:crm-key", Effect: guard.Reads}, "secret_needs_purpose", "estover.base.secret_needs_purpose"},
		{"an operator that sees a secret", person(estover.Operator), guard.Op{Action: "secret.read", Target: "secret:crm-key", Purpose: "curiosity", Effect: guard.Reads}, "secret_needs_admin", "estover.base.secret_needs_admin"},
		{"an operator that changes a secret that is not there", person(estover.Operator), guard.Op{Action: "secret.write", Target: "secret:none", Effect: guard.Manages}, allow, "estover.base.operator_operates"},
		{"an agent that reads a secret that is not there", sue, guard.Op{Action: "secret.read", Target: "secret:none", Effect: guard.Reads}, "not_permitted", "estover.not_permitted"},
		{"Estover itself", estover.Caller{Tenant: "acme", Subject: estover.System("sweep")}, guard.Op{Action: "session.expire", Target: "session:ses_sue", Effect: guard.Manages}, allow, "estover.base.system_works"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := deciderOf(t, shop(), Starter())
			got := decide(t, d, test.caller, test.op)
			reason := strings.Join(got.Reasons[:min(1, len(got.Reasons))], "")
			if got.Allow != (test.want == allow) || reason != test.want || got.Rule != test.rule {
				t.Errorf("allow %v, reasons %v by %s; want %q by %s\n%s", got.Allow, got.Reasons, got.Rule, test.want, test.rule, got.Facts["input"])
			}
			if !got.Allow && (got.Message == "" || got.Next == "") {
				t.Errorf("a refusal without a sentence or a next step: %+v", got)
			}
			recorded(t, got)
		})
	}
}

// recorded checks that the record of a decision holds up: the digest is that
// of the input, also after the trip through the log.
func recorded(t *testing.T, d guard.Decision) {
	t.Helper()
	raw, ok := d.Facts["input"].(json.RawMessage)
	if !ok {
		if d.Engine != "kernel" {
			t.Errorf("a decision of the %s without its input", d.Engine)
		}
		return
	}
	if digest(raw) != d.InputDigest {
		t.Error("the digest of the input is not that of the record")
	}
	b, err := json.Marshal(d.Facts)
	if err != nil {
		t.Fatal(err)
	}
	back := guard.DecisionRecord{InputDigest: d.InputDigest}
	if err := json.Unmarshal(b, &back.Facts); err != nil {
		t.Fatal(err)
	}
	if _, err := inputOf(back); err != nil {
		t.Errorf("the input that comes back from the log: %v", err)
	}
}

// at is where the tasks of a test are done.
var at = []string{"https://crm.example"}

// confine gives the caller a token that is confined to tasks.
func confine(tasks ...estover.Task) func(*world, *estover.Caller) {
	return func(w *world, c *estover.Caller) {
		w.resources["res_crm"].Identifier = at[0]
		c.Grant, c.Scopes, c.Tasks = "gnt_sue", []string{"customer.read"}, append([]estover.Task{}, tasks...)
	}
}

// A token that is confined to tasks opens no session: its certificate would be good
// for all that the agent is granted.
func TestConfinedTokenOpensNoSession(t *testing.T) {
	w, caller := shop(), sue
	caller.Session = ""
	op := guard.Op{Action: "session.open", Target: "agent:agt_sue", Purpose: "support", Effect: guard.Manages}
	if got := decide(t, deciderOf(t, w, Starter()), caller, op); !got.Allow {
		t.Fatalf("a session of one's own is refused for %v", got.Reasons)
	}
	confine(estover.Task{Locations: at, Actions: []string{"customer.read"}})(w, &caller)
	if got := decide(t, deciderOf(t, w, Starter()), caller, op); got.Allow || !slices.Equal(got.Reasons, []string{OutsideTask}) {
		t.Errorf("a session by a token for a task: %v %v, want %s", got.Allow, got.Reasons, OutsideTask)
	}
}

// What the kernel refuses, no bundle permits.
func TestKernelHolds(t *testing.T) {
	permissive := Bundle{{"a.rego", head + "permit contains \"all\" if input.op == \"gateway.call\"\n"}}
	for name, test := range map[string]struct {
		change func(*world, *estover.Caller)
		want   string
	}{
		"nothing wrong":             {func(*world, *estover.Caller) {}, ""},
		"an agent that is not":      {func(w *world, _ *estover.Caller) { delete(w.agents, "agt_sue") }, "kernel_agent_unknown"},
		"an agent not yet active":   {func(w *world, _ *estover.Caller) { w.agents["agt_sue"].Pending = true }, "kernel_agent_inactive"},
		"an agent on hold":          {func(w *world, _ *estover.Caller) { w.agents["agt_sue"].Holds = []string{"incident"} }, "kernel_agent_held"},
		"all agents on hold":        {func(w *world, _ *estover.Caller) { w.holds = []string{"tenant"} }, "kernel_agent_held"},
		"an agent whose time is up": {func(w *world, _ *estover.Caller) { w.agents["agt_sue"].Expires = ago(time.Second) }, "kernel_agent_expired"},
		"an agent with time left":   {func(w *world, _ *estover.Caller) { w.agents["agt_sue"].Expires = hence(time.Hour) }, ""},
		"an agent without sponsor":  {func(w *world, _ *estover.Caller) { w.agents["agt_sue"].Sponsored = false }, "kernel_sponsor"},
		"a token that has ended":    {func(w *world, _ *estover.Caller) { w.token = errNone }, "kernel_token"},
		"no session":                {func(_ *world, c *estover.Caller) { c.Session = "" }, "kernel_session_missing"},
		"a session that is not":     {func(_ *world, c *estover.Caller) { c.Session = "ses_none" }, "kernel_session_unknown"},
		"a session that has ended": {func(w *world, _ *estover.Caller) {
			s := w.sessions["ses_sue"]
			s.Ended = true
			w.sessions["ses_sue"] = s
		}, "kernel_session_ended"},
		"a session whose time is up": {func(w *world, _ *estover.Caller) {
			s := w.sessions["ses_sue"]
			s.Expires = ago(time.Second)
			w.sessions["ses_sue"] = s
		}, "kernel_session_expired"},
		"a session of another": {func(_ *world, c *estover.Caller) { c.Session = "ses_bill" }, "kernel_session_foreign"},
		"a token for the action": {func(_ *world, c *estover.Caller) {
			c.Grant, c.Scopes = "gnt_sue", []string{"customer.list", "customer.read"}
		}, ""},
		"a token for other actions": {func(_ *world, c *estover.Caller) {
			c.Grant, c.Scopes = "gnt_sue", []string{"customer.list"}
		}, "kernel_scope"},
		"a token for no action": {func(_ *world, c *estover.Caller) { c.Grant = "gnt_sue" }, "kernel_scope"},
		"a token for this task": {confine(estover.Task{Locations: at, Actions: []string{"customer.list", "customer.read"}, Purpose: "support"}), ""},
		"a token for tasks of which one is this": {confine(
			estover.Task{Locations: at, Actions: []string{"customer.list"}}, estover.Task{Locations: at, Actions: []string{"customer.read"}},
		), ""},
		"a token for another task":      {confine(estover.Task{Locations: at, Actions: []string{"customer.list"}}), "kernel_task"},
		"a token for a task elsewhere":  {confine(estover.Task{Locations: []string{"https://erp.example"}, Actions: []string{"customer.read"}}), "kernel_task"},
		"a token for a task nowhere":    {confine(estover.Task{Locations: []string{""}, Actions: []string{"customer.read"}}), "kernel_task"},
		"a token for another purpose":   {confine(estover.Task{Locations: at, Actions: []string{"customer.read"}, Purpose: "sales"}), "kernel_task"},
		"a token for a task on one":     {confine(estover.Task{Locations: at, Actions: []string{"customer.read"}, Parameters: map[string][]string{"id": {"7"}}}), ""},
		"a token for a task on another": {confine(estover.Task{Locations: at, Actions: []string{"customer.read"}, Parameters: map[string][]string{"id": {"8"}}}), "kernel_task"},
		"a token for a task on no such": {confine(estover.Task{Locations: at, Actions: []string{"customer.read"}, Parameters: map[string][]string{"id": {"7"}, "of": {"1"}}}), "kernel_task"},
		"a token that is for no task":   {confine([]estover.Task{}...), "kernel_task"},
		"a budget used up": {func(w *world, _ *estover.Caller) {
			s := w.sessions["ses_sue"]
			s.Budget = "exceeded"
			w.sessions["ses_sue"] = s
		}, "kernel_budget"},
		"a budget that nobody understands": {func(w *world, _ *estover.Caller) {
			s := w.sessions["ses_sue"]
			s.Budget = "much"
			w.sessions["ses_sue"] = s
		}, "kernel_budget"},
		"a resource on hold":     {func(w *world, _ *estover.Caller) { w.resources["res_crm"].Holds = []string{"incident"} }, "kernel_resource_held"},
		"a resource that is not": {func(w *world, _ *estover.Caller) { delete(w.resources, "res_crm") }, "kernel_resource_unknown"},
		"another segment": {func(w *world, _ *estover.Caller) {
			w.agents["agt_sue"].Segments = []string{"service"}
			w.resources["res_crm"].Segment = "finance"
		}, "kernel_segment"},
		"its own segment": {func(w *world, _ *estover.Caller) {
			w.agents["agt_sue"].Segments = []string{"service"}
			w.resources["res_crm"].Segment = "service"
		}, ""},
		"above the clearance":  {func(w *world, _ *estover.Caller) { w.agents["agt_sue"].Clearance = estover.Internal }, "kernel_clearance"},
		"no clearance":         {func(w *world, _ *estover.Caller) { w.agents["agt_sue"].Clearance = "" }, "kernel_clearance"},
		"a class that is none": {func(w *world, _ *estover.Caller) { w.resources["res_crm"].Class = "secret" }, "kernel_clearance"},
		"a chain with a loop":  {func(_ *world, c *estover.Caller) { c.Actors = []estover.Subject{"agent:agt_sue", "agent:agt_bill"} }, "kernel_chain_loop"},
		"a chain that comes back": {func(_ *world, c *estover.Caller) {
			c.Subject, c.Actors = "user:usr_ann", []estover.Subject{"agent:agt_sue", "agent:agt_bill", "agent:agt_sue"}
		}, "kernel_chain_loop"},
		"a chain that is too long": {func(_ *world, c *estover.Caller) {
			c.Subject, c.Actors = "user:usr_ann", []estover.Subject{"agent:agt_sue", "agent:b", "agent:c", "agent:d", "agent:e"}
		}, "kernel_chain_depth"},
		"an agent for a person": {func(_ *world, c *estover.Caller) {
			c.Subject, c.Actors = "user:usr_ann", []estover.Subject{"agent:agt_sue"}
		}, ""},
		"nobody": {func(_ *world, c *estover.Caller) { c.Subject = "sue" }, "kernel_subject"},
		"an organisation that is disabled": {func(w *world, _ *estover.Caller) {
			w.tenant = &estover.Error{Kind: estover.Denied, Code: "tenant_disabled", Detail: "It is disabled."}
		}, "kernel_tenant"},
		"an organisation that is not":    {func(w *world, _ *estover.Caller) { w.tenant = errNone }, "kernel_tenant"},
		"a register that cannot be read": {func(w *world, _ *estover.Caller) { w.tenant = errors.New("the disk is on fire") }, "kernel_facts"},
		"facts that cannot be had":       {func(w *world, _ *estover.Caller) { w.fails = errors.New("the disk is on fire") }, "kernel_facts"},
	} {
		t.Run(name, func(t *testing.T) {
			w, caller := shop(), sue
			test.change(w, &caller)
			got := decide(t, deciderOf(t, w, permissive), caller, guard.Op{
				Action: "gateway.call", Effect: guard.Reads, Resource: "res_crm", Input: Call{Action: "customer.read", Params: map[string]string{"id": "7"}},
			})
			if test.want == "" {
				if !got.Allow {
					t.Errorf("refused for %v", got.Reasons)
				}
				return
			}
			if got.Allow || !slices.Equal(got.Reasons, []string{test.want}) || got.Engine != "kernel" {
				t.Errorf("allow %v, reasons %v by the %s; want %s by the kernel", got.Allow, got.Reasons, got.Engine, test.want)
			}
			if got.Message == "" || got.Next == "" {
				t.Errorf("a refusal without a sentence or a next step: %+v", got)
			}
		})
	}
}

// A person's roles stay with the person: an agent that acts for an
// administrator manages nothing.
func TestRolesAreNotDelegated(t *testing.T) {
	d := deciderOf(t, shop(), Starter())
	caller := person(estover.Admin)
	caller.Actors = []estover.Subject{estover.Agent("agt_sue")}
	if got := decide(t, d, caller, guard.Op{Action: "agent.create", Effect: guard.Manages}); got.Allow {
		t.Errorf("an agent that acts for an administrator creates agents, by %s", got.Rule)
	}
}

// A grant ends by its time, its session and its end.
func TestGrantLives(t *testing.T) {
	for name, test := range map[string]struct {
		grant Grant
		want  bool
	}{
		"standing":               {Grant{}, true},
		"of this session":        {Grant{Session: "ses_sue"}, true},
		"of another session":     {Grant{Session: "ses_research"}, false},
		"ended":                  {Grant{Ended: true}, false},
		"lapsed":                 {Grant{Until: ago(time.Second)}, false},
		"not yet":                {Grant{From: hence(time.Hour)}, false},
		"within its time":        {Grant{From: ago(time.Hour), Until: hence(time.Hour)}, true},
		"of a lower class":       {Grant{Class: estover.Internal}, false},
		"of the class":           {Grant{Class: estover.Confidential}, true},
		"for nothing by name":    {Grant{Actions: []string{}}, false},
		"for everything":         {Grant{Actions: []string{"*"}}, true},
		"for a prefix":           {Grant{Actions: []string{"customer.*"}}, true},
		"for a part of the name": {Grant{Actions: []string{"customer*"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			g := test.grant
			g.Resource = "res_crm"
			if g.Actions == nil {
				g.Actions = []string{"customer.read"}
			}
			w := shop()
			w.grants["agt_sue"] = NewGrants([]Grant{g})
			if got := decide(t, deciderOf(t, w, Starter()), sue, call("customer.read", guard.Reads)); got.Allow != test.want {
				t.Errorf("allow %v (%v), want %v", got.Allow, got.Reasons, test.want)
			}
		})
	}
}

// The purpose is judged on the grants that cover the action: one grant for the
// action and another for the purpose do not add up.
func TestGrantsDoNotAddUp(t *testing.T) {
	w := shop()
	w.grants["agt_sue"] = NewGrants([]Grant{
		{Resource: "res_crm", Actions: []string{"customer.read"}, Purposes: []string{"research"}},
		{Resource: "res_crm", Actions: []string{"ticket.read"}, Purposes: []string{"support"}},
	})
	if got := decide(t, deciderOf(t, w, Starter()), sue, call("customer.read", guard.Reads)); got.Allow || got.Reasons[0] != "purpose_mismatch" {
		t.Errorf("allow %v, reasons %v; want purpose_mismatch", got.Allow, got.Reasons)
	}
	w.grants["agt_sue"] = NewGrants([]Grant{
		{Resource: "res_crm", Actions: []string{"customer.read"}, Purposes: []string{"research"}},
		{Resource: "res_crm", Actions: []string{"customer.*"}, Purposes: []string{"support"}, Elevated: true},
	})
	got := decide(t, deciderOf(t, w, Starter()), sue, call("customer.read", guard.Reads))
	if !got.Allow || !strings.Contains(string(got.Facts["input"].(json.RawMessage)), `"grant_kind":"elevated"`) {
		t.Errorf("allow %v on %s; want the second grant to carry it", got.Allow, got.Facts["input"])
	}
}

func TestObligationsOfACall(t *testing.T) {
	d := deciderOf(t, shop(), Starter())
	types := func(g guard.Decision) (s []string) {
		for _, o := range g.Obligations {
			b, _ := json.Marshal(o)
			s = append(s, string(b))
		}
		return s
	}
	got := types(decide(t, d, sue, call("ticket.create", guard.Writes)))
	want := []string{`{"type":"evidence","properties":{"mode":"strict"}}`, `{"type":"receipt"}`, `{"type":"record","properties":{"level":"full"}}`}
	if !slices.Equal(got, want) {
		t.Errorf("writing obliges to %v, want %v", got, want)
	}
	read := call("customer.read", guard.Reads)
	read.Input = Call{Action: "customer.read", Class: estover.Internal}
	got = types(decide(t, d, sue, read))
	want = []string{`{"type":"evidence","properties":{"mode":"batched"}}`, `{"type":"receipt"}`, `{"type":"record","properties":{"level":"meta"}}`}
	if !slices.Equal(got, want) {
		t.Errorf("reading internal data obliges to %v, want %v", got, want)
	}
}

// The second time, the answer comes from the cache, and it is the same one.
// Whatever changes makes it another question.
func TestCache(t *testing.T) {
	w := shop()
	d := deciderOf(t, w, Starter())
	op := call("customer.read", guard.Reads)
	first, second := decide(t, d, sue, op), decide(t, d, sue, op)
	if first.Engine != "policy" || second.Engine != "cache" {
		t.Fatalf("decided by the %s, then by the %s; want policy, then cache", first.Engine, second.Engine)
	}
	second.Engine = "policy"
	if a, b := jsonOf(t, first), jsonOf(t, second); a != b {
		t.Errorf("the kept answer is another:\n%s\n%s", a, b)
	}
	w.grants["agt_sue"] = NewGrants(nil)
	if got := decide(t, d, sue, op); got.Allow {
		t.Error("an answer outlived its grant")
	}
	for range 2 {
		if got := decide(t, d, sue, call("customer.delete", guard.Deletes)); got.Engine != "policy" {
			t.Errorf("a refusal came from the %s", got.Engine)
		}
	}
	w.grants = shop().grants
	old := w.agents["agt_sue"]
	w.agents["agt_sue"] = &Agent{ID: old.ID, Clearance: old.Clearance, Purposes: old.Purposes, Sponsored: true, Team: "elsewhere"}
	if got := decide(t, d, sue, op); got.Engine != "policy" || !strings.Contains(string(got.Facts["input"].(json.RawMessage)), "elsewhere") {
		t.Errorf("a changed agent was decided on by the %s: %s", got.Engine, got.Facts["input"])
	}
}

func jsonOf(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A rule may look at the arguments of a call; then every call is worked out.
func TestParams(t *testing.T) {
	b := append(Starter(), File{"limits.rego", `# METADATA
# title: Limits
# description: What a refund may be.
package tenant.limits

# METADATA
# title: Small refunds
# description: A refund of more than a hundred needs a person.
# custom:
#   next: Ask a person.
deny contains "refund_too_large" if {
	input.action.name == "ticket.refund"
	input.params.amount > 100
}
`})
	d := deciderOf(t, shop(), b)
	op := call("ticket.refund", guard.Pays)
	for _, test := range []struct {
		amount any
		want   bool
	}{{99, true}, {100, true}, {101, false}, {json.Number("100.5"), false}, {99, true}} {
		op.Input = Call{Action: "ticket.refund", Params: map[string]any{"amount": test.amount}}
		if got := decide(t, d, sue, op); got.Allow != test.want || got.Engine != "policy" {
			t.Errorf("a refund of %v: allow %v by the %s, want %v by the policy", test.amount, got.Allow, got.Engine, test.want)
		}
	}
	op.Input = Call{Action: "ticket.refund", Params: make(chan int)}
	if got := decide(t, d, sue, op); got.Allow || got.Reasons[0] != "policy_error" {
		t.Errorf("arguments that are no JSON: allow %v for %v, want policy_error", got.Allow, got.Reasons)
	}
}

// A rule that runs away is stopped, and the answer is no.
func TestTimeout(t *testing.T) {
	slow := Bundle{{"a.rego", head + "permit contains \"all\" if {\n\tinput.op == \"gateway.call\"\n\tcount([1 | some a in numbers.range(1, 3000); some b in numbers.range(1, 3000); a == b]) > 0\n}\n"}}
	d := deciderOf(t, shop(), slow)
	began := time.Now()
	got := decide(t, d, sue, call("customer.read", guard.Reads))
	if got.Allow || !slices.Equal(got.Reasons, []string{"policy_timeout"}) {
		t.Errorf("allow %v, reasons %v; want policy_timeout", got.Allow, got.Reasons)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the answer took %v", took)
	}
}

// What is late by no more than a busy machine makes it is answered: decision 0060.
func TestLateIsAnswered(t *testing.T) {
	for range 5 { // where others are at work it may be later than that
		for n := 100; ; n += 1 + n/8 {
			rule := fmt.Sprintf("permit contains \"all\" if {\n\tinput.op == \"gateway.call\"\n\tcount([1 | some a in numbers.range(1, %d); some b in numbers.range(1, %d); a == b]) > 0\n}\n", n, n)
			d := deciderOf(t, shop(), Bundle{{"a.rego", head + rule}})
			began := time.Now()
			got := decide(t, d, sue, call("customer.read", guard.Reads))
			if took := time.Since(began); got.Allow && took > 75*time.Millisecond {
				return
			} else if !got.Allow {
				t.Logf("with %d it is too late after %v: %v", n, took, got.Reasons)
				break
			}
		}
	}
	t.Error("nothing that took more than 75 ms was answered")
}

// An evaluation that fails is a refusal, whatever the rules would have said.
func TestErrorsRefuse(t *testing.T) {
	for name, body := range map[string]string{
		"a built-in that fails":       "permit contains \"all\" if {\n\tinput.op == \"gateway.call\"\n\tto_number(input.action.name) > 3\n}\n\npermit contains \"any\" if input.op == \"gateway.call\"\n",
		"an obligation nobody can do": "permit contains \"all\" if input.op == \"gateway.call\"\n\noblige contains {\"type\": input.action.effect} if input.op == \"gateway.call\"\n",
		"a contradiction":             "permit contains \"all\" if {\n\tinput.op == \"gateway.call\"\n\tx == 1\n}\n\nx := 1 if input.op == \"gateway.call\"\n\nx := 2 if input.action.effect == \"read\"\n",
	} {
		t.Run(name, func(t *testing.T) {
			d := deciderOf(t, shop(), Bundle{{"a.rego", head + body}})
			if got := decide(t, d, sue, call("customer.read", guard.Reads)); got.Allow || !slices.Equal(got.Reasons, []string{"policy_error"}) {
				t.Errorf("allow %v, reasons %v; want policy_error", got.Allow, got.Reasons)
			}
		})
	}
}

// Who has gone away needs no answer, and no refusal on record.
func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	w := shop()
	w.fails = context.Canceled
	cancel()
	if _, err := deciderOf(t, w, Starter()).Decide(ctx, sue, call("customer.read", guard.Reads)); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that has gone: %v, want %v", err, context.Canceled)
	}
}

// The denial that the tenant wrote is told before the baseline's.
func TestOrderOfReasons(t *testing.T) {
	d := deciderOf(t, shop(), Starter())
	got := decide(t, d, sue, guard.Op{Action: "gateway.call", Effect: guard.Sends})
	if want := []string{"unknown_destination", "not_granted", "purpose_mismatch"}; !slices.Equal(got.Reasons, want) {
		t.Errorf("the reasons are %v, want %v", got.Reasons, want)
	}
}

// The register of tenants is for the administrators of the default one, whatever
// another's policy permits; and what Estover itself does in a disabled tenant, to end
// what is over, it goes on doing.
func TestTenants(t *testing.T) {
	w := shop()
	d := deciderOf(t, w, Bundle{{"a.rego", head + "permit contains \"all\" if true\n"}})
	d.pointer(estover.DefaultTenant).Store(d.pointer("acme").Load())
	ada := estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User("usr_ada"), Roles: []estover.Role{estover.Admin}, Strength: estover.ByBound}
	create := guard.Op{Action: "tenant.create", Target: "tenant:acme", Effect: guard.Manages}
	if got := decide(t, d, ada, create); !got.Allow {
		t.Errorf("an administrator of the default tenant adds one: %+v", got)
	}
	for _, action := range []string{"tenant.create", "tenant.disable", "tenant.enable", "tenant.invite", "tenant.list", "tenant.read", "tenant.update"} {
		eve := ada
		eve.Tenant = "acme"
		if got := decide(t, d, eve, guard.Op{Action: action, Effect: guard.Manages}); got.Allow || !slices.Equal(got.Reasons, []string{"kernel_installation"}) {
			t.Errorf("an administrator of another tenant does %s: %+v, want kernel_installation", action, got)
		}
	}
	w.tenant = errNone
	if got := decide(t, d, ada, create); got.Allow {
		t.Errorf("a tenant that is not there: %+v", got)
	}
	sweep := estover.Caller{Tenant: "acme", Subject: estover.System("sessions"), Strength: estover.ByBound}
	if got := decide(t, d, sweep, guard.Op{Action: "session.end", Effect: guard.Manages}); !got.Allow {
		t.Errorf("a sweep in a disabled tenant: %+v", got)
	}
}
