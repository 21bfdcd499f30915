package oauth

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"

	"estover.dev"
	"estover.dev/internal/jose"
	"estover.dev/internal/seal"
	"estover.dev/internal/token"
)

// The paths below an issuer.
const (
	tokenPath      = "/oauth/token"
	introspectPath = "/oauth/introspect"
	revokePath     = "/oauth/revoke"
	jwksPath       = "/oauth/jwks"
)

// Metadata is what clients find out about us (RFC 8414, section 2; OpenID
// Connect Discovery, section 3). It names what there is and nothing else.
type Metadata struct {
	Issuer                     string   `json:"issuer"`
	AuthorizationEndpoint      string   `json:"authorization_endpoint,omitempty"`
	PAREndpoint                string   `json:"pushed_authorization_request_endpoint,omitempty"` // RFC 9126, section 5
	DeviceEndpoint             string   `json:"device_authorization_endpoint,omitempty"`         // RFC 8628, section 4
	BackchannelEndpoint        string   `json:"backchannel_authentication_endpoint,omitempty"`   // OpenID Connect CIBA, section 4
	BackchannelModes           []string `json:"backchannel_token_delivery_modes_supported,omitempty"`
	TokenEndpoint              string   `json:"token_endpoint"`
	JWKS                       string   `json:"jwks_uri"`
	RegistrationEndpoint       string   `json:"registration_endpoint,omitempty"` // only while clients may register themselves
	UserInfoEndpoint           string   `json:"userinfo_endpoint,omitempty"`
	IntrospectionEndpoint      string   `json:"introspection_endpoint"`
	RevocationEndpoint         string   `json:"revocation_endpoint"`
	GrantTypes                 []string `json:"grant_types_supported"`
	GrantProfiles              []string `json:"authorization_grant_profiles_supported,omitempty"`
	Chaining                   []string `json:"identity_chaining_requested_token_types_supported,omitempty"`
	ResponseTypes              []string `json:"response_types_supported"` // required, and none where there is no authorization endpoint
	ResponseModes              []string `json:"response_modes_supported,omitempty"`
	ChallengeMethods           []string `json:"code_challenge_methods_supported,omitempty"`               // RFC 7636
	ResponseIssuer             bool     `json:"authorization_response_iss_parameter_supported,omitempty"` // RFC 9207
	RequirePAR                 bool     `json:"require_pushed_authorization_requests"`                    // the rule is each client's own
	TokenMethods               []string `json:"token_endpoint_auth_methods_supported"`
	TokenAlgorithms            []string `json:"token_endpoint_auth_signing_alg_values_supported"`
	IntrospectionMethods       []string `json:"introspection_endpoint_auth_methods_supported"`
	IntrospectionAlgorithms    []string `json:"introspection_endpoint_auth_signing_alg_values_supported"`
	RevocationMethods          []string `json:"revocation_endpoint_auth_methods_supported"`
	RevocationAlgorithms       []string `json:"revocation_endpoint_auth_signing_alg_values_supported"`
	IntrospectionAnswerSigning []string `json:"introspection_signing_alg_values_supported"`
	DPoPAlgorithms             []string `json:"dpop_signing_alg_values_supported"`          // RFC 9449, section 5.1
	CertificateBound           bool     `json:"tls_client_certificate_bound_access_tokens"` // RFC 8705, section 3.3
	Aliases                    *Aliases `json:"mtls_endpoint_aliases,omitempty"`
	SubjectTypes               []string `json:"subject_types_supported"`
	IDTokenAlgorithms          []string `json:"id_token_signing_alg_values_supported,omitempty"` // of all that follow, OpenID Connect Discovery, section 3
	Scopes                     []string `json:"scopes_supported,omitempty"`                      // beside those of resources, which say theirs
	Claims                     []string `json:"claims_supported,omitempty"`
	Classes                    []string `json:"acr_values_supported,omitempty"`
	DetailTypes                []string `json:"authorization_details_types_supported"` // RFC 9396, section 10
	ClientDocuments            bool     `json:"client_id_metadata_document_supported,omitempty"`
	RequestParameter           bool     `json:"request_parameter_supported"`
	RequestURIParameter        bool     `json:"request_uri_parameter_supported"` // written out: the default is true
}

// Aliases are the endpoints where clients come that show a certificate
// (RFC 8705, section 5): at an address of their own, so that browsers are asked
// for none.
type Aliases struct {
	TokenEndpoint         string `json:"token_endpoint"`
	UserInfoEndpoint      string `json:"userinfo_endpoint,omitempty"`
	IntrospectionEndpoint string `json:"introspection_endpoint"`
	RevocationEndpoint    string `json:"revocation_endpoint"`
	PAREndpoint           string `json:"pushed_authorization_request_endpoint,omitempty"`
	DeviceEndpoint        string `json:"device_authorization_endpoint,omitempty"`
	BackchannelEndpoint   string `json:"backchannel_authentication_endpoint,omitempty"`
}

// methods are the ways in which a client may authenticate, at every endpoint.
func (d *Door) methods() []string {
	all := []string{token.SecretBasic, token.SecretPost, token.PrivateKeyJWT}
	if d.NoCertificates {
		return all
	}
	return append(all, token.TLSClientAuth, token.SelfSignedTLS)
}

// Metadata is the document of a tenant.
func (d *Door) Metadata(ctx context.Context, tenant estover.TenantID) (Metadata, error) {
	types, err := d.Tokens.DetailTypes.Of(ctx, tenant)
	if err != nil {
		return Metadata{}, err
	}
	issuer := d.Tokens.Issuer.Of(tenant)
	assertions := jose.Algorithms(jose.ClientAssertion)
	methods := d.methods()
	var aliases *Aliases
	if d.Mutual != "" {
		at := d.Mutual.Of(tenant)
		aliases = &Aliases{TokenEndpoint: at + tokenPath, IntrospectionEndpoint: at + introspectPath, RevocationEndpoint: at + revokePath}
		if d.Pages != nil {
			aliases.PAREndpoint, aliases.UserInfoEndpoint = at+parPath, at+userinfoPath
			aliases.DeviceEndpoint, aliases.BackchannelEndpoint = at+devicePath, at+backchannelPath
		}
	}
	m := Metadata{
		Issuer: issuer, TokenEndpoint: issuer + tokenPath, JWKS: issuer + jwksPath,
		IntrospectionEndpoint: issuer + introspectPath, RevocationEndpoint: issuer + revokePath,
		GrantTypes: grantNames(), ResponseTypes: []string{},
		TokenMethods: methods, TokenAlgorithms: assertions,
		IntrospectionMethods: methods, IntrospectionAlgorithms: assertions,
		RevocationMethods: methods, RevocationAlgorithms: assertions,
		IntrospectionAnswerSigning: jose.Algorithms(jose.Introspection), DPoPAlgorithms: jose.Algorithms(jose.DPoPProof), SubjectTypes: []string{"public"},
		CertificateBound: true, Aliases: aliases, DetailTypes: types.Names(),
	}
	m.CertificateBound = !d.NoCertificates
	if d.Trusts != nil {
		m.GrantProfiles = []string{grantProfile}
	}
	if d.Pages != nil {
		m.AuthorizationEndpoint, m.PAREndpoint = issuer+authorizePath, issuer+parPath
		m.DeviceEndpoint, m.BackchannelEndpoint = issuer+devicePath, issuer+backchannelPath
		m.BackchannelModes, m.Chaining = []string{"poll"}, []string{token.IDJAGType}
		m.ResponseTypes, m.ResponseModes, m.ChallengeMethods, m.ResponseIssuer = []string{"code"}, []string{"query"}, []string{"S256"}, true
		m.TokenMethods = append(slices.Clone(methods), token.Public) // for what a person has agreed to
		m.RevocationMethods = m.TokenMethods
		m.ClientDocuments = d.Documents != nil
		m.UserInfoEndpoint, m.IDTokenAlgorithms = issuer+userinfoPath, jose.Algorithms(jose.IDToken)
		m.Scopes, m.Claims, m.Classes = []string{token.OpenID, token.Profile, token.Email}, claims, []string{token.Phishproof}
	}
	if d.Registrations != nil {
		open, err := d.Registrations.Registering(ctx, tenant)
		if err != nil {
			return m, err
		}
		if open {
			m.RegistrationEndpoint = issuer + registerPath
		}
	}
	return m, nil
}

// metadata answers with the document.
func (d *Door) metadata(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) {
	m, err := d.Metadata(r.Context(), tenant)
	if err != nil {
		d.fail(w, r, err)
		return
	}
	body, err := json.Marshal(m)
	if err != nil {
		d.fail(w, r, err)
		return
	}
	answer(w, http.StatusOK, jsonType, body)
}

// jwks answers with our public keys. Whoever keeps a copy asks again before a
// key signs that is not in it.
func (d *Door) jwks(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) {
	keys, err := d.Tokens.Keys.JWKS(r.Context(), tenant)
	if err != nil {
		d.fail(w, r, err)
		return
	}
	body, err := keys.MarshalJSON()
	if err != nil {
		d.fail(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/jwk-set+json")
	h.Set("Cache-Control", jwksLife)
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(body) // the client may be gone; there is nobody else to tell
}

// jwksLife is a quarter of the time for which a key is published before its
// first signature.
var jwksLife = "public, max-age=" + strconv.Itoa(int((seal.Lead / 4).Seconds()))
