// Package audit is the one append-only log.
package audit

import (
	"estover.dev"
	"estover.dev/internal/db"
)

// A Log keeps the events of all tenants, each tenant's in a log of its own.
type Log struct {
	db   *db.DB
	o    Options
	wake chan struct{}
}

// Options are what the log needs of others.
type Options struct {
	// Seal and Open encrypt an event's payload under the tenant's key, bound
	// to the event's id.
	Seal func(tenant estover.TenantID, id string, plain []byte) ([]byte, error)
	Open func(tenant estover.TenantID, id string, sealed []byte) ([]byte, error)
}

// Open is the log in d.
func Open(d *db.DB, o Options) *Log { return &Log{db: d, o: o, wake: make(chan struct{}, 1)} }

func (l *Log) seal(tenant estover.TenantID, id string, plain []byte) ([]byte, error) {
	return l.o.Seal(tenant, id, plain)
}

// Wake says that an event was committed here, so that it need not wait for the
// next round.
func (l *Log) Wake() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}
