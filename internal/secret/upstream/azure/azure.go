// Package azure keeps secrets in an Azure Key Vault.
//
// A secret has a name and no path. Its versions have names that say nothing of
// their order, so the newest is the one that was made last, to the second, and of
// several in that second the one that the vault gives. It gives none that is disabled,
// but says that the newest is: of several disabled ones in that second the first that it
// lists counts as the newest. Nobody checks which version a new one follows. The name
// of a secret that was deleted stays reserved until it is purged there.
package azure

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
)

// Kind is Azure Key Vault.
var Kind = upstream.Kind{
	Name:    "azure",
	Title:   "Azure Key Vault",
	Address: "https://NAME.vault.azure.net",
	Login:   "an access token, as `az account get-access-token --resource https://vault.azure.net` prints it, without a username",
	Flat:    true,
	Options: []engine.Field{
		{Name: upstream.Audience, Help: "api://AzureADTokenExchange: to log in with an assertion of ours instead of a token, by a federated credential of an application"},
		{Name: "tenant", Help: "with it: the id of the tenant of Entra ID"},
		{Name: "client", Help: "with it: the id of the application"},
		{Name: "authority", Help: "with it: https://login.microsoftonline.com if it is empty"},
	},
	Federation: &upstream.Federation{Beside: beside, Login: federate},
	Open:       open,
}

const authority = "https://login.microsoftonline.com"

var idOf = regexp.MustCompile(`^[0-9A-Za-z.-]{1,100}$`)

func beside(options map[string]string) ([]string, error) {
	if !idOf.MatchString(options["tenant"]) || !idOf.MatchString(options["client"]) {
		return nil, engine.ErrConfig.With("The options tenant and client are the ids of a tenant and of an application.").At("options.tenant")
	}
	host, err := engine.Kind{Name: "azure", Address: "https://HOST", Port: "443"}.Host(cmp.Or(options["authority"], authority))
	if err != nil {
		return nil, engine.ErrConfig.With("The option authority is https://HOST.").At("options.authority")
	}
	return []string{host}, nil
}

// federate exchanges an assertion for an access token (RFC 7523, section 2.2).
func federate(ctx context.Context, c engine.Config, assertion string) (out engine.Credential, until time.Time, err error) {
	if _, err := beside(c.Options); err != nil {
		return out, until, err
	}
	return upstream.Exchange(ctx, c, cmp.Or(c.Options["authority"], authority), "/"+c.Options["tenant"]+"/oauth2/v2.0/token", url.Values{
		"grant_type": {"client_credentials"}, "client_id": {c.Options["client"]}, "scope": {"https://vault.azure.net/.default"},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {assertion},
	})
}

// largest is the most that a version may hold, in bytes.
const largest = 25_000

var (
	nameOf    = regexp.MustCompile(`^[0-9A-Za-z-]{1,127}$`)
	versionOf = regexp.MustCompile(`^[0-9A-Za-z]{1,64}$`)
)

// A login is a token that was got elsewhere.
type login struct{ token estover.Secret }

func (l login) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: string(l.token.Reveal()), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

type store struct{ client *azsecrets.Client }

func open(c engine.Config) (upstream.Store, error) {
	client, base, err := c.HTTP()
	if err != nil {
		return nil, err
	}
	if base.Scheme != "https" {
		return nil, engine.ErrConfig.With("The address begins with https://, also on this machine.").At("address")
	}
	client.Transport = bounded{client.Transport}
	o := &azsecrets.ClientOptions{DisableChallengeResourceVerification: true} // the token is sent to no other host anyway
	o.Transport, o.Retry.MaxRetries, o.Telemetry.Disabled = client, -1, true
	s := &store{}
	if s.client, err = azsecrets.NewClient(base.String(), login{c.Admin.Secret}, o); err != nil {
		return nil, engine.ErrConfig.With("The address cannot be.").At("address").Because(err)
	}
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

func checkName(name string) error {
	if !nameOf.MatchString(name) {
		return engine.Refuse("%q is no name of a secret there: letters, digits and -", name)
	}
	return nil
}

func (s *store) Get(ctx context.Context, name, version string) (v upstream.Value, err error) {
	if err := checkName(name); err != nil {
		return v, err
	}
	if version != "" && !versionOf.MatchString(version) {
		return v, upstream.ErrNotFound
	}
	got, err := s.client.GetSecret(ctx, name, version, nil)
	if err != nil {
		return v, classify(err)
	}
	if got.ID == nil || got.Value == nil {
		return v, engine.Unreachable(errors.New("an answer is not what was expected"))
	}
	v = upstream.Value{Version: got.ID.Version(), Object: upstream.Object([]byte(*got.Value))}
	if got.Attributes != nil && got.Attributes.Created != nil {
		v.Created = *got.Attributes.Created
	}
	return v, nil
}

func (s *store) Put(ctx context.Context, name string, object estover.Secret, expect string) (string, error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	text, err := upstream.Text(object)
	if err != nil {
		return "", err
	}
	if len(text) > largest {
		return "", engine.Refuse("a version holds 25,000 bytes at most")
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
	value := string(text)
	set, err := s.client.SetSecret(ctx, name, azsecrets.SetSecretParameters{Value: &value}, nil)
	if err != nil {
		return "", classify(err)
	}
	if set.ID == nil {
		return "", errors.New("an answer is not what was expected")
	}
	return set.ID.Version(), nil
}

func (s *store) List(ctx context.Context, prefix string) (names []string, err error) {
	for pager := s.client.NewListSecretPropertiesPager(nil); pager.More(); {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return nil, classify(err)
		}
		for _, x := range page.Value {
			if x != nil && x.ID != nil && strings.HasPrefix(x.ID.Name(), prefix) {
				names = append(names, x.ID.Name())
			}
		}
		if len(names) > upstream.Most {
			return nil, engine.Refuse("there are more than %d secrets that begin with %q", upstream.Most, prefix)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (s *store) Versions(ctx context.Context, name string) (versions []upstream.Version, err error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	for pager := s.client.NewListSecretPropertiesVersionsPager(name, nil); pager.More(); {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return nil, classify(err)
		}
		for _, x := range page.Value {
			if x == nil || x.ID == nil || x.Attributes == nil {
				continue
			}
			v := upstream.Version{ID: x.ID.Version(), Live: x.Attributes.Enabled == nil || *x.Attributes.Enabled}
			if x.Attributes.Created != nil {
				v.Created = *x.Attributes.Created
			}
			versions = append(versions, v)
		}
		if len(versions) > upstream.Most {
			return nil, engine.Refuse("the list of versions has no end")
		}
	}
	slices.SortStableFunc(versions, func(a, b upstream.Version) int { return b.Created.Compare(a.Created) })
	if len(versions) > 1 && versions[0].Created.Equal(versions[1].Created) {
		return s.currentFirst(ctx, name, versions)
	}
	return versions, nil
}

// currentFirst puts the current version first, where several were made in the newest
// second. A vault tells which it is with its value alone, and of one that is disabled
// that it is disabled.
func (s *store) currentFirst(ctx context.Context, name string, versions []upstream.Version) ([]upstream.Version, error) {
	got, err := s.client.GetSecret(ctx, name, "", nil)
	var current func(upstream.Version) bool
	switch {
	case disabled(err):
		newest := versions[0].Created
		current = func(v upstream.Version) bool { return !v.Live && v.Created.Equal(newest) }
	case err != nil:
		return nil, classify(err)
	case got.ID == nil:
		return nil, engine.Unreachable(errors.New("an answer is not what was expected"))
	default:
		current = func(v upstream.Version) bool { return v.ID == got.ID.Version() }
	}
	slices.SortStableFunc(versions, func(a, b upstream.Version) int {
		switch {
		case current(a) == current(b):
			return 0
		case current(a):
			return -1
		}
		return 1
	})
	return versions, nil
}

// disabled reports whether a vault gives no value because the version is disabled, and
// not because it lets the caller read none: both are 403 Forbidden.
func disabled(err error) bool {
	var answer *azcore.ResponseError
	if !errors.As(err, &answer) || answer.StatusCode != http.StatusForbidden || answer.RawResponse == nil {
		return false
	}
	b, err := io.ReadAll(answer.RawResponse.Body) // which the library has read and kept
	var is struct {
		Error struct {
			Inner struct {
				Code string `json:"code"`
			} `json:"innererror"`
		} `json:"error"`
	}
	return err == nil && json.Unmarshal(b, &is) == nil && is.Error.Inner.Code == "SecretDisabled"
}

// Delete leaves the secret to be recovered there, for as long as the vault says.
func (s *store) Delete(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	_, err := s.client.DeleteSecret(ctx, name, nil)
	if err = classify(err); errors.Is(err, upstream.ErrNotFound) {
		return nil
	}
	return err
}

// classify says in the words of the package what an error means.
func classify(err error) error {
	var answer *azcore.ResponseError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &answer):
		return engine.Unreachable(err)
	case answer.StatusCode == http.StatusNotFound:
		return upstream.ErrNotFound
	case answer.StatusCode == http.StatusConflict:
		return engine.Refuse("the name belongs to a secret that was deleted and is not purged yet (%s)", answer.ErrorCode)
	case answer.StatusCode/100 == 4 && answer.StatusCode != http.StatusUnauthorized && answer.StatusCode != http.StatusForbidden && answer.StatusCode != http.StatusTooManyRequests:
		return engine.Refuse("%d %s", answer.StatusCode, answer.ErrorCode)
	}
	// The library's own words would repeat the request.
	return engine.Unreachable(errors.New(http.StatusText(answer.StatusCode) + " " + answer.ErrorCode))
}
