package audit

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

func openSpool(t testing.TB, l *Log, dir string, o SpoolOptions) *Spool {
	t.Helper()
	s, err := OpenSpool(l, dir, o)
	fatal(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func appendEvents(t testing.TB, s *Spool, tenant estover.TenantID, first, last int) {
	t.Helper()
	for n := first; n <= last; n++ {
		p, err := s.log.Prepare(tenant, event(n))
		fatal(t, err)
		fatal(t, s.Append(p))
	}
}

// count is how many events the database has.
func count(t testing.TB, d *db.DB, tenant estover.TenantID) (n int) {
	t.Helper()
	fatal(t, d.View(t.Context(), tenant, func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), "select count(*) from audit where tenant_id = $1", tenant).Scan(&n)
	}))
	return n
}

func TestSpool(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		s := openSpool(t, l, t.TempDir(), SpoolOptions{Every: time.Millisecond})
		appendEvents(t, s, acme, 1, 600)
		appendEvents(t, s, "other", 1, 5)
		if s.Waiting() != 605 || count(t, d, acme) != 0 {
			t.Errorf("%d events wait, %d are in the database; want 605 and 0", s.Waiting(), count(t, d, acme))
		}
		fatal(t, s.Flush(t.Context()))
		if s.Waiting() != 0 || count(t, d, acme) != 600 || count(t, d, "other") != 5 {
			t.Errorf("after the flush %d events wait, %d and %d are in the database", s.Waiting(), count(t, d, acme), count(t, d, "other"))
		}
		for i := range s.held {
			for _, e := range s.held[i][:cap(s.held[i])] {
				if !reflect.DeepEqual(e, entry{}) {
					t.Fatalf("the event %s is held after it was imported", e.event.head.ID)
				}
			}
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		var work sync.WaitGroup
		for w := range 16 {
			work.Go(func() {
				for i := range 25 {
					p, err := l.Prepare(acme, event(1000+w*25+i))
					if err == nil {
						err = s.Append(p)
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		work.Wait()
		eventually(t, func() bool { return s.Waiting() == 0 })
		stop()
		fatal(t, <-done)
		fatal(t, l.Sequence(t.Context(), acme))
		if v := verified(t, l, acme); v.Size != 1000 || s.Taken() != 1005 {
			t.Errorf("the log has %d events, %d were taken; want 1000 and 1005", v.Size, s.Taken())
		}
		for i := range 2 {
			b, err := os.ReadFile(filepath.Join(s.dir, fmt.Sprintf("spool.%d", i)))
			fatal(t, err)
			if turn, records, good := parseSpool(b); turn != 0 || len(records) != 0 || good != 0 {
				t.Errorf("file %d still has %d events", i, len(records))
			}
		}
	})
}

// Order is kept: an outcome is never sequenced before its intent, also when
// both files have something left from an earlier life.
func TestSpoolOrder(t *testing.T) {
	d := dbtest.Open(t)
	l := newKeys(t).open(d)
	dir := t.TempDir()
	s := openSpool(t, l, dir, SpoolOptions{})
	appendEvents(t, s, acme, 1, 10)
	crash := errors.New("the process died")
	l.fault = func(step string) error { return crash }
	if err := s.Flush(t.Context()); !errors.Is(err, crash) {
		t.Fatal(err)
	}
	appendEvents(t, s, acme, 11, 20) // into the other file
	fatal(t, s.Close())
	l.fault = func(string) error { return nil }
	s = openSpool(t, l, dir, SpoolOptions{})
	if s.Waiting() != 20 {
		t.Errorf("%d events were taken over, want 20", s.Waiting())
	}
	appendEvents(t, s, acme, 21, 30)
	fatal(t, s.Flush(t.Context()))
	fatal(t, l.Sequence(t.Context(), acme))
	fatal(t, d.View(t.Context(), acme, func(tx *db.Tx) error {
		rows, err := readPlaced(t.Context(), tx, 0, 100)
		fatal(t, err)
		for i, r := range rows {
			if want := fmt.Sprintf("evt_%06d", i+1); r.event.ID != want {
				t.Errorf("place %d has %s, want %s", i, r.event.ID, want)
			}
		}
		if len(rows) != 30 {
			t.Errorf("%d events have a place, want 30", len(rows))
		}
		return nil
	}))
}

// A crash before, between and after the steps of an import repeats nothing and
// loses nothing.
func TestSpoolCrash(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		dir := t.TempDir()
		n := 0
		for _, step := range []string{"spool: before the import", "spool: after the import", "spool: before it is emptied"} {
			crash := errors.New("the process died")
			s := openSpool(t, l, dir, SpoolOptions{})
			appendEvents(t, s, acme, n+1, n+400)
			n += 400
			l.fault = func(at string) error {
				if at == step {
					return crash
				}
				return nil
			}
			if err := s.Flush(t.Context()); !errors.Is(err, crash) {
				t.Fatalf("the crash at %q: %v", step, err)
			}
			l.fault = func(string) error { return nil }
			fatal(t, s.Close())
			s = openSpool(t, l, dir, SpoolOptions{})
			fatal(t, s.Flush(t.Context()))
			fatal(t, s.Close())
			if got := count(t, d, acme); got != n {
				t.Errorf("after a crash at %q the database has %d events, want %d", step, got, n)
			}
		}
	})
}

// What cannot be imported is tried again by the process that has it, and comes once, in
// its order, in packs.
func TestSpoolTriesAgain(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		s := openSpool(t, l, t.TempDir(), SpoolOptions{})
		var want []string
		more := func(n int) {
			for _, p := range calls(t, l, n) {
				want = append(want, p.head.ID)
				fatal(t, s.Append(p))
			}
		}
		for _, step := range []string{"spool: before the import", "spool: after the import", "spool: before it is emptied"} {
			more(200)
			trouble := errors.New("something is in the way")
			l.fault = func(at string) error {
				if at == step {
					return trouble
				}
				return nil
			}
			if err := s.Flush(t.Context()); !errors.Is(err, trouble) {
				t.Fatalf("the trouble at %q: %v", step, err)
			}
			more(50) // into the other file
			l.fault = func(string) error { return nil }
			fatal(t, s.Flush(t.Context()))
		}
		more(100)
		fatal(t, s.Flush(t.Context()))
		fatal(t, l.Sequence(t.Context(), acme))
		if v := verified(t, l, acme); v.Size != int64(len(want)) {
			t.Errorf("the log has %d events, want %d", v.Size, len(want))
		}
		fatal(t, d.View(t.Context(), acme, func(tx *db.Tx) error {
			events, err := readPlaced(t.Context(), tx, 0, int64(len(want)))
			for i, e := range events {
				if e.event.ID != want[i] {
					t.Fatalf("place %d has %s, want %s", i, e.event.ID, want[i])
				}
			}
			return err
		}))
		if rows := count(t, d, acme); rows > len(want)/25 {
			t.Errorf("%d events are in %d rows", len(want), rows)
		}
	})
}

// A write that the machine's end cut in half is left out; those before it are
// kept.
func TestSpoolTorn(t *testing.T) {
	d := dbtest.Open(t)
	l := newKeys(t).open(d)
	for _, cut := range []int64{1, 7, 9, 100} {
		dir := t.TempDir()
		s := openSpool(t, l, dir, SpoolOptions{})
		tenant := estover.TenantID(fmt.Sprint("cut", cut))
		appendEvents(t, s, tenant, 1, 3)
		size := s.size[s.active]
		fatal(t, s.Close())
		fatal(t, os.Truncate(filepath.Join(dir, "spool.0"), size-cut))
		s = openSpool(t, l, dir, SpoolOptions{})
		appendEvents(t, s, tenant, 4, 4)
		fatal(t, s.Flush(t.Context()))
		if got := count(t, d, tenant); got != 3 {
			t.Errorf("cut by %d bytes: %d events, want the two whole ones and the one after", cut, got)
		}
	}
}

// What an earlier turn left in a file is not read as this one's.
func TestSpoolLeavesOldRecords(t *testing.T) {
	d := dbtest.Open(t)
	l := newKeys(t).open(d)
	dir := t.TempDir()
	s := openSpool(t, l, dir, SpoolOptions{})
	for n := 0; n < 40; n += 10 { // both files are used, each for longer than afterwards
		appendEvents(t, s, acme, n+1, n+10)
		fatal(t, s.Flush(t.Context()))
	}
	appendEvents(t, s, acme, 41, 43)
	fatal(t, s.Close())
	s = openSpool(t, l, dir, SpoolOptions{})
	if n := s.Waiting(); n != 3 {
		t.Errorf("%d events wait, want the three of the last turn", n)
	}
	fatal(t, s.Flush(t.Context()))
	fatal(t, s.Close())
	s = openSpool(t, l, dir, SpoolOptions{})
	appendEvents(t, s, acme, 44, 44)
	fatal(t, s.Close())
	s = openSpool(t, l, dir, SpoolOptions{})
	if n := s.Waiting(); n != 1 {
		t.Errorf("%d events wait after another start, want one", n)
	}
	fatal(t, s.Flush(t.Context()))
	if n := count(t, d, acme); n != 44 {
		t.Errorf("the database has %d events, want 44", n)
	}
}

// What is full refuses, and takes again once the database has taken some.
func TestSpoolFull(t *testing.T) {
	d := dbtest.Open(t)
	l := newKeys(t).open(d)
	s := openSpool(t, l, t.TempDir(), SpoolOptions{Max: 10_000})
	taken := 0
	var err error
	for ; err == nil; taken++ {
		var p Prepared
		p, err = l.Prepare(acme, event(taken))
		fatal(t, err)
		err = s.Append(p)
	}
	if !errors.Is(err, ErrSpoolFull) || estover.KindOf(err) != estover.Unavailable || taken < 5 {
		t.Fatalf("event %d: %v, want ErrSpoolFull", taken, err)
	}
	fatal(t, s.Flush(t.Context()))
	appendEvents(t, s, acme, 1000, 1000)
	fatal(t, s.Close())
	p, err := l.Prepare(acme, event(1001))
	fatal(t, err)
	if err := s.Append(p); !errors.Is(err, ErrSpoolFull) {
		t.Errorf("a closed spool: %v, want ErrSpoolFull", err)
	}
}

func TestSpoolIsOpenOnce(t *testing.T) {
	l := newKeys(t).open(dbtest.Open(t))
	dir := t.TempDir()
	s := openSpool(t, l, dir, SpoolOptions{})
	if other, err := OpenSpool(l, dir, SpoolOptions{}); err == nil {
		other.Close()
		t.Error("two have the spool open")
	}
	fatal(t, s.Close())
	openSpool(t, l, dir, SpoolOptions{})
}

// An event that the database never takes is set aside, and holds up no other.
func TestSpoolRejected(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		s := openSpool(t, l, t.TempDir(), SpoolOptions{})
		appendEvents(t, s, acme, 1, 5)
		bad := event(6)
		bad.Outcome = "perhaps"
		p, err := l.Prepare(acme, bad)
		fatal(t, err)
		fatal(t, s.Append(p))
		appendEvents(t, s, acme, 7, 9)
		fatal(t, s.Flush(t.Context()))
		if got := count(t, d, acme); got != 8 {
			t.Errorf("%d events are in the database, want 8", got)
		}
		if st, err := os.Stat(filepath.Join(s.dir, "rejected")); err != nil || st.Size() == 0 {
			t.Errorf("the event that was refused is not set aside: %v", err)
		}
		if err := s.Append(p, db.Row{Into: &db.Table{Name: "elsewhere"}}); err == nil {
			t.Error("a row of an unknown table was taken")
		}
	})
}

// Other rows come with their event or not at all.
func TestSpoolWithRows(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		cursors := &db.Table{Name: "audit_cursor", Columns: []db.Column{{Name: "tenant_id", Type: "text"}, {Name: "name", Type: "text"}, {Name: "next", Type: "bigint"}}}
		s := openSpool(t, l, t.TempDir(), SpoolOptions{Tables: []*db.Table{cursors}})
		for n := range 20 {
			p, err := l.Prepare(acme, event(n))
			fatal(t, err)
			next := n
			if n == 13 {
				next = 12 // the same name as the row before: refused
			}
			fatal(t, s.Append(p, db.Row{Into: cursors, Values: []any{"acme", fmt.Sprint("row ", next), n}}))
		}
		fatal(t, s.Flush(t.Context()))
		var rows int
		fatal(t, d.View(t.Context(), acme, func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), "select count(*) from audit_cursor where tenant_id = $1", acme).Scan(&rows)
		}))
		if got := count(t, d, acme); got != 19 || rows != 19 {
			t.Errorf("%d events and %d rows, want 19 of each", got, rows)
		}
	})
}

// calls are events as the calls of a gateway make them: they touch nothing.
func calls(t testing.TB, l *Log, n int) []Prepared {
	t.Helper()
	all := make([]Prepared, n)
	for i := range all {
		e := event(i)
		e.ID, e.Touches = NewID(), nil
		var err error
		all[i], err = l.Prepare(acme, e)
		fatal(t, err)
	}
	return all
}

func BenchmarkSpool(b *testing.B) {
	l := newKeys(b).open(dbtest.Open(b))
	s := openSpool(b, l, b.TempDir(), SpoolOptions{})
	const round = 1000
	var events []Prepared
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%round == 0 {
			b.StopTimer()
			fatal(b, s.Flush(b.Context()))
			events = calls(b, l, round)
			b.StartTimer()
		}
		if err := s.Append(events[i%round]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSpoolImport imports a thousand events at a time.
func BenchmarkSpoolImport(b *testing.B) {
	benchEach(b, func(b *testing.B, d *db.DB) {
		l := newKeys(b).open(d)
		s := openSpool(b, l, b.TempDir(), SpoolOptions{})
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			for _, p := range calls(b, l, 1000) {
				fatal(b, s.Append(p))
			}
			b.StartTimer()
			fatal(b, s.Flush(b.Context()))
		}
	})
}

// BenchmarkAppend writes the events of many callers, each with a commit of its own.
func BenchmarkAppend(b *testing.B) {
	benchEach(b, func(b *testing.B, d *db.DB) {
		l := newKeys(b).open(d)
		events := calls(b, l, 1<<16)
		var next atomic.Int64
		b.ReportAllocs()
		b.SetParallelism(64)
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				p := events[next.Add(1)%int64(len(events))]
				if err := d.Append(b.Context(), db.Append{Tenant: acme, Rows: []db.Row{p.Row()}}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

func benchEach(b *testing.B, run func(*testing.B, *db.DB)) {
	for _, engine := range []string{"sqlite", "postgres"} {
		b.Run(engine, func(b *testing.B) {
			url := dbtest.SQLite(b)
			if engine == "postgres" {
				url = dbtest.Postgres(b)
			}
			d, err := db.Open(b.Context(), url, db.Options{})
			fatal(b, err)
			b.Cleanup(func() { _ = d.Close() })
			run(b, d)
		})
	}
}

func BenchmarkPrepare(b *testing.B) {
	l := newKeys(b).open(dbtest.Open(b))
	e := event(1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.Prepare(acme, e); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSequence gives places to a thousand events at a time, as calls write them.
func BenchmarkSequence(b *testing.B) {
	benchEach(b, func(b *testing.B, d *db.DB) {
		l := newKeys(b).open(d)
		l.run = maxRun
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			var rows []db.Row
			for _, p := range calls(b, l, 1000) {
				rows = append(rows, p.Row())
			}
			fatal(b, d.Append(b.Context(), db.Append{Tenant: acme, Rows: rows}))
			b.StartTimer()
			fatal(b, l.Sequence(b.Context(), acme))
		}
	})
}

// The checksum of a record is that of its turn and its body, one after the other.
func TestSpoolChecksum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		turn, body := rapid.Uint64().Draw(t, "turn"), rapid.SliceOf(rapid.Byte()).Draw(t, "body")
		want := crc32.Checksum(append(binary.BigEndian.AppendUint64(nil, turn), body...), crc32.MakeTable(crc32.Castagnoli))
		if got := checksum(turn, body); got != want {
			t.Errorf("the checksum of %x in turn %d is %x, want %x", body, turn, got, want)
		}
	})
}

// What a file holds is read with a library, and written by hand. An event's row is what
// it was in the files of earlier versions, and comes back as the event.
func TestSpoolWritesCBOR(t *testing.T) {
	l := newKeys(t).open(dbtest.Open(t))
	s := openSpool(t, l, t.TempDir(), SpoolOptions{})
	touching, err := l.Prepare(acme, event(1))
	fatal(t, err)
	plain := calls(t, l, 1)[0]
	long := make([]byte, 70_000)
	for _, values := range [][]any{
		{"", nil, true, false, int64(0), int64(23), int64(24), int64(-1), int64(-25), int64(255), int64(256), int64(65536)},
		{int64(1) << 40, int64(-1) << 63, []byte{}, long[:300], long, string(long[:24]), string(long[:255])},
		{time.UnixMicro(77), time.Time{}, 12},
	} {
		for _, p := range []Prepared{touching, plain} {
			e := entry{event: p, with: []db.Row{{Into: Table, Values: values}, plain.Row(), touching.Row()}}
			got, err := s.encode(nil, &e)
			fatal(t, err)
			h, touched := p.head, any(nil)
			if p.touches != "" {
				touched = h.At
			}
			rowOf := func(values ...any) spooledRow { return spooledRow{Table: "audit", Values: values} }
			own := rowOf("acme", h.ID, h.At, h.Action, string(h.Outcome), string(h.Actor), h.Target, h.Session, p.touches, touched,
				p.leaf, p.hash[:], p.payload, int64(1), "", nil)
			micros := slices.Clone(values)
			for i, v := range values {
				if at, ok := v.(time.Time); ok {
					micros[i] = db.Micros(at)
				}
			}
			r := spooled{Tenant: "acme", Event: h.ID, Rows: []spooledRow{own, rowOf(micros...), rowOf(plain.Values()...), rowOf(touching.Values()...)}}
			want, err := cbor.Marshal(r)
			fatal(t, err)
			if !bytes.Equal(got, want) {
				t.Errorf("%v is written as %x, want %x", values, got, want)
			}
			var read spooled
			fatal(t, decoder.Unmarshal(got, &read))
			read.Rows = read.Rows[:1]
			back, err := s.entry(read)
			fatal(t, err)
			if !reflect.DeepEqual(back, entry{event: p}) {
				t.Errorf("an event comes back as %+v, want %+v", back, p)
			}
		}
	}
}

// What stands in a file for an event's row and is like none of ours is taken as it is: by
// the database, or nobody.
func TestSpoolForeign(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		all := calls(t, l, 12)
		change := map[int]func(r *spooled){
			2: func(r *spooled) { r.Rows[0].Values[colTarget] = nil },
			3: func(r *spooled) { r.Rows[0].Values[colN] = int64(2) },
			5: func(r *spooled) { r.Rows[0].Values[colLeafHash] = []byte("short") },
			6: func(r *spooled) { r.Rows[0].Values[colTouchedAt] = int64(5) }, // taken, in a row of its own
			8: func(r *spooled) { r.Rows[0].Values[colPayload] = nil },
			9: func(r *spooled) { r.Rows[0].Values = r.Rows[0].Values[1:] },
		}
		file := binary.BigEndian.AppendUint64([]byte(spoolMagic), 7)
		for i := range all {
			r := spooledOf(&entry{event: all[i]})
			if change[i] != nil {
				change[i](&r)
			}
			body, err := cbor.Marshal(r)
			fatal(t, err)
			file = binary.BigEndian.AppendUint32(file, uint32(len(body)))
			file = append(binary.BigEndian.AppendUint32(file, checksum(7, body)), body...)
		}
		dir := t.TempDir()
		fatal(t, os.WriteFile(filepath.Join(dir, "spool.0"), file, 0o600))
		s := openSpool(t, l, dir, SpoolOptions{})
		fatal(t, s.Flush(t.Context()))
		fatal(t, l.Sequence(t.Context(), acme))
		var ids []string
		fatal(t, d.View(t.Context(), acme, func(tx *db.Tx) error {
			rows, err := readPlaced(t.Context(), tx, 0, 100)
			for _, r := range rows {
				ids = append(ids, r.event.ID)
			}
			return err
		}))
		var want []string
		for i, p := range all {
			if change[i] == nil || i == 6 {
				want = append(want, p.head.ID)
			}
		}
		if !slices.Equal(ids, want) || s.Waiting() != 0 {
			t.Errorf("the log has %q, and %d wait; want %q", ids, s.Waiting(), want)
		}
		aside, err := os.ReadFile(filepath.Join(dir, "rejected"))
		fatal(t, err)
		var refused []string
		for len(aside) > 0 {
			var r spooled
			aside, err = decoder.UnmarshalFirst(aside, &r)
			fatal(t, err)
			refused = append(refused, r.Event)
		}
		want = want[:0]
		for _, i := range []int{9, 2, 3, 5, 8} { // what is of another table is found as it is read
			want = append(want, all[i].head.ID)
		}
		if !slices.Equal(refused, want) {
			t.Errorf("%q are set aside, want %q", refused, want)
		}
	})
}

// When more waits than is held in memory, the rest is in the files alone, and
// all of it arrives in its order.
func TestSpoolIsReadWhenTooMuchWaits(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		s := openSpool(t, l, t.TempDir(), SpoolOptions{})
		s.room = 20_000
		appendEvents(t, s, acme, 1, 100)
		if n := len(s.held[s.active]); n != 0 || s.room != 20_000 {
			t.Errorf("%d events are held, and there is room for %d bytes; want none of those that are more than there is room for", n, s.room)
		}
		appendEvents(t, s, "other", 1, 3)
		fatal(t, s.Flush(t.Context()))
		appendEvents(t, s, acme, 101, 103)
		if n := len(s.held[s.active]); n != 3 {
			t.Errorf("%d events are held after the file was emptied, want 3", n)
		}
		fatal(t, s.Flush(t.Context()))
		fatal(t, l.Sequence(t.Context(), acme))
		if v := verified(t, l, acme); v.Size != 103 || count(t, d, "other") != 3 || s.room != 20_000 {
			t.Errorf("%d and %d events arrived, and there is room for %d bytes; want 103, 3 and 20000", v.Size, count(t, d, "other"), s.room)
		}
	})
}
