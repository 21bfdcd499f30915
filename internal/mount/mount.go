// Package mount keeps what the Vault-compatible door finds where: its mounts,
// its ways to log in, and its policies.
//
// A mount ties a path of the door to a kind of thing and to an id of its own.
// What lies below it is kept by another package, under that id, or, for kv,
// below a path of our own secrets; so a mount can be moved and takes nothing
// with it.
//
//	enabled ──tune──▶ enabled ──move──▶ enabled at another path ──disable──▶ closing ──▶ gone
//	   ▲──────────────────what lies below cannot be ended────────────────────────┘
//
// No mount lies within another, and only one of a tenant is changed at a time.
// Every tenant has sys/, cubbyhole/ and the log-in token/, which nobody enabled
// and nobody can disable.
//
// The policies of the door only narrow ([ACL]): what they allow, the guard still
// decides about, by the policy of the organisation. They are kept as they were
// written, to the byte, and read into rules when they are used.
package mount

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// The errors of mounts. Clients of the door know the words of [ErrTaken].
var (
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "mount_not_found", Detail: "There is no such mount."}
	ErrTaken    = &estover.Error{Kind: estover.Conflict, Code: "mount_path_taken", Detail: "The path is in use already."}
	ErrInvalid  = &estover.Error{Kind: estover.Invalid, Code: "mount_invalid", Detail: "The mount is not valid."}
	ErrKind     = &estover.Error{Kind: estover.Invalid, Code: "mount_kind_unknown", Detail: "There is no such kind of mount."}
	ErrFixed    = &estover.Error{Kind: estover.Conflict, Code: "mount_fixed", Detail: "Every organisation has this mount; it can be neither disabled nor moved."}
	ErrClosing  = &estover.Error{Kind: estover.Conflict, Code: "mount_closing", Detail: "The mount is being disabled, so nothing is made below it. If that was broken off, disable it once more."}
	ErrInUse    = &estover.Error{Kind: estover.Conflict, Code: "mount_in_use", Detail: "Something below the mount is still in use."}
)

// A Section is one of the two trees of mounts.
type Section string

// The sections.
const (
	Secrets Section = "secret" // what holds or makes secrets
	Auth    Section = "auth"   // ways to log in, below auth/
)

// The kinds of the mounts that everybody has.
const (
	System    = "system"
	Cubbyhole = "cubbyhole"
	Token     = "token"
)

// KV is the kind of static secrets; its option version is "1" or "2".
const KV = "kv"

// DefaultTTL is how long what a mount hands out lives where nothing says
// otherwise, in seconds: 32 days.
const DefaultTTL int64 = 2_764_800

// A Config is what can be tuned of a mount. A number that is 0, a word that is
// empty and a list that is nil are not set.
type Config struct {
	DefaultTTL      int64    `json:"default_ttl,omitempty"` // seconds
	MaxTTL          int64    `json:"max_ttl,omitempty"`
	ForceNoCache    bool     `json:"force_no_cache,omitempty"`
	RequestKeys     []string `json:"audit_non_hmac_request_keys,omitempty"`
	ResponseKeys    []string `json:"audit_non_hmac_response_keys,omitempty"`
	Visibility      string   `json:"listing_visibility,omitempty"` // "", hidden or unauth
	PassedHeaders   []string `json:"passthrough_request_headers,omitempty"`
	AllowedHeaders  []string `json:"allowed_response_headers,omitempty"`
	ManagedKeys     []string `json:"allowed_managed_keys,omitempty"`
	TokenType       string   `json:"token_type,omitempty"` // of log-ins
	PluginVersion   string   `json:"plugin_version,omitempty"`
	DelegatedAccess []string `json:"delegated_auth_accessors,omitempty"`
}

// Versions is how a mount of kv keeps versions, unless the secret says more.
type Versions struct {
	Max         int64         `json:"max,omitempty"` // 0 for ten
	CASRequired bool          `json:"cas_required,omitempty"`
	DeleteAfter time.Duration `json:"delete_after,omitempty"` // in nanoseconds; 0 for never
}

// A Spec is what one says of a mount.
type Spec struct {
	Description     string            `json:"description,omitempty"`
	Local           bool              `json:"local,omitempty"`
	SealWrap        bool              `json:"seal_wrap,omitempty"`
	ExternalEntropy bool              `json:"external_entropy_access,omitempty"`
	Options         map[string]string `json:"options,omitempty"`
	Config          Config            `json:"config,omitzero"`
	Versions        Versions          `json:"versions,omitzero"`
}

// A Mount is what lies at a path. Its copies are shared and never changed.
type Mount struct {
	ID       string // under which its kind keeps what lies below; it stays when the mount moves
	Section  Section
	Path     string // with a slash at the end; below auth/ for a way to log in
	Kind     string
	Accessor string // kv_1a2b3c4d
	UUID     string
	Base     string // of kv: the path below which its secrets lie
	Spec
	CreatedAt time.Time
	Fixed     bool // everybody has it

	stored bool // has a row
	epoch  int64
}

// Full is the path of the mount as requests have it.
func (m *Mount) Full() string {
	if m.Section == Auth {
		return "auth/" + m.Path
	}
	return m.Path
}

// Version is the version of a kv mount, "1" or "2", and "" of others.
func (m *Mount) Version() string {
	if m.Kind != KV {
		return ""
	}
	if m.Options["version"] == "2" {
		return "2"
	}
	return "1"
}

// TTL is the default and the longest life of what the mount hands out, in
// seconds, as they are in effect.
func (m *Mount) TTL() (usual, most int64) {
	most = cmp.Or(m.Config.MaxTTL, DefaultTTL)
	return min(cmp.Or(m.Config.DefaultTTL, DefaultTTL), most), most
}

// A Kind is something that can be mounted.
type Kind struct {
	Name    string
	Section Section

	// Empty ends what lies below a mount that is about to be disabled, where
	// that takes more than one transaction. Nil does nothing.
	Empty func(ctx context.Context, c estover.Caller, m Mount) error

	// Disabled ends the rest in the transaction that disables the mount. Nil
	// does nothing.
	Disabled func(ctx context.Context, tx *guard.Tx, m Mount) error
}

// Options are what the server hands in.
type Options struct {
	Kinds []Kind
}

// Mounts are the mounts of all tenants. It is safe for use by many at once.
type Mounts struct {
	guard  *guard.Guard
	kinds  map[Section]map[string]Kind
	tables *guard.Cache[Table]
}

// tableID is the one copy that there is for each tenant.
const tableID = "all"

// New keeps mounts behind the door g.
func New(g *guard.Guard, o Options) *Mounts {
	m := &Mounts{guard: g, kinds: map[Section]map[string]Kind{Secrets: {}, Auth: {}}}
	for _, k := range o.Kinds {
		m.kinds[k.Section][k.Name] = k
	}
	m.tables = guard.NewCache(g, "mount", func(ctx context.Context, tx *db.Tx, _ string) (Table, error) { return load(ctx, tx) })
	return m
}

// A Table is all mounts of a tenant, in the order of their full paths.
type Table []Mount

// Find is the mount that a path lies in, and what of the path is below it.
func (t Table) Find(path string) (m *Mount, rest string, ok bool) {
	for i := range t {
		full := t[i].Full()
		if below, in := strings.CutPrefix(path, full); in {
			return &t[i], below, true
		}
		if path+"/" == full {
			return &t[i], "", true
		}
	}
	return nil, "", false
}

// At is the mount at exactly this path of a section, or nil.
func (t Table) At(s Section, path string) *Mount {
	for i := range t {
		if t[i].Section == s && t[i].Path == path {
			return &t[i]
		}
	}
	return nil
}

// Table is the mounts of a tenant from a copy in memory, for whoever finds out
// what a request is about.
func (m *Mounts) Table(ctx context.Context, tenant estover.TenantID) (Table, error) {
	return m.tables.Get(ctx, tenant, tableID)
}

// Holding is the mount that a path lies in.
func (m *Mounts) Holding(ctx context.Context, c estover.Caller, path string) (found *Mount, err error) {
	err = m.guard.Read(ctx, c, guard.Op{Action: "mount.find", Target: "path:" + path}, func(tx *db.Tx) error {
		table, err := load(ctx, tx)
		if err != nil {
			return err
		}
		one, _, ok := table.Find(path)
		if !ok {
			return ErrNotFound
		}
		found = one
		return nil
	})
	return found, err
}

// fixed are the mounts that everybody has. Their names are made of the tenant's
// so that they stay.
func fixed(tenant estover.TenantID) Table {
	one := func(s Section, path, kind, description string) Mount {
		sum := sha256.Sum256([]byte(string(tenant) + "\x00" + string(s) + "\x00" + path))
		return Mount{
			ID: "mnt_" + hex.EncodeToString(sum[:16]), Section: s, Path: path, Kind: kind, Accessor: kind + "_" + hex.EncodeToString(sum[16:20]),
			UUID: uuid(sum[:16]), Spec: Spec{Description: description}, Fixed: true,
		}
	}
	return Table{
		one(Auth, "token/", Token, "token based credentials"),
		one(Secrets, "cubbyhole/", Cubbyhole, "per-token private secret storage"),
		one(Secrets, "sys/", System, "system endpoints used for control, policy and debugging"),
	}
}

func uuid(b []byte) string {
	s := hex.EncodeToString(b)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// load reads the mounts of a tenant.
func load(ctx context.Context, tx *db.Tx) (Table, error) {
	stored, err := all(ctx, tx)
	if err != nil {
		return nil, err
	}
	table := Table(stored)
	for _, f := range fixed(tx.Tenant()) {
		if have := table.At(f.Section, f.Path); have != nil {
			have.Fixed = true
			continue
		}
		table = append(table, f)
	}
	slices.SortFunc(table, func(a, b Mount) int { return strings.Compare(a.Full(), b.Full()) })
	return table, nil
}

// List gives the mounts of a section in the order of their paths.
func (m *Mounts) List(ctx context.Context, c estover.Caller, s Section) (list []Mount, err error) {
	err = m.guard.Read(ctx, c, guard.Op{Action: "mount.list"}, func(tx *db.Tx) error {
		table, err := load(ctx, tx)
		for _, one := range table {
			if one.Section == s {
				list = append(list, one)
			}
		}
		return err
	})
	return list, err
}

// Get is the mount at a path.
func (m *Mounts) Get(ctx context.Context, c estover.Caller, s Section, path string) (found Mount, err error) {
	path = canonical(path)
	err = m.guard.Read(ctx, c, guard.Op{Action: "mount.read", Target: target(s, path)}, func(tx *db.Tx) error {
		table, err := load(ctx, tx)
		if err != nil {
			return err
		}
		one := table.At(s, path)
		if one == nil {
			return ErrNotFound.With("There is no mount at %s.", path)
		}
		found = *one
		return nil
	})
	return found, err
}

// Enable mounts something at a path that is free.
func (m *Mounts) Enable(ctx context.Context, c estover.Caller, s Section, path, kind string, spec Spec) (Mount, error) {
	path = canonical(path)
	one := Mount{ID: estover.NewID("mnt"), Section: s, Path: path, Kind: kind, Spec: spec, epoch: 1, stored: true}
	invalid := m.complete(&one)
	op := guard.Op{Action: "mount.enable", Target: target(s, path), Detail: map[string]any{"kind": one.Kind, "mount": one.ID}}
	err := m.change(ctx, c, op, func(tx *guard.Tx, table Table) error {
		if invalid != nil {
			return invalid
		}
		if err := free(table, s, path); err != nil {
			return err
		}
		one.CreatedAt = tx.Now()
		if one.Kind == KV {
			one.Base = base(table, path)
		}
		return insert(ctx, tx.Tx, &one)
	})
	return one, err
}

// base is a path for the secrets of a new kv mount that no other mount uses, lies
// around or within: the mount's own, unless one that was moved away has it still.
// Then it is one of a single word, since all below another's base is the other's.
func base(table Table, path string) string {
	want := strings.TrimSuffix(path, "/")
	for n := 1; ; n++ {
		try := want
		if n > 1 {
			try = fmt.Sprintf("%s-%d", strings.ReplaceAll(want, "/", "-"), n)
		}
		if !slices.ContainsFunc(table, func(o Mount) bool {
			return o.Base != "" && (o.Base == try || strings.HasPrefix(o.Base, try+"/") || strings.HasPrefix(try, o.Base+"/"))
		}) {
			return try
		}
	}
}

// complete fills in what a mount has beside and says what is wrong with it.
func (m *Mounts) complete(one *Mount) error {
	version := ""
	switch one.Kind {
	case "kv-v2":
		one.Kind, version = KV, "2"
	case "kv-v1", "generic":
		one.Kind, version = KV, "1"
	}
	if one.Kind == KV && one.Section == Secrets {
		options := maps.Clone(one.Options)
		if options == nil {
			options = map[string]string{}
		}
		if version != "" || options["version"] == "" {
			options["version"] = cmp.Or(version, "1")
		}
		if v := options["version"]; v != "1" && v != "2" {
			return ErrInvalid.With("The version of a kv mount is 1 or 2, not %q.", v)
		}
		one.Options = options
	}
	sum := sha256.Sum256([]byte(one.ID))
	one.Accessor, one.UUID = one.Kind+"_"+hex.EncodeToString(sum[:4]), uuid(sum[16:])
	if _, ok := m.kinds[one.Section][one.Kind]; !ok {
		return ErrKind.With("The kind %q cannot be mounted here; there are %s.", one.Kind, strings.Join(slices.Sorted(maps.Keys(m.kinds[one.Section])), ", "))
	}
	if err := checkPath(one.Path); err != nil {
		return err
	}
	return one.Spec.check()
}

// check says what is wrong with what is said of a mount.
func (p *Spec) check() error {
	switch {
	case len(p.Description) > 1000:
		return ErrInvalid.With("The description of a mount has at most 1000 bytes.")
	case len(p.Options) > 50:
		return ErrInvalid.With("A mount has at most 50 options.")
	case p.Config.DefaultTTL < 0 || p.Config.MaxTTL < 0:
		return ErrInvalid.With("A TTL is not negative.")
	case p.Config.MaxTTL > 0 && p.Config.DefaultTTL > p.Config.MaxTTL:
		return ErrInvalid.With("default_lease_ttl is longer than max_lease_ttl.")
	case !slices.Contains([]string{"", "hidden", "unauth"}, p.Config.Visibility):
		return ErrInvalid.With("listing_visibility is hidden or unauth, not %q.", p.Config.Visibility)
	case !slices.Contains([]string{"", "default-service", "default-batch", "service", "batch"}, p.Config.TokenType):
		return ErrInvalid.With("token_type is default-service, default-batch, service or batch, not %q.", p.Config.TokenType)
	case p.Versions.Max < 0 || p.Versions.Max > 1000:
		return ErrInvalid.With("max_versions is between 0 and 1000.")
	}
	for _, list := range [][]string{p.Config.RequestKeys, p.Config.ResponseKeys, p.Config.PassedHeaders, p.Config.AllowedHeaders, p.Config.ManagedKeys, p.Config.DelegatedAccess} {
		if len(list) > 100 {
			return ErrInvalid.With("A list in the configuration of a mount has at most 100 entries.")
		}
	}
	return nil
}

// canonical is a path as it is stored: without a slash before it, with one
// behind.
func canonical(path string) string {
	path = strings.Trim(path, "/")
	if path == "" {
		return ""
	}
	return path + "/"
}

// checkPath says what is wrong with where a mount is to lie.
func checkPath(path string) error {
	bad := ErrInvalid.With("The path of a mount is made of words with slashes between them, such as team/secrets: not %q.", path)
	if path == "" || len(path) > 256 || !utf8.ValidString(path) || strings.ContainsFunc(path, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) || r == '#' || r == '*' }) {
		return bad
	}
	for part := range strings.SplitSeq(strings.TrimSuffix(path, "/"), "/") {
		if part == "" || part == "." || part == ".." || part == "+" {
			return bad
		}
	}
	return nil
}

// free says whether a mount can lie at a path beside those that there are.
func free(table Table, s Section, path string) error {
	full := (&Mount{Section: s, Path: path}).Full()
	if s == Secrets && (full == "auth/" || strings.HasPrefix(full, "auth/") || full == "identity/") {
		return ErrInvalid.With("A mount cannot lie at %s.", full)
	}
	for i := range table {
		if have := table[i].Full(); strings.HasPrefix(full, have) || strings.HasPrefix(have, full) {
			return ErrTaken.With("path is already in use at %s", have)
		}
	}
	return nil
}

// A Change says what to change of a mount; nil leaves things as they are.
type Change struct {
	Description    *string            `json:"description,omitempty"`
	Options        *map[string]string `json:"options,omitempty"`
	DefaultTTL     *int64             `json:"default_ttl,omitempty"`
	MaxTTL         *int64             `json:"max_ttl,omitempty"`
	RequestKeys    *[]string          `json:"audit_non_hmac_request_keys,omitempty"`
	ResponseKeys   *[]string          `json:"audit_non_hmac_response_keys,omitempty"`
	Visibility     *string            `json:"listing_visibility,omitempty"`
	PassedHeaders  *[]string          `json:"passthrough_request_headers,omitempty"`
	AllowedHeaders *[]string          `json:"allowed_response_headers,omitempty"`
	ManagedKeys    *[]string          `json:"allowed_managed_keys,omitempty"`
	TokenType      *string            `json:"token_type,omitempty"`
	PluginVersion  *string            `json:"plugin_version,omitempty"`
	Delegated      *[]string          `json:"delegated_auth_accessors,omitempty"`
	MaxVersions    *int64             `json:"max_versions,omitempty"`
	CASRequired    *bool              `json:"cas_required,omitempty"`
	DeleteAfter    *time.Duration     `json:"delete_after,omitempty"`
}

func set[T any](v, to *T) {
	if to != nil {
		*v = *to
	}
}

// To is a spec with the change made to it, for a mount that is not there yet.
func (h Change) To(p Spec) Spec {
	m := Mount{Spec: p}
	h.Options = nil
	_ = h.apply(&m) // what is wrong with it is found when it is enabled
	return m.Spec
}

func (h Change) apply(m *Mount) error {
	set(&m.Description, h.Description)
	set(&m.Config.DefaultTTL, h.DefaultTTL)
	set(&m.Config.MaxTTL, h.MaxTTL)
	set(&m.Config.RequestKeys, h.RequestKeys)
	set(&m.Config.ResponseKeys, h.ResponseKeys)
	set(&m.Config.Visibility, h.Visibility)
	set(&m.Config.PassedHeaders, h.PassedHeaders)
	set(&m.Config.AllowedHeaders, h.AllowedHeaders)
	set(&m.Config.ManagedKeys, h.ManagedKeys)
	set(&m.Config.TokenType, h.TokenType)
	set(&m.Config.PluginVersion, h.PluginVersion)
	set(&m.Config.DelegatedAccess, h.Delegated)
	set(&m.Versions.Max, h.MaxVersions)
	set(&m.Versions.CASRequired, h.CASRequired)
	set(&m.Versions.DeleteAfter, h.DeleteAfter)
	if h.Options == nil {
		return m.Spec.check()
	}
	options := maps.Clone(m.Options)
	if options == nil {
		options = map[string]string{}
	}
	for k, v := range *h.Options {
		switch {
		case m.Kind == KV && k == "version" && (v != "1" && v != "2" || v < m.Version()):
			return ErrInvalid.With("A kv mount of version %s cannot become one of version %q.", m.Version(), v)
		case v == "":
			delete(options, k)
		default:
			options[k] = v
		}
	}
	m.Options = options
	return m.Spec.check()
}

// Tune changes what is said of a mount.
func (m *Mounts) Tune(ctx context.Context, c estover.Caller, s Section, path string, change Change) (one Mount, err error) {
	path = canonical(path)
	op := guard.Op{Action: "mount.tune", Target: target(s, path), Detail: map[string]any{"change": change}}
	err = m.change(ctx, c, op, func(tx *guard.Tx, table Table) error {
		at := table.At(s, path)
		if at == nil {
			return ErrNotFound.With("There is no mount at %s.", path)
		}
		one = *at
		tx.Note("mount", one.ID)
		if err := change.apply(&one); err != nil {
			return err
		}
		if !one.stored {
			one.CreatedAt, one.epoch, one.stored = tx.Now(), 1, true
			return insert(ctx, tx.Tx, &one)
		}
		return update(ctx, tx.Tx, &one)
	})
	return one, err
}

// Disable ends a mount and all that lies below it. There is nothing to do where
// there is none.
//
// What is made below it holds its row ([Alive]); so when the first step is done
// nothing is being made there any more, and what has been is found by the second. Of
// two who do it at once the first to be done ends it, and if the last one could not do
// it the mount is open again, for the other one too.
func (m *Mounts) Disable(ctx context.Context, c estover.Caller, s Section, path string) error {
	path = canonical(path)
	op := guard.Op{Action: "mount.disable", Target: target(s, path), Effect: guard.Deletes}
	var one *Mount
	var since string
	by := estover.NewID("cls")
	// 1: close it.
	first := op
	first.Detail = map[string]any{"step": "close"}
	err := m.change(ctx, c, first, func(tx *guard.Tx, table Table) (err error) {
		switch one = table.At(s, path); {
		case one == nil:
			return errNothing
		case one.Fixed:
			return ErrFixed
		}
		tx.Note("mount", one.ID)
		since, err = shut(ctx, tx.Tx, one.ID, by)
		return err
	})
	if errors.Is(err, errNothing) {
		return nil
	}
	if err != nil {
		return err
	}
	// 2: what takes more than one transaction.
	if empty := m.kinds[s][one.Kind].Empty; empty != nil {
		if err := empty(ctx, c, *one); err != nil { // it stays, with what could not be ended
			return errors.Join(err, m.reopen(context.WithoutCancel(ctx), c, op, one, by))
		}
	}
	// 3: the rest, and the mount itself.
	err = m.change(ctx, c, op, func(tx *guard.Tx, table Table) error {
		now := table.At(s, path)
		if now == nil || now.ID != one.ID {
			return errNothing // somebody else was first
		}
		tx.Note("mount", now.ID)
		tx.Note("kind", now.Kind)
		if disabled := m.kinds[s][now.Kind].Disabled; disabled != nil {
			if err := disabled(ctx, tx, *now); err != nil {
				return err
			}
		}
		return end(ctx, tx.Tx, now, since)
	})
	if errors.Is(err, errNothing) {
		return nil
	}
	return err
}

// reopen takes back that a mount is being disabled.
func (m *Mounts) reopen(ctx context.Context, c estover.Caller, op guard.Op, one *Mount, by string) error {
	op.Detail = map[string]any{"step": "reopen", "mount": one.ID}
	return m.change(ctx, c, op, func(tx *guard.Tx, _ Table) error { return reopen(ctx, tx.Tx, one.ID, by) })
}

// Alive makes sure, inside the transaction of an operation, that the mount that its
// request is about is there and not being disabled, and that it stays so until the
// transaction ends.
func Alive(ctx context.Context, tx *db.Tx, caller estover.Caller) error {
	if caller.Mount == "" {
		return nil
	}
	closing, err := hold(ctx, tx, caller.Mount)
	if err == nil && closing {
		err = ErrClosing
	}
	return err
}

// errReopened says that something may have been made since it was closed.
var errReopened = ErrClosing.With("Somebody else was disabling the mount too, and could not, so that something may have been made below it meanwhile. Disable it once more.")

// errNothing says that there was nothing to do.
var errNothing = errors.New("there is no such mount")

// A Move is one that was done.
type Move struct {
	ID       string
	From, To string // full paths
	At       time.Time
}

// Move gives a mount another path. What lies below stays where it is kept, and
// so do its leases. One that is being disabled is not moved.
func (m *Mounts) Move(ctx context.Context, c estover.Caller, from, to string) (Move, error) {
	move := Move{ID: newUUID(), From: canonical(from), To: canonical(to)}
	section := func(full string) (Section, string) {
		if below, in := strings.CutPrefix(full, "auth/"); in {
			return Auth, below
		}
		return Secrets, full
	}
	s, path := section(move.From)
	toSection, toPath := section(move.To)
	op := guard.Op{Action: "mount.move", Target: target(s, path), Detail: map[string]any{"to": move.To}}
	err := m.change(ctx, c, op, func(tx *guard.Tx, table Table) error {
		one := table.At(s, path)
		switch {
		case one == nil:
			return ErrInvalid.With("no matching mount at %q", move.From)
		case one.Fixed:
			return ErrFixed
		case s != toSection:
			return ErrInvalid.With("A way to log in stays below auth/, and a mount of secrets outside of it.")
		}
		if err := checkPath(toPath); err != nil {
			return err
		}
		if closing, err := hold(ctx, tx.Tx, one.ID); err != nil {
			return err
		} else if closing { // whoever disables it would not find it
			return ErrClosing
		}
		moved := *one
		others := slices.DeleteFunc(slices.Clone(table), func(o Mount) bool { return o.ID == one.ID })
		if err := free(others, s, toPath); err != nil {
			return err
		}
		moved.Path, move.At = toPath, tx.Now()
		tx.Note("mount", moved.ID)
		if err := update(ctx, tx.Tx, &moved); err != nil {
			return err
		}
		return insertMove(ctx, tx.Tx, move, moved.ID)
	})
	return move, err
}

// Moved is a move by its id.
func (m *Mounts) Moved(ctx context.Context, c estover.Caller, id string) (move Move, err error) {
	err = m.guard.Read(ctx, c, guard.Op{Action: "mount.read", Target: "mount_move:" + id}, func(tx *db.Tx) error {
		move, err = findMove(ctx, tx, id)
		return err
	})
	return move, err
}

// change runs fn on the mounts of a tenant with nobody else changing them.
func (m *Mounts) change(ctx context.Context, c estover.Caller, op guard.Op, fn func(tx *guard.Tx, table Table) error) error {
	return m.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if err := lock(ctx, tx.Tx); err != nil {
			return err
		}
		table, err := load(ctx, tx.Tx)
		if err != nil {
			return err
		}
		tx.Touch("mount", tableID)
		return fn(tx, table)
	})
}

// target is a mount as events and policies name it.
func target(s Section, path string) string {
	return "mount:" + strings.TrimSuffix((&Mount{Section: s, Path: path}).Full(), "/")
}

// newUUID is a name as clients of the door expect them.
func newUUID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return uuid(b)
}
