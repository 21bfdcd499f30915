package directory

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"time"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

const personColumns = "id, name, email, roles, managed_by, created_at, disabled_at, disabled_reason, epoch, expires_at"

func scanPerson(scan func(...any) error) (p Person, err error) {
	var roles []string
	err = scan(&p.ID, &p.Name, &p.Email, &roles, &p.ManagedBy, &p.CreatedAt, &p.DisabledAt, &p.DisabledReason, &p.Epoch, &p.ExpiresAt)
	if errors.Is(err, db.ErrNoRows) {
		return p, ErrNotFound
	}
	for _, r := range roles {
		p.Roles = append(p.Roles, estover.Role(r))
	}
	p.Status = Active
	if !p.DisabledAt.IsZero() {
		p.Status = Disabled
	}
	return p, err
}

func roleWords(roles []estover.Role) []string {
	words := make([]string, len(roles))
	for i, r := range roles {
		words[i] = string(r)
	}
	return words
}

func find(ctx context.Context, tx *db.Tx, id string) (Person, error) {
	return scanPerson(tx.QueryRow(ctx, "select "+personColumns+" from person where tenant_id = $1 and id = $2", tx.Tenant(), id).Scan)
}

func findName(ctx context.Context, tx *db.Tx, name string) (Person, error) {
	return scanPerson(tx.QueryRow(ctx, "select "+personColumns+" from person where tenant_id = $1 and name = $2", tx.Tenant(), name).Scan)
}

// lock is find, and nobody else changes the row until the transaction ends.
func lock(ctx context.Context, tx *db.Tx, id string) (Person, error) {
	return scanPerson(tx.QueryRow(ctx, "select "+personColumns+" from person where tenant_id = $1 and id = $2"+tx.ForUpdate(), tx.Tenant(), id).Scan)
}

func list(ctx context.Context, tx *db.Tx, f Filter, after string, limit int) ([]Person, error) {
	return db.All(ctx, tx, scanPerson, "select "+personColumns+` from person
		where tenant_id = $1 and name > $2 and ($3 = '' or managed_by = $3) order by name limit $4`,
		tx.Tenant(), after, f.ManagedBy, limit)
}

// insert adds a person, unless the name or the address is taken.
func insert(ctx context.Context, tx *db.Tx, p Person) error {
	n, err := tx.Exec(ctx, `insert into person (tenant_id, id, name, email, roles, managed_by, created_at, disabled_reason, epoch)
		values ($1, $2, $3, $4, $5, $6, $7, '', $8) on conflict do nothing`,
		tx.Tenant(), p.ID, p.Name, p.Email, roleWords(p.Roles), p.ManagedBy, tx.Now(), p.Epoch)
	if err != nil || n == 1 {
		return err
	}
	if _, err := findName(ctx, tx, p.Name); errors.Is(err, ErrNotFound) {
		return ErrEmailTaken.At("email")
	} else if err != nil {
		return err
	}
	return ErrNameTaken.At("name")
}

func update(ctx context.Context, tx *db.Tx, p Person) error {
	_, err := tx.Exec(ctx, `update person set email = $3, roles = $4, disabled_at = $5, disabled_reason = $6, epoch = $7
		where tenant_id = $1 and id = $2`,
		tx.Tenant(), p.ID, p.Email, roleWords(p.Roles), p.DisabledAt, p.DisabledReason, p.Epoch)
	if db.Taken(err) {
		return ErrEmailTaken.At("email")
	}
	return err
}

// lockAdministrators gives the ids of the active administrators who are so for
// good, and nobody else changes their rows until the transaction ends.
func lockAdministrators(ctx context.Context, tx *db.Tx) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select id from person
		where tenant_id = $1 and disabled_at is null and expires_at is null and roles like '%"admin"%' order by created_at, id`+tx.ForUpdate(), tx.Tenant())
}

// administratorEntered reports whether an active administrator has ever had a
// token.
func administratorEntered(ctx context.Context, tx *db.Tx) (bool, error) {
	return db.Exists(ctx, tx, `select 1 from person p join person_token t on t.tenant_id = p.tenant_id and t.person_id = p.id
		where p.tenant_id = $1 and p.disabled_at is null and p.roles like '%"admin"%' limit 1`, tx.Tenant())
}

func insertEnrolment(ctx context.Context, tx *db.Tx, e Enrolment, by estover.Subject) error {
	_, err := tx.Exec(ctx, `insert into enrolment (tenant_id, id, person_id, hash, created_at, created_by, expires_at)
		values ($1, $2, $3, $4, $5, $6, $7)`,
		tx.Tenant(), e.ID, e.Person, e.hash[:], tx.Now(), by, tx.Now().Add(e.life))
	return err
}

// enrolled is who the enrolment was made for, consumed or not.
func enrolled(ctx context.Context, tx *db.Tx, hash []byte) (person string, err error) {
	err = tx.QueryRow(ctx, "select person_id from enrolment where tenant_id = $1 and hash = $2", tx.Tenant(), hash).Scan(&person)
	if errors.Is(err, db.ErrNoRows) {
		return "", ErrEnrolment
	}
	return person, err
}

// consume uses an enrolment up, and voids the others of its person.
func consume(ctx context.Context, tx *db.Tx, hash []byte) (id string, err error) {
	var person string
	err = tx.QueryRow(ctx, `update enrolment set consumed_at = $3
		where tenant_id = $1 and hash = $2 and consumed_at is null and expires_at > $3 returning id, person_id`,
		tx.Tenant(), hash, tx.Now()).Scan(&id, &person)
	if errors.Is(err, db.ErrNoRows) {
		return "", ErrEnrolment
	}
	if err != nil {
		return "", err
	}
	_, err = tx.Exec(ctx, `update enrolment set consumed_at = $3
		where tenant_id = $1 and person_id = $2 and consumed_at is null`, tx.Tenant(), person, tx.Now())
	return id, err
}

func insertToken(ctx context.Context, tx *db.Tx, t Token) error {
	_, err := tx.Exec(ctx, `insert into person_token (tenant_id, id, person_id, hash, label, created_at, expires_at, kind, methods, seen_at, authenticated_at, provider_id)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, nullif($12, ''))`,
		tx.Tenant(), t.ID, t.Person, t.hash[:], t.Label, t.CreatedAt, t.ExpiresAt, t.Kind, t.Methods, t.SeenAt, t.Since, t.provider)
	return err
}

func tokenOwner(ctx context.Context, tx *db.Tx, hash []byte) (person string, err error) {
	err = tx.QueryRow(ctx, "select person_id from person_token where tenant_id = $1 and hash = $2", tx.Tenant(), hash).Scan(&person)
	if errors.Is(err, db.ErrNoRows) {
		return "", ErrToken
	}
	return person, err
}

const tokenColumns = "id, person_id, hash, label, created_at, expires_at, ended_at, kind, methods, seen_at, coalesce(authenticated_at, created_at)"

func scanToken(scan func(...any) error) (t Token, err error) {
	var hash []byte
	err = scan(&t.ID, &t.Person, &hash, &t.Label, &t.CreatedAt, &t.ExpiresAt, &t.EndedAt, &t.Kind, &t.Methods, &t.SeenAt, &t.Since)
	if errors.Is(err, db.ErrNoRows) {
		return t, ErrToken
	}
	copy(t.hash[:], hash)
	return t, err
}

// visitOf is the token of a browser, live or not.
func visitOf(ctx context.Context, tx *db.Tx, hash []byte) (Token, error) {
	return scanToken(tx.QueryRow(ctx, "select "+tokenColumns+" from person_token where tenant_id = $1 and hash = $2 and kind = 'browser'",
		tx.Tenant(), hash).Scan)
}

// seen notes that a browser has just asked for something.
func seen(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, "update person_token set seen_at = $3 where tenant_id = $1 and id = $2", tx.Tenant(), id, tx.Now())
	return err
}

// endTokens ends the tokens that fit a condition, whose arguments are $3 and on, and
// says how many those were. What rests on them ends along with them.
func endTokens(ctx context.Context, tx *guard.Tx, where string, args ...any) (int64, error) {
	ids, err := db.AllOf[string](ctx, tx.Tx, "update person_token set ended_at = $2 where tenant_id = $1 and ended_at is null and "+where+" returning id",
		append([]any{tx.Tenant(), tx.Now()}, args...)...)
	for _, id := range ids {
		tx.End(TokenTable, id)
	}
	return int64(len(ids)), err
}

// makeRoom ends the oldest visits of a person beyond so many.
func makeRoom(ctx context.Context, tx *guard.Tx, person string, most int) error {
	_, err := endTokens(ctx, tx, `id in (
			select id from person_token where tenant_id = $1 and person_id = $3 and kind = 'browser' and ended_at is null and expires_at > $2
			order by created_at desc, id limit 1000 offset $4)`, person, most)
	return err
}

// tokensOf lists the tokens of a person, the newest first.
func tokensOf(ctx context.Context, tx *db.Tx, person string) ([]Token, error) {
	return db.All(ctx, tx, scanToken, "select "+tokenColumns+` from person_token
		where tenant_id = $1 and person_id = $2 and ended_at is null and expires_at > $3 order by created_at desc, id`,
		tx.Tenant(), person, tx.Now())
}

func tokenLive(ctx context.Context, tx *db.Tx, person, id, lock string) (bool, error) {
	return db.Exists(ctx, tx, `select 1 from person_token
		where tenant_id = $1 and id = $2 and person_id = $3 and ended_at is null and expires_at > $4`+lock,
		tx.Tenant(), id, person, tx.Now())
}

// A standing is what lets a person do something at the moment.
type standing struct {
	name     string
	epoch    int64
	disabled bool
	live     bool // the token by which they came in
}

// standingOf reads it in one statement, since everything that a person does asks
// for it within its transaction.
func standingOf(ctx context.Context, tx *db.Tx, id, token string) (s standing, err error) {
	var disabled time.Time
	var tokens int
	err = tx.QueryRow(ctx, `select name, epoch, disabled_at, (select count(*) from person_token t
			where t.tenant_id = $1 and t.id = $3 and t.person_id = $2 and t.ended_at is null and t.expires_at > $4)
		from person where tenant_id = $1 and id = $2`, tx.Tenant(), id, token, tx.Now()).Scan(&s.name, &s.epoch, &disabled, &tokens)
	if errors.Is(err, db.ErrNoRows) {
		return s, ErrNotFound
	}
	s.disabled, s.live = !disabled.IsZero(), tokens == 1
	return s, err
}

// Stays reports whether a log-in by which a person could come in at a time still
// lets them in.
func Stays(ctx context.Context, tx *db.Tx, person string, at time.Time) (bool, error) {
	return db.Exists(ctx, tx, `select 1 from person_token
		where tenant_id = $1 and person_id = $2 and created_at <= $3 and ended_at is null and expires_at > $4 limit 1`,
		tx.Tenant(), person, at, tx.Now())
}

func endToken(ctx context.Context, tx *guard.Tx, person, id string) error {
	n, err := endTokens(ctx, tx, "id = $3 and person_id = $4", id, person)
	if err == nil && n == 0 {
		return ErrTokenNotFound
	}
	return err
}

// endEntries ends all by which a person could come in, but for their keys.
func endEntries(ctx context.Context, tx *guard.Tx, person string) error {
	if _, err := endTokens(ctx, tx, "person_id = $3", person); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, "update enrolment set consumed_at = $3 where tenant_id = $1 and person_id = $2 and consumed_at is null", tx.Tenant(), person, tx.Now())
	return err
}

// openEnrolment is who an enrolment is for that could be consumed now.
func openEnrolment(ctx context.Context, tx *db.Tx, hash []byte) (person string, err error) {
	err = tx.QueryRow(ctx, `select person_id from enrolment where tenant_id = $1 and hash = $2 and consumed_at is null and expires_at > $3`,
		tx.Tenant(), hash, tx.Now()).Scan(&person)
	if errors.Is(err, db.ErrNoRows) {
		return "", ErrEnrolment
	}
	return person, err
}

// answered uses a challenge up.
func answered(ctx context.Context, tx *db.Tx, a Answer) error {
	hash := sha256.Sum256([]byte(a.Challenge))
	if !tx.Now().Before(a.Expires) {
		return ErrChallenge.With("The sign-in took too long. Start again.")
	}
	n, err := tx.Exec(ctx, "insert into answered_challenge (tenant_id, hash, expires_at) values ($1, $2, $3) on conflict do nothing",
		tx.Tenant(), hash[:], a.Expires)
	if err == nil && n == 0 {
		return ErrChallenge
	}
	return err
}

const passkeyColumns = "id, person_id, credential_id, credential, label, created_at, used_at, ended_at, public_key, mac"

func scanPasskey(scan func(...any) error) (k Passkey, err error) {
	var record string
	err = scan(&k.ID, &k.Person, &k.Credential, &record, &k.Label, &k.CreatedAt, &k.UsedAt, &k.endedAt, &k.Public, &k.mac)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrPasskeyNotFound
	}
	k.Record = []byte(record)
	return k, err
}

func passkeysOf(ctx context.Context, tx *db.Tx, person string) ([]Passkey, error) {
	return db.All(ctx, tx, scanPasskey, "select "+passkeyColumns+` from passkey
		where tenant_id = $1 and person_id = $2 and ended_at is null order by created_at, id`, tx.Tenant(), person)
}

// findPasskey is a passkey of a person, also one that has ended.
func findPasskey(ctx context.Context, tx *db.Tx, person, id string) (Passkey, error) {
	return scanPasskey(tx.QueryRow(ctx, "select "+passkeyColumns+" from passkey where tenant_id = $1 and person_id = $2 and id = $3", tx.Tenant(), person, id).Scan)
}

func insertPasskey(ctx context.Context, tx *db.Tx, k Passkey) error {
	n, err := tx.Exec(ctx, `insert into passkey (tenant_id, id, person_id, credential_id, credential, label, created_at, public_key, mac)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing`,
		tx.Tenant(), k.ID, k.Person, k.Credential, k.Record, k.Label, k.CreatedAt, k.Public, k.mac)
	if err == nil && n == 0 {
		return ErrPasskeyTaken
	}
	return err
}

// usePasskey stores a passkey's record after a use, unless it was ended.
func usePasskey(ctx context.Context, tx *db.Tx, k Passkey) error {
	n, err := tx.Exec(ctx, `update passkey set credential = $4, used_at = $5
		where tenant_id = $1 and id = $2 and person_id = $3 and ended_at is null`, tx.Tenant(), k.ID, k.Person, k.Record, tx.Now())
	if err == nil && n == 0 {
		return ErrSignIn
	}
	return err
}

func endPasskey(ctx context.Context, tx *db.Tx, k Passkey) error {
	n, err := tx.Exec(ctx, "update passkey set ended_at = $4, mac = $5 where tenant_id = $1 and id = $2 and person_id = $3 and ended_at is null",
		tx.Tenant(), k.ID, k.Person, k.endedAt, k.mac)
	if err == nil && n == 0 {
		return ErrPasskeyNotFound
	}
	return err
}

const approverKeyColumns = "id, person_id, label, public_key, verifies, created_at, ended_at, mac"

func scanApproverKey(scan func(...any) error) (k ApproverKey, err error) {
	var verifies int64
	err = scan(&k.ID, &k.Person, &k.Label, &k.Public, &verifies, &k.CreatedAt, &k.EndedAt, &k.mac)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrKeyNotFound
	}
	k.Method, k.Verifies = attest.BySSH, verifies == 1
	k.describe()
	return k, err
}

func approverKeysOf(ctx context.Context, tx *db.Tx, person string) ([]ApproverKey, error) {
	return db.All(ctx, tx, scanApproverKey, "select "+approverKeyColumns+` from approver_key
		where tenant_id = $1 and person_id = $2 and ended_at is null order by created_at, id`, tx.Tenant(), person)
}

// findApproverKey is an ssh key of a person, also one that has ended.
func findApproverKey(ctx context.Context, tx *db.Tx, person, id string) (ApproverKey, error) {
	return scanApproverKey(tx.QueryRow(ctx, "select "+approverKeyColumns+" from approver_key where tenant_id = $1 and person_id = $2 and id = $3", tx.Tenant(), person, id).Scan)
}

func insertApproverKey(ctx context.Context, tx *db.Tx, k ApproverKey) error {
	verifies := int64(0)
	if k.Verifies {
		verifies = 1
	}
	n, err := tx.Exec(ctx, `insert into approver_key (tenant_id, id, person_id, label, public_key, verifies, created_at, mac)
		values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict do nothing`,
		tx.Tenant(), k.ID, k.Person, k.Label, k.Public, verifies, k.CreatedAt, k.mac)
	if err == nil && n == 0 {
		return ErrKeyTaken
	}
	return err
}

func endApproverKey(ctx context.Context, tx *db.Tx, k ApproverKey) error {
	n, err := tx.Exec(ctx, "update approver_key set ended_at = $4, mac = $5 where tenant_id = $1 and id = $2 and person_id = $3 and ended_at is null",
		tx.Tenant(), k.ID, k.Person, k.EndedAt, k.mac)
	if err == nil && n == 0 {
		return ErrKeyNotFound
	}
	return err
}

// proved is when a person last proved who they are for the login with this id:
// when they signed in, in a browser, or took the token over.
func proved(ctx context.Context, tx *db.Tx, person, id string) (since time.Time, err error) {
	tokens, err := tokensOf(ctx, tx, person)
	if err != nil {
		return since, err
	}
	for _, t := range tokens {
		if t.ID == id {
			if t.Kind == browserToken {
				return t.Since, nil
			}
			return t.CreatedAt, nil
		}
	}
	return since, ErrToken
}

// replaceCodes voids the recovery codes of a person and stores others.
func replaceCodes(ctx context.Context, tx *db.Tx, person string, hashes [][32]byte) error {
	_, err := tx.Exec(ctx, "update recovery_code set used_at = $3 where tenant_id = $1 and person_id = $2 and used_at is null",
		tx.Tenant(), person, tx.Now())
	if err != nil {
		return err
	}
	for _, h := range hashes {
		if _, err := tx.Exec(ctx, "insert into recovery_code (tenant_id, hash, person_id, created_at) values ($1, $2, $3, $4)",
			tx.Tenant(), h[:], person, tx.Now()); err != nil {
			return err
		}
	}
	return nil
}

// codeOwner is whose recovery code it is, used or not.
func codeOwner(ctx context.Context, tx *db.Tx, hash []byte) (person string, err error) {
	err = tx.QueryRow(ctx, "select person_id from recovery_code where tenant_id = $1 and hash = $2", tx.Tenant(), hash).Scan(&person)
	if errors.Is(err, db.ErrNoRows) {
		return "", ErrSignIn
	}
	return person, err
}

// useCode uses a recovery code up.
func useCode(ctx context.Context, tx *db.Tx, hash []byte) error {
	n, err := tx.Exec(ctx, "update recovery_code set used_at = $3 where tenant_id = $1 and hash = $2 and used_at is null",
		tx.Tenant(), hash, tx.Now())
	if err == nil && n == 0 {
		return ErrSignIn
	}
	return err
}

func codesLeft(ctx context.Context, tx *db.Tx, person string) (n int, err error) {
	err = tx.QueryRow(ctx, "select count(*) from recovery_code where tenant_id = $1 and person_id = $2 and used_at is null",
		tx.Tenant(), person).Scan(&n)
	return n, err
}

const providerColumns = "id, spec, managed_by, created_at, changed_at, epoch"

func scanProvider(scan func(...any) error) (p Provider, err error) {
	var spec string
	err = scan(&p.ID, &spec, &p.ManagedBy, &p.CreatedAt, &p.ChangedAt, &p.Epoch)
	if errors.Is(err, db.ErrNoRows) {
		return p, ErrProviderNotFound
	}
	if err == nil {
		err = json.Unmarshal([]byte(spec), &p.ProviderSpec)
	}
	return p, err
}

// findProvider is the provider of which a column has this value.
func findProvider(ctx context.Context, tx *db.Tx, column, value, lock string) (Provider, error) {
	return scanProvider(tx.QueryRow(ctx, "select "+providerColumns+" from identity_provider where tenant_id = $1 and "+column+" = $2 and ended_at is null"+lock,
		tx.Tenant(), value).Scan)
}

func providers(ctx context.Context, tx *db.Tx, f Filter) ([]Provider, error) {
	return db.All(ctx, tx, scanProvider, "select "+providerColumns+` from identity_provider
		where tenant_id = $1 and ended_at is null and ($2 = '' or managed_by = $2) order by name limit 100`, tx.Tenant(), f.ManagedBy)
}

func insertProvider(ctx context.Context, tx *db.Tx, p Provider) error {
	spec, err := specJSON(p.ProviderSpec)
	if err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `insert into identity_provider (tenant_id, id, name, spec, managed_by, created_at, changed_at, epoch)
		values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict do nothing`,
		tx.Tenant(), p.ID, p.Name, spec, p.ManagedBy, p.CreatedAt, p.ChangedAt, p.Epoch)
	if err == nil && n == 0 {
		return db.ErrStale // another of the name was added meanwhile
	}
	return err
}

func updateProvider(ctx context.Context, tx *db.Tx, p Provider) error {
	spec, err := specJSON(p.ProviderSpec)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "update identity_provider set spec = $3, changed_at = $4, epoch = $5 where tenant_id = $1 and id = $2",
		tx.Tenant(), p.ID, spec, p.ChangedAt, p.Epoch)
	return err
}

func endProvider(ctx context.Context, tx *db.Tx, name string) (id string, err error) {
	err = tx.QueryRow(ctx, `update identity_provider set ended_at = $3, epoch = epoch + 1
		where tenant_id = $1 and name = $2 and ended_at is null returning id`, tx.Tenant(), name, tx.Now()).Scan(&id)
	if errors.Is(err, db.ErrNoRows) {
		return "", ErrProviderNotFound
	}
	return id, err
}

// endVisits signs out everybody who came in by a provider, and says how many
// browsers that were.
func endVisits(ctx context.Context, tx *guard.Tx, provider string) (n int64, err error) {
	return endTokens(ctx, tx, "provider_id = $3", provider)
}

// linked is whom a provider's subject was linked to, or [ErrNotFound].
func linked(ctx context.Context, tx *db.Tx, provider, subject string) (person string, err error) {
	err = tx.QueryRow(ctx, "select person_id from person_identity where tenant_id = $1 and provider_id = $2 and subject = $3",
		tx.Tenant(), provider, subject).Scan(&person)
	if errors.Is(err, db.ErrNoRows) {
		return "", ErrNotFound
	}
	return person, err
}

// identified reports whether a person is somebody at a provider.
func identified(ctx context.Context, tx *db.Tx, provider, person string) (bool, error) {
	return db.Exists(ctx, tx, "select 1 from person_identity where tenant_id = $1 and provider_id = $2 and person_id = $3 limit 1",
		tx.Tenant(), provider, person)
}

// linkIdentity links a provider's subject to a person whose row is locked, for
// good. Nobody is two there.
func linkIdentity(ctx context.Context, tx *db.Tx, provider, subject, person string) error {
	known, err := linked(ctx, tx, provider, subject)
	switch {
	case err == nil && known != person:
		return ErrSignIn // somebody else was linked in this very moment
	case !errors.Is(err, ErrNotFound):
		return err
	}
	taken, err := identified(ctx, tx, provider, person)
	if err != nil {
		return err
	}
	if taken {
		return ErrSignIn
	}
	n, err := tx.Exec(ctx, `insert into person_identity (tenant_id, provider_id, subject, person_id, created_at)
		values ($1, $2, $3, $4, $5) on conflict do nothing`, tx.Tenant(), provider, subject, person, tx.Now())
	if err == nil && n == 0 {
		return ErrSignIn
	}
	return err
}

func findEmail(ctx context.Context, tx *db.Tx, email string) (Person, error) {
	return scanPerson(tx.QueryRow(ctx, "select "+personColumns+" from person where tenant_id = $1 and email = $2", tx.Tenant(), email).Scan)
}

func insertGlass(ctx context.Context, tx *db.Tx, g Glass) error {
	_, err := tx.Exec(ctx, `insert into emergency_set (tenant_id, id, shares, quorum, created_at, created_by, expires_at) values ($1, $2, $3, $4, $5, $6, $7)`,
		tx.Tenant(), g.ID, g.Shares, g.Quorum, g.CreatedAt, g.CreatedBy, g.ExpiresAt)
	return err
}

func insertGlassCode(ctx context.Context, tx *db.Tx, set string, hash []byte) error {
	_, err := tx.Exec(ctx, `insert into emergency_code (tenant_id, hash, set_id) values ($1, $2, $3)`, tx.Tenant(), hash, set)
	return err
}

// endGlass ends the set of codes that stands, if one does.
func endGlass(ctx context.Context, tx *db.Tx) error {
	_, err := tx.Exec(ctx, `update emergency_set set ended_at = $2 where tenant_id = $1 and ended_at is null`, tx.Tenant(), tx.Now())
	return err
}

func standingGlass(ctx context.Context, tx *db.Tx) (g Glass, err error) {
	err = tx.QueryRow(ctx, `select id, shares, quorum, created_at, created_by, expires_at from emergency_set
		where tenant_id = $1 and ended_at is null and expires_at > $2`, tx.Tenant(), tx.Now()).
		Scan(&g.ID, &g.Shares, &g.Quorum, &g.CreatedAt, &g.CreatedBy, &g.ExpiresAt)
	if errors.Is(err, db.ErrNoRows) {
		err = ErrNoGlass
	}
	return g, err
}

// goodCodes counts those of different hashes that are codes of a set.
func goodCodes(ctx context.Context, tx *db.Tx, set string, hashes [][]byte) (n int64, err error) {
	for _, h := range hashes {
		var one int64
		if err := tx.QueryRow(ctx, `select count(*) from emergency_code where tenant_id = $1 and hash = $2 and set_id = $3`, tx.Tenant(), h, set).Scan(&one); err != nil {
			return 0, err
		}
		n += one
	}
	return n, nil
}

// openGlass uses a set up, if it stands.
func openGlass(ctx context.Context, tx *db.Tx, set, person string) (bool, error) {
	n, err := tx.Exec(ctx, `update emergency_set set opened_at = $3, ended_at = $3, person_id = $4
		where tenant_id = $1 and id = $2 and ended_at is null and expires_at > $3`, tx.Tenant(), set, tx.Now(), person)
	return n == 1, err
}

// expirePerson says when a person's own time is over.
func expirePerson(ctx context.Context, tx *db.Tx, id string, at time.Time) error {
	_, err := tx.Exec(ctx, `update person set expires_at = $3 where tenant_id = $1 and id = $2`, tx.Tenant(), id, at)
	return err
}

// expiredPeople are those whose own time is over and who are not disabled yet.
func expiredPeople(ctx context.Context, tx *db.Tx) ([]db.Place, error) {
	return db.All(ctx, tx, db.ScanPlace, `select tenant_id, id from person where expires_at <= $1 and disabled_at is null order by expires_at limit 100`, tx.Now())
}
