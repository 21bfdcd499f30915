package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/secret/engine/enginetest"
)

// TestOtherTargets: what is no database is leased by the same commands: a user of
// a Redis and a key of an HTTP API. Each is tried, handed out, works, and is gone
// once it was revoked.
func TestOtherTargets(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "admin.txt"), []byte("made-for-tests\n"), 0o600))
	lease := func(t *testing.T, enable, role string, part string, works func(user, secret string) error) {
		t.Helper()
		out := d.does(t, dir, "estover secret engine enable "+enable)
		for _, step := range []string{"reach", "create", "log_in", "revoke", "gone"} {
			if !regexp.MustCompile(`(?m)^done +` + step + ` `).MatchString(out) {
				t.Errorf("enabling does not say that %s is done:\n%s", step, out)
			}
		}
		if out := d.does(t, dir, "estover secret role put "+role+" --delivery plaintext"); !strings.Contains(out, "is ready") {
			t.Fatalf("the role is not ready:\n%s", out)
		}
		name := strings.Fields(role)[0]
		out = d.does(t, dir, "estover secret lease create "+name+" --purpose 'a look' -o json")
		var made struct {
			ID     string            `json:"id"`
			Values map[string]string `json:"values"`
		}
		if err := json.Unmarshal([]byte(out), &made); err != nil || made.ID == "" || made.Values["username"] == "" || made.Values[part] == "" {
			t.Fatalf("the lease has no %s: %v", part, err)
		}
		if err := works(made.Values["username"], made.Values[part]); err != nil {
			t.Errorf("what was leased does not work: %v", err)
		}
		d.does(t, dir, "estover secret lease revoke "+made.ID+" --reason 'seen enough' --wait")
		if works(made.Values["username"], made.Values[part]) == nil {
			t.Error("what was revoked works")
		}
	}

	t.Run("redis", func(t *testing.T) {
		server, err := enginetest.Start(enginetest.Process{
			Debian: "redis-server", Program: "redis-server", Users: []string{"redis"}, Ports: 1,
			Prepare: func(s *enginetest.Server) ([]string, []string, error) {
				path, err := s.Write("redis.conf", fmt.Sprintf("bind 127.0.0.1\nport %d\ndir %s\nsave \"\"\nuser default off\nuser estover on >made-for-tests %s\n", s.Ports[0], s.Dir,
					"+ping +acl|setuser +acl|deluser +acl|getuser +acl|users +acl|save +acl|dryrun +client|list +client|kill +time"))
				return []string{path}, nil, err
			},
			Ready: func(ctx context.Context, s *enginetest.Server) error {
				c := redis.NewClient(&redis.Options{Addr: s.Address(0), Username: "estover", Password: "made-for-tests"})
				defer c.Close()
				return c.Ping(ctx).Err()
			},
		})
		must(t, err)
		defer server.Stop()
		lease(t, "redis cache --address "+server.Address(0)+" --admin targets/cache --admin-user estover --admin-password-file admin.txt --template 'rules=~app:* +@read +@write' --keep-root", // it keeps no ACL file
			"cache-user --target cache --template 'rules=~app:* +@read +@write'", "password", func(user, secret string) error {
				c := redis.NewClient(&redis.Options{Addr: server.Address(0), Username: user, Password: secret, MaxRetries: -1})
				defer c.Close()
				return c.Set(t.Context(), "app:x", "1", 0).Err()
			})

		// One user has two passwords here, so that a rotation refuses nobody: both are good
		// until the old one retires.
		login := func(password string) error {
			c := redis.NewClient(&redis.Options{Addr: server.Address(0), Username: "app", Password: strings.TrimSpace(password), MaxRetries: -1})
			defer c.Close()
			return c.Set(t.Context(), "app:x", "1", 0).Err()
		}
		d.does(t, dir, "estover secret create cache/app --destination "+server.Address(0))
		d.does(t, dir, "estover rotation put cache/app --target cache --user app --template 'rules=~app:* +@read +@write' --cache 1s --quiet 1s --schedule manual")
		d.does(t, dir, "estover rotation run cache/app")
		first := d.does(t, dir, "estover secret get cache/app --field password --purpose 'a look'")
		if out := d.does(t, dir, "estover rotation run cache/app"); strings.Contains(out, "refused") {
			t.Errorf("with two passwords somebody was refused: %s", out)
		}
		if err := login(first); err != nil {
			t.Errorf("the previous password beside the current one: %v", err)
		}
		second := d.does(t, dir, "estover secret get cache/app --field password --purpose 'another look'")
		for deadline := time.Now().Add(time.Minute); login(first) == nil; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the previous password does not retire: %s", d.does(t, dir, "estover rotation explain cache/app"))
			}
		}
		if err := login(second); err != nil {
			t.Errorf("the current password, when the one before has retired: %v", err)
		}
	})

	t.Run("httpkey", func(t *testing.T) {
		api := startKeys(t)
		enable := "httpkey crm-keys --address " + api.URL + " --admin targets/crm-keys --admin-user estover --admin-password-file admin.txt --template values=a=b"
		for name, value := range keyOptions {
			enable += " --option '" + name + "=" + value + "'"
		}
		lease(t, enable, "crm-key --target crm-keys --template values=a=b", "key", func(_, secret string) error {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, api.URL+"/me", nil)
			must(t, err)
			req.Header.Set("Authorization", "Bearer "+secret)
			resp, err := http.DefaultClient.Do(req)
			if err == nil && resp.Body.Close() == nil && resp.StatusCode != http.StatusOK {
				err = fmt.Errorf("status %s", resp.Status)
			}
			return err
		})

		// A key that is kept is rotated: the next one is made, tried and published, and
		// the one before is deleted when nobody uses it any more.
		named := func() string { return strings.Join(api.names(), " ") }
		lines := keyGuide(t, "crm-keys", "crm-kept", "https://crm.example.com", api.URL, "crm.example.com", strings.TrimPrefix(api.URL, "http://"),
			"admin.key", "admin.txt", "--cache 5m", "--cache 1s --quiet 1s --schedule manual")
		if len(lines) != 6 {
			t.Fatalf("the guide has %d commands: %q", len(lines), lines)
		}
		for _, line := range lines[:3] {
			d.does(t, dir, line)
		}
		if out := d.does(t, dir, lines[3]); !strings.Contains(out, "crm/key has version 1.") || named() != "reader-1" {
			t.Errorf("the first key: %s\nthe API has %s", out, named())
		}
		value := d.does(t, dir, "estover secret get crm/key --field key --purpose 'a look'")
		if out := d.does(t, dir, lines[4]); !strings.Contains(out, "crm/key has version 2.") || named() != "reader-1 reader-2" {
			t.Errorf("the second key: %s\nthe API has %s", out, named())
		}
		if out := d.does(t, dir, lines[5]); !strings.Contains(out, "still good, for the key reader-1") || !strings.Contains(out, "has read its value") {
			t.Errorf("while somebody has the first key: %s", out)
		}
		if next := d.does(t, dir, "estover secret get crm/key --field key --purpose 'another look'"); next == value {
			t.Error("the second key is the first one")
		}
		for deadline := time.Now().Add(time.Minute); named() != "reader-2"; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("when nobody has the first key the API has %s: %s", named(), d.does(t, dir, "estover rotation explain crm/key"))
			}
		}
	})
}

// A keyAPI hands out keys over HTTP.
type keyAPI struct {
	*httptest.Server
	mu   sync.Mutex
	keys []apiKey
	last int
}

type apiKey struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Secret string `json:"-"`
}

// keyOptions describe a keyAPI.
var keyOptions = map[string]string{
	"create": "POST /keys", "create_body": `{"name": "{{name}}", "expires": "{{until}}"}`, "key": "/key", "list": "GET /keys",
	"item_name": "/name", "item_id": "/id", "delete": "DELETE /keys/{{id}}", "try": "GET /me",
}

func startKeys(t *testing.T) *keyAPI {
	a := &keyAPI{keys: []apiKey{}}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

func (a *keyAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	bearer := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	admin := bearer == "made-for-tests"
	switch {
	case r.URL.Path == "/me" && slices.ContainsFunc(a.keys, func(k apiKey) bool { return k.Secret == bearer }):
	case r.URL.Path == "/me", !admin:
		w.WriteHeader(http.StatusUnauthorized)
	case r.Method == http.MethodPost:
		a.last++
		k := apiKey{Secret: fmt.Sprintf("key-%d-%d", a.last, os.Getpid())}
		_ = json.NewDecoder(r.Body).Decode(&k)
		k.ID = fmt.Sprint(a.last)
		a.keys = append(a.keys, k)
		fmt.Fprintf(w, `{"key": %q}`, k.Secret)
	case r.Method == http.MethodDelete:
		a.keys = slices.DeleteFunc(a.keys, func(k apiKey) bool { return "/keys/"+k.ID == r.URL.Path })
	default:
		_ = json.NewEncoder(w).Encode(a.keys)
	}
}

// names are those of the keys that there are, sorted.
func (a *keyAPI) names() (all []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range a.keys {
		all = append(all, k.Name)
	}
	slices.Sort(all)
	return all
}

// keyGuide are the commands of the guide to rotated API keys as they are written, with
// the places and times of the test.
func keyGuide(t *testing.T, replaced ...string) (lines []string) {
	t.Helper()
	text, err := os.ReadFile("../docs/guides/rotate-an-api-key.md")
	must(t, err)
	for _, m := range regexp.MustCompile(`(?m)^    estover (?:.*\\\n)*.*$`).FindAllString(string(text), -1) {
		lines = append(lines, strings.NewReplacer(replaced...).Replace(strings.TrimSpace(m)))
	}
	return lines
}
