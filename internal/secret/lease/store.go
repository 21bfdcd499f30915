package lease

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/target"
)

const roleColumns = `r.id, r.name, t.name, r.target_id, t.reach, r.template, r.resource_id, r.action, r.ttl_s, r.max_ttl_s, r.delivery, r.bind, r.shared,
	r.per_minute, r.description, r.created_at, r.created_by, r.updated_at, r.epoch, r.checked_at, r.checked_reach, r.check_error`

const fromRoles = ` from lease_role r join secret_target t on t.tenant_id = r.tenant_id and t.id = r.target_id `

func scanRole(columns func(...any) error) (r Role, err error) {
	var template string
	err = columns(&r.ID, &r.Name, &r.Target, &r.targetID, &r.targetReach, &template, &r.Resource, &r.Action, &r.TTLSeconds, &r.MaxTTLSeconds, &r.Delivery,
		&r.Bind, &r.Shared, &r.PerMinute, &r.Description, &r.CreatedAt, &r.CreatedBy, &r.UpdatedAt, &r.epoch, &r.CheckedAt, &r.checkedReach, &r.CheckError)
	if err == nil {
		err = json.Unmarshal([]byte(template), &r.Template)
	}
	r.Ready = r.ready()
	return r, err
}

func findRole(ctx context.Context, tx *db.Tx, name string) (*Role, error) {
	r, err := scanRole(tx.QueryRow(ctx, `select `+roleColumns+fromRoles+`where r.tenant_id = $1 and r.name = $2 and r.ended_at is null`, tx.Tenant(), name).Scan)
	if err == db.ErrNoRows {
		return nil, ErrNoRole.With("There is no role %s. See `estover secret role list`.", name)
	}
	return &r, err
}

// holdRole keeps a role to the transaction until that ends, so that those who
// count its leases do so one after the other. It is an error if the role is not as
// it was read.
func holdRole(ctx context.Context, tx *db.Tx, r *Role) error {
	var epoch int64
	err := tx.QueryRow(ctx, `select epoch from lease_role where tenant_id = $1 and id = $2 and ended_at is null`+tx.ForUpdate(), tx.Tenant(), r.ID).Scan(&epoch)
	if err == db.ErrNoRows || err == nil && epoch != r.epoch {
		return ErrRoleChanged
	}
	return err
}

func listRoles(ctx context.Context, tx *db.Tx, after string, limit int) ([]Role, error) {
	return db.All(ctx, tx, scanRole, `select `+roleColumns+fromRoles+`where r.tenant_id = $1 and r.name > $2 and r.ended_at is null order by r.name limit $3`, tx.Tenant(), after, limit)
}

func encodeTemplate(t engine.Template) string {
	if t == nil {
		t = engine.Template{}
	}
	b, err := json.Marshal(t)
	if err != nil {
		panic("lease: a template that has no JSON: " + err.Error())
	}
	return string(b)
}

func insertRole(ctx context.Context, tx *db.Tx, r *Role) error {
	_, err := tx.Exec(ctx, `insert into lease_role (tenant_id, name, id, target_id, template, resource_id, action, ttl_s, max_ttl_s, delivery, bind, shared,
			per_minute, description, created_at, created_by, updated_at, epoch)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)`,
		tx.Tenant(), r.Name, r.ID, r.targetID, encodeTemplate(r.Template), r.Resource, r.Action, r.TTLSeconds, r.MaxTTLSeconds, r.Delivery, r.Bind, r.Shared,
		r.PerMinute, r.Description, r.CreatedAt, r.CreatedBy, r.UpdatedAt, r.epoch)
	if db.Taken(err) {
		return ErrRoleChanged
	}
	return err
}

func replaceRole(ctx context.Context, tx *db.Tx, epoch int64, r *Role) error {
	n, err := tx.Exec(ctx, `update lease_role set template = $4, resource_id = $5, action = $6, ttl_s = $7, max_ttl_s = $8, delivery = $9, bind = $10,
			shared = $11, per_minute = $12, description = $13, updated_at = $14, epoch = $15, checked_at = $16, checked_reach = $17, check_error = $18
		where tenant_id = $1 and id = $2 and epoch = $3 and ended_at is null`,
		tx.Tenant(), r.ID, epoch, encodeTemplate(r.Template), r.Resource, r.Action, r.TTLSeconds, r.MaxTTLSeconds, r.Delivery, r.Bind,
		r.Shared, r.PerMinute, r.Description, r.UpdatedAt, r.epoch, r.CheckedAt, r.checkedReach, r.CheckError)
	if err == nil && n == 0 {
		err = ErrRoleChanged
	}
	return err
}

// saveCheck stores how the whole round went for a role as it was then.
func saveCheck(ctx context.Context, tx *db.Tx, r *Role, failure string) error {
	at := tx.Now()
	if failure != "" {
		at = time.Time{}
	}
	n, err := tx.Exec(ctx, `update lease_role set checked_at = $4, checked_reach = $5, check_error = $6
		where tenant_id = $1 and id = $2 and epoch = $3 and ended_at is null`, tx.Tenant(), r.ID, r.epoch, at, r.targetReach, failure)
	if err == nil && n == 0 {
		err = ErrRoleChanged
	}
	return err
}

func endRole(ctx context.Context, tx *db.Tx, r *Role) error {
	n, err := tx.Exec(ctx, `update lease_role set ended_at = $4, epoch = epoch + 1 where tenant_id = $1 and id = $2 and epoch = $3 and ended_at is null`,
		tx.Tenant(), r.ID, r.epoch, tx.Now())
	if err == nil && n == 0 {
		err = ErrRoleChanged
	}
	return err
}

// AtTarget says which roles and leases keep a target from being removed; "" if none
// do.
func AtTarget(ctx context.Context, tx *db.Tx, at *target.Target) (why string, err error) {
	leases, err := countOpen(ctx, tx, "target_id", at.ID)
	if err != nil {
		return "", err
	}
	var roles int64
	err = tx.QueryRow(ctx, `select count(*) from lease_role where tenant_id = $1 and target_id = $2 and ended_at is null`, tx.Tenant(), at.ID).Scan(&roles)
	if err == nil && leases+roles > 0 {
		why = fmt.Sprintf("%d leases and %d roles are at the target %s. Revoke and remove them first: estover secret lease list --target %s.", leases, roles, at.Name, at.Name)
	}
	return why, err
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

// OpenOf is how many leases of a tenant have not ended, for who asks as another.
func OpenOf(ctx context.Context, tx *db.Tx, tenant estover.TenantID) (n int64, err error) {
	err = tx.QueryRow(ctx, `select count(*) from lease where tenant_id = $1 and ended_at is null`, tenant).Scan(&n)
	return n, err
}

const columns = `id, role, role_id, target_id, name, template, resource_id, delivery, state, trial, session_id, agent_id, holder, token_id,
	grant_id, authority_id, share, created_at, expires_at, expires_by, max_at, create_by, create_done, cause, priority, due_at, next_try_at, attempts, alone, fence, last_error,
	alarmed_at, declared_by, ended_at, sealed`

// maybe is a text that may be null.
type maybe string

// Scan takes NULL for an empty text.
func (m *maybe) Scan(src any) error {
	switch v := src.(type) {
	case nil:
		*m = ""
	case string:
		*m = maybe(v)
	case []byte:
		*m = maybe(v)
	default:
		return fmt.Errorf("scanning %T as a text", src)
	}
	return nil
}

func scanLease(now time.Time, columns func(...any) error) (*Lease, error) {
	x := &Lease{}
	var template string
	var share, declared maybe
	err := columns(&x.ID, &x.Role, &x.roleID, &x.Target, &x.User, &template, &x.Resource, &x.Delivery, &x.State, &x.Trial, &x.Session, &x.Agent, &x.Holder,
		&x.Token, &x.Grant, &x.authority, &share, &x.CreatedAt, &x.ExpiresAt, &x.ExpiresBy, &x.MaxAt, &x.createBy, &x.createDone, &x.Cause, &x.Priority, &x.DueAt, &x.NextTryAt,
		&x.Attempts, &x.alone, &x.fence, &x.LastError, &x.alarmedAt, &declared, &x.EndedAt, &x.sealed)
	if err == nil {
		err = json.Unmarshal([]byte(template), &x.template)
	}
	x.share, x.Declared = string(share), estover.Subject(declared)
	x.Overdue = x.overdue(now)
	return x, err
}

func find(ctx context.Context, tx *db.Tx, id string) (*Lease, error) {
	x, err := scanLease(tx.Now(), tx.QueryRow(ctx, `select `+columns+` from lease where tenant_id = $1 and id = $2`, tx.Tenant(), id).Scan)
	if err == db.ErrNoRows {
		return nil, ErrNotFound
	}
	return x, err
}

// findShared reads the lease that a session has of a role already.
func findShared(ctx context.Context, tx *db.Tx, share string) (*Lease, error) {
	x, err := scanLease(tx.Now(), tx.QueryRow(ctx, `select `+columns+` from lease where tenant_id = $1 and share = $2`, tx.Tenant(), share).Scan)
	if err == db.ErrNoRows {
		return nil, ErrNotFound
	}
	return x, err
}

// unshare has a lease not be found again by who asks for the same.
func unshare(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, `update lease set share = null where tenant_id = $1 and id = $2`, tx.Tenant(), id)
	return err
}

func list(ctx context.Context, tx *db.Tx, f Filter, after string, limit int) ([]Lease, error) {
	query := []string{`select ` + columns + ` from lease where tenant_id = $1`}
	args := []any{tx.Tenant()}
	where := func(clause string, v ...any) {
		query = append(query, "and "+numbered(clause, len(args)))
		args = append(args, v...)
	}
	if f.ID != "" {
		where("id = ?", f.ID)
	}
	if f.Session != "" {
		where("session_id = ?", f.Session)
	}
	if f.Agent != "" {
		where("agent_id = ?", f.Agent)
	}
	if f.Role != "" {
		where("role = ?", f.Role)
	}
	if f.Target != "" {
		where("target_id = ?", f.Target)
	}
	if f.State != "" {
		where("state = ?", f.State)
	}
	if f.Open || f.Overdue {
		where("ended_at is null")
	}
	if f.Overdue {
		where(overdueWhere("?", "?"), tx.Now().Add(-patienceContained), tx.Now().Add(-patience))
	}
	if after != "" {
		where(`(created_at < (select created_at from lease where tenant_id = $1 and id = ?) or created_at = (select created_at from lease where tenant_id = $1 and id = ?) and id < ?)`, after, after, after)
	}
	args = append(args, limit)
	query = append(query, "order by created_at desc, id desc limit $"+strconv.Itoa(len(args)))
	return db.All(ctx, tx, func(columns func(...any) error) (Lease, error) {
		x, err := scanLease(tx.Now(), columns)
		return *x, err
	}, strings.Join(query, " "), args...)
}

// overdueWhere is the condition of a lease that is overdue, given two instants:
// before the first those that were contained, before the second the others.
func overdueWhere(contained, others string) string {
	return `state = 'revoking' and due_at < ` + contained + ` and (priority = 0 or due_at < ` + others + `)`
}

// countOpen is how many leases with this in a column have not ended.
func countOpen(ctx context.Context, tx *db.Tx, column, value string) (n int64, err error) {
	err = tx.QueryRow(ctx, `select count(*) from lease where tenant_id = $1 and `+column+` = $2 and ended_at is null`, tx.Tenant(), value).Scan(&n)
	return n, err
}

// countLive is how many leases an agent has that may be used, or may be soon.
func countLive(ctx context.Context, tx *db.Tx, agent string) (n int64, err error) {
	err = tx.QueryRow(ctx, `select count(*) from lease where tenant_id = $1 and agent_id = $2 and ended_at is null and state in ('creating', 'live')`, tx.Tenant(), agent).Scan(&n)
	return n, err
}

// countMade is how many leases of a role were made since.
func countMade(ctx context.Context, tx *db.Tx, role string, since time.Time) (n int64, err error) {
	err = tx.QueryRow(ctx, `select count(*) from lease where tenant_id = $1 and role_id = $2 and created_at > $3`, tx.Tenant(), role, since).Scan(&n)
	return n, err
}

// madeAt is when the one of a role was made that n others since then came before.
func madeAt(ctx context.Context, tx *db.Tx, role string, since time.Time, n int64) (at time.Time, err error) {
	err = tx.QueryRow(ctx, `select created_at from lease where tenant_id = $1 and role_id = $2 and created_at > $3 order by created_at limit 1 offset $4`,
		tx.Tenant(), role, since, n).Scan(&at)
	return at, err
}

// backlog is what of a target's leases is overdue: whether there are more than
// most, and since when the oldest should be gone.
func backlog(ctx context.Context, tx *db.Tx, target string, most int) (more bool, oldest time.Time, err error) {
	err = tx.QueryRow(ctx, `select min(due_at) from lease where tenant_id = $1 and target_id = $2 and state = 'revoking'`, tx.Tenant(), target).Scan(&oldest)
	if err != nil || oldest.IsZero() || tx.Now().Sub(oldest) < patienceContained {
		return false, oldest, err
	}
	var n int
	err = tx.QueryRow(ctx, `select count(*) from (select 1 as one from lease where tenant_id = $1 and target_id = $2 and `+overdueWhere("$3", "$4")+` limit $5) x`,
		tx.Tenant(), target, tx.Now().Add(-patienceContained), tx.Now().Add(-patience), most+1).Scan(&n)
	return n > most, oldest, err
}

func insert(ctx context.Context, tx *db.Tx, x *Lease) error {
	_, err := tx.Exec(ctx, `insert into lease (tenant_id, id, role, role_id, target_id, name, template, resource_id, delivery, state, trial, session_id, agent_id,
			holder, token_id, share, created_at, expires_at, expires_by, max_at, create_by, grant_id, authority_id)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23)`,
		tx.Tenant(), x.ID, x.Role, x.roleID, x.Target, x.User, encodeTemplate(x.template), x.Resource, x.Delivery, x.State, x.Trial, x.Session, x.Agent,
		x.Holder, x.Token, db.OrNull(x.share), x.CreatedAt, x.ExpiresAt, x.ExpiresBy, x.MaxAt, x.createBy, x.Grant, x.authority)
	return err
}

// activate has a lease that was being created be live.
func activate(ctx context.Context, tx *db.Tx, id string, sealed []byte) (bool, error) {
	n, err := tx.Exec(ctx, `update lease set state = 'live', create_done = $3, sealed = $4 where tenant_id = $1 and id = $2 and state = 'creating'`,
		tx.Tenant(), id, tx.Now(), sealed)
	return n > 0, err
}

// savePrints stores by what the values of a lease are recognised.
func savePrints(ctx context.Context, tx *db.Tx, id string, prints []print) error {
	for _, p := range prints {
		if _, err := tx.Exec(ctx, `insert into lease_fingerprint (tenant_id, digest, lease_id, field) values ($1, $2, $3, $4)`,
			tx.Tenant(), p.digest, id, p.field); err != nil {
			return err
		}
	}
	return nil
}

// printed are the leases one of whose values has this fingerprint.
func printed(ctx context.Context, tx *db.Tx, digest []byte) ([]Sighting, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (s Sighting, err error) {
		err = columns(&s.Lease, &s.Field)
		return s, err
	}, `select f.lease_id, f.field from lease_fingerprint f join lease l on l.tenant_id = f.tenant_id and l.id = f.lease_id
		where f.tenant_id = $1 and f.digest = $2 order by l.created_at desc, f.lease_id, f.field limit 100`, tx.Tenant(), digest)
}

// liveAmong are those of some leases that are live.
func liveAmong(ctx context.Context, tx *db.Tx, ids []string) (map[string]bool, error) {
	where, args := in("id", ids)
	live, err := db.AllOf[string](ctx, tx, `select id from lease where tenant_id = $1 and state = 'live' and `+numbered(where, 1), append([]any{tx.Tenant()}, args...)...)
	return setOf(live), err
}

func setOf(names []string) map[string]bool {
	set := make(map[string]bool, len(names))
	for _, name := range names {
		set[name] = true
	}
	return set
}

// reported stores that the creator knows what has become of a credential, and
// that nobody has ended yet.
func reported(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, `update lease set create_done = $3, next_try_at = case when state = 'revoking' then $3 end
		where tenant_id = $1 and id = $2 and create_done is null and state in ('creating', 'revoking')`, tx.Tenant(), id, tx.Now())
	return err
}

// settle ends a lease whose creator knows that there is no credential.
func settle(ctx context.Context, tx *db.Tx, id string, cause Cause, reason string) (bool, error) {
	n, err := tx.Exec(ctx, `update lease set state = 'ended', ended_at = $3, create_done = $3, next_try_at = null, share = null, sealed = null,
			cause = case when cause = '' then $4 else cause end, due_at = coalesce(due_at, $3), last_error = $5
		where tenant_id = $1 and id = $2 and state in ('creating', 'revoking') and create_done is null and claimed_by is null`,
		tx.Tenant(), id, tx.Now(), cause, reason)
	return n > 0, err
}

// afterCreation is how long after the last instant at which a target may obey its
// creator a user is taken away whose creator has not reported (L6).
const afterCreation = 5 * time.Second

// mark has the leases that a condition names be revoked from here on. It says how
// many there were. Those that are being revoked already are tried in the better
// of their orders: so many were raised.
func mark(ctx context.Context, tx *db.Tx, cause Cause, where string, args ...any) (n, raised int64, err error) {
	base := []any{tx.Tenant(), tx.Now(), cause, cause.priority(), int64(afterCreation / time.Microsecond)}
	n, err = tx.Exec(ctx, `update lease set state = 'revoking', cause = $3, priority = $4, due_at = $2, sealed = null, share = null,
			next_try_at = case when state = 'creating' and create_done is null then create_by + $5 else $2 end
		where tenant_id = $1 and ended_at is null and state in ('creating', 'live') and `+numbered(where, len(base)), append(base, args...)...)
	if err != nil || cause.priority() > 1 {
		return n, 0, err
	}
	raised, err = tx.Exec(ctx, `update lease set priority = $3, next_try_at = case when create_done is null then next_try_at else $2 end
		where tenant_id = $1 and ended_at is null and state = 'revoking' and priority > $3 and `+numbered(where, 3), append([]any{tx.Tenant(), tx.Now(), cause.priority()}, args...)...)
	return n, raised, err
}

// in is a condition on a column, and its arguments.
func in(column string, values []string) (where string, args []any) {
	for i, v := range values {
		if i > 0 {
			where += ", "
		}
		where += "?"
		args = append(args, v)
	}
	return column + " in (" + where + ")", args
}

// numbered has each ? of a condition be an argument of its statement, of those that
// come after so many.
func numbered(where string, after int) string {
	parts := strings.Split(where, "?")
	for i := 1; i < len(parts); i++ {
		parts[i] = "$" + strconv.Itoa(after+i) + parts[i]
	}
	return strings.Join(parts, "")
}

// A span is a target of a tenant.
type span struct {
	tenant estover.TenantID
	target string
}

// dueTargets are the targets at which something is due, of all tenants.
func dueTargets(ctx context.Context, tx *db.Tx) ([]span, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (s span, err error) {
		err = columns(&s.tenant, &s.target)
		return s, err
	}, `select t.tenant_id, t.id from secret_target t where exists (select 1 from lease l
		where l.tenant_id = t.tenant_id and l.target_id = t.id and l.state = 'revoking' and l.priority in (0, 1, 2, 3) and l.next_try_at <= $1)`, tx.Now())
}

// lateTenants are the tenants of leases that have expired, or that were to be made
// by now.
func lateTenants(ctx context.Context, tx *db.Tx) ([]estover.TenantID, error) {
	return db.AllOf[estover.TenantID](ctx, tx, `select tenant_id from (select tenant_id from lease where state = 'live' and expires_at <= $1 order by expires_at limit 1000) e
		union select tenant_id from (select tenant_id from lease where state = 'creating' and create_by < $1 order by create_by limit 1000) c`, tx.Now())
}

// markAtOnce bounds how many leases one transaction of the sweep marks.
const markAtOnce = 2000

// markExpired has leases be revoked whose time is over.
func markExpired(ctx context.Context, tx *db.Tx) (int64, error) {
	n, _, err := mark(ctx, tx, Expired, `id in (select id from lease where tenant_id = $1 and state = 'live' and expires_at <= $2 order by expires_at limit ?)`, markAtOnce)
	return n, err
}

// markLate has leases be revoked that were to be made by now.
func markLate(ctx context.Context, tx *db.Tx) (int64, error) {
	n, _, err := mark(ctx, tx, Failed, `id in (select id from lease where tenant_id = $1 and state = 'creating' and create_by < $2 order by create_by limit ?)`, markAtOnce)
	return n, err
}

// atOnce is how many users one batch takes away.
const atOnce = 50

// revoking is the condition that a lease is being revoked, for statements that name
// it by its id. It is written so that no index of leases that are being revoked
// fits: the statistics of a database that has just marked a hundred thousand say
// that there are none, and it would read them all to find one.
const revoking = `state not in ('creating', 'live', 'ended')`

// claim takes the leases of a target whose turn it is, by priority and time: at
// most a batch of them. Nobody else has them before until, and who claims at the same
// moment gets others, at once.
func claim(ctx context.Context, tx *db.Tx, target, node string, until time.Time) (batch []*Lease, err error) {
	for p := int64(0); p < 4 && len(batch) < atOnce; p++ {
		some, err := db.All(ctx, tx, func(columns func(...any) error) (*Lease, error) {
			return scanLease(tx.Now(), columns)
		}, `with turn as materialized (select id from lease where tenant_id = $1 and target_id = $2 and state = 'revoking' and priority = $3 and next_try_at <= $4
					and (claimed_until is null or claimed_until <= $4) and (create_done is not null or create_by + $8 <= $4)
				order by next_try_at limit $7`+tx.SkipLocked()+`)
			update lease set claimed_by = $5, claimed_until = $6, fence = fence + 1
			where tenant_id = $1 and `+revoking+` and next_try_at <= $4 and (claimed_until is null or claimed_until <= $4)
				and (create_done is not null or create_by + $8 <= $4) and id in (select id from turn)
			returning `+columns, tx.Tenant(), target, p, tx.Now(), node, until, atOnce-len(batch), int64(afterCreation/time.Microsecond))
		if err != nil {
			return nil, err
		}
		batch = append(batch, some...)
	}
	return batch, nil
}

// finish ends a lease that was claimed with this fence, and reports whether it
// was still.
func finish(ctx context.Context, tx *db.Tx, x *Lease) (bool, error) {
	n, err := tx.Exec(ctx, `update lease set state = 'ended', ended_at = $4, next_try_at = null, claimed_by = null, claimed_until = null, last_error = ''
		where tenant_id = $1 and id = $2 and fence = $3 and `+revoking, tx.Tenant(), x.ID, x.fence, tx.Now())
	return n > 0, err
}

// putOff stores that a lease could not be ended, and when it is tried again.
func putOff(ctx context.Context, tx *db.Tx, x *Lease, reason string, alone bool, next time.Time) error {
	_, err := tx.Exec(ctx, `update lease set attempts = attempts + 1, next_try_at = $4, claimed_by = null, claimed_until = null, last_error = $5, alone = $6
		where tenant_id = $1 and id = $2 and fence = $3 and `+revoking, tx.Tenant(), x.ID, x.fence, next, reason, alone)
	return err
}

// letGo gives up the claim on leases that were not tried.
func letGo(ctx context.Context, tx *db.Tx, x *Lease) error {
	_, err := tx.Exec(ctx, `update lease set claimed_by = null, claimed_until = null where tenant_id = $1 and id = $2 and fence = $3 and `+revoking,
		tx.Tenant(), x.ID, x.fence)
	return err
}

// release frees the leases of all tenants that a node has claimed which is no more.
func release(ctx context.Context, tx *db.Tx, node string) error {
	_, err := tx.Exec(ctx, `update lease set claimed_by = null, claimed_until = null, fence = fence + 1 where state = 'revoking' and claimed_by = $1`, node)
	return err
}

// alarmedLeft reports whether leases of a target whose alarm was raised are still
// there.
func alarmedLeft(ctx context.Context, tx *db.Tx, target string) (bool, error) {
	return db.Exists(ctx, tx, `select 1 from lease where tenant_id = $1 and target_id = $2 and state = 'revoking' and alarmed_at is not null limit 1`, tx.Tenant(), target)
}

// extend stores that a live lease goes on, unless it is not as it was read.
func extend(ctx context.Context, tx *db.Tx, was, x *Lease) (bool, error) {
	n, err := tx.Exec(ctx, `update lease set expires_at = $4, expires_by = $5, grant_id = $6 where tenant_id = $1 and id = $2 and state = 'live' and expires_at = $3`,
		tx.Tenant(), x.ID, was.ExpiresAt, x.ExpiresAt, x.ExpiresBy, x.Grant)
	return n > 0, err
}

// unalarmed are leases that are overdue and of which that is not on record.
func unalarmed(ctx context.Context, tx *db.Tx) (all map[span][]*Lease, err error) {
	rows, err := tx.Query(ctx, `select tenant_id, `+columns+` from lease where alarmed_at is null and `+overdueWhere("$1", "$2")+` order by due_at limit 1000`,
		tx.Now().Add(-patienceContained), tx.Now().Add(-patience))
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	all = map[span][]*Lease{}
	for rows.Next() {
		var tenant estover.TenantID
		x, err := scanLease(tx.Now(), func(into ...any) error { return rows.Scan(append([]any{&tenant}, into...)...) })
		if err != nil {
			return nil, err
		}
		s := span{tenant, x.Target}
		all[s] = append(all[s], x)
	}
	return all, rows.Err()
}

// alarm stores that it is on record that a lease is overdue.
func alarm(ctx context.Context, tx *db.Tx, x *Lease) (bool, error) {
	n, err := tx.Exec(ctx, `update lease set alarmed_at = $3 where tenant_id = $1 and id = $2 and alarmed_at is null and `+revoking, tx.Tenant(), x.ID, tx.Now())
	return n > 0, err
}

// standing counts the leases for which a condition holds.
func standing(ctx context.Context, tx *db.Tx, where string, args ...any) (s Standing, err error) {
	base := []any{tx.Tenant(), tx.Now().Add(-patienceContained), tx.Now().Add(-patience)}
	err = tx.QueryRow(ctx, `select count(*), coalesce(sum(case when state = 'revoking' then 1 else 0 end), 0),
			coalesce(sum(case when `+overdueWhere("$2", "$3")+` then 1 else 0 end), 0)
		from lease where tenant_id = $1 and ended_at is null and `+numbered(where, len(base)), append(base, args...)...).Scan(&s.Open, &s.Revoking, &s.Overdue)
	return s, err
}

// targetsOf are the targets of leases that have not ended and for which a
// condition holds.
func targetsOf(ctx context.Context, tx *db.Tx, since time.Time, where string, args ...any) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select distinct target_id from lease where tenant_id = $1 and (ended_at is null or ended_at >= $2) and `+numbered(where, 2)+` limit 100`, append([]any{tx.Tenant(), since}, args...)...)
}

// endDeclared ends the leases of a target of which another person has said that it
// is no more.
func endDeclared(ctx context.Context, tx *db.Tx, target string, by estover.Subject) (int64, error) {
	return tx.Exec(ctx, `update lease set state = 'ended', ended_at = $3, next_try_at = null, claimed_by = null, claimed_until = null, fence = fence + 1
		where tenant_id = $1 and target_id = $2 and state = 'revoking' and declared_by is not null and declared_by <> $4`, tx.Tenant(), target, tx.Now(), by)
}

// declare stores who says that a target is no more, for leases of which nobody has.
func declare(ctx context.Context, tx *db.Tx, target string, by estover.Subject, reason string) (int64, error) {
	return tx.Exec(ctx, `update lease set declared_by = $3, declared_for = $4
		where tenant_id = $1 and target_id = $2 and state = 'revoking' and declared_by is null`, tx.Tenant(), target, by, reason)
}

// declaredBy is how many leases wait for a second person after this one.
func declaredBy(ctx context.Context, tx *db.Tx, target string, by estover.Subject) (n int64, err error) {
	err = tx.QueryRow(ctx, `select count(*) from lease where tenant_id = $1 and target_id = $2 and state = 'revoking' and declared_by = $3`,
		tx.Tenant(), target, by).Scan(&n)
	return n, err
}

// containedLeft counts the leases that were contained and are not gone, by who
// holds them, the session and the resource.
func containedLeft(ctx context.Context, tx *db.Tx, is func(agent, session, resource string) bool) (total int64, err error) {
	rows, err := tx.Query(ctx, `select agent_id, session_id, resource_id, count(*) from lease
		where tenant_id = $1 and ended_at is null and state = 'revoking' and priority = 0 group by agent_id, session_id, resource_id`, tx.Tenant())
	if err != nil {
		return 0, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var agent, session, resource string
		var n int64
		if err := rows.Scan(&agent, &session, &resource, &n); err != nil {
			return 0, err
		}
		if is(agent, session, resource) {
			total += n
		}
	}
	return total, rows.Err()
}

// containedAt are the targets of the leases that were contained and have not ended, or
// have since, of which is says so.
func containedAt(ctx context.Context, tx *db.Tx, since time.Time, is func(agent, session, resource string) bool) (ids []string, err error) {
	rows, err := tx.Query(ctx, `select agent_id, session_id, resource_id, target_id from lease
			where tenant_id = $1 and ended_at is null and state = 'revoking' and priority = 0
		union select agent_id, session_id, resource_id, target_id from lease
			where tenant_id = $1 and ended_at >= $2 and ended_at is not null and priority = 0`, tx.Tenant(), since)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var agent, session, resource, target string
		if err := rows.Scan(&agent, &session, &resource, &target); err != nil {
			return nil, err
		}
		if is(agent, session, resource) && !slices.Contains(ids, target) {
			ids = append(ids, target)
		}
	}
	return ids, rows.Err()
}

// openNames are the users of all leases that have not ended.
func openNames(ctx context.Context, tx *db.Tx) (map[string]bool, error) {
	known, err := db.AllOf[string](ctx, tx, `select name from lease where tenant_id = $1 and ended_at is null`, tx.Tenant())
	return setOf(known), err
}

// liveElsewhere are the live leases of a target, made before an instant, whose
// users are none of these: their ids and their users.
func liveElsewhere(ctx context.Context, tx *db.Tx, target string, before time.Time, users []string) (ids, names []string, err error) {
	there := setOf(users)
	rows, err := tx.Query(ctx, `select id, name from lease where tenant_id = $1 and target_id = $2 and state = 'live' and created_at < $3 and ended_at is null`,
		tx.Tenant(), target, before)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id, name string
		if err := rows.Scan(&id, &name); err != nil {
			return nil, nil, err
		}
		if !there[name] {
			ids, names = append(ids, id), append(names, name)
		}
	}
	return ids, names, rows.Err()
}

// longestAt is for how long a credential of a target may live at most, by the roles
// there.
func longestAt(ctx context.Context, tx *db.Tx, target string) (time.Duration, error) {
	var seconds int64
	err := tx.QueryRow(ctx, `select coalesce(max(max_ttl_s), 0) from lease_role where tenant_id = $1 and target_id = $2`, tx.Tenant(), target).Scan(&seconds)
	return time.Duration(seconds) * time.Second, err
}

func saveStray(ctx context.Context, tx *db.Tx, target string, s Stray) error {
	_, err := tx.Exec(ctx, `insert into lease_stray (tenant_id, target_id, name, found_at, locked_at, drop_at, last_error)
		values ($1, $2, $3, $4, $5, $6, $7)
		on conflict (tenant_id, target_id, name) do update set locked_at = coalesce(lease_stray.locked_at, excluded.locked_at), last_error = excluded.last_error`,
		tx.Tenant(), target, s.User, s.FoundAt, s.LockedAt, s.DropAt, s.LastError)
	return err
}

func dropStray(ctx context.Context, tx *db.Tx, target, user string) error {
	_, err := tx.Exec(ctx, `delete from lease_stray where tenant_id = $1 and target_id = $2 and name = $3`, tx.Tenant(), target, user)
	return err
}

func putOffStray(ctx context.Context, tx *db.Tx, target, user, reason string, next time.Time) error {
	_, err := tx.Exec(ctx, `update lease_stray set drop_at = $4, last_error = $5 where tenant_id = $1 and target_id = $2 and name = $3`,
		tx.Tenant(), target, user, next, reason)
	return err
}

func strays(ctx context.Context, tx *db.Tx, target string) ([]Stray, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (s Stray, err error) {
		err = columns(&s.User, &s.FoundAt, &s.LockedAt, &s.DropAt, &s.LastError)
		return s, err
	}, `select name, found_at, locked_at, drop_at, last_error from lease_stray where tenant_id = $1 and target_id = $2 order by name limit 1000`,
		tx.Tenant(), target)
}

// dueStrays are the users of whom no lease knows and whose hour is over, by their
// targets.
func dueStrays(ctx context.Context, tx *db.Tx) (map[span][]string, error) {
	rows, err := tx.Query(ctx, `select tenant_id, target_id, name from lease_stray where drop_at <= $1 order by drop_at limit $2`, tx.Now(), atOnce)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	due := map[span][]string{}
	for rows.Next() {
		var s span
		var name string
		if err := rows.Scan(&s.tenant, &s.target, &name); err != nil {
			return nil, err
		}
		due[s] = append(due[s], name)
	}
	return due, rows.Err()
}

// tolls counts, by target, the leases for which a condition holds and that had not
// ended at an instant, or have not now if that is zero.
func tolls(ctx context.Context, tx *db.Tx, at time.Time, where string, args ...any) ([]Toll, error) {
	base, open := []any{tx.Tenant(), tx.Now().Add(-patienceContained), tx.Now().Add(-patience)}, "ended_at is null"
	if !at.IsZero() {
		base, open = append(base, at), "(ended_at is null or ended_at >= $4)"
	}
	return db.All(ctx, tx, func(columns func(...any) error) (t Toll, err error) {
		err = columns(&t.TargetID, &t.Target, &t.Leases, &t.Open, &t.Revoking, &t.Overdue, &t.Oldest)
		t.Target = cmp.Or(t.Target, t.TargetID)
		return t, err
	}, `select target_id, coalesce((select t.name from secret_target t where t.tenant_id = lease.tenant_id and t.id = lease.target_id), ''), count(*),
			sum(case when ended_at is null then 1 else 0 end), sum(case when state = 'revoking' then 1 else 0 end),
			sum(case when `+overdueWhere("$2", "$3")+` then 1 else 0 end), min(case when ended_at is null then due_at end)
		from lease where tenant_id = $1 and `+open+` and `+numbered(where, len(base))+` group by tenant_id, target_id`, append(base, args...)...)
}

// everywhere counts the leases of all tenants that have not ended.
func everywhere(ctx context.Context, tx *db.Tx) (s Standing, err error) {
	err = tx.QueryRow(ctx, `select count(*), coalesce(sum(case when state = 'revoking' then 1 else 0 end), 0),
			coalesce(sum(case when `+overdueWhere("$1", "$2")+` then 1 else 0 end), 0)
		from lease where ended_at is null`, tx.Now().Add(-patienceContained), tx.Now().Add(-patience)).Scan(&s.Open, &s.Revoking, &s.Overdue)
	return s, err
}
