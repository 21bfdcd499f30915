package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/target"
)

func (s *Server) leases() {
	const tag = "Leases"
	huma.Register(s.huma, op("list-secret-engine-kinds", http.MethodGet, "/v1/secret-engine-kinds", tag, "List the kinds of target at which credentials can be made"), s.listKinds)
	huma.Register(s.huma, op("list-secret-engines", http.MethodGet, "/v1/secret-engines", tag, "List the targets at which credentials are made"), s.listTargets)
	huma.Register(s.huma, op("enable-secret-engine", http.MethodPost, "/v1/secret-engines", tag, "Register a target"), s.createTarget)
	huma.Register(s.huma, op("get-secret-engine", http.MethodGet, "/v1/secret-engines/{name}", tag, "Show a target"), s.getTarget)
	huma.Register(s.huma, op("update-secret-engine", http.MethodPatch, "/v1/secret-engines/{name}", tag, "Change a target, or have nothing be issued there"), s.updateTarget)
	huma.Register(s.huma, op("remove-secret-engine", http.MethodDelete, "/v1/secret-engines/{name}", tag, "Remove a target at which there is nothing any more"), s.removeTarget)
	huma.Register(s.huma, op("check-secret-engine", http.MethodPost, "/v1/secret-engines/{name}/check", tag, "See whether a target can be reached, and, with a template, whether a user can be made, log in, be taken away, and is gone"), s.checkTarget)
	huma.Register(s.huma, op("declare-secret-engine-gone", http.MethodPost, "/v1/secret-engines/{name}/declare-gone", tag, "Say that a target is no more, so that its leases have ended; it takes two people"), s.declareTarget)

	huma.Register(s.huma, op("declare-restored", http.MethodPost, "/v1/secret-engines/restored", tag, "Say that the server was restored from a backup: nothing is issued before each target is reconciled"), s.declareRestored)
	huma.Register(s.huma, op("reconcile-secret-engine", http.MethodPost, "/v1/secret-engines/{name}/reconcile", tag, "Compare the users at a target with the leases here, and lock those that no lease knows"), s.reconcileTarget)
	huma.Register(s.huma, op("list-strays", http.MethodGet, "/v1/secret-engines/{name}/strays", tag, "List users at a target that no lease knows and that are still there"), s.listStrays)

	huma.Register(s.huma, op("list-lease-roles", http.MethodGet, "/v1/lease-roles", tag, "List the roles of which leases are made"), s.listRoles)
	huma.Register(s.huma, op("put-lease-role", http.MethodPut, "/v1/lease-roles/{name}", tag, "Make or change a role, and see whether its users can be made and taken away"), s.putRole)
	huma.Register(s.huma, op("get-lease-role", http.MethodGet, "/v1/lease-roles/{name}", tag, "Show a role"), s.getRole)
	huma.Register(s.huma, op("remove-lease-role", http.MethodDelete, "/v1/lease-roles/{name}", tag, "Remove a role of which there are no leases"), s.removeRole)
	huma.Register(s.huma, op("check-lease-role", http.MethodPost, "/v1/lease-roles/{name}/check", tag, "Make a user of the role, log in as it, take it away, and see that it is gone"), s.checkRole)

	huma.Register(s.huma, op("list-leases", http.MethodGet, "/v1/leases", tag, "List leases, the newest first, never what they hand out"), s.listLeases)
	huma.Register(s.huma, op("create-lease", http.MethodPost, "/v1/leases", tag, "Get a credential of a role, which ends with the session or its time"), s.createLease)
	huma.Register(s.huma, op("get-lease", http.MethodGet, "/v1/leases/{id}", tag, "Show a lease, never what it hands out"), s.getLease)
	huma.Register(s.huma, op("renew-lease", http.MethodPost, "/v1/leases/{id}/renew", tag, "Have a lease go on for longer"), s.renewLease)
	huma.Register(s.huma, op("revoke-leases", http.MethodPost, "/v1/leases/revoke", tag, "End leases: one, or those of a session, an agent, a role, a target, or all"), s.revokeLeases)
}

// A setting is one of a template or of options, as the API has it.
type setting struct {
	Name     string `json:"name"`
	Help     string `json:"help"`
	Required bool   `json:"required"`
	Many     bool   `json:"many"`
}

// A targetKind is a kind of targets, as the API has it.
type targetKind struct {
	Name     string    `json:"name"`
	Title    string    `json:"title"`
	Address  string    `json:"address"`
	Port     string    `json:"port,omitempty"`
	Options  []setting `json:"options"`
	Template []setting `json:"template"`
	Pair     bool      `json:"pair" doc:"A second admin can be made like the first, so that the first one's password can be changed"`
	Overlap  bool      `json:"overlap" doc:"A user may have two passwords at once, so that an admin's own can be changed"`
	Lingers  string    `json:"lingers,omitempty"`
}

func (s *Server) listKinds(context.Context, *struct{}) (*many[targetKind], error) {
	fields := func(list []engine.Field) []setting {
		out := make([]setting, len(list))
		for i, f := range list {
			out[i] = setting{f.Name, f.Help, f.Required, f.Many}
		}
		return out
	}
	var all []targetKind
	for _, k := range s.Targets.Kinds() {
		all = append(all, targetKind{k.Name, k.Title, k.Address, k.Port, fields(k.Options), fields(k.Template), k.Pair, k.Overlap, k.Lingers})
	}
	return pageOf(all, ""), nil
}

// LeasePath is a path that ends with the name of a target or a role. What is
// embedded is read only if its type has a name for everybody.
type LeasePath struct {
	Name string `path:"name" maxLength:"63"`
}

// A located target is one with what this node knows of it.
type located struct {
	target.Target
	target.State
}

func (s *Server) locate(ctx context.Context, x target.Target) located {
	return located{x, s.Targets.State(callerOf(ctx).Tenant, x.ID)}
}

func (s *Server) listTargets(ctx context.Context, in *Paging) (*many[located], error) {
	list, err := s.Targets.List(ctx, callerOf(ctx), in.Cursor, in.Limit)
	next, all := "", make([]located, 0, len(list))
	for _, x := range list {
		all = append(all, s.locate(ctx, x))
	}
	if err == nil && len(list) == in.Limit {
		next = list[len(list)-1].Name
	}
	return pageOf(all, next), s.problem(ctx, err)
}

func (s *Server) createTarget(ctx context.Context, in *struct{ Body target.Spec }) (*one[target.Target], error) {
	x, err := s.Targets.Create(ctx, callerOf(ctx), in.Body)
	return &one[target.Target]{x}, s.problem(ctx, err)
}

func (s *Server) getTarget(ctx context.Context, in *LeasePath) (*one[located], error) {
	x, err := s.Targets.Get(ctx, callerOf(ctx), in.Name)
	return &one[located]{s.locate(ctx, x)}, s.problem(ctx, err)
}

func (s *Server) updateTarget(ctx context.Context, in *struct {
	LeasePath
	Body target.Change
},
) (*one[target.Target], error) {
	x, err := s.Targets.Update(ctx, callerOf(ctx), in.Name, in.Body)
	return &one[target.Target]{x}, s.problem(ctx, err)
}

func (s *Server) removeTarget(ctx context.Context, in *LeasePath) (*struct{}, error) {
	return nil, s.problem(ctx, s.Targets.Remove(ctx, callerOf(ctx), in.Name))
}

func (s *Server) checkTarget(ctx context.Context, in *struct {
	LeasePath
	Body struct {
		Template engine.Template `json:"template,omitempty" doc:"What a user may do there that is made and taken away; none is made without one"`
	}
},
) (*one[lease.Checked], error) {
	x, err := s.Leases.CheckTarget(ctx, callerOf(ctx), in.Name, in.Body.Template)
	return &one[lease.Checked]{x}, s.problem(ctx, err)
}

func (s *Server) declareTarget(ctx context.Context, in *struct {
	LeasePath
	Body struct {
		Reason string `json:"reason" minLength:"1" maxLength:"500" doc:"Why nobody can take the credentials away there any more"`
	}
},
) (*one[lease.Declared], error) {
	x, err := s.Leases.Declare(ctx, callerOf(ctx), in.Name, in.Body.Reason)
	return &one[lease.Declared]{x}, s.problem(ctx, err)
}

// suspects is how many targets wait to be reconciled.
type suspects struct {
	Targets int64 `json:"targets"`
}

func (s *Server) declareRestored(ctx context.Context, _ *struct{}) (*one[suspects], error) {
	n, err := s.Leases.Restored(ctx, callerOf(ctx))
	return &one[suspects]{suspects{n}}, s.problem(ctx, err)
}

func (s *Server) reconcileTarget(ctx context.Context, in *struct {
	LeasePath
	Body struct {
		Drop     bool   `json:"drop,omitempty" doc:"Take users away at once that no lease knows, rather than in an hour"`
		Unlisted bool   `json:"unlisted,omitempty" doc:"Where users cannot be listed: issue again although some may be there that no lease knows"`
		Reason   string `json:"reason,omitempty" maxLength:"500" doc:"With unlisted: why that may be"`
	}
},
) (*one[lease.Reconciled], error) {
	x, err := s.Leases.Reconcile(ctx, callerOf(ctx), in.Name, lease.Comparison{Drop: in.Body.Drop, Unlisted: in.Body.Unlisted, Reason: in.Body.Reason})
	return &one[lease.Reconciled]{x}, s.problem(ctx, err)
}

func (s *Server) listStrays(ctx context.Context, in *LeasePath) (*many[lease.Stray], error) {
	list, err := s.Leases.Strays(ctx, callerOf(ctx), in.Name)
	return pageOf(list, ""), s.problem(ctx, err)
}

// A leaseRole is a role of leases. There are roles of other things too.
type leaseRole lease.Role

func (s *Server) listRoles(ctx context.Context, in *Paging) (*many[leaseRole], error) {
	list, err := s.Leases.Roles(ctx, callerOf(ctx), in.Cursor, in.Limit)
	next, all := "", make([]leaseRole, 0, len(list))
	for _, r := range list {
		all = append(all, leaseRole(r))
	}
	if err == nil && len(list) == in.Limit {
		next = list[len(list)-1].Name
	}
	return pageOf(all, next), s.problem(ctx, err)
}

// A checked role is one with how its round went.
type checkedRole struct {
	leaseRole
	Check lease.Checked `json:"check"`
}

func (s *Server) putRole(ctx context.Context, in *struct {
	LeasePath
	Body lease.RoleSpec
},
) (*one[checkedRole], error) {
	in.Body.Name = in.Name
	put, err := s.Leases.PutRole(ctx, callerOf(ctx), in.Body)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	check, err := s.Leases.CheckRole(ctx, callerOf(ctx), in.Name)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	r, err := s.Leases.Role(ctx, callerOf(ctx), in.Name)
	r.Warnings = put.Warnings
	return &one[checkedRole]{checkedRole{leaseRole(r), check}}, s.problem(ctx, err)
}

func (s *Server) getRole(ctx context.Context, in *LeasePath) (*one[leaseRole], error) {
	r, err := s.Leases.Role(ctx, callerOf(ctx), in.Name)
	return &one[leaseRole]{leaseRole(r)}, s.problem(ctx, err)
}

func (s *Server) removeRole(ctx context.Context, in *LeasePath) (*struct{}, error) {
	return nil, s.problem(ctx, s.Leases.RemoveRole(ctx, callerOf(ctx), in.Name))
}

func (s *Server) checkRole(ctx context.Context, in *LeasePath) (*one[lease.Checked], error) {
	x, err := s.Leases.CheckRole(ctx, callerOf(ctx), in.Name)
	return &one[lease.Checked]{x}, s.problem(ctx, err)
}

func (s *Server) listLeases(ctx context.Context, in *struct {
	Paging
	Session string `query:"session" doc:"Only leases of this session"`
	Agent   string `query:"agent" doc:"Name or id: only leases of this agent"`
	Role    string `query:"role" doc:"Only leases of this role"`
	Target  string `query:"target" doc:"Only leases at this target"`
	State   string `query:"state" enum:"creating,live,revoking,ended" doc:"Only leases in this state"`
	Open    bool   `query:"open" doc:"Only leases that have not ended"`
	Overdue bool   `query:"overdue" doc:"Only leases that should be gone and are not"`
},
) (*many[lease.Lease], error) {
	f := lease.Filter{Session: in.Session, Role: in.Role, State: lease.State(in.State), Open: in.Open, Overdue: in.Overdue}
	var err error
	if in.Agent != "" {
		if f.Agent, err = s.agentID(ctx, in.Agent); err != nil {
			return nil, s.problem(ctx, err)
		}
	}
	if in.Target != "" {
		x, err := s.Targets.Get(ctx, callerOf(ctx), in.Target)
		if err != nil {
			return nil, s.problem(ctx, err)
		}
		f.Target = x.ID
	}
	list, err := s.Leases.List(ctx, callerOf(ctx), f, in.Cursor, in.Limit)
	next := ""
	if err == nil && len(list) == in.Limit {
		next = list[len(list)-1].ID
	}
	return pageOf(list, next), s.problem(ctx, err)
}

// An issued lease is one with what it hands out: beside the reading of a secret
// the only answer of the API that has such a thing.
type issued struct {
	lease.Issued
	Values map[string]string `json:"values,omitempty" doc:"What it logs in with; none if the gateway opens it"`
}

func (s *Server) createLease(ctx context.Context, in *struct {
	Body struct {
		Role       string `json:"role" minLength:"1" maxLength:"63"`
		TTLSeconds int64  `json:"ttl_seconds,omitempty" minimum:"0" maximum:"31536000" doc:"How long it may live, if that is less than the role's time"`
		Purpose    string `json:"purpose,omitempty" maxLength:"500" doc:"What it is for; the session's purpose if left out. A person says one"`
	}
},
) (*one[issued], error) {
	x, err := s.Leases.Create(ctx, callerOf(ctx), lease.Wish{Role: in.Body.Role, TTL: seconds(in.Body.TTLSeconds), Purpose: in.Body.Purpose})
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	out := issued{Issued: x}
	for name, v := range x.Values {
		if out.Values == nil {
			out.Values = map[string]string{}
		}
		out.Values[name] = string(v.Reveal())
	}
	return &one[issued]{out}, nil
}

// LeaseID is a path with a lease.
type LeaseID struct {
	ID string `path:"id" maxLength:"100"`
}

func (s *Server) getLease(ctx context.Context, in *LeaseID) (*one[lease.Lease], error) {
	x, err := s.Leases.Get(ctx, callerOf(ctx), in.ID)
	return &one[lease.Lease]{x}, s.problem(ctx, err)
}

func (s *Server) renewLease(ctx context.Context, in *struct {
	LeaseID
	Body struct {
		TTLSeconds int64  `json:"ttl_seconds,omitempty" minimum:"0" maximum:"31536000" doc:"How long it is to live from now, if that is less than the role's time"`
		Purpose    string `json:"purpose,omitempty" maxLength:"500" doc:"What it is for; the session's purpose if left out. A person says one"`
	}
},
) (*one[lease.Lease], error) {
	x, err := s.Leases.Renew(ctx, callerOf(ctx), in.ID, seconds(in.Body.TTLSeconds), in.Body.Purpose)
	return &one[lease.Lease]{x}, s.problem(ctx, err)
}

// mostWait is how long an answer may wait until what was revoked is gone.
const mostWait = 30 * time.Second

func (s *Server) revokeLeases(ctx context.Context, in *struct {
	Body struct {
		lease.Which
		Reason string `json:"reason,omitempty" maxLength:"500"`
		Wait   bool   `json:"wait,omitempty" doc:"Answer when they are gone at their targets too, after 30 seconds at the latest"`
	}
},
) (*one[lease.Revoked], error) {
	w, err := in.Body.Which, error(nil)
	if w.Agent != "" {
		if w.Agent, err = s.agentID(ctx, w.Agent); err != nil {
			return nil, s.problem(ctx, err)
		}
	}
	out, err := s.Leases.Revoke(ctx, callerOf(ctx), w, in.Body.Reason)
	if err == nil && in.Body.Wait {
		limited, cancel := context.WithTimeout(ctx, mostWait)
		defer cancel()
		err = s.Leases.Gone(limited, callerOf(ctx).Tenant, w)
	}
	return &one[lease.Revoked]{out}, s.problem(ctx, err)
}
