// Package mysql makes users of a MariaDB server, from version 10.4 on.
//
// A user is an account that is granted roles, which the operator owns and gives
// their rights. The first of them is in force from log-in on.
//
// The server is given what it keeps of a password (the hash of
// mysql_native_password, or the public key of ed25519) and never the password,
// so that none is in its logs. It has no time after which an account would be
// refused to the second, so [engine.Order.Until] means nothing here; and an
// account has one password at a time.
//
// Accounts are not made in a transaction, so they are made locked, and unlocked
// when they are whole; a second admin has no password until then ([target.Pair]).
// An order looks at the clock of the server, whose difference to ours is measured
// with every connection: what arrives past its deadline has no effect.
//
// MySQL speaks the same protocol, but keeps and grants passwords and roles in
// ways of its own, and is refused.
package mysql

import (
	"context"
	"crypto/fips140"
	"crypto/sha1"
	"crypto/sha512"
	"database/sql"
	"database/sql/driver"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"filippo.io/edwards25519"
	"github.com/go-sql-driver/mysql"

	"estover.dev"
	"estover.dev/internal/job"
	"estover.dev/internal/secret/engine"
)

// keys are those of a template.
var keys = []engine.Field{
	{Name: "roles", Help: "roles that users are granted; the first is in force from log-in", Many: true},
	{Name: "grants", Help: "what else users may do, one GRANT each without its user: SELECT ON crm.*", Many: true},
}

// Kind is MariaDB.
var Kind = engine.Kind{
	Name:    "mysql",
	Title:   "MariaDB",
	Address: "HOST[:PORT]",
	Port:    "3306",
	MaxName: maxName,
	Options: []engine.Field{
		engine.TLSField,
		{Name: "hosts", Help: "from where users may log in, as MariaDB writes it: %, 10.0.%; % if empty"},
		{Name: "auth", Help: "how users prove who they are: native (every client can) or ed25519"},
	},
	Template:      keys,
	Pair:          true,
	CheckTemplate: check,
	Open:          open,
}

const (
	maxName  = 32 // of MySQL; MariaDB takes 80
	patience = 30 * time.Second

	// mode has a GRANT to an account that was dropped meanwhile be refused, and not make it
	// anew, without a password. A MySQL has no such mode and reads a comment there.
	mode = "'NO_BACKSLASH_ESCAPES,STRICT_ALL_TABLES' /*M! ',NO_AUTO_CREATE_USER' */"
)

func check(t engine.Template) error {
	for key, values := range t {
		if !slices.ContainsFunc(keys, func(f engine.Field) bool { return f.Name == key }) {
			return engine.ErrTemplate.With("A role at a MariaDB has roles and grants, but no %q.", key).At(key)
		}
		for _, v := range values {
			switch {
			case key == "roles" && (!nameable(v) || len(v) > 80):
				return engine.ErrTemplate.With("%q is no name of a role.", v).At(key)
			case key == "grants" && !grantable(v):
				return engine.ErrTemplate.With("%q is no grant: it looks like SELECT, INSERT ON crm.*, without a user and without a second statement.", v).At(key)
			}
		}
	}
	if len(t["roles"])+len(t["grants"]) == 0 {
		return engine.ErrTemplate.With("A role at a MariaDB needs roles or grants.").At("roles")
	}
	return nil
}

// grantable reports whether a text is the middle of one GRANT.
func grantable(s string) bool {
	upper := strings.ToUpper(s)
	return strings.Contains(upper, " ON ") && !strings.Contains(upper, " TO ") && !strings.ContainsAny(s, ";'\"#\x00\\") && !strings.Contains(s, "--") && !strings.Contains(s, "/*")
}

// nameable reports whether a name can be quoted and means itself.
func nameable(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r > 0xffff }) && strings.TrimRight(s, " ") == s
}

// valid reports whether a user can have the name.
func valid(name string) bool { return nameable(name) && len(name) <= maxName }

// target is one server.
type target struct {
	pool   *sql.DB
	base   *mysql.Config
	dial   func(ctx context.Context, network, address string) (*wire, error)
	hosts  string
	auth   string
	skew   atomic.Int64 // the server's clock minus ours, in nanoseconds
	itself atomic.Bool  // users set their default role themselves, since the admin may not
}

func open(c engine.Config) (engine.Engine, error) {
	host, port, err := engine.HostPort(c.Address, 3306)
	if err != nil {
		return nil, err
	}
	encryption, err := c.TLS(host)
	if err != nil {
		return nil, err
	}
	t := &target{hosts: strings.ToLower(c.Options["hosts"]), auth: c.Options["auth"]} // as the server keeps them
	if t.hosts == "" {
		t.hosts = "%"
	}
	if !nameable(t.hosts) || len(t.hosts) > 255 {
		return nil, engine.ErrConfig.With("The option hosts is a pattern of hosts, as MariaDB writes it.").At("options.hosts")
	}
	if t.auth != "" && t.auth != "native" && t.auth != "ed25519" {
		return nil, engine.ErrConfig.With("The option auth is native or ed25519.").At("options.auth")
	}
	m := mysql.NewConfig()
	m.Net, m.Addr = "tcp", net.JoinHostPort(host, strconv.Itoa(port))
	m.User, m.Passwd = c.Admin.User, string(c.Admin.Secret.Reveal())
	m.Timeout, m.Logger = 5*time.Second, &mysql.NopLogger{}
	t.dial = func(ctx context.Context, network, address string) (*wire, error) {
		conn, err := c.Connect(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return newWire(conn, encryption), nil
	}
	m.AllowNativePasswords = !fips140.Enforced() // an admin's, for which the driver would need SHA-1
	m.ParseTime, m.Loc = true, time.UTC
	m.Params = map[string]string{"time_zone": "'+00:00'", "sql_mode": mode, "autocommit": "1"}
	t.base = m
	t.pool = sql.OpenDB(connector{t})
	t.pool.SetMaxOpenConns(5)
	t.pool.SetMaxIdleConns(5)
	t.pool.SetConnMaxIdleTime(time.Minute)
	t.pool.SetConnMaxLifetime(30 * time.Minute)
	return t, nil
}

// connector makes connections that have looked at the server's clock.
type connector struct{ t *target }

func (c connector) Driver() driver.Driver { return mysql.MySQLDriver{} }

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.t.connect(ctx, c.t.base.Clone())
	if err != nil {
		return nil, err
	}
	before := time.Now()
	rows, err := conn.(driver.QueryerContext).QueryContext(ctx, "select utc_timestamp(6), version()", nil)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	defer rows.Close()
	values := make([]driver.Value, 2)
	if err := rows.Next(values); err != nil {
		_ = conn.Close()
		return nil, err
	}
	theirs, _ := values[0].(time.Time)
	c.t.skew.Store(int64(theirs.Sub(before.Add(time.Since(before) / 2))))
	if version, _ := values[1].([]byte); !strings.Contains(string(version), "MariaDB") {
		_ = conn.Close()
		return nil, engine.Refuse("it is no MariaDB but %s", version)
	}
	return conn, nil
}

// connect logs in. The pool does so in goroutines of its own, in which a panic would be
// nobody's error.
func (t *target) connect(ctx context.Context, m *mysql.Config) (conn driver.Conn, err error) {
	var w *wire
	m.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		var err error
		if w, err = t.dial(ctx, network, address); err != nil {
			return nil, err
		}
		return w.conn(), nil
	}
	err = job.Guarded(func() error {
		inner, err := mysql.NewConnector(m)
		if err == nil {
			conn, err = inner.Connect(ctx)
		}
		return err
	})
	if err != nil && w != nil {
		_ = w.Close()
		if w.err != nil && !errors.Is(w.err, io.EOF) && !errors.Is(w.err, net.ErrClosed) && number(err) == 0 {
			err = w.err // the driver says no more than that the connection is no good
		}
	}
	return conn, err
}

// with gives a connection to work, which ends by the deadline of ctx.
func (t *target) with(ctx context.Context, work func(ctx context.Context, c *sql.Conn) error) error {
	if _, has := ctx.Deadline(); !has {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	if err := ctx.Err(); err != nil {
		return engine.Unreachable(err)
	}
	c, err := t.pool.Conn(ctx)
	if err != nil {
		return engine.Unreachable(err)
	}
	defer c.Close()
	err = work(ctx, c)
	if k := number(err); k == noDatabase || k == noPrivilege {
		// What the admin may do, the server looks up when a connection is made.
		_ = c.Raw(func(any) error { return driver.ErrBadConn })
	}
	return err
}

// do runs statements one after the other, unless they arrive past the deadline
// of ctx. They are one block, so that nothing comes between the look at the clock
// and what follows, but no transaction: what was done before one fails stays.
func (t *target) do(ctx context.Context, c *sql.Conn, statements ...string) error {
	deadline, _ := ctx.Deadline()
	left := time.Until(deadline).Seconds()
	if left < 0.001 {
		return engine.Unreachable(context.DeadlineExceeded)
	}
	limit := deadline.Add(time.Duration(t.skew.Load())).UTC().Format("2006-01-02 15:04:05.000000")
	if _, err := c.ExecContext(ctx, fmt.Sprintf("set max_statement_time = %.3f, lock_wait_timeout = %d", left, int(left)+1)); err != nil {
		return classify(err)
	}
	_, err := c.ExecContext(ctx, "begin not atomic if utc_timestamp(6) > "+quote(limit)+" then signal sqlstate '45000' set message_text = 'it came too late'; end if; "+strings.Join(statements, "; ")+"; end")
	return classify(err)
}

// Numbers of MariaDB's errors.
const (
	noDatabase    = 1044
	accessDenied  = 1045
	noGrantee     = 1133
	noPrivilege   = 1227
	noUserToGrant = 1410
	noSuchRole    = 1959
	cannotUser    = 1396 // CREATE, ALTER or DROP USER failed
	noThread      = 1094
	accountLocked = 4151
	mustChange    = 1820
)

// classify gives an error the meaning that package engine has for it.
func classify(err error) error {
	var said *mysql.MySQLError
	var none *engine.Refused
	switch {
	case err == nil, errors.As(err, &none), errors.Is(err, engine.ErrUnreachable):
		return err
	case errors.As(err, &said):
		return fmt.Errorf("%w%w", engine.Refuse("%s (%d)", said.Message, said.Number), silent{said})
	default:
		return fmt.Errorf("talking to the database: %w", err)
	}
}

// silent keeps MariaDB's error findable without its words twice.
type silent struct{ error }

func (silent) Error() string   { return "" }
func (s silent) Unwrap() error { return s.error }

func number(err error) uint16 {
	var said *mysql.MySQLError
	if errors.As(err, &said) {
		return said.Number
	}
	return 0
}

// reached turns what went wrong into a target that cannot be worked at, unless
// it has answered.
func reached(err error) error {
	var r *engine.Refused
	if err == nil || errors.As(err, &r) || errors.Is(err, engine.ErrNoUser) {
		return err
	}
	return engine.Unreachable(err)
}

// quote writes a string as a literal, in the mode NO_BACKSLASH_ESCAPES.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func (t *target) account(name string) string { return quote(name) + "@" + quote(t.hosts) }

func (t *target) accounts(names []string) string {
	all := make([]string, len(names))
	for i, n := range names {
		all[i] = t.account(n)
	}
	return strings.Join(all, ", ")
}

// identified is the clause with what the server keeps of a password.
func (t *target) identified(s estover.Secret) (string, error) {
	password := s.Reveal()
	if len(password) == 0 || len(password) > 1000 {
		return "", engine.Refuse("a password has 1 to 1000 characters")
	}
	for _, c := range password {
		if c < ' ' || c > '~' {
			return "", engine.Refuse("a password consists of printable ASCII characters")
		}
	}
	if t.auth == "ed25519" {
		h := sha512.Sum512(password)
		k, err := edwards25519.NewScalar().SetBytesWithClamping(h[:32])
		if err != nil {
			return "", err
		}
		public := new(edwards25519.Point).ScalarBaseMult(k).Bytes()
		return "identified via ed25519 using '" + base64.RawStdEncoding.EncodeToString(public) + "'", nil
	}
	if fips140.Enforced() { // where SHA-1 would panic
		return "", engine.Refuse("native passwords are made with SHA-1, which is not there where FIPS 140 is enforced; give the target the option auth=ed25519")
	}
	once := sha1.Sum(password)
	twice := sha1.Sum(once[:])
	return "identified via mysql_native_password using '*" + strings.ToUpper(hex.EncodeToString(twice[:])) + "'", nil
}

// Create makes an account, or makes the one that is there what was asked for.
func (t *target) Create(ctx context.Context, o engine.Order) (engine.Material, error) {
	if !valid(o.Name) {
		return nil, engine.Refuse("an account has a name of 1 to %d bytes, without control characters and spaces at its end", maxName)
	}
	identified, err := t.identified(o.Secret)
	if err != nil {
		return nil, err
	}
	who := t.account(o.Name)
	statements := []string{"create or replace user " + who + " " + identified + " account lock"}
	for _, g := range o.Template["grants"] {
		statements = append(statements, "grant "+g+" to "+who)
	}
	for _, r := range o.Template["roles"] {
		statements = append(statements, "grant "+quote(r)+" to "+who)
	}
	unlock := "alter user " + who + " account unlock"
	begun := false
	step := func(ctx context.Context, c *sql.Conn, statements ...string) error {
		err := t.do(ctx, c, statements...)
		begun = begun || !errors.Is(err, engine.ErrUnreachable)
		return err
	}
	err = t.with(ctx, func(ctx context.Context, c *sql.Conn) error {
		return alone(ctx, c, o.Name, func() error {
			err := again(ctx, func() error {
				if len(o.Template["roles"]) == 0 {
					return step(ctx, c, append(statements, unlock)...)
				}
				role := "set default role " + quote(o.Template["roles"][0])
				if !t.itself.Load() {
					err := step(ctx, c, append(statements, role+" for "+who, unlock)...)
					if number(err) != noDatabase {
						return err
					}
					t.itself.Store(true)
				}
				if err := step(ctx, c, append(statements, unlock)...); err != nil {
					return err
				}
				err := t.as(ctx, engine.Credential{User: o.Name, Secret: o.Secret}, role)
				if errors.Is(err, mysql.ErrInvalidConn) || errors.Is(err, driver.ErrBadConn) {
					err = classify(&mysql.MySQLError{Number: accountLocked, Message: "somebody else ends the user's sessions"})
				}
				if errors.Is(err, engine.ErrUnreachable) { // and yet something was begun
					err = errors.New("logging in as the new user: " + err.Error())
				}
				return err
			})
			var r *engine.Refused
			if errors.As(err, &r) {
				// Half of it may have been done, and a refusal says that none was.
				if e := t.do(ctx, c, "drop user if exists "+who); e != nil {
					return fmt.Errorf("what was begun could not be undone (%w): %s", e, r.Reason)
				}
			}
			return err
		})
	})
	if begun {
		err = engine.Begun(err)
	}
	if err != nil {
		return nil, err
	}
	return engine.Material{"username": estover.NewSecret([]byte(o.Name)), "password": o.Secret}, nil
}

// alone does work that makes an account: two who make the same one would undo each
// other's steps. Whoever was cut off is waited for, until the server has noticed.
func alone(ctx context.Context, c *sql.Conn, name string, work func() error) error {
	lock := quote("estover " + name)
	var got sql.NullInt64
	deadline, _ := ctx.Deadline()
	if err := c.QueryRowContext(ctx, fmt.Sprintf("select get_lock(%s, %.3f)", lock, time.Until(deadline).Seconds())).Scan(&got); err != nil {
		return classify(err)
	}
	if got.Int64 != 1 {
		return engine.Unreachable(context.DeadlineExceeded)
	}
	defer func() {
		if _, err := c.ExecContext(ctx, "do release_lock("+lock+")"); err != nil {
			_ = c.Raw(func(any) error { return driver.ErrBadConn })
		}
	}()
	return work()
}

// again does work again, up to twenty times, that met another who revokes the
// same account.
func again(ctx context.Context, work func() error) error {
	for n := 0; ; n++ {
		err := work()
		if k := number(err); n == 19 || !slices.Contains([]uint16{cannotUser, noGrantee, noUserToGrant, noSuchRole, accountLocked, accessDenied}, k) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Duration(n+1) * 2 * time.Millisecond):
		}
	}
}

// Extend has nothing to tell the server; it says whether the account is there.
func (t *target) Extend(ctx context.Context, name string, _ engine.Template, _ time.Time) error {
	return reached(t.with(ctx, func(ctx context.Context, c *sql.Conn) error {
		there, err := t.look(ctx, c, []string{name})
		if err == nil && len(there) == 0 {
			err = fmt.Errorf("%w: %s", engine.ErrNoUser, name)
		}
		return err
	}))
}

// look gives those who are there.
func (t *target) look(ctx context.Context, c *sql.Conn, names []string) ([]string, error) {
	var list []string
	for _, n := range names {
		if valid(n) && !slices.Contains(list, "binary "+quote(n)) {
			list = append(list, "binary "+quote(n))
		}
	}
	if len(list) == 0 {
		return nil, nil
	}
	return column(ctx, c, "select user from mysql.user where host = "+quote(t.hosts)+" and binary user in ("+strings.Join(list, ", ")+")")
}

func column(ctx context.Context, c *sql.Conn, query string) (values []string, err error) {
	rows, err := c.QueryContext(ctx, query)
	if err != nil {
		return nil, classify(err)
	}
	defer rows.Close()
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			return nil, classify(err)
		}
		values = append(values, v)
	}
	return values, classify(rows.Err())
}

// List gives the accounts of these hosts whose names begin with prefix.
func (t *target) List(ctx context.Context, prefix string) (names []string, err error) {
	if prefix != "" && !nameable(prefix+"x") {
		return nil, nil
	}
	err = t.with(ctx, func(ctx context.Context, c *sql.Conn) error {
		names, err = column(ctx, c, "select user from mysql.user where host = "+quote(t.hosts)+" and binary left(user, char_length("+quote(prefix)+")) = binary "+quote(prefix)+" order by 1")
		return err
	})
	return names, reached(err)
}

// SetSecret gives an account another password. One that [target.Pair] has not finished
// is not there yet.
func (t *target) SetSecret(ctx context.Context, user string, s, _ estover.Secret) error {
	if !nameable(user) || len(user) > 80 {
		return engine.ErrNoUser
	}
	identified, err := t.identified(s)
	if err != nil {
		return err
	}
	return t.with(ctx, func(ctx context.Context, c *sql.Conn) error {
		there, err := t.is(ctx, c, user)
		if there == half { // whoever is at it may be at the last step
			err = alone(ctx, c, user, func() (err error) { there, err = t.is(ctx, c, user); return err })
		}
		if err != nil && !isRefusal(err) { // whoever may not look has made no second admin
			return reached(err)
		}
		if err == nil && there != whole {
			return fmt.Errorf("%w: %s", engine.ErrNoUser, user)
		}
		err = t.do(ctx, c, "alter user "+t.account(user)+" "+identified)
		if number(err) == cannotUser {
			return fmt.Errorf("%w: %s", engine.ErrNoUser, user)
		}
		return err
	})
}

// Verify logs in as an application does.
func (t *target) Verify(ctx context.Context, who engine.Credential) error {
	if !nameable(who.User) || who.Secret.Empty() {
		return engine.ErrWrongSecret
	}
	err := t.as(ctx, who, "")
	switch number(err) {
	case accessDenied, accountLocked, mustChange:
		return fmt.Errorf("%w: %w", engine.ErrWrongSecret, err)
	}
	return reached(err)
}

// as logs in as a user, and does something if there is something to do.
func (t *target) as(ctx context.Context, who engine.Credential, statement string) error {
	m := t.base.Clone()
	m.User, m.Passwd = who.User, string(who.Secret.Reveal())
	conn, err := t.connect(ctx, m)
	if err != nil {
		return classify(err)
	}
	defer conn.Close()
	if statement != "" {
		_, err = conn.(driver.ExecerContext).ExecContext(ctx, statement, nil)
	}
	return classify(err)
}

// Now gives the server's clock.
func (t *target) Now(ctx context.Context) (now time.Time, err error) {
	err = t.with(ctx, func(ctx context.Context, c *sql.Conn) error {
		return classify(c.QueryRowContext(ctx, "select utc_timestamp(6)").Scan(&now))
	})
	return now, reached(err)
}

// Close lets go of the connections.
func (t *target) Close() error { return t.pool.Close() }

func isRefusal(err error) bool {
	var r *engine.Refused
	return errors.As(err, &r)
}
