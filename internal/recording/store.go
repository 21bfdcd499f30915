package recording

import (
	"context"
	"time"

	"estover.dev/internal/db"
)

// Where recordings are kept.
var (
	recordingTable = &db.Table{Name: "recording", Columns: []db.Column{
		{Name: "tenant_id", Type: "text"},
		{Name: "id", Type: "text"},
		{Name: "session_id", Type: "text"},
		{Name: "started_at", Type: "bigint"},
		{Name: "key", Type: "bytes"},
	}}
	segmentTable = &db.Table{Name: "recording_segment", Columns: []db.Column{
		{Name: "tenant_id", Type: "text"},
		{Name: "recording_id", Type: "text"},
		{Name: "n", Type: "bigint"},
		{Name: "digest", Type: "bytes"},
		{Name: "prev", Type: "bytes"},
		{Name: "root", Type: "bytes"},
		{Name: "first_seq", Type: "bigint"},
		{Name: "last_seq", Type: "bigint"},
		{Name: "first_at", Type: "bigint"},
		{Name: "last_at", Type: "bigint"},
		{Name: "size", Type: "bigint"},
		{Name: "event_id", Type: "text"},
	}}
	partTable = &db.Table{Name: "recording_part", Columns: []db.Column{
		{Name: "tenant_id", Type: "text"}, {Name: "recording_id", Type: "text"}, {Name: "digest", Type: "bytes"}, {Name: "size", Type: "bigint"},
	}}
)

// recordingsOf lists the recordings of a session.
func recordingsOf(ctx context.Context, tx *db.Tx, session string) ([]Recording, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (r Recording, err error) {
		var head []byte
		err = columns(&r.ID, &r.Session, &r.StartedAt, &r.EndedAt, &r.ErasedAt, &r.key, &r.Segments, &r.Frames, &r.Size, &head)
		copy(r.Head[:], head)
		return r, err
	}, `select r.id, r.session_id, r.started_at, r.ended_at, r.erased_at, r.key,
			count(s.n), coalesce(sum(s.last_seq - s.first_seq + 1), 0), coalesce(sum(s.size), 0),
			(select h.digest from recording_segment h where h.tenant_id = r.tenant_id and h.recording_id = r.id order by h.n desc limit 1)
		from recording r left join recording_segment s on s.tenant_id = r.tenant_id and s.recording_id = r.id
		where r.tenant_id = $1 and r.session_id = $2
		group by r.tenant_id, r.id, r.session_id, r.started_at, r.ended_at, r.erased_at, r.key
		order by r.started_at, r.id`, tx.Tenant(), session)
}

// A segmentRow is what is known of a segment without opening it.
type segmentRow struct {
	n               int64
	digest, prev    Digest
	root            Digest
	first, last     int64
	firstAt, lastAt time.Time
	event           string
}

// segmentsOf lists the segments of a recording in their order.
func segmentsOf(ctx context.Context, tx *db.Tx, recording string) ([]segmentRow, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (s segmentRow, err error) {
		var digest, prev, root []byte
		err = columns(&s.n, &digest, &prev, &root, &s.first, &s.last, &s.firstAt, &s.lastAt, &s.event)
		copy(s.digest[:], digest)
		copy(s.prev[:], prev)
		copy(s.root[:], root)
		return s, err
	}, `select n, digest, prev, root, first_seq, last_seq, first_at, last_at, event_id
		from recording_segment where tenant_id = $1 and recording_id = $2 order by n`, tx.Tenant(), recording)
}

// exists reports whether the recording has its row.
func exists(ctx context.Context, tx *db.Tx, recording string) (bool, error) {
	return db.Exists(ctx, tx, `select 1 from recording where tenant_id = $1 and id = $2`, tx.Tenant(), recording)
}

// endRecording closes a recording. One that is closed stays as it is.
func endRecording(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, `update recording set ended_at = $3 where tenant_id = $1 and id = $2 and ended_at is null`,
		tx.Tenant(), id, tx.Now())
	return err
}

// eraseRecordings destroys the keys of a session's recordings and says how
// many recordings it has.
func eraseRecordings(ctx context.Context, tx *db.Tx, session string) (int64, error) {
	return tx.Exec(ctx, `update recording set key = null, erased_at = coalesce(erased_at, $3), ended_at = coalesce(ended_at, $3), epoch = epoch + 1
		where tenant_id = $1 and session_id = $2`, tx.Tenant(), session, tx.Now())
}

// known reports whether a row of the tenant names the blob.
func known(ctx context.Context, tx *db.Tx, d Digest) (bool, error) {
	return db.Exists(ctx, tx, `select 1 from recording_segment where tenant_id = $1 and digest = $2
		union all select 1 from recording_part where tenant_id = $1 and digest = $2 limit 1`, tx.Tenant(), d[:])
}
