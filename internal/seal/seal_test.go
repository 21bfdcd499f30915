package seal_test

import (
	"bytes"
	"crypto/hmac"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/seal"
)

const acme, globex estover.TenantID = "acme", "globex"

// file is a source in a directory of the test's own.
func file(t testing.TB) seal.File {
	return seal.File{Path: filepath.Join(t.TempDir(), "root.key")}
}

func open(t testing.TB, d *db.DB, src seal.Source, tenants ...estover.TenantID) *seal.Sealer {
	t.Helper()
	s, err := seal.Open(t.Context(), d, src)
	if err != nil {
		t.Fatal(err)
	}
	for _, tenant := range tenants {
		if err := s.Prepare(t.Context(), tenant); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// exec runs a statement as whoever can write to the database can.
func exec(t testing.TB, d *db.DB, query string, args ...any) int64 {
	t.Helper()
	var n int64
	if err := d.Do(t.Context(), acme, func(tx *db.Tx) (err error) {
		n, err = tx.Exec(t.Context(), query, args...)
		return err
	}); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func count(t testing.TB, d *db.DB, query string, args ...any) (n int) {
	t.Helper()
	if err := d.View(t.Context(), acme, func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), query, args...).Scan(&n)
	}); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// K1: a sealed value opens where it belongs, after a restart too, and nowhere
// else.
func TestSealedValueOpensOnlyWhereItBelongs(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		src := file(t)
		s := open(t, d, src, acme, globex)
		at := d.Now()
		aad := seal.AAD{Class: seal.KV, ID: "sec_1", Version: 3, Created: at}
		plain := []byte("correct horse battery staple")
		sealed := must[[]byte](t)(s.Seal(acme, aad, plain))
		if want := 1 + 4 + 12 + len(plain) + 16; len(sealed) != want || sealed[0] != 1 || !bytes.Equal(sealed[1:5], []byte{0, 0, 0, 1}) {
			t.Errorf("sealed into %d bytes that begin with %x, want %d and 0100000001", len(sealed), sealed[:5], want)
		}
		if bytes.Contains(sealed, plain[:8]) {
			t.Error("the value can be read in what was sealed")
		}
		if again := must[[]byte](t)(s.Seal(acme, aad, plain)); bytes.Equal(again, sealed) {
			t.Error("sealing twice gave the same bytes: the nonce was used again")
		}
		later := open(t, d, src, acme, globex)
		for _, s := range []*seal.Sealer{s, later} {
			if got, err := s.Open(acme, aad, sealed); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("opening: %q, %v", got, err)
			}
		}
		for name, c := range map[string]struct {
			tenant estover.TenantID
			aad    seal.AAD
		}{
			"another tenant":       {globex, aad},
			"another class":        {acme, seal.AAD{Class: seal.Audit, ID: aad.ID, Version: aad.Version, Created: at}},
			"another id":           {acme, seal.AAD{Class: aad.Class, ID: "sec_2", Version: aad.Version, Created: at}},
			"another version":      {acme, seal.AAD{Class: aad.Class, ID: aad.ID, Version: 2, Created: at}},
			"another time":         {acme, seal.AAD{Class: aad.Class, ID: aad.ID, Version: aad.Version, Created: at.Add(time.Microsecond)}},
			"no time":              {acme, seal.AAD{Class: aad.Class, ID: aad.ID, Version: aad.Version}},
			"id and version moved": {acme, seal.AAD{Class: aad.Class, ID: "sec_13", Version: aad.Version, Created: at}},
		} {
			if _, err := later.Open(c.tenant, c.aad, sealed); !errors.Is(err, seal.ErrBroken) {
				t.Errorf("opening as of %s: %v, want ErrBroken", name, err)
			}
		}
		for i := range sealed {
			for _, bit := range []byte{1, 128} {
				c := bytes.Clone(sealed)
				c[i] ^= bit
				if _, err := later.Open(acme, aad, c); err == nil {
					t.Errorf("opened with byte %d changed by %d", i, bit)
				}
			}
		}
		for n := range sealed {
			if _, err := later.Open(acme, aad, sealed[:n]); err == nil {
				t.Errorf("opened when cut to %d bytes", n)
			}
		}
		empty := must[[]byte](t)(s.Seal(acme, aad, nil))
		if got, err := s.Open(acme, aad, empty); err != nil || len(got) != 0 {
			t.Errorf("an empty value came back as %q, %v", got, err)
		}
	})
}

func TestUnpreparedTenant(t *testing.T) {
	s := open(t, dbtest.Open(t), file(t), acme)
	if _, err := s.Seal(globex, seal.AAD{Class: seal.KV}, nil); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("sealing: %v, want ErrNoKey", err)
	}
	for _, class := range []seal.Class{"", "pepper", "unheard-of"} {
		if _, err := s.Seal(acme, seal.AAD{Class: class}, nil); !errors.Is(err, seal.ErrNoKey) {
			t.Errorf("sealing in class %q: %v, want ErrNoKey", class, err)
		}
	}
	for _, tenant := range []estover.TenantID{"", "*"} {
		if err := s.Prepare(t.Context(), tenant); err == nil {
			t.Errorf("tenant %q was prepared", tenant)
		}
	}
}

// Data keys cannot be given to another tenant or class in the database.
func TestSwappedDataKeys(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		src := file(t)
		open(t, d, src, globex)
		for name, query := range map[string]string{
			"of another tenant":    `update seal_dek set wrapped = (select o.wrapped from seal_dek o where o.tenant_id = 'globex' and o.class = seal_dek.class) where tenant_id = $1`,
			"of another class":     `update seal_dek set wrapped = (select o.wrapped from seal_dek o where o.tenant_id = $1 and o.class = 'audit') where tenant_id = $1 and class = 'kv'`,
			"under another KEK":    `update seal_dek set kek_version = 2 where tenant_id = $1`,
			"under another number": `update seal_dek set version = 2 where tenant_id = $1 and class = 'kv'`,
		} {
			tenant := estover.TenantID(estover.NewID("ten"))
			open(t, d, src, tenant)
			if exec(t, d, query, tenant) == 0 {
				t.Fatalf("%s: nothing was changed", name)
			}
			s := open(t, d, src)
			if err := s.Prepare(t.Context(), tenant); !errors.Is(err, seal.ErrBroken) && !errors.Is(err, seal.ErrNoKey) {
				t.Errorf("loading a data key %s: %v, want ErrBroken or ErrNoKey", name, err)
			}
			if err := s.Prepare(t.Context(), globex); err != nil {
				t.Errorf("the other tenant's keys: %v", err)
			}
		}
	})
}

// K4: a MAC is of one tenant and one use, and the same after a restart, a
// rotation and a new KEK.
func TestMAC(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		src := file(t)
		s := open(t, d, src, acme, globex)
		sum := s.MAC(acme, "client secret", []byte("x"))
		if len(sum) != 32 {
			t.Errorf("a MAC of %d bytes", len(sum))
		}
		for name, other := range map[string][]byte{
			"tenant": s.MAC(globex, "client secret", []byte("x")), "use": s.MAC(acme, "secret id", []byte("x")), "message": s.MAC(acme, "client secret", []byte("y")),
		} {
			if hmac.Equal(sum, other) {
				t.Errorf("the same MAC for another %s", name)
			}
		}
		for _, class := range []seal.Class{seal.KV, seal.Signing} {
			if err := s.RotateDEK(t.Context(), acme, class); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.RotateDEK(t.Context(), acme, "pepper"); err == nil {
			t.Error("the pepper was rotated")
		}
		if err := s.RotateKEK(t.Context()); err != nil {
			t.Fatal(err)
		}
		if again := open(t, d, src, acme).MAC(acme, "client secret", []byte("x")); !hmac.Equal(sum, again) {
			t.Error("the MAC changed")
		}
		defer func() {
			if recover() == nil {
				t.Error("a MAC for a tenant that was not prepared did not panic")
			}
		}()
		s.MAC("initech", "client secret", nil)
	})
}

// F14: nothing of what is sealed, and no key, lies in the open in the database.
func TestNothingInTheOpen(t *testing.T) {
	url := dbtest.SQLite(t)
	d := must[*db.DB](t)(db.Open(t.Context(), url, db.Options{}))
	src := file(t)
	s := open(t, d, src, acme)
	exec(t, d, `create table vault_value (tenant_id text, id text, sealed blob)`)
	canary := []byte("canary-7b1f9f5e-in-a-coal-mine")
	exec(t, d, `insert into vault_value values ('acme', 'v', $1)`, must[[]byte](t)(s.Seal(acme, seal.AAD{Class: seal.KV, ID: "v"}, canary)))
	k := must[*seal.Keyring](t)(seal.OpenKeyring(t.Context(), d, s))
	secrets := map[string][]byte{"the value": canary}
	for purpose, der := range privateHalves(t, k) {
		secrets["the private key for "+purpose] = der
	}
	root := bytes.Fields(must[[]byte](t)(os.ReadFile(src.Path)))
	secrets["the root key"] = root[len(root)-2]
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	base := strings.TrimPrefix(url, "sqlite:")
	for _, path := range must[[]string](t)(filepath.Glob(base + "*")) {
		b := must[[]byte](t)(os.ReadFile(path))
		for name, secret := range secrets {
			if bytes.Contains(b, secret) {
				t.Errorf("%s lies in the open in %s", name, filepath.Base(path))
			}
		}
	}
}

// K2: a data key is followed by another after 90 days, and when it has been
// used too often.
func TestDataKeysAreRotated(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		s := open(t, d, file(t), acme)
		aad := seal.AAD{Class: seal.KV, ID: "sec_1"}
		version := func() byte {
			t.Helper()
			if err := s.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			clock.Advance(2 * time.Minute) // the lead on PostgreSQL
			return must[[]byte](t)(s.Seal(acme, aad, []byte("x")))[4]
		}
		old := must[[]byte](t)(s.Seal(acme, aad, []byte("old")))
		clock.Advance(90*24*time.Hour - time.Hour)
		if v := version(); v != 1 {
			t.Errorf("sealed with version %d before 90 days", v)
		}
		clock.Advance(time.Hour)
		if v := version(); v != 2 {
			t.Errorf("sealed with version %d after 90 days, want 2", v)
		}
		exec(t, d, `update seal_dek set reserved = 2147483648 where tenant_id = 'acme' and class = 'kv' and version = 2`)
		if v := version(); v != 3 {
			t.Errorf("sealed with version %d after 2³¹ messages, want 3", v)
		}
		if v := version(); v != 3 {
			t.Errorf("sealed with version %d, want 3 still", v)
		}
		if got, err := s.Open(acme, aad, old); err != nil || string(got) != "old" {
			t.Errorf("opening what the first version sealed: %q, %v", got, err)
		}
		if n := count(t, d, `select count(*) from seal_dek where tenant_id = 'acme' and class = 'pepper'`); n != 1 {
			t.Errorf("there are %d peppers, want 1", n)
		}
	})
}

// Another node opens what was sealed with a key that this one has just made,
// once it has swept; and both count the messages they set aside.
func TestTwoNodes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		src := file(t)
		a, b := open(t, d, src, acme), open(t, d, src, acme)
		reserved := func() int {
			return count(t, d, `select sum(reserved) from seal_dek where tenant_id = 'acme' and class = 'kv'`)
		}
		if n := reserved(); n != 2<<22 {
			t.Errorf("two nodes have set %d messages aside, want %d", n, 2<<22)
		}
		if err := a.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := reserved(); n != 2<<22 {
			t.Errorf("an idle sweep has set messages aside: %d, want %d", n, 2<<22)
		}
		if err := a.RotateDEK(t.Context(), acme, seal.KV); err != nil {
			t.Fatal(err)
		}
		aad := seal.AAD{Class: seal.KV, ID: "sec_1"}
		if d.Engine() == db.Postgres {
			if v := must[[]byte](t)(a.Seal(acme, aad, nil))[4]; v != 1 {
				t.Errorf("a key was used before other nodes had time to learn of it")
			}
		}
		clock.Advance(time.Minute)
		sealed := must[[]byte](t)(a.Seal(acme, aad, []byte("x")))
		if sealed[4] != 2 {
			t.Fatalf("sealed with version %d, want 2", sealed[4])
		}
		if _, err := b.Open(acme, aad, sealed); !errors.Is(err, seal.ErrNoKey) {
			t.Errorf("opening before the sweep: %v, want ErrNoKey", err)
		}
		if err := b.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, err := b.Open(acme, aad, sealed); err != nil || string(got) != "x" {
			t.Errorf("opening after the sweep: %q, %v", got, err)
		}
	})
}

// However many begin at once, there is one first key of each kind, and all of
// them open what any of them sealed.
func TestManyStartAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		src := file(t)
		const n = 8
		sealed := make([][]byte, n)
		sealers := make([]*seal.Sealer, n)
		aad := seal.AAD{Class: seal.KV, ID: "sec_1"}
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				s, err := seal.Open(t.Context(), d, src)
				if err == nil {
					err = s.Prepare(t.Context(), acme)
				}
				if err != nil {
					t.Errorf("starting: %v", err)
					return
				}
				sealers[i] = s
				sealed[i], _ = s.Seal(acme, aad, []byte("x"))
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		if n := count(t, d, `select count(*) from seal_kek`); n != 1 {
			t.Errorf("there are %d KEKs, want 1", n)
		}
		for i, s := range sealers {
			for j, v := range sealed {
				if _, err := s.Open(acme, aad, v); err != nil {
					t.Errorf("node %d opening what node %d sealed: %v", i, j, err)
				}
			}
		}
	})
}

// K3: a new KEK rewrites data keys only, goes on where it was interrupted, and
// leaves nothing under the old one.
func TestRotateKEK(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		src := file(t)
		s, other := open(t, d, src, acme, globex), open(t, d, src, acme)
		aad := seal.AAD{Class: seal.KV, ID: "sec_1"}
		sealed := must[[]byte](t)(s.Seal(acme, aad, []byte("x")))
		// The rewriting of data keys fails after the KEK was made: a crash
		// between the two steps.
		fail(t, d, "seal_dek", "update")
		if err := s.RotateKEK(t.Context()); err == nil {
			t.Fatal("rotating succeeded although the data keys could not be written")
		}
		heal(t, d, "seal_dek")
		if n := count(t, d, `select count(*) from seal_kek`); n != 2 {
			t.Fatalf("there are %d KEKs after the crash, want 2", n)
		}
		later := open(t, d, src, acme, globex)
		if got, err := later.Open(acme, aad, sealed); err != nil || string(got) != "x" {
			t.Errorf("opening after the crash: %q, %v", got, err)
		}
		if err := later.RotateKEK(t.Context()); err != nil {
			t.Fatal(err)
		}
		for query, want := range map[string]int{
			`select count(*) from seal_kek`: 1, `select max(version) from seal_kek`: 2, `select count(*) from seal_kek_wrap`: 1,
			`select count(*) from seal_dek where kek_version <> 2`: 0,
		} {
			if n := count(t, d, query); n != want {
				t.Errorf("%s: %d, want %d", query, n, want)
			}
		}
		// A node that knows the old KEK alone goes on, and makes keys under
		// the new one.
		if err := other.Prepare(t.Context(), "initech"); err != nil {
			t.Errorf("preparing a tenant on a node with the old KEK: %v", err)
		}
		if n := count(t, d, `select count(*) from seal_dek where kek_version <> 2`); n != 0 {
			t.Errorf("%d data keys were made under a KEK that is gone", n)
		}
		for name, s := range map[string]*seal.Sealer{"old node": s, "other node": other, "new node": open(t, d, src, acme)} {
			if got, err := s.Open(acme, aad, sealed); err != nil || string(got) != "x" {
				t.Errorf("%s opening: %q, %v", name, got, err)
			}
		}
	})
}

// fail makes changes of a kind to a table fail, of all rows or of those for
// which a condition holds.
func fail(t testing.TB, d *db.DB, table, change string, when ...string) {
	t.Helper()
	condition := strings.Join(append(when, "1 = 1"), " and ")
	if d.Engine() == db.SQLite {
		exec(t, d, `create trigger fail_`+table+` before `+change+` on `+table+` when `+condition+` begin select raise(abort, 'no'); end`)
		return
	}
	exec(t, d, `create function fail_`+table+`() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$`)
	exec(t, d, `create trigger fail_`+table+` before `+change+` on `+table+` for each row when (`+condition+`) execute function fail_`+table+`()`)
}

func heal(t testing.TB, d *db.DB, table string) {
	t.Helper()
	if d.Engine() == db.SQLite {
		exec(t, d, `drop trigger fail_`+table)
		return
	}
	exec(t, d, `drop trigger fail_`+table+` on `+table)
	exec(t, d, `drop function fail_`+table+`()`)
}

// K3: the walker moves values to the newest key, goes on where it was
// interrupted, leaves alone what changed in the meantime, and deletes an old
// key only when nothing needs it.
func TestRewrap(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, clock := t.Context(), dbtest.NewClock(d)
		raw := map[db.Engine]string{db.SQLite: "blob", db.Postgres: "bytea"}[d.Engine()]
		exec(t, d, `create table vault_value (tenant_id text, id text, n bigint, sealed `+raw+`, at bigint, primary key (tenant_id, id, n))`)
		src := file(t)
		s := open(t, d, src, acme, globex)
		holding := seal.Holding{Class: seal.KV, Table: "vault_value", Sealed: "sealed", ID: "id", Version: "n", Created: "at"}
		s.Hold(holding)
		at := d.Now()
		aad := func(i int) seal.AAD {
			return seal.AAD{Class: seal.KV, ID: fmt.Sprintf("sec_%03d", i/3), Version: int64(i % 3), Created: at}
		}
		const n = 250
		if err := d.Do(ctx, acme, func(tx *db.Tx) error {
			for i := range n {
				a := aad(i)
				sealed, err := s.Seal(acme, a, []byte{byte(i)})
				if err != nil {
					return err
				}
				if _, err := tx.Exec(ctx, `insert into vault_value values ('acme', $1, $2, $3, $4)`, a.ID, a.Version, sealed, a.Created); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := s.RotateDEK(ctx, acme, seal.KV); err != nil {
			t.Fatal(err)
		}
		clock.Advance(2 * time.Minute)
		under := func(version int) int {
			return count(t, d, `select count(*) from vault_value where substr(sealed, 1, 5) = $1`, []byte{1, 0, 0, 0, byte(version)})
		}
		// Interrupted in the middle of the second batch.
		fail(t, d, "vault_value", "update", "old.id > 'sec_050'")
		p, err := s.Rewrap(ctx, acme)
		if err == nil {
			t.Fatalf("the walk was not interrupted: %+v", p)
		}
		heal(t, d, "vault_value")
		done := under(2)
		if done == 0 || done == n {
			t.Fatalf("the interrupted walk resealed %d of %d", done, n)
		}
		// One value was broken by somebody; its key stays.
		a := aad(n - 1)
		exec(t, d, `update vault_value set at = at + 1 where id = $1 and n = $2`, a.ID, a.Version)
		later := open(t, d, src, acme)
		later.Hold(holding)
		clock.Advance(48 * time.Hour)
		if p, err = later.Rewrap(ctx, acme); err != nil {
			t.Fatal(err)
		}
		if p.Resealed != n-1-done || len(p.Broken) != 1 || p.Broken[0] != "vault_value:"+a.ID || p.Deleted != 0 {
			t.Errorf("the second walk: %+v, want %d resealed, one broken, none deleted", p, n-1-done)
		}
		exec(t, d, `update vault_value set at = at - 1 where id = $1 and n = $2`, a.ID, a.Version)
		if p, err = later.Rewrap(ctx, acme); err != nil || p.Resealed != 1 || p.Deleted != 1 {
			t.Errorf("the third walk: %+v, %v, want the last one resealed and the key deleted", p, err)
		}
		if p, err = later.Rewrap(ctx, acme); err != nil || p.Resealed != 0 || p.Deleted != 0 {
			t.Errorf("the fourth walk: %+v, %v, want nothing to do", p, err)
		}
		if under(1) != 0 || under(2) != n {
			t.Errorf("%d values under the old key and %d under the new", under(1), under(2))
		}
		for i := range n {
			var sealed []byte
			if err := d.View(ctx, acme, func(tx *db.Tx) error {
				return tx.QueryRow(ctx, `select sealed from vault_value where tenant_id = 'acme' and id = $1 and n = $2`, aad(i).ID, aad(i).Version).Scan(&sealed)
			}); err != nil {
				t.Fatal(err)
			}
			if got, err := later.Open(acme, aad(i), sealed); err != nil || got[0] != byte(i) {
				t.Fatalf("value %d came back as %v, %v", i, got, err)
			}
		}
	})
}

// A holding may have neither versions nor times.
func TestRewrapOfPlainRows(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		raw := map[db.Engine]string{db.SQLite: "blob", db.Postgres: "bytea"}[d.Engine()]
		exec(t, d, `create table plain_value (tenant_id text, id text, sealed `+raw+`)`)
		s := open(t, d, file(t), acme)
		s.Hold(seal.Holding{Class: seal.KV, Table: "plain_value", Sealed: "sealed", ID: "id"})
		for i := range 150 {
			aad := seal.AAD{Class: seal.KV, ID: fmt.Sprint(i)}
			exec(t, d, `insert into plain_value values ('acme', $1, $2)`, aad.ID, must[[]byte](t)(s.Seal(acme, aad, nil)))
		}
		if err := s.RotateDEK(t.Context(), acme, seal.KV); err != nil {
			t.Fatal(err)
		}
		dbtest.NewClock(d).Advance(25 * time.Hour)
		if p, err := s.Rewrap(t.Context(), acme); err != nil || p.Resealed != 150 || p.Deleted != 1 {
			t.Errorf("the walk: %+v, %v, want 150 resealed and the old key deleted", p, err)
		}
	})
}

// An old key is kept for a day after its successor came into use, although
// nothing seems to need it: a node may have been asleep.
func TestOldKeysAreKeptForADay(t *testing.T) {
	d := dbtest.Open(t)
	clock := dbtest.NewClock(d)
	s := open(t, d, file(t), acme)
	s.Hold(seal.SigningKeys)
	if err := s.RotateDEK(t.Context(), acme, seal.Signing); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		by   time.Duration
		want int
	}{{24*time.Hour - time.Minute, 0}, {time.Minute, 1}} {
		clock.Advance(c.by)
		if p, err := s.Rewrap(t.Context(), acme); err != nil || p.Deleted != c.want {
			t.Errorf("%s later: %+v, %v, want %d keys deleted", c.by, p, err, c.want)
		}
	}
}

// Deleting a tenant's keys makes theirs unreadable, and nobody else's; the
// tenant may begin again.
func TestShred(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		src := file(t)
		s, other := open(t, d, src, acme, globex), open(t, d, src, acme)
		aad := seal.AAD{Class: seal.KV, ID: "sec_1"}
		mine := must[[]byte](t)(s.Seal(acme, aad, []byte("x")))
		theirs := must[[]byte](t)(s.Seal(globex, aad, []byte("y")))
		sum := s.MAC(acme, "u", nil)
		if err := d.Do(t.Context(), globex, func(tx *db.Tx) error { return seal.Shred(t.Context(), tx, acme) }); err != nil {
			t.Fatal(err)
		}
		s.Shredded(acme)
		if _, err := s.Open(acme, aad, mine); !errors.Is(err, seal.ErrNoKey) {
			t.Errorf("opening after shredding: %v, want ErrNoKey", err)
		}
		if err := s.Prepare(t.Context(), acme); err != nil {
			t.Fatal(err)
		}
		if err := other.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		for name, s := range map[string]*seal.Sealer{"the node": s, "another": other, "a later one": open(t, d, src, acme)} {
			if _, err := s.Open(acme, aad, mine); !errors.Is(err, seal.ErrBroken) {
				t.Errorf("%s opening with the keys of a new beginning: %v, want ErrBroken", name, err)
			}
			if hmac.Equal(s.MAC(acme, "u", nil), sum) {
				t.Errorf("%s: the pepper survived", name)
			}
		}
		if got, err := s.Open(globex, aad, theirs); err != nil || string(got) != "y" {
			t.Errorf("another tenant's value: %q, %v", got, err)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	s := open(b, dbtest.Open(b), file(b), acme)
	aad := seal.AAD{Class: seal.KV, ID: "sec_abcdefghijklmnopqrstuvwxyz", Version: 1, Created: time.Now()}
	plain := make([]byte, 512)
	b.ReportAllocs()
	for b.Loop() {
		sealed, err := s.Seal(acme, aad, plain)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Open(acme, aad, sealed); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMAC(b *testing.B) {
	s := open(b, dbtest.Open(b), file(b), acme)
	msg := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		s.MAC(acme, "client secret", msg)
	}
}
