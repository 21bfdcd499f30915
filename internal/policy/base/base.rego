# METADATA
# title: The baseline of Estover
# description: >-
#   What holds in every organisation, whatever its own policies say. These rules
#   come with the program. Their denials cannot be taken away, and their permits
#   cover the management of Estover and what an agent may do with itself. What
#   agents may do to resources is permitted by the organisation's own policies.
package estover.base

# What an agent does on the way to data. Each of these needs a grant that
# covers it and a purpose that the grant was given for.
data_path := {
	"gateway.call", "lease.create", "lease.renew", "pki.issue", "pki.sign", "secret.use", "ssh.issue", "ssh.sign", "token.issue",
	"transit.datakey", "transit.decrypt", "transit.encrypt", "transit.hmac", "transit.rewrap", "transit.sign", "transit.verify",
}

# What certifies somebody's key, or does something with a key in their place.
certifies := {
	"pki.issue", "pki.sign", "ssh.issue", "ssh.sign",
	"transit.datakey", "transit.decrypt", "transit.encrypt", "transit.hmac", "transit.rewrap", "transit.sign", "transit.verify",
}

# METADATA
# title: Estover's own parts do their work
permit contains "system_works" if input.caller.kind == "system"

# METADATA
# title: Administrators manage everything
# description: >-
#   Reading the value of a secret, acting in the place of an agent and approving at once what
#   somebody asks for are not management.
permit contains "admin_manages" if {
	input.caller.roles.admin == true
	not input.op in data_path
	not input.op in {"access.elevate", "secret.read"}
}

# METADATA
# title: Administrators may read a secret's value for a stated purpose
permit contains "admin_reads_secret" if {
	input.caller.roles.admin == true
	input.op == "secret.read"
	input.facts.purpose_ok == true
}

# METADATA
# title: Administrators get credentials of their own for a stated purpose
permit contains "admin_leases" if {
	input.caller.roles.admin == true
	input.op in {"lease.create", "lease.renew"}
	input.facts.purpose_ok == true
}

# METADATA
# title: Agents get credentials of their own for what they are granted
# description: >-
#   A role of leases names a resource and an action of it. A grant that covers these is what it takes,
#   for a purpose that the grant was given for, in a session with which the credential ends.
permit contains "agent_leases" if {
	input.caller.kind == "agent"
	input.op in {"lease.create", "lease.renew"}
	input.facts.entitled == true
	input.facts.purpose_ok == true
}

# METADATA
# title: Operators look after targets and roles, and end leases
permit contains "operator_leases" if {
	input.caller.roles.operator == true
	input.op in {
		"lease.list", "lease.read", "lease.revoke",
		"lease_role.list", "lease_role.put", "lease_role.read", "lease_role.remove",
		"target.check", "target.create", "target.list", "target.read", "target.reconcile", "target.remove", "target.update",
	}
}

# METADATA
# title: Operators have secrets rotated
# description: To end a version that somebody uses is for administrators, but in an emergency.
permit contains "operator_rotates" if {
	input.caller.roles.operator == true
	input.op in {"emergency_rotation.list", "emergency_rotation.read", "emergency_rotation.run", "rotation.clear", "rotation.list", "rotation.read", "rotation.remove", "rotation.run", "rotation.schedule"}
}

# METADATA
# title: Operators have secrets read through other vaults and pushed to them
# description: To write over what somebody else has written there is for administrators.
permit contains "operator_stores" if {
	input.caller.roles.operator == true
	input.op in {
		"secret.link", "secret.unlink", "store.check", "store.list", "store.put", "store.read", "store.remove",
		"sync.accept", "sync.list", "sync.put", "sync.read", "sync.remove",
	}
}

# METADATA
# title: Auditors see other vaults, and what is read through them or pushed to them
permit contains "auditor_sees_stores" if {
	input.caller.roles.auditor == true
	input.op in {"store.list", "store.read", "sync.list", "sync.read"}
}

# METADATA
# title: Auditors see how secrets are rotated
permit contains "auditor_sees_rotations" if {
	input.caller.roles.auditor == true
	input.op in {"emergency_rotation.list", "emergency_rotation.read", "rotation.list", "rotation.read"}
}

# METADATA
# title: Auditors see targets, roles and leases
permit contains "auditor_sees_leases" if {
	input.caller.roles.auditor == true
	input.op in {"lease.list", "lease.read", "lease_role.list", "lease_role.read", "target.list", "target.read"}
}

# METADATA
# title: Agents and people log in at the Vault-compatible door, and look after their own tokens of it
# description: What a token of the door lets through is narrowed by its policies, and decided on like everything else.
permit contains "own_tickets" if {
	input.caller.kind in {"agent", "user"}
	input.facts.own == true
	input.op in {
		"cubbyhole.list", "cubbyhole.read", "cubbyhole.remove", "cubbyhole.write",
		"ticket.create", "ticket.login", "ticket.read", "ticket.renew", "ticket.revoke", "ticket.wrap",
	}
}

# METADATA
# title: Operators look after the tokens of the door, and the ways to get one
permit contains "operator_tickets" if {
	input.caller.roles.operator == true
	input.op in {
		"secret_id.create", "secret_id.destroy", "secret_id.list", "secret_id.read",
		"ticket.list", "ticket.read", "ticket.renew", "ticket.revoke", "ticket.tidy",
		"ticket_mount.read", "ticket_mount.set", "ticket_role.list", "ticket_role.put", "ticket_role.read", "ticket_role.remove",
	}
}

# METADATA
# title: Auditors see the tokens of the door, and the ways to get one
permit contains "auditor_sees_tickets" if {
	input.caller.roles.auditor == true
	input.op in {"secret_id.list", "ticket.list", "ticket.read", "ticket_mount.read", "ticket_role.list", "ticket_role.read"}
}

# METADATA
# title: Agents look at their leases and give them back
permit contains "own_leases" if {
	input.caller.kind == "agent"
	input.facts.own == true
	input.op in {"lease.list", "lease.read", "lease.revoke"}
}

# METADATA
# title: Operators authorize connections to upstreams, and see how they are
# description: Which provider, and where its token may be sent, is for administrators to say.
permit contains "operator_connects" if {
	input.caller.roles.operator == true
	input.op in {"connection.authorize", "connection.complete", "connection.list", "connection.read", "connection.try"}
}

# METADATA
# title: Auditors see connections to upstreams
permit contains "auditor_sees_connections" if {
	input.caller.roles.auditor == true
	input.op in {"connection.list", "connection.read"}
}

# METADATA
# title: Operators look after agents, resources, secrets' metadata and containment
permit contains "operator_operates" if {
	input.caller.roles.operator == true
	input.op in {
		"access.evaluate", "acl.list", "acl.read", "agent.create", "agent.hold", "agent.lift", "agent.list", "agent.read", "agent.risk", "agent.update",
		"apply.run", "channel.list", "channel.read", "containment.list", "containment.read", "containment.run", "credential.create", "credential.list", "credential.retire",
		"detail_type.list", "detail_type.read", "event.list", "event.read", "grant.create", "grant.end", "grant.list", "grant.read", "grant.restore",
		"initial_token.list", "key.list", "mount.list", "mount.read",
		"person.list", "person.read", "policy.list", "policy.read", "recording.list",
		"resource.list", "resource.put", "resource.read", "resource.retire",
		"secret.create", "secret.list", "secret.update", "secret.write",
		"server.read", "session.end", "session.heartbeat", "session.list", "session.open", "session.read", "session.renew", "token.introspect", "token.revoke",
		"trust.list", "trust.read",
	}
}

# METADATA
# title: Auditors read the record and change nothing
permit contains "auditor_reads" if {
	input.caller.roles.auditor == true
	input.op in {
		"access.evaluate", "acl.list", "acl.read", "agent.list", "agent.read", "audit_device.list", "audit_header.list", "channel.list", "channel.read", "containment.list", "containment.read", "credential.list", "detail_type.list", "detail_type.read",
		"event.list", "event.read", "evidence.export",
		"grant.list", "grant.read", "initial_token.list", "key.list", "mount.list", "mount.read", "person.list", "person.read", "policy.list", "policy.read",
		"recording.list", "recording.read", "resource.list", "resource.read",
		"secret.list", "server.read", "session.list", "session.read", "token.introspect", "trust.list", "trust.read",
	}
}

# METADATA
# title: Operators look after what certificates and keys are for, and take certificates back
# description: Authorities and their keys are the administrators', and so is what opens or exports.
permit contains "operator_certifies" if {
	input.caller.roles.operator == true
	input.op in {
		"pki.list", "pki.read", "pki.revoke", "pki.role", "pki.sign", "pki.tidy", "ssh.list", "ssh.read", "ssh.revoke", "ssh.role", "ssh.sign",
		"transit.create", "transit.encrypt", "transit.list", "transit.read", "transit.rewrap", "transit.rotate", "transit.verify",
	}
}

# METADATA
# title: Auditors see what was certified, and which keys there are
permit contains "auditor_sees_certificates" if {
	input.caller.roles.auditor == true
	input.op in {"pki.list", "pki.read", "ssh.list", "ssh.read", "transit.list", "transit.read"}
}

# METADATA
# title: Administrators have certificates signed, and use keys
permit contains "admin_certifies" if {
	input.caller.roles.admin == true
	input.op in certifies
}

# METADATA
# title: Agents get certificates for what they are granted
# description: And encrypt and sign with keys that are for what they are granted.
permit contains "agent_is_certified" if {
	input.caller.kind == "agent"
	input.op in certifies
	input.facts.entitled == true
	input.facts.purpose_ok == true
}

# METADATA
# title: Agents look at and take back certificates that are their own
permit contains "own_certificates" if {
	input.facts.own == true
	input.op in {"pki.read", "pki.revoke", "ssh.read", "ssh.revoke"}
}

# METADATA
# title: Operators see who is away
permit contains "operator_sees_absences" if {
	input.caller.roles.operator == true
	input.op == "absence.list"
}

# METADATA
# title: Approvers see what they decide about
permit contains "approver_looks" if {
	input.caller.roles.approver == true
	input.op in {"absence.list", "agent.list", "agent.read", "containment.list", "person.list", "person.read", "resource.list", "resource.read"}
}

# METADATA
# title: People ask for access and decide about it
# description: >-
#   Who may ask for which agent, and who decides, is a matter of the request: of the sponsor, of the
#   roles that obligations of the type "approval" name, and of who asked.
permit contains "people_decide" if {
	input.caller.kind == "user"
	input.op in {"access.approve", "access.cancel", "access.deny", "access.list", "access.read", "access.request"}
}

# METADATA
# title: Agents ask for access, and follow what becomes of it
permit contains "agent_asks" if {
	input.caller.kind == "agent"
	input.facts.own == true
	input.op in {"access.cancel", "access.list", "access.read", "access.request"}
}

# METADATA
# title: People say when they are away, and who decides in their place
permit contains "own_absence" if {
	input.caller.kind == "user"
	input.facts.own == true
	input.op in {"absence.end", "absence.put"}
}

# METADATA
# title: Everybody may look at and end what is their own
permit contains "own_things" if {
	input.facts.own == true
	input.op in {
		"access.evaluate", "agent.read", "approver_key.create", "approver_key.end", "approver_key.list", "authorization.create", "authorization.deny", "authorization.list", "consent.end", "consent.list", "grant.list", "login.create", "login.end", "login.list",
		"passkey.create", "passkey.end", "passkey.list", "person.read", "recovery.create", "registration.end", "registration.read", "registration.update", "session.end", "session.heartbeat", "session.list", "session.read", "session.renew", "token.revoke",
	}
}

# METADATA
# title: People contain the agents that they sponsor
# description: All of them at once, as containment of the person.
permit contains "sponsor_contains" if {
	input.caller.kind == "user"
	input.facts.own == true
	input.op == "containment.run"
}

# METADATA
# title: Operators try out containment, and put access back to what it was
permit contains "operator_rehearses" if {
	input.caller.roles.operator == true
	input.op in {"access.restore", "drill.list", "drill.run"}
}

# METADATA
# title: Everybody may ask which mount of the Vault-compatible door a path lies in
# description: Clients ask before they read. The door shows it to those alone whose token reaches something there.
permit contains "mount_found" if {
	input.caller.kind in {"agent", "user"}
	input.op == "mount.find"
}

# METADATA
# title: Agents open sessions of their own
permit contains "agent_opens_session" if {
	input.caller.kind == "agent"
	input.op == "session.open"
	input.facts.own == true
}

# METADATA
# title: Agents get tokens for what they are granted
permit contains "agent_gets_token" if {
	input.caller.kind == "agent"
	input.op == "token.issue"
	input.facts.own == true
	input.facts.handover == "none"
}

# METADATA
# title: Agents take up tokens that are theirs, or meant for them
# description: A token is exchanged for one that says less, by the agent that it was issued to or that it is for.
permit contains "agent_exchanges_token" if {
	input.caller.kind == "agent"
	input.op == "token.issue"
	input.facts.handover in {"own", "audience"}
}

# METADATA
# title: Agents take up tokens of others along an edge
# description: The organisation's own rule tenant.delegation.edge says which agents hand their tokens to which.
permit contains "agent_exchanges_along_edge" if {
	input.caller.kind == "agent"
	input.op == "token.issue"
	input.facts.handover == "edge"
	data.tenant.delegation.edge == true
}

# METADATA
# title: Agents that serve others may ask whether a token is good
# description: The answer says nothing about tokens that were made for somebody else.
permit contains "agent_introspects" if {
	input.caller.kind == "agent"
	input.op == "token.introspect"
}

# METADATA
# title: Agents learn of the person they act for what that person agreed to tell
# description: The answer is what the scopes of the agent's token name, and of nobody else.
permit contains "agent_identifies" if {
	input.caller.kind == "agent"
	input.op == "identity.read"
	input.facts.human_root == true
}

# METADATA
# title: Not these parameters
# description: The agent's grant for this action names other values of the parameters in its path.
# custom:
#   next: Keep to the values that the grant names, or ask for another grant.
deny contains "outside_parameters" if {
	input.facts.args_in_scope == false
	input.facts.entitled == false
	input.caller.kind == "agent"
	input.op in data_path
}

# METADATA
# title: No grant
# description: The agent has no grant for this action on this resource.
# custom:
#   next: Ask your sponsor or an operator for a grant that names the resource and the action.
deny contains "not_granted" if {
	input.facts.entitled == false
	input.caller.kind == "agent"
	input.op in data_path
}

# METADATA
# title: Not this purpose
# description: The purpose is not the session's, or not one that the agent has declared and its grant was given for.
# custom:
#   next: Open a session with one of the agent's purposes that the grant names.
deny contains "purpose_mismatch" if {
	input.facts.purpose_ok == false
	input.caller.kind == "agent"
	input.op in data_path
}

# METADATA
# title: Purpose not declared
# description: The agent has not declared this purpose.
# custom:
#   next: Name one of the agent's declared purposes, or have its sponsor add this one.
deny contains "purpose_not_declared" if {
	input.op == "session.open"
	input.facts.purpose_ok == false
	input.caller.kind == "agent"
}

# METADATA
# title: Somebody else's
# description: An agent opens sessions and gets tokens for itself only.
# custom:
#   next: Authenticate as the agent that is to do the work.
deny contains "not_own" if {
	input.facts.own == false
	input.caller.kind == "agent"
	input.op in {"session.open", "token.issue"}
	not handed_on
}

handed_on if input.facts.handover in {"own", "audience", "edge"}

# METADATA
# title: No edge
# description: The token is another agent's, is not meant for this one or is bound to another key, and no rule lets the one hand it to the other.
# custom:
#   next: Ask for a token that is meant for this agent, or have a policy allow the edge (tenant.delegation.edge).
deny contains "no_edge" if {
	input.op == "token.issue"
	input.facts.handover == "edge"
	not data.tenant.delegation.edge == true
}

# METADATA
# title: Secrets are for machines
# description: People see the value of a secret only as administrators.
# custom:
#   next: Let the gateway use the secret, or ask an administrator.
deny contains "secret_needs_admin" if {
	input.op == "secret.read"
	input.caller.kind == "user"
	input.caller.roles.admin == false
}

# METADATA
# title: A reason is needed to see a secret
# description: The value of a secret is shown only for a stated purpose.
# custom:
#   next: Say what the value is needed for.
deny contains "secret_needs_purpose" if {
	input.op == "secret.read"
	input.facts.purpose_ok == false
	input.caller.kind in {"agent", "user"}
}

# METADATA
# title: Reading is recorded in batches
oblige contains {"type": "evidence", "mode": "batched"} if {
	input.op == "gateway.call"
	input.action.effect in {"read", "search"}
}

# METADATA
# title: Whatever changes something is on record before it is done
oblige contains {"type": "evidence", "mode": "strict"} if {
	input.op == "gateway.call"
	input.action.effect in {"write", "delete", "send", "execute", "admin", "pay"}
}

# METADATA
# title: Every call leaves a receipt
oblige contains {"type": "receipt"} if input.op == "gateway.call"

# METADATA
# title: Every call is recorded
oblige contains {"type": "record", "level": "meta"} if input.op == "gateway.call"

# METADATA
# title: Calls on sensitive data are recorded in full
oblige contains {"type": "record", "level": "full"} if {
	input.op == "gateway.call"
	input.resource.class in {"confidential", "restricted"}
}

# METADATA
# title: Calls that change something are recorded in full
oblige contains {"type": "record", "level": "full"} if {
	input.op == "gateway.call"
	input.action.effect in {"write", "delete", "send", "execute", "admin", "pay"}
}
