package ticket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

const columns = `hash, id, coalesce(parent_id, ''), depth, subject, coalesce(session_id, ''), coalesce(grant_id, ''), rests, mount_id, role, path,
	display_name, kind, policies, meta, created_at, renewed_at, expires_at, ended_at, renewable, ttl, explicit_max_ttl, most_ttl, period,
	uses, coalesce(uses_left, -1), cidrs, certificate`

func scan(tx *db.Tx, columns func(...any) error) (*Ticket, error) {
	t := &Ticket{tenant: tx.Tenant()}
	var meta string
	var ttl, most, explicit, period int64
	err := columns(&t.hash, &t.ID, &t.Parent, &t.depth, &t.Subject, &t.Session, &t.grant, &t.rests, &t.Mount, &t.Role, &t.Path,
		&t.DisplayName, &t.Kind, &t.Policies, &meta, &t.CreatedAt, &t.RenewedAt, &t.ExpiresAt, &t.ended, &t.Renewable, &ttl, &explicit, &most, &period,
		&t.Uses, &t.UsesLeft, &t.CIDRs, &t.Certificate)
	if errors.Is(err, db.ErrNoRows) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	t.TTL, t.ExplicitMax, t.most, t.Period = seconds(ttl), seconds(explicit), seconds(most), seconds(period)
	return t, json.Unmarshal([]byte(meta), &t.Meta)
}

func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }

// whole is a duration as it is stored.
func whole(d time.Duration) int64 { return int64(d / time.Second) }

func findHash(ctx context.Context, tx *db.Tx, hash []byte) (*Ticket, error) {
	return scan(tx, tx.QueryRow(ctx, `select `+columns+` from ticket where tenant_id = $1 and hash = $2`, tx.Tenant(), hash).Scan)
}

func find(ctx context.Context, tx *db.Tx, id string) (*Ticket, error) {
	return scan(tx, tx.QueryRow(ctx, `select `+columns+` from ticket where tenant_id = $1 and id = $2`, tx.Tenant(), id).Scan)
}

// alive is [ErrNotFound] unless a ticket, and every one that it came of, is good
// now.
func alive(ctx context.Context, tx *db.Tx, t *Ticket) error {
	if !t.live(tx.Now()) {
		return ErrNotFound
	}
	if t.Parent == "" {
		return nil
	}
	ok, err := chain(ctx, tx, t.Parent)
	if err == nil && !ok {
		err = ErrNotFound
	}
	return err
}

// chain reports whether a ticket, and every one that it came of, is there and
// good now.
func chain(ctx context.Context, tx *db.Tx, id string) (bool, error) {
	var all, good, roots int64
	err := tx.QueryRow(ctx, `with recursive up(id, parent_id, good) as (
			select id, parent_id, case when ended_at is null and expires_at > $3 then 1 else 0 end from ticket where tenant_id = $1 and id = $2
			union all
			select t.id, t.parent_id, case when t.ended_at is null and t.expires_at > $3 then 1 else 0 end
			from ticket t join up on t.id = up.parent_id where t.tenant_id = $1
		)
		select count(*), coalesce(sum(good), 0), coalesce(sum(case when parent_id is null then 1 else 0 end), 0) from up`,
		tx.Tenant(), id, tx.Now()).Scan(&all, &good, &roots)
	return err == nil && all == good && roots == 1, err
}

// hold reports whether a ticket is good, and keeps it so until the transaction
// ends.
func hold(ctx context.Context, tx *db.Tx, id string) (bool, error) {
	if err := tx.Alive(ctx, db.Epoch{Table: Table, ID: id, Epoch: 1}); err != nil {
		if errors.Is(err, db.ErrStale) {
			err = nil
		}
		return false, err
	}
	return chain(ctx, tx, id)
}

func insert(ctx context.Context, tx *db.Tx, t *Ticket) error {
	var left any
	if t.Uses > 0 {
		left = t.Uses
	}
	_, err := tx.Exec(ctx, `insert into ticket (tenant_id, hash, id, parent_id, depth, subject, session_id, grant_id, rests, mount_id, role, path,
			display_name, kind, policies, meta, created_at, expires_at, renewable, ttl, explicit_max_ttl, most_ttl, period, uses, uses_left, cidrs, certificate)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27)`,
		tx.Tenant(), t.hash, t.ID, db.OrNull(t.Parent), t.depth, t.Subject, db.OrNull(t.Session), db.OrNull(t.grant), t.rests, t.Mount, t.Role, t.Path,
		t.DisplayName, t.Kind, t.Policies, encode(t.Meta), t.CreatedAt, t.ExpiresAt, t.Renewable, whole(t.TTL), whole(t.ExplicitMax), whole(t.most), whole(t.Period),
		t.Uses, left, t.CIDRs, t.Certificate)
	return err
}

// use takes one of the uses of a ticket and says how many are left. It is
// [ErrTicket] if there is none.
func use(ctx context.Context, tx *db.Tx, id string) (left int64, err error) {
	err = tx.QueryRow(ctx, `update ticket set uses_left = uses_left - 1
		where tenant_id = $1 and id = $2 and uses_left > 0 and ended_at is null and expires_at > $3 returning uses_left`,
		tx.Tenant(), id, tx.Now()).Scan(&left)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrTicket
	}
	return left, err
}

// renew stores when a ticket ends, unless somebody else has meanwhile.
func renew(ctx context.Context, tx *db.Tx, t *Ticket, before time.Time) (bool, error) {
	n, err := tx.Exec(ctx, `update ticket set renewed_at = $3, expires_at = $4
		where tenant_id = $1 and id = $2 and ended_at is null and expires_at = $5 and expires_at > $6`,
		tx.Tenant(), t.ID, t.RenewedAt, t.ExpiresAt, before, tx.Now())
	return n == 1, err
}

// endTree ends a ticket and those that came of it, and says which they were. Its
// own row is locked first, so that what is made of it at the same time is seen.
func endTree(ctx context.Context, tx *db.Tx, id string) ([]string, error) {
	var one string
	err := tx.QueryRow(ctx, `select id from ticket where tenant_id = $1 and id = $2 and ended_at is null`+tx.ForUpdate(), tx.Tenant(), id).Scan(&one)
	if errors.Is(err, db.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return db.AllOf[string](ctx, tx, `with recursive down(id) as (
			select id from ticket where tenant_id = $1 and id = $2
			union all
			select t.id from ticket t join down on t.parent_id = down.id where t.tenant_id = $1 and t.ended_at is null
		)
		update ticket set ended_at = $3 where tenant_id = $1 and id in (select id from down) and ended_at is null returning id`,
		tx.Tenant(), id, tx.Now())
}

// orphan has the children of a ticket end with none.
func orphan(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, `update ticket set parent_id = null where tenant_id = $1 and parent_id = $2 and ended_at is null`, tx.Tenant(), id)
	return err
}

// endSession ends the tickets of a session, and says how many there were.
func endSession(ctx context.Context, tx *db.Tx, session string) (int64, error) {
	return tx.Exec(ctx, `update ticket set ended_at = $3 where tenant_id = $1 and session_id = $2 and ended_at is null`, tx.Tenant(), session, tx.Now())
}

func endSubject(ctx context.Context, tx *db.Tx, who estover.Subject) ([]string, error) {
	return db.AllOf[string](ctx, tx, `update ticket set ended_at = $3 where tenant_id = $1 and subject = $2 and ended_at is null returning id`,
		tx.Tenant(), who, tx.Now())
}

func endMount(ctx context.Context, tx *db.Tx, mount string) ([]string, error) {
	return db.AllOf[string](ctx, tx, `update ticket set ended_at = $3 where tenant_id = $1 and mount_id = $2 and ended_at is null returning id`,
		tx.Tenant(), mount, tx.Now())
}

// endRole ends what was got by a role.
func endRole(ctx context.Context, tx *db.Tx, mount, role string) ([]string, error) {
	return db.AllOf[string](ctx, tx, `update ticket set ended_at = $4 where tenant_id = $1 and mount_id = $2 and role = $3 and ended_at is null returning id`,
		tx.Tenant(), mount, role, tx.Now())
}

// mostListed is how many accessors one list holds.
const mostListed = 100_000

func listIDs(ctx context.Context, tx *db.Tx) ([]string, error) {
	return db.AllOf[string](ctx, tx, fmt.Sprintf(`select id from ticket where tenant_id = $1 and ended_at is null and expires_at > $2 and coalesce(uses_left, 1) > 0
		order by id limit %d`, mostListed), tx.Tenant(), tx.Now())
}

// setHolds marks a ticket, and those that it came of.
func setHolds(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, `with recursive up(id, parent_id) as (
			select id, parent_id from ticket where tenant_id = $1 and id = $2
			union all
			select t.id, t.parent_id from ticket t join up on t.id = up.parent_id where t.tenant_id = $1
		)
		update ticket set holds = true where tenant_id = $1 and id in (select id from up) and not holds`, tx.Tenant(), id)
	return err
}

// findDue reads which tickets are over their time and hold something, of all
// tenants.
func findDue(ctx context.Context, tx *db.Tx) ([]db.Place, error) {
	return db.All(ctx, tx, db.ScanPlace, `select tenant_id, id from ticket where holds and ended_at is null and expires_at <= $1 order by expires_at limit 256`, tx.Now())
}

// sweepBatch is how many rows one transaction of a sweep takes away.
const sweepBatch = 500

// sweeps are what is taken away, in this order: what belongs to a row before the
// row. $1 is the time, $2 how many.
var sweeps = []string{
	`delete from cubbyhole where (tenant_id, id) in (select c.tenant_id, c.id from cubbyhole c
		join ticket t on t.tenant_id = c.tenant_id and t.id = c.ticket_id where t.expires_at < $1 or t.ended_at < $1 limit $2)`,
	`delete from ticket where (tenant_id, id) in (select tenant_id, id from ticket t where (expires_at < $1 or ended_at < $1)
		and not exists (select 1 from cubbyhole c where c.tenant_id = t.tenant_id and c.ticket_id = t.id) limit $2)`,
	`delete from ticket_wrap where (tenant_id, id) in (select tenant_id, id from ticket_wrap where expires_at < $1 limit $2)`,
	`delete from ticket_sign_in where (tenant_id, state) in (select tenant_id, state from ticket_sign_in where expires_at < $1 limit $2)`,
	`delete from ticket_secret where (tenant_id, id) in (select tenant_id, id from ticket_secret where expires_at < $1 limit $2)`,
}

func sweep(ctx context.Context, tx *db.Tx, what string, before time.Time) (int64, error) {
	return tx.Exec(ctx, what, before, sweepBatch)
}

// A Crowd says whose way in at the door is meant: that of agents, or of every agent
// if All is set.
type Crowd struct {
	Agents []string
	All    bool
}

// where gives the conditions on a column that names a crowd's agents, with a
// beginning such as "agent:" before each. There are several where it has more agents
// than a statement has arguments. first is the number of their first one.
func (c Crowd) where(column, beginning string, first int, each func(where string, args []any) error) error {
	if c.All {
		return each(column+` like '`+beginning+`%'`, nil)
	}
	for part := range slices.Chunk(c.Agents, 500) {
		var places []string
		var args []any
		for i, id := range part {
			places = append(places, "$"+strconv.Itoa(first+i))
			args = append(args, beginning+id)
		}
		if err := each(column+" in ("+strings.Join(places, ", ")+")", args); err != nil {
			return err
		}
	}
	return nil
}

// A Toll is how many ways in a crowd has at the door.
type Toll struct {
	Tickets   int64 // that were good at the instant that was asked about, or came later
	Good      int64 // of them, those that still are
	SecretIDs int64 // there are
}

// Tolls counts the tickets of a crowd that were good at an instant, or are now if
// that is zero, and its secret-ids.
func Tolls(ctx context.Context, tx *db.Tx, c Crowd, at time.Time) (t Toll, err error) {
	if at.IsZero() {
		at = tx.Now() // nothing has ended later than that
	}
	err = c.where("subject", string(estover.Agent("")), 4, func(where string, args []any) error {
		var all, good int64
		err := tx.QueryRow(ctx, `select count(*), coalesce(sum(case when ended_at is null then 1 else 0 end), 0) from ticket
			where tenant_id = $1 and expires_at > $2 and (ended_at is null or ended_at >= $3) and `+where, append([]any{tx.Tenant(), tx.Now(), at}, args...)...).Scan(&all, &good)
		t.Tickets, t.Good = t.Tickets+all, t.Good+good
		return err
	})
	if err != nil {
		return t, err
	}
	err = c.where("agent_id", "", 2, func(where string, args []any) error {
		var n int64
		err := tx.QueryRow(ctx, `select count(*) from ticket_secret where tenant_id = $1 and role_ref in (select id from ticket_role where tenant_id = $1 and `+where+`)`,
			append([]any{tx.Tenant()}, args...)...).Scan(&n)
		t.SecretIDs += n
		return err
	})
	return t, err
}

func endCrowd(ctx context.Context, tx *db.Tx, c Crowd) (all []string, err error) {
	err = c.where("subject", string(estover.Agent("")), 3, func(where string, args []any) error {
		some, err := db.AllOf[string](ctx, tx, `update ticket set ended_at = $2 where tenant_id = $1 and ended_at is null and `+where+` returning id`, append([]any{tx.Tenant(), tx.Now()}, args...)...)
		all = append(all, some...)
		return err
	})
	return all, err
}

func dropSecretsOfCrowd(ctx context.Context, tx *db.Tx, c Crowd) (total int64, err error) {
	err = c.where("agent_id", "", 2, func(where string, args []any) error {
		n, err := tx.Exec(ctx, `delete from ticket_secret where tenant_id = $1 and role_ref in (select id from ticket_role where tenant_id = $1 and `+where+`)`, append([]any{tx.Tenant()}, args...)...)
		total += n
		return err
	})
	return total, err
}
