package postgres

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// Create makes a role, or makes the one that is there what was asked for.
func (t *target) Create(ctx context.Context, o engine.Order) (engine.Material, error) {
	if !nameable(o.Name) {
		return nil, engine.Refuse("a role has a name of 1 to %d bytes in UTF-8", maxName)
	}
	v, err := verifier(o.Secret)
	if err != nil {
		return nil, err
	}
	login := ident(o.Name) + " login password " + quote(v) + " valid until " + quote(stamp(o.Until))
	fresh, clear := []string{"create role " + login}, false
	if own := o.Template["create"]; len(own) > 0 {
		x := expansion{name: o.Name, secret: o.Secret, verifier: v, until: o.Until}
		if fresh, err = x.all(own); err != nil {
			return nil, err
		}
		for _, s := range own {
			_, c := x.expand(s)
			clear = clear || c
		}
	}
	groups := o.Template["groups"]
	if len(groups) > 0 {
		fresh = append(fresh, "grant "+idents(groups)+" to "+ident(o.Name))
	}
	err = t.with(ctx, func(ctx context.Context, c *pgx.Conn) error {
		return again(ctx, func() error {
			err := t.do(ctx, c, fresh...)
			if k := code(err); k == roleExists || k == uniqueViolation {
				return t.remake(ctx, c, o, "alter role "+login)
			}
			return err
		})
	})
	if k := code(err); clear && k != "" {
		err = engine.Refuse("the statements of create failed with code %s; the password stands in one of them, so what the database says is not shown", k)
	}
	if err != nil {
		return nil, err
	}
	return engine.Material{"username": estover.NewSecret([]byte(o.Name)), "password": o.Secret}, nil
}

// remake has a role that is there be as one that was just made. Statements of
// one's own have made it in one transaction, so what they gave it is there too.
func (t *target) remake(ctx context.Context, c *pgx.Conn, o engine.Order, login string) error {
	statements, groups := []string{login}, o.Template["groups"]
	if len(o.Template["create"]) == 0 {
		rows, err := c.Query(ctx, `select g.rolname::text from pg_catalog.pg_auth_members m
			join pg_catalog.pg_roles g on g.oid = m.roleid join pg_catalog.pg_roles r on r.oid = m.member where r.rolname::text = $1::text`, o.Name)
		if err != nil {
			return classify(err)
		}
		have, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return classify(err)
		}
		if more := slices.DeleteFunc(have, func(g string) bool { return slices.Contains(groups, g) }); len(more) > 0 {
			statements = append(statements, "revoke "+idents(more)+" from "+ident(o.Name))
		}
	}
	if len(groups) > 0 {
		statements = append(statements, "grant "+idents(groups)+" to "+ident(o.Name))
	}
	err := t.do(ctx, c, statements...)
	if code(err) == noSuchRole && strings.Contains(err.Error(), strconv.Quote(o.Name)) {
		// Dropped meanwhile: the same as a role that another is at.
		return &refused{engine.Refused{Reason: "somebody else drops the role"}, internalError}
	}
	return err
}

// Rights looks up what the admin may do (engine.Inspector).
func (t *target) Rights(ctx context.Context, tmpl engine.Template) (rights []engine.Right, err error) {
	err = t.with(ctx, func(ctx context.Context, c *pgx.Conn) error {
		var (
			me                                     string
			super, makes, signals, watches, grants bool
			version                                int
		)
		err := c.QueryRow(ctx, `select current_user::text, r.rolsuper, r.rolcreaterole, pg_catalog.pg_has_role(current_user, 'pg_signal_backend', 'usage'),
			pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'usage'), pg_catalog.current_setting('server_version_num')::int
			from pg_catalog.pg_roles r where r.rolname = current_user`).Scan(&me, &super, &makes, &signals, &watches, &version)
		if err != nil {
			return classify(err)
		}
		add := func(needed, has bool, name, help string, args ...any) {
			rights = append(rights, engine.Right{Name: name, Has: has || super, Needed: needed, Help: fmt.Sprintf(help, args...)})
		}
		add(true, makes, "make and drop users (CREATEROLE)", "ALTER ROLE %s CREATEROLE", ident(me))
		add(false, signals, "end sessions (pg_signal_backend)", "GRANT pg_signal_backend TO %s; without it Estover becomes a member of each user that it revokes, and cannot end sessions of users that it only rotates", ident(me))
		add(false, watches, "see where sessions come from (pg_read_all_stats)", "GRANT pg_read_all_stats TO %s", ident(me))
		for _, g := range tmpl["groups"] {
			var there, itsSuper bool
			err := c.QueryRow(ctx, `select pg_catalog.count(*) > 0, coalesce(pg_catalog.bool_or(rolsuper), false), coalesce(pg_catalog.bool_or(pg_catalog.pg_has_role(current_user, oid, 'member with admin option')), false)
				from pg_catalog.pg_roles where rolname::text = $1::text`, g).Scan(&there, &itsSuper, &grants)
			if err != nil {
				return classify(err)
			}
			if !there {
				rights = append(rights, engine.Right{Name: "the group role " + g, Needed: true, Help: "CREATE ROLE " + ident(g) + " and give it its rights"})
				continue
			}
			add(true, grants || version < 160000 && makes && !itsSuper, "give membership of "+g, "GRANT %s TO %s WITH ADMIN OPTION", ident(g), ident(me))
		}
		if t.owner != "" {
			var member bool
			err := c.QueryRow(ctx, `select coalesce(pg_catalog.bool_or(pg_catalog.pg_has_role(current_user, oid, 'usage')), false) from pg_catalog.pg_roles where rolname::text = $1::text`, t.owner).Scan(&member)
			if err != nil {
				return classify(err)
			}
			add(true, member, "hand over to "+t.owner+" what revoked users own", "GRANT %s TO %s", ident(t.owner), ident(me))
		}
		rows, err := c.Query(ctx, `select datname::text from pg_catalog.pg_database
			where datallowconn and not datistemplate and not pg_catalog.has_database_privilege(current_user, oid, 'connect') order by 1`)
		if err != nil {
			return classify(err)
		}
		closed, err := pgx.CollectRows(rows, pgx.RowTo[string])
		for _, d := range closed {
			add(false, false, "connect to the database "+d, "GRANT CONNECT ON DATABASE %s TO %s; a user who owns something there cannot be dropped without it", ident(d), ident(me))
		}
		return classify(err)
	})
	return rights, reached(err)
}
