package ticket

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// Errors about AppRoles.
var (
	// ErrLogin is returned when somebody does not log in, whatever the reason.
	ErrLogin = &estover.Error{Kind: estover.Invalid, Code: "approle_login", Detail: "invalid role or secret ID"}
	// ErrSecret is returned for a secret-id that cannot be made.
	ErrSecret = &estover.Error{Kind: estover.Invalid, Code: "secret_id_invalid", Detail: "There cannot be such a secret ID."}
	// ErrNoSecret is returned when a role has no such secret-id.
	ErrNoSecret = &estover.Error{Kind: estover.NotFound, Code: "secret_id_not_found", Detail: "There is no such secret ID."}
)

// A SecretID is a secret of an AppRole, without its value.
type SecretID struct {
	ID         string // its accessor
	Meta       map[string]string
	CIDRs      []string // from where one logs in with it; empty for anywhere
	TokenCIDRs []string // from where tickets are good that were got by it; empty for anywhere
	TTL        int64    // seconds; 0 for no end
	Uses       int64    // that it was made for; 0 for as many as one likes
	UsesLeft   int64    // 0 too if there are as many as one likes
	CreatedAt  time.Time
	UpdatedAt  time.Time
	ExpiresAt  time.Time // zero for never

	ref  string // the role
	hash []byte
}

func (s *SecretID) live(now time.Time) bool {
	return (s.ExpiresAt.IsZero() || now.Before(s.ExpiresAt)) && (s.Uses == 0 || s.UsesLeft > 0)
}

// newUUID is a random UUID, as clients expect role-ids and secret-ids to be.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (r *Role) checkApp() (err error) {
	a := r.App
	if a.NumUses < 0 || a.TTL < 0 {
		return ErrRole.With("secret_id_num_uses and secret_id_ttl cannot be negative")
	}
	if r.RoleID == "" || len(r.RoleID) > maxName {
		return ErrRole.With("role_id is empty or longer than %d bytes", maxName)
	}
	if a.CIDRs != nil {
		if a.CIDRs, err = Networks(a.CIDRs); err != nil {
			return err
		}
	}
	if !a.BindSecretID && len(a.CIDRs) == 0 && len(r.Limits.CIDRs) == 0 {
		return ErrRole.With("at least one constraint should be enabled on the role")
	}
	return nil
}

// A SecretWish is a secret-id that somebody wants.
type SecretWish struct {
	Value      estover.Secret // of somebody's own; empty for one that is made here
	Meta       map[string]string
	CIDRs      []string
	TokenCIDRs []string
	TTL        *int64 // nil for the role's
	Uses       *int64
}

// secretTarget names the secret-ids of a role in an operation.
func secretTarget(at Way, role string) string { return "secret_id:" + at.Path + "/" + role }

// appRole is the AppRole of a name.
func appRole(ctx context.Context, tx *db.Tx, at Way, name string) (*Role, error) {
	r, err := findRole(ctx, tx, at.ID, name)
	if err == nil && r.App == nil {
		err = ErrNoRole
	}
	if errors.Is(err, ErrNoRole) {
		err = ErrNoRole.With("role %q does not exist", name)
	}
	return r, err
}

// CreateSecretID makes a secret-id of an AppRole. Its value is shown once.
func (t *Tickets) CreateSecretID(ctx context.Context, caller estover.Caller, at Way, role string, w SecretWish) (estover.Secret, SecretID, error) {
	fail := func(err error) (estover.Secret, SecretID, error) { return estover.Secret{}, SecretID{}, err }
	if err := t.Sealer.Prepare(ctx, caller.Tenant); err != nil {
		return fail(err)
	}
	text := string(w.Value.Reveal())
	if w.Value.Empty() {
		text = newUUID()
	}
	s := SecretID{ID: newUUID(), Meta: w.Meta}
	switch {
	case len(text) > 4096:
		return fail(ErrSecret.With("a secret ID has at most 4096 bytes"))
	case len(s.Meta) > maxMeta:
		return fail(ErrSecret.With("metadata has at most %d entries", maxMeta))
	}
	var err error
	if s.CIDRs, err = Networks(w.CIDRs); err != nil {
		return fail(err)
	}
	if s.TokenCIDRs, err = Networks(w.TokenCIDRs); err != nil {
		return fail(err)
	}
	op := guard.Op{Action: "secret_id.create", Target: secretTarget(at, role), Detail: map[string]any{"accessor": s.ID, "meta": s.Meta}}
	// The MAC is over the role's id, which is read before the transaction, and
	// looked at again there.
	var r *Role
	if err := t.guard.DB().View(ctx, caller.Tenant, func(tx *db.Tx) (err error) {
		if r, err = appRole(ctx, tx, at, role); errors.Is(err, ErrNoRole) {
			r = &Role{}
			return nil
		}
		return err
	}); err != nil {
		return fail(err)
	}
	s.hash = t.hash(caller.Tenant, secretUse, r.ID+"\x00"+text)
	err = t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		now, err := appRole(ctx, tx.Tx, at, role)
		if err != nil {
			return err
		}
		if now.ID != r.ID {
			return ErrBusy
		}
		if !now.App.BindSecretID {
			return ErrSecret.With("bind_secret_id is not set on the role")
		}
		s.ref, s.TTL, s.Uses = now.ID, now.App.TTL, now.App.NumUses
		if err := s.narrow(now, w); err != nil {
			return err
		}
		s.UsesLeft, s.CreatedAt, s.UpdatedAt = s.Uses, tx.Now(), tx.Now()
		if s.TTL > 0 {
			s.ExpiresAt = tx.Now().Add(seconds(s.TTL))
		}
		return insertSecret(ctx, tx.Tx, &s)
	})
	switch {
	case db.Taken(err):
		err = ErrSecret.With("SecretID is already registered")
	case err == nil:
		return estover.NewSecret([]byte(text)), s, nil
	}
	return fail(err)
}

// narrow lets a secret-id be good for less than its role says; for more it is
// refused, and not clipped.
func (s *SecretID) narrow(r *Role, w SecretWish) error {
	if w.TTL != nil {
		if s.TTL = *w.TTL; s.TTL < 0 || r.App.TTL > 0 && (s.TTL == 0 || s.TTL > r.App.TTL) {
			return ErrSecret.With("ttl cannot be longer than the role's secret_id_ttl")
		}
	}
	if w.Uses != nil {
		if s.Uses = *w.Uses; s.Uses < 0 || r.App.NumUses > 0 && (s.Uses == 0 || s.Uses > r.App.NumUses) {
			return ErrSecret.With("num_uses cannot be higher than the role's secret_id_num_uses")
		}
	}
	if !subset(s.CIDRs, r.App.CIDRs) {
		return ErrSecret.With("failed to verify subset relationship between CIDR blocks on the role %q and CIDR blocks on the secret ID %q", r.App.CIDRs, s.CIDRs)
	}
	if !subset(s.TokenCIDRs, r.Limits.CIDRs) {
		return ErrSecret.With("failed to verify subset relationship between CIDR blocks on the role %q and CIDR blocks on the secret ID %q", r.Limits.CIDRs, s.TokenCIDRs)
	}
	return nil
}

// subset reports whether each network lies within one of the others; there may be
// none of those, and then each does.
func subset(inner, outer []string) bool {
	if len(outer) == 0 {
		return true
	}
	for _, i := range inner {
		in := false
		p, err := prefix(i)
		for _, o := range outer {
			q, err2 := prefix(o)
			in = in || err == nil && err2 == nil && q.Bits() <= p.Bits() && q.Contains(p.Addr())
		}
		if !in {
			return false
		}
	}
	return true
}

// common are the networks that lie in one of each of two lists; an empty list is
// anywhere. It reports whether there are any.
func common(a, b []string) (both []string, some bool) {
	switch {
	case len(a) == 0:
		return b, true
	case len(b) == 0:
		return a, true
	}
	for _, x := range a {
		for _, y := range b {
			switch {
			case subset([]string{x}, []string{y}):
				both = append(both, x)
			case subset([]string{y}, []string{x}):
				both = append(both, y)
			}
		}
	}
	slices.Sort(both)
	return slices.Compact(both), len(both) > 0
}

// A SecretRef names a secret-id by its value, or by its accessor.
type SecretRef struct {
	Value    estover.Secret
	Accessor string
}

func (t *Tickets) secretOf(ctx context.Context, tx *db.Tx, r *Role, ref SecretRef) (*SecretID, error) {
	if !ref.Value.Empty() {
		return findSecret(ctx, tx, r.ID, t.hash(tx.Tenant(), secretUse, r.ID+"\x00"+string(ref.Value.Reveal())))
	}
	s, err := findSecretID(ctx, tx, r.ID, ref.Accessor)
	if errors.Is(err, ErrNoSecret) {
		err = ErrNoSecret.With("failed to find accessor entry for secret_id_accessor: %q", ref.Accessor)
	}
	return s, err
}

// LookupSecretID shows a secret-id of an AppRole. It is [ErrNoSecret] if there is
// none that is good.
func (t *Tickets) LookupSecretID(ctx context.Context, caller estover.Caller, at Way, role string, ref SecretRef) (s *SecretID, err error) {
	if err := t.Sealer.Prepare(ctx, caller.Tenant); err != nil {
		return nil, err
	}
	op := guard.Op{Action: "secret_id.read", Target: secretTarget(at, role)}
	err = t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		r, err := appRole(ctx, tx.Tx, at, role)
		if err == nil {
			s, err = t.secretOf(ctx, tx.Tx, r, ref)
		}
		if err == nil && !s.live(tx.Now()) {
			err = ErrNoSecret.With("failed to find accessor entry for secret_id_accessor: %q", ref.Accessor)
		}
		if errors.Is(err, ErrNoSecret) {
			tx.Fail(err)
			return nil
		}
		return err
	})
	return s, err
}

// DestroySecretID takes a secret-id away.
func (t *Tickets) DestroySecretID(ctx context.Context, caller estover.Caller, at Way, role string, ref SecretRef) error {
	if err := t.Sealer.Prepare(ctx, caller.Tenant); err != nil {
		return err
	}
	op := guard.Op{Action: "secret_id.destroy", Target: secretTarget(at, role), Effect: guard.Deletes}
	return t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		r, err := appRole(ctx, tx.Tx, at, role)
		if err != nil {
			return err
		}
		s, err := t.secretOf(ctx, tx.Tx, r, ref)
		if errors.Is(err, ErrNoSecret) {
			tx.Fail(err)
			return nil
		}
		if err != nil {
			return err
		}
		tx.Note("accessor", s.ID)
		return dropSecret(ctx, tx.Tx, r.ID, s.ID)
	})
}

// SecretIDs are the accessors of the secret-ids of an AppRole, in order.
func (t *Tickets) SecretIDs(ctx context.Context, caller estover.Caller, at Way, role string) (list []string, err error) {
	err = t.guard.Read(ctx, caller, guard.Op{Action: "secret_id.list", Target: secretTarget(at, role)}, func(tx *db.Tx) error {
		r, err := appRole(ctx, tx, at, role)
		if err != nil {
			return err
		}
		list, err = secretIDs(ctx, tx, r.ID)
		return err
	})
	return list, err
}

// LoginAppRole gets a ticket for the agent that an AppRole leads to. Whatever is
// wrong, the error is [ErrLogin], and it took the same work to find out.
func (t *Tickets) LoginAppRole(ctx context.Context, tenant estover.TenantID, at Way, from From, roleID string, secretID estover.Secret) (Made, error) {
	if err := t.Sealer.Prepare(ctx, tenant); err != nil {
		return Made{}, err
	}
	var r *Role
	var s *SecretID
	err := t.guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		ref := ""
		if r, err = findRoleID(ctx, tx, at.ID, roleID); err == nil {
			ref = r.ID
		} else if !errors.Is(err, ErrNoRole) {
			return err
		}
		s, err = findSecret(ctx, tx, ref, t.hash(tenant, secretUse, ref+"\x00"+string(secretID.Reveal())))
		if errors.Is(err, ErrNoSecret) {
			err = nil
		}
		return err
	})
	if err != nil {
		return Made{}, err
	}
	if r == nil || r.App == nil || !within(from.Address, r.App.CIDRs) ||
		r.App.BindSecretID && (s == nil || !s.live(t.guard.DB().Now()) || !within(from.Address, s.CIDRs)) {
		return Made{}, ErrLogin
	}
	w := r.wish(at, from)
	w.Meta = map[string]string{"role_name": r.Name}
	w.DisplayName = "approle"
	if !r.App.BindSecretID {
		s = nil
	}
	if s != nil {
		for k, v := range s.Meta {
			w.Meta[k] = v
		}
		w.Meta["role_name"] = r.Name
		// The role may have been narrowed since the secret-id was made.
		var some bool
		if w.CIDRs, some = common(w.CIDRs, s.TokenCIDRs); !some {
			return Made{}, ErrLogin
		}
	}
	return t.login(ctx, tenant, r, from, w, func(tx *guard.Tx) error {
		ok, err := holdRole(ctx, tx.Tx, r)
		if err == nil && !ok {
			err = ErrBusy // it was changed: whoever tries again has it as it is now
			if _, gone := findRoleID(ctx, tx.Tx, at.ID, roleID); errors.Is(gone, ErrNoRole) {
				err = ErrLogin
			}
		}
		if err != nil || s == nil {
			return err
		}
		ok, err = useSecret(ctx, tx.Tx, s)
		if err == nil && !ok {
			err = ErrLogin
		}
		if err == nil {
			tx.Note("secret_id_accessor", s.ID)
		}
		return err
	})
}

// login makes the ticket of whoever has proved to be an agent by a role.
func (t *Tickets) login(ctx context.Context, tenant estover.TenantID, r *Role, from From, w Wish, and func(tx *guard.Tx) error) (Made, error) {
	caller := estover.Caller{
		Tenant: tenant, Subject: estover.Agent(r.Agent), Client: r.Agent, Strength: estover.BySecret, Mount: w.Mount, Address: from.Address, Request: from.Request, Noted: from.Noted,
	}
	if !within(from.Address, w.CIDRs) {
		return Made{}, ErrLogin
	}
	m := Made{Ticket: Ticket{tenant: tenant, Subject: caller.Subject}}
	if err := m.have(nil, w); err != nil {
		return Made{}, err
	}
	s, err := t.Ambient(ctx, caller, r.Agent)
	if err != nil {
		return Made{}, err
	}
	m.Session, m.rests = s.ID, s.Epoch
	op := guard.Op{Action: "ticket.login", Target: string(caller.Subject), Session: s.ID, Purpose: s.Purpose, Detail: m.told()}
	return m, t.make(ctx, caller, op, &m, w, s.Expires, and)
}
