// Package azuretest is the official fake of an Azure Key Vault with secrets in it, behind
// HTTP.
package azuretest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azfake "github.com/Azure/azure-sdk-for-go/sdk/azcore/fake"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets/fake"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// A Vault is a Key Vault. It lets in who has its token.
type Vault struct {
	mu      sync.Mutex
	clock   time.Time // moves by a second with each version, which is all that a vault tells of time
	still   bool      // it does not
	blind   bool      // the token may read no value
	token   string
	secrets map[string]*kept
	fake    *fake.ServerTransport
	base    string // as it was asked
}

// New makes one without secrets.
func New() (*Vault, engine.Credential) {
	v := &Vault{secrets: map[string]*kept{}, clock: time.Now().Add(-time.Hour).Truncate(time.Second), token: "eyJ." + rand.Text()}
	return v, engine.Credential{Secret: estover.NewSecret([]byte(v.token))}
}

// Write is somebody else's write of a version.
func (v *Vault) Write(name, text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.add(name, text)
}

// Remove is somebody else's deletion. The name stays reserved.
func (v *Vault) Remove(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.secrets[name].deleted = true
}

// Restore takes a deletion back.
func (v *Vault) Restore(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.secrets[name].deleted = false
}

// Disable takes the newest version of a secret out of use.
func (v *Vault) Disable(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := v.secrets[name].versions
	all[len(all)-1].disabled = true
}

// Still has all that is written from now on be written in the same second.
func (v *Vault) Still() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.still = true
}

// Blind takes the right to read values away from the token.
func (v *Vault) Blind() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.blind = true
}

// All are the texts of the versions of a secret, the current one last.
func (v *Vault) All(name string) (texts []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if x := v.secrets[name]; x != nil {
		for _, n := range x.versions {
			texts = append(texts, n.text)
		}
	}
	return texts
}

func (v *Vault) add(name, text string) version {
	x := v.secrets[name]
	if x == nil {
		x = &kept{}
		v.secrets[name] = x
	}
	if !v.still {
		v.clock = v.clock.Add(time.Second)
	}
	n := version{fmt.Sprintf("%032x", uint32(len(x.versions)*2654435761+7)), text, v.clock, false}
	x.versions = append(x.versions, n)
	return n
}

type kept struct {
	versions []version
	deleted  bool
}

type version struct {
	id, text string
	created  time.Time
	disabled bool
}

func (v *Vault) id(name, version string) *azsecrets.ID {
	id := azsecrets.ID(v.base + "/secrets/" + name + "/" + version)
	return &id
}

func (v *Vault) find(name string) *kept {
	if x := v.secrets[name]; x != nil && !x.deleted {
		return x
	}
	return nil
}

func (x *version) attributes() *azsecrets.SecretAttributes {
	enabled := !x.disabled
	return &azsecrets.SecretAttributes{Created: &x.created, Enabled: &enabled}
}

// secretDisabled is the inner error of a refusal to give a version that is disabled.
const secretDisabled = "SecretDisabled"

func (v *Vault) serve() fake.Server {
	return fake.Server{
		SetSecret: func(_ context.Context, name string, in azsecrets.SetSecretParameters, _ *azsecrets.SetSecretOptions) (ok azfake.Responder[azsecrets.SetSecretResponse], bad azfake.ErrorResponder) {
			if x := v.secrets[name]; x != nil && x.deleted {
				bad.SetResponseError(http.StatusConflict, "Conflict")
				return ok, bad
			}
			n := v.add(name, *in.Value)
			ok.SetResponse(http.StatusOK, azsecrets.SetSecretResponse{Secret: azsecrets.Secret{ID: v.id(name, n.id), Value: in.Value, Attributes: n.attributes()}}, nil)
			return ok, bad
		},
		GetSecret: func(_ context.Context, name, want string, _ *azsecrets.GetSecretOptions) (ok azfake.Responder[azsecrets.GetSecretResponse], bad azfake.ErrorResponder) {
			if v.blind {
				bad.SetResponseError(http.StatusForbidden, "Forbidden")
				return ok, bad
			}
			if x := v.find(name); x != nil {
				for i, n := range x.versions {
					if n.id == want || want == "" && i == len(x.versions)-1 {
						if n.disabled {
							bad.SetResponseError(http.StatusForbidden, secretDisabled)
							return ok, bad
						}
						ok.SetResponse(http.StatusOK, azsecrets.GetSecretResponse{Secret: azsecrets.Secret{ID: v.id(name, n.id), Value: &n.text, Attributes: n.attributes()}}, nil)
						return ok, bad
					}
				}
			}
			bad.SetResponseError(http.StatusNotFound, "SecretNotFound")
			return ok, bad
		},
		DeleteSecret: func(_ context.Context, name string, _ *azsecrets.DeleteSecretOptions) (ok azfake.Responder[azsecrets.DeleteSecretResponse], bad azfake.ErrorResponder) {
			x := v.find(name)
			if x == nil {
				bad.SetResponseError(http.StatusNotFound, "SecretNotFound")
				return ok, bad
			}
			x.deleted = true
			ok.SetResponse(http.StatusOK, azsecrets.DeleteSecretResponse{}, nil)
			return ok, bad
		},
		NewListSecretPropertiesPager: func(*azsecrets.ListSecretPropertiesOptions) (pages azfake.PagerResponder[azsecrets.ListSecretPropertiesResponse]) {
			var all []*azsecrets.SecretProperties
			for name := range v.secrets {
				if v.find(name) != nil {
					all = append(all, &azsecrets.SecretProperties{ID: v.id(name, "")})
				}
			}
			for page := range slices.Chunk(append(all, nil), 2) {
				pages.AddPage(http.StatusOK, azsecrets.ListSecretPropertiesResponse{SecretPropertiesListResult: azsecrets.SecretPropertiesListResult{
					Value: slices.DeleteFunc(page, func(p *azsecrets.SecretProperties) bool { return p == nil }),
				}}, nil)
			}
			return pages
		},
		NewListSecretPropertiesVersionsPager: func(name string, _ *azsecrets.ListSecretPropertiesVersionsOptions) (pages azfake.PagerResponder[azsecrets.ListSecretPropertiesVersionsResponse]) {
			x := v.find(name)
			if x == nil {
				pages.AddResponseError(http.StatusNotFound, "SecretNotFound")
				return pages
			}
			var all []*azsecrets.SecretProperties
			for _, n := range x.versions { // the oldest first
				all = append(all, &azsecrets.SecretProperties{ID: v.id(name, n.id), Attributes: n.attributes()})
			}
			pages.AddPage(http.StatusOK, azsecrets.ListSecretPropertiesVersionsResponse{SecretPropertiesListResult: azsecrets.SecretPropertiesListResult{Value: all}}, nil)
			return pages
		},
	}
}

func (v *Vault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch r.Header.Get("Authorization") {
	case "Bearer " + v.token:
	case "": // what a client is told first
		w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.example/tenant", resource="https://vault.azure.net"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	default:
		w.WriteHeader(http.StatusForbidden)
		return
	}
	v.base = "https://" + r.Host
	// The fake wants to be told what a client in its own process would tell it.
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	next := strings.HasPrefix(parts[len(parts)-1], "fake_page_")
	if !next { // an old one remembers lists that ended with an error
		server := v.serve()
		v.fake = fake.NewServerTransport(&server)
	}
	name := "Client.GetSecret"
	switch {
	case r.Method == http.MethodPut:
		name = "Client.SetSecret"
	case r.Method == http.MethodDelete:
		name = "Client.DeleteSecret"
	case len(parts) == 1 || next:
		name = "Client.NewListSecretPropertiesPager"
	case parts[len(parts)-1] == "versions":
		name = "Client.NewListSecretPropertiesVersionsPager"
	}
	req := r.Clone(context.WithValue(r.Context(), runtime.CtxAPINameKey{}, name))
	req.URL.Scheme, req.URL.Host, req.RequestURI = "https", r.Host, ""
	resp, err := v.fake.Do(req)
	var refused *azcore.ResponseError
	switch {
	case errors.As(err, &refused): // which is how the fake answers with an error
		outer, inner := refused.ErrorCode, ""
		if outer == secretDisabled {
			outer, inner = "Forbidden", fmt.Sprintf(`,"innererror":{"code":%q}`, secretDisabled)
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.WriteHeader(refused.StatusCode)
		fmt.Fprintf(w, `{"error":{"code":%q,"message":"It is refused."%s}}`, outer, inner)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer resp.Body.Close()
	for h := range resp.Header {
		w.Header().Set(h, resp.Header.Get(h))
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}
