# METADATA
# title: Elevation
# description: >-
#   What an agent gets at once when it asks for more than it has, and who decides about the rest.
#   What no rule here permits goes to people; what a rule denies, nobody can approve.
package tenant.elevation

# METADATA
# title: Harmless reading is approved at once
# description: Looking at what is public or internal, for a declared purpose and an hour at most.
permit contains "harmless_read" if {
	input.op == "access.elevate"
	input.facts.purpose_ok == true
	input.facts.special_category == false
	input.facts.duration == "short"
	input.action.effect in {"read", "search"}
	input.resource.class in {"public", "internal"}
}

# METADATA
# title: What an agent is eligible for is activated
# description: Somebody has given it that beforehand, to be used when it is needed.
permit contains "eligible" if {
	input.op == "access.elevate"
	input.facts.eligible == true
	input.facts.purpose_ok == true
	input.action.effect in {"read", "search", "write", "send", "execute"}
	input.resource.class in {"public", "internal", "confidential"}
}

# METADATA
# title: One person decides
oblige contains {"type": "approval", "quorum": 1, "roles": ["admin", "approver"], "expires_seconds": 86400} if {
	input.op == "access.elevate"
}

# METADATA
# title: Two decide about restricted data, neither of them the sponsor, and sign it
oblige contains {"type": "approval", "quorum": 2, "signed": true, "exclude_sponsor": true} if {
	input.resource.class == "restricted"
	input.op == "access.elevate"
	input.action.name != "lift"
	input.action.name != "restore"
}

# METADATA
# title: Two decide about what cannot be taken back, neither of them the sponsor, and sign it
oblige contains {"type": "approval", "quorum": 2, "signed": true, "exclude_sponsor": true} if {
	input.op == "access.elevate"
	input.action.effect in {"pay", "delete", "admin"}
	input.action.name != "lift"
	input.action.name != "restore"
}
