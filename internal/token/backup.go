package token

import (
	"context"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/guard"
)

// BackupUsed records that a client has authenticated by a credential that is
// kept for an emergency, so that whoever follows the log can look at why. Until
// that is on record the credential has proved nothing.
func (t *Tokens) BackupUsed(ctx context.Context, caller estover.Caller, client *Client, method, credential string) error {
	op := guard.Op{
		Action: "credential.use_backup", Target: string(client.Subject), Effect: guard.Manages,
		Detail: map[string]any{"credential": credential, "auth_method": method},
	}
	return t.guard.Record(ctx, caller, op, guard.Decision{ID: audit.NewID(), Allow: true, Engine: "kernel"}, guard.Hot{})
}
