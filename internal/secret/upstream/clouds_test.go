package upstream_test

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/secret/upstream/aws"
	"estover.dev/internal/secret/upstream/aws/awstest"
	"estover.dev/internal/secret/upstream/azure"
	"estover.dev/internal/secret/upstream/azure/azuretest"
	"estover.dev/internal/secret/upstream/google"
	"estover.dev/internal/secret/upstream/google/googletest"
)

var cloudKinds = []upstream.Kind{aws.Kind, azure.Kind, google.Kind}

// A manager is what somebody else does in the secret manager of a cloud.
type manager interface {
	http.Handler
	Write(name, text string)
	Remove(name string)
	All(name string) []string
}

// A cloud is the secret manager of one, as it is reached over a line that may be down, or
// be cut before the answer to a write has come.
type cloud struct {
	manager
	spec   upstream.StoreSpec
	host   string
	admin  engine.Credential
	reads  func(*http.Request) bool // a value
	writes func(*http.Request) bool
	why    string // a name that was deleted cannot be written; empty if it can

	mu        sync.Mutex
	down, cut bool
	read      int
}

func (c *cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	down, cut := c.down, c.cut && c.writes(r)
	if !down && c.reads(r) && r.Header.Get("Authorization") != "" { // a client of Azure asks first how to log in
		c.read++
	}
	if cut {
		c.cut = false
	}
	c.mu.Unlock()
	switch {
	case down:
		w.WriteHeader(http.StatusServiceUnavailable)
	case cut:
		c.manager.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	default:
		c.manager.ServeHTTP(w, r)
	}
}

func (c *cloud) set(down, cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down, c.cut = down, cut
}

// asked is how many values were read.
func (c *cloud) asked() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.read
}

// clouds does the same at each cloud, where a store of the kind's name is registered, with
// a secret that logs in.
func clouds(t *testing.T, test func(t *testing.T, h *house, c *cloud)) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		for _, k := range cloudKinds {
			t.Run(k.Name, func(t *testing.T) {
				c := &cloud{spec: upstream.StoreSpec{Name: k.Name, Kind: k.Name, Login: "login/" + k.Name}}
				s := httptest.NewUnstartedServer(c)
				switch k.Name {
				case "aws":
					c.manager, c.admin = awstest.New()
					c.spec.Options = map[string]string{"region": "eu-central-1"}
					does := func(r *http.Request, what ...string) bool {
						return slices.Contains(what, strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "secretsmanager."))
					}
					c.reads = func(r *http.Request) bool { return does(r, "GetSecretValue") }
					c.writes = func(r *http.Request) bool { return does(r, "CreateSecret", "PutSecretValue") }
					c.why = "waits there for its deletion"
					s.Start()
				case "azure":
					c.manager, c.admin = azuretest.New()
					c.reads = func(r *http.Request) bool {
						return r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/secrets/") && !strings.Contains(r.URL.Path, "/versions") && !strings.Contains(r.URL.Path, "/fake_page_")
					}
					c.writes = func(r *http.Request) bool { return r.Method == http.MethodPut }
					c.why = "not purged yet"
					s.StartTLS()
					c.spec.Authorities = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
				case "google":
					c.manager, c.admin = googletest.New()
					c.spec.Options = map[string]string{"project": "acme"}
					c.reads = func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, ":access") }
					c.writes = func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, ":addVersion") }
					s.Start()
				}
				t.Cleanup(s.Close)
				c.spec.Address, c.host = s.URL, s.Listener.Addr().String()
				login := func(secret string) {
					t.Helper()
					b, err := json.Marshal(map[string]string{"username": c.admin.User, "password": secret})
					if err != nil {
						t.Fatal(err)
					}
					h.make(c.spec.Login, string(b), c.host)
				}
				login("a-wrong-secret")
				if _, err := h.x.Put(t.Context(), ann, c.spec); err != nil {
					t.Fatal(err)
				}
				var told *estover.Error
				if err := h.x.Check(t.Context(), ann, k.Name, ""); !errors.As(err, &told) || !errors.Is(err, upstream.ErrStore) || strings.Contains(told.Detail, "a-wrong-secret") {
					t.Errorf("a store that does not let us in: %v, want ErrStore without what was sent", err)
				}
				login(string(c.admin.Secret.Reveal()))
				if err := h.x.Check(t.Context(), ann, k.Name, ""); err != nil {
					t.Fatalf("a store that lets us in: %v", err)
				}
				here := *h
				here.t = t
				test(t, &here, c)
			})
		}
	})
}

// TestCloudReadThrough: a secret, and a folder of them, is read through the secret manager
// of each cloud; each version once (S1), and never an old one for what is not known (M16).
func TestCloudReadThrough(t *testing.T) {
	clouds(t, func(t *testing.T, h *house, c *cloud) {
		path := c.spec.Name + "/key"
		is := func(path, want string, read int) {
			t.Helper()
			if got, err := h.use(h.secrets, path); err != nil || got != want {
				t.Fatalf("%s is %q, %v, want %q", path, got, err, want)
			}
			if n := c.asked(); n != read {
				t.Fatalf("%d values were read of the store, want %d", n, read)
			}
		}
		c.Write("crm-key", `{"password":"first"}`)
		if _, err := h.x.Link(t.Context(), ann, upstream.LinkSpec{Path: path, Store: c.spec.Name, From: "crm-key", Destinations: []string{crmHost}}); err != nil {
			t.Fatal(err)
		}
		is(path, "first", 1)
		is(path, "first", 1)
		c.Write("crm-key", `{"password":"second"}`)
		is(path, "first", 1)
		h.clock.Advance(6 * time.Minute)
		is(path, "second", 2)
		h.clock.Advance(6 * time.Minute)
		is(path, "second", 2)

		c.set(true, false)
		is(path, "second", 2)
		h.clock.Advance(6 * time.Minute)
		if got, err := h.use(h.secrets, path); !errors.Is(err, upstream.ErrStore) || got != "" {
			t.Errorf("with the store down: %q, %v, want ErrStore", got, err)
		}
		c.set(false, false)
		h.clock.Advance(3 * time.Second)
		is(path, "second", 2)
		c.Remove("crm-key")
		h.clock.Advance(6 * time.Minute)
		if got, err := h.use(h.secrets, path); !errors.Is(err, upstream.ErrGone) || got != "" {
			t.Errorf("deleted there: %q, %v, want ErrGone", got, err)
		}

		for _, name := range []string{"team-a", "team-b", "other"} {
			c.Write(name, `{"password":"of `+name+`"}`)
		}
		folder := c.spec.Name + "/team/"
		got, err := h.x.Link(t.Context(), ann, upstream.LinkSpec{Path: folder, Store: c.spec.Name, From: "team-", Destinations: []string{crmHost}})
		if err != nil || !slices.Equal(got.Linked, []string{folder + "a", folder + "b"}) {
			t.Fatalf("linking a folder: %+v, %v", got, err)
		}
		is(folder+"a", "of team-a", 3)
		c.Write("team-late", `{"password":"late"}`)
		h.clock.Advance(6 * time.Minute)
		if err := h.x.FillDue(t.Context()); err != nil {
			t.Fatal(err)
		}
		is(folder+"late", "late", 4)
	})
}

// TestCloudSync: a secret is pushed to the secret manager of each cloud. Each version is
// there once although a reply was lost, and what somebody else has written or deleted there
// stays until somebody decides (M16).
func TestCloudSync(t *testing.T) {
	clouds(t, func(t *testing.T, h *house, c *cloud) {
		path, name := c.spec.Name+"/key", c.spec.Name
		var want []string
		stands := func(when string, more ...string) {
			t.Helper()
			if want = append(want, more...); !alike(c.All("app-key"), want) {
				t.Fatalf("%s: the store has had %q, want %q", when, c.All("app-key"), want)
			}
		}
		later := func() {
			h.clock.Advance(11 * time.Minute)
			h.push()
		}
		h.make(path, key(1), crmHost, c.host)
		s, err := h.x.Sync(t.Context(), ann, upstream.SyncSpec{Path: path, Store: name, To: "app-key"})
		if err != nil {
			t.Fatal(err)
		}
		is := func(when string, state upstream.SyncState, cursor int64) {
			t.Helper()
			if s = h.find(s.ID); s.State != state || s.Cursor != cursor {
				t.Fatalf("%s: %+v, want %s at %d", when, s, state, cursor)
			}
		}
		h.push()
		stands("at first", key(1))
		h.make(path, key(2))
		h.push()
		later()
		stands("after another version", key(2))
		is("after another version", upstream.InSync, 2)

		c.set(false, true)
		h.make(path, key(3))
		h.push()
		stands("the reply was lost", key(3))
		is("the reply was lost", upstream.Behind, 2)
		h.make(path, key(4)) // before anybody has looked what became of it
		later()
		stands("after the reply was lost", key(4))
		is("after the reply was lost", upstream.InSync, 4)

		c.set(true, false)
		h.make(path, key(5))
		later()
		is("with the store down", upstream.Behind, 4)
		c.set(false, false)
		later()
		stands("when it is back", key(5))

		theirs := `{"password":"theirs"}`
		c.Write("app-key", theirs)
		later()
		h.make(path, key(6))
		later()
		stands("with a drift", theirs)
		is("with a drift", upstream.Drifted, 5)
		if _, err := h.x.Overwrite(t.Context(), ann, s.ID, "ours is the one that counts"); err != nil {
			t.Fatal(err)
		}
		h.push()
		stands("overwritten", key(6))
		is("overwritten", upstream.InSync, 6)
		c.Write("app-key", `{"password":"theirs too"}`)
		later()
		if s, err = h.x.Accept(t.Context(), ann, s.ID); err != nil {
			t.Fatal(err)
		}
		is("accepted", upstream.InSync, 7)
		if got, err := h.use(h.secrets, path); err != nil || got != "theirs too" {
			t.Errorf("what was accepted is %q here, %v", got, err)
		}
		later()
		stands("accepted", `{"password":"theirs too"}`)

		c.Remove("app-key")
		h.make(path, key(8))
		later()
		is("deleted there", upstream.Drifted, 7)
		if _, err := h.x.Overwrite(t.Context(), ann, s.ID, "it is needed there"); err != nil {
			t.Fatal(err)
		}
		h.push()
		if c.why == "" {
			want = nil
			stands("made again", key(8))
			is("made again", upstream.InSync, 8)
			return
		}
		stands("deleted there")
		if is("the name is taken", upstream.Behind, 0); !strings.Contains(s.LastError, c.why) {
			t.Errorf("the name of what was deleted is taken, and it says %q", s.LastError)
		}
		c.manager.(interface{ Restore(name string) }).Restore("app-key")
		later()
		is("restored there", upstream.Drifted, 0)
		if _, err := h.x.Overwrite(t.Context(), ann, s.ID, "it is there again"); err != nil {
			t.Fatal(err)
		}
		h.push()
		stands("restored and overwritten", key(8))
		is("restored and overwritten", upstream.InSync, 8)
	})
}

// TestCloudImport: secrets come from the secret manager of each cloud, by its address and
// as a store that is registered; what is here as it is there is not read again (S1, M16).
func TestCloudImport(t *testing.T) {
	clouds(t, func(t *testing.T, h *house, c *cloud) {
		imports := upstream.NewImports(h.guard, h.secrets, nil, cloudKinds...)
		imports.Stores = h.x
		to := c.spec.Name + "/"
		c.Write("imp-a", `{"password":"of a"}`)
		c.Write("imp-b", "a text")
		c.Write("other", "another text")
		registered := upstream.Order{Store: c.spec.Name, From: "imp-", To: to, Destinations: []string{crmHost}}
		order := upstream.Order{
			Kind: c.spec.Kind, Address: c.spec.Address, Options: c.spec.Options, Authorities: c.spec.Authorities, Login: c.spec.Login,
			From: "imp-", To: to, Destinations: []string{crmHost}, DryRun: true,
		}
		run := func(when string, o upstream.Order, read int, a, b upstream.Outcome) {
			t.Helper()
			report, err := imports.Run(t.Context(), ann, o)
			if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			got := map[string]upstream.Outcome{}
			for _, i := range report.Items {
				got[i.To] = i.Outcome
			}
			want := map[string]upstream.Outcome{to + "a": a, to + "b": b}
			if fmt.Sprint(got) != fmt.Sprint(want) || c.asked() != read {
				t.Fatalf("%s: %v with %d values read, want %v with %d", when, report.Items, c.asked(), want, read)
			}
		}
		run("a dry run", order, 0, upstream.Imported, upstream.Imported)
		order.DryRun = false
		run("by its address", order, 2, upstream.Imported, upstream.Imported)
		run("as a store", registered, 2, upstream.Unchanged, upstream.Unchanged)
		c.Write("imp-a", `{"password":"another"}`)
		run("after a change there", registered, 3, upstream.Updated, upstream.Unchanged)
		if got, err := h.use(h.secrets, to+"a"); err != nil || got != "another" {
			t.Errorf("what was imported is %q, %v", got, err)
		}
		h.make(to+"b", `{"value":"ours"}`)
		c.Write("imp-b", "another text")
		run("after a change on both sides", registered, 3, upstream.Unchanged, upstream.Differs)
		if p, err := h.secrets.Read(t.Context(), ann, to+"b", 0, "to see whether it is ours"); err != nil || string(p.Values[secret.DefaultField].Reveal()) != "ours" {
			t.Errorf("what was changed here: %v, want it left alone", err)
		}
		c.set(true, false)
		if _, err := imports.Run(t.Context(), ann, registered); !errors.Is(err, upstream.ErrStore) {
			t.Errorf("with the store down: %v, want ErrStore", err)
		}
	})
}

// TestCloudNames: where secrets have names without slashes, what cannot be one is refused
// at once, and not when somebody needs it.
func TestCloudNames(t *testing.T) {
	clouds(t, func(t *testing.T, h *house, c *cloud) {
		imports := upstream.NewImports(h.guard, h.secrets, nil, cloudKinds...)
		imports.Stores = h.x
		path := c.spec.Name + "/names"
		h.make(path+"/pushed", key(1), c.host)
		_, link := h.x.Link(t.Context(), ann, upstream.LinkSpec{Path: path, Store: c.spec.Name})
		_, folder := h.x.Link(t.Context(), ann, upstream.LinkSpec{Path: path + "/folder/", Store: c.spec.Name})
		_, pushed := h.x.Sync(t.Context(), ann, upstream.SyncSpec{Path: path + "/pushed", Store: c.spec.Name})
		_, imported := imports.Run(t.Context(), ann, upstream.Order{Store: c.spec.Name, From: "app/", To: path + "/"})
		for field, got := range map[string][]error{"from": {link, folder, imported}, "to": {pushed}} {
			for _, err := range got {
				var told *estover.Error
				if flat := c.spec.Kind != "aws"; flat && (!errors.As(err, &told) || told.Field != field || !strings.Contains(told.Detail, "without slashes")) || !flat && err != nil {
					t.Errorf("a name with slashes: %v", err)
				}
			}
		}
		if _, err := h.x.Link(t.Context(), ann, upstream.LinkSpec{Path: path, Store: c.spec.Name, From: "names"}); err != nil {
			t.Errorf("a name without slashes: %v", err)
		}
	})
}
