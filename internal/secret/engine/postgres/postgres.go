// Package postgres makes users of a PostgreSQL database, from version 13 on.
//
// A user is a role that may log in and is a member of group roles, which the
// operator owns and gives their rights. Rights for each user apart are possible
// by statements of one's own, but bloat the catalogues of the database.
//
// # What reaches the database
//
// A secret never does: the database is sent the verifier that it would compute
// itself (SCRAM-SHA-256, RFC 5803), so that its log of statements holds nothing
// to log in with. Only statements of one's own can have the secret in clear, and
// whoever writes such ones is told (engine.Kind.Warn).
//
// What has not ended by its deadline has no effect: statements carry it as their
// time-out, and each transaction looks at the clock of the database, whose
// difference to ours is measured with every connection, before it commits.
//
// # The end of a user
//
//	no more log-ins (commit) ─▶ sessions end ─▶ drop (commit) ─▶ sessions end
//
// At each point a crash leaves what the next attempt finds by the name. A session
// is found by the number of its role, which it keeps when the role is gone. A
// log-in that was under way when the first commit came shows among the locks
// before it shows among the sessions, so it is waited for.
//
// What a user owns would hold up its end. It goes to the role of the option
// owner, or else to the first group, in each database where there is something,
// and the rest of the user's privileges is taken away. It never goes to the admin:
// views and functions do what they do with the rights of who owns them. For the
// same reason no statement here has an operator or a function looked for outside
// of pg_catalog, where a user may have put one of the same name.
package postgres

import (
	"context"
	"crypto/fips140"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// keys are those of a template.
var keys = []engine.Field{
	{Name: "groups", Help: "roles that users are members of", Many: true},
	{Name: "create", Help: `statements that make a user instead: {{name}}, {{password}}, {{expiration}}; sent whole, in one transaction`, Many: true},
	{Name: "renew", Help: "statements that put off the end of a user instead: {{name}}, {{expiration}}", Many: true},
	{Name: "revoke", Help: "statements before a user is dropped: {{name}}", Many: true},
}

// Kind is PostgreSQL.
var Kind = engine.Kind{
	Name:    "postgres",
	Title:   "PostgreSQL",
	Address: "HOST[:PORT]/DATABASE",
	Port:    "5432",
	MaxName: maxName,
	Options: []engine.Field{
		engine.TLSField,
		{Name: "role", Help: "the role that Estover takes after log-in, and that makes the users; both admins of a rotated pair are members of it"},
		{Name: "owner", Help: "the role that gets what a revoked user owns; the first group of the user, if empty. A user without groups who owns something is not dropped before it is set"},
	},
	Template:      keys,
	Pair:          true,
	CheckTemplate: check,
	Warn:          warn,
	Open:          open,
}

const (
	maxName  = 63               // bytes of a role's name; the server would cut what is longer
	patience = 30 * time.Second // for a caller that gives no deadline
	dialing  = 5 * time.Second  // for a connection

	longestMessage = 8 << 20 // of the server
)

// target is one database.
type target struct {
	pool  *pgxpool.Pool
	base  *pgx.ConnConfig // of the admin
	owner string

	// skew is the clock of the database minus ours, in nanoseconds, when a
	// connection was made the last time.
	skew atomic.Int64
}

func open(c engine.Config) (engine.Engine, error) {
	where, database, found := strings.Cut(c.Address, "/")
	if !found || database == "" || !nameable(database) {
		return nil, engine.ErrConfig.With("The address of a PostgreSQL is HOST/DATABASE or HOST:PORT/DATABASE.").At("address")
	}
	host, port, err := engine.HostPort(where, 5432)
	if err != nil {
		return nil, err
	}
	encryption, err := c.TLS(host)
	if err != nil {
		return nil, err
	}
	for _, option := range []string{"role", "owner"} {
		if v := c.Options[option]; v != "" && !nameable(v) {
			return nil, engine.ErrConfig.With("The option %s is the name of a role.", option).At("options." + option)
		}
	}
	// Everything is said here, so that nothing of the environment of this process counts.
	pool, err := pgxpool.ParseConfig("host=unset user=unset dbname=unset sslmode=disable passfile=/dev/null")
	if err != nil {
		return nil, err
	}
	base := pool.ConnConfig
	base.Host, base.Port, base.Database = host, uint16(port), database
	base.User, base.Password = c.Admin.User, string(c.Admin.Secret.Reveal())
	base.TLSConfig, base.Fallbacks, base.ConnectTimeout = encryption, nil, dialing
	base.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil } // the dialer's task
	base.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := c.Connect(ctx, network, address)
		if err != nil {
			return nil, engine.Unreachable(err)
		}
		return conn, nil
	}
	base.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		f := pgproto3.NewFrontend(r, w)
		f.SetMaxBodyLen(longestMessage) // room is made for what it says, before it has come
		return f
	}
	var never []string
	if encryption == nil {
		never = append(never, "!password") // a password is not sent in clear
	}
	if fips140.Enforced() {
		never = append(never, "!md5") // which would panic
	}
	base.RequireAuth = strings.Join(never, ",")
	base.DefaultQueryExecMode = pgx.QueryExecModeExec // nothing is prepared, so a pooler in between does no harm
	base.RuntimeParams = map[string]string{
		"application_name": "estover", "client_encoding": "UTF8", "standard_conforming_strings": "on", "TimeZone": "UTC", "DateStyle": "ISO",
		"default_transaction_read_only": "off", "idle_in_transaction_session_timeout": "60000",
	}
	if role := c.Options["role"]; role != "" {
		base.RuntimeParams["role"] = role
	}
	t := &target{base: base.Copy(), owner: c.Options["owner"]}
	pool.MaxConns, pool.MinConns, pool.MaxConnIdleTime, pool.MaxConnLifetime = 5, 0, time.Minute, 30*time.Minute
	pool.AfterConnect = t.measure
	if t.pool, err = pgxpool.NewWithConfig(context.Background(), pool); err != nil {
		return nil, err
	}
	return t, nil
}

// measure compares the clocks.
func (t *target) measure(ctx context.Context, c *pgx.Conn) error {
	var theirs time.Time
	before := time.Now()
	if err := c.QueryRow(ctx, `select pg_catalog.clock_timestamp()`).Scan(&theirs); err != nil {
		return err
	}
	ours := before.Add(time.Since(before) / 2)
	t.skew.Store(int64(theirs.Sub(ours)))
	return nil
}

// with gives a connection of the pool to work, which ends by the deadline of ctx.
func (t *target) with(ctx context.Context, work func(ctx context.Context, c *pgx.Conn) error) error {
	if _, has := ctx.Deadline(); !has {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	if err := ctx.Err(); err != nil {
		return engine.Unreachable(err)
	}
	c, err := t.pool.Acquire(ctx)
	if err != nil {
		return engine.Unreachable(err)
	}
	defer c.Release()
	return work(ctx, c.Conn())
}

// do runs statements in one transaction, which has ended by the deadline of ctx
// or has no effect. The statements go out in one message, as they stand.
func (t *target) do(ctx context.Context, c *pgx.Conn, statements ...string) error {
	deadline, _ := ctx.Deadline()
	left := time.Until(deadline).Milliseconds()
	if left < 1 {
		return engine.Unreachable(context.DeadlineExceeded)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "begin; set local statement_timeout = %d;\n", left)
	for _, s := range statements {
		b.WriteString(s)
		b.WriteString("\n;\n")
	}
	limit := deadline.Add(time.Duration(t.skew.Load()))
	fmt.Fprintf(&b, "select 1 / (pg_catalog.clock_timestamp() < %s::pg_catalog.timestamptz)::pg_catalog.int4; commit", quote(limit.UTC().Format("2006-01-02 15:04:05.000000+00")))
	_, err := c.PgConn().Exec(ctx, b.String()).ReadAll()
	if err != nil && !c.IsClosed() {
		if _, e := c.PgConn().Exec(ctx, "rollback").ReadAll(); e != nil {
			_ = c.Close(ctx)
		}
	}
	return classify(err)
}

// classify gives an error the meaning that package engine has for it.
func classify(err error) error {
	var said *pgconn.PgError
	var none *engine.Refused
	switch {
	case err == nil, errors.As(err, &none), errors.Is(err, engine.ErrUnreachable):
		return err
	case errors.As(err, &said):
		switch code := said.Code; {
		case code == "57014", code == "22012": // the statement's time-out; the look at the clock
			return &refused{engine.Refused{Reason: "it took too long, so it was undone"}, code}
		case strings.HasPrefix(code, "57"), strings.HasPrefix(code, "08"), strings.HasPrefix(code, "58"), code == "XX001", code == "XX002":
			return fmt.Errorf("the database broke off: %s (%s)", line(said.Message), code)
		default:
			why := said.Message
			if said.Detail != "" {
				why += ": " + said.Detail
			}
			return &refused{engine.Refused{Reason: line(why) + " (" + code + ")"}, code}
		}
	default:
		return fmt.Errorf("talking to the database: %w", err)
	}
}

// refused is a refusal with PostgreSQL's code for it.
type refused struct {
	engine.Refused
	code string
}

// As has a refusal be an [engine.Refused].
func (r *refused) As(target any) bool {
	p, is := target.(**engine.Refused)
	if is {
		*p = &r.Refused
	}
	return is
}

// code is PostgreSQL's code of a refusal; "" of every other error.
func code(err error) string {
	var r *refused
	if errors.As(err, &r) {
		return r.code
	}
	return ""
}

// Codes of PostgreSQL (appendix A of its manual).
const (
	noSuchRole      = "42704"
	roleExists      = "42710"
	uniqueViolation = "23505"
	noRight         = "42501"
	internalError   = "XX000" // "tuple concurrently updated" among others
	deadlock        = "40P01"
	wrongPassword   = "28P01"
	noLogin         = "28000"
)

// line is a message on one line of limited length.
func line(s string) string {
	var r *engine.Refused
	errors.As(engine.Refuse("%s", s), &r)
	return r.Reason
}

// quote writes a string as a literal, where standard_conforming_strings is on.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// ident writes a name as an identifier.
func ident(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// idents writes names as identifiers in a row.
func idents(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = ident(n)
	}
	return strings.Join(quoted, ", ")
}

// nameable reports whether a role can have the name.
func nameable(name string) bool {
	return name != "" && len(name) <= maxName && utf8.ValidString(name) && !strings.ContainsRune(name, 0)
}

// stamp writes a time for VALID UNTIL.
func stamp(t time.Time) string {
	if t.IsZero() {
		return "infinity"
	}
	return t.UTC().Format("2006-01-02 15:04:05.000000-07")
}

// Close lets go of the connections.
func (t *target) Close() error { t.pool.Close(); return nil }

// Now gives the clock of the database.
func (t *target) Now(ctx context.Context) (now time.Time, err error) {
	err = t.with(ctx, func(ctx context.Context, c *pgx.Conn) error {
		return classify(c.QueryRow(ctx, `select pg_catalog.clock_timestamp()`).Scan(&now))
	})
	return now, reached(err)
}

// List gives the roles whose names begin with prefix.
func (t *target) List(ctx context.Context, prefix string) (names []string, err error) {
	if prefix != "" && !nameable(prefix) {
		return nil, nil
	}
	err = t.with(ctx, func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, `select rolname::text from pg_catalog.pg_roles where pg_catalog.starts_with(rolname::text, $1::text) order by 1`, prefix)
		if err == nil {
			names, err = pgx.CollectRows(rows, pgx.RowTo[string])
		}
		return classify(err)
	})
	return names, reached(err)
}

// Sessions gives who is logged in as user. From where is told only to an admin
// that may see it (pg_read_all_stats).
func (t *target) Sessions(ctx context.Context, user string) (open []engine.Session, err error) {
	if !nameable(user) {
		return nil, nil
	}
	err = t.with(ctx, func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, `select a.pid::text, coalesce(pg_catalog.host(a.client_addr), ''), coalesce(a.backend_start, 'epoch')
			from pg_catalog.pg_stat_activity a join pg_catalog.pg_roles r on r.oid = a.usesysid where r.rolname::text = $1::text order by a.pid`, user)
		if err != nil {
			return classify(err)
		}
		open, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (s engine.Session, err error) {
			err = row.Scan(&s.ID, &s.From, &s.Since)
			if s.Since.Unix() == 0 {
				s.Since = time.Time{}
			}
			return s, err
		})
		return classify(err)
	})
	return open, reached(err)
}

// Verify logs in as an application does. A database that lets in who shows no
// password has not verified anything.
func (t *target) Verify(ctx context.Context, who engine.Credential) error {
	if !nameable(who.User) || who.Secret.Empty() {
		return engine.ErrWrongSecret
	}
	c := t.base.Copy()
	c.User, c.Password = who.User, string(who.Secret.Reveal())
	delete(c.RuntimeParams, "role")
	c.RequireAuth = "scram-sha-256"
	if !fips140.Enforced() {
		c.RequireAuth += ",md5"
	}
	if c.TLSConfig != nil {
		c.RequireAuth += ",password"
	}
	conn, err := pgx.ConnectConfig(ctx, c)
	var said *pgconn.PgError
	switch {
	case errors.As(err, &said) && (said.Code == wrongPassword || said.Code == noLogin):
		return fmt.Errorf("%w: %s (%s)", engine.ErrWrongSecret, line(said.Message), said.Code)
	case errors.As(err, &said) && said.Code[:2] != "53" && said.Code[:2] != "57":
		return classify(said)
	case err != nil:
		return engine.Unreachable(err)
	}
	return classify(conn.Close(ctx))
}

// reached turns what went wrong while only reading into a target that cannot be
// worked at, unless it has answered.
func reached(err error) error {
	var r *engine.Refused
	if err == nil || errors.As(err, &r) || errors.Is(err, engine.ErrNoUser) {
		return err
	}
	return engine.Unreachable(err)
}

// SetSecret gives a role another verifier. PostgreSQL has one for each role, so
// nothing can be kept beside it.
func (t *target) SetSecret(ctx context.Context, user string, s, _ estover.Secret) error {
	if !nameable(user) {
		return engine.ErrNoUser
	}
	v, err := verifier(s)
	if err != nil {
		return err
	}
	return t.alter(ctx, user, "alter role "+ident(user)+" password "+quote(v))
}

// Extend puts off the end of a role by its own clock.
func (t *target) Extend(ctx context.Context, name string, tmpl engine.Template, until time.Time) error {
	if !nameable(name) {
		return engine.ErrNoUser
	}
	statements := []string{"alter role " + ident(name) + " valid until " + quote(stamp(until))}
	if own := tmpl["renew"]; len(own) > 0 {
		x := expansion{name: name, until: until}
		var err error
		if statements, err = x.all(own); err != nil {
			return err
		}
	}
	return t.alter(ctx, name, statements...)
}

// alter changes a role that is there, and does it again if another was at it.
func (t *target) alter(ctx context.Context, name string, statements ...string) error {
	return t.with(ctx, func(ctx context.Context, c *pgx.Conn) error {
		return again(ctx, func() error {
			err := t.do(ctx, c, statements...)
			if code(err) == noSuchRole {
				there, e := exists(ctx, c, name)
				if e == nil && !there {
					return fmt.Errorf("%w: %s", engine.ErrNoUser, name)
				}
				if there { // it has come meanwhile, or a statement is about another
					err = t.do(ctx, c, statements...)
				}
			}
			return err
		})
	})
}

// again does work up to ten times, as long as others who change the same role
// get in its way.
func again(ctx context.Context, work func() error) error {
	for n := 0; ; n++ {
		err := work()
		if k := code(err); n == 9 || k != internalError && k != deadlock && k != roleExists && k != uniqueViolation {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Duration(n+1) * 3 * time.Millisecond):
		}
	}
}

func exists(ctx context.Context, c *pgx.Conn, name string) (there bool, err error) {
	err = c.QueryRow(ctx, `select exists (select from pg_catalog.pg_roles where rolname::text = $1::text)`, name).Scan(&there)
	return there, classify(err)
}
