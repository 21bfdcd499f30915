package enginetest

import (
	"context"
	"os"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"estover.dev"
	"estover.dev/internal/db/scratch"
	"estover.dev/internal/secret/engine"
)

// A PostgresServer is a PostgreSQL as an operator might have one: roles log in
// with SCRAM over TCP, every statement is logged, and there are the databases
// "crm" and "billing", both with a table "customer" that the group role
// "readers" may read and "writers" may also write.
type PostgresServer struct {
	// Config is how Estover reaches the database crm: as a role "estover" that may
	// make roles and end sessions, and is no superuser.
	Config engine.Config

	// Super is the URL of the database crm for the one who may do everything.
	Super string

	// Authorities signed the certificate that it shows to who asks for TLS.
	Authorities []byte

	// Log is the file with the log of the server.
	Log string

	server *scratch.Server // which runs for as long as this is held
}

// Stop ends the server.
func (s *PostgresServer) Stop() { s.server.Stop() }

// As is the URL of a database for somebody with a password.
func (s *PostgresServer) As(m engine.Material, database string) string {
	return "postgres://" + string(m["username"].Reveal()) + ":" + string(m["password"].Reveal()) + "@" + s.host() + "/" + database + "?sslmode=disable"
}

func (s *PostgresServer) host() string { return s.Config.Address[:len(s.Config.Address)-len("/crm")] }

// Exec runs statements as the one who may do everything.
func (s *PostgresServer) Exec(t testing.TB, statements string) {
	t.Helper()
	if err := run(context.WithoutCancel(t.Context()), s.Super, statements); err != nil {
		t.Fatal(err)
	}
}

// Users gives the names of the roles that begin with prefix.
func (s *PostgresServer) Users(t testing.TB, prefix string) []string {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, s.Super)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, `select rolname from pg_roles where starts_with(rolname, $1) order by 1`, prefix)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// Postgres is the PostgreSQL of this test binary, started when first asked for.
func Postgres(t testing.TB) *PostgresServer {
	t.Helper()
	s, err := postgres()
	if err != nil {
		t.Fatalf("starting a PostgreSQL as a target: %v\nDebian: apt-get install postgresql", err)
	}
	return s
}

var postgres = sync.OnceValues(func() (*PostgresServer, error) { return StartPostgres(nil) })

// StartPostgres starts one more, with parameters of its own.
func StartPostgres(settings map[string]string) (*PostgresServer, error) {
	all := map[string]string{"log_statement": "all", "log_line_prefix": "%m %u ", "max_connections": "300"}
	for k, v := range settings {
		all[k] = v
	}
	server, err := scratch.Start(scratch.Options{Listen: true, Settings: all})
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	for _, statement := range []string{
		`create role readers; create role writers in role readers;
		create role estover login createrole password 'made-for-tests' in role pg_signal_backend`,
		`create database crm`, `create database billing`,
	} {
		if err := run(ctx, server.URL, statement); err != nil {
			return nil, err
		}
	}
	of := func(database string) string {
		return "postgres:///" + database + server.URL[len("postgres:///postgres"):]
	}
	for _, database := range []string{"crm", "billing"} {
		err := run(ctx, of(database), `create table customer (id int primary key, name text); insert into customer values (1, 'Ada'), (2, 'Grace');
			grant select on customer to readers; grant insert, update, delete on customer to writers; grant create on schema public to writers`)
		if err != nil {
			return nil, err
		}
	}
	return &PostgresServer{
		Config: engine.Config{
			Address: server.Address + "/crm",
			Admin:   engine.Credential{User: "estover", Secret: estover.NewSecret([]byte("made-for-tests"))},
		},
		Super:       of("crm"),
		Authorities: server.Authorities,
		Log:         server.Log,
		server:      server,
	}, nil
}

// ReadLog gives what the server has logged.
func (s *PostgresServer) ReadLog() ([]byte, error) { return os.ReadFile(s.Log) }

// run sends statements as they stand.
func run(ctx context.Context, url, statements string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.PgConn().Exec(ctx, statements).ReadAll()
	return err
}
