package apply

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/agent"
	"estover.dev/internal/detail"
	"estover.dev/internal/directory"
	"estover.dev/internal/federation"
	"estover.dev/internal/notify"
	"estover.dev/internal/policy"
	"estover.dev/internal/resource"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/token"
)

// The kinds of document.
const (
	KindPerson   = "Person"
	KindProvider = "IdentityProvider"
	KindSecret   = "Secret"
	KindStore    = "SecretStore"
	KindLink     = "SecretLink"
	KindSync     = "SecretSync"
	KindResource = "Resource"
	KindAgent    = "Agent"
	KindGrant    = "Grant"
	KindTrust    = "Trust"
	KindDetail   = "DetailType"
	KindChannel  = "Channel"
	KindPolicy   = "Policy"
)

// A SecretSpec is what one says of a secret: everything but its value.
type SecretSpec struct {
	Class        estover.Class `json:"class,omitempty" enum:"public,internal,confidential,restricted" default:"confidential" doc:"The class of the data that it opens."`
	Risk         secret.Risk   `json:"risk,omitempty" enum:"low,standard,high" default:"standard" doc:"How much harm a leak would do, and so how often it is rotated."`
	Owner        string        `json:"owner,omitempty" doc:"The person who answers for it; whoever creates it if it is left out."`
	Destinations []string      `json:"destinations" minItems:"1" doc:"The hosts, with a port if it is not 443, that it may be sent to, and nowhere else."`
	Description  string        `json:"description,omitempty" maxLength:"1000" doc:"What it is for."`
}

// A PolicySpec is where the policies are. There is one set of them, so one
// document of this kind.
type PolicySpec struct {
	Directory string            `json:"directory,omitempty" doc:"The directory with the .rego and data.json files, relative to the file that names it."`
	Files     map[string]string `json:"files,omitempty" doc:"The files themselves, by name."`
}

// An object is a thing as it is.
type object struct {
	id, name string
	spec     any // as a document would say it
}

// A kind is how documents of one kind are read, compared and carried out.
type kind struct {
	hints map[string]string // what to say of fields that people expect and there are not
	make  func() any
	// check gives the document the one form in which it is compared, or says
	// what is wrong with it in itself.
	check func(p *parser, d *Document) error
	// refers checks what the document speaks of.
	refers func(ctx context.Context, r *run, d *Document) error
	find   func(ctx context.Context, r *run, d *Document) (object, bool, error)
	put    func(ctx context.Context, r *run, d *Document, now object) error
	// managed lists what the run's set has made, of a kind that can be pruned.
	managed func(ctx context.Context, r *run) ([]object, error)
	remove  func(ctx context.Context, r *run, o object) error
}

// A run is one request on its way.
type run struct {
	*Applier
	caller    estover.Caller
	managedBy string
	docs      []*Document
	index     map[string]*Document
	going     map[string]bool   // what this run takes away
	ids       map[string]string // kind/name → id
	people    map[string]string // id → name
}

func newRun(a *Applier, caller estover.Caller, managedBy string, docs []*Document) *run {
	r := &run{
		Applier: a, caller: caller, managedBy: managedBy, docs: docs,
		index: map[string]*Document{}, going: map[string]bool{}, ids: map[string]string{}, people: map[string]string{},
	}
	for _, d := range docs {
		r.index[d.Kind+"/"+d.Name] = d
	}
	return r
}

// wanted is the document of a thing, or nil.
func (r *run) wanted(kind, name string) *Document { return r.index[kind+"/"+name] }

// id is the id of a thing that exists.
func (r *run) id(ctx context.Context, kind, name string) (id string, err error) {
	if id, ok := r.ids[kind+"/"+name]; ok {
		return id, nil
	}
	switch kind {
	case KindPerson:
		var p directory.Person
		p, err = r.People.ByName(ctx, r.caller, name)
		id = p.ID
	case KindAgent:
		var a agent.Agent
		a, err = r.Agents.ByName(ctx, r.caller, name)
		id = a.ID
	case KindResource:
		var s resource.Resource
		s, err = r.Resources.ByName(ctx, r.caller, name)
		id = s.ID
	case KindStore:
		var s upstream.Standing
		s, err = r.Stores.Get(ctx, r.caller, name)
		id = s.ID
	default:
		panic("apply: nothing refers to a " + kind)
	}
	if err == nil {
		r.ids[kind+"/"+name] = id
	}
	return id, err
}

// personName is the name of a person, or the id if there is nobody.
func (r *run) personName(ctx context.Context, id string) (string, error) {
	if name, ok := r.people[id]; ok {
		return name, nil
	}
	p, err := r.People.Get(ctx, r.caller, id)
	name := p.Name
	if estover.KindOf(err) == estover.NotFound {
		name, err = id, nil
	}
	if err == nil {
		r.people[id] = name
	}
	return name, err
}

// refer checks that a document may speak of a thing: it exists or another
// document makes it, and this run does not take it away.
func (r *run) refer(ctx context.Context, d *Document, field, kind, name string) error {
	if r.wanted(kind, name) != nil {
		return nil
	}
	if r.going[kind+"/"+name] {
		return Problems{d.problem(field, "%s %s speaks of %s %s, which no file has any more and which is to be deleted.", d.Kind, d.Name, kind, name)}
	}
	_, err := r.id(ctx, kind, name)
	if estover.KindOf(err) == estover.NotFound {
		return Problems{d.problem(field, "There is no %s %q, neither in the files nor on the server.", kind, name)}
	}
	return err
}

// all follows the pages of a list.
func all[T any](page func(after string) ([]T, string, error)) (out []T, err error) {
	for after := ""; ; {
		items, next, err := page(after)
		if err != nil {
			return nil, err
		}
		out = append(out, items...)
		if after = next; after == "" {
			return out, nil
		}
	}
}

// kinds are the kinds that there are.
var kinds = map[string]kind{
	KindPerson: person, KindProvider: providerKind, KindSecret: secretKind, KindStore: storeKind, KindLink: linkKind, KindSync: syncKind, KindResource: resourceKind, KindAgent: agentKind, KindGrant: grantKind, KindTrust: trustKind, KindDetail: detailKind, KindChannel: channelKind, KindPolicy: policyKind,
}

const pruned = "No file mentions it any more (estover apply --prune)."

var person = kind{
	make: func() any { return &directory.Spec{} },
	check: func(_ *parser, d *Document) (err error) {
		s := d.Spec.(*directory.Spec)
		s.Name = d.Name
		*s, err = directory.Check(*s)
		return err
	},
	refers: func(context.Context, *run, *Document) error { return nil },
	find: func(ctx context.Context, r *run, d *Document) (object, bool, error) {
		p, err := r.People.ByName(ctx, r.caller, d.Name)
		return found(object{p.ID, p.Name, &p.Spec}, err)
	},
	put: func(ctx context.Context, r *run, d *Document, now object) error {
		s := *d.Spec.(*directory.Spec)
		if now.id != "" {
			_, err := r.People.Update(ctx, r.caller, now.id, s)
			return err
		}
		p, err := r.People.Create(ctx, r.caller, s, r.managedBy)
		r.ids[KindPerson+"/"+d.Name] = p.ID
		return err
	},
	managed: func(ctx context.Context, r *run) (out []object, err error) {
		people, err := all(func(after string) ([]directory.Person, string, error) {
			return r.People.List(ctx, r.caller, directory.Filter{ManagedBy: r.managedBy}, after, 0)
		})
		for _, p := range people {
			if p.Status == directory.Active {
				out = append(out, object{p.ID, p.Name, &p.Spec})
			}
		}
		return out, err
	},
	remove: func(ctx context.Context, r *run, o object) error {
		_, err := r.People.Disable(ctx, r.caller, o.id, pruned)
		return err
	},
}

// found is an object, unless it is not there.
func found(o object, err error) (object, bool, error) {
	if estover.KindOf(err) == estover.NotFound {
		return object{}, false, nil
	}
	return o, err == nil, err
}

var agentKind = kind{
	hints: map[string]string{
		"status":      "Whether an agent is held is no part of a file. Use `estover agent hold` and `estover agent lift`.",
		"holds":       "Holds are no part of a file. Use `estover agent hold` and `estover agent lift`.",
		"risk":        "How risky an agent is held to be is no part of a file. Use `estover agent risk`.",
		"credentials": "Credentials are no part of a file. Use `estover agent credential`.",
	},
	make: func() any { return &agent.Spec{} },
	check: func(_ *parser, d *Document) (err error) {
		s := d.Spec.(*agent.Spec)
		s.Name = d.Name
		*s, err = agent.Check(*s)
		return err
	},
	refers: func(ctx context.Context, r *run, d *Document) error {
		return r.refer(ctx, d, "sponsor", KindPerson, d.Spec.(*agent.Spec).Sponsor)
	},
	find: func(ctx context.Context, r *run, d *Document) (object, bool, error) {
		a, err := r.Agents.ByName(ctx, r.caller, d.Name)
		if err != nil {
			return found(object{}, err)
		}
		if !a.EndedAt.IsZero() {
			return object{}, false, Problems{d.problem("name", "The agent %s is retired, and that is final. Take it out of the files, or give it another name.", d.Name)}
		}
		a.Sponsor, err = r.personName(ctx, a.Sponsor)
		return object{a.ID, a.Name, &a.Spec}, err == nil, err
	},
	put: func(ctx context.Context, r *run, d *Document, now object) error {
		s := *d.Spec.(*agent.Spec)
		var err error
		if s.Sponsor, err = r.id(ctx, KindPerson, s.Sponsor); err != nil {
			return err
		}
		if now.id != "" {
			_, err = r.Agents.Update(ctx, r.caller, now.id, s)
			return err
		}
		a, err := r.Agents.Create(ctx, r.caller, s, agent.Origin{ManagedBy: r.managedBy})
		r.ids[KindAgent+"/"+d.Name] = a.ID
		return err
	},
	managed: func(ctx context.Context, r *run) (out []object, err error) {
		agents, err := all(func(after string) ([]agent.Agent, string, error) {
			return r.Agents.List(ctx, r.caller, agent.Filter{ManagedBy: r.managedBy}, after, 0)
		})
		for _, a := range agents {
			if a.EndedAt.IsZero() {
				out = append(out, object{a.ID, a.Name, &a.Spec})
			}
		}
		return out, err
	},
	remove: func(ctx context.Context, r *run, o object) error {
		return r.Agents.Retire(ctx, r.caller, o.id, pruned)
	},
}

var resourceKind = kind{
	make: func() any { return &resource.Spec{} },
	check: func(_ *parser, d *Document) (err error) {
		s := d.Spec.(*resource.Spec)
		s.Name = d.Name
		*s, err = resource.Check(*s)
		return err
	},
	refers: func(ctx context.Context, r *run, d *Document) error {
		for i, slot := range d.Spec.(*resource.Spec).Slots {
			if !slot.Static() {
				continue // of leases and connections no file speaks
			}
			if err := r.referSecret(ctx, d, fmt.Sprintf("slots[%d].secret", i), slot.Secret); err != nil {
				return err
			}
		}
		return nil
	},
	find: func(ctx context.Context, r *run, d *Document) (object, bool, error) {
		s, err := r.Resources.ByName(ctx, r.caller, d.Name)
		return found(object{s.ID, s.Name, &s.Spec}, err)
	},
	put: func(ctx context.Context, r *run, d *Document, _ object) error {
		s, err := r.Resources.Put(ctx, r.caller, *d.Spec.(*resource.Spec), r.managedBy)
		r.ids[KindResource+"/"+d.Name] = s.ID
		return err
	},
	managed: func(ctx context.Context, r *run) (out []object, err error) {
		resources, err := all(func(after string) ([]resource.Resource, string, error) {
			return r.Resources.List(ctx, r.caller, resource.Filter{ManagedBy: r.managedBy}, after, 0)
		})
		for _, s := range resources {
			out = append(out, object{s.ID, s.Name, &s.Spec})
		}
		return out, err
	},
	remove: func(ctx context.Context, r *run, o object) error { return r.Resources.Retire(ctx, r.caller, o.id) },
}

var grantKind = kind{
	make: func() any { return &access.Spec{} },
	check: func(_ *parser, d *Document) (err error) {
		s := d.Spec.(*access.Spec)
		s.Name = d.Name
		*s, err = access.Check(*s)
		return err
	},
	refers: checkGrant,
	find: func(ctx context.Context, r *run, d *Document) (object, bool, error) {
		g, err := r.Grants.ByName(ctx, r.caller, d.Name)
		gone := estover.KindOf(err) == estover.NotFound || err == nil && g.State == access.Expired
		if s := d.Spec.(*access.Spec); gone && !s.ExpiresAt.IsZero() && !s.ExpiresAt.After(r.guard.DB().Now()) {
			return object{g.ID, d.Name, s}, true, nil // it is over, as it says
		}
		if gone {
			return object{}, false, nil
		}
		if err != nil {
			return object{}, false, err
		}
		if g.Agent, err = r.agentName(ctx, g.Agent); err != nil {
			return object{}, false, err
		}
		g.Resource, err = r.resourceName(ctx, g.Resource)
		return object{g.ID, g.Name, &g.Spec}, err == nil, err
	},
	put: func(ctx context.Context, r *run, d *Document, _ object) error {
		s := *d.Spec.(*access.Spec)
		var err error
		if s.Agent, err = r.id(ctx, KindAgent, s.Agent); err != nil {
			return err
		}
		if s.Resource, err = r.id(ctx, KindResource, s.Resource); err != nil {
			return err
		}
		_, err = r.Grants.Put(ctx, r.caller, s, r.managedBy)
		return err
	},
	managed: func(ctx context.Context, r *run) (out []object, err error) {
		grants, err := all(func(after string) ([]access.Grant, string, error) {
			return r.Grants.List(ctx, r.caller, access.Filter{ManagedBy: r.managedBy, Live: true}, after, 0)
		})
		for _, g := range grants {
			out = append(out, object{g.ID, g.Name, &g.Spec})
		}
		return out, err
	},
	remove: func(ctx context.Context, r *run, o object) error {
		_, err := r.Grants.End(ctx, r.caller, o.id, pruned)
		return err
	},
}

var providerKind = kind{
	make: func() any { return &directory.ProviderSpec{} },
	check: func(_ *parser, d *Document) (err error) {
		s := d.Spec.(*directory.ProviderSpec)
		s.Name = d.Name
		*s, err = directory.CheckProvider(*s)
		return err
	},
	refers: func(context.Context, *run, *Document) error { return nil },
	find: func(ctx context.Context, r *run, d *Document) (object, bool, error) {
		p, err := r.People.ProviderByName(ctx, r.caller, d.Name)
		if err != nil {
			return found(object{}, err)
		}
		return object{p.ID, p.Name, &p.ProviderSpec}, true, nil
	},
	put: func(ctx context.Context, r *run, d *Document, _ object) error {
		_, err := r.People.PutProvider(ctx, r.caller, *d.Spec.(*directory.ProviderSpec), r.managedBy)
		return err
	},
	managed: func(ctx context.Context, r *run) (out []object, err error) {
		providers, err := r.People.ListProviders(ctx, r.caller, directory.Filter{ManagedBy: r.managedBy})
		for _, p := range providers {
			out = append(out, object{p.ID, p.Name, &p.ProviderSpec})
		}
		return out, err
	},
	remove: func(ctx context.Context, r *run, o object) error {
		return r.People.RetireProvider(ctx, r.caller, o.name)
	},
}

var trustKind = kind{
	make: func() any { return &federation.Spec{} },
	check: func(_ *parser, d *Document) (err error) {
		s := d.Spec.(*federation.Spec)
		s.Name = d.Name
		*s, err = federation.Check(*s)
		return err
	},
	refers: func(ctx context.Context, r *run, d *Document) error {
		var bad Problems
		for i, one := range d.Spec.(*federation.Spec).Rules {
			err := r.refer(ctx, d, fmt.Sprintf("rules[%d].agent", i), KindAgent, one.Agent)
			if p, ok := asProblems(err); ok {
				bad = append(bad, p...)
			} else if err != nil {
				return err
			}
		}
		if len(bad) > 0 {
			return bad
		}
		return nil
	},
	find: func(ctx context.Context, r *run, d *Document) (object, bool, error) {
		t, err := r.Trusts.ByName(ctx, r.caller, d.Name)
		if err != nil {
			return found(object{}, err)
		}
		for i := range t.Rules {
			if t.Rules[i].Agent, err = r.agentName(ctx, t.Rules[i].Agent); err != nil {
				return object{}, false, err
			}
		}
		return object{t.ID, t.Name, &t.Spec}, true, nil
	},
	put: func(ctx context.Context, r *run, d *Document, _ object) error {
		s := *d.Spec.(*federation.Spec)
		s.Rules = slices.Clone(s.Rules)
		for i := range s.Rules {
			var err error
			if s.Rules[i].Agent, err = r.id(ctx, KindAgent, s.Rules[i].Agent); err != nil {
				return err
			}
		}
		_, err := r.Trusts.Put(ctx, r.caller, s, r.managedBy)
		return err
	},
	managed: func(ctx context.Context, r *run) (out []object, err error) {
		trusts, err := all(func(after string) ([]federation.Trust, string, error) {
			return r.Trusts.List(ctx, r.caller, federation.Filter{ManagedBy: r.managedBy}, after, 0)
		})
		for _, t := range trusts {
			out = append(out, object{t.ID, t.Name, &t.Spec})
		}
		return out, err
	},
	remove: func(ctx context.Context, r *run, o object) error { return r.Trusts.Retire(ctx, r.caller, o.id) },
}

var detailKind = kind{
	make: func() any { return &detail.Spec{} },
	check: func(_ *parser, d *Document) (err error) {
		s := d.Spec.(*detail.Spec)
		s.Name = d.Name
		*s, err = detail.Check(*s)
		return err
	},
	refers: func(context.Context, *run, *Document) error { return nil },
	find: func(ctx context.Context, r *run, d *Document) (object, bool, error) {
		t, err := r.Details.ByName(ctx, r.caller, d.Name)
		return found(object{t.ID, t.Name, &t.Spec}, err)
	},
	put: func(ctx context.Context, r *run, d *Document, _ object) error {
		_, err := r.Details.Put(ctx, r.caller, *d.Spec.(*detail.Spec), r.managedBy)
		return err
	},
	managed: func(ctx context.Context, r *run) (out []object, err error) {
		types, err := all(func(after string) ([]token.DetailType, string, error) {
			return r.Details.List(ctx, r.caller, r.managedBy, after, 0)
		})
		for _, t := range types {
			out = append(out, object{t.ID, t.Name, &t.Spec})
		}
		return out, err
	},
	remove: func(ctx context.Context, r *run, o object) error { return r.Details.Retire(ctx, r.caller, o.name) },
}

var channelKind = kind{
	hints: map[string]string{"key": noValue, "password": noValue, "token": noValue},
	make:  func() any { return &notify.Spec{} },
	check: func(_ *parser, d *Document) (err error) {
		s := d.Spec.(*notify.Spec)
		s.Name = d.Name
		*s, err = notify.Check(*s)
		return err
	},
	refers: func(ctx context.Context, r *run, d *Document) error {
		if s := d.Spec.(*notify.Spec); s.Secret != "" {
			return r.referSecret(ctx, d, "secret", s.Secret)
		}
		return nil
	},
	find: func(ctx context.Context, r *run, d *Document) (object, bool, error) {
		c, err := r.Channels.ByName(ctx, r.caller, d.Name)
		return found(object{c.ID, c.Name, &c.Spec}, err)
	},
	put: func(ctx context.Context, r *run, d *Document, _ object) error {
		_, err := r.Channels.Put(ctx, r.caller, *d.Spec.(*notify.Spec), r.managedBy)
		return err
	},
	managed: func(ctx context.Context, r *run) (out []object, err error) {
		channels, err := r.Channels.List(ctx, r.caller)
		for _, c := range channels {
			if c.ManagedBy == r.managedBy {
				out = append(out, object{c.ID, c.Name, &c.Spec})
			}
		}
		return out, err
	},
	remove: func(ctx context.Context, r *run, o object) error { return r.Channels.Retire(ctx, r.caller, o.name) },
}

// agentName is the name of an agent, or the id if there is none.
func (r *run) agentName(ctx context.Context, id string) (string, error) {
	a, err := r.Agents.Get(ctx, r.caller, id)
	if estover.KindOf(err) == estover.NotFound {
		return id, nil
	}
	return a.Name, err
}

// resourceName is the name of a resource, or the id if it is retired: another
// one may have the name.
func (r *run) resourceName(ctx context.Context, id string) (string, error) {
	s, err := r.Resources.Get(ctx, r.caller, id)
	if estover.KindOf(err) == estover.NotFound {
		return id, nil
	}
	return s.Name, err
}

// checkGrant checks what a grant speaks of: its agent and the purposes that
// the agent has declared, its resource and the actions of it, as they will be
// when the files are carried out.
func checkGrant(ctx context.Context, r *run, d *Document) error {
	s := d.Spec.(*access.Spec)
	var bad Problems
	for _, ref := range []struct{ field, kind, name string }{{"agent", KindAgent, s.Agent}, {"resource", KindResource, s.Resource}} {
		err := r.refer(ctx, d, ref.field, ref.kind, ref.name)
		if p, ok := asProblems(err); ok {
			bad = append(bad, p...)
		} else if err != nil {
			return err
		}
	}
	if len(bad) > 0 {
		return bad
	}
	purposes, err := r.purposesOf(ctx, s.Agent)
	if err != nil {
		return err
	}
	for i, p := range s.Purposes {
		if !slices.Contains(purposes, p) {
			bad = append(bad, d.problem(fmt.Sprintf("purposes[%d]", i), "Agent %s has not declared the purpose %q.%s", s.Agent, p, didYouMean(p, purposes)))
		}
	}
	actions, err := r.actionsOf(ctx, s.Resource)
	if err != nil {
		return err
	}
	for i, a := range s.Actions {
		if a != access.All && !slices.Contains(actions, a) {
			bad = append(bad, d.problem(fmt.Sprintf("actions[%d]", i), "Resource %s has no action %q.%s", s.Resource, a, didYouMean(a, actions)))
		}
	}
	if len(bad) > 0 {
		return bad
	}
	return nil
}

func (r *run) purposesOf(ctx context.Context, name string) ([]string, error) {
	if d := r.wanted(KindAgent, name); d != nil {
		return d.Spec.(*agent.Spec).Purposes, nil
	}
	a, err := r.Agents.ByName(ctx, r.caller, name)
	return a.Purposes, err
}

func (r *run) actionsOf(ctx context.Context, name string) (names []string, err error) {
	var actions []resource.Action
	if d := r.wanted(KindResource, name); d != nil {
		actions = d.Spec.(*resource.Spec).Actions
	} else {
		s, err := r.Resources.ByName(ctx, r.caller, name)
		if err != nil {
			return nil, err
		}
		actions = s.Actions
	}
	for _, a := range actions {
		names = append(names, a.Name)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// referSecret checks that a document may speak of a secret. None is ever taken
// away by a run.
func (r *run) referSecret(ctx context.Context, d *Document, field, name string) error {
	if r.wanted(KindSecret, name) != nil {
		return nil
	}
	_, err := r.Secrets.Get(ctx, r.caller, name)
	if estover.KindOf(err) == estover.NotFound {
		return Problems{d.problem(field, "There is no Secret %q, neither in the files nor on the server.", name)}
	}
	return err
}

const noValue = "A secret's value never stands in a file. Write it with `estover secret write`."

var secretKind = kind{
	hints: map[string]string{"value": noValue, "values": noValue, "data": noValue, "fields": noValue, "string_data": noValue, "stringData": noValue},
	make:  func() any { return &SecretSpec{} },
	check: func(_ *parser, d *Document) error { return checkSecret(d) },
	refers: func(ctx context.Context, r *run, d *Document) error {
		if owner := d.Spec.(*SecretSpec).Owner; owner != "" {
			return r.refer(ctx, d, "owner", KindPerson, owner)
		}
		return nil
	},
	find: func(ctx context.Context, r *run, d *Document) (object, bool, error) {
		now, err := r.Secrets.Get(ctx, r.caller, d.Name)
		if err != nil {
			return found(object{}, err)
		}
		s := SecretSpec{Class: now.Class, Risk: now.Risk, Destinations: now.Destinations, Description: now.Description}
		switch {
		case d.Spec.(*SecretSpec).Owner == "": // not said: it stays whose it is
		case now.Owner.Kind() == estover.UserKind:
			s.Owner, err = r.personName(ctx, now.Owner.ID())
		default:
			s.Owner = string(now.Owner)
		}
		return object{now.ID, d.Name, &s}, err == nil, err
	},
	put: func(ctx context.Context, r *run, d *Document, now object) error {
		s := d.Spec.(*SecretSpec)
		var owner *estover.Subject
		if s.Owner != "" {
			id, err := r.id(ctx, KindPerson, s.Owner)
			if err != nil {
				return err
			}
			subject := estover.User(id)
			owner = &subject
		}
		if now.id != "" {
			_, err := r.Secrets.Update(ctx, r.caller, d.Name, secret.Change{
				Class: &s.Class, Risk: &s.Risk, Owner: owner, Destinations: &s.Destinations, Description: &s.Description,
			})
			return err
		}
		made := secret.Spec{Path: d.Name, Class: s.Class, Risk: s.Risk, Destinations: s.Destinations, Description: s.Description}
		if owner != nil {
			made.Owner = *owner
		}
		_, err := r.Secrets.Create(ctx, r.caller, made)
		return err
	},
}

func checkSecret(d *Document) error {
	s := d.Spec.(*SecretSpec)
	var bad Problems
	wrong := func(field, format string, args ...any) { bad = append(bad, d.problem(field, format, args...)) }
	parts := strings.Split(d.Name, "/")
	if d.Name == "" || len(d.Name) > 256 || slices.Contains(parts, "") || slices.Contains(parts, ".") || slices.Contains(parts, "..") ||
		strings.ContainsFunc(d.Name, func(c rune) bool { return c <= ' ' || c > '~' || c == '#' }) {
		wrong("name", "The name of a secret is its path: words with slashes between them, as crm/api-key, not %q.", d.Name)
	}
	if s.Class == "" {
		s.Class = estover.Confidential
	}
	if s.Class.Rank() < 0 {
		wrong("class", "The class is public, internal, confidential or restricted, not %q.", s.Class)
	}
	if s.Risk == "" {
		s.Risk = secret.Standard
	}
	if s.Risk != secret.Low && s.Risk != secret.Standard && s.Risk != secret.High {
		wrong("risk", "The risk is low, standard or high, not %q.", s.Risk)
	}
	if len(s.Destinations) == 0 {
		wrong("destinations", "A secret names the hosts that it may be sent to.")
	}
	s.Destinations = destinations(s.Destinations, wrong)
	if len(s.Description) > 1000 {
		wrong("description", "The description has at most 1000 bytes.")
	}
	if len(bad) > 0 {
		return bad
	}
	return nil
}

// inForce is what a policy is compared by.
type inForce struct {
	Revision string `json:"revision"`
}

var policyKind = kind{
	make:   func() any { return &PolicySpec{} },
	check:  func(p *parser, d *Document) error { return p.policy(d) },
	refers: func(context.Context, *run, *Document) error { return nil },
	find: func(ctx context.Context, r *run, d *Document) (object, bool, error) {
		digest := d.bundle.Digest()
		d.Spec = &inForce{digest}
		now, err := r.Policy.Active(ctx, r.caller)
		if err == nil && now.Digest != digest {
			err = d.checkBundle()
		}
		return object{now.Digest, d.Name, &inForce{now.Digest}}, err == nil, err
	},
	put: func(ctx context.Context, r *run, d *Document, _ object) error {
		note := fmt.Sprintf("%s:%d (estover apply)", path.Base(d.at.File), d.at.Line)
		rev, _, err := r.Policy.Push(ctx, r.caller, d.bundle, note)
		if err != nil {
			return err
		}
		_, err = r.Policy.Activate(ctx, r.caller, rev.Digest, note)
		return err
	},
}

// policy gathers the files that a policy names.
func (p *parser) policy(d *Document) error {
	s := d.Spec.(*PolicySpec)
	if !estover.ValidName(d.Name) {
		return Problems{d.problem("name", "The name has up to 63 small letters, digits, dots, dashes and underscores, not %q.", d.Name)}
	}
	if (s.Directory == "") == (len(s.Files) == 0) {
		return Problems{d.problem("", "A Policy names a directory, or holds the files themselves.")}
	}
	for name, text := range s.Files {
		if path.Clean(name) != name || path.IsAbs(name) || strings.HasPrefix(name, "..") || !isPolicy(name) {
			return Problems{d.problem(join("files", name), "A policy is a .rego or data.json file, not %q.", name)}
		}
		d.bundle = append(d.bundle, policy.File{Path: name, Text: text})
	}
	if s.Directory != "" {
		below := resolve(d.at.File, s.Directory) + "/"
		d.below = below
		if below == "./" {
			below = ""
		}
		for at, text := range p.files {
			if name, ok := strings.CutPrefix(at, below); ok && isPolicy(at) {
				d.bundle = append(d.bundle, policy.File{Path: name, Text: text})
			}
		}
		if len(d.bundle) == 0 {
			return Problems{d.problem("directory", "There are no .rego files in %s.", s.Directory)}
		}
	}
	slices.SortFunc(d.bundle, func(a, b policy.File) int { return strings.Compare(a.Path, b.Path) })
	return nil
}

// checkBundle says what is wrong with the policies themselves.
func (d *Document) checkBundle() error {
	report, err := policy.Check(d.bundle)
	if err != nil {
		return err
	}
	var bad Problems
	for _, f := range report.Findings {
		if !f.Warning {
			bad = append(bad, d.inBundle(f))
		}
	}
	if len(bad) > 0 {
		return bad
	}
	return nil
}

// inBundle places what is wrong with a policy in its own file, if it has one.
func (d *Document) inBundle(f policy.Finding) Problem {
	if d.below == "" {
		return d.problem(join("files", f.File), "%s:%d: %s", f.File, f.Line, f.Message)
	}
	return Problem{d.below + f.File, f.Line, 1, f.Message}
}

// destinations are hosts with their ports, sorted, each of them once.
func destinations(list []string, wrong func(field, format string, args ...any)) []string {
	for i, text := range list {
		host, err := resource.HostPort(text, "443")
		if err != nil {
			wrong(fmt.Sprintf("destinations[%d]", i), "%s", err)
			continue
		}
		list[i] = host
	}
	slices.Sort(list)
	return slices.Compact(list)
}
