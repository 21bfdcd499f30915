package offline_test

import (
	"bytes"
	"crypto/fips140"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"estover.dev"
	"estover.dev/internal/secret/offline"
)

// TestCopies shows R12: each recipient opens a copy with the key that is kept
// offline, nobody else does, and there is no value in clear anywhere.
func TestCopies(t *testing.T) {
	if fips140.Enabled() {
		if _, err := offline.Open(t.TempDir(), []string{"age1"}); err == nil || !strings.Contains(err.Error(), "FIPS") {
			t.Errorf("in FIPS mode: %v, want that it does without", err)
		}
		return
	}
	var keys []*age.X25519Identity
	var lines []string
	for range 3 {
		k, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		keys, lines = append(keys, k), append(lines, k.Recipient().String())
	}
	dir := filepath.Join(t.TempDir(), "copies")
	c, err := offline.Open(dir, lines[:2])
	if err != nil {
		t.Fatal(err)
	}
	const value = "the admin's own word"
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for n := range int64(4) {
		values := map[string]estover.Secret{"username": estover.NewSecret([]byte("root_a")), "password": estover.NewSecret([]byte(value))}
		for range 2 { // twice is as once
			if err := c.Write("acme", "orders", "targets/../orders", n+1, n, at, values); err != nil {
				t.Fatal(err)
			}
		}
	}
	var files []string
	err = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %s", path, info.Mode())
		}
		rel, _ := filepath.Rel(dir, path)
		files = append(files, rel)
		return err
	})
	if want := []string{"acme/targets%2f..%2forders@3.age", "acme/targets%2f..%2forders@4.age"}; err != nil || !slices.Equal(files, want) {
		t.Fatalf("the files are %v, %v; want %v", files, err, want)
	}
	b, err := os.ReadFile(filepath.Join(dir, files[1]))
	if err != nil || bytes.Contains(b, []byte(value)) {
		t.Fatalf("the copy has the value in clear, or cannot be read: %v", err)
	}
	for n, k := range keys {
		r, err := age.Decrypt(bytes.NewReader(b), k)
		if n == 2 {
			if err == nil {
				t.Error("a stranger opens the copy")
			}
			continue
		}
		if err != nil {
			t.Fatalf("recipient %d: %v", n, err)
		}
		plain, err := io.ReadAll(r)
		var s struct {
			Tenant, Target, Path string
			Version              int64
			At                   time.Time
			Values               map[string]string
		}
		if err == nil {
			err = json.Unmarshal(plain, &s)
		}
		if err != nil || s.Tenant != "acme" || s.Target != "orders" || s.Path != "targets/../orders" || s.Version != 4 || !s.At.Equal(at) || s.Values["username"] != "root_a" || s.Values["password"] != value {
			t.Errorf("recipient %d reads %s, %v", n, plain, err)
		}
	}
	// The copy of what is in use stays, however many versions come to nothing; and a
	// path may be as long as one of a secret.
	long := strings.Repeat("é", 256)
	for _, path := range []string{"targets/again", long, long[:510] + "x"} {
		for n := range int64(5) {
			if err := c.Write("acme", "orders", path, n+2, 2, at, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, "acme"))
	if err != nil || len(entries) != 2+3*5 {
		t.Errorf("%d copies, %v, want two, and five each of three secrets", len(entries), err)
	}
	for _, path := range []string{"targets/again", long, long[:510] + "x"} {
		if err := c.Write("acme", "orders", path, 7, 6, at, nil); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "acme")); err != nil || len(entries) != 2+3*2 {
		t.Errorf("%d copies, %v, want two of each of four secrets", len(entries), err)
	}
	for _, bad := range [][]string{nil, {""}, {"age1nonsense"}, {keys[0].String()}, {lines[0] + "\n" + lines[1]}} {
		if _, err := offline.Open(dir, bad); err == nil || strings.Contains(err.Error(), "AGE-SECRET-KEY-") && bad[0] == keys[0].String() {
			t.Errorf("the recipients %d of no kind: %v", len(bad), err)
		}
	}

	// Where it cannot be written, it says so.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Write("acme", "orders", "targets/orders", 5, 4, at, nil); !errors.Is(err, offline.ErrNotWritten) {
		t.Errorf("a folder that is gone: %v, want ErrNotWritten", err)
	}
}
