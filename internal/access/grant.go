// Package access says what agents may do: a grant names an agent, actions of
// one resource, the purposes they are for, the most sensitive class of data
// they may touch, and when it begins and ends. It may confine the parameters of
// the actions' paths, belong to one session and end with it, and have budgets.
//
//	scheduled ──(starts_at)──▶ live ──(expires_at)──▶ expired
//	    │                     │  ▲
//	    │            (unused) ▼  │ restore
//	    │                  suspended
//	    └────────────┬────────┘
//	        end, another of the name, the session's end ──▶ ended
//
// scheduled, live and expired are never stored: see [Grant.StateAt].
//
// What a grant says is never changed. Its id in a record means one authority for
// good; putting another grant under the same name ends the one and makes the
// other in one transaction. What covers nothing is refused by policy, which asks
// [Entitled] on a copy in memory; who writes on the strength of a grant hands
// its epoch to [db.DB.Append], under the name [Table].
//
// # Standing, eligible, elevated
//
// A standing grant covers what it names. An eligible one covers nothing: it says
// what its agent may be given, and [Access.Activate] makes a grant of it, for a
// while. That one, and every other that came of a request, is elevated.
//
// # Budgets
//
// A call on a grant with budgets takes its share before it is made, in the append
// that records it ([Access.Charge]), and gives back what it did not need when it
// is over. Work that is handed on draws on the same budgets as its holder's own,
// so that they are divided and never multiplied.
//
// # Grants that nobody uses
//
// A grant may say after how long without use it is doubted. That is announced;
// [Notice] later it is suspended and covers nothing; within [Recovery] anybody
// who may restores it, and then it ends.
package access

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Spec is what an operator decides about a grant.
type Spec struct {
	Name      string        `json:"name,omitempty" pattern:"^([a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?)?$" doc:"What the grant is called, so that it can be replaced: small letters, digits, dots, dashes and underscores. Its id if it is left out."`
	Agent     string        `json:"agent" minLength:"1" doc:"The agent that it is given to."`
	Resource  string        `json:"resource" minLength:"1" doc:"The resource that it is for."`
	Actions   []string      `json:"actions" minItems:"1" doc:"The actions of the resource, or * for every one."`
	Purposes  []string      `json:"purposes" minItems:"1" doc:"The purposes that it is given for. The agent must have declared them."`
	Class     estover.Class `json:"class" enum:"public,internal,confidential,restricted" doc:"The most sensitive class of data that it covers."`
	StartsAt  time.Time     `json:"starts_at,omitzero" doc:"When it begins; at once if it is left out."`
	ExpiresAt time.Time     `json:"expires_at,omitzero" doc:"When it ends by itself; never if it is left out."`

	Kind        Kind                `json:"kind,omitempty" enum:"standing,eligible" default:"standing" doc:"Whether it covers what it names (standing), or nothing until it is activated (eligible)."`
	Parameters  map[string][]string `json:"parameters,omitempty" doc:"The values that parameters in the paths of the actions may have, by name; any value for a parameter that is not named."`
	Session     string              `json:"session,omitempty" apply:"-" doc:"The session that it is for and ends with; every session of the agent if it is left out."`
	Request     string              `json:"request,omitempty" apply:"-" readOnly:"true" doc:"The request that it came of. Nobody but an approval sets it."`
	Budgets     Budgets             `json:"budgets,omitzero" doc:"How much may be done on it in all; without limit where nothing is said."`
	UnusedAfter int64               `json:"unused_after_seconds,omitempty" minimum:"0" maximum:"315360000" doc:"After how many seconds without use it is announced to the agent's sponsor and, a week later, suspended; never if it is left out."`
}

// A Kind says whether a grant covers what it names.
type Kind string

// The kinds of grant.
const (
	Standing Kind = "standing" // it does
	Eligible Kind = "eligible" // it does not, but may be activated
)

// The bounds of what a grant says.
const (
	maxParameters  = 16
	maxValues      = 100
	maxValueLength = 256
)

// All in the place of actions stands for every action of the resource.
const All = "*"

// A State says whether a grant covers anything.
type State string

// The states of a grant.
const (
	Scheduled State = "scheduled"
	Live      State = "live"
	Suspended State = "suspended"
	Expired   State = "expired"
	Ended     State = "ended"
)

// A Grant is a permission of one agent.
type Grant struct {
	ID string `json:"id"` // grt_…
	Spec
	State     State           `json:"state"` // when it was read; see [Grant.StateAt]
	ManagedBy string          `json:"managed_by,omitempty"`
	CreatedAt time.Time       `json:"created_at"`
	CreatedBy estover.Subject `json:"created_by"`
	EndedAt   time.Time       `json:"ended_at,omitzero"`
	EndReason string          `json:"end_reason,omitempty"`
	Epoch     int64           `json:"epoch"` // raised when it ends, is suspended or restored

	ActivatedFrom string    `json:"activated_from,omitempty"` // the eligible grant that it was made of
	UsedAt        time.Time `json:"used_at,omitzero"`         // the last use, as it was last written down: within the hour
	AnnouncedAt   time.Time `json:"announced_at,omitzero"`    // that it is not used and will be suspended
	SuspendedAt   time.Time `json:"suspended_at,omitzero"`

	// Spent is what has been taken of the budgets; only where one grant is shown
	// that has any.
	Spent *Spent `json:"spent,omitempty"`
}

// Elevated reports whether the grant was asked for, rather than standing.
func (g *Grant) Elevated() bool { return g.Request != "" || g.ActivatedFrom != "" }

// Table is the table to name in a [db.Epoch], by which a write is refused that
// rests on a grant that has ended in the meantime. Under this name is told of the
// end of one, or that it is suspended ([guard.Tx.End]).
const Table = "access_grant"

// Copies is the kind of the copies of what an agent holds, by agent: what a
// [guard.Cache] of [Access.Load] follows.
const Copies = "grants"

// StateAt is the state of the grant at a time.
func (g *Grant) StateAt(now time.Time) State {
	switch {
	case !g.EndedAt.IsZero():
		return Ended
	case !g.ExpiresAt.IsZero() && !now.Before(g.ExpiresAt):
		return Expired
	case !g.SuspendedAt.IsZero():
		return Suspended
	case now.Before(g.StartsAt):
		return Scheduled
	}
	return Live
}

// Errors about grants.
var (
	// ErrNotFound is returned when there is no such grant in the tenant.
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "grant_not_found", Detail: "There is no such grant. `estover grant list` shows which there are."}
	// ErrInvalid is returned when what is said of a grant cannot be.
	ErrInvalid = &estover.Error{Kind: estover.Invalid, Code: "grant_invalid", Detail: "This cannot be said of a grant."}
	// ErrReference is returned when the agent or the resource cannot be granted.
	ErrReference = &estover.Error{Kind: estover.Invalid, Code: "grant_reference_invalid", Detail: "The agent or the resource of the grant cannot be found."}
	// ErrEnded is returned when a grant has ended already.
	ErrEnded = &estover.Error{Kind: estover.Conflict, Code: "grant_ended", Detail: "The grant has ended already."}
	// ErrSession is returned when the session of a grant is none that it can
	// belong to.
	ErrSession = &estover.Error{Kind: estover.Invalid, Code: "grant_session_invalid", Detail: "The session of the grant is not open. `estover session list` shows which are.", Field: "session"}
	// ErrNotEligible is returned when a grant is activated that cannot be.
	ErrNotEligible = &estover.Error{Kind: estover.Conflict, Code: "grant_not_eligible", Detail: "The grant cannot be activated: it is not an eligible one, or it has not begun, is suspended or is over."}
	// ErrWider is returned when more is activated than a grant is eligible for.
	ErrWider = &estover.Error{Kind: estover.Invalid, Code: "grant_wider", Detail: "More is asked for than the eligible grant allows."}
	// ErrNotSuspended is returned when a grant is restored that is in use.
	ErrNotSuspended = &estover.Error{Kind: estover.Conflict, Code: "grant_not_suspended", Detail: "The grant is neither suspended nor about to be."}
	// ErrReason is returned when a grant is ended without a reason.
	ErrReason = &estover.Error{Kind: estover.Invalid, Code: "end_reason_missing", Detail: "Say why, in up to 500 characters: those who miss the access need to know.", Field: "reason"}
)

// Options are what grants need of others.
type Options struct {
	// Agent checks inside a transaction that the agent may be granted access
	// for the purposes.
	Agent func(ctx context.Context, tx *db.Tx, id string, purposes []string) error
	// Resource checks inside a transaction that access to the actions of the
	// resource may be granted.
	Resource func(ctx context.Context, tx *db.Tx, id string, actions []string) error
	// Session makes sure inside a transaction that a session is open, and that it is
	// not ended until the transaction is. Nil refuses every session.
	Session func(ctx context.Context, tx *guard.Tx, id string) error
	// Verify is asked about each grant that came of a request when it is loaded: one
	// that fails counts for nothing. Nil verifies nothing.
	Verify func(ctx context.Context, tx *db.Tx, g Grant) error
	// Told are those who are to hear of what becomes of an agent's grants. Nil tells
	// nobody.
	Told func(ctx context.Context, tx *db.Tx, agent string) ([]estover.Subject, error)
	// Logger is the default one if it is nil.
	Logger *slog.Logger
}

// Access is the grants of all tenants. It is safe for use by many at once.
type Access struct {
	Options
	guard   *guard.Guard
	copies  *guard.Cache[[]Grant] // by agent
	spent   spent
	uses    uses
	refused refused
}

// New is the grants behind the door g.
func New(g *guard.Guard, o Options) *Access {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	a := &Access{Options: o, guard: g}
	a.copies = guard.NewCache(g, Copies, a.Load)
	return a
}

// Check gives the spec in the one form in which it is kept, or everything that
// is wrong with it.
func Check(s Spec) (Spec, error) {
	var bad []error
	wrong := func(field, format string, args ...any) { bad = append(bad, ErrInvalid.With(format, args...).At(field)) }
	if s.Name != "" && !estover.ValidName(s.Name) {
		wrong("name", "The name of a grant has up to 63 small letters, digits, dots, dashes and underscores, not %q.", s.Name)
	}
	if s.Agent == "" {
		wrong("agent", "A grant is given to an agent.")
	}
	if s.Resource == "" {
		wrong("resource", "A grant is for a resource.")
	}
	names := func(field, what string, list []string) []string {
		if len(list) == 0 {
			wrong(field, "A grant names at least one %s.", what)
		}
		for i, v := range list {
			if !estover.ValidName(v) && (field != "actions" || v != All) {
				wrong(fmt.Sprintf("%s[%d]", field, i), "The name of each %s has up to 63 small letters, digits, dots, dashes and underscores, not %q.", what, v)
			}
		}
		list = slices.Clone(list)
		slices.Sort(list)
		return slices.Compact(list)
	}
	s.Actions, s.Purposes = names("actions", "action", s.Actions), names("purposes", "purpose", s.Purposes)
	if slices.Contains(s.Actions, All) && len(s.Actions) > 1 {
		wrong("actions", "* stands for every action; name either it or the actions.")
	}
	if s.Class.Rank() < 0 {
		wrong("class", "The class is public, internal, confidential or restricted, not %q.", s.Class)
	}
	if !s.StartsAt.IsZero() {
		s.StartsAt = s.StartsAt.UTC().Truncate(time.Microsecond)
	}
	if !s.ExpiresAt.IsZero() {
		s.ExpiresAt = s.ExpiresAt.UTC().Truncate(time.Microsecond)
		if !s.StartsAt.Before(s.ExpiresAt) {
			wrong("expires_at", "A grant ends after it begins.")
		}
	}
	if s.Kind == "" {
		s.Kind = Standing
	}
	if s.Kind != Standing && s.Kind != Eligible {
		wrong("kind", "A grant is standing or eligible, not %q.", s.Kind)
	}
	if s.Kind == Eligible && s.Session != "" {
		wrong("session", "An eligible grant belongs to no session: what is made of it does.")
	}
	if s.UnusedAfter < 0 || s.UnusedAfter > int64(10*365*24*time.Hour/time.Second) {
		wrong("unused_after_seconds", "A grant is doubted after up to ten years without use, in seconds.")
	}
	s.Parameters = checkParameters(s.Parameters, wrong)
	s.Budgets.check(wrong)
	return s, errors.Join(bad...)
}

// checkParameters gives the parameters in the one form in which they are kept.
func checkParameters(p map[string][]string, wrong func(field, format string, args ...any)) map[string][]string {
	if len(p) == 0 {
		return nil
	}
	if len(p) > maxParameters {
		wrong("parameters", "A grant confines up to %d parameters.", maxParameters)
		return p
	}
	kept := make(map[string][]string, len(p))
	for name, values := range p {
		field := "parameters." + name
		switch {
		case name == "" || len(name) > 63:
			wrong("parameters", "A parameter is one in the path of an action, and its name has up to 63 characters.")
		case len(values) == 0 || len(values) > maxValues:
			wrong(field, "A parameter that is confined has up to %d values, and at least one.", maxValues)
		}
		for _, v := range values {
			if v == "" || len(v) > maxValueLength {
				wrong(field, "A value has up to %d bytes, and at least one.", maxValueLength)
			}
		}
		values = slices.Clone(values)
		slices.Sort(values)
		kept[name] = slices.Compact(values)
	}
	return kept
}

// equal reports whether two specifications in their kept form say the same.
func equal(a, b Spec) bool {
	return a.Name == b.Name && a.Agent == b.Agent && a.Resource == b.Resource && a.Class == b.Class &&
		slices.Equal(a.Actions, b.Actions) && slices.Equal(a.Purposes, b.Purposes) &&
		a.StartsAt.Equal(b.StartsAt) && a.ExpiresAt.Equal(b.ExpiresAt) &&
		a.Kind == b.Kind && a.Session == b.Session && a.Request == b.Request && a.Budgets == b.Budgets && a.UnusedAfter == b.UnusedAfter &&
		maps.EqualFunc(a.Parameters, b.Parameters, slices.Equal)
}

// Put gives a grant. One of the same name that has not ended is ended, unless
// it says the same: then it stays, and is returned. managedBy says who keeps
// one that is not a successor, if not a person by hand.
func (a *Access) Put(ctx context.Context, caller estover.Caller, spec Spec, managedBy string) (g Grant, err error) {
	if spec, err = Check(spec); err != nil {
		return g, err
	}
	if spec.Request != "" {
		return g, ErrInvalid.With("A grant that comes of a request is given by its approval, and by nobody else.").At("request")
	}
	id := estover.NewID("grt")
	if spec.Name == "" {
		spec.Name = id
	}
	op := guard.Op{Action: "grant.create", Target: "grant:" + id}
	err = a.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		if !spec.ExpiresAt.IsZero() && !spec.ExpiresAt.After(tx.Now()) {
			return ErrInvalid.With("The grant would have expired at %s. Give it a time to come, or none.", spec.ExpiresAt.Format(time.RFC3339)).At("expires_at")
		}
		if err := a.references(ctx, tx, spec); err != nil {
			return err
		}
		g = Grant{ID: id, Spec: spec, ManagedBy: managedBy, CreatedAt: tx.Now(), CreatedBy: caller.Subject, Epoch: 1}
		tx.Note("grant", spec)
		old, err := lockName(ctx, tx.Tx, spec.Name)
		switch {
		case err == nil && equal(old.Spec, spec) && old.SuspendedAt.IsZero() && old.StateAt(tx.Now()) != Expired:
			g = old
			tx.SetTarget("grant:" + old.ID)
			return nil
		case err == nil:
			g.ManagedBy = old.ManagedBy
			tx.Note("replaces", old.ID)
			tx.Touch(Copies, old.Agent)
			if err := a.endOne(ctx, tx, old, "replaced by "+id); err != nil {
				return err
			}
		case !errors.Is(err, ErrNotFound):
			return err
		}
		g.State = g.StateAt(tx.Now())
		tx.Touch(Copies, spec.Agent)
		return insert(ctx, tx.Tx, g)
	})
	return g, err
}

// Give gives a grant without a name to an agent, inside a transaction that does
// more: in which the agent is made, or a request is approved.
func (a *Access) Give(ctx context.Context, tx *guard.Tx, spec Spec, by estover.Subject) (Grant, error) {
	return a.give(ctx, tx, spec, "", by)
}

func (a *Access) give(ctx context.Context, tx *guard.Tx, spec Spec, from string, by estover.Subject) (Grant, error) {
	spec, err := Check(spec)
	if err != nil {
		return Grant{}, err
	}
	if err := a.references(ctx, tx, spec); err != nil {
		return Grant{}, err
	}
	g := Grant{ID: estover.NewID("grt"), Spec: spec, ActivatedFrom: from, CreatedAt: tx.Now(), CreatedBy: by, Epoch: 1}
	g.Name, g.State = g.ID, g.StateAt(tx.Now())
	tx.Touch(Copies, spec.Agent)
	return g, insert(ctx, tx.Tx, g)
}

// An Activation is what is made of an eligible grant: no more than that allows.
type Activation struct {
	For        time.Duration       // how long it lasts
	Actions    []string            // of those of the grant; all of them if none is named
	Parameters map[string][]string // within those of the grant
	Purposes   []string            // of those of the grant; all of them if none is named
	Class      estover.Class       // that of the grant if it is left out
	Session    string              // that it ends with; "" for none
	Request    string              // that it came of; "" for none
	Budgets    Budgets             // of its own, beside those of the grant
}

// Activate makes a grant of an eligible one, inside the transaction that
// decides it. It draws on the budgets of the eligible one too, and ends with it.
func (a *Access) Activate(ctx context.Context, tx *guard.Tx, id string, what Activation, by estover.Subject) (Grant, error) {
	g, err := lock(ctx, tx.Tx, id)
	if err != nil {
		return Grant{}, err
	}
	if g.Kind != Eligible || g.StateAt(tx.Now()) != Live {
		return Grant{}, ErrNotEligible.With("The grant %s is %s and %s, and cannot be activated.", g.Name, g.Kind, g.StateAt(tx.Now()))
	}
	if what.For <= 0 {
		return Grant{}, ErrInvalid.With("Say how long the grant is to last.").At("for")
	}
	spec := g.Spec
	spec.Name, spec.Kind, spec.StartsAt, spec.UnusedAfter = "", Standing, time.Time{}, 0
	spec.Session, spec.Request, spec.Budgets = what.Session, what.Request, what.Budgets
	if until := tx.Now().Add(what.For); spec.ExpiresAt.IsZero() || until.Before(spec.ExpiresAt) {
		spec.ExpiresAt = until
	}
	if len(what.Actions) > 0 {
		if !slices.Contains(g.Actions, All) {
			for _, action := range what.Actions {
				if !slices.Contains(g.Actions, action) {
					return Grant{}, ErrWider.With("The grant %s is not eligible for the action %s.", g.Name, action).At("actions")
				}
			}
		}
		spec.Actions = what.Actions
	}
	if len(what.Purposes) > 0 {
		for _, purpose := range what.Purposes {
			if !slices.Contains(g.Purposes, purpose) {
				return Grant{}, ErrWider.With("The grant %s is not eligible for the purpose %s.", g.Name, purpose).At("purposes")
			}
		}
		spec.Purposes = what.Purposes
	}
	if what.Class != "" {
		if !g.Class.Covers(what.Class) {
			return Grant{}, ErrWider.With("The grant %s is eligible up to data of the class %s.", g.Name, g.Class).At("class")
		}
		spec.Class = what.Class
	}
	if spec.Parameters, err = narrower(g, what.Parameters); err != nil {
		return Grant{}, err
	}
	made, err := a.give(ctx, tx, spec, g.ID, by)
	if err != nil {
		return Grant{}, err
	}
	if !g.AnnouncedAt.IsZero() { // it is used after all
		if err := wake(ctx, tx.Tx, g); err != nil {
			return Grant{}, err
		}
	}
	return made, used(ctx, tx.Tx, g.ID, tx.Now())
}

// narrower are the parameters of a grant with those that are asked for in their
// place, none of which may have a value that the grant has not.
func narrower(g Grant, asked map[string][]string) (map[string][]string, error) {
	out := maps.Clone(g.Parameters)
	for name, values := range asked {
		for _, v := range values {
			if have, bound := g.Parameters[name]; bound && !slices.Contains(have, v) {
				return nil, ErrWider.With("The grant %s is not eligible for the value %q of the parameter %s.", g.Name, v, name).At("parameters." + name)
			}
		}
		if out == nil {
			out = map[string][]string{}
		}
		out[name] = values
	}
	return out, nil
}

// references says of what a grant speaks that cannot be granted.
func (a *Access) references(ctx context.Context, tx *guard.Tx, spec Spec) error {
	if err := reference("agent", a.Agent(ctx, tx.Tx, spec.Agent, spec.Purposes)); err != nil {
		return err
	}
	if err := reference("resource", a.Resource(ctx, tx.Tx, spec.Resource, spec.Actions)); err != nil {
		return err
	}
	switch {
	case spec.Session == "":
		return nil
	case a.Session == nil:
		return ErrSession
	}
	if err := a.Session(ctx, tx, spec.Session); err != nil {
		return ErrSession.Because(err)
	}
	return nil
}

// reference says of what the grant speaks that it cannot be granted.
func reference(field string, err error) error {
	var e *estover.Error
	if errors.As(err, &e) && (e.Kind == estover.NotFound || e.Kind == estover.Conflict) {
		return ErrReference.With("%s", e.Detail).At(field).Because(err)
	}
	return err
}

func checkReason(reason string) error {
	if reason == "" || len(reason) > 500 {
		return ErrReason
	}
	return nil
}

// End ends a grant.
func (a *Access) End(ctx context.Context, caller estover.Caller, id, reason string) (g Grant, err error) {
	if err := checkReason(reason); err != nil {
		return g, err
	}
	op := guard.Op{Action: "grant.end", Target: "grant:" + id, Detail: map[string]any{"reason": reason}}
	err = a.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		if g, err = find(ctx, tx.Tx, id); err != nil {
			return err
		}
		if err := a.endOne(ctx, tx, g, reason); err != nil {
			return err
		}
		g, err = find(ctx, tx.Tx, id)
		return err
	})
	return g, err
}

// endOne ends a grant, and what was made of it.
func (a *Access) endOne(ctx context.Context, tx *guard.Tx, g Grant, reason string) error {
	tx.Touch(Copies, g.Agent)
	tx.End(Table, g.ID)
	if err := end(ctx, tx.Tx, g.ID, reason); err != nil {
		return err
	}
	if g.Kind != Eligible {
		return nil
	}
	made, _, err := endAll(ctx, tx, "activated_from", g.ID, reason)
	if len(made) > 0 {
		tx.Note("activated", made)
	}
	return err
}

// EndOfSessions ends the grants that belong to sessions, inside the transaction
// that ends those, and says how many there were. Nobody works on the grants of
// others in them any more.
func EndOfSessions(ctx context.Context, tx *guard.Tx, sessions []string) (int, error) {
	count := 0
	for _, s := range sessions {
		ids, agents, err := endAll(ctx, tx, "session_id", s, "the session has ended")
		if err != nil {
			return 0, err
		}
		touch(tx, agents)
		count += len(ids)
		if err := dismiss(ctx, tx.Tx, s); err != nil {
			return 0, err
		}
	}
	return count, nil
}

// touch says that the copies of what agents hold are stale.
func touch(tx *guard.Tx, agents []string) {
	slices.Sort(agents)
	for _, agent := range slices.Compact(agents) {
		tx.Touch(Copies, agent)
	}
}

// EndOfAgent ends all grants of an agent inside a transaction that does more,
// and says which they were.
func EndOfAgent(ctx context.Context, tx *guard.Tx, agent, reason string) ([]string, error) {
	tx.Touch(Copies, agent)
	ids, _, err := endAll(ctx, tx, "agent_id", agent, reason)
	return ids, err
}

// Get shows a grant, whether it has ended or not.
func (a *Access) Get(ctx context.Context, caller estover.Caller, id string) (g Grant, err error) {
	err = a.guard.Read(ctx, caller, guard.Op{Action: "grant.read", Target: "grant:" + id}, func(tx *db.Tx) error {
		if g, err = find(ctx, tx, id); err != nil || g.Budgets.none() {
			return err
		}
		s, err := spending(ctx, tx, id)
		g.Spent = &s
		return err
	})
	return g, err
}

// ByName shows the grant of this name that has not ended.
func (a *Access) ByName(ctx context.Context, caller estover.Caller, name string) (g Grant, err error) {
	err = a.guard.Read(ctx, caller, guard.Op{Action: "grant.read"}, func(tx *db.Tx) error {
		g, err = findName(ctx, tx, name)
		return err
	})
	return g, err
}

// A Filter narrows a list; empty fields do not.
type Filter struct {
	Agent     string
	Resource  string
	ManagedBy string
	Live      bool // only those that have neither ended nor expired
}

// MaxPage is the most that one page of a list holds, and what it holds if
// nothing is asked.
const MaxPage = 200

// List shows grants, the newest first. next is where the following page begins
// (pass it as after), or "" at the end.
func (a *Access) List(ctx context.Context, caller estover.Caller, f Filter, after string, limit int) (grants []Grant, next string, err error) {
	if limit <= 0 || limit > MaxPage {
		limit = MaxPage
	}
	at, id := int64(1<<63-1), ""
	if after != "" {
		text, rest, ok := strings.Cut(after, ".")
		if at, err = strconv.ParseInt(text, 10, 64); err != nil || !ok {
			return nil, "", ErrInvalid.With("This is not where a page of grants begins. Take the cursor of the page before.").At("cursor")
		}
		id = rest
	}
	op := guard.Op{Action: "grant.list"}
	if f.Agent != "" {
		op.Target = string(estover.Agent(f.Agent))
	}
	err = a.guard.Read(ctx, caller, op, func(tx *db.Tx) error {
		grants, err = list(ctx, tx, f, at, id, limit+1)
		return err
	})
	if len(grants) > limit {
		grants = grants[:limit]
		last := grants[limit-1]
		next = strconv.FormatInt(last.CreatedAt.UnixMicro(), 10) + "." + last.ID
	}
	return grants, next, err
}

// Grants is what an agent holds, from memory, for [Entitled]. The list is
// shared and never changed; it may hold grants that have not begun or have
// expired since it was loaded.
func (a *Access) Grants(ctx context.Context, tenant estover.TenantID, agent string) ([]Grant, error) {
	return a.copies.Get(ctx, tenant, agent)
}

// A Fit says how well a grant covers what is asked for.
type Fit int

// The fits, the best last.
const (
	NotGranted   Fit = iota // no grant covers the action on the resource for data of the class
	OtherPurpose            // one does, but was given for other purposes
	Granted                 // one does, and was given for this purpose
)

// A Call is what a grant is to cover.
type Call struct {
	Resource   string
	Action     string
	Class      estover.Class // of the data
	Purpose    string
	Session    string            // in which it is made; "" outside of one
	Within     []string          // the sessions that this is a part of
	Parameters map[string]string // of the action's path

	// Some asks whether there is any session and are any parameters for which a
	// grant covers it: what a token may be good for, of which each call is decided
	// by itself.
	Some bool
}

// Covers reports whether the grant covers a call, but for its purpose.
func (g *Grant) Covers(now time.Time, c Call) bool {
	return g.Kind != Eligible && g.Resource == c.Resource && g.Class.Covers(c.Class) && g.StateAt(now) == Live &&
		(slices.Contains(g.Actions, c.Action) || slices.Contains(g.Actions, All)) &&
		(c.Some && c.Session == "" || g.Session == "" || g.Session == c.Session || slices.Contains(c.Within, g.Session)) &&
		(c.Some || within(g.Parameters, c.Parameters))
}

// within reports whether the parameters of a call are those that a grant names.
// One that the action has not is none of them.
func within(bound map[string][]string, have map[string]string) bool {
	for name, values := range bound {
		if v, there := have[name]; !there || !slices.Contains(values, v) {
			return false
		}
	}
	return true
}

// Entitled finds the grant that covers a call: the oldest that fits best, so that
// the answer does not hang on the order in which grants were loaded.
func Entitled(now time.Time, grants []Grant, c Call) (*Grant, Fit) {
	var best *Grant
	fit := NotGranted
	for i := range grants {
		g := &grants[i]
		if !g.Covers(now, c) {
			continue
		}
		if slices.Contains(g.Purposes, c.Purpose) {
			return g, Granted
		}
		if best == nil {
			best, fit = g, OtherPurpose
		}
	}
	return best, fit
}
