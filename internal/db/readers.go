package db

import (
	"context"
	"database/sql"
	"sync"
)

// readers are the connections that read a SQLite file. Each keeps what it has
// prepared, which is why they are not handed out by database/sql.
//
// Whoever reads gets the connection that was in use last: its pages and
// statements are at hand, and a server that has little to do makes one or two
// connections and not all of them. Each takes the better part of a megabyte, for
// the schema alone.
type readers struct {
	pool   *sql.DB
	turns  chan struct{} // one for each connection that there may be
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex
	free []*prepared // the last one was in use last
}

func newReaders(pool *sql.DB, n int) *readers {
	return &readers{pool: pool, turns: make(chan struct{}, n), closed: make(chan struct{})}
}

// view runs fn in a transaction that sees one state of the file.
func (r *readers) view(ctx context.Context, fn func(runner) error) error {
	return r.with(ctx, func(p *prepared) error {
		if _, err := p.exec(ctx, "begin"); err != nil {
			p.broken = true
			return unavailable(ctx, err)
		}
		defer func() {
			p.finish()
			if _, err := p.exec(ctx, "rollback"); err != nil {
				p.broken = true
			}
		}()
		return fn(p)
	})
}

// look runs fn, which has one statement: that sees one state by itself.
func (r *readers) look(ctx context.Context, fn func(runner) error) error {
	return r.with(ctx, func(p *prepared) error {
		defer p.finish()
		return fn(&single{runner: p})
	})
}

// with gives fn a connection.
func (r *readers) with(ctx context.Context, fn func(*prepared) error) error {
	select {
	case <-r.closed:
		return ErrUnavailable
	default:
	}
	select {
	case r.turns <- struct{}{}:
	case <-r.closed:
		return ErrUnavailable
	case <-ctx.Done():
		return ctx.Err()
	}
	p := r.take()
	defer func() {
		switch {
		case p == nil:
		case p.broken:
			p.close()
		default:
			r.mu.Lock()
			r.free = append(r.free, p)
			r.mu.Unlock()
		}
		<-r.turns
	}()
	if p == nil {
		conn, err := r.pool.Conn(ctx)
		if err != nil {
			return unavailable(ctx, err)
		}
		p = newPrepared(conn)
	}
	return fn(p)
}

// take is the connection that was in use last; nil if one is yet to be made.
func (r *readers) take() *prepared {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.free) - 1
	if n < 0 {
		return nil
	}
	p := r.free[n]
	r.free[n], r.free = nil, r.free[:n]
	return p
}

// close waits for whoever reads, and lets the connections go.
func (r *readers) close() {
	r.once.Do(func() {
		close(r.closed)
		for range cap(r.turns) {
			r.turns <- struct{}{}
		}
		for p := r.take(); p != nil; p = r.take() {
			p.close()
		}
	})
}
