package mount

import (
	"context"
	"encoding/base64"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// The errors of policies.
var (
	ErrNoPolicy = &estover.Error{Kind: estover.NotFound, Code: "acl_not_found", Detail: "There is no such policy."}
	ErrPolicy   = &estover.Error{Kind: estover.Invalid, Code: "acl_invalid", Detail: "The policy is not valid."}
	ErrRefused  = &estover.Error{Kind: estover.Denied, Code: "acl_refused", Detail: "The policies of the token do not allow this."}
)

// The policies that everybody has. Root allows everything and has no text.
const (
	RootPolicy    = "root"
	DefaultPolicy = "default"
)

// defaultText is the policy "default" as long as nobody has written it.
const defaultText = `# What every token may do unless it was made without this policy.

# Look up, renew and revoke itself.
path "auth/token/lookup-self" {
    capabilities = ["read"]
}
path "auth/token/renew-self" {
    capabilities = ["update"]
}
path "auth/token/revoke-self" {
    capabilities = ["update"]
}

# Learn what it may do, and what lies where it may do something.
path "sys/capabilities-self" {
    capabilities = ["update"]
}
path "sys/internal/ui/mounts" {
    capabilities = ["read"]
}
path "sys/internal/ui/mounts/*" {
    capabilities = ["read"]
}

# Leases of which it knows the id.
path "sys/renew" {
    capabilities = ["update"]
}
path "sys/leases/renew" {
    capabilities = ["update"]
}
path "sys/leases/lookup" {
    capabilities = ["update"]
}

# Its own cubbyhole, and answers that were wrapped for it.
path "cubbyhole/*" {
    capabilities = ["create", "read", "update", "delete", "list"]
}
path "sys/wrapping/wrap" {
    capabilities = ["update"]
}
path "sys/wrapping/lookup" {
    capabilities = ["update"]
}
path "sys/wrapping/unwrap" {
    capabilities = ["update"]
}

# Numbers and digests.
path "sys/tools/hash" {
    capabilities = ["update"]
}
path "sys/tools/hash/*" {
    capabilities = ["update"]
}
`

type policyKind string

const (
	aclKind      policyKind = "acl"
	passwordKind policyKind = "password"
)

// A Policy is one of the door, as it was written.
type Policy struct {
	Name      string
	Text      string
	CreatedAt time.Time
	ChangedAt time.Time
}

// maxPolicy is how long the text of a policy may be, in bytes.
const maxPolicy = 256 << 10

// Policies are the policies of the doors of all tenants. It is safe for use by
// many at once.
type Policies struct {
	guard *guard.Guard
	rules *guard.Cache[*rules] // by name
}

// NewPolicies keeps policies behind the door g.
func NewPolicies(g *guard.Guard) *Policies {
	p := &Policies{guard: g}
	p.rules = guard.NewCache(g, "vault_policy", func(ctx context.Context, tx *db.Tx, name string) (*rules, error) {
		one, err := findPolicy(ctx, tx, aclKind, name)
		if err == nil {
			return compile(one.Text)
		}
		if estover.KindOf(err) != estover.NotFound {
			return nil, err
		}
		if name == DefaultPolicy {
			return compile(defaultText)
		}
		return &rules{}, nil // what is not there allows nothing
	})
	return p
}

// PolicyName is the name of a policy in the spelling in which it is kept.
func PolicyName(name string) string { return strings.ToLower(strings.TrimSpace(name)) }

func checkPolicyName(name string) error {
	if name == "" || len(name) > 200 || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) || r == '/' }) {
		return ErrPolicy.With("The name of a policy has no blanks and no slashes, and at most 200 bytes.")
	}
	return nil
}

// List gives the names of all policies in their order, with the two that
// everybody has.
func (p *Policies) List(ctx context.Context, c estover.Caller) (names []string, err error) {
	err = p.guard.Read(ctx, c, guard.Op{Action: "acl.list"}, func(tx *db.Tx) error {
		names, err = policyNames(ctx, tx, aclKind)
		return err
	})
	if err != nil {
		return nil, err
	}
	names = append(names, DefaultPolicy, RootPolicy)
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Get is a policy as it was written.
func (p *Policies) Get(ctx context.Context, c estover.Caller, name string) (one Policy, err error) {
	name = PolicyName(name)
	err = p.guard.Read(ctx, c, guard.Op{Action: "acl.read", Target: "acl:" + name}, func(tx *db.Tx) error {
		one, err = findPolicy(ctx, tx, aclKind, name)
		switch {
		case name == RootPolicy:
			one, err = Policy{Name: name}, nil
		case name == DefaultPolicy && estover.KindOf(err) == estover.NotFound:
			one, err = Policy{Name: name, Text: defaultText}, nil
		}
		return err
	})
	return one, err
}

// Put writes a policy: HCL or JSON, plain or in base64.
func (p *Policies) Put(ctx context.Context, c estover.Caller, name, text string) error {
	name, text = PolicyName(name), plain(text)
	invalid := checkPolicyName(name)
	switch {
	case invalid != nil:
	case name == RootPolicy:
		invalid = ErrPolicy.With("cannot update %q policy", RootPolicy)
	case text == "":
		invalid = ErrPolicy.With("'policy' parameter not supplied or empty")
	default:
		_, invalid = compile(text)
	}
	op := guard.Op{Action: "acl.put", Target: "acl:" + name, Detail: map[string]any{"text": cut(text)}}
	return p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if invalid != nil {
			return invalid
		}
		tx.Touch("vault_policy", name)
		return putPolicy(ctx, tx.Tx, aclKind, name, text, tx.Now())
	})
}

// cut is as much of a policy as its event tells.
func cut(text string) string {
	if len(text) > 8<<10 {
		return strings.ToValidUTF8(text[:8<<10], "") + "…"
	}
	return text
}

// plain is the text of a policy that may have come in base64.
func plain(text string) string {
	if b, err := base64.StdEncoding.DecodeString(text); err == nil && utf8.Valid(b) {
		return string(b)
	}
	return text
}

// Remove takes a policy away. There is nothing to do where there is none.
func (p *Policies) Remove(ctx context.Context, c estover.Caller, name string) error {
	name = PolicyName(name)
	op := guard.Op{Action: "acl.remove", Target: "acl:" + name, Effect: guard.Deletes}
	return p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if name == RootPolicy || name == DefaultPolicy {
			return ErrPolicy.With("cannot delete %q policy", name)
		}
		tx.Touch("vault_policy", name)
		_, err := removePolicy(ctx, tx.Tx, aclKind, name)
		return err
	})
}

// Refuse records that the policies of a caller's token did not allow something,
// and is the error of that.
func (p *Policies) Refuse(ctx context.Context, c estover.Caller, path, capability string) error {
	op := guard.Op{Action: "acl.pass", Target: "path:" + path, Effect: guard.Reads, Detail: map[string]any{"capability": capability}}
	return p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		tx.Fail(ErrRefused)
		return nil
	})
}

// An ACL is what the policies of a token allow together.
type ACL struct {
	root  bool
	rules *rules
}

// Unbounded allows everything: the caller's own permissions are all that counts.
var Unbounded = &ACL{root: true}

// ACL is what the named policies of a tenant allow together. A policy that is
// not there allows nothing.
func (p *Policies) ACL(ctx context.Context, tenant estover.TenantID, names []string) (*ACL, error) {
	if slices.Contains(names, RootPolicy) {
		return Unbounded, nil
	}
	all := &rules{}
	for i, name := range names {
		one, err := p.rules.Get(ctx, tenant, PolicyName(name))
		if err != nil {
			return nil, err
		}
		if i == 0 && len(names) == 1 {
			return &ACL{rules: one}, nil
		}
		all.merge(one)
	}
	return &ACL{rules: all}, nil
}
