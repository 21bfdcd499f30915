package audit

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"estover.dev"
	"estover.dev/internal/db"
)

// ErrSpoolFull is returned when a spool has no room, or its disk does not take
// what is written. What cannot be recorded is not done.
var ErrSpoolFull = &estover.Error{Kind: estover.Unavailable, Code: "evidence_full", Detail: "This node cannot keep more evidence until the database takes some. Try again in a moment."}

// A Spool keeps events on this node's disk for a moment, and imports them into
// the log many at a time. It is for routes whose evidence is batched: an event
// costs one write to a file that is open, and not a commit.
//
//	Append ──write(2)──▶ one of two files ──▶ Run imports the other one, and empties it
//
// What Append took survives the end of the process, however it ends; what the
// machine's loss takes along are the few milliseconds until the next fsync.
// The events are sealed already. Importing looks for each event's id first, so
// that a crash in the middle of it repeats nothing.
type Spool struct {
	log    *Log
	dir    string
	max    int64
	every  time.Duration
	tables map[string]*db.Table
	lock   *os.File
	wake   chan struct{}
	dirty  chan struct{}
	done   sync.WaitGroup

	importing sync.Mutex // held by the one who imports

	mu       sync.Mutex
	files    [2]*os.File
	size     [2]int64
	entries  [2]int64
	active   int    // the file that is appended to
	turn     uint64 // of the active file; the other's is lower
	taken    int64  // events ever appended, with those found at opening
	imported int64  // events ever imported
	failed   error  // why nothing more is taken
}

// SpoolOptions are what an operator may set. The zero value is good.
type SpoolOptions struct {
	Max    int64         // bytes that may wait; 64 MiB if zero
	Every  time.Duration // how long events are gathered before they are imported; 50 ms if zero
	Tables []*db.Table   // what other rows come with events, beside those of [Table]
}

// spoolSync is how long at most a written event waits for its fsync to begin.
const spoolSync = 5 * time.Millisecond

// importBatch is how many events are imported by one commit.
const importBatch = 256

// A spoolFile begins with this and the number of its turn.
const (
	spoolMagic  = "estspol1"
	spoolHeader = int64(len(spoolMagic) + 8)
)

// A spooled is one record: an event's rows, all or none of which are imported.
type spooled struct {
	_      struct{} `cbor:",toarray"`
	Tenant string
	Event  string
	Rows   []spooledRow
}

type spooledRow struct {
	_      struct{} `cbor:",toarray"`
	Table  string
	Values []any
}

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	decoder    = func() cbor.DecMode {
		m, err := cbor.DecOptions{IntDec: cbor.IntDecConvertSignedOrFail}.DecMode()
		if err != nil {
			panic("audit: " + err.Error())
		}
		return m
	}()
)

// OpenSpool opens the spool in a directory of its own, and takes over what an
// earlier process left there. Only one process at a time has it open.
func OpenSpool(l *Log, dir string, o SpoolOptions) (*Spool, error) {
	s := &Spool{
		log: l, dir: dir, max: cmp.Or(o.Max, 64<<20), every: cmp.Or(o.Every, 50*time.Millisecond),
		tables: map[string]*db.Table{Table.Name: Table}, wake: make(chan struct{}, 1), dirty: make(chan struct{}, 1),
	}
	for _, t := range o.Tables {
		s.tables[t.Name] = t
	}
	if err := s.open(); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("opening the spool: %w", err)
	}
	s.done.Go(s.sync)
	return s, nil
}

func (s *Spool) open() (err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if s.lock, err = lockFile(filepath.Join(s.dir, "lock")); err != nil {
		return err
	}
	var turns [2]uint64
	for i := range s.files {
		s.files[i], err = os.OpenFile(filepath.Join(s.dir, fmt.Sprintf("spool.%d", i)), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(s.files[i])
		if err != nil {
			return err
		}
		turn, records, good := parseSpool(b)
		if int64(len(b)) > good {
			s.log.o.Logger.Warn("the spool ended in the middle of an event that nobody was told was kept", "file", i, "bytes", int64(len(b))-good)
			if err := s.files[i].Truncate(good); err != nil {
				return err
			}
		}
		turns[i], s.size[i], s.entries[i] = turn, good, int64(len(records))
		s.taken += s.entries[i]
	}
	// The one that was appended to last goes on; the other is imported first.
	if turns[1] > turns[0] {
		s.active = 1
	}
	s.turn = max(turns[0], turns[1])
	if s.taken > 0 {
		signal(s.wake)
	}
	return nil
}

// parseSpool reads a file: its turn, its records, and how many bytes of it are
// whole. It stops at the first record that is not.
func parseSpool(b []byte) (turn uint64, records []spooled, good int64) {
	if int64(len(b)) < spoolHeader || string(b[:len(spoolMagic)]) != spoolMagic {
		return 0, nil, 0
	}
	turn = binary.BigEndian.Uint64(b[len(spoolMagic):])
	good = spoolHeader
	for {
		rest := b[good:]
		if len(rest) < 8 {
			return turn, records, good
		}
		n, sum := binary.BigEndian.Uint32(rest), binary.BigEndian.Uint32(rest[4:])
		if uint64(len(rest)) < 8+uint64(n) || crc32.Checksum(rest[8:8+n], castagnoli) != sum {
			return turn, records, good
		}
		var r spooled
		if decoder.Unmarshal(rest[8:8+n], &r) != nil {
			return turn, records, good
		}
		records = append(records, r)
		good += 8 + int64(n)
	}
}

// Append keeps an event, and the rows that belong to it, until they are
// imported together. It returns after the write: then the event outlives this
// process.
func (s *Spool) Append(p Prepared, with ...db.Row) error {
	r := spooled{Tenant: string(p.tenant), Event: p.event.ID}
	for _, row := range append([]db.Row{p.Row()}, with...) {
		if s.tables[row.Into.Name] != row.Into {
			return fmt.Errorf("the spool does not know the table %s", row.Into.Name)
		}
		values := make([]any, len(row.Values))
		for i, v := range row.Values {
			switch v := v.(type) {
			case nil, string, int64, bool, []byte:
				values[i] = v
			case int:
				values[i] = int64(v)
			case time.Time:
				values[i] = db.Micros(v)
			default:
				return fmt.Errorf("the spool cannot keep a %T", v)
			}
		}
		r.Rows = append(r.Rows, spooledRow{Table: row.Into.Name, Values: values})
	}
	body, err := cbor.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding event %s: %w", r.Event, err)
	}
	record := make([]byte, 8, 8+len(body))
	binary.BigEndian.PutUint32(record, uint32(len(body)))
	binary.BigEndian.PutUint32(record[4:], crc32.Checksum(body, castagnoli))
	return s.write(append(record, body...))
}

func (s *Spool) write(record []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return ErrSpoolFull.Because(s.failed)
	}
	f, size := s.files[s.active], s.size[s.active]
	if size == 0 {
		record = append(binary.BigEndian.AppendUint64([]byte(spoolMagic), s.turn), record...)
	}
	if s.size[0]+s.size[1]+int64(len(record)) > s.max {
		return ErrSpoolFull
	}
	if _, err := f.WriteAt(record, size); err != nil {
		// A half-written record would hide those after it.
		if err := f.Truncate(size); err != nil {
			s.failed = err
		}
		return ErrSpoolFull.Because(err)
	}
	s.size[s.active] += int64(len(record))
	s.entries[s.active]++
	s.taken++
	signal(s.dirty)
	signal(s.wake)
	return nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sync brings what was written to the disk, many events' at a time. It ends
// when the spool is closed or the disk fails.
func (s *Spool) sync() {
	for range s.dirty {
		time.Sleep(spoolSync)
		for _, f := range s.files {
			if err := f.Sync(); err != nil {
				s.mu.Lock()
				s.failed = err
				s.mu.Unlock()
				s.log.o.Logger.Error("the spool's disk failed; batched evidence is refused from now on", "error", err)
				return
			}
		}
	}
}

// Run imports what is appended until ctx is done.
func (s *Spool) Run(ctx context.Context) error {
	const whenFailed = time.Second
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
		pause := s.every
		if err := s.drain(ctx); err != nil && ctx.Err() == nil {
			s.log.o.Logger.Error("the spool could not be imported and will be tried again", "error", err)
			signal(s.wake)
			pause = whenFailed
		}
		if !sleep(ctx, pause) {
			return nil
		}
	}
}

// Flush imports what was appended before it was called.
func (s *Spool) Flush(ctx context.Context) error {
	s.mu.Lock()
	until := s.taken
	s.mu.Unlock()
	for {
		s.mu.Lock()
		there := s.imported >= until
		s.mu.Unlock()
		if there {
			return nil
		}
		if err := s.drain(ctx); err != nil {
			return err
		}
	}
}

// Waiting is how many events are only on this node.
func (s *Spool) Waiting() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken - s.imported
}

// Taken is how many events were appended, those found at opening included.
func (s *Spool) Taken() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

// Close lets the files go. What was not imported is by the next one who opens
// the spool.
func (s *Spool) Close() error {
	s.importing.Lock()
	defer s.importing.Unlock()
	s.mu.Lock()
	if s.failed == nil {
		s.failed = errors.New("the spool is closed")
		close(s.dirty) // nobody writes any more, so nobody signals
	}
	s.mu.Unlock()
	s.done.Wait()
	err := s.files[s.active].Sync()
	s.closeFiles()
	return err
}

func (s *Spool) closeFiles() {
	for _, f := range append(s.files[:], s.lock) {
		if f != nil {
			_ = f.Close()
		}
	}
}

// drain imports one file: the one that is not appended to, or if that is empty
// the other one, after it took its place.
func (s *Spool) drain(ctx context.Context) error {
	s.importing.Lock()
	defer s.importing.Unlock()
	s.mu.Lock()
	i := 1 - s.active
	if s.size[i] == 0 {
		i, s.active = s.active, i
		s.turn++
	}
	f, size := s.files[i], s.size[i]
	s.mu.Unlock()
	if size == 0 {
		return nil
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil {
		return err
	}
	_, records, good := parseSpool(b)
	if good != size {
		return fmt.Errorf("the spool is damaged at byte %d of %d", good, size)
	}
	if err := s.store(ctx, records); err != nil {
		return err
	}
	if err := s.log.fault("spool: before it is emptied"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := f.Truncate(0); err != nil {
		return err
	}
	s.imported += s.entries[i]
	s.size[i], s.entries[i] = 0, 0
	return nil
}

// store imports records, those of each tenant in their order.
func (s *Spool) store(ctx context.Context, records []spooled) error {
	byTenant := map[estover.TenantID][]spooled{}
	var order []estover.TenantID
	for _, r := range records {
		t := estover.TenantID(r.Tenant)
		if byTenant[t] == nil {
			order = append(order, t)
		}
		byTenant[t] = append(byTenant[t], r)
	}
	for _, t := range order {
		for all := byTenant[t]; len(all) > 0; {
			n := min(len(all), importBatch)
			if err := s.storeBatch(ctx, t, all[:n]); err != nil {
				return err
			}
			all = all[n:]
		}
	}
	s.log.Wake()
	return nil
}

func (s *Spool) storeBatch(ctx context.Context, tenant estover.TenantID, batch []spooled) error {
	ids := make([]string, len(batch))
	for i, r := range batch {
		ids[i] = r.Event
	}
	var there map[string]bool
	err := s.log.db.View(ctx, tenant, func(tx *db.Tx) (err error) {
		there, err = have(ctx, tx, ids)
		return err
	})
	if err != nil {
		return err
	}
	var missing []spooled
	var rows []db.Row
	for _, r := range batch {
		if there[r.Event] {
			continue
		}
		own, err := s.rows(r)
		if err != nil {
			if err := s.setAside(r, err); err != nil {
				return err
			}
			continue
		}
		missing, rows = append(missing, r), append(rows, own...)
	}
	if len(rows) == 0 {
		return nil
	}
	if err := s.log.fault("spool: before the import"); err != nil {
		return err
	}
	if err := s.log.db.Append(ctx, db.Append{Tenant: tenant, Rows: rows}); err != nil {
		if estover.KindOf(err) == estover.Unavailable || ctx.Err() != nil {
			return err
		}
		return s.oneByOne(ctx, tenant, missing)
	}
	return s.log.fault("spool: after the import")
}

// oneByOne imports each event by itself, and sets those aside that the
// database never takes, so that they do not keep the others back.
func (s *Spool) oneByOne(ctx context.Context, tenant estover.TenantID, records []spooled) error {
	for _, r := range records {
		rows, err := s.rows(r)
		if err == nil {
			err = s.log.db.Append(ctx, db.Append{Tenant: tenant, Rows: rows})
		}
		if err == nil {
			continue
		}
		if estover.KindOf(err) == estover.Unavailable || ctx.Err() != nil {
			return err
		}
		if err := s.setAside(r, err); err != nil {
			return err
		}
	}
	return nil
}

// rows are what a record inserts. It fails for a table of another version of
// the program.
func (s *Spool) rows(r spooled) ([]db.Row, error) {
	var out []db.Row
	for _, row := range r.Rows {
		t := s.tables[row.Table]
		if t == nil || len(t.Columns) != len(row.Values) {
			return nil, fmt.Errorf("the table %s is not the one that the event was written for", row.Table)
		}
		out = append(out, db.Row{Into: t, Values: row.Values})
	}
	return out, nil
}

// setAside keeps a record that cannot be imported in the file "rejected".
func (s *Spool) setAside(r spooled, because error) error {
	s.log.o.Logger.Error("the database refuses an event of the spool; it is set aside", "event", r.Event, "error", because)
	body, err := cbor.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "rejected"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(body); err != nil {
		return err
	}
	return f.Sync()
}
