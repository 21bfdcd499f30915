package vault

import (
	"context"
	"net/http"
	"strconv"

	"estover.dev"
	"estover.dev/internal/device"
)

// Audit devices are beside Estover's own log, which needs none and cannot be switched
// off here (V34).
func (d *Door) audit() []Route {
	return []Route{
		{Mount: "system", Path: "audit", Read: d.auditDevices, Sudo: true, Top: true, Help: "where the log is written to beside"},
		{Mount: "system", Path: "audit/*path", Write: d.enableAudit, Delete: d.disableAudit, Sudo: true, Help: "have the log written to a file, to syslog or to a socket"},
		{Mount: "system", Path: "audit-hash/*path", Write: d.auditHash, Top: true, Help: "a text as it stands in the lines of a device"},
		{Mount: "system", Path: "config/auditing/request-headers", Read: d.auditHeaders, Sudo: true, Top: true, Help: "headers of requests that were noted for the lines"},
		{Mount: "system", Path: "config/auditing/request-headers/:name", Read: d.auditHeader, Write: d.setAuditHeader, Delete: d.dropAuditHeader, Sudo: true, Top: true, Help: "note a header of requests for the lines"},
	}
}

// note has the events of a request tell what the lines of audit devices show of it
// beside.
func (q *Request) note() {
	n := device.Note{Headers: q.HTTP.Header}
	if !q.Mount.Fixed {
		n.Mount = q.Mount.ID
	}
	if q.Token != nil {
		n.Policies = q.Token.Policies
	}
	if t := q.ticketOf(); t != nil {
		n.Accessor = t.ID
	}
	q.Caller.Noted = q.door.Devices.Noted(q.HTTP.Context(), q.Tenant, n)
}

func (d *Door) auditDevices(ctx context.Context, q *Request) (*Answer, error) {
	list, err := d.Devices.List(ctx, q.Caller)
	if err != nil {
		return nil, err
	}
	data := map[string]any{}
	for _, x := range list {
		one := map[string]any{"type": x.Kind, "description": x.Description, "options": x.Options, "path": x.Path, "local": x.Local}
		if x.Failure != "" {
			one["failure"], one["failing_since"] = x.Failure, Time(x.FailedAt)
		}
		data[x.Path] = one
	}
	return &Answer{Data: data}, nil
}

func (d *Door) enableAudit(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Type        string         `json:"type"`
		Description string         `json:"description"`
		Options     map[string]any `json:"options"`
		Local       bool           `json:"local"`
		Path        string         `json:"path"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	x := device.Device{Path: q.Param("path"), Kind: in.Type, Description: in.Description, Local: in.Local, Options: map[string]string{}}
	for name, v := range in.Options {
		switch v := v.(type) {
		case string:
			x.Options[name] = v
		case bool:
			x.Options[name] = strconv.FormatBool(v)
		default:
			text, err := encode(v)
			if err != nil {
				return nil, err
			}
			x.Options[name] = string(text)
		}
	}
	_, err := d.Devices.Enable(ctx, q.Caller, x)
	return nil, err
}

func (d *Door) disableAudit(ctx context.Context, q *Request) (*Answer, error) {
	return nil, d.Devices.Disable(ctx, q.Caller, q.Param("path"))
}

func (d *Door) auditHash(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Input estover.Secret `json:"input"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	if in.Input.Empty() {
		return nil, refuse(http.StatusBadRequest, "the \"input\" parameter is empty")
	}
	hash, err := d.Devices.Hash(ctx, q.Caller, q.Param("path"), in.Input)
	if estover.KindOf(err) == estover.NotFound {
		return nil, refuse(http.StatusBadRequest, "unknown audit backend %q", q.Param("path")+"/").because(err)
	}
	return &Answer{Data: map[string]any{"hash": hash}}, err
}

func shownHeader(hashed bool) map[string]any { return map[string]any{"hmac": hashed} }

func (d *Door) auditHeaders(ctx context.Context, q *Request) (*Answer, error) {
	have, err := d.Devices.Headers(ctx, q.Caller)
	if err != nil {
		return nil, err
	}
	shown := map[string]any{}
	for name, hashed := range have {
		shown[name] = shownHeader(hashed)
	}
	return &Answer{Data: map[string]any{"headers": shown}}, nil
}

func (d *Door) auditHeader(ctx context.Context, q *Request) (*Answer, error) {
	have, err := d.Devices.Headers(ctx, q.Caller)
	if err != nil {
		return nil, err
	}
	name := q.Param("name")
	for n, hashed := range have {
		if http.CanonicalHeaderKey(n) == http.CanonicalHeaderKey(name) {
			return &Answer{Data: map[string]any{name: shownHeader(hashed)}}, nil
		}
	}
	return nil, device.ErrNoHeader
}

func (d *Door) setAuditHeader(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Hashed bool `json:"hmac"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	return nil, d.Devices.SetHeader(ctx, q.Caller, device.Header{Name: q.Param("name"), Hashed: in.Hashed})
}

func (d *Door) dropAuditHeader(ctx context.Context, q *Request) (*Answer, error) {
	return nil, d.Devices.RemoveHeader(ctx, q.Caller, q.Param("name"))
}
