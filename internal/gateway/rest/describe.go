package rest

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/gateway"
	"estover.dev/internal/jose"
	"estover.dev/internal/token"
)

// MetadataPath stands between host and path of a protected resource where it
// describes itself (RFC 9728, section 3.1).
const MetadataPath = "/.well-known/oauth-protected-resource"

// A Description is what routes say of themselves to whoever asks: which server
// issues the tokens that they take, and what there is to ask for (RFC 9728).
// Whoever knows the URL of a route needs to know nothing else.
//
// A client that was sent to the metadata by a challenge must find there the very
// URL that it has used (section 3.3). So every URL below a route is a resource
// with metadata of its own, and all of them stand for the one that the route
// leads to.
type Description struct {
	// Origin is the scheme and the host under which clients know the routes.
	Origin string
	// Base is the path of the issuer.
	Base string
	// Issuer is who issues the tokens, by tenant.
	Issuer token.Issuer
	// Scopes are the actions that a route of a tenant has, by its name; an error of
	// the kind NotFound if there is no such route.
	Scopes func(ctx context.Context, tenant estover.TenantID, name string) ([]string, error)
	// NoCertificates says that no client can show one, so that no token is bound to
	// one.
	NoCertificates bool
}

// described is the document (RFC 9728, section 2).
type described struct {
	Resource         string   `json:"resource"`
	Servers          []string `json:"authorization_servers"`
	Scopes           []string `json:"scopes_supported,omitempty"`
	Methods          []string `json:"bearer_methods_supported"`
	ProofAlgorithms  []string `json:"dpop_signing_alg_values_supported"`
	ProofRequired    bool     `json:"dpop_bound_access_tokens_required"` // the rule is each client's own
	CertificateBound bool     `json:"tls_client_certificate_bound_access_tokens"`
}

// Matches reports whether a request asks for the metadata of a route.
func (d *Description) Matches(r *http.Request) bool {
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), MetadataPath)
	if ok {
		_, ok = Find(d.Base, path)
	}
	return ok
}

// ServeHTTP answers with the metadata of a route.
func (d *Description) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodOptions:
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Allow-Methods", http.MethodGet)
		w.WriteHeader(http.StatusNoContent)
		return
	default:
		h.Set("Allow", http.MethodGet)
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	path := strings.TrimPrefix(r.URL.EscapedPath(), MetadataPath)
	at, _ := Find(d.Base, path)
	var scopes []string
	_, err := edge.ParsePath(path, edge.TargetRules{})
	if err == nil {
		scopes, err = d.Scopes(r.Context(), at.Tenant, at.Name)
	}
	if err != nil {
		gateway.Refuse(w, "", err)
		return
	}
	scopes = slices.DeleteFunc(slices.Clone(scopes), func(s string) bool { return !token.Scope(s) })
	slices.Sort(scopes)
	body, err := json.Marshal(described{
		Resource: d.Origin + path, Servers: []string{d.Issuer.Of(at.Tenant)}, Scopes: slices.Compact(scopes), Methods: []string{"header"},
		ProofAlgorithms: jose.Algorithms(jose.DPoPProof), CertificateBound: !d.NoCertificates,
	})
	if err != nil {
		gateway.Refuse(w, "", err)
		return
	}
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(body) // the client may be gone; there is nobody else to tell
}

// Need is what a request to a route would have to come with, as far as it is
// known.
func (d *Description) Need(r *http.Request, scopes ...string) edge.Need {
	path := r.URL.EscapedPath()
	if _, err := edge.ParsePath(path, edge.TargetRules{}); err != nil {
		at, _ := Find(d.Base, path) // it will be refused; the route is there all the same
		path = at.Before
	}
	return edge.Need{Metadata: d.Origin + MetadataPath + path, Scopes: scopes}
}
