// Package target keeps the register of systems in which credentials are made:
// databases, brokers, directories. It says how one is reached and as whom, opens
// the engine that works there, and bounds what is done there.
//
// # As whom
//
// A target names a secret with the fields username and password, its admin. The
// secret names the hosts that it may be sent to, and its owner alone adds one: so
// nobody who may register targets can have the password of a database sent to a
// host of their own. Each use of it is counted as any other ([secret.Secrets.Use]).
//
// # What is done there
//
//	          5 failures of the target in a row
//	closed ───────────────────────────────────▶ open ──(one at a time, ever later)──▶ probe
//	   ▲                                          ▲                                     │ │
//	   │                                          └────────────────fails────────────────┘ │
//	   └───────────────────────────────────succeeds──────────────────────────────────────┘
//
// While the breaker is open nothing but one probe at a time is tried, and what
// is asked for is refused at once. Of credentials that end, so many batches are
// under way at once ([Spec.Batches]); of those that are made, so many are too, in a
// lane of their own. Both are a node's own: two nodes do twice as much.
//
// # Clocks
//
// A target refuses a user by its own clock. How far that is from ours is measured
// when its engine is opened, and again from time to time ([Targets.Clock]).
package target

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
)

// The errors of targets.
var (
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "target_not_found", Detail: "There is no such target. See `estover secret engine list`."}
	ErrExists   = &estover.Error{Kind: estover.Conflict, Code: "target_exists", Detail: "There is a target of this name already."}
	ErrInvalid  = &estover.Error{Kind: estover.Invalid, Code: "target_invalid", Detail: "The target is not valid."}
	// ErrNotOwner is returned when somebody but its owner or an administrator has a
	// target reached otherwise, or gives it to another owner.
	ErrNotOwner    = &estover.Error{Kind: estover.Denied, Code: "target_not_owner", Detail: "Only the owner of the target or an administrator says where it is, as whom users are made there, and who its owner is."}
	ErrChanged     = &estover.Error{Kind: estover.Conflict, Code: "target_changed", Detail: "The target has been changed in the meantime. Look at it and try again."}
	ErrInUse       = &estover.Error{Kind: estover.Conflict, Code: "target_in_use", Detail: "The target is in use. Revoke the leases there, and remove its roles and rotations."}
	ErrUnreachable = &estover.Error{Kind: estover.Unavailable, Code: "target_unreachable", Detail: "The target cannot be reached. An operator finds the reason with `estover secret engine check`."}
	ErrBusy        = &estover.Error{Kind: estover.Unavailable, Code: "target_busy", Detail: "So much is under way at the target that this had no turn in time. Try again."}
	ErrDisabled    = &estover.Error{Kind: estover.Conflict, Code: "target_disabled", Detail: "The target is disabled, so nothing is issued there. An operator enables it again."}
	ErrSuspect     = &estover.Error{Kind: estover.Conflict, Code: "target_not_reconciled", Detail: "The server was restored from a backup, so nothing is issued at the target before the users there have been compared with the leases here: estover secret engine reconcile."}
	ErrAdmin       = &estover.Error{Kind: estover.Invalid, Code: "target_admin_invalid", Detail: "The secret with which users are made at the target cannot be used."}
)

// A Spec is what one says of a target.
type Spec struct {
	Name        string            `json:"name" doc:"How it is called here: small letters, digits, dots, dashes and underscores"`
	Kind        string            `json:"kind" doc:"Of which kind it is; GET /v1/secret-engine-kinds lists them"`
	Address     string            `json:"address" doc:"Where it is, as its kind writes it, without credentials"`
	Options     map[string]string `json:"options,omitempty" doc:"What else its kind wants to know"`
	Authorities string            `json:"authorities,omitempty" doc:"Certificates in PEM whose holders are trusted instead of the system's"`
	Admin       string            `json:"admin,omitempty" doc:"Path of the secret, with the fields username and password, as whom users are made"`
	Owner       estover.Subject   `json:"owner,omitempty" doc:"Who answers for it, as user:usr_…; who creates it if left out"`
	Description string            `json:"description,omitempty" maxLength:"1000"`
	Batches     int64             `json:"batches,omitempty" minimum:"0" maximum:"64" doc:"How many batches of credentials may end there at once; 4 if left out"`
}

// A Target is a system in which credentials are made.
type Target struct {
	ID string `json:"id"`
	Spec
	Ready       bool            `json:"ready"`                  // the whole round has gone well as it is reached
	CheckedAt   time.Time       `json:"checked_at,omitzero"`    // when it last did
	DisabledAt  time.Time       `json:"disabled_at,omitzero"`   // nothing is issued there since
	DisabledFor string          `json:"disabled_for,omitempty"` // why
	SuspectAt   time.Time       `json:"suspect_at,omitzero"`    // nothing is issued before it is reconciled
	CreatedAt   time.Time       `json:"created_at"`
	CreatedBy   estover.Subject `json:"created_by"`
	UpdatedAt   time.Time       `json:"updated_at"`
	Reach       int64           `json:"-"` // raised when it is reached otherwise
	Epoch       int64           `json:"-"` // raised by every change

	checkedReach int64
}

// Usable says why nothing is issued at the target, if so.
func (t *Target) Usable() error {
	switch {
	case !t.DisabledAt.IsZero():
		return ErrDisabled.With("The target %s is disabled, so nothing is issued there: %s", t.Name, t.DisabledFor)
	case !t.SuspectAt.IsZero():
		return ErrSuspect.With("The server was restored from a backup, so nothing is issued at %s before the users there have been compared with the leases here: estover secret engine reconcile %s.", t.Name, t.Name)
	}
	return nil
}

// Options are what a program says once.
type Options struct {
	// Kinds are the kinds of target that there are.
	Kinds []engine.Kind
	// Dial opens a connection to host:port, which is the own one of a target of the
	// tenant.
	Dial func(ctx context.Context, tenant estover.TenantID, address string) (net.Conn, error)
	// InUse says what keeps a target from being removed, in words for whoever wants
	// to: leases, roles, rotations. It is "" if nothing does. Nil knows of nothing.
	InUse  func(ctx context.Context, tx *db.Tx, target *Target) (why string, err error)
	Logger *slog.Logger
}

// Targets are the targets of all tenants. It is safe for use by many at once.
type Targets struct {
	guard   *guard.Guard
	secrets *secret.Secrets
	o       Options
	kinds   map[string]engine.Kind
	copies  *guard.Cache[*Target]
	names   *guard.Cache[string] // ids by names

	mu   sync.Mutex
	open map[db.Place]*site
}

// Kind is what events that touch a target call it.
const Kind = "secret_target"

// New is a register behind the door g.
func New(g *guard.Guard, s *secret.Secrets, o Options) *Targets {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.InUse == nil {
		o.InUse = func(context.Context, *db.Tx, *Target) (string, error) { return "", nil }
	}
	t := &Targets{guard: g, secrets: s, o: o, kinds: map[string]engine.Kind{}, open: map[db.Place]*site{}}
	for _, k := range o.Kinds {
		t.kinds[k.Name] = k
	}
	t.copies = guard.NewCache(g, Kind, Find)
	t.names = guard.NewCache(g, Kind+"_name", idOf)
	return t
}

// Kinds are the kinds of target that there are, by name.
func (t *Targets) Kinds() []engine.Kind {
	list := slices.Clone(t.o.Kinds)
	slices.SortFunc(list, func(a, b engine.Kind) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Kind is the kind of a target.
func (t *Targets) Kind(name string) (engine.Kind, error) {
	k, ok := t.kinds[name]
	if !ok {
		var names []string
		for _, k := range t.Kinds() {
			names = append(names, k.Name)
		}
		return k, ErrInvalid.With("There is no kind of target %q; there are: %s.", name, strings.Join(names, ", ")).At("kind")
	}
	return k, nil
}

// Create registers a target. Nothing is issued there before the whole round has
// gone well.
func (t *Targets) Create(ctx context.Context, c estover.Caller, s Spec) (x Target, err error) {
	if s.Owner == "" {
		s.Owner = c.Subject
	}
	s, invalid := t.check(s)
	x = Target{ID: estover.NewID("tgt"), Spec: s, CreatedBy: c.Subject, Reach: 1, Epoch: 1}
	op := guard.Op{Action: "target.create", Target: "target:" + s.Name, Detail: map[string]any{"target": x.ID, "spec": s}}
	err = t.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if invalid != nil {
			return invalid
		}
		x.CreatedAt, x.UpdatedAt = tx.Now(), tx.Now()
		tx.Touch(Kind, x.ID)
		tx.Touch(Kind+"_name", x.Name)
		return insert(ctx, tx.Tx, &x)
	})
	return x, err
}

// A Change says what to change of a target; nil leaves things as they are.
type Change struct {
	Address     *string            `json:"address,omitempty"`
	Options     *map[string]string `json:"options,omitempty"`
	Authorities *string            `json:"authorities,omitempty"`
	Admin       *string            `json:"admin,omitempty"`
	Owner       *estover.Subject   `json:"owner,omitempty"`
	Description *string            `json:"description,omitempty"`
	Batches     *int64             `json:"batches,omitempty"`
	// Disabled says whether anything is issued there, and Reason why not.
	Disabled *bool   `json:"disabled,omitempty"`
	Reason   *string `json:"reason,omitempty"`
}

// Update changes a target, named by its name. One that is reached otherwise
// afterwards is checked again before anything is issued there. Where it is reached
// and whose it is, its owner or an administrator says: passwords that are rotated
// there are shown to whoever answers.
func (t *Targets) Update(ctx context.Context, c estover.Caller, name string, ch Change) (x Target, err error) {
	op := guard.Op{Action: "target.update", Target: "target:" + name, Detail: map[string]any{"change": ch}}
	err = t.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		was, err := FindNamed(ctx, tx.Tx, name)
		if err != nil {
			return err
		}
		x = *was
		set(&x.Address, ch.Address)
		set(&x.Options, ch.Options)
		set(&x.Authorities, ch.Authorities)
		set(&x.Admin, ch.Admin)
		set(&x.Owner, ch.Owner)
		set(&x.Description, ch.Description)
		set(&x.Batches, ch.Batches)
		if x.Spec, err = t.check(x.Spec); err != nil {
			return err
		}
		if ch.Disabled != nil && *ch.Disabled {
			set(&x.DisabledFor, ch.Reason)
			if x.DisabledFor == "" || len(x.DisabledFor) > 500 {
				return ErrInvalid.With("Say why the target is disabled, in up to 500 bytes: those who are refused need to know.").At("reason")
			}
			x.DisabledAt = tx.Now()
		} else if ch.Disabled != nil {
			x.DisabledAt, x.DisabledFor = time.Time{}, ""
		}
		x.UpdatedAt = tx.Now()
		x.Epoch++
		moved := elsewhere(was.Spec, x.Spec)
		if (moved || x.Owner != was.Owner) && c.Subject != was.Owner && !c.Has(estover.Admin) && c.Subject.Kind() != estover.SystemKind {
			return ErrNotOwner
		}
		if moved {
			x.Reach = x.Epoch
		}
		x.Ready = x.checkedReach == x.Reach
		tx.SetTarget("target:" + name)
		tx.Note("target", x.ID)
		tx.Touch(Kind, x.ID)
		return replace(ctx, tx.Tx, was, &x)
	})
	return x, err
}

// elsewhere reports whether a target is reached otherwise.
func elsewhere(a, b Spec) bool {
	if a.Address != b.Address || a.Admin != b.Admin || a.Authorities != b.Authorities || len(a.Options) != len(b.Options) {
		return true
	}
	for k, v := range a.Options {
		if w, ok := b.Options[k]; !ok || v != w {
			return true
		}
	}
	return false
}

func set[T any](v, to *T) {
	if to != nil {
		*v = *to
	}
}

// List gives the targets in the order of their names.
func (t *Targets) List(ctx context.Context, c estover.Caller, after string, limit int) (all []Target, err error) {
	err = t.guard.Read(ctx, c, guard.Op{Action: "target.list"}, func(tx *db.Tx) error {
		all, err = list(ctx, tx, after, limit)
		return err
	})
	return all, err
}

// Get is the target of this name.
func (t *Targets) Get(ctx context.Context, c estover.Caller, name string) (x Target, err error) {
	err = t.guard.Read(ctx, c, guard.Op{Action: "target.read", Target: "target:" + name}, func(tx *db.Tx) error {
		found, err := FindNamed(ctx, tx, name)
		if err == nil {
			x = *found
		}
		return err
	})
	return x, err
}

// Remove ends a target at which there is nothing any more.
func (t *Targets) Remove(ctx context.Context, c estover.Caller, name string) error {
	op := guard.Op{Action: "target.remove", Target: "target:" + name, Effect: guard.Deletes}
	return t.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		x, err := FindNamed(ctx, tx.Tx, name)
		if err != nil {
			return err
		}
		// The row is taken first, so that nothing can be made there meanwhile.
		if err := end(ctx, tx.Tx, x); err != nil {
			return err
		}
		why, err := t.o.InUse(ctx, tx.Tx, x)
		if err != nil {
			return err
		}
		if why != "" {
			return ErrInUse.With("%s", why)
		}
		tx.Note("target", x.ID)
		tx.Touch(Kind, x.ID)
		tx.Touch(Kind+"_name", x.Name)
		return nil
	})
}

// Snapshot is a target as it was when it was last looked at: a copy, for who
// works there. It is not to be changed.
func (t *Targets) Snapshot(ctx context.Context, tenant estover.TenantID, id string) (*Target, error) {
	return t.copies.Get(ctx, tenant, id)
}

// Named is the id of the target of this name, from a copy.
func (t *Targets) Named(ctx context.Context, tenant estover.TenantID, name string) (string, error) {
	return t.names.Get(ctx, tenant, name)
}

// check fills in what a spec leaves open and says what is wrong with it.
func (t *Targets) check(s Spec) (Spec, error) {
	k, err := t.Kind(s.Kind)
	if err != nil {
		return s, err
	}
	if s.Batches == 0 {
		s.Batches = 4
	}
	if s.Options == nil {
		s.Options = map[string]string{}
	}
	switch {
	case !estover.ValidName(s.Name):
		return s, ErrInvalid.With("A target has a name of up to 63 small letters, digits, dots, dashes and underscores, not %q.", s.Name).At("name")
	case s.Owner.ID() == "" || s.Owner.Kind() != estover.UserKind && s.Owner.Kind() != estover.SystemKind:
		return s, ErrInvalid.With("The owner of a target is a person (user:…), not %q.", s.Owner).At("owner")
	case len(s.Description) > 1000:
		return s, ErrInvalid.With("The description of a target has at most 1000 bytes.").At("description")
	case s.Batches < 1 || s.Batches > 64:
		return s, ErrInvalid.With("Between 1 and 64 batches are under way at a target at once, not %d.", s.Batches).At("batches")
	case len(s.Authorities) > 1<<20:
		return s, ErrInvalid.With("The authorities have at most a MiB.").At("authorities")
	case len(s.Options) > 100:
		return s, ErrInvalid.With("A target has at most 100 options.").At("options")
	}
	known := map[string]engine.Field{}
	for _, f := range k.Options {
		known[f.Name] = f
		if f.Required && s.Options[f.Name] == "" {
			return s, ErrInvalid.With("A target of the kind %s needs the option %s: %s.", k.Name, f.Name, f.Help).At("options." + f.Name)
		}
	}
	for name, v := range s.Options {
		if _, ok := known[name]; !ok {
			return s, ErrInvalid.With("A target of the kind %s has no option %q.", k.Name, name).At("options." + name)
		}
		if len(v) > 64<<10 {
			return s, ErrInvalid.With("The option %s has at most 64 KiB.", name).At("options." + name)
		}
	}
	if _, err := k.Host(s.Address); err != nil {
		return s, ErrInvalid.With("The address cannot be: %s.", err).At("address")
	}
	return s, nil
}
