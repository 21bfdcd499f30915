package token

import (
	"context"
	"crypto/x509"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/guard"
	"estover.dev/internal/jose"
)

// The methods by which a client says who it is (RFC 7591, section 2).
const (
	SecretBasic   = "client_secret_basic"
	SecretPost    = "client_secret_post"
	PrivateKeyJWT = "private_key_jwt"
	ByAssertion   = "jwt_bearer"                  // the grant itself says who the client is; nobody registers it
	TLSClientAuth = "tls_client_auth"             // RFC 8705, section 2.1
	SelfSignedTLS = "self_signed_tls_client_auth" // RFC 8705, section 2.2
	Public        = "none"                        // it says its name and proves nothing
)

// ErrNoClient is returned when there is no client of this id.
var ErrNoClient = &estover.Error{Kind: estover.Unknown, Code: "client_unknown", Detail: "The client is not known, or what it presented does not prove that it is the one."}

// maxURL bounds a client_id that is a URL, in bytes.
const maxURL = 1024

// Clients are the OAuth clients of a tenant.
type Clients interface {
	// Client is the client with this id, or [ErrNoClient]. It reads a copy, and
	// what it returns is shared and never changed. A client that is known by a URL
	// is found by that too, without what its document says.
	Client(ctx context.Context, tenant estover.TenantID, id string) (*Client, error)

	// Secret finds the live credential of the client that a presented value
	// belongs to, in a time that does not depend on the value; an error of kind
	// Unknown if there is none.
	Secret(ctx context.Context, tenant estover.TenantID, id, value string) (credential string, err error)

	// Used notes that a credential has just proved something. It returns at
	// once.
	Used(tenant estover.TenantID, credential string)
}

// A Client is what the token service knows of an OAuth client. An agent is the
// client whose id is the agent's, or that is known by its URL.
type Client struct {
	ID      string          // the agent's
	Subject estover.Subject // who it is when it acts for itself

	// URL is the client_id of a client that says itself what it is, in the
	// document there; "" for one whose client_id is its ID. Said is what was read
	// there, nil where nothing was: to go on with what was granted, nobody fetches.
	URL  string
	Said *Said

	// Itself says that the client registered itself: nobody has looked at what it
	// says, which stands in Said.
	Itself bool

	Purposes   []string      // that its sessions may have, the usual one first
	GrantTypes []string      // that it may use
	Methods    []string      // by which it may authenticate
	Named      bool          // whether those were named for it, so that nothing else says who it is
	Algorithms []string      // that it may sign assertions with; empty for those that everybody may
	KeySets    []KeySet      // that its assertions, and certificates that vouch for themselves, are checked with
	Certified  []Certified   // names that its certificates may have
	Backup     []string      // those of its credentials that are kept for an emergency
	Resource   string        // identifier of the resource that it means when it names none; "" for none
	Life       time.Duration // of its tokens; 0 for the usual one
	Introspect []string      // identifiers of the resources whose tokens it may ask about
	Redirects  []string      // where a browser may be sent back to

	// DPoPBound and CertificateBound clients get no token that is not bound to
	// their key (RFC 9449, section 5.2; RFC 8705, section 3.4), in no flow.
	DPoPBound, CertificateBound bool

	// RequirePAR clients push their authorization requests (RFC 9126, section 6).
	RequirePAR bool

	// IDTokenAlgorithm is what their ID tokens are signed with; "" for the usual.
	IDTokenAlgorithm string

	// Runs are the ids of agents that the client runs, as which it may act when
	// it takes up a token and presents one of theirs beside it.
	Runs []string

	// Exchanges are the types of tokens that it may take up, beside access
	// tokens of ours.
	Exchanges []string

	// Chains are the authorization servers of others for which it gets assertions.
	Chains []Chain

	// Details are the types of authorization details that it may use.
	Details []string

	// LegacyAudience lets the audience of its assertions be the token endpoint,
	// as some libraries do.
	LegacyAudience bool

	// Alive says why the client may not act at this time, if it may not: it is
	// held, has expired, was retired, or has no sponsor any more.
	Alive func(ctx context.Context, now time.Time) error
}

// Said is what a client says of itself that a person is told, or would want to be
// asked about again.
type Said struct {
	Name   string // client_name; "" for none
	Digest string // changes with the name, keys, redirect URIs and everything else that counts
}

// Name is what the client is called where it is spoken of in OAuth: the
// client_id that it sends and that its tokens carry.
func (c *Client) Name() string {
	if c.URL != "" {
		return c.URL
	}
	return c.ID
}

// A KeySet is a credential that is a set of public keys, parsed once.
type KeySet struct {
	Credential string
	Keys       *jose.Keys
	Expires    time.Time // zero for never
}

// Certified is a credential that is the name of a certificate, and who vouches
// for it.
type Certified struct {
	Credential string
	Names      func(*x509.Certificate) bool
	Roots      *x509.CertPool
	Domain     string    // of SPIFFE, whose trust has the roots; "" if they are here
	Expires    time.Time // zero for never
}

// May reports whether the client may use a grant type.
func (c *Client) May(grantType string) bool { return slices.Contains(c.GrantTypes, grantType) }

// IsURL reports whether a client_id is a URL. Ids that are made here never are.
func IsURL(s string) bool { return strings.HasPrefix(s, "https://") }

// ClientID reports whether a string has the form of a client id. A subject,
// which has a colon, never has (RFC 9700, section 4.15), and neither has
// anything that would have to be escaped in JSON. A URL is looked at by whoever
// registers one.
func ClientID(s string) bool {
	if IsURL(s) {
		return len(s) <= maxURL && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' || r == '\\' }) < 0
	}
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("-._", rune(c)) {
			return false
		}
	}
	return true
}

// BackupUsed records that a client has authenticated by a credential that is
// kept for an emergency, so that whoever follows the log can look at why. Until
// that is on record the credential has proved nothing.
func (t *Tokens) BackupUsed(ctx context.Context, caller estover.Caller, client *Client, method, credential string) error {
	op := guard.Op{
		Action: "credential.use_backup", Target: string(client.Subject), Effect: guard.Manages,
		Detail: map[string]any{"credential": credential, "auth_method": method},
	}
	return t.guard.Record(ctx, caller, op, guard.Decision{ID: audit.NewID(), Allow: true, Engine: "kernel"}, guard.Hot{})
}
