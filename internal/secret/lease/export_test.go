package lease

// Reached has fn be told of each step, and stop it there.
func (l *Leases) Reached(fn func(step string, done bool) error) { l.o.Reached = fn }
