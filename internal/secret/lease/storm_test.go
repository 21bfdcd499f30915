package lease_test

import (
	"testing"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/engine/mysql"
	"estover.dev/internal/secret/engine/postgres"
	"estover.dev/internal/secret/lease/leasetest"
)

// TestStorm is F1, F2 and F3 at real servers. Other kinds of targets are stormed
// where their servers run, beside their engines.
func TestStorm(t *testing.T) {
	t.Run("PostgreSQL", func(t *testing.T) {
		server := enginetest.Postgres(t)
		dbtest.Each(t, func(t *testing.T, d *db.DB) {
			leasetest.Storm{Kind: postgres.Kind, Config: server.Config, Template: engine.Template{"groups": {"readers"}}, Issues: 50}.Rage(t, d)
		})
	})
	t.Run("MariaDB", func(t *testing.T) {
		leasetest.Storm{Kind: mysql.Kind, Config: enginetest.MariaDB(t).Config, Template: engine.Template{"roles": {"readers"}}, Issues: 50}.Rage(t, dbtest.Open(t))
	})
}
