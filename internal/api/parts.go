package api

import (
	"estover.dev/internal/agent"
	"estover.dev/internal/directory"
)

// Parts are the packages that the API speaks for.
type Parts struct {
	Agents *agent.Registry
	People *directory.Directory
}

// routes registers every operation.
func (s *Server) routes() {
	s.agents()
	s.people()
}
