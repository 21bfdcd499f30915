package api

import (
	"context"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/directory"
	"estover.dev/internal/evidence"
	"estover.dev/internal/incident"
	"estover.dev/internal/policy"
	"estover.dev/internal/recording"
	"estover.dev/internal/resource"
	"estover.dev/internal/session"
)

// Parts are the packages that the API speaks for.
type Parts struct {
	Agents     *agent.Registry
	People     *directory.Directory
	Resources  *resource.Catalogue
	Sessions   *session.Sessions
	Policy     *policy.Policy
	Recordings *recording.Recordings
	Evidence   *evidence.Evidence
	Incidents  *incident.Incidents

	// Gateway makes what a launcher needs; GatewayAddress is where it finds
	// the forward proxy.
	Gateway interface {
		Authority(ctx context.Context, tenant estover.TenantID, session string) (pem string, err error)
	}
	GatewayAddress string
}

// routes registers every operation.
func (s *Server) routes() {
	s.agents()
	s.people()
	s.resources()
	s.sessions()
	s.policies()
	s.events()
	s.incidents()
}
