package agent_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/opaque"
)

var keySet = []byte(`{"keys": [{"kty": "EC", "crv": "P-256", "kid": "one", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`)

func TestSecrets(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		r, ctx := open(t, d), t.Context()
		a, other := create(t, r, spec("bot")), create(t, r, spec("other"))
		works := func(id string, secret estover.Secret) string {
			t.Helper()
			s, c, err := r.BySecret(ctx, ada.Tenant, id, string(secret.Reveal()))
			if errors.Is(err, agent.ErrCredential) {
				return ""
			}
			if err != nil || s.ID != id {
				t.Fatalf("by secret: %+v, %v", s, err)
			}
			return c.ID
		}
		first, c1, err := r.CreateSecret(ctx, ada, a.ID, "first", 0)
		if err != nil || !opaque.Check(string(first.Reveal()), opaque.ClientSecret) {
			t.Fatalf("a secret is %q, %v", first.Reveal(), err)
		}
		if got := works(a.ID, first); got != c1.ID {
			t.Errorf("the first secret belongs to %q, want %s", got, c1.ID)
		}
		if got := works(other.ID, first); got != "" {
			t.Errorf("the first secret under another agent's id belongs to %q, want nothing", got)
		}
		if got := works("agt_unknown", first); got != "" {
			t.Errorf("the first secret under an unknown id belongs to %q, want nothing", got)
		}
		if got := works(a.ID, estover.NewSecret([]byte(opaque.New(opaque.ClientSecret)))); got != "" {
			t.Errorf("a secret that was never issued belongs to %q, want nothing", got)
		}

		// Replaced without a gap: both work during the overlap.
		clock.Advance(time.Minute)
		second, c2, err := r.CreateSecret(ctx, ada, a.ID, "second", 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.RetireCredential(ctx, ada, a.ID, c1.ID, time.Hour); err != nil {
			t.Fatal(err)
		}
		if works(a.ID, first) != c1.ID || works(a.ID, second) != c2.ID {
			t.Error("during the overlap one of both secrets is refused")
		}
		if err := r.RetireCredential(ctx, ada, a.ID, c1.ID, 10*time.Hour); err != nil {
			t.Fatal(err)
		}
		clock.Advance(time.Hour)
		if works(a.ID, first) != "" || works(a.ID, second) != c2.ID {
			t.Error("after the overlap the first secret works, or the second does not; a longer overlap cannot be had afterwards")
		}
		if err := r.RetireCredential(ctx, ada, a.ID, c1.ID, time.Hour); !errors.Is(err, agent.ErrCredentialNotFound) {
			t.Errorf("retiring what has ended: %v, want ErrCredentialNotFound", err)
		}

		// Retired at once: refused by whoever decided on a copy of before.
		live := []db.Epoch{{Table: agent.CredentialTable, ID: c2.ID, Epoch: c2.Epoch}}
		if err := d.Append(ctx, db.Append{Tenant: ada.Tenant, Live: live}); err != nil {
			t.Fatal(err)
		}
		if err := r.RetireCredential(ctx, ada, a.ID, c2.ID, 0); err != nil {
			t.Fatal(err)
		}
		if works(a.ID, second) != "" {
			t.Error("a retired secret works")
		}
		if err := d.Append(ctx, db.Append{Tenant: ada.Tenant, Live: live}); !errors.Is(err, db.ErrStale) {
			t.Errorf("a write that rests on a retired credential: %v, want ErrStale", err)
		}
		if got := get(t, r, a.ID); got.Epoch != 1 {
			t.Errorf("replacing a credential raised the agent's epoch to %d", got.Epoch)
		}

		short, c3, err := r.CreateSecret(ctx, ada, a.ID, "short", time.Hour)
		if err != nil || c3.ExpiresAt.Sub(c3.CreatedAt) != time.Hour {
			t.Fatalf("a secret for an hour is %+v, %v", c3, err)
		}
		clock.Advance(time.Hour)
		if works(a.ID, short) != "" {
			t.Error("a secret works after its time")
		}
		if list, err := r.Credentials(ctx, ada, a.ID); err != nil || len(list) != 0 {
			t.Errorf("the live credentials are %+v, %v, want none", list, err)
		}
	})
}

// TestSecretsAreNotStored looks for the secret, and its plain hash, in what
// the database holds and what JSON shows.
func TestSecretsAreNotStored(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r, ctx := open(t, d), t.Context()
		a := create(t, r, spec("bot"))
		secret, c, err := r.CreateSecret(ctx, ada, a.ID, "", 0)
		if err != nil {
			t.Fatal(err)
		}
		var hash []byte
		err = d.View(ctx, ada.Tenant, func(tx *db.Tx) error {
			return tx.QueryRow(ctx, "select hash from agent_credential where tenant_id = $1 and id = $2", tx.Tenant(), c.ID).Scan(&hash)
		})
		if err != nil {
			t.Fatal(err)
		}
		plain := opaque.Hash(string(secret.Reveal()))
		if !bytes.Equal(hash, options.Pepper(ada.Tenant, secret.Reveal())) || bytes.Equal(hash, plain[:]) {
			t.Errorf("stored is %x, want the HMAC under the pepper", hash)
		}
		text, err := json.Marshal(c)
		if err != nil || bytes.Contains(text, secret.Reveal()) || strings.Contains(string(text), "hash") {
			t.Errorf("as JSON: %s, %v", text, err)
		}
	})
}

func TestKeySets(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r, ctx := open(t, d), t.Context()
		a := create(t, r, spec("bot"))
		c, err := r.CreateKeySet(ctx, ada, a.ID, "keys", keySet, 0)
		if err != nil {
			t.Fatal(err)
		}
		s, err := r.Snapshot(ctx, ada.Tenant, a.ID)
		if err != nil || len(s.Credentials) != 1 || s.Credentials[0].ID != c.ID || s.Credentials[0].Kind != agent.KeySet {
			t.Fatalf("the copy has %+v, %v", s, err)
		}
		var set struct{ Keys []struct{ Kid string } }
		if err := json.Unmarshal(s.Credentials[0].JWKS, &set); err != nil || len(set.Keys) != 1 || set.Keys[0].Kid != "one" {
			t.Errorf("its keys are %s, %v", s.Credentials[0].JWKS, err)
		}
		if _, _, err := r.BySecret(ctx, ada.Tenant, a.ID, opaque.New(opaque.ClientSecret)); !errors.Is(err, agent.ErrCredential) {
			t.Errorf("a secret of an agent that has keys: %v, want ErrCredential", err)
		}
		twice := []byte(`{"keys": [{"kty":"EC","kid":"shown"}], "keys": [{"kty":"EC","kid":"hidden","kid":"last"}], "more": 1}`)
		if c, err := r.CreateKeySet(ctx, ada, a.ID, "", twice, 0); err != nil || bytes.Count(c.JWKS, []byte("kid")) != 1 {
			t.Errorf("members that stand twice: %s, %v, want each once", c.JWKS, err)
		}
		for _, bad := range []string{
			``, `null`, `[]`, `"keys"`, `{}`, `{"keys": {}}`, `{"keys": []}`, `{"keys": [1]}`, `{"keys": [{}]}`, `{"keys": [{"kty": 1}]}`, `{"keys": [null]}`,
			`{"keys": [{"kty": "EC", "d": "AA"}]}`, `{"keys": [{"kty": "oct", "k": "AA"}]}`, `{"keys": [{"kty": "EC"}, {"kty": "RSA", "p": ""}]}`,
			`{"keys": [{"kty": "EC"}]} {}`, `{"keys": [` + strings.Repeat(`{"kty":"EC"},`, 20) + `{"kty":"EC"}]}`,
			`{"keys": [{"kty": "EC", "x": "` + strings.Repeat("x", 64<<10) + `"}]}`,
		} {
			_, err := r.CreateKeySet(ctx, ada, a.ID, "", []byte(bad), 0)
			if !errors.Is(err, agent.ErrKeySet) {
				t.Errorf("the key set %.60s: %v, want ErrKeySet", bad, err)
			}
		}
	})
}

func TestTooManyCredentials(t *testing.T) {
	d := dbtest.Open(t)
	r, ctx := open(t, d), t.Context()
	a := create(t, r, spec("bot"))
	for i := range 20 {
		if _, _, err := r.CreateSecret(ctx, ada, a.ID, fmt.Sprint(i), 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.CreateKeySet(ctx, ada, a.ID, "", keySet, 0); !errors.Is(err, agent.ErrTooManyCredentials) {
		t.Errorf("the 21st credential: %v, want ErrTooManyCredentials", err)
	}
}

func TestUses(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clock := dbtest.NewClock(d)
		r, ctx := open(t, d), t.Context()
		a := create(t, r, spec("bot"))
		_, c, err := r.CreateSecret(ctx, ada, a.ID, "", 0)
		if err != nil {
			t.Fatal(err)
		}
		last := func() time.Time {
			list, err := r.Credentials(ctx, ada, a.ID)
			if err != nil || len(list) != 1 {
				t.Fatal(list, err)
			}
			return list[0].LastUsedAt
		}
		r.Used(ada.Tenant, c.ID)
		clock.Advance(time.Minute)
		r.Used(ada.Tenant, c.ID)
		r.Used(eve.Tenant, c.ID)
		want := d.Now()
		if got := last(); !got.IsZero() {
			t.Errorf("before it is stored the last use is %v", got)
		}
		if err := r.SaveUses(ctx); err != nil {
			t.Fatal(err)
		}
		if got := last(); want.Sub(got).Abs() > time.Second {
			t.Errorf("the last use is %v, want %v", got, want)
		}
		clock.Advance(-time.Hour) // another node's clock, behind
		r.Used(ada.Tenant, c.ID)
		if err := r.SaveUses(ctx); err != nil {
			t.Fatal(err)
		}
		if got := last(); want.Sub(got).Abs() > time.Second {
			t.Errorf("an earlier use moved the last one back to %v", got)
		}
	})
}
