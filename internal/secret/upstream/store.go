package upstream

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/secret"
)

const storeColumns = `id, name, kind, address, options, authorities, login, owner, description, managed_by, created_at, changed_at, epoch`

func scanStore(columns func(...any) error) (s NamedStore, err error) {
	var options string
	err = columns(&s.ID, &s.Name, &s.Kind, &s.Address, &options, &s.Authorities, &s.Login, &s.Owner, &s.Description, &s.ManagedBy, &s.CreatedAt, &s.ChangedAt, &s.epoch)
	if err == nil {
		err = json.Unmarshal([]byte(options), &s.Options)
	}
	return s, err
}

func findStore(ctx context.Context, tx *db.Tx, id string) (NamedStore, error) {
	s, err := scanStore(tx.QueryRow(ctx, `select `+storeColumns+` from secret_store where tenant_id = $1 and id = $2 and ended_at is null`, tx.Tenant(), id).Scan)
	if err == db.ErrNoRows {
		err = ErrNoStore
	}
	return s, err
}

func findNamed(ctx context.Context, tx *db.Tx, name string) (NamedStore, error) {
	s, err := scanStore(tx.QueryRow(ctx, `select `+storeColumns+` from secret_store where tenant_id = $1 and name = $2 and ended_at is null`, tx.Tenant(), name).Scan)
	if err == db.ErrNoRows {
		err = ErrNoStore.With("There is no store %s. See `estover secret store list`.", name)
	}
	return s, err
}

func listStores(ctx context.Context, tx *db.Tx, after string, limit int) ([]NamedStore, error) {
	return db.All(ctx, tx, scanStore, `select `+storeColumns+` from secret_store where tenant_id = $1 and name > $2 and ended_at is null order by name limit $3`, tx.Tenant(), after, limit)
}

// text is something as JSON, as it is stored.
func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("upstream: something that has no JSON: " + err.Error())
	}
	return string(b)
}

func options(m map[string]string) string {
	if m == nil {
		return "{}"
	}
	return text(m)
}

func insertStore(ctx context.Context, tx *db.Tx, s NamedStore) error {
	_, err := tx.Exec(ctx, `insert into secret_store (tenant_id, `+storeColumns+`) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
		tx.Tenant(), s.ID, s.Name, s.Kind, s.Address, options(s.Options), s.Authorities, s.Login, s.Owner, s.Description, s.ManagedBy, s.CreatedAt, s.ChangedAt, s.epoch)
	if db.Taken(err) {
		return ErrChanged
	}
	return err
}

// replaceStore stores a changed store, unless it is no longer as it was read.
func replaceStore(ctx context.Context, tx *db.Tx, was, s NamedStore) error {
	n, err := tx.Exec(ctx, `update secret_store set address = $4, options = $5, authorities = $6, login = $7, owner = $8, description = $9, changed_at = $10, epoch = $11
		where tenant_id = $1 and id = $2 and epoch = $3 and ended_at is null`,
		tx.Tenant(), s.ID, was.epoch, s.Address, options(s.Options), s.Authorities, s.Login, s.Owner, s.Description, s.ChangedAt, s.epoch)
	if err == nil && n == 0 {
		err = ErrChanged
	}
	return err
}

func endStore(ctx context.Context, tx *db.Tx, s NamedStore) error {
	n, err := tx.Exec(ctx, `update secret_store set ended_at = $4, epoch = epoch + 1 where tenant_id = $1 and id = $2 and epoch = $3 and ended_at is null`,
		tx.Tenant(), s.ID, s.epoch, tx.Now())
	if err == nil && n == 0 {
		err = ErrChanged
	}
	return err
}

// sameStore keeps a store as it was read until the transaction commits.
func sameStore(ctx context.Context, tx *db.Tx, s NamedStore) error {
	n, err := tx.Exec(ctx, `update secret_store set epoch = epoch where tenant_id = $1 and id = $2 and epoch = $3 and ended_at is null`, tx.Tenant(), s.ID, s.epoch)
	if err == nil && n == 0 {
		err = ErrChanged
	}
	return err
}

// usesOf is how much is read through a store and how much is pushed to it.
func usesOf(ctx context.Context, tx *db.Tx, id string) (links, syncs int64, err error) {
	err = tx.QueryRow(ctx, `select
			(select count(*) from secret_link l join secret s on s.tenant_id = l.tenant_id and s.id = l.secret_id
				where l.tenant_id = $1 and l.store_id = $2 and s.ended_at is null)
			+ (select count(*) from secret_link_folder f where f.tenant_id = $1 and f.store_id = $2),
			(select count(*) from secret_sync y join secret s on s.tenant_id = y.tenant_id and s.id = y.secret_id
				where y.tenant_id = $1 and y.store_id = $2 and s.ended_at is null)`, tx.Tenant(), id).Scan(&links, &syncs)
	return links, syncs, err
}

// countLinks is how many secrets have been linked to a store.
func countLinks(ctx context.Context, tx *db.Tx, store string) (n int64, err error) {
	err = tx.QueryRow(ctx, `select count(*) from secret_link where tenant_id = $1 and store_id = $2`, tx.Tenant(), store).Scan(&n)
	return n, err
}

// putLink notes that a secret is read through a store, and that nothing is known of
// it yet. Whoever asks at the moment has lost the row.
func putLink(ctx context.Context, tx *db.Tx, id string, to secret.Link, managedBy string) error {
	_, err := tx.Exec(ctx, `insert into secret_link (tenant_id, secret_id, store_id, path, managed_by) values ($1, $2, $3, $4, $5)
		on conflict (tenant_id, secret_id) do update set store_id = excluded.store_id, path = excluded.path, fresh_until = null,
			claimed_by = '', claimed_until = null, fence = secret_link.fence + 1, last_error = ''`, tx.Tenant(), id, to.Store, to.Path, managedBy)
	return err
}

func dropLink(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, `delete from secret_link where tenant_id = $1 and secret_id = $2`, tx.Tenant(), id)
	return err
}

// doubtLinks has everything be looked at again that is read through a store.
func doubtLinks(ctx context.Context, tx *db.Tx, store string) error {
	_, err := tx.Exec(ctx, `update secret_link set fresh_until = null, fence = fence + 1, claimed_by = '', claimed_until = null where tenant_id = $1 and store_id = $2`, tx.Tenant(), store)
	return err
}

func findLink(ctx context.Context, tx *db.Tx, id string) (l Linked, err error) {
	err = tx.QueryRow(ctx, `select store_id, path, fresh_until, claimed_by, claimed_until, fence, last_error from secret_link where tenant_id = $1 and secret_id = $2`,
		tx.Tenant(), id).Scan(&l.store, &l.From, &l.FreshUntil, &l.claimedBy, &l.claimedUntil, &l.fence, &l.LastError)
	if err == db.ErrNoRows {
		err = errOtherwise
	}
	return l, err
}

// claimLink takes the row for a while, unless somebody has taken it since it was read.
func claimLink(ctx context.Context, tx *db.Tx, id string, l *Linked, node string, until time.Time) (bool, error) {
	n, err := tx.Exec(ctx, `update secret_link set claimed_by = $3, claimed_until = $4, fence = fence + 1 where tenant_id = $1 and secret_id = $2 and fence = $5`,
		tx.Tenant(), id, node, until, l.fence)
	if n == 1 {
		l.fence++
	}
	return n == 1, err
}

// hasLink sees whether the row is still had by who has taken it.
func hasLink(ctx context.Context, tx *db.Tx, id string, fence int64) error {
	n, err := tx.Exec(ctx, `update secret_link set fence = fence where tenant_id = $1 and secret_id = $2 and fence = $3`, tx.Tenant(), id, fence)
	if err == nil && n == 0 {
		err = errOtherwise
	}
	return err
}

// settleLink gives the row back, with until when what was found is believed; zero if
// it is not known. Another who has taken the row meanwhile says that themselves.
func settleLink(ctx context.Context, tx *db.Tx, id string, fence int64, until time.Time, why string) error {
	n, err := tx.Exec(ctx, `update secret_link set fresh_until = $4, last_error = $5, claimed_by = '', claimed_until = null
		where tenant_id = $1 and secret_id = $2 and fence = $3`, tx.Tenant(), id, fence, until, why)
	if err == nil && n == 0 && why == "" {
		err = errOtherwise
	}
	return err
}

// linksOf are the secrets that are read through a store, at most 200.
func linksOf(ctx context.Context, tx *db.Tx, store string) ([]Linked, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (l Linked, err error) {
		err = columns(&l.Path, &l.From, &l.FreshUntil, &l.LastError)
		return l, err
	}, `select s.path, l.path, l.fresh_until, l.last_error from secret_link l
		join secret s on s.tenant_id = l.tenant_id and s.id = l.secret_id and s.ended_at is null
		where l.tenant_id = $1 and l.store_id = $2 order by s.path limit 200`, tx.Tenant(), store)
}

// A staleLink is one whose copy has not been believed for a while: until is when it
// was the last time, zero if that is not known.
type staleLink struct {
	tenant       estover.TenantID
	secret, path string
	until        time.Time
}

func staleLinks(ctx context.Context, tx *db.Tx, before time.Time) ([]staleLink, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (l staleLink, err error) {
		err = columns(&l.tenant, &l.secret, &l.path, &l.until)
		return l, err
	}, `select l.tenant_id, l.secret_id, s.path, l.fresh_until from secret_link l
		join secret s on s.tenant_id = l.tenant_id and s.id = l.secret_id and s.ended_at is null
		where l.fresh_until < $1 or l.fresh_until is null and exists (select 1 from secret_version v
			where v.tenant_id = l.tenant_id and v.secret_id = l.secret_id and v.version = s.current_version
				and v.origin <> '' and v.destroyed_at is null and v.created_at < $1)
		order by l.fresh_until limit 500`, before)
}

// sweepEnded forgets what belongs to secrets that are no more.
func sweepEnded(ctx context.Context) func(tx *db.Tx) error {
	return func(tx *db.Tx) error {
		for _, table := range []string{"secret_link", "secret_sync"} {
			_, err := tx.Exec(ctx, `delete from `+table+` where exists (select 1 from secret s
				where s.tenant_id = `+table+`.tenant_id and s.id = `+table+`.secret_id and s.ended_at is not null)`)
			if err != nil {
				return err
			}
		}
		return nil
	}
}

func putFolder(ctx context.Context, tx *db.Tx, f Folder) error {
	_, err := tx.Exec(ctx, `insert into secret_link_folder (tenant_id, prefix, store_id, path, spec, created_by, next_at, managed_by) values ($1, $2, $3, $4, $5, $6, $7, $8)
		on conflict (tenant_id, prefix) do update set store_id = excluded.store_id, path = excluded.path, spec = excluded.spec,
			created_by = excluded.created_by, next_at = excluded.next_at, last_error = ''`,
		tx.Tenant(), f.Path, f.storeID, f.From, text(f.LinkSpec), f.createdBy, f.Next, f.managedBy)
	return err
}

func scanFolder(columns func(...any) error) (f Folder, err error) {
	var spec string
	if err = columns(&spec, &f.storeID, &f.createdBy, &f.Next, &f.LastError); err == nil {
		err = json.Unmarshal([]byte(spec), &f.LinkSpec)
	}
	return f, err
}

func foldersOf(ctx context.Context, tx *db.Tx, store string) ([]Folder, error) {
	return db.All(ctx, tx, scanFolder, `select spec, store_id, created_by, next_at, last_error from secret_link_folder
		where tenant_id = $1 and store_id = $2 order by prefix limit 200`, tx.Tenant(), store)
}

type dueFolder struct {
	tenant estover.TenantID
	folder Folder
}

func dueFolders(ctx context.Context, tx *db.Tx) ([]dueFolder, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (d dueFolder, err error) {
		d.folder, err = scanFolder(func(rest ...any) error { return columns(append([]any{&d.tenant}, rest...)...) })
		return d, err
	}, `select tenant_id, spec, store_id, created_by, next_at, last_error from secret_link_folder
		where next_at <= $1 order by next_at limit 50`, tx.Now())
}

// filled notes how it went with a folder, unless that has been changed since.
func filled(ctx context.Context, tx *db.Tx, f Folder, next time.Time, why string) error {
	_, err := tx.Exec(ctx, `update secret_link_folder set next_at = $5, last_error = $6 where tenant_id = $1 and prefix = $2 and store_id = $3 and next_at = $4`,
		tx.Tenant(), f.Path, f.storeID, f.Next, next, why)
	return err
}

// findLinked is how a path is read through a store. What is said of secrets that are
// made for it is known of a folder alone.
func findLinked(ctx context.Context, tx *db.Tx, path string) (l LinkSpec, err error) {
	var link, spec string
	err = tx.QueryRow(ctx, `select link, '' from secret where tenant_id = $1 and path = $2 and link <> '' and ended_at is null
		union all select '', spec from secret_link_folder where tenant_id = $1 and prefix = $2`, tx.Tenant(), path).Scan(&link, &spec)
	switch {
	case err == db.ErrNoRows:
		return l, secret.ErrNotFound.With("%s is read through no store.", path)
	case err != nil:
		return l, err
	case spec != "":
		return l, json.Unmarshal([]byte(spec), &l)
	}
	var to secret.Link
	if err := json.Unmarshal([]byte(link), &to); err != nil {
		return l, err
	}
	s, err := findStore(ctx, tx, to.Store)
	return LinkSpec{Path: path, Store: s.Name, From: to.Path, TTL: to.TTL}, err
}

// linksKept are the paths that are read through stores as a set of files says.
func linksKept(ctx context.Context, tx *db.Tx, managedBy string) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select s.path from secret_link l join secret s on s.tenant_id = l.tenant_id and s.id = l.secret_id and s.ended_at is null
			where l.tenant_id = $1 and l.managed_by = $2
		union all select prefix from secret_link_folder where tenant_id = $1 and managed_by = $2 order by 1`, tx.Tenant(), managedBy)
}

// folderOwner is who owns the store of a folder.
func folderOwner(ctx context.Context, tx *db.Tx, prefix string) (owner estover.Subject, err error) {
	err = tx.QueryRow(ctx, `select s.owner from secret_link_folder f join secret_store s on s.tenant_id = f.tenant_id and s.id = f.store_id
		where f.tenant_id = $1 and f.prefix = $2`, tx.Tenant(), prefix).Scan(&owner)
	if err == db.ErrNoRows {
		err = secret.ErrNotFound.With("No folder %s is read through a store.", prefix)
	}
	return owner, err
}

func dropFolder(ctx context.Context, tx *db.Tx, prefix string) error {
	_, err := tx.Exec(ctx, `delete from secret_link_folder where tenant_id = $1 and prefix = $2`, tx.Tenant(), prefix)
	return err
}

const (
	syncColumns = `y.id, s.path, t.name, y.path, y.cursor, s.current_version, y.there, y.sent, y.drift, y.drift_at, y.next_at, y.tries, y.last_error,
		y.pushed_at, y.fence, y.created_by, y.created_at, y.managed_by, y.secret_id, y.store_id, t.owner, (select min(v.created_at) from secret_version v
			where v.tenant_id = y.tenant_id and v.secret_id = y.secret_id and v.version > y.cursor and v.version <= s.current_version)`
	syncTables = ` from secret_sync y join secret s on s.tenant_id = y.tenant_id and s.id = y.secret_id and s.ended_at is null
		join secret_store t on t.tenant_id = y.tenant_id and t.id = y.store_id`
)

func scanSync(columns func(...any) error, now time.Time) (s Sync, err error) {
	err = columns(&s.ID, &s.Path, &s.Store, &s.To, &s.Cursor, &s.Current, &s.There, &s.sent, &s.Drift, &s.DriftAt, &s.Next, &s.Tries, &s.LastError,
		&s.PushedAt, &s.fence, &s.CreatedBy, &s.CreatedAt, &s.ManagedBy, &s.secret, &s.store, &s.owner, &s.BehindSince)
	switch {
	case s.Drift != "":
		s.State = Drifted
	case s.Cursor == s.Current:
		s.State = InSync
	default:
		s.State = Behind
	}
	if !s.BehindSince.IsZero() && s.BehindSince.Before(s.CreatedAt) {
		s.BehindSince = s.CreatedAt
	}
	s.Overdue = !s.BehindSince.IsZero() && now.Sub(s.BehindSince) > overdueIn
	return s, err
}

func findSync(ctx context.Context, tx *db.Tx, id string) (Sync, error) {
	s, err := scanSync(tx.QueryRow(ctx, `select `+syncColumns+syncTables+` where y.tenant_id = $1 and y.id = $2`, tx.Tenant(), id).Scan, tx.Now())
	if err == db.ErrNoRows {
		err = ErrNoSync
	}
	return s, err
}

func syncsBy(ctx context.Context, tx *db.Tx, f SyncFilter, after string, limit int) ([]Sync, error) {
	query, args := []string{`select ` + syncColumns + syncTables + ` where y.tenant_id = $1 and y.id > $2`}, []any{tx.Tenant(), after}
	where := func(column, v string) {
		if v != "" {
			args = append(args, v)
			query = append(query, "and "+column+" = $"+strconv.Itoa(len(args)))
		}
	}
	where("s.path", f.Path)
	where("t.name", f.Store)
	where("y.store_id", f.store)
	where("y.path", f.To)
	where("y.managed_by", f.ManagedBy)
	switch f.State {
	case Drifted:
		query = append(query, "and y.drift <> ''")
	case InSync:
		query = append(query, "and y.drift = '' and y.cursor = s.current_version")
	case Behind:
		query = append(query, "and y.drift = '' and y.cursor <> s.current_version")
	}
	if f.Late {
		args = append(args, tx.Now().Add(-overdueIn))
		query = append(query, "and "+lateSync("$"+strconv.Itoa(len(args))))
	}
	args = append(args, limit)
	query = append(query, "order by y.id limit $"+strconv.Itoa(len(args)))
	return db.All(ctx, tx, func(columns func(...any) error) (Sync, error) {
		return scanSync(columns, tx.Now())
	}, strings.Join(query, " "), args...)
}

// lateSync is the condition that a sync has a version to push which was there at a time.
func lateSync(at string) string {
	return `y.created_at < ` + at + ` and exists (select 1 from secret_version v where v.tenant_id = y.tenant_id and v.secret_id = y.secret_id
		and v.version > y.cursor and v.version <= s.current_version and v.created_at < ` + at + `)`
}

// countSyncs counts in the tenant of tx, or in all if it has none.
func countSyncs(ctx context.Context, tx *db.Tx) (p Pushes, err error) {
	err = tx.QueryRow(ctx, `select coalesce(sum(case when `+lateSync("$2")+` then 1 else 0 end), 0), coalesce(sum(case when y.drift <> '' then 1 else 0 end), 0)`+syncTables+`
		where $1 = '' or y.tenant_id = $1`, tx.Tenant(), tx.Now().Add(-overdueIn)).Scan(&p.Overdue, &p.Drifted)
	return p, err
}

func insertSync(ctx context.Context, tx *db.Tx, s Sync) error {
	_, err := tx.Exec(ctx, `insert into secret_sync (tenant_id, id, secret_id, store_id, path, there, next_at, created_by, created_at, managed_by)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`, tx.Tenant(), s.ID, s.secret, s.store, s.To, s.There, s.Next, s.CreatedBy, s.CreatedAt, s.ManagedBy)
	if db.Taken(err) {
		return ErrSyncExists.With("A secret is pushed to %s of the store %s already. See `estover secret sync list --store %s`.", s.To, s.Store, s.Store)
	}
	return err
}

func deleteSync(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, `delete from secret_sync where tenant_id = $1 and id = $2`, tx.Tenant(), id)
	return err
}

// dueSyncs are those of all tenants that are to be looked at, and those whose secret
// has another version than is there and that have not failed.
func dueSyncs(ctx context.Context, tx *db.Tx) ([]db.Place, error) {
	return db.All(ctx, tx, db.ScanPlace, `select y.tenant_id, y.id`+syncTables+`
		where (y.next_at <= $1 or (y.cursor <> s.current_version and y.drift = '' and y.tries = 0)) and (y.claimed_until is null or y.claimed_until <= $1)
			and t.ended_at is null
		order by y.next_at limit 200`, tx.Now())
}

// claimSync takes a sync for a while, unless somebody has it.
func claimSync(ctx context.Context, tx *db.Tx, id, node string, until time.Time) (Sync, error) {
	n, err := tx.Exec(ctx, `update secret_sync set claimed_by = $3, claimed_until = $4, fence = fence + 1
		where tenant_id = $1 and id = $2 and (claimed_until is null or claimed_until <= $5)`, tx.Tenant(), id, node, until, tx.Now())
	if err != nil {
		return Sync{}, err
	}
	if n == 0 {
		return Sync{}, errLost
	}
	s, err := findSync(ctx, tx, id)
	if err == ErrNoSync { // its secret has just been removed
		err = errLost
	}
	return s, err
}

func lost(n int64, err error) error {
	if err == nil && n == 0 {
		err = errLost
	}
	return err
}

// intendSync notes what may be there from now on.
func intendSync(ctx context.Context, tx *db.Tx, s Sync) error {
	return lost(tx.Exec(ctx, `update secret_sync set sent = $4 where tenant_id = $1 and id = $2 and fence = $3`, tx.Tenant(), s.ID, s.fence, s.sent))
}

// arriveSync notes that a version is there, and gives the sync back if it is the last.
func arriveSync(ctx context.Context, tx *db.Tx, s Sync, next time.Time, last bool) error {
	release := ""
	if last {
		release = `, claimed_by = '', claimed_until = null, next_at = $8`
	} else {
		next = tx.Now()
		release = `, next_at = $8`
	}
	return lost(tx.Exec(ctx, `update secret_sync set cursor = $4, there = $5, sent = $6, pushed_at = $7, drift = '', drift_at = null, tries = 0, last_error = ''`+release+`
		where tenant_id = $1 and id = $2 and fence = $3`, tx.Tenant(), s.ID, s.fence, s.Cursor, s.There, db.OrNull(s.sent), tx.Now(), next))
}

// restSync gives a sync back at which there is nothing to do: what stands there is
// what is known of it already.
func restSync(ctx context.Context, tx *db.Tx, s Sync, next time.Time) error {
	at := s.DriftAt
	if s.Drift == "" {
		at = time.Time{}
	}
	return lost(tx.Exec(ctx, `update secret_sync set next_at = $4, drift = $5, drift_at = $6, tries = 0, last_error = '', claimed_by = '', claimed_until = null
		where tenant_id = $1 and id = $2 and fence = $3`, tx.Tenant(), s.ID, s.fence, next, s.Drift, at))
}

func driftSync(ctx context.Context, tx *db.Tx, s Sync, found string, next time.Time) error {
	return lost(tx.Exec(ctx, `update secret_sync set drift = $4, drift_at = $5, next_at = $6, tries = 0, last_error = '', claimed_by = '', claimed_until = null
		where tenant_id = $1 and id = $2 and fence = $3`, tx.Tenant(), s.ID, s.fence, found, tx.Now(), next))
}

// failSync gives a sync back that could not be worked at.
func failSync(ctx context.Context, tx *db.Tx, s Sync, next time.Time, why string) error {
	return lost(tx.Exec(ctx, `update secret_sync set tries = tries + 1, last_error = $4, next_at = $5, claimed_by = '', claimed_until = null
		where tenant_id = $1 and id = $2 and fence = $3`, tx.Tenant(), s.ID, s.fence, why, next))
}

// decide takes what somebody else wrote for what stands there, with the version of
// ours that it is; 0 if it is none and is to be overwritten. Who works at the sync
// has lost it.
func decide(ctx context.Context, tx *db.Tx, s Sync, n int64) error {
	done, err := tx.Exec(ctx, `update secret_sync set cursor = $4, there = $3, drift = '', drift_at = null, next_at = $5, tries = 0, last_error = '',
			claimed_by = '', claimed_until = null, fence = fence + 1
		where tenant_id = $1 and id = $2 and drift = $3`, tx.Tenant(), s.ID, s.Drift, n, tx.Now())
	if err == nil && done == 0 {
		err = ErrSyncMoved
	}
	return err
}

// Release gives back what a node had claimed that was killed.
func (x *Stores) Release(ctx context.Context, node string) error {
	return x.Guard.DB().Do(ctx, "", func(tx *db.Tx) error {
		for _, table := range []string{"secret_link", "secret_sync"} {
			_, err := tx.Exec(ctx, `update `+table+` set claimed_by = '', claimed_until = null, fence = fence + 1 where claimed_by = $1`, node)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func laggards(ctx context.Context, tx *db.Tx, id string, version int64) ([]Place, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (p Place, err error) {
		var drift string
		err = columns(&p.Store, &p.Path, &p.Since, &drift)
		p.Drift = drift != ""
		return p, err
	}, `select t.name, y.path, y.pushed_at, y.drift from secret_sync y join secret_store t on t.tenant_id = y.tenant_id and t.id = y.store_id
		where y.tenant_id = $1 and y.secret_id = $2 and y.cursor < $3 order by t.name, y.path`, tx.Tenant(), id, version)
}
