package secret

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"encoding/base32"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/seal"
)

// A held secret is a copy in memory: checked, and still sealed.
type held struct {
	Secret
	epoch   int64    // of the row
	current *Version // nil if there is none that can be used
	why     error    // why there is none
}

// verify checks the MAC of a record.
func (s *Secrets) verify(tenant estover.TenantID, r *record) error {
	if !hmac.Equal(r.mac, s.mac(tenant, r)) || !r.partial && r.past != nil && !r.remembers() {
		return ErrTampered.With("The secret %s in the database is not as it was written, so it is not used. Restore it from a backup and find out who changed it.", r.ID)
	}
	return nil
}

// hold makes the copy of a record.
func (s *Secrets) hold(tenant estover.TenantID, r *record) (*held, error) {
	if err := s.verify(tenant, r); err != nil {
		return nil, err
	}
	h := &held{Secret: r.Secret, epoch: r.epoch}
	v, err := r.usable(r.CurrentVersion)
	if err != nil {
		h.why = err
		return h, nil
	}
	current := *v // and none of the older ones
	h.current = &current
	return h, nil
}

// usable is the version of that number, or why it cannot be used.
func (r *record) usable(n int64) (*Version, error) {
	v := r.version(n)
	switch {
	case n == 0:
		return nil, ErrNoVersion.With("The secret %s has no version yet. Write one.", r.Path)
	case v == nil:
		return nil, ErrNoVersion.With("The secret %s has no version %d.", r.Path, n)
	case v.Phase == Pending:
		return nil, ErrNoVersion.With("Version %d of the secret %s is pending: no system is told of it before it has been tried.", n, r.Path)
	case v.Phase == Retiring:
		return nil, ErrNoVersion.With("Version %d of the secret %s is being retired. Use the current one.", n, r.Path)
	case v.at(r.seen).State == Deleted && v.State == Live:
		return nil, ErrNoVersion.With("Version %d of the secret %s was deleted when its time was over.", n, r.Path)
	case v.State != Live && v.Phase != "":
		return nil, ErrNoVersion.With("Version %d of the secret %s is %s.", n, r.Path, v.Phase)
	case v.State != Live:
		return nil, ErrNoVersion.With("Version %d of the secret %s is %s.", n, r.Path, v.State)
	}
	return v, nil
}

// held is the copy of the secret at a path.
func (s *Secrets) held(ctx context.Context, tenant estover.TenantID, path string) (*held, error) {
	if err := s.sealer.Prepare(ctx, tenant); err != nil {
		return nil, err
	}
	return s.copies.Get(ctx, tenant, escape(path))
}

// An Injection is a value on its way into a request.
type Injection struct {
	Value   estover.Secret
	Secret  string        // the secret's id
	Version string        // sec_…@3: what stands for the value in every record
	Class   estover.Class // of what the secret opens

	key useKey
}

// Use gives the gateway a field of the current version for a request to a
// destination (host:port) on behalf of a caller, and counts it. The call is one
// that the guard has admitted. What Use refuses must not be forwarded.
func (s *Secrets) Use(ctx context.Context, c estover.Caller, path, field, host string) (Injection, error) {
	for attempt := 0; ; attempt++ {
		h, err := s.held(ctx, c.Tenant, path)
		if err != nil {
			return Injection{}, err
		}
		if err := h.allows(host); err != nil {
			return Injection{}, err
		}
		if h.Link != nil {
			if h, err = s.refreshed(ctx, c.Tenant, path, h); err != nil {
				return Injection{}, err
			}
			if err := h.allows(host); err != nil { // since that may have taken a while
				return Injection{}, err
			}
		}
		if h.current == nil {
			return Injection{}, h.why
		}
		v, now := h.current, s.guard.DB().Now()
		if v.at(now).State != Live {
			return Injection{}, ErrNoVersion.With("Version %d of the secret %s was deleted when its time was over.", v.N, path)
		}
		field := cmp.Or(field, DefaultField)
		if !slices.Contains(v.Fields, field) {
			return Injection{}, ErrNoField.With("Version %d of the secret %s has no field %s.", v.N, path, field)
		}
		var value estover.Secret
		err = s.open(c.Tenant, h.ID, v, func(plain []byte) (err error) {
			value, err = decodeField(plain, field)
			return err
		})
		if err != nil && attempt == 0 {
			// The copy may lie under a data key that has been retired since.
			s.copies.Drop(c.Tenant, escape(path))
			continue
		}
		if err != nil {
			return Injection{}, err
		}
		k := keyOf(c, h.ID, v.N, Gateway)
		if s.count(k, now); v.Phase == "" {
			return Injection{Value: value, Secret: h.ID, Version: v.ID, Class: h.Class, key: k}, nil
		}
		moved, err := s.moved(ctx, c.Tenant, path, h)
		if err != nil {
			return Injection{}, err
		}
		if !moved {
			return Injection{Value: value, Secret: h.ID, Version: v.ID, Class: h.Class, key: k}, nil
		}
	}
}

// moved says, of a version of a rotated secret that has been counted and is about
// to be used, whether another one may have taken its place: then it is looked
// again. A node that has said that it uses a version no more ([Secrets.Ended])
// had forgotten its copy before it counted, so whoever counts later finds another
// copy here. Only a node that has not heard yet injects a version that is not the
// current one any more, and it counts that.
func (s *Secrets) moved(ctx context.Context, tenant estover.TenantID, path string, h *held) (bool, error) {
	if s.o.Standing != nil {
		if err := s.o.Standing(); err != nil {
			return false, err
		}
	}
	now, err := s.held(ctx, tenant, path)
	return now != h, err
}

// A Carried value is an injected one that something carries which is open: a request, a
// stream, a connection.
type Carried struct {
	secrets *Secrets
	key     useKey
	done    bool // under the lock of secrets
}

// Carry says that what carries an injected value is open, until [Carried.Done].
func (s *Secrets) Carry(in Injection) *Carried {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.carried[in.key]++
	return &Carried{secrets: s, key: in.key}
}

// Done says that it is open no more. It may be said more than once.
func (c *Carried) Done() {
	s := c.secrets
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.done {
		return
	}
	c.done = true
	if s.carried[c.key]--; s.carried[c.key] == 0 {
		delete(s.carried, c.key)
	}
}

// A Connection is what one subject has open with a version on one node.
type Connection struct {
	Subject estover.Subject `json:"subject"`
	Session string          `json:"session,omitempty"`
	Count   int64           `json:"count"`
}

// Ended makes sure that this node uses a version of a secret no more that is not
// the current one, writes what it has used of it, and says what it still has
// open.
func (s *Secrets) Ended(ctx context.Context, tenant estover.TenantID, path, id string, n int64) ([]Connection, error) {
	s.copies.Drop(tenant, escape(path))
	if err := s.Flush(ctx); err != nil {
		return nil, err
	}
	return s.Carried(tenant, id, n), nil
}

// Carried is what this node has open with a version.
func (s *Secrets) Carried(tenant estover.TenantID, id string, n int64) []Connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	open := []Connection{}
	for k, count := range s.carried {
		if k.tenant == tenant && k.secret == id && k.version == n {
			open = append(open, Connection{k.subject, k.session, count})
		}
	}
	slices.SortFunc(open, func(a, b Connection) int {
		return cmp.Or(cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Session, b.Session))
	})
	return open
}

// allows reports whether the secret may be sent to a host.
func (h *held) allows(host string) error {
	if slices.Contains(h.Destinations, host) {
		return nil
	}
	if to, err := destination(host); err == nil && slices.Contains(h.Destinations, to) {
		return nil
	}
	if len(h.Destinations) == 0 {
		return ErrDestination.With("The secret %s has no destinations, so it is sent nowhere. Its owner adds them.", h.Path)
	}
	return ErrDestination.With("%s is not among the destinations of the secret %s, so it is not sent there. Its owner may add it.", host, h.Path)
}

// open hands the plaintext of a version to decode, which clears it.
func (s *Secrets) open(tenant estover.TenantID, id string, v *Version, decode func(plain []byte) error) error {
	plain, err := s.sealer.Open(tenant, v.aad(id), v.sealed)
	if errors.Is(err, seal.ErrBroken) {
		return ErrTampered.With("Version %s in the database is not as it was written, so it is not used.", v.ID)
	}
	if err != nil {
		return fmt.Errorf("opening %s: %w", v.ID, err)
	}
	if decode(plain) != nil {
		return ErrTampered.With("Version %s is not what versions look like.", v.ID) // the error might quote it
	}
	return nil
}

// Read hands out a version in plaintext: the current one if n is 0. The purpose
// is why, the caller's own if it is empty. It is an event, and the caller is
// remembered as somebody who has the value.
func (s *Secrets) Read(ctx context.Context, c estover.Caller, path string, n int64, purpose string) (Plain, error) {
	if purpose = strings.TrimSpace(purpose); purpose == "" && c.Purpose == "" {
		return Plain{}, ErrPurpose
	}
	op := guard.Op{Action: "secret.read", Target: target(path), Effect: guard.Reads, Purpose: purpose}
	if h := s.ready(ctx, c.Tenant, path); h != nil && n == 0 {
		p, err := s.handOut(ctx, c, op, &h.Secret, h.epoch, h.current)
		if !errors.Is(err, db.ErrStale) && !errors.Is(err, ErrTampered) && !errors.Is(err, seal.ErrNoKey) {
			return p, err
		}
		s.copies.Drop(c.Tenant, escape(path)) // it has changed, or lies under a data key that has been retired
	}
	fresh := false
	for range maxAttempts {
		r, err := s.read(ctx, c.Tenant, path, n)
		if err == nil && r.Link != nil && !fresh && (n == 0 || n == r.CurrentVersion) {
			// Nobody has another vault asked who may not read what it says.
			var refusal *guard.Refusal
			err = s.fresh(ctx, c.Tenant, r.Secret, func() error {
				_, err := s.guard.Admit(ctx, c, op)
				return err
			})
			if errors.As(err, &refusal) {
				return Plain{}, err
			}
			if fresh = true; err == nil {
				continue
			}
		}
		var v *Version
		if err == nil {
			v, err = r.usable(cmp.Or(n, r.CurrentVersion))
		}
		if err != nil {
			return Plain{}, s.guard.Do(ctx, c, op, func(*guard.Tx) error { return err })
		}
		p, err := s.handOut(ctx, c, op, &r.Secret, r.epoch, v)
		if !errors.Is(err, db.ErrStale) {
			return p, err
		}
	}
	return Plain{}, db.ErrUnavailable.Because(errStale)
}

// ready is the copy of a secret whose current version can be handed out as it is in
// memory: nothing is handed out of one that has changed ([Secrets.handOut]). Nil if
// the database has to be asked, which says why there is none as well.
func (s *Secrets) ready(ctx context.Context, tenant estover.TenantID, path string) *held {
	h, err := s.held(ctx, tenant, path)
	if err != nil || h.Link != nil || h.current == nil || h.current.at(s.guard.DB().Now()).State != Live {
		return nil
	}
	return h
}

// handOut opens a version, and records that it is handed out and who has it from now
// on, in a commit with others. It is [db.ErrStale] if the secret has changed since
// its epoch: then nothing was handed out.
func (s *Secrets) handOut(ctx context.Context, c estover.Caller, op guard.Op, of *Secret, epoch int64, v *Version) (Plain, error) {
	decision, err := s.guard.Admit(ctx, c, op)
	if err != nil {
		return Plain{}, err
	}
	p := Plain{Version: *v, Custom: of.Custom}
	err = s.open(c.Tenant, of.ID, v, func(plain []byte) (err error) {
		p.Object = estover.NewSecret(bytes.Clone(plain))
		p.Values, err = decode(plain)
		return err
	})
	if err != nil {
		return Plain{}, err
	}
	op.Detail = map[string]any{"secret": of.ID, "version": v.ID, "fields": v.Fields}
	now := s.guard.DB().Now()
	use := useOf(keyOf(c, of.ID, v.N, Plaintext), epoch, tally{now, now, 1})
	if err := s.guard.Record(ctx, c, op, decision, guard.Hot{Alive: true, Step: &use}); err != nil {
		return Plain{}, err
	}
	return p, nil
}

// A Via is how a version was used.
type Via string

// The ways.
const (
	Gateway   Via = "gateway"   // injected; it never left us
	Plaintext Via = "plaintext" // handed out
	Synced    Via = "sync"      // kept in another vault as well
)

// A Use is who used a version, how, and how often.
type Use struct {
	Secret  string          `json:"secret"` // its id
	Path    string          `json:"path"`
	Version int64           `json:"version"`
	Subject estover.Subject `json:"subject"` // who acted
	Session string          `json:"session,omitempty"`
	Via     Via             `json:"via"`
	FirstAt time.Time       `json:"first_at"`
	LastAt  time.Time       `json:"last_at"`
	Count   int64           `json:"count"`
}

type useKey struct {
	tenant  estover.TenantID
	secret  string
	version int64
	subject estover.Subject
	session string
	via     Via
}

type tally struct {
	first, last time.Time
	count       int64
}

func (t tally) add(u tally) tally {
	if t.count == 0 {
		return u
	}
	if u.first.Before(t.first) {
		t.first = u.first
	}
	if u.last.After(t.last) {
		t.last = u.last
	}
	t.count += u.count
	return t
}

// keyOf says who used a version: who acts, if the caller acts for another.
func keyOf(c estover.Caller, secret string, version int64, via Via) useKey {
	acting := c.Subject
	if len(c.Actors) > 0 {
		acting = c.Actors[0]
	}
	return useKey{c.Tenant, secret, version, acting, c.Session, via}
}

func (s *Secrets) count(k useKey, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uses[k] = s.uses[k].add(tally{now, now, 1})
}

// flushAtOnce bounds the rows of one transaction.
const flushAtOnce = 200

// Flush writes what was used since the last time.
func (s *Secrets) Flush(ctx context.Context) error {
	s.flushing.Lock() // whoever comes back from here knows that nothing earlier is still on its way
	defer s.flushing.Unlock()
	s.mu.Lock()
	uses := s.uses
	s.uses = make(map[useKey]tally, len(uses))
	s.mu.Unlock()
	// In one order on every node, so that two never wait for each other.
	keys := slices.SortedFunc(maps.Keys(uses), func(a, b useKey) int {
		return cmp.Or(cmp.Compare(a.tenant, b.tenant), cmp.Compare(a.secret, b.secret), cmp.Compare(a.version, b.version),
			cmp.Compare(a.subject, b.subject), cmp.Compare(a.session, b.session), cmp.Compare(a.via, b.via))
	})
	for len(keys) > 0 {
		n := 1
		for n < min(len(keys), flushAtOnce) && keys[n].tenant == keys[0].tenant {
			n++
		}
		err := s.guard.DB().Do(ctx, keys[0].tenant, func(tx *db.Tx) error {
			for _, k := range keys[:n] {
				if err := addUse(ctx, tx, k, uses[k]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			s.mu.Lock()
			for _, k := range keys {
				s.uses[k] = s.uses[k].add(uses[k])
			}
			s.mu.Unlock()
			return fmt.Errorf("writing who used secrets: %w", err)
		}
		keys = keys[n:]
	}
	return nil
}

// Run writes what is used, every so often, until ctx is done, and once more
// then.
func (s *Secrets) Run(ctx context.Context) error {
	t := time.NewTicker(s.o.FlushEvery)
	defer t.Stop()
	failing := false
	for {
		select {
		case <-t.C:
			err := s.Flush(ctx)
			if err != nil && !failing && ctx.Err() == nil {
				s.o.Logger.Error("what was used is kept in memory and tried again", "error", err)
			}
			failing = err != nil
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			return s.Flush(last)
		}
	}
}

// A UseFilter says which uses are wanted; what is empty does not matter. So
// one asks both ways: what did an agent touch, who used a version.
type UseFilter struct {
	Secret  string // its id
	Version int64
	Subject estover.Subject
	Session string
	Via     Via
	Since   time.Time
}

// Uses lists who used what, the latest first: at most limit.
func (s *Secrets) Uses(ctx context.Context, c estover.Caller, f UseFilter, limit int) (list []Use, err error) {
	if err := s.Flush(ctx); err != nil {
		return nil, err
	}
	err = s.guard.Read(ctx, c, guard.Op{Action: "secret.list"}, func(tx *db.Tx) error {
		list, err = usesBy(ctx, tx, f, limit)
		return err
	})
	return list, err
}

// fingerprint is the keyed digest of a value.
func (s *Secrets) fingerprint(tenant estover.TenantID, v estover.Secret) []byte {
	return s.sealer.MAC(tenant, "secret.fingerprint", v.Reveal())
}

// A Sighting says which secret a value is.
type Sighting struct {
	Secret  string `json:"secret"` // its id
	Path    string `json:"path"`
	Version int64  `json:"version"`
	Field   string `json:"field"`
}

// Identify says which secrets have had this value, in whatever version: for a
// value that was found where it should not be. With [Secrets.Uses] it leads to
// everybody who had it.
func (s *Secrets) Identify(ctx context.Context, c estover.Caller, value estover.Secret) (list []Sighting, err error) {
	if err := s.sealer.Prepare(ctx, c.Tenant); err != nil {
		return nil, err
	}
	digest := s.fingerprint(c.Tenant, value)
	err = s.guard.Read(ctx, c, guard.Op{Action: "secret.list"}, func(tx *db.Tx) error {
		list, err = printed(ctx, tx, digest)
		return err
	})
	return list, err
}

// PlaceholderPrefix begins every placeholder.
const PlaceholderPrefix = "est_ph_"

// placeholderDigits is how long a placeholder goes on: 130 bits.
const placeholderDigits = 26

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Placeholder is what an agent gets in the place of a secret that its client
// wants to see. It opens nothing.
func (s *Secrets) Placeholder(ctx context.Context, tenant estover.TenantID, agent estover.Subject, session, secret string) (string, error) {
	if err := s.sealer.Prepare(ctx, tenant); err != nil {
		return "", err
	}
	sum := s.sealer.MAC(tenant, "secret.placeholder", []byte(string(agent)+"\x00"+session+"\x00"+secret))
	return PlaceholderPrefix + base32Lower.EncodeToString(sum)[:placeholderDigits], nil
}

// FindPlaceholder gives the first placeholder in b, anybody's, and where it
// stands; "" if there is none.
func FindPlaceholder(b []byte) (placeholder string, at int) {
	for i := 0; ; {
		n := bytes.Index(b[i:], []byte(PlaceholderPrefix))
		if n < 0 {
			return "", -1
		}
		i += n
		end := i + len(PlaceholderPrefix)
		for end < len(b) && (b[end] >= 'a' && b[end] <= 'z' || b[end] >= '2' && b[end] <= '7') {
			end++
		}
		if end-i >= len(PlaceholderPrefix)+placeholderDigits {
			return string(b[i : i+len(PlaceholderPrefix)+placeholderDigits]), i
		}
		i = end
	}
}

// Recognise says for which of these secrets the placeholder was given to this
// agent in this session; "" if for none: then it is somebody else's, or of a
// session that is over.
func (s *Secrets) Recognise(ctx context.Context, tenant estover.TenantID, agent estover.Subject, session string, secrets []string, placeholder string) (secret string, err error) {
	for _, id := range secrets {
		want, err := s.Placeholder(ctx, tenant, agent, session, id)
		if err != nil {
			return "", err
		}
		if hmac.Equal([]byte(want), []byte(placeholder)) {
			return id, nil
		}
	}
	return "", nil
}
