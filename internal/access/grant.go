// Package access says what agents may do: a grant names an agent, actions of
// one resource, the purposes they are for, the most sensitive class of data
// they may touch, and when it begins and ends.
//
//	scheduled ──(starts_at)──▶ live ──(expires_at)──▶ expired
//	    └────────────┬──────────┘
//	                end, or another of the name ──▶ ended
//
// scheduled, live and expired are never stored: see [Grant.StateAt].
//
// A grant is never changed. Its id in a record means one authority for good;
// putting another grant under the same name ends the one and makes the other
// in one transaction. What covers nothing is refused by policy, which asks
// [Entitled] on a copy in memory; who writes on the strength of a grant hands
// its epoch to [db.DB.Append], under the name [Table].
package access

import (
	"context"
	"errors"
	"fmt"
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
}

// All in the place of actions stands for every action of the resource.
const All = "*"

// A State says whether a grant covers anything.
type State string

// The states of a grant.
const (
	Scheduled State = "scheduled"
	Live      State = "live"
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
	Epoch     int64           `json:"epoch"` // raised when it ends
}

// Table is the table to name in a [db.Epoch], by which a write is refused that
// rests on a grant that has ended in the meantime.
const Table = "access_grant"

// Kind is the kind of the copies of what an agent holds, by agent: what a
// [guard.Cache] of [Load] follows.
const Kind = "grants"

// StateAt is the state of the grant at a time.
func (g *Grant) StateAt(now time.Time) State {
	switch {
	case !g.EndedAt.IsZero():
		return Ended
	case !g.ExpiresAt.IsZero() && !now.Before(g.ExpiresAt):
		return Expired
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
}

// Access is the grants of all tenants. It is safe for use by many at once.
type Access struct {
	guard    *guard.Guard
	agent    func(ctx context.Context, tx *db.Tx, id string, purposes []string) error
	resource func(ctx context.Context, tx *db.Tx, id string, actions []string) error
	copies   *guard.Cache[[]Grant] // by agent
}

// New is the grants behind the door g.
func New(g *guard.Guard, o Options) *Access {
	return &Access{guard: g, agent: o.Agent, resource: o.Resource, copies: guard.NewCache(g, Kind, Load)}
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
	return s, errors.Join(bad...)
}

// equal reports whether two specifications in their kept form say the same.
func equal(a, b Spec) bool {
	return a.Name == b.Name && a.Agent == b.Agent && a.Resource == b.Resource && a.Class == b.Class &&
		slices.Equal(a.Actions, b.Actions) && slices.Equal(a.Purposes, b.Purposes) &&
		a.StartsAt.Equal(b.StartsAt) && a.ExpiresAt.Equal(b.ExpiresAt)
}

// Put gives a grant. One of the same name that has not ended is ended, unless
// it says the same: then it stays, and is returned. managedBy says who keeps
// one that is not a successor, if not a person by hand.
func (a *Access) Put(ctx context.Context, caller estover.Caller, spec Spec, managedBy string) (g Grant, err error) {
	if spec, err = Check(spec); err != nil {
		return g, err
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
		if err := a.references(ctx, tx.Tx, spec); err != nil {
			return err
		}
		g = Grant{ID: id, Spec: spec, ManagedBy: managedBy, CreatedAt: tx.Now(), CreatedBy: caller.Subject, Epoch: 1}
		tx.Note("grant", spec)
		old, err := lockName(ctx, tx.Tx, spec.Name)
		switch {
		case err == nil && equal(old.Spec, spec) && old.StateAt(tx.Now()) != Expired:
			g = old
			tx.SetTarget("grant:" + old.ID)
			return nil
		case err == nil:
			g.ManagedBy = old.ManagedBy
			tx.Note("replaces", old.ID)
			tx.Touch(Kind, old.Agent)
			if err := end(ctx, tx.Tx, old.ID, "replaced by "+id); err != nil {
				return err
			}
		case !errors.Is(err, ErrNotFound):
			return err
		}
		g.State = g.StateAt(tx.Now())
		tx.Touch(Kind, spec.Agent)
		return insert(ctx, tx.Tx, g)
	})
	return g, err
}

// Give gives a grant without a name to an agent, inside the transaction in which
// the agent is made.
func (a *Access) Give(ctx context.Context, tx *guard.Tx, spec Spec, by estover.Subject) (Grant, error) {
	spec, err := Check(spec)
	if err != nil {
		return Grant{}, err
	}
	if err := a.references(ctx, tx.Tx, spec); err != nil {
		return Grant{}, err
	}
	g := Grant{ID: estover.NewID("grt"), Spec: spec, CreatedAt: tx.Now(), CreatedBy: by, Epoch: 1}
	g.Name, g.State = g.ID, g.StateAt(tx.Now())
	tx.Touch(Kind, spec.Agent)
	return g, insert(ctx, tx.Tx, g)
}

// references says of what a grant speaks that cannot be granted.
func (a *Access) references(ctx context.Context, tx *db.Tx, spec Spec) error {
	if err := reference("agent", a.agent(ctx, tx, spec.Agent, spec.Purposes)); err != nil {
		return err
	}
	return reference("resource", a.resource(ctx, tx, spec.Resource, spec.Actions))
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
		tx.Touch(Kind, g.Agent)
		if err := end(ctx, tx.Tx, id, reason); err != nil {
			return err
		}
		g, err = find(ctx, tx.Tx, id)
		return err
	})
	return g, err
}

// EndOfAgent ends all grants of an agent inside a transaction that does more,
// and says which they were.
func EndOfAgent(ctx context.Context, tx *guard.Tx, agent, reason string) ([]string, error) {
	tx.Touch(Kind, agent)
	ids, _, err := endAll(ctx, tx.Tx, "agent_id", agent, reason)
	return ids, err
}

// EndOfResource ends all grants for a resource inside a transaction that does
// more, and says which they were.
func EndOfResource(ctx context.Context, tx *guard.Tx, resource, reason string) ([]string, error) {
	ids, agents, err := endAll(ctx, tx.Tx, "resource_id", resource, reason)
	slices.Sort(agents)
	for _, agent := range slices.Compact(agents) {
		tx.Touch(Kind, agent)
	}
	return ids, err
}

// Get shows a grant, whether it has ended or not.
func (a *Access) Get(ctx context.Context, caller estover.Caller, id string) (g Grant, err error) {
	err = a.guard.Read(ctx, caller, guard.Op{Action: "grant.read", Target: "grant:" + id}, func(tx *db.Tx) error {
		g, err = find(ctx, tx, id)
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

// Entitled finds the grant that covers an action on a resource, for data of a
// class and for a purpose: the oldest that fits best, so that the answer does
// not hang on the order in which grants were loaded.
func Entitled(now time.Time, grants []Grant, resource, action string, class estover.Class, purpose string) (*Grant, Fit) {
	var best *Grant
	fit := NotGranted
	for i := range grants {
		g := &grants[i]
		if g.Resource != resource || !g.Class.Covers(class) || g.StateAt(now) != Live ||
			!slices.Contains(g.Actions, action) && !slices.Contains(g.Actions, All) {
			continue
		}
		if slices.Contains(g.Purposes, purpose) {
			return g, Granted
		}
		if best == nil {
			best, fit = g, OtherPurpose
		}
	}
	return best, fit
}
