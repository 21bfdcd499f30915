package mysql_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
)

// A cut is where somebody is cut off from a server: at the write that has its turn when
// so many are left, before that takes effect or after.
type cut struct {
	left  atomic.Int64
	after bool
}

func (c *cut) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	return cutConn{conn, c}, err
}

type cutConn struct {
	net.Conn
	cut *cut
}

func (c cutConn) Write(b []byte) (n int, err error) {
	left := c.cut.left.Add(-1)
	if left > 0 || left == 0 && c.cut.after {
		n, err = c.Conn.Write(b)
	}
	if left <= 0 {
		return n, errors.Join(net.ErrClosed, c.Close())
	}
	return n, err
}

// TestSecondAdminCutOff is of a second admin in the making of which somebody is cut off,
// at each message to the server, before that takes effect and after (R6): it has no
// password until it has all that the first has, so whoever comes later makes it anew.
func TestSecondAdminCutOff(t *testing.T) {
	s := enginetest.MariaDB(t)
	for _, statement := range []string{
		"create or replace role cutters", "grant create user, process, connection admin on *.* to cutters", "grant readers to cutters with admin option",
		"create or replace user cut_first identified by 'made-for-tests' with max_user_connections 30", "grant cutters to cut_first with admin option", "set default role cutters for cut_first",
		"grant process on *.* to cut_first with grant option", "grant select on mysql.user to cut_first with grant option", "grant update (name) on crm.customer to cut_first with grant option",
	} {
		s.Exec(t, statement)
	}
	conf := s.Config
	conf.Admin = engine.Credential{User: "cut_first", Secret: estover.NewSecret([]byte("made-for-tests"))}
	second := engine.Credential{User: "cut_first_b", Secret: estover.NewSecret([]byte("made-for-the-second"))}
	e := open(t, conf)
	want := shown(t, s, "cut_first")
	if !slices.ContainsFunc(want, func(g string) bool { return strings.HasPrefix(g, "SET DEFAULT ROLE") }) || len(want) < 5 {
		t.Fatalf("the first admin has no more than %q", want)
	}
	halves := 0
	for n, done := int64(8), false; !done; n++ { // the first ones log in and look
		for _, after := range []bool{false, true} {
			c := &cut{after: after}
			c.left.Store(n)
			conf := conf
			conf.Dial = c.dial
			off := open(t, conf)
			done = off.(engine.Pairer).Pair(t.Context(), second.User, conf.Admin.User, second.Secret) == nil
			_ = off.Close()
			err := e.SetSecret(t.Context(), second.User, second.Secret, estover.Secret{})
			if errors.Is(err, engine.ErrNoUser) {
				if there, err := e.List(t.Context(), second.User); err != nil {
					t.Fatal(err)
				} else if len(there) > 0 {
					halves++
				}
				err = e.(engine.Pairer).Pair(t.Context(), second.User, conf.Admin.User, second.Secret)
			}
			if done { // it is the same for a server that starts again
				s.Exec(t, "flush privileges")
			}
			if err == nil {
				err = e.Verify(t.Context(), second)
			}
			if err != nil {
				t.Errorf("cut off at message %d (%v): %v", n, after, err)
			}
			if got := shown(t, s, second.User); !slices.Equal(got, want) {
				t.Errorf("cut off at message %d (%v): the second has %q, want %q", n, after, got, want)
			}
			s.Exec(t, "drop user if exists "+second.User)
		}
	}
	if halves < 4 {
		t.Errorf("%d were left half made: this proves nothing", halves)
	}
}

// shown is what SHOW GRANTS tells of a user, in one order and but for its name and its password.
func shown(t *testing.T, s *enginetest.MariaDBServer, user string) (grants []string) {
	t.Helper()
	rows, err := s.Super.QueryContext(t.Context(), "show grants for "+user)
	if err != nil {
		return []string{err.Error()}
	}
	defer rows.Close()
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
	return grants
}
