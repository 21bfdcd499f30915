package device

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/audit"
)

// A line is one event in the shape of an answer in Vault's own lines.
type line struct {
	Time  string `json:"time"`
	Type  string `json:"type"`
	Event string `json:"event"` // the id; the same if the line comes again
	Auth  struct {
		DisplayName string `json:"display_name"`
		EntityID    string `json:"entity_id,omitempty"`
		Accessor    string `json:"accessor,omitempty"`

		Policies      []string `json:"policies,omitempty"`
		TokenPolicies []string `json:"token_policies,omitempty"`
	} `json:"auth"`
	Request struct {
		ID        string `json:"id"`
		Operation string `json:"operation"`
		Path      string `json:"path"`
		Namespace struct {
			ID string `json:"id"`
		} `json:"namespace"`
		Address    string              `json:"remote_address,omitempty"`
		MountPoint string              `json:"mount_point,omitempty"`
		MountType  string              `json:"mount_type,omitempty"`
		Headers    map[string][]string `json:"headers,omitempty"`
		Data       map[string]any      `json:"data,omitempty"`
	} `json:"request"`
	Response struct {
		Data map[string]string `json:"data"`
	} `json:"response"`
	Error string `json:"error,omitempty"`
}

// plain are the members of an event's detail that stand in places of their own, or say
// how it was decided.
var plain = map[string]bool{"address": true, "decision": true, "noted": true}

// line is an event as a device has it.
func (d *Devices) line(ctx context.Context, x *Device, e *audit.Entry) ([]byte, error) {
	l := line{Time: e.At.UTC().Format(time.RFC3339Nano), Type: "response", Event: e.ID}
	l.Auth.DisplayName = string(e.Actor)
	if e.Actor.Kind() == estover.AgentKind {
		l.Auth.EntityID = e.Actor.ID()
	}
	l.Request.ID, l.Request.Operation, l.Request.Path = e.Request, operation(e.Action), e.Target
	l.Request.Namespace.ID = "root"
	if x.tenant != estover.DefaultTenant {
		l.Request.Namespace.ID = string(x.tenant)
	}
	l.Request.Address, _ = e.Detail["address"].(string)
	at := d.tell(ctx, x, &l, e.Detail["noted"])
	data := map[string]any{}
	for name, v := range e.Detail {
		switch {
		case plain[name]:
		case slices.Contains(at.Plain, name):
			data[name] = v
		default:
			data[name] = d.hashed(x, v)
		}
	}
	l.Request.Data = data
	l.Response.Data = map[string]string{"action": e.Action, "outcome": string(e.Outcome)}
	switch e.Outcome {
	case audit.Refused:
		l.Error = "permission denied"
	case audit.Failed:
		l.Error = "the operation came to nothing"
	}
	b, err := json.Marshal(l)
	return append(b, '\n'), err
}

// operation is what Vault would call an action.
func operation(action string) string {
	_, verb, _ := strings.Cut(action, ".")
	switch verb {
	case "read", "get", "show", "use", "lookup", "find":
		return "read"
	case "list", "search":
		return "list"
	case "create", "enable", "login", "put":
		return "create"
	case "remove", "delete", "destroy", "disable", "revoke", "end", "drop":
		return "delete"
	}
	return "update"
}

// hashed is a value with every text in it hashed, as Vault does it: numbers and what
// members are called stay.
func (d *Devices) hashed(x *Device, v any) any {
	switch v := v.(type) {
	case string:
		return d.hash(x, v)
	case []any:
		out := make([]any, len(v))
		for i, one := range v {
			out[i] = d.hashed(x, one)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, one := range v {
			out[name] = d.hashed(x, one)
		}
		return out
	}
	return v
}
