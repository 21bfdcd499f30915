package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"

	"modernc.org/sqlite"

	"estover.dev"
)

// maxBatch bounds how many callers share one commit, and so how long the first
// of them waits for the last one's work.
const maxBatch = 512

// A writer is the one connection that changes a SQLite file. Callers queue;
// whoever waits while a commit is under way goes into the next one together.
type writer struct {
	db    *DB
	pool  *sql.DB
	run   *prepared
	queue chan *job
	first chan *job // what is [Reserved]

	closing sync.RWMutex // held for reading while a job is handed in
	closed  bool
	done    chan struct{}
}

// A job is one caller's work: what fn does, or the rows of an [Append].
type job struct {
	ctx    context.Context
	tenant estover.TenantID
	fn     func(*Tx) error
	append *Append
	err    error
	panic  any
	done   chan struct{}
}

func startWriter(d *DB, pool *sql.DB, conn *sql.Conn) *writer {
	w := &writer{
		db: d, pool: pool, run: newPrepared(conn),
		queue: make(chan *job, 2*maxBatch), first: make(chan *job, maxReserved), done: make(chan struct{}),
	}
	go w.loop()
	return w
}

// do hands fn in and waits until it is durable.
func (w *writer) do(ctx context.Context, tenant estover.TenantID, fn func(*Tx) error) error {
	return w.wait(&job{ctx: ctx, tenant: tenant, fn: fn, done: make(chan struct{})})
}

// append hands rows in and waits until they are durable.
func (w *writer) append(ctx context.Context, a *Append) error {
	return w.wait(&job{ctx: ctx, tenant: a.Tenant, append: a, done: make(chan struct{})})
}

func (w *writer) wait(j *job) error {
	w.closing.RLock()
	if w.closed {
		w.closing.RUnlock()
		return ErrUnavailable
	}
	queue := w.queue
	if reserved(j.ctx) {
		queue = w.first
	}
	select {
	case queue <- j:
		w.closing.RUnlock()
	case <-j.ctx.Done():
		w.closing.RUnlock()
		return j.ctx.Err()
	}
	// Once handed in, the work may happen: its caller waits to learn whether
	// it did, even if nobody waits for the caller.
	<-j.done
	if j.panic != nil {
		panic(j.panic)
	}
	return j.err
}

// stop refuses further work, finishes what was handed in and closes the file.
func (w *writer) stop() {
	w.closing.Lock()
	if !w.closed {
		w.closed = true
		close(w.queue)
		close(w.first)
	}
	w.closing.Unlock()
	<-w.done
}

func (w *writer) loop() {
	defer close(w.done)
	batch := make([]*job, 0, maxBatch)
	for j := w.next(); j != nil; j = w.next() {
		batch = append(batch[:0], j)
	gather:
		for len(batch) < maxBatch {
			select {
			case j, ok := <-w.queue:
				if !ok {
					break gather
				}
				batch = append(batch, j)
			default:
				break gather
			}
		}
		w.commit(batch)
		for _, j := range batch {
			close(j.done)
		}
	}
	w.run.close()
	_ = w.pool.Close()
}

// maxReserved is how much that is reserved may wait.
const maxReserved = 64

// next waits for work, and takes what is reserved before the rest; nil when there
// will be no more.
func (w *writer) next() *job {
	select {
	case j, ok := <-w.first:
		if ok {
			return j
		}
		return <-w.queue // the writer is being stopped
	default:
	}
	select {
	case j, ok := <-w.first:
		if ok {
			return j
		}
		return <-w.queue
	case j, ok := <-w.queue:
		if ok {
			return j
		}
		return <-w.first
	}
}

// errAborted says that SQLite gave up the whole transaction, not just the
// statement that failed (a full disk, an I/O error).
var errAborted = errors.New("the transaction was rolled back by the database")

// errTangled says that an append failed half way, or what was joined, among others whose rows are
// in the same savepoint.
var errTangled = errors.New("the appends must be told apart")

// commit does the work of a batch in one transaction. If one job brings the
// whole transaction down, the others are done again one by one, so that nobody
// pays for a neighbour.
func (w *writer) commit(batch []*job) {
	err := w.transaction(batch, false)
	if err == errTangled {
		err = w.transaction(batch, true)
	}
	if err == nil {
		return
	}
	if len(batch) > 1 {
		for _, j := range batch {
			j.err, j.panic = nil, nil
			w.commit([]*job{j})
		}
		return
	}
	if j := batch[0]; j.panic == nil {
		j.err = ErrUnavailable.Because(errors.Join(err, j.err))
	}
}

// transaction runs the jobs and commits. A job's own failure is kept in the
// job; the error returned is that of the transaction as a whole.
//
// A function has a savepoint of its own. Appends share none unless they are to
// be told apart: a savepoint costs two statements and a copy of each page that
// is written in it, more than the rows themselves, and an append that finds
// what it rests on alive hardly ever fails.
func (w *writer) transaction(batch []*job, apart bool) (err error) {
	ctx := context.Background()
	if err := w.exec(ctx, "begin immediate"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			// It fails when SQLite has rolled back by itself, which is as good.
			_ = w.exec(ctx, "rollback")
		}
	}()
	var appends []*job
	var packs packing
	for _, j := range batch {
		if j.err, j.panic = j.ctx.Err(), nil; j.err != nil {
			continue // gave up while waiting: nothing was begun
		}
		if j.append != nil && !apart {
			appends = append(appends, j)
			continue
		}
		if err := w.exec(ctx, "savepoint caller"); err != nil {
			return err
		}
		var joined []Row
		if apart {
			w.work(j, nil)
		} else {
			w.work(j, &joined)
		}
		w.run.finish()
		if j.err != nil || j.panic != nil {
			if err := w.exec(ctx, "rollback to caller"); err != nil {
				return fmt.Errorf("%w: %w", errAborted, err)
			}
		}
		if err := w.exec(ctx, "release caller"); err != nil {
			return fmt.Errorf("%w: %w", errAborted, err)
		}
		if j.err == nil && j.panic == nil {
			for _, r := range joined {
				packs.take(j.tenant, r)
			}
		}
	}
	if err := w.insert(appends, &packs); err != nil {
		return err
	}
	return w.exec(ctx, "commit")
}

// insert does the appends of a batch, without a way back to between two of
// them, and then writes what is packed: of theirs and of what was gathered before.
func (w *writer) insert(appends []*job, packs *packing) error {
	alive, err := w.alive(appends)
	if err != nil {
		return errTangled
	}
append:
	for _, j := range appends {
		tx := &Tx{tenant: j.tenant, now: w.db.Now(), engine: SQLite, run: w.run}
		if check := j.append.Check; check != nil {
			w.guarded(j, func() error { return check(j.ctx, tx) })
			w.run.finish()
			var failed *sqlite.Error
			if errors.As(j.err, &failed) {
				return errTangled // with an I/O error SQLite has undone all that comes before
			}
			if j.err != nil || j.panic != nil {
				continue append
			}
		}
		for _, e := range j.append.Live {
			if !alive[rested{j.tenant, e}] {
				j.err = ErrStale
				continue append
			}
		}
		changed := false
		for _, s := range j.append.Steps {
			taken, err := tx.take(j.ctx, s)
			switch {
			case err != nil, !taken && changed:
				return errTangled
			case !taken:
				j.err = ErrStale
				continue append
			}
			changed = true
		}
		for _, r := range j.append.Rows {
			if packs.take(j.tenant, r) {
				changed = true
				continue
			}
			// A key that is taken undoes its own statement and nothing else.
			if j.err = diagnose(tx.Insert(j.ctx, r)); j.err != nil {
				if !changed && Taken(j.err) {
					continue append
				}
				return errTangled
			}
			changed = true
		}
	}
	tx := &Tx{now: w.db.Now(), engine: SQLite, run: w.run}
	for _, r := range packs.rows() {
		if tx.Insert(context.Background(), r) != nil {
			return errTangled
		}
	}
	return nil
}

// rested is what an append of a tenant rests on.
type rested struct {
	tenant estover.TenantID
	Epoch
}

// alive looks at what appends rest on: many rest on the same row, an agent's grant, and
// of each table the rows of a tenant are asked for by one statement. One for each of them
// was 4 % of a refresh. It looks before any of them takes a step: whoever rests on what
// another one ends in the same commit came before him.
func (w *writer) alive(appends []*job) (map[rested]bool, error) {
	defer w.run.finish()
	alive := map[rested]bool{}
	type from struct {
		tenant estover.TenantID
		table  string
	}
	asked := map[from][]any{}
	for _, j := range appends {
		for _, e := range j.append.Live {
			k := rested{j.tenant, e}
			if _, is := alive[k]; !is {
				alive[k] = false
				of := from{j.tenant, e.Table}
				asked[of] = append(asked[of], e.ID)
			}
		}
	}
	for of, ids := range asked {
		places := 1
		for places < len(ids) {
			places *= 2 // so that there are few statements to keep
		}
		args := append(append(make([]any, 0, 1+places), string(of.tenant)), ids...)
		text := "select id, epoch from " + of.table + " where tenant_id = ? and id in (?" + strings.Repeat(", ?", places-1) + ") and ended_at is null"
		rows, err := w.run.query(context.Background(), text, args[:1+places]...)
		if err != nil {
			return nil, err
		}
		for rows.Next() {
			k := rested{of.tenant, Epoch{Table: of.table}}
			if err := rows.Scan(&k.ID, &k.Epoch.Epoch); err != nil {
				return nil, err
			}
			if _, is := alive[k]; is {
				alive[k] = true
			}
		}
		if err := rows.Err(); err != nil {
			return nil, err
		}
	}
	return alive, nil
}

// work runs one job's function. What it has joined is gathered, if there is where.
func (w *writer) work(j *job, joined *[]Row) {
	tx := &Tx{tenant: j.tenant, now: w.db.Now(), engine: SQLite, run: w.run, joined: joined}
	w.guarded(j, func() error {
		if j.append != nil {
			return appendOne(j.ctx, tx, *j.append)
		}
		return j.fn(tx)
	})
}

// guarded runs a function of a caller's. A panic in it is the caller's, and is
// raised again there.
func (w *writer) guarded(j *job, fn func() error) {
	defer func() {
		if p := recover(); p != nil {
			j.panic = fmt.Sprintf("%v\n%s", p, debug.Stack())
		}
	}()
	j.err = diagnose(fn())
}

func (w *writer) exec(ctx context.Context, query string) error {
	_, err := w.run.exec(ctx, query)
	return err
}
