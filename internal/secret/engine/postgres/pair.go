package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// Pair makes another admin, in one transaction: with the attributes of the first and
// its memberships. What was given to the first directly, the other has as a member
// of it. From PostgreSQL 16 on whoever makes a role is a member of it, and cannot be its
// group as well, so that the other could not change the first one's password.
func (t *target) Pair(ctx context.Context, user, like string, s estover.Secret) error {
	if !nameable(user) || !nameable(like) {
		return engine.Refuse("a role has a name of 1 to %d bytes in UTF-8", maxName)
	}
	v, err := verifier(s)
	if err != nil {
		return err
	}
	return t.with(ctx, func(ctx context.Context, c *pgx.Conn) error {
		var super, makes, databases bool
		var version int
		err := c.QueryRow(ctx, `select rolsuper, rolcreaterole, rolcreatedb, pg_catalog.current_setting('server_version_num')::int
			from pg_catalog.pg_roles where rolname::text = $1::text`, like).Scan(&super, &makes, &databases, &version)
		if err != nil {
			return reached(classify(err))
		}
		if err := mayPair(super, version); err != nil {
			return err
		}
		rows, err := c.Query(ctx, `select g.rolname::text, pg_catalog.bool_or(m.admin_option) from pg_catalog.pg_auth_members m
			join pg_catalog.pg_roles g on g.oid = m.roleid join pg_catalog.pg_roles r on r.oid = m.member where r.rolname::text = $1::text group by 1 order by 1`, like)
		if err != nil {
			return reached(classify(err))
		}
		type membership struct {
			Group string
			Admin bool
		}
		groups, err := pgx.CollectRows(rows, pgx.RowToStructByPos[membership])
		if err != nil {
			return reached(classify(err))
		}
		statements := []string{"create role " + ident(user) + " login" + attribute(super, "superuser") + attribute(makes, "createrole") + attribute(databases, "createdb") +
			" password " + quote(v)}
		for _, g := range groups {
			statements = append(statements, "grant "+ident(g.Group)+" to "+ident(user)+attribute(g.Admin, "with admin option"))
		}
		if !super {
			statements = append(statements, "grant "+ident(like)+" to "+ident(user))
		}
		err = t.do(ctx, c, statements...)
		if code(err) == noRight {
			return fmt.Errorf("%s cannot make a second admin like itself: %w", like, err)
		}
		return err
	})
}

// mayPair refuses where the second of two admins could not change the password of the
// first, before anybody is made.
func mayPair(super bool, version int) error {
	if !super && version >= 160000 {
		return engine.Refuse("from PostgreSQL 16 on a second admin takes a superuser: no other can change the password of the one that has made it")
	}
	return nil
}

func attribute(has bool, words string) string {
	if has {
		return " " + words
	}
	return ""
}

// Drain lets go of the connections.
func (t *target) Drain() { t.pool.Reset() }
