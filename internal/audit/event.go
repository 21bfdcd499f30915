package audit

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

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

	// Touches names, as kind:id, the rows whose copies in memory are stale
	// once the event is there. It is kept beside the event, not in it.
	Touches []string `json:"-"`
	// Leaf is the entry of the log if it is meant to be shown as it is, a
	// statement for a receipt; otherwise the entry is a commitment to the
	// event. At most 65,535 bytes, no personal data.
	Leaf []byte `json:"-"`
}

// A Prepared event is ready to be written: its payload is sealed and its leaf
// hashed, so that neither happens inside a transaction.
type Prepared struct {
	tenant  estover.TenantID
	event   Event
	leaf    []byte
	hash    tlog.Hash
	payload []byte
}

// maxLeaf is the longest entry that an entry bundle can hold (C2SP
// tlog-tiles: a length of 16 bits).
const maxLeaf = 1<<16 - 1

// payload is what is sealed: the event, and a salt that makes a commitment to
// it impossible to guess.
type payload struct {
	Event
	Salt []byte `json:"salt"`
}

// leafOf is the entry of an event that is not meant to be shown.
type leafOf struct {
	Version int       `json:"v"`
	ID      string    `json:"id"`
	At      time.Time `json:"at"`
	Action  string    `json:"action"`
	Outcome Outcome   `json:"outcome"`
	Commit  string    `json:"commit"` // SHA-256 of the payload, which holds 256 random bits
}

func leafFor(e Event, plain []byte) leafOf {
	sum := sha256.Sum256(plain)
	return leafOf{1, e.ID, e.At, e.Action, e.Outcome, base64.StdEncoding.EncodeToString(sum[:])}
}

// Prepare seals the event and makes its leaf. It does no I/O.
func (l *Log) Prepare(tenant estover.TenantID, e Event) (Prepared, error) {
	var salt [32]byte
	_, _ = rand.Read(salt[:]) // never fails
	plain, err := json.Marshal(payload{e, salt[:]})
	if err != nil {
		return Prepared{}, fmt.Errorf("encoding event %s: %w", e.ID, err)
	}
	p := Prepared{tenant: tenant, event: e, leaf: e.Leaf}
	if p.leaf == nil {
		if p.leaf, err = json.Marshal(leafFor(e, plain)); err != nil {
			return Prepared{}, fmt.Errorf("encoding the leaf of event %s: %w", e.ID, err)
		}
	}
	if len(p.leaf) > maxLeaf {
		return Prepared{}, fmt.Errorf("the leaf of event %s has %d bytes, more than %d", e.ID, len(p.leaf), maxLeaf)
	}
	p.hash = tlog.RecordHash(p.leaf)
	p.payload, err = l.o.Seal(tenant, e.ID, plain)
	if err != nil {
		return Prepared{}, fmt.Errorf("sealing event %s: %w", e.ID, err)
	}
	return p, nil
}

// Table is where events are kept, for [db.DB.Append].
var Table = &db.Table{Name: "audit", Columns: []db.Column{
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
}}

// LeafHash is the hash of the event's leaf in the tree (RFC 6962, section 2.1).
func (p Prepared) LeafHash() tlog.Hash { return p.hash }

// Row is the event as a row of [Table].
func (p Prepared) Row() db.Row {
	e := p.event
	var touched any
	if len(e.Touches) > 0 {
		touched = e.At.UnixMicro()
	}
	return db.Row{Into: Table, Values: []any{
		string(p.tenant), e.ID, e.At.UnixMicro(), e.Action, string(e.Outcome), string(e.Actor),
		e.Target, e.Session, strings.Join(e.Touches, " "), touched, p.leaf, p.hash[:], p.payload,
	}}
}

// Write adds the event to the transaction of what it records.
func (l *Log) Write(ctx context.Context, tx *db.Tx, p Prepared) error { return tx.Insert(ctx, p.Row()) }
