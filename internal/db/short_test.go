package db_test

import (
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// What a stranger says keeps no row from being written, on any engine.
func TestShort(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		makeNotes(t, d)
		for i, words := range []string{"no", strings.Repeat("ä", 400), "x" + strings.Repeat("€", 400), "\xff\xfe no", "no\x00"} {
			short := db.Short(words)
			if len(short) > 500 || len(short) < min(len(words), 500)-2 || !utf8.ValidString(short) {
				t.Errorf("%.20q is shortened to %d bytes: %.20q", words, len(short), short)
			}
			err := d.Do(t.Context(), "acme", func(tx *db.Tx) error {
				_, err := tx.Exec(t.Context(), "insert into note (tenant_id, id, body) values ($1, $2, $3)", tx.Tenant(), strconv.Itoa(i), short)
				return err
			})
			if err != nil {
				t.Errorf("storing %.20q: %v", short, err)
			}
		}
	})
}
