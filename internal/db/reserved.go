package db

import (
	"context"
	"database/sql"
)

// Reserved marks what must get through when everything else waits: stopping what
// must not go on. It has connections of its own, and where there is one writer it
// goes into the next commit, before those who have waited longer. It is for few
// and short transactions, and not for what strangers may cause.
func Reserved(ctx context.Context) context.Context {
	return context.WithValue(ctx, reservedKey{}, true)
}

type reservedKey struct{}

func reserved(ctx context.Context) bool {
	is, _ := ctx.Value(reservedKey{}).(bool)
	return is
}

// reservedConnections is how many connections wait for what is reserved.
const reservedConnections = 2

// from is the pool of PostgreSQL from which a transaction takes its connection.
func (d *DB) from(ctx context.Context) *sql.DB {
	if reserved(ctx) {
		return d.kept
	}
	return d.pool
}

// reading are the connections of SQLite by which a transaction reads.
func (d *DB) reading(ctx context.Context) *readers {
	if reserved(ctx) {
		return d.keptReaders
	}
	return d.readers
}
