# METADATA
# title: Access of agents
# description: >-
#   Agents do what they were granted, for the purpose of their session, up to
#   their clearance. Start here: copy a rule, give it a code of its own, and
#   write a test for it beside the others.
package tenant.access

# METADATA
# title: Granted, and for the purpose it was granted for
permit contains "granted_for_purpose" if {
	input.op == "gateway.call"
	input.facts.entitled == true
	input.facts.purpose_ok == true
	input.resource.id != ""
}

# METADATA
# title: The gateway may use a secret for a granted call
permit contains "secret_for_granted_call" if {
	input.op == "secret.use"
	input.facts.entitled == true
	input.facts.purpose_ok == true
}

# METADATA
# title: Unknown destination
# description: This host is not among the resources that agents may reach.
# custom:
#   next: Have an operator register the host as a resource and grant the agent an action on it.
deny contains "unknown_destination" if {
	input.op == "gateway.call"
	input.resource.type == "unknown"
}

# METADATA
# title: Unknown action
# description: The resource has no action for this method and path.
# custom:
#   next: Call a documented path, or have an operator add the action to the resource.
deny contains "unknown_action" if {
	input.op == "gateway.call"
	input.resource.type != "unknown"
	input.action.name == ""
}
