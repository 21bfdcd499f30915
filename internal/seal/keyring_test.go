package seal_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/jose"
	"estover.dev/internal/seal"
)

func keyring(t testing.TB, d *db.DB, src seal.Source) *seal.Keyring {
	t.Helper()
	return must[*seal.Keyring](t)(seal.OpenKeyring(t.Context(), d, open(t, d, src)))
}

func active(t testing.TB, k *seal.Keyring, purpose jose.Purpose) seal.SigningKey {
	t.Helper()
	return must[seal.SigningKey](t)(k.Active(t.Context(), acme, purpose))
}

// published are the ids of the key set that a tenant publishes.
func published(t testing.TB, k *seal.Keyring) []string {
	t.Helper()
	var ids []string
	for _, key := range must[*jose.Keys](t)(k.JWKS(t.Context(), acme)).All() {
		ids = append(ids, key.ID)
	}
	return ids
}

// privateHalves makes keys and gives the bytes by which one would know them.
func privateHalves(t testing.TB, k *seal.Keyring) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, purpose := range []jose.Purpose{jose.AccessToken, seal.LogKey} {
		switch key := active(t, k, purpose).Signer.(type) {
		case *ecdsa.PrivateKey:
			out[string(purpose)] = must[[]byte](t)(key.Bytes())
		case ed25519.PrivateKey:
			out[string(purpose)] = key.Seed()
		}
	}
	if len(out) != 2 {
		t.Fatal("the keys are not of the expected kinds")
	}
	return out
}

func claims(now time.Time) map[string]any {
	return map[string]any{
		"iss": "https://estover.example", "sub": "agent:agt_1", "aud": "https://crm.example", "client_id": "agt_1",
		"exp": now.Add(30 * time.Minute).Unix(), "iat": now.Unix(), "jti": "t",
	}
}

func verify(t testing.TB, k *seal.Keyring, purpose jose.Purpose, token string, now time.Time) error {
	t.Helper()
	set := must[*jose.Keys](t)(k.Verifying(t.Context(), acme, purpose))
	_, err := jose.Verify(purpose, set, token, jose.Expected{Now: now, Issuer: "https://estover.example", Audiences: []string{"https://crm.example"}})
	return err
}

// Every purpose has a key of its own, of the algorithm that it needs, and a
// restart does not change it.
func TestActive(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		src := file(t)
		k := keyring(t, d, src)
		want := map[jose.Purpose]string{
			jose.AccessToken: "ES256", jose.IDToken: "RS256", seal.IDTokenES256: "ES256", jose.Introspection: "ES256",
			seal.LogKey: "EdDSA", seal.GatewayKey: "EdDSA", seal.ContainmentKey: "EdDSA",
		}
		if err := k.SweepTenant(t.Context(), acme); err != nil {
			t.Fatal(err)
		}
		ids := map[jose.Purpose]string{}
		for purpose, alg := range want {
			key := active(t, k, purpose)
			if key.Alg != alg || key.Signer == nil || key.KID == "" {
				t.Errorf("the key for %s is %+v, want %s", purpose, key, alg)
			}
			if got := must[string](t)(jose.Thumbprint(key.Signer.Public())); got != key.KID {
				t.Errorf("the key for %s is called %s, want its thumbprint %s", purpose, key.KID, got)
			}
			ids[purpose] = key.KID
		}
		if n := count(t, d, `select count(*) from signing_key`); n != len(want) {
			t.Errorf("%d keys were made, want %d", n, len(want))
		}
		later := keyring(t, d, src)
		for purpose, id := range ids {
			if got := active(t, later, purpose).KID; got != id {
				t.Errorf("after a restart the key for %s is %s, want %s", purpose, got, id)
			}
		}
		// Tokens are signed and verified with them; the log's key is not among
		// those that tokens are verified with.
		now := d.Now()
		for keys, purpose := range map[jose.Purpose]jose.Purpose{
			jose.AccessToken: jose.AccessToken, jose.IDToken: jose.IDToken, seal.IDTokenES256: jose.IDToken,
		} {
			token := must[string](t)(jose.Sign(purpose, active(t, k, keys).Token, claims(now)))
			if err := verify(t, later, purpose, token, now); err != nil {
				t.Errorf("verifying a token for %s that a key for %s signed: %v", purpose, keys, err)
			}
		}
		if got := published(t, later); len(got) != 4 || slices.Contains(got, ids[seal.LogKey]) {
			t.Errorf("the key set has %v", got)
		}
		if key := active(t, k, seal.LogKey); key.Token != nil {
			t.Error("the log's key can sign tokens")
		} else if sig, err := key.Signer.Sign(nil, []byte("tree"), crypto.Hash(0)); err != nil || !ed25519.Verify(key.Signer.Public().(ed25519.PublicKey), []byte("tree"), sig) {
			t.Errorf("signing with the log's key: %v", err)
		}
		if _, err := k.Active(t.Context(), acme, jose.DPoPProof); !errors.Is(err, seal.ErrNoSigningKey) {
			t.Errorf("a key for what others sign: %v, want ErrNoSigningKey", err)
		}
		if a, b := ids[jose.AccessToken], must[seal.SigningKey](t)(k.Active(t.Context(), globex, jose.AccessToken)).KID; a == b {
			t.Error("two tenants have the same key")
		}
	})
}

// A planned rotation: published an hour ahead, both valid, then only the next.
func TestPlannedRotation(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		src := file(t)
		k := keyring(t, d, src)
		old := active(t, k, jose.AccessToken).KID
		for range 2 { // asking twice makes one key
			if _, err := k.Rotate(t.Context(), acme, jose.AccessToken, false, nil); err != nil {
				t.Fatal(err)
			}
		}
		set := published(t, k)
		if len(set) != 2 || set[0] != old {
			t.Fatalf("the key set has %v, want the old one and the next", set)
		}
		next := set[1]
		states := func() string {
			t.Helper()
			var s string
			for _, p := range must[[]seal.PublicKey](t)(k.Public(t.Context(), acme)) {
				s += " " + string(p.State)
			}
			return s
		}
		for _, c := range []struct {
			by     time.Duration
			active string
			set    int
			states string
		}{
			{60 * time.Minute, old, 2, " active next"},
			{time.Minute, next, 2, " previous active"},
			{89 * time.Minute, next, 2, " previous active"},
			{time.Minute, next, 1, " past active"},
		} {
			clock.Advance(c.by)
			if got := active(t, k, jose.AccessToken).KID; got != c.active {
				t.Errorf("%s later: the key is %s, want %s", c.by, got, c.active)
			}
			if got := published(t, k); len(got) != c.set || got[c.set-1] != next {
				t.Errorf("%s later: the key set is %v, want %d", c.by, got, c.set)
			}
			if got := states(); got != c.states {
				t.Errorf("%s later: the states are%s, want%s", c.by, got, c.states)
			}
		}
		// The private half is destroyed, the public half is kept.
		seal.OnlyAccessTokens(t)
		if err := k.SweepTenant(t.Context(), acme); err != nil {
			t.Fatal(err)
		}
		if n := count(t, d, `select count(*) from signing_key where id = $1 and sealed is null`, old); n != 1 {
			t.Error("the private half of the old key is still there")
		}
		for _, k := range []*seal.Keyring{k, keyring(t, d, src)} {
			keys := must[[]seal.PublicKey](t)(k.Public(t.Context(), acme))
			if !slices.ContainsFunc(keys, func(p seal.PublicKey) bool { return p.KID == old && p.State == seal.KeyPast && p.Public != nil }) {
				t.Error("the public half of the old key is gone")
			}
			if got := active(t, k, jose.AccessToken).KID; got != next {
				t.Errorf("the key is %s, want %s", got, next)
			}
		}
	})
}

// In an emergency the old keys are out of the key set at once, with the next
// one that was waiting.
func TestEmergencyRotation(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		src := file(t)
		k, other := keyring(t, d, src), keyring(t, d, src)
		for _, purpose := range []jose.Purpose{jose.Introspection, jose.AccessToken} {
			active(t, k, purpose)
		}
		if _, err := k.Rotate(t.Context(), acme, jose.AccessToken, false, nil); err != nil {
			t.Fatal(err)
		}
		was := published(t, k)
		token := must[string](t)(jose.Sign(jose.AccessToken, active(t, other, jose.AccessToken).Token, claims(d.Now())))
		if err := verify(t, k, jose.AccessToken, token, d.Now()); err != nil {
			t.Fatal(err)
		}
		var changes []seal.Change
		record := func(ctx context.Context, c seal.Change, write func(context.Context, *db.Tx) error) error {
			changes = append(changes, c)
			return d.Do(ctx, c.Tenant, func(tx *db.Tx) error { return write(ctx, tx) })
		}
		if _, err := k.Rotate(t.Context(), acme, jose.AccessToken, true, record); err != nil {
			t.Fatal(err)
		}
		if err := other.Reload(t.Context(), acme); err != nil {
			t.Fatal(err)
		}
		now := active(t, k, jose.AccessToken).KID
		if len(changes) != 1 || changes[0].Made != now || len(changes[0].Revoked) != 2 || changes[0].Purpose != jose.AccessToken {
			t.Errorf("recorded %+v", changes)
		}
		for name, k := range map[string]*seal.Keyring{"here": k, "on another node": other, "after a restart": keyring(t, d, src)} {
			set := published(t, k)
			if len(set) != 2 || !slices.Contains(set, now) || slices.Contains(was, now) {
				t.Errorf("%s the key set is %v", name, set)
			}
			if err := verify(t, k, jose.AccessToken, token, d.Now()); !errors.Is(err, jose.ErrUnknownKey) {
				t.Errorf("%s a token of the revoked key: %v, want ErrUnknownKey", name, err)
			}
			if got := active(t, k, jose.AccessToken).KID; got != now {
				t.Errorf("%s the key is %s, want %s", name, got, now)
			}
		}
		dbtest.NewClock(d).Advance(-time.Minute)
		if got := active(t, other, jose.AccessToken).KID; got != now {
			t.Errorf("on a node whose clock is behind, the key is %s, want %s", got, now)
		}
		if n := count(t, d, `select count(*) from signing_key where ended_at is not null and sealed is not null`); n != 0 {
			t.Errorf("%d private halves of revoked keys are still there", n)
		}
	})
}

// A rotation happens whole or not at all, whichever of its writes fails; and a
// node that dies right after it leaves nothing to repair.
func TestRotationCrashes(t *testing.T) {
	for _, emergency := range []bool{false, true} {
		for _, c := range []struct{ name, change string }{{"before the key is stored", "insert"}, {"between storing and revoking", "update"}} {
			if c.change == "update" && !emergency {
				continue
			}
			t.Run(fmt.Sprintf("emergency %v, %s", emergency, c.name), func(t *testing.T) {
				dbtest.Each(t, func(t *testing.T, d *db.DB) {
					src := file(t)
					k := keyring(t, d, src)
					old := active(t, k, jose.AccessToken).KID
					fail(t, d, "signing_key", c.change)
					if _, err := k.Rotate(t.Context(), acme, jose.AccessToken, emergency, nil); err == nil {
						t.Fatal("the rotation succeeded")
					}
					for name, k := range map[string]*seal.Keyring{"here": k, "after a restart": keyring(t, d, src)} {
						if got := published(t, k); len(got) != 1 || got[0] != old || active(t, k, jose.AccessToken).KID != old {
							t.Errorf("%s the key set is %v, want the old key alone", name, got)
						}
					}
					heal(t, d, "signing_key")
					if _, err := k.Rotate(t.Context(), acme, jose.AccessToken, emergency, nil); err != nil {
						t.Fatal(err)
					}
					// The answer was lost: somebody asks again on another node.
					again := keyring(t, d, src)
					if !emergency {
						if _, err := again.Rotate(t.Context(), acme, jose.AccessToken, false, nil); err != nil {
							t.Fatal(err)
						}
					}
					want := map[bool]int{false: 2, true: 1}[emergency]
					if got := published(t, again); len(got) != want {
						t.Errorf("afterwards the key set is %v, want %d", got, want)
					}
				})
			})
		}
	}
	t.Run("the event cannot be written", func(t *testing.T) {
		d := dbtest.Open(t)
		k := keyring(t, d, file(t))
		old := active(t, k, jose.AccessToken).KID
		full := errors.New("the log is full")
		k.Record(func(ctx context.Context, c seal.Change, write func(context.Context, *db.Tx) error) error {
			return d.Do(ctx, c.Tenant, func(tx *db.Tx) error { return errors.Join(write(ctx, tx), full) })
		})
		if _, err := k.Rotate(t.Context(), acme, jose.AccessToken, true, nil); !errors.Is(err, full) {
			t.Errorf("rotating: %v, want %v", err, full)
		}
		if got := active(t, k, jose.AccessToken).KID; got != old {
			t.Error("the key was rotated without an event")
		}
	})
}

// Whoever can write to the database cannot put a key into the key set, bring a
// revoked one back or give one another purpose.
func TestTamperedKeys(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	stranger := must[[]byte](t)(x509.MarshalPKIXPublicKey(key.Public()))
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		src := file(t)
		k := keyring(t, d, src)
		must[seal.SigningKey](t)(k.Active(t.Context(), globex, jose.AccessToken))
		for name, change := range map[string]func(tenant estover.TenantID) int64{
			"public half replaced": func(tenant estover.TenantID) int64 {
				return exec(t, d, `update signing_key set public = $2 where tenant_id = $1 and purpose = 'access_token'`, tenant, stranger)
			},
			"key slipped in": func(tenant estover.TenantID) int64 {
				return exec(t, d, `insert into signing_key (tenant_id, id, purpose, generation, public, created_at, use_from, mac)
					select tenant_id, 'evil', purpose, 99, $2, created_at, use_from, mac from signing_key
					where tenant_id = $1 and purpose = 'access_token' and ended_at is null`, tenant, stranger)
			},
			"revoked key brought back": func(tenant estover.TenantID) int64 {
				return exec(t, d, `update signing_key set ended_at = null where tenant_id = $1 and ended_at is not null`, tenant)
			},
			"time moved": func(tenant estover.TenantID) int64 {
				return exec(t, d, `update signing_key set use_from = use_from + 1 where tenant_id = $1 and purpose = 'log'`, tenant)
			},
			"purpose changed": func(tenant estover.TenantID) int64 {
				return exec(t, d, `update signing_key set purpose = 'gateway' where tenant_id = $1 and purpose = 'log'`, tenant)
			},
			"purpose of a revoked key changed": func(tenant estover.TenantID) int64 {
				return exec(t, d, `update signing_key set purpose = 'gateway' where tenant_id = $1 and ended_at is not null`, tenant)
			},
			"private half of another": func(tenant estover.TenantID) int64 {
				return exec(t, d, `update signing_key set sealed = (select o.sealed from signing_key o where o.tenant_id = $1 and o.purpose = 'introspection')
					where tenant_id = $1 and purpose = 'access_token' and ended_at is null`, tenant)
			},
			"key of another tenant": func(tenant estover.TenantID) int64 {
				return exec(t, d, `insert into signing_key (tenant_id, id, purpose, generation, public, sealed, created_at, use_from, mac)
					select $1, id, purpose, 99, public, sealed, created_at, use_from, mac from signing_key where tenant_id = 'globex'`, tenant)
			},
		} {
			tenant := estover.TenantID(estover.NewID("ten"))
			for _, purpose := range []jose.Purpose{jose.AccessToken, jose.Introspection, seal.LogKey} {
				must[seal.SigningKey](t)(k.Active(t.Context(), tenant, purpose))
			}
			if _, err := k.Rotate(t.Context(), tenant, jose.AccessToken, true, nil); err != nil {
				t.Fatal(err)
			}
			if change(tenant) != 1 && name != "public half replaced" {
				t.Fatalf("%s: nothing was changed", name)
			}
			if err := keyring(t, d, src).Reload(t.Context(), tenant); !errors.Is(err, seal.ErrBroken) {
				t.Errorf("%s: loading: %v, want ErrBroken", name, err)
			}
			if name == "private half of another" {
				continue // the running node has the right one, and does not read the row's
			}
			if err := k.Reload(t.Context(), tenant); !errors.Is(err, seal.ErrBroken) {
				t.Errorf("%s: loading again: %v, want ErrBroken", name, err)
			}
		}
	})
}

// However many nodes ask for a key at once, there is one first key; and an
// emergency that meets another revokes all the same.
func TestKeyringRaces(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		src := file(t)
		nodes := make([]*seal.Keyring, 8)
		for i := range nodes {
			nodes[i] = keyring(t, d, src)
		}
		each := func(f func(k *seal.Keyring) error) {
			t.Helper()
			var wg sync.WaitGroup
			for _, k := range nodes {
				wg.Go(func() {
					if err := f(k); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		}
		each(func(k *seal.Keyring) error {
			_, err := k.Active(t.Context(), acme, jose.AccessToken)
			return err
		})
		first := published(t, keyring(t, d, src))
		if len(first) != 1 {
			t.Errorf("%d first keys were made", len(first))
		}
		each(func(k *seal.Keyring) error {
			_, err := k.Rotate(t.Context(), acme, jose.AccessToken, false, nil)
			return err
		})
		if got := published(t, keyring(t, d, src)); len(got) != 2 {
			t.Errorf("after a planned rotation on every node the key set is %v, want 2", got)
		}
		each(func(k *seal.Keyring) error {
			_, err := k.Rotate(t.Context(), acme, jose.AccessToken, true, nil)
			return err
		})
		got := published(t, keyring(t, d, src))
		if len(got) != 1 || slices.Contains(first, got[0]) {
			t.Errorf("after an emergency on every node the key set is %v, want one key", got)
		}
	})
}

// Signing needs no database.
func TestHotPathNeedsNoDatabase(t *testing.T) {
	d := must[*db.DB](t)(db.Open(t.Context(), dbtest.SQLite(t), db.Options{}))
	k := keyring(t, d, file(t))
	want := active(t, k, jose.AccessToken).KID
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := active(t, k, jose.AccessToken); got.KID != want {
		t.Errorf("without the database the key is %s, want %s", got.KID, want)
	}
	if got := published(t, k); len(got) != 1 {
		t.Errorf("without the database the key set is %v", got)
	}
	if err := k.Reload(t.Context(), acme); err == nil {
		t.Error("the database answers: the test shows nothing")
	}
}

// The signing keys' private halves follow a new data key.
func TestSigningKeysAreResealed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		src := file(t)
		s := open(t, d, src, acme)
		s.Hold(seal.SigningKeys)
		k := must[*seal.Keyring](t)(seal.OpenKeyring(t.Context(), d, s))
		want := active(t, k, jose.AccessToken).KID
		if err := s.RotateDEK(t.Context(), acme, seal.Signing); err != nil {
			t.Fatal(err)
		}
		clock.Advance(25 * time.Hour)
		if p, err := s.Rewrap(t.Context(), acme); err != nil || p.Resealed != 1 || p.Deleted != 1 {
			t.Errorf("the walk: %+v, %v, want one key resealed and one data key deleted", p, err)
		}
		if got := active(t, keyring(t, d, src), jose.AccessToken).KID; got != want {
			t.Errorf("after a restart the key is %s, want %s", got, want)
		}
	})
}

// The life of keys under random rotations on two nodes, against what was
// promised: a token is valid on every node until it ends, unless its key was
// revoked; and whoever fetched the key set within the hour can verify every
// token, unless there was an emergency.
func TestModelOfRotation(t *testing.T) {
	seal.OnlyAccessTokens(t)
	// SQLite alone: what differs between the engines is tested above.
	now := time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)
	d := must[*db.DB](t)(db.Open(t.Context(), dbtest.SQLite(t), db.Options{Now: func() time.Time { return now }}))
	defer d.Close()
	src := file(t)
	nodes := []*seal.Keyring{keyring(t, d, src), keyring(t, d, src)}
	rapid.Check(t, func(r *rapid.T) {
		m := &model{t: r, tenant: estover.TenantID(estover.NewID("ten")), nodes: nodes, now: &now, revoked: map[string]bool{}}
		m.sweep()
		r.Repeat(map[string]func(*rapid.T){
			"time": m.advance, "rotate": m.rotate, "emergency": m.emergency, "": m.check,
		})
	})
}

// A model is what must hold of one tenant's keys.
type model struct {
	t        *rapid.T
	tenant   estover.TenantID
	nodes    []*seal.Keyring
	now      *time.Time
	tokens   []issued
	caches   []fetched
	revoked  map[string]bool // ids
	declared time.Time       // the last emergency
}

// issued is a token that was given out.
type issued struct {
	token, kid string
	at, end    time.Time
}

// fetched is a copy of the key set that somebody keeps.
type fetched struct {
	at   time.Time
	kids map[string]bool
}

func (m *model) node(r *rapid.T) *seal.Keyring {
	return m.nodes[rapid.IntRange(0, len(m.nodes)-1).Draw(r, "node")]
}

func (m *model) sweep() {
	for _, k := range m.nodes {
		if err := k.SweepTenant(context.Background(), m.tenant); err != nil {
			m.t.Fatal(err)
		}
	}
}

// advance lets time pass. Before it does, a token is issued on one node and the
// key set fetched from each, also from one that does not know yet of a rotation
// on the other; afterwards all sweep.
func (m *model) advance(r *rapid.T) {
	m.issue(m.node(r))
	for _, k := range m.nodes {
		m.fetch(k)
	}
	minutes := rapid.SampledFrom([]int{1, 2, 14, 29, 30, 59, 60, 60 * 24 * 15}).Draw(r, "minutes")
	*m.now = m.now.Add(time.Duration(minutes) * time.Minute)
	m.sweep()
	m.tokens = slices.DeleteFunc(m.tokens, func(t issued) bool { return m.now.Sub(t.at) > seal.Lead })
	m.caches = slices.DeleteFunc(m.caches, func(c fetched) bool { return m.now.Sub(c.at) > 2*seal.Lead })
}

func (m *model) rotate(r *rapid.T) {
	if _, err := m.node(r).Rotate(context.Background(), m.tenant, jose.AccessToken, false, nil); err != nil {
		r.Fatal(err)
	}
}

func (m *model) emergency(r *rapid.T) {
	k := m.node(r)
	if err := k.Reload(context.Background(), m.tenant); err != nil {
		r.Fatal(err)
	}
	for _, p := range m.keys(k) {
		m.revoked[p.KID] = true
	}
	if _, err := k.Rotate(context.Background(), m.tenant, jose.AccessToken, true, nil); err != nil {
		r.Fatal(err)
	}
	m.declared = *m.now
	m.sweep()
}

func (m *model) issue(k *seal.Keyring) {
	key, err := k.Active(context.Background(), m.tenant, jose.AccessToken)
	if err != nil {
		m.t.Fatal(err)
	}
	token, err := jose.Sign(jose.AccessToken, key.Token, claims(*m.now))
	if err != nil {
		m.t.Fatal(err)
	}
	m.tokens = append(m.tokens, issued{token, key.KID, *m.now, m.now.Add(30 * time.Minute)})
}

func (m *model) fetch(k *seal.Keyring) {
	set, err := k.JWKS(context.Background(), m.tenant)
	if err != nil {
		m.t.Fatal(err)
	}
	c := fetched{*m.now, map[string]bool{}}
	for _, key := range set.All() {
		c.kids[key.ID] = true
	}
	m.caches = append(m.caches, c)
}

// keys are those for access tokens.
func (m *model) keys(k *seal.Keyring) (list []seal.PublicKey) {
	all, err := k.Public(context.Background(), m.tenant)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, p := range all {
		if p.Purpose == jose.AccessToken {
			list = append(list, p)
		}
	}
	return list
}

func (m *model) check(r *rapid.T) {
	now := *m.now
	for _, k := range m.nodes {
		active := 0
		for _, p := range m.keys(k) {
			if p.State == seal.KeyActive {
				active++
			}
		}
		if active != 1 {
			r.Fatalf("%d keys are active", active)
		}
		set, err := k.Verifying(context.Background(), m.tenant, jose.AccessToken)
		if err != nil {
			r.Fatal(err)
		}
		for _, key := range set.All() {
			if m.revoked[key.ID] {
				r.Fatalf("the revoked key %s is published", key.ID)
			}
		}
		for _, tok := range m.tokens {
			if !now.Before(tok.end) {
				continue
			}
			_, err := jose.Verify(jose.AccessToken, set, tok.token, jose.Expected{Now: now, Issuer: "https://estover.example", AnyAudience: true})
			if m.revoked[tok.kid] && err == nil {
				r.Fatal("a token of a revoked key is valid")
			}
			if !m.revoked[tok.kid] && err != nil {
				r.Fatalf("a token %s before its end: %v", tok.end.Sub(now), err)
			}
		}
	}
	for _, c := range m.caches {
		if !c.at.After(m.declared) {
			continue // an emergency breaks copies, by its nature
		}
		for _, tok := range m.tokens {
			if since := tok.at.Sub(c.at); since >= 0 && since <= seal.Lead && !c.kids[tok.kid] {
				r.Fatalf("a token signed %s after the key set was fetched has a key that is not in it", since)
			}
		}
	}
}

// A published set is what others can read.
func TestPublishedSetIsAKeySet(t *testing.T) {
	d := dbtest.Open(t)
	k := keyring(t, d, file(t))
	active(t, k, jose.AccessToken)
	active(t, k, jose.Introspection)
	b := must[[]byte](t)(json.Marshal(must[*jose.Keys](t)(k.JWKS(t.Context(), acme))))
	set, err := jose.ParseKeys(b)
	if err != nil || len(set.All()) != 2 {
		t.Errorf("reading %s: %v", b, err)
	}
}

func BenchmarkActive(b *testing.B) {
	d := dbtest.Open(b)
	k := keyring(b, d, file(b))
	active(b, k, jose.AccessToken)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.Active(b.Context(), acme, jose.AccessToken); err != nil {
			b.Fatal(err)
		}
	}
}
