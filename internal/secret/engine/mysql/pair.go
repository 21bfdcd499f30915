package mysql

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"regexp"
	"strings"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// unfinished is what the server keeps of the password of an admin that is being made: it
// reads "estover: unfinished." and is the hash of nothing that anybody could find. An
// account is made in several steps, each of which may be the last, so its password comes
// after them, and until then it is nobody.
const unfinished = "mysql_native_password using '" + unfinishedHash + "'"

const unfinishedHash = "*6573746F7665723A20756E66696E69736865642E"

// Pair makes another admin, with the grants of the first, its roles and its default
// role. The first gives them, so it must have each with the option to give it. One that
// a crash has left half made is nobody, and is made anew.
func (t *target) Pair(ctx context.Context, user, like string, s estover.Secret) error {
	if !valid(user) || !valid(like) {
		return engine.Refuse("an account has a name of 1 to %d bytes, without control characters and spaces at its end", maxName)
	}
	identified, err := t.identified(s)
	if err != nil {
		return err
	}
	who := t.account(user)
	return t.with(ctx, func(ctx context.Context, c *sql.Conn) error {
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
		has, err := given(shown, backquote(like)+"@"+backquote(t.hosts), who)
		if err != nil {
			return err
		}
		return alone(ctx, c, user, func() error {
			there, err := t.is(ctx, c, user)
			if err != nil {
				return reached(err)
			}
			// No OR REPLACE: somebody else's account stays as it is.
			begin := []string{"create user " + who + " identified via " + unfinished + has.conditions}
			switch there {
			case whole:
				return engine.Refuse("there is an account %s", user)
			case half:
				begin = append([]string{"drop user " + who}, begin...)
			}
			if err := t.do(ctx, c, begin...); err != nil {
				return err
			}
			err = t.finish(ctx, c, user, identified, has)
			if isRefusal(err) {
				if e := t.do(ctx, c, "drop user if exists "+who); e != nil {
					err = fmt.Errorf("what was begun could not be undone (%s): %s", e, err)
				}
			}
			return engine.Begun(err)
		})
	})
}

// finish gives an account that is there what an admin has, and then its password.
func (t *target) finish(ctx context.Context, c *sql.Conn, user, identified string, has rights) error {
	who := t.account(user)
	if len(has.grants) > 0 {
		err := t.do(ctx, c, has.grants...)
		if isRefusal(err) {
			return engine.Refuse("the admin must be able to give its own rights to a second one (WITH GRANT OPTION, and roles WITH ADMIN OPTION): %s", err)
		} else if err != nil {
			return err
		}
	}
	if has.role != "" { // which an account sets itself, so it logs in with what nobody else knows
		once := estover.NewSecret([]byte(rand.Text()))
		own, err := t.identified(once)
		if err != nil {
			return err
		}
		_, own, _ = strings.Cut(own, " via ")
		err = t.do(ctx, c, "alter user "+who+" identified via "+unfinished+" or "+own)
		if err == nil {
			err = t.as(ctx, engine.Credential{User: user, Secret: once}, "set default role "+has.role)
		}
		if isRefusal(err) {
			return engine.Refuse("the second admin could not log in and make %s its default role: %s", has.role, err)
		} else if err != nil {
			return err
		}
	}
	return t.do(ctx, c, "alter user "+who+" "+identified)
}

// What an account is that is there: one that [target.Pair] has not finished is half.
const (
	half  = "half"
	whole = "whole"
)

// is says what an account is; "" if it is not there.
func (t *target) is(ctx context.Context, c *sql.Conn, user string) (string, error) {
	found, err := column(ctx, c, "select if(authentication_string = '"+unfinishedHash+"', '"+half+"', '"+whole+"') from mysql.user where host = "+quote(t.hosts)+
		" and binary user = binary "+quote(user))
	return strings.Join(found, ""), err
}

// rights are what an admin has.
type rights struct {
	grants     []string // the statements that give another account the same
	conditions string   // on which it is let in, and its limits, as CREATE USER takes them
	role       string   // by default; "" for none
}

// everywhere is what SHOW GRANTS tells behind the name of a user who has rights
// everywhere: how it proves who it is, which the other does with a password of its own;
// and its conditions, which are part of the account and no grant.
var everywhere = regexp.MustCompile(`^(?: IDENTIFIED (?:VIA|BY) .*?)?( REQUIRE .*?)?(?: WITH( GRANT OPTION)?((?: MAX_[A-Z_]+ [0-9.]+)*))?$`)

// given are the rights of an account, of which SHOW GRANTS has told, for another.
func given(shown []string, from, to string) (has rights, err error) {
	for _, g := range shown {
		if r, is := strings.CutPrefix(g, "SET DEFAULT ROLE "); is {
			has.role, _, _ = strings.Cut(r, " FOR ")
			continue
		}
		at := strings.LastIndex(g, " TO "+from)
		if at < 0 || !strings.HasPrefix(g, "GRANT ") {
			return rights{}, engine.Refuse("what the admin may do cannot be read: SHOW GRANTS names no %s", from)
		}
		what, rest := g[:at], g[at+len(" TO "+from):]
		if strings.HasSuffix(what, " ON *.*") {
			part := everywhere.FindStringSubmatch(rest)
			if part == nil {
				return rights{}, engine.Refuse("what the admin may do cannot be read: SHOW GRANTS ends %q in another way than a MariaDB does", what)
			}
			if has.conditions = part[1]; part[3] != "" {
				has.conditions += " WITH" + part[3]
			}
			if rest = ""; part[2] != "" {
				rest = " WITH GRANT OPTION"
			} else if what == "GRANT USAGE ON *.*" { // which says nothing, and takes a right
				continue
			}
		}
		has.grants = append(has.grants, what+" TO "+to+rest)
	}
	return has, nil
}

// backquote writes a name as MariaDB shows it.
func backquote(s string) string { return "`" + strings.ReplaceAll(s, "`", "``") + "`" }

// Drain lets go of the connections that nobody uses, and keeps none from here on.
func (t *target) Drain() { t.pool.SetMaxIdleConns(-1) }
