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
func Holding(ctx context.Context, tx *db.Tx, roles []estover.Role) (all []Person, err error) {
	rows, err := tx.Query(ctx, "select "+personColumns+" from person where tenant_id = $1 and disabled_at is null and roles <> '[]' order by name", tx.Tenant())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		p, err := scanPerson(rows)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(roles, p.is) {
			all = append(all, p)
		}
	}
	return all, rows.Err()
}
