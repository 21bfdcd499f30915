package rotation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/secret"
)

const columns = `r.secret_id, s.path, r.target_id, r.kind, r.spec, r.step, r.slot, r.pending, r.current, r.previous, r.generation, r.epoch,
	r.grace_until, r.due_at, r.next_try_at, r.tries, r.last_error, r.held_by, r.held_until, r.created_at, r.rotated_at, r.switched_at,
	r.applying_at, r.late_at, r.refused_us, r.forced_by, r.forced_reason, r.laggards, r.expires_at, r.previous_expires_at,
	r.pending_serial, r.current_serial, r.previous_serial, coalesce(t.reason, ''), coalesce(g.name, ''),
	g.suspect_at, g.disabled_at, coalesce(g.disabled_for, ''), case when r.kind = 'certificate' and exists (select 1 from secret_target o
		where o.tenant_id = r.tenant_id and o.suspect_at is not null and o.ended_at is null) then 1 else 0 end`

const from = ` from rotation r join secret s on s.tenant_id = r.tenant_id and s.id = r.secret_id
	left join secret_target g on g.tenant_id = r.tenant_id and g.id = r.target_id
	left join rotation_target t on t.tenant_id = r.tenant_id and t.target_id = r.target_id and t.stopped_at is not null
	where r.ended_at is null`

func scan(columns func(...any) error) (r Rotation, err error) {
	var spec, laggards, disabledFor string
	var suspect, disabled time.Time
	var unsettled int64
	err = columns(&r.Secret, &r.Path, &r.Target, &r.kind, &spec, &r.Step, &r.Slot, &r.Pending, &r.Current, &r.Previous, &r.Generation, &r.epoch,
		&r.GraceUntil, &r.DueAt, &r.Next, &r.tries, &r.LastError, &r.heldBy, &r.heldUntil, &r.CreatedAt, &r.RotatedAt, &r.switchedAt,
		&r.applyingAt, &r.LateAt, &r.Refused, &r.ForcedBy, &r.Reason, &laggards, &r.ExpiresAt, &r.previousExpires,
		&r.pendingSerial, &r.currentSerial, &r.previousSerial, &r.Stopped, &r.TargetName,
		&suspect, &disabled, &disabledFor, &unsettled)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrNotFound
	}
	if err == nil {
		err = json.Unmarshal([]byte(spec), &r.Spec)
	}
	if r.Laggards = []Laggard{}; err == nil && laggards != "" {
		err = json.Unmarshal([]byte(laggards), &r.Laggards)
	}
	switch {
	case !disabled.IsZero():
		r.Waits = fmt.Sprintf("The target %s is disabled (%s), so no rotation does anything there: estover secret engine resume %s.", r.TargetName, disabledFor, r.TargetName)
	case !suspect.IsZero():
		r.Waits = fmt.Sprintf("The server was restored from a backup, and another version than those here may be in use at %s. No rotation does anything there before the two have been compared: estover secret engine reconcile %s.", r.TargetName, r.TargetName)
	case unsettled > 0:
		r.Waits = "The server was restored from a backup. No rotation revokes a certificate before every target has been compared with what is here: estover doctor targets."
	}
	return r, err
}

// waits reports whether nothing may be done about the rotation, because of its target.
// A certificate alone, which others than a target look up, is made as ever; only its
// end waits, unless it has come by itself or somebody has said so.
func (r *Rotation) waits(now time.Time) bool {
	if r.Waits == "" || r.kind != Certificate {
		return r.Waits != ""
	}
	return (r.Step == Grace || r.Step == Retiring || r.Step == Scrambling) && r.ForcedBy == "" && !r.lapsed(now)
}

// find reads the rotation of a secret.
func find(ctx context.Context, tx *db.Tx, id string) (Rotation, error) {
	return scan(tx.QueryRow(ctx, "select "+columns+from+" and r.tenant_id = $1 and r.secret_id = $2", tx.Tenant(), id).Scan)
}

// findPath reads the rotation of the secret at a path.
func findPath(ctx context.Context, tx *db.Tx, path string) (Rotation, error) {
	return scan(tx.QueryRow(ctx, "select "+columns+from+" and r.tenant_id = $1 and s.path = $2 and s.ended_at is null", tx.Tenant(), path).Scan)
}

func findBelow(ctx context.Context, tx *db.Tx, prefix, after string, limit int) ([]Rotation, error) {
	return db.All(ctx, tx, scan, "select "+columns+from+` and r.tenant_id = $1 and s.path > $2 and substr(s.path, 1, $4) = $3
		order by s.path limit $5`, tx.Tenant(), after, prefix, len([]rune(prefix)), limit)
}

// encode is a value as it is stored beside others.
func encode(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

func insert(ctx context.Context, tx *db.Tx, r Rotation, by estover.Subject) error {
	spec, err := encode(r.Spec)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `insert into rotation (tenant_id, secret_id, target_id, kind, spec, step, slot, current, due_at, next_try_at, created_at, created_by, rotated_at, expires_at, current_serial)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
		on conflict (tenant_id, secret_id) do update set target_id = excluded.target_id, kind = excluded.kind, spec = excluded.spec, step = excluded.step,
			slot = excluded.slot, current = excluded.current, pending = 0, previous = 0, due_at = excluded.due_at, next_try_at = excluded.next_try_at,
			created_at = excluded.created_at, created_by = excluded.created_by, rotated_at = excluded.rotated_at, expires_at = excluded.expires_at, previous_expires_at = null, switched_at = null, applying_at = null,
			grace_until = null, late_at = null, tries = 0, last_error = '', refused_us = 0, forced_by = '', forced_reason = '', laggards = '',
			pending_serial = '', current_serial = excluded.current_serial, previous_serial = '', generation = rotation.generation + 1, ended_at = null`,
		tx.Tenant(), r.Secret, r.Target, r.kind, spec, r.Step, r.Slot, r.Current, r.DueAt, r.Next, r.CreatedAt, by, r.RotatedAt, r.ExpiresAt, r.currentSerial)
	return err
}

// alone refuses a rotation whose users are those of another one at the target, or at
// one near it.
func alone(ctx context.Context, tx *db.Tx, r Rotation, at Target, near []string, tell bool) error {
	// Whoever comes second waits here for the first.
	ids := slices.Sorted(slices.Values(append([]string{r.Target}, near...)))
	for _, id := range ids {
		_, err := tx.Exec(ctx, `insert into rotation_target (tenant_id, target_id) values ($1, $2)
			on conflict (tenant_id, target_id) do update set under_way = rotation_target.under_way`, tx.Tenant(), id)
		if err != nil {
			return err
		}
	}
	return taken(ctx, tx, r, at, ids, tell)
}

// taken says whether another rotation at one of some targets changes the password of a
// user of this one.
func taken(ctx context.Context, tx *db.Tx, r Rotation, at Target, ids []string, tell bool) error {
	for _, id := range ids {
		others, err := db.All(ctx, tx, scan, "select "+columns+from+" and r.tenant_id = $1 and r.target_id = $2", tx.Tenant(), id)
		if err != nil {
			return err
		}
		for _, other := range others {
			if other.Secret == r.Secret || other.kind.made() != r.kind.made() {
				continue
			}
			for _, u := range r.Users {
				switch {
				case !slices.ContainsFunc(other.Users, func(o string) bool { return at.same(u, o) }):
				case id == r.Target:
					return ErrInvalid.With("The password of %s is changed by the rotation of %s already.", u, other.Path).At("users")
				case tell:
					return ErrShared.With("The password of %s is changed by the rotation of %s already, at the target %s, which is at the same server. One secret would not be good any more when the other is rotated.", u, other.Path, other.TargetName)
				default:
					return ErrShared.With("The password of %s is changed by another rotation at the same server already. Rotate other users; an administrator is told which it is by: estover rotation run %s", u, r.Path)
				}
			}
		}
	}
	return nil
}

// save stores what has become of a rotation, unless it has changed since it was
// read, and counts its generation on.
func save(ctx context.Context, tx *db.Tx, r *Rotation) error {
	spec, err := encode(r.Spec)
	if err != nil {
		return err
	}
	laggards, err := encode(r.Laggards)
	if err != nil {
		return err
	}
	held := int64(0)
	if !r.heldUntil.IsZero() {
		held = r.heldUntil.UnixMicro()
	}
	n, err := tx.Exec(ctx, `update rotation set target_id = $4, kind = $5, spec = $6, step = $7, slot = $8, pending = $9, current = $10, previous = $11,
			epoch = $12, grace_until = $13, due_at = $14, next_try_at = $15, tries = $16, last_error = $17, held_by = $18, held_until = $19,
			rotated_at = $20, switched_at = $21, applying_at = $22, late_at = $23, refused_us = $24, forced_by = $25, forced_reason = $26,
			laggards = $27, expires_at = $28, previous_expires_at = $29,
			pending_serial = $30, current_serial = $31, previous_serial = $32, generation = generation + 1
		where tenant_id = $1 and secret_id = $2 and generation = $3 and ended_at is null`,
		tx.Tenant(), r.Secret, r.Generation, r.Target, r.kind, spec, r.Step, r.Slot, r.Pending, r.Current, r.Previous,
		r.epoch, r.GraceUntil, r.DueAt, r.Next, r.tries, r.LastError, r.heldBy, held,
		r.RotatedAt, r.switchedAt, r.applyingAt, r.LateAt, r.Refused, r.ForcedBy, r.Reason, laggards, r.ExpiresAt, r.previousExpires,
		r.pendingSerial, r.currentSerial, r.previousSerial)
	if err == nil && n == 0 {
		return errLost
	}
	r.Generation++
	return err
}

func end(ctx context.Context, tx *db.Tx, r Rotation) error {
	n, err := tx.Exec(ctx, `update rotation set ended_at = $4 where tenant_id = $1 and secret_id = $2 and generation = $3 and step = 'idle' and ended_at is null`,
		tx.Tenant(), r.Secret, r.Generation, tx.Now())
	if err == nil && n == 0 {
		return errLost
	}
	return err
}

// findDue are the rotations of all tenants at which there is something to do and
// no node works: of each target those that have waited longest. First comes one of each
// tenant, and of its targets one of each, so that nobody's many keep others from being
// seen, nor from having a turn.
func findDue(ctx context.Context, tx *db.Tx) ([]task, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (t task, err error) {
		var tries int64
		err = columns(&t.Tenant, &t.ID, &t.target, &tries)
		t.failed = tries > 0
		return t, err
	}, `select tenant_id, secret_id, target_id, tries from (
			select o.*, row_number() over (partition by tenant_id order by of_target, next_try_at) as of_tenant from (
				select tenant_id, secret_id, target_id, tries, next_try_at, row_number() over (partition by tenant_id, target_id order by next_try_at) as of_target
				from rotation where ended_at is null and next_try_at <= $1 and held_until <= $1) o
			where of_target <= $2) d
		where of_tenant <= $3 order by of_tenant, next_try_at limit 1000`, tx.Now(), 4*perTarget, 8*ofTenant)
}

// byRisk are the rotations of all tenants whose schedule may be another today.
func byRisk(ctx context.Context, tx *db.Tx) ([]db.Place, error) {
	return db.All(ctx, tx, db.ScanPlace, `select tenant_id, secret_id from rotation where ended_at is null and step = 'idle' and due_at is not null`)
}

// allTargets are those of the tenant.
func allTargets(ctx context.Context, tx *db.Tx) ([]db.Place, error) {
	return db.All(ctx, tx, db.ScanPlace, `select tenant_id, id from secret_target where tenant_id = $1 and ended_at is null order by name`, tx.Tenant())
}

func countLate(ctx context.Context, tx *db.Tx) (n int64, err error) {
	err = tx.QueryRow(ctx, `select count(*) from rotation where ended_at is null and late_at is not null`).Scan(&n)
	return n, err
}

// begin counts a rotation in at its target, unless there are enough or they are
// stopped there.
func begin(ctx context.Context, tx *db.Tx, target string) error {
	_, err := tx.Exec(ctx, `insert into rotation_target (tenant_id, target_id) values ($1, $2) on conflict (tenant_id, target_id) do nothing`, tx.Tenant(), target)
	if err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `update rotation_target set under_way = under_way + 1
		where tenant_id = $1 and target_id = $2 and under_way < $3 and stopped_at is null`, tx.Tenant(), target, perTarget)
	if err != nil || n == 1 {
		return err
	}
	if err := mayBegin(ctx, tx, target); err != nil {
		return err
	}
	return ErrCrowded
}

// mayBegin says why no rotation begins at a target, if it is stopped there.
func mayBegin(ctx context.Context, tx *db.Tx, target string) error {
	stopped, err := isStopped(ctx, tx, target)
	if err == nil && stopped {
		err = ErrStopped.With("Rotations at this target are stopped since a new password did not log in. Find out why, then: estover rotation clear %s", target)
	}
	return err
}

func isStopped(ctx context.Context, tx *db.Tx, target string) (bool, error) {
	at, err := stoppedAt(ctx, tx, target)
	return !at.IsZero(), err
}

// stoppedAt is since when rotations are stopped at a target; zero if they are not.
func stoppedAt(ctx context.Context, tx *db.Tx, target string) (at time.Time, err error) {
	err = tx.QueryRow(ctx, `select stopped_at from rotation_target where tenant_id = $1 and target_id = $2`, tx.Tenant(), target).Scan(&at)
	if errors.Is(err, db.ErrNoRows) {
		err = nil
	}
	return at, err
}

// findStopped are the targets of all tenants at which rotations are stopped.
func findStopped(ctx context.Context, tx *db.Tx) ([]db.Place, error) {
	return db.All(ctx, tx, db.ScanPlace, `select tenant_id, target_id from rotation_target where stopped_at is not null`)
}

// done counts a rotation out at its target.
func done(ctx context.Context, tx *db.Tx, target string) error {
	_, err := tx.Exec(ctx, `update rotation_target set under_way = under_way - 1 where tenant_id = $1 and target_id = $2`, tx.Tenant(), target)
	return err
}

func stopTarget(ctx context.Context, tx *db.Tx, target, secret, why string) error {
	_, err := tx.Exec(ctx, `update rotation_target set stopped_at = $3, stopped_by = $4, reason = $5
		where tenant_id = $1 and target_id = $2 and stopped_at is null`, tx.Tenant(), target, tx.Now(), secret, why)
	return err
}

func clearStop(ctx context.Context, tx *db.Tx, target string) (int64, error) {
	n, err := tx.Exec(ctx, `update rotation_target set stopped_at = null, stopped_by = '', reason = ''
		where tenant_id = $1 and target_id = $2 and stopped_at is not null`, tx.Tenant(), target)
	if err == nil && n > 0 { // those who waited for it need not wait longer
		_, err = tx.Exec(ctx, `update rotation set next_try_at = $3, generation = generation + 1
			where tenant_id = $1 and target_id = $2 and ended_at is null and step = 'idle' and due_at <= $3 and held_until <= $3`, tx.Tenant(), target, tx.Now())
	}
	return n, err
}

// present says until when a node is there, and forgets those that have long gone.
func present(ctx context.Context, tx *db.Tx, node string, until time.Time) error {
	_, err := tx.Exec(ctx, `insert into rotation_node (node, until) values ($1, $2) on conflict (node) do update set until = excluded.until`, node, until)
	if err == nil {
		_, err = tx.Exec(ctx, `delete from rotation_node where until < $1`, tx.Now().Add(-24*time.Hour))
	}
	return err
}

func absent(ctx context.Context, tx *db.Tx, node string) error {
	_, err := tx.Exec(ctx, `delete from rotation_node where node = $1`, node)
	return err
}

// A question is put to every node: what it has open with a version that is on its
// way out, and, when that is to retire, that it uses it no more.
type question struct {
	tenant  estover.TenantID
	secret  string
	path    string
	version int64
	epoch   int64
	asked   bool                // to use it no more
	said    []secret.Connection // the last time
}

// questions are those that a node has to answer.
func questions(ctx context.Context, tx *db.Tx, node string) (list []question, err error) {
	rows, err := tx.Query(ctx, `select r.tenant_id, r.secret_id, s.path, r.previous, r.epoch, r.step, coalesce(a.open, '[]'), coalesce(a.epoch, 0), coalesce(a.version, 0)
		from rotation r join secret s on s.tenant_id = r.tenant_id and s.id = r.secret_id
		left join rotation_ack a on a.tenant_id = r.tenant_id and a.secret_id = r.secret_id and a.node = $1
		where r.ended_at is null and r.step in ('grace', 'retiring')`, node)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var q question
		var step Step
		var open string
		var epoch, version int64
		if err := rows.Scan(&q.tenant, &q.secret, &q.path, &q.version, &q.epoch, &step, &open, &epoch, &version); err != nil {
			return nil, err
		}
		q.asked = step == Retiring
		if q.asked && epoch == q.epoch {
			continue
		}
		if version == q.version {
			if err := json.Unmarshal([]byte(open), &q.said); err != nil {
				return nil, err
			}
		}
		if !q.asked {
			q.epoch = epoch
		}
		list = append(list, q)
	}
	return list, rows.Err()
}

// answer stores what a node has to say.
func answer(ctx context.Context, tx *db.Tx, node string, q question, open []secret.Connection) error {
	text, err := encode(open)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `insert into rotation_ack (tenant_id, secret_id, node, version, epoch, at, open) values ($1, $2, $3, $4, $5, $6, $7)
		on conflict (tenant_id, secret_id, node) do update set version = excluded.version, epoch = excluded.epoch, at = excluded.at, open = excluded.open`,
		tx.Tenant(), q.secret, node, q.version, q.epoch, tx.Now(), text)
	return err
}

// unanswered are the nodes that are there and have not answered.
func unanswered(ctx context.Context, tx *db.Tx, r Rotation) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select n.node from rotation_node n where n.until > $4 and not exists (
			select 1 from rotation_ack a where a.tenant_id = $1 and a.secret_id = $2 and a.node = n.node and a.epoch = $3)
		order by n.node`, tx.Tenant(), r.Secret, r.epoch, tx.Now().Add(-skew))
}

// stillOpen is what the nodes that are there have open with the version that is on
// its way out.
func stillOpen(ctx context.Context, tx *db.Tx, r Rotation) (list []secret.Connection, err error) {
	answers, err := db.AllOf[string](ctx, tx, `select a.open from rotation_ack a join rotation_node n on n.node = a.node
		where a.tenant_id = $1 and a.secret_id = $2 and a.version = $3 and n.until > $4 order by a.node`, tx.Tenant(), r.Secret, r.Previous, tx.Now().Add(-skew))
	for _, text := range answers {
		var some []secret.Connection
		if err := json.Unmarshal([]byte(text), &some); err != nil {
			return nil, err
		}
		list = append(list, some...)
	}
	return list, err
}
