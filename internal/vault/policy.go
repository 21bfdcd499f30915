package vault

import (
	"context"
	"net/http"
	"strings"

	"estover.dev/internal/mount"
)

func (d *Door) policies() []Route {
	return []Route{
		{Mount: "system", Path: "policies/acl", List: d.listPolicies, Read: d.listPolicies, Help: "the names of all policies"},
		{Mount: "system", Path: "policies/acl/:name", Read: d.showPolicy("policy"), Write: d.putPolicy, Delete: d.removePolicy, Help: "a policy, as it was written"},
		{Mount: "system", Path: "policy", List: d.listPolicies, Read: d.listPolicies, Top: true, Help: "the names of all policies"},
		{Mount: "system", Path: "policy/:name", Read: d.showPolicy("rules"), Write: d.putPolicy, Delete: d.removePolicy, Top: true, Help: "a policy, as it was written"},
		{Mount: "system", Path: "policies/password", List: d.listPasswordPolicies, Help: "the names of the policies of passwords"},
		{Mount: "system", Path: "policies/password/:name", Read: d.showPasswordPolicy, Write: d.putPasswordPolicy, Delete: d.removePasswordPolicy, Help: "a policy of passwords"},
		{Mount: "system", Path: "policies/password/:name/generate", Read: d.generatePassword, Help: "a password as a policy wants it"},
		{Mount: "system", Path: "capabilities-self", Write: d.ownCapabilities, Top: true, Help: "what the token may do at paths"},
		{Mount: "system", Path: "capabilities", Write: d.capabilities, Top: true, Help: "what a token may do at paths"},
		{Mount: "system", Path: "capabilities-accessor", Write: d.accessorCapabilities, Top: true, Help: "what the token of an accessor may do at paths"},
	}
}

func (d *Door) listPolicies(ctx context.Context, q *Request) (*Answer, error) {
	names, err := d.Policies.List(ctx, q.Caller)
	data := map[string]any{"keys": names}
	if strings.HasPrefix(q.Rest, "policy") {
		data["policies"] = names
	}
	return &Answer{Data: data}, err
}

func (d *Door) showPolicy(text string) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		p, err := d.Policies.Get(ctx, q.Caller, q.Param("name"))
		return &Answer{Data: map[string]any{"name": p.Name, text: p.Text}}, err
	}
}

func (d *Door) putPolicy(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Policy string `json:"policy"`
		Rules  string `json:"rules"`
		Name   string `json:"name"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	if in.Policy == "" {
		in.Policy = in.Rules
	}
	return nil, d.Policies.Put(ctx, q.Caller, q.Param("name"), in.Policy)
}

func (d *Door) removePolicy(ctx context.Context, q *Request) (*Answer, error) {
	return nil, d.Policies.Remove(ctx, q.Caller, q.Param("name"))
}

func (d *Door) listPasswordPolicies(ctx context.Context, q *Request) (*Answer, error) {
	names, err := d.Policies.Passwords(ctx, q.Caller)
	if err != nil {
		return nil, err
	}
	return listing(names, nil)
}

func (d *Door) showPasswordPolicy(ctx context.Context, q *Request) (*Answer, error) {
	p, err := d.Policies.Password(ctx, q.Caller, q.Param("name"))
	return &Answer{Data: map[string]any{"policy": p.Text}}, err
}

func (d *Door) putPasswordPolicy(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Policy string `json:"policy"`
		Name   string `json:"name"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	return nil, d.Policies.PutPassword(ctx, q.Caller, q.Param("name"), in.Policy)
}

func (d *Door) removePasswordPolicy(ctx context.Context, q *Request) (*Answer, error) {
	return nil, d.Policies.RemovePassword(ctx, q.Caller, q.Param("name"))
}

func (d *Door) generatePassword(ctx context.Context, q *Request) (*Answer, error) {
	password, err := d.Policies.Generate(ctx, q.Caller, q.Param("name"))
	return &Answer{Data: map[string]any{"password": string(password.Reveal())}}, err
}

// asked are the paths whose capabilities a request wants to know.
func asked(q *Request, beside any) ([]string, error) {
	var in struct {
		Path  []string `json:"path"`
		Paths []string `json:"paths"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	if err := q.Read(beside); err != nil {
		return nil, err
	}
	paths := append(in.Paths, in.Path...)
	if len(paths) == 0 {
		return nil, refuse(http.StatusBadRequest, "paths must be supplied")
	}
	return paths, nil
}

// capable answers for each path, and for a single one by the older name too
// (V20).
func capable(acl *mount.ACL, paths []string) *Answer {
	data := map[string]any{}
	for _, p := range paths {
		data[p] = acl.Capabilities(strings.TrimPrefix(p, "/"))
	}
	if len(paths) == 1 {
		data["capabilities"] = data[paths[0]]
	}
	return &Answer{Data: data}
}

func (d *Door) ownCapabilities(_ context.Context, q *Request) (*Answer, error) {
	var beside struct {
		Token string `json:"token"`
	}
	paths, err := asked(q, &beside)
	if err != nil {
		return nil, err
	}
	return capable(q.ACL, paths), nil
}

func (d *Door) capabilities(ctx context.Context, q *Request) (*Answer, error) {
	var beside struct {
		Token string `json:"token"`
	}
	paths, err := asked(q, &beside)
	if err != nil {
		return nil, err
	}
	t, err := d.o.Recognise(q.HTTP, q.Tenant, beside.Token)
	if err != nil || t.Caller.Tenant != q.Tenant {
		return nil, refuse(http.StatusBadRequest, "invalid token")
	}
	acl, err := d.aclOf(ctx, t)
	if err != nil {
		return nil, err
	}
	return capable(acl, paths), nil
}

func (d *Door) accessorCapabilities(ctx context.Context, q *Request) (*Answer, error) {
	var beside struct {
		Accessor string `json:"accessor"`
	}
	paths, err := asked(q, &beside)
	if err != nil {
		return nil, err
	}
	if d.o.ByAccessor == nil {
		return nil, refuse(http.StatusBadRequest, "invalid accessor")
	}
	t, err := d.o.ByAccessor(ctx, q.Caller, beside.Accessor)
	if err != nil {
		return nil, err
	}
	acl, err := d.aclOf(ctx, t)
	if err != nil {
		return nil, err
	}
	return capable(acl, paths), nil
}

// aclOf is what the policies of the door allow a token.
func (d *Door) aclOf(ctx context.Context, t Token) (*mount.ACL, error) {
	if t.Unbounded {
		return mount.Unbounded, nil
	}
	return d.Policies.ACL(ctx, t.Caller.Tenant, t.Policies)
}
