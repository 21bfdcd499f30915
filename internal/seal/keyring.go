package seal

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/jose"
)

// The purposes of signing keys beside those of tokens.
const (
	LogKey         jose.Purpose = "log"         // signs the checkpoints of the audit log
	GatewayKey     jose.Purpose = "gateway"     // signs receipts of calls
	ContainmentKey jose.Purpose = "containment" // signs certificates of containment
)

// IDTokenES256 are the keys that sign ID tokens for clients that want ES256
// rather than RS256, which every client understands. What they sign is of the
// purpose [jose.IDToken].
const IDTokenES256 jose.Purpose = "id_token_es256"

// The times of a signing key's life.
const (
	// Lead is how long a key is published before its first signature, so that
	// whoever keeps a copy of the key set has it by then. It is also the
	// longest time for which such a copy may be kept.
	Lead = time.Hour

	// TokenLife is the longest life of a token that a key may have signed.
	TokenLife = 30 * time.Minute

	// keep is how long a key stays published after its successor came into
	// use: what it signed last must end first, wherever it was signed.
	keep = TokenLife + Lead

	// Period is how long a key for tokens signs before its successor takes over,
	// if nothing else is set.
	Period = 30 * 24 * time.Hour

	// readPause is how often the stored keys are read again at most because
	// somebody asks for what is there by now.
	readPause = 20 * time.Millisecond
)

// A plan is how the keys of a purpose are made.
type plan struct {
	make   func() (crypto.Signer, error)
	token  bool // signs tokens, so its public half is in the key set and it rotates by schedule
	demand bool // made when it is first asked for, not by the sweep

	// tokens is the purpose of the tokens that it signs, if the keys are not
	// named after it.
	tokens jose.Purpose
}

// signs is the purpose of the tokens that keys of this purpose sign.
func signs(purpose jose.Purpose) jose.Purpose {
	if t := plans[purpose].tokens; t != "" {
		return t
	}
	return purpose
}

// plans is the table of purposes.
var plans = map[jose.Purpose]plan{
	jose.AccessToken:   {make: makeP256, token: true},
	jose.IDToken:       {make: makeRSA, token: true},
	IDTokenES256:       {make: makeP256, token: true, tokens: jose.IDToken},
	jose.Introspection: {make: makeP256, token: true},
	jose.IDJAG:         {make: makeP256, token: true, demand: true},
	jose.SecurityEvent: {make: makeRSA, token: true, demand: true},
	jose.Denial:        {make: makeP256, token: true, demand: true},
	LogKey:             {make: makeEd25519},
	GatewayKey:         {make: makeEd25519},
	ContainmentKey:     {make: makeEd25519},
}

func makeP256() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// makeRSA takes a tenth of a second or several.
func makeRSA() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) }

func makeEd25519() (crypto.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return key, err
}

// A SigningKey is a private key in use.
type SigningKey struct {
	KID    string
	Alg    string // the name of its algorithm in JOSE
	Signer crypto.Signer
	Token  *jose.Signer // ready to sign tokens of its purpose; nil for a purpose that has none
}

// Epoch is for a write that rests on the key: it is refused with [db.ErrStale]
// once the key was revoked, also by another node a moment ago.
func (k *SigningKey) Epoch() db.Epoch { return db.Epoch{Table: "signing_key", ID: k.KID, Epoch: 1} }

// A KeyState is where a key is in its life.
type KeyState string

// The states, which follow from the times alone:
//
//	next ──use_from──▶ active ──successor's use_from──▶ previous ──1 h 30 min──▶ past
//	  └───────────────────┴────────emergency──▶ revoked ◀────────┘
const (
	KeyNext     KeyState = "next"     // published, does not sign yet
	KeyActive   KeyState = "active"   // signs
	KeyPrevious KeyState = "previous" // signs no more; what it signed may still be valid
	KeyPast     KeyState = "past"     // not in the key set any more; known for what it once signed
	KeyRevoked  KeyState = "revoked"  // out of the key set at once, because others may have it
)

// A PublicKey is what anybody may know of a signing key.
type PublicKey struct {
	KID        string
	Purpose    jose.Purpose
	Alg        string
	Public     crypto.PublicKey
	Generation int64 // 1 for the first key of its purpose
	Created    time.Time
	From       time.Time // when it began or begins to sign
	Until      time.Time // when it leaves the key set; zero if that is not known yet
	Revoked    time.Time // zero if it was not
	State      KeyState
}

// ErrNoSigningKey is returned for a purpose that there are no keys for.
var ErrNoSigningKey = &estover.Error{Kind: estover.NotFound, Code: "no_signing_key", Detail: "There is no signing key for this."}

// A Keyring makes, rotates and gives out the keys that sign. Each serves one
// purpose of one tenant. They are kept in memory: signing needs no I/O.
//
// A key is made at least [Lead] before it signs, and stays published until
// what it signed has ended. The first key of a purpose signs at once, because
// nobody has a copy of a key set without it that could matter; so does the
// successor of a key that had to be revoked. Keys for tokens rotate by
// themselves ([Keyring.Schedule]); those that sign the log, receipts and
// certificates do not, because others have written down who they are.
//
// Each step of a rotation is one statement or follows from the clock, so there
// is nothing to repair after a crash. The private half is destroyed when a key
// can sign no more; the public half stays.
//
// Rows carry a MAC, so that a key cannot be slipped into the key set by
// whoever can write to the database.
type Keyring struct {
	db     *db.DB
	seal   *Sealer
	record Recorder
	every  time.Duration

	making  sync.Mutex    // one key is made at a time
	tenants sync.Map      // estover.TenantID → *state
	changes atomic.Uint64 // how often somebody said that stored keys have changed

	asking sync.Mutex
	next   map[estover.TenantID]*reading // that has not begun
	read   time.Time                     // when the latest began
}

// A Recorder runs write in a transaction and records the change in the same
// one. It is called outside of any transaction, and maybe again if another node
// was faster.
type Recorder func(ctx context.Context, c Change, write func(ctx context.Context, tx *db.Tx) error) error

// A Change is what happened to the keys of a purpose.
type Change struct {
	Tenant  estover.TenantID
	Purpose jose.Purpose
	Made    string    // the id of the key that was made
	From    time.Time // when it begins to sign
	Revoked []string  // the ids of the keys that were revoked
	Already bool      // the key was there, and nothing was done
}

// Forget drops what is known of a tenant's keys, which have been destroyed.
func (k *Keyring) Forget(tenant estover.TenantID) { k.tenants.Delete(tenant) }

// OpenKeyring gives out the signing keys in d.
func OpenKeyring(_ context.Context, d *db.DB, s *Sealer) (*Keyring, error) {
	k := &Keyring{db: d, seal: s, every: Period, next: map[estover.TenantID]*reading{}}
	k.record = func(ctx context.Context, c Change, write func(context.Context, *db.Tx) error) error {
		return d.Do(ctx, c.Tenant, func(tx *db.Tx) error { return write(ctx, tx) })
	}
	return k, nil
}

// Record sets who records what the keyring does by itself, once at wiring.
func (k *Keyring) Record(r Recorder) { k.record = r }

// Schedule sets how long a key for tokens signs before its successor takes
// over, once at wiring: some times [Lead] at least.
func (k *Keyring) Schedule(every time.Duration) { k.every = every }

// An entry is a loaded key.
type entry struct {
	row keyRow
	pub PublicKey // without State and Until
	key *SigningKey
	jwk *jose.Key
}

// A state is what is known of a tenant's keys. It never changes; what follows
// from the time is worked out anew when until has come.
type state struct {
	entries []*entry // by purpose and generation
	changes uint64   // that were known of before they were read

	at, until time.Time // the instants for which the following holds, the first inclusive
	active    map[jose.Purpose]*SigningKey
	verifying map[jose.Purpose]*jose.Keys
	published *jose.Keys
	public    []PublicKey
}

// of gives the tenant's keys as they are at this instant.
func (k *Keyring) of(ctx context.Context, tenant estover.TenantID) (*state, error) {
	now := k.db.Now()
	if v, ok := k.tenants.Load(tenant); ok {
		st := v.(*state)
		if st.changes == k.changes.Load() {
			if !now.Before(st.at) && (st.until.IsZero() || now.Before(st.until)) {
				return st, nil
			}
			next := arrange(st.entries, now)
			next.changes = st.changes
			k.tenants.CompareAndSwap(tenant, v, next)
			return next, nil
		}
	}
	if err := k.Reload(ctx, tenant); err != nil {
		return nil, err
	}
	v, _ := k.tenants.Load(tenant)
	return v.(*state), nil
}

// arrange works out the states of keys at an instant.
func arrange(entries []*entry, now time.Time) *state {
	st := &state{
		entries: entries, at: now,
		active: map[jose.Purpose]*SigningKey{}, verifying: map[jose.Purpose]*jose.Keys{},
	}
	change := func(t time.Time) { // something changes at t
		if t.After(now) && (st.until.IsZero() || t.Before(st.until)) {
			st.until = t
		}
	}
	verifying := map[jose.Purpose][]*jose.Key{}
	alive := map[jose.Purpose]bool{} // has an earlier key that was not revoked
	var published []*jose.Key
	for i, e := range entries {
		p := e.pub
		// The successor is the next key of the purpose that was not revoked
		// before it began.
		for _, after := range entries[i+1:] {
			if after.pub.Purpose == p.Purpose && (after.pub.Revoked.IsZero() || after.pub.Revoked.After(after.pub.From)) {
				p.Until = after.pub.From.Add(keep)
				change(p.Until)
				break
			}
		}
		change(p.From)
		switch {
		case !p.Revoked.IsZero():
			p.State, p.Until = KeyRevoked, p.Revoked
		case p.From.After(now) && alive[p.Purpose]:
			p.State = KeyNext
		case p.Until.IsZero(), now.Before(p.Until.Add(-keep)):
			p.State = KeyActive
			st.active[p.Purpose] = e.key
		case now.Before(p.Until):
			p.State = KeyPrevious
		default:
			p.State = KeyPast
		}
		// A key that has nobody before it signs at once, also where the clock
		// is a little behind that of the node that made it.
		alive[p.Purpose] = alive[p.Purpose] || p.Revoked.IsZero()
		st.public = append(st.public, p)
		if e.jwk != nil && (p.State == KeyNext || p.State == KeyActive || p.State == KeyPrevious) {
			published = append(published, e.jwk)
			verifying[signs(p.Purpose)] = append(verifying[signs(p.Purpose)], e.jwk)
		}
	}
	st.published = jose.NewKeys(published...)
	for purpose, keys := range verifying {
		st.verifying[purpose] = jose.NewKeys(keys...)
	}
	return st
}

// SignsTokens reports whether a purpose has keys that sign tokens: those that are
// published and rotated.
func SignsTokens(purpose jose.Purpose) bool { return plans[purpose].token }

// Active gives the key that signs for a purpose. The first time that a purpose
// is asked for, its key is made, which takes a moment for an RSA key; a server
// calls [Keyring.Sweep] before it needs them.
func (k *Keyring) Active(ctx context.Context, tenant estover.TenantID, purpose jose.Purpose) (SigningKey, error) {
	st, err := k.of(ctx, tenant)
	if err != nil {
		return SigningKey{}, err
	}
	if key := st.active[purpose]; key != nil {
		return *key, nil
	}
	if _, ok := plans[purpose]; !ok {
		return SigningKey{}, ErrNoSigningKey.With("There are no signing keys for %q.", purpose)
	}
	if err := k.ensure(ctx, tenant, purpose); err != nil {
		return SigningKey{}, err
	}
	if st, err = k.of(ctx, tenant); err != nil {
		return SigningKey{}, err
	}
	if key := st.active[purpose]; key != nil {
		return *key, nil
	}
	return SigningKey{}, ErrNoSigningKey.With("The signing key for %q cannot be used yet.", purpose)
}

// JWKS is the set of public keys for tokens that a tenant publishes. It has what
// another node made a moment ago, because whoever asks may have met a key that
// is not in their copy; as long as the database cannot answer, it has what is
// known here.
func (k *Keyring) JWKS(ctx context.Context, tenant estover.TenantID) (*jose.Keys, error) {
	if err := k.Fresh(ctx, tenant); err != nil && ctx.Err() != nil {
		return nil, err
	}
	st, err := k.of(ctx, tenant)
	if err != nil {
		return nil, err
	}
	return st.published, nil
}

// Verifying is the set of keys with which tokens of ours are verified that are
// for this purpose; it may be empty.
func (k *Keyring) Verifying(ctx context.Context, tenant estover.TenantID, purpose jose.Purpose) (*jose.Keys, error) {
	st, err := k.of(ctx, tenant)
	if err != nil {
		return nil, err
	}
	if set := st.verifying[purpose]; set != nil {
		return set, nil
	}
	return jose.NewKeys(), nil
}

// Public lists all keys that the tenant has ever had, by purpose and
// generation: what they signed may have to be verified long after.
func (k *Keyring) Public(ctx context.Context, tenant estover.TenantID) ([]PublicKey, error) {
	st, err := k.of(ctx, tenant)
	if err != nil {
		return nil, err
	}
	return slices.Clone(st.public), nil
}

// Changed says that stored keys were changed: what is known of them is read
// again before it is used.
func (k *Keyring) Changed() { k.changes.Add(1) }

// A reading is a look at the stored keys that somebody waits for.
type reading struct {
	done chan struct{}
	err  error
}

// Fresh reads the tenant's keys again, for whoever was shown a key that is not
// known here: another node may just have made it. However many ask, there is
// one reading at a time and a pause in between; a caller waits for one that
// began after it asked.
func (k *Keyring) Fresh(ctx context.Context, tenant estover.TenantID) error {
	k.asking.Lock()
	r := k.next[tenant]
	if r == nil {
		r = &reading{done: make(chan struct{})}
		k.next[tenant] = r
		go k.readAgain(context.WithoutCancel(ctx), tenant, r, readPause-time.Since(k.read))
	}
	k.asking.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (k *Keyring) readAgain(ctx context.Context, tenant estover.TenantID, r *reading, pause time.Duration) {
	time.Sleep(pause)
	k.asking.Lock()
	delete(k.next, tenant) // who asks from here on wants a later one
	k.read = time.Now()
	k.asking.Unlock()
	r.err = k.Reload(ctx, tenant)
	close(r.done)
}

// Reload reads the tenant's keys again: after another node has revoked one.
func (k *Keyring) Reload(ctx context.Context, tenant estover.TenantID) error {
	k.making.Lock()
	defer k.making.Unlock()
	_, err := k.load(ctx, tenant)
	return err
}

// load reads the tenant's keys. k.making is held.
func (k *Keyring) load(ctx context.Context, tenant estover.TenantID) ([]*entry, error) {
	if err := k.seal.Prepare(ctx, tenant); err != nil {
		return nil, err
	}
	var rows []keyRow
	changes := k.changes.Load()
	if err := k.db.View(ctx, tenant, func(tx *db.Tx) (err error) {
		rows, err = findKeys(ctx, tx)
		return err
	}); err != nil {
		return nil, fmt.Errorf("reading the signing keys: %w", err)
	}
	known := map[string]*entry{}
	if v, ok := k.tenants.Load(tenant); ok {
		for _, e := range v.(*state).entries {
			known[e.row.id] = e
		}
	}
	entries := make([]*entry, 0, len(rows))
	for _, row := range rows {
		e := known[row.id]
		if e == nil || !e.row.same(row) {
			var err error
			if e, err = k.entry(tenant, row); err != nil {
				return nil, fmt.Errorf("opening the signing key %s: %w", row.id, err)
			}
		}
		entries = append(entries, e)
	}
	var st *state
	if v, ok := k.tenants.Load(tenant); ok && slices.Equal(v.(*state).entries, entries) {
		same := *v.(*state) // with the sets that are there, by which others know what they have verified
		st = &same
	} else {
		st = arrange(entries, k.db.Now())
	}
	st.changes = changes
	k.tenants.Store(tenant, st)
	return entries, nil
}

// same reports whether a row is as it was when it was loaded. The private half
// may have been sealed anew.
func (r keyRow) same(o keyRow) bool {
	return r.id == o.id && r.purpose == o.purpose && r.generation == o.generation && bytes.Equal(r.public, o.public) &&
		(r.sealed == nil) == (o.sealed == nil) && r.created.Equal(o.created) && r.from.Equal(o.from) && r.revoked.Equal(o.revoked) &&
		bytes.Equal(r.mac, o.mac)
}

// entry checks and opens a row.
func (k *Keyring) entry(tenant estover.TenantID, row keyRow) (*entry, error) {
	if !hmac.Equal(row.mac, k.rowMAC(tenant, row)) {
		return nil, ErrBroken
	}
	public, err := x509.ParsePKIXPublicKey(row.public)
	if err != nil {
		return nil, err
	}
	jwk, err := jose.NewKey(signs(row.purpose), row.id, public)
	if err != nil {
		return nil, err
	}
	e := &entry{row: row, pub: PublicKey{
		KID: row.id, Purpose: row.purpose, Alg: jwk.Algorithm(), Public: public,
		Generation: row.generation, Created: row.created, From: row.from, Revoked: row.revoked,
	}}
	if plans[row.purpose].token {
		e.jwk = jwk
	}
	if row.sealed == nil {
		return e, nil
	}
	der, err := k.seal.Open(tenant, keyAAD(row), row.sealed)
	if err != nil {
		return nil, err
	}
	var private any
	protect(func() {
		private, err = x509.ParsePKCS8PrivateKey(der)
		clear(der)
	})
	if err != nil {
		return nil, err
	}
	signer, ok := private.(crypto.Signer)
	if same, _ := public.(interface{ Equal(crypto.PublicKey) bool }); !ok || same == nil || !same.Equal(signer.Public()) {
		return nil, ErrBroken
	}
	e.key = &SigningKey{KID: row.id, Alg: jwk.Algorithm(), Signer: signer}
	if plans[row.purpose].token {
		e.key.Token, err = jose.NewSigner(signs(row.purpose), row.id, signer)
	}
	return e, err
}

// keyAAD is what the private half is bound to.
func keyAAD(r keyRow) AAD {
	return AAD{Class: Signing, ID: string(r.purpose) + ":" + r.id, Version: r.generation, Created: r.created}
}

// SigningKeys is where the private halves lie, for [Sealer.Hold].
var SigningKeys = Holding{
	Class: Signing, Table: "signing_key", Sealed: "sealed", ID: "purpose || ':' || id", Version: "generation", Created: "created_at",
}

// rowMAC is over everything that decides what a key is good for. That its
// private half is gone is not part of it: nothing can be gained from that.
func (k *Keyring) rowMAC(tenant estover.TenantID, r keyRow) []byte {
	b := []byte{format}
	b = appendString(b, r.id)
	b = appendString(b, string(r.purpose))
	b = appendInt(b, r.generation)
	b = appendString(b, string(r.public))
	for _, t := range []time.Time{r.created, r.from, r.revoked} {
		var n int64
		if !t.IsZero() {
			n = t.UnixMicro()
		}
		b = appendInt(b, n)
	}
	return k.seal.MAC(tenant, "signing key", b)
}

// ensure makes the first key of a purpose, unless there is one.
func (k *Keyring) ensure(ctx context.Context, tenant estover.TenantID, purpose jose.Purpose) error {
	return k.locked(ctx, tenant, func(entries []*entry) error {
		if newest(entries, purpose) != nil {
			return nil
		}
		_, err := k.rotate(ctx, tenant, purpose, entries, true, k.record)
		return err
	})
}

// Rotate gives a purpose its next key.
//
// Planned, the key is published at once and signs a little more than [Lead]
// later, because other nodes hear of it a little later; if one waits already,
// nothing happens. In an emergency the key signs at once, and every
// other key of the purpose is revoked: it leaves the key set, nothing that it
// signed is valid any more, and its private half is destroyed. Other nodes
// follow when they are told ([Keyring.Changed]), when they sweep, and when a
// write of theirs finds that its key is gone ([SigningKey.Epoch]).
//
// The change is recorded by record, or as what the keyring does by itself if
// that is nil.
func (k *Keyring) Rotate(ctx context.Context, tenant estover.TenantID, purpose jose.Purpose, emergency bool, record Recorder) (c Change, err error) {
	if _, ok := plans[purpose]; !ok {
		return c, ErrNoSigningKey.With("There are no signing keys for %q.", purpose)
	}
	if record == nil {
		record = k.record
	}
	var last *entry // that was there when the emergency was declared
	err = k.locked(ctx, tenant, func(entries []*entry) (err error) {
		if emergency && last == nil {
			last = newest(entries, purpose)
		} else if emergency {
			// Another node declared one too; whichever revoked the keys
			// revoked all of them.
			for _, e := range entries {
				if e.pub.KID == last.pub.KID && !e.pub.Revoked.IsZero() {
					now := newest(entries, purpose).pub
					c = Change{Tenant: tenant, Purpose: purpose, Made: now.KID, From: now.From, Already: true}
					return nil
				}
			}
		}
		c, err = k.rotate(ctx, tenant, purpose, entries, emergency, record)
		return err
	})
	return c, err
}

// locked runs f on the tenant's keys as they are stored, and again when
// another node has changed them in the meantime.
func (k *Keyring) locked(ctx context.Context, tenant estover.TenantID, f func([]*entry) error) error {
	k.making.Lock()
	defer k.making.Unlock()
	for attempt := 0; ; attempt++ {
		entries, err := k.load(ctx, tenant)
		if err != nil {
			return err
		}
		err = f(entries)
		if attempt == 5 || !db.Taken(err) && !errors.Is(err, db.ErrStale) {
			return err
		}
	}
}

// newest is the latest key of a purpose that was not revoked, or nil.
func newest(entries []*entry, purpose jose.Purpose) *entry {
	for _, e := range slices.Backward(entries) {
		if e.pub.Purpose == purpose && e.pub.Revoked.IsZero() {
			return e
		}
	}
	return nil
}

// rotate makes the next key of a purpose. With now it signs at once, and the
// others are revoked. k.making is held.
func (k *Keyring) rotate(ctx context.Context, tenant estover.TenantID, purpose jose.Purpose, entries []*entry, now bool, record Recorder) (Change, error) {
	row := keyRow{purpose: purpose, generation: 1, created: k.db.Now()}
	row.from = row.created
	change := Change{Tenant: tenant, Purpose: purpose}
	var others []keyRow
	for _, e := range entries {
		if e.pub.Purpose != purpose {
			continue
		}
		row.generation = e.pub.Generation + 1
		if !e.pub.Revoked.IsZero() {
			continue
		}
		if e.pub.From.After(row.created) && !now { // the next one waits already
			change.Made, change.From, change.Already = e.pub.KID, e.pub.From, true
			return change, nil
		}
		revoked := e.row
		revoked.revoked = row.created
		revoked.mac = k.rowMAC(tenant, revoked)
		others = append(others, revoked)
	}
	if len(others) > 0 && !now {
		row.from = row.created.Add(Lead + spread)
		others = nil
	}
	if err := k.fill(tenant, &row); err != nil {
		return change, fmt.Errorf("making a signing key: %w", err)
	}
	change.Made, change.From = row.id, row.from
	for _, r := range others {
		change.Revoked = append(change.Revoked, r.id)
	}
	err := record(ctx, change, func(ctx context.Context, tx *db.Tx) error {
		if err := insertKey(ctx, tx, row); err != nil {
			return err
		}
		for _, r := range others {
			if err := revokeKey(ctx, tx, r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return change, fmt.Errorf("storing a signing key: %w", err)
	}
	_, err = k.load(ctx, tenant)
	return change, err
}

// fill makes the key of a row.
func (k *Keyring) fill(tenant estover.TenantID, row *keyRow) (err error) {
	var der []byte
	protect(func() {
		var signer crypto.Signer
		if signer, err = plans[row.purpose].make(); err != nil {
			return
		}
		if row.public, err = x509.MarshalPKIXPublicKey(signer.Public()); err != nil {
			return
		}
		if row.id, err = jose.Thumbprint(signer.Public()); err != nil {
			return
		}
		der, err = x509.MarshalPKCS8PrivateKey(signer)
	})
	if err != nil {
		return err
	}
	defer clear(der)
	if row.sealed, err = k.seal.Seal(tenant, keyAAD(*row), der); err != nil {
		return err
	}
	row.mac = k.rowMAC(tenant, *row)
	return nil
}

// Sweep does what is due for every tenant that has been asked for: it picks up
// what other nodes did, makes keys that are missing and those that will be
// needed, and destroys the private halves of keys that sign no more. A server
// calls it in the background right after its start, so that RSA keys are made
// before somebody waits for them, and every ten seconds or so from then on.
func (k *Keyring) Sweep(ctx context.Context) error {
	var errs []error
	k.tenants.Range(func(tenant, _ any) bool {
		if err := k.SweepTenant(ctx, tenant.(estover.TenantID)); err != nil {
			errs = append(errs, fmt.Errorf("sweeping the signing keys of tenant %s: %w", tenant, err))
		}
		return ctx.Err() == nil
	})
	return errors.Join(errs...)
}

// SweepTenant is [Keyring.Sweep] for one tenant, whether or not it has been
// asked for.
func (k *Keyring) SweepTenant(ctx context.Context, tenant estover.TenantID) error {
	return k.locked(ctx, tenant, func(entries []*entry) error {
		for _, purpose := range purposes() {
			p, last := plans[purpose], newest(entries, purpose)
			var err error
			switch {
			case last == nil && !p.demand:
				_, err = k.rotate(ctx, tenant, purpose, entries, true, k.record)
			case last != nil && p.token && !k.db.Now().Before(last.pub.From.Add(k.every-Lead)):
				_, err = k.rotate(ctx, tenant, purpose, entries, false, k.record)
			}
			if err != nil {
				return err
			}
		}
		return k.destroy(ctx, tenant, entries)
	})
}

// purposes lists the table in a fixed order, those last that take time.
func purposes() []jose.Purpose {
	return []jose.Purpose{
		LogKey, GatewayKey, ContainmentKey, jose.AccessToken, jose.Introspection, jose.IDJAG, IDTokenES256, jose.IDToken, jose.SecurityEvent, jose.Denial,
	}
}

// destroy destroys the private halves of keys that can sign no more. A key
// that has just been followed is left alone for a while: a node may not have
// noticed yet.
func (k *Keyring) destroy(ctx context.Context, tenant estover.TenantID, entries []*entry) error {
	var ids []string
	for i, p := range arrange(entries, k.db.Now()).public {
		if p.State == KeyPast && entries[i].row.sealed != nil {
			ids = append(ids, p.KID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	if err := k.db.Do(ctx, tenant, func(tx *db.Tx) error {
		for _, id := range ids {
			if err := destroyKey(ctx, tx, id); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("destroying old signing keys: %w", err)
	}
	_, err := k.load(ctx, tenant)
	return err
}
