package upstream

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/job"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
)

// The errors of syncs.
var (
	ErrNoSync     = &estover.Error{Kind: estover.NotFound, Code: "sync_not_found", Detail: "There is no such sync. See `estover secret sync list`."}
	ErrSync       = &estover.Error{Kind: estover.Invalid, Code: "sync_invalid", Detail: "The secret cannot be pushed there."}
	ErrSyncExists = &estover.Error{Kind: estover.Conflict, Code: "sync_exists", Detail: "A secret is pushed to this path of the store already."}
	ErrNoDrift    = &estover.Error{Kind: estover.Conflict, Code: "sync_no_drift", Detail: "What stands in the store is ours, so there is nothing to decide."}
	ErrSyncReason = &estover.Error{Kind: estover.Invalid, Code: "sync_reason_missing", Detail: "Say why, in up to 500 characters: what somebody wrote there is lost.", Field: "reason"}
	ErrSyncMoved  = &estover.Error{Kind: estover.Conflict, Code: "sync_changed", Detail: "What stands in the store has changed again in the meantime. Look at it and decide once more."}
)

// errLost says that another node has taken a sync over.
var errLost = errors.New("another node has it")

// A SyncState is how a sync stands.
type SyncState string

// The states of a sync.
//
//	behind ⇄ synced
//	   └──▶ drift ◀──┘   drift ─(accept | overwrite)─▶ behind
const (
	InSync  SyncState = "synced"
	Behind  SyncState = "behind" // the current version is not known to be there yet
	Drifted SyncState = "drift"  // somebody else has changed what stands there
)

const (
	pushTime  = 90 * time.Second // how long a node has a sync
	lookAgain = 10 * time.Minute // how often it is looked whether somebody else has changed what stands there
	firstBack = time.Second      // after a failure, doubled each time
	mostBack  = 5 * time.Minute
	overdueIn = 5 * time.Minute // after which a version that is not there is overdue
	pushers   = 8               // at a time
	absent    = "absent"        // what stands there when nothing does
	mostSent  = 16              // digests of versions that may be there
)

// A SyncSpec says what is pushed, and where to.
type SyncSpec struct {
	Path  string `json:"path" minLength:"1" maxLength:"512" doc:"Of our secret"`
	Store string `json:"store" minLength:"1" maxLength:"63" doc:"The name of the store, whose host is among the destinations of the secret"`
	To    string `json:"to,omitempty" maxLength:"400" doc:"The path there; the same as here if left out"`
}

// A Sync is a secret of ours that is pushed to a store.
type Sync struct {
	ID string `json:"id"`
	SyncSpec
	State       SyncState       `json:"state" enum:"synced,behind,drift"`
	Cursor      int64           `json:"cursor" doc:"The version that is known to be there; 0 if none is"`
	Current     int64           `json:"current_version" doc:"The version that is to be there"`
	There       string          `json:"there" doc:"What the store calls what stands there of ours"`
	Drift       string          `json:"drift,omitempty" doc:"What the store calls what somebody else has written or deleted there"`
	DriftAt     time.Time       `json:"drift_at,omitzero"`
	Overdue     bool            `json:"overdue" doc:"The current version has not been there for five minutes after it was made"`
	BehindSince time.Time       `json:"behind_since,omitzero"`
	PushedAt    time.Time       `json:"pushed_at,omitzero"`
	LastError   string          `json:"last_error,omitempty"`
	Tries       int64           `json:"tries,omitempty"`
	Next        time.Time       `json:"next_at" doc:"When it is looked at again, at the latest"`
	CreatedBy   estover.Subject `json:"created_by"`
	CreatedAt   time.Time       `json:"created_at"`
	ManagedBy   string          `json:"managed_by,omitempty" doc:"The set of files that keeps it, as apply/default"`

	secret, store string
	owner         estover.Subject // of the store
	sent          []byte
	fence         int64
}

// A SyncFilter says which syncs are wanted; what is empty does not matter.
type SyncFilter struct {
	Path  string
	Store string // its name
	State SyncState
	Late  bool

	To        string // the path there
	ManagedBy string // the set of files that keeps it

	store string
}

func syncTarget(id string) string { return "sync:" + id }

// Sync has a secret pushed to a store from now on. Whoever owns both says so, or an
// administrator: that the secret names the store's host among its destinations does
// not say whose place there it is. What stands there already is not overwritten.
func (x *Stores) Sync(ctx context.Context, c estover.Caller, s SyncSpec) (out Sync, err error) {
	return x.KeepSync(ctx, c, s, "")
}

// KeepSync is Sync with who keeps it, if not whoever makes it by hand.
func (x *Stores) KeepSync(ctx context.Context, c estover.Caller, s SyncSpec, managedBy string) (out Sync, err error) {
	if s.To == "" {
		s.To = s.Path
	}
	op := guard.Op{Action: "sync.put", Target: secretTarget(s.Path), Detail: map[string]any{"store": s.Store, "to": s.To}}
	var at NamedStore
	err = x.Guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) error {
		at, err = findNamed(ctx, tx, s.Store)
		return err
	})
	if err == nil && !mayManage(c, at.Owner) {
		err = ErrNotOwner
	}
	var host string
	if err == nil {
		_, host, err = place(x.Kinds, at.Kind, at.Address, at.Options, ErrInvalid)
	}
	if err == nil && CheckPath(s.To) != nil {
		err = ErrSync.With("%q cannot be a path there.", s.To).At("to")
	}
	if err == nil && nameless(x.Kinds, at.Kind, s.To) {
		err = ErrSync.With("In the store %s secrets have names without slashes, and %q is none. Say what it is to be called there: --to.", s.Store, s.To).At("to")
	}
	var here secret.Secret
	if err == nil {
		here, err = x.Secrets.Describe(ctx, c.Tenant, s.Path)
	}
	if err == nil && here.Link != nil {
		err = ErrSync.With("The value of the secret %s lives in another vault, so it is not pushed to one.", s.Path)
	}
	if err == nil && !mayManage(c, here.Owner) {
		err = secret.ErrNotOwner.With("Only the owner of the secret %s or an administrator has it kept in another vault as well.", s.Path)
	}
	if err == nil {
		err = here.Allows(host)
	}
	if err != nil {
		return out, x.refused(ctx, c, op, err)
	}
	err = x.Guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if err := sameStore(ctx, tx.Tx, at); err != nil {
			return err
		}
		out = Sync{ID: estover.NewID("syn"), SyncSpec: s, There: absent, Next: tx.Now(), CreatedBy: c.Subject, CreatedAt: tx.Now(), ManagedBy: managedBy, secret: here.ID, store: at.ID}
		tx.Note("sync", out.ID)
		if err := insertSync(ctx, tx.Tx, out); err != nil {
			return err
		}
		out, err = findSync(ctx, tx.Tx, out.ID)
		return err
	})
	return out, err
}

// Syncs lists what is pushed to stores, by their ids: at most limit, after the id
// that the page before ended with.
func (x *Stores) Syncs(ctx context.Context, c estover.Caller, f SyncFilter, after string, limit int) (all []Sync, err error) {
	err = x.Guard.Read(ctx, c, guard.Op{Action: "sync.list"}, func(tx *db.Tx) error {
		all, err = syncsBy(ctx, tx, f, after, limit)
		return err
	})
	return all, err
}

// Pushes counts the syncs that want somebody's attention.
type Pushes struct {
	Overdue int64 // their current version should have been there for five minutes; those in drift too
	Drifted int64 // somebody else has written or deleted what is there
}

// Pushes counts the syncs of a tenant, or those of all if tenant is empty.
func (x *Stores) Pushes(ctx context.Context, tenant estover.TenantID) (p Pushes, err error) {
	err = x.Guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		p, err = countSyncs(ctx, tx)
		return err
	})
	return p, err
}

// GetSync shows one.
func (x *Stores) GetSync(ctx context.Context, c estover.Caller, id string) (s Sync, err error) {
	err = x.Guard.Read(ctx, c, guard.Op{Action: "sync.read", Target: syncTarget(id)}, func(tx *db.Tx) error {
		s, err = findSync(ctx, tx, id)
		return err
	})
	return s, err
}

// RemoveSync pushes a secret no longer. What stands there stays.
func (x *Stores) RemoveSync(ctx context.Context, c estover.Caller, id string) error {
	op := guard.Op{Action: "sync.remove", Target: syncTarget(id), Effect: guard.Deletes}
	return x.Guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		s, err := findSync(ctx, tx.Tx, id)
		if err != nil {
			return err
		}
		if !mayManage(c, s.owner) {
			return ErrNotOwner
		}
		tx.Note("path", s.Path)
		tx.Note("store", s.Store)
		return deleteSync(ctx, tx.Tx, id)
	})
}

// Overwrite has what somebody else wrote or deleted there be replaced by the current
// version, and says why. It does not wait for that.
func (x *Stores) Overwrite(ctx context.Context, c estover.Caller, id, why string) (s Sync, err error) {
	op := guard.Op{Action: "sync.overwrite", Target: syncTarget(id), Effect: guard.Deletes, Detail: map[string]any{"reason": why}}
	if why == "" || len(why) > 500 {
		return s, x.refused(ctx, c, op, ErrSyncReason)
	}
	err = x.Guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if s, err = findSync(ctx, tx.Tx, id); err != nil {
			return err
		}
		switch {
		case !mayManage(c, s.owner):
			return ErrNotOwner
		case s.Drift == "":
			return ErrNoDrift
		}
		tx.Note("path", s.Path)
		tx.Note("store", s.Store)
		tx.Note("lost", s.Drift)
		if err := decide(ctx, tx.Tx, s, 0); err != nil {
			return err
		}
		s, err = findSync(ctx, tx.Tx, id)
		return err
	})
	return s, err
}

// Accept makes what somebody else wrote there the next version of our secret, by
// whoever accepts it.
func (x *Stores) Accept(ctx context.Context, c estover.Caller, id string) (s Sync, err error) {
	op := guard.Op{Action: "sync.accept", Target: syncTarget(id)}
	decision, err := x.Guard.Admit(ctx, c, op)
	if err != nil {
		return s, err
	}
	err = x.Guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) error {
		s, err = findSync(ctx, tx, id)
		return err
	})
	n := int64(0)
	if err == nil {
		n, err = x.take(ctx, c, s)
	}
	if done := x.Guard.Act(ctx, c, op, decision, func(tx *guard.Tx) error {
		if err != nil {
			return err
		}
		tx.Note("path", s.Path)
		tx.Note("store", s.Store)
		tx.Note("version", secret.VersionID(s.secret, n))
		if err := decide(ctx, tx.Tx, s, n); err != nil {
			return err
		}
		s, err = findSync(ctx, tx.Tx, id)
		return err
	}); done != nil {
		return s, done
	}
	return s, nil
}

// take writes what stands there as a version of our secret, unless it is that
// already, as it is when whoever accepted it was cut off.
func (x *Stores) take(ctx context.Context, c estover.Caller, s Sync) (n int64, err error) {
	switch {
	case !mayManage(c, s.owner):
		return 0, ErrNotOwner
	case s.Drift == "":
		return 0, ErrNoDrift
	case idThere(s.Drift) == None || s.Drift != idThere(s.Drift):
		return 0, ErrSync.With("%s was deleted in the store %s. Overwrite that, or remove the sync.", s.To, s.Store)
	}
	limited, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	store, host, err := x.open(limited, c.Tenant, s.store)
	if err != nil {
		return 0, x.unavailable(ctx, c.Tenant, s.store, err)
	}
	head, err := headOf(limited, store, s.To)
	if err != nil {
		return 0, x.unavailable(ctx, c.Tenant, s.store, err)
	}
	if head != s.Drift {
		return 0, ErrSyncMoved
	}
	v, err := store.Get(limited, s.To, head)
	if err != nil {
		return 0, x.unavailable(ctx, c.Tenant, s.store, err)
	}
	ours, err := x.Secrets.Send(ctx, c, s.Path, host)
	if err != nil && !errors.Is(err, secret.ErrNoVersion) {
		return 0, err
	}
	if err == nil && ours.Secret == s.secret && hmac.Equal(x.digest(c.Tenant, ours.Object), x.digest(c.Tenant, v.Object)) {
		return ours.N, nil
	}
	_, made, err := x.Secrets.Put(ctx, c, s.Path, v.Object, secret.Put{Expect: s.Current})
	return made.N, err
}

// headOf says what stands at a path of a store: a version, one that was deleted, or
// nothing.
func headOf(ctx context.Context, s Store, path string) (string, error) {
	versions, err := s.Versions(ctx, path)
	switch {
	case err != nil && !errors.Is(err, ErrNotFound):
		return "", err
	case err != nil || len(versions) == 0:
		return absent, nil
	case !versions[0].Live:
		return versions[0].ID + deleted, nil
	}
	return versions[0].ID, nil
}

const deleted = " (deleted)"

// idThere is the version that a write follows, by what stands there.
func idThere(head string) string {
	if head == absent {
		return None
	}
	return strings.TrimSuffix(head, deleted)
}

// digest is what a value is recognised by that stands in a store. Stores write JSON
// in ways of their own, and some keep a single field as a text.
func (x *Stores) digest(tenant estover.TenantID, object estover.Secret) []byte {
	if text, err := Text(object); err == nil {
		object = Object(text)
	}
	plain := object.Reveal()
	var fields any
	d := json.NewDecoder(bytes.NewReader(plain))
	d.UseNumber()
	if d.Decode(&fields) == nil {
		if b, err := json.Marshal(fields); err == nil {
			defer clear(b)
			plain = b
		}
	}
	return x.Sealer.MAC(tenant, "secret.sync", plain)
}

// digestSize is how long a digest is; with each stands the number of its version.
const digestSize = 32

// sending adds a version to those that may be there.
func sending(sent []byte, n int64, digest []byte) []byte {
	one := append(binary.BigEndian.AppendUint64(nil, uint64(n)), digest[:digestSize]...)
	if len(sent) >= mostSent*(8+digestSize) {
		sent = sent[8+digestSize:]
	}
	return append(bytes.Clone(sent), one...)
}

// sentAs is the newest version whose value has a digest; 0 if none has.
func sentAs(sent, digest []byte) (n int64) {
	for ; len(sent) >= 8+digestSize; sent = sent[8+digestSize:] {
		if hmac.Equal(sent[8:8+digestSize], digest[:digestSize]) {
			n = max(n, int64(binary.BigEndian.Uint64(sent)))
		}
	}
	return n
}

// after are those of later versions, which may still be on their way.
func after(sent []byte, n int64) (left []byte) {
	for ; len(sent) >= 8+digestSize; sent = sent[8+digestSize:] {
		if int64(binary.BigEndian.Uint64(sent)) > n {
			left = append(left, sent[:8+digestSize]...)
		}
	}
	return left
}

// PushDue pushes what is to be in stores and is not, and looks from time to time
// whether somebody else has changed what stands there. It is called every second.
func (x *Stores) PushDue(ctx context.Context) error {
	var due []db.Place
	err := x.Guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		due, err = dueSyncs(ctx, tx)
		return err
	})
	if err != nil {
		return err
	}
	down := &outages{found: map[storeKey]error{}}
	return sideBySide(len(due), func(i int) error {
		if err := x.push(ctx, due[i].Tenant, due[i].ID, down); err != nil && !errors.Is(err, errLost) {
			return fmt.Errorf("pushing %s: %w", due[i].ID, err)
		}
		return nil
	})
}

// The outages of a round are the stores that did not answer in it. They are asked no
// more then, so that many syncs to one of them do not hold up those to others.
type outages struct {
	mu    sync.Mutex
	found map[storeKey]error
}

func (o *outages) add(k storeKey, err error) {
	if errors.Is(err, engine.ErrUnreachable) || errors.Is(err, context.DeadlineExceeded) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.found[k] = err
	}
}

func (o *outages) at(k storeKey) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.found[k]
}

// sideBySide does n things, as many at a time as one node works at stores.
func sideBySide(n int, do func(i int) error) error {
	var wg sync.WaitGroup
	turn := make(chan struct{}, pushers)
	failed := make([]error, n)
	for i := range n {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			failed[i] = job.Guarded(func() error { return do(i) })
		})
	}
	wg.Wait()
	return errors.Join(failed...)
}

// push brings one sync as far as it can be brought. Whatever a crash leaves behind,
// the row says what may be there, by digest, before it is sent; and what is there is
// looked at before anything is written.
func (x *Stores) push(ctx context.Context, tenant estover.TenantID, id string, down *outages) error {
	var s Sync
	err := x.Guard.DB().Do(ctx, tenant, func(tx *db.Tx) (err error) {
		s, err = claimSync(ctx, tx, id, x.Node, tx.Now().Add(pushTime))
		return err
	})
	if err != nil {
		return err
	}
	at := storeKey{tenant, s.store}
	err = down.at(at)
	for n := 0; err == nil && n < 4; n++ { // somebody may write in between, and a lost reply is made up for
		var again bool
		if again, err = x.step(ctx, tenant, &s); !again {
			break
		}
	}
	down.add(at, err)
	switch {
	case err == nil || errors.Is(err, errLost) || errors.Is(err, errStopped):
		return err
	case ctx.Err() != nil:
		return nil // the claim lapses
	}
	x.shut(at)
	return x.Guard.DB().Do(ctx, tenant, func(tx *db.Tx) error {
		wait := min(firstBack<<min(s.Tries, 16), mostBack)
		wait += time.Duration((rand.Float64()*0.4 - 0.2) * float64(wait))
		return failSync(ctx, tx, s, tx.Now().Add(wait), told(err))
	})
}

// errStopped ends the work where a crash would, in tests.
var errStopped = errors.New("stopped here")

func (x *Stores) step(ctx context.Context, tenant estover.TenantID, s *Sync) (again bool, err error) {
	limited, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	store, host, err := x.open(limited, tenant, s.store)
	if err != nil {
		return false, err
	}
	head, err := headOf(limited, store, s.To)
	if err != nil {
		return false, err
	}
	ours, err := x.Secrets.Send(ctx, system(tenant), s.Path, host)
	if err != nil {
		return false, err
	}
	if ours.Secret != s.secret {
		return false, ErrSync.With("There is another secret at %s since. Remove the sync.", s.Path)
	}
	current := x.digest(tenant, ours.Object)
	if head != s.There {
		n := int64(0)
		if head == idThere(head) { // something that can be read
			v, err := store.Get(limited, s.To, head)
			if err != nil {
				return false, err
			}
			found := x.digest(tenant, v.Object)
			if n = sentAs(s.sent, found); n == 0 && hmac.Equal(found, current) {
				n = ours.N
			}
		}
		if n == 0 {
			return false, x.drift(ctx, tenant, s, head)
		}
		// A reply was lost, or somebody has copied it there by hand.
		if err := x.arrived(ctx, tenant, s, n, head, n == ours.N); err != nil {
			return false, err
		}
		return n != ours.N, nil
	}
	s.Drift = "" // it is as it was: somebody has put it back
	if s.Cursor == ours.N {
		return false, x.Guard.DB().Do(ctx, tenant, func(tx *db.Tx) error { return restSync(ctx, tx, *s, tx.Now().Add(lookAgain)) })
	}
	s.sent = sending(s.sent, ours.N, current)
	err = x.Guard.DB().Do(ctx, tenant, func(tx *db.Tx) error { return intendSync(ctx, tx, *s) })
	if err != nil {
		return false, err
	}
	x.Secrets.Pushed(system(tenant), ours)
	if err := x.at("before put"); err != nil {
		return false, err
	}
	version, err := store.Put(limited, s.To, ours.Object, idThere(s.There))
	if stop := x.at("after put"); stop != nil {
		return false, stop
	}
	if errors.Is(err, ErrVersion) {
		return true, nil // somebody was faster: it is looked who
	}
	if err != nil {
		return false, err
	}
	if err := x.arrived(ctx, tenant, s, ours.N, version, true); err != nil {
		return false, err
	}
	return false, x.at("after record")
}

// arrived records that a version is there.
func (x *Stores) arrived(ctx context.Context, tenant estover.TenantID, s *Sync, n int64, there string, last bool) error {
	op := guard.Op{Action: "sync.push", Target: secretTarget(s.Path), Detail: map[string]any{
		"sync": s.ID, "store": s.Store, "to": s.To, "version": secret.VersionID(s.secret, n), "there": there,
	}}
	next := *s
	next.Cursor, next.There, next.sent, next.Drift, next.Tries = n, there, after(s.sent, n), "", 0
	err := x.Guard.Do(ctx, system(tenant), op, func(tx *guard.Tx) error {
		return arriveSync(ctx, tx.Tx, next, tx.Now().Add(lookAgain), last)
	})
	if err == nil {
		*s = next
	}
	return err
}

// drift records that somebody else has written or deleted what stands there. It is an
// event for each thing that is found, and nothing is written over it.
func (x *Stores) drift(ctx context.Context, tenant estover.TenantID, s *Sync, head string) error {
	if s.Drift == head {
		return x.Guard.DB().Do(ctx, tenant, func(tx *db.Tx) error { return restSync(ctx, tx, *s, tx.Now().Add(lookAgain)) })
	}
	op := guard.Op{Action: "sync.drift", Target: secretTarget(s.Path), Detail: map[string]any{
		"sync": s.ID, "store": s.Store, "to": s.To, "found": head, "expected": s.There,
	}}
	return x.Guard.Do(ctx, system(tenant), op, func(tx *guard.Tx) error {
		return driftSync(ctx, tx.Tx, *s, head, tx.Now().Add(lookAgain))
	})
}

// A Place is where a version of a secret is not yet.
type Place struct {
	Store, Path string
	Since       time.Time // when something was last pushed there; zero if never
	Drift       bool      // somebody else has changed what stands there
}

// Lagging are the stores to which a secret is pushed and where this version, or a
// later one, is not known to be.
func Lagging(ctx context.Context, tx *db.Tx, id string, version int64) ([]Place, error) {
	return laggards(ctx, tx, id, version)
}
