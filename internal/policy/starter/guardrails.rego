# METADATA
# title: Guardrails
# description: >-
#   What no grant makes right: sensitive data to public places, restricted data
#   for an identity that can be copied, destruction by risky agents.
package tenant.guardrails

# METADATA
# title: Sensitive data stays inside
# description: Data of this class does not go to a public destination.
# custom:
#   next: Send it to an internal system or a partner, or leave the sensitive parts out.
deny contains "sensitive_to_public" if {
	input.facts.destination == "public"
	input.action.effect in {"send", "write", "pay"}
	input.resource.class in {"confidential", "restricted"}
}

# METADATA
# title: Restricted data needs a key
# description: Restricted data is not for an agent that proved who it is by something that can be copied.
# custom:
#   next: Give the agent a key (private_key_jwt) and get a token with it.
deny contains "restricted_needs_key" if {
	input.resource.class == "restricted"
	input.facts.auth_strength == "secret"
	input.op == "gateway.call"
}

# METADATA
# title: Risky agents do not destroy
# description: An agent of the highest risk tier does not delete, pay or administer.
# custom:
#   next: Have a person do it, or an agent of a lower tier.
deny contains "risky_agent_destroys" if {
	input.facts.agent_tier == "high"
	input.action.effect in {"delete", "pay", "admin"}
	input.op == "gateway.call"
}

# METADATA
# title: Borrowed authority does not administer
# description: An agent that acts for another does not administer the resource.
# custom:
#   next: Let the agent that holds the grant do it itself.
deny contains "delegate_administers" if {
	input.facts.delegated == true
	input.action.effect == "admin"
	input.op == "gateway.call"
}
