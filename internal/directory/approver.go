package directory

import (
	"context"
	"slices"

	"estover.dev"
	"estover.dev/internal/db"
)

// Known is somebody as they are in a transaction, whether active or not.
func Known(ctx context.Context, tx *db.Tx, id string) (Person, error) { return find(ctx, tx, id) }

// Holding are the active people with one of the roles, by name.
func Holding(ctx context.Context, tx *db.Tx, roles []estover.Role) ([]Person, error) {
	all, err := db.All(ctx, tx, scanPerson, "select "+personColumns+" from person where tenant_id = $1 and disabled_at is null and roles <> '[]' order by name", tx.Tenant())
	return slices.DeleteFunc(all, func(p Person) bool { return !slices.ContainsFunc(roles, p.is) }), err
}
