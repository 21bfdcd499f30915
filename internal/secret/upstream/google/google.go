// Package google keeps secrets in Google Secret Manager, by its REST interface:
// the client over gRPC would be larger than all the rest of this folder.
//
// A secret has a name and no path. Its versions are numbered, and nobody checks
// which one a new one follows.
package google

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
)

// Kind is Google Secret Manager.
var Kind = upstream.Kind{
	Name:    "google",
	Title:   "Google Secret Manager",
	Address: "https://secretmanager.googleapis.com",
	Login:   "an access token, as `gcloud auth print-access-token` prints it, without a username",
	Options: []engine.Field{
		{Name: "project", Help: "the project's id", Required: true},
		{Name: upstream.Audience, Help: "https://iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER: to log in with an assertion of ours instead of a token"},
		{Name: "sts", Help: "with it: https://sts.googleapis.com if it is empty"},
		engine.TLSField,
	},
	Flat:       true,
	Federation: &upstream.Federation{Beside: beside, Login: federate},
	Open:       open,
}

const sts = "https://sts.googleapis.com"

func beside(options map[string]string) ([]string, error) {
	host, err := engine.Kind{Name: "google", Address: "https://HOST", Port: "443"}.Host(cmp.Or(options["sts"], sts))
	if err != nil {
		return nil, engine.ErrConfig.With("The option sts is https://HOST.").At("options.sts")
	}
	return []string{host}, nil
}

// federate exchanges an assertion for an access token (RFC 8693). What the pool's
// principal may do it may do itself; no service account is impersonated.
func federate(ctx context.Context, c engine.Config, assertion string) (engine.Credential, time.Time, error) {
	return upstream.Exchange(ctx, c, cmp.Or(c.Options["sts"], sts), "/v1/token", url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "audience": {strings.TrimPrefix(c.Options[upstream.Audience], "https:")},
		"scope": {"https://www.googleapis.com/auth/cloud-platform"}, "requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"}, "subject_token": {assertion},
	})
}

// largest is the most that a version may hold, in bytes.
const largest = 64 << 10

var (
	projectID = regexp.MustCompile(`^[a-z0-9:.-]{1,100}$`)
	nameOf    = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
)

type store struct {
	client *http.Client
	base   string // of the project
	token  estover.Secret
}

func open(c engine.Config) (upstream.Store, error) {
	client, base, err := c.HTTP()
	if err != nil {
		return nil, err
	}
	project := c.Options["project"]
	if !projectID.MatchString(project) {
		return nil, engine.ErrConfig.With("The option project is the id of a project.").At("options.project")
	}
	return &store{client, base.String() + "/v1/projects/" + project, c.Admin.Secret}, nil
}

// A state is a status of the interface that is not a success.
type state struct {
	code  int
	words string
}

func (s *state) Error() string { return fmt.Sprintf("%d %s", s.code, s.words) }

// do makes a call below the project. What is not there is
// [upstream.ErrNotFound].
func (s *store) do(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, s.base+path, bytes.NewReader(body))
	if err != nil {
		return engine.Refuse("the call cannot be made")
	}
	req.Header.Set("Authorization", "Bearer "+string(s.token.Reveal()))
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return engine.HTTPError(err, false)
	}
	defer resp.Body.Close()
	said, err := engine.Body(resp)
	if err != nil {
		return engine.Unreachable(err)
	}
	if resp.StatusCode/100 == 2 {
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(said, out); err != nil {
			return errors.New("an answer is not what was expected")
		}
		return nil
	}
	var failed struct {
		Error struct{ Status string }
	}
	_ = json.Unmarshal(said, &failed) // without, the status says it
	is := &state{resp.StatusCode, failed.Error.Status}
	switch {
	case is.code == http.StatusNotFound:
		return upstream.ErrNotFound
	case is.code == http.StatusUnauthorized, is.code == http.StatusForbidden, is.code == http.StatusTooManyRequests, is.code >= 500:
		return engine.Unreachable(is)
	}
	return is
}

// at is the path of a secret.
func at(name string) (string, error) {
	if len(name) > 255 || !nameOf.MatchString(name) {
		return "", engine.Refuse("%q is no name of a secret there: letters, digits, - and _", name)
	}
	return "/secrets/" + name, nil
}

// last is what a resource is called: its last part.
func last(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

func (s *store) Get(ctx context.Context, name, version string) (v upstream.Value, err error) {
	path, err := at(name)
	if err != nil {
		return v, err
	}
	if version == "" {
		version = "latest"
	} else if n, err := strconv.Atoi(version); err != nil || n < 1 {
		return v, upstream.ErrNotFound
	}
	var got struct {
		Name    string
		Payload struct {
			Data   []byte
			CRC32C string `json:"dataCrc32c"`
		}
	}
	err = s.do(ctx, http.MethodGet, path+"/versions/"+version+":access", nil, &got)
	var is *state
	if errors.As(err, &is) && is.code == http.StatusBadRequest && is.words == "FAILED_PRECONDITION" { // disabled or destroyed
		return v, upstream.ErrNotFound
	}
	if err != nil {
		return v, refuse(err)
	}
	if got.Payload.CRC32C != "" && got.Payload.CRC32C != strconv.FormatUint(uint64(crc32.Checksum(got.Payload.Data, crc32.MakeTable(crc32.Castagnoli))), 10) {
		return v, engine.Unreachable(errors.New("an answer has come in damaged"))
	}
	return upstream.Value{Version: last(got.Name), Object: upstream.Object(got.Payload.Data)}, nil
}

// refuse makes a refusal of what else the interface answers.
func refuse(err error) error {
	var is *state
	if errors.As(err, &is) && !errors.Is(err, engine.ErrUnreachable) {
		return engine.Refuse("%s", is)
	}
	return err
}

func (s *store) Put(ctx context.Context, name string, object estover.Secret, expect string) (string, error) {
	path, err := at(name)
	if err != nil {
		return "", err
	}
	text, err := upstream.Text(object)
	if err != nil {
		return "", err
	}
	if len(text) > largest {
		return "", engine.Refuse("a version holds 64 KiB at most")
	}
	if expect != upstream.Any {
		versions, err := s.Versions(ctx, name)
		switch {
		case err != nil && !errors.Is(err, upstream.ErrNotFound):
			return "", err
		case len(versions) == 0 && expect != upstream.None, len(versions) > 0 && versions[0].ID != expect:
			return "", upstream.ErrVersion
		}
	}
	made := map[string]any{"replication": map[string]any{"automatic": map[string]any{}}}
	err = s.do(ctx, http.MethodPost, "/secrets?secretId="+url.QueryEscape(name), made, nil)
	var is *state
	if err != nil && (!errors.As(err, &is) || is.code != http.StatusConflict) {
		return "", refuse(err)
	}
	var added struct{ Name string }
	payload := map[string]any{"payload": map[string]string{"data": base64.StdEncoding.EncodeToString(text)}}
	if err := s.do(ctx, http.MethodPost, path+":addVersion", payload, &added); err != nil {
		return "", refuse(err)
	}
	return last(added.Name), nil
}

// each goes through the pages of a list.
func (s *store) each(ctx context.Context, path string, page func(answer []byte) (next string, err error)) error {
	token := ""
	for range upstream.Most / 100 {
		var answer json.RawMessage
		if err := s.do(ctx, http.MethodGet, path+"?pageSize=250&pageToken="+url.QueryEscape(token), nil, &answer); err != nil {
			return refuse(err)
		}
		next, err := page(answer)
		if err != nil || next == "" {
			return err
		}
		token = next
	}
	return engine.Refuse("the list has no end")
}

func (s *store) List(ctx context.Context, prefix string) (names []string, err error) {
	err = s.each(ctx, "/secrets", func(answer []byte) (string, error) {
		var page struct {
			Secrets []struct{ Name string }
			Next    string `json:"nextPageToken"`
		}
		if err := json.Unmarshal(answer, &page); err != nil {
			return "", errors.New("a list is not what was expected")
		}
		for _, x := range page.Secrets {
			if name := last(x.Name); strings.HasPrefix(name, prefix) {
				names = append(names, name)
			}
		}
		if len(names) > upstream.Most {
			return "", engine.Refuse("there are more than %d secrets that begin with %q", upstream.Most, prefix)
		}
		return page.Next, nil
	})
	slices.Sort(names)
	return names, err
}

func (s *store) Versions(ctx context.Context, name string) (versions []upstream.Version, err error) {
	path, err := at(name)
	if err != nil {
		return nil, err
	}
	err = s.each(ctx, path+"/versions", func(answer []byte) (string, error) {
		var page struct {
			Versions []struct {
				Name    string
				Created time.Time `json:"createTime"`
				State   string
			}
			Next string `json:"nextPageToken"`
		}
		if err := json.Unmarshal(answer, &page); err != nil {
			return "", errors.New("a list is not what was expected")
		}
		for _, v := range page.Versions {
			versions = append(versions, upstream.Version{ID: last(v.Name), Created: v.Created, Live: v.State == "ENABLED"})
		}
		return page.Next, nil
	})
	number := func(v upstream.Version) int { n, _ := strconv.Atoi(v.ID); return n }
	slices.SortFunc(versions, func(a, b upstream.Version) int { return number(b) - number(a) })
	return versions, err
}

// Delete takes a secret away with all its versions, for good.
func (s *store) Delete(ctx context.Context, name string) error {
	path, err := at(name)
	if err != nil {
		return err
	}
	if err := s.do(ctx, http.MethodDelete, path, nil, nil); !errors.Is(err, upstream.ErrNotFound) {
		return refuse(err)
	}
	return nil
}
