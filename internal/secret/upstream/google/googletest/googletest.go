// Package googletest answers as Google Secret Manager does, made after the reference of
// its REST interface.
package googletest

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// A Manager is the Secret Manager of the project "acme", which it calls by its number. It
// lets in who has its token, and lists in pages of two.
type Manager struct {
	mu      sync.Mutex
	token   string
	secrets map[string][]*version
	damage  bool
}

// New makes one without secrets.
func New() (*Manager, engine.Credential) {
	m := &Manager{secrets: map[string][]*version{}, token: "ya29." + rand.Text()}
	return m, engine.Credential{Secret: estover.NewSecret([]byte(m.token))}
}

// Write is somebody else's write of a version.
func (m *Manager) Write(name, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.secrets[name] = append(m.secrets[name], &version{[]byte(text), "ENABLED", time.Now()})
}

// Make is somebody else's secret without a version.
func (m *Manager) Make(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.secrets[name] = nil
}

// Remove is somebody else's deletion, of all versions for good.
func (m *Manager) Remove(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.secrets, name)
}

// Disable takes the newest version of a secret out of use.
func (m *Manager) Disable(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.secrets[name]
	all[len(all)-1].state = "DISABLED"
}

// Damage has values come in damaged, or not.
func (m *Manager) Damage(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.damage = on
}

// All are the texts of the versions of a secret, the current one last.
func (m *Manager) All(name string) (texts []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range m.secrets[name] {
		texts = append(texts, string(v.data))
	}
	return texts
}

type version struct {
	data    []byte
	state   string
	created time.Time
}

func (m *Manager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fail := func(code int, status string) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code, "message": "of the service", "status": status}})
	}
	answer := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	if r.Header.Get("Authorization") != "Bearer "+m.token {
		fail(http.StatusUnauthorized, "UNAUTHENTICATED")
		return
	}
	path, ours := strings.CutPrefix(r.URL.Path, "/v1/projects/acme/secrets")
	if !ours {
		fail(http.StatusForbidden, "PERMISSION_DENIED")
		return
	}
	const number = "projects/1234/secrets/"
	page := func(all []any, field string) {
		from, _ := strconv.Atoi(r.URL.Query().Get("pageToken"))
		to, next := min(from+2, len(all)), ""
		if to < len(all) {
			next = strconv.Itoa(to)
		}
		answer(map[string]any{field: all[from:to], "nextPageToken": next})
	}
	name, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	name, verb, _ := strings.Cut(name, ":")
	versions, there := m.secrets[name]
	switch {
	case path == "" && r.Method == http.MethodPost:
		name := r.URL.Query().Get("secretId")
		if _, there := m.secrets[name]; there {
			fail(http.StatusConflict, "ALREADY_EXISTS")
			return
		}
		m.secrets[name] = []*version{}
		answer(map[string]any{"name": number + name})
	case path == "":
		var names []string
		for n := range m.secrets {
			names = append(names, n)
		}
		slices.Sort(names)
		all := []any{}
		for _, n := range names {
			all = append(all, map[string]any{"name": number + n})
		}
		page(all, "secrets")
	case !there:
		fail(http.StatusNotFound, "NOT_FOUND")
	case verb == "addVersion":
		var in struct{ Payload struct{ Data []byte } }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			fail(http.StatusBadRequest, "INVALID_ARGUMENT")
			return
		}
		m.secrets[name] = append(versions, &version{in.Payload.Data, "ENABLED", time.Now()})
		answer(map[string]any{"name": fmt.Sprintf("%s%s/versions/%d", number, name, len(versions)+1)})
	case rest == "versions":
		all := []any{}
		for i := len(versions); i > 0; i-- {
			v := versions[i-1]
			all = append(all, map[string]any{"name": fmt.Sprintf("%s%s/versions/%d", number, name, i), "state": v.state, "createTime": v.created.Format(time.RFC3339Nano)})
		}
		page(all, "versions")
	case strings.HasSuffix(rest, ":access"):
		n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(rest, "versions/"), ":access"))
		if err != nil {
			n = len(versions)
		}
		switch {
		case n < 1 || n > len(versions):
			fail(http.StatusNotFound, "NOT_FOUND")
		case versions[n-1].state != "ENABLED":
			fail(http.StatusBadRequest, "FAILED_PRECONDITION")
		default:
			sum := crc32.Checksum(versions[n-1].data, crc32.MakeTable(crc32.Castagnoli))
			if m.damage {
				sum++
			}
			answer(map[string]any{"name": fmt.Sprintf("%s%s/versions/%d", number, name, n), "payload": map[string]any{"data": versions[n-1].data, "dataCrc32c": fmt.Sprint(sum)}})
		}
	case r.Method == http.MethodDelete:
		delete(m.secrets, name)
		answer(map[string]any{})
	default:
		fail(http.StatusNotFound, "NOT_FOUND")
	}
}
