package device

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"estover.dev"
)

// A Note is what is known of a request beside what its events tell, and stands in the
// lines of devices.
type Note struct {
	Headers  http.Header // all of them; those that were noted are told
	Policies []string    // of the token
	Accessor string      // of the token; "" for none
	Mount    string      // the id of the mount that it is about; "" for none
}

// A Mount is what lines tell of a mount, and how.
type Mount struct {
	Path, Kind string
	Plain      []string // members of a request's data that are not hashed
}

// A look is what the requests of an organisation are looked at for.
type look struct {
	devices []string        // their ids; none if there are no lines to show anything
	headers map[string]bool // true for one that is hashed
}

// secrets are the headers that open doors. They are noted hashed, or not at all.
var secrets = []string{"authorization", "cookie", "dpop", "proxy-authorization", "x-vault-token"}

// Bounds of what events tell of headers.
const (
	maxValues = 8        // of one header
	maxValue  = 512      // bytes of a value
	maxNoted  = 16 << 10 // bytes of all headers; beyond it there are none
)

// noted is how a [Note] stands in events: a header is a list of texts, or such a list
// for each device, hashed under its key. So the log itself has the texts of those
// headers alone that are to be seen.
type noted struct {
	Headers  map[string]any `json:"headers,omitempty"`
	Policies []string       `json:"policies,omitempty"`
	Accessor string         `json:"accessor,omitempty"`
	Mount    string         `json:"mount,omitempty"`
}

// Noted are the members of what the events of a request tell beside
// ([estover.Caller.Noted]); "" for an organisation without devices.
func (d *Devices) Noted(ctx context.Context, tenant estover.TenantID, n Note) string {
	at, err := d.looks.Get(ctx, tenant, lookID)
	if err == nil && len(at.devices) > 0 {
		err = d.o.Sealer.Prepare(ctx, tenant)
	}
	if err != nil { // the request itself will hear of it
		return ""
	}
	if len(at.devices) == 0 {
		return ""
	}
	out := noted{Policies: n.Policies, Accessor: n.Accessor, Mount: n.Mount}
	size := 0
	for name, hashed := range at.headers {
		var values []string
		for _, v := range n.Headers[http.CanonicalHeaderKey(name)] {
			if len(values) < maxValues {
				values = append(values, strings.ToValidUTF8(v[:min(len(v), maxValue)], "�"))
			}
		}
		if values == nil {
			continue
		}
		if out.Headers == nil {
			out.Headers = map[string]any{}
		}
		if !hashed {
			out.Headers[name] = values
			size += len(strings.Join(values, ""))
			continue
		}
		by := map[string][]string{}
		for _, id := range at.devices {
			for _, v := range values {
				by[id] = append(by[id], d.hash(&Device{ID: id, tenant: tenant}, v))
				size += 80
			}
		}
		out.Headers[name] = by
	}
	if size > maxNoted {
		out.Headers = nil
	}
	b, err := json.Marshal(out)
	if err != nil {
		panic("device: a note has no JSON: " + err.Error())
	}
	return string(b[1 : len(b)-1])
}

// tell puts into a line what an event tells beside, and gives what there is to know of
// its mount.
func (d *Devices) tell(ctx context.Context, x *Device, l *line, v any) (at Mount) {
	told, _ := v.(map[string]any)
	if told == nil {
		return at
	}
	l.Auth.Policies = texts(told["policies"])
	l.Auth.TokenPolicies = l.Auth.Policies
	if accessor, _ := told["accessor"].(string); accessor != "" {
		l.Auth.Accessor = d.hash(x, accessor)
		if hashed, err := strconv.ParseBool(x.Options["hmac_accessor"]); err == nil && !hashed {
			l.Auth.Accessor = accessor
		}
	}
	if id, _ := told["mount"].(string); id != "" && d.o.Mount != nil {
		var ok bool
		if at, ok = d.o.Mount(ctx, x.tenant, id); ok {
			l.Request.MountPoint, l.Request.MountType = at.Path, at.Kind
		}
	}
	all, _ := told["headers"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		values := texts(all[name])
		if by, hashed := all[name].(map[string]any); hashed {
			values = texts(by[x.ID])
		}
		if values == nil {
			continue // of before the device
		}
		if l.Request.Headers == nil {
			l.Request.Headers = map[string][]string{}
		}
		l.Request.Headers[name] = values
	}
	return at
}

func texts(v any) (out []string) {
	list, _ := v.([]any)
	for _, one := range list {
		if text, ok := one.(string); ok {
			out = append(out, text)
		}
	}
	return out
}
