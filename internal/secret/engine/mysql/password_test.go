package mysql

import (
	"crypto/fips140"
	"slices"
	"strings"
	"testing"

	"estover.dev"
)

// TestPassword compares what we compute with what the server's PASSWORD('secret')
// gives. Where FIPS 140 is enforced there are no native passwords (K7).
func TestPassword(t *testing.T) {
	for auth, want := range map[string]string{
		"":        "identified via mysql_native_password using '*14E65567ABDB5135D0CFD9A70B3032C179A49EE7'",
		"native":  "identified via mysql_native_password using '*14E65567ABDB5135D0CFD9A70B3032C179A49EE7'",
		"ed25519": "identified via ed25519 using 'ZIgUREUg5PVgQ6LskhXmO+eZLS0nC8be6HPjYWR4YJY'",
	} {
		got, err := (&target{auth: auth}).identified(estover.NewSecret([]byte("secret")))
		if fips140.Enforced() && auth != "ed25519" {
			if err == nil || !strings.Contains(err.Error(), "SHA-1") {
				t.Errorf("%q where SHA-1 is not allowed: %s, %v, want it refused", auth, got, err)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("%q: %s, %v, want %s", auth, got, err, want)
		}
	}
}

// TestGiven reads what servers of several versions show of an admin's grants.
func TestGiven(t *testing.T) {
	from, to := backquote("es`t")+"@"+backquote("%"), "'es`t_b'@'%'"
	has, err := given([]string{
		"GRANT `readers` TO " + from + " WITH ADMIN OPTION",
		"GRANT CREATE USER ON *.* TO " + from + " IDENTIFIED BY PASSWORD '*14E65567ABDB5135D0CFD9A70B3032C179A49EE7' REQUIRE SUBJECT '/CN=a WITH b' CIPHER 'c' WITH GRANT OPTION MAX_USER_CONNECTIONS 5 MAX_STATEMENT_TIME 2.500000",
		"GRANT SELECT ON `a TO b`.`c` TO " + from,
		"SET DEFAULT ROLE `makers` FOR " + from,
	}, from, to)
	want := []string{
		"GRANT `readers` TO 'es`t_b'@'%' WITH ADMIN OPTION",
		"GRANT CREATE USER ON *.* TO 'es`t_b'@'%' WITH GRANT OPTION",
		"GRANT SELECT ON `a TO b`.`c` TO 'es`t_b'@'%'",
	}
	if err != nil || has.role != "`makers`" || !slices.Equal(has.grants, want) || has.conditions != " REQUIRE SUBJECT '/CN=a WITH b' CIPHER 'c' WITH MAX_USER_CONNECTIONS 5 MAX_STATEMENT_TIME 2.500000" {
		t.Errorf("the other is given %+v, %v; want %q", has, err, want)
	}
	for shown, conditions := range map[string]string{
		" IDENTIFIED VIA mysql_native_password USING 'invalid' OR unix_socket":             "",
		" IDENTIFIED VIA mysql_native_password USING 'invalid' OR unix_socket REQUIRE SSL": " REQUIRE SSL",
		" REQUIRE X509 WITH MAX_QUERIES_PER_HOUR 1":                                        " REQUIRE X509 WITH MAX_QUERIES_PER_HOUR 1",
	} {
		has, err := given([]string{"GRANT USAGE ON *.* TO " + from + shown}, from, to)
		if err != nil || len(has.grants) > 0 || has.conditions != conditions {
			t.Errorf("of %s: %+v, %v", shown, has, err)
		}
	}
	for _, shown := range []string{"GRANT USAGE ON *.* TO `somebody`@`%`", "GRANT PROCESS ON *.* TO " + from + " WITH GRANT OPTION AND MORE"} {
		if has, err := given([]string{shown}, from, to); err == nil || strings.Contains(err.Error(), "MORE") {
			t.Errorf("of %s: %+v, %v", shown, has, err)
		}
	}
}
