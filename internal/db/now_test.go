package db_test

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev/internal/db"
)

// The time of the database is cut to microseconds as time.Truncate does it, to the
// last bit: it is compared by == in places.
func TestNowIsInWholeMicroseconds(t *testing.T) {
	check := func(t interface{ Errorf(string, ...any) }, at time.Time) {
		if got, want := db.WholeMicros(at), at.UTC().Truncate(time.Microsecond); got != want {
			t.Errorf("%v is cut to %#v, want %#v", at, got, want)
		}
	}
	east := time.FixedZone("east", 5*3600+1800)
	for _, at := range []time.Time{
		time.Now(), time.Now().In(east),
		{},
		time.Unix(0, 0), time.Unix(0, -1), time.Unix(0, 999), time.Unix(-1, 999_999_999), time.Unix(-62135596801, 1),
		time.Unix(1<<40, 123_456_789), time.Date(1600, 1, 1, 0, 0, 0, 1001, east), time.Now().Add(1), time.Now().Add(math.MaxInt64),
	} {
		check(t, at)
	}
	rapid.Check(t, func(r *rapid.T) {
		at := time.Unix(rapid.Int64Range(-1<<40, 1<<40).Draw(r, "seconds"), rapid.Int64Range(0, 999_999_999).Draw(r, "nanoseconds"))
		if rapid.Bool().Draw(r, "elsewhere") {
			at = at.In(east)
		}
		check(r, at)
	})
}

func BenchmarkNow(b *testing.B) {
	at := time.Now()
	b.Run("truncate", func(b *testing.B) {
		for b.Loop() {
			at.UTC().Truncate(time.Microsecond)
		}
	})
	b.Run("ours", func(b *testing.B) {
		for b.Loop() {
			db.WholeMicros(at)
		}
	})
}
