package upstream

// Reach has fn be told of each effect at a store, before and after.
func (x *Stores) Reach(fn func(point string) error) { x.reached = fn }

// ErrStopped ends the work where a crash would.
var ErrStopped = errStopped
