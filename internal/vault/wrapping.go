package vault

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"estover.dev"
	"estover.dev/internal/guard"
	"estover.dev/internal/mount"
	"estover.dev/internal/ticket"
)

func (d *Door) wrapping() []Route {
	return []Route{
		{Mount: mount.System, Path: "wrapping/wrap", Write: d.wrapData, Top: true, Help: "wrap what is sent"},
		{Mount: mount.System, Path: "wrapping/unwrap", Write: d.unwrap, Open: true, Help: "fetch a wrapped answer, once"},
		{Mount: mount.System, Path: "wrapping/lookup", Read: d.lookupWrap, Write: d.lookupWrap, Open: true, Help: "what waits, without fetching it"},
		{Mount: mount.System, Path: "wrapping/rewrap", Write: d.rewrap, Open: true, Help: "give a wrapped answer another token"},
		{Mount: mount.Cubbyhole, Path: "*path", Read: d.readCubbyhole, List: d.listCubbyhole, Write: d.writeCubbyhole, Delete: d.dropCubbyhole, Exists: d.cubbyholeThere, Help: "what the token keeps for itself"},
	}
}

// A kept is an answer as it waits to be unwrapped.
type kept struct {
	Status int             `json:"status"`
	Body   json.RawMessage `json:"body"`
}

// Keep is an answer as it is kept until it is unwrapped.
func Keep(w Wrapped) ([]byte, error) { return json.Marshal(kept{w.Status, w.Body}) }

func (d *Door) wrapData(_ context.Context, q *Request) (*Answer, error) {
	if q.Wrap == 0 {
		return nil, refuse(http.StatusBadRequest, "endpoint requires response wrapping to be used: say for how long in the header X-Vault-Wrap-TTL")
	}
	return &Answer{Data: q.Data()}, nil
}

// wrappingToken is the token of what waits: in the request, or as the request's own
// token (V12). Who comes with a token of their own beside is known by that.
func (d *Door) wrappingToken(q *Request) (string, error) {
	var in struct {
		Token estover.Secret `json:"token"`
	}
	if err := q.Read(&in); err != nil {
		return "", err
	}
	own := q.Presented
	if in.Token.Empty() {
		if own == "" {
			return "", refuse(http.StatusBadRequest, "missing \"token\" value in input")
		}
		q.Tenant = q.chosen
		return own, nil
	}
	q.Tenant = q.chosen
	if own != "" && !ticket.IsWrapping(own) {
		return string(in.Token.Reveal()), d.recognise(q, own)
	}
	return string(in.Token.Reveal()), nil
}

// noWrap is the error of who wants what does not wait. Of a stranger nothing is on
// record, or anybody could fill it; of who is known it is, and they hear nothing else.
func (d *Door) noWrap(ctx context.Context, q *Request, err error) error {
	var refused *guard.Refusal
	if !errors.Is(err, ticket.ErrWrap) || q.Token == nil {
		return err
	}
	if failed := d.Tickets.NoWrap(ctx, q.Caller); failed != nil && !errors.Is(failed, ticket.ErrWrap) && !errors.As(failed, &refused) {
		return failed
	}
	return err
}

func (d *Door) unwrap(ctx context.Context, q *Request) (*Answer, error) {
	q.Unwrapped()
	v, err := d.wrappingToken(q)
	if err != nil {
		return nil, err
	}
	b, _, err := d.Tickets.Unwrap(ctx, q.Tenant, v, q.from())
	if err != nil {
		return nil, d.noWrap(ctx, q, err)
	}
	var k kept
	if err := json.Unmarshal(b, &k); err != nil {
		return nil, err
	}
	return &Answer{Raw: k.Body, RawType: "application/json", Status: k.Status}, nil
}

func (d *Door) lookupWrap(ctx context.Context, q *Request) (*Answer, error) {
	q.Unwrapped()
	v, err := d.wrappingToken(q)
	if err != nil {
		return nil, err
	}
	w, err := d.Tickets.LookupWrap(ctx, q.Tenant, v)
	if err != nil {
		return nil, d.noWrap(ctx, q, err)
	}
	return &Answer{Data: map[string]any{"creation_ttl": seconds(w.TTL), "creation_time": Time(w.CreatedAt), "creation_path": w.Path}}, nil
}

func (d *Door) rewrap(ctx context.Context, q *Request) (*Answer, error) {
	q.Unwrapped()
	v, err := d.wrappingToken(q)
	if err != nil {
		return nil, err
	}
	w, err := d.Tickets.Rewrap(ctx, q.Tenant, v, q.from())
	if err != nil {
		return nil, d.noWrap(ctx, q, err)
	}
	info := WrapInfo{
		Token: string(w.Value.Reveal()), Accessor: w.ID, TTL: seconds(w.TTL), CreationTime: Time(w.CreatedAt), CreationPath: w.Path, Accessed: w.Accessor,
	}
	b, err := (&Answer{}).envelope(q.id, &info)
	return &Answer{Raw: b, RawType: "application/json"}, err
}

// Cubbyholes.

// cubbyhole is the ticket whose the request's cubbyhole is.
func (q *Request) cubbyhole() (*ticket.Ticket, error) {
	if t := q.ticketOf(); t != nil && t.Kind != ticket.Batch {
		return t, nil
	}
	return nil, refuse(http.StatusBadRequest, "this token has no cubbyhole: make one with auth/token/create, or log in")
}

func (d *Door) readCubbyhole(ctx context.Context, q *Request) (*Answer, error) {
	t, err := q.cubbyhole()
	if err != nil {
		return nil, err
	}
	b, err := d.Tickets.Kept(ctx, q.Caller, t, q.Param("path"))
	if err != nil {
		return nil, err
	}
	return &Answer{Data: json.RawMessage(b)}, nil
}

func (d *Door) listCubbyhole(ctx context.Context, q *Request) (*Answer, error) {
	t, err := q.cubbyhole()
	if err != nil {
		return nil, err
	}
	names, err := d.Tickets.KeptBelow(ctx, q.Caller, t, q.Param("path"))
	if err != nil {
		return nil, err
	}
	return listing(names, nil)
}

func (d *Door) writeCubbyhole(ctx context.Context, q *Request) (*Answer, error) {
	t, err := q.cubbyhole()
	if err != nil {
		return nil, err
	}
	data := q.Data()
	if string(data) == "{}" {
		return nil, refuse(http.StatusBadRequest, "missing data fields")
	}
	return nil, d.Tickets.Keep(ctx, q.Caller, t, q.Param("path"), data)
}

func (d *Door) dropCubbyhole(ctx context.Context, q *Request) (*Answer, error) {
	t, err := q.cubbyhole()
	if err != nil {
		return nil, err
	}
	return nil, d.Tickets.Forget(ctx, q.Caller, t, q.Param("path"))
}

func (d *Door) cubbyholeThere(ctx context.Context, q *Request) (bool, error) {
	t := q.ticketOf()
	if t == nil {
		return false, nil
	}
	return d.Tickets.Keeps(ctx, t, q.Param("path"))
}
