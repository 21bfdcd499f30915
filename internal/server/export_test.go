package server

import (
	"context"
	"log/slog"
	"time"

	"estover.dev/internal/mount"
	"estover.dev/internal/vault"
)

// OpenAt is Open with a clock of a test's.
func OpenAt(ctx context.Context, c Config, logger *slog.Logger, now func() time.Time) (*Server, error) {
	return open(ctx, c, logger, "test", now)
}

// Belonging are the names of what belongs to a session.
func Belonging() (names []string) {
	for _, p := range (&Server{}).belonging() {
		names = append(names, p.Name)
	}
	return names
}

// VaultRoutes are the routes of the Vault-compatible door, and the kinds of what
// can be mounted there.
func (s *Server) VaultRoutes() ([]vault.Route, []mount.Kind) { return s.vault.Routes(), s.mountKinds() }
