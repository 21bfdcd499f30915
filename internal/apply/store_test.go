package apply_test

import (
	"errors"
	"strings"
	"testing"

	"estover.dev/internal/apply"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/upstream"
)

const stores = `
---
apiVersion: estover.dev/v1
kind: SecretSync
metadata: {name: team/app/webhook}
spec:
  secret: crm/webhook
---
apiVersion: estover.dev/v1
kind: SecretLink
metadata: {name: shared/}
spec:
  store: team
  ttl: 1m
  class: internal
  destinations: [shared.example.com]
---
apiVersion: estover.dev/v1
kind: SecretLink
metadata: {name: crm/db}
spec:
  store: team
  from: app/db
---
apiVersion: estover.dev/v1
kind: SecretStore
metadata: {name: team}
spec:
  kind: vault
  address: https://vault.example.com:8200
  options: {mount: team}
  login: vault/token
  owner: alice
---
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: vault/token}
spec: {destinations: ["vault.example.com:8200"]}
---
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: crm/webhook}
spec: {destinations: ["crm.example.com", "vault.example.com:8200"]}
---
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: crm/db}
spec: {destinations: ["crm.example.com"]}
`

// TestStores: other vaults, what is read through them and what is pushed to them are as
// the files say, in any order, and nobody is asked at them for it (M16).
func TestStores(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d)
		if got := h.must(company+stores, dryRun); !strings.Contains(got, "+ SecretStore team\n") || h.events("store.put") != 0 {
			t.Errorf("a dry run says\n%s", got)
		}
		got := h.must(company + stores)
		for _, line := range []string{"+ SecretStore team\n", "+ SecretLink shared/\n", "+ SecretLink crm/db\n", "+ SecretSync team/app/webhook\n"} {
			if !strings.Contains(got, line) {
				t.Errorf("applying says\n%s without %s", got, line)
			}
		}
		s, err := h.Stores.Get(t.Context(), ada, "team")
		if err != nil || s.ManagedBy != "apply/default" || s.Login != "vault/token" || s.Options["mount"] != "team" || len(s.Links) != 1 || len(s.Folders) != 1 || len(s.Syncs) != 1 {
			t.Fatalf("the store is %+v (%v)", s, err)
		}
		alice, err := h.People.ByName(t.Context(), ada, "alice")
		if err != nil || s.Owner.ID() != alice.ID {
			t.Errorf("the owner is %s, want Alice, %s (%v)", s.Owner, alice.ID, err)
		}
		if f := s.Folders[0]; f.From != "shared/" || f.TTL.String() != "1m0s" || f.Class != "internal" || len(f.Destinations) != 1 {
			t.Errorf("the folder is %+v", f)
		}
		if l, err := h.Stores.LinkedAs(t.Context(), ada, "crm/db"); err != nil || l.Store != "team" || l.From != "app/db" || l.TTL.String() != "5m0s" {
			t.Errorf("the link is %+v (%v)", l, err)
		}
		if y := s.Syncs[0]; y.Path != "crm/webhook" || y.To != "app/webhook" {
			t.Errorf("the sync is %+v", y)
		}
		if got := h.must(company + stores); strings.ContainsAny(got, "+~-") {
			t.Errorf("applying again says\n%s", got)
		}

		for what, c := range map[string]struct{ before, after, says string }{
			"a store's address":    {"mount: team", "mount: other", "~ SecretStore team\n    options.mount: \"team\" → \"other\"\n"},
			"a store's owner":      {"  owner: alice\n", "", "unchanged"},
			"where a secret lives": {"from: app/db", "from: app/db2", "~ SecretLink crm/db\n    from: \"app/db\" → \"app/db2\"\n"},
			"a folder's time":      {"ttl: 1m", "ttl: 60s", "unchanged"},
			"a folder's class":     {"class: internal\n  destinations", "class: restricted\n  destinations", "~ SecretLink shared/\n    class: \"internal\" → \"restricted\"\n"},
		} {
			if got := h.must(company+strings.Replace(stores, c.before, c.after, 1), dryRun); !strings.Contains(got, c.says) {
				t.Errorf("%s changes: it says\n%s, want %s", what, got, c.says)
			}
		}
		h.must(company + strings.NewReplacer("mount: team", "mount: other", "from: app/db", "from: app/db2", "ttl: 1m", "ttl: 2m").Replace(stores))
		if s, err = h.Stores.Get(t.Context(), ada, "team"); err != nil || s.Options["mount"] != "other" || s.Links[0].From != "app/db2" || s.Folders[0].TTL.String() != "2m0s" || s.Owner.ID() != alice.ID {
			t.Errorf("after changes the store is %+v (%v)", s, err)
		}

		for what, c := range map[string]struct{ before, after, says string }{
			"a token":                           {"  login: vault/token\n", "  token: s.hunter2\n", "never stands in a file"},
			"a log-in that there is not":        {"login: vault/token", "login: vault/tokn", `There is no Secret "vault/tokn"`},
			"another kind":                      {"kind: vault\n", "kind: shoebox\n", `There is no kind "shoebox" of other vaults`},
			"a kind for good":                   {"kind: vault\n  address: https://vault.example.com:8200\n  options: {mount: team}", "kind: google\n  address: https://vault.example.com:8200\n  options: {project: acme}", "stays that"},
			"an option that there is not":       {"mount: team", "colour: red", `no option "colour"`},
			"nobody's store":                    {"owner: alice", "owner: alicia", `There is no Person "alicia"`},
			"a store that there is not":         {"  store: team\n  from", "  store: taem\n  from", `There is no SecretStore "taem"`},
			"a link of nothing":                 {"SecretLink\nmetadata: {name: crm/db}", "SecretLink\nmetadata: {name: crm/d}", `There is no Secret "crm/d"`},
			"what a secret says of itself":      {"  from: app/db\n", "  class: public\n", "in its own document"},
			"a time that is too long":           {"ttl: 1m", "ttl: 48h", "24h at most"},
			"a place without a path":            {"team/app/webhook", "team", "the name of a store, a slash and the path there"},
			"a place in a store that is nobody": {"team/app/webhook", "tem/app/webhook", `There is no SecretStore "tem"`},
			"another secret at a place":         {"secret: crm/webhook", "secret: vault/token", "The secret crm/webhook is pushed to this place"},
		} {
			_, err := h.run(company + strings.Replace(stores, c.before, c.after, 1))
			var p apply.Problems
			if !errors.As(err, &p) || len(p) == 0 || p[0].File != "company.yaml" || p[0].Line < 10 || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s: %v, want %q with its place", what, err, c.says)
			}
		}

		// What only turns out on the way has its place too.
		if _, err := h.run(company + stores + "---\napiVersion: estover.dev/v1\nkind: SecretSync\nmetadata: {name: team/app/db}\nspec: {secret: crm/db}\n"); err == nil || !strings.Contains(err.Error(), "lives in another vault") || !strings.Contains(err.Error(), "company.yaml:") {
			t.Errorf("pushing what is read through a store: %v", err)
		}

		// A store that is called otherwise is another one, and what is read through the first goes there.
		moved := strings.NewReplacer("name: team}", "name: crew}", "store: team", "store: crew", "team/app/webhook", "crew/app/webhook").Replace(stores)
		for _, files := range []string{moved, stores} {
			got, err := h.run(company+files, prune)
			if err != nil || strings.Count(got, "~ SecretLink") != 2 || strings.Count(got, "- SecretStore") != 1 {
				t.Fatalf("moving to another store: %v\n%s", err, got)
			}
		}

		// Pruning takes away what a file has made, and nothing that was made by hand.
		if _, err := h.Stores.Put(t.Context(), ada, upstream.StoreSpec{Name: "by-hand", Kind: "vault", Address: "https://vault.example.com:8200", Login: "vault/token"}); err != nil {
			t.Fatal(err)
		}
		got = h.must(company, prune)
		for _, line := range []string{"- SecretSync team/app/webhook\n", "- SecretLink crm/db\n", "- SecretLink shared/\n", "- SecretStore team\n"} {
			if !strings.Contains(got, line) {
				t.Errorf("pruning says\n%s without %s", got, line)
			}
		}
		if _, err := h.Stores.Get(t.Context(), ada, "team"); !errors.Is(err, upstream.ErrNoStore) {
			t.Errorf("the store that was pruned: %v, want ErrNoStore", err)
		}
		if _, err := h.Stores.Get(t.Context(), ada, "by-hand"); err != nil {
			t.Errorf("the store that was made by hand: %v", err)
		}
		if x, err := h.Secrets.Get(t.Context(), ada, "crm/db"); err != nil || x.Link != nil {
			t.Errorf("the secret that was read through it: %+v, %v, want it to live here", x, err)
		}
		if _, err := h.Stores.LinkedAs(t.Context(), ada, "shared/"); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("the folder that was pruned: %v, want ErrNotFound", err)
		}
		if got := h.must(company + stores); strings.Count(got, "+ Secret") != 4 {
			t.Errorf("applying it once more says\n%s, want a store, two links and a sync", got)
		}
	})
}
