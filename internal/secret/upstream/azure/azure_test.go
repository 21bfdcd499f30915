package azure_test

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azfake "github.com/Azure/azure-sdk-for-go/sdk/azcore/fake"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets/fake"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/secret/upstream/azure"
	"estover.dev/internal/secret/upstream/upstreamtest"
)

const token = "eyJ.made-for-tests"

// A vault is the official fake of a Key Vault with secrets in it, behind HTTP.
type vault struct {
	mu      sync.Mutex
	clock   time.Time // moves by a second with each version, which is all that a vault tells of time
	secrets map[string]*kept
	fake    *fake.ServerTransport
	base    string
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

func (v *vault) id(name, version string) *azsecrets.ID {
	id := azsecrets.ID(v.base + "/secrets/" + name + "/" + version)
	return &id
}

func (v *vault) find(name string) *kept {
	if x := v.secrets[name]; x != nil && !x.deleted {
		return x
	}
	return nil
}

func (x *version) attributes() *azsecrets.SecretAttributes {
	enabled := !x.disabled
	return &azsecrets.SecretAttributes{Created: &x.created, Enabled: &enabled}
}

func (v *vault) serve() fake.Server {
	return fake.Server{
		SetSecret: func(_ context.Context, name string, in azsecrets.SetSecretParameters, _ *azsecrets.SetSecretOptions) (ok azfake.Responder[azsecrets.SetSecretResponse], bad azfake.ErrorResponder) {
			x := v.secrets[name]
			if x != nil && x.deleted {
				bad.SetResponseError(http.StatusConflict, "Conflict")
				return ok, bad
			}
			if x == nil {
				x = &kept{}
				v.secrets[name] = x
			}
			v.clock = v.clock.Add(time.Second)
			n := version{fmt.Sprintf("%032x", uint32(len(x.versions)*2654435761+7)), *in.Value, v.clock, false}
			x.versions = append(x.versions, n)
			ok.SetResponse(http.StatusOK, azsecrets.SetSecretResponse{Secret: azsecrets.Secret{ID: v.id(name, n.id), Value: in.Value, Attributes: n.attributes()}}, nil)
			return ok, bad
		},
		GetSecret: func(_ context.Context, name, want string, _ *azsecrets.GetSecretOptions) (ok azfake.Responder[azsecrets.GetSecretResponse], bad azfake.ErrorResponder) {
			if x := v.find(name); x != nil {
				for i, n := range x.versions {
					if n.id == want || want == "" && i == len(x.versions)-1 {
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

func (v *vault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch r.Header.Get("Authorization") {
	case "Bearer " + token:
	case "": // what a client is told first
		w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.example/tenant", resource="https://vault.azure.net"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	default:
		w.WriteHeader(http.StatusForbidden)
		return
	}
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
		w.Header().Set("X-Ms-Error-Code", refused.ErrorCode)
		w.WriteHeader(refused.StatusCode)
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

func start(t *testing.T) (*vault, engine.Config) {
	v := &vault{secrets: map[string]*kept{}, clock: time.Now().Add(-time.Hour).Truncate(time.Second)}
	s := httptest.NewTLSServer(v)
	t.Cleanup(s.Close)
	v.base = s.URL
	return v, engine.Config{
		Address: s.URL, Authorities: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}),
		Admin: engine.Credential{Secret: estover.NewSecret([]byte(token))},
	}
}

func TestKind(t *testing.T) {
	_, c := start(t)
	upstreamtest.Run(t, azure.Kind, c)
}

// TestStates: a disabled version is not live, and the name of a deleted secret
// is taken.
func TestStates(t *testing.T) {
	v, c := start(t)
	s, err := azure.Kind.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	text := estover.NewSecret([]byte(`{"value": "x"}`))
	if _, err := s.Put(t.Context(), "a", text, upstream.None); err != nil {
		t.Fatal(err)
	}
	v.secrets["a"].versions[0].disabled = true
	if got, err := s.Versions(t.Context(), "a"); err != nil || len(got) != 1 || got[0].Live {
		t.Errorf("versions: %v, %v, want one that is not live", got, err)
	}
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	var refused *engine.Refused
	if _, err := s.Put(t.Context(), "a", text, upstream.None); !errors.As(err, &refused) || !strings.Contains(err.Error(), "purged") {
		t.Errorf("the name of a deleted secret: %v, want a refusal that says why", err)
	}
	if _, err := azure.Kind.Open(engine.Config{Address: "http://127.0.0.1:1"}); err == nil {
		t.Error("an address without TLS was taken")
	}
}
