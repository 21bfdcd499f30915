package client

import "time"

// SetClock gives a client the clock of a test.
func SetClock(c *Client, now func() time.Time) { c.now = now }

// SetVerifierClock gives a verifier the clock of a test.
func SetVerifierClock(v *Verifier, now func() time.Time) { v.now = now }
