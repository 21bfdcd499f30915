package pki

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

const keyColumns = `id, mount, name, algorithm, public, sealed, created_at`

func scanKey(columns func(...any) error) (k Key, err error) {
	err = columns(&k.ID, &k.Mount, &k.Name, &k.Algorithm, &k.public, &k.sealed, &k.CreatedAt)
	return k, err
}

func insertKey(ctx context.Context, tx *db.Tx, k *Key) error {
	_, err := tx.Exec(ctx, `insert into pki_key (tenant_id, `+keyColumns+`) values ($1, $2, $3, $4, $5, $6, $7, $8)`,
		tx.Tenant(), k.ID, k.Mount, k.Name, k.Algorithm, k.public, k.sealed, k.CreatedAt)
	if db.Taken(err) {
		return ErrExists.With("There is a key %s already.", k.Name)
	}
	return err
}

func findKeys(ctx context.Context, tx *db.Tx, mount string) ([]Key, error) {
	return db.All(ctx, tx, scanKey, `select `+keyColumns+` from pki_key where tenant_id = $1 and mount = $2 order by name, id limit 1000`, tx.Tenant(), mount)
}

// findKey reads a key of a mount by its id or its name.
func findKey(ctx context.Context, tx *db.Tx, mount, ref string) (*Key, error) {
	k, err := scanKey(tx.QueryRow(ctx, `select `+keyColumns+` from pki_key where tenant_id = $1 and mount = $2 and (id = $3 or name = $3 and name <> '')`,
		tx.Tenant(), mount, ref).Scan)
	if err == db.ErrNoRows {
		return nil, ErrNoKey.With("There is no key %s.", printable(ref))
	}
	return &k, err
}

func keyWith(ctx context.Context, tx *db.Tx, mount string, public []byte) (*Key, error) {
	k, err := scanKey(tx.QueryRow(ctx, `select `+keyColumns+` from pki_key where tenant_id = $1 and mount = $2 and public = $3 order by id limit 1`,
		tx.Tenant(), mount, public).Scan)
	if err == db.ErrNoRows {
		return nil, nil
	}
	return &k, err
}

func keyByID(ctx context.Context, tx *db.Tx, id string) (*Key, error) {
	k, err := scanKey(tx.QueryRow(ctx, `select `+keyColumns+` from pki_key where tenant_id = $1 and id = $2`, tx.Tenant(), id).Scan)
	if err == db.ErrNoRows {
		return nil, nil
	}
	return &k, err
}

func renameKey(ctx context.Context, tx *db.Tx, id, name string) error {
	_, err := tx.Exec(ctx, `update pki_key set name = $3 where tenant_id = $1 and id = $2`, tx.Tenant(), id, name)
	if db.Taken(err) {
		return ErrExists.With("There is a key %s already.", name)
	}
	return err
}

// keyUsed reports whether an authority that goes on has the key.
func keyUsed(ctx context.Context, tx *db.Tx, id string) (bool, error) {
	return db.Exists(ctx, tx, `select 1 from pki_authority where tenant_id = $1 and key_id = $2 and ended_at is null limit 1`, tx.Tenant(), id)
}

// forgetKey deletes a key, and gives the authorities that had it.
func forgetKey(ctx context.Context, tx *db.Tx, id string) (ids []string, err error) {
	if ids, err = db.AllOf[string](ctx, tx, `select id from pki_authority where tenant_id = $1 and key_id = $2`, tx.Tenant(), id); err != nil {
		return nil, err
	}
	_, err = tx.Exec(ctx, `delete from pki_key where tenant_id = $1 and id = $2`, tx.Tenant(), id)
	return ids, err
}

const authorityColumns = `id, mount, kind, name, generation, key_id, certificate, subject, options, issues_from, not_after, revocations, created_at, epoch, ended_at`

func scanAuthority(columns func(...any) error) (*Authority, error) {
	a := &Authority{}
	var key *string
	var der []byte
	var options string
	err := columns(&a.ID, &a.Mount, &a.Kind, &a.Name, &a.Generation, &key, &der, &a.Subject, &options, &a.IssuesFrom, &a.NotAfter, &a.revocations, &a.CreatedAt, &a.epoch, &a.EndedAt)
	if err != nil {
		return nil, err
	}
	if key != nil {
		a.KeyID = *key
	}
	if len(der) > 0 {
		if err := a.take(der); err != nil {
			return nil, err
		}
	}
	return a, json.Unmarshal([]byte(options), &a.Options)
}

// findAuthority reads an authority with its key.
func findAuthority(ctx context.Context, tx *db.Tx, id string) (*Authority, error) {
	a, err := scanAuthority(tx.QueryRow(ctx, `select `+authorityColumns+` from pki_authority where tenant_id = $1 and id = $2`, tx.Tenant(), id).Scan)
	if err == db.ErrNoRows {
		return nil, ErrNoAuthority
	}
	if err != nil {
		return nil, err
	}
	if a.KeyID != "" {
		if a.key, err = keyByID(ctx, tx, a.KeyID); err != nil {
			return nil, err
		}
	}
	return a, a.show()
}

// findNamed gives the ids of the authorities of a name that go on, the newest
// generation first; of the default one, of whatever was chosen.
func findNamed(ctx context.Context, tx *db.Tx, mount string, kind Kind, name string) ([]string, error) {
	if name == "" {
		return nil, nil
	}
	if name == DefaultAuthority {
		var chosen defaults
		if _, err := setting(ctx, tx, mount, defaultsOf(kind), &chosen); err != nil || chosen.Default == "" {
			return nil, err
		}
		err := tx.QueryRow(ctx, `select name from pki_authority where tenant_id = $1 and id = $2 and mount = $3`, tx.Tenant(), chosen.Default, mount).Scan(&name)
		if err == db.ErrNoRows {
			return nil, nil
		}
		if err != nil || name == "" {
			return []string{chosen.Default}, err
		}
	}
	return db.AllOf[string](ctx, tx, `select id from pki_authority where tenant_id = $1 and mount = $2 and kind = $3 and name = $4 and ended_at is null
		order by generation desc`, tx.Tenant(), mount, kind, name)
}

func listIDs(ctx context.Context, tx *db.Tx, mount string, kind Kind) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select id from pki_authority where tenant_id = $1 and mount = $2 and kind = $3 order by created_at desc, id`, tx.Tenant(), mount, kind)
}

// listAuthorities reads the authorities of a mount that go on.
func listAuthorities(ctx context.Context, tx *db.Tx, mount string, kind Kind) ([]*Authority, error) {
	ids, err := db.AllOf[string](ctx, tx, `select id from pki_authority where tenant_id = $1 and mount = $2 and kind = $3 and ended_at is null
		order by name, generation desc, id`, tx.Tenant(), mount, kind)
	if err != nil {
		return nil, err
	}
	list := make([]*Authority, 0, len(ids))
	for _, id := range ids {
		a, err := findAuthority(ctx, tx, id)
		if err != nil {
			return nil, err
		}
		list = append(list, a)
	}
	return list, nil
}

// countAuthorities says how many there are in a mount, and the newest generation of
// a name, also if it has ended.
func countAuthorities(ctx context.Context, tx *db.Tx, mount string, kind Kind, name string) (n int, newest int64, err error) {
	err = tx.QueryRow(ctx, `select count(*) from pki_authority where tenant_id = $1 and mount = $2`, tx.Tenant(), mount).Scan(&n)
	if err != nil || name == "" {
		return n, 0, err
	}
	err = tx.QueryRow(ctx, `select coalesce(max(generation), 0) from pki_authority where tenant_id = $1 and mount = $2 and kind = $3 and name = $4`,
		tx.Tenant(), mount, kind, name).Scan(&newest)
	return n, newest, err
}

// newestAuthorities are those of X.509 that have a key, have not ended, and are the
// newest of their name.
func newestAuthorities(ctx context.Context, tx *db.Tx) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select a.id from pki_authority a where a.tenant_id = $1 and a.kind = 'x509' and a.ended_at is null and a.not_after > $2
		and a.key_id is not null and not exists (select 1 from pki_authority n where n.tenant_id = a.tenant_id and n.mount = a.mount and n.kind = a.kind
			and n.name = a.name and a.name <> '' and n.generation > a.generation) order by a.id`, tx.Tenant(), tx.Now())
}

func insertAuthority(ctx context.Context, tx *db.Tx, a *Authority) error {
	options, err := json.Marshal(a.Options)
	if err != nil {
		return err
	}
	var key any
	if a.KeyID != "" {
		key = a.KeyID
	}
	var der []byte
	if a.certificate != nil {
		der = a.certificate.Raw
	}
	_, err = tx.Exec(ctx, `insert into pki_authority (tenant_id, id, mount, kind, name, generation, key_id, certificate, subject, options, issues_from, not_after, created_at, epoch)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, 1)`,
		tx.Tenant(), a.ID, a.Mount, a.Kind, a.Name, a.Generation, key, der, a.Subject, string(options), a.IssuesFrom, a.NotAfter, a.CreatedAt)
	if db.Taken(err) { // by somebody at the same time
		return ErrExists.With("There is an authority %s already, or another generation of it.", a.Name)
	}
	return err
}

// replaceAuthority stores a changed authority, unless it is no longer as it was
// read. Of two that change one, the second hears of it.
func replaceAuthority(ctx context.Context, tx *db.Tx, before, after *Authority) error {
	options, err := json.Marshal(after.Options)
	if err != nil {
		return err
	}
	var key any
	if after.KeyID != "" {
		key = after.KeyID
	}
	n, err := tx.Exec(ctx, `update pki_authority set name = $4, generation = $5, options = $6, ended_at = $7, key_id = $8, epoch = epoch + 1
		where tenant_id = $1 and id = $2 and epoch = $3 and ended_at is null`,
		tx.Tenant(), before.ID, before.epoch, after.Name, after.Generation, string(options), after.EndedAt, key)
	if err == nil && n == 0 {
		return ErrExists.With("The authority was changed by somebody else in the meantime. Look at it again.")
	}
	return err
}

// holdAuthority makes sure that an authority is as it was read, and stays so until
// the transaction ends.
func holdAuthority(ctx context.Context, tx *db.Tx, a *Authority) error {
	err := tx.Alive(ctx, db.Epoch{Table: "pki_authority", ID: a.ID, Epoch: a.epoch})
	if err == db.ErrStale {
		return ErrExists.With("The authority was changed by somebody else in the meantime. Look at it again.")
	}
	return err
}

// raise counts that something of an authority was revoked.
func raise(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, `update pki_authority set revocations = revocations + 1 where tenant_id = $1 and id = $2`, tx.Tenant(), id)
	return err
}

const roleColumns = `id, mount, kind, name, spec, created_at, changed_at, epoch`

func scanRole(columns func(...any) error) (*Role, error) {
	r := &Role{}
	var spec string
	if err := columns(&r.ID, &r.Mount, &r.Kind, &r.Name, &spec, &r.CreatedAt, &r.ChangedAt, &r.epoch); err != nil {
		return nil, err
	}
	return r, json.Unmarshal([]byte(spec), &r.Spec)
}

func findRole(ctx context.Context, tx *db.Tx, mount string, kind Kind, name string) (*Role, error) {
	r, err := scanRole(tx.QueryRow(ctx, `select `+roleColumns+` from pki_role where tenant_id = $1 and mount = $2 and kind = $3 and name = $4 and ended_at is null`,
		tx.Tenant(), mount, kind, name).Scan)
	if err == db.ErrNoRows {
		return nil, ErrNoRole.With("There is no role %s.", printable(name))
	}
	return r, err
}

func listRoles(ctx context.Context, tx *db.Tx, mount string, kind Kind) ([]*Role, error) {
	return db.All(ctx, tx, scanRole, `select `+roleColumns+` from pki_role where tenant_id = $1 and mount = $2 and kind = $3 and ended_at is null order by name`,
		tx.Tenant(), mount, kind)
}

func countRoles(ctx context.Context, tx *db.Tx, mount string) (n int, err error) {
	err = tx.QueryRow(ctx, `select count(*) from pki_role where tenant_id = $1 and mount = $2 and ended_at is null`, tx.Tenant(), mount).Scan(&n)
	return n, err
}

func insertRole(ctx context.Context, tx *db.Tx, r *Role) error {
	spec, err := json.Marshal(r.Spec)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `insert into pki_role (tenant_id, `+roleColumns+`) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		tx.Tenant(), r.ID, r.Mount, r.Kind, r.Name, string(spec), r.CreatedAt, r.ChangedAt, r.epoch)
	if db.Taken(err) {
		return ErrExists.With("There is a role %s already.", r.Name)
	}
	return err
}

func replaceRole(ctx context.Context, tx *db.Tx, before, after *Role) error {
	spec, err := json.Marshal(after.Spec)
	if err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `update pki_role set spec = $4, changed_at = $5, ended_at = $6, epoch = epoch + 1
		where tenant_id = $1 and id = $2 and epoch = $3 and ended_at is null`,
		tx.Tenant(), before.ID, before.epoch, string(spec), after.ChangedAt, after.EndedAt)
	if err == nil && n == 0 {
		return ErrExists.With("The role was changed by somebody else in the meantime. Look at it again.")
	}
	return err
}

// certificates is the table of what was signed.
var certificates = &db.Table{Name: "pki_certificate", Columns: []db.Column{
	{Name: "tenant_id", Type: "text"},
	{Name: "authority_id", Type: "text"},
	{Name: "serial", Type: "text"},
	{Name: "mount", Type: "text"},
	{Name: "kind", Type: "text"},
	{Name: "role_id", Type: "text"},
	{Name: "name", Type: "text"},
	{Name: "names", Type: "text"},
	{Name: "body", Type: "bytes"},
	{Name: "subject", Type: "text"},
	{Name: "agent_id", Type: "text"},
	{Name: "session_id", Type: "text"},
	{Name: "issued_at", Type: "bigint"},
	{Name: "not_after", Type: "bigint"},
}}

func certificateRow(tenant estover.TenantID, r *Record) db.Row {
	names, err := json.Marshal(r.Names)
	if err != nil || r.Names == nil {
		names = []byte("[]")
	}
	return db.Row{Into: certificates, Values: []any{
		string(tenant), r.Authority, r.Serial, r.Mount, string(r.Kind), r.Role, r.Name, string(names), r.body, string(r.Subject), r.Agent, r.Session, r.IssuedAt.UnixMicro(), r.NotAfter.UnixMicro(),
	}}
}

const certificateColumns = `serial, authority_id, mount, kind, role_id, name, names, body, subject, agent_id, session_id, issued_at, not_after, revoked_at, reason, cause`

func scanCertificate(columns func(...any) error) (r Record, err error) {
	err = columns(&r.Serial, &r.Authority, &r.Mount, &r.Kind, &r.Role, &r.Name, &r.Names, &r.body, &r.Subject, &r.Agent, &r.Session, &r.IssuedAt, &r.NotAfter, &r.RevokedAt, &r.Reason, &r.Cause)
	if r.Names == nil {
		r.Names = []string{}
	}
	return r, err
}

func findCertificate(ctx context.Context, tx *db.Tx, mount string, kind Kind, serial string) (*Record, error) {
	r, err := scanCertificate(tx.QueryRow(ctx, `select `+certificateColumns+` from pki_certificate
		where tenant_id = $1 and mount = $2 and kind = $3 and serial = $4 order by issued_at desc limit 1`, tx.Tenant(), mount, kind, serial).Scan)
	if err == db.ErrNoRows {
		return nil, ErrNoCertificate.With("There is no certificate %s.", printable(serial))
	}
	return &r, err
}

func findSerial(ctx context.Context, tx *db.Tx, authority, serial string) (*Record, error) {
	r, err := scanCertificate(tx.QueryRow(ctx, `select `+certificateColumns+` from pki_certificate
		where tenant_id = $1 and authority_id = $2 and serial = $3`, tx.Tenant(), authority, serial).Scan)
	if err == db.ErrNoRows {
		return nil, ErrNoCertificate
	}
	return &r, err
}

func listCertificates(ctx context.Context, tx *db.Tx, f CertificateFilter) ([]Record, error) {
	query := `select ` + certificateColumns + ` from pki_certificate where tenant_id = $1 and mount = $2 and kind = $3 and serial > $4`
	args := []any{tx.Tenant(), f.Mount, string(f.Kind), f.After}
	where := func(cond string, v any) {
		args = append(args, v)
		query += " and " + strings.ReplaceAll(cond, "?", "$"+strconv.Itoa(len(args)))
	}
	if f.Agent != "" {
		where("agent_id = ?", f.Agent)
	}
	if f.Session != "" {
		where("session_id = ?", f.Session)
	}
	if f.Revoked {
		query += " and revoked_at is not null"
	}
	if f.Live {
		where("revoked_at is null and not_after > ?", tx.Now())
	}
	limit := f.Limit
	if limit <= 0 {
		limit = 50
	}
	args = append(args, limit)
	return db.All(ctx, tx, scanCertificate, query+" order by serial limit $"+strconv.Itoa(len(args)), args...)
}

// where is a filter as a condition, whose first argument is $1, the tenant.
func (f filter) where(first int) (string, []any) {
	var conds []string
	var args []any
	add := func(column string, values ...string) {
		var places []string
		for _, v := range values {
			args = append(args, v)
			places = append(places, "$"+strconv.Itoa(first+len(args)-1))
		}
		conds = append(conds, column+" in ("+strings.Join(places, ", ")+")")
	}
	if f.authority != "" {
		add("authority_id", f.authority)
	}
	if f.serial != "" {
		add("serial", f.serial)
	}
	if f.mount != "" {
		add("mount", f.mount)
	}
	if len(f.sessions) > 0 {
		add("session_id", f.sessions...)
		conds = append(conds, "session_id <> ''")
	}
	if f.crowd != nil {
		if !f.crowd.All {
			if len(f.crowd.Agents) == 0 {
				return "1 = 0", nil
			}
			add("agent_id", f.crowd.Agents...)
		}
		conds = append(conds, "agent_id <> ''")
	}
	if len(conds) == 0 {
		conds = append(conds, "1 = 0") // nothing is meant
	}
	return strings.Join(conds, " and ") + " and revoked_at is null", args
}

// chunks cuts a filter of many sessions or agents into several, since a statement
// has a bounded number of arguments.
func (f filter) chunks() (all []filter) {
	if f.crowd != nil && len(f.crowd.Agents) > 500 {
		for part := range slices.Chunk(f.crowd.Agents, 500) {
			one := f
			one.crowd = &Crowd{Agents: part}
			all = append(all, one)
		}
		return all
	}
	if len(f.sessions) <= 500 {
		return []filter{f}
	}
	for part := range slices.Chunk(f.sessions, 500) {
		one := f
		one.sessions = part
		all = append(all, one)
	}
	return all
}

// authoritiesOf are those that have signed what a filter means. They are in one
// order, so that two revocations do not wait for each other.
func authoritiesOf(ctx context.Context, tx *db.Tx, f filter) (all []string, err error) {
	for _, one := range f.chunks() {
		where, args := one.where(3)
		ids, err := db.AllOf[string](ctx, tx, `select distinct authority_id from pki_certificate where tenant_id = $1 and not_after > $2 and `+where, append([]any{tx.Tenant(), tx.Now()}, args...)...)
		if err != nil {
			return nil, err
		}
		all = append(all, ids...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// mark revokes what has not ended.
func mark(ctx context.Context, tx *db.Tx, f filter, reason Reason, cause string) (total int, err error) {
	for _, one := range f.chunks() {
		where, args := one.where(6)
		n, err := tx.Exec(ctx, `update pki_certificate set revoked_at = $2, reason = $3, cause = $4 where tenant_id = $1 and not_after > $5 and `+where,
			append([]any{tx.Tenant(), tx.Now(), int64(reason), cause, tx.Now()}, args...)...)
		if err != nil {
			return 0, err
		}
		total += int(n)
	}
	return total, nil
}

// Tolls counts, by authority, the certificates of a crowd that counted at an
// instant, or do now if that is zero.
func Tolls(ctx context.Context, tx *db.Tx, c Crowd, at time.Time) ([]Toll, error) {
	return tolls(ctx, tx, filter{crowd: &c}, at)
}

func tolls(ctx context.Context, tx *db.Tx, f filter, at time.Time) (all []Toll, err error) {
	for _, one := range f.chunks() {
		where, args := one.where(4)
		where = strings.TrimSuffix(where, " and revoked_at is null")
		base := []any{tx.Tenant(), tx.Now(), at}
		if at.IsZero() {
			base[2] = tx.Now() // nothing is revoked later than that
		}
		some, err := db.All(ctx, tx, func(columns func(...any) error) (t Toll, err error) {
			err = columns(&t.Authority, &t.Kind, &t.Certificates, &t.Good)
			return t, err
		}, `select authority_id, kind, count(*), sum(case when revoked_at is null then 1 else 0 end) from pki_certificate
			where tenant_id = $1 and not_after > $2 and (revoked_at is null or revoked_at >= $3) and `+where+` group by authority_id, kind order by kind desc, authority_id`, append(base, args...)...)
		if err != nil {
			return nil, err
		}
		for _, t := range some {
			if n := slices.IndexFunc(all, func(o Toll) bool { return o.Authority == t.Authority }); n >= 0 {
				all[n].Certificates, all[n].Good = all[n].Certificates+t.Certificates, all[n].Good+t.Good
				continue
			}
			all = append(all, t)
		}
	}
	return all, nil
}

// revokedOf are the revoked certificates of an authority that end after an instant.
func revokedOf(ctx context.Context, tx *db.Tx, authority string, after time.Time) ([]Record, error) {
	return db.All(ctx, tx, scanCertificate, `select `+certificateColumns+` from pki_certificate
		where tenant_id = $1 and authority_id = $2 and revoked_at is not null and not_after > $3 order by serial`, tx.Tenant(), authority, after)
}

// countOfAgent says how many certificates of an agent have not ended, and how many
// it was given in the last minute.
func countOfAgent(ctx context.Context, tx *db.Tx, agent string, most int) (live, lately int, err error) {
	rows, err := tx.Query(ctx, `select issued_at from pki_certificate where tenant_id = $1 and agent_id = $2 and not_after > $3 and revoked_at is null and agent_id <> '' limit $4`,
		tx.Tenant(), agent, tx.Now(), most)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var issued time.Time
		if err := rows.Scan(&issued); err != nil {
			return 0, 0, err
		}
		live++
		if tx.Now().Sub(issued) < time.Minute {
			lately++
		}
	}
	return live, lately, rows.Err()
}

func sweep(ctx context.Context, tx *db.Tx, before time.Time) (int64, error) {
	return tx.Exec(ctx, `delete from pki_certificate where tenant_id = $1 and not_after < $2`, tx.Tenant(), before)
}

func findList(ctx context.Context, tx *db.Tx, authority string) (*List, error) {
	l := &List{}
	err := tx.QueryRow(ctx, `select number, covers, next_update, body from pki_crl where tenant_id = $1 and authority_id = $2`, tx.Tenant(), authority).
		Scan(&l.Number, &l.covers, &l.NextUpdate, &l.DER)
	if err == db.ErrNoRows {
		return nil, nil
	}
	return l, err
}

// putList stores a list in the place of the one before, unless that is no longer
// the newest.
func putList(ctx context.Context, tx *db.Tx, authority string, before, next *List) error {
	var n int64
	var err error
	if before == nil {
		n, err = tx.Exec(ctx, `insert into pki_crl (tenant_id, authority_id, number, covers, next_update, body) values ($1, $2, $3, $4, $5, $6) on conflict do nothing`,
			tx.Tenant(), authority, next.Number, next.covers, next.NextUpdate, next.DER)
	} else {
		n, err = tx.Exec(ctx, `update pki_crl set number = $4, covers = $5, next_update = $6, body = $7 where tenant_id = $1 and authority_id = $2 and number = $3`,
			tx.Tenant(), authority, before.Number, next.Number, next.covers, next.NextUpdate, next.DER)
	}
	if err == nil && n == 0 {
		return errStale
	}
	return err
}

// dueLists are the authorities whose list has to be signed anew before an instant.
func dueLists(ctx context.Context, tx *db.Tx, before time.Time) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select c.authority_id from pki_crl c join pki_authority a on a.tenant_id = c.tenant_id and a.id = c.authority_id
		where c.tenant_id = $1 and c.next_update <= $2 and a.key_id is not null and a.not_after > $3`, tx.Tenant(), before, tx.Now())
}

// endMount ends the authorities and roles of a mount, and forgets its keys and
// settings.
func endMount(ctx context.Context, tx *db.Tx, mount string) error {
	if mount == "" {
		return ErrInvalid.With("What is the tenant's own has no mount that ends.")
	}
	for _, text := range []string{
		`update pki_authority set ended_at = $3, epoch = epoch + 1 where tenant_id = $1 and mount = $2 and ended_at is null`,
		`update pki_role set ended_at = $3, epoch = epoch + 1 where tenant_id = $1 and mount = $2 and ended_at is null`,
	} {
		if _, err := tx.Exec(ctx, text, tx.Tenant(), mount, tx.Now()); err != nil {
			return err
		}
	}
	for _, table := range []string{"pki_key", "pki_setting"} {
		if _, err := tx.Exec(ctx, `delete from `+table+` where tenant_id = $1 and mount = $2`, tx.Tenant(), mount); err != nil {
			return err
		}
	}
	return nil
}

func findSetting(ctx context.Context, tx *db.Tx, mount, name string) (text string, err error) {
	err = tx.QueryRow(ctx, `select document from pki_setting where tenant_id = $1 and mount = $2 and name = $3`, tx.Tenant(), mount, name).Scan(&text)
	if err == db.ErrNoRows {
		err = nil
	}
	return text, err
}

func putSetting(ctx context.Context, tx *db.Tx, mount, name, text string) error {
	_, err := tx.Exec(ctx, `insert into pki_setting (tenant_id, mount, name, document, changed_at) values ($1, $2, $3, $4, $5)
		on conflict (tenant_id, mount, name) do update set document = excluded.document, changed_at = excluded.changed_at`,
		tx.Tenant(), mount, name, text, tx.Now())
	return err
}
