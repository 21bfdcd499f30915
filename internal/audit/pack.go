package audit

import (
	"cmp"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/mod/sumdb/tlog"

	"estover.dev"
	"estover.dev/internal/db"
)

// The bounds of a pack. Whoever reads one of its events reads the whole row.
const (
	maxPack     = 64       // events
	maxPackSize = 64 << 10 // bytes of their leaves and payloads

	// packSpan is how far apart at most the ids of a pack are in time, so that
	// the packs that may hold an id are few ([NewID]).
	packSpan = 10 * time.Second
)

// The values of a row of [Table], by their places.
const (
	colTenant = iota
	colID
	colAt
	colAction
	colOutcome
	colActor
	colTarget
	colSession
	colTouches
	colTouchedAt
	colLeaf
	colLeafHash
	colPayload
	colN
	colLastID
	colHeads
	columns
)

// A head is what the columns of a single event say, within a pack.
type head struct {
	_       struct{} `cbor:",toarray"`
	ID      string
	At      int64 // microseconds
	Action  string
	Outcome Outcome
	Actor   estover.Subject
	Target  string
	Session string
	Payload int // bytes of it
}

// pack puts events that one commit writes into as few rows as may be: the
// statement that inserts a row and the pages that it touches cost more than
// the event itself ([db.Table.Pack]). An event by which copies go stale keeps a
// row of its own, since nodes look for those. A row that is no [Prepared] event stays
// as it is, between the same neighbours: it is a pack already, as the spool hands in, or
// from a file and like none of ours.
func pack(rows []db.Row) []db.Row {
	var out []db.Row
	for len(rows) > 0 {
		n := packable(rows)
		if n == 1 {
			out = append(out, rows[0])
		} else {
			out = append(out, packed(rows[:n]))
		}
		rows = rows[n:]
	}
	return out
}

// packable is how many of the first rows go into one.
func packable(rows []db.Row) int {
	size := 0
	var first time.Time
	for i, r := range rows[:min(len(rows), maxPack)] {
		p, ok := r.From.(*Prepared)
		if !ok {
			return max(i, 1)
		}
		at, ok := timeOfID(p.head.ID)
		size += len(p.leaf) + len(p.payload)
		if i == 0 {
			first = at
		}
		if !ok || p.touches != "" || size > maxPackSize || at.Sub(first).Abs() > packSpan/2 {
			return max(i, 1)
		}
	}
	return min(len(rows), maxPack)
}

// packed is the row of several events, each of them [Prepared].
func packed(rows []db.Row) db.Row {
	leaves, payloads := 0, 0
	for _, r := range rows {
		p := r.From.(*Prepared)
		leaves += 2 + len(p.leaf)
		payloads += len(p.payload)
	}
	one := rows[0].From.(*Prepared)
	first, last, at := one.head.ID, one.head.ID, one.head.At
	leaf, hash, payload := make([]byte, 0, leaves), make([]byte, 0, len(rows)*tlog.HashSize), make([]byte, 0, payloads)
	heads := appendCount(make([]byte, 0, 192*len(rows)), array, uint64(len(rows)))
	for _, r := range rows {
		p := r.From.(*Prepared)
		h := &p.head
		first, last, at = min(first, h.ID), max(last, h.ID), min(at, h.At)
		leaf = appendEntry(leaf, p.leaf)
		hash = append(hash, p.hash[:]...)
		payload = append(payload, p.payload...)
		heads = appendInt(appendText(appendCount(heads, array, 8), h.ID), h.At)
		for _, text := range [...]string{h.Action, string(h.Outcome), string(h.Actor), h.Target, h.Session} {
			heads = appendText(heads, text)
		}
		heads = appendInt(heads, int64(h.Payload))
	}
	// The columns that cannot speak for all of them have what the first one says, or nothing.
	return db.Row{Into: rows[0].Into, Values: []any{
		string(one.tenant), first, at, one.head.Action, string(one.head.Outcome), "", "", "",
		"", nil, leaf, hash, payload, int64(len(rows)), last, heads,
	}}
}

// appendEntry writes an entry with its length before it, as in an entry bundle
// (C2SP tlog-tiles).
func appendEntry(b, leaf []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(leaf))), leaf...)
}

// errPack says that a pack is not what it was.
var errPack = errors.New("a row of several events cannot be told apart")

// readHeads reads what the columns say of the events of a pack, as [packed] has
// written it.
func readHeads(b []byte, n int64) ([]head, error) {
	return appendHeads(nil, string(b), n)
}

// appendHeads is [readHeads] for many packs, one after the other. Followers and the
// index look at the heads of every event, so nothing is kept of a pack but its text.
func appendHeads(to []head, text string, n int64) ([]head, error) {
	r := headReader{rest: text}
	if r.count(array) != n || n > int64(len(text)) {
		return nil, errPack
	}
	to = slices.Grow(to, int(n))
	for range n {
		if r.count(array) != 8 {
			return nil, errPack
		}
		to = append(to, head{
			ID: r.text(), At: r.int(), Action: r.text(), Outcome: Outcome(r.text()), Actor: estover.Subject(r.text()),
			Target: r.text(), Session: r.text(), Payload: int(r.int()),
		})
	}
	if r.rest != "" || r.bad {
		return nil, errPack
	}
	return to, nil
}

// A headReader reads CBOR (RFC 8949, section 3): counts, text and integers. What
// is anything else makes it bad, for good.
type headReader struct {
	rest string
	bad  bool
}

// item is the major type of the next item, and its argument.
func (r *headReader) item() (major byte, n uint64) {
	if r.bad = r.bad || r.rest == ""; r.bad {
		return 0, 0
	}
	major, n = r.rest[0]&0xe0, uint64(r.rest[0]&0x1f)
	r.rest = r.rest[1:]
	if n < 24 {
		return major, n
	}
	size := 1 << (n - 24)
	if n > 27 || len(r.rest) < size {
		r.bad = true
		return 0, 0
	}
	n = 0
	for _, b := range []byte(r.rest[:size]) {
		n = n<<8 | uint64(b)
	}
	r.rest = r.rest[size:]
	return major, n
}

// count is that of the items in an array, or of the bytes of a text.
func (r *headReader) count(of byte) int64 {
	major, n := r.item()
	if r.bad = r.bad || major != of || n > math.MaxInt32; r.bad {
		return 0
	}
	return int64(n)
}

func (r *headReader) text() string {
	n := r.count(textType)
	if r.bad = r.bad || n > int64(len(r.rest)); r.bad {
		return ""
	}
	s := r.rest[:n]
	r.rest = r.rest[n:]
	return s
}

func (r *headReader) int() int64 {
	major, n := r.item()
	r.bad = r.bad || n > math.MaxInt64 || major != positive && major != negative
	if major == negative {
		return -1 - int64(n)
	}
	return int64(n)
}

// events are the events of a row, each as a row of its own.
func (r row) events() ([]row, error) {
	if r.n == 1 {
		return []row{r}, nil
	}
	heads, err := readHeads(r.heads, r.n)
	if err != nil || len(r.leafHash) != len(heads)*tlog.HashSize {
		return nil, errPack
	}
	out := make([]row, len(heads))
	leaf, payload := r.leaf, r.payload
	first, last, at := heads[0].ID, heads[0].ID, heads[0].At
	for i, h := range heads {
		if len(leaf) < 2 || h.Payload < 0 || len(payload) < h.Payload {
			return nil, errPack
		}
		n := 2 + int(binary.BigEndian.Uint16(leaf))
		if len(leaf) < n {
			return nil, errPack
		}
		e := row{
			seq: r.seq, idx: r.idx, n: 1, leafHash: r.leafHash[i*tlog.HashSize : (i+1)*tlog.HashSize],
			leaf: leaf[2:n:n], payload: payload[:h.Payload:h.Payload],
			event: Event{
				ID: h.ID, At: time.UnixMicro(h.At).UTC(), Action: h.Action, Outcome: h.Outcome, Actor: h.Actor, Target: h.Target, Session: h.Session,
			},
		}
		e.idx.Int64 += int64(i)
		leaf, payload = leaf[n:], payload[h.Payload:]
		first, last, at = min(first, h.ID), max(last, h.ID), min(at, h.At)
		out[i] = e
	}
	if len(leaf)+len(payload) > 0 || first != r.event.ID || last != r.lastID || at != r.event.At.UnixMicro() {
		return nil, errPack
	}
	return out, nil
}

// erased is the payload of a pack, and its heads, without the content of one
// event.
func (r row) erased(id string) (heads, payload []byte, err error) {
	list, err := readHeads(r.heads, r.n)
	if err != nil {
		return nil, nil, err
	}
	rest := r.payload
	for i := range list {
		n := list[i].Payload
		if n < 0 || len(rest) < n {
			return nil, nil, errPack
		}
		if list[i].ID == id {
			list[i].Payload = 0
		} else {
			payload = append(payload, rest[:n]...)
		}
		rest = rest[n:]
	}
	heads, err = cbor.Marshal(list)
	return heads, payload, err
}

// newest orders events by their places, or those without one by their rows, the
// last first.
func newest(rows []row) {
	slices.Reverse(rows) // events of one row stand in their order
	slices.SortStableFunc(rows, func(a, b row) int {
		if a.idx.Valid && b.idx.Valid {
			return cmp.Compare(b.idx.Int64, a.idx.Int64)
		}
		return cmp.Compare(b.seq, a.seq)
	})
}

// timeOfID is when an id was made ([NewID]).
func timeOfID(id string) (at time.Time, ok bool) {
	digits, ok := strings.CutPrefix(id, eventPrefix)
	if !ok || len(digits) != idDigits {
		return at, false
	}
	var b [5]byte
	if n, err := sortable.Decode(b[:], []byte(digits[:timeDigits])); err != nil || n != len(b) {
		return at, false
	}
	return time.UnixMilli(int64(b[0])<<32 | int64(binary.BigEndian.Uint32(b[1:]))), true
}

// latestWith is an upper bound for the ids that may stand in a pack with this
// one, or "" if it is not one of ours.
func latestWith(id string) string {
	at, ok := timeOfID(id)
	if !ok {
		return ""
	}
	var b [5]byte
	ms := at.Add(packSpan).UnixMilli()
	b[0] = byte(ms >> 32)
	binary.BigEndian.PutUint32(b[1:], uint32(ms))
	return eventPrefix + sortable.EncodeToString(b[:]) + strings.Repeat("v", idDigits-timeDigits)
}
