package dbtest

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"estover.dev/internal/db"
	"estover.dev/internal/db/scratch"
)

// Postgres is the URL of a schema of a PostgreSQL that belongs to this test
// process.
//
// To make its tables takes PostgreSQL longer than most tests take. So a schema
// goes from one test to the next, if it is then as it was before: nobody is
// connected to it, nobody has changed its tables, and there is not much in them
// to be taken away.
func Postgres(t testing.TB) string {
	t.Helper()
	s := idle.take()
	if s == nil {
		s = newSchema(t)
		if err := s.fill(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			kept.drop(s.url)
			return
		}
		clean, err := s.clear()
		if err != nil {
			t.Errorf("clearing the schema %s: %v", s.name, err)
		}
		if clean {
			idle.give(s)
		} else {
			kept.drop(s.url)
		}
	})
	return s.url
}

// A schema is one that tests are given.
type schema struct {
	name, url string
	shape     string            // what its tables are like
	seeds     map[string]string // table → the rows that migrations put there, as JSON
}

// pool holds the schemas that no test has.
type pool struct {
	mu      sync.Mutex
	made    int
	schemas []*schema
}

var idle pool

func (p *pool) take() *schema {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.schemas)
	if n == 0 {
		return nil
	}
	s := p.schemas[n-1]
	p.schemas = p.schemas[:n-1]
	return s
}

func (p *pool) give(s *schema) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.schemas = append(p.schemas, s)
}

func (p *pool) name() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.made++
	return fmt.Sprintf("t%d", p.made)
}

// server is the PostgreSQL, and who may do anything there.
var server = sync.OnceValues(func() (*scratch.Server, error) { return scratch.Start(scratch.Options{}) })

var admin = sync.OnceValues(func() (*sql.DB, error) {
	s, err := server()
	if err != nil {
		return nil, err
	}
	return sql.Open("pgx", s.URL)
})

// newSchema is one without tables.
func newSchema(t testing.TB) *schema {
	t.Helper()
	base, err := server()
	if err != nil {
		t.Fatalf("starting a PostgreSQL for the test: %v\nDebian: apt-get install postgresql", err)
	}
	name := idle.name()
	s := &schema{name: name, url: base.URL + "&search_path=" + name + "&application_name=" + name}
	if err := s.do("create schema " + name); err != nil {
		t.Fatal(err)
	}
	return s
}

// fill makes the tables.
func (s *schema) fill() error {
	d, err := db.Open(context.Background(), s.url, db.Options{})
	if err != nil {
		return err
	}
	if err := d.Close(); err != nil {
		return err
	}
	if s.shape, err = s.ask(fmt.Sprintf(shapeText, s.name)); err != nil {
		return err
	}
	a, err := admin()
	if err != nil {
		return err
	}
	rows, err := a.Query("select relname from pg_class where relnamespace = $1::regnamespace and relkind = 'r' and relname <> 'schema_migration'", s.name)
	if err != nil {
		return err
	}
	defer rows.Close()
	s.seeds = map[string]string{}
	for rows.Next() {
		var table string
		if err := rows.Scan(&table); err != nil {
			return err
		}
		seeds, err := s.ask("select coalesce(json_agg(r)::text, '') from " + s.name + "." + table + " r")
		if err != nil {
			return err
		}
		if seeds != "" {
			s.seeds[table] = seeds
		}
	}
	return rows.Err()
}

// shapeText tells what a schema is like: which transactions made its tables, columns,
// defaults, constraints, indexes, triggers and functions, or changed them since, and who
// migrated what. (A sequence that is set back is made anew.)
const shapeText = `select string_agg(concat_ws(' ', what, n, made), ';' order by what) from (
	select 'columns' as what, count(*) as n, sum(a.xmin::text::bigint) as made
		from pg_attribute a join pg_class c on c.oid = a.attrelid where c.relnamespace = '%[1]s'::regnamespace and c.relkind <> 'S'
	union all select concat('relations ', relkind::text), count(*), sum(xmin::text::bigint) filter (where relkind <> 'S') from pg_class where relnamespace = '%[1]s'::regnamespace group by relkind
	union all select 'indexes', count(*), sum(i.xmin::text::bigint) from pg_index i join pg_class c on c.oid = i.indrelid where c.relnamespace = '%[1]s'::regnamespace
	union all select 'defaults', count(*), sum(d.xmin::text::bigint) from pg_attrdef d join pg_class c on c.oid = d.adrelid where c.relnamespace = '%[1]s'::regnamespace
	union all select 'constraints', count(*), sum(xmin::text::bigint) from pg_constraint where connamespace = '%[1]s'::regnamespace
	union all select 'triggers', count(*), sum(g.xmin::text::bigint) from pg_trigger g join pg_class c on c.oid = g.tgrelid where c.relnamespace = '%[1]s'::regnamespace
	union all select 'functions', count(*), sum(xmin::text::bigint) from pg_proc where pronamespace = '%[1]s'::regnamespace
	union all select concat('migration ', name, ' ', digest), 1, 0 from %[1]s.schema_migration) as parts`

// wipeText takes everything away but who migrated what.
const wipeText = `do $$ declare r record; begin
	perform set_config('session_replication_role', 'replica', true); -- in any order
	for r in select relname, relkind from pg_class where relnamespace = '%[1]s'::regnamespace and relname <> 'schema_migration' loop
		case r.relkind
			when 'r' then execute format('delete from %[1]s.%%I', r.relname);
			when 'S' then execute format('alter sequence %[1]s.%%I restart', r.relname);
			else null;
		end case;
	end loop;
end $$`

// muchWritten is how many rows of events are too many to take away.
const muchWritten = 5000

// clear makes the schema as it was before the test, unless something says that it
// will not be.
func (s *schema) clear() (bool, error) {
	// Who was told to close, or was killed, may be at it for a moment.
	for deadline := time.Now().Add(time.Second); ; time.Sleep(5 * time.Millisecond) {
		n, err := s.ask("select count(*)::text from pg_stat_activity where application_name = $1", s.name)
		if err != nil || time.Now().After(deadline) {
			return false, err
		}
		if n == strconv.Itoa(kept.held(s.url)) {
			break
		}
	}
	shape, err := s.ask(fmt.Sprintf(shapeText, s.name))
	if err != nil || shape != s.shape {
		return false, err
	}
	much, err := s.ask(fmt.Sprintf("select (count(*) = %d)::text from (select 1 from %s.audit limit %[1]d) as events", muchWritten, s.name))
	if err != nil || much == "true" {
		return false, err
	}
	if err := s.do(fmt.Sprintf(wipeText, s.name)); err != nil {
		return false, err
	}
	for table, rows := range s.seeds {
		into := s.name + "." + table
		if err := s.do("insert into "+into+" select * from json_populate_recordset(null::"+into+", $1)", rows); err != nil {
			return false, err
		}
	}
	return true, nil
}

func (s *schema) ask(query string, args ...any) (answer string, err error) {
	a, err := admin()
	if err == nil {
		err = a.QueryRow(query, args...).Scan(&answer)
	}
	return answer, err
}

func (s *schema) do(query string, args ...any) error {
	a, err := admin()
	if err == nil {
		_, err = a.Exec(query, args...)
	}
	return err
}
