package tenant.delegation_test

import data.tenant.delegation

# handed is a token of a planner that a researcher takes up.
handed := {
	"action": {"effect": "admin", "name": "token.issue"},
	"agent": {
		"blueprint": "researcher", "clearance": "confidential", "environment": "production",
		"id": "agt_1", "purposes": ["support"], "team": "service",
	},
	"caller": {"kind": "agent", "roles": {"admin": false, "auditor": false, "operator": false}},
	"delegator": {
		"blueprint": "planner", "clearance": "confidential", "environment": "production",
		"id": "agt_2", "purposes": ["support"], "team": "service",
	},
	"facts": {"delegated": true, "entitled": true, "handover": "edge", "own": false, "purpose_ok": true},
	"op": "token.issue",
	"purpose": "support",
	"resource": {"class": "internal", "id": "res_crm", "tags": [], "type": "http"},
	"session": {"id": "ses_1"},
}

test_no_edge_until_it_is_written if {
	strange := object.union(handed, {"agent": {"blueprint": "stranger"}})
	not delegation.edge with input as strange
	not data.estover.allow with input as strange
}

test_an_edge_that_is_written if {
	delegation.edge with input as handed with delegation.edges as {["planner", "researcher"]}
	data.estover.allow with input as handed with delegation.edges as {["planner", "researcher"]}
}

test_an_edge_leads_one_way if {
	not delegation.edge with input as handed with delegation.edges as {["researcher", "planner"]}
}
