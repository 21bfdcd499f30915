package agent

import (
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"estover.dev"
)

// A Client is what OAuth needs to know of an agent beside its credentials. The
// names are those of client metadata (RFC 7591, section 2, RFC 8705, section
// 3.4, RFC 9449, section 5.2, RFC 9126, section 6), where there is one. The
// zero value is an agent that asks for tokens by its own credentials and is
// bound by no further rule.
//
// An agent with a metadata URL is the registration of that URL, and of no other
// client: the document there says what its keys and redirect URIs are, and the
// settings here how far it may go. Its grant types are those that both name; of
// redirect URIs and methods, none named here means whichever it names.
type Client struct {
	MetadataURL      string   `json:"metadata_url,omitempty" maxLength:"1024" doc:"The https URL of a document in which it says itself what it is: a Client ID Metadata Document. The URL is then its one client_id."`
	GrantTypes       []string `json:"grant_types,omitempty" enum:"client_credentials,authorization_code,refresh_token,urn:ietf:params:oauth:grant-type:token-exchange,urn:ietf:params:oauth:grant-type:jwt-bearer,urn:ietf:params:oauth:grant-type:device_code,urn:openid:params:grant-type:ciba" doc:"The grant types that it may use. Every agent has client_credentials, named or not."`
	RedirectURIs     []string `json:"redirect_uris,omitempty" doc:"Where a browser may be sent back to with a code. They are compared exactly, except for the port of a loopback address."`
	DefaultResource  string   `json:"default_resource,omitempty" maxLength:"2048" doc:"The identifier of the resource that it means when it names none."`
	TokenSeconds     int64    `json:"access_token_seconds,omitempty" minimum:"0" maximum:"1800" doc:"How long its access tokens live; 0 for the usual 15 minutes."`
	DPoPBound        bool     `json:"dpop_bound_access_tokens,omitempty" doc:"It gets no token without a DPoP proof, whatever the grant type."`
	CertificateBound bool     `json:"tls_client_certificate_bound_access_tokens,omitempty" doc:"It gets no token without a certificate, to which the token is bound, whatever the grant type."`
	RequirePAR       bool     `json:"require_pushed_authorization_requests,omitempty" doc:"It must push its authorization requests."`
	LegacyAudience   bool     `json:"legacy_assertion_audience,omitempty" doc:"Its assertions may have the token endpoint as their audience, as those of some libraries do. Each use is logged."`
	Methods          []string `json:"token_endpoint_auth_methods,omitempty" enum:"client_secret_basic,client_secret_post,private_key_jwt,tls_client_auth,self_signed_tls_client_auth,none" doc:"How it may authenticate; whatever its credentials allow, or the token of a trusted issuer alone, if none is named."`
	IDTokenAlgorithm string   `json:"id_token_signed_response_alg,omitempty" enum:"RS256,ES256" doc:"The algorithm that its ID tokens are signed with; RS256 if left out."`
	Runs             []string `json:"runs,omitempty" doc:"The ids of agents that it runs: whose token it may present as the actor of a token exchange."`
	Exchanges        []string `json:"subject_token_types,omitempty" enum:"urn:ietf:params:oauth:token-type:jwt,urn:ietf:params:oauth:token-type:id_token" doc:"The types of tokens that it may take up by token exchange, beside access tokens of this server: jwt is tokens of trusted issuers, id_token those by which people signed in to it."`
	Details          []string `json:"authorization_details_types,omitempty" doc:"The types of authorization details that it may use; none if none is named."`
	Introspect       []string `json:"introspect,omitempty" doc:"The identifiers of the resources that it serves: it may ask about their tokens, beside its own, and take them up by token exchange."`
	Chains           []Chain  `json:"identity_chaining,omitempty" maxItems:"20" doc:"The authorization servers of others to which it may take the people that it acts for: by token exchange it gets assertions for them."`
}

// A Chain is an authorization server of somebody else that takes our word for
// who a person is.
type Chain struct {
	Issuer   string   `json:"issuer" minLength:"1" maxLength:"2048" doc:"The issuer of that server, as its metadata has it."`
	ClientID string   `json:"client_id" minLength:"1" maxLength:"2048" doc:"What the agent is known as there."`
	Scopes   []string `json:"scopes,omitempty" doc:"The most that it may ask for there; whatever policy lets it if none is named."`
}

// The bounds of a client.
const (
	maxURI       = 2048             // bytes
	maxURIs      = 20               // of one kind
	maxMetadata  = 1024             // bytes of a metadata URL
	longestToken = 30 * time.Minute // an access token never lives longer
)

// words lists what the values of a field may be, as its tag has them for the
// API and for files.
func words(field string) []string {
	f, ok := reflect.TypeFor[Client]().FieldByName(field)
	if !ok {
		panic("agent: a client has no field " + field)
	}
	return strings.Split(f.Tag.Get("enum"), ",")
}

// checkClient gives the settings in the one form in which they are kept: nil
// if they say nothing.
func checkClient(c Client, wrong func(field, format string, args ...any)) *Client {
	set := func(field string, list, allowed []string) []string {
		for i, v := range list {
			if !slices.Contains(allowed, v) {
				wrong(fmt.Sprintf("%s[%d]", field, i), "%q is none of %s.", v, strings.Join(allowed, ", "))
			}
		}
		return sorted(list)
	}
	c.GrantTypes = set("grant_types", c.GrantTypes, words("GrantTypes"))
	// Every client has this one, so that naming it says nothing.
	c.GrantTypes = sorted(slices.DeleteFunc(c.GrantTypes, func(g string) bool { return g == "client_credentials" }))
	c.Methods = set("token_endpoint_auth_methods", c.Methods, words("Methods"))
	if c.MetadataURL != "" {
		c.checkMetadata(wrong)
	}
	if len(c.Methods) > 1 && slices.Contains(c.Methods, "none") {
		wrong("token_endpoint_auth_methods", "A client that need not authenticate (none) has no other method beside.")
	}
	if c.IDTokenAlgorithm != "" && !slices.Contains(words("IDTokenAlgorithm"), c.IDTokenAlgorithm) {
		wrong("id_token_signed_response_alg", "ID tokens are signed with RS256 or ES256, not with %q.", c.IDTokenAlgorithm)
	}
	if c.TokenSeconds < 0 || time.Duration(c.TokenSeconds)*time.Second > longestToken {
		wrong("access_token_seconds", "An access token lives between one second and %d, or 0 for the usual time; not %d.", int(longestToken.Seconds()), c.TokenSeconds)
	}
	if len(c.RedirectURIs) > maxURIs {
		wrong("redirect_uris", "A client has at most %d of them.", maxURIs)
	}
	for i, uri := range c.RedirectURIs {
		if why := RedirectURI(uri); why != "" {
			wrong(fmt.Sprintf("redirect_uris[%d]", i), "%s", why)
		}
	}
	if slices.Contains(c.GrantTypes, "authorization_code") && len(c.RedirectURIs) == 0 && c.MetadataURL == "" {
		wrong("redirect_uris", "A client that uses authorization_code names where a browser may be sent back to.")
	}
	if c.DefaultResource != "" {
		c.DefaultResource = identifier(c.DefaultResource, "default_resource", wrong)
	}
	if len(c.Introspect) > maxURIs {
		wrong("introspect", "A client has at most %d of them.", maxURIs)
	}
	c.Introspect = slices.Clone(c.Introspect)
	for i, uri := range c.Introspect {
		c.Introspect[i] = identifier(uri, fmt.Sprintf("introspect[%d]", i), wrong)
	}
	c.Introspect = sorted(c.Introspect)
	c.Chains = checkChains(c.Chains, wrong)
	c.Exchanges = set("subject_token_types", c.Exchanges, words("Exchanges"))
	if len(c.Details) > maxURIs {
		wrong("authorization_details_types", "A client has at most %d of them.", maxURIs)
	}
	for i, name := range c.Details {
		if !estover.ValidName(name) {
			wrong(fmt.Sprintf("authorization_details_types[%d]", i), "A type of authorization details has up to 63 small letters, digits, dots, dashes and underscores, not %q.", name)
		}
	}
	c.Details = sorted(c.Details)
	if len(c.Runs) > maxURIs {
		wrong("runs", "A client runs at most %d agents.", maxURIs)
	}
	for i, id := range c.Runs {
		if !strings.HasPrefix(id, "agt_") {
			wrong(fmt.Sprintf("runs[%d]", i), "The agents that a client runs are named by their ids, as agt_…, not %q.", id)
		}
	}
	c.Runs = sorted(c.Runs)
	if len(c.RedirectURIs) == 0 {
		c.RedirectURIs = nil
	}
	if c.equal(&Client{}) {
		return nil
	}
	return &c
}

// MetadataMethods are the ways in which a client may authenticate that is known
// by its document: what is there is public, so that there are no secrets.
var MetadataMethods = []string{"none", "private_key_jwt"}

// checkMetadata says what is wrong about a client that is known by its document.
func (c *Client) checkMetadata(wrong func(field, format string, args ...any)) {
	if why := MetadataURL(c.MetadataURL); why != "" {
		wrong("metadata_url", "%s", why)
	}
	for i, m := range c.Methods {
		if !slices.Contains(MetadataMethods, m) {
			wrong(fmt.Sprintf("token_endpoint_auth_methods[%d]", i), "A client with a metadata_url authenticates by %s, not by %s.", strings.Join(MetadataMethods, " or "), m)
		}
	}
}

// MetadataURL says why a URL is none by which a client may be known, "" if it is
// one (draft-ietf-oauth-client-id-metadata-document-01, section 3). It is
// compared as a string, so whatever two parsers could read differently is
// refused.
func MetadataURL(s string) string {
	u, err := url.Parse(s)
	switch {
	case len(s) > maxMetadata, err != nil, !plainURI(s), u.Scheme != "https", u.Host == "":
		return "A metadata URL is a plain URL that begins with https://."
	case strings.Contains(s, "#"):
		return "A metadata URL has no fragment."
	case u.User != nil:
		return "A metadata URL has no user in it."
	case !plainHost(u):
		return "The host of a metadata URL is one name in small letters, without a dot at its end."
	case u.EscapedPath() == "" || u.EscapedPath() == "/":
		return "A metadata URL has a path, as https://app.example/client.json."
	case hasDotSegment(u.EscapedPath()):
		return "The path of a metadata URL has no segments of dots."
	}
	return ""
}

// plainHost reports whether the host of a URL has one spelling.
func plainHost(u *url.URL) bool {
	return strings.Trim(u.Host, "abcdefghijklmnopqrstuvwxyz0123456789.-:[]") == "" && !strings.HasSuffix(u.Hostname(), ".")
}

// checkChains gives the servers in the one form in which they are kept.
func checkChains(list []Chain, wrong func(field, format string, args ...any)) []Chain {
	if len(list) == 0 {
		return nil
	}
	if len(list) > maxURIs {
		wrong("identity_chaining", "A client has at most %d of them.", maxURIs)
	}
	list = slices.Clone(list)
	for i := range list {
		c, field := &list[i], fmt.Sprintf("identity_chaining[%d]", i)
		if u, err := url.Parse(c.Issuer); err != nil || !plainURI(c.Issuer) || u.Host == "" || u.User != nil || strings.ContainsAny(c.Issuer, "?#") || len(c.Issuer) > maxURI {
			wrong(field+".issuer", "%q is not the URL of an issuer.", c.Issuer)
		}
		if c.ClientID == "" || len(c.ClientID) > maxURI {
			wrong(field+".client_id", "The agent is known there by a client_id.")
		}
		if slices.ContainsFunc(list[:i], func(other Chain) bool { return other.Issuer == c.Issuer }) {
			wrong(field+".issuer", "%s is named twice.", c.Issuer)
		}
		for _, s := range c.Scopes {
			if s == "" || strings.ContainsAny(s, " \"\\") {
				wrong(field+".scopes", "%q is no scope.", s)
			}
		}
		c.Scopes = sorted(c.Scopes)
	}
	return list
}

// sorted is a list without what it has twice; nil if nothing is in it.
func sorted(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}

// identifier is the identifier of a resource in the spelling in which resources
// are registered: scheme and host in lower case, no port that is the scheme's
// own, no slash at the end (RFC 8707, section 2).
func identifier(uri, field string, wrong func(field, format string, args ...any)) string {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme == "" || u.Host == "" || u.User != nil || u.Fragment != "" || len(uri) > maxURI || strings.ContainsAny(uri, "# \\") {
		wrong(field, "A resource is named by an absolute URI without a fragment, not by %q.", uri)
		return uri
	}
	u.Host = strings.TrimSuffix(strings.ToLower(u.Host), map[string]string{"https": ":443", "http": ":80"}[u.Scheme])
	return strings.TrimSuffix(u.String(), "/")
}

// RedirectURI says why a URI is none that a browser may be sent back to, "" if it
// is one. It must be written so that every parser reads the same (RFC 9700,
// section 4.1): whatever is not plain is refused, not repaired.
func RedirectURI(uri string) string {
	u, err := url.Parse(uri)
	switch {
	case err != nil, u.Host == "", len(uri) > maxURI, !plainURI(uri):
		return fmt.Sprintf("%q is not a plain absolute URI.", uri)
	case u.Fragment != "" || strings.Contains(uri, "#"):
		return "A redirect URI has no fragment."
	case u.User != nil:
		return "A redirect URI has no user in it."
	case !plainHost(u):
		return "The host of a redirect URI is one name in small letters, without a dot at its end."
	case hasDotSegment(u.EscapedPath()):
		return "The path of a redirect URI has no segments of dots."
	case u.Scheme == "https":
		return ""
	case u.Scheme == "http" && loopback(u.Hostname()):
		return ""
	}
	return "A redirect URI begins with https://, or with http:// and the machine itself: 127.0.0.1, [::1] or localhost."
}

// plainURI reports whether a URI has only characters that stand for themselves.
func plainURI(uri string) bool {
	for i := range len(uri) {
		if c := uri[i]; c <= ' ' || c >= 0x7f || strings.IndexByte("\"<>\\^`{|}", c) >= 0 {
			return false
		}
	}
	return strings.HasPrefix(uri, "https://") || strings.HasPrefix(uri, "http://")
}

// hasDotSegment reports whether a path has a segment that leads elsewhere,
// however it is written.
func hasDotSegment(path string) bool {
	path = strings.NewReplacer("%2e", ".", "%2E", ".", "%2f", "/", "%2F", "/", "%5c", "/", "%5C", "/").Replace(path)
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}

// loopback reports whether a host is this machine and nothing else.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// equal compares the settings of two agents, one of which may have none.
func (c *Client) equal(other *Client) bool { return reflect.DeepEqual(c, other) }
