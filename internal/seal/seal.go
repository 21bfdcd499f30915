// Package seal keeps what must not be read in the database: values are sealed
// under a chain of keys, of which only the first lies outside of it, and the
// keys that sign are made, rotated and given out here.
//
// # The chain
//
//	root key        from a [Source]: a file, a passphrase. One or several at once.
//	└─ KEK          versions, of the installation; each wrapped under every root key
//	   └─ DEK       versions, of one tenant and one class; wrapped under a KEK
//	      └─ value  sealed with AES-256-GCM under a random nonce
//
// A sealed value is
//
//	0x01 | DEK version, 4 bytes | nonce, 12 bytes | ciphertext | tag, 16 bytes
//
// and is bound by its additional data to these first five bytes, the tenant,
// the class, and the id, version and time of creation of what it belongs to
// ([AAD]). A value that was moved to another row, another organisation or back
// to another version does not open. Whole rows that are put back as they were
// are for their owners to notice; [Sealer.MAC] gives the key for that.
//
// # Rotation
//
// A DEK is replaced after 90 days or 2³¹ messages, whichever is first; the
// bound for random nonces is 2³². Messages are counted in blocks that a node
// reserves in the database before it uses them, so that sealing needs no I/O
// and a crash can only make the count too high. On PostgreSQL a new version is
// used a minute after it was made, by when the sweeps of all nodes know it.
// [Sealer.Rewrap] reseals what lies under older versions, wherever it got to
// before, and deletes a version that nothing needs any more. A new KEK rewrites
// DEK rows only.
//
// Deleting the DEKs of a tenant makes everything of theirs unreadable:
// [Shred].
//
// # What happens where
//
// [Sealer.Prepare] loads or makes a tenant's keys and does I/O; after it,
// [Sealer.Seal], [Sealer.Open] and [Sealer.MAC] do none and are safe in
// parallel. None of them is called inside a transaction. [Sealer.Sweep], run
// every ten seconds or so on every node, picks up what other nodes made, sets
// messages aside and rotates what is due.
package seal

import (
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

// A Class separates what is sealed: each has data keys of its own.
type Class string

// The classes.
const (
	KV        Class = "kv"        // static secrets
	Lease     Class = "lease"     // what a lease still has to hand out
	PKI       Class = "pki"       // private keys of certificate authorities
	Transit   Class = "transit"   // keys that encrypt for others
	Recording Class = "recording" // bodies of recorded traffic
	Audit     Class = "audit"     // payloads of events
	Signing   Class = "signing"   // our own signing keys
	Token     Class = "token"     // what the token service keeps for a moment, such as a successor that may be asked for again
)

// pepper is the class whose key MACs are derived from. It is never rotated:
// what was stored under it could not be found any more.
const pepper Class = "pepper"

// classes are those that every tenant has.
var classes = []Class{KV, Lease, PKI, Transit, Recording, Audit, Signing, Token, pepper}

// An AAD says what a sealed value belongs to. It is not stored with the value:
// whoever opens it says it again.
type AAD struct {
	Class   Class
	ID      string    // of the thing; never a path or a name, which may change
	Version int64     // of the thing; 0 if it has none
	Created time.Time // in whole microseconds; zero if it is of no matter
}

// ErrBroken is returned for a value that does not open: it was changed, or it
// belongs to something else.
var ErrBroken = &estover.Error{Kind: estover.Fault, Code: "seal_broken", Detail: "A sealed value does not open: it was changed, or moved here from another place."}

// ErrNoKey is returned for a value whose data key is not known here: another
// node has just made it, or it has been destroyed.
var ErrNoKey = &estover.Error{Kind: estover.Unavailable, Code: "data_key_unknown", Detail: "The key of a sealed value is not known here. If it stays so, it has been destroyed."}

// ErrUsedUp is returned when more was sealed between two sweeps than had been
// set aside.
var ErrUsedUp = &estover.Error{Kind: estover.Unavailable, Code: "data_key_used_up", Detail: "No further value can be sealed until the next sweep. Try again."}

const (
	format    = 1       // the first byte of a sealed value
	headerLen = 5       // the format and the version
	overhead  = 12 + 16 // nonce and tag
	keyLen    = 32      // bytes of every key
	block     = 1 << 22 // messages that a node sets aside at a time
	maxUse    = 1 << 31 // messages under one DEK
)

// maxAge is how long a DEK seals.
const maxAge = 90 * 24 * time.Hour

// A slot is what a ring of keys is for.
type slot struct {
	tenant estover.TenantID
	class  Class
}

// A dek is one version of a data key.
type dek struct {
	version uint32
	created time.Time
	from    time.Time
	aead    cipher.AEAD
	left    atomic.Int64 // messages that are set aside for this node

	// Of the pepper alone: the key itself, and what was derived from it.
	raw     []byte
	derived sync.Map // name of a use → *maker
}

// A ring is the versions of one slot, the oldest first. It never changes.
type ring []*dek

// current is the version that seals at an instant.
func (r ring) current(now time.Time) *dek {
	for _, k := range slices.Backward(r) {
		if !k.from.After(now) {
			return k
		}
	}
	return nil
}

// find is the version of that number.
func (r ring) find(version uint32) *dek {
	for _, k := range slices.Backward(r) {
		if k.version == version {
			return k
		}
	}
	return nil
}

// A Sealer seals and opens. It is safe for use by many at once.
type Sealer struct {
	db *db.DB

	loading sync.Mutex // one reload at a time
	roots   map[string]*wrapKey
	keks    map[int64]*wrapKey

	rings    atomic.Pointer[map[slot]ring] // replaced as a whole
	holdings []Holding
}

// ring is what is known of a slot.
func (s *Sealer) ring(tenant estover.TenantID, class Class) ring {
	return (*s.rings.Load())[slot{tenant, class}]
}

// Seal encrypts a value. The tenant must have been prepared.
func (s *Sealer) Seal(tenant estover.TenantID, aad AAD, plaintext []byte) ([]byte, error) {
	k := s.ring(tenant, aad.Class).current(s.db.Now())
	if k == nil || k.raw != nil {
		return nil, fmt.Errorf("sealing a value of class %q: %w", aad.Class, ErrNoKey)
	}
	if k.left.Add(-1) < 0 {
		k.left.Add(1)
		return nil, ErrUsedUp
	}
	out := make([]byte, headerLen, headerLen+overhead+len(plaintext))
	out[0] = format
	binary.BigEndian.PutUint32(out[1:], k.version)
	room := rooms.Get().(*[]byte)
	defer rooms.Put(room)
	*room = additional((*room)[:0], out, tenant, aad)
	return k.aead.Seal(out, nil, plaintext, *room), nil
}

// Open decrypts a value that was sealed for the same tenant and the same AAD.
func (s *Sealer) Open(tenant estover.TenantID, aad AAD, sealed []byte) (plaintext []byte, err error) {
	if len(sealed) < headerLen+overhead || sealed[0] != format {
		return nil, ErrBroken
	}
	k := s.ring(tenant, aad.Class).find(binary.BigEndian.Uint32(sealed[1:]))
	if k == nil || k.raw != nil {
		return nil, fmt.Errorf("opening a value of class %q: %w", aad.Class, ErrNoKey)
	}
	room := rooms.Get().(*[]byte)
	defer rooms.Put(room)
	*room = additional((*room)[:0], sealed, tenant, aad) // nothing of it is secret, and to make things under protection is dear
	protect(func() {
		plaintext, err = k.aead.Open(nil, nil, sealed[headerLen:], *room)
	})
	if err != nil {
		return nil, ErrBroken
	}
	return plaintext, nil
}

// rooms are where it is written what a value is bound to, as long as it is sealed
// or opened.
var rooms = sync.Pool{New: func() any { b := make([]byte, 0, 192); return &b }}

// additional writes the data that a value is bound to, each part with its length
// before it, so that no two values share one.
func additional(b, header []byte, tenant estover.TenantID, aad AAD) []byte {
	b = append(b, header[:headerLen]...)
	b = appendString(b, string(tenant))
	b = appendString(b, string(aad.Class))
	b = appendString(b, aad.ID)
	b = appendInt(b, aad.Version)
	var created int64
	if !aad.Created.IsZero() {
		created = aad.Created.UnixMicro()
	}
	return appendInt(b, created)
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

func appendInt(b []byte, n int64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(b, 8), uint64(n))
}

// MAC is HMAC-SHA-256 under a key of the tenant for this use alone, such as
// the stored form of a client's secret. Compare with [hmac.Equal]. A tenant
// that was not prepared is a fault of ours, and it panics.
func (s *Sealer) MAC(tenant estover.TenantID, name string, msg []byte) []byte {
	k := s.ring(tenant, pepper).current(farFuture)
	if k == nil {
		panic("seal: a MAC for a tenant that was not prepared")
	}
	sum := make([]byte, 0, sha256.Size)
	protect(func() {
		m, ok := k.derived.Load(name)
		if !ok {
			key, err := hkdf.Key(sha256.New, k.raw, nil, "estover mac "+name, keyLen)
			if err != nil {
				panic("seal: HKDF of a fixed length: " + err.Error())
			}
			m, _ = k.derived.LoadOrStore(name, &maker{key: key})
		}
		sum = m.(*maker).mac(sum, msg)
	})
	return sum
}

// A maker makes the MACs of one use. The states that hold its key are used
// again: to make them took most of the time, and whatever is allocated while
// key material is handled costs much more than elsewhere, since it is erased.
type maker struct {
	key    []byte
	states sync.Pool // of hash.Hash
}

func (m *maker) mac(sum, msg []byte) []byte {
	h, ok := m.states.Get().(hash.Hash)
	if !ok {
		h = hmac.New(sha256.New, m.key)
	}
	h.Write(msg)
	sum = h.Sum(sum)
	h.Reset()
	m.states.Put(h)
	return sum
}

// farFuture is after every time of a key.
var farFuture = time.UnixMicro(math.MaxInt64)

// Prepare makes sure that the tenant's keys exist and are loaded. It costs
// nothing when they are.
func (s *Sealer) Prepare(ctx context.Context, tenant estover.TenantID) error {
	if s.ring(tenant, pepper) != nil {
		return nil
	}
	return s.Reload(ctx, tenant)
}

// Reload reads the tenant's keys again, and makes those that are missing.
func (s *Sealer) Reload(ctx context.Context, tenant estover.TenantID) error {
	s.loading.Lock()
	defer s.loading.Unlock()
	return s.refresh(ctx, tenant, "")
}

// RotateDEK gives the tenant's class a new data key. What is sealed with the
// old ones still opens, until [Sealer.Rewrap] has moved it.
func (s *Sealer) RotateDEK(ctx context.Context, tenant estover.TenantID, class Class) error {
	if class == pepper || !slices.Contains(classes, class) {
		return fmt.Errorf("seal: there is no rotation of %q", class)
	}
	s.loading.Lock()
	defer s.loading.Unlock()
	return s.refresh(ctx, tenant, class)
}

// Newest is the version of the data key under which values of a tenant's class are
// sealed, and since when; 0 if the tenant is not prepared.
func (s *Sealer) Newest(tenant estover.TenantID, class Class) (version int64, since time.Time) {
	k := s.ring(tenant, class).current(s.db.Now())
	if k == nil {
		return 0, time.Time{}
	}
	return int64(k.version), k.created
}

// Sweep brings every prepared tenant up to date: it loads what other nodes
// made, sets messages aside, and rotates data keys that are due.
func (s *Sealer) Sweep(ctx context.Context) error {
	s.loading.Lock()
	defer s.loading.Unlock()
	for _, tenant := range s.tenants() {
		if err := s.refresh(ctx, tenant, ""); err != nil {
			return fmt.Errorf("sweeping the keys of tenant %s: %w", tenant, err)
		}
	}
	return nil
}

// tenants are those that were prepared here.
func (s *Sealer) tenants() []estover.TenantID {
	var list []estover.TenantID
	for at := range *s.rings.Load() {
		if at.class == pepper {
			list = append(list, at.tenant)
		}
	}
	slices.Sort(list)
	return list
}

// Shred destroys the tenant's data keys and signing keys, in a transaction of
// whatever tenant; [Sealer.Shredded] hears of the commit. Nothing that was
// sealed for them can be opened again, here or from a copy of the database
// made later; copies made earlier hold the keys for as long as they are kept.
func Shred(ctx context.Context, tx *db.Tx, tenant estover.TenantID) error {
	return errors.Join(deleteDEKs(ctx, tx, tenant), deleteSigningKeys(ctx, tx, tenant))
}

// Shredded forgets the keys of a tenant.
func (s *Sealer) Shredded(tenant estover.TenantID) {
	s.loading.Lock()
	defer s.loading.Unlock()
	s.install(tenant, nil)
}

// install replaces what is known of a tenant.
func (s *Sealer) install(tenant estover.TenantID, rings map[Class]ring) {
	next := map[slot]ring{}
	for at, r := range *s.rings.Load() {
		if at.tenant != tenant {
			next[at] = r
		}
	}
	for class, r := range rings {
		next[slot{tenant, class}] = r
	}
	s.rings.Store(&next)
}
