package api

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev"
	"estover.dev/internal/secret"
)

// The path of a secret has slashes, so it is a parameter of the query and not
// of the path.
type SecretPath struct {
	Path string `query:"path" required:"true" minLength:"1" maxLength:"500" doc:"Path of the secret, as crm/api-key"`
}

func (s *Server) secrets() {
	const tag = "Secrets"
	huma.Register(s.huma, op("list-secrets", http.MethodGet, "/v1/secrets", tag, "List secrets by path, never their values"), s.listSecrets)
	huma.Register(s.huma, op("create-secret", http.MethodPost, "/v1/secrets", tag, "Make a secret without a value"), s.createSecret)
	huma.Register(s.huma, op("get-secret", http.MethodGet, "/v1/secret", tag, "Show a secret and its versions, never their values"), s.getSecret)
	huma.Register(s.huma, op("update-secret", http.MethodPatch, "/v1/secret", tag, "Change what is said of a secret"), s.updateSecret)
	huma.Register(s.huma, op("remove-secret", http.MethodDelete, "/v1/secret", tag, "Remove a secret with all its versions"), s.removeSecret)
	huma.Register(s.huma, op("write-secret", http.MethodPost, "/v1/secret/versions", tag, "Write a version: what the resource accepts from here on"), s.writeSecret)
	huma.Register(s.huma, op("rollback-secret", http.MethodPost, "/v1/secret/rollback", tag, "Write the values of an older version again, without anybody seeing them"), s.rollbackSecret)
	huma.Register(s.huma, op("read-secret", http.MethodPost, "/v1/secret/read", tag, "Read the value; an event of its own, and a permission of its own"), s.readSecret)
	huma.Register(s.huma, op("delete-secret-versions", http.MethodPost, "/v1/secret/versions/delete", tag, "Take versions out of use; they can be brought back"), s.moveVersions((*secret.Secrets).Delete))
	huma.Register(s.huma, op("undelete-secret-versions", http.MethodPost, "/v1/secret/versions/undelete", tag, "Bring deleted versions back"), s.moveVersions((*secret.Secrets).Undelete))
	huma.Register(s.huma, op("destroy-secret-versions", http.MethodPost, "/v1/secret/versions/destroy", tag, "Destroy the sealed bytes of versions, for good"), s.moveVersions((*secret.Secrets).Destroy))
	huma.Register(s.huma, op("identify-secret", http.MethodPost, "/v1/secret/identify", tag, "Say which versions and leases a value is of that was found somewhere"), s.identify)
	huma.Register(s.huma, op("list-secret-uses", http.MethodGet, "/v1/secret-uses", tag, "List who used which version, by which way and when"), s.listUses)
}

func (s *Server) listSecrets(ctx context.Context, in *struct {
	Paging
	Prefix string `query:"prefix" doc:"Only secrets whose path begins with this"`
},
) (*many[secret.Secret], error) {
	list, err := s.Secrets.List(ctx, callerOf(ctx), in.Prefix, in.Cursor, in.Limit)
	next := ""
	if err == nil && len(list) == in.Limit {
		next = list[len(list)-1].Path
	}
	return pageOf(list, next), s.problem(ctx, err)
}

func (s *Server) createSecret(ctx context.Context, in *struct{ Body secret.Spec }) (*one[secret.Secret], error) {
	x, err := s.Secrets.Create(ctx, callerOf(ctx), in.Body)
	return &one[secret.Secret]{x}, s.problem(ctx, err)
}

// A described secret is one with its versions.
type described struct {
	secret.Secret
	Versions []secret.Version `json:"versions"`
}

func (s *Server) getSecret(ctx context.Context, in *SecretPath) (*one[described], error) {
	x, err := s.Secrets.Get(ctx, callerOf(ctx), in.Path)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	versions, err := s.Secrets.Versions(ctx, callerOf(ctx), in.Path)
	return &one[described]{described{x, versions}}, s.problem(ctx, err)
}

func (s *Server) updateSecret(ctx context.Context, in *struct {
	SecretPath
	Body secret.Change
},
) (*one[secret.Secret], error) {
	x, err := s.Secrets.Update(ctx, callerOf(ctx), in.Path, in.Body)
	return &one[secret.Secret]{x}, s.problem(ctx, err)
}

func (s *Server) removeSecret(ctx context.Context, in *SecretPath) (*struct{}, error) {
	return nil, s.problem(ctx, s.Secrets.Remove(ctx, callerOf(ctx), in.Path))
}

func (s *Server) writeSecret(ctx context.Context, in *struct {
	SecretPath
	Body struct {
		Fields map[string]string `json:"fields,omitempty" maxProperties:"100" doc:"The values by their names, as text; a secret with one has 'value'"`
		Data   object            `json:"data,omitempty" doc:"In the place of fields: an object whose members may be of any type, and stay as they are written"`
		Patch  bool              `json:"patch,omitempty" doc:"Merge into the current version (RFC 7396): a null takes a member away"`
		Expect *int64            `json:"expect,omitempty" minimum:"0" doc:"The version that this is to follow, 0 if there must be none; it does not matter if left out"`
	}
},
) (*one[secret.Version], error) {
	put := secret.Put{Expect: expected(in.Body.Expect), Patch: in.Body.Patch}
	if (in.Body.Data == nil) == (in.Body.Fields == nil) {
		return nil, s.problem(ctx, errFieldsOrData)
	}
	if in.Body.Fields != nil && !put.Patch {
		fields := make(map[string]estover.Secret, len(in.Body.Fields))
		for k, v := range in.Body.Fields {
			fields[k] = estover.NewSecret([]byte(v))
		}
		v, err := s.Secrets.Write(ctx, callerOf(ctx), in.Path, fields, put.Expect)
		return &one[secret.Version]{v}, s.problem(ctx, err)
	}
	data := []byte(in.Body.Data)
	if data == nil {
		data, _ = json.Marshal(in.Body.Fields) // strings have JSON
	}
	_, v, err := s.Secrets.Put(ctx, callerOf(ctx), in.Path, estover.NewSecret(data), put)
	return &one[secret.Version]{v}, s.problem(ctx, err)
}

// expected is the version that a write is to follow.
func expected(n *int64) int64 {
	if n == nil {
		return secret.Any
	}
	return *n
}

var errFieldsOrData = &estover.Error{Kind: estover.Invalid, Code: "secret_invalid", Detail: "Send either fields, which are text, or data, which may be of any type."}

// An object is one of JSON, every member as it is written.
type object json.RawMessage

// UnmarshalJSON keeps it.
func (o *object) UnmarshalJSON(b []byte) error { *o = append((*o)[:0], b...); return nil }

// MarshalJSON is the object itself.
func (o object) MarshalJSON() ([]byte, error) {
	if o == nil {
		return []byte("null"), nil
	}
	return o, nil
}

// Schema is that of any object.
func (object) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true}
}

func (s *Server) rollbackSecret(ctx context.Context, in *struct {
	SecretPath
	Body struct {
		Version int64  `json:"version" minimum:"1" doc:"The version whose values are to be current again"`
		Expect  *int64 `json:"expect,omitempty" minimum:"0" doc:"The version that this is to follow; it does not matter if left out"`
	}
},
) (*one[secret.Version], error) {
	v, err := s.Secrets.Rollback(ctx, callerOf(ctx), in.Path, in.Body.Version, expected(in.Body.Expect))
	return &one[secret.Version]{v}, s.problem(ctx, err)
}

// A plain version is one with its values: the only answer of the API that has
// them.
type plain struct {
	secret.Version
	Fields map[string]string `json:"fields" doc:"The values as text: those that are something else as JSON"`
	Data   object            `json:"data" doc:"The values as they were written"`
}

func (s *Server) readSecret(ctx context.Context, in *struct {
	SecretPath
	Body struct {
		Version int64  `json:"version,omitempty" minimum:"0" doc:"The newest if left out"`
		Purpose string `json:"purpose" minLength:"1" maxLength:"500" doc:"What the value is needed for"`
	}
},
) (*one[plain], error) {
	p, err := s.Secrets.Read(ctx, callerOf(ctx), in.Path, in.Body.Version, in.Body.Purpose)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	out := plain{Version: p.Version, Fields: make(map[string]string, len(p.Values)), Data: object(p.Object.Reveal())}
	for k, v := range p.Values {
		out.Fields[k] = string(v.Reveal())
	}
	return &one[plain]{out}, nil
}

type versionsIn struct {
	SecretPath
	Body struct {
		Versions []int64 `json:"versions" minItems:"1" maxItems:"100"`
	}
}

func (s *Server) moveVersions(move func(*secret.Secrets, context.Context, estover.Caller, string, ...int64) error) func(context.Context, *versionsIn) (*struct{}, error) {
	return func(ctx context.Context, in *versionsIn) (*struct{}, error) {
		return nil, s.problem(ctx, move(s.Secrets, ctx, callerOf(ctx), in.Path, in.Body.Versions...))
	}
}

func (s *Server) listUses(ctx context.Context, in *struct {
	Secret  string `query:"secret" doc:"Only uses of this secret, by id"`
	Version int64  `query:"version" doc:"Only uses of this version"`
	Subject string `query:"subject" doc:"Only uses by this subject"`
	Session string `query:"session" doc:"Only uses in this session"`
	Limit   int    `query:"limit" minimum:"1" maximum:"200" default:"50"`
},
) (*many[secret.Use], error) {
	f := secret.UseFilter{Secret: in.Secret, Version: in.Version, Subject: estover.Subject(in.Subject), Session: in.Session}
	list, err := s.Secrets.Uses(ctx, callerOf(ctx), f, in.Limit)
	return pageOf(list, ""), s.problem(ctx, err)
}
