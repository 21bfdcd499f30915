package policy

import "estover.dev"

// OnTouched is what a node does when it hears of an activation on another.
func (p *Policy) OnTouched(tenant estover.TenantID) { p.decider.forget(tenant) }
