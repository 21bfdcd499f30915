package audit

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"estover.dev"
	"estover.dev/internal/db"
)

// unfinished are the tenants with events that wait for the tree, or with a
// tree whose checkpoint is not published.
func unfinished(ctx context.Context, tx *db.Tx) ([]estover.TenantID, error) {
	query := "select distinct tenant_id from audit where idx is null"
	if tx.Engine() == db.SQLite {
		// From tenant to tenant by the index, not through all events.
		query = `with recursive log(tenant_id) as (select min(tenant_id) from audit where idx is not null
				union all select (select min(tenant_id) from audit where tenant_id > log.tenant_id and idx is not null)
					from log where log.tenant_id is not null)
			select tenant_id from log where exists (select 1 from audit where tenant_id = log.tenant_id
				and idx >= coalesce((select size from audit_tree where tenant_id = log.tenant_id), 0))`
	}
	return db.AllOf[estover.TenantID](ctx, tx, query+" union select tenant_id from audit_tree where signed_size < size")
}

// waits is the condition of an event that is not in the tree: it has no place
// yet, or on SQLite one behind the tree's end. The first argument of the
// statement is the tenant.
func waits(tx *db.Tx) string {
	if tx.Engine() == db.SQLite {
		return "idx >= coalesce((select size from audit_tree where tenant_id = $1), 0)"
	}
	return "idx is null"
}

// place is an event's place in the tree, null while it waits.
func place(tx *db.Tx) string {
	if tx.Engine() == db.SQLite {
		return "case when not " + waits(tx) + " then idx end"
	}
	return "idx"
}

// withTree are the tenants that have a log.
func withTree(ctx context.Context, tx *db.Tx) ([]estover.TenantID, error) {
	return db.AllOf[estover.TenantID](ctx, tx, "select tenant_id from audit_tree order by tenant_id")
}

// A waiter is a row that waits to be in the tree, with the leaf hashes of its
// events.
type waiter struct {
	seq    int64
	idx    sql.NullInt64 // the place that it has already
	n      int64
	hashes []byte
}

// readWaiters are the first rows that are not in the tree, in the order in
// which they will be: of at least limit events, or all.
func readWaiters(ctx context.Context, tx *db.Tx, limit int) ([]waiter, error) {
	order := "seq"
	if tx.Engine() == db.SQLite {
		order = "idx"
	}
	rows, err := tx.Query(ctx, "select seq, idx, n, leaf_hash from audit where tenant_id = $1 and "+waits(tx)+" order by "+order+" limit $2", tx.Tenant(), limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []waiter
	var w waiter
	for count := int64(0); count < int64(limit) && rows.Next(); {
		if err := rows.Scan(&w.seq, &w.idx, &w.n, &w.hashes); err != nil {
			return nil, err
		}
		if int64(len(w.hashes)) != w.n*tlog.HashSize {
			return nil, ErrDamaged.Because(errPack)
		}
		out, count = append(out, w), count+w.n
	}
	return out, rows.Err()
}

// readHeadsBetween is what the columns say of the events in the places from first
// to before end, without gaps. Neither their leaves nor their payloads are read,
// which are nearly all that there is of them.
func readHeadsBetween(ctx context.Context, tx *db.Tx, first, end int64) ([]head, error) {
	rows, err := tx.Query(ctx, "select idx, n, action, actor, target, session_id, heads from audit where tenant_id = $1 and idx >= coalesce("+atPlace("$2")+", $2) and idx < $3 order by idx",
		tx.Tenant(), first, end)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := make([]head, 0, end-first+maxPack) // the first row may begin before them, and the last end after them
	var h head
	var idx, n int64
	var packed sql.NullString
	for rows.Next() {
		if err := rows.Scan(&idx, &n, &h.Action, &h.Actor, &h.Target, &h.Session, &packed); err != nil {
			return nil, err
		}
		before := len(out)
		if n == 1 {
			out = append(out, h)
		} else if out, err = appendHeads(out, packed.String, n); err != nil {
			return nil, ErrDamaged.Because(err)
		}
		skip := min(max(first-idx, 0), n)
		keep := min(max(end-idx, skip), n)
		out = append(out[:before], out[before+int(skip):before+int(keep)]...)
	}
	if err := rows.Err(); err != nil || int64(len(out)) == end-first {
		return out, err
	}
	return nil, ErrDamaged.Because(fmt.Errorf("%d of the %d events from place %d on are there", len(out), end-first, first))
}

// waitingCount is how many events have no place.
func waitingCount(ctx context.Context, tx *db.Tx) (n int64, err error) {
	err = tx.QueryRow(ctx, "select coalesce(sum(n), 0) from audit where tenant_id = $1 and "+waits(tx), tx.Tenant()).Scan(&n)
	return n, err
}

// readTree is the tenant's tree; that of a tenant without one has size 0.
func readTree(ctx context.Context, tx *db.Tx) (t tree, err error) {
	var root, signedRoot []byte
	err = tx.QueryRow(ctx, "select size, posted, root, signed_size, signed_root, checkpoint from audit_tree where tenant_id = $1", tx.Tenant()).
		Scan(&t.size, &t.posted, &root, &t.signedSize, &signedRoot, &t.checkpoint)
	if err == db.ErrNoRows {
		return tree{}, nil
	}
	copy(t.root[:], root)
	copy(t.signedRoot[:], signedRoot)
	return t, err
}

// readEdge is the right edge of the tree of that size.
func readEdge(ctx context.Context, tx *db.Tx, size int64) (edge, error) {
	e := edge{size: size}
	for level := 0; size>>(tileHeight*level) > 0; level++ {
		e.levels = append(e.levels, nil)
		n, width := tileOnEdge(size, level)
		if width == 0 {
			continue
		}
		hashes, err := readTile(ctx, tx, level, n, width)
		if err != nil {
			return edge{}, err
		}
		e.levels[level] = hashes
	}
	return e, nil
}

// readTile is the beginning of a tile: width hashes of it.
func readTile(ctx context.Context, tx *db.Tx, level int, n int64, width int) ([]byte, error) {
	var hashes []byte
	err := tx.QueryRow(ctx, "select hashes from audit_tile where tenant_id = $1 and level = $2 and n = $3", tx.Tenant(), level, n).Scan(&hashes)
	if err != nil && err != db.ErrNoRows {
		return nil, err
	}
	if len(hashes) < width*tlog.HashSize {
		return nil, ErrDamaged.Because(fmt.Errorf("tile %d of level %d has %d hashes, not %d", n, level, len(hashes)/tlog.HashSize, width))
	}
	return hashes[:width*tlog.HashSize], nil
}

// growTree sets the tree's size and root, unless it has grown since it was
// read.
func growTree(ctx context.Context, tx *db.Tx, from, to int64, root tlog.Hash) error {
	var n int64
	var err error
	if from == 0 {
		n, err = tx.Exec(ctx, `insert into audit_tree (tenant_id, size, root) values ($1, $2, $3)
			on conflict (tenant_id) do nothing`, tx.Tenant(), to, root[:])
	} else {
		n, err = tx.Exec(ctx, "update audit_tree set size = $3, root = $4 where tenant_id = $1 and size = $2", tx.Tenant(), from, to, root[:])
	}
	if err == nil && n == 0 {
		return errBeaten
	}
	return err
}

// givePlaces gives the rows consecutive places from first on. All of them
// still have none, or somebody went past the tree's size. On SQLite they have
// theirs since they were written.
func givePlaces(ctx context.Context, tx *db.Tx, first int64, waiters []waiter) error {
	if tx.Engine() == db.SQLite {
		return nil
	}
	places := make([][2]int64, len(waiters))
	for i, w := range waiters {
		places[i] = [2]int64{w.seq, first}
		first += w.n
	}
	list, err := json.Marshal(places)
	if err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `update audit set idx = (j.value ->> 1)::bigint from json_array_elements($2::json) as j(value)
		where audit.seq = (j.value ->> 0)::bigint and audit.tenant_id = $1 and audit.idx is null`, tx.Tenant(), string(list))
	if err == nil && n != int64(len(places)) {
		return ErrDamaged.Because(fmt.Errorf("%d of %d waiting rows have a place already", int64(len(places))-n, len(places)))
	}
	return err
}

// movePosted says how far the index goes, unless somebody else has.
func movePosted(ctx context.Context, tx *db.Tx, from, to int64) error {
	n, err := tx.Exec(ctx, "update audit_tree set posted = $3 where tenant_id = $1 and posted = $2", tx.Tenant(), from, to)
	if err == nil && n == 0 {
		return errBeaten
	}
	return err
}

func writeTiles(ctx context.Context, tx *db.Tx, tiles []tile) error {
	for _, t := range tiles {
		_, err := tx.Exec(ctx, `insert into audit_tile (tenant_id, level, n, hashes) values ($1, $2, $3, $4)
			on conflict (tenant_id, level, n) do update set hashes = excluded.hashes`,
			tx.Tenant(), t.level, t.n, t.hashes)
		if err != nil {
			return err
		}
	}
	return nil
}

// saveCheckpoint publishes a checkpoint, unless a larger one is out.
func saveCheckpoint(ctx context.Context, tx *db.Tx, size int64, root tlog.Hash, checkpoint string) error {
	_, err := tx.Exec(ctx, `update audit_tree set signed_size = $2, signed_root = $3, checkpoint = $4
		where tenant_id = $1 and signed_size < $2 and size >= $2`, tx.Tenant(), size, root[:], checkpoint)
	return err
}

// touched is an event that makes copies stale.
type touched struct {
	seq     int64
	tenant  estover.TenantID
	touches string
}

// firstTouched is the number of the first event since then that makes copies
// stale, or the one after the last of all. The + 0 keeps SQLite from going
// through all events from the first on.
func firstTouched(ctx context.Context, tx *db.Tx, since time.Time) (seq int64, err error) {
	err = tx.QueryRow(ctx, `select coalesce((select min(seq + 0) from audit where touched_at >= $1), (select max(seq) + 1 from audit), 1)`, since).Scan(&seq)
	return seq, err
}

// lastNumber is the highest number of an event.
func lastNumber(ctx context.Context, tx *db.Tx) (seq int64, err error) {
	err = tx.QueryRow(ctx, "select coalesce(max(seq), 0) from audit").Scan(&seq)
	return seq, err
}

// readNumbers are the numbers after from, up to end, that there are.
func readNumbers(ctx context.Context, tx *db.Tx, from, end int64) ([]int64, error) {
	return db.AllOf[int64](ctx, tx, "select seq from audit where seq > $1 and seq <= $2 order by seq", from, end)
}

// readTouched are the events with a number after from, up to end, that make
// copies stale.
func readTouched(ctx context.Context, tx *db.Tx, from, end int64) ([]touched, error) {
	return scanTouched(ctx, tx, "select seq, tenant_id, touches from audit where seq > $1 and seq <= $2 and touched_at is not null", from, end)
}

// readTouchedAt are the events with these numbers, whether or not they make
// copies stale.
func readTouchedAt(ctx context.Context, tx *db.Tx, numbers map[int64]time.Time) ([]touched, error) {
	if len(numbers) == 0 {
		return nil, nil
	}
	list, err := json.Marshal(slices.Collect(maps.Keys(numbers)))
	if err != nil {
		return nil, err
	}
	return scanTouched(ctx, tx, "select seq, tenant_id, touches from audit where seq in (select json_array_elements_text($1::json)::bigint)", string(list))
}

func scanTouched(ctx context.Context, tx *db.Tx, query string, args ...any) ([]touched, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (e touched, err error) {
		err = columns(&e.seq, &e.tenant, &e.touches)
		return e, err
	}, query, args...)
}

// A row is an event as it is stored, or a pack of them ([row.events]).
type row struct {
	seq      int64
	idx      sql.NullInt64
	n        int64
	leafHash []byte
	event    Event // what the columns say
	lastID   string
	heads    []byte
	leaf     []byte
	payload  []byte
}

// rowColumns are the columns of a row, for a statement whose first argument is
// the tenant.
func rowColumns(tx *db.Tx) string {
	return "seq, " + place(tx) + ", n, leaf_hash, id, at, action, outcome, actor, target, session_id, touches, last_id, heads, leaf, payload"
}

// readRows reads rows, and gives the events in them.
func readRows(ctx context.Context, tx *db.Tx, query string, args ...any) ([]row, error) {
	whole, err := readWholeRows(ctx, tx, query, args...)
	var out []row
	for _, r := range whole {
		events, err := r.events()
		if err != nil {
			return nil, ErrDamaged.Because(err)
		}
		out = append(out, events...)
	}
	return out, err
}

func readWholeRows(ctx context.Context, tx *db.Tx, query string, args ...any) ([]row, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (r row, err error) {
		var touches string
		e := &r.event
		err = columns(&r.seq, &r.idx, &r.n, &r.leafHash, &e.ID, &e.At, &e.Action, &e.Outcome, &e.Actor, &e.Target, &e.Session, &touches,
			&r.lastID, &r.heads, &r.leaf, &r.payload)
		if touches != "" {
			e.Touches = strings.Fields(touches)
		}
		return r, err
	}, query, args...)
}

// atPlace is the place of the row in which an event is that has the place of an
// argument. The first argument is the tenant.
func atPlace(argument string) string {
	return "(select max(idx) from audit where tenant_id = $1 and idx is not null and idx <= " + argument + ")"
}

// readWholePlaced are the rows with the places from first to before end. Some
// may have others beside.
func readWholePlaced(ctx context.Context, tx *db.Tx, first, end int64) ([]row, error) {
	return readWholeRows(ctx, tx, "select "+rowColumns(tx)+" from audit where tenant_id = $1 and idx >= coalesce("+atPlace("$2")+", $2) and idx < $3 order by idx",
		tx.Tenant(), first, end)
}

// readPlaced are the events in the places from first to before end. A row that
// cannot be told apart is left out.
func readPlaced(ctx context.Context, tx *db.Tx, first, end int64) ([]row, error) {
	whole, err := readWholePlaced(ctx, tx, first, end)
	var out []row
	for _, r := range whole {
		events, err := r.events()
		if err != nil {
			continue
		}
		for _, e := range events {
			if e.idx.Int64 >= first && e.idx.Int64 < end {
				out = append(out, e)
			}
		}
	}
	return out, err
}

// readRowOf is the row with an event.
func readRowOf(ctx context.Context, tx *db.Tx, id string) (row, error) {
	rows, err := readWholeRows(ctx, tx, "select "+rowColumns(tx)+" from audit where tenant_id = $1 and n = 1 and id = $2", tx.Tenant(), id)
	if err != nil || len(rows) > 0 {
		return first(rows), err
	}
	rows, err = readWholeRows(ctx, tx, "select "+rowColumns(tx)+` from audit
		where tenant_id = $1 and n > 1 and last_id >= $2 and last_id <= $3 and id <= $2`, tx.Tenant(), id, latestWith(id))
	if err != nil {
		return row{}, err
	}
	for _, r := range rows {
		if r.has(id) {
			return r, nil
		}
	}
	return row{}, ErrNotFound
}

func first(rows []row) (r row) {
	if len(rows) > 0 {
		r = rows[0]
	}
	return r
}

// has reports whether an event is in a pack.
func (r row) has(id string) bool {
	heads, err := readHeads(r.heads, r.n)
	return err == nil && slices.ContainsFunc(heads, func(h head) bool { return h.ID == id })
}

func readEvent(ctx context.Context, tx *db.Tx, id string) (row, error) {
	r, err := readRowOf(ctx, tx, id)
	if err != nil {
		return row{}, err
	}
	events, err := r.events()
	if err != nil {
		return row{}, ErrDamaged.Because(err)
	}
	return events[slices.IndexFunc(events, func(e row) bool { return e.event.ID == id })], nil
}

// A query is a select of events, under construction.
type query struct {
	text string
	args []any
}

// where adds a condition; %d in it is the number of its argument.
func (q *query) where(condition string, arg any) {
	q.args = append(q.args, arg)
	q.text += fmt.Sprintf(" and "+condition, len(q.args))
}

// of begins the select of the rows with events that a filter may let through:
// what is in a pack is looked at there ([Filter.lets]).
func (f Filter) of(tx *db.Tx) *query {
	q := &query{"select " + rowColumns(tx) + " from audit where tenant_id = $1", []any{tx.Tenant()}}
	single := func(column, operator string, value any) { q.where("(n > 1 or "+column+" "+operator+" $%d)", value) }
	if f.Session != "" {
		single("session_id", "=", f.Session)
	}
	if f.Target != "" {
		single("target", "=", f.Target)
	}
	if f.Actor != "" {
		single("actor", "=", f.Actor)
	}
	if f.Action != "" {
		single("action", "=", f.Action)
	}
	if f.Outcome != "" {
		single("outcome", "=", f.Outcome)
	}
	if !f.Since.IsZero() {
		single("at", ">=", f.Since)
	}
	if !f.Until.IsZero() {
		q.where("at < $%d", f.Until) // the earliest of a pack
	}
	return q
}

// readFilteredWaiting are the events that are not in the tree, the newest rows
// first.
func readFilteredWaiting(ctx context.Context, tx *db.Tx, f Filter) ([]row, error) {
	q := f.of(tx)
	rows, err := readRows(ctx, tx, q.text+" and "+waits(tx), q.args...)
	rows = f.only(rows)
	newest(rows)
	return rows, err
}

// readFilteredPlaced are the events in the places from first to before end,
// the last first: those of at most limit rows. It gives the place before which
// it did not look.
func readFilteredPlaced(ctx context.Context, tx *db.Tx, f Filter, first, end int64, limit int) ([]row, int64, error) {
	q := f.of(tx)
	q.where("idx >= coalesce("+atPlace("$%d")+", 0)", first)
	q.where("idx < $%d", end)
	q.where("idx is not null order by idx desc limit $%d", limit)
	rows, err := readRows(ctx, tx, q.text, q.args...)
	if err != nil {
		return nil, 0, err
	}
	next := first
	if len(rows) > 0 && rowCount(rows) == limit {
		next = slices.MinFunc(rows, func(a, b row) int { return cmp.Compare(a.idx.Int64, b.idx.Int64) }).idx.Int64
	}
	rows = slices.DeleteFunc(f.only(rows), func(r row) bool { return r.idx.Int64 < first || r.idx.Int64 >= end })
	newest(rows)
	return rows, next, nil
}

// rowCount is in how many rows of the table the events stand.
func rowCount(rows []row) (n int) {
	for i := range rows {
		if i == 0 || rows[i].seq != rows[i-1].seq {
			n++
		}
	}
	return n
}

// readFilteredAt are the events in these places, the last first.
func readFilteredAt(ctx context.Context, tx *db.Tx, f Filter, places []int64) ([]row, error) {
	list, err := json.Marshal(places)
	if err != nil {
		return nil, err
	}
	q := f.of(tx)
	each := "json_each($%d) as p"
	value := "p.value"
	if tx.Engine() == db.Postgres {
		each, value = "json_array_elements_text($%d::json) as p(value)", "p.value::bigint"
	}
	q.where("idx in (select "+atPlace(value)+" from "+each+")", string(list))
	rows, err := readRows(ctx, tx, q.text, q.args...)
	if err != nil {
		return nil, err
	}
	wanted := make(map[int64]bool, len(places))
	for _, p := range places {
		wanted[p] = true
	}
	rows = slices.DeleteFunc(f.only(rows), func(r row) bool { return !wanted[r.idx.Int64] })
	newest(rows)
	return rows, nil
}

// maxPosts is how many postings are read at once.
const maxPosts = 64

// readPosts are the postings of a ref that begin before a place, the last
// first.
func readPosts(ctx context.Context, tx *db.Tx, ref string, before int64) ([]post, error) {
	return scanPosts(ctx, tx, `select ref, first, offsets from audit_post
		where tenant_id = $1 and ref = $2 and first < $3 order by first desc limit $4`, tx.Tenant(), ref, before, maxPosts)
}

// readAllPosts are the tenant's postings that come after one, in their order.
func readAllPosts(ctx context.Context, tx *db.Tx, after post, limit int) ([]post, error) {
	return scanPosts(ctx, tx, `select ref, first, offsets from audit_post
		where tenant_id = $1 and (ref, first) > ($2, $3) order by ref, first limit $4`, tx.Tenant(), after.ref, after.first, limit)
}

func scanPosts(ctx context.Context, tx *db.Tx, query string, args ...any) ([]post, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (p post, err error) {
		err = columns(&p.ref, &p.first, &p.offsets)
		return p, err
	}, query, args...)
}

// listed is postings as a list for [writePosts], made before its transaction: the
// offsets of each, a bar, and its ref.
func listed(posts []post) string {
	list := make([]string, len(posts))
	for i, p := range posts {
		list[i] = p.offsets + "|" + p.ref
	}
	return string(AppendStrings(nil, list))
}

// writePosts writes postings of one run, whose first place this is, or writes them again.
func writePosts(ctx context.Context, tx *db.Tx, first int64, list string) error {
	// To take a text apart costs SQLite less than to look into a list within the list.
	each, bar := "json_each($3)", "instr(value, '|')"
	if tx.Engine() == db.Postgres {
		each, bar = "json_array_elements_text($3::json) as j(value)", "strpos(value, '|')"
	}
	_, err := tx.Exec(ctx, "insert into audit_post (tenant_id, ref, first, offsets) select $1, substr(value, "+bar+" + 1), $2, substr(value, 1, "+bar+" - 1) from "+each+
		" where true on conflict (tenant_id, ref, first) do update set offsets = excluded.offsets", tx.Tenant(), first, list)
	return err
}

// timeOf is when the event in a place happened.
func timeOf(ctx context.Context, tx *db.Tx, place int64) (time.Time, error) {
	rows, err := readPlaced(ctx, tx, place, place+1)
	return first(rows).event.At, err
}

// readLeaves are the entries of the log from first to before end.
func readLeaves(ctx context.Context, tx *db.Tx, first, end int64) ([][]byte, error) {
	rows, err := readPlaced(ctx, tx, first, end)
	if err != nil {
		return nil, err
	}
	out := make([][]byte, len(rows))
	for i, r := range rows {
		out[i] = r.leaf
	}
	return out, nil
}

// erasePayload empties an event's payload.
func erasePayload(ctx context.Context, tx *db.Tx, id string) error {
	r, err := readRowOf(ctx, tx, id)
	if err != nil {
		return err
	}
	heads, payload := any(nil), []byte{}
	if r.n > 1 {
		if heads, payload, err = r.erased(id); err != nil {
			return ErrDamaged.Because(err)
		}
	}
	_, err = tx.Exec(ctx, "update audit set heads = $3, payload = $4 where tenant_id = $1 and seq = $2", tx.Tenant(), r.seq, heads, payload)
	return err
}

// have reports which of the events are there.
func have(ctx context.Context, tx *db.Tx, ids []string) (map[string]bool, error) {
	out := map[string]bool{}
	for _, id := range ids {
		switch _, err := readRowOf(ctx, tx, id); {
		case err == nil:
			out[id] = true
		case !errors.Is(err, ErrNotFound):
			return nil, err
		}
	}
	return out, nil
}

// A cursor says how far a follower has come in a tenant's log.
type cursor struct {
	tenant     estover.TenantID
	next, size int64
}

// behind are the logs in which the follower has not come to the end.
func behind(ctx context.Context, tx *db.Tx, name string) ([]cursor, error) {
	rows, err := tx.Query(ctx, `select t.tenant_id, coalesce(c.next, 0), t.size from audit_tree t
		left join audit_cursor c on c.tenant_id = t.tenant_id and c.name = $1
		where t.size > coalesce(c.next, 0) order by t.tenant_id`, name)
	if err != nil {
		return nil, err
	}
	return scanCursors(rows)
}

// behindOf is the place of who follows the tenant's log alone, if it has one and there
// is more.
func behindOf(ctx context.Context, tx *db.Tx, name string) ([]cursor, error) {
	rows, err := tx.Query(ctx, `select c.tenant_id, c.next, t.size from audit_cursor c join audit_tree t on t.tenant_id = c.tenant_id
		where c.tenant_id = $1 and c.name = $2 and t.size > c.next`, tx.Tenant(), name)
	if err != nil {
		return nil, err
	}
	return scanCursors(rows)
}

func scanCursors(rows *db.Rows) (out []cursor, err error) {
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var c cursor
		if err := rows.Scan(&c.tenant, &c.next, &c.size); err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, rows.Err()
}

// saveCursor moves a follower on, never back.
func saveCursor(ctx context.Context, tx *db.Tx, name string, next int64) error {
	_, err := tx.Exec(ctx, `insert into audit_cursor (tenant_id, name, next) values ($1, $2, $3)
		on conflict (tenant_id, name) do update set next = excluded.next where audit_cursor.next < excluded.next`,
		tx.Tenant(), name, next)
	return err
}

// moveCursor moves a follower on that has a place.
func moveCursor(ctx context.Context, tx *db.Tx, name string, next int64) error {
	_, err := tx.Exec(ctx, `update audit_cursor set next = $3 where tenant_id = $1 and name = $2 and next < $3`, tx.Tenant(), name, next)
	return err
}

// startCursor has a follower begin at the end of the log.
func startCursor(ctx context.Context, tx *db.Tx, name string) error {
	_, err := tx.Exec(ctx, `insert into audit_cursor (tenant_id, name, next)
		select $1, $2, coalesce((select size from audit_tree where tenant_id = $1), 0)`, tx.Tenant(), name)
	return err
}

func dropCursor(ctx context.Context, tx *db.Tx, name string) error {
	_, err := tx.Exec(ctx, `delete from audit_cursor where tenant_id = $1 and name = $2`, tx.Tenant(), name)
	return err
}

// readWaiting counts the events without a place, and reads when the oldest was.
func readWaiting(ctx context.Context, tx *db.Tx) (oldest time.Time, n int64, err error) {
	err = tx.QueryRow(ctx, "select min(at), coalesce(sum(n), 0) from audit where tenant_id = $1 and "+waits(tx), tx.Tenant()).Scan(&oldest, &n)
	return oldest, n, err
}

// newestCheckpoints are those of all tenants.
func newestCheckpoints(ctx context.Context, tx *db.Tx) ([]Head, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (h Head, err error) {
		err = columns(&h.Tenant, &h.Checkpoint)
		return h, err
	}, "select tenant_id, checkpoint from audit_tree where signed_size > 0 order by tenant_id")
}

// newestTime is when the last event happened that was written, of all tenants.
func newestTime(ctx context.Context, tx *db.Tx) (at time.Time, err error) {
	err = tx.QueryRow(ctx, "select max(at) from (select at from audit order by seq desc limit 1) newest").Scan(&at)
	return at, err
}
