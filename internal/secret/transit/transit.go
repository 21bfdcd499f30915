// Package transit encrypts and signs for others with keys that stay here. A key has
// a name and versions: the newest encrypts and signs, older ones still decrypt and
// verify, until they are below what may be used or are trimmed away.
//
//	key      live ──Remove──▶ ended, and the bytes of its versions are gone
//	version  newest ──rotate──▶ older ──(min_decryption_version)──▶ kept and not used ──Trim──▶ gone
//
// What was encrypted is written as others write it, so that it opens wherever the
// same key is:
//
//	vault:v3:base64( nonce ‖ ciphertext ‖ tag )      symmetric; nonce 12 bytes, tag 16
//	vault:v3:base64( RSA-OAEP with SHA-256 )         rsa-…
//	vault:v3:base64( signature )                     ecdsa as ASN.1, or R ‖ S as JWS has it; ed25519; rsa as PSS or PKCS #1 v1.5
//	vault:v3:base64( HMAC )                          of any key: each version has a key for that beside
//
// # What is an event
//
// Whoever encrypts, verifies or makes a MAC gives something away and learns
// nothing: policy is asked, and a refusal is an event. What reveals or commits, to
// decrypt, to sign, to make a data key, to export, is an event of its own, one for
// a batch, which tells how many and never of what.
//
// # Who may
//
// People may if policy lets them. A key may name a resource and an action of the
// catalogue: then an agent uses it if a grant of its own covers that action.
//
// Keys are sealed under the class transit and are opened into memory when they are
// first used on a node; a change drops the copies on all of them.
package transit

import (
	"context"
	"crypto/fips140"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/seal"
)

// Errors.
var (
	// ErrNotFound is returned when there is no such key.
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "transit_key_not_found", Detail: "There is no such key."}
	// ErrExists is returned when the name of a key is taken.
	ErrExists = &estover.Error{Kind: estover.Conflict, Code: "transit_key_exists", Detail: "There is a key of this name already."}
	// ErrInvalid is returned for what cannot be.
	ErrInvalid = &estover.Error{Kind: estover.Invalid, Code: "transit_invalid", Detail: "The request is not valid."}
	// ErrCannot is returned for what a key of this type does not do.
	ErrCannot = &estover.Error{Kind: estover.Invalid, Code: "transit_unsupported", Detail: "A key of this type cannot do that."}
	// ErrVersion is returned for a version that is not there or may not be used.
	ErrVersion = &estover.Error{Kind: estover.Invalid, Code: "transit_version", Detail: "This version of the key is not there, or may not be used any more."}
	// ErrCiphertext is returned for what does not open.
	ErrCiphertext = &estover.Error{Kind: estover.Invalid, Code: "transit_ciphertext", Detail: "This was not encrypted with the key, or it was changed."}
	// ErrNotAllowed is returned for what the key's own settings forbid.
	ErrNotAllowed = &estover.Error{Kind: estover.Conflict, Code: "transit_not_allowed", Detail: "The settings of the key do not allow this."}
	// ErrTooMany is returned when there are as many as there may be.
	ErrTooMany = &estover.Error{Kind: estover.TooMuch, Code: "transit_too_many", Detail: "There are too many of them."}
	errStale   = &estover.Error{Kind: estover.Conflict, Code: "transit_key_changed", Detail: "The key was changed by somebody else in the meantime. Try again."}
)

// A Type is what a key is.
type Type string

// The types.
const (
	AES128    Type = "aes128-gcm96"
	AES256    Type = "aes256-gcm96"
	ChaCha20  Type = "chacha20-poly1305"
	ECDSAP256 Type = "ecdsa-p256"
	ECDSAP384 Type = "ecdsa-p384"
	ECDSAP521 Type = "ecdsa-p521"
	Ed25519   Type = "ed25519"
	RSA2048   Type = "rsa-2048"
	RSA3072   Type = "rsa-3072"
	RSA4096   Type = "rsa-4096"
	HMAC      Type = "hmac"
)

// Types lists them.
var Types = []Type{AES128, AES256, ChaCha20, ECDSAP256, ECDSAP384, ECDSAP521, Ed25519, RSA2048, RSA3072, RSA4096, HMAC}

// Symmetric reports whether a key of the type is one secret.
func (t Type) Symmetric() bool { return t == AES128 || t == AES256 || t == ChaCha20 || t == HMAC }

// Encrypts reports whether a key of the type encrypts.
func (t Type) Encrypts() bool {
	return t == AES128 || t == AES256 || t == ChaCha20 || t.rsa()
}

// Signs reports whether a key of the type signs.
func (t Type) Signs() bool { return !t.Symmetric() }

// Derives reports whether keys of the type can be derived from a context.
func (t Type) Derives() bool { return t == AES128 || t == AES256 || t == ChaCha20 || t == Ed25519 }

func (t Type) rsa() bool { return t == RSA2048 || t == RSA3072 || t == RSA4096 }

// A Key is a key without its secrets.
type Key struct {
	ID    string `json:"id"` // tky_…
	Mount string `json:"mount,omitempty"`
	Name  string `json:"name"`
	Type  Type   `json:"type"`
	Spec
	Latest    int64     `json:"latest_version"`
	Versions  []Version `json:"versions"` // the oldest first
	RotatesAt time.Time `json:"rotates_at,omitzero"`
	CreatedAt time.Time `json:"created_at"`

	epoch int64
	ended time.Time
}

// A Version is one without its secret.
type Version struct {
	N         int64     `json:"version"`
	CreatedAt time.Time `json:"created_at"`
	PublicKey string    `json:"public_key,omitempty"` // in PEM, of Ed25519 in base64

	public []byte
	sealed []byte
}

// A Spec is what one says of a key.
type Spec struct {
	// Derived says that each context has a key of its own.
	Derived bool `json:"derived,omitempty"`
	// Convergent says that the same plaintext in the same context gives the same
	// ciphertext, so that it can be looked for. It also tells who sees two of them
	// that they are equal.
	Convergent bool `json:"convergent,omitempty"`
	// Exportable says that the secret may be shown, and Backup that it may be shown
	// as it is. Neither can be taken back.
	Exportable bool `json:"exportable,omitempty"`
	Backup     bool `json:"allow_plaintext_backup,omitempty"`
	// DeletionAllowed says that the key may be removed.
	DeletionAllowed bool `json:"deletion_allowed,omitempty"`
	// MinDecryption is the oldest version that decrypts and verifies, MinEncryption
	// the oldest that may be named to encrypt and sign; 0 is the newest. Available
	// is the oldest that is there.
	MinDecryption int64 `json:"min_decryption_version"`
	MinEncryption int64 `json:"min_encryption_version"`
	Available     int64 `json:"min_available_version"`
	// AutoRotate is after how many seconds the key rotates by itself; 0 for never.
	AutoRotate int64 `json:"auto_rotate_period,omitempty"`
	// Imported says that the first version came from elsewhere; then it rotates only
	// if ImportedRotates is set.
	Imported        bool `json:"imported,omitempty"`
	ImportedRotates bool `json:"allow_rotation,omitempty"`
	// KeySize is that of an HMAC key, in bytes.
	KeySize int `json:"key_size,omitempty"`
	// Resource and Action are what a grant has to cover for an agent to use the key.
	Resource string `json:"resource,omitempty"`
	Action   string `json:"action,omitempty"`
}

// Options are what a program may set. The zero value is good.
type Options struct {
	// FIPS refuses what a certified module has not. The running program decides if
	// it is nil.
	FIPS func() bool

	// Action is what policy is told of the action of a resource that a key is for.
	// Nil tells it nothing.
	Action func(ctx context.Context, tenant estover.TenantID, resource, action string) (input any, effect guard.Effect, err error)

	// Resource is the id of a resource that a key names by its id or its name, and
	// says why there is no such action there. Nil takes what it is given.
	Resource func(ctx context.Context, tx *db.Tx, ref, action string) (string, error)
}

// The bounds.
const (
	maxKeys     = 10_000 // of a mount
	maxVersions = 1000   // of a key that are there
	// MaxBatch is how much is done at a time.
	MaxBatch = 1000
)

// Transit is the keys of all tenants. It is safe for use by many at once.
type Transit struct {
	guard  *guard.Guard
	sealer *seal.Sealer
	fips   func() bool
	action func(ctx context.Context, tenant estover.TenantID, resource, action string) (any, guard.Effect, error)
	find   func(ctx context.Context, tx *db.Tx, ref, action string) (string, error)
	copies *guard.Cache[*ring] // by mount and name
}

// Holding is where keys lie, for [seal.Sealer.Hold].
var Holding = seal.Holding{Class: seal.Transit, Table: "transit_version", Sealed: "sealed", ID: "key_id", Version: "version", Created: "created_at"}

const kind = "transit_key"

// New keeps keys behind the door g.
func New(g *guard.Guard, s *seal.Sealer, o Options) *Transit {
	t := &Transit{guard: g, sealer: s, fips: o.FIPS, action: o.Action, find: o.Resource}
	if t.fips == nil {
		t.fips = inFIPS
	}
	t.copies = guard.NewCache(g, kind, func(ctx context.Context, tx *db.Tx, at string) (*ring, error) {
		k, err := find(ctx, tx, at)
		if err != nil {
			return nil, err
		}
		return t.open(tx.Tenant(), k)
	})
	return t
}

// at names a key of a mount among the copies. Names have no slash.
func at(mount, name string) string { return mount + "/" + name }

func target(id string) string { return "transit_key:" + id }

// ValidName reports whether s can name a key.
func ValidName(s string) bool { return len(s) <= 128 && keyName.MatchString(s) }

var keyName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.@-]*[A-Za-z0-9_])?$`)

func (s *Spec) check(t Type) error {
	switch {
	case !slices.Contains(Types, t):
		return ErrInvalid.With("The type of a key is one of %v, not %q.", Types, t).At("type")
	case s.Derived && !t.Derives():
		return ErrInvalid.With("Keys of the type %s are not derived.", t).At("derived")
	case s.Convergent && (!s.Derived || t == Ed25519):
		return ErrInvalid.With("Only a derived key that encrypts is convergent.").At("convergent")
	case s.AutoRotate != 0 && (s.AutoRotate < 3600 || s.AutoRotate > 10*365*24*3600):
		return ErrInvalid.With("A key rotates by itself after an hour at least, or never.").At("auto_rotate_period")
	case (s.Resource == "") != (s.Action == ""):
		return ErrInvalid.With("A key names both a resource and an action of it, or neither.").At("action")
	case t == HMAC && (s.KeySize < 32 || s.KeySize > 512), t != HMAC && s.KeySize != 0:
		return ErrInvalid.With("A key for HMAC has 32 to 512 bytes, and no other has a size of its own.").At("key_size")
	}
	return nil
}

// refuseFIPS says why a type cannot be used where FIPS holds.
func (t *Transit) refuseFIPS(typ Type) error {
	if typ == ChaCha20 && t.fips() {
		return ErrCannot.With("ChaCha20-Poly1305 is not there in FIPS mode. Use aes256-gcm96.")
	}
	return nil
}

// refuseConvergent says why nothing is encrypted so that it comes out the same twice.
func refuseConvergent() error {
	if fips140.Enforced() {
		return ErrCannot.With("Convergent keys choose their nonces, which is not done where FIPS 140 is enforced.")
	}
	return nil
}

// Create makes a key with one version. A key that is there already, of the same
// type, stays as it is.
func (t *Transit) Create(ctx context.Context, c estover.Caller, mount, name string, typ Type, spec Spec) (Key, error) {
	if typ == "" {
		typ = AES256
	}
	if typ == HMAC && spec.KeySize == 0 {
		spec.KeySize = 32
	}
	spec.MinDecryption, spec.MinEncryption, spec.Available, spec.Imported = 1, 0, 0, false
	op := creation(mount, name, typ, spec)
	if err := t.permitted(ctx, c, op); err != nil {
		return Key{}, err
	}
	var m *material
	err := spec.check(typ) // a key is as long as it says
	if err == nil {
		m, err = t.fresh(typ, spec)
	}
	return t.create(ctx, c, mount, name, typ, spec, m, err)
}

// permitted asks for an operation before a key is made or opened for it, which may
// take a second: who may not do it does not have it made.
func (t *Transit) permitted(ctx context.Context, c estover.Caller, op guard.Op) error {
	op.Effect = guard.Manages
	_, err := t.guard.Admit(ctx, c, op)
	return err
}

func creation(mount, name string, typ Type, spec Spec) guard.Op {
	return guard.Op{Action: "transit.create", Target: target(name), Detail: map[string]any{"mount": mount, "name": name, "type": typ, "spec": spec}}
}

func (t *Transit) create(ctx context.Context, c estover.Caller, mount, name string, typ Type, spec Spec, m *material, invalid error) (Key, error) {
	op := creation(mount, name, typ, spec)
	if invalid == nil {
		invalid = spec.check(typ)
	}
	if invalid == nil {
		invalid = t.refuseFIPS(typ)
	}
	if invalid == nil && spec.Convergent {
		invalid = refuseConvergent()
	}
	if ours := name == wrappingName && c.Subject.Kind() == estover.SystemKind; invalid == nil && !ours && !ValidName(name) {
		invalid = ErrInvalid.With("The name of a key is made of letters, digits, dots, dashes and underscores, at most 128 of them.").At("name")
	}
	if err := t.sealer.Prepare(ctx, c.Tenant); err != nil {
		return Key{}, err
	}
	now := t.guard.DB().Now()
	k := &Key{ID: estover.NewID("tky"), Mount: mount, Name: name, Type: typ, Spec: spec, Latest: 1, CreatedAt: now, epoch: 1, Versions: []Version{{N: 1, CreatedAt: now}}}
	if spec.AutoRotate > 0 {
		k.RotatesAt = now.Add(time.Duration(spec.AutoRotate) * time.Second)
	}
	if invalid == nil {
		invalid = t.sealVersion(c.Tenant, k, &k.Versions[0], m)
	}
	err := t.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if invalid != nil {
			return invalid
		}
		n, err := count(ctx, tx.Tx, mount)
		if err != nil {
			return err
		}
		if n >= maxKeys {
			return ErrTooMany.With("There are %d keys, which is as many as there may be.", n)
		}
		if err := t.resolve(ctx, tx.Tx, k); err != nil {
			return err
		}
		tx.SetTarget(target(k.ID))
		tx.Touch(kind, at(mount, name))
		return insert(ctx, tx.Tx, k)
	})
	if err != nil {
		return Key{}, err
	}
	return *k, k.show()
}

// resolve puts the id of the resource that a key names.
func (t *Transit) resolve(ctx context.Context, tx *db.Tx, k *Key) (err error) {
	if k.Resource != "" && t.find != nil {
		k.Resource, err = t.find(ctx, tx, k.Resource, k.Action)
	}
	return err
}

// Keys are the keys of a mount by name, after the name that the page before ended
// with.
func (t *Transit) Keys(ctx context.Context, c estover.Caller, mount, after string, limit int) (list []Key, err error) {
	err = t.guard.Read(ctx, c, guard.Op{Action: "transit.list"}, func(tx *db.Tx) error {
		list, err = findAll(ctx, tx, mount, after, limit)
		return err
	})
	for i := range list {
		if err == nil {
			err = list[i].show()
		}
	}
	return list, err
}

// Get is a key without its secrets.
func (t *Transit) Get(ctx context.Context, c estover.Caller, mount, name string) (k Key, err error) {
	err = t.guard.Read(ctx, c, guard.Op{Action: "transit.read", Target: target(name)}, func(tx *db.Tx) error {
		one, err := find(ctx, tx, at(mount, name))
		if err == nil {
			k = *one
		}
		return err
	})
	if err == nil {
		err = k.show()
	}
	return k, err
}

// Exists reports whether there is a key, for a door that tells create from update.
func (t *Transit) Exists(ctx context.Context, tenant estover.TenantID, mount, name string) (bool, error) {
	_, err := t.copies.Get(ctx, tenant, at(mount, name))
	if estover.KindOf(err) == estover.NotFound {
		return false, nil
	}
	return err == nil, err
}

// change reads a key, has plan change a copy, and stores the copy if the key is
// still as it was read.
func (t *Transit) change(ctx context.Context, c estover.Caller, op guard.Op, mount, name string, plan func(k *Key) (added *material, err error)) (Key, error) {
	for range 8 {
		var before *Key
		err := t.guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) (err error) {
			before, err = find(ctx, tx, at(mount, name))
			return err
		})
		if err == nil {
			err = t.sealer.Prepare(ctx, c.Tenant)
		}
		var after Key
		var added *Version
		if err == nil {
			after = *before
			after.Versions = slices.Clone(before.Versions)
			var m *material
			m, err = plan(&after)
			if err == nil && m != nil {
				after.Latest++
				after.Versions = append(after.Versions, Version{N: after.Latest, CreatedAt: t.guard.DB().Now()})
				added = &after.Versions[len(after.Versions)-1]
				err = t.sealVersion(c.Tenant, &after, added, m)
			}
		}
		done := t.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
			if err != nil {
				return err
			}
			if after.Resource != before.Resource || after.Action != before.Action {
				if err := t.resolve(ctx, tx.Tx, &after); err != nil {
					return err
				}
			}
			tx.SetTarget(target(after.ID))
			tx.Note("version", after.Latest)
			tx.Touch(kind, at(mount, name))
			return replace(ctx, tx.Tx, before, &after, added)
		})
		if done == errStale {
			continue
		}
		if done == nil {
			done = after.show()
		}
		return after, done
	}
	return Key{}, errStale
}

// Rotate gives a key another version.
func (t *Transit) Rotate(ctx context.Context, c estover.Caller, mount, name string) (Key, error) {
	op := guard.Op{Action: "transit.rotate", Target: target(name), Detail: map[string]any{"mount": mount, "name": name}}
	if err := t.permitted(ctx, c, op); err != nil {
		return Key{}, err
	}
	return t.change(ctx, c, op, mount, name, func(k *Key) (*material, error) {
		switch {
		case k.Imported && !k.ImportedRotates:
			return nil, ErrNotAllowed.With("The key came from elsewhere, and was not allowed to be rotated here.")
		case len(k.Versions) >= maxVersions:
			return nil, ErrTooMany.With("The key has %d versions. Trim those that nobody needs.", len(k.Versions))
		}
		if k.AutoRotate > 0 {
			k.RotatesAt = t.guard.DB().Now().Add(time.Duration(k.AutoRotate) * time.Second)
		}
		return t.fresh(k.Type, k.Spec)
	})
}

// A Change says what to change of a key; nil leaves things as they are.
type Change struct {
	MinDecryption   *int64  `json:"min_decryption_version,omitempty"`
	MinEncryption   *int64  `json:"min_encryption_version,omitempty"`
	DeletionAllowed *bool   `json:"deletion_allowed,omitempty"`
	Exportable      *bool   `json:"exportable,omitempty"`
	Backup          *bool   `json:"allow_plaintext_backup,omitempty"`
	AutoRotate      *int64  `json:"auto_rotate_period,omitempty"`
	Resource        *string `json:"resource,omitempty"`
	Action          *string `json:"action,omitempty"`
}

// Configure changes a key's settings.
func (t *Transit) Configure(ctx context.Context, c estover.Caller, mount, name string, ch Change) (Key, error) {
	op := guard.Op{Action: "transit.configure", Target: target(name), Detail: map[string]any{"mount": mount, "name": name, "change": ch}}
	return t.change(ctx, c, op, mount, name, func(k *Key) (*material, error) {
		set(&k.MinDecryption, ch.MinDecryption)
		set(&k.MinEncryption, ch.MinEncryption)
		set(&k.DeletionAllowed, ch.DeletionAllowed)
		set(&k.AutoRotate, ch.AutoRotate)
		set(&k.Resource, ch.Resource)
		set(&k.Action, ch.Action)
		if k.MinDecryption == 0 {
			k.MinDecryption = 1
		}
		for _, one := range []struct {
			now  *bool
			want *bool
		}{{&k.Exportable, ch.Exportable}, {&k.Backup, ch.Backup}} {
			if one.want != nil && *one.now && !*one.want {
				return nil, ErrNotAllowed.With("That the secret of a key may be shown is not taken back: it may have been.")
			}
			set(one.now, one.want)
		}
		switch {
		case k.MinDecryption < max(1, k.Available) || k.MinDecryption > k.Latest:
			return nil, ErrInvalid.With("The oldest version that decrypts is one of %d to %d.", max(1, k.Available), k.Latest).At("min_decryption_version")
		case k.MinEncryption < 0 || k.MinEncryption > k.Latest:
			return nil, ErrInvalid.With("The oldest version that encrypts is one of 0 to %d.", k.Latest).At("min_encryption_version")
		case k.MinEncryption > 0 && k.MinEncryption < k.MinDecryption:
			return nil, ErrInvalid.With("A version that encrypts must also decrypt: min_encryption_version is at least min_decryption_version.").At("min_encryption_version")
		}
		if ch.AutoRotate != nil {
			k.RotatesAt = time.Time{}
			if k.AutoRotate > 0 {
				k.RotatesAt = t.guard.DB().Now().Add(time.Duration(k.AutoRotate) * time.Second)
			}
		}
		return nil, k.check(k.Type)
	})
}

func set[T any](v, to *T) {
	if to != nil {
		*v = *to
	}
}

// Trim erases the versions below one for good.
func (t *Transit) Trim(ctx context.Context, c estover.Caller, mount, name string, oldest int64) (Key, error) {
	op := guard.Op{Action: "transit.trim", Target: target(name), Effect: guard.Deletes, Detail: map[string]any{"mount": mount, "name": name, "oldest": oldest}}
	return t.change(ctx, c, op, mount, name, func(k *Key) (*material, error) {
		switch {
		case k.MinEncryption == 0:
			return nil, ErrNotAllowed.With("Set min_encryption_version first: what is trimmed must not be in use.")
		case oldest < max(1, k.Available) || oldest > k.Latest || oldest > k.MinDecryption || oldest > k.MinEncryption:
			return nil, ErrInvalid.With("The oldest version that stays is at least %d, and at most min_decryption_version and min_encryption_version.", max(1, k.Available)).At("min_available_version")
		}
		k.Available = oldest
		k.Versions = slices.DeleteFunc(k.Versions, func(v Version) bool { return v.N < oldest })
		return nil, nil
	})
}

// Remove ends a key. Nothing that it encrypted opens any more.
func (t *Transit) Remove(ctx context.Context, c estover.Caller, mount, name string) error {
	op := guard.Op{Action: "transit.remove", Target: target(name), Effect: guard.Deletes, Detail: map[string]any{"mount": mount, "name": name}}
	_, err := t.change(ctx, c, op, mount, name, func(k *Key) (*material, error) {
		if !k.DeletionAllowed {
			return nil, ErrNotAllowed.With("The key may not be removed. Set deletion_allowed first.")
		}
		k.Versions, k.ended = nil, t.guard.DB().Now()
		return nil, nil
	})
	return err
}

// EndMount removes all keys of a mount, in the transaction that disables it.
func (t *Transit) EndMount(ctx context.Context, tx *guard.Tx, mount string) error {
	if mount == "" {
		return ErrInvalid.With("What is the tenant's own has no mount that ends.")
	}
	names, err := endMount(ctx, tx.Tx, mount)
	for _, name := range names {
		tx.Touch(kind, at(mount, name))
	}
	tx.Note("keys", len(names))
	return err
}

// RotateDue rotates the keys whose time has come, of all tenants.
func (t *Transit) RotateDue(ctx context.Context) (n int, err error) {
	var due []dueKey
	err = t.guard.DB().View(ctx, "", func(tx *db.Tx) error {
		due, err = findDue(ctx, tx)
		return err
	})
	if err != nil {
		return 0, err
	}
	for _, d := range due {
		system := estover.Caller{Tenant: d.tenant, Subject: estover.System("transit")}
		if _, err := t.Rotate(ctx, system, d.mount, d.name); err != nil {
			return n, fmt.Errorf("rotating the key %s: %w", d.name, err)
		}
		n++
	}
	return n, nil
}

func encodeSpec(s Spec) (string, error) {
	b, err := json.Marshal(s)
	return string(b), err
}
