package story

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"estover.dev/internal/db/scratch"
)

// A database is the company's own PostgreSQL, which runs for the beat alone.
type database struct {
	*scratch.Server
	addr string // HOST:PORT
}

// The administrator with whom Estover works at the database has few rights there:
// it makes users, puts them into a group, and ends their sessions.
const furnishing = `create table customer (id text primary key, name text);
insert into customer select 'cus_' || n, 'customer ' || n from generate_series(1001, 1040) n;
create role crm_readers; grant select on customer to crm_readers;
create role estover login createrole in role pg_signal_backend, pg_read_all_stats password '%s'`

// foundDatabase starts it.
func foundDatabase(ctx context.Context, password string) (*database, error) {
	o := scratch.Options{Listen: true}
	if os.Getuid() == 0 { // the server's user is another, and cannot get to a directory of root's
		o.Dir = "/tmp"
	}
	server, err := scratch.Start(o)
	if err != nil {
		return nil, err
	}
	d := &database{Server: server, addr: server.Address}
	return d, d.exec(ctx, fmt.Sprintf(furnishing, password))
}

// exec does something as the one who may do everything.
func (d *database) exec(ctx context.Context, statements string) error {
	c, err := pgx.Connect(ctx, d.URL)
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	_, err = c.PgConn().Exec(ctx, statements).ReadAll()
	return err
}

// users are those who log in there, beside the two who administer it.
func (d *database) users(ctx context.Context) (names []string, err error) {
	c, err := pgx.Connect(ctx, d.URL)
	if err != nil {
		return nil, err
	}
	defer c.Close(ctx)
	rows, err := c.Query(ctx, `select rolname::text from pg_roles where rolcanlogin and rolname not in ('postgres', 'estover', 'estover_b') order by 1`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

var knownAs = regexp.MustCompile(`the database knows me as (\S+) and shows me 40 customers`)

func (s *Stage) lease(ctx context.Context) (string, error) {
	const password = "made-for-the-demo"
	s.say("The CRM's own database is a PostgreSQL. Estover gets a user there that may make users and end sessions, and tries it out before anything rests on it. What somebody has typed in is known, so a second user takes over and the first one's password is changed. Users of the role crm-reader are for who is granted to list customers, and see what the database's group crm_readers sees.")
	d, err := foundDatabase(ctx, password)
	if err != nil {
		return "", err
	}
	defer d.Stop()
	file := filepath.Join(s.Dir, "estover.password")
	if err := os.WriteFile(file, []byte(password), 0o600); err != nil {
		return "", err
	}
	_, err = s.told(ctx, 0, "secret", "engine", "enable", "postgres", "crm-db", "--address", d.addr+"/postgres", "--admin", "targets/crm-db",
		"--admin-user", "estover", "--admin-password-file", "-", "--template", "groups=crm_readers", "< estover.password")
	if err = errors.Join(err, os.Remove(file)); err != nil {
		return "", err
	}
	_, err = s.told(ctx, 0, "secret", "role", "put", "crm-reader", "--target", "crm-db", "--template", "groups=crm_readers",
		"--resource", "crm", "--action", "customer.list", "--delivery", "plaintext")
	if err != nil {
		return "", err
	}
	if left, err := d.users(ctx); err != nil || len(left) > 0 {
		return "", fmt.Errorf("the trial has left the users %q, %w", left, err)
	}

	s.say("An ordinary client of PostgreSQL wants a name and a password. It gets some that are its own, for this task:")
	p, err := s.lend(ctx, d)
	if err != nil {
		return "", err
	}
	defer p.stop()
	m, err := p.until(ctx, knownAs)
	p.show(s)
	if err != nil {
		return "", err
	}
	users, err := d.users(ctx)
	if err != nil {
		return "", err
	}
	if len(users) != 1 || users[0] != m[1] {
		return "", fmt.Errorf("the database has the users %q, not %s alone", users, m[1])
	}
	var leases []struct{ ID, Session, State string }
	if err := s.query(ctx, &leases, "secret", "lease", "list", "--agent", "support-bot", "--open"); err != nil {
		return "", err
	}
	if len(leases) != 1 || leases[0].State != "live" || leases[0].Session == "" {
		return "", fmt.Errorf("the leases of the agent are %v, not one that is live", leases)
	}
	s.say("The session ends, while the agent is still connected:")
	ended := time.Now()
	if _, err := s.told(ctx, 0, "session", "end", leases[0].Session); err != nil {
		return "", err
	}
	for users, err = d.users(ctx); err == nil && len(users) > 0 && time.Since(ended) < patience; users, err = d.users(ctx) {
		time.Sleep(5 * time.Millisecond)
	}
	took := time.Since(ended).Round(time.Millisecond)
	if err != nil || len(users) > 0 {
		return "", fmt.Errorf("after the end of the session the database has the users %q, %w", users, err)
	}
	err = p.wait(ctx, agentRefused)
	p.show(s)
	if err != nil {
		return "", err
	}
	kept, err := s.rotate(ctx, d)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("The user %s saw 40 customers. %s after the session was told to end, its connection was cut and it was gone. %s", m[1], took, kept), nil
}

// rotate has the password of a program rotated that has one of its own, and looks
// whether the old one stays good for as long as somebody uses it, and no longer.
func (s *Stage) rotate(ctx context.Context, d *database) (string, error) {
	s.say("The nightly report comes with no task. It has a name and a password that are rotated: two users take turns, so that nobody is ever refused. It has read the current version:")
	const path = "db/report"
	for _, args := range [][]string{
		{"secret", "create", path, "--destination", d.addr},
		{"rotation", "put", path, "--target", "crm-db", "--user", "report_a", "--user", "report_b", "--template", "groups=crm_readers", "--cache", "1s"},
	} {
		if _, err := s.told(ctx, 0, args...); err != nil {
			return "", err
		}
	}
	// The first version comes by itself.
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		var r struct {
			Step    string `json:"step"`
			Current int64  `json:"current_version"`
		}
		if err := s.query(ctx, &r, "rotation", "show", path); err != nil {
			return "", err
		}
		if r.Current > 0 && r.Step == "idle" {
			break
		}
		if time.Since(begun) > patience {
			return "", errors.New("the first version has not come")
		}
	}
	read := func() (url string, err error) {
		args := []string{"secret", "get", path, "--purpose", "the nightly report"}
		s.tell(Command, "estover %s", shell(args))
		var got struct {
			Fields map[string]string `json:"fields"`
		}
		err = s.query(ctx, &got, args...)
		s.show("(a name and a password)")
		return "postgres://" + got.Fields["username"] + ":" + got.Fields["password"] + "@" + d.addr + "/postgres?sslmode=disable", err
	}
	enters := func(url string) error {
		c, err := pgx.Connect(ctx, url)
		if err != nil {
			return err
		}
		defer c.Close(ctx)
		var n int
		return c.QueryRow(ctx, "select count(*) from customer").Scan(&n)
	}
	old, err := read()
	if err != nil {
		return "", err
	}
	s.say("It is rotated. Whoever still has the old one is named, and until they have read the new one, it stays good:")
	if _, err := s.told(ctx, 0, "rotation", "run", path); err != nil {
		return "", err
	}
	why, err := s.told(ctx, 0, "rotation", "explain", path)
	if err != nil {
		return "", err
	}
	if !strings.Contains(why, "Version 1 is still good") || !strings.Contains(why, "has read its value") {
		return "", errors.New("it is not said who still uses the old version")
	}
	if err := enters(old); err != nil {
		return "", fmt.Errorf("the old password was refused although it is in use: %w", err)
	}
	renewed, err := read()
	if err == nil {
		err = enters(renewed)
	}
	if err != nil {
		return "", fmt.Errorf("with the new password: %w", err)
	}
	begun := time.Now()
	for err = enters(old); err == nil && time.Since(begun) < patience; err = enters(old) {
		time.Sleep(50 * time.Millisecond)
	}
	if err == nil {
		return "", errors.New("the old password is good although nobody uses it")
	}
	if err := enters(renewed); err != nil {
		return "", fmt.Errorf("after the old password had died, the new one: %w", err)
	}
	if _, err := s.told(ctx, 0, "rotation", "explain", path); err != nil {
		return "", err
	}
	return "The report's old password died when nobody had it any more.", nil
}

// lend starts the agent with a database user that is made for it. It works with
// credentials of its own, as where nobody starts it by hand.
func (s *Stage) lend(ctx context.Context, d *database) (*process, error) {
	var c struct {
		ID     string `json:"client_id"`
		Secret string `json:"client_secret"`
	}
	if err := s.query(ctx, &c, "agent", "credential", "add", "support-bot"); err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(d.addr)
	if err != nil {
		return nil, err
	}
	launch := []string{"secret", "run", "--role", "crm-reader", "--env", "PGUSER=username", "--env", "PGPASSWORD=password", "--purpose", "support", "--"}
	s.tell(Command, "estover %s", shell(append(launch, "sample-agent", "database")))
	cmd := s.command(ctx, s.Estover, append(launch, s.Agent, "database")...)
	cmd.Env = append(cmd.Env, "ESTOVER_CLIENT_ID="+c.ID, "ESTOVER_CLIENT_SECRET="+c.Secret, "PGHOST="+host, "PGPORT="+port, "PGDATABASE=postgres", "PGSSLMODE=disable")
	return s.follow(cmd)
}
