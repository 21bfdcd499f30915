package session

import (
	"context"
	"errors"
	"strconv"

	"estover.dev/internal/db"
)

const columns = `id, agent_id, purpose, task, ambient, coalesce(key_thumbprint, ''), opened_at, opened_by, strength, expires_at, epoch,
	ended_at, coalesce(end_cause, ''), coalesce(calls, 0)`

// scan reads one row of columns.
func scan(tx *db.Tx, row interface{ Scan(...any) error }) (*Session, error) {
	s := &Session{State: Open}
	err := row.Scan(&s.ID, &s.Agent, &s.Purpose, &s.sealed, &s.Ambient, &s.Key, &s.OpenedAt, &s.OpenedBy, &s.Strength, &s.ExpiresAt, &s.Epoch,
		&s.EndedAt, &s.EndCause, &s.Calls)
	if errors.Is(err, db.ErrNoRows) {
		return nil, ErrNotFound
	}
	if err == nil && s.live(tx.Now()) != nil {
		s.State = Ended
	}
	return s, err
}

func find(ctx context.Context, tx *db.Tx, id string) (*Session, error) {
	return scan(tx, tx.QueryRow(ctx, `select `+columns+` from session where tenant_id = $1 and id = $2`, tx.Tenant(), id))
}

// findAmbient reads which ambient sessions of an agent are open, by purpose.
func findAmbient(ctx context.Context, tx *db.Tx, agent string) (map[string]string, error) {
	rows, err := tx.Query(ctx, `select purpose, id from session where tenant_id = $1 and agent_id = $2 and ambient and ended_at is null`,
		tx.Tenant(), agent)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	found := map[string]string{}
	for rows.Next() {
		var purpose, id string
		if err := rows.Scan(&purpose, &id); err != nil {
			return nil, err
		}
		found[purpose] = id
	}
	return found, rows.Err()
}

func findAmbientFor(ctx context.Context, tx *db.Tx, agent, purpose string) (*Session, error) {
	return scan(tx, tx.QueryRow(ctx, `select `+columns+` from session
		where tenant_id = $1 and agent_id = $2 and purpose = $3 and ambient and ended_at is null and expires_at > $4`,
		tx.Tenant(), agent, purpose, tx.Now()))
}

// findKey reads where the open session of a certificate is, in any tenant.
func findKey(ctx context.Context, tx *db.Tx, key string) (at place, err error) {
	err = tx.QueryRow(ctx, `select tenant_id, id from session where key_thumbprint = $1 and ended_at is null`, key).Scan(&at.tenant, &at.id)
	if errors.Is(err, db.ErrNoRows) {
		return at, ErrNotFound
	}
	return at, err
}

// findDue reads which open sessions are over their time, in all tenants.
func findDue(ctx context.Context, tx *db.Tx) ([]place, error) {
	rows, err := tx.Query(ctx, `select tenant_id, id from session where ended_at is null and expires_at <= $1 order by expires_at limit 256`, tx.Now())
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var due []place
	for rows.Next() {
		var at place
		if err := rows.Scan(&at.tenant, &at.id); err != nil {
			return nil, err
		}
		due = append(due, at)
	}
	return due, rows.Err()
}

// insert writes a session. It reports false, and writes nothing, if the agent
// has an ambient one for the purpose already and this is one too.
func insert(ctx context.Context, tx *db.Tx, s *Session) (bool, error) {
	onConflict := ""
	if s.Ambient {
		onConflict = " on conflict do nothing"
	}
	var key any
	if s.Key != "" {
		key = s.Key
	}
	n, err := tx.Exec(ctx, `insert into session (tenant_id, id, agent_id, purpose, task, ambient, key_thumbprint, opened_at, opened_by, expires_at, epoch, strength)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`+onConflict,
		tx.Tenant(), s.ID, s.Agent, s.Purpose, s.sealed, s.Ambient, key, s.OpenedAt, s.OpenedBy, s.ExpiresAt, s.Epoch, s.Strength)
	return n == 1, err
}

// replace lets the agent's ambient session for a purpose go on by itself, if
// its time is running out, so that another can take its place. It says which
// one that was.
func replace(ctx context.Context, tx *db.Tx, s *Session) ([]string, error) {
	rows, err := tx.Query(ctx, `update session set ambient = $4 where tenant_id = $1 and agent_id = $2 and purpose = $3 and ambient
		and ended_at is null and expires_at < $5 returning id`,
		tx.Tenant(), s.Agent, s.Purpose, false, tx.Now().Add(left))
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var old []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		old = append(old, id)
	}
	return old, rows.Err()
}

// hold locks an open session until the transaction ends.
func hold(ctx context.Context, tx *db.Tx, id string) error {
	var one int
	err := tx.QueryRow(ctx, `select 1 from session where tenant_id = $1 and id = $2 and ended_at is null and expires_at > $3`+tx.ForUpdate(),
		tx.Tenant(), id, tx.Now()).Scan(&one)
	if errors.Is(err, db.ErrNoRows) {
		return ErrEnded
	}
	return err
}

// endOne marks a session as ended. No rows: it had ended, or never was.
func endOne(ctx context.Context, tx *db.Tx, id, cause string) ([]Session, error) {
	return mark(ctx, tx, "id", id, cause)
}

// endAgent marks all sessions of an agent as ended.
func endAgent(ctx context.Context, tx *db.Tx, agent, cause string) ([]Session, error) {
	return mark(ctx, tx, "agent_id", agent, cause)
}

func mark(ctx context.Context, tx *db.Tx, column, value, cause string) ([]Session, error) {
	rows, err := tx.Query(ctx, `update session set ended_at = $3, end_cause = $4, epoch = epoch + 1
		where tenant_id = $1 and `+column+` = $2 and ended_at is null returning id, agent_id, ambient`,
		tx.Tenant(), value, tx.Now(), cause)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var ended []Session
	for rows.Next() {
		var s Session
		if err := rows.Scan(&s.ID, &s.Agent, &s.Ambient); err != nil {
			return nil, err
		}
		ended = append(ended, s)
	}
	return ended, rows.Err()
}

func setCalls(ctx context.Context, tx *db.Tx, id string, calls int64) error {
	_, err := tx.Exec(ctx, `update session set calls = $3 where tenant_id = $1 and id = $2 and ended_at is not null`, tx.Tenant(), id, calls)
	return err
}

func list(ctx context.Context, tx *db.Tx, f Filter, from *After, limit int) ([]Session, error) {
	args := []any{tx.Tenant()}
	arg := func(v any) string {
		args = append(args, v)
		return "$" + strconv.Itoa(len(args))
	}
	where := "tenant_id = $1"
	if f.Agent != "" {
		where += " and agent_id = " + arg(f.Agent)
	}
	switch f.State {
	case Open:
		where += " and ended_at is null and expires_at > " + arg(tx.Now())
	case Ended:
		where += " and (ended_at is not null or expires_at <= " + arg(tx.Now()) + ")"
	}
	if from != nil {
		where += " and (opened_at, id) < (" + arg(from.OpenedAt) + ", " + arg(from.ID) + ")"
	}
	rows, err := tx.Query(ctx, `select `+columns+` from session where `+where+` order by opened_at desc, id desc limit `+arg(limit), args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var page []Session
	for rows.Next() {
		s, err := scan(tx, rows)
		if err != nil {
			return nil, err
		}
		page = append(page, *s)
	}
	return page, rows.Err()
}
