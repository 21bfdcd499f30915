package httpkey_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/engine/enginetest"
	"estover.dev/internal/secret/engine/httpkey"
	"estover.dev/internal/secret/lease/leasetest"
)

// An api has keys as such things have: they get an id and a secret, and a name
// that need not be the only one of its kind.
type api struct {
	mu   sync.Mutex
	last int
	keys map[string]*apiKey // by id
	log  strings.Builder    // the request lines
	kept string             // the name of a key that cannot be deleted
	// fail, if it is set, is asked before a call and after it; what it gives is the
	// answer's status, 0 for the real one and -1 for a connection that is cut.
	fail func(r *http.Request, after bool) int
}

type apiKey struct {
	ID, Name, Secret string
	Scopes           []string
	Until            time.Time
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fmt.Fprintln(&a.log, r.Method, r.RequestURI)
	fail := func(after bool) bool {
		if a.fail == nil {
			return false
		}
		switch status := a.fail(r, after); status {
		case 0:
			return false
		case -1:
			panic(http.ErrAbortHandler)
		default:
			w.WriteHeader(status)
			return true
		}
	}
	if fail(false) {
		return
	}
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if r.URL.Path == "/v1/me" {
		for _, k := range a.keys {
			if k.Secret == bearer && (k.Until.IsZero() || time.Now().Before(k.Until)) {
				return
			}
		}
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if bearer != "made-for-tests" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	id, one := strings.CutPrefix(r.URL.Path, "/v1/keys/")
	var body struct {
		Name    string   `json:"name"`
		Scopes  []string `json:"scopes"`
		Expires int64    `json:"expires"`
	}
	if r.Method == http.MethodPost || r.Method == http.MethodPatch {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
	}
	k := a.keys[id]
	switch {
	case one && k == nil:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodPost:
		a.last++
		k := &apiKey{ID: strconv.Itoa(a.last), Name: body.Name, Secret: "key/" + rand.Text(), Scopes: body.Scopes}
		if body.Expires > 0 {
			k.Until = time.Unix(body.Expires, 0)
		}
		a.keys[k.ID] = k
		if fail(true) {
			return
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"data": {"id": %d, "secret": %q}}`, a.last, k.Secret)
	case r.Method == http.MethodDelete && k.Name == a.kept:
		w.WriteHeader(http.StatusConflict)
	case r.Method == http.MethodDelete:
		delete(a.keys, id)
		fail(true)
	case r.Method == http.MethodPatch:
		k.Until = time.Unix(body.Expires, 0)
	default: // a page of those whose names begin so
		ids := slices.Sorted(maps.Keys(a.keys))
		var page []map[string]any
		next := ""
		for _, id := range ids {
			if k := a.keys[id]; strings.HasPrefix(k.Name, r.URL.Query().Get("q")) && id > r.URL.Query().Get("after") {
				if len(page) == 7 {
					next = page[6]["id"].(string)
					break
				}
				page = append(page, map[string]any{"id": id, "about": map[string]string{"name": k.Name}})
			}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"data": page, "next": next})
	}
}

// names are those of the keys that there are.
func (a *api) names() (names []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range a.keys {
		names = append(names, k.Name)
	}
	return names
}

func (a *api) set(fail func(r *http.Request, after bool) int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail = fail
}

func start(t *testing.T) (*api, engine.Config) {
	a := &api{keys: map[string]*apiKey{}}
	s := httptest.NewServer(a)
	t.Cleanup(s.Close)
	return a, engine.Config{
		Address: s.URL + "/v1",
		Options: map[string]string{
			"create": "POST /keys", "create_body": `{"name": "{{name}}", "scopes": "{{json:scopes}}", "expires": "{{until_unix}}"}`, "key": "/data/secret",
			"list": "GET /keys?q={{name}}&after={{cursor}}", "items": "/data", "item_name": "/about/name", "item_id": "/id", "next": "/next",
			"delete": "DELETE /keys/{{id}}", "extend": "PATCH /keys/{{id}}", "extend_body": `{"expires": "{{until_unix}}"}`, "try": "GET /me",
			"headers": "Accept: application/json\nX-Client: estover\n",
		},
		Admin: engine.Credential{User: "estover", Secret: estover.NewSecret([]byte("made-for-tests"))},
	}
}

var template = engine.Template{"values": {`scopes=["read", "write"]`}}

// A holder asks with its key.
type holder struct{ address, key string }

func (h holder) Ping(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.address+"/me", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+h.key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

func (holder) Close() error { return nil }

func TestKind(t *testing.T) {
	a, c := start(t)
	enginetest.Run(t, enginetest.Suite{
		Kind: httpkey.Kind, Config: c, Template: template,
		Bad: []engine.Template{{"values": {"scopes"}}, {"values": {"=x"}}, {"values": {"name=x"}}, {"values": {"secret=x"}}, {"values": {"a b=x"}}},
		Login: func(ctx context.Context, m engine.Material) (enginetest.Client, error) {
			h := holder{c.Address, string(m["key"].Reveal())}
			return h, h.Ping(ctx)
		},
		Remove: func(_ context.Context, name string) error {
			a.mu.Lock()
			defer a.mu.Unlock()
			maps.DeleteFunc(a.keys, func(_ string, k *apiKey) bool { return k.Name == name })
			return nil
		},
		Spoil: func(_ context.Context, name string) (func(context.Context) error, error) {
			keep := func(name string) { a.mu.Lock(); defer a.mu.Unlock(); a.kept = name }
			keep(name)
			return func(context.Context) error { keep(""); return nil }, nil
		},
		Log: func() ([]byte, error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			return []byte(a.log.String()), nil
		},
		Without: []string{"SetSecret", "Sessions", "EndSessions"},
	})
}

func open(t *testing.T, c engine.Config) engine.Engine {
	t.Helper()
	e, err := httpkey.Kind.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// TestHalfMade: a creation whose answer is lost leaves a key that nobody has. A
// second one finds it by its name and leaves one key; a revocation leaves none.
// The same for a deletion that took effect and one that did not.
func TestHalfMade(t *testing.T) {
	for _, status := range []int{-1, http.StatusBadGateway, http.StatusServiceUnavailable} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d after %v", status, after), func(t *testing.T) {
				a, c := start(t)
				e := open(t, c)
				o := engine.Order{Name: "e_half", Template: template, Until: time.Now().Add(time.Hour)}
				fail := func(method string) func(*http.Request, bool) int {
					return func(r *http.Request, at bool) int {
						if r.Method == method && at == after {
							return status
						}
						return 0
					}
				}
				a.set(fail(http.MethodPost))
				var refused *engine.Refused
				if _, err := e.Create(t.Context(), o); err == nil || errors.As(err, &refused) || errors.Is(err, engine.ErrUnreachable) {
					t.Fatalf("a creation whose answer was lost: %v, want an error that leaves open what happened", err)
				}
				a.set(nil)
				m, err := e.Create(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				if names := a.names(); !slices.Equal(names, []string{"e_half"}) {
					t.Errorf("keys after a second creation: %q, want one", names)
				}
				if err := e.Verify(t.Context(), engine.Credential{User: o.Name, Secret: m["key"]}); err != nil {
					t.Errorf("the key of the second creation: %v", err)
				}
				a.set(fail(http.MethodDelete))
				if err := e.Revoke(t.Context(), []engine.Doomed{{Name: o.Name}})[0]; !errors.Is(err, engine.ErrUnreachable) {
					t.Errorf("a deletion whose answer was lost: %v, want ErrUnreachable", err)
				}
				a.set(nil)
				if err := e.Revoke(t.Context(), []engine.Doomed{{Name: o.Name}})[0]; err != nil {
					t.Error(err)
				}
				if names := a.names(); len(names) > 0 {
					t.Errorf("keys after the revocation: %q", names)
				}
				if err := e.Verify(t.Context(), engine.Credential{User: o.Name, Secret: m["key"]}); !errors.Is(err, engine.ErrWrongSecret) {
					t.Errorf("a key that was revoked: %v, want ErrWrongSecret", err)
				}
			})
		}
	}
}

// TestGoneMeanwhile: a key that somebody else deletes between our looking and
// our deleting is gone, which is what was wanted (F12).
func TestGoneMeanwhile(t *testing.T) {
	a, c := start(t)
	e := open(t, c)
	if _, err := e.Create(t.Context(), engine.Order{Name: "e_gone", Template: template, Until: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	a.set(func(r *http.Request, after bool) int {
		if r.Method == http.MethodDelete && !after {
			clear(a.keys)
		}
		return 0
	})
	if err := e.Revoke(t.Context(), []engine.Doomed{{Name: "e_gone"}})[0]; err != nil {
		t.Errorf("deleting what is not there any more: %v", err)
	}
}

// TestExpiry: the API is told when a key is to end, and told again.
func TestExpiry(t *testing.T) {
	a, c := start(t)
	e := open(t, c)
	o := engine.Order{Name: "e_ends", Template: template, Until: time.Now().Add(-time.Second)}
	m, err := e.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	verify := func() error {
		return e.Verify(t.Context(), engine.Credential{User: o.Name, Secret: m["key"]})
	}
	if err := verify(); !errors.Is(err, engine.ErrWrongSecret) {
		t.Errorf("a key past its time: %v, want ErrWrongSecret", err)
	}
	if err := e.Extend(t.Context(), o.Name, template, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := verify(); err != nil {
		t.Errorf("a key whose time was extended: %v", err)
	}
	if err := e.Extend(t.Context(), "e_nobody", template, time.Now().Add(time.Hour)); !errors.Is(err, engine.ErrNoUser) {
		t.Errorf("extending a key that is not there: %v, want ErrNoUser", err)
	}
	for _, k := range a.keys {
		if !slices.Equal(k.Scopes, []string{"read", "write"}) {
			t.Errorf("the role's scopes arrived as %q", k.Scopes)
		}
	}
	var refused *engine.Refused
	if _, err := e.Create(t.Context(), engine.Order{Name: "e_no_scopes", Until: time.Now().Add(time.Hour)}); !errors.As(err, &refused) {
		t.Errorf("a role without a value that the body takes: %v, want a refusal", err)
	}
	if _, err := e.Create(t.Context(), engine.Order{Name: "e_forever", Template: template}); !errors.As(err, &refused) {
		t.Errorf("no end, where the body names one: %v, want a refusal", err)
	}
}

// TestNoRedirect: the admin's secret stays with the host that it is for.
func TestNoRedirect(t *testing.T) {
	asked := false
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer elsewhere.Close()
	from := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer from.Close()
	_, c := start(t)
	c.Address = from.URL
	e := open(t, c)
	var refused *engine.Refused
	if _, err := e.List(t.Context(), "e_"); !errors.As(err, &refused) || asked {
		t.Errorf("a redirect: %v, followed: %v", err, asked)
	}
}

// TestLongAnswer: an answer has an end, and so has a list.
func TestLongAnswer(t *testing.T) {
	calls := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls++; r.URL.Query().Get("q") == "long" {
			for range 100 {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}
		fmt.Fprintf(w, `{"data": [], "next": "%d"}`, calls)
	}))
	defer s.Close()
	_, c := start(t)
	c.Address = s.URL
	e := open(t, c)
	if _, err := e.List(t.Context(), "long"); err == nil {
		t.Error("an answer of 100 MiB was read")
	}
	if _, err := e.List(t.Context(), "endless"); err == nil || calls > 300 {
		t.Errorf("a list without an end: %v after %d pages", err, calls)
	}
}

// TestNoList: what is no list of keys with names says nothing about what is
// gone.
func TestNoList(t *testing.T) {
	for _, said := range []string{"<html>Welcome</html>", "", "null", "[]", "{}", `{"data": {}}`, `{"data": [`, `{"data": [{"id": "1"}]}`, `{"data": [{"about": {"name": "e_a"}}]}`, `{"data": []} {}`} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, said) }))
		_, c := start(t)
		c.Address = s.URL
		if err := open(t, c).Revoke(t.Context(), []engine.Doomed{{Name: "e_a"}})[0]; err == nil {
			t.Errorf("a key was taken for gone on the word of %q", said)
		}
		s.Close()
	}
}

// TestForm: an API that takes forms, and basic authentication.
func TestForm(t *testing.T) {
	var got url.Values
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, secret, _ := r.BasicAuth()
		switch {
		case user != "estover" || secret != "made-for-tests" || r.Header.Get("Api-Version") != "2":
			w.WriteHeader(http.StatusUnauthorized)
		case r.Method == http.MethodPost:
			if err := r.ParseForm(); err != nil {
				t.Error(err)
			}
			got = r.PostForm
			fmt.Fprint(w, `{"key": "k"}`)
		default:
			fmt.Fprint(w, `[]`)
		}
	}))
	defer s.Close()
	e := open(t, engine.Config{
		Address: s.URL,
		Options: map[string]string{
			"create": "POST /keys", "create_body": "name={{name}}&note={{note}}&ttl={{ttl}}", "form": "yes", "key": "/key", "list": "GET /keys",
			"item_name": "/name", "item_id": "/id", "delete": "DELETE /keys/{{id}}", "try": "GET /me", "auth": "basic", "headers": "Api-Version: 2",
		},
		Admin: engine.Credential{User: "estover", Secret: estover.NewSecret([]byte("made-for-tests"))},
	})
	_, err := e.Create(t.Context(), engine.Order{Name: "e_form", Template: engine.Template{"values": {"note=a&admin=true ä"}}, Until: time.Now().Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if ttl, _ := strconv.Atoi(got.Get("ttl")); got.Get("name") != "e_form" || got.Get("note") != "a&admin=true ä" || got.Has("admin") || ttl < 58 || ttl > 60 {
		t.Errorf("the form arrived as %v", got)
	}
}

// TestDescriptions: what cannot work is refused before anything is sent.
func TestDescriptions(t *testing.T) {
	_, good := start(t)
	for _, bad := range []struct{ option, value string }{
		{"list", ""},
		{"item_name", ""},
		{"item_id", ""},
		{"delete", ""},
		{"key", ""},
		{"try", ""},
		{"create_body", ""},
		{"create", "POST"},
		{"create", "FETCH /keys"},
		{"create", "POST keys"},
		{"create", "POST https://elsewhere.example/keys"},
		{"create", "POST /keys#x"},
		{"create_body", `{"name": "x"}`},
		{"create_body", `{"name": {{name}}}`},
		{"create_body", `{"name": "{{name}}", "admin": "{{secret}}"}`},
		{"delete", "DELETE /keys"},
		{"delete", "DELETE /keys/{{id}}?token={{secret}}"},
		{"list", "GET /keys?q={{name}}"},
		{"next", ""},
		{"key", "data"},
		{"auth", "Authorization: Bearer x"},
		{"auth", "no header {{secret}}"},
		{"use", "Host: {{key}}"},
		{"headers", "Host: elsewhere.example"},
		{"tls", "perhaps"},
	} {
		c := good
		c.Options = maps.Clone(good.Options)
		c.Options[bad.option] = bad.value
		var invalid *estover.Error
		if _, err := httpkey.Kind.Open(c); !errors.As(err, &invalid) || invalid.Kind != estover.Invalid {
			t.Errorf("the option %s of %q: %v, want it refused", bad.option, bad.value, err)
		}
	}
	for _, address := range []string{"", "keys.example", "http://keys.example", "https://u:p@keys.example", "ftp://keys.example", "https://keys.example/?a=b"} {
		c := good
		c.Address = address
		if _, err := httpkey.Kind.Open(c); err == nil {
			t.Errorf("the address %q was taken", address)
		}
	}
}

// TestStorm is F1, F2 and F3. The keys are counted where they are, since one name
// may have two.
func TestStorm(t *testing.T) {
	a, c := start(t)
	leasetest.Storm{
		Kind: httpkey.Kind, Config: c, Template: template, Issues: 35,
		Users: func(_ context.Context, prefix string) (names []string, err error) {
			for _, name := range a.names() {
				if strings.HasPrefix(name, prefix) {
					names = append(names, name)
				}
			}
			return names, nil
		},
	}.Rage(t, dbtest.Open(t))
}
