package ldap_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	client "github.com/go-ldap/ldap/v3"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/engine/ldap"
	"estover.dev/internal/secret/lease/leasetest"
)

const (
	suffix = enginetest.LDAPSuffix
	base   = enginetest.LDAPUsers
	admin  = enginetest.LDAPAdmin
	group  = enginetest.LDAPGroup
	posix  = enginetest.LDAPPosix
	secret = "made-for-tests"
)

var template = engine.Template{"attributes": {"description=made for {{name}}", "host=a", "host=b"}, "groups": {group}}

func running(t *testing.T) *enginetest.LDAPServer { return enginetest.LDAP(t) }

func config(s *enginetest.LDAPServer) engine.Config { return s.Config }

func open(t *testing.T, c engine.Config) engine.Engine {
	t.Helper()
	e, err := ldap.Kind.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// dn is that of a user.
func dn(name string) string { return "uid=" + client.EscapeDN(name) + "," + base }

// A login is a connection that is bound as a user.
type login struct{ *client.Conn }

func (l login) Ping(context.Context) error {
	_, err := l.Search(client.NewSearchRequest(suffix, client.ScopeBaseObject, client.NeverDerefAliases, 1, 0, false, "(objectClass=*)", nil, nil))
	return err
}

// members are those of a group.
func members(t *testing.T, s *enginetest.LDAPServer, group, attribute string) (all []string) {
	t.Helper()
	err := s.AsRoot(func(l *client.Conn) error {
		found, err := l.Search(client.NewSearchRequest(group, client.ScopeBaseObject, client.NeverDerefAliases, 1, 0, false, "(objectClass=*)", []string{attribute}, nil))
		if err == nil {
			all = found.Entries[0].GetAttributeValues(attribute)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestKind(t *testing.T) {
	s := running(t)
	enginetest.Run(t, enginetest.Suite{
		Kind: ldap.Kind, Config: config(s), Template: template,
		Bad: []engine.Template{
			{"attributes": {"description"}},
			{"attributes": {"userPassword=x"}},
			{"attributes": {"objectClass=person"}},
			{"attributes": {"=x"}},
			{"groups": {"readers"}},
			{"groups": {""}},
			{"group_attribute": {"a", "b"}},
			{"group_attribute": {"member=x"}},
		},
		Login: func(_ context.Context, m engine.Material) (enginetest.Client, error) {
			l, err := s.Bind(string(m["dn"].Reveal()), string(m["password"].Reveal()))
			return login{l}, err
		},
		Remove: func(_ context.Context, name string) error {
			return s.AsRoot(func(l *client.Conn) error { return l.Del(client.NewDelRequest(dn(name), nil)) })
		},
		Spoil: func(_ context.Context, name string) (func(context.Context) error, error) {
			mark := func(values ...string) error {
				change := client.NewModifyRequest(dn(name), nil)
				change.Replace("l", values)
				return s.AsRoot(func(l *client.Conn) error { return l.Modify(change) })
			}
			return func(context.Context) error { return mark() }, mark("kept")
		},
		Log: func() ([]byte, error) {
			said, err := os.ReadFile(s.Log)
			if err != nil {
				return nil, err
			}
			stored, err := os.ReadFile(filepath.Join(s.Dir, "db", "data.mdb"))
			return slices.Concat(said, stored), err
		},
		Without: []string{"Sessions", "EndSessions", "Now"},
	})
	if left := members(t, s, group, "member"); !slices.Equal(left, []string{admin}) {
		t.Errorf("members of the group in the end: %q, want the admin alone", left)
	}
}

// TestLingers: what the kind says of itself is so (Q8): who is bound stays bound,
// has no entry any more and cannot come again.
func TestLingers(t *testing.T) {
	s := running(t)
	e := open(t, config(s))
	o := engine.Order{Name: "e_lingers", Secret: estover.NewSecret([]byte("lingers-secret")), Template: template}
	m, err := e.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Bind(string(m["dn"].Reveal()), "lingers-secret")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if in := members(t, s, group, "member"); !slices.Contains(in, dn(o.Name)) {
		t.Errorf("members of the group: %q, want the user among them", in)
	}
	if err := e.Revoke(t.Context(), []engine.Doomed{{Name: o.Name, Template: template}})[0]; err != nil {
		t.Fatal(err)
	}
	if err := (login{l}).Ping(t.Context()); err != nil || ldap.Kind.Lingers == "" {
		t.Errorf("a connection that was bound before: %v; the kind says %q", err, ldap.Kind.Lingers)
	}
	if _, err := s.Bind(dn(o.Name), "lingers-secret"); err == nil {
		t.Error("somebody who was revoked binds again")
	}
	if in := members(t, s, group, "member"); slices.Contains(in, dn(o.Name)) {
		t.Errorf("members of the group: %q, want the user gone", in)
	}
}

// TestBelow: what was put below a user's entry goes with it (Q4).
func TestBelow(t *testing.T) {
	s := running(t)
	e := open(t, config(s))
	o := engine.Order{Name: "e_below", Secret: estover.NewSecret([]byte("below-secret"))}
	if _, err := e.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	err := s.AsRoot(func(l *client.Conn) error {
		for _, below := range []string{"ou=a,", "ou=b,ou=a,"} {
			add := client.NewAddRequest(below+dn(o.Name), nil)
			add.Attribute("objectClass", []string{"organizationalUnit"})
			if err := l.Add(add); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Revoke(t.Context(), []engine.Doomed{{Name: o.Name}})[0]; err != nil {
		t.Fatal(err)
	}
	if left, err := e.List(t.Context(), o.Name); err != nil || len(left) > 0 {
		t.Errorf("after the revocation there is %q, %v", left, err)
	}
}

// TestGroups: groups that name members in other ways, the last member of one
// that needs a member, and groups that are not there.
func TestGroups(t *testing.T) {
	s := running(t)
	e := open(t, config(s))
	make := func(name string, template engine.Template) error {
		_, err := e.Create(t.Context(), engine.Order{Name: name, Secret: estover.NewSecret([]byte("groups-secret")), Template: template})
		return err
	}
	revoke := func(name string, template engine.Template) {
		t.Helper()
		if err := e.Revoke(t.Context(), []engine.Doomed{{Name: name, Template: template}})[0]; err != nil {
			t.Errorf("revoking %s: %v", name, err)
		}
		if err := e.Extend(t.Context(), name, template, time.Time{}); !errors.Is(err, engine.ErrNoUser) {
			t.Errorf("%s after its revocation: %v, want ErrNoUser", name, err)
		}
	}
	shell := engine.Template{"groups": {posix}, "group_attribute": {"memberUid"}}
	if err := make("e_shell", shell); err != nil {
		t.Fatal(err)
	}
	if in := members(t, s, posix, "memberUid"); !slices.Equal(in, []string{"e_shell"}) {
		t.Errorf("members of the group: %q, want the user by its name", in)
	}
	revoke("e_shell", shell)
	if in := members(t, s, posix, "memberUid"); len(in) != 0 {
		t.Errorf("members of the group: %q, want none", in)
	}

	if err := make("e_last", template); err != nil {
		t.Fatal(err)
	}
	change := func(add bool) {
		t.Helper()
		c := client.NewModifyRequest(group, nil)
		if add {
			c.Replace("member", []string{admin})
		} else {
			c.Delete("member", []string{admin})
		}
		if err := s.AsRoot(func(l *client.Conn) error { return l.Modify(c) }); err != nil {
			t.Fatal(err)
		}
	}
	change(false)
	revoke("e_last", template)
	change(true)

	var refused *engine.Refused
	nowhere := engine.Template{"groups": {"cn=nowhere,ou=groups," + suffix}}
	if err := make("e_nowhere", nowhere); !errors.As(err, &refused) || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("a group that is not there: %v, want a refusal that names it", err)
	}
	revoke("e_nowhere", nowhere)
	c := config(s)
	c.Options = map[string]string{"base": "ou=nobody," + suffix}
	e = open(t, c)
	if err := make("e_nobody", nil); !errors.As(err, &refused) || !strings.Contains(err.Error(), "ou=nobody") {
		t.Errorf("a base that is not there: %v, want a refusal that names it", err)
	}
}

// TestAdmin: the admin's own password is set and verified by its distinguished
// name, beside the one before.
func TestAdmin(t *testing.T) {
	s := running(t)
	other := "cn=other," + base
	err := s.AsRoot(func(l *client.Conn) error {
		add := client.NewAddRequest(other, nil)
		add.Attribute("objectClass", []string{"organizationalRole", "simpleSecurityObject"})
		add.Attribute("userPassword", []string{"first-secret"})
		_ = l.Del(client.NewDelRequest(other, nil)) // of a run before
		return l.Add(add)
	})
	if err != nil {
		t.Fatal(err)
	}
	e := open(t, config(s))
	first, next := estover.NewSecret([]byte("first-secret")), estover.NewSecret([]byte("next-secret"))
	if err := e.SetSecret(t.Context(), other, next, first); err != nil {
		t.Fatal(err)
	}
	for _, s := range []estover.Secret{first, next} {
		if err := e.Verify(t.Context(), engine.Credential{User: other, Secret: s}); err != nil {
			t.Errorf("one of two passwords: %v", err)
		}
	}
	if err := e.SetSecret(t.Context(), other, next, estover.Secret{}); err != nil {
		t.Fatal(err)
	}
	if err := e.Verify(t.Context(), engine.Credential{User: other, Secret: first}); !errors.Is(err, engine.ErrWrongSecret) {
		t.Errorf("a password that was replaced: %v, want ErrWrongSecret", err)
	}
	if err := e.Verify(t.Context(), engine.Credential{User: other}); !errors.Is(err, engine.ErrWrongSecret) {
		t.Errorf("no password, which is a log-in as nobody: %v, want ErrWrongSecret", err)
	}
}

// TestUnknownHash is R12, and nobody's credential that is none: a directory takes a
// password in a form that it does not know and lets nobody in with it, so nobody's is
// changed to one, and the admin's is as it was in all respects.
func TestUnknownHash(t *testing.T) {
	s := running(t)
	c := config(s)
	c.Options = map[string]string{"base": base, "hash": "ssha256"} // this slapd is without pw-sha2
	e := open(t, c)
	stored := func() (values []string) {
		t.Helper()
		err := s.AsRoot(func(l *client.Conn) error {
			found, err := l.Search(client.NewSearchRequest(c.Admin.User, client.ScopeBaseObject, client.NeverDerefAliases, 1, 0, false, "(objectClass=*)", []string{"userPassword"}, nil))
			if err == nil {
				values = found.Entries[0].GetAttributeValues("userPassword")
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return values
	}
	before := stored()
	next := estover.NewSecret([]byte("next-secret-of-the-admin"))
	for what, keep := range map[string]estover.Secret{"beside the one before": c.Admin.Secret, "alone": {}} {
		for _, to := range []estover.Secret{next, c.Admin.Secret} {
			err := e.SetSecret(t.Context(), c.Admin.User, to, keep)
			if again := bytes.Equal(to.Reveal(), keep.Reveal()); !refusal(err) || !strings.Contains(err.Error(), "{SSHA256}") {
				t.Errorf("a password %s (the same: %v): %v, want a refusal that names the form", what, again, err)
			}
			if err := e.Verify(t.Context(), c.Admin); err != nil || !slices.Equal(stored(), before) {
				t.Fatalf("a password %s: the admin's own: %v; %d are stored, want them as they were", what, err, len(stored()))
			}
		}
	}
	o := engine.Order{Name: "e_unknown", Secret: next, Template: template}
	if _, err := e.Create(t.Context(), o); !refusal(err) {
		t.Errorf("a user who could not log in: %v, want a refusal", err)
	}
	if left, err := e.List(t.Context(), o.Name); err != nil || len(left) > 0 {
		t.Errorf("of whom could not log in there is %q, %v", left, err)
	}

	// With one that it knows, what else lets the admin in stays until it is to be the only one.
	e = open(t, config(s))
	if err := e.SetSecret(t.Context(), c.Admin.User, next, c.Admin.Secret); err != nil {
		t.Fatal(err)
	}
	if after := stored(); len(after) != len(before)+1 || !slices.Contains(after, before[0]) {
		t.Errorf("beside the one before there are %d values, want one more and the rest as stored", len(after))
	}
	if err := e.SetSecret(t.Context(), c.Admin.User, c.Admin.Secret, estover.Secret{}); err != nil || len(stored()) != 1 {
		t.Errorf("the only one: %v, %d are stored", err, len(stored()))
	}
}

// TestTLS: from the first byte on and by StartTLS.
func TestTLS(t *testing.T) {
	s := running(t)
	for _, address := range []string{"ldaps://" + s.Address(1), "ldap://" + s.Address(0)} {
		c := config(s)
		c.Address = address
		c.Options = map[string]string{"base": base, "tls": "verify"}
		if _, err := open(t, c).List(t.Context(), "e_"); !errors.Is(err, engine.ErrUnreachable) || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s with a certificate that nobody knows: %v, want ErrUnreachable", address, err)
		}
		c.Authorities = enginetest.Authority()
		if _, err := open(t, c).List(t.Context(), "e_"); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestConfig(t *testing.T) {
	good := engine.Config{
		Address: "ldaps://ldap.example", Options: map[string]string{"base": base},
		Admin: engine.Credential{User: admin, Secret: estover.NewSecret([]byte(secret))},
	}
	if _, err := ldap.Kind.Open(good); err != nil {
		t.Error(err)
	}
	for _, address := range []string{"", "ldap.example", "ldap://", "ldaps://u@ldap.example", "ldap://ldap.example/dc=com", "http://ldap.example"} {
		c := good
		c.Address = address
		if _, err := ldap.Kind.Open(c); err == nil {
			t.Errorf("the address %q was taken", address)
		}
	}
	for _, option := range [][2]string{{"base", ""}, {"base", "agents"}, {"rdn", "a=b"}, {"hash", "clear"}, {"tls", "off"}, {"tls", "maybe"}} {
		c := good
		c.Options = map[string]string{"base": base, option[0]: option[1]}
		var invalid *estover.Error
		if _, err := ldap.Kind.Open(c); !errors.As(err, &invalid) {
			t.Errorf("the option %s of %q: %v, want it refused", option[0], option[1], err)
		}
	}
	c := good
	c.Admin.User = "estover"
	if _, err := ldap.Kind.Open(c); err == nil {
		t.Error("an admin that is no distinguished name was taken")
	}
}

// TestHalfMade has a directory take the entry, and be too busy for the group: nobody
// is told that nothing was begun.
func TestHalfMade(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const busy = 51
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				for {
					// A message is a sequence of its number, in one byte here, and what is asked.
					head := make([]byte, 2)
					if _, err := io.ReadFull(in, head); err != nil {
						return
					}
					n := int(head[1])
					if n > 0x80 {
						long := make([]byte, n-0x80)
						if _, err := io.ReadFull(in, long); err != nil {
							return
						}
						n = 0
						for _, b := range long {
							n = n<<8 + int(b)
						}
					}
					body := make([]byte, n)
					if _, err := io.ReadFull(in, body); err != nil || len(body) < 4 {
						return
					}
					answer, ok := map[byte][2]byte{0x60: {0x61, 0}, 0x68: {0x69, 0}, 0x66: {0x67, busy}}[body[3]]
					if !ok {
						return
					}
					if _, err := conn.Write([]byte{0x30, 12, 0x02, 1, body[2], answer[0], 7, 0x0a, 1, answer[1], 0x04, 0, 0x04, 0}); err != nil {
						return
					}
				}
			}()
		}
	}()
	e, err := ldap.Kind.Open(engine.Config{
		Address: "ldap://" + l.Addr().String(), Options: map[string]string{"base": base}, Admin: engine.Credential{User: admin, Secret: estover.NewSecret([]byte(secret))},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := e.Create(ctx, engine.Order{Name: "e_half", Secret: estover.NewSecret([]byte("x")), Template: template}); err == nil || errors.Is(err, engine.ErrUnreachable) || !strings.Contains(err.Error(), "Busy") {
		t.Errorf("a group that is too busy: %v, want an error that leaves open what happened", err)
	}
}

// TestMany: an admin who is given no limit lists more entries than a slapd gives
// to others, who are told what to do.
func TestMany(t *testing.T) {
	s := running(t)
	e := open(t, config(s))
	o := engine.Order{Name: "e_many_reader", Secret: estover.NewSecret([]byte("many-secret")), Template: template}
	m, err := e.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Revoke(context.Background(), []engine.Doomed{{Name: o.Name, Template: template}})
	const more = 510
	each := func(do func(l *client.Conn, dn string) error) {
		t.Helper()
		if err := s.AsRoot(func(l *client.Conn) error {
			for i := range more {
				if err := do(l, dn(fmt.Sprintf("e_many_%03d", i))); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	each(func(l *client.Conn, dn string) error {
		add := client.NewAddRequest(dn, nil)
		add.Attribute("objectClass", []string{"account"})
		return l.Add(add)
	})
	defer each(func(l *client.Conn, dn string) error { return l.Del(client.NewDelRequest(dn, nil)) })
	if names, err := e.List(t.Context(), "e_many_"); err != nil || len(names) != more+1 {
		t.Errorf("%d entries are listed as %d: %v", more+1, len(names), err)
	}
	c := config(s)
	c.Admin = engine.Credential{User: string(m["dn"].Reveal()), Secret: o.Secret}
	if _, err := open(t, c).List(t.Context(), "e_many_"); !refusal(err) || !strings.Contains(err.Error(), "size=unlimited") {
		t.Errorf("somebody with a limit lists more than that: %v, want a refusal that says what to do", err)
	}
}

func refusal(err error) bool {
	var refused *engine.Refused
	return errors.As(err, &refused)
}

// TestStorm is F1, F2 and F3.
func TestStorm(t *testing.T) {
	leasetest.Storm{Kind: ldap.Kind, Config: config(running(t)), Template: template, Issues: 35}.Rage(t, dbtest.Open(t))
}
