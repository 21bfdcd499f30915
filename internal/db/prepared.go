package db

import (
	"context"
	"database/sql"
)

// maxStatements bounds the prepared statements that a connection keeps. The
// program has fewer texts than that; a test that makes its own must not grow
// without end.
const maxStatements = 1024

// prepared is one connection to a SQLite file with what it has prepared: to parse a
// text costs several times what it takes to find a row by its key.
//
// Contexts of callers are left out. In the writer, interrupting one statement
// would undo the whole batch; for a reader the driver would start a goroutine
// for each statement, to watch over what finds its first row by an index.
// [Rows.Next] looks at the caller's context instead.
type prepared struct {
	conn  *sql.Conn
	all   map[string]*statement
	asked []*Rows // since the last [prepared.finish]

	broken bool // in the middle of what cannot be undone; nobody gets it again
}

type statement struct {
	*sql.Stmt
	reading bool // rows of it are open, and would be lost if it began anew
	once    bool // made while the one that is kept was reading; kept by nobody
}

// done ends a use of the statement.
func (s *statement) done() {
	if s.reading = false; s.once {
		_ = s.Close()
	}
}

func newPrepared(conn *sql.Conn) *prepared {
	return &prepared{conn: conn, all: map[string]*statement{}}
}

func (p *prepared) prepare(query string) (*statement, error) {
	kept := p.all[query]
	if kept != nil && !kept.reading {
		return kept, nil
	}
	st, err := p.conn.PrepareContext(context.Background(), query)
	if err != nil {
		return nil, err
	}
	made := &statement{Stmt: st, once: kept != nil}
	if made.once {
		return made, nil
	}
	if len(p.all) >= maxStatements {
		for q, old := range p.all {
			if !old.reading {
				_ = old.Close()
				delete(p.all, q)
				break
			}
		}
	}
	p.all[query] = made
	return made, nil
}

func (p *prepared) exec(ctx context.Context, query string, args ...any) (sql.Result, error) {
	st, err := p.prepare(query)
	if err != nil {
		return nil, err
	}
	defer st.done()
	return st.ExecContext(context.WithoutCancel(ctx), args...)
}

func (p *prepared) query(ctx context.Context, query string, args ...any) (*Rows, error) {
	st, err := p.prepare(query)
	if err != nil {
		return nil, err
	}
	rows, err := st.QueryContext(context.WithoutCancel(ctx), args...)
	if err != nil {
		st.done()
		return nil, err
	}
	st.reading = true
	r := &Rows{rows: rows, ctx: ctx, from: st}
	p.asked = append(p.asked, r)
	return r, nil
}

// finish closes what a function has left open, by a panic for example, and the
// connection would wait for.
func (p *prepared) finish() {
	for _, r := range p.asked {
		_ = r.Close()
	}
	clear(p.asked)
	p.asked = p.asked[:0]
}

// close lets the connection go, and all that was prepared on it.
func (p *prepared) close() {
	for _, st := range p.all {
		_ = st.Close()
	}
	_ = p.conn.Close()
}
