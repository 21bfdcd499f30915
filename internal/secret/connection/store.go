package connection

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

const columns = `id, name, spec, state, reason, generation, sealed, scopes, account, expires_at, renewable, claimed_by, claimed_until, fence,
	failures, created_at, changed_at, renewed_at, epoch`

func scan(columns func(...any) error) (c Connection, err error) {
	var spec, account string
	var renewable int64
	var claimed *string
	err = columns(&c.ID, &c.Name, &spec, &c.State, &c.Reason, &c.Generation, &c.sealed, &c.Granted, &account, &c.ExpiresAt, &renewable, &claimed,
		&c.claimedUntil, &c.fence, &c.failures, &c.CreatedAt, &c.ChangedAt, &c.RenewedAt, &c.epoch)
	if errors.Is(err, db.ErrNoRows) {
		return c, ErrNotFound
	}
	if err != nil {
		return c, err
	}
	c.Account, c.Renewable = estover.Subject(account), renewable == 1
	if claimed != nil {
		c.claimedBy = *claimed
	}
	if len(c.sealed) == 0 {
		c.sealed = nil
	}
	return c, json.Unmarshal([]byte(spec), &c.Spec)
}

func findName(ctx context.Context, tx *db.Tx, name, lock string) (Connection, error) {
	return scan(tx.QueryRow(ctx, "select "+columns+" from connection where tenant_id = $1 and name = $2 and ended_at is null"+lock, tx.Tenant(), name).Scan)
}

func list(ctx context.Context, tx *db.Tx, after string, limit int) ([]Connection, error) {
	return db.All(ctx, tx, scan, "select "+columns+" from connection where tenant_id = $1 and name > $2 and ended_at is null order by name limit $3",
		tx.Tenant(), after, limit)
}

func insert(ctx context.Context, tx *db.Tx, c Connection) error {
	spec, err := json.Marshal(c.Spec)
	if err != nil {
		return err
	}
	// Whoever comes first with a name has it; the other finds it there.
	n, err := tx.Exec(ctx, `insert into connection (tenant_id, id, name, spec, state, reason, generation, scopes, account, renewable, created_at, changed_at, epoch)
		values ($1, $2, $3, $4, $5, $6, $7, '[]', '', 0, $8, $9, $10) on conflict (tenant_id, name) where ended_at is null do nothing`,
		tx.Tenant(), c.ID, c.Name, string(spec), c.State, c.Reason, c.Generation, c.CreatedAt, c.ChangedAt, c.epoch)
	return stale(n, err)
}

// update stores another spec, unless the connection has changed since it was read.
func update(ctx context.Context, tx *db.Tx, c Connection, epoch int64) error {
	spec, err := json.Marshal(c.Spec)
	if err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `update connection set spec = $3, state = $4, reason = $5, generation = $6, sealed = $7, scopes = $8, account = $9,
		expires_at = $10, renewable = $11, changed_at = $12, epoch = $13, next_try_at = $14, claimed_by = null, claimed_until = null
		where tenant_id = $1 and id = $2 and epoch = $15 and generation = $16 and ended_at is null`,
		tx.Tenant(), c.ID, string(spec), c.State, c.Reason, c.Generation, db.OrNull(c.sealed), c.Granted, c.Account,
		c.ExpiresAt, number(c.Renewable), c.ChangedAt, c.epoch, c.due(), epoch, c.Generation-1)
	return stale(n, err)
}

// end ends a connection, unless it has changed since it was read.
func end(ctx context.Context, tx *db.Tx, c Connection) error {
	n, err := tx.Exec(ctx, `update connection set sealed = null, ended_at = $3, changed_at = $3, next_try_at = null, epoch = epoch + 1
		where tenant_id = $1 and id = $2 and epoch = $4 and generation = $5 and ended_at is null`,
		tx.Tenant(), c.ID, tx.Now(), c.epoch, c.Generation)
	return stale(n, err)
}

// claim takes a connection for a while, unless somebody has it or it has changed.
func claim(ctx context.Context, tx *db.Tx, c *Connection, node string, until time.Time) (bool, error) {
	n, err := tx.Exec(ctx, `update connection set claimed_by = $3, claimed_until = $4, fence = fence + 1
		where tenant_id = $1 and id = $2 and epoch = $5 and generation = $6 and fence = $7 and ended_at is null and (claimed_until is null or claimed_until < $8)`,
		tx.Tenant(), c.ID, node, until, c.epoch, c.Generation, c.fence, tx.Now())
	if n == 1 {
		c.fence++
	}
	return n == 1, err
}

// release frees the connections of all tenants that a node has which is no more.
func release(ctx context.Context, tx *db.Tx, node string) error {
	_, err := tx.Exec(ctx, `update connection set claimed_by = null, claimed_until = null, fence = fence + 1 where claimed_by = $1`, node)
	return err
}

// renewed stores other tokens in the place of those of a generation.
func renewed(ctx context.Context, tx *db.Tx, c Connection, generation int64) error {
	n, err := tx.Exec(ctx, `update connection set state = $3, reason = '', generation = $4, sealed = $5, scopes = $6, account = $7, expires_at = $8,
		renewable = $9, renewed_at = $10, next_try_at = $11, failures = 0, claimed_by = null, claimed_until = null
		where tenant_id = $1 and id = $2 and epoch = $12 and generation = $13 and ended_at is null`,
		tx.Tenant(), c.ID, c.State, c.Generation, c.sealed, c.Granted, c.Account, c.ExpiresAt, number(c.Renewable),
		c.RenewedAt, c.due(), c.epoch, generation)
	return stale(n, err)
}

// settle stores what came of a renewal that failed, and gives the connection back.
func settle(ctx context.Context, tx *db.Tx, c Connection, generation int64, next time.Time) error {
	n, err := tx.Exec(ctx, `update connection set state = $3, reason = $4, failures = $5, next_try_at = $6, claimed_by = null, claimed_until = null
		where tenant_id = $1 and id = $2 and epoch = $7 and generation = $8 and fence = $9 and ended_at is null`,
		tx.Tenant(), c.ID, c.State, c.Reason, c.failures, next, c.epoch, generation, c.fence)
	return stale(n, err)
}

// dueConnections are the connections of all tenants that are to be renewed.
func dueConnections(ctx context.Context, tx *db.Tx) ([]flight, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (one flight, err error) {
		err = columns(&one.tenant, &one.name)
		return one, err
	}, `select tenant_id, name from connection where ended_at is null and next_try_at is not null and next_try_at <= $1
		order by next_try_at limit 200`, tx.Now())
}

func insertVisit(ctx context.Context, tx *db.Tx, digest []byte, v visit, until time.Time) error {
	_, err := tx.Exec(ctx, `insert into connection_visit (tenant_id, digest, connection_id, epoch, subject, expires_at) values ($1, $2, $3, $4, $5, $6)`,
		tx.Tenant(), digest, v.connection, v.epoch, v.subject, until)
	return err
}

// takeVisit uses a visit up.
func takeVisit(ctx context.Context, tx *db.Tx, digest []byte) (v visit, err error) {
	var subject string
	err = tx.QueryRow(ctx, `delete from connection_visit where tenant_id = $1 and digest = $2 and expires_at > $3 returning connection_id, epoch, subject`,
		tx.Tenant(), digest, tx.Now()).Scan(&v.connection, &v.epoch, &subject)
	if errors.Is(err, db.ErrNoRows) {
		return v, ErrVisit
	}
	v.subject = estover.Subject(subject)
	return v, err
}

func sweepVisits(ctx context.Context, tx *db.Tx) error {
	_, err := tx.Exec(ctx, "delete from connection_visit where expires_at <= $1", tx.Now())
	return err
}

func addRevocations(ctx context.Context, tx *db.Tx, all []revocation) error {
	for _, r := range all {
		_, err := tx.Exec(ctx, `insert into connection_revocation (tenant_id, id, connection_id, sealed, created_at, next_try_at, last_error)
			values ($1, $2, $3, $4, $5, $5, '')`, tx.Tenant(), r.id, r.connection, r.sealed, tx.Now())
		if err != nil {
			return err
		}
	}
	return nil
}

func dueRevocations(ctx context.Context, tx *db.Tx) ([]revocation, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (r revocation, err error) {
		err = columns(&r.tenant, &r.id, &r.connection, &r.sealed, &r.tries, &r.next)
		return r, err
	}, `select tenant_id, id, connection_id, sealed, tries, next_try_at from connection_revocation where next_try_at <= $1
		order by next_try_at, created_at limit 100`, tx.Now())
}

// takeRevocation takes a revocation until it is due again.
func takeRevocation(ctx context.Context, tx *db.Tx, r revocation, next time.Time) (bool, error) {
	n, err := tx.Exec(ctx, "update connection_revocation set tries = tries + 1, next_try_at = $3 where tenant_id = $1 and id = $2 and tries = $4",
		tx.Tenant(), r.id, next, r.tries)
	return n == 1, err
}

func noteRevocation(ctx context.Context, tx *db.Tx, r revocation, why string) error {
	_, err := tx.Exec(ctx, "update connection_revocation set last_error = $3 where tenant_id = $1 and id = $2", tx.Tenant(), r.id, why)
	return err
}

func deleteRevocation(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, "delete from connection_revocation where tenant_id = $1 and id = $2", tx.Tenant(), id)
	return err
}

func stale(n int64, err error) error {
	if err == nil && n == 0 {
		err = errStale
	}
	return err
}

func number(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func findID(ctx context.Context, tx *db.Tx, id string) (name string, err error) {
	err = tx.QueryRow(ctx, "select name from connection where tenant_id = $1 and id = $2 and ended_at is null", tx.Tenant(), id).Scan(&name)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrNotFound
	}
	return name, err
}
