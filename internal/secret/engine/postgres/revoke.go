package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"estover.dev/internal/secret/engine"
)

const (
	// batch is how many users share the transactions of their end.
	batch = 50

	// ending is how long the end of sessions may take that were told to end.
	ending = 5 * time.Second

	// starting is how long a log-in is waited for that was under way. One that
	// takes longer has not looked up its role yet, and will find that it may not
	// log in.
	starting = 500 * time.Millisecond
)

// A doomed is a user that is there and is to be gone.
type doomed struct {
	name   string
	oid    uint32
	login  bool // it may still log in
	revoke []string
	heir   string // who gets what it owns; "" for nobody
	err    error
}

// Revoke ends users. Each has its own answer.
func (t *target) Revoke(ctx context.Context, users []engine.Doomed) []error {
	errs := make([]error, len(users))
	for from := 0; from < len(users); from += batch {
		to := min(from+batch, len(users))
		found := map[string]*doomed{}
		err := t.with(ctx, func(ctx context.Context, c *pgx.Conn) error { return t.end(ctx, c, users[from:to], found) })
		for i, u := range users[from:to] {
			if d := found[u.Name]; d != nil && d.err != nil {
				errs[from+i] = d.err
			} else if err != nil {
				errs[from+i] = reached(err)
			}
		}
	}
	return errs
}

// end revokes a batch. What it finds to do is in found, with how it went; an
// error is about all of them.
func (t *target) end(ctx context.Context, c *pgx.Conn, users []engine.Doomed, found map[string]*doomed) error {
	wanted := map[string]engine.Template{}
	for _, u := range users {
		if nameable(u.Name) {
			wanted[u.Name] = u.Template
		}
	}
	all, err := look(ctx, c, wanted)
	if err != nil || len(all) == 0 {
		return err
	}
	for _, d := range all {
		found[d.name] = d
	}

	// No more log-ins.
	t.split(ctx, c, slices.DeleteFunc(slices.Clone(all), func(d *doomed) bool { return !d.login }), func(some []*doomed) error {
		statements := make([]string, len(some))
		for i, d := range some {
			statements[i] = "alter role " + ident(d.name) + " nologin"
		}
		return t.do(ctx, c, statements...)
	})
	if err := t.endSessions(ctx, c, going(all), true); err != nil {
		return err
	}

	// What goes easily goes together, before what does not.
	hard, err := dependent(ctx, c, going(all))
	if err != nil {
		return err
	}
	drop := func(some []*doomed) error {
		names := make([]string, len(some))
		for i, d := range some {
			names[i] = d.name
		}
		return t.do(ctx, c, "drop role if exists "+idents(names))
	}
	easy := slices.DeleteFunc(going(all), func(d *doomed) bool { return slices.Contains(hard, d.oid) || len(d.revoke) > 0 })
	t.split(ctx, c, easy, drop)
	for _, d := range going(all) {
		if slices.Contains(easy, d) {
			continue
		}
		one := []*doomed{d}
		if len(d.revoke) > 0 {
			t.split(ctx, c, one, func([]*doomed) error { return t.do(ctx, c, d.revoke...) })
		}
		left, err := dependent(ctx, c, one)
		if err == nil && len(left) > 0 && d.err == nil {
			err = t.disown(ctx, c, d)
		}
		if err != nil {
			d.err = reached(err)
		}
		if d.err == nil {
			t.split(ctx, c, one, drop)
		}
	}
	return t.endSessions(ctx, c, going(all), false)
}

// going are those who have met no obstacle.
func going(all []*doomed) []*doomed {
	return slices.DeleteFunc(slices.Clone(all), func(d *doomed) bool { return d.err != nil })
}

func oids(some []*doomed) []uint32 {
	ids := make([]uint32, len(some))
	for i, d := range some {
		ids[i] = d.oid
	}
	return ids
}

// look finds the roles that are there, and their numbers, by which their
// sessions are known for as long as these last.
func look(ctx context.Context, c *pgx.Conn, wanted map[string]engine.Template) ([]*doomed, error) {
	names := make([]string, 0, len(wanted))
	for name := range wanted {
		names = append(names, name)
	}
	rows, err := c.Query(ctx, `select rolname::text, oid, rolcanlogin from pg_catalog.pg_roles where rolname::text = any($1::text[]) order by 1`, names)
	if err != nil {
		return nil, classify(err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*doomed, error) {
		d := &doomed{}
		return d, row.Scan(&d.name, &d.oid, &d.login)
	})
	for _, d := range all {
		if groups := wanted[d.name]["groups"]; len(groups) > 0 {
			d.heir = groups[0]
		}
		if own := wanted[d.name]["revoke"]; len(own) > 0 {
			d.revoke, d.err = (&expansion{name: d.name}).all(own)
		}
	}
	return all, classify(err)
}

// split does work for all of them at once. If the database refuses that, it does
// it for the halves, down to those whom the refusal is about (Q4).
func (t *target) split(ctx context.Context, c *pgx.Conn, some []*doomed, work func([]*doomed) error) {
	if len(some) == 0 {
		return
	}
	if len(some) == 1 {
		d := some[0]
		err := again(ctx, func() error { return work(some) })
		if code(err) == noSuchRole || code(err) == internalError {
			if there, e := exists(ctx, c, d.name); e == nil && !there {
				return // somebody else was faster
			}
		}
		if err != nil {
			d.err = reached(err)
		}
		return
	}
	switch err := work(some); {
	case err == nil:
	case code(err) == "":
		for _, d := range some {
			d.err = reached(err)
		}
	default:
		t.split(ctx, c, some[:len(some)/2], work)
		t.split(ctx, c, some[len(some)/2:], work)
	}
}

// dependent gives those on whom something in some database depends: what they
// own, or privileges of their own.
func dependent(ctx context.Context, c *pgx.Conn, some []*doomed) ([]uint32, error) {
	if len(some) == 0 {
		return nil, nil
	}
	rows, err := c.Query(ctx, `select distinct refobjid from pg_catalog.pg_shdepend where refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass::pg_catalog.oid and refobjid = any($1::pg_catalog.oid[])`, oids(some))
	if err != nil {
		return nil, classify(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	return ids, classify(err)
}

// disown gives what a role owns to another, and takes its privileges away, in
// every database where there is something.
func (t *target) disown(ctx context.Context, c *pgx.Conn, d *doomed) error {
	rows, err := c.Query(ctx, `select distinct d.datname::text, d.datallowconn from pg_catalog.pg_shdepend s
		join pg_catalog.pg_database d on d.oid = case when s.dbid = '0'::pg_catalog.oid then (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database()) else s.dbid end
		where s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass::pg_catalog.oid and s.refobjid = $1::pg_catalog.oid`, d.oid)
	if err != nil {
		return classify(err)
	}
	type database struct {
		name string
		open bool
	}
	in, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (x database, err error) {
		return x, row.Scan(&x.name, &x.open)
	})
	if err != nil {
		return classify(err)
	}
	if t.owner != "" {
		d.heir = t.owner
	}
	if d.heir == "" { // of a user of whom no more is known than the name
		err := c.QueryRow(ctx, `select coalesce((select g.rolname::text from pg_catalog.pg_auth_members m join pg_catalog.pg_roles g on g.oid = m.roleid
			where m.member = $1::oid and not pg_catalog.starts_with(g.rolname::text, 'pg_'::text) order by 1 limit 1), ''::text)`, d.oid).Scan(&d.heir)
		if err != nil {
			return classify(err)
		}
	}
	var acts, inherits, owns bool
	err = c.QueryRow(ctx, `select pg_catalog.pg_has_role(current_user, $1::oid, 'usage'),
		coalesce((select pg_catalog.pg_has_role(current_user, oid, 'usage') from pg_catalog.pg_roles where rolname::text = $2::text), true),
		exists (select from pg_catalog.pg_shdepend
			where refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass::pg_catalog.oid and refobjid = $1::oid and deptype = 'o'::pg_catalog."char")`, d.oid, d.heir).Scan(&acts, &inherits, &owns)
	if err != nil {
		return classify(err)
	}
	to := ident(d.heir)
	statements := []string{"drop owned by " + ident(d.name)}
	switch {
	case d.heir != "":
		statements = append([]string{"reassign owned by " + ident(d.name) + " to " + to}, statements...)
	case owns:
		// The admin does not get it: a view, a function or an index that the user has
		// made would do with the admin's rights from then on what the user wanted.
		return engine.Refuse("%s may not log in any more, but owns something, and nobody is named who gets it: set the option owner of the target", d.name)
	}
	if !inherits { // membership for the length of the transaction
		statements = append(append([]string{"grant " + to + " to current_user"}, statements...), "revoke "+to+" from current_user")
	}
	if !acts { // membership until the role is dropped
		if err := t.do(ctx, c, "grant "+ident(d.name)+" to current_user"); err != nil {
			return err
		}
	}
	for _, x := range in {
		if !x.open {
			return engine.Refuse("%s owns something in the database %s, which takes no connections: ALTER DATABASE %s ALLOW_CONNECTIONS true", d.name, x.name, ident(x.name))
		}
		if err := t.inside(ctx, x.name, statements); err != nil {
			return fmt.Errorf("%s owns something in the database %s: %w", d.name, x.name, err)
		}
	}
	return nil
}

// inside runs statements in another database, over a connection of their own.
func (t *target) inside(ctx context.Context, database string, statements []string) error {
	config := t.base.Copy()
	config.Database = database
	c, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		var said *pgconn.PgError
		if errors.As(err, &said) {
			return classify(said)
		}
		return engine.Unreachable(err)
	}
	defer c.Close(context.WithoutCancel(ctx))
	return t.do(ctx, c, statements...)
}

// endSessions ends the sessions of roles, and waits until they have ended. Those
// whose sessions cannot be ended meet their obstacle here. With racing, it waits
// for log-ins under way, too.
func (t *target) endSessions(ctx context.Context, c *pgx.Conn, some []*doomed, racing bool) error {
	if len(some) == 0 {
		return nil
	}
	member := false
	begun := time.Now()
	var early []int32 // who logged in when this began
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		starters, open, err := sweep(ctx, c, oids(some), true)
		if code(err) == noRight && !member {
			// A member of a role may end its sessions.
			member = true
			t.split(ctx, c, some, func(some []*doomed) error {
				names := make([]string, len(some))
				for i, d := range some {
					names[i] = d.name
				}
				return t.do(ctx, c, "grant "+idents(names)+" to current_user")
			})
			some = going(some)
			continue
		}
		if code(err) == noRight {
			if _, open, err = sweep(ctx, c, oids(some), false); err != nil {
				return err
			}
			blame(some, open, "may not be ended by the admin: GRANT pg_signal_backend")
			return nil
		}
		if err != nil {
			return err
		}
		if early == nil {
			early = append(starters, -1)
		}
		waits := racing && time.Since(begun) < starting && slices.ContainsFunc(starters, func(pid int32) bool { return slices.Contains(early, pid) })
		if len(open) == 0 && !waits {
			return nil
		}
		if time.Since(begun) > ending {
			blame(some, open, "do not end")
			return nil
		}
		select {
		case <-ctx.Done():
			return engine.Unreachable(ctx.Err())
		case <-time.After(pause):
		}
	}
}

// blame gives those with open sessions their obstacle.
func blame(some []*doomed, open map[uint32]int, why string) {
	for _, d := range some {
		if n := open[d.oid]; n > 0 {
			d.err = engine.Refuse("%s may not log in any more, but %d open sessions %s", d.name, n, why)
		}
	}
}

// sweep tells the sessions of roles to end, and counts them by role. First it
// gives the processes of log-ins under way: they hold a lock before they show
// among the sessions, and the order of the two statements is what counts.
func sweep(ctx context.Context, c *pgx.Conn, roles []uint32, kill bool) (starters []int32, open map[uint32]int, err error) {
	ours := "usesysid = any('" + strings.NewReplacer("[", "{", "]", "}", " ", ",").Replace(fmt.Sprint(roles)) + "'::pg_catalog.oid[])"
	told := "null"
	if kill {
		told = "case when " + ours + " then pg_catalog.pg_terminate_backend(pid) end"
	}
	deadline, _ := ctx.Deadline()
	results, err := c.PgConn().Exec(ctx, fmt.Sprintf(`set statement_timeout = %d;
		select pid from pg_catalog.pg_locks where locktype = 'virtualxid' and pid is not null;
		select pid, usesysid, `+ours+`, `+told+` from pg_catalog.pg_stat_activity where pid <> pg_catalog.pg_backend_pid();
		reset statement_timeout`, max(1, time.Until(deadline).Milliseconds()))).ReadAll()
	if err != nil {
		return nil, nil, classify(err)
	}
	number := func(b []byte) (n int64) {
		for _, digit := range b {
			n = 10*n + int64(digit-'0')
		}
		return n
	}
	locked := map[int32]bool{int32(c.PgConn().PID()): false}
	for _, row := range results[1].Rows {
		if pid := int32(number(row[0])); pid != int32(c.PgConn().PID()) {
			locked[pid] = true
		}
	}
	open = map[uint32]int{}
	for _, row := range results[2].Rows {
		locked[int32(number(row[0]))] = false
		if string(row[2]) == "t" {
			open[uint32(number(row[1]))]++
		}
	}
	for pid, starts := range locked {
		if starts {
			starters = append(starters, pid)
		}
	}
	return starters, open, nil
}

// EndSessions ends those that are open.
func (t *target) EndSessions(ctx context.Context, user string) error {
	if !nameable(user) {
		return nil
	}
	return reached(t.with(ctx, func(ctx context.Context, c *pgx.Conn) error {
		all, err := look(ctx, c, map[string]engine.Template{user: nil})
		if err != nil || len(all) == 0 {
			return err
		}
		open, err := pids(ctx, c, all[0].oid)
		for begun := time.Now(); err == nil && len(open) > 0; {
			var left int
			err = classify(c.QueryRow(ctx, `select pg_catalog.count(pg_catalog.pg_terminate_backend(pid)) from pg_catalog.pg_stat_activity where pid = any($1::int4[]) and usesysid = $2::oid`, open, all[0].oid).Scan(&left))
			switch {
			case code(err) == noRight:
				return engine.Refuse("sessions of %s may not be ended by the admin: GRANT pg_signal_backend", user)
			case err != nil || left == 0:
				return err
			case time.Since(begun) > ending:
				return engine.Refuse("%d sessions of %s do not end", left, user)
			}
			select {
			case <-ctx.Done():
				return engine.Unreachable(ctx.Err())
			case <-time.After(5 * time.Millisecond):
			}
		}
		return err
	}))
}

// pids are the processes of the sessions of a role but this one.
func pids(ctx context.Context, c *pgx.Conn, role uint32) ([]int32, error) {
	rows, err := c.Query(ctx, `select pid from pg_catalog.pg_stat_activity where usesysid = $1::oid and pid <> pg_catalog.pg_backend_pid()`, role)
	if err != nil {
		return nil, classify(err)
	}
	open, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	return open, classify(err)
}
