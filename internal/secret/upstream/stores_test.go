package upstream_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
)

var (
	ann = estover.Caller{Tenant: "acme", Subject: estover.User("usr_ann"), Roles: []estover.Role{estover.Admin}}
	bea = estover.Caller{Tenant: "acme", Subject: estover.User("usr_bea"), Roles: []estover.Role{estover.Operator}}
	bot = estover.Caller{Tenant: "acme", Subject: estover.Agent("agt_bot"), Session: "ses_1", Purpose: "billing"}
	eve = estover.Caller{Tenant: "evil", Subject: estover.User("usr_eve"), Roles: []estover.Role{estover.Admin}, Purpose: "theft"}
)

const (
	vaultHost = "vault.example:443"
	crmHost   = "crm.example:443"
)

// A memory is another vault in memory, which checks what a write follows.
type memory struct {
	mu             sync.Mutex
	secrets        map[string][]stored
	gets, versions int
	got            map[string]int // values that were read, by path and version
	down           bool
	knocks         int    // while it was down
	prefix         string // of the names of versions
	why            error  // it is down
	listing        func() // called before a list is given
	before, after  error  // of the next write
	tokens         map[string]bool
}

type stored struct {
	object  []byte
	created time.Time
	deleted bool
}

func newMemory() *memory {
	return &memory{secrets: map[string][]stored{}, got: map[string]int{}, tokens: map[string]bool{}}
}

func (m *memory) kind() upstream.Kind {
	return upstream.Kind{
		Name: "memory", Title: "A vault in memory", Address: "https://HOST", Login: "a token", Options: []engine.Field{{Name: "mount"}}, Checks: true,
		Open: func(c engine.Config) (upstream.Store, error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.tokens[string(c.Admin.Secret.Reveal())] = true
			return m, nil
		},
	}
}

func (m *memory) enter() (leave func(), err error) {
	m.mu.Lock()
	if m.down {
		m.knocks++
		m.mu.Unlock()
		return nil, engine.Unreachable(cmp.Or(m.why, errors.New("nobody is there")))
	}
	return m.mu.Unlock, nil
}

func (m *memory) Get(_ context.Context, path, version string) (v upstream.Value, err error) {
	leave, err := m.enter()
	if err != nil {
		return v, err
	}
	defer leave()
	all := m.secrets[path]
	n := len(all)
	if version != "" {
		n, _ = strconv.Atoi(version)
	}
	if n < 1 || n > len(all) || all[n-1].deleted {
		return v, upstream.ErrNotFound
	}
	m.gets++
	m.got[path+"@"+strconv.Itoa(n)]++
	return upstream.Value{Version: m.prefix + strconv.Itoa(n), Object: estover.NewSecret(bytes.Clone(all[n-1].object))}, nil
}

func (m *memory) Put(_ context.Context, path string, object estover.Secret, expect string) (string, error) {
	leave, err := m.enter()
	if err != nil {
		return "", err
	}
	defer leave()
	if err := m.before; err != nil {
		m.before = nil
		return "", err
	}
	all := m.secrets[path]
	if expect != upstream.Any && expect != strconv.Itoa(len(all)) && !(expect == upstream.None && len(all) == 0) {
		return "", upstream.ErrVersion
	}
	m.secrets[path] = append(all, stored{object: bytes.Clone(object.Reveal())})
	if err := m.after; err != nil {
		m.after = nil
		return "", err
	}
	return strconv.Itoa(len(m.secrets[path])), nil
}

func (m *memory) List(_ context.Context, prefix string) (paths []string, err error) {
	if m.listing != nil {
		m.listing()
	}
	leave, err := m.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	for p, all := range m.secrets {
		if strings.HasPrefix(p, prefix) && !all[len(all)-1].deleted {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	return paths, nil
}

func (m *memory) Versions(_ context.Context, path string) (list []upstream.Version, err error) {
	leave, err := m.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	m.versions++
	for i, v := range m.secrets[path] {
		list = append(list, upstream.Version{ID: strconv.Itoa(i + 1), Created: v.created, Live: !v.deleted})
	}
	slices.Reverse(list)
	return list, nil
}

func (m *memory) Delete(_ context.Context, path string) error {
	leave, err := m.enter()
	if err != nil {
		return err
	}
	defer leave()
	if n := len(m.secrets[path]); n > 0 {
		m.secrets[path][n-1].deleted = true
	}
	return nil
}

// write is somebody else's write.
func (m *memory) write(path, object string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.secrets[path] = append(m.secrets[path], stored{object: []byte(object)})
}

// anew is a secret that somebody else has removed and made again: its versions count
// from one.
func (m *memory) anew(path, object string, created time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.secrets[path] = []stored{{object: []byte(object), created: created}}
}

func (m *memory) set(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
}

// asked is how many values and how many lists of versions were asked for.
func (m *memory) asked() (gets, versions int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.gets, m.versions
}

// all are the values of the versions at a path; "" of one that was deleted.
func (m *memory) all(path string) (list []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range m.secrets[path] {
		if v.deleted {
			list = append(list, "")
			continue
		}
		list = append(list, string(v.object))
	}
	return list
}

// A house is what stores stand in.
type house struct {
	t       testing.TB
	d       *db.DB
	clock   *dbtest.Clock
	guard   *guard.Guard
	sealer  *seal.Sealer
	secrets *secret.Secrets
	there   *memory
	x       *upstream.Stores
	tenant  estover.TenantID
	ann     estover.Caller
}

func build(t testing.TB, d *db.DB, decider guard.Decider) *house {
	t.Helper()
	h := &house{t: t, d: d, clock: dbtest.NewClock(d), there: newMemory(), tenant: "acme", ann: ann}
	sealer, err := seal.Open(t.Context(), d, seal.File{Path: filepath.Join(t.TempDir(), "root.key")})
	if err != nil {
		t.Fatal(err)
	}
	sealer.Hold(secret.Holding)
	h.sealer = sealer
	h.guard = guardtest.New(t, d, decider)
	h.x, h.secrets = h.node("node_1")
	h.store()
	return h
}

// node is another node over the same database.
func (h *house) node(name string) (*upstream.Stores, *secret.Secrets) {
	g := h.guard
	if name != "node_1" {
		g = guardtest.New(h.t, h.d, guardtest.AllowAll) // whose copies nobody drops
	}
	var x *upstream.Stores
	logger := slog.New(slog.DiscardHandler)
	s := secret.New(g, h.sealer, secret.Options{Logger: logger, Fresh: func(ctx context.Context, t estover.TenantID, s secret.Secret, before func() error) error {
		return x.Fresh(ctx, t, s, before)
	}})
	x = upstream.NewStores(upstream.Config{Guard: g, Secrets: s, Sealer: h.sealer, Kinds: append([]upstream.Kind{h.there.kind()}, cloudKinds...), Node: name, Logger: logger})
	return x, s
}

// store registers the other vault, with the secret that logs in there.
func (h *house) store() {
	h.t.Helper()
	h.make("vault/token", `{"value":"s.token"}`, vaultHost)
	if _, err := h.x.Put(h.t.Context(), h.ann, upstream.StoreSpec{Name: "old", Kind: "memory", Address: "https://vault.example", Login: "vault/token"}); err != nil {
		h.t.Fatal(err)
	}
}

// make writes a secret of ours.
func (h *house) make(path, object string, destinations ...string) secret.Version {
	h.t.Helper()
	_, v, err := h.secrets.Put(h.t.Context(), h.ann, path, estover.NewSecret([]byte(object)), secret.Put{Expect: secret.Any, Make: &secret.Spec{Path: path, Destinations: destinations}})
	if err != nil {
		h.t.Fatal(err)
	}
	return v
}

// use is what the gateway would inject.
func (h *house) use(s *secret.Secrets, path string) (string, error) {
	c := bot
	c.Tenant = h.tenant
	in, err := s.Use(h.t.Context(), c, path, "password", crmHost)
	return string(in.Value.Reveal()), err
}

// TestStores: who may say where a store is, and that none is removed which is in
// use. Another tenant has none of it.
func TestStores(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		mine := upstream.StoreSpec{Name: "mine", Kind: "memory", Address: "https://vault.example", Login: "vault/token"}
		s, err := h.x.Put(t.Context(), bea, mine)
		if err != nil || s.Owner != bea.Subject {
			t.Fatalf("adding a store: %+v, %v", s, err)
		}
		other := bea
		other.Subject = estover.User("usr_tom")
		if _, err := h.x.Put(t.Context(), other, mine); !errors.Is(err, upstream.ErrNotOwner) {
			t.Errorf("changing somebody else's store: %v, want ErrNotOwner", err)
		}
		if err := h.x.Remove(t.Context(), other, "mine"); !errors.Is(err, upstream.ErrNotOwner) {
			t.Errorf("removing somebody else's store: %v, want ErrNotOwner", err)
		}
		mine.Description = "of Bea"
		if s, err = h.x.Put(t.Context(), ann, mine); err != nil || s.Owner != bea.Subject || s.Description != "of Bea" {
			t.Errorf("an administrator changes a store: %+v, %v, want it to stay Bea's", s, err)
		}
		for field, wrong := range map[string]func(*upstream.StoreSpec){
			"name": func(s *upstream.StoreSpec) { s.Name = "No name" }, "kind": func(s *upstream.StoreSpec) { s.Kind = "shoebox" },
			"address": func(s *upstream.StoreSpec) { s.Address = "https://u:p@vault" }, "options.x": func(s *upstream.StoreSpec) { s.Options = map[string]string{"x": "y"} },
			"owner": func(s *upstream.StoreSpec) { s.Owner = bot.Subject },
		} {
			bad := mine
			wrong(&bad)
			var invalid *estover.Error
			if _, err := h.x.Put(t.Context(), ann, bad); !errors.As(err, &invalid) || invalid.Field != field {
				t.Errorf("a wrong %s: %v", field, err)
			}
		}
		if err := h.x.Check(t.Context(), bea, "mine", ""); err != nil {
			t.Errorf("a store that answers: %v", err)
		}
		h.there.set(true)
		if err := h.x.Check(t.Context(), bea, "mine", ""); !errors.Is(err, upstream.ErrStore) || !strings.Contains(err.Error(), "nobody is there") {
			t.Errorf("a store that does not answer: %v, want ErrStore with the reason", err)
		}
		h.there.why = errors.New(strings.Repeat("\x1b[2J\n", 1000))
		var told *estover.Error
		if err := h.x.Check(t.Context(), bea, "mine", ""); !errors.As(err, &told) || len(told.Detail) > 1000 || strings.ContainsFunc(told.Detail, unicode.IsControl) {
			t.Errorf("a store that says what would change a screen: %.1200q, want one line", err)
		}
		h.there.set(false)
		for what, err := range map[string]error{
			"removing": h.x.Remove(t.Context(), eve, "mine"), "checking": h.x.Check(t.Context(), eve, "mine", ""),
			"linking": func() error {
				_, err := h.x.Link(t.Context(), eve, upstream.LinkSpec{Path: "a", Store: "mine"})
				return err
			}(),
			"pushing": func() error {
				_, err := h.x.Sync(t.Context(), eve, upstream.SyncSpec{Path: "a", Store: "mine"})
				return err
			}(),
			"showing": func() error { _, err := h.x.Get(t.Context(), eve, "mine"); return err }(),
		} {
			if !errors.Is(err, upstream.ErrNoStore) {
				t.Errorf("%s another tenant's store: %v, want ErrNoStore", what, err)
			}
		}
		if _, err := h.x.Link(t.Context(), bea, upstream.LinkSpec{Path: "hr/key", Store: "mine"}); err != nil {
			t.Fatal(err)
		}
		if err := h.x.Remove(t.Context(), bea, "mine"); !errors.Is(err, upstream.ErrInUse) {
			t.Errorf("removing a store that is in use: %v, want ErrInUse", err)
		}
		if l, err := h.x.LinkedAs(t.Context(), bea, "hr/key"); err != nil || l.Store != "mine" || l.From != "hr/key" {
			t.Errorf("how a secret is linked: %+v, %v", l, err)
		}
		if l, err := h.x.LinkedAs(t.Context(), eve, "hr/key"); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("how another tenant's secret is linked: %+v, %v, want ErrNotFound", l, err)
		}
		if _, err := h.x.KeepLink(t.Context(), bea, upstream.LinkSpec{Path: "hr/more/", Store: "mine"}, "apply/x"); err != nil {
			t.Fatal(err)
		}
		for c, want := range map[*estover.Caller][]string{&bea: {"hr/more/"}, &eve: nil} {
			if paths, err := h.x.LinksKept(t.Context(), *c, "apply/x"); err != nil || !slices.Equal(paths, want) {
				t.Errorf("what files keep in %s: %q, %v, want %q", c.Tenant, paths, err, want)
			}
		}
		if err := h.x.Unlink(t.Context(), bea, "hr/more/"); err != nil {
			t.Fatal(err)
		}
		if err := h.x.Unlink(t.Context(), bea, "hr/key"); err != nil {
			t.Fatal(err)
		}
		if err := h.x.Remove(t.Context(), bea, "mine"); err != nil {
			t.Errorf("removing a store: %v", err)
		}
		if all, err := h.x.List(t.Context(), ann, "", 10); err != nil || len(all) != 1 || all[0].Name != "old" {
			t.Errorf("stores: %+v, %v, want the one that is left", all, err)
		}
	})
}
