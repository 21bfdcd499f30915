package seal_test

import (
	"bytes"
	"crypto/fips140"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/jose"
	"estover.dev/internal/seal"
)

// words is a passphrase source.
func words(s string) seal.Passphrase {
	return seal.Passphrase{Read: func() ([]byte, error) { return []byte(s), nil }}
}

func TestRootKeyFile(t *testing.T) {
	d := dbtest.Open(t)
	src := seal.File{Path: filepath.Join(t.TempDir(), "keys", "root.key")}
	open(t, d, src)
	info, err := os.Stat(src.Path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the file was made with %v, %v, want 0600", info.Mode(), err)
	}
	made := must[[]byte](t)(os.ReadFile(src.Path))
	open(t, d, src)
	if again := must[[]byte](t)(os.ReadFile(src.Path)); !bytes.Equal(made, again) {
		t.Error("the second start changed the file")
	}
	if left := must[[]string](t)(filepath.Glob(filepath.Join(filepath.Dir(src.Path), ".*"))); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o660, 0o700, 0o620} {
		if err := os.Chmod(src.Path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := seal.Open(t.Context(), d, src); !errors.Is(err, seal.ErrRootExposed) {
			t.Errorf("with mode %04o: %v, want ErrRootExposed", mode, err)
		}
	}
	if err := os.Chmod(src.Path, 0o400); err != nil {
		t.Fatal(err)
	}
	open(t, d, src)

	// Cut short, typed wrong, somebody else's, gone.
	if err := os.Chmod(src.Path, 0o600); err != nil {
		t.Fatal(err)
	}
	typo := bytes.Clone(made)
	at := bytes.Index(typo, []byte("estover-root-key-1 ")) + 25
	typo[at] = map[bool]byte{true: 'B', false: 'A'}[typo[at] == 'A']
	for name, content := range map[string][]byte{"cut short": made[:len(made)-12], "typed wrong": typo, "empty": nil, "not a key": []byte("hello\n")} {
		if err := os.WriteFile(src.Path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := seal.Open(t.Context(), d, src); !errors.Is(err, seal.ErrRoot) {
			t.Errorf("a file that is %s: %v, want ErrRoot", name, err)
		}
	}
	if err := os.Remove(src.Path); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.Open(t.Context(), d, src); !errors.Is(err, seal.ErrRootMissing) {
		t.Errorf("without the file: %v, want ErrRootMissing", err)
	}
	if _, err := os.Stat(src.Path); !errors.Is(err, os.ErrNotExist) {
		t.Error("a key was made that opens nothing")
	}
	other := file(t)
	open(t, dbtest.Open(t), other)
	if _, err := seal.Open(t.Context(), d, other); !errors.Is(err, seal.ErrRoot) {
		t.Errorf("with another installation's file: %v, want ErrRoot", err)
	}
	if err := os.WriteFile(src.Path, made, 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, d, src)
}

// The key is not kept where every copy of the database takes it along.
func TestRootKeyBesideTheDatabase(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "data", "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "data"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	database := "sqlite:" + filepath.Join(dir, "data", "estover.db")
	for _, c := range []struct {
		uri, database string
		refused       bool
	}{
		{"file:" + dir + "/data/root.key", database, true},
		{"file:" + dir + "/data/keys/root.key", database, true},
		{"file:" + dir + "/link/root.key", database, true},
		{"file:" + dir + "/data/../data/root.key", database, true},
		{"file:" + dir + "/data/root.key?beside=allow", database, false},
		{"file:" + dir + "/keys/root.key", database, false},
		{"file:" + dir + "/data2/root.key", database, false},
		{"file:" + dir + "/data/other.key", "postgres://db/estover", false},
	} {
		src := must[seal.Source](t)(seal.ParseSource(c.uri, c.database))
		_, _, err := src.Root(t.Context(), "", true)
		if errors.Is(err, seal.ErrRootExposed) != c.refused || (err != nil) != c.refused {
			t.Errorf("%s with %s: %v", c.uri, c.database, err)
		}
	}
}

func TestParseSource(t *testing.T) {
	for _, uri := range []string{"", "file:", "file", "/etc/key", "passphrase:", "passphrase:secret", "passphrase:env:", "tpm2:", "file:x?beside=deny", "file:x?mode=0644", "file:x?beside=allow&beside=allow"} {
		if _, err := seal.ParseSource(uri, "sqlite:x.db"); err == nil {
			t.Errorf("%q was accepted", uri)
		}
	}
	t.Setenv("ESTOVER_TEST_PASSPHRASE", "correct horse battery")
	path := filepath.Join(t.TempDir(), "words")
	if err := os.WriteFile(path, []byte("correct horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := dbtest.Open(t)
	for _, uri := range []string{"passphrase:env:ESTOVER_TEST_PASSPHRASE", "passphrase:file:" + path} {
		open(t, d, must[seal.Source](t)(seal.ParseSource(uri, "")))
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.Open(t.Context(), d, must[seal.Source](t)(seal.ParseSource("passphrase:file:"+path, ""))); !errors.Is(err, seal.ErrRootExposed) {
		t.Errorf("a passphrase that others can read: %v, want ErrRootExposed", err)
	}
	if _, err := seal.Open(t.Context(), d, must[seal.Source](t)(seal.ParseSource("passphrase:env:ESTOVER_TEST_NOTHING", ""))); !errors.Is(err, seal.ErrRootMissing) {
		t.Errorf("a passphrase that is not set: %v, want ErrRootMissing", err)
	}
}

// The key that NewRoot prints opens by whatever way it is handed over.
func TestGiven(t *testing.T) {
	d, key, dir := dbtest.Open(t), seal.NewRoot(), t.TempDir()
	env, creds := must[seal.Source](t)(seal.ParseSource("env:ESTOVER_TEST_ROOT", "")), must[seal.Source](t)(seal.ParseSource("systemd-creds:estover-root", ""))
	if _, err := seal.Open(t.Context(), d, env); !errors.Is(err, seal.ErrRootMissing) {
		t.Errorf("a variable that is not set: %v, want ErrRootMissing", err)
	}
	if _, err := seal.Open(t.Context(), d, creds); !errors.Is(err, seal.ErrRootMissing) {
		t.Errorf("without systemd: %v, want ErrRootMissing", err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if _, err := seal.Open(t.Context(), d, creds); !errors.Is(err, seal.ErrRootMissing) {
		t.Errorf("a credential that is not there: %v, want ErrRootMissing", err)
	}
	t.Setenv("ESTOVER_TEST_ROOT", key)
	if err := os.WriteFile(filepath.Join(dir, "estover-root"), []byte(key), 0o400); err != nil {
		t.Fatal(err)
	}
	s := open(t, d, env, acme)
	if _, err := seal.Open(t.Context(), d, creds); !errors.Is(err, seal.ErrRoot) {
		t.Errorf("by a way that is not registered: %v, want ErrRoot", err)
	}
	if err := addRoot(t, d, s, creds); !errors.Is(err, seal.ErrRoot) {
		t.Errorf("the same key by a second way: %v, want ErrRoot", err)
	}
	open(t, d, env, acme)
	t.Setenv("ESTOVER_TEST_ROOT", key[:len(key)-2])
	if _, err := seal.Open(t.Context(), d, env); !errors.Is(err, seal.ErrRoot) || strings.Contains(err.Error(), key[len(key)-30:len(key)-12]) {
		t.Errorf("a key that is cut short: %v, want ErrRoot, and none of the key", err)
	}
	other := dbtest.Open(t)
	open(t, other, creds, acme)
	open(t, other, creds, acme)
}

func TestPassphrase(t *testing.T) {
	d := dbtest.Open(t)
	if _, err := seal.Open(t.Context(), d, words("short")); !errors.Is(err, seal.ErrRoot) {
		t.Errorf("a short passphrase: %v, want ErrRoot", err)
	}
	s := open(t, d, words("correct horse battery"), acme)
	aad := seal.AAD{Class: seal.KV, ID: "x"}
	sealed := must[[]byte](t)(s.Seal(acme, aad, []byte("x")))
	if got, err := open(t, d, words("correct horse battery"), acme).Open(acme, aad, sealed); err != nil || string(got) != "x" {
		t.Errorf("opening after a restart: %q, %v", got, err)
	}
	if _, err := seal.Open(t.Context(), d, words("correct horse Battery")); !errors.Is(err, seal.ErrRoot) {
		t.Errorf("another passphrase: %v, want ErrRoot", err)
	}
	want := `%"kdf":"argon2id"%"time":3,"memory":65536,"threads":2%`
	if fips140.Enabled() {
		want = `%"kdf":"pbkdf2-sha256"%"rounds":600000%`
	}
	if count(t, d, `select count(*) from seal_root where params like $1`, want) != 1 {
		t.Errorf("the passphrase was not stretched as %s", want)
	}
	// A passphrase and a file stand side by side.
	if err := addRoot(t, d, s, file(t)); err != nil {
		t.Fatal(err)
	}
	if roots := must[[]seal.Root](t)(s.Roots(t.Context())); len(roots) != 2 || roots[0].Kind != "passphrase" || roots[1].Kind != "file" {
		t.Errorf("the root keys are %+v", roots)
	}
}

// K7: in FIPS mode a root key is derived by PBKDF2 alone, and one that was is the same
// in every mode. It is run in each.
func TestFIPS(t *testing.T) {
	for how, want := range map[string]string{
		`{"kdf":"pbkdf2-sha256","salt":"AAECAwQFBgcICQoLDA0ODw==","rounds":600000}`:                "bb06c8c0b1dd5bfd4e40f4e297a2d0e64da7ef94b4b8ec20989021c8b41536ad",
		`{"kdf":"argon2id","salt":"AAECAwQFBgcICQoLDA0ODw==","time":3,"memory":65536,"threads":2}`: "6064d080b3f7f72e2cbda51e93bc2f1e66753f669f8de1c49a4be5b1fd8491bd",
	} {
		key, _, err := words("correct horse battery").Root(t.Context(), how, false)
		if strings.Contains(how, "argon2id") && fips140.Enabled() {
			if !errors.Is(err, seal.ErrRoot) || !strings.Contains(err.Error(), "Argon2id") || key != nil {
				t.Errorf("by Argon2id in FIPS mode: %x, %v, want ErrRoot", key, err)
			}
			continue
		}
		if got := hex.EncodeToString(key); err != nil || got != want {
			t.Errorf("the key of %s is %s, %v, want %s", how, got, err, want)
		}
	}
}

func addRoot(t *testing.T, d *db.DB, s *seal.Sealer, src seal.Source) error {
	t.Helper()
	a, err := s.PrepareRoot(t.Context(), src)
	if err != nil {
		return err
	}
	err = d.Do(t.Context(), acme, func(tx *db.Tx) error { return a.Store(t.Context(), tx) })
	if err == nil {
		s.Added(a)
	}
	return err
}

func removeRoot(t *testing.T, d *db.DB, s *seal.Sealer, id string) error {
	t.Helper()
	if err := s.Removable(id); err != nil {
		return err
	}
	err := d.Do(t.Context(), acme, func(tx *db.Tx) error { return seal.RemoveRoot(t.Context(), tx, id) })
	if err == nil {
		s.Removed(id)
	}
	return err
}

// K6: one moves from one source to another without stopping, and keeps a way
// back in.
func TestTwoRoots(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, src, back := t.Context(), file(t), file(t)
		s := open(t, d, src, acme)
		aad := seal.AAD{Class: seal.KV, ID: "x"}
		sealed := must[[]byte](t)(s.Seal(acme, aad, []byte("x")))
		if err := addRoot(t, d, s, back); err != nil {
			t.Fatal(err)
		}
		if err := addRoot(t, d, s, src); !errors.Is(err, seal.ErrRoot) {
			t.Errorf("adding a root key twice: %v, want ErrRoot", err)
		}
		if err := s.RotateKEK(ctx); err != nil {
			t.Errorf("rotating with both: %v", err)
		}
		second := open(t, d, back, acme)
		if got, err := second.Open(acme, aad, sealed); err != nil || string(got) != "x" {
			t.Errorf("opening by the second way: %q, %v", got, err)
		}
		if err := second.RotateKEK(ctx); !errors.Is(err, seal.ErrRootMissing) {
			t.Errorf("rotating with one of two: %v, want ErrRootMissing", err)
		}
		roots := must[[]seal.Root](t)(second.Roots(ctx))
		if len(roots) != 2 || roots[0].Kind != "file" || roots[0].Open || !roots[1].Open {
			t.Fatalf("the root keys are %+v", roots)
		}
		if err := removeRoot(t, d, second, roots[1].ID); !errors.Is(err, seal.ErrRoot) {
			t.Errorf("removing the only way in: %v, want ErrRoot", err)
		}
		if err := removeRoot(t, d, second, roots[0].ID); err != nil {
			t.Fatal(err)
		}
		if err := removeRoot(t, d, second, roots[0].ID); !errors.Is(err, seal.ErrRoot) {
			t.Errorf("removing it again: %v, want ErrRoot", err)
		}
		// Nor does the last one go that the database has, whoever asks.
		if err := d.Do(ctx, acme, func(tx *db.Tx) error { return seal.RemoveRoot(ctx, tx, roots[1].ID) }); !errors.Is(err, seal.ErrRoot) {
			t.Errorf("removing the last root key of the database: %v, want ErrRoot", err)
		}
		if _, err := seal.Open(ctx, d, src); !errors.Is(err, seal.ErrRoot) {
			t.Errorf("opening by the way that was removed: %v, want ErrRoot", err)
		}
		if err := second.RotateKEK(ctx); err != nil {
			t.Errorf("rotating with the one that is left: %v", err)
		}
		both, err := seal.Open(ctx, d, back, src)
		if !errors.Is(err, seal.ErrRoot) {
			t.Errorf("opening with one that fits and one that does not: %v, %v, want ErrRoot", both, err)
		}
	})
}

// A start whose first write fails leaves a key file and an empty database, and
// the next start goes on from there.
func TestFirstStartCrashes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		src := file(t)
		fail(t, d, "seal_kek_wrap", "insert")
		if _, err := seal.Open(t.Context(), d, src); err == nil {
			t.Fatal("the first start succeeded")
		}
		made := must[[]byte](t)(os.ReadFile(src.Path))
		if n := count(t, d, `select (select count(*) from seal_root) + (select count(*) from seal_kek)`); n != 0 {
			t.Errorf("%d rows of a chain that has no beginning", n)
		}
		heal(t, d, "seal_kek_wrap")
		open(t, d, src, acme)
		if again := must[[]byte](t)(os.ReadFile(src.Path)); !bytes.Equal(made, again) {
			t.Error("the second start made another key")
		}
	})
}

// A start makes no key that takes long: RSA keys come with the first sweep or
// when they are asked for.
func TestStartMakesNoSlowKeys(t *testing.T) {
	d := dbtest.Open(t)
	k := must[*seal.Keyring](t)(seal.OpenKeyring(t.Context(), d, open(t, d, file(t), acme)))
	for _, purpose := range []jose.Purpose{seal.LogKey, jose.AccessToken} {
		if _, err := k.Active(t.Context(), acme, purpose); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(t, d, `select count(*) from signing_key`); n != 2 {
		t.Errorf("%d keys were made, want the 2 that were asked for", n)
	}
}
