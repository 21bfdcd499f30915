package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"estover.dev/internal/secret/engine"
)

const (
	batch    = 50
	ending   = 5 * time.Second        // for sessions that were told to end
	starting = 500 * time.Millisecond // for log-ins that were under way
)

// Revoke locks accounts, ends their sessions, and drops them.
func (t *target) Revoke(ctx context.Context, users []engine.Doomed) []error {
	errs := make([]error, len(users))
	for from := 0; from < len(users); from += batch {
		some := users[from:min(from+batch, len(users))]
		bad := map[string]error{}
		err := t.with(ctx, func(ctx context.Context, c *sql.Conn) error { return t.end(ctx, c, some, bad) })
		for i, u := range some {
			if errs[from+i] = bad[u.Name]; errs[from+i] == nil {
				errs[from+i] = reached(err)
			}
		}
	}
	return errs
}

// end revokes a batch; those who met an obstacle are in bad, with it.
func (t *target) end(ctx context.Context, c *sql.Conn, users []engine.Doomed, bad map[string]error) error {
	names := make([]string, len(users))
	for i, u := range users {
		names[i] = u.Name
	}
	names, err := t.look(ctx, c, names)
	if err != nil {
		return err
	}
	for _, step := range []func([]string) error{
		func(some []string) error {
			return t.do(ctx, c, "alter user if exists "+t.accounts(some)+" account lock")
		},
		func(some []string) error { return t.endSessions(ctx, c, some, true) },
		func(some []string) error { return t.do(ctx, c, "drop user if exists "+t.accounts(some)) },
		func(some []string) error { return t.endSessions(ctx, c, some, false) },
	} {
		names = slices.DeleteFunc(names, func(n string) bool { return bad[n] != nil })
		t.split(ctx, names, step, bad)
	}
	return nil
}

// split does a step for all of them; if the server refuses, for the halves, down
// to those whom the refusal is about (Q4).
func (t *target) split(ctx context.Context, names []string, step func([]string) error, bad map[string]error) {
	if len(names) == 0 {
		return
	}
	var err error
	if len(names) == 1 {
		err = again(ctx, func() error { return step(names) })
	} else if err = step(names); number(err) != 0 || isRefusal(err) {
		t.split(ctx, names[:len(names)/2], step, bad)
		t.split(ctx, names[len(names)/2:], step, bad)
		return
	}
	if err != nil {
		for _, n := range names {
			bad[n] = reached(err)
		}
	}
}

// endSessions ends the sessions of users and waits until they are gone. With
// racing, it waits for those who are logging in, too: the server does not say yet
// as whom.
func (t *target) endSessions(ctx context.Context, c *sql.Conn, names []string, racing bool) error {
	begun := time.Now()
	var early []string
	for n := 0; ; n++ {
		starters, open, err := t.sessions(ctx, c, names)
		if err != nil {
			return err
		}
		if n == 0 {
			early = starters
		}
		waits := racing && time.Since(begun) < starting && slices.ContainsFunc(starters, func(id string) bool { return slices.Contains(early, id) })
		if len(open) == 0 && !waits {
			return nil
		}
		if time.Since(begun) > ending {
			return engine.Refuse("%d open sessions do not end", len(open))
		}
		for _, s := range open {
			if _, err := c.ExecContext(ctx, "kill hard connection "+s.ID); err != nil && number(err) != noThread {
				return classify(err)
			}
		}
		select {
		case <-ctx.Done():
			return engine.Unreachable(ctx.Err())
		case <-time.After(min(2*time.Millisecond<<n, 50*time.Millisecond)):
		}
	}
}

// sessions gives who is logged in as one of these, and who is logging in.
func (t *target) sessions(ctx context.Context, c *sql.Conn, names []string) (starters []string, open []engine.Session, err error) {
	list := []string{"binary 'unauthenticated user'"}
	for _, n := range names {
		list = append(list, "binary "+quote(n))
	}
	rows, err := c.QueryContext(ctx, "select id, user, host from information_schema.processlist where id <> connection_id() and binary user in ("+strings.Join(list, ", ")+") order by id")
	if err != nil {
		return nil, nil, classify(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		var user, host string
		if err := rows.Scan(&id, &user, &host); err != nil {
			return nil, nil, classify(err)
		}
		if !slices.Contains(names, user) {
			starters = append(starters, strconv.FormatInt(id, 10))
			continue
		}
		open = append(open, engine.Session{ID: strconv.FormatInt(id, 10), From: host})
	}
	return starters, open, classify(rows.Err())
}

// Sessions gives who is logged in as user; since when, MariaDB does not keep.
func (t *target) Sessions(ctx context.Context, user string) (open []engine.Session, err error) {
	if !nameable(user) {
		return nil, nil
	}
	err = t.with(ctx, func(ctx context.Context, c *sql.Conn) error {
		_, open, err = t.sessions(ctx, c, []string{user})
		return err
	})
	return open, reached(err)
}

// EndSessions ends those that are open.
func (t *target) EndSessions(ctx context.Context, user string) error {
	if !nameable(user) {
		return nil
	}
	return reached(t.with(ctx, func(ctx context.Context, c *sql.Conn) error {
		_, open, err := t.sessions(ctx, c, []string{user})
		for begun := time.Now(); err == nil && len(open) > 0; {
			for _, s := range open {
				if _, err := c.ExecContext(ctx, "kill hard connection "+s.ID); err != nil && number(err) != noThread {
					return classify(err)
				}
			}
			var now []engine.Session
			if _, now, err = t.sessions(ctx, c, []string{user}); err != nil {
				return err
			}
			open = slices.DeleteFunc(open, func(s engine.Session) bool {
				return !slices.ContainsFunc(now, func(n engine.Session) bool { return n.ID == s.ID })
			})
			if time.Since(begun) > ending {
				return engine.Refuse("%d sessions of %s do not end", len(open), user)
			}
			if len(open) > 0 {
				select {
				case <-ctx.Done():
					return engine.Unreachable(ctx.Err())
				case <-time.After(5 * time.Millisecond):
				}
			}
		}
		return err
	}))
}

// Rights looks up what the admin may do (engine.Inspector).
func (t *target) Rights(ctx context.Context, tmpl engine.Template) (rights []engine.Right, err error) {
	err = t.with(ctx, func(ctx context.Context, c *sql.Conn) error {
		me, err := column(ctx, c, "select current_user()")
		if err != nil {
			return err
		}
		name, host, _ := strings.Cut(me[0], "@")
		grantee := quote(name) + "@" + quote(host)
		have, err := column(ctx, c, "select privilege_type from information_schema.user_privileges where grantee = "+quote(grantee))
		if err != nil {
			return err
		}
		super := slices.Contains(have, "SUPER")
		for _, p := range []struct {
			name, privilege string
			needed          bool
		}{
			{"make and drop users", "CREATE USER", true},
			{"see sessions", "PROCESS", true},
			{"end sessions", "CONNECTION ADMIN", true},
		} {
			has := slices.Contains(have, p.privilege) || p.privilege == "CONNECTION ADMIN" && super
			rights = append(rights, engine.Right{Name: p.name + " (" + p.privilege + ")", Has: has, Needed: p.needed, Help: fmt.Sprintf("GRANT %s ON *.* TO %s", p.privilege, grantee)})
		}
		_, err = column(ctx, c, "select count(*) from mysql.user where user = ''")
		rights = append(rights, engine.Right{Name: "see which users there are (SELECT ON mysql.user)", Has: err == nil, Needed: true, Help: "GRANT SELECT ON mysql.user TO " + grantee})
		if err != nil && !isRefusal(err) {
			return err
		}
		updates, err := column(ctx, c, "select privilege_type from information_schema.schema_privileges where grantee = "+quote(grantee)+" and table_schema = 'mysql' and privilege_type = 'UPDATE'")
		if err != nil {
			return err
		}
		if len(tmpl["roles"]) > 0 {
			rights = append(rights, engine.Right{
				Name: "set the role of others (UPDATE ON mysql.*)", Has: len(updates) > 0 || slices.Contains(have, "UPDATE"),
				Help: "GRANT UPDATE ON mysql.* TO " + grantee + "; it is much to ask for. Without it Estover logs in as each new user to set the role, for which the option hosts has to let it in",
			})
		}
		mine, err := column(ctx, c, "select role_name from information_schema.applicable_roles where grantee = "+quote(me[0])+" and is_grantable = 'YES'")
		if err != nil {
			return err
		}
		for _, r := range tmpl["roles"] {
			rights = append(rights, engine.Right{
				Name: "grant the role " + r, Has: slices.Contains(mine, r), Needed: true,
				Help: fmt.Sprintf("GRANT %s TO %s WITH ADMIN OPTION", quote(r), grantee),
			})
		}
		return nil
	})
	return rights, reached(err)
}
