package session

import (
	"context"
	"errors"
	"strconv"
	"time"

	"estover.dev/internal/db"
)

const columns = `id, agent_id, purpose, task, ambient, coalesce(key_thumbprint, ''), opened_at, opened_by, strength, expires_at, epoch,
	ended_at, coalesce(end_cause, ''), coalesce(calls, 0), coalesce(idle_us, 0), idle_at, coalesce(parent_id, ''), depth, bound, coalesce(executable, '')`

// microsecond is how many of them a second has: durations are stored so.
const microsecond = int64(time.Second / time.Microsecond)

// scan reads one row of columns.
func scan(tx *db.Tx, columns func(...any) error) (*Session, error) {
	s := &Session{State: Open}
	var idle int64
	var idleAt time.Time
	err := columns(&s.ID, &s.Agent, &s.Purpose, &s.sealed, &s.Ambient, &s.Key, &s.OpenedAt, &s.OpenedBy, &s.Strength, &s.ExpiresAt, &s.Epoch,
		&s.EndedAt, &s.EndCause, &s.Calls, &idle, &idleAt, &s.Parent, &s.depth, &s.Bound, &s.Program)
	if errors.Is(err, db.ErrNoRows) {
		return nil, ErrNotFound
	}
	if err == nil && s.live(tx.Now()) != nil {
		s.State = Ended
	}
	if idle > 0 {
		s.IdleSecs = idle / microsecond
		s.SeenAt = idleAt.Add(-s.idle())
	}
	return s, err
}

func find(ctx context.Context, tx *db.Tx, id string) (*Session, error) {
	return scan(tx, tx.QueryRow(ctx, `select `+columns+` from session where tenant_id = $1 and id = $2`, tx.Tenant(), id).Scan)
}

// Over reports whether a session has ended, or there is none of this name.
func Over(ctx context.Context, tx *db.Tx, id string) (bool, error) {
	s, err := find(ctx, tx, id)
	if errors.Is(err, ErrNotFound) {
		return true, nil
	}
	return err == nil && s.State == Ended, err
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
		tx.Tenant(), agent, purpose, tx.Now()).Scan)
}

// findKey reads where the open session of a certificate is, in any tenant.
func findKey(ctx context.Context, tx *db.Tx, key string) (at db.Place, err error) {
	at, err = db.ScanPlace(tx.QueryRow(ctx, `select tenant_id, id from session where key_thumbprint = $1 and ended_at is null`, key).Scan)
	if errors.Is(err, db.ErrNoRows) {
		return at, ErrNotFound
	}
	return at, err
}

// findDue reads which open sessions are over their time, in all tenants.
func findDue(ctx context.Context, tx *db.Tx) ([]db.Place, error) {
	return db.All(ctx, tx, db.ScanPlace, `select tenant_id, id from session where ended_at is null and expires_at <= $1 order by expires_at limit 256`, tx.Now())
}

// findIdle reads which open sessions, of idle times up to one, nobody has used
// for so long that they end, in all tenants.
func findIdle(ctx context.Context, tx *db.Tx, before time.Time, most time.Duration) ([]db.Place, error) {
	return db.All(ctx, tx, db.ScanPlace, `select tenant_id, id from session where ended_at is null and idle_at <= $1 and idle_us <= $2 order by idle_at limit 256`,
		before, most.Microseconds())
}

// insert writes a session. It reports false, and writes nothing, if the agent
// has an ambient one for the purpose already and this is one too.
func insert(ctx context.Context, tx *db.Tx, s *Session) (bool, error) {
	onConflict := ""
	if s.Ambient {
		onConflict = " on conflict do nothing"
	}
	var idle, idleAt any
	if s.IdleSecs > 0 {
		idle, idleAt = s.IdleSecs*microsecond, s.OpenedAt.Add(s.idle())
	}
	n, err := tx.Exec(ctx, `insert into session (tenant_id, id, agent_id, purpose, task, ambient, key_thumbprint, opened_at, opened_by, expires_at, epoch, strength,
			idle_us, idle_at, parent_id, depth, bound, executable)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)`+onConflict,
		tx.Tenant(), s.ID, s.Agent, s.Purpose, s.sealed, s.Ambient, db.OrNull(s.Key), s.OpenedAt, s.OpenedBy, s.ExpiresAt, s.Epoch, s.Strength,
		idle, idleAt, db.OrNull(s.Parent), s.depth, s.Bound, db.OrNull(s.Program))
	return n == 1, err
}

// nest holds the parent of a session that is being opened, and bounds the
// session by it: in its time, and in how long nobody may use it if it does not say.
func nest(ctx context.Context, tx *db.Tx, s *Session) error {
	if s.Parent == "" {
		return nil
	}
	if err := hold(ctx, tx, s.Parent); err != nil {
		return err
	}
	parent, err := find(ctx, tx, s.Parent)
	if err != nil {
		return err
	}
	if parent.ExpiresAt.Before(s.ExpiresAt) {
		s.ExpiresAt = parent.ExpiresAt
	}
	if s.IdleSecs == 0 {
		s.IdleSecs = parent.IdleSecs
	}
	s.depth = parent.depth + 1
	return nil
}

// extend moves the end of an open session, unless somebody else has meanwhile.
func extend(ctx context.Context, tx *db.Tx, s *Session, until time.Time) (bool, error) {
	n, err := tx.Exec(ctx, `update session set expires_at = $3 where tenant_id = $1 and id = $2 and ended_at is null and expires_at = $4`,
		tx.Tenant(), s.ID, until, s.ExpiresAt)
	return n == 1, err
}

// heard stores that a session was used at a time, and with it those that it is a
// part of. What is older than what is known already changes nothing.
func heard(ctx context.Context, tx *db.Tx, id string, at time.Time) error {
	_, err := tx.Exec(ctx, `with recursive up(id, parent_id) as (
			select id, parent_id from session where tenant_id = $1 and id = $2
			union
			select s.id, s.parent_id from session s join up on s.id = up.parent_id where s.tenant_id = $1
		)
		update session set idle_at = $3 + idle_us
		where tenant_id = $1 and id in (select id from up) and ended_at is null and idle_us is not null and idle_at < $3 + idle_us`,
		tx.Tenant(), id, at)
	return err
}

// addStep stores that a part has still to do something for sessions that end.
func addStep(ctx context.Context, tx *db.Tx, session, part string, due time.Time) error {
	_, err := tx.Exec(ctx, `insert into session_step (tenant_id, session_id, part, due_at) values ($1, $2, $3, $4)
		on conflict (tenant_id, session_id, part) do nothing`, tx.Tenant(), session, part, due)
	return err
}

// A step is what a part has still to do for a session that has ended.
type step struct {
	db.Place
	part  string
	tries int64
}

// dueSteps reads what is due of all tenants.
func dueSteps(ctx context.Context, tx *db.Tx) ([]step, error) {
	return db.All(ctx, tx, func(scan func(...any) error) (st step, err error) {
		err = scan(&st.Tenant, &st.ID, &st.part, &st.tries)
		return st, err
	}, `select tenant_id, session_id, part, tries from session_step where due_at <= $1 order by due_at limit 256`, tx.Now())
}

// takeStep has this node do a step, until a time at which another may. False:
// another does.
func takeStep(ctx context.Context, tx *db.Tx, st step, node string, until time.Time) (bool, error) {
	n, err := tx.Exec(ctx, `update session_step set due_at = $4, tries = tries + 1, claimed_by = $6
		where tenant_id = $1 and session_id = $2 and part = $3 and tries = $5`, tx.Tenant(), st.ID, st.part, until, st.tries, node)
	return n == 1, err
}

// releaseSteps has the steps of all tenants be due that a node does which is no
// more.
func releaseSteps(ctx context.Context, tx *db.Tx, node string) error {
	_, err := tx.Exec(ctx, `update session_step set due_at = $2, claimed_by = '' where claimed_by = $1 and claimed_by <> ''`, node, tx.Now())
	return err
}

func endStep(ctx context.Context, tx *db.Tx, st step) error {
	_, err := tx.Exec(ctx, `delete from session_step where tenant_id = $1 and session_id = $2 and part = $3`, tx.Tenant(), st.ID, st.part)
	return err
}

// putOff stores why a step could not be done, and when it is tried again.
func putOff(ctx context.Context, tx *db.Tx, st step, why string, due time.Time) error {
	_, err := tx.Exec(ctx, `update session_step set due_at = $4, error = $5, claimed_by = '' where tenant_id = $1 and session_id = $2 and part = $3`,
		tx.Tenant(), st.ID, st.part, due, why)
	return err
}

// ending reads which parts have still something to do for a session.
func ending(ctx context.Context, tx *db.Tx, id string) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select part from session_step where tenant_id = $1 and session_id = $2 order by part`, tx.Tenant(), id)
}

// replace lets the agent's ambient session for a purpose go on by itself, if
// its time is running out, so that another can take its place. It says which
// one that was.
func replace(ctx context.Context, tx *db.Tx, s *Session) ([]string, error) {
	return db.AllOf[string](ctx, tx, `update session set ambient = $4 where tenant_id = $1 and agent_id = $2 and purpose = $3 and ambient
		and ended_at is null and expires_at < $5 returning id`,
		tx.Tenant(), s.Agent, s.Purpose, false, tx.Now().Add(left))
}

// hold locks an open session until the transaction ends.
func hold(ctx context.Context, tx *db.Tx, id string) error {
	there, err := db.Exists(ctx, tx, `select 1 from session where tenant_id = $1 and id = $2 and ended_at is null and expires_at > $3`+tx.ForUpdate(),
		tx.Tenant(), id, tx.Now())
	if err == nil && !there {
		return ErrEnded
	}
	return err
}

// endOne marks a session as ended. No rows: it had ended, or never was.
func endOne(ctx context.Context, tx *db.Tx, id, cause string) ([]Session, error) {
	return mark(ctx, tx, "id = $2", id, cause)
}

// endIdle is endOne for a session that nobody has used meanwhile either.
func endIdle(ctx context.Context, tx *db.Tx, id, cause string, before time.Time) ([]Session, error) {
	return mark(ctx, tx, "id = $2 and idle_at <= $5", id, cause, before)
}

// endAgent marks all sessions of an agent as ended.
func endAgent(ctx context.Context, tx *db.Tx, agent, cause string) ([]Session, error) {
	return mark(ctx, tx, "agent_id = $2", agent, cause)
}

// endChildren marks the sessions within a session as ended.
func endChildren(ctx context.Context, tx *db.Tx, parent, cause string) ([]Session, error) {
	return mark(ctx, tx, "parent_id = $2", parent, cause)
}

func mark(ctx context.Context, tx *db.Tx, where, value, cause string, more ...any) ([]Session, error) {
	return db.All(ctx, tx, func(scan func(...any) error) (s Session, err error) {
		err = scan(&s.ID, &s.Agent, &s.Ambient)
		return s, err
	}, `update session set ended_at = $3, end_cause = $4, epoch = epoch + 1
		where tenant_id = $1 and `+where+` and ended_at is null returning id, agent_id, ambient`,
		append([]any{tx.Tenant(), value, tx.Now(), cause}, more...)...)
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
	where += " order by opened_at desc, id desc limit " + arg(limit)
	return db.All(ctx, tx, func(columns func(...any) error) (Session, error) {
		s, err := scan(tx, columns)
		if err != nil {
			return Session{}, err
		}
		return *s, nil
	}, `select `+columns+` from session where `+where, args...)
}
