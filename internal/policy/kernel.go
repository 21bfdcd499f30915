package policy

import (
	"cmp"
	"strings"

	"estover.dev"
)

// errKernel is a refusal of the kernel, told by its code.
type errKernel string

// Error is the code.
func (e errKernel) Error() string { return string(e) }

// maxChain is how many actors may stand between the subject and who acts.
const maxChain = 4

// kernelReasons are the words of the kernel's refusals. No bundle, grant or
// approval overrides one.
var kernelReasons = func() map[string]Reason {
	all := map[string]Reason{}
	for _, r := range []Reason{
		{Code: "kernel_subject", Title: "Nobody", Sentence: "The caller is neither an agent nor a person.", Next: "Authenticate."},
		{Code: "kernel_tenant", Title: "Organisation not active", Sentence: "The organisation is disabled, or there is no such organisation.", Next: "Ask whoever runs the server."},
		{Code: "kernel_installation", Title: "For who runs the server", Sentence: "This concerns all organisations of the server, and is done by the default one's administrators alone.", Next: "Ask whoever runs the server."},
		{Code: "kernel_agent_unknown", Title: "No such agent", Sentence: "There is no such agent.", Next: "Ask an operator whether the agent was removed."},
		{Code: "kernel_agent_inactive", Title: "Agent not active", Sentence: "The agent is not active.", Next: "Have its sponsor or an operator activate it."},
		{Code: "kernel_agent_held", Title: "Agent held", Sentence: "The agent is on hold.", Next: "Stop, and ask its sponsor or an operator."},
		{Code: "kernel_agent_expired", Title: "Agent expired", Sentence: "The agent's time is over.", Next: "Have its sponsor extend it."},
		{Code: "kernel_sponsor", Title: "No sponsor", Sentence: "Nobody answers for this agent any more.", Next: "Have an operator name another sponsor."},
		{Code: "kernel_token", Title: "Token ended", Sentence: "The token is no longer good.", Next: "Get another token."},
		{Code: "kernel_session_missing", Title: "No session", Sentence: "This is done within a session only.", Next: "Open a session with a purpose (estover run --purpose …)."},
		{Code: "kernel_session_unknown", Title: "No such session", Sentence: "There is no such session.", Next: "Open a session."},
		{Code: "kernel_session_ended", Title: "Session ended", Sentence: "The session has ended.", Next: "Open another session if the task goes on."},
		{Code: "kernel_session_expired", Title: "Session expired", Sentence: "The session's time is over.", Next: "Open another session if the task goes on."},
		{Code: "kernel_session_foreign", Title: "Somebody else's session", Sentence: "The session is another agent's.", Next: "Use a session of your own."},
		{Code: NotInToken, Title: "Not in the token", Sentence: "The access token was not issued for this action.", Next: "Get a token whose scope names the action."},
		{Code: OutsideTask, Title: "Outside the task", Sentence: "The access token is confined to tasks, and this belongs to none of them.", Next: "Get a token whose authorization details name it, or none."},
		{Code: "kernel_chain_loop", Title: "Loop of delegation", Sentence: "The same actor stands twice in the chain of delegation.", Next: "Delegate to somebody who is not yet in it."},
		{Code: "kernel_chain_depth", Title: "Chain too long", Sentence: "The chain of delegation is too long.", Next: "Let an agent nearer to the root do it."},
		{Code: "kernel_resource_unknown", Title: "No such resource", Sentence: "There is no such resource.", Next: "Name a resource of the catalogue."},
		{Code: "kernel_resource_held", Title: "Resource held", Sentence: "The resource is on hold.", Next: "Wait until the hold is lifted."},
		{Code: "kernel_segment", Title: "Outside the segment", Sentence: "The resource is outside the agent's segment.", Next: "Ask an operator whether the agent belongs there."},
		{Code: "kernel_clearance", Title: "Above the clearance", Sentence: "The data is more sensitive than the agent is cleared for.", Next: "Use less sensitive data, or have the agent's sponsor raise its clearance."},
		{Code: "kernel_budget", Title: "Budget used up", Sentence: "The budget of the grant is used up.", Next: "Ask for another grant, or have an operator give one with a larger budget."},
		{Code: "kernel_facts", Title: "Facts missing", Sentence: "What the decision rests on cannot be read, so the answer is no.", Next: "Try again, and tell your administrator if it goes on."},
	} {
		r.Package, r.Set = "kernel", "deny"
		all[r.Code] = r
	}
	return all
}()

// kernel is the code of the first invariant that does not hold, or "". They are what
// must hold whatever a policy says, in the order in which they are told: who acts,
// then the task, then what is reached. Each answers with a code, or "" if it holds.
func kernel(k *known) string {
	return cmp.Or(
		installation(k), chain(k), life(k), containment(k), task(k), scope(k), confined(k), resourceHeld(k), segment(k), clearance(k), budget(k),
	)
}

// installation: the register of tenants is for those who run the server, whatever a
// tenant's own policy permits.
func installation(k *known) string {
	if strings.HasPrefix(k.Op, "tenant.") && k.caller.Tenant != estover.DefaultTenant {
		return "kernel_installation"
	}
	return ""
}

// chain: delegation has no loop and is not too deep.
func chain(k *known) string {
	actors := k.caller.Actors
	if len(actors) > maxChain {
		return "kernel_chain_depth"
	}
	for i, a := range actors {
		if a == k.caller.Subject {
			return "kernel_chain_loop"
		}
		for _, b := range actors[:i] {
			if a == b {
				return "kernel_chain_loop"
			}
		}
	}
	return ""
}

// life: the agent is active, within its time, and somebody answers for it.
func life(k *known) string {
	switch a := k.agent; {
	case a == nil:
		return ""
	case a.Pending:
		return "kernel_agent_inactive"
	case !a.Expires.IsZero() && !k.now.Before(a.Expires):
		return "kernel_agent_expired"
	case !a.Sponsored:
		return "kernel_sponsor"
	}
	return ""
}

// containment: nothing holds the agent, its blueprint or all agents.
func containment(k *known) string {
	if k.agent != nil && (len(k.agent.Holds) > 0 || len(k.holds) > 0) {
		return "kernel_agent_held"
	}
	return ""
}

// leaves are the operations that only take away, or look back: they may be
// done in a session that is over.
var leaves = []string{"session.end", "session.heartbeat", "session.read", "token.revoke"}

// task: an agent works within a live session of its own.
func task(k *known) string {
	if k.agent == nil {
		return ""
	}
	switch t := &k.task; {
	case !k.tasked && !k.foreseen && (contains(reaches, k.Op) || k.Op == "secret.use"):
		return "kernel_session_missing"
	case !k.tasked:
		return ""
	case t.Agent != k.agent.ID && !k.inChain(t.Agent):
		return "kernel_session_foreign"
	case contains(leaves, k.Op):
	case t.Ended:
		return "kernel_session_ended"
	case !t.Expires.IsZero() && !k.now.Before(t.Expires):
		return "kernel_session_expired"
	}
	return ""
}

// inChain reports whether an agent stands in the caller's chain: work that is
// handed on belongs to the session in which it began.
func (k *known) inChain(agent string) bool {
	if k.caller.Subject == estover.Agent(agent) {
		return true
	}
	for _, a := range k.caller.Actors {
		if a == estover.Agent(agent) {
			return true
		}
	}
	return false
}

// NotInToken is the reason of a call that the agent is granted, and that its
// access token was not issued for.
const NotInToken = "kernel_scope"

// scope: a token is good for the actions that it was issued for, and not for
// all that its agent is granted. A caller without a token, by a session's
// certificate, has no such bound. What is not granted at all is refused for
// that, by the baseline.
func scope(k *known) string {
	bound := k.Op == "gateway.call" || contains(handsOut, k.Op) && len(k.caller.Scopes) > 0 // one for Estover itself names no actions
	if bound && k.caller.Grant != "" && k.Facts.Entitled && k.Action != "" && !contains(k.caller.Scopes, k.Action) {
		return NotInToken
	}
	return ""
}

// OutsideTask is the reason of a call that the agent is granted, and that belongs
// to none of the tasks to which its access token is confined.
const OutsideTask = "kernel_task"

// confined: a token that is confined to tasks is good for one of them at a time,
// with all that the task says of the call: where, what, on what and what for. The
// secret of a resource is used along with a call that was decided on by itself. It
// opens no session, whose certificate would be bound by no task, and asks for no
// access, which would be bound by none either.
func confined(k *known) string {
	tasks := k.caller.Tasks
	switch {
	case tasks == nil:
		return ""
	case k.Op == "session.open", k.Op == "access.request":
		return OutsideTask
	case !contains(reaches, k.Op) && k.Op != "secret.use":
		return ""
	}
	along := k.Op == "secret.use" && k.Action == k.Op
	params, _ := k.Params.(map[string]string)
	for i := range tasks {
		t := &tasks[i]
		if contains(t.Locations, k.at) && k.at != "" && (t.Purpose == "" || t.Purpose == k.Purpose) &&
			(along || contains(t.Actions, k.Action) && on(t.Parameters, params)) {
			return ""
		}
	}
	if k.needsGrant && !k.Facts.Entitled { // what is not granted at all is refused for that
		return ""
	}
	return OutsideTask
}

// on reports whether the parameters of a call are those that a task or a grant
// names. One that the action has not is none of them.
func on(bound map[string][]string, params map[string]string) bool {
	for name, values := range bound {
		if v, there := params[name]; !there || !contains(values, v) {
			return false
		}
	}
	return true
}

// resourceHeld: nothing holds what is reached.
func resourceHeld(k *known) string {
	if k.agent != nil && len(k.Resource.Holds) > 0 {
		return "kernel_resource_held"
	}
	return ""
}

// segment: the agent reaches its own segments only.
func segment(k *known) string {
	if k.agent != nil && !k.agent.member(k.Resource.Segment) {
		return "kernel_segment"
	}
	return ""
}

// reaches are the operations by which an agent gets at data.
var reaches = append([]string{"gateway.call", "secret.read"}, handsOut...)

// clearance: the data is not more sensitive than the agent is cleared for. Nobody
// can approve that either.
func clearance(k *known) string {
	if k.agent != nil && (contains(reaches, k.Op) || k.Op == elevate) && !k.agent.Clearance.Covers(k.Class) {
		return "kernel_clearance"
	}
	return ""
}

// budget: there is something left of the budgets of the grant that covers it.
func budget(k *known) string {
	if k.Facts.Budget == "exceeded" && contains(reaches, k.Op) {
		return "kernel_budget"
	}
	return ""
}
