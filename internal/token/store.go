package token

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

const grantColumns = `id, kind, coalesce(parent_id, ''), coalesce(parent_jti, ''), root_id, session_id, client_id, subject, actors, scopes, resources, cnf,
	epoch, created_at, expires_at, ended_at, coalesce(end_cause, '')`

// loadGrant reads a grant, and which of its tokens were revoked.
func loadGrant(ctx context.Context, tx *db.Tx, id string) (*Grant, error) {
	return oneGrant(ctx, tx, tx.QueryRow(ctx, `select `+grantColumns+` from oauth_grant where tenant_id = $1 and id = $2`, tx.Tenant(), id))
}

// loadOwnGrant reads the live grant that a client has in a session by its own
// credentials.
func loadOwnGrant(ctx context.Context, tx *db.Tx, key string) (*Grant, error) {
	session, client, _ := strings.Cut(key, "/")
	return oneGrant(ctx, tx, tx.QueryRow(ctx, `select `+grantColumns+` from oauth_grant
		where tenant_id = $1 and session_id = $2 and client_id = $3 and kind = 'client_credentials' and ended_at is null`,
		tx.Tenant(), session, client))
}

func oneGrant(ctx context.Context, tx *db.Tx, row db.Single) (*Grant, error) {
	g := &Grant{}
	var actors []string
	var cnf string
	err := row.Scan(&g.ID, &g.Kind, &g.Parent, &g.From, &g.Root, &g.Session, &g.Client, &g.Subject, &actors, &g.Scopes, &g.Resources, &cnf,
		&g.Epoch, &g.Created, &g.Expires, &g.Ended, &g.Cause)
	if errors.Is(err, db.ErrNoRows) {
		return nil, ErrGrantEnded
	}
	if err != nil {
		return nil, err
	}
	for _, a := range actors {
		g.Actors = append(g.Actors, estover.Subject(a))
	}
	if err := json.Unmarshal([]byte(cnf), &g.Confirm); err != nil {
		return nil, fmt.Errorf("reading the key of grant %s: %w", g.ID, err)
	}
	rows, err := tx.Query(ctx, `select jti from denied_token where tenant_id = $1 and grant_id = $2 and expires_at > $3 order by jti`,
		tx.Tenant(), g.ID, tx.Now())
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var jti string
		if err := rows.Scan(&jti); err != nil {
			return nil, err
		}
		g.denied = append(g.denied, jti)
	}
	return g, rows.Err()
}

// insertGrant writes a grant. It reports false, and writes nothing, if the
// client has one of this kind in the session already.
func insertGrant(ctx context.Context, tx *db.Tx, g *Grant) (bool, error) {
	cnf, err := json.Marshal(g.Confirm)
	if err != nil {
		return false, err
	}
	actors := make([]string, len(g.Actors))
	for i, a := range g.Actors {
		actors[i] = string(a)
	}
	n, err := tx.Exec(ctx, `insert into oauth_grant (tenant_id, id, kind, parent_id, parent_jti, root_id, session_id, client_id, subject, actors,
		scopes, resources, cnf, epoch, created_at, expires_at)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) on conflict do nothing`,
		tx.Tenant(), g.ID, g.Kind, orNull(g.Parent), orNull(g.From), g.Root, g.Session, g.Client, g.Subject, actors,
		bound(g.Scopes), bound(g.Resources), string(cnf), g.Epoch, tx.Now(), g.Expires)
	return n == 1, err
}

// orNull stores nothing for an empty string.
func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// bound stores a limit: nothing where there is none, which is not the same as
// a limit that nothing fits.
func bound(list []string) any {
	if list == nil {
		return nil
	}
	return list
}

// holdGrant makes sure that a grant lives with this epoch, and that it stays
// so until the transaction ends.
func holdGrant(ctx context.Context, tx *db.Tx, id string, epoch int64) error {
	var one int
	err := tx.QueryRow(ctx, `select 1 from oauth_grant where tenant_id = $1 and id = $2 and epoch = $3 and ended_at is null
		and expires_at > $4`+tx.ForUpdate(), tx.Tenant(), id, epoch, tx.Now()).Scan(&one)
	if errors.Is(err, db.ErrNoRows) {
		return ErrGrantEnded
	}
	return err
}

// lockGrant keeps a grant as it is until the transaction ends, whether or not it
// lives: nothing is handed on from it meanwhile.
func lockGrant(ctx context.Context, tx *db.Tx, id string) error {
	var one int
	err := tx.QueryRow(ctx, `select 1 from oauth_grant where tenant_id = $1 and id = $2`+tx.ForUpdate(), tx.Tenant(), id).Scan(&one)
	if errors.Is(err, db.ErrNoRows) {
		return ErrGrantEnded
	}
	return err
}

// endTree ends the living grants of which a column has this value, and the
// living ones anywhere below them, and says which they were.
func endTree(ctx context.Context, tx *db.Tx, column, value, cause string) ([]Grant, error) {
	rows, err := tx.Query(ctx, `with recursive tree(id) as (
			select id from oauth_grant where tenant_id = $1 and `+column+` = $2
			union
			select g.id from oauth_grant g join tree on g.parent_id = tree.id where g.tenant_id = $1
		)
		update oauth_grant set ended_at = $3, end_cause = $4, epoch = epoch + 1
		where tenant_id = $1 and ended_at is null and id in (select id from tree)
		returning id, kind, session_id, client_id`, tx.Tenant(), value, tx.Now(), cause)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var ended []Grant
	for rows.Next() {
		var g Grant
		if err := rows.Scan(&g.ID, &g.Kind, &g.Session, &g.Client); err != nil {
			return nil, err
		}
		ended = append(ended, g)
	}
	return ended, rows.Err()
}

// deny marks one access token as revoked. Doing it again changes nothing.
func deny(ctx context.Context, tx *db.Tx, grant, jti string, expires time.Time) error {
	_, err := tx.Exec(ctx, `insert into denied_token (tenant_id, grant_id, jti, expires_at) values ($1, $2, $3, $4) on conflict do nothing`,
		tx.Tenant(), grant, jti, expires)
	return err
}

// isDenied reports whether one access token of a grant was revoked.
func isDenied(ctx context.Context, tx *db.Tx, grant, jti string) (bool, error) {
	var one int
	err := tx.QueryRow(ctx, `select 1 from denied_token where tenant_id = $1 and grant_id = $2 and jti = $3`, tx.Tenant(), grant, jti).Scan(&one)
	if errors.Is(err, db.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// usedTable is where names are kept that may be presented once.
var usedTable = &db.Table{Name: "used_jti", Columns: []db.Column{
	{Name: "tenant_id", Type: "text"}, {Name: "hash", Type: "bytes"}, {Name: "expires_at", Type: "bigint"},
}}

// A Used is a name that may be presented once until a time: the jti of an
// assertion or a proof.
type Used struct {
	By      string // who presented it: the client, the issuer, the key
	Name    string
	Expires time.Time
	Again   *estover.Error // what it is to present it again; nil for [ErrReplayed]
}

// again is the error of presenting it a second time.
func (u Used) again() *estover.Error {
	if u.Again == nil {
		return ErrReplayed
	}
	return u.Again
}

// hash stands for the name in the table: of one size, whatever was presented.
func (u Used) hash() []byte {
	h := sha256.New()
	h.Write([]byte(u.By))
	h.Write([]byte{0})
	h.Write([]byte(u.Name))
	return h.Sum(nil)
}

// row is what consumes the name: inserting it fails when it was there before.
func (u Used) row(tenant estover.TenantID) db.Row {
	return db.Row{Into: usedTable, Values: []any{string(tenant), u.hash(), u.Expires.UnixMicro()}}
}

// isUsed reports whether a name was presented before.
func isUsed(ctx context.Context, tx *db.Tx, u Used) (bool, error) {
	var one int
	err := tx.QueryRow(ctx, `select 1 from used_jti where tenant_id = $1 and hash = $2`, tx.Tenant(), u.hash()).Scan(&one)
	if errors.Is(err, db.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// sweep removes what has expired, of all tenants.
func sweep(ctx context.Context, tx *db.Tx) (int64, error) {
	var total int64
	for _, table := range []string{"used_jti", "denied_token"} {
		n, err := tx.Exec(ctx, `delete from `+table+` where expires_at < $1`, tx.Now().Add(-kept))
		if err != nil {
			return total, err
		}
		total += n
	}
	return total, nil
}

// kept is how long a row is kept beyond its time, for clocks that differ.
const kept = time.Minute
