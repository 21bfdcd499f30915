package openbao_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/secret/upstream/openbao"
	"estover.dev/internal/secret/upstream/upstreamtest"
)

const token = "s.made-for-tests"

// A vault answers as the engine kv, version 2, does, mounted at team/kv in the
// namespace crm.
type vault struct {
	mu      sync.Mutex
	secrets map[string][]*version
	gets    int // values that were read
}

type version struct {
	data             json.RawMessage
	created, deleted time.Time
	destroyed        bool
}

func (v *version) metadata(n int) map[string]any {
	deleted := ""
	if !v.deleted.IsZero() {
		deleted = v.deleted.Format(time.RFC3339Nano)
	}
	return map[string]any{"version": n, "created_time": v.created.Format(time.RFC3339Nano), "deletion_time": deleted, "destroyed": v.destroyed, "custom_metadata": nil}
}

func (x *vault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x.mu.Lock()
	defer x.mu.Unlock()
	fail := func(status int, words ...string) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": append([]string{}, words...)})
	}
	answer := func(status int, data any) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"request_id": "r", "lease_id": "", "renewable": false, "lease_duration": 0, "data": data, "wrap_info": nil, "warnings": nil, "auth": nil})
	}
	if r.Header.Get("X-Vault-Token") != token || r.Header.Get("X-Vault-Namespace") != "crm" {
		fail(http.StatusForbidden, "permission denied")
		return
	}
	path, mounted := strings.CutPrefix(r.URL.Path, "/v1/team/kv/")
	what, path, _ := strings.Cut(path, "/")
	versions := x.secrets[path]
	switch {
	case !mounted:
		fail(http.StatusNotFound, "no handler for route")
	case what == "metadata" && (r.Method == "LIST" || r.URL.Query().Get("list") == "true"):
		var keys []string
		folder := path // with or without its slash
		if folder != "" && !strings.HasSuffix(folder, "/") {
			folder += "/"
		}
		for p := range x.secrets {
			if rest, in := strings.CutPrefix(p, folder); in && rest != "" {
				if name, _, folder := strings.Cut(rest, "/"); folder {
					rest = name + "/"
				}
				if !slices.Contains(keys, rest) {
					keys = append(keys, rest)
				}
			}
		}
		if slices.Sort(keys); len(keys) == 0 {
			fail(http.StatusNotFound)
			return
		}
		answer(http.StatusOK, map[string]any{"keys": keys})
	case what == "metadata" && r.Method == http.MethodGet && versions != nil:
		all := map[string]any{}
		for i, v := range versions {
			m := v.metadata(i + 1)
			delete(m, "version")
			delete(m, "custom_metadata")
			all[strconv.Itoa(i+1)] = m
		}
		answer(http.StatusOK, map[string]any{
			"versions": all, "current_version": len(versions), "oldest_version": 0, "created_time": versions[0].created.Format(time.RFC3339Nano),
			"updated_time": versions[0].created.Format(time.RFC3339Nano), "max_versions": 0, "cas_required": false, "delete_version_after": "0s", "custom_metadata": nil,
		})
	case what == "data" && (r.Method == http.MethodPut || r.Method == http.MethodPost):
		var in struct {
			Data    json.RawMessage
			Options map[string]any
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			fail(http.StatusBadRequest, err.Error())
			return
		}
		if cas, given := in.Options["cas"].(float64); given && int(cas) != len(versions) {
			fail(http.StatusBadRequest, "check-and-set parameter did not match the current version")
			return
		}
		v := &version{data: in.Data, created: time.Now()}
		x.secrets[path] = append(versions, v)
		answer(http.StatusOK, v.metadata(len(versions)+1))
	case what == "data" && r.Method == http.MethodGet:
		n := len(versions)
		if q := r.URL.Query().Get("version"); q != "" && q != "0" {
			n, _ = strconv.Atoi(q)
		}
		if n < 1 || n > len(versions) {
			fail(http.StatusNotFound)
			return
		}
		v := versions[n-1]
		if !v.deleted.IsZero() || v.destroyed { // a 404 with a body
			answer(http.StatusNotFound, map[string]any{"data": nil, "metadata": v.metadata(n)})
			return
		}
		x.gets++
		answer(http.StatusOK, map[string]any{"data": v.data, "metadata": v.metadata(n)})
	case what == "data" && r.Method == http.MethodDelete:
		if len(versions) > 0 {
			versions[len(versions)-1].deleted = time.Now()
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		fail(http.StatusNotFound)
	}
}

func start(t *testing.T) (*vault, engine.Config) {
	x := &vault{secrets: map[string][]*version{}}
	s := httptest.NewServer(x)
	t.Cleanup(s.Close)
	return x, engine.Config{
		Address: s.URL, Options: map[string]string{"mount": "team/kv", "namespace": "crm"}, Admin: engine.Credential{Secret: estover.NewSecret([]byte(token))},
	}
}

func TestKind(t *testing.T) {
	_, c := start(t)
	upstreamtest.Run(t, openbao.Kind, c)
}

// TestLeftover: a version that was destroyed, or deleted, is not found, and no
// token is sent to where a redirect leads.
func TestLeftover(t *testing.T) {
	x, c := start(t)
	s, err := openbao.Kind.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		if _, err := s.Put(t.Context(), "a", estover.NewSecret([]byte(`{"n": 12345678901234567890}`)), upstream.Any); err != nil {
			t.Fatalf("version %d: %v", n+1, err)
		}
	}
	x.secrets["a"][0].destroyed, x.secrets["a"][1].deleted = true, time.Now()
	for version, want := range map[string]error{"1": upstream.ErrNotFound, "2": upstream.ErrNotFound, "3": nil, "4": upstream.ErrNotFound, "x": upstream.ErrNotFound} {
		v, err := s.Get(t.Context(), "a", version)
		if !errors.Is(err, want) {
			t.Errorf("version %s: %v, want %v", version, err, want)
		}
		if err == nil && !strings.Contains(string(v.Object.Reveal()), "12345678901234567890") {
			t.Error("a number is not what it was")
		}
	}
	versions, err := s.Versions(t.Context(), "a")
	if err != nil || len(versions) != 3 || versions[0].ID != "3" || !versions[0].Live || versions[1].Live || versions[2].Live {
		t.Errorf("versions: %v, %v", versions, err)
	}

	asked := false
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer elsewhere.Close()
	from := httptest.NewServer(http.RedirectHandler(elsewhere.URL+"/v1/team/kv/data/a", http.StatusTemporaryRedirect))
	defer from.Close()
	c.Address = from.URL
	if s, err = openbao.Kind.Open(c); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "a", ""); err == nil || asked {
		t.Errorf("a redirect: %v, followed: %v", err, asked)
	}
}

// TestImport copies, copies again, and overwrites nothing that was changed here.
func TestImport(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		g := guardtest.New(t, d, guardtest.AllowAll)
		sealer, err := seal.Open(t.Context(), d, seal.File{Path: filepath.Join(t.TempDir(), "root.key")})
		if err != nil {
			t.Fatal(err)
		}
		sealer.Hold(secret.Holding)
		secrets := secret.New(g, sealer, secret.Options{Logger: slog.New(slog.DiscardHandler)})
		imports := upstream.NewImports(g, secrets, nil, openbao.Kind)
		x, c := start(t)
		alice := estover.Caller{Tenant: "acme", Subject: estover.User("usr_alice"), Roles: []estover.Role{estover.Admin}}
		host := strings.TrimPrefix(c.Address, "http://")
		object := func(text string) estover.Secret { return estover.NewSecret([]byte(text)) }
		made := secret.Put{Make: &secret.Spec{Path: "vault/token", Destinations: []string{host}}}
		if _, _, err := secrets.Put(t.Context(), alice, "vault/token", object(fmt.Sprintf(`{"value": %q}`, token)), made); err != nil {
			t.Fatal(err)
		}
		s, err := openbao.Kind.Open(c)
		if err != nil {
			t.Fatal(err)
		}
		put := func(path, text string) {
			t.Helper()
			if _, err := s.Put(t.Context(), path, object(text), upstream.Any); err != nil {
				t.Fatal(err)
			}
		}
		for _, path := range []string{"crm/api/key", "crm/db", "crm/old", "crm/mine", "hr/db"} {
			put(path, `{"password": "of `+path+`", "port": 5432}`)
		}
		if err := s.Delete(t.Context(), "crm/old"); err != nil {
			t.Fatal(err)
		}
		mine := secret.Put{Make: &secret.Spec{Path: "from/mine"}}
		if _, _, err := secrets.Put(t.Context(), alice, "from/mine", object(`{"value": "mine"}`), mine); err != nil {
			t.Fatal(err)
		}
		order := upstream.Order{Kind: "vault", Address: c.Address, Options: c.Options, Login: "vault/token", From: "crm/", To: "from/", DryRun: true, Destinations: []string{"crm.example.com"}}
		run := func(want map[string]upstream.Outcome) {
			t.Helper()
			report, err := imports.Run(t.Context(), alice, order)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]upstream.Outcome{}
			for _, i := range report.Items {
				if got[i.To] = i.Outcome; i.Reason != "" {
					t.Errorf("%s: %s", i.To, i.Reason)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(want) || report.Next != "" {
				t.Errorf("the report says %v, want %v", got, want)
			}
		}
		value := func(path, field, want string) {
			t.Helper()
			in, err := secrets.Use(t.Context(), estover.Caller{Tenant: "acme", Subject: estover.Agent("agt_bot")}, path, field, "crm.example.com:443")
			if err != nil || string(in.Value.Reveal()) != want {
				t.Errorf("%s#%s: %v, not what was there", path, field, err)
			}
		}
		first := map[string]upstream.Outcome{"from/api/key": upstream.Imported, "from/db": upstream.Imported, "from/old": upstream.Gone, "from/mine": upstream.Taken}
		run(first)
		if x.gets != 0 {
			t.Errorf("a dry run has read %d values", x.gets)
		}
		if _, err := secrets.Describe(t.Context(), "acme", "from/db"); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("a dry run has written: %v", err)
		}
		order.DryRun = false
		run(first)
		value("from/db", "password", "of crm/db")
		value("from/api/key", "password", "of crm/api/key")
		// S1: what is here is not read again.
		read := x.gets
		second := map[string]upstream.Outcome{"from/api/key": upstream.Unchanged, "from/db": upstream.Unchanged, "from/old": upstream.Gone, "from/mine": upstream.Taken}
		run(second)
		if x.gets != read {
			t.Errorf("a second import has read %d values again", x.gets-read)
		}
		// What changes there alone is brought along; what changes here is left.
		put("crm/db", `{"password": "another"}`)
		put("crm/api/key", `{"password": "another"}`)
		if _, _, err := secrets.Put(t.Context(), alice, "from/api/key", object(`{"password": "ours"}`), secret.Put{Expect: 1}); err != nil {
			t.Fatal(err)
		}
		second["from/db"], second["from/api/key"] = upstream.Updated, upstream.Differs
		run(second)
		value("from/db", "password", "another")
		value("from/api/key", "password", "ours")
		second["from/db"] = upstream.Unchanged
		run(second)

		// The token goes where its owner allows it, and nowhere else.
		other := order
		other.Address = "http://127.0.0.2:1"
		if _, err := imports.Run(t.Context(), alice, other); !errors.Is(err, secret.ErrDestination) {
			t.Errorf("a token for another host: %v, want ErrDestination", err)
		}
		// Another tenant has no such token.
		if _, err := imports.Run(t.Context(), estover.Caller{Tenant: "other", Subject: estover.User("usr_eve"), Roles: []estover.Role{estover.Admin}}, order); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("another tenant's token: %v, want ErrNotFound", err)
		}
		for field, bad := range map[string]func(*upstream.Order){
			"kind": func(o *upstream.Order) { o.Kind = "shoebox" }, "address": func(o *upstream.Order) { o.Address = "https://u:p@vault" },
			"options.x": func(o *upstream.Order) { o.Options = map[string]string{"x": "y"} }, "from": func(o *upstream.Order) { o.From = "../" },
		} {
			wrong := order
			bad(&wrong)
			var invalid *estover.Error
			if _, err := imports.Run(t.Context(), alice, wrong); !errors.As(err, &invalid) || invalid.Field != field {
				t.Errorf("a wrong %s: %v", field, err)
			}
		}
	})
}
