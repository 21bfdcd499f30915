package secret

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

const secretColumns = `id, path, class, risk, owner, destinations, description, current_version, created_at, updated_at, epoch, mac,
	max_versions, cas_required, delete_after, custom, link, past`

// secretAndCurrent are the columns of a secret s and of its current version v, of
// which there may be none.
var secretAndCurrent = "s." + strings.Join(strings.Fields(strings.ReplaceAll(secretColumns, ",", "")), ", s.") + `,
	coalesce(v.version, 0), coalesce(v.fields, '[]'), v.created_at, coalesce(v.created_by, ''), v.deleted_at, v.destroyed_at,
	coalesce(v.phase, ''), coalesce(v.slot, ''), v.grace_until, v.delete_at, coalesce(v.origin, ''), v.sealed
	from secret s left join secret_version v on v.tenant_id = s.tenant_id and v.secret_id = s.id and v.version = s.current_version `

// scanSecret reads a secret with its current version.
func scanSecret(columns func(...any) error) (*record, error) {
	r := &record{partial: true}
	v := Version{}
	var after int64
	var custom, link string
	var old []byte
	err := columns(&r.ID, &r.Path, &r.Class, &r.Risk, &r.Owner, &r.Destinations, &r.Description, &r.CurrentVersion,
		&r.CreatedAt, &r.UpdatedAt, &r.epoch, &r.mac, &r.MaxVersions, &r.CASRequired, &after, &custom, &link, &old,
		&v.N, &v.Fields, &v.CreatedAt, &v.CreatedBy, &v.DeletedAt, &v.DestroyedAt, &v.Phase, &v.Slot, &v.GraceUntil, &v.DeleteAt, &v.Origin, &v.sealed)
	if err != nil {
		return r, err
	}
	if v.N != 0 {
		r.versions = []Version{v.named(r.ID)}
	}
	if r.past, err = pastOf(old); err != nil {
		return r, ErrTampered.With("The secret %s in the database is not as it was written, so it is not used. Restore it from a backup and find out who changed it.", r.ID)
	}
	r.DeleteAfter = Duration(time.Duration(after) * time.Microsecond)
	if custom != "{}" {
		err = json.Unmarshal([]byte(custom), &r.Custom)
	}
	if link != "" && err == nil {
		err = json.Unmarshal([]byte(link), &r.Link)
	}
	return r, err
}

// findCurrent reads the secret at a path with its current version, in one
// statement.
func findCurrent(ctx context.Context, tx *db.Tx, path string) (*record, error) {
	r, err := scanSecret(tx.QueryRow(ctx, `select `+secretAndCurrent+`
		where s.tenant_id = $1 and s.path = $2 and s.ended_at is null`, tx.Tenant(), path).Scan)
	if err == db.ErrNoRows {
		return nil, ErrNotFound.With("There is no secret %s.", path)
	}
	if err != nil {
		return nil, err
	}
	r.seen = tx.Now()
	return r, nil
}

// find is findCurrent, with all versions if the row is of the first form, whose MAC
// is over all of them.
func find(ctx context.Context, tx *db.Tx, path string) (*record, error) {
	r, err := findCurrent(ctx, tx, path)
	if err != nil {
		return nil, err
	}
	if r.past == nil {
		if err := complete(ctx, tx, r); err != nil {
			return nil, err
		}
		return r, loadSealed(ctx, tx, r, r.CurrentVersion)
	}
	return r, nil
}

// complete reads all versions of a secret, without their values.
func complete(ctx context.Context, tx *db.Tx, r *record) (err error) {
	r.versions, err = versionsOf(ctx, tx, r.ID)
	r.partial = false
	return err
}

// named is a version of a secret with what its columns say by what they are.
func (v Version) named(secret string) Version {
	v.ID, v.State = VersionID(secret, v.N), Live
	if !v.DeletedAt.IsZero() {
		v.State = Deleted
	}
	if !v.DestroyedAt.IsZero() {
		v.State = Destroyed
	}
	return v
}

// customText is custom metadata as it is stored.
func customText(m map[string]string) string {
	if len(m) == 0 {
		return "{}"
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic("secret: a map of strings that has no JSON: " + err.Error())
	}
	return string(b)
}

// versionsOf reads the versions of a secret, the oldest first.
func versionsOf(ctx context.Context, tx *db.Tx, id string) ([]Version, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (v Version, err error) {
		err = columns(&v.N, &v.Fields, &v.CreatedAt, &v.CreatedBy, &v.DeletedAt, &v.DestroyedAt, &v.Phase, &v.Slot, &v.GraceUntil, &v.DeleteAt, &v.Origin)
		return v.named(id), err
	}, `select version, fields, created_at, created_by, deleted_at, destroyed_at, phase, slot, grace_until, delete_at, origin
		from secret_version where tenant_id = $1 and secret_id = $2 order by version`, tx.Tenant(), id)
}

// loadSealed reads the sealed bytes of a version, if there are any.
func loadSealed(ctx context.Context, tx *db.Tx, r *record, n int64) error {
	v := r.version(n)
	if v == nil {
		return nil
	}
	return tx.QueryRow(ctx, `select sealed from secret_version where tenant_id = $1 and secret_id = $2 and version = $3`,
		tx.Tenant(), r.ID, n).Scan(&v.sealed)
}

// findBelow reads a page of the secrets below a prefix.
func findBelow(ctx context.Context, tx *db.Tx, prefix, after string, limit int) ([]*record, error) {
	list, err := db.All(ctx, tx, scanSecret, `select `+secretAndCurrent+`
		where s.tenant_id = $1 and s.ended_at is null and s.path > $2 and substr(s.path, 1, $4) = $3
		order by s.path limit $5`, tx.Tenant(), after, prefix, len([]rune(prefix)), limit)
	if err != nil {
		return nil, err
	}
	for _, r := range list {
		r.seen = tx.Now()
		if r.past != nil {
			continue
		}
		if err := complete(ctx, tx, r); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// insert stores a secret that has no version.
func insert(ctx context.Context, tx *db.Tx, r *record) error {
	_, err := tx.Exec(ctx, `insert into secret (tenant_id, `+secretColumns+`)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)`,
		tx.Tenant(), r.ID, r.Path, r.Class, r.Risk, r.Owner, r.Destinations, r.Description, r.CurrentVersion,
		r.CreatedAt, r.UpdatedAt, r.epoch, r.mac, r.MaxVersions, r.CASRequired, r.DeleteAfter.micros(), customText(r.Custom), r.Link.text(), r.past.bytes())
	if db.Taken(err) {
		return ErrExists.With("There is a secret %s already.", r.Path)
	}
	return err
}

// replace stores a changed secret, unless it is no longer as it was read.
func replace(ctx context.Context, tx *db.Tx, before, after *record, w *write) error {
	n, err := tx.Exec(ctx, `update secret set class = $4, risk = $5, owner = $6, destinations = $7, description = $8,
			current_version = $9, updated_at = $10, epoch = $11, ended_at = $12, mac = $13,
			max_versions = $14, cas_required = $15, delete_after = $16, custom = $17, link = $18, past = $19
		where tenant_id = $1 and id = $2 and epoch = $3 and ended_at is null`,
		tx.Tenant(), before.ID, before.epoch, after.Class, after.Risk, after.Owner, after.Destinations, after.Description,
		after.CurrentVersion, after.UpdatedAt, after.epoch, after.ended, after.mac,
		after.MaxVersions, after.CASRequired, after.DeleteAfter.micros(), customText(after.Custom), after.Link.text(), after.past.bytes())
	if err != nil {
		return err
	}
	if n == 0 {
		return errStale
	}
	for _, n := range after.gone {
		if err := deleteVersion(ctx, tx, after.ID, n); err != nil {
			return err
		}
	}
	for _, was := range before.versions {
		is := after.version(was.N)
		switch {
		case is == nil:
			if err := deleteVersion(ctx, tx, after.ID, was.N); err != nil {
				return err
			}
		case is.State != was.State || is.Phase != was.Phase || !is.DeleteAt.Equal(was.DeleteAt):
			if err := setState(ctx, tx, after.ID, *is); err != nil {
				return err
			}
		}
	}
	if w.version == nil {
		return nil
	}
	v := w.version
	_, err = tx.Exec(ctx, `insert into secret_version (tenant_id, secret_id, version, fields, sealed, created_at, created_by, phase, slot, delete_at, origin)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`, tx.Tenant(), after.ID, v.N, v.Fields, v.sealed, v.CreatedAt, v.CreatedBy, v.Phase, v.Slot, v.DeleteAt, v.Origin)
	if err != nil {
		return err
	}
	for _, p := range w.prints {
		_, err := tx.Exec(ctx, `insert into secret_fingerprint (tenant_id, digest, secret_id, version, field)
			values ($1, $2, $3, $4, $5)`, tx.Tenant(), p.digest, after.ID, v.N, p.field)
		if err != nil {
			return err
		}
	}
	return nil
}

// setState stores the state of a version. A destroyed one loses its bytes.
func setState(ctx context.Context, tx *db.Tx, id string, v Version) error {
	set := `deleted_at = $4, destroyed_at = $5, phase = $6, slot = $7, grace_until = $8, delete_at = $9`
	if v.State == Destroyed {
		set += `, sealed = null`
	}
	_, err := tx.Exec(ctx, `update secret_version set `+set+` where tenant_id = $1 and secret_id = $2 and version = $3`,
		tx.Tenant(), id, v.N, v.DeletedAt, v.DestroyedAt, v.Phase, v.Slot, v.GraceUntil, v.DeleteAt)
	return err
}

// deleteVersion forgets a version that is kept no longer, and what its values
// would be recognised by.
func deleteVersion(ctx context.Context, tx *db.Tx, id string, n int64) error {
	for _, table := range []string{"secret_fingerprint", "secret_version"} {
		if _, err := tx.Exec(ctx, `delete from `+table+` where tenant_id = $1 and secret_id = $2 and version = $3`, tx.Tenant(), id, n); err != nil {
			return err
		}
	}
	return nil
}

// pathsBelow reads the paths of the secrets below a prefix.
func pathsBelow(ctx context.Context, tx *db.Tx, prefix string, visit func(path string)) error {
	rows, err := tx.Query(ctx, `select path from secret
		where tenant_id = $1 and ended_at is null and substr(path, 1, $3) = $2`, tx.Tenant(), prefix, len([]rune(prefix)))
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var path string
		if err := rows.Scan(&path); err != nil {
			return err
		}
		visit(path)
	}
	return rows.Err()
}

const useColumns = `tenant_id, secret_id, version, subject, session_id, via, first_at, last_at, count`

// counting is what becomes of a use that is counted already.
const counting = ` on conflict (tenant_id, secret_id, version, subject, session_id, via) do update set
			count = secret_use.count + excluded.count,
			first_at = case when excluded.first_at < secret_use.first_at then excluded.first_at else secret_use.first_at end,
			last_at = case when excluded.last_at > secret_use.last_at then excluded.last_at else secret_use.last_at end`

// addUse adds to the count of a use.
func addUse(ctx context.Context, tx *db.Tx, k useKey, t tally) error {
	_, err := tx.Exec(ctx, `insert into secret_use (`+useColumns+`) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)`+counting,
		tx.Tenant(), k.secret, k.version, k.subject, k.session, k.via, t.first, t.last, t.count)
	return err
}

// useOf counts a use of a secret whose row still has this epoch.
func useOf(k useKey, epoch int64, t tally) db.Step {
	return db.Step{
		Text: `insert into secret_use (` + useColumns + `)
		select $1, $2, $3, $4, $5, $6, $7, $8, $9 from secret
		where tenant_id = $1 and id = $2 and epoch = $10 and ended_at is null` + counting,
		Args: []any{k.secret, k.version, k.subject, k.session, k.via, t.first, t.last, t.count, epoch},
	}
}

// usesBy reads the uses that a filter names, the latest first.
func usesBy(ctx context.Context, tx *db.Tx, f UseFilter, limit int) ([]Use, error) {
	query := []string{`select u.secret_id, s.path, u.version, u.subject, u.session_id, u.via, u.first_at, u.last_at, u.count
		from secret_use u join secret s on s.tenant_id = u.tenant_id and s.id = u.secret_id
		where u.tenant_id = $1 and u.last_at >= $2`}
	args := []any{tx.Tenant(), f.Since.UnixMicro()}
	where := func(column string, v any) {
		args = append(args, v)
		query = append(query, "and "+column+" = $"+strconv.Itoa(len(args)))
	}
	if f.Since.IsZero() {
		args[1] = int64(0)
	}
	if f.Secret != "" {
		where("u.secret_id", f.Secret)
	}
	if f.Version != 0 {
		where("u.version", f.Version)
	}
	if f.Subject != "" {
		where("u.subject", f.Subject)
	}
	if f.Session != "" {
		where("u.session_id", f.Session)
	}
	if f.Via != "" {
		where("u.via", f.Via)
	}
	args = append(args, limit)
	query = append(query, "order by u.last_at desc, u.secret_id, u.version, u.subject, u.session_id, u.via limit $"+strconv.Itoa(len(args)))
	return db.All(ctx, tx, func(columns func(...any) error) (u Use, err error) {
		err = columns(&u.Secret, &u.Path, &u.Version, &u.Subject, &u.Session, &u.Via, &u.FirstAt, &u.LastAt, &u.Count)
		return u, err
	}, strings.Join(query, " "), args...)
}

// An Exposure is a secret of which somebody has had the value.
type Exposure struct {
	Secret   string
	Path     string
	Class    estover.Class
	Risk     Risk
	Version  int64 // the newest that was read
	Newest   int64 // what is used
	Removed  bool
	Subjects []string // who has read it
	Sessions int64
}

// Exposed are the secrets whose values have left us since a time: those that one
// of these subjects has read, or all if there are none.
func Exposed(ctx context.Context, tx *db.Tx, subjects []estover.Subject, since time.Time) ([]Exposure, error) {
	rows, err := tx.Query(ctx, `select s.id, s.path, s.class, s.risk, u.version, s.current_version, s.ended_at, u.subject, u.session_id
		from secret_use u join secret s on s.tenant_id = u.tenant_id and s.id = u.secret_id
		where u.tenant_id = $1 and u.via = 'plaintext' and u.last_at >= $2 order by s.path, s.id, u.subject, u.session_id`,
		tx.Tenant(), micros(since))
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var list []Exposure
	for rows.Next() {
		var e Exposure
		var ended time.Time
		var subject, session string
		if err := rows.Scan(&e.Secret, &e.Path, &e.Class, &e.Risk, &e.Version, &e.Newest, &ended, &subject, &session); err != nil {
			return nil, err
		}
		if len(subjects) > 0 && !slices.Contains(subjects, estover.Subject(subject)) {
			continue
		}
		if len(list) == 0 || list[len(list)-1].Secret != e.Secret {
			e.Removed = !ended.IsZero()
			list = append(list, e)
		}
		last := &list[len(list)-1]
		last.Version = max(last.Version, e.Version)
		if last.Sessions++; !slices.Contains(last.Subjects, subject) {
			last.Subjects = append(last.Subjects, subject)
		}
	}
	return list, rows.Err()
}

// Find is the secret at a path as if its current version had been read, for who
// knows that it has.
func Find(ctx context.Context, tx *db.Tx, path string) (Exposure, error) {
	r, err := find(ctx, tx, path)
	if err != nil {
		return Exposure{}, err
	}
	return Exposure{Secret: r.ID, Path: r.Path, Class: r.Class, Risk: r.Risk, Version: r.CurrentVersion, Newest: r.CurrentVersion}, nil
}

// Injected are the ids of the secrets that the gateway has used for a subject since
// a time.
func Injected(ctx context.Context, tx *db.Tx, subject estover.Subject, since time.Time) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select distinct secret_id from secret_use
		where tenant_id = $1 and subject = $2 and last_at >= $3 and via = 'gateway' order by secret_id`, tx.Tenant(), subject, micros(since))
}

// A Holder is a use of a version by who may still have it.
type Holder struct {
	Use
	Newer bool // it has read a later version in plaintext since
}

// Holders are all who have used a version, the latest first. What is still in
// memory on a node is not among them.
func Holders(ctx context.Context, tx *db.Tx, secret string, n int64) ([]Holder, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (Holder, error) {
		h := Holder{Use: Use{Secret: secret, Version: n}}
		err := columns(&h.Subject, &h.Session, &h.Via, &h.FirstAt, &h.LastAt, &h.Count, &h.Newer)
		return h, err
	}, `select u.subject, u.session_id, u.via, u.first_at, u.last_at, u.count, exists (
			select 1 from secret_use l where l.tenant_id = u.tenant_id and l.secret_id = u.secret_id and l.version > u.version
				and l.subject = u.subject and l.session_id = u.session_id and l.via = 'plaintext' and l.last_at >= u.last_at)
		from secret_use u where u.tenant_id = $1 and u.secret_id = $2 and u.version = $3
		order by u.last_at desc, u.subject, u.session_id, u.via`, tx.Tenant(), secret, n)
}

// Agents are those that have used a version, by their ids.
func Agents(ctx context.Context, tx *db.Tx, secret string, n int64) ([]string, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (string, error) {
		var s estover.Subject
		err := columns(&s)
		return s.ID(), err
	}, `select distinct subject from secret_use where tenant_id = $1 and secret_id = $2 and version = $3 and subject like 'agent:%' order by subject`,
		tx.Tenant(), secret, n)
}

// printed finds the versions whose values have a fingerprint.
func printed(ctx context.Context, tx *db.Tx, digest []byte) ([]Sighting, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (s Sighting, err error) {
		err = columns(&s.Secret, &s.Path, &s.Version, &s.Field)
		return s, err
	}, `select f.secret_id, s.path, f.version, f.field from secret_fingerprint f
		join secret s on s.tenant_id = f.tenant_id and s.id = f.secret_id
		where f.tenant_id = $1 and f.digest = $2 order by s.path, f.version, f.field`, tx.Tenant(), digest)
}

// findPath is the path of a secret by its id.
func findPath(ctx context.Context, tx *db.Tx, id string) (path string, err error) {
	err = tx.QueryRow(ctx, "select path from secret where tenant_id = $1 and id = $2 and ended_at is null", tx.Tenant(), id).Scan(&path)
	if err == db.ErrNoRows {
		err = ErrNotFound
	}
	return path, err
}
