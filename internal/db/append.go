package db

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"estover.dev"
)

// An Append is the write of a hot path: rows that are inserted, provided that
// what they rest on is still alive. It says what to write instead of doing it,
// so that the writes of many callers become a few statements.
type Append struct {
	Tenant estover.TenantID
	Live   []Epoch
	Steps  []Step
	Rows   []Row

	// Check, if it is set, looks at what no Epoch can name, before anything of this is
	// written. It changes nothing, does no I/O, cryptography or policy, and its error is
	// that of the append. On PostgreSQL it costs a transaction of its own.
	Check func(ctx context.Context, tx *Tx) error

	// Hold keeps what Live names from ending until the rows are there, so that who
	// ends it finds them. On PostgreSQL it costs a transaction of its own.
	Hold bool
}

// A Step is a statement that changes exactly one row, or the whole [Append]
// comes to nothing: what is good once is spent by one, what there is so much of
// is taken by one, and what may be made only beside something else that lives is
// made by one. Appends that take several of the same rows take them in the same
// order.
//
// An insert with a condition leaves null, where it does not hold, what may not be:
//
//	insert into … values ($1, case when exists (…) then null else $2 end, …)
//
// That is no row, too. SQLite makes a copy of each page that insert … select
// writes, and none for this.
type Step struct {
	Text string // $1 is the tenant
	Args []any  // from $2 on
}

// take runs the statement, and reports whether it changed its row.
func (t *Tx) take(ctx context.Context, s Step) (bool, error) {
	n, err := t.Exec(ctx, s.Text, append([]any{string(t.tenant)}, s.Args...)...)
	if leftNull(err) {
		return false, nil
	}
	return n == 1, err
}

// An Epoch names a row that must exist, not be ended, and have this epoch. Its
// table has the columns tenant_id, id, epoch and ended_at.
type Epoch struct {
	Table string
	ID    string
	Epoch int64
}

// A Row is what goes into a table: a value for each of its columns, in order.
type Row struct {
	Into   *Table
	Values []any

	// From, if it is set, has the values instead. It is asked for them when the row is
	// written, as often as that is tried; of what goes into a pack ([Table.Pack]) they
	// are never made.
	From interface{ Values() []any }
}

// All are the values of the row, wherever it has them.
func (r Row) All() []any {
	if r.From != nil {
		return r.From.Values()
	}
	return r.Values
}

// A Table names the columns that an [Append] fills.
type Table struct {
	Name    string
	Columns []Column

	// Computed are further columns, which SQLite fills as it inserts: its one
	// writer sees all rows that come before. On PostgreSQL they stay null.
	Computed []Computed

	// Pack, if it is set, makes fewer rows of several that are written by one
	// commit, all of one tenant, the first column of the table. It is called
	// for appends alone, and is quick.
	Pack func(rows []Row) []Row

	once   sync.Once
	single string // insert … values ($1, …)
	plain  string // the same with ?, which SQLite need not look up by name
	many   string // insert … select * from unnest($1::text[], …)
}

// A Column is a name and a type: text, bigint, bytes or boolean.
type Column struct{ Name, Type string }

// A Computed column has the value of an expression of SQLite's, in which ?1 is
// the first column's value.
type Computed struct{ Name, Expr string }

func (t *Table) texts() {
	t.once.Do(func() {
		var names, places, arrays []string
		for i, c := range t.Columns {
			names = append(names, c.Name)
			places = append(places, "$"+strconv.Itoa(i+1))
			typ := c.Type
			if typ == "bytes" {
				typ = "bytea"
			}
			arrays = append(arrays, "$"+strconv.Itoa(i+1)+"::"+typ+"[]")
		}
		into := "insert into " + t.Name + " (" + strings.Join(names, ", ") + ") "
		t.single = into + "values (" + strings.Join(places, ", ") + ")"
		t.plain = "values (?" + strings.Repeat(", ?", len(places)-1)
		for _, c := range t.Computed {
			names = append(names, c.Name)
			t.plain += ", " + c.Expr
		}
		t.plain = "insert into " + t.Name + " (" + strings.Join(names, ", ") + ") " + t.plain + ")"
		t.many = into + "select * from unnest(" + strings.Join(arrays, ", ") + ")"
	})
}

// Append checks what a rests on, takes a.Steps and inserts a.Rows, durably and together
// with what other callers hand in at the same time. It returns [ErrStale], and
// changes nothing, when one of a.Live is no longer so or a step finds no row.
//
// On PostgreSQL what is checked is not locked: the callers of a batch would wait for
// whoever ends one of their rows, and for each other. What ends between the check and
// the commit, a moment later, has not ended for the check, and who ends it does not
// see the rows. That is enough for what is looked at again whenever it is used, as a
// token is, and for the record of what was done. What must be found by who ends it
// says so ([Append.Hold]), or comes with a step, or is written by [DB.Do].
func (d *DB) Append(ctx context.Context, a Append) error {
	switch {
	case d.writer != nil:
		return d.writer.append(ctx, &a)
	case a.Hold && len(a.Live) > 0, len(a.Steps) > 0, a.Check != nil: // they lock rows, and would wait for others of its own batch
		return d.Do(ctx, a.Tenant, func(tx *Tx) error { return appendOne(ctx, tx, a) })
	}
	return d.appender.do(ctx, a)
}

func appendOne(ctx context.Context, tx *Tx, a Append) error {
	if a.Check != nil {
		if err := a.Check(ctx, tx); err != nil {
			return err
		}
	}
	for _, e := range a.Live {
		if err := tx.Alive(ctx, e); err != nil {
			return err
		}
	}
	for _, s := range a.Steps {
		if taken, err := tx.take(ctx, s); err != nil {
			return err
		} else if !taken {
			return ErrStale
		}
	}
	for _, r := range a.Rows {
		if err := tx.Insert(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// Alive returns [ErrStale] unless the row is there, has not ended and has this
// epoch, and keeps it so until the transaction ends; in a snapshot it is so for as
// long as that is looked at.
func (t *Tx) Alive(ctx context.Context, e Epoch) error {
	var one int
	err := t.Hold(ctx, aliveText(e.Table), string(t.tenant), e.ID, e.Epoch).Scan(&one)
	if err == ErrNoRows {
		return ErrStale
	}
	return err
}

// Hold is QueryRow of a select, and keeps the row as it is until the transaction ends;
// others may hold it, too. In a snapshot it is as it is for as long as that is looked at.
func (t *Tx) Hold(ctx context.Context, text string, args ...any) Single {
	if t.engine == Postgres && !t.snapshot {
		text += " for share"
	}
	return t.QueryRow(ctx, text, args...)
}

// Join is Insert of a row that nothing in the transaction looks at. If it can be packed
// ([Table.Pack]), it is written at the end of the commit with those of others.
func (t *Tx) Join(ctx context.Context, r Row) error {
	if t.joined == nil || r.Into.Pack == nil {
		return t.Insert(ctx, r)
	}
	*t.joined = append(*t.joined, r)
	return nil
}

// Insert writes one row.
func (t *Tx) Insert(ctx context.Context, r Row) error {
	r.Into.texts()
	text := r.Into.single
	if t.engine == SQLite {
		text = r.Into.plain
	}
	if _, err := t.Exec(ctx, text, r.All()...); err != nil {
		return fmt.Errorf("appending to %s: %w", r.Into.Name, err)
	}
	return nil
}

var aliveTexts sync.Map // table → statement

func aliveText(table string) string {
	if s, ok := aliveTexts.Load(table); ok {
		return s.(string)
	}
	s := "select 1 from " + table + " where tenant_id = $1 and id = $2 and epoch = $3 and ended_at is null"
	aliveTexts.Store(table, s)
	return s
}

// An appender gathers the appends of many callers on PostgreSQL.
type appender struct {
	db    *DB
	queue chan *appendJob

	closing sync.RWMutex
	closed  bool
	done    sync.WaitGroup
}

type appendJob struct {
	Append
	ctx  context.Context
	err  error
	done chan struct{}
}

// committers is how many batches may be on their way at once: while one waits
// for the disk of the server, the next is gathered.
const committers = 2

// gatherTime is how long a batch waits for company when it has any. A caller
// who is alone does not wait.
const gatherTime = time.Millisecond

func startAppender(d *DB) *appender {
	a := &appender{db: d, queue: make(chan *appendJob, 2*maxBatch)}
	for range committers {
		a.done.Go(a.loop)
	}
	return a
}

func (a *appender) do(ctx context.Context, w Append) error {
	j := &appendJob{Append: w, ctx: ctx, done: make(chan struct{})}
	a.closing.RLock()
	if a.closed {
		a.closing.RUnlock()
		return ErrUnavailable
	}
	select {
	case a.queue <- j:
		a.closing.RUnlock()
	case <-ctx.Done():
		a.closing.RUnlock()
		return ctx.Err()
	}
	<-j.done
	return j.err
}

func (a *appender) stop() {
	a.closing.Lock()
	if !a.closed {
		a.closed = true
		close(a.queue)
	}
	a.closing.Unlock()
	a.done.Wait()
}

func (a *appender) loop() {
	batch := make([]*appendJob, 0, maxBatch)
	for first := range a.queue {
		batch = append(batch[:0], first)
		var timer <-chan time.Time
	gather:
		for len(batch) < maxBatch {
			select {
			case j, ok := <-a.queue:
				if !ok {
					break gather
				}
				batch = append(batch, j)
				if timer == nil {
					timer = time.After(gatherTime)
				}
				continue
			default:
			}
			if timer == nil {
				break
			}
			select {
			case j, ok := <-a.queue:
				if !ok {
					break gather
				}
				batch = append(batch, j)
			case <-timer:
				break gather
			}
		}
		a.commit(batch)
		for _, j := range batch {
			close(j.done)
		}
	}
}

// commit writes a batch; if it cannot be written as a whole, each caller's
// part is tried by itself, so that one bad row harms no neighbour.
func (a *appender) commit(batch []*appendJob) {
	live := batch[:0:0]
	for _, j := range batch {
		if j.err = j.ctx.Err(); j.err == nil {
			live = append(live, j)
		}
	}
	if len(live) == 0 {
		return
	}
	// The callers' contexts are left out: one who gives up must not undo the
	// others. The time is bounded instead.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if len(live) > 1 || len(live[0].Rows) > 8 {
		err := a.db.Do(ctx, "", func(tx *Tx) error { return appendMany(ctx, tx, live) })
		if err == nil {
			return
		}
		if estover.KindOf(err) == estover.Unavailable {
			for _, j := range live {
				j.err = err
			}
			return
		}
	}
	for _, j := range live {
		j.err = a.db.Do(ctx, j.Tenant, func(tx *Tx) error { return appendOne(ctx, tx, j.Append) })
	}
}

// appendMany checks and inserts for a whole batch: one statement for each
// table that is asked, one for each that is filled.
func appendMany(ctx context.Context, tx *Tx, batch []*appendJob) error {
	for _, j := range batch {
		j.err = nil
	}
	if err := checkLive(ctx, tx, batch); err != nil {
		return err
	}
	columns := map[*Table][][]any{}
	var order []*Table
	var packs packing
	add := func(r Row) {
		cols := columns[r.Into]
		if cols == nil {
			cols = make([][]any, len(r.Into.Columns))
			order = append(order, r.Into)
		}
		for i, v := range convert(r.All()) {
			cols[i] = append(cols[i], v)
		}
		columns[r.Into] = cols
	}
	for _, j := range batch {
		if j.err != nil {
			continue
		}
		for _, r := range j.Rows {
			if !packs.take(j.Tenant, r) {
				add(r)
			}
		}
	}
	for _, r := range packs.rows() {
		add(r)
	}
	for _, t := range order {
		t.texts()
		args := make([]any, len(t.Columns))
		for i, c := range t.Columns {
			arg, err := array(c, columns[t][i])
			if err != nil {
				return fmt.Errorf("appending to %s: %w", t.Name, err)
			}
			args[i] = arg
		}
		if _, err := tx.Exec(ctx, t.many, args...); err != nil {
			return fmt.Errorf("appending to %s: %w", t.Name, err)
		}
	}
	return nil
}

// packing gathers the rows of a commit that are packed ([Table.Pack]).
type packing []gathered

type gathered struct {
	tenant estover.TenantID
	into   *Table
	rows   []Row
}

// take takes a row, if it is one to be packed.
func (p *packing) take(tenant estover.TenantID, r Row) bool {
	if r.Into.Pack == nil {
		return false
	}
	for i := range *p {
		if g := &(*p)[i]; g.tenant == tenant && g.into == r.Into {
			g.rows = append(g.rows, r)
			return true
		}
	}
	*p = append(*p, gathered{tenant, r.Into, []Row{r}})
	return true
}

// rows are what is to be inserted.
func (p packing) rows() (all []Row) {
	for _, g := range p {
		if len(g.rows) > 1 {
			g.rows = g.into.Pack(g.rows)
		}
		all = append(all, g.rows...)
	}
	return all
}

// checkLive marks as stale the jobs that rest on a row which has changed. It locks
// nothing ([DB.Append]).
func checkLive(ctx context.Context, tx *Tx, batch []*appendJob) error {
	type key struct {
		tenant estover.TenantID
		id     string
		epoch  int64
	}
	asked := map[string]map[key]bool{}
	for _, j := range batch {
		for _, e := range j.Live {
			if asked[e.Table] == nil {
				asked[e.Table] = map[key]bool{}
			}
			asked[e.Table][key{j.Tenant, e.ID, e.Epoch}] = false
		}
	}
	for table, keys := range asked {
		var tenants, ids []*string
		var epochs []*int64
		for k := range keys {
			t, id, e := string(k.tenant), k.id, k.epoch
			tenants, ids, epochs = append(tenants, &t), append(ids, &id), append(epochs, &e)
		}
		rows, err := tx.Query(ctx, "select l.tenant_id, l.id, l.epoch from "+table+` l
			join unnest($1::text[], $2::text[], $3::bigint[]) as a(tenant_id, id, epoch)
			on l.tenant_id = a.tenant_id and l.id = a.id and l.epoch = a.epoch where l.ended_at is null`,
			tenants, ids, epochs)
		if err != nil {
			return err
		}
		for rows.Next() {
			var k key
			if err := rows.Scan(&k.tenant, &k.id, &k.epoch); err != nil {
				_ = rows.Close()
				return err
			}
			keys[k] = true
		}
		if err := rows.Err(); err != nil {
			return err
		}
		_ = rows.Close()
	}
	for _, j := range batch {
		for _, e := range j.Live {
			if !asked[e.Table][key{j.Tenant, e.ID, e.Epoch}] {
				j.err = ErrStale
			}
		}
	}
	return nil
}

// array makes the values of one column into what the driver sends as an array.
func array(c Column, values []any) (any, error) {
	switch c.Type {
	case "text":
		return typed[string](c, values)
	case "bigint":
		return typed[int64](c, values)
	case "bytes":
		out := make([][]byte, len(values))
		for i, v := range values {
			if v == nil {
				continue
			}
			b, ok := v.([]byte)
			if !ok {
				return nil, fmt.Errorf("column %s: %T instead of bytes", c.Name, v)
			}
			out[i] = b
		}
		return out, nil
	case "boolean":
		return typed[bool](c, values)
	}
	return nil, fmt.Errorf("column %s: unknown type %s", c.Name, c.Type)
}

func typed[T any](c Column, values []any) (any, error) {
	out, all := make([]*T, len(values)), make([]T, len(values))
	for i, v := range values {
		switch v := v.(type) {
		case nil:
		case T:
			all[i], out[i] = v, &all[i]
		case int:
			n, ok := any(int64(v)).(T)
			if !ok {
				return nil, fmt.Errorf("column %s: int instead of %s", c.Name, c.Type)
			}
			all[i], out[i] = n, &all[i]
		default:
			return nil, fmt.Errorf("column %s: %T instead of %s", c.Name, v, c.Type)
		}
	}
	return out, nil
}
