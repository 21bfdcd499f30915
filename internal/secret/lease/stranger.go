package lease

import (
	"context"
	"encoding/json"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/secret/engine"
)

// Strangers compares the users at a target that bear our mark with the leases here:
// it says how many there are, and of which no lease knows. Nothing is done about
// them; that is [Leases.Reconcile].
func (l *Leases) Strangers(ctx context.Context, tenant estover.TenantID, e engine.Engine) (users int, strangers []string, err error) {
	if err := l.sealer.Prepare(ctx, tenant); err != nil {
		return 0, nil, err
	}
	names, err := e.List(ctx, l.prefix(tenant))
	if err != nil {
		return 0, nil, err
	}
	// The rows are read after the users: each had its row before it was there.
	known, err := l.names(ctx, tenant)
	for _, name := range names {
		if err == nil && !known[name] {
			strangers = append(strangers, name)
		}
	}
	return len(names), strangers, err
}

// TemplatesAt are the templates of the roles at a target.
func TemplatesAt(ctx context.Context, tx *db.Tx, target string) ([]engine.Template, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (t engine.Template, err error) {
		var text string
		if err = columns(&text); err == nil {
			err = json.Unmarshal([]byte(text), &t)
		}
		return t, err
	}, `select template from lease_role where tenant_id = $1 and target_id = $2 and ended_at is null order by name limit 100`, tx.Tenant(), target)
}
