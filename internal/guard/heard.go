package guard

import "time"

// Current says whether this node has read the log within a time, and so knows
// what others had changed until then; [ErrDeaf] if it has not. It is for answers
// that somebody else relies on, which must be surer than what agents are let do
// here ([Options.DeafAfter]). Where the log is not followed at all, there is
// nobody else.
func (g *Guard) Current(within time.Duration) error {
	if at := g.heard.Load(); at != nil && time.Since(*at) > within {
		return ErrDeaf
	}
	return nil
}
