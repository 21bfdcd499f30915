package token

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/detail"
	"estover.dev/internal/opaque"
)

const grantColumns = `id, kind, coalesce(parent_id, ''), coalesce(parent_jti, ''), root_id, session_id, client_id, subject, actors, scopes, resources, cnf,
	epoch, created_at, expires_at, ended_at, coalesce(end_cause, ''), coalesce(auth, ''), person_scopes, coalesce(details, ''), coalesce(reach, '')`

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
	var cnf, auth, details, reach string
	err := row.Scan(&g.ID, &g.Kind, &g.Parent, &g.From, &g.Root, &g.Session, &g.Client, &g.Subject, &actors, &g.Scopes, &g.Resources, &cnf,
		&g.Epoch, &g.Created, &g.Expires, &g.Ended, &g.Cause, &auth, &g.Identity, &details, &reach)
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
	if auth != "" {
		if err := json.Unmarshal([]byte(auth), &g.Auth); err != nil {
			return nil, fmt.Errorf("reading the person's proof of grant %s: %w", g.ID, err)
		}
	}
	if reach != "" {
		if err := json.Unmarshal([]byte(reach), &g.Reach); err != nil {
			return nil, fmt.Errorf("reading the reach of grant %s: %w", g.ID, err)
		}
	}
	if details != "" {
		if g.Details, err = detail.Parse([]byte(details)); err != nil {
			return nil, fmt.Errorf("reading the authorization details of grant %s: %w", g.ID, err)
		}
	}
	g.denied, err = db.AllOf[string](ctx, tx, `select jti from denied_token where tenant_id = $1 and grant_id = $2 and expires_at > $3 order by jti`,
		tx.Tenant(), g.ID, tx.Now())
	return g, err
}

// grantText inserts a grant, without the values and the condition.
const grantText = `insert into oauth_grant (tenant_id, id, kind, parent_id, parent_jti, root_id, session_id, client_id, subject, actors,
	scopes, resources, cnf, epoch, created_at, expires_at, auth, person_scopes, details, reach) `

// insertText inserts a grant unless it is there already.
const insertText = grantText + `values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20) on conflict do nothing`

// handOnText inserts a grant below another, unless the token that is handed on
// was revoked: then it has no name, as every grant must ([db.Step]).
const handOnText = grantText + `values ($1,
	case when exists (select 1 from denied_token where tenant_id = $1 and grant_id = $4 and jti = $5) then null else $2 end,
	$3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)`

// columns are the values of a grant, from the second on.
func (g *Grant) columns(now time.Time) ([]any, error) {
	cnf, err := json.Marshal(g.Confirm)
	if err != nil {
		return nil, err
	}
	actors := make([]string, len(g.Actors))
	for i, a := range g.Actors {
		actors[i] = string(a)
	}
	return []any{
		g.ID, g.Kind, db.OrNull(g.Parent), db.OrNull(g.From), g.Root, g.Session, g.Client, g.Subject, actors,
		bound(g.Scopes), bound(g.Resources), string(cnf), g.Epoch, now, g.Expires, g.Auth.stored(), bound(g.Identity), boundDetails(g.Details), g.Reach.stored(),
	}, nil
}

// insertGrant writes a grant. It reports false, and writes nothing, if the
// client has one of this kind in the session already.
func insertGrant(ctx context.Context, tx *db.Tx, g *Grant) (bool, error) {
	columns, err := g.columns(tx.Now())
	if err != nil {
		return false, err
	}
	n, err := tx.Exec(ctx, insertText, append([]any{tx.Tenant()}, columns...)...)
	return n == 1, err
}

// handOn is the step that makes a grant of another's token.
func handOn(g *Grant, now time.Time) (*db.Step, error) {
	columns, err := g.columns(now)
	return &db.Step{Text: handOnText, Args: columns}, err
}

// stored is what is kept of it: nothing where no person stands.
func (a Auth) stored() any {
	if a.Time == 0 {
		return nil
	}
	b, err := json.Marshal(a)
	if err != nil {
		panic("token: a proof that cannot be JSON: " + err.Error())
	}
	return string(b)
}

// bound stores a limit: nothing where there is none, which is not the same as
// a limit that nothing fits.
func bound(list []string) any {
	if list == nil {
		return nil
	}
	return list
}

// boundDetails is bound for authorization details.
func boundDetails(l detail.List) any {
	if l == nil {
		return nil
	}
	return l.String()
}

// holdGrant makes sure that a grant lives with this epoch, and that it stays
// so until the transaction ends.
func holdGrant(ctx context.Context, tx *db.Tx, id string, epoch int64) error {
	there, err := db.Exists(ctx, tx, `select 1 from oauth_grant where tenant_id = $1 and id = $2 and epoch = $3 and ended_at is null
		and expires_at > $4`+tx.ForUpdate(), tx.Tenant(), id, epoch, tx.Now())
	if err == nil && !there {
		return ErrGrantEnded
	}
	return err
}

// lockGrant keeps a grant as it is until the transaction ends, whether or not it
// lives: nothing is handed on from it meanwhile.
func lockGrant(ctx context.Context, tx *db.Tx, id string) error {
	there, err := db.Exists(ctx, tx, `select 1 from oauth_grant where tenant_id = $1 and id = $2`+tx.ForUpdate(), tx.Tenant(), id)
	if err == nil && !there {
		return ErrGrantEnded
	}
	return err
}

// ClientHas reports whether a client has a grant that has not ended.
func ClientHas(ctx context.Context, tx *db.Tx, client string) (bool, error) {
	return db.Exists(ctx, tx, `select 1 from oauth_grant where tenant_id = $1 and client_id = $2 and ended_at is null limit 1`, tx.Tenant(), client)
}

// Working are the clients on whose grants tokens may rest that have not run out,
// in the transaction's tenant.
func Working(ctx context.Context, tx *db.Tx) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select distinct client_id from oauth_grant where tenant_id = $1 and ended_at is null and (expires_at is null or expires_at > $2)`,
		tx.Tenant(), tx.Now())
}

// touchedColumns are what one has to know of a grant to make its copies stale
// ([Grant.touch]).
const touchedColumns = "id, kind, session_id, client_id"

func scanTouched(columns func(...any) error) (g Grant, err error) {
	err = columns(&g.ID, &g.Kind, &g.Session, &g.Client)
	return g, err
}

// endTree ends the living grants that fit a condition, whose arguments are $4 and
// on, and the living ones anywhere below them, and says which they were.
func endTree(ctx context.Context, tx *db.Tx, cause, where string, args ...any) ([]Grant, error) {
	return db.All(ctx, tx, scanTouched, `with recursive tree(id) as (
			select id from oauth_grant where tenant_id = $1 and `+where+`
			union
			select g.id from oauth_grant g join tree on g.parent_id = tree.id where g.tenant_id = $1
		)
		update oauth_grant set ended_at = $2, end_cause = $3, epoch = epoch + 1
		where tenant_id = $1 and ended_at is null and id in (select id from tree)
		returning `+touchedColumns, append([]any{tx.Tenant(), tx.Now(), cause}, args...)...)
}

// extendGrants moves the end of the live grants of a session that were to end at
// from, and says which they are.
func extendGrants(ctx context.Context, tx *db.Tx, session string, from, until time.Time) ([]Grant, error) {
	return db.All(ctx, tx, scanTouched, `update oauth_grant set expires_at = $4
		where tenant_id = $1 and session_id = $2 and ended_at is null and expires_at = $3
		returning `+touchedColumns, tx.Tenant(), session, from, until)
}

// deny marks one access token as revoked. Doing it again changes nothing.
func deny(ctx context.Context, tx *db.Tx, grant, jti string, expires time.Time) error {
	_, err := tx.Exec(ctx, `insert into denied_token (tenant_id, grant_id, jti, expires_at) values ($1, $2, $3, $4) on conflict do nothing`,
		tx.Tenant(), grant, jti, expires)
	return err
}

// isDenied reports whether one access token of a grant was revoked.
func isDenied(ctx context.Context, tx *db.Tx, grant, jti string) (bool, error) {
	return db.Exists(ctx, tx, `select 1 from denied_token where tenant_id = $1 and grant_id = $2 and jti = $3`, tx.Tenant(), grant, jti)
}

// usedTable is where names are kept that may be presented once.
var usedTable = &db.Table{Name: "used_jti", Columns: []db.Column{
	{Name: "tenant_id", Type: "text"}, {Name: "hash", Type: "bytes"}, {Name: "expires_at", Type: "bigint"},
}}

// row is what consumes the name: inserting it fails when it was there before.
func (u Used) row(tenant estover.TenantID) db.Row {
	return db.Row{Into: usedTable, Values: []any{string(tenant), u.hash(), u.Expires.UnixMicro()}}
}

// isUsed reports whether a name was presented before.
func isUsed(ctx context.Context, tx *db.Tx, u Used) (bool, error) {
	return db.Exists(ctx, tx, `select 1 from used_jti where tenant_id = $1 and hash = $2`, tx.Tenant(), u.hash())
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

// spend uses up something that is good once and is no assertion.
func spend(ctx context.Context, tx *db.Tx, u Used) error {
	err := tx.Insert(ctx, u.row(tx.Tenant()))
	if db.Taken(err) {
		return ErrFormUsed.Because(err)
	}
	return err
}

// findConsent reads what a person has agreed to. Locked, it stays so until the
// transaction ends.
func findConsent(ctx context.Context, tx *db.Tx, k consentKey, locked bool) (c Consent, err error) {
	lock := ""
	if locked {
		lock = tx.ForUpdate()
	}
	c, err = scanConsent(tx.QueryRow(ctx, "select "+consentColumns+` from oauth_consent
		where tenant_id = $1 and person_id = $2 and client_id = $3 and redirect_uri = $4 and ended_at is null`+lock,
		tx.Tenant(), k.person, k.client, k.redirect).Scan)
	if errors.Is(err, db.ErrNoRows) {
		return c, ErrConsent
	}
	return c, err
}

const consentColumns = "id, client_id, redirect_uri, client_digest, reach, details, created_at"

func scanConsent(columns func(...any) error) (c Consent, err error) {
	var reach, details string
	if err := columns(&c.ID, &c.Client, &c.Redirect, &c.digest, &reach, &details, &c.Created); err != nil {
		return c, err
	}
	if err := json.Unmarshal([]byte(reach), &c.Reach); err != nil {
		return c, err
	}
	c.Details, err = detail.Parse([]byte(details))
	return c, err
}

// replaceConsent stores what a person agrees to, in the place of what they
// agreed to before.
func replaceConsent(ctx context.Context, tx *db.Tx, k consentKey, c Consent) error {
	reach, err := json.Marshal(c.Reach)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `update oauth_consent set ended_at = $5
		where tenant_id = $1 and person_id = $2 and client_id = $3 and redirect_uri = $4 and ended_at is null`,
		tx.Tenant(), k.person, k.client, k.redirect, tx.Now()); err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `insert into oauth_consent (tenant_id, id, person_id, client_id, redirect_uri, client_digest, reach, details, created_at)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing`,
		tx.Tenant(), c.ID, k.person, k.client, k.redirect, c.digest, string(reach), c.Details.String(), tx.Now())
	if err == nil && n == 0 {
		return ErrBusy // another answer of the same person was first
	}
	return err
}

func consentsOf(ctx context.Context, tx *db.Tx, person string) ([]Consent, error) {
	return db.All(ctx, tx, scanConsent, "select "+consentColumns+` from oauth_consent
		where tenant_id = $1 and person_id = $2 and ended_at is null order by created_at desc, id limit 200`, tx.Tenant(), person)
}

// endConsent ends a consent of a person, and says whose it was.
func endConsent(ctx context.Context, tx *db.Tx, person, id string) (client string, err error) {
	err = tx.QueryRow(ctx, `update oauth_consent set ended_at = $4 where tenant_id = $1 and person_id = $2 and id = $3 and ended_at is null
		returning client_id`, tx.Tenant(), person, id, tx.Now()).Scan(&client)
	if errors.Is(err, db.ErrNoRows) {
		return "", ErrConsent.With("There is no such consent of yours any more.")
	}
	return client, err
}

func endConsents(ctx context.Context, tx *db.Tx, person string) error {
	_, err := tx.Exec(ctx, "update oauth_consent set ended_at = $3 where tenant_id = $1 and person_id = $2 and ended_at is null",
		tx.Tenant(), person, tx.Now())
	return err
}

// consentedSessions are the sessions that a client has on behalf of a person;
// "" for all clients. The kinds that are left out are those that the index leaves
// out, of which there are many.
func consentedSessions(ctx context.Context, tx *db.Tx, person estover.Subject, client string) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select session_id from oauth_grant
		where tenant_id = $1 and subject = $2 and ended_at is null and kind <> '`+Exchange+`' and kind <> '`+Own+`'
			and kind in ($3, $4, $5, $6) and ($7 = '' or client_id = $7)`,
		tx.Tenant(), person, Consented, Device, Backchannel, Assertion, client)
}

// pushedTable is where authorization requests are kept until a browser comes.
var pushedTable = &db.Table{Name: "oauth_pushed", Columns: []db.Column{
	{Name: "tenant_id", Type: "text"},
	{Name: "hash", Type: "bytes"},
	{Name: "client_id", Type: "text"},
	{Name: "request", Type: "text"},
	{Name: "created_at", Type: "bigint"},
	{Name: "expires_at", Type: "bigint"},
}}

// openPushed reads a pushed request. The first time, it gives the person time.
func openPushed(ctx context.Context, tx *db.Tx, value, client string) (request string, err error) {
	hash := opaque.Hash(value)
	err = tx.QueryRow(ctx, `update oauth_pushed set opened_at = coalesce(opened_at, $4),
			expires_at = case when opened_at is null then $5 else expires_at end
		where tenant_id = $1 and hash = $2 and client_id = $3 and consumed_at is null and expires_at > $4 returning request`,
		tx.Tenant(), hash[:], client, tx.Now(), tx.Now().Add(askingTime)).Scan(&request)
	if errors.Is(err, db.ErrNoRows) {
		return "", ErrPushed
	}
	return request, err
}

func consumePushed(ctx context.Context, tx *db.Tx, value, client string) error {
	hash := opaque.Hash(value)
	n, err := tx.Exec(ctx, `update oauth_pushed set consumed_at = $4
		where tenant_id = $1 and hash = $2 and client_id = $3 and consumed_at is null and expires_at > $4`,
		tx.Tenant(), hash[:], client, tx.Now())
	if err == nil && n == 0 {
		return ErrPushed
	}
	return err
}

func insertCode(ctx context.Context, tx *db.Tx, value, grant string, a Authorization) error {
	hash := opaque.Hash(value)
	_, err := tx.Exec(ctx, `insert into oauth_code (tenant_id, hash, grant_id, client_id, redirect_uri, challenge, jkt, nonce, created_at, expires_at)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		tx.Tenant(), hash[:], grant, a.Client.ID, a.Redirect, a.Challenge, a.Key, a.Nonce, tx.Now(), tx.Now().Add(CodeLife))
	return err
}

// findCode reads a code into c, and says on which grant it rests and until when
// it is good.
func findCode(ctx context.Context, tx *db.Tx, c *Code) (grant string, expires time.Time, err error) {
	var consumed time.Time
	err = tx.QueryRow(ctx, `select grant_id, client_id, redirect_uri, challenge, jkt, nonce, expires_at, consumed_at from oauth_code
		where tenant_id = $1 and hash = $2`, tx.Tenant(), c.hash[:]).
		Scan(&grant, &c.Client, &c.Redirect, &c.Challenge, &c.Key, &c.Nonce, &expires, &consumed)
	if errors.Is(err, db.ErrNoRows) {
		return "", expires, ErrCode
	}
	c.Spent = !consumed.IsZero()
	return grant, expires, err
}

func insertWaiting(ctx context.Context, tx *db.Tx, w *Waiting, code []byte) error {
	n, err := tx.Exec(ctx, `insert into oauth_waiting (tenant_id, id, hash, user_hash, person_id, kind, client_id, request, jkt, address,
		created_at, expires_at, pause, state)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) on conflict do nothing`,
		tx.Tenant(), w.ID, w.hash[:], db.OrNull(code), db.OrNull(w.Person), w.Kind, w.Client, w.Request, w.Key, w.From,
		tx.Now(), w.Expires, PollInterval.Microseconds(), pending)
	if err == nil && n == 0 {
		return ErrCodeTaken
	}
	return err
}

const waitingColumns = `id, hash, coalesce(person_id, ''), kind, client_id, request, jkt, address, created_at, expires_at, state, coalesce(grant_id, '')`

func scanWaiting(columns func(...any) error) (w *Waiting, grant string, err error) {
	w = &Waiting{}
	var hash []byte
	err = columns(&w.ID, &hash, &w.Person, &w.Kind, &w.Client, &w.Request, &w.Key, &w.From, &w.Asked, &w.Expires, &w.state, &grant)
	copy(w.hash[:], hash)
	return w, grant, err
}

// findWaiting reads the one request of which this holds, with its grant.
func findWaiting(ctx context.Context, tx *db.Tx, missing error, where string, args ...any) (*Waiting, error) {
	w, grant, err := scanWaiting(tx.QueryRow(ctx, `select `+waitingColumns+` from oauth_waiting where tenant_id = $1 and `+where,
		append([]any{tx.Tenant()}, args...)...).Scan)
	switch {
	case errors.Is(err, db.ErrNoRows):
		return nil, missing
	case err == nil && grant != "":
		w.Grant, err = loadGrant(ctx, tx, grant)
	}
	return w, err
}

func countWaiting(ctx context.Context, tx *db.Tx, person, client string) (n int, err error) {
	err = tx.QueryRow(ctx, `select count(*) from oauth_waiting
		where tenant_id = $1 and person_id = $2 and client_id = $3 and state = 'pending' and expires_at > $4`,
		tx.Tenant(), person, client, tx.Now()).Scan(&n)
	return n, err
}

func waitingFor(ctx context.Context, tx *db.Tx, person string) ([]*Waiting, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (*Waiting, error) {
		w, _, err := scanWaiting(columns)
		return w, err
	}, `select `+waitingColumns+` from oauth_waiting
		where tenant_id = $1 and person_id = $2 and state = 'pending' and expires_at > $3 order by created_at, id limit 50`,
		tx.Tenant(), person, tx.Now())
}

// decideWaiting stores what a person decided, unless it was decided before, has
// lapsed or asks somebody else. The client gets time to come for it.
func decideWaiting(ctx context.Context, tx *db.Tx, id, state, person, grant string) error {
	n, err := tx.Exec(ctx, `update oauth_waiting set state = $4, decided_by = $5, decided_at = $3, grant_id = $6,
			expires_at = case when expires_at < $7 then $7 else expires_at end
		where tenant_id = $1 and id = $2 and state = 'pending' and expires_at > $3 and (person_id is null or person_id = $5)`,
		tx.Tenant(), id, tx.Now(), state, person, db.OrNull(grant), tx.Now().Add(fetchTime))
	if err == nil && n == 0 {
		return ErrDecided
	}
	return err
}

func redeemWaiting(ctx context.Context, tx *db.Tx, id string) error {
	n, err := tx.Exec(ctx, `update oauth_waiting set state = 'redeemed' where tenant_id = $1 and id = $2 and state = 'approved' and expires_at > $3`,
		tx.Tenant(), id, tx.Now())
	if err == nil && n == 0 {
		return ErrWaiting
	}
	return err
}

// poll notes that a client has asked, and reports whether it has waited for as
// long as it should. If not, it waits longer from here on.
func poll(ctx context.Context, tx *db.Tx, id string) (bool, error) {
	n, err := tx.Exec(ctx, `update oauth_waiting set polled_at = $3
		where tenant_id = $1 and id = $2 and (polled_at is null or polled_at + pause <= $4)`,
		tx.Tenant(), id, tx.Now(), tx.Now().Add(pollSlack))
	if err != nil || n == 1 {
		return n == 1, err
	}
	_, err = tx.Exec(ctx, `update oauth_waiting set polled_at = $3, pause = pause + $4 where tenant_id = $1 and id = $2`,
		tx.Tenant(), id, tx.Now(), PollInterval.Microseconds())
	return false, err
}

func consumeCode(ctx context.Context, tx *db.Tx, hash [32]byte) error {
	n, err := tx.Exec(ctx, `update oauth_code set consumed_at = $3 where tenant_id = $1 and hash = $2 and consumed_at is null and expires_at > $3`,
		tx.Tenant(), hash[:], tx.Now())
	if err == nil && n == 0 {
		return ErrPresentedTwice
	}
	return err
}

// A lapsedCode is one that nobody came for in time, or the yes of a person that
// nobody came for.
type lapsedCode struct {
	tenant  estover.TenantID
	session string
}

func lapsedCodes(ctx context.Context, tx *db.Tx) ([]lapsedCode, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (one lapsedCode, err error) {
		err = columns(&one.tenant, &one.session)
		return one, err
	}, `select c.tenant_id, g.session_id from oauth_code c join oauth_grant g on g.tenant_id = c.tenant_id and g.id = c.grant_id
		where c.consumed_at is null and c.expires_at < $1 and g.ended_at is null
		union all
		select w.tenant_id, g.session_id from oauth_waiting w join oauth_grant g on g.tenant_id = w.tenant_id and g.id = w.grant_id
		where w.state = 'approved' and w.expires_at < $1 and g.ended_at is null limit 256`, tx.Now())
}

// forgetCodes removes what is long over: a code is kept as long as what it
// bought may live, so that a second presentation is known for what it is.
func forgetCodes(ctx context.Context, tx *db.Tx) error {
	for table, age := range map[string]time.Duration{"oauth_code": 25 * time.Hour, "oauth_pushed": time.Minute, "oauth_waiting": time.Hour} {
		if _, err := tx.Exec(ctx, "delete from "+table+" where expires_at < $1", tx.Now().Add(-age)); err != nil {
			return err
		}
	}
	// Families are found by the hour in which their grant was to expire when they began; it
	// may have been extended since.
	_, err := tx.Exec(ctx, `delete from refresh_family where expires_at / 3600000000 < $1 and not exists
		(select 1 from oauth_grant g where g.tenant_id = refresh_family.tenant_id and g.id = refresh_family.grant_id and g.ended_at is null and g.expires_at > $2)`,
		tx.Now().Add(-time.Hour).UnixMicro()/time.Hour.Microseconds(), tx.Now().Add(-time.Hour))
	return err
}

var familyTable = &db.Table{Name: "refresh_family", Columns: []db.Column{
	{Name: "tenant_id", Type: "text"},
	{Name: "id", Type: "bytes"},
	{Name: "grant_id", Type: "text"},
	{Name: "generation", Type: "bigint"},
	{Name: "jkt", Type: "text"},
	{Name: "hash", Type: "bytes"},
	{Name: "expires_at", Type: "bigint"},
}}

func (f *family) row(tenant estover.TenantID, expires time.Time) db.Row {
	return db.Row{Into: familyTable, Values: []any{string(tenant), f.id[:], f.grant, f.generation, f.key, f.hash, expires.UnixMicro()}}
}

func findFamily(ctx context.Context, tx *db.Tx, id [32]byte) (family, error) {
	f := family{id: id}
	err := tx.QueryRow(ctx, `select grant_id, generation, jkt, hash, turned_at, coalesce(turned_jkt, '') from refresh_family
		where tenant_id = $1 and id = $2`, tx.Tenant(), id[:]).
		Scan(&f.grant, &f.generation, &f.key, &f.hash, &f.turned, &f.shown)
	if errors.Is(err, db.ErrNoRows) {
		return f, ErrRefresh
	}
	return f, err
}

// spendText has a family go on from the token that is good to the next one, if its grant
// lives, and keeps that so until the transaction ends. Asked by itself, the grants of all
// who share a commit were found, told of and looked up again.
func spendText(e db.Engine) string {
	const text = `update refresh_family set hash = $4, generation = $5, turned_at = $6, turned_jkt = $7
		where tenant_id = $1 and id = $2 and hash = $3 and exists (select 1 from oauth_grant g
			where g.tenant_id = $1 and g.id = refresh_family.grant_id and g.epoch = $8 and g.ended_at is null`
	if e == db.Postgres {
		return text + " for share)"
	}
	return text + ")"
}

// openWindow is the key of a window, which is made if it is not there. That is one statement:
// between two of them another node may erase it, whose clock is ahead.
func openWindow(ctx context.Context, tx *db.Tx, at int64) (key []byte, err error) {
	key = make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails
	err = tx.QueryRow(ctx, `insert into refresh_window (at, key) values ($1, $2)
		on conflict (at) do update set key = refresh_window.key returning key`, at, key).Scan(&key)
	return key, err
}

// windowsBetween are the windows from one to another, the oldest first.
func windowsBetween(ctx context.Context, tx *db.Tx, from, to int64) ([]window, error) {
	all, err := db.All(ctx, tx, func(columns func(...any) error) (w window, err error) {
		err = columns(&w.at, &w.key)
		return w, err
	}, "select at, key from refresh_window where at >= $1 and at <= $2 order by at desc limit 16", from, to)
	slices.Reverse(all)
	return all, err
}

// closeWindows erases the windows before one.
func closeWindows(ctx context.Context, tx *db.Tx, at int64) error {
	_, err := tx.Exec(ctx, "delete from refresh_window where at < $1", at)
	return err
}

const detailTypeColumns = "id, spec, managed_by, created_at, changed_at, ended_at, epoch"

func scanDetailType(columns func(...any) error) (t DetailType, err error) {
	var spec string
	err = columns(&t.ID, &spec, &t.ManagedBy, &t.CreatedAt, &t.ChangedAt, &t.EndedAt, &t.Epoch)
	if errors.Is(err, db.ErrNoRows) {
		return t, ErrNoDetailType
	}
	if err != nil {
		return t, err
	}
	if err := json.Unmarshal([]byte(spec), &t.Spec); err != nil {
		return t, fmt.Errorf("the specification of the type of authorization details %s: %w", t.ID, err)
	}
	return t, nil
}

// findDetailType reads the type of a name. Locked, it stays so until the
// transaction ends.
func findDetailType(ctx context.Context, tx *db.Tx, name, lock string) (DetailType, error) {
	return scanDetailType(tx.QueryRow(ctx, "select "+detailTypeColumns+" from detail_type where tenant_id = $1 and name = $2 and ended_at is null"+lock,
		tx.Tenant(), name).Scan)
}

func listDetailTypes(ctx context.Context, tx *db.Tx, managedBy, after string, limit int) ([]DetailType, error) {
	return db.All(ctx, tx, scanDetailType, "select "+detailTypeColumns+` from detail_type
		where tenant_id = $1 and name > $2 and ended_at is null and ($3 = '' or managed_by = $3) order by name limit $4`,
		tx.Tenant(), after, managedBy, limit)
}

// insertDetailType adds a type, unless the tenant has as many as it may have, or
// another of the name was added meanwhile.
func insertDetailType(ctx context.Context, tx *db.Tx, t DetailType) error {
	spec, err := json.Marshal(t.Spec)
	if err != nil {
		return err
	}
	var there int
	if err := tx.QueryRow(ctx, "select count(*) from detail_type where tenant_id = $1 and ended_at is null", tx.Tenant()).Scan(&there); err != nil {
		return err
	}
	if there >= maxDetailTypes {
		return ErrDetailTypes
	}
	n, err := tx.Exec(ctx, `insert into detail_type (tenant_id, id, name, spec, managed_by, created_at, changed_at, epoch)
		values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict do nothing`,
		tx.Tenant(), t.ID, t.Name, string(spec), t.ManagedBy, t.CreatedAt, t.ChangedAt, t.Epoch)
	if err == nil && n == 0 {
		return db.ErrStale
	}
	return err
}

func updateDetailType(ctx context.Context, tx *db.Tx, t DetailType) error {
	spec, err := json.Marshal(t.Spec)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "update detail_type set spec = $3, changed_at = $4, ended_at = $5, epoch = $6 where tenant_id = $1 and id = $2",
		tx.Tenant(), t.ID, string(spec), t.ChangedAt, t.EndedAt, t.Epoch)
	return err
}
