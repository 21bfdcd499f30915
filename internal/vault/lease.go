package vault

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/mount"
	"estover.dev/internal/pki"
	"estover.dev/internal/secret/database"
	"estover.dev/internal/secret/lease"
)

func (d *Door) leases() []Route {
	route := func(path string, write Handler, sudo bool, help string) Route {
		return Route{Mount: mount.System, Path: path, Write: write, Sudo: sudo, Help: help}
	}
	return []Route{
		route("leases/lookup", d.lookupLease, false, "what a lease is"),
		{Mount: mount.System, Path: "leases/lookup/*prefix", List: d.listLeases, Sudo: true, Help: "the leases below a path"},
		route("leases/renew", d.renewLease, false, "extend a lease"),
		route("leases/renew/*id", d.renewLease, false, "extend a lease"),
		route("leases/revoke", d.revokeLease, false, "end a lease"),
		route("leases/revoke/*id", d.revokeLease, false, "end a lease"),
		route("leases/revoke-prefix/*prefix", d.revokePrefix, true, "end all leases below a path"),
		route("leases/revoke-force/*prefix", d.revokeForce, true, "say that the targets of all leases below a path are no more; a second person says it too"),
		route("leases/tidy", d.tidyLeases, true, "nothing is left over that would have to be tidied"),
		{Mount: mount.System, Path: "leases/count", Read: d.countLeases, Sudo: true, Help: "how many leases there are"},
		route("renew", d.renewLease, false, "extend a lease"),
		route("renew/*id", d.renewLease, false, "extend a lease"),
		route("revoke", d.revokeLease, false, "end a lease"),
		route("revoke/*id", d.revokeLease, false, "end a lease"),
		route("revoke-prefix/*prefix", d.revokePrefix, true, "end all leases below a path"),
	}
}

// A leasePath is the id of a lease, taken apart.
type leasePath struct {
	mount database.Mount
	role  string
	id    string // as package lease has it
}

// errNoLease says that there is no lease of an id, or that it is another tenant's.
var errNoLease = &estover.Error{Kind: estover.NotFound, Code: "lease_not_found", Detail: "lease not found"}

// leasePath finds what the id of a lease names (T1).
func (d *Door) leasePath(ctx context.Context, q *Request, id string) (at leasePath, err error) {
	table, err := d.Mounts.Table(ctx, q.Tenant)
	if err != nil {
		return at, err
	}
	m, rest, ok := table.Find(strings.Trim(id, "/"))
	if !ok || m.Kind != "database" {
		return at, errNoLease
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 3 || parts[0] != "creds" || parts[2] == "" {
		return at, errNoLease
	}
	return leasePath{database.Mount{ID: m.ID, Path: strings.TrimSuffix(m.Full(), "/")}, parts[1], "lse_" + parts[2]}, nil
}

// leaseNamed is the lease of an id, if the path in the id is its own.
func (d *Door) leaseNamed(ctx context.Context, q *Request, id string) (at leasePath, x lease.Lease, err error) {
	// By the id alone: who may not look at it hears neither of the mount nor of the role.
	if x, err = d.Leases.Get(ctx, q.Caller, "lse_"+id[strings.LastIndexByte(id, '/')+1:]); err == nil {
		at, err = d.leasePath(ctx, q, id)
	}
	role := ""
	if err == nil {
		role, err = d.Databases.LeaseRole(ctx, q.Tenant, at.mount, at.role)
	}
	if estover.KindOf(err) == estover.NotFound || err == nil && x.Role != role {
		err = errNoLease
	}
	return at, x, err
}

// leaseID reads which lease a request is about.
func (q *Request) leaseID(into any, id *string) (string, error) {
	if err := q.Read(into); err != nil {
		return "", err
	}
	v := cmp.Or(q.Param("id"), *id)
	if v == "" {
		return "", refuse(http.StatusBadRequest, "lease_id must be specified")
	}
	return strings.Trim(v, "/"), nil
}

func (d *Door) lookupLease(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		ID string `json:"lease_id"`
	}
	id, err := q.leaseID(&in, &in.ID)
	if err != nil {
		return nil, err
	}
	if r, is, err := d.leasedCertificate(ctx, q, id); is {
		return certificateLease(id, r, err)
	}
	_, x, err := d.leaseNamed(ctx, q, id)
	if errors.Is(err, errNoLease) || err == nil && x.State == lease.Ended {
		return nil, refuse(http.StatusBadRequest, "invalid lease")
	}
	if err != nil {
		return nil, err
	}
	path := id[:strings.LastIndexByte(id, '/')]
	return &Answer{Data: map[string]any{
		"id": id, "issue_time": Time(x.CreatedAt), "expire_time": Time(x.ExpiresAt), "last_renewal": nil, "renewable": x.State == lease.Live,
		"ttl": seconds(d.left(x)), "path": path,
	}}, nil
}

func (d *Door) renewLease(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		ID        string        `json:"lease_id"`
		Increment time.Duration `json:"increment"`
	}
	id, err := q.leaseID(&in, &in.ID)
	if err != nil {
		return nil, err
	}
	if _, is, err := d.leasedCertificate(ctx, q, id); is {
		switch {
		case estover.KindOf(err) == estover.NotFound:
			err = refuse(http.StatusBadRequest, "lease not found").because(err)
		case err == nil:
			err = refuse(http.StatusBadRequest, "lease is not renewable")
		}
		return nil, err
	}
	at, x, err := d.leaseNamed(ctx, q, id)
	switch {
	case errors.Is(err, errNoLease):
		return nil, refuse(http.StatusBadRequest, "lease not found")
	case err != nil:
		return nil, err
	case x.State != lease.Live || d.left(x) == 0:
		return nil, refuse(http.StatusBadRequest, "lease expired")
	}
	purpose := ""
	if q.Caller.Acting().Kind() == estover.UserKind {
		purpose = "renewed at the Vault-compatible door"
	}
	renewed, err := d.Leases.Renew(ctx, q.Caller, at.id, in.Increment, purpose)
	switch {
	case errors.Is(err, lease.ErrMaximum): // it goes on for as long as it may (L7)
		q.Warn("the lease ends at %s, and cannot be extended any further", Time(x.ExpiresAt))
		renewed = x
	case errors.Is(err, lease.ErrNotLive):
		return nil, refuse(http.StatusBadRequest, "lease expired")
	case err != nil:
		return nil, err
	}
	return &Answer{Lease: &LeaseInfo{ID: id, Duration: d.left(renewed), Renewable: true}}, nil
}

// syncTime is how long a client may wait for a lease to be gone at its target.
const syncTime = 30 * time.Second

func (d *Door) revokeLease(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		ID   string `json:"lease_id"`
		Sync bool   `json:"sync"`
	}
	id, err := q.leaseID(&in, &in.ID)
	if err != nil {
		return nil, err
	}
	if r, is, err := d.leasedCertificate(ctx, q, id); is {
		if err == nil && r.RevokedAt.IsZero() && r.NotAfter.After(time.Now()) {
			_, err = d.PKI.Revoke(ctx, q.Caller, r.Mount, pki.X509, r.Serial, pki.Unspecified, "its lease was revoked at the Vault-compatible door")
		}
		if err != nil && estover.KindOf(err) != estover.NotFound {
			return nil, err
		}
		return revoking(in.Sync), nil
	}
	at, x, err := d.leaseNamed(ctx, q, id)
	if errors.Is(err, errNoLease) { // one that there is not is gone (V21)
		return revoking(in.Sync), nil
	}
	if err != nil {
		return nil, err
	}
	if x.State != lease.Ended {
		if _, err := d.Leases.Revoke(ctx, q.Caller, lease.Which{ID: at.id}, "revoked at the Vault-compatible door"); err != nil && estover.KindOf(err) != estover.NotFound {
			return nil, err
		}
	}
	if in.Sync {
		if err := d.settled(ctx, q, lease.Filter{ID: at.id}); err != nil {
			return nil, err
		}
	}
	return revoking(in.Sync), nil
}

// revoking is the answer to who ends leases: with sync they are gone.
func revoking(sync bool) *Answer {
	if sync {
		return nil
	}
	return &Answer{Status: http.StatusAccepted}
}

// settled waits until there are no such leases at their targets any more.
func (d *Door) settled(ctx context.Context, q *Request, f lease.Filter) error {
	ctx, cancel := context.WithTimeout(ctx, syncTime)
	defer cancel()
	err := d.Leases.Settled(ctx, q.Tenant, f)
	if errors.Is(err, lease.ErrNotGone) {
		return refuse(http.StatusInternalServerError, "the lease is good for nothing here any more, but is not gone at its target yet; that goes on by itself").because(err)
	}
	return err
}

// leasesBelow are the roles of leases whose leases lie below a prefix, by the path of
// their leases.
func (d *Door) leasesBelow(ctx context.Context, q *Request, prefix string) (map[string]leaseRole, error) {
	prefix = strings.Trim(prefix, "/")
	table, err := d.Mounts.Table(ctx, q.Tenant)
	if err != nil {
		return nil, err
	}
	all := map[string]leaseRole{}
	for i := range table {
		m := &table[i]
		if m.Kind != "database" {
			continue
		}
		at := database.Mount{ID: m.ID, Path: strings.TrimSuffix(m.Full(), "/")}
		roles, err := d.Databases.LeaseRoles(ctx, q.Tenant, at)
		if err != nil {
			return nil, err
		}
		for role, leases := range roles {
			if path := at.Path + "/creds/" + role; path == prefix || strings.HasPrefix(path, prefix+"/") || prefix == "" {
				all[path] = leaseRole{at, role, leases}
			}
		}
	}
	if len(all) == 0 { // as whoever may not would hear if there were one
		_, err = d.Leases.List(ctx, q.Caller, lease.Filter{Open: true}, "", 1)
	}
	return all, err
}

// A leaseRole is a role whose leases lie below a prefix.
type leaseRole struct {
	mount  database.Mount
	role   string
	leases string // the role of leases
}

// mostListed is how many leases of a role one list shows.
const mostListed = 10_000

func (d *Door) listLeases(ctx context.Context, q *Request) (*Answer, error) {
	prefix := strings.Trim(q.Param("prefix"), "/")
	var keys []string
	if _, err := d.Leases.List(ctx, q.Caller, lease.Filter{Open: true}, "", 1); err != nil { // who may not list them hears of no role
		return nil, err
	}
	roles, err := d.leasesBelow(ctx, q, prefix)
	if err != nil {
		return nil, err
	}
	for path, b := range roles {
		if path != prefix {
			rest := strings.TrimPrefix(path, prefix)
			name, _, _ := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
			keys = append(keys, name+"/")
			continue
		}
		list, err := d.Leases.List(ctx, q.Caller, lease.Filter{Role: b.leases, Open: true}, "", mostListed)
		if err != nil {
			return nil, err
		}
		for _, x := range list {
			keys = append(keys, strings.TrimPrefix(x.ID, "lse_"))
		}
	}
	slices.Sort(keys)
	return listing(slices.Compact(keys), nil)
}

func (d *Door) revokePrefix(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Sync bool `json:"sync"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	roles, err := d.leasesBelow(ctx, q, q.Param("prefix"))
	if err != nil {
		return nil, err
	}
	for _, b := range roles {
		if _, err := d.Leases.Revoke(ctx, q.Caller, lease.Which{Role: b.leases}, "revoked by prefix at the Vault-compatible door"); err != nil {
			return nil, err
		}
	}
	if in.Sync {
		for _, b := range roles {
			if err := d.settled(ctx, q, lease.Filter{Role: b.leases}); err != nil {
				return nil, err
			}
		}
	}
	return revoking(in.Sync), nil
}

func (d *Door) revokeForce(ctx context.Context, q *Request) (*Answer, error) {
	roles, err := d.leasesBelow(ctx, q, q.Param("prefix"))
	if err != nil {
		return nil, err
	}
	done := map[string]bool{}
	for _, b := range roles {
		if _, err := d.Leases.Revoke(ctx, q.Caller, lease.Which{Role: b.leases}, "revoked by force at the Vault-compatible door"); err != nil {
			return nil, err
		}
		at, err := d.Databases.TargetOf(ctx, q.Tenant, b.mount, b.role)
		if err != nil {
			return nil, err
		}
		if done[at] {
			continue
		}
		done[at] = true
		out, err := d.Leases.Declare(ctx, q.Caller, at, "sys/leases/revoke-force at the Vault-compatible door")
		if err != nil {
			return nil, err
		}
		if out.Waiting > 0 {
			q.Warn("%d leases at %s wait for a second person who says that the target is no more", out.Waiting, at)
		}
	}
	return nil, nil
}

func (d *Door) tidyLeases(context.Context, *Request) (*Answer, error) {
	return &Answer{Status: http.StatusAccepted, Warnings: []string{"Tidy operation successfully started. Any information from the operation will be printed to the server logs."}}, nil
}

func (d *Door) countLeases(ctx context.Context, q *Request) (*Answer, error) {
	// What there is may be seen by whoever may list it.
	if _, err := d.Leases.List(ctx, q.Caller, lease.Filter{Open: true}, "", 1); err != nil {
		return nil, err
	}
	roles, err := d.leasesBelow(ctx, q, "")
	if err != nil {
		return nil, err
	}
	var all int64
	counts := map[string]int64{}
	for path, b := range roles {
		s, err := d.Leases.Standing(ctx, q.Tenant, lease.Filter{Role: b.leases})
		if err != nil {
			return nil, err
		}
		counts[path] = s.Open
		all += s.Open
	}
	return &Answer{Data: map[string]any{"lease_count": all, "counts": counts}}, nil
}
