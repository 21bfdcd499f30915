package mysql_test

import (
	"slices"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/engine/mysql"
)

// TestSecondAdminCutOff is of a second admin in the making of which somebody is cut off
// (R6): it has no password until it has all that the first has, so whoever comes later
// makes it anew.
func TestSecondAdminCutOff(t *testing.T) {
	s := enginetest.MariaDB(t)
	for _, statement := range []string{
		"create or replace role cutters", "grant create user, process, connection admin on *.* to cutters", "grant readers to cutters with admin option",
		"create or replace user cut_first identified by 'made-for-tests' with max_user_connections 30", "grant cutters to cut_first with admin option", "set default role cutters for cut_first",
		"grant process on *.* to cut_first with grant option", "grant select on mysql.user to cut_first with grant option", "grant update (name) on crm.customer to cut_first with grant option",
	} {
		s.Exec(t, statement)
	}
	c := s.Config
	c.Admin = engine.Credential{User: "cut_first", Secret: estover.NewSecret([]byte("made-for-tests"))}
	second := engine.Credential{User: "cut_first_b", Secret: estover.NewSecret([]byte("made-for-the-second"))}
	halves := enginetest.CutOff(t, mysql.Kind, c, second, func(user string) string { return shown(t, s, user) }, func() { s.Exec(t, "drop user if exists cut_first_b") })
	if halves < 4 {
		t.Errorf("%d were left half made: this proves nothing", halves)
	}
}

// shown is what SHOW GRANTS tells of a user, in one order and but for its name and its
// password.
func shown(t *testing.T, s *enginetest.MariaDBServer, user string) string {
	t.Helper()
	rows, err := s.Super.QueryContext(t.Context(), "show grants for "+user)
	if err != nil {
		return err.Error()
	}
	defer rows.Close()
	var grants []string
	for rows.Next() {
		var g string
		if err := rows.Scan(&g); err != nil {
			t.Fatal(err)
		}
		before, rest, _ := strings.Cut(g, "`"+user+"`@`%`")
		if by, ok := strings.CutPrefix(rest, " IDENTIFIED BY PASSWORD '"); ok {
			_, rest, _ = strings.Cut(by, "'")
		}
		grants = append(grants, before+rest)
	}
	if rows.Err() != nil {
		t.Fatal(rows.Err())
	}
	slices.Sort(grants)
	return strings.Join(grants, ", ")
}
