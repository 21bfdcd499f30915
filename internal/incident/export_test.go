package incident

// Reached has fn told of each step, before it is done and when it is. An error
// of fn stops the containment there, as the death of the server would.
func (i *Incidents) Reached(fn func(step string, done bool) error) { i.reached = fn }
