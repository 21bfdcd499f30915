// Package tenant keeps the register of the organisations that an installation
// serves: each has an issuer of its own, with everything that rests on it.
//
//	active ⇄ disabled        a name is for good, and never given a second time
//
// The register is kept by the default tenant, whose administrators run the
// installation; it is always there, and cannot be disabled. They add an
// organisation, and hand a one-time token to whoever is to be its first
// administrator ([Register.Invite]); what is in it is for its own people from
// there on, and the default tenant has no way to look at it.
//
// Whether a tenant is active is asked for every request of one
// ([Register.Active]) and answered from a copy in memory: a disabled tenant gets
// no token, none of its tokens counts, and nothing of it goes through the gateway.
// Its rows, keys and log stay.
//
// The networks of a tenant ([Spec.PrivateNetworks]) are what its administrators
// can open at the gateway. They do not run the machine, and what listens there on
// private addresses is no business of theirs unless somebody says so here.
package tenant

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// Kind is what the register touches, as [guard.Tx.Touch] names it.
const Kind = "tenant"

// MaxTenants is how many organisations an installation has at most: what is kept
// ready in memory for each is thereby bounded.
const MaxTenants = 1000

// A Spec is what is said of a tenant.
type Spec struct {
	Name            estover.TenantID `json:"name" minLength:"1" maxLength:"40" doc:"The last part of its issuer: small letters, digits and dashes. It is for good."`
	Title           string           `json:"title,omitempty" maxLength:"200" doc:"What people call it"`
	PrivateNetworks []string         `json:"private_networks,omitempty" maxItems:"50" doc:"The private or loopback networks that its own settings may open (allow_private), as 10.1.0.0/16. None by itself."`
}

// The states of a tenant.
const (
	Active   = "active"
	Disabled = "disabled"
)

// A Tenant is an organisation with an issuer of its own.
type Tenant struct {
	Spec
	Issuer    string          `json:"issuer" doc:"What stands in its tokens, and where its clients, people and API are"`
	Status    string          `json:"status" enum:"active,disabled"`
	Reason    string          `json:"reason,omitempty" doc:"Why it is disabled"`
	CreatedAt time.Time       `json:"created_at,omitzero"`
	CreatedBy estover.Subject `json:"created_by,omitempty"`
	ChangedAt time.Time       `json:"changed_at,omitzero"`
	ErasedAt  time.Time       `json:"erased_at,omitzero" doc:"When its keys were destroyed: nothing of what was sealed for it can be opened again"`
}

// The errors of the register.
var (
	ErrInvalid = &estover.Error{Kind: estover.Invalid, Code: "tenant_invalid", Detail: "This is no description of a tenant."}
	// ErrNotFound is returned when there is no such tenant.
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "tenant_not_found", Detail: "There is no such tenant. `estover tenant list` shows which there are."}
	// ErrTaken is returned when there is, or was, a tenant of the name.
	ErrTaken = &estover.Error{Kind: estover.Conflict, Code: "tenant_taken", Detail: "There is a tenant of this name. Choose another: a name is for good, also when the tenant is disabled.", Field: "name"}
	// ErrTooMany is returned when an installation has as many tenants as it may.
	ErrTooMany = &estover.Error{Kind: estover.TooMuch, Code: "too_many_tenants", Detail: "An installation has at most 1000 tenants. Start another one."}
	// ErrDefault is returned for what cannot be done with the default tenant.
	ErrDefault = &estover.Error{Kind: estover.Conflict, Code: "tenant_default", Detail: "The default tenant keeps the register. It is always there and always active."}
	// ErrDisabled is returned for a tenant that is disabled.
	ErrDisabled = &estover.Error{Kind: estover.Denied, Code: "tenant_disabled", Detail: "This organisation is disabled. Whoever runs the server can enable it again."}
	// ErrActive is returned for a tenant that is to be erased and is not disabled.
	ErrActive = &estover.Error{Kind: estover.Conflict, Code: "tenant_active", Detail: "The tenant is active. Disable it first: estover tenant disable"}
	// ErrErased is returned for a tenant that is erased.
	ErrErased = &estover.Error{Kind: estover.Conflict, Code: "tenant_erased", Detail: "The tenant's keys were destroyed. It cannot go on; make one of another name."}
	// ErrOpen is returned for a tenant that has something at systems of others still.
	ErrOpen = &estover.Error{Kind: estover.Conflict, Code: "tenant_open", Detail: "The tenant has credentials at targets, which would be left there. Try again when they are gone."}
	// ErrEntered is returned when a tenant has had an administrator, who lets the others in.
	ErrEntered = &estover.Error{Kind: estover.Conflict, Code: "tenant_entered", Detail: "An administrator of this tenant has come in already, and lets others in: estover person invite."}
)

// Options are what the register needs of others.
type Options struct {
	// Issuer is the issuer of a tenant.
	Issuer func(estover.TenantID) string

	// Found makes what a tenant rests on, its keys, as far as it is not there.
	Found func(context.Context, estover.TenantID) error

	// Empty takes away what a tenant has at systems of others, before its keys go,
	// and says what is left, if something is. Open says in the register's
	// transaction what is left; "" for nothing. Nil knows of nothing.
	Empty func(context.Context, estover.TenantID) error
	Open  func(context.Context, *db.Tx, estover.TenantID) (string, error)

	// Finish writes out what a tenant's log has to say, before its keys go.
	Finish func(context.Context, estover.TenantID) error

	// Shred destroys a tenant's keys, in the register's transaction, and Shredded
	// hears of the commit on every node.
	Shred    func(context.Context, *db.Tx, estover.TenantID) error
	Shredded func(estover.TenantID)

	// Bootstrap is a one-time token for the tenant's first administrator; empty
	// when one has come in.
	Bootstrap func(context.Context, estover.TenantID) (estover.Secret, error)
}

// A Register is the tenants of an installation. It is safe for use by many at
// once.
type Register struct {
	Options
	guard *guard.Guard
	known *guard.Cache[*Tenant]
}

// New is the register behind the door g.
func New(g *guard.Guard, o Options) *Register {
	r := &Register{Options: o, guard: g}
	r.known = guard.NewCache(g, Kind, func(ctx context.Context, tx *db.Tx, id string) (*Tenant, error) {
		t, err := find(ctx, tx, estover.TenantID(id), "")
		return &t, err
	})
	g.OnTouch(func(keeper estover.TenantID, kind, id string) {
		if kind != Kind || keeper != estover.DefaultTenant {
			return
		}
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if t, err := r.known.Get(ctx, keeper, id); err == nil && !t.ErasedAt.IsZero() {
				r.Shredded(t.Name)
			}
		}()
	})
	return r
}

// Valid reports whether a name can be a tenant's: what it may hold stands for
// itself in a URL, in the name of a log and in a path.
func Valid(name estover.TenantID) bool {
	for i, c := range []byte(name) {
		if ('a' > c || c > 'z') && ('0' > c || c > '9') && (c != '-' || i == 0 || i == len(name)-1) {
			return false
		}
	}
	return name != "" && len(name) <= 40
}

// Check gives a spec in the one form in which it is kept, or everything that is
// wrong with it.
func Check(s Spec) (Spec, error) {
	var bad []error
	wrong := func(field, format string, args ...any) { bad = append(bad, ErrInvalid.With(format, args...).At(field)) }
	if !Valid(s.Name) {
		wrong("name", "The name of a tenant has up to 40 small letters, digits and dashes, and no dash at an end, not %q.", string(s.Name))
	}
	if len(s.Title) > 200 || strings.ContainsFunc(s.Title, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		wrong("title", "A title is one line of at most 200 characters.")
	}
	if len(s.PrivateNetworks) > 50 {
		wrong("private_networks", "A tenant has at most 50 private networks.")
	}
	networks := make([]string, 0, len(s.PrivateNetworks))
	for i, text := range s.PrivateNetworks {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() {
			wrong(fmt.Sprintf("private_networks[%d]", i), "%q is no network, as 10.1.0.0/16.", text)
			continue
		}
		networks = append(networks, p.String())
	}
	slices.Sort(networks)
	if s.PrivateNetworks = slices.Compact(networks); len(s.PrivateNetworks) == 0 {
		s.PrivateNetworks = nil
	}
	return s, errors.Join(bad...)
}

// Create adds a tenant, and makes what it rests on. If that fails the tenant is
// there all the same, and [Register.Invite] makes up for it.
func (r *Register) Create(ctx context.Context, caller estover.Caller, spec Spec) (Tenant, error) {
	spec, err := Check(spec)
	if err != nil {
		return Tenant{}, err
	}
	t := Tenant{Spec: spec, Status: Active, CreatedBy: caller.Subject}
	err = r.guard.Do(ctx, caller, guard.Op{Action: "tenant.create", Target: target(spec.Name)}, func(tx *guard.Tx) error {
		t.CreatedAt = tx.Now()
		t.ChangedAt = t.CreatedAt
		tx.Note("tenant", spec)
		tx.Touch(Kind, string(spec.Name))
		return insert(ctx, tx.Tx, t)
	})
	if err != nil {
		return Tenant{}, err
	}
	return r.named(t), r.Found(ctx, spec.Name)
}

// Invite makes a one-time token for the first administrator of a tenant, as long
// as none has come in. Those that were made before go on being good for their
// time; each is used once.
func (r *Register) Invite(ctx context.Context, caller estover.Caller, name estover.TenantID) (estover.Secret, error) {
	if name == estover.DefaultTenant {
		return estover.Secret{}, ErrDefault.With("The default tenant's first administrator comes in by the token in the server's data directory; others by estover person invite.")
	}
	err := r.guard.Do(ctx, caller, guard.Op{Action: "tenant.invite", Target: target(name)}, func(tx *guard.Tx) error {
		t, err := find(ctx, tx.Tx, name, "")
		if err == nil && t.Status != Active {
			err = ErrDisabled
		}
		return err
	})
	if err != nil {
		return estover.Secret{}, err
	}
	if err := r.Found(ctx, name); err != nil {
		return estover.Secret{}, err
	}
	value, err := r.Bootstrap(ctx, name)
	if err == nil && value.Empty() {
		err = ErrEntered
	}
	return value, err
}

// Update changes what is said of a tenant, but not its name.
func (r *Register) Update(ctx context.Context, caller estover.Caller, name estover.TenantID, spec Spec) (Tenant, error) {
	spec, err := Check(spec)
	if err != nil {
		return Tenant{}, err
	}
	if spec.Name != name {
		return Tenant{}, ErrInvalid.With("The name of a tenant is for good: %s cannot become %s.", name, spec.Name).At("name")
	}
	return r.change(ctx, caller, "tenant.update", name, func(tx *guard.Tx, t *Tenant) error {
		if name == estover.DefaultTenant && len(spec.PrivateNetworks) > 0 {
			return ErrDefault.With("The default tenant's administrators run the installation; they open any network.").At("private_networks")
		}
		tx.Note("before", t.Spec)
		tx.Note("after", spec)
		t.Spec = spec
		return nil
	})
}

// Disable ends what a tenant can do, until it is enabled again: what is under way
// is cut, and what comes is refused.
func (r *Register) Disable(ctx context.Context, caller estover.Caller, name estover.TenantID, reason string) (Tenant, error) {
	return r.change(ctx, caller, "tenant.disable", name, func(tx *guard.Tx, t *Tenant) error {
		if name == estover.DefaultTenant {
			return ErrDefault
		}
		tx.Note("reason", reason)
		t.Status, t.Reason = Disabled, reason
		return nil
	})
}

// Enable lets a tenant go on. What was handed out before it was disabled and has
// not come to its end counts again.
func (r *Register) Enable(ctx context.Context, caller estover.Caller, name estover.TenantID) (Tenant, error) {
	return r.change(ctx, caller, "tenant.enable", name, func(_ *guard.Tx, t *Tenant) error {
		if !t.ErasedAt.IsZero() {
			return ErrErased
		}
		t.Status, t.Reason = Active, ""
		return nil
	})
}

// Erase destroys the keys of a tenant that is disabled, for good, when what it has at
// targets is gone: without its keys nobody could take that away. Its rows stay
// where they are, and nothing of what was sealed in them can be opened again:
// secrets, recordings, details of events. The public log stays too, as far as it
// has come. Copies of the database made before hold the keys for as long as they
// are kept.
func (r *Register) Erase(ctx context.Context, caller estover.Caller, name estover.TenantID) (Tenant, error) {
	// The log is written out while it can still be signed. Whether the tenant may
	// be erased is asked again below, and decided there.
	if t, err := r.Get(ctx, caller, name); err != nil {
		return t, err
	} else if t.Status == Disabled && t.ErasedAt.IsZero() {
		if r.Empty != nil {
			if err := r.Empty(ctx, name); err != nil {
				return t, err
			}
		}
		if err := r.Finish(ctx, name); err != nil {
			return t, fmt.Errorf("writing out the log of the tenant %s: %w", name, err)
		}
	}
	return r.change(ctx, caller, "tenant.erase", name, func(tx *guard.Tx, t *Tenant) error {
		switch {
		case name == estover.DefaultTenant:
			return ErrDefault
		case t.Status != Disabled:
			return ErrActive
		case !t.ErasedAt.IsZero():
			return nil
		}
		if r.Open != nil {
			if why, err := r.Open(ctx, tx.Tx, name); err != nil {
				return err
			} else if why != "" {
				return ErrOpen.With("%s", why)
			}
		}
		t.ErasedAt = tx.Now()
		return r.Shred(ctx, tx.Tx, name)
	})
}

// change runs fn on the locked row of a tenant, and stores what fn made of it.
func (r *Register) change(ctx context.Context, caller estover.Caller, action string, name estover.TenantID, fn func(*guard.Tx, *Tenant) error) (t Tenant, err error) {
	err = r.guard.Do(ctx, caller, guard.Op{Action: action, Target: target(name)}, func(tx *guard.Tx) error {
		if t, err = find(ctx, tx.Tx, name, tx.ForUpdate()); err != nil {
			return err
		}
		if err := fn(tx, &t); err != nil {
			return err
		}
		t.ChangedAt = tx.Now()
		tx.Touch(Kind, string(name))
		return update(ctx, tx.Tx, t)
	})
	return r.named(t), err
}

// Get shows a tenant.
func (r *Register) Get(ctx context.Context, caller estover.Caller, name estover.TenantID) (t Tenant, err error) {
	err = r.guard.Read(ctx, caller, guard.Op{Action: "tenant.read", Target: target(name)}, func(tx *db.Tx) error {
		t, err = find(ctx, tx, name, "")
		return err
	})
	return r.named(t), err
}

// MaxPage is the most that one page of a list holds, and what it holds if
// nothing is asked.
const MaxPage = 200

// List shows tenants by name. next is where the following page begins (pass it
// as after), or "" at the end.
func (r *Register) List(ctx context.Context, caller estover.Caller, after string, limit int) (tenants []Tenant, next string, err error) {
	if limit <= 0 || limit > MaxPage {
		limit = MaxPage
	}
	err = r.guard.Read(ctx, caller, guard.Op{Action: "tenant.list"}, func(tx *db.Tx) error {
		tenants, err = list(ctx, tx, after, limit+1)
		return err
	})
	if len(tenants) > limit {
		tenants = tenants[:limit]
		next = string(tenants[limit-1].Name)
	}
	for i, t := range tenants {
		tenants[i] = r.named(t)
	}
	return tenants, next, err
}

// Active says why a tenant may do nothing, if so: [ErrNotFound] or [ErrDisabled].
// It reads a copy; of the default tenant there is nothing to ask.
func (r *Register) Active(ctx context.Context, name estover.TenantID) error {
	_, err := r.active(ctx, name)
	return err
}

func (r *Register) active(ctx context.Context, name estover.TenantID) (*Tenant, error) {
	if name == estover.DefaultTenant {
		return nil, nil
	}
	if !Valid(name) { // what comes in a URL is not looked for
		return nil, ErrNotFound
	}
	t, err := r.known.Get(ctx, estover.DefaultTenant, string(name))
	if err == nil && t.Status != Active {
		err = ErrDisabled
	}
	return t, err
}

// Opened are those of the networks that the tenant's own settings may open: each
// that lies within one of its private networks. The default tenant opens all.
func (r *Register) Opened(ctx context.Context, name estover.TenantID, networks []netip.Prefix) ([]netip.Prefix, error) {
	if name == estover.DefaultTenant || len(networks) == 0 {
		return networks, nil
	}
	own, err := r.Networks(ctx, name)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(networks), func(p netip.Prefix) bool {
		return !slices.ContainsFunc(own, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) })
	}), nil
}

// Networks are the private networks that a tenant's own settings may open. It is
// not for the default tenant, which has no such bound.
func (r *Register) Networks(ctx context.Context, name estover.TenantID) ([]netip.Prefix, error) {
	t, err := r.active(ctx, name)
	if err != nil || t == nil {
		return nil, err
	}
	return t.networks()
}

// Kept is [Register.Networks] of a tenant that may be disabled: what was made for it
// at systems of its own is taken away there all the same.
func (r *Register) Kept(ctx context.Context, name estover.TenantID) ([]netip.Prefix, error) {
	t, err := r.active(ctx, name)
	if err != nil && !errors.Is(err, ErrDisabled) || t == nil {
		return nil, err
	}
	return t.networks()
}

func (t *Tenant) networks() ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, text := range t.PrivateNetworks {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("the networks of the tenant %s: %w", t.Name, err)
		}
		all = append(all, p)
	}
	return all, nil
}

// Names are the names of all tenants, disabled ones too and erased ones not: what Estover itself does
// for each, again and again.
func (r *Register) Names(ctx context.Context) (names []estover.TenantID, err error) {
	err = r.guard.DB().View(ctx, estover.DefaultTenant, func(tx *db.Tx) error {
		names, err = allNames(ctx, tx)
		return err
	})
	return names, err
}

// named adds what follows from the name.
func (r *Register) named(t Tenant) Tenant {
	if t.Name != "" {
		t.Issuer = r.Issuer(t.Name)
	}
	return t
}

func target(name estover.TenantID) string { return Kind + ":" + string(name) }
