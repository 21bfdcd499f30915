package tenant.elevation_test

import data.tenant.access_test.call
import data.tenant.elevation

# wanted is what asking for an action looks like; with is the same with other words.
wanted := object.union(call, {"op": "access.elevate", "facts": {"duration": "short", "entitled": false, "special_category": false}})

other(change) := object.union(wanted, change)

signed := {"type": "approval", "quorum": 2, "signed": true, "exclude_sponsor": true}

test_harmless_read if {
	elevation.permit == {"harmless_read"} with input as wanted
	data.estover.allow with input as wanted
}

test_eligible if {
	letter := other({"action": {"effect": "send"}, "facts": {"duration": "long", "eligible": true}, "resource": {"class": "confidential"}})
	elevation.permit == {"eligible"} with input as letter
	elevation.permit == set() with input as object.union(letter, {"action": {"effect": "pay"}})
	elevation.permit == set() with input as object.union(letter, {"resource": {"class": "restricted"}})
}

test_people_decide[change] if {
	some change in [
		{"facts": {"duration": "usual"}},
		{"facts": {"purpose_ok": false}},
		{"facts": {"special_category": true}},
		{"action": {"effect": "write"}},
		{"resource": {"class": "confidential"}},
	]
	elevation.permit == set() with input as other(change)
	count(elevation.oblige) == 1 with input as other(change)
	not data.estover.allow with input as other(change)
}

test_two_decide[change] if {
	some change in [{"action": {"effect": "pay"}}, {"action": {"effect": "delete"}}, {"resource": {"class": "restricted"}}]
	signed in elevation.oblige with input as other(change)
	elevation.permit == set() with input as other(change)
}

test_one_decides_about_a_hold if {
	lift := other({"action": {"effect": "admin", "name": "lift"}, "resource": {"class": "restricted"}})
	not signed in elevation.oblige with input as lift
	count(elevation.oblige) == 1 with input as lift
}

test_a_call_is_no_request if {
	elevation.permit == set() with input as call
	elevation.oblige == set() with input as call
}
