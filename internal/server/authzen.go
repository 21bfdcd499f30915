package server

import (
	"estover.dev/internal/authzen"
	"estover.dev/internal/seal"
	"estover.dev/internal/token"
)

// decisionPoint is the door for programs that enforce decisions elsewhere.
func (s *Server) decisionPoint() *authzen.Door {
	f := &s.facts
	return authzen.New(authzen.Config{
		Guard: s.guard, Callers: s.callers, Issuer: token.Issuer(s.config.Issuer), Agents: f.registry, Resources: f.resources, Grants: f.access,
		Requests: s.requests, Keys: s.keys,
		Decide: s.decider.Decide, Identified: f.identified, Known: s.known,
		Seal: s.sealAs(seal.Token), Open: s.openAs(seal.Token), Logger: s.logger,
	})
}
