// Package emergency undoes what somebody may have had who should not: it cuts an
// agent or a resource off, takes its leases and certificates away, and rotates
// every secret whose value has left us.
//
//	asked ─▶ cut off (E1) ─▶ planned ─▶ each item: pending ─▶ done ─▶ all done: report
//	                                        │  ▲
//	                                        ▼  └─ again, here or on another node
//	                               failed, by hand
//
// What is to be done follows from the touch graph, which is a query over leases,
// uses and certificates: what an agent has read in plaintext must be rotated, and
// what the gateway has only injected need not. Each thing is a row before anything
// is done about it, and may be done twice, so that a server that dies in between
// takes nothing along: the next run, or [Emergencies.Resume], goes on. Leases,
// certificates and ways in at the Vault-compatible door are counted where they are:
// one item for each target, each authority, and the door. It is done when none of
// them is left, and says until then how many are, how many are overdue, and since
// when.
//
// The order is E1 cut off, E2 leases with their sessions, E4 certificates and ways
// in, which all are quick; then E3 the secrets, those first that would do the most
// harm. Whoever is cut off can get no more of anything, so that what is found then is
// all there is. An emergency about everybody is about every agent of the
// organisation; people go on. A
// secret that is not rotated here stands as by hand until somebody has written
// another version. The report (E5) says what has become of each, is signed and in
// the log; when nothing is pending it is the last one.
package emergency

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/evidence"
	"estover.dev/internal/guard"
	"estover.dev/internal/hold"
	"estover.dev/internal/incident"
	"estover.dev/internal/pki"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/rotation"
	"estover.dev/internal/ticket"
)

// The errors of emergencies.
var (
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "emergency_rotation_not_found", Detail: "There is no such emergency rotation. See `estover rotate list`."}
	ErrTarget   = &estover.Error{Kind: estover.Invalid, Code: "emergency_rotation_target_invalid", Detail: "Say what it is about: agent, resource, incident or secret, with a name."}
	ErrReason   = &estover.Error{Kind: estover.Invalid, Code: "emergency_rotation_reason_missing", Detail: "Say why, in up to 300 characters: those who lose access need to know.", Field: "reason"}
	ErrNoReport = &estover.Error{Kind: estover.Conflict, Code: "emergency_rotation_report_missing", Detail: "There is no report of it yet. Run it again."}
)

// A Scope is what an emergency is about.
type Scope string

// The scopes.
const (
	Agent    Scope = "agent"
	Resource Scope = "resource"
	Incident Scope = "incident" // a containment, and whatever that covers
	Secret   Scope = "secret"
)

// A Kind is what is done about an item.
type Kind string

// The kinds, in the order in which they are done.
const (
	Containment     Kind = "containment"
	Leases          Kind = "leases"           // at one target
	Certificates    Kind = "certificates"     // X.509, of one authority
	SSHCertificates Kind = "ssh_certificates" // of one authority
	Tokens          Kind = "tokens"           // of the Vault-compatible door
	SecretIDs       Kind = "secret_ids"       // by which AppRoles log in there
	Rotate          Kind = "secret"
)

// A State is how far an item is.
type State string

// The states.
const (
	Pending State = "pending"
	ByHand  State = "by_hand" // somebody has to write another version
	Failed  State = "failed"  // the last time; it is tried again
	Done    State = "done"
)

// An Item is one thing to be done, or a group of things of one kind.
type Item struct {
	N       int64     `json:"n"`
	Kind    Kind      `json:"kind"`
	Ref     string    `json:"ref"`               // agent:…, resource:…, target:…, authority:…, door, or the path of a secret
	Version int64     `json:"version,omitempty"` // the newest that was seen
	Why     string    `json:"why,omitempty"`     // who had it
	State   State     `json:"state"`
	Note    string    `json:"note,omitempty"`
	Tries   int64     `json:"tries,omitempty"`
	BegunAt time.Time `json:"begun_at,omitzero"`
	DoneAt  time.Time `json:"done_at,omitzero"`
	Group

	secret string
}

// A Group is of how many things an item is.
type Group struct {
	Count   int64     `json:"count,omitempty"`   // in all; 0 for an item that is one thing
	Open    int64     `json:"open,omitempty"`    // that are not gone
	Overdue int64     `json:"overdue,omitempty"` // of these, that should be
	Oldest  time.Time `json:"oldest,omitzero"`   // since when the first of these is to be gone
}

// A Wish is what somebody asks for.
type Wish struct {
	Scope  Scope     `json:"scope" enum:"agent,resource,incident,secret"`
	Target string    `json:"target" minLength:"1" maxLength:"512" doc:"Id of an agent, a resource or a containment, or the path of a secret"`
	Since  time.Time `json:"since,omitzero" doc:"What was read before does not matter; all that is on record if left out"`
	Reason string    `json:"reason" minLength:"1" maxLength:"300"`
	Keep   bool      `json:"keep,omitempty" doc:"Old versions live while others use them; otherwise they end at once"`
}

// An Emergency is what was asked for, and what has become of it.
type Emergency struct {
	ID string `json:"id"`
	Wish
	By        estover.Subject `json:"by"`
	At        time.Time       `json:"at"`
	PlannedAt time.Time       `json:"planned_at,omitzero"`
	DoneAt    time.Time       `json:"done_at,omitzero"` // when nothing was left to do
	Event     string          `json:"event,omitempty"`  // of the last report
	Items     []Item          `json:"items" nullable:"false"`
	Injected  int64           `json:"injected,omitempty"` // of a dry run: how many secrets were only ever injected, and stay
}

// Config is what emergencies are made of.
type Config struct {
	Guard     *guard.Guard
	Incidents *incident.Incidents
	Evidence  *evidence.Evidence
	Secrets   *secret.Secrets
	Rotations *rotation.Rotations
	Leases    *lease.Leases
	PKI       *pki.PKI
	Tickets   *ticket.Tickets

	// Of says whom a containment is about: the agents that it covers, nil for all, and
	// what it is the target of.
	Of func(ctx context.Context, tx *db.Tx, containment string) (incident.Target, []string, error)
	// Slots are the paths of the secrets that a resource's requests carry.
	Slots func(ctx context.Context, tx *db.Tx, resource string) ([]string, error)
	// Known says that there is no such agent, if so.
	Known func(ctx context.Context, tx *db.Tx, agent string) error

	Logger *slog.Logger
}

// Emergencies are those of all tenants. It is safe for use by many at once.
type Emergencies struct {
	Config

	// reached is told of each item before it is worked at and after, and may end the
	// run there as a crash would. It is nil but in tests.
	reached func(item Item, done bool) error
}

// New puts emergencies together.
func New(c Config) *Emergencies {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return &Emergencies{Config: c}
}

func system(tenant estover.TenantID) estover.Caller {
	return estover.Caller{Tenant: tenant, Subject: estover.System("incident")}
}

func (w Wish) target() string { return string(w.Scope) + ":" + w.Target }

func (w Wish) check() error {
	switch {
	case w.Scope != Agent && w.Scope != Resource && w.Scope != Incident && w.Scope != Secret || w.Target == "":
		return ErrTarget
	case w.Reason == "" || len(w.Reason) > 300:
		return ErrReason
	}
	return nil
}

// Plan says what [Emergencies.Run] would do, and does none of it.
func (x *Emergencies) Plan(ctx context.Context, c estover.Caller, w Wish) (e Emergency, err error) {
	if err := w.check(); err != nil {
		return e, err
	}
	if err := x.Secrets.Flush(ctx); err != nil {
		return e, err
	}
	op := guard.Op{Action: "emergency_rotation.read", Target: w.target()}
	err = x.Guard.Read(ctx, c, op, func(tx *db.Tx) error {
		e = Emergency{Wish: w, By: c.Subject, At: tx.Now(), Items: []Item{}}
		if e.Items, err = x.first(ctx, tx, e); err != nil {
			return err
		}
		groups, err := x.groups(ctx, tx, e, int64(len(e.Items)), time.Time{})
		if err != nil {
			return err
		}
		e.Items = append(e.Items, groups...)
		more, err := x.exposed(ctx, tx, e, int64(len(e.Items)))
		e.Items = append(e.Items, more...)
		if err == nil {
			e.Injected, err = x.injected(ctx, tx, e)
		}
		return err
	})
	return e, err
}

// Run does what is to be done about an agent, a resource, a containment or a
// secret. If the same is under way already, it goes on with that. The answer says
// what has become of each thing; what is not done is tried again every few
// seconds, here or on another node.
func (x *Emergencies) Run(ctx context.Context, c estover.Caller, w Wish) (Emergency, error) {
	if err := w.check(); err != nil {
		return Emergency{}, err
	}
	op := guard.Op{Action: "emergency_rotation.run", Target: w.target(), Effect: guard.Manages, Detail: map[string]any{"reason": w.Reason, "keep": w.Keep}}
	var e Emergency
	err := x.Guard.Do(ctx, c, op, func(tx *guard.Tx) (err error) {
		if e, err = findOpen(ctx, tx.Tx, w); err == nil || !errors.Is(err, ErrNotFound) {
			tx.Note("emergency_rotation", e.ID)
			return err
		}
		e = Emergency{ID: estover.NewID("emr"), Wish: w, By: c.Subject, At: tx.Now()}
		if e.Items, err = x.first(ctx, tx.Tx, e); err != nil {
			return err
		}
		tx.Note("emergency_rotation", e.ID)
		return insert(ctx, tx.Tx, e)
	})
	if err != nil {
		return Emergency{}, err
	}
	// From here on it is done whoever still waits for the answer.
	return x.work(context.WithoutCancel(ctx), c.Tenant, e.ID)
}

// first are the items that need no search: what is cut off.
func (x *Emergencies) first(ctx context.Context, tx *db.Tx, e Emergency) (list []Item, err error) {
	switch e.Scope {
	case Agent:
		err = x.Known(ctx, tx, e.Target)
	case Resource:
		_, err = x.Slots(ctx, tx, e.Target)
	case Incident:
		_, _, err = x.Of(ctx, tx, e.Target)
	case Secret: // nobody is cut off by it
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []Item{{N: 1, Kind: Containment, Ref: e.target(), State: Pending}}, nil
}

// groups are the items that are counted: what there was when an emergency was asked
// for, or is now if at is zero, and what came after that. Each is due since then.
func (x *Emergencies) groups(ctx context.Context, tx *db.Tx, e Emergency, after int64, at time.Time) (list []Item, err error) {
	add := func(k Kind, ref string, g Group) {
		if g.Count > 0 {
			after++
			list = append(list, Item{N: after, Kind: k, Ref: ref, State: Pending, Group: g})
		}
	}
	ids, all, resource, err := x.crowd(ctx, tx, e)
	if err != nil || len(ids) == 0 && !all && resource == "" {
		return nil, err
	}
	leases, err := lease.Tolls(ctx, tx, lease.Crowd{Agents: ids, All: all, Resource: resource}, at)
	if err != nil {
		return nil, err
	}
	for _, t := range leases {
		add(Leases, atTarget+t.Target, Group{Count: t.Leases, Open: t.Open, Overdue: t.Overdue, Oldest: t.Oldest})
	}
	if resource != "" {
		return list, nil
	}
	certificates, err := pki.Tolls(ctx, tx, pki.Crowd{Agents: ids, All: all}, at)
	if err != nil {
		return nil, err
	}
	for _, t := range certificates {
		k := Certificates
		if t.Kind == pki.SSH {
			k = SSHCertificates
		}
		add(k, ofAuthority+t.Authority, Group{Count: t.Certificates, Open: t.Good, Oldest: at})
	}
	door, err := ticket.Tolls(ctx, tx, ticket.Crowd{Agents: ids, All: all}, at)
	if err != nil {
		return nil, err
	}
	add(Tokens, atDoor, Group{Count: door.Tickets, Open: door.Good, Oldest: at})
	add(SecretIDs, atDoor, Group{Count: door.SecretIDs, Open: door.SecretIDs, Oldest: at})
	return list, nil
}

// What groups are named by.
const (
	atTarget    = "target:"
	ofAuthority = "authority:"
	atDoor      = "door"
)

// crowd is whom an emergency cuts off: agents, every agent, or whoever reaches a
// resource.
func (x *Emergencies) crowd(ctx context.Context, tx *db.Tx, e Emergency) (ids []string, all bool, resource string, err error) {
	switch e.Scope {
	case Resource:
		return nil, false, e.Target, nil
	case Incident:
		t, _, err := x.Of(ctx, tx, e.Target)
		if err != nil {
			return nil, false, "", err
		}
		if t.Scope == hold.Resource {
			return nil, false, t.ID, nil
		}
	}
	ids, all, err = x.agents(ctx, tx, e)
	return ids, all, "", err
}

// agents are whom an emergency is about; all is true if that is everybody.
func (x *Emergencies) agents(ctx context.Context, tx *db.Tx, e Emergency) (ids []string, all bool, err error) {
	switch e.Scope {
	case Agent:
		return []string{e.Target}, false, nil
	case Incident:
		t, ids, err := x.Of(ctx, tx, e.Target)
		return ids, err == nil && ids == nil && t.Scope != hold.Resource, err
	}
	return nil, false, nil
}

// exposed are the secrets whose values have left us by way of what an emergency is
// about, those first that would do the most harm (E3).
func (x *Emergencies) exposed(ctx context.Context, tx *db.Tx, e Emergency, after int64) (list []Item, err error) {
	var found []secret.Exposure
	switch e.Scope {
	case Secret:
		one, err := secret.Find(ctx, tx, e.Target)
		if err != nil {
			return nil, err
		}
		found = []secret.Exposure{one}
		read, err := secret.Exposed(ctx, tx, nil, e.Since)
		if err != nil {
			return nil, err
		}
		for _, r := range read {
			if r.Secret == one.Secret {
				found[0].Subjects = r.Subjects
			}
		}
	default:
		var subjects []estover.Subject
		ids, all, err := x.agents(ctx, tx, e)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			subjects = append(subjects, estover.Agent(id))
		}
		if len(subjects) > 0 || all {
			if found, err = secret.Exposed(ctx, tx, subjects, e.Since); err != nil {
				return nil, err
			}
		}
		resource := e.Target
		if e.Scope == Incident {
			t, _, err := x.Of(ctx, tx, e.Target)
			if err != nil {
				return nil, err
			}
			if resource = ""; t.Scope == hold.Resource {
				resource = t.ID
			}
		}
		if e.Scope != Agent && resource != "" {
			slots, err := x.Slots(ctx, tx, resource)
			if err != nil {
				return nil, err
			}
			read, err := secret.Exposed(ctx, tx, nil, e.Since)
			if err != nil {
				return nil, err
			}
			for _, r := range read {
				if slices.Contains(slots, r.Path) && !r.Removed {
					found = append(found, r)
				}
			}
		}
	}
	rank := map[secret.Risk]int{secret.High: 2, secret.Standard: 1}
	slices.SortStableFunc(found, func(a, b secret.Exposure) int {
		if n := b.Class.Rank() - a.Class.Rank(); n != 0 {
			return n
		}
		if n := rank[b.Risk] - rank[a.Risk]; n != 0 {
			return n
		}
		return len(b.Subjects) - len(a.Subjects)
	})
	for _, f := range found {
		after++
		i := Item{N: after, Kind: Rotate, Ref: f.Path, State: Pending, Version: f.Version, secret: f.Secret}
		if len(f.Subjects) > 0 {
			i.Why = "read by " + strings.Join(f.Subjects[:min(len(f.Subjects), 10)], ", ")
		}
		if f.Removed {
			i.State, i.Note = ByHand, "It was removed here. Change it where it is accepted, and say so: estover rotate settle"
		}
		list = append(list, i)
	}
	return list, nil
}

// injected is how many secrets an agent has only ever used by way of the gateway.
func (x *Emergencies) injected(ctx context.Context, tx *db.Tx, e Emergency) (int64, error) {
	if e.Scope != Agent {
		return 0, nil
	}
	uses, err := secret.Injected(ctx, tx, estover.Agent(e.Target), e.Since)
	if err != nil {
		return 0, err
	}
	n := int64(0)
	for _, id := range uses {
		if !slices.ContainsFunc(e.Items, func(i Item) bool { return i.secret == id }) {
			n++
		}
	}
	return n, nil
}

// Resume goes on with what is not done, of all tenants. It is called every few
// seconds.
func (x *Emergencies) Resume(ctx context.Context) error {
	var open []db.Place
	err := x.Guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		open, err = unfinished(ctx, tx)
		return err
	})
	for _, at := range open {
		if _, failed := x.work(ctx, at.Tenant, at.ID); failed != nil {
			err = errors.Join(err, failed)
		}
	}
	return err
}

// work does what can be done of an emergency now, and reports.
func (x *Emergencies) work(ctx context.Context, tenant estover.TenantID, id string) (e Emergency, err error) {
	load := func() error {
		return x.Guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
			e, err = find(ctx, tx, id)
			return err
		})
	}
	if err := load(); err != nil {
		return e, err
	}
	before := states(e.Items)
	for round := range 2 {
		for _, i := range e.Items {
			if i.State == Done {
				continue
			}
			if x.reached != nil {
				if err := x.reached(i, false); err != nil {
					return e, err
				}
			}
			state, note := x.do(ctx, tenant, e, &i)
			if x.reached != nil {
				if err := x.reached(i, true); err != nil {
					return e, err
				}
			}
			err := x.Guard.DB().Do(ctx, tenant, func(tx *db.Tx) error { return settle(ctx, tx, id, i, state, note) })
			if err != nil {
				return e, err
			}
		}
		if round > 0 || !e.PlannedAt.IsZero() {
			break
		}
		// What is cut off reads nothing more, so that what it has read is all there
		// is; whatever is still in memory is written first.
		if err := x.plan(ctx, tenant, e); err != nil {
			return e, err
		}
		if err := load(); err != nil {
			return e, err
		}
	}
	if err := load(); err != nil {
		return e, err
	}
	open := slices.ContainsFunc(e.Items, func(i Item) bool { return i.State != Done })
	if e.Event == "" || states(e.Items) != before || !open && e.DoneAt.IsZero() {
		err = x.report(ctx, tenant, &e)
	}
	return e, err
}

func states(items []Item) string {
	var b strings.Builder
	for _, i := range items {
		fmt.Fprint(&b, i.N, i.State, " ")
	}
	return b.String()
}

// plan stores what is to be taken away and which secrets are to be rotated, once.
func (x *Emergencies) plan(ctx context.Context, tenant estover.TenantID, e Emergency) error {
	if err := x.Secrets.Flush(ctx); err != nil {
		return err
	}
	op := guard.Op{Action: "emergency_rotation.plan", Target: e.target(), Detail: map[string]any{"emergency_rotation": e.ID}}
	return x.Guard.Do(ctx, system(tenant), op, func(tx *guard.Tx) error {
		mine, err := planned(ctx, tx.Tx, e.ID)
		if err != nil || !mine {
			return err
		}
		ids, all, resource, err := x.crowd(ctx, tx.Tx, e)
		if err != nil {
			return err
		}
		// The containment has marked those of the sessions that it ended. None of the
		// others waits behind anything either.
		if _, err := x.Leases.ContainCrowd(ctx, tx, lease.Crowd{Agents: ids, All: all, Resource: resource}); err != nil {
			return err
		}
		groups, err := x.groups(ctx, tx.Tx, e, int64(len(e.Items)), e.At)
		if err != nil {
			return err
		}
		items, err := x.exposed(ctx, tx.Tx, e, int64(len(e.Items)+len(groups)))
		if err != nil {
			return err
		}
		for _, g := range groups {
			tx.Note(string(g.Kind)+" "+g.Ref, g.Count)
		}
		tx.Note("secrets", len(items))
		return insertItems(ctx, tx.Tx, e.ID, append(groups, items...))
	})
}

// do works at one item, and says how far it is; of a group, in the item too.
func (x *Emergencies) do(ctx context.Context, tenant estover.TenantID, e Emergency, i *Item) (State, string) {
	var left string
	var err error
	switch i.Kind {
	case Containment:
		left, err = x.contain(ctx, tenant, e)
	case Leases:
		left, err = x.leases(ctx, tenant, e, i)
	case Certificates, SSHCertificates:
		left, err = x.certificates(ctx, tenant, e, i)
	case Tokens, SecretIDs:
		left, err = x.door(ctx, tenant, e, i)
	case Rotate:
		return x.rotate(ctx, tenant, e, *i)
	}
	switch {
	case err != nil:
		return Failed, told(err)
	case left != "":
		return Pending, left
	}
	return Done, x.lingers(ctx, tenant, *i)
}

// lingers is what may go on elsewhere of what an item has ended (Q8).
func (x *Emergencies) lingers(ctx context.Context, tenant estover.TenantID, i Item) string {
	switch i.Kind {
	case Certificates:
		return "Certificates: " + pki.Lingers
	case SSHCertificates:
		return "SSH: " + pki.LingersSSH
	case Leases:
		return x.Leases.TargetLingers(ctx, tenant, strings.TrimPrefix(i.Ref, atTarget))
	}
	return ""
}

// told is an error for operators.
func told(err error) string {
	text := err.Error()
	var known *estover.Error
	if errors.As(err, &known) {
		text = known.Detail
	}
	return db.Short(text)
}

// contain is E1.
func (x *Emergencies) contain(ctx context.Context, tenant estover.TenantID, e Emergency) (left string, err error) {
	t := incident.Target{Scope: hold.Scope(e.Scope), ID: e.Target}
	if e.Scope == Incident {
		err := x.Guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
			t, _, err = x.Of(ctx, tx, e.Target)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	c, err := x.Incidents.ContainOnce(ctx, system(tenant), e.ID, t, fmt.Sprintf("%s (emergency rotation %s of %s)", e.Reason, e.ID, e.By))
	if err == nil && c.Event == "" {
		left = "it is being cut off"
	}
	return left, err
}

// leases is E2: those at a target have ended. They were marked with the plan, and the
// workers take them away.
func (x *Emergencies) leases(ctx context.Context, tenant estover.TenantID, e Emergency, i *Item) (left string, err error) {
	err = x.Guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		ids, all, resource, err := x.crowd(ctx, tx, e)
		if err != nil {
			return err
		}
		tolls, err := lease.Tolls(ctx, tx, lease.Crowd{Agents: ids, All: all, Resource: resource}, time.Time{})
		i.Open, i.Overdue, i.Oldest = 0, 0, time.Time{}
		for _, t := range tolls {
			if at, is := strings.CutPrefix(i.Ref, atTarget); is && at != t.Target {
				continue
			}
			i.Open, i.Overdue = i.Open+t.Open, i.Overdue+t.Overdue
			if i.Oldest.IsZero() || t.Oldest.Before(i.Oldest) {
				i.Oldest = t.Oldest
			}
		}
		return err
	})
	if err == nil && i.Open > 0 {
		left = fmt.Sprintf("%d of them are not gone at the target yet, %d are overdue; look with: estover secret lease list --open", i.Open, i.Overdue)
	}
	return left, err
}

// certificates is E4 for those of an authority: its list tells of them.
func (x *Emergencies) certificates(ctx context.Context, tenant estover.TenantID, e Emergency, i *Item) (left string, err error) {
	var ids []string
	var all bool
	authorities := []string{strings.TrimPrefix(i.Ref, ofAuthority)}
	err = x.Guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		if ids, all, _, err = x.crowd(ctx, tx, e); err != nil || strings.HasPrefix(i.Ref, ofAuthority) {
			return err
		}
		authorities = nil // of an emergency from when they were not told apart
		tolls, err := pki.Tolls(ctx, tx, pki.Crowd{Agents: ids, All: all}, time.Time{})
		for _, t := range tolls {
			authorities = append(authorities, t.Authority)
		}
		return err
	})
	i.Open = 0
	for _, id := range authorities {
		if err == nil {
			var n int64
			n, err = x.PKI.RevokeCrowd(ctx, system(tenant), pki.Crowd{Agents: ids, All: all}, id, "emergency rotation "+e.ID)
			i.Open += n
		}
	}
	if i.Open > 0 {
		left = fmt.Sprintf("%d of them still count", i.Open)
	}
	return left, err
}

// door is E4 for the ways in at the Vault-compatible door.
func (x *Emergencies) door(ctx context.Context, tenant estover.TenantID, e Emergency, i *Item) (left string, err error) {
	var crowd ticket.Crowd
	view := func(fn func(tx *db.Tx) error) error { return x.Guard.DB().View(ctx, tenant, fn) }
	err = view(func(tx *db.Tx) (err error) {
		crowd.Agents, crowd.All, _, err = x.crowd(ctx, tx, e)
		return err
	})
	switch {
	case err != nil:
		return "", err
	case i.Kind == Tokens:
		_, err = x.Tickets.EndCrowd(ctx, system(tenant), crowd, e.target(), "emergency rotation "+e.ID)
	default:
		_, err = x.Tickets.DestroyCrowd(ctx, system(tenant), crowd, e.target(), "emergency rotation "+e.ID)
	}
	if err != nil {
		return "", err
	}
	err = view(func(tx *db.Tx) error {
		t, err := ticket.Tolls(ctx, tx, crowd, time.Time{})
		if i.Open = t.SecretIDs; i.Kind == Tokens {
			i.Open = t.Good
		}
		return err
	})
	if err == nil && i.Open > 0 {
		left = fmt.Sprintf("%d of them are still good", i.Open)
	}
	return left, err
}

// rotate is E3 for one secret.
func (x *Emergencies) rotate(ctx context.Context, tenant estover.TenantID, e Emergency, i Item) (State, string) {
	if s, err := x.Secrets.Describe(ctx, tenant, i.Ref); err == nil && s.ID != i.secret || errors.Is(err, secret.ErrNotFound) {
		return ByHand, "It was removed here. Change it where it is accepted, and say so: estover rotate settle"
	}
	left, err := x.Rotations.Replace(ctx, system(tenant), i.Ref, i.Version, "emergency rotation "+e.ID+": "+e.Reason, e.Keep)
	if errors.Is(err, rotation.ErrNotFound) {
		s, err := x.Secrets.Describe(ctx, tenant, i.Ref)
		switch {
		case err != nil:
			return Failed, told(err)
		case s.CurrentVersion > i.Version:
			return Done, "somebody has written another version"
		}
		return ByHand, "Its versions are not made here. Change it where it is accepted, then: estover secret put " + i.Ref
	}
	switch {
	case err != nil:
		return Failed, told(err)
	case left != "":
		return Pending, left
	}
	return Done, ""
}

// reportAction is the event of a report.
const reportAction = "emergency_rotation.report"

// report is E5: a signed statement of what has become of each thing.
func (x *Emergencies) report(ctx context.Context, tenant estover.TenantID, e *Emergency) error {
	committed := evidence.Committed{Seed: evidence.NewSeed()}
	s := attest.Emergency{
		ID: e.ID, Tenant: string(tenant), Time: e.At, Target: e.target(),
		By:     attest.Commit(committed.Salt(attest.ContainedBy), []byte(e.By)),
		Reason: attest.Commit(committed.Salt(attest.ContainedReason), []byte(e.Reason)),
	}
	for _, i := range e.Items {
		state := string(i.State)
		if i.State == ByHand {
			state = "pending"
		}
		if i.State != Done {
			s.Pending++
		}
		step := attest.ContainmentStep{Name: i.name(), State: state, Count: max(i.Count, 1), Detail: attest.Commit(committed.Salt(i.name()), []byte(i.told()))}
		if said := x.lingers(ctx, tenant, i); said != "" && !slices.Contains(s.Lingers, said) {
			s.Lingers = append(s.Lingers, said)
		}
		if !i.DoneAt.IsZero() {
			step.Micros = i.DoneAt.Sub(e.At).Microseconds()
		}
		s.Steps = append(s.Steps, step)
	}
	leaf := attest.NewEmergency(s).AppendJSON(nil)
	op := guard.Op{
		Action: reportAction, Target: e.target(),
		Detail: map[string]any{"emergency_rotation": e.ID, evidence.DetailKey: committed, "pending": s.Pending},
	}
	decision, err := x.Guard.Admit(ctx, system(tenant), op)
	if err != nil {
		return err
	}
	return x.Guard.Act(ctx, system(tenant), op, decision, func(tx *guard.Tx) error {
		tx.Leaf(leaf)
		e.Event = decision.ID
		if e.DoneAt = (time.Time{}); s.Pending == 0 {
			e.DoneAt = tx.Now()
		}
		return reported(ctx, tx.Tx, e)
	})
}

// name is an item as a report names it, and told what it commits to.
func (i Item) name() string { return fmt.Sprintf("%s%d", i.Kind, i.N) }

func (i Item) told() string {
	text := i.Ref
	if i.Version > 0 {
		text += fmt.Sprintf(" version %d", i.Version)
	}
	return text
}

// Report is the last report of an emergency, to be verified offline.
func (x *Emergencies) Report(ctx context.Context, c estover.Caller, id string) ([]byte, error) {
	var e Emergency
	var event audit.Entry
	op := guard.Op{Action: "emergency_rotation.read", Target: "emergency_rotation:" + id}
	err := x.Guard.Read(ctx, c, op, func(tx *db.Tx) (err error) {
		if e, err = find(ctx, tx, id); err != nil {
			return err
		}
		if e.Event == "" {
			return ErrNoReport
		}
		event, err = x.Guard.Log().Find(ctx, tx, e.Event)
		return err
	})
	if err != nil {
		return nil, err
	}
	r, err := x.Evidence.Certificate(ctx, c.Tenant, event)
	if err != nil {
		return nil, err
	}
	committed, err := evidence.CommittedIn(event)
	if err != nil {
		return nil, err
	}
	r.Disclosures = []attest.Disclosure{
		{Name: attest.ContainedBy, Salt: committed.Salt(attest.ContainedBy), Octets: []byte(e.By)},
		{Name: attest.ContainedReason, Salt: committed.Salt(attest.ContainedReason), Octets: []byte(e.Reason)},
	}
	for _, i := range e.Items {
		r.Disclosures = append(r.Disclosures, attest.Disclosure{Name: i.name(), Salt: committed.Salt(i.name()), Octets: []byte(i.told())})
	}
	return r.Marshal()
}

// Settle says that a person has changed a secret where it is accepted that is not
// rotated here.
func (x *Emergencies) Settle(ctx context.Context, c estover.Caller, id string, n int64, why string) (e Emergency, err error) {
	op := guard.Op{Action: "emergency_rotation.settle", Target: "emergency_rotation:" + id, Detail: map[string]any{"item": n, "reason": why}}
	err = x.Guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if why == "" || len(why) > 300 {
			return ErrReason
		}
		if e, err = find(ctx, tx.Tx, id); err != nil {
			return err
		}
		at := slices.IndexFunc(e.Items, func(i Item) bool { return i.N == n })
		if at < 0 || e.Items[at].State != ByHand {
			return ErrTarget.With("Item %d of it is nothing that is done by hand.", n)
		}
		tx.Note("secret", e.Items[at].Ref)
		return settle(ctx, tx.Tx, id, e.Items[at], Done, fmt.Sprintf("%s says so: %s", c.Subject, why))
	})
	if err != nil {
		return Emergency{}, err
	}
	return x.work(context.WithoutCancel(ctx), c.Tenant, id)
}

// Get shows an emergency.
func (x *Emergencies) Get(ctx context.Context, c estover.Caller, id string) (e Emergency, err error) {
	op := guard.Op{Action: "emergency_rotation.read", Target: "emergency_rotation:" + id}
	err = x.Guard.Read(ctx, c, op, func(tx *db.Tx) error {
		e, err = find(ctx, tx, id)
		return err
	})
	return e, err
}

// List shows emergencies without their items, the newest first.
func (x *Emergencies) List(ctx context.Context, c estover.Caller, limit int) (list []Emergency, err error) {
	err = x.Guard.Read(ctx, c, guard.Op{Action: "emergency_rotation.list"}, func(tx *db.Tx) error {
		list, err = newest(ctx, tx, limit)
		return err
	})
	return list, err
}
