package google_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/secret/upstream/google"
	"estover.dev/internal/secret/upstream/upstreamtest"
)

const token = "ya29.made-for-tests"

// A manager answers as Secret Manager does, for the project "acme", which it
// calls by its number, and in pages of two.
type manager struct {
	mu      sync.Mutex
	secrets map[string][]*version
	damage  bool
}

type version struct {
	data    []byte
	state   string
	created time.Time
}

func (m *manager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fail := func(code int, status string) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code, "message": "of the service", "status": status}})
	}
	answer := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	if r.Header.Get("Authorization") != "Bearer "+token {
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

func start(t *testing.T) (*manager, engine.Config) {
	m := &manager{secrets: map[string][]*version{}}
	s := httptest.NewServer(m)
	t.Cleanup(s.Close)
	return m, engine.Config{Address: s.URL, Options: map[string]string{"project": "acme"}, Admin: engine.Credential{Secret: estover.NewSecret([]byte(token))}}
}

func TestKind(t *testing.T) {
	_, c := start(t)
	upstreamtest.Run(t, google.Kind, c)
}

// TestStates: a version that was disabled is not found, nor is a secret without
// one; and what comes in damaged is not taken.
func TestStates(t *testing.T) {
	m, c := start(t)
	s, err := google.Kind.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "a", estover.NewSecret([]byte(`{"value": "x"}`)), upstream.None); err != nil {
		t.Fatal(err)
	}
	if got := string(m.secrets["a"][0].data); got != "x" {
		t.Errorf("a text by itself is kept as %q", got)
	}
	m.damage = true
	if _, err := s.Get(t.Context(), "a", ""); !errors.Is(err, engine.ErrUnreachable) {
		t.Errorf("a damaged answer: %v, want ErrUnreachable", err)
	}
	m.damage = false
	m.secrets["a"][0].state = "DISABLED"
	m.secrets["empty"] = nil
	for _, name := range []string{"a", "empty"} {
		if _, err := s.Get(t.Context(), name, ""); !errors.Is(err, upstream.ErrNotFound) {
			t.Errorf("reading %s: %v, want ErrNotFound", name, err)
		}
	}
	if v, err := s.Versions(t.Context(), "a"); err != nil || len(v) != 1 || v[0].Live {
		t.Errorf("versions: %v, %v, want one that is not live", v, err)
	}
	if v, err := s.Put(t.Context(), "empty", estover.NewSecret([]byte(`{"value": "x"}`)), upstream.None); err != nil || v != "1" {
		t.Errorf("the first version of a secret without one: %q, %v", v, err)
	}
	c.Options = map[string]string{"project": "a/b"}
	if _, err := google.Kind.Open(c); err == nil {
		t.Error("a project that cannot be was taken")
	}
}
