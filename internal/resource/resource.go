// Package resource is the catalogue of what agents reach: HTTP APIs, with the
// hosts that they answer on, the actions that can be done there, the class of
// data that they hold, and where a secret is put into a request to them.
//
//	live ──put──▶ live        the same name, another specification, a higher epoch
//	  └──retire──▶ ended      the name and the hosts are free for another resource
//
// A resource is found by its name, or by a host and port, which belong to one
// resource alone. What is not in the catalogue cannot be reached.
//
// # Actions
//
// An action is a method and a path template with a name, an effect and a
// class. Grants and policies speak of names; [Upstream.Match] finds the name
// for a request. The most specific template wins, segment by segment:
//
//	/v1/customers/export      a word, before
//	/v1/customers/{id}:merge  a parameter with an ending, before
//	/v1/customers/{id}        a parameter, before
//	/v1/customers/{rest...}   all that follows, which may be nothing
//
// A request that matches nothing has no action and is not forwarded. Neither
// is one whose path some server might read as another action than we do: see
// [Upstream.Match].
package resource

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// The types of resources.
const (
	HTTP    = "http"    // speaks HTTP, and the gateway forwards to it
	Service = "service" // anything else, a database or a broker: agents get to it with credentials of their own, and the gateway forwards nothing
)

// A Spec is what an operator decides about a resource.
type Spec struct {
	Name            string        `json:"name" pattern:"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$" doc:"What the resource is called: small letters, digits, dots, dashes and underscores."`
	Type            string        `json:"type,omitempty" enum:"http,service" default:"http" doc:"What it speaks: http, or service for anything else, such as a database, which agents reach with leases and not by way of the gateway."`
	BaseURL         string        `json:"base_url" format:"uri" doc:"Where it is: https://HOST[:PORT][/PATH]. http:// is allowed only together with allow_private. Of a service SCHEME://HOST[:PORT][/PATH], as postgres://db.example.com/crm."`
	Hosts           []string      `json:"hosts,omitempty" doc:"The hosts, with a port if it is not the usual one, by which agents address it. The host of base_url is always one of them."`
	Actions         []Action      `json:"actions" minItems:"1" doc:"What can be done there. Nothing else is forwarded."`
	Class           estover.Class `json:"class" enum:"public,internal,confidential,restricted" doc:"The class of the data that it holds."`
	Tags            []string      `json:"tags,omitempty" doc:"Words that policies may look at."`
	Purposes        []string      `json:"purposes,omitempty" doc:"The purposes for which alone it may be used; every one if none is named."`
	Destination     string        `json:"destination,omitempty" enum:"internal,partner,public" default:"internal" doc:"Who is at the other end."`
	SpecialCategory bool          `json:"special_category,omitempty" doc:"Whether it holds special categories of personal data (GDPR, article 9)."`
	Segment         string        `json:"segment,omitempty" pattern:"^([a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?)?$" doc:"The segment of the network that it is in."`
	CA              string        `json:"ca,omitempty" doc:"The roots, in PEM, by which its certificate is checked; the system's if there are none."`
	Address         string        `json:"address,omitempty" doc:"The HOST:PORT to connect to, if its own name does not lead there. The name is still the one that its certificate must have."`
	AllowPrivate    []string      `json:"allow_private,omitempty" doc:"The private or loopback networks in which its address may be, as 10.1.0.0/16. None by itself."`
	Slots           []Slot        `json:"slots,omitempty" doc:"Where the gateway puts secrets into requests."`
	Cookies         string        `json:"cookies,omitempty" enum:"drop,jar" doc:"What becomes of the cookies that it sets. They are dropped by themselves; a jar keeps them here for the session, and the agent sees none."`
	OnMisuse        string        `json:"on_misuse,omitempty" enum:"record,quarantine" doc:"What becomes of an agent that sends a placeholder, or the handle of a token, where none belongs: that is recorded by itself; it may also be quarantined until somebody lifts that."`
	Evidence        string        `json:"evidence,omitempty" enum:"strict,batched" doc:"Whether each call is on record before it is made. Policy decides if it is left out."`
	Record          string        `json:"record,omitempty" enum:"none,meta,full" doc:"How much of each call is recorded at least. Policy decides if it is left out."`
	Limits          Limits        `json:"limits,omitzero" doc:"What one call may use."`
}

// An Action is something that can be done at a resource.
type Action struct {
	Name   string        `json:"name" pattern:"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$" doc:"What grants and policies call it: customer.read."`
	Method string        `json:"method,omitempty" doc:"The HTTP method, or * for every one. GET stands for HEAD too. A service has none."`
	Path   string        `json:"path,omitempty" doc:"The path as the resource sees it, with {parameters}: /v1/customers/{id}. A service has none."`
	Effect guard.Effect  `json:"effect,omitempty" enum:"read,search,write,delete,send,execute,admin,pay" doc:"What it does to the world. By itself: read for GET and HEAD, delete for DELETE, write for the others."`
	Class  estover.Class `json:"class,omitempty" enum:"public,internal,confidential,restricted" doc:"The class of the data that it touches; that of the resource by itself."`
	Price  int64         `json:"price,omitempty" minimum:"0" doc:"What one call costs, in millionths of the currency unit: what it draws on a budget of money."`

	Tokens []string `json:"tokens,omitempty" doc:"The members of the answer's JSON that are tokens, as access_token: they stay here, and the agent gets a handle in the place of each, which is good in this session and for this resource alone."`
}

// Limits bound one call. Zero is the gateway's own limit.
type Limits struct {
	BodyBytes      int64 `json:"body_bytes,omitempty" minimum:"0" doc:"The longest body, of a request and of a response."`
	TimeoutSeconds int   `json:"timeout_seconds,omitempty" minimum:"0" maximum:"3600" doc:"How long the response may keep the caller waiting."`
}

// A Resource is an entry of the catalogue.
type Resource struct {
	ID string `json:"id"` // res_…
	Spec
	ManagedBy string    `json:"managed_by,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	ChangedAt time.Time `json:"changed_at"`
	EndedAt   time.Time `json:"ended_at,omitzero"` // when it was retired
	Epoch     int64     `json:"epoch"`             // raised by every change
}

// Errors about resources.
var (
	// ErrNotFound is returned when there is no such resource in the tenant.
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "resource_not_found", Detail: "There is no such resource. `estover resource list` shows which there are."}
	// ErrInvalid is returned when what is said of a resource cannot be.
	ErrInvalid = &estover.Error{Kind: estover.Invalid, Code: "resource_invalid", Detail: "This cannot be said of a resource."}
	// ErrHostTaken is returned when another resource answers on the host.
	ErrHostTaken = &estover.Error{Kind: estover.Conflict, Code: "host_taken", Detail: "Another resource has this host. A host and port belong to one resource."}
	// ErrHost is returned for what is not a host in the one way of writing it.
	ErrHost = &estover.Error{Kind: estover.Invalid, Code: "host_invalid", Detail: "This is not a host."}
	// ErrElsewhere is returned when somebody but an administrator changes whom
	// secrets are shown to: whoever can do that can read them.
	ErrElsewhere = &estover.Error{Kind: estover.Denied, Code: "resource_needs_admin", Detail: "Only an administrator decides that a resource which gets secrets is connected to at an address of its own, believed by roots of its own, spoken to without TLS, or gets what is leased, and what else changes in that."}
	// ErrHeld is returned when a resource that is held would give up a host.
	ErrHeld = &estover.Error{Kind: estover.Conflict, Code: "resource_held", Detail: "The resource is held, and keeps its hosts until the hold is lifted: another in its place would not be. `estover contain holds` lists which hold it is."}
	// ErrAction is returned when a resource has no such action.
	ErrAction = &estover.Error{Kind: estover.Invalid, Code: "action_not_found", Detail: "The resource has no such action."}
)

// A Catalogue is the resources of all tenants. It is safe for use by many at
// once.
type Catalogue struct {
	// Held reports in a transaction whether a resource is held: then another may
	// not come in its place. It is set once, at wiring; nil knows of no holds.
	Held func(ctx context.Context, tx *db.Tx, id string) (bool, error)

	guard     *guard.Guard
	upstreams *guard.Cache[*Upstream] // by id
	names     *guard.Cache[string]    // name → id
	hosts     *guard.Cache[string]    // host:port → id
}

// New is the catalogue behind the door g.
func New(g *guard.Guard) *Catalogue {
	return &Catalogue{
		guard:     g,
		upstreams: guard.NewCache(g, "resource", Load),
		names: guard.NewCache(g, "resource_name", func(ctx context.Context, tx *db.Tx, name string) (string, error) {
			r, err := findName(ctx, tx, name)
			return r.ID, err
		}),
		hosts: guard.NewCache(g, "resource_host", findHost),
	}
}

// Put adds a resource, or changes the one of this name. managedBy says who
// keeps one that is added, if not a person by hand.
func (c *Catalogue) Put(ctx context.Context, caller estover.Caller, spec Spec, managedBy string) (r Resource, err error) {
	if spec, err = Check(spec); err != nil {
		return r, err
	}
	id := estover.NewID("res")
	err = c.guard.Do(ctx, caller, guard.Op{Action: "resource.put"}, func(tx *guard.Tx) error {
		var old Spec
		r, err = lockName(ctx, tx.Tx, spec.Name)
		switch {
		case err == nil:
			old = r.Spec
			tx.Note("before", old)
			if elsewhere(old, spec) && !trusted(caller) {
				return ErrElsewhere
			}
			if err := c.stays(ctx, tx.Tx, r.ID, old.Hosts, spec.Hosts); err != nil {
				return err
			}
			if !equal(old, spec) {
				r.Spec, r.ChangedAt = spec, tx.Now()
				r.Epoch++
			}
			err = update(ctx, tx.Tx, r)
		case estover.KindOf(err) == estover.NotFound:
			if elsewhere(old, spec) && !trusted(caller) {
				return ErrElsewhere
			}
			r = Resource{ID: id, Spec: spec, ManagedBy: managedBy, CreatedAt: tx.Now(), ChangedAt: tx.Now(), Epoch: 1}
			err = insert(ctx, tx.Tx, r)
		}
		if err != nil {
			return err
		}
		tx.SetTarget("resource:" + r.ID)
		tx.Note("resource", spec)
		touch(tx, r.ID, spec.Name, append(slices.Clone(old.Hosts), spec.Hosts...))
		return setHosts(ctx, tx.Tx, r)
	})
	return r, err
}

// stays refuses that a resource which is held gives up a host, which another
// could take.
func (c *Catalogue) stays(ctx context.Context, tx *db.Tx, id string, old, hosts []string) error {
	if c.Held == nil || !slices.ContainsFunc(old, func(h string) bool { return !slices.Contains(hosts, h) }) {
		return nil
	}
	held, err := c.Held(ctx, tx, id)
	if err == nil && held {
		err = ErrHeld
	}
	return err
}

// elsewhere reports whether a change could show secrets to somebody else than
// the hosts that their owners named: those are names, and here it is said what
// stands behind one. Of a credential that is leased nobody has named the hosts.
func elsewhere(old, s Spec) bool {
	leased := slices.ContainsFunc(s.Slots, func(slot Slot) bool { return strings.HasPrefix(slot.Secret, LeasePrefix) })
	if len(s.Slots) == 0 || !leased && s.Address == "" && s.CA == "" && !strings.HasPrefix(s.BaseURL, "http:") {
		return false
	}
	return s.Address != old.Address || s.CA != old.CA || s.BaseURL != old.BaseURL || !slices.Equal(s.Hosts, old.Hosts) || !reflect.DeepEqual(s.Slots, old.Slots)
}

// trusted reports whether a caller may do what [ErrElsewhere] keeps others
// from.
func trusted(c estover.Caller) bool {
	return c.Has(estover.Admin) || c.Subject.Kind() == estover.SystemKind
}

// touch says which copies are stale: of the resource, and of what leads to it.
func touch(tx *guard.Tx, id, name string, hosts []string) {
	tx.Touch("resource", id)
	tx.Touch("resource_name", name)
	slices.Sort(hosts)
	for _, h := range slices.Compact(hosts) {
		tx.Touch("resource_host", h)
	}
}

// Retire takes a resource out of the catalogue. Nothing is forwarded to it any
// more, and its name and hosts are free.
func (c *Catalogue) Retire(ctx context.Context, caller estover.Caller, id string) error {
	return c.guard.Do(ctx, caller, guard.Op{Action: "resource.retire", Target: "resource:" + id}, func(tx *guard.Tx) error {
		r, err := lock(ctx, tx.Tx, id)
		if err != nil {
			return err
		}
		hosts := r.Hosts
		if err := c.stays(ctx, tx.Tx, r.ID, hosts, nil); err != nil {
			return err
		}
		r.EndedAt, r.ChangedAt, r.Hosts = tx.Now(), tx.Now(), nil
		r.Epoch++
		touch(tx, r.ID, r.Name, slices.Clone(hosts))
		if err := setHosts(ctx, tx.Tx, r); err != nil {
			return err
		}
		r.Hosts = hosts
		return update(ctx, tx.Tx, r)
	})
}

// Get shows a resource that is not retired.
func (c *Catalogue) Get(ctx context.Context, caller estover.Caller, id string) (r Resource, err error) {
	err = c.guard.Read(ctx, caller, guard.Op{Action: "resource.read", Target: "resource:" + id}, func(tx *db.Tx) error {
		r, err = find(ctx, tx, id)
		return err
	})
	return r, err
}

// ByName shows the resource with this name.
func (c *Catalogue) ByName(ctx context.Context, caller estover.Caller, name string) (r Resource, err error) {
	err = c.guard.Read(ctx, caller, guard.Op{Action: "resource.read"}, func(tx *db.Tx) error {
		r, err = findName(ctx, tx, name)
		return err
	})
	return r, err
}

// A Filter narrows a list; empty fields do not.
type Filter struct {
	ManagedBy string
}

// MaxPage is the most that one page of a list holds, and what it holds if
// nothing is asked.
const MaxPage = 200

// List shows resources by name. next is where the following page begins (pass
// it as after), or "" at the end.
func (c *Catalogue) List(ctx context.Context, caller estover.Caller, f Filter, after string, limit int) (resources []Resource, next string, err error) {
	if limit <= 0 || limit > MaxPage {
		limit = MaxPage
	}
	err = c.guard.Read(ctx, caller, guard.Op{Action: "resource.list"}, func(tx *db.Tx) error {
		resources, err = list(ctx, tx, f, after, limit+1)
		return err
	})
	if len(resources) > limit {
		resources = resources[:limit]
		next = resources[limit-1].Name
	}
	return resources, next, err
}

// Grantable checks inside a transaction that access to these actions may be
// granted: the resource is there and has them. "*" is every one.
func (c *Catalogue) Grantable(ctx context.Context, tx *db.Tx, id string, actions []string) error {
	r, err := find(ctx, tx, id)
	if err != nil {
		return err
	}
	for i, name := range actions {
		if name != "*" && !slices.ContainsFunc(r.Actions, func(a Action) bool { return a.Name == name }) {
			return ErrAction.With("The resource %s has no action %q.", r.Name, name).At(fmt.Sprintf("actions[%d]", i))
		}
	}
	return nil
}
