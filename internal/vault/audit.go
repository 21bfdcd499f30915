package vault

import (
	"context"
	"net/http"
)

// Audit devices are not offered: whatever passes the guard is in Estover's own
// log, which needs none and cannot be switched off (V34). Clients that look for
// them find that there are none, and are told why they cannot add one.
func (d *Door) audit() []Route {
	return []Route{
		{Mount: "system", Path: "audit", Read: d.auditDevices, Sudo: true, Top: true, Help: "audit devices, of which there are none: Estover's own log is always on"},
		{Mount: "system", Path: "audit/*path", Write: d.refuseAudit, Delete: d.nothingToDo, Sudo: true, Help: "not offered: Estover's own log is always on"},
		{Mount: "system", Path: "config/auditing/request-headers", Read: d.auditHeaders, Sudo: true, Top: true, Help: "headers that audit devices would write, of which there are none"},
		{Mount: "system", Path: "config/auditing/request-headers/:name", Read: d.noAuditHeader, Write: d.refuseAudit, Delete: d.nothingToDo, Sudo: true, Top: true, Help: "not offered: Estover's own log is always on"},
	}
}

func (d *Door) auditDevices(context.Context, *Request) (*Answer, error) {
	return &Answer{Data: map[string]any{}}, nil
}

func (d *Door) refuseAudit(context.Context, *Request) (*Answer, error) {
	return nil, refuse(http.StatusBadRequest, "audit devices are not offered: every operation is in Estover's own log, which is always on. Read it with estover event list")
}

func (d *Door) nothingToDo(context.Context, *Request) (*Answer, error) { return nil, nil }

func (d *Door) auditHeaders(context.Context, *Request) (*Answer, error) {
	return &Answer{Data: map[string]any{"headers": map[string]any{}}}, nil
}

func (d *Door) noAuditHeader(context.Context, *Request) (*Answer, error) {
	return nil, refuse(http.StatusBadRequest, "Could not find header in config")
}
