package directory_test

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/guard/guardtest"
)

// sealedDirectory is a directory whose keys carry a MAC that is not in the
// database.
func sealedDirectory(t *testing.T, d *db.DB) *directory.Directory {
	return directory.New(guardtest.New(t, d, guardtest.AllowAll), directory.Options{MAC: func(tenant estover.TenantID, b []byte) []byte {
		m := hmac.New(sha256.New, []byte("key of "+tenant))
		m.Write(b)
		return m.Sum(nil)
	}})
}

func sshLine(t *testing.T) string {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + " alice@laptop"
}

// loggedIn is a person who has just taken a token over.
func loggedIn(t *testing.T, dir *directory.Directory, p directory.Person) estover.Caller {
	t.Helper()
	value, _ := enter(t, dir, p.ID)
	c, err := dir.Authenticate(t.Context(), estover.DefaultTenant, value)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func approves(t *testing.T, d *db.DB, dir *directory.Directory, person, id string, at time.Time) (k directory.ApproverKey, err error) {
	t.Helper()
	err = d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) (err error) {
		k, err = dir.Approves(t.Context(), tx, person, id, at)
		return err
	})
	return k, err
}

func TestApproverKeys(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		dir := sealedDirectory(t, d)
		alice, bob := create(t, dir, "alice", estover.Approver), create(t, dir, "bob")
		her := loggedIn(t, dir, alice)
		line := sshLine(t)
		k, err := directory.ParseSSHKey(line)
		if err != nil {
			t.Fatal(err)
		}
		if k.Type != "ssh-ed25519" || !strings.HasPrefix(k.Fingerprint, "SHA256:") || k.Label != "alice@laptop" {
			t.Errorf("the key is %+v", k)
		}
		k, err = dir.AddApproverKey(t.Context(), her, k)
		if err != nil {
			t.Fatal(err)
		}
		got, err := approves(t, d, dir, alice.ID, k.ID, d.Now())
		if err != nil || string(got.Public) != string(k.Public) || got.Person != alice.ID {
			t.Errorf("alice approves with %+v, %v", got, err)
		}
		if _, err := approves(t, d, dir, bob.ID, k.ID, d.Now()); !errors.Is(err, directory.ErrKeyNotFound) {
			t.Errorf("bob approving with alice's key: %v, want ErrKeyNotFound", err)
		}
		if _, err := approves(t, d, dir, alice.ID, k.ID, k.CreatedAt.Add(-time.Second)); !errors.Is(err, directory.ErrKeyEnded) {
			t.Errorf("a signature from before the key: %v, want ErrKeyEnded", err)
		}
		// A key is one person's, once.
		if _, err := dir.AddApproverKey(t.Context(), loggedIn(t, dir, bob), k); !errors.Is(err, directory.ErrKeyTaken) {
			t.Errorf("bob registering alice's key: %v, want ErrKeyTaken", err)
		}
		list, err := dir.ApproverKeys(t.Context(), her, alice.ID)
		if err != nil || len(list) != 1 || list[0].ID != k.ID || list[0].Fingerprint != k.Fingerprint {
			t.Errorf("alice has %+v, %v", list, err)
		}
		// Whoever logged in long ago registers none: what lies in a file may be a copy.
		clock.Advance(directory.KeyFresh + time.Minute)
		another, err := directory.ParseSSHKey(sshLine(t))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dir.AddApproverKey(t.Context(), her, another); !errors.Is(err, directory.ErrKeyStale) {
			t.Errorf("registering a key long after the login: %v, want ErrKeyStale", err)
		}
		agent := her
		agent.Actors = []estover.Subject{estover.Agent("agt_1")}
		if _, err := dir.AddApproverKey(t.Context(), agent, another); !errors.Is(err, directory.ErrNotAPerson) {
			t.Errorf("an agent registering a key for alice: %v, want ErrNotAPerson", err)
		}
		if err := dir.EndApproverKey(t.Context(), agent, alice.ID, k.ID); !errors.Is(err, directory.ErrNotAPerson) {
			t.Errorf("an agent retiring a key of alice's: %v, want ErrNotAPerson", err)
		}
		if err := dir.EndApproverKey(t.Context(), her, bob.ID, k.ID); !errors.Is(err, directory.ErrKeyNotFound) {
			t.Errorf("retiring alice's key as bob's: %v, want ErrKeyNotFound", err)
		}
		if err := dir.EndApproverKey(t.Context(), her, alice.ID, k.ID); err != nil {
			t.Fatal(err)
		}
		if err := dir.EndApproverKey(t.Context(), her, alice.ID, k.ID); !errors.Is(err, directory.ErrKeyNotFound) {
			t.Errorf("retiring it again: %v, want ErrKeyNotFound", err)
		}
		if _, err := approves(t, d, dir, alice.ID, k.ID, d.Now()); !errors.Is(err, directory.ErrKeyEnded) {
			t.Errorf("approving with a retired key: %v, want ErrKeyEnded", err)
		}
		if _, err := approves(t, d, dir, alice.ID, k.ID, k.CreatedAt.Add(time.Minute)); err != nil {
			t.Errorf("what it signed before: %v", err)
		}
		// To disable somebody ends their keys.
		mine, err := directory.ParseSSHKey(sshLine(t))
		if err != nil {
			t.Fatal(err)
		}
		if mine, err = dir.AddApproverKey(t.Context(), loggedIn(t, dir, bob), mine); err != nil {
			t.Fatal(err)
		}
		if _, err := dir.Disable(t.Context(), root, bob.ID, "left"); err != nil {
			t.Fatal(err)
		}
		if _, err := approves(t, d, dir, bob.ID, mine.ID, d.Now()); !errors.Is(err, directory.ErrKeyEnded) {
			t.Errorf("approving with a key of somebody disabled: %v, want ErrKeyEnded", err)
		}
	})
}

// TestKeyRowEdited is the key in the attack list "a row of the database is edited
// by hand": whatever is changed about it, it signs nothing.
func TestKeyRowEdited(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dbtest.NewClock(d)
		dir := sealedDirectory(t, d)
		alice, eve := create(t, dir, "alice"), create(t, dir, "eve")
		add := func(p directory.Person) directory.ApproverKey {
			k, err := directory.ParseSSHKey(sshLine(t))
			if err != nil {
				t.Fatal(err)
			}
			if k, err = dir.AddApproverKey(t.Context(), loggedIn(t, dir, p), k); err != nil {
				t.Fatal(err)
			}
			return k
		}
		exec := func(query string, args ...any) {
			t.Helper()
			if err := d.Do(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
				n, err := tx.Exec(t.Context(), query, args...)
				if err == nil && n != 1 {
					t.Errorf("%s changed %d rows", query, n)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		for what, edit := range map[string]func(k, theirs directory.ApproverKey){
			"another key": func(k, _ directory.ApproverKey) {
				exec("update approver_key set public_key = $1 where id = $2", []byte("mine"), k.ID)
			},
			"somebody else's": func(k, _ directory.ApproverKey) {
				exec("update approver_key set person_id = $1 where id = $2", eve.ID, k.ID)
			},
			"no look": func(k, _ directory.ApproverKey) {
				exec("update approver_key set verifies = 1 where id = $1", k.ID)
			},
			"older": func(k, _ directory.ApproverKey) {
				exec("update approver_key set created_at = 0 where id = $1", k.ID)
			},
			"with the seal of another": func(k, theirs directory.ApproverKey) {
				exec("update approver_key set mac = (select mac from approver_key where id = $1), public_key = $2 where id = $3", theirs.ID, []byte("other"), k.ID)
			},
			"inserted": func(k, theirs directory.ApproverKey) {
				exec(`update approver_key set id = $1 where id = $2`, "ssk_old", k.ID)
				exec(`insert into approver_key (tenant_id, id, person_id, label, public_key, verifies, created_at, mac)
					select tenant_id, $1, $2, label, $3, verifies, created_at, mac from approver_key where id = $4`, k.ID, alice.ID, []byte("x"), theirs.ID)
				exec(`delete from approver_key where id = $1`, "ssk_old")
			},
			"brought back": func(k, _ directory.ApproverKey) {
				if err := dir.EndApproverKey(t.Context(), loggedIn(t, dir, alice), alice.ID, k.ID); err != nil {
					t.Fatal(err)
				}
				exec("update approver_key set ended_at = null where id = $1", k.ID)
			},
		} {
			k, theirs := add(alice), add(eve)
			edit(k, theirs)
			who := alice.ID
			if what == "somebody else's" {
				who = eve.ID
			}
			if _, err := approves(t, d, dir, who, k.ID, d.Now()); !errors.Is(err, directory.ErrKeyAltered) {
				t.Errorf("approving with a key that was made %s by hand: %v, want ErrKeyAltered", what, err)
			}
			exec("delete from approver_key where id = $1", k.ID)
			exec("delete from approver_key where id = $1", theirs.ID)
		}
	})
}

// Two may not register the same key, and nobody more than ten.
func TestApproverKeyRace(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := sealedDirectory(t, d)
		k, err := directory.ParseSSHKey(sshLine(t))
		if err != nil {
			t.Fatal(err)
		}
		var callers []estover.Caller
		for _, name := range []string{"alice", "bob", "carol", "dora"} {
			callers = append(callers, loggedIn(t, dir, create(t, dir, name)))
		}
		var wg sync.WaitGroup
		var won atomic.Int64
		for i := range 64 {
			wg.Go(func() {
				_, err := dir.AddApproverKey(t.Context(), callers[i%len(callers)], k)
				if err == nil {
					won.Add(1)
				} else if !errors.Is(err, directory.ErrKeyTaken) {
					t.Errorf("registering a key that others register: %v", err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d have registered one key", won.Load())
		}
		for n := 0; ; n++ {
			k, err := directory.ParseSSHKey(sshLine(t))
			if err != nil {
				t.Fatal(err)
			}
			if _, err = dir.AddApproverKey(t.Context(), callers[0], k); errors.Is(err, directory.ErrTooManyKeys) && n >= 9 {
				break
			} else if err != nil || n > 10 {
				t.Fatalf("registering key %d: %v", n+1, err)
			}
		}
	})
}

func TestParseSSHKey(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ssh.NewPublicKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	good := sshLine(t)
	for what, line := range map[string]string{
		"nothing":     "",
		"RSA":         string(ssh.MarshalAuthorizedKey(pub)),
		"two keys":    good + "\n" + sshLine(t),
		"options":     `command="rm -rf /" ` + good,
		"half a key":  good[:40],
		"a long line": good + strings.Repeat("x", 5000),
	} {
		if k, err := directory.ParseSSHKey(line); !errors.Is(err, directory.ErrKeyInvalid) {
			t.Errorf("%s is read as %+v (%v), want ErrKeyInvalid", what, k, err)
		}
	}
	k, err := directory.ParseSSHKey(good)
	if err != nil {
		t.Fatal(err)
	}
	k.Verifies = true
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := sealedDirectory(t, d)
		alice := create(t, dir, "alice")
		if _, err := dir.AddApproverKey(t.Context(), loggedIn(t, dir, alice), k); !errors.Is(err, directory.ErrKeyInvalid) {
			t.Errorf("a key in a file that is to look who uses it: %v, want ErrKeyInvalid", err)
		}
	})
}
