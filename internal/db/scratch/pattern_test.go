package scratch

import (
	"database/sql"
	"os"
	"testing"
)

// The first cluster leaves a pattern, after which the others are made. They are others:
// what is written in one is in no other.
func TestPatterns(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(Patterns, dir)
	for range 3 {
		s, err := Start(Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Stop()
		pool, err := sql.Open("pgx", s.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		if _, err := pool.ExecContext(t.Context(), "create table mine (id text)"); err != nil {
			t.Error(err)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != 1 {
			t.Errorf("the patterns are %v, %v", left, err)
		}
	}
}
