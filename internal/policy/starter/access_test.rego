package tenant.access_test

import data.tenant.access

# call is what a granted call looks like; ask is the same with other words.
call := {
	"action": {"effect": "read", "name": "customer.read"},
	"agent": {
		"blueprint": "support", "clearance": "confidential", "environment": "production",
		"id": "agt_1", "purposes": ["support"], "team": "service",
	},
	"caller": {"kind": "agent", "roles": {"admin": false, "auditor": false, "operator": false}},
	"facts": {
		"agent_tier": "low", "auth_strength": "key", "delegated": false, "destination": "internal",
		"entitled": true, "own": false, "purpose_ok": true,
	},
	"op": "gateway.call",
	"purpose": "support",
	"resource": {"class": "internal", "id": "res_crm", "tags": [], "type": "http"},
	"session": {"id": "ses_1"},
}

ask(change) := object.union(call, change)

test_granted_for_purpose if {
	access.permit == {"granted_for_purpose"} with input as call
	access.deny == set() with input as call
	data.estover.allow with input as call
}

test_not_without_grant if {
	access.permit == set() with input as ask({"facts": {"entitled": false}})
	not data.estover.allow with input as ask({"facts": {"entitled": false}})
}

test_not_for_another_purpose if {
	access.permit == set() with input as ask({"facts": {"purpose_ok": false}})
	not data.estover.allow with input as ask({"facts": {"purpose_ok": false}})
}

test_secret_for_granted_call if {
	access.permit == {"secret_for_granted_call"} with input as ask({"op": "secret.use"})
	access.permit == set() with input as ask({"op": "secret.use", "facts": {"entitled": false}})
}

test_unknown_destination if {
	elsewhere := ask({
		"action": {"effect": "write", "name": ""},
		"facts": {"destination": "public", "entitled": false, "purpose_ok": false},
		"resource": {"class": "public", "id": "", "type": "unknown"},
	})
	access.deny == {"unknown_destination"} with input as elsewhere
	not data.estover.allow with input as elsewhere
}

test_unknown_action if {
	access.deny == {"unknown_action"} with input as ask({"action": {"effect": "read", "name": ""}})
	not data.estover.allow with input as ask({"action": {"effect": "read", "name": ""}})
}
