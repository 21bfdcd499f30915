package audit

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
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
// machine's loss takes along are the few hundredths of a second until the next
// fsync.
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
	held     [2][]entry // what is in the file, as long as all of it is here
	room     int64      // bytes that may still be held
	active   int        // the file that is appended to
	turn     uint64     // of the active file; the other's is lower
	unsynced [2]bool    // something was written since the last fsync began
	taken    int64      // events ever appended, with those found at opening
	imported int64      // events ever imported
	failed   error      // why nothing more is taken
}

// SpoolOptions are what an operator may set. The zero value is good.
type SpoolOptions struct {
	Max    int64         // bytes that may wait; 64 MiB if zero
	Every  time.Duration // how long events are gathered before they are imported; 100 ms if zero
	Tables []*db.Table   // what other rows come with events, beside those of [Table]
}

// An entry is an event on its way into the database: what a record of a file
// says. While the process that wrote a file lives, it need not read it again.
type entry struct {
	event Prepared
	with  []db.Row // the rows that belong to it
	size  int64    // of its record

	// foreign says that the file has another row for the event than we would write. That
	// stands first in with, and of event there is the tenant and the id alone.
	foreign bool
}

// rows are what is inserted, the event first. That of an event rests on the entry, and is
// not looked at once that is let go.
func (e *entry) rows() iter.Seq[db.Row] {
	return func(yield func(db.Row) bool) {
		if !e.foreign && !yield(db.Row{Into: Table, From: &e.event}) {
			return
		}
		for _, r := range e.with {
			if !yield(r) {
				return
			}
		}
	}
}

// maxKept is of how many entries at most the room in memory is used again once they are
// imported.
const maxKept = 8 << 10

// maxHeld is how much of what waits is held in memory. When the database is
// away for longer, the files alone have it.
const maxHeld = 16 << 20

// spoolSync is how long at most a written event waits for its fsync to begin.
const spoolSync = 20 * time.Millisecond

// spoolKeeps is how long a file stays that was imported.
const spoolKeeps = 8 << 20

// importBatch is how many events are imported by one commit.
const importBatch = 1024

// A file begins with this and the number of its turn, which is 0 once it was
// imported. It keeps its length: to write over what is there costs half of what
// it costs to make a file longer, and an fsync has no length to bring to the
// disk.
const (
	spoolMagic  = "estspol2"
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
		log: l, dir: dir, max: cmp.Or(o.Max, 64<<20), every: cmp.Or(o.Every, 100*time.Millisecond),
		room: maxHeld, tables: map[string]*db.Table{Table.Name: Table}, wake: make(chan struct{}, 1), dirty: make(chan struct{}, 1),
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
		turns[i], s.size[i], s.entries[i] = turn, good, int64(len(records))
		s.taken += s.entries[i]
	}
	// The one that was appended to last goes on; the other is imported first.
	if turns[1] > turns[0] {
		s.active = 1
	}
	if s.turn = max(turns[0], turns[1]); s.turn == 0 {
		// Any number that no turn of earlier processes had.
		s.turn = uint64(time.Now().UnixNano())
	}
	if s.taken > 0 {
		signal(s.wake)
	}
	return nil
}

// parseSpool reads a file: its turn, its records, and how many bytes of it they
// take. It stops at what is no whole record of this turn: the rest is of an
// earlier one, or a write that the machine's end cut in half, which nobody was
// told was kept.
func parseSpool(b []byte) (turn uint64, records []spooled, good int64) {
	if int64(len(b)) < spoolHeader || string(b[:len(spoolMagic)]) != spoolMagic {
		return 0, nil, 0
	}
	if turn = binary.BigEndian.Uint64(b[len(spoolMagic):]); turn == 0 {
		return 0, nil, 0
	}
	good = spoolHeader
	for {
		rest := b[good:]
		if len(rest) < 8 {
			return turn, records, good
		}
		n, sum := binary.BigEndian.Uint32(rest), binary.BigEndian.Uint32(rest[4:])
		if uint64(len(rest)) < 8+uint64(n) || checksum(turn, rest[8:8+n]) != sum {
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

// checksum is that of a record. What is left of an earlier turn has another.
func checksum(turn uint64, body []byte) uint32 {
	sum := ^uint32(0)
	for shift := 56; shift >= 0; shift -= 8 { // the bytes of the turn, for which the library would want a slice
		sum = castagnoli[byte(sum)^byte(turn>>shift)] ^ sum>>8
	}
	return crc32.Update(^sum, castagnoli, body)
}

// Append keeps an event, and the rows that belong to it, until they are
// imported together. It returns after the write: then the event outlives this
// process.
func (s *Spool) Append(p Prepared, with ...db.Row) error {
	e := entry{event: p, with: slices.Clone(with)}
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	record, err := s.encode(append((*buffer)[:0], make([]byte, 8)...), &e)
	if err != nil {
		return err
	}
	*buffer = record
	body := record[8:]
	binary.BigEndian.PutUint32(record, uint32(len(body)))
	e.size = int64(len(record))
	return s.write(record, &e)
}

// encode writes an entry as the CBOR of a [spooled].
func (s *Spool) encode(b []byte, e *entry) ([]byte, error) {
	p := &e.event
	b = appendText(appendText(appendCount(b, array, 3), string(p.tenant)), p.head.ID)
	b = p.appendRow(appendCount(b, array, uint64(1+len(e.with))))
	for _, row := range e.with {
		if s.tables[row.Into.Name] != row.Into {
			return nil, fmt.Errorf("the spool does not know the table %s", row.Into.Name)
		}
		values := row.All()
		b = appendText(appendCount(b, array, 2), row.Into.Name)
		b = appendCount(b, array, uint64(len(values)))
		for _, v := range values {
			var err error
			if b, err = appendColumn(b, v); err != nil {
				return nil, err
			}
		}
	}
	return b, nil
}

// appendRow writes the event as the CBOR of a [spooledRow] of its [Prepared.Values].
func (p *Prepared) appendRow(b []byte) []byte {
	h := &p.head
	b = appendCount(appendText(appendCount(b, array, 2), Table.Name), array, columns)
	b = appendInt(appendText(appendText(b, string(p.tenant)), h.ID), h.At)
	for _, text := range [...]string{h.Action, string(h.Outcome), string(h.Actor), h.Target, h.Session, p.touches} {
		b = appendText(b, text)
	}
	if p.touches != "" {
		b = appendInt(b, h.At)
	} else {
		b = append(b, nullValue)
	}
	b = appendBytes(appendBytes(appendBytes(b, p.leaf), p.hash[:]), p.payload)
	return append(appendText(appendInt(b, 1), ""), nullValue)
}

// appendColumn writes a value of a column.
func appendColumn(b []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(b, nullValue), nil
	case bool:
		if v {
			return append(b, trueValue), nil
		}
		return append(b, falseValue), nil
	case int:
		return appendInt(b, int64(v)), nil
	case int64:
		return appendInt(b, v), nil
	case time.Time:
		return appendColumn(b, db.Micros(v))
	case string:
		return appendText(b, v), nil
	case []byte:
		return appendBytes(b, v), nil
	}
	return nil, fmt.Errorf("the spool cannot keep a %T", v)
}

// The major types of CBOR that are written here, and the values that are a byte of
// their own (RFC 8949, sections 3.1 and 3.3).
const (
	positive  = 0 << 5
	negative  = 1 << 5
	bytesType = 2 << 5
	textType  = 3 << 5
	array     = 4 << 5

	falseValue = 0xf4
	trueValue  = 0xf5
	nullValue  = 0xf6
)

func appendCount(b []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}

func appendInt(b []byte, n int64) []byte {
	if n < 0 {
		return appendCount(b, negative, uint64(^n))
	}
	return appendCount(b, positive, uint64(n))
}

func appendText(b []byte, s string) []byte {
	return append(appendCount(b, textType, uint64(len(s))), s...)
}

func appendBytes(b, v []byte) []byte {
	return append(appendCount(b, bytesType, uint64(len(v))), v...)
}

func (s *Spool) write(record []byte, e *entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return ErrSpoolFull.Because(s.failed)
	}
	i := s.active
	f, size := s.files[i], s.size[i]
	binary.BigEndian.PutUint32(record[4:], checksum(s.turn, record[8:]))
	if size == 0 {
		record = append(binary.BigEndian.AppendUint64([]byte(spoolMagic), s.turn), record...)
	}
	if s.size[0]+s.size[1]+int64(len(record)) > s.max {
		return ErrSpoolFull
	}
	if _, err := f.WriteAt(record, size); err != nil {
		return ErrSpoolFull.Because(err) // the next one is written over what there is of it
	}
	if int64(len(s.held[i])) == s.entries[i] {
		if s.room >= e.size {
			s.held[i] = append(s.held[i], *e)
			s.room -= e.size
		} else {
			s.release(i)
		}
	}
	s.size[i] += int64(len(record))
	s.entries[i]++
	s.taken++
	s.unsynced[i] = true
	signal(s.dirty)
	signal(s.wake)
	return nil
}

// release lets go of what is held of a file, and gives it. s.mu is held.
func (s *Spool) release(file int) []entry {
	held := s.held[file]
	s.held[file] = nil
	for i := range held {
		s.room += held[i].size
	}
	return held
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
		s.mu.Lock()
		which := s.unsynced
		s.unsynced = [2]bool{}
		s.mu.Unlock()
		for i, f := range s.files {
			if !which[i] {
				continue
			}
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
	entries := s.release(i)
	// What is held is what this process wrote since the file was empty, and was
	// never imported. Of what is read from the file that is not known.
	fresh := int64(len(entries)) == s.entries[i]
	s.mu.Unlock()
	if size == 0 {
		return nil
	}
	if !fresh {
		var err error
		if entries, err = s.read(f, size); err != nil {
			return err
		}
	}
	if err := s.store(ctx, entries, fresh); err != nil {
		return err
	}
	if err := s.log.fault("spool: before it is emptied"); err != nil {
		return err
	}
	if size > spoolKeeps {
		err := f.Truncate(0)
		if err != nil {
			return err
		}
	} else if _, err := f.WriteAt(make([]byte, 8), int64(len(spoolMagic))); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.imported += s.entries[i]
	s.size[i], s.entries[i] = 0, 0
	if fresh && cap(entries) <= maxKept {
		clear(entries)
		s.held[i] = entries[:0]
	}
	return nil
}

// read reads a file, and sets aside what is of another version of the program.
func (s *Spool) read(f *os.File, size int64) ([]entry, error) {
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, err
	}
	_, records, good := parseSpool(b)
	if good != size {
		return nil, fmt.Errorf("the spool is damaged at byte %d of %d", good, size)
	}
	entries := make([]entry, 0, len(records))
	for _, r := range records {
		e, err := s.entry(r)
		if err != nil {
			if err := s.setAside(r, err); err != nil {
				return nil, err
			}
			continue
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// store imports entries, those of each tenant in their order. Unless they are
// fresh, some may be in the database already.
func (s *Spool) store(ctx context.Context, entries []entry, fresh bool) error {
	byTenant := map[estover.TenantID][]*entry{}
	var order []estover.TenantID
	for i := range entries {
		e := &entries[i]
		t := e.event.tenant
		all := byTenant[t]
		if all == nil {
			order = append(order, t)
		}
		byTenant[t] = append(all, e)
	}
	for _, t := range order {
		for all := byTenant[t]; len(all) > 0; {
			n := min(len(all), importBatch)
			if err := s.storeBatch(ctx, t, all[:n], fresh); err != nil {
				return err
			}
			all = all[n:]
		}
	}
	s.log.Wake()
	return nil
}

// storeBatch packs the events before it hands them over: there everybody would wait for
// it.
func (s *Spool) storeBatch(ctx context.Context, tenant estover.TenantID, batch []*entry, fresh bool) error {
	if !fresh {
		var err error
		if batch, err = s.missing(ctx, tenant, batch); err != nil || len(batch) == 0 {
			return err
		}
	}
	events := make([]db.Row, 0, len(batch))
	var others []db.Row
	for _, e := range batch {
		for r := range e.rows() {
			if r.Into == Table {
				events = append(events, r)
			} else {
				others = append(others, r)
			}
		}
	}
	rows := append(pack(events), others...)
	if err := s.log.fault("spool: before the import"); err != nil {
		return err
	}
	if err := s.log.db.Append(ctx, db.Append{Tenant: tenant, Rows: rows}); err != nil {
		if estover.KindOf(err) == estover.Unavailable || ctx.Err() != nil {
			return err
		}
		return s.oneByOne(ctx, batch)
	}
	return s.log.fault("spool: after the import")
}

// missing are the entries whose events are not in the database.
func (s *Spool) missing(ctx context.Context, tenant estover.TenantID, batch []*entry) (missing []*entry, err error) {
	ids := make([]string, len(batch))
	for i, e := range batch {
		ids[i] = e.event.head.ID
	}
	var there map[string]bool
	err = s.log.db.View(ctx, tenant, func(tx *db.Tx) (err error) {
		there, err = have(ctx, tx, ids)
		return err
	})
	for _, e := range batch {
		if !there[e.event.head.ID] {
			missing = append(missing, e)
		}
	}
	return missing, err
}

// oneByOne imports each event by itself, and sets those aside that the
// database never takes, so that they do not keep the others back.
func (s *Spool) oneByOne(ctx context.Context, entries []*entry) error {
	for _, e := range entries {
		err := s.log.db.Append(ctx, db.Append{Tenant: e.event.tenant, Rows: slices.Collect(e.rows())})
		if err == nil {
			continue
		}
		if estover.KindOf(err) == estover.Unavailable || ctx.Err() != nil {
			return err
		}
		if err := s.setAside(spooledOf(e), err); err != nil {
			return err
		}
	}
	return nil
}

// spooledOf is an entry as a record.
func spooledOf(e *entry) spooled {
	r := spooled{Tenant: string(e.event.tenant), Event: e.event.head.ID}
	for row := range e.rows() {
		r.Rows = append(r.Rows, spooledRow{Table: row.Into.Name, Values: row.All()})
	}
	return r
}

// entry is what a record inserts. It fails for a table of another version of the
// program.
func (s *Spool) entry(r spooled) (e entry, err error) {
	for i, row := range r.Rows {
		t := s.tables[row.Table]
		if t == nil || len(t.Columns) != len(row.Values) {
			return e, fmt.Errorf("the table %s is not the one that the event was written for", row.Table)
		}
		if i == 0 && t == Table {
			p, ok := preparedOf(row.Values)
			if ok && string(p.tenant) == r.Tenant && p.head.ID == r.Event {
				e.event = p
				continue
			}
		}
		e.with = append(e.with, db.Row{Into: t, Values: row.Values})
	}
	if len(e.with) == len(r.Rows) {
		e.foreign = true
		e.event.tenant, e.event.head.ID = estover.TenantID(r.Tenant), r.Event
	}
	return e, nil
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
