package api

import (
	"context"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/agent"
	"estover.dev/internal/apply"
	"estover.dev/internal/approval"
	"estover.dev/internal/directory"
	"estover.dev/internal/evidence"
	"estover.dev/internal/federation"
	"estover.dev/internal/incident"
	"estover.dev/internal/incident/emergency"
	"estover.dev/internal/notify"
	"estover.dev/internal/pki"
	"estover.dev/internal/policy"
	"estover.dev/internal/recording"
	"estover.dev/internal/resource"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/connection"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/rotation"
	"estover.dev/internal/secret/target"
	"estover.dev/internal/secret/transit"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/session"
	"estover.dev/internal/tenant"
	"estover.dev/internal/token"
)

// Parts are the packages that the API speaks for.
type Parts struct {
	Tenants     *tenant.Register
	Agents      *agent.Registry
	People      *directory.Directory
	Resources   *resource.Catalogue
	Grants      *access.Access
	Requests    *approval.Approvals
	Notify      *notify.Notify
	Secrets     *secret.Secrets
	Imports     *upstream.Imports
	Stores      *upstream.Stores
	Targets     *target.Targets
	Leases      *lease.Leases
	Rotations   *rotation.Rotations
	Sessions    *session.Sessions
	Policy      *policy.Policy
	Trusts      *federation.Trusts
	Tokens      *token.Tokens
	Recordings  *recording.Recordings
	Evidence    *evidence.Evidence
	Incidents   *incident.Incidents
	Emergencies *emergency.Emergencies
	Apply       *apply.Applier
	PKI         *pki.PKI
	Transit     *transit.Transit

	// Gateway makes what a launcher needs; GatewayAddress is where it finds
	// the forward proxy.
	Gateway interface {
		Authority(ctx context.Context, tenant estover.TenantID, session string) (pem string, err error)
		Placeholders(ctx context.Context, tenant estover.TenantID, session string) (map[string]string, error)
	}
	GatewayAddress string

	// Connections are OAuth connections to upstreams; ConnectionPage is where people
	// authorize one.
	Connections    *connection.Connections
	ConnectionPage func(tenant estover.TenantID, name string) string

	// RootKeys are what all keys of the installation rest on.
	RootKeys interface {
		List(ctx context.Context, c estover.Caller) ([]seal.Root, error)
		Add(ctx context.Context, c estover.Caller, source string) (id string, err error)
		Remove(ctx context.Context, c estover.Caller, id string) error
		Rotate(ctx context.Context, c estover.Caller) error
	}

	// Entered is told that somebody of a tenant has come in with a one-time token.
	Entered func(tenant estover.TenantID)

	// Doctor looks at every part of the server that a tenant stands on.
	Doctor func(ctx context.Context, tenant estover.TenantID) []Check
}

// routes registers every operation.
func (s *Server) routes() {
	s.agents()
	s.people()
	s.approverKeys()
	s.providers()
	s.resources()
	s.grants()
	s.requests()
	s.channels()
	s.secrets()
	s.secretImports()
	s.secretStores()
	s.certificates()
	s.transitKeys()
	s.leases()
	s.rotations()
	s.sessions()
	s.policies()
	s.trusts()
	s.detailTypes()
	s.connections()
	s.registrations()
	s.accessTokens()
	s.keys()
	s.rootKeys()
	s.events()
	s.incidents()
	s.emergencyRotations()
	s.restorations()
	s.emergencies()
	s.applying()
	s.doctors()
	s.tenants()
}
