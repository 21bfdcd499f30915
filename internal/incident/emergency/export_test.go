package emergency

// Reached has fn told of each item before it is worked at and after. An error of it
// ends the run there, as the death of the server would.
func (x *Emergencies) Reached(fn func(item Item, done bool) error) { x.reached = fn }
