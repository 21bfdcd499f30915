package vault

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/database"
	"estover.dev/internal/secret/lease"
)

func (d *Door) databases() []Route {
	route := func(r Route) Route { r.Mount = "database"; return r }
	return []Route{
		route(Route{Path: "config", List: d.listDatabases, Help: "the databases"}),
		route(Route{Path: "config/:name", Read: d.readDatabase, Write: d.writeDatabase, Delete: d.dropDatabase, Exists: d.databaseThere(false), Help: "a database: where it is, and as whom users are made"}),
		route(Route{Path: "roles", List: d.listDatabaseRoles, Help: "the roles"}),
		route(Route{Path: "roles/:name", Read: d.readDatabaseRole, Write: d.writeDatabaseRole, Delete: d.dropDatabaseRole, Exists: d.databaseThere(true), Help: "a role: what its users may do"}),
		route(Route{Path: "creds/:name", Read: d.credentials, Help: "a user of a role, made for whoever asks"}),
		route(Route{Path: "static-roles", List: d.listStatic, Help: "the roles whose user is there already"}),
		route(Route{Path: "static-roles/:name", Read: d.readStatic, Write: d.writeStatic, Delete: d.dropStatic, Exists: d.staticThere, Help: "a role whose user is there already, and gets another password from time to time"}),
		route(Route{Path: "static-creds/:name", Read: d.staticCredentials, Help: "what a static role logs in with now"}),
		route(Route{Path: "rotate-role/:name", Write: d.rotateStatic, Help: "give the user of a static role another password now"}),
		route(Route{Path: "rotate-root/:name", Write: d.rotateRoot, Help: "give the admin of a database a password that nobody else knows"}),
		route(Route{Path: "reset/:name", Write: d.resetDatabase, Help: "connect anew; that is done by itself"}),
	}
}

// database is the mount of a request, as package database knows it.
func (q *Request) database() database.Mount {
	return database.Mount{ID: q.Mount.ID, Path: strings.TrimSuffix(q.Mount.Full(), "/")}
}

func (d *Door) databaseThere(role bool) func(context.Context, *Request) (bool, error) {
	return func(ctx context.Context, q *Request) (bool, error) {
		return d.Databases.Exists(ctx, q.Tenant, q.database(), q.Param("name"), role)
	}
}

func (d *Door) listDatabases(ctx context.Context, q *Request) (*Answer, error) {
	names, err := d.Databases.Configs(ctx, q.Caller, q.database())
	if err != nil {
		return nil, err
	}
	return listing(names, nil)
}

func (d *Door) readDatabase(ctx context.Context, q *Request) (*Answer, error) {
	x, err := d.Databases.Config(ctx, q.Caller, q.database(), q.Param("name"))
	if err != nil {
		return nil, err
	}
	return &Answer{Data: map[string]any{
		"plugin_name": x.Plugin, "plugin_version": x.PluginVersion, "allowed_roles": words(x.Allowed), "root_credentials_rotate_statements": words(x.RootStatements),
		"password_policy": x.PasswordPolicy, "connection_details": x.Details,
	}}, nil
}

// configFields are the fields of a configuration that are no details of its
// connection.
var configFields = []string{"plugin_name", "plugin_version", "verify_connection", "allowed_roles", "root_rotation_statements", "root_credentials_rotate_statements", "password_policy", "name"}

func (d *Door) writeDatabase(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Plugin  *string   `json:"plugin_name"`
		Version *string   `json:"plugin_version"`
		Verify  *bool     `json:"verify_connection"`
		Allowed *[]string `json:"allowed_roles"`
		Root    *[]string `json:"root_rotation_statements"`
		Root2   *[]string `json:"root_credentials_rotate_statements"`
		Policy  *string   `json:"password_policy"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(q.Data(), &all); err != nil {
		return nil, err
	}
	for _, name := range configFields {
		delete(all, name)
	}
	for name, v := range all { // counts are numbers, and times text, as Vault tells them
		if name == "max_connection_lifetime" && len(v) > 0 && v[0] >= '0' && v[0] <= '9' {
			all[name] = json.RawMessage(`"` + string(v) + `s"`)
		}
	}
	w := database.Written{Plugin: in.Plugin, PluginVersion: in.Version, Verify: in.Verify == nil || *in.Verify, Allowed: in.Allowed, RootStatements: in.Root, PasswordPolicy: in.Policy, Details: all}
	if in.Root2 != nil {
		w.RootStatements = in.Root2
	}
	return nil, d.Databases.PutConfig(ctx, q.Caller, q.database(), q.Param("name"), w)
}

func (d *Door) dropDatabase(ctx context.Context, q *Request) (*Answer, error) {
	return nil, d.Databases.RemoveConfig(ctx, q.Caller, q.database(), q.Param("name"))
}

func (d *Door) resetDatabase(ctx context.Context, q *Request) (*Answer, error) {
	_, err := d.Databases.Config(ctx, q.Caller, q.database(), q.Param("name"))
	return nil, err
}

func (d *Door) listDatabaseRoles(ctx context.Context, q *Request) (*Answer, error) {
	names, err := d.Databases.Roles(ctx, q.Caller, q.database())
	if err != nil {
		return nil, err
	}
	return listing(names, nil)
}

func (d *Door) readDatabaseRole(ctx context.Context, q *Request) (*Answer, error) {
	r, err := d.Databases.Role(ctx, q.Caller, q.database(), q.Param("name"))
	if err != nil {
		return nil, err
	}
	data := map[string]any{
		"db_name": r.DB, "creation_statements": words(r.Creation), "revocation_statements": words(r.Revocation), "rollback_statements": words(r.Rollback),
		"renew_statements": words(r.Renew), "default_ttl": r.TTL, "max_ttl": r.MaxTTL, "credential_type": r.CredentialType,
	}
	if len(r.CredentialConfig) > 0 {
		data["credential_config"] = r.CredentialConfig
	}
	if r.Resource != "" {
		data["resource"], data["action"] = r.Resource, r.Action
	}
	return &Answer{Data: data}, nil
}

// statements are sent whole, so that a comma or a semicolon in a body is no end of
// one: text is one statement, and a list is as it is (V31).
type statements []string

// UnmarshalJSON reads one text or a list of them.
func (s *statements) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*s = statements{}
		if one != "" {
			*s = statements{one}
		}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(s))
}

func (d *Door) writeDatabaseRole(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		DB         *string            `json:"db_name"`
		Creation   *json.RawMessage   `json:"creation_statements"`
		Revocation *json.RawMessage   `json:"revocation_statements"`
		Rollback   *json.RawMessage   `json:"rollback_statements"`
		Renew      *json.RawMessage   `json:"renew_statements"`
		TTL        *time.Duration     `json:"default_ttl"`
		MaxTTL     *time.Duration     `json:"max_ttl"`
		Type       *string            `json:"credential_type"`
		Config     *map[string]string `json:"credential_config"`
		Resource   *string            `json:"resource"`
		Action     *string            `json:"action"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	warnings, err := d.Databases.PutRole(ctx, q.Caller, q.database(), q.Param("name"), func(r *database.Role) error {
		for _, f := range []struct {
			name string
			to   *[]string
			raw  *json.RawMessage
		}{{"creation_statements", &r.Creation, in.Creation}, {"revocation_statements", &r.Revocation, in.Revocation}, {"rollback_statements", &r.Rollback, in.Rollback}, {"renew_statements", &r.Renew, in.Renew}} {
			if f.raw == nil {
				continue
			}
			var s statements
			if json.Unmarshal(*f.raw, &s) != nil {
				return refuse(http.StatusBadRequest, "Field validation failed: error converting input for field %q: expected a list", f.name)
			}
			*f.to = s
		}
		set(&r.DB, in.DB)
		setSeconds(&r.TTL, in.TTL)
		setSeconds(&r.MaxTTL, in.MaxTTL)
		set(&r.CredentialType, in.Type)
		set(&r.CredentialConfig, in.Config)
		set(&r.Resource, in.Resource)
		set(&r.Action, in.Action)
		return nil
	})
	for _, w := range warnings {
		q.Warn("%s", w)
	}
	return nil, err
}

func (d *Door) dropDatabaseRole(ctx context.Context, q *Request) (*Answer, error) {
	return nil, d.Databases.RemoveRole(ctx, q.Caller, q.database(), q.Param("name"))
}

// boundTo is the token that leases of a request end with.
func (d *Door) boundTo(ctx context.Context, q *Request) (string, error) {
	if t := q.ticketOf(); t != nil {
		return t.ID, d.Tickets.Holds(ctx, t)
	}
	if q.Caller.Token != "" {
		return q.Caller.Token, nil
	}
	return q.Caller.Grant, nil // a person's own token
}

func (d *Door) credentials(ctx context.Context, q *Request) (*Answer, error) {
	token, err := d.boundTo(ctx, q)
	if err != nil {
		return nil, err
	}
	m, role := q.database(), q.Param("name")
	x, err := d.Databases.Issue(ctx, q.Caller, m, role, token)
	switch {
	case errors.Is(err, database.ErrNoRole):
		return nil, refuse(http.StatusBadRequest, "unknown role: %s", role)
	case errors.Is(err, lease.ErrQuota), errors.Is(err, lease.ErrRate):
		return nil, err
	case estover.KindOf(err) == estover.NotFound:
		return nil, refuse(http.StatusBadRequest, "unknown role: %s", role).because(err)
	case err != nil:
		return nil, err
	}
	data := map[string]any{}
	for name, v := range x.Values {
		data[name] = string(v.Reveal())
	}
	return &Answer{Data: data, Lease: &LeaseInfo{ID: database.LeaseOf(m, role, x.ID), Duration: d.left(x.Lease), Renewable: true}}, nil
}

// left is how long a lease goes on.
func (d *Door) left(x lease.Lease) time.Duration {
	return max(x.ExpiresAt.Sub(d.Tickets.Now()).Round(time.Second), 0)
}

func (d *Door) staticThere(ctx context.Context, q *Request) (bool, error) {
	_, err := d.Databases.Static(ctx, q.Caller, q.database(), q.Param("name"))
	if estover.KindOf(err) == estover.NotFound {
		return false, nil
	}
	return err == nil, err
}

func (d *Door) listStatic(ctx context.Context, q *Request) (*Answer, error) {
	names, err := d.Databases.Statics(ctx, q.Caller, q.database())
	if err != nil {
		return nil, err
	}
	return listing(names, nil)
}

func (d *Door) readStatic(ctx context.Context, q *Request) (*Answer, error) {
	r, err := d.Databases.Static(ctx, q.Caller, q.database(), q.Param("name"))
	if err != nil {
		return nil, err
	}
	data := map[string]any{"db_name": r.DB, "username": r.Username, "rotation_statements": words(r.Statements), "credential_type": r.CredentialType}
	if r.Schedule != "" {
		data["rotation_schedule"], data["rotation_window"] = r.Schedule, r.Window
	} else {
		data["rotation_period"] = r.Period
	}
	if r.Second != "" {
		data["second_username"] = r.Second
	}
	return &Answer{Data: data}, nil
}

func (d *Door) writeStatic(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		DB         *string          `json:"db_name"`
		Username   *string          `json:"username"`
		Second     *string          `json:"second_username"`
		Statements *json.RawMessage `json:"rotation_statements"`
		Period     *time.Duration   `json:"rotation_period"`
		Schedule   *string          `json:"rotation_schedule"`
		Window     *time.Duration   `json:"rotation_window"`
		Type       *string          `json:"credential_type"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	return nil, d.Databases.PutStatic(ctx, q.Caller, q.database(), q.Param("name"), func(r *database.Static) error {
		if in.Statements != nil {
			var s statements
			if json.Unmarshal(*in.Statements, &s) != nil {
				return refuse(http.StatusBadRequest, "Field validation failed: error converting input for field %q: expected a list", "rotation_statements")
			}
			r.Statements = s
		}
		set(&r.DB, in.DB)
		set(&r.Username, in.Username)
		set(&r.Second, in.Second)
		setSeconds(&r.Period, in.Period)
		set(&r.Schedule, in.Schedule)
		setSeconds(&r.Window, in.Window)
		set(&r.CredentialType, in.Type)
		return nil
	})
}

func (d *Door) dropStatic(ctx context.Context, q *Request) (*Answer, error) {
	return nil, d.Databases.RemoveStatic(ctx, q.Caller, q.database(), q.Param("name"))
}

func (d *Door) staticCredentials(ctx context.Context, q *Request) (*Answer, error) {
	name := q.Param("name")
	x, err := d.Databases.StaticCredential(ctx, q.Caller, q.database(), name)
	if errors.Is(err, database.ErrNoRole) {
		return nil, refuse(http.StatusBadRequest, "unknown role: %s", name)
	}
	if err != nil {
		return nil, err
	}
	r, err := d.Databases.Static(ctx, estover.Caller{Tenant: q.Tenant, Subject: estover.System("vault")}, q.database(), name)
	if err != nil {
		return nil, err
	}
	data := map[string]any{
		"username": x.Username, "password": string(x.Password.Reveal()), "last_vault_rotation": Time(x.Rotated),
		"ttl": max(seconds(x.Next.Sub(d.Tickets.Now())), 0),
	}
	if r.Schedule != "" {
		data["rotation_schedule"], data["rotation_window"] = r.Schedule, r.Window
	} else {
		data["rotation_period"] = r.Period
	}
	return &Answer{Data: data}, nil
}

func (d *Door) rotateStatic(ctx context.Context, q *Request) (*Answer, error) {
	name := q.Param("name")
	err := d.Databases.RotateStatic(ctx, q.Caller, q.database(), name)
	if errors.Is(err, database.ErrNoRole) {
		return nil, refuse(http.StatusBadRequest, "no static role found for role name")
	}
	return nil, err
}

func (d *Door) rotateRoot(ctx context.Context, q *Request) (*Answer, error) {
	err := d.Databases.RotateRoot(ctx, q.Caller, q.database(), q.Param("name"))
	if errors.Is(err, database.ErrNoConfig) {
		return nil, refuse(http.StatusBadRequest, "failed to find entry for connection with name: %q", q.Param("name"))
	}
	return nil, err
}
