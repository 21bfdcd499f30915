package audit

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"

	"estover.dev"
	"estover.dev/internal/db"
)

// An Outcome says what became of an operation.
type Outcome string

// The outcomes.
const (
	Done    Outcome = "done"    // allowed, and it happened
	Refused Outcome = "refused" // policy said no, and nothing happened
	Failed  Outcome = "failed"  // allowed, and it came to nothing or was undone
)

// An Event is one entry of the log: who did what to what, and how it ended.
type Event struct {
	ID      string          `json:"id"`
	At      time.Time       `json:"at"`
	Action  string          `json:"action"`
	Outcome Outcome         `json:"outcome"`
	Actor   estover.Subject `json:"actor"`
	Target  string          `json:"target,omitempty"`  // kind:id
	Session string          `json:"session,omitempty"` // the task that it belongs to
	Request string          `json:"request,omitempty"`
	Detail  map[string]any  `json:"detail,omitempty"`

	// Members are further members of the detail, encoded already, with a comma
	// before each: `,"a":1,"b":"c"`. None of them is in Detail. An event that is
	// read has them there.
	Members []byte `json:"-"`
	// Touches names, as kind:id, the rows whose copies in memory are stale
	// once the event is there. It is kept beside the event, not in it.
	Touches []string `json:"-"`
	// Leaf is the entry of the log if it is meant to be shown as it is, a
	// statement for a receipt; otherwise the entry is a commitment to the
	// event. At most 65,535 bytes, no personal data.
	Leaf []byte `json:"-"`
}

// NewID makes a name for an event that nobody can guess. With nothing but chance in
// their names each would write to a page of the index of its own, a third of what
// recording it costs.
func NewID() string { return estover.NewOrderedID("evt") }

// OnceID is the id of an event that there may be once: it follows from what the
// event is about, and tells no time. An event that touches something has a row to
// itself, and of those none has the id of another.
func OnceID(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		_ = binary.Write(h, binary.BigEndian, uint32(len(p))) // a hash takes everything
		h.Write([]byte(p))
	}
	var b [20]byte
	copy(b[timeDigits*5/8:], h.Sum(nil))
	return eventPrefix + sortable.EncodeToString(b[:])
}

// The form of ids: digits of 5 bits each, after the prefix.
const (
	eventPrefix = "evt_"
	idDigits    = 32
	timeDigits  = 8
)

// sortable is base32hex (RFC 4648, section 7), whose digits sort as what they
// stand for, in small letters.
var sortable = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// A Prepared event is ready to be written: its payload is sealed and its leaf
// hashed, so that neither happens inside a transaction. What else was told of it
// stands in the payload alone.
type Prepared struct {
	tenant  estover.TenantID
	head    head
	touches string
	leaf    []byte
	hash    tlog.Hash
	payload []byte
}

// maxLeaf is the longest entry that an entry bundle can hold (C2SP
// tlog-tiles: a length of 16 bits).
const maxLeaf = 1<<16 - 1

// leafOf is the entry of an event that is not meant to be shown.
type leafOf struct {
	Version int       `json:"v"`
	ID      string    `json:"id"`
	At      time.Time `json:"at"`
	Action  string    `json:"action"`
	Outcome Outcome   `json:"outcome"`
	Commit  string    `json:"commit"` // SHA-256 of the payload, which holds 256 random bits
}

// buffers hold payloads until they are sealed.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}

// Prepare seals the event, with a salt that makes a commitment to it impossible
// to guess, and makes its leaf. It does no I/O.
func (l *Log) Prepare(tenant estover.TenantID, e Event) (Prepared, error) {
	e.Actor, e.Target, e.Session, e.Request = estover.Subject(text(string(e.Actor))), text(e.Target), text(e.Session), text(e.Request)
	var salt [32]byte
	_, _ = rand.Read(salt[:]) // never fails
	buffer := buffers.Get().(*[]byte)
	defer func() {
		clear(*buffer)
		buffers.Put(buffer)
	}()
	plain, err := appendPayload((*buffer)[:0], &e, salt[:])
	if err != nil {
		return Prepared{}, fmt.Errorf("encoding event %s: %w", e.ID, err)
	}
	*buffer = plain
	p := Prepared{tenant: tenant, touches: strings.Join(e.Touches, " "), leaf: e.Leaf, head: head{
		ID: e.ID, At: e.At.UnixMicro(), Action: e.Action, Outcome: e.Outcome, Actor: e.Actor, Target: e.Target, Session: e.Session,
	}}
	if p.leaf == nil {
		sum := sha256.Sum256(plain)
		p.leaf = appendLeaf(make([]byte, 0, 256), &e, sum[:])
	}
	if len(p.leaf) > maxLeaf {
		return Prepared{}, fmt.Errorf("the leaf of event %s has %d bytes, more than %d", e.ID, len(p.leaf), maxLeaf)
	}
	p.hash = tlog.RecordHash(p.leaf)
	p.payload, err = l.o.Seal(tenant, e.ID, plain)
	if err != nil {
		return Prepared{}, fmt.Errorf("sealing event %s: %w", e.ID, err)
	}
	p.head.Payload = len(p.payload)
	return p, nil
}

// text is s without what not every database takes as text: a refused attempt
// names its target as it was asked for, and must be on record all the same.
func text(s string) string {
	if utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
		return s
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// Table is where events are kept, for [db.DB.Append]. On SQLite an event gets
// its place as it is inserted: whoever writes next sees this one. Those of
// several callers are packed.
var Table = &db.Table{
	Name: "audit",
	Columns: []db.Column{
		{Name: "tenant_id", Type: "text"},
		{Name: "id", Type: "text"},
		{Name: "at", Type: "bigint"},
		{Name: "action", Type: "text"},
		{Name: "outcome", Type: "text"},
		{Name: "actor", Type: "text"},
		{Name: "target", Type: "text"},
		{Name: "session_id", Type: "text"},
		{Name: "touches", Type: "text"},
		{Name: "touched_at", Type: "bigint"},
		{Name: "leaf", Type: "bytes"},
		{Name: "leaf_hash", Type: "bytes"},
		{Name: "payload", Type: "bytes"},
		{Name: "n", Type: "bigint"},
		{Name: "last_id", Type: "text"},
		{Name: "heads", Type: "bytes"},
	},
	Computed: []db.Computed{{
		Name: "idx", Expr: "coalesce((select idx + n from audit where tenant_id = ?1 and idx is not null order by idx desc limit 1), 0)",
	}},
	Pack: pack,
}

// LeafHash is the hash of the event's leaf in the tree (RFC 6962, section 2.1).
func (p Prepared) LeafHash() tlog.Hash { return p.hash }

// Row is the event as a row of [Table].
func (p Prepared) Row() db.Row { return db.Row{Into: Table, From: &p} }

// Values are those of the columns of [Table].
func (p *Prepared) Values() []any {
	h := &p.head
	var touched any
	if p.touches != "" {
		touched = h.At
	}
	return []any{
		string(p.tenant), h.ID, h.At, h.Action, string(h.Outcome), string(h.Actor), h.Target, h.Session,
		p.touches, touched, p.leaf, p.hash[:], p.payload, int64(1), "", nil,
	}
}

// preparedOf is the event whose values these are ([Prepared.Values]), if they are those
// of one.
func preparedOf(v []any) (p Prepared, ok bool) {
	if len(v) != columns {
		return p, false
	}
	text := func(col int) string { s, _ := v[col].(string); return s }
	bytes := func(col int) []byte { b, _ := v[col].([]byte); return b }
	at, _ := v[colAt].(int64)
	p = Prepared{
		tenant: estover.TenantID(text(colTenant)), touches: text(colTouches), leaf: bytes(colLeaf), payload: bytes(colPayload),
		head: head{
			ID: text(colID), At: at, Action: text(colAction), Outcome: Outcome(text(colOutcome)), Actor: estover.Subject(text(colActor)),
			Target: text(colTarget), Session: text(colSession), Payload: len(bytes(colPayload)),
		},
	}
	copy(p.hash[:], bytes(colLeafHash))
	return p, reflect.DeepEqual(p.Values(), v)
}

// Write adds the event to the transaction of what it records. Nothing in the transaction
// finds it there.
func (l *Log) Write(ctx context.Context, tx *db.Tx, p Prepared) error { return tx.Join(ctx, p.Row()) }
