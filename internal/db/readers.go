package db

import (
	"context"
	"database/sql"
	"sync"
)

// readers are the connections that read a SQLite file. Each keeps what it has
// prepared, which is why they are not handed out by database/sql.
type readers struct {
	pool   *sql.DB
	free   chan *prepared // nil for a connection that is yet to be made
	closed chan struct{}
	once   sync.Once
}

func newReaders(pool *sql.DB, n int) *readers {
	r := &readers{pool: pool, free: make(chan *prepared, n), closed: make(chan struct{})}
	for range cap(r.free) {
		r.free <- nil
	}
	return r
}

// view runs fn in a transaction that sees one state of the file.
func (r *readers) view(ctx context.Context, fn func(runner) error) error {
	var p *prepared
	select {
	case p = <-r.free:
	case <-r.closed:
		return ErrUnavailable
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { r.free <- p }()
	if p == nil {
		conn, err := r.pool.Conn(ctx)
		if err != nil {
			return unavailable(ctx, err)
		}
		p = newPrepared(conn)
	}
	if _, err := p.exec(ctx, "begin"); err != nil {
		p.close()
		p = nil
		return unavailable(ctx, err)
	}
	defer func() {
		p.finish()
		if _, err := p.exec(ctx, "rollback"); err != nil {
			p.close()
			p = nil
		}
	}()
	return fn(p)
}

// close waits for whoever reads, and lets the connections go.
func (r *readers) close() {
	r.once.Do(func() {
		close(r.closed)
		for range cap(r.free) {
			if p := <-r.free; p != nil {
				p.close()
			}
		}
	})
}
