// Package secret keeps the secrets that agents need and never see. A secret is
// a named thing with versions; a version holds one or more fields. The gateway
// uses it, and injects a field into a request to a destination that the secret
// allows; reading it in plaintext is another and louder operation.
//
//	version   live ⇄ deleted ──▶ destroyed      undelete brings a deleted one back;
//	            └──────────────────▲            destroyed: the sealed bytes are gone
//
// The versions of a rotated secret have a phase beside ([Phase]), and are made and
// moved by its rotation alone ([Secrets.Turn]). Of these what a node has used and has
// open is counted so that it can be said for certain that it uses one no more
// ([Secrets.Ended]).
//
// # Two ways to a value
//
//   - [Secrets.Use] is for the gateway. It is a step of a call that the guard
//     has admitted and will record, so it is neither decided on nor an event by
//     itself. It opens a copy in memory, costs about a microsecond, and refuses
//     every destination but the secret's own: those belong to the secret and
//     its owner, and a rule of the gateway can narrow them and never widen them.
//   - [Secrets.Read] hands the value out. It needs a purpose, is an event of its
//     own, and is remembered as having left us: after an incident such a version
//     must be rotated, and one that was only ever used need not be. The current
//     version is opened from the copy in memory, too, and is handed out only if
//     the row of the secret has the same epoch when that is recorded.
//
// Both are counted by version, subject, session and way ([Use]), so that one can
// ask what an agent touched, and who used a version. Uses by the gateway add up
// in memory and are written every second ([Options.FlushEvery]) and at the end;
// a crash loses the counts of the last second, and no event.
//
// # What is stored
//
// The values of a version are sealed together, bound to the tenant, the id of
// the secret, the number of the version and its time. The row of the secret
// carries a MAC over everything in it and over the state of each version, which
// is checked whenever it is read. So an id cannot be given to another path, a
// destination cannot be added, a version cannot be put back into service or
// made the current one, without the tenant's key. What is not found here is a
// secret put back with all its rows as they once were; the log finds that.
//
// Of each value there is a keyed digest, by which it is recognised when it is
// seen somewhere ([Secrets.Identify]).
//
// # Placeholders
//
// A client that will not start without a key gets a [Secrets.Placeholder]: it
// opens nothing, is unique to agent, session and secret, and is an alarm when
// it is seen anywhere else ([Secrets.Recognise]).
package secret

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/seal"
)

// ErrNotFound is returned when there is no such secret.
var ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "secret_not_found", Detail: "There is no such secret."}

// ErrExists is returned when the path of a new secret is taken.
var ErrExists = &estover.Error{Kind: estover.Conflict, Code: "secret_exists", Detail: "There is a secret at this path already."}

// ErrInvalid is returned for a secret that cannot be.
var ErrInvalid = &estover.Error{Kind: estover.Invalid, Code: "secret_invalid", Detail: "The secret is not valid."}

// ErrVersion is returned when the current version is not the one that a write
// expects to replace.
var ErrVersion = &estover.Error{Kind: estover.Conflict, Code: "secret_version_conflict", Detail: "The secret has another version than expected."}

// ErrNoVersion is returned when the version that is asked for cannot be used.
var ErrNoVersion = &estover.Error{Kind: estover.NotFound, Code: "secret_version_not_found", Detail: "There is no such version of the secret."}

// ErrNoField is returned when a version has no such field.
var ErrNoField = &estover.Error{Kind: estover.NotFound, Code: "secret_field_not_found", Detail: "The secret has no such field."}

// ErrDestination is returned when a secret may not be sent to a host.
var ErrDestination = &estover.Error{Kind: estover.Denied, Code: "secret_destination", Detail: "The secret may not be sent there."}

// ErrNotOwner is returned when somebody but its owner or an administrator adds
// a destination to a secret, or gives it to another owner.
var ErrNotOwner = &estover.Error{Kind: estover.Denied, Code: "secret_not_owner", Detail: "Only the owner of the secret or an administrator adds destinations to it or changes its owner."}

// ErrPurpose is returned when a plaintext is asked for without saying why.
var ErrPurpose = &estover.Error{Kind: estover.Invalid, Code: "secret_needs_purpose", Detail: "Say what the value of the secret is needed for."}

// ErrTampered is returned when a secret's row is not as it was written.
var ErrTampered = &estover.Error{Kind: estover.Fault, Code: "secret_tampered", Detail: "The secret in the database is not as it was written, so it is not used. Restore it from a backup and find out who changed it."}

// A Risk says how much harm a leak would do, and so how often to rotate.
type Risk string

// The risks.
const (
	Low      Risk = "low"
	Standard Risk = "standard"
	High     Risk = "high"
)

// A Spec is what one says of a secret.
type Spec struct {
	Path         string          `json:"path"`         // crm/api-key
	Class        estover.Class   `json:"class"`        // of the data that it opens; confidential if empty
	Risk         Risk            `json:"risk"`         // standard if empty
	Owner        estover.Subject `json:"owner"`        // who answers for it; the one who creates it if empty
	Destinations []string        `json:"destinations"` // host or host:port, exact; 443 without a port
	Description  string          `json:"description"`
	Keep
	Custom map[string]string `json:"custom_metadata,omitempty"` // whatever its owner wants to remember of it
}

// A Secret is what there is to know of a secret without its values.
type Secret struct {
	ID string `json:"id"`
	Spec
	CurrentVersion int64     `json:"current_version"` // what is used: the newest, but of a rotated secret; 0 before the first
	Link           *Link     `json:"link,omitempty"`  // where its value lives, if that is not here
	CreatedAt      time.Time `json:"created_at"`
	UpdatedAt      time.Time `json:"updated_at"`
}

// A State is where a version is in its life.
type State string

// The states of a version.
const (
	Live      State = "live"
	Deleted   State = "deleted"
	Destroyed State = "destroyed"
)

// A Version is what there is to know of a version without its values.
type Version struct {
	ID          string          `json:"id"`      // sec_…@3
	N           int64           `json:"version"` // 3
	State       State           `json:"state"`
	Fields      []string        `json:"fields"` // their names
	CreatedAt   time.Time       `json:"created_at"`
	CreatedBy   estover.Subject `json:"created_by"`
	DeletedAt   time.Time       `json:"deleted_at,omitzero"`
	DestroyedAt time.Time       `json:"destroyed_at,omitzero"`

	// Of a secret whose versions a rotation makes.
	Phase      Phase     `json:"phase,omitempty"`
	Slot       string    `json:"slot,omitempty"`       // the one of its two users, a or b, that logs in with it
	GraceUntil time.Time `json:"grace_until,omitzero"` // how long a previous version is kept at least

	DeleteAt time.Time `json:"delete_at,omitzero"` // when it is deleted by itself

	Origin string `json:"origin,omitempty"` // the version in another vault that it is a copy of

	sealed []byte
}

// VersionID names a version of a secret wherever it is shown or recorded.
func VersionID(secret string, n int64) string { return secret + "@" + strconv.FormatInt(n, 10) }

// DefaultField is the field of a secret that has only one.
const DefaultField = "value"

// Options are what a program may set. The zero value is good.
type Options struct {
	// FlushEvery is how often [Secrets.Run] writes what was used. 1 s if zero.
	FlushEvery time.Duration
	// Standing says why this node may not use rotated secrets, if it may not: it
	// counts as gone for who retires their versions. Nil says that it may.
	Standing func() error
	// Fresh sees to it that the current version of a secret with a [Link] is the one
	// of the other vault, or says why that is not known. It calls before, if that is
	// not nil, before it asks there. Nil: no secret has a link.
	Fresh  func(ctx context.Context, tenant estover.TenantID, s Secret, before func() error) error
	Logger *slog.Logger
}

// Secrets are the secrets of all tenants. It is safe for use by many at once.
type Secrets struct {
	guard  *guard.Guard
	sealer *seal.Sealer
	o      Options
	copies *guard.Cache[*held]         // by path
	class  *guard.Cache[estover.Class] // by path, which outlives what is written

	mu      sync.Mutex
	uses    map[useKey]tally // since the last flush
	carried map[useKey]int64 // what is open at the moment

	flushing sync.Mutex
}

// Holding is where the values of secrets lie, for [seal.Sealer.Hold].
var Holding = seal.Holding{
	Class: seal.KV, Table: "secret_version", Sealed: "sealed", ID: "secret_id", Version: "version", Created: "created_at",
}

// New keeps secrets behind the door g.
func New(g *guard.Guard, s *seal.Sealer, o Options) *Secrets {
	if o.FlushEvery == 0 {
		o.FlushEvery = time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	x := &Secrets{guard: g, sealer: s, o: o, uses: map[useKey]tally{}, carried: map[useKey]int64{}}
	x.copies = guard.NewCache(g, "secret_path", func(ctx context.Context, tx *db.Tx, path string) (*held, error) {
		r, err := find(ctx, tx, unescape(path))
		if err != nil {
			return nil, err
		}
		return x.hold(tx.Tenant(), r)
	})
	x.class = guard.NewCache(g, saidOf, func(ctx context.Context, tx *db.Tx, path string) (estover.Class, error) {
		r, err := find(ctx, tx, unescape(path))
		if err != nil {
			return "", err
		}
		return r.Class, x.verify(tx.Tenant(), r)
	})
	return x
}

// saidOf names copies of what is said of a secret, in touches.
const saidOf = "secret_spec"

// Create makes a secret without a version.
func (s *Secrets) Create(ctx context.Context, c estover.Caller, spec Spec) (Secret, error) {
	if spec.Owner == "" {
		spec.Owner = c.Subject
	}
	spec, invalid := spec.check()
	if err := s.sealer.Prepare(ctx, c.Tenant); err != nil {
		return Secret{}, err
	}
	now := s.guard.DB().Now()
	r := &record{Secret: Secret{ID: estover.NewID("sec"), Spec: spec, CreatedAt: now, UpdatedAt: now}, epoch: 1, past: &past{}}
	r.mac = s.mac(c.Tenant, r)
	op := guard.Op{Action: "secret.create", Target: target(spec.Path), Detail: map[string]any{"secret": r.ID, "spec": spec}}
	err := s.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if invalid != nil {
			return invalid
		}
		tx.Touch("secret", r.ID)
		tx.Touch("secret_path", escape(spec.Path))
		return insert(ctx, tx.Tx, r)
	})
	if err != nil {
		return Secret{}, err
	}
	return r.Secret, nil
}

// A Change says what to change of a secret; nil leaves things as they are.
type Change struct {
	Class        *estover.Class   `json:"class,omitempty"`
	Risk         *Risk            `json:"risk,omitempty"`
	Owner        *estover.Subject `json:"owner,omitempty"`
	Destinations *[]string        `json:"destinations,omitempty"`
	Description  *string          `json:"description,omitempty"`

	MaxVersions *int64             `json:"max_versions,omitempty"`
	CASRequired *bool              `json:"cas_required,omitempty"`
	DeleteAfter *Duration          `json:"delete_version_after,omitempty"`
	Custom      *map[string]string `json:"custom_metadata,omitempty"`
	Merge       map[string]*string `json:"merge_custom_metadata,omitempty"` // into what there is; a null takes one away
}

// Update changes what is said of a secret. Destinations are added, and the
// owner is changed, by the owner or an administrator.
func (s *Secrets) Update(ctx context.Context, c estover.Caller, path string, change Change) (Secret, error) {
	op := guard.Op{Action: "secret.update", Target: target(path), Detail: map[string]any{"change": change}}
	r, err := s.change(ctx, c, op, path, func(r *record) (*write, error) {
		before := r.Spec
		set(&r.Class, change.Class)
		set(&r.Risk, change.Risk)
		set(&r.Owner, change.Owner)
		set(&r.Destinations, change.Destinations)
		set(&r.Description, change.Description)
		set(&r.MaxVersions, change.MaxVersions)
		set(&r.CASRequired, change.CASRequired)
		set(&r.DeleteAfter, change.DeleteAfter)
		set(&r.Custom, change.Custom)
		r.Custom = merged(r.Custom, change.Merge)
		spec, err := r.check()
		if err != nil {
			return nil, err
		}
		r.Spec = spec
		more := slices.ContainsFunc(spec.Destinations, func(d string) bool { return !slices.Contains(before.Destinations, d) })
		if (more || spec.Owner != before.Owner) && c.Subject != before.Owner && !c.Has(estover.Admin) && c.Subject.Kind() != estover.SystemKind {
			return nil, ErrNotOwner
		}
		return &write{said: true}, nil
	})
	if err != nil {
		return Secret{}, err
	}
	return r.Secret, nil
}

func set[T any](v, to *T) {
	if to != nil {
		*v = *to
	}
}

// Any is the expectation of a write that replaces whatever is there.
const Any int64 = -1

// Write makes a version of these fields the current one. It expects that the
// current version is this one: 0 if there must be none yet, [Any] if it does
// not matter. The values are copied.
func (s *Secrets) Write(ctx context.Context, c estover.Caller, path string, fields map[string]estover.Secret, expect int64) (Version, error) {
	names, plain, invalid := encode(fields)
	defer clear(plain)
	_, v, err := s.put(ctx, c, path, Put{Expect: expect}, func(*record) (*content, error) {
		return &content{names: names, plain: plain, texts: fields}, invalid
	})
	return v, err
}

// Newest stands for the current version among those to delete or destroy.
const Newest int64 = 0

// Delete takes versions out of use. They can be brought back.
func (s *Secrets) Delete(ctx context.Context, c estover.Caller, path string, versions ...int64) error {
	return s.move(ctx, c, guard.Op{Action: "secret.delete", Effect: guard.Deletes}, path, versions, func(v *Version, now time.Time) {
		if v.State == Live {
			v.State, v.DeletedAt = Deleted, now
		}
	})
}

// Undelete brings deleted versions back.
func (s *Secrets) Undelete(ctx context.Context, c estover.Caller, path string, versions ...int64) error {
	return s.move(ctx, c, guard.Op{Action: "secret.undelete"}, path, versions, func(v *Version, _ time.Time) {
		if v.State == Deleted {
			v.State, v.DeletedAt, v.DeleteAt = Live, time.Time{}, time.Time{}
		}
	})
}

// Destroy erases the values of versions.
func (s *Secrets) Destroy(ctx context.Context, c estover.Caller, path string, versions ...int64) error {
	return s.move(ctx, c, guard.Op{Action: "secret.destroy", Effect: guard.Deletes}, path, versions, destroy)
}

func destroy(v *Version, now time.Time) {
	if v.State != Destroyed {
		v.State, v.DestroyedAt = Destroyed, now
	}
}

func (s *Secrets) move(ctx context.Context, c estover.Caller, op guard.Op, path string, versions []int64, to func(*Version, time.Time)) error {
	op.Target, op.Detail = target(path), map[string]any{"versions": versions}
	_, err := s.change(ctx, c, op, path, func(r *record) (*write, error) {
		if len(versions) == 0 {
			return nil, ErrInvalid.With("Say which versions of the secret are meant.")
		}
		for _, n := range versions {
			if n == Newest {
				n = r.CurrentVersion
			}
			v := r.version(n)
			if v == nil {
				return nil, ErrNoVersion.With("The secret %s has no version %d.", path, n)
			}
			*v = v.at(r.UpdatedAt)
			to(v, r.UpdatedAt)
		}
		return &write{}, nil
	})
	return err
}

// Remove destroys all versions of a secret and ends it. Its path is free.
func (s *Secrets) Remove(ctx context.Context, c estover.Caller, path string) error {
	op := guard.Op{Action: "secret.remove", Target: target(path), Effect: guard.Deletes}
	_, err := s.change(ctx, c, op, path, func(r *record) (*write, error) {
		if r.managed() {
			return nil, ErrManaged.With("The secret %s is rotated. End its rotation first: estover rotation remove %s", path, path)
		}
		for i := range r.versions {
			destroy(&r.versions[i], r.UpdatedAt)
		}
		r.ended = r.UpdatedAt
		return &write{said: true}, nil
	})
	return err
}

// A write is what a change stores beside the secret's own row and the states
// of its versions.
type write struct {
	version *Version
	prints  []fingerprint
	said    bool // what is said of the secret may be otherwise
	limited bool // the oldest versions are taken away when there are too many
	note    map[string]any
	then    func(tx *guard.Tx) error // more that is changed along with it
}

// A fingerprint is what is kept of a value to recognise it by.
type fingerprint struct {
	field  string
	digest []byte
}

// errStale says that a secret changed between being read and being written.
var errStale = errors.New("the secret has changed in the meantime")

// maxAttempts is how often a change is planned again when another one came
// before it.
const maxAttempts = 32

// change reads a secret, has plan change a copy of it, and stores the copy if
// the secret is still as it was read. Whatever costs time, sealing and MACs,
// is done before the transaction; whatever plan finds wrong is told only to
// who may do the operation.
func (s *Secrets) change(ctx context.Context, c estover.Caller, op guard.Op, path string, plan func(*record) (*write, error)) (*record, error) {
	return s.changed(ctx, c, op, path, s.readAll, plan)
}

// changed is a change for which so much of the secret is read at first. It is
// all versions if plan returns [errWhole].
func (s *Secrets) changed(ctx context.Context, c estover.Caller, op guard.Op, path string, read func(context.Context, estover.TenantID, string) (*record, error), plan func(*record) (*write, error)) (*record, error) {
	for range maxAttempts {
		before, err := read(ctx, c.Tenant, path)
		var after *record
		var w *write
		if err == nil {
			after = before.copy()
			after.epoch++
			after.UpdatedAt = s.guard.DB().Now()
			w, err = plan(after)
		}
		if errors.Is(err, errWhole) {
			read = s.readAll
			continue
		}
		if err == nil {
			after.settle(w.limited)
			after.mac = s.mac(c.Tenant, after)
		}
		done := s.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
			if err != nil {
				return err
			}
			tx.Note("secret", after.ID)
			for k, v := range w.note {
				tx.Note(k, v)
			}
			tx.Touch("secret", after.ID)
			tx.Touch("secret_path", escape(path))
			if w.said {
				tx.Touch(saidOf, escape(path))
			}
			if err := replace(ctx, tx.Tx, before, after, w); err != nil || w.then == nil {
				return err
			}
			return w.then(tx)
		})
		if !errors.Is(done, errStale) {
			return after, done
		}
	}
	return nil, db.ErrUnavailable.Because(errStale)
}

// readAll loads a secret with all its versions and the sealed bytes of the current
// one.
func (s *Secrets) readAll(ctx context.Context, tenant estover.TenantID, path string) (*record, error) {
	return s.load(ctx, tenant, path, func(tx *db.Tx, r *record) error {
		if err := complete(ctx, tx, r); err != nil {
			return err
		}
		return loadSealed(ctx, tx, r, r.CurrentVersion)
	})
}

// readLast loads a secret with its current version, which must be the newest.
func (s *Secrets) readLast(ctx context.Context, tenant estover.TenantID, path string) (*record, error) {
	r, err := s.read(ctx, tenant, path, 0)
	if err == nil && r.past.newest() > r.CurrentVersion {
		return s.readAll(ctx, tenant, path)
	}
	return r, err
}

// read loads a secret, with the sealed bytes of one version (the current one
// if n is 0), and checks that it is as it was written. Of the others it has the
// versions only if that is not the current one.
func (s *Secrets) read(ctx context.Context, tenant estover.TenantID, path string, n int64) (*record, error) {
	if n == 0 {
		return s.readCurrent(ctx, tenant, path)
	}
	return s.load(ctx, tenant, path, func(tx *db.Tx, r *record) error {
		if n == r.CurrentVersion {
			return nil
		}
		if err := complete(ctx, tx, r); err != nil {
			return err
		}
		return loadSealed(ctx, tx, r, n)
	})
}

// readCurrent is what most who read want: one statement for all of it, unless the
// row is of the first form.
func (s *Secrets) readCurrent(ctx context.Context, tenant estover.TenantID, path string) (r *record, err error) {
	if err := s.sealer.Prepare(ctx, tenant); err != nil {
		return nil, err
	}
	err = s.guard.DB().Look(ctx, tenant, func(tx *db.Tx) error {
		r, err = findCurrent(ctx, tx, path)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case r.past == nil:
		return s.load(ctx, tenant, path, func(*db.Tx, *record) error { return nil })
	}
	return r, s.verify(tenant, r)
}

func (s *Secrets) load(ctx context.Context, tenant estover.TenantID, path string, more func(*db.Tx, *record) error) (r *record, err error) {
	if err := s.sealer.Prepare(ctx, tenant); err != nil {
		return nil, err
	}
	err = s.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		if r, err = find(ctx, tx, path); err != nil {
			return err
		}
		return more(tx, r)
	})
	if err != nil {
		return nil, err
	}
	return r, s.verify(tenant, r)
}

// Get is a secret without its values.
func (s *Secrets) Get(ctx context.Context, c estover.Caller, path string) (Secret, error) {
	r, err := s.seen(ctx, c, path, false)
	if err != nil {
		return Secret{}, err
	}
	return r.Secret, nil
}

// Versions are the versions of a secret without their values, the newest
// first.
func (s *Secrets) Versions(ctx context.Context, c estover.Caller, path string) ([]Version, error) {
	r, err := s.seen(ctx, c, path, true)
	if err != nil {
		return nil, err
	}
	return r.shown(), nil
}

// Show is a secret and its versions without their values, the newest first.
func (s *Secrets) Show(ctx context.Context, c estover.Caller, path string) (Secret, []Version, error) {
	r, err := s.seen(ctx, c, path, true)
	if err != nil {
		return Secret{}, nil, err
	}
	return r.Secret, r.shown(), nil
}

// shown are the versions as they are at the moment, the newest first.
func (r *record) shown() []Version {
	list := make([]Version, 0, len(r.versions))
	for _, v := range slices.Backward(r.versions) {
		list = append(list, v.at(r.seen))
	}
	return list
}

func (s *Secrets) seen(ctx context.Context, c estover.Caller, path string, all bool) (r *record, err error) {
	if err := s.sealer.Prepare(ctx, c.Tenant); err != nil {
		return nil, err
	}
	err = s.guard.Read(ctx, c, guard.Op{Action: "secret.list", Target: target(path)}, func(tx *db.Tx) error {
		if r, err = find(ctx, tx, path); err != nil || !all {
			return err
		}
		return complete(ctx, tx, r)
	})
	if err != nil {
		return nil, err
	}
	return r, s.verify(c.Tenant, r)
}

// List gives the secrets below a prefix in the order of their paths: at most
// limit of them, after the path that the page before ended with.
func (s *Secrets) List(ctx context.Context, c estover.Caller, prefix, after string, limit int) (list []Secret, err error) {
	if err := s.sealer.Prepare(ctx, c.Tenant); err != nil {
		return nil, err
	}
	var found []*record
	err = s.guard.Read(ctx, c, guard.Op{Action: "secret.list"}, func(tx *db.Tx) error {
		found, err = findBelow(ctx, tx, prefix, after, limit)
		return err
	})
	if err != nil {
		return nil, err
	}
	list = make([]Secret, 0, len(found))
	for _, r := range found {
		if err := s.verify(c.Tenant, r); err != nil {
			return nil, err
		}
		list = append(list, r.Secret)
	}
	return list, nil
}

// Describe is a secret without its values, from a copy in memory: for whoever
// decides, and for nobody who has not been decided on.
func (s *Secrets) Describe(ctx context.Context, tenant estover.TenantID, path string) (Secret, error) {
	h, err := s.held(ctx, tenant, path)
	if err != nil {
		return Secret{}, err
	}
	return h.Secret, nil
}

// Class is the class of what a secret opens, from a copy in memory that a new
// version leaves as it is: for whoever decides.
func (s *Secrets) Class(ctx context.Context, tenant estover.TenantID, path string) (estover.Class, error) {
	if err := s.sealer.Prepare(ctx, tenant); err != nil {
		return "", err
	}
	return s.class.Get(ctx, tenant, escape(path))
}

// A record is a secret with its versions, as it is stored.
type record struct {
	Secret
	epoch    int64
	ended    time.Time
	seen     time.Time // when it was read
	mac      []byte
	past     *past     // what the row says of other versions; nil in one of the first form, whose MAC is over all
	partial  bool      // of the versions that there were only the current one is here
	versions []Version // the oldest first
	gone     []int64   // versions that are not here and are taken away
}

func (r *record) copy() *record {
	c := *r
	c.versions = slices.Clone(r.versions)
	return &c
}

// version is the version of that number, or nil.
func (r *record) version(n int64) *Version {
	for i := range r.versions {
		if r.versions[i].N == n {
			return &r.versions[i]
		}
	}
	return nil
}

func (v *Version) aad(secret string) seal.AAD {
	return seal.AAD{Class: seal.KV, ID: secret, Version: v.N, Created: v.CreatedAt}
}

// mac is the MAC of a record: over all that its row holds, the state of its
// current version, and the digests of the others.
func (s *Secrets) mac(tenant estover.TenantID, r *record) []byte {
	b := make([]byte, 0, 512)
	text := func(list ...string) { b = appendTexts(b, list...) }
	number := func(n int64) { b = binary.BigEndian.AppendUint64(b, uint64(n)) }
	text(r.ID, r.Path, string(r.Class), string(r.Risk), string(r.Owner), r.Description)
	text(r.Destinations...)
	number(r.CurrentVersion)
	number(r.CreatedAt.UnixMicro())
	number(r.UpdatedAt.UnixMicro())
	number(r.epoch)
	use := "secret.row"
	if r.past == nil {
		for i := range r.versions {
			b = r.versions[i].append(b)
		}
	} else {
		use = "secret.row.past"
		b = appendTexts(b, string(r.past.bytes()))
		if v := r.version(r.CurrentVersion); v != nil {
			b = v.append(b)
		}
	}
	if r.Keep != (Keep{}) || len(r.Custom) > 0 { // what is not said is not in it, as before it could be said
		number(r.MaxVersions)
		number(int64(r.DeleteAfter))
		text("\x00keep", strconv.FormatBool(r.CASRequired))
		for _, k := range slices.Sorted(maps.Keys(r.Custom)) {
			text(k, r.Custom[k])
		}
	}
	if r.Link != nil {
		text("\x00link", r.Link.Store, r.Link.Path, r.Link.TTL.String())
	}
	return s.sealer.MAC(tenant, use, b)
}

// append writes all that is said of a version, for MACs and digests.
func (v *Version) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(v.N))
	b = binary.BigEndian.AppendUint64(b, uint64(v.CreatedAt.UnixMicro()))
	list := append([]string{string(v.State), string(v.CreatedBy)}, v.Fields...)
	if v.Phase != "" { // no field has such a name
		list = append(list, "\x00phase", string(v.Phase), v.Slot, strconv.FormatInt(micros(v.GraceUntil), 10))
	}
	if !v.DeleteAt.IsZero() {
		list = append(list, "\x00delete", strconv.FormatInt(micros(v.DeleteAt), 10))
	}
	if v.Origin != "" {
		list = append(list, "\x00origin", v.Origin)
	}
	return appendTexts(b, list...)
}

// appendTexts writes texts so that no others read the same.
func appendTexts(b []byte, list ...string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(list)))
	for _, t := range list {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(t))), t...)
	}
	return b
}

// micros is a time as it is stored; 0 for none.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

var (
	fieldName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)
	hostName  = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
)

// check fills in what a spec leaves open and says what is wrong with it.
func (p Spec) check() (Spec, error) {
	if p.Class == "" {
		p.Class = estover.Confidential
	}
	if p.Risk == "" {
		p.Risk = Standard
	}
	switch {
	case p.Class.Rank() < 0:
		return p, ErrInvalid.With("The class of a secret is one of %v, not %q.", estover.Classes, p.Class)
	case p.Risk != Low && p.Risk != Standard && p.Risk != High:
		return p, ErrInvalid.With("The risk of a secret is low, standard or high, not %q.", p.Risk)
	case p.Owner.ID() == "" || p.Owner.Kind() != estover.UserKind && p.Owner.Kind() != estover.SystemKind:
		return p, ErrInvalid.With("The owner of a secret is a person (user:…), not %q.", p.Owner)
	case len(p.Description) > 1000:
		return p, ErrInvalid.With("The description of a secret has at most 1000 bytes.")
	case len(p.Destinations) > 100:
		return p, ErrInvalid.With("A secret has at most 100 destinations.")
	}
	if err := p.checkKeep(); err != nil {
		return p, err
	}
	if err := checkPath(p.Path); err != nil {
		return p, err
	}
	list := make([]string, 0, len(p.Destinations))
	for _, d := range p.Destinations {
		one, err := destination(d)
		if err != nil {
			return p, err
		}
		list = append(list, one)
	}
	slices.Sort(list)
	p.Destinations = slices.Compact(list)
	return p, nil
}

func checkPath(path string) error {
	bad := ErrInvalid.With("The path of a secret is made of words with slashes between them, such as crm/api-key: not %q.", path)
	// Of all that Unicode calls a space only the plain one: events name paths in
	// lists of words, by which other nodes drop their copies.
	strange := func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) && r != ' ' }
	if path == "" || len(path) > 512 || !utf8.ValidString(path) || strings.ContainsFunc(path, strange) || strings.Contains(path, "#") {
		return bad
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." {
			return bad
		}
	}
	return nil
}

// destination is a host and its port in the one form in which they are
// compared: host:port, in small letters.
func destination(d string) (string, error) {
	host, port, err := net.SplitHostPort(d)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(d, "["), "]"), "443"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return "", ErrInvalid.With("The destination %q has no port that there is.", d)
	}
	if ip := net.ParseIP(host); ip != nil {
		return net.JoinHostPort(ip.String(), port), nil
	}
	if host = strings.ToLower(host); len(host) > 253 || !hostName.MatchString(host) {
		return "", ErrInvalid.With("The destination %q is not a host or host:port. Patterns are not allowed.", d)
	}
	return net.JoinHostPort(host, port), nil
}

// target is a secret as events and policies name it.
func target(path string) string { return "secret:" + path }

// A touch is a word among others, so blanks in paths are written otherwise.
var (
	escaper   = strings.NewReplacer("%", "%25", " ", "%20")
	unescaper = strings.NewReplacer("%25", "%", "%20", " ")
)

func escape(path string) string   { return escaper.Replace(path) }
func unescape(path string) string { return unescaper.Replace(path) }
