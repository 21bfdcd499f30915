# METADATA
# title: Delegation between agents
# description: >-
#   An agent may take up a token that is meant for it. One that is another's
#   and meant for somebody else it may take up along an edge, and there is none
#   until it is written here.
package tenant.delegation

# edges are pairs of blueprints: agents of the first hand their tokens to
# agents of the second, as ["planner", "researcher"].
edges := set()

edge if {
	input.facts.handover == "edge"
	[input.delegator.blueprint, input.agent.blueprint] in edges
}
