package tenant.guardrails_test

import data.tenant.access_test.ask
import data.tenant.access_test.call
import data.tenant.guardrails

test_an_ordinary_call_passes if {
	guardrails.deny == set() with input as call
}

test_sensitive_to_public if {
	guardrails.deny == {"sensitive_to_public"} with input as ask({
		"action": {"effect": "send"},
		"facts": {"destination": "public"},
		"resource": {"class": "confidential"},
	})
	guardrails.deny == set() with input as ask({
		"action": {"effect": "send"},
		"facts": {"destination": "public"},
		"resource": {"class": "internal"},
	})
}

test_restricted_needs_key if {
	guardrails.deny == {"restricted_needs_key"} with input as ask({
		"facts": {"auth_strength": "secret"},
		"resource": {"class": "restricted"},
	})
	guardrails.deny == set() with input as ask({"resource": {"class": "restricted"}})
}

test_risky_agent_destroys if {
	guardrails.deny == {"risky_agent_destroys"} with input as ask({
		"action": {"effect": "delete"},
		"facts": {"agent_tier": "high"},
	})
	guardrails.deny == set() with input as ask({"action": {"effect": "delete"}})
}

test_delegate_administers if {
	guardrails.deny == {"delegate_administers"} with input as ask({
		"action": {"effect": "admin"},
		"facts": {"delegated": true},
	})
	guardrails.deny == set() with input as ask({"action": {"effect": "admin"}})
}
