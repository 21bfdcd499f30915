package server

import (
	"context"
	"slices"

	"estover.dev"
	"estover.dev/internal/approve"
	"estover.dev/internal/gateway"
	"estover.dev/internal/gateway/forward"
	"estover.dev/internal/resource"
	"estover.dev/internal/token"
)

// requestable is how an agent asks for a call that was refused: just this one, for
// its session and purpose.
func (s *Server) requestable(ctx context.Context, caller estover.Caller, u *resource.Upstream, action string, params map[string]string, decision string) (*gateway.AccessRequest, error) {
	agent := caller.Acting()
	if agent.Kind() != estover.AgentKind || caller.Tasks != nil || len(u.Purposes) > 0 && !slices.Contains(u.Purposes, caller.Purpose) {
		return nil, nil
	}
	issuer := token.Issuer(s.config.Issuer).Of(caller.Tenant)
	item := map[string]any{"resource": u.Name, "actions": []string{action}}
	if len(params) > 0 {
		only := map[string][]string{}
		for name, v := range params {
			only[name] = []string{v}
		}
		item["parameters"] = only
	}
	endpoint := issuer
	if caller.Grant == "" { // known by the session's certificate, and by nothing that it could show elsewhere
		endpoint = "http://" + forward.OwnHost
	}
	how := &gateway.AccessRequest{
		Endpoint: endpoint + "/v1/access/requests",
		Body: map[string]any{
			"agent": agent.ID(), "session": caller.Session, "items": []any{item},
			"reason": "The call " + action + " of " + u.Name + " was refused (" + decision + ")",
		},
	}
	waits, err := s.requests.Waits(ctx, caller.Tenant, agent.ID(), caller.Session, u.ID, action)
	if err == nil && waits != "" {
		how.Pending, how.Form = waits, issuer+approve.Path+"/"+waits
	}
	return how, err
}
