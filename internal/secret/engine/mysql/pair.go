package mysql

import (
	"context"
	"database/sql"
	"regexp"
	"strings"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// identification is what SHOW GRANTS tells of how a user proves who it is: the
// other has a password of its own.
var identification = regexp.MustCompile(` IDENTIFIED (VIA|BY) .*?( REQUIRE | WITH |$)`)

// Pair makes another admin, with the grants of the first, its roles and its default
// role. The first gives them, so it must have each with the option to give it.
func (t *target) Pair(ctx context.Context, user, like string, s estover.Secret) error {
	if !valid(user) || !valid(like) {
		return engine.Refuse("an account has a name of 1 to %d bytes, without control characters and spaces at its end", maxName)
	}
	identified, err := t.identified(s)
	if err != nil {
		return err
	}
	who := t.account(user)
	var role string
	err = t.with(ctx, func(ctx context.Context, c *sql.Conn) error {
		me, err := column(ctx, c, "select current_user()")
		if err != nil {
			return reached(err)
		}
		if me[0] != like+"@"+t.hosts {
			return engine.Refuse("the admin logs in as %s, and its password is that of %s@%s: the option hosts says from where", me[0], like, t.hosts)
		}
		shown, err := column(ctx, c, "show grants for current_user()")
		if err != nil {
			return reached(err)
		}
		var grants []string
		if grants, role, err = given(shown, backquote(like)+"@"+backquote(t.hosts), who); err != nil {
			return err
		}
		if there, err := t.look(ctx, c, []string{user}); err != nil || len(there) > 0 {
			if err == nil {
				err = engine.Refuse("there is an account %s", user)
			}
			return reached(err)
		}
		// No OR REPLACE: somebody else's account stays as it is.
		err = t.do(ctx, c, "create user "+who+" "+identified+" account lock")
		if err != nil {
			return err
		}
		err = t.do(ctx, c, append(grants, "alter user "+who+" account unlock")...)
		if isRefusal(err) {
			if e := t.do(ctx, c, "drop user if exists "+who); e != nil {
				return e
			}
			return engine.Refuse("the admin must be able to give its own rights to a second one (WITH GRANT OPTION, and roles WITH ADMIN OPTION): %s", err)
		}
		return err
	})
	if err == nil && role != "" {
		err = t.as(ctx, engine.Credential{User: user, Secret: s}, "set default role "+role)
	}
	return err
}

// given are the statements that give another account what one has, of which SHOW
// GRANTS has told, and the default role.
func given(shown []string, from, to string) (grants []string, role string, err error) {
	for _, g := range shown {
		if r, is := strings.CutPrefix(g, "SET DEFAULT ROLE "); is {
			role, _, _ = strings.Cut(r, " FOR ")
			continue
		}
		at := strings.LastIndex(g, " TO "+from)
		if at < 0 || !strings.HasPrefix(g, "GRANT ") {
			return nil, "", engine.Refuse("what the admin may do cannot be read: SHOW GRANTS names no %s", from)
		}
		rest := identification.ReplaceAllString(g[at+len(" TO "+from):], "$2")
		if g[:at] == "GRANT USAGE ON *.*" && rest == "" { // which says nothing, and takes a right
			continue
		}
		grants = append(grants, g[:at]+" TO "+to+rest)
	}
	return grants, role, nil
}

// backquote writes a name as MariaDB shows it.
func backquote(s string) string { return "`" + strings.ReplaceAll(s, "`", "``") + "`" }

// Drain lets go of the connections that nobody uses, and keeps none from here on.
func (t *target) Drain() { t.pool.SetMaxIdleConns(-1) }
