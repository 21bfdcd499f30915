package vault

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"estover.dev"
	"estover.dev/internal/mount"
	"estover.dev/internal/secret"
)

// Purpose is what a person who reads a secret through the door reads it for: the
// door has no word for it. An agent's is its session's.
const Purpose = "read through the Vault-compatible door"

// usualVersions is how many versions a secret of kv keeps where nothing says
// otherwise.
const usualVersions = 10

func (d *Door) kv2() []Route {
	const kind = "kv/2"
	return []Route{
		{Mount: kind, Path: "config", Read: d.kvConfig, Write: d.tuneKV, Help: "how versions are kept"},
		{Mount: kind, Path: "data/*path", Read: d.readData, Write: d.writeData, Patch: d.patchData, Delete: d.deleteData, Exists: d.hasData, Help: "the values of a version"},
		{Mount: kind, Path: "delete/*path", Write: d.moveData((*secret.Secrets).Delete), Help: "take versions out of use"},
		{Mount: kind, Path: "undelete/*path", Write: d.moveData((*secret.Secrets).Undelete), Help: "bring deleted versions back"},
		{Mount: kind, Path: "destroy/*path", Write: d.moveData((*secret.Secrets).Destroy), Help: "destroy the bytes of versions"},
		{Mount: kind, Path: "metadata/*path", Read: d.readMetadata, List: d.listKeys, Write: d.writeMetadata, Patch: d.patchMetadata, Delete: d.removeSecret, Exists: d.hasSecret, Help: "what there is to know of a secret without its values"},
		{Mount: kind, Path: "subkeys/*path", Read: d.subkeys, Help: "the names in a version, without their values"},
	}
}

func (d *Door) kv1() []Route {
	return []Route{
		{Mount: "kv/1", Path: "*path", Read: d.readPlain, List: d.listKeys, Write: d.writePlain, Delete: d.removeSecret, Exists: d.hasSecret, Help: "a secret"},
	}
}

// secretPath is where a secret of the mount lies among all of ours.
func secretPath(q *Request) (string, error) {
	path := q.Param("path")
	if path == "" {
		return "", refuse(http.StatusNotFound, "no path is given")
	}
	return q.Mount.Base + "/" + path, nil
}

// purpose is what a value is read for.
func purpose(q *Request) string {
	if q.Caller.Purpose != "" {
		return ""
	}
	return Purpose
}

// keep is how the mount keeps versions.
func keep(m *mount.Mount) secret.Keep {
	k := secret.Keep{MaxVersions: m.Versions.Max, CASRequired: m.Versions.CASRequired, DeleteAfter: secret.Duration(m.Versions.DeleteAfter)}
	if k.MaxVersions == 0 {
		k.MaxVersions = usualVersions
	}
	if m.Version() == "1" {
		k = secret.Keep{MaxVersions: 1}
	}
	return k
}

// spec is what is said of a secret that is made by being written.
func (d *Door) spec(ctx context.Context, q *Request, path string) *secret.Spec {
	return &secret.Spec{Path: path, Owner: d.o.Owner(ctx, q.Caller)}
}

func (d *Door) kvConfig(ctx context.Context, q *Request) (*Answer, error) {
	m, err := d.Mounts.Get(ctx, q.Caller, mount.Secrets, q.Mount.Path)
	return &Answer{Data: map[string]any{
		"max_versions": m.Versions.Max, "cas_required": m.Versions.CASRequired, "delete_version_after": m.Versions.DeleteAfter.String(),
	}}, err
}

func (d *Door) tuneKV(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Max         *int64         `json:"max_versions"`
		CASRequired *bool          `json:"cas_required"`
		DeleteAfter *time.Duration `json:"delete_version_after"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	_, err := d.Mounts.Tune(ctx, q.Caller, mount.Secrets, q.Mount.Path, mount.Change{MaxVersions: in.Max, CASRequired: in.CASRequired, DeleteAfter: in.DeleteAfter})
	return nil, err
}

// hasData reports whether a secret has been written.
func (d *Door) hasData(ctx context.Context, q *Request) (bool, error) {
	path, err := secretPath(q)
	if err != nil {
		return false, err
	}
	return d.Secrets.Written(ctx, q.Tenant, path)
}

// hasSecret reports whether there is a secret, be it without a version.
func (d *Door) hasSecret(ctx context.Context, q *Request) (bool, error) {
	path, err := secretPath(q)
	if err != nil {
		return false, err
	}
	_, err = d.Secrets.Describe(ctx, q.Tenant, path)
	if estover.KindOf(err) == estover.NotFound {
		return false, nil
	}
	return err == nil, err
}

// versionData is a version as clients know it, without its values.
func versionData(v secret.Version, custom map[string]string) map[string]any {
	m := map[string]any{"version": v.N, "created_time": Time(v.CreatedAt), "deletion_time": deletion(v), "destroyed": v.State == secret.Destroyed, "custom_metadata": nil}
	if len(custom) > 0 {
		m["custom_metadata"] = custom
	}
	return m
}

// deletion is when a version was deleted, or will be; "" for never.
func deletion(v secret.Version) string {
	switch {
	case !v.DeletedAt.IsZero():
		return Time(v.DeletedAt)
	case !v.DeleteAt.IsZero():
		return Time(v.DeleteAt)
	}
	return ""
}

func (d *Door) readData(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Version int64 `json:"version"`
	}
	path, err := secretPath(q)
	if err == nil {
		err = q.Read(&in)
	}
	if err != nil {
		return nil, err
	}
	p, err := d.Secrets.Read(ctx, q.Caller, path, in.Version, purpose(q))
	if errors.Is(err, secret.ErrNoVersion) {
		return d.gone(ctx, q, path, in.Version)
	}
	if err != nil {
		return nil, err
	}
	return &Answer{Data: map[string]any{"data": json.RawMessage(p.Object.Reveal()), "metadata": versionData(p.Version, p.Custom)}}, nil
}

// gone is the answer about a version that is deleted or destroyed: 404 with what
// is known of it (V27).
func (d *Door) gone(ctx context.Context, q *Request, path string, n int64) (*Answer, error) {
	x, versions, err := d.Secrets.Show(ctx, q.Caller, path)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		n = x.CurrentVersion
	}
	for _, v := range versions {
		if v.N == n && v.State != secret.Live {
			return &Answer{Status: http.StatusNotFound, Data: map[string]any{"data": nil, "metadata": versionData(v, x.Custom)}}, nil
		}
	}
	return nil, errNothing
}

// casError puts the errors of a conditional write into the words that clients
// know.
func casError(err error) error {
	switch {
	case errors.Is(err, secret.ErrVersion):
		return refuse(http.StatusBadRequest, "check-and-set parameter did not match the current version")
	case errors.Is(err, secret.ErrExpect):
		return refuse(http.StatusBadRequest, "check-and-set parameter required for this call")
	}
	return err
}

// written reads what is to be written, and which version it is to follow.
func written(q *Request) (data estover.Secret, expect int64, err error) {
	var in struct {
		Data    json.RawMessage `json:"data"`
		Options json.RawMessage `json:"options"`
		Version int64           `json:"version"`
	}
	if err := q.Read(&in); err != nil {
		return data, 0, err
	}
	if len(in.Data) == 0 || in.Data[0] != '{' {
		return data, 0, refuse(http.StatusBadRequest, "no data provided")
	}
	expect = secret.Any
	var options struct {
		CAS *int64 `json:"cas"`
	}
	if err := q.inside("options", &options); err != nil {
		return data, 0, err
	}
	if options.CAS != nil {
		if expect = *options.CAS; expect < 0 {
			return data, 0, refuse(http.StatusBadRequest, "check-and-set parameter did not match the current version")
		}
	}
	return estover.NewSecret(in.Data), expect, nil
}

func (d *Door) writeData(ctx context.Context, q *Request) (*Answer, error) {
	path, err := secretPath(q)
	if err != nil {
		return nil, err
	}
	data, expect, err := written(q)
	if err != nil {
		return nil, err
	}
	x, v, err := d.Secrets.Put(ctx, q.Caller, path, data, secret.Put{Expect: expect, Keep: keep(q.Mount), Make: d.spec(ctx, q, path)})
	if err != nil {
		return nil, casError(err)
	}
	return &Answer{Data: versionData(v, x.Custom)}, nil
}

func (d *Door) patchData(ctx context.Context, q *Request) (*Answer, error) {
	path, err := secretPath(q)
	if err != nil {
		return nil, err
	}
	data, expect, err := written(q)
	if err != nil {
		return nil, err
	}
	x, v, err := d.Secrets.Put(ctx, q.Caller, path, data, secret.Put{Expect: expect, Keep: keep(q.Mount), Patch: true})
	if errors.Is(err, secret.ErrNoVersion) {
		return d.gone(ctx, q, path, 0)
	}
	if err != nil {
		return nil, casError(err)
	}
	return &Answer{Data: versionData(v, x.Custom)}, nil
}

// deleteData hides the newest version.
func (d *Door) deleteData(ctx context.Context, q *Request) (*Answer, error) {
	path, err := secretPath(q)
	if err != nil {
		return nil, err
	}
	return nil, d.Secrets.Delete(ctx, q.Caller, path, secret.Newest)
}

func (d *Door) moveData(move func(*secret.Secrets, context.Context, estover.Caller, string, ...int64) error) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		var in struct {
			Versions []int64 `json:"versions"`
		}
		path, err := secretPath(q)
		if err == nil {
			err = q.Read(&in)
		}
		if err != nil {
			return nil, err
		}
		if len(in.Versions) == 0 {
			return nil, refuse(http.StatusBadRequest, "No version number provided")
		}
		for _, n := range in.Versions {
			if n < 1 { // there is no such version; to the domain 0 is the newest
				continue
			}
			// What is not there is as it is asked for (V27).
			if err := move(d.Secrets, ctx, q.Caller, path, n); err != nil && estover.KindOf(err) != estover.NotFound {
				return nil, err
			}
		}
		return nil, nil
	}
}

func (d *Door) readMetadata(ctx context.Context, q *Request) (*Answer, error) {
	path, err := secretPath(q)
	if err != nil {
		return nil, err
	}
	x, versions, err := d.Secrets.Show(ctx, q.Caller, path)
	if err != nil {
		return nil, err
	}
	list := map[string]any{}
	oldest := int64(0)
	for _, v := range versions { // the newest first
		list[strconv.FormatInt(v.N, 10)] = map[string]any{"created_time": Time(v.CreatedAt), "deletion_time": deletion(v), "destroyed": v.State == secret.Destroyed}
		if oldest = v.N; oldest == 1 {
			oldest = 0
		}
	}
	data := map[string]any{
		"versions": list, "current_version": x.CurrentVersion, "oldest_version": oldest, "created_time": Time(x.CreatedAt), "updated_time": Time(x.UpdatedAt),
		"max_versions": x.MaxVersions, "cas_required": x.CASRequired, "delete_version_after": x.DeleteAfter.String(), "custom_metadata": nil,
	}
	if len(x.Custom) > 0 {
		data["custom_metadata"] = x.Custom
	}
	return &Answer{Data: data}, nil
}

// metadata is what clients say of a secret.
type metadata struct {
	Max         *int64          `json:"max_versions"`
	CASRequired *bool           `json:"cas_required"`
	DeleteAfter *time.Duration  `json:"delete_version_after"`
	Custom      json.RawMessage `json:"custom_metadata"`
}

func (m metadata) change() secret.Change {
	return secret.Change{MaxVersions: m.Max, CASRequired: m.CASRequired, DeleteAfter: (*secret.Duration)(m.DeleteAfter)}
}

func (d *Door) writeMetadata(ctx context.Context, q *Request) (*Answer, error) {
	path, err := secretPath(q)
	if err != nil {
		return nil, err
	}
	var in metadata
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	change := in.change()
	if len(in.Custom) > 0 {
		custom, err := weakMap(in.Custom)
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "Field validation failed: error converting input for field \"custom_metadata\": %s", err)
		}
		change.Custom = &custom
	}
	if q.Op == Create {
		if _, err := d.Secrets.Create(ctx, q.Caller, *d.spec(ctx, q, path)); err != nil && !errors.Is(err, secret.ErrExists) {
			return nil, err
		}
	}
	_, err = d.Secrets.Update(ctx, q.Caller, path, change)
	return nil, err
}

// patchMetadata merges: a null takes a key away.
func (d *Door) patchMetadata(ctx context.Context, q *Request) (*Answer, error) {
	path, err := secretPath(q)
	if err != nil {
		return nil, err
	}
	var in metadata
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	change := in.change()
	if raw, there := q.fields["custom_metadata"]; there && string(raw) == "null" {
		change.Custom = &map[string]string{}
	} else if len(in.Custom) > 0 {
		fields, err := members(in.Custom)
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "Field validation failed: error converting input for field \"custom_metadata\"")
		}
		change.Merge = map[string]*string{}
		for k, v := range fields {
			if string(v) == "null" {
				change.Merge[k] = nil
				continue
			}
			s, ok := scalar(v)
			if !ok {
				return nil, refuse(http.StatusBadRequest, "Field validation failed: error converting input for field \"custom_metadata\": expected a map of strings")
			}
			change.Merge[k] = &s
		}
	}
	for name, raw := range q.fields {
		if string(raw) != "null" {
			continue
		}
		switch name { // a null gives back what the mount says
		case "max_versions":
			change.MaxVersions = new(int64)
		case "cas_required":
			change.CASRequired = new(bool)
		case "delete_version_after":
			change.DeleteAfter = new(secret.Duration)
		}
	}
	_, err = d.Secrets.Update(ctx, q.Caller, path, change)
	return nil, err
}

func (d *Door) removeSecret(ctx context.Context, q *Request) (*Answer, error) {
	path, err := secretPath(q)
	if err != nil {
		return nil, err
	}
	return nil, d.Secrets.Remove(ctx, q.Caller, path)
}

func (d *Door) listKeys(ctx context.Context, q *Request) (*Answer, error) {
	prefix := q.Mount.Base + "/"
	if path := q.Param("path"); path != "" {
		prefix += path + "/"
	}
	keys, err := d.Secrets.Folder(ctx, q.Caller, prefix)
	if err != nil {
		return nil, err
	}
	return listing(keys, nil)
}

func (d *Door) subkeys(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Version int64 `json:"version"`
		Depth   int64 `json:"depth"`
	}
	path, err := secretPath(q)
	if err == nil {
		err = q.Read(&in)
	}
	if err != nil {
		return nil, err
	}
	x, v, keys, err := d.Secrets.Subkeys(ctx, q.Caller, path, in.Version, in.Depth)
	if errors.Is(err, secret.ErrNoVersion) {
		return d.gone(ctx, q, path, in.Version)
	}
	if err != nil {
		return nil, err
	}
	return &Answer{Data: map[string]any{"subkeys": keys, "metadata": versionData(v, x.Custom)}}, nil
}

// readPlain answers with the values themselves, and how long they may be taken
// for good (V29).
func (d *Door) readPlain(ctx context.Context, q *Request) (*Answer, error) {
	path, err := secretPath(q)
	if err != nil {
		return nil, err
	}
	p, err := d.Secrets.Read(ctx, q.Caller, path, 0, purpose(q))
	if err != nil {
		return nil, err
	}
	usual, _ := q.Mount.TTL()
	a := &Answer{Data: json.RawMessage(p.Object.Reveal()), Lease: &LeaseInfo{Duration: time.Duration(usual) * time.Second}}
	for _, name := range []string{"ttl", "lease"} {
		if v, ok := p.Values[name]; ok {
			if ttl, ok := mount.Duration(string(v.Reveal())); ok && ttl > 0 {
				a.Lease.Duration = ttl
				break
			}
		}
	}
	return a, nil
}

func (d *Door) writePlain(ctx context.Context, q *Request) (*Answer, error) {
	path, err := secretPath(q)
	if err != nil {
		return nil, err
	}
	data := q.Data()
	if string(data) == "{}" {
		return nil, refuse(http.StatusBadRequest, "missing data fields")
	}
	_, _, err = d.Secrets.Put(ctx, q.Caller, path, estover.NewSecret(data), secret.Put{Expect: secret.Any, Keep: keep(q.Mount), Make: d.spec(ctx, q, path)})
	return nil, err
}
