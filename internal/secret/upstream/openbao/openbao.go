// Package openbao keeps secrets in an OpenBao or a HashiCorp Vault, in an engine
// of the kind "kv", version 2.
package openbao

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/openbao/openbao/api/v2"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
)

// Kind is OpenBao and Vault.
var Kind = upstream.Kind{
	Name:    "vault",
	Title:   "OpenBao, HashiCorp Vault",
	Address: "https://HOST[:PORT]",
	Login:   "a token, without a username",
	Options: []engine.Field{
		{Name: "mount", Help: "where the engine of the kind kv, version 2, is mounted: secret if it is empty"},
		{Name: "namespace", Help: "the namespace of the mount"},
		{Name: upstream.Audience, Help: "an audience that its role wants (bound_audiences): to log in with an assertion of ours instead of a token"},
		{Name: "role", Help: "with it: the role of the auth method jwt"},
		{Name: "auth", Help: "with it: where that auth method is: jwt if it is empty"},
		engine.TLSField,
	},
	Checks:     true,
	Federation: &upstream.Federation{Login: federate},
	Open:       open,
}

// federate logs in by the auth method jwt.
func federate(ctx context.Context, c engine.Config, assertion string) (out engine.Credential, until time.Time, err error) {
	at := cmp.Or(strings.Trim(c.Options["auth"], "/"), "jwt")
	if err := upstream.CheckPath(at); err != nil {
		return out, until, engine.ErrConfig.With("The option auth is the path of an auth method.").At("options.auth")
	}
	begun := time.Now()
	var answer struct {
		Auth struct {
			Token   string `json:"client_token"`
			Seconds int64  `json:"lease_duration"`
		} `json:"auth"`
	}
	err = upstream.PostJSON(ctx, c, "/v1/auth/"+at+"/login", map[string]string{"role": c.Options["role"], "jwt": assertion}, &answer)
	if err == nil && answer.Auth.Token == "" {
		err = engine.Unreachable(errors.New("the answer to the log-in has no token"))
	}
	if err != nil {
		return out, until, err
	}
	return engine.Credential{Secret: estover.NewSecret([]byte(answer.Auth.Token))}, begun.Add(upstream.Lifetime(answer.Auth.Seconds)), nil
}

type store struct {
	client *api.Client
	kv     *api.KVv2
	mount  string
}

func open(c engine.Config) (upstream.Store, error) {
	client, base, err := c.HTTP()
	if err != nil {
		return nil, err
	}
	s := &store{mount: cmp.Or(strings.Trim(c.Options["mount"], "/"), "secret")}
	if err := upstream.CheckPath(s.mount); err != nil {
		return nil, engine.ErrConfig.With("The option mount is the path of an engine.").At("options.mount")
	}
	client.Transport = bounded{client.Transport}
	s.client, err = api.NewClient(&api.Config{
		Address: base.String(), HttpClient: client, DisableEnvironment: true, DisableRedirects: true, MaxRetries: 0,
	})
	if err != nil {
		return nil, engine.ErrConfig.With("The address cannot be.").At("address").Because(err)
	}
	s.client.SetToken(string(c.Admin.Secret.Reveal()))
	if ns := c.Options["namespace"]; ns != "" {
		s.client.SetNamespace(ns)
	}
	s.kv = s.client.KVv2(s.mount)
	return s, nil
}

// bounded cuts answers off, since the library reads them to their end.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, engine.Answer)
	}
	return resp, err
}

func (s *store) Get(ctx context.Context, path, version string) (v upstream.Value, err error) {
	if err := upstream.CheckPath(path); err != nil {
		return v, err
	}
	var got *api.KVSecret
	if version == "" {
		got, err = s.kv.Get(ctx, path)
	} else {
		n, wrong := strconv.Atoi(version)
		if wrong != nil || n < 1 {
			return v, upstream.ErrNotFound
		}
		got, err = s.kv.GetVersion(ctx, path, n)
	}
	if err != nil {
		return v, classify(err)
	}
	if got.Data == nil || got.VersionMetadata == nil || got.VersionMetadata.Destroyed || !got.VersionMetadata.DeletionTime.IsZero() && got.VersionMetadata.DeletionTime.Before(time.Now()) {
		return v, upstream.ErrNotFound
	}
	object, err := json.Marshal(got.Data)
	if err != nil {
		return v, err
	}
	return upstream.Value{
		Version: strconv.Itoa(got.VersionMetadata.Version), Object: estover.NewSecret(object), Created: got.VersionMetadata.CreatedTime,
	}, nil
}

func (s *store) Put(ctx context.Context, path string, object estover.Secret, expect string) (string, error) {
	if err := upstream.CheckPath(path); err != nil {
		return "", err
	}
	var data map[string]any
	decoder := json.NewDecoder(strings.NewReader(string(object.Reveal())))
	decoder.UseNumber()
	if err := decoder.Decode(&data); err != nil || data == nil {
		return "", engine.Refuse("what is to be written is no object of JSON")
	}
	var options []api.KVOption
	switch expect {
	case upstream.Any:
	case upstream.None:
		options = append(options, api.WithCheckAndSet(0))
	default:
		n, err := strconv.Atoi(expect)
		if err != nil || n < 1 {
			return "", upstream.ErrVersion
		}
		options = append(options, api.WithCheckAndSet(n))
	}
	put, err := s.kv.Put(ctx, path, data, options...)
	if err != nil {
		return "", classify(err)
	}
	return strconv.Itoa(put.VersionMetadata.Version), nil
}

// List goes into every folder that may hold such a path.
func (s *store) List(ctx context.Context, prefix string) (paths []string, err error) {
	folder, _ := splitLast(prefix)
	for folders := []string{folder}; len(folders) > 0; folders = folders[1:] {
		answer, err := s.client.Logical().ListWithContext(ctx, s.mount+"/metadata/"+folders[0])
		if err != nil {
			return nil, classify(err)
		}
		if answer == nil {
			continue
		}
		keys, _ := answer.Data["keys"].([]any)
		for _, k := range keys {
			name, _ := k.(string)
			path := folders[0] + name
			below, isFolder := strings.CutSuffix(path, "/")
			if upstream.CheckPath(below) != nil {
				continue // what could be read in two ways is not read
			}
			switch {
			case isFolder && (strings.HasPrefix(path, prefix) || strings.HasPrefix(prefix, path)):
				folders = append(folders, path)
			case !isFolder && strings.HasPrefix(path, prefix):
				paths = append(paths, path)
			}
			if len(paths)+len(folders) > upstream.Most {
				return nil, engine.Refuse("there are more than %d secrets below %q", upstream.Most, prefix)
			}
		}
	}
	slices.Sort(paths)
	return paths, nil
}

// splitLast cuts a path after its last slash.
func splitLast(path string) (folder, name string) {
	i := strings.LastIndexByte(path, '/') + 1
	return path[:i], path[i:]
}

func (s *store) Versions(ctx context.Context, path string) ([]upstream.Version, error) {
	if err := upstream.CheckPath(path); err != nil {
		return nil, err
	}
	list, err := s.kv.GetVersionsAsList(ctx, path)
	if err != nil {
		return nil, classify(err)
	}
	slices.SortFunc(list, func(a, b api.KVVersionMetadata) int { return b.Version - a.Version })
	versions := make([]upstream.Version, len(list))
	for i, v := range list {
		deleted := !v.DeletionTime.IsZero() && v.DeletionTime.Before(time.Now())
		versions[i] = upstream.Version{ID: strconv.Itoa(v.Version), Created: v.CreatedTime, Live: !v.Destroyed && !deleted}
	}
	return versions, nil
}

// Delete takes the current version out of use; it can be brought back there.
func (s *store) Delete(ctx context.Context, path string) error {
	if err := upstream.CheckPath(path); err != nil {
		return err
	}
	err := classify(s.kv.Delete(ctx, path))
	if errors.Is(err, upstream.ErrNotFound) {
		return nil
	}
	return err
}

// classify says in the words of the package what an error means.
func classify(err error) error {
	var answer *api.ResponseError
	var failed *url.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, api.ErrSecretNotFound):
		return upstream.ErrNotFound
	case errors.As(err, &answer):
		said := strings.Join(answer.Errors, "; ")
		switch {
		case answer.StatusCode == http.StatusNotFound:
			return upstream.ErrNotFound
		case answer.StatusCode == http.StatusBadRequest && strings.Contains(said, "check-and-set parameter did not match"):
			return upstream.ErrVersion
		case answer.StatusCode == http.StatusForbidden, answer.StatusCode == http.StatusUnauthorized, answer.StatusCode >= 500, answer.StatusCode == http.StatusTooManyRequests:
			return engine.Unreachable(fmt.Errorf("%d %s", answer.StatusCode, said))
		}
		return engine.Refuse("%d %s", answer.StatusCode, said)
	case errors.As(err, &failed):
		return engine.Unreachable(failed.Err)
	}
	return engine.Unreachable(err)
}
