package policy

import (
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/guard"
)

// An elevation asks for an action.
type elevation struct {
	action   string
	class    estover.Class
	life     time.Duration
	eligible bool
}

func (e elevation) Elevates() (action string, class estover.Class, life time.Duration, params any, eligible bool) {
	return e.action, e.class, e.life, nil, e.eligible
}

// What the starter bundle says to agents that ask for more, and to whom it sends
// them: as the kernel leaves it, and with what a fact can say of it.
func TestElevation(t *testing.T) {
	w := shop()
	w.resources["res_wiki"] = &Resource{ID: "res_wiki", Type: "http", Class: estover.Internal}
	d := deciderOf(t, w, Starter())
	ask := func(resource string, effect guard.Effect, e elevation) guard.Op {
		return guard.Op{Action: "access.elevate", Target: "resource:" + resource, Resource: resource, Session: "ses_sue", Effect: effect, Input: e}
	}
	const one = `[{"type":"approval","properties":{"expires_seconds":86400,"quorum":1,"roles":["admin","approver"]}}]`
	const two = `[{"type":"approval","properties":{"exclude_sponsor":true,"expires_seconds":86400,"quorum":2,"roles":["admin","approver"],"signed":true}}]`
	for name, c := range map[string]struct {
		caller      estover.Caller
		op          guard.Op
		reason      string // "" for allowed
		obligations string
	}{
		"harmless reading":             {sue, ask("res_wiki", guard.Reads, elevation{"page.read", estover.Internal, time.Hour, false}), "", one},
		"for too long":                 {sue, ask("res_wiki", guard.Reads, elevation{"page.read", estover.Internal, 2 * time.Hour, false}), "not_permitted", one},
		"of what is confidential":      {sue, ask("res_crm", guard.Reads, elevation{"customer.export", estover.Confidential, time.Hour, false}), "not_permitted", one},
		"what one is eligible for":     {sue, ask("res_crm", guard.Writes, elevation{"ticket.write", estover.Confidential, 9 * time.Hour, true}), "", one},
		"what cannot be taken back":    {sue, ask("res_crm", guard.Deletes, elevation{"customer.delete", estover.Confidential, time.Hour, true}), "not_permitted", two},
		"above the clearance":          {sue, ask("res_crm", guard.Reads, elevation{"customer.secrets", estover.Restricted, time.Hour, true}), "kernel_clearance", "null"},
		"what there is not":            {sue, ask("res_none", guard.Reads, elevation{"x", estover.Public, time.Hour, false}), "kernel_resource_unknown", "null"},
		"for another purpose":          {sue, with(ask("res_wiki", guard.Reads, elevation{"page.read", estover.Internal, time.Hour, false}), "billing"), "not_permitted", one},
		"in a session that is over":    {over(sue), inSession(ask("res_wiki", guard.Reads, elevation{"page.read", estover.Internal, time.Hour, false}), "ses_over"), "kernel_session_ended", "null"},
		"that a hold is lifted":        {person(estover.Admin), guard.Op{Action: "access.elevate", Target: "hold:hld_1", Effect: guard.Manages, Input: elevation{"lift", estover.Restricted, 0, false}}, "not_permitted", one},
		"something of another kind":    {person(estover.Admin), guard.Op{Action: "access.elevate", Target: "x:1", Effect: guard.Manages, Input: elevation{"magic", estover.Restricted, 0, false}}, "not_permitted", two},
		"to ask, confined to a task":   {confinedTo(sue), guard.Op{Action: "access.request", Target: "agent:agt_sue", Effect: guard.Writes}, OutsideTask, "null"},
		"to ask for oneself":           {sue, guard.Op{Action: "access.request", Target: "agent:agt_sue", Effect: guard.Writes}, "", "null"},
		"to ask for somebody else":     {sue, guard.Op{Action: "access.request", Target: "agent:agt_bill", Effect: guard.Writes}, "not_permitted", "null"},
		"to decide, as an agent":       {sue, guard.Op{Action: "access.approve", Target: "request:apr_1"}, "not_permitted", "null"},
		"to decide, as a person":       {person(), guard.Op{Action: "access.approve", Target: "request:apr_1"}, "", "null"},
		"to say that somebody is away": {person(), guard.Op{Action: "absence.put", Target: "user:usr_bob"}, "not_permitted", "null"},
		"to say that one is away":      {person(), guard.Op{Action: "absence.put", Target: "user:usr_ann"}, "", "null"},
	} {
		t.Run(name, func(t *testing.T) {
			got := decide(t, d, c.caller, c.op)
			reason := ""
			if !got.Allow {
				reason = got.Reasons[0]
			}
			if text := jsonOf(t, got.Obligations); reason != c.reason || text != c.obligations {
				t.Errorf("allowed %v for %v with %s, want %q with %s", got.Allow, got.Reasons, text, c.reason, c.obligations)
			}
		})
	}
	// A tenant's denial is for good: no obligation says who could approve it.
	b := append(Starter(), File{Path: "never.rego", Text: `# METADATA
# title: Never
# description: What nobody approves.
package tenant.never

# METADATA
# title: No exports
# description: Nobody exports customers.
# custom:
#   next: Ask for single customers.
deny contains "no_exports" if {
	input.action.name == "customer.export"
	input.op == "access.elevate"
}
`})
	got := decide(t, deciderOf(t, w, b), sue, ask("res_crm", guard.Reads, elevation{"customer.export", estover.Confidential, time.Hour, false}))
	if got.Allow || got.Reasons[0] != "no_exports" || got.Obligations != nil {
		t.Errorf("denied it is %+v", got)
	}
}

func with(op guard.Op, purpose string) guard.Op      { op.Purpose = purpose; return op }
func inSession(op guard.Op, session string) guard.Op { op.Session = session; return op }
func over(c estover.Caller) estover.Caller           { c.Session = "ses_over"; return c }
func confinedTo(c estover.Caller) estover.Caller {
	c.Tasks = []estover.Task{{Locations: []string{"https://crm"}, Actions: []string{"customer.read"}}}
	return c
}

func TestMergeApproval(t *testing.T) {
	for name, test := range map[string]struct{ in, want string }{
		"what is hardest to meet": {
			`[{"type":"approval","quorum":1,"roles":["admin","approver"],"expires_seconds":600,"escalate_seconds":60},
			  {"type":"approval","quorum":2,"roles":["approver","sponsor"],"signed":true,"expires_seconds":900},
			  {"type":"approval","exclude_sponsor":true,"signed":false,"escalate_seconds":30}]`,
			`[{"type":"approval","properties":{"escalate_seconds":30,"exclude_sponsor":true,"expires_seconds":600,"quorum":2,"roles":["approver"],"signed":true}}]`,
		},
		"others later, where one rule knows of none": {
			`[{"type":"approval","roles":["admin"]},{"type":"approval","roles":["admin","approver"],"escalate_seconds":60,"escalate_roles":["admin","operator"]}]`,
			`[{"type":"approval","properties":{"escalate_roles":["admin"],"escalate_seconds":60,"roles":["admin"]}}]`,
		},
		"others later, where the other rule says nothing of who": {
			`[{"type":"approval","signed":true},{"type":"approval","roles":["admin"],"escalate_seconds":60,"escalate_roles":["operator"]}]`,
			`[{"type":"approval","properties":{"escalate_roles":["operator"],"escalate_seconds":60,"roles":["admin"],"signed":true}}]`,
		},
		"roles that have nothing in common": {
			`[{"type":"approval","roles":["admin"]},{"type":"approval","roles":["sponsor"]}]`,
			`[{"type":"approval","properties":{"roles":[]}}]`,
		},
	} {
		got, err := Merge(obligationsOf(t, test.in))
		if err != nil {
			t.Fatal(err)
		}
		if text := jsonOf(t, got); text != test.want {
			t.Errorf("%s: merged to\n%s\nwant\n%s", name, text, test.want)
		}
	}
	for _, wrong := range []string{`[{"type":"approval","quorum":-1}]`, `[{"type":"approval","signed":"yes"}]`, `[{"type":"approval","roles":["king"]}]`, `[{"type":"approval","roles":[]}]`} {
		if got, err := Merge(obligationsOf(t, wrong)); err == nil {
			t.Errorf("%s became %+v", wrong, got)
		}
	}
}
