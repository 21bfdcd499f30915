// Package rotation changes secrets at the systems that accept them, and proves
// from our own traffic that nobody uses the old one before it dies.
//
// A managed secret is one at a path of package secret whose versions are made
// here and applied to a user of a target. With two users, in the slots a and b,
// the one serves while the other gets the next password, so that at every moment
// the current version logs in, and the one before it too until its turn is over:
//
//	idle ─R1▶ staged ─R2▶ applied ─R3▶ verified ─R4▶ grace ─R5▶ retiring ─▶ scrambling ─▶ idle
//	             └──────────┴─────────────┴─▶ aborting ─▶ idle   ▲     └─(laggards)─▶ grace
//
//	R1  a secret is generated and stored, sealed, as the pending version
//	R2  the user of the idle slot gets it at the target
//	R3  somebody logs in with it
//	R4  it is the current version, by one compare-and-swap; the one before is the previous
//	R5  when the grace is over and nobody uses the previous version, its user's
//	    password is scrambled, and it is retired
//
// What is stored comes before what is done (R6): whatever a crash leaves behind,
// the row and the versions say what to do, and every step may be done again. Only
// R4 cannot be taken back; before it, a rotation that fails is abandoned and the
// current version has never been touched. A step belongs to the node that has
// claimed the row, and each change of the row names the generation that it
// expects, so that two nodes doing it twice leave the same result.
//
// # When a version may die
//
// Its grace is over (R7), and every holder is settled: the gateway has not used
// it for the quiet period and has nothing open with it, on every node, each of
// which says so when it is asked (a node that does not answer any more uses no
// rotated secret either); who read it in plaintext has read a later one since, or
// its session or log-in has ended; the current version is in each store to which the
// secret is pushed; nobody is logged in at the target as the old user. Otherwise it
// lives on, and who holds it up is named ([Rotations.Explain], R8). When that takes
// longer than a second grace, it is an alarm. A person may end it all the same, with a
// reason ([Rotations.Force]).
//
// # One user only
//
// Where there is but one user (single_slot), a target that takes two passwords
// for it at once is treated as above. Any other refuses whoever comes between R2
// and R4 with what was good before; how long that was is measured by logging in
// and shown.
//
// # Where nothing is done
//
// At a target that is disabled, or has not been compared with what is here since the
// server was restored from a backup, a rotation stays at the step where it is (F5):
// what a newer database had made current may be in the slot that this one believes
// to be on its way out. Nobody is scrambled, tried out or made there before somebody
// has looked.
//
// # Keys and certificates
//
// What a target or an authority makes itself cannot be stored before it is there.
// Of a key the name is: there are two, which keys get in turn, one that is lost in a
// crash is found by its name and deleted, and nothing else ever has the name. R5
// deletes the old key. Of a certificate whatever is lost has a key that nobody has;
// R5 revokes the old one. A certificate is replaced when two thirds of its life are
// over, and one that has ended by itself is held up by nobody.
//
// # Admin users
//
// The secret by which a target is worked at is rotated in the same way (R12): the
// second user is made if it is not there, from a template or with the rights of the
// first ([Rotations.RotateRoot]), logs in, and shows that
// it can change the password of the first, by setting the one that it has, before
// anybody else touches that. Where one admin has two passwords at once, R5 ends when the
// target refuses the old one.
package rotation

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
)

// The errors of rotations.
var (
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "rotation_not_found", Detail: "The secret is not rotated. Begin with `estover rotation put`."}
	ErrInvalid  = &estover.Error{Kind: estover.Invalid, Code: "rotation_invalid", Detail: "The secret cannot be rotated in this way."}
	ErrNotOwner = &estover.Error{Kind: estover.Denied, Code: "rotation_not_owner", Detail: "Only the owner of the secret or an administrator has it rotated."}
	ErrBusy     = &estover.Error{Kind: estover.Conflict, Code: "rotation_under_way", Detail: "A rotation is under way. `estover rotation explain` says what it waits for."}
	ErrStopped  = &estover.Error{Kind: estover.Conflict, Code: "rotation_stopped", Detail: "Rotations at this target are stopped since a new password did not log in. Find out why, then: estover rotation clear TARGET"}
	ErrCrowded  = &estover.Error{Kind: estover.Unavailable, Code: "rotation_target_crowded", Detail: "As many rotations are under way at the target as may be at once. This one begins when one of them has ended."}
	ErrReason   = &estover.Error{Kind: estover.Invalid, Code: "rotation_reason_missing", Detail: "Say why, in up to 500 characters: who is cut off needs to know.", Field: "reason"}
	ErrNothing  = &estover.Error{Kind: estover.Conflict, Code: "rotation_nothing_to_force", Detail: "No version of the secret is on its way out, so there is nothing to force."}
	ErrWaits    = &estover.Error{Kind: estover.Conflict, Code: "rotation_waits", Detail: "Nothing of a rotation is done at the target now. `estover rotation explain` says why."}
	ErrNode     = &estover.Error{Kind: estover.Unavailable, Code: "node_not_standing", Detail: "This node has not been able to say that it is there, so it uses no secret that is rotated. Try again in a moment."}
)

// errLost says that another node has taken the rotation over, or somebody has
// changed it.
var errLost = &estover.Error{Kind: estover.Conflict, Code: "rotation_changed", Detail: "The rotation has changed in the meantime. Look again."}

// A Kind says how the versions of a secret are applied.
type Kind string

// The kinds.
const (
	TwoUsers    Kind = "two_users"
	SingleSlot  Kind = "single_slot"
	Keys        Kind = "keys"        // that the target makes, under two names
	Certificate Kind = "certificate" // made by an authority of ours
)

// made reports whether the value of a version comes from the other side, and is
// stored when it has come.
func (k Kind) made() bool { return k == Keys || k == Certificate }

// A Step is how far a rotation has come.
type Step string

// The steps, as the package's picture has them.
const (
	Idle       Step = "idle"
	Staged     Step = "staged"
	Applied    Step = "applied"
	Verified   Step = "verified"
	Grace      Step = "grace"
	Retiring   Step = "retiring"
	Scrambling Step = "scrambling"
	Aborting   Step = "aborting"
)

// A Spec is what one says of a rotation.
type Spec struct {
	Target      string          `json:"target,omitempty" doc:"Where the users are, by its name or id; none for certificates"`
	Kind        Kind            `json:"kind" doc:"two_users, single_slot, keys or certificate"`
	Users       []string        `json:"users,omitempty" nullable:"false" doc:"The users at the target: two of them, or one for single_slot; of keys, the two names that they get in turn; of certificates, none"`
	UserField   string          `json:"user_field,omitempty" doc:"The field of the secret that has the user's name; username if left out"`
	SecretField string          `json:"secret_field,omitempty" doc:"The field that has the password or the key; password if left out, and key of keys"`
	Template    engine.Template `json:"template,omitempty" doc:"What a user that is not there, or a key, is made from; without it both users must be there"`
	Subject     *Subject        `json:"subject,omitempty" doc:"Of certificates: what is certified"`
	Schedule    string          `json:"schedule,omitempty" doc:"By the risk of the secret if left out, and certificates by their life; a time as 12h or 30d; five fields of cron, in UTC; or manual"`
	Window      string          `json:"window,omitempty" doc:"In which part of the day it begins, in UTC, as 02:00-05:00"`
	Within      int64           `json:"within_seconds,omitempty" minimum:"0" doc:"With five fields of cron: for how long after its time it may still begin. Later it waits for the next time"`

	// How long clients go on with what they have (R7).
	Cache      int64 `json:"cache_seconds,omitempty" minimum:"0" doc:"How long clients keep a version in memory"`
	Poll       int64 `json:"poll_seconds,omitempty" minimum:"0" doc:"How often they look for another one"`
	Connection int64 `json:"connection_seconds,omitempty" minimum:"0" doc:"How long they keep a connection"`
	Quiet      int64 `json:"quiet_seconds,omitempty" minimum:"0" doc:"For how long nobody must have used a version that is to die; 600 if left out"`
	Escalate   int64 `json:"escalate_seconds,omitempty" minimum:"0" doc:"For how long after its grace a version that is used is waited for; then it dies all the same, and who loses access is named. Without end if left out"`
}

// Grace is how long a previous version is kept at least: the cache of clients,
// twice the time in which they look, or the age of connections, whichever is
// longest. An hour if nothing is said.
func (s Spec) Grace() time.Duration {
	if s.Cache == 0 && s.Poll == 0 && s.Connection == 0 {
		return time.Hour
	}
	return time.Duration(max(s.Cache, 2*s.Poll, s.Connection)) * time.Second
}

// alarm is how long after its grace a version that is used is an alarm.
func (s Spec) alarm() time.Duration { return max(s.Grace(), s.quiet()) }

func (s Spec) quiet() time.Duration { return time.Duration(s.Quiet) * time.Second }

// user is the name of a slot's user.
func (s Spec) user(slot string) string {
	if len(s.Users) == 0 {
		return ""
	}
	if slot == "b" && len(s.Users) > 1 {
		return s.Users[1]
	}
	return s.Users[0]
}

// A Rotation is the life of one managed secret.
type Rotation struct {
	Secret     string `json:"secret"` // its id
	Path       string `json:"path"`
	TargetName string `json:"target_name,omitempty"`
	Spec
	Step       Step            `json:"step"`
	Slot       string          `json:"slot,omitempty"` // that serves
	Pending    int64           `json:"pending_version,omitempty"`
	Current    int64           `json:"current_version,omitempty"`
	Previous   int64           `json:"previous_version,omitempty"`
	Generation int64           `json:"generation"`
	GraceUntil time.Time       `json:"grace_until,omitzero"`
	DueAt      time.Time       `json:"due_at,omitzero"` // when the next begins by itself
	RotatedAt  time.Time       `json:"rotated_at,omitzero"`
	CreatedAt  time.Time       `json:"created_at"`
	ExpiresAt  time.Time       `json:"expires_at,omitzero"` // when the current version ends by itself
	LastError  string          `json:"last_error,omitempty"`
	LateAt     time.Time       `json:"late_at,omitzero"`          // since when it is an alarm that a version does not retire
	Refused    int64           `json:"refused_micros,omitempty"`  // with one user: for how long log-ins were refused the last time
	ForcedBy   estover.Subject `json:"forced_by,omitempty"`       // who ends the previous version although it is used
	Reason     string          `json:"forced_reason,omitempty"`   // and why
	Laggards   []Laggard       `json:"laggards" nullable:"false"` // who held up the retirement when it was last looked
	Stopped    string          `json:"target_stopped,omitempty"`  // why no rotation begins at the target
	Waits      string          `json:"waits,omitempty"`           // why nothing is done about it
	Next       time.Time       `json:"next_try_at,omitzero"`      // when something is done about it again

	kind            Kind
	epoch           int64
	tries           int64
	heldBy          string
	heldUntil       time.Time
	switchedAt      time.Time
	applyingAt      time.Time
	previousExpires time.Time

	// The serial numbers of the certificates that versions have.
	pendingSerial, currentSerial, previousSerial string
}

// A Target is what rotations need to know of one.
type Target struct {
	ID      string
	Name    string
	Admin   string // the path of the secret by which it is worked at
	Host    string // where it is
	Overlap bool   // a user may have two secrets at once
	Plain   bool   // it makes secrets itself
	Pair    bool   // its engine is an [engine.Pairer]
	Kind    string // as people call it

	// Account gives one form to all the names of a user; nil if it has only one.
	Account func(user string) string

	CheckedAt time.Time // when it last went well to make, log in and end a user there
}

// Config is what rotations are made of.
type Config struct {
	Guard   *guard.Guard
	Secrets *secret.Secrets

	// Target finds a target by its name or id. Engine works at one.
	Target func(ctx context.Context, tenant estover.TenantID, name string) (Target, error)
	Engine func(ctx context.Context, tenant estover.TenantID, id string) (engine.Engine, error)
	// Keep keeps a target from being removed before the transaction ends, unless it
	// has been. Nil knows of no removal.
	Keep func(ctx context.Context, tx *db.Tx, id string) error
	// As works at a target as somebody who is to be its admin. The engine is closed
	// after use. Nil tries nobody out.
	As func(ctx context.Context, tenant estover.TenantID, id string, c engine.Credential) (engine.Engine, error)

	// Copy keeps the next version of a target's admin elsewhere, before it becomes
	// current: without the copy it does not. It may be called twice with the same.
	// Nil keeps none.
	Copy func(ctx context.Context, tenant estover.TenantID, target, path string, version int64, values map[string]estover.Secret) error

	// Certifier makes certificates.
	Certifier Certifier

	// Sponsor is who answers for an agent; "" if nobody.
	Sponsor func(ctx context.Context, tx *db.Tx, agent string) (string, error)
	// Over reports whether somebody who has read a value at a time cannot come with
	// what they had then any more: the session has ended or, outside of one, every
	// log-in.
	Over func(ctx context.Context, tx *db.Tx, subject estover.Subject, session string, at time.Time) (bool, error)
	// Behind are the stores to which the secret is pushed and where this version of it
	// is not yet. Nil: it is pushed nowhere.
	Behind func(ctx context.Context, tx *db.Tx, secret string, version int64) ([]Laggard, error)
	// Risk is how much harm the secret would do, whatever the reason. Nil: what is
	// said of it.
	Risk func(ctx context.Context, tenant estover.TenantID, s secret.Secret) (secret.Risk, error)

	Node   string // the name of this node; one that nobody has if empty
	Logger *slog.Logger
}

// Rotations are the managed secrets of all tenants. It is safe for use by many
// at once.
type Rotations struct {
	Config
	until    atomic.Int64  // until when this node counts as there, in microseconds
	patience time.Duration // how long whoever asks for a rotation waits for it
	crew     crew

	// reached is told of each effect before it is made and after, and may end the
	// work there as a crash would. It is nil but in tests.
	reached func(point string) error
}

// New puts rotations together.
func New(c Config) *Rotations {
	if c.Node == "" {
		c.Node = estover.NewID("node")
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return &Rotations{Config: c, patience: runTime}
}

func (x *Rotations) at(point string) error {
	if x.reached == nil {
		return nil
	}
	return x.reached(point)
}

func target(path string) string { return "secret:" + path }

// check fills in what a spec leaves open and says what is wrong with it.
func (s Spec) check() (Spec, error) {
	if s.Kind == "" {
		s.Kind = TwoUsers
	}
	if s.UserField == "" {
		s.UserField = "username"
	}
	if s.SecretField == "" {
		if s.SecretField = "password"; s.Kind == Keys {
			s.SecretField = keyField
		}
	}
	if s.Kind == Certificate {
		s.UserField, s.SecretField = certificateField, keyField
		s.Users = []string{}
	}
	if s.Quiet == 0 {
		s.Quiet = 600
	}
	want, known := map[Kind]int{TwoUsers: 2, SingleSlot: 1, Keys: 2, Certificate: 0}[s.Kind]
	switch {
	case !known:
		return s, ErrInvalid.With("A secret is rotated as two_users, single_slot, keys or certificate, not %q.", s.Kind).At("kind")
	case s.Kind == Certificate && (s.Subject == nil || s.Subject.Role == ""):
		return s, ErrInvalid.With("Say by which role the certificates are made.").At("subject")
	case s.Kind == Certificate && (s.Target != "" || len(s.Template) > 0):
		return s, ErrInvalid.With("Certificates are made by a role, at no target and from no template.").At("target")
	case s.Kind == Certificate && s.Schedule == "manual":
		return s, ErrInvalid.With("A certificate ends by itself, so the next one is not left to somebody's memory.").At("schedule")
	case s.Kind != Certificate && s.Subject != nil:
		return s, ErrInvalid.With("What is certified is said of certificates alone.").At("subject")
	case s.Kind != Certificate && s.Target == "":
		return s, ErrInvalid.With("Say at which target the users are.").At("target")
	case len(s.Users) != want:
		return s, ErrInvalid.With("A rotation of the kind %s has the names of %d users at the target, not %d.", s.Kind, want, len(s.Users)).At("users")
	case slices.ContainsFunc(s.Users, func(u string) bool { return u == "" || len(u) > 255 }):
		return s, ErrInvalid.With("The name of a user has 1 to 255 bytes.").At("users")
	case want == 2 && s.Users[0] == s.Users[1]:
		return s, ErrInvalid.With("The two users are two: one serves while the other gets its password.").At("users")
	case s.UserField == s.SecretField:
		return s, ErrInvalid.With("The name of the user and the password are two fields.").At("secret_field")
	case s.Escalate != 0 && time.Duration(s.Escalate)*time.Second < s.alarm():
		return s, ErrInvalid.With("A version that is used is an alarm %s after its grace; let some time pass before it dies all the same.", s.alarm()).At("escalate_seconds")
	case max(s.Cache, s.Poll, s.Connection, s.Quiet, s.Escalate) > 30*24*3600:
		return s, ErrInvalid.With("Clients are waited for 30 days at most.")
	}
	p, err := parseSchedule(s.Schedule)
	if err != nil {
		return s, err
	}
	if s.Within != 0 && (p.cron == nil || s.Within < 60 || s.Within > 30*24*3600) {
		return s, ErrInvalid.With("For how long a rotation may begin after its time is said with a schedule of five fields, and is between a minute and 30 days.").At("within_seconds")
	}
	_, err = parseWindow(s.Window)
	return s, err
}

// Put has the secret at a path rotated, or changes how. If it has a version, that
// is what the first user logs in with; the first rotation makes the one of the
// second.
func (x *Rotations) Put(ctx context.Context, c estover.Caller, path string, spec Spec) (Rotation, error) {
	spec, invalid := spec.check()
	op := guard.Op{Action: "rotation.schedule", Target: target(path), Detail: map[string]any{"spec": spec}, Effect: guard.Manages}
	if invalid != nil {
		return Rotation{}, x.refused(ctx, c, op, invalid)
	}
	spec, err := x.settled(ctx, c, spec)
	if err != nil {
		return Rotation{}, x.refused(ctx, c, op, err)
	}
	before, err := x.load(ctx, c.Tenant, path)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Rotation{}, err
	}
	known := err == nil
	var at Target
	var near []string
	if !known || before.Target != spec.Target || !slices.Equal(before.Users, spec.Users) {
		if _, err := x.Guard.Admit(ctx, c, op); err != nil { // before other secrets are looked at
			return Rotation{}, err
		}
		if at, near, err = x.lets(ctx, c, path, spec); err != nil {
			return Rotation{}, x.refused(ctx, c, op, err)
		}
	}
	only := func(tx *db.Tx, r Rotation) error { return alone(ctx, tx, r, at, near, c.Has(estover.Admin)) }
	if known {
		return x.alter(ctx, c, op, before, spec, only)
	}
	r := Rotation{Path: path, Spec: spec, kind: spec.Kind, Step: Idle, Laggards: []Laggard{}}
	risk, err := x.risk(ctx, c.Tenant, path)
	if err != nil {
		return Rotation{}, x.refused(ctx, c, op, err)
	}
	version, err := x.adopt(ctx, c, path, &r)
	if err != nil {
		return Rotation{}, x.refused(ctx, c, op, err)
	}
	_, err = x.Secrets.Turn(ctx, c, op, path, func(t *secret.Turn) (err error) {
		r.Secret = t.Secret().ID
		if r.Current, err = t.Adopt(r.Slot); err == nil && r.Current != version {
			err = ErrInvalid.With("%s has another version since a moment ago. Try again.", path)
		}
		return err
	}, func(tx *guard.Tx) error {
		n := r
		n.CreatedAt, n.Generation = tx.Now(), 1
		if n.Current > 0 {
			n.RotatedAt = tx.Now()
		}
		n.plan(tx.Now(), risk)
		r.CreatedAt, r.Generation, r.RotatedAt, r.DueAt, r.Next = n.CreatedAt, 1, n.RotatedAt, n.DueAt, n.Next
		if err := x.keep(ctx, tx.Tx, n.Spec); err != nil {
			return err
		}
		if err := only(tx.Tx, n); err != nil {
			return err
		}
		return insert(ctx, tx.Tx, n, c.Subject)
	})
	return r, err
}

// settled is a spec with the id of its target, or what stands in its place, if
// there is something that can be rotated in this way.
func (x *Rotations) settled(ctx context.Context, c estover.Caller, spec Spec) (Spec, error) {
	if spec.Kind == Certificate {
		spec.Target = spec.Subject.place()
		if x.Certifier.Check == nil {
			return spec, ErrInvalid.With("Certificates are not rotated here.").At("kind")
		}
		return spec, x.Certifier.Check(ctx, c, *spec.Subject)
	}
	at, err := x.Target(ctx, c.Tenant, spec.Target)
	switch {
	case err != nil:
	case spec.Kind == Keys && !at.Plain:
		err = ErrInvalid.With("At the target %s passwords are set, so a secret is rotated as two_users or single_slot there.", at.Name).At("kind")
	case spec.Kind != Keys && at.Plain:
		err = ErrInvalid.With("The target %s makes keys itself, so a secret is rotated as keys there.", at.Name).At("kind")
	}
	spec.Target = at.ID
	return spec, err
}

// lets sees whether every target is let in when the users of a spec get other passwords.
func (x *Rotations) lets(ctx context.Context, c estover.Caller, path string, spec Spec) (at Target, near []string, err error) {
	if spec.Kind.made() { // nobody's password is changed
		return at, nil, nil
	}
	at, err = x.Target(ctx, c.Tenant, spec.Target)
	if err != nil {
		return at, nil, err
	}
	near, err = x.shared(ctx, c, at, path, spec.Users...)
	return at, near, err
}

// adopt puts into a rotation that begins by which of its users one logs in with the
// current version, which somebody wrote, or what is known of its certificate, and gives
// its number; 0 if there is none yet. One logs in with it at the target, so that
// whoever may not add a destination to the secret may not have it rotated there either.
func (x *Rotations) adopt(ctx context.Context, c estover.Caller, path string, r *Rotation) (version int64, err error) {
	tenant, spec := c.Tenant, r.Spec
	s, err := x.Secrets.Describe(ctx, tenant, path)
	if err != nil || s.CurrentVersion == 0 {
		return 0, err
	}
	if c.Subject != s.Owner && !c.Has(estover.Admin) && c.Subject.Kind() != estover.SystemKind {
		return 0, ErrNotOwner.With("The secret %s has a version, which is shown to the target. Only the owner of the secret or an administrator has it rotated there.", path)
	}
	fields, err := x.Secrets.Values(ctx, tenant, path, s.CurrentVersion)
	if err != nil {
		return 0, err
	}
	for _, f := range []string{spec.UserField, spec.SecretField} {
		if fields[f].Empty() {
			return 0, ErrInvalid.With("Version %d of the secret %s has no field %s.", s.CurrentVersion, path, f)
		}
	}
	if spec.Kind == Certificate {
		c, err := leaf(fields, x.Guard.DB().Now())
		if err != nil {
			return 0, ErrInvalid.With("Version %d of the secret %s cannot be used: %s.", s.CurrentVersion, path, err)
		}
		r.Slot, r.ExpiresAt, r.currentSerial = "a", c.NotAfter.UTC(), string(fields[serialField].Reveal())
		return s.CurrentVersion, nil
	}
	at := slices.Index(spec.Users, string(fields[spec.UserField].Reveal()))
	if at < 0 {
		return 0, ErrInvalid.With("Version %d of the secret %s does not log in as %s.", s.CurrentVersion, path, strings.Join(spec.Users, " or ")).At("users")
	}
	r.Slot = []string{"a", "b"}[at]
	return s.CurrentVersion, nil
}

// refused tells whoever may do an operation what is wrong with it.
func (x *Rotations) refused(ctx context.Context, c estover.Caller, op guard.Op, why error) error {
	return x.Guard.Do(ctx, c, op, func(*guard.Tx) error { return why })
}

// alter changes how a secret is rotated. Its users and its target stay while a
// rotation is under way.
func (x *Rotations) alter(ctx context.Context, c estover.Caller, op guard.Op, r Rotation, spec Spec, only func(*db.Tx, Rotation) error) (Rotation, error) {
	risk, err := x.risk(ctx, c.Tenant, r.Path)
	if err != nil {
		return Rotation{}, err
	}
	if err := x.unheld(ctx, c.Tenant, r.Path); err != nil {
		return Rotation{}, x.refused(ctx, c, op, err)
	}
	var n Rotation
	err = x.Guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if n, err = find(ctx, tx.Tx, r.Secret); err != nil {
			return err
		}
		same := n.Target == spec.Target && n.Kind == spec.Kind && slices.Equal(n.Users, spec.Users) && n.UserField == spec.UserField && n.SecretField == spec.SecretField
		if !same && n.Step != Idle {
			return ErrBusy.With("A rotation of %s is under way, so its users stay as they are. `estover rotation explain %s` says what it waits for.", r.Path, r.Path)
		}
		if !same && n.Current > 0 {
			return ErrInvalid.With("The users of %s are part of its versions. End this rotation and begin another: estover rotation remove %s", r.Path, r.Path)
		}
		if n.heldUntil.After(tx.Now()) {
			return ErrBusy.With("A node is at work at the rotation of %s. Try again in a moment.", r.Path)
		}
		if n.Target != spec.Target {
			if err := x.keep(ctx, tx.Tx, spec); err != nil {
				return err
			}
		}
		n.Spec, n.kind = spec, spec.Kind
		if !same {
			if err := only(tx.Tx, n); err != nil {
				return err
			}
		}
		n.plan(tx.Now(), risk)
		return save(ctx, tx.Tx, &n)
	})
	return n, err
}

// unheld waits until no node is at work at a rotation, which would lose what it has
// done if the row were changed under it. Whoever works does not take long.
func (x *Rotations) unheld(ctx context.Context, tenant estover.TenantID, path string) error {
	for late := time.After(x.patience); ; {
		r, err := x.load(ctx, tenant, path)
		if err != nil || !r.heldUntil.After(x.Guard.DB().Now()) {
			return err
		}
		select {
		case <-late:
			return ErrBusy.With("A node is at work at the rotation of %s. Try again in a moment.", path)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Remove ends the rotation of a secret. Its current version stays, as one that
// somebody wrote.
func (x *Rotations) Remove(ctx context.Context, c estover.Caller, path string) error {
	op := guard.Op{Action: "rotation.remove", Target: target(path), Effect: guard.Deletes}
	r, err := x.load(ctx, c.Tenant, path)
	if err != nil {
		return x.refused(ctx, c, op, err)
	}
	if r.Step != Idle {
		return x.refused(ctx, c, op, ErrBusy.With("A rotation of %s is under way. `estover rotation explain %s` says what it waits for.", path, path))
	}
	_, err = x.Secrets.Turn(ctx, c, op, path, (*secret.Turn).Release, func(tx *guard.Tx) error { return end(ctx, tx.Tx, r) })
	if errors.Is(err, errLost) {
		err = ErrBusy
	}
	return err
}

// Get shows the rotation of a secret.
func (x *Rotations) Get(ctx context.Context, c estover.Caller, path string) (r Rotation, err error) {
	err = x.Guard.Read(ctx, c, guard.Op{Action: "rotation.read", Target: target(path)}, func(tx *db.Tx) error {
		r, err = findPath(ctx, tx, path)
		return err
	})
	return r, err
}

// List shows the rotations below a prefix in the order of their paths: at most
// limit of them, after the path that the page before ended with.
func (x *Rotations) List(ctx context.Context, c estover.Caller, prefix, after string, limit int) (list []Rotation, err error) {
	err = x.Guard.Read(ctx, c, guard.Op{Action: "rotation.list"}, func(tx *db.Tx) error {
		list, err = findBelow(ctx, tx, prefix, after, limit)
		return err
	})
	return list, err
}

func (x *Rotations) load(ctx context.Context, tenant estover.TenantID, path string) (r Rotation, err error) {
	err = x.Guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		r, err = findPath(ctx, tx, path)
		return err
	})
	return r, err
}

func (x *Rotations) risk(ctx context.Context, tenant estover.TenantID, path string) (secret.Risk, error) {
	s, err := x.Secrets.Describe(ctx, tenant, path)
	if err != nil || x.Risk == nil {
		return s.Spec.Risk, err
	}
	return x.Config.Risk(ctx, tenant, s)
}

// Run has a rotation begin now, and does what can be done of it at once: the
// answer is a secret whose new version is the current one, or an error that says
// why not.
func (x *Rotations) Run(ctx context.Context, c estover.Caller, path string) (Rotation, error) {
	return x.run(ctx, c, path, false)
}

// run is [Rotations.Run], or what is done in an emergency: then it does not matter
// that clients may still have the version before.
func (x *Rotations) run(ctx context.Context, c estover.Caller, path string, urgent bool) (Rotation, error) {
	op := guard.Op{Action: "rotation.run", Target: target(path), Effect: guard.Manages}
	r, err := x.load(ctx, c.Tenant, path)
	if err == nil {
		err = x.checked(ctx, c.Tenant, r.Target)
	}
	if err == nil && r.Step == Idle {
		if _, err := x.Guard.Admit(ctx, c, op); err != nil { // before other secrets are looked at
			return Rotation{}, err
		}
		err = x.free(ctx, c, r)
	}
	if err != nil {
		return Rotation{}, x.refused(ctx, c, op, err)
	}
	err = x.Guard.Do(ctx, c, op, func(tx *guard.Tx) (err error) {
		if r, err = findPath(ctx, tx.Tx, path); err != nil {
			return err
		}
		switch {
		case r.waits(tx.Now()):
			return ErrWaits.With("%s", r.Waits)
		case r.Step == Grace || r.Step == Retiring || r.Step == Scrambling:
			return ErrBusy.With("Version %d of %s has not retired yet, and its user gets the next password. `estover rotation explain %s` says who uses it.", r.Previous, path, path)
		case r.heldUntil.After(tx.Now()) && r.Step != Idle:
			return nil // somebody is at work, and it is waited for
		case r.Step != Idle:
			r.Next, r.LastError, r.tries = tx.Now(), "", 0 // it goes on at once
		default:
			if until := r.switchedAt.Add(r.Grace()); tx.Now().Before(until) && !r.switchedAt.IsZero() && !urgent {
				return ErrBusy.With("%s was rotated at %s, and clients may have that version until %s. It is not rotated twice in that time.", path, r.switchedAt.Format(time.RFC3339), until.Format(time.RFC3339))
			}
			if err := mayBegin(ctx, tx.Tx, r.Target); err != nil {
				return err
			}
			r.DueAt, r.Next, r.LastError, r.tries = tx.Now(), tx.Now(), "", 0
			r.heldBy, r.heldUntil = "", time.Time{} // who has it does nothing yet
		}
		return save(ctx, tx.Tx, &r)
	})
	if err != nil {
		return Rotation{}, err
	}
	// Whoever asked may have gone; what has begun is brought to its end.
	return x.through(context.WithoutCancel(ctx), c.Tenant, r, urgent)
}

// runTime is how long [Rotations.Run] waits for what it began, if another node does
// it.
const runTime = 50 * time.Second

// Soon has a rotation begin as soon as it can, since version n was seen where it should
// not be: within a second or, where another version is on its way out, when that has
// retired. If n is not the current version any more, or is being replaced, that is
// done already.
func (x *Rotations) Soon(ctx context.Context, c estover.Caller, path string, n int64) error {
	op := guard.Op{Action: "rotation.run", Target: target(path)}
	return x.Guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		r, err := findPath(ctx, tx.Tx, path)
		if err != nil || r.Current != n || !slices.Contains([]Step{Idle, Grace, Retiring, Scrambling}, r.Step) {
			return err
		}
		at := tx.Now()
		if until := r.switchedAt.Add(r.Grace()); !r.switchedAt.IsZero() && at.Before(until) {
			at = until // it is not rotated twice in that time
		}
		if !r.DueAt.IsZero() && !r.DueAt.After(at) {
			return nil
		}
		r.DueAt = at
		r.wait()
		if r.Step != Scrambling { // what is on its way to that user must not come after its next password
			r.heldBy, r.heldUntil = "", time.Time{}
		}
		tx.Note("due_at", r.DueAt)
		return save(ctx, tx.Tx, &r)
	})
}

// through works at a rotation until it needs nothing but time, whichever node
// does the work.
func (x *Rotations) through(ctx context.Context, tenant estover.TenantID, r Rotation, urgent bool) (Rotation, error) {
	before, late := r, time.After(x.patience)
	for {
		err := x.advance(ctx, tenant, r.Secret)
		if err != nil && !errors.Is(err, errLost) {
			return r, err
		}
		path := r.Path
		if r, err = x.load(ctx, tenant, path); err != nil {
			return r, err
		}
		switch {
		case r.Current != before.Current:
			return r, nil
		case r.LastError != "":
			return r, failed(r)
		case r.waits(x.Guard.DB().Now()):
			return r, ErrWaits.With("%s", r.Waits)
		case urgent && r.Step == Idle && r.Next.After(x.Guard.DB().Now()): // others are not kept waiting for it
			return r, ErrCrowded
		}
		select {
		case <-late:
			return r, ErrBusy.With("%s is still being rotated. `estover rotation explain %s` says how far it is.", path, path)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Clear lets rotations begin again at a target where they were stopped: somebody
// has found out why a password did not log in.
func (x *Rotations) Clear(ctx context.Context, c estover.Caller, name string) error {
	op := guard.Op{Action: "rotation.clear", Target: "target:" + name}
	at, err := x.Target(ctx, c.Tenant, name)
	if err != nil {
		return x.refused(ctx, c, op, err)
	}
	op.Target = "target:" + at.ID
	return x.Guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		n, err := clearStop(ctx, tx.Tx, at.ID)
		if err == nil && n == 0 {
			err = ErrInvalid.With("Rotations at %s are not stopped.", name)
		}
		return err
	})
}

// checked clears a target where rotations are stopped and whose check has gone
// well since.
func (x *Rotations) checked(ctx context.Context, tenant estover.TenantID, id string) error {
	var since time.Time
	err := x.Guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		since, err = stoppedAt(ctx, tx, id)
		return err
	})
	if err != nil || since.IsZero() {
		return err
	}
	at, err := x.Target(ctx, tenant, id)
	if err != nil || !at.CheckedAt.After(since) {
		return err
	}
	op := guard.Op{Action: "rotation.clear", Target: "target:" + id, Detail: map[string]any{"checked_at": at.CheckedAt}}
	return x.Guard.Do(ctx, system(tenant), op, func(tx *guard.Tx) error {
		_, err := clearStop(ctx, tx.Tx, id)
		return err
	})
}

func system(tenant estover.TenantID) estover.Caller {
	return estover.Caller{Tenant: tenant, Subject: estover.System("rotation")}
}

// ErrFailed is returned when a rotation that was asked for has not come through.
var ErrFailed = &estover.Error{Kind: estover.Unavailable, Code: "rotation_failed", Detail: "The secret could not be rotated."}

func failed(r Rotation) error {
	return ErrFailed.With("%s could not be rotated: %s. Its current version is untouched.", r.Path, r.LastError)
}
