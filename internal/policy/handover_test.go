package policy

import (
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/guard"
)

// handed is the input of a token that is handed on.
type handed struct {
	from estover.Subject
	how  string
}

func (h handed) Handover() (estover.Subject, string) { return h.from, h.how }

// A token is handed on to whom it is meant for, and along the edges that the
// organisation has written down.
func TestHandover(t *testing.T) {
	// An agent of the blueprint billing takes up a token of Sue's.
	w := shop()
	w.agents["agt_bill"] = &Agent{ID: "agt_bill", Blueprint: "billing", Clearance: estover.Internal, Purposes: []string{"support"}, Sponsored: true}
	w.grants["agt_bill"] = NewGrants([]Grant{{ID: "gra_9", Resource: "res_crm", Actions: []string{"customer.read"}}})
	bill := sue
	bill.Client, bill.Actors = "agt_bill", []estover.Subject{estover.Agent("agt_bill")}
	ask := func(from, how string) guard.Op {
		return guard.Op{
			Action: "token.issue", Target: "agent:agt_sue", Effect: guard.Manages, Resource: "res_crm", Session: "ses_sue", Purpose: "support",
			Input: handed{estover.Subject(from), how},
		}
	}
	edges := func(pairs string) Bundle {
		b := Starter()
		for i, f := range b {
			if f.Path == "delegation.rego" {
				b[i].Text = strings.Replace(f.Text, "edges := set()", "edges := {"+pairs+"}", 1)
				if b[i].Text == f.Text {
					t.Fatal("the starter bundle has no place for edges")
				}
			}
		}
		return b
	}
	without := Bundle{}
	for _, f := range Starter() {
		if !strings.HasPrefix(f.Path, "delegation") {
			without = append(without, f)
		}
	}
	permissive := append(Bundle{{"a.rego", head + "permit contains \"all\" if input.caller.kind == \"agent\"\n"}}, without...)
	for _, c := range []struct {
		what   string
		bundle Bundle
		caller estover.Caller
		op     guard.Op
		reason string // "" is allowed
	}{
		{"its own", Starter(), bill, ask("agent:agt_bill", "own"), ""},
		{"meant for it", Starter(), bill, ask("agent:agt_sue", "audience"), ""},
		{"another's", Starter(), bill, ask("agent:agt_sue", "edge"), "no_edge"},
		{"another's, in a word that nobody knows", Starter(), bill, ask("agent:agt_sue", "stolen"), "no_edge"},
		{"another's, where nothing is said of delegation", without, bill, ask("agent:agt_sue", "edge"), "no_edge"},
		{"another's, where everything is permitted", permissive, bill, ask("agent:agt_sue", "edge"), "no_edge"},
		{"along an edge", edges(`["support", "billing"]`), bill, ask("agent:agt_sue", "edge"), ""},
		{"against an edge", edges(`["billing", "support"]`), bill, ask("agent:agt_sue", "edge"), "no_edge"},
		{"along an edge, of an agent that there is not", edges(`["support", "billing"]`), bill, ask("agent:agt_none", "edge"), "kernel_agent_unknown"},
		{"of another session, handed on by nobody", Starter(), bill, ask("", ""), "not_own"},
		{"its own token, bound to another key", Starter(), sue, ask("agent:agt_sue", "edge"), "no_edge"},
	} {
		got := decide(t, deciderOf(t, w, c.bundle), c.caller, c.op)
		if got.Allow != (c.reason == "") || !got.Allow && got.Reasons[0] != c.reason {
			t.Errorf("%s: %+v, want %q", c.what, got, c.reason)
		}
	}
	// The agent that takes it up needs a grant, and the purpose.
	delete(w.grants, "agt_bill")
	if got := decide(t, deciderOf(t, w, Starter()), bill, ask("agent:agt_sue", "audience")); got.Allow || got.Reasons[0] != "not_granted" {
		t.Errorf("without a grant: %+v, want not_granted", got)
	}
	w.agents["agt_bill"].Purposes = []string{"billing"}
	if got := decide(t, deciderOf(t, w, Starter()), bill, ask("agent:agt_sue", "audience")); got.Allow {
		t.Errorf("for a purpose that it has not declared: %+v", got)
	}
}

// signingIn is the input of a token that is for learning who somebody is.
type signingIn bool

func (s signingIn) Identifies() bool { return bool(s) }

// What an agent learns of a person rests on what that person agreed to, and on
// no grant; without a person it rests on nothing.
func TestIdentityNeedsNoGrant(t *testing.T) {
	w := shop()
	delete(w.grants, "agt_sue")
	forSomebody := sue
	forSomebody.Subject, forSomebody.Actors = estover.User("usr_ann"), []estover.Subject{estover.Agent("agt_sue")}
	for _, c := range []struct {
		what   string
		caller estover.Caller
		input  any
		reason string // "" is allowed
	}{
		{"for a person", forSomebody, signingIn(true), ""},
		{"for a person, and for more", forSomebody, signingIn(false), "not_granted"},
		{"for a person, as anything else", forSomebody, nil, "not_granted"},
		{"for nobody", sue, signingIn(true), "not_granted"},
	} {
		d := decide(t, deciderOf(t, w, Starter()), c.caller, guard.Op{
			Action: "token.issue", Target: "agent:agt_sue", Effect: guard.Manages, Session: "ses_sue", Purpose: "support", Input: c.input,
		})
		if d.Allow != (c.reason == "") || !d.Allow && d.Reasons[0] != c.reason {
			t.Errorf("%s: allowed: %v, %v; want the reason %q", c.what, d.Allow, d.Reasons, c.reason)
		}
	}
}

// chaining is the input of an assertion for the server of somebody else.
type chaining struct {
	issuer string
	scopes []string
}

func (chaining) Identifies() bool                { return true }
func (c chaining) Elsewhere() (string, []string) { return c.issuer, c.scopes }

// A rule sees for which server of somebody else an assertion is asked, and for
// what there.
func TestAssertionsForOtherServers(t *testing.T) {
	w := shop()
	forSomebody := sue
	forSomebody.Subject, forSomebody.Actors = estover.User("usr_ann"), []estover.Subject{estover.Agent("agt_sue")}
	rules := append(Bundle{{"a.rego", head + `# METADATA
# title: Not there
# description: Nobody administers chat by an agent.
deny contains "not_there" if {
	input.resource.type == "authorization_server"
	input.resource.id == "https://chat.example"
	"chat.admin" in input.params.scope
}
`}}, Starter()...)
	for _, c := range []struct {
		what    string
		input   any
		allowed bool
	}{
		{"what a rule denies", chaining{"https://chat.example", []string{"chat.read", "chat.admin"}}, false},
		{"another scope", chaining{"https://chat.example", []string{"chat.read"}}, true},
		{"another server", chaining{"https://other.example", []string{"chat.admin"}}, true},
		{"no scope", chaining{"https://chat.example", nil}, true},
	} {
		d := decide(t, deciderOf(t, w, rules), forSomebody, guard.Op{
			Action: "token.issue", Target: "agent:agt_sue", Effect: guard.Manages, Session: "ses_sue", Purpose: "support", Input: c.input,
		})
		if d.Allow != c.allowed || !d.Allow && d.Reasons[0] != "not_there" {
			t.Errorf("%s: allowed: %v, %v", c.what, d.Allow, d.Reasons)
		}
	}
}
