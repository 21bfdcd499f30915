package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"estover.dev"
)

// clashed reports whether PostgreSQL undid the work because it collided with
// another's, so that doing it again may succeed.
func clashed(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}

// pause waits before the next attempt: a little, longer each time, and not the
// same for everybody.
func pause(ctx context.Context, attempt int) error {
	d := time.Millisecond << min(attempt, 7)
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ErrNotText is returned for a text that the database does not take as one.
var ErrNotText = &estover.Error{Kind: estover.Invalid, Code: "not_text", Detail: "A text in this has a character that is none: a NUL, or bytes that are not UTF-8. Nothing was changed."}

// diagnose says [ErrUnavailable] for what is the database's trouble and not
// the caller's: a full disk, a lost connection, a server that is shutting down.
func diagnose(err error) error {
	if err == nil || clashed(err) {
		return err
	}
	var known *estover.Error
	if errors.As(err, &known) {
		return err
	}
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		switch lite.Code() & 0xff { // the primary result code
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR,
			sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOTADB:
			return ErrUnavailable.Because(err)
		}
		return err
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code[:2] { // the class: connection, resources, intervention, system
		case "08", "53", "57", "58":
			return ErrUnavailable.Because(err)
		}
		if pg.Code == "22021" || pg.Code == "22P05" { // PostgreSQL keeps no NUL, and nothing that is not UTF-8
			return ErrNotText.Because(err)
		}
		return err
	}
	var connect *pgconn.ConnectError
	var network net.Error
	if errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) {
		return ErrUnavailable.Because(err)
	}
	return err
}

// Taken reports whether err says that a unique key is in use already.
func Taken(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code == "23505"
	}
	var lite *sqlite.Error
	return errors.As(err, &lite) &&
		(lite.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || lite.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

// leftNull reports whether err says that a column would be null that may not be.
func leftNull(err error) bool {
	if err == nil {
		return false
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code == "23502"
	}
	var lite *sqlite.Error
	return errors.As(err, &lite) && lite.Code() == sqlite3.SQLITE_CONSTRAINT_NOTNULL
}
