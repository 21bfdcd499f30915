package access

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

const grantColumns = `id, name, agent_id, resource_id, actions, purposes, class, starts_at, expires_at,
	managed_by, created_at, created_by, ended_at, coalesce(end_reason, ''), epoch,
	kind, coalesce(parameters, ''), coalesce(session_id, ''), coalesce(request_id, ''), coalesce(activated_from, ''), coalesce(budgets, ''),
	coalesce(unused_after, 0), used_at, announced_at, suspended_at`

func scanGrant(tx *db.Tx, scan func(...any) error) (g Grant, err error) {
	var parameters, budgets string
	err = scan(&g.ID, &g.Name, &g.Agent, &g.Resource, &g.Actions, &g.Purposes, &g.Class, &g.StartsAt, &g.ExpiresAt,
		&g.ManagedBy, &g.CreatedAt, &g.CreatedBy, &g.EndedAt, &g.EndReason, &g.Epoch,
		&g.Kind, &parameters, &g.Session, &g.Request, &g.ActivatedFrom, &budgets,
		&g.UnusedAfter, &g.UsedAt, &g.AnnouncedAt, &g.SuspendedAt)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrNotFound
	}
	if err == nil && parameters != "" {
		err = json.Unmarshal([]byte(parameters), &g.Parameters)
	}
	if err == nil && budgets != "" {
		err = json.Unmarshal([]byte(budgets), &g.Budgets)
	}
	g.State = g.StateAt(tx.Now())
	return g, err
}

// all are the grants that a statement answers.
func all(ctx context.Context, tx *db.Tx, query string, args ...any) ([]Grant, error) {
	return db.All(ctx, tx, func(scan func(...any) error) (Grant, error) { return scanGrant(tx, scan) }, query, args...)
}

func find(ctx context.Context, tx *db.Tx, id string) (Grant, error) {
	return scanGrant(tx, tx.QueryRow(ctx, "select "+grantColumns+" from access_grant where tenant_id = $1 and id = $2", tx.Tenant(), id).Scan)
}

// lock is find, and nobody else changes the row until the transaction ends.
func lock(ctx context.Context, tx *db.Tx, id string) (Grant, error) {
	return scanGrant(tx, tx.QueryRow(ctx, "select "+grantColumns+" from access_grant where tenant_id = $1 and id = $2"+tx.ForUpdate(), tx.Tenant(), id).Scan)
}

// lockAgent has nobody else lock the grants of an agent until the transaction ends.
func lockAgent(ctx context.Context, tx *db.Tx, agent string) error {
	// Every row is locked once it was read.
	_, err := db.AllOf[string](ctx, tx, "select id from access_grant where tenant_id = $1 and agent_id = $2 order by id"+tx.ForUpdate(), tx.Tenant(), agent)
	return err
}

const byName = "select " + grantColumns + " from access_grant where tenant_id = $1 and name = $2 and ended_at is null"

func findName(ctx context.Context, tx *db.Tx, name string) (Grant, error) {
	return scanGrant(tx, tx.QueryRow(ctx, byName, tx.Tenant(), name).Scan)
}

// lockName is findName, and nobody else changes the row until the transaction
// ends.
func lockName(ctx context.Context, tx *db.Tx, name string) (Grant, error) {
	return scanGrant(tx, tx.QueryRow(ctx, byName+tx.ForUpdate(), tx.Tenant(), name).Scan)
}

// load reads the grants of an agent that have neither ended nor expired and are
// not suspended, the oldest first. The + 0 keeps SQLite from going through the
// grants of all agents in their order.
func load(ctx context.Context, tx *db.Tx, agent string) ([]Grant, error) {
	return all(ctx, tx, "select "+grantColumns+` from access_grant
		where tenant_id = $1 and agent_id = $2 and ended_at is null and suspended_at is null and (expires_at is null or expires_at > $3)
		order by created_at + 0, id`, tx.Tenant(), agent, tx.Now())
}

func list(ctx context.Context, tx *db.Tx, f Filter, at int64, id string, limit int) ([]Grant, error) {
	return all(ctx, tx, "select "+grantColumns+` from access_grant
		where tenant_id = $1 and (created_at, id) < ($2, $3)
		and ($4 = '' or agent_id = $4) and ($5 = '' or resource_id = $5) and ($6 = '' or managed_by = $6)
		and (not $7 or ended_at is null and (expires_at is null or expires_at > $8))
		order by created_at desc, id desc limit $9`,
		tx.Tenant(), at, id, f.Agent, f.Resource, f.ManagedBy, f.Live, tx.Now(), limit)
}

// insert adds a grant, unless another of the name was added meanwhile.
func insert(ctx context.Context, tx *db.Tx, g Grant) error {
	parameters, err := text(g.Parameters, len(g.Parameters) == 0)
	if err != nil {
		return err
	}
	budgets, err := text(g.Budgets, g.Budgets.none())
	if err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `insert into access_grant (tenant_id, id, name, agent_id, resource_id, actions, purposes, class,
			starts_at, expires_at, managed_by, created_at, created_by, epoch,
			kind, parameters, session_id, request_id, activated_from, budgets, unused_after)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21) on conflict do nothing`,
		tx.Tenant(), g.ID, g.Name, g.Agent, g.Resource, g.Actions, g.Purposes, g.Class,
		g.StartsAt, g.ExpiresAt, g.ManagedBy, g.CreatedAt, g.CreatedBy, g.Epoch,
		g.Kind, parameters, db.OrNull(g.Session), db.OrNull(g.Request), db.OrNull(g.ActivatedFrom), budgets, positive(g.UnusedAfter))
	switch {
	case err != nil:
		return err
	case n == 0:
		return db.ErrStale
	case g.Budgets.none():
		return nil
	}
	_, err = tx.Exec(ctx, "insert into access_spent (tenant_id, id) values ($1, $2)", tx.Tenant(), g.ID)
	return err
}

// text is JSON, or NULL for what says nothing.
func text(v any, nothing bool) (any, error) {
	if nothing {
		return nil, nil
	}
	b, err := json.Marshal(v)
	return string(b), err
}

func positive(n int64) any {
	if n <= 0 {
		return nil
	}
	return n
}

func end(ctx context.Context, tx *db.Tx, id, reason string) error {
	n, err := tx.Exec(ctx, `update access_grant set ended_at = $3, end_reason = $4, epoch = epoch + 1
		where tenant_id = $1 and id = $2 and ended_at is null`, tx.Tenant(), id, tx.Now(), reason)
	if err == nil && n == 0 {
		return ErrEnded
	}
	return err
}

// endAll ends the grants that have this value in a column.
func endAll(ctx context.Context, tx *guard.Tx, column, value, reason string) (ids, agents []string, err error) {
	rows, err := tx.Query(ctx, `update access_grant set ended_at = $3, end_reason = $4, epoch = epoch + 1
		where tenant_id = $1 and `+column+` = $2 and ended_at is null returning id, agent_id`, tx.Tenant(), value, tx.Now(), reason)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id, agent string
		if err := rows.Scan(&id, &agent); err != nil {
			return nil, nil, err
		}
		tx.End(Table, id)
		ids, agents = append(ids, id), append(agents, agent)
	}
	return ids, agents, rows.Err()
}

// used notes that a grant was used, unless a later use is noted.
func used(ctx context.Context, tx *db.Tx, id string, at time.Time) error {
	_, err := tx.Exec(ctx, `update access_grant set used_at = $3
		where tenant_id = $1 and id = $2 and (used_at is null or used_at < $3)`, tx.Tenant(), id, at)
	return err
}

// dismiss takes those off the budgets who worked on the grants of others in a
// session that is over.
func dismiss(ctx context.Context, tx *db.Tx, session string) error {
	_, err := tx.Exec(ctx, `update access_spent set fan_out = fan_out -
			(select count(*) from access_delegate d where d.tenant_id = $1 and d.grant_id = access_spent.id and d.session_id = $2)
		where tenant_id = $1 and id in (select d.grant_id from access_delegate d where d.tenant_id = $1 and d.session_id = $2)`, tx.Tenant(), session)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "delete from access_delegate where tenant_id = $1 and session_id = $2", tx.Tenant(), session)
	return err
}

// spending reads what has been taken of a grant's budgets.
func spending(ctx context.Context, tx *db.Tx, id string) (s Spent, err error) {
	err = tx.QueryRow(ctx, "select calls, rows_out, records, bytes_out, money, fan_out, begun_at from access_spent where tenant_id = $1 and id = $2", tx.Tenant(), id).
		Scan(&s.Calls, &s.Rows, &s.Records, &s.BytesOut, &s.Money, &s.FanOut, &s.BegunAt)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrNotFound
	}
	return s, err
}

// works reports whether somebody is among those who work on a grant.
func works(ctx context.Context, tx *db.Tx, id string, w Worker) (bool, error) {
	return db.Exists(ctx, tx, "select 1 from access_delegate where tenant_id = $1 and grant_id = $2 and session_id = $3 and agent_id = $4",
		tx.Tenant(), id, w.Session, w.Agent)
}

// carry has what was taken of the budgets of one grant count for another.
func carry(ctx context.Context, tx *db.Tx, from, to string) error {
	_, err := tx.Exec(ctx, `update access_spent
		set calls = o.calls, rows_out = o.rows_out, records = o.records, bytes_out = o.bytes_out, money = o.money, begun_at = o.begun_at
		from access_spent o where access_spent.tenant_id = $1 and access_spent.id = $3 and o.tenant_id = $1 and o.id = $2`, tx.Tenant(), from, to)
	return err
}

// giveBack takes less of a grant's budgets than was reserved.
func giveBack(ctx context.Context, tx *db.Tx, id string, a Amount) error {
	_, err := tx.Exec(ctx, `update access_spent set calls = calls - $3, rows_out = rows_out - $4, records = records - $5,
			bytes_out = bytes_out - $6, money = money - $7 where tenant_id = $1 and id = $2`,
		tx.Tenant(), id, a.Calls, a.Rows, a.Records, a.BytesOut, a.Money)
	return err
}

// saveUse writes down when a grant was used, and says whether it was announced of
// it that it is not.
func saveUse(ctx context.Context, tx *db.Tx, id string, at time.Time) (doubted bool, err error) {
	if err := used(ctx, tx, id, at); err != nil {
		return false, err
	}
	return db.Exists(ctx, tx, `select 1 from access_grant where tenant_id = $1 and id = $2
		and announced_at is not null and suspended_at is null and ended_at is null`, tx.Tenant(), id)
}

// wake takes back that a grant is suspended, or will be.
func wake(ctx context.Context, tx *db.Tx, g Grant) error {
	n, err := tx.Exec(ctx, `update access_grant set suspended_at = null, announced_at = null, epoch = epoch + 1
		where tenant_id = $1 and id = $2 and ended_at is null and announced_at is not null`, tx.Tenant(), g.ID)
	if err == nil && n == 0 {
		return ErrNotSuspended
	}
	return err
}

// doubt notes that it is announced that a grant is not used.
func doubt(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, "update access_grant set announced_at = $3 where tenant_id = $1 and id = $2", tx.Tenant(), id, tx.Now())
	return err
}

// suspendGrant suspends a grant. What was made of it covers nothing either.
func suspendGrant(ctx context.Context, tx *guard.Tx, id string) error {
	if _, err := tx.Exec(ctx, "update access_grant set suspended_at = $3, epoch = epoch + 1 where tenant_id = $1 and id = $2", tx.Tenant(), id, tx.Now()); err != nil {
		return err
	}
	tx.End(Table, id)
	made, err := db.AllOf[string](ctx, tx.Tx, "select id from access_grant where tenant_id = $1 and activated_from = $2 and ended_at is null", tx.Tenant(), id)
	for _, m := range made {
		tx.End(Table, m)
	}
	return err
}

// A decayed grant is one for which something is due because nobody uses it.
type decayed struct {
	tenant estover.TenantID
	id     string
	due    stage
}

// maxDecay bounds what one round does.
const maxDecay = 500

// dueOfDecay are the grants of all tenants that nobody uses and for which
// something is due.
func dueOfDecay(ctx context.Context, tx *db.Tx, now time.Time) (due []decayed, err error) {
	rows, err := tx.Query(ctx, `select tenant_id, id, created_at, starts_at, used_at, announced_at, suspended_at, unused_after from access_grant
		where ended_at is null and unused_after is not null
			and coalesce(suspended_at, announced_at, used_at, created_at) < $1 order by tenant_id, id`, now)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() && len(due) < maxDecay {
		var d decayed
		var g Grant
		if err := rows.Scan(&d.tenant, &d.id, &g.CreatedAt, &g.StartsAt, &g.UsedAt, &g.AnnouncedAt, &g.SuspendedAt, &g.UnusedAfter); err != nil {
			return nil, err
		}
		if d.due = g.dueAt(now); d.due != nothing {
			due = append(due, d)
		}
	}
	return due, rows.Err()
}

// openAccount makes the account of what is no grant, unless it is there.
func openAccount(ctx context.Context, tx *db.Tx, a Account) error {
	_, err := tx.Exec(ctx, "insert into access_spent (tenant_id, id, expires_at) values ($1, $2, $3) on conflict do nothing", tx.Tenant(), a.ID, a.Until)
	return err
}

// closeAccounts takes those accounts of all tenants away on which nothing draws
// any more.
func closeAccounts(ctx context.Context, tx *db.Tx) error {
	_, err := tx.Exec(ctx, "delete from access_spent where expires_at < $1", tx.Now())
	return err
}

// asOf reads the grants of an agent that had neither ended nor expired at a time,
// and had begun to be, the oldest first.
func asOf(ctx context.Context, tx *db.Tx, agent string, at time.Time) ([]Grant, error) {
	return all(ctx, tx, "select "+grantColumns+` from access_grant
		where tenant_id = $1 and agent_id = $2 and created_at <= $3 and (ended_at is null or ended_at > $3)
		and (expires_at is null or expires_at > $3) and (suspended_at is null or suspended_at > $3)
		order by created_at + 0, id`, tx.Tenant(), agent, at)
}
