// Package agent is the registry of agents. An agent is a piece of software
// that acts by itself: an instance of a blueprint, with a person who answers
// for it, with purposes that it has declared and data that it is cleared for.
// It has an identity of its own and shares it with nobody.
//
// # Holds
//
// Whether an agent may act is not one state but a set of holds, each raised
// for a reason of its own and lifted by itself. Lifting one never lifts
// another, so the end of an incident does not undo what a sponsor decided.
// Holds on a blueprint, a person's agents, an organisation or everything are
// kept elsewhere, one row each ([Options.Wide]), and shown with the agent's own.
// The status is what is seen of the set:
//
//	retired      held by a hold of that kind, which is never lifted
//	expired      its time is over
//	quarantined  held for what it did
//	suspended    held by somebody's decision
//	pending      not yet activated
//	active       held by nothing
//
// The first line that applies is the status. A retired agent stays in the
// registry, and its name is not used again: a name in the record means one
// agent.
//
// # The epoch
//
// The epoch of an agent is raised whenever something is taken away from it: by
// a hold, and by a change that narrows what it may be allowed. Who decides on
// a copy of the agent hands the copy's epoch to [db.DB.Append], and is refused
// there if the copy was out of date.
//
// # Credentials
//
// An agent may have several credentials at once, so that one can be replaced
// while the other is in use. A secret is made here, shown once and stored as
// an HMAC under a pepper that the database does not hold; a key set holds
// public keys alone. A credential is retired at once or after an overlap:
//
//	live ──retire──▶ ended
//	  └──(expires_at)──▶ ended      retiring with an overlap sets expires_at
package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Status is what is seen of an agent's holds and expiry.
type Status string

// The states of an agent.
const (
	Active      Status = "active"
	Pending     Status = "pending"
	Suspended   Status = "suspended"
	Quarantined Status = "quarantined"
	Expired     Status = "expired"
	Retired     Status = "retired"

	// Retiring is what a retired agent is called while credentials of it should be
	// gone and are not. Whoever reads agents alone does not see it.
	Retiring Status = "retiring"
)

// The tiers say how much harm an agent can do.
const (
	Low    = "low"
	Medium = "medium"
	High   = "high"
)

// A Spec is what an operator decides about an agent.
type Spec struct {
	Name        string        `json:"name" pattern:"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$" doc:"What the agent is called, once and for good: small letters, digits, dots, dashes and underscores."`
	Blueprint   string        `json:"blueprint" pattern:"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$" doc:"The kind of agent that it is an instance of."`
	Sponsor     string        `json:"sponsor" minLength:"1" doc:"The person who answers for the agent."`
	Team        string        `json:"team,omitempty" pattern:"^([a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?)?$" doc:"The team that runs it."`
	Environment string        `json:"environment,omitempty" pattern:"^([a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?)?$" doc:"Where it runs: development, staging, production."`
	Purposes    []string      `json:"purposes" minItems:"1" doc:"What it may use data for. Each of its sessions names one of them."`
	Clearance   estover.Class `json:"clearance" enum:"public,internal,confidential,restricted" doc:"The most sensitive class of data that it may reach."`
	Tier        string        `json:"tier,omitempty" enum:"low,medium,high" default:"low" doc:"How much harm it can do."`
	Segments    []string      `json:"segments,omitempty" doc:"The segments of the network that it may reach; every one if none is named."`
	ExpiresAt   time.Time     `json:"expires_at,omitzero" doc:"When it stops by itself; never if it is left out."`
	Client      *Client       `json:"client,omitempty" doc:"What it may do as an OAuth client, beside asking for tokens by its own credentials."`
}

// An Agent is an entry of the registry.
type Agent struct {
	ID string `json:"id"` // agt_…
	Spec
	Registration *Registration `json:"registration,omitempty"` // of one that registered itself
	Status       Status        `json:"status"`                 // when it was read; see [Agent.StatusAt]
	Risk         Risk          `json:"risk"`
	Holds        []Hold        `json:"holds"` // those that are not lifted, the oldest first
	ManagedBy    string        `json:"managed_by,omitempty"`
	CreatedAt    time.Time     `json:"created_at"`
	EndedAt      time.Time     `json:"ended_at,omitzero"` // when it was retired
	Epoch        int64         `json:"epoch"`
}

// StatusAt is the status of the agent at a time.
func (a *Agent) StatusAt(now time.Time) Status {
	held := func(k Kind) bool { return slices.ContainsFunc(a.Holds, func(h Hold) bool { return h.Kind == k }) }
	switch {
	case held(Retirement):
		return Retired
	case !a.ExpiresAt.IsZero() && !now.Before(a.ExpiresAt):
		return Expired
	case held(Quarantine):
		return Quarantined
	case held(Suspension):
		return Suspended
	case held(Activation):
		return Pending
	}
	return Active
}

// Errors about agents.
var (
	// ErrNotFound is returned when there is no such agent in the tenant.
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "agent_not_found", Detail: "There is no such agent. `estover agent list` shows which there are."}
	// ErrInvalid is returned when what is said of an agent cannot be.
	ErrInvalid = &estover.Error{Kind: estover.Invalid, Code: "agent_invalid", Detail: "This cannot be said of an agent."}
	// ErrNameTaken is returned when another agent has the name, or had it.
	ErrNameTaken = &estover.Error{Kind: estover.Conflict, Code: "agent_name_taken", Detail: "Another agent has this name or had it until it was retired. Choose another one; names are never used twice."}
	// ErrMetadataTaken is returned when another agent is the registration of a
	// metadata URL.
	ErrMetadataTaken = &estover.Error{Kind: estover.Conflict, Code: "agent_metadata_url_taken", Detail: "Another agent has this metadata URL. One URL is one agent's."}
	// ErrSponsor is returned when nobody who is there would answer for the agent.
	ErrSponsor = &estover.Error{Kind: estover.Invalid, Code: "sponsor_invalid", Detail: "The sponsor must be an active person. `estover person list` shows who there is."}
	// ErrRetired is returned when something is to be done with an agent that is retired.
	ErrRetired = &estover.Error{Kind: estover.Conflict, Code: "agent_retired", Detail: "The agent is retired, and that is final. Create another one under another name."}
	// ErrNotActive is returned when an agent is to act that may not.
	ErrNotActive = &estover.Error{Kind: estover.Denied, Code: "agent_not_active", Detail: "The agent may not act."}
	// ErrHeldTogether is returned when an agent would leave what is held as a whole.
	ErrHeldTogether = &estover.Error{Kind: estover.Conflict, Code: "agent_held_together", Detail: "The agent is held along with others, by its blueprint or its sponsor, and keeps both until that hold is lifted. `estover contain holds` lists which it is."}
	// ErrPurpose is returned when an agent is to do something for a purpose that it has not declared.
	ErrPurpose = &estover.Error{Kind: estover.Invalid, Code: "purpose_not_declared", Detail: "The agent has not declared this purpose. Add it to the agent first."}
)

// Options are what the registry needs of others.
type Options struct {
	// Sponsor checks inside a transaction that this is a person who may answer
	// for an agent.
	Sponsor func(ctx context.Context, tx *db.Tx, person string) error
	// Pepper is an HMAC-SHA-256 of a secret under a key of the tenant that the
	// database does not hold.
	Pepper func(tenant estover.TenantID, secret []byte) []byte
	// Grantable checks inside a transaction that this may be granted, and Grant
	// grants it to an agent that has just been made in the same one. Nil grants
	// nothing.
	Grantable func(ctx context.Context, tx *db.Tx, g Granted) error
	Grant     func(ctx context.Context, tx *guard.Tx, a Agent, g Granted) error
	// Held is called in the transaction that raises a hold: what the agent has
	// under way ends there. Nil does nothing.
	Held func(ctx context.Context, tx *guard.Tx, id string, kind Kind) error
	// Liftable says why a hold is not lifted by one person on their own word. Nil
	// has nothing against it.
	Liftable func(h Hold) error
	// Wide gives what says which holds cover an agent along with others, by its
	// blueprint and its sponsor. Nil knows none.
	Wide func(ctx context.Context, tx *db.Tx) (func(blueprint, sponsor string) []Hold, error)
}

// A Registry is the agents of all tenants. It is safe for use by many at once.
type Registry struct {
	guard   *guard.Guard
	sponsor func(ctx context.Context, tx *db.Tx, person string) error
	pepper  func(tenant estover.TenantID, secret []byte) []byte
	held    func(ctx context.Context, tx *guard.Tx, id string, kind Kind) error
	wide    func(ctx context.Context, tx *db.Tx) (func(blueprint, sponsor string) []Hold, error)

	liftable func(h Hold) error

	grantable func(ctx context.Context, tx *db.Tx, g Granted) error
	grant     func(ctx context.Context, tx *guard.Tx, a Agent, g Granted) error

	copies *guard.Cache[*Snapshot]
	open   *guard.Cache[bool] // whether clients may register themselves

	mu   sync.Mutex
	used map[use]time.Time // not yet stored
}

// New is the registry behind the door g.
func New(g *guard.Guard, o Options) *Registry {
	if o.Held == nil {
		o.Held = func(context.Context, *guard.Tx, string, Kind) error { return nil }
	}
	if o.Liftable == nil {
		o.Liftable = func(Hold) error { return nil }
	}
	if o.Wide == nil {
		o.Wide = func(context.Context, *db.Tx) (func(string, string) []Hold, error) {
			return func(string, string) []Hold { return nil }, nil
		}
	}
	if o.Grantable == nil || o.Grant == nil {
		nothing := ErrInvalid.With("Nothing is granted along with a registration here.")
		o.Grantable = func(context.Context, *db.Tx, Granted) error { return nothing }
		o.Grant = func(context.Context, *guard.Tx, Agent, Granted) error { return nothing }
	}
	return &Registry{
		guard: g, sponsor: o.Sponsor, pepper: o.Pepper, held: o.Held, wide: o.Wide, liftable: o.Liftable, grantable: o.Grantable, grant: o.Grant,
		copies: guard.NewCache(g, estover.AgentKind, Load), used: map[use]time.Time{},
		open: guard.NewCache(g, settingKind, func(ctx context.Context, tx *db.Tx, _ string) (bool, error) { return isRegistering(ctx, tx) }),
	}
}

// Check gives the spec in the one form in which it is kept, or everything that
// is wrong with it.
func Check(s Spec) (Spec, error) {
	var bad []error
	wrong := func(field, format string, args ...any) { bad = append(bad, ErrInvalid.With(format, args...).At(field)) }
	name := func(field, value string) {
		if !estover.ValidName(value) {
			wrong(field, "The %s has up to 63 small letters, digits, dots, dashes and underscores, not %q.", field, value)
		}
	}
	name("name", s.Name)
	name("blueprint", s.Blueprint)
	if s.Sponsor == "" {
		wrong("sponsor", "An agent needs a sponsor: the person who answers for it.")
	}
	if s.Team != "" {
		name("team", s.Team)
	}
	if s.Environment != "" {
		name("environment", s.Environment)
	}
	if len(s.Purposes) == 0 {
		wrong("purposes", "An agent declares at least one purpose.")
	}
	names := func(field string, list []string) []string {
		for i, v := range list {
			if !estover.ValidName(v) {
				wrong(fmt.Sprintf("%s[%d]", field, i), "Each of the %s has up to 63 small letters, digits, dots, dashes and underscores, not %q.", field, v)
			}
		}
		list = slices.Clone(list)
		slices.Sort(list)
		return slices.Compact(list)
	}
	s.Purposes, s.Segments = names("purposes", s.Purposes), names("segments", s.Segments)
	if s.Clearance.Rank() < 0 {
		wrong("clearance", "The clearance is public, internal, confidential or restricted, not %q.", s.Clearance)
	}
	if s.Tier == "" {
		s.Tier = Low
	}
	if s.Tier != Low && s.Tier != Medium && s.Tier != High {
		wrong("tier", "The tier is low, medium or high, not %q.", s.Tier)
	}
	if !s.ExpiresAt.IsZero() {
		s.ExpiresAt = s.ExpiresAt.UTC().Truncate(time.Microsecond)
	}
	if s.Client != nil {
		s.Client = checkClient(*s.Client, func(field, format string, args ...any) { wrong("client."+field, format, args...) })
	}
	return s, errors.Join(bad...)
}

// narrows reports whether a change takes something away: a purpose, a part of
// the clearance, time; or touches what policies and tokens rest on.
func narrows(old, s Spec) bool {
	for _, p := range old.Purposes {
		if !slices.Contains(s.Purposes, p) {
			return true
		}
	}
	shorter := !s.ExpiresAt.IsZero() && (old.ExpiresAt.IsZero() || s.ExpiresAt.Before(old.ExpiresAt))
	return shorter || !s.Clearance.Covers(old.Clearance) || s.Tier != old.Tier || !slices.Equal(s.Segments, old.Segments) || !s.Client.equal(old.Client) ||
		s.Blueprint != old.Blueprint || s.Team != old.Team || s.Environment != old.Environment || s.Sponsor != old.Sponsor
}

// An Origin says how an agent came to be.
type Origin struct {
	ManagedBy string // who keeps it, if not a person by hand: "apply/NAME"
	Pending   string // why it waits to be activated; "" if it does not
}

// Create adds an agent.
func (r *Registry) Create(ctx context.Context, caller estover.Caller, spec Spec, origin Origin) (Agent, error) {
	spec, err := Check(spec)
	if err != nil {
		return Agent{}, err
	}
	if strings.HasPrefix(spec.Name, "agt_") { // nobody would find it by its name, the kill switch neither
		return Agent{}, ErrInvalid.With("The name of an agent does not begin with agt_, as its id does: %q would be looked for as one.", spec.Name).At("name")
	}
	id, hold := estover.NewID("agt"), estover.NewID("hld")
	var a Agent
	err = r.guard.Do(ctx, caller, guard.Op{Action: "agent.create", Target: target(id)}, func(tx *guard.Tx) error {
		if !spec.ExpiresAt.IsZero() && !spec.ExpiresAt.After(tx.Now()) {
			return ErrInvalid.With("The agent would have expired at %s. Give it a time to come, or none.", spec.ExpiresAt.Format(time.RFC3339)).At("expires_at")
		}
		if err := r.checkSponsor(ctx, tx.Tx, spec.Sponsor); err != nil {
			return err
		}
		a = Agent{ID: id, Spec: spec, Risk: Risk{Band: LowRisk}, Holds: []Hold{}, ManagedBy: origin.ManagedBy, CreatedAt: tx.Now(), Epoch: 1}
		if err := insert(ctx, tx.Tx, a); err != nil {
			return err
		}
		if origin.Pending != "" {
			h := Hold{ID: hold, Kind: Activation, Reason: origin.Pending, By: caller.Subject, At: tx.Now()}
			if err := insertHold(ctx, tx.Tx, id, h); err != nil {
				return err
			}
			a.Holds = append(a.Holds, h)
		}
		a.Status = a.StatusAt(tx.Now())
		tx.Note("agent", spec)
		return nil
	})
	return a, err
}

// Update changes what is said of an agent, except the name.
func (r *Registry) Update(ctx context.Context, caller estover.Caller, id string, spec Spec) (a Agent, err error) {
	if spec, err = Check(spec); err != nil {
		return a, err
	}
	err = r.guard.Do(ctx, caller, guard.Op{Action: "agent.update", Target: target(id)}, func(tx *guard.Tx) error {
		if a, err = lock(ctx, tx.Tx, id); err != nil {
			return err
		}
		if !a.EndedAt.IsZero() {
			return ErrRetired
		}
		if spec.Name != a.Name {
			return ErrInvalid.With("The name of an agent is for good: %s cannot become %s.", a.Name, spec.Name).At("name")
		}
		if spec.Sponsor != a.Sponsor {
			if err := r.checkSponsor(ctx, tx.Tx, spec.Sponsor); err != nil {
				return err
			}
		}
		if err := r.stays(ctx, tx.Tx, a.Spec, spec); err != nil {
			return err
		}
		tx.Note("before", a.Spec)
		tx.Note("after", spec)
		if narrows(a.Spec, spec) {
			a.Epoch++
		}
		a.bound(spec.Client)
		a.Spec = spec
		a.Status = a.StatusAt(tx.Now())
		tx.Touch(estover.AgentKind, id)
		return update(ctx, tx.Tx, a)
	})
	return a, err
}

// stays refuses a change by which an agent would come from under a hold that it
// has along with others.
func (r *Registry) stays(ctx context.Context, tx *db.Tx, old, s Spec) error {
	if s.Blueprint == old.Blueprint && s.Sponsor == old.Sponsor {
		return nil
	}
	wide, err := r.wide(ctx, tx)
	if err != nil {
		return err
	}
	after := wide(s.Blueprint, s.Sponsor)
	for _, h := range wide(old.Blueprint, old.Sponsor) {
		if !slices.ContainsFunc(after, func(o Hold) bool { return o.ID == h.ID }) {
			return ErrHeldTogether
		}
	}
	return nil
}

func (r *Registry) checkSponsor(ctx context.Context, tx *db.Tx, person string) error {
	err := r.sponsor(ctx, tx, person)
	if k := estover.KindOf(err); err != nil && (k == estover.NotFound || k == estover.Conflict) {
		return ErrSponsor.At("sponsor").Because(err)
	}
	return err
}

// target names an agent in an operation.
func target(id string) string { return string(estover.Agent(id)) }

// Get shows an agent.
func (r *Registry) Get(ctx context.Context, caller estover.Caller, id string) (a Agent, err error) {
	err = r.guard.Read(ctx, caller, guard.Op{Action: "agent.read", Target: target(id)}, func(tx *db.Tx) error {
		if a, err = find(ctx, tx, id); err != nil {
			return err
		}
		return r.cover(ctx, tx, &a)
	})
	return a, err
}

// cover adds the holds that cover agents along with others.
func (r *Registry) cover(ctx context.Context, tx *db.Tx, agents ...*Agent) error {
	wide, err := r.wide(ctx, tx)
	if err != nil {
		return err
	}
	for _, a := range agents {
		a.Holds = append(a.Holds, wide(a.Blueprint, a.Sponsor)...)
		a.Status = a.StatusAt(tx.Now())
	}
	return nil
}

// ByName shows the agent with this name.
func (r *Registry) ByName(ctx context.Context, caller estover.Caller, name string) (a Agent, err error) {
	err = r.guard.Read(ctx, caller, guard.Op{Action: "agent.read"}, func(tx *db.Tx) error {
		if a, err = findName(ctx, tx, name); err != nil {
			return err
		}
		return r.cover(ctx, tx, &a)
	})
	return a, err
}

// A Filter narrows a list; empty fields do not.
type Filter struct {
	Sponsor   string
	Blueprint string
	Team      string
	Hold      Kind // only agents with a hold of this kind
	ManagedBy string
}

// MaxPage is the most that one page of a list holds, and what it holds if
// nothing is asked.
const MaxPage = 200

// ByMetadataURL is the id of the agent that is the registration of a metadata
// URL, or [ErrNotFound].
func (r *Registry) ByMetadataURL(ctx context.Context, tenant estover.TenantID, url string) (id string, err error) {
	err = r.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		id, err = findMetadata(ctx, tx, url)
		return err
	})
	return id, err
}

// List shows agents by name. next is where the following page begins (pass it
// as after), or "" at the end.
func (r *Registry) List(ctx context.Context, caller estover.Caller, f Filter, after string, limit int) (agents []Agent, next string, err error) {
	if limit <= 0 || limit > MaxPage {
		limit = MaxPage
	}
	err = r.guard.Read(ctx, caller, guard.Op{Action: "agent.list"}, func(tx *db.Tx) error {
		if agents, err = list(ctx, tx, f, after, limit+1); err != nil {
			return err
		}
		each := make([]*Agent, len(agents))
		for i := range agents {
			each[i] = &agents[i]
		}
		return r.cover(ctx, tx, each...)
	})
	if len(agents) > limit {
		agents = agents[:limit]
		next = agents[limit-1].Name
	}
	return agents, next, err
}

// Acting makes sure that the agent may act, and that nobody holds it until the
// transaction ends: what is opened for an agent is opened before a hold, which
// then ends it, or not at all.
func (r *Registry) Acting(ctx context.Context, tx *db.Tx, id string) error {
	a, err := lock(ctx, tx, id)
	if err == nil {
		err = r.cover(ctx, tx, &a)
	}
	if err == nil && a.StatusAt(tx.Now()) != Active {
		err = ErrNotActive.With("The agent is %s.", a.StatusAt(tx.Now()))
	}
	return err
}

// Covered are the ids of the agents of a blueprint, or of a person, that are not
// retired. "" is every one.
func (r *Registry) Covered(ctx context.Context, tx *db.Tx, blueprint, sponsor string) ([]string, error) {
	return covered(ctx, tx, blueprint, sponsor)
}

// Grantable checks inside a transaction that the agent may be granted access
// for these purposes: it exists, is not retired and has declared them.
func (r *Registry) Grantable(ctx context.Context, tx *db.Tx, id string, purposes []string) error {
	a, err := find(ctx, tx, id)
	if err != nil {
		return err
	}
	if !a.EndedAt.IsZero() {
		return ErrRetired
	}
	for i, p := range purposes {
		if !slices.Contains(a.Purposes, p) {
			return ErrPurpose.With("The agent %s has not declared the purpose %q. Add it to the agent first.", a.Name, p).At(fmt.Sprintf("purposes[%d]", i))
		}
	}
	return nil
}

// A Snapshot is an agent with its credentials, as hot paths see it. It is
// shared and never changed; what depends on the time is asked with the time.
type Snapshot struct {
	Agent
	Credentials []Credential
}

// Snapshot is the agent from memory, or [ErrNotFound].
func (r *Registry) Snapshot(ctx context.Context, tenant estover.TenantID, id string) (*Snapshot, error) {
	return r.copies.Get(ctx, tenant, id)
}

// Load is what a [guard.Cache] of the kind "agent" calls: [Registry.Snapshot]
// here, and whoever keeps something that follows from an agent.
func Load(ctx context.Context, tx *db.Tx, id string) (*Snapshot, error) {
	a, err := find(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	credentials, err := credentialsOf(ctx, tx, id)
	return &Snapshot{a, credentials}, err
}
