package estover.base_test

import data.estover.base

# agent is what a granted call of an agent looks like; with_ is the same with
# other words in it.
agent := {
	"action": {"effect": "read", "name": "customer.read"},
	"agent": {
		"blueprint": "support", "clearance": "confidential", "environment": "production",
		"id": "agt_1", "purposes": ["support"], "team": "service",
	},
	"caller": {"kind": "agent", "roles": {"admin": false, "auditor": false, "operator": false}},
	"facts": {"entitled": true, "handover": "none", "own": true, "purpose_ok": true},
	"op": "gateway.call",
	"purpose": "support",
	"resource": {"class": "internal", "id": "res_crm", "tags": [], "type": "http"},
	"session": {"id": "ses_1"},
}

person(role) := {
	"caller": {"kind": "user", "roles": object.union({"admin": false, "auditor": false, "operator": false}, {role: true})},
	"facts": {"entitled": false, "own": false, "purpose_ok": false},
}

ask(change) := object.union(agent, change)

test_system_works if {
	base.permit == {"system_works"} with input as ask({"caller": {"kind": "system"}, "op": "session.sweep"})
}

test_admin_manages[op] if {
	some op in ["agent.create", "policy.activate", "secret.create", "person.create", "a.thing.of.tomorrow"]
	base.permit == {"admin_manages"} with input as ask(object.union(person("admin"), {"op": op}))
	base.deny == set() with input as ask(object.union(person("admin"), {"op": op}))
}

test_admin_does_not_act_as_agent[op] if {
	some op in ["gateway.call", "lease.create", "lease.renew", "secret.use", "token.issue"]
	base.permit == set() with input as ask(object.union(person("admin"), {"op": op}))
}

test_admin_leases_for_a_purpose_only[op] if {
	some op in ["lease.create", "lease.renew"]
	stated := ask(object.union(person("admin"), {"op": op, "facts": {"purpose_ok": true}}))
	base.permit == {"admin_leases"} with input as stated
	base.deny == set() with input as stated
}

test_tokens_of_the_door_are_ones_own[op] if {
	some op in ["cubbyhole.list", "cubbyhole.read", "cubbyhole.remove", "cubbyhole.write", "ticket.create", "ticket.login", "ticket.read", "ticket.renew", "ticket.revoke", "ticket.wrap"]
	base.permit == {"own_tickets"} with input as ask({"op": op})
	base.permit == {"own_tickets"} with input as ask(object.union(person("approver"), {"op": op, "facts": {"own": true}}))
	base.permit == set() with input as ask({"op": op, "facts": {"own": false}})
}

test_operator_looks_after_the_door[op] if {
	some op in ["secret_id.create", "secret_id.destroy", "ticket.list", "ticket.read", "ticket.revoke", "ticket.tidy", "ticket_mount.set", "ticket_role.put", "ticket_role.remove"]
	base.permit == {"operator_tickets"} with input as ask(object.union(person("operator"), {"op": op}))
	base.permit == set() with input as ask({"op": op, "facts": {"own": false}})
}

test_operator_is_nobody_else_at_the_door[op] if {
	some op in ["ticket.create", "ticket.login", "ticket.wrap", "cubbyhole.read"]
	base.permit == set() with input as ask(object.union(person("operator"), {"op": op}))
}

test_auditor_sees_the_door[op] if {
	some op in ["secret_id.list", "ticket.list", "ticket.read", "ticket_mount.read", "ticket_role.list", "ticket_role.read"]
	base.permit == {"auditor_sees_tickets"} with input as ask(object.union(person("auditor"), {"op": op}))
	base.permit == set() with input as ask(object.union(person("auditor"), {"op": "ticket.revoke"}))
}

test_agent_leases_what_it_is_granted[op] if {
	some op in ["lease.create", "lease.renew"]
	base.permit == {"agent_leases"} with input as ask({"op": op})
	base.deny == set() with input as ask({"op": op})
	base.permit == set() with input as ask({"op": op, "facts": {"entitled": false}})
	base.permit == set() with input as ask({"op": op, "facts": {"purpose_ok": false}})
}

test_agent_gives_back_its_own_leases_only[op] if {
	some op in ["lease.list", "lease.read", "lease.revoke"]
	base.permit == {"own_leases"} with input as ask({"op": op})
	base.permit == set() with input as ask({"op": op, "facts": {"own": false}})
}

test_operator_looks_after_leases[op] if {
	some op in ["lease.list", "lease.read", "lease.revoke", "lease_role.put", "lease_role.remove", "target.check", "target.create", "target.reconcile", "target.remove", "target.update"]
	base.permit == {"operator_leases"} with input as ask(object.union(person("operator"), {"op": op}))
}

test_nobody_else_declares_leases_ended[role] if {
	some role in ["operator", "auditor", "approver"]
	base.permit == set() with input as ask(object.union(person(role), {"op": "lease.declare"}))
}

test_operator_rotates[op] if {
	some op in ["emergency_rotation.list", "emergency_rotation.read", "emergency_rotation.run", "rotation.clear", "rotation.list", "rotation.read", "rotation.remove", "rotation.run", "rotation.schedule"]
	base.permit == {"operator_rotates"} with input as ask(object.union(person("operator"), {"op": op}))
}

test_operator_ends_no_version_in_use[op] if {
	some op in ["emergency_rotation.settle", "rotation.force"]
	base.permit == set() with input as ask(object.union(person("operator"), {"op": op}))
}

test_operator_stores[op] if {
	some op in ["secret.link", "secret.unlink", "store.check", "store.list", "store.put", "store.read", "store.remove", "sync.accept", "sync.list", "sync.put", "sync.read", "sync.remove"]
	base.permit == {"operator_stores"} with input as ask(object.union(person("operator"), {"op": op}))
}

test_operator_overwrites_nothing_in_stores if {
	base.permit == set() with input as ask(object.union(person("operator"), {"op": "sync.overwrite"}))
}

test_auditor_sees_stores[op] if {
	some op in ["store.list", "store.read", "sync.list", "sync.read"]
	base.permit == {"auditor_sees_stores"} with input as ask(object.union(person("auditor"), {"op": op}))
}

test_auditor_changes_no_stores[op] if {
	some op in ["secret.link", "store.check", "store.put", "sync.accept", "sync.put"]
	base.permit == set() with input as ask(object.union(person("auditor"), {"op": op}))
}

test_agent_has_no_stores[op] if {
	some op in ["secret.link", "store.list", "store.put", "sync.list", "sync.overwrite", "sync.put"]
	base.permit == set() with input as ask({"op": op})
}

test_auditor_sees_rotations[op] if {
	some op in ["emergency_rotation.list", "emergency_rotation.read", "rotation.list", "rotation.read"]
	base.permit == {"auditor_sees_rotations"} with input as ask(object.union(person("auditor"), {"op": op}))
}

test_agent_rotates_nothing[op] if {
	some op in ["emergency_rotation.run", "rotation.force", "rotation.list", "rotation.read", "rotation.run", "rotation.schedule"]
	base.permit == set() with input as ask({"op": op})
}

test_auditor_sees_leases[op] if {
	some op in ["lease.list", "lease.read", "lease_role.list", "lease_role.read", "target.list", "target.read"]
	base.permit == {"auditor_sees_leases"} with input as ask(object.union(person("auditor"), {"op": op}))
	base.permit == set() with input as ask({"op": op, "facts": {"own": false}})
}

test_auditor_ends_no_leases[op] if {
	some op in ["lease.revoke", "lease_role.put", "target.check", "target.create"]
	base.permit == set() with input as ask(object.union(person("auditor"), {"op": op}))
}

test_admin_reads_secret_for_a_purpose_only if {
	without := ask(object.union(person("admin"), {"op": "secret.read"}))
	base.permit == set() with input as without
	base.deny == {"secret_needs_purpose"} with input as without
	stated := object.union(without, {"facts": {"purpose_ok": true}})
	base.permit == {"admin_reads_secret"} with input as stated
	base.deny == set() with input as stated
}

test_nobody_else_reads_secrets[role] if {
	some role in ["operator", "auditor"]
	asked := ask(object.union(person(role), {"op": "secret.read"}))
	base.permit == set() with input as asked
	base.deny == {"secret_needs_admin", "secret_needs_purpose"} with input as asked
}

test_mounts_and_policies_of_the_door_are_seen[role] if {
	some role in ["operator", "auditor"]
	some op in ["acl.list", "acl.read", "mount.list", "mount.read"]
	base.permit != set() with input as ask(object.union(person(role), {"op": op}))
	base.permit == set() with input as ask(object.union(person("approver"), {"op": op}))
}

test_auditor_sees_where_the_log_is_written_to[op] if {
	some op in ["audit_device.list", "audit_header.list"]
	base.permit == {"auditor_reads"} with input as ask(object.union(person("auditor"), {"op": op}))
	base.permit == set() with input as ask(object.union(person("operator"), {"op": op}))
}

test_mounts_are_found_by_everybody if {
	base.permit == {"mount_found"} with input as ask({"op": "mount.find", "facts": {"own": false}})
	base.permit == {"mount_found"} with input as ask(object.union(person("auditor"), {"op": "mount.find"}))
	base.permit == set() with input as ask({"op": "mount.enable", "facts": {"own": false}})
}

test_operator_operates if {
	base.permit == {"operator_operates"} with input as ask(object.union(person("operator"), {"op": "agent.hold"}))
	base.permit == {"operator_operates"} with input as ask(object.union(person("operator"), {"op": "agent.risk"}))
	base.permit == {"operator_operates"} with input as ask(object.union(person("operator"), {"op": "containment.run"}))
}

test_operator_leaves_policy_and_people_alone[op] if {
	some op in ["policy.push", "policy.activate", "policy.rollback", "person.create", "secret.destroy", "evidence.export"]
	base.permit == set() with input as ask(object.union(person("operator"), {"op": op}))
}

test_auditor_reads if {
	base.permit == {"auditor_reads"} with input as ask(object.union(person("auditor"), {"op": "evidence.export"}))
}

test_auditor_changes_nothing[op] if {
	some op in ["agent.create", "agent.hold", "agent.risk", "grant.create", "session.end", "policy.push", "secret.write"]
	base.permit == set() with input as ask(object.union(person("auditor"), {"op": op}))
}

test_own_key if {
	key := object.union(person("auditor"), {"op": "approver_key.create"})
	base.permit == {"own_things"} with input as ask(object.union(key, {"facts": {"own": true}}))
	base.permit == set() with input as ask(key)
}

test_agent_asks_for_itself[op] if {
	some op in ["access.cancel", "access.list", "access.read", "access.request"]
	base.permit == {"agent_asks"} with input as ask({"op": op})
	base.permit == set() with input as ask({"op": op, "facts": {"own": false}})
}

test_no_agent_decides[op] if {
	some op in ["access.approve", "access.deny"]
	base.permit == set() with input as ask({"op": op})
}

test_people_decide[op] if {
	some op in ["access.approve", "access.deny", "access.request"]
	base.permit == {"people_decide"} with input as ask(object.union(person("approver"), {"op": op}))
}

test_nobody_is_elevated_by_their_role if {
	base.permit == set() with input as ask(object.union(person("admin"), {"op": "access.elevate"}))
	base.permit == set() with input as ask({"op": "access.elevate"})
}

test_approver_looks if {
	base.permit == {"approver_looks"} with input as ask(object.union(person("approver"), {"op": "agent.read"}))
	base.permit == {"approver_looks"} with input as ask(object.union(person("approver"), {"op": "absence.list"}))
	base.permit == {"operator_sees_absences"} with input as ask(object.union(person("operator"), {"op": "absence.list"}))
	base.permit == set() with input as ask(object.union(person("approver"), {"op": "grant.create"}))
}

test_own_absence if {
	away := object.union(person("auditor"), {"op": "absence.put"})
	base.permit == {"own_absence"} with input as ask(object.union(away, {"facts": {"own": true}}))
	base.permit == set() with input as ask(away)
	base.permit == set() with input as ask({"op": "absence.put"})
}

test_decisions_are_asked_for[role] if {
	some role in ["operator", "auditor"]
	base.permit == {concat("_", [role, {"operator": "operates", "auditor": "reads"}[role]])} with input as ask(object.union(person(role), {"op": "access.evaluate"}))
}

test_agent_asks_about_itself if {
	base.permit == {"own_things"} with input as ask({"op": "access.evaluate"})
	base.permit == set() with input as ask({"op": "access.evaluate", "facts": {"own": false}})
}

test_sponsor_contains_own_agents if {
	contain := object.union(person("auditor"), {"op": "containment.run"})
	base.permit == {"sponsor_contains"} with input as ask(object.union(contain, {"facts": {"own": true}}))
	base.permit == set() with input as ask(contain)
	base.permit == set() with input as ask({"op": "containment.run"})
}

test_operator_rehearses[op] if {
	some op in ["access.restore", "drill.list", "drill.run"]
	"operator_rehearses" in base.permit with input as ask(object.union(person("operator"), {"op": op}))
	base.permit == set() with input as ask(object.union(person("auditor"), {"op": op}))
}

test_administrators_alone_lift_and_break_the_glass[op] if {
	some op in ["break_glass.create", "containment.lift", "tenant.contain"]
	base.permit == {"admin_manages"} with input as ask(object.union(person("admin"), {"op": op}))
	base.permit == set() with input as ask(object.union(person("operator"), {"op": op}))
	base.permit == set() with input as ask({"op": op})
}

test_own_things if {
	base.permit == {"own_things"} with input as ask({"op": "session.end"})
	base.permit == {"own_things"} with input as ask({"op": "session.renew"})
	base.permit == {"own_things"} with input as ask({"op": "session.heartbeat"})
	base.permit == set() with input as ask({"op": "session.renew", "facts": {"own": false}})
	base.permit == set() with input as ask({"op": "session.end", "facts": {"own": false}})
	base.permit == set() with input as ask({"op": "agent.update"})
}

test_client_manages_its_own_registration[op] if {
	some op in ["registration.end", "registration.read", "registration.update"]
	base.permit == {"own_things"} with input as ask({"op": op})
	base.permit == set() with input as ask({"op": op, "facts": {"own": false}})
}

test_administrators_alone_let_clients_register[op] if {
	some op in ["initial_token.create", "initial_token.end", "registration.set"]
	base.permit == {"admin_manages"} with input as ask(object.union(person("admin"), {"op": op}))
	base.permit == set() with input as ask(object.union(person("operator"), {"op": op}))
	base.permit == set() with input as ask({"op": op})
}

test_agent_opens_session_for_declared_purpose if {
	base.permit == {"agent_opens_session"} with input as ask({"op": "session.open"})
	base.deny == set() with input as ask({"op": "session.open"})
	base.deny == {"purpose_not_declared"} with input as ask({"op": "session.open", "facts": {"purpose_ok": false}})
}

test_agent_opens_no_session_for_another if {
	base.permit == set() with input as ask({"op": "session.open", "facts": {"own": false}})
	base.deny == {"not_own"} with input as ask({"op": "session.open", "facts": {"own": false}})
}

test_agent_gets_token_for_what_it_is_granted if {
	base.permit == {"agent_gets_token"} with input as ask({"op": "token.issue"})
	base.deny == {"not_granted"} with input as ask({"op": "token.issue", "facts": {"entitled": false}})
}

test_agent_introspects if {
	base.permit == {"agent_introspects"} with input as ask({"op": "token.introspect", "facts": {"own": false}})
}

test_agent_learns_of_the_person_it_acts_for if {
	base.permit == {"agent_identifies"} with input as ask({"op": "identity.read", "facts": {"own": false, "human_root": true}})
	base.permit == set() with input as ask({"op": "identity.read", "facts": {"human_root": false}})
}

test_agent_needs_grant_and_purpose if {
	base.deny == set() with input as agent
	base.deny == {"not_granted"} with input as ask({"facts": {"entitled": false}})
	base.deny == {"not_granted", "outside_parameters"} with input as ask({"facts": {"entitled": false, "args_in_scope": false}})
	base.deny == {"purpose_mismatch"} with input as ask({"facts": {"purpose_ok": false}})
	base.deny == {"not_granted", "purpose_mismatch"} with input as ask({"facts": {"entitled": false, "purpose_ok": false}})
}

test_baseline_permits_no_call if {
	base.permit == set() with input as agent
}

test_agent_does_not_manage[op] if {
	some op in ["agent.create", "agent.lift", "agent.risk", "grant.create", "policy.push", "secret.read", "secret.write", "resource.put"]
	base.permit == set() with input as ask({"op": op})
}

test_agent_is_certified_for_what_it_is_granted[op] if {
	some op in base.certifies
	base.permit == {"agent_is_certified"} with input as ask({"op": op})
	base.deny == set() with input as ask({"op": op})
	base.permit == set() with input as ask({"op": op, "facts": {"entitled": false}})
	base.deny == {"not_granted"} with input as ask({"op": op, "facts": {"entitled": false}})
	base.permit == set() with input as ask({"op": op, "facts": {"purpose_ok": false}})
	base.permit == {"admin_certifies"} with input as ask(object.union(person("admin"), {"op": op}))
	op in base.data_path
}

test_agent_takes_back_its_own_certificate[op] if {
	some op in ["pki.revoke", "ssh.revoke"]
	base.permit == {"own_certificates"} with input as ask({"op": op})
	base.permit == set() with input as ask({"op": op, "facts": {"own": false}})
}

test_operators_look_after_certificates[op] if {
	some op in ["pki.list", "pki.revoke", "pki.role", "ssh.sign", "transit.rotate"]
	base.permit == {"operator_certifies"} with input as ask(object.union(person("operator"), {"op": op}))
}

test_administrators_alone_have_authorities_and_open[op] if {
	some op in ["pki.authority", "pki.configure", "pki.key", "pki.sign_as_is", "transit.configure", "transit.decrypt", "transit.export", "transit.remove"]
	base.permit == set() with input as ask(object.union(person("operator"), {"op": op}))
	base.permit & {"admin_manages", "admin_certifies"} != set() with input as ask(object.union(person("admin"), {"op": op}))
}

test_auditors_see_certificates[op] if {
	some op in ["pki.list", "pki.read", "ssh.list", "transit.read"]
	base.permit == {"auditor_sees_certificates"} with input as ask(object.union(person("auditor"), {"op": op}))
}

test_reading_is_batched if {
	base.oblige == {
		{"type": "evidence", "mode": "batched"},
		{"type": "receipt"},
		{"type": "record", "level": "meta"},
	} with input as agent
}

test_changing_is_on_record_first[effect] if {
	some effect in ["write", "delete", "send", "execute", "admin", "pay"]
	base.oblige == {
		{"type": "evidence", "mode": "strict"},
		{"type": "receipt"},
		{"type": "record", "level": "full"},
		{"type": "record", "level": "meta"},
	} with input as ask({"action": {"effect": effect}})
}

test_sensitive_is_recorded_in_full[class] if {
	some class in ["confidential", "restricted"]
	{"type": "record", "level": "full"} in base.oblige with input as ask({"resource": {"class": class}})
}

test_management_obliges_nothing if {
	base.oblige == set() with input as ask({"op": "agent.create"})
}

# exchange is a token of another agent that is handed on.
exchange(handover) := ask({
	"delegator": {
		"blueprint": "planner", "clearance": "internal", "environment": "production",
		"id": "agt_2", "purposes": ["support"], "team": "service",
	},
	"facts": {"delegated": true, "handover": handover, "own": false},
	"op": "token.issue",
})

test_agent_exchanges_its_own_and_what_is_meant_for_it[handover] if {
	some handover in ["own", "audience"]
	base.permit == {"agent_exchanges_token"} with input as exchange(handover)
	base.deny == set() with input as exchange(handover)
}

test_no_edge_that_nobody_allowed if {
	base.permit == set() with input as exchange("edge")
	base.deny == {"no_edge"} with input as exchange("edge")
}

test_an_edge_that_is_allowed if {
	base.permit == {"agent_exchanges_along_edge"} with input as exchange("edge") with data.tenant.delegation.edge as true
	base.deny == set() with input as exchange("edge") with data.tenant.delegation.edge as true
}

test_an_edge_may_be_forbidden if {
	base.permit == set() with input as exchange("edge") with data.tenant.delegation.edge as false
	base.deny == {"no_edge"} with input as exchange("edge") with data.tenant.delegation.edge as false
}

test_no_edge_makes_a_grant if {
	asked := object.union(exchange("edge"), {"facts": {"entitled": false}})
	base.deny == {"not_granted"} with input as asked with data.tenant.delegation.edge as true
}

connecting(role, op) := {"caller": {"kind": "user", "roles": {role: true}}, "facts": {}, "op": op}

test_operators_authorize_connections if {
	base.permit == {"operator_connects"} with input as connecting("operator", "connection.authorize")
	base.permit == set() with input as connecting("operator", "connection.put")
	base.permit == set() with input as connecting("operator", "connection.remove")
}

test_auditors_see_connections if {
	base.permit == {"auditor_sees_connections"} with input as connecting("auditor", "connection.read")
	base.permit == set() with input as connecting("auditor", "connection.authorize")
}

test_admins_say_which_connections_there_are if {
	base.permit == {"admin_manages"} with input as connecting("admin", "connection.put")
}

test_agents_see_no_connection if base.permit == set() with input as {"caller": {"kind": "agent"}, "facts": {"own": false}, "op": "connection.read"}
