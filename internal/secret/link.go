package secret

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"

	"estover.dev"
	"estover.dev/internal/guard"
)

// A Link says in which other vault the value of a secret lives. The versions of
// such a secret are copies of versions there, made when somebody needs them; they
// are used, counted and recognised as any other, and written by nobody here.
type Link struct {
	Store string   `json:"store"` // its id
	Path  string   `json:"path"`  // there
	TTL   Duration `json:"ttl"`   // for how long a copy is believed without asking
}

// ErrLinked is returned when somebody writes a secret whose value lives in another
// vault.
var ErrLinked = &estover.Error{Kind: estover.Conflict, Code: "secret_linked", Detail: "The value of this secret lives in another vault and is changed there. `estover secret unlink` makes it one of ours."}

// text is a link as it is stored; "" for none.
func (l *Link) text() string {
	if l == nil {
		return ""
	}
	b, err := json.Marshal(l)
	if err != nil {
		panic("secret: a link that has no JSON: " + err.Error())
	}
	return string(b)
}

// fresh has the current version of a linked secret be that of the other vault.
func (s *Secrets) fresh(ctx context.Context, tenant estover.TenantID, x Secret, before func() error) error {
	if s.o.Fresh == nil {
		return ErrLinked.With("The value of the secret %s lives in another vault, which this program does not ask.", x.Path)
	}
	return s.o.Fresh(ctx, tenant, x, before)
}

// refreshed is the copy of a linked secret once its current version is that of the
// other vault.
func (s *Secrets) refreshed(ctx context.Context, tenant estover.TenantID, path string, h *held) (*held, error) {
	if err := s.fresh(ctx, tenant, h.Secret, nil); err != nil {
		return nil, err
	}
	return s.held(ctx, tenant, path)
}

// Forget drops the copies in memory of a secret that another node has changed, for
// who knows of it before the log has told this one.
func (s *Secrets) Forget(tenant estover.TenantID, path string) { s.copies.Drop(tenant, escape(path)) }

// Link has the value of a secret live in another vault, or here again if to is nil,
// in an operation of somebody else's, whose rows then changes along with it. What
// was copied is destroyed, and what was written here is kept.
func (s *Secrets) Link(ctx context.Context, c estover.Caller, op guard.Op, path string, to *Link, then func(tx *guard.Tx, id string) error) (Secret, error) {
	r, err := s.change(ctx, c, op, path, func(r *record) (*write, error) {
		switch {
		case r.managed():
			return nil, ErrManaged.With("The secret %s is rotated. End its rotation first: estover rotation remove %s", path, path)
		case to == nil && r.Link == nil:
			return nil, ErrInvalid.With("The value of the secret %s lives here.", path)
		}
		r.forgetCopies()
		r.Link = to
		return &write{then: func(tx *guard.Tx) error { return then(tx, r.ID) }}, nil
	})
	if err != nil {
		return Secret{}, err
	}
	return r.Secret, nil
}

// forgetCopies destroys what was copied from another vault.
func (r *record) forgetCopies() {
	for i := range r.versions {
		if r.versions[i].Origin != "" {
			destroy(&r.versions[i], r.UpdatedAt)
		}
	}
}

// Copied is the version that a secret has as a copy of one in another vault; a zero
// one if it has none that can be used.
func (s *Secrets) Copied(ctx context.Context, tenant estover.TenantID, path string) (x Secret, copied Version, err error) {
	r, err := s.read(ctx, tenant, path, 0)
	if err != nil {
		return x, copied, err
	}
	if v, err := r.usable(r.CurrentVersion); err == nil && v.Origin != "" {
		copied = *v
	}
	return r.Secret, copied, nil
}

// Copy makes what another vault has the current version of a secret, if it still has
// this link. The copies before are destroyed; with an empty origin there is none any
// more there. Then sees, in the same transaction, whether it is still so.
func (s *Secrets) Copy(ctx context.Context, c estover.Caller, path string, link Link, origin string, object estover.Secret, then func(tx *guard.Tx) error) (Version, error) {
	var v Version
	op := guard.Op{Action: "secret.copy", Target: target(path), Detail: map[string]any{"store": link.Store, "path": link.Path, "origin": origin}}
	_, err := s.change(ctx, c, op, path, func(r *record) (*write, error) {
		if r.Link == nil || *r.Link != link {
			return nil, ErrLinked.With("The secret %s has been linked otherwise in the meantime. Try again.", path)
		}
		r.forgetCopies()
		w := &write{then: then}
		if origin == "" {
			return w, nil
		}
		content, err := parse(object.Reveal())
		if err != nil {
			return nil, err
		}
		defer clear(content.plain)
		v = Version{Fields: content.names, CreatedBy: c.Subject, Origin: origin}
		if err := s.add(c.Tenant, r, w, &v, content.plain, content.texts); err != nil {
			return nil, err
		}
		r.CurrentVersion = v.N
		r.limitCopies()
		return w, nil
	})
	return v, err
}

// mostCopies is how many copies are remembered, by what they were recognised by and
// who used them.
const mostCopies = 100

// limitCopies takes the oldest copies away when there are too many, and whatever is
// more than the secret keeps of all versions.
func (r *record) limitCopies() {
	copies := -mostCopies
	for i := range r.versions {
		if r.versions[i].Origin != "" {
			copies++
		}
	}
	r.versions = slices.DeleteFunc(r.versions, func(v Version) bool {
		if v.Origin == "" || copies <= 0 {
			return false
		}
		copies--
		return true
	})
	if n := int64(len(r.versions)) - r.MaxVersions; r.MaxVersions > 0 && n > 0 {
		r.versions = slices.Delete(r.versions, 0, int(n))
	}
}

// A Sent version is one on its way into another vault.
type Sent struct {
	Secret string // the secret's id
	N      int64
	Object estover.Secret // all its fields
}

// Send gives the current version of a secret, to be kept in another vault at a host,
// which the secret must name among its destinations. It is counted when it is on its
// way ([Secrets.Pushed]).
func (s *Secrets) Send(ctx context.Context, c estover.Caller, path, host string) (Sent, error) {
	r, err := s.read(ctx, c.Tenant, path, 0)
	if err != nil {
		return Sent{}, err
	}
	if err := r.Allows(host); err != nil {
		return Sent{}, err
	}
	if r.Link != nil {
		return Sent{}, ErrLinked.With("The value of the secret %s lives in another vault, so it is not pushed to one.", path)
	}
	v, err := r.usable(r.CurrentVersion)
	if err != nil {
		return Sent{}, err
	}
	out := Sent{Secret: r.ID, N: v.N}
	err = s.open(c.Tenant, r.ID, v, func(plain []byte) error {
		out.Object = estover.NewSecret(bytes.Clone(plain))
		clear(plain)
		return nil
	})
	return out, err
}

// Pushed counts that a version is on its way into another vault.
func (s *Secrets) Pushed(c estover.Caller, v Sent) {
	s.count(keyOf(c, v.Secret, v.N, Synced), s.guard.DB().Now())
}

// Allows says why the secret may not be sent to a host, if it may not.
func (x Secret) Allows(host string) error { return (&held{Secret: x}).allows(host) }
