package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

// ErrNotFound is returned when the log has no such event.
var ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "event_not_found", Detail: "There is no such event."}

// ErrErased is returned by [Options.Open] when the key of a payload was
// destroyed.
var ErrErased = &estover.Error{Kind: estover.NotFound, Code: "event_erased", Detail: "This event's content was erased."}

// An Entry is an event with its place in the log.
type Entry struct {
	Event
	Index int64 // the place; -1 before there is one
	// Erased says that the content is gone: Detail and Request are empty.
	Erased bool
	// Payload is the event's content as the leaf commits to it, to be
	// disclosed: the SHA-256 of it stands in a leaf that is no statement.
	Payload []byte
}

// Find reads one event.
func (l *Log) Find(ctx context.Context, tx *db.Tx, id string) (Entry, error) {
	r, err := readEvent(ctx, tx, id)
	if err != nil {
		return Entry{}, err
	}
	return l.entry(tx.Tenant(), r)
}

// Erase destroys the content of an event. The log still verifies. That it was
// done, and why, is an event of the caller's.
func (l *Log) Erase(ctx context.Context, tx *db.Tx, id string) error {
	return erasePayload(ctx, tx, id)
}

func (l *Log) entries(tenant estover.TenantID, rows []row) ([]Entry, error) {
	out := make([]Entry, len(rows))
	for i, r := range rows {
		var err error
		if out[i], err = l.entry(tenant, r); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// entry opens a row.
func (l *Log) entry(tenant estover.TenantID, r row) (Entry, error) {
	e := Entry{Event: r.event, Index: -1}
	if r.idx.Valid {
		e.Index = r.idx.Int64
	}
	plain, err := l.open(tenant, r)
	switch {
	case errors.Is(err, ErrErased):
		e.Erased = true
	case err != nil:
		return Entry{}, err
	default:
		if err := json.Unmarshal(plain, &e.Event); err != nil {
			return Entry{}, fmt.Errorf("decoding event %s: %w", r.event.ID, err)
		}
		e.Payload = plain
	}
	e.Leaf, e.Touches = r.leaf, r.event.Touches
	return e, nil
}

// open gives the content of a row, or [ErrErased].
func (l *Log) open(tenant estover.TenantID, r row) ([]byte, error) {
	if len(r.payload) == 0 {
		return nil, ErrErased
	}
	plain, err := l.o.Open(tenant, r.event.ID, r.payload)
	if err != nil && !errors.Is(err, ErrErased) {
		return nil, fmt.Errorf("opening event %s: %w", r.event.ID, err)
	}
	return plain, err
}

// Waiting counts the events that have no place yet, and says when the oldest
// of them happened.
func (l *Log) Waiting(ctx context.Context, tenant estover.TenantID) (oldest time.Time, n int64, err error) {
	err = l.db.View(ctx, tenant, func(tx *db.Tx) error {
		oldest, n, err = readWaiting(ctx, tx)
		return err
	})
	return oldest, n, err
}
