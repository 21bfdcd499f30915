package enginetest

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	_ "github.com/go-sql-driver/mysql" // the driver "mysql"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// A MariaDBServer is a MariaDB as an operator might have one: every statement is
// logged, and the database "crm" has a table "customer" that the role "readers"
// may read and "writers" may also write.
type MariaDBServer struct {
	*Server

	// Config is how Estover reaches it: as a user "estover" that may make users,
	// grant the two roles and end sessions.
	Config engine.Config

	// Super is a pool of connections of the one who may do everything.
	Super *sql.DB
}

// Exec runs a statement as the one who may do everything.
func (s *MariaDBServer) Exec(t testing.TB, statement string) {
	t.Helper()
	if _, err := s.Super.ExecContext(context.WithoutCancel(t.Context()), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// ReadLog gives the statements that the server has logged.
func (s *MariaDBServer) ReadLog() ([]byte, error) {
	return os.ReadFile(filepath.Join(s.Dir, "general.log"))
}

// MariaDB is the MariaDB of this test binary, started when first asked for.
func MariaDB(t testing.TB) *MariaDBServer {
	t.Helper()
	s, err := mariadb()
	if err != nil {
		t.Fatalf("starting a MariaDB as a target: %v", err)
	}
	return s
}

var mariadb = sync.OnceValues(func() (*MariaDBServer, error) {
	s := &MariaDBServer{}
	server, err := Start(Process{
		Debian: "mariadb-server-core", Program: "mariadbd", Users: []string{"mysql"}, Ports: 1,
		Prepare: func(at *Server) (args, env []string, err error) {
			data := filepath.Join(at.Dir, "data")
			if err := bootstrap(at, data); err != nil {
				return nil, nil, err
			}
			certificate, key, err := Certificate(at)
			if err != nil {
				return nil, nil, err
			}
			if err := at.give(); err != nil {
				return nil, nil, err
			}
			return []string{
				"--no-defaults", "--ssl-cert=" + certificate, "--ssl-key=" + key, "--datadir=" + data, "--socket=" + filepath.Join(at.Dir, "sock"), "--pid-file=" + filepath.Join(at.Dir, "pid"),
				"--bind-address=127.0.0.1", "--port=" + strconv.Itoa(at.Ports[0]), "--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M",
				"--connect-timeout=60", // of a log-in on a machine that is busy
				"--general-log", "--general-log-file=" + filepath.Join(at.Dir, "general.log"),
			}, nil, nil
		},
		Ready: func(ctx context.Context, at *Server) (err error) {
			if s.Super == nil {
				if s.Super, err = sql.Open("mysql", "root@tcp("+at.Address(0)+")/mysql"); err != nil {
					return err
				}
			}
			return s.Super.PingContext(ctx)
		},
	})
	if err != nil {
		return nil, err
	}
	s.Server = server
	for _, statement := range []string{
		"create database crm", "create table crm.customer (id int primary key, name varchar(50))", "insert into crm.customer values (1, 'Ada'), (2, 'Grace')",
		"create role readers", "create role writers", "grant select on crm.* to readers", "grant select, insert, update, delete on crm.* to writers",
		"create user estover identified by 'made-for-tests'", "grant create user, process, connection admin on *.* to estover", "grant select on mysql.user to estover",
		"grant readers to estover with admin option", "grant writers to estover with admin option",
	} {
		if _, err := s.Super.ExecContext(context.Background(), statement); err != nil {
			return nil, fmt.Errorf("%s: %w", statement, err)
		}
	}
	s.Config = engine.Config{
		Address: server.Address(0),
		Admin:   engine.Credential{User: "estover", Secret: estover.NewSecret([]byte("made-for-tests"))},
	}
	return s, nil
})

// bootstrap makes a data directory in which root needs no password. The program
// that does this otherwise is in a package that starts a server of its own.
func bootstrap(s *Server, data string) error {
	if err := os.MkdirAll(filepath.Join(data, "mysql"), 0o700); err != nil {
		return err
	}
	var script bytes.Buffer
	script.WriteString("create database if not exists mysql;\nuse mysql;\nset @auth_root_socket=NULL;\n")
	for _, name := range []string{"mysql_system_tables.sql", "mysql_system_tables_data.sql"} {
		b, err := os.ReadFile(filepath.Join("/usr/share/mysql", name))
		if err != nil {
			return err
		}
		script.Write(b)
	}
	if err := s.give(); err != nil {
		return err
	}
	c := s.Command("mariadbd", "--no-defaults", "--bootstrap", "--datadir="+data, "--skip-networking", "--innodb-buffer-pool-size=32M")
	c.Stdin = &script
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}
