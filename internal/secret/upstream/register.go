package upstream

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
)

// The errors of stores that are registered.
var (
	ErrNoStore = &estover.Error{Kind: estover.NotFound, Code: "store_not_found", Detail: "There is no such store. See `estover secret store list`."}
	ErrInvalid = &estover.Error{Kind: estover.Invalid, Code: "store_invalid", Detail: "The store is not valid."}
	// ErrNotOwner is returned when somebody but its owner or an administrator has a
	// store reached otherwise, read through or pushed to.
	ErrNotOwner = &estover.Error{Kind: estover.Denied, Code: "store_not_owner", Detail: "Only the owner of the store or an administrator says where it is, what is read through it, and what is pushed to it."}
	ErrChanged  = &estover.Error{Kind: estover.Conflict, Code: "store_changed", Detail: "The store has been changed in the meantime. Look at it and try again."}
	ErrInUse    = &estover.Error{Kind: estover.Conflict, Code: "store_in_use", Detail: "Secrets are read through the store or pushed to it. Unlink them, and end their syncs first."}
)

// A StoreSpec is what one says of a store.
type StoreSpec struct {
	Name        string            `json:"name" doc:"How it is called here: small letters, digits, dots, dashes and underscores"`
	Kind        string            `json:"kind" minLength:"1" maxLength:"50" doc:"Of which kind it is; GET /v1/secret-store-kinds lists them"`
	Address     string            `json:"address" minLength:"1" maxLength:"500" doc:"Where it is, as its kind says"`
	Options     map[string]string `json:"options,omitempty" doc:"What else its kind wants to know"`
	Authorities string            `json:"authorities,omitempty" maxLength:"65536" doc:"Certificates in PEM that it is known by, instead of the system's"`
	Login       string            `json:"login,omitempty" maxLength:"500" doc:"The path of our secret that logs in there: its fields username and password; its owner allows the store as a destination"`
	Owner       estover.Subject   `json:"owner,omitempty" doc:"Who answers for it, as user:usr_…; who adds it if left out"`
	Description string            `json:"description,omitempty" maxLength:"1000"`
}

// A NamedStore is a store that is registered.
type NamedStore struct {
	ID string `json:"id"`
	StoreSpec
	ManagedBy string    `json:"managed_by,omitempty" doc:"The set of files that keeps it, as apply/default"`
	CreatedAt time.Time `json:"created_at"`
	ChangedAt time.Time `json:"changed_at"`

	epoch int64
}

// Config is what [Stores] are made of.
type Config struct {
	Guard   *guard.Guard
	Secrets *secret.Secrets
	Sealer  *seal.Sealer
	Kinds   []Kind
	Dial    Dial // nil dials without asking whose network it is

	// Assert signs an assertion of our issuer, about a store and for an audience. Nil:
	// none is made.
	Assert func(ctx context.Context, tenant estover.TenantID, store, audience string) (string, error)

	Node   string // the name of this node; one that nobody has if empty
	Logger *slog.Logger
}

// Stores are the other vaults that a tenant has registered, what is read through
// them, and what is pushed to them. It is safe for use by many at once.
type Stores struct {
	Config
	copies *guard.Cache[*NamedStore] // by id

	mu     sync.Mutex
	opened map[storeKey]*opened
	known  map[linkKey]known   // what this node knows of linked secrets
	asking map[linkKey]*asking // what it is finding out

	// reached is told of each effect at a store before it is made and after, and may
	// end the work there as a crash would. It is nil but in tests.
	reached func(point string) error
}

type storeKey struct {
	tenant estover.TenantID
	id     string
}

// An opened store is one that this node works at.
type opened struct {
	store Store
	host  string
	epoch int64     // of the store when it was opened
	login string    // the version of the secret that logs in
	until time.Time // how long a credential is good that no secret is behind; zero if one is
}

// storeKind is how events name rows of stores that have changed.
const storeKind = "secret_store"

// NewStores puts stores together.
func NewStores(c Config) *Stores {
	if c.Node == "" {
		c.Node = estover.NewID("node")
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	x := &Stores{Config: c, opened: map[storeKey]*opened{}, known: map[linkKey]known{}, asking: map[linkKey]*asking{}}
	x.copies = guard.NewCache(c.Guard, storeKind, func(ctx context.Context, tx *db.Tx, id string) (*NamedStore, error) {
		s, err := findStore(ctx, tx, id)
		return &s, err
	})
	c.Guard.OnTouch(func(tenant estover.TenantID, kind, id string) {
		x.mu.Lock()
		defer x.mu.Unlock()
		switch kind {
		case storeKind:
			delete(x.opened, storeKey{tenant, id})
			maps.DeleteFunc(x.known, func(k linkKey, v known) bool { return k.tenant == tenant && v.link.Store == id })
		case linkKind:
			delete(x.known, linkKey{tenant, id})
		}
	})
	return x
}

func (x *Stores) at(point string) error {
	if x.reached == nil {
		return nil
	}
	return x.reached(point)
}

func system(tenant estover.TenantID) estover.Caller {
	return estover.Caller{Tenant: tenant, Subject: estover.System("store")}
}

func storeTarget(name string) string { return "store:" + name }

// mayManage reports whether a caller says what is done with a store.
func mayManage(c estover.Caller, owner estover.Subject) bool {
	return c.Subject == owner || c.Has(estover.Admin) || c.Subject.Kind() == estover.SystemKind
}

// check says what is wrong with a spec.
func (x *Stores) check(s StoreSpec) error {
	switch {
	case !estover.ValidName(s.Name):
		return ErrInvalid.With("A store has a name of up to 63 small letters, digits, dots, dashes and underscores, not %q.", s.Name).At("name")
	case s.Owner.ID() == "" || s.Owner.Kind() != estover.UserKind && s.Owner.Kind() != estover.SystemKind:
		return ErrInvalid.With("The owner of a store is a person (user:…), not %q.", s.Owner).At("owner")
	case len(s.Description) > 1000:
		return ErrInvalid.With("The description of a store has at most 1000 bytes.").At("description")
	case len(s.Authorities) > 64<<10:
		return ErrInvalid.With("The authorities have at most 64 KiB.").At("authorities")
	}
	k, host, err := place(x.Kinds, s.Kind, s.Address, s.Options, ErrInvalid)
	switch {
	case err != nil:
		return err
	case s.Options[Audience] != "" && (k.Federation == nil || x.Assert == nil):
		return ErrInvalid.With("At a store of the kind %s one logs in with a secret.", s.Kind).At("options." + Audience)
	case s.Options[Audience] != "" && s.Login != "":
		return ErrInvalid.With("One logs in with a secret, or with an assertion for an audience.").At("login")
	}
	if s.Options[Audience] != "" && k.Federation.Beside != nil {
		if _, err := k.Federation.Beside(s.Options); err != nil {
			return err
		}
	}
	// What the kind itself says of address and options; nothing is connected to.
	_, err = k.Open(engine.Config{
		Address: s.Address, Options: s.Options, Authorities: []byte(s.Authorities), Dial: dialer("", nil, host),
		Admin: engine.Credential{User: "x", Secret: estover.NewSecret([]byte("x"))},
	})
	return err
}

// Valid says what is wrong with a spec in itself.
func (x *Stores) Valid(s StoreSpec) error { return x.check(s) }

// Put registers a store, or changes the one of this name. Its kind stays. Whoever
// is not its owner or an administrator does not change it.
func (x *Stores) Put(ctx context.Context, c estover.Caller, s StoreSpec) (NamedStore, error) {
	return x.Keep(ctx, c, s, "")
}

// Keep is Put with who keeps a store that is added, if not whoever adds it by hand.
func (x *Stores) Keep(ctx context.Context, c estover.Caller, s StoreSpec, managedBy string) (NamedStore, error) {
	owner := s.Owner
	if s.Owner == "" {
		s.Owner = c.Subject
	}
	invalid := x.check(s)
	op := guard.Op{Action: "store.put", Target: storeTarget(s.Name), Detail: map[string]any{
		"kind": s.Kind, "address": s.Address, "options": s.Options, "login": s.Login, "owner": s.Owner,
	}}
	var out NamedStore
	err := x.Guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if s.Options[Audience] != "" && !c.Has(estover.Admin) {
			return ErrNotOwner.With("Only an administrator has Estover log in with an assertion of its issuer, since others may trust that.")
		}
		if invalid != nil {
			return invalid
		}
		was, err := findNamed(ctx, tx.Tx, s.Name)
		if errors.Is(err, ErrNoStore) {
			out = NamedStore{ID: estover.NewID("sto"), StoreSpec: s, ManagedBy: managedBy, CreatedAt: tx.Now(), ChangedAt: tx.Now(), epoch: 1}
			tx.Note("store", out.ID)
			return insertStore(ctx, tx.Tx, out)
		}
		if err != nil {
			return err
		}
		out = was
		if out.StoreSpec = s; owner == "" {
			out.Owner = was.Owner
		}
		switch {
		case !mayManage(c, was.Owner):
			return ErrNotOwner
		case was.Kind != s.Kind:
			return ErrInvalid.With("The store %s is of the kind %s, and stays that. Add another one.", s.Name, was.Kind).At("kind")
		}
		out.ChangedAt, out.epoch = tx.Now(), was.epoch+1
		tx.Note("store", out.ID)
		tx.Touch(storeKind, out.ID)
		if err := replaceStore(ctx, tx.Tx, was, out); err != nil {
			return err
		}
		return doubtLinks(ctx, tx.Tx, out.ID)
	})
	return out, err
}

// List gives the stores in the order of their names: at most limit of them, after
// the name that the page before ended with.
func (x *Stores) List(ctx context.Context, c estover.Caller, after string, limit int) (all []NamedStore, err error) {
	err = x.Guard.Read(ctx, c, guard.Op{Action: "store.list"}, func(tx *db.Tx) error {
		all, err = listStores(ctx, tx, after, limit)
		return err
	})
	return all, err
}

// A Standing is a store with what is done with it.
type Standing struct {
	NamedStore
	Links   []Linked `json:"links" nullable:"false" doc:"What is read through it: at most 200"`
	Folders []Folder `json:"folders" nullable:"false"`
	Syncs   []Sync   `json:"syncs" nullable:"false" doc:"What is pushed to it: at most 200"`
}

// Get shows a store, what is read through it, and what is pushed to it.
func (x *Stores) Get(ctx context.Context, c estover.Caller, name string) (s Standing, err error) {
	err = x.Guard.Read(ctx, c, guard.Op{Action: "store.read", Target: storeTarget(name)}, func(tx *db.Tx) error {
		if s.NamedStore, err = findNamed(ctx, tx, name); err != nil {
			return err
		}
		if s.Links, err = linksOf(ctx, tx, s.ID); err != nil {
			return err
		}
		if s.Folders, err = foldersOf(ctx, tx, s.ID); err != nil {
			return err
		}
		s.Syncs, err = syncsBy(ctx, tx, SyncFilter{store: s.ID}, "", 200)
		return err
	})
	return s, err
}

// Remove ends a store that nothing is read through or pushed to.
func (x *Stores) Remove(ctx context.Context, c estover.Caller, name string) error {
	op := guard.Op{Action: "store.remove", Target: storeTarget(name), Effect: guard.Deletes}
	return x.Guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		s, err := findNamed(ctx, tx.Tx, name)
		if err != nil {
			return err
		}
		if !mayManage(c, s.Owner) {
			return ErrNotOwner
		}
		// The row is taken first, so that nothing is begun there meanwhile.
		if err := endStore(ctx, tx.Tx, s); err != nil {
			return err
		}
		links, syncs, err := usesOf(ctx, tx.Tx, s.ID)
		if err != nil {
			return err
		}
		if links+syncs > 0 {
			return ErrInUse.With("%d secrets or folders are read through the store %s, and %d are pushed to it. `estover secret store show %s` lists them: unlink them, and remove the syncs.", links, name, syncs, name)
		}
		tx.Note("store", s.ID)
		tx.Touch(storeKind, s.ID)
		return nil
	})
}

// Check asks the store for the versions of one secret, whether it is there or not:
// so one sees whether it answers and lets us in.
func (x *Stores) Check(ctx context.Context, c estover.Caller, name, path string) error {
	if path == "" {
		path = "estover-check"
	}
	op := guard.Op{Action: "store.check", Target: storeTarget(name), Effect: guard.Reads, Detail: map[string]any{"path": path}}
	var s NamedStore
	err := x.Guard.Do(ctx, c, op, func(tx *guard.Tx) (err error) {
		s, err = findNamed(ctx, tx.Tx, name)
		return err
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	store, _, err := x.open(ctx, c.Tenant, s.ID)
	if err == nil {
		_, err = store.Versions(ctx, path)
	}
	var known *estover.Error
	if errors.As(err, &known) {
		return err
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		x.shut(storeKey{c.Tenant, s.ID})
		return ErrStore.With("The store %s does not answer as it should: %s", name, say(err)).Because(err)
	}
	return nil
}

// nameless reports whether a path can be no name in a store of a kind whose secrets have
// names without slashes.
func nameless(kinds []Kind, kind, path string) bool {
	return strings.Contains(path, "/") && slices.ContainsFunc(kinds, func(k Kind) bool { return k.Name == kind && k.Flat })
}

// callTime is how long a store has for what is asked of it.
const callTime = 20 * time.Second

// open is a store as it is reached at the moment, and its host.
func (x *Stores) open(ctx context.Context, tenant estover.TenantID, id string) (Store, string, error) {
	s, err := x.copies.Get(ctx, tenant, id)
	if err != nil {
		return nil, "", err
	}
	k, host, err := place(x.Kinds, s.Kind, s.Address, s.Options, ErrInvalid)
	if err != nil {
		return nil, "", err
	}
	if s.Login != "" {
		// A log-in that would have to be read by logging in would go round in circles.
		with, err := x.Secrets.Describe(ctx, tenant, s.Login)
		if err == nil && with.Link != nil {
			err = ErrStore.With("The secret %s, which logs in at the store %s, lives in another vault itself. Name one of ours.", s.Login, s.Name)
		}
		if err != nil {
			return nil, "", err
		}
	}
	key := storeKey{tenant, id}
	var admin engine.Credential
	var version string
	var until time.Time
	federates := s.Options[Audience] != "" && k.Federation != nil && x.Assert != nil
	if !federates {
		if admin, version, err = login(ctx, x.Secrets, system(tenant), s.Login, host); err != nil {
			return nil, "", err
		}
	}
	if o := x.openedAt(key, s.epoch, version); o != nil {
		return o.store, o.host, nil
	}
	if federates {
		if admin, until, err = x.federated(ctx, tenant, s, k, host); err != nil {
			return nil, "", err
		}
	}
	store, err := k.Open(engine.Config{Address: s.Address, Options: s.Options, Authorities: []byte(s.Authorities), Admin: admin, Dial: dialer(tenant, x.Dial, host)})
	if err != nil {
		return nil, "", err
	}
	store = checked{store, admin}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.opened[key] = &opened{store, host, s.epoch, version, until}
	return store, host, nil
}

// openedAt is a store that is open as it is to be reached, and for a minute at least;
// nil if it is not.
func (x *Stores) openedAt(key storeKey, epoch int64, login string) *opened {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.opened[key]
	if o == nil || o.epoch != epoch || o.login != login || !o.until.IsZero() && time.Until(o.until) < time.Minute {
		return nil
	}
	return o
}

// shut has a store that has failed be opened again the next time, with another
// credential if it has one of ours: that may have been taken away before its time.
func (x *Stores) shut(key storeKey) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.opened, key)
}

// nameOf is how a store is called, for a sentence.
func (x *Stores) nameOf(ctx context.Context, tenant estover.TenantID, id string) string {
	if s, err := x.copies.Get(ctx, tenant, id); err == nil {
		return s.Name
	}
	return id
}
