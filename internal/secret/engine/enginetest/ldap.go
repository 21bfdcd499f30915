package enginetest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	client "github.com/go-ldap/ldap/v3"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// An LDAPServer is a slapd whose admin may write below [LDAPUsers] and change
// members of groups, and may not touch entries that are marked "kept".
type LDAPServer struct {
	*Server

	// Config is how Estover reaches it, without TLS. With TLS it is at the second port.
	Config engine.Config
}

// What a slapd has.
const (
	LDAPSuffix = "dc=example,dc=com"
	LDAPUsers  = "ou=agents," + LDAPSuffix
	LDAPAdmin  = "cn=estover," + LDAPSuffix
	LDAPOther  = "cn=other," + LDAPSuffix             // an admin as that one, if a test makes the entry, and so is cn=other2
	LDAPGroup  = "cn=readers,ou=groups," + LDAPSuffix // of names
	LDAPPosix  = "cn=shell,ou=groups," + LDAPSuffix   // a posixGroup
	ldapRoot   = "cn=root," + LDAPSuffix
)

// LDAP is the slapd of this test binary, started when first asked for.
func LDAP(t testing.TB) *LDAPServer {
	t.Helper()
	s, err := slapd()
	if err != nil {
		t.Fatalf("starting a slapd as a target: %v", err)
	}
	return s
}

// Bind logs in.
func (s *LDAPServer) Bind(dn, password string) (*client.Conn, error) {
	return bind(s.Server, dn, password)
}

// AsRoot does something that the admin may not do.
func (s *LDAPServer) AsRoot(do func(*client.Conn) error) error {
	l, err := s.Bind(ldapRoot, adminPassword)
	if err != nil {
		return err
	}
	defer l.Close()
	return do(l)
}

func bind(s *Server, dn, password string) (*client.Conn, error) {
	l, err := client.DialURL("ldap://" + s.Address(0))
	if err != nil {
		return nil, err
	}
	if err := l.Bind(dn, password); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

var slapd = sync.OnceValues(func() (*LDAPServer, error) {
	s, err := Start(Process{
		Debian: "slapd", Program: "slapd", Users: []string{"openldap"}, Ports: 2,
		Prepare: func(s *Server) ([]string, []string, error) {
			certificate, key, err := Certificate(s)
			if err != nil {
				return nil, nil, err
			}
			authority, err := s.Write("ca.pem", string(Authority()))
			if err != nil {
				return nil, nil, err
			}
			if err := os.Mkdir(filepath.Join(s.Dir, "db"), 0o700); err != nil {
				return nil, nil, err
			}
			conf, err := s.Write("slapd.conf", strings.NewReplacer("@DIR", s.Dir, "@CERT", certificate, "@KEY", key, "@CA", authority, "@SUFFIX", LDAPSuffix).Replace(`
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/nis.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile @DIR/pid
TLSCACertificateFile @CA
TLSCertificateFile @CERT
TLSCertificateKeyFile @KEY
TLSVerifyClient never
database mdb
suffix "@SUFFIX"
rootdn "cn=root,@SUFFIX"
rootpw made-for-tests
directory @DIR/db
maxsize 67108864
dbnosync
limits dn.exact="cn=estover,@SUFFIX" size=unlimited
access to filter=(l=kept) by * read
access to attrs=userPassword by dn.regex="^cn=(estover|other[0-9]*),@SUFFIX$" write by anonymous auth by * none
access to dn.subtree="ou=agents,@SUFFIX" by dn.regex="^cn=(estover|other[0-9]*),@SUFFIX$" write by users read
access to dn.subtree="ou=groups,@SUFFIX" attrs=member,memberUid by dn.regex="^cn=(estover|other[0-9]*),@SUFFIX$" write by users read
access to * by users read by * none
`))
			return []string{"-f", conf, "-d", "stats", "-h", "ldap://" + s.Address(0) + "/ ldaps://" + s.Address(1) + "/"}, nil, err
		},
		Ready: func(_ context.Context, s *Server) error {
			l, err := bind(s, ldapRoot, adminPassword)
			if err == nil {
				err = l.Close()
			}
			return err
		},
	})
	if err != nil {
		return nil, err
	}
	l, err := bind(s, ldapRoot, adminPassword)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	for _, e := range []struct {
		dn         string
		attributes map[string][]string
	}{
		{LDAPSuffix, map[string][]string{"objectClass": {"domain"}, "dc": {"example"}}},
		{LDAPAdmin, map[string][]string{"objectClass": {"organizationalRole", "simpleSecurityObject"}, "userPassword": {adminPassword}}},
		{LDAPUsers, map[string][]string{"objectClass": {"organizationalUnit"}}},
		{"ou=groups," + LDAPSuffix, map[string][]string{"objectClass": {"organizationalUnit"}}},
		{LDAPGroup, map[string][]string{"objectClass": {"groupOfNames"}, "member": {LDAPAdmin}}},
		{LDAPPosix, map[string][]string{"objectClass": {"posixGroup"}, "gidNumber": {"5000"}}},
	} {
		add := client.NewAddRequest(e.dn, nil)
		for name, values := range e.attributes {
			add.Attribute(name, values)
		}
		if err := l.Add(add); err != nil {
			return nil, fmt.Errorf("%s: %w", e.dn, err)
		}
	}
	return &LDAPServer{s, engine.Config{
		Address: "ldap://" + s.Address(0), Options: map[string]string{"base": LDAPUsers},
		Admin: engine.Credential{User: LDAPAdmin, Secret: estover.NewSecret([]byte(adminPassword))},
	}}, nil
})
