package seal

import (
	"bytes"
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

// installation is the tenant under which the keys of the installation stand.
const installation estover.TenantID = "*"

// spread is how long it takes at most until every node knows of a key that one
// of them has made: longer than the time between two sweeps.
const spread = time.Minute

// A wrapKey is a key that other keys are wrapped under.
type wrapKey struct{ aead cipher.AEAD }

// newAEAD is AES-256-GCM that chooses its nonces itself.
func newAEAD(key []byte) cipher.AEAD {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic("seal: a key of the wrong length: " + err.Error())
	}
	g, err := cipher.NewGCMWithRandomNonce(b)
	if err != nil {
		panic("seal: AES-GCM: " + err.Error())
	}
	return g
}

// wrap encrypts a key. What it is, and of whom, is bound to it.
func (k *wrapKey) wrap(key []byte, what ...string) []byte {
	return k.aead.Seal([]byte{format}, nil, key, wrapData(what))
}

func (k *wrapKey) unwrap(wrapped []byte, what ...string) ([]byte, error) {
	if len(wrapped) < 1 || wrapped[0] != format {
		return nil, ErrBroken
	}
	key, err := k.aead.Open(nil, nil, wrapped[1:], wrapData(what))
	if err != nil || len(key) != keyLen {
		return nil, ErrBroken
	}
	return key, nil
}

func wrapData(what []string) []byte {
	b := []byte{format}
	for _, w := range what {
		b = appendString(b, w)
	}
	return b
}

// rootKey makes a root key into what wraps, and the name it is known by.
func rootKey(key []byte) (id string, k *wrapKey) {
	protect(func() {
		name, err := hkdf.Key(sha256.New, key, nil, "estover root id", 16)
		if err != nil {
			panic("seal: HKDF of a fixed length: " + err.Error())
		}
		wrapping, err := hkdf.Key(sha256.New, key, nil, "estover root wrap", keyLen)
		if err != nil {
			panic("seal: HKDF of a fixed length: " + err.Error())
		}
		id, k = hex.EncodeToString(name), &wrapKey{newAEAD(wrapping)}
		clear(wrapping)
	})
	return id, k
}

// kekName is what a KEK is bound to.
func kekName(version int64, root string) []string {
	return []string{"kek", fmt.Sprint(version), root}
}

// dekName is what a DEK is bound to.
func dekName(tenant estover.TenantID, class Class, version int64) []string {
	return []string{"dek", string(tenant), string(class), fmt.Sprint(version)}
}

// Open opens the chain of keys in d with a root key. In a new database it
// makes the first ones. Further sources are other ways to the same keys, see
// [Sealer.AddRoot]; all that are given must fit.
func Open(ctx context.Context, d *db.DB, root Source, more ...Source) (*Sealer, error) {
	s := &Sealer{db: d, roots: map[string]*wrapKey{}, keks: map[int64]*wrapKey{}}
	s.rings.Store(&map[slot]ring{})
	for _, src := range append([]Source{root}, more...) {
		if err := s.enter(ctx, src); err != nil {
			return nil, err
		}
	}
	if err := s.loadKEKs(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// enter takes the root key of a source, and makes it that of the database if
// there is none.
func (s *Sealer) enter(ctx context.Context, src Source) error {
	rows, err := s.rootRows(ctx)
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		switch err := s.begin(ctx, src); {
		case err == nil:
			return nil
		case !db.Taken(err):
			return err
		}
		// Another node was faster: this is not a new database any more.
		if rows, err = s.rootRows(ctx); err != nil {
			return err
		}
	}
	var failed error
	for _, row := range rows {
		if row.kind != src.Kind() {
			continue
		}
		key, _, err := src.Root(ctx, row.params, false)
		if err != nil { // of several of one kind, another may be this source's
			failed = cmp.Or(failed, err)
			continue
		}
		id, k := rootKey(key)
		clear(key)
		if id == row.id {
			s.roots[id] = k
			return nil
		}
	}
	if failed != nil {
		return failed
	}
	kinds := map[string]bool{}
	for _, row := range rows {
		kinds[row.kind] = true
	}
	return ErrRoot.With("The root key from this %s is not one that the database was sealed under (from: %s). Give the one that it was made with; another opens nothing.",
		src.Kind(), slices.Sorted(maps.Keys(kinds)))
}

// begin makes the first KEK of a new database, wrapped under the source's key.
func (s *Sealer) begin(ctx context.Context, src Source) error {
	key, keep, err := src.Root(ctx, "", true)
	if err != nil {
		return err
	}
	id, k := rootKey(key)
	clear(key)
	var wrapped []byte
	protect(func() { wrapped = k.wrap(fresh(), kekName(1, id)...) })
	err = s.db.Do(ctx, installation, func(tx *db.Tx) error {
		if err := insertKEK(ctx, tx, 1); err != nil {
			return err
		}
		if err := insertRoot(ctx, tx, rootRow{id, src.Kind(), keep}); err != nil {
			return err
		}
		return insertWrap(ctx, tx, 1, id, wrapped)
	})
	if err == nil {
		s.roots[id] = k
	}
	return err
}

// fresh is a new random key.
func fresh() []byte {
	b := make([]byte, keyLen)
	_, _ = rand.Read(b)
	return b
}

func (s *Sealer) rootRows(ctx context.Context) (rows []rootRow, err error) {
	err = s.db.View(ctx, installation, func(tx *db.Tx) error {
		rows, err = findRoots(ctx, tx)
		return err
	})
	return rows, err
}

// loadKEKs reads the KEKs that are not known yet, and forgets those that are
// gone.
func (s *Sealer) loadKEKs(ctx context.Context) error {
	var rows []wrapRow
	err := s.db.View(ctx, installation, func(tx *db.Tx) (err error) {
		rows, err = findWraps(ctx, tx)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the key-encryption keys: %w", err)
	}
	next := map[int64]*wrapKey{}
	for _, row := range rows {
		root := s.roots[row.root]
		switch {
		case s.keks[row.version] != nil:
			next[row.version] = s.keks[row.version]
		case root != nil && next[row.version] == nil:
			protect(func() {
				var key []byte
				if key, err = root.unwrap(row.wrapped, kekName(row.version, row.root)...); err == nil {
					next[row.version] = &wrapKey{newAEAD(key)}
					clear(key)
				}
			})
			if err != nil {
				return fmt.Errorf("opening version %d of the key-encryption key: %w", row.version, err)
			}
		}
	}
	if len(next) == 0 {
		return ErrRootMissing.With("The database has no key-encryption key that this root key opens.")
	}
	s.keks = next
	return nil
}

// newestKEK is the version that keys are wrapped under from here on.
func (s *Sealer) newestKEK() int64 { return slices.Max(slices.Collect(maps.Keys(s.keks))) }

// A keyID is one version of a tenant's data key.
type keyID struct {
	class   Class
	version int64
}

// refresh brings what is known of a tenant up to date with the database, and
// the database with what the tenant needs: classes without a key, keys that
// are due or of the class to rotate, messages to set aside. s.loading is held.
func (s *Sealer) refresh(ctx context.Context, tenant estover.TenantID, rotate Class) error {
	if tenant == "" || tenant == installation {
		return fmt.Errorf("seal: there is no tenant %q", tenant)
	}
	have := map[Class]ring{}
	for _, class := range classes {
		have[class] = s.ring(tenant, class)
	}
	var granted []keyID // set aside for this node and not counted yet
	for range 4 {
		rows, err := s.readDEKs(ctx, tenant)
		if err != nil {
			return err
		}
		if have, err = s.unwrapAll(tenant, rows, have); err != nil {
			return err
		}
		for _, g := range granted {
			if k := have[g.class].find(uint32(g.version)); k != nil {
				k.left.Add(block)
			}
		}
		granted = nil
		makes, topUps := s.needs(rows, have, rotate)
		if len(makes) == 0 && len(topUps) == 0 {
			s.install(tenant, have)
			return nil
		}
		switch err := s.supply(ctx, tenant, makes, topUps); {
		case db.Taken(err), errors.Is(err, errKEKGone): // another node did the same
			if err := s.loadKEKs(ctx); err != nil {
				return err
			}
		case err != nil:
			return fmt.Errorf("making data keys: %w", err)
		default:
			rotate, granted = "", append(makes, topUps...)
		}
	}
	return fmt.Errorf("seal: the keys of tenant %s change faster than they can be read", tenant)
}

// readDEKs reads the rows of a tenant, and the KEKs if one of them is under a
// version that is not known.
func (s *Sealer) readDEKs(ctx context.Context, tenant estover.TenantID) (rows []dekRow, err error) {
	err = s.db.View(ctx, tenant, func(tx *db.Tx) error {
		rows, err = findDEKs(ctx, tx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the data keys: %w", err)
	}
	for _, row := range rows {
		if s.keks[row.kek] == nil {
			return rows, s.loadKEKs(ctx)
		}
	}
	return rows, nil
}

// unwrapAll makes rings of rows. A key that is loaded already is kept, with
// the messages that were set aside for it.
func (s *Sealer) unwrapAll(tenant estover.TenantID, rows []dekRow, loaded map[Class]ring) (map[Class]ring, error) {
	rings := map[Class]ring{}
	for _, row := range rows {
		if have := loaded[row.class].find(uint32(row.version)); have != nil && have.created.Equal(row.created) {
			rings[row.class] = append(rings[row.class], have)
			continue
		}
		kek := s.keks[row.kek]
		if kek == nil {
			return nil, fmt.Errorf("opening a data key of class %q: version %d of the key-encryption key: %w", row.class, row.kek, ErrNoKey)
		}
		k := &dek{version: uint32(row.version), created: row.created, from: row.from}
		var err error
		protect(func() {
			var key []byte
			if key, err = kek.unwrap(row.wrapped, dekName(tenant, row.class, row.version)...); err != nil {
				return
			}
			if row.class == pepper {
				k.raw = bytes.Clone(key)
			} else {
				k.aead = newAEAD(key)
			}
			clear(key)
		})
		if err != nil {
			return nil, fmt.Errorf("opening a data key of class %q: %w", row.class, err)
		}
		rings[row.class] = append(rings[row.class], k)
	}
	return rings, nil
}

// needs says what a tenant lacks: the versions to make, and the versions under
// which messages are to be set aside for this node.
func (s *Sealer) needs(rows []dekRow, rings map[Class]ring, rotate Class) (makes, topUps []keyID) {
	now := s.db.Now()
	newest := map[Class]dekRow{}
	for _, row := range rows {
		newest[row.class] = row
	}
	for _, class := range classes {
		row, ok := newest[class]
		switch {
		case !ok:
			makes = append(makes, keyID{class, 1})
			continue
		case class == pepper:
			continue
		case row.from.After(now): // the next one is made already
		case class == rotate, row.reserved >= maxUse, !now.Before(row.created.Add(maxAge)):
			makes = append(makes, keyID{class, row.version + 1})
		}
		current := rings[class].current(now)
		for _, k := range rings[class] {
			if (k == current || k.from.After(now)) && k.left.Load() < block/2 {
				topUps = append(topUps, keyID{class, int64(k.version)})
			}
		}
	}
	return makes, topUps
}

// errKEKGone says that the KEK that a new DEK was wrapped under has been
// replaced and deleted since.
var errKEKGone = errors.New("seal: the key-encryption key has been replaced")

// supply writes new versions and sets a block of messages aside under each of
// them and under those to top up.
func (s *Sealer) supply(ctx context.Context, tenant estover.TenantID, makes, topUps []keyID) error {
	kek := s.newestKEK()
	wrapped := make([][]byte, len(makes))
	for i, m := range makes {
		protect(func() { wrapped[i] = s.keks[kek].wrap(fresh(), dekName(tenant, m.class, m.version)...) })
	}
	return s.db.Do(ctx, tenant, func(tx *db.Tx) error {
		if len(makes) > 0 {
			// Holding the row keeps the KEK from being deleted before the
			// keys under it are there to be counted.
			if err := holdKEK(ctx, tx, kek); err != nil {
				return err
			}
		}
		for i, m := range makes {
			from := tx.Now()
			if m.version > 1 && tx.Engine() == db.Postgres {
				from = from.Add(spread)
			}
			row := dekRow{class: m.class, version: m.version, kek: kek, wrapped: wrapped[i], created: tx.Now(), from: from, reserved: block}
			if err := insertDEK(ctx, tx, row); err != nil {
				return err
			}
		}
		for _, t := range topUps {
			if err := reserve(ctx, tx, t.class, t.version, block); err != nil {
				return err
			}
		}
		return nil
	})
}

// RotateKEK makes a new key-encryption key, wraps every data key under it, and
// deletes the old ones. It needs every root key that is registered. When it is
// interrupted, the next call goes on where it stopped, and makes another only
// if that had come to its end.
func (s *Sealer) RotateKEK(ctx context.Context) error {
	s.loading.Lock()
	defer s.loading.Unlock()
	if err := s.loadKEKs(ctx); err != nil {
		return err
	}
	if len(s.keks) == 1 { // otherwise an earlier call was interrupted
		if err := s.makeKEK(ctx); err != nil {
			return fmt.Errorf("making a key-encryption key: %w", err)
		}
	}
	return s.rewrapDEKs(ctx)
}

// makeKEK inserts the next version under every root key.
func (s *Sealer) makeKEK(ctx context.Context) error {
	rows, err := s.rootRows(ctx)
	if err != nil {
		return err
	}
	version := s.newestKEK() + 1
	wrapped := map[string][]byte{}
	for _, row := range rows {
		root := s.roots[row.id]
		if root == nil {
			return ErrRootMissing.With("The key-encryption key is wrapped under a root key from a %s too, which was not given at the start. Start with both sources, or remove that root key.", row.kind)
		}
		wrapped[row.id] = nil
	}
	protect(func() {
		key := fresh()
		for id := range wrapped {
			wrapped[id] = s.roots[id].wrap(key, kekName(version, id)...)
		}
		clear(key)
	})
	err = s.db.Do(ctx, installation, func(tx *db.Tx) error {
		if err := insertKEK(ctx, tx, version); err != nil {
			return err
		}
		roots, err := findRoots(ctx, tx)
		if err != nil {
			return err
		}
		if len(roots) != len(wrapped) {
			return db.ErrStale
		}
		for id, w := range wrapped {
			if err := insertWrap(ctx, tx, version, id, w); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && !db.Taken(err) {
		return err
	}
	return s.loadKEKs(ctx)
}

// rewrapDEKs brings every data key under the newest KEK, some at a time.
func (s *Sealer) rewrapDEKs(ctx context.Context) error {
	newest := s.newestKEK()
	for {
		var rows []dekRow
		err := s.db.View(ctx, installation, func(tx *db.Tx) (err error) {
			rows, err = findDEKsBelow(ctx, tx, newest, 100)
			return err
		})
		if err != nil {
			return fmt.Errorf("reading the data keys: %w", err)
		}
		if len(rows) == 0 {
			break
		}
		again := make([][]byte, len(rows))
		for i, row := range rows {
			old := s.keks[row.kek]
			if old == nil {
				return fmt.Errorf("version %d of the key-encryption key: %w", row.kek, ErrNoKey)
			}
			protect(func() {
				var key []byte
				name := dekName(row.tenant, row.class, row.version)
				if key, err = old.unwrap(row.wrapped, name...); err == nil {
					again[i] = s.keks[newest].wrap(key, name...)
					clear(key)
				}
			})
			if err != nil {
				return fmt.Errorf("rewrapping a data key of tenant %s, class %q: %w", row.tenant, row.class, err)
			}
		}
		err = s.db.Do(ctx, installation, func(tx *db.Tx) error {
			for i, row := range rows {
				if err := replaceDEK(ctx, tx, row, newest, again[i]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("rewrapping the data keys: %w", err)
		}
	}
	if err := s.db.Do(ctx, installation, func(tx *db.Tx) error { return deleteKEKsBelow(ctx, tx, newest) }); err != nil {
		return fmt.Errorf("deleting the old key-encryption keys: %w", err)
	}
	return s.loadKEKs(ctx)
}

// An Addition is another root key, with all that it opens wrapped under it.
type Addition struct {
	ID      string // a fingerprint
	row     rootRow
	key     *wrapKey
	wrapped map[int64][]byte
}

// PrepareRoot asks another source for its root key. Once [Addition.Store] has
// been committed and [Sealer.Added] heard of it, either of them opens the
// database: it is how one moves from one source to another without stopping,
// and how one keeps a way back in.
func (s *Sealer) PrepareRoot(ctx context.Context, src Source) (*Addition, error) {
	s.loading.Lock()
	defer s.loading.Unlock()
	key, keep, err := src.Root(ctx, "", true)
	if err != nil {
		return nil, err
	}
	id, k := rootKey(key)
	clear(key)
	a := &Addition{ID: id, row: rootRow{id, src.Kind(), keep}, key: k, wrapped: map[int64][]byte{}}
	var rows []wrapRow
	if err := s.db.View(ctx, installation, func(tx *db.Tx) (err error) {
		rows, err = findWraps(ctx, tx)
		return err
	}); err != nil {
		return nil, err
	}
	for _, row := range rows {
		root := s.roots[row.root]
		if root == nil || a.wrapped[row.version] != nil {
			continue
		}
		protect(func() {
			var key []byte
			if key, err = root.unwrap(row.wrapped, kekName(row.version, row.root)...); err == nil {
				a.wrapped[row.version] = k.wrap(key, kekName(row.version, id)...)
				clear(key)
			}
		})
		if err != nil {
			return nil, fmt.Errorf("opening version %d of the key-encryption key: %w", row.version, err)
		}
	}
	return a, nil
}

// Store registers the root key, in a transaction of whatever tenant.
func (a *Addition) Store(ctx context.Context, tx *db.Tx) error {
	err := insertRoot(ctx, tx, a.row)
	if db.Taken(err) {
		return ErrRoot.With("This root key is registered already.")
	}
	if err != nil {
		return err
	}
	if n, err := countKEKs(ctx, tx); err != nil || n != len(a.wrapped) {
		return errors.Join(err, db.ErrStale)
	}
	for version, w := range a.wrapped {
		if err := insertWrap(ctx, tx, version, a.ID, w); err != nil {
			return err
		}
	}
	return nil
}

// Added has this program hold a root key that was stored.
func (s *Sealer) Added(a *Addition) {
	s.loading.Lock()
	defer s.loading.Unlock()
	s.roots[a.ID] = a.key
}

// A Root is a registered root key, as one may show it.
type Root struct {
	ID   string `json:"id"`   // a fingerprint
	Kind string `json:"kind"` // of its source
	Open bool   `json:"open"` // given to this program
}

// Roots lists the registered root keys.
func (s *Sealer) Roots(ctx context.Context) ([]Root, error) {
	s.loading.Lock()
	defer s.loading.Unlock()
	rows, err := s.rootRows(ctx)
	var list []Root
	for _, row := range rows {
		list = append(list, Root{row.id, row.kind, s.roots[row.id] != nil})
	}
	return list, err
}

// Removable refuses to take away the last root key that this program has.
func (s *Sealer) Removable(id string) error {
	s.loading.Lock()
	defer s.loading.Unlock()
	if len(s.roots) == 1 && s.roots[id] != nil {
		return ErrRoot.With("This is the only root key that this program was started with. Start it with the one that shall stay, and remove this one then.")
	}
	return nil
}

// RemoveRoot takes the way in of a root key that is [Sealer.Removable] away, in
// a transaction of whatever tenant; [Sealer.Removed] hears of the commit. A copy
// of the database from before still opens with it: after a root key was lost to
// somebody else, rotate the KEK and the DEKs too.
func RemoveRoot(ctx context.Context, tx *db.Tx, id string) error {
	if err := deleteRoot(ctx, tx, id); err != nil {
		return err
	}
	left, err := findRoots(ctx, tx)
	if err == nil && len(left) == 0 {
		return ErrRoot.With("This is the only root key of the database.")
	}
	return err
}

// Removed has this program forget a root key.
func (s *Sealer) Removed(id string) {
	s.loading.Lock()
	defer s.loading.Unlock()
	delete(s.roots, id)
}
