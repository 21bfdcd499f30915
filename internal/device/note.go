package device

import (
	"cmp"
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

// secrets are in the names of headers that open doors, here or elsewhere: proxies hand on
// what they let people in with. They are noted hashed, or not at all.
var secrets = []string{"api-key", "apikey", "assertion", "authorization", "cookie", "dpop", "jwt", "oidc", "password", "secret", "token"}

// opens reports whether a header of this name may open doors.
func opens(name string) bool {
	return slices.ContainsFunc(secrets, func(s string) bool { return strings.Contains(name, s) })
}

// Bounds of what events tell of headers. Of what is longer both ends are told: a client
// begins a header with whatever it likes, and a proxy adds what it knows at the end.
const (
	maxValues = 8        // of one header
	maxValue  = 512      // bytes of a value; one that is hashed is hashed as a whole
	maxNoted  = 16 << 10 // bytes of all headers
)

// leftOut stands for the values of a header that there is no room for.
const leftOut = "(left out)"

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
	out.Headers = d.headers(tenant, at, n.Headers)
	b, err := json.Marshal(out)
	if err != nil {
		panic("device: a note has no JSON: " + err.Error())
	}
	return string(b[1 : len(b)-1])
}

// headers are those that were noted, as events tell of them. Where all are too much the
// largest are left out, so that whoever sends one that is long hides that one alone.
func (d *Devices) headers(tenant estover.TenantID, at look, sent http.Header) map[string]any {
	values, size := map[string][]string{}, map[string]int{}
	for name, hashed := range at.headers {
		for _, v := range ends(sent[http.CanonicalHeaderKey(name)], maxValues) {
			if hashed {
				size[name] += 80 * len(at.devices)
			} else {
				v = shortened(v)
				size[name] += len(v)
			}
			values[name] = append(values[name], v)
		}
	}
	if len(values) == 0 {
		return nil
	}
	told, all := map[string]any{}, 0
	for _, name := range slices.SortedFunc(maps.Keys(values), func(a, b string) int {
		return cmp.Or(cmp.Compare(size[a], size[b]), cmp.Compare(a, b))
	}) {
		if all += size[name]; all > maxNoted {
			told[name] = []string{leftOut}
			continue
		}
		if !at.headers[name] {
			told[name] = values[name]
			continue
		}
		by := map[string][]string{}
		for _, id := range at.devices {
			for _, v := range values[name] {
				by[id] = append(by[id], d.hash(&Device{ID: id, tenant: tenant}, v))
			}
		}
		told[name] = by
	}
	return told
}

// ends are so many values of a list at most: the first and the last.
func ends(list []string, most int) []string {
	if len(list) <= most {
		return list
	}
	return slices.Concat(list[:most/2], list[len(list)-most/2:])
}

// shortened is a value that is told as it is.
func shortened(v string) string {
	if len(v) > maxValue {
		v = v[:maxValue/2] + "…" + v[len(v)-maxValue/2:]
	}
	return strings.ToValidUTF8(v, "�")
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
