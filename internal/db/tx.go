package db

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"reflect"
	"time"

	"estover.dev"
)

// A runner runs the statements of a transaction: [prepared] on SQLite, [plain]
// on PostgreSQL, whose driver keeps what it has prepared.
type runner interface {
	exec(ctx context.Context, query string, args ...any) (sql.Result, error)
	query(ctx context.Context, query string, args ...any) (*Rows, error)
}

type plain struct{ querier }

// A querier is a transaction, or a pool for what needs none.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func (p plain) exec(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return p.ExecContext(ctx, query, args...)
}

func (p plain) query(ctx context.Context, query string, args ...any) (*Rows, error) {
	rows, err := p.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return &Rows{rows: rows, ctx: ctx}, nil
}

// A Tx is a transaction of one tenant at one instant. It belongs to the
// function that it was given to, and ends with it.
type Tx struct {
	tenant estover.TenantID
	now    time.Time
	engine Engine
	run    runner

	// snapshot says that the transaction only reads, and locks nothing.
	snapshot bool

	// joined are the rows that are written with those of other callers, once all have
	// done their work; nil where each writes its own.
	joined *[]Row
}

// Tenant is whose transaction this is: the first argument of every statement.
func (t *Tx) Tenant() estover.TenantID { return t.tenant }

// Now is the instant of the transaction, in UTC and whole microseconds.
func (t *Tx) Now() time.Time { return t.now }

// Engine is the kind of database underneath, for the few statements that
// differ.
func (t *Tx) Engine() Engine { return t.engine }

// ForUpdate is the clause by which a select locks what it finds. SQLite needs
// none: it has one writer.
func (t *Tx) ForUpdate() string {
	if t.engine == Postgres {
		return " for update"
	}
	return ""
}

// SkipLocked is [Tx.ForUpdate] that leaves out what somebody else has locked: who looks
// for work does not wait for whoever is taking some.
func (t *Tx) SkipLocked() string {
	if t.engine == Postgres {
		return " for update skip locked"
	}
	return ""
}

// Exec runs a statement and says how many rows it changed.
func (t *Tx) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	res, err := t.run.exec(ctx, query, convert(args)...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// Query runs a statement that answers rows. The caller closes them.
func (t *Tx) Query(ctx context.Context, query string, args ...any) (*Rows, error) {
	return t.run.query(ctx, query, convert(args)...)
}

// QueryRow runs a statement that answers at most one row.
func (t *Tx) QueryRow(ctx context.Context, query string, args ...any) Single {
	rows, err := t.Query(ctx, query, args...)
	return Single{rows, err}
}

// Rows are the answer of a query.
type Rows struct {
	rows *sql.Rows
	ctx  context.Context // of whoever asked, who may give up between two rows
	from *statement      // to which they belong, if there is one
	err  error
}

// Next goes on to the next row; false at the end or on an error.
func (r *Rows) Next() bool {
	if r.err == nil {
		r.err = r.ctx.Err()
	}
	if r.err == nil && r.rows.Next() {
		return true
	}
	_ = r.Close() // what is left of them is nobody's
	return false
}

// Err is what ended the rows early, if anything did.
func (r *Rows) Err() error {
	if r.err != nil {
		return r.err
	}
	return r.rows.Err()
}

// Close lets the rows go. It may be called again.
func (r *Rows) Close() error {
	err := r.rows.Close()
	if r.from != nil {
		r.from.done()
		r.from = nil
	}
	return err
}

// Scan copies the columns of the row. A *time.Time takes microseconds, a
// *[]string takes a JSON list; NULL gives a zero time or an empty list.
func (r *Rows) Scan(dest ...any) error {
	wrap := dest
	for i, d := range dest {
		var w any
		switch d := d.(type) {
		case *time.Time:
			w = (*instant)(d)
		case *[]string:
			w = (*words)(d)
		default:
			continue
		}
		if &wrap[0] == &dest[0] {
			wrap = append([]any(nil), dest...)
		}
		wrap[i] = w
	}
	return r.rows.Scan(wrap...)
}

// A Single is the answer of [Tx.QueryRow].
type Single struct {
	rows *Rows
	err  error
}

// Scan copies the columns of the row, or returns [ErrNoRows].
func (r Single) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer func() { _ = r.rows.Close() }()
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return ErrNoRows
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	return r.rows.Close()
}

// Micros is a time as it is stored: microseconds since 1970, or NULL for the
// zero time.
func Micros(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMicro()
}

// OrNull is a text or bytes as they are stored where none at all is NULL.
func OrNull[T string | []byte](value T) any {
	if len(value) == 0 {
		return nil
	}
	return value
}

// convert turns arguments into what both drivers take.
func convert(args []any) []any {
	out := args
	for i, a := range args {
		var v any
		switch a := a.(type) {
		case nil, string, int64, bool, []byte, int, float64:
			continue
		case time.Time:
			v = Micros(a)
		case []string:
			v = encodeWords(a)
		case estover.TenantID:
			v = string(a)
		case estover.Subject:
			v = string(a)
		case json.RawMessage:
			v = string(a)
		default:
			if r := reflect.ValueOf(a); r.Kind() == reflect.String {
				v = r.String()
			} else {
				continue
			}
		}
		if &out[0] == &args[0] {
			out = append([]any(nil), args...)
		}
		out[i] = v
	}
	return out
}

func encodeWords(w []string) string {
	if len(w) == 0 {
		return "[]"
	}
	b, err := json.Marshal(w)
	if err != nil {
		panic("db: a list of strings that cannot be JSON: " + err.Error())
	}
	return string(b)
}

// instant scans microseconds.
type instant time.Time

func (t *instant) Scan(src any) error {
	switch v := src.(type) {
	case nil:
		*t = instant{}
	case int64:
		*t = instant(time.UnixMicro(v).UTC())
	default:
		return fmt.Errorf("scanning %T as a time", src)
	}
	return nil
}

// words scans a JSON list.
type words []string

func (w *words) Scan(src any) error {
	var b []byte
	switch v := src.(type) {
	case nil:
		*w = nil
		return nil
	case string:
		b = []byte(v)
	case []byte:
		b = v
	default:
		return fmt.Errorf("scanning %T as a list of words", src)
	}
	*w = nil
	return json.Unmarshal(b, (*[]string)(w))
}
