package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

const agentColumns = `id, name, blueprint, sponsor, team, environment, purposes, clearance, tier, segments,
	expires_at, managed_by, created_at, ended_at, epoch, client, registration,
	risk_band, risk_reason, risk_by, risk_at`

func scanAgent(scan func(...any) error) (a Agent, err error) {
	var client, registration *string
	err = scan(&a.ID, &a.Name, &a.Blueprint, &a.Sponsor, &a.Team, &a.Environment, &a.Purposes, &a.Clearance, &a.Tier, &a.Segments,
		&a.ExpiresAt, &a.ManagedBy, &a.CreatedAt, &a.EndedAt, &a.Epoch, &client, &registration,
		&a.Risk.Band, &a.Risk.Reason, &a.Risk.By, &a.Risk.At)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrNotFound
	}
	if err == nil && client != nil {
		if err = json.Unmarshal([]byte(*client), &a.Client); err != nil {
			err = fmt.Errorf("reading the client of agent %s: %w", a.ID, err)
		}
	}
	if err == nil && registration != nil {
		if err = json.Unmarshal([]byte(*registration), &a.Registration); err != nil {
			err = fmt.Errorf("reading the registration of agent %s: %w", a.ID, err)
		}
	}
	a.Holds = []Hold{}
	return a, err
}

// stored is what is kept of a client: nothing where there is none.
func (c *Client) stored() any {
	if c == nil {
		return nil
	}
	b, err := json.Marshal(c)
	if err != nil {
		panic("agent: a client that cannot be JSON: " + err.Error())
	}
	return string(b)
}

// metadata is the metadata URL of an agent, nil without one. It is a column of
// its own, so that there is one agent for each.
func (a *Agent) metadata() any {
	if a.Client == nil || a.Client.MetadataURL == "" {
		return nil
	}
	return a.Client.MetadataURL
}

// findMetadata is the id of the agent with a metadata URL. One that is retired
// has given it up.
func findMetadata(ctx context.Context, tx *db.Tx, url string) (id string, err error) {
	err = tx.QueryRow(ctx, `select id from agent where tenant_id = $1 and metadata_url = $2 and ended_at is null`, tx.Tenant(), url).Scan(&id)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrNotFound
	}
	return id, err
}

// freeMetadata makes sure that the metadata URL of an agent is no other agent's.
// Two that take it at once are told apart by an index.
func freeMetadata(ctx context.Context, tx *db.Tx, a Agent) error {
	if a.metadata() == nil || !a.EndedAt.IsZero() {
		return nil
	}
	switch id, err := findMetadata(ctx, tx, a.Client.MetadataURL); {
	case errors.Is(err, ErrNotFound), err == nil && id == a.ID:
		return nil
	case err != nil:
		return err
	}
	return ErrMetadataTaken.At("client.metadata_url")
}

func find(ctx context.Context, tx *db.Tx, id string) (Agent, error) {
	return withHolds(ctx, tx, "select "+agentColumns+" from agent where tenant_id = $1 and id = $2", id)
}

func findName(ctx context.Context, tx *db.Tx, name string) (Agent, error) {
	return withHolds(ctx, tx, "select "+agentColumns+" from agent where tenant_id = $1 and name = $2", name)
}

// lock is find, and nobody else changes the agent until the transaction ends.
func lock(ctx context.Context, tx *db.Tx, id string) (Agent, error) {
	return withHolds(ctx, tx, "select "+agentColumns+" from agent where tenant_id = $1 and id = $2"+tx.ForUpdate(), id)
}

func withHolds(ctx context.Context, tx *db.Tx, query, key string) (Agent, error) {
	a, err := scanAgent(tx.QueryRow(ctx, query, tx.Tenant(), key).Scan)
	if err != nil {
		return a, err
	}
	holds, err := db.All(ctx, tx, scanHold, "select "+holdColumns+` from agent_hold
		where tenant_id = $1 and agent_id = $2 and lifted_at is null order by raised_at, id`, tx.Tenant(), a.ID)
	for _, h := range holds {
		a.Holds = append(a.Holds, h.Hold)
	}
	a.Status = a.StatusAt(tx.Now())
	return a, err
}

const holdColumns = "agent_id, id, kind, reason, raised_by, raised_at"

func scanHold(scan func(...any) error) (h HoldOf, err error) {
	err = scan(&h.Agent, &h.ID, &h.Kind, &h.Reason, &h.By, &h.At)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrHoldNotFound
	}
	return h, err
}

func list(ctx context.Context, tx *db.Tx, f Filter, after string, limit int) ([]Agent, error) {
	const page = ` from agent a where a.tenant_id = $1 and a.name > $2
		and ($3 = '' or a.sponsor = $3) and ($4 = '' or a.blueprint = $4) and ($5 = '' or a.team = $5) and ($6 = '' or a.managed_by = $6)
		and ($7 = '' or exists (select 1 from agent_hold h where h.tenant_id = $1 and h.agent_id = a.id and h.kind = $7 and h.lifted_at is null))
		order by a.name limit $8`
	args := []any{tx.Tenant(), after, f.Sponsor, f.Blueprint, f.Team, f.ManagedBy, f.Hold, limit}
	agents, err := db.All(ctx, tx, scanAgent, "select "+agentColumns+page, args...)
	if err != nil {
		return nil, err
	}
	holds, err := db.All(ctx, tx, scanHold, "select "+holdColumns+` from agent_hold
		where tenant_id = $1 and lifted_at is null and agent_id in (select a.id`+page+`) order by raised_at, id`, args...)
	if err != nil {
		return nil, err
	}
	of := map[string][]Hold{}
	for _, h := range holds {
		of[h.Agent] = append(of[h.Agent], h.Hold)
	}
	for i := range agents {
		agents[i].Holds = append(agents[i].Holds, of[agents[i].ID]...)
		agents[i].Status = agents[i].StatusAt(tx.Now())
	}
	return agents, nil
}

// insert adds an agent, unless its name or its metadata URL is taken.
func insert(ctx context.Context, tx *db.Tx, a Agent) error {
	if err := freeMetadata(ctx, tx, a); err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `insert into agent (tenant_id, id, name, blueprint, sponsor, team, environment, purposes, clearance, tier, segments,
			expires_at, managed_by, created_at, epoch, client, metadata_url)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
		on conflict (tenant_id, name) do nothing`,
		tx.Tenant(), a.ID, a.Name, a.Blueprint, a.Sponsor, a.Team, a.Environment, a.Purposes, a.Clearance, a.Tier, a.Segments,
		a.ExpiresAt, a.ManagedBy, a.CreatedAt, a.Epoch, a.Client.stored(), a.metadata())
	switch {
	case err == nil && n == 0:
		return ErrNameTaken.At("name")
	case db.Taken(err):
		return ErrMetadataTaken.At("client.metadata_url")
	}
	return err
}

func update(ctx context.Context, tx *db.Tx, a Agent) error {
	if err := freeMetadata(ctx, tx, a); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `update agent set blueprint = $3, sponsor = $4, team = $5, environment = $6, purposes = $7, clearance = $8,
			tier = $9, segments = $10, expires_at = $11, ended_at = $12, epoch = $13, client = $14, metadata_url = $15, registration = $16,
			risk_band = $17, risk_reason = $18, risk_by = $19, risk_at = $20
		where tenant_id = $1 and id = $2`,
		tx.Tenant(), a.ID, a.Blueprint, a.Sponsor, a.Team, a.Environment, a.Purposes, a.Clearance,
		a.Tier, a.Segments, a.ExpiresAt, a.EndedAt, a.Epoch, a.Client.stored(), a.metadata(), a.Registration.stored(),
		a.Risk.Band, a.Risk.Reason, a.Risk.By, a.Risk.At)
	if db.Taken(err) {
		err = ErrMetadataTaken.At("client.metadata_url")
	}
	return err
}

// sponsored lists the agents of a person that are not retired.
func sponsored(ctx context.Context, tx *db.Tx, person string) ([]string, error) {
	return covered(ctx, tx, "", person)
}

// covered lists the agents of a blueprint or a person that are not retired.
func covered(ctx context.Context, tx *db.Tx, blueprint, sponsor string) ([]string, error) {
	query, args := `select id from agent where tenant_id = $1 and ended_at is null`, []any{tx.Tenant()}
	for _, by := range []struct{ column, value string }{{"blueprint", blueprint}, {"sponsor", sponsor}} {
		if by.value != "" {
			args = append(args, by.value)
			query += ` and ` + by.column + ` = $` + strconv.Itoa(len(args))
		}
	}
	return db.AllOf[string](ctx, tx, query+` order by id`, args...)
}

func insertHold(ctx context.Context, tx *db.Tx, agent string, h Hold) error {
	_, err := tx.Exec(ctx, `insert into agent_hold (tenant_id, id, agent_id, kind, reason, raised_by, raised_at)
		values ($1, $2, $3, $4, $5, $6, $7)`, tx.Tenant(), h.ID, agent, h.Kind, h.Reason, h.By, h.At)
	return err
}

func findHold(ctx context.Context, tx *db.Tx, id string) (HoldOf, error) {
	return scanHold(tx.QueryRow(ctx, "select "+holdColumns+" from agent_hold where tenant_id = $1 and id = $2 and lifted_at is null", tx.Tenant(), id).Scan)
}

func quarantined(ctx context.Context, tx *db.Tx, limit int) ([]HoldOf, error) {
	return db.All(ctx, tx, scanHold, "select "+holdColumns+` from agent_hold
		where tenant_id = $1 and kind = $2 and lifted_at is null order by raised_at, id limit $3`, tx.Tenant(), Quarantine, limit)
}

func lift(ctx context.Context, tx *db.Tx, agent, hold string, by estover.Subject) error {
	n, err := tx.Exec(ctx, `update agent_hold set lifted_at = $4, lifted_by = $5
		where tenant_id = $1 and agent_id = $2 and id = $3 and lifted_at is null`, tx.Tenant(), agent, hold, tx.Now(), by)
	if err == nil && n == 0 {
		return ErrHoldNotFound
	}
	return err
}

func scanCredential(scan func(...any) error) (c Credential, err error) {
	var jwks, certificate *string
	err = scan(&c.ID, &c.Agent, &c.Kind, &c.Label, &c.hash, &jwks, &certificate, &c.Backup, &c.CreatedAt, &c.CreatedBy, &c.ExpiresAt, &c.LastUsedAt, &c.Epoch)
	if jwks != nil {
		c.JWKS = json.RawMessage(*jwks)
	}
	if err == nil && certificate != nil {
		if err = json.Unmarshal([]byte(*certificate), &c.Certificate); err != nil {
			err = fmt.Errorf("reading credential %s: %w", c.ID, err)
		}
	}
	return c, err
}

// credentialsOf lists the credentials of an agent that are live, the newest
// first.
func credentialsOf(ctx context.Context, tx *db.Tx, agent string) ([]Credential, error) {
	return db.All(ctx, tx, scanCredential, `select id, agent_id, kind, label, hash, jwks, certificate, backup, created_at, created_by, expires_at, last_used_at, epoch
		from agent_credential where tenant_id = $1 and agent_id = $2 and ended_at is null and (expires_at is null or expires_at > $3)
		order by created_at desc, id`, tx.Tenant(), agent, tx.Now())
}

func insertCredential(ctx context.Context, tx *db.Tx, c Credential) error {
	var hash, jwks, certificate any // null unless it is of the kind
	switch c.Kind {
	case ClientSecret:
		hash = c.hash
	case KeySet:
		jwks = c.JWKS
	case Certified:
		b, err := json.Marshal(c.Certificate)
		if err != nil {
			return err
		}
		certificate = string(b)
	}
	_, err := tx.Exec(ctx, `insert into agent_credential (tenant_id, id, agent_id, kind, label, hash, jwks, certificate, backup,
			created_at, created_by, expires_at, epoch)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
		tx.Tenant(), c.ID, c.Agent, c.Kind, c.Label, hash, jwks, certificate, c.Backup, c.CreatedAt, c.CreatedBy, c.ExpiresAt, c.Epoch)
	return err
}

func endCredential(ctx context.Context, tx *db.Tx, agent, id string) error {
	n, err := tx.Exec(ctx, `update agent_credential set ended_at = $4
		where tenant_id = $1 and agent_id = $2 and id = $3 and ended_at is null`, tx.Tenant(), agent, id, tx.Now())
	if err == nil && n == 0 {
		return ErrCredentialNotFound
	}
	return err
}

func endCredentials(ctx context.Context, tx *db.Tx, agent string) error {
	_, err := tx.Exec(ctx, `update agent_credential set ended_at = $3
		where tenant_id = $1 and agent_id = $2 and ended_at is null`, tx.Tenant(), agent, tx.Now())
	return err
}

// expireCredential sets when a credential ends, unless it ends before.
func expireCredential(ctx context.Context, tx *db.Tx, agent, id string, at time.Time) error {
	n, err := tx.Exec(ctx, `update agent_credential set expires_at = case when expires_at < $4 then expires_at else $4 end
		where tenant_id = $1 and agent_id = $2 and id = $3 and ended_at is null and (expires_at is null or expires_at > $5)`,
		tx.Tenant(), agent, id, at, tx.Now())
	if err == nil && n == 0 {
		return ErrCredentialNotFound
	}
	return err
}

// saveUses stores the times in the order of their keys, so that two nodes that
// do so at once do not wait for each other in a circle.
func saveUses(ctx context.Context, tx *db.Tx, uses map[string]time.Time) error {
	for _, id := range slices.Sorted(maps.Keys(uses)) {
		_, err := tx.Exec(ctx, `update agent_credential set last_used_at = $3
			where tenant_id = $1 and id = $2 and (last_used_at is null or last_used_at < $3)`, tx.Tenant(), id, uses[id])
		if err != nil {
			return err
		}
	}
	return nil
}

func isRegistering(ctx context.Context, tx *db.Tx) (bool, error) {
	return db.Exists(ctx, tx, `select 1 from client_registration where tenant_id = $1`, tx.Tenant())
}

func setRegistering(ctx context.Context, tx *db.Tx, open bool, by estover.Subject) error {
	if !open {
		_, err := tx.Exec(ctx, `delete from client_registration where tenant_id = $1`, tx.Tenant())
		return err
	}
	_, err := tx.Exec(ctx, `insert into client_registration (tenant_id, opened_at, opened_by) values ($1, $2, $3) on conflict do nothing`,
		tx.Tenant(), tx.Now(), by)
	return err
}

const initialTokenColumns = `id, label, bounds, uses, used, created_at, created_by, expires_at, ended_at`

func scanInitialToken(scan func(...any) error) (t InitialToken, err error) {
	var bounds string
	err = scan(&t.ID, &t.Label, &bounds, &t.Uses, &t.Used, &t.CreatedAt, &t.CreatedBy, &t.ExpiresAt, &t.EndedAt)
	if err == nil {
		if err = json.Unmarshal([]byte(bounds), &t.Bounds); err != nil {
			err = fmt.Errorf("reading the bounds of initial access token %s: %w", t.ID, err)
		}
	}
	return t, err
}

func insertInitialToken(ctx context.Context, tx *db.Tx, t InitialToken, hash [32]byte) error {
	bounds, err := json.Marshal(t.Bounds)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `insert into initial_token (tenant_id, id, hash, label, bounds, uses, used, created_at, created_by, expires_at)
		values ($1, $2, $3, $4, $5, $6, 0, $7, $8, $9)`,
		tx.Tenant(), t.ID, hash[:], t.Label, string(bounds), t.Uses, t.CreatedAt, t.CreatedBy, t.ExpiresAt)
	return err
}

// findInitialToken reads a token, whether or not it is good for anything.
func findInitialToken(ctx context.Context, tx *db.Tx, hash [32]byte) (InitialToken, error) {
	t, err := scanInitialToken(tx.QueryRow(ctx, "select "+initialTokenColumns+" from initial_token where tenant_id = $1 and hash = $2", tx.Tenant(), hash[:]).Scan)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrInitialToken
	}
	return t, err
}

// initialTokens lists the tokens that are good for something, the newest first.
func initialTokens(ctx context.Context, tx *db.Tx) ([]InitialToken, error) {
	return db.All(ctx, tx, scanInitialToken, "select "+initialTokenColumns+` from initial_token
		where tenant_id = $1 and ended_at is null and used < uses and expires_at > $2 order by created_at desc, id limit 1000`, tx.Tenant(), tx.Now())
}

// useInitialToken takes one use of a token, if one is left.
func useInitialToken(ctx context.Context, tx *db.Tx, id string) (bool, error) {
	n, err := tx.Exec(ctx, `update initial_token set used = used + 1
		where tenant_id = $1 and id = $2 and used < uses and expires_at > $3 and ended_at is null`, tx.Tenant(), id, tx.Now())
	return n == 1, err
}

func endInitialToken(ctx context.Context, tx *db.Tx, id string) error {
	n, err := tx.Exec(ctx, `update initial_token set ended_at = $3 where tenant_id = $1 and id = $2 and ended_at is null`, tx.Tenant(), id, tx.Now())
	if err == nil && n == 0 {
		return ErrInitialTokenNotFound
	}
	return err
}

// stored is what is kept of a registration: nothing of an agent that has none.
func (r *Registration) stored() any {
	if r == nil {
		return nil
	}
	b, err := json.Marshal(r)
	if err != nil {
		panic("agent: a registration that cannot be JSON: " + err.Error())
	}
	return string(b)
}

// keepRegistration stores what a client says of itself and the token by which it
// does so the next time, in the place of the one that it has just presented.
func keepRegistration(ctx context.Context, tx *db.Tx, a Agent, presented *[32]byte, next [32]byte) error {
	var old any
	if presented != nil {
		old = presented[:]
	}
	n, err := tx.Exec(ctx, `update agent set registration = $3, registration_hash = $4
		where tenant_id = $1 and id = $2 and ended_at is null and (registration_hash = $5 or $5 is null and registration is null)`,
		tx.Tenant(), a.ID, a.Registration.stored(), next[:], old)
	if err == nil && n == 0 {
		return ErrRegistrationToken
	}
	return err
}

// checkRegistration makes sure that a token is the one by which a client manages
// its registration.
func checkRegistration(ctx context.Context, tx *db.Tx, id string, hash [32]byte) error {
	there, err := db.Exists(ctx, tx, `select 1 from agent where tenant_id = $1 and id = $2 and registration_hash = $3 and ended_at is null`,
		tx.Tenant(), id, hash[:])
	if err == nil && !there {
		return ErrRegistrationToken
	}
	return err
}

// ExpiredSince are the agents of all tenants whose time has run out since a
// moment, and that are not retired.
func ExpiredSince(ctx context.Context, tx *db.Tx, since time.Time) ([]db.Place, error) {
	return db.All(ctx, tx, db.ScanPlace, `select tenant_id, id from agent where expires_at > $1 and expires_at <= $2 and ended_at is null`, since, tx.Now())
}
