package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

const columns = "id, spec, managed_by, created_at, created_by, changed_at, ended_at, epoch, failing_since, failure"

func scan(columns func(...any) error) (c Channel, err error) {
	var spec string
	err = columns(&c.ID, &spec, &c.ManagedBy, &c.CreatedAt, &c.CreatedBy, &c.ChangedAt, &c.EndedAt, &c.Epoch, &c.FailingSince, &c.Failure)
	if errors.Is(err, db.ErrNoRows) {
		return c, ErrNotFound
	}
	if err == nil {
		err = json.Unmarshal([]byte(spec), &c.Spec)
	}
	if err != nil {
		return c, fmt.Errorf("reading a channel: %w", err)
	}
	return c, nil
}

// findName reads the channel of this name that has not ended.
func findName(ctx context.Context, tx *db.Tx, name, lock string) (Channel, error) {
	return scan(tx.QueryRow(ctx, "select "+columns+" from channel where tenant_id = $1 and name = $2 and ended_at is null"+lock, tx.Tenant(), name).Scan)
}

// live are the channels that have not ended, by name.
func live(ctx context.Context, tx *db.Tx) ([]Channel, error) {
	return db.All(ctx, tx, scan, "select "+columns+" from channel where tenant_id = $1 and ended_at is null order by name", tx.Tenant())
}

// insert adds a channel, unless another of the name was added meanwhile.
func insert(ctx context.Context, tx *db.Tx, c Channel) error {
	spec, err := json.Marshal(c.Spec)
	if err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `insert into channel (tenant_id, id, name, kind, spec, managed_by, created_at, created_by, changed_at, epoch)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict do nothing`,
		tx.Tenant(), c.ID, c.Name, c.Kind, string(spec), c.ManagedBy, c.CreatedAt, c.CreatedBy, c.ChangedAt, c.Epoch)
	if err == nil && n == 0 {
		return db.ErrStale
	}
	return err
}

// update stores a channel, unless another has changed it since.
func update(ctx context.Context, tx *db.Tx, c Channel) error {
	spec, err := json.Marshal(c.Spec)
	if err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `update channel set spec = $3, changed_at = $4, ended_at = $5, epoch = $6, failing_since = $7, failure = $8
		where tenant_id = $1 and id = $2 and epoch = $6 - 1 and ended_at is null`,
		tx.Tenant(), c.ID, string(spec), c.ChangedAt, c.EndedAt, c.Epoch, c.FailingSince, c.Failure)
	if err == nil && n == 0 {
		return db.ErrStale
	}
	return err
}

// fails notes that nothing gets through, or that something did: why is "".
func fails(ctx context.Context, tx *db.Tx, id, why string) error {
	var err error
	if why == "" {
		_, err = tx.Exec(ctx, "update channel set failing_since = null, failure = '' where tenant_id = $1 and id = $2 and failing_since is not null", tx.Tenant(), id)
	} else {
		_, err = tx.Exec(ctx, "update channel set failing_since = coalesce(failing_since, $3), failure = $4 where tenant_id = $1 and id = $2", tx.Tenant(), id, tx.Now(), why)
	}
	return err
}

// waiting is how much a channel has still to say.
func waiting(ctx context.Context, tx *db.Tx, id string) (n int64, err error) {
	err = tx.QueryRow(ctx, "select count(*) from channel_message where tenant_id = $1 and channel_id = $2 and state = 'waiting'", tx.Tenant(), id).Scan(&n)
	return n, err
}

// dropAll drops what a channel had still to say.
func dropAll(ctx context.Context, tx *db.Tx, id string) (int64, error) {
	return tx.Exec(ctx, "update channel_message set state = 'dropped', ended_at = $3 where tenant_id = $1 and channel_id = $2 and state = 'waiting'", tx.Tenant(), id, tx.Now())
}

// enqueue adds what is to be said, unless it is there already: an event may come
// again.
func enqueue(ctx context.Context, tx *db.Tx, m message) error {
	e, err := json.Marshal(m.event)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `insert into channel_message (tenant_id, id, channel_id, recipient, event_id, n, event, state, created_at, due_at)
		values ($1, $2, $3, $4, $5, $6, $7, 'waiting', $8, $9) on conflict do nothing`,
		tx.Tenant(), m.id, m.channel, m.recipient, m.event.ID, m.n, string(e), tx.Now(), m.due)
	return err
}

// dueLines are the lines of all tenants in which something is due.
func dueLines(ctx context.Context, tx *db.Tx, limit int) ([]line, error) {
	return db.All(ctx, tx, func(scan func(...any) error) (l line, err error) {
		err = scan(&l.tenant, &l.channel, &l.recipient)
		return l, err
	}, `select distinct tenant_id, channel_id, recipient from channel_message
		where state = 'waiting' and due_at <= $1 limit $2`, tx.Now(), limit)
}

// head are the first messages that wait in a line, in its order.
func head(ctx context.Context, tx *db.Tx, l line, limit int) ([]message, error) {
	return db.All(ctx, tx, func(scan func(...any) error) (message, error) {
		m := message{channel: l.channel, recipient: l.recipient}
		var text string
		if err := scan(&m.id, &text, &m.bundle, &m.attempts, &m.created, &m.due); err != nil {
			return m, err
		}
		if err := json.Unmarshal([]byte(text), &m.event); err != nil {
			return m, fmt.Errorf("reading what is to be told: %w", err)
		}
		return m, nil
	}, `select id, event, coalesce(bundle, ''), attempts, created_at, due_at from channel_message
		where tenant_id = $1 and channel_id = $2 and recipient = $3 and state = 'waiting' order by n, id limit $4`,
		tx.Tenant(), l.channel, l.recipient, limit)
}

// bound puts messages into one bundle, unless one of them is in another.
func bound(ctx context.Context, tx *db.Tx, list []message, bundle string) error {
	for _, m := range list {
		n, err := tx.Exec(ctx, "update channel_message set bundle = $3 where tenant_id = $1 and id = $2 and bundle is null and state = 'waiting'", tx.Tenant(), m.id, bundle)
		if err != nil {
			return err
		}
		if n == 0 {
			return db.ErrStale
		}
	}
	return nil
}

// settle ends a bundle as sent or dropped. It says how many messages that were.
func settle(ctx context.Context, tx *db.Tx, l line, bundle, state string) (int64, error) {
	return tx.Exec(ctx, `update channel_message set state = $5, ended_at = $6
		where tenant_id = $1 and channel_id = $2 and recipient = $3 and bundle = $4 and state = 'waiting'`,
		tx.Tenant(), l.channel, l.recipient, bundle, state, tx.Now())
}

// postpone tries a bundle again later.
func postpone(ctx context.Context, tx *db.Tx, l line, bundle string, until time.Time) error {
	_, err := tx.Exec(ctx, `update channel_message set attempts = attempts + 1, due_at = $5
		where tenant_id = $1 and channel_id = $2 and recipient = $3 and bundle = $4 and state = 'waiting'`,
		tx.Tenant(), l.channel, l.recipient, bundle, until)
	return err
}

// hold has all that waits in a line wait until a time.
func hold(ctx context.Context, tx *db.Tx, l line, until time.Time) error {
	_, err := tx.Exec(ctx, `update channel_message set due_at = $4
		where tenant_id = $1 and channel_id = $2 and recipient = $3 and state = 'waiting' and bundle is null and due_at < $4`,
		tx.Tenant(), l.channel, l.recipient, until)
	return err
}

// said are the times of the latest messages of a line since a time, the latest
// first, at most so many.
func said(ctx context.Context, tx *db.Tx, l line, since time.Time, limit int64) ([]time.Time, error) {
	return db.AllOf[time.Time](ctx, tx, `select max(ended_at) from channel_message
		where tenant_id = $1 and channel_id = $2 and recipient = $3 and state = 'sent' and ended_at > $4
		group by bundle order by max(ended_at) desc limit $5`, tx.Tenant(), l.channel, l.recipient, since, limit)
}

// sweep forgets what was said before a time.
func sweep(ctx context.Context, tx *db.Tx, before time.Time) (int64, error) {
	return tx.Exec(ctx, "delete from channel_message where ended_at is not null and ended_at < $1", before)
}

// A line is what one recipient of one channel has to hear.
type line struct {
	tenant    estover.TenantID
	channel   string
	recipient string
}
