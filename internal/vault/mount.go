package vault

import (
	"cmp"
	"context"
	"net/http"

	"estover.dev"
	"estover.dev/internal/mount"
)

func (d *Door) mounts() []Route {
	// At sys/auth a way to log in is enabled by sudo, so it is here.
	sudo := func(h Handler) Handler {
		return func(ctx context.Context, q *Request) (*Answer, error) {
			if !q.sudo() {
				return nil, d.narrow(q, q.Path, q.Op)
			}
			return h(ctx, q)
		}
	}
	one := func(path string, s mount.Section, inside bool) []Route {
		write, remove := d.enable(s), d.disable(s)
		if s == mount.Auth {
			write, remove = sudo(write), sudo(remove)
		}
		return []Route{
			{Mount: "system", Path: path, Read: d.showMount(s, inside), Write: write, Delete: remove, Top: true, Help: "a mount"},
			{Mount: "system", Path: path + "/tune", Read: d.tuning(s), Write: d.tune(s), Top: true, Help: "how a mount is tuned"},
		}
	}
	all := []Route{
		{Mount: "system", Path: "mounts", Read: d.listMounts(mount.Secrets), Top: true, Help: "all mounts"},
		{Mount: "system", Path: "remount", Write: d.remount, Sudo: true, Top: true, Help: "give a mount another path"},
		{Mount: "system", Path: "remount/status/:id", Read: d.remounted, Help: "how far a move has come"},
		{Mount: "system", Path: "internal/ui/mounts", Read: d.seenMounts, Optional: true, Help: "the mounts that the token can reach"},
		{Mount: "system", Path: "internal/ui/mounts/*path", Read: d.seenMount, Help: "the mount that a path lies in"},
	}
	all = append(all, one("mounts/auth/*path", mount.Auth, true)...)
	return append(all, one("mounts/*path", mount.Secrets, true)...)
}

func (d *Door) authMounts() []Route {
	return []Route{
		{Mount: "system", Path: "auth", Read: d.listMounts(mount.Auth), Top: true, Help: "all ways to log in"},
		{Mount: "system", Path: "auth/*path", Read: d.showMount(mount.Auth, false), Write: d.enable(mount.Auth), Delete: d.disable(mount.Auth), Sudo: true, Top: true, Help: "a way to log in"},
		{Mount: "system", Path: "auth/*path/tune", Read: d.tuning(mount.Auth), Write: d.tune(mount.Auth), Sudo: true, Top: true, Help: "how a way to log in is tuned"},
	}
}

// info is a mount as clients know it (V16).
func info(m *mount.Mount) map[string]any {
	config := map[string]any{"default_lease_ttl": m.Config.DefaultTTL, "max_lease_ttl": m.Config.MaxTTL, "force_no_cache": m.Config.ForceNoCache}
	optional(config, m)
	return map[string]any{
		"type": m.Kind, "description": m.Description, "accessor": m.Accessor, "uuid": m.UUID, "local": m.Local, "seal_wrap": m.SealWrap,
		"external_entropy_access": m.ExternalEntropy, "options": options(m), "config": config, "deprecation_status": "supported",
		"plugin_version": m.Config.PluginVersion, "running_plugin_version": "v" + Version + "+builtin.vault", "running_sha256": "",
	}
}

// options are null where there are none: a client that sees a version in them
// asks at other paths (V16).
func options(m *mount.Mount) any {
	if len(m.Options) == 0 {
		return nil
	}
	return m.Options
}

// optional are the members that are left out where they are not set.
func optional(to map[string]any, m *mount.Mount) {
	for name, list := range map[string][]string{
		"audit_non_hmac_request_keys": m.Config.RequestKeys, "audit_non_hmac_response_keys": m.Config.ResponseKeys, "passthrough_request_headers": m.Config.PassedHeaders,
		"allowed_response_headers": m.Config.AllowedHeaders, "allowed_managed_keys": m.Config.ManagedKeys, "delegated_auth_accessors": m.Config.DelegatedAccess,
	} {
		if len(list) > 0 {
			to[name] = list
		}
	}
	if m.Config.Visibility != "" {
		to["listing_visibility"] = m.Config.Visibility
	}
	if m.Section == mount.Auth {
		to["token_type"] = cmp.Or(m.Config.TokenType, "default-service")
	}
}

func (d *Door) listMounts(s mount.Section) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		list, err := d.Mounts.List(ctx, q.Caller, s)
		if err != nil {
			return nil, err
		}
		data := map[string]any{}
		for i := range list {
			data[list[i].Path] = info(&list[i])
		}
		return &Answer{Data: data}, nil
	}
}

// noMount are the words that clients look for (V17).
func noMount(s mount.Section, inside bool, path string) error {
	switch {
	case s == mount.Auth && inside:
		return refuse(http.StatusBadRequest, "No secret engine mount at auth/%s/", path)
	case s == mount.Auth:
		return refuse(http.StatusBadRequest, "No auth engine at %s/", path)
	}
	return refuse(http.StatusBadRequest, "No secret engine mount at %s/", path)
}

func (d *Door) showMount(s mount.Section, inside bool) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		m, err := d.Mounts.Get(ctx, q.Caller, s, q.Param("path"))
		if estover.KindOf(err) == estover.NotFound {
			return nil, noMount(s, inside, q.Param("path"))
		}
		return &Answer{Data: info(&m)}, err
	}
}

// ttl reads a TTL of a mount: "", 0 and "system" are what the system has.
func ttl(s *string) (*int64, error) {
	if s == nil {
		return nil, nil
	}
	if *s == "system" {
		return new(int64), nil
	}
	v, ok := mount.Duration(*s)
	if !ok {
		return nil, refuse(http.StatusBadRequest, "unable to parse a TTL: it is a duration, as 3600 or \"1h\"")
	}
	n := seconds(v)
	return &n, nil
}

// A tuned is what clients say of a mount when they enable or tune it.
type tuned struct {
	Default        *string            `json:"default_lease_ttl"`
	Max            *string            `json:"max_lease_ttl"`
	Description    *string            `json:"description"`
	Options        *map[string]string `json:"options"`
	RequestKeys    *[]string          `json:"audit_non_hmac_request_keys"`
	ResponseKeys   *[]string          `json:"audit_non_hmac_response_keys"`
	Visibility     *string            `json:"listing_visibility"`
	PassedHeaders  *[]string          `json:"passthrough_request_headers"`
	AllowedHeaders *[]string          `json:"allowed_response_headers"`
	ManagedKeys    *[]string          `json:"allowed_managed_keys"`
	Delegated      *[]string          `json:"delegated_auth_accessors"`
	TokenType      *string            `json:"token_type"`
	PluginVersion  *string            `json:"plugin_version"`
	Path           string             `json:"path"`
}

func (t tuned) change() (c mount.Change, err error) {
	c = mount.Change{
		Description: t.Description, Options: t.Options, RequestKeys: t.RequestKeys, ResponseKeys: t.ResponseKeys, Visibility: t.Visibility,
		PassedHeaders: t.PassedHeaders, AllowedHeaders: t.AllowedHeaders, ManagedKeys: t.ManagedKeys, Delegated: t.Delegated, TokenType: t.TokenType, PluginVersion: t.PluginVersion,
	}
	if c.DefaultTTL, err = ttl(t.Default); err != nil {
		return c, err
	}
	c.MaxTTL, err = ttl(t.Max)
	return c, err
}

func (d *Door) enable(s mount.Section) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		var in struct {
			Type        string             `json:"type"`
			Description string             `json:"description"`
			Config      *map[string]any    `json:"config"`
			Options     *map[string]string `json:"options"`
			Local       bool               `json:"local"`
			SealWrap    bool               `json:"seal_wrap"`
			Entropy     bool               `json:"external_entropy_access"`
			Plugin      string             `json:"plugin_name"`
			Version     string             `json:"plugin_version"`
			Path        string             `json:"path"`
		}
		if err := q.Read(&in); err != nil {
			return nil, err
		}
		var config struct {
			tuned
			ForceNoCache bool   `json:"force_no_cache"`
			Plugin       string `json:"plugin_name"`
		}
		if err := q.inside("config", &config); err != nil {
			return nil, err
		}
		kind := in.Type
		if kind == "plugin" || kind == "" {
			kind = cmp.Or(in.Plugin, config.Plugin)
		}
		spec := mount.Spec{Description: in.Description, Local: in.Local, SealWrap: in.SealWrap, ExternalEntropy: in.Entropy}
		spec.Config.ForceNoCache, spec.Config.PluginVersion = config.ForceNoCache, in.Version
		if in.Options != nil {
			spec.Options = *in.Options
		}
		config.Description, config.Options = nil, nil
		change, err := config.change()
		if err != nil {
			return nil, err
		}
		_, err = d.Mounts.Enable(ctx, q.Caller, s, q.Param("path"), kind, change.To(spec))
		return nil, err
	}
}

func (d *Door) disable(s mount.Section) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		return nil, d.Mounts.Disable(ctx, q.Caller, s, q.Param("path"))
	}
}

func (d *Door) tuning(s mount.Section) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		m, err := d.Mounts.Get(ctx, q.Caller, s, q.Param("path"))
		if estover.KindOf(err) == estover.NotFound {
			return nil, refuse(http.StatusBadRequest, "cannot fetch sysview for path %q", m.Full()+q.Param("path")+"/")
		}
		if err != nil {
			return nil, err
		}
		usual, most := m.TTL()
		data := map[string]any{"default_lease_ttl": usual, "max_lease_ttl": most, "description": m.Description, "force_no_cache": m.Config.ForceNoCache}
		if len(m.Options) > 0 {
			data["options"] = m.Options
		}
		if m.Config.PluginVersion != "" {
			data["plugin_version"] = m.Config.PluginVersion
		}
		optional(data, &m)
		return &Answer{Data: data}, nil
	}
}

func (d *Door) tune(s mount.Section) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		var in tuned
		if err := q.Read(&in); err != nil {
			return nil, err
		}
		change, err := in.change()
		if err != nil {
			return nil, err
		}
		_, err = d.Mounts.Tune(ctx, q.Caller, s, q.Param("path"), change)
		if estover.KindOf(err) == estover.NotFound {
			return nil, refuse(http.StatusBadRequest, "no matching mount at %q", q.Param("path")+"/")
		}
		return nil, err
	}
}

func (d *Door) remount(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		From string `json:"from"`
		To   string `json:"to"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	move, err := d.Mounts.Move(ctx, q.Caller, in.From, in.To)
	return &Answer{Data: map[string]any{"migration_id": move.ID}}, err
}

func (d *Door) remounted(ctx context.Context, q *Request) (*Answer, error) {
	move, err := d.Mounts.Moved(ctx, q.Caller, q.Param("id"))
	return &Answer{Data: map[string]any{
		"migration_id":   move.ID,
		"migration_info": map[string]any{"source_mount": move.From, "target_mount": move.To, "status": "success"},
	}}, err
}

// seenMounts are the mounts that anybody may know of, and those that the token
// reaches (V19).
func (d *Door) seenMounts(ctx context.Context, q *Request) (*Answer, error) {
	table, err := d.Mounts.Table(ctx, q.Tenant)
	if err != nil {
		return nil, err
	}
	auth, secrets := map[string]any{}, map[string]any{}
	for i := range table {
		m := &table[i]
		reached := q.ACL != nil && q.ACL.Reaches(m.Full())
		if m.Config.Visibility != "unauth" && !reached {
			continue
		}
		shown := map[string]any{"type": m.Kind, "description": m.Description, "options": options(m)}
		if reached {
			shown = info(m)
		}
		if m.Section == mount.Auth {
			auth[m.Path] = shown
		} else {
			secrets[m.Path] = shown
		}
	}
	return &Answer{Data: map[string]any{"auth": auth, "secret": secrets}}, nil
}

// seenMount is the mount that a path lies in, for whoever reaches it. That there
// is none is told as that it cannot be reached, so that mounts cannot be guessed
// (V19).
func (d *Door) seenMount(ctx context.Context, q *Request) (*Answer, error) {
	path := q.Param("path")
	m, err := d.Mounts.Holding(ctx, q.Caller, path)
	if estover.KindOf(err) == estover.NotFound || err == nil && !q.ACL.Reaches(m.Full()) {
		return nil, refuse(http.StatusForbidden, "preflight capability check returned 403, please ensure client's policies grant access to path %q", path+"/")
	}
	if err != nil {
		return nil, err
	}
	data := info(m)
	data["path"] = m.Full()
	return &Answer{Data: data}, nil
}
